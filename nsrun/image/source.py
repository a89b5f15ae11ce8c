# SPDX-License-Identifier: Apache-2.0
"""The sources of images: a layout directory, or an archive of one (OCI, or `docker save`), as names → bytes.

nsrun-unpack, confined, reads an archive's headers; only names, offsets and sizes arrive here.  Nothing is copied: a
layer's blob is a part of the archive's file.  A stream (stdin, a compressed archive) is first written to an unnamed
file of the store.

OCI image-spec image-layout.md; `docker save`: manifest.json, [{"Config", "RepoTags", "Layers"}].
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import stat
from errno import ENOENT

from nsrun import kernel
from nsrun._protocol import UNPACK_FAILED, UNPACK_FILE, UNPACK_LINK
from nsrun.errors import BadInput, KernelError
from nsrun.image import documents
from nsrun.image.budget import Account, Budget
from nsrun.image.documents import Config, Descriptor, Manifest, Platform
from nsrun.image.unpack import Blob, Program, _high, plain
from nsrun.schema import is_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Source:
    """Names → bytes.  `open` returns a Blob, which its caller closes."""

    what = ""  # for messages
    stem = ""  # for an image whose name is only a tag
    account: Account

    def open(self, name: str) -> Blob:
        """Return the regular file of this name.  Raise BadInput when there is none."""
        raise NotImplementedError

    def has(self, name: str) -> bool:
        try:
            self.open(name).close()
        except BadInput:
            return False
        return True

    def small(self, name: str) -> bytes:
        blob = self.open(name)
        try:
            if blob.size > documents.MAX_DOCUMENT:
                raise BadInput(f"{self.what}: {name} is larger than {documents.MAX_DOCUMENT >> 20} MiB")
            self.account.document(blob.size)
            data = b""
            while len(data) < blob.size:
                piece = os.pread(blob.fd, blob.size - len(data), blob.offset + len(data))
                if not piece:
                    raise BadInput(f"{self.what}: {name} is cut off")
                data += piece
            return data
        finally:
            blob.close()

    def blob(self, descriptor: Descriptor, what: str) -> Blob:
        blob = self.open(f"blobs/sha256/{descriptor.digest[7:]}")
        if blob.size != descriptor.size:
            blob.close()
            raise BadInput(f"{what} ({descriptor.digest}) is {blob.size} bytes, not the {descriptor.size} it should be")
        blob.digest = descriptor.digest
        return blob

    def document(self, descriptor: Descriptor, what: str) -> bytes:
        """Return a JSON blob whose size and digest have been verified."""
        if descriptor.size > documents.MAX_DOCUMENT:
            raise BadInput(f"{what} is larger than {documents.MAX_DOCUMENT >> 20} MiB")
        self.blob(descriptor, what).close()
        data = self.small(f"blobs/sha256/{descriptor.digest[7:]}")
        if documents.digest_of(data) != descriptor.digest:
            raise BadInput(f"{what}: its digest is {documents.digest_of(data)}, not {descriptor.digest}")
        return data

    def close(self) -> None:
        """Release what the source holds."""


class Directory(Source):
    def __init__(self, path: str, account: Account) -> None:
        self.account = account
        self.what, self.stem = f"layout {path!r}", posixpath.basename(os.path.abspath(path))
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def open(self, name: str) -> Blob:
        try:
            fd = kernel.open_in_root(self.fd, name, os.O_RDONLY | os.O_NONBLOCK)
        except KernelError as error:
            raise BadInput(f"{self.what} has no {name}: {error}", errno=error.errno or ENOENT) from None
        st = os.fstat(fd)
        if not stat.S_ISREG(st.st_mode):
            os.close(fd)
            raise BadInput(f"{self.what}: {name} is not a regular file")
        return Blob(fd, 0, st.st_size)

    def close(self) -> None:
        os.close(self.fd)


class Archive(Source):
    """An uncompressed tar in a seekable file."""

    def __init__(self, fd: int, what: str, stem: str, account: Account) -> None:
        self.fd, self.what, self.stem, self.account = fd, what, stem, account
        self.files: dict[str, tuple[int, int]] = {}
        self.links: dict[str, str] = {}
        program, listing = Program(), Account(Budget(size=1 << 62, entries=200_000))
        stream = _high(os.dup(fd))
        try:
            os.lseek(fd, 0, os.SEEK_SET)
            for kind, err, a, b, text, more in program.start("list", stream, -1, listing).wait():
                name, extra = os.fsdecode(text), os.fsdecode(more)
                if kind == UNPACK_FAILED:
                    raise BadInput(f"{what}: {f'entry {extra!r}: ' if extra else ''}{name}", errno=err)
                if kind == UNPACK_FILE:
                    self.files[name] = (a, b)
                    self.links.pop(name, None)
                elif kind == UNPACK_LINK:  # a symlink is relative to its directory, a hard link to the archive
                    base = posixpath.dirname(name) if err == ord("2") else ""
                    self.links[name] = posixpath.normpath(posixpath.join("/", base, extra)).lstrip("/")
                    self.files.pop(name, None)
        except BaseException:
            os.close(fd)
            raise
        finally:
            os.close(stream)
            program.close()
            listing.close()

    def open(self, name: str) -> Blob:
        asked, name = name, posixpath.normpath(f"/{name}").lstrip("/")
        for _ in range(16):
            if name in self.files:
                offset, size = self.files[name]
                return Blob(os.dup(self.fd), offset, size)
            if name not in self.links:
                break
            name = self.links[name]
        raise BadInput(f"{self.what} has no {asked}", errno=ENOENT)

    def close(self) -> None:
        os.close(self.fd)


def open_source(path: str, spool: str, account: Account) -> Source:
    """Open a layout directory, an archive, or "-" (stdin); streams are kept in an unnamed file below `spool`."""
    if path != "-" and os.path.isdir(path):
        return Directory(path, account)
    if path == "-":
        fd, what, stem = os.dup(0), "standard input", "image"
        if os.isatty(0):
            raise BadInput("standard input is a terminal", hint="nsrun image load FILE, or … | nsrun image load -")
    else:
        what, stem = f"archive {path!r}", posixpath.basename(path).split(".")[0]
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise BadInput(f"{what}: {error.strerror}", errno=error.errno or 0) from None
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            os.lseek(fd, 0, os.SEEK_SET)
            fd = _decompressed(fd, what, spool, account)
        elif path == "-" or stat.S_ISFIFO(os.fstat(fd).st_mode):
            os.set_blocking(fd, True)
            fd = _decompressed(_spooled(fd, spool, account), what, spool, account)
        else:
            raise BadInput(f"{what} is neither a file nor a directory")
    except BaseException:
        _close(fd)
        raise
    return Archive(_high(fd), what, stem, account)


def _close(fd: int) -> None:
    try:
        os.close(fd)
    except OSError:
        return


def _unnamed(spool: str) -> int:
    return os.open(spool, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)


def _spooled(fd: int, spool: str, account: Account) -> int:
    out = _unnamed(spool)
    while piece := os.read(fd, 1 << 20):
        account.spool(len(piece))
        _write(out, piece)
    os.close(fd)
    return out


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _decompressed(fd: int, what: str, spool: str, account: Account) -> int:
    """Return the same file, or an unnamed one with its plain bytes if it is compressed as a whole."""
    head = os.pread(fd, 8, 0)
    if head.startswith((b"\xfd7zXZ", b"BZh")):
        raise BadInput(f"{what} is compressed with xz or bzip2", hint="decompress it: xz -dc FILE | nsrun image load -")
    if head[:2] != b"\x1f\x8b" and head[:4] != b"\x28\xb5\x2f\xfd":
        return fd
    out = _unnamed(spool)
    try:
        blob = Blob(fd, 0, os.fstat(fd).st_size)
        for piece in plain(blob, hashlib.sha256(), account.budget.ratio, account.spool, lambda n: None):
            _write(out, bytes(piece))
    except BadInput as error:
        os.close(out)
        raise BadInput(f"{what}: {error.message}", hint=error.hint) from None
    os.close(fd)
    return out


# ---- its images --------------------------------------------------------------------------------------------


class Found:
    """One image of a source: its documents, and the places of its layers."""

    def __init__(
        self, source: Source, manifest: bytes, config: Config, names: list[str], index: str = "", layers: Any = ()
    ) -> None:
        self.source, self.manifest, self.config, self.names, self.index = source, manifest, config, names, index
        self._layers = layers  # paths in a docker archive, otherwise descriptors

    def layer(self, number: int) -> Blob:
        """Return the blob of a layer, counted from 0."""
        layer = self._layers[number]
        try:
            if isinstance(layer, Descriptor):
                return self.source.blob(layer, "it")
            return self.source.open(layer)
        except BadInput as error:
            raise BadInput(f"layer {number + 1}: {error.message}", hint=error.hint, errno=error.errno) from None


def find_images(source: Source, platform: Platform) -> list[Found]:
    """Return the images that fit.  Raise BadInput when there is none, or a document of them is broken."""
    if source.has("index.json"):
        return _find_oci(source, platform)
    if source.has("manifest.json"):
        return _find_docker(source)
    raise BadInput(
        f"{source.what} has neither index.json nor manifest.json, so it is not an image",
        hint="load an OCI layout, or an archive of docker save or podman save; to join a root file system, use --rootfs",
    )


def _names(descriptor: Descriptor, stem: str) -> list[str]:
    """Return an image's names: containerd's annotation has full ones; the OCI one is often only a tag."""
    full = descriptor.annotations.get("io.containerd.image.name")
    if is_text(full) and full:
        return [full]
    name = descriptor.annotations.get("org.opencontainers.image.ref.name")
    if not is_text(name) or not name:
        return []
    if "/" in name or ":" in name:
        return [name]
    return [f"{stem.lower()}:{name}"]


def _find_oci(source: Source, platform: Platform) -> list[Found]:
    index = documents.parse(source.small("index.json"), f"{source.what}: index.json")
    if documents.check_kind(index, "", f"{source.what}: index.json") != "index":
        raise BadInput(f"{source.what}: index.json is not an index")
    finder = _Finder(source, platform)
    found: dict[str, Found] = {}
    for descriptor in documents.descriptors(index, f"{source.what}: index.json"):
        image = finder.resolve(descriptor)
        if image:
            names = _names(descriptor, source.stem)
            source.account.names(len(names))
            found.setdefault(image.config.digest, image).names += names
    if not found:
        raise BadInput(f"{source.what} has no image for {platform}", hint=f"it has: {finder.met()}; --platform chooses")
    return list(found.values())


class _Finder:
    """Finds the images of an index.  It reads a document once for each meaning, however often it is referred to."""

    def __init__(self, source: Source, platform: Platform) -> None:
        self.source, self.platform = source, platform
        self.others: dict[str, None] = {}
        self.known: dict[tuple[str, str, bool, int], Found | None] = {}

    def met(self) -> str:
        """Return the platforms that did not fit, or some of them."""
        some = list(self.others)
        return ", ".join(some[:20]) + (", …" if len(some) > 20 else "") or "no image at all"

    def resolve(self, descriptor: Descriptor, depth: int = 0) -> Found | None:
        """Return the first fitting image to which a descriptor leads, through indexes; None when none fits."""
        if depth > documents.MAX_DEPTH:
            raise BadInput(f"{self.source.what}: indexes are nested more than {documents.MAX_DEPTH} deep")
        if not self.platform.fits(descriptor.platform):
            self._other(descriptor.platform)
            return None
        key = (descriptor.digest, descriptor.type, bool(descriptor.platform), depth)
        if key not in self.known:
            self.known[key] = self._read(descriptor, depth)
        return self.known[key]

    def _other(self, platform: dict[str, str]) -> None:
        if len(self.others) <= 20:
            self.others[documents.platform_text(platform)[:60]] = None

    def _read(self, descriptor: Descriptor, depth: int) -> Found | None:
        source = self.source
        what = f"{source.what}: {descriptor.digest[:19]}…"
        data = source.document(descriptor, what)
        document = documents.parse(data, what)
        if documents.check_kind(document, descriptor.type, what) == "index":
            for inner in documents.descriptors(document, what):
                image = self.resolve(inner, depth + 1)
                if image:
                    image.index = descriptor.digest
                    return image
            return None
        if depth and document.get("artifactType"):
            return None
        manifest = Manifest(document, what)
        config = Config(source.document(manifest.config, f"{what}: config"), f"{what}: config")
        if not descriptor.platform and not self.platform.fits(config.platform):
            self._other(config.platform)
            return None
        if len(manifest.layers) != len(config.diff_ids):
            raise BadInput(f"{what}: {len(manifest.layers)} layers, but the config has {len(config.diff_ids)} diff_ids")
        return Found(source, data, config, [], layers=manifest.layers)


def _find_docker(source: Source) -> list[Found]:
    what = f"{source.what}: manifest.json"
    data = source.small("manifest.json")
    try:
        entries = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{what} is not JSON: {error}") from None
    if not isinstance(entries, list) or not entries or len(entries) > 1000:
        raise BadInput(f"{what} is not a list of images")
    found: dict[str, Found] = {}
    configs: dict[str, Config] = {}
    for entry in entries:
        if not isinstance(entry, dict):
            raise BadInput(f"{what} is not a list of images")
        path, layers, tags = entry.get("Config") or "", entry.get("Layers") or [], entry.get("RepoTags") or []
        strings = (path, *layers, *tags) if isinstance(layers, list) and isinstance(tags, list) else (None,)
        if not all(is_text(s) and s and "\0" not in s for s in strings) or len(layers) > documents.MAX_LAYERS:
            raise BadInput(f"{what}: Config, Layers or RepoTags are malformed")
        source.account.names(len(tags))
        if path not in configs:
            configs[path] = Config(source.small(path), f"{source.what}: {path}")
        config = configs[path]
        if len(layers) != len(config.diff_ids):
            raise BadInput(f"{what}: {len(layers)} layers, but the config has {len(config.diff_ids)} diff_ids")
        # keep an OCI manifest, whose layers are named by their diff_ids in the config
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{documents.OCI}manifest.v1+json",
            "config": {
                "mediaType": f"{documents.OCI}config.v1+json",
                "digest": config.digest,
                "size": len(config.data),
            },
            "layers": [
                {"mediaType": f"{documents.OCI}layer.v1.tar", "digest": diff_id, "size": 0}
                for diff_id in config.diff_ids
            ],
        }
        text = json.dumps(manifest, separators=(",", ":")).encode()
        found.setdefault(config.digest, Found(source, text, config, [], layers=list(layers))).names += tags
    return list(found.values())
