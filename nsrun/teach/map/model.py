# SPDX-License-Identifier: Apache-2.0
"""What a map shows, apart from how it is drawn.  Nothing here asks the kernel, and no text is escaped yet."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any

#: The lines, in the order in which they are drawn.  "shm" is the superblock at /dev/shm, which is no namespace: POSIX
#: shared memory is shared by whoever has the same one, whatever their IPC namespaces are.
KINDS = ("user", "net", "ipc", "shm", "uts", "pid", "mnt", "cgroup", "time")
TITLES = {"shm": "/dev/shm"}

#: What a process is to its box, in the words of the legend.
ROLES = {
    "pause": "holds the pod's namespaces open",
    "member": "started by nsrun join",
    "container": "first process of a container that another engine started",
    "exec": "started in a member or container later",
    "child": "started inside, and then took other namespaces",
    "helper": "a part of nsrun",
    "foreign": "came in from outside",
    "process": "asked for by its pid, or in the same namespaces",
}


@dataclass(frozen=True)
class Station:
    """A process, and those that it has started and that share all of its namespaces."""

    pid: int
    start: int  # with the pid, the identity of the process
    role: str  # one of ROLES
    name: str  # of the member or container (of `exec`: in which it is); for the others, what the process calls itself
    command: list[str]
    uid: int  # as the caller sees it
    uid_inside: int  # in its own user namespace; -1: unknown
    pids: list[int]  # its pid in each PID namespace, from the caller's to its own
    places: dict[str, str]  # kind → inode of the namespace, or MAJOR:MINOR; {}: we may not look
    children: int = 0
    ended: bool = False

    @property
    def title(self) -> str:
        if self.role in ("foreign", "child", "helper"):
            return f"{self.name} ({self.role})"
        return f"exec in {self.name}" if self.role == "exec" else self.name

    @property
    def inside(self) -> str:
        """Its pid in each PID namespace below the caller's."""
        return " > ".join(map(str, self.pids[1:])) or "-"

    @property
    def user(self) -> str:
        """Its uid inside, and, where that is another number, as the caller sees it."""
        inside = "?" if self.uid_inside < 0 else str(self.uid_inside)
        return inside if self.uid_inside == self.uid else f"{inside} ({self.uid})"


@dataclass(frozen=True)
class Line:
    """A namespace, or several that have one station each (`own`), or that of the caller (`machine`)."""

    kind: str
    places: list[str]
    stops: list[int]  # places in Pod.stations
    own: bool = False
    machine: bool = False
    nested: list[tuple[int, str]] = field(default_factory=list)  # (stop, the PID namespace that its own is a child of)

    @property
    def title(self) -> str:
        return TITLES.get(self.kind, self.kind)

    @property
    def label(self) -> str:
        if self.machine:
            return "this machine's own"
        return f"{len(self.places)}, each its own" if len(self.places) > 1 else self.places[0]


@dataclass(frozen=True)
class Stop:
    """One stage of a packet's way."""

    title: str
    details: list[str]


@dataclass(frozen=True)
class IdMap:
    """How the ids of a user namespace are seen by the caller: (first inside, first outside, how many)."""

    place: str
    owner: int  # the uid that made the namespace; -1: unknown
    uids: list[tuple[int, int, int]]
    gids: list[tuple[int, int, int]]

    @property
    def label(self) -> str:
        def told(ranges: list[tuple[int, int, int]]) -> str:
            parts = [f"{i} → {o}" + (f" (+{n - 1})" if n > 1 else "") for i, o, n in ranges]
            return ", ".join(parts) or "nothing is mapped"

        both = told(self.uids) if self.uids == self.gids else f"{told(self.uids)}; groups {told(self.gids)}"
        return both if self.owner < 0 else f"{both}; made by uid {self.owner}"


@dataclass(frozen=True)
class Pod:
    """A box of the map."""

    name: str
    kind: str  # pod; process (a pid that was asked for); orphan (it has outlived its pod, or no note speaks of it)
    about: list[str]  # whose it is, its status, …
    stations: list[Station]
    parents: dict[str, str] = field(default_factory=dict)  # of PID namespaces: child → parent
    way: list[Stop] = field(default_factory=list)
    maps: list[IdMap] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)
    helpers: list[str] = field(default_factory=list)  # parts of nsrun that share no more than the user namespace
    hidden: int = 0  # processes for which there is no room
    ended: bool = False

    @property
    def title(self) -> str:
        return {"pod": "pod ", "process": "process ", "orphan": "left over: "}[self.kind] + self.name


@dataclass(frozen=True)
class Map:
    machine: dict[str, str]  # the caller's own: kind → inode of the namespace, or MAJOR:MINOR
    pods: list[Pod]


def lines(pod: Pod, machine: dict[str, str]) -> list[Line]:
    """Return the lines of a box, those of one kind together, that of the first station (pause) before the others.

    Where nobody has anything but the caller's own of a kind, there is no line: see `of_the_machine`.
    """
    found = []
    skipped = of_the_machine(pod, machine)
    for kind in KINDS:
        if kind in skipped:
            continue
        stops: dict[str, list[int]] = {}
        for number, station in enumerate(pod.stations):
            if place := station.places.get(kind):
                stops.setdefault(place, []).append(number)
        alone = []
        for place, on_it in stops.items():
            if place == machine.get(kind):
                continue
            # the pod's own is a line even if only pause is on it: who else could be, is what one looks for
            if len(on_it) > 1 or (on_it == [0] and kind not in ("mnt", "cgroup")):
                found.append(Line(kind, [place], on_it, nested=_nested(pod, kind, place, on_it[:1])))
            else:
                alone.append((on_it[0], place))
        if alone:
            alone.sort()
            nested = [link for stop, place in alone for link in _nested(pod, kind, place, [stop])]
            found.append(Line(kind, [p for _, p in alone], [s for s, _ in alone], own=True, nested=nested))
        if hollow := stops.get(machine.get(kind, "")):
            found.append(Line(kind, [machine[kind]], hollow, machine=True))
    return found


def of_the_machine(pod: Pod, machine: dict[str, str]) -> list[str]:
    """Return the kinds of which every station of a box has the caller's own."""
    seen = [station for station in pod.stations if station.places]
    return [kind for kind in KINDS if seen and all(s.places.get(kind) in (machine.get(kind), None) for s in seen)]


def _nested(pod: Pod, kind: str, place: str, stops: list[int]) -> list[tuple[int, str]]:
    parent = pod.parents.get(place, "")
    known = any(parent == station.places.get(kind) for station in pod.stations)
    return [(stop, parent) for stop in stops] if kind == "pid" and parent and known else []


# ---- what has just ended -----------------------------------------------------------------------------------------


def with_ended(before: Map, now: Map, expired: Collection[tuple[int, int]] = ()) -> Map:
    """Return `now`, together with the pods and stations of `before` that have ended since, marked as ended.

    `expired`: the (pid, start) of those that were shown as ended for long enough.
    """
    new = {(pod.kind, pod.name): pod for pod in now.pods}
    pods = []
    for old in before.pods:
        pod = new.pop((old.kind, old.name), None)
        if pod is None:
            left = [replace(s, ended=True) for s in old.stations if (s.pid, s.start) not in expired]
            pods += [replace(old, ended=True, stations=left)] if left else []
        else:
            pods.append(_merged(old, pod, expired))
    return Map(now.machine, pods + list(new.values()))


def _merged(old: Pod, new: Pod, expired: Collection[tuple[int, int]]) -> Pod:
    """Keep those that ended where they were, so that nothing else moves."""
    alive = {(s.pid, s.start): s for s in new.stations}
    stations = []
    for station in old.stations:
        identity = (station.pid, station.start)
        if identity in alive:
            stations.append(alive.pop(identity))
        elif identity not in expired:
            stations.append(replace(station, ended=True))
    if not any(station.ended for station in stations):
        return new
    return replace(new, stations=stations + list(alive.values()))


def ended(shown: Map) -> list[tuple[int, int]]:
    """Return the (pid, start) of what is shown as ended."""
    return [(station.pid, station.start) for pod in shown.pods for station in pod.stations if station.ended]


# ---- for programs -----------------------------------------------------------------------------------------------


def plain(shown: Map) -> dict[str, Any]:
    """Return a map as JSON has it: the model, and the lines that are drawn from it."""
    found = asdict(shown)
    for pod, drawn in zip(shown.pods, found["pods"], strict=True):
        drawn["lines"] = [asdict(line) for line in lines(pod, shown.machine)]
    return found
