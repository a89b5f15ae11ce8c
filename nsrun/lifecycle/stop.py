# SPDX-License-Identifier: Apache-2.0
"""Signal, stop and kill members and pods.  Each wait is bounded, and what has not ended by then is an error."""

from __future__ import annotations

import os
from errno import ESRCH

from nsrun import kernel
from nsrun.errors import BadInput, KernelError, NsrunError, UnknownError
from nsrun.state import ALIVE, PAUSED, PORTS, life
from nsrun.state.sweep import Sweeper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsrun.state import Note, State

SIGKILL, SIGTERM, SIGCONT = 9, 15, 18


def wait_dead(pidfd: int, seconds: float | None) -> bool:
    from select import poll

    poller = poll()
    if pidfd >= 0:
        poller.register(pidfd, 1)
    return bool(poller.poll(None if seconds is None else int(seconds * 1000)))


def send(pidfd: int, signal: int) -> None:
    """Send the signal, unless the process has just ended."""
    try:
        kernel.pidfd_send_signal(pidfd, signal)
    except KernelError as error:
        if error.errno != ESRCH:
            raise


def _may_end(pidfd: int, what: str, note: Note, pod: Note | None = None) -> None:
    """Raise BadInput when it can't be ended from here.  This is checked before anything is done or marked.

    A member whose cgroup is gone while that of its `pod` is visible can be ended, since the owner of the pod may have
    removed it.
    """
    from nsrun.host import cgroup

    try:
        send(pidfd, 0)
    except KernelError as error:
        raise BadInput(f"you may not end {what}: {error}", errno=error.errno or 0) from None
    try:
        cgroup.check_reach(note["cgroup"], note.get("cgroup_id", 0))
    except BadInput:
        if wait_dead(pidfd, 0):
            return  # it has just ended, and its cgroup was removed with it
        if pod is None or pod["id"] != note["pod_id"]:
            raise
        cgroup.check_reach(pod["cgroup"], pod.get("cgroup_id", 0))


def settled(state: State, kind: str, note: Note, seconds: float = 10.0) -> Note:
    """Wait until an nsrun has made a pod or member, started it again, or failed; return its note.

    Raise what _settled raises.
    """
    return _settled(state, kind, note, seconds)[0]


def _settled(state: State, kind: str, note: Note, seconds: float = 10.0) -> tuple[Note, life.Life]:
    """Do the same, and return what the kernel said of it then, too: whoever takes it up afterwards is another.

    Raise UnknownError when that failed, or another has the name by now, and BadInput when it takes too long.  What runs, or
    has ended, is not waited for long: its maker may be stopped, or `cp` may use what the member wrote.
    """
    from time import monotonic, sleep

    begun = monotonic()
    while True:
        now, found = state.note_and_life(kind, note["name"])
        if now is None or now["id"] != note["id"]:
            raise UnknownError(f"{kind[:-1]} {note['name']!r} has gone: what made it failed, or it was removed")
        if not _is_being_made(kind, now, found):
            return now, found
        waited = monotonic() - begun
        if waited >= 2 and (found.kept or (kind == "members" and state.exit_of(note["name"]))):
            return now, found
        if waited >= seconds:
            who = f"nsrun (process {found.maker})" if found.maker else "an nsrun that is not visible from here"
            raise BadInput(
                f"{kind[:-1]} {note['name']!r} is being made by {who}", hint="try again, or end that process"
            )
        sleep(0.01)


def _is_being_made(kind: str, note: Note, found: life.Life) -> bool:
    """Return whether an nsrun makes a pod or member.

    The note of a member that is started again has the process of its former life until that is done.
    """
    if kind == "pods":
        return found.alive and not found.kept and "pause" not in note
    return found.maker not in (None, found.keeper, os.getpid())


def await_begun(state: State, note: Note, seconds: float = 10.0) -> None:
    """Wait as long as an nsrun makes a member, or was killed at that: then what it has made ends in a moment.

    What runs on without a maker, which was killed just after it had let it go, runs.  Raise BadInput when it takes too long.
    """
    from time import monotonic, sleep

    try:
        settled(state, "members", note, seconds)
    except UnknownError:
        return  # it has gone
    end = monotonic() + 2
    while (now := state.read("members", note["name"])) and now["id"] == note["id"] and monotonic() < end:
        if state.began(now) or state.member_status(now)[0] not in ALIVE:
            return
        sleep(0.01)


def is_used(state: State, name: str) -> bool:
    """Return whether another nsrun has a member that has ended for itself: to copy its files, to start it or to remove it."""
    found = state.life("members", name)
    return found.keeper is None and found.maker not in (None, os.getpid())


def lock_of(state: State, name: str, seconds: float = 0.0) -> int:
    """Return a descriptor with the lock of whoever starts a member again, or renames it; -1: another process has it for so long.

    It is on the directory of the member, and so stays with it under any name: flock(2).
    """
    import fcntl
    from time import monotonic, sleep

    end = monotonic() + seconds
    with kernel.Fd(os.open(state.path("members", name), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return fd.take()
            except BlockingIOError:
                if monotonic() >= end:
                    return -1
            sleep(0.01)


def signal_member(state: State, note: Note, signal: int) -> None:
    """Send a signal to a member.  Raise UnknownError when it is not running."""
    fd, _ = state.process(settled(state, "members", note))
    if fd < 0:
        raise UnknownError(f"member {note['name']!r} is not running", hint="nsrun ls -a")
    try:
        kernel.pidfd_send_signal(fd, signal)
    finally:
        os.close(fd)


def patience(note: Note, seconds: float | None) -> float:
    """Return how long a stop waits before SIGKILL: what the caller says, or --stop-timeout of the member."""
    return float(note.get("stop_timeout", 10)) if seconds is None else seconds


def stop_member(state: State, note: Note, seconds: float | None = None, signal: int = 0) -> bool:
    """Send a member its stop signal (or another), after `seconds` SIGKILL to its cgroup, and wait until it has ended.

    Nothing else is signalled.  Return whether SIGKILL was needed.  Raise NsrunError when it does not end.
    """
    killed = _stop_member(state, note, seconds, signal)
    while killed is None:  # it was removed, or has another name by now
        if (now := state.same_member(note)) is None or now["name"] == note["name"]:
            return False
        note = now
        killed = _stop_member(state, note, seconds, signal)
    return killed


def _stop_member(state: State, note: Note, seconds: float | None, signal: int) -> bool | None:
    """Do the same under the name that the note says; return None when the member has it no more."""
    killed, dead = False, True
    try:
        note, seen = _settled(state, "members", note)
    except UnknownError:
        return None
    lived = note.get("process")
    fd, _ = state.process(note)
    try:
        if fd >= 0:
            now = state.read("members", note["name"])
            if now is None or now["id"] != note["id"]:
                return None  # it has ended, and was removed
            note = now  # it may have been restarted, in another cgroup
            _may_end(fd, f"member {note['name']!r}", note, state.try_read("pods", note["pod"]))
        try:
            state.mark("members", note["name"], "stop")
        except FileNotFoundError:
            return None
        if fd < 0:
            _end_wait(state, note)
        now, found = state.note_and_life("members", note["name"])
        # who was there already, `cp` for example, does not start it
        again = _is_being_made("members", note, found) and found.maker != seen.maker
        if now and now["id"] == note["id"] and (again or now.get("process") != lived):
            return _stop_member(
                state, now, seconds, signal
            )  # somebody has just started it again: the mark is on that life
        if fd >= 0:
            signal = signal or note["stop_signal"]
            if signal != SIGKILL:
                send(fd, signal)
                thaw(state, note)  # the signal is the first that it meets
            if signal == SIGKILL or not wait_dead(fd, patience(note, seconds)):
                kill_member(note, fd)
                killed, dead = signal != SIGKILL, wait_dead(fd, 10)
    finally:
        if fd >= 0:
            os.close(fd)
    if not dead or (found.keeper is not None and not end_monitor(state, note, found.keeper)):
        raise NsrunError(
            f"member {note['name']!r} does not end",
            hint=f"{'the member' if not dead else 'its monitor (nsrun-monitor)'} is frozen, or in disk sleep: ps -eo pid,ppid,stat,wchan,args",
        )
    return killed


def thaw(state: State, note: Note) -> bool:
    """Let a member that was paused go on; return whether it had been.  SIGKILL needs no thawing: it ends what is frozen."""
    if not state.marked("members", note["name"], PAUSED):
        return False
    from nsrun.host import cgroup

    where = note["cgroup"], note.get("cgroup_id", 0)
    was = cgroup.is_frozen(*where)
    cgroup.freeze(*where, False)
    state.unmark("members", note["name"], PAUSED)  # only now: a mark without a frozen cgroup means nothing
    return was


def _monitor(state: State, note: Note, keeper: int | None = None) -> int:
    """Return a pidfd of a member's keeper; -1 when there is none, or it is this very process, or not `keeper`, if that is known.

    Raise BadInput when it is not visible from here.
    """
    found = state.life("members", note["name"])
    if found.keeper is None or found.keeper == os.getpid() or keeper not in (None, found.keeper):
        return -1
    if not found.keeper:
        raise BadInput(
            f"member {note['name']!r} lives, but its monitor is not visible from this PID namespace",
            hint="run it in the machine's initial PID namespace",
        )
    return life.open_pid(found.keeper, state.held("members", note["name"]), life.KEEPER)


def _end_wait(state: State, note: Note) -> None:
    """Tell a monitor that waits before it restarts its member not to do so."""
    fd = _monitor(state, note)
    if fd >= 0:
        try:
            send(fd, SIGTERM)
        finally:
            os.close(fd)


def kill_member(note: Note, fd: int) -> None:
    """SIGKILL everything in the member's cgroup, and its first process, which the pod's owner may have moved elsewhere."""
    from nsrun.host import cgroup

    if note.get("cgroup"):
        cgroup.kill(note["cgroup"], note.get("cgroup_id", 0))
    send(fd, SIGKILL)


def wait_monitor(state: State, note: Note, seconds: float | None = 10, keeper: int | None = None) -> bool:
    """Wait until the monitor has written the exit status and has ended; return False when that takes longer.

    `keeper`: its pid, if that is known: another one keeps a member that was started again meanwhile, and is not waited for.
    """
    name = note["name"]
    if (now := state.read("members", name)) is None or now["id"] != note["id"]:
        return True
    if (kept := life.children.get(note["id"], -1)) >= 0:
        return wait_dead(kept, seconds)
    fd = _monitor(state, note, keeper)
    try:
        return fd < 0 or wait_dead(fd, seconds)
    finally:
        if fd >= 0:
            os.close(fd)
        kernel.reap()


def end_monitor(state: State, note: Note, keeper: int | None = None) -> bool:
    """Wait for the monitor of a member that has ended; return False when it does not end.  `keeper`: as for wait_monitor.

    A monitor that is stopped (Ctrl-Z, SIGSTOP) is continued, one whose reader takes nothing is told to drop what is
    unread, and one that does not react even to that is killed.
    """
    if wait_monitor(state, note, 2, keeper):
        return True
    for signals, seconds in (((SIGCONT, SIGTERM), 5), ((SIGKILL,), 5)):
        fd = _monitor(state, note, keeper)
        try:
            for signal in signals:
                if fd >= 0:
                    send(fd, signal)
        finally:
            if fd >= 0:
                os.close(fd)
        if wait_monitor(state, note, seconds, keeper):
            return True
    return False


def stop_members(state: State, notes: list[Note], seconds: float | None) -> list[bool | OSError | NsrunError]:
    """Stop several members at the same time; for each, return whether SIGKILL was needed, or why it does not end."""
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


def stop_pod(state: State, name: str, seconds: float | None = None, ident: str = "") -> list[str]:
    """Stop a pod: its members by their stop signals, all at the same time, then pause.  `ident`: its id, if that is known.

    Return the names of those that needed SIGKILL.  Raise NsrunError when something does not end.
    """
    note = state.pod(name)
    if ident and note["id"] != ident:
        raise UnknownError(f"pod {name!r} is another one by now", hint="nsrun pod ls")
    fd, _ = state.pause(note)
    if fd >= 0:
        try:
            _may_end(fd, f"pod {name!r}", note)
        finally:
            os.close(fd)
    members = state.members_of(note)
    found = stop_members(state, members, seconds)
    end_pod(state, note, SIGTERM)
    for failed in found:
        if not isinstance(failed, bool):
            raise failed
    return [member["name"] for member, killed in zip(members, found, strict=True) if killed]


def kill_pod(state: State, name: str, signal: int) -> None:
    """Send the signal to pause, without any grace.

    KILL, TERM and INT end the pod, and then its notes are removed, too.
    """
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
    """Signal pause, wait until it and its members' monitors have ended, then remove their notes.

    For a pod that root made for a user, root ends what is root's whatever the owner does: nsrun-hold, with ports and
    table, the veth, and everything in the pod's cgroup.  Raise NsrunError when something does not end.
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
                state.mark_removing(name)  # an nsrun that makes a member meanwhile checks this when it is made
            except OSError:
                # the owner has no directory of a pod that root made; and a full disk must not prevent ending a pod
                pass
            try:
                send(fd, signal)
                send(fd, SIGCONT)  # a stopped pause would not receive the other signal
            except KernelError:
                state.unmark("pods", name, "removing")
                raise
            ended = _let_go(state, note, fd, 10 if own or signal != SIGKILL else 1)
            if own and not ended and signal != SIGKILL:
                send(fd, SIGKILL)
                ended = _let_go(state, note, fd, 10)
        finally:
            os.close(fd)
    if any(entry.startswith(PORTS) for entry in _entries(state, name)):
        from nsrun.lifecycle.ports import end

        end(state, note)
    if not own:
        _end_roots_own(state, note)
    elif not ended:
        state.unmark("pods", name, "removing")
        raise NsrunError(
            f"pod {name!r} does not end",
            hint="its pause is in disk sleep, or frozen (ps -eo pid,ppid,stat,wchan,args); or this command runs in the pod, which can't end itself",
        )
    for member in state.members_of(note):
        if member["shares_pid"] and not end_monitor(state, member):
            raise NsrunError(
                f"the monitor of member {member['name']!r} does not end",
                hint="is it frozen, or in disk sleep? ps -eo pid,ppid,stat,wchan,args",
            )
    kernel.reap()
    if not Sweeper(state).remove_pod(note):
        raise NsrunError(f"another process keeps pod {name!r}", hint="nsrun pod ls -a")
    from nsrun.host import cgroup

    cgroup.remove_empty(state.uid)
    if note["network"]["mode"] == "bridge" and not state.uid:
        from nsrun.host.bridges import remove_idle_bridge
        from nsrun.state.networks import bridge_in

        bridge = bridge_in(note["network"])
        state.after(lambda: remove_idle_bridge(lambda: state.lock("net"), bridge))


def end_pod_of(state: State, note: Note) -> None:
    """End the pod that was made for a member (`run`), unless others are in it, or that can't be told."""
    from nsrun.lifecycle.query import owners_members

    pod = state.read("pods", note["pod"])
    if pod is None or pod["id"] != note["pod_id"]:
        return
    if pod.get("user") and not state.uid and (not pod["cgroup"] or owners_members(state, pod)):
        return
    others = [other for other in state.members_of(pod) if other["id"] != note["id"]]
    if not state.broken and not any(state.member_status(other)[0] in ALIVE for other in others):
        end_pod(state, pod, SIGKILL)


def _entries(state: State, name: str) -> list[str]:
    try:
        return os.listdir(state.path("pods", name))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _let_go(state: State, note: Note, pidfd: int, seconds: float) -> bool:
    """Wait until pause has ended, or has released its locks; return False when that takes longer than `seconds`.

    A zombie in its PID namespace that nobody reaps delays its end.
    """
    from time import monotonic

    shown = f"{state.owned}/{note['user']['uid']}/{note['name']}.held" if note.get("user") and not state.uid else ""
    end, step = monotonic() + seconds, 0.001
    while not wait_dead(pidfd, step):
        now = life.ask(shown) if shown else state.pod_life(note)
        if now.keeper is None:
            return True
        if monotonic() >= end:
            return False
        step = min(2 * step, 0.05)
    return True


def _end_roots_own(state: State, note: Note) -> None:
    """As root, end what lives of an owned pod, first nsrun-hold, since that has the ports and the table."""
    from nsrun.host import cgroup

    found = state.life("pods", note["name"])
    if found.holder:
        fd = life.open_pid(found.holder, state.held("pods", note["name"]), life.HOLDER)
        if fd >= 0:
            try:
                send(fd, SIGKILL)
                life.wait(state.held("pods", note["name"]), fd, 10, life.HOLDER)
            finally:
                os.close(fd)
    if note["cgroup"]:
        cgroup.kill(note["cgroup"], note.get("cgroup_id", 0))
