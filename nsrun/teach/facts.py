# SPDX-License-Identifier: Apache-2.0
"""Ask the kernel about processes and their namespaces; read no note, no log, and no file that a student can write.

What has just ended is left out, so nothing here fails because processes come and go.  A process that the caller may not
look into (ptrace(2), "Ptrace access mode checking") has no namespaces here, which is not to say that it shares ours.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import struct
import sys
from dataclasses import dataclass, field
from errno import EACCES, EINVAL, EIO, ENOTTY, EPERM

from nsrun import kernel
from nsrun.errors import BadInput
from nsrun.schema import is_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

#: The kinds of namespace, as /proc/PID/ns names them: namespaces(7).
KINDS = ("user", "pid", "net", "ipc", "uts", "mnt", "cgroup", "time")

# linux/nsfs.h, ioctl_ns(2)
_NS_GET_USERNS, _NS_GET_PARENT, _NS_GET_NSTYPE, _NS_GET_OWNER_UID = 0xB701, 0xB702, 0xB703, 0xB704
_NS_GET_MNTNS_ID = 0x8008B705
_CLONE = {
    0x00000080: "time", 0x00020000: "mnt", 0x02000000: "cgroup", 0x04000000: "uts", 0x08000000: "ipc", 0x10000000: "user",
    0x20000000: "pid", 0x40000000: "net",
}  # fmt: skip


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
        stat = _read(pid, "stat").rpartition(b")")[2].split()
        lines = _read(pid, "status").decode("utf-8", "surrogateescape").split("\n")
        command = _read(pid, "cmdline") if command_line else b""
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


def births() -> tuple[int, int]:
    """Return two numbers that differ from earlier ones when a process has begun or ended since: proc_stat(5), processes."""
    with open("/proc/stat", "rb") as file:
        line = next((line for line in file if line.startswith(b"processes ")), b"processes 0")
    return int(line.split()[1]), sum(1 for entry in os.listdir("/proc") if is_number(entry))


def _read(pid: int, file: str) -> bytes:
    with open(f"/proc/{pid}/{file}", "rb", buffering=0) as opened:
        pieces = []
        while piece := opened.read(1 << 16):
            pieces.append(piece)
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


def nice(pid: int) -> int:
    """Return the nice value of a process, 0 when it has ended: proc_pid_stat(5)."""
    try:
        return int(_read(pid, "stat").rpartition(b")")[2].split()[16])
    except OSError:
        return 0


# ---- namespaces ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Namespace:
    """One namespace: ioctl_ns(2)."""

    kind: str
    inode: int
    parent: int  # inode of the parent, for kinds pid and user; 0: none, or not visible from here
    user: int  # inode of the user namespace that owns it; 0: not visible from here
    owner: int  # for a user namespace, the uid of its creator, in the caller's user namespace; otherwise -1


def namespace(path: str) -> Namespace:
    """Return the namespace of a file such as /proc/PID/ns/net, or of a bind mount of one.

    Raise OSError: ENOTTY for a file that is no namespace.
    """
    with kernel.Fd(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as fd:
        return namespace_at(fd)


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
        lines = _read(pid, f"{kind}_map").split(b"\n")
    except OSError:
        return []
    return [
        (int(inside), int(outside), int(many)) for inside, outside, many in (line.split() for line in lines if line)
    ]


def _related(fd: int, request: int) -> int:
    with kernel.Fd(_follow(fd, request)) as other:
        return os.fstat(other).st_ino if other >= 0 else 0


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


# ---- mounts ----------------------------------------------------------------------------------------------------


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


def mounts(pid: int) -> list[Mount]:
    """Return the mounts that a process sees; [] when it has ended."""
    try:
        text = _read(pid, "mountinfo").decode("utf-8", "surrogateescape")
    except OSError:
        return []
    return [_mount(line) for line in text.split("\n") if line]


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
    text = _read(os.getpid(), f"fdinfo/{fd}").decode()
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


def shm(pid: int) -> str:
    """Return MAJOR:MINOR of the file system that a process has at /dev/shm; "" when it has none of its own there.

    That decides with whom it shares POSIX shared memory: shm_overview(7).  The IPC namespace has no part in it.
    """
    try:
        lines = _read(pid, "mountinfo").split(b"\n")
    except OSError:
        return ""
    # a process may have a thousand mounts, and the map asks of hundreds of processes: only this line is taken apart
    found = [line for line in lines if line.split(b" ", 5)[4:5] == [b"/dev/shm"]]
    return _mount(found[-1].decode("utf-8", "surrogateescape")).device if found else ""


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
    """
    import subprocess

    try:
        # stat(1) is looked for after the join: the namespace must have one
        done = subprocess.run(
            [*enter(pid, "mnt"), "stat", "-c", "%d %i", "/"], capture_output=True, timeout=10, check=False
        )
    except OSError:
        return None
    device, _, inode = done.stdout.decode().strip().partition(" ")
    return (int(device), int(inode)) if done.returncode == 0 and device and inode else None


# ---- cgroups ---------------------------------------------------------------------------------------------------


def controller(name: str) -> tuple[int, str]:
    """Return (version, mount point) of the hierarchy that has a controller such as "memory"; (0, "") when none has it."""
    for mount in mounts(os.getpid()):
        if mount.fstype == "cgroup" and name in mount.superblock:
            return 1, mount.point
        if mount.fstype == "cgroup2":
            try:
                with open(f"{mount.point}/cgroup.controllers", "rb") as file:
                    if name in file.read().decode().split():
                        return 2, mount.point
            except OSError:
                continue
    return 0, ""


def cgroup(pid: int, name: str) -> str:
    """Return the directory of the cgroup in which a controller counts a process; "" when it has ended, or none does."""
    version, point = controller(name)
    try:
        lines = _read(pid, "cgroup").decode("utf-8", "surrogateescape").split("\n")
    except OSError:
        return ""
    for line in lines:  # cgroups(7): number:controllers:path
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if version == 2 and line.startswith("0::") or version == 1 and name in controllers.split(","):
            return point + path.rstrip("/")
    return ""


def out_of_memory(directory: str) -> int:
    """Return how many processes of a memory cgroup the kernel has killed for want of memory; -1 when it can't be read."""
    for file in ("memory.events", "memory.oom_control"):  # of version 2, and 1
        try:
            with open(f"{directory}/{file}", "rb") as opened:
                found = re.search(rb"^oom_kill (\d+)$", opened.read(), re.M)
        except OSError:
            continue
        return int(found[1]) if found else -1
    return -1


def memory_limit(directory: str) -> str:
    """Return the limit of a memory cgroup, as the kernel prints it; "" when it can't be read."""
    for file in ("memory.max", "memory.limit_in_bytes"):
        try:
            with open(f"{directory}/{file}", "rb") as opened:
                return opened.read().decode().strip()
        except OSError:
            continue
    return ""


# ---- in a namespace --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Socket:
    """One line of proc_pid_net(5) for TCP; an address of IPv4 is as people write it, also where IPv6 carries it."""

    address: str
    port: int
    peer: str
    peer_port: int
    state: str  # ESTABLISHED, LISTEN, …; "" for others
    inode: int  # 0: no process has it any more, or it was not accepted yet


_TCP_STATES = {"01": "ESTABLISHED", "02": "SYN_SENT", "06": "TIME_WAIT", "08": "CLOSE_WAIT", "0A": "LISTEN"}


def tcp(pid: int) -> list[Socket]:
    """Return the TCP sockets of the network namespace of a process; [] when it has ended."""
    found = []
    for family in ("tcp", "tcp6"):
        try:
            lines = _read(pid, f"net/{family}").split(b"\n")[1:]
        except OSError:
            continue
        for fields in (line.decode().split() for line in lines if line):
            (address, port), (peer, peer_port) = (_end(fields[1]), _end(fields[2]))
            found.append(Socket(address, port, peer, peer_port, _TCP_STATES.get(fields[3], ""), int(fields[9])))
    return found


def _end(text: str) -> tuple[str, int]:
    import ipaddress

    words, _, port = text.partition(":")
    # the kernel prints words of 32 bits as they lie in memory
    raw = b"".join(int(words[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(words), 8))
    address = ipaddress.ip_address(raw)
    return str(getattr(address, "ipv4_mapped", None) or address), int(port, 16)


def holders(inode: int, among: Iterable[int] | None = None) -> list[int]:
    """Return the pids of the processes, all or some, that have a socket open."""
    pids = among if among is not None else map(int, filter(is_number, os.listdir("/proc")))
    return [pid for pid in pids if f"socket:[{inode}]" in _open_files(pid)]


def _open_files(pid: int) -> list[str]:
    """Return what the descriptors of a process are; [] when it has ended, or we may not look."""
    found = []
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            try:
                found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
            except FileNotFoundError:
                continue  # it was closed meanwhile
    except PermissionError:
        listed = _as_owner(pid, "find", f"/proc/{pid}/fd", "-type", "l", "-printf", "%l\\n")
        return listed.decode("utf-8", "surrogateescape").split("\n")
    except OSError:
        return []
    return found


def file_from_inside(pid: int, path: str) -> bytes:
    """Return the contents of a file that only root of the user namespace of a process may read; b"" when we can't."""
    return _as_owner(pid, "cat", path)


def _as_owner(pid: int, *command: str) -> bytes:
    """Return what a command prints that is root of the user namespace of a process; b"" when that is not ours."""
    import subprocess

    try:
        inside = enter(pid)
        if "--user" not in inside:
            return b""
        done = subprocess.run([*inside, *command], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return b""
    return done.stdout if done.returncode == 0 else b""


def enter(pid: int, *kinds: str) -> list[str]:
    """Return the command line with which another command runs in namespaces of a process: nsenter(1).

    Its user namespace is joined, too, when it is not the caller's own.
    """
    foreign = os.stat(f"/proc/{pid}/ns/user").st_ino != os.stat("/proc/self/ns/user").st_ino
    user = ["--user", "--preserve-credentials"] if foreign else []
    return ["nsenter", f"--target={pid}", *user, *(f"--{'mount' if kind == 'mnt' else kind}" for kind in kinds)]


def http(pid: int, address: str, port: int, meanwhile: Callable[[int], object] | None = None) -> str:
    """Return the body that a web server answers to a client in the network namespace of a process.

    `meanwhile` is called with the client's own port when the connection stands, before anything is asked for.
    Raise OSError when there is no answer.
    """
    import subprocess

    command = [*enter(pid, "net"), sys.executable, "-I", "-m", "nsrun.teach.client", address, str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as client:
        assert client.stdin and client.stdout
        said = client.stdout.readline()
        if said.startswith(b"connected ") and meanwhile:
            meanwhile(int(said.split()[1]))
        client.stdin.close()
        answer = client.stdout.read()
    if not said.startswith(b"connected "):
        raise OSError(EIO, said.decode("utf-8", "replace").strip() or f"process {pid} has ended, or we may not join it")
    if client.returncode:
        raise OSError(EIO, "connected, but no answer came")
    return answer.decode("utf-8", "replace")


def ip_addresses(pid: int) -> list[dict[str, Any]]:
    """Return the interfaces in the network namespace of a process, as `ip -json -details address` prints them."""
    found: list[dict[str, Any]] = _json_of(pid, "ip", "-json", "-details", "address") or []
    return found


def routes(pid: int) -> list[dict[str, Any]]:
    """Return the routes of IPv4 in the network namespace of a process, as `ip -json route` prints them."""
    found: list[dict[str, Any]] = _json_of(pid, "ip", "-json", "route") or []
    return found


def rules(pid: int) -> list[dict[str, Any]]:
    """Return what nf_tables has in the network namespace of a process, as `nft --json list ruleset` prints it."""
    found: list[dict[str, Any]] = (_json_of(pid, "nft", "--json", "list", "ruleset") or {"nftables": []})["nftables"]
    return found


def has_owner(pid: int, family: str, table: str) -> bool:
    """Return whether a table of nf_tables belongs to a process and ends with it: nft(8), "flags owner".

    The answer is taken from nft's text, as what 1.0.6 prints for the flags in JSON is not them.
    """
    done = _in_netns(pid, "nft", "list", "table", family, table)
    return bool(done) and bool(re.search(r"^\tflags .*\bowner\b", done, re.M))


def _json_of(pid: int, *command: str) -> Any:
    printed = _in_netns(pid, *command).strip()
    return json.loads(printed) if printed else None


def _in_netns(pid: int, *command: str) -> str:
    """Return what a command prints in the network namespace of a process; "" when it fails."""
    import subprocess

    try:
        done = subprocess.run([*enter(pid, "net"), *command], capture_output=True, timeout=10, check=False)
    except OSError:
        return ""
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""


def sockets(pid: int) -> Iterator[tuple[str, str, int]]:
    """Yield (tcp|tcp6, address in hexadecimal as the kernel prints it, port) of the sockets that listen in its network namespace.

    proc_pid_net(5)
    """
    for family in ("tcp", "tcp6"):
        try:
            lines = _read(pid, f"net/{family}").split(b"\n")[1:]
        except OSError:
            continue
        for fields in (line.split() for line in lines if line):
            if fields[3] == b"0A":  # TCP_LISTEN
                address, _, port = fields[1].decode().partition(":")
                yield family, address, int(port, 16)


def listening(pid: int) -> set[int]:
    """Return the TCP ports that somebody listens on in a process's network namespace.

    The kernel is asked by sock_diag(7) from inside where that is allowed: for /proc/PID/net/tcp it goes through the
    whole machine's table of connections, which takes some ten milliseconds.
    """
    from nsrun.host import wire

    try:
        with kernel.Fd(os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)) as netns, kernel.inside_netns(netns):
            sock = wire.open_socket(4)  # NETLINK_SOCK_DIAG
    except OSError:
        return {port for _, _, port in sockets(pid)}
    found = set()
    with sock:
        for family in (2, 10):  # AF_INET, AF_INET6
            # SOCK_DIAG_BY_FAMILY, REQUEST|DUMP; of TCP those in state LISTEN
            request = struct.pack("=LHHLLBBBxL48x", 72, 20, 0x301, 0, 0, family, 6, 0, 1 << 10)
            try:
                bodies = wire.ask(sock, "ss -tln", request)
            except OSError:
                continue  # this kernel lacks tcp_diag or IPv6
            found |= {int.from_bytes(body[4:6], "big") for body in bodies}
    return found


@dataclass(frozen=True)
class Interface:
    """A network interface as proc_pid_net(5) shows it to those who are not in its namespace."""

    name: str
    index: int  # 0: not told, because it is down
    addresses: list[str]  # ADDRESS/PREFIX

    @property
    def up(self) -> bool:
        return self.index > 0


def interfaces(pid: int) -> list[Interface]:
    """Return the interfaces of a process's network namespace, for which nobody needs to enter it; [] when it has ended."""
    try:
        texts = [
            _read(pid, f"net/{file}").decode("utf-8", "surrogateescape")
            for file in ("dev", "igmp", "route", "fib_trie")
        ]
    except OSError:
        return []
    names = [line.rpartition(":")[0].strip() for line in texts[0].split("\n")[2:] if ":" in line]
    # all that are up are members of 224.0.0.1 (RFC 1112), lo as well
    numbers = {f[1]: int(f[0]) for line in texts[1].split("\n") if len(f := line.split()) > 1 and f[0].isdigit()}
    routes = [("lo", 127, 0xFF)] if "lo" in names else []
    for fields in (line.split() for line in texts[2].split("\n")[1:] if line):
        if mask := int(fields[7], 16):
            routes.append((fields[0], int(fields[1], 16), mask))
    found: dict[str, list[str]] = {name: [] for name in names}
    for address in _local(texts[3]):
        number = int.from_bytes(bytes(map(int, address.split("."))), "little")  # as the kernel prints those of a route
        for name, to, mask in routes:
            if number & mask == to and name in found:
                found[name].append(f"{address}/{mask.bit_count()}")
                break
    return [Interface(name, numbers.get(name, 0), found[name]) for name in names]


def _local(trie: str) -> list[str]:
    """Return the addresses in fib_trie that are the namespace's own."""
    found, last = {}, ""
    for line in trie.split("\n"):
        if "|-- " in line:
            last = line.rpartition(" ")[2]
        elif "/32 host LOCAL" in line:
            found[last] = True  # each stands there twice
    return list(found)


@dataclass(frozen=True)
class Link:
    """An interface of the caller's network namespace: rtnetlink(7), RTM_GETLINK."""

    index: int
    name: str
    master: int  # index of the bridge that it is a port of; 0: none
    peer: int  # index of the other end of a veth, in its own namespace; 0: none
    netns: int  # which namespace that is, as netns_number() tells it; -1: this one


def links() -> list[Link]:
    """Return the interfaces of the caller's network namespace.  Raise OSError when the kernel refuses."""
    from nsrun.host import wire

    request = struct.pack("=LHHLLBxHiII", 32, 18, 0x301, 0, 0, 0, 0, 0, 0, 0)  # RTM_GETLINK, REQUEST|DUMP
    found = []
    with wire.open_socket(wire.NETLINK_ROUTE) as sock:
        for body in wire.ask(sock, "ip link", request):
            told = wire.attributes(body[16:])
            name = told.get(3, b"").rstrip(b"\0").decode("utf-8", "surrogateescape")
            netns = struct.unpack("=i", told[37])[0] if 37 in told else -1
            master, peer = (int.from_bytes(told.get(key, b""), sys.byteorder) for key in (10, 5))
            found.append(Link(struct.unpack_from("=i", body, 4)[0], name, master, peer, netns))
    return found


def netns_number(pid: int) -> int:
    """Return the number by which the caller's network namespace knows a process's (ip-netns(8), nsid); -1: by none."""
    from nsrun.errors import KernelError
    from nsrun.host import wire

    request = struct.pack("=LHHLLBxxxHHI", 28, 90, 5, 0, 0, 0, 8, 2, pid)  # RTM_GETNSID, REQUEST|ACK; NETNSA_PID
    with wire.open_socket(wire.NETLINK_ROUTE) as sock:
        try:
            bodies = wire.ask(sock, f"ip netns (nsid of {pid})", request)
        except KernelError:
            return -1  # it has ended
    return struct.unpack("=i", wire.attributes(bodies[0][4:])[1])[0] if bodies else -1


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


def is_pause(pid: int) -> bool:
    """Return whether a process executes nsrun's pause."""
    return program(pid) == "/memfd:nsrun-pause (deleted)"


def is_of_nsrun(process: Process) -> bool:
    """Return whether a process executes a program of nsrun's, such as pause, or is the first process of a member."""
    return program(process.pid).startswith("/memfd:nsrun-") or program(process.ppid).startswith("/memfd:nsrun-monitor ")


def addresses(pid: int) -> set[str]:
    """Return the IPv4 addresses of the interfaces that are up in the network namespace of a process: proc_pid_net(5), fib_trie."""
    try:
        return set(_local(_read(pid, "net/fib_trie").decode()))
    except OSError:
        return set()


def segments(pid: int) -> int:
    """Return how many System V segments the IPC namespace of a process has, from a helper that enters it; -1: it can't."""
    told = _from_inside(pid, "ipc", "cat", "/proc/sysvipc/shm")
    return told.count("\n") - 1 if told else -1


def hostname_of(pid: int) -> str:
    """Return the hostname in the UTS namespace of a process, from a helper that enters it; "" when that can't be done.

    No file of /proc/PID shows it: /proc/sys/kernel/hostname is that of the reader.
    """
    return _from_inside(pid, "uts", "uname", "-n").strip()


_PLAIN = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


def _from_inside(pid: int, kind: str, *command: str) -> str:
    """Return what a program of ours prints that runs in one namespace of a process; "" when it can't."""
    import subprocess

    words = ["nsenter", f"--{kind}=/proc/{pid}/ns/{kind}"]
    if os.geteuid():  # to enter it takes the powers that the owner of its user namespace has
        words += [f"--user=/proc/{pid}/ns/user", "--preserve-credentials"]
    try:  # the caller's variables, such as LD_PRELOAD and PATH, are not to choose what runs
        done = subprocess.run([*words, *command], capture_output=True, check=False, timeout=5, env=_PLAIN, cwd="/")
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "surrogateescape") if not done.returncode else ""
