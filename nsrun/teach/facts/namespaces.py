# SPDX-License-Identifier: Apache-2.0
"""What the kernel says about namespaces: which there are, what is above them, and whose they are: namespaces(7), ioctl_ns(2)."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from errno import EINVAL, ENOTTY, EPERM

from nsrun import kernel
from nsrun.schema import is_number
from nsrun.teach.facts.processes import KINDS, Process, namespaces_of, process, read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


# linux/nsfs.h, ioctl_ns(2)
_NS_GET_USERNS, _NS_GET_PARENT, _NS_GET_NSTYPE, _NS_GET_OWNER_UID = 0xB701, 0xB702, 0xB703, 0xB704


_NS_GET_MNTNS_ID = 0x8008B705


_CLONE = {
    0x00000080: "time", 0x00020000: "mnt", 0x02000000: "cgroup", 0x04000000: "uts", 0x08000000: "ipc", 0x10000000: "user",
    0x20000000: "pid", 0x40000000: "net",
}  # fmt: skip


@dataclass(frozen=True)
class Namespace:
    """One namespace: ioctl_ns(2)."""

    kind: str
    inode: int
    parent: int  # inode of the parent, for kinds pid and user; 0: none, or not visible from here
    user: int  # inode of the user namespace that owns it; 0: not visible from here
    owner: int  # for a user namespace, the uid of its creator, in the caller's user namespace; otherwise -1


def namespace_at(fd: int) -> Namespace:
    """Do the same for an open file."""
    kind = _CLONE[fcntl.ioctl(fd, _NS_GET_NSTYPE)]
    owner = -1
    if kind == "user":
        answer = bytearray(4)
        fcntl.ioctl(fd, _NS_GET_OWNER_UID, answer)
        owner = int.from_bytes(answer, "little")
    return Namespace(kind, os.fstat(fd).st_ino, _related(fd, _NS_GET_PARENT), _related(fd, _NS_GET_USERNS), owner)


def family(fd: int, known: set[int] | None = None) -> Iterator[Namespace]:
    """Yield the namespace of an open file, those above it, and the user namespaces that own them, each once.

    It goes as far up as the caller may see.  `known` are inodes that are left out, with all above them; it grows.
    """
    known = set() if known is None else known
    found = namespace_at(fd)
    if found.inode in known:
        return
    known.add(found.inode)
    yield found
    for request in (_NS_GET_PARENT, _NS_GET_USERNS):
        with kernel.Fd(_follow(fd, request)) as other:
            if other >= 0:
                yield from family(other, known)


def id_map(pid: int, kind: str = "uid") -> list[tuple[int, int, int]]:
    """Return (first id inside, first id as the caller sees it, how many) of a process's user namespace.

    `kind` is "uid" or "gid"; user_namespaces(7).  [] when it has ended, or nothing was mapped yet.
    """
    try:
        lines = read(pid, f"{kind}_map").split(b"\n")
    except OSError:
        return []
    return [
        (int(inside), int(outside), int(many)) for inside, outside, many in (line.split() for line in lines if line)
    ]


def _follow(fd: int, request: int) -> int:
    """Return a descriptor of the related namespace; -1 when there is none, or it is outside the caller's own."""
    try:
        return fcntl.ioctl(fd, request)
    except OSError as error:
        # EPERM: it is outside the caller's own; EINVAL: this kind has no parents
        if error.errno in (EPERM, EINVAL, ENOTTY):
            return -1
        raise


def mount_namespace_id(fd: int) -> int:
    """Return the id of a mount namespace, which is never used again; 0 where the kernel does not tell, before Linux 6.10."""
    answer = bytearray(8)
    try:
        fcntl.ioctl(fd, _NS_GET_MNTNS_ID, answer)
    except OSError:
        return 0
    return int.from_bytes(answer, "little")


def initial() -> dict[str, int]:
    """Return the inodes of the machine's initial namespaces, by kind, as far as they can be told from here.

    Most have a fixed number (linux/proc_ns.h).  Those of kind net and mnt are the ones that the kernel's own threads are
    in, of which kthreadd is the first: process 2, which has no command line and no parent.
    """
    found = {"ipc": 0xEFFFFFFF, "uts": 0xEFFFFFFE, "user": 0xEFFFFFFD, "pid": 0xEFFFFFFC, "cgroup": 0xEFFFFFFB, "time": 0xEFFFFFFA}  # fmt: skip
    thread = process(2)
    if thread and thread.ppid == 0 and not thread.command and thread.name == "kthreadd":
        found |= {kind: thread.namespaces[kind] for kind in ("net", "mnt") if kind in thread.namespaces}
    return found


def threads(pid: int) -> list[tuple[int, dict[str, int]]]:
    """Return (tid, namespaces) of the threads of a process that are in other namespaces than its first thread."""
    try:
        tids = sorted(int(entry) for entry in os.listdir(f"/proc/{pid}/task") if is_number(entry))
    except OSError:
        return []
    first = namespaces_of(pid)
    found = [(tid, namespaces_of(tid)) for tid in tids if tid != pid]
    return [(tid, theirs) for tid, theirs in found if theirs and theirs != first]


def of_children(pid: int) -> dict[str, int]:
    """Return the namespaces in which the children of a process will be, where those are not its own: pid and time.

    namespaces(7).  A PID namespace without a first process yet has no file, and is left out.
    """
    found = {}
    for kind in ("pid", "time"):
        try:
            theirs, own = (os.stat(f"/proc/{pid}/ns/{name}").st_ino for name in (f"{kind}_for_children", kind))
        except OSError:
            continue
        if theirs != own:
            found[kind] = theirs
    return found


def descriptors(pid: int) -> list[tuple[int, str, int]]:
    """Return (number, kind, inode) of the namespaces that a process has open; [] when we may not look."""
    found = []
    try:
        numbers = [int(entry) for entry in os.listdir(f"/proc/{pid}/fd") if is_number(entry)]
    except OSError:
        return []
    for number in sorted(numbers):
        try:
            named = _named(os.readlink(f"/proc/{pid}/fd/{number}"))
        except OSError:
            continue  # it has just been closed
        if named:
            found.append((number, *named))
    return found


def _named(text: str) -> tuple[str, int] | None:
    """Return the kind and the inode in a text such as `net:[4026531840]`, as the kernel names a namespace's file."""
    kind, _, rest = text.partition(":[")
    return (kind, int(rest[:-1])) if kind in KINDS and rest[-1:] == "]" and is_number(rest[:-1]) else None


def uid_inside(found: Process) -> int:
    """Return the uid that a process has in its own user namespace; 65534, nobody's, when it is not mapped there."""
    for inside, outside, count in id_map(found.pid):
        if outside <= found.uid < outside + count:
            return inside + found.uid - outside
    return 65534


def owners(pid: int) -> list[int]:
    """Return the uids of those who created the user namespace of a process and its ancestors, up to our own, which is left out.

    [] when the process has ended, is in our own user namespace, or may not be looked into.
    """
    found: list[int] = []
    try:
        fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return found
    ours = os.stat("/proc/self/ns/user").st_ino
    while fd >= 0:
        with kernel.Fd(fd):
            if os.fstat(fd).st_ino == ours:
                break
            answer = bytearray(4)
            fcntl.ioctl(fd, _NS_GET_OWNER_UID, answer)
            found.append(int.from_bytes(answer, "little"))
            try:
                fd = fcntl.ioctl(fd, _NS_GET_PARENT)
            except OSError:  # EPERM: the parent is outside of ours
                fd = -1
    return found


def namespace(path: str) -> Namespace:
    """Return the namespace of a file such as /proc/PID/ns/net, or of a bind mount of one.

    Raise OSError: ENOTTY for a file that is no namespace.
    """
    with kernel.Fd(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as fd:
        return namespace_at(fd)


def _related(fd: int, request: int) -> int:
    with kernel.Fd(_follow(fd, request)) as other:
        return os.fstat(other).st_ino if other >= 0 else 0
