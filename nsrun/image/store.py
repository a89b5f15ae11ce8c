# SPDX-License-Identifier: Apache-2.0
"""The store: what is kept of images, when it may be removed, and how it survives a crash.

    LIB/images/names.json         name → config digest
    LIB/images/records/HEX.json   one image, by the digest of its config: layers, process, users, digests
    LIB/images/blobs/sha256/HEX   its manifest and config, verbatim
    LIB/images/layers/HEX/        one layer, by its chain id: tree/ and layer.json; shared by all images that have it
    LIB/images/tmp/…/             in the making; locked by its maker
    LIB/images/lock               shared: nothing may be removed; exclusive: for removing
    LIB/images/names.lock         for changing names.json

A layer appears by one rename; an image by the rename of its record; a name by the rename of names.json.  They happen in
this order, so that whatever has a name is complete.  What a kill leaves behind is below tmp, unlocked, and the next
command sweeps it; or it is a layer without an image, which `prune` removes, or the next load of the image uses.

Documents are fsynced, layers are not: that would cost more than unpacking.  A layer is marked `unsynced` with the boot
in which it was written; at the first use in another boot its files are counted and measured once (after a power cut,
ordered file systems show unwritten files as too short).  A layer that is short is dropped, and loading the image
restores it.
"""

from __future__ import annotations

import os
from errno import EEXIST, ENOTEMPTY

from nsrun import kernel
from nsrun.errors import BadInput, BrokenNote, NsrunError, UsageError, errno_text
from nsrun.image import lookup, references, shapes
from nsrun.image.unpack import Blob, Layer, View, unpack_all
from nsrun.schema import is_directory, is_there, open_regular, read_document
from nsrun.state import State, codec, make_directory, new_id, remove_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from typing import Any

    from nsrun.image.budget import Account
    from nsrun.image.documents import Config
    from nsrun.image.source import Found

    Record = dict[str, Any]


MAX_NAMES = 10_000
_LOST = "end the members first (nsrun ls; nsrun rm -f); then nsrun pod prune --all removes what they wrote"
BROKEN = ".broken"  # suffix of a names.json that could not be read; the file is empty when that was gone


class Store:
    """The images below one state directory."""

    def __init__(self, state: State) -> None:
        self.state, self.path = state, lookup.base(state)

    # ---- files -----------------------------------------------------------------------------------------

    def prepare(self) -> None:
        for part in ("", "/records", "/blobs", "/blobs/sha256", "/layers", "/tmp"):
            make_directory(f"{self.path}{part}")
        os.chmod(self.state.lib, 0o700)
        os.close(open_regular(f"{self.path}/lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW))
        if not is_there(f"{self.path}/names.json") and not os.listdir(f"{self.path}/records"):
            self._name("", [])

    def _lock(self, name: str, exclusive: bool = True) -> int:
        import fcntl

        fd = open_regular(f"{self.path}/{name}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _write(self, path: str, data: bytes) -> None:
        """Write, fsync and rename."""
        tmp = f"{path}.{new_id()}.tmp"
        fd = os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(tmp, path)
        except BaseException:
            os.unlink(tmp)
            raise
        self._sync_directory(os.path.dirname(path))

    def _sync_directory(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _blob(self, data: bytes) -> str:
        from nsrun.image.documents import digest_of

        digest = digest_of(data)
        path = f"{self.path}/blobs/sha256/{digest[7:]}"
        if not is_there(path):
            self._write(path, data)
        return digest

    def blob(self, digest: str) -> bytes:
        if not references.is_digest(digest):
            raise BadInput(f"{digest!r} is not a digest")
        from nsrun.image.documents import MAX_DOCUMENT

        try:
            return read_document(f"{self.path}/blobs/sha256/{digest[7:]}", MAX_DOCUMENT)
        except OSError as error:
            raise NsrunError(
                f"blob {digest[:19]}… of the store can't be read: {errno_text(error.errno or 0)}",
                hint=lookup.REPAIR,
                errno=error.errno or 0,
            ) from None

    def config(self, ident: str) -> Config:
        """Return the config of an image, checked as when it was loaded."""
        from nsrun.image.documents import Config

        return Config(self.blob(f"sha256:{ident}"), f"the config of image {ident[:12]}")

    def layer_path(self, ident: str) -> str:
        return f"{self.path}/layers/{ident}"

    def layer(self, ident: str) -> Record:
        """Return the document of a layer: diff_id, size (bytes of its files), entries, skipped (device nodes left out)."""
        try:
            found = lookup.read(f"{self.layer_path(ident)}/layer.json", shapes.LAYER)
        except NsrunError:
            found = None  # this is only for lists; whoever uses the layer checks that it is complete
        return found or {"diff_id": "", "size": 0, "entries": 0, "skipped": []}

    # ---- loading ---------------------------------------------------------------------------------------

    def missing(self, found: Found) -> int:
        """Return how many layers, from the bottom, are in the store: the rest must be unpacked."""
        for number, digest in enumerate(found.config.chain):
            if not lookup.is_whole(self.state, digest[7:]):
                return number
        return len(found.config.chain)

    def load(
        self,
        found: Found,
        names: Iterable[str],
        account: Account,
        tick: Callable[[int, int], None] = lambda n, total: None,
    ) -> Record:
        """Take one image in and return its record.  `tick(bytes, total)` reports how much of its layers was read.

        Raise BadInput, which names the layer and the entry; the store is then as before.
        """
        kept = [references.parse(name) for name in names]
        chain = [digest[7:] for digest in found.config.chain]
        held = self._lock("lock", exclusive=False)
        try:
            self.sweep()
            present = self.missing(found)
            if present < len(chain):
                self._unpack(found, chain, present, account, tick)
            record = lookup.record(self.state, found.config.digest[7:]) or self._record(found, chain)
            digests = dict.fromkeys([*record["digests"], self._blob(found.manifest), *filter(None, [found.index])])
            if list(digests) != record["digests"] or not is_there(self._record_path(record["id"])):
                record["digests"] = list(digests)
                self._blob(found.config.data)
                self._save(record)
            self._name(record["id"], [reference.name for reference in kept if reference.tag])
        finally:
            os.close(held)
        return record

    def _unpack(
        self, found: Found, chain: list[str], present: int, account: Account, tick: Callable[[int, int], None]
    ) -> None:
        """Unpack the layers from `present` on and move them into place."""
        with Workshop(self) as shop:
            blobs: list[Blob] = []
            try:
                layers = []
                for number in range(present, len(chain)):
                    blobs.append(found.layer(number))
                    directory = f"{shop.path}/{number}"
                    os.mkdir(directory, 0o700)
                    layers.append(Layer(number + 1, blobs[-1], found.config.diff_ids[number], directory))
                total = sum(blob.size for blob in blobs)
                beneath = [f"{self.layer_path(c)}/tree" for c in reversed(chain[:present])]
                unpack_all(layers, beneath, account, lambda n: tick(n, total))
                for layer in layers:
                    note = {
                        "diff_id": layer.diff_id,
                        "size": layer.bytes,
                        "files": layer.files,
                        "entries": layer.charged[1],
                        "skipped": layer.skipped,
                    }
                    self._write(f"{layer.directory}/layer.json", codec.encode(note))
                    self._write(f"{layer.directory}/unsynced", self.state.boot.encode())
                for number, layer in enumerate(layers, present):
                    try:
                        os.rename(layer.directory, self.layer_path(chain[number]))
                    except OSError as error:
                        if error.errno not in (EEXIST, ENOTEMPTY):
                            raise
                        # if it is complete, another process was faster, with the same bytes
                        if not lookup.is_whole(self.state, chain[number]):
                            os.rename(self.layer_path(chain[number]), f"{shop.path}/broken{number}")
                            os.rename(layer.directory, self.layer_path(chain[number]))
                self._sync_directory(f"{self.path}/layers")
            finally:
                for blob in blobs:
                    blob.close()

    def _record_path(self, ident: str) -> str:
        return f"{self.path}/records/{ident}.json"

    def _save(self, record: Record) -> None:
        self._write(self._record_path(record["id"]), codec.encode(record))

    def _record(self, found: Found, chain: list[str]) -> Record:
        from nsrun.state import timestamp

        document, process = found.config.document, found.config.process
        keys = (
            "Entrypoint",
            "Cmd",
            "Env",
            "WorkingDir",
            "User",
            "StopSignal",
            "Volumes",
            "ExposedPorts",
            "Labels",
            "Healthcheck",
            "Shell",
        )
        created = document.get("created")
        return {
            "id": found.config.digest[7:],
            "digests": [],
            "layers": chain,
            "process": {k: process[k] for k in keys if process.get(k)},
            "users": self._users(chain),
            "created": created if isinstance(created, str) else "",
            "loaded": timestamp(),
            **found.config.platform,
        }

    def _users(self, chain: list[str]) -> Record:
        """Return passwd and group of the image, in which join looks names up, or why they can't be read."""

        users: Record = {}
        with View([f"{self.layer_path(c)}/tree" for c in reversed(chain)]) as view:
            for key in ("passwd", "group"):
                try:
                    users[key] = kernel.read_in_root_at(view.fd, f"/etc/{key}") if view.fd >= 0 else ""
                except BadInput as error:
                    users[key], users["error"] = "", error.message
        return users

    # ---- names -----------------------------------------------------------------------------------------

    def _name(self, ident: str, names: Iterable[str], remove: Iterable[str] = ()) -> None:
        lock = self._lock("names.lock")
        try:
            kept = lookup.names(self.state)
            changed = {name: at for name, at in kept.items() if name not in set(remove)}
            changed.update(dict.fromkeys(names, ident))
            if len(changed) > max(MAX_NAMES, len(kept)):
                raise BadInput(f"the store has more than {MAX_NAMES} names", hint="nsrun image rm NAME…")
            path = f"{self.path}/names.json"
            if changed != kept or not is_there(path):
                self._write(path, codec.encode(dict(sorted(changed.items()))))
        finally:
            os.close(lock)

    def tag(self, word: str, new: str) -> str:
        """Give an image one more name; return the full name."""
        name = self.new_name(new)
        held = lookup.share_store(self.state)
        try:
            self._name(lookup.find(self.state, word)["id"], [name])
        finally:
            if held >= 0:
                os.close(held)
        return name

    def new_name(self, new: str) -> str:
        """Return the full form of a name that an image may get.  Raise UsageError."""
        reference = references.parse(new)
        if reference.digest:
            raise UsageError(f"{new!r}: a new name can't contain a digest")
        return reference.name

    def names_were_lost(self) -> bool:
        """Return whether there are images that may have had a name which a prune could not read."""
        return is_there(f"{self.path}/names.json{BROKEN}")

    def names_of(self, ident: str) -> list[str]:
        return [name for name, at in lookup.names(self.state).items() if at == ident]

    # ---- removing --------------------------------------------------------------------------------------

    def users_of(self, ident: str) -> list[str]:
        """Return the running members whose root is an image.  Raise BadInput when that can't be known."""
        return _carried(self._in_use(), ident)

    def _in_use(self) -> list[Mapping[str, Any]]:
        """Return `about` of every member whose data may be in use, from beside the data, whatever the notes say.

        Raise BadInput when it can't be known which layers are in use.
        """
        state, found = self.state, []
        for ident in state.idents():
            if not state.is_free(ident):
                found.append(self._about(ident))
        return [about for about in found if about]

    def _about(self, ident: str) -> Mapping[str, Any] | None:
        """Return `about` beside data in use; None when it has gone meanwhile.  Raise BadInput when it was lost."""
        import time

        for _ in range(100):  # the maker of a member writes it right after the directory
            try:
                if found := self.state.about(ident):
                    return found
            except BrokenNote as error:
                raise BadInput(f"{error.message}; nothing says which image a member uses", hint=_LOST) from None
            if self.state.is_free(ident) or not _entries(self.state.upper(ident)):
                return None  # if it is empty, a removal was killed at its end, or its maker holds the store's lock
            time.sleep(0.01)
        raise BadInput(
            f"{self.state.upper(ident)}/about is gone: a member may run, and nothing says which image it uses",
            hint=_LOST,
        )

    def remove(self, word: str, force: bool = False) -> tuple[list[str], int]:
        """Remove a name, and with its last name the image; return (what was removed, bytes freed).

        Raise what `to_remove` raises.
        """
        self.prepare()
        lock = self._lock("lock")
        try:
            ident, names, name = self.to_remove(word, force)
            if name:
                self._name(ident, [], [name])
                return [references.familiar(name)], 0
            self._remove_image(ident)
            return [*map(references.familiar, names), ident], self._free_layers()
        finally:
            os.close(lock)

    def to_remove(self, word: str, force: bool, gone: Collection[str] = ()) -> tuple[str, list[str], str]:
        """Return (id of the image, its names, the one name that goes alone; "" when the whole image goes).

        `gone` are names that were removed just before.  Raise BadInput when a running member uses the image, or when an id has several names and not `force`.
        """
        ident = lookup.find(self.state, word)["id"]
        names = [name for name in self.names_of(ident) if name not in gone]
        name = lookup.full_name(self.state, word)
        if name and len(names) > 1:
            return ident, names, name
        if len(names) > 1 and not force:
            raise BadInput(
                f"image {ident[:12]} has several names: {', '.join(map(references.familiar, names))}",
                hint="remove them one by one, or: nsrun image rm -f",
            )
        if users := self.users_of(ident):
            raise BadInput(
                f"image {word!r} is used by running members: {', '.join(users)}",
                hint=f"stop them first: nsrun rm -f {' '.join(users)}",
            )
        return ident, names, ""

    def _remove_image(self, ident: str) -> None:
        """Remove names, record and blobs, in this order: the reverse of how they came."""
        record = lookup.record(self.state, ident) or {"digests": []}
        self._name("", [], self.names_of(ident))
        _remove(self._record_path(ident))
        broken: list[str] = []
        others = {d for r in lookup.records(self.state, broken) for d in r["digests"]}
        for digest in [f"sha256:{ident}", *record["digests"]]:
            if digest not in others and not broken:
                _remove(f"{self.path}/blobs/sha256/{digest[7:]}")

    def _free_layers(self) -> int:
        """Remove the layers that no image has and no running member uses; return the bytes of their files."""
        broken: list[str] = []
        wanted = {layer for record in lookup.records(self.state, broken) for layer in record["layers"]}
        if broken:
            return 0  # the layers may be those of an image that can't be read now
        for about in self._in_use():
            wanted.update(about["layers"])
        freed = 0
        with Workshop(self) as shop:
            for ident in os.listdir(f"{self.path}/layers"):
                if ident not in wanted:
                    freed += self.layer(ident)["size"]
                    os.rename(self.layer_path(ident), f"{shop.path}/{ident}")
        return freed

    def prune(self, everything: bool = False) -> tuple[list[str], int]:
        """Remove images without a name, and what crashes left behind.

        With `everything`, remove all images that no running member uses.  When names were lost, images without one stay
        unless `everything` is given.
        """
        self.prepare()
        lock = self._lock("lock")
        try:
            removed = []
            freed = self.sweep()
            named = self._repair()
            for record in lookup.records(self.state, []):
                ident, names = record["id"], self.names_of(record["id"])
                if (everything or (named and not names)) and not self.users_of(ident):
                    self._remove_image(ident)
                    removed += [*map(references.familiar, names), ident]
            if everything or all(self.names_of(record["id"]) for record in lookup.records(self.state, [])):
                remove_tree(f"{self.path}/names.json{BROKEN}")  # no image that is left can have lost its name
            return removed, freed + self._free_layers()
        finally:
            os.close(lock)

    def _repair(self) -> bool:
        """Remove records that can't be read or whose layers are gone, names without a record, and half-written files.

        Return False when the names themselves were lost: then no image is removed only because it has none, now or
        later.
        """
        for part in ("", "/records", "/blobs/sha256"):
            for file in os.listdir(f"{self.path}{part}"):
                if file.endswith(".tmp"):
                    _remove(f"{self.path}{part}/{file}")
        path = f"{self.path}/names.json"
        try:
            lookup.names(self.state)
        except lookup.Damaged:
            if is_there(path):
                remove_tree(f"{path}{BROKEN}")
                os.rename(path, f"{path}{BROKEN}")
            elif not self.names_were_lost():
                self._write(f"{path}{BROKEN}", b"")
            self._write(path, codec.encode({}))
        named = not self.names_were_lost()
        for file in os.listdir(f"{self.path}/records"):
            try:
                record = lookup.record(self.state, file[:-5])
                whole = bool(record) and all(lookup.is_whole(self.state, layer) for layer in record["layers"])  # type: ignore[index]
            except lookup.Damaged:
                whole = False
            except NsrunError:
                continue  # it can't be read, which does not mean that it is gone
            if not whole:
                _remove(f"{self.path}/records/{file}")
        lost = [n for n, at in lookup.names(self.state).items() if not is_there(self._record_path(at))]
        if lost:
            self._name("", [], lost)
        broken: list[str] = []
        known = {d for r in lookup.records(self.state, broken) for d in (f"sha256:{r['id']}", *r["digests"])}
        for file in os.listdir(f"{self.path}/blobs/sha256"):
            if f"sha256:{file}" not in known and not broken:
                _remove(f"{self.path}/blobs/sha256/{file}")
        return named

    def sweep(self) -> int:
        """Remove what a killed nsrun left below tmp; return the bytes freed."""
        import fcntl

        from nsrun.host.trees import measure

        freed = 0
        for entry in os.listdir(f"{self.path}/tmp"):
            path = f"{self.path}/tmp/{entry}"
            try:
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue  # its maker lives
            else:
                try:
                    freed += measure(path)[1]
                except OSError:
                    pass  # the size is only for the report
                remove_tree(path)
            finally:
                os.close(fd)
        return freed

    # ---- listing ---------------------------------------------------------------------------------------

    def all(self, broken: list[str]) -> list[Record]:
        """Return every image that can be read, described.

        `broken` gets what is wrong with the others, and with the names.
        """
        records = lookup.records(self.state, broken)
        try:
            names = lookup.names(self.state)
        except NsrunError as error:
            broken.append(error.message)
            names = {}
        try:
            used = self._in_use() if records else []
        except NsrunError as error:
            broken.append(error.message)
            used = []
        return [self._describe(record, names, used) for record in records]

    def describe(self, record: Record) -> Record:
        """Return one image as `image ls --json` and the library show it.

        Raise BadInput when its members can't be known.
        """
        return self._describe(record, lookup.names(self.state), self._in_use())

    def _describe(self, record: Record, names: dict[str, str], used: list[Mapping[str, Any]]) -> Record:
        layers = [self.layer(ident) for ident in record["layers"]]
        return {
            "id": record["id"],
            "names": [references.familiar(name) for name, at in names.items() if at == record["id"]],
            "digests": record["digests"],
            "created": record["created"],
            "loaded": record["loaded"],
            "os": record["os"],
            "architecture": record["architecture"],
            "size": sum(layer["size"] for layer in layers),
            "layers": [
                {"chain_id": f"sha256:{ident}", "diff_id": layer["diff_id"], "size": layer["size"], "entries": layer["entries"], "skipped": layer["skipped"]}
                for ident, layer in zip(record["layers"], layers, strict=True)
            ],
            "used_by": _carried(used, record["id"]),
        }  # fmt: skip

    def inspect(self, word: str) -> Record:
        """Return the same, with the image's own config."""
        record = lookup.find(self.state, word)
        return {**self.describe(record), "config": self.config(record["id"]).document}

    def history(self, word: str) -> list[Record]:
        """Return rows from the top down: time, command, size.

        Layers that are missing in the history are shown, too.
        """
        record = lookup.find(self.state, word)
        document = self.config(record["id"]).document
        layers = list(record["layers"])
        rows: list[Record] = []
        for entry in document.get("history") or []:
            ident = layers.pop(0) if layers and not entry.get("empty_layer") else ""
            rows.append(self._history_row(entry, ident))
        rows += [self._history_row({}, ident) for ident in layers]
        return rows[::-1]

    def _history_row(self, entry: Record, ident: str) -> Record:
        layer = self.layer(ident) if ident else {"diff_id": "", "size": 0}
        texts = {
            key: entry[key] if isinstance(entry.get(key), str) else "" for key in ("created", "created_by", "comment")
        }
        return {**texts, "diff_id": layer["diff_id"], "size": layer["size"], "empty_layer": not ident}


class Workshop:
    """A directory below tmp, locked while it is in use and then removed: `with Workshop(store) as shop: shop.path`."""

    def __init__(self, store: Store) -> None:
        self.path = f"{store.path}/tmp/{new_id()}"

    def __enter__(self) -> Workshop:
        import fcntl

        for _ in range(8):
            os.mkdir(self.path, 0o700)
            try:
                self.fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # a sweep removed the directory while it was empty and unlocked
            fcntl.flock(self.fd, fcntl.LOCK_EX)
            if is_directory(self.path):
                return self
            os.close(self.fd)
        raise BadInput(f"another process removes {self.path} again and again")

    def __exit__(self, *_: object) -> None:
        remove_tree(self.path)
        os.close(self.fd)


def _carried(used: list[Mapping[str, Any]], ident: str) -> list[str]:
    return [about["name"] for about in used if about["image_id"] == ident]


def _entries(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []


def _remove(path: str) -> None:
    """Remove a document, or whatever took its place.  Raise NsrunError when it can't be removed."""
    from nsrun.host.trees import remove

    if why := remove(path):
        raise NsrunError(f"can't remove {why[0]}")
