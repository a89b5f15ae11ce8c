# SPDX-License-Identifier: Apache-2.0
"""The plan of a whole command line, nothing done: for `nsrun explain` and nsrun.plan_of."""

from __future__ import annotations

import os

from nsrun.cli.commands import COMMANDS, function, parse
from nsrun.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsrun.cli.commands import Call
    from nsrun.plan import Plan
    from nsrun.state import State


def plan_of(state: State, arguments: list[str]) -> Plan:
    """Return the plan of a whole command line.  UsageError: its command has none that can be shown, or several."""
    found = plans_of(state, arguments)
    if len(found) == 1 and found[0][0] == arguments:
        return found[0][1]
    raise UsageError(f"it is more than one plan: nsrun explain {arguments[0]} shows them")


def plans_of(state: State, arguments: list[str]) -> list[tuple[list[str], Plan]]:
    """Return the plans of a whole command line, each with the command line that it is the plan of: of most, that is this one.

    Raise UsageError when its command has none that can be shown.
    """
    call = parse(arguments)
    if not call.command or not call.command.plan:
        known = ", ".join(command.name for command in COMMANDS if command.plan)
        name = repr(call.command.name) if call.command else "nothing"
        raise UsageError(f"explain knows {known}, not {name}", hint="nsrun explain pod create -p 8080:80")
    call.state = state
    if call.command.of_members and not state.uid:
        from nsrun.cli.owner import become_owner_of

        become_owner_of(call)  # perhaps it is in a user's pod: then the plan is its owner's
    found = function(call.command.plan)(call)
    return found if isinstance(found, list) else [(arguments, found)]


def pod_create(call: Call) -> Plan:
    from nsrun.lifecycle import NO_ID
    from nsrun.lifecycle.create import plan_pod

    name = {"name": call.operands[0]} if call.operands else {}
    return plan_pod(call.state, {**call.options, **name}, ident=NO_ID)


def port_add(call: Call) -> Plan:
    from nsrun.lifecycle import NO_ID
    from nsrun.lifecycle.ports import plan_add

    mode = call.options.get("publish_mode") or "auto"
    return plan_add(call.state, call.operands[0], call.operands[1:], mode, ident=NO_ID)


def port_rm(call: Call) -> Plan:
    from nsrun.lifecycle.foretell_ports import plan_rm

    return plan_rm(call.state, call.operands[0], call.operands[1:])


def join(call: Call) -> Plan:
    from nsrun.lifecycle import NO_ID
    from nsrun.lifecycle.create import pod_for
    from nsrun.lifecycle.join import plan_join
    from nsrun.plan.member import Request

    options, pod = {**call.options, "command": call.rest}, pod_for(call.state, call.operands[0])
    request = Request(detach=bool(options.get("detach")), interactive=bool(options.get("interactive")))
    return plan_join(call.state, pod, options, request, ident=NO_ID).plan


def execute(call: Call) -> Plan:
    from nsrun.lifecycle.execute import plan_exec
    from nsrun.plan.member import Request

    options = call.options
    request = Request(detach=bool(options.get("detach")), interactive=bool(options.get("interactive")))
    return plan_exec(call.state, call.operands[0], {**call.options, "command": call.rest}, request)


MAX_LINE = 2000  # what nobody types again is not shown


def explain_line(arguments: list[str]) -> str:
    """Return the command line that explains another, as a shell reads it; "" for one without a plan, or that is too long.

    What -e says is left out: `-e NAME` explains as well, and a secret stays out of logs.
    """
    from nsrun.plan import sh_quote

    call = parse(list(arguments))
    if not call.command or not call.command.plan:
        return ""
    root = ["--root", str(call.general["root"])] if call.general.get("root") else []
    name = call.command.name.split()
    start = next(i for i in range(len(arguments)) if arguments[i : i + len(name)] == name)
    end = len(arguments) - len(call.rest)
    own = arguments[start:end]
    for value in call.options.get("env") or []:
        variable, equals, _ = value.partition("=")
        if equals:
            own = [f"{word.removesuffix(value)}{variable}" if word.endswith(value) else word for word in own]
    through = [] if os.geteuid() or not {"SUDO_UID", "DOAS_USER", "PKEXEC_UID"} & set(os.environ) else ["sudo"]
    line = " ".join(map(sh_quote, [*through, "nsrun", *root, "explain", *own, *arguments[end:]]))
    return line if len(line) <= MAX_LINE else ""


# ---- commands that run no plan: what they would do --------------------------------------------------------------


def stop(call: Call) -> Plan:
    from nsrun.cli.members import seconds_of
    from nsrun.lifecycle.foretell import plan_stop

    return plan_stop(call.state, call.operands, seconds_of(call))


def start(call: Call) -> Plan:
    from nsrun.lifecycle.foretell import plan_start

    return plan_start(call.state, call.operands)


def restart(call: Call) -> Plan:
    from nsrun.cli.members import seconds_of
    from nsrun.lifecycle.foretell import plan_start

    return plan_start(call.state, call.operands, True, seconds_of(call))


def pod_restart(call: Call) -> Plan:
    from nsrun.cli.members import seconds_of
    from nsrun.lifecycle.foretell import plan_pod_restart

    return plan_pod_restart(call.state, call.operands, seconds_of(call))


def rename(call: Call) -> Plan:
    from nsrun.lifecycle.foretell import plan_rename

    return plan_rename(call.state, *call.operands)


def pause(call: Call) -> Plan:
    from nsrun.lifecycle.foretell import plan_pause

    return plan_pause(call.state, call.operands, True)


def unpause(call: Call) -> Plan:
    from nsrun.lifecycle.foretell import plan_pause

    return plan_pause(call.state, call.operands, False)


def cp(call: Call) -> Plan:
    from nsrun.lifecycle.foretell import plan_cp

    return plan_cp(call.state, *call.operands)


def volume_rm(call: Call) -> Plan:
    from nsrun.lifecycle.foretell import plan_volume_rm

    return plan_volume_rm(call.state, call.operands)


def volume_prune(call: Call) -> Plan:
    from nsrun.lifecycle.foretell import plan_volume_rm

    return plan_volume_rm(call.state, None)


def network_create(call: Call) -> Plan:
    from nsrun.lifecycle.foretell_network import plan_create

    return plan_create(call.state, call.operands[0], call.options)


def network_rm(call: Call) -> Plan:
    from nsrun.lifecycle.foretell_network import plan_rm

    return plan_rm(call.state, call.operands, bool(call.options.get("force")))


def kill(call: Call) -> Plan:
    from nsrun.lifecycle.foretell import plan_kill

    return plan_kill(call.state, call.operands, _signal_of(call))


def rm(call: Call) -> Plan:
    from nsrun.lifecycle.foretell import plan_rm

    return plan_rm(call.state, call.operands, bool(call.options.get("force")))


def pod_stop(call: Call) -> Plan:
    from nsrun.cli.members import seconds_of
    from nsrun.lifecycle.foretell import plan_pod_stop

    return plan_pod_stop(call.state, call.operands, seconds_of(call))


def pod_kill(call: Call) -> Plan:
    from nsrun.lifecycle.foretell import plan_pod_kill

    return plan_pod_kill(call.state, call.operands, _signal_of(call))


def pod_rm(call: Call) -> Plan:
    from nsrun.lifecycle.foretell import plan_pod_rm

    return plan_pod_rm(call.state, call.operands, bool(call.options.get("force")))


def pod_prune(call: Call) -> Plan:
    from nsrun.lifecycle.foretell import plan_prune

    return plan_prune(call.state, bool(call.options.get("all")))


def image_load(call: Call) -> Plan:
    from nsrun.lifecycle.foretell_image import plan_load

    return plan_load(call.operands[0])


def image_pull(call: Call) -> Plan:
    from nsrun.lifecycle.foretell_image import plan_pull

    return plan_pull(call.operands[0])


def image_tag(call: Call) -> Plan:
    from nsrun.lifecycle.foretell_image import plan_tag

    return plan_tag(call.state, *call.operands)


def image_rm(call: Call) -> Plan:
    from nsrun.lifecycle.foretell_image import plan_rm

    return plan_rm(call.state, call.operands, bool(call.options.get("force")))


def image_prune(call: Call) -> Plan:
    from nsrun.lifecycle.foretell_image import plan_prune

    return plan_prune(call.state, bool(call.options.get("all")))


def image_unpack(call: Call) -> Plan:
    from nsrun.lifecycle.foretell_image import plan_unpack

    return plan_unpack(call.state, *call.operands)


def _signal_of(call: Call) -> int:
    from nsrun.spec.options import parse_signal

    return parse_signal(call.options.get("signal", "KILL"))
