# SPDX-License-Identifier: Apache-2.0
"""What the front replays of `join`: the same member, the same notes, and nothing is left when it fails (docs/replay.md)."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from conftest import NSRUN, need, not_editable, sh, wait_for
from images import directory, docker_archive, entry, tar
from test_replay import MUST, NOTHING, SHOWN, both, calls_of, is_replayed, plans, told

from nsrun.state import codec

pytestmark = [pytest.mark.live, not_editable]


@pytest.fixture
def pod(host) -> str:
    """A pod that Python has made, and of which it has left no compiled plan."""
    return host.run("pod create --network none pause", env={"NSRUN_REPLAY": "0"}).stdout.strip()


@pytest.fixture
def root(host, rootfs):
    """A root of the test's own, which nobody has just changed."""
    for path in (rootfs / "etc/passwd", rootfs / "etc/group", rootfs):
        settle(path)
    return str(rootfs)


def settle(path: pathlib.Path) -> None:
    """Wait until the change of a file lies back so far that it can be told from another."""
    wait_for(lambda: os.stat(path).st_ctime < _now() - 1.1, 5, f"{path} is a second old")


def _now() -> float:
    import time

    return time.time()


def members(host) -> list[str]:
    return sorted(path.name for path in host.root.glob("run/members/*"))


def normal(text: str) -> str:
    """What differs from one member to the next: ids and the numbers of processes, descriptors and inodes."""
    return re.sub(r"\b\d+\b", "N", re.sub(r"\b[0-9a-f]{12}\b", "ID", text))


OPTIONS: dict[str, list[str]] = {
    "nothing": [],
    "a user": ["-u", "www-data"],
    "a directory": ["-w", "/tmp"],
    "a volume": ["-v", "{host}:/data:ro"],
    "a named volume": ["-v", "data:/data"],
    "a tmpfs": ["--tmpfs", "/scratch:size=1m"],
    "fewer powers": ["--cap-drop", "ALL", "--cap-add", "NET_RAW"],
    "a limit": ["--ulimit", "nofile=100:200", "--oom-score-adj", "500"],
    "a read-only root": ["--read-only"],
    "no overlay": ["--writable"],
    "removed at its end": ["--rm"],
    "another signal": ["--stop-signal", "INT"],
}


def asked(host, root: str, what: str) -> list[str]:
    return ["join", *(word.replace("{host}", str(host.root)) for word in OPTIONS[what]), "pause", "--rootfs", root]


@pytest.mark.parametrize("what", OPTIONS)
def test_the_member_is_the_same(host, pod, root, what):
    words = asked(host, root, what)
    host.run(*words, "true", env={"NSRUN_REPLAY": "0"})  # a named volume is there the second time
    python, front = both(host, *words, "sh", "-c", f"{SHOWN}; cat /proc/mounts; ls -l /; echo err >&2; exit 7")
    assert (front.returncode, front.stderr) == (python.returncode, python.stderr) and front.returncode == 7
    assert [normal(line) for line in told(front.stdout)] == [normal(line) for line in told(python.stdout)]
    assert len(told(front.stdout)) > 80


def test_the_notes_are_the_same(host, pod, root):
    words = ["join", "pause", "--rootfs", root, "--", "sh", "-c", 'exit 3 # "a\\b"\n\t\x01\x7f']
    both(host, *words)
    (_, python, front) = sorted(host.root.glob("run/members/*"), key=lambda path: (path / "started").stat().st_mtime_ns)
    for first, second in ((python, front), *((host.root / "lib/upper" / path.name[2:] for path in (python, front)),)):
        assert sorted(os.listdir(first)) == sorted(os.listdir(second))
        for path in filter(pathlib.Path.is_file, first.iterdir()):
            one, other = (found.read_text() for found in (path, second / path.name))
            assert path.stat().st_mode == (second / path.name).stat().st_mode, path
            volatile = r'"(crc|created|started)": "[^"]*"|\d{4}-\d\d-\d\dT\S+'
            assert normal(re.sub(volatile, "", one)) == normal(re.sub(volatile, "", other)), path
    note = codec.decode((front / "note").read_bytes(), codec.SHAPES["members"])
    assert note["command"] == words[5:] and note["held"] == (front / "held").stat().st_ino
    assert json.loads(host.run("inspect", front.name).stdout)[0]["exit_code"] == 3


def test_the_same_system_calls_are_made(host, pod, root, tmp_path):
    need(shutil.which("strace"), "strace is missing", "apt-get install strace")
    more = "mkdir,mkdirat,fsopen,fsconfig,fsmount,open_tree,mount_setattr,move_mount,pivot_root,mount"
    for words in (["join", "pause", "--rootfs", root, "true"], ["join", "-d", "pause", "--rootfs", root, "true"]):
        host.run(*words)
        python, front = (calls_of(host, tmp_path, f"{len(words)}{name}", words, more, NSRUN_REPLAY=name) for name in ("0", "must"))  # fmt: skip
        assert len(python) == len(front) == len(words) - 3
        for ours, its in zip(python[1:], front[1:], strict=True):
            assert its == ours
        for name in ("fsconfig", "fsmount", "setns", "execveat", "mkdir"):
            ours, its = ([line.replace("mkdirat(AT_FDCWD, ", "mkdir(") for line in found[0] if line.startswith(name)] for found in (python, front))  # fmt: skip
            assert its == ours and (its or name in ("setns", "execveat")), name


def test_detached(host, pod, root):
    words = ["join", "-d", "pause", "--rootfs", root, "sh", "-c", "read x; echo $x; exit 4"]
    first = host.run(*words).stdout
    second = host.run("join", "-d", "-i", "pause", "--rootfs", root, "sh", "-c", "read x; echo $x; exit 4").stdout
    for _ in range(2):
        name = host.run("join", "-d", "-i", *words[2:], env=MUST).stdout.strip()
        assert name.startswith("m-") and name not in first + second
        note = host.member(name)
        assert note["status"] == "running" and note["command"] == words[5:]
        done = host.run("attach", name, input="hello\n", check=False)
        assert (done.returncode, done.stdout) == (4, "hello\n")
        assert host.run("logs", name).stdout == "hello\n"
        assert host.run("wait", name).stdout == "4\n"
        host.run("rm", name)
    assert host.run(*words, env=MUST).stdout.startswith("m-")


@pytest.mark.parametrize("replay", ["0", "must"])
def test_who_started_it_does_not_keep_what_is_removed(host, pod, root, replay):
    """The member has ended, and its monitor removes it, before the nsrun that started it has exited."""
    need(shutil.which("strace"), "strace is missing", "apt-get install strace")
    words = [NSRUN, "join", "-d", "--rm", "pause", "--rootfs", root, "true"]
    before = host.snapshot()["notes"]
    host.run(*words[1:])
    wait_for(lambda: host.snapshot()["notes"] == before)
    slow = ["strace", "-qq", "-o", "/dev/null", "-e", "trace=exit_group", "-e", "inject=exit_group:delay_enter=1500000"]
    sh(*slow, *words, env={**host.env, "NSRUN_REPLAY": replay})
    wait_for(lambda: host.snapshot()["notes"] == before)


def test_detached_into_what_nobody_reads(host, pod, root):
    words = [NSRUN, "join", "-d", "pause", "--rootfs", root, "sleep", "1000"]
    host.run(*words[1:])
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(words, env={**host.env, **MUST}, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")
    with open("/dev/full", "w") as full:
        done = subprocess.run(words, env={**host.env, **MUST}, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 125 and b"can't be written: No space left" in done.stderr
    assert [member["status"] for member in host.json("ls")] == ["running"] * 3


def test_another_of_the_name_lives_on(host, pod, root):
    """The monitor is killed before it hears that all is done, the member is removed, and another gets its name and its cgroup."""
    words = ["join", "-d", "--rm", "--name", "x", "pause", "--rootfs", root]
    host.run(*words, "true")
    wait_for(lambda: members(host) == [])
    started = host.root / "run/members/x/started"  # made just before
    slow = injected("-P", str(started), "-e", "trace=openat", "-e", "inject=openat:delay_exit=3000000")
    begun = subprocess.Popen([*slow, NSRUN, *words, "sleep", "1000"], env={**host.env, **MUST}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    wait_for(started.exists, 10, "it is started")
    first = host.member("x")
    os.kill(int(pathlib.Path(f"/proc/{first['pid']}/stat").read_text().rpartition(")")[2].split()[1]), signal.SIGKILL)
    host.run("rm", "-f", "x", check=False)
    host.run("rm", "-f", "x", check=False)
    host.run("join", "-d", "--name", "x", "pause", "--rootfs", root, "sleep", "2000")
    _, errors = begun.communicate(timeout=60)
    assert begun.returncode == 125 and "killed again" in errors
    assert host.member("x")["status"] == "running" and host.member("x")["id"] != first["id"]


def test_a_name_is_free_again(host, pod, root):
    words = ["join", "pause", "--rm", "--name", "x", "--rootfs", root, "true"]
    host.run(*words)
    for _ in range(3):
        assert is_replayed(host, *words)
        assert members(host) == [] and list(host.root.glob("lib/upper/*")) == []
    host.start("x", root, "sleep", "1000")
    assert not is_replayed(host, *words)
    assert "is taken" in host.fails(125, *words)


def test_many_at_once(host, pod, root):
    words = ["join", "pause", "--rootfs", root, "sh", "-c"]
    host.run(*words, "true")
    running = [subprocess.Popen([NSRUN, *words, f"exit {n}"], env={**host.env, **MUST}) for n in range(12)]
    assert [process.wait(60) for process in running] == list(range(12))
    assert len(members(host)) == 13
    assert sorted(member["exit_code"] for member in host.json("ls", "-a")) == sorted([0, *range(12)])


def test_a_restart_policy(host, pod, root):
    words = ["join", "-d", "pause", "--restart", "on-failure:2", "--rootfs", root, "false"]
    host.run(*words)
    name = host.run(*words, env=MUST).stdout.strip()
    wait_for(
        lambda: host.member(name)["restarts"] == 2 and host.member(name)["status"] == "stopped", 20, "two restarts"
    )


# ---- what is stale ---------------------------------------------------------------------------------------------------


def another_pod(host, root: str) -> None:
    host.run("pod rm -f pause")
    host.run("pod create --network none pause", env={"NSRUN_REPLAY": "0"})


STALE: dict[str, Callable[[object, str], object]] = {
    "the accounts": lambda host, root: pathlib.Path(root, "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n"),
    "the groups are gone": lambda host, root: pathlib.Path(root, "etc/group").unlink(),
    "the mode of the root": lambda host, root: os.chmod(root, 0o711),
    "the owner of the root": lambda host, root: os.chown(root, 5, 5),
    "another root": lambda host, root: sh("sh", "-c", f"mv {root} {root}2 && cp -a {root}2 {root}"),
    "the note of the pod": lambda host, root: os.utime(host.root / "run/pods/pause/note"),  # type: ignore[attr-defined]
    "a pod of the same name": another_pod,
}


@pytest.mark.parametrize("what", STALE)
def test_what_was_read_has_changed(host, pod, root, what):
    words = ["join", "pause", "--rootfs", root, "sh", "-c", "stat -c '%a %u' /; id; echo $HOME"]
    host.run(*words)
    assert is_replayed(host, *words)
    STALE[what](host, root)
    assert not is_replayed(host, *words)
    assert host.run(*words).stdout == host.run(*words, env={"NSRUN_REPLAY": "0"}).stdout


def test_what_leaves_no_plan(host, pod, root, tmp_path):
    (tmp_path / "link").symlink_to(root)
    pathlib.Path(root, "srv/real").mkdir(parents=True)
    pathlib.Path(root, "srv/link").symlink_to("real")
    settle(pathlib.Path(root))
    for options in (
        ["--rootfs", tmp_path / "link"],
        ["--rootfs", os.path.relpath(root)],
        ["-v", f"{tmp_path}:/srv/link", "--rootfs", root],
        ["-v", "./tests:/x", "--rootfs", root],
        ["-v", ".:/x", "--rootfs", root],
        ["-v", "..:/x", "--rootfs", root],
        ["-v", ".git:/x", "--rootfs", root],
        ["-e", "A=geheim", "--rootfs", root],
        ["-v", "/anonymous", "--rootfs", root],
        ["-e", "HOME", "--rootfs", root],
        ["--pid", "nested", "--rootfs", root],
        ["--net", "own", "--rootfs", root],
        ["--name", "x", "--rootfs", root],
        ["--security-opt", "seccomp=unconfined", "--rootfs", root],
        [],
    ):
        host.run("join", "pause", *options, "true", check=False, env={"NSRUN_REPLAY": ""})
        assert plans(host) == [], options


def test_words_that_only_python_writes(host, pod, root):
    words = ["join", "pause", "--rootfs", root, "echo"]
    host.run(*words, "x")
    assert (
        is_replayed(host, *words, "a")
        and not is_replayed(host, *words, "ä")
        and not is_replayed(host, *words, "\udcff")
    )
    assert host.run(*words, "ä").stdout == "ä\n"


def test_plans_go_with_their_pod(host, pod, root):
    host.run("join", "pause", "--rootfs", root, "true")
    assert len(plans(host)) == 1
    host.run("pod rm -f pause")
    assert plans(host) == []


# ---- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("detach", [[], ["-d"]], ids=("foreground", "detached"))
def test_a_command_that_is_not_there(host, pod, root, detach):
    """Python tells it, and sweeps what the front had begun; the plan goes, too."""
    words = ["join", *detach, "pause", "--rootfs", root]
    before = host.snapshot()
    name = host.run(*words, "true").stdout.strip() or members(host)[0]
    host.run("wait", name)
    host.run("rm", name)
    for _ in range(3):
        done = host.run(*words, "nosuch", check=False)
        assert done.returncode == 127 and "not found in the member's PATH" in done.stderr and not done.stdout
        assert host.snapshot() == before and plans(host) == []
        host.run(*words, "true")
        assert len(plans(host)) == 1
        host.run("wait", *members(host))
        host.run("rm", *members(host))


def test_what_is_left_is_nobodys(host, pod, root):
    """Whatever the environment calls rubbish, what somebody holds or what was committed is none."""
    host.start("m", root, "sleep", "1000")
    ident = host.member("m")["id"]
    host.run("exec", "m", "touch", "/written")
    for left in (ident, "m", "../../run/members/m", "..", "", "/", "\udcff"):
        host.run("ls", env={"NSRUN_LEFT": left})
    assert host.run("exec", "m", "ls", "/written").stdout == "/written\n"
    host.run("stop", "-t", "0", "m")
    host.run("ls", env={"NSRUN_LEFT": ident})
    assert (host.root / f"lib/upper/{ident}/upper/written").exists() and host.member("m")["id"] == ident


def test_a_full_disk(host, pod, root):
    host.run("join", "pause", "--rootfs", root, "true")
    where = host.root / "run/tmp"
    sh("mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=3", "tmpfs", where)
    try:
        done = host.run("join", "pause", "--rootfs", root, "true", check=False)
        assert done.returncode == 125 and "nsrun: " in done.stderr
    finally:
        sh("umount", where)
    assert len(members(host)) == 1
    host.run("join", "pause", "--rootfs", root, "true")


@pytest.mark.parametrize("detach", [[], ["-d"]], ids=("foreground", "detached"))
def test_killed_after_system_calls(host, pod, root, detach):
    """No process is left, whenever the front is killed; the next commands find what it had begun, and remove it."""
    need(shutil.which("strace"), "strace is missing", "apt-get install strace")
    words = ["join", *detach, "pause", "--rootfs", root, "true"]
    before = host.snapshot()
    host.run(*words)
    ended = 0
    for count in range(2, 500, 5):
        killer = ["strace", "-qq", "-o", "/dev/null", "-e", "trace=all", "-e", f"inject=all:signal=KILL:when={count}"]
        done = subprocess.run([*killer, NSRUN, *words], env={**host.env, **MUST}, capture_output=True, timeout=30, check=False)  # fmt: skip
        if not done.returncode:
            break
        ended += 1
        assert done.returncode == -signal.SIGKILL, (count, done)
    assert 10 < ended < 99
    wait_for(lambda: not host.json("ls"), 10, "nothing runs")
    assert {member["status"] for member in host.json("ls", "-a")} <= {"stopped", "lost", "failed"}
    host.run("pod prune")
    for member in host.json("ls", "-a"):
        host.run("rm", member["name"])
    host.run("ls")
    wait_for(lambda: host.snapshot() == before, 10, "nothing of it is left")


def test_who_can_not_have_the_output(host, pod, root):
    """Signals are the command's, from its first moment on."""
    words = [
        "join",
        "pause",
        "--rootfs",
        root,
        "sh",
        "-c",
        "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done",
    ]
    host.run(*words[:4], "true")
    process = subprocess.Popen([NSRUN, *words], env={**host.env, **MUST}, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 9


def test_without_its_plan_it_says_so(host, pod, root):
    done = host.run("join", "pause", "--rootfs", root, "true", env=MUST, check=False)
    assert (done.returncode, done.stderr) == (125, NOTHING)


def injected(*rules: str) -> list[str]:
    need(shutil.which("strace"), "strace is missing", "apt-get install strace")
    return ["strace", "-qq", "-o", "/dev/null", *rules]


@pytest.mark.parametrize("detach", [[], ["-d"]], ids=("foreground", "detached"))
def test_what_fails_after_the_release(host, pod, root, detach):
    """All processes of the member are ended, as Python does, before its data may be taken for rubbish."""
    words = ["join", *detach, "--rm", "--name", "x", "pause", "--rootfs", root]
    host.run(*words, "true")
    wait_for(lambda: not members(host), 10, "its end")
    before = host.snapshot()
    mark = host.root / "run/members/x/started"
    slow = injected("-P", str(mark), "-e", "trace=openat", "-e", "inject=openat:error=ENOSPC:delay_enter=300000")
    done = sh(*slow, NSRUN, *words, "sh", "-c", "(trap '' HUP TERM; while :; do sleep 1; done) & sleep 100", env={**host.env, **MUST}, check=False)  # fmt: skip
    assert (done.returncode, done.stdout) == (125, "") and "started, and killed again" in done.stderr
    host.run("ls")
    wait_for(lambda: host.snapshot() == before, 10, "nothing of it is left")


def test_few_descriptors(host, pod, root):
    """The numbers of the plan must be allowed, before anything is begun; else Python finds others."""
    words = [
        NSRUN,
        "join",
        "pause",
        "-v",
        f"{host.root}:/v",
        "--rootfs",
        root,
        "sh",
        "-c",
        "echo started; echo finished",
    ]
    host.run(*words[1:])
    for most in range(30, 62, 2):
        done = sh("sh", "-c", f'ulimit -n {most}; exec "$@"', "-", *words, env=host.env, check=False)
        assert (done.returncode, done.stdout) == (0, "started\nfinished\n"), (most, done.stderr)


def test_a_name_that_another_has_by_now(host, pod, root):
    """Who fails late gives back only what is theirs."""
    words = ["join", "-d", "--rm", "--name", "x", "pause", "--rootfs", root]
    host.run(*words, "true")
    wait_for(lambda: not members(host), 10, "its end")
    slow = injected("-e", "trace=ppoll", "-e", "inject=ppoll:delay_exit=1500000")
    late = subprocess.Popen([*slow, NSRUN, *words, "nosuch"], env=host.env, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: members(host) == ["x"], 10, "its claim")
        while host.run(*words, "sleep", "1000", check=False).returncode:
            pass
    finally:
        assert late.wait(60) in (125, 127)
    assert host.member("x")["status"] == "running" and host.run("exec", "x", "echo", "lives").stdout == "lives\n"


@pytest.mark.parametrize("end", ["rm -f x", "stop -t 1 x"])
def test_ended_while_it_is_made(host, pod, root, end):
    """Whoever ends it means it: it is not begun once more."""
    words = ["join", "--rm", "--name", "x", "pause", "--rootfs", root, "sleep", "3"]
    host.run(*words[:-2], "true")
    note = host.root / "run/members/x/note"
    slow = injected("-P", str(note), "-e", "trace=renameat", "-e", "inject=renameat:delay_exit=1500000")
    begun = subprocess.Popen([*slow, NSRUN, *words], env=host.env, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: members(host) == ["x"] and '"process"' in note.read_text(), 10, "its note")
    host.run(end, check=False)
    _, errors = begun.communicate(timeout=30)
    assert begun.returncode in (137, 143), errors
    assert members(host) == []


def test_words_like_holes(host, pod, root):
    """A word of the user's stands for itself, whatever it is."""
    for name in ("\x01c", "hole-c"):
        program = pathlib.Path(root, "bin", name)
        program.write_text('#!/bin/sh\necho "$#"\n')
        program.chmod(0o755)
    settle(pathlib.Path(root))
    for name in ("\x01c", "hole-c"):
        words = ["join", "--entrypoint", name, "pause", "--rootfs", root]
        python, front = both(host, *words, "a", "\x01c", *["b"] * 3000)
        assert front.stdout == python.stdout == "3002\n"
        commands = [json.loads(host.run("inspect", member).stdout)[0]["command"] for member in members(host)]
        assert all(command == [name, "a", "\x01c", *["b"] * 3000] for command in commands)
        host.run("rm", *members(host))


# ---- images ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def image(host, root, tmp_path) -> str:
    """Two layers on the files of busybox, with everything that an image says of a process."""
    (tmp_path / "base.tar").write_bytes(
        subprocess.run(["tar", "-C", root, "-c", "."], capture_output=True, check=True).stdout
    )
    layers = [
        (tmp_path / "base.tar").read_bytes(),
        tar(directory("srv"), entry("srv/a", b"a"), entry("srv/b", b"b")),
        tar(entry("srv/.wh.a"), entry("srv/c", b"c")),
    ]
    process: dict[str, Any] = {
        "Entrypoint": ["/bin/sh", "-c"],
        "Cmd": ["echo of the image"],
        "Env": ["OWN=1"],
        "WorkingDir": "/srv",
        "User": "www-data",
    }
    path = tmp_path / "image.tar"
    path.write_bytes(docker_archive(*layers, name="t:1", **process))
    return host.run("image", "load", path).stdout.strip()


def test_a_member_of_an_image(host, pod, image):
    script = f"{SHOWN}; cat /proc/mounts; ls /srv; cat /srv/b /srv/c; exit 7"
    words = ["join", "pause", "--image", image]
    for line in ([*words, script], ["join", "--entrypoint", "/bin/busybox", *words[1:], "sh", "-c", script]):
        python, front = both(host, *line)
        assert front.returncode == python.returncode == 7
        assert [normal(line) for line in told(front.stdout)] == [normal(line) for line in told(python.stdout)]
        assert front.stdout.endswith("b\nc\nbc") and "OWN=1\n" in front.stdout
    assert {json.loads(host.run("inspect", name).stdout)[0]["image"] for name in members(host)} == {image}


def test_the_images_own_command(host, pod, image):
    """Nothing comes after the words, then; a command has a plan of its own."""
    words = ["join", "pause", "--image", image]
    assert host.run(*words).stdout == "of the image\n" == host.run(*words, env=MUST).stdout
    assert not is_replayed(host, *words, "echo x")
    assert host.run(*words, "echo x").stdout == "x\n" == host.run(*words, "echo x", env=MUST).stdout


def test_an_image_that_changes(host, pod, image, tmp_path):
    words = ["join", "pause", "--image", image, "cat b; echo $OWN"]
    host.run(*words)
    assert is_replayed(host, *words)
    more = tar(entry("srv/b", b"new"))
    (tmp_path / "other.tar").write_bytes(docker_archive((tmp_path / "base.tar").read_bytes(), more, name="t:1", Entrypoint=["/bin/sh", "-c"], WorkingDir="/srv"))  # fmt: skip
    host.run("image", "load", tmp_path / "other.tar")
    assert not is_replayed(host, *words)
    assert host.run(*words).stdout == "new\n" == host.run(*words, env=MUST).stdout
    for member in members(host):
        host.run("rm", member)
    host.run("image", "rm", image)
    assert not is_replayed(host, *words)
    assert "no image" in host.fails(125, *words)


def test_part_of_an_id(host, pod, image):
    """Which image that means depends on all that there are, so Python looks."""
    ident = host.json("image", "ls")[0]["id"].removeprefix("sha256:")
    host.run("join", "pause", "--image", ident[:12], "true")
    assert plans(host) == []
    host.run("join", "pause", "--image", ident, "true")
    assert is_replayed(host, "join", "pause", "--image", ident, "true")
