# SPDX-License-Identifier: Apache-2.0
"""Images made by hand, down to the bytes of a tar header: good ones, odd ones, hostile ones."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

OCI = "application/vnd.oci.image."
Bytes = bytes


def _number(value: int, width: int) -> bytes:
    if value >= 0 and value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    return bytes([0x80 if value >= 0 else 0xFF]) + (value % (1 << 8 * (width - 1))).to_bytes(width - 1, "big")


def header(
    name: bytes | str,
    type: str = "0",
    size: int = 0,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime: int = 1_600_000_000,
    link: bytes | str = b"",
    major: int = 0,
    minor: int = 0,
    prefix: bytes = b"",
    gnu: bool = False,
    patch: Callable[[bytearray], None] = lambda block: None,
) -> bytes:
    """One block.  `patch` changes it before the checksum is made."""
    name, link = (w.encode("utf-8", "surrogateescape") if isinstance(w, str) else w for w in (name, link))
    block = bytearray(512)
    block[0:100] = name[:100].ljust(100, b"\0")
    block[100:108], block[108:116], block[116:124] = _number(mode, 8), _number(uid, 8), _number(gid, 8)
    block[124:136], block[136:148] = _number(size, 12), _number(mtime, 12)
    block[156:157] = type.encode("latin-1")
    block[157:257] = link[:100].ljust(100, b"\0")
    block[257:265] = b"ustar  \0" if gnu else b"ustar\x0000"
    block[329:337], block[337:345] = _number(major, 8), _number(minor, 8)
    block[345:500] = prefix.ljust(155, b"\0")
    patch(block)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 512)


def pax(records: Sequence[tuple[str, bytes]]) -> bytes:
    """The body of an extended header."""
    body = b""
    for key, value in records:
        tail = b" " + key.encode() + b"=" + value + b"\n"
        length = len(tail) + 1
        while len(str(length)) + len(tail) != length:
            length = len(str(length)) + len(tail)
        body += str(length).encode() + tail
    return body


def extended(records: Sequence[tuple[str, bytes]], type: str = "x") -> bytes:
    body = pax(records)
    return header("pax", type, len(body)) + padded(body)


def entry(
    name: bytes | str, data: bytes = b"", type: str = "0", records: Sequence[tuple[str, bytes]] = (), **kw: Any
) -> bytes:
    """A whole entry; what does not fit a header goes to an extended one."""
    raw = name.encode("utf-8", "surrogateescape") if isinstance(name, str) else name
    link = kw.get("link", b"")
    link = link.encode("utf-8", "surrogateescape") if isinstance(link, str) else link
    records = list(records)
    if len(raw) > 100:
        records.append(("path", raw))
    if len(link) > 100:
        records.append(("linkpath", link))
    before = extended(records) if records else b""
    kw.setdefault("size", len(data))
    return before + header(raw, type, **kw) + padded(data)


def directory(name: bytes | str, mode: int = 0o755, **kw: Any) -> bytes:
    return entry(name, type="5", mode=mode, **kw)


def symlink(name: bytes | str, to: bytes | str, **kw: Any) -> bytes:
    return entry(name, type="2", link=to, mode=0o777, **kw)


def hardlink(name: bytes | str, to: bytes | str, **kw: Any) -> bytes:
    return entry(name, type="1", link=to, **kw)


END = b"\0" * 1024


def tar(*entries: bytes, end: bytes = END) -> bytes:
    return b"".join(entries) + end


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def compress(data: bytes, how: str) -> bytes:
    if how == "gzip":
        return gzip.compress(data, 6, mtime=0)
    if how == "zstd":
        from backports import zstd

        return zstd.compress(data)
    return data


class Layout:
    """An OCI layout in the making; every part can be spoilt before `write`."""

    def __init__(self, *layers: bytes, how: str = "gzip", name: str = "docker.io/library/t:1", **process: Any) -> None:
        self.blobs: dict[str, bytes] = {}  # file name below blobs/sha256 → content
        self.name = name
        suffix = {"gzip": "+gzip", "zstd": "+zstd", "plain": ""}[how]
        packed = [compress(layer, how) for layer in layers]
        self.layers: list[dict[str, Any]] = [
            {"mediaType": f"{OCI}layer.v1.tar{suffix}", "digest": self.put(data), "size": len(data)} for data in packed
        ]
        self.config: dict[str, Any] = {
            "architecture": _architecture(),
            "os": "linux",
            "config": {"Cmd": ["/bin/sh"], **process},
            "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
        }
        self.edit_manifest: Callable[[dict[str, Any]], None] = lambda manifest: None
        self.edit_index: Callable[[dict[str, Any]], None] = lambda index: None
        self.manifest: dict[str, Any] = {}

    def put(self, data: bytes) -> str:
        self.blobs[digest(data)[7:]] = data
        return digest(data)

    def document(self, value: Any, kind: str) -> dict[str, Any]:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        return {"mediaType": f"{OCI}{kind}.v1+json", "digest": self.put(data), "size": len(data)}

    def write(self, path: pathlib.Path) -> pathlib.Path:
        for part, content in self.files().items():
            (path / part).parent.mkdir(parents=True, exist_ok=True)
            (path / part).write_bytes(content)
        return path

    def files(self) -> dict[str, bytes]:
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{OCI}manifest.v1+json",
            "config": self.document(self.config, "config"),
        }
        manifest["layers"] = self.layers
        self.edit_manifest(manifest)
        self.manifest = manifest
        descriptor = self.document(manifest, "manifest")
        if self.name:
            descriptor["annotations"] = {"org.opencontainers.image.ref.name": self.name}
        index = {"schemaVersion": 2, "manifests": [descriptor]}
        self.edit_index(index)
        files = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": json.dumps(index).encode()}
        return {**files, **{f"blobs/sha256/{name}": data for name, data in self.blobs.items()}}


def archive(files: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    """An archive of such files, as `docker save` and skopeo write them."""
    out = io.BytesIO()
    for name, content in files.items():
        out.write(entry(name, content))
    for name, to in (links or {}).items():
        out.write(symlink(name, to))
    return out.getvalue() + END


def docker_archive(*layers: bytes, name: str = "t:1", linked: bool = False, **process: Any) -> bytes:
    """What `docker save` writes: manifest.json, a config, layers in directories, repeated ones as links."""
    config = {
        "architecture": _architecture(),
        "os": "linux",
        "config": {"Cmd": ["/bin/sh"], **process},
        "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
    }
    text = json.dumps(config).encode()
    paths = [f"{digest(layer)[7:19]}{n}/layer.tar" for n, layer in enumerate(layers)]
    files = {f"{digest(text)[7:]}.json": text}
    links = {}
    for n, layer in enumerate(layers):
        if linked:
            files[f"real{n}.tar"] = layer
            links[paths[n]] = f"../real{n}.tar"
        else:
            files[paths[n]] = layer
    manifest = [{"Config": f"{digest(text)[7:]}.json", "RepoTags": [name], "Layers": paths}]
    return archive({**files, "manifest.json": json.dumps(manifest).encode()}, links)


def _architecture() -> str:
    import platform

    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
