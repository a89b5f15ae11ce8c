# SPDX-License-Identifier: Apache-2.0
"""A container that differs from the last one in names alone is made without Python (csrc/create.h), and is what Python makes.

Every feature of config.json is made twice, by Python, which leaves a plan, and then by that plan, with another id; both are compared.
"""

import copy
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from struct import calcsize, unpack_from
from typing import Any

import pytest
from conftest import not_editable, wait_for
from oci import Runtime, config, runtime
from test_oci_faults import gone, nothing_left
from test_oci_replay import must, need_strace, pythons, told

from nsrun import _protocol
from nsrun.oci import anew, likeness
from nsrun.run.replay import CannotReplay


@pytest.fixture
def r(host, busybox):
    with runtime(host, busybox, "nsrun-oci", hybrid=True) as made:
        made.rootfs = made.base / "own-root"  # places for mounts are made in it
        subprocess.run(["cp", "-a", busybox, made.rootfs], check=True)
        yield made


# ---- what is made ---------------------------------------------------------------------------------------------------

FIRST, SECOND = "container-9a8b7c6d5e", "container-0f1e2d3c4b"
LOOK = "hostname; id; pwd; env; ulimit -a; grep -E 'Cap|NoNew|Seccomp|Umask|Groups' /proc/self/status; cat /proc/self/cgroup /proc/self/oom_score_adj; ls -ln /dev | cut -c-45; ls /proc/self/fd"


def mount(target: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": source, "options": list(options)}


def linux(**members: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["linux"].update(members)


def process(**members: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["process"].update(members)


def mounts(*more: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["mounts"].extend(more)


def top(**members: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.update(members)


def namespaces(*kinds: str) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["linux"]["namespaces"].extend({"type": kind} for kind in kinds)


_CAPS = ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"]
FEATURES: dict[str, Callable[[dict[str, Any]], object]] = {
    "plain": lambda document: None,
    "user": process(user={"uid": 1000, "gid": 100, "additionalGids": [4, 5], "umask": 0o27}),
    "capabilities": process(capabilities={"bounding": _CAPS, "effective": _CAPS[:2], "permitted": _CAPS, "inheritable": _CAPS[:1], "ambient": _CAPS[:1]}),
    "no capabilities": process(capabilities={}, noNewPrivileges=False),
    "limits of the process": process(rlimits=[{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}], oomScoreAdj=300),
    "priorities": process(scheduler={"policy": "SCHED_BATCH", "nice": 3}, ioPriority={"class": "IOPRIO_CLASS_IDLE", "priority": 0}),
    "a directory": process(cwd="/tmp/a/b"),
    "its own HOME": process(env=["PATH=/bin", "HOME=/h", "A=\"\\\t\x7f", "E="]),
    "an empty environment": process(env=[]),
    "no environment": lambda document: document["process"].pop("env"),
    "an environment that is null": process(env=None),
    "names": top(hostname="box", domainname="example.org", annotations={"a": "b", "org.x.id": FIRST, "é": "ü"}),
    "writable": lambda document: document["root"].update(readonly=False),
    "masked and read-only": linux(maskedPaths=["/proc/kcore", "/sys/firmware", "/nosuch"], readonlyPaths=["/proc/sys", "/etc"]),
    "sysctls": linux(sysctl={"net.ipv4.ip_forward": "1", "kernel.shmmax": "12345"}),
    "a cgroup namespace": namespaces("cgroup"),
    "its cgroups": lambda document: (namespaces("cgroup")(document), mounts(mount("/sys", "sysfs", "sysfs", "ro"), mount("/sys/fs/cgroup", "cgroup", "cgroup", "ro", "nosuid"))(document)),
    "cgroups of the host": mounts(mount("/sys", "sysfs", "sysfs", "ro"), mount("/sys/fs/cgroup", "cgroup", "cgroup", "ro", "nosuid")),
    "no cgroup is named": lambda document: document["linux"].pop("cgroupsPath"),
    "a relative cgroup": linux(cgroupsPath=f"inner/{FIRST}"),
    "limits": linux(resources={"memory": {"limit": 64 << 20, "swap": 64 << 20, "reservation": 32 << 20}, "pids": {"limit": 77}, "cpu": {"shares": 512, "quota": 50000, "period": 100000}}),
    "processors": linux(resources={"cpu": {"cpus": "0", "mems": "0"}}),
    "devices": linux(
        devices=[{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640, "uid": 5, "gid": 6}, {"path": "/dev/p", "type": "p"}],
        resources={"devices": [{"allow": False, "access": "rwm"}, {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rw"}]},
    ),
    "bind mounts": mounts(
        mount("/data", "bind", "SOURCE/one", "rbind", "rw", "rprivate"), mount("/ro", "bind", "SOURCE/two", "bind", "ro", "nosuid", "nodev", "noexec"),
        mount("/rro", "bind", "SOURCE", "rbind", "rro", "rslave"), mount("/file", "bind", "SOURCE/file", "bind", "shared"), mount("/rel", "bind", "inside", "bind"),
    ),
    "other mounts": mounts(mount("/run", "tmpfs", "tmpfs", "mode=1777", "size=1m", "noexec"), mount("/mq", "mqueue", "mqueue", "nosuid"), mount("/data", "tmpfs", "tmpfs", "ro")),
    "propagation": linux(rootfsPropagation="rslave"),
    "personality": linux(personality={"domain": "LINUX32"}),
    "a filter": linux(seccomp={"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5}]}),
    "a filter, and privileges": lambda document: (process(noNewPrivileges=False)(document), linux(seccomp={"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG"], "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]})(document)),
    "namespaces of others": lambda document: [entry.update(path=f"/proc/SANDBOX/ns/{name}") for entry in document["linux"]["namespaces"] for kind, name in (("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("pid", "pid")) if entry["type"] == kind] and document.pop("hostname"),
    "few namespaces": lambda document: (document["linux"].update(namespaces=[{"type": "mount"}]), document.pop("hostname")),
    "other members": top(future={"a": [1, {"b": "c"}], "command": "x"}, vm={}),
}  # fmt: skip


def bundle(r: Runtime, ident: str, document: dict[str, Any], **kwargs: Any) -> pathlib.Path:
    """A bundle for a container of that id; what is named by it is named anew."""
    text = json.dumps(document, **kwargs).replace(FIRST, ident)
    path = r.base / f"bundle-{ident}"
    path.mkdir(exist_ok=True)
    (path / "inside").mkdir(exist_ok=True)
    (path / "config.json").write_text(text)
    r.made.add(ident)
    return path


def make(
    r: Runtime, replay: str, ident: str, document: dict[str, Any], *options: object, **kwargs: Any
) -> tuple[int, str]:
    code, out, err = told(r, replay, "create", *options, "--bundle", bundle(r, ident, document, **kwargs), "--pid-file", r.base / "pid", ident)  # fmt: skip
    assert not out
    if code == 0:
        r.pids.append(int((r.base / "pid").read_text()))
    return code, err


def document_of(r: Runtime, feature: str, command: str = "sleep 1000") -> dict[str, Any]:
    """The config.json of a container with a feature."""
    document = config(r.rootfs, "sh", "-c", command)
    document["linux"]["cgroupsPath"] = f"/nsrun-engines-{os.getpid()}/{FIRST}"
    FEATURES[feature](document)
    text = json.dumps(document)
    if "SOURCE" in text:
        for name in ("one", "two"):
            (r.base / "source" / name).mkdir(parents=True, exist_ok=True)
        (r.base / "source/file").write_text("file")
    if "SANDBOX" in text:
        pid = r.running("sandbox")
        text = text.replace("SANDBOX", str(pid))
    return json.loads(text.replace("SOURCE", str(r.base / "source")))


def steps_of(data: bytes) -> list[tuple[str, list[bytes]]]:
    """The steps of a compiled plan."""
    names = {number: (name, kinds) for name, (number, kinds) in _protocol.REPLAY.items()}
    at, found = calcsize(_protocol.REPLAY_HEADER), []
    for _ in range(unpack_from(_protocol.REPLAY_HEADER, data)[3]):
        name, kinds = names[unpack_from("=I", data, at)[0]]
        at, values = at + 4, []
        for _ in kinds:
            (size,) = unpack_from("=I", data, at)
            values.append(data[at + 4 : at + 4 + size])
            at += 4 + size
        found.append((name, values))
    assert at == len(data)
    return found


#: Steps of a container's plan that have numbers of its own, and how many of the first arguments are not.
_OWN = {"look": 0, "same_file": 1, "same_namespaces": 0, "home": 0, "process": 0, "cgroup": 1}
_SETTINGS = (
    "memory.limit_in_bytes memory.soft_limit_in_bytes memory.memsw.limit_in_bytes pids.max cpu.shares cpu.cfs_quota_us cpu.cfs_period_us cpuset.cpus "
    "cpuset.mems devices.list blkio.weight cgroup.max.depth cgroup.max.descendants"
).split()


def read(path: str) -> str:
    try:
        return pathlib.Path(path).read_text(errors="surrogateescape")
    except OSError as error:
        return f"errno {error.errno}"


def picture(r: Runtime, ident: str) -> dict[str, str]:
    """All that is to be seen of a created container, without what is its own."""
    pid, place = r.pids[-1], r.state / ident
    note = json.loads((place / "state").read_text())
    (start,) = (note["start"],)
    files = sorted((entry.name, oct(entry.lstat().st_mode), entry.lstat().st_uid) for entry in place.iterdir())
    found = {"files": str(files), "mode": oct(place.stat().st_mode)}
    texts = {name: read(f"{place}/{name}") for name in ("config", "state")}
    texts |= {name: read(f"/proc/{pid}/{name}") for name in ("status", "limits", "oom_score_adj", "cgroup", "mountinfo", "environ", "comm", "uid_map", "sessionid", "timens_offsets", "personality")}  # fmt: skip
    texts |= {f"{path}/{name}": read(f"{path}/{name}") for path in r.cgroups(ident) for name in _SETTINGS if os.path.exists(f"{path}/{name}")}  # fmt: skip
    texts |= {f"{path} mode": f"{os.stat(path).st_mode:o} {sorted(os.listdir(path))}" for path in r.cgroups(ident)}
    texts["mountinfo"] = "\n".join(sorted(re.sub(r"^\d+ \d+ \d+:\d+ |(master|shared|propagate_from):\d+ ?", "", line) for line in texts["mountinfo"].split("\n")))  # fmt: skip
    texts["status"] = re.sub(r"(NS\w+:\t\d+).*", r"\1", texts["status"])  # in the namespace of others it is another
    texts["status"] = "\n".join(line for line in texts["status"].split("\n") if not re.match(r"State|Vm|Rss|SigQ|.*ctxt|Hugetlb|Mems|Cpus|FDSize|Speculation", line))  # fmt: skip
    for name in os.listdir("/proc/self/ns"):
        texts[f"{name} is ours"] = str(os.stat(f"/proc/{pid}/ns/{name}").st_ino == os.stat(f"/proc/self/ns/{name}").st_ino)  # fmt: skip
    texts["descriptors"] = "\n".join(sorted(re.sub(r"\[\d+\]", "[]", os.readlink(f"/proc/{pid}/fd/{fd}")) for fd in os.listdir(f"/proc/{pid}/fd")))  # fmt: skip
    stat = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    ids = (int(stat[1]) == os.getpid(), stat[2] == str(pid), stat[3] == str(pid), stat[4])
    found["parent, group, session, terminal"] = str(ids)
    texts["told"] = str(told(r, "must", "state", ident))
    for name, text in texts.items():
        plain = re.sub(r"\d{4}-\d\d-\d\dT[0-9:.]+Z", "TIME", text.replace(ident, "IDENT"))
        plain = re.sub(r'"crc": "\w+"', "CRC", plain)
        found[name.replace(ident, "IDENT")] = re.sub(rf"\b{pid}\b", "PID", re.sub(rf"\b{start}\b", "START", plain))
    plan = []
    for name, values in steps_of((place / "plan").read_bytes()):
        known = values[: _OWN[name]] if name in _OWN else values
        plan.append((name, [value.replace(ident.encode(), b"IDENT").replace(note["created"].encode(), b"TIME") for value in known]))  # fmt: skip
    found["plan"] = "\n".join(map(str, plan))
    return found


def ends(r: Runtime, ident: str) -> str:
    """Start a container, let its command say what it sees, and delete it."""
    assert told(r, "must", "start", ident)[0] == 0
    said = told(r, "must", "exec", ident, "sh", "-c", LOOK)
    assert must(r, "delete", "--force", ident)[0] == 0
    assert r.reap(r.pids.pop()) == -9
    return str(said).replace(ident, "IDENT")


@pytest.mark.live
@not_editable
@pytest.mark.parametrize("feature", FEATURES)
def test_python_and_the_front_make_the_same_container(r, feature):
    document = document_of(r, feature)
    make(r, "0", FIRST, document)  # makes the places for its mounts
    r.ok("delete", "--force", FIRST)
    code, err = make(r, "", FIRST, document)
    assert code == 0, err
    made = picture(r, FIRST)
    said = ends(r, FIRST)
    assert not r.cgroups(FIRST)
    code, err = make(r, "must", SECOND, document)
    assert code == 0, err
    again = picture(r, SECOND)
    for name, text in made.items():
        assert sorted(set(text.split("\n")) ^ set(again[name].split("\n"))) == [], name
    assert made.keys() == again.keys()
    assert FIRST not in str(again)
    assert said == ends(r, SECOND)
    assert not (r.state / SECOND).exists() and not r.cgroups(SECOND)


@pytest.mark.live
@not_editable
def test_other_commands_and_environments(r):
    """They are in no plan, and so a secret among them is in none; each is the container's own."""
    document = document_of(r, "plain")
    document["process"] |= {"args": ["sh", "-c", "echo first"], "env": ["PATH=/bin", "SECRET=of the first"]}
    assert make(r, "", FIRST, document)[0] == 0
    nothing_left(r, FIRST)
    kept = b"".join(path.read_bytes() for path in (r.state / ".plans").iterdir())
    assert kept and b"of the first" not in kept and b"echo first" not in kept
    more = (
        {"args": ["sh", "-c", "env; echo $0 $1", "a b", 'c"\\\n\x01'], "env": ["PATH=/bin", "X=1"]},
        {"args": ["env"], "env": ["PATH=/bin", "HOME=/mine"]},
        {"args": ["env"], "env": []},
        {"args": ["/bin/env"], "env": [f"V{number}={'x' * 100}" for number in range(1000)]},
    )
    for members in more:
        document["process"] |= members
        for replay in ("0", "must"):
            assert make(r, replay, SECOND, document)[0] == 0, members
            found = json.loads((r.state / SECOND / "config").read_text())["process"]
            assert found["args"] == members["args"] and found["env"] == [*members["env"], *([] if "HOME=/mine" in members["env"] else ["HOME=/root"])]  # fmt: skip
            assert told(r, replay, "exec", SECOND, "env")[1].count("HOME=") == 1
            out = r.base / "out"
            with out.open("w"):
                assert told(r, replay, "start", SECOND)[0] == 0
            nothing_left(r, SECOND)


@pytest.mark.live
@not_editable
def test_what_the_process_says(r):
    """The standard streams are the caller's: what it writes is the same either way."""
    document = document_of(r, "plain", "echo out; echo err >&2; cat; exit 7")
    assert make(r, "", FIRST, document)[0] == 0
    nothing_left(r, FIRST)
    for replay in ("0", "must"):
        path = bundle(r, SECOND, document)
        words = r.words(
            r.program, f"--root={r.state}", "create", "--bundle", path, "--pid-file", r.base / "pid", SECOND
        )
        with open(r.base / "o", "w+") as out, open(r.base / "e", "w+") as err, open(r.base / "i", "w+") as given:
            given.write("in\n")
            given.seek(0)
            subprocess.run(words, stdin=given, stdout=out, stderr=err, check=True, timeout=60, env={**r.env, "NSRUN_REPLAY": replay})  # fmt: skip
            r.ok("start", SECOND)
            assert r.reap(int((r.base / "pid").read_text())) == 7
        assert ((r.base / "o").read_text(), (r.base / "e").read_text()) == ("out\nin\n", "err\n"), replay
        nothing_left(r, SECOND)


# ---- names ----------------------------------------------------------------------------------------------------------

HEX, HEX2 = "3f2a" * 16, "90bc" * 16
UUID, UUID2 = "2b1e5f0c-1111-4222-8333-0a0b0c0d0e0f", "00ffee11-9999-4888-b777-fedcba987654"


@pytest.mark.live
@not_editable
def test_names_that_an_engine_draws(r):
    """Layers, pods and times are others each time; what is not drawn has to be the same."""
    for name in (HEX, HEX2, UUID, UUID2):
        (r.base / "volumes" / name).mkdir(parents=True)
        (r.base / "volumes" / name / "it").write_text(name)
    document = document_of(r, "plain")
    document |= {"hostname": HEX[:12], "annotations": {"made": "2026-01-02T03:04:05.678901234Z", "layer": HEX}}
    document["mounts"] += [mount("/layer", "bind", f"{r.base}/volumes/{HEX}", "bind"), mount("/pod", "bind", f"{r.base}/volumes/{UUID}", "bind")]  # fmt: skip
    assert make(r, "", FIRST, document)[0] == 0
    nothing_left(r, FIRST)
    text = json.dumps(document).replace(HEX, HEX2).replace(UUID, UUID2).replace(HEX[:12], HEX2[:12]).replace("2026-01-02T03", "2027-11-12T13")  # fmt: skip
    other = json.loads(text)
    assert make(r, "must", SECOND, other)[0] == 0
    assert told(r, "must", "exec", SECOND, "sh", "-c", "cat /layer/it; cat /pod/it; hostname")[1] == f"{HEX2}{UUID2}{HEX2[:12]}\n"  # fmt: skip
    assert json.loads(r.ok("state", SECOND))["annotations"] == other["annotations"]
    for path in (r.state / SECOND).iterdir():
        assert not path.is_file() or not any(name in path.read_bytes() for name in (HEX.encode(), UUID.encode(), FIRST.encode())), path  # fmt: skip
    nothing_left(r, SECOND)
    other["mounts"][-1]["source"] = f"{r.base}/volumes/{HEX2}"  # no UUID is there now
    assert told(r, "must", "create", "--bundle", bundle(r, SECOND, other), SECOND)[0] == 125
    other = json.loads(text)
    other["annotations"]["layer"] = HEX  # where the other layer was named, too
    assert told(r, "must", "create", "--bundle", bundle(r, SECOND, other), SECOND)[0] == 125
    for spoiled in (
        HEX2.replace("0", "X", 1),
        HEX2.replace("0", "/", 1),
        HEX2.replace("0", ".", 1),
        HEX2.replace("0", ":", 1),
    ):
        assert told(r, "must", "create", "--bundle", bundle(r, SECOND, json.loads(text.replace(HEX2, spoiled))), SECOND)[0] == 125  # fmt: skip
    document["mounts"][-1]["source"] = f"{r.base}/volumes/{HEX[::-1]}"  # two layers, which are one in the next
    (r.base / "volumes" / HEX[::-1]).mkdir()
    assert make(r, "1", FIRST, document)[0] == 0
    nothing_left(r, FIRST)
    one = json.dumps(document).replace(HEX[::-1], HEX2).replace(HEX, HEX2).replace(HEX[:12], HEX2[:12])
    assert told(r, "must", "create", "--bundle", bundle(r, SECOND, json.loads(one)), SECOND)[0] == 125


@pytest.mark.live
@not_editable
def test_a_namespace_of_another_that_is_ours(r):
    """Whose namespace a path leads to is looked at each time: an exec joins what is not ours."""
    document = document_of(r, "plain")
    document.pop("hostname")
    paths = {"network": "net", "ipc": "ipc", "uts": "uts", "pid": "pid"}
    pid = r.running("sandbox")
    with subprocess.Popen(["sleep", "1000"]) as sleeper:  # in our namespaces, with a pid of as many digits
        try:
            ours, theirs = (
                {kind: f"/proc/{who}/ns/{name}" for kind, name in paths.items()} for who in (sleeper.pid, pid)
            )
            for first, second in ((ours, theirs), (theirs, ours)):
                joins_whose(r, document, first, second)
        finally:
            sleeper.kill()


def joins_whose(r: Runtime, document: dict[str, Any], first: dict[str, str], second: dict[str, str]) -> None:
    """Make a container with the namespaces at these paths, and then one with those, and see what an exec joins."""
    for ident, places, replay in ((FIRST, first, ""), (SECOND, second, "1")):
        one = copy.deepcopy(document)
        for entry in one["linux"]["namespaces"]:
            if entry["type"] in places:
                entry["path"] = places[entry["type"]]
        assert make(r, replay, ident, one)[0] == 0
        look = "for n in net ipc uts pid; do readlink /proc/self/ns/$n; done"
        assert told(r, "1", "exec", ident, "sh", "-c", look)[1].split() == [os.readlink(path) for path in places.values()]  # fmt: skip
        r.ok("delete", "--force", ident)
    for plan in (r.state / ".plans").iterdir():
        plan.unlink()


@pytest.mark.live
@not_editable
def test_a_member_that_is_there_twice_by_an_escape(r):
    """The last one counts for Python, and which that is cannot be seen by how it is written."""
    document = document_of(r, "plain", "echo one")
    for member, twin in (('"process"', '"pro\\u0063ess"'), ('"args"', '"ar\\u0067s"')):
        place = bundle(r, FIRST, document)
        text = (place / "config.json").read_text()
        other = json.dumps({**document["process"], "args": ["sh", "-c", "echo two"]} if "proc" in member else ["sh", "-c", "echo two"])  # fmt: skip
        (place / "config.json").write_text(text.replace(f"{member}: ", f"{twin}: {other}, {member}: ", 1))
        assert told(r, "", "create", "--bundle", place, FIRST)[0] == 0
        nothing_left(r, FIRST)
        assert not (r.state / ".plans").exists()


@pytest.mark.live
@not_editable
def test_mounts_in_another_order(r):
    """podman names some in any order.  Those that lie in each other have to follow each other as they did."""
    for name in ("a", "b", "c", "d"):
        (r.base / "volumes" / name).mkdir(parents=True)
        (r.base / "volumes" / name / "it").write_text(name)
    document = document_of(r, "plain")
    targets = {"a": "/data", "b": "/data/b", "c": "/etc", "d": "/opt"}
    inner = [mount(target, "bind", f"{r.base}/volumes/{name}", "bind", "rprivate") for name, target in targets.items()]
    first = copy.deepcopy(document)
    first["mounts"] += inner
    assert make(r, "", FIRST, first)[0] == 0
    nothing_left(r, FIRST)
    for order, replayed in (
        ((0, 1, 2, 3), True),
        ((0, 1, 3, 2), True),
        ((0, 2, 1, 3), False),
        ((2, 0, 1, 3), False),
        ((1, 0, 2, 3), False),
    ):
        other = copy.deepcopy(document)
        other["mounts"] += [inner[number] for number in order]
        assert make(r, "must", SECOND, other)[0] == (0 if replayed else 125), order
        if replayed:
            assert told(r, "must", "exec", SECOND, "cat", "/data/it", "/data/b/it", "/etc/it", "/opt/it")[1] == "abcd"
            nothing_left(r, SECOND)
    (r.rootfs / "var/run").symlink_to("/data")  # another image, in which one may lie in another after all
    linked = copy.deepcopy(document)
    linked["mounts"] += [mount("/data", "bind", f"{r.base}/volumes/a", "bind"), mount("/var/run/b", "bind", f"{r.base}/volumes/b", "bind")]  # fmt: skip
    turned = copy.deepcopy(linked)
    turned["mounts"][-2:] = linked["mounts"][:-3:-1]
    assert make(r, "1", FIRST, linked)[0] == 0
    nothing_left(r, FIRST)
    assert make(r, "must", SECOND, turned)[0] == 125
    assert make(r, "must", SECOND, linked)[0] == 0
    nothing_left(r, SECOND)
    (r.base / "volumes/a/link").symlink_to("/data2")  # a volume leads what lies in it anywhere
    led = copy.deepcopy(document)
    led["mounts"] += [mount(target, "bind", f"{r.base}/volumes/{name}", "bind") for name, target in (("b", "/data2/t"), ("a", "/v"), ("c", "/v/link/t"))]  # fmt: skip
    turned = copy.deepcopy(led)
    turned["mounts"].append(turned["mounts"].pop(-3))
    assert make(r, "1", FIRST, led)[0] == 0
    nothing_left(r, FIRST)
    assert make(r, "must", SECOND, turned)[0] == 125
    assert make(r, "must", SECOND, led)[0] == 0
    nothing_left(r, SECOND)
    literal = copy.deepcopy(document)  # a name that becomes what is written elsewhere
    literal["mounts"] += [mount("/m/deadbeef/x", "bind", f"{r.base}/volumes/a", "bind"), mount("/m/12345678", "bind", f"{r.base}/volumes/c", "bind")]  # fmt: skip
    same = json.loads(json.dumps(literal).replace("deadbeef", "12345678"))
    assert make(r, "1", FIRST, literal)[0] == 0
    nothing_left(r, FIRST)
    assert make(r, "must", SECOND, same)[0] == 125
    same["mounts"].append(same["mounts"].pop(-2))
    assert make(r, "must", SECOND, same)[0] == 125
    assert make(r, "must", SECOND, json.loads(json.dumps(literal).replace("deadbeef", "deadbee1")))[0] == 0
    nothing_left(r, SECOND)
    twice = copy.deepcopy(document)
    twice["mounts"] += [inner[0], inner[0], inner[2], inner[3]]
    assert make(r, "must", SECOND, twice)[0] == 125


@pytest.mark.parametrize(
    "targets, bound, pairs",
    [
        (["/a", "/b"], [True, True], []),
        (["/a", "/a/b", "/c"], [False, True, True], [0, 1]),
        (["/a", "/a/b", "/c"], [True, True, True], [0, 1, 1, 2]),
        (["/a/b", "/a"], [True, True], [0, 1]),
        (["/a", "/a"], [True, True], [0, 1]),
        (["//run", "/run/x"], [False, False], [0, 1]),
        (["/ab", "/a"], [True, True], []),
        (["/", "/a"], [False, False], [0, 1]),
        (["a/../b", "/b/c"], [False, False], [0, 1]),
    ],
)
def test_which_mounts_keep_their_order(targets, bound, pairs):
    found = likeness.order_of(targets, bound)
    assert sorted(zip(found[::2], found[1::2], strict=True)) == sorted(zip(pairs[::2], pairs[1::2], strict=True))


@pytest.mark.parametrize(
    "text, ident, names",
    [
        ('{"a": "x"}', "", []),
        ('{"a": "deadbeef"}', "", ["deadbeef"]),
        ('{"a": "deadbeef1"}', "", ["deadbeef1"]),
        ('{"a": "12345678"}', "", []),  # only digits: a number
        ('{"a": "Xdeadbeef1", "b": "deadbeef1g", "c": "1deadbee"}', "", ["1deadbee"]),
        ('{"a": "/x/deadbeef1/y-0a0a0a0a0.z_1b1b1b1b"}', "", ["deadbeef1", "0a0a0a0a0", "1b1b1b1b"]),
        (f'{{"a": "netns-{UUID}", "b": "{UUID}0"}}', "", [UUID, "2b1e5f0c", "0a0b0c0d0e0f0"]),
        ('{"path": "/proc/1/ns/net", "b": "/proc/12345/ns/uts", "c": "/proc/77/root", "d": "x/proc/5/ns/net"}', "", ["1", "12345"]),
        ('{"a": "box-1", "b": "xbox-1x"}', "box-1", ["box-1", "box-1"]),
        ('{"a": "2026-11-30T15:50:12.996436998Z", "b": "2026-11-30T15:50:12Z", "c": "2026-11-30T15:50:12", "d": "2026-11-30"}', "",
         ["2026-11-30T15:50:12.996436998Z", "2026-11-30T15:50:12Z", "2026-11-30T15:50:12"]),
        ('{"a": "\u00e9deadbeef1"}', "", ["deadbeef1"]),
    ],
)  # fmt: skip
def test_which_names_are_drawn(text, ident, names):
    raw = text.encode().decode("latin-1")
    found = likeness.names_in(raw, ident)
    assert [name for _, name in found] == names
    assert all(raw[at : at + len(name)] == name for at, name in found)


def test_another_name_has_the_same_form():
    for name in ("deadbeef1", UUID, "12345", "2026-11-30T15:50:12.996436998Z", "a" * 64, *"123456789" * 9):
        other = likeness.another(name)
        assert len(other) == len(name) and other != name
        assert re.sub(r"[0-9a-f]", "x", other) == re.sub(r"[0-9a-f]", "x", name)


def test_what_differs_in_more_than_names():
    names = [("aaaa1111", "bbbb2222", 0)]
    assert likeness.differing(b"x aaaa1111 y aaaa1111", b"x bbbb2222 y bbbb2222", names) == [0, 19, 0, 8]
    assert likeness.differing(b"x aaaa1111 y", b"x aaaa1111 y", names) == []  # a constant of ours
    for other in (b"x bbbb2222 z", b"x bbbb22222 y", b"x bbbb1111 y", b"x bbb"):
        with pytest.raises(CannotReplay):
            likeness.differing(b"x aaaa1111 y", other, names)
    # the short one is not sought in the long one
    assert likeness.differing(b"1234567890/1", b"9876543210/9", [("1", "9", 0), ("1234567890", "9876543210", 1)]) == [1, 12, 0, 1]  # fmt: skip


@pytest.mark.live
@not_editable
@pytest.mark.parametrize(
    "ident",
    [
        "SYS_CHROOT",
        "memory",
        "nosuid",
        "mountpoint",
        "destination",
        "namespaces",
        "c1",
        "a",
        "tmpfs.12",
        "strictatime",
        "limit_in_bytes",
    ],
)
def test_an_id_that_means_something(r, ident):
    """Of what a name is in, the plan may say another thing: then there is a plan for this id alone, or none."""
    document = json.loads(json.dumps(document_of(r, "limits")).replace(FIRST, ident))
    assert make(r, "", ident, document)[0] == 0
    nothing_left(r, ident)
    assert make(r, "must", ident, document)[0] == 0
    nothing_left(r, ident)
    other = "x" * len(ident)
    code, _ = make(r, "1", other, json.loads(json.dumps(document).replace(f"/{ident}", f"/{other}")))
    assert code == 0 and r.status(other)["id"] == other
    assert "CAP_SYS_CHROOT" in (r.state / other / "config").read_text()
    nothing_left(r, other)


# ---- what is Python's -----------------------------------------------------------------------------------------------


@pytest.mark.live
@not_editable
@pytest.mark.parametrize(
    "why",
    ["hooks", "terminal", "user", "time", "asked", "copied", "console", "preserve", "no-pivot", "manager", "config"],
)
def test_what_has_no_plan(r, why, tmp_path):
    document = document_of(r, "plain")
    options: list[object] = []
    if why == "hooks":
        document["hooks"] = {"createRuntime": [{"path": "/bin/true"}]}
    elif why == "user":
        document["linux"]["namespaces"].append({"type": "user"})
        document["linux"] |= {
            f"{kind}Mappings": [{"containerID": 0, "hostID": 0, "size": 1000}] for kind in ("uid", "gid")
        }
    elif why == "time":
        document["linux"]["namespaces"].append({"type": "time", "path": "/proc/self/ns/time"})
    elif why == "copied":
        document["mounts"].append(mount("/etc", "tmpfs", "tmpfs", "tmpcopyup"))
    elif why == "asked":
        document["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": str(tmp_path / "s"), "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]}  # fmt: skip
    elif why == "preserve":
        options = ["--preserve-fds", "0"]
    elif why == "no-pivot":
        options = ["--no-pivot"]
    elif why == "manager":
        options = ["--cgroup-manager", "disabled"]
    elif why == "config":
        options = ["--config", bundle(r, FIRST, document) / "config.json"]
    elif why in ("terminal", "console"):
        document["process"]["terminal"] = True
        options = ["--console-socket", tmp_path / "c"]
    code, _ = make(r, "", FIRST, document, *options)
    assert code == 0 or why in ("terminal", "console", "asked")
    assert not (r.state / ".plans").exists()
    nothing_left(r, FIRST)
    pythons(r, "create", *options, "--bundle", bundle(r, SECOND, document), SECOND)


@pytest.mark.live
@not_editable
def test_what_is_left_to_python(r):
    """A plan is for what was asked, and for what was found, when it was left."""
    root = r.base / "root"
    subprocess.run(["cp", "-a", r.rootfs, root], check=True)
    document = document_of(r, "plain")
    document["root"]["path"] = str(root)
    assert make(r, "", FIRST, document)[0] == 0
    nothing_left(r, FIRST)
    place = bundle(r, SECOND, document)

    def again(*words: object, **kwargs: Any) -> None:
        pythons(r, *(words or ("create", "--bundle", place, SECOND)), **kwargs)
        assert not (r.state / SECOND).exists() and not r.cgroups(SECOND)

    def works() -> None:
        assert must(r, "create", "--bundle", place, SECOND) == (0, "", "")
        r.pids.append(r.status(SECOND)["pid"])
        nothing_left(r, SECOND)

    works()
    for options in (("--systemd-cgroup",), ("--debug",), ("--log-format", "xml"), ("--rootless", "true"), ("--preserve-fds=1",), ("--no-new-keyring",), ("--",)):  # fmt: skip
        again("create", *options, "--bundle", place, SECOND)
        again(*options, "create", "--bundle", place, SECOND)
    for words in ((SECOND, "more"), ("../x",), (".plans",), ()):
        again("create", "--bundle", place, *words)
    link = r.base / "link"
    link.symlink_to(place)
    for other in (
        link,
        f"{place}/",
        f"{place}/.",
        f"/{place}",
        f"{place}/../{place.name}",
        os.path.relpath(place),
        r.base,
    ):
        again("create", "--bundle", other, SECOND)
    again("create", "--bundle", place, "--pid-file", "pid", SECOND)
    again("create", "--bundle", place, "--pid-file", r.base / "../pid", SECOND)
    works()
    for changed in (
        {**document, "ociVersion": "1.0.1"},
        {**document, "hostname": "other"},
        {**document, "more": 1},
        {key: value for key, value in document.items() if key != "hostname"},
        {**document, "process": {**document["process"], "args": []}},
        {**document, "process": {**document["process"], "args": ["\u00e9"]}},
        {**document, "process": {**document["process"], "env": None}},
        {**document, "process": {key: value for key, value in document["process"].items() if key != "env"}},
        {**document, "process": {**document["process"], "cwd": "/tmp"}},
        {**document, "mounts": document["mounts"][:-1]},
        {**document, "root": {"path": "root", "readonly": True}},
    ):
        bundle(r, SECOND, changed)
        again()
    for text in ("", "{", "[]", json.dumps(document)[:-1], json.dumps(document) + "x", json.dumps(document) + "\0"):
        (place / "config.json").write_text(text.replace(FIRST, SECOND))
        again()
    bundle(r, SECOND, document)
    works()
    for path in r.cgroups("")[:2]:  # that of the container is there already
        os.mkdir(f"{path}/{SECOND}")
        pythons(r, "create", "--bundle", place, SECOND)
        assert not (r.state / SECOND).exists()
        os.rmdir(f"{path}/{SECOND}")
    old = (root / "etc/passwd").read_text()
    for text in (old + "x:x:5:5::/x:/bin/sh\n", old[:-1], ""):
        (root / "etc/passwd").write_text(text)
        again()
    os.unlink(root / "etc/passwd")
    again()
    (root / "etc/passwd").write_text(old)
    works()
    done = r.call("create", "--bundle", place, SECOND, env={**r.env, "LISTEN_FDS": "1", "NSRUN_REPLAY": "must"})
    assert done.returncode == 125 and not (r.state / SECOND).exists()
    os.rename(root, r.base / "moved")
    again()
    root.symlink_to(r.base / "moved")
    again()
    root.unlink()
    os.rename(r.base / "moved", root)
    works()
    r.state.chmod(0o777)
    again()
    r.state.chmod(0o711)
    plan = next((r.state / ".plans").iterdir())
    for change in (
        lambda: plan.chmod(0o644),
        lambda: os.chown(plan, 5, 5),
        lambda: plan.write_bytes(plan.read_bytes()[:-1]),
    ):
        change()
        again()
        plan.chmod(0o600), os.chown(plan, 0, 0)
    assert make(r, "1", SECOND, document)[0] == 0
    nothing_left(r, SECOND)
    works()


@pytest.mark.live
@not_editable
def test_a_plan_that_was_changed(r):
    """Whatever bit of it is another: Python makes the container."""
    document = document_of(r, "limits")
    assert make(r, "", FIRST, document)[0] == 0
    nothing_left(r, FIRST)
    place, draw = bundle(r, SECOND, document), random.Random(5)
    plan = next((r.state / ".plans").iterdir())
    data = plan.read_bytes()
    for at in [*range(0, 76, 5), *(draw.randrange(len(data)) for _ in range(60))]:
        plan.write_bytes(data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :])
        pythons(r, "create", "--bundle", place, SECOND)
        assert not (r.state / SECOND).exists()
    plan.write_bytes(data)
    assert must(r, "create", "--bundle", place, SECOND)[0] == 0
    r.pids.append(r.status(SECOND)["pid"])


@pytest.mark.live
@not_editable
def test_errors_are_pythons(r):
    """What fails on the way is taken back; Python begins anew, and says what is wrong."""
    document = document_of(r, "bind mounts")
    for name in ("bad.json", "good.json"):
        (r.base / "source" / name).write_text("")
    assert make(r, "", FIRST, document)[0] == 0
    nothing_left(r, FIRST)
    for args, expected in ((["nosuch"], "executable file not found"), (["/etc"], "permission denied"), (["/etc/passwd"], "permission denied")):  # fmt: skip
        document["process"]["args"] = args
        said = [make(r, replay, SECOND, document) for replay in ("0", "1")]
        assert said[0] == said[1] and said[0][0] == 1 and expected in said[0][1], said
        assert not (r.state / SECOND).exists() and not r.cgroups(SECOND)
        assert told(r, "must", "create", "--bundle", bundle(r, SECOND, document), SECOND)[0] == 125
        assert not (r.state / SECOND).exists() and not r.cgroups(SECOND)
    document["process"]["args"] = ["true"]
    shutil.rmtree(r.base / "source/one")
    said = [make(r, replay, SECOND, document) for replay in ("0", "1")]
    assert said[0] == said[1] and said[0][0] == 1 and "source/one" in said[0][1], said
    assert not (r.state / SECOND).exists() and not r.cgroups(SECOND)
    (r.base / "source/one").mkdir()
    assert make(r, "must", SECOND, document)[0] == 0
    said = [make(r, replay, SECOND, document) for replay in ("0", "1")]
    assert said[0] == said[1] == (1, f"nsrun-oci: container '{SECOND}' exists already\n"), said
    assert r.status(SECOND)["status"] == "created"
    nothing_left(r, SECOND)
    full = r.words("sh", "-c", f"ulimit -f 0; exec {r.program} --root={r.state} create --bundle {bundle(r, SECOND, document)} {SECOND}")  # fmt: skip
    for replay in ("0", "1"):
        done = subprocess.run(full, capture_output=True, text=True, timeout=60, check=False, env={**r.env, "NSRUN_REPLAY": replay}, stdin=subprocess.DEVNULL)  # fmt: skip
        assert done.returncode == 1, (replay, done)
        r.call("delete", "--force", SECOND)
        assert not (r.state / SECOND).exists() and not r.cgroups(SECOND)


@pytest.mark.live
@not_editable
def test_two_of_one_id_at_once(r):
    document = document_of(r, "plain")
    assert make(r, "", FIRST, document)[0] == 0
    nothing_left(r, FIRST)
    place = bundle(r, SECOND, document)
    for _ in range(10):
        words = r.words(r.program, f"--root={r.state}", "create", "--bundle", place, SECOND)
        both = [subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=r.env) for _ in range(2)]  # fmt: skip
        assert sorted(one.wait(timeout=60) for one in both) == [0, 1]
        r.pids.append(r.status(SECOND)["pid"])
        nothing_left(r, SECOND)


@pytest.mark.live
@not_editable
def test_a_signal_comes_while_it_is_made(r):
    """It waits until all is done, or taken back, as with Python."""
    document = document_of(r, "plain")
    assert make(r, "", FIRST, document)[0] == 0
    nothing_left(r, FIRST)
    place = bundle(r, SECOND, document)
    for call in ("mkdirat", "mknodat", "clone3", "renameat"):
        command = r.words(need_strace(), "-qq", "-o", "/dev/null", "-e", f"inject={call}:signal=SIGTERM:when=1", r.program, f"--root={r.state}", "create", "--bundle", place, SECOND)  # fmt: skip
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False, env=r.env)  # fmt: skip
        assert done.returncode != 0, (call, done)
        wait_for(lambda: gone(r))
        assert not (r.state / SECOND).exists() and not r.cgroups(SECOND), call


#: Calls by which something is changed, or waited for.
_CHANGES = {
    "mkdirat", "openat", "write", "mknodat", "renameat", "clone3", "setns", "socketpair", "fchown", "ppoll", "exit_group", "open_tree",
    "mount_setattr", "memfd_create", "fchmodat", "flock",
}  # fmt: skip


@pytest.mark.live
@not_editable
@pytest.mark.slow
def test_the_front_killed_at_every_call_of_create(r):
    """`delete --force` removes what any of them leaves, and the next create works."""
    document = document_of(r, "limits")
    assert make(r, "", FIRST, document)[0] == 0
    nothing_left(r, FIRST)
    place, out, null = bundle(r, SECOND, document), r.base / "trace", subprocess.DEVNULL

    def traced(*options: str) -> int:
        command = r.words(need_strace(), "-o", out, *options, r.program, f"--root={r.state}", "create", "--bundle", place, "--pid-file", r.base / "pid", SECOND)  # fmt: skip
        return subprocess.run(command, stdin=null, stdout=null, stderr=null, timeout=60, check=False, env={**r.env, "NSRUN_REPLAY": "must"}).returncode  # fmt: skip

    assert traced() == 0
    calls = re.findall(r"^(\w+)\(", out.read_text(), re.M)
    places = [(name, calls[: at + 1].count(name)) for at, name in enumerate(calls) if name in _CHANGES and "mkdirat" in calls[: at + 1]]  # fmt: skip
    nothing_left(r, SECOND)
    assert len(places) > 50, calls
    for name, count in places:
        (r.base / "pid").unlink(missing_ok=True)
        assert traced("-e", f"inject={name}:signal=SIGKILL:when={count}") == -9, (name, count)
        nothing_left(r, SECOND)
        assert not (r.base / "pid").exists() or int((r.base / "pid").read_text()) > 0, (name, count)
    assert traced() == 0
    nothing_left(r, SECOND)


@pytest.mark.live
@not_editable
def test_how_many_plans_are_kept(r):
    """Some for config.json of the same members, and some altogether."""
    for number in range(anew.KEPT + 3):
        document = document_of(r, "plain")
        document["hostname"] = f"box{number % 7}"
        document |= {f"member{number // 7}": 1}
        assert (
            make(r, "", f"{FIRST}{number}", json.loads(json.dumps(document).replace(FIRST, f"{FIRST}{number}")))[0] == 0
        )
        r.ok("delete", "--force", f"{FIRST}{number}")
    kept = [path.name for path in (r.state / ".plans").iterdir()]
    assert len(kept) <= anew.KEPT and not any(name.endswith(".tmp") for name in kept)
    heads = [name.partition(".")[0] for name in kept]
    assert max(map(heads.count, heads)) == _protocol.CREATE_PLANS
