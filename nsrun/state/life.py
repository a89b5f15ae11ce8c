# SPDX-License-Identifier: Apache-2.0
"""The proof of life: record locks, asked from the kernel.

Whoever keeps a pod or a member holds a read lock on the file `held` in its state directory, on a read-only
descriptor, from before its exec on: fcntl(2), "Advisory record locking".  Such a lock belongs to one process, outlives
an exec, and goes when the process ends, however it ends (when it closes its files: a pause that can't finish because
of a zombie that nobody reaps has let go already).  F_GETLK answers with the holder's pid *as the asker's PID
namespace numbers it*, or 0 where it has no number; so the answer is right from every PID, time, mount and user
namespace, in every boot, and under hidepid.  Pids in a note are for people.

Each byte of the file is a role:

    0  MAKER   nsrun, while it makes (or removes) the thing
    1  KEEPER  pause, of a pod; the monitor, of a member
    2  HOLDER  nsrun-hold, which keeps what root lends to an owned pod

A lock is believed only where whoever it is about can't open the file: one that an owner may read they may lock, too, and
F_GETLK tells who set a lock, not who has it since (clone(2), CLONE_FILES).  So root never concludes anything from the file
that it shows to the owner of a pod (state.py, `look`).

Two things bite.  Closing *any* descriptor of a file ends all locks that the process has on it, so a file that we hold is
never opened again (`_ours`).  And a lock says nothing about who asks, so a holder is asked about through `_ours` first.
"""

from __future__ import annotations

import _thread
import os
from errno import EACCES, EAGAIN, EINVAL, EISDIR, ELOOP, ENOENT, ENOLCK, ENOSYS, ENOTDIR, ENXIO, EOPNOTSUPP
from stat import S_ISREG

from nsrun import kernel
from nsrun._protocol import HOLDER as HOLDER
from nsrun._protocol import KEEPER as KEEPER
from nsrun._protocol import MAKER as MAKER
from nsrun.errors import BadInput, KernelError

HELD = "held"
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
#: File systems that other machines share, or whose locks another program decides: statfs(2), f_type.
_REMOTE = {0x6969: "NFS", 0xFF534D42: "CIFS", 0xFE534D42: "SMB", 0x01021997: "9p", 0x5346414F: "AFS", 0x00C36400: "Ceph", 0x0BD00BD0: "Lustre", 0x47504653: "GPFS"}  # fmt: skip

#: Files that this process holds locks on: (device, inode) → (descriptor, bytes).
_ours: dict[tuple[int, int], tuple[int, set[int]]] = {}
#: Held from the opening of a file until `_ours` knows of it, or it is closed again: another thread would end our locks.
_guard = _thread.allocate_lock()
#: Members whose parent is this very process, a caller of the library: id → pidfd.
children: dict[str, int] = {}


class Life:
    """What the kernel said of one `held`: who makes, keeps, holds it.

    Each is a pid, 0 for a process that is not visible from here, or None for nobody.
    """

    __slots__ = ("file", "holder", "keeper", "maker")

    def __init__(
        self,
        file: tuple[int, int] | None,
        maker: int | None = None,
        keeper: int | None = None,
        holder: int | None = None,
    ) -> None:
        self.file = file  # (device, inode) of what was asked about; None: there is no such file, so nothing is proven
        self.maker, self.keeper, self.holder = maker, keeper, holder

    @property
    def alive(self) -> bool:
        return not (self.maker is None and self.keeper is None and self.holder is None)

    @property
    def kept(self) -> bool:
        """By somebody who stays, not only by an nsrun that is at work on it."""
        return self.keeper is not None or self.holder is not None


def _identity(file: int | str) -> tuple[int, int]:
    st = os.stat(file, follow_symlinks=False) if isinstance(file, str) else os.fstat(file)
    return st.st_dev, st.st_ino


def identity(file: int | str) -> tuple[int, int] | None:
    """(device, inode) of a path or descriptor, by which one that took its name since is told from it; None: there is none."""
    try:
        return _identity(file)
    except (FileNotFoundError, NotADirectoryError):
        return None


def create(path: str, byte: int = MAKER) -> int:
    """Make the file and lock `byte` of it; return the descriptor, which `let_go` closes.

    -1 when a sweep removed it in between: its directory was not proven to be anybody's yet.  FileExistsError.
    BadInput: a file system whose locks prove nothing.
    """
    with _guard:
        return _create(path, byte)


def _create(path: str, byte: int) -> int:
    fd = os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        _check_file_system(fd, path)
        _own(fd, byte)
        if os.fstat(fd).st_nlink:
            return fd
    except BaseException as error:
        _let_go(fd)
        if isinstance(error, BadInput) and error.errno == EAGAIN:
            return -1  # a sweep came between the open and the lock
        raise
    _let_go(fd)
    return -1


def own(fd: int, byte: int) -> None:
    """Lock one more byte of a file that is open here.  BadInput: it is being removed."""
    with _guard:
        _own(fd, byte)


def _own(fd: int, byte: int) -> None:
    try:
        kernel.lock(fd, kernel.F_RDLCK, byte, 1)
    except KernelError as error:
        if error.errno in (EAGAIN, EACCES):
            raise BadInput("it is being removed by another nsrun", errno=EAGAIN) from None
        if error.errno in (ENOLCK, ENOSYS, EINVAL, EOPNOTSUPP):
            raise BadInput(
                f"{error}: this file system has no record locks", hint=_HINT, errno=error.errno or 0
            ) from None
        raise
    _ours.setdefault(_identity(fd), (fd, set()))[1].add(byte)


_HINT = "--root DIR (or NSRUN_ROOT) on a local file system; of a user: XDG_DATA_HOME"


def _check_file_system(fd: int, path: str) -> None:
    if name := _REMOTE.get(kernel.fs_magic(fd) & 0xFFFFFFFF):
        raise BadInput(
            f"{os.path.dirname(path)} is on {name}: locks there do not prove which processes of this machine live",
            hint=_HINT,
        )


def adopt(fd: int) -> None:
    """Take over a descriptor whose KEEPER lock this very process took before its exec: nsrun that was the monitor."""
    with _guard:
        _ours.setdefault(_identity(fd), (fd, set()))[1].add(KEEPER)


def let_go(fd: int) -> None:
    """Close it, which ends our locks."""
    with _guard:
        _let_go(fd)


def _let_go(fd: int) -> None:
    if fd >= 0:
        _ours.pop(_identity(fd), None)
        os.close(fd)


def let_go_of(path: str) -> None:
    """The same for a file that we hold; one that we do not is left alone."""
    with _guard:
        mine = _ours.get(identity(path) or (0, 0))
        if mine:
            _let_go(mine[0])


#: What open(2) says where no `held` of ours is: nothing, or something that we never made.
_LOST = (ENOENT, ENOTDIR, ELOOP, EISDIR, ENXIO)


def ask(path: str) -> Life:
    """Who holds the file `path`.  OSError when it can't be asked: that is no death.

    A file that is not there, or a directory or a link in its place, proves nothing: `Life.file` is None.
    """
    with _guard:
        return _ask_path(path)


def _ask_path(path: str) -> Life:
    try:
        mine = _ours.get(_identity(path))
        if mine:
            return _ask(mine[0], mine[1])
        fd = os.open(path, _FLAGS)
    except OSError as error:
        if error.errno in _LOST:
            return Life(None)
        raise
    try:
        return _ask(fd, set()) if S_ISREG(os.fstat(fd).st_mode) else Life(None)
    finally:
        os.close(fd)


def _ask(fd: int, mine: set[int]) -> Life:
    def who(byte: int) -> int | None:
        return os.getpid() if byte in mine else kernel.locked(fd, byte, 1)

    if not mine and kernel.locked(fd, 0, 0) is None:
        return Life(_identity(fd))
    return Life(_identity(fd), who(MAKER), who(KEEPER), who(HOLDER))


class Removal:
    """`with Removal(path) as mine:` `mine` tells that nobody holds the file, and nobody can until the end of the block.

    A file that is missing, or a directory or a link in its place, is in nobody's way.
    """

    def __init__(self, path: str) -> None:
        self.path, self.fd, self.close = path, -1, True

    def __enter__(self) -> bool:
        with _guard:
            return self._enter()

    def _enter(self) -> bool:
        try:
            if mine := _ours.get(_identity(self.path)):  # we are who keeps it, and mean to end that
                self.fd, self.close = mine[0], False
                return self._others_gone()
            self.fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            if error.errno in _LOST:
                return True
            raise
        try:
            kernel.lock(self.fd, kernel.F_WRLCK, 0, 0)
        except KernelError as error:
            if error.errno in (EAGAIN, EACCES):
                return False
            self.__exit__()  # `with` calls it only after this
            raise
        return identity(self.path) in (None, _identity(self.fd))  # a name that was given away in between is another's

    def _others_gone(self) -> bool:
        return kernel.locked(self.fd, 0, 0) is None

    def __exit__(self, *_: object) -> None:
        if self.fd >= 0 and self.close:
            os.close(self.fd)


# ---- from a holder to what it holds --------------------------------------------------------------------------


def open_pid(pid: int, ask_again: str, byte: int) -> int:
    """A pidfd of the holder of `byte`; -1 when it has let go.  pidfd_open(2).

    The number alone may be another's by the time it is opened: the lock is asked about once more with the pidfd in hand.
    """
    fd = kernel.pidfd_of(pid)
    if fd >= 0:
        now = ask(ask_again)
        if (now.maker, now.keeper, now.holder)[byte] == pid:
            return fd
        os.close(fd)
    return -1


def open_held(holder: int, number: int) -> tuple[int, int]:
    """(pidfd, pid) of the process that a living holder has a pidfd of, under this descriptor number; (-1, 0) when dead.

    The holder's fdinfo tells the pid (proc_pid_fdinfo(5)); while it tells the same before and after, the number was that
    process's all the time.
    """
    pid = _held_pid(holder, number)
    fd = kernel.pidfd_of(pid) if pid > 0 else -1
    if fd >= 0 and _held_pid(holder, number) != pid:
        os.close(fd)
        fd = -1
    return (fd, pid) if fd >= 0 else (-1, 0)


def pidfds_of(holder: int) -> list[tuple[int, int]]:
    """The same of every process that it has a pidfd of."""
    try:
        numbers = [int(number) for number in os.listdir(f"/proc/{holder}/fdinfo")]
    except OSError:
        return []
    return [pair for number in numbers if (pair := open_held(holder, number))[0] >= 0]


def held_lives(holder: int, number: int) -> bool:
    """Has the process that a living holder has a pidfd of not ended?"""
    pid = _held_pid(holder, number)
    return pid > 0 and kernel.process_start(pid) > 0


def _held_pid(holder: int, number: int) -> int:
    try:
        with open(f"/proc/{holder}/fdinfo/{number}", "rb", buffering=0) as file:
            for line in file.read(4096).split(b"\n"):
                if line.startswith(b"Pid:"):
                    return int(line[4:])
    except (OSError, ValueError):
        pass  # it has ended, or is not ours to look into
    return 0


def wait(path: str, pidfd: int, seconds: float | None, byte: int | None = None) -> bool:
    """Wait until nobody holds `byte` of the file (None: any); False when `seconds` were not enough.

    A dying process closes its files, and with them its locks, before its pidfd becomes readable: for a pause with a zombie
    that nobody reaps, long before.
    """
    from select import poll
    from time import monotonic

    end = None if seconds is None else monotonic() + seconds
    poller = poll()
    if pidfd >= 0:
        poller.register(pidfd, 1)
    step = 1
    while True:
        now = ask(path)
        if not (now.alive if byte is None else (now.maker, now.keeper, now.holder)[byte] is not None):
            return True
        if end is not None and monotonic() >= end:
            return False
        poller.poll(step)
        step = min(2 * step, 50)
