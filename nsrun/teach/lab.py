# SPDX-License-Identifier: Apache-2.0
"""What a lab is: its idea and scripts are a page of docs/labs, its scene and its check are a module of nsrun/teach/labs.

A check gets a Work, and asks the kernel about what the student made: facts.py.  It reads no file that a student can
write.  What is the student's is a matter of proof, too (Work.mine): a process has the mark of this start of the lab in
its environment, or descends from one that has it, or is in a PID namespace whose first process is the student's, or in
a pod of the lab's name.  In a class, where root grades, the proof is the user who owns the process.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from shutil import which

from nsrun.teach import facts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nsrun.state import State
    from nsrun.teach.facts import Process

#: The environment variable that marks the processes of a lab; its value is NN-ID: the lab, and this start of it.
MARK = "NSRUN_LAB"
#: Variables by which nsrun finds out who called sudo: what root makes in a lab is root's own.
CALLERS = ("SUDO_UID", "DOAS_USER", "PKEXEC_UID")


@dataclass(frozen=True)
class Row:
    """One line of a check."""

    name: str
    ok: bool
    wanted: str
    seen: str  # in the kernel's words
    see: str  # the command with which a person sees it


@dataclass(frozen=True)
class Need:
    """Something that a machine may lack."""

    what: str
    lacks: Callable[[], str]  # why it can't be had; "" when it is there
    cure: str


@dataclass(frozen=True)
class Lab:
    """One lab.  `name` is also that of its page: docs/labs/NN-name.md."""

    number: int
    name: str
    title: str
    minutes: int
    #: The variables that the student gets.  WORD…: a word; N…: a number; PORT…: a free port; POD…: the name of a pod.
    values: tuple[str, ...]
    check: Callable[[Work], list[Row]]
    needs: tuple[Need, ...] = ()
    root: str = ""  # why an ordinary user can't do it; "": they can
    publishes: bool = False  # its ports are this machine's, and must be free
    #: Make the scene, and return more variables.
    scene: Callable[[Work], dict[str, str]] | None = None
    #: Remove what the scene or the student made, apart from pods of the lab's names, the student's processes and files.
    reset: Callable[[Work], None] | None = None

    def lacking(self, uid: int) -> list[tuple[str, str]]:
        """Return what this machine or this user lacks, and how to get each."""
        found = [(f"it needs root: {self.root}", f"sudo nsrun lab start {self.number}")] if self.root and uid else []
        return found + [(f"{need.what}: {why}", need.cure) for need in self.needs if (why := need.lacks())]


@dataclass
class Work:
    """What one student does on one lab."""

    lab: Lab
    id: str  # of this start
    seed: str
    directory: str  # the student's, for files
    state: State
    variables: dict[str, str]
    home: dict[str, int]  # the namespaces from which the lab was started: "the machine's"
    student: int = -1  # in a class, the uid of the student whose work is graded; otherwise -1
    others: frozenset[str] = frozenset()  # the ids of other labs of the same student that are started
    troubles: list[str] = field(default_factory=list)  # what reset could not remove, or must not
    _hostnames: dict[int, str] = field(default_factory=dict)

    # ---- what the kernel shows ------------------------------------------------------------------------------

    def look_again(self) -> None:
        """Discard what was seen, so that the next question is asked of the kernel again."""
        for name in ("processes", "mine"):
            self.__dict__.pop(name, None)
        self._hostnames = {}

    @cached_property
    def processes(self) -> list[Process]:
        """Every visible process but this one, as they were when first asked for."""
        # the command line is in the memory of a process, which can make whoever reads it wait
        return [found for found in facts.processes(command_lines=self.student < 0) if found.pid != os.getpid()]

    @cached_property
    def mine(self) -> list[Process]:
        """Those that are provably the student's, without the shells in which they work."""
        around = ancestors(os.getpid(), self.processes)
        living = [process for process in self.processes if process.pid not in around and process.state not in "X"]
        return graded(living, self.student) if self.student >= 0 else self._marked(living)

    def _marked(self, living: list[Process]) -> list[Process]:
        mark = f"{MARK}={self.id}".encode()
        marks = {f"{MARK}={one}".encode() for one in self.others}
        mine, others = set(), set()
        for process in living:
            variables = environment(process.pid)
            if mark in variables:
                mine.add(process.pid)
            elif not marks.isdisjoint(variables):
                others.add(process.pid)  # even if it was started from a shell of this lab
        pods = self.of_pods()
        for _ in range(32):  # until nothing is added; a PID namespace can be nested so deep
            spaces = {p.namespaces.get("pid") for p in living if p.pid in mine and len(p.pids) > 1 and p.pids[-1] == 1}
            more = {
                p.pid
                for p in living
                if p.pid not in others
                and (
                    p.ppid in mine or p.pid in pods or p.namespaces.get("pid") in spaces - {None, self.home.get("pid")}
                )
            }
            if more <= mine:
                break
            mine |= more
        return [process for process in living if process.pid in mine]

    def away(self, kind: str) -> list[Process]:
        """Return the student's living processes that are in another namespace of this kind than the machine's."""
        return [p for p in self.mine if p.state != "Z" and p.namespaces.get(kind, self.home[kind]) != self.home[kind]]

    def inside(self, kind: str, inode: int) -> list[Process]:
        """Return the processes in one namespace, whoever made them."""
        return [p for p in self.processes if p.namespaces.get(kind) == inode]

    def hostname(self, process: Process) -> str:
        """Return the hostname in the UTS namespace of a process; each namespace is asked once."""
        uts = process.namespaces.get("uts", 0)
        if uts not in self._hostnames:
            self._hostnames[uts] = facts.hostname_of(process.pid)
        return self._hostnames[uts]

    def first(self, hostname: str) -> Process | None:
        """Return the first process of a PID namespace of the student's whose hostname is this; pause, if it is a pod."""
        for process in self.away("pid"):
            if process.pids[-1] == 1 and self.hostname(process) == hostname:
                return process
        return None

    def nsrun(self, *arguments: str) -> str:
        """Run an nsrun command on the same state, and return its output.  Raise NsrunError with its message."""
        return run_nsrun(self.state, *arguments)

    # ---- pods of the lab's names ----------------------------------------------------------------------------

    def pods(self) -> list[str]:
        """Return the names of pods that belong to this lab, whether they exist or not."""
        return [value for name, value in self.variables.items() if name.startswith("POD")]

    def pause(self, name: str) -> Process | None:
        """Return the pause of a pod, if the pod lives: its lock proves that."""
        if name not in self.state.names("pods"):
            return None
        note = self.state.try_read("pods", name)
        found = self.state.pod_life(note) if note else None
        return facts.process(found.keeper) if found and found.keeper else None

    def of_pods(self) -> set[int]:
        """Return the pids of pauses, monitors and members of the lab's pods, also of members that outlived their pod."""
        names = set(self.pods())
        found = {pause.pid for name in names if (pause := self.pause(name))} if names else set()
        for note in self.state.all("members") if names else []:
            if note["pod"] in names and note.get("process") and not self.state.surely_ended(note):
                found.add(note["process"][0])
        return found


def run_nsrun(state: State, *arguments: str) -> str:
    """Run an nsrun command for a lab: what root makes is root's own.  Raise NsrunError with its message."""
    import subprocess

    from nsrun import kernel
    from nsrun.errors import NsrunError, told

    environment = {name: value for name, value in os.environ.items() if name not in CALLERS}
    command = kernel.nsrun_command(state.root, *arguments)
    done = subprocess.run(command, capture_output=True, check=False, env=environment)
    if done.returncode:
        message, hint = told(done.stderr)
        raise NsrunError(f"nsrun {' '.join(arguments)}: {message}", hint=hint)
    return done.stdout.decode("utf-8", "surrogateescape")


def ancestors(pid: int, processes: Sequence[Process]) -> set[int]:
    """Return the pids of a process and of those that it descends from."""
    parents = {process.pid: process.ppid for process in processes}
    found = {pid}
    pid = os.getppid() if pid == os.getpid() else parents.get(pid, 0)
    while pid and pid not in found:
        found.add(pid)
        pid = parents.get(pid, 0)
    return found


def environment(pid: int) -> list[bytes]:
    """Return the variables with which a process was started; [] when we may not look, or it has ended."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read(1 << 21).split(b"\0")
    except PermissionError:  # it has a subordinate uid of ours, perhaps: root of its user namespace may look
        if os.geteuid() in facts.owners(pid):
            return facts.file_from_inside(pid, f"/proc/{pid}/environ").split(b"\0")
    except OSError:
        pass
    return []


def graded(processes: Iterable[Process], uid: int) -> list[Process]:
    """Return the processes of one user: the kernel says who runs them, or who owns the user namespace they are in."""
    owners: dict[int, bool] = {}
    found = []
    for process in processes:
        space = process.namespaces.get("user", 0)
        if space not in owners:
            owners[space] = bool(space) and uid in facts.owners(process.pid)
        if process.uid == uid or owners[space]:
            found.append(process)
    return found


# ---- values that differ from student to student ----------------------------------------------------------------

_WORDS = (
    "amber alder badger beech birch cedar clover comet copper coral crane delta ember falcon fern finch flint garnet "
    "hazel heron indigo ivory jasper juniper kestrel lark laurel linden lotus lynx magnet maple marlin meadow nimbus "
    "nutmeg olive onyx opal otter pepper plover quartz raven reed robin rowan saffron sage sable sorrel sparrow spruce "
    "starling swift tamarin teal thistle topaz tulip umber violet walnut willow wren yarrow zinnia"
).split()


def draw(seed: str, number: int, name: str, salt: int = 0) -> int:
    """Return a large number that depends on the student, the lab and what it is for."""
    from hashlib import sha256

    return int.from_bytes(sha256(f"{seed}/{number}/{name}/{salt}".encode()).digest()[:8], "big")


def values_of(lab: Lab, seed: str, salt: int = 0) -> dict[str, str]:
    """Return the values of a lab's variables for one student."""
    found = {}
    for name in lab.values:
        number = draw(seed, lab.number, name, salt)
        word = f"{_WORDS[number % len(_WORDS)]}-{number // 100 % 9000 + 1000}"
        if name.startswith("WORD"):
            found[name] = word
        elif name.startswith("POD"):
            found[name] = f"lab{lab.number:02}-{word}"
        elif name.startswith("PORT"):
            found[name] = str(20000 + number % 10000)
        elif name.startswith("N"):
            found[name] = str(100 + number % 900)
        else:
            raise ValueError(f"lab {lab.number}: a variable that is nothing: {name}")
    return found


# ---- needs -----------------------------------------------------------------------------------------------------


def tool(name: str, package: str) -> Need:
    """Return the need of a program, and of the Debian package that has it."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return Need(name, lambda: "" if which(name, path=path) else "it is not installed", f"apt-get install {package}")


def _no_namespaces() -> str:
    """Try to make a UTS namespace, in the way in which this user would; return what unshare(1) said when it can't."""
    import subprocess

    if which("unshare") is None:
        return ""  # another need says so
    how = ["--user", "--map-root-user"] if os.geteuid() else ["--uts"]
    done = subprocess.run(["unshare", *how, "true"], capture_output=True, check=False)
    return done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2] if done.returncode else ""


USER_NAMESPACES = Need(
    "the power to make namespaces", _no_namespaces,
    "nsrun doctor says what forbids it; a member of a pod gets it by --cap-add SYS_ADMIN --security-opt seccomp=unconfined",
)  # fmt: skip
UTIL_LINUX = tool("unshare", "util-linux")


# ---- rows ------------------------------------------------------------------------------------------------------


def best(candidates: Iterable[Process], rows: Callable[[Process | None], list[Row]]) -> list[Row]:
    """Return the rows of the process that satisfies most of them; those of None when there is no candidate.

    Of several that satisfy the same number, that is the one which was started last.
    """
    tried = [rows(one) for one in sorted(candidates, key=lambda one: -one.start)]
    return max(tried, key=lambda one: sum(row.ok for row in one)) if tried else rows(None)
