# SPDX-License-Identifier: Apache-2.0
"""Find the image that a name or an id means, and what join needs of it.

This is on join's path: no json, no re, no hashlib.

    LIB/images/names.json            {"docker.io/library/mysql:8": "6f0c…"}: name → config digest
    LIB/images/records/HEX.json      the record of an image: layers, process, users (store.py writes it)
    LIB/images/layers/HEX/tree       one layer, unpacked; HEX is its chain id
"""

from __future__ import annotations

import os

from nsrun.errors import BadInput, NsrunError, UnknownError, UsageError, errno_text
from nsrun.image import shapes
from nsrun.image.references import meanings
from nsrun.schema import is_directory, open_regular, open_text, read_document
from nsrun.state import State, codec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Record = dict[str, Any]

_HEX = frozenset("0123456789abcdef")


def base(state: State) -> str:
    return f"{state.lib}/images"


REPAIR = "nsrun image prune repairs the store; then load the image again"


class Damaged(NsrunError):
    """A document of the store is not what it should be."""


def read(path: str, shape: dict[Any, Any], seen: dict[str, os.stat_result] | None = None) -> Record | None:
    """Return a document of the store (shapes.py), or None when there is none.

    `seen` gets what the file was before it was read.  Raise Damaged when it is not what it should be, and NsrunError when it can't be read.
    """
    try:
        if seen is not None:
            seen[path] = os.lstat(path)
        return codec.decode(read_document(path, shapes.MAX_BYTES), shape)
    except FileNotFoundError:
        return None
    except BadInput as error:
        raise Damaged(f"{error.message}: it is damaged", hint=REPAIR) from None
    except ValueError as error:
        raise Damaged(f"{path} is damaged: {error}", hint=REPAIR) from None
    except OSError as error:
        raise NsrunError(f"{path} can't be read: {errno_text(error.errno or 0)}", errno=error.errno or 0) from None


def names(state: State) -> dict[str, str]:
    """Return name → config digest.

    Raise Damaged also when there are images and the file is gone: then their names were lost.
    """
    path = f"{base(state)}/names.json"
    found = read(path, shapes.NAMES, state.seen)
    if found is None and records(state, []):
        raise Damaged(f"{path} is gone: the names of the images were lost", hint=REPAIR)
    return found or {}


def record(state: State, ident: str) -> Record | None:
    """Return the record of a config digest (hexadecimal digits)."""
    return read(f"{base(state)}/records/{ident}.json", shapes.RECORD, state.seen)


def records(state: State, broken: list[str]) -> list[Record]:
    """Return the records that can be read; put what is wrong with the others into `broken`."""
    try:
        files = sorted(os.listdir(f"{base(state)}/records"))
    except FileNotFoundError:
        return []
    found = []
    for file in files:
        if file.endswith(".json") and _HEX.issuperset(file[:-5]):
            try:
                found.append(record(state, file[:-5]))
            except NsrunError as error:
                broken.append(error.message)
    return [r for r in found if r]


def full_name(state: State, word: str) -> str:
    """Resolve a short name to the stored full name; "" if unknown.

    mysql is docker.io/library/mysql:latest, or else localhost/mysql:latest.
    """
    return _full_name(names(state), word)


def _full_name(kept: dict[str, str], word: str) -> str:
    return next((name for name in meanings(word) if name in kept), "")


def find(state: State, word: str) -> Record:
    """Return the record of a name, name@digest, digest or unambiguous beginning of an id.

    Raise UnknownError, which lists the images, when there is none.
    """
    if not word:
        raise UsageError("the name of the image is empty", hint="is a shell variable unset?")
    whole_id = word.removeprefix("sha256:")
    if len(whole_id) == 64 and _HEX.issuperset(whole_id) and (found := record(state, whole_id)):
        return found  # the whole id finds it even if the names were lost
    kept = names(state)
    if (name := _full_name(kept, word)) and (found := record(state, kept[name])):
        return found
    state.unseen = "the list of all images"
    path, at, digest = word.partition("@")
    hexadecimal = (digest if at else word).removeprefix("sha256:")
    matching: list[Record] = []
    broken: list[str] = []
    if hexadecimal and _HEX.issuperset(hexadecimal) and (len(hexadecimal) >= 4 or at):
        for candidate in records(state, broken):
            ids = [candidate["id"], *(d.removeprefix("sha256:") for d in candidate["digests"])]
            if any(i == hexadecimal if at else i.startswith(hexadecimal) for i in ids):
                matching.append(candidate)
    if len(matching) == 1:
        return matching[0]
    if matching:
        several = ", ".join(f"{r['id'][:12]}" for r in matching)
        raise UnknownError(f"several image ids begin with {word!r}", hint=f"give more digits: {several}")
    from nsrun.image.references import familiar

    if broken:
        raise NsrunError(f"no image {word!r} among those that can be read", hint="; ".join(broken[:3]))
    known = sorted(map(familiar, kept))
    hint = f"known images: {', '.join(known[:20])}" if known else "there are no images"
    raise UnknownError(f"no image {word!r}", hint=f"{hint}; nsrun image pull {word}, or nsrun image load FILE")


def trees(state: State, found: Record) -> list[str]:
    """Return the directories of its layers, from the top down.  Raise NsrunError when one is incomplete."""
    for layer in found["layers"]:
        if not is_whole(state, layer):
            raise NsrunError(
                f"layer {layer[:12]} of the image is damaged (did the machine crash while it was written?)",
                hint="load the image again: nsrun image load, or nsrun image pull",
            )
    return [f"{base(state)}/layers/{layer}/tree" for layer in reversed(found["layers"])]


def is_whole(state: State, layer: str) -> bool:
    """Return whether this layer is complete.  The first use after a reboot checks it, any other costs one stat(2)."""
    path = f"{base(state)}/layers/{layer}"
    try:
        with open_text(f"{path}/unsynced") as file:
            boot = file.read(64)
    except FileNotFoundError:
        return is_directory(f"{path}/tree")
    except OSError as error:
        raise NsrunError(f"{path}/unsynced can't be read: {errno_text(error.errno or 0)}") from None
    if boot and boot == state.boot:
        return True
    if os.geteuid():  # an ordinary user may enter some of their layer's directories only in a user namespace
        from nsrun.host import userns

        return userns.call(state.root, "_whole", layer) == b"whole\n"
    from nsrun.host.trees import measure

    try:
        note = read(f"{path}/layer.json", shapes.LAYER) or {}
    except Damaged:
        return False
    try:
        there = measure(f"{path}/tree")
    except FileNotFoundError:
        return False
    except OSError as error:
        raise NsrunError(f"{path}/tree can't be read: {errno_text(error.errno or 0)}", errno=error.errno or 0) from None
    if there != (note.get("files"), note.get("size")):
        return False
    try:
        os.unlink(f"{path}/unsynced")
    except FileNotFoundError:
        pass  # another member, started at the same time, was faster
    return True


def empty_root(state: State) -> str:
    """Return an empty directory: the root of an image without layers."""
    path = f"{base(state)}/layers/none/tree"
    if not is_directory(path):
        os.makedirs(path, exist_ok=True)
        os.chmod(path, 0o755)  # whatever the umask is, since it becomes the root of members
    return path


def share_store(state: State) -> int:
    """Take a shared flock(2): while the descriptor is open, no layer is removed.  Return -1 when there is no store."""
    import fcntl

    try:
        fd = open_regular(f"{base(state)}/lock")
    except FileNotFoundError:
        return -1
    fcntl.flock(fd, fcntl.LOCK_SH)
    return fd
