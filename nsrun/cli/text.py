# SPDX-License-Identifier: Apache-2.0
"""Output that has a form: tables, JSON, sizes."""

from __future__ import annotations

from nsrun.cli import say
from nsrun.errors import UsageError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nsrun.cli.commands import Call


def json(value: Any) -> int:
    import json

    # ASCII, whatever the value holds; DEL is the one character of it that JSON does not escape
    say.script(json.dumps(value, indent=2).replace("\x7f", "\\u007f") + "\n")
    return 0


def table(head: list[str], rows: list[list[str]]) -> int:
    rows = [head, *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    say.page("".join(f"{line}\n" for line in lines))
    return 0


def one_format(call: Call) -> None:
    """Raise UsageError when a table is asked for in two forms."""
    if "json" in call.options and "csv" in call.options:
        raise UsageError("--json and --csv exclude each other")


def csv(head: list[str], rows: list[list[str]]) -> int:
    """Print a table as RFC 4180 has it; a cell that a spreadsheet would take for a formula is text."""
    import csv as library
    import io

    page = io.StringIO()
    writer = library.writer(page, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([f"'{cell}" if cell[:1] in ("=", "+", "@") else cell for cell in row] for row in rows)
    say.script(page.getvalue())
    return 0


def size(number: float) -> str:
    """Return a number of bytes with three digits and a decimal unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5 or unit == "GB":
            return f"{number:.0f} {unit}" if number >= 99.5 or unit == "B" else f"{number:.3g} {unit}"
        number /= 1000
    return ""
