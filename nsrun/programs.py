"""The programs of csrc/ as they are installed, and nsrun itself as a command for its own child processes."""

from __future__ import annotations

import os
import sys

_PACKAGE = os.path.dirname(os.path.abspath(__file__))
LIBEXEC = os.path.join(_PACKAGE, "libexec")
#: Each is csrc/NAME.c, installed as LIBEXEC/nsrun-NAME; setup.py builds these.
NAMES = ("pause", "init", "monitor", "unpack", "door")


def read(program: str) -> bytes:
    """Return the bytes of one of the programs, "nsrun-init" and so on.  Raise OSError: ENOENT, the installation is incomplete."""
    with open(f"{LIBEXEC}/{program}", "rb", buffering=0) as file:
        return file.read()


def nsrun_command(root: str, *arguments: str) -> list[str]:
    """Return the command line that runs this nsrun again, on the state below `root` ("": where it is by default)."""
    program = os.path.join(_PACKAGE, "__main__.py")
    return [sys.executable, "-I", program, *(["--root", root] if root else []), *arguments]
