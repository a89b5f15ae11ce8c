# SPDX-License-Identifier: Apache-2.0
"""Find what no note speaks of: data whose member is gone, damaged notes, and processes and cgroups of lost pods.

`nsrun doctor` shows them.  `nsrun pod prune` ends the processes, since no other command can, and `--all` also removes
data, after it has said whose and how much.  A cgroup may belong to another state directory, and is removed only when it
is empty.  Nothing here is found by a number alone: a process is recognised by the `held` file that it has open, data by
the files beside it.
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
    """Data that a member wrote, and that no note of this state directory speaks of."""

    def __init__(self, ident: str, path: str, what: str, size: int, free: bool, told: bool) -> None:
        self.ident, self.path, self.what, self.size = ident, path, what, size
        self.free = free  # it is proven that nothing that runs uses it, or nothing is left that could tell
        self.told = told  # a note that can't be read may speak of it

    def __str__(self) -> str:
        return f"{self.path}: {self.what}, {self.size} bytes" + (
            "" if self.free else ", in use, or nothing proves that it is not"
        )


class Process:
    """A pause, monitor or nsrun-hold whose state directory was removed or replaced."""

    def __init__(self, pid: int, name: str, path: str) -> None:
        self.pid, self.name, self.path = pid, name, path

    def __str__(self) -> str:
        return f"process {self.pid} ({self.name}), of {self.path}, which is gone"


def data(state: State) -> list[Data]:
    """Return every directory of data without a note: whose it was, and how much it is."""
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
        told = about["name"] in unread if about else bool(unread)  # a note that can't be read may speak of it
        free = not told and (state.is_free(ident) or state.is_unclear(ident))
        found.append(Data(ident, path, what, _size(path), free, told))
    return found


def _size(path: str) -> int:
    """Return the bytes of all files; 0 when they can't be seen.

    Some of an ordinary user's are visible only in a user namespace.
    """
    from nsrun.host.trees import measure

    try:
        return measure(path)[1]
    except OSError:
        return 0


def processes(state: State) -> list[Process]:
    """Return the processes that have a removed `held` of this state directory open, when no note speaks of it.

    We compare file system and mount, not the path alone, which is another directory's in another mount namespace.  A
    file that is merely out of view here does not count, and a process that can't be asked about is left out, so neither
    is ended.
    """
    found = []
    roots = (state.run,) if state.uid else (state.run, state.owned)
    mounts = {root: _where(root) for root in roots}
    for pid, name, number, path in _holders():
        root = next((root for root in mounts if path.startswith(f"{root}/")), "")
        try:
            st = os.stat(f"/proc/{pid}/fd/{number}")
            mine = root and st.st_nlink == 0 and (st.st_dev, _mount_id(pid, number)) == mounts[root]
            if not mine or _is_known(state, path.removesuffix(_GONE), st.st_ino):
                continue
            if root == state.owned and os.stat(f"/proc/{pid}").st_uid == 0:
                continue  # the owner can open this file, and could pass it to any process
        except (OSError, BrokenNote):
            continue
        held = path.removesuffix(_GONE)
        found.append(Process(pid, name, os.path.dirname(held) if held.endswith("/held") else held))
    return found


def _where(path: str) -> tuple[int, int]:
    """Return (device, mount id) of a directory, or of the one that it would be made in.

    Someone may have removed the directory of all notes, and the processes that had them open are still to be found.
    """
    while True:
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            break
        except FileNotFoundError:
            path = os.path.dirname(path)
    try:
        return os.fstat(fd).st_dev, _mount_id(os.getpid(), str(fd))
    finally:
        os.close(fd)


def _mount_id(pid: int, number: str) -> int:
    """Return the mount id of an open file: proc_pid_fdinfo(5)."""
    with open(f"/proc/{pid}/fdinfo/{number}", "rb") as file:
        return int(file.read(4096).partition(b"mnt_id:")[2].split(None, 1)[0])


def _is_known(state: State, held: str, inode: int) -> bool:
    """Return whether a note speaks of the pod or member whose `held` this was.  Raise BrokenNote.

    For a pod that root made for a user, it was the file that the user is shown (OWNED/UID/NAME.held); the proof is
    root's own `held`.
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


def pauses_of(state: State, name: str, perhaps: bool = False) -> list[int]:
    """Return the pids of pauses that have the `held` of a pod of this name open.

    They do not depend on its note, its lock or its nsrun-hold.  `perhaps`: include those of which that can't be told from another
    mount namespace, where the same directory has another mount id.
    """
    mounts = {root: _where(root) for root in (state.run, state.owned)}
    found = []
    for pid, program, number, path in _holders((_GONE, "")):
        held = path.removesuffix(_GONE)
        theirs = not state.uid and held.removeprefix(f"{state.owned}/").partition("/")[2] == f"{name}.held"
        root = state.owned if theirs else state.run if held == f"{state.run}/pods/{name}/held" else ""
        try:
            st = os.stat(f"/proc/{pid}/fd/{number}")
            where = mounts.get(root)
            if where is None or program != "pause" or st.st_dev != where[0]:
                continue
            if perhaps or _mount_id(pid, number) == where[1]:
                found.append(pid)
        except OSError:
            continue
    return found


INITIAL_PID = 0xEFFFFFFC  # PROC_PID_INIT_INO, linux/proc_ns.h


def is_kept_elsewhere(state: State, name: str) -> bool:
    """Return whether a process out of view locks the file that the owner of a pod of this name is shown.

    That is for root in a PID namespace other than the initial one.  In the initial one, where every process is visible,
    pauses_of tells: the owner can lock that file, too.
    """
    if state.uid or sees_every_process():
        return False
    try:
        owners = os.listdir(state.owned)
    except FileNotFoundError:
        return False
    return any(life.ask(f"{state.owned}/{uid}/{name}.held").keeper == 0 for uid in owners)


def _holders(ends: tuple[str, ...] = (_GONE,)) -> Iterator[tuple[int, str, str, str]]:
    """Yield (pid, name, descriptor, path of the `held` that it is), removed or not as `ends` says."""
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
            continue  # it has ended, or we may not look into it


def end(process: Process, state: State) -> bool:
    """Kill the process and remove its pod's cgroup; return False when it is not an orphan any more."""
    from select import poll

    from nsrun.host import cgroup

    fd = kernel.pidfd_of(process.pid)
    if fd < 0:
        return False
    try:
        if not any(process.pid == again.pid for again in processes(state)):  # check again, now that we have the pidfd
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


#: Seconds within which a pod in the making, perhaps of another state directory, surely has a process in its cgroup.
IDLE = 5


def lost_members(state: State) -> list[Note]:
    """Return `committed`, from beside its data, of every member that runs without a keeper and without a note."""
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
    """Return whether something runs of a member of this name that only the files beside its data speak of."""
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
    """Return whether something surely runs of a member whose monitor was killed.

    That is its process, or any process in a cgroup that no other member uses.
    """
    from nsrun.host import cgroup

    if (fd := state.noted_process(committed)) >= 0:
        os.close(fd)
        return True
    place = (committed["cgroup"], committed["cgroup_id"])
    others = [(n["cgroup"], n.get("cgroup_id", 0)) for n in state.all("members") if n["id"] != committed["id"]]
    return place not in others and cgroup.count(*place) > 0


def remove_idle_cgroups(state: State, name: str = "") -> list[str]:
    """Remove the empty cgroups of pods that no note names; return their paths.  rmdir(2) refuses one that is in use.

    With `name`, only those of a pod of this name, however young, since its note has just been set aside.
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
    """Return whether this is the cgroup, NAME-ID, of a pod of this name."""
    return os.path.basename(path).removesuffix(".hold").rpartition("-")[0] == name


def _group_of(process: Process) -> str:
    """Return the cgroup of a pod, from that of its pause; "" when it is not where nsrun makes cgroups."""
    from nsrun.host import cgroup

    group, pause = os.path.split(cgroup.of_process(process.pid))
    mount, base = cgroup.mount_point(), cgroup.base()
    ours = process.name == pause == "pause" and mount and base and os.path.dirname(group) == f"{mount}/{base}"
    return group if ours else ""


def cgroups(state: State) -> list[tuple[str, int]]:
    """Return (directory, number of processes) for the cgroups of pods that no note names.

    Another state directory may name them.
    """
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
    """Return the names whose note can't be read, each with the life of its pod or member."""
    found = []
    for name in state.names(kind):
        if is_name(name):
            try:
                met = any(path in state.broken for path in state.notes_of(kind, name))
                if not met:
                    state.read(kind, name)
            except BrokenNote:
                met = True
            if met:  # even if it can be read now: a list that was made before lacks it
                found.append((name, life_of_unreadable(state, kind, name)[0]))
    return found


def life_of_unreadable(state: State, kind: str, name: str) -> tuple[Life, str]:
    """Return who keeps the pod or member whose note can't be read, and the file whose locks say so.

    When its own `held` was lost, too, it is for a pod the pause that has that file open, for a member the keeper of its
    data.
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
        return life.Life(None, keeper=0), held  # it can't be asked, which does not mean that it has ended
    return found, held


def _held_of_data(state: State, name: str) -> str:
    """Return the `held` beside the data of a living member of this name without a note; "" when there is none."""
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
    """Return whether this is the initial PID namespace, from which every process is visible.

    (hidepid hides only other users' processes.)
    """
    return os.stat("/proc/self/ns/pid").st_ino == INITIAL_PID
