# SPDX-License-Identifier: Apache-2.0
"""What a student has done: one file for each user, which nothing that grades in a class believes.

Root's is LIB/labs/progress.json (state/__init__.py says where LIB is), a user's is XDG_STATE_HOME/nsrun/labs/progress.json.
In a class the seed is the one that root has drawn and shows the student: OWNED/UID/class.json.
"""

from __future__ import annotations

import os
from contextlib import contextmanager

from nsrun.errors import BadInput
from nsrun.schema import STRING, Number, check, open_regular
from nsrun.state import make_directory
from nsrun.teach.facts import KINDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from nsrun.state import State

_NUMBER = Number(0, 1 << 53)
_KNOWN = set(KINDS) - {"time", "cgroup"}  # the kinds that every kernel has
_ENTRY = {
    "id?": STRING, "variables?": {str: STRING}, "home?": {str: _NUMBER}, "ready?": object, "begun?": STRING, "passed?": STRING,
    "checks?": _NUMBER, "hints?": _NUMBER, "starts?": _NUMBER, "solution?": object, "salt?": _NUMBER,
}  # fmt: skip
_SHAPE = {"seed": STRING, "current?": _NUMBER, "labs": {str: _ENTRY}}


def directory(state: State) -> str:
    """Return where the files of this user's labs are."""
    if not state.uid or state.root:
        return f"{state.lib}/labs"
    base = os.environ.get("XDG_STATE_HOME", "")
    if not base.startswith("/"):  # the XDG Base Directory Specification: a relative path is ignored
        base = os.path.expanduser("~/.local/state")
    return f"{base}/nsrun/labs"


def class_note(state: State) -> dict[str, Any]:
    """Return what root shows a student of a class: the seed, and which labs root has seen to be passed; {} for others."""
    import json

    if not state.uid:
        return {}
    try:
        fd = open_regular(f"{state.owned}/class.json")
    except OSError:
        return {}
    with open(fd, encoding="utf-8", errors="surrogateescape") as file:
        if os.fstat(fd).st_uid not in (0, 65534):  # root made it; 65534: root has no id here
            return {}
        found: dict[str, Any] = json.load(file)
        check(found, {"seed": STRING, "passed": {str: STRING}}, "class.json")
        return found


def load(state: State) -> dict[str, Any]:
    """Return what is recorded.  Raise BadInput when the file is damaged."""
    import json

    path = f"{directory(state)}/progress.json"
    try:
        fd = open_regular(path)
    except FileNotFoundError:
        found: dict[str, Any] = {"seed": os.urandom(8).hex(), "labs": {}}
    else:
        with open(fd, encoding="utf-8", errors="surrogateescape") as file:
            try:
                found = json.load(file)
                check(found, _SHAPE, "progress")
                for number, entry in found["labs"].items():
                    if entry.get("id") and not (
                        entry.get("variables") is not None and _KNOWN <= entry.get("home", {}).keys()
                    ):
                        raise BadInput(f"lab {number} is started, and the rest about it is missing")
            except (ValueError, BadInput) as error:
                raise BadInput(
                    f"{path} is damaged: {error}", hint="remove it: what you have passed is then not known any more"
                ) from None
    found["seed"] = class_note(state).get("seed") or found["seed"]
    return found


@contextmanager
def alone(path: str, busy: str, seconds: float = 10) -> Iterator[None]:
    """Let nobody else do meanwhile what this file is for.  Raise BadInput, which says `busy`, when somebody goes on doing it."""
    import fcntl
    import time

    make_directory(os.path.dirname(path))
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        end = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise BadInput(busy, hint="wait until that command has ended, or interrupt it") from None
            time.sleep(0.05)
        yield
    finally:
        os.close(fd)


@contextmanager
def changing(state: State) -> Iterator[dict[str, Any]]:
    """Give what is recorded, to change; it is written at the end, and nobody else changes it meanwhile."""
    import fcntl
    import json

    where = directory(state)
    make_directory(where)
    fd = os.open(f"{where}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        found = load(state)
        yield found
        new = f"{where}/progress.json.new"
        with open(open_regular(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW), "w") as file:
            json.dump(found, file, indent=1)
        os.rename(new, f"{where}/progress.json")
    finally:
        os.close(fd)


def entry(found: dict[str, Any], number: int) -> dict[str, Any]:
    """Return what is recorded about one lab, to change."""
    labs: dict[str, dict[str, Any]] = found["labs"]
    return labs.setdefault(str(number), {})
