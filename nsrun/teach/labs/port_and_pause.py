# SPDX-License-Identifier: Apache-2.0
"""Lab 08: a port lives as long as pause."""

from __future__ import annotations

import os
import re
import socket
from errno import EADDRINUSE

from nsrun.teach import facts, scene
from nsrun.teach.lab import Lab, Row, Work, tool

_SERVER = "echo hello >index.html; exec httpd -f -p 80"


def make_scene(work: Work) -> dict[str, str]:
    """Make a pod with a published port and a web server."""
    pod, rootfs = work.variables["POD"], scene.rootfs(work)
    member = f"web-{work.variables['WORD']}"
    work.nsrun("pod", "create", "--owner", "root", "--publish", f"{work.variables['PORT']}:80", pod)
    work.nsrun("join", pod, "--detach", "--name", member, "--rootfs", rootfs, "--", "sh", "-c", _SERVER)
    pause = work.pause(pod)
    assert pause
    return {"PAUSE": str(pause.pid), "MEMBER": member, "ROOTFS": rootfs}


def check(work: Work) -> list[Row]:
    return [_ended(work), _listens(work), _held(work), _owner(work), _answer(work)]


def _ended(work: Work) -> Row:
    pid = int(work.variables["PAUSE"])
    lives = facts.is_pause(pid)
    return Row(
        "ended",
        not lives,
        f"the pause of {work.variables['POD']}, process {pid}, has ended",
        f"process {pid} lives" if lives else f"there is no pause {pid}",
        f"grep -E 'Name|State' /proc/{pid}/status",
    )


def _listens(work: Work) -> Row:
    port = int(work.variables["PORT"])
    found = [number for _, _, number in facts.sockets(os.getpid()) if number == port]
    return Row(
        "listens",
        not found,
        f"no process of this machine listens on port {port}",
        f"a socket of this machine listens on {port}" if found else "none",
        f"ss -tlnp 'sport = :{port}'",
    )


def _held(work: Work) -> Row:
    port, said = int(work.variables["PORT"]), "bind succeeds: the port is free"
    with socket.socket() as probe:
        try:
            probe.bind(("0.0.0.0", port))
            held = False
        except OSError as error:
            held, said = error.errno == EADDRINUSE, f"bind: {error.strerror}"
    return Row("held", held, f"port {port} is bound", said, f"busybox nc -l -p {port}")


def _owner(work: Work) -> Row:
    port = int(work.variables["PORT"])
    named = re.compile(rf"^\t.*\b{port}\b", re.M)
    tables = {table: text for table, text in facts.tables(os.getpid()).items() if named.search(text)}
    owned = [table for table, text in tables.items() if facts.has_owner(text)]
    said = ", ".join(
        f"table {family} {name}: {'owner' if (family, name) in owned else 'no owner'}" for family, name in tables
    )
    return Row(
        "owner",
        bool(tables) and owned == list(tables),
        f"the rules for port {port} are in a table that has an owner",
        said or f"no rule names port {port}",
        f"nft list ruleset | grep -E 'table|flags|{port}'",
    )


def _answer(work: Work) -> Row:
    port, word = int(work.variables["PORT"]), work.variables["WORD"]
    said = scene.ask(os.getpid(), "127.0.0.1", port)
    return Row(
        "answer",
        said == word,
        f"http://127.0.0.1:{port}/ answers {word}",
        said,
        f"busybox wget -qO- http://127.0.0.1:{port}/",
    )


def reset(work: Work) -> None:
    """Remove a table that a student made by hand, which has the name that the lab gave it."""
    name = f"lab08-{work.variables['WORD']}"
    if ("ip", name) in facts.tables(os.getpid()):
        scene.run(work, "nft", "delete", "table", "ip", name)


LAB = Lab(
    8,
    "port-and-pause",
    "A port lives as long as pause",
    20,
    ("POD", "POD_NEW", "PORT", "WORD"),
    check,
    needs=(scene.BUSYBOX, scene.nf_tables("nat", "output"), tool("jq", "jq")),
    publishes=True,
    root="it publishes a port with this machine's bridge and nf_tables",
    scene=make_scene,
    reset=reset,
)
