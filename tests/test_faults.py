# SPDX-License-Identifier: Apache-2.0
"""kill -9 at every step: what is left is gone after at most one later nsrun command."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest
from conftest import HERE, NSRUN, kill, need, sh, wait_for

from nsrun.errors import BadInput
from nsrun.schema import WORD
from nsrun.state import State, codec

KILLER = [sys.executable, str(HERE / "killer.py")]


def steps_of(what: str) -> int:
    return {"pod": 12, "owned": 18, "rootless": 12, "pasta": 13, "join": 12, "detached": 13, "owners": 15}[what]


def killed_after(host, what: str, step: int, rootfs: str = "") -> None:
    words = [*KILLER, what, str(step), rootfs]
    done = subprocess.run(
        host.words(*words), env=host.env, capture_output=True, text=True, timeout=30, check=False, cwd="/"
    )
    assert done.returncode == -9, done.stderr


def gone(host, before) -> None:
    """One later command, and the kernel knows nothing of it any more."""
    # nsrun-init sees the end of its channel up to 20 ms after the kill; until then it is alive, and its note is kept
    time.sleep(0.1)
    host.run("pod", "ls")
    after = host.snapshot()
    for _ in range(50):
        if after == before:
            break
        time.sleep(0.05)  # processes and namespaces that die need a moment
        after = host.snapshot()
    assert after == before


def test_the_number_of_steps(host, pod, busybox):
    """The parametrized tests below must reach every step."""
    for what in ("pod", "pasta", "join", "detached"):
        out = sh(*KILLER, what, 0, busybox, env=host.env).stdout
        assert int(out) == steps_of(what), what


def test_the_number_of_steps_of_an_owned_pod(host, alice, owned, box):
    assert int(sh(*KILLER, "owned", 0, env=host.env).stdout) == steps_of("owned")
    assert int(alice.sh(*KILLER, "detached", 0, box).stdout) == steps_of("owners")
    assert int(alice.sh(*KILLER, "pod", 0).stdout) == steps_of("rootless")


@pytest.mark.parametrize(
    ("what", "step"), [(what, step) for what in ("pod", "owned") for step in range(1, steps_of(what) + 1)]
)
def test_pod_create_killed(host, what, step):
    before = host.snapshot()
    killed_after(host, what, step)
    if step < steps_of(what):
        gone(host, before)
    else:  # all was done: the pod is there and works
        assert [p["name"] for p in host.json("pod", "ls")] == ["victim"]


def test_pod_create_killed_after_every_message_to_the_kernel(host):
    """A step of the plan may send several datagrams to netlink: what one of them made is known by the next command."""
    before = host.snapshot()
    for count in range(1, 60):
        killer = ["strace", "-qq", "-o", "/dev/null", "-e", "trace=sendto", "-e", f"inject=sendto:signal=KILL:when={count}"]  # fmt: skip
        words = [*killer, NSRUN, "pod", "create", "-p", "127.0.0.1:20100:80", "victim"]
        done = subprocess.run(words, env=host.env, capture_output=True, text=True, timeout=30, check=False, cwd="/")
        if not done.returncode:
            break
        assert done.returncode == -9, (count, done.stderr)
        if any(pod["status"] == "running" for pod in host.json("pod", "ls")):
            break  # pause was told to stay: the pod is whole
        gone(host, before)
    assert 8 < count < 59
    host.run("pod", "rm", "-f", "victim")
    gone(host, before)


@pytest.mark.parametrize("step", range(1, steps_of("rootless") + 1))
def test_a_rootless_create_killed(host, alice, step):
    """Also between the start of pasta, which ends with nobody, and that of nsrun-door, which ends it."""
    need(shutil.which("pasta"), "pasta is missing", "apt-get install passt")
    before = host.snapshot()
    killed_after(alice, "pod", step)
    if step < steps_of("rootless"):
        gone(alice, before)
    else:
        assert [p["name"] for p in alice.json("pod", "ls")] == ["victim"]


@pytest.mark.parametrize("step", range(1, steps_of("pasta") + 1))
def test_a_create_on_pasta_killed(host, step):
    """Root's, too: between the start of pasta and that of nsrun-hold nobody else ends it."""
    need(shutil.which("pasta"), "pasta is missing", "apt-get install passt")
    before = host.snapshot()
    killed_after(host, "pasta", step)
    if step < steps_of("pasta"):
        gone(host, before)
    else:
        assert [p["name"] for p in host.json("pod", "ls")] == ["victim"]


@pytest.mark.parametrize("step", range(1, steps_of("owners") - 1))
def test_an_owners_join_killed(host, alice, owned, box, step):
    """The door's monitor ends with nsrun-init; her own next command forgets the rest."""
    alice.run("pod", "ls")
    before = host.snapshot()
    killed_after(alice, "detached", step, box)
    gone(alice, before)


@pytest.mark.parametrize("what", ["join", "detached"])
@pytest.mark.parametrize("step", range(1, steps_of("detached") + 1))
def test_join_killed(host, pod, busybox, what, step):
    if step >= steps_of(what):
        return  # the last step of a foreground join is an exec; of a detached one, success
    host.run("pod", "ls")
    before = host.snapshot()
    killed_after(host, what, step, busybox)
    if step < steps_of(what) - 1:
        gone(host, before)
    else:  # the member had been started: it is there, without anybody who could tell its exit status
        status = host.member("victim")["status"]
        assert status in ("running", "lost", "stopped", "stopping")
        host.run("rm", "-f", "victim")
        gone(host, before)


def test_descriptors_do_not_leak(host, pod, busybox):
    """A library user's process: after pods, members and errors it has the descriptors that it had."""
    script = """
import os, sys, nsrun
def fds(): return sorted(os.listdir("/proc/self/fd"))
pod = nsrun.Pod("pause")
pod.run(["true"], rootfs=sys.argv[1])
before = fds()
for i in range(5):
    assert pod.run(["true"], rootfs=sys.argv[1]).exit_code == 0
    pod.join(["sleep", "100"], rootfs=sys.argv[1], name=f"m{i}").remove(force=True)
    try:
        pod.run(["nope"], rootfs=sys.argv[1])
    except nsrun.CommandError as error:
        assert error.exit_code == 127
    try:
        nsrun.Pod.create("other", network="none", sysctl=["net.nope=1"])
    except nsrun.StepError as error:
        assert error.errno == 2
    nsrun.Pod.create("other", network="none").kill()
assert fds() == before, (before, fds())
children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
nsrun.prune()
print("ok", len(children))
"""
    out = sh(sys.executable, "-c", script, busybox, env=host.env, timeout=60, cwd="/").stdout
    assert out.startswith("ok")


def test_a_member_holds_only_its_three_descriptors(host, pod, busybox):
    host.start("a", busybox, "sleep", "1000")
    assert sorted(os.listdir(f"/proc/{host.member('a')['pid']}/fd")) == ["0", "1", "2"]
    out = host.run("exec", "a", "ls", "/proc/self/fd").stdout.split()
    assert out[:3] == ["0", "1", "2"] and len(out) == 4  # the fourth is ls's own


def rewrite(path: pathlib.Path, **changes: object) -> None:
    """A note that says something else, with a checksum that fits."""
    note = json.loads(path.read_text())
    note.pop("crc")
    path.write_bytes(codec.encode({**note, **changes}))


def test_a_note_that_lies_is_not_believed(host, pod, busybox):
    """A number that is another process's by now: nothing of it is signalled (podman#25104)."""
    host.start("a", busybox, "sleep", "1000")
    innocent = subprocess.Popen(["sleep", "1000"])
    try:
        start = int(pathlib.Path(f"/proc/{innocent.pid}/stat").read_text().rpartition(")")[2].split()[19])
        process = State("/nowhere").identify(innocent.pid)
        assert process[1] == start
        for kind, name, key in (("pods", "pause", "pause"), ("members", "a", "process")):
            rewrite(host.root / "run" / kind / name / "note", **{key: process})
        assert host.pod()["pid"] != innocent.pid and host.member("a")["pid"] not in (0, innocent.pid)
        host.run("kill", "-s", "USR1", "a")
        host.run("stop", "-t", "0", "a")
        host.run("pod", "kill", "pause")
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


def test_after_a_reboot(host, pod, busybox):
    """podman#12262: what a reboot leaves are notes that nobody holds, and data; the pod is dead, and its data are kept."""
    host.start("a", busybox, "sh", "-c", "echo precious >/precious; sleep 1000")
    wait_for(lambda: list(host.root.glob("lib/upper/*/upper/precious")))
    kill(host.pod()["pid"])
    wait_for(lambda: not host.json("ls"))
    assert "dead" in host.fails(125, "join", "pause", "true")
    assert host.json("pod", "ls") == [] and [p["status"] for p in host.json("pod", "ls", "-a")] == ["stopped"]
    assert [m["name"] for m in host.json("ls", "-a")] == ["a"]
    assert [path.read_text() for path in host.root.glob("lib/upper/*/upper/precious")] == ["precious\n"]
    shutil.rmtree(host.root / "run")
    host.run("pod", "ls")
    assert [path.read_text() for path in host.root.glob("lib/upper/*/upper/precious")] == ["precious\n"]
    host.run("pod", "prune", "--all")


@pytest.mark.parametrize("who", ["root", "owned", "rootless"])
def test_what_ran_when_the_directory_of_all_notes_was_removed_is_found(host, alice, busybox, box, who):
    """Nothing has made that directory anew yet when somebody asks: an empty house is not one where nothing runs."""
    maker = alice if who == "rootless" else host
    maker.run("pod", "create", "--network", "none", "p", env={"SUDO_UID": str(alice.uid)} if who == "owned" else {})
    user = host if who == "root" else alice
    source = ("--rootfs", busybox) if who == "root" else ("--image", box)
    user.run("join", "p", "-d", "--name", "m", *source, "--", "sleep", "1000")
    pids = [maker.pod("p")["pid"], user.member("m")["pid"]]
    base = host.root if maker is host else host.root / f"users/{alice.uid}"
    shutil.rmtree(base / "run")
    if who == "owned":
        shutil.rmtree(host.root / "owned")
        shutil.rmtree(host.root / f"users/{alice.uid}/run")
    assert f"process {pids[0]} (pause)" in maker.run("doctor", check=False).stdout
    assert not (base / "run").exists()
    maker.run("pod", "prune")
    for pid in pids:
        wait_for(lambda pid=pid: not pathlib.Path(f"/proc/{pid}/stat").exists(), 10, f"the end of {pid}")
    host.run("pod", "prune", "--all")
    user.run("pod", "prune", "--all")


def test_what_no_note_can_hold():
    """Half a surrogate pair is refused before it is written; bytes that are not UTF-8, and any letter, are kept."""
    for text in ("\ud800", "\udfff", "a\udc7f", "\udd00\ud83d"):
        for note in ({"command": [text]}, {"labels": {text: "a"}}):
            with pytest.raises(BadInput, match=r"U\+D[0-9A-F]{3} is not a character of text"):
                codec.encode(note)
    note = {"command": ["\udcff\udc80", "é", "\U0001f600", "\\ud800"], "labels": {"\udcff": ""}}
    assert codec.decode(codec.encode(note), {"command": [WORD]}) == note


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"id": "x"}', "\x00" * 100])
def test_broken_notes_break_nothing(host, pod, busybox, content):
    for kind in ("pods", "members"):
        directory = host.root / "run" / kind / "broken"
        directory.mkdir()
        (directory / "held").touch()
        (directory / "note").write_text(content)
    for words in (("pod", "ls"), ("ls", "-a")):
        assert "damaged" in host.run(*words).stderr
    assert host.run("join", "pause", "--rootfs", busybox, "echo", "works").stdout == "works\n"
    host.run("pod", "prune")
    assert not any((host.root / "run" / kind / "broken").exists() for kind in ("pods", "members"))
    assert len(list((host.root / "run/aside").iterdir())) == 2
    assert host.run("pod", "ls").stderr == ""


@pytest.mark.parametrize("who", ["root", "owned", "rootless"])
def test_what_lives_under_a_damaged_note_can_be_ended(host, alice, busybox, box, who):
    """It is shown, it blocks nothing, and its name is enough to end it."""
    maker = alice if who == "rootless" else host
    env = {"SUDO_UID": str(alice.uid)} if who == "owned" else {}
    maker.run("pod", "create", "--network", "none", "p", env=env)
    user = host if who == "root" else alice
    source = ("--rootfs", busybox) if who == "root" else ("--image", box)
    user.run("join", "p", "-d", "--name", "m", *source, "--", "sleep", "1000")
    pid, member = maker.pod("p")["pid"], user.member("m")["pid"]
    base = host.root if who != "rootless" else host.root / f"users/{alice.uid}"
    for path in (
        base / "run/pods/p/note",
        (host.root if user is host else host.root / f"users/{alice.uid}") / "run/members/m/note",
    ):
        data = bytearray(path.read_bytes())
        data[20] ^= 1
        path.write_bytes(data)
    assert [p["status"] for p in maker.json("pod", "ls")] == ["damaged"]
    assert [m["status"] for m in user.json("ls")] == ["damaged"]
    assert "damaged" in user.fails(125, "rm", "m")
    if who == "owned":
        next(host.root.glob("owned/*/p.held")).unlink()  # its owner may: root knows its pause all the same
    assert [p["pid"] for p in maker.json("pod", "ls", "-a")] == [pid]
    user.run("rm", "-f", "m")
    wait_for(lambda: not os.path.exists(f"/proc/{member}"))
    maker.run("pod", "rm", "-f", "p")
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"))
    assert maker.json("pod", "ls", "-a") == [] and user.json("ls", "-a") == []


def test_a_killed_init_kills_no_nsrun(host, pod, busybox):
    """A write to who has just ended is an error with a message, not a SIGPIPE that ends nsrun half-way (python: -13)."""

    script = """
import os, sys
from nsrun.run import Run
from nsrun.cli import main
release = Run.release
def killed(self):
    os.kill(self.pid, 9)
    while open(f"/proc/{self.pid}/stat").read().rpartition(")")[2].split()[0] != "Z": pass
    release(self)
Run.release = killed
sys.exit(main(["join", "pause", "--name", "m", "--rootfs", sys.argv[1], "true"]))
"""
    done = sh(sys.executable, "-c", script, busybox, env=host.env, cwd="/", check=False)
    assert done.returncode == 125 and done.stderr.startswith("nsrun: "), (done.returncode, done.stderr)
    host.run("pod", "ls")
    assert host.json("ls", "-a") == []
