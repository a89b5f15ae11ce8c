# SPDX-License-Identifier: Apache-2.0
"""Leave a compiled plan in the directory of a container, by which csrc/oci.c does the commands that follow without Python.

    before the first verb   what every command takes for granted: witnesses (nsrun/run/replay.py)
    state                   the document as `state` prints it, but for the pid and the status
    start, kill, delete     what lifecycle.py does of them where there are no hooks
    exec                    the plan of an exec, of the container's own process with other arguments, and with --process another environment

A command that needs more than that has no steps here, and is Python's.  An `exec --process` that is like no plan leaves one of its
own (`exec`), for the next that is like it.
"""

from __future__ import annotations

import os
from struct import calcsize, pack, unpack_from
from time import time_ns

from nsrun import kernel
from nsrun._protocol import (
    BUILD,
    OP_OF_STEP,
    PLAN_HEADER,
    PLAN_MAGIC,
    REPLAY,
    REPLAY_BYTES,
    REPLAY_HEADER,
    REPLAY_MAGIC,
)
from nsrun.errors import NsrunError
from nsrun.oci import cgroups, hooks
from nsrun.oci.state import boot_id, home_of
from nsrun.oci.steps import ExecuteContainer, WritePidFile
from nsrun.plan import INIT, InitStep
from nsrun.plan.process import Release
from nsrun.run import encode
from nsrun.run.replay import BOOT_ID, CannotReplay, Compiler, argument, encoded, same_file, same_inside
from nsrun.schema import open_regular, read_document
from nsrun.state import codec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from nsrun.oci.run import ContainerRun
    from nsrun.oci.state import Container
    from nsrun.plan import Plan, Replayed

#: What of a container an exec joins; its own have to be the same as they were.
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")


class Seen:
    """What a plan says of a container in numbers, as the kernel shows it."""

    def __init__(self, container: Container) -> None:
        self.container = container
        note = container.note()
        self.pid, self.start = note["pid"], note["start"]

    def file(self, name: str) -> list[int]:
        """Return the device, inode, size and times of a file of the container's directory, as same_file has them."""
        return list(same_file("", os.lstat(f"{self.container.path}/{name}"))[2:])

    def cgroup(self, path: str) -> int:
        """Return the inode of its cgroup of v2."""
        return os.stat(path).st_ino

    def namespaces(self) -> list[list[int]]:
        """Return the inodes of our namespaces, and of those of its first process."""
        return [[os.stat(f"/proc/{who}/ns/{name}").st_ino for name in NAMESPACES] for who in ("self", self.pid)]

    def home(self, uid: int) -> tuple[str, list[int]]:
        """Return the variable HOME of a user, and which /etc/passwd that is from; "" when it can't be known whether it stays so."""
        root, when = f"/proc/{self.pid}/root", time_ns()
        seen: list[os.stat_result] = []
        try:
            with kernel.Fd(os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
                word = home_of(fd, uid, seen)
            return word, list(same_inside(root, "/etc/passwd", seen[0] if seen else None, when)[3:])
        except (CannotReplay, NsrunError, OSError):
            return "", [0] * 5


class ContainerCompiler(Compiler):
    """Compile the plan of a process that nobody runs now, or of one of a container that is made later."""

    def __init__(self, plan: Plan, run: ContainerRun, seen: Seen) -> None:
        super().__init__(plan, run, ())
        self.seen = seen
        self.is_given = False  # whether the environment is given anew each time
        self.values = {"member:ns:pid": seen.pid}
        self.stdio = ("ours", "ours", "ours")  # handles that there are not: the caller's own

    @property
    def path(self) -> str:
        return self.seen.container.path

    def inode_of(self, cgroup: str) -> int:
        return self.seen.cgroup(cgroup)

    def process(self, name: str) -> tuple[int, int]:
        return self.seen.pid, self.seen.start

    def document(self) -> tuple[Replayed, list[int]]:
        *steps, last = [step for step in self.plan.steps if isinstance(step, InitStep)]
        assert isinstance(last, ExecuteContainer)
        self._asked.clear()
        bare = pack(PLAN_HEADER, PLAN_MAGIC, 0)
        head = pack(PLAN_HEADER, PLAN_MAGIC, len(steps) + 1) + encode(steps, self)[len(bare) :]
        program, _, environment, *numbers = last.args(self)  # type: ignore[arg-type]
        if self.is_given:
            environment = []
        head += pack("=I", OP_OF_STEP["ExecuteContainer"]) + argument("s", program)
        tail = b"".join(argument("i", number) for number in numbers)
        return ("arguments", head, argument("l", environment)[4:], tail), sorted(self._asked - {-1})


def leave(run: ContainerRun, config: dict[str, Any]) -> None:
    """Leave the plan of a container that has just been made, if there can be one."""
    assert run.container
    container = run.container
    _leave(container, "plan", lambda: plan_of(run, Seen(container), config))


def plan_of(run: ContainerRun, seen: Seen, config: dict[str, Any], flags: int = -1) -> list[Replayed]:
    """Return the steps of a container's plan; `flags` are its namespaces that are not ours (-1: those of its process)."""
    container, called = seen.container, config.get("hooks") or {}
    flags = hooks.foreign(seen.pid) if flags < 0 else flags
    verbs: dict[str, Sequence[Replayed] | None] = {
        "state": _state(seen),
        "start": None if called.get("startContainer") or called.get("poststart") else [*_look(seen), _only("created"), ("let_go",)],
        "kill": [*_look(seen), ("send",)],
        "delete": None if called.get("poststop") or container.note().get("unit") else _delete(seen),
        "exec": _own_exec(run, seen, config, flags),
    }  # fmt: skip
    return _whole(seen, verbs)


def leave_exec(run: ContainerRun, container: Container, process: dict[str, Any], frame: Sequence[str]) -> None:
    """Leave the plan of an exec that is about to begin, for others whose file of --process says the same but for args and env.

    process: as that is executed; frame: members().
    """
    if process.get("terminal") or os.environ.get("LISTEN_FDS"):
        return
    seen = Seen(container)
    flags = hooks.foreign(seen.pid)
    _leave(
        container, "exec", lambda: _whole(seen, {"exec": _exec(run, seen, run.plan, process, frame, flags, given=True)})
    )


def _whole(seen: Seen, verbs: Mapping[str, Sequence[Replayed] | None]) -> list[Replayed]:
    steps = _witnesses(seen)
    for verb, some in verbs.items():
        if some is not None:
            steps += [("verb", verb), *some]
    return steps


def _leave(container: Container, name: str, steps: Callable[[], list[Replayed]]) -> None:
    """Write a compiled plan into the directory of a container, unless there can be none."""
    try:
        if os.geteuid() or kernel.in_userns():
            raise CannotReplay("it is not of the host's own root")
        write(f"{container.path}/{name}", whole(steps()))
    except CannotReplay:
        pass
    except Exception:  # the container is there, and every command finds all that it needs without a plan
        if os.environ.get("NSRUN_REPLAY") == "must":
            raise


def whole(steps: Sequence[Replayed]) -> bytes:
    """Return a compiled plan.  Raise CannotReplay."""
    body = b"".join(encoded(*step) for step in steps)
    data = pack(REPLAY_HEADER, REPLAY_MAGIC, BUILD, kernel.checksum(body), len(steps)) + body
    if len(data) > REPLAY_BYTES:
        raise CannotReplay("it is too large")
    return data


def write(path: str, data: bytes, mark: str = "") -> None:
    """Write a compiled plan whole, or not at all; `mark`: the ending of a name that no other process writes to."""
    temporary = f"{path}{mark}.tmp"
    try:
        with open(open_regular(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW), "wb") as file:
            file.write(data)
        os.rename(temporary, path)
    except OSError:
        try:
            os.unlink(temporary)
        except FileNotFoundError:
            pass
        raise


def _same_link(path: str) -> Replayed:
    return "same_link", path, os.readlink(path)


def here(boot: str) -> list[Replayed]:
    """Return what every command takes for granted: that pids, start times and the boot are the same."""
    clock = "/proc/self/ns/time"  # of which some kernels have none
    found: list[Replayed] = [_same_link("/proc/self/ns/pid"), _same_link("/proc/self/ns/user")]
    found.append(_same_link(clock) if os.path.lexists(clock) else ("absent", clock))
    return [*found, ("same_text", BOOT_ID, f"{boot}\n")]


def _witnesses(seen: Seen) -> list[Replayed]:
    """Return what every command of a container takes for granted, what is written of it, too."""
    container = seen.container
    files = [("same_file", f"{container.path}/{name}", *seen.file(name)) for name in ("state", "config")]
    return [("container", container.path), *here(container.note()["boot"]), *files]


def _look(seen: Seen) -> list[Replayed]:
    paths = seen.container.note()["cgroups"]
    v1 = cgroups.path_with(paths, "freezer")
    return [("look", seen.pid, seen.start, v1 or cgroups.v2_of(paths), int(bool(v1)))]


def _only(*statuses: str) -> Replayed:
    return "only", statuses


def _state(seen: Seen) -> list[Replayed]:
    from nsrun.oci import say

    hole = '"pid": 0,\n  "status": ""'  # a text of anybody's has its quotes escaped
    before, found, after = say.document(seen.container.describe("", 0)).partition(hole)
    if not found:
        raise CannotReplay("the state has another form")
    return [*_look(seen), ("answer", f'{before}"pid": ', ',\n  "status": "', f'"{after}')]


def _delete(seen: Seen) -> list[Replayed]:
    paths = seen.container.note()["cgroups"].values()
    return [*_look(seen), _only("stopped", "created"), ("end",), *(("remove_cgroup", path) for path in paths), ("remove",)]  # fmt: skip


def members(process: dict[str, Any]) -> list[str]:
    """Return what a file of `exec --process` says beside args and env, as csrc/process.h compares it."""
    return [codec.compact({key: value})[1:-1] for key, value in process.items() if key not in ("args", "env")]


def _own_exec(run: ContainerRun, seen: Seen, config: dict[str, Any], flags: int) -> list[Replayed] | None:
    """Return the steps of an exec like the container's own process; None when Python has to do it."""
    from nsrun.oci.plan import Facts, exec_plan

    own = config["process"]
    process = {**own, "terminal": False, "consoleSize": None}
    if process.get("selinuxLabel"):
        return None
    container = seen.container
    facts = Facts(root=container.root, ident=container.id)
    note = {**container.note(), "pid": seen.pid, "start": seen.start}
    plan = exec_plan(process, (config.get("linux") or {}).get("seccomp"), note, flags, facts)
    return _exec(run, seen, plan, process, () if own.get("terminal") else members(own), flags)


def _exec(
    run: ContainerRun,
    seen: Seen,
    plan: Plan,
    process: dict[str, Any],
    frame: Sequence[str],
    flags: int,
    given: bool = False,
) -> list[Replayed] | None:
    """Return the steps of an exec; None when Python has to do it.

    flags: the container's namespaces that are not ours; given: the environment is what --process says each time.
    """
    if flags & (kernel.CLONE_NEWUSER | kernel.CLONE_NEWTIME) or process.get("selinuxLabel"):
        return None
    compiler = ContainerCompiler(plan, run, seen)
    compiler.is_given = given
    found: list[Replayed] = []
    for step in plan.steps:
        if step.phase == INIT or isinstance(step, WritePidFile):
            continue
        form: Sequence[Replayed] | None = step.replayed(compiler)
        if form is None:
            return None
        found += [("write_pid",), *form] if isinstance(step, Release) else form
    word, passwd = seen.home((process.get("user") or {}).get("uid") or 0)
    both = [pack(f"={len(inodes)}Q", *inodes) for inodes in seen.namespaces()]
    before = [*_look(seen), _only("created", "running"), ("home", word, *passwd), ("same_namespaces", *both)]
    return [("frame", frame), *before, ("unlock",), *found, ("stay",)]


def recorded(path: str) -> tuple[int, int, list[str]]:
    """Return the pid and start time of a container's first process, and its cgroups, as a compiled plan has them.

    The pid is 0 when it is of another boot.  Raise OSError, ValueError or BadInput when there is no plan, it is not whole, or another build left it.
    """
    size = calcsize(REPLAY_HEADER)
    data = read_document(path, REPLAY_BYTES)
    if len(data) < size:
        raise ValueError("it is cut off")
    magic, build, checksum, count = unpack_from(REPLAY_HEADER, data)
    body = data[size:]
    if (magic, build, checksum) != (REPLAY_MAGIC, BUILD, kernel.checksum(body)):
        raise ValueError("it is damaged, or of another build")
    names = {number: (name, kinds) for name, (number, kinds) in REPLAY.items()}
    pid, start, at, view, paths = 0, 0, 0, True, dict[str, None]()
    for _ in range(count):
        name, kinds = names[unpack_from("=I", body, at)[0]]
        at += 4
        values = []
        for _ in kinds:
            (size,) = unpack_from("=I", body, at)
            values.append(body[at + 4 : at + 4 + size])
            at += 4 + size
        texts = [os.fsdecode(value.rstrip(b"\0")) for value in values]
        if name == "same_link" and texts[0] == "/proc/self/ns/pid" and os.readlink(texts[0]) != texts[1]:
            raise ValueError("it is of another PID namespace")
        if name == "same_text" and texts[0] == BOOT_ID:
            view = texts[1].strip() == boot_id()
        elif name == "look":
            pid, start = (int.from_bytes(value, "little") for value in values[:2])
            paths |= {texts[2]: None} if texts[2] else {}
        elif name == "remove_cgroup":
            paths[texts[0]] = None
    return (pid if view else 0), start, list(paths) if view else []


def is_told(container: Container, text: str) -> int:
    """Return the descriptor of the FIFO by which a container that was let go tells how that went; -1 for any other.

    csrc/oci.c names it in NSRUN_OCI_TOLD when it can't go on by itself.
    """
    try:
        fd = int(text)
        ours, theirs = os.fstat(fd), os.lstat(f"{container.path}/told")
    except (ValueError, OverflowError, OSError):
        return -1
    return fd if fd > 2 and (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino) else -1
