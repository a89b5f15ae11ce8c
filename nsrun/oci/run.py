# SPDX-License-Identifier: Apache-2.0
"""Run a plan of nsrun-oci: as a pod's, but nobody stays, and nsrun-init may wait in between for what the host has to do."""

from __future__ import annotations

import os

from nsrun import kernel
from nsrun._protocol import GO, INIT_WAITS
from nsrun.errors import BadInput, KernelError
from nsrun.run import Run, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from nsrun.oci.state import Container
    from nsrun.plan import Launching, Plan


class ContainerRun(Run):
    """One run of one plan.  container: whose directory we hold; cgroups: those that were made, or found; call_hook: see hooks.py."""

    def __init__(self, plan: Plan, container: Container | None = None) -> None:
        nothing: Any = None
        super().__init__(plan, nothing)
        self.container = container
        self.cgroups: dict[str, str] = {}
        self.is_left = False  # a cgroup could not be removed: then what is written of it stays, for `delete --force`
        self.watched = 0  # the pid of a container's first process, whose end is also ours
        self.patience = 0.1  # seconds that nsrun-init may take for its exec before a signal that we have blocked counts
        self.call_hook: Callable[[str, Mapping[str, Any]], None] = lambda kind, hook: None

    def launch(self, step: Launching) -> None:
        """Start nsrun-init with the namespaces of the step, and wait until it waits."""
        own: Any = step
        ours, theirs = kernel.channel()
        self._channel = self.hold("channel:nsrun", ours)
        channel = self.hold("channel:init", theirs)
        self._asked.clear()
        document = encode(self.plan.init_steps(), self)
        inherited = self._asked - {-1}
        program = self.hold("plan:fd", kernel.sealed_memfd("plan", document))
        stdio = [self.fd(name) for name in self.stdio] if self.stdio[0] else [-1, -1, -1]
        self.pid, self.pidfd, _ = kernel.launch(
            self.fd("init:fd"),
            ["nsrun-init", str(program), str(channel)],
            stdio=stdio,
            keep=sorted(inherited | {program, channel} | set(range(3, 3 + own.preserve))),
            join_fd=self.fd(step.join) if step.join else -1,
            join_flags=step.join_flags,
            clone_flags=step.clone_flags,
            cgroup=self.fd("cgroup:dir"),
            joins=[self.fd(name) for name in own.joins],
            joins_user=bool(step.user),
            plain=True,
            keep_keys=own.keep_keys,
        )
        self.hold("member:pidfd", self.pidfd)
        self._await_ready()

    def _hear(self) -> int:
        """Do as any run does; but raise KeyboardInterrupt when nsrun-init does not come on and a signal waits (release()).

        Raise BadInput when the process `watched` ends.
        """
        from select import poll

        from nsrun.oci.foreground import is_interrupted

        with kernel.Fd(kernel.pidfd_of(self.watched) if self.watched else -1) as watched:
            poller = poll()
            for fd in (self._channel, watched):
                if fd >= 0:
                    poller.register(fd, 1)
            while not (found := dict(poller.poll(self.patience * 1000))):
                if self._mask is not None and is_interrupted():
                    raise KeyboardInterrupt
        if self._channel not in found:
            raise BadInput("the container was killed meanwhile")
        return super()._hear()

    def proceed(self) -> None:
        """Let nsrun-init go on to where it waits next.  Raise Failed."""
        os.write(self._channel, bytes((GO,)))
        if self._hear() != INIT_WAITS:
            raise KernelError(3, "nsrun-init ended before it was ready")
