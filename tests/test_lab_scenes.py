# SPDX-License-Identifier: Apache-2.0
"""A scene that is interrupted or killed while it is made: the next start makes it anew, and a reset leaves nothing."""

from __future__ import annotations

import random
import signal
import subprocess
import time

import pytest
from test_labs import assert_as, machine

from nsrun.teach import labs

SCENES = [pytest.param(lab, id=f"{lab.number:02}-{lab.name}") for lab in labs.every() if lab.scene]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
@pytest.mark.parametrize("lab", SCENES)
def test_start(host, lab, number):
    before = machine()
    seed = random.randrange(1 << 30)
    times = random.Random(seed)
    begin = time.monotonic()
    host.run("lab", "start", lab.number)
    took = time.monotonic() - begin
    host.run("lab", "reset", lab.number)
    for _ in range(3):
        start = host.background(
            "lab", "start", lab.number, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(times.uniform(0, took))
        start.send_signal(number)
        start.wait(timeout=30)
        host.run("lab", "reset", lab.number, check=False)  # which says so where nothing is started
    host.run("lab", "start", lab.number)
    assert not all(row_is_ok(line) for line in host.run("lab", "check", lab.number, check=False).stdout.splitlines()), (
        seed
    )
    done = host.run("lab", "reset", lab.number)
    assert done.stderr == "", (seed, done.stderr)
    assert_as(host, before)


def row_is_ok(line: str) -> bool:
    return not line.startswith("NO ")
