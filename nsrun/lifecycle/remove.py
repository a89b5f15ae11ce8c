# SPDX-License-Identifier: Apache-2.0
"""Remove pods and members that have ended, with `force` also those that live; and those whose notes are damaged."""

from __future__ import annotations

import os

from nsrun import kernel
from nsrun.errors import BadInput, BrokenNote, NsrunError, UnknownError
from nsrun.lifecycle.query import pod_status
from nsrun.lifecycle.stop import SIGKILL, end_pod, end_pod_of, is_used, send, settled, stop_member, wait_dead
from nsrun.schema import is_name, is_there
from nsrun.state import ALIVE, life
from nsrun.state.orphans import life_of_unreadable
from nsrun.state.sweep import Sweeper, hides_another, remove_ended_member

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsrun.state import Note, State


MOMENT = 2.0  # seconds


def remove_member(state: State, note: Note, force: bool) -> None:
    """Remove a member that has ended, with everything it wrote.

    Raise BadInput when it lives; with `force`, end it first.
    """
    if hides_another(state, note):
        if not force:
            raise BadInput(
                f"member {note['name']!r} may run: its note is that of an earlier one",
                hint=f"nsrun rm -f {note['name']}",
            )
        _end_without_note(state, note["name"])
    status, _ = state.member_status(note)
    if status in ALIVE:
        if not force:
            raise BadInput(
                f"member {note['name']!r} is {status}",
                hint=f"nsrun stop {note['name']}, or: nsrun rm -f {note['name']}",
            )
        stop_member(state, note, 0, SIGKILL)
    else:
        found = state.life("members", note["name"])
        if found.keeper and not force and life.held_lives(found.keeper, note.get("pidfd", -1)):
            raise BadInput(
                f"member {note['name']!r} is running, although its exit status is recorded",
                hint=f"nsrun rm -f {note['name']}",
            )
        if found.alive:  # it is about to be restarted
            stop_member(state, note, 0, SIGKILL)
    kept = life.children.pop(note["id"], -1)
    if kept >= 0:
        os.close(kept)
        for path in (state.held("members", note["name"]), f"{state.upper(note['id'])}/{life.HELD}"):
            life.let_go_of(path)
    # who dies, and who removes it, holds its data for a moment longer than its note
    life.wait(f"{state.upper(note['id'])}/{life.HELD}", -1, MOMENT)
    now = state.read("members", note["name"])
    if now is None or now["id"] != note["id"]:
        return  # making it failed, or another process has removed it
    note = now
    if state.member_status(note)[0] == "stopped" and is_used(state, note["name"]):
        raise BadInput(
            f"another nsrun uses member {note['name']!r}", hint="nsrun cp, or start? try again when it has ended"
        )
    if not state.surely_ended(note):
        _end_lost(state, note, force)
    if not remove_ended_member(state, note):
        raise BadInput(f"another process keeps member {note['name']!r}", hint="nsrun ls -a")
    if note.get("ends_pod"):  # its monitor, which was to do that, was killed
        end_pod_of(state, note)


def remove_named(state: State, name: str, force: bool) -> bool:
    """Remove a member by its name, even if its note can't be read; return whether there was one.

    With `force`, it is no error when there is none.
    """
    try:
        note = state.member(name)
    except UnknownError:
        if not force or not is_name(name):
            raise
        return False
    except BrokenNote:
        if not force:
            raise
        end_unreadable(state, "members", name)
        return True
    remove_member(state, note, force)
    return True


def prune(state: State, kind: str, note: Note) -> bool:
    """Remove a pod or a member that has ended, with everything left of it.  Return False when it lives."""
    if kind == "pod":
        return not state.pod_life(note).alive and Sweeper(state).remove_pod(note)
    if state.life("members", note["name"]).alive or state.member_status(note)[0] not in ("stopped", "lost"):
        return False
    if state.read("members", note["name"]) is None:  # it went with its pod
        return False
    if not state.surely_ended(note) or hides_another(state, note):
        return False
    remove_member(state, note, False)
    return True


def _end_lost(state: State, note: Note, force: bool) -> None:
    """End what may still run, in its cgroup, of a member whose end nobody saw.

    Raise BadInput when it lives, or nothing proves that it does not.
    """
    from time import sleep

    name = note["name"]
    if force:
        _kill_noted(state, note)
        for _ in range(100):
            if state.surely_ended(note):
                return
            sleep(0.02)
    raise BadInput(
        f"member {name!r} may still run: its monitor was killed, and from here nothing proves its end",
        hint=f"nsrun rm -f {name}; or end its pod: nsrun pod rm -f {note['pod']}",
    )


def end_unreadable(state: State, kind: str, name: str) -> None:
    """End what lives under a name whose note can't be read, known by its locks alone, and set the note aside.

    Raise NsrunError when it does not end, and BadInput when it is not visible from here.
    """
    from nsrun.host import cgroup
    from nsrun.state.orphans import is_of_pod, pauses_of

    its_held = life.identity(state.held(kind, name))
    found, held = life_of_unreadable(state, kind, name)
    what = f"{kind[:-1]} {name!r}"
    if found.file and held == state.held(kind, name) and found.file != its_held:
        raise BadInput(f"{what} has just been made again", hint=f"nsrun {'pod ' if kind == 'pods' else ''}ls -a")
    ended = not found.alive and kind == "members" and _end_without_note(state, name)
    if 0 in (found.keeper, found.holder):
        raise BadInput(f"{what} lives, but is not visible from this PID namespace", hint="run it in the initial one")
    first: list[tuple[int, int]] = []  # (pidfd, pid) of pause, or of the member
    if found.keeper and kind == "pods":
        fd = life.open_pid(found.keeper, held, life.KEEPER)
        if fd < 0:
            fd = kernel.pidfd_of(found.keeper)
            if fd >= 0 and found.keeper not in pauses_of(state, name):  # check again, now that we have the pidfd
                os.close(fd)
                fd = -1
        first += [(fd, found.keeper)] if fd >= 0 else []
    elif found.keeper or found.holder:
        first = life.pidfds_of(found.keeper or found.holder or 0)
    group, leaf = os.path.split(cgroup.of_process(first[0][1])) if first and kind == "pods" else ("", "")
    if not is_of_pod(group, name):
        if leaf == "pause":
            for fd, _ in first:
                os.close(fd)
            raise BadInput(f"{held} is held by the pause of another pod, in the cgroup {group}", hint="nsrun doctor")
        group = ""
    if state.uid and held.startswith(f"{state.owned}/"):
        group = ""  # root made it, and removes it
    for fd, _ in first:
        send(fd, SIGKILL)
    gone = all([wait_dead(fd, 10) for fd, _ in first])
    for fd, _ in first:
        os.close(fd)
    if found.holder:
        fd = life.open_pid(found.holder, held, life.HOLDER)
        if fd >= 0:
            send(fd, SIGKILL)
            os.close(fd)
    if group:
        cgroup.kill(group)
    if not life.wait(held, -1, 10) or not (gone or group):
        raise NsrunError(f"{what} does not end", hint="ps -eo pid,ppid,stat,wchan,args")
    if group:
        cgroup.remove(group, kill=True)
        cgroup.remove(f"{group}.hold", kill=True)
    Sweeper(state).set_ended_aside(kind, name, its_held, bool(first) or ended)
    if is_there(state.path(kind, name)) and life.identity(state.path(kind, name, life.HELD)) == its_held:
        raise BadInput(
            f"{what} may live: its files are damaged, and not every process is visible from here",
            hint="run it in the machine's initial PID namespace: sudo nsenter --target 1 --all, or outside the container",
        )


def _end_without_note(state: State, name: str) -> bool:
    """End what still runs of members of this name that only their data speak of, because their monitors were killed.

    Return whether there was one.
    """
    found, known = False, {note["id"] for note in state.all("members")}
    for ident in state.idents():
        try:
            committed = state.committed(ident)
        except BrokenNote:
            continue
        if committed and committed["name"] == name and ident not in known:
            end_committed(state, committed)
            found = True
    return found


def end_committed(state: State, committed: Note) -> None:
    """End a member that nobody keeps, by its cgroup and process as `committed` beside its data names them.

    Raise NsrunError when it does not end.
    """
    from time import sleep

    from nsrun.host import cgroup

    group, ident = committed["cgroup"], committed["cgroup_id"]
    if not life.ask(f"{state.upper(committed['id'])}/{life.HELD}").alive and not state.surely_ended(committed):
        _kill_noted(state, committed)
    for _ in range(500):
        if state.surely_ended(committed):
            cgroup.remove_member(group, ident)
            return
        sleep(0.02)
    raise NsrunError(
        f"member {committed['name']!r} does not end, or nothing proves that from here",
        hint="ps -eo pid,ppid,stat,wchan,args; what it wrote is in " + state.upper(committed["id"]),
    )


def _kill_noted(state: State, note: Note) -> None:
    """SIGKILL the cgroup of a member that nobody keeps, unless another uses it by now.

    Also kill its process, wherever that was moved.
    """
    from nsrun.host import cgroup

    group, ident = note["cgroup"], note.get("cgroup_id", 0)
    others = [(n["cgroup"], n.get("cgroup_id", 0)) for n in state.all("members") if n["id"] != note["id"]]
    fd = state.noted_process(note)
    try:
        if group and (group, ident) not in others:
            cgroup.kill(group, ident)
        if fd >= 0:
            send(fd, SIGKILL)
    finally:
        if fd >= 0:
            os.close(fd)


def remove_pod(state: State, name: str, force: bool) -> bool:
    """Remove a pod that has ended, its members and everything they wrote; return whether there was one.

    Raise BadInput when it lives; with `force`, end it first, and it is no error when there is none.
    """
    try:
        note = state.read("pods", name) if is_name(name) else state.pod(name)  # state.pod raises UnknownError here
    except BrokenNote:
        if not force:
            raise
        end_unreadable(state, "pods", name)
        return True
    if note is None:
        if not force:
            state.pod(name)
        return False
    if pod_status(state, note) in ("running", "created", "removing"):
        if not force:
            raise BadInput(f"pod {name!r} is running", hint=f"nsrun pod stop {name}, or: nsrun pod rm -f {name}")
        try:
            note = settled(state, "pods", note)
        except UnknownError:
            return False
    if state.pod_life(note).kept:
        end_pod(state, note, SIGKILL)
    elif not Sweeper(state).remove_pod(note):
        raise BadInput(f"another process keeps pod {name!r}", hint="nsrun pod ls -a")
    return True
