# SPDX-License-Identifier: Apache-2.0
"""Lab 13: PID namespaces nest."""

from __future__ import annotations

from nsrun.teach import facts, scene
from nsrun.teach.facts import Process
from nsrun.teach.lab import USER_NAMESPACES, UTIL_LINUX, Lab, Row, Work, best, tool

_SHARED = ("net", "ipc", "uts")


def make_scene(work: Work) -> dict[str, str]:
    """Make a pod."""
    pod = work.variables["POD"]
    work.nsrun("pod", "create", "--network", "none", pod)
    pause = work.pause(pod)
    assert pause
    return {
        "PAUSE": str(pause.pid),
        "ENTER": " ".join(facts.enter(pause.pid, "pid", *_SHARED)),
        "UNSHARE": scene.unshare(),
    }


def check(work: Work) -> list[Row]:
    pause = scene.pause_of(work)
    inside = [process for process in work.away("pid") if not pause or process.pid != pause.pid]
    return best(inside, lambda process: _rows(work, pause, process))


def _rows(work: Work, pause: Process | None, process: Process | None) -> list[Row]:
    pid: int | str = process.pid if process else "PID"
    pod = f"pid:[{pause.namespaces['pid']}]" if pause else "none, since the pod has ended"
    numbers = process.pids if process else []
    nobody = "" if process else "no process of yours is in another PID namespace"
    parent = _parent(process) if process else 0
    apart = [k for k in _SHARED if process and pause and process.namespaces.get(k) != pause.namespaces.get(k)]

    def row(name: str, ok: bool, wanted: str, seen: str, see: str) -> Row:
        return Row(name, process is not None and ok, wanted, nobody or seen, see)

    return [
        row(
            "numbers",
            len(numbers) == 3,
            "a process of yours has three numbers: one here, one in the pod, one in its own PID namespace",
            f"process {pid} has the numbers {' '.join(map(str, numbers))}",
            f"grep NSpid /proc/{pid}/status",
        ),
        row(
            "parent",
            pause is not None and parent == pause.namespaces["pid"],
            f"the parent of its PID namespace is the pod's: {pod}",
            f"the parent is pid:[{parent}]",
            f"lsns --type pid --tree; readlink /proc/{work.variables['PAUSE']}/ns/pid",
        ),
        row(
            "proc",
            process is not None and _sees_itself(process),
            "its /proc shows it the processes of its own PID namespace, where it is 1",
            "its /proc shows another namespace",
            f"nsenter --target {pid} --all ps",
        ),
        row(
            "shared",
            pause is not None and not apart,
            "its network, IPC and UTS namespaces are the pod's",
            f"not the pod's: {', '.join(apart)}" if apart else "they are" if pause else "the pod has ended",
            f"ls -l /proc/{pid}/ns /proc/{work.variables['PAUSE']}/ns",
        ),
    ]


def _parent(process: Process) -> int:
    """Return the inode of the parent of a process's PID namespace, 0 when it can't be asked."""
    try:
        return facts.namespace(f"/proc/{process.pid}/ns/pid").parent
    except OSError:
        return 0


def _sees_itself(process: Process) -> bool:
    """Return whether number 1 in the procfs that a process sees is the process itself: it has the same start time."""
    mount = facts.mount_at(process.pid, "/proc")
    fields = facts.text_in_root(process.pid, "proc/1/stat").rpartition(")")[2].split()
    return mount is not None and mount.fstype == "proc" and len(fields) > 19 and fields[19] == str(process.start)


LAB = Lab(
    13,
    "nested-pid",
    "PID namespaces nest",
    20,
    ("POD",),
    check,
    needs=(UTIL_LINUX, USER_NAMESPACES, scene.SUBORDINATE, tool("newuidmap", "uidmap")),
    scene=make_scene,
)
