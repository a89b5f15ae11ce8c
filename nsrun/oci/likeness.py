# SPDX-License-Identifier: Apache-2.0
"""What makes one config.json like another: where its lists and its mounts stand, and which names in it were made at random.

It is looked at as a text, since csrc/create.h compares it so: offsets are those of bytes, one letter each (latin-1).
"""

from __future__ import annotations

import os

from nsrun._protocol import ARGS_ALONE, ARGS_FIRST, ENV_FIRST
from nsrun.run.replay import CannotReplay
from nsrun.schema import is_number
from nsrun.state import codec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any


class Meaning(CannotReplay):
    """A name is more than a name."""


class Text:
    """A config.json without the lists of its arguments and its environment, and with the names in it.  Raise CannotReplay."""

    def __init__(self, text: str, ident: str) -> None:
        args, env = _lists(text)
        self.lists = ARGS_ALONE if env is None else ENV_FIRST if env < args else ARGS_FIRST
        (begin, end), (begin2, end2) = sorted((args, env or (len(text), len(text))))
        self.parts = [text[:begin], text[end:begin2], text[end2:]]
        self._taken = [(begin, end - begin), (begin2, end2 - begin2)]  # which is in none of the parts
        self._whole = text
        self.places = names_in("".join(self.parts), ident)
        self._edges = [0, len(self.parts[0]), len(self.parts[0]) + len(self.parts[1]), sum(map(len, self.parts))]
        if any(at < edge < at + len(name) for at, name in self.places for edge in self._edges):
            raise CannotReplay("a name stands where a list does")
        own = [ident] if ident else []
        self.numbers = {name: n for n, name in enumerate(dict.fromkeys([*own, *(name for _, name in self.places)]))}

    def other(self, others: Mapping[str, str]) -> str:
        """Return a config.json with other names."""
        letters = list("".join(self.parts))
        for at, name in self.places:
            letters[at : at + len(name)] = others[name]
        joined = "".join(letters)
        first, second, third = (joined[self._edges[n] : self._edges[n + 1]] for n in range(3))
        return f'{first}["list"]{second}' + (f'["list"]{third}' if self.lists != ARGS_ALONE else "")

    def regions(self) -> list[int]:
        """Return where in the parts a name stands: offset, length and number."""
        return [number for at, name in self.places for number in (at, len(name), self.numbers[name])]

    def mounts(self) -> list[int]:
        """Return where in the parts each mount begins and ends."""
        found = [at for place in _mounts(self._whole) for at in place]
        return [at - sum(size for where, size in self._taken if where < at) for at in found]


def members_of(text: str) -> bytes:
    """Return the names of all members of a JSON document, in their order and as they are written, each with a NUL.

    csrc/create.h, members_of().
    """
    found: list[str] = []

    def walk(at: int) -> None:
        if text[at] == "{":
            for key, begin, _ in _members(text, at):
                found.append(f"{key}\0")
                walk(begin)
        elif text[at] == "[":
            for begin, _ in _elements(text, at):
                walk(begin)

    walk(_after_blanks(text, 0))
    return "".join(found).encode("latin-1")


def _members(text: str, at: int) -> Iterator[tuple[str, int, int]]:
    """Yield the members of the JSON object that begins there: the name as it is written, and where its value begins and ends."""
    while True:
        at = _after_blanks(text, at + 1)
        if text[at] == "}":
            return
        _, after = codec.scan(text, at)
        begin = _after_blanks(text, _after_blanks(text, after) + 1)
        _, end = codec.scan(text, begin)
        yield text[at + 1 : after - 1], begin, end
        at = _after_blanks(text, end)
        if text[at] == "}":
            return


def _elements(text: str, at: int) -> Iterator[tuple[int, int]]:
    """Yield where each element of the JSON array that begins there begins and ends."""
    at = _after_blanks(text, at + 1)
    while text[at] != "]":
        _, end = codec.scan(text, at)
        yield at, end
        at = _after_blanks(text, end)
        at = _after_blanks(text, at + 1) if text[at] == "," else at


def _after_blanks(text: str, at: int) -> int:
    while text[at] in " \n\t\r":
        at += 1
    return at


def _lists(text: str) -> tuple[tuple[int, int], tuple[int, int] | None]:
    """Return where the lists of the arguments and of the environment stand; None: there is none.  Raise CannotReplay."""
    try:
        top = [(key, begin, end) for key, begin, end in _members(text, _after_blanks(text, 0))]
        if any("\\" in key for key, _, _ in top):
            raise CannotReplay("a member's name is written with an escape, and could be one that is there twice")
        found = [(begin, end) for key, begin, end in top if key == "process"]
        inner = [(key, begin, end) for key, begin, end in _members(text, found[0][0])]
        places = {key: (begin, end) for key, begin, end in inner}
        if any("\\" in key for key in places):
            raise CannotReplay("a member's name is written with an escape, and could be one that is there twice")
        if len(found) != 1 or len(places) != len(inner):
            raise CannotReplay("config.json has a member twice")
        env = places.get("env")
        return places["args"], env if env and text[env[0]] == "[" else None
    except (KeyError, IndexError, ValueError, StopIteration):
        raise CannotReplay("config.json has another form") from None


def _mounts(text: str) -> list[tuple[int, int]]:
    """Return where each mount stands."""
    places = [begin for key, begin, _ in _members(text, _after_blanks(text, 0)) if key == "mounts"]
    return list(_elements(text, places[0])) if len(places) == 1 and text[places[0]] == "[" else []


def order_of(targets: Sequence[str], bound: Sequence[bool]) -> list[int]:
    """Return which mount comes before which others: those that it may lie in, if no link of the root is on the way.  Pure.

    bound: which are bind mounts.  What lies in one may be led anywhere by a link in that, so it keeps its place among all.
    """
    pairs: list[int] = []
    paths = [f"{os.path.normpath('/' + target.lstrip('/')).rstrip('/')}/" for target in targets]
    led = [any(one and path.startswith(other) and path != other for other, one in zip(paths, bound, strict=True)) for path in paths]  # fmt: skip
    for number, path in enumerate(paths):
        for other in range(number):
            nested = path.startswith(paths[other]) or paths[other].startswith(path)
            if nested or led[number] or led[other]:
                pairs += [other, number]
    return pairs


_HEX = frozenset("0123456789abcdef")
_LETTERS = frozenset("abcdef")
#: What parts of a text are: digits, other letters, a dash, anything else.
_KINDS = {
    byte: letter if letter in _HEX or letter == "-" else "Z" if letter.isascii() and letter.isalnum() else " "
    for byte, letter in enumerate(map(chr, range(256)))
}
_UUID = [8, 4, 4, 4, 12]


def names_in(text: str, ident: str) -> list[tuple[int, str]]:
    """Return the names that a text has and that were made at random, with their places.  Pure.

    They are the container's id, hexadecimal numbers of eight digits and more, with a letter among them, UUIDs, the pids in paths of
    namespaces, and the time, as engines have it in annotations.
    """
    found: list[tuple[int, str]] = []
    at = 0
    for word in text.split('"'):
        if word[4:5] == "-" and word[10:11] == "T" and _is_time(word):
            found.append((at, word))
        at += len(word) + 1
    if ident:
        at = text.find(ident)
        while at >= 0:
            found.append((at, ident))
            at = text.find(ident, at + len(ident))
        text = text.replace(ident, "~" * len(ident))
    at = text.find('"/proc/')
    while at >= 0:
        begin = at + len('"/proc/')
        pid, _, rest = text[begin : begin + 32].partition("/")
        if is_number(pid) and rest.startswith("ns/"):
            found.append((begin, pid))
        at = text.find('"/proc/', begin)
    kinds, at = text.translate(_KINDS), 0
    for word in kinds.split():
        if len(word) < 8:
            continue
        at = kinds.index(word, at)
        parts, where = word.split("-"), at
        while parts:
            taken = 0
            if [len(part) for part in parts[:5]] == _UUID and _HEX.issuperset("".join(parts[:5])):
                taken = 5
            elif len(parts[0]) >= 8 and _HEX.issuperset(parts[0]) and _LETTERS & set(parts[0]):
                taken = 1
            size = len("-".join(parts[: taken or 1]))
            if taken:
                found.append((where, text[where : where + size]))
            where += size + 1
            del parts[: taken or 1]
        at += len(word)
    return sorted(found)


_DIGITS = {ord(digit): "9" for digit in "012345678"}


def _is_time(word: str) -> bool:
    """Return whether a word is a time of RFC 3339, with a fraction or without."""
    whole, _, fraction = word.translate(_DIGITS).partition(".")
    return whole.rstrip("Z") == "9999-99-99T99:99:99" and not fraction.rstrip("Z").strip("9")


def another(name: str) -> str:
    """Return another name of the same length and form."""
    while True:
        drawn = zip(name, os.urandom(len(name)), strict=True)
        if is_number(name) or _is_time(name):
            found = "".join("123456789"[byte % 9] if is_number(old) else old for old, byte in drawn)
        else:
            found = "".join("0123456789abcdef"[byte % 16] if old != "-" else "-" for old, byte in drawn)
        if found != name:
            return found


def all_places(text: Any, part: Any) -> list[int]:
    """Return where a part stands in a text."""
    found, at = [], text.find(part)
    while at >= 0:
        found.append(at)
        at = text.find(part, at + 1)
    return found


def differing(body: bytes, other: bytes, names: Sequence[tuple[str, str, int]]) -> list[int]:
    """Return the places at which one plan has a name where the other has another: its number, and the distance from the end.

    Raise CannotReplay when the plans differ in anything else.
    """
    found: list[int] = []
    made, taken = bytearray(body), bytearray(len(body))
    if len(body) == len(other):
        for name, its_other, number in sorted(names, key=lambda one: len(one[0]), reverse=True):
            old, new, size = name.encode(), its_other.encode(), len(name)
            for at in all_places(body, old):
                if other[at : at + size] == new and not any(taken[at : at + size]):
                    made[at : at + size], taken[at : at + size] = new, b"\1" * size
                    found += [number, len(body) - at]
    if made != other:
        raise Meaning("a name means something")
    return found
