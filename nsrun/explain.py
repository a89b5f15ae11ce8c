# SPDX-License-Identifier: Apache-2.0
"""`nsrun explain` and `--trace`: a plan in words, as a shell script, as JSON.  Nothing is done.

What is printed and what is run are the same steps: their texts derive from the fields that are executed.
"""

from __future__ import annotations

import os

from nsrun._protocol import OP_OF_STEP, OPS
from nsrun.errors import UsageError, printable
from nsrun.plan import INIT, PHASES, InitStep, Part, Plan, Step, name_of
from nsrun.plan.process import Launch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nsrun.run import Run

ENTER_CGROUP = '[ -z "$CGROUP" ] || echo 0 >"$CGROUP/cgroup.procs"'
WHO = (
    "nsrun, on the host",
    "nsrun, on the host",
    "nsrun: setns, then clone",
    "nsrun-init, inside",
    "nsrun, on the host",
)


def explain(plan: Plan, words: list[str], form: str = "text") -> str:
    """Return a plan as text, as JSON, or as a shell script that stands for the command line `words`."""
    if form == "text":
        return text(plan)
    if form == "json":
        import json

        return json.dumps(document(plan), indent=2) + "\n"
    if form == "shell":
        return shell(plan, words)
    raise UsageError(f"--format {form!r}", hint="text, shell or json")


def explain_all(plans: list[tuple[list[str], Plan]], form: str) -> str:
    """Return several plans, each with the command line that it is the plan of."""
    from nsrun.plan import sh_quote

    if form == "json":
        import json

        lines = [{"command": ["nsrun", *words], **document(plan)} for words, plan in plans]
        return json.dumps(lines, indent=2) + "\n"
    if form == "shell":
        return "\n".join(shell(plan, words) for words, plan in plans)
    if form != "text":
        raise UsageError(f"--format {form!r}", hint="text, shell or json")
    if not plans:
        return "Nothing is to be done.\n"
    count = "one command" if len(plans) == 1 else f"{len(plans)} commands, one after the other"
    told = [f"It is the same as {count}:", *(f"  nsrun {' '.join(map(sh_quote, words))}" for words, _ in plans), "", ""]
    texts = [text(plan, number == 0) for number, (_, plan) in enumerate(plans)]
    return printable("\n".join(told), keep="\n") + "\n".join(texts)


HEAD = (
    "Nothing is done now. PID stands for the first process of what is started, by its number on the host (nsrun pod ls, nsrun ls)."
    " What follows `see:` is to be typed on the host, as root, once the command has been run. What follows `code:` is where nsrun"
    " has the step: below nsrun/, and for what happens inside below csrc/, too."
)


def text(plan: Plan, first: bool = True) -> str:
    """One block per step, or per run of steps of one kind: what is called, why, where to read on, how to see it.

    `first`: tell how it is to be read.
    """
    known, made = {}, makers(plan)  # type: dict[str, int], list[dict[str, int]]
    in_phases = len({step.phase for step in plan}) > 1
    lines = [
        f"{plan.title}: {len(plan)} step{'s' if len(plan) > 1 else ''}{' in five phases' if in_phases else ''}",
        "",
        *([*_wrap(HEAD), ""] if first else []),
    ]
    phase = -1
    for number, steps in folded(plan):
        if in_phases and steps[0].phase != phase:
            phase = steps[0].phase
            lines += [f"{phase + 1} {PHASES[phase]}   ({WHO[phase]})", ""]
        lines += [*block(number, steps, known, made[number - 1]), ""]
    return "\n".join(lines)


def block(number: int, steps: list[Step], known: dict[str, int], made: dict[str, int]) -> list[str]:
    """Return the lines about a step, or about several that are folded.

    `known` are the reasons that were told, with their steps, and grows; `made` are the handles that there are before.
    """
    step, lines = steps[0], []  # type: Step, list[str]
    if len(steps) == 1:
        brief = "" if name_of(step.brief()) else printable(step.brief())
        lines += [f"{number:4}  {brief}"] if brief else []
        lines += _wrap_calls(" " * 8 if brief else f"{number:4}  ", printable(step.call()))
    else:
        lines.append(f"{f'{number}–{number + len(steps) - 1}':>4}  {step.many.format(len(steps))}")
        lines += [f"{'':6}{line}" for line in _wrap(printable("   ".join(s.thing() for s in steps)))]
        lines += [f"{'':6}The calls for {printable(step.thing())}:", *_wrap_calls(" " * 8, printable(step.call()))]
    told = known.setdefault(step.why, number)
    lines += [f"{'':6}{line}" for line in _wrap(step.why if told == number else f"The reason is that of step {told}.")]
    uses = _uses(steps, made)
    lines += [f"{'':6}{line}" for line in _wrap(f"uses {uses}")] if uses else []
    lines.append(f"{'':6}code: {code(step)}" + (f"   man: {step.man}" if step.man else ""))
    lines += [f"{'':6}see: {printable(step.check())}"] if step.check() else []
    return lines


def folded(plan: Plan) -> list[tuple[int, list[Step]]]:
    """Return the steps with their numbers; those of one kind and with one reason, one after the other, as one."""
    found: list[tuple[int, list[Step]]] = []
    for number, step in enumerate(plan, 1):
        before = found[-1][1][0] if found else None
        if (
            before
            and step.many
            and type(before) is type(step)
            and before.why == step.why
            and before.calls() == step.calls()
        ):
            found[-1][1].append(step)
        else:
            found.append((number, [step]))
    return found


def makers(plan: Plan) -> list[dict[str, int]]:
    """Return for each step the handles that there are before it, and the numbers of the steps that made them."""
    found: list[dict[str, int]] = []
    now: dict[str, int] = {}
    for number, step in enumerate(plan, 1):
        found.append(dict(now))
        now.update((name.rstrip("?"), number) for name in step.makes())
    return found


def _uses(steps: list[Step], there: dict[str, int]) -> str:
    """The handles that these steps take, and which step made each."""
    by_step: dict[int, list[str]] = {}
    for name in dict.fromkeys(name.rstrip("?") for step in steps for name in step.needs()):
        if name in there:
            by_step.setdefault(there[name], []).append(name)
    return ", ".join(f"{', '.join(names)} (step {number})" for number, names in sorted(by_step.items()))


def code(step: Step) -> str:
    """Where nsrun has this step: `plan/mounts.py Mask → init.c op_mask`."""
    place = f"{type(step).__module__.removeprefix('nsrun.').replace('.', '/')}.py {type(step).__name__}"
    native = step.native
    if isinstance(step, InitStep):
        native = f"init.c op_{OPS[OP_OF_STEP[type(step).__name__]]}"
    if native.partition(" ")[0].endswith(".py"):
        return native  # a step that only stands for a function
    return f"{place} → {native}" if native else place


def _wrap(words: str) -> list[str]:
    import textwrap

    return textwrap.wrap(words, 94, break_long_words=False, break_on_hyphens=False)


def _wrap_calls(head: str, calls: str) -> list[str]:
    """A line break comes after a call, never within one."""
    lines, line = [], head
    for piece in calls.replace("; ", ";\n").split("\n"):
        if len(line) + len(piece) > 100 and line.strip() != head.strip():
            lines.append(line.rstrip())
            line = " " * 8
        line += piece + " "
    return [*lines, line.rstrip()]


def document(plan: Plan) -> dict[str, Any]:
    steps = [
        {
            "number": number,
            "phase": PHASES[step.phase],
            "step": type(step).__name__,
            "call": step.call(),
            "calls": step.calls(),
            "shell": step.shell(),
            "approximation": step.approx,
            "why": step.why,
            "man": step.man,
            "check": step.check(),
            "code": code(step),
            "parts": [_part(item) for item in step.made()],
            "needs": list(step.needs()),
            "makes": list(step.makes()),
        }
        for number, step in enumerate(plan, 1)
    ]
    return {"title": plan.title, "steps": steps, "spec": plan.facts.get("spec", {})}


def _part(item: str | Part) -> str | dict[str, Any]:
    """A call; or some that are another process's, or made only in some case, or for each of several things (times 0: unknown)."""
    if isinstance(item, str):
        return item
    parts = [_part(part) for part in item.items]
    return {"by": item.by, "when": item.when, "each": item.each, "times": item.times, "parts": parts}


# ---- the shell form ------------------------------------------------------------------------------------------


def _comment(number: int, step: Step) -> list[str]:
    approx = f"   ≈ {step.approx}" if step.approx else ""
    return [f"# {number}. {printable(step.brief())}{approx}"]


def _body(steps: list[tuple[int, Step]]) -> list[str]:
    lines: list[str] = []
    for number, step in steps:
        lines += _comment(number, step)
        if step.shell():
            lines.append(step.shell())
    return lines


def _first(words: list[str]) -> str:
    from nsrun.plan import sh_quote

    return printable(f"# nsrun explain --format shell {' '.join(map(sh_quote, words))}")


#: Said, and checked, before the script of a join does anything: in a pod of nsrun's no program of a shell's is in view.
BY_HAND = [
    "# It joins a pod that the script of a pod create has made: POD=PID sh FILE, with the PID that this one printed.",
    ': "${POD:?is to be the PID that the script of nsrun explain --format shell pod create has printed}"',
]


def shell(plan: Plan, words: list[str]) -> str:
    """A script that a person could type, as root, to get an equivalent pod, member or process.

    A line with ≈ says how it differs: a shell has no descriptors of mounts, no sealed programs, no table with an owner.
    The script of a join goes with a pod that was built by the script of a pod create: POD=PID sh join.sh.
    """
    numbered = list(enumerate(plan, 1))
    launch = next(((n, s) for n, s in numbered if isinstance(s, Launch)), None)
    if launch is None:
        about = "# A step that is only a comment is nsrun's own: its records and its store have no shell form."
        return "\n".join(["#!/bin/sh", _first(words), about, "set -eu", *_body(numbered)]) + "\n"
    inside = _body([(n, s) for n, s in numbered if s.phase == INIT])
    first = [
        "#!/bin/sh",
        _first(words),
        "# Run it as root. What the shell can only approximate is marked with ≈.",
        "set -eu",
        *(BY_HAND if plan.title.split()[0] == "join" else []),
        "ROOT_BIND= ROOT_OPTIONS= CGROUP=",
        *_body([(n, s) for n, s in numbered if s.phase < 2]),
        *_comment(*launch),
    ]
    build = {"pod": _shell_pod, "join": _shell_join, "exec": _shell_exec}[plan.title.split()[0]]
    middle = build(plan.facts["spec"], launch[1], inside)
    last = _body([(n, s) for n, s in numbered if s.phase == 4])
    return "\n".join(line for line in first + middle + last if line) + "\n"


def _shell_pod(spec: dict[str, Any], launch: Launch, inside: list[str]) -> list[str]:
    own_net, user = spec["network"]["mode"] != "host", spec.get("user")
    enter = ("--user " if user else "") + ("--net " if own_net else "")
    target = "$NET" if own_net else "$USERNS"
    unshare = f"{f'nsenter --target {target} {enter}' if enter else ''}unshare --mount --ipc --uts --pid --fork"
    return [
        f"export CGROUP ROOT=/run/nsrun-shell/root-{spec['name']} IP=${{IP:-}} IP6=${{IP6:-}} GATEWAY=${{GATEWAY:-}} POD_ROOT=",
        # the owner has no way into a cgroup of root's: whoever makes the pod goes there first
        f"mkdir -p \"$ROOT\"; sh -c '{ENTER_CGROUP}; exec \"$@\"' sh {unshare} sh -eu <<'INIT' >/dev/null &",
        *inside,
        "INIT",
        "# the pod's PID 1, as the host sees it; what joins it goes by this number",
        'UNSHARE=$!; POD=; until [ -n "$POD" ] && grep -qs sleep /proc/$POD/comm; do'
        " POD=$(cat /proc/$UNSHARE/task/$UNSHARE/children 2>/dev/null | tr -d ' '); sleep 0.05; done",
        "kill $NET" if own_net else "",
        "kill $USERNS" if user else "",
        "echo $POD",
    ]


def _flags(bits: int) -> str:
    from nsrun.kernel import NAMESPACES

    return " ".join(f"--{name}" for name in ("user", "net", "ipc", "uts", "pid") if bits & NAMESPACES[name])


def _shell_join(spec: dict[str, Any], launch: Launch, inside: list[str]) -> list[str]:
    names, fresh = spec["annotations"], _flags(launch.clone_flags)
    fork = " --fork" if "--pid" in fresh else ""
    return [
        "export CGROUP ROOT_BIND ROOT_OPTIONS"
        f" ROOT=/run/nsrun-shell/root-{names['nsrun.name']} POD_ROOT=/run/nsrun-shell/root-{names['nsrun.pod']}",
        f"nsenter --target $POD --mount {_flags(launch.join_flags)} unshare --mount {fresh}{fork} sh -eu <<'INIT'",
        ENTER_CGROUP,
        'mkdir -p "$ROOT"; if [ -n "$ROOT_OPTIONS" ]; then mount -t overlay -o "$ROOT_OPTIONS" overlay "$ROOT";'
        ' else mount --rbind "$ROOT_BIND" "$ROOT"; fi',
        *inside,
        "INIT",
    ]


def _shell_exec(spec: dict[str, Any], launch: Launch, inside: list[str]) -> list[str]:
    from nsrun.plan import sh_quote

    process = spec["process"]
    user = process["user"]
    words = [
        "exec",
        "env",
        "-i",
        *map(sh_quote, process["env"]),
        '"$(command -v nsenter)"',
        "--target",
        "$POD",
        "--mount",
    ]
    words += [_flags(launch.join_flags), "--cgroup", f"--setuid={user['uid']}", f"--setgid={user['gid']}"]
    words += [
        "/bin/sh",
        "-c",
        sh_quote('cd "$0" && exec "$@"'),
        sh_quote(process["cwd"]),
        *map(sh_quote, process["args"]),
    ]
    return [
        '[ -z "$CGROUP" ] || echo $$ >"$CGROUP/cgroup.procs"',
        *(line for line in inside if line.startswith("# ")),
        "# ≈ nsenter knows neither supplementary groups nor capabilities: a user that is root keeps all of them",
        " ".join(words),
    ]


# ---- --trace --------------------------------------------------------------------------------------------------


def trace(run: Run) -> str:
    """Every step of a run with the time it took; phase 4 is one number, taken in phase 3."""
    times = dict(run.timing)
    total = sum(times.values())
    lines = []
    for number, step in enumerate(run.plan, 1):
        took = f"{times[number] * 1000:8.2f} ms" if number in times else f"{'':8}  ·"
        lines.append(f"{number:4} {took}  {PHASES[step.phase]:6} {printable(step.brief())}")
    lines.append(f"     {total * 1000:8.2f} ms  pid {os.getpid()}; the steps of Init are timed by the step of Join")
    return "\n".join(lines) + "\n"
