# SPDX-License-Identifier: Apache-2.0
"""What the kernel says about processes: proc_pid_stat(5), proc_pid_status(5), proc_pid_exe(5)."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from errno import EACCES, EFBIG, EPERM

from nsrun.schema import is_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass


#: The kinds of namespace, as /proc/PID/ns names them: namespaces(7).
KINDS = ("user", "pid", "net", "ipc", "uts", "mnt", "cgroup", "time")


@dataclass(frozen=True)
class Process:
    """A process as /proc shows it: proc_pid_stat(5), proc_pid_status(5)."""

    pid: int
    start: int  # clock ticks since boot; with the pid, the identity of the process
    ppid: int
    state: str  # R, S, D, T, Z, …
    name: str
    command: list[str]  # [] for a zombie and for a thread of the kernel
    uid: int  # the real one, in the caller's user namespace
    pids: list[int]  # its pid in each PID namespace, from the caller's to its own (NSpid)
    namespaces: dict[str, int]  # kind → inode; {} when we may not look
    status: dict[str, str] = field(repr=False)  # the lines of /proc/PID/status

    def mask(self, key: str) -> int:
        """Return a bit mask of `status`, such as CapEff or SigIgn."""
        return int(self.status[key], 16)


def process(pid: int, command_line: bool = True) -> Process | None:
    """Return what the kernel says about one process; None when there is none.

    Without `command_line` nothing is read that is in the process's own memory, which it can make us wait for.
    """
    try:
        stat = read(pid, "stat").rpartition(b")")[2].split()
        lines = read(pid, "status").decode("utf-8", "surrogateescape").split("\n")
        command = read(pid, "cmdline", cut=True) if command_line else b""
    except OSError:
        return None
    status = {key: value.strip() for key, _, value in (line.partition(":") for line in lines) if key}
    return Process(
        pid,
        int(stat[19]),
        int(stat[1]),
        stat[0].decode(),
        status["Name"],
        [os.fsdecode(word) for word in command.removesuffix(b"\0").split(b"\0")] if command else [],
        int(status["Uid"].split()[0]),
        [int(number) for number in status.get("NSpid", str(pid)).split()],
        namespaces_of(pid),
        status,
    )


def pids() -> list[int]:
    """Return the pid of every process that is visible in the caller's /proc, in order."""
    return sorted(int(entry) for entry in os.listdir("/proc") if is_number(entry))


def processes(command_lines: bool = True) -> list[Process]:
    """Return every process that is visible in the caller's /proc, in the order of their pids."""
    return [found for pid in pids() if (found := process(pid, command_lines))]


def inside(kind: str, inode: int) -> list[Process]:
    """Return the processes in one namespace."""
    return [found for found in processes() if found.namespaces.get(kind) == inode]


#: How much is read of one file of /proc/PID: whose process it is can make some of them very long.
MOST = 16 << 20


def read(pid: int, file: str, cut: bool = False) -> bytes:
    """Return a file of /proc/PID.

    Raise OSError when it can't be read; EFBIG when it is longer than MOST, unless it is to be cut there.
    """
    with open(f"/proc/{pid}/{file}", "rb", buffering=0) as opened:
        pieces, size = [], 0
        while piece := opened.read(1 << 16):
            pieces.append(piece)
            size += len(piece)
            if size > MOST and cut:
                break
            if size > MOST:
                raise OSError(EFBIG, os.strerror(EFBIG), f"/proc/{pid}/{file}")
        return b"".join(pieces)


def program(pid: int) -> str:
    """Return the path of the file that a process executes, proc_pid_exe(5); "" when it has ended, or we may not look.

    A process can change its name and its arguments, but not this.  A program that was written to memory has a path that
    begins with /memfd: and the name that it was given there.
    """
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""


def nice(pid: int) -> int:
    """Return the nice value of a process, 0 when it has ended: proc_pid_stat(5)."""
    try:
        return int(read(pid, "stat").rpartition(b")")[2].split()[16])
    except OSError:
        return 0


def is_pause(pid: int) -> bool:
    """Return whether a process executes nsrun's pause."""
    return program(pid) == "/memfd:nsrun-pause (deleted)"


def is_of_nsrun(process: Process) -> bool:
    """Return whether a process executes a program of nsrun's, such as pause, or is the first process of a member."""
    return program(process.pid).startswith("/memfd:nsrun-") or program(process.ppid).startswith("/memfd:nsrun-monitor ")


def namespaces_of(pid: int) -> dict[str, int]:
    """Return kind → inode of the namespaces of a process; {} when we may not look, or it has ended."""
    found = {}
    for kind in KINDS:
        try:
            # KIND:[INODE]; a stat() of it takes twice as long
            found[kind] = int(os.readlink(f"/proc/{pid}/ns/{kind}")[len(kind) + 2 : -1])
        except OSError as error:
            if error.errno in (EACCES, EPERM):
                return {}
    return found  # a kernel may lack a kind; a zombie has only some
