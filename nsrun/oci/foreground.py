# SPDX-License-Identifier: Apache-2.0
"""Stay with a process in the foreground: pass signals on, connect our terminal with its own, and return its exit status."""

from __future__ import annotations

import os

from nsrun import kernel
from nsrun.errors import KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

#: Signals that are ours, or that nobody can pass on.
_OURS = ("SIGKILL", "SIGSTOP", "SIGCHLD", "SIGURG", "SIGPIPE", "SIGWINCH", "SIGTSTP", "SIGTTIN", "SIGTTOU")
#: Faults of our own program: a handler in Python would return to the instruction that has it, again and again.
_FAULTS = ("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGTRAP", "SIGSYS")
#: Signals that interrupt a command, which then undoes what it has begun: SIGHUP, SIGINT, SIGTERM.
INTERRUPTS = (1, 2, 15)


def is_interrupted() -> bool:
    """Return whether a signal that would interrupt us is pending, since we have blocked it."""
    import _signal

    return not _signal.sigpending().isdisjoint(INTERRUPTS)


def stay(pid: int, master: int, ready: Callable[[], None]) -> int:
    """Wait for a child, and return its exit status, or 128 and the signal that ended it.

    `ready` is called when signals are passed on; until then they are blocked.
    """
    import _signal as signal  # the module signal makes enums of the numbers, 9 ms

    with kernel.Fd(kernel.pidfd_open(pid)) as fd:

        def forward(number: int, _: FrameType | None) -> None:
            try:
                kernel.pidfd_send_signal(fd, number)
            except KernelError:
                pass  # it has just ended

        for one in signal.valid_signals():
            if one not in {getattr(signal, name) for name in _OURS + _FAULTS} and 0 < one < 32:
                signal.signal(one, forward)
        ready()
        if master >= 0:
            _connect(fd, master)
        status = os.waitpid(pid, 0)[1]
    return os.waitstatus_to_exitcode(status) if not os.WIFSIGNALED(status) else 128 + os.WTERMSIG(status)


def _connect(pidfd: int, master: int) -> None:
    """Copy between our standard streams and the master of a terminal, until the process has ended."""
    import _signal as signal
    import termios
    import tty
    from fcntl import ioctl
    from select import POLLIN, poll

    before = None

    def size(*_: object) -> None:
        try:
            ioctl(master, termios.TIOCSWINSZ, ioctl(0, termios.TIOCGWINSZ, bytes(8)))
        except OSError:
            pass  # ours is no terminal

    try:
        before = termios.tcgetattr(0)
        tty.setraw(0)
    except termios.error:
        pass  # ours is no terminal
    signal.signal(signal.SIGWINCH, size)
    size()
    poller = poll()
    for source in (0, master, pidfd):
        poller.register(source, POLLIN)
    try:
        ended = False
        while True:
            ready = dict(poller.poll(0 if ended else None))
            if master in ready:
                try:
                    data = os.read(master, 65536)
                except OSError:  # EIO: nobody has it open any more
                    data = b""
                if not data:
                    return
                _write_all(1, data)
            elif ended:
                return
            if 0 in ready:
                data = os.read(0, 65536)
                if data:
                    _write_all(master, data)
                else:
                    poller.unregister(0)
                    _write_all(master, b"\x04")
            if pidfd in ready:
                ended = True
    finally:
        if before is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, before)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
