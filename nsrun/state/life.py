# SPDX-License-Identifier: Apache-2.0
"""The proof of life: record locks, asked from the kernel.

The process that keeps a pod or a member alive holds a read lock on the file `held` in its state directory, on a
read-only descriptor that it has since before its exec: fcntl(2), "Advisory record locking".  Such a lock belongs to one
process, survives an exec, and ends with the process, however that ends (precisely: when it closes its files, so a pause
that can't finish because of a zombie that nobody reaps has released it already).  F_GETLK returns the holder's pid *as
the caller's PID namespace numbers it*, or 0 where it has no number; so the answer is right from every PID, time, mount
and user namespace, in every boot, and under hidepid.  Pids in a note are for people.

Each byte of the file is a role:

    0  MAKER   nsrun, while it makes (or removes) the pod or member
    1  KEEPER  pause, for a pod; the monitor, for a member
    2  HOLDER  nsrun-hold, which keeps what root lends to an owned pod

A lock proves something only if the process that it is about can't open the file: a file that an owner may read, they
may lock, too, and F_GETLK tells who set a lock, not who has it now (clone(2), CLONE_FILES).  So root never concludes
anything from the file that it shows to the owner of a pod (State.note_and_life).

There are two traps.  Closing *any* descriptor of a file ends all locks that the process has on it, so a file that we
hold is never opened again (`_ours`).  And F_GETLK never reports the caller's own locks, so we look into `_ours` first.
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

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

HELD = "held"
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
#: File systems that other machines share, or whose locks another program manages: statfs(2), f_type.
_REMOTE = {0x6969: "NFS", 0xFF534D42: "CIFS", 0xFE534D42: "SMB", 0x01021997: "9p", 0x5346414F: "AFS", 0x00C36400: "Ceph", 0x0BD00BD0: "Lustre", 0x47504653: "GPFS"}  # fmt: skip

#: Files that this process holds locks on: (device, inode) → (descriptor, bytes).
_ours: dict[tuple[int, int], tuple[int, set[int]]] = {}
#: Held from opening a file until it is in `_ours` or closed again; otherwise another thread could end our locks.
_guard = _thread.allocate_lock()
#: Members whose parent is this very process, a user of the library: id → pidfd.
children: dict[str, int] = {}


class Life:
    """What the kernel said about one `held`: its maker, keeper and holder.

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
        self.file = file  # (device, inode) of the file; None: there is no such file, so nothing is proven
        self.maker, self.keeper, self.holder = maker, keeper, holder

    @property
    def alive(self) -> bool:
        return not (self.maker is None and self.keeper is None and self.holder is None)

    @property
    def kept(self) -> bool:
        """Whether a process that stays has it, not only an nsrun that is making or removing it."""
        return self.keeper is not None or self.holder is not None


def _identity(file: int | str) -> tuple[int, int]:
    st = os.stat(file, follow_symlinks=False) if isinstance(file, str) else os.fstat(file)
    return st.st_dev, st.st_ino


def identity(file: int | str) -> tuple[int, int] | None:
    """Return (device, inode) of a path or descriptor, by which files of one name differ; None when there is none."""
    try:
        return _identity(file)
    except (FileNotFoundError, NotADirectoryError):
        return None


def describe(file: int | str) -> dict[str, int]:
    """Return what a note says about its `held`: the inode, and when it was made, since a file system gives inodes again."""
    if isinstance(file, str):
        return {"held": os.stat(file, follow_symlinks=False).st_ino, "held_since": kernel.birth(file)}
    return {"held": os.fstat(file).st_ino, "held_since": kernel.birth("", file)}


def is_original(directory: str) -> bool:
    """Return whether the `held` in a directory is the one that was made with it, and not another that has replaced that.

    It is the first file there.  False where that can't be told: nothing else is there, or the file system does not say
    when files were made.
    """
    try:
        first, *others = (
            kernel.birth(f"{directory}/{name}") for name in sorted(os.listdir(directory), key=lambda name: name != HELD)
        )
        return bool(others) and 0 < kernel.birth(f"{directory}/{HELD}") == first <= min(others)
    except (OSError, ValueError):
        return False


def is_another(path: str, note: Mapping[str, Any]) -> bool:
    """Return whether somebody holds the file `path`, and it does not look like the `held` that this note describes.

    When we hold it ourselves, only its inode counts.  False also when that can't be asked: State.life raises the reason.
    """
    try:
        there = describe(path)
        if is_described(there, note):
            return False
        now = ask(path)
    except OSError:
        return False
    return now.alive and (now.keeper != os.getpid() or note.get("held") != there["held"])


def is_described(there: dict[str, int], note: Mapping[str, Any]) -> bool:
    """Return whether a note describes this `held`; a note of an older build may say less."""
    return all(note.get(key, value) == value for key, value in there.items())


def create(path: str, byte: int = MAKER) -> int:
    """Make the file and lock `byte` of it; return the descriptor, which `let_go` closes.

    Return -1 when a sweep removed the file before it was locked.  Raise FileExistsError, or BadInput when locks prove
    nothing on this file system.
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
    """Lock one more byte of a file that is open here.  Raise BadInput when it is being removed."""
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


_HINT = "use --root DIR (or NSRUN_ROOT) on a local file system; as an ordinary user, set XDG_DATA_HOME"


def _check_file_system(fd: int, path: str) -> None:
    if name := _REMOTE.get(kernel.fs_magic(fd) & 0xFFFFFFFF):
        raise BadInput(
            f"{os.path.dirname(path)} is on {name}: locks there do not prove which processes of this machine live",
            hint=_HINT,
        )


def take(path: str, byte: int) -> int:
    """Open a file that is there and lock `byte` of it; return the descriptor, which `let_go` closes.

    Raise OSError when it can't be opened, and BadInput when it is being removed, or we hold it already.
    """
    with _guard:
        if _identity(path) in _ours:  # another descriptor of it, once closed, would end our locks
            raise BadInput(f"{path} is held by this very process")
        fd = os.open(path, _FLAGS)
        try:
            _own(fd, byte)
        except BaseException:
            os.close(fd)
            raise
        return fd


def adopt(fd: int) -> None:
    """Take over a descriptor whose KEEPER lock this very process took before its exec, when it was the monitor."""
    with _guard:
        _ours.setdefault(_identity(fd), (fd, set()))[1].add(KEEPER)


def let_go(fd: int) -> None:
    """Close the descriptor, which ends our locks."""
    with _guard:
        _let_go(fd)


def _let_go(fd: int) -> None:
    if fd >= 0:
        _ours.pop(_identity(fd), None)
        os.close(fd)


def let_go_of(path: str) -> None:
    """Do the same by path, if we hold that file; otherwise do nothing."""
    with _guard:
        mine = _ours.get(identity(path) or (0, 0))
        if mine:
            _let_go(mine[0])


#: The errors of open(2) where there is no `held` of ours: nothing is there, or something that we never made.
_LOST = (ENOENT, ENOTDIR, ELOOP, EISDIR, ENXIO)


def ask(path: str) -> Life:
    """Return who holds the file `path`.  Raise OSError when that can't be asked, which does not mean that it has ended.

    A missing file, or a directory or a link in its place, proves nothing: `Life.file` is None.
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


def unheld(directory: str, position: int, most: int, wanted: int) -> tuple[list[str], int]:
    """Return (the names below a directory of which no lock shows that they live, where to go on); `most` are looked at.

    It proves nothing about what it returns: who wants to remove that asks about each.  Raise OSError when the directory
    can't be read.
    """
    with kernel.Fd(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd, _guard:
        return kernel.unlocked(fd, position, most, wanted, list(_ours))


def census(directory: str, names: list[str], marks: tuple[str, ...]) -> list[tuple[bytes | None, tuple[int, ...]]]:
    """Return what `kernel.census` says of these names below a directory.  Raise OSError when it can't be opened."""
    with kernel.Fd(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd, _guard:
        return kernel.census(fd, names, marks, list(_ours))


class Removal:
    """`with Removal(path) as mine:` if `mine`, nobody holds the file, and nobody can until the end of the block.

    `mine` is also true for a missing file, or when a directory or a link is in its place.
    """

    def __init__(self, path: str) -> None:
        self.path, self.fd, self.close = path, -1, True

    def __enter__(self) -> bool:
        with _guard:
            return self._enter()

    def _enter(self) -> bool:
        try:
            if mine := _ours.get(_identity(self.path)):  # we keep it ourselves, and want to end that
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
        # otherwise the name has been taken by another meanwhile
        return identity(self.path) in (None, _identity(self.fd))

    def _others_gone(self) -> bool:
        return kernel.locked(self.fd, 0, 0) is None

    def __exit__(self, *_: object) -> None:
        if self.fd >= 0 and self.close:
            os.close(self.fd)


# ---- from a holder to what it holds --------------------------------------------------------------------------


def open_pid(pid: int, ask_again: str, byte: int) -> int:
    """Return a pidfd of the holder of `byte`, or -1 when it has released the lock.  pidfd_open(2).

    Another process may have the pid by the time it is opened, so we ask for the lock again when we have the pidfd.
    """
    fd = kernel.pidfd_of(pid)
    if fd >= 0:
        now = ask(ask_again)
        if (now.maker, now.keeper, now.holder)[byte] == pid:
            return fd
        os.close(fd)
    return -1


def open_held(holder: int, number: int) -> tuple[int, int]:
    """Return (pidfd, pid) of the process that a living holder has as descriptor `number`; (-1, 0) when it has ended.

    The holder's fdinfo tells the pid (proc_pid_fdinfo(5)).  If it tells the same before and after we open ours, the pid
    belonged to that process all the time.
    """
    pid = _held_pid(holder, number)
    fd = kernel.pidfd_of(pid) if pid > 0 else -1
    if fd >= 0 and _held_pid(holder, number) != pid:
        os.close(fd)
        fd = -1
    return (fd, pid) if fd >= 0 else (-1, 0)


def pidfds_of(holder: int) -> list[tuple[int, int]]:
    """Return the same for every process that the holder has a pidfd of."""
    try:
        numbers = [int(number) for number in os.listdir(f"/proc/{holder}/fdinfo")]
    except OSError:
        return []
    return [pair for number in numbers if (pair := open_held(holder, number))[0] >= 0]


def held_lives(holder: int, number: int) -> bool:
    """Return whether the process to which descriptor `number` of a living holder refers is still alive."""
    pid = _held_pid(holder, number)
    return pid > 0 and kernel.process_start(pid) > 0


def _held_pid(holder: int, number: int) -> int:
    try:
        with open(f"/proc/{holder}/fdinfo/{number}", "rb", buffering=0) as file:
            for line in file.read(4096).split(b"\n"):
                if line.startswith(b"Pid:"):
                    return int(line[4:])
    except (OSError, ValueError):
        pass  # it has ended, or we may not look into it
    return 0


def wait(path: str, pidfd: int, seconds: float | None, byte: int | None = None) -> bool:
    """Wait until nobody holds `byte` of the file (None: any byte); return False when that took longer than `seconds`.

    A dying process closes its files, and so releases its locks, before its pidfd becomes readable: long before, for a
    pause with a zombie that nobody reaps.
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
