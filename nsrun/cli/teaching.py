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
    from nsrun.cli.planning import plan_of

    chosen = [f"--{name}" for name in ("format", "step", "compare") if name in call.options]
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)} exclude each other")
    if "step" in call.options:
        from nsrun.cli.walking import walk

        return walk(call)
    form = call.options.get("format", "text")
    (say.page if form == "text" else say.script)(module.explain(plan_of(call.state, call.rest), call.rest, form))
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
