# SPDX-License-Identifier: Apache-2.0
"""The only place that knows what nsrun writes down and what its commands list: to be changed when that changes."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import stat

#: What a dead pod is listed as, by those who list it at all.
DEAD = ("stopped", "lost")


def files(root: pathlib.Path) -> list[pathlib.Path]:
    """Every small file of nsrun's own: notes, what lies beside them, what holds them, documents of images."""
    found: list[pathlib.Path] = []
    for pattern in ("run", "users/*/run", "lib", "users/*/lib", "owned"):
        for base in root.glob(pattern):
            for directory, below, names in os.walk(base):
                # what members wrote, and the files of images, are not nsrun's
                below[:] = [d for d in below if d not in ("upper", "work", "layers", "volumes", "tmp", "fs")]
                found += [pathlib.Path(directory, name) for name in names if not name.endswith(".lock")]
    return sorted(filter(_is_small, found))


def _is_small(path: pathlib.Path) -> bool:
    with contextlib.suppress(OSError):  # it has gone meanwhile
        st = path.lstat()
        return stat.S_ISREG(st.st_mode) and st.st_size < 1 << 16
    return False


def left(root: pathlib.Path) -> list[str]:
    """What is left of pods and members when all of them were removed."""
    patterns = [f"{kind}/*" for kind in ("run/pods", "run/members", "run/tmp", "lib/upper", "lib/images/tmp")]
    patterns += [*(f"users/*/{pattern}" for pattern in patterns), "owned/*/*"]
    return sorted(str(path.relative_to(root)) for pattern in patterns for path in root.glob(pattern))


def listed(output: str) -> list[tuple[str, str, int]]:
    """(name, status, pid) of `pod ls --json` or `ls --json`."""
    try:
        return [(item["name"], item["status"], item["pid"]) for item in json.loads(output)]
    except (ValueError, KeyError, TypeError):
        return []


#: Removes everything of one user's, with a choice for each age of nsrun: the first that is no usage error counts.
PRUNE = (("pod", "prune", "--all"), ("pod", "prune"))
LIST_PODS = (("pod", "ls", "-a", "--json"), ("pod", "ls", "--json"))
LIST_MEMBERS = (("ls", "-a", "--json"),)


def dump(root: pathlib.Path) -> str:
    """Every pod's and member's directory: what is in it, and what its note says."""
    text = ""
    for pattern in ("run/*/*", "users/*/run/*/*", "owned/*/*", "lib/upper/*", "users/*/lib/upper/*"):
        for path in sorted(root.glob(pattern)):
            inner = sorted(path.iterdir()) if path.is_dir() else [path]
            text += f"{path}: {', '.join(f'{file.name} ({_about(file)})' for file in inner)}\n"
    return text


def _about(path: pathlib.Path) -> str:
    try:
        st = path.lstat()
        told = path.name in ("note", "committed", "removing", "exit") or path.suffix == ".json"
        if told and stat.S_ISREG(st.st_mode) and st.st_size < 1 << 16:
            return f"{st.st_ino}: {path.read_text(errors='replace')[:900].strip()}"
        return f"{st.st_ino}, {stat.filemode(st.st_mode)}, {st.st_size}"
    except OSError as error:
        return str(error)
