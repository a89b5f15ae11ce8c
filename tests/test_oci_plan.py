# SPDX-License-Identifier: Apache-2.0
"""What nsrun-oci makes of words and documents, without a machine: the command line, config.json, resources, plans."""

import _socket
import copy
import json
import os
import pathlib
import re
import socket
import struct
import subprocess
from typing import Any

import pytest
from oci import config as some_config

from nsrun import _protocol
from nsrun.errors import BadInput, NsrunError, UsageError
from nsrun.kernel import LIBEXEC
from nsrun.oci import cgroups, config, describe, resources, steps, systemd
from nsrun.oci.commands import COMMANDS, GLOBAL, check_id, container_id, read
from nsrun.oci.lifecycle import signal_number
from nsrun.oci.plan import Facts, create_plan, exec_plan, hook_plan
from nsrun.plan import INIT, PHASES, InitStep, Plan
from nsrun.state import codec

HERE = pathlib.Path(__file__).parent
GOLDEN = HERE / "golden"


# ---- the command line ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line, command, options, arguments",
    [
        ("--root /r --log=l --log-format json create --bundle /b --pid-file=p ID", "create", {"root": "/r", "log": "l", "log-format": "json", "bundle": "/b", "pid-file": "p"}, ["ID"]),
        ("create ID --bundle /b --no-pivot", "create", {"bundle": "/b", "no-pivot": "true"}, ["ID"]),
        ("run -b /b ID -d", "run", {"bundle": "/b", "detach": "true"}, ["ID"]),
        ("kill -a ID 9", "kill", {"all": "true"}, ["ID", "9"]),
        ("kill --all=false ID KILL", "kill", {"all": "false"}, ["ID", "KILL"]),
        ("exec -t -d ID ls -l --color", "exec", {"tty": "true", "detach": "true"}, ["ID", "ls", "-l", "--color"]),
        ("exec ID -- ls", "exec", {}, ["ID", "ls"]),
        ("--debug list -f json -q", "list", {"debug": "true", "format": "json", "quiet": "true"}, []),
        ("delete -f ID", "delete", {"force": "true"}, ["ID"]),
        ("--rootless=true state ID", "state", {"rootless": "true"}, ["ID"]),
        ("update --resources - ID", "update", {"resources": "-"}, ["ID"]),
        ("delete -- -ID", "delete", {}, ["-ID"]),
    ],
)  # fmt: skip
def test_command_lines(line, command, options, arguments):
    found = read(line.split())
    assert (found.command, found.options, found.arguments) == (command, options, arguments)


@pytest.mark.parametrize("line", ["--nope state x", "nope", "create --bundle", "kill --all=maybe x", "state -z x", "start --bundle /b x"])  # fmt: skip
def test_command_lines_that_are_refused(line):
    with pytest.raises(UsageError):
        read(line.split())


@pytest.mark.parametrize("name", ["a", "a" * 64, "A_b+c-d.e", "0"])
def test_ids(name):
    assert check_id(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", ".seccomp", "a/b", "a b", "a\n", "ä", "a" * 256, "a\0"])
def test_ids_that_are_refused(name):
    with pytest.raises(UsageError):
        check_id(name)
    with pytest.raises(UsageError):
        container_id(read(["state"]))


@pytest.mark.parametrize("text, number", [("9", 9), ("KILL", 9), ("SIGKILL", 9), ("sigterm", 15), ("RTMIN+1", 35), ("SIGRTMAX-1", 63)])  # fmt: skip
def test_signals(text, number):
    assert signal_number(text) == number


@pytest.mark.parametrize("text", ["", "0", "65", "-9", "NOPE", "SIG_DFL", "RTMIN+99"])
def test_signals_that_are_refused(text):
    with pytest.raises(UsageError):
        signal_number(text)


def test_every_command_is_described():
    for command in COMMANDS:
        assert all(f"--{name}" in describe.usage(command) for name in COMMANDS[command])
    assert all(f"--{name}" in describe.usage() for name in GLOBAL)


# ---- config.json --------------------------------------------------------------------------------------------------


def changed(**changes: Any) -> dict[str, Any]:
    """A config.json in which paths such as process__cwd have other values."""
    document = some_config("/ROOTFS", "sh")
    for path, value in changes.items():
        *way, last = path.split("__")
        place = document
        for part in way:
            place = place.setdefault(part, {})
        place[last] = value
    return document


REFUSED: dict[str, list[dict[str, Any]]] = {
    "ociVersion": [{"ociVersion": "2.0.0"}, {"ociVersion": "x"}, {"ociVersion": None}, {"ociVersion": 1}],
    "root": [{"root": None}, {"root": {"path": 1}}],
    "process.args": [{"process__args": []}, {"process__args": None}, {"process__args": "sh"}],
    "process.cwd": [{"process__cwd": "x"}, {"process__cwd": None}],
    "process.rlimits": [
        {"process__rlimits": [{"type": "RLIMIT_NOPE", "soft": 1, "hard": 1}]},
        {"process__rlimits": [{"type": "RLIMIT_NOFILE", "soft": 2, "hard": 1}]},
        {"process__rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 1}] * 2},
    ],
    "process.capabilities": [{"process__capabilities": {"effective": ["CAP_NOPE"]}}, {"process__capabilities": []}],
    "process.scheduler": [{"process__scheduler": {"policy": "NOPE"}}],
    "process.ioPriority": [{"process__ioPriority": {"class": "NOPE"}}],
    "process.oomScoreAdj": [{"process__oomScoreAdj": 1001}],
    "process.execCPUAffinity": [{"process__execCPUAffinity": {"initial": "0"}}],
    "process.env": [{"process__env": ["A=\0"]}, {"process__env": {"A": "B"}}],
    "linux.namespaces": [
        {"linux__namespaces": [{"type": "mount"}, {"type": "mount"}]},
        {"linux__namespaces": [{"type": "pid"}]},
        {"linux__namespaces": [{"type": "nope"}]},
        {"linux__namespaces": [{"type": "mount"}, {"type": "pid", "path": "ns"}], "hostname": ""},
    ],
    "hostname": [{"linux__namespaces": [{"type": "mount"}]}],
    "linux.uidMappings": [
        {"linux__namespaces": [{"type": "mount"}, {"type": "uts"}, {"type": "user"}]},
        {"linux__uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]},
        {"linux__uidMappings": [{"containerID": 0, "hostID": 1, "size": 0}]},
    ],
    "linux.intelRdt": [{"linux__intelRdt": {"closID": "x"}}],
    "linux.memoryPolicy": [{"linux__memoryPolicy": {"mode": "MPOL_BIND"}}],
    "linux.netDevices": [{"linux__netDevices": {"eth0": {}}}],
    "linux.timeOffsets": [
        {"linux__timeOffsets": {"boottime": {"secs": 1}}},
        {"linux__namespaces": [{"type": "mount"}, {"type": "uts"}, {"type": "time"}], "linux__timeOffsets": {"realtime": {"secs": 1}}},
        {"linux__namespaces": [{"type": "mount"}, {"type": "uts"}, {"type": "time"}], "linux__timeOffsets": {"boottime": {"nanosecs": 1000000000}}},
    ],
    "linux.rootfsPropagation": [{"linux__rootfsPropagation": "nope"}],
    "linux.maskedPaths": [{"linux__maskedPaths": ["proc"]}],
    "linux.devices": [
        {"linux__devices": [{"type": "c", "path": "/dev/x"}]},
        {"linux__devices": [{"type": "c", "path": "x", "major": 1, "minor": 1}]},
        {"linux__devices": [{"type": "z", "path": "/dev/x", "major": 1, "minor": 1}]},
    ],
    "linux.sysctl": [
        {"linux__sysctl": {"kernel.hostname": "x"}},
        {"linux__sysctl": {"vm.swappiness": "1"}},
        {"linux__sysctl": {"net..x": "1"}},
        {"linux__sysctl": {"kernel.shmmax": "1"}, "linux__namespaces": [{"type": "mount"}, {"type": "uts"}]},
    ],
    "hooks": [{"hooks__poststop": [{"path": "x"}]}, {"hooks__prestart": [{"path": "/x", "timeout": 0}]}],
    "linux.personality": [{"linux__personality": {"domain": "LINUX", "flags": ["X"]}}],
}  # fmt: skip


@pytest.mark.parametrize("field, changes", [(field, one) for field, some in REFUSED.items() for one in some], ids=str)
def test_a_refused_config_names_the_field(field, changes):
    document = changed(**changes)
    with pytest.raises(BadInput) as found:
        config.load(document, "config.json")
    assert field in found.value.message


def test_unknown_fields_are_ignored_as_the_specification_asks():
    document = changed(process__futuristic=1, linux__newest={}, zos={})
    assert config.load(copy.deepcopy(document), "c") == document


def test_no_document_of_any_kind_is_a_bug():
    """Whatever a key of config.json has for a value, it is taken or refused, and never a traceback."""
    whole = everything()
    values: list[Any] = [
        None,
        True,
        0,
        -1,
        1 << 70,
        "",
        "x",
        "\0",
        "\ud800",
        [],
        {},
        [None],
        [{}],
        {"": None},
        [[]],
        1.5,
    ]

    def places(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        return [way, *(place for key in keys for place in places(value[key], (*way, key)))]

    tried = 0
    for way in places(whole)[1:]:
        for value in values:
            document: Any = copy.deepcopy(whole)
            place = document
            for key in way[:-1]:
                place = place[key]
            place[way[-1]] = value
            try:
                create_plan(config.load(document, "c"), facts(document))
            except NsrunError as error:
                assert error.message
            tried += 1
    assert tried > 2000


# ---- mount options ------------------------------------------------------------------------------------------------


def test_mount_options():
    found = config.MountOptions("ro nosuid nodev noexec relatime rshared rbind size=1 mode=755 rro".split(), "/x")
    assert (found.set, found.propagation) == (1 | 2 | 4 | 8, config.MS_SHARED | config.MS_REC)
    assert found.clear & 0x70 == 0x70 and found.data == ["size=1", "mode=755"] and found.below_set == 1 and found.bind
    later = config.MountOptions(["ro", "rw", "noatime", "strictatime"], "/x")
    assert (later.set, later.clear & 1) == (0x20, 1)
    with pytest.raises(BadInput):
        config.MountOptions(["remount"], "/x")


def test_ids_of_the_host():
    ranges = [[0, 1000, 1], [1, 100000, 10]]
    assert [config.to_host(ranges, n) for n in (0, 1, 10, 11)] == [1000, 100000, 100009, -1]
    assert config.to_host([], 7) == 7


# ---- resources ----------------------------------------------------------------------------------------------------

WANTED = {
    "memory": {"limit": 1000, "swap": 3000, "reservation": 500},
    "cpu": {"shares": 1024, "quota": 5000, "period": 10000, "cpus": "0"},
    "pids": {"limit": 7},
    "blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 99}]},
    "devices": [{"allow": False}, {"allow": True, "type": "c", "major": 10, "minor": 200, "access": "rw"}],
}


def test_resources_on_v1():
    found = {(s.controller, s.file): s.text for s in resources.settings(WANTED, False) if s.controller != "devices"}
    assert found == {
        ("memory", "memory.limit_in_bytes"): "1000",
        ("memory", "memory.memsw.limit_in_bytes"): "3000",
        ("memory", "memory.soft_limit_in_bytes"): "500",
        ("cpu", "cpu.shares"): "1024",
        ("cpu", "cpu.cfs_period_us"): "10000",
        ("cpu", "cpu.cfs_quota_us"): "5000",
        ("cpuset", "cpuset.cpus"): "0",
        ("pids", "pids.max"): "7",
        ("blkio", "blkio.throttle.read_bps_device"): "8:0 99",
    }
    rules = [(s.file, s.text) for s in resources.settings(WANTED, False) if s.controller == "devices"]
    assert rules[:2] == [("devices.deny", "a *:* rwm"), ("devices.allow", "c 10:200 rw")]
    assert ("devices.allow", "c 1:3 rwm") in rules[2:]


def test_resources_on_v2():
    found = {s.file: s.text for s in resources.settings({k: v for k, v in WANTED.items() if k != "devices"}, True)}
    assert found == {
        "memory.max": "1000",
        "memory.swap.max": "2000",
        "memory.low": "500",
        "cpu.weight": "39",
        "cpu.max": "5000 10000",
        "cpuset.cpus": "0",
        "pids.max": "7",
        "io.max": "8:0 rbps=99",
    }
    assert [repr(s) for s in resources.settings({"unified": {"memory.high": "5"}}, True)] == [
        "memory/memory.high = '5'"
    ]


@pytest.mark.parametrize("wanted, unified, field", [
    ({"unified": {"memory.high": "1"}}, False, "unified"),
    ({"unified": {"../x": "1"}}, True, "unified"),
    ({"memory": {"swappiness": 1}}, True, "memory.swappiness"),
    ({"memory": {"swap": 5}}, True, "memory.swap"),
    ({"cpu": {"realtimeRuntime": 5}}, True, "cpu.realtimeRuntime"),
    ({"network": {"classID": 5}}, True, "network.classID"),
    ({"hugepageLimits": [{"pageSize": "../2MB", "limit": 1}]}, False, "hugepageLimits"),
    ({"devices": [{"allow": True, "access": "x"}]}, False, "devices"),
    ({"devices": [{"allow": True, "major": 10, "minor": 200}]}, False, "devices"),
    ({"devices": [{"allow": True, "type": "a", "access": "r"}]}, False, "devices"),
    ({"memory": {"kernel": 1}}, False, "memory.kernel"),
    ({"memory": {"kernel": 1}}, True, "memory.kernel"),
])  # fmt: skip
def test_resources_that_are_refused(wanted, unified, field):
    with pytest.raises(BadInput, match=re.escape(f"linux.resources.{field}")):
        resources.settings(wanted, unified)


RULES = [
    [{"allow": False}],
    [{"allow": True}],
    [{"allow": False}, {"allow": True, "type": "c", "major": 10, "minor": 200, "access": "r"}, {"allow": True, "type": "c", "major": 10, "minor": 200, "access": "w"}],
    [{"allow": True}, {"allow": False, "type": "b", "major": 8, "access": "w"}, {"allow": False, "type": "c", "major": 7}],
    [{"allow": False}, {"allow": True, "type": "b", "access": "r"}, {"allow": False, "type": "b", "access": "r"}],
    WANTED["devices"],
]  # fmt: skip


def interpreted(code: bytes, kind: str, major: int, minor: int, access: str) -> int:
    """What the kernel's interpreter makes of a program: eBPF's instructions, as far as it has them."""
    letters = {"m": 1, "r": 2, "w": 4}
    context = {0: (2 if kind == "c" else 1) | sum(letters[a] for a in access) << 16, 4: major, 8: minor}
    r, at = [0] * 11, 0
    for _ in range(10000):
        op, registers, off, imm = struct.unpack_from("=BBhi", code, at * 8)
        dst, src, at = registers & 15, registers >> 4, at + 1
        if op == 0x95:
            return r[0]
        if op == 0x55:
            at += off if r[dst] != imm else 0
        elif op == 0x15:
            at += off if r[dst] == imm else 0
        elif op == 0x61:
            r[dst] = context[off]
        elif op == 0xBF:
            r[dst] = r[src]
        elif op == 0x54:
            r[dst] &= imm
        elif op == 0x74:
            r[dst] >>= imm
        else:
            assert op == 0xB7
            r[dst] = imm
    raise AssertionError("it does not end")


@pytest.mark.parametrize("rules", RULES)
def test_the_program_for_devices_decides_as_the_rules_do(rules):
    found = resources.DeviceRules(rules)
    code = found.program()
    for kind, major, minor in (
        ("c", 1, 3),
        ("c", 10, 200),
        ("c", 7, 0),
        ("b", 8, 0),
        ("b", 8, 1),
        ("c", 136, 5),
        ("c", 4, 4),
    ):
        for access in ("r", "w", "m", "rw", "rwm"):
            assert interpreted(code, kind, major, minor, access) == found.permits(kind, major, minor, access), (kind, major, minor, access)  # fmt: skip
    assert found.permits("c", 1, 3, "rwm") and found.permits("b", 99, 99, "m")
    if rules[0]["allow"] is False:
        assert not found.permits("b", 8, 0, "w") and not found.permits("c", 4, 4, "r")


@pytest.mark.parametrize("more", [{"major": 1 << 12}, {"minor": 1 << 20}, {"major": 1 << 40}])
def test_a_device_that_there_can_not_be(more):
    rules = [{"allow": True, "type": "c", **more}]
    with pytest.raises(BadInput, match="devices"):
        config.load(changed(linux__resources={"devices": rules}), "c")


def test_a_limit_of_0_is_none():
    assert resources.settings({"memory": {"limit": 0, "swap": 0, "reservation": 0}}, False) == []


def test_unlimited_resources():
    assert [(s.file, s.text) for s in resources.settings({"memory": {"limit": -1}}, False)] == [
        ("memory.memsw.limit_in_bytes", "-1"),
        ("memory.limit_in_bytes", "-1"),
    ]
    assert {s.file: s.text for s in resources.settings({"memory": {"limit": -1}, "pids": {"limit": 0}}, True)} == {
        "memory.max": "max",
        "memory.swap.max": "max",
        "pids.max": "max",
    }


# ---- cgroups ------------------------------------------------------------------------------------------------------

MOUNTINFO = """\
25 20 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
26 25 0:23 / /sys/fs/cgroup/cpu,cpuacct rw shared:1 - cgroup cgroup rw,cpu,cpuacct
27 25 0:24 /docker/x /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd
28 25 0:25 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
29 25 0:25 / /other rw - cgroup2 cgroup2 rw,nsdelegate
"""


def test_hierarchies():
    found = cgroups.parse_mounts(MOUNTINFO)
    assert [(one.key, one.mount, one.root) for one in found] == [
        ("cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct", "/"),
        ("name=systemd", "/sys/fs/cgroup/systemd", "/docker/x"),
        ("0", "/sys/fs/cgroup/unified", "/"),
    ]
    assert cgroups.parse_own("4:cpuacct,cpu:/a\n1:name=systemd:/b:c\n0::/d\n") == {
        "cpu,cpuacct": "/a", "name=systemd": "/b:c", "0": "/d",
    }  # fmt: skip
    assert cgroups.path_with({"cpu,cpuacct": "/x", "0": "/y"}, "cpuacct") == "/x"


# ---- plans --------------------------------------------------------------------------------------------------------


def everything() -> dict[str, Any]:
    """A config.json with a value for each field that nsrun-oci knows."""
    maps = [{"containerID": 0, "hostID": 1000, "size": 10}]
    hook = [{"path": "/hook", "args": ["hook", "x"], "env": ["A=B"], "timeout": 5}]
    document = changed(
        domainname="domain",
        annotations={"a": "b"},
        hooks={name: hook for name in config.HOOKS},
        process__terminal=True,
        process__consoleSize={"height": 1, "width": 2},
        process__user={"uid": 1, "gid": 2, "umask": 0o27, "additionalGids": [3]},
        process__rlimits=[{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}],
        process__apparmorProfile="profile",
        process__selinuxLabel="label",
        process__oomScoreAdj=5,
        process__scheduler={"policy": "SCHED_BATCH", "nice": 1, "flags": ["SCHED_FLAG_RESET_ON_FORK"]},
        process__ioPriority={"class": "IOPRIO_CLASS_BE", "priority": 3},
        linux__cgroupsPath="/box",
        linux__resources=copy.deepcopy(WANTED),
        linux__sysctl={"net.ipv4.ip_forward": "1"},
        linux__seccomp={"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG"], "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [{"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]}]},
        linux__timeOffsets={"monotonic": {"secs": 5}, "boottime": {"secs": -3, "nanosecs": 7}},
        linux__rootfsPropagation="rslave",
        linux__maskedPaths=["/proc/kcore"],
        linux__readonlyPaths=["/proc/sys"],
        linux__mountLabel="label",
        linux__personality={"domain": "LINUX32"},
        linux__devices=[{"type": "c", "path": "/dev/fuse", "major": 10, "minor": 229, "fileMode": 0o600, "uid": 1, "gid": 2}],
        linux__uidMappings=maps,
        linux__gidMappings=maps,
        linux__namespaces=[{"type": kind} for kind in config.NAMESPACES if kind != "ipc"] + [{"type": "ipc", "path": "/proc/1/ns/ipc"}],
    )  # fmt: skip
    document["mounts"] += [
        {"destination": "/data", "type": "bind", "source": "/srv", "options": ["rbind", "rro", "rslave", "nosuid"]},
        {"destination": "/mapped", "type": "bind", "source": "/srv", "options": ["bind", "idmap"], "uidMappings": maps, "gidMappings": maps},
        {"destination": "/copied", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "size=1m"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
    ]  # fmt: skip
    return document


def facts(document: Any, **known: Any) -> Facts:
    paths = {"cpu,cpuacct": "/sys/fs/cgroup/cpu,cpuacct/box", "0": "/sys/fs/cgroup/unified/box"}
    return Facts(**{
        "root": "/STATE", "ident": "ID", "note": {}, "rootfs": "/ROOTFS", "bundle": "/BUNDLE", "cgroups": paths, "settings": [],
        "hierarchies": [("cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct", "/OWN"), ("0", "/sys/fs/cgroup/unified", "/OWN")], "selinux": True,
        "console": "/CONSOLE", "pid_file": "/PIDFILE", **known,
    })  # fmt: skip


def simple(**changes: Any) -> Plan:
    document = config.load(changed(**changes), "c")
    return create_plan(document, facts(document, console=""))


NOTE = {
    "pid": 42,
    "start": 7,
    "cgroups": {"cpu,cpuacct": "/sys/fs/cgroup/cpu,cpuacct/box", "0": "/sys/fs/cgroup/unified/box"},
}
SECCOMP = {"defaultAction": "SCMP_ACT_ALLOW"}
NOTIFY = {**SECCOMP, "listenerPath": "/LISTENER", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]}


def make_exec() -> Plan:
    process = config.load_process(changed()["process"], "c")
    return exec_plan(process, SECCOMP, NOTE, 0x20020000, facts({}, console="", preserve=2))


PLANS = {
    "oci-create": simple,
    "oci-create-everything": lambda: create_plan(config.load(everything(), "c"), facts({}, pivot=False)),
    "oci-create-late-filter": lambda: simple(linux__seccomp=SECCOMP, process__noNewPrivileges=True),
    "oci-create-early-filter": lambda: simple(linux__seccomp=SECCOMP, process__noNewPrivileges=False),
    "oci-create-notify": lambda: simple(linux__seccomp=NOTIFY, process__noNewPrivileges=True),
    "oci-create-rootless": lambda: create_plan(
        config.load(describe.default_spec(True), "c"), facts({}, rootless=True, nodes=False, cgroups={})
    ),
    "oci-create-scope": lambda: create_plan(
        config.load(changed(), "c"),
        facts({}, console="", scope=systemd.scope_of("a-b.slice:p:c", "c"), properties={"pids": {"limit": 5}}),
    ),
    "oci-exec": make_exec,
    "oci-hook": lambda: hook_plan({"path": "/hook"}, 42, 7, 0x20020000, NOTE["cgroups"], None, facts({})),  # type: ignore[arg-type]
    "oci-hook-start": lambda: hook_plan(
        {"path": "/hook"}, 42, 7, 0x20020000, {"0": "/BOX"}, changed(linux__seccomp=SECCOMP), facts({})
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_golden(name):
    """A change in the order or the words of a plan is seen in the diff.  NSRUN_GOLDEN=write renews the files."""
    text = "".join(f"{PHASES[s.phase]:7}{s.call()}\n" for s in PLANS[name]())
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("NSRUN_GOLDEN") == "write":
        file.write_text(text)
    assert text == file.read_text()


class Fake:
    """A run that only answers: which descriptors the steps ask for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def fd(self, name: str) -> int:
        self.asked.append(name)
        return 7

    def text(self, value: str) -> str:
        return value


@pytest.mark.parametrize("name", PLANS)
def test_steps_are_what_nsrun_init_reads(name):
    out = subprocess.run(
        [f"{LIBEXEC}/nsrun-init", "--ops"], capture_output=True, text=True, check=True, timeout=10
    ).stdout
    kinds = {row[1]: row[2] if len(row) > 2 else "" for row in (line.split() for line in out.splitlines())}
    there: set[str] = set()
    for step in PLANS[name]():
        needed = {handle for handle in step.needs() if not handle.endswith("?")}
        assert needed <= there, step
        there.update(handle.rstrip("?") for handle in step.makes())
        if isinstance(step, InitStep):
            fake: Any = Fake()
            letters = "".join(
                "i" if isinstance(a, int) else "s" if isinstance(a, str) else "l" for a in step.args(fake)
            )
            assert letters == kinds[_protocol.OPS[_protocol.OP_OF_STEP[type(step).__name__]]], step
            assert set(fake.asked) <= {handle.rstrip("?") for handle in step.needs()}, step


def test_every_step_has_its_texts_and_is_in_some_plan():
    used = set()
    for make in PLANS.values():
        for step in make():
            used.add(type(step))
            assert step.call() and step.brief() and re.match("[A-Z]|nsrun-", step.why) and step.why.endswith("."), step
            assert not step.many or step.thing(), step
    known = {cls for cls in InitStep.__subclasses__() if cls.__module__ == "nsrun.oci.steps"}
    assert known == {cls for cls in used if cls.__module__ == "nsrun.oci.steps" and issubclass(cls, InitStep)}
    assert all(step.phase == INIT for step in known)


def test_features_are_what_the_table_says():
    found = describe.features()
    assert json.loads(codec.dumps(found)) == found
    assert set(found["hooks"]) == set(config.HOOKS)
    for option in found["mountOptions"]:
        assert not config.MountOptions([option], "/x").data, option
    assert config.load(describe.default_spec(False), "c") and config.load(describe.default_spec(True), "c")


def test_who_takes_a_terminal_may_close_the_socket_at_once(tmp_path, monkeypatch):
    """As conmon does: all that there was to say has been said."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(tmp_path / "console"))
    listener.listen(1)
    told = []

    class Sender(_socket.socket):
        def sendmsg(self, *words):
            sent = super().sendmsg(*words)
            with listener.accept()[0] as taker:
                told.append(taker.recvmsg(100, 100)[0])
            return sent

    monkeypatch.setattr(_socket, "socket", Sender)
    steps._send(str(tmp_path / "console"), b"/dev/pts/7", 0)
    assert told == [b"/dev/pts/7"]
    listener.close()
