# SPDX-License-Identifier: Apache-2.0
"""What a plan is: a short list of typed, frozen steps in five phases, that can be read, printed, timed and run.

    1 Open     Python          turns what lives on the host into descriptors
    2 Host     Python          cgroup, bridge, veth, ports
    3 Join     Python → C      setns, then clone nsrun-init into the namespaces
    4 Init     nsrun-init      mounts, pivot_root, hostname, ids, capabilities, exec
    5 Commit   Python          the note; release of the member; hand-over to the monitor

Not a scripting language: no conditions, no loops, no registry.  The builders (`pod.py`, `member.py`) are the
only place that knows the order.  What exists only later (descriptors, pids, the leased address) is a named
handle such as `pod:pidfd`, so what `nsrun explain` prints is stable.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any, Protocol, dataclass_transform

    from nsrun.state import State
    from nsrun.types import Port

    class Launching(Protocol):
        """What the run has to know of the step that starts nsrun-init: nsrun.plan.process.Launch."""

        @property
        def join(self) -> str: ...
        @property
        def join_flags(self) -> int: ...
        @property
        def clone_flags(self) -> int: ...
        @property
        def detach(self) -> bool: ...
        @property
        def user(self) -> str: ...
        @property
        def door(self) -> str: ...
        @property
        def locks(self) -> tuple[str, ...]: ...
        @property
        def one_way(self) -> bool: ...

    class Context(Protocol):
        """What a step may use of the run that it is part of: nsrun.run.Run."""

        state: State
        handles: dict[str, int]  # descriptors by name
        values: dict[str, str | int]  # what became known on the way: a leased address, a pid
        ports: list[Port]
        files: Mapping[str, Mapping[str, Any]]
        again: bool  # a member begins once more
        stdio: tuple[str, str, str]
        note: Mapping[str, Any]
        directory: str
        pid: int
        pidfd: int
        monitor_options: dict[str, Any]

        def hold(self, name: str, fd: int) -> int: ...
        def fd(self, name: str) -> int: ...
        def text(self, template: str) -> str: ...
        def need_data(self, ident: str) -> None: ...
        def drop_data(self, ident: str) -> None: ...
        def launch(self, step: Launching) -> None: ...
        def write_plan(self, handle: str, name: str, steps: Sequence[InitStep], numbers: Mapping[str, int]) -> None: ...
        def start_door(
            self,
            what: str,
            words: list[str],
            keep: list[int],
            path: str,
            lock: tuple[int, int] = ...,
            program: str = ...,
        ) -> None: ...
        def release(self) -> None: ...
        def kill_launched(self) -> None: ...
        def monitors_pidfd(self) -> int: ...
        def hand_over(self, detach: bool) -> None: ...

    #: A step of a compiled plan: its name in REPLAY, and its arguments.
    Replayed = tuple[Any, ...]

    class Compiling(Protocol):
        """What a step may use of the compiler of a plan: nsrun.run.replay.Compiler."""

        state: State
        note: Mapping[str, Any]  # of the member or pod, whole
        values: dict[str, str | int]
        files: Mapping[str, Mapping[str, Any]]
        about: Mapping[str, Any]
        directory: str
        stdio: tuple[str, str, str]

        def make(self, name: str) -> int: ...
        def name(self, name: str, other: str) -> None: ...
        def fd(self, name: str) -> int: ...
        def content(self, name: str) -> bytes: ...
        def same_file(self, path: str) -> Replayed: ...
        def process(self, name: str) -> tuple[int, int]: ...
        def inode(self, name: str) -> int: ...
        def hole(self, kind: str) -> str: ...
        def template(self, note: Mapping[str, Any]) -> str: ...
        def document(self) -> tuple[Replayed, list[int]]: ...
        def monitor(self, fds: dict[str, str]) -> tuple[list[str], list[int]]: ...

else:

    def dataclass_transform(**_):  # typing costs 8 ms to import
        return lambda cls: cls


PHASES = ("Open", "Host", "Join", "Init", "Commit")
OPEN, HOST, JOIN, INIT, COMMIT = range(5)
OWN_KEYRING = "keyctl(KEYCTL_JOIN_SESSION_KEYRING, NULL)"


class Part:
    """Some calls of a step: those of another process, those made only in some case, or those made for each of several things."""

    def __init__(
        self, calls: Sequence[str | Part], by: str = "", when: str = "", each: str = "", times: int = 0
    ) -> None:
        """`times`: how often the calls are made, where `each` can be counted beforehand."""
        self.items, self.by, self.when, self.each, self.times = tuple(calls), by, when, each, times

    def __str__(self) -> str:
        told = ", ".join(filter(None, (self.when and f"when {self.when}", self.each and f"for each {self.each}")))
        head = f"{self.by}: {told}" if self.by else told
        return f"{head.rstrip()} {{ {'; '.join(map(str, self.items))} }}"


def name_of(call: str) -> str:
    """Return the name of a call as C shows it, with or without `fd = ` before it; "" for the command of a shell."""
    name = call.partition("(")[0].rpartition(" = ")[2]
    return name if name.isidentifier() and "(" in call else ""


def names_of(items: Sequence[str | Part]) -> list[str]:
    """Return the names of calls, in order; what is made only in some case, or nobody knows how often, is left out."""
    found = []
    for item in items:
        if isinstance(item, str):
            found += [name] if (name := name_of(item)) else []
        elif not item.when and (item.times or not item.each):
            found += names_of(item.items) * (item.times or 1)
    return found


@dataclass_transform(frozen_default=True)
class Step:
    """One action.  All that is told of it derives from its fields.

    `made` are the system calls, in order, each as C would show it.  What is printed (`call`) and what a trace of the run is
    compared with (`calls`) are made of them.  `shell` is what a person would type instead, with `approx` saying how that
    differs; `check` is a command that shows the effect.  `needs` and `makes` name the handles that it takes from the steps
    before, and those that it leaves for the ones after.
    """

    _fields = ()  # type: tuple[str, ...]
    phase = OPEN
    why = ""
    man = ""
    approx = ""
    native = ""  # the C that does most of it, outside of phase 4: "kernel.c FUNCTION"
    many = ""  # what several of this kind do, for `nsrun explain`, which folds them: "{} paths are hidden"
    hints = {}  # type: dict[int, str]

    def __init_subclass__(cls) -> None:
        cls._fields = cls._fields + tuple(n for n in cls.__dict__.get("__annotations__", ()) if n not in cls._fields)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        values = dict(zip(self._fields, args, strict=False), **kwargs)
        if len(args) > len(self._fields) or not set(values) <= set(self._fields):
            raise TypeError(f"{type(self).__name__}{args}{kwargs}")
        for name, value in values.items():
            object.__setattr__(self, name, value)
        for name in self._fields:
            if not hasattr(self, name):
                raise TypeError(f"{type(self).__name__} needs {name}")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{n}={getattr(self, n)!r}' for n in self._fields)})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and all(getattr(self, n) == getattr(other, n) for n in self._fields)

    __hash__ = None  # type: ignore[assignment]

    def made(self) -> Sequence[str | Part]:
        """The system calls, in order, each as C would show it."""
        raise NotImplementedError

    def call(self) -> str:
        """The system calls in one line."""
        return "; ".join(map(str, self.made()))

    def calls(self) -> list[str]:
        """The names of the system calls that are made in any case, in order."""
        return names_of(self.made())

    def brief(self) -> str:
        """What a message calls this step: its call, or, if there are many, what they do."""
        return self.call()

    def thing(self) -> str:
        """What tells this step from others of its kind: the path, say."""
        return ""

    def needs(self) -> tuple[str, ...]:
        """The handles that this step takes; one with a `?` is taken when it is there."""
        return ()

    def makes(self) -> tuple[str, ...]:
        """The handles that this step leaves; one with a `?` is left in some cases."""
        return ()

    def shell(self) -> str:
        return ""

    def replayed(self, compiler: Compiling) -> list[Replayed] | None:
        """Return what the front does instead (REPLAY in csrc/protocol.h), in numbers; None: it can't."""
        return None

    def check(self) -> str:
        return ""

    def do(self, run: Context) -> None:
        """Carries the step out, in Python (phases 1, 2, 3, 5)."""
        raise NotImplementedError

    def undo(self, run: Context) -> None:
        """Takes back what do() did on the host; descriptors are closed by the run."""


class InitStep(Step):
    """A step of phase 4: encoded, and carried out by nsrun-init (csrc/init.c has an op of the same name)."""

    phase = INIT

    def args(self, run: Context) -> Sequence[int | str | list[str]]:
        return ()


class Plan:
    """The steps of one command, in order, and the title that explain prints."""

    def __init__(self, title: str, steps: Sequence[Step], facts: dict[str, Any] | None = None) -> None:
        order = [step.phase for step in steps]
        assert order == sorted(order), f"phases out of order: {order}"
        self.title, self.steps, self.facts = title, tuple(steps), facts or {}

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def init_steps(self) -> list[InitStep]:
        return [step for step in self.steps if isinstance(step, InitStep)]


def sh_quote(text: str) -> str:
    """A word as the shell needs it (shlex imports re)."""
    safe = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@%+=:,./-")
    return text if text and safe.issuperset(text) else "'" + text.replace("'", "'\"'\"'") + "'"
