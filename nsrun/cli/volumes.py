# SPDX-License-Identifier: Apache-2.0
"""The commands of `nsrun volume`."""

from __future__ import annotations

from nsrun.cli.say import each, err, out
from nsrun.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsrun.cli.commands import Call


def ls(call: Call) -> int:
    from nsrun.cli import text
    from nsrun.lifecycle import volumes

    if call.options.get("quiet"):
        if call.options.get("json"):
            raise UsageError("--quiet and --json exclude each other")
        for name in volumes.names(call.state):
            out(name)
        volumes.finish(call.state)
        return 0
    found = volumes.describe(call.state)
    volumes.finish(call.state)
    if call.options.get("json"):
        return text.json(found)
    rows = [[v["name"], v["created"], ",".join(v["members"]) or "-", v["path"]] for v in found]
    return text.table(["NAME", "CREATED", "MEMBERS", "PATH"], rows)


def inspect(call: Call) -> int:
    from nsrun.cli import text
    from nsrun.lifecycle import volumes

    found = volumes.describe(call.state, call.operands)
    volumes.finish(call.state)
    return text.json(found)


def rm(call: Call) -> int:
    from nsrun.lifecycle import volumes

    volumes.finish(call.state)
    return each(call.operands, lambda name: _remove(call, name))


def _remove(call: Call, name: str) -> None:
    from nsrun.lifecycle import volumes

    if told := volumes.remove(call.state, name):
        err(f"nsrun: {told}")


def prune(call: Call) -> int:
    from nsrun.lifecycle import volumes

    if not call.options.get("all"):
        raise UsageError(
            "every volume here has a name, and is kept unless you say otherwise",
            hint="nsrun volume prune --all removes those that no member uses; a volume without a name goes with its member",
        )
    volumes.finish(call.state)
    return each(volumes.unused(call.state), lambda name: _remove(call, name))
