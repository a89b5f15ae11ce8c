# SPDX-License-Identifier: Apache-2.0
"""List and describe pods, members, their processes and their use of resources, for `ls`, `inspect`, `ps` and `stats`."""

from __future__ import annotations

import os

from nsrun import kernel
from nsrun.errors import BadInput, NsrunError, UnknownError, UsageError
from nsrun.schema import is_name, is_number
from nsrun.spec import idmaps
from nsrun.state import ALIVE, BEGUN, life
from nsrun.state.census import Seen, look
from nsrun.state.orphans import unreadable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from nsrun.state import Note, State
    from nsrun.state.life import Life
    from nsrun.types import Maps, Port

SIGKILL, SIGTERM, SIGCONT = 9, 15, 18


def pod_status(state: State, note: Note) -> str:
    """Return created, running, removing, stopped, or lost (its maker ended before it was finished)."""
    found = state.pod_life(note)
    if found.kept:
        return "removing" if state.is_being_removed(note["name"]) else "running"
    if found.alive:
        return "created"
    return "stopped" if note.get("pause") else "lost"


def _pid(ask: Callable[[Note], tuple[int, int]], note: Note) -> int:
    """Return the pid that State.pause or State.process finds; 0 when it has ended, or is not visible from here."""
    try:
        fd, pid = ask(note)
    except BadInput:
        return 0
    if fd >= 0:
        os.close(fd)
    return pid


def pod_json(state: State, note: Note, members: list[Note]) -> dict[str, Any]:
    """Return a pod as docs/cli.md and `--json` show it; its namespaces come from the kernel.

    `members` are the notes of all members, of any pod.
    """
    status = pod_status(state, note)
    pid = _pid(state.pause, note) if status in ("running", "removing") else 0
    return _pod_json(state, note, members, status, pid, kernel.namespace_ids(pid) if pid else {})


_NETWORK = ("mode", "name", "ip", "ipv6", "ip6", "gateway", "bridge", "veth", "closed")


def _pod_json(
    state: State, note: Note, members: list[Note], status: str, pid: int, spaces: dict[str, int]
) -> dict[str, Any]:
    network = note["network"]
    return {
        "id": note["id"],
        "name": note["name"],
        "status": status,
        "pid": pid,
        "created": note["created"],
        "owner": note["owner"],
        "hostname": note["hostname"],
        "namespaces": spaces,
        "network": {key: network.get(key, "") for key in _NETWORK}
        | {"isolated": network.get("isolated", False), "mtu": network.get("mtu", 0)},
        "ports": state.ports(note),
        "members": [m["name"] for m in members if m["pod_id"] == note["id"]] + owners_members(state, note),
        "labels": note["labels"],
    }


def owners_members(state: State, pod: Note) -> list[str]:
    """As root, return the owner's running members in a pod, by their cgroups: root does not trust the owner's notes."""
    if state.uid or not pod.get("user") or not pod.get("cgroup"):
        return []
    from nsrun.host import cgroup

    return cgroup.members(pod["cgroup"], pod.get("cgroup_id", 0))


def member_json(state: State, note: Note) -> dict[str, Any]:
    status, code = state.member_status(note)
    recorded = state.exit_of(note["name"]) if code is not None else None
    running = status in BEGUN
    pid = _pid(state.process, note) if running else 0
    orphaned = False
    if running:
        pod = state.try_read("pods", note["pod"])
        orphaned = not (pod and pod["id"] == note["pod_id"] and pod_status(state, pod) in ("running", "removing"))
    inner, spaces = (_pid_inside(pid), kernel.namespace_ids(pid)) if pid else (0, {})
    return _member_json(note, status, code, orphaned, pid, inner, recorded, spaces, _health(state, note, status))


def _member_json(
    note: Note,
    status: str,
    code: int | None,
    orphaned: bool,
    pid: int,
    inner: int,
    recorded: tuple[int, str, bool] | None,
    spaces: dict[str, int],
    health: str,
) -> dict[str, Any]:
    return {
        "id": note["id"],
        "name": note["name"],
        "pod": note["pod"],
        "status": status,
        "health": health,
        "orphaned": orphaned,
        "pid": pid,
        "pid_in_pod": inner,
        "exit_code": code,
        "oom_killed": bool(recorded and recorded[2]),
        "created": note["created"],
        "started": note.get("started") if note.get("process") else None,
        "finished": recorded[1] if recorded else None,
        "command": note["command"],
        **({"image": note["image"], "image_id": note["image_id"]} if note.get("image") else {"rootfs": note["rootfs"]}),
        "restarts": note["restarts"],
        "labels": note.get("labels", {}),
        "namespaces": spaces,
    }


def inspect_member(state: State, note: Note) -> dict[str, Any]:
    """Return everything about a member, as `inspect` prints it: also how it is checked, and what the last checks said."""
    from nsrun.lifecycle.health import describe

    return {**member_json(state, note), **describe(state, note)}


def _health(state: State, note: Note, status: str) -> str:
    if "health" not in note:
        return "none"
    from nsrun.lifecycle.health import health_of

    return health_of(state, note, status)


def _pid_inside(pid: int) -> int:
    """Return the innermost pid of a process, from NSpid of proc_pid_status(5)."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:  # the process's name in it may have any bytes
            for line in file:
                if line.startswith(b"NSpid:"):
                    return int(line.split()[-1])
    except OSError:
        return 0
    return 0


def pods(state: State, everything: bool = False, spaces: bool = True) -> list[dict[str, Any]]:
    """Return the pods that live; with `everything`, also those that have ended and were not removed yet.

    Without `spaces` those that plainly live have no `namespaces`, which seven questions for each are to spare.
    """
    names = state.names("pods")
    seen = look(state, "pods", names)
    of_pod: dict[str, list[Note]] = {}
    for note in all_notes(state, "members", look(state, "members", state.names("members"))):
        of_pod.setdefault(note["pod_id"], []).append(note)

    def shown(name: str) -> dict[str, Any] | None:
        one = seen.get(name)
        note = one.note if one else state.try_read("pods", name)
        if not note:
            return None
        members = of_pod.get(note["id"], [])
        if one and one.running:
            return _pod_json(state, note, members, "running", one.pid, kernel.namespace_ids(one.pid) if spaces else {})
        return pod_json(state, note, members)

    found = _each(state, "pods", names, shown, _DAMAGED_POD)
    found = [pod for pod in found if everything or pod["status"] in ("created", "running", "removing", "damaged")]
    for name, now in unreadable(state, "pods") if state.broken else []:
        if (everything or now.alive) and all(pod["name"] != name for pod in found):
            found.append({**_DAMAGED_POD, "name": name, "pid": now.keeper or _held_by(now)})
    return found


def all_notes(state: State, kind: str, seen: dict[str, Seen]) -> list[Note]:
    """Return what `State.all` returns, without reading again what was seen to be as it should be."""
    found = (seen[name].note if name in seen else state.try_read(kind, name) for name in state.names(kind))
    return [note for note in found if note]


def _held_by(found: Life) -> int:
    """Return the pid of the pause for which nsrun-hold waits, by the pidfd that it has; 0 when it is not visible.

    The lock of pause can't be relied on, since the owner may have removed it.
    """
    held = life.pidfds_of(found.holder) if found.holder else []
    for fd, _ in held:
        os.close(fd)
    return held[0][1] if held else 0


def members(state: State, everything: bool = False, spaces: bool = True) -> tuple[list[dict[str, Any]], bool]:
    """Return the members that live, and whether there are pods with an owner, whose members have notes of their own.

    With `everything`, also those that have ended.  For `spaces` see `pods`.
    """
    names = state.names("members")
    seen, running = look(state, "members", names), look(state, "pods", state.names("pods"))
    owned = any(note.get("user") for note in all_notes(state, "pods", running))

    def shown(name: str) -> dict[str, Any] | None:
        one = seen.get(name)
        if one and one.running:
            pod = running.get(one.note["pod"])
            if pod and pod.running and pod.note["id"] == one.note["pod_id"]:
                space = kernel.namespace_ids(one.pid) if spaces else {}
                return _member_json(
                    one.note,
                    "running",
                    None,
                    False,
                    one.pid,
                    one.inner,
                    None,
                    space,
                    _health(state, one.note, "running"),
                )
        note = one.note if one else state.try_read("members", name)
        return member_json(state, note) if note else None

    found = _each(state, "members", names, shown, _DAMAGED_MEMBER)
    found = [m for m in found if everything or m["status"] in (*ALIVE, "damaged")]
    for name, now in unreadable(state, "members") if state.broken else []:
        if (everything or now.alive) and all(member["name"] != name for member in found):
            found.append({**_DAMAGED_MEMBER, "name": name})
    return found, owned


def _each(
    state: State, kind: str, names: list[str], shown: Callable[[str], dict[str, Any] | None], damaged: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return what is shown of each, for which there is a note that can be read.

    One that can't be asked about is shown as damaged, and `State.broken` gets the reason.
    """
    found = []
    for name in names:
        try:
            one = shown(name)
        except (OSError, NsrunError) as error:
            state.broken[state.path(kind, name)] = str(error).partition("\n")[0]
            one = {**damaged, "name": name}
        if one:
            found.append(one)
    return found


#: The description of something whose note can't be read: only its name, and whether it lives.
_DAMAGED: dict[str, Any] = {"id": "", "status": "damaged", "pid": 0, "created": "", "namespaces": {}}
_DAMAGED_POD: dict[str, Any] = {
    **_DAMAGED, "owner": "", "hostname": "", "network": {**dict.fromkeys(_NETWORK, ""), "isolated": False},
    "ports": [], "members": [], "labels": {},
}  # fmt: skip
_DAMAGED_MEMBER: dict[str, Any] = {
    **_DAMAGED, "pod": "", "health": "none", "orphaned": False, "pid_in_pod": 0, "exit_code": None, "oom_killed": False, "started": None,
    "finished": None, "command": [], "rootfs": "", "restarts": 0, "labels": {},
}  # fmt: skip


def pod_note(state: State, name: str) -> Note:
    """Return a pod's note, whether the pod lives or not.  Raise UnknownError when there is none, or BrokenNote."""
    note = state.read("pods", name) if is_name(name) else None
    return note if note else state.pod(name)


def ports_of(state: State, name: str, wanted: str = "") -> list[Port]:
    """Return the published ports of a pod, or of the pod of a member; with `wanted`, those of one port of the pod.

    Raise UnknownError when that one is not published, and UsageError when it is not a port.
    """
    from nsrun.spec.options import parse_count

    if is_name(name) and state.has_pod(name):
        pod: Note = state.pod(name)
    else:
        member = state.member(name)
        pod = state.pod(member["pod"])
        if pod["id"] != member["pod_id"]:
            raise UnknownError(f"the pod {member['pod']!r} of member {name!r} has ended", hint="nsrun pod ls")
    ports: list[Port] = state.ports(pod)
    if wanted:
        number, slash, protocol = wanted.partition("/")
        if slash and protocol not in ("tcp", "udp"):
            raise UsageError(f"{wanted!r} is not a port", hint="80, or 80/tcp")
        port = parse_count(number, "PORT", "a port", 1, 65535)
        ports = [p for p in ports if p["pod_port"] == port and p["protocol"] == (protocol or "tcp")]
        if not ports:
            raise UnknownError(
                f"port {port}/{protocol or 'tcp'} of pod {pod['name']!r} is not published",
                hint=f"nsrun port ls {pod['name']}",
            )
    return ports


def processes(state: State, name: str) -> list[dict[str, Any]]:
    """Return every process in the pod's PID namespace and every process of its members, read from the host's /proc.

    `uid` is the one in the pod (65534 for an id that the pod does not have).  We do not run the `ps` of an image
    (CVE-2022-1227).
    """

    note = state.pod(name)
    fd, pause = state.pause(note)
    if fd < 0:
        raise UnknownError(f"pod {name!r} has just ended", hint="nsrun pod ls -a")
    os.close(fd)
    wanted = kernel.namespace_ids(pause).get("pid") or note.get("namespaces", {}).get("pid")
    owners: dict[int, str] = {pause: "pause"}
    for member in state.members_of(note):
        owners |= dict.fromkeys(_pids_of(state, member), str(member["name"]))
    return _rows(owners, idmaps.maps_in(note), wanted)


def member_processes(state: State, note: Note) -> list[dict[str, Any]]:
    """Return the same of one member.  Raise UnknownError when it does not run."""
    status = state.member_status(note)[0]
    if status not in BEGUN:
        raise UnknownError(f"member {note['name']!r} is {status}", hint="nsrun ls -a")
    pod = state.try_read("pods", note["pod"])
    maps = idmaps.maps_in(pod) if pod and pod["id"] == note["pod_id"] else None
    return _rows(dict.fromkeys(_pids_of(state, note), str(note["name"])), maps, None)


def _pids_of(state: State, member: Note) -> list[int]:
    """Return the processes in a member's cgroup; its first process where it has none."""
    from nsrun.host import cgroup

    group = member["cgroup"]
    return cgroup.pids(group, member.get("cgroup_id", 0)) if group else [_pid(state.process, member)]


def _rows(owners: dict[int, str], maps: Maps | None, wanted: int | None) -> list[dict[str, Any]]:
    """Describe these processes, and all others in the PID namespace `wanted`."""
    rows = []
    for entry in os.listdir("/proc") if wanted else map(str, owners):
        if not is_number(entry):
            continue
        pid = int(entry)
        try:
            if pid not in owners and os.stat(f"/proc/{pid}/ns/pid").st_ino != wanted:
                continue
            with open(f"/proc/{pid}/status", errors="surrogateescape", newline="\n") as file:
                status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
            with open(f"/proc/{pid}/cmdline", "rb") as raw:
                command = os.fsdecode(raw.read().rstrip(b"\0").replace(b"\0", b" "))
        except OSError:
            continue  # it has just ended
        inner = status.get("NSpid", str(pid)).split()
        uid = int(status["Uid"].split()[0])
        if maps:
            uid = idmaps.to_pod(maps["uid"], uid)
        rows.append(
            {
                "pid_in_pod": int(inner[-1]) if len(inner) > 1 else 0,
                "pid": pid,
                "ppid": int(status["PPid"]),
                "uid": uid if uid >= 0 else 65534,
                "member": owners.get(pid, ""),
                "command": command or f"[{status['Name']}]",
            }
        )
    return sorted(rows, key=lambda row: (row["pid_in_pod"], row["pid"]))


def stats(state: State, notes: list[Note], seconds: float = 0.2) -> list[dict[str, Any]]:
    """Return what members use, and their limits; None where the kernel does not tell.

    It works for pods, too, since their notes have a cgroup.  `cpu_percent` is of one processor, measured over
    `seconds`; memory is in bytes; `pids` is the number of processes.
    """
    import time

    from nsrun.host import cgroup

    first = [cgroup.usage(note["cgroup"], note.get("cgroup_id", 0)) for note in notes]
    began = time.monotonic()
    if any(u["cpu_seconds"] is not None for u in first):
        time.sleep(seconds)
    rows = []
    for note, before in zip(notes, first, strict=True):
        now, span = cgroup.usage(note["cgroup"], note.get("cgroup_id", 0)), time.monotonic() - began
        percent = None
        if before["cpu_seconds"] is not None and now["cpu_seconds"] is not None:
            percent = round(100 * (now["cpu_seconds"] - before["cpu_seconds"]) / span, 1)
        rows.append({"name": note["name"], **now, "cpu_percent": percent})
    return rows
