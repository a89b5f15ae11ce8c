# SPDX-License-Identifier: Apache-2.0
"""`nsrun explain --step` and `--compare`: what is walked through is real, in order, seen from outside, and removed."""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import subprocess

import pytest
from conftest import NSRUN, need, sh, wait_for

from nsrun import _protocol
from nsrun.teach import steps

ENTER = "\n" * 200


def walk(host, *words: object, keys: str = ENTER, code: int = 0, **kwargs) -> str:
    done = host.run("explain", "--step", *words, input=keys, check=False, **kwargs)
    assert done.returncode == code, done.stdout[-3000:] + done.stderr
    assert done.stdout.endswith("Everything is removed again.\n")
    nothing_left(host)
    return done.stdout


def nothing_left(host) -> None:
    assert host.json("pod", "ls", "-a") == [] and host.json("ls", "-a") == []


def parts(text: str) -> dict[int, str]:
    """What was said of each step that was stopped at, by its number."""
    found = {}
    for block in re.split(r"\n\n(?= *\d+(?:–\d+)?  )", text.partition("could not be seen at once")[0]):
        if number := re.match(r" *(\d+)", block):
            found[int(number[1])] = block
    return found


def later(text: str) -> dict[int, str]:
    """What was shown once there was a PID."""
    rest = text.partition("could not be seen at once:\n")[2].partition("\n\n")[0]
    return {int(number): shown for number, shown in re.findall(r"^ +(\d+)  (see: (?:.*\n(?! +\d+  ))*.*)", rest, re.M)}


def numbers(host, *words: object) -> dict[str, list[int]]:
    """The numbers of a plan's steps by their class."""
    found: dict[str, list[int]] = {}
    for step in json.loads(host.run("explain", "--format", "json", *words).stdout)["steps"]:
        found.setdefault(step["step"], []).append(step["number"])
    return found


@pytest.mark.live
def test_pod_create_step_by_step(host):
    words = ("pod", "create", "--network", "none", "web")
    text, number = walk(host, *words), numbers(host, *words)
    said = parts(text)
    assert [*said] == sorted(said) and len(said) > 15
    assert "+ step-" in said[1] and "created" in said[1], "the name is taken by the first step"
    (launch,), (user,), (pivot,) = number["Launch"], number["SetUser"], number["Pivot"]
    assert re.search(r"before: there is no PID yet\n.*\n.*after:  \+ .*\n(.*\n)*.* net -> net:\[\d+\]", said[launch])
    assert re.search(r"- CapBnd: +000.*\n(.*\n)*.*\+ Uid: +65535", said[user])
    assert re.search(r"before: \d\d+ /proc/\d+/mountinfo\n", said[pivot]) and "after:  + 4 /proc/" in said[pivot]
    shm = number["Mount"][1]
    assert "as before, until the new root" in said[shm] and " /dev/shm rw" in later(text)[shm]
    assert "memfd:nsrun-pause (deleted)" in later(text)[number["LoadProgram"][0]]
    assert len(re.findall(r"\[Enter\] take step", text)) == len(said) - 1, "one question for each but the exec"
    assert "nsrun pod create --network=none step-" in text
    (lo,) = number["ConfigurePod"]
    assert re.search(r"before: lo +DOWN.*\n(.*\n)*.*nsenter --net=/proc/\d+/fd/\d+ ip.*\n.*after:  - lo +DOWN.*\n.*\+ lo +UNKNOWN +127.0.0.1/8", said[lo])  # fmt: skip


@pytest.mark.live
def test_the_steps_are_taken_one_by_one(host):
    """While the person reads, the step that was asked about is not done: it is seen from outside."""
    walker = host.background("explain --step pod create --network none --hostname stepped", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
    said = ""

    def until(pattern: str) -> str:
        nonlocal said
        while not re.search(pattern, said):
            piece = os.read(walker.stdout.fileno(), 4096).decode()
            assert piece, said
            said += piece
        found, said = said, ""
        return found

    def enter() -> None:
        walker.stdin.write("\n")
        walker.stdin.flush()

    try:
        text = until(r"take step 1 ")
        assert host.json("pod", "ls", "-a") == []
        while not re.search(r"sethostname|Hostname", text):
            enter()
            text = until(r"take step \d+ .*: ")
        (pid,) = (one for one in descendants(walker.pid) if comm(one) == "nsrun-init")
        name = ("nsenter", "-t", pid, "-u", "hostname")
        assert sh(*name).stdout.strip() != "stepped"
        assert comm(pid) == "nsrun-init"
        enter()
        until(r"take step \d+ .*: ")
        assert sh(*name).stdout.strip() == "stepped", "this one is done, and not the rest"
        assert comm(pid) == "nsrun-init"
        assert [pod["status"] for pod in host.json("pod", "ls", "-a")] == ["running"], "nsrun-init has the lock"
    finally:
        walker.stdin.close()  # the end of the input
        rest = walker.stdout.read()
        assert walker.wait(timeout=30) == 0
        walker.stdout.close()
    assert "the steps before it are undone" in rest and "Everything is removed again" in rest
    assert not os.path.exists(f"/proc/{pid}")
    nothing_left(host)


def descendants(pid: int) -> list[int]:
    children = [int(child) for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [below for child in children for below in descendants(child)]


def comm(pid: int) -> str:
    return pathlib.Path(f"/proc/{pid}/comm").read_text().strip()


@pytest.mark.live
def test_join_in_the_foreground(host, busybox):
    """The member's own output comes at the end, and its status is the command's."""
    text = walk(host, "join", "web", "--rootfs", busybox, "-e", "WORD=a b", "--", "sh", "-c", "echo $WORD; exit 7", code=7)  # fmt: skip
    assert "\na b\n" in text and f"--rootfs={busybox} --name=step-" in text and " '--env=WORD=a b' step-" in text
    said = parts(text)
    assert any("+ Seccomp:" in block for block in said.values())
    assert any("+ CapEff: 00000000a80425fb" in block for block in said.values())
    assert "overlay" in text.partition("could not be seen at once")[2]
    for folded in ("12 paths are hidden", "5 paths become read-only"):
        assert folded in text


@pytest.mark.live
def test_join_in_the_background(host, busybox):
    text = walk(host, *"join web -d --name db --rootfs".split(), busybox, "--", "sleep", "1000")
    assert re.search(r"--name=step-\w{6}-db", text)
    assert "All steps are taken, and it runs" in text


@pytest.mark.live
def test_exec(host, pod, busybox):
    """In a member that has the root of the one that was named; that one is left alone."""
    host.start("web", busybox, "sleep", "1000")
    done = host.run("explain --step exec web sh -c", "echo in $(hostname); touch /seen", input=ENTER)
    assert re.search(r"\nin step-\w{6}\n", done.stdout) and "nsrun exec step-" in done.stdout
    assert [m["name"] for m in host.json("ls", "-a")] == ["web"] and [p["name"] for p in host.json("pod", "ls", "-a")] == ["pause"]  # fmt: skip
    assert host.run("exec web ls /seen", check=False).returncode != 0


@pytest.mark.live
@pytest.mark.parametrize("keys", ["", "\n\n\n", "\n" * 12, "12\n\nq\n", "q\n"])
def test_stopping_early_undoes_everything(host, busybox, keys):
    """q or the end of the input, before any step: in Python, and in nsrun-init."""
    for words in (("pod", "create", "--network", "none"), ("join", "x", "--rootfs", busybox, "true")):
        text = walk(host, *words, keys=keys)
        assert re.search(r"stopped before step \d+ of \d+; the steps before it are undone", text)
        asked = len(re.findall(r"\[Enter\]", text))
        assert asked == keys.count("\n") + (not keys.endswith("q\n"))
        if keys.startswith("12"):
            assert re.findall(r"\[Enter\] take step (\d+)", text)[1] == "12", "N goes on to step N"


@pytest.mark.live
@pytest.mark.parametrize("at", [1, 9, 99])
def test_ctrl_c_at_a_terminal(host, terminal, at):
    """At the first step, in nsrun-init, and when everything runs."""
    person = terminal("explain", "--step", "pod", "create", "--network", "none")
    person.expect(r"take step 1 .*: ")
    if at > 1:
        person.type(f"{at}\n")
        person.expect(r"removes everything: " if at == 99 else r"take step 9 .*: ")
    person.type("\x03")
    person.expect("Everything is removed again")
    assert person.process.wait(timeout=30) == 130
    nothing_left(host)


@pytest.mark.live
def test_a_signal_to_the_one_who_waits(host):
    """SIGTERM for the process that was called: it ends the one who walks, and removes everything."""
    walker = host.background("explain --step pod create --network none", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    wait_for(lambda: b"take step 1 " in os.read(walker.stdout.fileno(), 65536) or None)
    walker.send_signal(signal.SIGTERM)
    assert walker.wait(timeout=30) == 143
    walker.stdin.close(), walker.stdout.close()
    nothing_left(host)


@pytest.mark.live
@pytest.mark.parametrize("at", [1, 9, 99])
def test_the_one_who_walks_is_killed(host, at):
    """By SIGKILL, at the first step, in nsrun-init, and when everything runs."""
    walker = host.background("explain --step pod create --network none", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    walker.stdin.write(f"{at}\n".encode() if at > 1 else b"")
    walker.stdin.flush()
    said = b""
    while (b"removes everything: " if at == 99 else b"take step %d " % at) not in said:
        said += os.read(walker.stdout.fileno(), 65536)
    (walking,) = (one for one in descendants(walker.pid) if b"_walk" in pathlib.Path(f"/proc/{one}/cmdline").read_bytes())  # fmt: skip
    os.kill(walking, signal.SIGKILL)
    assert walker.wait(timeout=30) == 128 + signal.SIGKILL
    assert walker.stdout.read().endswith(b"Everything is removed again.\n")
    walker.stdin.close(), walker.stdout.close()
    nothing_left(host)


@pytest.mark.live
@pytest.mark.parametrize("options", [["--rm"], ["--pid", "own", "-d"], ["--restart", "always", "-d"], ["--name", "m"]])
def test_members_that_end_in_another_way(host, busybox, options):
    """Removed by itself, outliving its pod, started again and again: nothing of it is left."""
    command = ["sleep", "1000"] if "own" in options else ["true"]
    walk(host, "join", "x", *options, "--rootfs", busybox, "--", *command)


@pytest.mark.live
def test_a_member_with_a_terminal(host, busybox, terminal):
    """It gets the terminal at the end, and what is typed then is its own."""
    person = terminal("explain", "--step", "join", "x", "-it", "--rootfs", busybox, "--", "sh")
    person.expect(r"take step 1 .*: ")
    person.type("999\n")
    person.expect(r"# ")
    person.type("echo $((6 * 7)); tty; exit 5\n")
    person.expect(r"42\s+/dev/pts/\d+")
    person.expect("Everything is removed again")
    assert person.process.wait(timeout=30) == 5
    nothing_left(host)


@pytest.mark.live
def test_root_walks_into_a_users_member(host, alice, owned, box):
    """Through that user's door, as that user."""
    alice.run("join pause -d --name hers --image {} sleep 300", box)
    done = host.run("explain --step exec hers sh -c", "echo I am $(id -u)", input=ENTER)
    assert "\nI am 0\n" in done.stdout and "nsrun-door" in done.stdout
    assert [m["name"] for m in alice.json("ls", "-a")] == ["hers"]
    assert [p["name"] for p in alice.json("pod", "ls", "-a")] == ["pause"]


@pytest.mark.live
def test_nobody_reads(host):
    walker = host.background("explain --step pod create --network none", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    os.read(walker.stdout.fileno(), 100)
    walker.stdout.close()
    walker.stdin.write(ENTER.encode())
    walker.stdin.close()
    assert walker.wait(timeout=30) == 141
    assert walker.stderr.read() == b""
    walker.stderr.close()
    nothing_left(host)


@pytest.mark.live
def test_a_step_that_fails(host, busybox):
    """The error is that of the command, and everything is removed."""
    words = ("join", "x", "--rootfs", busybox, "--tmpfs", "/x:mode=700", "-u", "1000", "-w", "/x", "true")
    done = host.run("explain", "--step", *words, input=ENTER, check=False)
    assert done.returncode == 125 and "chdir" in done.stderr and "Permission denied" in done.stderr
    assert re.search(r"step (\d+) of (\d+) failed", done.stderr)
    number = numbers(host, *words)["ChangeDirectory"][0]
    assert f"step {number} of " in done.stderr, "the waits between the steps are not counted"
    nothing_left(host)
    done = host.run("explain --step join x --rootfs {} no-such-program", busybox, input=ENTER, check=False)
    assert done.returncode == 127 and "no-such-program" in done.stderr
    nothing_left(host)


@pytest.mark.live
def test_what_can_not_be_walked_through(host, pod):
    assert "pod create, join, exec" in host.fails(2, "explain --step pod ls")
    assert "pod create, join, exec" in host.fails(2, "explain --step stop x")
    assert "exclude each other" in host.fails(2, "explain --step --format json pod create")
    assert "no member" in host.fails(125, "explain --step exec no-such true")
    assert "unknown option" in host.fails(2, "explain --step join x --no-such true")
    assert [p["name"] for p in host.json("pod", "ls", "-a")] == ["pause"]


@pytest.mark.live
def test_an_ordinary_user_walks(host, alice, box):
    """Without root: other steps, through the door, and the same end."""
    text = walk(alice, "pod", "create", "--network", "none")
    assert "user namespace" in text and "could not be seen at once" in text
    text = walk(alice, "join", "p", "--image", box, "--", "sh", "-c", "echo I am $(id -u)")
    assert "\nI am 0\n" in text


@pytest.mark.live
def test_with_sudo(host, alice, owned, box):
    """Root walks through the making of a pod that belongs to whoever called sudo."""
    need(host.cgroups(), "no cgroup v2", "a machine with cgroup v2")
    env = {"SUDO_UID": str(alice.uid)}
    done = host.run("explain --step pod create --network none", input=ENTER, env=env)
    assert "OpenDoor" in done.stdout and done.stdout.endswith("Everything is removed again.\n")
    assert [p["name"] for p in host.json("pod", "ls", "-a")] == ["pause"]


# ---- what is executed to show a step ---------------------------------------------------------------------------


def test_the_wait_is_an_op():
    assert "wait" in _protocol.OPS and steps.Wait().args(None) == ()


@pytest.mark.parametrize(
    "check",
    [
        "touch /proc/PID/root/x   # Read-only file system",
        "grep ' /a' /proc/PID/mountinfo; rm -rf /",
        "grep ' /a'; touch /x ' /proc/PID/mountinfo",
        "cat /a | sh",
        "cat /a && reboot",
        "cat /a > /b",
        "cat $(reboot) ; reboot",
        "nft flush ruleset",
        "nsrun pod kill x",
        "nsrun rm -f x",
        "ip link delete eth0",
        "ip -force -batch x",
        "curl http://example.org/",
        "nsenter --target PID --net ip link delete eth0",
        "nsenter --target PID --mount sh -c reboot",
        "nsenter --target PID nsenter --target PID ls /",
        "nsenter --target PID --net",
        "nsenter --net=/x reboot",
        "nsenter --net=/x",
        "nsenter --net=/x nsenter ls /",
        "lsx /",
        "cat 'unfinished",
        "",
    ],
)
def test_only_what_reads_is_executed(check):
    """A path in a check may come from an image's config: it stays one argument, or the whole is not executed."""
    assert steps.commands(check) is None


def test_what_is_executed_is_split_as_a_shell_would():
    assert steps.commands("grep -E 'Uid|Gid' /proc/PID/status   # 2") == [["grep", "-E", "Uid|Gid", "/proc/PID/status"]]
    assert steps.commands("ps -p PID; ls -l /proc/PID/fd") == [["ps", "-p", "PID"], ["ls", "-l", "/proc/PID/fd"]]
    assert steps.commands("cat /a`reboot`$(x)") is None
    assert steps.commands("cat /a`reboot`") == [["cat", "/a`reboot`"]]
    assert steps.commands("nsenter --target PID --net --ipc cat /x") == [["nsenter", "--target", "PID", "--net", "--ipc", "cat", "/x"]]  # fmt: skip


@pytest.mark.live
def test_a_hostile_path_is_no_command(host, busybox, tmp_path):
    """A mount target with a shell's characters in it is looked for, and nothing else happens."""
    path = tmp_path / "made"
    for target in (f"/a';touch {path};'", f"/b;touch {path}", f"/c$(touch {path})"):
        host.run("explain", "--step", "join", "x", "--rootfs", busybox, "--tmpfs", target, "true", input=ENTER, check=False)  # fmt: skip
    assert not path.exists()
    nothing_left(host)


@pytest.mark.live
def test_every_check_that_reads_is_executed(host, busybox):
    """Of all steps of the three plans, only those are not that write: a new program in a check has to be listed."""
    left = set()
    for words in (("pod", "create", "-p", "8080:80", "x"), ("join", "x", "--read-only", "--memory", "64m", "--rootfs", busybox, "true")):  # fmt: skip
        for step in json.loads(host.run("explain", "--format", "json", *words).stdout)["steps"]:
            if step["check"] and steps.commands(step["check"]) is None:
                left.add(step["check"].split()[0])
    assert left == {"touch"}
    assert NSRUN
