# SPDX-License-Identifier: Apache-2.0
"""Leave a compiled plan in the directory of a container, by which csrc/oci.c does the commands that follow without Python.

    before the first verb   what every command takes for granted: witnesses (nsrun/run/replay.py)
    state                   the document as `state` prints it, but for the pid and the status
    start, kill, delete     what lifecycle.py does of them where there are no hooks
    exec                    the plan of an exec with no option, of the container's own process with other arguments

A command that needs more than that has no steps here, and is Python's.
"""

from __future__ import annotations

import os
from struct import calcsize, pack, unpack_from

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
from nsrun.oci import cgroups, hooks
from nsrun.oci.state import boot_id
from nsrun.oci.steps import ExecuteContainer
from nsrun.plan import INIT, InitStep
from nsrun.run import encode
from nsrun.run.replay import BOOT_ID, CannotReplay, Compiler, argument, encoded, same_file
from nsrun.schema import read_document

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from nsrun.oci.run import ContainerRun
    from nsrun.oci.state import Container
    from nsrun.plan import Plan, Replayed

#: What of a container an exec joins; its own have to be the same as they were.
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")


class ExecCompiler(Compiler):
    """Compile the plan of an exec that nobody runs now."""

    def __init__(self, plan: Plan, run: ContainerRun, pid: int, start: int) -> None:
        super().__init__(plan, run, ())
        self.about = {"cgroups": run.cgroups}
        self._process = pid, start
        self.values = {"member:ns:pid": pid}
        self.stdio = ("ours", "ours", "ours")  # handles that there are not: the caller's own

    def process(self, name: str) -> tuple[int, int]:
        return self._process

    def document(self) -> tuple[Replayed, list[int]]:
        *steps, last = [step for step in self.plan.steps if isinstance(step, InitStep)]
        assert isinstance(last, ExecuteContainer)
        self._asked.clear()
        bare = pack(PLAN_HEADER, PLAN_MAGIC, 0)
        head = pack(PLAN_HEADER, PLAN_MAGIC, len(steps) + 1) + encode(steps, self)[len(bare) :]
        program, _, environment, *numbers = last.args(self)  # type: ignore[arg-type]
        head += pack("=I", OP_OF_STEP["ExecuteContainer"]) + argument("s", program)
        tail = argument("l", environment) + b"".join(argument("i", number) for number in numbers)
        return ("document", head, b"", tail), sorted(self._asked - {-1})


def leave(run: ContainerRun, config: dict[str, Any]) -> None:
    """Leave the plan of a container that has just been made, if there can be one."""
    container = run.container
    assert container
    try:
        if os.geteuid() or kernel.in_userns():
            raise CannotReplay("it is not of the host's own root")
        steps = _witnesses(container)
        called = config.get("hooks") or {}
        for verb, some in (
            ("state", _state(container)),
            ("start", None if called.get("startContainer") or called.get("poststart") else [*_look(container), _only("created"), ("let_go",)]),
            ("kill", [*_look(container), ("send",)]),
            ("delete", None if called.get("poststop") or container.note().get("unit") else _delete(container)),
            ("exec", _exec(run, container, config)),
        ):  # fmt: skip
            if some is not None:
                steps += [("verb", verb), *some]
        body = b"".join(encoded(*step) for step in steps)
        data = pack(REPLAY_HEADER, REPLAY_MAGIC, BUILD, kernel.checksum(body), len(steps)) + body
        if len(data) > REPLAY_BYTES:
            raise CannotReplay("it is too large")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        with open(os.open(f"{container.path}/plan.tmp", flags, 0o600), "wb") as file:
            file.write(data)
        os.rename(f"{container.path}/plan.tmp", f"{container.path}/plan")
    except CannotReplay:
        pass
    except Exception:  # the container is there, and every command finds all that it needs without a plan
        if os.environ.get("NSRUN_REPLAY") == "must":
            raise


def _same_link(path: str) -> Replayed:
    return "same_link", path, os.readlink(path)


def _witnesses(container: Container) -> list[Replayed]:
    """Return what every command takes for granted: that pids, start times, the boot and what is written are the same."""
    clock = "/proc/self/ns/time"  # of which some kernels have none
    found: list[Replayed] = [("container", container.path), _same_link("/proc/self/ns/pid"), _same_link("/proc/self/ns/user")]  # fmt: skip
    found.append(_same_link(clock) if os.path.lexists(clock) else ("absent", clock))
    found.append(("same_text", BOOT_ID, f"{container.note()['boot']}\n"))
    return found + [same_file(path, os.lstat(path)) for path in (f"{container.path}/state", f"{container.path}/config")]


def _look(container: Container) -> list[Replayed]:
    note = container.note()
    v1 = cgroups.path_with(note["cgroups"], "freezer")
    return [("look", note["pid"], note["start"], v1 or cgroups.v2_of(note["cgroups"]), int(bool(v1)))]


def _only(*statuses: str) -> Replayed:
    return "only", statuses


def _state(container: Container) -> list[Replayed]:
    from nsrun.oci import say

    hole = '"pid": 0,\n  "status": ""'  # a text of anybody's has its quotes escaped
    before, found, after = say.document(container.describe("", 0)).partition(hole)
    if not found:
        raise CannotReplay("the state has another form")
    return [*_look(container), ("answer", f'{before}"pid": ', ',\n  "status": "', f'"{after}')]


def _delete(container: Container) -> list[Replayed]:
    paths = container.note()["cgroups"].values()
    return [*_look(container), _only("stopped", "created"), ("end",), *(("remove_cgroup", path) for path in paths), ("remove",)]  # fmt: skip


def _exec(run: ContainerRun, container: Container, config: dict[str, Any]) -> list[Replayed] | None:
    """Return the steps of an exec; None when Python has to do it."""
    from nsrun.oci.plan import Facts, exec_plan

    note = container.note()
    pid, start = note["pid"], note["start"]
    flags = hooks.foreign(pid)
    process = {**config["process"], "terminal": False, "consoleSize": None}
    if flags & (kernel.CLONE_NEWUSER | kernel.CLONE_NEWTIME) or process.get("selinuxLabel"):
        return None
    witnesses = [_same_link(f"/proc/{who}/ns/{name}") for name in _NAMESPACES for who in ("self", pid)]
    selinux = os.path.exists("/sys/fs/selinux/enforce")
    facts = Facts(root=container.root, ident=container.id, selinux=selinux)
    plan = exec_plan(process, (config.get("linux") or {}).get("seccomp"), note, flags, facts)
    compiler = ExecCompiler(plan, run, pid, start)
    found: list[Replayed] = []
    for step in plan.steps:
        if step.phase == INIT:
            continue
        form: Sequence[Replayed] | None = step.replayed(compiler)
        if form is None:
            return None
        found += form
    return [*_look(container), _only("created", "running"), *witnesses, *found, ("stay",)]


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
