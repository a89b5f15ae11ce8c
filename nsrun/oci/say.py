# SPDX-License-Identifier: Apache-2.0
"""What nsrun-oci writes: output, and errors to standard error and to the log that an engine reads."""

from __future__ import annotations

import os

from nsrun.errors import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def out(text: str) -> None:
    """Print a text that is read by a program, or that nsrun made."""
    data = text.encode("utf-8", "surrogateescape")
    while data:
        data = data[os.write(1, data) :]


class Log:
    """Where errors go: standard error, and the file of --log as text or as JSON, one object a line."""

    def __init__(self, path: str = "", form: str = "text") -> None:
        self.path, self.form = path, form

    def error(self, message: str) -> None:
        self._write("error", message)

    def warn(self, message: str) -> None:
        self._write("warning", message)

    def _write(self, level: str, message: str) -> None:
        import select

        line = printable(message)
        reader = select.poll()
        reader.register(2, select.POLLOUT)
        try:
            if reader.poll(1000):  # ms; whoever takes nothing for so long must not keep an engine waiting
                os.write(2, f"nsrun-oci: {line}\n".encode("utf-8", "backslashreplace"))
        except OSError:
            pass  # nobody reads it; the log has it
        if not self.path:
            return
        from nsrun.state import codec

        time = now()
        if self.form == "json":
            text = codec.dumps({"level": level, "msg": line, "time": time})
        else:
            text = f"time={codec.dumps(time)} level={level} msg={codec.dumps(line)}"
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
            with open(fd, "wb", buffering=0) as file:
                file.write(text.encode("utf-8", "backslashreplace") + b"\n")
        except OSError as error:
            os.write(2, f"nsrun-oci: the log can't be written: {error}\n".encode("utf-8", "backslashreplace"))


def now() -> str:
    """Return the time as RFC 3339 has it, with nine digits after the point."""
    from time import gmtime, strftime, time_ns

    seconds, rest = divmod(time_ns(), 10**9)
    return f"{strftime('%Y-%m-%dT%H:%M:%S', gmtime(seconds))}.{rest:09d}Z"


def document(value: Any) -> str:
    """Return JSON with indents, as a program and a person read it.  (json would be 12 ms more.)"""
    return _lines(value, "\n") + "\n"


def _lines(value: Any, end: str) -> str:
    from nsrun.state import codec

    inner = f"{end}  "
    if isinstance(value, dict) and value:
        parts = [f"{codec.dumps(str(key))}: {_lines(one, inner)}" for key, one in value.items()]
        return f"{{{inner}{f',{inner}'.join(parts)}{end}}}"
    if isinstance(value, list) and value:
        return f"[{inner}{f',{inner}'.join(_lines(one, inner) for one in value)}{end}]"
    return codec.dumps(value)
