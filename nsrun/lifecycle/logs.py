# SPDX-License-Identifier: Apache-2.0
"""Read what members wrote.

csrc/monitor.c writes logs in CRI's format, "TIME STREAM F|P TEXT", where P is a piece of a line that continues.
"""

from __future__ import annotations

import os

from nsrun.errors import UsageError
from nsrun.schema import is_number, open_regular
from nsrun.state import ALIVE, life

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from nsrun.state import Note, State

    Piece = tuple[str, str, str]  # time, stdout or stderr, text (with its newline at the end of a line)


#: Seconds between two looks at a log that is followed, and how many lines of one are yielded before it is another's turn.
PAUSE, _TURN = 0.1, 1000


class _Log:
    """An open log, of which at most the last MOST bytes are read.

    The owner of a log may have made it as large as they like.
    """

    MOST = 64 << 20

    def __init__(self, path: str) -> None:
        self.fd, self._rest = open_regular(path), b""
        size = os.fstat(self.fd).st_size
        self._within = size > self.MOST  # whether we begin in the middle of a line
        if self._within:
            os.lseek(self.fd, size - self.MOST, os.SEEK_SET)

    def lines(self) -> list[tuple[str, str, str]]:
        """Return the whole lines that have been added since the last call; a line that does not end is cut."""
        pieces, room = [self._rest], self.MOST
        while room > 0 and (piece := os.read(self.fd, min(room, 1 << 20))):
            pieces.append(piece)
            room -= len(piece)
        *whole, self._rest = b"".join(pieces).split(b"\n")
        if len(self._rest) > 1 << 20:
            whole, self._rest = [*whole, self._rest[: 1 << 20]], b""
        if self._within and whole:
            self._within, whole = False, whole[1:]
        return [_parse(f"{line[: 1 << 20].decode('utf-8', 'surrogateescape')}\n") for line in whole]

    def close(self) -> list[tuple[str, str, str]]:
        """Close the log; return its last line if that is incomplete because the disk was full."""
        os.close(self.fd)
        return [_parse(self._rest.decode("utf-8", "surrogateescape"))] if self._rest else []


def _open_log(path: str) -> _Log | None:
    try:
        return _Log(path)
    except FileNotFoundError:
        return None


def _parse(line: str) -> tuple[str, str, str]:
    """Split "TIME STREAM F|P TEXT\\n" into (time, stream, text with its newline if the line ends there)."""
    time, _, rest = line.partition(" ")
    stream, _, rest = rest.partition(" ")
    flag, _, text = rest.partition(" ")
    return time, stream, text if flag == "F" else text.removesuffix("\n")


def logs(
    state: State, name: str, tail: int | None = None, follow: bool = False, since: str = "", until: str = ""
) -> Iterator[Piece]:
    """Yield (time, stdout|stderr, text) of a member's output; with `follow`, until it has ended.

    `tail`: only the last so many lines of those that exist now; `since`, `until`: only lines that began between these
    times (see moment).  A full log is renamed to log.1, and a new one is begun: we first read the open one to its end.
    If a log was rotated away before it could be read, a line of standard error says so.
    """
    import time

    for piece in pieces(state, name, tail, follow, since, until):
        if piece:
            yield piece
        else:
            time.sleep(PAUSE)


def pieces(
    state: State, name: str, tail: int | None = None, follow: bool = False, since: str = "", until: str = ""
) -> Iterator[Piece | None]:
    """Yield what logs() yields, and None when there is nothing just now: ask again after PAUSE."""
    wanted = _Wanted(since, until)
    note: Note = state.member(name)
    path = state.path("members", note["name"], "log")
    count, log = _count_and_log(path)  # before log.1, so that nothing is missed if it is renamed meanwhile
    try:
        lines = []
        older = _open_log(f"{path}.1")
        if older and (log is None or not os.path.sameopenfile(older.fd, log.fd)):
            lines = older.lines()
        lines += older.close() if older else []
        lines += log.lines() if log else []
        if log and not follow:
            last, log = log, None
            lines += last.close()
        lines = [piece for piece in lines if wanted.takes(piece)]
        yield from lines if tail is None else last_lines(lines, tail)
        while follow and not wanted.is_over():
            ended = state.member_status(note)[0] not in ALIVE
            if ended and (now := state.same_member(note)) and now["name"] != note["name"]:
                note, path = now, state.path("members", now["name"], "log")  # it was renamed
                continue
            full = log is not None and life.identity(path) != life.identity(log.fd)
            if log and (lines := log.lines()):
                yield from filter(wanted.takes, lines)
            elif log is None or full:
                read = life.identity(log.fd) if log else None
                yield from filter(wanted.takes, log.close() if log else [])
                before, (count, log) = count, _count_and_log(path)
                for piece in _between(path, read, count - before):
                    if wanted.takes(piece):
                        yield piece
                if log is None and not ended:
                    yield None
                elif log is None:
                    return
            elif ended:
                unfinished, log = log, None
                yield from filter(wanted.takes, unfinished.close())
                return
            else:
                yield None
                note = state.try_read("members", note["name"]) or note
    finally:
        if log:
            log.close()


def _count_and_log(path: str) -> tuple[int, _Log | None]:
    """Open the log; return it, and how many logs had been full before it."""
    while True:
        count = _rotations(path)
        log = _open_log(path)
        if count == _rotations(path):
            return count, log
        if log:
            log.close()


def _rotations(path: str) -> int:
    try:
        return os.stat(f"{os.path.dirname(path)}/rotated", follow_symlinks=False).st_size
    except OSError:
        return 0


def _between(path: str, read: tuple[int, int] | None, rotations: int) -> Iterator[Piece]:
    """Yield what came after a log that was read to its end and before the newest one, `rotations` later."""
    from nsrun.state import timestamp

    older = _open_log(f"{path}.1") if rotations > 1 else None
    if older and life.identity(older.fd) == read:
        older.close()
        older = None
    if rotations > 2:
        lost = f"nsrun: {rotations - 2} logs of 16 MiB were full and gone before they could be read\n"
        yield timestamp(), "stderr", lost
    if older:
        yield from older.lines()
        yield from older.close()


class _Wanted:
    """The lines that began between two times; "" is no limit."""

    def __init__(self, since: str, until: str) -> None:
        self._since, self._until, self._lines = since, until, Lines()
        self._wanted: dict[str, bool] = {}

    def takes(self, piece: Piece) -> bool:
        """Return whether the line of this piece belongs to them."""
        time, stream, text = piece
        if self._lines.begins(stream, text):
            self._wanted[stream] = time >= self._since and not (self._until and time > self._until)
        return self._wanted[stream]

    def is_over(self) -> bool:
        """Return whether no wanted line can come any more."""
        from nsrun.state import timestamp

        return bool(self._until) and timestamp() > self._until


class Lines:
    """Finds where lines begin among pieces, for each stream separately."""

    def __init__(self) -> None:
        self._within: set[str] = set()

    def begins(self, stream: str, text: str) -> bool:
        """Return whether this piece is the first of its line."""
        first = stream not in self._within
        if text.endswith("\n"):
            self._within.discard(stream)
        else:
            self._within.add(stream)
        return first


def last_lines(pieces: list[Piece], count: int) -> list[Piece]:
    """Return the pieces of the last `count` lines, of both streams together."""
    lines, number, of = Lines(), 0, {"": 0}
    numbers = []  # the line to which each piece belongs
    for _, stream, text in pieces:
        if lines.begins(stream, text):
            number += 1
            of[stream] = number
        numbers.append(of[stream])
    return [piece for piece, line in zip(pieces, numbers, strict=True) if line > number - count]


def whole_lines(pieces: Iterable[Piece | None]) -> Iterator[Piece | None]:
    """Put the pieces of each line together, with the time of the first; yield lines without an end last, and None for None."""
    open_lines: dict[str, tuple[str, str]] = {}
    for piece in pieces:
        if not piece:
            yield None
            continue
        time, stream, text = piece
        begun, before = open_lines.pop(stream, (time, ""))
        if text.endswith("\n") or len(before) > 1 << 20:
            yield begun, stream, before + text
        else:
            open_lines[stream] = (begun, before + text)
    for stream, (begun, before) in open_lines.items():
        yield begun, stream, before + "\n"


def together(sources: dict[str, Iterator[Piece | None]], follow: bool) -> Iterator[tuple[str, Piece]]:
    """Yield (name, whole line) … of several members, whose pieces() these are, ordered by time; with `follow`, as they come."""
    if not follow:
        from heapq import merge

        def named(name: str) -> Iterator[tuple[str, str, str, str]]:
            return ((line[0], name, *line[1:]) for line in whole_lines(sources[name]) if line)

        for time, name, stream, text in merge(*map(named, sources), key=lambda line: line[0]):
            yield name, (time, stream, text)
        return
    yield from _as_they_come({name: whole_lines(source) for name, source in sources.items()})


def _as_they_come(sources: dict[str, Iterator[Piece | None]]) -> Iterator[tuple[str, Piece]]:
    """Yield what each has now, then wait.

    By turns, and by no threads: a signal that is raised as an exception while a thread is waited for can leave its lock undone.
    """
    from itertools import islice
    from time import sleep

    while sources:
        idle = True
        for name, lines in list(sources.items()):
            ended = True
            for line in islice(lines, _TURN):  # whoever writes without end keeps no other one waiting
                ended = False
                if not line:
                    break
                idle = False
                yield name, line
            if ended:
                del sources[name]
        if idle and sources:
            sleep(PAUSE)


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def moment(text: str, flag: str) -> str:
    """Return a time as logs have it, UTC to the nanosecond.

    `text` is in RFC 3339 (possibly a date alone; without a zone, it is local time), seconds since 1970, or a duration
    before now (10m, 1h30m).  Raise UsageError for anything else.
    """
    import re
    from datetime import UTC, datetime, timedelta

    nanoseconds = ""
    if exact := re.fullmatch(r"(.{10}[T ][0-9:]{8}|[0-9]{1,12})\.([0-9]{1,9})([Z+-].*)?", text, re.ASCII):
        text, nanoseconds = exact[1] + (exact[3] or ""), exact[2].ljust(9, "0")
    ago = re.fullmatch(r"(?:[0-9]{1,9}(?:\.[0-9]{1,9})?[smhd])+", text)
    try:
        if ago:
            seconds = sum(float(n) * _UNITS[u] for n, u in re.findall(r"([0-9.]+)([smhd])", text))
            when = datetime.now(UTC) - timedelta(seconds=seconds)
        elif is_number(text):
            when = datetime.fromtimestamp(int(text), UTC)
        elif re.match(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text) and text.isascii():
            when = datetime.fromisoformat(text).astimezone(UTC)
        else:
            raise ValueError
    except (ValueError, OverflowError, OSError):
        raise UsageError(
            f"{flag} {text[:80]!r} is not a time",
            hint="for example 2026-01-31T12:00:00Z, 2026-01-31, 10m, 1h30m, or seconds since 1970",
        ) from None
    return when.strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0") + f".{nanoseconds or f'{when.microsecond * 1000:09d}'}Z"
