# SPDX-License-Identifier: Apache-2.0
"""Follow a map: the kernel's events say when to look again.

pidfds tell when a station ends, inotify(7) when a note comes or goes, rtnetlink(7) when a veth does.  Nothing tells an
ordinary process that a stranger has entered a namespace (setns(2) makes no event), nor what happens to the interfaces
in there, so those are looked at from time to time: the more a look costs, the less often, so that an idle watch never
takes more than a hundredth of a processor.
"""

from __future__ import annotations

import ctypes
import os
import select
import time

from nsrun import kernel
from nsrun.errors import NsrunError
from nsrun.teach import facts
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
_PIDFDS = 512

_IN_CREATE, _IN_DELETE, _IN_MOVE = 0x100, 0x200, 0xC0
_RTMGRP_LINK, _RTMGRP_IPV4_IFADDR = 1, 0x10


def maps(state: State, names: list[str]) -> Iterator[Map]:
    """Yield a map, and another one whenever it has changed.

    Raise as gather() does if it can't be drawn at first.  Return when all that was asked for are processes that ended.
    """
    shown = now = gather(state, names)
    only = _Wanted(state, names, now)
    deadlines: dict[tuple[int, int], float] = {}
    with _Events(state) as events:
        seen = _glance(now)
        glance, whole = _Pace(GLANCE, 1.0), _Pace(WHOLE, 2.0)
        while True:
            yield shown
            changed = False
            while not changed:
                events.follow(now)
                due = min([glance.next, whole.next, *deadlines.values()])
                told = events.wait(due - time.monotonic())
                if told:
                    time.sleep(max(0.0, whole.last + LEAST - time.monotonic()))  # what comes together is drawn together
                    events.drain()
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


class _Pace:
    """When to look again: after `least` seconds, or later, so that looking takes no more than this share of a processor."""

    def __init__(self, share: float, least: float) -> None:
        self.share, self.least = share, least
        self.last = time.monotonic()
        self.next = self.last + least

    def __enter__(self) -> None:
        self.began = time.thread_time()

    def __exit__(self, *_: object) -> None:
        self.last = time.monotonic()
        self.next = self.last + max(self.least, (time.thread_time() - self.began) / self.share)


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


class _Events:
    """What the kernel tells of its own accord."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.poller = select.poll()
        self.pidfds: dict[tuple[int, int], int] = {}
        self.link: Any = None
        self.inotify = -1

    def __enter__(self) -> _Events:
        from nsrun.host import wire

        self.link = wire.Socket(16, 0x80803, 0)  # AF_NETLINK, SOCK_RAW|SOCK_CLOEXEC|SOCK_NONBLOCK, NETLINK_ROUTE
        self.link.bind((0, _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR))
        self.poller.register(self.link.fileno(), select.POLLIN)
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.inotify = self.libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self.inotify >= 0:
            self.poller.register(self.inotify, select.POLLIN)
        return self

    def __exit__(self, *_: object) -> None:
        self.link.close()
        for fd in [*self.pidfds.values(), *([self.inotify] if self.inotify >= 0 else [])]:
            os.close(fd)

    def follow(self, shown: Map) -> None:
        """Wait for the end of these stations from now on, and for what comes to the directories of notes."""
        stations = [(s.pid, s.start) for pod in shown.pods for s in pod.stations if not s.ended][:_PIDFDS]
        for gone in self.pidfds.keys() - set(stations):
            fd = self.pidfds.pop(gone)
            self.poller.unregister(fd)
            os.close(fd)
        for station in stations:
            if station not in self.pidfds:
                try:
                    fd = kernel.pidfd_of(station[0])
                except OSError:
                    continue  # there are no descriptors left: the glance sees its end
                if fd >= 0:
                    self.pidfds[station] = fd
                    self.poller.register(fd, select.POLLIN)
        for directory in (f"{self.state.run}/pods", f"{self.state.run}/members", self.state.owned):
            # the same watch again, if there is one: inotify_add_watch(2)
            self.libc.inotify_add_watch(self.inotify, os.fsencode(directory), _IN_CREATE | _IN_DELETE | _IN_MOVE)

    def wait(self, seconds: float) -> bool:
        """Return whether something was told within this time."""
        return bool(self.poller.poll(max(0.0, seconds * 1000)))

    def drain(self) -> None:
        """Read what was told: that is all that there is to know, as everything is asked again."""
        for read in (lambda: self.link.recv(1 << 16), lambda: os.read(self.inotify, 1 << 16)):
            try:
                while read():
                    pass
            except OSError:
                continue  # there is no more (EAGAIN), or more than the socket could hold (ENOBUFS)
