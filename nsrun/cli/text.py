# SPDX-License-Identifier: Apache-2.0
"""What people read: tables, JSON, --help, docs/cli.md, completion scripts.  All from the table in commands.py."""

from __future__ import annotations

from nsrun.cli import say
from nsrun.cli.commands import BY_NAME, COMMANDS, GLOBAL, GROUPS, Command, Option, words_of
from nsrun.errors import NsrunError, UsageError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nsrun.state import State


def version() -> str:
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("nsrun")
    except PackageNotFoundError:
        return "0 (not installed)"


def json(value: Any) -> int:
    import json

    # ASCII, whatever the value holds; DEL is the one character of it that JSON does not escape
    say.script(json.dumps(value, indent=2).replace("\x7f", "\\u007f") + "\n")
    return 0


def table(head: list[str], rows: list[list[str]]) -> int:
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        say.out("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


# ---- help --------------------------------------------------------------------------------------------------


def _option_lines(options: tuple[Option, ...]) -> str:
    import textwrap

    lines = []
    for option in options:
        flags = ", ".join(option.flags) + (f" {option.value}" if option.value else "")
        if not option.flags[0].startswith("--"):
            head = f"  {flags}"
        else:
            head = f"      {flags}"
        text = option.help + (" (repeatable)" if option.many else "")
        body = textwrap.wrap(text, 66)
        lines.append(f"{head:<30} {body[0]}" if len(head) <= 29 else f"{head}\n{'':30} {body[0]}")
        lines += [f"{'':30} {line}" for line in body[1:]]
    return "\n".join(lines)


def usage(command: Command) -> str:
    words = ["nsrun", command.name]
    if command.options and command.name != "join":
        words.append("[OPTIONS]")
    if command.operands:
        words.append(command.operands)
    if command.name == "join":
        words.append("[OPTIONS] [--] [CMD [ARG...]]")
    elif command.name == "exec":
        words.append("CMD [ARG...]")
    return " ".join(words)


def command_help(command: Command) -> str:
    import textwrap

    text = f"usage: {usage(command)}\n\n{textwrap.fill(command.help[0].upper() + command.help[1:] + '.', 98)}\n"
    if command.about:
        text += "\n" + textwrap.fill(command.about, 98) + "\n"
    if command.options:
        text += f"\noptions:\n{_option_lines(command.options)}\n"
    return text + f"\nexample:\n  {command.example}\n"


def overview() -> str:
    width = max(len(c.name) for c in COMMANDS)
    lines = [f"  {c.name:<{width}}  {c.help}" for c in COMMANDS]
    return (
        "usage: nsrun [--root DIR] [--debug] [--trace] COMMAND\n\n"
        "Pods without Docker and without a daemon: a tiny pause holds the namespaces, members join them.\n\n"
        "commands:\n" + "\n".join(lines) + "\n\noptions:\n" + _option_lines(GLOBAL) + "\n\n"
        "nsrun COMMAND --help tells more; nsrun explain COMMAND... shows every step it would take.\n"
    )


def help_for(name: str) -> int:
    if not name:
        say.page(overview())
    elif name in BY_NAME:
        say.page(command_help(BY_NAME[name]))
    elif name in GROUPS:
        width = max(len(c.name) for c in COMMANDS)
        say.page("".join(f"  {c.name:<{width}}  {c.help}\n" for c in COMMANDS if c.name.startswith(f"{name} ")))
    else:
        raise UsageError(f"no help for {name!r}", hint="see 'nsrun --help'")
    return 0


def general(options: dict[str, Any], command: Command | None) -> int:
    if "version" in options:
        say.out(f"nsrun {version()}")
        return 0
    if command is None and "help" not in options:
        say.err_page(overview())
        return 2
    name = options.get("help")
    return help_for("" if name is True else str(name))


EXIT_STATUS = """| status | meaning |
|---|---|
| 0 | done; in the foreground: the member's own 0 |
| 2 | the words of the command are off |
| 125 | nsrun itself failed before the member ran; nothing is left |
| 126 | the command was found but can't be executed |
| 127 | the command was not found |
| 128+N | the member was ended by signal N |
| else | the member's own status |
"""


def manual() -> str:
    """docs/cli.md; a test compares the file with this."""
    parts = [
        "# The command line\n\nGenerated from `nsrun/cli/commands.py` by `make docs`; do not edit.\n",
        f"```\n{overview()}```\n",
        f"## Exit status\n\n{EXIT_STATUS}",
        '`--status-fd N` writes JSON lines: `{"event": "started", "pid", "name"}`, `{"event": "exited", "exit_code"}`,\n'
        '`{"event": "error", "step", "errno", "message", "hint", "exit_code"}`.\n',
    ]
    parts += [f"## nsrun {command.name}\n\n```\n{command_help(command)}```\n" for command in COMMANDS]
    return "\n".join(parts)


# ---- completion --------------------------------------------------------------------------------------------

SCRIPTS = {
    "bash": """# nsrun completion for bash
_nsrun() {
    local IFS=$'\\n'
    COMPREPLY=($(nsrun _complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
    if [ ${#COMPREPLY[@]} -eq 0 ]; then COMPREPLY=($(compgen -f -- "${COMP_WORDS[COMP_CWORD]}")); fi
}
complete -o filenames -F _nsrun nsrun
""",
    "zsh": """#compdef nsrun
_nsrun() {
    local -a found
    found=("${(@f)$(nsrun _complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n "$found" ]]; then compadd -Q -- $found; else _files; fi
}
if [[ $funcstack[1] = _nsrun ]]; then _nsrun; else compdef _nsrun nsrun; fi
""",
    "fish": """# nsrun completion for fish
complete -c nsrun -f -a '(nsrun _complete (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null)'
complete -c nsrun -F -n 'test -z "(nsrun _complete (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null)"'
""",
}


def completion(shell: str) -> int:
    if shell not in SCRIPTS:
        raise UsageError(f"no completion for {shell!r}", hint="bash, zsh or fish")
    say.page(SCRIPTS[shell])
    return 0


def complete(words: list[str]) -> int:
    """Prints what may stand in the place of the last word; nothing where a file name belongs."""
    for candidate in candidates(words):
        say.out(candidate)
    return 0


def _images(state: State) -> list[str]:
    from nsrun.image import lookup, references

    try:
        return [references.familiar(name) for name in lookup.names(state)]
    except NsrunError:  # the store is root's, or damaged
        return []


def candidates(words: list[str]) -> list[str]:
    from nsrun.state import State

    *before, current = words or [""]
    root = ""
    while before and before[0].startswith("-"):
        if before[0] == "--root" and len(before) > 1:
            root = before[1]
            del before[:2]
        else:
            del before[0]
    state = State(root)
    name = " ".join(before[:2]) if before[:1] and before[0] in GROUPS else "".join(before[:1])
    if not before:
        found = sorted({c.name.split()[0] for c in COMMANDS})
        return [
            w
            for w in found + [f for o in GLOBAL for f in o.flags]
            if w.startswith(current) and (current or not w.startswith("-"))
        ]
    if name in GROUPS:
        return [
            c.name.split()[1]
            for c in COMMANDS
            if c.name.startswith(f"{name} ") and c.name.split()[1].startswith(current)
        ]
    command = BY_NAME.get(name)
    if command is None:
        return []
    rest = before[len(name.split()) :]
    if name in ("explain", "help"):
        return candidates([*[w for w in rest if not w.startswith("-")], current])
    valued = {flag: option for option in command.options if option.value for flag in option.flags}
    if rest and rest[-1] in valued:
        closed = words_of(valued[rest[-1]].value)
        values = [w.partition("[")[0].rstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for w in closed] or (
            _images(state) if rest[-1] == "--image" else []
        )
        return [v for v in values if v.startswith(current)]
    if current.startswith("-"):
        return [f for o in command.options for f in o.flags if f.startswith(current)]
    operands = [w for i, w in enumerate(rest) if not w.startswith("-") and (i == 0 or rest[i - 1] not in valued)]
    if command.rest and operands:
        return []
    if "POD" in command.operands:
        names = state.names("pods")
    elif "MEMBER" in command.operands:
        names = state.names("members")
    elif "REF" in command.operands and name != "image pull":
        names = _images(state)
    else:
        names = words_of(command.operands)
    return [n for n in names if n.startswith(current) and n not in operands]
