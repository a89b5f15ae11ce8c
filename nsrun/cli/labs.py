# SPDX-License-Identifier: Apache-2.0
"""The commands of `nsrun lab`."""

from __future__ import annotations

import _signal
import os

from nsrun.cli import say, text
from nsrun.errors import BadInput
from nsrun.teach import labs, labtext, progress, sessions
from nsrun.teach.lab import CALLERS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nsrun.cli.commands import Call
    from nsrun.teach.lab import Lab, Row, Work


def _lab(call: Call) -> Lab:
    sessions.refuse_inside(call.state)
    return sessions.chosen(call.state, *call.operands)


def ls(call: Call) -> int:
    sessions.refuse_inside(call.state)
    found = progress.load(call.state)
    rows: list[dict[str, Any]] = []
    for lab in labs.every():
        lacking = [what for what, _ in lab.lacking(call.state.uid)]
        entry = found["labs"].get(str(lab.number), {})
        status = "current" if entry.get("id") and found.get("current") == lab.number else sessions.status(entry)
        rows.append({"number": lab.number, "name": lab.name, "title": lab.title, "minutes": lab.minutes, "status": status, "lacking": lacking})  # fmt: skip
    if call.options.get("json"):
        return text.json(rows)
    cells = [
        [f"{row['number']:02}", row["status"], f"{row['minutes']} min", row["title"], "; ".join(row["lacking"]) or "-"]
        for row in rows
    ]
    return text.table(["LAB", "STATUS", "TIME", "TITLE", "LACKING"], cells)


_ENDS = {_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP}


def hold_signals() -> None:
    """Have no signal interrupt what is left to do, so that a start that has succeeded never looks like one that failed."""
    _signal.pthread_sigmask(_signal.SIG_BLOCK, _ENDS)


def start(call: Call) -> int:
    lab = _lab(call)
    entry = progress.load(call.state)["labs"].get(str(lab.number), {})
    again = bool(call.options.get("shell") and entry.get("ready"))
    work = sessions.work_of(call.state, lab) if again else sessions.start(call.state, lab, hold_signals)
    if not again:
        page = labtext.page_of(lab)
        say.page(f"{page.title}\n\n")
        for name in ("Idea", "By hand", "With nsrun", "Break it"):
            say.page(f"{name.upper()}\n\n{labtext.told(page.sections[name])}\n\n")
    for name, value in work.variables.items():
        say.out(f"{name}={value}")
    say.out("nsrun lab check | watch | hint | solution | reset")
    if not call.options.get("shell"):
        say.out(
            f'in the shell where you work: eval "$(nsrun lab env {lab.number})"; or: nsrun lab start {lab.number} --shell'
        )
        return 0
    say.flush()
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, _ENDS)
    return _shell(work)


def _shell(work: Work) -> int:
    """Become a shell in the lab; its prompt names the lab.  It ends like any shell, and the lab stays started."""
    environment = {name: value for name, value in os.environ.items() if name not in CALLERS}
    environment.update(sessions.environment(work))
    name = f"lab {work.lab.number:02}"
    environment["PS1"] = f"({name}) $ "
    try:
        os.chdir(work.directory)
    except OSError as error:
        raise BadInput(f"{work.directory}: {error.strerror}", hint=f"nsrun lab reset {work.lab.number}") from None
    for shell in ("bash", "sh"):
        words = [shell, "-i"]
        if shell == "bash":
            rc = f"{work.directory}/.labrc"
            with open(rc, "w") as file:
                file.write(f'[ ! -f ~/.bashrc ] || . ~/.bashrc\nPS1="({name}) $PS1"\n')
            words = [shell, "--rcfile", rc, "-i"]
        try:
            os.execvpe(shell, words, environment)
        except FileNotFoundError:
            continue
    raise BadInput("there is no shell", hint="apt-get install bash")


def env(call: Call) -> int:
    import shlex

    work = sessions.work_of(call.state, _lab(call))
    lines = (f"export {name}={shlex.quote(value)}\n" for name, value in sessions.environment(work).items())
    say.script("".join(lines) + f"unset {' '.join(CALLERS)}\n")
    return 0


def check(call: Call) -> int:
    lab = _lab(call)
    rows = sessions.check(sessions.work_of(call.state, lab))
    passed = all(row.ok for row in rows)
    if call.options.get("json"):
        text.json({"lab": lab.number, "passed": passed, "rows": [vars(row) for row in rows]})
    else:
        say.page(_rows(rows))
        if passed:
            say.out(f"lab {lab.number} is solved: nsrun lab reset ends it")
            if note := progress.class_note(call.state):
                graded = str(lab.number) in note["passed"]
                say.out(
                    "the report of the class has it"
                    if graded
                    else "the report of the class does not have it yet: leave it as it is"
                )
    say.flush()
    sessions.record(call.state, lab, passed)
    return 0 if passed else 1


def _rows(rows: list[Row]) -> str:
    from nsrun.errors import printable

    lines = []
    for row in rows:
        lines.append(f"{'ok' if row.ok else 'NO':<3} {row.name}: {row.wanted}")
        lines += [] if row.ok else [f"      seen: {printable(row.seen)}", f"      see:  {row.see}"]
    return "\n".join(lines) + "\n"


def watch(call: Call) -> int:
    """Check again whenever something has changed, and print the rows when one of them is fulfilled, or is no longer."""
    from nsrun.teach import follow

    lab = _lab(call)
    before: list[bool] = []
    for rows in follow.checks(call.state, lab):
        now = [row.ok for row in rows]
        if now != before:
            say.page(("\n" if before else "") + _rows(rows))
            say.flush()
            before = now
        if all(now):
            break
    sessions.record(call.state, lab, True)
    say.out(f"lab {lab.number} is solved: nsrun lab reset ends it")
    return 0


def hint(call: Call) -> int:
    lab = _lab(call)
    hints = labtext.page_of(lab).hints
    sessions.work_of(call.state, lab)
    with progress.changing(call.state) as found:
        entry = progress.entry(found, lab.number)
        entry["hints"] = count = min(entry.get("hints", 0) + 1, len(hints))
    import textwrap

    for number, one in enumerate(hints[:count], 1):
        say.page(textwrap.fill(f"{number} of {len(hints)}: {one}", 98, subsequent_indent="        ") + "\n")
    return 0


def solution(call: Call) -> int:
    lab = _lab(call)
    if call.state.uid and not labtext.page_of(lab).of("solution", True):
        say.err("these are for root")
    with progress.changing(call.state) as found:
        progress.entry(found, lab.number)["solution"] = True
    users: dict[tuple[str, str], list[str]] = {}
    for script in labtext.page_of(lab).of("solution"):
        users.setdefault((script.label, script.text), []).append("as an ordinary user" if script.user else "as root")
    for (label, body), who in users.items():
        say.page(f"# {' or '.join(who)}{f', {label}' if label else ''}\n{body}\n")
    return 0


def reset(call: Call) -> int:
    lab = _lab(call)
    left = sessions.finish(call.state, lab)
    for line in left:
        say.err(f"left as it is: {line}")
    say.out(f"lab {lab.number} is reset{', apart from what is left' if left else ''}")
    return 1 if left else 0


_REPORT = ("lab", "title", "status", "passed", "starts", "checks", "hints", "solution")


def report(call: Call) -> int:
    text.one_format(call)
    sessions.refuse_inside(call.state)
    found = progress.load(call.state)["labs"]
    rows = []
    for lab in labs.every():
        entry = found.get(str(lab.number), {})
        rows.append(
            {
                "lab": lab.number, "title": lab.title, "status": sessions.status(entry), "passed": entry.get("passed") or "",
                "starts": entry.get("starts", 0), "checks": entry.get("checks", 0), "hints": entry.get("hints", 0),
                "solution": bool(entry.get("solution")),
            }
        )  # fmt: skip
    if call.options.get("json"):
        return text.json(rows)
    cells = [[str(row[key]) if row[key] is not False else "" for key in _REPORT] for row in rows]
    if call.options.get("csv"):
        return text.csv(list(_REPORT), cells)
    return text.table([key.upper() for key in _REPORT], [[cell or "-" for cell in row] for row in cells])
