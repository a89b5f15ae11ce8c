# SPDX-License-Identifier: Apache-2.0
"""`nsrun lab class`."""

from __future__ import annotations

from nsrun.cli import say, text
from nsrun.errors import BadInput, UsageError
from nsrun.teach import classroom, labs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsrun.cli.commands import Call
    from nsrun.teach.classroom import Grade


def run(call: Call) -> int:
    if call.state.uid:
        raise BadInput("a class is root's", hint="sudo nsrun lab class …")
    (what,) = call.operands
    known = {
        "create": {"users", "count", "pids_limit", "memory", "cpus", "network"},
        "report": {"watch", "json", "csv"},
        "rm": set(),
    }[what]
    for option in call.options:
        if option not in known:
            raise UsageError(
                f"nsrun lab class {what} has no option --{option.replace('_', '-')}", hint="nsrun lab class --help"
            )
    return {"create": _create, "report": _report, "rm": _rm}[what](call)


def _create(call: Call) -> int:
    from nsrun.spec.options import parse_count, parse_limits

    users = [name for name in call.options.get("users", "").split(",") if name]
    count = (
        parse_count(call.options["count"], "--count", "a number of students", 1, 99) if "count" in call.options else 0
    )
    if bool(users) == bool(count):
        raise UsageError("who is in the class?", hint="either --users USER,… or --count N")
    pids = parse_count(call.options.get("pids_limit", "512"), "--pids-limit", "a number of processes", 16, 1 << 22)
    memory, cpus = call.options.get("memory", ""), call.options.get("cpus", "")
    parse_limits({"memory": memory, "cpus": cpus})  # before anything is made
    limits = {"pids": str(pids), "memory": memory, "cpus": cpus}
    with classroom.alone(call.state):
        classroom.create(call.state, users, count, limits, call.options.get("network", ""), _warn)
    say.out("nsrun lab class report --watch records what is passed, while it runs")
    return 0


def _warn(line: str) -> None:
    say.err(f"warning: {line}")


def _report(call: Call) -> int:
    import time

    text.one_format(call)
    with classroom.Report(call.state) as report:
        if not call.options.get("watch"):
            status = _print(call, report.round())
            report.record()
            return status
        before: list[tuple[int, str, str]] = []
        trouble = ""
        while True:
            try:
                grades = report.round(wait=False)
                now = [(grade.fulfilled, grade.passed, grade.trouble) for grade in grades]
                if now != before:
                    _print(call, grades)
                    say.out("")
                    say.flush()
                    before = now
                report.record()
                trouble = ""
            except BrokenPipeError:
                raise
            except OSError as error:  # a full disk must not end it: what was seen is recorded as soon as that goes
                if str(error) != trouble:
                    say.err(f"nsrun: {error.filename or 'report'}: {error.strerror}; the next round tries again")
                    trouble = str(error)
            time.sleep(2)


def _print(call: Call, grades: list[Grade]) -> int:
    if call.options.get("json"):
        return text.json([vars(grade) for grade in grades])
    if call.options.get("csv"):
        head = ["student", "lab", "fulfilled", "rows", "passed", "seconds", "trouble"]
        return text.csv(head, [[str(vars(grade)[key]) for key in head] for grade in grades])
    students = dict.fromkeys(grade.student for grade in grades)
    cells = {(grade.student, grade.lab): _cell(grade) for grade in grades}
    # only the labs that somebody has started: seventeen columns are wider than a terminal
    numbers = [lab.number for lab in labs.every() if any(cells[student, lab.number] != "-" for student in students)]
    rows = [[student, *(cells[student, number] for number in numbers)] for student in students]
    text.table(["STUDENT", *(f"{number:02}" for number in numbers)], rows)
    about_all = ("look", "an error of nsrun")  # not about one lab alone
    troubles = {(g.student, g.trouble): 0 for g in grades if any(words in g.trouble for words in about_all)}
    for student, trouble in troubles:
        say.err(f"nsrun: {student} is not graded: {trouble}")
    return 0


def _cell(grade: Grade) -> str:
    """Return "ok 4:05" (minutes and seconds since the beginning), "3/8" or "-"."""
    if grade.passed:
        return f"ok {grade.seconds // 60}:{grade.seconds % 60:02}"
    return f"{grade.fulfilled}/{grade.rows}" if grade.rows else "-"


def _rm(call: Call) -> int:
    with classroom.alone(call.state):
        left = classroom.remove(call.state)
    for line in left:
        say.err(f"nsrun: left as it is: {line}")
    return 1 if left else 0
