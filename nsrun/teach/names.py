# SPDX-License-Identifier: Apache-2.0
"""Tell which pod and member a process belongs to, and which process a word on the command line means.

Names come from nsrun's notes, and for a user's pod, as root, from its cgroups.  What is said about a process besides its
name comes from facts.py: a wrong note gives a process a wrong name, and nothing else.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from nsrun.errors import BadInput, NsrunError, UnknownError
from nsrun.host import cgroup
from nsrun.schema import is_number
from nsrun.state import BEGUN
from nsrun.teach import facts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nsrun.state import Note, State


@dataclass(frozen=True)
class Whose:
    """A process of a pod: its pause, the first process of a member, or another process of a member."""

    pod: str
    member: str  # "" for pause
    first: bool

    def __str__(self) -> str:
        return f"member {self.member} of pod {self.pod}" if self.member else f"pause of pod {self.pod}"

    @property
    def short(self) -> str:
        return self.member or "pause"


def known(state: State) -> dict[int, Whose]:
    """Return the processes that belong to pods of this state directory, as far as the caller may read it."""
    found: dict[int, Whose] = {}
    for note in state.all("members"):
        try:
            if state.member_status(note)[0] in BEGUN:
                _member(found, note["pod"], note["name"], _pid(state.process, note), note)
        except (OSError, NsrunError):
            continue  # nsrun doctor reports it
    for note in state.all("pods"):
        try:
            if not state.pod_life(note).kept:
                continue
            if pause := _pid(state.pause, note):
                found[pause] = Whose(note["name"], "", True)
            if not state.uid and note.get("user") and note.get("cgroup"):
                for member in cgroup.members(note["cgroup"], note.get("cgroup_id", 0)):
                    _member(found, note["name"], member, 0, {"cgroup": f"{note['cgroup']}/m-{member}"})
        except (OSError, NsrunError):
            continue
    return found


def _member(found: dict[int, Whose], pod: str, name: str, first: int, note: Note) -> None:
    pids = cgroup.pids(note["cgroup"], note.get("cgroup_id", 0)) if note.get("cgroup") else []
    if not first:  # of an owner's member root knows the cgroup only: its first process is the oldest one
        first = min(((p.start, p.pid) for pid in pids if (p := facts.process(pid))), default=(0, 0))[1]
    for pid in {*pids, first} - {0}:
        found[pid] = Whose(pod, name, pid == first)


def _pid(ask: Callable[[Note], tuple[int, int]], note: Note) -> int:
    """Return the pid that State.pause or State.process finds; 0 when it has ended, or is not visible from here."""
    fd, pid = ask(note)
    if fd >= 0:
        os.close(fd)
    return pid


def pid_of(word: str, whose: dict[int, Whose]) -> int:
    """Return the process that is meant by a pid, or by the name of a member or a pod, which stands for its pause.

    Raise UnknownError when there is no such process, and BadInput when several may be meant.
    """
    if is_number(word):
        pid = int(word)
        if facts.process(pid) is None:
            raise UnknownError(f"there is no process {word}", hint="it may have ended; ps -e lists those that live")
        return pid
    firsts = {pid: one for pid, one in whose.items() if one.first}
    found = {pid: one for pid, one in firsts.items() if word == (one.member or one.pod)}
    if len(found) > 1:
        several = ", ".join(f"{pid} ({one})" for pid, one in sorted(found.items()))
        raise BadInput(f"{word!r} may be several processes", hint=f"give the pid: {several}")
    if not found:
        names = sorted({one.member or one.pod for one in firsts.values()})
        there = f"there are {', '.join(names)}" if names else "no pod of yours runs"
        raise UnknownError(f"{word!r} is neither a pid nor the name of a member or pod", hint=there)
    return next(iter(found))
