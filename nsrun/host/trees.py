# SPDX-License-Identifier: Apache-2.0
"""Remove and walk trees that others made, without recursion, and with few descriptors, however deep they are.

**No path is followed.**  Every call takes a descriptor of a directory and one name in it.  A directory is opened by
openat2(2) with O_NOFOLLOW, RESOLVE_NO_SYMLINKS and RESOLVE_NO_XDEV, so what is opened was, at that moment, a directory
in the one above it, on the same mount; PATH_MAX does not matter.

**Removing goes only down.**  A `..` can lead out of the tree: a process that renames a directory to another place while
we are in it has moved our way back, too.  So we never climb.  LEVELS directories are held open; a directory that lies
deeper is renamed into a stage, a directory of ours (mode 0700) at the top of the tree, and the stage is then emptied in
the same way, with a new stage for what lies deeper still.  Each directory is moved at most once for every LEVELS
levels, so the work is linear in the number of entries, and neither memory nor descriptors grow with it.  What another
process moves out of the tree while we hold it open is still what was in the tree, and holds what that process could
have removed itself.

**Walking climbs, and checks where it arrives.**  A reader may not move anything.  It holds the HELD lowest directories
open and keeps three numbers (24 bytes) for each one above them: after `..`, device and inode must be those of the
directory that it came from, and it continues after the entry by which it went down.
"""

from __future__ import annotations

import os
from errno import EACCES, EINVAL, EISDIR, ENODEV, ENOENT, ENOTDIR, ENOTEMPTY, ESTALE, EXDEV

from nsrun import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator

LEVELS = 12  # directories that a removal holds open, with two descriptors each
PASSES = 4  # over one directory, while each pass removes something and something is left
LATE = 1_000_000  # entries changed after the removal began; with more, somebody is adding files, and we give up
HELD = 64  # directories that a walk holds open, with two descriptors each
MAX_TEXTS = 8  # messages about what could not be removed

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK
_RESOLVE = kernel.RESOLVE_NO_SYMLINKS | kernel.RESOLVE_NO_XDEV


def _split(path: str) -> tuple[str, str]:
    """Return the directory that holds a path, and its name there.

    Raise OSError EINVAL when it has no name (`/`, `..`).
    """
    parent, _, name = path.rstrip("/").rpartition("/")
    if name in ("", ".", ".."):
        raise OSError(EINVAL, os.strerror(EINVAL), path)
    return parent or ("/" if path.startswith("/") else "."), name


def _open(directory: int, name: str) -> int:
    """Open the directory `name`, which must be on the same mount; raise OSError."""
    return kernel.open_in_root(directory, name, _DIRECTORY, _RESOLVE)


def _open_ours(directory: int, name: str) -> int:
    """Open it like _open, with the permission to read and change it, if we may set that."""
    try:
        fd = _open(directory, name)
    except OSError as error:
        if error.errno != EACCES:
            raise
        with kernel.Fd(
            kernel.open_in_root(directory, name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, _RESOLVE)
        ) as path:
            os.chmod(f"/proc/self/fd/{path}", 0o700)
        fd = _open(directory, name)
    try:
        if os.fstat(fd).st_mode & 0o700 != 0o700:
            os.fchmod(fd, 0o700)
    except OSError:
        pass  # it is not ours: the operation that its mode forbids will report the error
    return fd


# ---- removing ----------------------------------------------------------------------------------------------


def remove(path: str) -> list[str]:
    """Remove a tree, whatever others made in it; return what could not be removed, as texts.

    There are at most MAX_TEXTS, and a count.  Raise nothing, whatever is found there.  A path that does not exist
    counts as removed; a file or a link is unlinked.
    """
    try:
        parent, name = _split(path)
        try:
            os.unlink(path)
            return []
        except OSError as error:
            if error.errno == ENOENT:
                return []
            if not os.path.isdir(path) or os.path.islink(path):
                raise
        above = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with kernel.Fd(_open_ours(above, name)) as top:
                removal = _Removal(top)
                removal.everything()
            why = _gone(above, name, True)
        finally:
            os.close(above)
    except OSError as error:
        return [f"{path}: {_why(error)}"]
    return removal.texts(path, why) if why else []


def _why(error: OSError) -> str:
    return "another file system is mounted there" if error.errno == EXDEV else os.strerror(error.errno or 0)


def _gone(directory: int, name: str, is_directory: bool) -> OSError | None:
    """Remove one entry; return None when it is gone, whoever removed it."""
    try:
        (os.rmdir if is_directory else os.unlink)(name, dir_fd=directory)
    except OSError as error:
        return None if error.errno == ENOENT else error
    return None


class _Grows(Exception):
    """Raised when more is being made than is removed."""


class _Frame:
    """An open directory: its descriptor, its name in the one above, how far it has been read, and in which pass."""

    def __init__(self, fd: int, name: str) -> None:
        self.fd, self.name, self.passes, self.removed, self.child = fd, name, 0, 0, 0
        try:
            self.entries = os.scandir(fd)
        except OSError:
            os.close(fd)
            raise

    def next(self) -> os.DirEntry[str] | None:
        return next(self.entries, None)

    def again(self) -> bool:
        """Begin another pass if the last one removed something; otherwise nothing would be different."""
        if not self.removed or self.passes + 1 >= PASSES:
            return False
        self.passes, self.removed = self.passes + 1, 0
        self.entries.close()  # this rewinds the descriptor, too
        self.entries = os.scandir(self.fd)
        return True

    def close(self) -> None:
        self.entries.close()
        os.close(self.fd)


class _Removal:
    """One removal of everything in the directory `top`."""

    def __init__(self, top: int) -> None:
        self.top, self.stage, self.stage_name = top, -1, ""
        self.moved = self.late = 0
        self.failed: dict[str, str] = {}
        self.more = 0
        os.fchmod(top, 0o700)  # sets ctime by the file system's own clock: that is when we began
        self.began = os.fstat(top).st_ctime_ns

    def everything(self) -> None:
        try:
            self._below(self.top)
            while self.stage >= 0:
                stage, name, self.stage = self.stage, self.stage_name, -1
                try:
                    self._below(stage)
                finally:
                    os.close(stage)
                if error := _gone(self.top, name, True):
                    self._fail((), name, error)
        except _Grows:
            self.failed["more is made in it while it is removed"] = ""
        finally:
            if self.stage >= 0:
                os.close(self.stage)

    def _below(self, base: int) -> None:
        """Empty a directory; move what lies more than LEVELS deep to the stage."""
        frames = [_Frame(os.dup(base), "")]
        try:
            while frames:
                frame = frames[-1]
                try:
                    entry = frame.next()
                    if entry:
                        self._one(frames, entry.name, entry.is_dir(follow_symlinks=False), self._is_late(entry))
                        continue
                except OSError as error:  # the directory can't be read: the next pass, or rmdir(2), will tell why
                    self._fail(frames, "", error)
                if len(frames) == 1:
                    if frame.again():
                        continue
                    frames.pop().close()
                    continue
                why = _gone(frames[-2].fd, frame.name, True)
                if why and frame.again():
                    continue
                frames.pop().close()
                if not why:
                    frames[-1].removed += 1
                elif why.errno != ENOTEMPTY:  # otherwise what is left in it has been reported
                    self._fail(frames, frame.name, why)
        finally:
            for frame in frames:
                frame.close()

    def _one(self, frames: list[_Frame], name: str, is_directory: bool, late: bool) -> None:
        frame = frames[-1]
        if len(frames) == 1 and self.stage >= 0 and name == self.stage_name:
            return
        self.late += late
        if self.late > LATE + self.moved:  # our own moving changes ctime, too
            raise _Grows
        why = _gone(frame.fd, name, is_directory)
        if why and is_directory and why.errno == ENOTEMPTY:
            fd = -1
            try:
                fd = _open_ours(frame.fd, name)
                if len(frames) < LEVELS:
                    frames.append(_Frame(fd, name))
                    return
                os.close(fd)
                self._move(frame.fd, name)
                why = None
            except OSError as error:
                why = error
        if why is None:
            frame.removed += 1
        elif why.errno not in (EISDIR, ENOTDIR, ENOENT):  # it was replaced meanwhile: the next pass sees what it is
            self._fail(frames, name, why)

    def _is_late(self, entry: os.DirEntry[str]) -> bool:
        try:
            return entry.stat(follow_symlinks=False).st_ctime_ns > self.began
        except OSError:
            return False  # it is gone

    def _move(self, directory: int, name: str) -> None:
        if self.stage < 0:
            self._make_stage()
        self.moved += 1
        os.rename(name, str(self.moved), src_dir_fd=directory, dst_dir_fd=self.stage)

    def _make_stage(self) -> None:
        name = f".nsrun-{os.urandom(6).hex()}"
        os.mkdir(name, 0o700, dir_fd=self.top)
        fd = _open(self.top, name)
        os.fchmod(fd, 0o700)
        st = os.fstat(fd)
        if st.st_uid != os.geteuid():
            os.close(fd)
            raise OSError(ESTALE, os.strerror(ESTALE))  # another process put its own directory there
        self.stage, self.stage_name = fd, name

    def _fail(self, frames: list[_Frame] | tuple[()], name: str, error: OSError) -> None:
        where = "/".join([*(frame.name for frame in frames if frame.name), *([name] if name else [])])
        where = where if len(where) < 200 else f"…{where[-200:]}"
        if len(self.failed) < MAX_TEXTS:
            self.failed[f"{where!r}"] = _why(error)
        elif f"{where!r}" not in self.failed:
            self.more += 1

    def texts(self, path: str, why: OSError) -> list[str]:
        found = [f"{path}: {key}{': ' + text if text else ''}" for key, text in self.failed.items()]
        return [*(found or [f"{path}: {_why(why)}"]), *([f"{path}: and {self.more} more"] if self.more else [])]


# ---- walking ---------------------------------------------------------------------------------------------


def walk(path: str) -> Iterator[tuple[int, str, bool]]:
    """Yield every entry of a tree as (descriptor of its directory, name, whether it is a directory).

    The contents of a directory come before it.  The descriptor is valid until the next step; the caller may remove the
    entry.  Mount points of other file systems are left out.  Raise OSError when a directory can't be read, with ESTALE
    when one in which we were has been moved.
    """
    from array import array

    parent, name = _split(path)
    with kernel.Fd(os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as above:
        frames = [_Frame(_open(above, name), "")]
    higher = array("Q")  # for each directory above those: device, inode, and the inode of the child that we are in
    try:
        while True:
            frame = frames[-1]
            entry = frame.next()
            if entry is None:
                if len(frames) == 1:
                    if not higher:
                        return
                    frames.insert(0, _climb(frame, higher))
                frames.pop().close()
                yield frames[-1].fd, frame.name, True
            elif not entry.is_dir(follow_symlinks=False):
                yield frame.fd, entry.name, False
            else:
                try:
                    fd = _open(frame.fd, entry.name)
                except OSError as error:
                    if error.errno in (ENOENT, ENODEV, ENOTDIR, EXDEV):
                        continue  # it is gone, or we may not enter it
                    raise
                frame.child = entry.inode()
                frames.append(_Frame(fd, entry.name))
                if len(frames) > HELD:
                    st = os.fstat(frames[0].fd)
                    higher.extend((st.st_dev, st.st_ino, frames[0].child))
                    frames.pop(0).close()
    finally:
        for frame in frames:
            frame.close()


def _climb(frame: _Frame, higher: array[int]) -> _Frame:
    """Open the directory above and read up to the entry of `frame`, which gets its name."""
    child, inode, device = higher.pop(), higher.pop(), higher.pop()
    up = _Frame(os.open("..", _DIRECTORY | os.O_CLOEXEC, dir_fd=frame.fd), "")
    st = os.fstat(up.fd)
    if (st.st_dev, st.st_ino) == (device, inode):
        for entry in up.entries:
            if entry.inode() == child:
                frame.name = entry.name
                return up
    up.close()
    raise OSError(ESTALE, "a directory was moved while it was read")


def measure(path: str) -> tuple[int, int]:
    """Return the number of regular files in a tree and the bytes in them; each name counts.

    Raise OSError, as `walk` does.
    """
    from stat import S_ISREG

    count = size = 0
    for directory, name, is_directory in walk(path):
        if not is_directory:
            try:
                st = os.stat(name, dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if S_ISREG(st.st_mode):
                count += 1
                size += st.st_size
    return count, size
