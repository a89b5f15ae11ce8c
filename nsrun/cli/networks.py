# SPDX-License-Identifier: Apache-2.0
"""The commands of `nsrun network`."""

from __future__ import annotations

from nsrun.cli.say import each, out
from nsrun.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsrun.cli.commands import Call


def ls(call: Call) -> int:
    from nsrun.cli import text
    from nsrun.lifecycle import networks

    if call.options.get("quiet"):
        if call.options.get("json"):
            raise UsageError("--quiet and --json exclude each other")
        for name in networks.names(call.state):
            out(name)
        return 0
    found = networks.describe(call.state)
    if call.options.get("json"):
        return text.json(found)
    rows = [
        [n["name"], n["bridge"], n["subnet"] or "-", n["subnet6"] or "-", str(n["mtu"] or "-"), ",".join(n["pods"]) or "-"]
        for n in found
    ]  # fmt: skip
    return text.table(["NAME", "BRIDGE", "SUBNET", "SUBNET6", "MTU", "PODS"], rows)


def inspect(call: Call) -> int:
    from nsrun.cli import text
    from nsrun.lifecycle import networks

    return text.json(networks.describe(call.state, call.operands))


def create(call: Call) -> int:
    from nsrun.lifecycle import networks

    out(networks.create(call.state, call.operands[0], call.options)["name"])
    return 0


def rm(call: Call) -> int:
    from nsrun.lifecycle import networks

    return each(call.operands, lambda name: networks.remove(call.state, name, bool(call.options.get("force"))))
