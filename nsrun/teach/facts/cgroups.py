# SPDX-License-Identifier: Apache-2.0
"""What the kernel says about the cgroups that a process is in, of version 1 or 2: cgroups(7)."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from nsrun.schema import is_number
from nsrun.teach.facts.mounts import mounts
from nsrun.teach.facts.processes import read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def controller(name: str) -> tuple[int, str]:
    """Return (version, mount point) of the hierarchy that has a controller such as "memory"; (0, "") when none has it."""
    for mount in mounts(os.getpid()):
        if mount.fstype == "cgroup" and name in mount.superblock:
            return 1, mount.point
        if mount.fstype == "cgroup2":
            try:
                with open(f"{mount.point}/cgroup.controllers", "rb") as file:
                    if name in file.read().decode().split():
                        return 2, mount.point
            except OSError:
                continue
    return 0, ""


def cgroup(pid: int, name: str) -> str:
    """Return the directory of the cgroup in which a controller counts a process; "" when it has ended, or none does."""
    return _directory(pid, name, *controller(name))


def _directory(pid: int, name: str, version: int, point: str) -> str:
    for controllers, path in _paths(pid):
        if version == 2 and not controllers or version == 1 and name in controllers.split(","):
            return point + path.rstrip("/")
    return ""


def _paths(pid: int) -> Iterator[tuple[str, str]]:
    """Yield (controllers, path) of each hierarchy, that of version 2 with "" as its controllers."""
    try:
        lines = read(pid, "cgroup").decode("utf-8", "surrogateescape").split("\n")
    except OSError:
        return
    for line in lines:  # cgroups(7): number:controllers:path
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if path:
            yield controllers, path


def group(pid: int) -> str:
    """Return the path of the cgroup of a process, in the hierarchy in which it is deepest; "" when it has ended.

    An engine may have made its cgroup in some of the hierarchies of version 1 only.
    """
    return max((path for _, path in _paths(pid)), key=lambda path: (path.count("/") - (path == "/"), path), default="")


@dataclass(frozen=True)
class Limit:
    """What a controller allows a process, by the tightest of its cgroup and those above it; in bytes, or processes."""

    used: int  # by all in that cgroup
    most: float  # for cpu, in processors


#: controller → the files (limit, in use) of version 2 and of version 1
_LIMITS = {
    "memory": (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")),
    "pids": (("pids.max", "pids.current"), ("pids.max", "pids.current")),
    "cpu": (("cpu.max", ""), ("cpu.cfs_quota_us", "")),
}


def controllers() -> dict[str, tuple[int, str]]:
    """Return, for each controller that can limit, what controller() says: for limits(), to ask it once for many processes."""
    return {name: controller(name) for name in _LIMITS}


def limits(pid: int, where: dict[str, tuple[int, str]]) -> dict[str, Limit]:
    """Return the limits that hold for a process: controller → Limit.  `where` is what controllers() says."""
    found: dict[str, Limit] = {}
    for name, (version, point) in where.items():
        directory = _directory(pid, name, version, point) if version else ""
        if not directory or ".." in directory.split("/"):
            continue  # it is outside our cgroup namespace
        while len(directory) > len(point):
            limit = _limit(directory, name, version)
            if limit and (name not in found or limit.most < found[name].most):
                found[name] = limit
            directory = os.path.dirname(directory)
    return found


def _limit(directory: str, name: str, version: int) -> Limit | None:
    most, used = _LIMITS[name][0 if version == 2 else 1]
    words = _words(f"{directory}/{most}")
    if name == "cpu":
        words += _words(f"{directory}/cpu.cfs_period_us") if version == 1 else []
        if len(words) == 2 and all(map(is_number, words)):
            return Limit(0, int(words[0]) / int(words[1]))
        return None
    if not words or not is_number(words[0]):
        return None  # "max"; version 1 has a number of 19 digits in its place
    now = _words(f"{directory}/{used}")
    return Limit(int(now[0]) if now else 0, int(words[0]))


def _words(path: str) -> list[str]:
    try:
        with open(path, "rb") as opened:
            return opened.read().decode().split()
    except OSError:
        return []


def out_of_memory(directory: str) -> int:
    """Return how many processes of a memory cgroup the kernel has killed for want of memory; -1 when it can't be read."""
    for file in ("memory.events", "memory.oom_control"):  # of version 2, and 1
        try:
            with open(f"{directory}/{file}", "rb") as opened:
                found = re.search(rb"^oom_kill (\d+)$", opened.read(), re.M)
        except OSError:
            continue
        return int(found[1]) if found else -1
    return -1


def memory_limit(directory: str) -> str:
    """Return the limit of a memory cgroup, as the kernel prints it; "" when it can't be read."""
    for file in ("memory.max", "memory.limit_in_bytes"):
        try:
            with open(f"{directory}/{file}", "rb") as opened:
                return opened.read().decode().strip()
        except OSError:
            continue
    return ""
