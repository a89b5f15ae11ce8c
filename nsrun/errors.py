# SPDX-License-Identifier: Apache-2.0
"""What can go wrong, as exceptions: which step failed, what the kernel said, and what to do about it.

`str(error)` is the whole message for people; `step`, `errno` and `hint` are its parts, for programs.
`exit_code` is the exit status of the command line (docs/cli.md, "Exit status").
"""

from __future__ import annotations

import os
from errno import EFBIG, EINVAL, ELOOP, ENXIO, errorcode


class NsrunError(Exception):
    """nsrun itself failed (exit 125)."""

    exit_code = 125
    number = 0  # of the step of the plan that failed

    def __init__(self, message: str, *, hint: str = "", errno: int = 0, step: str = "") -> None:
        super().__init__(message)
        self.message, self.hint, self.errno, self.step = message, hint, errno, step

    def __str__(self) -> str:
        return self.message + (f"\nhint: {self.hint}" if self.hint else "")


class UsageError(NsrunError):
    """Invalid command line (exit 2)."""

    exit_code = 2


class BadInput(NsrunError):
    """The arguments are well formed, but name something unusable: a missing rootfs, a name that is taken (exit 125)."""


class Busy(BadInput):
    """Another process has held a lock for too long."""


class UnknownError(NsrunError):
    """There is no such pod or member; the message lists those that exist (exit 125)."""


class BrokenNote(BadInput):
    """One of nsrun's notes can't be read or trusted; the pod or member that it describes may be alive (exit 125)."""

    def __init__(self, path: str, why: str, errno: int = 0) -> None:
        super().__init__(
            f"{path} is damaged: {why}",
            hint="nsrun pod rm -f or nsrun rm -f ends what is alive, by name; nsrun pod prune sets the note aside when nothing is",
            errno=errno,
        )
        self.path, self.why = path, why

    @property
    def damaged(self) -> bool:
        """Is the note itself damaged?  Otherwise the machine lacks descriptors or memory, or its disk may answer later."""
        return self.errno in (0, EINVAL, EFBIG, ELOOP, ENXIO)


class CommandError(NsrunError):
    """The member's command can't be executed (exit 126), or was not found (exit 127)."""

    number = 0  # of the step that failed

    def __init__(self, message: str, *, exit_code: int, hint: str = "", errno: int = 0, step: str = "") -> None:
        super().__init__(message, hint=hint, errno=errno, step=step)
        self.exit_code = exit_code


class KernelError(OSError):
    """A system call failed; `call` is how it is written in C."""

    def __init__(self, errno: int, call: str) -> None:
        super().__init__(errno, os.strerror(errno))
        self.call = call

    def __str__(self) -> str:
        return f"{self.call}: {errno_text(self.errno or 0)}"


class StepError(NsrunError):
    """A step of a plan failed, and what was done before was undone (exit 125)."""

    #: Of a step of nsrun-init: the step itself, and what it was at.
    init_step: object = None
    detail = ""

    def __init__(self, number: int, total: int, call: str, errno: int, *, about: str = "", hint: str = "") -> None:
        where = f" ({about})" if about and about not in call else ""
        super().__init__(
            f"step {number} of {total} failed: {call}{where}: {errno_text(errno)}", hint=hint, errno=errno, step=call
        )
        self.number = number


def errno_text(errno: int) -> str:
    return f"{os.strerror(errno)} [{errorcode.get(errno, errno)}]"


def told(stderr: bytes) -> tuple[str, str]:
    """Return the message and the hint from what another nsrun wrote to standard error when it failed."""
    message, _, hint = stderr.decode("utf-8", "replace").strip().removeprefix("nsrun: ").partition("\nhint: ")
    return message, hint.replace("\nhint: ", "; ")


def printable(text: str, keep: str = "") -> str:
    """Return the text with an escape in place of each character that is not printable, apart from those in `keep`.

    \\xNN stands for a control character and for a byte that is not UTF-8 (a lone surrogate of os.fsdecode), \\u{N} for others.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _escape(ord(c)) for c in text)


def _escape(number: int) -> str:
    if 0xDC80 <= number <= 0xDCFF:
        number -= 0xDC00
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{{{number:x}}}"


def last_words(line: str) -> None:
    """Write a line to standard error when nsrun.cli.say can't be loaded because there are no descriptors left."""
    os.write(2, f"{printable(line)}\n".encode("utf-8", "backslashreplace"))
