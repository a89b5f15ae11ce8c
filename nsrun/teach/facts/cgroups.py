# SPDX-License-Identifier: Apache-2.0
"""What the kernel says about the cgroup that counts the memory of a process: cgroups(7)."""

from __future__ import annotations

import os
import re

from nsrun.teach.facts.mounts import mounts
from nsrun.teach.facts.processes import read

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass


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
    version, point = controller(name)
    try:
        lines = read(pid, "cgroup").decode("utf-8", "surrogateescape").split("\n")
    except OSError:
        return ""
    for line in lines:  # cgroups(7): number:controllers:path
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if version == 2 and line.startswith("0::") or version == 1 and name in controllers.split(","):
            return point + path.rstrip("/")
    return ""


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
