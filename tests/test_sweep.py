# SPDX-License-Identifier: Apache-2.0
"""What has died is forgotten, and nothing else: not even when names change hands while somebody looks."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from nsrun import kernel
from nsrun.errors import BadInput, BrokenNote
from nsrun.lifecycle.query import pod_status
from nsrun.lifecycle.remove import prune, remove_member
from nsrun.state import State, codec, life, orphans
from nsrun.state.sweep import Sweeper, remove_ended_member

POD = {"created": "", "owner": "root", "hostname": "", "network": {"mode": "none"}, "labels": {}, "cgroup": ""}
MEMBER = {
    "pod": "p", "pod_id": "1", "created": "", "started": "", "command": [], "rootfs": "/", "cgroup": "", "shares_pid": True,
    "terminal": False, "stop_signal": 15, "restart": "no:0", "restarts": 0, "rm": False, "detached": True,
}  # fmt: skip
FIELDS: dict[str, dict[str, Any]] = {"pods": POD, "members": MEMBER}
#: Another process that holds a byte of a file until its standard input ends.
HOLDER = "import sys; from nsrun import kernel; from nsrun.state import life; import os; fd = os.open(sys.argv[1], os.O_RDONLY); life.own(fd, int(sys.argv[2])); print(flush=True); sys.stdin.read()"


class Interrupted(State):
    """After the kernel was asked about a thing for the first time, somebody else gets to run."""

    meanwhile: Callable[[], object] | None = None

    def life(self, kind, name):
        found = super().life(kind, name)
        if self.meanwhile:
            self.meanwhile, act = None, self.meanwhile
            act()
        return found


@pytest.fixture
def state(tmp_path) -> Interrupted:
    return Interrupted(str(tmp_path))


def note(kind: str, ident: str = "1") -> dict:
    return {"id": ident, "name": "x", **FIELDS[kind]}


def dead(state: State, kind: str, began: bool = False) -> None:
    """One whose maker has ended: before it was there, or after."""
    _, fd = state.claim(kind, "x", note(kind), {}, Sweeper(state).give_way)
    if began:
        process = {"pause" if kind == "pods" else "process": [(1 << 22) + 1, 1, state.boot, *kernel.our_view()]}
        state.save(kind, "x", {**note(kind), **process})
        state.mark(kind, "x", "started")
    life.let_go(fd)


@pytest.fixture
def holder():
    """Start a process that holds a byte of a file."""
    started = []

    def start(path: str, byte: int) -> subprocess.Popen:
        words = [sys.executable, "-c", HOLDER, path, str(byte)]
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/")
        started.append(process)
        assert process.stdout.readline() == b"\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("kind", ["pods", "members"])
def test_who_makes_it_ends_between_two_looks(state, holder, kind):
    """nsrun hands over to who keeps it from now on, and ends, while another nsrun looks."""
    _, fd = state.claim(kind, "x", note(kind), {}, Sweeper(state).give_way)
    holder(state.held(kind, "x"), life.KEEPER)
    state.meanwhile = lambda: life.let_go(fd)
    Sweeper(state).all()
    assert state.read(kind, "x")["id"] == "1" and state.life(kind, "x").keeper


@pytest.mark.parametrize("kind", ["pods", "members"])
@pytest.mark.parametrize("how", ["swept", "swept and made"])
def test_somebody_else_sweeps_it_between_two_looks(state, kind, how):
    """And takes the name."""
    dead(state, kind)

    def other() -> None:
        Sweeper(State(state.root)).all()
        if how == "swept and made":
            State(state.root).claim(kind, "x", note(kind, "2"), {}, Sweeper(state).give_way)

    state.meanwhile = other
    Sweeper(state).all()
    now = state.read(kind, "x")
    assert (now and now["id"]) == ("2" if how == "swept and made" else None)


def test_a_member_is_removed_and_its_name_taken_between_two_looks(state):
    """`nsrun rm x` of the one that was meant."""
    state.claim("members", "x", note("members", "2"), {}, Sweeper(state).give_way)
    remove_ended_member(state, note("members"))
    assert state.read("members", "x")["id"] == "2"


@pytest.mark.parametrize("kind", ["pods", "members"])
def test_what_had_begun_is_kept(state, kind):
    """Its story, and what it wrote, are its user's; another of its name makes a pod's go."""
    dead(state, kind, began=True)
    Sweeper(state).all()
    assert state.read(kind, "x")["id"] == "1"
    if kind == "pods":
        assert pod_status(state, state.read(kind, "x")) == "stopped"
        state.claim(kind, "x", note(kind, "2"), {}, Sweeper(state).give_way)
        assert state.read(kind, "x")["id"] == "2"
    else:
        assert state.member_status(state.read(kind, "x")) == ("lost", None)
        with pytest.raises(BadInput, match="taken"):
            state.claim(kind, "x", note(kind, "2"), {}, Sweeper(state).give_way)
        remove_member(state, state.read(kind, "x"), False)
        assert state.read(kind, "x") is None


@pytest.mark.parametrize("byte", [life.MAKER, life.KEEPER, life.HOLDER])
@pytest.mark.parametrize("kind", ["pods", "members"])
def test_what_somebody_holds_is_nobody_elses(state, holder, kind, byte):
    """Neither swept, nor given away, nor removed."""
    dead(state, kind, began=True)
    process = holder(state.held(kind, "x"), byte)
    now = state.life(kind, "x")
    assert (now.maker, now.keeper, now.holder)[byte] == process.pid
    Sweeper(state).all()
    assert not state.remove_directory(state.path(kind, "x"))
    with pytest.raises(BadInput, match="taken"):
        state.claim(kind, "x", note(kind, "2"), {}, Sweeper(state).give_way)
    process.communicate()
    assert state.remove_directory(state.path(kind, "x")) and not os.path.exists(state.path(kind, "x"))


def test_data_that_somebody_holds(state, holder):
    """Whatever the notes say: there are none."""
    for ident, committed in (("a", True), ("b", False)):
        fd = state.make_data(ident, {"name": "x", "pod": "p", "image_id": "", "layers": []})
        if committed:
            process = {"process": [(1 << 22) + 1, 1, state.boot, *kernel.our_view()], "cgroup_id": 0}
            state.commit_data({**note("members", ident), **process})
        process = holder(f"{state.upper(ident)}/held", life.KEEPER)
        life.let_go(fd)
        Sweeper(state).all()
        assert os.path.isdir(state.upper(ident)) and not state.remove_directory(state.upper(ident))
        process.communicate()
        Sweeper(state).all()
        assert os.path.isdir(state.upper(ident)) == committed


def test_a_lock_of_ours_survives_our_own_questions(state):
    """Closing any descriptor of a file ends all locks that a process has on it."""
    state.claim("pods", "x", note("pods"), {}, Sweeper(state).give_way)
    for _ in range(3):
        assert state.life("pods", "x").maker == os.getpid()
        Sweeper(state).all()
        assert not subprocess.run(
            [sys.executable, "-c", "import sys; from nsrun.state import life; sys.exit(not life.ask(sys.argv[1]).maker)", state.held("pods", "x")],
            check=False, cwd="/",
        ).returncode  # fmt: skip


@pytest.mark.parametrize("kind", ["pods", "members"])
def test_every_flipped_bit_shows(state, kind):
    """And destroys nothing, neither note nor data."""
    dead(state, kind, began=True)
    path = state.path(kind, "x", "note")
    with open(path, "rb") as file:
        whole = file.read()
    for position in range(8 * len(whole)):
        broken = bytearray(whole)
        broken[position // 8] ^= 1 << position % 8
        with pytest.raises(ValueError):
            codec.decode(bytes(broken), codec.SHAPES[kind])
    with open(path, "wb") as file:
        file.write(broken)
    with pytest.raises(BrokenNote):
        state.read(kind, "x")
    sweeper = Sweeper(state)
    sweeper.all()
    assert path.removesuffix("/note") in next(iter(state.broken)) and os.path.exists(path)


@pytest.mark.parametrize("what", ["fifo", "directory", "symlink", "sparse", "unreadable descriptors"])
def test_what_is_no_note(state, what):
    """In its place: nothing hangs, nothing fills the memory, nothing is concluded."""
    import resource

    dead(state, "members", began=True)
    path = state.path("members", "x", "note")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if what != "unreadable descriptors":
        os.unlink(path)
    if what == "fifo":
        os.mkfifo(path)
    elif what == "directory":
        os.mkdir(path)
    elif what == "symlink":
        os.symlink("/etc/passwd", path)
    elif what == "sparse":
        with open(path, "wb") as file:
            file.truncate(2 << 30)
    try:
        if what == "unreadable descriptors":
            used = max(map(int, os.listdir("/proc/self/fd")))
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, limit[1]))
            hogs = []
            while True:
                try:
                    hogs.append(os.dup(0))
                except OSError:
                    break
            with pytest.raises((BrokenNote, OSError)):
                state.note_and_life("members", "x")
            Sweeper(state).all()
            for fd in hogs:
                os.close(fd)
        else:
            with pytest.raises(BrokenNote):
                state.read("members", "x")
            Sweeper(state).all()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert os.path.lexists(path)
    Sweeper(state).set_broken_aside() if what != "unreadable descriptors" else None
    assert os.path.exists(state.path("members", "x")) == (what == "unreadable descriptors")


NOBODY = (1 << 22) + 1  # no process has such a number
UNKNOWN = {
    "another PID namespace": (NOBODY, 3, 1),
    "another time namespace": (os.getpid(), 4, 1),
    "another file in boot_id's place": (os.getpid(), 2, ""),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_a_death_that_is_not_proven(state, what):
    """Its monitor was killed, and from here its pid means nothing: what it wrote stays, whoever asks, until its pod is dead."""
    pid, at, value = UNKNOWN[what]
    process = [pid, 1, state.boot, *kernel.our_view()]
    process[at] = value
    found = {**note("members"), "process": process, "cgroup_id": 0}
    _, fd = state.claim("members", "x", found, {}, Sweeper(state).give_way)
    state.mark("members", "x", "started")
    life.let_go(fd)
    data = state.make_data("1", {"name": "x", "pod": "p", "image_id": "", "layers": []})
    state.commit_data(found)
    life.let_go(data)
    assert not state.surely_ended(found)
    Sweeper(state).all()
    assert not prune(state, "member", found)
    for force in (False, True):
        with pytest.raises(BadInput, match="may still run"):
            remove_member(state, found, force)
    assert [d.free for d in orphans.data(state)] == [] and os.path.isdir(state.upper("1"))
    _, pod = state.claim("pods", "p", {**note("pods"), "name": "p"}, {}, Sweeper(state).give_way)
    assert not state.surely_ended(found)
    life.let_go(pod)  # its pod is dead, and PID 1 takes all with it
    remove_member(state, found, False)
    assert not os.path.exists(state.upper("1"))


def test_data_whose_member_has_a_damaged_note(state):
    """Data are listed, and not called free, when the note of their member or of its pod can't be read and nothing else proves its end."""
    for broken in ("members", "pods"):
        found = {**note("members"), "process": [NOBODY, 1, state.boot, 1, 1], "cgroup_id": 0, "shares_pid": False}
        for kind, name, text in (("members", "x", found), ("pods", "p", {**note("pods"), "name": "p"})):
            life.let_go(state.claim(kind, name, text, {}, Sweeper(state).give_way)[1])
        life.let_go(state.make_data("1", {"name": "other", "pod": "p", "image_id": "", "layers": []}))
        state.commit_data(found)
        path = state.path(broken, "x" if broken == "members" else "p", "note")
        os.unlink(path)
        os.mkdir(path)
        assert not state.is_free("1")
        assert [(d.ident, d.free) for d in orphans.data(state)] == ([("1", False)] if broken == "members" else [])
        for kind in ("pods", "members"):
            shutil.rmtree(f"{state.run}/{kind}")
        shutil.rmtree(state.upper("1"))
