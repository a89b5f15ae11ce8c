# SPDX-License-Identifier: Apache-2.0
"""The corpus of hostile and broken images: `python tests/corpus.py DIR` writes them all, tests/test_corpus.py tries them.

A case is refused (with these words in the message), or kept inside the root (and then the tree says how).
`victim` is a directory of the host: whatever happens, nothing in it changes.
"""

from __future__ import annotations

import gzip
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from images import (
    END,
    Layout,
    archive,
    compress,
    digest,
    directory,
    docker_archive,
    entry,
    extended,
    hardlink,
    header,
    padded,
    symlink,
    tar,
)

Tree = dict[str, Any]


class Case:
    """`build(path, victim)` writes a layout or archive; `refused` or `tree` say what must come of it.

    tree: path → bytes (a file's content), "dir", "→target" (VICTIM: the victim), None (must not be there).
    """

    def __init__(
        self,
        name: str,
        build: Callable[[pathlib.Path, str], Any],
        refused: tuple[str, ...] = (),
        tree: Tree | None = None,
    ):
        self.name, self.build, self.refused, self.tree = name, build, refused, tree


CASES: list[Case] = []


def layers(name: str, *refused: str, tree: Tree | None = None) -> Callable[[Callable[[str], list[bytes]]], None]:
    """A case of a function victim → layers."""

    def add(function: Callable[[str], list[bytes]]) -> None:
        CASES.append(Case(name, lambda path, victim: Layout(*function(victim)).write(path), refused, tree))

    return add


def spoilt(name: str, *refused: str, tree: Tree | None = None) -> Callable[[Callable[[Layout], None]], None]:
    """A case of a good layout that a function spoils."""

    def add(function: Callable[[Layout], None]) -> None:
        def build(path: pathlib.Path, victim: str) -> None:
            layout = Layout(tar(directory("./"), entry("file", b"x")))
            function(layout)
            layout.write(path)

        CASES.append(Case(name, build, refused, tree))

    return add


def simple(name: str, function: Callable[[str], bytes], *refused: str, tree: Tree | None = None) -> None:
    layers(name, *refused, tree=tree)(lambda victim: [function(victim)])


# ---- names and links that lead out -------------------------------------------------------------------------

simple("dotdot", lambda v: tar(entry("../../../../../x", b"in")), tree={"x": b"in"})
simple("dotdot-inside", lambda v: tar(directory("a/"), entry("a/../../b", b"in")), tree={"b": b"in"})
simple("absolute", lambda v: tar(entry(f"{v}/x", b"in")), tree={"x": None})
simple("absolute-slashes", lambda v: tar(entry("////etc//passwd", b"in")), tree={"etc/passwd": b"in"})
simple(
    "file-through-absolute-symlink",
    lambda v: tar(directory("real"), symlink("out", v), entry("out/x", b"evil")),
    "out/x",
    "link that leads nowhere",
)
simple(
    "file-through-relative-symlink",
    lambda v: tar(symlink("out", "../../../../../.." + v), entry("out/x", b"evil")),
    "link that leads nowhere",
)
simple(
    "file-through-inner-symlink",
    lambda v: tar(directory("real"), symlink("in", "/real"), entry("in/x", b"ok")),
    tree={"real/x": b"ok", "in": "→/real"},
)
simple("symlink-to-root", lambda v: tar(symlink("r", "/"), entry("r/x", b"ok")), tree={"x": b"ok"})
simple(
    "symlink-dotdot-chain",
    lambda v: tar(directory("a/b"), symlink("a/b/c", "../../../../.."), entry("a/b/c/x", b"ok")),
    tree={"x": b"ok"},
)
simple("symlink-loop", lambda v: tar(symlink("a", "b"), symlink("b", "a"), entry("a/x", b"")), "a/x", "ELOOP")
simple("replace-symlink-by-file", lambda v: tar(symlink("x", f"{v}/file"), entry("x", b"new")), tree={"x": b"new"})
simple(
    "replace-symlink-by-directory",
    lambda v: tar(symlink("x", v), directory("x"), entry("x/y", b"new")),
    tree={"x": "dir", "x/y": b"new"},
)
simple("chmod-through-symlink", lambda v: tar(symlink("x", v), directory("x", mode=0o4777)), tree={"x": "dir"})
simple("proc-magic-link", lambda v: tar(symlink("x", "/proc/self/root"), entry("x/y", b"")), "x/y")
simple("hardlink-absolute", lambda v: tar(hardlink("x", f"{v}/file")), "x", "not there")
simple("hardlink-dotdot", lambda v: tar(hardlink("x", "../../../../../.." + v + "/file")), "x", "not there")
simple("hardlink-through-symlink", lambda v: tar(symlink("out", v), hardlink("x", "out/file")), "x", "not there")
simple(
    "hardlink-to-symlink",
    lambda v: tar(symlink("s", f"{v}/file"), hardlink("x", "s"), entry("x", b"new")),
    tree={"x": b"new"},
)
simple("hardlink-to-directory", lambda v: tar(directory("d"), hardlink("x", "d")), "x", "directory")
simple("hardlink-to-itself", lambda v: tar(entry("x", b"1"), hardlink("x", "x")), tree={"x": b"1"})
simple("hardlink-to-root", lambda v: tar(hardlink("x", "/")), "x", "root")
simple("hardlink-to-nothing", lambda v: tar(hardlink("x", "")), "x")
simple("symlink-to-nothing", lambda v: tar(symlink("x", "")), "x", "nothing")
simple("name-empty", lambda v: tar(entry("", b"")), "no name")
simple("name-nul", lambda v: tar(extended([("path", b"a\0b")]), entry("x", b"")), "NUL")
simple("file-as-parent", lambda v: tar(entry("f", b""), entry("f/x", b"")), "f/x", "no directory")
simple("root-is-a-file", lambda v: tar(entry(".", b"x")), "root")
simple("root-is-a-symlink", lambda v: tar(symlink("./", v)), "root")


@layers("root-symlink-then-file", "root")
def _(v: str) -> list[bytes]:  # umoci CVE-2021-29136
    return [tar(symlink(".", v)), tar(entry("x", b"evil"))]


@layers("symlink-below-file-above", tree={"real/x": b"ok"})
def _(v: str) -> list[bytes]:
    return [tar(directory("real"), symlink("a", "real")), tar(entry("a/x", b"ok"))]


@layers("outward-symlink-below-file-above", "layer 2", "out/x")
def _(v: str) -> list[bytes]:
    return [tar(symlink("out", v)), tar(entry("out/x", b"evil"))]


@layers("outward-symlink-below-opaque-above", tree={"out/x": None})
def _(v: str) -> list[bytes]:
    return [tar(symlink("out", v)), tar(entry("out/.wh..wh..opq"))]


@layers("outward-symlink-below-whiteout-above", tree={"out": "→VICTIM"})
def _(v: str) -> list[bytes]:
    return [tar(symlink("out", v)), tar(entry("out/.wh.file"))]


@layers("outward-symlink-below-directory-above", tree={"out": "dir", "out/x": b"ok"})
def _(v: str) -> list[bytes]:
    return [tar(symlink("out", v)), tar(directory("out"), entry("out/x", b"ok"))]


@layers("hardlink-to-outward-symlink-below", tree={"x": "→/etc/shadow"})
def _(v: str) -> list[bytes]:
    return [tar(symlink("s", "/etc/shadow")), tar(hardlink("x", "s"))]


@layers("hardlink-through-lower-symlink", "layer 2", "not there")
def _(v: str) -> list[bytes]:
    return [tar(symlink("out", v)), tar(hardlink("x", "out/file"))]


def longer_than_path_max(v: str) -> bytes:
    """Links that realpath(3) gives up on, but the kernel follows (the shape of Python's CVE-2025-4517)."""
    deep, entries, path = "d" * 247, [], ""
    for step in "abcdefghijklmnop":
        entries += [directory(path + deep), symlink(path + step, deep)]
        path += f"{deep}/"
    short = "/".join("abcdefghijklmnop")
    entries += [
        symlink(f"{short}/{'l' * 254}", "../" * 16),
        symlink("escape", f"{short}/{'l' * 254}/../../../../../../..{v}"),
    ]
    return tar(*entries, hardlink("got", "escape/file"), entry("got", b"evil"))


simple("links-longer-than-path-max", longer_than_path_max, "got", "not there")


# ---- whiteouts ---------------------------------------------------------------------------------------------

simple("whiteout-bare", lambda v: tar(entry(".wh.")), ".wh.", "no name")
simple("whiteout-dot", lambda v: tar(entry(".wh..")), "no name")
simple("whiteout-dotdot", lambda v: tar(entry("a/.wh...")), "no name")
simple("whiteout-slash", lambda v: tar(entry(".wh.a/b", b"")), "part of its name")
simple("whiteout-directory", lambda v: tar(directory(".wh.a"), entry(".wh.a/b", b"")), "part of its name")
simple("whiteout-of-nothing", lambda v: tar(entry("a/.wh.b")), tree={"a/b": None, "a": None})
simple("whiteout-out-of-root", lambda v: tar(entry(f"../../..{v}/.wh.file")), tree={"file": None})
simple("whiteout-of-own-file", lambda v: tar(entry("x", b"stays"), entry(".wh.x")), tree={"x": b"stays"})
simple(
    "file-replaces-directory",
    lambda v: tar(entry("a/b/c", b"1"), entry("a/b", b"2"), entry("a/d", b"3")),
    tree={"a/b": b"2", "a/d": b"3"},
)
simple("whiteout-aufs", lambda v: tar(entry(".wh..wh.plnk/x", b""), entry("y", b"1")), "part of its name")
simple(
    "whiteout-aufs-file",
    lambda v: tar(entry(".wh..wh.aufs", b""), entry("y", b"1")),
    tree={"y": b"1", ".wh..wh.aufs": None},
)
simple("opaque-through-symlink", lambda v: tar(symlink("s", v), entry("s/.wh..wh..opq")), tree={"s": "→VICTIM"})


@layers("opaque-root", tree={"a": None, "b": b"2"})
def _(v: str) -> list[bytes]:
    return [tar(entry("a", b"1")), tar(entry("b", b"2"), entry(".wh..wh..opq"))]


# umoci repack writes these for a directory that became a file: it hides what the file hides anyway
@layers("whiteout-below-a-file", tree={"d": b"file"})
def _(v: str) -> list[bytes]:
    return [tar(entry("d/a", b"1")), tar(entry("d", b"file"), entry("d/.wh.a"))]


@layers("whiteout-before-a-file-above-it", tree={"d": b"file"})
def _(v: str) -> list[bytes]:
    return [tar(entry("d/a", b"1")), tar(entry("d/.wh.a"), entry("d", b"file"))]


@layers("whiteout-two-below-a-file", tree={"d": b"file", "e": b"1"})
def _(v: str) -> list[bytes]:
    return [tar(entry("d/a/b", b"1")), tar(entry("d", b"file"), entry("d/a/.wh.b"), entry("e", b"1"))]


@layers("whiteout-of-nothing-below-a-file", tree={"d": b"file", "e": "dir", "f/g": None, "f": None, "e/h": None})
def _(v: str) -> list[bytes]:
    return [
        tar(entry("d", b"file"), directory("e")),
        tar(entry("d/x/.wh.a"), entry("e/h/.wh.b"), entry("f/g/.wh..wh..opq"), entry("f/g/.wh.c")),
    ]


@layers("whiteouts-within-a-whiteout", tree={"d": None, "n": None, "f": None, "e": "dir", "e/x": b"2", "e/a": None})
def _(v: str) -> list[bytes]:
    return [
        tar(entry("d/a", b"1"), entry("e/a", b"1"), entry("f/a", b"1")),
        tar(
            *(entry(name) for name in (".wh.d", "d/.wh.a", ".wh.n", "n/.wh.a", ".wh.e", "f/b/.wh.a", ".wh.f")),
            entry("e/x", b"2"),
        ),
    ]


@layers("nothing-is-taken-from-what-is-hidden", tree={"d/a/new": b"2", "d/a/old": None})
def _(v: str) -> list[bytes]:
    return [
        tar(directory("d/a", mode=0o4700), entry("d/a/old", b"1")),
        tar(entry("d/a/new", b"2"), directory("d"), entry("d/.wh..wh..opq")),
    ]


@layers("directory-over-a-file-of-its-layer", tree={"d": "dir", "d/a": None})
def _(v: str) -> list[bytes]:
    return [tar(entry("d/a", b"1")), tar(entry("d", b"file"), directory("d"))]


@layers("hardlink-to-whiteout", "layer 2", "not there")
def _(v: str) -> list[bytes]:
    return [tar(entry("a", b"1")), tar(entry(".wh.a"), hardlink("x", "a"))]


# ---- devices, set-user-ID, attributes ----------------------------------------------------------------------

simple("device-block", lambda v: tar(entry("sda", type="4", major=8), entry("y", b"1")), tree={"sda": None, "y": b"1"})
simple("device-char", lambda v: tar(entry("mem", type="3", major=1, minor=1)), tree={"mem": None})
simple("device-0-0", lambda v: tar(entry("x", b"1"), entry("x", type="3")), tree={"x": None})
simple(
    "device-over-hardlink", lambda v: tar(entry("n", type="3", major=1, minor=3), hardlink("x", "n")), "x", "not there"
)
simple("unknown-type", lambda v: tar(entry("x", type="Z")), "unknown type")
simple(
    "overlay-xattr-trusted",
    lambda v: tar(entry("x", records=[("SCHILY.xattr.trusted.overlay.redirect", b"/etc")])),
    "x",
    "overlayfs",
)
simple(
    "overlay-xattr-user",
    lambda v: tar(directory("d", records=[("SCHILY.xattr.user.overlay.opaque", b"y")])),
    "d",
    "overlayfs",
)
simple(
    "xattr-foreign",
    lambda v: tar(
        entry("x", b"1", records=[("SCHILY.xattr.security.selinux", b"evil\0"), ("SCHILY.xattr.trusted.x", b"1")])
    ),
    tree={"x": b"1"},
)
simple(
    "xattr-too-many",
    lambda v: tar(entry("x", records=[(f"SCHILY.xattr.user.a{i}", b"1") for i in range(200)])),
    "too many extended attributes",
)
simple("xattr-too-large", lambda v: tar(entry("x", records=[("SCHILY.xattr.user.a", b"1" * 70000)])), "x", "too large")
simple("uid-out-of-range", lambda v: tar(extended([("uid", b"4294967295")]), entry("x", b"")), "owner")
simple("uid-negative", lambda v: tar(header("x", uid=-1)), "negative")
simple("mode-overflow", lambda v: tar(entry("x", b"1", mode=0o7777)), tree={"x": b"1"})

# ---- broken streams ----------------------------------------------------------------------------------------

simple("truncated-in-header", lambda v: tar(entry("a", b"1"), end=header("b")[:300]), "ends in the middle")
simple("truncated-in-data", lambda v: tar(end=header("b", size=5000) + b"x" * 700), "ends in the middle")
simple("no-end", lambda v: tar(entry("a", b"1"), end=b""), tree={"a": b"1"})
simple(
    "garbage-after-the-end",
    lambda v: tar(entry("a", b"1"), end=END + b"garbage" * 200),
    tree={"a": b"1", "garbage": None},
)
simple(
    "entry-after-one-zero-block", lambda v: tar(entry("a", b"1"), end=b"\0" * 512 + entry("b", b"2")), "block of zeros"
)
simple("checksum", lambda v: entry("a", b"1")[:512].replace(b"ustar", b"uStar") + END, "checksum")
simple("not-a-tar", lambda v: b"<html>404 not found</html>" * 100, "checksum")
simple("size-negative", lambda v: tar(header("x", size=-5)), "negative")
simple("size-huge", lambda v: tar(header("x", size=1 << 62)), "x", "budget")
simple(
    "size-sparse-huge",
    lambda v: tar(
        extended(
            [
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.name", b"x"),
                ("GNU.sparse.realsize", b"9000000000000000000"),
            ]
        ),
        entry("x", padded(b"0\n")),
    ),
    "budget",
)
simple(
    "sparse-overlap",
    lambda v: tar(extended([("GNU.sparse.size", b"100"), ("GNU.sparse.map", b"0,50,20,50")]), entry("x", b"y" * 100)),
    "ascend",
)
simple(
    "sparse-beyond",
    lambda v: tar(extended([("GNU.sparse.size", b"10"), ("GNU.sparse.map", b"5,50")]), entry("x", b"y" * 50)),
    "leaves the file",
)
simple(
    "sparse-sum",
    lambda v: tar(extended([("GNU.sparse.size", b"100"), ("GNU.sparse.map", b"0,10")]), entry("x", b"y" * 50)),
    "add up",
)
simple("pax-malformed", lambda v: tar(header("p", "x", 20) + padded(b"99 path=toolong\n1234"), entry("x")), "malformed")
simple("pax-giant", lambda v: tar(header("p", "x", 1 << 30), end=b"0" * 4096), "extended header is too large")
simple(
    "pax-length-overflow",
    lambda v: tar(header("p", "x", 30) + padded(b"99999999999999999999 path=x\n12"), entry("x")),
    "malformed",
)
simple("pax-alone", lambda v: tar(extended([("path", b"x")])), "ends after an extended header")
simple("pax-many", lambda v: tar(*[extended([("path", b"x")])] * 20, entry("x")), "too many extended headers")
simple(
    "longname-too-long",
    lambda v: tar(header("././@LongLink", "L", 5000) + padded(b"a" * 5000), entry("x")),
    "too large",
)
simple("name-5000-bytes", lambda v: tar(entry("a/" * 2500 + "x", b"")), "4096")
simple("name-component-256", lambda v: tar(entry("a" * 256, b"")), "255 bytes")
simple("depth-600", lambda v: tar(entry("a/" * 600 + "x", b"")), "deeper")


@spoilt("gzip-truncated", "layer 1", "cut off")
def _(layout: Layout) -> None:
    _replace_layer(layout, lambda data: data[:-12])


@spoilt("gzip-damaged", "layer 1")
def _(layout: Layout) -> None:
    _replace_layer(layout, lambda data: data[:20] + b"\xff\xff\xff" + data[23:])


@spoilt("gzip-garbage-after", "layer 1", "garbage")
def _(layout: Layout) -> None:
    _replace_layer(layout, lambda data: data + b"garbage")


@spoilt("gzip-zeros-after", tree={"file": b"x"})
def _(layout: Layout) -> None:
    _replace_layer(layout, lambda data: data + b"\0" * 700)


@spoilt("gzip-then-another-tar", "layer 1", "config says")
def _(layout: Layout) -> None:
    _replace_layer(layout, lambda data: data + gzip.compress(tar(entry("evil", b"1"))))


@spoilt("zstd-truncated", "layer 1", "cut off")
def _(layout: Layout) -> None:
    _replace_layer(layout, lambda data: compress(gzip.decompress(data), "zstd")[:-8])


@spoilt("zstd-damaged", "layer 1")
def _(layout: Layout) -> None:
    _replace_layer(layout, lambda data: compress(gzip.decompress(data), "zstd")[:12] + b"\xff" * 40)


@spoilt("xz-layer", "layer 1", "xz")
def _(layout: Layout) -> None:
    import lzma

    _replace_layer(layout, lambda data: lzma.compress(gzip.decompress(data)))


def _replace_layer(layout: Layout, change: Callable[[bytes], bytes]) -> None:
    old = layout.layers[0]["digest"]
    data = change(layout.blobs.pop(old[7:]))
    layout.layers[0].update({"digest": layout.put(data), "size": len(data)})


# ---- bombs -------------------------------------------------------------------------------------------------

BOMB = b"\0" * (1 << 20)


def _gzip_bomb(how: str) -> Callable[[Layout], None]:
    def spoil(layout: Layout) -> None:
        data = compress(header("x", size=600 << 20) + BOMB * 600 + END, how)
        layout.layers[0].update({"digest": layout.put(data), "size": len(data)})
        layout.layers[0]["mediaType"] = "application/vnd.oci.image.layer.v1.tar+" + how

    return spoil


spoilt("bomb-gzip", "layer 1", "times its size")(_gzip_bomb("gzip"))
spoilt("bomb-zstd", "layer 1", "times its size")(_gzip_bomb("zstd"))
simple(
    "bomb-sparse",
    lambda v: tar(
        entry(
            "x",
            padded(b"0\n"),
            records=[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.name", b"x"),
                ("GNU.sparse.realsize", str(1 << 50).encode()),
            ],
        )
    ),
    "budget",
)
simple("bomb-entries", lambda v: entry("x") * 1_000_010 + END, "entries")
simple(
    "bomb-whiteouts",
    lambda v: b"".join(entry(f"{'d' * 90}/.wh.{i}") for i in range(160_000)) + END,
    "too many whiteouts",
)

# ---- documents ---------------------------------------------------------------------------------------------


@spoilt("wrong-digest", "layer 1", "digest")
def _(layout: Layout) -> None:
    name = layout.layers[0]["digest"][7:]
    layout.blobs[name] = compress(tar(entry("evil", b"x" * 5)), "gzip").ljust(layout.layers[0]["size"], b"\0")[
        : layout.layers[0]["size"]
    ]


@spoilt("wrong-size", "layer 1", "bytes")
def _(layout: Layout) -> None:
    layout.layers[0]["size"] += 1


@spoilt("wrong-size-shorter", "layer 1", "bytes")
def _(layout: Layout) -> None:
    layout.layers[0]["size"] -= 1


@spoilt("wrong-diff-id", "layer 1", "config says")
def _(layout: Layout) -> None:
    layout.config["rootfs"]["diff_ids"] = [digest(b"other")]


@spoilt("too-few-diff-ids", "diff_ids")
def _(layout: Layout) -> None:
    layout.config["rootfs"]["diff_ids"] = []


@spoilt("missing-blob", "layer 1")
def _(layout: Layout) -> None:
    layout.blobs.pop(layout.layers[0]["digest"][7:])


@spoilt("digest-dotdot", "not a SHA-256 digest")
def _(layout: Layout) -> None:
    layout.layers[0]["digest"] = "sha256:../../../../../etc/shadow"


@spoilt("digest-upper-case", "not a SHA-256 digest")
def _(layout: Layout) -> None:
    layout.layers[0]["digest"] = layout.layers[0]["digest"].upper()


@spoilt("digest-other-algorithm", "not a SHA-256 digest")
def _(layout: Layout) -> None:
    layout.layers[0]["digest"] = "md5:" + "0" * 32


@spoilt("size-is-text", "layer 1", "size is not a whole number")
def _(layout: Layout) -> None:
    layout.layers[0]["size"] = "12"


@spoilt("diff-id-dotdot", "diff_ids")
def _(layout: Layout) -> None:
    layout.config["rootfs"]["diff_ids"] = ["sha256:../../x"]


@spoilt("manifest-and-index", "at once")
def _(layout: Layout) -> None:
    layout.edit_manifest = lambda m: m.update({"manifests": []})


@spoilt("manifest-says-index", "media type")
def _(layout: Layout) -> None:
    layout.edit_manifest = lambda m: m.update({"mediaType": "application/vnd.oci.image.index.v1+json"})


@spoilt("descriptor-says-index", "descriptor says")
def _(layout: Layout) -> None:
    layout.edit_manifest = lambda m: m.pop("mediaType")
    layout.edit_index = lambda i: i["manifests"][0].update({"mediaType": "application/vnd.oci.image.index.v1+json"})


@spoilt("schema-1", "schema 1")
def _(layout: Layout) -> None:
    layout.edit_manifest = lambda m: m.update({"schemaVersion": 1})


@spoilt("layer-encrypted", "can't be unpacked")
def _(layout: Layout) -> None:
    layout.layers[0]["mediaType"] += "+encrypted"


@spoilt("layer-type-unknown", "can't be unpacked")
def _(layout: Layout) -> None:
    layout.layers[0]["mediaType"] = "text/plain"


@spoilt("artifact", "not an image")
def _(layout: Layout) -> None:
    layout.edit_manifest = lambda m: m["config"].update({"mediaType": "application/vnd.cncf.helm.config.v1+json"})


@spoilt("129-layers", "at most 128")
def _(layout: Layout) -> None:
    layout.layers *= 129


@spoilt("index-is-a-list", "not a JSON object")
def _(layout: Layout) -> None:
    layout.files = lambda: {"oci-layout": b"{}", "index.json": b"[]"}  # type: ignore[method-assign]


@spoilt("index-deep-json", "not JSON")
def _(layout: Layout) -> None:
    layout.files = lambda: {"oci-layout": b"{}", "index.json": b"[" * 200_000}  # type: ignore[method-assign]


@spoilt("index-5-mib", "larger than 4 MiB")
def _(layout: Layout) -> None:
    layout.files = lambda: {"oci-layout": b"{}", "index.json": b" " * (5 << 20)}  # type: ignore[method-assign]


@spoilt("index-not-utf-8", "not JSON")
def _(layout: Layout) -> None:
    layout.files = lambda: {"oci-layout": b"{}", "index.json": b'{"a": "\xff"}'}  # type: ignore[method-assign]


@spoilt("index-empty", "no image")
def _(layout: Layout) -> None:
    layout.edit_index = lambda i: i.update({"manifests": []})


@spoilt("index-of-other-platforms", "no image for")
def _(layout: Layout) -> None:
    layout.edit_index = lambda i: i["manifests"][0].update({"platform": {"os": "plan9", "architecture": "mips"}})


@spoilt("index-in-itself-deep", "nested")
def _(layout: Layout) -> None:
    def nest(index: dict[str, Any]) -> None:
        for _ in range(6):
            index["manifests"] = [layout.document({"schemaVersion": 2, "manifests": index["manifests"]}, "index")]

    layout.edit_index = nest


@spoilt("config-platform-of-other-types", "config: os is not a line of text")
def _(layout: Layout) -> None:
    layout.config.update({"os": [], "architecture": None, "variant": {"a": 1}})


def process(name: str, *refused: str, **values: Any) -> None:
    @spoilt(f"config-{name}", *refused)
    def _(layout: Layout) -> None:
        layout.config["config"].update(values)


process("env-nul", "Env", Env=["A=b\0c"])
process("env-home-newline", "Env", Env=["HOME=/x\nroot::0:0::/:/bin/sh"])
process("env-no-name", "Env", Env=["=x"])
process("env-not-a-list", "Env", Env="A=b")
process("entrypoint-nul", "Entrypoint", Entrypoint=["a\0b"])
process("cmd-number", "Cmd", Cmd=[1])
process("user-newline", "User", User="a\nb")
process("workdir-relative", "WorkingDir", WorkingDir="../..")
process("volumes-relative", "Volumes", Volumes={"../x": {}})
process("volumes-list", "Volumes", Volumes=["/x"])

# ---- archives ----------------------------------------------------------------------------------------------


def packed(name: str, function: Callable[[], bytes], *refused: str, tree: Tree | None = None) -> None:
    CASES.append(Case(name, lambda path, victim: path.write_bytes(function()), refused, tree))


GOOD = tar(directory("./"), entry("file", b"x"))
packed("archive-empty", lambda: b"", "so it is not an image")
packed("archive-of-nothing", lambda: END, "so it is not an image")
packed("archive-no-tar", lambda: b"x" * 5000, "no tar")
packed("archive-cut", lambda: docker_archive(GOOD)[:4000], "ends in the middle")
packed("archive-link-loop", lambda: archive({}, {"manifest.json": "manifest.json"}), "so it is not an image")
packed("archive-link-out", lambda: archive({}, {"manifest.json": "/etc/passwd"}), "so it is not an image")
packed(
    "archive-layer-link-out",
    lambda: archive(
        {"manifest.json": b'[{"Config": "c", "Layers": ["l"]}]', "c": json.dumps(Layout(GOOD).config).encode()},
        {"l": "../../../etc/passwd"},
    ),
    "has no l",
)
packed(
    "archive-config-dotdot",
    lambda: archive({"manifest.json": b'[{"Config": "../../etc/passwd", "Layers": []}]'}),
    "has no",
)
packed("archive-linked-layers", lambda: docker_archive(GOOD, linked=True), tree={"file": b"x"})
packed("archive-gzip", lambda: gzip.compress(docker_archive(GOOD)), tree={"file": b"x"})
packed("archive-manifest-number", lambda: archive({"manifest.json": b"[1]"}), "not a list of images")
packed("archive-diff-id", lambda: docker_archive(GOOD).replace(b"file", b"fiLe"), "checksum")
packed("archive-xz", lambda: b"\xfd7zXZ\0" + b"x" * 1000, "xz")
packed("archive-negative-offset", lambda: header("index.json", size=-512) + END, "negative")


def main() -> None:
    base = pathlib.Path(sys.argv[1])
    base.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        case.build(base / case.name, "/nonexistent/victim")
    print(f"{len(CASES)} images in {base}")


if __name__ == "__main__":
    main()
