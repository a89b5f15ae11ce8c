# SPDX-License-Identifier: Apache-2.0
"""Lab 03: kill pause."""

from __future__ import annotations

import os

from nsrun.teach import facts
from nsrun.teach.facts import Process
from nsrun.teach.lab import USER_NAMESPACES, Lab, Row, Work, best


def check(work: Work) -> list[Row]:
    name, port = work.variables["POD"], int(work.variables["PORT"])
    pods = [process for process in work.away("uts") if work.hostname(process) == name]
    pauses = [process for process in pods if facts.is_pause(process.pid)]
    survivors = [p for p in pods if p not in pauses and p.pids[-1] == 1]
    listening = [port for _, _, one in facts.sockets(os.getpid()) if one == port]

    def rows(process: Process | None) -> list[Row]:
        pid = process.pid if process else "PID"
        net = process.namespaces.get("net") if process else 0
        others = [
            p for p in pods if process and p.namespaces.get("pid") != process.namespaces.get("pid") and p not in pauses
        ]
        return [
            Row(
                "pause",
                not pauses,
                f"the pause of {name} has ended",
                f"process {pauses[0].pid} is pause, and lives" if pauses else "no pause with this hostname",
                "nsrun pod ls; pgrep --list-name pause",
            ),
            Row(
                "outlived",
                bool(process),
                f"a member with a PID namespace of its own lives on, with the hostname {name}",
                f"process {pid} is 1 in pid:[{process.namespaces.get('pid')}]" if process else "no process of yours is 1 and has that hostname",
                f"grep NSpid /proc/{pid}/status; nsenter --target {pid} --uts uname -n",
            ),
            Row(
                "network",
                bool(process) and net != work.home["net"],
                "it still has the pod's network",
                ("it is in the machine's network" if net == work.home["net"] else f"it is in net:[{net}]") if process else "no such process",
                f"readlink /proc/{pid}/ns/net /proc/self/ns/net",
            ),
            Row(
                "alone",
                bool(process) and not others,
                "every other member has ended with pause",
                f"also {', '.join(f'{p.pid} ({p.name})' for p in others)}" if others else "it is alone" if process else "no such process",
                f"lsns --type uts --task {pid}",
            ),
            Row(
                "port",
                not listening,
                f"port {port} of the machine is free",
                f"somebody listens on port {port}" if listening else f"nobody listens on port {port}",
                f"ss -ltnp 'sport = {port}'",
            ),
        ]  # fmt: skip

    return best(survivors, rows)


LAB = Lab(3, "pause", "Kill pause", 15, ("POD", "POD_TRY", "PORT"), check, needs=(USER_NAMESPACES,), publishes=True)
