# SPDX-License-Identifier: Apache-2.0
"""nsrun events: what happens is told, in its order, as lines of JSON; and nobody waits for who listens."""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import select
import signal
import subprocess
import time

import pytest
from conftest import NSRUN, kill, wait_for

from nsrun.cli.events import ACTIONS, _Filter, _look_and_follow, changes, look
from nsrun.errors import UsageError
from nsrun.state import State
from nsrun.teach.events import Events

PR_SET_CHILD_SUBREAPER = 36


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


AGAIN = member("stopped", **ENDED)
WAITS = member("restarting", **ENDED)


@pytest.mark.parametrize(
    ("looks", "told"),
    [
        # it is started once more: its record is taken away, and its note is still that of the life before
        ([member("running"), AGAIN, member("running"), member("running", started="T5")], "die=3 start"),
        ([member("running"), AGAIN, member("created", started="T1"), member("running", started="T5")], "die=3 start"),
        ([member("running"), member("created", started="T1"), member("running", started="T5")], "die start"),
        ([member("running"), member("created", started="T1"), member("running"), AGAIN], "die=3"),
        ([member("running"), member("created", started="T5"), member("running", started="T5")], "die start"),
        # it can't be started: the record is restored
        ([member("running"), AGAIN, member("created", started="T1"), AGAIN], "die=3"),
        ([member("running"), AGAIN, member("running"), AGAIN, None], "die=3 remove"),
        ([member("running"), member("created", started="T1"), None], "die remove"),
        # its keeper is about to record how it ended, or to start it again
        ([member("running"), member("restarting"), WAITS, member("running", started="T5")], "die=3 start"),
        ([member("running"), member("restarting"), member("running", started="T5")], "die start"),
        ([member("restarting"), WAITS, member("running", started="T5")], "start"),
        ([member("paused"), member("restarting"), WAITS, member("paused", started="T5")], "die=3 start pause"),
        ([WAITS, member("restarting"), WAITS], ""),
    ],
)
def test_what_is_told_of_a_member_that_is_started_once_more(looks, told):
    """Each life begins once and ends once, and its exit status is waited for while somebody is to record it."""
    seen = [{("member", "m1"): dict(look)} if look else {} for look in looks]
    events = [event for before, now in itertools.pairwise(seen) for event in changes(before, now)]
    assert " ".join(e["event"] + (f"={e['exit_code']}" if "exit_code" in e else "") for e in events) == told


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
@pytest.mark.parametrize("turn", range(1, 5))
def test_a_member_that_is_renamed_while_it_is_looked_at(host, pod, busybox, turn):
    """Between the list of names, of which there are several, and its turn: it is not gone."""

    class Renaming(State):
        left = 0

        def names(self, kind):
            found = super().names(kind)
            if kind == "members" and self.left:
                self.left -= 1
                if not self.left:
                    host.run("rename", "m", "n")
            return found

    host.start("m", busybox, "sleep", "1000")
    state = Renaming(str(host.root))
    before = look(state, {})
    state.left = turn
    told = [event["event"] for event in changes(before, look(state, before))]
    assert told == (["rename"] if not state.left and host.member("n") else [])
    host.run("rm", "-f", "m" if state.left else "n")


@pytest.mark.live
def test_a_note_that_cannot_be_read_is_not_the_end(host, pod, busybox):
    host.start("m", busybox, "sleep", "1000")
    state = State(str(host.root))
    before, notes = look(state, {}), [state.path("pods", pod, "note"), state.path("members", "m", "note")]
    for note in notes:
        os.rename(note, f"{note}.aside")
        with open(note, "w") as file:
            file.write("{")
    damaged = look(state, before)
    assert damaged.keys() == before.keys() and not list(changes(before, damaged))
    for note in notes:
        os.rename(f"{note}.aside", note)
    assert not list(changes(damaged, look(state, damaged)))


@pytest.mark.live
def test_a_pause_that_ends_before_it_can_be_followed(host, monkeypatch):
    """Its parent has not reaped it yet, and nothing else will tell of its end."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    assert not prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        host.run("pod", "create", "--network", "none", "p")
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0)
    pause = host.pod("p")["pid"]

    def look_late(*arguments):
        found = look(*arguments)
        kill(pause)
        assert os.waitid(os.P_PID, pause, os.WEXITED | os.WNOWAIT)
        return found

    monkeypatch.setattr("nsrun.cli.events.look", look_late)
    with Events() as events:
        (row,) = _look_and_follow(State(str(host.root)), events, {}).values()
        assert row["status"] == "stopped" or "process" in events.wait(0)
    os.waitpid(pause, 0)
    host.run("pod", "rm", "p")


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


@pytest.mark.live
@pytest.mark.parametrize(("limit", "call"), [("instances", "inotify_init1"), ("watches", "inotify_add_watch")])
def test_where_the_kernel_does_not_tell_it_is_looked_for(host, tmp_path, limit, call):
    """In a user namespace, which has limits of its own: user.max_inotify_… of namespaces(7)."""
    script = f"echo 0 >/proc/sys/user/max_inotify_{limit} && exec {NSRUN} events"
    told, errors = tmp_path / "told", tmp_path / "errors"
    with told.open("w") as out, errors.open("w") as err:
        listener = subprocess.Popen(["unshare", "-Ur", "sh", "-c", script], env=host.env, stdout=out, stderr=err)
    try:
        wait_for(lambda: "hint" in errors.read_text())
        host.run("pod", "create", "--network", "none", "p")
        wait_for(lambda: told.read_text().count("\n") == 2, 15)
    finally:
        listener.kill()
        listener.wait()
    assert [json.loads(line)["event"] for line in told.read_text().splitlines()] == ["create", "start"]
    first, *rest = errors.read_text().splitlines()
    assert call in first and "once a second" in first and len(rest) == 1
