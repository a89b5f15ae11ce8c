# SPDX-License-Identifier: Apache-2.0
"""Every image of the corpus: refused with a message, or kept inside the root; nothing outside is touched."""

from __future__ import annotations

import os
import pathlib
import stat

import pytest
from corpus import CASES, Case

from nsrun.state import codec

pytestmark = pytest.mark.live


def fingerprint(path: pathlib.Path) -> list[tuple]:
    return sorted(
        (str(p), p.lstat().st_mode, p.lstat().st_mtime_ns, p.lstat().st_ino) for p in [path, *path.rglob("*")]
    )


def kept(root: pathlib.Path) -> list[str]:
    """What the store holds; locks, empty directories and a list of no names do not count."""
    files = (p for p in root.rglob("*") if p.is_file() and not p.name.endswith("lock"))
    nothing = codec.encode({})
    return sorted(str(p.relative_to(root)) for p in files if p.name != "names.json" or p.read_bytes() != nothing)


def at(root: pathlib.Path, path: str) -> object:
    place = root / path
    try:
        mode = place.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISLNK(mode):
        return f"→{os.readlink(place)}"
    if stat.S_ISDIR(mode):
        return "dir"
    return place.read_bytes() if stat.S_ISREG(mode) else oct(mode)


def test_there_are_sixty():
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)
    assert all(bool(case.refused) != (case.tree is not None) for case in CASES)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_hostile_image(case: Case, host, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o711)
    (victim / "file").write_text("safe")
    (victim / "sub").mkdir()
    case.build(tmp_path / "image", str(victim))
    before, store = fingerprint(victim), host.root / "lib/images"
    load = ("image", "load", "--tag", "t:1", tmp_path / "image")
    if case.refused:
        message = host.fails(125, *load, timeout=280)  # a million entries
        for part in case.refused:
            assert part in message
        assert len(message) < 2000
        assert kept(store) == []
        assert list((store / "tmp").iterdir()) == []
    else:
        host.run(*load)
        host.run("image", "unpack", "t:1", tmp_path / "out")
        tree = {path: at(tmp_path / "out/rootfs", path) for path in case.tree}
        assert tree == {path: f"→{victim}" if want == "→VICTIM" else want for path, want in case.tree.items()}
        host.run("image", "rm", "t:1")
        assert kept(store) == []
    assert fingerprint(victim) == before
    assert (victim / "file").read_text() == "safe"
