# SPDX-License-Identifier: Apache-2.0
"""nsrun events: what happens is told, in its order, as lines of JSON; and nobody waits for who listens."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time

import pytest
from conftest import wait_for

from nsrun.cli.events import ACTIONS, _Filter, changes
from nsrun.errors import UsageError
from nsrun.state import State


def member(status: str, **more) -> dict:
    started = None if status == "created" else "T1"
    base: dict = {"id": "m1", "name": "m", "pod": "p", "status": status, "pid": 7 if status == "running" else 0, "created": "T0", "started": started, "finished": None, "exit_code": None, "labels": {}, "oom_killed": False}  # fmt: skip
    return {**base, **more}


ENDED = {"finished": "T2", "exit_code": 3}


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        (None, member("created"), "create"),
        (None, member("running"), "create start"),
        (None, member("stopped", **ENDED), "create start die"),
        (member("created"), member("running"), "start"),
        (member("created"), member("stopped", **ENDED), "start die"),
        (member("running"), member("running"), ""),
        (member("running"), member("paused"), "pause"),
        (member("paused"), member("running"), "unpause"),
        (member("paused"), member("stopped", **ENDED), "die"),
        (member("running"), member("stopped", **ENDED), "die"),
        (member("running"), member("stopped", oom_killed=True, **ENDED), "oom die"),
        (member("running"), member("lost"), "die"),
        (member("running"), member("running", started="T5"), "die start"),
        (member("stopped", **ENDED), member("running", started="T5"), "start"),
        (member("stopped", **ENDED), member("paused", started="T5"), "start pause"),
        (member("running"), member("running", name="n"), "rename"),
        (member("running"), None, "die remove"),
        (member("stopped", **ENDED), None, "remove"),
        (member("created"), None, "remove"),
        (None, member("created", health="starting"), "create"),
        (member("created", health="starting"), member("running", health="starting"), "start health"),
        (None, member("created", started="T1"), "create"),  # its note is whole, and nobody keeps it yet
        (member("created", started="T1"), member("running"), "start"),
        (member("created", started="T1"), member("stopped", **ENDED), "start die"),
        (member("running", started=None), member("running"), "start"),  # a note from before, and the kernel's word
        (member("running", started=None), member("stopped", **ENDED), "start die"),
        (member("running", health="starting"), member("running", health="healthy"), "health"),
        (member("running", health="healthy"), member("running", health="starting", started="T5"), "die start health"),
    ],
)
def test_what_is_told_between_two_looks(before, now, told):
    key = ("member", "m1")
    events = list(changes({key: before} if before else {}, {key: now} if now else {}))
    assert " ".join(event["event"] for event in events) == told
    assert all(event["id"] == "m1" and event["time"] and event["event"] in ACTIONS for event in events)


@pytest.mark.parametrize("text", ["x", "nix=1", "type=x", "event=x", "=die"])
def test_filters_refused(text):
    with pytest.raises(UsageError):
        _Filter([text])


def test_filters():
    event = {"type": "member", "event": "die", "pod": "p", "name": "m", "id": "m1", "labels": {"a": "1"}}
    for texts in (["type=member"], ["event=die", "event=start"], ["pod=p", "member=m"], ["label=a"], ["member=m1"], []):
        assert _Filter(texts).takes(event), texts
    for texts in (["type=pod"], ["event=start"], ["pod=p", "member=x"], ["label=a=2"]):
        assert not _Filter(texts).takes(event), texts


class Listener:
    """nsrun events in the background, from the moment from which it tells."""

    def __init__(self, host, *words: str) -> None:
        self.process = host.background("events", "--all", *words, stdout=subprocess.PIPE)
        self.seen: list[dict] = []
        self.unread = b""

    def until(self, event: str, name: str) -> dict:
        """The next of these; what comes before it is kept in `seen`."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            line, whole, rest = self.unread.partition(b"\n")
            if not whole:
                assert select.select([self.process.stdout], [], [], 60)[0], (event, name, self.seen)
                piece = os.read(self.process.stdout.fileno(), 1 << 16)
                assert piece, (event, name, self.seen)
                self.unread += piece
                continue
            self.unread = rest
            self.seen.append(json.loads(line))
            if self.seen[-1]["event"] == event and self.seen[-1]["name"] == name:
                return self.seen[-1]
        raise AssertionError((event, name, self.seen))

    def close(self) -> None:
        self.process.kill()
        self.process.wait(timeout=30)
        self.process.stdout.close()


@pytest.fixture
def listen():
    made: list[Listener] = []

    def start(host, *words: str) -> Listener:
        made.append(Listener(host, *words))
        return made[-1]

    yield start
    for one in made:
        one.close()


@pytest.mark.live
def test_a_member_that_ends_between_two_looks_at_it(host, pod, busybox):
    """Its maker is there for a moment longer than its keeper, who has recorded how it ended: it is not a new one."""

    class Late(State):
        def note_and_life(self, kind, name):
            os.rename(aside, record)
            now, found = super().note_and_life(kind, name)
            found.maker = os.getpid()
            return now, found

    host.run("join", pod, "--name", "m", "--rootfs", busybox, "sh", "-c", "exit 3", check=False)
    state = Late(str(host.root))
    record = state.path("members", "m", "exit")
    aside = f"{record}.aside"
    os.rename(record, aside)
    assert state.member_status(state.member("m")) == ("stopped", 3)


@pytest.mark.live
def test_the_life_of_a_pod_and_its_member(host, busybox, listen):
    host.env["NSRUN_REPLAY"] = "0"  # "always" makes all twice: by Python, which is undone, and by the front
    host.run("pod", "create", "--network", "none", "first")
    events = listen(host)
    assert events.until("start", "first")["type"] == "pod"
    host.run("pod", "create", "--network", "none", "p")
    assert events.until("start", "p")["pid"] == host.pod("p")["pid"]
    host.run("join", "p", "-d", "--name", "m", "--label", "a=1", "--rootfs", busybox, "sleep", "1000")
    started = events.until("start", "m")
    assert started["pid"] == host.member("m")["pid"] and started["pod"] == "p" and started["labels"] == {"a": "1"}
    host.run("pause", "m")
    events.until("pause", "m")
    host.run("unpause", "m")
    events.until("unpause", "m")
    host.run("rename", "m", "n")
    assert events.until("rename", "n")["old_name"] == "m"
    host.run("kill", "n")
    assert events.until("die", "n")["exit_code"] == 137
    host.run("start", "n")
    events.until("start", "n")
    os.kill(host.member("n")["pid"], signal.SIGTERM)
    assert events.until("die", "n")["exit_code"] == 143
    host.run("rm", "n")
    events.until("remove", "n")
    host.run("pod", "kill", "p")
    events.until("remove", "p")
    assert [e["event"] for e in events.seen if e["type"] == "pod" and e["name"] == "p"] == [
        "create",
        "start",
        "die",
        "remove",
    ]
    assert {e["id"] for e in events.seen if e["type"] == "member"} == {started["id"]}


@pytest.mark.live
def test_what_only_the_kernel_tells(host, pod, busybox, listen):
    """A pause, and a monitor with its member, are killed: nobody writes that down."""
    host.start("m", busybox, "sleep", "1000")
    events = listen(host)
    events.until("start", "m")
    monitor = next(int(line.split()[0]) for line in subprocess.run(["pgrep", "-f", "-a", "nsrun-monitor"], capture_output=True, text=True, timeout=30).stdout.splitlines() if _keeps(int(line.split()[0]), host))  # fmt: skip
    os.kill(monitor, signal.SIGKILL)
    os.kill(host.member("m")["pid"], signal.SIGKILL)
    assert "exit_code" not in events.until("die", "m")
    os.kill(host.pod()["pid"], signal.SIGKILL)
    events.until("die", pod)


def _keeps(pid: int, host) -> bool:
    """Whether a monitor has a file of this test's state open."""
    try:
        return any(
            os.readlink(f"/proc/{pid}/fd/{fd}").startswith(str(host.root)) for fd in os.listdir(f"/proc/{pid}/fd")
        )
    except OSError:
        return False


@pytest.mark.live
def test_filters_and_the_owner(host, alice, owned, box, listen):
    events = listen(alice, "-f", "event=die", "-f", "type=member")
    alice.run("join", owned, "--name", "m", "--image", box, "--", "true")
    assert events.until("die", "m")["exit_code"] == 0 and len(events.seen) == 1
    assert "is one of" in alice.fails(2, "events", "-f", "x=1")


@pytest.mark.live
def test_a_reader_that_goes_ends_it_and_one_that_sleeps_keeps_nobody(host, pod, busybox, listen):
    events = listen(host)
    events.until("start", pod)
    events.process.stdout.close()
    assert events.process.wait(timeout=60) == 141
    events.process.stdout = open(os.devnull)
    slow = listen(host)  # nothing is read of it
    for number in range(3):
        host.start(f"m{number}", busybox, "true")
    wait_for(lambda: host.json("ls") == [])
    host.run("rm", "m0", "m1", "m2")
    assert slow.process.poll() is None
