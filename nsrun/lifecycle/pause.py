# SPDX-License-Identifier: Apache-2.0
"""Pause and unpause members: cgroup.freeze of cgroups(7), which needs no controller and which nobody inside can undo."""

from __future__ import annotations

import os

from nsrun.errors import BadInput, NsrunError, UnknownError
from nsrun.host import cgroup
from nsrun.lifecycle.stop import settled, thaw
from nsrun.state import PAUSED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsrun.state import Note, State

SECONDS = 10.0  # after which what has not frozen, or has not gone on, is an error


def check(state: State, note: Note, paused: bool) -> Note:
    """Return the note of a member that can be paused (or, with False, unpaused).  Raise NsrunError for any other."""
    note = settled(state, "members", note)
    name, status = note["name"], state.member_status(note)[0]
    if status not in ("running", "paused"):
        raise UnknownError(f"member {name!r} is {status}", hint="nsrun ls -a; only a running member can be paused")
    if paused and status == "paused":
        raise BadInput(f"member {name!r} is paused already", hint=f"nsrun unpause {name}")
    if not paused and status != "paused":
        raise BadInput(f"member {name!r} is not paused", hint=f"nsrun pause {name}")
    if not note["cgroup"]:
        raise BadInput(
            f"member {name!r} has no cgroup, and so can't be paused",
            hint=f"nsrun doctor tells why; nsrun kill -s STOP {name} stops its first process, if that does not ignore it",
        )
    cgroup.check_reach(note["cgroup"], note.get("cgroup_id", 0))
    return note


def pause_member(state: State, note: Note) -> None:
    """Freeze every process of a member, and wait until they are.  Raise NsrunError, and undo it, when they are not in time."""
    note = check(state, note, True)
    name, where = note["name"], (note["cgroup"], note.get("cgroup_id", 0))
    state.mark("members", name, PAUSED)
    # a compiled plan of exec has the note as its witness: it looks different now, so Python is asked, which refuses
    os.utime(state.path("members", name, "note"), follow_symlinks=False)
    if not cgroup.freeze(*where, True):
        state.unmark("members", name, PAUSED)
        raise UnknownError(f"member {name!r} has just ended", hint="nsrun ls -a")
    if cgroup.wait_frozen(*where, True, SECONDS):
        return
    thaw(state, note)
    raise NsrunError(
        f"member {name!r} was not frozen within {SECONDS:g} s, and goes on",
        hint="a process of it is in disk sleep: ps -eo pid,stat,wchan,args",
    )


def unpause_member(state: State, note: Note) -> None:
    """Let a paused member go on.  Raise NsrunError when it is not paused, or does not go on in time."""
    note = check(state, note, False)
    thaw(state, note)
    if not cgroup.wait_frozen(note["cgroup"], note.get("cgroup_id", 0), False, SECONDS):
        raise NsrunError(
            f"member {note['name']!r} is still frozen",
            hint=f"a cgroup above it is frozen: grep . {note['cgroup']}/../cgroup.freeze",
        )
