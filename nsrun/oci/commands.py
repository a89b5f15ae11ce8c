# SPDX-License-Identifier: Apache-2.0
"""The command line of nsrun-oci: which options there are, and how they are read.

Engines put options on either side of the id, as runc allows, so each command is read to its end; in `exec` what follows
the id is the command that is executed.  A value follows its option, or an equals sign.
"""

from __future__ import annotations

from nsrun.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Kinds of options: a truth value, one value, and several of them.
FLAG, VALUE, LIST = "flag", "value", "list"

GLOBAL = {
    "root": VALUE,
    "log": VALUE,
    "log-format": VALUE,
    "cgroup-manager": VALUE,
    "rootless": VALUE,
    "systemd-cgroup": FLAG,
    "debug": FLAG,
    "version": FLAG,
    "help": FLAG,
}

_MAKE = {
    "bundle": VALUE,
    "config": VALUE,
    "console-socket": VALUE,
    "pid-file": VALUE,
    "preserve-fds": VALUE,
    "no-pivot": FLAG,
    "no-new-keyring": FLAG,
    "no-subreaper": FLAG,
}
_LIMITS = {
    name: VALUE
    for name in (
        "blkio-weight cpu-period cpu-quota cpu-burst cpu-share cpu-idle cpu-rt-period cpu-rt-runtime cpuset-cpus cpuset-mems "
        "memory memory-reservation memory-swap pids-limit"
    ).split()
}

COMMANDS: dict[str, Mapping[str, str]] = {
    "create": _MAKE,
    "run": {**_MAKE, "detach": FLAG, "keep": FLAG},
    "start": {},
    "state": {},
    "kill": {"all": FLAG},
    "delete": {"force": FLAG},
    "exec": {
        "additional-gids": LIST,
        "apparmor": VALUE,
        "cap": LIST,
        "cgroup": VALUE,
        "console-socket": VALUE,
        "cwd": VALUE,
        "detach": FLAG,
        "env": LIST,
        "ignore-paused": FLAG,
        "no-new-privs": FLAG,
        "pid-file": VALUE,
        "preserve-fds": VALUE,
        "process": VALUE,
        "process-label": VALUE,
        "tty": FLAG,
        "user": VALUE,
    },
    "list": {"format": VALUE, "quiet": FLAG},
    "ps": {"format": VALUE},
    "pause": {},
    "resume": {},
    "update": {"resources": VALUE, **_LIMITS},
    "events": {"stats": FLAG, "interval": VALUE},
    "features": {},
    "spec": {"bundle": VALUE, "rootless": FLAG},
    "install": {"remove": FLAG, "etc": VALUE},
}

#: Single letters, by command: the first that knows the name is meant.
_SHORT = {
    "a": ("all", "apparmor"),
    "b": ("bundle",),
    "c": ("cap",),
    "d": ("detach",),
    "e": ("env",),
    "f": ("force", "format", "config"),
    "g": ("additional-gids",),
    "h": ("help",),
    "p": ("process",),
    "q": ("quiet",),
    "r": ("resources",),
    "t": ("tty",),
    "u": ("user",),
    "v": ("version",),
}


class Words:
    """A command line that was read: `command` ("" for none), its options, its id, and what follows."""

    def __init__(self) -> None:
        self.command = ""
        self.options: dict[str, str] = {}
        self.lists: dict[str, list[str]] = {}
        self.arguments: list[str] = []

    def value(self, name: str, default: str = "") -> str:
        return self.options.get(name, default)

    def flag(self, name: str) -> bool:
        return self.options.get(name) == "true"


def _truth(name: str, text: str) -> str:
    if text.lower() in ("true", "1", "t"):
        return "true"
    if text.lower() in ("false", "0", "f"):
        return "false"
    raise UsageError(f"--{name}: {text!r} is neither true nor false")


def _name(word: str, known: Mapping[str, str]) -> str:
    """Return the name of an option as the table has it.  Raise UsageError when it has none."""
    if word.startswith("--"):
        name = word[2:].partition("=")[0]
    elif (letter := word[1:].partition("=")[0]) in _SHORT:
        name = next((name for name in _SHORT[letter] if name in known), letter)
    else:
        name = letter  # runc takes -bundle, too
    if name not in known:
        raise UsageError(f"unknown option {word.partition('=')[0]!r}")
    return name


def read(words: Sequence[str]) -> Words:
    """Return what a command line says.  Raise UsageError.  Pure."""
    found = Words()
    known: Mapping[str, str] = GLOBAL
    left = list(words)
    options = True
    while left:
        word = left.pop(0)
        if not options or not word.startswith("-") or word == "-":
            if not found.command:
                if word not in COMMANDS:
                    raise UsageError(f"unknown command {word!r}")
                found.command, known = word, {**GLOBAL, **COMMANDS[word]}
                continue
            found.arguments.append(word)
            if found.command == "exec":
                found.arguments += left[1:] if left[:1] == ["--"] else left
                break
            continue
        if word == "--":
            options = False
            continue
        name = _name(word, known)
        _, equals, value = word.partition("=")
        if known[name] == FLAG:
            found.options[name] = _truth(name, value) if equals else "true"
            continue
        if not equals:
            if not left:
                raise UsageError(f"{word} needs a value")
            value = left.pop(0)
        if known[name] == LIST:
            found.lists.setdefault(name, []).append(value)
        else:
            found.options[name] = value
    return found


#: The characters of an id: what runc and crun take.
_ID = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-.")


def container_id(words: Words, most: int = 1) -> str:
    """Return the id of a command line, which has at most `most` arguments.  Raise UsageError when it can't be one."""
    if not words.arguments:
        raise UsageError(f"{words.command}: the container's id is missing")
    if len(words.arguments) > most:
        raise UsageError(f"{words.command}: unexpected argument {words.arguments[most]!r}")
    return check_id(words.arguments[0])


def check_id(name: str) -> str:
    """Return an id, which becomes the name of a directory.  Raise UsageError for what can't be one."""
    if not name or len(name) > 255 or not _ID.issuperset(name) or name[0] == ".":
        raise UsageError(
            f"invalid container id {name!r}: letters, digits, '_', '+', '-' and '.', and no '.' at its beginning"
        )
    return name
