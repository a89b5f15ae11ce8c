# SPDX-License-Identifier: Apache-2.0
"""`nsrun completion` and what its scripts call: the candidates for the last word, from the table in commands.py."""

from __future__ import annotations

from nsrun.cli import say
from nsrun.cli.commands import BY_NAME, COMMANDS, GLOBAL, GROUPS, Call, closed_set
from nsrun.errors import NsrunError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsrun.cli.commands import Command
    from nsrun.state import State

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


def script(call: Call) -> int:
    say.page(SCRIPTS[call.operands[0]])
    return 0


def complete(call: Call) -> int:
    """Print what may stand in the place of the last argument; nothing where a file name belongs."""
    for candidate in candidates(call.rest):
        say.out(candidate)
    return 0


def _images(state: State) -> list[str]:
    from nsrun.image import lookup, references

    try:
        return [references.familiar(name) for name in lookup.names(state)]
    except NsrunError:  # the store is root's, or damaged
        return []


def _ports(state: State, pod: str) -> list[str]:
    """Return the published ports of a pod as `port rm` takes them, each once, whichever its addresses are."""
    from nsrun.lifecycle.query import ports_of

    try:
        ports = ports_of(state, pod)
    except NsrunError:
        return []
    udp = {"tcp": "", "udp": "/udp"}
    return list(dict.fromkeys(f"{port['host_port']}{udp[port['protocol']]}" for port in ports))


def _names(state: State, kind: str) -> list[str]:
    """Return the pods, members, images or labs that exist."""
    if kind == "image":
        return _images(state)
    if kind == "process":
        return sorted({*state.names("pods"), *state.names("members")})
    if kind == "lab":
        from nsrun.teach import labs

        return [lab.name for lab in labs.every()]
    if kind == "volume":
        from nsrun.lifecycle import volumes

        return volumes.names(state)
    if kind == "network":
        from nsrun.state import networks

        try:
            found = networks.names(state)
        except OSError:  # they are root's
            found = []
        return found
    if kind == "end":
        return [f"{name}:" for name in state.names("members")]
    return state.names(f"{kind}s") if kind in ("pod", "member") else []


def candidates(arguments: list[str], offered: Sequence[Command] = COMMANDS) -> list[str]:
    """Return what the last of the arguments, which is typed in part, may become; only `offered` commands are named."""
    from nsrun.state import State

    *before, current = arguments or [""]
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
        found = sorted({c.name.split()[0] for c in offered})
        return [
            w
            for w in found + [f for o in GLOBAL for f in o.flags]
            if w.startswith(current) and (current or not w.startswith("-"))
        ]
    if name in GROUPS:
        return [
            c.name.split()[1]
            for c in offered
            if c.name.startswith(f"{name} ") and c.name.split()[1].startswith(current)
        ]
    command = BY_NAME.get(name)
    if command is None:
        return []
    rest = before[len(name.split()) :]
    valued = {flag: option for option in command.options if option.value for flag in option.flags}
    if command.rest and command.rest.kind == "line":
        inner = list(rest)
        while inner and inner[0].startswith("-"):  # an option of explain's own, and its value
            del inner[: 2 if inner[0] in valued else 1]
        own = rest and rest[-1] in valued and not inner
        if inner or not (own or current.startswith("-")):
            planned = [command for command in COMMANDS if command.plan]
            return candidates([*(["--root", root] if root else []), *inner, current], planned)
    if rest and rest[-1] in valued:
        option = valued[rest[-1]]
        values = [w.partition("[")[0].rstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for w in closed_set(option.value)]
        names = _names(state, option.key)
        if option.key == "network":
            names = [*(word for word in option.value.split("|") if word.islower()), *names]
        return [v for v in values or names if v.startswith(current)]
    if current.startswith("-"):
        return [f for o in command.options for f in o.flags if f.startswith(current)]
    given = [w for i, w in enumerate(rest) if not w.startswith("-") and (i == 0 or rest[i - 1] not in valued)]
    here = command.operands[len(given) :] or [operand for operand in command.operands if operand.many]
    if not here:
        return []
    names = _ports(state, given[0]) if here[0].kind == "port" else _names(state, here[0].kind)
    names = names or closed_set(here[0].name)
    return [n for n in names if n.startswith(current) and n not in given]
