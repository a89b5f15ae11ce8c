"""The rest of a life: what there is, how it stops, how it is forgotten.  Nothing is printed here."""

from __future__ import annotations

import os
from errno import ENOENT, ESRCH

from nsrun import children, kernel
from nsrun.errors import BadInput, BrokenNote, KernelError, NsrunError, UnknownError
from nsrun.schema import is_number, open_regular
from nsrun.state import ALIVE, NAME_CHARS, is_to_restart, life
from nsrun.state.sweep import Sweeper, forget_member

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from nsrun.state import Note, State
    from nsrun.state.life import Life

SIGKILL, SIGTERM, SIGCONT = 9, 15, 18


# ---- what there is -----------------------------------------------------------------------------------------


def members_of(state: State, pod: Note) -> list[Note]:
    return [note for note in member_notes(state) if note["pod_id"] == pod["id"]]


def member_notes(state: State) -> list[Note]:
    return state.all("members")


def pod_status(state: State, note: Note) -> str:
    """created, running, removing, stopped, or lost (what made it ended before it was there)."""
    found = state.pod_life(note)
    if found.kept:
        return "removing" if state.is_being_removed(note["name"]) else "running"
    if found.alive:
        return "created"
    return "stopped" if note.get("pause") else "lost"


def _pid(ask: Callable[[Note], tuple[int, int]], note: Note) -> int:
    """What State.pause or State.process says: 0 when it has ended, or is not visible from here."""
    try:
        fd, pid = ask(note)
    except BadInput:
        return 0
    if fd >= 0:
        os.close(fd)
    return pid


def pod_json(state: State, note: Note, members: list[Note]) -> dict[str, Any]:
    """A pod as docs/cli.md and `--json` have it; namespaces are asked from the kernel.  `members`: all notes, of any pod."""
    network = note["network"]
    status = pod_status(state, note)
    pid = _pid(state.pause, note) if status in ("running", "removing") else 0
    return {
        "id": note["id"],
        "name": note["name"],
        "status": status,
        "pid": pid,
        "created": note["created"],
        "owner": note["owner"],
        "hostname": note["hostname"],
        "namespaces": kernel.namespace_ids(pid) if pid else {},
        "network": {key: network.get(key, "") for key in ("mode", "ip", "ip6", "gateway", "bridge", "veth")},
        "ports": note.get("ports", []),
        "members": [m["name"] for m in members if m["pod_id"] == note["id"]] + _owners_members(state, note),
        "labels": note["labels"],
    }


def _owners_members(state: State, pod: Note) -> list[str]:
    """Root: the running members that the owner has in a pod, by their cgroups: her notes are not to be believed."""
    if state.uid or not pod.get("user") or not pod.get("cgroup"):
        return []
    from nsrun.host import cgroup

    return cgroup.members(pod["cgroup"], pod.get("cgroup_id", 0))


def member_json(state: State, note: Note) -> dict[str, Any]:
    status, code = state.member_status(note)
    recorded = state.exit_of(note["name"]) if code is not None else None
    running = status in ("running", "stopping")
    pid = _pid(state.process, note) if running else 0
    orphaned = False
    if running:
        pod = state.try_read("pods", note["pod"])
        orphaned = not (pod and pod["id"] == note["pod_id"] and pod_status(state, pod) in ("running", "removing"))
    found = {
        "id": note["id"],
        "name": note["name"],
        "pod": note["pod"],
        "status": status,
        "orphaned": orphaned,
        "pid": pid,
        "pid_in_pod": _pid_inside(pid) if pid else 0,
        "exit_code": code,
        "oom_killed": bool(recorded and recorded[2]),
        "created": note["created"],
        "started": note.get("started") if note.get("process") else None,
        "finished": recorded[1] if recorded else None,
        "command": note["command"],
        **({"image": note["image"], "image_id": note["image_id"]} if note.get("image") else {"rootfs": note["rootfs"]}),
        "restarts": note["restarts"],
        "namespaces": kernel.namespace_ids(pid) if pid else {},
    }
    return found


def _pid_inside(pid: int) -> int:
    """The innermost of a process's pids, NSpid of proc_pid_status(5)."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:  # a name in it may be of any bytes
            for line in file:
                if line.startswith(b"NSpid:"):
                    return int(line.split()[-1])
    except OSError:
        return 0
    return 0


def pods(state: State, everything: bool = False) -> list[dict[str, Any]]:
    """Those that live; with `everything`, also those that ended and were not removed yet."""
    known = member_notes(state)
    found = _each(state, "pods", lambda note: pod_json(state, note, known), _DAMAGED_POD)
    found = [pod for pod in found if everything or pod["status"] in ("created", "running", "removing", "damaged")]
    for name, now in unreadable(state, "pods") if state.broken else []:
        if (everything or now.alive) and all(pod["name"] != name for pod in found):
            found.append({**_DAMAGED_POD, "name": name, "pid": now.keeper or _held_by(now)})
    return found


def _held_by(found: Life) -> int:
    """The pause that nsrun-hold waits for, by the pidfd that it has: its owner may have taken its lock away.  0: none is seen."""
    held = life.pidfds_of(found.holder) if found.holder else []
    for fd, _ in held:
        os.close(fd)
    return held[0][1] if held else 0


def members(state: State, everything: bool = False) -> list[dict[str, Any]]:
    found = _each(state, "members", lambda note: member_json(state, note), _DAMAGED_MEMBER)
    found = [m for m in found if everything or m["status"] in (*ALIVE, "damaged")]
    for name, now in unreadable(state, "members") if state.broken else []:
        if (everything or now.alive) and all(member["name"] != name for member in found):
            found.append({**_DAMAGED_MEMBER, "name": name})
    return found


def _each(
    state: State, kind: str, shown: Callable[[Note], dict[str, Any]], damaged: dict[str, Any]
) -> list[dict[str, Any]]:
    """What is shown of each; of one that can't be asked about, that it is damaged, and `State.broken` says why."""
    found = []
    for note in state.all(kind):
        try:
            found.append(shown(note))
        except (OSError, NsrunError) as error:
            state.broken[state.path(kind, note["name"])] = str(error).partition("\n")[0]
            found.append({**damaged, "name": note["name"]})
    return found


#: What is told of something whose note can't be read: its name, and whether it lives.
_DAMAGED: dict[str, Any] = {"id": "", "status": "damaged", "pid": 0, "created": "", "namespaces": {}}
_DAMAGED_POD: dict[str, Any] = {
    **_DAMAGED, "owner": "", "hostname": "", "network": dict.fromkeys(("mode", "ip", "ip6", "gateway", "bridge", "veth"), ""),
    "ports": [], "members": [], "labels": {},
}  # fmt: skip
_DAMAGED_MEMBER: dict[str, Any] = {
    **_DAMAGED, "pod": "", "orphaned": False, "pid_in_pod": 0, "exit_code": None, "oom_killed": False, "started": None,
    "finished": None, "command": [], "rootfs": "", "restarts": 0,
}  # fmt: skip


def pod_note(state: State, name: str) -> Note:
    """A pod's note, dead or alive; UnknownError when there is none.  BrokenNote."""
    note = state.read("pods", name) if name and "/" not in name else None
    return note if note else state.pod(name)


def processes(state: State, name: str) -> list[dict[str, Any]]:
    """Every process in the pod's PID namespace and every process of its members, read from the host's /proc.

    `uid` is the pod's (65534: an id that it does not have).  No `ps` of an image is run (CVE-2022-1227).
    """
    from nsrun.host import userns

    note = state.pod(name)
    maps = userns.maps_in(note)
    fd, pause = state.pause(note)
    if fd < 0:
        raise UnknownError(f"pod {name!r} has just ended", hint="nsrun pod ls -a")
    os.close(fd)
    wanted = kernel.namespace_ids(pause).get("pid") or note.get("namespaces", {}).get("pid")
    owners: dict[int, str] = {pause: "pause"}
    from nsrun.host import cgroup

    for member in members_of(state, note):
        group = member["cgroup"]
        for pid in cgroup.pids(group, member.get("cgroup_id", 0)) if group else [_pid(state.process, member)]:
            owners[pid] = member["name"]
    rows = []
    for entry in os.listdir("/proc"):
        if not is_number(entry):
            continue
        pid = int(entry)
        try:
            if os.stat(f"/proc/{pid}/ns/pid").st_ino != wanted and pid not in owners:
                continue
            with open(f"/proc/{pid}/status", errors="surrogateescape", newline="\n") as file:
                status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
            with open(f"/proc/{pid}/cmdline", "rb") as raw:
                words = os.fsdecode(raw.read().rstrip(b"\0").replace(b"\0", b" "))
        except OSError:
            continue  # it has just ended
        inner = status.get("NSpid", str(pid)).split()
        uid = int(status["Uid"].split()[0])
        if maps:
            uid = userns.inside(maps["uid"], uid)
        rows.append(
            {
                "pid_in_pod": int(inner[-1]) if len(inner) > 1 else 0,
                "pid": pid,
                "ppid": int(status["PPid"]),
                "uid": uid if uid >= 0 else 65534,
                "member": owners.get(pid, ""),
                "command": words or f"[{status['Name']}]",
            }
        )
    return sorted(rows, key=lambda row: (row["pid_in_pod"], row["pid"]))


def stats(state: State, notes: list[Note], seconds: float = 0.2) -> list[dict[str, Any]]:
    """What members (or pods: their notes have a cgroup, too) use, and their limits; None where the kernel does not tell.

    `cpu_percent` is of one processor, over `seconds`; memory in bytes; `pids` are processes.
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


# ---- ending ------------------------------------------------------------------------------------------------


def _wait_dead(pidfd: int, seconds: float | None) -> bool:
    from select import poll

    poller = poll()
    if pidfd >= 0:
        poller.register(pidfd, 1)
    return bool(poller.poll(None if seconds is None else int(seconds * 1000)))


def _signal(pidfd: int, signal: int) -> None:
    """What has ended just before needs none."""
    try:
        kernel.pidfd_send_signal(pidfd, signal)
    except KernelError as error:
        if error.errno != ESRCH:
            raise


def _may_end(pidfd: int, what: str, note: Note, pod: Note | None = None) -> None:
    """BadInput: it can't be ended from here; asked before anything is done, and anything says that it is about to end.

    A member whose cgroup is gone while that of its `pod` is in view can be: the pod's owner may remove it.
    """
    from nsrun.host import cgroup

    try:
        _signal(pidfd, 0)
    except KernelError as error:
        raise BadInput(f"{what} is not yours to end: {error}", errno=error.errno or 0) from None
    try:
        cgroup.check_reach(note["cgroup"], note.get("cgroup_id", 0))
    except BadInput:
        if _wait_dead(pidfd, 0):
            return  # it has just ended, and its cgroup went with it
        if pod is None or pod["id"] != note["pod_id"]:
            raise
        cgroup.check_reach(pod["cgroup"], pod.get("cgroup_id", 0))


def _settled(state: State, kind: str, note: Note, seconds: float = 10.0) -> Note:
    """The note of a thing that an nsrun is making, once it is there or has failed.

    UnknownError: it failed, or is another's by now.  BadInput: it is still being made.
    """
    from time import monotonic, sleep

    end = monotonic() + seconds
    while True:
        now, found = state.look(kind, note["name"])
        if now is None or now["id"] != note["id"]:
            raise UnknownError(f"{kind[:-1]} {note['name']!r} has gone: what made it failed, or it was removed")
        if found.kept or not found.alive or "process" in now or "pause" in now:
            return now
        if monotonic() >= end:
            who = f"nsrun (process {found.maker})" if found.maker else "an nsrun that is not visible from here"
            raise BadInput(
                f"{kind[:-1]} {note['name']!r} is being made by {who}", hint="try again, or end that process"
            )
        sleep(0.01)


def signal_member(state: State, note: Note, signal: int) -> None:
    """UnknownError when it is not running."""
    fd, _ = state.process(_settled(state, "members", note))
    if fd < 0:
        raise UnknownError(f"member {note['name']!r} is not running", hint="nsrun ls -a")
    try:
        kernel.pidfd_send_signal(fd, signal)
    finally:
        os.close(fd)


def stop_member(state: State, note: Note, seconds: float = 10.0, signal: int = 0) -> bool:
    """Its stop signal (or another), then after `seconds` SIGKILL to its cgroup; wait until it has ended.  Touch nobody else.

    Return whether SIGKILL was needed.  NsrunError: it does not end.
    """
    killed, dead = False, True
    try:
        note = _settled(state, "members", note)
    except UnknownError:
        return killed
    fd, _ = state.process(note)
    try:
        if fd >= 0:
            now = state.read("members", note["name"])
            if now is None or now["id"] != note["id"]:
                return killed  # it has ended, and was forgotten
            note = now  # it may have begun once more, in another cgroup
            _may_end(fd, f"member {note['name']!r}", note, state.try_read("pods", note["pod"]))
        try:
            state.mark("members", note["name"], "stop")
        except FileNotFoundError:
            return killed
        if fd >= 0:
            signal = signal or note["stop_signal"]
            if signal != SIGKILL:
                _signal(fd, signal)
            if signal == SIGKILL or not _wait_dead(fd, seconds):
                kill_member(note, fd)
                killed, dead = signal != SIGKILL, _wait_dead(fd, 10)
        else:
            _end_wait(state, note)
    finally:
        if fd >= 0:
            os.close(fd)
    if not dead or not end_monitor(state, note):
        raise NsrunError(
            f"member {note['name']!r} does not end",
            hint=f"{'the member' if not dead else 'its monitor (nsrun-monitor)'} is frozen, or in disk sleep: ps -eo pid,ppid,stat,wchan,args",
        )
    return killed


def _monitor(state: State, note: Note) -> int:
    """A pidfd of who keeps a member; -1: nobody, or this very process.  BadInput: it is not visible from here."""
    found = state.life("members", note["name"])
    if found.keeper is None or found.keeper == os.getpid():
        return -1
    if not found.keeper:
        raise BadInput(
            f"member {note['name']!r} lives, but its monitor is not visible from this PID namespace",
            hint="run it in the machine's own PID namespace",
        )
    return life.open_pid(found.keeper, state.held("members", note["name"]), life.KEEPER)


def _end_wait(state: State, note: Note) -> None:
    """A monitor that waits before it restarts its member is told that it need not."""
    fd = _monitor(state, note)
    if fd >= 0:
        try:
            _signal(fd, SIGTERM)
        finally:
            os.close(fd)


def kill_member(note: Note, fd: int) -> None:
    """SIGKILL to everything in the member's cgroup, and to its first process, which its pod's owner may have moved elsewhere."""
    from nsrun.host import cgroup

    if note.get("cgroup"):
        cgroup.kill(note["cgroup"], note.get("cgroup_id", 0))
    _signal(fd, SIGKILL)


def wait_monitor(state: State, note: Note, seconds: float | None = 10) -> bool:
    """Until the monitor has written the exit status and is gone; False when that took longer."""
    name = note["name"]
    if (now := state.read("members", name)) is None or now["id"] != note["id"]:
        return True
    if (kept := life.children.get(note["id"], -1)) >= 0:
        return _wait_dead(kept, seconds)
    fd = _monitor(state, note)
    try:
        return fd < 0 or _wait_dead(fd, seconds)
    finally:
        if fd >= 0:
            os.close(fd)
        children.reap()


def end_monitor(state: State, note: Note) -> bool:
    """Wait for the monitor of a member that has ended; False: it does not end.

    One that is stopped (Ctrl-Z, SIGSTOP) goes on, and one whose reader takes nothing is told to leave what is unread; who
    does not hear even that is killed.
    """
    if wait_monitor(state, note, 2):
        return True
    for signals, seconds in (((SIGCONT, SIGTERM), 5), ((SIGKILL,), 5)):
        fd = _monitor(state, note)
        try:
            for signal in signals:
                if fd >= 0:
                    _signal(fd, signal)
        finally:
            if fd >= 0:
                os.close(fd)
        if wait_monitor(state, note, seconds):
            return True
    return False


def wait_member(state: State, name: str) -> int:
    """Block until the member has ended; return its exit status.  BadInput when nobody saw it end."""
    import time

    note = state.member(name)
    while True:
        try:
            # the monitor writes to this file, and then calls it `exit`: we can read it even when the member is forgotten at once
            path = state.path("members", note["name"], "exit.tmp")
            written = open_regular(path)
        except OSError as error:
            if error.errno != ENOENT:
                raise
            written = -1  # it has ended, or is forgotten already
        try:
            wait_monitor(state, _settled(state, "members", note) if written >= 0 else note, None)
            now = state.read("members", note["name"])
            if now and now["id"] == note["id"]:
                note = now
                status, code = state.member_status(note)
            else:  # forgotten
                words = os.read(written, 100).split() if written >= 0 else []
                status, code = "lost", int(words[0]) if words else None
        except UnknownError:
            status, code = "lost", None
        finally:
            if written >= 0:
                os.close(written)
        if code is not None:
            return code
        if status in ("running", "stopping"):  # its monitor was killed: wait for the process itself
            fd, _ = state.process(note)
            try:
                _wait_dead(fd, None if fd >= 0 else 0.01)
            finally:
                if fd >= 0:
                    os.close(fd)
        elif status in ("created", "restarting"):
            time.sleep(0.01)
        else:
            raise BadInput(
                f"the exit status of {note['name']!r} is lost",
                hint="its monitor was killed, or could not write it (a full or broken disk)",
            )


def remove_member(state: State, note: Note, force: bool) -> None:
    """Forget a member that has ended, with all that it wrote; `force` ends it before.  BadInput: it lives."""
    status, _ = state.member_status(note)
    if status in ALIVE:
        if not force:
            raise BadInput(
                f"member {note['name']!r} is {status}",
                hint=f"nsrun stop {note['name']}, or: nsrun rm -f {note['name']}",
            )
        stop_member(state, note, 0, SIGKILL)
    else:
        found = state.life("members", note["name"])
        if found.keeper and not force and life.held_lives(found.keeper, note.get("pidfd", -1)):
            raise BadInput(
                f"member {note['name']!r} is running, though an exit status of it is written down",
                hint=f"nsrun rm -f {note['name']}",
            )
        if found.alive:  # about to be restarted
            stop_member(state, note, 0, SIGKILL)
    kept = life.children.pop(note["id"], -1)
    if kept >= 0:
        os.close(kept)
        for path in (state.held("members", note["name"]), f"{state.upper(note['id'])}/{life.HELD}"):
            life.let_go_of(path)
    now = state.read("members", note["name"])
    if now is None or now["id"] != note["id"]:
        return  # what made it failed, or somebody else removed it
    note = now
    if not state.surely_ended(note):
        _end_lost(state, note, force)
    if not forget_member(state, note):
        raise BadInput(f"member {note['name']!r} is kept by somebody", hint="nsrun ls -a")


def remove_named(state: State, name: str, force: bool) -> None:
    """The same of a member by its name, whose note may be one that can't be read; with `force`, one that is not there is no error."""
    try:
        note = state.member(name)
    except UnknownError:
        if not force or not NAME_CHARS.issuperset(name) or not name:
            raise
        return
    except BrokenNote:
        if not force:
            raise
        end_unreadable(state, "members", name)
        return
    remove_member(state, note, force)


def prune(state: State, kind: str, note: Note) -> bool:
    """Forget a pod or a member that has ended, with all that is left of it; False: it lives."""
    if kind == "pod":
        return not state.pod_life(note).alive and Sweeper(state).forget_pod(note)
    if state.life("members", note["name"]).alive or state.member_status(note)[0] not in ("stopped", "lost"):
        return False
    if state.read("members", note["name"]) is None:  # it went with its pod
        return False
    if not state.surely_ended(note):
        return False
    remove_member(state, note, False)
    return True


def _end_lost(state: State, note: Note, force: bool) -> None:
    """Nobody saw how it ended: what may still run of it is in its cgroup.  BadInput: it lives, or nothing tells that it does not."""
    from time import sleep

    name = note["name"]
    if force:
        _kill_noted(state, note)
        for _ in range(100):
            if state.surely_ended(note):
                return
            sleep(0.02)
    raise BadInput(
        f"member {name!r} may still run: its monitor was killed, and from here nothing proves its end",
        hint=f"nsrun rm -f {name}; or end its pod: nsrun pod rm -f {note['pod']}",
    )


def unreadable(state: State, kind: str) -> list[tuple[str, Life]]:
    """The names under which there is a note that can't be read, and whether what it was about lives."""
    found = []
    for name in state.names(kind):
        if NAME_CHARS.issuperset(name):
            try:
                state.read(kind, name)
            except BrokenNote:
                found.append((name, _life_of_unreadable(state, kind, name)))
    return found


def _life_of_unreadable(state: State, kind: str, name: str) -> Life:
    """By its locks; of a pod whose lock or nsrun-hold is gone, by the pause that has its `held` open."""
    try:
        found = state.life(kind, name)
    except OSError:
        return life.Life(None, keeper=0)  # it can't be asked: that is no death
    if kind == "pods" and not found.alive:
        from nsrun.state import orphans

        found.keeper = next(iter(orphans.pauses_of(state, name)), None)
    return found


def end_unreadable(state: State, kind: str, name: str) -> None:
    """End what lives under a name whose note can't be read, known by its locks alone, and set the note aside.

    NsrunError: it does not end.  BadInput: it is not visible from here.
    """
    from nsrun.host import cgroup
    from nsrun.state.orphans import is_of_pod, pauses_of

    found, held = _life_of_unreadable(state, kind, name), state.held(kind, name)
    what = f"{kind[:-1]} {name!r}"
    if not found.alive and kind == "members":
        _end_without_note(state, name)
    if 0 in (found.keeper, found.holder):
        raise BadInput(f"{what} lives, but is not visible from this PID namespace", hint="run it in the machine's own")
    first: list[tuple[int, int]] = []  # (pidfd, pid) of pause, or of the member
    if found.keeper and kind == "pods":
        fd = life.open_pid(found.keeper, held, life.KEEPER)
        if fd < 0:
            fd = kernel.pidfd_of(found.keeper)
            if fd >= 0 and found.keeper not in pauses_of(state, name):  # asked with the pidfd in hand
                os.close(fd)
                fd = -1
        first += [(fd, found.keeper)] if fd >= 0 else []
    elif found.keeper or found.holder:
        first = life.pidfds_of(found.keeper or found.holder or 0)
    group = os.path.dirname(cgroup.of_process(first[0][1])) if first and kind == "pods" else ""
    if not is_of_pod(group, name):
        group = ""
    for fd, _ in first:
        _signal(fd, SIGKILL)
    ended = all([_wait_dead(fd, 10) for fd, _ in first])
    for fd, _ in first:
        os.close(fd)
    if found.holder:
        fd = life.open_pid(found.holder, held, life.HOLDER)
        if fd >= 0:
            _signal(fd, SIGKILL)
            os.close(fd)
    if group:
        cgroup.kill(group)
    if not life.wait(held, -1, 10) or not (ended or group):
        raise NsrunError(f"{what} does not end", hint="ps -eo pid,ppid,stat,wchan,args")
    if group:
        cgroup.remove(group, kill=True)
        cgroup.remove(f"{group}.hold", kill=True)
    Sweeper(state).set_ended_aside(kind, name)


def _end_without_note(state: State, name: str) -> None:
    """End what still runs of members of this name that only their data speak of: their monitors were killed."""
    known = {note["id"] for note in member_notes(state)}
    for ident in state.idents():
        try:
            committed = state.committed(ident)
        except BrokenNote:
            continue
        if committed and committed["name"] == name and ident not in known:
            end_committed(state, committed)


def end_committed(state: State, committed: Note) -> None:
    """End a member by what stands beside its data, its cgroup or its process, when nobody keeps it.  NsrunError: it does not end."""
    from time import sleep

    from nsrun.host import cgroup

    group, ident = committed["cgroup"], committed["cgroup_id"]
    if not life.ask(f"{state.upper(committed['id'])}/{life.HELD}").alive and not state.surely_ended(committed):
        _kill_noted(state, committed)
    for _ in range(500):
        if state.surely_ended(committed):
            cgroup.remove_member(group, ident)
            return
        sleep(0.02)
    raise NsrunError(
        f"member {committed['name']!r} does not end, or nothing proves that from here",
        hint="ps -eo pid,ppid,stat,wchan,args; what it wrote is in " + state.upper(committed["id"]),
    )


def _kill_noted(state: State, note: Note) -> None:
    """SIGKILL to the cgroup of a member that nobody keeps, unless it is another's by now, and to its process, wherever that was moved."""
    from nsrun.host import cgroup

    group, ident = note["cgroup"], note.get("cgroup_id", 0)
    others = [(n["cgroup"], n.get("cgroup_id", 0)) for n in member_notes(state) if n["id"] != note["id"]]
    fd = state.noted_process(note)
    try:
        if group and (group, ident) not in others:
            cgroup.kill(group, ident)
        if fd >= 0:
            _signal(fd, SIGKILL)
    finally:
        if fd >= 0:
            os.close(fd)


def stop_members(state: State, notes: list[Note], seconds: float) -> list[bool | OSError | NsrunError]:
    """Stop several, all at once; of each, whether SIGKILL was needed, or why it does not end."""
    from threading import Thread

    found: list[bool | OSError | NsrunError] = [False] * len(notes)

    def stop(number: int) -> None:
        try:
            found[number] = stop_member(state, notes[number], seconds)
        except (OSError, NsrunError) as error:
            found[number] = error

    threads = [Thread(target=stop, args=(number,)) for number in range(len(notes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def stop_pod(state: State, name: str, seconds: float = 10.0) -> list[str]:
    """Members first, each by its stop signal, all at once; pause last.

    Return the names of those that needed SIGKILL.  NsrunError: something does not end.
    """
    note = state.pod(name)
    fd, _ = state.pause(note)
    if fd >= 0:
        try:
            _may_end(fd, f"pod {name!r}", note)
        finally:
            os.close(fd)
    members = members_of(state, note)
    found = stop_members(state, members, seconds)
    end_pod(state, note, SIGTERM)
    for failed in found:
        if not isinstance(failed, bool):
            raise failed
    return [member["name"] for member, killed in zip(members, found, strict=True) if killed]


def kill_pod(state: State, name: str, signal: int) -> None:
    """The raw thing: the signal to pause.  KILL, TERM and INT end the pod, and then its notes go too."""
    note = state.pod(name)
    if signal in (SIGKILL, SIGTERM, 2):
        end_pod(state, note, signal)
        return
    fd, _ = state.pause(note)
    if fd >= 0:
        try:
            kernel.pidfd_send_signal(fd, signal)
        finally:
            os.close(fd)


def end_pod(state: State, note: Note, signal: int) -> None:
    """Signal pause, wait for the end of it and of its members' monitors, then forget them.

    Of a pod that root made for somebody, root ends what is root's whatever the owner does: nsrun-hold, with ports and table, the
    veth, and everything in the pod's cgroup.  NsrunError: what does not end.
    """
    name = note["name"]
    own = not (note.get("user") and not state.uid)
    fd, pid = state.pause(note)
    if fd >= 0:
        from nsrun.host import cgroup

        note = {**note, "cgroup": cgroup.locate(note["cgroup"], note.get("cgroup_id", 0), pid)}
    ended = True
    if fd >= 0:
        try:
            _may_end(fd, f"pod {name!r}", note)
            try:
                state.mark_removing(name)  # who makes a member meanwhile looks for this when it is made
            except OSError:
                pass  # of a pod that root made, its owner has no directory; and a full disk keeps nobody from ending a pod
            try:
                _signal(fd, signal)
                _signal(fd, SIGCONT)  # one that is stopped would not hear the other
            except KernelError:
                state.unmark("pods", name, "removing")
                raise
            ended = _let_go(state, note, fd, 10 if own or signal != SIGKILL else 1)
            if own and not ended and signal != SIGKILL:
                _signal(fd, SIGKILL)
                ended = _let_go(state, note, fd, 10)
        finally:
            os.close(fd)
    if not own:
        _end_roots_own(state, note)
    elif not ended:
        state.unmark("pods", name, "removing")
        raise NsrunError(
            f"pod {name!r} does not end",
            hint="its pause is in disk sleep, or frozen (ps -eo pid,ppid,stat,wchan,args); or this is a process of the pod itself, which can't end it",
        )
    for member in members_of(state, note):
        if member["shares_pid"] and not end_monitor(state, member):
            raise NsrunError(
                f"the monitor of member {member['name']!r} does not end",
                hint="is it frozen, or in disk sleep? ps -eo pid,ppid,stat,wchan,args",
            )
    children.reap()
    if not Sweeper(state).forget_pod(note):
        raise NsrunError(f"pod {name!r} is kept by somebody", hint="nsrun pod ls -a")
    from nsrun.host import cgroup

    cgroup.remove_empty(state)
    if note["network"]["mode"] == "bridge" and not state.uid:
        from nsrun.host import net

        net.remove_idle_bridge(state)


def _let_go(state: State, note: Note, pidfd: int, seconds: float) -> bool:
    """Wait until pause has ended, or has let go: a zombie of its PID namespace, which nobody reaps, delays its end."""
    from time import monotonic

    shown = f"{state.owned}/{note['user']['uid']}/{note['name']}.held" if note.get("user") and not state.uid else ""
    end, step = monotonic() + seconds, 0.001
    while not _wait_dead(pidfd, step):
        now = life.ask(shown) if shown else state.pod_life(note)
        if now.keeper is None:
            return True
        if monotonic() >= end:
            return False
        step = min(2 * step, 0.05)
    return True


def _end_roots_own(state: State, note: Note) -> None:
    """Root: what lives of an owned pod ends, nsrun-hold first of all, since it has the ports and the table."""
    from nsrun.host import cgroup

    found = state.life("pods", note["name"])
    if found.holder:
        fd = life.open_pid(found.holder, state.held("pods", note["name"]), life.HOLDER)
        if fd >= 0:
            try:
                _signal(fd, SIGKILL)
                life.wait(state.held("pods", note["name"]), fd, 10, life.HOLDER)
            finally:
                os.close(fd)
    if note["cgroup"]:
        cgroup.kill(note["cgroup"], note.get("cgroup_id", 0))


def remove_pod(state: State, name: str, force: bool) -> None:
    """Forget a pod that has ended, and its members with all that they wrote; `force` ends it before.  BadInput: it lives."""
    try:
        note = state.read("pods", name) if "/" not in name else None
    except BrokenNote:
        if not force:
            raise
        end_unreadable(state, "pods", name)
        return
    if note is None:
        if force:
            return
        state.pod(name)
        return
    if pod_status(state, note) in ("running", "created", "removing"):
        if not force:
            raise BadInput(f"pod {name!r} is running", hint=f"nsrun pod stop {name}, or: nsrun pod rm -f {name}")
        try:
            note = _settled(state, "pods", note)
        except UnknownError:
            return
    if state.pod_life(note).kept:
        end_pod(state, note, SIGKILL)
    elif not Sweeper(state).forget_pod(note):
        raise BadInput(f"pod {name!r} is kept by somebody", hint="nsrun pod ls -a")


# ---- the monitor calls back --------------------------------------------------------------------------------


def ended(state: State, name: str, code: int, lead: int = -1, locks: tuple[int, int] = (-1, -1)) -> int:
    """What follows the end of a member with --restart or --rm; we are its former monitor.  Its exit status.

    The monitor left its signals blocked: what follows --rm is not interrupted, what follows --restart ends as the member did.
    `lead`: the nsrun in the foreground that waits for us, when we were forked by the pod's door.  `locks`: the files by whose
    locks others know that we keep the member, and what it wrote.
    """
    note = state.read("members", name)
    if note is None:
        return code
    if note["rm"]:
        try:
            forget_member(state, note, its_cgroup=False)  # the monitor has removed it
        except (OSError, NsrunError):
            pass  # the next command tries again, and says what is in the way; this one's status is the member's
        return code
    if state.marked("members", name, "stop") or not is_to_restart(note, code):
        return code
    options = state.read("members", name, "options.json")
    pod, found = state.look("pods", note["pod"])
    if options is None or pod is None or pod["id"] != note["pod_id"] or not found.kept:
        return code
    import _signal

    from nsrun.lifecycle import join as api

    try:
        # `stop`, or Ctrl-C, may have come already; all others wait for the next life
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, {SIGTERM, 2, 1})
        state.renew_exit(name)
        api.join(state, note["pod"], options, again={**note, "lead": lead, "locks": locks})
    except BaseException as error:
        # what it was goes back to being true: it has ended, with this status, for which there is room on a full disk
        state.record_exit(name, f"{code} {api.timestamp()}")
        state.save("members", name, note)
        if isinstance(error, Exception):
            raise
    return code
