# SPDX-License-Identifier: Apache-2.0
"""One file of nsrun's own is lost, or another is in its place: what it was about lives on, and can still be ended by its name.

The proof of life is a lock on a file, so a file that is gone proves nothing; a note that is gone is damaged, not absent.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from conftest import CACHE, NSRUN, kill, need, sh, sparse_file, wait_for

from nsrun.state import codec, orphans

pytestmark = pytest.mark.live

#: What may stand where a file of nsrun's was.
PLACES = {
    "nothing": lambda path: None,
    "an empty file": lambda path: path.touch(),
    "a FIFO": lambda path: os.mkfifo(path),
    "a directory": lambda path: path.mkdir(),
    "a link": lambda path: path.symlink_to("/etc/passwd"),
    "a file of 64 GiB": lambda path: sparse_file(path, 64 << 30),
}
#: None of these may end what lives, whatever they say.
HARMLESS = [
    ["pod", "ls", "-a"], ["ls", "-a"], ["pod", "rm", "pause"], ["rm", "m"], ["pod", "create", "--network", "none", "pause"], ["pod", "prune"],
    ["image", "prune", "-a"], ["pod", "prune", "--all"], ["doctor"], ["pod", "prune", "--all"],
]  # fmt: skip


def lives(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def monitor_of(pid: int) -> int:
    return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("lost", ["pods/pause/held", "pods/pause/note", "members/m/held", "members/m/note"])
@pytest.mark.parametrize("maker", ["root", "user"])
def test_a_lost_file_ends_nothing(host, alice, box, maker, lost, place):
    who, base = (host, host.root) if maker == "root" else (alice, host.root / f"users/{alice.uid}")
    network = ["-p", "127.0.0.1:8099:80"] if maker == "root" else ["--network", "none"]
    if maker == "root":
        host.run("image", "load", CACHE.parent / "images/busybox")
    who.run("pod", "create", *network, "pause")
    who.run("join", "pause", "-d", "--name", "m", "--image", box, "--", "sh", "-c", "echo precious >/precious; sleep 1000")  # fmt: skip
    precious = wait_for(lambda: list(base.glob("lib/upper/*/upper/precious")))[0]
    pause, member = who.pod()["pid"], who.member("m")["pid"]
    monitor = monitor_of(member)
    path = base / "run" / lost
    path.unlink()
    PLACES[place](path)
    if os.path.lexists(path):
        os.chown(path, base.stat().st_uid, -1, follow_symlinks=False)
    for words in HARMLESS:
        done = who.run(*words, check=False, timeout=30)
        assert "Traceback" not in done.stderr
        assert (lives(pause), lives(member), lives(monitor), precious.exists()) == (True,) * 4, words
    assert "pause" in who.run("pod", "ls").stdout and "m" in who.run("ls").stdout
    if lost.startswith("members"):
        who.run("rm", "-f", "m")
        assert not lives(member)
        assert "m" not in [m["name"] for m in who.json("ls", "-a")]
    who.run("pod", "rm", "-f", "pause")
    wait_for(lambda: not lives(pause) and not lives(member), 5, "everything ends")
    assert who.json("pod", "ls", "-a") == []
    who.run("pod", "create", *network, "pause")  # name and port are free


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "elsewhere",
    ["", "--pid --mount-proc", "--mount"],
    ids=["from here", "from another PID namespace", "from another mount namespace"],
)
@pytest.mark.parametrize("maker", ["root", "user"])
def test_a_lost_proof_beside_a_damaged_note(host, alice, box, maker, elsewhere, place):
    """Two files of each are gone: nobody takes what lives for dead, from wherever it is asked, and it can be ended by its name."""
    who, base = (host, host.root) if maker == "root" else (alice, host.root / f"users/{alice.uid}")
    if maker == "root":
        host.run("image", "load", CACHE.parent / "images/busybox")
    who.run("pod", "create", "--network", "none", "pause")
    who.run("join", "pause", "-d", "--pid", "own", "--name", "m", "--image", box, "--", "sh", "-c", "echo precious >/precious; sleep 1000")  # fmt: skip
    precious = wait_for(lambda: list(base.glob("lib/upper/*/upper/precious")))[0]
    pause, member = who.pod()["pid"], who.member("m")["pid"]
    for thing in ("pods/pause", "members/m"):
        (base / "run" / thing / "held").unlink()
        PLACES[place](base / "run" / thing / "held")
        note = base / "run" / thing / "note"
        note.write_text(note.read_text().replace('"name"', '"nane"'))
        for path in (base / "run" / thing).iterdir():
            os.chown(path, base.stat().st_uid, -1, follow_symlinks=False)
    wrap = ["unshare", "--fork", *elsewhere.split()] if elsewhere else []
    for words in HARMLESS:
        sh(*wrap, *who.words(NSRUN, *words), env=who.env, cwd="/", check=False, timeout=30)
        assert (lives(pause), lives(member), precious.exists()) == (True, True, True), words
    who.run("rm", "-f", "m")
    assert not lives(member) and who.json("ls", "-a") == []
    who.run("pod", "rm", "-f", "pause")
    wait_for(lambda: not lives(pause), 5, "pause ends")
    who.run("pod", "create", "--network", "none", "pause")


@pytest.mark.parametrize("inode", ["another inode", "the same inode"])
@pytest.mark.parametrize("maker", ["root", "user", "root for a user"])
def test_the_note_of_an_earlier_thing_of_the_same_name(host, alice, box, maker, inode):
    """Somebody puts back a copy of a note: it is damaged, and what lives under its name is ended by that name."""
    who, base = (alice, host.root / f"users/{alice.uid}") if maker == "user" else (host, host.root)
    env = {"SUDO_UID": str(alice.uid)} if maker == "root for a user" else {}
    things = ["pods/pause"] if env else ["pods/pause", "members/m"]
    notes = [base / "run" / thing / "note" for thing in things]

    def make() -> list[int]:
        who.run("pod", "create", "--network", "none", "pause", env=env)
        if not env:
            who.run("join", "pause", "-d", "--name", "m", "--image", box, "--", "sleep", "1000")
        return [who.pod()["pid"]] if env else [who.pod()["pid"], who.member("m")["pid"]]

    if maker != "user":
        host.run("image", "load", CACHE.parent / "images/busybox")
    make()
    copies = [codec.decode(note.read_bytes(), codec.SHAPES[note.parts[-3]]) for note in notes]
    who.run("pod", "rm", "-f", "pause")
    living = make()
    before = host.snapshot()["cgroups"]
    for note, copy in zip(notes, copies, strict=True):
        if inode == "the same inode":
            copy["held"] = note.with_name("held").stat().st_ino
        note.write_bytes(codec.encode(copy))
    for words in HARMLESS:
        done = who.run(*words, check=False, timeout=30)
        assert "Traceback" not in done.stderr
        assert [lives(pid) for pid in living] == [True] * len(living), words
    assert "of this name" in who.run("pod", "ls").stderr
    assert "is damaged" in who.run("join", "pause", "--image", box, "true", check=False).stderr
    if not env:
        who.run("rm", "-f", "m")
    who.run("pod", "rm", "-f", "pause")
    wait_for(lambda: not any(lives(pid) for pid in living), 5, "everything ends")
    assert who.json("pod", "ls", "-a") == [] and who.json("ls", "-a") == []
    _, *member = make()
    assert len(host.snapshot()["cgroups"]) == len(before)
    for pid in member:  # only the files beside its data speak of it, once its monitor is killed
        notes[1].write_bytes(codec.encode(copies[1]))
        os.kill(monitor_of(pid), signal.SIGKILL)
        assert wait_for(lambda: who.run("rm", "m", check=False).returncode) and lives(pid)  # noqa: B023
        who.run("pod", "prune", check=False)
        assert lives(pid)
        who.run("rm", "-f", "m")
        assert not lives(pid) and who.json("ls", "-a") == []


@pytest.mark.parametrize("what", ["touched", "exchanged", "linked"])
def test_a_held_that_is_another(host, busybox, what):
    """The note is right, and the file beside it is not: what is named ends, or the command fails; nothing else ends."""
    for pod, member in (("a", "m"), ("b", "k")):
        host.run("pod", "create", "--network", "none", pod)
        host.run(f"join {pod} -d --name {member} --rootfs {{}} -- sleep 1000", busybox)
    pids = {name: host.pod(name)["pid"] for name in "ab"} | {name: host.member(name)["pid"] for name in "mk"}
    for kind, one, two in (("pods", "a", "b"), ("members", "m", "k")):
        base = host.root / "run" / kind
        if what == "touched":
            os.utime(base / two / "held")
        elif what == "exchanged":
            for old, new in ((one, "tmp"), (two, one), ("tmp", two)):
                (base / old / "held" if old != "tmp" else base / "tmp").rename(
                    base / new / "held" if new != "tmp" else base / "tmp"
                )
        else:
            (base / two / "held").unlink()
            os.link(base / one / "held", base / two / "held")
    for words in HARMLESS:
        host.run(*words, check=False, timeout=30)
        assert all(map(lives, pids.values())), words
    for words, name, others in ((["rm", "-f", "k"], "k", "abm"), (["pod", "rm", "-f", "b"], "b", "am")):
        done = host.run(*words, check=False, timeout=60)
        assert all(lives(pids[other]) for other in others), (words, done.stderr)
        assert done.returncode or not lives(pids[name]), words
        if what == "touched":
            assert done.returncode == 0 and not lives(pids[name])
    for name in "ab":
        with contextlib.suppress(ProcessLookupError):
            kill(pids[name])


def test_a_touched_held_changes_nothing(host, busybox):
    """A member is restarted, one with --rm removed, and the status handed on."""
    host.run("pod", "create", "--network", "none", "p")
    host.run("join p -d --name again --restart always --rootfs {} -- sleep 1000", busybox)
    once = host.background("join p --name once --rm --rootfs {} -- sh -c 'sleep 2; exit 7'", busybox)
    wait_for(lambda: len(host.json("ls")) == 2)
    for name in ("again", "once"):
        os.utime(host.root / "run/members" / name / "held")
    first = host.member("again")["pid"]
    kill(first)
    wait_for(lambda: host.member("again")["pid"] not in (0, first))
    assert once.wait(timeout=30) == 7
    assert [member["name"] for member in host.json("ls", "-a")] == ["again"]


def test_a_lost_file_of_a_pod_that_was_made_in_another_namespace(host, busybox):
    """Start times in a time namespace are others: what is noted is the machine's own."""
    sh("unshare --time --boottime 1000000 --fork {} pod create --network none pause", NSRUN, env=host.env)
    pause = host.pod()["pid"]
    (host.root / "run" / "pods" / "pause" / "held").unlink()
    assert host.pod()["pid"] == pause
    host.run("pod", "prune", "--all")
    assert lives(pause)
    host.run("join", "pause", "--rm", "--rootfs", busybox, "true")
    host.run("pod", "rm", "-f", "pause")
    wait_for(lambda: not lives(pause), 5, "pause ends")
    assert host.json("pod", "ls", "-a") == []


def test_a_damaged_note_that_is_looked_at_from_another_pid_namespace(host, alice):
    """nsrun-hold was killed, and pause is not in view from there: its lock tells that the pod lives, and keeps its name."""
    env = {"SUDO_UID": str(alice.uid)}
    host.run("pod", "create", "--network", "none", "p", env=env)
    pause = host.pod("p")["pid"]
    for line in host.snapshot()["processes"]:
        if "nsrun-hold" in line:
            kill(int(line.split()[0]))
    note = host.root / "run/pods/p/note"
    note.write_text(note.read_text().replace("none", "nine"))
    words = ["unshare", "--pid", "--fork", "--mount-proc", NSRUN, "pod", "create", "--network", "none", "p"]
    assert sh(*words, env={**host.env, **env}, check=False).returncode == 125
    assert note.exists() and lives(pause)
    assert [p["pid"] for p in host.json("pod", "ls", "-a")] == [pause]
    host.run("pod", "rm", "-f", "p")
    assert not lives(pause)


@pytest.mark.parametrize("back", [False, True], ids=["from the machine's own", "from another"])
def test_a_member_of_another_time_namespace_whose_monitor_was_killed(host, alice, box, back):
    """Only its number and its start time tell of it, in a pod without cgroup; the soak found it alive for good."""
    env = {"NSRUN_CGROUP": "none"}
    alice.run("pod", "create", "--network", "none", "p", env=env)
    words = ["join", "p", "-d", "--pid", "own", "--name", "m", "--image", box, "sleep", "1000"]
    made = sh(
        "unshare",
        "--time",
        "--boottime",
        "1000000",
        "--fork",
        *alice.words(NSRUN, *words),
        env={**alice.env, **env},
        cwd="/",
    )
    assert made.stdout == "m\n"
    pid = alice.member("m")["pid"]
    kill(monitor_of(pid))
    asked = ["unshare", "--time", "--boottime", "77777", "--fork"] if back else []
    ls = sh(*asked, *alice.words(NSRUN, "ls", "--json"), env={**alice.env, **env}, cwd="/")
    assert [m["status"] for m in json.loads(ls.stdout)] == ["running"]
    sh(*asked, *alice.words(NSRUN, "rm", "-f", "m"), env={**alice.env, **env}, cwd="/")
    assert not lives(pid) and alice.json("ls", "-a") == []


def test_the_end_of_a_pod_that_was_made_in_another_namespace(host, alice):
    """Its number means nothing here, and its cgroup, which proved its end, is gone: what was proven once stays so.

    Of a PID namespace, all processes end with the first, which is this very nsrun.
    """
    create = (NSRUN, "pod", "create", "--network", "none", "--owner", "alice", "hers")
    sh("unshare", "--pid", "--fork", "--mount-proc", *create, env=host.env)
    for _ in range(2):
        wait_for(lambda: [pod["status"] for pod in host.json("pod", "ls", "-a")] == ["stopped"], 5, "the end is known")
    host.run("pod", "rm", "hers")
    assert host.json("pod", "ls", "-a") == []


@pytest.mark.parametrize("lost", ["about", "held", "committed"])
def test_the_image_under_a_running_member_stays(host, pod, lost):
    need(
        (CACHE.parent / "images" / "busybox").is_dir(),
        "the busybox image is not built",
        "sudo rootfs/build --image busybox",
    )
    box = host.run("image", "load", CACHE.parent / "images" / "busybox").stdout.strip()
    host.run("join", pod, "-d", "--name", "m", "--image", box, "--", "sleep", "1000")
    member = host.member("m")
    (host.root / "lib" / "upper" / member["id"] / lost).unlink()
    for words in (
        ["image", "rm", "-f", box],
        ["image", "prune", "-a"],
        ["pod", "prune", "--all"],
        ["image", "prune", "-a"],
    ):
        host.run(*words, check=False)
        assert lives(member["pid"]) and os.listdir(f"/proc/{member['pid']}/root/bin"), words
    host.run("exec", "m", "true")
    host.run("rm", "-f", "m")
    host.run("image", "rm", box)


def test_an_exit_status_beside_a_running_member(host, pod, busybox):
    host.start("m", busybox, "sleep", "1000")
    pid = host.member("m")["pid"]
    (host.root / "run" / "members" / "m" / "exit").write_text("0 x\n")
    done = host.run("rm", "m", check=False)
    assert done.returncode == 125 and "running" in done.stderr and lives(pid)
    host.run("rm", "-f", "m")
    assert not lives(pid)


def test_prune_leaves_another_directory_of_the_same_path_alone(host):
    """A container has its own /run/nsrun: its path is ours, its file system is not."""
    (host.root / "run").mkdir(exist_ok=True)
    script = (
        f"mount -t tmpfs none {host.root}/run && {NSRUN} pod create --network none inner >&2 && cat {host.root}/run/pods/inner/note"
        f" && rm -rf {host.root}/run/pods/* && echo done && read word; exec {NSRUN} pod prune"
    )
    inner = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script], env=host.env, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )  # fmt: skip
    try:
        note = inner.stdout.readline()
        pause = int(note.partition('"pause": [')[2].partition(",")[0])
        assert inner.stdout.readline() == "done\n"
        for words in (["pod", "prune"], ["pod", "prune", "--all"]):
            host.run(*words)
            assert lives(pause)
    finally:
        told, _ = inner.communicate("\n", timeout=30)
    assert f"process {pause} (pause)" in told and not lives(pause)  # in there it is an orphan


def test_prune_ends_what_no_note_speaks_of(host, busybox):
    host.run("pod", "create", "--network", "none", "pause")
    host.start("m", busybox, "sleep", "1000")
    pause, member = host.pod()["pid"], host.member("m")["pid"]
    sh("rm", "-rf", host.root / "run" / "pods" / "pause", host.root / "run" / "members" / "m")
    host.run("pod", "prune")
    wait_for(lambda: not lives(pause) and not lives(member), 10, "what nobody knows has ended")
    host.run("pod", "prune", "--all")


def test_a_removal_that_was_killed_half_way(host, pod, busybox):
    """It had said that it ends the pod: who is dead ends nothing, and the pod takes members again."""
    pause = host.pod()["pid"]
    script = "import sys; from nsrun.state import State; State(sys.argv[1]).mark_removing('pause'); print(flush=True); input()"
    remover = subprocess.Popen(
        [sys.executable, "-I", "-c", script, host.root], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert remover.stdout.readline() == b"\n"
        assert host.json("pod", "ls")[0]["status"] == "removing"
        assert "is being removed" in host.run("join", pod, "--rm", "--rootfs", busybox, "true", check=False).stderr
    finally:
        remover.kill()
        remover.communicate()
    assert host.pod()["status"] == "running" and lives(pause)
    host.run("join", pod, "--rm", "--rootfs", busybox, "true")


def test_prune_removes_a_cgroup_of_no_pod(host):
    host.run("pod", "create", "--network", "none", "pause")
    pause = host.pod()["pid"]
    sh("rm", "-rf", host.root / "run" / "pods" / "pause")
    os.kill(pause, signal.SIGKILL)
    wait_for(lambda: not lives(pause))
    assert host.run("pod", "prune").stdout == ""  # it may be one that another nsrun is about to use
    wait_for(lambda: "of no pod" in host.run("pod", "prune").stdout or not host.cgroups(), 20, "the cgroup goes")


def test_wait_for_a_member_whose_monitor_was_killed(host, pod, busybox):
    """It is being stopped, ignores its signal, and nobody is there to write an exit status: `wait` waits, and does not spin."""
    host.start("m", busybox, "sh", "-c", "trap '' TERM; while :; do sleep 1; done")
    pid = host.member("m")["pid"]
    os.kill(monitor_of(pid), signal.SIGKILL)
    (host.root / "run" / "members" / "m" / "stop").touch()
    wait_for(lambda: host.json("ls")[0]["status"] == "stopping")
    waiter = subprocess.Popen([NSRUN, "wait", "m"], env=host.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(
            lambda: (
                pathlib.Path(f"/proc/{waiter.pid}/wchan").read_text()
                in ("do_sys_poll", "poll_schedule_timeout.constprop.0")
            ),
            10,
            "wait polls",
        )
        before = int(pathlib.Path(f"/proc/{waiter.pid}/stat").read_text().rpartition(")")[2].split()[11])
        with pytest.raises(subprocess.TimeoutExpired):
            waiter.wait(2)
        after = int(pathlib.Path(f"/proc/{waiter.pid}/stat").read_text().rpartition(")")[2].split()[11])
        assert after - before < 50  # of 200 ticks
        os.kill(pid, signal.SIGKILL)
        assert waiter.wait(10) == 125
    finally:
        waiter.kill()
        waiter.wait()
    host.run("rm", "-f", "m")


def test_a_caller_that_ignores_sigchld(host, pod, busybox, alice):
    def nsrun(*words: object) -> subprocess.CompletedProcess[str]:
        return sh("env", "--ignore-signal=CHLD", NSRUN, *words, env=host.env, check=False)

    assert nsrun("join", pod, "--rm", "--rootfs", busybox, "sh", "-c", "exit 7").returncode == 7
    assert nsrun("pod", "create", "--network", "none", "--owner", "alice", "hers").stdout == "hers\n"
    done = nsrun("ls", "-a")
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        nsrun("join", pod, "--rm", "--rootfs", busybox, "sh", "-c", "grep SigIgn /proc/self/status").stdout.split()[1][
            -5
        ]
        in "02468ace"
    )


def test_prune_goes_on_after_what_it_can_not_do(host, pod, busybox):
    host.run("join", pod, "-d", "--name", "a", "--rootfs", busybox, "--", "true")
    host.run("join", pod, "-d", "--name", "b", "--rootfs", busybox, "--", "true")
    for name in "ab":
        host.run("wait", name)
    held = host.root / "run" / "members" / "a" / "held"
    held.unlink()
    held.mkdir()
    done = host.run("pod", "prune", check=False)
    assert "member b" in done.stdout and "Traceback" not in done.stderr
    host.run("rm", "-f", "a", check=False)
    assert host.json("ls", "-a") == []


BOX = "localhost/busybox:latest"
ASKED = [["ls", "-a"], ["pod", "ls"], ["logs", "m"], ["inspect", "m"], ["wait", "e"], ["doctor"], ["join", "pause", "--rm", "--image", BOX, "--", "true"]]  # fmt: skip
OF_IMAGES = [["image", "ls"], ["image", "inspect", BOX], ["image", "tag", BOX, "other"], ["join", "pause", "--rm", "--image", BOX, "--", "true"]]  # fmt: skip


@pytest.mark.timeout(300)
@pytest.mark.parametrize("what", ["a FIFO", "a file of 64 GiB"])
def test_no_file_keeps_a_command(host, pod, busybox, what):
    """Whatever stands for a file of nsrun's, commands end, and what runs goes on: none is waited for, or read without a bound."""
    images = CACHE.parent / "images/busybox"
    need(images.is_dir(), "the busybox image is not built", "sudo rootfs/build --image busybox")
    host.run("image", "load", images)
    host.run("join", pod, "--name", "e", "--rootfs", busybox, "--", "true")
    host.run("join", pod, "-d", "--name", "m", "--image", BOX, "--", "sh", "-c", "echo hello; exec sleep 1000")
    pids = [host.pod()["pid"], host.member("m")["pid"]]
    below = [host.root / "run", host.root / "lib/images", host.root / "lib/upper", host.root / "lib/seccomp"]
    files = [path for base in below for path in base.rglob("*") if path.is_file() and not path.is_symlink()]
    files = [path for path in files if "/tree/" not in str(path) and "/upper/upper/" not in str(path)]
    assert {"note", "held", "log", "exit", "lock", "names.json", "layer.json"} <= {path.name for path in files}
    for path in files:
        aside = host.root / "aside"
        os.rename(path, aside)
        PLACES[what](path)
        for words in OF_IMAGES if "images" in path.parts else ASKED:
            done = host.run(*words, check=False, timeout=20)
            assert done.returncode in (0, 1, 125) and "Traceback" not in done.stderr, (path, words, done.stderr)
            assert "unexpected " not in done.stderr and all(map(lives, pids)), (path, words, done.stderr)
        if "seccomp" in path.parts:  # it is compiled anew
            assert host.run("exec", "m", "echo", "here").stdout == "here\n"
            host.run("join", pod, "--rm", "--rootfs", busybox, "--", "true", timeout=20)
        path.unlink(missing_ok=True)
        os.rename(aside, path)
    assert host.run("logs", "m").stdout == "hello\n"


@pytest.mark.parametrize("how", ["rm", "prune"])
def test_a_member_of_which_only_its_data_speak(host, pod, busybox, how):
    """It has a PID namespace of its own, its monitor was killed, its note damaged: it can still be ended."""
    host.start("m", busybox, "sleep", "1000", options=["--pid", "own"])
    member = host.member("m")["pid"]
    os.kill(monitor_of(member), signal.SIGKILL)
    (host.root / "run/members/m/note").write_text("?")
    host.run("pod", "rm", "-f", pod)
    assert lives(member)
    if how == "rm":
        host.run("rm", "-f", "m")
    else:
        host.run("pod", "prune")
        assert lives(member) and [m["status"] for m in host.json("ls", "-a")] == ["damaged"]
        sh("rm", "-rf", host.root / "run/members/m")
        host.run("pod", "prune")
        assert lives(member)
        assert "m" in host.run("pod", "prune", "--all").stdout
    assert not lives(member)
    host.run("pod", "prune", "--all")
    assert list((host.root / "lib/upper").iterdir()) == []


def test_a_lost_committed_of_a_member_whose_monitor_was_killed(host, pod, busybox):
    """Its note says that it has data, and that it runs: what was lost is no word that it never began."""
    host.start("m", busybox, "sh", "-c", "echo x >/precious; sleep 1000")
    precious = wait_for(lambda: list(host.root.glob("lib/upper/*/upper/precious")))[0]
    pid = host.member("m")["pid"]
    os.kill(monitor_of(pid), signal.SIGKILL)
    (precious.parent.parent / "committed").unlink()
    for words in (["ls"], ["pod", "prune"], ["pod", "prune", "--all"], ["image", "prune"]):
        host.run(*words)
        assert lives(pid) and precious.exists(), words
    host.run("rm", "-f", "m")
    assert not lives(pid) and not precious.exists()


@pytest.mark.parametrize("lost", ["run/pods/pause/started", "lib/upper/*/committed", "lib/upper/*/about"])
def test_what_an_ended_member_wrote_outlives_a_lost_file(host, busybox, lost):
    host.run("pod", "create", "--network", "none", "pause")
    host.run(
        "join", "pause", "--name", "m", "--rootfs", busybox, "--", "sh", "-c", "echo x >/precious; exit 3", check=False
    )
    precious = next(iter(host.root.glob("lib/upper/*/upper/precious")))
    next(iter(host.root.glob(lost))).unlink()
    os.kill(host.pod()["pid"], signal.SIGKILL)
    wait_for(lambda: [p["status"] for p in host.json("pod", "ls", "-a")] == ["stopped"], 5, "the end of the pod")
    for words in (["ls"], ["pod", "ls"], ["image", "prune"]):
        host.run(*words)
        assert precious.exists() and host.member("m")["exit_code"] == 3, words
    host.run("rm", "m")
    assert not precious.exists()
    host.run("pod", "rm", "pause")


def test_the_end_of_data_that_nothing_tells_of(host, pod, busybox):
    """A removal that was killed at any of its last steps is finished by the next command, or by a prune."""
    import itertools

    last = ("about", "committed", "held")
    for gone in itertools.accumulate(last, lambda a, b: f"{a} {b}"):
        host.run("join", pod, "--name", "m", "--rootfs", busybox, "--", "true")
        (data,) = (host.root / "lib/upper").iterdir()
        for path in data.iterdir():
            if path.name not in last:
                sh("rm", "-rf", path)
        for name in gone.split():
            (data / name).unlink()
        sh("rm", "-rf", host.root / "run/members/m")
        host.run("image", "prune")
        host.run("pod", "prune", "--all")
        assert list((host.root / "lib/upper").iterdir()) == [], gone


@pytest.mark.parametrize(
    "place", [lambda path: None, lambda path: (path / "x").mkdir(parents=True)], ids=["nothing", "a directory"]
)
def test_a_lost_proof_that_an_owner_is_shown(host, owned, place):
    """What root's user sees was lost: root's own note knows the pod, and no prune takes its pause for an orphan."""
    pause = host.pod(owned)["pid"]
    (shown,) = host.root.glob("owned/*/pause.held")
    shown.unlink()
    place(shown)
    assert "orphan" not in host.run("doctor").stdout
    host.run("pod", "prune", "--all")
    assert lives(pause)
    host.run("pod", "rm", "-f", owned)
    assert not lives(pause) and not os.path.lexists(shown)


def test_a_member_whose_mark_is_a_fifo_can_be_stopped(host, pod, busybox):
    host.start("m", busybox, "sleep", "1000", options=["--restart", "always"])
    pid = host.member("m")["pid"]
    monitor = monitor_of(pid)
    os.mkfifo(host.root / "run/members/m/stop")
    os.kill(monitor, signal.SIGTERM)
    host.run("stop", "-t", "0", "m")
    assert not lives(pid)
    wait_for(lambda: host.member("m")["status"] == "stopped", 5, "no restart")


def test_two_pods_of_one_begin_of_a_name(host):
    """Setting the damaged note of pod `a` aside takes no cgroup of pod `a-b`."""
    for name in ("a", "a-b"):
        host.run("pod", "create", "--network", "none", name)
    (host.root / "run/pods/a/note").write_text("?")
    host.run("pod", "rm", "-f", "a")
    assert [pod["name"] for pod in host.json("pod", "ls")] == ["a-b"]
    host.run("pod", "rm", "-f", "a-b")


def test_data_that_can_not_be_removed(host, pod, busybox):
    """`rm` says so, and keeps the note until they are gone."""
    host.run("join", pod, "--name", "m", "--rootfs", busybox, "--", "sh", "-c", "echo x >/precious")
    precious = next(iter(host.root.glob("lib/upper/*/upper/precious")))
    sh("mount", "--bind", precious, precious)
    try:
        said = host.fails(125, "rm", "m")
        assert "can't remove what member 'm' wrote" in said and "'precious': Device or resource busy" in said
        assert host.member("m")["status"] == "stopped"
    finally:
        sh("umount", precious)
    host.run("rm", "m")
    assert not list(host.root.glob("lib/upper/*"))


def test_a_file_in_place_of_data(host, pod, busybox):
    """`rm` does not take it for data that somebody uses."""
    host.run("join", pod, "--name", "m", "--rootfs", busybox, "--", "true")
    (data,) = host.root.glob("lib/upper/*")
    data.rename(host.root / "away")
    data.touch()
    assert f"can't remove what member 'm' wrote: {data}: Not a directory" in host.fails(125, "rm", "m")
    data.unlink()
    (host.root / "away").rename(data)
    host.run("rm", "m")
    assert not list(host.root.glob("lib/upper/*"))


def test_a_link_in_the_place_of_data(host, pod, busybox, tmp_path):
    """It goes, and what it leads to stays."""
    host.run("join", pod, "--name", "m", "--rootfs", busybox, "--", "true")
    (data,) = host.root.glob("lib/upper/*")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").touch()
    os.rename(data, host.root / "aside")
    data.symlink_to(tmp_path / "precious")
    host.run("rm", "-f", "m")
    assert (tmp_path / "precious/file").exists() and not os.path.lexists(data)


HOLD = (
    "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
)


def test_data_whose_lock_is_released_last(host, pod, busybox):
    """Who dies, and who sweeps, releases one lock after the other: whoever sees that of the note free waits a moment for that of the data."""
    host.run("join", pod, "--name", "m", "--rootfs", busybox, "--", "true")
    (held,) = host.root.glob("lib/upper/*/held")
    words = [sys.executable, "-IS", "-c", HOLD, held]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        assert "may still run" in host.fails(125, "rm", "m")
        removal = host.background("rm", "m")
        time.sleep(0.3)
        holder.communicate()
        assert removal.wait(timeout=30) == 0
    assert host.json("ls", "-a") == [] and not list(host.root.glob("lib/upper/*"))


def test_directories_in_the_place_of_files(host, pod, busybox):
    """What an ended member and a dead pod left can be removed, whatever took the place of their files."""
    host.run("image", "load", CACHE.parent / "images/busybox")
    host.run("join", pod, "--name", "m", "--rootfs", busybox, "--", "true")
    os.kill(host.pod()["pid"], signal.SIGKILL)
    wait_for(lambda: [p["status"] for p in host.json("pod", "ls", "-a")] == ["stopped"], 5, "the end of the pod")
    for base in ("run/pods", "run/members", "lib/upper", "lib/images/records", "lib/images/blobs"):
        for path in (host.root / base).rglob("*"):
            if path.is_file() and path.name != "held":
                path.unlink()
                (path / "x").mkdir(parents=True)
    host.run("rm", "-f", "m"), host.run("pod", "rm", "-f", pod)
    assert "pod prune --all" in host.fails(125, "image", "prune", "-a")
    host.run("pod", "prune", "--all"), host.run("image", "prune", "-a")
    for base in (
        "run/pods",
        "run/members",
        "lib/upper",
        "lib/images/records",
        "lib/images/blobs/sha256",
        "lib/images/layers",
    ):
        assert list((host.root / base).iterdir()) == [], base


def test_a_pod_whose_note_and_holder_are_gone(host, alice, owned):
    """Its note is damaged and nsrun-hold was killed: its pause is listed, keeps the name, and ends by it."""
    pause = host.pod(owned)["pid"]
    holders = [
        pid
        for pid in filter(str.isdigit, os.listdir("/proc"))
        if comm(pid) == "nsrun-hold" and str(host.root) in links(pid)
    ]
    (host.root / "run/pods" / owned / "note").write_text("?")
    for pid in holders:
        os.kill(int(pid), signal.SIGKILL)
    assert len(holders) == 1
    wait_for(
        lambda: [(p["status"], p["pid"]) for p in host.json("pod", "ls", "-a")] == [("damaged", pause)],
        5,
        "it is listed",
    )
    host.run("pod", "prune", "--all")
    assert "taken" in host.fails(125, "pod", "create", "--network", "none", owned) and lives(pause)
    host.run("pod", "rm", "-f", owned)
    assert not lives(pause) and host.json("pod", "ls", "-a") == []


def comm(pid: str) -> str:
    try:
        return pathlib.Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return ""


def links(pid: str) -> str:
    try:
        return " ".join(os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return ""


def test_what_lives_keeps_its_name_from_the_next(host, pod, busybox):
    """A member's monitor was killed and its note is damaged: nobody gets its name, or its cgroup, while it lives."""
    host.start("a", busybox, "sleep", "1000")
    first = host.member("a")["pid"]
    os.kill(monitor_of(first), signal.SIGKILL)
    (host.root / "run/members/a/note").write_text("?")
    again = ("join", pod, "-d", "--name", "a", "--rootfs", busybox, "--", "sleep", "2000")
    assert "taken" in host.fails(125, *again) and lives(first)
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: not lives(first), 5, "its end")
    host.run(*again)
    second = host.member("a")["pid"]
    host.run("pod", "prune", "--all")
    assert lives(second) and host.member("a")["status"] == "running"


def test_names_that_somebody_holds(host, pod, busybox):
    """No exit status waits for the lock of names, and a sweep asks for it once, not for each of the dead."""
    import fcntl
    import time

    for name in ("p1", "p2", "p3"):
        host.run("pod", "create", "--network", "none", name)
    with open(host.root / "run/names.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name in ("p1", "p2", "p3"):
            os.kill(host.pod(name)["pid"], signal.SIGKILL)
        began = time.monotonic()
        done = host.run("ls")
        assert time.monotonic() - began < 8 and "names.lock" in done.stderr
        assert host.run("wait", "none", check=False).returncode == 125
    code = host.run("join", pod, "--rm", "--rootfs", busybox, "--", "sh", "-c", "exit 7", check=False).returncode
    assert code == 7
    wait_for(
        lambda: {p["status"] for p in host.json("pod", "ls", "-a") if p["name"] != pod} == {"stopped"}, 5, "buried"
    )


def test_a_pod_directory_that_can_not_be_read(host, pod, busybox):
    """One in a sweep's way costs no other pod anything."""
    (host.root / "run/pods/loop").symlink_to(host.root / "run/pods/loop")
    host.run("pod", "create", "--network", "none", "other")
    os.kill(host.pod("other")["pid"], signal.SIGKILL)
    wait_for(
        lambda: [p["status"] for p in host.json("pod", "ls", "-a") if p["name"] == "other"] == ["stopped"], 5, "its end"
    )
    host.run("join", pod, "--rm", "--rootfs", busybox, "--", "true")
    host.run("pod", "prune")
    if orphans.sees_every_process():  # elsewhere something that is out of view may have been there
        assert [p["name"] for p in host.json("pod", "ls", "-a")] == [pod]
    (host.root / "run/pods/loop").unlink(missing_ok=True)
