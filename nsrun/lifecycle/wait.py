# SPDX-License-Identifier: Apache-2.0
"""`nsrun wait`: wait until a member has ended, or until it is healthy."""

from __future__ import annotations

import os
import time
from errno import ENOENT

from nsrun.errors import BadInput, UnknownError
from nsrun.lifecycle.stop import settled, wait_dead, wait_monitor
from nsrun.schema import open_regular
from nsrun.state import BEGUN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsrun.state import Note, State


LOOK_AGAIN = 0.1  # seconds: what a health check has found is in a file


def wait_health(state: State, name: str, wanted: str) -> None:
    """Wait until the member is healthy, or unhealthy.  Raise BadInput when it can't get so any more."""
    from nsrun.lifecycle.health import health_of

    note: Note = state.member(name)
    while True:
        now = state.read("members", note["name"])
        if now is None or now["id"] != note["id"]:
            now = state.same_member(note)  # it may have been renamed
        if now is None:
            raise BadInput(f"member {name!r} was removed before it was {wanted}")
        note, status = now, state.member_status(now)[0]
        if not note.get("health"):
            raise BadInput(f"member {name!r} has no health check", hint="nsrun join --health-cmd CMD")
        if status not in (*BEGUN, "created", "restarting"):
            raise BadInput(f"member {name!r} has ended before it was {wanted}", hint=f"nsrun logs {name}")
        if health_of(state, note, status) == wanted:
            return
        wait_monitor(state, note, LOOK_AGAIN)
        if status != "running":
            time.sleep(LOOK_AGAIN)


def wait_member(state: State, name: str) -> int:
    """Wait until the member has ended; return its exit status.  Raise BadInput when nobody saw it end."""
    note: Note = state.member(name)
    while True:
        try:
            # the monitor writes to this file and renames it to `exit`: we can read it even if the member is removed at
            # once
            path = state.path("members", note["name"], "exit.tmp")
            written = open_regular(path)
        except OSError as error:
            if error.errno != ENOENT:
                raise
            written = -1  # it has ended, or has been removed already
        try:
            wait_monitor(state, settled(state, "members", note) if written >= 0 else note, None)
            now = state.read("members", note["name"])
            if not (now and now["id"] == note["id"]):
                now = state.same_member(note)  # it may have been renamed
            if now and now["id"] == note["id"]:
                note = now
                status, code = state.member_status(note)
            else:  # it has been removed
                fields = os.read(written, 100).split() if written >= 0 else []
                status, code = "lost", int(fields[0]) if fields else None
        except UnknownError:
            status, code = "lost", None
        finally:
            if written >= 0:
                os.close(written)
        if code is not None:
            return code
        if status in BEGUN:  # its monitor was killed: wait for the process itself
            fd, _ = state.process(note)
            try:
                wait_dead(fd, None if fd >= 0 else 0.01)
            finally:
                if fd >= 0:
                    os.close(fd)
        elif status in ("created", "restarting"):
            time.sleep(0.01)
        else:
            raise BadInput(
                f"the exit status of {note['name']!r} is lost",
                hint="its monitor was killed, or could not write it (a full or broken disk)",
            )
