# SPDX-License-Identifier: Apache-2.0
"""Attacks on stores, networks and forwarders: the rows of docs/threats.md that no other file tests."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import time

import pytest
from conftest import need, sh, wait_for
from images import Layout, entry, tar

pytestmark = pytest.mark.live

ROUTER_ADVERTISEMENT = r"""
import socket, struct, sys, time
s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex("eth0"))
prefix = struct.pack("!BBBBIII16s", 3, 4, 64, 0xC0, 3600, 3600, 0, socket.inet_pton(socket.AF_INET6, "2001:db8:bad::"))
packet = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + prefix
for _ in range(5):
    s.sendto(packet, ("ff02::1", 0, 0, socket.if_nametoindex("eth0")))
    time.sleep(0.1)
"""


def test_cve_2020_13401_router_advertisements(host):
    """A pod tells the bridge of a new default route and prefix: this host believes nothing of it."""
    host.run("pod", "create", "evil")
    need(pathlib.Path("/proc/sys/net/ipv6/conf/nsrun0").exists(), "no IPv6 here", "ipv6.disable=0")
    before = sh("ip", "-6", "route", "show", "default").stdout
    for setting in (
        "ipv6/conf/nsrun0/accept_ra",
        "ipv6/conf/nsrun0/accept_redirects",
        "ipv4/conf/nsrun0/accept_redirects",
    ):
        assert pathlib.Path("/proc/sys/net", setting).read_text() == "0\n", setting
    pid = host.pod("evil")["pid"]
    sh("nsenter", "-t", pid, "-n", "ip", "-6", "address", "add", "fe80::bad/64", "dev", "eth0", "nodad")
    sh("nsenter", "-t", pid, "-n", sys.executable, "-c", ROUTER_ADVERTISEMENT)
    time.sleep(0.3)
    assert sh("ip", "-6", "route", "show", "default").stdout == before
    assert "2001:db8:bad" not in sh("ip", "-6", "address").stdout + sh("ip", "-6", "route").stdout


def test_cve_2025_54388_a_firewall_that_is_reloaded(host, busybox):
    """A port on 127.0.0.1 stays there when every other table goes, and the pod's own table can't be flushed."""
    host.run("pod", "create", "-p", "127.0.0.1:20820:80", "-p", "20821:80", "w")
    host.run("join", "w", "-d", "--name", "h", "--rootfs", busybox, "--", "httpd", "-f", "-p", "80", "-h", "/var/www")
    page = lambda url, *within: sh(*within, "curl", "-s", "-m", "3", url, check=False).stdout  # noqa: E731
    wait_for(lambda: "nsrun" in page("http://127.0.0.1:20820/"))
    sh("nft", "add table inet other; add chain inet other c { type filter hook input priority 0; }")
    sh("nft", "flush", "ruleset")  # of the throwaway host
    away = ("nsenter", "-t", str(host.throwaway.neighbour.pid), "-n")
    assert "nsrun" in page("http://127.0.0.1:20820/") and "nsrun" in page("http://192.0.2.1:20821/", *away)
    assert page("http://192.0.2.1:20820/", *away) == ""


def test_cve_2021_20199_who_is_calling(host, alice, box):
    """Through pasta another host keeps its address; only this host's own loopback looks like loopback (SECURITY.md)."""
    alice.run("pod", "create", "-p", "20822:80", "w")
    alice.run(
        "join", "w", "-d", "--name", "h", "--image", box, "--", "httpd", "-f", "-vv", "-p", "80", "-h", "/var/www"
    )
    wait_for(lambda: "nsrun" in sh("curl", "-s", "-m", "3", "http://127.0.0.1:20822/", check=False).stdout)
    sh("nsenter", "-t", host.throwaway.neighbour.pid, "-n", "curl", "-s", "-m", "5", "http://192.0.2.1:20822/")
    log = "".join(line for _, _, line in _log(alice))
    assert "192.0.2.9" in log
    assert "127.0.0.1" in log or "192.0.2.1]" in log  # by the passt of Debian 12; and of 13: an address of this host


def _log(user) -> list[tuple[str, str, str]]:
    done = user.run("logs", "h")
    return [("", "", line) for line in (done.stdout + done.stderr).splitlines(True)]


def test_cve_2021_21284_the_store_is_out_of_the_owners_reach(host, alice, owned, tmp_path):
    """Root's images, notes and volumes: her ids, in the pod and outside, reach none of them."""
    host.run("image", "load", Layout(tar(entry("suid", b"#!", mode=0o4755)), name="t:1").write(tmp_path / "l"))
    store = host.root / "lib"
    for words in (
        ["ls", store],
        ["ls", store / "images"],
        ["touch", store / "x"],
        ["ls", host.root / "run"],
        ["cat", host.root / "run/pods/pause/note"],
    ):
        assert "Permission denied" in alice.sh(*words, check=False).stderr
    inside = alice.run(
        "join", owned, "--rm", "--", "sh", "-c", f"ls {store} {host.root}/run; touch {store}/x", check=False
    )
    assert inside.stderr.count("Permission denied") == 3 and inside.stdout == ""


@pytest.mark.parametrize("who", ["root", "owned"])
def test_a_log_flood(host, alice, busybox, box, who):
    """A gigabyte of output: the log stays below its cap, and the monitor small."""
    env = {"SUDO_UID": str(alice.uid)} if who == "owned" else {}
    host.run("pod", "create", "--network", "none", env=env)
    user, source = (host, ["--rootfs", busybox]) if who == "root" else (alice, ["--image", box])
    user.run(
        "join",
        "pause",
        "-d",
        "--name",
        "flood",
        *source,
        "--",
        "sh",
        "-c",
        "head -c 300000000 /dev/zero | tr '\\0' x; sleep 1000",
    )
    state = host.root / ("run" if who == "root" else f"users/{alice.uid}/run") / "members/flood"
    wait_for(lambda: (state / "log.1").exists(), 20)
    monitor = int(
        next(
            line.split()[1]
            for line in pathlib.Path(f"/proc/{user.member('flood')['pid']}/status").read_text().splitlines()
            if line.startswith("PPid:")
        )
    )
    for _ in range(10):
        assert sum(file.stat().st_size for file in state.glob("log*")) < 2 * (17 << 20)
        resident = next(
            int(line.split()[1])
            for line in pathlib.Path(f"/proc/{monitor}/status").read_text().splitlines()
            if line.startswith("VmRSS:")
        )
        assert resident < 1024
        time.sleep(0.1)
    user.run("rm", "-f", "flood")


@pytest.mark.parametrize("who", ["root", "owned"])
def test_no_abstract_socket_and_no_file_for_everybody(host, alice, owned, busybox, box, who):
    """CVE-2020-15257; and what state there is, nobody else may read or write."""
    if who == "root":
        host.run("pod", "create", "--network", "none", "r")
        host.run("join", "r", "-d", "--name", "m", "--rootfs", busybox, "--", "sleep", "1000")
    else:
        alice.run("join", owned, "-d", "--name", "m", "--image", box, "--", "sleep", "1000")
    assert not [line for line in sh("ss", "-xl").stdout.splitlines() if "@" in line]
    bases = (
        [host.root / "run", host.root / "lib"]
        if who == "root"
        else [host.root / f"users/{alice.uid}/{part}" for part in ("run", "lib")]
    )
    for base in bases:
        assert base.stat().st_mode & 0o077 == 0, base
    for directory, _, files in os.walk(host.root / "owned"):
        for path in [directory, *(os.path.join(directory, file) for file in files)]:
            assert os.lstat(path).st_mode & 0o002 == 0, path


def test_a_setuid_helper_is_not_needed(host, alice, owned, box):
    """bubblewrap CVE-2016-8659: the owner joins with no-new-privs set, so no set-user-ID program has helped her."""
    done = alice.sh(
        "setpriv --no-new-privs {} -m nsrun join {} --rm --image {} -- id -u",
        sys.executable,
        owned,
        box,
    )
    assert done.stdout == "0\n"


def test_the_root_of_a_pod_that_was_made_without_root(host, alice, box):
    """A set-user-ID program of an image makes one root of the pod, who is alice, and nobody else."""
    alice.run("pod", "create", "--network", "none", "mine")
    (alice.home / "out").mkdir()
    os.chown(alice.home / "out", alice.uid, alice.uid)
    script = "cp /bin/busybox /out/bb; chmod 4755 /out/bb"
    alice.run("join", "mine", "--rm", "-v", f"{alice.home}/out:/out", "--image", box, "--", "sh", "-c", script)
    made = (alice.home / "out/bb").stat()
    assert made.st_uid == alice.uid and made.st_mode & 0o4000
    done = subprocess.run(
        ["setpriv", "--reuid=12002", "--regid=12002", "--clear-groups", "cat", alice.home / "out/bb"],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1  # her home is hers alone
