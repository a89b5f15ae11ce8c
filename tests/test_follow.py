# SPDX-License-Identifier: Apache-2.0
"""What the kernel tells of its own accord, and a lab that is followed by it.

Nothing here is timed.  Where it matters that an event was the reason, what would look without one is put off for ever.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest
from conftest import NSRUN, kill, sh, wait_for
from mapped import MACHINE, station
from test_lab_commands import SOLUTION, do, marked, variables

from nsrun import kernel
from nsrun.errors import BadInput
from nsrun.state import State
from nsrun.teach import facts, follow, labs
from nsrun.teach.events import IS_WRITTEN, LINKS, ROUTES, Events, Pace
from nsrun.teach.lab import MARK
from nsrun.teach.map import watch as map_watch
from nsrun.teach.map.model import Map, Pod, Station

# ---- events ------------------------------------------------------------------------------------------------------


@pytest.fixture
def events(throwaway_host):
    with Events() as made:
        yield made


def quiet(events: Events) -> bool:
    return not events.wait(0.2)


def started(pid: int) -> int:
    process = facts.process(pid)
    assert process
    return process.start


def told(events: Events, kind: str) -> None:
    """It is told of, and only once."""
    assert wait_for(lambda: events.wait(1), what=kind) == {kind}
    wait_for(lambda: quiet(events), what="silence")


def test_a_process_that_ends(events):
    with subprocess.Popen(["sleep", "100"]) as process:
        events.processes([(process.pid, started(process.pid))])
        assert quiet(events)
        process.kill()
        assert events.wait(10) == {"process"}
    wait_for(lambda: quiet(events))
    events.processes([])
    assert not events.pidfds


def test_a_process_that_ended_before_it_could_be_followed(events):
    """Dead, or a zombie, or its pid is another's by now: whoever asks has seen it alive."""
    with subprocess.Popen(["sleep", "100"]) as process:
        start = started(process.pid)
        events.processes([(process.pid, start + 1)])
        told(events, "process")
        process.kill()
        wait_for(lambda: not kernel.process_start(process.pid))
        events.processes([(process.pid, start)])
        told(events, "process")
        process.wait()
        events.processes([(process.pid, start)])
        told(events, "process")
    assert not events.pidfds


def test_what_is_written_in_a_directory(events, tmp_path):
    events.directories([str(tmp_path), str(tmp_path / "missing")], IS_WRITTEN)
    (tmp_path / "file").write_text("x")
    told(events, "file")
    with (tmp_path / "file").open("a") as file:
        file.write("y")
        file.flush()
        told(events, "file")
    (tmp_path / "file").unlink()
    wait_for(lambda: quiet(events))
    assert quiet(events)


def test_a_program_is_started(events, tmp_path):
    """In namespaces of its own, too, as the file is the same."""
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    events.programs([str(tmp_path)])
    sh("unshare", "--mount", "--net", "--pid", "--fork", program)
    told(events, "program")


def test_a_mount_in_another_namespace(events, tmp_path):
    with subprocess.Popen(["unshare", "--mount", "sleep", "100"]) as process:
        wait_for(lambda: facts.namespaces_of(process.pid).get("mnt") != facts.namespaces_of(os.getpid())["mnt"])
        place = facts.namespaces_of(process.pid)["mnt"]
        wait_for(lambda: pathlib.Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n")
        events.mount_namespaces({place: process.pid})
        wait_for(lambda: quiet(events))
        sh("nsenter", "-t", process.pid, "-m", "mount", "-t", "tmpfs", "tmpfs", tmp_path)
        told(events, "mount")
        process.kill()
    events.mount_namespaces({})
    assert not events.mounts


def test_a_hostname_in_another_namespace(events):
    """The tests of other processes name hosts, too, so only that it is told of is sure here."""
    events.names()
    sh("unshare", "--uts", "hostname", "another")
    assert "name" in events.wait(10)


def test_the_network(events):
    events.network(LINKS | ROUTES, rules=True)
    # the veth of an earlier test may still be on its way out
    wait_for(lambda: quiet(events), what="silence")
    sh("ip", "link", "add", "dummy-one", "type", "veth", "peer", "name", "dummy-two")
    told(events, "network")
    sh("ip", "route", "add", "198.51.100.0/24", "dev", "up0")
    told(events, "network")
    sh("nft", "add", "table", "ip", "followed")
    told(events, "network")
    sh("nft", "delete", "table", "ip", "followed")
    sh("ip", "route", "del", "198.51.100.0/24")
    sh("ip", "link", "del", "dummy-one")


def test_an_ordinary_user_is_told(alice, tmp_path):
    """All but of the rules, which takes CAP_NET_ADMIN."""
    script = """
import os, subprocess
from nsrun.teach import facts
from nsrun.teach.events import LINKS, Events
with Events() as events:
    events.network(LINKS, rules=True)
    events.names()
    events.programs(["/usr/bin"])
    with subprocess.Popen(["unshare", "--user", "--map-root-user", "--mount", "sleep", "100"]) as child:
        while facts.namespaces_of(child.pid)["mnt"] == facts.namespaces_of(os.getpid())["mnt"]:
            pass
        events.mount_namespaces({1: child.pid})
        events.processes([(child.pid, facts.process(child.pid).start)])
        child.kill()
    print(*sorted(events.kinds.values()), *("process" in events.wait(10) for _ in "x"))
"""
    found = alice.sh(os.path.join(os.path.dirname(NSRUN), "python"), "-c", script).stdout.split()
    assert found == ["mount", "name", "network", "process", "program", "True"]


def test_the_map_follows_its_stations(host):
    with Events() as events:
        state = State(str(host.root))
        with subprocess.Popen(["sleep", "100"]) as process:
            sleep = station(process.pid, "process", "sleep", "sleep", [])
            sleep = Station(**{**vars(sleep), "start": started(process.pid)})
            there = Map(MACHINE, [Pod("x", "process", [], [sleep])])
            host.run("pod", "prune")  # which makes the directories
            (host.root / "run/pods").mkdir(parents=True, exist_ok=True)
            map_watch._follow(events, state, there)
            (host.root / "run/pods/.new").mkdir()
            told(events, "file")
            (host.root / "run/pods/.new").rmdir()
            told(events, "file")
            process.kill()
        told(events, "process")
        map_watch._follow(events, state, Map(MACHINE, []))
        assert not events.pidfds


class Meanwhile:
    """A poller after whose first answer something happens: before what was told could be read."""

    def __init__(self, events: Events, happens) -> None:
        self.poller, self.happens = events.poller, happens
        events.poller = self  # type: ignore[assignment]

    def __getattr__(self, name: str):
        return getattr(self.poller, name)

    def poll(self, milliseconds: float):
        found = self.poller.poll(milliseconds)
        happens, self.happens = self.happens, lambda: None
        happens()
        return found


@pytest.mark.parametrize("kind", ["process", "file", "program", "mount", "name", "network"])
def test_what_comes_while_another_event_is_read_is_not_lost(events, tmp_path, kind):
    """It is told the next time: nobody would look again for it."""
    files, programs = tmp_path / "files", tmp_path / "programs"
    files.mkdir()
    programs.mkdir()
    (programs / "program").touch()
    with subprocess.Popen(["unshare", "--mount", "sleep", "100"]) as process:
        wait_for(lambda: pathlib.Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n")
        events.processes([(process.pid, started(process.pid))])
        events.directories([str(files)], IS_WRITTEN)
        events.programs([str(programs)])
        events.mount_namespaces({facts.namespaces_of(process.pid)["mnt"]: process.pid})
        events.names()
        events.network(LINKS)
        happens = {
            "process": process.kill,
            "file": (files / "file").touch,
            "program": (programs / "program").read_bytes,
            "mount": lambda: sh("nsenter", "-t", process.pid, "-m", "mount", "-t", "tmpfs", "tmpfs", files),
            "name": lambda: sh("unshare", "--uts", "hostname", "another"),
            "network": lambda: sh("ip", "link", "add", "dummy-one", "type", "veth", "peer", "name", "dummy-two"),
        }
        wait_for(lambda: quiet(events), what="silence")
        first = "file" if kind != "file" else "program"
        Meanwhile(events, happens[kind])
        happens[first]()
        assert first in events.wait(10)
        wait_for(lambda: kind in events.wait(1), what=kind)
        process.kill()
    sh("ip", "link", "del", "dummy-one", check=False)


def test_what_is_written_without_end_does_not_keep_the_reader(events, tmp_path, monkeypatch):
    """Somebody opens the next file each time that something was read: all users may."""
    events.programs([str(tmp_path)])
    (tmp_path / "x").touch()
    read, turns = os.read, iter(range(1000))

    def flooded(fd: int, length: int) -> bytes:
        found = read(fd, length)
        (tmp_path / f"{next(turns)}").touch()
        return found

    monkeypatch.setattr("nsrun.teach.events.os.read", flooded)
    assert events.wait(10) == {"program"}
    monkeypatch.undo()
    wait_for(lambda: quiet(events), what="what was left is read")


def test_who_follows_many_can_still_look(throwaway_host):
    """Descriptors are left, however few the process may have."""
    script = """
import os, resource, subprocess
from nsrun import kernel
from nsrun.teach.events import Events
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
children = [subprocess.Popen(["sleep", "100"]) for _ in range(40)]
try:
    with Events() as events:
        events.processes([(child.pid, kernel.process_start(child.pid)) for child in children])
        events.mount_namespaces({child.pid: child.pid for child in children})
        os.close(os.open("/proc/self/stat", os.O_RDONLY))
        children[0].kill()
        print(events.wait(10))
finally:
    for child in children:
        child.kill()
        child.wait()
"""
    assert sh(os.path.join(os.path.dirname(NSRUN), "python"), "-c", script, cwd="/").stdout == "{'process'}\n"


@pytest.mark.parametrize("kind", ["file", "mount", "name", "network"])
def test_what_is_muted_wakes_nobody(events, tmp_path, kind):
    """Its descriptors are not asked at all: poll(2) would tell of POLLERR, as a hostname does."""
    events.directories([str(tmp_path)], IS_WRITTEN)
    events.mount_namespaces({facts.namespaces_of(os.getpid())["mnt"]: os.getpid()})
    events.names()
    events.network(LINKS)
    happens = {
        "file": (tmp_path / "file").touch,
        "mount": lambda: sh("mount", "-t", "tmpfs", "tmpfs", tmp_path),
        "name": lambda: sh("unshare", "--uts", "hostname", "another"),
        "network": lambda: sh("ip", "link", "add", "dummy-one", "type", "veth", "peer", "name", "dummy-two"),
    }
    events.mute({kind})
    happens[kind]()
    assert kind not in events.wait(0.5)
    events.mute(())
    if kind in ("mount", "name"):
        assert kind in events.wait(10)
    sh("umount", tmp_path, check=False)
    sh("ip", "link", "del", "dummy-one", check=False)


def test_pace():
    """The more a look costs, the longer it is until the next one, within bounds; what its commands cost counts."""
    pace = Pace(0.1, 0.5, 30)
    with pace:
        pass
    assert 0.4 < pace.next - time.monotonic() <= 0.5
    begin = time.thread_time()
    with pace:
        while time.thread_time() - begin < 0.2:
            pass
    assert 1.5 < pace.next - time.monotonic() < 5
    with pace:
        sh("sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done")
    assert pace.next - time.monotonic() > 0.5
    pace.share = 0.000001
    with pace:
        sum(range(100000))
    assert 29 < pace.next - time.monotonic() <= 30


# ---- a lab -------------------------------------------------------------------------------------------------------


class Followed:
    """A lab that is watched, where nothing is looked at unless an event is the reason; `names`: one of the machine's, too."""

    def __init__(self, host, number: int, names: bool) -> None:
        self.watch = follow._Watch(State(str(host.root)), labs.find(str(number)))
        for pace in (self.watch.anyway, self.watch.whole, self.watch.machine):
            pace.share = 0.25 if names and pace is self.watch.machine else 1e-7
            with pace:
                sum(range(1000))
        self.rows: dict[str, bool] = {}
        self.error: BaseException | None = None

    def look(self) -> None:
        self.rows = {row.name: row.ok for row in self.watch.check()}

    def settle(self) -> None:
        """Wait until there is no other reason to look than what comes next."""
        seen = self.watch.seen
        assert seen
        for _ in range(20):
            time.sleep(1.2)
            if not seen.changed(whole=True):
                break
        self.watch.later.clear()
        self.look()
        seen.changed()

    def until(self, condition) -> bool:
        """Follow until the rows are so, at most half a minute."""

        def run() -> None:
            try:
                while not condition(self.rows):
                    self.watch.wait()
                    self.look()
            except BaseException as error:
                self.error = error

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(30)
        if self.error and not isinstance(self.error, BadInput):
            raise self.error
        return not thread.is_alive() and not self.error


def sleeping(host) -> int:
    """The pid of the student's sleep."""
    (pid,) = [pid for pid in marked(f"{MARK}={variables(host)[MARK]}") if facts.program(pid).endswith("sleep")]
    return pid


@contextlib.contextmanager
def followed(host, number: int = 1, names: bool = False):
    host.run("lab", "start", number)
    found = Followed(host, number, names)
    with found.watch.events:
        found.look()
        yield found
    host.run("lab", "reset", number, check=False)


def test_each_change_is_seen_by_an_event(host):
    with followed(host) as lab:
        assert not lab.rows["own"]
        do(host, "unshare --uts sleep 1000 &")
        assert lab.until(lambda rows: rows["own"] and not rows["hostname"])
        pid = sleeping(host)
        do(host, f'nsenter --target {pid} --uts hostname "$WORD"')
        assert lab.until(lambda rows: all(rows.values()))
        lab.settle()
        lab.watch.events._drop(lab.watch.events.inotify.pop("program"))  # which others start all the time
        kill(pid)
        assert lab.until(lambda rows: not rows["own"])


def test_a_process_that_ends_during_a_check_is_seen(host):
    """When the rows are made, and before it is followed again."""
    with followed(host) as lab:
        do(host, "unshare --uts sleep 1000 &")
        assert lab.until(lambda rows: rows["own"])
        lab.settle()
        pid, follow_it = sleeping(host), lab.watch._follow

        def end(*arguments) -> None:
            kill(pid)
            wait_for(lambda: not facts.process(pid))
            follow_it(*arguments)

        lab.watch._follow = end
        lab.look()
        lab.watch._follow = follow_it
        lab.watch.events._drop(lab.watch.events.inotify.pop("program"))  # which others start all the time
        assert lab.rows["own"] and lab.until(lambda rows: not rows["own"])


def test_what_the_mark_does_not_tell_is_seen(host):
    """A process that has lost its environment, in a namespace of the lab's."""
    with followed(host) as lab:
        do(host, "unshare --uts sleep 1000 &")
        assert lab.until(lambda rows: rows["own"])
        pid = sleeping(host)
        do(host, f'env -i nsenter --target {pid} --uts "$(command -v sleep)" 1001 &')
        seen = lab.watch.seen
        (other,) = wait_for(lambda: seen.changed(whole=True) and unmarked(seen.known), what="it is seen")
        kill(other)


def unmarked(pids) -> list[int]:
    found = [(pid, process) for pid in pids if (process := facts.process(pid))]
    return [pid for pid, process in found if process.command[-1:] == ["1001"] and process.name == "sleep"]


FLOOD = """
import ctypes
libc = ctypes.CDLL(None)
libc.unshare(0x04000000)
while True:
    libc.sethostname(b"one", 3)
    libc.sethostname(b"two", 3)
"""


def test_who_changes_hostnames_without_end_does_not_keep_a_watch_busy(host):
    """Any user can, in a UTS namespace of their own.  It is a reason for one check, and until then it wakes nobody again."""
    with followed(host) as lab:
        lab.settle()
        turns, wait = 0, lab.watch.events.wait

        def counted(seconds: float) -> set[str]:
            nonlocal turns
            turns += 1
            return wait(seconds)

        lab.watch.events.wait = counted
        with subprocess.Popen([sys.executable, "-c", FLOOD]) as flood:
            assert wait_for(lambda: "name" in wait(1))
            lab.watch.machine.next = time.monotonic() + 1
            lab.watch.wait()
            flood.kill()
        assert turns < 1000


def test_the_end_of_the_lab_is_seen_by_an_event(host):
    with followed(host) as lab:
        host.run("lab reset 1")
        assert not lab.until(lambda rows: False)
        assert isinstance(lab.error, BadInput) and "not started" in str(lab.error)


def test_others_are_no_reason(host):
    """What has nothing to do with the lab is glanced at, and no more."""
    with followed(host) as lab:
        seen = lab.watch.seen
        with subprocess.Popen(["unshare", "--uts", "sleep", "1000"]) as other:
            time.sleep(0.2)
            assert not seen.changed(whole=True) and other.pid not in seen.known and other.pid in seen.everybody
            other.kill()
        do(host, "sleep 1000 &")
        wait_for(lambda: seen.changed(), what="what is the lab's")


def test_a_server_that_listens_later_is_seen(host):
    """There is no event for bind(2): a glance at everybody sees it."""
    with followed(host) as lab:
        port = "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); print(flush=True); sys.stdin.read()"
        do(host, "unshare --net sleep 1000 &")
        assert lab.until(lambda rows: bool(lab.watch.seen.known))
        wait_for(lambda: not lab.watch.seen.changed(whole=True))
        pid = sleeping(host)
        sh("nsenter", "-t", pid, "-n", "ip", "link", "set", "lo", "up")
        wait_for(lambda: lab.watch.seen.changed(whole=True), what="lo")
        with subprocess.Popen(["nsenter", "-t", str(pid), "-n", "python3", "-c", port], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:  # fmt: skip
            lab.watch.seen.changed()
            assert server.stdout and server.stdin
            server.stdout.readline()
            assert lab.watch.seen.changed(whole=True)
            server.stdin.close()


def test_each_change_is_printed(host, tmp_path):
    """The command itself: what is fulfilled, what is no longer, and the end."""
    host.run("lab start 1")
    out = tmp_path / "out"
    with out.open("w") as file:
        watch = host.background("lab", "watch", stdout=file)
    try:
        wait_for(lambda: out.read_text().count("NO  own") == 1)
        do(host, "unshare --uts sleep 1000 &")
        wait_for(lambda: out.read_text().count("ok  own") == 1, what="the process")
        pid = sleeping(host)
        kill(pid)
        wait_for(lambda: out.read_text().count("NO  own") == 2, what="its end")
        do(host, SOLUTION)
        assert watch.wait(timeout=30) == 0
    finally:
        watch.kill()
        watch.wait()
    assert "lab 1 is solved" in out.read_text()
    host.run("lab reset 1")


def test_a_name_that_python_gives(host):
    """sethostname(2) by a program that runs already: no program is started, no process comes or goes."""
    rename = "import ctypes, sys; sys.stdin.readline(); ctypes.CDLL(None).sethostname(sys.argv[1].encode(), len(sys.argv[1])); sys.stdin.read()"
    with followed(host, names=True) as lab:
        env = {**host.env, **variables(host)}
        with subprocess.Popen(["unshare", "--uts", "python3", "-c", rename, env["WORD"]], env=env, stdin=subprocess.PIPE) as student:  # fmt: skip
            assert student.stdin and lab.until(lambda rows: rows["own"])
            lab.settle()
            student.stdin.write(b"\n")
            student.stdin.flush()
            assert lab.until(lambda rows: all(rows.values()))
            student.kill()
