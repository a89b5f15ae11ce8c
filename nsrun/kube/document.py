# SPDX-License-Identifier: Apache-2.0
"""Read YAML as kubectl reads it, and keep for each value its line and the path of its field.

PyYAML parses, and this module says what a plain word is: kubectl's library goes by rules of its own, between those of YAML 1.1
(`yes`, `on` and `010` are true, true and 8) and those of YAML 1.2 (`12:30` is a string).  Keys become strings as in JSON.
"""

from __future__ import annotations

import re

from nsrun.errors import BadInput, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: How many values a file may have, aliases counted as often as they are used.
MAX_VALUES = 100_000

_TRUE = frozenset("y Y yes Yes YES true True TRUE on On ON".split())
_FALSE = frozenset("n N no No NO false False FALSE off Off OFF".split())
_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_NOT_JSON = re.compile(r"\.nan|\.NaN|\.NAN|[-+]?(?:\.inf|\.Inf|\.INF)")
_INT = re.compile(r"([-+]?)(?:0[xX]([0-9a-fA-F]+)|0[oO]?([0-7]+)|0[bB]([01]+)|(0|[1-9][0-9]*))")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
#: Marks places in a value that are filled when a member starts (fields.py); Unicode has set them aside for a program's own use.
MARKS = "\ufdd0\ufdd1"
_NO_TEXT = re.compile(f"[{MARKS}\ud800-\udfff]")


class Field:
    """A value of a document: None, a bool, a number, a str, a list of Fields, or a dict of them; and where it is."""

    __slots__ = ("file", "line", "path", "value")

    def __init__(self, file: str, line: int, path: str, value: Any) -> None:
        self.file, self.line, self.path, self.value = file, line, path, value

    def wrong(self, why: str, hint: str = "") -> UsageError:
        """Return the error to raise about this field."""
        return UsageError(f"{self.file}:{self.line}: {self.path + ': ' if self.path else ''}{why}", hint=hint)

    def fields(self, known: frozenset[str], others: frozenset[str] = frozenset()) -> dict[str, Field]:
        """Return the fields of an object that are not null.  Raise UsageError for one that is not among the `known`.

        `others`: fields that Kubernetes has and nsrun has nothing for.  An empty one of them says nothing, and is left out.
        """
        found = {}
        for key, field in self.object().items():
            if field.value is None or (key in others and field.value in ([], {}, "", False)):
                continue
            if key in others:
                raise field.wrong("nsrun has nothing for this field", hint="docs/kube.md lists what is done")
            if key not in known:
                raise field.wrong("there is no such field", hint=f"here are: {' '.join(sorted(known))}")
            found[key] = field
        return found

    def object(self) -> dict[str, Field]:
        if self.value is None:
            return {}
        if not isinstance(self.value, dict):
            raise self.wrong(f"{self.said()} is not an object")
        return self.value

    def items(self) -> list[Field]:
        if self.value is None:
            return []
        if not isinstance(self.value, list):
            raise self.wrong(f"{self.said()} is not a list")
        return self.value

    def text(self, nul: bool = False) -> str:
        """Return a string, which may have NUL bytes in it only with `nul`."""
        if not isinstance(self.value, str):
            simple = isinstance(self.value, (bool, int, float))
            raise self.wrong(f"{self.said()} is not a string", hint="put it in quotes" if simple else "")
        if "\0" in self.value and not nul:
            raise self.wrong("it has a NUL byte")
        return self.value

    def number(self, low: int = 0, high: int = (1 << 63) - 1) -> int:
        if type(self.value) is not int:
            raise self.wrong(f"{self.said()} is not a whole number")
        if not low <= self.value <= high:
            raise self.wrong(f"{self.said()} is out of range", hint=f"from {low} to {high}")
        return self.value

    def flag(self) -> bool:
        if not isinstance(self.value, bool):
            raise self.wrong(f"{self.said()} is neither true nor false")
        return self.value

    def one_of(self, *values: str) -> str:
        """Return one of these texts."""
        if self.text() not in values:
            raise self.wrong(f"{self.said()} is not done", hint=f"done: {', '.join(values)}")
        return self.text()

    def said(self) -> str:
        """Return the value as an error shows it: as it is read."""
        if self.value is None or isinstance(self.value, bool):
            return {None: "null", True: "true", False: "false"}[self.value]
        if isinstance(self.value, (dict, list)):
            return "an object" if isinstance(self.value, dict) else "a list"
        return repr(self.value)[:80] if isinstance(self.value, str) else str(self.value)[:80]


def no_text(text: str) -> str:
    """Return what is wrong with a text: it has a mark, or half a surrogate pair, which an escape can stand for; or ""."""
    found = _NO_TEXT.search(text)
    return f"U+{ord(found[0]):04X} is not a character of text" if found else ""


def scalar(text: str) -> Any:
    """Return what a plain word means to kubectl.  Raise ValueError for a number that JSON does not have."""
    if text in _NULL:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if text[0] not in "+-.0123456789":
        return text
    if _NOT_JSON.fullmatch(text):
        raise ValueError(f"{text} is no number of JSON")
    if text[0] == ".":
        return float(text) if _FLOAT.fullmatch(text) else text
    plain = text.replace("_", "")
    if found := _INT.fullmatch(plain):
        sign, sixteen, eight, two, ten = found.groups()
        digits, base = next((one, base) for one, base in ((sixteen, 16), (eight, 8), (two, 2), (ten, 10)) if one)
        number = int(digits, base) if len(digits) < 70 else 1 << 64
        if -(1 << 63) <= (value := -number if sign == "-" else number) < 1 << (63 if sign else 64):
            return value
    if not _FLOAT.fullmatch(plain):
        return text
    real = float(plain)
    if real in (float("inf"), float("-inf")):
        return text
    return int(real) if real.is_integer() and abs(real) < 1e21 else real


def load(data: bytes, file: str) -> list[Field]:
    """Return the documents of a file that are not empty.  Raise UsageError, with the line, and BadInput without PyYAML."""
    try:
        import yaml
    except ImportError:
        raise BadInput(
            "YAML is read by PyYAML, which is not installed",
            hint="make install brings it; or pip install 'nsrun[kube]'",
        ) from None
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UsageError(f"{file}:{line}: it is not UTF-8") from None

    class Loader(yaml.BaseLoader):  # type: ignore[misc]
        """Tells a plain word from one in quotes, and leaves it to `scalar` what the word means."""

        def resolve(self, kind: Any, value: Any, implicit: Any) -> str:
            return "plain" if kind is yaml.ScalarNode and implicit[0] else str(super().resolve(kind, value, implicit))

    reader = _Reader(file, yaml)
    try:
        nodes = list(yaml.compose_all(text, Loader))
        return [field for field in (reader.field(node, "") for node in nodes) if field.value is not None]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{file}:{mark.line + 1}" if mark else file
        raise UsageError(f"{where}: {error.problem or error.context}", hint="it has to be YAML") from None
    except yaml.YAMLError as error:
        first = str(error).partition("\n")[0]
        raise UsageError(f"{file}: {first}", hint="it has to be YAML") from None
    except RecursionError:
        raise UsageError(f"{file}: it is nested too deeply") from None


class _Reader:
    """Turns the nodes of PyYAML into Fields."""

    def __init__(self, file: str, yaml: Any) -> None:
        self.file, self.yaml, self.count = file, yaml, 0
        self.inside: set[int] = set()  # the nodes that are being read: an alias may name one of them

    def wrong(self, node: Any, why: str, hint: str = "") -> UsageError:
        return UsageError(f"{self.file}:{node.start_mark.line + 1}: {why}", hint=hint)

    def field(self, node: Any, path: str) -> Field:
        if node is None:
            return Field(self.file, 1, path, None)
        self.count += 1
        if self.count > MAX_VALUES:
            raise self.wrong(node, f"it has more than {MAX_VALUES} values")
        if id(node) in self.inside:
            raise self.wrong(node, "an alias stands for something that it is part of")
        self.inside.add(id(node))
        try:
            return Field(self.file, node.start_mark.line + 1, path, self.value(node, path))
        finally:
            self.inside.discard(id(node))

    def value(self, node: Any, path: str) -> Any:
        if isinstance(node, self.yaml.ScalarNode):
            return self.scalar(node, path)
        if node.tag not in ("tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"):
            raise self.wrong(node, f"the tag {node.tag} is not read here")
        if isinstance(node, self.yaml.SequenceNode):
            return [self.field(one, f"{path}[{number}]") for number, one in enumerate(node.value)]
        found: dict[str, Field] = {}
        merged: dict[str, Field] = {}
        for key, value in node.value:
            if key.tag == "plain" and key.value == "<<":
                merged.update(self.merged(value, path))
                continue
            name = self.key(key, path)
            if name in found:
                raise self.wrong(key, f"{below(path, name)}: it is there twice")
            found[name] = self.field(value, below(path, name))
            found[name].line = key.start_mark.line + 1
        return {**merged, **found}

    def merged(self, node: Any, path: str) -> dict[str, Field]:
        """Return what `<<` brings: of several objects the first one counts."""
        parts = node.value if isinstance(node, self.yaml.SequenceNode) else [node]
        found: dict[str, Field] = {}
        for part in parts:
            value = self.field(part, path)
            if not isinstance(value.value, dict):
                raise self.wrong(part, "<< brings in objects only")
            found = {**value.value, **found}
        return found

    def scalar(self, node: Any, path: str) -> Any:
        if why := no_text(node.value):
            raise self.wrong(node, f"{path}: {why}" if path else why)
        if node.tag == "plain":
            try:
                return scalar(node.value)
            except ValueError as error:
                raise self.wrong(node, str(error)) from None
        if node.tag != "tag:yaml.org,2002:str":
            raise self.wrong(node, f"the tag {node.tag} is not read here", hint="a string stands in quotes")
        return node.value

    def key(self, node: Any, path: str) -> str:
        value = self.scalar(node, path) if isinstance(node, self.yaml.ScalarNode) else None
        if value is None:
            raise self.wrong(node, "a key is a string", hint="put it in quotes")
        return ("true" if value else "false") if isinstance(value, bool) else str(value)


def below(path: str, key: str) -> str:
    """Return the path of a field of the object at `path`."""
    if not re.fullmatch(r"[A-Za-z_][\w-]*", key):
        return f"{path}[{key[:60]!r}]"
    return f"{path}.{key}" if path else key
