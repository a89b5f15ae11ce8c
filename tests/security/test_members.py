# SPDX-License-Identifier: Apache-2.0
"""The floor: what a member can't do.  Named after the attacks; the kernel is asked, not nsrun."""

import pathlib
import re
import shutil
import time

import pytest
from conftest import sh, wait_for

from nsrun.kernel import LIBEXEC


def status_of(text: str) -> dict[str, str]:
    return dict(re.split(r":\s*", line, maxsplit=1) for line in text.splitlines() if ":" in line)


def test_capabilities_are_dockers_fourteen(host, pod, busybox):
    now = status_of(host.run("join", "pause", "--rootfs", busybox, "cat", "/proc/self/status").stdout)
    assert now["CapPrm"] == now["CapEff"] == now["CapBnd"] == "00000000a80425fb"
    assert now["CapInh"] == now["CapAmb"] == "0000000000000000", "CVE-2022-29162"
    now = status_of(
        host.run("join pause --cap-drop ALL --cap-add NET_ADMIN --rootfs {} cat /proc/self/status", busybox).stdout
    )
    assert int(now["CapEff"], 16) == int(now["CapBnd"], 16) == 1 << 12


def test_a_user_has_no_capabilities(host, pod, busybox):
    now = status_of(host.run("join", "pause", "-u", "33:33", "--rootfs", busybox, "cat", "/proc/self/status").stdout)
    assert now["CapEff"] == now["CapPrm"] == now["CapAmb"] == "0000000000000000" and now["CapBnd"] == "00000000a80425fb"
    assert now["Uid"].split() == ["33"] * 4 and now["Groups"].split() == ["33"]


def test_no_new_privileges(host, pod, busybox):
    now = status_of(
        host.run(
            "join", "pause", "--security-opt", "no-new-privileges", "--rootfs", busybox, "cat", "/proc/self/status"
        ).stdout
    )
    assert now["NoNewPrivs"] == "1"


def test_exec_never_has_more(host, pod, busybox):
    host.start(
        "a", busybox, "sleep", "1000", options=["--cap-drop", "ALL", "--security-opt", "no-new-privileges", "-u", "33"]
    )
    now = status_of(host.run("exec", "-u", "0", "a", "cat", "/proc/self/status").stdout)
    assert (
        now["CapEff"] == now["CapBnd"] == "0000000000000000"
        and now["NoNewPrivs"] == "1"
        and now["Uid"].split()[0] == "0"
    )
    inside = host.run("exec", "a", "readlink", "/proc/self/ns/cgroup").stdout.strip()
    assert inside == f"cgroup:[{host.member('a')['namespaces']['cgroup']}]"


def test_masked_and_readonly_paths(host, pod, busybox):
    out = host.run(
        "join pause --rootfs {} sh -c 'cat /proc/timer_list /proc/keys | wc -c; ls /sys/firmware | wc -l; echo 1 2>&1 >/proc/sys/kernel/core_pattern; mkdir /sys/x 2>&1; ls -l /proc/kcore 2>&1 | head -c 1'",
        busybox,
    ).stdout.splitlines()
    assert out[0] == "0" and out[1] == "0" and "Read-only" in out[2] and "Read-only" in out[3]


def test_devices(host, pod, rootfs):
    """Six harmless nodes; what mknod makes can't be opened, nor what the rootfs brings."""
    names = host.run(
        "join", "pause", "--rootfs", rootfs, "sh", "-c", "ls /dev; echo; ls -l /dev | grep -c '^c'"
    ).stdout.split()
    assert names == [
        "fd",
        "full",
        "mqueue",
        "null",
        "ptmx",
        "pts",
        "random",
        "shm",
        "stderr",
        "stdin",
        "stdout",
        "tty",
        "urandom",
        "zero",
        "6",
    ]
    sh("mknod", rootfs / "disk", "c", "1", "3")
    out = host.run(
        "join", "pause", "--rootfs", rootfs, "sh", "-c",
        "for d in / /dev /tmp /dev/shm; do mknod $d/n c 1 5; head -c1 $d/n 2>&1; done; head -c1 /disk 2>&1; head -c1 /dev/zero | wc -c",
    ).stdout  # fmt: skip
    assert out.count("Permission denied") == 5 and out.endswith("1\n")


def test_nothing_of_the_host_is_in_view(host, pod, busybox):
    """/proc/1/root, /proc/1/fd and pause's memory show a member nothing, even as root."""
    out = host.run(
        "join pause --rootfs {} sh -c {}",
        busybox,
        "ls /proc/1/root 2>&1; ls /proc/1/fd 2>&1; cat /proc/1/environ 2>&1; head -c1 /proc/1/mem 2>&1; readlink /proc/1/exe 2>&1; cat /proc/1/cmdline; cut -d' ' -f5 /proc/self/mountinfo",
    ).stdout
    assert out.count("Permission denied") == 3 and "memfd" not in out and "/pause" in out
    mounts = set(out.splitlines()[-30:])
    assert not any(m.startswith(("/run", "/var", "/home", "/tmp", "/work", "/root")) for m in mounts)


def test_with_ptrace_of_pause_there_is_nothing_to_find(host, pod, busybox):
    """Even CAP_SYS_PTRACE sees only an empty, read-only root behind /proc/1."""
    out = host.run(
        "join pause --cap-add SYS_PTRACE --rootfs {} sh -c 'ls /proc/1/root; ls /proc/1/fd; touch /proc/1/root/x 2>&1; true'",
        busybox,
    ).stdout
    assert out.split()[:4] == ["dev", "etc", "member", "proc"] and "Read-only" in out


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_state_is_for_root_only(host, busybox, umask):
    """Whatever the umask: every directory is root's, and root can use it."""
    host.run("pod", "create", "--network", "none", "pause", umask=umask)
    host.start("a", busybox, "sleep", "1000", umask=umask)
    upper = next((host.root / "lib/upper").iterdir())
    paths = ("run", "run/pods", "run/members", "run/tmp", "run/pods/pause", "run/members/a", "lib", "lib/upper", upper)
    for path in paths:
        assert (host.root / path).stat().st_mode & 0o777 == 0o700, path
    assert host.run("join", "pause", "--rootfs", busybox, "echo", "works", umask=umask).stdout == "works\n"


@pytest.mark.parametrize("lost", ["run", "lib", "run/members", "lib/upper"])
def test_a_directory_of_the_state_that_was_lost(host, busybox, lost):
    """RUN and LIB are made each for itself."""
    host.run("pod", "create", "--network", "none", "one")
    host.run("join", "one", "--rootfs", busybox, "true")
    host.run("pod", "rm", "-f", "one")
    shutil.rmtree(host.root / lost)
    host.run("pod", "create", "--network", "none", "two")
    assert host.run("join", "two", "--rootfs", busybox, "echo", "works").stdout == "works\n"


def test_nothing_is_setuid():
    for path in pathlib.Path(LIBEXEC).parent.rglob("*"):
        assert path.stat().st_mode & 0o6000 == 0, path


def test_the_environment_of_the_caller_does_not_come_in(host, pod, busybox):
    out = host.run("join", "pause", "--rootfs", busybox, "env", env={"SECRET": "s", "LD_PRELOAD": ""}).stdout
    assert "SECRET" not in out and "LD_PRELOAD" not in out


def test_a_member_is_in_its_own_cgroup(host, pod, busybox):
    host.start("a", busybox, "sleep", "1000")
    out = host.run("exec", "a", "sh", "-c", "tail -1 /proc/self/cgroup; touch /sys/fs/cgroup/x 2>&1; true").stdout
    if "0::" not in out:
        pytest.skip("no cgroup v2 here; to enable: mount -t cgroup2 none /sys/fs/cgroup")
    assert out.splitlines()[0] == "0::/" and "Read-only" in out


def test_one_member_killed_with_a_zombie_elsewhere(host, pod, busybox):
    """moby#42328: a member whose first process has died and that left others behind can be removed."""
    host.start("a", busybox, "sh", "-c", "(sleep 1000 &); (sleep 1000 &); sleep 0.2")
    wait_for(lambda: host.member("a")["status"] == "stopped")
    time.sleep(0.1)
    host.run("rm", "a")
    assert "sleep" not in host.run("pod", "ps", "pause").stdout


def test_one_device_and_no_other(host, pod, busybox):
    """--device brings the node, its own mode decides, and nothing else becomes a device."""
    base = (
        "join",
        pod,
        "--rm",
        "--device",
        "/dev/full",
        "--device",
        "/dev/zero:/dev/my/zero:rwm",
        "--rootfs",
        busybox,
        "--",
    )
    out = host.run(
        *base, "sh", "-c", "ls -l /dev/my; head -c 4 /dev/my/zero | od -An -tx1; echo x >/dev/full", check=False
    )
    assert " 1,   5 " in out.stdout and "00 00 00 00" in out.stdout
    assert "No space left" in out.stderr
    mounts = host.run(*base, "cat", "/proc/self/mountinfo").stdout
    options = {line.split()[4]: line for line in mounts.splitlines()}
    assert "nosuid" in options["/dev/my/zero"] and "noexec" in options["/dev/my/zero"]
    assert "nodev" not in options["/dev/my/zero"] and "nodev" in options["/"] and "nodev" in options["/dev"]
    out = host.run("join", pod, "--rm", "--rootfs", busybox, "--", "ls", "/dev/my", check=False)
    assert "No such file" in out.stderr


@pytest.mark.parametrize(
    ("word", "code", "said"),
    [("/dev/nothing-here", 125, "does not exist"), ("/etc/hostname", 125, "no device node"), ("/dev", 125, "no device node"), ("dev/null", 2, "not HOST"), ("/dev/null:/x:r", 2, "rwm"),
     ("/dev/null:/a:rwm:x", 2, "not HOST"), ("/dev/null:x", 2, "--device")],
)  # fmt: skip
def test_a_device_that_is_not_one_is_refused(host, pod, busybox, word, code, said):
    before = host.snapshot()
    assert said in host.fails(code, "join", pod, "--device", word, "--rootfs", busybox, "true")
    assert host.snapshot() == before
