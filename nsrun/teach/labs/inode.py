# SPDX-License-Identifier: Apache-2.0
"""Lab 01: a namespace is an inode."""

from __future__ import annotations

from nsrun.teach.facts import Process
from nsrun.teach.lab import USER_NAMESPACES, UTIL_LINUX, Lab, Row, Work, best

#: What an ordinary user's unshare(1) brings along, since only root of a user namespace may make others.
BESIDE = ("uts", "user")


def check(work: Work) -> list[Row]:
    home = work.home["uts"]

    def rows(process: Process | None) -> list[Row]:
        pid = process.pid if process else "PID"
        uts = process.namespaces["uts"] if process else 0
        name = work.hostname(process) if process else ""
        others = [
            kind for kind in work.home if kind not in BESIDE and process and process.namespaces[kind] != work.home[kind]
        ]
        return [
            Row(
                "own",
                bool(process),
                f"a process of yours in another UTS namespace than uts:[{home}]",
                f"process {pid} in uts:[{uts}]" if process else f"all of your processes are in uts:[{home}]",
                f"readlink /proc/{pid}/ns/uts /proc/self/ns/uts",
            ),
            Row(
                "hostname",
                bool(process) and name == work.variables["WORD"],
                f"hostname {work.variables['WORD']} in there",
                f"hostname {name}" if process else "no such namespace",
                f"nsenter --target {pid} --uts uname -n",
            ),
            Row(
                "only",
                bool(process) and not others,
                "everything else as it was: the machine's network, mounts, processes",
                f"another namespace of kind {', '.join(others)}" if others else "nothing else" if process else "no such process",
                f"lsns --task {pid}",
            ),
        ]  # fmt: skip

    return best(work.away("uts"), rows)


LAB = Lab(1, "inode", "A namespace is an inode", 10, ("WORD",), check, needs=(UTIL_LINUX, USER_NAMESPACES))
