# SPDX-License-Identifier: Apache-2.0
"""What nsrun-monitor has found out about a member's health, from the files that it leaves (csrc/health.h)."""

from __future__ import annotations

import os

from nsrun.schema import open_regular
from nsrun.state import BEGUN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nsrun.state import Note, State

KEPT = 5  # checks
OUTPUT = 4096  # bytes of each
STATUSES = ("starting", "healthy", "unhealthy")


def _read(state: State, name: str, file: str) -> bytes:
    """Return what is in a file of a member's directory; nothing when there is none."""
    try:
        fd = open_regular(state.path("members", name, file))
    except OSError:
        return b""
    try:
        return os.read(fd, OUTPUT + 200)
    finally:
        os.close(fd)


def _now(state: State, name: str) -> tuple[str, int, int]:
    """Return (status, failures one after the other, checks so far) as the monitor has written them; "none" if it has not."""
    try:
        status, streak, count = _read(state, name, "health").decode("ascii").split()
        found = status, int(streak), int(count)
    except ValueError:
        return "none", 0, 0
    return found if status in STATUSES else ("none", 0, 0)


def health_of(state: State, note: Note, status: str) -> str:
    """Return starting, healthy or unhealthy; none: nothing checks it, or nothing does so any more.  `status` is the member's."""
    if not note.get("health") or status not in BEGUN:
        return "none"
    if not state.life("members", note["name"]).kept:
        return "none"  # its monitor was killed
    return _now(state, note["name"])[0]


def describe(state: State, note: Note) -> dict[str, Any]:
    """Return how a member is checked, and the last checks, for `inspect`; nothing for one without health checks."""
    if not note.get("health"):
        return {}
    _, streak, count = _now(state, note["name"])
    log = [_check(state, note, number % KEPT) for number in range(max(0, count - KEPT), count)]
    found = sorted((one for one in log if one), key=lambda one: str(one["start"]))  # a new one may have come meanwhile
    return {"healthcheck": {**note["health"], "failing_streak": streak, "log": found}}


def _check(state: State, note: Note, number: int) -> dict[str, Any]:
    head, _, output = _read(state, note["name"], f"probe-{number}").partition(b"\n")
    try:
        start, end, code = head.decode("ascii").split()
        exit_code = int(code)
    except ValueError:
        return {}
    text = output.decode("utf-8", "replace")
    if exit_code < 0:
        text = f"it took longer than {note['health']['timeout']:g} s, and was killed\n{text}"
    return {"start": start, "end": end, "exit_code": exit_code, "output": text}
