# SPDX-License-Identifier: Apache-2.0
"""The notes: what nsrun writes down about pods and members, and how it asks which of them live (sweep.py tells how it forgets).

Files are notes, the kernel is the truth.  Whoever keeps a pod or a member holds a record lock on the file `held` beside
its note (life.py), and nothing else proves that it lives, or that it does not: a pid in a note is for people.

A name is taken by one rename(2), without a lock, and given back under the lock `names`, by who can write-lock its `held`:
so what is removed is nobody's, and nothing that took the name since.

    RUN/pods/NAME/      held, note, started, ended, released, removing    (of a pod without root: door, forward.pid, forward.log)
    RUN/members/NAME/   held, note, config.json, options.json, started, log, log.1, exit, stop, attach
    RUN/tmp/ID/         a claim in the making, renamed into place; or what is being removed
    RUN/aside/          broken notes whose name somebody wanted
    LIB/upper/ID/       held, about, committed, upper, work, volume-N: what a member wrote, with a proof of life of its own
    LIB/volumes/NAME    named volumes
    OWNED/UID/NAME.json, .held, .door    of a pod that root made for a user: root writes, the user reads

RUN is /run/nsrun, LIB /var/lib/nsrun, OWNED /run/nsrun-owned.  Of a user, LIB is XDG_DATA_HOME/nsrun and RUN is LIB/run: not
XDG_RUNTIME_DIR, which is emptied when the user logs out, while pods go on.  --root DIR or NSRUN_ROOT moves all:
DIR/run, DIR/lib, DIR/owned; of a user, DIR/users/UID/run and …/lib.

Root and each user have notes of their own, and root never reads a user's: what it has to know of an owned pod, it wrote itself.
"""

from __future__ import annotations

import os
from errno import EEXIST, ENOENT, ENOTDIR, ENOTEMPTY

from nsrun import kernel
from nsrun.errors import BadInput, BrokenNote, Busy, UnknownError
from nsrun.schema import check_name, is_directory, is_name, is_there, open_regular
from nsrun.state import codec, life

#: Seconds that a lock of all names is waited for: who holds it removes something at most.  Of an owner for whom root asks, FOR_ROOT.
LOCK_SECONDS, FOR_ROOT = 120.0, 10.0

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from nsrun.state.life import Life

    Note = dict[str, Any]


#: What a member is as long as it has a process, or will have one again.
ALIVE = ("created", "running", "restarting", "stopping")


def is_to_restart(note: Note, code: int) -> bool:
    """Does a member that ended with this exit status, and that nobody stopped, begin once more?"""
    policy, _, retries = note["restart"].partition(":")
    bound = int(retries or 0)
    return policy == "always" or (policy == "on-failure" and code != 0 and (not bound or note["restarts"] < bound))


def new_id() -> str:
    return os.urandom(6).hex()


def timestamp() -> str:
    """Now, as the logs write it: UTC, RFC 3339."""
    import time

    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1e9):09d}Z"


def remove_tree(path: str) -> None:
    """Remove a tree of ours, whatever members put into it (host/trees.py).  What can't be removed stays, for the next sweep."""
    from nsrun.host.trees import remove

    remove(path)


def allow(path: str, uid: int) -> None:
    """Lets one user read and enter a directory of root's, and nobody else: acl(5), a group would hold others.

    OSError EOPNOTSUPP: the file system has no ACLs.
    """
    from struct import pack

    nobody = 0xFFFFFFFF
    entries = ((1, 7, nobody), (2, 5, uid), (4, 0, nobody), (16, 5, nobody), (32, 0, nobody))
    data = pack("<I", 2) + b"".join(pack("<HHI", *entry) for entry in entries)
    os.setxattr(path, "system.posix_acl_access", data)


def own_proc() -> None:
    """BadInput: /proc is not of this process's own PID namespace: a pid that it tells would be a stranger's here."""
    try:
        with open("/proc/self/status", "rb", buffering=0) as file:
            text = file.read(4096)
    except OSError as error:
        raise BadInput(
            f"/proc: {error.strerror}: nsrun needs it", hint="mount -t proc proc /proc", errno=error.errno or 0
        ) from None
    # a number for each PID namespace from that of the procfs down to ours: proc_pid_status(5)
    if len(text.partition(b"\nNSpid:")[2].partition(b"\n")[0].split()) > 1:
        raise BadInput(
            "/proc shows another PID namespace than the one that this process is in: its pids would be strangers' here",
            hint="unshare --mount-proc; or: mount -t proc proc /proc",
        )


def make_directory(path: str) -> None:
    """Make a directory, and those above it that are missing, each with mode 0700 whatever the umask is."""
    if not path or os.path.isdir(path):
        return
    make_directory(os.path.dirname(path))
    try:
        os.mkdir(path, 0o700)
        os.chmod(path, 0o700)
    except FileExistsError:
        if not os.path.isdir(path):
            raise


class State:
    """The notes below one root directory."""

    def __init__(self, root: str = "") -> None:
        """BadInput: /proc can't be relied on here."""
        own_proc()
        root = root or os.environ.get("NSRUN_ROOT", "")
        self.uid = os.geteuid()  # whose notes these are; a process that has entered a user namespace is 0 of it
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
                        f"HOME={os.environ.get('HOME')!r} is no absolute path", hint="set HOME, or --root DIR"
                    )
                self.run, self.lib = f"{data}/nsrun/run", f"{data}/nsrun"
        self.owned = f"{owned}/{self.uid}" if self.uid else owned
        self.root = root
        self.broken: dict[str, str] = {}  # notes that could not be read, and why
        self._boot = ""
        self.patience = LOCK_SECONDS

    @property
    def boot(self) -> str:
        if not self._boot:
            self._boot = kernel.boot_id()
        return self._boot

    def path(self, kind: str, name: str, file: str = "") -> str:
        """Return the path of a thing's directory, or of a file in it.  Raise UsageError for what can't be a name: "" or "..", say."""
        check_name(name, kind[:-1])
        return f"{self.run}/{kind}/{name}/{file}" if file else f"{self.run}/{kind}/{name}"

    def upper(self, ident: str) -> str:
        return f"{self.lib}/upper/{ident}"

    # ---- reading -------------------------------------------------------------------------------------

    def names(self, kind: str) -> list[str]:
        """The names that are taken.  OSError: the directory can't be read, which is no absence."""
        try:
            found = set(filter(is_name, os.listdir(f"{self.run}/{kind}")))
        except FileNotFoundError:
            found = set()
        if kind == "pods" and self.uid:
            found.update(self._owned_names())
        return sorted(found)

    def _owned_names(self) -> list[str]:
        """The living pods that root made for this user."""
        try:
            files = os.listdir(self.owned)
        except (FileNotFoundError, PermissionError):  # none, or made by another
            return []
        found = [file[:-5] for file in files if file.endswith(".json")]
        return [name for name in found if life.ask(f"{self.owned}/{name}.held").alive]

    def read(self, kind: str, name: str, file: str = "note") -> Note | None:
        """A note; None when there is none.  BrokenNote: there is one, and it can't be read or believed, or it was lost."""
        found = self._load(self.path(kind, name, file), kind if file == "note" else file)
        if found is None and kind == "pods" and self.uid and file == "note":
            found = self._load(f"{self.owned}/{name}.json", kind)
        if found is None and file == "note" and is_there(self.path(kind, name)):
            # a name is taken and given back together with its note, by one rename(2): it has just been, or its note was lost
            found = self._load(self.path(kind, name, file), kind)
            if found is None and is_there(self.path(kind, name)):
                raise BrokenNote(self.path(kind, name, file), "it is gone")
        if found and file == "note" and found["name"] != name:
            raise BrokenNote(self.path(kind, name), f"it is the note of {found['name']!r}")
        return found

    def _load(self, path: str, shape: str) -> Note | None:
        try:
            data = _read_bounded(path)
        except OSError as error:
            if error.errno in (ENOENT, ENOTDIR):
                return None
            raise BrokenNote(path, f"it can't be read: {os.strerror(error.errno or 0)}", error.errno or 0) from None
        try:
            return codec.decode(data, codec.SHAPES[shape])
        except ValueError as error:
            raise BrokenNote(path, str(error)) from None

    def notes_of(self, kind: str, name: str) -> tuple[str, ...]:
        """Return the paths that the note of a thing may have: of a pod that root made for us, root shows it elsewhere."""
        return self.path(kind, name), self.path(kind, name, "note"), f"{self.owned}/{name}.json"

    def try_read(self, kind: str, name: str, file: str = "note") -> Note | None:
        """The same, for lists: a broken one is left out, and put down in `broken`."""
        try:
            return self.read(kind, name, file)
        except BrokenNote as error:
            self.broken[error.path] = error.why
            return None

    def all(self, kind: str) -> list[Note]:
        """Every note that can be read."""
        found = (self.try_read(kind, name) for name in self.names(kind))
        return [note for note in found if note]

    def members_of(self, pod: Note) -> list[Note]:
        """Return the notes of the members of this pod, also of those that have ended."""
        return [note for note in self.all("members") if note["pod_id"] == pod["id"]]

    def door(self, note: Note) -> str:
        """The socket through which the owner of this pod starts something in its cgroup (csrc/door.c)."""
        if not self.uid:
            return f"{self.owned}/{note['user']['uid']}/{note['name']}.door"
        own = self.path("pods", note["name"], "door")
        return own if is_there(own) else f"{self.owned}/{note['name']}.door"

    # ---- what lives ----------------------------------------------------------------------------------

    def held(self, kind: str, name: str) -> str:
        """The file whose locks prove that it lives."""
        own, shown = self.path(kind, name, life.HELD), f"{self.owned}/{name}.held"
        theirs = kind == "pods" and self.uid and is_there(shown)
        return shown if theirs and not is_there(self.path(kind, name, "note")) else own  # as read() chooses

    def life(self, kind: str, name: str) -> Life:
        """Who keeps it.  OSError: it can't be asked, which is no death."""
        return life.ask(self.held(kind, name))

    def look(self, kind: str, name: str) -> tuple[Note | None, Life]:
        """The note of a thing, and its life: of the same thing, whoever takes its name meanwhile.  BrokenNote."""
        for _ in range(100):
            now = self.life(kind, name)
            note = self.read(kind, name)
            if life.identity(self.held(kind, name)) == now.file:
                break
        if note and kind == "pods" and not now.alive and "pause" in note and not self._lock_proves(note, now):
            now.keeper = None if self.marked("pods", name, "ended") else self._keeper_by_number(note)
        return note, now

    def _lock_proves(self, note: Note, now: Life) -> bool:
        """Does it prove the end of a pod that nobody holds the file that was asked about?

        Not when that file was lost or replaced; and not of a pod that root made for a user, whose nsrun-hold may have been killed:
        its pause goes on without what root lent it, and locks only what the owner can open.
        """
        if note.get("user") and not self.uid:
            return False
        return now.file is not None and note.get("held", now.file[1]) == now.file[1]

    def _keeper_by_number(self, note: Note) -> int | None:
        """The pid of a pause that no lock tells of, 0 when it can't be seen from here, None when it has ended."""
        from nsrun.host import cgroup

        lives = self._pause_lives(note)
        if lives is None and cgroup.count(note["cgroup"], note.get("cgroup_id", 0)) >= 0:
            inside = cgroup.pids(f"{note['cgroup']}/pause")  # made in another namespace: its number is another here
            return inside[0] if len(inside) == 1 else 0 if inside else None
        return int(note["pause"][0]) if lives else None if lives is False else 0

    def _pause_lives(self, note: Note) -> bool | None:
        """What the number and start time of a noted pause say: one that has closed its files only waits for its children."""
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
        """The life of the pod of this note; nobody's when another pod has its name."""
        now, found = self.look("pods", note["name"])
        return found if now and now["id"] == note["id"] else life.Life(None)

    def process(self, note: Note) -> tuple[int, int]:
        """(pidfd, pid) of a member's first process; (-1, 0) when it has ended, or is not there yet.

        Its monitor has a pidfd of it.  When the monitor was killed, the note's pid counts if its start time, boot and PID
        namespace fit; that they do not proves nothing.  BadInput: it lives, and is not visible from here.
        """
        now, found = self.look("members", note["name"])
        if now is None or now["id"] != note["id"] or "process" not in now:
            return -1, 0
        if found.keeper is not None:
            if found.keeper == os.getpid() and now["id"] in life.children:
                return os.dup(life.children[now["id"]]), int(now["process"][0])
            return life.open_held(_visible(found.keeper, f"member {note['name']!r}"), now.get("pidfd", -1))
        fd = -1 if self.exit_of(now["name"]) else self.noted_process(now)
        return (fd, int(now["process"][0])) if fd >= 0 else (-1, 0)

    def pause(self, note: Note) -> tuple[int, int]:
        """(pidfd, pid) of a pod's pause; (-1, 0) when it has ended.  BadInput: it lives, and is not visible from here."""
        now, found = self.look("pods", note["name"])
        if now is None or now["id"] != note["id"]:
            return -1, 0
        what = f"pod {note['name']!r}"
        if found.holder is not None:  # of an owned pod, root believes only what its own nsrun-hold has
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

    def noted_process(self, note: Note) -> int:
        """A pidfd of the process that a note, or what stands beside the data, tells of, when it surely is that one; -1: it is not."""
        fd = kernel.pidfd_of(note["process"][0]) if self._noted(note) else -1
        if fd >= 0 and not self._noted(note):  # asked with the pidfd in hand
            os.close(fd)
            fd = -1
        return fd

    def _noted(self, note: Note) -> bool:
        return "process" in note and self._process_lives(note["process"]) is True

    def _process_lives(self, process: list[Any]) -> bool | None:
        """What the number and start time of a noted process say (`identify`); None: nothing, from here."""
        try:
            pid, start, boot, *view = process
        except ValueError:
            return None
        ours = kernel.our_view()
        same = view[:1] == ours[:1]
        now = kernel.process_start(pid) if same else 0
        if same and not now:
            return None if kernel.is_hidden(pid) else False  # nobody has the number: whatever boot it was
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
            return None  # of an unknown time namespace
        return abs(now - offset - start) <= 1  # each number was rounded by itself

    def surely_ended(self, note: Note) -> bool:
        """Is it proven that nothing of a member runs any more?  Only then what it wrote may go.

        Its monitor proves that it lives; that it has ended is proven by the exit status that the monitor wrote.  When nobody saw
        the end, by its cgroup, in which nothing is; by the end of its pod, whose PID 1 takes all with it; or by the number and
        start time of its process, where they mean the same as in the note.  `note`: or what stands beside the data.
        """
        from nsrun.host import cgroup

        name, now = note["name"], None
        if life.ask(f"{self.upper(note['id'])}/{life.HELD}").alive:
            return False
        if is_directory(self.path("members", name)):
            try:
                now, found = self.look("members", name)
            except BrokenNote:
                found = self.life("members", name)  # a damaged note, perhaps of this member
            if found.alive and (now is None or now["id"] == note["id"]):
                return False
        if "process" not in note:
            return True
        if now and now["id"] == note["id"] and self.exit_of(name):
            return True
        if (lives := self._process_lives(note["process"])) is True:
            return False  # whatever its cgroup says: its pod's owner may have moved it
        if (count := cgroup.count(note["cgroup"], note.get("cgroup_id", 0))) >= 0:
            return count == 0
        if note["shares_pid"]:
            try:
                pod, found = self.look("pods", note["pod"])
            except BrokenNote:
                pod = None
            if pod and pod["id"] == note["pod_id"] and not found.alive and found.file:
                return True
        return lives is False

    def idents(self) -> list[str]:
        """Whose data there are."""
        try:
            return sorted(os.listdir(f"{self.lib}/upper"))
        except FileNotFoundError:
            return []

    def is_free(self, ident: str) -> bool:
        """Is it proven that nothing uses this data?  What is said of that lies beside them; a damaged note proves nothing."""
        try:
            committed = self.committed(ident)
            if committed is not None and committed["id"] == ident:
                return self.surely_ended(committed)
        except BrokenNote:
            return False
        now = life.ask(f"{self.upper(ident)}/{life.HELD}")
        return now.file is not None and not now.alive

    def is_unclear(self, ident: str) -> bool:
        """Does nobody hold this data, and is what would tell when they are free lost or damaged?"""
        try:
            committed = self.committed(ident)
        except BrokenNote as error:
            committed = None
            if not error.damaged:
                return False
        return committed is None and not life.ask(f"{self.upper(ident)}/{life.HELD}").alive

    def identify(self, pid: int) -> list[Any]:
        """What a note says of a process, for people and for the case that its monitor is killed.

        [pid, start time, boot id, PID namespace, time namespace]; the time is that of the machine's own time namespace, and 0
        stands for that, unless this process can't tell how far its own is from there.
        """
        start, (pids, times), offset = kernel.process_start(pid), kernel.our_view(), kernel.time_offset()
        if start and offset is not None:
            start, times = start - offset, 0
        return [pid, start, self.boot, pids, times]

    def pod(self, name: str) -> Note:
        """The note of a pod whose pause lives; UnknownError lists the pods there are.  BrokenNote."""
        note, now = self.look("pods", name) if is_name(name) else (None, None)
        if note and now and now.kept and "pause" in note:
            return note
        live = [n for n in self.names("pods") if self.life("pods", n).kept]
        known = "known pods: " + ", ".join(live) if live else "there are no pods"
        known += " of yours; for root's: sudo nsrun" if self.uid else ""
        if note and now and now.maker is not None:
            raise UnknownError(f"pod {name!r} is being made", hint=f"try again in a moment; {known}")
        if note:
            raise UnknownError(f"pod {name!r} is dead: its PID 1 has ended", hint=f"{known}; nsrun pod create {name}")
        raise UnknownError(f"no pod {name!r}", hint=f"{known}; nsrun pod create makes one")

    def pod_with_port(self, host_ip: str, port: int) -> str:
        """Return a hint that names the living pod which has a port of this host; "": none of these notes tells of one."""
        for note in self.all("pods"):
            same = [p["host_ip"] for p in note.get("ports", ()) if p["host_port"] == port]
            if any(ip in (host_ip, "0.0.0.0") or host_ip == "0.0.0.0" for ip in same) and self.pod_life(note).alive:
                return f"by pod {note['name']!r}: nsrun pod rm -f {note['name']}, or another port"
        return ""

    def member(self, name: str) -> Note:
        """The note of a member, whatever its state; UnknownError lists the members there are.  BrokenNote."""
        note = self.read("members", name) if is_name(name) else None
        if note:
            return note
        matching = [found for found in self.all("members") if len(name) >= 4 and found["id"].startswith(name)]
        if len(matching) == 1:
            return matching[0]
        if matching:
            several = ", ".join(f"{found['id']} ({found['name']})" for found in matching[:8])
            raise BadInput(f"{name!r} is the beginning of several members' ids", hint=f"give more digits: {several}")
        known = ", ".join(self.names("members"))
        raise UnknownError(
            f"no member {name!r}",
            hint=f"known members: {known}" if known else "there are no members; nsrun join makes one",
        )

    def member_status(self, note: Note) -> tuple[str, int | None]:
        """(created|running|restarting|stopping|stopped|lost, exit status): asked from the kernel, not from the note.

        restarting: it has ended with that status, and who keeps it waits before it begins once more.
        lost: nobody keeps it, and nobody saw how it ended.
        """
        name = note["name"]
        code = self.exit_of(name)
        if code is not None:
            if note["restart"][:3] != "no:" and self._waits_to_restart(note, code[0]):
                return "restarting", code[0]
            return "stopped", code[0]
        now, found = self.look("members", name)
        if now and now["id"] == note["id"]:
            note = now
        if found.kept and note.get("process"):
            stop = self.marked("members", name, "stop")
            if found.keeper and not life.held_lives(found.keeper, note.get("pidfd", -1)):
                # its keeper is about to write `exit`, or to start it once more
                return ("stopping" if stop or not is_to_restart(note, 0) else "restarting"), None
            return ("stopping" if stop else "running"), None
        if found.alive:
            return "created", None
        code = self.exit_of(name)
        if code:
            return "stopped", code[0]
        if note.get("process") and self._noted(note):  # its monitor was killed
            return ("stopping" if self.marked("members", name, "stop") else "running"), None
        return "lost", None

    def _waits_to_restart(self, note: Note, code: int) -> bool:
        now, found = self.look("members", note["name"])
        known = now if now and now["id"] == note["id"] else note
        return found.kept and is_to_restart(known, code) and not self.marked("members", note["name"], "stop")

    def exit_of(self, name: str) -> tuple[int, str, bool] | None:
        """What the monitor recorded: (exit status, time, was it killed for memory)."""
        try:
            words = _read_bounded(self.path("members", name, "exit"), 4096).decode("ascii").split()
            code, when, *oom = words
            return int(code), when, bool(oom)
        except (OSError, ValueError):
            return None

    def renew_exit(self, name: str) -> None:
        """A member begins once more: the room of its last exit status is the room of the next."""
        path = self.path("members", name, "exit.tmp")
        if is_there(self.path("members", name, "exit")):
            _put(self.path("members", name, "exit"), path)
            _fill(path, os.O_WRONLY)

    def record_exit(self, name: str, line: str) -> None:
        """What the monitor would have written."""
        path = self.path("members", name, "exit.tmp")
        with kernel.Fd(open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW)) as fd:
            os.write(fd, f"{line}\n".encode())
        _put(path, self.path("members", name, "exit"))

    # ---- writing -------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make what is missing of RUN."""
        for part in ("pods", "members", "tmp"):
            make_directory(f"{self.run}/{part}")
        os.chmod(self.run, 0o700)

    def _new(self, parent: str, make_parent: Callable[[], None]) -> tuple[str, int]:
        """A new directory of a random name with a `held` that we hold: (its path, the descriptor)."""
        for _ in range(100):
            path = f"{parent}/{new_id()}"
            fd = self._new_at(path, make_parent)
            if fd >= 0:
                return path, fd
        raise BadInput(f"{parent}: what is made there is removed again and again")

    def _new_at(self, path: str, make_parent: Callable[[], None]) -> int:
        """-1: a sweep came between: the directory was empty, and nobody's."""
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
        self, kind: str, name: str, note: Note, files: dict[str, Note], give_way: Callable[[str, str], None]
    ) -> tuple[str, int]:
        """Take the name by one rename(2); return (the directory, the descriptor of its `held`, which we hold).

        `files` lie beside the note, and go with it.  `give_way` removes what is dead of the name.  BadInput: somebody living has it.
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
            for attempt in (1, 2, 3):
                try:
                    os.rename(tmp, target)
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
        """The directory of what a member will write, with a proof of life of its own; return the descriptor of its `held`."""
        for _ in range(100):
            fd = self._new_at(self.upper(ident), lambda: make_directory(f"{self.lib}/upper"))
            if fd >= 0:
                self._write(f"{self.upper(ident)}/about", about)
                return fd
        raise BadInput(f"{self.upper(ident)} is removed again and again")

    def about(self, ident: str) -> Note | None:
        """What stands beside the data of a member; None when it is gone.  BrokenNote."""
        return self._load(f"{self.upper(ident)}/about", "about")

    def commit_data(self, note: Note) -> None:
        """From now on only its user's word removes what this member has written, and what says when it has ended lies beside."""
        keys = ("id", "name", "pod", "pod_id", "cgroup", "cgroup_id", "shares_pid", "process")
        self._write(f"{self.upper(note['id'])}/committed", {key: note[key] for key in keys})

    def committed(self, ident: str) -> Note | None:
        """What commit_data wrote; None: nothing was committed.  BrokenNote."""
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
        """Make an empty file beside a note: `started`, `stop`, `ended`, `released`.  FileNotFoundError: the thing is gone."""
        path = self.path(kind, name, file)
        try:
            os.close(open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW))
        except OSError:
            if not self.marked(kind, name, file):  # whatever is there marks as well
                raise

    def mark_removing(self, name: str) -> None:
        """Say that this process is ending a pod.  FileNotFoundError: it is gone."""
        self._write(self.path("pods", name, "removing"), {"process": self.identify(os.getpid())})

    def is_being_removed(self, name: str) -> bool:
        """Is somebody ending this pod?  One that was killed half-way is not."""
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
        """Is there such a mark?  OSError: it can't be known."""
        try:
            os.lstat(self.path(kind, name, file))
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def remove_directory(self, path: str) -> bool:
        """Remove a directory with a `held`, and all that is in it, if nobody holds it; return whether it is gone."""
        with life.Removal(f"{path}/{life.HELD}") as ours:
            if not ours:
                return False
            if path.startswith(f"{self.run}/"):  # the name is free at once, however much there is
                gone = f"{self.run}/tmp/{new_id()}"
                try:
                    os.rename(path, gone)
                except FileNotFoundError:
                    return True
                remove_tree(gone)
                return True
            try:
                written = [entry for entry in os.listdir(path) if entry not in (life.HELD, "about", "committed")]
            except OSError:
                return not is_there(path)
            for entry in written:
                self.remove_written(f"{path}/{entry}")
            # what tells whose these are, and that nobody uses them, goes last: `held` proves what is left of that when we are killed
            if not any(is_there(f"{path}/{entry}") for entry in written):
                for entry in ("about", "committed", life.HELD):
                    self.remove_written(f"{path}/{entry}")
                self.remove_written(path)
            return not is_there(path)

    def remove_written(self, path: str) -> None:
        """Remove a tree that members wrote; of a user, it holds files of ids that are the user's only in a user namespace."""
        remove_tree(path)
        if self.uid and os.geteuid() and is_there(path):
            from nsrun.host import userns

            userns.call(self.root, "_remove", path)

    def make_owned(self, uid: int) -> None:
        """Root: the directory in which a user finds what root made for them; they read it, nobody else does, nobody writes."""
        path = f"{self.owned}/{uid}"
        os.makedirs(self.owned, 0o711, exist_ok=True)
        os.chmod(self.owned, 0o711)
        os.makedirs(path, 0o700, exist_ok=True)
        allow(path, uid)  # also when it is there: who made it may have been killed before this
        if self.root:  # elsewhere it is below XDG_DATA_HOME, which is the user's already
            users = f"{self.root}/users"
            os.makedirs(users, 0o711, exist_ok=True)
            os.chmod(users, 0o711)
            os.makedirs(f"{users}/{uid}", 0o700, exist_ok=True)
            os.chown(f"{users}/{uid}", uid, -1)

    def make_shown(self, uid: int, name: str) -> int:
        """Root: the file by whose locks the owner of a pod knows that it lives; return its descriptor, which we hold."""
        self.make_owned(uid)
        path = f"{self.owned}/{uid}/{name}.held"
        for _ in range(100):
            remove_tree(path)  # of a pod of this name that has ended
            fd = life.create(path)
            if fd >= 0:
                os.fchmod(fd, 0o644)
                return fd
        raise BadInput(f"{path} is removed again and again")

    def show(self, note: Note) -> None:
        """Root: the owner of a pod gets to read its note, which speaks of the `held` that they see."""
        shown = f"{self.owned}/{note['user']['uid']}/{note['name']}"
        found = life.identity(f"{shown}.held")
        self._write(f"{shown}.json", {**note, "held": found[1] if found else 0}, 0o644)

    def disown(self, note: Note) -> None:
        """Root: what the owner of a pod was shown goes."""
        if note.get("user") and not self.uid:
            shown = f"{self.owned}/{note['user']['uid']}/{note['name']}"
            for path in (f"{shown}.json", f"{shown}.held", self.door(note)):
                remove_tree(path)  # also what took the place of one of them

    def disown_name(self, name: str) -> None:
        """Root: the same when it is not known whose it was."""
        try:
            uids = os.listdir(self.owned)
        except FileNotFoundError:
            return
        for uid in uids:
            if not life.ask(f"{self.owned}/{uid}/{name}.held").alive:
                self.disown({"user": {"uid": uid}, "name": name})

    def lock(self, name: str, seconds: float = 0.0) -> int:
        """An exclusive flock(2) on RUN/NAME.lock; close the descriptor to let go.  It goes with its holder.

        Busy: somebody holds it for `seconds`, or else `patience`.
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
                    raise Busy(f"another process holds {path} for {seconds:g} s", hint=f"lslocks; fuser -v {path}")
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
        hint="run it in the machine's own PID namespace: sudo nsenter --target 1 --all, or outside of the container",
    )


def _read_bounded(path: str, size: int = codec.MAX_BYTES) -> bytes:
    """A regular file of at most so many bytes.  OSError EFBIG, EINVAL for anything else there: a FIFO would hang us."""
    from errno import EFBIG

    with kernel.Fd(open_regular(path)) as fd:
        if os.fstat(fd).st_size > size:
            raise OSError(EFBIG, "it is too large", path)
        return os.read(fd, size)


def _put(new: str, path: str) -> None:
    """rename(2), whatever took the place of the file of ours that it replaces."""
    try:
        os.rename(new, path)
    except (IsADirectoryError, NotADirectoryError, FileExistsError):
        remove_tree(path)
        os.rename(new, path)


def _fill(path: str, flags: int = os.O_WRONLY | os.O_CREAT | os.O_EXCL) -> None:
    """A file with room for a line, to be overwritten when the disk is full."""
    with kernel.Fd(open_regular(path, flags | os.O_NOFOLLOW)) as fd:
        os.write(fd, b" " * 95 + b"\n")
