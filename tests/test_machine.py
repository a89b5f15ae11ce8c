# SPDX-License-Identifier: Apache-2.0
"""What this machine can't show is shown in another: user-mode Linux, Debian's kernel, pure cgroup v2 with all controllers, AppArmor."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import HERE, NSRUN, need, sh

TOP = HERE.parent
WITH_NSRUN = f"{os.path.dirname(NSRUN)}:{os.environ['PATH']}"

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


def in_machine(command: str, seconds: int) -> subprocess.CompletedProcess[str]:
    """Run a command in a machine of its own, as root; `seconds` bounds it."""
    need(os.geteuid() == 0, "the machine's root is a view of ours", "sudo make test")
    need(
        shutil.which("linux.uml") and shutil.which("insmod"),
        "user-mode Linux is missing",
        "apt-get install user-mode-linux kmod",
    )
    env = {**os.environ, "SECONDS_": str(seconds)}
    done = sh(HERE / "machine", command, timeout=seconds + 20, check=False, env=env)
    need(
        done.returncode != 125,
        "user-mode Linux does not come up here",
        "tests/machine id says no more; another machine",
    )
    return done


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_kernel_with_part_of_nf_tables(busybox):
    """What nat needs is found to be missing when it is tried; the pod is closed in then, and nsrun-forward passes on its ports."""
    done = in_machine(f"PATH={WITH_NSRUN}\n{PART_OF_TABLES.replace('ROOTFS', str(busybox))}", 200)
    assert done.returncode == 0, done.stdout[-3000:]
    lines = done.stdout.splitlines()
    assert "hello" in lines and any(
        "nsrun-forward passes on what is published, since this kernel lacks" in line for line in lines
    )


#: A host that was booted with ipv6.disable=1.
WITHOUT_IPV6 = """
set -e
export NSRUN_ROOT=/run/nsrun-test NSRUN_CGROUP=t
modprobe ipv6 disable=1
refused() {
    status=$1 said=$2
    shift 2
    rc=0
    nsrun "$@" >/run/said 2>&1 || rc=$?
    grep -q "$said" /run/said && [ "$rc" = "$status" ] || { cat /run/said; echo "$rc: $*"; exit 1; }
}
nsrun pod create -p 8080:80 x
[ "$(nsrun port ls x)" = "80/tcp -> 0.0.0.0:8080 (forward)" ]
nsrun join x -d --name s --rootfs ROOTFS -- sh -c 'echo hello >/tmp/index.html; exec httpd -f -h /tmp -p 80'
for i in 1 2 3 4 5 6 7 8 9 10; do curl -sf 127.0.0.1:8080/ && break; sleep 1; done
nsrun port add x 8082:80/udp
for command in "pod create y -p" "port add x"; do
    refused 125 "1.:8081 can't be published: this host has no IPv6" $command '[::1]:8081:80'
    refused 125 "1.:8081 can't be published: this host has no IPv6" $command '[::1]:8081:80/udp'
done
refused 2 '8081:80: this host has no IPv6' pod create y -p '[::]:8081:80'
refused 125 'ipv6=on: this host has no IPv6' pod create y --network bridge,ipv6=on
refused 125 'fd00:1:2:3::/64: this host has no IPv6' network create back --subnet6 fd00:1:2:3::/64
refused 125 'this host has no IPv6' pod create y --subnet6 fd00:1:2:3::/64
nsrun network create back
nsrun pod create --network back z
nsrun join z --rootfs ROOTFS -- cat /etc/hosts /proc/net/dev
nsrun doctor --json | grep -c 'pods on the bridge have none: this host has no IPv6'
[ "$(nsrun pod ls -q | wc -l)" = 2 ]
nsrun pod rm -f x z
nsrun network rm back
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_host_without_ipv6(busybox):
    done = in_machine(f"PATH={WITH_NSRUN}\n{WITHOUT_IPV6.replace('ROOTFS', str(busybox))}", 200)
    assert done.returncode == 0 and "hello" in done.stdout.splitlines(), done.stdout[-3000:]


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_limits_and_profiles_where_the_kernel_has_them():
    need(shutil.which("apparmor_parser"), "apparmor_parser is missing", "apt-get install apparmor")
    command = f"cd {TOP} && exec {os.path.dirname(sys.executable)}/pytest -p no:cacheprovider -rs --timeout 200 tests/test_limits.py tests/test_replay_pod.py::test_limits tests/test_class.py::test_limits_of_a_class tests/security/test_runtimes.py::test_apparmor_by_name"
    done = in_machine(command, 460)
    assert done.returncode == 0, done.stdout[-6000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert "no cgroup v2 with controllers" not in done.stdout and passed and int(passed[1]) >= 13, done.stdout
