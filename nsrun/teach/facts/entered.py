# SPDX-License-Identifier: Apache-2.0
"""What is told only from inside: a helper enters a namespace of a process, and prints what it sees: nsenter(1)."""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

#: How long a helper may take, and how much it may print: what it looks at is made by others.
SECONDS, MOST = 10.0, 4 << 20
#: The variables of a helper: the caller's, such as LD_PRELOAD and PATH, are not to choose what runs.
PLAIN = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


def printed_by(command: Sequence[str], seconds: float = SECONDS, most: int = MOST) -> bytes | None:
    """Return what a helper prints; None when it fails, takes more time or prints more than it may, which ends it."""
    import select
    import subprocess

    end, found = time.monotonic() + seconds, bytearray()
    try:
        helper = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=PLAIN, cwd="/"
        )
    except OSError:
        return None
    with helper:
        try:
            assert helper.stdout
            out = helper.stdout.fileno()
            poll = select.poll()
            poll.register(out, select.POLLIN)
            while len(found) <= most and (left := end - time.monotonic()) > 0:
                if not poll.poll(left * 1000):
                    continue
                if not (piece := os.read(out, 1 << 16)):
                    helper.wait(max(end - time.monotonic(), 0.1))
                    break
                found += piece
        except subprocess.TimeoutExpired:
            pass
        finally:
            helper.kill()  # which does nothing to one that has been waited for
    return bytes(found) if helper.returncode == 0 else None


def file_from_inside(pid: int, path: str) -> bytes:
    """Return the contents of a file that only root of the user namespace of a process may read; b"" when we can't."""
    return _as_owner(pid, "cat", path)


def _as_owner(pid: int, *command: str) -> bytes:
    """Return what a command prints that is root of the user namespace of a process; b"" when that is not for us."""
    try:
        inside = enter(pid)
    except OSError:
        return b""
    return printed_by([*inside, *command]) or b"" if "--user" in inside else b""


def enter(pid: int, *kinds: str) -> list[str]:
    """Return the command line with which another command runs in namespaces of a process: nsenter(1).

    An ordinary user gets the power for that only in the user namespace to which those belong, and joins it, too, when it is
    not their own.  Root needs no more power, and never joins one: whoever is root in there may trace whatever comes in
    (ptrace(2), "Ptrace access mode checking"), and so would get the powers of root out here.
    """
    foreign = os.stat(f"/proc/{pid}/ns/user").st_ino != os.stat("/proc/self/ns/user").st_ino
    user = ["--user", "--preserve-credentials"] if foreign and os.geteuid() else []
    return ["nsenter", f"--target={pid}", *user, *(f"--{'mount' if kind == 'mnt' else kind}" for kind in kinds)]


def segments(pid: int) -> int:
    """Return how many System V segments the IPC namespace of a process has, from a helper that enters it; -1: it can't."""
    told = _from_inside(pid, "ipc", "cat", "/proc/sysvipc/shm")
    return told.count("\n") - 1 if told else -1


def hostname_of(pid: int) -> str:
    """Return the hostname in the UTS namespace of a process, from a helper that enters it; "" when that can't be done.

    No file of /proc/PID shows it: /proc/sys/kernel/hostname is that of the reader.
    """
    return _from_inside(pid, "uts", "uname", "-n").strip()


def _from_inside(pid: int, kind: str, *command: str) -> str:
    """Return what a program of ours prints that runs in one namespace of a process; "" when it can't."""
    words = ["nsenter", f"--{kind}=/proc/{pid}/ns/{kind}"]
    if os.geteuid():  # to enter it takes the powers that the owner of its user namespace has
        words += [f"--user=/proc/{pid}/ns/user", "--preserve-credentials"]
    return (printed_by([*words, *command]) or b"").decode("utf-8", "surrogateescape")
