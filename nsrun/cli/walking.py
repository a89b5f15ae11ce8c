# SPDX-License-Identifier: Apache-2.0
"""`nsrun explain --step`: two processes walk through a command.

The one that was called makes what the command needs (a pod to join, a member to execute something in), all under a name
of its own, starts `nsrun _walk`, and removes everything when that has ended, however it ended.  The other one takes the
steps; a member in the foreground takes its place, as it does without --step.
"""

from __future__ import annotations

import os

from nsrun.cli import say
from nsrun.cli.commands import COMMANDS, Command, function, parse
from nsrun.errors import NsrunError, UsageError, printable
from nsrun.kernel import nsrun_command
from nsrun.plan import sh_quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from nsrun.cli.commands import Call
    from nsrun.plan import Plan
    from nsrun.run import Run
    from nsrun.state import State


def walk(call: Call) -> int:
    """Make what the command needs, have it walked through, and remove everything."""
    from nsrun.state import new_id

    inner = parse(call.rest)
    if not inner.command or not inner.command.walk:
        known = ", ".join(command.name for command in COMMANDS if command.walk)
        raise UsageError(f"--step walks through {known}", hint="nsrun explain --step pod create")
    if inner.command.of_members and not call.state.uid and not call.state.has_member(inner.operands[0]):
        from nsrun.cli.owner import become

        become(call, inner.operands[0])
    throwaway: Throwaway = function(inner.command.walk)(call.state, f"step-{new_id()[:6]}")
    try:
        throwaway.prepare(inner)
        code = throwaway.walk(inner)
    finally:
        throwaway.remove()
    say.out("")
    say.out("Everything is removed again.")
    return code


class Throwaway:
    """A pod and a member of one name, which live as long as somebody walks through a command."""

    def __init__(self, state: State, name: str) -> None:
        self.state, self.name, self.member = state, name, ""
        self.child: Any = None

    def prepare(self, inner: Call) -> None:
        """Make what the command needs, and have it name that."""
        raise NotImplementedError

    @staticmethod
    def take(call: Call, make: Callable[[Plan, State], Run]) -> None:
        """Carry the command out; `make` returns what runs its plan."""
        raise NotImplementedError

    def _owner_of(self, pod: str) -> list[str]:
        """Return the option that gives the throwaway pod the owner that the named one has; [] when there is no such pod."""
        note = self.state.try_read("pods", pod)
        return ["--owner", str(note["owner"])] if note and not self.state.uid else []

    def _make_pod(self, owner: list[str]) -> None:
        self._nsrun("pod", "create", "--network", "none", *owner, self.name)

    def walk(self, inner: Call) -> int:
        """Have another process walk through the command; return its exit status."""
        import subprocess
        from _signal import SIGINT, SIGTERM, signal

        assert inner.command
        words = [*inner.command.name.split(), *given(inner.command, inner.options), *inner.operands]
        words += ["--", *inner.rest] if inner.rest else []
        say.page(
            f"nsrun {printable(' '.join(map(sh_quote, words)))}\n\n"
            "Each step is taken for real, in a pod that is removed afterwards. What follows `see:` is executed before and\n"
            "after the step. PID stands for the first process of what is started.\n"
        )
        say.flush()
        before = signal(SIGINT, lambda *_: None)  # Ctrl-C is for the one who walks; we remove what is left
        try:
            self.child = subprocess.Popen(nsrun_command(self.state.root, "_walk", *words))
            code = int(self.child.wait())
            return code if code >= 0 else 128 - code
        finally:
            if self.child and self.child.poll() is None:  # we are to end
                self.child.send_signal(SIGTERM)
                self.child.wait()
            signal(SIGINT, before)

    def remove(self) -> None:
        """Remove the pod and the member, if they are there; nothing interrupts it."""
        from _signal import SIG_BLOCK, SIG_SETMASK, SIGHUP, SIGINT, SIGTERM, pthread_sigmask

        blocked = pthread_sigmask(SIG_BLOCK, {SIGINT, SIGTERM, SIGHUP})
        try:
            self._nsrun("pod", "rm", "-f", self.name)
            if self.member:
                self._nsrun("rm", "-f", self.member)
        finally:
            pthread_sigmask(SIG_SETMASK, blocked)

    def _nsrun(self, *words: str) -> None:
        """Run another nsrun.  Raise NsrunError with what it said."""
        import subprocess

        from nsrun.errors import told

        command = nsrun_command(self.state.root, *words)
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, start_new_session=True)
        if done.returncode:
            message, hint = told(done.stderr)
            raise NsrunError(f"nsrun {' '.join(words)}: {message}", hint=hint)


class PodCreate(Throwaway):
    def prepare(self, inner: Call) -> None:
        inner.operands = [self.name]

    @staticmethod
    def take(call: Call, make: Callable[[Plan, State], Run]) -> None:
        from nsrun.lifecycle.create import create_pod

        create_pod(call.state, {**call.options, "name": call.operands[0]}, make=make)


class Join(Throwaway):
    def prepare(self, inner: Call) -> None:
        self._make_pod(self._owner_of(inner.operands[0]))
        self.member = inner.options["name"] = f"{self.name}-{inner.options.get('name') or 'member'}"[:64]
        inner.operands = [self.name]

    @staticmethod
    def take(call: Call, make: Callable[[Plan, State], Run]) -> None:
        from nsrun.lifecycle.join import join

        options = {**call.options, "command": call.rest}
        join(call.state, call.operands[0], options, detach=bool(call.options.get("detach")), make=make)


class Execute(Throwaway):
    def prepare(self, inner: Call) -> None:
        """Make a member that has the root filesystem of the one that is named."""
        note = self.state.member(inner.operands[0])
        root = ["--image", note["image"]] if note.get("image") else []
        root = root or (["--rootfs", note["rootfs"]] if note.get("rootfs", "/") != "/" else [])
        self._make_pod(self._owner_of(note["pod"]))
        self.member = self.name
        self._nsrun("join", self.name, "-d", "--name", self.name, *root, "--entrypoint", "sleep", "--", "86400")
        inner.operands = [self.name]

    @staticmethod
    def take(call: Call, make: Callable[[Plan, State], Run]) -> None:
        from nsrun.lifecycle.execute import execute

        execute(call.state, call.operands[0], {**call.options, "command": call.rest}, make=make)


def given(command: Command, options: dict[str, Any]) -> list[str]:
    """Return the options of a call as arguments that parse() reads as the same options."""
    found = []
    for option in command.options:
        value, flag = options.get(option.key), option.flags[-1]
        if value is True:
            found.append(flag)
        elif value is not None:
            found += [f"{flag}={one}" for one in (value if isinstance(value, list) else [value])]
    return found


# ---- the one who walks -----------------------------------------------------------------------------------------


def inside(call: Call) -> int:
    """Take the steps of a command: `nsrun _walk COMMAND…`."""
    from nsrun.teach.steps import Quit, Walk

    def make(plan: Plan, state: State) -> Run:
        return Walk(plan, state, _print, _ask)

    inner = parse(call.rest)
    assert inner.command
    inner.state = call.state
    try:
        function(inner.command.walk).take(inner, make)
    except Quit as quit:
        _print(["", quit.message])
        return 0
    _print([""])
    _ask("All steps are taken, and it runs: look at it from another terminal. [Enter] removes everything: ")
    return 0


def _print(lines: Sequence[str]) -> None:
    say.page("".join(f"{line}\n" for line in lines))
    say.flush()  # a member in the foreground takes the place of this process, with what was not written yet


def _ask(question: str) -> str | None:
    """Return a line of the standard input, None at its end.  What is behind that line is left to others."""
    say.page(question)
    say.flush()
    line = b""
    while (byte := os.read(0, 1)) not in (b"", b"\n"):
        line += byte
    if not os.isatty(0) or not byte:
        say.out("")
        say.flush()
    return os.fsdecode(line) if byte else None
