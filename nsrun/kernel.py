# SPDX-License-Identifier: Apache-2.0
"""System calls, one thin wrapper each, named like the call.  This is the only user of the cffi module.

Every wrapper raises `KernelError`, whose text is the call as C would write it, with its flags by name.  Kernel versions
are never checked: we try a call, and the hint for its ENOSYS or EINVAL names the version that added it.
"""

from __future__ import annotations

import os
import sys
from errno import E2BIG, EACCES, EIO, ENOENT, EPERM, ESRCH

from nsrun._kernel import ffi, lib
from nsrun._protocol import (
    DOOR_ANSWER,
    DOOR_FDS,
    DOOR_SECONDS,
    STAGE_CLONE,
    STAGE_JOIN,
    STAGE_LEAVE,
    STAGE_LIMITS,
    STAGE_LOCK,
    STAGE_MONITOR,
    STAGE_PREPARE,
    STAGE_RETURN,
)
from nsrun.errors import BadInput, KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

CLONE_NEWTIME = 0x00000080
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
NAMESPACES = {
    "net": CLONE_NEWNET,
    "ipc": CLONE_NEWIPC,
    "uts": CLONE_NEWUTS,
    "pid": CLONE_NEWPID,
    "mnt": CLONE_NEWNS,
    "cgroup": CLONE_NEWCGROUP,
    "user": CLONE_NEWUSER,
}

MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 1, 2, 4, 8
MOUNT_ATTR_NOATIME, MOUNT_ATTR_IDMAP, MOUNT_ATTR_NOSYMFOLLOW = 0x10, 0x100000, 0x200000
MS_PRIVATE = 1 << 18
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC, AT_RECURSIVE, AT_EMPTY_PATH = 1, os.O_CLOEXEC, 0x8000, 0x1000
RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_IN_ROOT = 1, 2, 4, 16
O_PATH = os.O_PATH
DEVPTS_MAGIC, CGROUP2_MAGIC, PROC_MAGIC = 0x1CD1, 0x63677270, 0x9FA0


def flag_names(value: int, names: dict[str, int]) -> str:
    """Return the names of the flags in a number: `CLONE_NEWNET|CLONE_NEWIPC`."""
    found = [name for name, bit in names.items() if value & bit == bit and bit]
    rest = value & ~sum(names[n] for n in found)
    return "|".join(found + ([hex(rest)] if rest else [])) or "0"


CLONE_FLAGS = {f"CLONE_NEW{'NS' if k == 'mnt' else k.upper()}": v for k, v in NAMESPACES.items()}
MOUNT_ATTRS = {
    "MOUNT_ATTR_RDONLY": MOUNT_ATTR_RDONLY,
    "MOUNT_ATTR_NOSUID": MOUNT_ATTR_NOSUID,
    "MOUNT_ATTR_NODEV": MOUNT_ATTR_NODEV,
    "MOUNT_ATTR_NOEXEC": MOUNT_ATTR_NOEXEC,
    "MOUNT_ATTR_NOATIME": MOUNT_ATTR_NOATIME,
    "MOUNT_ATTR_IDMAP": MOUNT_ATTR_IDMAP,
}


class Fd(int):
    """A descriptor that is ours to close: `with Fd(os.open(…)) as fd:` closes it at the end of the block.

    It is the number itself, for any call that takes one.  take() gives up ownership; a negative number is not closed.
    """

    _taken = False

    def take(self) -> int:
        """Return the plain number, which the caller must close from now on."""
        self._taken = True
        return int(self)

    def __enter__(self) -> Fd:
        return self

    def __exit__(self, *_: object) -> None:
        if self >= 0 and not self._taken:
            self._taken = True
            os.close(self)


def _check(result: int, call: str) -> int:
    if result < 0:
        raise KernelError(-result, call)
    return result


def pidfd_open(pid: int) -> int:
    """pidfd_open(2).  Raise ESRCH when there is no such process."""
    return _check(lib.nsrun_pidfd_open(pid), f"pidfd_open({pid}, 0)")


def pidfd_of(pid: int) -> int:
    """Do the same, but return -1 when there is no such process."""
    result = lib.nsrun_pidfd_open(pid)
    return -1 if result == -ESRCH else _check(result, f"pidfd_open({pid}, 0)")


def pidfd_send_signal(pidfd: int, sig: int) -> None:
    """pidfd_send_signal(2), which never reaches a process that reused the pid.

    Raise ESRCH when the process is dead.
    """
    _check(lib.nsrun_pidfd_send_signal(pidfd, sig), f"pidfd_send_signal(pidfd, {int(sig)})")


def pidfd_getfd(pidfd: int, number: int) -> int:
    """Return a duplicate of a descriptor of another process: pidfd_getfd(2), Linux 5.6.

    Raise EBADF when it has none of this number, EPERM when ptrace(2) of it is not allowed.
    """
    return _check(lib.nsrun_pidfd_getfd(pidfd, number), f"pidfd_getfd(pidfd, {number}, 0)")


def mount_new(fstype: str, options: Sequence[tuple[str, str]], attrs: int) -> int:
    """Make a detached mount by fsopen, fsconfig… and fsmount.  Options are (key, value), with value "" for a flag."""
    with _fsopen(fstype) as fs:
        for key, value in options:
            command = 1 if value else 0
            text = f'fsconfig(fs, FSCONFIG_SET_{"STRING" if value else "FLAG"}, "{key}", "{value}")'
            _check(lib.nsrun_fsconfig(fs, command, key.encode(), os.fsencode(value) if value else ffi.NULL), text)
        _check(lib.nsrun_fsconfig(fs, 6, ffi.NULL, ffi.NULL), f'fsconfig("{fstype}", FSCONFIG_CMD_CREATE)')
        return _check(lib.nsrun_fsmount(fs, attrs), f"fsmount(fs, FSMOUNT_CLOEXEC, {flag_names(attrs, MOUNT_ATTRS)})")


def _fsopen(fstype: str) -> Fd:
    return Fd(_check(lib.nsrun_fsopen(fstype.encode()), f'fsopen("{fstype}")'))


def overlay(lowers: Sequence[int], upper: int = -1, work: int = -1, attrs: int = 0, mnt: int = -1) -> int:
    """Return a detached overlay mount of directories, `lowers` from the top down; read-only without `upper`.

    `mnt` is the mount namespace that has the lowers (attach_apart), or -1 for ours.

    See https://docs.kernel.org/filesystems/overlayfs.html.  We pass descriptors, so that no `:` or `,` in a name is
    special, and the 256 bytes of an fsconfig string hold the layers of any image.  `lowerdir+` came with Linux 6.5.
    """
    with _fsopen("overlay") as fs:
        if len(lowers) <= 1 or _reads_at_once(fs):
            return _overlay(fs, lowers, upper, work, attrs, -1, mnt)
    return overlay_at_once(lowers, upper, work, attrs, mnt)


def _reads_at_once(fs: int) -> bool:
    """Return whether this overlayfs reads options one by one.

    Before 6.5 it does only when the mount is made, and reports a wrong one in the kernel's log.
    """
    return bool(lib.nsrun_fsconfig(fs, 1, b"nsrun", b"probe") < 0)


def has_many_lowers() -> bool:
    """Return whether overlayfs takes each layer by an option of its own, `lowerdir+`."""
    with _fsopen("overlay") as fs:
        return _reads_at_once(fs)


def attach_apart(trees: Sequence[int]) -> int:
    """Return a mount namespace in which no process is, with these detached trees attached.

    Before Linux 6.15 an overlay accepts no layer from a mount that is attached nowhere: EINVAL.
    """
    numbers = ffi.new("int[]", list(trees))
    return _check(lib.nsrun_attach_apart(numbers, len(trees)), "unshare(CLONE_NEWNS); move_mount")


def overlay_at_once(lowers: Sequence[int], upper: int = -1, work: int = -1, attrs: int = 0, mnt: int = -1) -> int:
    """Do the same with all lower layers in one string, for kernels before 6.5: 128 names of one byte are 255 bytes.

    The names are links in a tmpfs that is attached nowhere; a child whose working directory it is makes the calls.
    """
    names = [chr(c) for c in (*range(0x30, 0x3A), *range(0x41, 0x5B), *range(0x61, 0x7B), *range(0xA1, 0x100))]
    if len(lowers) > 128:
        raise KernelError(E2BIG, f"overlay of {len(lowers)} layers: at most 128 before Linux 6.5")
    with Fd(mount_new("tmpfs", [("size", "64k")], 0)) as directory, _fsopen("overlay") as fs:
        for name, fd in zip(names, lowers, strict=False):
            os.symlink(f"/proc/{os.getpid()}/fd/{fd}", name.encode("latin-1"), dir_fd=directory)
        return _overlay(fs, ":".join(names[: len(lowers)]), upper, work, attrs, directory, mnt)


def _overlay(fs: int, lowers: Sequence[int] | str, upper: int, work: int, attrs: int, directory: int, mnt: int) -> int:
    """Configure and mount `fs`.  `lowers` are descriptors, or one string of names in `directory`."""

    def set(key: str, value: str) -> None:
        text = f'fsconfig(fs, FSCONFIG_SET_STRING, "{key}", "{value}")'
        _check(lib.nsrun_fsconfig_in(directory, mnt, fs, 1, key.encode(), value.encode("latin-1")), text)

    set("source", "nsrun")
    plain = in_userns()
    if plain:
        # Overlayfs must use user.overlay.* attributes, because trusted.* is the machine's; directories are never
        # redirected.
        _check(lib.nsrun_fsconfig(fs, 0, b"userxattr", ffi.NULL), 'fsconfig(fs, FSCONFIG_SET_FLAG, "userxattr")')
    if isinstance(lowers, str) or len(lowers) == 1:
        set("lowerdir", lowers if isinstance(lowers, str) else f"/proc/self/fd/{lowers[0]}")
    else:
        for fd in lowers:
            set("lowerdir+", f"/proc/self/fd/{fd}")
    if upper >= 0:
        set("upperdir", f"/proc/self/fd/{upper}")
        set("workdir", f"/proc/self/fd/{work}")
        # a layer that is made here is later read below others, so it must be complete, whatever the module's defaults
        for key in ("metacopy", "index", *(() if plain else ("redirect_dir",))):
            set(key, "off")
    _check(lib.nsrun_fsconfig_in(directory, mnt, fs, 6, ffi.NULL, ffi.NULL), 'fsconfig("overlay", FSCONFIG_CMD_CREATE)')
    return _check(lib.nsrun_fsmount(fs, attrs), f"fsmount(fs, FSMOUNT_CLOEXEC, {flag_names(attrs, MOUNT_ATTRS)})")


def open_tree(path: str, recursive: bool = False, dir_fd: int = -100) -> int:
    """open_tree(2) with OPEN_TREE_CLONE: return a detached copy of the mount at a path, or, `recursive`, of the mounts."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (AT_RECURSIVE if recursive else 0) | (0 if path else AT_EMPTY_PATH)
    text = f'open_tree(AT_FDCWD, "{path}", OPEN_TREE_CLONE{"|AT_RECURSIVE" if recursive else ""})'
    return _check(lib.nsrun_open_tree(dir_fd, os.fsencode(path), flags), text)


def mount_setattr(
    fd: int, set: int = 0, clear: int = 0, propagation: int = 0, recursive: bool = False, userns: int = -1
) -> None:
    """mount_setattr(2) (Linux 5.12) on a detached mount.

    With `userns`, the mount is idmapped: id 0 of the files appears as id 0 of that namespace.
    """
    set |= MOUNT_ATTR_IDMAP if userns >= 0 else 0
    text = f'mount_setattr(fd, "", AT_EMPTY_PATH, {flag_names(set, MOUNT_ATTRS)})'
    _check(lib.nsrun_mount_setattr(fd, AT_RECURSIVE if recursive else 0, set, clear, propagation, userns), text)


def open_in_root(root: int, path: str, flags: int = os.O_RDONLY, resolve: int = 0) -> int:
    """openat2(2): the kernel resolves `path` inside `root`, including symlinks, but no magic links."""
    how = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | resolve
    return _check(lib.nsrun_openat2(root, os.fsencode(path), flags, how), f'openat2(root, "{path}", RESOLVE_IN_ROOT)')


def device_filter(cgroup: int, code: bytes) -> None:
    """bpf(2): attach a program of eBPF to a cgroup of v2, which decides about devices as long as the cgroup is there."""
    _check(lib.nsrun_device_filter(cgroup, code, len(code)), "bpf(BPF_PROG_ATTACH, BPF_CGROUP_DEVICE)")


MAX_SMALL = 1 << 20  # bytes of a file that read_in_root reads


def read_in_root(root: str, path: str, seen: list[os.stat_result] | None = None) -> str:
    """Return a regular file of at most 1 MiB, resolved inside `root`; "" when it is missing.

    `seen` gets what fstat(2) says of it before it is read.  Raise BadInput for anything else: a FIFO would hang us, a huge file would fill the memory.
    """
    try:
        directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    try:
        return read_in_root_at(directory, path, seen)
    finally:
        os.close(directory)


def read_in_root_at(directory: int, path: str, seen: list[os.stat_result] | None = None) -> str:
    """Do the same below a descriptor."""
    import stat
    from errno import ENOENT

    try:
        fd = open_in_root(directory, path, os.O_RDONLY | os.O_NONBLOCK)
    except KernelError as error:
        if error.errno == ENOENT:
            return ""
        raise BadInput(f"{path} of the rootfs can't be read: {error}", errno=error.errno or 0) from None
    try:
        st = os.fstat(fd)
        if not stat.S_ISREG(st.st_mode) or st.st_size > MAX_SMALL:
            raise BadInput(f"{path} of the rootfs is not a regular file of at most 1 MiB")
        if seen is not None:
            seen.append(st)
        return os.fsdecode(os.read(fd, MAX_SMALL))
    finally:
        os.close(fd)


def birth(path: str, dir_fd: int = -100) -> int:
    """Return when a file was made, in nanoseconds since 1970, or 0 where its file system does not tell: statx(2).

    With an empty path, `dir_fd` is the file.
    """
    return _check(lib.nsrun_birth(dir_fd, os.fsencode(path)), f'statx("{path}", STATX_BTIME)')


def fs_magic(fd: int) -> int:
    return _check(lib.nsrun_fs_magic(fd), "fstatfs(fd)")


#: The programs that setup.py builds from csrc/NAME.c and installs as LIBEXEC/nsrun-NAME.
PROGRAMS = ("pause", "init", "monitor", "unpack", "door", "forward")
_PACKAGE = os.path.dirname(os.path.abspath(__file__))
LIBEXEC = os.path.join(_PACKAGE, "libexec")


def nsrun_command(root: str, *arguments: str) -> list[str]:
    """Return the command line that runs this nsrun again, on the state below `root` ("": the default place)."""
    program = os.path.join(_PACKAGE, "__main__.py")
    flags = "-IS" if sys.flags.no_site else "-I"  # as we run ourselves: site costs 2 ms
    return [sys.executable, flags, program, *(["--root", root] if root else []), *arguments]


def has_carrier(link: str) -> bool:
    """Return whether a network interface is there and has a carrier: for a bridge, whether one of its links forwards."""
    return int(lib.nsrun_carrier(os.fsencode(link))) > 0


def load_program(name: str) -> int:
    """Return a sealed copy in memory of one of PROGRAMS, such as "nsrun-init".

    Raise OSError, with ENOENT when the installation is incomplete.
    """
    with open(f"{LIBEXEC}/{name}", "rb", buffering=0) as file:
        return sealed_program(name, file.read())


def sealed_memfd(name: str, data: bytes) -> int:
    """memfd_create(2): return a descriptor of this content, sealed against every change."""
    call = f'memfd_create("{name}", MFD_ALLOW_SEALING)'
    return _check(lib.nsrun_sealed_memfd(name.encode(), data, len(data), 0), call)


def sealed_program(name: str, data: bytes) -> int:
    """Do the same for a program that will be executed.

    Where vm.memfd_noexec is 2 (Linux 6.3), no memfd can be executed.  Then we return the only file of a tmpfs that is
    attached nowhere and whose mount and superblock are read-only; raise EACCES when that fails, too.
    """
    call = f'memfd_create("{name}", MFD_ALLOW_SEALING|MFD_EXEC)'
    fd = lib.nsrun_sealed_memfd(name.encode(), data, len(data), 1)
    if fd != -EACCES:
        return _check(fd, call)
    try:
        return _program_in_tmpfs(name, data)
    except KernelError as error:
        if error.errno == EPERM:
            raise KernelError(EACCES, call) from None
        raise


def _program_in_tmpfs(name: str, data: bytes) -> int:
    with _fsopen("tmpfs") as fs:
        for key, value in (("size", "4m"), ("mode", "0555")):
            call = f'fsconfig(fs, FSCONFIG_SET_STRING, "{key}", "{value}")'
            _check(lib.nsrun_fsconfig(fs, 1, key.encode(), value.encode()), call)
        _check(lib.nsrun_fsconfig(fs, 6, ffi.NULL, ffi.NULL), 'fsconfig("tmpfs", FSCONFIG_CMD_CREATE)')
        with Fd(_check(lib.nsrun_fsmount(fs, 0), "fsmount(fs, FSMOUNT_CLOEXEC, 0)")) as mount:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with Fd(os.open(name, flags, 0o500, dir_fd=mount)) as file:
                os.fchmod(file, 0o555)
                while data:
                    data = data[os.write(file, data) :]
            mount_setattr(mount, set=MOUNT_ATTR_RDONLY)
            _check(lib.nsrun_fsconfig(fs, 0, b"ro", ffi.NULL), 'fsconfig(fs, FSCONFIG_SET_FLAG, "ro")')
            _check(lib.nsrun_fsconfig(fs, 7, ffi.NULL, ffi.NULL), 'fsconfig("tmpfs", FSCONFIG_CMD_RECONFIGURE)')
            return os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=mount)


F_RDLCK, F_WRLCK, F_UNLCK = 0, 1, 2


def lock(fd: int, kind: int, byte: int, length: int) -> None:
    """fcntl(2) F_SETLK on a record; `length` 0 means to the end.

    Raise EAGAIN or EACCES when another process has a lock there.
    """
    _check(lib.nsrun_lock(fd, kind, byte, length), "fcntl(fd, F_SETLK)")


def locked(fd: int, byte: int, length: int) -> int | None:
    """Return the pid of another process that locks this, by fcntl(2) F_GETLK.

    Return 0 when that has no pid here, None when no process locks it.
    """
    result = lib.nsrun_locked(fd, byte, length)
    return None if result == -ESRCH else _check(result, "fcntl(fd, F_GETLK)")


def unlocked(
    directory: int, position: int, most: int, wanted: int, ours: list[tuple[int, int]]
) -> tuple[list[str], int]:
    """Return (names in a directory whose file `held` no other process is seen to lock, where to go on).

    At most `most` entries are looked at, from `position` on, until `wanted` names are found; see csrc/kernel.c.
    """
    where, size = ffi.new("long *", position), 256 * wanted
    names = ffi.new("char[]", size)
    pairs = ffi.new("uint64_t[]", [number for pair in ours for number in pair] or 1)
    used = _check(lib.nsrun_unlocked(directory, where, most, wanted, pairs, len(ours), names, size), "getdents64(fd)")
    return [os.fsdecode(name) for name in bytes(ffi.buffer(names, used)).split(b"\0")[:-1]], int(where[0])


def census(
    directory: int, names: list[str], marks: tuple[str, ...], ours: list[tuple[int, int]]
) -> list[tuple[bytes | None, tuple[int, ...]]]:
    """Return for each name its note, None if it can't be read, and seven numbers, all from one pass in csrc/kernel.c.

    They are: keeper, inode of `held`, when that was made, the bits of `marks`, the note's "pidfd", its pid, innermost pid.
    """
    from _struct import unpack_from

    found: list[tuple[bytes | None, tuple[int, ...]]] = []
    size, done = 1 << 20, ffi.new("long *")
    out = ffi.new("char[]", size)
    pairs, raw = ffi.new("uint64_t[]", [number for pair in ours for number in pair] or 1), ffi.buffer(out, size)
    beside = b"".join(os.fsencode(mark) + b"\0" for mark in marks)
    while names:
        asked = b"".join(os.fsencode(name) + b"\0" for name in names)
        lib.nsrun_census(directory, asked, len(asked), beside, pairs, len(ours), done, out, size)
        at = 0
        for _ in range(done[0]):
            length, *numbers = unpack_from("=8q", raw, at)
            at += 64
            found.append((raw[at : at + length] if length >= 0 else None, tuple(numbers)))
            at += (max(length, 0) + 7) & ~7
        names = names[done[0] :]
    return found


def checksum(data: bytes) -> int:
    """Return the CRC-32 as zlib.crc32 computes it, whose import costs half a millisecond."""
    return int(lib.nsrun_checksum(data, len(data)))


def channel() -> tuple[int, int]:
    """socketpair(2), SOCK_SEQPACKET: it keeps records whole, and reads end of file when the other end is closed."""
    two = ffi.new("int[2]")
    _check(lib.nsrun_channel(two), "socketpair(AF_UNIX, SOCK_SEQPACKET)")
    return two[0], two[1]


def new_netns(user_fd: int = -1) -> int:
    """Return a descriptor of a new network namespace in which no process is; a child makes it.

    It belongs to the user namespace `user_fd`, or to ours.
    """
    return _check(lib.nsrun_new_netns(user_fd), "unshare(CLONE_NEWNET)")


def new_timens(offsets: str, user_fd: int = -1) -> int:
    """Return a descriptor of a new time namespace in which no process is; `offsets` are lines of time_namespaces(7).

    It belongs to the user namespace `user_fd`, or to ours.
    """
    return _check(lib.nsrun_new_timens(user_fd, offsets.encode()), "unshare(CLONE_NEWTIME)")


def new_userns(owner: tuple[int, int] | None, write_maps: Callable[[int], None]) -> int:
    """Return a descriptor of a new user namespace in which no process is; user_namespaces(7).

    It belongs to `owner` (uid, gid; None: to us).  `write_maps(pid)` is called while a process in it waits.  Raise
    ENOSPC when /proc/sys/user/max_user_namespaces is reached, EPERM when something forbids user namespaces (nsrun
    doctor).
    """
    channel = ffi.new("int *")
    uid, gid = owner or (-1, -1)
    pid = _check(lib.nsrun_spawn_userns(uid, gid, channel), "unshare(CLONE_NEWUSER)")
    try:
        write_maps(pid)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(channel[0])
        os.kill(pid, 9)  # the owner can stop it, but not trace it, since it is not dumpable: ptrace(2)
        os.waitpid(pid, 0)


def write_apart(source: int, target: int, size: int) -> None:
    """Write the first bytes of a file over another one, whole even if this process is killed meanwhile.  Raise KernelError."""
    pid = _check(lib.nsrun_write_apart(source, target, size), "fork()")
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise KernelError(code if code > 0 else EIO, f"pwrite({target}, …, {size})")


def end_child(pid: int) -> None:
    """SIGKILL a child of ours, and take its exit status if it ends within a second (reap_within)."""
    with Fd(pidfd_of(pid)) as fd:  # until we reap our child, no other process gets its pid
        try:
            if fd >= 0:
                pidfd_send_signal(fd, 9)
        except KernelError as error:
            if error.errno != ESRCH:
                raise
    reap_within(pid, 1)


def reap_within(pid: int, seconds: float) -> None:
    """Take the exit status of a child that is ending, waiting at most `seconds`.

    A child that belongs to another user may not end, or not be reapable, as long as they like: ptrace(2), a FUSE mount
    that does not answer.  Then it is left to a later reap, or to PID 1.
    """
    from select import poll

    started.add(pid)
    reap()
    if pid not in started:
        return
    with Fd(pidfd_of(pid)) as fd:
        if fd >= 0:
            poller = poll()
            poller.register(fd, 1)
            poller.poll(seconds * 1000)
    reap()


def become(uid: int, gid: int, groups: Sequence[int]) -> None:
    """Turn this single-threaded process of root into that user's for good, without anything of root's session.

    It changes keys, priorities, groups, capabilities, working directory (/), umask (022), and closes descriptors above
    2 at the next exec, but does not change limits and environment.  setresuid(2), keyrings(7).  After an error the
    process must end.
    """
    _check(
        lib.nsrun_become(uid, gid, ffi.new("unsigned[]", list(groups)), len(groups)), f"setresuid({uid}, {uid}, {uid})"
    )


def spawn_as(uid: int, gid: int, groups: Sequence[int], argv: Sequence[str], env: dict[str, str], out: int) -> int:
    """Return the pid of a program that root starts as a user, as `become` does, with few limits; it writes to `out`."""
    args, _a = _strings(argv)
    environment, _b = _strings([f"{k}={v}" for k, v in env.items()])
    numbers = ffi.new("unsigned[]", list(groups))
    return _check(lib.nsrun_spawn_as(uid, gid, numbers, len(groups), out, args, environment), "fork()")


def enter_userns(fd: int) -> None:
    """Permanently enter the user namespace and a new mount namespace.  The process must be single-threaded.

    `fd` is of the namespace, or a pidfd of a process in it.  Raise EPERM when it belongs to somebody else.
    """
    _check(lib.nsrun_enter_userns(fd), "setns(fd, CLONE_NEWUSER); unshare(CLONE_NEWNS)")


def own_mounts() -> None:
    """Give this thread a mount namespace of its own, which belongs to the user namespace that it is in.

    To mount, one needs power over the user namespace to which the mount namespace belongs; root of `unshare -Ur` is at
    first in the host's mount namespace.
    """
    _check(lib.nsrun_enter_userns(-1), "unshare(CLONE_NEWNS)")


def in_userns() -> bool:
    """Return whether we are in another user namespace than the initial one.

    The inode number of the initial one is fixed (linux/nsfs.h, USER_NS_INIT_INO).
    """
    try:
        return os.stat("/proc/thread-self/ns/user").st_ino != 0xEFFFFFFD
    except FileNotFoundError:
        return False  # a kernel without them


def capability_sets() -> dict[str, int]:
    """Return the capabilities of this thread as bit masks, named as in proc_pid_status(5): CapEff, CapBnd and so on."""
    with open("/proc/thread-self/status", "rb", buffering=0) as file:
        lines = file.read(8192).split(b"\n")
    return {line[:6].decode(): int(line[8:], 16) for line in lines if line[:3] == b"Cap"}


def root_in(user: int, mnt: int) -> tuple[int, int]:
    """Return (device, inode) of the root directory that a process gets that joins the mount namespace `mnt`: setns(2).

    `user` is the user namespace to be joined before, -1 for none: root joins none, since those who have power over a user
    namespace may trace what comes into it.  Raise KernelError when we may not join.
    """
    found = ffi.new("unsigned long long[2]")
    _check(lib.nsrun_root_in(user, mnt, found), "setns(mnt, CLONE_NEWNS)")
    return found[0], found[1]


class inside_netns:
    """`with inside_netns(fd):` runs the calling thread in that network namespace (setns(2) acts on one thread)."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __enter__(self) -> None:
        self.back = _check(lib.nsrun_enter_netns(self.fd), "setns(netns, CLONE_NEWNET)")

    def __exit__(self, *_: object) -> None:
        with Fd(self.back):
            os.close(_check(lib.nsrun_enter_netns(self.back), "setns(back, CLONE_NEWNET)"))


_LAUNCH_STAGE = {
    STAGE_PREPARE: "open(/proc/thread-self/ns), or the door's request",
    STAGE_JOIN: "setns(pod)",
    STAGE_CLONE: "clone3(nsrun-init)",
    STAGE_MONITOR: "clone3(nsrun-monitor)",
    STAGE_RETURN: "setns(back)",
    STAGE_LOCK: "fcntl(held, F_SETLK)",
    STAGE_LEAVE: "keyctl(KEYCTL_JOIN_SESSION_KEYRING), sched_setattr",
    STAGE_LIMITS: "prlimit64(the process that asks, as nsrun-door sees it)",
}


def _strings(items: Sequence[str]) -> tuple[object, list[object]]:
    keep = [ffi.new("char[]", os.fsencode(item)) for item in items]
    return ffi.new("char *[]", [*keep, ffi.NULL]), keep


def launch(
    program: int,
    argv: Sequence[str],
    *,
    stdio: Sequence[int],
    keep: Sequence[int],
    join_fd: int = -1,
    join_flags: int = 0,
    clone_flags: int = 0,
    cgroup: int = -1,
    user_fd: int = -1,
    one_way: bool = False,
    monitor: int = -1,
    monitor_argv: Sequence[str] = (),
    monitor_keep: Sequence[int] = (),
    pidfd_slot: int = -1,
    locks: Sequence[int] = (),
    lock_byte: int = 0,
    joins: Sequence[int] = (),
    joins_user: bool = False,
    plain: bool = False,
    keep_keys: bool = False,
) -> tuple[int, int, int]:
    """Join the namespaces of `join_fd`, clone `program` into them, and leave them; return (pid, pidfd, monitor's pid).

    `user_fd` is a user namespace to join first, which needs `one_way` (see csrc/kernel.c, which also tells the order).
    With `monitor`, that program becomes the parent instead of the caller and finds the pidfd at `pidfd_slot`.  The
    process that stays, the monitor or else the program, locks `lock_byte` of the files `locks` (nsrun/state/life.py).
    ENOMEM from the clone means that PID 1 of the PID namespace is dead.  `joins` are namespaces from anywhere, of which
    the last is a user namespace with `joins_user`; with `plain` the priorities stay the caller's, and with `keep_keys`
    the keyring.
    """
    launch = ffi.new("nsrun_launch *")
    args, _a = _strings(argv)
    m_args, _b = _strings(monitor_argv)
    env, _c = _strings([f"{k}={v}" for k, v in os.environ.items()] if monitor >= 0 else [])
    keeps, m_keeps = ffi.new("int[]", list(keep)), ffi.new("int[]", list(monitor_keep))
    launch.join_fd, launch.join_flags, launch.clone_flags = join_fd, join_flags, clone_flags
    one_way = one_way or user_fd >= 0 or bool(join_flags & CLONE_NEWUSER) or bool(joins) or in_userns()
    launch.user_fd, launch.one_way = user_fd, int(one_way)
    launch.cgroup, launch.program, launch.argv, launch.stdio = cgroup, program, args, list(stdio)
    launch.keep, launch.n_keep = keeps, len(keep)
    launch.monitor, launch.monitor_argv, launch.monitor_envp = monitor, m_args, env
    launch.monitor_keep, launch.n_monitor_keep, launch.pidfd_slot = m_keeps, len(monitor_keep), pidfd_slot
    lock_fds = ffi.new("int[]", list(locks))
    launch.locks, launch.n_locks, launch.lock_byte = lock_fds, len(locks), lock_byte
    joined = ffi.new("int[]", list(joins))
    launch.joins, launch.n_joins, launch.joins_user = joined, len(joins), int(joins_user)
    launch.plain, launch.keep_keys = int(plain), int(keep_keys)
    result = lib.nsrun_do_launch(launch)
    if result < 0:
        raise KernelError(-result, _LAUNCH_STAGE.get(launch.failed, "launch"))
    return launch.pid, launch.pidfd, launch.monitor_pid


#: Seconds that we wait for nsrun-door's answer; it gives up the request after DOOR_SECONDS.
DOOR_PATIENCE = DOOR_SECONDS + 5


def ask_door(door: int, fds: Sequence[int]) -> tuple[int, int, int, int]:
    """Send a launch to nsrun-door (csrc/door.c); return (pid, its pidfd, monitor's pid, its pidfd).

    The first descriptor is the request.  Any process of the pod's owner may answer, so we trust only what the kernel
    says about the descriptors (`_check_answer`).  A pid is 0 when its process has already ended.

    Raise KernelError: ETIMEDOUT without an answer in DOOR_PATIENCE; ECONNRESET when the door closed without one;
    EBADMSG when it is not an answer; EPERM when it names a process that is not the pod's or not ours; else the error of
    the launch.  unix(7), SCM_RIGHTS; pidfd_open(2).
    """
    import _socket
    from errno import EBADMSG, ECONNRESET, ETIMEDOUT
    from struct import calcsize, pack, unpack

    if len(fds) > DOOR_FDS:
        call = f"sendmsg(door, SCM_RIGHTS): {len(fds)} descriptors, {DOOR_FDS} are possible: fewer volumes"
        raise KernelError(E2BIG, call)
    sock = _socket.socket(fileno=os.dup(door))
    received: list[int] = []
    size = calcsize(DOOR_ANSWER)
    try:
        sock.settimeout(DOOR_PATIENCE)
        try:
            sock.sendmsg([b"L"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, pack(f"={len(fds)}i", *fds))])
            data, control, _, _ = sock.recvmsg(size + 1, 64, _socket.MSG_CMSG_CLOEXEC)
        except TimeoutError:
            call = f"recv(door): nsrun-door gave no answer in {DOOR_PATIENCE} s (stopped, or not nsrun's)"
            raise KernelError(ETIMEDOUT, call) from None
        except (BrokenPipeError, ConnectionResetError):
            data, control = b"", []
        for level, kind, content in control:
            if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
                received += unpack(f"={len(content) // 4}i", content[: len(content) // 4 * 4])
        if not data:
            raise KernelError(ECONNRESET, "recv(door): nsrun-door closed the connection without an answer")
        if len(data) != size:
            raise KernelError(EBADMSG, "recv(door)")
        _, _, failed, error = unpack(DOOR_ANSWER, data)
        if -4096 < error < 0:
            raise KernelError(-error, _LAUNCH_STAGE.get(failed, "launch"))
        if error or len(received) != 2:
            raise KernelError(EBADMSG, "recv(door)")
        pid, monitor = _check_answer(received[0], inside=True), _check_answer(received[1], inside=False)
        pidfd, monitor_pidfd, received = received[0], received[1], []
        return pid, pidfd, monitor, monitor_pidfd
    finally:
        sock.close()
        for fd in received:
            os.close(fd)


def _check_answer(fd: int, inside: bool) -> int:
    """Return the pid of a pidfd that came from the door, as the kernel tells it; 0 when that process has ended.

    With `inside`, it must be in a PID namespace below ours, as everything in a pod is.  We never use the pid that the
    door names: a lie would make a foreign process the member that is listed, signalled and waited for.
    """
    from errno import EBADMSG, EPERM

    with open(f"/proc/self/fdinfo/{fd}", "rb", buffering=0) as file:
        info = dict(line.split(b":\t", 1) for line in file.read(4096).split(b"\n") if b":\t" in line)
    if b"Pid" not in info:
        raise KernelError(EBADMSG, "recv(door): not a pidfd")
    try:
        pidfd_send_signal(fd, 0)
    except KernelError as error:
        if error.errno == ESRCH:
            return 0
        raise KernelError(error.errno or EPERM, "recv(door): a process that is not ours") from None
    pid = int(info[b"Pid"])
    if pid < 0:  # it has ended meanwhile
        return 0
    if pid == 0:
        raise KernelError(ESRCH, "recv(door): a process outside of our PID namespace")
    if inside and len(info.get(b"NSpid", b"").split()) < 2:
        raise KernelError(EPERM, "recv(door): a process outside of the pod")
    return pid


def replace_process(program: int, argv: Sequence[str]) -> NoReturn:
    """execveat(2): execute a sealed program in place of this process."""
    args, _a = _strings(argv)
    env, _b = _strings([f"{k}={v}" for k, v in os.environ.items()])
    result = lib.nsrun_replace_process(program, args, env)
    raise KernelError(-result, "execveat(program)")


# ---- processes, as /proc tells them --------------------------------------------------------------------


def process_start(pid: int) -> int:
    """Return the start time of a live process in clock ticks since boot; 0 when it is dead.

    It is field 22 of proc_pid_stat(5).  (pid, start time) identifies one process as long as the machine is up; a pid
    alone is reused.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            fields = file.read(1024).rpartition(b")")[2].split()
    except OSError as error:
        if error.errno in (ENOENT, ESRCH):
            return 0
        raise
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


def is_hidden(pid: int) -> bool:
    """Return whether a process with this pid is alive though /proc does not show it.  proc(5), hidepid."""
    from select import poll

    with Fd(pidfd_of(pid)) as fd:
        if fd < 0:
            return False
        poller = poll()
        poller.register(fd, 1)
        return not poller.poll(0)  # readable: it has ended, and waits for its parent


def our_view() -> list[int]:
    """Return the inodes of the namespaces on which the meaning of a pid and of a start time depends.

    pid_namespaces(7), time_namespaces(7).
    """
    found = [os.stat("/proc/self/ns/pid").st_ino]
    try:
        found.append(os.stat("/proc/self/ns/time").st_ino)
    except FileNotFoundError:
        found.append(0)  # a kernel without them
    return found


INITIAL_TIME = 0xEFFFFFFA  # PROC_TIME_INIT_INO, linux/proc_ns.h


def time_offset() -> int | None:
    """Return by how many clock ticks start times in this time namespace are ahead of those in the initial one.

    Return None when that can't be told, because this process is in another one than its children will be.
    time_namespaces(7).
    """
    try:
        ours = os.stat("/proc/self/ns/time").st_ino
    except FileNotFoundError:
        return 0  # a kernel without them
    if ours == INITIAL_TIME:
        return 0
    if ours != os.stat("/proc/self/ns/time_for_children").st_ino:
        return None
    with open("/proc/self/timens_offsets", "rb") as file:
        for name, seconds, nanoseconds in map(bytes.split, file):
            if name in (b"boottime", b"7"):
                return (int(seconds) * 1_000_000_000 + int(nanoseconds)) * os.sysconf("SC_CLK_TCK") // 1_000_000_000
    return None


def namespace_ids(pid: int) -> dict[str, int]:
    """Return the inode of each namespace of a process, namespaces(7); {} when it is dead or we may not look at it."""
    found = {}
    for name in NAMESPACES:
        try:
            found[name] = os.stat(f"/proc/{pid}/ns/{name}").st_ino
        except OSError:
            return {}
    return found


def boot_id() -> str:
    """Return the id of this boot, random(4).

    When another file is in its place, a new procfs shows it; return "" without the privilege to mount one.
    """
    try:
        if found := _boot_id("/proc/sys/kernel/random/boot_id"):
            return found
    except OSError:
        pass
    try:
        with Fd(mount_new("proc", (), 0)) as proc:
            return _boot_id("sys/kernel/random/boot_id", proc)
    except OSError:
        return ""


def _boot_id(path: str, directory: int | None = None) -> str:
    # a FIFO in its place is not waited for
    with Fd(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=directory)) as fd:
        return os.read(fd, 64).decode("ascii", "replace").strip() if fs_magic(fd) == PROC_MAGIC else ""


#: Monitors and pauses that this process started, by pid.
started: set[int] = set()


def reap() -> None:
    """Take the exit status of each of `started` that has ended, without waiting.

    A long-lived user of the library would otherwise keep zombies.
    """
    for pid in list(started):
        try:
            if os.waitpid(pid, os.WNOHANG)[0]:
                started.discard(pid)
        except ChildProcessError:
            started.discard(pid)
