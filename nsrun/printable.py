"""Text that others wrote, shown without harm: the one place that says what may reach a terminal.

A terminal obeys what it is shown: ECMA-48's control sequences (C0, DEL and C1 begin them) move the cursor, change titles
and colours, and type answers; Unicode's format characters turn the order of letters around (UAX #9).
"""

from __future__ import annotations


def printable(text: str, keep: str = "") -> str:
    """Return the text with an escape for every character that is no letter, mark, number, sign or space, but those in `keep`.

    \\xNN for a control character, and for a byte that was no UTF-8 (os.fsdecode's lone surrogates); \\u{N} for others.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _escape(ord(c)) for c in text)


def _escape(number: int) -> str:
    if 0xDC80 <= number <= 0xDCFF:
        number -= 0xDC00
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{{{number:x}}}"
