# SPDX-License-Identifier: Apache-2.0
"""Every budget against every way of spending it: refused before the disk is full, in memory and time that stay small.

The store lies on a tmpfs that is a little larger than the budget: whatever spends without being charged meets ENOSPC.
"""

from __future__ import annotations

import gzip
import json
import os
import pathlib
import random
import sys

import pytest
from conftest import sh
from images import OCI, Layout, archive, compress, directory, docker_archive, entry, hardlink, header, symlink, tar

pytestmark = pytest.mark.live

DRIVER = """
import json, os, resource, signal, sys, time
from nsrun.errors import NsrunError
from nsrun.image import intake
from nsrun.image.budget import Budget
from nsrun.state import State
signal.signal(signal.SIGPIPE, signal.SIG_IGN)
root, path, limits = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
budget = Budget()
for key, value in limits.items():
    assert hasattr(budget, key)
    setattr(budget, key, value)
began, error = time.monotonic(), ""
try:
    taken = intake.load(State(root), path, budget=budget)
except NsrunError as caught:
    error = str(caught)
usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
status = open("/proc/self/status").read()
print(json.dumps({"error": error, "seconds": time.monotonic() - began, "cpu": sum(u.ru_utime + u.ru_stime for u in usage),
    "rss": int(status.partition("VmHWM:")[2].split()[0])}))
"""


def load(host, path, limits: dict[str, int] | None = None, timeout: float = 100, **kwargs) -> dict:
    """Loads an image with such a budget, in a process of its own: the error, seconds, the most memory in KiB."""
    words = [sys.executable, "-I", "-c", DRIVER, host.root, path, json.dumps(limits or {})]
    done = sh(*words, timeout=timeout, **kwargs)
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def small(host):
    """A store on a small disk: 24 MiB, 6000 inodes."""
    images = host.root / "lib/images"
    images.mkdir(parents=True, mode=0o700)
    sh("mount", "-t", "tmpfs", "-o", "size=24m,nr_inodes=6000,mode=700", "none", images)
    yield host
    sh("umount", images)


def write(path: pathlib.Path, content: Layout | bytes | list[Layout]) -> pathlib.Path:
    """A layout, an archive, or an archive of several images."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, Layout):
        content.write(path)
    else:
        manifests: list[object] = []
        blobs: dict[str, bytes] = {}
        for layout in content:
            files = layout.files()
            manifests += json.loads(files["index.json"])["manifests"]
            blobs |= files
        blobs["index.json"] = json.dumps({"schemaVersion": 2, "manifests": manifests}).encode()
        path.write_bytes(archive(blobs))
    return path


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


KIB = 1024
BIG = noise(700 * KIB)
#: A layer that can't be unpacked but over the layers beneath: it writes through a link of theirs.
LOWER = [directory("real"), symlink("via", "real")]
THROUGH = entry("via/through", b"x")


def link_farm(count: int, size: int) -> list[bytes]:
    """One file with many names, and links to each of them from above: overlayfs copies the file up for each."""
    names = [f"n{i}" for i in range(count)]
    lower = tar(entry("n0", noise(size)), *(hardlink(name, "n0") for name in names[1:]))
    return [lower, tar(*(hardlink(f"m{i}", name) for i, name in enumerate(names)))]


SIZE = {"size": 4 << 20}
BYTES = {
    "one-file": lambda: Layout(tar(entry("f", noise(5 << 20)))),
    "many-files": lambda: Layout(tar(*(entry(f"f{i}", BIG) for i in range(7)))),
    "one-name-again": lambda: Layout(tar(*(entry("f", BIG) for i in range(7)))),
    "many-layers": lambda: Layout(*(tar(entry("f", noise(700 * KIB, i))) for i in range(7))),
    "holes": lambda: Layout(
        tar(*(entry(f"f{i}", b"", records=[("GNU.sparse.major", b"0"), ("GNU.sparse.realsize", b"1048576")]) for i in range(5)))
    ),
    "attributes": lambda: Layout(
        tar(*(directory(f"d{i}", records=[("SCHILY.xattr.user.a", noise(60_000))]) for i in range(90)))
    ),
    "links-over-layers": lambda: Layout(*link_farm(20, 900 * KIB)),
    "second-pass": lambda: Layout(tar(*LOWER), tar(THROUGH, *(entry(f"f{i}", BIG) for i in range(7)))),
    "second-passes": lambda: Layout(
        tar(*LOWER), *(tar(entry(f"via/{i}", b"x"), entry(f"f{i}", noise(700 * KIB, i))) for i in range(7))
    ),
    "images-of-an-archive": lambda: [Layout(tar(entry("f", noise(700 * KIB, i))), name=f"t:{i}") for i in range(7)],
    "docker-archive": lambda: docker_archive(*(tar(entry("f", noise(700 * KIB, i))) for i in range(7))),
    "zstd": lambda: Layout(tar(*(entry(f"f{i}", BIG) for i in range(7))), how="zstd"),
    "padding": lambda: Layout(tar(entry("f", b"x")) + bytes(20 << 20)),
}  # fmt: skip


@pytest.mark.parametrize("way", BYTES)
def test_bytes(way, small, tmp_path):
    limits = {**SIZE, "entries": 1000 if way == "padding" else 5000}  # what follows the end is read, so it is charged
    done = load(small, write(tmp_path / "image", BYTES[way]()), limits)
    assert "budget" in done["error"] and "--max-size" in done["error"], done
    assert done["rss"] < 120_000
    assert list((small.root / "lib/images/tmp").iterdir()) == []
    if "images" not in way:  # those before the one that is too much are whole
        assert list((small.root / "lib/images/layers").iterdir()) == []


def test_streams(small, tmp_path):
    """What is spooled, from stdin or decompressed, is charged."""
    image = write(tmp_path / "image", [Layout(tar(entry("f", noise(8 << 20))), how="plain")])
    (tmp_path / "image.gz").write_bytes(gzip.compress(image.read_bytes(), 1))
    for path, given in (("-", image), (tmp_path / "image.gz", os.devnull), ("-", tmp_path / "image.gz")):
        with open(given) as stdin:
            done = load(small, path, {**SIZE, "entries": 1000}, stdin=stdin)
        assert "budget" in done["error"], done


ENTRIES = {
    "files": lambda: Layout(tar(*(entry(f"f{i}") for i in range(1200)))),
    "directories": lambda: Layout(tar(*(directory(f"f{i}") for i in range(1200)))),
    "links": lambda: Layout(tar(*(symlink(f"f{i}", "x") for i in range(1200)))),
    "hard-links": lambda: Layout(tar(entry("f"), *(hardlink(f"f{i}", "f") for i in range(1200)))),
    "fifos": lambda: Layout(tar(*(entry(f"f{i}", type="6") for i in range(1200)))),
    "devices": lambda: Layout(tar(*(entry(f"f{i}", type="3") for i in range(1200)))),
    "whiteouts": lambda: Layout(tar(*(entry(f".wh.f{i}") for i in range(1200)))),
    "implied": lambda: Layout(tar(*(entry(f"{i}/" + "d/" * 200 + "f") for i in range(7)))),
    "many-layers": lambda: Layout(*(tar(*(entry(f"f{i}-{n}") for i in range(100))) for n in range(12))),
    "images": lambda: [Layout(tar(*(entry(f"f{i}-{n}") for i in range(300))), name=f"t:{n}") for n in range(4)],
    "second-pass": lambda: Layout(tar(*LOWER), tar(THROUGH, *(entry(f"f{i}") for i in range(1200)))),
    "implied-in-second-pass": lambda: Layout(
        tar(*LOWER), tar(THROUGH, *(entry(f"via/{i}/" + "d/" * 200 + "f") for i in range(7)))
    ),
    "copied-up": lambda: Layout(
        tar(*LOWER, *(directory(f"{i}/" + "d/" * 200) for i in range(2))),
        *(tar(entry(f"via/{n}"), *(entry(f"{i}/" + "d/" * 200 + f"f{n}") for i in range(2))) for n in range(9)),
    ),
    "one-name-again": lambda: Layout(tar(*(entry("f") for i in range(1200)))),
}


@pytest.mark.parametrize("way", ENTRIES)
def test_entries(way, small, tmp_path):
    done = load(small, write(tmp_path / "image", ENTRIES[way]()), {"entries": 1000})
    assert "more entries than its budget" in done["error"], done
    if "images" not in way:  # those before the one that is too much are whole
        assert list((small.root / "lib/images/layers").iterdir()) == []


def deep_by_links(*sizes: int) -> list[bytes]:
    """Each link leads to the bottom of what the one before it reached."""
    entries, at = [], ""
    for number, size in enumerate(sizes):
        entries += [directory(f"{at}{'d/' * size}"), symlink(f"l{number}", f"{at}{'d/' * size}")]
        at = f"l{number}/"
    return entries


DEPTH = {
    "a-name": lambda: Layout(tar(entry("d/" * 20 + "f"))),
    "a-directory": lambda: Layout(tar(directory("d/" * 21))),
    "links": lambda: Layout(tar(*deep_by_links(15, 15, 15))),
    "implied-through-a-link": lambda: Layout(tar(directory("d/" * 15), symlink("l", "d/" * 15), entry("l/a/b/c/d/e/f"))),
    "a-file-through-a-link": lambda: Layout(tar(directory("d/" * 20), symlink("l", "d/" * 20), entry("l/f"))),
    "a-link-that-climbs": lambda: Layout(
        tar(directory("d/" * 15), symlink("d/" * 14 + "l", "d/../d/./../d"), entry("d/" * 14 + "l/a/b/c/d/e/f"))
    ),
    "over-layers": lambda: Layout(*(tar(one, two) for one, two in zip(*[iter(deep_by_links(15, 15, 15))] * 2, strict=True))),
    "hard-link": lambda: Layout(tar(entry("f"), directory("d/" * 20), symlink("l", "d/" * 20), hardlink("l/f", "f"))),
    "a-symlink": lambda: Layout(tar(directory("d/" * 20), symlink("l", "d/" * 20), symlink("l/f", "f"))),
    "a-fifo": lambda: Layout(tar(directory("d/" * 20), symlink("l", "d/" * 20), entry("l/f", type="6"))),
    "longer-than-path-max": lambda: Layout(
        tar(directory("/".join(["x" * 250] * 10)), symlink("l", "/".join(["x" * 250] * 10)), directory("/".join(["l", *["x" * 250] * 9])))
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", DEPTH)
def test_depth(way, small, tmp_path):
    done = load(small, write(tmp_path / "image", DEPTH[way]()), {"depth": 20})
    assert "deeper than the budget" in done["error"], done


def test_depth_that_is_allowed(small, tmp_path):
    layers = [tar(directory("d/" * 19), symlink("l", "d/" * 19), entry("l/f", b"x")), tar(entry("l/g", b"y"))]
    assert load(small, write(tmp_path / "image", Layout(*layers)), {"depth": 20})["error"] == ""


def test_the_default_depth_through_links(host, tmp_path):
    """512 by whatever way; and the store can be used afterwards."""
    host.fails(125, "image", "load", write(tmp_path / "a", Layout(tar(*deep_by_links(450, 450, 450, 450)))))
    host.run("image", "load", write(tmp_path / "b", Layout(tar(*deep_by_links(250, 250)))))
    host.run("image", "ls")


LONG = "/".join(["x" * 200] * 15)
RECORDS = {
    "whiteouts": lambda: Layout(tar(*(entry(f"{LONG}/.wh.f{i}") for i in range(60)))),
    "implied": lambda: Layout(tar(*(entry(f"{LONG}/{i}/f") for i in range(60)))),
    "again": lambda: Layout(tar(directory(LONG), *(directory(LONG) for i in range(60)))),
    "opaque": lambda: Layout(tar(directory(LONG), *(entry(f"{LONG}/.wh..wh..opq") for i in range(60)))),
    "devices": lambda: Layout(tar(directory(LONG), *(entry(f"{LONG}/{i}", type="3") for i in range(60)))),
    "devices-in-second-pass": lambda: Layout(
        tar(*LOWER, directory(LONG)), tar(THROUGH, *(entry(f"{LONG}/{i}", type="3") for i in range(60)))
    ),
    "over-layers": lambda: Layout(
        *(tar(*(entry(f"{LONG}/.wh.f{i}") for i in range(8)), entry(f"f{n}")) for n in range(8))
    ),
    "over-images": lambda: [
        Layout(tar(*(entry(f"{LONG}/.wh.f{i}") for i in range(8)), entry(f"f{n}")), name=f"t:{n}") for n in range(8)
    ],
}


@pytest.mark.parametrize("way", RECORDS)
def test_records(way, small, tmp_path):
    done = load(small, write(tmp_path / "image", RECORDS[way]()), {"records": 100_000})
    assert "too many whiteouts and implied directories" in done["error"], done


def test_a_quarter_of_a_million_device_nodes(host, tmp_path):
    """Millions took 1.9 GB of memory before reports were counted in the second pass, too."""
    name = "x" * 90
    many = b"".join(entry(f"{name}{i % 100}", type="3") for i in range(100)) * 2500
    done = load(
        host, write(tmp_path / "image", Layout(tar(entry("f")), tar(hardlink("h", "f"), many))), {"entries": 10_000_000}
    )
    assert done["error"] == "" and done["rss"] < 150_000, done
    told = host.json("image", "inspect", "t:1")[0]["layers"][1]["skipped"]
    assert len(told) == 100


def nested(depth: int, width: int) -> Layout:
    """Indexes in which one index stands many times, with platforms that fit."""
    layout = Layout(tar(entry("f", b"x")))

    def edit(index: dict) -> None:
        inner = index["manifests"][0]
        inner = layout.document({"schemaVersion": 2, "manifests": []}, "index")
        for level in range(depth):
            entries = [{**inner, "annotations": {"n": str(n)}} for n in range(width)]
            inner = layout.document(
                {"schemaVersion": 2, "annotations": {"l": str(level)}, "manifests": entries}, "index"
            )
        index["manifests"] = [inner]

    layout.edit_index = edit
    return layout


def test_nested_indexes(host, tmp_path):
    """A hundred million ways through 100 kB of indexes are one reading of each."""
    done = load(host, write(tmp_path / "image", nested(4, 100)), timeout=20)
    assert "has no image for" in done["error"] and done["cpu"] < 5


@pytest.mark.parametrize("kind", ["manifests", "configs", "manifest.json", "indexes"])
def test_documents(kind, host, tmp_path):
    """Many documents, each within its limit."""
    junk = "x" * (1 << 20)
    layout = Layout(tar(entry("f", b"x")))
    if kind == "manifest.json":
        files, entries = {}, []
        for n in range(30):
            config = {**layout.config, "author": f"{n}{junk}"}
            files[f"{n}.json"] = json.dumps(config).encode()
            entries.append({"Config": f"{n}.json", "RepoTags": [f"t:{n}"], "Layers": ["l.tar"]})
        path = write(
            tmp_path / "image",
            archive({**files, "l.tar": tar(entry("f", b"x")), "manifest.json": json.dumps(entries).encode()}),
        )
    else:

        def edit(index: dict) -> None:
            manifest, found = dict(layout.manifest), []
            for n in range(30):
                if kind == "indexes":
                    found.append(
                        layout.document(
                            {"schemaVersion": 2, "manifests": [], "annotations": {"a": f"{n}{junk}"}}, "index"
                        )
                    )
                    continue
                config = {**layout.config, **({"author": f"{n}{junk}"} if kind == "configs" else {"author": str(n)})}
                more = {"annotations": {"a": junk}} if kind == "manifests" else {}
                found.append(
                    layout.document({**manifest, "config": layout.document(config, "config"), **more}, "manifest")
                )
            index["manifests"] = found

        layout.edit_index = edit
        path = write(tmp_path / "image", layout)
    done = load(host, path)
    assert "larger than 16 MiB together" in done["error"], done
    assert done["rss"] < 250_000


def test_one_config_in_many_places(host, tmp_path):
    """A document is charged once, however often it is named."""
    layout = Layout(tar(entry("f", b"x")))
    text = json.dumps({**layout.config, "author": "x" * (1 << 20)}).encode()
    entries = [{"Config": "c.json", "RepoTags": [f"t:{n}"], "Layers": ["l.tar"]} for n in range(500)]
    image = archive({"c.json": text, "l.tar": tar(entry("f", b"x")), "manifest.json": json.dumps(entries).encode()})
    assert load(host, write(tmp_path / "image", image), timeout=60)["error"] == ""
    assert len(host.json("image", "ls")[0]["names"]) == 500


def test_names(host, tmp_path):
    layout = Layout(tar(entry("f", b"x")))
    text = json.dumps(layout.config).encode()
    tags = [f"t:{n}" for n in range(1001)]
    for entries in (
        [{"Config": "c.json", "RepoTags": tags, "Layers": ["l.tar"]}],
        [{"Config": "c.json", "RepoTags": tags[n::10], "Layers": ["l.tar"]} for n in range(10)],
    ):
        image = archive({"c.json": text, "l.tar": tar(entry("f", b"x")), "manifest.json": json.dumps(entries).encode()})
        assert "more than 1000 names" in load(host, write(tmp_path / "image", image))["error"]
    layout.edit_index = lambda index: index.update(
        manifests=[{**index["manifests"][0], "annotations": {"org.opencontainers.image.ref.name": tag}} for tag in tags]
    )
    assert "more than 1000 names" in load(host, write(tmp_path / "layout", layout))["error"]


def frames(kind: str, size: int) -> bytes:
    """That many bytes of compressed streams of nothing."""
    if kind == "gzip":
        return gzip.compress(b"", 9, mtime=0) * (size // 20)
    if kind == "skippable":
        return b"\x50\x2a\x4d\x18\0\0\0\0" * (size // 8)
    from backports import zstd

    empty = zstd.compress(b"")
    return empty * (size // len(empty))


@pytest.mark.parametrize("kind", ["zstd", "gzip", "skippable"])
def test_streams_of_nothing(kind, host, tmp_path):
    """1 MiB of empty zstd frames took 20 s."""
    data = tar(entry("f", b"x"))
    layout = Layout(data)
    from backports import zstd

    packed = (gzip.compress(data) if kind == "gzip" else zstd.compress(data)) + frames(kind, 4 << 20)
    suffix = "gzip" if kind == "gzip" else "zstd"
    layout.layers = [{"mediaType": f"{OCI}layer.v1.tar+{suffix}", "digest": layout.put(packed), "size": len(packed)}]
    done = load(host, write(tmp_path / "image", layout))
    assert "too many compressed streams" in done["error"], done
    assert done["cpu"] < 3


@pytest.mark.parametrize("how", ["zstd", "gzip"])
def test_many_streams_take_linear_time(how, host, tmp_path):
    """Four times as many small streams in one read take not more than four times as long, and a bit."""
    spent = []
    for count in (4000, 16000):
        rng = random.Random(count)
        data = tar(entry("f", rng.randbytes(64 * count)))
        packed = b"".join(compress(data[at : at + 64], how) for at in range(0, len(data), 64))
        layout = Layout(data, name=f"t:{count}")
        layout.layers = [{"mediaType": f"{OCI}layer.v1.tar+{how}", "digest": layout.put(packed), "size": len(packed)}]
        done = load(host, write(tmp_path / f"{count}", layout))
        assert done["error"] == "", done
        spent.append(done["cpu"])
    assert spent[1] < 5 * spent[0] + 0.5, spent


def test_streams_in_a_row(host, tmp_path):
    """Members of every length, with zeros between them, are one tar; garbage between them is refused."""
    rng = random.Random(7)
    data = tar(entry("f", rng.randbytes(300_000)), entry("g", bytes(3_000_000)))
    from backports import zstd

    for how, padding in (
        (zstd.compress, b""),
        (zstd.compress, b"\0" * 5000),
        (gzip.compress, b"\0" * 7),
        (gzip.compress, b""),
    ):
        packed, at = b"", 0
        while at < len(data):
            n = rng.choice([0, 1, 100, 255, 256, 257, 70_000, 1 << 20])
            packed, at = packed + how(data[at : at + n]) + padding, at + n
        layout = Layout(data)
        suffix = "gzip" if how is gzip.compress else "zstd"
        for tail, error in ((b"", ""), (b"garbage", "garbage follows"), (how(b"x" * 100)[:-3], "cut off")):
            blob = packed + tail
            layout.layers = [
                {"mediaType": f"{OCI}layer.v1.tar+{suffix}", "digest": layout.put(blob), "size": len(blob)}
            ]
            done = load(host, write(tmp_path / f"{len(os.listdir(tmp_path))}", layout))
            assert error in done["error"] and bool(error) == bool(done["error"]), done
            if not error:
                host.run("image", "rm", "-f", "t:1")


def test_parents_in_linear_time(host, tmp_path):
    """Each entry with a parent of its own, 500 deep: not a walk of all its beginnings for each."""
    deep = "a/" * 500
    layout = Layout(tar(directory(deep), *(entry(f"{deep}{i}/f") for i in range(2000))))
    done = load(host, write(tmp_path / "image", layout), {"records": 1 << 30})
    assert done["error"] == "" and done["cpu"] < 15, done


def test_links_that_are_long_to_follow(host, tmp_path):
    """39 links in a row of 4,000 bytes each: milliseconds for each path that leads through them."""

    def layout(long: int) -> Layout:
        links = [symlink(f"l{n}", "a/../" * long + (f"l{n + 1}" if n < 38 else "t")) for n in range(39)]
        files = [entry(f"{parent}/f{n}") for n in range(3000) for parent in ("l0", "b")]
        return Layout(tar(directory("a"), directory("b"), directory("t"), *links, *files))

    assert load(host, write(tmp_path / "short", layout(1)))["error"] == ""
    done = load(host, write(tmp_path / "long", layout(800)))
    assert "its links take too long to follow" in done["error"] and done["cpu"] < 15, done


def test_extended_headers_in_linear_time(host, tmp_path):
    """As much as fits in headers, none of which brings a file."""
    mib = 1 << 20
    globals_ = [header("g", "g", mib) + bytes(mib)] * 60
    comments = [header("x", "x", 1 << 20) + b"1048576 comment=" + b"x" * (mib - 17) + b"\n"] * 7
    layout = Layout(tar(*globals_, *comments, entry("f", b"x")))
    done = load(host, write(tmp_path / "image", layout))
    assert done["error"] == "" and done["rss"] < 120_000 and done["cpu"] < 10, done


def test_what_is_replaced_may_be_large_and_deep(host, tmp_path):
    """A directory gives way to a file, in its own layer and over others; whatever is in it goes."""
    wide = [directory(f"w/{i}/x") for i in range(300)] + [entry(f"w/{i}/x/f") for i in range(300)]
    deep = [
        directory("w/" + "d/" * 400),
        entry("w/" + "d/" * 400 + "f"),
        *(entry("w/" + "d/" * n + "g") for n in range(400)),
    ]
    for number, layers in enumerate(
        (
            [tar(*wide, *deep, entry("w", b"file"))],
            [tar(*wide, *deep), tar(*LOWER), tar(THROUGH, entry("w", b"file"))],
            [tar(*wide, *deep), tar(*LOWER), tar(THROUGH, entry(".wh.w"), entry("w", b"file"))],
            [tar(*wide, *deep), tar(*LOWER), tar(THROUGH, entry("w/.wh..wh..opq"))],
        )
    ):
        done = load(host, write(tmp_path / f"{number}", Layout(*layers)))
        assert done["error"] == "", done
        host.run("image", "unpack", "t:1", tmp_path / f"out{number}")
        w = tmp_path / f"out{number}/rootfs/w"
        assert w.read_bytes() == b"file" if number < 3 else list(w.iterdir()) == []


def test_an_image_within_its_budget(small, tmp_path):
    """Nothing is charged twice: an image that just fits is taken, in all its passes."""
    files = [entry(f"f{i}", BIG) for i in range(5)]
    layers = [
        tar(*LOWER, *(entry(f"e{i}") for i in range(300))),
        tar(THROUGH, *files, *(entry(f"g{i}") for i in range(300))),
    ]
    layers.append(
        tar(
            entry("via/again", b"x"),
            hardlink("h0", "f0"),
            hardlink("h1", "f0"),
            entry(".wh.e0"),
            entry("via/.wh.through"),
        )
    )
    done = load(small, write(tmp_path / "image", Layout(*layers)), {"size": 4400 * KIB, "entries": 620})
    assert done["error"] == "", done


def test_the_account_of_several_images(small, tmp_path):
    """Layers that two images share are unpacked, and charged, once."""
    base = tar(entry("f", noise(3 << 20)))
    images = [Layout(base, tar(entry(f"g{n}", b"x")), name=f"t:{n}") for n in range(5)]
    done = load(small, write(tmp_path / "image", images), {**SIZE, "entries": 20})
    assert done["error"] == "", done
