# SPDX-License-Identifier: Apache-2.0
"""All pods and members at once, for lists: `nsrun ls` must not take a second where a thousand pods run.

One pass in C reads the notes and asks the kernel about each (csrc/kernel.c, nsrun_census).  Here is decided of which the
answer is *plain*: the note is as it should be, it describes the `held` beside it, and if it is said to run, the lock
that says so is that of its keeper, whose process lives and is visible.  Whatever is not plain, State is asked about one
by one, as always.  Nothing is ever ended or removed because of what is said here.
"""

from __future__ import annotations

from nsrun.schema import accepts, matcher
from nsrun.state import PAUSED, codec, life

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsrun.state import Note, State

#: What speaks against a plain life, beside the note.
MARKS = {"pods": ("removing",), "members": ("exit", "stop", PAUSED)}


#: The number of notes from which on it pays to compile what checks them.
MANY = 40


class Seen:
    """A note that is as it should be; `running` is whether it plainly lives, with these pids.

    For a pod, `pid` is that of pause; for a member, that of its first process, and `inner` the same in the pod.
    """

    __slots__ = ("inner", "note", "pid", "running")

    def __init__(self, note: Note, running: bool, pid: int, inner: int) -> None:
        self.note, self.running, self.pid, self.inner = note, running, pid, inner


def look(state: State, kind: str, names: list[str]) -> dict[str, Seen]:
    """Return those of the named pods or members whose notes are as they should be."""
    try:
        rows = life.census(f"{state.run}/{kind}", names, MARKS[kind])
    except OSError:
        return {}
    shape = codec.SHAPES[kind]
    fits = matcher(shape) if len(names) >= MANY else lambda note: accepts(note, shape)
    found = {}
    for name, (data, (keeper, held, since, marks, number, pid, inner)) in zip(names, rows, strict=True):
        note = codec.quick(data, fits) if data else None
        if not note or note["name"] != name or note.get("held", held) != held or note.get("held_since", since) != since:
            continue
        if kind == "pods":
            running = keeper > 0 and not marks and bool(note.get("pause")) and not note.get("user")
            found[name] = Seen(note, running, keeper if running else 0, 0)
        else:
            running = pid > 0 and not marks and bool(note.get("process")) and note.get("pidfd") == number
            found[name] = Seen(note, running, pid if running else 0, inner if running else 0)
    return found
