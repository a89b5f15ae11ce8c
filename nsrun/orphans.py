"""What no note knows: data whose member was forgotten, damaged notes, processes and cgroups of pods whose notes are gone.

`nsrun doctor` shows them.  `nsrun pod prune` ends what lives without a note, since nobody can end it otherwise, and `--all`
also removes data, after it has said whose and how much.  Nothing here is found by a number alone: a process of ours is known
by the `held` file that it has open, data by the file beside them.
"""

from __future__ import annotations

import os

from nsrun import kernel
from nsrun.errors import BrokenNote, KernelError
from nsrun.schema import is_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from nsrun.state import State


class Data:
    """What a member wrote, and no note of this state directory speaks of."""

    def __init__(self, ident: str, path: str, what: str, size: int, free: bool) -> None:
        self.ident, self.path, self.what, self.size = ident, path, what, size
        self.free = free  # it is proven that nothing runs that could use it

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
    try:
        idents = sorted(os.listdir(f"{state.lib}/upper"))
    except FileNotFoundError:
        return []
    known = {note["id"] for note in state.all("members")}
    found = []
    for ident in idents:
        path = state.upper(ident)
        if ident in known or not os.path.isdir(path):
            continue
        try:
            about = state.about(ident)
            what = f"of member {about['name']!r} of pod {about['pod']!r}" if about else "of nobody known"
        except BrokenNote as error:
            what = f"of nobody known ({error.why})"
        found.append(Data(ident, path, what, _size(path), state.is_free(ident)))
    return found


def _size(path: str) -> int:
    """Bytes of all files; 0 where they can't be seen: of a user, some are only visible in a user namespace."""
    from nsrun.host.trees import measure

    try:
        return measure(path)[1]
    except OSError:
        return 0


def processes(state: State) -> list[Process]:
    """Those that hold a `held` of this state directory which was removed; one that is only out of view here is no orphan's."""
    found = []
    for pid, name, path in _holders():
        if path.startswith((f"{state.run}/pods/", f"{state.run}/members/", f"{state.owned}/")) and path.endswith(_GONE):
            found.append(Process(pid, name, os.path.dirname(path)))
    return found


_GONE = "/held (deleted)"  # proc_pid_fd(5)


def _holders() -> Iterator[tuple[int, str, str]]:
    """(pid, name, path of a `held` that it has open)…"""
    for pid in filter(is_number, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/comm", "rb") as file:
                name = file.read(64).strip()
            if name not in (b"pause", b"nsrun-monitor", b"nsrun-hold"):
                continue
            for number in os.listdir(f"/proc/{pid}/fd"):
                path = os.readlink(f"/proc/{pid}/fd/{number}")
                if "/held" in path:
                    yield int(pid), name.decode(), path
        except OSError:
            continue  # it has ended, or is not ours to look into


def end(process: Process, state: State) -> bool:
    """SIGKILL; False when it is not what it was any more."""
    fd = kernel.pidfd_of(process.pid)
    if fd < 0:
        return False
    try:
        if not any(process.pid == again.pid for again in processes(state)):  # asked with the pidfd in hand
            return False
        kernel.pidfd_send_signal(fd, 9)
        return True
    except KernelError:
        return False
    finally:
        os.close(fd)


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
    found = [f"{base}/{entry}" for entry in entries if os.path.isdir(f"{base}/{entry}")]
    return [(path, len(cgroup.pids(path))) for path in found if path.removesuffix(".hold") not in known]
