"""Signals by name and number; signal(7).  A module of its own: `kill` and `stop` need it, and nothing that makes members."""

from __future__ import annotations

from nsrun.errors import UsageError
from nsrun.schema import is_number


def parse_signal(text: str) -> int:
    """A number from TERM, SIGTERM, 15, RTMIN+3; signal(7)."""
    import _signal

    word = text.upper().removeprefix("SIG")
    if is_number(word) and 1 <= int(word) <= 64:
        return int(word)
    base, _, plus = word.partition("+")
    if base == "RTMIN" and (not plus or is_number(plus)) and int(plus or 0) <= 30:
        return 34 + int(plus or 0)
    number = getattr(_signal, f"SIG{word}", None) if word.isascii() else None
    if isinstance(number, int) and word.isalnum():
        return int(number)
    raise UsageError(f"{text!r} is no signal", hint="a name like TERM, a number, or RTMIN+N; kill -l lists them")
