# SPDX-License-Identifier: Apache-2.0
"""nsrun diff: what a member has made of its root, compared with the root and what it shows."""

from __future__ import annotations

import errno
import os
import pathlib
import subprocess

import pytest
from images import Layout, directory, entry, tar

from nsrun.errors import NsrunError
from nsrun.lifecycle import diff as changed

pytestmark = pytest.mark.live


def diff(host, name: str) -> list[str]:
    return host.run("diff", name).stdout.splitlines()


def test_added_changed_and_deleted(host, pod, rootfs):
    """Also whole directories: one that was made anew hides what was in it."""
    for path in ("keep/a", "keep/b", "anew/x", "anew/y", "anew/sub/z", "gone/file"):
        (rootfs / path).parent.mkdir(parents=True, exist_ok=True)
        (rootfs / path).write_text("lower")
    work = "echo x >>/keep/a; rm /keep/b; mkdir /new; echo y >/new/file; rm -r /gone /anew; mkdir /anew; echo y >/anew/y; echo z >/anew/z; ln -s / /link; mkfifo /fifo"  # fmt: skip
    host.run("join", pod, "--name", "m", "--rootfs", rootfs, "--", "sh", "-c", work)
    expected = [
        "A /fifo", "A /link", "A /new", "A /new/file", "A /anew/z", "C /anew", "C /anew/y", "C /keep", "C /keep/a",
        "D /anew/sub", "D /anew/x", "D /gone", "D /keep/b",
    ]  # fmt: skip
    assert sorted(diff(host, "m")) == sorted(expected)
    paths = [line[2:] for line in diff(host, "m")]
    assert paths == sorted(paths)
    assert [f"{row['kind']} {row['path']}" for row in host.json("diff", "m")] == diff(host, "m")


def test_nothing_and_a_running_member(host, pod, busybox):
    host.start("m", busybox, "sleep", "1000")
    assert diff(host, "m") == []
    host.run("exec", "m", "sh", "-c", "rm /bin/vi; echo x >/tmp/x; printf 'a\\nb' >\"$(printf '/two\\nlines')\"")
    assert diff(host, "m")[:3] == ["C /bin", "D /bin/vi", "C /tmp"] and "A /tmp/x" in diff(host, "m")
    assert len(diff(host, "m")) == 5 and "\\x0a" in diff(host, "m")[-1]  # one line for each
    host.run("rm", "-f", "m")
    assert "no member" in host.fails(125, "diff", "m")


def test_the_layers_of_an_image(host, pod, busybox, tmp_path):
    """What an upper layer has deleted is added, not changed, by a member that makes it again."""
    base = subprocess.run(["tar", "-C", busybox, "-c", "."], stdout=subprocess.PIPE, check=True, timeout=30).stdout
    first = tar(directory("d"), entry("d/one", b"1"), entry("d/two", b"2"))
    second = tar(directory("d"), entry("d/.wh.one", b""), entry("d/three", b"3"))
    host.run("image", "load", Layout(base, first, second, name="box:1", Cmd=["true"]).write(tmp_path / "l"))
    host.run(
        "join", pod, "--name", "m", "--image", "box:1", "--", "sh", "-c", "echo x >/d/one; rm /d/two; echo >>/d/three"
    )
    assert diff(host, "m") == ["C /d", "A /d/one", "C /d/three", "D /d/two"]


def test_members_without_a_layer(host, pod, rootfs):
    host.run("join", pod, "--name", "w", "--writable", "--rootfs", rootfs, "--", "true")
    host.run("join", pod, "--name", "h", "--", "/bin/true")
    assert "--rootfs itself" in host.fails(125, "diff", "w") and "host's own files" in host.fails(125, "diff", "h")


def test_the_owner_and_root_for_them(host, alice, owned, box):
    """Also when the pod has ended, whose user namespace is gone."""
    work = "echo x >/tmp/x; rm /bin/vi; mkdir -p /a/b; chown 7 /a/b"
    alice.run("join", owned, "--name", "m", "--image", box, "--", "sh", "-c", work)
    expected = ["A /a", "A /a/b", "C /bin", "D /bin/vi", "C /tmp", "A /tmp/x"]
    assert diff(alice, "m") == expected == diff(host, "m")
    os.kill(host.pod()["pid"], 9)
    assert diff(alice, "m") == expected


def test_a_tree_without_a_bottom(host, pod, busybox):
    host.start(
        "m", busybox, "sh", "-c", "n=0; while [ $n -lt 230 ]; do mkdir d; cd d; n=$((n+1)); done; exec sleep 1000"
    )
    from conftest import wait_for

    wait_for(lambda: "sleep" in host.json("top", "m")[0]["command"].partition(" ")[0])
    assert "levels deep" in host.fails(125, "diff", "m")
    upper = next(pathlib.Path(host.root, "lib/upper").glob("*/upper"))
    assert upper.is_dir()


def test_paths_are_limited(tmp_path, monkeypatch):
    """There may be few entries with long paths: each row has all of its own."""
    monkeypatch.setattr(changed, "MAX_NAMES", 300)
    (tmp_path / "d").mkdir()
    for number in range(5):
        (tmp_path / f"d/{number:020}").touch()
    top = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    assert len(changed._Walk(top, -1, [], False).found) == 6
    for number in range(5, 20):
        (tmp_path / f"d/{number:020}").touch()
    with pytest.raises(NsrunError, match="longer than 300"):
        changed._Walk(top, -1, [], False)
    os.close(top)


def test_a_directory_that_can_not_be_opened_is_told(tmp_path, monkeypatch):
    """Without descriptors nothing is known of what is below it."""
    (tmp_path / "d").mkdir()
    top = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)

    def fails(path: str, *words: object, **more: object) -> int:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(changed.os, "open", fails)
    number = errno.EMFILE
    with pytest.raises(OSError, match="Too many open files"):
        changed._Walk(top, -1, [], False)
    number = errno.ENOTDIR  # it was replaced
    assert changed._Walk(top, -1, [], False).found == []
    monkeypatch.undo()
    os.close(top)
