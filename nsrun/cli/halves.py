# SPDX-License-Identifier: Apache-2.0
"""The plans of `pod create` and `join`, of which `run` and `up` are made, with the command lines that they are the plans of."""

from __future__ import annotations

from nsrun.cli.commands import arguments

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nsrun.plan import Plan
    from nsrun.state import State
    from nsrun.types import PodNote


def member_plan(state: State, pod: PodNote, options: dict[str, Any]) -> tuple[list[str], Plan]:
    """Return the plan of a member, and the command line that it is the plan of."""
    from nsrun.lifecycle import NO_ID
    from nsrun.lifecycle.join import plan_join
    from nsrun.plan.member import Request

    request = Request(detach=bool(options.get("detach")), interactive=bool(options.get("interactive")))
    known = {key: value for key, value in options.items() if key not in ("command", "ends_pod")}
    command = ["--", *options["command"]] if options.get("command") else []
    words = ["join", pod["name"], *arguments(known), *command]
    return words, plan_join(state, pod, options, request, ident=NO_ID).plan


def pod_plan(state: State, options: dict[str, Any]) -> tuple[list[str], Plan, PodNote]:
    """Return the plan of a pod, the command line that it is the plan of, and what its note would be."""
    from nsrun.lifecycle import NO_ID
    from nsrun.lifecycle.create import plan_pod

    plan = plan_pod(state, options, ident=NO_ID)
    spec = plan.facts["spec"]
    kept = ("name", "owner", "user", "nested", "devices", "hostname", "network", "cgroup")
    note: Any = {**{key: spec[key] for key in kept if key in spec}, "id": "ID", "pause": ["PAUSE", 0, ""]}
    words = ["pod", "create", *arguments({k: v for k, v in options.items() if k != "name"}), options["name"]]
    return words, plan, note
