# SPDX-License-Identifier: Apache-2.0
"""What this machine can't show is shown in another: user-mode Linux, Debian's kernel, pure cgroup v2 with all controllers, AppArmor."""

import os
import re
import shutil
import sys

import pytest
from conftest import HERE, need, sh

TOP = HERE.parent


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
