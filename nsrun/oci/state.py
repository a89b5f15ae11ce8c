# SPDX-License-Identifier: Apache-2.0
"""What is kept of each container: a directory ROOT/ID, which only we reach.

    state      what the container is: an encoded note (nsrun.state.codec), replaced by rename, never changed
    config     its config.json, for exec, hooks and events
    start      a FIFO: the first process waits for a byte here
    told       a FIFO: what became of its exec; end of file is success
    started    there when the program runs
    killed     there when it was killed while `start` waited for it
    plan       a compiled plan, by which csrc/oci.c does what follows (nsrun/oci/leave.py)
    exec       another one, of the last `exec --process` that was not like it

A command holds flock(2) on the directory, so that two of one container follow each other; the kernel takes the lock away
whatever happens to its holder.  Nobody waits long for it, since its holder may wait for the container: `kill` and `delete
--force` end the container without it.  A process is the one that the state means if pid, start time and boot are the same.
"""

from __future__ import annotations

import os
from errno import EEXIST, ENOENT, ENOTDIR
from stat import S_ISDIR

from nsrun import kernel
from nsrun.errors import BadInput, UnknownError, UsageError
from nsrun.schema import STRING, WORD, Number, is_number, open_regular, read_document
from nsrun.state import codec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Note = dict[str, Any]

_COUNT = Number()
_SHAPE: dict[Any, Any] = {
    "id": WORD, "bundle": WORD, "rootfs": WORD, "created": STRING, "ociVersion": STRING, "annotations": {str: STRING}, "owner": STRING,
    "boot": STRING, "view": [_COUNT], "cgroups": {str: WORD}, "uid": _COUNT, "pid?": _COUNT, "start?": _COUNT, "terminal?": object,
    "unit?": WORD,
}  # fmt: skip
_INIT = "/memfd:nsrun-init (deleted)"


def default_root() -> str:
    """Return where the state is without --root: a directory that nobody else can make before us.  Raise UsageError."""
    base = os.environ.get("XDG_RUNTIME_DIR") or ""
    if base.startswith("/") and (os.geteuid() or kernel.in_userns()):
        return f"{base}/nsrun-oci"
    if os.geteuid():
        raise UsageError("XDG_RUNTIME_DIR is not set: --root says where the state is")
    return "/run/nsrun-oci"


def home_of(root: int, uid: int, seen: list[os.stat_result] | None = None) -> str:
    """Return "HOME=…" of a user in the /etc/passwd of a root directory; `seen` gets what was read.  Raise NsrunError or OSError."""
    return home_in_passwd(kernel.read_in_root_at(root, "/etc/passwd", seen), uid)


def home_in_passwd(text: str, uid: int) -> str:
    """Return "HOME=…" of a user, as a text of passwd(5) has it."""
    for line in text.split("\n"):
        fields = line.split(":")
        if len(fields) > 5 and fields[2] == str(uid) and fields[5].startswith("/"):
            return f"HOME={fields[5]}"
    return "HOME=/"


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", errors="surrogateescape") as file:
        return file.read().strip()


class Damaged(BadInput):
    """What is written of a container can't be read; `delete --force` removes it."""


class Busy(BadInput):
    """Another command works on a container, for longer than we wait."""


class Elsewhere(BadInput):
    """The process of a container can't be seen from this PID or time namespace."""


class Container:
    """The directory of one container, which we hold locked."""

    def __init__(self, root: str, ident: str, fd: int) -> None:
        self.root, self.id, self.fd = root, ident, fd
        self.path = f"{root}/{ident}"
        self._note: Note | None = None

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- files ------------------------------------------------------------------------------------------------------

    def _read(self, name: str) -> bytes:
        return read_document(f"{self.path}/{name}", codec.MAX_BYTES * 8)

    def note(self) -> Note:
        """Return what is written down.  Raise Damaged."""
        if self._note is None:
            try:
                self._note = codec.decode(self._read("state"), _SHAPE)
            except FileNotFoundError:
                raise Damaged(f"container {self.id!r} was never finished: nsrun-oci delete --force {self.id}") from None
            except (OSError, ValueError, BadInput) as error:
                raise Damaged(f"the state of container {self.id!r} is damaged: {error}") from None
        return self._note

    def config(self) -> dict[str, Any]:
        """Return its config.json, as it was when it was made.  Raise Damaged."""
        try:
            return codec.decode(self._read("config"), {})
        except (OSError, ValueError, BadInput) as error:
            raise Damaged(f"the config of container {self.id!r} is damaged: {error}") from None

    def write(self, name: str, note: Note) -> None:
        """Write a file whole, or not at all."""
        data = codec.encode(note)
        temporary = f"{self.path}/{name}.tmp"
        with open(open_regular(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW), "wb") as file:
            file.write(data)
        os.rename(temporary, f"{self.path}/{name}")
        if name == "state":
            self._note = note

    def assume(self, note: Note) -> None:
        """Take this for what is written down of a container that there is not."""
        self._note = note

    def has(self, name: str) -> bool:
        return os.path.lexists(f"{self.path}/{name}")

    def mark(self, name: str) -> None:
        os.close(os.open(f"{self.path}/{name}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))

    def remove(self) -> None:
        """Remove the directory.  The state goes last, so that whoever is killed here can be repeated."""
        for name in sorted(os.listdir(self.path), key=lambda name: (name == "state", name)):
            path = f"{self.path}/{name}"
            try:
                os.unlink(path)
            except IsADirectoryError:
                raise BadInput(f"{path} is a directory, which nsrun-oci did not make") from None
            except FileNotFoundError:
                continue
        os.rmdir(self.path)

    # ---- the process ------------------------------------------------------------------------------------------------

    def pid(self) -> int:
        """Return the pid of the first process; 0 when it has ended, as it has when it is of another boot.

        Raise Elsewhere when it is of another PID or time namespace of this boot.
        """
        note = self.note()
        pid, start = note.get("pid") or 0, note.get("start") or 0
        if not pid or note["boot"] != boot_id():
            return 0
        if note["view"] != kernel.our_view():
            raise Elsewhere(
                f"container {self.id!r} is of another PID or time namespace: whether it lives can't be seen from here"
            )
        return pid if kernel.process_start(pid) == start else 0

    def status(self) -> tuple[str, int]:
        """Return the status and the pid of the first process, 0 when that has ended."""
        note = self.note()
        pid = self.pid()
        if not pid:
            return ("creating" if self.fd < 0 and not note.get("pid") and self._is_locked() else "stopped"), 0
        if not self.has("started") and self.waits(pid):
            status = "created"
        else:
            status = "running"
        from nsrun.oci import cgroups

        if cgroups.is_frozen(note["cgroups"]):
            status = "paused"  # a created one, too: it can't be started, and nothing can be executed in it
        return status, pid

    def _is_locked(self) -> bool:
        """Return whether another process works on it."""
        from fcntl import LOCK_NB, LOCK_SH, flock

        try:
            with kernel.Fd(os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)) as fd:
                flock(fd, LOCK_SH | LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            pass  # it has just gone
        return False

    def waits(self, pid: int) -> bool:
        """Return whether nsrun-init has not become the program yet, as the kernel shows it."""
        try:
            return os.readlink(f"/proc/{pid}/exe") == _INIT
        except OSError:
            return True  # it may not be looked at: then only `started` tells

    def waiting(self) -> list[int]:
        """Return the processes that wait for `start`, found without the state: nsrun-init with our FIFOs open."""
        fifos = set()
        for name in ("start", "told"):
            try:
                st = os.lstat(f"{self.path}/{name}")
            except FileNotFoundError:
                continue
            fifos.add((st.st_dev, st.st_ino))
        found = []
        for pid in map(int, filter(is_number, os.listdir("/proc") if fifos else [])):
            try:
                if os.readlink(f"/proc/{pid}/exe") != _INIT:
                    continue
                held = [os.stat(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
            except OSError:
                continue  # it has just ended, or is not ours to look at
            if any((st.st_dev, st.st_ino) in fifos for st in held):
                found.append(pid)
        return found

    def document(self) -> dict[str, Any]:
        """Return what `state` prints and hooks get."""
        return self.describe(*self.status())

    def describe(self, status: str, pid: int) -> dict[str, Any]:
        """Return the same for a status."""
        note = self.note()
        found = {
            "ociVersion": note["ociVersion"],
            "id": self.id,
            "pid": pid,
            "status": status,
            "bundle": note["bundle"],
        }
        found |= {"rootfs": note["rootfs"], "created": note["created"], "owner": note["owner"]}
        if note["annotations"]:
            found["annotations"] = note["annotations"]
        return found


def _holder(fd: int) -> str:
    """Return which command holds the lock of a directory, as the kernel shows it."""
    from nsrun.oci.commands import COMMANDS

    here = os.fstat(fd)
    place = f"{os.major(here.st_dev):02x}:{os.minor(here.st_dev):02x}:{here.st_ino}"
    try:
        with open("/proc/locks", errors="surrogateescape") as file:
            locks = [line.split() for line in file]
        pid = next(int(words[4]) for words in locks if words[1] == "FLOCK" and words[5] == place)
        with open(f"/proc/{pid}/cmdline", "rb") as words:
            given = os.fsdecode(words.read()).split("\0")
        return f"nsrun-oci {next(word for word in given[1:] if word in COMMANDS)}, pid {pid},"
    except (OSError, ValueError, IndexError, StopIteration):
        return "another command"  # of a PID namespace that we can't see, or it has just ended


def _lock(root: str, ident: str, seconds: float) -> int:
    """Return a locked descriptor of a container's directory.  Raise UnknownError when there is none."""
    from fcntl import LOCK_EX, LOCK_NB, flock
    from time import monotonic, sleep

    check_root(root)
    path, deadline = f"{root}/{ident}", monotonic() + seconds
    while True:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == ENOENT:
                raise UnknownError(f"container {ident!r} does not exist") from None
            if error.errno == ENOTDIR:
                raise BadInput(f"{path} is not a directory") from None
            raise
        try:
            while True:
                try:
                    flock(fd, LOCK_EX | LOCK_NB)
                    break
                except BlockingIOError:
                    if monotonic() > deadline:
                        raise Busy(f"container {ident!r} is busy: {_holder(fd)} works on it") from None
                    sleep(0.002)
            here = os.fstat(fd)
            _check_owner(path, here)
            try:
                there = os.lstat(path)
            except FileNotFoundError:
                raise UnknownError(f"container {ident!r} does not exist") from None
            if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _check_owner(path: str, st: os.stat_result) -> None:
    """Raise BadInput when others may change what is written of a container: it says whom we kill, and what we remove."""
    if st.st_uid not in (0, os.geteuid()):
        raise BadInput(f"{path} belongs to uid {st.st_uid}, who could change what is written there")
    if st.st_mode & 0o022:
        raise BadInput(f"{path} may be written to by others than its owner")


def check_root(root: str) -> None:
    """Raise BadInput when others may change which containers there are; what is not there holds none.

    A sticky bit is of no use: whoever may make a name there may make one that we have not taken yet.
    """
    try:
        st = os.stat(root)
    except (FileNotFoundError, NotADirectoryError):
        return
    _check_owner(f"--root {root}", st)


def find(root: str, ident: str, seconds: float = 10) -> Container:
    """Return a container, locked.  Raise UnknownError when there is none, Busy when it is not free in time."""
    return Container(root, ident, _lock(root, ident, seconds))


def look(root: str, ident: str) -> Container:
    """Return a container that is not locked, to be looked at.  Raise UnknownError when there is none."""
    check_root(root)
    try:
        there = os.lstat(f"{root}/{ident}")
    except FileNotFoundError:
        raise UnknownError(f"container {ident!r} does not exist") from None
    if not S_ISDIR(there.st_mode):
        raise BadInput(f"{root}/{ident} is not a directory")
    _check_owner(f"{root}/{ident}", there)
    return Container(root, ident, -1)


def claim(root: str, ident: str) -> Container:
    """Make the directory of a new container, locked.  Raise BadInput when there is one of that id."""
    from fcntl import LOCK_EX, LOCK_NB, flock

    os.makedirs(root, 0o711, exist_ok=True)
    check_root(root)
    path = f"{root}/{ident}"
    try:
        os.mkdir(path, 0o700)
    except OSError as error:
        if error.errno == EEXIST:
            raise BadInput(f"container {ident!r} exists already") from None
        raise
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        flock(fd, LOCK_EX | LOCK_NB)
    except BlockingIOError:  # a delete --force has just found it
        os.close(fd)
        raise BadInput(f"container {ident!r} is being deleted") from None
    return Container(root, ident, fd)


def ids(root: str) -> list[str]:
    """Return the ids of all containers.  Raise BadInput when others may change which there are."""
    check_root(root)
    try:
        with os.scandir(root) as entries:
            return sorted(e.name for e in entries if e.is_dir(follow_symlinks=False) and not e.name.startswith("."))
    except FileNotFoundError:
        return []
