# SPDX-License-Identifier: Apache-2.0
"""docs/tour.md is followed: each command as it stands there, and what it is said to show."""

from __future__ import annotations

import os
import pathlib
import re

import pytest
from conftest import CACHE, NSRUN, need, sh

TOUR = pathlib.Path(__file__).parent.parent / "docs/tour.md"
#: A line of the tour, after those that end with a backslash, and what it is said to show.
SHOWS = re.compile(r"\s+# shows: (.+)$")

pytestmark = [pytest.mark.live, pytest.mark.slow]


def commands() -> list[tuple[str, str]]:
    """(command, what it shows)"""
    found, begun = [], ""
    for block in re.findall(r"^```sh\n(.*?)^```$", TOUR.read_text(), re.M | re.S):
        for line in block.splitlines():
            begun += line + "\n"
            if not line.endswith("\\"):
                shown = SHOWS.search(begun)
                found.append((SHOWS.sub("", begun).strip(), shown[1].strip() if shown else ""))
                begun = ""
    return found


def test_the_tour(host, tmp_path):
    images = CACHE.parent / "images"
    for name in ("mariadb", "wordpress"):
        need(
            (images / name).exists(), f"the image {name} is missing", f"make scenario, or: rootfs/build --image {name}"
        )
    assert len(commands()) > 20
    sudo = tmp_path / "sudo"
    sudo.write_text('#!/bin/sh\nexec "$@"\n')
    sudo.chmod(0o755)
    path = f"{tmp_path}:{os.path.dirname(NSRUN)}:{os.environ['PATH']}"
    for command, shown in commands():
        # another test may just have had connections to port 8080
        command = command.replace("/tmp/page", str(tmp_path / "page")).replace("8080", "18431")
        done = sh("sh", "-ec", command, env={**host.env, "PATH": path, "IMAGES": str(images)}, cwd="/", timeout=120)
        assert shown in done.stdout + done.stderr, (command, shown, done.stdout, done.stderr)
    assert host.json("pod", "ls", "-a") == []
