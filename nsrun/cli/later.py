# SPDX-License-Identifier: Apache-2.0
"""What is left when a pod has ended, and nobody has to wait for: its veth, its bridge, and the sweep.

The kernel waits for grace periods before it lets go of a link, some 30 ms for a veth and twice that for a bridge.  So a process
of ours does that, and its parent returns.  Nothing is in the way of the next command meanwhile: the pod's ports, its
lease and its name are free, a new pod takes another address or waits for its own, and a bridge is removed under the lock on the
network, if it is idle then.  When this process is killed, the kernel removes the veth, and the sweep of the next command the bridge.
"""

from __future__ import annotations

import os

from nsrun.errors import NsrunError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds after which the kernel ends this process, whatever it waits for.
PATIENCE = 10


def leave(tasks: list[Callable[[], object]]) -> None:
    """Have a process that nobody waits for do the tasks in turn, whatever becomes of one; where there can be none, do them now."""
    try:
        with open("/proc/self/comm", "w") as comm:  # as ps(1) shows it from the beginning
            comm.write("nsrun-later")
        pid = os.fork()  # noqa: TID251 -- a copy of us, with all that we know by now, is what is wanted; it becomes nobody else
    except OSError:
        _do(tasks)
        return
    if not pid:
        try:
            _keep_quiet()
            _do(tasks)
        finally:
            os._exit(0)


def _do(tasks: list[Callable[[], object]]) -> None:
    for task in tasks:
        try:
            task()
        except (OSError, NsrunError):
            pass  # the next command's sweep meets the same, and reports it


def _keep_quiet() -> None:
    """Let go of everything of our parent's and of whoever waits for it to end: its session, its signals, its descriptors."""
    import _signal

    os.setsid()
    os.chdir("/")  # somebody may want to unmount where we are
    for number in (
        _signal.SIGINT,
        _signal.SIGTERM,
        _signal.SIGHUP,
    ):  # a service manager sends them when our parent has ended
        _signal.signal(number, _signal.SIG_IGN)
    _signal.signal(_signal.SIGALRM, _signal.SIG_DFL)
    _signal.alarm(PATIENCE)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    os.closerange(3, max(map(int, os.listdir("/proc/self/fd"))) + 1)
