# SPDX-License-Identifier: Apache-2.0
"""What is told of an exception that reaches the command line: one line, and perhaps a hint."""

from __future__ import annotations

import os
import sys

from nsrun.cli import say
from nsrun.errors import NsrunError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def failure_of(error: Exception) -> NsrunError:
    """What is told of an exception: its own words, when it has some for people."""
    from errno import EACCES, ENOENT

    from nsrun.errors import KernelError, errno_text

    if isinstance(error, NsrunError):
        return error
    if isinstance(error, FileNotFoundError) and error.filename is None and not _has_directory():
        return NsrunError("the working directory has been removed", hint="cd to another one", errno=ENOENT)
    if isinstance(error, OSError) and error.errno:
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        hint = "nsrun --debug shows where; nsrun doctor what this machine lacks"
        if error.errno == EACCES and os.geteuid():
            hint = "sudo nsrun …"
        told = str(error) if isinstance(error, KernelError) else errno_text(error.errno)
        return NsrunError(where + told, hint=hint, errno=error.errno)
    if isinstance(error, ImportError):
        return NsrunError(f"a part of nsrun can't be loaded: {error}", hint="make build, or make install; nsrun --debug shows where")  # fmt: skip
    if isinstance(error, MemoryError):
        return NsrunError("there is not enough memory", hint="nsrun --debug shows where")
    return NsrunError(f"unexpected {type(error).__name__}: {str(error)[:500]}", hint="nsrun --debug shows where")


def _has_directory() -> bool:
    try:
        return bool(os.getcwd())
    except OSError:
        return False


def tell(message: str, hint: str = "") -> None:
    """To standard error, if it can be written to: the exit status tells in any case."""
    try:
        say.err(f"nsrun: {message}")
        if hint:
            say.err(f"hint: {hint}")
        say.flush()
    except (OSError, ValueError):
        pass
    say.give_up()


def threads_tell() -> None:
    """Have an exception that ends a thread told in a line, too; for the commands that start some."""
    import threading

    def told(what: Any) -> None:
        if "--debug" in sys.argv:
            threading.__excepthook__(what)
        elif isinstance(what.exc_value, Exception):
            failure = failure_of(what.exc_value)
            tell(failure.message, failure.hint)

    threading.excepthook = told
