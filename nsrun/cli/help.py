# SPDX-License-Identifier: Apache-2.0
"""--help, `nsrun help` and docs/cli.md, from the table in commands.py."""

from __future__ import annotations

from nsrun.cli import say
from nsrun.cli.commands import BY_NAME, COMMANDS, GLOBAL, GROUPS, Call, Command, Option
from nsrun.errors import UsageError


def version() -> str:
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("nsrun")
    except PackageNotFoundError:
        return "0 (not installed)"


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
    return f"nsrun {command.name} {command.usage}".rstrip()


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
        "Pods without Docker and without a daemon: a tiny process, pause, holds the namespaces, and members join them.\n\n"
        "commands:\n" + "\n".join(lines) + "\n\noptions:\n" + _option_lines(GLOBAL) + "\n\n"
        "nsrun COMMAND --help describes a command; nsrun explain COMMAND... shows every step that it would take.\n"
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
        raise UsageError(f"there is no help for {name!r}", hint="see 'nsrun --help'")
    return 0


def command(call: Call) -> int:
    """`nsrun help`."""
    return help_for(" ".join(call.rest))


def general(call: Call) -> int:
    """Carry out --help and --version, and report the lack of a command."""
    if "version" in call.general:
        say.out(f"nsrun {version()}")
        return 0
    if call.command is None and "help" not in call.general:
        say.err_page(overview())
        return 2
    name = call.general.get("help")
    return help_for("" if name is True else str(name))


EXIT_STATUS = (
    ("0", "success; in the foreground: the member exited with 0"),
    ("2", "the command line is invalid"),
    ("125", "nsrun itself failed before the member ran; nothing is left behind"),
    ("126", "the member's command was found but can't be executed"),
    ("127", "the member's command was not found"),
    ("128+N", "the member was killed by signal N"),
    ("other", "the member's own exit status"),
)


def manual() -> str:
    """Return docs/cli.md; a test compares the file with this."""
    statuses = "".join(f"| {status} | {meaning} |\n" for status, meaning in EXIT_STATUS)
    parts = [
        "# The command line\n\nGenerated from `nsrun/cli/commands.py` by `make docs`; do not edit.\n",
        f"```\n{overview()}```\n",
        f"## Exit status\n\n| status | meaning |\n|---|---|\n{statuses}",
        '`--status-fd N` writes JSON lines: `{"event": "started", "pid", "name"}`, `{"event": "exited", "exit_code"}`,\n'
        '`{"event": "error", "step", "errno", "message", "hint", "exit_code"}`.\n',
    ]
    parts += [f"## nsrun {command.name}\n\n```\n{command_help(command)}```\n" for command in COMMANDS]
    return "\n".join(parts)
