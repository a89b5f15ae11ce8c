# SPDX-License-Identifier: Apache-2.0
"""The shape of documents: what is wrong is told by its key (nsrun/schema.py)."""

from typing import Any

import pytest

from nsrun import schema
from nsrun.errors import BadInput
from nsrun.schema import FLAG, LINE, TEXT, WORD, Number, OneOf, check
from nsrun.state import codec

SCHEMA = {
    "name": LINE,
    "process": {"args": [WORD], "env?": [WORD], "uid?": Number(0, 4294967294), "terminal?": FLAG},
    "labels?": {str: TEXT},
    "kind?": OneOf("a", "b"),
    "any?": dict,
    "list?": list,
    "mounts?": [{"target": WORD}],
}
GOOD = {
    "name": "x",
    "process": {"args": ["sh", "\udcff"], "env": None, "uid": 4294967294, "terminal": True, "other": object},
    "labels": {"a": "one\ntwo\0"},
    "kind": "b",
    "any": {"\ud800": 1},
    "list": [1, {}],
    "mounts": [{"target": "/a"}],
}


def changed(path: tuple, value: object) -> dict:
    def copy(at: Any, path: tuple) -> Any:
        if not path:
            return value
        new = dict(at) if isinstance(at, dict) else list(at)
        new[path[0]] = copy(at[path[0]] if not isinstance(at, dict) or path[0] in at else {}, path[1:])
        return new

    return copy(GOOD, path)


def test_what_fits():
    check(GOOD, SCHEMA, "x")


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ((), [], "it is not an object"),
        (("name",), None, "name is not a line of text"),
        (("name",), "a\nb", "name is not a line of text"),
        (("name",), "a" * 4097, "name is not a line of text"),
        (("name",), "\ud800", "name is not a line of text"),
        (("name",), "\udcff", "name is not a line of text"),
        (("process",), {}, "process.args is missing"),
        (("process", "args"), None, "process.args is not a list"),
        (("process", "args"), "sh", "process.args is not a list"),
        (("process", "args"), ["sh", 1], "process.args[1] is not text"),
        (("process", "args"), ["sh", "a\0b"], "process.args[1] is not text"),
        (("process", "env"), ["A=\ud800"], "process.env[0] is not text"),
        (("process", "uid"), True, "process.uid is not a whole number"),
        (("process", "uid"), 1.0, "process.uid is not a whole number"),
        (("process", "uid"), -1, "process.uid is not a whole number"),
        (("process", "uid"), 1 << 70, "process.uid is not a whole number"),
        (("process", "terminal"), 1, "process.terminal is not True or False"),
        (("labels",), {"a": 1}, "labels.a is not text"),
        (("labels",), {"a.b \x1b[2J": 1}, "labels['a.b \\x1b[2J'] is not text"),
        (("labels",), {"\ud800": ""}, "labels['\\ud800'] is not a name that is text"),
        (("kind",), "c", "kind is not 'a' or 'b'"),
        (("any",), [], "any is not an object"),
        (("list",), {}, "list is not a list"),
        (("list",), {}, "list is not a list"),
        (("mounts",), [{"target": "/a"}, {}], "mounts[1].target is missing"),
        (("labels",), dict.fromkeys(map(str, range(schema.MAX_ITEMS + 1)), ""), "labels is larger than"),
    ],
)
def test_what_does_not_fit(path, value, words):
    with pytest.raises(BadInput) as caught:
        check(changed(path, value), SCHEMA, "config.json")
    assert caught.value.message.startswith(f"config.json: {words}")
    caught.value.message.encode()


def test_numbers():
    assert all(map(schema.is_number, ("0", "007", "1" * 18)))
    assert not any(map(schema.is_number, ("", "²", "٣", "1²", "-1", "+1", "1_0", " 1", "1" * 19)))


def test_notes_that_are_nested_too_deep():
    for text in ("[" * 100_000, '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000):
        with pytest.raises(ValueError, match="not JSON"):
            codec.loads(text)
