"""The commands of `nsrun image`: a thin face over nsrun.image."""

from __future__ import annotations

import os
import sys

from nsrun.errors import BadInput, NsrunError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nsrun.image.unpack import Budget
    from nsrun.state import State

    Words = list[str]
    Options = dict[str, Any]


class Bar:
    """How far a load is, on a terminal's stderr; nothing elsewhere."""

    def __init__(self, what: str) -> None:
        import threading
        import time

        self.what, self.done, self.shown, self.clock = what, 0, 0.0, time.monotonic
        self.on = os.isatty(2)
        self.lock = threading.Lock()

    def __call__(self, count: int, total: int) -> None:
        if not self.on:
            return
        with self.lock:
            self.done += count
            now = self.clock()
            if now - self.shown < 0.1 and self.done < total:
                return
            self.shown = now
            share = min(self.done / total, 1.0) if total else 1.0
            bar = ("█" * int(share * 30)).ljust(30, "░")
            print(f"\r{self.what[:30]} {bar} {share:4.0%} of {size_text(total)}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.on and self.done:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def size_text(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5 or unit == "GB":
            return f"{number:.0f} {unit}" if number >= 99.5 or unit == "B" else f"{number:.3g} {unit}"
        number /= 1000
    return ""


def _budget(options: Options) -> Budget:
    from nsrun.image.unpack import Budget
    from nsrun.words import parse_size

    budget = Budget()
    if options.get("max_size"):
        budget.size = parse_size(options["max_size"], "--max-size")
    if options.get("max_ratio"):
        if not options["max_ratio"].isdigit() or int(options["max_ratio"]) < 1:
            raise UsageError(f"--max-ratio {options['max_ratio']!r} is not a number")
        budget.ratio = int(options["max_ratio"])
    return budget


def load(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun.api import need_root
    from nsrun.image import references
    from nsrun.image.documents import Platform
    from nsrun.image.source import find_images, open_source
    from nsrun.image.store import Store

    names = options.get("tag") or []
    for name in names:
        references.parse(name)
    platform, budget = Platform(options.get("platform") or ""), _budget(options)
    if operands[0] != "-" and not os.path.exists(operands[0]):
        raise BadInput(f"{operands[0]!r} does not exist", hint="a layout directory, an archive, or - for stdin")
    need_root()
    _ignore_sigpipe()
    store = Store(state)
    store.prepare()
    source = open_source(operands[0], f"{store.path}/tmp", budget)
    try:
        found = find_images(source, platform)
        if names and len(found) > 1:
            raise BadInput(f"{operands[0]} holds {len(found)} images: --tag can name only one")
        for image in found:
            kept = names or _valid_names(image.names)
            _take(store, image, kept, budget)
    finally:
        source.close()
    return 0


def _take(store: Any, image: Any, names: Words, budget: Budget) -> None:
    from nsrun.image import references

    bar = Bar(names[0] if names else image.config.digest[7:19])
    try:
        record = store.load(image, names, budget, bar)
    finally:
        bar.end()
    skipped = [s for ident in record["layers"] for s in store.layer(ident)["skipped"]]
    if skipped:
        more = ", …" if len(skipped) > 3 else ""
        print(
            f"left out {len(skipped)} device nodes: {', '.join(skipped[:3])}{more} (a member's /dev has its own)",
            file=sys.stderr,
        )
    for name in names:
        print(references.familiar(references.parse(name).name))
    if not names:
        print(record["id"])


def _valid_names(names: Words) -> Words:
    """Names out of an archive: what is no name is left out, and said."""
    from nsrun.image import references

    kept = []
    for name in names:
        try:
            if references.parse(name).tag:
                kept.append(name)
        except UsageError as error:
            print(f"warning: the archive's {error.message}; give one with --tag", file=sys.stderr)
    return list(dict.fromkeys(kept))


def _ignore_sigpipe() -> None:
    """A confined writer that ends early must be an error that we can tell, not our end."""
    import signal

    signal.signal(signal.SIGPIPE, signal.SIG_IGN)


def pull(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun.api import need_root
    from nsrun.image import pull as module
    from nsrun.image import references
    from nsrun.image.documents import Platform
    from nsrun.image.source import Directory, find_images
    from nsrun.image.store import Store

    word = operands[0].removeprefix("docker://")
    reference = references.parse(word)
    platform, budget = Platform(options.get("platform") or ""), _budget(options)
    tls = options.get("tls_verify", "true")
    if tls not in ("true", "false"):
        raise UsageError(f"--tls-verify {tls!r}: true or false")
    module.need_skopeo()
    need_root()
    _ignore_sigpipe()
    store = Store(state)
    store.prepare()
    with module.download(
        store, reference, platform, options.get("creds"), options.get("authfile"), tls == "true"
    ) as path:
        source = Directory(path)
        try:
            for image in find_images(source, platform):
                image.index = reference.digest or image.index
                _take(store, image, [reference.name] if reference.tag else [], budget)
        finally:
            source.close()
    return 0


def ls(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun.cli import text
    from nsrun.image import lookup
    from nsrun.image.store import Store

    store = Store(state)
    found = [store.describe(record) for record in lookup.records(state)]
    if options.get("json"):
        return text.json(found)
    rows = []
    for image in sorted(found, key=lambda i: i["names"] or ["~"]):
        for name in image["names"] or ["-"]:
            cells = [
                name,
                image["id"][:12],
                image["created"][:10] or "-",
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
            row["created"][:10] or "-",
            size_text(row["size"]),
            _line(row["created_by"] or row["comment"]),
        ]
        for row in found
    ]
    return text.table(["LAYER", "CREATED", "SIZE", "CREATED BY"], rows)


def _line(text: str) -> str:
    """One line for a table, without what could move a terminal's cursor."""
    return "".join(c if c.isprintable() else " " for c in text)[:80]


def unpack(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun.api import need_root
    from nsrun.image import bundle

    need_root()
    bundle.unpack(state, operands[0], operands[1])
    print(operands[1])
    return 0


def tag(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun.api import need_root
    from nsrun.image import references
    from nsrun.image.store import Store

    need_root()
    print(references.familiar(Store(state).tag(operands[0], operands[1])))
    return 0


def rm(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun.api import need_root
    from nsrun.image.store import Store

    need_root()
    code = 0
    for word in operands:
        try:
            for line in Store(state).remove(word, bool(options.get("force")))[0]:
                print(line)
        except NsrunError as error:
            print(f"nsrun: {error.message}", file=sys.stderr)
            if error.hint:
                print(f"hint: {error.hint}", file=sys.stderr)
            code = code or error.exit_code
    return code


def prune(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun.api import need_root
    from nsrun.image.store import Store

    need_root()
    removed, freed = Store(state).prune(bool(options.get("all")))
    for line in removed:
        print(line)
    print(f"freed {size_text(freed)}", file=sys.stderr)
    return 0
