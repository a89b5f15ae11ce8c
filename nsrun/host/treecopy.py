# SPDX-License-Identifier: Apache-2.0
"""Copy files and trees between a member and this host, or as a tar, while the member changes what is copied.

**No path is followed out.**  What a user names in a member is resolved by openat2(2) inside its root.  From there on every
call takes a descriptor of a directory and one name in it, and follows no link, on either side.  A file is opened with O_PATH
first, and read only if that is a regular file: a FIFO would keep us, and opening a device does something.

**Everything ends.**  A file is read up to the size that it had when it was opened, its holes are not, and a hard link is made
once more and not copied.  There are limits for entries, depth and the names that we remember, because a member may add to a tree
faster than it is read.  It may also rename one file ahead of the walk, which then copies that each time that it meets it: what
is written is bounded by the limit for entries, and by the space of the target, and not by what the member has.

**Nothing gains power.**  Devices and sockets are left out, like extended attributes, which may be capabilities; and a file
that is copied to this host loses its set-user-ID and set-group-ID bits.
"""

from __future__ import annotations

import os
import stat
from errno import EEXIST, EINVAL, EISDIR, ELOOP, ENODEV, ENOENT, ENOTDIR, ENOTEMPTY, ENXIO, EOPNOTSUPP, EXDEV

from nsrun import kernel
from nsrun.errors import BadInput, KernelError, NsrunError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO, Any, Protocol

    class Sink(Protocol):
        """Where entries go, in the order of a walk."""

        def enter(self, name: str, st: os.stat_result) -> None: ...
        def leave(self, st: os.stat_result) -> None: ...
        def file(self, name: str, st: os.stat_result, fd: int) -> None: ...
        def symlink(self, name: str, st: os.stat_result, target: str) -> None: ...
        def fifo(self, name: str, st: os.stat_result) -> None: ...


MAX_ENTRIES = 2_000_000
MAX_DEPTH = 200  # levels, of which each holds three descriptors
MAX_NAMES = 64 << 20  # bytes of the paths of files with several links
MAX_WARNINGS = 8
MAX_HEADER = 1 << 20  # bytes of one extended header of a tar
PIECE = 1 << 20
_FIND = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: File systems of which a tree is no files that somebody wrote: proc, sysfs, cgroup, cgroup2, devpts, debugfs, tracefs.
_NO_FILES = {0x9FA0, 0x62656572, 0x27E0EB, 0x63677270, 0x1CD1, 0x64626720, 0x74726163}


class Place:
    """Where paths are resolved: a root directory, by openat2(2), or (without one) this process's own view."""

    def __init__(self, root: int = -1) -> None:
        self.root = root

    def open(self, path: str, flags: int) -> int:
        """Open a path; raise OSError."""
        if self.root < 0:
            return os.open(path, flags | os.O_CLOEXEC)
        try:
            return kernel.open_in_root(self.root, path or "/", flags)
        except KernelError as error:
            raise OSError(
                error.errno, os.strerror(error.errno or 0)
            ) from None  # as FileNotFoundError, where it is that

    def split(self, path: str) -> tuple[int, str]:
        """Return (a descriptor of the directory that holds the path, its name there); the name is "." for a root."""
        head, _, name = path.rstrip("/").rpartition("/")
        if name in ("", ".", ".."):
            return self.open(path, os.O_PATH | os.O_DIRECTORY), "."
        slash = "/" if path.startswith("/") or self.root >= 0 else "."
        return self.open(head or slash, os.O_PATH | os.O_DIRECTORY), name


class Names:
    """What is copied as whose: `owner` says the uid and gid, or None to leave that to the kernel; `powers`: keep set-ID bits."""

    def __init__(self, owner: Callable[[int, int], tuple[int, int] | None], powers: bool) -> None:
        self.owner, self.powers = owner, powers

    def mode(self, st: os.stat_result) -> int:
        mode = stat.S_IMODE(st.st_mode)
        return mode if self.powers or stat.S_ISDIR(st.st_mode) else mode & ~(stat.S_ISUID | stat.S_ISGID)


def _copy_data(source: int, target: int, size: int) -> None:
    """Copy the data of a file up to `size`, and leave its holes; what is missing of it by now are zeros."""
    at = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
            end = min(os.lseek(source, at, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == ENXIO:
                break  # only a hole is left
            if error.errno != EINVAL:
                raise
            end = size  # its file system knows no holes
        end = max(end, at + 1)  # a hole by now
        while at < end:
            piece = os.pread(source, min(PIECE, end - at), at)
            if not piece:
                break
            done = 0
            while done < len(piece):
                done += os.pwrite(target, piece[done:], at + done)
            at += len(piece)
        else:
            at = max(at, end)
            continue
        break  # it has become shorter
    os.ftruncate(target, size)


_IN_MEMORY = 16 << 20  # bytes of a file up to which its content is kept in memory


def _stage(size: int) -> Any:
    """Return a file without a name, in which a content can be made."""
    if size <= _IN_MEMORY:
        return os.fdopen(os.memfd_create("content", os.MFD_CLOEXEC), "r+b")
    import tempfile

    return tempfile.TemporaryFile()


def _make_room(target: int, old: int, size: int) -> None:
    """Have the file system give space for `size` bytes to a file.  Raise OSError when it has not so much: then nothing has changed."""
    if not size:
        return
    try:
        os.posix_fallocate(target, 0, size)
    except OSError as error:
        if size > old:
            os.ftruncate(target, old)
        if error.errno not in (EINVAL, EOPNOTSUPP, ENODEV):
            raise


class _Links:
    """The paths of the files with several names that were copied, by (device, inode), with what else there is to know."""

    def __init__(self) -> None:
        self.known: dict[tuple[int, int], tuple[str, tuple[int, int]]] = {}
        self.size = 0

    def get(self, st: os.stat_result) -> tuple[str, tuple[int, int]] | None:
        return self.known.get((st.st_dev, st.st_ino)) if st.st_nlink > 1 else None

    def add(self, st: os.stat_result, path: str, made: tuple[int, int] = (0, 0)) -> None:
        if st.st_nlink < 2:
            return
        self.size += len(path)
        if self.size > MAX_NAMES:
            raise NsrunError(
                f"the paths of files with several links are longer than {MAX_NAMES} bytes", hint="copy a part of it"
            )
        self.known[st.st_dev, st.st_ino] = path, made


class Directory:
    """A sink that makes files and directories below a descriptor.  It follows no link there."""

    def __init__(self, top: int, names: Names) -> None:
        self.top, self.names = top, names
        self.levels = [os.open(".", _DIRECTORY, dir_fd=top)]
        self.made = [False]  # whether the directory of a level is new: one that was there keeps its attributes
        self.path: list[str] = []
        self.links = _Links()

    def close(self) -> None:
        for fd in self.levels:
            os.close(fd)

    def _dress(self, fd: int, st: os.stat_result) -> None:
        if owner := self.names.owner(st.st_uid, st.st_gid):
            os.fchown(fd, *owner)
        os.fchmod(fd, self.names.mode(st))
        os.utime(fd, ns=(st.st_atime_ns, st.st_mtime_ns))

    def enter(self, name: str, st: os.stat_result) -> None:
        above, made = self.levels[-1], True
        try:
            os.mkdir(name, 0o700, dir_fd=above)
        except FileExistsError:
            made = False
        try:
            self.levels.append(os.open(name, _DIRECTORY, dir_fd=above))
        except OSError as error:
            if error.errno in (ENOTDIR, ELOOP):
                raise BadInput(f"{'/'.join([*self.path, name])!r} is there, and is not a directory") from None
            raise
        self.made.append(made)
        self.path.append(name)

    def leave(self, st: os.stat_result) -> None:
        fd = self.levels.pop()
        self.path.pop()
        try:
            if self.made.pop():
                self._dress(fd, st)
        finally:
            os.close(fd)

    def file(self, name: str, st: os.stat_result, fd: int) -> None:
        if (known := self.links.get(st)) and self._link(*known, name):
            return
        made = self.put(name, st, lambda target: _copy_data(fd, target, st.st_size))
        self.links.add(st, "/".join([*self.path, name]), made)

    def put(self, name: str, st: os.stat_result, fill: Callable[[int], None]) -> tuple[int, int]:
        """Make a file whose content `fill` writes, whole or not at all; return (device, inode).

        One that is mounted there (/etc/hosts) can't be replaced, and is written in place: _overwrite.
        """
        if self._is_mounted(name):
            return self._overwrite(name, st, fill)
        here, new = self.levels[-1], f".nsrun-{os.urandom(6).hex()}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with kernel.Fd(os.open(new, flags, 0o600, dir_fd=here)) as target:
            try:
                fill(target)
                self._dress(target, st)
                self._rename(new, name, stat.S_IFREG)
            except BaseException:
                self._unlink(new)
                raise
            made = os.fstat(target)
            return made.st_dev, made.st_ino

    def _is_mounted(self, name: str) -> bool:
        """Return whether something is mounted at a name.

        The kernel refuses to rename over that, with EBUSY, only in the mount namespace of the caller; in any other it
        detaches what is mounted, and replaces the file beneath.
        """
        flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            os.close(kernel.open_in_root(self.levels[-1], name, flags, kernel.RESOLVE_NO_XDEV))
        except KernelError as error:
            if error.errno in (EXDEV, ENOENT):
                return error.errno == EXDEV
            raise OSError(error.errno, os.strerror(error.errno or 0)) from None
        return False

    def _check_replaced(self, name: str, kind: int) -> None:
        """Raise BadInput unless a new entry of this kind may take the place of what has the name.

        That may be a regular file, or a link, which is replaced and not followed; a device or a socket is more than its name.
        """
        where = repr("/".join([*self.path, name]))
        if self._is_mounted(name):
            raise BadInput(f"{where} is there, and something is mounted at it")
        try:
            there = stat.S_IFMT(os.stat(name, dir_fd=self.levels[-1], follow_symlinks=False).st_mode)
        except FileNotFoundError:
            return
        if there == stat.S_IFDIR:
            raise BadInput(f"{where} is there, and is a directory")
        if there not in (stat.S_IFREG, stat.S_IFLNK, kind):
            raise BadInput(f"{where} is there, and is not a regular file")

    def _rename(self, new: str, name: str, kind: int) -> None:
        self._check_replaced(name, kind)
        try:
            os.rename(new, name, src_dir_fd=self.levels[-1], dst_dir_fd=self.levels[-1])
        except OSError as error:
            if error.errno in (EISDIR, ENOTEMPTY, EEXIST):
                raise BadInput(f"{'/'.join([*self.path, name])!r} is there, and is a directory") from None
            raise

    def _overwrite(self, name: str, st: os.stat_result, fill: Callable[[int], None]) -> tuple[int, int]:
        """Write what `fill` makes over a file that can't be replaced; return (device, inode).

        All that may fail or take long is done before: the content is complete elsewhere, and the file has space for it.  Then a
        process of its own writes it, which goes on if we are killed.
        """
        where = repr("/".join([*self.path, name]))
        with kernel.Fd(os.open(name, _FIND, dir_fd=self.levels[-1])) as found:
            there = os.fstat(found)
            if not stat.S_ISREG(there.st_mode):
                raise BadInput(f"{where} is there, and is not a regular file")
            if (there.st_dev, there.st_ino) == (st.st_dev, st.st_ino):
                raise BadInput(f"{where} is what is copied: the two are the same file")
            flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
            with kernel.Fd(os.open(f"/proc/self/fd/{found}", flags)) as target, _stage(st.st_size) as whole:
                fill(whole.fileno())
                _make_room(target, there.st_size, st.st_size)
                kernel.write_apart(whole.fileno(), target, st.st_size)
            return there.st_dev, there.st_ino

    def _link(self, path: str, made: tuple[int, int], name: str) -> bool:
        """Make a hard link to a file that was made before; return False when it is not there any more."""
        first = path.split("/")
        here = os.dup(self.levels[0])
        try:
            for part in first[:-1]:
                there = os.open(part, _DIRECTORY, dir_fd=here)
                os.close(here)
                here = there
            return not self._is_mounted(name) and self.link(here, first[-1], name, made)
        except OSError:
            return False  # somebody has changed what we made: it is copied
        finally:
            os.close(here)

    def link(self, directory: int, first: str, name: str, made: tuple[int, int] | None = None) -> bool:
        """Make a hard link to a name in a directory; what has the name already is replaced, or stays when that fails.

        Return False when the first is another file than `made`.
        """
        new = f".nsrun-{os.urandom(6).hex()}"
        os.link(first, new, src_dir_fd=directory, dst_dir_fd=self.levels[-1], follow_symlinks=False)
        try:
            now = os.stat(new, dir_fd=self.levels[-1], follow_symlinks=False)
            if made and (now.st_dev, now.st_ino) != made:
                return False
            self._rename(new, name, stat.S_IFREG)
        finally:
            self._unlink(new)  # also when it is the same file as what has the name: then rename(2) does nothing
        return True

    def _unlink(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self.levels[-1])
        except FileNotFoundError:
            pass

    def _own(self, name: str, st: os.stat_result) -> None:
        if owner := self.names.owner(st.st_uid, st.st_gid):
            os.chown(name, *owner, dir_fd=self.levels[-1], follow_symlinks=False)
        os.utime(name, ns=(st.st_atime_ns, st.st_mtime_ns), dir_fd=self.levels[-1], follow_symlinks=False)

    def symlink(self, name: str, st: os.stat_result, target: str) -> None:
        self._make(name, st, lambda new: os.symlink(target, new, dir_fd=self.levels[-1]), stat.S_IFLNK)

    def fifo(self, name: str, st: os.stat_result) -> None:
        make = lambda new: os.mkfifo(new, self.names.mode(st), dir_fd=self.levels[-1])  # noqa: E731
        self._make(name, st, make, stat.S_IFIFO)

    def _make(self, name: str, st: os.stat_result, make: Callable[[str], None], kind: int) -> None:
        new = f".nsrun-{os.urandom(6).hex()}"
        make(new)
        try:
            self._own(new, st)
            self._rename(new, name, kind)
        except BaseException:
            self._unlink(new)
            raise


class _Exactly:
    """A file of which exactly `size` bytes are read, whatever it has by now."""

    def __init__(self, fd: int, size: int) -> None:
        self.fd, self.at, self.size = fd, 0, size

    def read(self, count: int) -> bytes:
        count = min(count, self.size - self.at)
        piece = os.pread(self.fd, count, self.at)
        self.at += count
        return piece.ljust(count, b"\0")


class Tar:
    """A sink that writes a tar (pax) to a stream."""

    def __init__(self, stream: IO[bytes]) -> None:
        import tarfile

        self.tar: Any = tarfile.open(mode="w|", fileobj=stream, format=tarfile.PAX_FORMAT, errors="surrogateescape")
        self.path: list[str] = []
        self.links = _Links()

    def close(self) -> None:
        self.tar.close()

    def give_up(self) -> None:
        """Write nothing more: the stream of tarfile, when it is collected, would write what it has, and fail once more."""
        self.tar.closed = self.tar.fileobj.closed = True

    def _add(self, name: str, st: os.stat_result, kind: bytes, content: Any = None, **more: Any) -> None:
        import tarfile

        found = tarfile.TarInfo("/".join([*self.path, name]))
        found.mode, found.uid, found.gid, found.type = stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid, kind
        found.mtime = st.st_mtime_ns // 10**9
        for key, value in more.items():
            setattr(found, key, value)
        self.tar.addfile(found, content)
        self.tar.members = []  # it would remember each of them

    def enter(self, name: str, st: os.stat_result) -> None:
        self._add(name, st, b"5")
        self.path.append(name)

    def leave(self, st: os.stat_result) -> None:
        self.path.pop()

    def file(self, name: str, st: os.stat_result, fd: int) -> None:
        if known := self.links.get(st):
            self._add(name, st, b"1", linkname=known[0])
            return
        self._add(name, st, b"0", _Exactly(fd, st.st_size), size=st.st_size)
        self.links.add(st, "/".join([*self.path, name]))

    def symlink(self, name: str, st: os.stat_result, target: str) -> None:
        self._add(name, st, b"2", linkname=target)

    def fifo(self, name: str, st: os.stat_result) -> None:
        self._add(name, st, b"6")


class Walk:
    """One copy of what a descriptor refers to.  `warnings` tells what was left out."""

    def __init__(self, sink: Sink) -> None:
        self.sink, self.count, self.left_out = sink, 0, 0
        self.made = (0, 0)  # (device, inode) of the directory that is made, which may be within what is copied
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.left_out += 1
        if len(self.warnings) < MAX_WARNINGS:
            self.warnings.append(text)

    def told(self) -> list[str]:
        """Return what was left out, and how much of it is not told."""
        more = self.left_out - len(self.warnings)
        return [*self.warnings, *([f"and {more} more"] if more else [])]

    def everything(self, fd: int, name: str) -> None:
        """Copy the file or tree that `fd` (O_PATH) refers to, as `name`; "" is the contents of a directory."""
        st = os.fstat(fd)
        if not stat.S_ISDIR(st.st_mode):
            self._one(fd, st, name)
            if self.warnings:
                raise BadInput(self.warnings[0])
            return
        if kernel.fs_magic(fd) in _NO_FILES:
            raise BadInput("it is a file system of the kernel's, and not files", hint="nsrun exec MEMBER cat …")
        self._tree(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), st, name)

    def _tree(self, fd: int, st: os.stat_result, name: str) -> None:
        frames: list[tuple[int, Any, os.stat_result]] = []
        path: list[str] = []
        try:
            if name:
                self.sink.enter(name, st)
            if isinstance(self.sink, Directory):
                top = os.fstat(self.sink.levels[-1])
                self.made = top.st_dev, top.st_ino
            frames.append((fd, os.scandir(fd), st))
            while frames:
                here, entries, about = frames[-1]
                entry = next(entries, None)
                if entry is None:
                    entries.close()
                    os.close(here)
                    frames.pop()
                    if frames or name:
                        self.sink.leave(about)
                    del path[-1:]
                    continue
                self.count += 1
                if self.count > MAX_ENTRIES:
                    raise NsrunError(f"there are more than {MAX_ENTRIES} entries", hint="copy a part of it")
                where = "/".join([*path, entry.name])
                try:
                    found = os.open(entry.name, _FIND, dir_fd=here)
                except OSError as error:
                    if error.errno in (ENOENT, ELOOP):
                        continue  # it is gone, or was replaced
                    self.warn(f"{where}: {os.strerror(error.errno or 0)}")
                    continue
                try:
                    st = os.fstat(found)
                    if not stat.S_ISDIR(st.st_mode):
                        self._one(found, st, entry.name, where)
                        continue
                    if kernel.fs_magic(found) in _NO_FILES:
                        self.warn(f"{where}: a file system of the kernel's is left out")
                        continue
                    if (st.st_dev, st.st_ino) == self.made:
                        raise BadInput("a directory can't be copied into itself")
                    if len(frames) >= MAX_DEPTH:
                        raise NsrunError(
                            f"{where[:200]}… is more than {MAX_DEPTH} levels deep", hint="copy a part of it"
                        )
                    try:
                        deeper = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                    except OSError as error:
                        self.warn(f"{where}: {os.strerror(error.errno or 0)}")
                        continue
                finally:
                    os.close(found)
                try:
                    self.sink.enter(entry.name, st)
                    frames.append((deeper, os.scandir(deeper), st))
                except BaseException:
                    os.close(deeper)
                    raise
                path.append(entry.name)
        finally:
            for here, entries, _ in frames:
                entries.close()
                os.close(here)

    def _one(self, fd: int, st: os.stat_result, name: str, where: str = "") -> None:
        where = where or name
        if kernel.fs_magic(fd) in _NO_FILES:
            self.warn(f"{where}: a file of the kernel's is left out")
        elif stat.S_ISREG(st.st_mode):
            try:
                content = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError as error:
                self.warn(f"{where}: {os.strerror(error.errno or 0)}")
                return
            with kernel.Fd(content) as opened:
                self.sink.file(name, os.fstat(opened), opened)
        elif stat.S_ISLNK(st.st_mode):
            self.sink.symlink(name, st, os.readlink("", dir_fd=fd))
        elif stat.S_ISFIFO(st.st_mode):
            self.sink.fifo(name, st)
        else:
            self.warn(f"{where}: {'a socket' if stat.S_ISSOCK(st.st_mode) else 'a device'} is left out")


# ---- from a tar ------------------------------------------------------------------------------------------------


class _Forward:
    """A stream that can only go on, as tarfile reads it.  One that asks for more than MAX_HEADER at once reads a header."""

    def __init__(self, fd: int) -> None:
        self.fd, self.at, self.last, self.again = fd, 0, b"", False
        self.ended = False  # whether what was read last is the block of zeros at the end of a tar

    def read(self, count: int) -> bytes:
        if count > MAX_HEADER:
            raise BadInput("the tar has a header of more than 1 MiB")
        found = b""
        if self.again and count:
            found, self.again = self.last, False
        while len(found) < count and (piece := os.read(self.fd, count - len(found))):
            found += piece
        self.at += len(found)
        self.last = found[-1:] or self.last
        self.ended = count == 512 and not found.strip(b"\0") and len(found) == count
        return found

    def tell(self) -> int:
        return self.at

    def seek(self, at: int) -> None:
        if at == self.at - 1 and self.last and not self.again:  # tarfile looks whether the last byte is there
            self.at, self.again = at, True
        while self.at < at and self.read(min(PIECE, at - self.at)):
            pass
        if self.at != at:
            raise BadInput("the tar ends too early, or goes back")

    def drain(self) -> None:
        """Read what may follow the end of a tar, so that its writer does not meet a closed pipe."""
        left = PIECE
        while left > 0 and (piece := os.read(self.fd, left)):
            left -= len(piece)


def unpack(fd: int, place: Place, path: str, names: Names) -> list[str]:
    """Make what a tar has below a directory of a member; return what was left out.  Raise BadInput for no tar.

    The directories of an entry are resolved in the member's root: links are followed there, and not out.
    """
    import tarfile

    stream: Any = _Forward(fd)
    remembered: Any
    walk = Walk(_Nowhere())
    try:
        with tarfile.open(mode="r:", fileobj=stream, errors="surrogateescape") as tar:
            remembered = tar
            if remembered.firstmember is None and not stream.ended:  # it would be passed over, and the next one read
                raise BadInput("the tar begins with a header that means nothing")
            while (entry := tar.next()) is not None:
                remembered.members = []  # each of them
                walk.count += 1
                if walk.count > MAX_ENTRIES:
                    raise BadInput(f"the tar has more than {MAX_ENTRIES} entries")
                parts = [part for part in entry.name.split("/") if part not in ("", ".")]
                if ".." in parts or any("\0" in part for part in parts) or len(parts) > MAX_DEPTH:
                    raise BadInput(f"the tar has a name that leads elsewhere: {entry.name[:200]!r}")
                if parts:
                    _unpack_one(tar, entry, place, path, parts, names, walk)
            if not stream.ended:
                raise BadInput("the tar ends too early")
            stream.drain()
    except (tarfile.TarError, ValueError, OverflowError) as error:  # a NUL in a link, a time that is no number
        raise BadInput(f"standard input is not a tar: {error}", hint="tar -c … | nsrun cp - MEMBER:DIR") from None
    return walk.told()


class _Nowhere:
    """The sink of a walk that only counts."""

    enter = leave = file = symlink = fifo = lambda *_: None


def _parent(place: Place, path: str, parts: list[str], names: Names) -> int:
    """Open the directory of an entry; make it where it is missing."""
    try:
        return place.open("/".join([path, *parts]), os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        if not parts:
            raise
    above = _parent(place, path, parts[:-1], names)
    try:
        try:
            os.mkdir(parts[-1], 0o755, dir_fd=above)
            if owner := names.owner(0, 0):
                os.chown(parts[-1], *owner, dir_fd=above, follow_symlinks=False)
        except FileExistsError:
            pass
    finally:
        os.close(above)
    return place.open("/".join([path, *parts]), os.O_RDONLY | os.O_DIRECTORY)


def _unpack_one(tar: Any, entry: Any, place: Place, path: str, parts: list[str], names: Names, walk: Walk) -> None:
    st = _stat_of(entry)
    with kernel.Fd(_parent(place, path, parts[:-1], names)) as above:
        sink = Directory(above, names)
        try:
            if entry.isdir():
                sink.enter(parts[-1], st)
                sink.leave(st)
            elif entry.issym():
                sink.symlink(parts[-1], st, entry.linkname)
            elif entry.isfifo():
                sink.fifo(parts[-1], st)
            elif entry.islnk():
                _unpack_link(entry, place, path, sink, parts[-1])
            elif entry.isreg():
                sink.put(parts[-1], st, lambda target: _fill(tar, entry, target))
            else:
                walk.warn(f"{entry.name}: a device is left out")
        finally:
            sink.close()


def _unpack_link(entry: Any, place: Place, path: str, sink: Directory, name: str) -> None:
    first = [part for part in entry.linkname.split("/") if part not in ("", ".")]
    if not first or ".." in first:
        raise BadInput(f"the tar has a link that leads elsewhere: {entry.linkname[:200]!r}")
    try:
        with kernel.Fd(place.open("/".join([path, *first[:-1]]), os.O_RDONLY | os.O_DIRECTORY)) as there:
            sink.link(there, first[-1], name)
    except OSError as error:
        raise BadInput(
            f"{entry.name[:200]!r} of the tar, a link to {entry.linkname[:200]!r}: {os.strerror(error.errno or 0)}"
        ) from None


def _fill(tar: Any, entry: Any, target: int) -> None:
    """Write what the tar has of a file."""
    content, left = tar.extractfile(entry), entry.size
    while left and (piece := content.read(min(PIECE, left))):
        left -= len(piece)
        while piece:
            piece = piece[os.write(target, piece) :]
    if left:
        raise BadInput("the tar ends within a file")


def _stat_of(entry: Any) -> os.stat_result:
    """Return what a tar says of an entry as fstat(2) would.  Raise ValueError or OverflowError for what no file has."""
    if entry.size < 0:
        raise ValueError(f"the size of {entry.name[:200]!r} is negative")
    when = max(0, min(int(entry.mtime), 1 << 33))
    ids = [number if 0 <= number < 0xFFFFFFFF else 0 for number in (entry.uid, entry.gid)]
    kind = stat.S_IFDIR if entry.isdir() else stat.S_IFREG
    first = (kind | (entry.mode & 0o7777), 0, 0, 1, *ids, entry.size, when, when, when)
    return os.stat_result(first, {"st_atime_ns": when * 10**9, "st_mtime_ns": when * 10**9})
