# SPDX-License-Identifier: Apache-2.0
"""What follows the end of a member with --restart or --rm: its monitor executes nsrun, which calls this."""

from __future__ import annotations

from nsrun.errors import NsrunError
from nsrun.lifecycle.stop import SIGTERM
from nsrun.state import State, is_to_restart, timestamp
from nsrun.state.sweep import forget_member


def ended(state: State, name: str, code: int, lead: int = -1, locks: tuple[int, int] = (-1, -1)) -> int:
    """What follows the end of a member with --restart or --rm; we are its former monitor.  Its exit status.

    The monitor left its signals blocked: what follows --rm is not interrupted, what follows --restart ends as the member did.
    `lead`: the nsrun in the foreground that waits for us, when we were forked by the pod's door.  `locks`: the files by whose
    locks others know that we keep the member, and what it wrote.
    """
    note = state.read("members", name)
    if note is None:
        return code
    if note["rm"]:
        try:
            forget_member(state, note, its_cgroup=False)  # the monitor has removed it
        except (OSError, NsrunError):
            pass  # the next command tries again, and says what is in the way; this one's status is the member's
        return code
    if state.marked("members", name, "stop") or not is_to_restart(note, code):
        return code
    options = state.read("members", name, "options.json")
    pod, found = state.look("pods", note["pod"])
    if options is None or pod is None or pod["id"] != note["pod_id"] or not found.kept:
        return code
    import _signal

    from nsrun.lifecycle.join import join

    try:
        # `stop`, or Ctrl-C, may have come already; all others wait for the next life
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, {SIGTERM, 2, 1})
        state.renew_exit(name)
        join(state, note["pod"], options, again={**note, "lead": lead, "locks": locks})
    except BaseException as error:
        # what it was goes back to being true: it has ended, with this status, for which there is room on a full disk
        state.record_exit(name, f"{code} {timestamp()}")
        state.save("members", name, note)
        if isinstance(error, Exception):
            raise
    return code
