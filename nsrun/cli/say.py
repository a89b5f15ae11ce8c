# SPDX-License-Identifier: Apache-2.0
"""What the command line writes.  Nothing else in nsrun writes to standard output or error (tests/test_style.py).

Text goes out through printable(), so that what others wrote (command lines, names, labels, paths, messages of other
programs) can't speak to the terminal.  A member's own output is the exception: raw().
"""

from __future__ import annotations

import os
import sys

from nsrun.errors import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO


def out(line: str) -> None:
    """One line of what was asked for."""
    _write(sys.stdout, printable(line) + "\n")


def err(line: str) -> None:
    """One line of what is said beside it: errors, hints, warnings."""
    _write(sys.stderr, printable(line) + "\n")


def page(text: str) -> None:
    """Lines of our own making, in which what others wrote has no line ends any more."""
    _write(sys.stdout, printable(text, keep="\n"))


def err_page(text: str) -> None:
    """The same on standard error."""
    _write(sys.stderr, printable(text, keep="\n"))


def script(text: str) -> None:
    """What another program reads: exactly so, unless a terminal does."""
    if sys.stdout and sys.stdout.isatty():
        page(text)
        return
    try:
        data = os.fsencode(text)
    except UnicodeEncodeError:  # not every letter is in the locale's
        data = text.encode("utf-8", "backslashreplace")
    raw(1, data)


def progress(text: str = "") -> None:
    """A line that the next one replaces; without text, none."""
    _write(sys.stderr, f"\r{printable(text)}" if text else "\r\033[K")
    flush()


def raw(fd: int, data: bytes) -> None:
    """What a member wrote, at once, to standard output (1) or error (2)."""
    stream = sys.stderr if fd == 2 else sys.stdout
    if stream:
        stream.flush()
        stream.buffer.write(data)
        stream.buffer.flush()


def member_output(fd: int, text: str, as_it_is: bool) -> None:
    """What a member wrote some time ago: into a pipe or a file as it is, to a terminal so that it can't speak to that."""
    stream = sys.stderr if fd == 2 else sys.stdout
    if stream and stream.isatty() and not as_it_is:
        text = printable(text, keep="\n\t")
    raw(fd, text.encode("utf-8", "surrogateescape"))


def flush() -> None:
    """Have it written.  OSError: it can't be (a full disk, a reader that has gone)."""
    for stream in (sys.stdout, sys.stderr):
        if stream:
            stream.flush()


def give_up() -> None:
    """Forget what could not be written, so that the interpreter does not try again at its end."""
    try:
        null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return  # there are no descriptors left
    for fd, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            if stream:
                stream.flush()
        except (OSError, ValueError):
            os.dup2(null, fd)
    os.close(null)


def _write(stream: TextIO | None, text: str) -> None:
    """`stream` is None when it was closed before we began."""
    if stream:
        encoding = stream.encoding or "utf-8"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
