"""What has died is forgotten, and nothing else: not even when names change hands while somebody looks."""

import subprocess

import pytest

from nsrun import manage
from nsrun.state import State
from nsrun.sweep import Sweeper, forget_member

POD = {"created": "", "owner": "root", "hostname": "", "network": {}, "labels": {}, "cgroup": ""}
MEMBER = {
    "pod": "p", "pod_id": "1", "created": "", "command": [], "rootfs": "/", "cgroup": "", "shares_pid": True,
    "stop_signal": 15, "restart": "no:0", "restarts": 0, "rm": False,
}  # fmt: skip
FIELDS = {"pods": POD, "members": MEMBER}


class Interrupted(State):
    """Before the kernel is asked about a process for the first time, somebody else gets to run."""

    meanwhile = None

    def alive(self, holder):
        if self.meanwhile:
            self.meanwhile, act = None, self.meanwhile
            act()
        return super().alive(holder)


def ended() -> list:
    process = subprocess.Popen(["true"])
    process.wait()
    return [process.pid, 1, State("/nowhere").boot]


@pytest.fixture
def state(tmp_path) -> Interrupted:
    return Interrupted(str(tmp_path))


@pytest.mark.parametrize("kind", ["pods", "members"])
def test_who_makes_it_ends_between_two_looks(state, kind):
    """The note names nsrun; nsrun writes who keeps it now, and ends; then the kernel says that nsrun is dead."""
    note = {"id": "1", "name": "x", **FIELDS[kind]}
    state.claim(kind, "x", note, {})
    state.save(kind, "x", {**note, "holder": ended()})
    state.meanwhile = lambda: state.save(kind, "x", {**note, "holder": state.myself()})
    Sweeper(state).one(kind, "x")
    assert state.read(kind, "x")["holder"] == state.myself()


@pytest.mark.parametrize("kind", ["pods", "members"])
@pytest.mark.parametrize("how", ["swept", "swept and made"])
def test_somebody_else_sweeps_it_between_two_looks(state, kind, how):
    """And takes the name."""
    note = {"id": "1", "name": "x", **FIELDS[kind]}
    state.claim(kind, "x", note, {})
    state.save(kind, "x", {**note, "holder": ended()})

    def other() -> None:
        Sweeper(State(state.root)).one(kind, "x")
        if how == "swept and made":
            State(state.root).claim(kind, "x", {**note, "id": "2"}, {})

    state.meanwhile = other
    Sweeper(state).one(kind, "x")
    now = state.read(kind, "x")
    assert (now and now["id"]) == ("2" if how == "swept and made" else None)


def test_a_member_is_removed_and_its_name_taken_between_two_looks(state):
    """`nsrun rm x` of the one that was meant."""
    note = {"id": "1", "name": "x", **MEMBER}
    state.claim("members", "x", {**note, "id": "2"}, {})
    forget_member(state, note)
    assert state.read("members", "x")["id"] == "2"


def test_what_has_just_been_made_is_not_called_lost(state):
    dead, alive = ended(), state.myself()
    for kind in ("pods", "members"):
        note = {"id": "1", "name": "x", **FIELDS[kind], "holder": dead}
        state.claim(kind, "x", note, {})
        state.save(kind, "x", {**note, "holder": alive, "pause" if kind == "pods" else "process": alive})
        status = manage.pod_status(state, note) if kind == "pods" else state.member_status(note)[0]
        assert status == "running"
        state.save(kind, "x", note)
        assert (manage.pod_status(state, note) if kind == "pods" else state.member_status(note)[0]) == "lost"
