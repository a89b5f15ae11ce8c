# SPDX-License-Identifier: Apache-2.0
"""The manual pages and completion scripts that `make install` puts below PREFIX/share, from the table in commands.py.

    python -I -m nsrun.cli.man DIR      write them below DIR

The roff is man(7)'s.  A page per command, named as `man` names those of git and podman: nsrun-pod-create(1).
"""

from __future__ import annotations

import os
import re

from nsrun.cli import completion, help
from nsrun.cli.commands import COMMANDS, GLOBAL, Command, Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def _roff(text: str) -> str:
    """Return `text` escaped such that roff prints it unchanged."""
    text = text.replace("…", "...").replace("\\", "\\e").replace("-", "\\-")
    text = re.sub(r"[^\x00-\x7f]", lambda found: f"\\[u{ord(found[0]):04X}]", text)
    return f"\\&{text}" if text[:1] in (".", "'") else text


def _sentence(text: str) -> str:
    return text if text[-1:] in ".!?:" else f"{text}."


def _page(command: Command | None) -> str:
    """Return the name of a command's manual page; of nsrun itself, for None."""
    return "-".join(["nsrun", *(command.name.split() if command else [])])


def _head(command: Command | None, what: str, synopsis: Iterable[str]) -> list[str]:
    name = _page(command)
    return [
        '.\\" Generated from nsrun/cli/commands.py; do not edit.',
        f'.TH {_roff(name.upper())} 1 "" "nsrun {_roff(help.version())}" "User Commands"',
        ".SH NAME",
        f"{_roff(name)} \\- {_roff(what)}",
        ".SH SYNOPSIS",
        *synopsis,
    ]


def _options(options: Iterable[Option]) -> list[str]:
    lines = []
    for option in options:
        flags = ", ".join(f"\\fB{_roff(flag)}\\fP" for flag in option.flags)
        lines += [".TP", flags + (f" \\fI{_roff(option.value)}\\fP" if option.value else "")]
        lines.append(_roff(_sentence(option.help + (" (repeatable)" if option.many else ""))))
    return lines


def _see_also(commands: Iterable[Command | None]) -> list[str]:
    names = [f".BR {_roff(_page(command))} (1)" for command in commands]
    return [".SH SEE ALSO", *(f"{name}," for name in names[:-1]), *names[-1:]]


def _command(command: Command) -> str:
    usage = help.usage(command).removeprefix(f"nsrun {command.name}")
    lines = _head(command, command.help, [f"\\fBnsrun {_roff(command.name)}\\fP{_roff(usage)}"])
    lines += [".SH DESCRIPTION", _roff(_sentence(command.help[0].upper() + command.help[1:]))]
    if command.about:
        lines += [".PP", _roff(command.about)]
    if command.options:
        lines += [".SH OPTIONS", *_options(command.options)]
    lines += [".SH EXAMPLE", ".nf", _roff(command.example), ".fi"]
    group = command.name.split()[0]
    others = [c for c in COMMANDS if c is not command and (c.name.split()[0] == group) and " " in c.name]
    return "\n".join([*lines, *_see_also([None, *others])]) + "\n"


def _overview() -> str:
    synopsis = [f"\\fBnsrun\\fP {_roff('[--root DIR] [--debug] [--trace] COMMAND')}"]
    lines = _head(None, "pods without Docker and without a daemon", synopsis)
    lines += [
        ".SH DESCRIPTION",
        "A pod is a set of namespaces that a tiny program, pause, holds open.",
        "Members join them: each is an ordinary process on a root filesystem of its own.",
        ".SH COMMANDS",
    ]
    for command in COMMANDS:
        lines += [".TP", f".BR {_roff(_page(command))} (1)", _roff(_sentence(command.help))]
    lines += [".SH OPTIONS", *_options(GLOBAL), ".SH EXIT STATUS"]
    for status, meaning in help.EXIT_STATUS:
        lines += [".TP", f"\\fB{_roff(status)}\\fP", _roff(_sentence(meaning))]
    return "\n".join([*lines, *_see_also(COMMANDS)]) + "\n"


def _oci() -> str:
    """The page of nsrun-oci, whose table is its own: nsrun/oci/commands.py."""
    from nsrun.oci import describe
    from nsrun.oci.commands import COMMANDS as OCI
    from nsrun.oci.commands import GLOBAL as OCI_GLOBAL

    lines = [
        '.\\" Generated from nsrun/oci/commands.py; do not edit.',
        f'.TH NSRUN\\-OCI 1 "" "nsrun {_roff(help.version())}" "User Commands"',
        ".SH NAME",
        "nsrun\\-oci \\- an OCI runtime, in place of runc or crun",
        ".SH SYNOPSIS",
        f"\\fBnsrun\\-oci\\fP {_roff('[OPTION...] COMMAND [OPTION...] [ID]')}",
        ".SH DESCRIPTION",
        "Engines such as podman and containerd call it to create, start and delete containers from bundles.",
        "Options may stand on either side of the id.",
        ".SH OPTIONS",
        _roff(", ".join(describe.option_words(OCI_GLOBAL))),
        ".SH COMMANDS",
    ]
    for name, options in OCI.items():
        lines += [".TP", f"\\fB{_roff(name)}\\fP", _roff(_sentence(describe.ABOUT[name]))]
        if options:
            lines += [".br", _roff(", ".join(describe.option_words(options)))]
    lines += [".SH EXIT STATUS", "0, the status of the command for run and exec, or 1; 255 where exec itself failed."]
    return "\n".join([*lines, *_see_also([None])]) + "\n"


def files() -> dict[str, str]:
    """Return what to install, by its path below share/."""
    pages = {f"man/man1/{_page(command)}.1": _command(command) for command in COMMANDS}
    return {
        "man/man1/nsrun.1": _overview(),
        "man/man1/nsrun-oci.1": _oci(),
        **pages,
        "bash-completion/completions/nsrun": completion.SCRIPTS["bash"],
        "zsh/site-functions/_nsrun": completion.SCRIPTS["zsh"],
        "fish/vendor_completions.d/nsrun.fish": completion.SCRIPTS["fish"],
    }


def write(share: str) -> None:
    """Write all files() below `share`."""
    for name, content in files().items():
        path = os.path.join(share, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="ascii") as file:
            file.write(content)


if __name__ == "__main__":
    import sys

    write(sys.argv[1])
