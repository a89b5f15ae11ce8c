# SPDX-License-Identifier: Apache-2.0
"""What members wrote: csrc/monitor.c keeps it as CRI's logs do, "TIME STREAM F|P TEXT"; a P is a piece of a line that goes on."""

from __future__ import annotations

import os

from nsrun.errors import UsageError
from nsrun.schema import is_number, open_regular
from nsrun.state import ALIVE, life

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from nsrun.state import State

    Piece = tuple[str, str, str]  # time, stdout or stderr, text: with its newline where a line ends


class _Log:
    """An open log, read from where at most MOST bytes of it are left: its owner may have made it as large as they like."""

    MOST = 64 << 20

    def __init__(self, path: str) -> None:
        self.fd, self._rest = open_regular(path), b""
        size = os.fstat(self.fd).st_size
        self._within = size > self.MOST  # in the middle of a line
        if self._within:
            os.lseek(self.fd, size - self.MOST, os.SEEK_SET)

    def lines(self) -> list[tuple[str, str, str]]:
        """What has come since the last call, whole lines; a line that does not end is cut."""
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
        """The last line, when it was not written to its end: the disk was full."""
        os.close(self.fd)
        return [_parse(self._rest.decode("utf-8", "surrogateescape"))] if self._rest else []


def _open_log(path: str) -> _Log | None:
    try:
        return _Log(path)
    except FileNotFoundError:
        return None


def _parse(line: str) -> tuple[str, str, str]:
    """ "TIME STREAM F|P TEXT\\n" → (time, stream, text with its newline if it is a whole line)."""
    time, _, rest = line.partition(" ")
    stream, _, rest = rest.partition(" ")
    flag, _, text = rest.partition(" ")
    return time, stream, text if flag == "F" else text.removesuffix("\n")


def logs(
    state: State, name: str, tail: int | None = None, follow: bool = False, since: str = "", until: str = ""
) -> Iterator[Piece]:
    """(time, stdout|stderr, text) of a member's output; with `follow`, until it has ended.

    `tail`: only the last so many lines of what there is now; `since`, `until`: only lines that began between these times
    (moment).  A log that is full is called log.1, and a new one is begun: what is open here is read to its end first.  What was
    rotated away before it could be read is told, as a line of standard error.
    """
    import time

    wanted = _Wanted(since, until)
    note = state.member(name)
    path = state.path("members", note["name"], "log")
    count, log = _count_and_log(path)  # first, so that nothing is missed when it is renamed in between
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
                    time.sleep(0.1)
                elif log is None:
                    return
            elif ended:
                unfinished, log = log, None
                yield from filter(wanted.takes, unfinished.close())
                return
            else:
                time.sleep(0.1)
                note = state.try_read("members", note["name"]) or note
    finally:
        if log:
            log.close()


def _count_and_log(path: str) -> tuple[int, _Log | None]:
    """How often a log was full before the one that is open here."""
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
    """What came after a log that was read to its end, and before the newest, `rotations` later."""
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
    """Lines that began between two times; "" for none."""

    def __init__(self, since: str, until: str) -> None:
        self._since, self._until, self._lines = since, until, Lines()
        self._wanted: dict[str, bool] = {}

    def takes(self, piece: Piece) -> bool:
        """Does the line of this piece belong to them?"""
        time, stream, text = piece
        if self._lines.begins(stream, text):
            self._wanted[stream] = time >= self._since and not (self._until and time > self._until)
        return self._wanted[stream]

    def is_over(self) -> bool:
        """Is it later than what is wanted?"""
        from nsrun.state import timestamp

        return bool(self._until) and timestamp() > self._until


class Lines:
    """Tells where lines begin among pieces, of each stream by itself."""

    def __init__(self) -> None:
        self._within: set[str] = set()

    def begins(self, stream: str, text: str) -> bool:
        """Is this piece the first of its line?"""
        first = stream not in self._within
        if text.endswith("\n"):
            self._within.discard(stream)
        else:
            self._within.add(stream)
        return first


def last_lines(pieces: list[Piece], count: int) -> list[Piece]:
    """Return the pieces of the last so many lines, of both streams."""
    lines, number, of = Lines(), 0, {"": 0}
    numbers = []  # of the line that each piece is of
    for _, stream, text in pieces:
        if lines.begins(stream, text):
            number += 1
            of[stream] = number
        numbers.append(of[stream])
    return [piece for piece, line in zip(pieces, numbers, strict=True) if line > number - count]


def whole_lines(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Put the pieces of a line together, with the time of its first; one without an end comes last."""
    open_lines: dict[str, tuple[str, str]] = {}
    for time, stream, text in pieces:
        begun, before = open_lines.pop(stream, (time, ""))
        if text.endswith("\n") or len(before) > 1 << 20:
            yield begun, stream, before + text
        else:
            open_lines[stream] = (begun, before + text)
    for stream, (begun, before) in open_lines.items():
        yield begun, stream, before + "\n"


def together(sources: dict[str, Iterator[Piece]], follow: bool) -> Iterator[tuple[str, Piece]]:
    """(name, whole line) … of several members, by their times; with `follow`, as they come."""
    if not follow:
        from heapq import merge

        def named(name: str) -> Iterator[tuple[str, str, str, str]]:
            return ((time, name, stream, text) for time, stream, text in whole_lines(sources[name]))

        for time, name, stream, text in merge(*map(named, sources), key=lambda line: line[0]):
            yield name, (time, stream, text)
        return
    from queue import Queue
    from threading import Thread

    lines: Queue[tuple[str, Piece | Exception | None]] = Queue(1000)

    def read(name: str) -> None:
        try:
            for line in whole_lines(sources[name]):
                lines.put((name, line))
            lines.put((name, None))
        except Exception as error:
            lines.put((name, error))

    for name in sources:
        Thread(target=read, args=(name,), daemon=True).start()
    left = len(sources)
    while left:
        name, line = lines.get()
        if isinstance(line, Exception):
            raise line
        if line is None:
            left -= 1
        else:
            yield name, line


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def moment(text: str, flag: str) -> str:
    """Return a time as logs have it, UTC to the nanosecond: of RFC 3339 (a date alone, and without a zone the local one), of
    seconds since 1970, or so long ago (10m, 1h30m).  UsageError: it is none of these."""
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
            f"{flag} {text[:80]!r} is no time",
            hint="2026-01-31T12:00:00Z, 2026-01-31, 10m, 1h30m, or seconds since 1970",
        ) from None
    return when.strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0") + f".{nanoseconds or f'{when.microsecond * 1000:09d}'}Z"
