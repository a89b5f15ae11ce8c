# SPDX-License-Identifier: Apache-2.0
"""Check a lab again when something has changed: the kernel's events (events.py) say when to look.

Some are about the lab alone, and so is the check that follows.  That a program was started somewhere on this machine is
only a reason to glance at who is where; the check follows when the glance has seen another process of the lab's, or one
in another namespace.  What is told of by no event, such as a socket that listens or a file that was written inside, is
seen soon after the last change, or else by the glances and checks that are made from time to time.
"""

from __future__ import annotations

import os
import time

from nsrun.teach import facts, progress, sessions
from nsrun.teach.events import IS_WRITTEN, LINKS, ROUTES, Events, Pace
from nsrun.teach.lab import MARK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from nsrun.state import State
    from nsrun.teach.lab import Lab, Row, Work

#: Seconds after a change: until then servers listen, and what was started has done what it does.
_LATER = (0.3, 1.2)
#: Seconds for which a process may still become what it was started for: execve(2) gives it the mark, unshare(2) a namespace.
_YOUNG = 1.0
#: Of a processor: for checks after an event about the lab, and about the machine; without event; and for the glances,
#: at what is new, and at everybody.  A watch of a lab in which nothing happens takes less than 1 %; 2 % while others open
#: programs without end.
_LAB, _MACHINE, _ANYWAY, _GLANCE, _WHOLE = 0.25, 0.002, 0.0015, 0.0015, 0.001


def checks(state: State, lab: Lab) -> Iterator[list[Row]]:
    """Yield the rows of a check, and again whenever they may have changed.  Raise BadInput when the lab is reset."""
    watch = _Watch(state, lab)
    with watch.events:
        while True:
            yield watch.check()
            watch.wait()


class _Watch:
    def __init__(self, state: State, lab: Lab) -> None:
        self.state, self.lab = state, lab
        self.events = Events()
        self.events.network(LINKS | ROUTES, rules=True)
        self.events.names()
        self.events.programs(_programs())
        self.seen: _Seen | None = None
        self.ours, self.machine, self.anyway = Pace(_LAB, 0.1), Pace(_MACHINE, 0.2), Pace(_ANYWAY, 2.0)
        self.glance, self.whole = Pace(_GLANCE, 0.05, 0.7), Pace(_WHOLE, 1.0)
        self.later: list[float] = []

    def check(self) -> list[Row]:
        """Check, and follow what the lab has now."""
        with self.ours, self.machine, self.anyway:
            work = sessions.work_of(self.state, self.lab)
            self.seen = self.seen or _Seen(work)
            rows = sessions.check(work)
            self.seen.take(work)
        self._follow(work, self.seen)
        return rows

    def _follow(self, work: Work, seen: _Seen) -> None:
        lives = {pid: process for pid in seen.known if (process := facts.process(pid, command_line=False))}
        # no process has begun at 0: one that has ended since it was seen is told of
        self.events.processes([(pid, lives[pid].start if pid in lives else 0) for pid in seen.known])
        places = {process.namespaces.get("mnt", 0): pid for pid, process in lives.items()}
        self.events.mount_namespaces({work.home["mnt"]: os.getpid(), **{p: pid for p, pid in places.items() if p}})
        state = self.state
        self.events.directories((f"{state.run}/pods", f"{state.run}/members", state.owned))
        own = facts.cgroup(os.getpid(), "memory")
        cgroups = {facts.cgroup(pid, "memory") for pid in lives} - {"", own}
        self.events.directories([work.directory, progress.directory(state), *cgroups], IS_WRITTEN)

    def wait(self) -> None:
        """Return when there is a reason for another check."""
        assert self.seen
        ours = machine = False
        look = again = False
        while True:
            due = [self.anyway.next, self.whole.next, *self.later[:1]]
            due += [self.ours.next] if ours else []
            due += [self.machine.next] if machine else []
            due += [self.glance.next] if look or again else []
            # one of a kind is enough: of programs there are hundreds a second, and any user can change a hostname
            reasons = ((look, {"program"}), (machine, {"name", "network"}), (ours, {"file", "mount"}))
            self.events.mute({kind for known, kinds in reasons if known for kind in kinds})
            told = self.events.wait(min(due) - time.monotonic())
            now = time.monotonic()
            ours |= bool(told & {"file", "mount"})
            machine |= bool(told & {"name", "network"})
            look |= bool(told & {"program", "process"})
            if now >= self.whole.next:
                with self.whole:
                    ours |= self.seen.changed(whole=True)
                look = again = False
            elif (look or again) and now >= self.glance.next:
                with self.glance:
                    ours |= self.seen.changed()
                look, again = False, look  # the program was opened, and does its work now: look once more
            if (ours and now >= self.ours.next) or (machine and now >= self.machine.next):
                self.later = [now + seconds for seconds in _LATER]
                return
            if self.later and now >= self.later[0]:
                self.later.pop(0)
                return
            if now >= self.anyway.next:
                return


class _Seen:
    """Which processes the lab has, and where they are, as far as a glance tells.

    Those are what the last check took for the lab's, what has its mark, and what shares a namespace with one of them
    that is not the machine's.  No glance is made during a check, so what the check starts itself is not seen, and
    nothing is missed that changes meanwhile.
    """

    def __init__(self, work: Work) -> None:
        self.home, self.mark = work.home.items(), f"{MARK}={work.id}".encode()
        self.everybody: dict[int, float] = {}  # pid → when it was seen first
        self.known: dict[int, Any] = {}  # pid → where a process of the lab's is, and what it executes
        self.mine: set[int] = set()
        self.places: set[tuple[str, int]] = set()  # the namespaces of the lab's
        self.sockets: dict[int, Any] = {}
        self.changed(whole=True)
        self.everybody = dict.fromkeys(self.everybody, 0.0)

    def take(self, work: Work) -> None:
        """Learn from a check which processes are the lab's; what is new to us is a change, once."""
        self.mine = {process.pid for process in work.mine}

    def changed(self, whole: bool = False) -> bool:
        """Return whether a process has come, gone or moved since.

        With `whole` look at everybody, and at who listens to which port.
        """
        now, pids = time.monotonic(), set(facts.pids()) - {os.getpid()}
        self.everybody = {pid: self.everybody.get(pid, now) for pid in pids}
        known = {}
        for pid, first in self.everybody.items():
            if (whole or pid in self.known or pid in self.mine or first + _YOUNG >= now) and (
                place := self._place(pid)
            ):
                known[pid] = place
        changed = known != self.known
        self.known = known
        self.places = {place for spaces, _ in known.values() for place in spaces.items()} - self.home
        if whole:
            listened, self.sockets = self.sockets, self._sockets()
            changed |= listened != self.sockets
        return changed

    def _place(self, pid: int) -> tuple[dict[str, int], str] | None:
        """Return where a process of the lab's is, and what it executes; None for others, which are looked at briefly."""
        ours = pid in self.mine or self.mark in _environment(pid)
        spaces = facts.namespaces_of(pid) if ours or self.places else {}
        return (spaces, facts.program(pid)) if spaces and (ours or not self.places.isdisjoint(spaces.items())) else None

    def _sockets(self) -> dict[int, Any]:
        """Return network namespace → interfaces and ports on which somebody listens, of those where the lab is."""
        places = {spaces["net"]: pid for pid, (spaces, _) in self.known.items() if "net" in spaces}
        return {place: (facts.interfaces(pid), sorted(facts.listening(pid))) for place, pid in places.items()}


def _environment(pid: int) -> list[bytes]:
    try:
        return facts.read(pid, "environ").split(b"\0")
    except OSError:
        return []


def _programs() -> list[str]:
    """Return the directories in which programs are, each once."""
    path = [*os.environ.get("PATH", "").split(":"), "/usr/bin", "/usr/sbin", "/bin", "/sbin"]
    found = dict.fromkeys(os.path.realpath(directory) for directory in path if directory.startswith("/"))
    return [directory for directory in found if os.path.isdir(directory)][:16]
