# SPDX-License-Identifier: Apache-2.0
"""`nsrun diff`: what a member has added (A), changed (C) and deleted (D), as the upper directory of its overlay says.

The member may change it meanwhile, and is not trusted: the walk takes descriptors and single names, follows no link, reads
no file, and has limits.  In an upper directory a character device 0/0 stands for what was deleted, and a directory with the
attribute overlay.opaque for one that was deleted and made anew (overlayfs.rst, "whiteouts and opaque directories").
"""

from __future__ import annotations

import os
import stat
from errno import ELOOP, ENODATA, ENOENT, ENOTDIR, EOPNOTSUPP

from nsrun import kernel
from nsrun.errors import BadInput, NsrunError
from nsrun.schema import is_there

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsrun.state import Note, State

MAX_ENTRIES = 2_000_000
MAX_NAMES = 128 << 20  # bytes of all paths that are told
MAX_DEPTH = 200
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def changes(state: State, note: Note) -> list[tuple[str, str]]:
    """Return (A, C or D, path) of everything that differs from the member's root, by path.

    The places that nsrun made for mounts are left out.  Raise BadInput for a member that writes to its root itself.  As an
    ordinary user this process enters a user namespace for good.
    """
    from nsrun.image import lookup
    from nsrun.image.unpack import View

    upper = f"{state.upper(note['id'])}/upper"
    if note["rootfs"] == "/":
        raise BadInput(f"member {note['name']!r} has this host's own files, and no layer of its own")
    if not is_there(upper):
        raise BadInput(
            f"member {note['name']!r} writes to its --rootfs itself", hint="without --writable, writes go to a layer"
        )
    spec = state.read("members", note["name"], "config.json") or {}
    mounts = [mount["destination"] for mount in spec.get("mounts", [])]
    store = -1
    try:
        trees = [note["rootfs"]]
        if note.get("image"):
            store = lookup.share_store(state)
            trees = list(lookup.trees(state, lookup.find(state, note["image_id"])))
        mapped = _enter(state, note)
        with View(trees) as lower, kernel.Fd(os.open(upper, _DIRECTORY)) as top:
            below = os.open(".", _DIRECTORY, dir_fd=lower.fd) if lower.fd >= 0 else -1
            return sorted(_Walk(top, below, mounts, not mapped).found, key=lambda row: row[1])
    finally:
        if store >= 0:
            os.close(store)


def _enter(state: State, note: Note) -> bool:
    """As an ordinary user, enter a user namespace that has the ids of what the member wrote.

    Return whether we are root, and the root directory has other ids than what the member wrote (an id-mapped mount).
    """
    pod = state.try_read("pods", note["pod"])
    ours = pod is not None and pod["id"] == note["pod_id"]
    if not state.uid:
        return bool(ours and pod and pod.get("user"))
    fd = state.pause(pod)[0] if ours and pod else -1
    if fd >= 0:
        kernel.enter_userns(fd)
        os.close(fd)
    else:
        from nsrun.host import userns

        userns.enter(state.uid)
    return False


class _Frame:
    """A directory of the upper tree, what is below it (-1: nothing), and how many rows there were before its own."""

    def __init__(self, upper: int, lower: int, path: str, rows: int, quiet: bool) -> None:
        self.upper, self.lower, self.path, self.rows, self.quiet = upper, lower, path, rows, quiet
        self.entries = os.scandir(upper)

    def close(self) -> None:
        self.entries.close()
        os.close(self.upper)
        if self.lower >= 0:
            os.close(self.lower)


class _Walk:
    """One walk over an upper directory, beside what is below it."""

    def __init__(self, top: int, below: int, mounts: list[str], ids: bool) -> None:
        self.found: list[tuple[str, str]] = []
        self.count, self.size, self.ids = 0, 0, ids
        self.mounts = {path.rstrip("/") for path in mounts}
        self.above = {path[:at] for path in self.mounts for at in range(1, len(path)) if path[at] == "/"}
        frames = [_Frame(os.dup(top), below, "", 0, False)]
        try:
            while frames:
                frame = frames[-1]
                entry = next(frame.entries, None)
                if entry is None:
                    frames.pop().close()
                    if frame.quiet and len(self.found) == frame.rows:
                        self.found.pop()  # nothing in it has changed, or is ours to tell
                    continue
                self._count()
                if deeper := self._one(frame, entry.name):
                    frames.append(deeper)
                    if len(frames) > MAX_DEPTH:
                        raise NsrunError(f"{deeper.path[:200]}… is more than {MAX_DEPTH} levels deep")
        finally:
            for frame in frames:
                frame.close()

    def _count(self) -> None:
        self.count += 1
        if self.count > MAX_ENTRIES:
            raise NsrunError(f"there are more than {MAX_ENTRIES} changes")

    def _tell(self, kind: str, path: str) -> None:
        self.size += len(path)
        if self.size > MAX_NAMES:
            raise NsrunError(f"the paths of what has changed are longer than {MAX_NAMES} bytes")
        self.found.append((kind, path))

    def _one(self, frame: _Frame, name: str) -> _Frame | None:
        """Note what an entry says; return it, if it is a directory."""
        path = f"{frame.path}/{name}"
        try:
            st = os.stat(name, dir_fd=frame.upper, follow_symlinks=False)
        except FileNotFoundError:
            return None  # it is gone by now
        was = _stat(frame.lower, name)
        if stat.S_ISCHR(st.st_mode) and st.st_rdev == 0:
            if was:
                self._tell("D", path)
            return None
        if not stat.S_ISDIR(st.st_mode):
            if was or path not in self.mounts or st.st_size:
                self._tell("C" if was else "A", path)
            return None
        try:
            here = os.open(name, _DIRECTORY, dir_fd=frame.upper)
        except OSError as error:
            if error.errno not in (ENOENT, ENOTDIR, ELOOP):
                raise
            return None  # it was replaced
        self._tell("C" if was else "A", path)
        quiet = self._is_same(st, was) if was else path in self.mounts or path in self.above
        below, rows = -1, len(self.found)
        if was and stat.S_ISDIR(was.st_mode):
            below = os.open(name, _DIRECTORY, dir_fd=frame.lower)
            if _is_opaque(here):
                self._deleted(here, below, path)
        return _Frame(here, below, path, rows, quiet)

    def _is_same(self, now: os.stat_result, was: os.stat_result) -> bool:
        ids = (now.st_uid, now.st_gid) == (was.st_uid, was.st_gid) or not self.ids
        return now.st_mode == was.st_mode and ids

    def _deleted(self, upper: int, lower: int, path: str) -> None:
        """Note what was in a directory that was deleted and made anew, and is not in it any more."""
        with os.scandir(lower) as entries:
            for entry in entries:
                self._count()
                if not _stat(upper, entry.name):
                    self._tell("D", f"{path}/{entry.name}")


def _stat(directory: int, name: str) -> os.stat_result | None:
    if directory < 0:
        return None
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _is_opaque(fd: int) -> bool:
    for name in ("trusted.overlay.opaque", "user.overlay.opaque"):
        try:
            if os.getxattr(fd, name) in (b"y", b"x"):
                return True
        except OSError as error:
            if error.errno not in (ENODATA, EOPNOTSUPP):
                raise
    return False
