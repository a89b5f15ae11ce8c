# SPDX-License-Identifier: Apache-2.0
"""Check once, where a document comes in, that it has the shape which its reader expects; the error names the key.

A schema is written as the document looks:

    {"args": [WORD], "cwd?": WORD, "user?": {"uid": Number(0, 4294967294)}, "env?": [WORD], "labels?": {str: TEXT}}

    TEXT, STRING, WORD, LINE, HEX, FLAG, Number(least, most), OneOf(…)  a value
    [S]               a list, each of whose items is S
    {"key": S}        an object with this key; "key?": it may be missing, or null; other keys are ignored
    {str: S}          an object, each of whose values is S, whatever the keys (which are TEXT)
    dict, list        an object, a list, of anything
    object            anything

The check goes as deep as the schema, however deep the document is.
"""

from __future__ import annotations

import os
from errno import EACCES, EINVAL
from stat import S_ISDIR, S_ISREG

from nsrun.errors import BadInput, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TextIO, TypeGuard

MAX_ITEMS = 100_000  # of one list or object


def open_regular(path: str, flags: int = os.O_RDONLY | os.O_NOFOLLOW, mode: int = 0o600) -> int:
    """Return a descriptor of a regular file.

    Raise OSError, with EINVAL for anything else: a FIFO or a device could make us wait for ever.
    """
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    try:
        if not S_ISREG(os.fstat(fd).st_mode):
            raise OSError(EINVAL, "it is not a regular file", path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_text(path: str) -> TextIO:
    """Open a regular file of ours as text, whatever bytes are in it.  Raise OSError as open_regular does."""
    return open(open_regular(path), encoding="utf-8", errors="surrogateescape", newline="\n")


def read_setting(path: str) -> str:
    """Return the content of a file of the kernel's, below /proc or /sys, without its end of line; "" where there is none."""
    try:
        with open(path, errors="surrogateescape") as file:
            return file.read().strip()
    except OSError:
        return ""


def read_document(path: str, most: int) -> bytes:
    """Return the bytes of a regular file, at most `most`.

    Raise BadInput for a larger file or another kind, or OSError.
    """
    try:
        fd = open_regular(path, os.O_RDONLY)
    except OSError as error:
        if error.errno != EINVAL:
            raise
        raise BadInput(f"{path} is not a regular file") from None
    try:
        if os.fstat(fd).st_size > most:
            raise BadInput(f"{path} is larger than {most >> 10} KiB")
        data = b""
        while len(data) <= most and (piece := os.read(fd, most + 1 - len(data))):
            data += piece
        if len(data) > most:
            raise BadInput(f"{path} is larger than {most >> 10} KiB")
        return data
    finally:
        os.close(fd)


def exists(path: str, what: str) -> bool:
    """Return whether there is anything at a path that a user named.

    Raise BadInput when that can't be known: an error does not mean that nothing is there.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        hint = "namei -l shows which directory on the way is closed" if error.errno == EACCES else ""
        raise BadInput(f"{what} {path!r}: {error.strerror}", hint=hint, errno=error.errno or 0) from None
    return True


def is_there(path: str) -> bool:
    """Return whether there is anything of this name, even a dangling link.  Raise OSError when that can't be known."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def is_directory(path: str) -> bool:
    """Return whether there is a directory, or a link to one.  Raise OSError when that can't be known."""
    try:
        return S_ISDIR(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def is_number(text: str) -> bool:
    """Return whether this is a number of 1 to 18 decimal digits.

    (str.isdigit accepts "²", which int() refuses, and "٣", which it accepts.)
    """
    return text.isascii() and text.isdigit() and len(text) <= 18


def is_text(value: object) -> TypeGuard[str]:
    """Return whether this is a string that can be written as UTF-8.

    JSON can contain half a surrogate pair, "\\ud800", which can't.
    """
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


class Text:
    """A string of at most `most` characters, with `lines` possibly of several lines.

    With `nul` it may contain NUL bytes, with `raw` bytes that are not UTF-8, as os.fsdecode shows them; with `of` only
    these characters, and at least one.
    """

    def __init__(
        self, kind: str, most: int = 4 << 20, *, lines: bool = True, nul: bool = False, raw: bool = False, of: str = ""
    ) -> None:
        self.kind, self.most, self.lines, self.nul, self.raw, self.of = kind, most, lines, nul, raw, frozenset(of)

    def fits(self, value: Any) -> bool:
        if not isinstance(value, str) or len(value) > self.most:
            return False
        if (not self.lines and "\n" in value) or (not self.nul and "\0" in value):
            return False
        if self.of and not (value and self.of.issuperset(value)):
            return False
        if not self.raw:
            return is_text(value)
        try:
            return bool(os.fsencode(value)) or not value
        except UnicodeEncodeError:
            return False


class Number:
    """A whole number (not a truth value) in a range."""

    def __init__(self, least: int = 0, most: int = (1 << 63) - 1) -> None:
        self.least, self.most = least, most
        self.kind = f"a whole number from {least} to {most}"

    def fits(self, value: Any) -> bool:
        return type(value) is int and self.least <= value <= self.most


class OneOf:
    """Exactly one of these values."""

    def __init__(self, *values: object) -> None:
        self.values = values
        self.kind = " or ".join(repr(value) for value in values)

    def fits(self, value: Any) -> bool:
        return any(type(value) is type(one) and value == one for one in self.values)


TEXT = Text("text", nul=True)
STRING = Text("text without NUL bytes")
WORD = Text("text without NUL bytes", raw=True)
LINE = Text("a line of text", 4096, lines=False)
HEX = Text("hexadecimal digits", 64, of="0123456789abcdef")
FLAG = OneOf(True, False)


def check(value: Any, schema: Any, what: str) -> None:
    """Raise BadInput when the document `what` does not fit the schema: "config.json: process.env[3] is not text …"."""
    for path, kind in _wrong(value, schema, ""):
        raise BadInput(f"{what}: {path or 'it'} is {kind}")


def _wrong(value: Any, schema: Any, path: str) -> list[tuple[str, str]]:
    """Return the first value that is wrong: its path, and what it is not."""
    if isinstance(schema, (Text, Number, OneOf)):
        return [] if schema.fits(value) else [(path, f"not {schema.kind}")]
    if schema is object:
        return []
    if schema is dict or isinstance(schema, dict):
        if not isinstance(value, dict):
            return [(path, "not an object")]
        return _wrong_object(value, schema, path) if isinstance(schema, dict) else []
    if not isinstance(value, list):
        return [(path, "not a list")]
    if schema is list:
        return []
    if len(value) > MAX_ITEMS:
        return [(path, f"longer than {MAX_ITEMS}")]
    for number, item in enumerate(value):
        if found := _wrong(item, schema[0], f"{path}[{number}]"):
            return found
    return []


def _wrong_object(value: dict[Any, Any], schema: dict[Any, Any], path: str) -> list[tuple[str, str]]:
    if str in schema:
        if len(value) > MAX_ITEMS:
            return [(path, f"larger than {MAX_ITEMS}")]
        for key, item in value.items():
            if not is_text(key):
                return [(_below(path, key), "not a name that is text")]
            if found := _wrong(item, schema[str], _below(path, key)):
                return found
        return []
    for name, inner in schema.items():
        key = name.removesuffix("?")
        if key is not name and value.get(key) is None:
            continue
        if key not in value:
            return [(_below(path, key), "missing")]
        if found := _wrong(value[key], inner, _below(path, key)):
            return found
    return []


def accepts(value: Any, schema: Any) -> bool:
    """Return whether `check` accepts this."""
    return not _wrong(value, schema, "")


def matcher(schema: Any) -> Callable[[Any], bool]:
    """Return a function that says of a document whether `check` accepts it; if not, perhaps it does all the same.

    It is one expression, made from the schema: for hundreds of documents, it takes a tenth of the time.
    """
    names: dict[str, Any] = {"wrong": _wrong}
    return eval(f"lambda v0: {_expression(schema, 'v0', 1, names)}", names)  # type: ignore[no-any-return]


def _expression(schema: Any, value: str, depth: int, names: dict[str, Any]) -> str:
    """Return the expression that says whether `value`, which is a name, fits; `names` gets what it needs."""
    constant = f"c{len(names)}"
    names[constant] = schema
    if isinstance(schema, Number):
        return f"(type({value}) is int and {schema.least} <= {value} <= {schema.most})"
    if isinstance(schema, Text):
        names[constant] = schema.of or schema.fits
        first = f"type({value}) is str and len({value}) <= {schema.most}"
        if schema.of:
            return f"({first} and {value} != '' and {constant}.issuperset({value}))"
        ends = "" if schema.lines else f" and '\\n' not in {value}"
        nul = "" if schema.nul else f" and '\\0' not in {value}"
        return f"({first}{ends}{nul} and ({value}.isascii() or {constant}({value})))"
    if isinstance(schema, dict) and str not in schema:
        parts = [f"type({value}) is dict"]
        for name, inner in schema.items():
            item = f"v{depth}"
            missing = "is None or" if name.endswith("?") else "is not None and"
            found = f"({item} := {value}.get({name.removesuffix('?')!r})) {missing}"
            parts.append(f"({found} {_expression(inner, item, depth + 1, names)})")
        return f"({' and '.join(parts)})"
    if isinstance(schema, list) and not isinstance(schema[0], (dict, list)):
        each = _expression(schema[0], f"v{depth}", depth + 1, names)
        return f"(type({value}) is list and len({value}) <= {MAX_ITEMS} and all([{each} for v{depth} in {value}]))"
    return f"(not wrong({value}, {constant}, ''))"


def _below(path: str, key: str) -> str:
    simple = key.isascii() and key.replace("_", "").isalnum() and len(key) <= 60
    if not simple:
        return f"{path}[{ascii(key[:60])}]"
    return f"{path}.{key}" if path else key


#: The characters of a name of a pod or a member.
NAME_CHARS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


def is_name(text: str) -> bool:
    """Return whether this can name a pod or a member.

    A name has letters, digits, `_`, `.` and `-`, at most 63, and no leading `.` or `-`.
    """
    return bool(text) and len(text) <= 63 and NAME_CHARS.issuperset(text) and text[0] not in ".-"


def check_name(name: str, what: str) -> str:
    """Return the name of a directory, a cgroup and a hostname.  Raise UsageError unless is_name accepts it."""
    if not is_name(name):
        raise UsageError(
            f"bad {what} name {name!r}",
            hint="use letters, digits, '_', '.', '-', at most 63, beginning with a letter, a digit or '_'",
        )
    return name
