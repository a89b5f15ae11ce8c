"""How nsrun forgets: what a crash, a kill -9 or a reboot left behind is found, and removed, by the next command.

The kernel collects by itself what a descriptor or a process holds: namespaces, mounts, ports, the table.  It keeps what has a
name: a cgroup directory, a note, what a member wrote, an idle bridge.  Each of these belongs to a note (state.py), and a note
whose processes are dead is stale.
"""

from __future__ import annotations

import os

from nsrun import kernel
from nsrun.state import State, remove_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsrun.state import Note


class Sweeper:
    """Removes the notes of what has died, and what they stand for; `removed` names it, for people."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.removed: list[str] = []

    def one(self, kind: str, name: str) -> None:
        if kind == "pods":
            self._pod(name)
        else:
            self._member(name)

    def all(self) -> list[str]:
        """Sweeps everything below this root; gives what was removed, for people."""
        state = self.state
        living = set()
        for name in state.names("pods"):
            if note := self._pod(name):
                living.add(note["id"])
        uppers = self._uppers()  # before the notes: a member that is being made has its note first
        for name in state.names("members"):
            note = state.read("members", name)
            if note:
                uppers.discard(note["id"])
            if not (note and note["pod_id"] in living and os.path.exists(state.path("members", name, "exit"))):
                self._member(name)  # else it has ended in a living pod, like most that there are: kept until `nsrun rm`
        for ident in uppers:
            state.remove_written(state.upper(ident))
            self.removed.append(f"upper {ident}")
        for entry in state.names("tmp"):
            pid, _, rest = entry.partition(".")
            start = rest.partition(".")[0]
            if not (pid.isdigit() and start.isdigit() and kernel.process_start(int(pid)) == int(start)):
                remove_tree(f"{state.run}/tmp/{entry}")
                self.removed.append(f"claim {entry}")
        died = any(line.startswith("pod ") for line in self.removed)
        if died or not state.names("pods"):
            from nsrun.host import cgroup

            cgroup.remove_empty(state)
        if not state.uid and os.path.exists("/proc/sys/net/ipv4/conf/nsrun0"):
            from nsrun.host import net

            pods = (state.read("pods", name) for name in state.names("pods")) if died else ()
            known = {note["network"].get("veth", "") for note in pods if note}
            net.remove_idle_bridge(state, known, 0.5 if died else 0.0)
        return self.removed

    def _uppers(self) -> set[str]:
        try:
            return set(os.listdir(f"{self.state.lib}/upper"))
        except FileNotFoundError:
            return set()

    def _pod(self, name: str) -> Note | None:
        """Gives its note if it lives."""
        state = self.state
        note, alive = state.look("pods", name)
        if alive:
            return note
        lock = state.lock("names")
        try:
            note, alive = state.look("pods", name)  # somebody else may have swept it, and the name may be another's
            if alive:
                return note
            self._forget_pod(name, note)
        finally:
            os.close(lock)
        return None

    def _forget_pod(self, name: str, note: Note | None) -> None:
        """With the lock."""
        state = self.state
        if note is None:
            if _remove_broken(state, "pods", name):
                self.removed.append(f"pod {name}")
            return
        from nsrun.host import cgroup

        for other in state.names("members"):
            member = state.read("members", other)
            if member and member["pod_id"] == note["id"]:
                self._forget_member(other, pod_dead=True)
        if note["network"].get("veth") and not state.uid:
            from nsrun.host import net

            net.forget_pod(note)
        cgroup.remove(note.get("cgroup", ""), note.get("cgroup_id", 0))
        if note.get("user") and note.get("cgroup") and not state.uid:
            cgroup.remove(f"{note['cgroup']}.hold")
        ours = os.path.isdir(state.path("pods", name))  # what root wrote for an owner is root's to remove
        if state.uid and ours:
            cgroup.remove_member(note["cgroup"])
        state.disown(note)
        if state.uid:
            from nsrun.host import forward

            if state.alive(note.get("forward")):
                forward.end(note["forward"])
            else:
                forward.end_unnoted(state.path("pods", name))
        if ours:
            remove_tree(state.path("pods", name))
            self.removed.append(f"pod {name}")

    def _member(self, name: str) -> None:
        if self._stale(name):
            lock = self.state.lock("names")
            try:
                self._forget_member(name)
            finally:
                os.close(lock)

    def _stale(self, name: str, pod_dead: bool = False) -> bool:
        """A member goes with its pod (unless it does not share the PID namespace and lives on), or when it never began."""
        state = self.state
        note, alive = state.look("members", name)
        if note is None or alive:
            return note is None
        began = os.path.exists(state.path("members", name, "started")) or state.exit_of(name)
        if not note.get("process") or not began or pod_dead:
            return True
        pod, alive = state.look("pods", note["pod"])
        kept = pod and alive and pod["id"] == note["pod_id"]  # stopped or lost in a living pod: until `nsrun rm`
        return not kept

    def _forget_member(self, name: str, pod_dead: bool = False) -> None:
        """With the lock."""
        if not self._stale(name, pod_dead):
            return
        note = self.state.read("members", name)
        if note:
            _remove_member(self.state, note, True)
        elif not _remove_broken(self.state, "members", name):
            return
        self.removed.append(f"member {name}")


def forget_member(state: State, note: Note, its_cgroup: bool = True) -> None:
    """Removes the notes of a member that has ended, its cgroup, and what it wrote; nothing if the name is another's by now."""
    lock = state.lock("names")
    try:
        now = state.read("members", note["name"])
        if now and now["id"] == note["id"]:
            _remove_member(state, note, its_cgroup)
    finally:
        os.close(lock)


def _remove_member(state: State, note: Note, its_cgroup: bool) -> None:
    if its_cgroup:
        from nsrun.host import cgroup

        cgroup.remove_member(note.get("cgroup", ""), note.get("cgroup_id", 0))
    remove_tree(state.path("members", note["name"]))
    state.remove_written(state.upper(note["id"]))


def _remove_broken(state: State, kind: str, name: str) -> bool:
    """A directory without a note.  An empty one may be taken by a claim at any time, so it is not looked into."""
    path = state.path(kind, name)
    try:
        os.rmdir(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        if state.read(kind, name):
            return False  # it has just been claimed
        remove_tree(path)
    return True
