# SPDX-License-Identifier: Apache-2.0
"""What a command leaves to a process in the background (nsrun/cli/later.py, decision 50)."""

from __future__ import annotations

import fcntl
import os
import pathlib
import signal
import socket

import pytest
from conftest import NSRUN, in_background, kill, settled, sh, wait_for

from nsrun import library


def links() -> list[str]:
    """Those of nsrun."""
    names = (line.split()[0].partition("@")[0] for line in sh("ip", "-br", "link").stdout.splitlines())
    return sorted(name for name in names if name.startswith("nsr"))


@pytest.fixture
def held_up(host):
    """End a pod while the lock on the network is taken; return the process that waits for it."""
    host.run("pod", "create", "-p", "127.0.0.1:20930:80", "x")
    lock = os.open(host.root / "run/net.lock", os.O_RDWR | os.O_CLOEXEC)
    fcntl.flock(lock, fcntl.LOCK_EX)

    def end(*words: str) -> int:
        reading, writing = os.pipe()
        words = words or ("pod", "kill", "x")
        try:
            sh(NSRUN, *words, env=host.env, pass_fds=[writing], cwd=host.root)
        finally:
            os.close(writing)
        wait_for(lambda: links() == ["nsrun0"])
        (pid,) = in_background()
        assert os.read(reading, 1) == b"", "nobody has our pipe any more"
        os.close(reading)
        return pid

    yield end, lambda: fcntl.flock(lock, fcntl.LOCK_UN)
    os.close(lock)


@pytest.mark.parametrize("words", [["pod", "kill", "x"], ["pod", "stop", "-t", "0", "x"], ["pod", "rm", "-f", "x"], ["pod", "prune"]])  # fmt: skip
def test_who_waits_does_not_wait_for_links(host, held_up, words):
    """The command has returned, and everything that somebody could want is free."""
    end, release = held_up
    if words == ["pod", "prune"]:
        kill(host.pod("x")["pid"])
    pid = end(*words)
    with socket.create_server(("127.0.0.1", 20930)):
        pass
    assert host.run("pod", "ls", "-aq").stdout == ""
    assert os.getsid(pid) == pid and os.readlink(f"/proc/{pid}/cwd") == "/"
    names = {fd: os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    assert {names.pop(fd) for fd in ("0", "1", "2")} == {"/dev/null"}
    assert set(names.values()) <= {str(host.root / "run/net.lock")}
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # as a service manager sends them
        os.kill(pid, number)
    release()
    settled()
    assert links() == [] and "nsrun" not in sh("nft", "list", "tables").stdout


def test_it_is_killed(host, held_up):
    """The next command leaves to another one what it has not removed."""
    end, release = held_up
    kill(end())
    release()
    assert links() == ["nsrun0"]
    host.run("pod", "ls")
    settled()
    assert links() == [] and "nsrun" not in sh("nft", "list", "tables").stdout


def test_it_ends_by_itself(host, held_up):
    """Whatever it waits for: the kernel sends SIGALRM."""
    end, _ = held_up
    pid = end()
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    ignored = int(status.partition("SigIgn:")[2].split()[0], 16)
    assert not ignored & 1 << signal.SIGALRM - 1
    wait_for(lambda: not in_background(), 20)


def test_the_next_pod_has_the_bridge(host):
    """Again and again, with its own address and its own port."""
    for _ in range(8):
        host.run("pod", "create", "--ip", "10.88.0.7", "-p", "127.0.0.1:20930:80", "x")
        assert host.pod("x")["network"]["ip"] == "10.88.0.7" and "nsrun0" in links()
        host.run("pod", "kill", "x")
    settled()
    assert links() == []


def test_an_address_that_an_orphan_has_is_had_at_once(host, busybox):
    """What is left of the pod before is removed first: its veth stays as long as somebody is in its network namespace."""
    words = ["pod", "create", "--ip", "10.88.0.7", "web"]
    host.run(*words)
    host.run("join", "web", "-d", "--name", "m", "--pid", "own", "--rootfs", busybox, "sleep", "1000")
    pause = host.pod("web")["pid"]
    kill(pause)
    wait_for(lambda: not os.path.exists(f"/proc/{pause}"))
    host.run(*words)  # no other command, which would sweep, is between
    assert host.pod("web")["network"]["ip"] == "10.88.0.7"
    host.run("rm", "-f", "m", check=False)
    host.run("pod", "rm", "-f", "web")
    settled()
    assert links() == []


def test_a_program_is_not_forked(host, monkeypatch):
    """What a caller of the library has is its own: the pod is gone when the call returns."""
    monkeypatch.setenv("NSRUN_ROOT", str(host.root))
    library.Pod.create("x", publish=["127.0.0.1:20930:80"]).kill()
    assert links() == [] and not in_background()


def test_a_network_is_removed_after_its_pods(host):
    """Again and again, at once."""
    for _ in range(5):
        host.run("network", "create", "back")
        host.run("pod", "create", "--network", "back", "x")
        assert "used by pod x" in host.fails(125, "network", "rm", "back")
        host.run("pod", "kill", "x")
        host.run("network", "rm", "back")
        assert links() == []
