# SPDX-License-Identifier: Apache-2.0
"""Lab 02: PID one."""

from __future__ import annotations

import os

from nsrun.teach import facts
from nsrun.teach.facts import Process
from nsrun.teach.lab import USER_NAMESPACES, UTIL_LINUX, Lab, Row, Work, best


def _shown(process: Process) -> str:
    """Return whose processes the process's own /proc shows: "its own", or another PID namespace, or what is there instead."""
    mount = facts.mount_at(process.pid, "/proc")
    if not mount or mount.fstype != "proc":
        return f"a {mount.fstype if mount else 'directory'}"
    try:
        inode = os.stat(f"/proc/{process.pid}/root/proc/1/ns/pid").st_ino
    except OSError as error:
        return f"a procfs whose process 1 can't be looked at ({error.strerror})"
    return "its own" if inode == process.namespaces["pid"] else f"that of pid:[{inode}]"


def check(work: Work) -> list[Row]:
    home = work.home["pid"]

    def rows(process: Process | None) -> list[Row]:
        pid = process.pid if process else "PID"
        shown = _shown(process) if process else "no such process"
        inode = process.namespaces["pid"] if process else 0
        others = [p for p in work.inside("pid", inode) if process and p.pid != process.pid]
        return [
            Row(
                "first",
                bool(process),
                f"a process of yours that is 1 in another PID namespace than pid:[{home}]",
                f"process {pid} is {process.pids[-1]} in pid:[{inode}]" if process else "each of your processes has one number",
                f"grep NSpid /proc/{pid}/status",
            ),
            Row(
                "hand",
                process is not None and not facts.is_of_nsrun(process),
                "neither pause nor a member of a pod: you made it by hand",
                f"it executes {facts.program(process.pid)}, its parent {facts.program(process.ppid)}" if process else "no such process",
                f"readlink /proc/{pid}/exe /proc/{process.ppid if process else 'PARENT'}/exe",
            ),
            Row(
                "alone",
                bool(process) and not others,
                "it is the only process in there",
                f"also {', '.join(f'{p.pid} ({p.name})' for p in others)}" if others else "it is alone" if process else "no such process",
                f"lsns --type pid --task {pid}",
            ),
            Row(
                "proc",
                shown == "its own",
                "its /proc shows its own PID namespace",
                f"its /proc is {shown}" if process else shown,
                f"ls -l /proc/{pid}/ns/pid /proc/{pid}/root/proc/1/ns/pid",
            ),
        ]  # fmt: skip

    return best([process for process in work.away("pid") if process.pids[-1] == 1], rows)


LAB = Lab(2, "first", "PID one", 10, ("POD",), check, needs=(UTIL_LINUX, USER_NAMESPACES))
