# SPDX-License-Identifier: Apache-2.0
"""nsrun/teach/looks.py: looks at many students, of whom some do what they can to hinder them."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest
from conftest import wait_for

from nsrun.teach import looks


def of_group(group: int) -> list[int]:
    """The living processes of a process group."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                state, _, its = file.read().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(its) == group and state not in "ZX":
            found.append(int(name))
    return found


def test_what_each_returns():
    with looks.Looks() as ours:
        told = ours.round(["a", "b"], lambda name: [name, os.getpid() == os.getpgid(0)])
        assert told == {"a": ["a", True], "b": ["b", True]} and not ours.going
        wrong = ours.round(["a", "b"], lambda name: name + 1 if name == "a" else name)
    assert wrong["b"] == "b" and isinstance(wrong["a"], RuntimeError) and "TypeError" in str(wrong["a"])


def test_those_who_are_slow_delay_nobody(monkeypatch):
    """Also if they are many, and come first; nobody looks at them twice at a time."""
    monkeypatch.setattr(looks, "QUICK", 0.3)
    bad = [f"bad{number}" for number in range(3 * looks.PLACES)]
    names = [*bad, "good", "better"]

    def look(name: str) -> str:
        if name.startswith("bad"):
            time.sleep(1000)
        return name

    with looks.Looks() as ours:
        told = ours.round(names, look, wait=False)  # nobody knows yet who is slow
        assert told == {"good": "good", "better": "better"}
        groups = {name: one.pid for name, one in ours.going.items()}
        assert groups.keys() == set(bad)
        ours.slow |= set(bad)
        for _ in range(3):
            begin = time.monotonic()
            assert ours.round(names, look, wait=False) == told
            assert time.monotonic() - begin < 1
            assert {name: one.pid for name, one in ours.going.items()} == groups
    assert not any(of_group(group) for group in groups.values())


def test_who_is_overdue_is_killed_with_all_helpers(monkeypatch):
    monkeypatch.setattr(looks, "PATIENCE", 3.0)
    monkeypatch.setattr(looks, "QUICK", 0.3)

    def look(name: str) -> str:
        subprocess.run(["sh", "-c", "trap '' TERM; sleep 1000 & sleep 1000"], check=False)
        return "never"

    with looks.Looks() as ours:
        begin = time.monotonic()
        assert ours.round(["a"], look, wait=False) == {} and time.monotonic() - begin < 2.5
        group = ours.going["a"].pid
        wait_for(lambda: len(of_group(group)) == 4, what="the helpers")
        told = ours.round(["a"], look)
        assert isinstance(told["a"], TimeoutError) and looks.HIDES in str(told["a"])
        assert time.monotonic() - begin < 20
        wait_for(lambda: not of_group(group), what="their end")
        assert ours.slow == {"a"}
        assert ours.round(["a"], lambda name: "quick") == {"a": "quick"} and not ours.slow


def test_what_can_not_be_killed_is_the_only_one(monkeypatch):
    """A process that the kernel does not let end: one that is in no way ours to end stands for it here."""
    with looks.Looks() as ours:
        other = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        try:
            ours.stuck["a"] = other.pid
            assert isinstance(ours.round(["a", "b"], lambda name: name)["a"], TimeoutError)
            other.send_signal(signal.SIGKILL)
            wait_for(lambda: not of_group(other.pid), what="its end")
            assert ours.round(["a"], lambda name: name) == {"a": "a"}, "a zombie is nothing that lives"
        finally:
            other.kill()
            other.wait()


def test_memory_of_a_look_is_limited():
    def look(name: str) -> int:
        return len(bytearray(4 << 30)) if name == "greedy" else 1

    with looks.Looks() as ours:
        told = ours.round(["greedy", "modest"], look)
    assert told["modest"] == 1 and "MemoryError" in str(told["greedy"])


def test_no_process_can_be_had(monkeypatch):
    def fork() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "fork", fork)
    with looks.Looks() as ours:
        told = ours.round(["a"], lambda name: name)
    assert "temporarily unavailable" in str(told["a"]) and len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("wait", [True, False])
def test_nobody_to_look_at(wait):
    with looks.Looks() as ours:
        assert ours.round([], lambda name: name, wait) == {}
