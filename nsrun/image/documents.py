# SPDX-License-Identifier: Apache-2.0
"""Index, manifest and config: JSON that others wrote, checked before any of it is used.  Pure.

OCI image-spec 1.1 (image-index.md, manifest.md, config.md) and Docker's v2 schema 2, which has the same shape.  Unknown
fields, annotations and artifact types are no errors; a document that can be read in two ways is one (CVE-2021-41190).
"""

from __future__ import annotations

import hashlib
import json
import platform as machine

from nsrun.errors import BadInput, UsageError
from nsrun.image import shapes
from nsrun.image.references import is_digest
from nsrun.schema import check
from nsrun.spec.options import parse_signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Document = dict[str, Any]

MAX_DOCUMENT = 4 << 20  # bytes of one JSON document
MAX_LAYERS = 128
MAX_DEPTH = 4  # of indexes in indexes
OCI = "application/vnd.oci.image."
DOCKER = "application/vnd.docker."
INDEX = {f"{OCI}index.v1+json", f"{DOCKER}distribution.manifest.list.v2+json"}
MANIFEST = {f"{OCI}manifest.v1+json", f"{DOCKER}distribution.manifest.v2+json"}
CONFIGS = {f"{OCI}config.v1+json", f"{DOCKER}container.image.v1+json"}
LAYERS = {
    *(f"{OCI}layer.{kind}v1.tar{suffix}" for kind in ("", "nondistributable.") for suffix in ("", "+gzip", "+zstd")),
    *(f"{DOCKER}image.rootfs.{kind}diff.tar{suffix}" for kind in ("", "foreign.") for suffix in ("", ".gzip", ".zstd")),
}


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def parse(data: bytes, what: str) -> Document:
    """Return a JSON object.  Raise BadInput, which names `what`."""
    if len(data) > MAX_DOCUMENT:
        raise BadInput(f"{what} is larger than {MAX_DOCUMENT >> 20} MiB")
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{what} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadInput(f"{what} is not a JSON object")
    return value


def _platform(value: Any) -> dict[str, str]:
    """Return os, architecture and variant of a document, those that it has."""
    keys = ("os", "architecture", "variant")
    return {key: value[key] for key in keys if value.get(key) is not None} if value else {}


class Descriptor:
    """A document's reference to another one, or to a layer: media type, digest, size."""

    def __init__(self, value: Any, what: str) -> None:
        check(value, shapes.DESCRIPTOR, f"{what}: descriptor")
        if not is_digest(value["digest"]):
            raise BadInput(f"{what}: {value['digest']!r} is not a SHA-256 digest")
        self.type: str = value.get("mediaType") or ""
        self.digest: str = value["digest"]
        self.size: int = value["size"]
        self.platform = _platform(value.get("platform"))
        annotations = value.get("annotations")
        self.annotations: Document = annotations if isinstance(annotations, dict) else {}


def check_kind(document: Document, expected: str, what: str) -> str:
    """Return "index" or "manifest".

    Raise BadInput for a document that is both, neither, or not what the descriptor said.
    """
    is_index = "manifests" in document
    is_manifest = "config" in document or "layers" in document
    if is_index and is_manifest:
        raise BadInput(f"{what} is an index and a manifest at once")
    if document.get("schemaVersion") == 1 or "fsLayers" in document:
        raise BadInput(
            f"{what} is of Docker's old schema 1",
            hint="pull it through skopeo copy, which converts it, or push it again",
        )
    if document.get("schemaVersion", 2) != 2:
        raise BadInput(f"{what}: schemaVersion is not 2")
    if not is_index and not is_manifest:
        raise BadInput(f"{what} is neither an index nor a manifest")
    kind = "index" if is_index else "manifest"
    allowed = INDEX if is_index else MANIFEST
    own = document.get("mediaType")
    if own is not None and (not isinstance(own, str) or own not in allowed or (expected and own != expected)):
        raise BadInput(
            f"{what}: its media type {str(own)[:90]!r} does not match its content, or what its descriptor says"
        )
    if expected and expected not in allowed:
        raise BadInput(f"{what} is an {kind}, but its descriptor says {expected[:90]!r}")
    return kind


def descriptors(index: Document, what: str) -> list[Descriptor]:
    """Return the entries of an index that may lead to an image; other types are ignored, in any number."""
    entries = index.get("manifests")
    if not isinstance(entries, list) or len(entries) > 10000:
        raise BadInput(f"{what}: `manifests` is not a list of at most 10000")
    return [d for d in (Descriptor(e, what) for e in entries) if d.type in INDEX | MANIFEST or not d.type]


class Manifest:
    """A manifest that names an image: its config and its layers, bottom first."""

    def __init__(self, document: Document, what: str) -> None:
        self.config = Descriptor(document.get("config"), f"{what}: config")
        if self.config.type not in CONFIGS:
            raise BadInput(
                f"{what} is not an image: its config is {self.config.type[:90]!r}",
                hint="it is an artifact (a chart, a signature, …)",
            )
        layers = document.get("layers")
        if not isinstance(layers, list) or len(layers) > MAX_LAYERS:
            raise BadInput(f"{what}: `layers` is not a list of at most {MAX_LAYERS}")
        self.layers = [Descriptor(layer, f"{what}: layer {n}") for n, layer in enumerate(layers, 1)]
        for n, layer in enumerate(self.layers, 1):
            if layer.type not in LAYERS:
                raise BadInput(f"{what}: layer {n} is {layer.type[:90]!r}, which can't be unpacked")


class Config:
    """An image's config: `document`, and the parts of it that are used, checked."""

    def __init__(self, data: bytes, what: str) -> None:
        self.data, self.digest = data, digest_of(data)
        self.document = document = parse(data, what)
        check(document, shapes.CONFIG, what)
        self.diff_ids: list[str] = document["rootfs"]["diff_ids"]
        for diff_id in self.diff_ids:
            if not is_digest(diff_id):
                raise BadInput(f"{what}: rootfs.diff_ids has {diff_id!r}, which is not a SHA-256 digest")
        if len(self.diff_ids) > MAX_LAYERS:
            raise BadInput(f"{what} has more than {MAX_LAYERS} layers")
        self.process = check_process(document.get("config") or {}, what)
        self.platform = {"os": "", "architecture": "", "variant": "", **_platform(document)}

    @property
    def chain(self) -> list[str]:
        """Return the chain id of each layer, which stands for it and all beneath.

        Image-spec config.md, "Layer ChainID".
        """
        chain: list[str] = []
        for diff_id in self.diff_ids:
            chain.append(digest_of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
        return chain


def check_process(process: Document, what: str) -> Document:
    """Check what can be wrong with shapes.PROCESS beyond its types, and return it.

    Labels, Volumes and everything else are data: never a path or an option of the host (docs/threats.md, R19).
    """
    for entry in process.get("Env") or []:
        name, _, value = entry.partition("=")
        if not name or (name in ("HOME", "USER") and "\n" in value):
            raise BadInput(f"{what}: config.Env has {entry[:60]!r}")
    directory = process.get("WorkingDir")
    if directory and not directory.startswith("/"):
        raise BadInput(f"{what}: config.WorkingDir {directory[:90]!r} is not absolute")
    if process.get("StopSignal"):
        try:
            parse_signal(process["StopSignal"])
        except UsageError:
            raise BadInput(f"{what}: config.StopSignal {process['StopSignal'][:60]!r} is not a signal") from None
    volumes = process.get("Volumes") or {}
    if not all(v.startswith("/") and "\0" not in v and len(v) <= 4096 for v in volumes):
        raise BadInput(f"{what}: config.Volumes are not absolute paths")
    if len(volumes) > 256:
        raise BadInput(f"{what} has more than 256 volumes")
    return process


# ---- platforms ---------------------------------------------------------------------------------------------

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386", "riscv64": "riscv64", "ppc64le": "ppc64le", "s390x": "s390x"}  # fmt: skip


class Platform:
    """OS/ARCHITECTURE[/VARIANT], by default that of this machine."""

    def __init__(self, text: str = "") -> None:
        word = text or f"linux/{_ARCHITECTURES.get(machine.machine(), machine.machine())}"
        parts = word.split("/")
        if not 2 <= len(parts) <= 3 or not all(parts):
            raise BadInput(f"platform {text!r} is not OS/ARCHITECTURE[/VARIANT]", hint="for example linux/arm64/v8")
        self.os, self.architecture = parts[:2]
        self.variant = parts[2] if len(parts) == 3 else ""

    def fits(self, other: Document) -> bool:
        """Return whether an image's platform fits.

        An empty one fits everywhere; a variant counts when both have one.
        """
        if not other.get("os") and not other.get("architecture"):
            return True
        variant = other.get("variant") or ""
        if self.architecture == "arm64":
            variant = variant.removeprefix("v8")  # the only variant of arm64, whether it is written or not
        wanted = self.variant.removeprefix("v8") if self.architecture == "arm64" else self.variant
        return (
            other.get("os") == self.os
            and other.get("architecture") == self.architecture
            and (not variant or not wanted or variant == wanted)
        )

    def __str__(self) -> str:
        return f"{self.os}/{self.architecture}" + (f"/{self.variant}" if self.variant else "")


def platform_text(platform: Document) -> str:
    return "/".join(str(platform[k]) for k in ("os", "architecture", "variant") if platform.get(k)) or "unknown"
