# SPDX-License-Identifier: Apache-2.0
"""What config.json asks for is what a container of nsrun-oci has, as the kernel shows it."""

import copy
import json
import os
import pathlib
import re
import subprocess

import pytest
from conftest import need, sh, wait_for
from oci import GROUP, SLEEP, Runtime, runtime

pytestmark = pytest.mark.live


v1 = pytest.mark.skipif(
    not os.path.isdir("/sys/fs/cgroup/pids"), reason="no cgroup v1 here; to enable: a machine with it"
)


@pytest.fixture
def r(host, busybox):
    with runtime(host, busybox, "nsrun-oci", hybrid=True) as made:
        yield made


def run(r: Runtime, script: str, *, name: str = "c", code: int = 0, **changes) -> str:
    """What a shell script in a container says; changes as path__of__key=value in its config.json."""
    document = r.config("sh", "-c", script)
    for path, value in changes.items():
        *way, last = path.split("__")
        place = document
        for part in way:
            place = place.setdefault(part, {})
        place[last] = value
    done = r.call("run", "--bundle", r.bundle(name, document), name)
    assert done.returncode == code, done
    return done.stdout.strip() if not code else done.stderr


# ---- process ------------------------------------------------------------------------------------------------------


def test_user_groups_umask_and_home(r):
    user = {"uid": 1000, "gid": 1001, "umask": 0o27, "additionalGids": [5, 6]}
    text = run(r, "id -u; id -g; id -G; umask; echo $HOME", process__user=user)
    assert text.split("\n") == ["1000", "1001", "1001 5 6", "0027", "/"]
    assert run(r, "umask; echo $HOME").split() == ["0022", "/root"]
    assert run(r, "echo $HOME", process__env=["PATH=/bin", "HOME=/x"]) == "/x"


def test_a_pipe_belongs_to_the_user_and_a_file_stays_whose_it_is(r):
    document = r.config("sh", "-c", "stat -L -c '%u %F' /proc/self/fd/1 /proc/self/fd/2; echo again >/dev/stdout", user={"uid": 7, "gid": 7})  # fmt: skip
    command = r.words(r.program, f"--root={r.state}", "run", "--bundle", r.bundle("c", document), "c")
    with open(r.base / "errors", "w") as file:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=file, text=True, env=r.env, timeout=30, check=True)  # fmt: skip
    assert done.stdout.split("\n")[:3] == ["7 fifo", "0 regular empty file", "again"]


def test_capabilities_with_ambient_and_inheritable(r):
    caps = {name: ["CAP_CHOWN", "CAP_KILL"] for name in ("bounding", "permitted", "inheritable")}
    caps |= {"effective": ["CAP_CHOWN"], "ambient": ["CAP_KILL"]}
    text = run(r, "grep ^Cap /proc/self/status", process__capabilities=caps, process__user={"uid": 7, "gid": 7})
    found = {line.split(":")[0]: int(line.split()[1], 16) for line in text.split("\n")}
    assert found == {"CapInh": 0x21, "CapPrm": 0x20, "CapEff": 0x20, "CapBnd": 0x21, "CapAmb": 0x20}
    assert "CapEff:\t0000000000000000" in run(r, "grep ^Cap /proc/self/status", process__capabilities={})


def test_limits_score_and_privileges(r):
    limits = [{"type": "RLIMIT_NOFILE", "soft": 99, "hard": 111}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]
    text = run(r, "ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj; grep NoNew /proc/self/status", process__rlimits=limits, process__oomScoreAdj=123)  # fmt: skip
    assert text.split() == ["99", "111", "123", "NoNewPrivs:", "1"]
    text = run(r, "cat /proc/self/oom_score_adj; grep NoNew /proc/self/status", process__noNewPrivileges=False)
    assert text.split() == [pathlib.Path("/proc/self/oom_score_adj").read_text().strip(), "NoNewPrivs:", "0"]


def test_scheduler_and_io_priority(r):
    scheduler = {"policy": "SCHED_BATCH", "nice": 5}
    text = run(r, "grep '^policy' /proc/self/sched; awk '{print $19}' /proc/self/stat; ionice -p $$", process__scheduler=scheduler, process__ioPriority={"class": "IOPRIO_CLASS_IDLE"})  # fmt: skip
    assert text.split("\n")[-2:] == ["5", "idle"] or text.split("\n")[-2:] == ["5", "idle: prio 0"], text


def test_a_working_directory_is_made(r):
    document = r.config("pwd")
    root = r.base / "root"
    sh("cp", "-a", r.rootfs, root)
    document["root"] = {"path": str(root)}
    document["process"]["cwd"] = "/made/for/it"
    assert r.ok("run", "--bundle", r.bundle("c", document), "c") == "/made/for/it\n"
    assert (root / "made/for/it").is_dir()


def test_personality(r):
    assert run(r, "uname -m", linux__personality={"domain": "LINUX32"}) in ("i686", "armv8l")


@pytest.mark.parametrize("late", [True, False])
def test_seccomp(r, late):
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_AARCH64"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"],
        "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
            # what nsrun-init does between the filter and the exec
            *([] if late else [{"names": ["accept4", "socket", "connect"], "action": "SCMP_ACT_KILL"}]),
        ],
    }
    text = run(r, "grep ^Seccomp: /proc/self/status; mkdir /dev/x 2>&1", code=0, linux__seccomp=profile, process__noNewPrivileges=late, process__args=["sh", "-c", "grep ^Seccomp: /proc/self/status; mkdir /dev/x 2>&1 || true"])  # fmt: skip
    assert "Seccomp:\t2" in text and "No space left" in text


def test_an_early_filter_that_forbids_close_range_leaves_no_descriptor_open(r):
    """What nsrun-init has open, `told` and the channel among it, is the program's neither then."""
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["close_range"], "action": "SCMP_ACT_ERRNO"}]}
    document = r.config("ls", "/proc/1/fd", noNewPrivileges=False)
    document["linux"]["seccomp"] = profile
    assert r.ok("run", "--bundle", r.bundle("c", document), "c").split() == ["0", "1", "2", "3"]
    r.create("d", {**document, "process": {**document["process"], "args": SLEEP}})
    r.ok("start", "d")
    assert r.ok("exec", "d", "ls", "/proc/self/fd").split() == ["0", "1", "2", "3"]


def test_the_filter_is_set_last_of_all_when_it_can_be(r):
    """A profile that allows little more than the program itself needs."""
    names = [
        "execve", "brk", "mmap", "munmap", "mprotect", "read", "write", "close", "exit_group", "exit", "fstat", "newfstatat", "arch_prctl",
        "set_tid_address", "set_robust_list", "rseq", "prlimit64", "readlink", "readlinkat", "getrandom", "openat", "pread64", "access", "getuid", "geteuid",
        "setuid", "setgid", "getgid", "prctl", "ioctl", "faccessat", "futex", "rt_sigaction", "rt_sigprocmask", "uname", "stat", "lstat",
    ]  # fmt: skip
    profile = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"}]}
    document = r.config("echo", "hello")
    document["linux"]["seccomp"] = profile
    assert r.ok("run", "--bundle", r.bundle("c", document), "c") == "hello\n"


# ---- namespaces ---------------------------------------------------------------------------------------------------


def test_names(r):
    text = run(r, "hostname; cat /proc/sys/kernel/domainname; cat /proc/sys/net/ipv4/ip_forward; ip link | grep -c LOOPBACK,UP", domainname="of.mine", linux__sysctl={"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1"})  # fmt: skip
    assert text.split() == ["box", "of.mine", "1", "1"]


def test_namespaces_by_path_new_and_inherited(r):
    first = r.running("first")
    script = "for n in net ipc uts pid mnt; do readlink /proc/self/ns/$n; done"
    kinds = {"network": "net", "ipc": "ipc", "uts": "uts", "pid": "pid"}
    joined = [{"type": kind, "path": f"/proc/{first}/ns/{name}"} for kind, name in kinds.items()]
    text = run(r, f"{script}; ps | grep -c 'while'", linux__namespaces=[*joined, {"type": "mount"}])
    theirs = [os.readlink(f"/proc/{first}/ns/{name}") for name in ("net", "ipc", "uts", "pid", "mnt")]
    *ours, seen = text.split("\n")
    assert ours[:4] == theirs[:4] and ours[4] != theirs[4] and int(seen) > 0
    text = run(r, script, hostname="", linux__namespaces=[{"type": "mount"}])
    holder = [os.readlink(f"/proc/{r.holder.pid}/ns/{name}") for name in ("net", "ipc", "uts", "pid", "mnt")]
    assert text.split("\n")[:4] == holder[:4] and text.split("\n")[4] != holder[4]


def test_a_time_namespace(r):
    need(os.path.exists("/proc/self/ns/time"), "this kernel has no time namespaces", "Linux 5.6")
    kinds = [*r.config()["linux"]["namespaces"], {"type": "time"}]
    offsets = {"boottime": {"secs": 1_000_000, "nanosecs": 5}, "monotonic": {"secs": 7}}
    document = r.config("sh", "-c", "cat /proc/uptime; sleep 1000")
    document["linux"].update(namespaces=kinds, timeOffsets=offsets)
    pid = r.create("c", document)
    r.ok("start", "c")
    here = float(pathlib.Path("/proc/uptime").read_text().split()[0])
    for options in ((), ("--user", "7:7")):
        there = float(r.ok("exec", *options, "c", "cat", "/proc/uptime").split()[0])
        assert 999_990 < there - here < 1_000_100
    text = pathlib.Path(f"/proc/{pid}/timens_offsets").read_text().split()
    assert text == ["monotonic", "7", "0", "boottime", "1000000", "5"]
    joined = [*r.config()["linux"]["namespaces"], {"type": "time", "path": f"/proc/{pid}/ns/time"}]
    assert float(run(r, "cat /proc/uptime", name="d", linux__namespaces=joined).split()[0]) > 1_000_000
    text = run(
        r, "true", name="e", code=1, linux__namespaces=kinds, linux__timeOffsets={"boottime": {"secs": -(1 << 40)}}
    )
    assert "unshare(CLONE_NEWTIME)" in text


def test_a_path_of_another_kind_is_refused(r):
    text = run(
        r,
        "true",
        code=1,
        linux__namespaces=[{"type": "mount"}, {"type": "uts"}, {"type": "ipc", "path": f"/proc/{r.holder.pid}/ns/net"}],
    )
    assert "linux.namespaces" in text and "ipc" in text
    text = run(
        r,
        "true",
        code=1,
        linux__namespaces=[{"type": "mount"}, {"type": "uts"}, {"type": "ipc", "path": "/etc/passwd"}],
    )
    assert "linux.namespaces" in text
    text = run(
        r, "true", code=1, linux__namespaces=[{"type": "mount"}, {"type": "uts"}, {"type": "ipc", "path": "/nosuch"}]
    )
    assert "No such file" in text and not r.cgroups("c")


MAPS = [{"containerID": 0, "hostID": 100000, "size": 1000}, {"containerID": 1000, "hostID": 12001, "size": 1}]
OWN = [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "user")]


@pytest.fixture
def root(r):
    """A root that belongs to the ids of MAPS."""
    path = r.base / "root"
    sh("cp", "-a", r.rootfs, path)
    sh("chown", "-R", "100000:100000", path)
    for above in (r.host.root, r.base):
        above.chmod(0o755)
    return path


def test_a_user_namespace(r, root):
    script = "cat /proc/self/uid_map; id -u; touch /made; stat -c %u /made /dev/null /dev/pts /proc; ls -l /dev/null; echo x >/dev/null; head -c 1 /dev/zero | wc -c"
    text = run(
        r, script, root={"path": str(root)}, linux__namespaces=OWN, linux__uidMappings=MAPS, linux__gidMappings=MAPS
    )
    assert "100000" in text and (root / "made").stat().st_uid == 100000 and text.endswith("\n1"), text
    text = run(r, "id -u; id -G", root={"path": str(root)}, linux__namespaces=OWN, linux__uidMappings=MAPS, linux__gidMappings=MAPS, process__user={"uid": 1000, "gid": 7, "additionalGids": [8]})  # fmt: skip
    assert text.split("\n") == ["1000", "7 8"]
    text = run(r, "true", code=1, root={"path": str(root)}, linux__namespaces=OWN, linux__uidMappings=MAPS, linux__gidMappings=MAPS, process__user={"uid": 2000, "gid": 0})  # fmt: skip
    assert "process.user.uid" in text


def test_exec_in_a_user_namespace(r, root):
    document = r.config(*SLEEP)
    document["root"] = {"path": str(root)}
    document["linux"].update(namespaces=OWN, uidMappings=MAPS, gidMappings=MAPS)
    if os.path.exists("/proc/self/ns/time"):  # which belongs to the user namespace then
        document["linux"].update(namespaces=[*OWN, {"type": "time"}], timeOffsets={"boottime": {"secs": 5}})
    pid = r.create("c", document)
    r.ok("start", "c")
    text = r.ok("exec", "--user", "1000:7", "c", "sh", "-c", "id -u; readlink /proc/self/ns/user")
    assert text.split() == ["1000", os.readlink(f"/proc/{pid}/ns/user")]
    assert pathlib.Path(f"/proc/{pid}/uid_map").read_text().split()[:2] == ["0", "100000"]
    # and another container joins its user namespace, and the others that belong to it
    kinds = {"user": "user", "network": "net", "ipc": "ipc", "uts": "uts", "pid": "pid"}
    document = r.config(
        "sh", "-c", "id -u; readlink /proc/self/ns/user; readlink /proc/self/ns/net; echo x >/dev/null && echo y"
    )
    document["root"] = {"path": str(root)}
    document["linux"]["namespaces"] = [{"type": k, "path": f"/proc/{pid}/ns/{n}"} for k, n in kinds.items()] + [{"type": "mount"}]  # fmt: skip
    text = r.ok("run", "--bundle", r.bundle("d", document), "d")
    assert text.split() == ["0", os.readlink(f"/proc/{pid}/ns/user"), os.readlink(f"/proc/{pid}/ns/net"), "y"]


def test_the_maps_of_a_user_namespace_by_any_path(r, root):
    """Those of a process that is in it; without one nobody knows them, and they are not taken for the host's."""
    document = r.config(*SLEEP)
    document["root"] = {"path": str(root)}
    document["linux"].update(namespaces=OWN, uidMappings=MAPS, gidMappings=MAPS)
    pid = r.create("c", document)
    r.ok("start", "c")
    inside = r.config("sh", "-c", "stat -L -c %u /proc/self/fd/1; ls -ln /dev/pts/ptmx", user={"uid": 5, "gid": 5})
    inside["root"] = {"path": str(root)}
    kept = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)
    path = f"/proc/{os.getpid()}/fd/{kept}"
    inside["linux"]["namespaces"] = [{"type": "user", "path": path}, *({"type": k} for k in ("mount", "pid", "uts", "ipc"))]  # fmt: skip
    try:
        command = r.words(r.program, f"--root={r.state}", "run", "--bundle", r.bundle("d", inside), "d")
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False, env=r.env)  # fmt: skip
        assert done.stdout.split("\n")[0] == "5", done
        r.ok("delete", "--force", "c")
        r.reap(pid)
        done = r.call("run", "--bundle", r.bundle("d", inside), "d")
        assert done.returncode == 1 and "no process is in" in done.stderr, done
    finally:
        os.close(kept)


def test_a_device_of_the_host_is_the_one_that_was_named(r, root):
    """Where no node can be made, that of the host is bound, whatever it is."""
    for number, code in ((5, 0), (3, 1)):
        device = {"type": "c", "path": "/dev/zero", "major": 1, "minor": number}
        text = run(r, "true", code=code, root={"path": str(root)}, linux__namespaces=OWN, linux__uidMappings=MAPS, linux__gidMappings=MAPS, linux__devices=[device])  # fmt: skip
    assert "linux.devices: /dev/zero" in text and "1:3" in text


def test_a_network_namespace_of_the_host_and_a_user_namespace_of_its_own(r, root):
    """podman does so with a bridge: what the user namespace may not join is joined before it."""
    holder = subprocess.Popen(["unshare", "--net", "sleep", "100"])
    try:
        wait_for(lambda: os.readlink(f"/proc/{holder.pid}/ns/net") != os.readlink("/proc/self/ns/net"))
        kinds = [entry for entry in OWN if entry["type"] != "network"]
        kinds.append({"type": "network", "path": f"/proc/{holder.pid}/ns/net"})
        text = run(r, "readlink /proc/self/ns/net; id -u", root={"path": str(root)}, linux__namespaces=kinds, linux__uidMappings=MAPS, linux__gidMappings=MAPS)  # fmt: skip
        assert text.split() == [os.readlink(f"/proc/{holder.pid}/ns/net"), "0"]
    finally:
        holder.kill()
        holder.wait()


# ---- mounts -------------------------------------------------------------------------------------------------------


def with_mounts(r: Runtime, *mounts: dict) -> dict:
    return {"mounts": [*r.config()["mounts"], *mounts]}


def options_of(r: Runtime, target: str, *mounts: dict) -> str:
    text = run(r, "cat /proc/self/mountinfo", **with_mounts(r, *mounts))
    return next(line for line in text.split("\n")[::-1] if line.split()[4] == target)


def test_bind_mounts(r):
    source = r.base / "source"
    (source / "below").mkdir(parents=True)
    (source / "file").write_text("content")
    r.run("mount", "-t", "tmpfs", "below", source / "below")
    run_line = options_of(r, "/mnt", {"destination": "/mnt", "type": "bind", "source": str(source), "options": ["bind", "ro", "nosuid", "noatime"]})  # fmt: skip
    assert {"ro", "nosuid", "noatime"} <= set(run_line.split()[5].split(","))
    mounts = ({"destination": "/mnt", "type": "none", "source": str(source), "options": ["rbind", "rro"]}, {"destination": "/tmp/file", "source": str(source / "file"), "options": ["bind"]})  # fmt: skip
    text = run(r, "touch /mnt/x /mnt/below/x; cat /tmp/file; grep -c /mnt /proc/mounts", **with_mounts(r, {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"}, *mounts))  # fmt: skip
    assert text.split() == ["content", "2"] or text == "content2", text
    assert not (source / "x").exists()
    text = run(
        r,
        "true",
        code=1,
        **with_mounts(r, {"destination": "/mnt", "type": "bind", "source": "/nosuch", "options": ["bind"]}),
    )
    assert "No such file or directory" in text


def test_a_bind_mount_is_relative_to_the_bundle(r):
    bundle = r.bundle("c")
    (bundle / "here").mkdir()
    (bundle / "here/file").write_text("content")
    assert run(r, "cat /mnt/file", **with_mounts(r, {"destination": "/mnt", "type": "bind", "source": "here", "options": ["bind"]})) == "content"  # fmt: skip


@pytest.mark.parametrize("option, shown", [("rshared", "shared:"), ("rslave", "master:"), ("rprivate", ""), ("runbindable", "unbindable")])  # fmt: skip
def test_propagation_of_a_mount(r, option, shown):
    source = r.base / "source"
    source.mkdir()
    r.run("mount", "-t", "tmpfs", "source", source)
    r.run("mount", "--make-shared", source)
    line = options_of(r, "/mnt", {"destination": "/mnt", "type": "bind", "source": str(source), "options": ["rbind", option]})  # fmt: skip
    fields = line.split()
    found = " ".join(fields[6 : fields.index("-")])
    assert found.startswith(shown) and bool(found) == bool(shown), line


@pytest.mark.parametrize("option, shown", [("shared", "shared:"), ("slave", ""), ("private", ""), ("runbindable", "unbindable")])  # fmt: skip
def test_propagation_of_the_root(r, option, shown):
    text = run(r, "head -1 /proc/self/mountinfo", linux__rootfsPropagation=option)
    fields = text.split()
    assert " ".join(fields[6 : fields.index("-")]).startswith(shown), text


def test_a_mount_that_comes_later_reaches_a_slave(r):
    source = r.base / "source"
    source.mkdir()
    r.run("mount", "-t", "tmpfs", "source", source)
    r.run("mount", "--make-shared", source)
    (source / "later").mkdir() if False else r.run("mkdir", source / "later")
    document = r.config(*SLEEP)
    document["mounts"].append(
        {"destination": "/mnt", "type": "bind", "source": str(source), "options": ["rbind", "rslave"]}
    )
    r.create("c", document)
    r.ok("start", "c")
    r.run("mount", "-t", "tmpfs", "later", source / "later")
    assert "later on /mnt/later" in r.ok("exec", "c", "mount")
    r.ok("delete", "--force", "c")
    r.run("umount", source / "later")


def test_file_systems(r):
    line = options_of(r, "/tmp", {"destination": "/tmp", "type": "tmpfs", "source": "mine", "options": ["nodev", "size=1m", "mode=700", "noexec"]})  # fmt: skip
    assert line.split()[-3:-1] == ["tmpfs", "mine"] and "size=1024k,mode=700" in line and "noexec" in line
    text = run(r, "true", code=1, **with_mounts(r, {"destination": "/tmp", "type": "nope", "source": "x"}))
    assert "mount nope on /tmp" in text
    text = run(
        r,
        "true",
        code=1,
        **with_mounts(r, {"destination": "/tmp", "type": "tmpfs", "source": "x", "options": ["nope=1"]}),
    )
    assert "nope=1" in text


def test_a_tmpfs_keeps_the_mode_of_its_place(r):
    assert run(r, "stat -c %a /tmp", **with_mounts(r, {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"})) == f"{os.stat(f'{r.rootfs}/tmp').st_mode & 0o7777:o}"  # fmt: skip


def test_a_tmpfs_that_begins_with_what_it_covers(r):
    text = run(r, "cat /etc/passwd | head -1; stat -c %a /etc; touch /etc/x && ls -la /empty | wc -l", **with_mounts(r, {"destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}))  # fmt: skip
    first = pathlib.Path(r.rootfs, "etc/passwd").read_text().split("\n")[0]
    assert text.split("\n")[:2] == [first, f"{os.stat(f'{r.rootfs}/etc').st_mode & 0o7777:o}"]
    assert not pathlib.Path(r.rootfs, "etc/x").exists()


def test_an_idmapped_mount(r):
    source = r.base / "source"
    source.mkdir()
    os.chown(source, 0, 0)
    maps = [{"containerID": 0, "hostID": 5000, "size": 10}]
    text = run(r, "stat -c %u /mnt", **with_mounts(r, {"destination": "/mnt", "type": "bind", "source": str(source), "options": ["bind", "idmap"], "uidMappings": maps, "gidMappings": maps}))  # fmt: skip
    assert text == "5000"


def test_no_mount_leads_out_of_the_root(r):
    """A link of the image is followed inside the root, and never as a place for proc or sysfs."""
    root = r.base / "root"
    sh("cp", "-a", r.rootfs, root)
    outside = r.base / "outside"
    outside.mkdir()
    (root / "link").symlink_to(outside)
    (root / "up").symlink_to("../../../../../..")
    (root / "links").symlink_to("/mnt")
    source = r.base / "source"
    source.mkdir()
    (source / "secret").touch()
    document = r.config("sh", "-c", "cat /proc/self/mountinfo; find / -xdev -name secret; find /mnt -name secret")
    document["root"] = {"path": str(root)}
    plain = copy.deepcopy(document["mounts"])
    names, places = ("link", "up", "links"), [f"{outside}/x", "/x", "/mnt/x"]
    for kind, more in (
        ("tmpfs", {"type": "tmpfs"}),
        ("bind", {"type": "bind", "source": str(source)}),
        ("tmpcopyup", {"type": "tmpfs", "options": ["tmpcopyup"]}),
    ):
        document["mounts"] = [*plain, *({"destination": f"/{name}/x", "source": name, **more} for name in names)]
        text = r.ok("run", "--bundle", r.bundle("c", document), "c")
        found = [line.split()[4] for line in text.split("\n") if " - " in line and line.split()[4] in places]
        assert found == places, (kind, text)
        assert ("/mnt/x/secret" in text) == (kind == "bind")
        assert not list(outside.iterdir())
    (root / "sys").rmdir()
    (root / "sys").symlink_to("/mnt")
    document["mounts"].append({"destination": "/sys", "type": "sysfs", "source": "sysfs"})
    done = r.call("run", "--bundle", r.bundle("c", document), "c")
    assert done.returncode == 1 and "sysfs on /sys" in done.stderr and "ELOOP" in done.stderr


def test_masked_and_read_only(r):
    text = run(r, "ls /proc/irq; head -c 1 /proc/kcore; touch /usr/x 2>&1; touch /tmp/x 2>&1; true", root={"path": str(r.rootfs)}, linux__maskedPaths=["/proc/irq", "/proc/kcore", "/nosuch"], linux__readonlyPaths=["/usr", "/nosuch"], **with_mounts(r, {"destination": "/tmp", "type": "tmpfs", "source": "t"}))  # fmt: skip
    assert text == "touch: /usr/x: Read-only file system", text
    assert "Read-only" in run(r, "touch /x 2>&1; true")


def test_devices(r):
    devices = [{"type": "c", "path": "/dev/mine", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 3, "gid": 4}, {"type": "p", "path": "/dev/dir/fifo"}, {"type": "b", "path": "/dev/block", "major": 7, "minor": 300}]  # fmt: skip
    text = run(r, "stat -c '%F %a %u %g %t %T' /dev/mine /dev/null /dev/dir/fifo /dev/block; head -c 3 /dev/mine | wc -c; ls -l /dev/fd /dev/ptmx | wc -l", linux__devices=devices)  # fmt: skip
    assert text.split("\n") == ["character special file 640 3 4 1 5", "character special file 666 0 0 1 3", "fifo 666 0 0 0 0", "block special file 666 0 0 7 12c", "3", "2"]  # fmt: skip


def test_no_pivot(r):
    document = r.config("sh", "-c", "ls /; cat /proc/self/mountinfo | wc -l")
    text = r.ok("run", "--no-pivot", "--bundle", r.bundle("c", document), "c")
    assert "etc" in text.split() and "sys" in text.split()


# ---- cgroups ------------------------------------------------------------------------------------------------------


@v1
def test_resources(r):
    wanted = {
        "pids": {"limit": 33},
        "memory": {"limit": 50 << 20},
        "cpu": {"shares": 512, "quota": 50000, "period": 100000},
    }
    document = r.config(*SLEEP)
    document["linux"]["resources"] = wanted
    pid = r.create("c", document)
    for file, value in (("pids/{}/pids.max", "33"), ("memory/{}/memory.limit_in_bytes", str(50 << 20)), ("cpu/{}/cpu.shares", "512"), ("cpu/{}/cpu.cfs_quota_us", "50000")):  # fmt: skip
        assert pathlib.Path("/sys/fs/cgroup", file.format(f"{GROUP}/c")).read_text().strip() == value
    own = pathlib.Path(f"/proc/{pid}/cgroup").read_text().strip().split("\n")
    assert len(own) > 5 and all(line.endswith(f":/{GROUP}/c") for line in own), own
    r.ok("start", "c")
    assert all(
        line.endswith(f":/{GROUP}/c") for line in r.ok("exec", "c", "cat", "/proc/self/cgroup").strip().split("\n")
    )
    r.ok("update", "--memory", "60m", "--pids-limit", "44", "c")
    (r.base / "resources").write_text(json.dumps({"cpu": {"shares": 256}}))
    r.ok("update", "--resources", r.base / "resources", "c")
    assert pathlib.Path(f"/sys/fs/cgroup/memory/{GROUP}/c/memory.limit_in_bytes").read_text().strip() == str(60 << 20)
    assert pathlib.Path(f"/sys/fs/cgroup/pids/{GROUP}/c/pids.max").read_text().strip() == "44"
    assert pathlib.Path(f"/sys/fs/cgroup/cpu/{GROUP}/c/cpu.shares").read_text().strip() == "256"
    with open(r.base / "resources", "rb") as file:
        r.ok("update", "--resources", "-", "c", stdin=file)
    data = json.loads(r.ok("events", "--stats", "c"))["data"]
    assert data["pids"]["limit"] == 44 and data["memory"]["usage"]["limit"] == 60 << 20 and data["cpu"]["usage"]["total"] > 0  # fmt: skip
    r.ok("delete", "--force", "c")
    assert not r.cgroups("c")


@v1
def test_memory_is_checked_before_an_update(r):
    document = r.config("sh", "-c", "head -c 20000000 /dev/zero >/dev/shm/x; sleep 1000")
    document["linux"]["resources"] = {"memory": {"limit": 60 << 20}}
    r.create("c", document)
    r.ok("start", "c")
    wait_for(lambda: json.loads(r.ok("events", "--stats", "c"))["data"]["memory"]["usage"]["usage"] > 15 << 20)
    (r.base / "less").write_text(json.dumps({"memory": {"limit": 10 << 20, "checkBeforeUpdate": True}}))
    done = r.call("update", "--resources", r.base / "less", "c")
    assert done.returncode == 1 and "in use" in done.stderr
    assert r.status("c")["status"] == "running"


@v1
def test_memory_with_swap_grows_and_shrinks(r):
    """The limit of memory may never be above that of both: that of both has to grow first, and shrink last."""
    files = [pathlib.Path(f"/sys/fs/cgroup/memory/{GROUP}/c/memory.{name}limit_in_bytes") for name in ("", "memsw.")]
    need(os.path.exists("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"), "swap is not counted", "swapaccount=1")
    document = r.config(*SLEEP)
    document["linux"]["resources"] = {"memory": {"limit": 50 << 20, "swap": 60 << 20}}
    r.create("c", document)
    for memory, swap in ((100, 110), (40, 45), (45, 45), (200, -1), (50, 60)):
        r.ok("update", "--memory", f"{memory}m", "--memory-swap", f"{swap}m" if swap > 0 else "-1", "c")
        found = [int(file.read_text()) for file in files]
        assert found[0] == memory << 20 and (found[1] == swap << 20 or (swap < 0 and found[1] > 1 << 60)), found
    done = r.call("update", "--memory", "100m", "--memory-swap", "70m", "c")
    assert done.returncode == 1 and "linux.resources.memory" in done.stderr


def test_without_cgroups(r):
    document = r.config("cat", "/proc/self/cgroup")
    text = r.ok("--cgroup-manager=disabled", "run", "--bundle", r.bundle("c", document), "c")
    assert GROUP not in text and not r.cgroups("c")
    document["linux"]["resources"] = {"pids": {"limit": 5}}
    done = r.call("--cgroup-manager=disabled", "run", "--bundle", r.bundle("c", document), "c")
    assert done.returncode == 1 and "linux.resources.pids.limit" in done.stderr


@v1
def test_device_rules(r):
    rules = [{"allow": False, "access": "rwm"}, {"allow": True, "type": "c", "major": 10, "minor": 200, "access": "r"}]
    caps = {name: ["CAP_MKNOD"] for name in ("bounding", "effective", "permitted")}
    text = run(r, "mknod /dev/mem c 1 1; head -c 1 /dev/mem 2>&1; head -c 2 /dev/zero | wc -c", linux__resources={"devices": rules}, process__capabilities=caps)  # fmt: skip
    assert text.split("\n") == ["head: /dev/mem: Operation not permitted", "2"]


@v1
def test_a_cgroup_namespace_and_mount(r):
    mount = {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid"]}
    sysfs = {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]}
    kinds = [*r.config()["linux"]["namespaces"], {"type": "cgroup"}]
    script = "grep -v ':/$' /proc/self/cgroup; cat /sys/fs/cgroup/pids/pids.max; mkdir /sys/fs/cgroup/pids/x 2>&1; touch /sys/fs/cgroup/x 2>&1; true"
    text = run(
        r, script, linux__namespaces=kinds, linux__resources={"pids": {"limit": 21}}, **with_mounts(r, sysfs, mount)
    )
    first, *others = text.split("\n")
    assert first == "21" and all("Read-only" in line for line in others), text
    text = run(
        r, "cat /sys/fs/cgroup/pids/pids.max", linux__resources={"pids": {"limit": 22}}, **with_mounts(r, sysfs, mount)
    )
    assert text == "22"  # without a cgroup namespace, its own directory alone is shown


@v1
def test_what_this_machine_lacks_is_refused(r):
    for wanted, field in (({"unified": {"memory.high": "1"}}, "unified"), ({"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]}, "hugepageLimits"), ({"network": {"classID": 5}}, "network.classID")):  # fmt: skip
        text = run(r, "true", code=1, linux__resources=wanted)
        assert f"linux.resources.{field}" in text and not r.cgroups("c")


@pytest.mark.parametrize("path", ["/../x", "/", "a/../b", "system.slice:x:y"])
def test_a_cgroups_path_that_is_refused(r, path):
    assert "linux.cgroupsPath" in run(r, "true", code=1, linux__cgroupsPath=path)


def test_a_cgroup_that_others_are_in_is_refused(r):
    r.running("first")
    text = run(r, "true", name="second", code=1, linux__cgroupsPath=f"/{GROUP}/first")
    assert "linux.cgroupsPath" in text
    assert r.status("first")["status"] == "running"


def test_a_cgroup_above_others_is_refused(r):
    """`delete` would end all that is below it."""
    r.running("first")
    text = run(r, "true", name="second", code=1, linux__cgroupsPath=f"/{GROUP}")
    assert "linux.cgroupsPath" in text and r.status("first")["status"] == "running"


def test_systemd_cgroup_without_systemd(r):
    done = r.call("--systemd-cgroup", "create", "--bundle", r.bundle("c"), "c")
    assert done.returncode == 1 and "systemd" in done.stderr


# ---- hooks --------------------------------------------------------------------------------------------------------

HOOK = """#!/bin/sh
echo "$1 $(readlink /proc/self/ns/mnt) $(readlink /proc/self/ns/net) $(test -e /etc/debian_version && echo host)" >>"$2"
cat >>"$2.state"
echo >>"$2.state"
"""


def test_hooks_of_all_kinds(r):
    script, said = r.base / "hook", r.base / "said"
    script.write_text(HOOK)
    script.chmod(0o755)
    root = r.base / "root"
    sh("cp", "-a", r.rootfs, root)
    (root / "hook").write_text(HOOK)
    (root / "hook").chmod(0o755)
    document = r.config(*SLEEP)
    document["root"] = {"path": str(root)}
    document["annotations"] = {"a": "b"}
    kinds = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
    document["hooks"] = {kind: [{"path": str(script), "args": ["hook", kind, str(said)], "env": ["PATH=/bin:/usr/bin"], "timeout": 10}] for kind in kinds}  # fmt: skip
    document["hooks"]["startContainer"][0].update(path="/hook", args=["hook", "startContainer", "/dev/shm/said"])
    pid = r.create("c", document)
    ours, theirs = (os.readlink(f"/proc/{p}/ns/net") for p in (r.holder.pid, pid))
    lines = said.read_text().strip().split("\n")
    assert [line.split()[0] for line in lines] == ["prestart", "createRuntime", "createContainer"]
    assert [line.split()[2] for line in lines] == [ours, ours, theirs]
    assert lines[2].split()[1] == os.readlink(f"/proc/{pid}/ns/mnt") and lines[2].endswith("host")
    states = [json.loads(line) for line in (r.base / "said.state").read_text().strip().split("\n")]
    assert {state["pid"] for state in states} == {pid} and {state["status"] for state in states} == {"creating"}
    assert all(state["id"] == "c" and state["annotations"] == {"a": "b"} and state["bundle"].endswith("bundle-c") for state in states)  # fmt: skip
    r.ok("start", "c")
    inside = r.ok("exec", "c", "cat", "/dev/shm/said", "/dev/shm/said.state")
    assert inside.startswith(f"startContainer {os.readlink(f'/proc/{pid}/ns/mnt')} {theirs}") and '"created"' in inside
    assert said.read_text().strip().split("\n")[-1].split()[0] == "poststart"
    r.ok("delete", "--force", "c")
    assert said.read_text().strip().split("\n")[-1].split()[0] == "poststop"
    last = json.loads((r.base / "said.state").read_text().strip().split("\n")[-1])
    assert last["status"] == "stopped" and "pid" not in last


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer"])
def test_a_hook_that_fails_ends_the_create(r, kind):
    document = r.config(*SLEEP)
    document["hooks"] = {kind: [{"path": "/bin/sh", "args": ["sh", "-c", "echo because >&2; exit 3"]}]}
    document["hooks"]["poststop"] = [{"path": "/bin/sh", "args": ["sh", "-c", f"cat >{r.base}/after"]}]
    done = r.call("create", "--bundle", r.bundle("c", document), "c")
    assert done.returncode == 1 and f"hooks.{kind}" in done.stderr and "exit status 3: because" in done.stderr
    assert r.call("state", "c").returncode == 1 and not r.cgroups("c")
    assert json.loads((r.base / "after").read_text())["status"] == "stopped"


def test_a_hook_that_takes_too_long(r):
    document = r.config(*SLEEP)
    document["hooks"] = {"createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "100"], "timeout": 1}]}
    done = r.call("create", "--bundle", r.bundle("c", document), "c")
    assert done.returncode == 1 and "within 1 s" in done.stderr and not r.cgroups("c")


SEEN = """#!/bin/sh
grep -E '^(Uid|Cap|NoNew|Seccomp:)' /proc/self/status >/dev/shm/seen
ulimit -n >>/dev/shm/seen
pwd >>/dev/shm/seen
mkdir /dev/shm/no 2>>/dev/shm/seen
cat /proc/self/cgroup >/dev/shm/cgroups
"""


@pytest.mark.parametrize("privileges", [True, False])
def test_a_hook_of_the_image_has_no_more_power_than_the_container(r, privileges):
    root = r.base / "root"
    sh("cp", "-a", r.rootfs, root)
    (root / "hook").write_text(SEEN)
    (root / "hook").chmod(0o755)
    document = r.config(*SLEEP)
    document["root"] = {"path": str(root)}
    document["process"].update(user={"uid": 7, "gid": 8}, cwd="/tmp", noNewPrivileges=not privileges)
    document["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88}]
    document["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}  # fmt: skip
    document["hooks"] = {"startContainer": [{"path": "/hook", "env": ["PATH=/bin:/usr/bin"]}]}
    pid = r.create("c", document)
    r.ok("start", "c")
    seen = pathlib.Path(f"/proc/{pid}/root/dev/shm/seen").read_text()
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    for name in ("Uid", "CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"):
        (line,) = re.findall(rf"^{name}:.*$", status, re.M)
        assert line in seen, (line, seen)
    assert "\n77\n/tmp\n" in seen and "No space left" in seen
    cgroups = pathlib.Path(f"/proc/{pid}/root/dev/shm/cgroups").read_text()
    assert cgroups == pathlib.Path(f"/proc/{pid}/cgroup").read_text()


def test_a_hook_of_start_that_fails_ends_the_container(r):
    document = r.config(*SLEEP)
    document["hooks"] = {"startContainer": [{"path": "/bin/false"}]}
    r.create("c", document)
    assert r.call("start", "c").returncode == 1
    assert r.status("c")["status"] == "stopped"
    document["hooks"] = {"poststart": [{"path": "/bin/false"}]}
    r.create("d", document)
    done = r.call("start", "d")
    assert done.returncode == 0 and "hooks.poststart" in done.stderr


# ---- exec ---------------------------------------------------------------------------------------------------------


def test_exec_options(r):
    r.running("c")
    text = r.ok("exec", "--env", "A=b", "--cwd", "/tmp", "--user", "5:6", "--additional-gids", "7", "--cap", "CAP_CHOWN", "c", "sh", "-c", "echo $A; pwd; id -u; id -G; grep CapBnd /proc/self/status")  # fmt: skip
    assert text.split("\n")[:4] == ["b", "/tmp", "5", "6 7"]
    assert r.call("exec", "--user", "x", "c", "true").returncode == 255
    assert r.call("exec", "c").returncode == 255
    assert r.ok("exec", "c", "cat", "/proc/self/oom_score_adj") == r.ok("exec", "c", "cat", "/proc/1/oom_score_adj")


def test_exec_takes_no_id_that_is_none(r):
    """4294967295 would leave the id as it is: root's."""
    r.running("c")
    for number in ("4294967295", "4294967296", "99999999999999999999"):
        for words in (("--user", number), ("--user", f"1:{number}"), ("--additional-gids", number)):
            done = r.call("exec", *words, "c", "id", "-u")
            assert done.returncode == 255 and done.stdout == "" and words[0] in done.stderr, done
    assert r.ok("exec", "--user", "4294967294", "c", "id", "-u") == "4294967294\n"


def test_exec_with_no_capabilities_and_no_limits(r):
    document = r.config(*SLEEP)
    document["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88}]
    r.create("c", document)
    r.ok("start", "c")
    process = r.config("sh", "-c", "grep -E '^Cap(Eff|Bnd)' /proc/self/status; ulimit -n")["process"]
    found = []
    for more in ({"capabilities": {}, "rlimits": []}, {"capabilities": None, "rlimits": None}):
        (r.base / "process.json").write_text(json.dumps({**process, **more}))
        found.append(r.ok("exec", "--process", r.base / "process.json", "c").split())
    assert found[0][1::2][:2] == ["0" * 16] * 2 and found[0][-1] != "77"
    assert found[1][1] != "0" * 16 and found[1][-1] == "77"


def test_exec_opens_no_ptmx_but_the_kernels(r):
    """A container that may mount can put a FIFO there, whose opening would wait for ever."""
    caps = {name: ["CAP_SYS_ADMIN", "CAP_MKNOD"] for name in ("bounding", "effective", "permitted")}
    document = r.config("sh", "-c", "mkfifo /dev/shm/fifo; mount --bind /dev/shm/fifo /dev/pts/ptmx; sleep 1000", capabilities=caps)  # fmt: skip
    pid = r.create("c", document)
    r.ok("start", "c")
    wait_for(lambda: " /dev/pts/ptmx " in pathlib.Path(f"/proc/{pid}/mountinfo").read_text())
    done = r.call("exec", "--tty", "c", "true", timeout=10)
    assert done.returncode == 255 and "ptmx" in done.stderr and "EXDEV" in done.stderr, done


def test_exec_has_the_filter_and_limits_of_its_container(r):
    document = r.config(*SLEEP)
    document["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}  # fmt: skip
    document["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88}]
    document["process"]["oomScoreAdj"] = 321
    r.create("c", document)
    r.ok("start", "c")
    text = r.ok("exec", "c", "sh", "-c", "grep ^Seccomp: /proc/self/status; ulimit -n; cat /proc/self/oom_score_adj")
    assert text.split() == ["Seccomp:", "2", "77", "321"]
    (r.base / "process").write_text(json.dumps({"cwd": "/", "args": ["sh", "-c", "ulimit -n; grep CapEff /proc/self/status"], "user": {"uid": 0, "gid": 0}}))  # fmt: skip
    text = r.ok("exec", "--process", r.base / "process", "c")
    assert text.split()[0] == "77" and int(text.split()[2], 16)


def test_no_capability_reaches_what_is_left_open(r):
    """An exec of another user's can't look into nsrun-init while it waits, nor into what it has open."""
    pid = r.create("c", None, *SLEEP)
    text = r.call("exec", "--user", "1000", "c", "ls", "-l", "/proc/1/fd").stderr
    assert "Permission denied" in text
    assert pathlib.Path(f"/proc/{pid}/comm").read_text() == "nsrun-init\n"
