# SPDX-License-Identifier: Apache-2.0
"""Follow a map: the kernel's events say when to look again.

They tell when a station ends, when a note comes or goes, and when a veth does (events.py).  Nothing tells that a
stranger has entered a namespace, nor what happens to the interfaces in there, so those are looked at from time to time:
the more a look costs, the less often, so that an idle watch never takes more than a hundredth of a processor.
"""

from __future__ import annotations

import time

from nsrun.errors import NsrunError
from nsrun.teach import facts
from nsrun.teach.events import LINKS, Events, Pace
from nsrun.teach.map.gather import OF_A_POD, gather, is_pid
from nsrun.teach.map.model import Map, ended, with_ended

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from nsrun.state import State

#: Seconds for which what has ended stays on the map, and between two maps.
MOMENT, LEAST = 3.0, 0.5
#: Of a processor: for the glance at who is where, and for the whole map, whose limits and mounts have no event either.
GLANCE, WHOLE = 0.003, 0.004


def maps(state: State, names: list[str]) -> Iterator[Map]:
    """Yield a map, and another one whenever it has changed.

    Raise as gather() does if it can't be drawn at first.  Return when all that was asked for are processes that ended.
    """
    shown = now = gather(state, names)
    only = _Wanted(state, names, now)
    deadlines: dict[tuple[int, int], float] = {}
    with Events() as events:
        events.network(LINKS)
        seen = _glance(now)
        glance, whole = Pace(GLANCE, 1.0), Pace(WHOLE, 2.0)
        while True:
            yield shown
            changed = False
            while not changed:
                _follow(events, state, now)
                due = min([glance.next, whole.next, *deadlines.values()])
                told = bool(events.wait(due - time.monotonic()))
                if told:
                    time.sleep(max(0.0, whole.last + LEAST - time.monotonic()))
                    events.wait(0)  # what comes together is drawn together
                elif time.monotonic() >= glance.next:
                    with glance:
                        before, seen = seen, _glance(now)
                    told = before != seen
                if told or time.monotonic() >= whole.next:
                    with whole:
                        now = only.gather()
                    seen = _glance(now)
                expired = {identity for identity, at in deadlines.items() if at <= time.monotonic()}
                new = with_ended(shown, now, expired)
                deadlines = {one: deadlines.get(one, time.monotonic() + MOMENT) for one in ended(new)}
                changed, shown = new != shown, new
            if only.have_ended and not shown.pods:
                yield shown
                return


def _follow(events: Events, state: State, shown: Map) -> None:
    """Wait for the end of these stations from now on, and for what comes to the directories of notes."""
    events.processes([(s.pid, s.start) for pod in shown.pods for s in pod.stations if not s.ended])
    events.directories((f"{state.run}/pods", f"{state.run}/members", state.owned))


class _Wanted:
    """What was asked for, as far as it is still there: a pid that is used again is not meant."""

    def __init__(self, state: State, names: list[str], now: Map) -> None:
        self.state, self.names, self.nothing = state, names, Map(now.machine, [])
        self.began = {name: _start(name) for name in names if is_pid(state, name)}
        self.have_ended = False

    def gather(self) -> Map:
        self.state.broken.clear()
        left = []
        for name in self.names:
            if name in self.began:
                there = 0 < self.began[name] == _start(name)
            else:
                try:
                    there = bool(self.state.pod(name))
                except (OSError, NsrunError):
                    there = False
            left += [name] if there else []
        self.have_ended = bool(self.names) and not left and len(self.began) == len(self.names)
        try:
            return gather(self.state, left) if left or not self.names else self.nothing
        except NsrunError:  # one of them has ended just now, which the next event tells
            return self.nothing


def _start(name: str) -> int:
    found = facts.process(int(name))
    return found.start if found else 0


def _glance(shown: Map) -> dict[Any, Any]:
    """Return who shares a namespace with somebody on the map, and the interfaces of each box.

    Other processes may come and go, on a busy machine hundreds a second.
    """
    stations = [station for pod in shown.pods for station in pod.stations]
    places = {(kind, place) for station in stations for kind, place in station.places.items() if kind in OF_A_POD}
    places -= set(shown.machine.items())
    found: dict[Any, Any] = {}
    for pid in facts.pids() if places else []:
        spaces = facts.namespaces_of(pid)
        if any((kind, str(inode)) in places for kind, inode in spaces.items()):
            found[pid] = spaces
    for pod in shown.pods:
        if pod.stations:
            found[pod.kind, pod.name] = facts.interfaces(pod.stations[0].pid)
    return found
