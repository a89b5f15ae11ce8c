# SPDX-License-Identifier: Apache-2.0
"""Root names a member of a user's pod: the command continues as that user."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsrun.cli.commands import Call


def become_owner_of(call: Call, names: list[str] | None = None) -> None:
    """Become the owner of the members that are not root's own, if one has them: `names`, or those among the operands.

    Raise BadInput for members of root and of an owner, or of several owners: a command is that of one user, who may have
    other members of the same names.
    """
    from nsrun.errors import BadInput
    from nsrun.lifecycle import owners

    if names is None:
        kinds = [operand.kind for operand in call.command.operands] if call.command else []
        names = [name for at, name in enumerate(call.operands) if kinds[min(at, len(kinds) - 1)] == "member"]
    lacking = [name for name in dict.fromkeys(names) if not call.state.has_member(name)]
    if len(names) == 1 and lacking:
        become(call, lacking[0])
        return
    found = {name: owners.owner_of_member(call.state, name) for name in lacking}
    theirs = [name for name in lacking if found[name] >= 0]
    if not theirs:
        return  # the command itself reports those that nobody has
    if len({found[name] for name in theirs}) > 1 or len(lacking) < len(set(names)):
        raise BadInput(
            f"the members {', '.join(dict.fromkeys(names))} belong to different users",
            hint=f"one command for each: {', '.join(theirs)} {'is' if len(theirs) == 1 else 'are'} not root's",
        )
    become(call, theirs[0])


def become(call: Call, name: str) -> None:
    """Become the owner of the member's pod for good, with the owner's notes; do nothing if there is no such member.

    The variables that `-e NAME` asks for are those of root's environment, so they are taken before.
    """
    from nsrun.host import userns
    from nsrun.lifecycle import owners
    from nsrun.state import FOR_ROOT, State

    uid = owners.owner_of_member(call.state, name)
    if uid < 0:
        return  # the command itself reports that, after whatever else is wrong with it
    if call.options.get("env"):
        from nsrun.spec.options import parse_environment

        named = parse_environment(call.options["env"], dict(os.environ))
        call.options["env"] = [f"{key}={value}" for key, value in named.items()]
    userns.become(userns.User(str(uid)))
    call.state = State(call.state.root)
    call.state.patience = FOR_ROOT
