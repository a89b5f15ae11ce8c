# SPDX-License-Identifier: Apache-2.0
"""Lab 12: memory is counted."""

from __future__ import annotations

import os
import time

from nsrun import kernel
from nsrun.errors import NsrunError
from nsrun.teach import facts, scene
from nsrun.teach.lab import Lab, Need, Row, Work

_LIMIT = 32 << 20
#: What is written to which file, in version 1 and 2.
_FILES = {1: ("memory.limit_in_bytes", "memory.swappiness"), 2: ("memory.max", "memory.swap.max")}


def _no_controller() -> str:
    version, point = facts.controller("memory")
    if not version:
        return "no cgroup file system that is mounted has the controller memory"
    return "" if os.access(point, os.W_OK) or os.geteuid() else f"{point} is read-only"


_CONTROLLER = Need(
    "a memory cgroup",
    _no_controller,
    "mount -t cgroup2 cgroup2 /sys/fs/cgroup; in a container, give it a cgroup tree of its own that it may write to",
)


def make_scene(work: Work) -> dict[str, str]:
    version, point = facts.controller("memory")
    if version == 2:
        _offer(point)
    limit, swap = _FILES[version]
    # tail(1) keeps a line without an end in memory, and this one has 128 MiB
    greedy = "head -c 128m /dev/zero | tail >/dev/null"
    return {"CGROUP": _directory(work), "LIMIT": limit, "SWAP": swap, "GREEDY": greedy, "ROOTFS": scene.rootfs(work)}


def _directory(work: Work) -> str:
    return f"{facts.controller('memory')[1]}/{work.variables['POD']}"


def _offer(point: str) -> None:
    """Offer the controller to the cgroups below the topmost one, as nsrun does for a limit."""
    try:
        with open(f"{point}/cgroup.subtree_control", "r+b", buffering=0) as file:
            if b"memory" not in file.read().split():
                file.write(b"+memory")
    except OSError as error:
        raise NsrunError(
            f"{point}/cgroup.subtree_control: {error.strerror}",
            hint="a cgroup that has processes can't offer memory to others: give this container a cgroup of its own",
        ) from None


def check(work: Work) -> list[Row]:
    """Ask the cgroup of the lab, and those in which the student's processes are: the one that satisfies most rows."""
    wanted = [work.variables["CGROUP"]]
    for process in work.mine:
        directory = facts.cgroup(process.pid, "memory")
        while directory and facts.memory_limit(directory):
            wanted.append(directory)
            directory = os.path.dirname(directory)
    tried = [_rows(work, directory) for directory in dict.fromkeys(wanted)]
    return max(tried, key=lambda rows: sum(row.ok for row in rows))


def _rows(work: Work, directory: str) -> list[Row]:
    limit, killed = facts.memory_limit(directory), facts.out_of_memory(directory)
    version, _ = facts.controller("memory")
    events = "memory.events" if version == 2 else "memory.oom_control"
    inside = [
        p for p in work.mine if f"{facts.cgroup(p.pid, 'memory')}/".startswith(f"{directory}/") and p.state != "Z"
    ]
    no = "there is no such cgroup"
    return [
        Row(
            "limit",
            limit == str(_LIMIT),
            f"a cgroup whose limit is 32 MiB, {_LIMIT} bytes",
            f"{limit} in {directory}" if limit else no,
            f"cat {directory}/{_FILES[version][0]}",
        ),
        Row(
            "killed",
            killed > 0,
            "the kernel has killed a process in it for want of memory",
            no if killed < 0 else f"oom_kill {killed}",
            f"grep oom_kill {directory}/{events}",
        ),
        Row(
            "neighbour",
            bool(inside),
            "another process of yours in the same cgroup lives",
            ", ".join(f"{process.pid} ({process.name})" for process in inside) or "no process of yours is in it",
            f"cat {directory}/cgroup.procs",
        ),
    ]  # fmt: skip


def reset(work: Work) -> None:
    """End the student's processes in the cgroup of the lab, and remove it."""
    directory = _directory(work)
    mine = {process.pid for process in work.mine}
    for _ in range(500):
        left = _inside(directory)
        if not left:
            break
        for pid in left & mine:
            try:
                with kernel.Fd(kernel.pidfd_open(pid)) as fd:
                    kernel.pidfd_send_signal(fd, 9)
            except OSError:
                continue  # it has ended
        time.sleep(0.01)
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        pass
    except OSError as error:
        work.troubles.append(f"{directory}: {error.strerror}, processes {sorted(_inside(directory))} are in it")


def _inside(directory: str) -> set[int]:
    try:
        with open(f"{directory}/cgroup.procs", "rb") as file:
            return set(map(int, file.read().split()))
    except OSError:
        return set()


LAB = Lab(
    12,
    "counted-memory",
    "Memory is counted",
    20,
    ("POD",),
    check,
    needs=(_CONTROLLER, scene.BUSYBOX),
    root="only root may make a cgroup and limit it, where none was delegated",
    scene=make_scene,
    reset=reset,
)
