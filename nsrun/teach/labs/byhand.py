# SPDX-License-Identifier: Apache-2.0
"""Lab 05: a pod by hand."""

from __future__ import annotations

import os

from nsrun.teach import facts
from nsrun.teach.facts import Process
from nsrun.teach.lab import USER_NAMESPACES, UTIL_LINUX, Lab, Row, Work, best, tool

SHARED = ("net", "ipc", "uts", "pid")


def check(work: Work) -> list[Row]:
    firsts = [process for process in work.away("net") if process.pids[-1] == 1]
    return best(firsts or work.away("net"), lambda holder: _rows(work, holder))


def _rows(work: Work, holder: Process | None) -> list[Row]:
    word, port = work.variables["WORD"], int(work.variables["PORT"])
    pid, no = "PID", "no such process"
    missing: list[str] = []
    around: list[Process] = []
    up = serving = pause = False
    name = executed = ""
    if holder:
        pid = str(holder.pid)
        missing = [kind for kind in SHARED if holder.namespaces.get(kind) == work.home[kind]]
        around = [p for p in work.mine if p is not holder and p.namespaces.get("net") == holder.namespaces.get("net")]
        up = "127.0.0.1" in facts.addresses(holder.pid)
        serving = any(one == port for _, _, one in facts.sockets(holder.pid))
        name, executed, pause = work.hostname(holder), facts.program(holder.pid), facts.is_pause(holder.pid)
    # a nsenter(1) that only waits for its child is not in the PID namespace, and is not one of those who meet
    met = [
        p for p in around if holder and all(p.namespaces.get(kind) == holder.namespaces.get(kind) for kind in SHARED)
    ]
    taken = {work.home["mnt"], holder.namespaces.get("mnt") if holder else 0}
    own = {p.namespaces.get("mnt") for p in met} - taken
    shms = {facts.shm(p.pid) for p in met}
    machines = facts.shm(os.getpid())
    return [
        Row(
            "holder",
            bool(holder) and not missing,
            f"a process of yours that is 1, in new namespaces of the kinds {', '.join(SHARED)}",
            f"process {pid} is in the machine's {', '.join(missing)}" if missing else f"process {pid}" if holder else no,
            f"grep NSpid /proc/{pid}/status; ls -l /proc/{pid}/ns",
        ),
        Row(
            "hand",
            bool(holder) and not pause,
            "it is not nsrun's pause",
            f"it executes {executed}" if holder else no,
            f"readlink /proc/{pid}/exe",
        ),
        Row(
            "hostname",
            bool(holder) and name == word,
            f"hostname {word} in there",
            f"hostname {name}" if holder else no,
            f"nsenter --target {pid} --uts uname -n",
        ),
        Row(
            "members",
            len(met) >= 2,
            f"two others in the same {', '.join(SHARED)} namespaces",
            f"{len(met)}; {len(around)} share its network" if holder else no,
            f"lsns --task {pid}",
        ),
        Row(
            "mounts",
            len(own) >= 2,
            "two of them have mount namespaces of their own",
            f"{len(own)}, besides the machine's and that of {pid}" if holder else no,
            f"lsns --type mnt; readlink /proc/{pid}/ns/mnt",
        ),
        Row(
            "lo",
            up,
            "lo is up in their network namespace",
            f"127.0.0.1 is {'there' if up else 'not there'}" if holder else no,
            f"nsenter --target {pid} --net ip address show lo",
        ),
        Row(
            "server",
            serving,
            f"one of them listens on port {port} in there",
            f"{'a' if serving else 'no'} socket listens on it" if holder else no,
            f"nsenter --target {pid} --net ss -ltn",
        ),
        Row(
            "shm",
            len(met) >= 2 and len(shms) == 1 and not shms & {"", machines},
            "they have one /dev/shm, which is not the machine's",
            f"{', '.join(sorted(shms))}; the machine's is {machines}" if met else "nobody has joined it" if holder else no,
            f"findmnt --task {met[0].pid if met else pid} --output MAJ:MIN /dev/shm; findmnt --output MAJ:MIN /dev/shm",
        ),
    ]  # fmt: skip


LAB = Lab(
    5, "byhand", "A pod by hand", 25, ("WORD", "PORT", "POD"), check,
    needs=(UTIL_LINUX, USER_NAMESPACES, tool("ip", "iproute2"), tool("python3", "python3"), tool("pgrep", "procps")),
)  # fmt: skip
