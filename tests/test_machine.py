# SPDX-License-Identifier: Apache-2.0
"""What this machine can't show is shown in another: user-mode Linux, Debian's kernel, pure cgroup v2 with all controllers, AppArmor."""

import os
import re
import shutil
import sys

import pytest
from conftest import HERE, NSRUN, need, sh

TOP = HERE.parent


#: Debian's kernel for user-mode Linux has nf_tables, but no tables of family ip.
PART_OF_TABLES = """
set -e
export NSRUN_ROOT=/run/nsrun-test NSRUN_CGROUP=t
nsrun explain pod create -p 8080:80 x | grep -q nsrun-forward
nsrun pod create -p 8080:80 x
nsrun join x -d --name s --rootfs ROOTFS -- sh -c 'echo hello >/tmp/index.html; exec httpd -f -h /tmp -p 80'
for i in 1 2 3 4 5 6 7 8 9 10; do curl -sf 127.0.0.1:8080/ && break; sleep 1; done
nsrun pod create -p 8081:80 y
nsrun doctor --json | grep -c 'lacks a part of nf_tables'
nsrun pod rm -f x y
for i in 1 2 3 4 5 6 7 8 9 10; do ip -br link | grep nsr || break; sleep 1; done
! ip -br link | grep nsr
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_kernel_with_part_of_nf_tables(busybox):
    """What nat needs is found to be missing when it is tried; the pod is closed in then, and nsrun-forward passes on its ports."""
    need(os.geteuid() == 0, "the machine's root is a view of ours", "sudo make test")
    need(
        shutil.which("linux.uml") and shutil.which("insmod"),
        "user-mode Linux is missing",
        "apt-get install user-mode-linux kmod",
    )
    script = PART_OF_TABLES.replace("ROOTFS", str(busybox))
    env = {**os.environ, "PATH": f"{os.path.dirname(NSRUN)}:{os.environ['PATH']}", "SECONDS_": "200"}
    done = sh(HERE / "machine", f"PATH={env['PATH']}\n{script}", timeout=240, check=False, env=env)
    need(
        done.returncode != 125,
        "user-mode Linux does not come up here",
        "tests/machine id says no more; another machine",
    )
    assert done.returncode == 0, done.stdout[-3000:]
    lines = done.stdout.splitlines()
    assert "hello" in lines and any(
        "nsrun-forward passes on what is published, since this kernel lacks" in line for line in lines
    )


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_limits_and_profiles_where_the_kernel_has_them():
    need(os.geteuid() == 0, "the machine's root is a view of ours", "sudo make test")
    need(shutil.which("apparmor_parser"), "apparmor_parser is missing", "apt-get install apparmor")
    need(
        shutil.which("linux.uml") and shutil.which("insmod"),
        "user-mode Linux is missing",
        "apt-get install user-mode-linux kmod",
    )
    command = f"cd {TOP} && exec {os.path.dirname(sys.executable)}/pytest -p no:cacheprovider -rs --timeout 200 tests/test_limits.py tests/test_replay_pod.py::test_limits tests/test_class.py::test_limits_of_a_class tests/security/test_runtimes.py::test_apparmor_by_name"
    done = sh(HERE / "machine", command, timeout=480, check=False, env={**os.environ, "SECONDS_": "460"})
    need(
        done.returncode != 125,
        "user-mode Linux does not come up here",
        "tests/machine id says no more; another machine",
    )
    assert done.returncode == 0, done.stdout[-6000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert "no cgroup v2 with controllers" not in done.stdout and passed and int(passed[1]) >= 13, done.stdout
