# SPDX-License-Identifier: Apache-2.0
"""`nsrun run` makes a pod for its member; when it is killed before there is one, the pod is nobody's, and goes.

Before a pod is made for a member, a file is made that bears the pod's id: RUN/runs/ID, with the name of the pod in it and a
lock of the `run` that makes both (flock(2)).  It goes when the member has begun.  One without a lock is that of a `run` that
was killed, so the next command ends the pod, if no member has joined it meanwhile.
"""

from __future__ import annotations

import fcntl
import os

from nsrun.errors import NsrunError
from nsrun.schema import is_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsrun.state import State


def begin(state: State, ident: str, name: str) -> int:
    """Say that a pod is being made for a member; return the descriptor that has the lock."""
    directory = f"{state.run}/runs"
    os.makedirs(directory, 0o700, exist_ok=True)
    fd = os.open(directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.write(fd, name.encode())
        os.link(
            f"/proc/self/fd/{fd}", f"{directory}/{ident}", src_dir_fd=fd
        )  # linkat(2), which link(2) is not: it follows
    except BaseException:
        os.close(fd)
        raise
    return fd


def done(state: State, ident: str) -> None:
    """The pod has its member, or was removed."""
    try:
        os.unlink(f"{state.run}/runs/{ident}")
    except FileNotFoundError:
        pass


def sweep(state: State) -> list[str]:
    """End the pods of each `run` that was killed before there was a member; return their names."""
    ended = []
    for ident in filter(is_name, sorted(os.listdir(f"{state.run}/runs"))):
        try:
            fd = os.open(f"{state.run}/runs/{ident}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            name = os.read(fd, 256).decode("utf-8", "replace")
            if is_name(name) and _end(state, ident, name):
                ended.append(name)
            done(state, ident)
        except BlockingIOError:
            continue  # its `run` lives
        finally:
            os.close(fd)
    return ended


def _end(state: State, ident: str, name: str) -> bool:
    """End a pod that still has this id, and no members; return whether there was one."""
    from nsrun.lifecycle.query import owners_members
    from nsrun.lifecycle.stop import SIGKILL, end_pod

    pod, found = state.note_and_life("pods", name)
    if pod is None or pod["id"] != ident or not found.kept or state.members_of(pod):
        return False
    if pod.get("user") and not state.uid and (not pod["cgroup"] or owners_members(state, pod)):
        return False
    if state.broken:
        raise NsrunError(f"pod {name!r} of a `run` that was killed may have a member: a note is damaged")
    end_pod(state, pod, SIGKILL)
    return True
