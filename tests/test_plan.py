# SPDX-License-Identifier: Apache-2.0
"""Plans are data: their order, their texts, their encoding, and the C that reads them."""

import json
import os
import pathlib
import random
import re
import socket
import subprocess
from typing import Any

import pytest

from nsrun import _kernel, _protocol, explain, kernel, run
from nsrun.host import messages, wire
from nsrun.kernel import LIBEXEC
from nsrun.oci import steps as of_containers
from nsrun.plan import INIT, PHASES, InitStep, Plan, mounts, process
from nsrun.plan.member import Request, exec_plan, join_plan
from nsrun.plan.pod import pod_plan
from nsrun.spec import member as specs
from nsrun.spec.health import parse_health
from nsrun.spec.pod import pod_spec
from nsrun.state import codec

HERE = pathlib.Path(__file__).parent
GOLDEN = HERE / "golden"
POD = {"name": "web", "id": "ID", "hostname": "web", "pause": [42, 1, "BOOT"], "cgroup": "/CGROUP/web-ID"}


MAPS = {kind: [[0, 1000, 1], [1, 100000, 65536]] for kind in ("uid", "gid")}
USER = {"uid": 1000, "gid": 1000, "maps": MAPS}
OWNED = {**POD, "user": USER, "owner": "alice", "network": {"mode": "bridge"}}


BACK = {"name": "back", "id": "0123456789ab", "bridge": "nsrb01", "subnet": "10.88.1.0", "subnet6": "", "mtu": 0}


def make_pod(owner="root", by_root=True, named=None, no_tables="", **options) -> Plan:
    facts: Any = {
        "id": "ID",
        "created": "",
        "cgroup": "/CGROUP/web-ID",
        "resolv_conf": "nameserver 192.0.2.53\n",
        "owner": owner,
        "named": named,
        "no_tables": no_tables,
        "no_nat": no_tables,
        "without_ipv6": no_tables,
        **({"user": USER, "by_root": by_root, "groups": [1000]} if owner != "root" else {}),
    }
    wanted: Any = {"name": "web", **options}
    return pod_plan(pod_spec(wanted, facts))


def make_spec(root="/ROOTFS", pod=POD, **options):
    facts: Any = {"name": "m", "id": "ID", "pod": pod, "root": root, "cgroup": "/CGROUP/web-ID/m-m", "environ": {}}
    return specs.member_spec({"command": ["mysqld", "--verbose"], **options}, facts)


def make_join(root="/ROOTFS", pod=POD, detach=False, door="", **options) -> Plan:
    health = parse_health({key: value for key, value in options.items() if "health" in key}, {})  # type: ignore[arg-type]
    note: Any = {"id": "ID", "name": "m", **({"health": health} if health else {})}
    return join_plan(make_spec(root, pod, **options), pod, note, Request(detach=detach, door=door))


def make_exec(pod=POD, **request) -> Plan:
    note: Any = {"name": "m", "process": [43, 1, "BOOT"]}
    return exec_plan(make_spec(pod=pod), note, pod, Request(**request))


PLANS = {
    "pod-create": lambda: make_pod(publish=["8080:80", "127.0.0.1:8443:443"]),
    "pod-create-none": lambda: make_pod(network="none", sysctl=["net.core.somaxconn=512"], hostname="other"),
    "pod-create-network": lambda: make_pod(named=BACK, network="back,isolated", mtu="1400"),
    "pod-create-network-owned": lambda: make_pod(named=BACK, network="back", owner="alice"),
    "join-network": lambda: make_join(pod={**POD, "network": {"mode": "bridge", "hosts_file": [1, 2]}}),
    "pod-create-host": lambda: make_pod(network="host"),
    "pod-create-owned": lambda: make_pod("alice", publish=["8080:80"]),
    "pod-create-closed": lambda: make_pod(no_tables="there is no nf_tables", publish=["8080:80"]),
    "pod-create-network-closed": lambda: make_pod(named=BACK, network="back", no_tables="there is no nf_tables"),
    "pod-create-pasta": lambda: make_pod(network="pasta", publish=["8080:80", "0.0.0.0:53:53/udp"]),
    "pod-create-rootless": lambda: make_pod("alice", by_root=False, publish=["8080:80"]),
    "join-owner": lambda: make_join(pod=OWNED, detach=True, door="/OWNED/1000/web.door"),
    "join-owned-by-root": lambda: make_join(pod=OWNED, user="33", volume=["named:/data"]),
    "exec-owner": lambda: make_exec(OWNED, door="/OWNED/1000/web.door"),
    "join-apparmor": lambda: make_join(
        security_opt=["apparmor=nsrun-test"], net="own", sysctl=["net.core.somaxconn=9"]
    ),
    "join": make_join,
    "join-detached": lambda: make_join(
        detach=True, volume=["/srv:/data:ro"], tmpfs=["/tmp"], ulimit=["nofile=64:128"], user="1:2"
    ),
    "join-host": lambda: make_join(root="/"),
    "join-own": lambda: make_join(
        net="own", ipc="own", pid="own", uts="own", read_only=True, security_opt=["no-new-privileges"]
    ),
    "join-nested": lambda: make_join(pid="nested", terminal=True, interactive=True, workdir="/srv"),
    "join-health-http": lambda: make_join(detach=True, health_http="http://:8080/x", health_header=["A: b"]),
    "join-health": lambda: make_join(detach=True, user="33", terminal=True, health_cmd="true", health_interval="5s"),
    "exec": lambda: make_exec(interactive=True),
}


@pytest.mark.parametrize("name", PLANS)
def test_golden(name):
    """A change in the order or the words of a plan is seen in the diff.  NSRUN_GOLDEN=write renews the files."""
    text = "".join(f"{PHASES[s.phase]:7}{s.call()}\n" for s in PLANS[name]())
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("NSRUN_GOLDEN") == "write":
        GOLDEN.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text()


def test_phases_are_in_order_and_steps_are_frozen():
    for make in PLANS.values():
        plan = make()
        assert [s.phase for s in plan] == sorted(s.phase for s in plan)
    with pytest.raises(AttributeError):
        plan.steps[0].what = "x"
    with pytest.raises(AssertionError):
        Plan("x", [mounts.Pivot(), process.LoadProgram("a", "b")])


def test_every_step_has_its_texts():
    for make in PLANS.values():
        for step in make():
            assert step.call() and step.brief() and re.match("[A-Z]|nsrun-", step.why) and step.why.endswith("."), step
            assert not step.many or step.thing(), step
            assert isinstance(step.shell(), str) and isinstance(step.check(), str) and isinstance(step.calls(), list)


@pytest.mark.parametrize("name", PLANS)
def test_every_handle_is_made_before_it_is_used(name):
    """And phase 4 asks for no descriptor that its step does not declare."""
    there: set[str] = set()
    for number, step in enumerate(PLANS[name](), 1):
        needed = [handle for handle in step.needs() if not handle.endswith("?")]
        assert set(needed) <= there, (number, step)
        there.update(handle.rstrip("?") for handle in step.makes())
        if step.phase == INIT:
            asked: list[str] = []
            step.args(
                type("Asked", (), {"fd": lambda _, n, asked=asked: asked.append(n) or 7, "text": lambda _, t: t})()
            )
            assert set(asked) <= set(needed), step


def test_every_step_says_where_its_code_is():
    csrc = HERE.parent / "csrc"
    for make in PLANS.values():
        for step in make():
            place, _, native = explain.code(step).partition(" → ")
            file, name = place.split()
            assert re.search(rf"^class {name}\(", (HERE.parent / "nsrun" / file).read_text(), re.M), place
            if step.phase == INIT or native:
                file, function = native.split()
                assert re.search(rf"^static long {function}\(", (csrc / file).read_text(), re.M), native


def test_ops_are_those_of_nsrun_init():
    out = subprocess.run(
        [f"{LIBEXEC}/nsrun-init", "--ops"], capture_output=True, text=True, timeout=10, check=True
    ).stdout
    rows = [line.split() for line in out.splitlines()]
    assert tuple(row[1] for row in rows) == _protocol.OPS
    kinds = {row[1]: row[2] if len(row) > 2 else "" for row in rows}

    class Fake:
        def fd(self, _):
            return 7

        def text(self, value):
            return value

    for make in PLANS.values():
        for step in make().init_steps():
            signature = "".join(
                "i" if isinstance(a, int) else "s" if isinstance(a, str) else "l" for a in step.args(Fake())
            )
            assert signature == kinds[_protocol.OPS[_protocol.OP_OF_STEP[type(step).__name__]]], step


def test_every_init_step_is_in_some_plan():
    used = {type(step) for make in PLANS.values() for step in make() if step.phase == INIT}
    assert {cls for cls in InitStep.__subclasses__() if cls.__module__.startswith("nsrun.plan")} == used
    containers = {cls.__name__ for cls in vars(of_containers).values() if isinstance(cls, type)}  # test_oci_plan.py
    assert {step.__name__ for step in used} == set(_protocol.OP_OF_STEP) - containers - {"Wait"}  # nsrun/teach/steps.py


def test_the_decoder_refuses_garbage():
    """nsrun-init reads what nsrun wrote; anything else ends it with 125, never a crash."""
    good = run.encode(PLANS["join"]().init_steps(), type("F", (), {"fd": lambda s, n: 99, "text": lambda s, t: t})())
    seed = random.Random(4)
    for i in range(300):
        data = bytearray(good)
        for _ in range(seed.randrange(1, 6)):
            data[seed.randrange(len(data))] = seed.randrange(256)
        data = data[: seed.randrange(len(data))] if i % 3 == 0 else data
        # never let a mutation run: the first step is one that does not exist
        data[8:12] = (1000 + i).to_bytes(4, "little")
        fd = kernel.sealed_memfd("plan", bytes(data))
        try:
            done = subprocess.run(
                [f"{LIBEXEC}/nsrun-init", str(fd), "1"], pass_fds=[fd], capture_output=True, timeout=10, check=False
            )
        finally:
            os.close(fd)
        assert done.returncode == 125, (i, done)


def test_stub_and_library_agree():
    stub = (HERE.parent / "nsrun" / "_kernel.pyi").read_text()
    declared = set(re.findall(r"def (nsrun_\w+)", stub))
    assert declared == {name for name in dir(_kernel.lib) if name.startswith("nsrun_")}


# ---- netlink ---------------------------------------------------------------------------------------------------


def test_templates_equal_pyroute2():
    """What wire.py fills in is what pyroute2 encodes, byte for byte, for any values."""
    seed = random.Random(1)

    def ip():
        return ".".join(str(seed.randrange(1, 255)) for _ in range(4))

    def ip6():
        return ":".join(f"{seed.randrange(1, 1 << 16):x}" for _ in range(8))

    for _ in range(20):
        values = {
            "bridge": "nsrun0",
            "veth": f"nsr{seed.randrange(1 << 32):08x}",
            "table": f"nsrun-{seed.randrange(1 << 32):08x}",
            "alias": f"nsrun:{seed.randrange(1 << 48):012x}",
            "bridge_index": seed.randrange(1, 1 << 30),
            "netns_fd": seed.randrange(3, 1 << 20),
            "index": seed.randrange(1, 1 << 30),
            "ip_word": seed.randrange(1 << 32),
            "began": seed.randbytes(16),
            "reached": seed.randbytes(16),
            "mtu": seed.randrange(68, 65536),
            "mac": b"\x02" + seed.randbytes(5),
            "pod_ip": ip(),
            "host_ip": ip(),
            **{key: ip() for key in ("gateway", "subnet", "netmask")},
            "prefix": bytes((socket.AF_INET, seed.randrange(33))),
            "port": seed.randrange(1, 1 << 16),
            "pod_port": seed.randrange(1, 1 << 16),
            **{key: ip6() for key in ("pod_ip6", "host_ip6", "gateway6")},
            "net6": seed.randbytes(8),
            "high6": seed.randrange(1 << 32),
            "low6": seed.randrange(1 << 32),
            **{
                key: seed.randrange(1 << 32)
                for key in ("mac_high", "mac_low", "gateway_word", "net_word", "mask_word", "third6", "fourth6")
            },
        }
        for name in messages.MESSAGES:
            assert wire.encode(name, **values) == messages.encode(name, values), name


def test_samples_are_unmistakable():
    """A sample must not occur by accident in any message, or wire.py would replace the wrong bytes."""
    samples = [sample for _, sample in messages.SAMPLES.values()]
    for name, template in messages.templates().items():
        parameters = messages.MESSAGES[name][1]
        for key, (_, sample) in messages.SAMPLES.items():
            if key not in parameters:
                assert sample not in template, (name, key)
    assert len(set(samples)) == len(samples)


def test_wrong_length_is_refused():
    with pytest.raises(ValueError, match="bytes on the wire"):
        wire.encode("new_bridge", bridge="toolongname", mac=bytes(6))


# ---- notes -----------------------------------------------------------------------------------------------------


def test_notes_are_json():
    value = {"a": [1, -2, 3.5, None, True, 'ä\n"\\', {"b": {}}], "": []}
    assert json.loads(codec.dumps(value)) == value == codec.loads(json.dumps(value))
    for text in ("", "{", "nope", "[1,]", "{'a': 1}"):
        with pytest.raises(ValueError):
            codec.loads(text)
