# SPDX-License-Identifier: Apache-2.0
"""`nsrun explain` and `--trace`: a plan in words, as a shell script, as JSON.  Nothing is done.

What is printed and what is run are the same steps: their texts derive from the fields that are executed.
"""

from __future__ import annotations

import os

from nsrun.errors import UsageError, printable
from nsrun.plan import INIT, PHASES, Plan, Step
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


def text(plan: Plan) -> str:
    """One block per step: what is called, why, where to read on, how to see it."""
    lines = [f"{plan.title}: {len(plan)} steps in five phases; nothing is done now", ""]
    phase = -1
    for number, step in enumerate(plan, 1):
        if step.phase != phase:
            phase = step.phase
            lines += [f"{phase + 1} {PHASES[phase]}   ({WHO[phase]})", ""]
        lines.append(f"{number:4}  {printable(step.call())}")
        lines += [f"{'':6}{line}" for line in _wrap(step.why)]
        facts = [f"man: {step.man}"] if step.man else []
        facts += [f"see: {printable(step.check())}"] if step.check() else []
        lines += [f"{'':6}{'   '.join(facts)}", ""] if facts else [""]
    return "\n".join(lines)


def _wrap(words: str) -> list[str]:
    import textwrap

    return textwrap.wrap(words, 94)


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
        }
        for number, step in enumerate(plan, 1)
    ]
    return {"title": plan.title, "steps": steps, "spec": plan.facts.get("spec", {})}


# ---- the shell form ------------------------------------------------------------------------------------------


def _comment(number: int, step: Step) -> list[str]:
    approx = f"   ≈ {step.approx}" if step.approx else ""
    return [f"# {number}. {printable(step.call())}{approx}"]


def _body(steps: list[tuple[int, Step]]) -> list[str]:
    lines: list[str] = []
    for number, step in steps:
        lines += _comment(number, step)
        if step.shell():
            lines.append(step.shell())
    return lines


def shell(plan: Plan, words: list[str]) -> str:
    """A script that a person could type, as root, to get an equivalent pod, member or process.

    A line with ≈ says how it differs: a shell has no descriptors of mounts, no sealed programs, no table with an owner.
    The script of a join goes with a pod that was built by the script of a pod create: POD=PID sh join.sh.
    """
    from nsrun.plan import sh_quote

    numbered = list(enumerate(plan, 1))
    launch = next((n, s) for n, s in numbered if isinstance(s, Launch))
    inside = _body([(n, s) for n, s in numbered if s.phase == INIT])
    first = [
        "#!/bin/sh",
        printable(f"# nsrun explain --format shell {' '.join(map(sh_quote, words))}"),
        "# Run it as root. What the shell can only approximate is marked with ≈.",
        "set -eu",
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
        f"export CGROUP ROOT=/run/nsrun-shell/root-{spec['name']} IP=${{IP:-}} GATEWAY=${{GATEWAY:-}} POD_ROOT=",
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
        lines.append(f"{number:4} {took}  {PHASES[step.phase]:6} {printable(step.call())}")
    lines.append(f"     {total * 1000:8.2f} ms  pid {os.getpid()}; the steps of Init are timed by the step of Join")
    return "\n".join(lines) + "\n"
