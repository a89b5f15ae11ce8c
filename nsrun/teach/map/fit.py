# SPDX-License-Identifier: Apache-2.0
"""How wide text is, in cells of a terminal or of a monospace font, and how it is made to fit.

All that strangers wrote goes through `clean` first: names and command lines are any bytes.
"""

from __future__ import annotations

from unicodedata import category, east_asian_width

from nsrun.errors import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def clean(text: str) -> str:
    """Return the text with an escape in place of each character that is not printable."""
    return printable(text)


def cells(text: str) -> int:
    """Return the number of cells: two for a wide character, none for an accent that stands on the one before."""
    if text.isascii():
        return len(text)
    return sum(_cells(c) for c in text)


def _cells(c: str) -> int:
    if category(c) in ("Mn", "Me"):
        return 0
    return 2 if east_asian_width(c) in "WF" else 1


def fit(text: str, width: int) -> str:
    """Return the text, escaped, and cut off with an ellipsis where it has more cells than `width`."""
    text = clean(text)
    if cells(text) <= width:
        return text
    kept, used = [], 1
    for c in text:
        used += _cells(c)
        if used > width:
            break
        kept.append(c)
    return "".join(kept).rstrip() + "…" if width > 0 else ""


def pad(text: str, width: int) -> str:
    """Return the text with exactly this many cells."""
    text = fit(text, width)
    return text + " " * (width - cells(text))


def wrap(parts: Iterable[str], width: int, between: str = ", ") -> list[str]:
    """Return lines of whole parts, joined, none wider than `width`; a part that is wider is cut off."""
    lines: list[str] = []
    for part in parts:
        part = fit(part, width)
        if lines and cells(lines[-1] + between + part + between.rstrip()) <= width:
            lines[-1] += between + part
        else:
            if lines:
                lines[-1] += between.rstrip()
            lines.append(part)
    return lines
