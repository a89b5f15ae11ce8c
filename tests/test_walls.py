# SPDX-License-Identifier: Apache-2.0
"""Lab 17 has a table of attempts to break out: each fails, with the error that the table names."""

from __future__ import annotations

import re

import pytest

from nsrun.teach import labs, labtext

PAGE = labtext.page_of(labs.find("walls")).sections["By hand"]
TABLE = re.findall(r"^\| `(.+?)` \| `(.+?)` \| .+ \|$", PAGE, re.M)


def test_the_table_is_read():
    assert len(TABLE) >= 16 and len(TABLE) == PAGE.count("\n| `")


def test_each_attempt_fails_as_the_table_says(host, busybox):
    host.run("pod create --owner root --network none walls")
    host.run("join walls -d --name inside --rootfs {} -- sleep 1000", busybox)
    for attempt, error in TABLE:
        done = host.run("exec", "inside", "sh", "-c", attempt, check=False)
        assert done.returncode not in (0, 125), attempt
        assert error in done.stdout + done.stderr, (attempt, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("options", "attempt"),
    [
        (["--cap-add", "SYS_ADMIN"], "mount -t tmpfs none /tmp"),
        (["--cap-add", "SYS_ADMIN"], "hostname x"),
        (["--cap-add", "NET_ADMIN"], "ip link add br0 type bridge"),
        (["--security-opt", "seccomp=unconfined"], "unshare -U true"),
    ],
)
def test_the_wall_is_the_one_that_the_table_names(host, busybox, options, attempt):
    """An attempt of the table succeeds when the wall is taken down that its row names."""
    assert attempt in dict(TABLE)
    host.run("pod create --owner root --network none walls")
    host.run("join walls --rootfs {}", busybox, *options, "--", "sh", "-c", attempt)
