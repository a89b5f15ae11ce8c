# SPDX-License-Identifier: Apache-2.0
"""What is told only from inside: a helper enters a namespace of a process, and prints what it sees: nsenter(1)."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass


def file_from_inside(pid: int, path: str) -> bytes:
    """Return the contents of a file that only root of the user namespace of a process may read; b"" when we can't."""
    return _as_owner(pid, "cat", path)


def _as_owner(pid: int, *command: str) -> bytes:
    """Return what a command prints that is root of the user namespace of a process; b"" when that is not for us."""
    import subprocess

    try:
        inside = enter(pid)
        if "--user" not in inside:
            return b""
        done = subprocess.run([*inside, *command], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return b""
    return done.stdout if done.returncode == 0 else b""


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


_PLAIN = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


def _from_inside(pid: int, kind: str, *command: str) -> str:
    """Return what a program of ours prints that runs in one namespace of a process; "" when it can't."""
    import subprocess

    words = ["nsenter", f"--{kind}=/proc/{pid}/ns/{kind}"]
    if os.geteuid():  # to enter it takes the powers that the owner of its user namespace has
        words += [f"--user=/proc/{pid}/ns/user", "--preserve-credentials"]
    try:  # the caller's variables, such as LD_PRELOAD and PATH, are not to choose what runs
        done = subprocess.run([*words, *command], capture_output=True, check=False, timeout=5, env=_PLAIN, cwd="/")
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "surrogateescape") if not done.returncode else ""
