# SPDX-License-Identifier: Apache-2.0
"""`nsrun rename`: another name for a member, whether it runs or not (State.rename_member has the order of the steps)."""

from __future__ import annotations

import os

from nsrun import kernel
from nsrun.errors import BadInput, UnknownError
from nsrun.lifecycle.stop import lock_of, settled
from nsrun.schema import check_name, is_there
from nsrun.state.sweep import Sweeper, drop_plans, hides_another

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsrun.state import Note, State


def check(state: State, note: Note, new: str) -> None:
    """Raise NsrunError, before anything is done, for a name that can't be one or that something has."""
    check_name(new, "member")
    if new == note["name"]:
        raise BadInput(f"member {new!r} has this name already", hint="nsrun ls -a")
    if is_there(state.path("members", new)):
        raise BadInput(f"member name {new!r} is taken", hint=f"choose another name, or: nsrun rm -f {new}")
    if hides_another(state, note):
        raise BadInput(f"the note of member {note['name']!r} is that of an earlier one", hint="nsrun ls -a")


def rename_member(state: State, note: Note, new: str) -> None:
    """Give a member another name.  Raise NsrunError when the name can't be had; then nothing has changed."""
    from time import monotonic, sleep

    end = monotonic() + 10
    while not _rename(state, settled(state, "members", note), new):
        if monotonic() >= end:
            raise BadInput(f"another nsrun starts member {note['name']!r}", hint="try again")
        sleep(0.01)


def _rename(state: State, note: Note, new: str) -> bool:
    """Do the same, unless another nsrun starts the member: then it writes by the name that it knows."""
    check_name(new, "member")
    if is_there(state.path("members", new)):
        Sweeper(state).give_way("members", new)  # what never began under this name does not keep it
    check(state, note, new)
    lock = state.lock("names")
    try:
        now = state.read("members", note["name"])
        if now is None or now["id"] != note["id"]:
            raise UnknownError(f"member {note['name']!r} has just been removed, or renamed", hint="nsrun ls -a")
        with kernel.Fd(lock_of(state, note["name"])) as ours:
            if ours < 0:
                return False
            state.rename_member(state.read("members", note["name"]) or now, new)
        drop_plans(state, "members", note["name"])
        return True
    finally:
        os.close(lock)
