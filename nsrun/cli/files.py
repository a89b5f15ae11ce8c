# SPDX-License-Identifier: Apache-2.0
"""The commands that are about the files of members."""

from __future__ import annotations

from nsrun.cli import say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsrun.cli.commands import Call


def cp(call: Call) -> int:
    from nsrun.lifecycle.copy import copy, parse_ends

    source, target = call.operands
    names = parse_ends(source, target)
    if not call.state.uid:
        from nsrun.cli.owner import become_owner_of

        become_owner_of(call, names)
    follow, archive = bool(call.options.get("follow_link")), bool(call.options.get("archive"))
    output = say.stream(f"nsrun cp {source} - | tar -tv") if target == "-" else None
    for line in copy(call.state, source, target, follow, archive, output):
        say.err(f"nsrun: left out: {line}")
    return 0


def diff(call: Call) -> int:
    from nsrun.cli import text
    from nsrun.lifecycle.diff import changes

    found = changes(call.state, call.state.member(call.operands[0]))
    if call.options.get("json"):
        return text.json([{"kind": kind, "path": path} for kind, path in found])
    for kind, path in found:
        say.out(f"{kind} {path}")
    return 0
