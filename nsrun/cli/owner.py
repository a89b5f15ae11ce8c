# SPDX-License-Identifier: Apache-2.0
"""Root names a member of a user's pod: the command continues as that user."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsrun.cli.commands import Call


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
