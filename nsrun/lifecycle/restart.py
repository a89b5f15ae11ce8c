# SPDX-License-Identifier: Apache-2.0
"""What happens at the end of a member with --restart or --rm: its monitor executes nsrun, which calls this."""

from __future__ import annotations

import os

from nsrun import kernel
from nsrun.errors import NsrunError
from nsrun.lifecycle.stop import SIGTERM, end_pod_of, lock_of
from nsrun.state import State, is_to_restart, life, timestamp
from nsrun.state.sweep import remove_ended_member

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nsrun.state import Note
    from nsrun.types import MemberNote


def _whose(state: State, name: str, held: int) -> Note | None:
    """Return the note of the member whose `held` the monitor has locked: it may have been renamed since it began."""
    note = state.read("members", name)
    inode = os.fstat(held).st_ino if held >= 0 else 0
    if not inode or (note and note.get("held", inode) == inode):
        return note
    return next((other for other in state.all("members") if other.get("held") == inode), None)


def ended(state: State, name: str, code: int, lead: int = -1, locks: tuple[int, int] = (-1, -1)) -> int:
    """Restart or remove a member that has ended, as its former monitor; return its exit status.

    The monitor left its signals blocked: removing (--rm) is not interrupted, and a restart ends as the member did.
    `lead` is the nsrun in the foreground that waits for us, when the pod's door forked us.  `locks` are the files by
    whose locks others know that we keep the member and its data.
    """
    found_note, ours = _taken(state, name, locks[0])
    with kernel.Fd(ours):  # executing the monitor closes it, too
        return code if found_note is None else _ended(state, found_note, code, lead, locks)


def _taken(state: State, name: str, held: int) -> tuple[Any, int]:
    """Return the note of the member, and the lock that keeps it from being renamed; -1: it could not be had."""
    for _ in range(100):
        note = _whose(state, name, held)
        if note is None:
            return None, -1
        try:
            with kernel.Fd(lock_of(state, note["name"], 10)) as ours:
                now = _whose(state, name, held)
                if ours < 0 or (now and life.identity(state.path("members", now["name"])) == life.identity(ours)):
                    return now, ours.take()
        except FileNotFoundError:
            continue  # it has just been renamed
    return _whose(state, name, held), -1


def _ended(state: State, note: MemberNote, code: int, lead: int, locks: tuple[int, int]) -> int:
    name = note["name"]
    if note["rm"]:
        try:
            remove_ended_member(state, note, its_cgroup=False)  # the monitor has removed the cgroup
            if note.get("ends_pod"):
                end_pod_of(state, note)
        except (OSError, NsrunError):
            pass  # the next command tries again, and reports what is in the way; our exit status is the member's
        return code
    if state.marked("members", name, "stop") or not is_to_restart(note, code):
        return code
    options = state.read("members", name, "options.json")
    pod, found = state.note_and_life("pods", note["pod"])
    if options is None or pod is None or pod["id"] != note["pod_id"] or not found.kept:
        return code
    import _signal

    from nsrun.lifecycle.join import Former, join

    try:
        # `stop`, or Ctrl-C, may have come already; all other signals are for the restarted member
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, {SIGTERM, 2, 1})
        state.renew_exit(name)
        join(state, note["pod"], options, former=Former(note, lead, locks))
    except BaseException as error:
        # restore the former state: it has ended with this status, for which there is space even on a full disk
        state.record_exit(name, f"{code} {timestamp()}")
        state.save("members", name, note)
        if isinstance(error, Exception):
            raise
    return code
