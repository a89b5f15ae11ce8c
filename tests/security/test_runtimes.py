# SPDX-License-Identifier: Apache-2.0
"""Attacks that runtimes have met, one test for each row of docs/threats.md, against the real program; races are bounded."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import time

import pytest
from conftest import NSRUN, need, sh, wait_for

from nsrun.kernel import LIBEXEC

pytestmark = pytest.mark.live


def fields(text: str) -> dict[str, str]:
    return dict(re.split(r":\s*", line, maxsplit=1) for line in text.splitlines() if ":" in line)


def attempts(text: str) -> dict[str, set[int]]:
    """ "NAME ERRNO" lines → every answer that a name got."""
    found: dict[str, set[int]] = {}
    for line in text.splitlines():
        name, _, number = line.rpartition(" ")
        found.setdefault(name, set()).add(int(number))
    return found


def swapper(a: pathlib.Path, b: pathlib.Path, seconds: float = 8) -> subprocess.Popen:
    """Exchanges two names as fast as it can, for a bounded time."""
    script = f"import ctypes,time\nl=ctypes.CDLL(None)\ne=time.time()+{seconds}\nwhile time.time()<e: l.renameat2(-100,{os.fsencode(a)!r},-100,{os.fsencode(b)!r},2)"
    return subprocess.Popen([sys.executable, "-c", script])


# ---- who joins, and pause --------------------------------------------------------------------------------------


def test_cve_2016_9962_descriptors_of_the_joiner(arena):
    """A member that is root of the pod looks for nsrun-init, which joins, and for what it holds of the host."""
    look = "ls -l $p/fd 2>/dev/null | grep -e '->' | grep -v -e 'pipe:' -e '/dev/null'; tr '\\0' '\\n' <$p/environ 2>/dev/null | grep SECRET; ls $p/root/ 2>/dev/null | grep -x boot"
    script = f'end=$(($(date +%s) + 20)); while [ $(date +%s) -lt $end ]; do for p in /proc/[0-9]*; do c=$(cat $p/comm 2>/dev/null) && [ "$c" = nsrun-init ] && {{ echo . >>/seen; {look}; }}; done; done'
    arena.join("sh", "-c", script, options=("-d", "--name", "spy"), check=True)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        for _ in range(10):
            arena.join("true", options=("--rm",), env={"SECRET": "1"})
        if len(arena.host.run("exec", "spy", "cat", "/seen", check=False).stdout) > 6:
            break
    assert arena.host.run("exec", "spy", "cat", "/seen").stdout, "the spy never met nsrun-init"
    assert arena.host.run("logs", "spy").stdout == ""
    arena.host.run("rm", "-f", "spy")


def test_pause_in_every_form(arena, program):
    """/proc/1 by root, cwd, fd, mem, exe, ns; pidfd_getfd, process_vm_readv, ptrace, setns, kill: nothing to be had."""
    for options in ((), ("--security-opt", "seccomp=unconfined")):
        out = arena.join("/a/attack", "pause", options=("--rm", *options, "-v", f"{program.parent}:/a:ro")).stdout
        found = attempts(out)
        assert found.pop("pidfd_open") == {0}
        assert found.pop("kill") <= {0, errno.EPERM}  # PID 1 takes no signal from inside
        assert all(0 not in answers for answers in found.values()), found
    assert arena.host.pod()["status"] == "running"


def test_cve_2019_5736_programs_of_the_host(arena):
    """/proc/*/exe, a script whose interpreter is /proc/self/exe: the host's files stay as they are."""
    files = [pathlib.Path(LIBEXEC, name) for name in os.listdir(LIBEXEC)] + [
        pathlib.Path(os.path.realpath(sys.executable)),
        pathlib.Path(NSRUN),
    ]
    before = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (arena.rootfs / "bin/self").write_text("#!/proc/self/exe\n")
    (arena.rootfs / "bin/self").chmod(0o755)
    arena.own()
    arena.join("self", options=("--rm",))
    script = "for i in $(seq 100); do for e in /proc/[0-9]*/exe; do (echo evil >$e) 2>/dev/null && echo WROTE $(readlink $e); done; done"
    arena.join("sh", "-c", script, options=("-d", "--name", "evil", "--cap-add", "SYS_PTRACE"), check=True)
    for _ in range(8):
        arena.join("true", options=("--rm",))
    wait_for(lambda: arena.host.member("evil")["status"] == "stopped", 60)
    out = arena.host.run("logs", "evil").stdout
    assert "nsrun" not in out and "python" not in out
    assert {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files} == before


@pytest.mark.parametrize("arena", ["root"], indirect=True)  # the door's children are not the caller's to trace
def test_cve_2019_14271_nothing_is_loaded_inside(arena, tmp_path):
    """nsrun-init, one program for every pod, opens no library, locale, module or account file once it is in the pod."""
    need(shutil.which("strace"), "strace is missing", "apt-get install strace")
    for name in ("etc/ld.so.preload", "etc/nsswitch.conf"):
        (arena.rootfs / name).write_text("/evil.so\n")
    trace = tmp_path / "t"
    words = [NSRUN, "join", "pause", "--rm", "--rootfs", arena.rootfs, "--", "true"]
    subprocess.run(
        ["strace", "-f", "-e", "trace=open,openat,execve,execveat", "-o", trace, *map(str, words)],
        env=arena.host.env,
        timeout=30,
        check=True,
    )
    lines = trace.read_text().splitlines()
    pid = next(line.split()[0] for line in lines if '"nsrun-init"' in line)
    mine = [line for line in lines if line.split()[0] == pid]
    begin = next(i for i, line in enumerate(mine) if '"nsrun-init"' in line)
    end = next(i for i, line in enumerate(mine) if "execve(" in line)
    opened = re.findall(r'open(?:at)?\([^"]*"([^"]*)"', "\n".join(mine[begin:end]))
    # what it makes as a place to mount on has a name without a directory: the parent is a descriptor
    assert [path for path in opened if "/" in path and not path.startswith("/proc/self/")] == []
    assert not {"ld.so.preload", "nsswitch.conf", "passwd", "group"} & set(opened)


def test_keys_of_the_caller(arena, program):
    """A key of the caller's session keyring is not the member's, with the filter or without."""
    for options in ((), ("--security-opt", "seccomp=unconfined")):
        words = [
            "join",
            "pause",
            "--rm",
            *options,
            "-v",
            f"{program.parent}:/a:ro",
            "--rootfs",
            str(arena.rootfs),
            "--",
            "/a/attack",
            "findkey",
        ]
        done = sh(*arena.host.words(program, "addkey", NSRUN, *words), env=arena.host.env, check=False, cwd="/")
        assert done.stderr == "" and int(done.stdout.split()[1]) in (errno.ENOKEY, errno.EPERM, errno.EACCES), done


# ---- /proc, /sys, /dev -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["proc", "sys", "dev"])
def test_cve_2023_28642_symlinked_proc_sys_dev(arena, name):
    """…and CVE-2019-19921, CVE-2026-41579: refused, and nothing is made where the link leads."""
    victim = arena.directory("victim")
    shutil.rmtree(arena.rootfs / name)
    (arena.rootfs / name).symlink_to(victim)
    arena.own()
    for link in (str(victim), "../" * 12 + str(victim)[1:]):
        (arena.rootfs / name).unlink()
        (arena.rootfs / name).symlink_to(link)
        assert "symlink" in arena.host.fails(125, "join", "pause", "--rootfs", arena.rootfs, "--", "true")
        assert list(victim.iterdir()) == []


def test_cve_2019_16884_a_proc_of_the_images_own(arena):
    """Files of the image below /proc are not the kernel's: a real procfs covers them."""
    for name in ("exec", "current", "apparmor/exec"):
        path = arena.rootfs / "proc/self/attr" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("image")
    arena.own()
    out = arena.join(
        "sh",
        "-c",
        "grep -c ' /proc proc ' /proc/mounts; cat /proc/self/attr/current; cat /proc/1/comm",
        options=("--rm",),
    )
    assert "image" not in out.stdout and out.stdout.splitlines()[0] == "1" and out.stdout.endswith("pause\n")
    assert (arena.rootfs / "proc/self/attr/exec").read_text() == "image"


def test_apparmor_by_name(arena):
    """Where the kernel has AppArmor the profile is the member's; elsewhere the member does not start without it."""
    if pathlib.Path("/sys/module/apparmor/parameters/enabled").exists():
        need(shutil.which("apparmor_parser"), "apparmor_parser is missing", "apt-get install apparmor")
        sh(
            "apparmor_parser -r -K",
            input="profile nsrun-test flags=(attach_disconnected) { file, capability, deny /etc/passwd r, }",
        )
        out = arena.join(
            "cat", "/proc/self/attr/current", "/etc/passwd", options=("--rm", "--security-opt", "apparmor=nsrun-test")
        )
        assert out.stdout.startswith("nsrun-test") and "Permission denied" in out.stderr
    else:
        before = arena.host.snapshot()
        text = arena.host.fails(
            125, "join", "pause", "--security-opt", "apparmor=nsrun-test", "--rootfs", arena.rootfs, "--", "true"
        )
        assert "AppArmor" in text and arena.host.snapshot() == before
    for bad in ("a b", "a\nexec unconfined", ""):
        arena.host.fails(
            2, "join", "pause", "--security-opt", f"apparmor={bad}", "--rootfs", arena.rootfs, "--", "true"
        )


@pytest.mark.parametrize(
    "target", ["/proc", "/proc/sys", "/proc/self/attr", "/proc/1", "//proc//sys/", "/x/../proc/sys"]
)
def test_cve_2025_52881_nothing_is_mounted_below_proc(arena, target):
    pattern = pathlib.Path("/proc/sys/kernel/core_pattern").read_text()
    for words in (["--tmpfs", target], ["-v", f"{arena.rootfs}:{target}"], ["--mount", f"type=tmpfs,target={target}"]):
        assert "below /proc" in arena.host.fails(2, "join", "pause", *words, "--rootfs", arena.rootfs, "--", "true")
    bundle = arena.directory("bundle")
    config = {
        "process": {"args": ["true"], "cwd": "/"},
        "root": {"path": str(arena.rootfs)},
        "mounts": [{"destination": target, "type": "tmpfs", "source": "t", "options": []}],
    }
    if target != "/proc":  # there the default's takes the place of the bundle's
        (bundle / "config.json").write_text(json.dumps(config))
        assert "below /proc" in arena.host.fails(2, "join", "pause", "--bundle", bundle)
    assert pathlib.Path("/proc/sys/kernel/core_pattern").read_text() == pattern


def test_cve_2025_31133_a_swapped_null(arena):
    """Masks are the real null device, whatever the image has at /dev/null."""
    shutil.rmtree(arena.rootfs / "dev")
    (arena.rootfs / "dev").mkdir()
    (arena.rootfs / "dev/null").symlink_to("/proc/sys/kernel/core_pattern")
    arena.own()
    out = arena.join(
        "sh",
        "-c",
        "stat -c %t:%T /dev/null /proc/timer_list; echo x >/proc/timer_list; cat /proc/timer_list",
        options=("--rm",),
    )
    assert out.stdout.split() == ["1:3", "1:3"]


def test_cve_2025_52565_the_console_is_a_pty_of_its_own(arena):
    """The image's /dev/pts and /dev/console are never looked at; the terminal is of the member's own devpts."""
    for name in ("dev/pts", "dev/console"):
        path = arena.rootfs / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to("/proc/sys/kernel/core_pattern")
    arena.own()
    arena.join(
        "sh",
        "-c",
        "stat -L -c %t:%T /dev/console; stat -L -c %t /proc/self/fd/0; tty; ls /dev/pts",
        options=("-d", "-t", "--name", "m"),
        check=True,
    )
    wait_for(lambda: arena.host.member("m")["status"] == "stopped")
    assert arena.host.run("logs", "m").stdout.split() == ["88:0", "88", "/dev/pts/0", "0", "ptmx"]


# ---- paths ------------------------------------------------------------------------------------------------------


def test_cve_2021_30465_a_target_that_changes(arena):
    """The place of a mount becomes a symlink while members start: nothing is ever mounted outside of the root."""
    shared, victim = arena.directory("shared"), arena.directory("victim")
    (shared / "d").mkdir()
    (shared / "l").symlink_to("../../../../../.." + str(victim))
    sh("chown", "-h", "--reference", shared, shared / "d", shared / "l")
    racer = swapper(shared / "d", shared / "l")
    try:
        for _ in range(25):
            done = arena.join(
                "sh",
                "-c",
                "cut -d' ' -f5 /proc/self/mountinfo | grep -E '/(s/|x$|victim)'",
                options=("--rm", "-v", f"{shared}:/s", "--tmpfs", "/s/d/x"),
            )
            assert done.returncode in (0, 125)
            assert all(line.startswith("/s") for line in done.stdout.splitlines()) and list(victim.iterdir()) == []
    finally:
        racer.kill()
        racer.wait()


def test_cve_2024_45310_a_mountpoint_that_is_missing(arena):
    """Making the directory of a mount never makes one outside, whatever the path turns into meanwhile."""
    shared, victim = arena.directory("shared"), arena.directory("victim")
    (shared / "d").mkdir()
    (shared / "l").symlink_to(victim)
    sh("chown", "-h", "--reference", shared, shared / "d", shared / "l")
    racer = swapper(shared / "d", shared / "l")
    try:
        for number in range(25):
            arena.join(
                "true",
                options=("--rm", "-v", f"{shared}:/s", "-w", f"/s/d/w{number}", "--tmpfs", f"/s/d/new{number}/deep"),
            )
            assert list(victim.iterdir()) == []
    finally:
        racer.kill()
        racer.wait()


def test_cve_2018_18837_a_target_through_a_link(arena):
    """bubblewrap CVE-2026-87766 too: /a leads to the old root, or to the host, and a volume is to stand at /a/b: it stays inside."""
    victim = arena.directory("victim")
    for link in ("/oldroot", "/proc/1/root", str(victim), ".."):
        (arena.rootfs / "a").unlink(missing_ok=True)
        (arena.rootfs / "a").symlink_to(link)
        arena.own()
        done = arena.join("sh", "-c", "grep -c ' [^ ]*/b tmpfs' /proc/mounts", options=("--rm", "--tmpfs", "/a/b"))
        assert done.returncode == (2 if link.startswith("/proc") else 0), (link, done.stderr)
        assert done.stdout == ("" if link.startswith("/proc") else "1\n") and list(victim.iterdir()) == []
        assert not os.path.lexists("/oldroot") and not os.path.lexists("/b")


def test_cve_2025_24965_files_that_we_put_in(arena):
    """resolv.conf, hosts, hostname, mtab and the working directory are links to files of the host: those stay as they are."""
    victim = arena.directory("victim")
    (victim / "file").write_text("precious")
    for name in ("resolv.conf", "hosts", "hostname", "mtab"):
        (arena.rootfs / "etc" / name).unlink(missing_ok=True)
        (arena.rootfs / "etc" / name).symlink_to(f"{victim}/file" if name != "mtab" else f"{victim}/made")
    (arena.rootfs / "w").symlink_to(victim)
    arena.own()
    arena.join("true", options=("--rm", "-w", "/w/deep"))
    assert (victim / "file").read_text() == "precious" and [p.name for p in victim.iterdir()] == ["file"]


def test_cve_2024_21626_a_directory_that_is_a_descriptor(arena):
    """As the working directory of a join and of an exec, and as a way to the host's files."""
    arena.join("sleep", "1000", options=("-d", "--name", "m"), check=True)
    for number in range(3, 20):
        for path in (f"/proc/self/fd/{number}", f"/proc/self/fd/{number}/../../.."):
            assert arena.join("cat", "../../../../etc/hostname", options=("--rm", "-w", path)).returncode == 125
            assert arena.host.run("exec", "-w", path, "m", "true", check=False).returncode == 125
    assert arena.host.run("exec", "m", "sh", "-c", "ls /proc/self/fd | wc -l").stdout == "4\n"


# ---- words ------------------------------------------------------------------------------------------------------


def test_cve_2021_43784_lengths(arena):
    """More than a length field holds: a message, and nothing is left."""
    before = arena.host.snapshot()
    for words in (
        ["-v", f"/{'x' * 70_000}:/x"],
        ["-v", f"{arena.rootfs}:/{'x/' * 3000}"],
        ["--tmpfs", f"/{'y' * 5000}"],
        ["-w", f"/{'z' * 70_000}"],
        ["-u", "9" * 70_000],
        ["--name", "n" * 70_000],
        [part for n in range(300) for part in ("-v", f"{arena.rootfs}:/v{n}")],
        [part for n in range(9000) for part in ("-e", f"V{n}=")],
    ):
        done = arena.join("true", options=("--rm", *words), timeout=60)
        accepted = {"-v": (2, 125, 0) if len(words) == 600 else (2, 125), "-e": (0, 126)}  # execve(2): E2BIG
        assert done.returncode in accepted.get(words[0], (2, 125)), (words[0], done.returncode, done.stderr[-400:])
        assert "Traceback" not in done.stderr, done.stderr[-400:]
    assert arena.host.snapshot() == before


def test_cve_2022_0811_sysctls_of_a_member(arena):
    """One key at a time, of a namespace of the member's own."""
    pattern = pathlib.Path("/proc/sys/kernel/core_pattern").read_text()
    for word in ("kernel.shm_rmid_forced=1+kernel.core_pattern=x", "kernel.shm_rmid_forced=1\nkernel.core_pattern=x", "kernel.core_pattern=|x", "net..core=1", "../kernel/core_pattern=1", "vm.swappiness=1"):  # fmt: skip
        arena.host.fails(
            2, "join", "pause", "--ipc", "own", "--net", "own", "--sysctl", word, "--rootfs", arena.rootfs, "--", "true"
        )
    arena.host.fails(
        2, "join", "pause", "--sysctl", "net.ipv4.ip_default_ttl=10", "--rootfs", arena.rootfs, "--", "true"
    )
    out = arena.join(
        "cat",
        "/proc/sys/net/ipv4/ip_default_ttl",
        options=("--rm", "--net", "own", "--sysctl", "net.ipv4.ip_default_ttl=10"),
    )
    assert out.stdout == "10\n" and pathlib.Path("/proc/sys/kernel/core_pattern").read_text() == pattern


@pytest.mark.parametrize("name", ["--root=/x", "-x", "../x", "a/b", ".", "..", "a\nb", "", "x" * 64])
def test_cve_2024_32462_names_that_are_options_or_paths(arena, name):
    """flatpak's option injection, CNI 2021-20206: a name is letters and digits, and never the beginning of an option."""
    before = arena.host.snapshot()
    assert arena.join("true", options=(f"--name={name}",)).returncode == 2
    assert arena.host.run("pod", "create", "--network", "none", "--", name, check=False).returncode in (2, 125)
    if name not in (".", ".."):  # those are directories, as in Docker
        assert arena.join("true", options=("-v", f"{name}:/v")).returncode in (2, 125)
    assert arena.host.snapshot() == before


def test_cve_2022_4318_a_home_of_two_lines(arena):
    """Nothing is written into the image's passwd, whatever HOME and the user are called."""
    before = (arena.rootfs / "etc/passwd").read_text()
    done = arena.join(
        "sh", "-c", 'cat /etc/passwd; echo "$HOME"', options=("--rm", "-e", "HOME=/x\nroot::0:0:::", "-u", "5")
    )
    assert done.stdout == before + "/x\nroot::0:0:::\n"


# ---- power ------------------------------------------------------------------------------------------------------


def test_cve_2022_29162_capabilities_do_not_come_back(arena, program):
    """Inheritable and ambient sets are empty, in a join and an exec; a program's inheritable file capability gives nothing."""
    shutil.copy(program, arena.rootfs / "bin/capped")
    arena.own()
    net_raw = 1 << 13
    os.setxattr(arena.rootfs / "bin/capped", "security.capability", struct.pack("<5I", 0x02000001, 0, net_raw, 0, 0))
    arena.join("sleep", "1000", options=("-d", "--name", "m"), check=True)
    for text in (
        arena.join("capped", "status", options=("--rm", "-u", "33")).stdout,
        arena.host.run("exec", "-u", "33", "m", "capped", "status").stdout,
        arena.join("capped", "status", options=("--rm",)).stdout,
    ):
        now = fields(text)
        assert int(now["CapInh"], 16) == int(now["CapAmb"], 16) == 0
        assert now["Uid"].split()[0] == "0" or int(now["CapEff"], 16) == int(now["CapPrm"], 16) == 0


def test_cve_2014_8989_a_group_that_is_denied(arena):
    """Groups are exactly the image's: dropping one, or never having had the primary one, opens no file."""
    (arena.rootfs / "denied").write_text("x")
    (arena.rootfs / "denied").chmod(0o604)
    arena.own()
    gid = 1000 if arena.who == "root" else 3_000_000 + 999
    os.chown(arena.rootfs / "denied", -1, gid)
    done = arena.join("cat", "/denied", options=("--rm", "-u", "5000:1000"))
    assert done.returncode == 1 and "Permission denied" in done.stderr
    now = fields(arena.join("cat", "/proc/self/status", options=("--rm", "-u", "5000:1000")).stdout)
    assert now["Groups"].split() == ["1000"] and now["Gid"].split() == ["1000"] * 4


def test_cve_2022_0492_the_kernels_surface(arena):
    """A default member makes no namespace, no mount and no cgroup, and asks no nf_tables."""
    script = "unshare -Urm true; mount -t cgroup c /tmp; mount -t cgroup2 c /tmp; mount -t tmpfs t /tmp; mkdir /sys/fs/cgroup/x; echo $$ >/sys/fs/cgroup/cgroup.procs; ip link add d0 type dummy"
    done = arena.join("sh", "-c", script, options=("--rm",))
    assert len(done.stderr.strip().splitlines()) == 7 and done.stdout == ""


@pytest.mark.parametrize("arena", ["owned"], indirect=True)  # in a pod of root's, a default member: test_cve_2022_0492
def test_cve_2023_25809_cgroups_above(arena):
    """With every capability and no filter, a member of an owned pod still writes to no cgroup above its own."""
    script = "mount -t cgroup2 c /tmp; find /tmp -name cgroup.procs | while read f; do cat $f; done | sort -u | grep -vx -e $$ | head; cat /proc/self/cgroup | grep 0::; ls -d /tmp/../tmp/*m-* 2>/dev/null"
    done = arena.join("sh", "-c", script, options=("--rm", "--cap-add", "ALL", "--security-opt", "seccomp=unconfined"))
    assert "0::/\n" in done.stdout and "m-" not in done.stdout


def test_cve_2017_5226_no_terminal_of_the_callers(arena):
    """Without -t a member has none; the caller's descriptors are not its own."""
    out = arena.join(
        "sh", "-c", "tty; ls -l /proc/self/fd | grep -c /dev/pts; (: </dev/tty) 2>&1", options=("--rm",)
    ).stdout
    assert out.startswith("not a tty\n0\n") and "No such device or address" in out


def test_cve_2022_1227_no_program_of_the_image_looks(arena):
    """pod ps, ls, logs, inspect, stop: a ps and an nsenter of the image's own are never run."""
    for name in ("ps", "nsenter", "cat", "ls"):
        path = arena.rootfs / "canaries" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!/bin/sh\necho ran >>/canary\n")
        path.chmod(0o755)
    arena.own()
    arena.join("/bin/sleep", "1000", options=("-d", "--name", "m", "-e", "PATH=/canaries"), check=True)
    for words in (["pod", "ps", "pause"], ["ls"], ["inspect", "m"], ["logs", "m"], ["stats", "m"]):
        arena.host.run(*words)
    assert arena.host.run("exec", "m", "/bin/ls", "/").stdout.find("canary\n") < 0
    arena.host.run("rm", "-f", "m")


def test_bundle_hooks_are_no_way_out(arena):
    """CVE-2025-23266: nsrun runs no hooks; it says so instead of leaving them out."""
    bundle = arena.directory("bundle")
    config = {
        "process": {"args": ["true"], "cwd": "/"},
        "root": {"path": str(arena.rootfs)},
        "hooks": {"prestart": [{"path": "/bin/touch", "args": ["touch", str(bundle / "ran")]}]},
    }
    (bundle / "config.json").write_text(json.dumps(config))
    text = arena.host.fails(125, "join", "pause", "--bundle", bundle)
    assert "hooks" in text and not (bundle / "ran").exists()


@pytest.mark.parametrize("place", ["absolute", "relative"])
def test_seeding_a_volume_follows_no_link(host, busybox, tmp_path, place):
    """A member that can write to the root swaps its directories with links, while a new volume gets what the root has there."""
    secret = host.root / "secret"
    secret.mkdir(mode=0o700)
    (secret / "shadow").write_text("SECRET\n")
    root = host.root / "swapped"
    sh("cp", "-a", busybox, root)
    data = root / "data"
    data.mkdir()
    for number in range(100):
        (data / f"d{number}").mkdir()
        (data / f"l{number}").symlink_to(secret if place == "absolute" else os.path.relpath(secret, data))
    script = (
        "import ctypes, os, sys, time\nl = ctypes.CDLL(None)\nos.chdir(sys.argv[1])\nend = time.time() + 60\n"
        "names = [(b'd%d' % n, b'l%d' % n) for n in range(100)]\n"
        "while time.time() < end:\n for a, b in names: l.renameat2(-100, a, -100, b, 2)\n"
    )
    swapping = subprocess.Popen([sys.executable, "-c", script, data])
    try:
        host.run("pod", "create", "--network", "none", "p")
        for number in range(12):
            words = ["join", "p", "--rm", "--rootfs", root, "--writable", "-v", f"vol{number}:/data", "--", "true"]
            host.run(*words, check=False)
            assert not sh("find", host.root / "lib/volumes", "-name", "shadow").stdout
    finally:
        swapping.kill()
        swapping.wait()
