# SPDX-License-Identifier: Apache-2.0
"""Internal subcommands: nsrun runs itself, in another process, where the monitor has a member to end or a user
namespace has to be entered (setns(CLONE_NEWUSER) can't be undone)."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsrun.cli.commands import Call


def ended(call: Call) -> int:
    """The monitor executes this when its member has ended: restart or remove it.  The monitor's locks are still ours."""
    from nsrun.lifecycle.restart import ended
    from nsrun.state import life

    name, status = call.operands
    held, data = (int(fd) for fd in call.options["held"].split(","))
    for fd in (held, data):
        if fd >= 0:
            os.set_inheritable(fd, False)
            life.adopt(fd)
    return ended(call.state, name, int(status), int(call.options.get("lead", -1)), (held, data))


def left(call: Call) -> int:
    """The front executes this when it has ended what it began, and nothing is to be begun once more: tell why (front.c, tell)."""
    from nsrun.cli.say import failure, interrupted, out

    why, what = call.operands
    if why == "unwritten":  # all is done; what is in the way of its output is found once more
        out(what)
        return 0
    if why == "interrupted":
        interrupted()
        return 128 + int(what)
    if why == "ended":
        failure(f"the {what} was ended before it had begun")
        return 137 if what == "member" else 125
    failure("the command was started, and killed again: what follows its start could not be done")
    return 125


def remove(call: Call) -> int:
    """Remove directories whose files have ids of a user namespace."""
    from nsrun.state import remove_tree

    for path in call.operands:
        remove_tree(path)
    return 0


def whole(call: Call) -> int:
    """Print "whole" if nothing of a layer is missing."""
    from nsrun.cli.say import out
    from nsrun.image import lookup

    out("whole" if lookup.is_whole(call.state, call.operands[0]) else "damaged")
    return 0
