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
    door_of,
    environment_options,
    explain_exec,
    grant,
    need_powers,
    pod_of,
)
from nsrun.plan.member import Request, exec_plan
from nsrun.run import Run
from nsrun.spec.options import parse_directory, parse_environment, parse_user
from nsrun.state import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from nsrun.plan import Plan
    from nsrun.types import ExecOptions, MemberNote, MemberSpec, Process, UserIds

    Options = Mapping[str, Any]


def gather(state: State, note: MemberNote, options: ExecOptions) -> tuple[MemberSpec, tuple[UserIds, str] | None]:
    """Return the spec of a running member, and of another --user its ids and home, as the member's own files have them.

    Raise UnknownError when the member does not run.
    """
    status, _ = state.member_status(note)
    if status == "paused":  # a process that begins in its cgroup would be frozen at once
        raise BadInput(f"member {note['name']!r} is paused", hint=f"nsrun unpause {note['name']}")
    if status not in ("running", "stopping"):
        raise UnknownError(
            f"member {note['name']!r} is {status}", hint="nsrun ls -a; only a running member can execute something"
        )
    found: Any = state.read("members", note["name"], "config.json")
    if found is None:
        raise BadInput(f"member {note['name']!r} has no config.json")
    spec: MemberSpec = found
    if not options.get("user"):
        return spec, None
    fd, pid = state.process(note)
    if fd < 0:
        raise UnknownError(f"member {note['name']!r} has just ended", hint="nsrun ls -a")
    os.close(fd)
    uid, gid, groups, home = parse_user(
        options["user"], *(state.read_inside(f"/proc/{pid}/root", path) for path in ("/etc/passwd", "/etc/group"))
    )
    return spec, ({"uid": uid, "gid": gid, "additionalGids": groups}, home)


def exec_spec(spec: MemberSpec, options: ExecOptions, account: tuple[UserIds, str] | None) -> MemberSpec:
    """Return the spec of one more process in a member.  Raise UsageError when there is no command.  Pure but for os.environ."""
    process, command = spec["process"], list(options.get("command") or [])
    if not command:
        raise UsageError("no command", hint="nsrun exec MEMBER COMMAND [ARG...]")
    terminal = bool(options.get("terminal"))
    env = parse_environment(process["env"], {})
    if terminal:
        env["TERM"] = os.environ.get("TERM", "xterm")
    if account:
        env["HOME"] = account[1]
    env.update(parse_environment(environment_options(options), os.environ))
    new: Process = {
        **process,
        "terminal": terminal,
        "args": command,
        "env": [f"{k}={v}" for k, v in env.items()],
        "cwd": parse_directory(options.get("workdir")) or process["cwd"],
        "user": account[0] if account else process["user"],
    }
    return {**spec, "process": new}


def plan_exec(state: State, member: str, options: Options, request: Request) -> Plan:
    """Return the plan of `exec`; nothing is done."""
    asked: Any = options
    note, pod = state.member(member), pod_of(state, member)
    spec, account = gather(state, note, asked)
    spec = exec_spec(spec, asked, account)
    request.door = door_of(state, pod)
    if not pod.get("user"):
        granted = need_powers(OF_JOIN, "exec")
        check_userns(pod)
        grant(spec["process"], granted)
        if kernel.in_userns() and "nested" not in pod:  # a member that outlived its pod
            from nsrun.host.userns import around

            pod = {**pod, "nested": around()}
    return exec_plan(spec, note, pod, request)


def execute(
    state: State,
    member: str,
    options: Options,
    *,
    fds: tuple[int, int, int] | None = None,
    observe: Callable[[Run], None] | None = None,
    leave: Callable[[Run], None] | None = None,
    make: Callable[[Plan, State], Run] = Run,
) -> Run:
    """Execute a command in a running member.  `make`: see create_pod.  With `fds` the caller is the parent, else this process becomes the monitor."""
    pod = pod_of(state, member)
    check_allowed(state, pod)
    check_parent(state, pod, fds)
    detach = bool(options.get("detach"))
    request = Request(detach=detach, interactive=bool(options.get("interactive")), fds=fds)
    plan = plan_exec(state, member, options, request)
    run = make(plan, state)
    run.monitor_options = {"own_cgroup": False}
    if not detach:
        run.monitor_options |= {"foreground": 1, "stdin": int(request.interactive)}
    if observe:
        run.before_handover = lambda: observe(run)
    if leave:
        run.before_release = lambda: leave(run)
    try:
        run.execute()
    except StepError as error:
        raise explain_exec(error, f"/proc/{run.values.get('member:ns:pid', 'self')}/root") from None
    finally:
        run.restore_signals()
    return run
