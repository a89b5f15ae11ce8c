# SPDX-License-Identifier: Apache-2.0
"""Take images in from a file, a directory, stdin or a registry: the command line and the library both use this."""

from __future__ import annotations

from nsrun.errors import BadInput, UsageError
from nsrun.image import references
from nsrun.image.budget import Account, Budget
from nsrun.image.documents import Platform
from nsrun.image.source import Directory, find_images, open_source
from nsrun.image.store import Store
from nsrun.schema import exists

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from nsrun.image.source import Found
    from nsrun.state import State

    Progress = Callable[[str, int, int], None]  # what, bytes more, bytes in all


def _quiet(what: str, count: int, total: int) -> None:
    """Show no progress."""


class Taken:
    """One image that was taken in: its record, its full names, the entries that were left out, and warnings."""

    def __init__(self, store: Store, record: dict[str, Any], names: list[str], warnings: list[str]) -> None:
        self.id: str = record["id"]
        self.names = [references.parse(name).name for name in names]
        self.skipped = [path for ident in record["layers"] for path in store.layer(ident)["skipped"]]
        self.warnings = warnings


def load(
    state: State,
    path: str,
    names: Iterable[str] = (),
    platform: str = "",
    budget: Budget | None = None,
    progress: Progress = _quiet,
) -> list[Taken]:
    """Load the images of a layout directory, an archive, or "-" (stdin); `names` replace those in it.

    Raise UsageError for a bad name.  Raise BadInput, which names layer and entry, when something is wrong with the
    image; then nothing of it is kept.
    """
    given, fits = list(names), Platform(platform)
    for name in given:
        references.parse(name)
    if path != "-" and not exists(path, "image"):
        raise BadInput(f"{path!r} does not exist", hint="a layout directory, an archive, or - for stdin")
    store = Store(state)
    store.prepare()
    account = Account(budget or Budget())
    source = None
    try:
        source = open_source(path, f"{store.path}/tmp", account)
        found = find_images(source, fits)
        if given and len(found) > 1:
            raise BadInput(f"{path} holds {len(found)} images: --tag can name only one")
        taken = []
        for image in found:
            kept, warnings = (given, []) if given else _valid(image.names)
            taken.append(_take(store, image, kept, warnings, account, progress))
        return taken
    finally:
        if source:
            source.close()
        account.close()


def pull(
    state: State,
    word: str,
    platform: str = "",
    creds: str | None = None,
    authfile: str | None = None,
    tls: bool = True,
    budget: Budget | None = None,
    progress: Progress = _quiet,
) -> list[Taken]:
    """Pull an image from a registry, through skopeo.  Raise NsrunError with the registry's message."""
    from nsrun.image.pull import need_skopeo

    reference, fits = references.parse(word.removeprefix("docker://")), Platform(platform)
    need_skopeo()
    store = Store(state)
    store.prepare()
    account = Account(budget or Budget())
    try:
        return _pulled(store, reference, fits, creds, authfile, tls, account, progress)
    finally:
        account.close()


def _pulled(
    store: Store,
    reference: references.Reference,
    fits: Platform,
    creds: str | None,
    authfile: str | None,
    tls: bool,
    account: Account,
    progress: Progress,
) -> list[Taken]:
    from nsrun.image.pull import download

    with download(store, reference, fits, creds, authfile, tls, account) as path:
        source = Directory(path, account)
        try:
            taken = []
            for image in find_images(source, fits):
                image.index = reference.digest or image.index
                kept = [reference.name] if reference.tag else []
                taken.append(_take(store, image, kept, [], account, progress))
            return taken
        finally:
            source.close()


def _take(
    store: Store, image: Found, names: list[str], warnings: list[str], account: Account, progress: Progress
) -> Taken:
    what = names[0] if names else image.config.digest[7:19]
    record = store.load(image, names, account, lambda count, total: progress(what, count, total))
    return Taken(store, record, names, warnings)


def _valid(names: list[str]) -> tuple[list[str], list[str]]:
    """Return the valid names of an archive, and warnings about the others."""
    kept, warnings = [], []
    for name in names:
        try:
            if references.parse(name).tag:
                kept.append(name)
        except UsageError as error:
            warnings.append(f"the archive's {error.message[:200]}; give one with --tag")
    more = [f"and {len(warnings) - 5} more names that are invalid"] if len(warnings) > 6 else []
    return list(dict.fromkeys(kept)), warnings[:5] + more if more else warnings
