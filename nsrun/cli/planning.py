# SPDX-License-Identifier: Apache-2.0
"""The plan of a whole command line, nothing done: for `nsrun explain` and nsrun.plan_of."""

from __future__ import annotations

from nsrun.cli.commands import parse
from nsrun.errors import UnknownError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsrun.plan import Plan
    from nsrun.state import State
    from nsrun.types import PodNote


def plan_of(state: State, words: list[str]) -> Plan:
    """The plan of a whole command line: pod create, join or exec."""
    from nsrun.lifecycle import NO_ID
    from nsrun.lifecycle.create import plan_pod
    from nsrun.lifecycle.execute import plan_exec
    from nsrun.lifecycle.join import plan_join
    from nsrun.plan.member import Request

    call = parse(words)
    options, operands = call.options, call.operands
    name = call.command.name if call.command else ""
    if name == "pod create":
        return plan_pod(state, {**options, **({"name": operands[0]} if operands else {})}, ident=NO_ID)
    options["command"] = call.rest
    if name == "join":
        request = Request(detach=bool(options.get("detach")), interactive=bool(options.get("interactive")))
        return plan_join(state, _pod_for(state, operands[0]), options, request, ident=NO_ID).plan
    if name == "exec":
        return plan_exec(state, operands[0], options, Request(interactive=bool(options.get("interactive"))))
    raise UsageError(
        f"explain knows pod create, join and exec, not {name or 'nothing'!r}",
        hint="nsrun explain pod create -p 8080:80",
    )


def _pod_for(state: State, name: str) -> PodNote:
    """The pod's note; of a pod that does not exist yet, what it would be, so that one can read before one does."""
    from nsrun.host import cgroup
    from nsrun.schema import check_name

    try:
        return state.pod(name)
    except UnknownError:
        check_name(name, "pod")
        return {
            "name": name,
            "id": "ID",
            "hostname": name,
            "pause": ["PAUSE", 0, ""],
            "cgroup": cgroup.pod_path(name, "ID"),
        }
