# SPDX-License-Identifier: Apache-2.0
"""Lab 17: the walls."""

from __future__ import annotations

import os

from nsrun.teach import facts, scene
from nsrun.teach.facts import Process
from nsrun.teach.lab import Lab, Row, Work, best, draw

_NAMES = {12: "NET_ADMIN", 21: "SYS_ADMIN", 23: "SYS_NICE"}
#: What Docker leaves to a container, and nsrun to a member: capabilities(7), by number.
_DEFAULT = 0xA80425FB
_KINDS = ("pid", "net", "ipc", "uts", "mnt")


def make_scene(work: Work) -> dict[str, str]:
    """Make a pod with a member, and draw what the student is to bring about in another member."""
    pod, rootfs = work.variables["POD"], scene.rootfs(work)
    work.nsrun("pod", "create", "--owner", "root", "--network", "none", pod)
    member = f"{pod}-inside"
    work.nsrun("join", pod, "-d", "--name", member, "--rootfs", rootfs, "--", "sleep", "100000")
    return {"MEMBER": member, "ROOTFS": rootfs, "WISH": _wish(work)[0]}


def _wish(work: Work) -> tuple[str, str]:
    """Return a shell command line that takes one capability more than the default ones, and what it brings about."""
    number = int(work.variables["N"])
    return (
        (f"ip address add 10.20.30.{number % 200 + 1}/32 dev lo", f"lo has the address 10.20.30.{number % 200 + 1}"),
        (f"renice -{number % 15 + 5} -p $$", f"its nice value is -{number % 15 + 5}"),
    )[draw(work.seed, work.lab.number, "wish") % 2]


def _needed(work: Work) -> int:
    """Return the capability without which the wish does not come true."""
    return 12 if _wish(work)[0].startswith("ip ") else 23


def _fulfilled(work: Work, process: Process) -> tuple[bool, str, str]:
    """Return whether the wish came true for a process, what the kernel shows, and how to see it."""
    number, pid = int(work.variables["N"]), process.pid
    if _wish(work)[0].startswith("ip "):
        found = facts.addresses(pid)
        wanted = f"10.20.30.{number % 200 + 1}"
        return wanted in found, f"addresses {', '.join(sorted(found))}", f"nsenter --target {pid} --net ip address"
    value = facts.nice(pid)
    return value == -(number % 15 + 5), f"nice {value}", f"ps -o ni -p {pid}"


def check(work: Work) -> list[Row]:
    pods = work.of_pods()
    pause = work.pause(work.variables["POD"])
    scenes = {work.variables["MEMBER"]}
    known = {
        note["process"][0]
        for note in work.state.all("members")
        if note["name"] in scenes and note.get("process")
    }  # fmt: skip
    yours = [
        p
        for p in work.mine
        if p.pid in pods and p.pid not in known and not (pause and p.pid == pause.pid) and p.state != "Z"
    ]
    return best(yours, lambda process: _rows(work, process))


def _rows(work: Work, process: Process | None) -> list[Row]:
    pid: int | str = process.pid if process else "PID"
    nobody = "" if process else f"no member of yours lives in {work.variables['POD']}"
    bounding = process.mask("CapBnd") if process else 0
    more = [number for number in range(64) if bounding & ~_DEFAULT & 1 << number]
    done, shown, see = _fulfilled(work, process) if process else (False, "", "nsrun ls")
    shared = [kind for kind in _KINDS if process and process.namespaces.get(kind) == work.home[kind]]
    files = _files(work, process) if process else []

    def row(name: str, ok: bool, wanted: str, seen: str, see: str) -> Row:
        return Row(name, process is not None and ok, wanted, nobody or seen, see)

    return [
        row("wish", done, f"in a member of yours, $WISH came true: {_wish(work)[1]}", shown, see),
        row(
            "one",
            more == [_needed(work)],
            "it has one capability more than the default ones, the one without which $WISH fails",
            f"{len(more)} more: {', '.join(_NAMES.get(number, str(number)) for number in more[:6])}{' …' if more[6:] else ''}",
            f"capsh --decode=$(awk '/CapBnd/ {{print $2}}' /proc/{pid}/status)",
        ),
        row(
            "filter",
            process is not None and process.status.get("Seccomp") == "2",
            "the filter of system calls still stands",
            f"Seccomp {process.status.get('Seccomp') if process else ''}",
            f"grep Seccomp /proc/{pid}/status",
        ),
        row(
            "namespaces",
            not shared,
            f"none of its namespaces is the machine's: {', '.join(_KINDS)}",
            f"the machine's: {', '.join(shared)}" if shared else "none is",
            f"ls -l /proc/{pid}/ns /proc/self/ns",
        ),
        row(
            "files",
            not files,
            "nothing of this machine's file system is mounted in it",
            f"mounted: {', '.join(files)}" if files else "nothing",
            f"cat /proc/{pid}/mountinfo",
        ),
    ]


def _files(work: Work, process: Process) -> list[str]:
    """Return where a member sees a directory of a file system that is mounted here, except kernel file systems."""
    here = {
        mount.device
        for mount in facts.mounts(os.getpid())
        if mount.fstype not in ("proc", "sysfs", "cgroup2", "mqueue", "devtmpfs")
    }
    return [mount.point for mount in facts.mounts(process.pid) if mount.device in here]


LAB = Lab(
    17,
    "walls",
    "The walls",
    40,
    ("POD", "N"),
    check,
    needs=(scene.BUSYBOX,),
    root="in a pod of an ordinary user the user namespace is one more wall, which no option takes down",
    scene=make_scene,
)
