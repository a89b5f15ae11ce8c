# SPDX-License-Identifier: Apache-2.0
"""Lab 14: an incident."""

from __future__ import annotations

import os
import signal

from nsrun.teach import facts, scene
from nsrun.teach.lab import USER_NAMESPACES, UTIL_LINUX, Lab, Row, Work, draw, tool

_FAULTS = ("lo", "stopped", "rules", "shm", "root", "hostname")
_RULES = (
    "add table ip incident; add chain ip incident input { type filter hook input priority 0; }; "
    "add rule ip incident input tcp dport 80 drop"
)


def make_scene(work: Work) -> dict[str, str]:
    """Make a pod with a web server, and break three things of it that the seed chooses."""
    pod, rootfs = work.variables["POD"], scene.rootfs(work)
    member = f"{pod}-web"
    work.nsrun("pod", "create", "--network", "none", "--shm-size", "1m", pod)
    server = f"echo {work.variables['WORD']} >index.html; exec httpd -f -p 80"
    work.nsrun("join", pod, "-d", "--name", member, "--rootfs", rootfs, "--", "sh", "-c", server)
    pause = work.pause(pod)
    note = next(note for note in work.state.all("members") if note["name"] == member)
    assert pause and note["process"]
    pid = note["process"][0]
    scene.until(lambda: any(port == 80 for _, _, port in facts.sockets(pid)), "the web server listens")
    for fault in broken(work):
        _break(work, fault, pid)
    return {
        "MEMBER": member,
        "ROOTFS": rootfs,
        "PAUSE": str(pause.pid),
        "SERVER": str(pid),
        "ENTER": " ".join(facts.enter(pid, "net", "uts")),
        "ENTER_MOUNT": " ".join(facts.enter(pid, "mnt", "pid")),
    }


def broken(work: Work) -> list[str]:
    """Return the three faults of this student."""
    left, found = list(_FAULTS), []
    for turn in range(3):
        found.append(left.pop(draw(work.seed, work.lab.number, f"fault {turn}") % len(left)))
    return found


def _break(work: Work, fault: str, pid: int) -> None:
    if fault == "stopped":
        os.kill(pid, signal.SIGSTOP)
    elif fault == "shm":
        with open(f"/proc/{pid}/root/dev/shm/core", "wb", buffering=0) as file:
            try:
                while file.write(b"\0" * 65536):
                    pass
            except OSError:
                pass  # ENOSPC
    else:
        kinds, command = {
            "lo": (["net"], ["ip", "link", "set", "lo", "down"]),
            "rules": (["net"], ["nft", _RULES]),
            "root": (["mnt", "pid"], ["mount", "-o", "remount,bind,ro", "/"]),  # mount(8) reads /proc/self/mounts
            "hostname": (["uts"], ["hostname", "localhost"]),
        }[fault]
        scene.run(work, *facts.enter(pid, *kinds), *command)


def check(work: Work) -> list[Row]:
    pid, pause = int(work.variables["SERVER"]), scene.pause_of(work)
    server = facts.process(pid)
    alive = server is not None and pause is not None and server.namespaces.get("pid") == pause.namespaces.get("pid")
    gone = f"there is no process {pid} in the pod"

    def row(name: str, ok: bool, wanted: str, seen: str, see: str) -> Row:
        return Row(name, alive and ok, wanted, seen if alive else gone, see)

    said = scene.ask(pid, "127.0.0.1", 80) if alive else ""
    free = _free(pid)
    mount = facts.mount_at(pid, "/")
    options = ",".join(mount.options) if mount else "none"
    hostname = facts.hostname_of(pid) if alive else ""
    return [
        Row(
            "pod",
            pause is not None,
            f"the pod is the one it was: its pause is process {work.variables['PAUSE']}",
            "it lives" if pause else f"there is no pause {work.variables['PAUSE']}",
            "nsrun pod ls",
        ),
        row(
            "server",
            alive,
            f"the web server is the one it was, process {pid}",
            f"process {pid}, in the pod",
            f"nsrun pod ps {work.variables['POD']}",
        ),
        row(
            "answer",
            said == work.variables["WORD"],
            f"in the pod, it answers {work.variables['WORD']} on http://127.0.0.1/",
            said,
            "$ENTER busybox wget -T 2 -qO- http://127.0.0.1/",
        ),
        row("shm", free > 0, "its /dev/shm has space", f"{free} bytes are free", f"df /proc/{pid}/root/dev/shm"),
        row("root", "rw" in options.split(","), "it can write to its root", f"mounted {options}", f"grep ' / / ' /proc/{pid}/mountinfo"),
        row(
            "hostname",
            hostname == work.variables["POD"],
            f"its hostname is {work.variables['POD']}",
            hostname or "not to be seen",
            "$ENTER uname -n",
        ),
    ]  # fmt: skip


def _free(pid: int) -> int:
    try:
        found = os.statvfs(f"/proc/{pid}/root/dev/shm")
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize


LAB = Lab(
    14,
    "incident",
    "An incident",
    40,
    ("POD", "WORD"),
    check,
    needs=(
        UTIL_LINUX, USER_NAMESPACES, scene.SUBORDINATE, scene.BUSYBOX, tool("newuidmap", "uidmap"), tool("ip", "iproute2"),
        scene.nf_tables("filter", "input"),
    ),
    scene=make_scene,
)  # fmt: skip
