"""Monitors and pauses that this process started: a long-lived caller must take their exit status, or they stay zombies."""

from __future__ import annotations

import os

started: set[int] = set()


def reap() -> None:
    """Takes what has ended; blocks for nobody."""
    for pid in list(started):
        try:
            if os.waitpid(pid, os.WNOHANG)[0]:
                started.discard(pid)
        except ChildProcessError:
            started.discard(pid)
