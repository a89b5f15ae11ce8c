# SPDX-License-Identifier: Apache-2.0
"""What the command line writes: output, and what went wrong.  Nothing else in nsrun writes to standard output or error.

tests/test_style.py holds that.  Text goes out through printable(), so that what others wrote (command lines, names,
labels, paths, messages of other programs) can't control the terminal.  A member's own output is the exception: raw().
"""

from __future__ import annotations

import os
import sys

from nsrun.errors import NsrunError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import IO, Any, TextIO


def out(line: str) -> None:
    """Print a line of what was asked for."""
    _write(sys.stdout, printable(line) + "\n")


def err(line: str) -> None:
    """Print a line of what accompanies it: errors, hints, warnings."""
    _write(sys.stderr, printable(line) + "\n")


def page(text: str, keep: str = "\n") -> None:
    """Print lines that nsrun made, in which text from elsewhere has no line ends any more, and nothing else to `keep`."""
    _write(sys.stdout, printable(text, keep=keep))


def err_page(text: str) -> None:
    """Print such lines to standard error."""
    _write(sys.stderr, printable(text, keep="\n"))


def script(text: str) -> None:
    """Print what another program reads: unchanged, except on a terminal."""
    if sys.stdout and sys.stdout.isatty():
        page(text)
        return
    try:
        data = os.fsencode(text)
    except UnicodeEncodeError:  # not every letter is in the locale's
        data = text.encode("utf-8", "backslashreplace")
    raw(1, data)


def progress(text: str = "") -> None:
    """Print a line that the next one replaces; without text, remove it."""
    _write(sys.stderr, f"\r{printable(text)}" if text else "\r\033[K")
    flush()


def screen(text: str, rows: int) -> None:
    """Replace what is on the terminal by lines that nsrun made, as many as there are rows; into a pipe, print them all."""
    if not (sys.stdout and sys.stdout.isatty()):
        page(text + "\n")
        flush()
        return
    lines = text.rstrip("\n").split("\n")
    if len(lines) >= rows > 2:
        lines[rows - 2 :] = [f"… {len(lines) - rows + 2} more lines"]
    sys.stdout.write("\033[H\033[2J")
    page("\n".join(lines) + "\n")
    flush()


def size() -> tuple[int, int]:
    """Return the columns and rows of the terminal; into a pipe or a file, COLUMNS or 80, and 0."""
    from nsrun.schema import is_number

    try:
        found = os.get_terminal_size(sys.stdout.fileno())
        return found.columns, found.lines
    except (OSError, ValueError, AttributeError):
        columns = os.environ.get("COLUMNS", "")
        return (int(columns) if is_number(columns) and len(columns) < 6 else 80), 0


def can_be_written(text: str) -> bool:
    """Return whether the locale of standard output has all characters of the text."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def raw(fd: int, data: bytes) -> None:
    """Write a member's output unchanged, at once, to standard output (1) or error (2)."""
    stream = sys.stderr if fd == 2 else sys.stdout
    if stream:
        stream.flush()
        stream.buffer.write(data)
        stream.buffer.flush()


def stream(instead: str) -> IO[bytes]:
    """Return standard output for bytes of a command.  Raise UsageError for a terminal; `instead` is what to do."""
    if not sys.stdout or sys.stdout.isatty():
        from nsrun.errors import UsageError

        what = "a terminal" if sys.stdout else "closed"
        raise UsageError(f"standard output is {what}, and not a pipe or a file", hint=instead)
    sys.stdout.flush()
    return sys.stdout.buffer


def member_output(fd: int, text: str, as_it_is: bool, head: str = "", colour: int = 0) -> None:
    """Write logged output of a member: unchanged into a pipe or a file, escaped on a terminal unless `as_it_is`.

    `head` is put before it, on a terminal in one of six colours (with NO_COLOR, in none: no-color.org).
    """
    stream = sys.stderr if fd == 2 else sys.stdout
    if stream and stream.isatty():
        text = text if as_it_is else printable(text, keep="\n\t")
        if head and not os.environ.get("NO_COLOR"):
            head = f"\033[3{1 + colour % 6}m{head}\033[0m"
    raw(fd, (head + text).encode("utf-8", "surrogateescape"))


def flush() -> None:
    """Have everything written.  OSError: it can't be (a full disk, a reader that has gone)."""
    for stream in (sys.stdout, sys.stderr):
        if stream:
            stream.flush()


def give_up() -> None:
    """Discard what could not be written, so that the interpreter does not try again when it exits."""
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


# ---- what went wrong --------------------------------------------------------------------------------------------


def failure_of(error: Exception) -> NsrunError:
    """Return what is reported of an exception: itself, if it has a message for people."""
    from errno import EACCES, ENOENT

    from nsrun.errors import KernelError, errno_text

    if isinstance(error, NsrunError):
        return error
    if isinstance(error, FileNotFoundError) and error.filename is None and not _has_directory():
        return NsrunError("the working directory has been removed", hint="cd to another one", errno=ENOENT)
    if isinstance(error, OSError) and error.errno:
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        hint = "nsrun --debug shows where it happened; nsrun doctor shows what this machine lacks"
        if error.errno == EACCES and os.geteuid():
            hint = "sudo nsrun …"
        told = str(error) if isinstance(error, KernelError) else errno_text(error.errno)
        return NsrunError(where + told, hint=hint, errno=error.errno)
    where = "nsrun --debug shows where it happened"
    if isinstance(error, ImportError):
        return NsrunError(f"a part of nsrun can't be loaded: {error}", hint=f"make build, or make install; {where}")
    if isinstance(error, MemoryError):
        return NsrunError("there is not enough memory", hint=where)
    return NsrunError(f"unexpected {type(error).__name__}: {str(error)[:500]}", hint=where)


def _has_directory() -> bool:
    try:
        return bool(os.getcwd())
    except OSError:
        return False


def failure(message: str, *hints: str) -> None:
    """Report to standard error, if it can be written to; the exit status reports the failure in any case."""
    try:
        err(f"nsrun: {message}")
        for hint in filter(None, hints):
            err(f"hint: {hint}")
        flush()
    except (OSError, ValueError):
        pass
    give_up()


def interrupted() -> None:
    """Report that a signal ended the command, unless that would have to wait for whoever reads standard error.

    The signals are blocked by now, so nobody could end us while we wait.
    """
    import select

    reader = select.poll()
    reader.register(2, select.POLLOUT)
    if reader.poll(0):
        failure("interrupted")


def failure_in_passing(error: Exception) -> None:
    """Report an exception that ends a thread or a destructor, and not the command."""
    found = failure_of(error)
    failure(found.message, found.hint)


def failures_of_threads() -> None:
    """Have an exception that ends a thread reported like any other, for commands that start threads."""
    import threading

    def report(ended: Any) -> None:
        if "--debug" in sys.argv:
            threading.__excepthook__(ended)
        elif isinstance(ended.exc_value, Exception):
            failure_in_passing(ended.exc_value)

    threading.excepthook = report


# ---- commands with several operands -----------------------------------------------------------------------------


def each(names: Iterable[str], action: Callable[[str], object], print_names: bool = True) -> int:
    """Call `action` for each name; go on after an error, and return the first one's status.

    The name is printed when the action is done, unless it returned False: there was nothing to do.
    """
    code = 0
    for name in names:
        try:
            done = action(name)
            if print_names and done is not False:
                out(name)
        except (OSError, NsrunError) as error:
            code = go_on_after(error, code)
    return code


def go_on_after(error: OSError | NsrunError, code: int) -> int:
    """Report the error of one of several items; return the exit status, which is that of the first error."""
    if isinstance(error, BrokenPipeError):
        raise error  # nobody reads our output
    found = failure_of(error)
    err(f"nsrun: {found.message}")
    if found.hint:
        err(f"hint: {found.hint}")
    return code or found.exit_code
