# SPDX-License-Identifier: Apache-2.0
"""Unpack one layer into a directory: read, hash and decompress here; parse and write in nsrun-unpack, confined.

The bytes go through a pipe.  This side handles them only as bytes (SHA-256, gzip, zstd); the side that parses them can
touch nothing but one directory (csrc/unpack.c).  Nothing is used before digest, size and diff_id have been verified.

Layers are unpacked in parallel, each into a directory of its own, as overlayfs wants a lower layer.  What a layer says
about the ones beneath is then settled from the bottom up, when those are there: directories that it only implies take
the lower ones' attributes, whiteouts that hide nothing are removed, opaque directories are marked.  A layer that writes
*through* something of a lower layer (a symlinked parent, a hard link to its file) is unpacked again, over them.

OCI image-spec, layer.md; overlayfs: https://docs.kernel.org/filesystems/overlayfs.html
"""

from __future__ import annotations

import hashlib
import os
import struct
import threading
from errno import EINVAL, ELOOP, ENOENT, ENOTDIR, ENOTEMPTY, ENOTSUP

from nsrun import kernel
from nsrun._protocol import (
    UNPACK_ACCOUNT_FD,
    UNPACK_CHARGED,
    UNPACK_END,
    UNPACK_FAILED,
    UNPACK_HIDING,
    UNPACK_IMPLIED,
    UNPACK_LOWER,
    UNPACK_MADE,
    UNPACK_OPAQUE,
    UNPACK_RECORD,
    UNPACK_RECORDS_FD,
    UNPACK_REPLACED,
    UNPACK_ROOT_FD,
    UNPACK_SKIPPED,
    UNPACK_STREAM_FD,
    UNPACK_WHITEOUT,
)
from nsrun.errors import BadInput, KernelError, NsrunError, errno_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from nsrun.image.budget import Account

CHUNK = 1 << 20
#: The kinds of records that concern the layers beneath.
_MARKS = (UNPACK_IMPLIED, UNPACK_HIDING, UNPACK_MADE, UNPACK_WHITEOUT, UNPACK_OPAQUE, UNPACK_REPLACED)
ATTRS = kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV | kernel.MOUNT_ATTR_NOEXEC


class Blob:
    """Bytes of a file: the whole of it, or a part (of an archive).  The digest is "" when only the diff_id is known."""

    def __init__(self, fd: int, offset: int, size: int, digest: str = "") -> None:
        self.fd, self.offset, self.size, self.digest = fd, offset, size, digest

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


class Program:
    """nsrun-unpack in a sealed memfd, and its children."""

    def __init__(self) -> None:
        self.fd = _high(kernel.load_program("nsrun-unpack"))

    def close(self) -> None:
        os.close(self.fd)

    def start(self, mode: str, stream: int, tree: int, account: Account) -> Writer:
        """Start the program; `tree` is a detached mount of the directory, or -1 (list)."""
        records, shared = _high(os.memfd_create("records", os.MFD_CLOEXEC)), _high(os.dup(account.fd))
        streams = ((stream, UNPACK_STREAM_FD), (records, UNPACK_RECORDS_FD), (shared, UNPACK_ACCOUNT_FD))
        actions: list[Any] = [(os.POSIX_SPAWN_DUP2, fd, to) for fd, to in streams]
        if tree >= 0:
            actions.append((os.POSIX_SPAWN_DUP2, tree, UNPACK_ROOT_FD))
        try:
            pid = os.posix_spawn(
                f"/proc/self/fd/{self.fd}",
                ["nsrun-unpack", mode, *account.budget.arguments()],
                {},
                file_actions=actions,
                setsigmask=[],
            )
        except BaseException:
            os.close(records)
            raise
        finally:
            os.close(shared)
        return Writer(pid, records)


def _high(fd: int) -> int:
    """Return the same descriptor under a number that a child's dup2 to 0, 1, 3 and 4 can't overwrite."""
    import fcntl

    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)
    finally:
        os.close(fd)


class Writer:
    """One running nsrun-unpack; `wait` returns its reports."""

    HEAD = struct.Struct(UNPACK_RECORD)

    def __init__(self, pid: int, records: int) -> None:
        self.pid, self.records = pid, records

    def wait(self) -> Iterator[tuple[int, int, int, int, bytes, bytes]]:
        """Yield (kind, errno, a, b, text, second text) …, after it has ended.  Raise NsrunError if it was killed."""
        try:
            _, status = os.waitpid(self.pid, 0)
            os.lseek(self.records, 0, os.SEEK_SET)
            last = 0
            with os.fdopen(self.records, "rb", closefd=False) as file:
                while len(head := file.read(self.HEAD.size)) == self.HEAD.size:
                    kind, err, a, b, n, m = self.HEAD.unpack(head)
                    last = kind
                    yield kind, err, a, b, file.read(n), file.read(m)
        finally:
            os.close(self.records)
        if last not in (UNPACK_END, UNPACK_FAILED, UNPACK_LOWER):
            how = f"by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"with status {status >> 8}"
            raise NsrunError(f"the confined writer (nsrun-unpack) ended {how}", hint="please report it, with the image")


# ---- the stream --------------------------------------------------------------------------------------------


def _mark_opaque(directory: int) -> None:
    """Mark a directory as opaque by overlayfs's attribute.

    In a user namespace, where trusted.* is not allowed, it is user.overlay.opaque.  Raise BadInput when the store's
    file system has no user attributes.
    """
    try:
        os.setxattr(directory, "user.overlay.opaque" if kernel.in_userns() else "trusted.overlay.opaque", b"y")
    except OSError as error:
        if error.errno != ENOTSUP:
            raise
        raise BadInput(
            "the store's file system has no user extended attributes, which the image's opaque directory needs",
            hint="put XDG_DATA_HOME, or --root DIR, on ext4, XFS or btrfs; tmpfs has them since Linux 6.6",
            errno=ENOTSUP,
        ) from None


def _is_compressed(head: bytes) -> bool:
    return head[:2] == b"\x1f\x8b" or head[:4] == b"\x28\xb5\x2f\xfd" or _is_skippable(head)


def _is_skippable(head: bytes) -> bool:
    """Return whether this is a zstd frame of other data: pzstd begins with one, zstd:chunked ends with some."""
    return head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50


def _decompressor(head: bytes) -> Any:
    """Return an object with decompress(data, max_length), eof, needs_input and unused_data."""
    if head[:2] == b"\x1f\x8b":
        from isal import igzip_lib

        return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    try:
        from compression import zstd  # Python 3.14
    except ImportError:
        from backports import zstd
    return zstd.ZstdDecompressor()


# bytes given to a decompressor first, then twice as many each time, so that no byte is copied more than twice
FIRST = 256


def plain(
    blob: Blob, packed: Any, ratio: int, charge: Callable[[int], None], tick: Callable[[int], None]
) -> Iterator[memoryview | bytes]:
    """Yield the uncompressed bytes of a blob, piece by piece, and feed the compressed ones to `packed` (a hash).

    `charge` is called with the size of each piece before it is yielded.  The time is linear in the bytes read and
    yielded, however many compressed streams there are.  Raise BadInput when the blob is shorter than its size, not of
    the format that it claims, or grows beyond `ratio`.
    """
    at, left, out, streams = blob.offset, blob.size, 0, 0
    stream: Any = None
    compressed, window, hungry, carry = False, FIRST, True, b""  # carry: the first bytes of a stream
    while left:
        piece = os.pread(blob.fd, min(CHUNK, left), at)
        if not piece:
            raise BadInput(f"it ends {left} bytes early: its size is not what the manifest says")
        first = at == blob.offset
        at, left = at + len(piece), left - len(piece)
        packed.update(piece)
        tick(len(piece))
        if first and piece.startswith((b"\xfd7zXZ", b"BZh")):
            raise BadInput("it is compressed with xz or bzip2, which images may not use")
        if first:
            compressed = _is_compressed(piece)
        if not compressed:
            charge(len(piece))
            yield piece
            continue
        data, start = memoryview(carry + piece), 0
        carry = b""
        while True:
            if stream is None:
                start = _after_zeros(data, start) if out or not first else start  # skip padding
                head = bytes(data[start : start + 4])
                if len(head) < 4 and left:
                    carry = head
                    break
                if not head:
                    break
                if not _is_compressed(head):
                    raise BadInput("garbage follows the end of its compressed stream")
                streams += 1
                if streams > 1000 + (blob.size - left - len(data) + start) // 64:
                    raise BadInput("it has too many compressed streams that are almost empty")
                stream, window, hungry = _decompressor(head), FIRST, True
            given = data[start : start + window] if hungry else b""
            try:
                piece = stream.decompress(given, CHUNK)
            except Exception as error:  # isal and zstd have their own error classes
                raise BadInput(f"its compressed stream is damaged: {error}") from None
            start, window, hungry = start + len(given), min(2 * window, CHUNK), stream.needs_input
            out += len(piece)
            if out > 256 << 20 and out > (blob.size - left) * ratio:
                raise BadInput(f"it unpacks to more than {ratio} times its size", hint="--max-ratio")
            if piece:
                charge(len(piece))
                yield piece
            if stream.eof:
                start -= len(stream.unused_data)
                stream = None
            elif hungry and start == len(data):
                break
    if stream is not None:
        raise BadInput("its compressed stream is cut off")


def _after_zeros(data: memoryview, start: int) -> int:
    """Return the offset of the first byte that is not zero."""
    while start < len(data):
        some = bytes(data[start : start + 4096])
        rest = len(some.lstrip(b"\0"))
        start += len(some) - rest
        if rest:
            break
    return start


class Layer:
    """One layer on its way: the place of its bytes, its target directory, and what the writer reported."""

    def __init__(self, number: int, blob: Blob, diff_id: str, directory: str) -> None:
        self.number, self.blob, self.diff_id, self.directory = number, blob, diff_id, directory
        self.read = 0  # bytes of its tar that were charged
        self.charged = (0, 0, 0)  # what the writer charged: bytes, entries, bytes of reports
        self.files = self.bytes = 0  # in the finished tree
        self.skipped: list[str] = []
        self.marks: list[tuple[int, bytes]] = []  # I, H, X, W, O, D in order
        self.again = False

    @property
    def tree(self) -> str:
        return f"{self.directory}/tree"

    def about(self) -> str:
        digest = self.blob.digest or self.diff_id
        return f"layer {self.number} ({digest[:19]}…)"

    def run(
        self, program: Program, account: Account, tick: Callable[[int], None], mode: str = "layer", mount: int = -1
    ) -> None:
        """Unpack into `tree` (or the given mount).  Raise BadInput, which names the layer and the entry."""
        own = mount < 0
        if own:
            os.mkdir(self.tree, 0o755)
            os.chmod(self.tree, 0o755)
            mount = kernel.open_tree(self.tree)
        read, write = os.pipe2(os.O_CLOEXEC)
        read, mount_ = _high(read), _high(os.dup(mount))
        writer = None
        packed, unpacked = hashlib.sha256(), hashlib.sha256()
        try:
            kernel.mount_setattr(mount_, set=ATTRS, propagation=kernel.MS_PRIVATE)
            _widen(write)
            writer = program.start(mode, read, mount_, account)
            self.read = 0
            os.close(read)
            read = -1
            stopped = False
            try:
                for piece in plain(self.blob, packed, account.budget.ratio, account.plain, tick):
                    self.read += len(piece)
                    unpacked.update(piece)
                    view = memoryview(piece)
                    while view:
                        view = view[os.write(write, view) :]
            except BrokenPipeError:
                stopped = True  # it met an error, or needs the lower layers: its reports say which
            except BadInput as error:
                os.close(write)
                write = -1
                self._reports(writer, quietly=True)
                writer = None
                raise BadInput(f"{self.about()}: {error.message}", hint=error.hint) from None
            os.close(write)
            write = -1
            done, writer = writer, None
            self._reports(done)
            if self.again and mode == "layer":
                return
            if stopped:
                raise BadInput(f"{self.about()}: the writer ended early")
            if self.blob.digest and f"sha256:{packed.hexdigest()}" != self.blob.digest:
                raise BadInput(f"{self.about()}: its digest is sha256:{packed.hexdigest()}: it was damaged or changed")
            if f"sha256:{unpacked.hexdigest()}" != self.diff_id:
                raise BadInput(
                    f"{self.about()}: unpacked it is sha256:{unpacked.hexdigest()}, but the config says {self.diff_id}"
                )
        finally:
            for fd in (read, write, mount_, *([mount] if own else [])):
                if fd >= 0:
                    os.close(fd)
            if writer:
                self._reports(writer, quietly=True)

    def _reports(self, writer: Writer, quietly: bool = False) -> None:
        if quietly:  # another error is being reported
            try:
                for _ in writer.wait():
                    pass
            except NsrunError:
                pass
            return
        for kind, err, a, b, text, name in writer.wait():
            if kind == UNPACK_FAILED:
                entry = f"entry {os.fsdecode(name)!r}: " if name else ""
                reason = text.decode() + (f": {errno_text(err)}" if err else "")
                hint = {27: "--max-size raises the budget", 28: "free some space"}.get(err, "")
                if err == EINVAL and b"owner" in text and kernel.in_userns():
                    hint = "this user namespace lacks the id to which it belongs: add a larger range to /etc/subuid and /etc/subgid; see nsrun doctor"
                raise BadInput(f"{self.about()}: {entry}{reason}", hint=hint, errno=err)
            if kind == UNPACK_LOWER:
                self.again = True
            elif kind == UNPACK_CHARGED:
                self.charged = (b, a, struct.unpack("=Q", text)[0])
            elif kind == UNPACK_END:
                self.files, self.bytes = a, b
            elif kind == UNPACK_SKIPPED:
                self.skipped.append(os.fsdecode(text))
            elif kind in _MARKS:
                self.marks.append((kind, text))

    # ---- settling: what the layer says about those beneath it ------------------------------------------

    def settle(self, lowers: Sequence[str], program: Program, account: Account) -> None:
        """Settle what this layer says about those beneath.

        `lowers` are their trees, already settled, from the top down.
        """
        if not self.again:
            with View(lowers) as view:
                try:
                    self._settle(view)
                except _Through:
                    self.again = True
        if self.again:
            self._over(lowers, program, account)

    def _settle(self, view: View) -> None:
        # directories without an entry → whether they take the place of a whiteout
        implied: dict[bytes, bool] = {b"": False}
        opaque: dict[bytes, None] = {}
        for kind, path in self.marks:
            if kind in (UNPACK_IMPLIED, UNPACK_HIDING):
                implied[path] = kind == UNPACK_HIDING
            elif kind == UNPACK_MADE:
                implied.pop(path, None)
            elif kind == UNPACK_REPLACED and path in implied:
                implied[path] = True
            if kind in (UNPACK_OPAQUE, UNPACK_HIDING, UNPACK_REPLACED):
                opaque[path] = None
        with kernel.Fd(os.open(self.tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as root:
            if b"" in opaque and view.fd >= 0:
                raise _Through  # overlayfs merges roots even if they are marked opaque
            for path, instead in implied.items():
                hidden = instead or _within(opaque, path)
                lower = -1 if hidden else view.open(path, os.O_DIRECTORY)
                if lower >= 0:
                    _adopt(_below(root, path), lower)
            for path in opaque:
                if path and view.exists(path):
                    fd = _below(root, path)
                    if fd >= 0:
                        _mark_opaque(fd)
                        os.close(fd)
            # remove what hides nothing, and the directories that were only made to hold it
            for kind, path in self.marks:
                if kind == UNPACK_WHITEOUT and (_within(opaque, path) or not view.exists(path)):
                    _drop(root, path, whiteout=True)  # in an opaque directory overlayfs would list it
                if kind in (UNPACK_WHITEOUT, UNPACK_OPAQUE, UNPACK_REPLACED):
                    self._withdraw(root, path if kind != UNPACK_WHITEOUT else path.rpartition(b"/")[0], implied, view)

    def _withdraw(self, root: int, path: bytes, implied: dict[bytes, bool], view: View) -> None:
        """Remove empty implied directories bottom-up, unless that would expose or hide something in a lower layer."""
        while path and path in implied:
            lower = view.open(path, os.O_DIRECTORY)
            if lower >= 0:
                os.close(lower)
                if not implied[path]:
                    return  # the lower layer has it anyway, or this one hides that
            hides = implied[path] and view.exists(path)
            if not _drop(root, path, whiteout=False):
                return
            if hides:
                _whiteout(root, path)
                return
            path = path.rpartition(b"/")[0]

    def _over(self, lowers: Sequence[str], program: Program, account: Account) -> None:
        """Unpack again, onto an overlay of the lower layers: the kernel resolves what goes through them."""
        from nsrun.state import remove_tree

        remove_tree(self.tree)
        account.refund(self.charged)
        self.marks, self.skipped = [], []
        os.mkdir(self.tree, 0o755)
        os.chmod(self.tree, 0o755)
        work = f"{self.directory}/work"
        os.mkdir(work, 0o700)
        fds = [os.open(p, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) for p in (self.tree, work, *lowers)]
        try:
            if lowers:
                _adopt(os.dup(fds[0]), os.dup(fds[2]))
            for mode in ("whiteouts", "entries"):
                account.plain(-self.read)  # both modes read the same bytes, which are charged once
                mount = kernel.overlay(fds[2:], fds[0], fds[1]) if lowers else kernel.open_tree(self.tree)
                try:
                    self.run(program, account, _unseen, mode, mount)
                finally:
                    os.close(mount)
        finally:
            for fd in fds:
                os.close(fd)
            remove_tree(f"{work}/work")
            remove_tree(work)
        from nsrun.host.trees import measure

        self.files, self.bytes = measure(self.tree)


def _unseen(count: int) -> None:
    """Ignore progress, which was shown when the layer was read for the first time."""


class _Through(Exception):
    """Raised when a path of the layer goes through a link of a lower one."""


def _widen(pipe: int) -> None:
    import fcntl

    try:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, CHUNK)
    except OSError:
        pass  # the user's pipe memory is used up; it works with less


class View:
    """The lower layers, merged and read-only: `with View(trees) as view`.  Without trees it is empty."""

    def __init__(self, trees: Sequence[str]) -> None:
        self.trees, self.fd = trees, -1

    def __enter__(self) -> View:
        fds: list[int] = []
        try:
            for tree in self.trees:
                fds.append(os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            attrs = ATTRS | kernel.MOUNT_ATTR_RDONLY
            if len(fds) == 1:  # an overlay needs at least two layers
                self.fd = kernel.open_tree(self.trees[0])
                kernel.mount_setattr(self.fd, set=attrs, propagation=kernel.MS_PRIVATE)
            elif fds:
                self.fd = kernel.overlay(fds, attrs=attrs)
        finally:
            for fd in fds:
                os.close(fd)
        return self

    def __exit__(self, *_: object) -> None:
        if self.fd >= 0:
            os.close(self.fd)

    def open(self, path: bytes, flags: int) -> int:
        """Return a descriptor, or -1 when it does not exist or is something else.

        Raise _Through when a link is on the way.
        """
        if self.fd < 0:
            return -1
        try:
            name = os.fsdecode(path) or "."
            return kernel.open_in_root(self.fd, name, os.O_RDONLY | os.O_NONBLOCK | flags, kernel.RESOLVE_NO_SYMLINKS)
        except KernelError as error:
            if error.errno == ELOOP:
                raise _Through from None
            if error.errno in (ENOENT, ENOTDIR):
                return -1
            raise

    def exists(self, path: bytes) -> bool:
        if self.fd < 0:
            return False
        try:
            fd = kernel.open_in_root(self.fd, os.fsdecode(path), os.O_PATH | os.O_NOFOLLOW, kernel.RESOLVE_NO_SYMLINKS)
        except KernelError as error:
            if error.errno in (ENOENT, ENOTDIR):
                return False
            if error.errno == ELOOP:
                return self._exists_link(path)
            raise
        os.close(fd)
        return True

    def _exists_link(self, path: bytes) -> bool:
        """Decide on ELOOP: the last component is a link, so it exists, or one before it is, so raise _Through."""
        parent, _, _ = path.rpartition(b"/")
        fd = self.open(parent, os.O_DIRECTORY)  # raises _Through
        if fd >= 0:
            os.close(fd)
        return fd >= 0


def _below(root: int, path: bytes) -> int:
    """Return a descriptor of a directory of the layer itself; -1 when a later entry replaced it."""
    try:
        name = os.fsdecode(path) or "."
        return kernel.open_in_root(root, name, os.O_RDONLY | os.O_DIRECTORY, kernel.RESOLVE_NO_SYMLINKS)
    except KernelError as error:
        if error.errno == ELOOP:
            raise _Through from None
        if error.errno in (ENOENT, ENOTDIR):
            return -1
        raise


def _adopt(directory: int, lower: int) -> None:
    """Copy owner, mode, extended attributes and time of a lower directory; close both descriptors."""
    try:
        if directory < 0:
            return
        st = os.fstat(lower)
        os.fchown(directory, st.st_uid, st.st_gid)
        os.fchmod(directory, st.st_mode & 0o7777)
        for name in os.listxattr(lower):
            if not name.startswith(("trusted.overlay.", "user.overlay.")):
                os.setxattr(directory, name, os.getxattr(lower, name))
        os.utime(directory, ns=(st.st_atime_ns, st.st_mtime_ns))
    finally:
        os.close(lower)
        if directory >= 0:
            os.close(directory)


def _drop(root: int, path: bytes, whiteout: bool) -> bool:
    """Remove a whiteout, or an empty directory, of the layer; keep its parent's time.

    Return False when it is something else.
    """
    import stat

    parent, _, name = path.rpartition(b"/")
    fd = _below(root, parent)
    if fd < 0:
        return False
    try:
        before = os.fstat(fd)
        try:
            if whiteout:
                st = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if not (stat.S_ISCHR(st.st_mode) and st.st_rdev == 0):
                    return False
                os.unlink(name, dir_fd=fd)
            else:
                os.rmdir(name, dir_fd=fd)
        except OSError as error:
            if error.errno in (ENOENT, ENOTDIR, ENOTEMPTY):
                return False
            raise
        os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))
        return True
    finally:
        os.close(fd)


def _within(directories: dict[bytes, None], path: bytes) -> bool:
    while path := path.rpartition(b"/")[0]:
        if path in directories:
            return True
    return False


def _whiteout(root: int, path: bytes) -> None:
    import stat

    parent, _, name = path.rpartition(b"/")
    with kernel.Fd(_below(root, parent)) as fd:
        before = os.fstat(fd)
        os.mknod(name, stat.S_IFCHR, 0, dir_fd=fd)
        os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))


def unpack_all(layers: Sequence[Layer], beneath: Sequence[str], account: Account, tick: Callable[[int], None]) -> None:
    """Unpack consecutive layers (bottom first) above the trees `beneath` (top down); the first error ends all."""
    program = Program()
    errors: list[BaseException] = []
    queue = list(layers)
    lock = threading.Lock()

    def count_bytes(n: int) -> None:
        if errors:
            raise BadInput("another layer failed")
        tick(n)

    def work() -> None:
        while not errors:
            with lock:
                if not queue:
                    return
                layer = queue.pop(0)
            try:
                layer.run(program, account, count_bytes)
            except BaseException as error:
                errors.append(error)

    try:
        count = min(len(queue), os.cpu_count() or 1, 8)
        threads = [threading.Thread(target=work) for _ in range(count - 1)]
        for thread in threads:
            thread.start()
        try:
            work()
        except BaseException as error:  # including KeyboardInterrupt: stop the other threads, too
            errors.append(error)
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        below = list(beneath)
        for layer in layers:
            layer.settle(below, program, account)
            below.insert(0, layer.tree)
    finally:
        program.close()


__all__ = ["Blob", "Layer", "Program", "View", "unpack_all"]
