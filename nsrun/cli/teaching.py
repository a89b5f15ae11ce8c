# SPDX-License-Identifier: Apache-2.0
"""The commands that teach: explain and doctor."""

from __future__ import annotations

from nsrun.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsrun.cli.commands import Call


def explain(call: Call) -> int:
    from nsrun import explain as module
    from nsrun.cli import say
    from nsrun.cli.planning import plans_of

    chosen = [f"--{name}" for name in ("format", "step", "compare") if name in call.options]
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)} exclude each other")
    if "step" in call.options:
        from nsrun.cli.walking import walk

        return walk(call)
    if "compare" in call.options:
        return compare(call)
    form = call.options.get("format", "text")
    found = plans_of(call.state, call.rest)
    show = say.page if form == "text" else say.script
    if len(found) == 1 and found[0][0] == call.rest:
        show(module.explain(found[0][1], call.rest, form))
    else:
        show(module.explain_all(found, form))
        return 0
    if form == "text" and not call.state.uid:
        _tell_compiled(call)
    return 0


def _tell_compiled(call: Call) -> None:
    """Print what a compiled plan for this line takes for granted, if there is one."""
    from textwrap import wrap

    from nsrun.cli import say
    from nsrun.cli.commands import parse
    from nsrun.run import replay

    inner = parse(call.rest)
    found = replay.granted(call.state, call.rest[: len(call.rest) - len(inner.rest)])
    if found:
        text = f"There is a compiled plan: the next time this is done without Python (docs/replay.md), as long as nothing has changed of {', '.join(found)}."
        say.page("\n" + "".join(f"{line}\n" for line in wrap(text, 96, break_long_words=False, break_on_hyphens=False)))


def compare(call: Call) -> int:
    """Print how another tool says the command line, and what it has no words for."""
    from textwrap import wrap

    from nsrun.cli import say
    from nsrun.cli.commands import parse
    from nsrun.plan import sh_quote
    from nsrun.teach import compare as module

    inner, tool = parse(call.rest), call.options["compare"]
    if not inner.command or inner.command.name not in module.COMMANDS:
        raise UsageError(
            f"--compare knows {', '.join(module.COMMANDS)}", hint="nsrun explain --compare docker pod create"
        )
    flags = {option.key: option.flags[-1] for option in inner.command.options}
    found = module.compare(tool, inner.command.name, inner.options, flags, inner.operands, inner.rest)
    say.out(f"nsrun:    nsrun {' '.join(map(sh_quote, call.rest))}")
    say.out(f"{f'{tool}:':<9} {found.line or '(it has no such command)'}")
    if found.rows:
        say.out("")
    width = max([len(row.ours) for row in found.rows if len(row.ours) <= 32], default=0)
    for row in found.rows:
        say.out(f"  {row.ours:<{width}}  {row.theirs or f'({row.note})'}")
    if found.notes:
        say.out("")
    for note in found.notes:
        say.page("".join(f"{line}\n" for line in wrap(note, 98)))
    return 0


def doctor(call: Call) -> int:
    from nsrun import doctor as module
    from nsrun.cli import say, text

    findings = module.examine(call.state)
    if call.options.get("json"):
        text.json(findings)
    else:
        say.page(module.report(findings))
    return 0 if all(f["status"] != "missing" for f in findings) else 1
