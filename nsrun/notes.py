"""JSON for state files, at the price of one C call: importing `json` pulls `re` in, 5 ms of every command."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

try:
    from _json import encode_basestring_ascii, make_encoder, make_scanner  # what json itself runs on

    class _Context:
        strict, object_hook, object_pairs_hook = True, None, None
        parse_float, parse_int, parse_constant = float, int, float
        memo: dict[str, str] = {}

    def _refuse(value: object) -> object:
        raise TypeError(f"{value!r} is not JSON")

    _scan = make_scanner(_Context())  # type: ignore[arg-type]
    _encode = make_encoder(None, _refuse, encode_basestring_ascii, None, ": ", ", ", False, False, True)

    def loads(text: str) -> Any:
        """ValueError when it is not a JSON document, or one that is nested too deep."""
        text = text.strip()
        try:
            value, end = _scan(text, 0)
        except (StopIteration, SystemError, RecursionError):
            end = -1  # SystemError: it wants the exception of a json.decoder that is not imported
        if end != len(text):
            raise ValueError("not JSON")
        return value

    def dumps(value: object) -> str:
        return "".join(_encode(value, 0))

except ImportError:  # an interpreter without the accelerator
    import json

    dumps = json.dumps  # type: ignore[assignment]

    def loads(text: str) -> Any:
        try:
            return json.loads(text)
        except RecursionError:
            raise ValueError("not JSON") from None
