# SPDX-License-Identifier: Apache-2.0
"""Look at many students side by side, so that none makes the others wait, and none takes more than a share of the machine.

A student can make whoever looks at their processes wait without end, even in a system call that no signal interrupts,
such as one that needs a page of theirs from a file system of theirs: environ of proc(5).  So each look is made by a process
group of its own, with a limit of memory, which is killed when its time is over.  What the kernel does not let end even so
stays the only one: nobody looks at that student as long as one of that group lives.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import time
from errno import ECHILD, ESRCH

from nsrun.schema import is_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

#: Seconds in which a student's processes must have let themselves be looked at.
PATIENCE = 20.0
#: After so many seconds a look is slow: it goes on, gives its place to the next, and a round does not wait for it.
QUICK = 2.0
#: How many looks that are not slow go on at a time.
PLACES = 2 * (os.cpu_count() or 1)
#: Bytes of memory for each process of a look, and of what it tells.
_MEMORY, _MOST = 512 << 20, 1 << 20

HIDES = "a process does not let itself be looked at"


class _Look:
    """One look that goes on."""

    def __init__(self, pid: int, fd: int) -> None:
        self.pid, self.fd, self.begun, self.said = pid, fd, time.monotonic(), bytearray()

    def age(self) -> float:
        return time.monotonic() - self.begun


class Looks:
    """Those that go on, over rounds.  As a context manager it ends them with the block."""

    def __init__(self) -> None:
        self.going: dict[str, _Look] = {}
        self.stuck: dict[str, int] = {}  # process groups that were killed, and of which something may live
        self.slow: set[str] = set()  # whose last look was not quick
        self.queue: list[str] = []  # who is to be looked at next

    def __enter__(self) -> Looks:
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self.going):
            self._end(name)

    def round(self, names: Iterable[str], look: Callable[[str], Any], wait: bool = True) -> dict[str, Any]:
        """Begin to look at all at whom nobody looks yet, and return what the looks that have ended returned, by name.

        Instead there is an exception: TimeoutError when a student does not let themselves be looked at, RuntimeError for
        any other reason.  Without `wait` there is nothing yet of those who are slow: their look goes on, and a later round
        has it.  The order is that of the names, with those who were slow the last time at the end.
        """
        told: dict[str, Any] = {}
        names = list(names)
        waiting = [name for name in names if name not in self.going and name not in self.queue]
        self.queue = sorted([name for name in self.queue if name in names] + waiting, key=self.slow.__contains__)
        while True:
            self._begin(look, told)
            if not self.going:
                return told
            go_on = wait or self._waited_for()
            ages = [one.age() for one in self.going.values()]
            left = min(limit - age for age in ages for limit in (QUICK, PATIENCE) if age < limit or limit == PATIENCE)
            self._take(max(left, 0.01) if go_on else 0, told)
            if not go_on:
                return told

    def _waited_for(self) -> bool:
        """Return whether somebody who was not slow waits for a place, or has one."""
        quick = [name for name in self.queue if name not in self.slow]
        return bool(quick) or any(one.age() < QUICK for name, one in self.going.items() if name not in self.slow)

    def _begin(self, look: Callable[[str], Any], told: dict[str, Any]) -> None:
        while self.queue and sum(one.age() < QUICK for one in self.going.values()) < PLACES:
            name = self.queue.pop(0)
            if name in self.stuck and _lives(self.stuck[name]):
                told[name] = TimeoutError(HIDES)
                continue
            self.stuck.pop(name, None)
            try:
                self.going[name] = _begun(name, look)
            except OSError as error:  # no more processes, or descriptors
                told[name] = RuntimeError(f"no look at them can begin: {error.strerror}")

    def _take(self, seconds: float, told: dict[str, Any]) -> None:
        """Wait for what the looks say, and end those that are complete, or overdue."""
        poll = select.poll()
        names = {one.fd: name for name, one in self.going.items()}
        for fd in names:
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll(seconds * 1000):
            one = self.going[names[fd]]
            piece = os.read(fd, 1 << 16)
            one.said += piece
            if not piece or len(one.said) > _MOST:
                took, told[names[fd]] = _result(bytes(one.said))
                self._mark(names[fd], took > QUICK)
                self._end(names[fd])
        for name, one in list(self.going.items()):
            if one.age() > PATIENCE:
                self._mark(name, True)
                told[name] = TimeoutError(HIDES)
                self._end(name)

    def _mark(self, name: str, slow: bool) -> None:
        (self.slow.add if slow else self.slow.discard)(name)

    def _end(self, name: str) -> None:
        one = self.going.pop(name)
        os.close(one.fd)
        try:  # before anybody waits for its first process, so that the number is still theirs
            os.killpg(one.pid, signal.SIGKILL)
        except OSError as error:
            if error.errno != ESRCH:
                raise
        self.stuck[name] = one.pid
        _reap(one.pid, 1.0)


def _begun(name: str, look: Callable[[str], Any]) -> _Look:
    """Begin to look at a student, in a process group of its own."""
    read, write = os.pipe2(os.O_CLOEXEC)
    pid = -1
    try:
        pid = os.fork()  # noqa: TID251 -- a copy of us, with all that we know by now, is what is wanted; it becomes nobody else
    finally:
        if pid:
            os.close(write)
        if pid < 0:
            os.close(read)
    if not pid:
        _look(write, name, look)
    try:
        os.setpgid(pid, pid)
    except OSError as error:
        if error.errno != ESRCH:
            raise
    return _Look(pid, read)


def _look(write: int, name: str, look: Callable[[str], Any]) -> None:
    """Look, tell, and end: nothing of whoever began the look goes on in this copy of them."""
    try:
        os.setpgid(0, 0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.alarm(int(PATIENCE) + 5)  # if whoever began it is killed
        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
        begun = time.monotonic()
        said: dict[str, Any] = {}
        try:
            said["told"] = look(name)
        except Exception as error:
            said["error"] = f"an error of nsrun: {type(error).__name__}: {error}"
        said["took"] = time.monotonic() - begun
        with open(write, "wb") as file:
            file.write(json.dumps(said).encode())
    finally:
        os._exit(0)


def _result(said: bytes) -> tuple[float, Any]:
    """Return how long a look took, and what it returned, or an exception."""
    try:
        found = json.loads(said)
    except ValueError:  # it ran out of memory, say
        return 0.0, RuntimeError("an error of nsrun: the look at them ended before it told anything")
    return found["took"], found["told"] if "told" in found else RuntimeError(found["error"])


def _reap(group: int, seconds: float) -> None:
    """Wait for our children in a process group that was killed, but not for one that the kernel does not let end."""
    end = time.monotonic() + seconds
    while True:
        try:
            found, _ = os.waitpid(-group, os.WNOHANG)
        except OSError as error:
            if error.errno == ECHILD:
                return
            raise
        if not found:
            if time.monotonic() > end:
                return
            time.sleep(0.002)


def _lives(group: int) -> bool:
    """Return whether something of a process group that was killed is still there, zombies aside."""
    _reap(group, 0)
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    for name in filter(is_number, os.listdir("/proc")):  # zombies that nobody waits for can be signalled as well
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                state, _, its = file.read().rpartition(b")")[2].split()[:3]
        except OSError:
            continue
        if int(its) == group and state not in (b"Z", b"X"):
            return True
    return False
