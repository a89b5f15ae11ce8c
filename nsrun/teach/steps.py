# SPDX-License-Identifier: Apache-2.0
"""`nsrun explain --step`: a real plan, run step by step, with what can be seen before and after each of them.

What is walked through is what a command runs: the same plan, executed by the same code.  Walk only stops before each
step: in Python by itself, and inside the namespaces by an op `wait` that it puts between the steps of nsrun-init.
The commands that show a step are executed without a shell, and only if they merely read: their arguments may come from
an image.
"""

from __future__ import annotations

import os

from nsrun import explain, kernel
from nsrun._protocol import GO, INIT_WAITS
from nsrun.errors import NsrunError, printable
from nsrun.host import net
from nsrun.plan import INIT, PHASES, InitStep, Plan, Step
from nsrun.plan.mounts import Pivot
from nsrun.plan.process import Launch
from nsrun.run import Failed, Run
from nsrun.schema import is_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nsrun.plan import Part
    from nsrun.state import State

PATIENCE = 24 * 3600.0  # how long a person may read
SECONDS, BYTES, LINES = (
    3.0,
    1 << 16,
    8,
)  # how long a command that shows something may run, and what is taken and shown of it

#: What a command that is executed begins with; any other is only shown.
READ_ONLY = (
    "bridge fdb show", "cat ", "curl http://127.0.0.1:", "grep ", "head ", "ip -br", "ls ", "lslocks", "lsns", "nft list ",
    "nsrun inspect ", "nsrun ls ", "nsrun pod inspect ", "nsrun pod ls", "pgrep -a ", "ps ", "readlink ", "stat ",
    "tc filter show ", "uname ", "wc ",
)  # fmt: skip


class Quit(NsrunError):
    """The person wants to go no further, or there is no more input."""

    exit_code = 0


class Wait(InitStep):
    """nsrun-init says that it has come here, and waits for GO (csrc/init.c, op_wait)."""

    why = "A person reads."

    def made(self) -> list[str | Part]:
        return ["prctl(PR_SET_DUMPABLE, 0)", "write(channel, INIT_WAITS)", "read(channel)"]


class Interleaved(Plan):
    """A plan whose steps in nsrun-init have waits between them; the last one, an exec, waits by itself."""

    def init_steps(self) -> list[InitStep]:
        *steps, last = super().init_steps()
        return [*(one for step in steps for one in (Wait(), step)), last]


class Walk(Run):
    """A run that stops before each step.  `say` prints lines, and `ask` returns the line that a person typed, None at the end."""

    def __init__(
        self, plan: Plan, state: State, say: Callable[[Sequence[str]], None], ask: Callable[[str], str | None]
    ) -> None:
        steps = [self._stopping(step, number) for number, step in enumerate(plan, 1)]
        super().__init__(Interleaved(plan.title, steps, plan.facts), state)
        self._say, self._ask, self._original = say, ask, plan
        self._inits = [number for number, step in enumerate(plan, 1) if step.phase == INIT]
        self._launch = next(number for number, step in enumerate(plan, 1) if isinstance(step, Launch))
        self._pivot = next((number for number, step in enumerate(plan, 1) if isinstance(step, Pivot)), 0)
        self._at = 0  # how many steps of nsrun-init have been come to
        self._groups = dict(explain.folded(plan))
        self._made, self._known = explain.makers(plan), {}  # type: list[dict[str, int]], dict[str, int]
        self._first, self._last = {}, set()  # type: dict[int, int], set[int]
        for number, group in self._groups.items():
            self._first |= {n: number for n in range(number, number + len(group))}
            self._last.add(number + len(group) - 1)
        self._free = 0  # no question is asked before a step of a lower number
        self._phase = -1
        self._before: dict[int, list[str]] = {}
        self._later: list[int] = []  # steps of which something can be seen once there is a PID

    def _stopping(self, step: Step, number: int) -> Step:
        """Return the same step, which comes here before and after it is taken."""
        if step.phase == INIT:
            return step
        kind = type(step)

        def do(self: Step, run: Walk) -> None:
            run.arrive(number)
            kind.do(self, run)
            run.leave(number)

        made: Step = object.__new__(type(kind.__name__, (kind,), {"do": do, "__module__": kind.__module__}))
        for name in kind._fields:
            object.__setattr__(made, name, getattr(step, name))
        return made

    # ---- before and after a step ---------------------------------------------------------------------------

    def _show(self, lines: Sequence[str]) -> None:
        try:
            self._say(lines)
        except BrokenPipeError:  # it is not the step that failed
            raise Quit("nobody reads any more; the steps are undone") from None

    def arrive(self, number: int) -> None:
        """Say what comes, show what there is before it, and wait for the person.  Raise Quit."""
        if self._first[number] != number:
            return  # it is folded with the one before
        group = self._groups[number]
        if group[0].phase != self._phase:
            self._phase = group[0].phase
            self._show(["", f"{self._phase + 1} {PHASES[self._phase]}   ({explain.WHO[self._phase]})"])
        self._show(["", *explain.block(number, group, self._known, self._made[number - 1])])
        check = group[0].check()
        if not (now := self._as_of_now(check)):
            self._show([f"{'':6}before: there is no PID yet"] if check else [])
        elif commands(now) is None:
            self._show([f"{'':6}(not executed here: it does more than read)"])
        else:
            self._before[number] = self.look(now)
            self._show([f"{'':6}before: {line}" for line in _some(self._before[number])])
        if number < self._free:
            return
        line = self._answer(f"{'':6}[Enter] take step {number}   [N] go on to step N   [q] remove everything: ")
        if line is None or line.strip() == "q":
            raise Quit(f"stopped before step {number} of {len(self._original)}; the steps before it are undone")
        if is_number(line.strip()):
            self._free = int(line)

    def leave(self, number: int) -> None:
        """Show what the step has changed."""
        if number not in self._last:
            return
        first = self._first[number]
        step = self._groups[first][0]
        if isinstance(step, Launch) and self._at:
            return  # it was said when nsrun-init came to its first step
        check = self._as_of_now(step.check())
        if step.check() and not check:
            self._later.append(first)
        elif check and commands(check) is not None:
            now, before = self.look(check), self._before.pop(first, [])
            gone, new = _without(before, now), _without(now, before)
            changed = [*(f"- {line}" for line in _some(gone)), *(f"+ {line}" for line in _some(new))]
            if not changed and first < self._pivot and step.phase == INIT:
                self._later.append(first)  # the command looks for it in the new root, which is none yet
                changed = ["as before, until the new root is the root (Pivot)"]
            if "PID" in step.check() and self.pid < 0:
                self._show([f"{'':6}by the descriptor that nsrun has: {check.partition('#')[0].rstrip()}"])
            self._show([f"{'':6}after:  {line}" for line in changed or ["as before"]])
        if type(step).__name__ == "Release":
            self._say_later()

    def _say_later(self) -> None:
        """Show what could not be seen of earlier steps, before there was a PID, or before the new root was /."""
        if not self._later:
            return
        self._show(["", f"PID is {self.pid} now, and its root is /. What could not be seen at once:"])
        for number in self._later:
            check = self._groups[number][0].check()
            self._show([f"{number:4}  see: {printable(check)}"])
            self._show([f"{'':6}now:    {line}" for line in _some(self.look(self._as_of_now(check)))])
        self._later = []

    def _answer(self, question: str) -> str | None:
        """Ask, with Ctrl-C to be heard: once the program runs, Run.release() keeps signals for the member."""
        import _signal

        blocked = _signal.pthread_sigmask(_signal.SIG_UNBLOCK, {_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP})
        try:
            return self._ask(question)
        finally:
            _signal.pthread_sigmask(_signal.SIG_SETMASK, blocked)

    # ---- what the commands show ----------------------------------------------------------------------------

    def _as_of_now(self, check: str) -> str:
        """Return the check with the names that are known by now; "" when it needs a PID, and there is none yet.

        Before there is a process in the network namespace, nsrun's own descriptor of it leads there.
        """
        import re

        if ip := str(self.values.get("pod:ip", "")):
            check = check.replace("VETH", net.veth_name(ip)).replace("nsrun-…", net.table_name(ip))
        if self.pid > 0:
            return re.sub(r"\bPID\b", str(self.pid), check)
        if (fd := self.handles.get("net:fd", -1)) >= 0:
            place = f"/proc/{os.getpid()}/fd/{fd}"
            check = check.replace("nsenter --target PID --net ip", f"nsenter --net={place} ip")
            check = check.replace("readlink /proc/PID/ns/net", f"readlink {place}")
        return "" if re.search(r"\bPID\b", check) else check

    def look(self, check: str) -> list[str]:
        """Return what the commands print that show a step."""
        found = [line for command in commands(check) or [] for line in self._output(command)]
        return found or ["(nothing)"]

    def _output(self, command: list[str]) -> list[str]:
        """Return the lines of a command's output; no more than BYTES in SECONDS."""
        import subprocess
        from select import poll
        from time import monotonic

        if command[0] == "nsrun":
            command = kernel.nsrun_command(self.state.root, *command[1:])
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        except OSError as error:
            return [f"({command[0]}: {error.strerror})"]
        data, end, poller = b"", monotonic() + SECONDS, poll()
        with process:
            assert process.stdout
            poller.register(process.stdout, 1)
            while (left := end - monotonic()) > 0 and len(data) < BYTES and poller.poll(left * 1000):
                if not (piece := os.read(process.stdout.fileno(), 4096)):
                    break
                data += piece
            else:
                data += b"\n(cut off here)"
            process.kill()
        return [printable(line.expandtabs()) for line in os.fsdecode(data).split("\n") if line.strip()]

    # ---- inside the namespaces -----------------------------------------------------------------------------

    def _be_patient(self, seconds: float, altogether: float) -> None:
        super()._be_patient(PATIENCE, PATIENCE)

    def _hear(self) -> int:
        """Return the next record, once no wait is left: at each, the step before is done, and the next one comes."""
        while True:
            try:
                kind = super()._hear()
            except Failed as error:
                raise Failed(error.index // 2, error.errno, error.detail) from None
            if kind != INIT_WAITS or self._at >= len(self._inits):
                return kind
            if self._at:
                self.leave(self._inits[self._at - 1])
            else:
                self.leave(self._launch)
            self._at += 1
            number = self._inits[self._at - 1]
            if self._at == len(self._inits):
                self._show(["", *explain.block(number, self._groups[number], self._known, self._made[number - 1])])
                self._show([f"{'':6}nsrun-init waits in this step until the step Release"])
                return kind
            self.arrive(number)
            os.write(self._channel, bytes((GO,)))


def _without(lines: list[str], others: list[str]) -> list[str]:
    """Return those that are not among the others; columns of another width are no difference."""
    known = {" ".join(line.split()) for line in others}
    return [line for line in lines if " ".join(line.split()) not in known]


def _some(lines: list[str]) -> list[str]:
    return lines if len(lines) <= LINES else [*lines[: LINES - 1], f"… and {len(lines) - LINES + 1} more lines"]


def commands(check: str) -> list[list[str]] | None:
    """Return the commands of a step's check; None if it has one that does more than read, or that only a shell could execute."""
    import shlex

    lexer = shlex.shlex(check, posix=True, punctuation_chars=";|&<>()")
    lexer.whitespace_split, lexer.commenters = True, "#"
    found: list[list[str]] = [[]]
    try:
        for token in lexer:
            if token == ";":
                found.append([])
            elif set(token) <= set(";|&<>()"):
                return None
            else:
                found[-1].append(token)
    except ValueError:  # a quotation that does not end
        return None
    if not all(command and _reads(command) for command in found):
        return None
    return [_expanded(command) for command in found]


def _reads(command: list[str]) -> bool:
    if command[0] == "nsenter":
        rest = command[3:] if command[1:2] == ["--target"] else command[1:]
        while rest and rest[0].startswith("--"):
            rest = rest[1:]
        return bool(rest) and rest[0] != "nsenter" and _reads(rest)
    return f"{' '.join(command)} ".startswith(READ_ONLY)


def _expanded(command: list[str]) -> list[str]:
    from glob import glob

    return [name for word in command for name in (sorted(glob(word)) if "*" in word else []) or [word]]
