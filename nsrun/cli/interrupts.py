# SPDX-License-Identifier: Apache-2.0
"""A signal that arrives where Python ignores exceptions.

Ctrl-C, SIGTERM and SIGHUP are raised as exceptions wherever the interpreter is.  That may be a destructor or the
callback of a weak reference (each import has one), and what is raised there can't propagate: Python would print
"Exception ignored in …" and continue as if nobody had pressed Ctrl-C.  It calls sys.unraisablehook instead, from which
nothing propagates either.  So the hook installs a profiler: the interpreter calls that at the next call or return, and
what a profiler raises does propagate.  A signal that arrives while the hook is running is raised in the same way.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType
    from typing import Any


def take_up(unraisable: Any, signals: tuple[type[BaseException], ...], hook: CodeType) -> None:
    """Raise an exception of `signals` again as soon as we are out of `hook`, the code of sys.unraisablehook; report any other."""
    error = unraisable.exc_value
    if not isinstance(error, signals):
        if "--debug" in sys.argv:
            sys.__unraisablehook__(unraisable)
        elif isinstance(error, Exception):
            from nsrun.cli import say

            say.failure_in_passing(error)
        return
    raise_later(error, hook)


def raise_later(error: BaseException, hook: CodeType) -> None:
    """Raise an exception as soon as we are out of `hook`."""

    def again(frame: Any, event: str, _: object) -> None:
        at = frame
        while at:
            if at.f_code is hook:
                return
            at = at.f_back
        raise error  # which also removes the profiler

    sys.setprofile(again)
