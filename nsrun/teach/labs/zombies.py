# SPDX-License-Identifier: Apache-2.0
"""Lab 04: zombies and PID 1."""

from __future__ import annotations

from nsrun.teach import facts
from nsrun.teach.facts import Process
from nsrun.teach.lab import USER_NAMESPACES, UTIL_LINUX, Lab, Row, Work


def _names(processes: list[Process]) -> str:
    return ", ".join(f"{process.pid} ({process.name}, child of {process.ppid})" for process in processes)


def check(work: Work) -> list[Row]:
    name = work.variables["POD"]
    pause = work.first(name)
    if pause and not facts.is_pause(pause.pid):
        pause = None
    by_pid = {process.pid: process for process in work.processes}
    # a zombie has left its namespaces; those of its parent tell where it was born
    dead = [
        process for process in work.mine if process.state == "Z" and len(process.pids) > 1 and process.ppid in by_pid
    ]
    podded = {pause.namespaces["pid"]} if pause else set()
    in_pod = [process for process in dead if by_pid[process.ppid].namespaces.get("pid") in podded]
    outside = [process for process in dead if process not in in_pod]
    left = [process for process in outside if by_pid[process.ppid].pids[-1] == 1]
    adopted = [p for p in work.processes if pause and p.ppid == pause.pid and p.state != "Z"]
    first = (left or outside)[0].ppid if outside else "PID"
    return [
        Row(
            "zombie",
            bool(outside),
            "a zombie in a PID namespace that you made by hand",
            _names(outside) or "there is no zombie",
            "ps -eo pid,ppid,stat,comm | grep Z",
        ),
        Row(
            "unreaped",
            bool(left),
            "its parent is the 1 of that namespace, which does not wait for it",
            f"its parent {first} is {by_pid[first].pids[-1]} in there" if isinstance(first, int) else "there is no zombie",
            f"grep NSpid /proc/{first}/status",
        ),
        Row(
            "adopted",
            bool(adopted),
            f"a living process whose parent is the pause of {name}",
            _names(adopted) if adopted else f"pause ({pause.pid}) has no child" if pause else f"there is no pod {name}",
            f"pgrep --list-name --parent {pause.pid if pause else 'PID'}",
        ),
        Row(
            "reaped",
            bool(pause) and not in_pod,
            "no zombie in the pod",
            _names(in_pod) if in_pod else "there is none" if pause else f"there is no pod {name}",
            f"nsrun pod ps {name}",
        ),
    ]  # fmt: skip


LAB = Lab(4, "zombies", "Zombies and PID 1", 15, ("POD",), check, needs=(UTIL_LINUX, USER_NAMESPACES))
