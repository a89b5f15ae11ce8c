# SPDX-License-Identifier: Apache-2.0
"""The notes: what nsrun writes down about pods and members, and how it finds out which of them live.

Notes say what things are called and where they are; only the kernel says what lives.  The process that keeps a pod or a
member alive holds a record lock on the file `held` beside its note (life.py).  Nothing else proves that the thing lives
or has ended: a pid in a note is for people.  sweep.py removes what has ended.

A name is taken by one rename(2), without a lock.  It is given back under the lock `names`, by a process that can
write-lock its `held`: so what is removed belongs to nobody, and is not something that has taken the name since.

    RUN/pods/NAME/      held, note, started, ended, released, removing    (of a pod without root: door, forward.pid, forward.log)
                        port-ID, port-ID.held: ports that it got later, and what the nsrun-hold that has them locks
                        listed, m-MEMBER: which members to ask for, of a pod; a hint that may name others, too
    RUN/members/NAME/   held, note, config.json, options.json, started, log, log.1, exit, stop, paused, attach
    RUN/tmp/ID/         a claim in the making, renamed into place; or what is being removed
    RUN/turn            where the next sweep begins (sweep.py)
    RUN/aside/          broken notes whose name was wanted for something else
    LIB/upper/ID/       held, about, committed, upper, work, volume-N: what a member wrote, with a proof of life of its own
    LIB/volumes/NAME    named volumes
    LIB/networks/NAME.json  networks (networks.py)
    OWNED/UID/NAME.json, .held, .door    for a pod that root made for a user: root writes, the user reads

RUN is /run/nsrun, LIB is /var/lib/nsrun, OWNED is /run/nsrun-owned.  For an ordinary user, LIB is XDG_DATA_HOME/nsrun
and RUN is LIB/run; not XDG_RUNTIME_DIR, which is emptied when the user logs out, while pods go on.  --root DIR or
NSRUN_ROOT moves all of them: DIR/run, DIR/lib and DIR/owned, and for a user DIR/users/UID/run and DIR/users/UID/lib.

Root and each user have their own notes, and root never reads a user's: what root needs to know about an owned pod, root
wrote itself.
"""

from __future__ import annotations

import os
from errno import EEXIST, ENOENT, ENOTDIR, ENOTEMPTY
from time import time_ns

from nsrun import kernel
from nsrun.errors import BadInput, BrokenNote, Busy, UnknownError
from nsrun.schema import check_name, is_directory, is_name, is_there, open_regular
from nsrun.state import codec, life

#: Seconds to wait for the lock of all names, whose holder at most removes something; FOR_ROOT when root asks on behalf of an
#: owner.
LOCK_SECONDS, FOR_ROOT = 120.0, 10.0

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from nsrun.state.life import Life
    from nsrun.types import MemberNote, PodNote, Port

    Note = Mapping[str, Any]


#: The statuses of a member that has a process, or will have one again.
ALIVE = ("created", "running", "paused", "restarting", "stopping")

#: The statuses of a member whose program has begun and has not ended.
BEGUN = ("running", "paused", "stopping")


def is_to_restart(note: Note, code: int) -> bool:
    """Return whether a member that ended with this exit status, and that nobody stopped, is to be started again."""
    policy, _, retries = note["restart"].partition(":")
    bound = int(retries or 0)
    return policy == "always" or (policy == "on-failure" and code != 0 and (not bound or note["restarts"] < bound))


def new_id() -> str:
    return os.urandom(6).hex()


def timestamp() -> str:
    """Return the current time as the logs write it: UTC, RFC 3339."""
    import time

    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1e9):09d}Z"


def remove_tree(path: str) -> list[str]:
    """Remove a tree of ours, whatever members put into it; return what could not be removed, as texts (host/trees.py).

    That stays for the next sweep.
    """
    from nsrun.host.trees import remove

    return remove(path)


def allow(path: str, uid: int) -> None:
    """Let one user, and nobody else, read and enter a directory that root owns.

    It is an acl(5), since a group may have others in it.  Raise OSError with EOPNOTSUPP when the file system has no
    ACLs.
    """
    from struct import pack

    nobody = 0xFFFFFFFF
    entries = ((1, 7, nobody), (2, 5, uid), (4, 0, nobody), (16, 5, nobody), (32, 0, nobody))
    data = pack("<I", 2) + b"".join(pack("<HHI", *entry) for entry in entries)
    os.setxattr(path, "system.posix_acl_access", data)


def own_proc() -> None:
    """Raise BadInput when /proc shows another PID namespace than this process's own.

    Its pids would mean other processes here.
    """
    try:
        with open("/proc/self/status", "rb", buffering=0) as file:
            text = file.read(4096)
    except OSError as error:
        raise BadInput(
            f"/proc: {error.strerror}: nsrun needs it", hint="mount -t proc proc /proc", errno=error.errno or 0
        ) from None
    # NSpid has one number for each PID namespace from that of the procfs down to ours: proc_pid_status(5)
    if len(text.partition(b"\nNSpid:")[2].partition(b"\n")[0].split()) > 1:
        raise BadInput(
            "/proc shows another PID namespace than the one that this process is in: its pids mean other processes here",
            hint="unshare --mount-proc; or: mount -t proc proc /proc",
        )


def make_directory(path: str, mode: int = 0o700) -> None:
    """Make a directory and its missing parents, each with this mode whatever the umask is."""
    if not path or os.path.isdir(path):
        return
    make_directory(os.path.dirname(path), mode)
    try:
        os.mkdir(path, mode)
        os.chmod(path, mode)
    except FileExistsError:
        if not os.path.isdir(path):
            raise


#: What a file holds in which a line will be written, even on a full disk.
SPACE = b" " * 95 + b"\n"

#: The mark beside the note of a pod whose members are written down there.
LISTED = "listed"

#: The mark beside the note of a member that was paused (lifecycle/pause.py).
PAUSED = "paused"

#: What the file beside the note of a pod begins with that lists ports which it got later; beside that, a nsrun-hold locks FILE.held.
PORTS = "port-"

#: Nanoseconds after which a note that is written anew can't look like the one before, whatever its file system.
SETTLED = 2_000_000_000


class State:
    """The notes below one root directory."""

    def __init__(self, root: str = "") -> None:
        """Find the directories.  Raise BadInput when /proc can't be relied on."""
        own_proc()
        root = root or os.environ.get("NSRUN_ROOT", "")
        # the user whose notes these are; after entering a user namespace the process itself has uid 0
        self.uid = os.geteuid()
        if root:
            root = os.path.abspath(root)
            base = f"{root}/users/{self.uid}" if self.uid else root
            self.run, self.lib, owned = f"{base}/run", f"{base}/lib", f"{root}/owned"
        else:
            self.run, self.lib, owned = "/run/nsrun", "/var/lib/nsrun", "/run/nsrun-owned"
            if self.uid:
                data = os.environ.get("XDG_DATA_HOME", "")
                if not data.startswith("/"):  # the XDG Base Directory Specification: a relative path is ignored
                    data = os.path.expanduser("~/.local/share")
                if not data.startswith("/"):
                    raise BadInput(
                        f"HOME={os.environ.get('HOME')!r} is not an absolute path", hint="set HOME, or use --root DIR"
                    )
                self.run, self.lib = f"{data}/nsrun/run", f"{data}/nsrun"
        self.owned = f"{owned}/{self.uid}" if self.uid else owned
        self.root = root
        self.broken: dict[str, str] = {}  # the notes that could not be read: path → reason
        self.seen: dict[str, os.stat_result] = {}  # the notes that were read, each as it was then
        self.seen_inside: list[
            tuple[str, str, os.stat_result | None, int]
        ] = []  # a root directory, a file below it, as it was, when
        self.seen_text: dict[str, str | None] = {}  # files of the machine's that were read whole; None: there was none
        self.unseen = ""  # something that was looked at, and that nobody can tell when it changes
        self._decoded: dict[str, tuple[tuple[int, ...] | None, Note]] = {}
        self._boot = ""
        self.patience = LOCK_SECONDS
        #: what may be done after the command has returned (cli/later.py); None: nothing may
        self.later: list[Callable[[], object]] | None = None

    def after(self, task: Callable[[], object]) -> None:
        """Do it when the command has returned, or now."""
        if self.later is None:
            task()
        else:
            self.later.append(task)

    def catch_up(self) -> None:
        """Do now what was to be done later."""
        while self.later:
            self.later.pop(0)()

    @property
    def boot(self) -> str:
        if not self._boot:
            self._boot = kernel.boot_id()
        return self._boot

    def path(self, kind: str, name: str, file: str = "") -> str:
        """Return the path of a pod's or member's directory, or of a file in it.

        Raise UsageError when `name` can't be a name, such as "" or "..".
        """
        check_name(name, kind[:-1])
        return f"{self.run}/{kind}/{name}/{file}" if file else f"{self.run}/{kind}/{name}"

    def upper(self, ident: str) -> str:
        return f"{self.lib}/upper/{ident}"

    # ---- reading -------------------------------------------------------------------------------------

    def names(self, kind: str) -> list[str]:
        """Return the names that are taken.

        Raise OSError when the directory can't be read: that does not mean there are none.
        """
        try:
            found = set(filter(is_name, os.listdir(f"{self.run}/{kind}")))
        except FileNotFoundError:
            found = set()
        if kind == "pods" and self.uid:
            found.update(self._owned_names())
        return sorted(found)

    def has_pod(self, name: str) -> bool:
        """Return whether `names` has this pod, without looking at others."""
        if is_there(self.path("pods", name)):
            return True
        shown = f"{self.owned}/{name}"
        try:
            return bool(self.uid) and is_there(f"{shown}.json") and life.ask(f"{shown}.held").alive
        except PermissionError:  # somebody else made the directory
            return False

    def _owned_names(self) -> list[str]:
        """Return the names of the living pods that root made for this user."""
        try:
            files = os.listdir(self.owned)
        except (FileNotFoundError, PermissionError):  # there is none, or somebody else made it
            return []
        found = [file[:-5] for file in files if file.endswith(".json")]
        return [name for name in found if life.ask(f"{self.owned}/{name}.held").alive]

    def read(self, kind: str, name: str, file: str = "note") -> Note | None:
        """Return a note, or None when there is none.

        Raise BrokenNote when there is one that can't be read or trusted, or when it was lost.
        """
        if file != "note":
            return self._load(self.path(kind, name, file), file)
        for _ in range(100):
            note, path, held = self._note(kind, name)
            if note is None or not life.is_another(held, note) or self._first_lives(note) is not False:
                return note
            again = self._load(path, kind)
            if again and again["id"] == note["id"]:
                raise BrokenNote(path, f"it is the note of an earlier {kind[:-1]} of this name")
        raise BrokenNote(path, "it changes all the time")

    def _note(self, kind: str, name: str) -> tuple[Note | None, str, str]:
        """Return (the note, its path, the `held` beside it).  Raise BrokenNote."""
        path, held = self.path(kind, name, "note"), self.path(kind, name, life.HELD)
        shown = f"{self.owned}/{name}"
        found = self._load(path, kind)
        if found is None and kind == "pods" and self.uid and (found := self._load(f"{shown}.json", kind)):
            path, held = f"{shown}.json", f"{shown}.held"
        if found is None and is_there(self.path(kind, name)):
            # a name is taken and given back together with its note by one rename(2): that has just happened, or the
            # note was lost
            found = self._load(path, kind)
            if found is None and is_there(self.path(kind, name)):
                raise BrokenNote(path, "it is gone")
        if found and kind == "members" and (new := found.pop("renamed", "")) == name:  # type: ignore[attr-defined]
            found = {**found, "name": new}  # rename_member was killed, or is about to write the note anew
        if found and found["name"] != name:
            raise BrokenNote(self.path(kind, name), f"it is the note of {found['name']!r}")
        return found, path, held

    def _first_lives(self, note: Note) -> bool | None:
        """Return whether the first process that a note names lives; None when that tells nothing here."""
        process = note.get("pause") or note.get("process")
        return self._process_lives(process) if process else None

    def _load(self, path: str, shape: str) -> Note | None:
        """Return a note, or None when there is none.  Raise BrokenNote.

        One command asks of a note several times, so one that has not changed is not decoded again.  What was written within
        the last moments could be replaced by a file that looks the same (the clock of a file system is coarse), so only
        older ones are remembered.
        """
        try:
            with kernel.Fd(open_regular(path)) as fd:
                st = self.seen[path] = os.fstat(fd)
                looks = (st.st_dev, st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns)
                known, note = self._decoded.get(path, (None, {}))
                if known == looks:
                    return dict(note)
                data = _read_bounded(fd, path)
        except OSError as error:
            if error.errno in (ENOENT, ENOTDIR):
                return None
            raise BrokenNote(path, f"it can't be read: {os.strerror(error.errno or 0)}", error.errno or 0) from None
        try:
            note = codec.decode(data, codec.SHAPES[shape])
        except ValueError as error:
            raise BrokenNote(path, str(error)) from None
        if time_ns() - st.st_ctime_ns > SETTLED:
            self._decoded[path] = looks, note
        return dict(note)

    def document(self, path: str, shape: str) -> Note | None:
        """Return another document in the format of notes, or None when there is none.  Raise BrokenNote."""
        return self._load(path, shape)

    def write_document(self, path: str, document: Note) -> None:
        """Write a document in the format of notes, in the place of the one that is there."""
        self._write(path, document)

    def notes_of(self, kind: str, name: str) -> tuple[str, ...]:
        """Return the paths that the note may have: for a pod that root made for us, root shows it elsewhere."""
        return self.path(kind, name), self.path(kind, name, "note"), f"{self.owned}/{name}.json"

    def try_read(self, kind: str, name: str, file: str = "note") -> Note | None:
        """Return a note like `read`, for lists: a broken one counts as None and is recorded in `broken`."""
        try:
            return self.read(kind, name, file)
        except BrokenNote as error:
            self.broken[error.path] = error.why
            return None

    def all(self, kind: str) -> list[Note]:
        """Return every note that can be read."""
        found = (self.try_read(kind, name) for name in self.names(kind))
        return [note for note in found if note]

    def members_of(self, pod: Note) -> list[Note]:
        """Return the notes of the members of this pod, including those that have ended."""
        found = (self.try_read("members", name) for name in self._listed(pod["name"]))
        return [note for note in found if note and note["pod_id"] == pod["id"]]

    def _listed(self, pod: str) -> list[str]:
        """Return the names of the members that a pod of this name may have.

        They are those that `_list` has written down, or all: where an earlier build made the pod, and for the owner of a
        pod that root made, who has no directory for it.
        """
        try:
            entries = os.listdir(self.path("pods", pod))
        except (FileNotFoundError, NotADirectoryError):
            entries = []
        if LISTED not in entries:
            return self.names("members")
        return sorted(entry[2:] for entry in entries if entry.startswith("m-") and is_name(entry[2:]))

    def _list(self, note: Note) -> None:
        """Write down, beside the note of its pod, that there is this member.

        Whoever takes a member's name does so, at once after it: the end of the pod does not find the member otherwise.
        """
        path = self.path("pods", note["pod"], f"m-{note['name']}")
        try:
            os.close(open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW))
        except (FileNotFoundError, NotADirectoryError):
            pass  # the pod has gone, and this member will not begin; or root made it
        except OSError:
            remove_tree(self.path("pods", note["pod"], LISTED))  # from now on its members are looked for among all

    def unlist(self, pod: str, name: str) -> None:
        """Remove what `_list` wrote of a member that has just been removed, unless another has its name by now."""
        try:
            os.unlink(self.path("pods", pod, f"m-{name}"))
        except OSError:
            return  # it is not there; and a name too many is no harm
        if is_there(self.path("members", name)) and (another := self.try_read("members", name)):
            self._list(another)

    def rename_member(self, note: Note, new: str) -> None:
        """Give a member another name, which is taken by one rename(2).  The caller has the lock `names`.

        Between any two steps both the name and the note are right: until the rename, the note says which name it is about to
        have, and under that name it is read as if it had it already.  Raise BadInput when something has the name.
        """
        old, after = note["name"], {**note, "name": new}
        self.save("members", old, {**note, "renamed": new})
        self._list(after)  # before, so that the end of the pod finds it under one of the two
        try:
            os.rename(self.path("members", old), self.path("members", new))
        except OSError as error:
            self.save("members", old, note)
            self.unlist(note["pod"], new)
            if error.errno not in (EEXIST, ENOTEMPTY, ENOTDIR):
                raise
            raise BadInput(
                f"member name {new!r} is taken", hint=f"choose another name, or: nsrun rm -f {new}"
            ) from None
        self.save("members", new, after)
        data = self.upper(note["id"])
        for file, shape in (("committed", "committed"), ("about", "about")):
            if beside := self._load(f"{data}/{file}", shape):
                self._write(f"{data}/{file}", {**beside, "name": new})
        self.unlist(note["pod"], old)

    def same_member(self, note: Note) -> Note | None:
        """Return the note that a member has now, by its id, since it may have been renamed; None when it was removed."""
        return next((now for now in self.all("members") if now["id"] == note["id"]), None)

    def door(self, note: Note) -> str:
        """Return the socket through which the owner of this pod starts processes in its cgroup (csrc/door.c)."""
        if not self.uid:
            return f"{self.owned}/{note['user']['uid']}/{note['name']}.door"
        own = self.path("pods", note["name"], "door")
        return own if is_there(own) else f"{self.owned}/{note['name']}.door"

    def read_inside(self, root: str, path: str) -> str:
        """Return a regular file below a root directory, as kernel.read_in_root does, and note what it was when it was read."""
        seen: list[os.stat_result] = []
        when = time_ns()
        text = kernel.read_in_root(root, path, seen)
        self.seen_inside.append((root, path, seen[0] if seen else None, when))
        return text

    # ---- what lives ----------------------------------------------------------------------------------

    def held(self, kind: str, name: str) -> str:
        """Return the file whose locks prove that the pod or member lives."""
        own, shown = self.path(kind, name, life.HELD), f"{self.owned}/{name}.held"
        theirs = kind == "pods" and self.uid and is_there(shown)
        return shown if theirs and not is_there(self.path(kind, name, "note")) else own  # the same choice as in read()

    def life(self, kind: str, name: str) -> Life:
        """Return who keeps the pod or member.

        Raise OSError when that can't be asked: it does not mean that it has ended.
        """
        return life.ask(self.held(kind, name))

    def note_and_life(self, kind: str, name: str) -> tuple[Note | None, Life]:
        """Return the note and the life of the same pod or member, even if its name is taken by another meanwhile.

        Raise BrokenNote.
        """
        for _ in range(100):
            now = self.life(kind, name)
            note = self.read(kind, name)
            if life.identity(self.held(kind, name)) == now.file:
                break
        if note and kind == "pods" and "pause" in note and now.alive and not self._is_its_file(note, now):
            now = life.Life(now.file)  # another pod's
        if note and kind == "pods" and not now.alive and "pause" in note and not self._lock_proves(note, now):
            now.keeper = None if self.marked("pods", name, "ended") else self._keeper_by_number(note)
        return note, now

    def _lock_proves(self, note: Note, now: Life) -> bool:
        """Return whether a pod has ended for certain, given that nobody holds the file that was asked about.

        It is not certain when that file was lost or replaced.  Nor is it for a pod that root made for a user: its
        nsrun-hold may have been killed, and its pause goes on without what root lent it, and locks only a file that the
        owner can open, too.
        """
        if note.get("user") and not self.uid:
            return False
        return self._is_its_file(note, now)

    def _is_its_file(self, note: Note, now: Life) -> bool:
        """Return whether the file that was asked about is the `held` of this note, and not another in its place."""
        return now.file is not None and note.get("held", now.file[1]) == now.file[1]

    def _keeper_by_number(self, note: Note) -> int | None:
        """Return the pid of a pause that no lock shows, 0 when it is not visible from here, None when it has ended."""
        from nsrun.host import cgroup

        lives = self._pause_lives(note)
        if lives is None and cgroup.count(note["cgroup"], note.get("cgroup_id", 0)) >= 0:
            # it was made in another PID namespace, so its pid differs here
            inside = cgroup.pids(f"{note['cgroup']}/pause")
            return inside[0] if len(inside) == 1 else 0 if inside else None
        return int(note["pause"][0]) if lives else None if lives is False else 0

    def _pause_lives(self, note: Note) -> bool | None:
        """Return whether the pause in the note lives, by its pid and start time; None when they don't tell.

        A pause that has closed its files has ended, and only waits for its children.
        """
        lives = self._process_lives(note["pause"])
        try:
            if lives is None and note["pause"][3:4] == kernel.our_view()[:1]:
                lives = os.stat(f"/proc/{note['pause'][0]}/ns/pid").st_ino == note.get("namespaces", {}).get("pid")
            return bool(os.listdir(f"/proc/{note['pause'][0]}/fd")) if lives else lives
        except (FileNotFoundError, ProcessLookupError):
            return False if lives else lives
        except OSError:
            return lives

    def pod_life(self, note: Note) -> Life:
        """Return the life of the pod of this note; nobody keeps it when another pod has its name."""
        now, found = self.note_and_life("pods", note["name"])
        return found if now and now["id"] == note["id"] else life.Life(None)

    def process(self, note: Note) -> tuple[int, int]:
        """Return (pidfd, pid) of a member's first process; (-1, 0) when it has ended or does not exist yet.

        Its monitor has a pidfd of it.  When the monitor was killed, the pid in the note counts if start time, boot and
        PID namespace match; a mismatch proves nothing.  Raise BadInput when the process lives but is not visible from
        here.
        """
        now, found = self.note_and_life("members", note["name"])
        if now is None or now["id"] != note["id"] or "process" not in now:
            return -1, 0
        if found.keeper is not None and self._is_its_file(now, found):
            if found.keeper == os.getpid() and now["id"] in life.children:
                return os.dup(life.children[now["id"]]), int(now["process"][0])
            return life.open_held(_visible(found.keeper, f"member {note['name']!r}"), now.get("pidfd", -1))
        fd = -1 if self.exit_of(now["name"]) else self.noted_process(now)
        return (fd, int(now["process"][0])) if fd >= 0 else (-1, 0)

    def pause(self, note: Note) -> tuple[int, int]:
        """Return (pidfd, pid) of a pod's pause; (-1, 0) when it has ended.

        Raise BadInput when it lives but is not visible from here.
        """
        now, found = self.note_and_life("pods", note["name"])
        if now is None or now["id"] != note["id"]:
            return -1, 0
        what = f"pod {note['name']!r}"
        if found.holder is not None:  # for an owned pod, root trusts only the pidfd that its own nsrun-hold has
            return life.open_held(_visible(found.holder, what), now.get("pause_fd", -1))
        if found.keeper is None:
            return -1, 0
        pid = _visible(found.keeper, what)
        if self._lock_proves(now, found):
            fd = life.open_pid(pid, self.held("pods", note["name"]), life.KEEPER)
            return (fd, pid) if fd >= 0 else (-1, 0)
        fd = kernel.pidfd_of(pid)
        if fd >= 0 and self._keeper_by_number(now) != pid:  # asked with the pidfd in hand
            os.close(fd)
            fd = -1
        return (fd, pid) if fd >= 0 else (-1, 0)

    def first_holder(self, note: Note) -> tuple[int, int]:
        """Return (pidfd, pid) of the process that keeps what a pod was made with; (-1, 0) when it has ended.

        That is pause, or, where the pod has an owner, nsrun-hold, since the owner has every power over pause.
        """
        if not note.get("user"):
            return self.pause(note)
        holder = self.life("pods", note["name"]).holder
        if not holder:
            return -1, 0
        fd = life.open_pid(holder, self.held("pods", note["name"]), life.HOLDER)
        return (fd, holder) if fd >= 0 else (-1, 0)

    def noted_process(self, note: Note) -> int:
        """Return a pidfd of the process named by a note, or by `committed` beside data; -1 when it may be another."""
        fd = kernel.pidfd_of(note["process"][0]) if self._noted(note) else -1
        if fd >= 0 and not self._noted(note):  # asked with the pidfd in hand
            os.close(fd)
            fd = -1
        return fd

    def _noted(self, note: Note) -> bool:
        return "process" in note and self._process_lives(note["process"]) is True

    def _process_lives(self, process: list[Any]) -> bool | None:
        """Return whether the process in a note lives, by what `identify` wrote; None when that tells nothing here."""
        try:
            pid, start, boot, *view = process
        except ValueError:
            return None
        ours = kernel.our_view()
        same = view[:1] == ours[:1]
        now = kernel.process_start(pid) if same else 0
        if same and not now:
            return None if kernel.is_hidden(pid) else False  # no process has this pid, so the boot does not matter
        if not boot or not self.boot or type(start) is not int or start <= 0:
            return None
        if boot != self.boot:
            return False
        if not same:
            return None
        if view == ours:
            return now == start
        offset = kernel.time_offset()
        if view[1:] != [0] or offset is None:
            return None  # the time namespace is unknown
        return abs(now - offset - start) <= 1  # the two numbers were rounded separately

    def surely_ended(self, note: Note) -> bool:
        """Return whether it is proven that nothing of a member runs any more.  Only then may what it wrote be removed.

        Its monitor proves that it lives; the exit status that the monitor wrote proves that it has ended.  When nobody
        saw the end, any of these proves it: its cgroup is empty; its pod has ended, whose PID 1 takes every process
        with it; or the pid and start time of its process, where they mean the same as in the note.  `note` may also be
        `committed`, from its data.
        """
        from nsrun.host import cgroup

        name, now = note["name"], None
        if life.ask(f"{self.upper(note['id'])}/{life.HELD}").alive:
            return False
        if is_directory(self.path("members", name)):
            try:
                now, found = self.note_and_life("members", name)
            except BrokenNote:
                found = self.life("members", name)  # a damaged note, perhaps of this member
            if found.alive and (now is None or now["id"] == note["id"]):
                return False
        if "process" not in note:
            return True
        if now and now["id"] == note["id"] and self.exit_of(name):
            return True
        if (lives := self._process_lives(note["process"])) is True:
            return False  # whatever its cgroup says: the owner of the pod may have moved the process
        if (count := cgroup.count(note["cgroup"], note.get("cgroup_id", 0))) >= 0:
            return count == 0
        if note["shares_pid"]:
            try:
                pod, found = self.note_and_life("pods", note["pod"])
            except BrokenNote:
                pod = None
            if pod and pod["id"] == note["pod_id"] and not found.alive and found.file:
                return True
        return lives is False

    def idents(self) -> list[str]:
        """Return the ids of the members whose data there are."""
        try:
            return sorted(os.listdir(f"{self.lib}/upper"))
        except FileNotFoundError:
            return []

    def is_free(self, ident: str) -> bool:
        """Return whether the files beside this data prove that nothing uses it; a damaged note proves nothing."""
        try:
            committed = self.committed(ident)
            if committed is not None and committed["id"] == ident:
                return self.surely_ended(committed)
        except BrokenNote:
            return False
        now = life.ask(f"{self.upper(ident)}/{life.HELD}")
        return now.file is not None and not now.alive

    def is_unclear(self, ident: str) -> bool:
        """Return whether nobody holds this data, while the file that would say when it is free is lost or damaged."""
        try:
            committed = self.committed(ident)
        except BrokenNote as error:
            committed = None
            if not error.damaged:
                return False
        return committed is None and not life.ask(f"{self.upper(ident)}/{life.HELD}").alive

    def identify(self, pid: int) -> list[Any]:
        """Return what a note says about a process, for people and in case its monitor is killed.

        It is [pid, start time, boot id, PID namespace, time namespace].  The time is that of the initial time
        namespace, which is written as 0, unless this process can't tell the offset of its own from there.
        """
        start, (pids, times), offset = kernel.process_start(pid), kernel.our_view(), kernel.time_offset()
        if start and offset is not None:
            start, times = start - offset, 0
        return [pid, start, self.boot, pids, times]

    def pod(self, name: str) -> PodNote:
        """Return the note of a pod whose pause lives.

        Raise UnknownError, which lists the existing pods, or BrokenNote.
        """
        note, now = self.note_and_life("pods", name) if is_name(name) else (None, None)
        if note and now and now.kept and "pause" in note:
            believed: Any = note  # codec.SHAPES was checked
            pod: PodNote = believed
            return pod
        live = [n for n in self.names("pods") if self.life("pods", n).kept]
        known = "known pods: " + ", ".join(live) if live else "there are no pods"
        known += " of yours; for those that root made: sudo nsrun" if self.uid else ""
        if note and now and now.maker is not None:
            raise UnknownError(f"pod {name!r} is being made", hint=f"try again in a moment; {known}")
        if note:
            raise UnknownError(f"pod {name!r} is dead: its PID 1 has ended", hint=f"{known}; nsrun pod create {name}")
        raise UnknownError(f"no pod {name!r}", hint=f"{known}; nsrun pod create makes one")

    def pod_with_port(self, host_ip: str, port: int, protocol: str) -> str:
        """Return a hint that names the living pod which has this port of the host; "" when no note of ours has it."""
        from nsrun.spec.options import overlap

        for note in self.all("pods"):
            same = [p["host_ip"] for p in self.ports(note) if (p["host_port"], p["protocol"]) == (port, protocol)]
            if any(overlap(ip, host_ip) for ip in same) and self.pod_life(note).alive:
                spec = f"{port}/udp" if protocol == "udp" else str(port)
                return f"by pod {note['name']!r}: nsrun port rm {note['name']} {spec}, or another port"
        return ""

    def more_ports(self, pod: Note) -> list[tuple[str, Note, int]]:
        """Return (file, what it says, pid of the holder) of the sets of ports that a pod got later; each has a living holder."""
        end = f".{life.HELD}"
        try:
            entries = os.listdir(self.path("pods", pod["name"]))
        except (FileNotFoundError, NotADirectoryError):
            return []
        found = []
        for entry in sorted(entry for entry in entries if entry.startswith(PORTS) and entry.endswith(end)):
            path = self.path("pods", pod["name"], entry)
            holder, file = life.ask(path).keeper, path.removesuffix(end)
            if holder is not None and (note := self._load(file, "published")):
                found.append((file, note, holder))
        return found

    def ports(self, pod: Note) -> list[Port]:
        """Return all published ports of a pod."""
        return [*pod.get("ports", []), *(port for _, note, _ in self.more_ports(pod) for port in note["ports"])]

    def was_released(self, host_ip: str, port: int, protocol: str) -> bool:
        """Return whether a pod holds this port of the host which has given it back (`port rm`), and nobody else has it."""
        taken = self.pod_with_port(host_ip, port, protocol)
        for pod in self.all("pods") if not taken else ():
            for note in (pod, *(note for _, note, _ in self.more_ports(pod))):
                if any((p["host_port"], p["protocol"]) == (port, protocol) for p in note.get("released", ())):
                    return True
        return False

    def member(self, name: str) -> MemberNote:
        """Return the note of a member, whatever its status.

        Raise UnknownError, which lists the existing members, or BrokenNote.
        """
        note: Any = self.read("members", name) if is_name(name) else None
        if note:
            found: MemberNote = note
            return found
        matching: list[Any] = [
            found for found in self.all("members") if len(name) >= 4 and found["id"].startswith(name)
        ]
        if len(matching) == 1:
            found = matching[0]
            return found
        if matching:
            several = ", ".join(f"{found['id']} ({found['name']})" for found in matching[:8])
            raise BadInput(f"the ids of several members begin with {name!r}", hint=f"give more digits: {several}")
        known = ", ".join(self.names("members"))
        raise UnknownError(
            f"no member {name!r}",
            hint=f"known members: {known}" if known else "there are no members; nsrun join makes one",
        )

    def has_member(self, name: str) -> bool:
        """Return whether these notes have a member of this name or id, damaged or ambiguous ones included."""
        try:
            self.member(name)
        except UnknownError:
            return False
        except BadInput:
            pass
        return True

    def member_status(self, note: Note) -> tuple[str, int | None]:
        """Return (created|running|paused|restarting|stopping|stopped|lost, exit status), as the kernel says, not the note.

        restarting: it has ended with that status, and its keeper waits before it starts it again.
        lost: nobody keeps it, and nobody saw how it ended.
        """
        name = note["name"]
        code = self.exit_of(name)
        if code is not None:
            if note["restart"][:3] != "no:" and self._waits_to_restart(note, code[0]):
                return "restarting", code[0]
            return "stopped", code[0]
        now, found = self.note_and_life("members", name)
        if now and now["id"] == note["id"]:
            note = now
        if found.kept and note.get("process"):
            stop = self.marked("members", name, "stop")
            if found.keeper and not life.held_lives(found.keeper, note.get("pidfd", -1)):
                # its keeper is about to write `exit`, or to start it again
                return ("stopping" if stop or not is_to_restart(note, 0) else "restarting"), None
            return ("stopping" if stop else self._running(note)), None
        code = self.exit_of(name)
        if code:  # it has ended since, and its maker may be there for a moment longer
            return "stopped", code[0]
        if found.alive:
            return "created", None
        if note.get("process") and self._noted(note):  # its monitor was killed
            return ("stopping" if self.marked("members", name, "stop") else self._running(note)), None
        return "lost", None

    def began(self, note: Note) -> bool:
        """Return whether a member was ever started; if not, and its maker has been killed, it is as good as not there.

        What began is removed by a command only.
        """
        name = note["name"]
        return "process" in note and (self.marked("members", name, "started") or self.marked("members", name, "exit"))

    def _running(self, note: Note) -> str:
        """Return paused or running.  The mark says that somebody paused it, and the kernel whether it is frozen."""
        if not self.marked("members", note["name"], PAUSED):
            return "running"
        from nsrun.host import cgroup

        return "paused" if cgroup.is_frozen(note["cgroup"], note.get("cgroup_id", 0)) else "running"

    def _waits_to_restart(self, note: Note, code: int) -> bool:
        now, found = self.note_and_life("members", note["name"])
        known = now if now and now["id"] == note["id"] else note
        return found.kept and is_to_restart(known, code) and not self.marked("members", note["name"], "stop")

    def exit_of(self, name: str) -> tuple[int, str, bool] | None:
        """Return what the monitor recorded: (exit status, time, whether the OOM killer ended it)."""
        try:
            path = self.path("members", name, "exit")
            with kernel.Fd(open_regular(path)) as fd:
                fields = _read_bounded(fd, path, 4096).decode("ascii").split()
            code, when, *oom = fields
            return int(code), when, bool(oom)
        except (OSError, ValueError):
            return None

    def renew_exit(self, name: str) -> None:
        """Clear the exit status of a member that is started again; the space on disk stays, for the next status."""
        path = self.path("members", name, "exit.tmp")
        if is_there(self.path("members", name, "exit")):
            _put(self.path("members", name, "exit"), path)
            _fill(path, os.O_WRONLY)

    def record_exit(self, name: str, line: str) -> None:
        """Write the exit status that the monitor would have written."""
        path = self.path("members", name, "exit.tmp")
        with kernel.Fd(open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW)) as fd:
            os.write(fd, f"{line}\n".encode())
        _put(path, self.path("members", name, "exit"))

    # ---- writing -------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make what is missing in RUN."""
        if self.root and not self.uid:
            make_directory(self.root, 0o711)  # through it the owners of pods come to what is theirs; the rest is 0700
        for part in ("pods", "members", "tmp"):
            make_directory(f"{self.run}/{part}")
        os.chmod(self.run, 0o700)

    def _new(self, parent: str, make_parent: Callable[[], None]) -> tuple[str, int]:
        """Make a directory of a random name with a `held` that we hold; return (its path, the descriptor)."""
        for _ in range(100):
            path = f"{parent}/{new_id()}"
            fd = self._new_at(path, make_parent)
            if fd >= 0:
                return path, fd
        raise BadInput(f"{parent}: another process removes what nsrun makes there again and again")

    def _new_at(self, path: str, make_parent: Callable[[], None]) -> int:
        """Make the directory and its `held`; return the descriptor, or -1 when a sweep removed the empty directory."""
        try:
            try:
                os.mkdir(path, 0o700)
            except FileNotFoundError:
                make_parent()
                os.mkdir(path, 0o700)
            os.chmod(path, 0o700)
            return life.create(f"{path}/{life.HELD}")
        except FileNotFoundError:
            return -1

    def claim(
        self, kind: str, name: str, note: Note, files: Mapping[str, Note], give_way: Callable[[str, str], None]
    ) -> tuple[str, int]:
        """Take the name by one rename(2); return (the directory, the descriptor of its `held`, which we hold).

        `files` are written beside the note and removed with it.  `give_way` removes what has ended under this name.
        Raise BadInput when something that lives has the name.
        """
        what = kind[:-1]
        target = self.path(kind, name)
        tmp, fd = self._new(f"{self.run}/tmp", self.prepare)
        try:
            self._write(f"{tmp}/note", note)
            for file, content in files.items():
                self._write(f"{tmp}/{file}", content)
            if kind == "members":
                _fill(f"{tmp}/exit.tmp")
            else:
                os.close(open_regular(f"{tmp}/{LISTED}", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW))
            for attempt in (1, 2, 3):
                try:
                    os.rename(tmp, target)
                    if kind == "members":
                        self._list(note)
                    return target, fd
                except OSError as error:
                    if error.errno == ENOENT and attempt == 1:
                        self.prepare()
                    elif error.errno not in (EEXIST, ENOTEMPTY, ENOTDIR):
                        raise
                    elif attempt < 3:
                        give_way(kind, name)
        except BaseException:
            life.let_go(fd)
            remove_tree(tmp)
            raise
        life.let_go(fd)
        remove_tree(tmp)
        verb = "pod rm -f" if kind == "pods" else "rm -f"
        raise BadInput(f"{what} name {name!r} is taken", hint=f"choose another name, or: nsrun {verb} {name}")

    def make_data(self, ident: str, about: Note) -> int:
        """Make the directory for what a member will write, with its own `held`; return the descriptor of that."""
        for _ in range(100):
            fd = self._new_at(self.upper(ident), lambda: make_directory(f"{self.lib}/upper"))
            if fd >= 0:
                self._write(f"{self.upper(ident)}/about", about)
                return fd
        raise BadInput(f"another process removes {self.upper(ident)} again and again")

    def about(self, ident: str) -> Note | None:
        """Return what make_data wrote beside the data of a member; None when it is gone.  Raise BrokenNote."""
        return self._load(f"{self.upper(ident)}/about", "about")

    def commit_data(self, note: Note) -> None:
        """Write beside a member's data how to tell when it has ended.

        From now on only an explicit command removes the data.
        """
        self._write(f"{self.upper(note['id'])}/committed", self.committed_note(note))

    def committed_note(self, note: Note) -> Note:
        """Return what commit_data writes."""
        keys = ("id", "name", "pod", "pod_id", "cgroup", "cgroup_id", "shares_pid", "process")
        return {key: note[key] for key in keys}

    def committed(self, ident: str) -> Note | None:
        """Return what commit_data wrote; None when nothing was committed.  Raise BrokenNote."""
        return self._load(f"{self.upper(ident)}/committed", "committed")

    def _write(self, path: str, note: Note, mode: int = 0o600) -> None:
        with kernel.Fd(open_regular(f"{path}.tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)) as fd:
            os.fchmod(fd, mode)  # whatever the umask
            data = codec.encode(note)
            while data:
                data = data[os.write(fd, data) :]
        _put(f"{path}.tmp", path)

    def save(self, kind: str, name: str, note: Note, file: str = "note") -> None:
        self._write(self.path(kind, name, file), note)

    def mark(self, kind: str, name: str, file: str) -> None:
        """Make an empty file beside a note: `started`, `stop`, `ended`, `released`.

        Raise FileNotFoundError when the pod or member is gone.
        """
        path = self.path(kind, name, file)
        try:
            os.close(open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW))
        except OSError:
            if not self.marked(kind, name, file):  # anything of that name is a mark, whatever it is
                raise

    def mark_removing(self, name: str) -> None:
        """Record that this process is ending a pod.  Raise FileNotFoundError when the pod is gone."""
        self._write(self.path("pods", name, "removing"), {"process": self.identify(os.getpid())})

    def is_being_removed(self, name: str) -> bool:
        """Return whether a process is ending this pod; one that was killed half-way does not count."""
        try:
            if not self.marked("pods", name, "removing"):
                return False
            mark = self._load(self.path("pods", name, "removing"), "removing")
        except (OSError, BrokenNote):
            return False
        return mark is not None and self._process_lives(mark["process"]) is not False

    def unmark(self, kind: str, name: str, file: str) -> None:
        remove_tree(self.path(kind, name, file))

    def marked(self, kind: str, name: str, file: str) -> bool:
        """Return whether there is such a mark.  Raise OSError when that can't be known."""
        try:
            os.lstat(self.path(kind, name, file))
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def remove_directory(self, path: str, why: list[str] | None = None) -> bool:
        """Remove a directory with a `held`, and everything in it, if nobody holds it; return whether it is gone.

        `why` gets the reasons why it is not; there is none when somebody holds it.
        """
        why = [] if why is None else why
        if os.path.islink(path):  # it is not ours to go where it leads
            why += remove_tree(path)
            return not is_there(path)
        with life.Removal(f"{path}/{life.HELD}") as ours:
            if not ours:
                return False
            # rename it first, so that the name is free at once, however much there is
            if path.startswith(f"{self.run}/"):
                gone = f"{self.run}/tmp/{new_id()}"
                try:
                    os.rename(path, gone)
                except FileNotFoundError:
                    return True
                remove_tree(gone)
                return True
            try:
                written = [entry for entry in os.listdir(path) if entry not in (life.HELD, "about", "committed")]
            except OSError as error:
                if not is_there(path):
                    return True
                why.append(f"{path}: {os.strerror(error.errno or 0)}")
                return False
            for entry in written:
                why += self.remove_written(f"{path}/{entry}")
            # these go last, since they say whose the data is and that nobody uses it; should we be killed, `held` still
            # proves that
            if not any(is_there(f"{path}/{entry}") for entry in written):
                for entry in ("about", "committed", life.HELD, ""):
                    why += self.remove_written(f"{path}/{entry}".rstrip("/"))
            return not is_there(path)

    def remove_written(self, path: str) -> list[str]:
        """Remove a tree that members wrote; return what could not be removed, as texts.

        An ordinary user's tree holds files of subordinate ids, over which the user has power only in a user namespace.
        """
        left = remove_tree(path)
        if self.uid and os.geteuid() and is_there(path):
            from nsrun.host import userns

            userns.call(self.root, "_remove", path)
        return left if is_there(path) else []

    def make_owned(self, uid: int) -> None:
        """As root, make the directory in which a user finds what root made for them; only they can read it."""
        path = f"{self.owned}/{uid}"
        os.makedirs(self.owned, 0o711, exist_ok=True)
        os.chmod(self.owned, 0o711)
        os.makedirs(path, 0o700, exist_ok=True)
        allow(path, uid)  # even if the directory exists: its maker may have been killed before this call
        if self.root:  # without --root it is below XDG_DATA_HOME, which belongs to the user already
            users = f"{self.root}/users"
            os.makedirs(users, 0o711, exist_ok=True)
            os.chmod(users, 0o711)
            os.makedirs(f"{users}/{uid}", 0o700, exist_ok=True)
            os.chown(f"{users}/{uid}", uid, -1)

    def make_shown(self, uid: int, name: str) -> int:
        """As root, make the file whose locks show a pod's owner that it lives; return its descriptor, which we hold."""
        self.make_owned(uid)
        path = f"{self.owned}/{uid}/{name}.held"
        for _ in range(100):
            for old in (path, f"{self.owned}/{uid}/{name}.json"):  # of a pod of this name that has ended
                remove_tree(old)
            fd = life.create(path)
            if fd >= 0:
                os.fchmod(fd, 0o644)
                return fd
        raise BadInput(f"another process removes {path} again and again")

    def show(self, note: Note) -> None:
        """As root, let the owner of a pod read its note, which describes the `held` that is shown to them."""
        shown = f"{self.owned}/{note['user']['uid']}/{note['name']}"
        self._write(f"{shown}.json", {**note, **life.describe(f"{shown}.held")}, 0o644)

    def disown(self, note: Note) -> None:
        """As root, remove what the owner of a pod was shown."""
        if note.get("user") and not self.uid:
            shown = f"{self.owned}/{note['user']['uid']}/{note['name']}"
            for path in (f"{shown}.json", f"{shown}.held", self.door(note)):
                remove_tree(path)  # even something else that took the place of the file

    def disown_name(self, name: str) -> None:
        """As root, do the same as `disown` when the owner is not known."""
        try:
            uids = os.listdir(self.owned)
        except FileNotFoundError:
            return
        for uid in uids:
            if not life.ask(f"{self.owned}/{uid}/{name}.held").alive:
                self.disown({"user": {"uid": uid}, "name": name})

    def lock(self, name: str, seconds: float = 0.0) -> int:
        """Take an exclusive flock(2) on RUN/NAME.lock; return the descriptor.  The lock ends when that is closed.

        Raise Busy when another process holds it for `seconds`, by default `patience`.
        """
        import fcntl
        from time import monotonic, sleep

        path = f"{self.run}/{name}.lock"
        try:
            fd = open_regular(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
        except FileNotFoundError:
            self.prepare()
            return self.lock(name, seconds)
        seconds = seconds or self.patience
        end, step = monotonic() + seconds, 0.0005
        try:
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return fd
                except BlockingIOError:
                    pass
                if monotonic() >= end:
                    raise Busy(f"another process has held {path} for {seconds:g} s", hint=f"lslocks; fuser -v {path}")
                sleep(step)
                step = min(2 * step, 0.01)
        except BaseException:
            os.close(fd)
            raise


def _visible(pid: int, what: str) -> int:
    if pid:
        return pid
    raise BadInput(
        f"{what} lives, but this command runs in a PID namespace from which it is not visible",
        hint="run it in the machine's initial PID namespace: sudo nsenter --target 1 --all, or outside the container",
    )


def _read_bounded(fd: int, path: str, size: int = codec.MAX_BYTES) -> bytes:
    """Return the content of an open file of at most `size` bytes.  Raise OSError: EFBIG for a larger one."""
    from errno import EFBIG

    there = os.fstat(fd).st_size
    if there > size:
        raise OSError(EFBIG, "it is too large", path)
    return os.read(fd, there)  # not `size`: the memory for that takes longer than the reading


def _put(new: str, path: str) -> None:
    """Rename `new` to `path`, even if something else has taken the place of the file that it replaces."""
    try:
        os.rename(new, path)
    except (IsADirectoryError, NotADirectoryError, FileExistsError):
        remove_tree(path)
        os.rename(new, path)


def _fill(path: str, flags: int = os.O_WRONLY | os.O_CREAT | os.O_EXCL) -> None:
    """Write a file with space for one line, which can then be overwritten even when the disk is full."""
    with kernel.Fd(open_regular(path, flags | os.O_NOFOLLOW)) as fd:
        os.write(fd, SPACE)
