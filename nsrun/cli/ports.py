# SPDX-License-Identifier: Apache-2.0
"""`nsrun port`: the published ports of a pod, also while it lives."""

from __future__ import annotations

from nsrun.cli.say import out
from nsrun.spec.options import at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsrun.cli.commands import Call
    from nsrun.types import Port


def ls(call: Call) -> int:
    from nsrun.lifecycle.query import ports_of

    name, *wanted = call.operands
    if not call.state.uid and not call.state.has_pod(name) and not call.state.has_member(name):
        from nsrun.cli.owner import become

        become(call, name)
    ports = ports_of(call.state, name, *wanted)
    if wanted and not call.options.get("json"):
        for port in ports:
            out(_address(port))
        return 0
    return _say(call, ports)


def add(call: Call) -> int:
    from nsrun.cli import tell_of_forwarder, trace_of
    from nsrun.lifecycle.ports import add, why_not_nat

    mode = call.options.get("publish_mode") or "auto"
    ports = add(call.state, call.operands[0], call.operands[1:], mode, trace_of(call))
    _say(call, ports)
    if any("mode" in port for port in ports):
        tell_of_forwarder(ports, call.options, why_not_nat(call.state, call.operands[0]))
    return 0


def rm(call: Call) -> int:
    from nsrun.lifecycle.ports import remove

    return _say(call, remove(call.state, call.operands[0], call.operands[1:]))


def _say(call: Call, ports: list[Port]) -> int:
    """Print ports, a line for each, or as JSON."""
    if call.options.get("json"):
        from nsrun.cli import text

        return text.json(ports)
    for port in ports:
        out(_line(port))
    return 0


def _address(port: Port) -> str:
    return at(port["host_ip"], port["host_port"])


def _line(port: Port) -> str:
    mode = f" ({port['mode']})" if "mode" in port else ""
    return f"{port['pod_port']}/{port['protocol']} -> {_address(port)}{mode}"
