# SPDX-License-Identifier: Apache-2.0
"""What no note knows: data whose member was forgotten, damaged notes, processes and cgroups of pods whose notes are gone.

`nsrun doctor` shows them.  `nsrun pod prune` ends the processes, since nobody can end them otherwise, and `--all` also removes
data, after it has said whose and how much; a cgroup may be another state directory's, and goes only when nothing is in it.
Nothing here is found by a number alone: a process of ours is known by the `held` file that it has open, data by the file beside them.
"""

from __future__ import annotations

import os

from nsrun import kernel
from nsrun.errors import BrokenNote, KernelError
from nsrun.schema import is_directory, is_name, is_number, is_there
from nsrun.state import life

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from nsrun.state import Note, State
    from nsrun.state.life import Life


_GONE = " (deleted)"  # proc_pid_fd(5)


class Data:
    """What a member wrote, and no note of this state directory speaks of."""

    def __init__(self, ident: str, path: str, what: str, size: int, free: bool, told: bool) -> None:
        self.ident, self.path, self.what, self.size = ident, path, what, size
        self.free = free  # it is proven that nothing runs that could use it, or nothing is left that could tell
        self.told = told  # a note that can't be read may speak of them

    def __str__(self) -> str:
        return f"{self.path}: {self.what}, {self.size} bytes" + (
            "" if self.free else ", in use, or nothing tells that it is not"
        )


class Process:
    """A pause, monitor or nsrun-hold whose state directory was removed or replaced."""

    def __init__(self, pid: int, name: str, path: str) -> None:
        self.pid, self.name, self.path = pid, name, path

    def __str__(self) -> str:
        return f"process {self.pid} ({self.name}), of {self.path}, which is gone"


def data(state: State) -> list[Data]:
    """Of every directory of data without a note: whose it was, and how much."""
    known = {note["id"] for note in state.all("members")}
    unread = {name for name, _ in unreadable(state, "members")}
    found = []
    for ident in state.idents():
        path = state.upper(ident)
        if ident in known or not is_directory(path):
            continue
        about = None
        try:
            about = state.about(ident)
            what = f"of member {about['name']!r} of pod {about['pod']!r}" if about else "of nobody known"
        except BrokenNote as error:
            what = f"of nobody known ({error.why})"
        told = about["name"] in unread if about else bool(unread)  # a note that can't be read may speak of them
        free = not told and (state.is_free(ident) or state.is_unclear(ident))
        found.append(Data(ident, path, what, _size(path), free, told))
    return found


def _size(path: str) -> int:
    """Bytes of all files; 0 where they can't be seen: of a user, some are only visible in a user namespace."""
    from nsrun.host.trees import measure

    try:
        return measure(path)[1]
    except OSError:
        return 0


def processes(state: State) -> list[Process]:
    """Those that hold a `held` of this state directory which was removed, when no note speaks of it.

    It is this directory's by its file system and mount, not by its path alone, which is another's in another mount namespace; one
    that is only out of view here is no orphan's.  What can't be asked about is not ended.
    """
    found = []
    roots = (state.run,) if state.uid else (state.run, state.owned)
    mounts = {root: where for root in roots if (where := _where(root))}
    for pid, name, number, path in _holders():
        root = next((root for root in mounts if path.startswith(f"{root}/")), "")
        try:
            st = os.stat(f"/proc/{pid}/fd/{number}")
            mine = root and st.st_nlink == 0 and (st.st_dev, _mount_id(pid, number)) == mounts[root]
            if not mine or _is_known(state, path.removesuffix(_GONE), st.st_ino):
                continue
            if root == state.owned and os.stat(f"/proc/{pid}").st_uid == 0:
                continue  # a file that its owner could give to anybody
        except (OSError, BrokenNote):
            continue
        held = path.removesuffix(_GONE)
        found.append(Process(pid, name, os.path.dirname(held) if held.endswith("/held") else held))
    return found


def _where(path: str) -> tuple[int, int] | None:
    """(device, mount id) of a directory; None: there is none."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return os.fstat(fd).st_dev, _mount_id(os.getpid(), str(fd))
    finally:
        os.close(fd)


def _mount_id(pid: int, number: str) -> int:
    """Of an open file: proc_pid_fdinfo(5)."""
    with open(f"/proc/{pid}/fdinfo/{number}", "rb") as file:
        return int(file.read(4096).partition(b"mnt_id:")[2].split(None, 1)[0])


def _is_known(state: State, held: str, inode: int) -> bool:
    """Does a note speak of the thing whose `held` this was?  BrokenNote.

    Of a pod that root made for a user, it was what that user is shown (OWNED/UID/NAME.held): root's own `held` is the proof.
    """
    if held.startswith(f"{state.owned}/"):
        uid, _, name = held.removeprefix(f"{state.owned}/").removesuffix(".held").partition("/")
        note = state.read("pods", name)
        return note is not None and str(note.get("user", {}).get("uid")) == uid
    kind, _, name = os.path.dirname(held).removeprefix(f"{state.run}/").partition("/")
    if kind not in ("pods", "members") or not name:
        return False
    note = state.read(kind, name)
    return note is not None and note.get("held", inode) == inode


def pauses_of(state: State, name: str) -> list[int]:
    """The pauses that have the `held` of a pod of this name open, whatever became of its note, its lock and its nsrun-hold."""
    mounts = {root: _where(root) for root in (state.run, state.owned)}
    found = []
    for pid, program, number, path in _holders((_GONE, "")):
        held = path.removesuffix(_GONE)
        theirs = not state.uid and held.removeprefix(f"{state.owned}/").partition("/")[2] == f"{name}.held"
        root = state.owned if theirs else state.run if held == f"{state.run}/pods/{name}/held" else ""
        try:
            st = os.stat(f"/proc/{pid}/fd/{number}")
            if root and program == "pause" and (st.st_dev, _mount_id(pid, number)) == mounts[root]:
                found.append(pid)
        except OSError:
            continue
    return found


INITIAL_PID = 0xEFFFFFFC  # PROC_PID_INIT_INO, linux/proc_ns.h


def is_kept_elsewhere(state: State, name: str) -> bool:
    """Root, in a PID namespace of its own: is the file that an owner of such a pod is shown locked by a process that it can't see?

    In the machine's own, where every process is seen, pauses_of tells: the owner can lock that file, too.
    """
    if state.uid or sees_every_process():
        return False
    try:
        owners = os.listdir(state.owned)
    except FileNotFoundError:
        return False
    return any(life.ask(f"{state.owned}/{uid}/{name}.held").keeper == 0 for uid in owners)


def _holders(ends: tuple[str, ...] = (_GONE,)) -> Iterator[tuple[int, str, str, str]]:
    """(pid, name, number of a descriptor, path of the `held`, removed or not as `ends` says, that it is)…"""
    for pid in filter(is_number, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/comm", "rb") as file:
                name = file.read(64).strip()
            if name not in (b"pause", b"nsrun-monitor", b"nsrun-hold"):
                continue
            for number in os.listdir(f"/proc/{pid}/fd"):
                path = os.readlink(f"/proc/{pid}/fd/{number}")
                if path.endswith(tuple(name + end for name in ("/held", ".held") for end in ends)):
                    yield int(pid), name.decode(), number, path
        except OSError:
            continue  # it has ended, or is not ours to look into


def end(process: Process, state: State) -> bool:
    """SIGKILL, and its pod's cgroup goes; False when it is not what it was any more."""
    from select import poll

    from nsrun.host import cgroup

    fd = kernel.pidfd_of(process.pid)
    if fd < 0:
        return False
    try:
        if not any(process.pid == again.pid for again in processes(state)):  # asked with the pidfd in hand
            return False
        group = _group_of(process)
        kernel.pidfd_send_signal(fd, 9)
        if group:
            poller = poll()
            poller.register(fd, 1)
            if not poller.poll(10_000):
                return False
            cgroup.remove(f"{group}.hold", kill=True)
            cgroup.remove(group, kill=True)
        return True
    except KernelError:
        return False
    finally:
        os.close(fd)


#: Seconds: who makes a pod, of another state directory perhaps, has a process in its cgroup long before.
IDLE = 5


def lost_members(state: State) -> list[Note]:
    """What stands beside the data of every member that runs, that nobody keeps, and that no note speaks of."""
    found = []
    for lost in data(state):
        try:
            committed = None if lost.free or lost.told else state.committed(lost.ident)
        except BrokenNote:
            continue
        if committed is None or life.ask(f"{lost.path}/{life.HELD}").alive:
            continue
        if is_running(state, committed):
            found.append(committed)
    return found


def runs_without_note(state: State, name: str) -> bool:
    """Does something run of a member of this name that only its data speak of?"""
    if _held_of_data(state, name):
        return True
    known = {note["id"] for note in state.all("members")}
    for ident in state.idents():
        try:
            committed = None if ident in known else state.committed(ident)
        except BrokenNote:
            continue
        if committed and committed["name"] == name and is_running(state, committed):
            return True
    return False


def is_running(state: State, committed: Note) -> bool:
    """Does something surely run of a member whose monitor was killed: its process, or something in a cgroup that is nobody else's?"""
    from nsrun.host import cgroup

    if (fd := state.noted_process(committed)) >= 0:
        os.close(fd)
        return True
    place = (committed["cgroup"], committed["cgroup_id"])
    others = [(n["cgroup"], n.get("cgroup_id", 0)) for n in state.all("members") if n["id"] != committed["id"]]
    return place not in others and cgroup.count(*place) > 0


def remove_idle_cgroups(state: State, name: str = "") -> list[str]:
    """Remove the cgroups of pods that no note knows and no process is in; return which.  rmdir(2) takes none that is in use.

    `name`: only those of a pod of this name, however young, since its note has just been given up.
    """
    from time import time

    from nsrun.host import cgroup

    found = []
    for path, count in cgroups(state):
        try:
            ours = is_of_pod(path, name) if name else time() - os.stat(path).st_ctime >= IDLE
            if count or not ours:
                continue
            cgroup.remove(path)
        except OSError:
            continue  # it has just gone, or a process came
        if not is_there(path):
            found.append(path)
    return found


def is_of_pod(path: str, name: str) -> bool:
    """Is it the cgroup, NAME-ID, of a pod of this name?"""
    return os.path.basename(path).removesuffix(".hold").rpartition("-")[0] == name


def _group_of(process: Process) -> str:
    """The cgroup of a pod, from its pause; "" when that is not where nsrun makes them."""
    from nsrun.host import cgroup

    group, pause = os.path.split(cgroup.of_process(process.pid))
    mount, base = cgroup.mount_point(), cgroup.base()
    ours = process.name == pause == "pause" and mount and base and os.path.dirname(group) == f"{mount}/{base}"
    return group if ours else ""


def cgroups(state: State) -> list[tuple[str, int]]:
    """(directory, processes in it) of pods below the base that no note knows; they may be another state directory's."""
    from nsrun.host import cgroup

    mount = cgroup.mount_point()
    if state.uid or not mount or not cgroup.base():
        return []
    base = f"{mount}/{cgroup.base()}"
    known = {note["cgroup"] for note in state.all("pods")}
    try:
        entries = sorted(os.listdir(base))
    except FileNotFoundError:
        return []
    found = [f"{base}/{entry}" for entry in entries if is_directory(f"{base}/{entry}")]
    return [(path, len(cgroup.pids(path))) for path in found if path.removesuffix(".hold") not in known]


def unreadable(state: State, kind: str) -> list[tuple[str, Life]]:
    """The names under which there is a note that can't be read, and whether what it was about lives."""
    found = []
    for name in state.names(kind):
        if is_name(name):
            try:
                met = any(path in state.broken for path in state.notes_of(kind, name))
                if not met:
                    state.read(kind, name)
            except BrokenNote:
                met = True
            if met:  # also one that could be read a moment later: what was listed without it would be no list of all
                found.append((name, life_of_unreadable(state, kind, name)[0]))
    return found


def life_of_unreadable(state: State, kind: str, name: str) -> tuple[Life, str]:
    """Return who keeps what has a note that can't be read, and the file whose locks tell it.

    When the thing's own `held` was lost, too: of a pod, the pause that has it open; of a member, whoever keeps its data.
    """
    held = state.held(kind, name)
    try:
        found = state.life(kind, name)
        if found.alive:
            return found, held
        if kind == "pods":
            found.keeper = next(iter(pauses_of(state, name)), None)
        elif beside := _held_of_data(state, name):
            return life.ask(beside), beside
    except OSError:
        return life.Life(None, keeper=0), held  # it can't be asked: that is no death
    return found, held


def _held_of_data(state: State, name: str) -> str:
    """Return the `held` beside the data of a living member of this name that no note speaks of; "": there are none."""
    known = {note["id"] for note in state.all("members")}
    for ident in state.idents():
        held = f"{state.upper(ident)}/{life.HELD}"
        try:
            committed = None if ident in known else state.committed(ident)
        except BrokenNote:
            continue
        if committed and committed["name"] == name and life.ask(held).alive:
            return held
    return ""


def sees_every_process() -> bool:
    """Is this the machine's own PID namespace, in which no process is out of view?  (hidepid hides those of others only.)"""
    return os.stat("/proc/self/ns/pid").st_ino == INITIAL_PID
