# SPDX-License-Identifier: Apache-2.0
"""Lab 09: root in here is not root out there."""

from __future__ import annotations

import os

from nsrun.teach import facts, scene
from nsrun.teach.facts import Process
from nsrun.teach.lab import USER_NAMESPACES, UTIL_LINUX, Lab, Row, Work, best, tool

_WWW = 33  # www-data of Debian


def make_scene(work: Work) -> dict[str, str]:
    return {"ROOTFS": scene.rootfs(work)}


def check(work: Work) -> list[Row]:
    away = work.away("user")
    roots = [process for process in away if facts.uid_inside(process) == 0]
    return best(roots or away, lambda process: _rows(work, process))


def _rows(work: Work, process: Process | None) -> list[Row]:
    pid = process.pid if process else "PID"
    nobody = "" if process else "all of your processes are in the machine's user namespace"
    inside, outside = (facts.uid_inside(process), process.uid) if process else (-1, -1)
    www = _www(work, process) if process else None
    return [
        Row(
            "root",
            inside == 0,
            "a process of yours is root, uid 0, in a user namespace of its own",
            nobody or f"process {pid} is uid {inside} in user:[{process.namespaces['user'] if process else 0}]",
            f"nsenter --target {pid} --user --preserve-credentials id -u; cat /proc/{pid}/uid_map",
        ),
        Row(
            "outside",
            outside > 0,
            "outside, it is not root",
            nobody or f"outside, process {pid} is uid {outside}",
            f"grep Uid /proc/{pid}/status",
        ),
        _second(work, pid, www, nobody),
        _file(work, process, www),
    ]


def _www(work: Work, process: Process) -> Process | None:
    space = process.namespaces["user"]
    beside = [one for one in work.mine if one.namespaces.get("user") == space and facts.uid_inside(one) == _WWW]
    return beside[0] if beside else None


def _second(work: Work, pid: int | str, www: Process | None, nobody: str) -> Row:
    student = work.student if work.student >= 0 else os.geteuid()
    said = f"process {www.pid} is uid {www.uid} outside" if www else f"no process in there is uid {_WWW}"
    return Row(
        "www",
        www is not None and www.uid not in (0, student),
        f"another process in there is uid {_WWW}; outside it is neither root nor you",
        nobody or said,
        f"cat /proc/{pid}/uid_map; grep Uid /proc/{www.pid if www else 'PID'}/status",
    )


def _file(work: Work, process: Process | None, www: Process | None) -> Row:
    name, owners = f"files/{work.variables['WORD']}", []
    for top in [f"/proc/{one.pid}/cwd" for one in (process, www) if one]:
        try:
            owners.append(os.lstat(f"{top}/{name}").st_uid)
        except OSError:
            continue
    return Row(
        "file",
        www is not None and www.uid in owners,
        f"the file {name}, from where it works, belongs to uid {_WWW} inside, which outside is that same id",
        f"outside it belongs to uid {owners[0]}" if owners else "there is no such file",
        f"ls -ln /proc/{process.pid if process else 'PID'}/cwd/files",
    )


LAB = Lab(
    9,
    "root-in-here",
    "Root in here is not root out there",
    30,
    ("POD", "WORD"),
    check,
    needs=(UTIL_LINUX, USER_NAMESPACES, scene.BUSYBOX, scene.SUBORDINATE, tool("newuidmap", "uidmap")),
    scene=make_scene,
)
