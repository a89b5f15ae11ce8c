# SPDX-License-Identifier: Apache-2.0
"""What the kernel says about mounts and roots, as a process sees them: proc_pid_mountinfo(5)."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from nsrun import kernel
from nsrun.errors import BadInput
from nsrun.teach.facts.namespaces import _named
from nsrun.teach.facts.processes import read

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Mount:
    """One line of proc_pid_mountinfo(5)."""

    number: int
    parent: int
    device: str  # MAJOR:MINOR of the superblock
    root: str  # the directory of the file system that is mounted
    point: str  # where, as the process sees it
    options: list[str]  # of the mount
    propagation: list[str]  # shared:N, master:N, …; [] is private
    fstype: str
    source: str
    superblock: list[str]  # options of the file system


def mounts(pid: int, fstype: str = "") -> list[Mount]:
    """Return the mounts that a process sees, all or those of one type of file system.

    [] when it has ended, or has more than a person ever makes.
    """
    try:
        text = read(pid, "mountinfo").decode("utf-8", "surrogateescape")
    except OSError:
        return []
    # of thousands in hundreds of namespaces, only what is asked for is taken apart
    return [_mount(line) for line in text.split("\n") if line and (not fstype or f" - {fstype} " in line)]


def _mount(line: str) -> Mount:
    left, _, right = line.partition(" - ")
    number, parent, device, root, point, options, *propagation = left.split(" ")
    fstype, source, superblock = right.split(" ", 2)
    return Mount(
        int(number), int(parent), device, _plain(root), _plain(point), options.split(","), propagation, fstype, _plain(source),
        superblock.split(","),
    )  # fmt: skip


def _plain(text: str) -> str:
    """Undo the octal escapes of blanks, newlines and backslashes."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def mount_at(pid: int, point: str) -> Mount | None:
    """Return the mount that a process sees at a path, the topmost if there are several."""
    found = [mount for mount in mounts(pid) if mount.point == point]
    return found[-1] if found else None


def mount_of(fd: int) -> Mount | None:
    """Return the mount that an open file of ours is in; None when our root directory does not lead there."""
    text = read(os.getpid(), f"fdinfo/{fd}").decode()
    number = next(int(line.split()[1]) for line in text.split("\n") if line.startswith("mnt_id:"))
    return next((mount for mount in mounts(os.getpid()) if mount.number == number), None)


def mounted_namespace(mount: Mount) -> tuple[str, int] | None:
    """Return (kind, inode) of the namespace of which a mount is a bind mount; None for any other mount."""
    return _named(mount.root) if mount.fstype == "nsfs" else None


def open_at(pid: int, path: str) -> int:
    """Return a descriptor (O_PATH) of a path as a process sees it; no link leads out of its root directory.

    Raise OSError when it is not there, the process has ended, or we may not look.
    """
    with kernel.Fd(os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as root:
        return kernel.open_in_root(root, path, os.O_PATH | os.O_CLOEXEC)


def identity_at(pid: int, path: str) -> tuple[int, int] | None:
    """Return (device, inode) of what a process sees at a path; None when there is nothing, or we may not look."""
    try:
        with kernel.Fd(open_at(pid, path)) as fd:
            st = os.fstat(fd)
    except OSError:
        return None
    return st.st_dev, st.st_ino


def root_of(pid: int) -> tuple[int, int] | None:
    """Return (device, inode) of the root directory of a process; None when it has ended, or we may not look."""
    return root_of_directory(f"/proc/{pid}/root/")


def root_of_directory(path: str) -> tuple[int, int] | None:
    """Return (device, inode) of a directory that may be the root of a process; None when there is none."""
    try:
        st = os.stat(path)
    except OSError:
        return None
    return st.st_dev, st.st_ino


def text_in_root(pid: int, path: str) -> str:
    """Return a small file as a process sees it below its root; "" when there is no such regular file.

    The kernel resolves the path inside that root (openat2(2)), so a link leads nowhere else, and a FIFO makes nobody wait.
    """
    try:
        return kernel.read_in_root(f"/proc/{pid}/root", path)
    except (OSError, BadInput):
        return ""


def names_in_root(pid: int, path: str) -> list[str]:
    """Return the names in a directory as a process sees it below its root; [] when there is no such directory."""
    with _in_root(pid, path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        return sorted(os.listdir(fd)) if fd >= 0 else []


def inode_in_root(pid: int, path: str) -> tuple[int, int] | None:
    """Return (device, inode) of a file as a process sees it below its root; None when there is none."""
    with _in_root(pid, path, os.O_PATH) as fd:
        if fd < 0:
            return None
        st = os.fstat(fd)
        return st.st_dev, st.st_ino


def _in_root(pid: int, path: str, flags: int) -> kernel.Fd:
    """Return a descriptor, which is -1 when the file can't be opened."""
    try:
        with kernel.Fd(os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as root:
            return kernel.Fd(kernel.open_in_root(root, path, flags | os.O_CLOEXEC))
    except OSError:
        return kernel.Fd(-1)


def root_of_namespace(pid: int) -> tuple[int, int] | None:
    """Return (device, inode) of what somebody gets as their root who joins the mount namespace of a process: setns(2).

    After pivot_root(2) that is the root of its processes, too; after chroot(2) it is not.  None when it can't be asked.
    Nothing is executed in there, since what stands at any path was put there by others.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC
    try:
        with (
            kernel.Fd(os.open(f"/proc/{pid}/ns/mnt", flags)) as mnt,
            kernel.Fd(os.open(f"/proc/{pid}/ns/user", flags)) as user,
        ):
            foreign = os.fstat(user).st_ino != os.stat("/proc/self/ns/user").st_ino
            return kernel.root_in(user if foreign and os.geteuid() else -1, mnt)
    except OSError:
        return None


def shm(pid: int) -> str:
    """Return MAJOR:MINOR of the file system that a process has at /dev/shm; "" when it has none of its own there.

    That decides with whom it shares POSIX shared memory: shm_overview(7).  The IPC namespace has no part in it.
    """
    try:
        lines = read(pid, "mountinfo").split(b"\n")
    except OSError:
        return ""
    # a process may have a thousand mounts, and the map asks of hundreds of processes: only this line is taken apart
    found = [line for line in lines if line.split(b" ", 5)[4:5] == [b"/dev/shm"]]
    return _mount(found[-1].decode("utf-8", "surrogateescape")).device if found else ""
