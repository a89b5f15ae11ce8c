# SPDX-License-Identifier: Apache-2.0
"""nsrun-door and who speaks with it: a hostile peer, and a hostile door.  doorpeer.py is both, as the pod's owner."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import subprocess
import sys
import time

import pytest
from conftest import HERE, kill, wait_for
from test_fuzz import SECONDS

PEER = [sys.executable, str(HERE / "doorpeer.py")]


def socket_of(host, alice) -> str:
    return str(host.root / f"owned/{alice.uid}/pause.door")


def door_of(host) -> int:
    """The pid of the door of the pod "pause": it holds a pidfd of pause."""
    line = f"Pid:\t{host.pod()['pid']}\n"
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # another test's, which has just ended
            if pathlib.Path(f"/proc/{pid}/comm").read_bytes() == b"nsrun-door\n":
                if any(line in fd.read_text() for fd in pathlib.Path(f"/proc/{pid}/fdinfo").iterdir()):
                    return int(pid)
    raise AssertionError("the pod has no door")


def children(pid: int) -> list[str]:
    return pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def serves(alice, box: str) -> bool:
    """An honest join, in fair time."""
    began = time.monotonic()
    done = alice.run("join", "pause", "--rm", "--image", box, "--", "echo", "fine")
    return done.stdout == "fine\n" and time.monotonic() - began < 8


def ask(host, alice, box: str, case: str, seconds: float = 0) -> list[str]:
    """What door says to doorpeer.py; then it is the same door, idle, and serves the next honest join."""
    door = door_of(host)
    alice.env["DOORPEER_SECONDS"] = str(seconds)
    done = alice.sh(*PEER, "ask", socket_of(host, alice), case, host.pod()["pid"], timeout=60 + seconds)
    print(done.stderr)  # a seed
    out = done.stdout.splitlines()
    wait_for(lambda: children(door) == [], 12, "door's children end")
    assert door_of(host) == door and len(os.listdir(f"/proc/{door}/fd")) < 8
    assert serves(alice, box)
    return out


@contextlib.contextmanager
def holding(host, alice, count: int):
    """So many connections that say nothing."""
    words = alice.words(*PEER, "hold", socket_of(host, alice), count)
    pipe = subprocess.PIPE
    with subprocess.Popen(words, env=alice.env, cwd="/", text=True, stdin=pipe, stdout=pipe) as process:
        try:
            assert process.stdout.readline() == f"{count}\n"
            yield
        finally:
            process.kill()


# ---- a hostile peer ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [100, 300])
def test_who_says_nothing_at_the_door(host, alice, owned, box, count):
    """They cost no process, and nobody waits for them."""
    door = door_of(host)
    with holding(host, alice, count):
        assert children(door) == []
        assert serves(alice, box)
        wait_for(lambda: len(os.listdir(f"/proc/{door}/fd")) < 140)
    wait_for(lambda: len(os.listdir(f"/proc/{door}/fd")) < 8 and children(door) == [])


def test_who_says_nothing_keeps_no_pod(host, alice):
    before = host.snapshot()
    host.run("pod", "create", "--network", "none", "pause", env={"SUDO_UID": str(alice.uid)})
    with holding(host, alice, 50):
        host.run("pod", "rm", "-f", "pause")
        wait_for(lambda: host.snapshot()["processes"] == before["processes"], 2)
        assert host.snapshot()["cgroups"] == before["cgroups"]


def test_a_request_that_is_no_sealed_memfd(host, alice, owned, box):
    """A pipe, a FIFO, a directory, a file, a memfd that is open to change or too large: refused, and never waited for."""
    out = ask(host, alice, box, "wrong_descriptors")
    assert len(out) == 17 and set(out) == {str(errno.EBADMSG)}, out


def test_a_request_that_changes_while_it_is_read(host, alice, owned, box):
    out = ask(host, alice, box, "changing")
    assert len(out) == 100 and set(out) == {str(errno.EBADMSG)}, set(out)


def test_who_closes_early_at_the_door(host, alice, owned, box):
    assert ask(host, alice, box, "early") == [str(errno.EBADMSG)]


def test_numbers_flags_and_pids_that_are_none(host, alice, owned, box):
    out = ask(host, alice, box, "strange_numbers")
    assert len(out) == 19 and all(word.isdigit() and int(word) > 0 for word in out), out
    assert set(out[:12]) == {str(errno.EBADMSG)} and set(out[12:15]) == {str(errno.EPERM)}, out


def test_a_launch_that_stalls(host, alice, owned, box):
    """Where a descriptor of hers makes it wait, it ends after some seconds."""
    began = time.monotonic()
    assert ask(host, alice, box, "lingering") == ["closed"]
    assert 5 < time.monotonic() - began < 20


def test_requests_that_were_right_once(host, alice, owned, box):
    """Fuzzing (NSRUN_FUZZ=SECONDS): every one is launched, or refused; the door lives on, and nothing runs on."""
    out = ask(host, alice, box, "mutated", SECONDS)
    words = {word.partition(" ")[0] for word in out}
    assert "started" in words and str(errno.EBADMSG) in words and "silent" not in words, words
    assert all(word in ("started", "closed") or int(word) > 0 for word in words), words


def test_doors_own_descriptors_are_not_for_who_asks(host, alice, owned, box):
    """Its socket, the pidfd of pause, whatever it will hold: a program that it starts can't be told to keep them."""
    started, *links = ask(host, alice, box, "borrow")
    assert started == "started"
    assert {link.partition("/")[0] for link in links if not link.startswith("/")} == {"pipe"}, links
    assert all(link.startswith(("/proc", "/dev/null", "pipe", "/bin", "/usr/bin")) for link in links), links


# ---- a hostile door ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def door_that(host, alice, case: str):
    """She is the door of the pod: her own directory is looked into first."""
    path = host.root / f"users/{alice.uid}/run/pods/pause/door"
    alice.sh("mkdir", "-p", path.parent)
    words = alice.words(*PEER, "answer", path, case)
    with subprocess.Popen(words, env=alice.env, cwd="/", text=True, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == "listening\n"
            yield process
        finally:
            process.kill()
            path.unlink()
            path.parent.rmdir()


LIES = {
    "closes at once": "without an answer",
    "closes": "without an answer",
    "too short": "EBADMSG",
    "too long": "EBADMSG",
    "no descriptors": "EBADMSG",
    "one descriptor": "EBADMSG",
    "three descriptors": "EBADMSG",
    "many descriptors": "EBADMSG",
    "no pidfds": "not a pidfd",
    "an errno of 31 bits": "EBADMSG",
    "an errno beyond all": "EBADMSG",
    "an errno that is none": "EBADMSG",
    "an errno and descriptors": "EPERM",
    "a process of hers": "outside of the pod",
    "pid 1": "not ours",
    "what has ended": "ended before it was ready",
}


@pytest.mark.parametrize("case", LIES)
def test_a_door_that_lies(host, alice, owned, box, case):
    """A message, nothing left behind, and nobody is signalled in the member's place: hers not, root's not."""
    innocent = subprocess.Popen(alice.words("sleep", "1000"))
    try:
        with door_that(host, alice, case) as door:
            text = alice.fails(125, "join", owned, "--name", "m", "--image", box, "true", timeout=30)
            assert LIES[case] in text, text
            assert door.poll() is None and innocent.poll() is None
            assert alice.json("ls", "-a") == []
    finally:
        innocent.kill()
        innocent.wait()


def test_a_door_that_stops_answering(host, alice, owned, box):
    """Also for root, who becomes the owner to execute something in a member of hers."""
    alice.run("join", owned, "-d", "--name", "m", "--image", box, "--", "sleep", "1000")
    with door_that(host, alice, "never answers"):
        began = time.monotonic()
        assert "gave no answer in" in alice.fails(125, "join", owned, "--image", box, "true", timeout=40)
        assert time.monotonic() - began < 25
    with door_that(host, alice, "pid 1"):
        assert "not ours" in host.fails(125, "exec", "m", "true", timeout=40)
    door = door_of(host)
    kill(door, 19)  # SIGSTOP
    try:
        # in the foreground, our standard error would be among the descriptors that wait at the door
        assert "gave no answer in" in alice.fails(125, "join", owned, "-d", "--image", box, "true", timeout=40)
    finally:
        kill(door, 18)
    assert alice.run("exec", "m", "echo", "fine").stdout == "fine\n"
    assert [m["name"] for m in alice.json("ls", "-a")] == ["m"]
