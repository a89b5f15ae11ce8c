# SPDX-License-Identifier: Apache-2.0
"""`nsrun exec`: one more process in a running member."""

from __future__ import annotations

import os

from nsrun import kernel
from nsrun.errors import BadInput, StepError, UnknownError, UsageError
from nsrun.lifecycle import (
    OF_JOIN,
    check_allowed,
    check_parent,
    check_userns,
    environment_options,
    explain_exec,
    grant,
    need_powers,
    pod_of,
)
from nsrun.run import Run
from nsrun.spec.options import parse_directory, parse_environment, parse_user
from nsrun.state import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from nsrun.plan import Plan

    Options = dict[str, Any]


def plan_exec(state: State, member: str, options: Options, how: dict[str, Any]) -> Plan:
    from nsrun.plan.member import exec_plan

    note, pod = state.member(member), pod_of(state, member)
    how = {**how, "pod": pod, "door": state.door(pod) if pod.get("user") and state.uid else ""}
    status, _ = state.member_status(note)
    if status not in ("running", "stopping"):
        raise UnknownError(
            f"member {note['name']!r} is {status}", hint="nsrun ls -a; only a running member can execute something"
        )
    document = state.read("members", note["name"], "config.json")
    if document is None:
        raise BadInput(f"member {note['name']!r} has no config.json")
    process = document["process"]
    command = list(options.get("command") or [])
    if not command:
        raise UsageError("no command", hint="nsrun exec MEMBER COMMAND [ARG...]")
    terminal = bool(options.get("terminal"))
    env = parse_environment(process["env"], {})
    if terminal:
        env["TERM"] = os.environ.get("TERM", "xterm")
    user = process["user"]
    if options.get("user"):
        fd, pid = state.process(note)
        if fd < 0:
            raise UnknownError(f"member {note['name']!r} has just ended", hint="nsrun ls -a")
        os.close(fd)
        root = f"/proc/{pid}/root"
        uid, gid, groups, home = parse_user(
            options["user"], kernel.read_in_root(root, "/etc/passwd"), kernel.read_in_root(root, "/etc/group")
        )
        user = {"uid": uid, "gid": gid, "additionalGids": groups}
        env["HOME"] = home
    env.update(parse_environment(environment_options(options), dict(os.environ)))
    new = {
        **process,
        "terminal": terminal,
        "args": command,
        "env": [f"{k}={v}" for k, v in env.items()],
        "cwd": parse_directory(options.get("workdir")) or process["cwd"],
        "user": user,
    }
    document = {**document, "process": new}
    if not pod.get("user"):
        granted = need_powers(OF_JOIN, "exec")
        check_userns(pod)
        grant(document, granted)
        if kernel.in_userns() and "nested" not in pod:  # a member that outlived its pod
            from nsrun.host.userns import around

            how["pod"] = {**pod, "nested": around()}
    return exec_plan(document, note, how)


def execute(
    state: State,
    member: str,
    options: Options,
    *,
    fds: tuple[int, int, int] | None = None,
    observe: Callable[[Run], None] | None = None,
) -> Run:
    """Executes a command in a running member.  With `fds` the caller is the parent, else this process becomes the monitor."""
    pod = check_allowed(state, pod_of(state, member))
    how = {"interactive": options.get("interactive"), "fds": fds}
    check_parent(state, pod, how)
    plan = plan_exec(state, member, options, how)
    run = Run(plan, state)
    run.monitor_options = {"foreground": 1, "stdin": int(bool(options.get("interactive"))), "own_cgroup": False}
    if observe:
        run.before_handover = lambda: observe(run)
    try:
        run.execute()
    except StepError as error:
        raise explain_exec(error, f"/proc/{run.values.get('member:ns:pid', 'self')}/root") from None
    finally:
        run.restore_signals()
    return run
