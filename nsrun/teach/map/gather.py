# SPDX-License-Identifier: Apache-2.0
"""Ask the kernel what is on the map.  The notes are asked for names, for ports, and for which processes are pauses and members.

What ends meanwhile is left out.  Each question is asked once for a map, because a map of twenty pods has hundreds of them.
"""

from __future__ import annotations

import os
import re

from nsrun.errors import BadInput, NsrunError
from nsrun.schema import is_name, is_number
from nsrun.spec.options import at
from nsrun.teach import facts
from nsrun.teach.map.model import IdMap, Map, Pod, Station, Stop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from nsrun.state import Note, State

#: By which namespaces a process belongs to a box.  One that is asked for by its pid may be of an engine that runs all of
#: a user's containers in one user namespace, so that one says nothing there.
OF_A_POD = ("user", "pid", "net", "ipc", "uts", "mnt")
OF_A_PROCESS = OF_A_POD[1:]
#: The stations of one box: more have no room, and are counted.
MOST = 48

#: What a process executes that nsrun wrote to memory.  Anybody can write such a file, so it explains a process, and hides none.
_OURS, _MONITOR = "/memfd:nsrun-", "/memfd:nsrun-monitor (deleted)"


def gather(state: State, names: Iterable[str] = ()) -> Map:
    """Return the map of these pods and processes, or, without names, of all pods that live and of what has outlived one.

    Raise UnknownError for a pod that does not live, and BadInput for a pid that no process has.
    """
    look = _Look(state)
    names = list(dict.fromkeys(names))
    notes, pids = _named(state, names) if names else (state.all("pods"), [])
    known = _members(state)
    pods = []
    for note in notes:
        pause = _pid(state, "pods", note)
        if pause and pause in look.spaces:
            pods.append(_pod(look, note, pause, known.pop(note["id"], [])))
    if state.broken and not names:
        pods += _damaged(look)
    if pids:
        pods += _processes(look, pids, known, pods)
    if not names:
        pods += _orphans(look, known)
    return Map(look.machine, pods)


def is_pid(state: State, name: str) -> bool:
    """Return whether an argument means a process: a number that is the name of a pod means the pod."""
    return is_number(name) and len(name) < 10 and not (is_name(name) and name in state.names("pods"))


def _named(state: State, names: list[str]) -> tuple[list[Note], list[int]]:
    """Return the notes of the pods that are named, and the pids."""
    notes: list[Note] = []
    pids = []
    for name in names:
        if is_pid(state, name):
            if not facts.process(int(name)):
                raise BadInput(f"there is no process {name}", hint="nsrun pod ps POD; ps -e")
            pids.append(int(name))
        else:
            notes.append(state.pod(name))
    return notes, pids


def _pid(state: State, kind: str, note: Note) -> int:
    """Return the pid of a pause or of a member's first process; 0 when it has ended, or is not visible from here."""
    try:
        if kind == "members" and (fd := state.noted_process(note)) >= 0:  # which reads no note again
            pid = int(note["process"][0])
        else:
            fd, pid = state.pause(note) if kind == "pods" else state.process(note)
    except (OSError, NsrunError):
        return 0
    if fd >= 0:
        os.close(fd)
    return pid


def _members(state: State) -> dict[str, list[tuple[Note, int]]]:
    """Return the members that live: id of the pod → [(note, pid)]."""
    found: dict[str, list[tuple[Note, int]]] = {}
    for note in state.all("members"):
        if pid := _pid(state, "members", note):
            found.setdefault(note["pod_id"], []).append((note, pid))
    return found


class _Look:
    """What was asked of the kernel so far."""

    def __init__(self, state: State) -> None:
        self.state = state
        own = facts.namespaces_of(os.getpid())
        self.machine = {kind: str(inode) for kind, inode in own.items()}
        if device := facts.shm(os.getpid()):
            self.machine["shm"] = device
        self.spaces: dict[int, dict[str, int]] = {}
        self.inside: dict[tuple[str, int], list[int]] = {}  # a namespace that is not the caller's → who is in it
        for pid in facts.pids():
            spaces = self.spaces[pid] = facts.namespaces_of(pid)
            for kind, inode in spaces.items():
                if inode != own.get(kind):
                    self.inside.setdefault((kind, inode), []).append(pid)
        self.placed: set[int] = set()  # who is in some box already
        self.devices: dict[int, str] = {}  # mount namespace → superblock of /dev/shm
        self.maps: dict[int, list[tuple[int, int, int]]] = {}  # user namespace → its map of uids
        self._links: list[facts.Link] | None = None
        self._claims: dict[int, str] | None = None
        self._limited: bool | None = None
        self._common: set[str] | None = None
        self._controllers: dict[str, tuple[int, str]] | None = None

    def shm(self, process: facts.Process) -> str:
        place = process.namespaces.get("mnt", 0)
        if place not in self.devices:
            self.devices[place] = facts.shm(process.pid)
        return self.devices[place]

    def uid_inside(self, process: facts.Process) -> int:
        """Return the uid of a process in its own user namespace; -1 when that is not known."""
        place = process.namespaces.get("user", 0)
        if place not in self.maps:
            self.maps[place] = facts.id_map(process.pid)
        return next((i + process.uid - o for i, o, n in self.maps[place] if o <= process.uid < o + n), -1)

    @property
    def limited(self) -> bool:
        """Return whether this machine has controllers that could limit anybody."""
        if self._limited is None:
            from nsrun.host import cgroup

            self._limited = len(cgroup.missing()) < 3
        return self._limited

    @property
    def controllers(self) -> dict[str, tuple[int, str]]:
        if self._controllers is None:
            self._controllers = facts.controllers()
        return self._controllers

    def container(self, pid: int) -> str:
        """Return what another engine calls the container that a process is in; "" when it is in none.

        A container has a cgroup in which nobody has the machine's own processes and mounts in view.  Its name is that of
        the cgroup, or the beginning of an id in its path, as the engines print it.
        """
        if self._common is None:
            ours = {(kind, int(self.machine[kind])) for kind in ("pid", "mnt") if kind in self.machine}
            around = (facts.group(pid) for pid, spaces in self.spaces.items() if ours <= set(spaces.items()))
            self._common = {above for path in around for above in _and_above(path)}
        path = facts.group(pid) if self.spaces.get(pid) else ""
        if not path or path in self._common or ".." in path.split("/"):
            return ""
        ids = re.findall(r"[0-9a-f]{64}", path)
        return str(ids[-1][:12]) if ids else path.rpartition("/")[2].removesuffix(".scope")

    def links(self) -> list[facts.Link]:
        if self._links is None:
            try:
                self._links = facts.own_links()
            except OSError:
                self._links = []
        return self._links

    def claims(self) -> dict[int, str]:
        """As root, return what owners call the members of their pods: pid → name.  Believe them no more than that."""
        if self._claims is None:
            from nsrun.lifecycle import owners

            self._claims = {member["pid"]: member["name"] for member in owners.members(self.state)}
        return self._claims

    def related(self, seeds: Iterable[int], kinds: tuple[str, ...]) -> set[int]:
        """Return the processes that share a namespace with one of the seeds, and not with the caller."""
        found = set(seeds)
        for pid in list(found):
            for kind in kinds:
                found.update(self.inside.get((kind, self.spaces.get(pid, {}).get(kind, 0)), []))
        return found


def _and_above(path: str) -> Iterator[str]:
    """Yield a path of a cgroup and those of the cgroups above it."""
    while path:
        yield path
        path = path.rpartition("/")[0]
    yield "/"


# ---- the stations of a box ---------------------------------------------------------------------------------------


class _Crew:
    """The processes of a box, each as a station of its own or counted with the one that it descends from."""

    def __init__(self, look: _Look, seeds: dict[int, tuple[str, str]], kinds: tuple[str, ...], outsiders: str) -> None:
        """`seeds`: pid → (role, name).  `outsiders`: the role of those whom nothing explains."""
        self.look, self.seeds, self.outsiders = look, seeds, outsiders
        found = [process for pid in look.related(seeds, kinds) if (process := facts.process(pid))]
        found = [process for process in found if process.ppid != os.getpid()]  # a helper of ours, that looks into them
        self.processes = {p.pid: p for p in sorted(found, key=lambda p: (p.start, p.pid)) if p.state not in "ZX"}
        look.placed |= self.processes.keys()
        self.pause = next((pid for pid, (role, _) in seeds.items() if role == "pause"), 0)
        self.names = {self._mounts(pid): name for pid, (role, name) in seeds.items() if role == "member"}
        # of another engine: pid → its container, and each container's first process
        self.containers: dict[int, str] = {}
        if outsiders == "process":
            self.containers = {pid: name for pid in self.processes if (name := look.container(pid))}
        self.firsts: dict[str, int] = {}
        for pid, name in self.containers.items():
            self.firsts.setdefault(name, pid)
        self.home: dict[int, int] = {}  # pid → pid of its station
        self.role: dict[int, tuple[str, str]] = {}  # pid of a station → (role, name)
        self.children: dict[int, int] = {}
        for pid in self.processes:
            self._place(self.processes[pid])

    def _mounts(self, pid: int) -> int:
        process = self.processes.get(pid)
        return process.namespaces.get("mnt", -pid) if process else -pid

    def _place(self, process: facts.Process) -> None:
        home = self._home_of(process)
        if home and self.processes[home].namespaces == process.namespaces and process.pid not in self.seeds:
            self.home[process.pid] = home
            self.children[home] = self.children.get(home, 0) + 1
            return
        self.home[process.pid] = process.pid
        self.role[process.pid] = self._role_of(process, home)

    def _home_of(self, process: facts.Process) -> int:
        """Return the station that a process descends from; 0 for one that came from outside."""
        if self.outsiders == "process":
            return self._home_in_container(process)
        if process.pid in self.seeds:
            return 0
        if process.ppid != self.pause:
            return self.home.get(process.ppid, 0)
        # its parent has ended, and pause has adopted it: user_namespaces aside, it still is where its parent was
        same = (pid for pid in self.role if pid != self.pause and self.processes[pid].namespaces == process.namespaces)
        return next(same, self.pause)

    def _home_in_container(self, process: facts.Process) -> int:
        """Do the same in a box that nsrun did not make."""
        container = self.containers.get(process.pid, "")
        home = self.home.get(process.ppid, 0)
        if not container or not home or self.containers.get(home) == container:
            return home
        return self.firsts[container]  # its parent has ended, and the first process of the pod has adopted it

    def _role_of(self, process: facts.Process, home: int) -> tuple[str, str]:
        if self.outsiders == "process":
            return self._role_in_container(process, home)
        if process.pid in self.seeds:
            return self.seeds[process.pid]
        if home:
            return ("foreign" if self.role[home][0] == "foreign" else "child"), process.name
        if facts.program(process.pid).startswith(_OURS):
            return "helper", process.name
        member = self.names.get(self._mounts(process.pid), "")
        group = name_of_cgroup(process.pid) if self.pause else ""
        if facts.program(process.ppid) == _MONITOR or (group and group == member):
            return "exec", member or group or process.name
        return self.outsiders, process.name

    def _role_in_container(self, process: facts.Process, home: int) -> tuple[str, str]:
        container = self.containers.get(process.pid, "")
        if container and self.firsts[container] == process.pid:
            return "container", container
        if container and not home:
            return "exec", container
        if not container and self._has_entered(process):
            return "foreign", process.name
        return ("child" if container and process.pid not in self.seeds else "process"), process.name

    def _has_entered(self, process: facts.Process) -> bool:
        """Return whether a process shares a namespace with a container, and not with the caller."""
        shared = {place for pid in self.containers for place in self.processes[pid].namespaces.items()}
        own = {place for place in process.namespaces.items() if place[0] in OF_A_PROCESS}
        return any(self.look.machine.get(kind) != str(inode) for kind, inode in own & shared)

    def stations(self) -> tuple[list[Station], int]:
        """Return the stations in the order in which they are drawn, and the number of those for which there is no room."""
        order = sorted(set(self.role) - self.helpers(), key=self._order)
        return [self._station(pid) for pid in order[:MOST]], len(order[MOST:])

    def helpers(self) -> set[int]:
        """Return the parts of nsrun that are in the pod's user namespace, to reach its files, and in no other of its namespaces."""
        pause = self.processes.get(self.pause)
        shared = {place for place in pause.namespaces.items() if place[0] in OF_A_PROCESS} if pause else set()
        return {
            pid
            for pid, (role, _) in self.role.items()
            if role == "helper" and not shared & set(self.processes[pid].namespaces.items())
        }

    def _order(self, pid: int) -> tuple[int, int, int, int]:
        """Pause, then the members by age, each with what was started in it, then the rest."""
        role, name = self.role[pid]
        start = self.processes[pid].start
        if role == "pause":
            return 0, 0, 0, pid
        boss = pid
        if role == "child":
            boss = self.home.get(self.processes[pid].ppid, pid)
        elif role == "exec":
            boss = next((p for p, told in self.role.items() if told in (("member", name), ("container", name))), pid)
        if boss in self.role and self.role[boss][0] in ("member", "container", "exec", "process"):
            return 1, self.processes[boss].start, start, pid
        return 2, start, 0, pid

    def _station(self, pid: int) -> Station:
        process = self.processes[pid]
        role, name = self.role[pid]
        places = {kind: str(inode) for kind, inode in process.namespaces.items()}
        if places and (device := self.look.shm(process)):
            places["shm"] = device
        return Station(
            pid,
            process.start,
            role,
            name,
            process.command or [f"[{process.name}]"],
            process.uid,
            self.look.uid_inside(process),
            process.pids,
            places,
            self.children.get(pid, 0),
        )


def name_of_cgroup(pid: int) -> str:
    """Return NAME of the cgroup m-NAME in which nsrun starts the processes of a member; "" when it is in another."""
    from nsrun.host import cgroup

    for part in cgroup.of_process(pid).split("/"):
        if part.startswith("m-") and is_name(part[2:]):
            return part[2:]
    return ""


# ---- the boxes -------------------------------------------------------------------------------------------------


def _pod(look: _Look, note: Note, pause: int, members: list[tuple[Note, int]]) -> Pod:
    seeds = {pause: ("pause", "pause"), **{pid: ("member", member["name"]) for member, pid in members}}
    if (note.get("user") and not look.state.uid) or look.state.broken:
        seeds = _unnoted(look, pause) | seeds
    about = [f"owner {note['owner']}", *(["removing"] if look.state.is_being_removed(note["name"]) else [])]
    return _box(look, note["name"], "pod", about, seeds, OF_A_POD, "foreign", note)


def _damaged(look: _Look) -> list[Pod]:
    """Return the pods that live and whose notes can't be read."""
    from nsrun.state.orphans import unreadable

    found = []
    for name, now in unreadable(look.state, "pods"):
        if now.keeper and now.keeper in look.spaces:
            seeds = {**_unnoted(look, now.keeper), now.keeper: ("pause", "pause")}
            found.append(_box(look, name, "pod", ["its note is damaged"], seeds, OF_A_POD, "foreign", None))
    return found


def _unnoted(look: _Look, pause: int) -> dict[int, tuple[str, str]]:
    """Return the members of a pod whose notes can't be read, or are a user's: the first that a monitor started in each rootfs.

    Their names are those of their cgroups, or, without cgroups, what the owner says.
    """
    found: dict[int, tuple[str, str]] = {}
    taken = set()
    processes = [p for pid in look.related([pause], OF_A_POD) if pid != pause and (p := facts.process(pid))]
    for process in sorted(processes, key=lambda p: (p.start, p.pid)):
        place = process.namespaces.get("mnt", 0)
        if place in taken or facts.program(process.ppid) != _MONITOR:
            continue
        taken.add(place)
        name = name_of_cgroup(process.pid) or look.claims().get(process.pid, "")
        found[process.pid] = ("member", name or process.name)
    return found


def _processes(look: _Look, pids: list[int], members: dict[str, list[tuple[Note, int]]], pods: list[Pod]) -> list[Pod]:
    """Return the pods in which these processes are, and a box of those that are in none."""
    found: list[Pod] = []
    for note in look.state.all("pods"):
        pause = _pid(look.state, "pods", note)
        own = {place for place in look.spaces.get(pause, {}).items() if look.machine.get(place[0]) != str(place[1])}
        inside = [pid for pid in pids if pid == pause or own & set(look.spaces.get(pid, {}).items())]
        if inside:
            pids = [pid for pid in pids if pid not in inside]
            if all(pod.name != note["name"] for pod in pods):
                found.append(_pod(look, note, pause, members.get(note["id"], [])))
    if pids:
        seeds = {p.pid: ("process", p.name) for pid in pids if (p := facts.process(pid))}
        title = " and ".join(map(str, pids))
        found.append(_box(look, title, "process", [], seeds, OF_A_PROCESS, "process", None))
    return found


def _orphans(look: _Look, members: dict[str, list[tuple[Note, int]]]) -> list[Pod]:
    """Return the members that have outlived their pods, and the processes of nsrun's that no note speaks of."""
    from nsrun.state import orphans

    found = []
    left = [one for members_ in members.values() for one in members_]
    elsewhere = {pid for (kind, _), pids in look.inside.items() if kind == "pid" for pid in pids} - look.placed
    for lost in orphans.processes(look.state) if elsewhere else []:  # which looks at all open files
        if lost.name == "pause" and lost.pid in look.spaces:
            inside = look.related([lost.pid], OF_A_POD)
            seeds = {
                lost.pid: ("pause", "pause"),
                **{pid: ("member", note["name"]) for note, pid in left if pid in inside},
            }
            about = [f"of {lost.path}, which is gone: no note speaks of it"]
            found.append(_box(look, str(lost.pid), "orphan", about, seeds, OF_A_POD, "foreign", None))
    for note, pid in left:
        if pid not in look.placed:
            about = [f"member of pod {note['pod']}, which has ended"]
            seeds = {pid: ("member", note["name"])}
            found.append(_box(look, note["name"], "orphan", about, seeds, OF_A_PROCESS, "foreign", None))
    return found


def _box(
    look: _Look,
    name: str,
    kind: str,
    about: list[str],
    seeds: dict[int, tuple[str, str]],
    kinds: tuple[str, ...],
    outsiders: str,
    note: Note | None,
) -> Pod:
    crew = _Crew(look, seeds, kinds, outsiders)
    stations, hidden = crew.stations()
    lead = stations[0].pid if stations else 0
    return Pod(
        name, kind, about, stations, _parents(look, stations), _way(look, lead, note), _id_maps(look, stations),
        _limits(look, crew, stations, note), sorted(f"{crew.role[pid][1]} {pid}" for pid in crew.helpers()), hidden,
    )  # fmt: skip


def _parents(look: _Look, stations: list[Station]) -> dict[str, str]:
    """Return the parents of the PID namespaces that the first station is not in."""
    found: dict[str, str] = {}
    usual = {look.machine.get("pid"), stations[0].places.get("pid") if stations else ""}
    for station in stations:
        place = station.places.get("pid")
        if place and place not in usual and place not in found:
            try:
                found[place] = str(facts.namespace(f"/proc/{station.pid}/ns/pid").parent or "")
            except OSError:
                continue
    return {child: parent for child, parent in found.items() if parent}


def _id_maps(look: _Look, stations: list[Station]) -> list[IdMap]:
    found: dict[str, IdMap] = {}
    for station in stations:
        place = station.places.get("user")
        if place and place != look.machine.get("user") and place not in found:
            try:
                owner = facts.namespace(f"/proc/{station.pid}/ns/user").owner
            except OSError:
                owner = -1
            found[place] = IdMap(place, owner, facts.id_map(station.pid, "uid"), facts.id_map(station.pid, "gid"))
    return list(found.values())


# ---- the way of a packet ----------------------------------------------------------------------------------------


def _way(look: _Look, pid: int, note: Note | None) -> list[Stop]:
    """Return what a packet passes from outside to a process: ports, bridge, veth, the pod's interfaces, its lo."""
    place = look.spaces.get(pid, {}).get("net", 0)
    if not place:
        return []
    if str(place) == look.machine.get("net"):
        return [Stop("this machine's network", [])]
    mode, ports = (note["network"]["mode"], look.state.ports(note)) if note else ("", [])
    way = (
        [
            Stop(
                "ports",
                [
                    f"{at(p['host_ip'], p['host_port'])} → {p['pod_port']}{'/udp' if p['protocol'] == 'udp' else ''}"
                    for p in ports
                ],
            )
        ]
        if ports
        else []
    )
    interfaces = facts.interfaces(pid)
    if mode in ("bridge", ""):
        way += _bridges(look, pid, interfaces, (note["network"].get("gateway", "") if note else ""))
    if mode == "pasta":
        way.append(Stop("pasta", ["a process outside"]))
    for one in sorted(interfaces, key=lambda one: one.name == "lo"):
        way.append(Stop(one.name, one.addresses or ["no address"] if one.up else ["down"]))
    listening = sorted(facts.listening(pid))
    return [*way, Stop("listening", [str(port) for port in listening])] if listening else way


def _bridges(look: _Look, pid: int, interfaces: list[facts.Interface], gateway: str) -> list[Stop]:
    """Return the caller's ends of the veths of another network namespace, and the bridges that they are ports of."""
    inside = {one.index for one in interfaces if one.index}
    number = facts.netns_number(pid) if any(link.peer and link.netns >= 0 for link in look.links()) else -1
    found = []
    for link in look.links():
        if number >= 0 and link.netns == number and link.peer in inside:
            bridge = next((one.name for one in look.links() if one.index == link.master), "")
            if bridge:
                found.append(Stop(bridge, [gateway or "bridge"]))
            found.append(Stop(link.name, [f"port of {bridge}" if bridge else "of this machine"]))
    return found


# ---- limits ----------------------------------------------------------------------------------------------------


def _limits(look: _Look, crew: _Crew, stations: list[Station], note: Note | None) -> list[str]:
    """Return what the cgroups and the /dev/shm of a box allow, and what is used of it."""
    if note:
        return _of_pod(look, note) + _sizes(look, stations[:1])
    by_group: dict[str, list[str]] = {}
    for station in stations if any(version for version, _ in look.controllers.values()) else []:
        whose = crew.containers.get(station.pid, "")
        if whose not in by_group and crew.role[station.pid][0] != "foreign":
            by_group[whose] = _of_process(look, station.pid)
    return _told(by_group) + _sizes(look, stations)


def _told(by_group: dict[str, list[str]]) -> list[str]:
    """Return the limits, with the container that each holds for, unless all have the same."""
    if len({tuple(limits) for limits in by_group.values()}) == 1:
        return next(iter(by_group.values()))
    return [f"{whose}: {limit}" if whose else limit for whose, limits in by_group.items() for limit in limits]


def _of_pod(look: _Look, note: Note) -> list[str]:
    from nsrun.host import cgroup

    if not look.limited or not note["cgroup"]:
        return []  # there is no controller, so nobody has a limit
    used = cgroup.usage(note["cgroup"], note.get("cgroup_id", 0))
    found = []
    if used.get("memory_limit") is not None:
        found.append(f"memory {size(used['memory'] or 0)} of {size(used['memory_limit'])}")
    if used.get("cpu_limit") is not None:
        found.append(f"processors {used['cpu_limit']:g}")
    if used.get("pids_limit") is not None:
        found.append(f"processes {used['pids']} of {used['pids_limit']}")
    return found


def _of_process(look: _Look, pid: int) -> list[str]:
    limits = facts.limits(pid, look.controllers)
    found = []
    if limit := limits.get("memory"):
        found.append(f"memory {size(limit.used)} of {size(int(limit.most))}")
    if limit := limits.get("cpu"):
        found.append(f"processors {limit.most:g}")
    if limit := limits.get("pids"):
        found.append(f"processes {limit.used} of {int(limit.most)}")
    return found


def _sizes(look: _Look, stations: list[Station]) -> list[str]:
    """Return how large each /dev/shm is that has a size and is not the machine's own."""
    found: dict[str, int] = {}
    for station in stations:
        place = station.places.get("shm", "")
        mount = facts.mount_at(station.pid, "/dev/shm") if place not in {"", look.machine.get("shm"), *found} else None
        for option in mount.superblock if mount else []:
            if option.startswith("size=") and option.endswith("k") and is_number(option[5:-1]):
                found[place] = int(option[5:-1]) << 10
    return [f"/dev/shm {', '.join(size(number) for number in dict.fromkeys(found.values()))}"] if found else []


def size(number: int) -> str:
    """Return a number of bytes with a binary unit, as the options of nsrun take it: 64 MiB."""
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if number >= 1 << shift:
            return f"{number / (1 << shift):.3g} {unit}"
    return f"{number} B"
