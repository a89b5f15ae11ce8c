# SPDX-License-Identifier: Apache-2.0
"""Lab 10: a root of its own."""

from __future__ import annotations

import os

from nsrun.teach import facts, scene
from nsrun.teach.facts import Process
from nsrun.teach.lab import USER_NAMESPACES, UTIL_LINUX, Lab, Row, Work, best


def make_scene(work: Work) -> dict[str, str]:
    """Make the layer."""
    return {"LAYER": scene.rootfs(work), "UNSHARE": scene.unshare()}


def check(work: Work) -> list[Row]:
    ours = facts.root_of(os.getpid())
    moved = [process for process in work.mine if facts.root_of(process.pid) not in (None, ours)]
    found = {process.pid: process for process in [*moved, *work.away("mnt")] if process.state != "Z"}
    return best(found.values(), lambda process: [*_rows(work, process), _layer(work)])


def _rows(work: Work, process: Process | None) -> list[Row]:
    pid = process.pid if process else 0
    who, nobody = (str(pid), "") if process else ("PID", "no process of yours has a root or mounts of its own")
    space = process.namespaces["mnt"] if process else 0
    root, ours = facts.root_of(pid) if process else None, facts.root_of(os.getpid())
    joined = facts.root_of_namespace(pid) if process and root else None
    return [
        Row(
            "namespace",
            bool(process) and space != work.home["mnt"],
            f"a process of yours in another mount namespace than mnt:[{work.home['mnt']}]",
            nobody or f"process {pid} in mnt:[{space}]",
            f"readlink /proc/{who}/ns/mnt /proc/self/ns/mnt",
        ),
        Row(
            "root",
            root is not None and root != ours,
            "its root directory is not the machine's",
            nobody or f"its root is {_said(root)}, the machine's {_said(ours)}",
            f"stat -L -c '%d %i' /proc/{who}/root/ /",
        ),
        Row(
            "pivot",
            root is not None and root == joined,
            "its root is that of the mount namespace, too: a process that joins gets the same",
            nobody or f"its root is {_said(root)}; a process that joins gets {_said(joined)}",
            f"nsenter --target {who} --mount stat -c '%d %i' /",
        ),
        _overlay(work, process, nobody),
        _old(process, nobody),
        _word(work, process, nobody),
    ]


def _said(root: tuple[int, int] | None) -> str:
    return f"inode {root[1]} of device {root[0]}" if root else "not to be seen"


def _overlay(work: Work, process: Process | None, nobody: str) -> Row:
    """Look for a file of the layer: overlayfs gives it the inode number that it has below."""
    mount = facts.mount_at(process.pid, "/") if process else None
    below = facts.root_of_directory(f"{scene.path(work, 'LAYER')}/bin/busybox")
    above = facts.inode_in_root(process.pid, "bin/busybox") if process else None
    numbers = [
        found[1] & 0xFFFFFFFF if found else 0 for found in (below, above)
    ]  # with xino, there are other bits above
    fstype = mount.fstype if mount else "not a mount"
    same = numbers[0] == numbers[1]
    return Row(
        "overlay",
        fstype == "overlay" and same,
        f"its root is an overlay, through which the layer's /bin/busybox, inode {numbers[0]}, is seen",
        nobody or f"its root is {fstype}; /bin/busybox has inode {numbers[1] or 'none'}",
        f"grep ' / / ' /proc/{process.pid if process else 'PID'}/mountinfo; ls -i $LAYER/bin/busybox",
    )


def _old(process: Process | None, nobody: str) -> Row:
    """Look for the file system that is our root."""
    here = facts.mount_at(os.getpid(), "/")
    seen = facts.mounts(process.pid) if process else []
    left = [mount.point for mount in seen if here and (mount.device, mount.root) == (here.device, here.root)]
    return Row(
        "old",
        bool(process) and bool(seen) and not left,
        "the machine's root is not mounted anywhere in its view",
        nobody
        or (
            f"it is mounted at {', '.join(left)}"
            if left
            else "it is not"
            if seen
            else "it has no mounts, or too many to be read"
        ),
        f"grep {here.device if here else ''} /proc/{process.pid if process else 'PID'}/mountinfo",
    )


def _word(work: Work, process: Process | None, nobody: str) -> Row:
    word = work.variables["WORD"]
    said = facts.text_in_root(process.pid, "word")[:80].strip() if process else ""
    see = f"cat /proc/{process.pid if process else 'PID'}/root/word"
    return Row(
        "word", said == word, f"its file /word contains {word}", nobody or said or "nothing, or no such file", see
    )


def _layer(work: Work) -> Row:
    layer = scene.path(work, "LAYER")
    written = os.path.lexists(f"{layer}/word")
    return Row(
        "layer",
        not written,
        "the layer is as it was: it has no file word",
        f"{layer}/word exists" if written else "no such file",
        "ls $LAYER",
    )


LAB = Lab(
    10,
    "own-root",
    "A root of its own",
    30,
    ("POD", "WORD"),
    check,
    needs=(UTIL_LINUX, USER_NAMESPACES, scene.BUSYBOX),
    scene=make_scene,
)
