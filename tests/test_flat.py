# SPDX-License-Identifier: Apache-2.0
"""A command costs what it names, and not what else there is; and what has died is found all the same.

Nothing is timed here: system calls are counted, and notes and locks are compared with what State says one by one.
"""

import itertools
import os
import pathlib
import re
import sys

import pytest
from conftest import NSRUN, settled, sh
from test_sweep import MEMBER, POD, holder

from nsrun.errors import BadInput
from nsrun.lifecycle import query
from nsrun.schema import FLAG, HEX, LINE, STRING, TEXT, WORD, Number, check, matcher
from nsrun.state import State, census, codec, life, sweep
from nsrun.state.sweep import Sweeper, remove_ended_member

__all__ = ["holder"]
SHAPES = {**codec.SHAPES, "all": {"t": TEXT, "s?": STRING, "n": [Number(2, 5)], "o?": {"k": HEX, "l?": [LINE], "m": {str: WORD}}, "f": FLAG}}  # fmt: skip


@pytest.fixture
def state(tmp_path) -> State:
    return State(str(tmp_path))


def claim(state: State, kind: str, name: str, ident: str, **fields: object) -> int:
    note = {**(POD if kind == "pods" else MEMBER), "id": ident, "name": name, **fields}
    return state.claim(kind, name, note, {}, Sweeper(state).give_way)[1]


def crowd(state: State, count: int) -> list[int]:
    """Pods that live, because we hold them, each with a member and data."""
    fds = []
    for number in range(count):
        ident = f"{number:012x}"
        fds.append(claim(state, "pods", f"crowd-{number}", ident))
        fds.append(claim(state, "members", f"crowd-{number}-m", ident, pod=f"crowd-{number}", pod_id=ident))
        fds.append(state.make_data(ident, {"name": f"crowd-{number}-m", "pod": "x", "image_id": "", "layers": []}))
    return fds


def turns(state: State, what: str, most: int) -> int:
    """How many commands it takes until this is removed."""
    for number in range(1, most + 1):
        if what in Sweeper(state).some():
            return number
    raise AssertionError(f"{what} is still there after {most} commands")


# ---- what a command asks -----------------------------------------------------------------------------------------


def calls(host, *words: object) -> int:
    """The number of different system calls of a command itself; what it starts is not counted.

    A call that is made again with the same arguments waits for something, and how often is the load's affair.
    """
    out = pathlib.Path(host.env["NSRUN_ROOT"]) / "calls"
    sh("strace", "-qq", "-o", out, NSRUN, *words, env={**host.env, "NSRUN_REPLAY": "0"})
    return len({re.sub(r"tv_n?sec=\d+", "", line.partition(" = ")[0]) for line in out.read_text().splitlines()})


def test_a_command_makes_no_more_calls_in_a_crowd(host, busybox):
    """Both crowds are more than one command looks at; the second has five times as many."""
    state = State(host.env["NSRUN_ROOT"])
    names = itertools.count()

    def one_of_each() -> list[int]:
        name = f"p{next(names)}"
        found = [calls(host, "pod", "create", "--network", "none", name)]
        found.append(calls(host, "join", name, "-d", "--name", f"{name}-m", "--rootfs", busybox, "--", "sleep", "1000"))
        found.append(calls(host, "exec", f"{name}-m", "true"))
        found.append(calls(host, "kill", f"{name}-m"))
        found.append(calls(host, "rm", f"{name}-m"))
        found.append(calls(host, "pod", "inspect", name))
        found.append(calls(host, "pod", "kill", name))
        return found

    fds = crowd(state, 40)
    one_of_each()  # what only the first command does
    few = one_of_each()
    for number in range(40, 200):
        fds.append(claim(state, "pods", f"crowd-{number}", f"{number:012x}"))
        for member in range(2):
            ident = f"{number:011x}{member}f"[-12:]
            fds.append(claim(state, "members", f"crowd-{number}-{member}", ident, pod=f"crowd-{number}"))
    many = one_of_each()
    for fd in fds:
        life.let_go(fd)
    # one call for each of the 480 that have come would be more
    assert all(after - before < 100 for before, after in zip(few, many, strict=True)), f"{few} {many}"


def test_a_bridge_in_use_is_asked_and_nothing_else(host):
    """No dump of all links and tables, which are as many as there are pods."""
    host.run("pod", "create", "a")
    out = pathlib.Path(host.env["NSRUN_ROOT"]) / "calls"
    for words, dumps in ((["pod", "ls"], False), (["pod", "inspect", "a"], False), (["pod", "create", "b"], True)):
        sh("strace", "-qq", "-e", "trace=socket", "-o", out, NSRUN, *words, env=host.env)
        assert ("AF_NETLINK" in out.read_text()) == dumps, words
    host.run("pod", "kill", "a", "b")
    settled()
    assert "nsrun" not in sh("ip", "-br", "link").stdout


def test_what_has_died_in_a_crowd_is_found_in_its_turn(state):
    """Each command looks at the next ones, from where the last has stopped; so it takes a bounded number of them."""
    fds = crowd(state, 100)
    bound = -(-101 // sweep.LOOKED_AT) + 1
    for kind, name in (("pods", "dead"), ("members", "dead")):
        life.let_go(claim(state, kind, name, "f0"))
        assert turns(state, f"{kind[:-1]} {name}", bound) <= bound
        assert not os.path.exists(state.path(kind, name))
    life.let_go(state.make_data("f1", {"name": "x", "pod": "x", "image_id": "", "layers": []}))
    assert turns(state, "upper f1", bound) <= bound
    assert len(state.names("pods")) == len(state.names("members")) == len(state.idents()) == 100
    for fd in fds:
        life.let_go(fd)
    for _ in range(2 * bound * sweep.LOOKED_AT // sweep.LOOKED_INTO):
        Sweeper(state).some()
    assert state.names("members") == state.idents() == []
    # those whose turn came before that of their member seem to have been used, and keep their record
    assert all(state.marked("pods", name, "released") for name in state.names("pods"))


@pytest.mark.parametrize("content", [b"", b"x" * 500, b"9" * 500, b"-1 -1 -1 -1", b"99999999999999999999 7 7 7", None])
def test_a_turn_that_is_nonsense_costs_only_time(state, content):
    fds = crowd(state, 40)
    life.let_go(claim(state, "pods", "dead", "f0"))
    turn = pathlib.Path(state.run) / "turn"
    if content is None:
        turn.mkdir()
        remaining = 1
    else:
        turn.write_bytes(content)
        remaining = 4
    for _ in range(remaining):
        sweeper = Sweeper(state)
        sweeper.some()
        assert not sweeper.troubles
    assert content is None or not os.path.exists(state.path("pods", "dead"))
    assert len(state.names("pods")) - os.path.exists(state.path("pods", "dead")) == 40
    for fd in fds:
        life.let_go(fd)


def test_a_few_are_all_looked_at_by_every_command(state):
    """As many as one command looks at: no turn passes any of them over."""
    fds = crowd(state, sweep.LOOKED_AT - 1)
    for number in range(3):
        life.let_go(claim(state, "pods", "dead", f"f{number}"))
        assert turns(state, "pod dead", 1) == 1
    for fd in fds:
        life.let_go(fd)


def test_to_look_ends_no_lock_of_ours(state, holder):
    """To close a file ends the locks that we have on it: so what is ours is not opened."""
    fds = crowd(state, 3)
    os.mkdir(f"{state.run}/pods/none")
    assert life.unheld(f"{state.run}/pods", 0, 100, 100)[0] == ["none"]
    census.look(state, "pods", state.names("pods"))
    probe = "import sys; from nsrun.state import life; print(life.ask(sys.argv[1]).maker)"
    path = state.held("pods", "crowd-1")
    done = sh(sys.executable, "-c", probe, path, cwd="/")
    assert done.stdout.strip() == str(os.getpid())
    for fd in fds:
        life.let_go(fd)
    other = holder(state.held("pods", "crowd-2"), life.KEEPER)
    assert sorted(life.unheld(f"{state.run}/pods", 0, 100, 100)[0]) == ["crowd-0", "crowd-1", "none"]
    other.communicate()


# ---- which members a pod has -------------------------------------------------------------------------------------


def names_of(state: State, pod: str, ident: str) -> list[str]:
    return [note["name"] for note in state.members_of({"name": pod, "id": ident})]


def test_the_members_of_a_pod_are_listed_beside_it(state, monkeypatch):
    claim(state, "pods", "p", "1")
    for name in ("a", "b"):
        life.let_go(claim(state, "members", name, f"a{name}", pod="p", pod_id="1"))
    life.let_go(claim(state, "members", "other", "c", pod="q", pod_id="2"))
    monkeypatch.setattr(state, "names", lambda kind: pytest.fail("it looked at all"))
    assert names_of(state, "p", "1") == ["a", "b"]
    assert names_of(state, "p", "9") == []  # an earlier pod of this name
    remove_ended_member(state, state.read("members", "a"))
    assert names_of(state, "p", "1") == ["b"] and "m-a" not in os.listdir(state.path("pods", "p"))


@pytest.mark.parametrize("what", ["an earlier build", "a list that failed", "root made it"])
def test_a_pod_without_a_list(state, what):
    """Its members are looked for among all."""
    claim(state, "pods", "p", "1")
    if what == "an earlier build":
        os.unlink(state.path("pods", "p", "listed"))
    if what == "a list that failed":
        os.mkdir(state.path("pods", "p", "m-a"))
    claim(state, "members", "a", "a", pod="p", pod_id="1")
    claim(state, "members", "b", "b", pod="r", pod_id="3")
    assert names_of(state, "p", "1") == ["a"]
    if what == "root made it":
        assert names_of(state, "r", "3") == ["b"] and not os.path.exists(state.path("pods", "r"))


def test_a_list_that_names_too_many(state):
    """Such as members that were killed while they were made, or that are another pod's by now."""
    claim(state, "pods", "p", "1")
    claim(state, "members", "elsewhere", "e", pod="q", pod_id="2")
    for name in ("m-gone", "m-elsewhere", "m-.x", "m-"):
        pathlib.Path(state.path("pods", "p", name)).touch()
    assert names_of(state, "p", "1") == []


def test_who_takes_the_name_while_it_is_removed_stays_listed(state, monkeypatch):
    """The name is free before the list is changed."""
    claim(state, "pods", "p", "1")
    life.let_go(claim(state, "members", "a", "a1", pod="p", pod_id="1"))
    note, unlist = state.read("members", "a"), state.unlist

    def meanwhile(pod: str, name: str) -> None:
        claim(state, "members", "a", "a2", pod="p", pod_id="1")
        unlist(pod, name)

    monkeypatch.setattr(state, "unlist", meanwhile)
    remove_ended_member(state, note)
    assert [found["id"] for found in state.members_of({"name": "p", "id": "1"})] == ["a2"]


# ---- lists -------------------------------------------------------------------------------------------------------


def values() -> list[object]:
    odd = ["", "a", "0f", "x y", "a\nb", "a\0b", "\ud800", "\udc80", "é", "x" * 5000, 0, 1, 3, -1, 1 << 63, 1.5]
    return [*odd, None, True, False, [], ["a"], [1], [3], [[]], {}, {"a": "b"}, {"k": "0f", "m": {}}, {"k": "zz"}]


@pytest.mark.parametrize("kind", ["pods", "members", "about", "committed", "config.json", "all"])
def test_a_compiled_check_accepts_what_check_accepts(kind):
    """Of a good document, and of the same with each key lacking or holding each of many values."""
    shape, good = SHAPES[kind], {
        "pods": {"id": "1", "name": "x", **POD}, "members": {"id": "1", "name": "x", **MEMBER},
        "about": {"name": "x", "pod": "y", "image_id": "", "layers": ["0f"]},
        "committed": {"id": "1", "name": "x", "pod": "p", "pod_id": "1", "cgroup": "", "cgroup_id": 1, "shares_pid": True, "process": []},
        "config.json": {"process": {"args": ["a"], "env": [], "cwd": "/", "user": {}, "capabilities": {}}, "root": {"path": "/"}, "linux": {}, "annotations": {}},
        "all": {"t": "a\0b", "n": [2, 5], "f": False, "o": {"k": "0f", "m": {"a": "b"}}},
    }[kind]  # fmt: skip
    fits = matcher(shape)
    assert kind == "about" or fits(good)
    seen = set()
    keys = {name.removesuffix("?") for name in shape}
    documents = [{**good, key: value} for key in keys for value in values()]
    documents += [{k: v for k, v in good.items() if k != key} for key in keys] + values()
    documents += [{**good, "o": {"k": "0f", "m": {}, key: value}} for key in "klm" for value in values()]
    for document in documents:
        try:
            check(document, shape, "it")
            accepted = True
        except BadInput:
            accepted = False
        assert bool(fits(document)) == accepted, document
        seen.add(accepted)
    assert seen == {True, False}


@pytest.fixture
def scene(host, pod, busybox, alice):
    """Members and pods of all kinds: plain, stopped, stopping, orphaned, damaged, killed, an owner's, ended."""
    host.run("pod", "create", "--network", "none", "q")
    host.run("pod", "create", "--network", "none", "theirs", env={"SUDO_UID": str(alice.uid)})
    for name in ("plain", "ended", "stopping", "headless", "damaged"):
        host.start(name, busybox, "sh", "-c", "trap : TERM; while :; do sleep 1000; done")
    host.run("join", "q", "-d", "--pid", "own", "--name", "orphan", "--rootfs", busybox, "--", "sleep", "1000")
    host.run("kill", "ended")
    state = State(host.env["NSRUN_ROOT"])
    state.mark("members", "stopping", "stop")
    os.kill(state.life("members", "headless").keeper, 9)
    os.kill(state.pause(state.read("pods", "q"))[1], 9)
    path = pathlib.Path(state.path("members", "damaged", "note"))
    path.write_bytes(path.read_bytes().replace(b"sleep", b"slept"))
    host.run("pod", "create", "--network", "none", "damaged")
    path = pathlib.Path(state.path("pods", "damaged", "note"))
    path.write_bytes(path.read_bytes()[:-5])
    return host


@pytest.mark.parametrize("many", [1, 1000])
def test_a_list_of_all_says_what_is_said_of_each(scene, monkeypatch, many):
    """What is plain is found in one pass; everything else is asked one by one; both say the same."""
    monkeypatch.setattr(census, "MANY", many)
    root = scene.env["NSRUN_ROOT"]

    def lists() -> list[object]:
        state = State(root)
        return [query.pods(state, True), query.members(state, True), query.pods(state), query.members(state)]

    plain = State(root)
    seen = census.look(plain, "members", plain.names("members"))
    assert {name for name, one in seen.items() if one.running} == {"plain", "orphan"}
    assert [n for n, one in census.look(plain, "pods", plain.names("pods")).items() if one.running] == ["pause"]
    fast = lists()
    monkeypatch.setattr(query, "look", lambda state, kind, names: {})
    assert fast == lists()
    statuses = {m["name"]: m["status"] for m in fast[1][0]}
    assert statuses == {"plain": "running", "ended": "stopped", "stopping": "stopping", "headless": "running", "damaged": "damaged", "orphan": "running"}  # fmt: skip
    assert fast[1][1] is True


def test_a_list_of_what_plainly_lives_reads_each_note_once(host, busybox):
    """What State asks one by one, it asks of nothing else."""
    state, out = State(host.env["NSRUN_ROOT"]), pathlib.Path(host.env["NSRUN_ROOT"]) / "calls"
    for pod in ("p", "q"):
        host.run("pod", "create", "--network", "none", pod)
        for number in range(2):
            host.run("join", pod, "-d", "--name", f"{pod}{number}", "--rootfs", busybox, "--", "sleep", "1000")
    for words in (["ls"], ["pod", "ls"]):
        sh("strace", "-qq", "-e", "trace=open,openat", "-o", out, NSRUN, *words, env=host.env)
        opened = [line for line in out.read_text().splitlines() if '/note"' in line]
        assert len(opened) == len(state.names("pods")) + len(state.names("members")) == 6


def test_what_holds_a_note_without_being_its_keeper_is_not_plain(state, holder):
    """Its maker, or the holder of another file that has been put in the place of `held`."""
    life.let_go(claim(state, "pods", "p", "1"))
    note = {**state.read("pods", "p"), "pause": [1, 1, "", 1, 1], **life.describe(state.held("pods", "p"))}
    state.save("pods", "p", note)
    maker = holder(state.held("pods", "p"), life.MAKER)
    assert census.look(state, "pods", ["p"])["p"].running is False
    keeper = holder(state.held("pods", "p"), life.KEEPER)
    assert census.look(state, "pods", ["p"])["p"].pid == keeper.pid
    state.mark("pods", "p", "removing")
    assert census.look(state, "pods", ["p"])["p"].running is False
    state.unmark("pods", "p", "removing")
    for process in (maker, keeper):
        process.communicate()
    os.unlink(state.held("pods", "p"))
    pathlib.Path(state.held("pods", "p")).touch()
    another = holder(state.held("pods", "p"), life.KEEPER)
    assert "p" not in census.look(state, "pods", ["p"])
    another.communicate()
