# SPDX-License-Identifier: Apache-2.0
"""Leave a compiled plan behind, so that the front (csrc/front.c) can do the same without Python the next time.

A compiled plan says which command line it is for, what was looked at while the plan was made (witnesses), and what the
steps do, in numbers that the front can carry out (csrc/protocol.h, REPLAY).  A step that has no such form has no
compiled plan.  docs/replay.md tells what may be taken for granted, and what not.
"""

from __future__ import annotations

import os
from struct import calcsize, pack, unpack_from
from struct import error as struct_error

from nsrun import kernel
from nsrun._protocol import (
    BUILD,
    HOLE,
    HOLE_CGROUP,
    HOLE_COMMAND,
    HOLE_HELD,
    HOLE_NAMESPACES,
    HOLE_PROCESS,
    HOLE_SINCE,
    OP_OF_STEP,
    PLAN_HEADER,
    PLAN_MAGIC,
    REPLAY,
    REPLAY_BYTES,
    REPLAY_FIRST,
    REPLAY_HANDLES,
    REPLAY_HEADER,
    REPLAY_MAGIC,
    REPLAY_WORDS,
)
from nsrun.plan import INIT, InitStep
from nsrun.plan.process import Execute, ExecutePause
from nsrun.run import encode, monitor_arguments
from nsrun.schema import open_regular
from nsrun.state import codec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from nsrun.plan import Plan, Replayed
    from nsrun.run import Run
    from nsrun.state import State

#: Compiled plans that are kept in one state directory; the oldest ones go first.
KEPT = 64


_HOLES = {
    "command": HOLE_COMMAND, "process": HOLE_PROCESS, "held": HOLE_HELD, "since": HOLE_SINCE, "cgroup": HOLE_CGROUP,
    "namespaces": HOLE_NAMESPACES,
}  # fmt: skip
_TEXT = 4095  # bytes that the front reads of a text (csrc/witnesses.h)
BOOT_ID = "/proc/sys/kernel/random/boot_id"


class CannotReplay(Exception):
    """The front can't do this, or would not do the same."""


class Asked:
    """What a command line was, up to the command of the member and that command, and what its options made nsrun look at."""

    def __init__(self, words: Sequence[str], command: Sequence[str], variables: Sequence[str], terminal: bool) -> None:
        self.words, self.command = words, command
        self.variables = variables  # of the environment
        self.terminal = terminal  # whether the standard input is one


class Compiler:
    """Give each handle of a plan its number in the compiled plan; stands for the Run where steps encode what they do."""

    def __init__(self, plan: Plan, run: Run, command: Sequence[str]) -> None:
        self.plan, self.run, self.command = plan, run, list(command)
        self.state, self.note, self.files = run.state, run.note, run.files
        self.about: Mapping[str, Any] = run.about
        self.handles: dict[str, int] = {}
        self.values, self.directory, self.after = run.values, run.directory, run.after
        self.monitor_options = run.monitor_options
        self.stdio: tuple[str, str, str] = ("", "", "")
        self._asked: set[int] = set()
        self._mark = f"hole-{os.urandom(16).hex()}-"

    def make(self, name: str) -> int:
        """Return a new number for a handle.  Raise CannotReplay when there are too many."""
        if len(self.handles) == REPLAY_HANDLES:
            raise CannotReplay(f"it has more than {REPLAY_HANDLES} handles")
        self.handles[name] = REPLAY_FIRST + len(self.handles)
        return self.handles[name]

    def name(self, name: str, other: str) -> None:
        """Let a name stand for the handle of another one."""
        self.handles[name] = self.handles[other]

    def fd(self, name: str) -> int:
        number = self.handles.get(name, -1)
        self._asked.add(number)
        return number

    def text(self, template: str) -> str:
        return self.run.text(template)

    def content(self, name: str) -> bytes:
        """Return what a sealed file in memory holds that the run has made."""
        fd = self.run.handles[name]
        return os.pread(fd, os.fstat(fd).st_size, 0)

    def same_file(self, path: str) -> Replayed:
        """Return the witness of a file of the installation."""
        return same_file(path, os.stat(path))

    def process(self, name: str) -> tuple[int, int]:
        """Return (pid, start time in ticks) of the process of a pidfd of the run.  Raise CannotReplay when it has ended."""
        try:
            pid = _number(f"/proc/self/fdinfo/{self.run.handles[name]}", b"Pid:")
            with open(f"/proc/{pid}/stat", "rb") as file:
                start = int(file.read(4096).rpartition(b")")[2].split()[19])
            kernel.pidfd_send_signal(self.run.handles[name], 0)
        except (OSError, ValueError, IndexError) as error:
            raise CannotReplay(f"its process has ended: {error}") from None
        return pid, start

    def inode(self, name: str) -> int:
        return os.fstat(self.run.handles[name]).st_ino

    def hole(self, kind: str) -> str:
        """Return what stands in a note for something that is known only at the time: no word of a user's is the same."""
        return f"{self._mark}{chr(_HOLES[kind])}"

    def template(self, note: Mapping[str, Any]) -> str:
        """Return a note as the front writes it (protocol.h, enum replay_hole): without its checksum.  Raise CannotReplay."""
        note = dict(note)
        if "command" in note:
            note["command"] = self._as_hole(note["command"])
        if isinstance(process := note.get("process"), dict):  # of config.json
            note["process"] = {**process, "args": self._as_hole(process["args"])}
        text = codec.dumps(note)[1:] + "\n"
        for letter in map(chr, _HOLES.values()):  # JSON has no byte HOLE in it
            text = text.replace(f'"{self._mark}{letter}"', chr(HOLE) + letter)
        return text

    def _as_hole(self, words: Sequence[str]) -> list[str]:
        return [*self._first(words), *([self.hole("command")] if self.command else [])]

    def _first(self, words: Sequence[str]) -> list[str]:
        """Return the words before the command, such as an entrypoint.  Raise CannotReplay when they do not end with it."""
        count = len(words) - len(self.command)
        if count < 0 or list(words[count:]) != self.command:
            raise CannotReplay("what is executed does not end with the command")
        return list(words[:count])

    def document(self) -> tuple[Replayed, list[int]]:
        """Return the step that makes the plan of nsrun-init, but for its handle, and the numbers that the plan names.

        Raise CannotReplay when it does not end with an exec.
        """
        *steps, last = whole = [step for step in self.plan.steps if isinstance(step, InitStep)]
        self._asked.clear()
        if isinstance(last, ExecutePause):
            return ("memory", "plan", encode(whole, self)), sorted(self._asked - {-1})
        if not isinstance(last, Execute):
            raise CannotReplay("it executes no command")
        head = (
            pack(PLAN_HEADER, PLAN_MAGIC, len(steps) + 1) + encode(steps, self)[len(pack(PLAN_HEADER, PLAN_MAGIC, 0)) :]
        )
        words, environment = last.args(self)  # type: ignore[arg-type]
        first = b"".join(os.fsencode(word) + b"\0" for word in self._first(words))
        head += pack("=I", OP_OF_STEP["Execute"])
        return ("document", head, first, argument("l", environment)), sorted(self._asked - {-1})

    def monitor(self, fds: dict[str, str]) -> tuple[list[str], list[int]]:
        """Return the arguments of nsrun-monitor and the numbers that it keeps."""
        return monitor_arguments(self, fds)


def _number(path: str, key: bytes) -> int:
    with open(path, "rb") as file:
        return int(file.read(4096).partition(key)[2].split(None, 1)[0])


def argument(kind: str, value: Any) -> bytes:
    """Return one argument of a step as csrc/decode.h reads it."""
    if kind == "i":
        data = pack("=Q", value & (1 << 64) - 1)
    elif kind == "s":
        data = os.fsencode(value) + b"\0"
    elif kind == "l":
        data = b"".join(os.fsencode(item) + b"\0" for item in value)
    else:
        data = value if isinstance(value, bytes) else pack(f"={len(value)}i", *value)
    return pack("=I", len(data)) + data


def compiled(run: Run, asked: Asked) -> bytes:
    """Return the compiled plan of a run, before the program is let go.  Raise CannotReplay."""
    if kernel.in_userns():
        raise CannotReplay("it runs in a user namespace")
    compiler = Compiler(run.plan, run, asked.command)
    found = witnesses(run, asked)
    if run.state.unseen:
        raise CannotReplay(f"{run.state.unseen} has no witness")
    if run.note.get("image"):
        found.append(("share", f"{run.state.lib}/images/lock", compiler.make("store:lock")))
    for step in run.plan.steps:
        if step.phase == INIT:
            continue
        form = step.replayed(compiler)
        if form is None:
            raise CannotReplay(f"the front has no {type(step).__name__}")
        found += form
    body = b"".join(encoded(*step) for step in found)
    first: list[Replayed] = [("words", asked.words, int(bool(asked.command)))]
    if run.directory:
        first.append(("fresh", _places(body, run.note["id"]), _places(body, run.note["created"])))
    body = b"".join(encoded(*step) for step in first) + body
    data = pack(REPLAY_HEADER, REPLAY_MAGIC, BUILD, kernel.checksum(body), len(first) + len(found)) + body
    if len(data) > REPLAY_BYTES:
        raise CannotReplay(f"it is larger than {REPLAY_BYTES} bytes")
    return data


def encoded(name: str, *values: Any) -> bytes:
    number, kinds = REPLAY[name]
    return pack("=I", number) + b"".join(argument(kind, value) for kind, value in zip(kinds, values, strict=True))


def _places(body: bytes, text: str) -> list[int]:
    """Return where a text stands, each place as its distance from the end."""
    found, at = [], body.find(text.encode())
    while at >= 0:
        found.append(len(body) - at)
        at = body.find(text.encode(), at + 1)
    return found


def same_file(path: str, st: os.stat_result) -> Replayed:
    """Return the witness of a file that was read, as it was then."""
    device = os.major(st.st_dev) << 32 | os.minor(st.st_dev)
    return "same_file", path, device, st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns


def witnesses(run: Run, asked: Asked) -> list[Replayed]:
    """Return what was looked at: the notes that were read, the machine's ids, our powers, and what the options name."""
    found: list[Replayed] = [
        ("same_link", path, os.readlink(path)) for path in ("/proc/self/ns/pid", "/proc/self/ns/user")
    ]
    if run.directory:  # its note has the start time of the member, as the initial time namespace counts
        if kernel.time_offset() != 0:
            raise CannotReplay("this time namespace counts otherwise")
        clock = "/proc/self/ns/time"  # of which some kernels have none
        found.append(("same_link", clock, os.readlink(clock)) if os.path.lexists(clock) else ("absent", clock))
    found.append(("same_text", BOOT_ID, _boot_id()))
    powers = kernel.capability_sets()
    found.append(("same_powers", powers["CapEff"], powers["CapBnd"]))
    for name in ("NSRUN_ROOT", *asked.variables):
        value = os.environ.get(name)
        found.append(("same_variable", name, "" if value is None else f"={value}"))
    found += [("input_is_a_terminal",)] if asked.terminal else []
    # what was read below the name that is being taken has gone: nothing may be there
    seen = {
        path: st for path, st in run.state.seen.items() if not (run.directory and path.startswith(f"{run.directory}/"))
    }
    found += [same_file(path, st) for path, st in seen.items()]
    found += [_same_text(path, text) for path, text in run.state.seen_text.items()]
    return found + [same_inside(*seen) for seen in run.state.seen_inside]


def _boot_id() -> str:
    """Return the text of random(4), boot_id.  Raise CannotReplay when another file lies over it, which proves nothing."""
    with open(os.open(BOOT_ID, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        found = file.read(64)
    if found.strip() != kernel.boot_id().encode():
        raise CannotReplay("another file lies over boot_id")
    return found.decode()


def _same_text(path: str, text: str | None) -> Replayed:
    """Return the witness of a small file of the machine's that was read whole, wherever links lead; None: there was none.

    Raise CannotReplay for what the front would read otherwise.
    """
    if text is None and os.path.lexists(path):
        raise CannotReplay(f"{path} can't be read")
    if text is not None and ("\0" in text or len(os.fsencode(text)) >= _TEXT):
        raise CannotReplay(f"{path} is too large, or no text")
    return ("absent", path) if text is None else ("same_text", path, text)


def same_inside(root: str, path: str, st: os.stat_result | None, when: int) -> Replayed:
    """Return the witness of a file that was read below a root directory at a time, in nanoseconds.

    One that had been changed within the second before could be changed again and look the same: raise CannotReplay.
    """
    if st is None:
        return ("same_inside", root, path, 0, 0, 0, 0, 0)
    if when - st.st_ctime_ns < 10**9:
        raise CannotReplay(f"{path} had just been changed")
    _, _, *rest = same_file(path, st)
    return ("same_inside", root, path, *rest)


def name_of(words: Sequence[str]) -> str:
    """Return the name of the file of a compiled plan: FNV-1a of the words, each with its NUL (front.c, hash_word)."""
    found = 0xCBF29CE484222325
    for byte in b"".join(os.fsencode(word) + b"\0" for word in words):
        found = (found ^ byte) * 0x100000001B3 & (1 << 64) - 1
    return f"{found:016x}"


def leave(run: Run, asked: Asked) -> bool:
    """Leave a compiled plan for the words of a command line, after which a command comes.

    Return whether that could be done; if not, the next command costs what this one did.
    """
    words = asked.words
    if len(words) > REPLAY_WORDS or any(not os.path.isabs(path) for path in run.state.seen):
        return False
    directory = f"{run.state.run}/plans"
    path = f"{directory}/{name_of(words)}"
    new = f"{path}.{os.urandom(4).hex()}"
    try:
        data = compiled(run, asked)
        os.makedirs(directory, 0o700, exist_ok=True)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            with open(os.open(new, flags, 0o600), "wb") as file:
                file.write(data)
            os.rename(new, path)
            run.compiled = path
        except OSError:
            os.unlink(new)
            raise
        finally:
            _drop_oldest(directory)
    except CannotReplay:
        return False
    except Exception:  # what the user asked for has been done, and goes on
        if os.environ.get("NSRUN_REPLAY") == "must":
            raise
        return False
    return True


def granted(state: State, words: Sequence[str]) -> list[str] | None:
    """Return what the compiled plan for these words takes for granted, for people; None when there is no plan for them."""
    try:
        with open(open_regular(f"{state.run}/plans/{name_of(words)}"), "rb") as file:
            data = file.read(REPLAY_BYTES)
        magic, build, _, count = unpack_from(REPLAY_HEADER, data)
        at, found, names = calcsize(REPLAY_HEADER), [], list(REPLAY)
        for _ in range(count if (magic, build) == (REPLAY_MAGIC, BUILD) else 0):
            (number,) = unpack_from("=I", data, at)
            at += 4
            values: list[str] = []
            for kind in REPLAY[names[number]][1]:
                (length,) = unpack_from("=I", data, at)
                text = data[at + 4 : at + 4 + length]
                values.append(os.fsdecode(text[:-1]) if kind == "s" else "")
                at += 4 + length
            if tell := _TOLD.get(names[number]):
                found.append(tell.format(*values))
    except (OSError, ValueError, IndexError, struct_error):
        return None
    return found or None


#: What each witness is about, of its arguments.
_TOLD = {
    "same_file": "{0}", "same_text": "{0}", "same_link": "{0}", "same_inside": "{1} below {0}", "same_variable": "${0}",
    "same_powers": "our capabilities", "input_is_a_terminal": "that the input is a terminal",
}  # fmt: skip


def _drop_oldest(directory: str) -> None:
    names = os.listdir(directory)
    if len(names) > KEPT:
        ages = sorted((os.lstat(f"{directory}/{name}").st_mtime_ns, name) for name in names)
        for _, name in ages[: len(names) - KEPT]:
            try:
                os.unlink(f"{directory}/{name}")
            except OSError:
                continue  # another command has removed it, or it is no file
