"""Words → command, options, operands.  Docker's manners: `-it`, `-p80:80`, `--env=X`, options up to the member's command."""

from __future__ import annotations

from nsrun.cli.commands import BY_NAME, GLOBAL, GROUPS, Command, Option, words_of
from nsrun.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _take(words: list[str], options: tuple[Option, ...], into: dict[str, Any], name: str) -> bool:
    """Reads one option (or cluster) off the front of `words`; False when the front is no option."""
    word = words[0]
    if not word.startswith("-") or word == "-":
        return False
    words.pop(0)
    see = f"see 'nsrun {name} --help'" if name else "see 'nsrun --help'"
    known = {flag: option for option in options for flag in option.flags}
    if word.startswith("--"):
        flag, equals, value = word.partition("=")
        option = known.get(flag)
        if option is None:
            near = [f for f in known if f.startswith(flag)]
            hint = _instead(name, flag) or (f"did you mean {' or '.join(near)}?" if near else see)
            raise UsageError(f"unknown option {flag}", hint=hint)
        if not option.value:
            if equals:
                raise UsageError(f"{flag} takes no value", hint=see)
            into[option.key] = True
        else:
            _store(option, value if equals else _value(words, flag, see), into)
        return True
    for at in range(1, len(word)):
        flag = f"-{word[at]}"
        option = known.get(flag)
        if option is None:
            raise UsageError(f"unknown option {flag}", hint=_instead(name, flag) or see)
        if option.value:
            rest = word[at + 1 :]
            _store(option, rest.removeprefix("=") if rest else _value(words, flag, see), into)
            break
        into[option.key] = True
    return True


def _instead(command: str, flag: str) -> str:
    from nsrun.cli.foreign import instead_of_option

    return instead_of_option(command, flag)


def _value(words: list[str], flag: str, see: str) -> str:
    if not words:
        raise UsageError(f"{flag} needs a value", hint=see)
    return words.pop(0)


def _store(option: Option, value: str, into: dict[str, Any]) -> None:
    if "\0" in value:
        raise UsageError(f"{option.flags[-1]}: a NUL byte")
    option.check(value)
    if option.many:
        into.setdefault(option.key, []).append(value)
    else:
        into[option.key] = value


def parse(words: list[str]) -> tuple[dict[str, Any], Command | None, dict[str, Any], list[str], list[str]]:
    """(global options, command, its options, operands, the member's command)."""
    words = list(words)
    general: dict[str, Any] = {}
    while words and _take(words, GLOBAL, general, ""):
        pass
    if not words:
        return general, None, {}, [], []
    name = words.pop(0)
    if name in GROUPS and words and not words[0].startswith("-"):
        name = f"{name} {words.pop(0)}"
    elif name in GROUPS:
        if words and words[0] in ("-h", "--help"):
            general["help"] = name
            return general, None, {}, [], []
        raise UsageError(
            f"nsrun {name} needs a subcommand", hint=" ".join(c.split()[1] for c in BY_NAME if c.startswith(f"{name} "))
        )
    elif name == "container" and words and not words[0].startswith("-"):
        name = f"container {words.pop(0)}"
    command = BY_NAME.get(name)
    if command is None:
        from nsrun.cli.foreign import instead_of_command

        near = [c for c in BY_NAME if c.startswith(name) or name in c.split()]
        hint = instead_of_command(name) or (f"did you mean {' or '.join(near)}?" if near else "see 'nsrun --help'")
        raise UsageError(f"nsrun has no command {name!r}", hint=hint)
    wanted = len(command.operands.replace("[", "").split()) if command.rest else 0
    if name in ("explain", "help"):
        wanted = 0  # their operand is a whole command line
    options: dict[str, Any] = {}
    operands: list[str] = []
    rest: list[str] = []
    while words:
        if words[0] == "--":
            words.pop(0)
            (rest if command.rest else operands).extend(words)
            break
        if words[0] in ("-h", "--help"):
            general["help"] = name
            return general, command, options, operands, rest
        if _take(words, command.options, options, name):
            continue
        if command.rest and len(operands) == wanted:
            rest.extend(words)
            break
        operands.append(words.pop(0))
    _count(command, operands, wanted, options)
    return general, command, options, operands, rest


def _count(command: Command, operands: list[str], wanted: int, options: dict[str, Any]) -> None:
    see = f"usage: nsrun {command.name} {command.operands}"
    spec = command.operands
    if command.rest:
        low = high = wanted
    elif "..." in spec:
        low, high = (0 if spec.startswith("[") else 1), 1 << 30
    elif spec.startswith("["):
        low, high = 0, 1
    else:
        low = high = len(spec.split())
    if not low <= len(operands) <= high:
        raise UsageError(
            f"nsrun {command.name}: {'missing ' + spec if len(operands) < low else 'too many words: ' + ' '.join(operands[high:])}",
            hint=see,
        )
    known = words_of(spec)
    for word in operands if known else []:
        if word not in known:
            raise UsageError(f"nsrun {command.name}: {word!r} is not known", hint=f"one of: {', '.join(known)}")


def checked(name: str, options: dict[str, Any], without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the options of a program's call as those of the command `name`, checked by the same table.

    A switch is a bool, what may be repeated a list or tuple, any other value a str, a path or a number; None is not given.

    TypeError: the command has no such option, or its value is of another type.  UsageError: as for the command line.
    """
    known = {option.key: option for option in BY_NAME[name].options if option.key not in without}
    found: dict[str, Any] = {}
    for key, value in options.items():
        option = known.get(key)
        if option is None:
            raise TypeError(f"{name} has no option {key!r}; it has {', '.join(sorted(known))}")
        if value is None:
            continue
        if not option.value:
            if not isinstance(value, bool):
                raise TypeError(f"{key}={value!r}: a bool is wanted")
            if value:
                found[key] = True
        elif not option.many:
            _store(option, _word(key, value), found)
        elif isinstance(value, (list, tuple)):
            for one in value:
                _store(option, _word(key, one), found)
        else:
            raise TypeError(f"{key}={value!r}: a list is wanted")
    return found


def _word(key: str, value: Any) -> str:
    from os import fspath

    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    word = value if isinstance(value, str) else fspath(value) if hasattr(value, "__fspath__") else None
    if not isinstance(word, str):
        raise TypeError(f"{key}: {value!r} is no word")
    return word
