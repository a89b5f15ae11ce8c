"""The notes: what nsrun writes down about pods and members (sweep.py tells how it forgets).

Files are notes, the kernel is the truth.  A note names its *holder*, a process as (pid, start time, boot
id): the nsrun that is making the thing, then pause (of a pod) or the monitor (of a member).  A pod is there
as long as pause lives; whatever a note says, it is believed only after the kernel was asked.

A name is taken by one rename(2), without a lock, and given back under the lock `names`: so who holds the lock and sees that
what has a name is dead can remove it, and nothing that took the name since.

    RUN/pods/NAME/note          RUN/members/NAME/note, config.json, started, log, log.1, exit, stop, attach
    RUN/tmp/PID.START…/         a claim in the making; renamed into place, so a name is taken by one rename
    LIB/upper/ID/{upper,work}   what a member wrote over its rootfs
    LIB/volumes/NAME            named volumes
    OWNED/UID/NAME.json, .door  of a pod that root made for a user: root writes, she reads

RUN is /run/nsrun, LIB /var/lib/nsrun, OWNED /run/nsrun-owned; of a user, RUN and LIB are in her XDG directories.  --root DIR
or NSRUN_ROOT moves all: DIR/run, DIR/lib, DIR/owned; of a user, DIR/users/UID/run and …/lib.

Root and each user have notes of their own, and root never reads a user's: what it has to know of an owned pod, it wrote itself.
"""

from __future__ import annotations

import os
from errno import EEXIST, ENOTDIR, ENOTEMPTY

from nsrun import kernel, notes
from nsrun.errors import BadInput, UnknownError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Note = dict[str, Any]

NAME_CHARS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


def check_name(name: str, what: str) -> str:
    """A name becomes a directory, a cgroup and a hostname: letters, digits, `_`, `.`, `-`, at most 63, no leading `.` or `-`."""
    if not name or len(name) > 63 or not NAME_CHARS.issuperset(name) or name[0] in ".-":
        raise UsageError(
            f"bad {what} name {name!r}",
            hint="letters, digits, '_', '.', '-'; at most 63; it begins with a letter, a digit or '_'",
        )
    return name


def new_id() -> str:
    return os.urandom(6).hex()


def remove_tree(path: str) -> None:
    """Remove a tree of ours, whatever members put into it (host/trees.py).  What can't be removed stays, for the next sweep."""
    from nsrun.host.trees import remove

    remove(path)


#: What a note must hold to be one; anything else in its place is swept.
REQUIRED = {
    "pods": ("id", "name", "holder", "created", "owner", "hostname", "network", "labels", "cgroup"),
    "members": (
        "id",
        "name",
        "holder",
        "pod",
        "pod_id",
        "created",
        "command",
        "rootfs",
        "cgroup",
        "shares_pid",
        "stop_signal",
        "restart",
        "restarts",
        "rm",
    ),
}


PROCESS = {"pods": "pause", "members": "process"}


def _runtime_directory(uid: int) -> str:
    """XDG_RUNTIME_DIR, or where it would be; without a login session, a directory in /tmp that must be the user's own."""
    named = os.environ.get("XDG_RUNTIME_DIR")
    if named:
        return named
    if os.path.isdir(f"/run/user/{uid}"):
        return f"/run/user/{uid}"
    path = f"/tmp/nsrun-{uid}"
    try:
        st = os.lstat(path)
    except FileNotFoundError:
        os.mkdir(path, 0o700)
        return path
    if st.st_uid != uid or st.st_mode & 0o170077 != 0o040000:
        raise BadInput(f"{path} is not a directory of yours alone", hint="remove it, or set XDG_RUNTIME_DIR")
    return path


def allow(path: str, uid: int) -> None:
    """Lets one user read and enter a directory of root's, and nobody else: acl(5), a group would hold others.

    OSError EOPNOTSUPP: the file system has no ACLs.
    """
    from struct import pack

    nobody = 0xFFFFFFFF
    entries = ((1, 7, nobody), (2, 5, uid), (4, 0, nobody), (16, 5, nobody), (32, 0, nobody))
    data = pack("<I", 2) + b"".join(pack("<HHI", *entry) for entry in entries)
    os.setxattr(path, "system.posix_acl_access", data)


class State:
    """The notes below one root directory."""

    def __init__(self, root: str = "") -> None:
        root = root or os.environ.get("NSRUN_ROOT", "")
        self.uid = os.geteuid()  # whose notes these are; a process that has entered a user namespace is 0 of it
        if root:
            root = os.path.abspath(root)
            base = f"{root}/users/{self.uid}" if self.uid else root
            self.run, self.lib, owned = f"{base}/run", f"{base}/lib", f"{root}/owned"
        else:
            self.run, self.lib, owned = "/run/nsrun", "/var/lib/nsrun", "/run/nsrun-owned"
            if self.uid:
                data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
                self.run, self.lib = f"{_runtime_directory(self.uid)}/nsrun", f"{data}/nsrun"
        self.owned = f"{owned}/{self.uid}" if self.uid else owned
        self.root = root
        self._boot = ""

    @property
    def boot(self) -> str:
        if not self._boot:
            self._boot = kernel.boot_id()
        return self._boot

    def path(self, kind: str, name: str, file: str = "") -> str:
        return f"{self.run}/{kind}/{name}/{file}" if file else f"{self.run}/{kind}/{name}"

    def upper(self, ident: str) -> str:
        return f"{self.lib}/upper/{ident}"

    # ---- reading -------------------------------------------------------------------------------------

    def names(self, kind: str) -> list[str]:
        try:
            found = set(os.listdir(f"{self.run}/{kind}"))
        except FileNotFoundError:
            found = set()
        if kind == "pods" and self.uid:
            found.update(self._owned_names())
        return sorted(found)

    def _owned_names(self) -> list[str]:
        """The living pods that root made for this user."""
        try:
            files = os.listdir(self.owned)
        except OSError:  # none, or not hers to see
            return []
        found = [file[:-5] for file in files if file.endswith(".json")]
        return [name for name in found if self.alive((self.read("pods", name) or {}).get("pause"))]

    def read(self, kind: str, name: str, file: str = "note") -> Note | None:
        note = self._load(self.path(kind, name, file), kind if file == "note" else "")
        if note is None and kind == "pods" and self.uid and file == "note":
            note = self._load(f"{self.owned}/{name}.json", kind)
        return note

    def _load(self, path: str, kind: str) -> Note | None:
        try:
            with open(path, "rb", buffering=0) as file:  # half the time of a text file, and there may be hundreds
                note = notes.loads(file.readall().decode())
        except (OSError, ValueError):
            return None
        if not isinstance(note, dict) or (kind and not all(key in note for key in REQUIRED[kind])):
            return None
        return note

    def door(self, note: Note) -> str:
        """The socket through which the owner of this pod starts something in its cgroup (csrc/door.c)."""
        if not self.uid:
            return f"{self.owned}/{note['user']['uid']}/{note['name']}.door"
        own = self.path("pods", note["name"], "door")
        return own if os.path.exists(own) else f"{self.owned}/{note['name']}.door"

    def alive(self, holder: Any) -> bool:
        """Is this [pid, start time, boot id] a live process?"""
        try:
            pid, start, boot = holder
        except (TypeError, ValueError):
            return False
        return bool(boot == self.boot and start > 0 and kernel.process_start(pid) == start)

    def look(self, kind: str, name: str) -> tuple[Note | None, bool]:
        """The note, and whether a process of it lives.

        Who makes something notes down who keeps it from now on, and ends: that a holder is dead counts only if the note is
        still the same afterwards.
        """
        note = self.read(kind, name)
        while note and not self.alive(note.get("holder")) and not self.alive(note.get(PROCESS[kind])):
            again = self.read(kind, name)
            if again == note:
                return note, False
            note = again
        return note, note is not None

    def myself(self) -> list[Any]:
        pid = os.getpid()
        return [pid, kernel.process_start(pid), self.boot]

    def pod(self, name: str) -> Note:
        """The note of a pod whose pause lives; UnknownError lists the pods there are."""
        note = self.read("pods", name) if NAME_CHARS.issuperset(name) and name else None
        if note and note.get("pause") and self.alive(note["pause"]):
            return note
        live = [n for n in self.names("pods") if self._pod_alive(n)]
        known = "known pods: " + ", ".join(live) if live else "there are no pods"
        known += " of yours; for root's: sudo nsrun" if self.uid else ""
        if note:
            raise UnknownError(f"pod {name!r} is dead: its PID 1 has ended", hint=f"{known}; nsrun pod create {name}")
        raise UnknownError(f"no pod {name!r}", hint=f"{known}; nsrun pod create makes one")

    def _pod_alive(self, name: str) -> bool:
        note = self.read("pods", name)
        return bool(note and note.get("pause") and self.alive(note["pause"]))

    def member(self, name: str) -> Note:
        """The note of a member, whatever its state; UnknownError lists the members there are."""
        note = self.read("members", name) if NAME_CHARS.issuperset(name) and name else None
        if note:
            return note
        for other in self.names("members"):  # an unambiguous id will do
            note = self.read("members", other)
            if note and len(name) >= 4 and note["id"].startswith(name):
                return note
        known = ", ".join(self.names("members"))
        raise UnknownError(
            f"no member {name!r}",
            hint=f"known members: {known}" if known else "there are no members; nsrun join makes one",
        )

    def member_status(self, note: Note) -> tuple[str, int | None]:
        """(created|running|stopping|stopped|lost, exit status): asked from the kernel, not from the note."""
        name = note["name"]
        code = self.exit_of(name)
        if code is not None:
            return "stopped", code[0]
        if note.get("process") and self.alive(note["process"]):
            return ("stopping" if os.path.exists(self.path("members", name, "stop")) else "running"), None
        if self.alive(note["holder"]):
            # the monitor is about to write `exit`, or nsrun about to start the process
            return ("stopping" if note.get("process") else "created"), None
        code = self.exit_of(name)
        if code:
            return "stopped", code[0]
        now = self.read("members", name)
        if now and now["id"] == note["id"] and now["holder"] != note["holder"]:
            return self.member_status(now)  # see look()
        return "lost", None

    def exit_of(self, name: str) -> tuple[int, str, bool] | None:
        """What the monitor recorded: (exit status, time, was it killed for memory)."""
        try:
            with open(self.path("members", name, "exit"), "rb", buffering=0) as file:
                code, when, *oom = file.readall().decode().split()
            return int(code), when, bool(oom)
        except (OSError, ValueError):
            return None

    # ---- writing -------------------------------------------------------------------------------------

    def _make_dirs(self, *kinds: str) -> None:
        for base, parts in ((self.run, kinds), (self.lib, ("upper",))):
            for part in parts:
                os.makedirs(f"{base}/{part}", 0o700, exist_ok=True)
            os.chmod(base, 0o700)

    def claim(self, kind: str, name: str, note: Note, files: dict[str, Note]) -> str:
        """Takes the name by one rename(2); BadInput when somebody living has it.  Gives the directory.

        `files` lie beside the note, and go with it.
        """
        what = kind[:-1]
        holder = self.myself()
        note = {**note, "holder": holder}
        tmp = f"{self.run}/tmp/{holder[0]}.{holder[1]}.{new_id()}"
        target = self.path(kind, name)
        try:
            os.mkdir(tmp, 0o700)
        except FileNotFoundError:
            self._make_dirs("pods", "members", "tmp")
            os.mkdir(tmp, 0o700)
        self._write(f"{tmp}/note", note)
        for file, content in files.items():
            self._write(f"{tmp}/{file}", content)
        for attempt in (1, 2):
            try:
                os.rename(tmp, target)
                return target
            except OSError as error:
                if error.errno not in (EEXIST, ENOTEMPTY, ENOTDIR):
                    remove_tree(tmp)
                    raise
                if attempt == 1:
                    from nsrun.sweep import Sweeper

                    Sweeper(self).one(kind, name)
        remove_tree(tmp)
        verb = "pod rm -f" if kind == "pods" else "rm -f"
        raise BadInput(f"{what} name {name!r} is taken", hint=f"choose another name, or: nsrun {verb} {name}")

    def _write(self, path: str, note: Note, mode: int = 0o600) -> None:
        fd = os.open(f"{path}.tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        try:
            os.fchmod(fd, mode)  # whatever the umask
            data = notes.dumps(note).encode() + b"\n"
            while data:
                data = data[os.write(fd, data) :]
        finally:
            os.close(fd)
        os.rename(f"{path}.tmp", path)

    def save(self, kind: str, name: str, note: Note, file: str = "note") -> None:
        self._write(self.path(kind, name, file), note)

    def give_back(self, kind: str, name: str) -> None:
        """Undoes a claim of ours."""
        lock = self.lock("names")
        try:
            remove_tree(self.path(kind, name))
        finally:
            os.close(lock)

    def remove_written(self, path: str) -> None:
        """Removes a tree that members wrote; of a user, it holds files of ids that are hers only in a user namespace."""
        remove_tree(path)
        if self.uid and os.geteuid() and os.path.lexists(path):
            from nsrun import userns

            userns.call(self, "_remove", path)

    def make_owned(self, uid: int) -> None:
        """Root: the directory in which a user finds what root made for her; she reads it, nobody else does, nobody writes."""
        path = f"{self.owned}/{uid}"
        os.makedirs(self.owned, 0o711, exist_ok=True)
        os.chmod(self.owned, 0o711)
        os.makedirs(path, 0o700, exist_ok=True)
        allow(path, uid)  # also when it is there: who made it may have been killed before this
        if self.root:  # elsewhere the XDG directories are hers already
            users = f"{self.root}/users"
            os.makedirs(users, 0o711, exist_ok=True)
            os.chmod(users, 0o711)
            os.makedirs(f"{users}/{uid}", 0o700, exist_ok=True)
            os.chown(f"{users}/{uid}", uid, -1)

    def show(self, note: Note) -> None:
        """Root: the owner of a pod gets to read its note."""
        self._write(f"{self.owned}/{note['user']['uid']}/{note['name']}.json", note, 0o644)

    def disown(self, note: Note) -> None:
        """Root: what the owner of a pod was shown goes."""
        if note.get("user") and not self.uid:
            for path in (f"{self.owned}/{note['user']['uid']}/{note['name']}.json", self.door(note)):
                try:
                    os.unlink(path)
                except FileNotFoundError:
                    pass

    def lock(self, name: str) -> int:
        """An exclusive flock(2) on RUN/NAME.lock; close the descriptor to let go.  It goes with its holder."""
        import fcntl

        try:
            fd = os.open(f"{self.run}/{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            self._make_dirs("pods", "members", "tmp")
            return self.lock(name)
        fcntl.flock(fd, fcntl.LOCK_EX)
        return fd
