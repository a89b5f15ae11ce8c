# SPDX-License-Identifier: Apache-2.0
"""Read the file of `nsrun up`: one pod and its members, in TOML, with the names of the command line's options.

    [pod]
    name = "blog"
    publish = ["8080:80"]

    [members.blog-db]
    image = "localhost/mariadb"
    env = { MYSQL_DATABASE = "exampledb" }
    volume = ["db:/var/lib/mysql"]

    [members.blog-web]
    image = "localhost/wordpress"
    after = ["blog-db"]

The pod YAML of Kubernetes becomes the same: nsrun.kube compiles it to such a document (`read_yaml`).  What is not understood
is refused, with its line.  Pure, but for reading the file.
"""

from __future__ import annotations

import hashlib
import json
import re

from nsrun.cli.commands import JOIN, POD_CREATE, checked
from nsrun.errors import BadInput, NsrunError, UsageError
from nsrun.schema import is_name, read_document

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from nsrun.kube.document import Field
    from nsrun.kube.pods import Compiled, OwnVolume

MAX_BYTES = 1 << 20
#: What `up` decides itself, or what needs a terminal that it does not have.
NOT_OF_MEMBER = ("name", "detach", "interactive", "terminal", "rm", "cidfile", "status_fd")
#: The label by which `up` knows what it has made, and from which text.
LABEL = "nsrun.up"


class Wanted:
    """A member as the file wants it.  `mark` is the same for the same options.

    `finish`: what comes after it starts when it has ended with status 0.
    """

    __slots__ = ("after", "command", "finish", "name", "options")

    def __init__(
        self, name: str, options: dict[str, Any], command: list[str], after: list[str], finish: bool = False
    ) -> None:
        self.name, self.options, self.command, self.after, self.finish = name, options, command, after, finish

    def filled(self, known: Mapping[str, str]) -> Wanted:
        """Return the member with what is `known` by now in the place of what stands for it."""
        if not known:
            return self
        from nsrun.kube.fields import fill

        return Wanted(self.name, fill(self.options, known), fill(self.command, known), self.after, self.finish)

    def mark(self, known: dict[str, Any]) -> str:
        """Return the digest of the options, and of what is `known` of them by now."""
        options = {key: value for key, value in self.options.items() if key != "env_file"}
        return mark_of({**options, "command": self.command, **known})


class PodFile:
    """What a file says: the pod's name and options, and its members in the order in which they start.

    `compiled`: what only YAML has, volumes that live with the pod and values that are filled in when a member starts; or None.
    """

    __slots__ = ("compiled", "members", "name", "options", "reader")

    def __init__(self, name: str, options: dict[str, Any], members: list[Wanted], reader: _Reader) -> None:
        self.name, self.options, self.members, self.reader = name, options, members, reader
        self.compiled: Compiled | None = None

    @property
    def own(self) -> dict[str, OwnVolume]:
        """Return the volumes that live with the pod."""
        return self.compiled.own if self.compiled else {}

    def locate(self, keys: tuple[str, ...], error: NsrunError) -> NsrunError:
        """Return the error of a table with the line of the option that it names, or of the table."""
        named = next((key for key in self.reader.keys(keys) if f"--{key.replace('_', '-')}" in error.message), "")
        for table, value, field in self.compiled.items if self.compiled else ():
            source = repr(value.partition(":")[0])
            if table[: len(keys)] == keys and (value in error.message or source in error.message):
                found = field.wrong(error.message, error.hint)
                break
        else:
            found = self.reader.wrong((*keys, named) if named else keys, error.message, error.hint)
        return found if isinstance(error, UsageError) else BadInput(found.message, hint=found.hint)

    @property
    def mark(self) -> str:
        own = {"own": sorted(name for name, volume in self.own.items() if volume.files is None)}
        return mark_of({**self.options, **(own if own["own"] else {})})


def mark_of(what: dict[str, Any]) -> str:
    """Return a digest of options, for a label."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def read(path: str) -> list[PodFile]:
    """Return the pods of a file: of YAML by its name, else of TOML.

    Raise BadInput when it can't be read, and UsageError, with the line, for what it says wrongly.
    """
    if path.endswith((".yaml", ".yml", ".json")):
        return read_yaml(path)
    return [parse(_bytes_of(path, "nsrun up FILE; docs/up.md shows one"), path)]


def read_yaml(path: str) -> list[PodFile]:
    """Return the pods of a file of Kubernetes' objects; "-" is standard input."""
    return parse_yaml(_bytes_of(path, "docs/kube.md shows a file"), "standard input" if path == "-" else path)


def _bytes_of(path: str, hint: str) -> bytes:
    if path == "-":
        import sys

        data = sys.stdin.buffer.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise BadInput(f"standard input is larger than {MAX_BYTES >> 10} KiB")
        return data
    try:
        return read_document(path, MAX_BYTES)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}", hint=hint) from None


def parse_yaml(data: bytes, path: str) -> list[PodFile]:
    """Return the pods that the text of a file describes.  Raise UsageError, with the line and the path of the field."""
    from nsrun.kube.pods import compile_file

    found = []
    for compiled in compile_file(data, path):
        pod = _Reader(path, "", compiled.fields).file(compiled.document)
        pod.compiled = compiled
        found.append(pod)
    return found


def parse(data: bytes, path: str) -> PodFile:
    """Return what the text of a file says.  Raise UsageError, with the line."""
    import tomllib

    try:
        text = data.decode()
        document = tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UsageError(f"{path}:{line}: it is not UTF-8", hint="TOML is UTF-8: toml.io") from None
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"\(at line (\d+)", str(error))
        where = f"{path}:{found[1]}" if found else path
        what = str(error).replace(" (at end of document)", " at the end of the file").partition(" (at ")[0]
        raise UsageError(f"{where}: {what[:1].lower()}{what[1:]}", hint="it has to be TOML: toml.io") from None
    except ValueError:  # a number of thousands of digits
        raise UsageError(f"{path}: a number is too long", hint="it has to be TOML: toml.io") from None
    except RecursionError:
        raise UsageError(f"{path}: it is nested too deeply", hint="it has to be TOML: toml.io") from None
    return _Reader(path, text).file(document)


class _Reader:
    """Turns the document of one file into a PodFile; knows in which line a key is."""

    def __init__(self, path: str, text: str, fields: Mapping[tuple[str, ...], Field] | None = None) -> None:
        self.path, self.fields = path, fields or {}
        self.lines = {keys: field.line for keys, field in self.fields.items()} or _lines(text)

    def keys(self, table: tuple[str, ...]) -> list[str]:
        """Return the keys of a table, longest first."""
        found = {keys[len(table)] for keys in self.lines if len(keys) > len(table) and keys[: len(table)] == table}
        return sorted(found, key=len, reverse=True)

    def wrong(self, keys: tuple[str, ...], why: str, hint: str = "") -> UsageError:
        while keys and keys not in self.lines:
            keys = keys[:-1]
        if keys in self.fields:
            return self.fields[keys].wrong(why, hint)
        line = f":{self.lines[keys]}" if keys else ""
        return UsageError(f"{self.path}{line}: {why}", hint=hint)

    def file(self, document: dict[str, Any]) -> PodFile:
        for key in document:
            if key not in ("pod", "members"):
                raise self.wrong((key,), f"unknown table {key!r}", hint="[pod], and [members.NAME] for each member")
        pod = self.table(document.get("pod", {}), ("pod",))
        name = pod.pop("name", None)
        if name is None:
            raise self.wrong(("pod",), "the pod has no name", hint='[pod] with name = "…"')
        if not isinstance(name, str) or not is_name(name):
            raise self.wrong(("pod", "name"), f"{name!r} is not a name of a pod", hint="letters, digits, _ . and -")
        options = self.options(POD_CREATE, pod, ("pod",), ())
        tables = self.table(document.get("members", {}), ("members",))
        members = [self.member(name, self.table(value, ("members", name))) for name, value in tables.items()]
        return PodFile(name, options, self.ordered(members), self)

    def table(self, value: Any, keys: tuple[str, ...]) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.wrong(keys, f"{'.'.join(keys)} is not a table", hint=f"[{'.'.join(keys)}]")
        return dict(value)

    def member(self, name: str, table: dict[str, Any]) -> Wanted:
        keys = ("members", name)
        if not is_name(name):
            raise self.wrong(keys, f"{name!r} is not a name of a member", hint="letters, digits, _ . and -")
        command, after = self.words(table.pop("command", []), (*keys, "command")), table.pop("after", [])
        after = self.words(after, (*keys, "after"))
        finish = table.pop("finish", False)
        if not isinstance(finish, bool):
            raise self.wrong((*keys, "finish"), "finish is neither true nor false")
        options = self.options(JOIN, table, keys, NOT_OF_MEMBER)
        if not {"rootfs", "image", "bundle"} & options.keys() and not command:
            raise self.wrong(keys, f"member {name!r} has neither an image nor a command", hint='image = "…"')
        if finish and options.get("restart", "no") != "no":
            raise self.wrong((*keys, "finish"), "a member that is to finish has no restart policy")
        return Wanted(name, options, command, after, finish)

    def words(self, value: Any, keys: tuple[str, ...]) -> list[str]:
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            hint = f'{keys[-1]} = ["sh", "-c", "…"]' if keys[-1] == "command" else f'{keys[-1]} = ["…"]'
            raise self.wrong(keys, f"{keys[-1]} is not a list of strings", hint=hint)
        return value

    def options(
        self, command: str, table: dict[str, Any], keys: tuple[str, ...], without: tuple[str, ...]
    ) -> dict[str, Any]:
        """Return the options of a table, checked as those of the command line."""
        found: dict[str, Any] = {}
        for key, value in table.items():
            if isinstance(value, dict) and key in ("env", "label"):
                for name, one in value.items():
                    if isinstance(one, (dict, list, bool)):
                        raise self.wrong((*keys, key, name), f"{key}.{name} is not a string", hint=f'{name} = "…"')
            try:
                if isinstance(value, dict) and key in ("env", "label"):
                    value = [f"{name}={one}" for name, one in value.items()]
                found.update(checked(command, {key: value}, without))
            except ValueError:  # Python refuses to print numbers of more than 4300 digits
                raise self.wrong((*keys, key), f"{key}: a number is too long") from None
            except TypeError as error:
                raise self.wrong(
                    (*keys, key), str(error).partition("; it has")[0], hint=f"nsrun {command} --help"
                ) from None
            except NsrunError as error:
                raise self.wrong((*keys, key), error.message, error.hint) from None
        return found

    def ordered(self, members: list[Wanted]) -> list[Wanted]:
        """Return members in the order of the file, but after those that they name."""
        names, found, left = {member.name for member in members}, [], list(members)
        for member in members:
            for name in member.after:
                if name not in names:
                    keys = ("members", member.name, "after")
                    raise self.wrong(keys, f"there is no member {name!r} in this file", hint=", ".join(sorted(names)))
        started: set[str] = set()
        while left:
            ready = next((member for member in left if started.issuperset(member.after)), None)
            if ready is None:
                circle = ", ".join(member.name for member in left)
                raise self.wrong(("members", left[0].name, "after"), f"a circle: each of {circle} waits for another")
            left.remove(ready)
            found.append(ready)
            started.add(ready.name)
        return found


_KEY = r"""(?:"[^"]*"|'[^']*'|[\w-]+)"""
_HEAD = re.compile(rf"\s*\[\[?\s*({_KEY}(?:\s*\.\s*{_KEY})*)\s*\]")
_PAIR = re.compile(rf"\s*({_KEY}(?:\s*\.\s*{_KEY})*)\s*=")


def _lines(text: str) -> dict[tuple[str, ...], int]:
    """Return path of keys → line, of tables and of keys that begin a line: tomllib does not tell.

    A line within a long string may look like one; what comes first in the file counts.
    """
    found: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.split("\n"), 1):
        if head := _HEAD.match(line):
            table = keys = _split(head[1])
        elif pair := _PAIR.match(line):
            keys = (*table, *_split(pair[1]))
        else:
            continue
        for length in range(1, len(keys) + 1):
            found.setdefault(keys[:length], number)
    return found


def _split(text: str) -> tuple[str, ...]:
    return tuple(key.strip("\"'") for key in re.findall(_KEY, text))
