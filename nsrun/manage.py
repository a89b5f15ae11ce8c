"""The rest of a life: what there is, how it stops, how it is forgotten.  Nothing is printed here."""

from __future__ import annotations

import os
from errno import ESRCH

from nsrun import children, kernel
from nsrun.errors import BadInput, KernelError, UnknownError
from nsrun.sweep import Sweeper, forget_member

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from nsrun.state import Note, State

SIGKILL, SIGTERM = 9, 15


# ---- what there is -----------------------------------------------------------------------------------------


def members_of(state: State, pod: Note) -> list[Note]:
    return [note for note in member_notes(state) if note["pod_id"] == pod["id"]]


def member_notes(state: State) -> list[Note]:
    notes = (state.read("members", name) for name in state.names("members"))
    return [note for note in notes if note]


def pod_status(state: State, note: Note) -> str:
    if note.get("pause"):
        return "running" if state.alive(note["pause"]) else "stopped"
    if state.alive(note["holder"]):
        return "created"
    now = state.read("pods", note["name"])
    if now and now["id"] == note["id"] and now["holder"] != note["holder"]:
        return pod_status(state, now)  # see State.look()
    return "lost"


def pod_json(state: State, note: Note, members: list[Note]) -> dict[str, Any]:
    """A pod as docs/cli.md and `--json` have it; namespaces are asked from the kernel.  `members`: all notes, of any pod."""
    network = note["network"]
    pid = (note.get("pause") or [0])[0]
    status = pod_status(state, note)
    return {
        "id": note["id"],
        "name": note["name"],
        "status": status,
        "pid": pid if status == "running" else 0,
        "created": note["created"],
        "owner": note["owner"],
        "hostname": note["hostname"],
        "namespaces": kernel.namespace_ids(pid) if status == "running" else {},
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

    return cgroup.members(pod["cgroup"])


def member_json(state: State, note: Note) -> dict[str, Any]:
    recorded = state.exit_of(note["name"])
    status, code = ("stopped", recorded[0]) if recorded else state.member_status(note)
    if status == "stopped" and not recorded:  # it has just been written
        recorded = state.exit_of(note["name"])
    process = note.get("process") or [0, 0, ""]
    running = status in ("running", "stopping")
    orphaned = False
    if running:
        pod = state.read("pods", note["pod"])
        orphaned = not (pod and pod["id"] == note["pod_id"] and pod_status(state, pod) == "running")
    found = {
        "id": note["id"],
        "name": note["name"],
        "pod": note["pod"],
        "status": status,
        "orphaned": orphaned,
        "pid": process[0] if running else 0,
        "pid_in_pod": _pid_inside(process[0]) if running else 0,
        "exit_code": code,
        "oom_killed": bool(recorded and recorded[2]),
        "created": note["created"],
        "started": note.get("started") if note.get("process") else None,
        "finished": recorded[1] if recorded else None,
        "command": note["command"],
        **({"image": note["image"], "image_id": note["image_id"]} if note.get("image") else {"rootfs": note["rootfs"]}),
        "restarts": note["restarts"],
        "namespaces": kernel.namespace_ids(process[0]) if running else {},
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


def pods(state: State) -> list[dict[str, Any]]:
    notes = (state.read("pods", name) for name in state.names("pods"))
    known = member_notes(state)
    return [pod_json(state, note, known) for note in notes if note]


def members(state: State, everything: bool = False) -> list[dict[str, Any]]:
    found = [member_json(state, note) for note in member_notes(state)]
    return [m for m in found if everything or m["status"] in ("running", "stopping", "created")]


def pod_note(state: State, name: str) -> Note:
    """A pod's note, dead or alive; UnknownError when there is none."""
    note = state.read("pods", name) if name and "/" not in name else None
    return note if note else state.pod(name)


def processes(state: State, name: str) -> list[dict[str, Any]]:
    """Every process in the pod's PID namespace and every process of its members, read from the host's /proc.

    `uid` is the pod's (65534: an id that it does not have).  No `ps` of an image is run (CVE-2022-1227).
    """
    from nsrun import userns

    note = state.pod(name)
    maps = userns.maps_in(note)
    wanted = kernel.namespace_ids(note["pause"][0]).get("pid")
    owners: dict[int, str] = {note["pause"][0]: "pause"}
    from nsrun.host import cgroup

    for member in members_of(state, note):
        for pid in cgroup.pids(member["cgroup"]) if member["cgroup"] else [member.get("process", [0])[0]]:
            owners[pid] = member["name"]
    rows = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
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

    first = [cgroup.usage(note["cgroup"]) for note in notes]
    began = time.monotonic()
    if any(u["cpu_seconds"] is not None for u in first):
        time.sleep(seconds)
    rows = []
    for note, before in zip(notes, first, strict=True):
        now, span = cgroup.usage(note["cgroup"]), time.monotonic() - began
        percent = None
        if before["cpu_seconds"] is not None and now["cpu_seconds"] is not None:
            percent = round(100 * (now["cpu_seconds"] - before["cpu_seconds"]) / span, 1)
        rows.append({"name": note["name"], **now, "cpu_percent": percent})
    return rows


# ---- ending ------------------------------------------------------------------------------------------------


def _wait_dead(pidfd: int, seconds: float | None) -> bool:
    from select import poll

    poller = poll()
    poller.register(pidfd, 1)
    return bool(poller.poll(None if seconds is None else int(seconds * 1000)))


def _open(process: Any, state: State) -> int:
    """pidfd of a noted process, -1 when it has ended."""
    try:
        fd = kernel.pidfd_open(process[0])
    except KernelError as error:
        if error.errno == ESRCH:
            return -1
        raise
    if not state.alive(process):
        os.close(fd)
        return -1
    return fd


def signal_member(state: State, note: Note, signal: int) -> None:
    """UnknownError when it is not running."""
    fd = _open(note.get("process") or [0, 0, ""], state)
    if fd < 0:
        raise UnknownError(f"member {note['name']!r} is not running", hint="nsrun ls -a")
    try:
        kernel.pidfd_send_signal(fd, signal)
    finally:
        os.close(fd)


def stop_member(state: State, note: Note, seconds: float = 10.0) -> None:
    """Its stop signal, then after `seconds` SIGKILL to its cgroup; waits until it has ended.  Touches nobody else."""
    fd = _open(note.get("process") or [0, 0, ""], state)
    directory = state.path("members", note["name"])
    try:
        os.close(os.open(f"{directory}/stop", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    except FileNotFoundError:
        return
    if fd < 0:
        _end_wait(state, note)
    try:
        if fd >= 0:
            try:
                kernel.pidfd_send_signal(fd, note["stop_signal"])
            except KernelError as error:
                if error.errno != ESRCH:
                    raise
            if not _wait_dead(fd, seconds):
                kill_member(note, fd)
                _wait_dead(fd, 10)
    finally:
        if fd >= 0:
            os.close(fd)
    wait_monitor(state, note)


def _end_wait(state: State, note: Note) -> None:
    """A monitor that waits before it restarts its member is told that it need not."""
    fd = _open(note["holder"], state) if note["holder"][0] != os.getpid() else -1
    if fd >= 0:
        try:
            kernel.pidfd_send_signal(fd, SIGTERM)
        except KernelError as error:
            if error.errno != ESRCH:
                raise
        finally:
            os.close(fd)


def kill_member(note: Note, fd: int) -> None:
    """SIGKILL to everything in the member's cgroup; without cgroup v2, to its first process."""
    from nsrun.host import cgroup

    if note.get("cgroup") and cgroup.kill(note["cgroup"]):
        return
    try:
        kernel.pidfd_send_signal(fd, SIGKILL)
    except KernelError as error:
        if error.errno != ESRCH:
            raise


def wait_monitor(state: State, note: Note, seconds: float | None = 10) -> None:
    """Until the monitor has written the exit status and is gone."""
    holder = (state.read("members", note["name"]) or note).get("holder")
    fd = _open(holder, state) if holder and holder[0] != os.getpid() else -1
    if fd >= 0:
        try:
            _wait_dead(fd, seconds)
        finally:
            os.close(fd)
    children.reap()


def wait_member(state: State, name: str) -> int:
    """Blocks until the member has ended; its exit status.  BadInput when it was lost (its monitor was killed)."""
    note = state.member(name)
    while True:
        try:
            # the monitor writes to this file, and then calls it `exit`: we can read it even when the member is forgotten at once
            path = state.path("members", note["name"], "exit.tmp")
            written = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError:  # it is forgotten already, or the disk is full
            written = -1
        try:
            wait_monitor(state, note, None)
            now = state.read("members", note["name"])
            if now and now["id"] == note["id"]:
                note = now
                status, code = state.member_status(note)
            else:  # forgotten
                words = os.read(written, 100).split() if written >= 0 else []
                status, code = "lost", int(words[0]) if words else None
        finally:
            if written >= 0:
                os.close(written)
        if code is not None:
            return code
        if status == "running":  # its monitor was killed: wait for the process itself
            fd = _open(note["process"], state)
            if fd >= 0:
                try:
                    _wait_dead(fd, None)
                finally:
                    os.close(fd)
        elif status not in ("created", "stopping"):
            raise BadInput(f"the exit status of {note['name']!r} is lost: its monitor was killed")


def remove_member(state: State, note: Note, force: bool) -> None:
    status, _ = state.member_status(note)
    if status in ("running", "stopping", "created"):
        if not force:
            raise BadInput(
                f"member {note['name']!r} is {status}",
                hint=f"nsrun stop {note['name']}, or: nsrun rm -f {note['name']}",
            )
        stop_member(state, note, 0)
    forget_member(state, note)


def stop_pod(state: State, name: str, seconds: float = 10.0) -> None:
    """Members first, each by its stop signal, all at once; pause last."""
    note = state.pod(name)
    threads = []
    from threading import Thread

    for member in members_of(state, note):
        threads.append(Thread(target=stop_member, args=(state, member, seconds)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    end_pod(state, note, SIGTERM)


def kill_pod(state: State, name: str, signal: int) -> None:
    """The raw thing: the signal to pause.  KILL, TERM and INT end the pod, and then its notes go too."""
    note = state.pod(name)
    if signal in (SIGKILL, SIGTERM, 2):
        end_pod(state, note, signal)
        return
    fd = _open(note["pause"], state)
    if fd >= 0:
        try:
            kernel.pidfd_send_signal(fd, signal)
        finally:
            os.close(fd)


def end_pod(state: State, note: Note, signal: int) -> None:
    """Signals pause, waits for the end of it and of its members' monitors, then forgets them."""
    fd = _open(note["pause"], state)
    if fd >= 0:
        try:
            try:
                kernel.pidfd_send_signal(fd, signal)
            except KernelError as error:
                if error.errno != ESRCH:
                    raise
            if not _wait_dead(fd, 10):
                raise BadInput(
                    f"pod {note['name']!r} does not end",
                    hint="an unreaped zombie of its PID namespace, or a process in disk sleep: nsrun pod ps, ps -eo pid,ppid,stat,wchan,args",
                )
        finally:
            os.close(fd)
    for member in members_of(state, note):
        if member["shares_pid"]:
            wait_monitor(state, member)
    children.reap()
    sweeper = Sweeper(state)
    sweeper.one("pods", note["name"])
    from nsrun.host import cgroup

    cgroup.remove_empty(state)
    if note["network"]["mode"] == "bridge" and not state.uid:
        from nsrun.host import net

        net.remove_idle_bridge(state)


def remove_pod(state: State, name: str, force: bool) -> None:
    note = state.read("pods", name) if "/" not in name else None
    if note is None:
        if force:
            return
        state.pod(name)
        return
    if pod_status(state, note) in ("running", "created"):
        if not force:
            raise BadInput(f"pod {name!r} is running", hint=f"nsrun pod stop {name}, or: nsrun pod rm -f {name}")
        end_pod(state, note, SIGKILL)
    else:
        Sweeper(state).one("pods", name)


# ---- logs --------------------------------------------------------------------------------------------------


def _log_lines(path: str) -> list[tuple[str, str, str]]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            return [_parse(line) for line in file]
    except FileNotFoundError:
        return []


def _parse(line: str) -> tuple[str, str, str]:
    """ "TIME STREAM F|P TEXT\\n" → (time, stream, text with its newline if it is a whole line)."""
    time, _, rest = line.partition(" ")
    stream, _, rest = rest.partition(" ")
    flag, _, text = rest.partition(" ")
    return time, stream, text if flag == "F" else text.removesuffix("\n")


def logs(state: State, name: str, tail: int | None = None, follow: bool = False) -> Iterator[tuple[str, str, str]]:
    """(time, stdout|stderr, text) of a member's output; with `follow`, until it has ended."""
    note = state.member(name)
    directory = state.path("members", note["name"])
    lines = _log_lines(f"{directory}/log.1") + _log_lines(f"{directory}/log")
    if tail is not None:
        lines = lines[len(lines) - min(tail, len(lines)) :]
    yield from lines
    if not follow:
        return
    import time

    path, file, rest = f"{directory}/log", None, ""
    try:
        while True:
            ended = state.member_status(note)[0] not in ("running", "stopping", "created")
            if file is None:
                try:
                    file = open(path, encoding="utf-8", errors="surrogateescape", newline="\n")  # noqa: SIM115
                    if not rest:
                        file.seek(0, os.SEEK_END)
                except FileNotFoundError:
                    pass
            if file and (chunk := file.read()):
                *whole, rest = (rest + chunk).split("\n")
                yield from (_parse(line + "\n") for line in whole)
                continue
            if ended:
                return
            try:
                if file and os.stat(path).st_ino != os.fstat(file.fileno()).st_ino:
                    file.close()  # rotated: the new one is read from its beginning
                    file = open(path, encoding="utf-8", errors="surrogateescape", newline="\n")  # noqa: SIM115
                    continue
            except FileNotFoundError:
                return
            time.sleep(0.1)
            note = state.read("members", note["name"]) or note
    finally:
        if file:
            file.close()


# ---- the monitor calls back --------------------------------------------------------------------------------


def ended(state: State, name: str, code: int, lead: int = -1) -> int:
    """What follows the end of a member with --restart or --rm; we are its former monitor.  Its exit status.

    `lead`: the nsrun in the foreground that waits for us, when we were forked by the pod's door.
    """
    note = state.read("members", name)
    if note is None:
        return code
    if note["rm"]:
        forget_member(state, note, its_cgroup=False)  # the monitor has removed it
        return code
    policy, _, retries = note["restart"].partition(":")
    stop = os.path.exists(state.path("members", name, "stop"))
    bound = int(retries or 0)
    again = policy == "always" or (policy == "on-failure" and code != 0 and (not bound or note["restarts"] < bound))
    if stop or not again:
        return code
    options = state.read("members", name, "options.json")
    pod = state.read("pods", note["pod"])
    if options is None or pod is None or pod["id"] != note["pod_id"] or not state.alive(pod.get("pause")):
        return code
    from nsrun import api

    try:
        os.unlink(state.path("members", name, "exit"))
    except FileNotFoundError:
        pass
    try:
        api.join(state, note["pod"], options, again={**note, "lead": lead})
    except Exception:
        # what it was goes back to being true: it has ended, with this status
        state.save("members", name, note)
        with open(state.path("members", name, "exit"), "w") as file:
            file.write(f"{code} {api.timestamp()}\n")
        raise
    return code
