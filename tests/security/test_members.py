"""The floor: what a member can't do.  Named after the attacks; the kernel is asked, not nsrun."""

import hashlib
import os
import pathlib
import re
import subprocess
import time

import pytest
from conftest import sh, wait_for

from nsrun.plan.outside import LIBEXEC


def status_of(text: str) -> dict[str, str]:
    return dict(re.split(r":\s*", line, maxsplit=1) for line in text.splitlines() if ":" in line)


def test_capabilities_are_dockers_fourteen(host, pod, busybox):
    now = status_of(host.run("join", "pause", "--rootfs", busybox, "cat", "/proc/self/status").stdout)
    assert now["CapPrm"] == now["CapEff"] == now["CapBnd"] == "00000000a80425fb"
    assert now["CapInh"] == now["CapAmb"] == "0000000000000000", "CVE-2022-29162"
    now = status_of(
        host.run(
            "join",
            "pause",
            "--cap-drop",
            "ALL",
            "--cap-add",
            "NET_ADMIN",
            "--rootfs",
            busybox,
            "cat",
            "/proc/self/status",
        ).stdout
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


def test_groups_are_exactly_those_of_the_rootfs(host, pod, rootfs):
    """CVE-2018-7169 and kin: a file that denies the primary group stays denied."""
    (rootfs / "denied").write_text("x")
    (rootfs / "denied").chmod(0o604)
    os.chown(rootfs / "denied", 0, 1000)
    done = host.run("join", "pause", "-u", "5000:1000", "--rootfs", rootfs, "cat", "/denied", check=False)
    assert done.returncode == 1 and "Permission denied" in done.stderr


def test_masked_and_readonly_paths(host, pod, busybox):
    out = host.run(
        "join",
        "pause",
        "--rootfs",
        busybox,
        "sh",
        "-c",
        "cat /proc/timer_list /proc/keys | wc -c; ls /sys/firmware | wc -l; echo 1 2>&1 >/proc/sys/kernel/core_pattern; mkdir /sys/x 2>&1; ls -l /proc/kcore 2>&1 | head -c 1",
    ).stdout.splitlines()
    assert out[0] == "0" and out[1] == "0" and "Read-only" in out[2] and "Read-only" in out[3]


def test_core_pattern_with_a_swapped_null(host, pod, rootfs):
    """CVE-2025-31133: the image's /dev/null is never used for masking."""
    for item in (rootfs / "dev").iterdir():
        item.unlink()
    (rootfs / "dev/null").symlink_to("/proc/sys/kernel/core_pattern")
    before = pathlib.Path("/proc/sys/kernel/core_pattern").read_text()
    out = host.run(
        "join",
        "pause",
        "--rootfs",
        rootfs,
        "sh",
        "-c",
        "stat -c %t:%T /dev/null; echo x >/proc/timer_list; cat /proc/timer_list",
    ).stdout
    assert out == "1:3\n" and pathlib.Path("/proc/sys/kernel/core_pattern").read_text() == before


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
        "join",
        "pause",
        "--rootfs",
        busybox,
        "sh",
        "-c",
        "ls /proc/1/root 2>&1; ls /proc/1/fd 2>&1; cat /proc/1/environ 2>&1; head -c1 /proc/1/mem 2>&1; readlink /proc/1/exe 2>&1; cat /proc/1/cmdline; cut -d' ' -f5 /proc/self/mountinfo",
    ).stdout
    assert out.count("Permission denied") == 3 and "memfd" not in out and "/pause" in out
    mounts = set(out.splitlines()[-30:])
    assert not any(m.startswith(("/run", "/var", "/home", "/tmp", "/work", "/root")) for m in mounts)


def test_with_ptrace_of_pause_there_is_nothing_to_find(host, pod, busybox):
    """Even CAP_SYS_PTRACE sees only an empty, read-only root behind /proc/1."""
    out = host.run(
        "join",
        "pause",
        "--cap-add",
        "SYS_PTRACE",
        "--rootfs",
        busybox,
        "sh",
        "-c",
        "ls /proc/1/root; ls /proc/1/fd; touch /proc/1/root/x 2>&1; true",
    ).stdout
    assert out.split()[:4] == ["dev", "etc", "member", "proc"] and "Read-only" in out


def test_programs_of_the_host_stay_as_they_are(host, pod, rootfs):
    """CVE-2019-5736: whatever a member executes or opens through /proc/*/exe, the host's programs are out of reach."""
    before = {
        name: hashlib.sha256(pathlib.Path(LIBEXEC, name).read_bytes()).hexdigest() for name in os.listdir(LIBEXEC)
    }
    (rootfs / "bin/self").write_text("#!/proc/self/exe\n")
    (rootfs / "bin/self").chmod(0o755)
    host.run("join", "pause", "--rootfs", rootfs, "self", check=False)
    script = "for i in $(seq 300); do for e in /proc/[0-9]*/exe; do (echo evil >$e) 2>/dev/null && echo WROTE $(readlink $e); done; done"
    attacker = host.background(
        "join",
        "pause",
        "--name",
        "evil",
        "--cap-add",
        "SYS_PTRACE",
        "--rootfs",
        rootfs,
        "sh",
        "-c",
        script,
        stdout=-1,
        text=True,
    )
    for _ in range(10):
        host.run("join", "pause", "--rootfs", rootfs, "true")
    host.run("kill", "evil", check=False)
    out = attacker.communicate(timeout=30)[0]
    assert "nsrun" not in out and "python" not in out
    after = {name: hashlib.sha256(pathlib.Path(LIBEXEC, name).read_bytes()).hexdigest() for name in os.listdir(LIBEXEC)}
    assert after == before


def test_the_joiner_can_not_be_read(host, pod, busybox):
    """CVE-2016-9962: while nsrun-init is in the pod, before its exec, no member can look into its descriptors.

    What the spy may see is the member that nsrun-init became meanwhile: pipes and /dev/null.
    """
    look = "ls -l $p/fd 2>/dev/null | grep -e '->' | grep -v -e 'pipe:' -e '/dev/null'; tr '\\0' '\\n' <$p/environ 2>/dev/null | grep SECRET"
    script = f'while :; do for p in /proc/[0-9]*; do c=$(cat $p/comm 2>/dev/null) && [ "$c" = nsrun-init ] && {{ echo . >>/seen; {look}; }}; done; done'
    host.start("spy", busybox, "sh", "-c", script)
    end = time.monotonic() + 30
    while time.monotonic() < end:  # until the spy has met nsrun-init some times
        for _ in range(10):
            host.run("join", "pause", "--rootfs", busybox, "true", env={"SECRET": "1"})
        if len(host.run("exec", "spy", "cat", "/seen", check=False).stdout) > 6:
            break
    assert host.run("exec", "spy", "cat", "/seen").stdout, "the spy never met nsrun-init"
    assert host.run("logs", "spy").stdout == ""


def test_cwd_through_a_descriptor(host, pod, busybox):
    """CVE-2024-21626: a working directory that is one of our descriptors."""
    for number in range(3, 24):
        done = host.run(
            "join",
            "pause",
            "-w",
            f"/proc/self/fd/{number}",
            "--rootfs",
            busybox,
            "cat",
            "../../../../etc/hostname",
            check=False,
        )
        assert done.returncode == 125, (number, done.stdout)


def test_volume_race(host, pod, rootfs, tmp_path):
    """CVE-2021-30465: the target of a mount is swapped for a symlink while members start; bounded."""
    shared = tmp_path / "shared"
    (shared / "d").mkdir(parents=True)
    victim = tmp_path / "victim"
    victim.mkdir()
    (shared / "l").symlink_to(f"../../../../../..{victim}")
    racer = subprocess.Popen(
        [
            "python3",
            "-c",
            f"import ctypes,time\nl=ctypes.CDLL(None)\ne=time.time()+8\nwhile time.time()<e: l.renameat2(-100,b'{shared}/d',-100,b'{shared}/l',2)",
        ]
    )
    try:
        for _ in range(30):
            done = host.run(
                "join",
                "pause",
                "--rootfs",
                rootfs,
                "-v",
                f"{shared}:/s",
                "--tmpfs",
                "/s/d/x",
                "sh",
                "-c",
                "cut -d' ' -f5 /proc/self/mountinfo | grep -E '/(s/|x$|victim)'",
                check=False,
            )
            assert done.returncode in (0, 125)
            assert all(line.startswith("/s") for line in done.stdout.splitlines())
            assert list(victim.iterdir()) == []
    finally:
        racer.kill()
        racer.wait()


def test_state_is_for_root_only(host, pod):
    for path in (host.root / "run", host.root / "run/pods", host.root / "lib", host.root / "run/pods/pause"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_nothing_is_setuid():
    for path in pathlib.Path(LIBEXEC).parent.rglob("*"):
        assert path.stat().st_mode & 0o6000 == 0, path


def test_no_abstract_sockets(host, pod, busybox):
    """CVE-2020-15257."""
    host.start("a", busybox, "sleep", "1000")
    assert "@" not in sh("ss", "-xl").stdout.replace("@@", "")


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
def test_what_is_no_device(host, pod, busybox, word, code, said):
    before = host.snapshot()
    assert said in host.fails(code, "join", pod, "--device", word, "--rootfs", busybox, "true")
    assert host.snapshot() == before
