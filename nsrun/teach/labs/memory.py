# SPDX-License-Identifier: Apache-2.0
"""Lab 06: shared memory is two things."""

from __future__ import annotations

from nsrun.teach import facts
from nsrun.teach.facts import Process
from nsrun.teach.lab import USER_NAMESPACES, UTIL_LINUX, Lab, Row, Work, best, tool


def scene(work: Work) -> dict[str, str]:
    """Make a pod, and a member that leaves a segment in its IPC namespace and a file in its /dev/shm."""
    pod, word = work.variables["POD"], work.variables["WORD"]
    work.nsrun("pod", "create", "--network", "none", pod)
    work.nsrun(
        "join", pod, "-d", "--name", f"{pod}-keeper", "-e", f"WORD={word}", "--", "sh", "-c",
        'ipcmk --shmem 4096 >/dev/null; echo "$WORD" >"/dev/shm/$WORD"; exec sleep 100000',
    )  # fmt: skip
    found = work.pause(pod)
    pause = found.pid if found else 0
    work.look_again()
    keeper = min(work.of_pods() - {pause})
    return {"KEEPER": str(keeper)}


def check(work: Work) -> list[Row]:
    pod = work.variables["POD"]
    pause = work.first(pod)
    shm = facts.shm(pause.pid) if pause else ""
    ipc = pause.namespaces["ipc"] if pause else 0
    kept = facts.segments(pause.pid) if pause else 0
    no = f"there is no pod {pod}" if not pause else "no such process"

    def shares(process: Process) -> bool:
        return process.namespaces.get("ipc") == ipc or facts.shm(process.pid) == shm

    def rows(process: Process | None) -> list[Row]:
        pid = process.pid if process else "PID"
        seen = facts.shm(process.pid) if process else ""
        return [
            Row(
                "hand",
                bool(process),
                f"a process of yours, outside of the pod's PID namespace, that shares memory with {pod}",
                f"process {pid}" if process else no,
                f"lsns --type ipc; grep NSpid /proc/{pid}/status",
            ),
            Row(
                "ipc",
                process is not None and process.namespaces.get("ipc") == ipc,
                "it sees the pod's System V segments: it is in the pod's IPC namespace",
                f"ipc:[{process.namespaces.get('ipc')}]; the pod's is ipc:[{ipc}]" if process else no,
                f"readlink /proc/{pid}/ns/ipc /proc/{pause.pid if pause else 'PAUSE'}/ns/ipc",
            ),
            Row(
                "shm",
                bool(process) and seen == shm,
                "its /dev/shm is the file system that the pod's is",
                f"{seen or 'nothing is mounted there'}; the pod's is {shm}" if process else no,
                f"findmnt --task {pid} --output MAJ:MIN /dev/shm; findmnt --task {pause.pid if pause else 'PAUSE'} --output MAJ:MIN /dev/shm",
            ),
            Row(
                "kept",
                kept > 0,
                "the pod's segment is still there",
                f"{max(kept, 0)} segments" if pause else no,
                f"nsenter --target {pause.pid if pause else 'PAUSE'} --ipc ipcs --shmems",
            ),
        ]  # fmt: skip

    return best([p for p in work.mine if pause and p.namespaces.get("pid") == work.home["pid"] and shares(p)], rows)


LAB = Lab(
    6, "memory", "Shared memory is two things", 20, ("POD", "WORD"), check, scene=scene,
    needs=(UTIL_LINUX, USER_NAMESPACES, tool("ipcmk", "util-linux"), tool("python3", "python3")),
)  # fmt: skip
