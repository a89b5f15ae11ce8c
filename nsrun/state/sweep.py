# SPDX-License-Identifier: Apache-2.0
"""Garbage collection: commands remove what a crash or a kill -9 left behind.

The kernel itself collects what a descriptor or a process holds: namespaces, mounts, ports, the table.  What has a name
stays: a cgroup directory, a note, what a member wrote, an idle bridge.

There are three rules.  A sweep touches only what nobody holds (life.py), and leaves alone what can't be asked or read.
It removes entirely what was never finished; of a pod that had started, it removes what the kernel has, and keeps the
notes, logs, exit statuses and data until `pod rm`, `pod prune` or the next pod of that name.  A sweep follows a command
that is finished: it goes on whatever it meets, and never changes the command's exit status.

A command must not get slower with what others run.  So it looks only at the next LOOKED_AT pods, members, data and
claims in turn, from where the command before it has stopped, and the locks of those are asked in C; everything else
here is for the few that nobody is seen to hold.  `pod prune` looks at all.
"""

from __future__ import annotations

import os
from _struct import pack, unpack

from nsrun import kernel
from nsrun._protocol import REPLAY, REPLAY_BYTES
from nsrun.errors import BadInput, BrokenNote, Busy, NsrunError
from nsrun.schema import is_directory, is_name, is_there, open_regular
from nsrun.state import State, life, new_id, remove_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nsrun.state import Note


#: How many pods, and as many members, data and claims, one command looks at; and how many of them are looked into
#: because no lock shows that they live.  Those are mostly members that have ended and wait for `nsrun rm`.
LOOKED_AT, LOOKED_INTO = 32, 16
#: Bytes of RUN/turn, which says in eight for each directory where the next command begins.
_MOST = 64


class Sweeper:
    """Removes what has ended; `removed` says what that was, and `troubles` what was in the way, for people."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._busy = False  # another process holds the lock `names`: the next command will do what needs it
        self.removed: list[str] = []
        self.troubles: list[str] = []

    def all(self) -> list[str]:
        """Sweep everything below this root; return what was removed, for people."""
        return self._sweep(self._entries)

    def some(self) -> list[str]:
        """Do the same for the part of it whose turn it is, as every command does."""
        turn = _Turn(f"{self.state.run}/turn")

        def next_of(path: str) -> list[str]:
            try:
                return turn.look(path)
            except FileNotFoundError:
                return []
            except OSError as error:
                self.troubles.append(f"{path}: {error.strerror}")
                return []

        found = self._sweep(next_of)
        turn.save()
        return found

    def one(self, ident: str) -> None:
        """Sweep what was left under this id by an nsrun that could not make a member or pod; what is held stays."""
        if is_name(ident):
            self._try(f"claim {ident}", self._claim, ident)
            self._try(f"upper {ident}", self._data, ident)
            if not self._is_any_living():
                self._try("cgroups", self._base)

    def _sweep(self, entries: Callable[[str], list[str]]) -> list[str]:
        state = self.state
        buried = False
        for name in filter(is_name, entries(f"{state.run}/pods")):
            buried = self._try(f"pod {name}", self._pod, name) or buried
        for name in filter(is_name, entries(f"{state.run}/members")):
            self._try(f"member {name}", self._member, name)
        for ident in entries(f"{state.lib}/upper"):
            self._try(f"upper {ident}", self._data, ident)
        for entry in filter(is_name, entries(f"{state.run}/tmp")):
            self._try(f"claim {entry}", self._claim, entry)
        if buried or not self._is_any_living():
            self._try("cgroups", self._base)
        if not state.uid:
            self._try("bridge", self._bridge, "nsrun0", buried)
            if is_directory(f"{state.lib}/networks"):
                from nsrun.state import networks

                for name in networks.names(state):
                    self._try(f"network {name}", self._network, name, buried)
        return self.removed

    def _try(self, what: str, action: Callable[..., object], *args: object) -> bool:
        try:
            return bool(action(*args))
        except BrokenNote as error:
            self.state.broken[error.path] = error.why
        except Busy as error:
            if not self._busy:
                self.troubles.append(f"names: {error.message}")
            self._busy = True
        except (OSError, NsrunError) as error:
            self.troubles.append(f"{what}: {str(error).partition(chr(10))[0]}")
        return False

    def _entries(self, path: str) -> list[str]:
        try:
            return sorted(os.listdir(path))
        except FileNotFoundError:
            return []
        except OSError as error:
            self.troubles.append(f"{path}: {error.strerror}")
            return []

    def _names(self, kind: str) -> list[str]:
        return list(filter(is_name, self._entries(f"{self.state.run}/{kind}")))

    def _is_living(self, name: str) -> bool:
        try:
            return not self.state.marked("pods", name, "released")
        except OSError:
            return True  # it can't be asked, which does not mean that it has ended

    def _is_any_living(self) -> bool:
        try:
            with os.scandir(f"{self.state.run}/pods") as entries:
                return any(is_name(entry.name) and self._is_living(entry.name) for entry in entries)
        except OSError:
            return False

    def _base(self) -> None:
        from nsrun.host import cgroup

        cgroup.remove_empty(self.state.uid)

    def _network(self, name: str, buried: bool) -> None:
        from nsrun.state import networks

        if record := networks.read(self.state, name):
            self._bridge(record["bridge"], buried, record)

    def _bridge(self, name: str, buried: bool, record: Note | None = None) -> None:
        """Remove a bridge if it is idle; after a pod was buried, wait for its veth, which takes a moment to die."""
        if not os.path.exists(f"/proc/sys/net/ipv4/conf/{name}") or (kernel.has_carrier(name) and not buried):
            return
        from nsrun.host import bridges
        from nsrun.state import networks

        known = set()
        for pod in filter(self._is_living, self._names("pods") if buried else ()):
            if note := self.state.try_read("pods", pod):
                known.add(note["network"].get("veth", ""))
        bridge = networks.bridge_of(record) if record else bridges.Bridge()
        patience = 0.5 if buried else 0.0

        def remove() -> None:
            try:
                bridges.remove_idle_bridge(lambda: self.state.lock(networks.LOCK, QUICKLY), bridge, known, patience)
            except Busy:
                pass  # another process is at it, and the next command looks again

        self.state.after(remove)

    # ---- pods ------------------------------------------------------------------------------------------

    def _pod(self, name: str) -> bool:
        """Release or remove a pod that nobody keeps; return whether there was something to do."""
        state = self.state
        if state.marked("pods", name, "released") or state.life("pods", name).alive:
            return False  # what lives costs no reading of its note
        _, now = state.note_and_life("pods", name)  # raises BrokenNote, from which nothing is concluded
        if now.alive or now.file is None:
            return False
        with self._quickly():
            note, now = state.note_and_life(
                "pods", name
            )  # another sweep may have removed it, and another pod taken the name
            if now.alive or now.file is None:
                return False
            if not (state.marked("pods", name, "started") or (note and self._has_had_members(note))):
                return self._remove_pod(name, note)
            if note:
                state.mark("pods", name, "ended")  # the proof may go with what is released
                self._release(note)
                state.mark("pods", name, "released")
        return True

    def _quickly(self) -> _names_lock:
        """Return the lock for a sweep, which must not take long.  After the first timeout, raise Busy at once."""
        if self._busy:
            raise Busy("another process holds the lock of names")
        return _names_lock(self.state, QUICKLY)

    def _has_had_members(self, note: Note) -> bool:
        """Return whether the pod has a member; then it had been started, whatever became of the mark."""
        return bool(self.state.members_of(note))

    def _release(self, note: Note) -> None:
        """Remove what the kernel has of a pod that has ended, and what its owner was shown; keep its notes and data."""
        from nsrun.host import cgroup

        state = self.state
        if state.uid:
            # otherwise root made the pod, and root removes its cgroup
            if is_directory(state.path("pods", note["name"])):
                cgroup.remove_member(note["cgroup"], note.get("cgroup_id", 0))
                self.end_forwarder(note["name"])
            return
        if note["network"].get("veth"):
            from nsrun.host import net

            if note.get("user"):
                net.await_holder(note)
            state.after(lambda: net.remove_veth(note))
        if note["network"].get("name"):
            from nsrun.state import names

            self.troubles += [f"pod {name}: its file of names can't be written" for name in names.forget(state, note)]
        if note["network"]["mode"] == "pasta":
            self.end_forwarder(note["name"])
        if note.get("user") and note["cgroup"]:
            cgroup.remove(f"{note['cgroup']}.hold", kill=True)
        cgroup.remove(note["cgroup"], note.get("cgroup_id", 0), kill=bool(note.get("user")))
        state.disown(note)

    def end_forwarder(self, name: str) -> None:
        """End the pasta of a pod, in case nothing else has ended it."""
        directory = self.state.path("pods", name)
        if self.state.uid or os.path.lexists(f"{directory}/forward.log"):
            from nsrun.host import pasta

            pasta.end_of(directory)

    def _remove_pod(self, name: str, note: Note | None) -> bool:
        """Remove a pod that nobody keeps, and its members.  The caller has the lock `names`."""
        state = self.state
        left: NsrunError | None = None
        if not note:
            self.end_forwarder(name)
        if note:
            self._release(note)
            for member in state.members_of(note):
                try:
                    self._remove_ended(member)
                except NsrunError as error:
                    left = left or error
        if left:
            raise left
        drop_plans(state, "pods", name)
        if not state.remove_directory(state.path("pods", name)):
            return False
        self.removed.append(f"pod {name}")
        return True

    def remove_pod(self, note: Note) -> bool:
        """Remove a pod that has ended, its members and their data, because a command asked.

        Return False when somebody keeps it.
        """
        with _names_lock(self.state):
            now = self.state.read("pods", note["name"])
            if now is None or now["id"] != note["id"]:
                return True
            return self._remove_pod(note["name"], note)

    def give_way(self, kind: str, name: str) -> None:
        """Free a name that is wanted: remove what has ended under it, and set a broken note aside."""
        state = self.state
        with _names_lock(state):
            try:
                note, now = state.note_and_life(kind, name)
            except BrokenNote as error:
                if not error.damaged:
                    raise
                self.set_aside(kind, name)
                return
            if now.alive:
                return
            if note is None:
                self.set_aside(kind, name)
            try:
                if note and kind == "pods":
                    self._remove_pod(name, note)
                    state.catch_up()  # the new one may want its address
                elif note and (not self.state.began(note) or self.is_superseded(note)):
                    self._remove_ended(note)
            except NsrunError:
                self.set_aside(kind, name)  # part of it can't be removed: doctor shows that, and the name is free

    # ---- members ---------------------------------------------------------------------------------------

    def is_superseded(self, note: Note) -> bool:
        """Return whether another pod has the name of the one in which the member ended."""
        pod, now = self.state.note_and_life("pods", note["pod"])
        return (
            pod is not None
            and now.kept
            and pod["id"] != note["pod_id"]
            and self.state.member_status(note)[0] not in ("running", "paused")
        )

    def _member(self, name: str) -> bool:
        """Remove a member that nobody keeps, if it never started, or was started with --rm and has ended."""
        state = self.state
        if state.life("members", name).alive:
            return False
        note, now = state.note_and_life("members", name)
        if now.alive or now.file is None or note is None:
            return False
        ended = note["rm"] and state.member_status(note)[0] == "stopped"
        if self.state.began(note) and not ended and not self.is_superseded(note):
            return False
        with self._quickly():
            again, now = state.note_and_life("members", name)
            return not now.alive and again is not None and again["id"] == note["id"] and self._remove_ended(note)

    def _remove_ended(self, note: Note) -> bool:
        """Remove a member.  The caller has the lock `names`."""
        if not _remove_member(self.state, note, True):
            return False
        self.removed.append(f"member {note['name']}")
        return True

    # ---- the rest --------------------------------------------------------------------------------------

    def _data(self, ident: str) -> bool:
        """Remove data that was never committed, that no note names and that nobody holds."""
        state = self.state
        path = state.upper(ident)
        if not is_there(f"{path}/{life.HELD}"):
            # its maker was killed at once; or it is about to lock it, and will then try again
            return _rmdir(path)
        if is_there(f"{path}/committed") or life.ask(f"{path}/{life.HELD}").alive:
            return False
        members = {note["id"] for note in state.all("members")}
        if ident in members or any(path.startswith(f"{state.run}/members/") for path in state.broken):
            return False  # `committed` was lost; or a note that can't be read may speak of it
        if not state.remove_directory(path):
            return False
        self.removed.append(f"upper {ident}")
        return True

    def _claim(self, entry: str) -> bool:
        """Remove, below tmp, what a killed nsrun was making or removing."""
        state = self.state
        path = f"{state.run}/tmp/{entry}"
        if not is_directory(path) or life.ask(f"{path}/{life.HELD}").alive:
            return False  # the holder may be another thread of ours
        if not is_there(f"{path}/{life.HELD}") and _rmdir(path):
            return True
        with life.Removal(f"{path}/{life.HELD}") as ours:
            if ours:
                remove_tree(path)
        if ours:
            self.removed.append(f"claim {entry}")
        return ours

    def set_aside(self, kind: str, name: str, ended: bool = False) -> bool:
        """Move a directory without a readable note out of the way, and keep it for people to look at.

        With `ended`, what had this name was found, and has just ended.
        """
        state = self.state
        path = state.path(kind, name)
        if _rmdir(path):
            return True
        from nsrun.state import orphans

        with life.Removal(f"{path}/{life.HELD}") as ours:
            lives = (
                orphans.pauses_of(state, name, perhaps=True)
                if kind == "pods"
                else orphans.runs_without_note(state, name)
            )
            if not ours or lives or (kind == "pods" and orphans.is_kept_elsewhere(state, name)):
                return False
            if not (ended or life.is_original(path) or orphans.sees_every_process()):
                # a process out of view may have locked another file, which `held` has replaced
                return False
            if kind == "pods":
                self.end_forwarder(name)
            aside = f"{state.run}/aside"
            try:
                os.mkdir(aside, 0o700)
            except FileExistsError:
                pass
            try:
                os.rename(path, f"{aside}/{kind[:-1]}-{name[:63]}-{new_id()}")
            except FileNotFoundError:
                return False
        self.removed.append(f"damaged {kind[:-1]} {name}, kept in {aside}")
        if kind == "pods":
            orphans.remove_idle_cgroups(state, name)
            if not state.uid:
                state.disown_name(name)
        return True

    def set_broken_aside(self) -> None:
        """For `pod prune`: set aside every broken note that nobody holds."""
        for kind in ("pods", "members"):
            for name in self._names(kind):
                if not self._is_broken(kind, name):
                    continue
                self._try(f"{kind[:-1]} {name}", self._set_broken_aside, kind, name)

    def _set_broken_aside(self, kind: str, name: str) -> bool:
        with _names_lock(self.state):  # check again: the name may have been taken by another meanwhile
            return self._is_broken(kind, name) and self.set_aside(kind, name)

    def _is_broken(self, kind: str, name: str) -> bool:
        try:
            return self.state.read(kind, name) is None
        except BrokenNote as error:
            self.state.broken[error.path] = error.why
            return error.damaged

    def set_ended_aside(self, kind: str, name: str, its_held: tuple[int, int] | None, ended: bool) -> None:
        """Free the name of something whose note could not be read or believed, and of which nothing lives any more.

        `its_held` is the identity of its `held`: if another has the name, do nothing.  `ended`: it was found, and ended.
        """
        state = self.state
        with _names_lock(state):
            try:
                if state.read(kind, name) and life.identity(state.held(kind, name)) != its_held:
                    return
            except BrokenNote:
                pass
            self.set_aside(kind, name, ended)


class _Turn:
    """Where in each directory the last command has stopped, in a file that is only ever a hint.

    A number that is lost or wrong, or that another command wrote at the same time, makes a sweep begin elsewhere.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.now: list[int] = []
        self._before: list[int] = []
        try:
            with kernel.Fd(open_regular(path)) as fd:
                data = os.read(fd, _MOST)
            count = len(data) // 8
            self._before = [number & (1 << 63) - 1 for number in unpack(f"={count}Q", data[: 8 * count])]
        except OSError:
            pass  # it begins where a directory begins

    def look(self, directory: str) -> list[str]:
        """Return the next names of which no lock shows that they live.  Raise OSError."""
        turn = len(self.now)
        self.now.append(0)
        before = self._before[turn] if turn < len(self._before) else 0
        found, self.now[turn] = life.unheld(directory, before, LOOKED_AT, LOOKED_INTO)
        return found

    def save(self) -> None:
        if not any(self.now) and not any(self._before):
            return  # all of it was looked at, as always where there is little
        try:
            with kernel.Fd(open_regular(self.path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW)) as fd:
                os.write(fd, pack(f"={len(self.now)}Q", *self.now))
        except OSError:
            pass  # the next command looks at the same part


QUICKLY = 1.0  # seconds that a sweep waits for the lock of names


class _names_lock:
    """`with` the lock under which names are given back.  Raise Busy when another process holds it for too long."""

    def __init__(self, state: State, seconds: float = 0.0) -> None:
        self.state, self.seconds = state, seconds

    def __enter__(self) -> None:
        self.fd = self.state.lock("names", self.seconds)

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def remove_ended_member(state: State, note: Note, its_cgroup: bool = True) -> bool:
    """Remove the notes of a member that has ended, its cgroup and its data; do nothing if another has its name by now.

    Return False when somebody keeps it.
    """
    with _names_lock(state):
        now = state.read("members", note["name"])
        return now is None or now["id"] != note["id"] or _remove_member(state, note, its_cgroup)


def give_back(state: State, kind: str, name: str, ident: str) -> None:
    """Undo a claim of ours, whose lock we have released."""
    with _names_lock(state):
        now = state.read(kind, name)
        if now and now["id"] == ident:
            if kind == "pods":
                Sweeper(state).end_forwarder(name)
            if state.remove_directory(state.path(kind, name)) and kind == "members":
                state.unlist(now["pod"], name)


def hides_another(state: State, note: Note) -> bool:
    """Return whether a member runs of which this note is not, though it has the name: the files beside its data tell."""
    try:
        there = life.describe(state.held("members", note["name"]))
    except OSError:
        return False
    if life.is_described(there, note):
        return False
    from nsrun.state.orphans import runs_without_note

    return runs_without_note(state, note["name"])


def _remove_member(state: State, note: Note, its_cgroup: bool) -> bool:
    ours = state.life("members", note["name"]).keeper == os.getpid()  # --rm: the monitor removes it after the end
    if not ours and (not state.surely_ended(note) or hides_another(state, note)):
        return False
    if its_cgroup:
        from nsrun.host import cgroup

        cgroup.remove_member(note["cgroup"], note.get("cgroup_id", 0))
    upper = state.upper(note["id"])
    why: list[str] = []
    if is_there(upper) and not state.remove_directory(upper, why):
        if not why:
            raise BadInput(f"another process uses what member {note['name']!r} wrote", hint=f"fuser -v {upper}/*")
        raise BadInput(
            f"can't remove what member {note['name']!r} wrote: {'; '.join(why)}",
            hint="is something mounted in it, or is a file immutable? findmnt -R; lsattr -R; then try again",
        )
    drop_plans(state, "members", note["name"])
    removed = state.remove_directory(state.path("members", note["name"]))
    if removed:
        state.unlist(note["pod"], note["name"])
    return removed


def drop_plans(state: State, kind: str, name: str) -> None:
    """Remove the compiled plans that are about a pod or member: each has its note as a witness (docs/replay.md)."""
    note = os.fsencode(state.path(kind, name, "note")) + b"\0"
    mark = pack("=II", REPLAY["same_file"][0], len(note)) + note
    try:
        names = os.listdir(f"{state.run}/plans")
    except OSError:
        return  # there are none
    for entry in names:
        path = f"{state.run}/plans/{entry}"
        try:
            with open(open_regular(path), "rb") as file:
                about = mark in file.read(REPLAY_BYTES)
            if about:
                os.unlink(path)
        except OSError:
            continue  # another command has removed it


def _rmdir(path: str) -> bool:
    try:
        os.rmdir(path)
    except OSError:
        return False  # there is something in it, or it is not a directory
    return True
