# SPDX-License-Identifier: Apache-2.0
"""The commands of `nsrun image`: a thin face over nsrun.image."""

from __future__ import annotations

import os

from nsrun.cli import say, text
from nsrun.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nsrun.cli.commands import Call
    from nsrun.image.budget import Budget


class Bar:
    """The progress of a load, on stderr if that is a terminal.  `with Bar() as bar: bar(what, bytes more, bytes in all)`"""

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
            say.progress(f"{what[:30]} {bar} {share:4.0%} of {text.size(total)}")

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self.shown:
            say.progress()


def _budget(call: Call) -> Budget:
    from nsrun.image.budget import Budget
    from nsrun.spec.options import parse_count, parse_size

    budget, options = Budget(), call.options
    if options.get("max_size"):
        budget.size = parse_size(options["max_size"], "--max-size")
    if options.get("max_ratio"):
        budget.ratio = parse_count(options["max_ratio"], "--max-ratio", "a number", 1)
    return budget


def load(call: Call) -> int:
    from nsrun.image import intake
    from nsrun.lifecycle import need_root

    need_root()
    _ignore_sigpipe()
    say.failures_of_threads()
    with Bar() as bar:
        taken = intake.load(
            call.state,
            call.operands[0],
            call.options.get("tag") or [],
            call.options.get("platform") or "",
            _budget(call),
            bar,
        )
    return _tell(taken)


def _tell(taken: Any) -> int:
    """Print the names of images, or the id of one without a name; warnings go to stderr."""
    from nsrun.image import references

    for image in taken:
        for warning in image.warnings:
            say.err(f"warning: {warning}")
        if image.skipped:
            more = ", …" if len(image.skipped) > 3 else ""
            say.err(
                f"left out {len(image.skipped)} device nodes: {', '.join(image.skipped[:3])}{more} (a member has a /dev of its own)"
            )
        for line in map(references.familiar, image.names or [image.id]):
            say.out(line)
    return 0


def _ignore_sigpipe() -> None:
    """Have a confined writer that ends early cause an error that we can report, and not kill us."""
    import signal

    signal.signal(signal.SIGPIPE, signal.SIG_IGN)


def pull(call: Call) -> int:
    from nsrun.image import intake
    from nsrun.lifecycle import need_root

    options, budget = call.options, _budget(call)
    if any(0xD800 <= ord(c) <= 0xDFFF for c in options.get("creds") or ""):
        raise UsageError("--creds is not valid UTF-8")
    need_root()
    _ignore_sigpipe()
    say.failures_of_threads()
    with Bar() as bar:
        taken = intake.pull(
            call.state,
            call.operands[0],
            options.get("platform") or "",
            options.get("creds"),
            options.get("authfile"),
            options.get("tls_verify", "true") == "true",
            budget,
            bar,
        )
    return _tell(taken)


def ls(call: Call) -> int:
    from nsrun.image.store import Store

    broken: list[str] = []
    found = Store(call.state).all(broken)
    for line in broken:
        say.err(f"warning: {line[:400]}")
    if call.options.get("json"):
        return text.json(found)
    rows = []
    for image in sorted(found, key=lambda i: i["names"] or ["~"]):
        for name in image["names"] or ["-"]:
            cells = [
                name,
                image["id"][:12],
                _line(image["created"][:10]) or "-",
                str(len(image["layers"])),
                text.size(image["size"]),
            ]
            rows.append([*cells, ",".join(image["used_by"]) or "-"])
    return text.table(["NAME", "ID", "CREATED", "LAYERS", "SIZE", "USED BY"], rows)


def inspect(call: Call) -> int:
    from nsrun.image.store import Store

    return text.json([Store(call.state).inspect(name) for name in call.operands])


def history(call: Call) -> int:
    from nsrun.image.store import Store

    found = Store(call.state).history(call.operands[0])
    if call.options.get("json"):
        return text.json(found)
    rows = [
        [
            row["diff_id"][7:19] or "-",
            _line(row["created"][:10]) or "-",
            text.size(row["size"]),
            _line(row["created_by"] or row["comment"]),
        ]
        for row in found
    ]
    return text.table(["LAYER", "CREATED", "SIZE", "CREATED BY"], rows)


def _line(lines: str) -> str:
    """Return the beginning of a text of several lines as one line of a table."""
    return "".join(c if c.isprintable() else " " for c in lines)[:80]


def unpack(call: Call) -> int:
    from nsrun.image import bundle
    from nsrun.lifecycle import need_root

    need_root()
    bundle.unpack(call.state, *call.operands)
    say.out(call.operands[1])
    return 0


def tag(call: Call) -> int:
    from nsrun.image import references
    from nsrun.image.store import Store
    from nsrun.lifecycle import need_root

    need_root()
    say.out(references.familiar(Store(call.state).tag(*call.operands)))
    return 0


def rm(call: Call) -> int:
    from nsrun.image.store import Store
    from nsrun.lifecycle import need_root

    need_root()

    def one(name: str) -> None:
        for line in Store(call.state).remove(name, bool(call.options.get("force")))[0]:
            say.out(line)

    return say.each(call.operands, one, print_names=False)


def prune(call: Call) -> int:
    from nsrun.image.store import Store
    from nsrun.lifecycle import need_root

    need_root()
    store = Store(call.state)
    removed, freed = store.prune(bool(call.options.get("all")))
    for line in removed:
        say.out(line)
    if store.names_were_lost():
        say.err(
            "names of images were lost, so images without a name are kept: name them with nsrun image tag ID NAME, or remove them with nsrun image prune -a"
        )
    say.err(f"freed {text.size(freed)}")
    return 0
