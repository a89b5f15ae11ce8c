# SPDX-License-Identifier: Apache-2.0
"""Accounts that a throwaway mount namespace has for itself; the tests and the benchmark use them."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from collections.abc import Iterable

FIRST_SUBORDINATE = 3_000_000


def make_accounts(users: dict[str, int], without_ids: Iterable[str], programs: Iterable[object]) -> None:
    """Ordinary users, in copies of the account files; those not in `without_ids` have 65536 subordinate ids each.

    `programs`: what they must be able to execute, though it may lie below a directory that only root may enter.
    """
    os.makedirs("/run/etc", exist_ok=True)
    for file in ("passwd", "group", "subuid", "subgid"):
        text = pathlib.Path(f"/etc/{file}").read_text() if os.path.exists(f"/etc/{file}") else ""
        # a machine of its own (test_machine.py) may have been started from a throwaway host
        lines = "".join(line for line in text.splitlines(True) if line.partition(":")[0] not in users)
        if not os.path.exists(f"/etc/{file}"):
            pathlib.Path(f"/etc/{file}").touch()  # something to mount over
        for number, (name, uid) in enumerate(users.items()):
            if file == "passwd":
                lines += f"{name}:x:{uid}:{uid}::/nonexistent:/bin/sh\n"
            elif file == "group":
                lines += f"{name}:x:{uid}:\n"
            elif name not in without_ids:
                lines += f"{name}:{FIRST_SUBORDINATE + 100_000 * number}:65536\n"
        path = pathlib.Path(f"/run/etc/{file}")
        path.write_text(lines)
        path.chmod(0o644)
        _mount("--bind", path, f"/etc/{file}")
    for program in [os.path.realpath(sys.executable), *map(str, programs)]:
        _let_users_reach(program)


def _mount(*words: object) -> None:
    subprocess.run(["mount", *map(str, words)], check=True, timeout=20)


def _let_users_reach(path: str) -> None:
    """A directory on the way that only root may enter is covered by an overlay of itself, which everybody may enter."""
    parts = path.split("/")[1:-1]
    for depth in range(1, len(parts) + 1):
        directory = "/" + "/".join(parts[:depth])
        if os.stat(directory).st_mode & 1:
            continue
        base = f"/run/reach/{'-'.join(parts[:depth])}"
        for part in ("upper", "work"):
            os.makedirs(f"{base}/{part}", 0o755)
        options = f"lowerdir={directory},upperdir={base}/upper,workdir={base}/work"
        _mount("-t", "overlay", "-o", options, "overlay", directory)
