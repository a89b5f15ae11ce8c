# SPDX-License-Identifier: Apache-2.0
"""What an image, or a member, leaves for others to run or to stumble over."""

from __future__ import annotations

import shutil

import pytest
from conftest import HERE, need, sh
from images import Layout, directory, entry, hardlink, symlink, tar

pytestmark = pytest.mark.live
WHO = """
#include "sys.h"
int main(int argc, char **argv, char **envp) { (void)argc, (void)argv, (void)envp; return SYS0(geteuid) == 0 ? 10 : 20; }
"""


def test_nosuid_takes_set_user_id_from_a_volume(host, pod, busybox, tmp_path):
    """-v …:nosuid and --mount …,nosuid: a set-user-ID program of a volume runs as who starts it."""
    compiler = shutil.which("cc")
    need(compiler, "cc is missing", "apt-get install gcc")
    (tmp_path / "data").mkdir()
    (tmp_path / "who.c").write_text(WHO)
    program = tmp_path / "data/who"
    words = [
        "-Os",
        "-ffreestanding",
        "-fno-builtin",
        "-fno-stack-protector",
        "-fno-pie",
        "-static",
        "-nostdlib",
        "-nostartfiles",
    ]
    sh(compiler, *words, f"-I{HERE.parent / 'csrc'}", "-o", program, tmp_path / "who.c")
    program.chmod(0o4755)
    data = tmp_path / "data"
    for options, euid in (
        (("-v", f"{data}:/data"), 10),
        (("-v", f"{data}:/data:nosuid"), 20),
        (("-v", f"{data}:/data:ro,nosuid"), 20),
        (("--mount", f"type=bind,source={data},target=/data"), 10),
        (("--mount", f"type=bind,source={data},target=/data,nosuid"), 20),
        (("--mount", f"type=bind,source={data},target=/data,nosuid=false"), 10),
        (("--mount", f"type=bind,source={data},target=/data,readonly,nosuid=1"), 20),
    ):
        done = host.run(
            "join", pod, "--rm", "-u", "1000", *options, "--rootfs", busybox, "--", "/data/who", check=False
        )
        assert done.returncode == euid, (options, done.stderr)


def test_trees_deeper_than_any_path_do_not_stay(host, tmp_path):
    """A store, and a bundle, that an older nsrun left with a tree which no walker that recurses can pass."""
    import os

    host.run("image", "load", Layout(tar(entry("f", b"x"))).write(tmp_path / "a"))
    left = host.root / "lib/images/tmp/left"
    left.mkdir()
    fd = os.open(left, os.O_RDONLY)
    for _ in range(5000):
        os.mkdir("d" * 100, dir_fd=fd)
        down = os.open("d" * 100, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = down
    os.close(fd)
    host.run("image", "load", Layout(tar(entry("g", b"x")), name="u:1").write(tmp_path / "b"))
    assert not left.exists()


def test_a_layer_that_removes_what_is_deep(host, tmp_path):
    """Whatever way a directory was made as deep as the budget lets it, the layer above can take it away."""
    deep = [directory("d/" * 500), symlink("l", "d/" * 500), entry("l/f", b"x"), entry("lower", b"x")]
    for number, above in enumerate(([entry(".wh.d")], [entry("d", b"file")], [entry("d/.wh..wh..opq")])):
        layers = [tar(*deep), tar(hardlink("h", "lower"), *above)]
        host.run("image", "load", "--tag", "t:1", Layout(*layers).write(tmp_path / f"{number}"))
        host.run("image", "unpack", "t:1", tmp_path / f"out{number}")
        d = tmp_path / f"out{number}/rootfs/d"
        assert not d.exists() if number == 0 else d.read_bytes() == b"file" if number == 1 else list(d.iterdir()) == []
