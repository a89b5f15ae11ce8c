# SPDX-License-Identifier: Apache-2.0
"""The commands of `nsrun image`: a thin face over nsrun.image."""

from __future__ import annotations

import os

from nsrun.cli import say
from nsrun.cli.failures import threads_tell
from nsrun.errors import NsrunError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nsrun.image.budget import Budget
    from nsrun.state import State

    Words = list[str]
    Options = dict[str, Any]


class Bar:
    """How far a load is, on a terminal's stderr; nothing elsewhere.  `with Bar() as bar: bar(what, bytes more, bytes in all)`"""

    def __init__(self) -> None:
        import threading
        import time

        self.done, self.shown, self.what, self.clock = 0, 0.0, "", time.monotonic
        self.on = os.isatty(2)
        self.lock = threading.Lock()

    def __call__(self, what: str, count: int, total: int) -> None:
        if not self.on:
            return
        with self.lock:
            self.done = count if what != self.what else self.done + count
            self.what, now = what, self.clock()
            if now - self.shown < 0.1 and self.done < total:
                return
            self.shown = now
            share = min(self.done / total, 1.0) if total else 1.0
            bar = ("█" * int(share * 30)).ljust(30, "░")
            say.progress(f"{what[:30]} {bar} {share:4.0%} of {size_text(total)}")

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self.shown:
            say.progress()


def size_text(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5 or unit == "GB":
            return f"{number:.0f} {unit}" if number >= 99.5 or unit == "B" else f"{number:.3g} {unit}"
        number /= 1000
    return ""


def _budget(options: Options) -> Budget:
    from nsrun.image.budget import Budget
    from nsrun.spec.options import parse_count, parse_size

    budget = Budget()
    if options.get("max_size"):
        budget.size = parse_size(options["max_size"], "--max-size")
    if options.get("max_ratio"):
        budget.ratio = parse_count(options["max_ratio"], "--max-ratio", "a number", 1)
    return budget


def load(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun.image import intake
    from nsrun.lifecycle import need_root

    need_root()
    _ignore_sigpipe()
    threads_tell()
    with Bar() as bar:
        taken = intake.load(
            state, operands[0], options.get("tag") or [], options.get("platform") or "", _budget(options), bar
        )
    return _tell(taken)


def _tell(taken: Any) -> int:
    """The names on stdout, or the id of an image without; the rest on stderr."""
    from nsrun.image import references

    for image in taken:
        for text in image.warnings:
            say.err(f"warning: {text}")
        if image.skipped:
            more = ", …" if len(image.skipped) > 3 else ""
            say.err(
                f"left out {len(image.skipped)} device nodes: {', '.join(image.skipped[:3])}{more} (a member's /dev has its own)"
            )
        for line in map(references.familiar, image.names or [image.id]):
            say.out(line)
    return 0


def _ignore_sigpipe() -> None:
    """A confined writer that ends early must be an error that we can tell, not our end."""
    import signal

    signal.signal(signal.SIGPIPE, signal.SIG_IGN)


def pull(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun.image import intake
    from nsrun.lifecycle import need_root

    tls, budget = options.get("tls_verify", "true"), _budget(options)
    if any(0xD800 <= ord(c) <= 0xDFFF for c in options.get("creds") or ""):
        raise UsageError("--creds is not in UTF-8")
    need_root()
    _ignore_sigpipe()
    threads_tell()
    with Bar() as bar:
        taken = intake.pull(
            state,
            operands[0],
            options.get("platform") or "",
            options.get("creds"),
            options.get("authfile"),
            tls == "true",
            budget,
            bar,
        )
    return _tell(taken)


def ls(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun.cli import text
    from nsrun.image.store import Store

    broken: list[str] = []
    found = Store(state).all(broken)
    for line in broken:
        say.err(f"warning: {line[:400]}")
    if options.get("json"):
        return text.json(found)
    rows = []
    for image in sorted(found, key=lambda i: i["names"] or ["~"]):
        for name in image["names"] or ["-"]:
            cells = [
                name,
                image["id"][:12],
                _line(image["created"][:10]) or "-",
                str(len(image["layers"])),
                size_text(image["size"]),
            ]
            rows.append([*cells, ",".join(image["used_by"]) or "-"])
    return text.table(["NAME", "ID", "CREATED", "LAYERS", "SIZE", "USED BY"], rows)


def inspect(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun.cli import text
    from nsrun.image.store import Store

    return text.json([Store(state).inspect(word) for word in operands])


def history(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun.cli import text
    from nsrun.image.store import Store

    found = Store(state).history(operands[0])
    if options.get("json"):
        return text.json(found)
    rows = [
        [
            row["diff_id"][7:19] or "-",
            _line(row["created"][:10]) or "-",
            size_text(row["size"]),
            _line(row["created_by"] or row["comment"]),
        ]
        for row in found
    ]
    return text.table(["LAYER", "CREATED", "SIZE", "CREATED BY"], rows)


def _line(text: str) -> str:
    """The beginning of a text of several lines, as one line of a table."""
    return "".join(c if c.isprintable() else " " for c in text)[:80]


def unpack(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun.image import bundle
    from nsrun.lifecycle import need_root

    need_root()
    bundle.unpack(state, operands[0], operands[1])
    say.out(operands[1])
    return 0


def tag(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun.image import references
    from nsrun.image.store import Store
    from nsrun.lifecycle import need_root

    need_root()
    say.out(references.familiar(Store(state).tag(operands[0], operands[1])))
    return 0


def rm(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun.image.store import Store
    from nsrun.lifecycle import need_root

    need_root()
    code = 0
    for word in operands:
        try:
            for line in Store(state).remove(word, bool(options.get("force")))[0]:
                say.out(line)
        except NsrunError as error:
            say.err(f"nsrun: {error.message}")
            if error.hint:
                say.err(f"hint: {error.hint}")
            code = code or error.exit_code
    return code


def prune(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun.image.store import Store
    from nsrun.lifecycle import need_root

    need_root()
    store = Store(state)
    removed, freed = store.prune(bool(options.get("all")))
    for line in removed:
        say.out(line)
    if store.names_were_lost():
        say.err(
            "names of images were lost: those without a name stay; nsrun image tag ID NAME, or: nsrun image prune -a"
        )
    say.err(f"freed {size_text(freed)}")
    return 0
