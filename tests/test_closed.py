# SPDX-License-Identifier: Apache-2.0
"""Pods on the bridge where there is no nf_tables: closed in, and published by nsrun-forward."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import platform
import subprocess
import sys

import pytest
from bare import MACHINES
from conftest import HERE, NSRUN, Host, arguments, kill, need, not_editable, sh, wait_for
from test_explain import Expected, traced

FORWARDS = pathlib.Path("/proc/sys/net/ipv4/ip_forward")


class WithoutTables(Host):
    """A host whose nsrun, and whatever that starts, gets no nf_tables."""

    errno = errno.EPROTONOSUPPORT

    def words(self, *words: object) -> list[str]:
        return [sys.executable, str(HERE / "bare.py"), str(self.errno), *map(str, words)]

    def run(self, *words: object, check: bool = True, timeout: float = 60, **kwargs):
        env = {**self.env, **kwargs.pop("env", {})}
        return sh(*self.words(NSRUN, *arguments(*words)), check=check, timeout=timeout, env=env, **kwargs)


@pytest.fixture
def bare(host: Host) -> WithoutTables:
    need(platform.machine() in MACHINES, "the filter of this test is for x86_64 and aarch64", "one of these")
    return WithoutTables(host.throwaway, host.root)


SERVER = """
import socket, threading
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(("", 53))
def datagrams():
    while True:
        data, peer = u.recvfrom(100)
        print(data.decode(), flush=True)
        u.sendto(data.upper(), peer)
threading.Thread(target=datagrams, daemon=True).start()
s = socket.create_server(("", 80))
while True:
    c, peer = s.accept()
    c.sendall(socket.gethostname().encode()); c.close()
"""
ASK = (
    "import socket, sys; s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 2); print(s.recv(100).decode())"
)
SEND = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], 0)); s.sendto(sys.argv[4].encode(), (sys.argv[2], int(sys.argv[3])))
"""


def make(bare: Host, name: str, *options: str) -> dict:
    """A pod with a server; its note, and what was said."""
    done = bare.run("pod", "create", *options, name)
    bare.run("join", name, "-d", "--name", f"{name}-s", "--", sys.executable, "-IS", "-c", SERVER)
    pod = bare.pod(name)
    wait_for(lambda: ":80 " in sh("nsenter", "-t", pod["pid"], "-n", "ss", "-ltn").stdout)
    return {**pod, "said": done.stderr}


def ask(address: str, port: int, where=()) -> str:
    return sh(*where, sys.executable, "-c", ASK, address, port, check=False).stdout.strip()


def send(text: str, source: str, to: str, port: int, where=()) -> None:
    sh(*where, sys.executable, "-c", SEND, source, to, port, text, check=False)


def inside(pod: dict) -> list[str]:
    return ["nsenter", "-t", str(pod["pid"]), "-n"]


@pytest.fixture
def outside(host):
    """The neighbour, and that it finds the pods by this host, which forwards what it gets."""
    where = ["nsenter", "-t", str(host.throwaway.neighbour.pid), "-n"]
    sh(*where, "ip", "route", "add", "10.88.0.0/24", "via", "192.0.2.1")
    sh(*where, "ip", "address", "add", "10.88.0.77/32", "dev", "lo")
    checks = [pathlib.Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter") for name in ("all", "up0")]
    before = [(path, path.read_text()) for path in (*checks, FORWARDS)]
    for path in checks:
        path.write_text("0")
    yield where
    for path, text in before:
        path.write_text(text)
    sh(*where, "ip", "address", "del", "10.88.0.77/32", "dev", "lo")
    sh(*where, "ip", "route", "del", "10.88.0.0/24")


def test_auto_is_forward(host, bare):
    """It says so and why; this host is not made to forward, and who asks for nat or IPv6 is told."""
    before = FORWARDS.read_text()
    FORWARDS.write_text("0")
    try:
        web = make(bare, "web", "-p", "20910:80", "-p", "20911:53/udp")
        assert FORWARDS.read_text() == "0\n"
        assert pathlib.Path("/proc/sys/net/ipv4/conf/nsrun0/route_localnet").read_text() == "0\n"
    finally:
        FORWARDS.write_text(before)
    why = "this kernel has no nf_tables (Protocol not supported)"
    assert f"nsrun-forward passes on what is published, since {why}" in web["said"]
    assert f"the pod is closed in, since {why}" in web["said"]
    assert web["network"]["closed"] == why and web["network"]["ip6"] == "" and why in web["network"]["ipv6"]
    assert {port["mode"] for port in web["ports"]} == {"forward"}
    away = ["nsenter", "-t", str(host.throwaway.neighbour.pid), "-n"]
    other = make(bare, "other")
    assert other["said"].count("closed in") == 1 and "nsrun-forward" not in other["said"]
    asked = [("127.0.0.1", ()), ("192.0.2.1", ()), ("192.0.2.1", away), (web["network"]["gateway"], inside(other))]
    assert [ask(address, 20910, where) for address, where in asked] == ["web"] * 4
    assert ask(web["network"]["ip"], 80) == ask(web["network"]["ip"], 80, inside(other)) == "web"
    done = bare.run("port", "add", "web", "20912:80")
    assert done.stdout.count("(forward)") == 1 and why in done.stderr and ask("127.0.0.1", 20912) == "web"
    for words in (["pod", "create", "--publish-mode", "nat", "-p", "20913:80", "x"], ["port", "add", "--publish-mode", "nat", "web", "20913:80"]):  # fmt: skip
        assert why in bare.fails(2, *words)
    assert why in bare.fails(125, "pod", "create", "--network", "bridge,ipv6=on", "x")
    assert {pod["name"] for pod in bare.json("pod", "ls")} == {"web", "other"}


def test_where_they_are_refused(bare):
    bare.errno = errno.EPERM
    web = make(bare, "web", "-p", "20910:80")
    assert "since nf_tables are refused here (Operation not permitted)" in web["said"]
    assert ask("127.0.0.1", 20910) == "web"
    bare.run("pod", "rm", "-f", "web")
    bare.run("pod", "prune")


@pytest.mark.parametrize("isolated", [False, True])
def test_what_this_host_forwards_does_not_reach_it(bare, outside, isolated):
    """Not by its address, nor from one that is said to be another pod's; without the second filter, both would."""
    web = make(bare, "web", *(["--network", "bridge,isolated"] if isolated else []))
    FORWARDS.write_text("1")
    ip, veth = web["network"]["ip"], web["network"]["veth"]

    def heard() -> list[str]:
        return bare.run("logs", "web-s").stdout.split()

    def everything(mark: str) -> None:
        send(f"{mark}-spoofed", "10.88.0.77", ip, 53, outside)
        send(f"{mark}-address", "192.0.2.9", ip, 53, outside)
        send(f"{mark}-host", "192.0.2.1", ip, 53)
        send(f"{mark}-bridge", web["network"]["gateway"], ip, 53)

    everything("a")
    wait_for(lambda: "a-bridge" in heard())
    assert ask(ip, 80, outside) == ""
    assert heard() == ["a-bridge"]
    sh("tc", "filter", "del", "dev", veth, "egress")
    everything("b")
    wait_for(lambda: {"b-spoofed", "b-address", "b-host", "b-bridge"} <= {*heard()})


def test_it_sends_nothing_beyond_the_bridge(bare, outside):
    """By way of a host that forwards; without the filter for what it sends, it would."""
    web = make(bare, "web")
    FORWARDS.write_text("1")
    listen = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 20914)); print('ready', flush=True)\nwhile 1: print(s.recv(100).decode(), flush=True)"
    with subprocess.Popen([*outside, sys.executable, "-c", listen], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout.readline() == "ready\n"
            send("one", web["network"]["ip"], "192.0.2.9", 20914, inside(web))
            send("mine", web["network"]["ip"], "192.0.2.1", 20914, inside(web))
            sh("tc", "filter", "del", "dev", web["network"]["veth"], "ingress")
            send("two", web["network"]["ip"], "192.0.2.9", 20914, inside(web))
            assert server.stdout.readline() == "two\n"
        finally:
            server.kill()


def test_isolated_pods(bare):
    one, two = make(bare, "one", "--network", "bridge,isolated"), make(bare, "two")
    assert ask(one["network"]["ip"], 80, inside(two)) == ask(two["network"]["ip"], 80, inside(one)) == ""
    assert ask(one["network"]["ip"], 80) == "one"
    sh(*inside(two), "ip", "route", "add", one["network"]["ip"], "via", two["network"]["gateway"])
    FORWARDS.write_text("1")
    assert ask(one["network"]["ip"], 80, inside(two)) == ""


@pytest.mark.parametrize("owner", ["root", "alice"])
def test_the_address_is_leased(host, bare, owner):
    """To whoever holds the pod, as long as it lives, whatever becomes of eth0."""
    make_pod = ["pod", "create", "--owner", owner]
    bare.run(*make_pod, "one")
    first = bare.pod("one")
    sh(*inside(first), "ip", "link", "del", "eth0")
    assert "taken by another pod" in bare.fails(125, *make_pod, "--ip", first["network"]["ip"], "two")
    bare.run(*make_pod, "two")
    assert bare.pod("two")["network"]["ip"] != first["network"]["ip"]
    kill(first["pid"])
    wait_for(lambda: [pod["name"] for pod in bare.json("pod", "ls")] == ["two"])
    wait_for(lambda: not bare.run(*make_pod, "--ip", first["network"]["ip"], "three", check=False).returncode, 10)


def test_beside_a_pod_that_has_a_table(host, bare, outside):
    """Each keeps what it has: the one is published by nat, the other is closed in."""
    host.run("pod", "create", "-p", "20910:80", "open")
    host.run("join", "open", "-d", "--name", "s", "--", sys.executable, "-IS", "-c", SERVER)
    web = make(bare, "web", "-p", "20911:80")
    wait_for(lambda: ask("127.0.0.1", 20910) == "open")
    assert ask("192.0.2.1", 20910, outside) == "open" and ask("192.0.2.1", 20911, outside) == "web"
    assert ask(web["network"]["ip"], 80, outside) == ""
    assert web["network"]["ip"] != host.pod("open")["network"]["ip"]


@pytest.fixture
def networks(host, bare):
    for name in ("back", "front"):
        bare.run("network", "create", name)
    yield
    for pod in host.json("pod", "ls", "-a"):
        host.run("pod", "rm", "-f", pod["name"])
    assert host.run("network", "rm", "back", "front").stdout == "back\nfront\n"
    assert not [name for name in os.listdir("/sys/class/net") if name.startswith("nsrb")]


def test_of_more_than_one_network(host, bare, networks):
    """Pods of one network reach each other; those of two do not, nor one that is not closed in, by a host that forwards."""
    FORWARDS.write_text("1")
    one, mate = (make(bare, name, "--network", "back") for name in ("one", "mate"))
    two, web = make(bare, "two", "--network", "front", "-p", "20910:80"), make(bare, "web")
    alone = make(bare, "alone", "--network", "back,isolated")
    host.run("pod", "create", "--network", "front", "open")
    host.run("join", "open", "-d", "--name", "open-s", "--", sys.executable, "-IS", "-c", SERVER)
    pods = {pod["name"]: pod for pod in (one, mate, two, web, alone, host.pod("open"))}
    wait_for(lambda: ask(pods["open"]["network"]["ip"], 80) == "open")
    assert [bool(pod["network"].get("closed")) for pod in pods.values()] == [True] * 5 + [False]
    assert len({pod["network"]["bridge"] for pod in pods.values()}) == 3
    together = [{"one", "mate"}, {"two", "open"}]
    for name, pod in pods.items():
        assert ask(pod["network"]["ip"], 80) == name
        for other, its in pods.items():
            if name != other:
                expected = other if {name, other} in together else ""
                assert ask(its["network"]["ip"], 80, inside(pod)) == expected, (name, other)
        assert ask(pod["network"]["gateway"], 20910, inside(pod)) == "two"  # what is published is so for all


@pytest.mark.parametrize("left", ["ingress", "egress", "none"])
def test_each_filter_alone_parts_two_networks(bare, networks, left):
    """That for what a pod sends, and that for what comes to one; without both, a host that forwards leads from one to the other."""
    FORWARDS.write_text("1")
    one, two = (make(bare, name, "--network", network) for name, network in (("one", "back"), ("two", "front")))
    mate = make(bare, "mate", "--network", "front")
    for pod, way in ((one, "ingress"), (two, "egress")):
        if way != left:
            sh("tc", "filter", "del", "dev", pod["network"]["veth"], way)
    send("other", one["network"]["ip"], two["network"]["ip"], 53, inside(one))
    send("mate", mate["network"]["ip"], two["network"]["ip"], 53, inside(mate))
    send("bridge", two["network"]["gateway"], two["network"]["ip"], 53)
    expected = {"mate", "bridge", *(["other"] if left == "none" else [])}
    wait_for(lambda: expected <= set(bare.run("logs", "two-s").stdout.split()))
    assert set(bare.run("logs", "two-s").stdout.split()) == expected


@pytest.mark.parametrize("owner", ["root", "alice"])
def test_names_of_a_network(bare, alice, busybox, box, networks, owner):
    """They are in the hosts file of a pod that is closed in, as in that of any other."""
    bare.run("pod", "create", "--owner", owner, "--network", "back", "one")
    if owner == "alice":
        alice.run("join", "one", "-d", "--name", "m", "--image", box, "--", "sleep", "1000")
    else:
        bare.run("join", "one", "-d", "--name", "m", "--rootfs", busybox, "--", "sleep", "1000")
    reader = alice if owner == "alice" else bare

    def known() -> list[list[str]]:
        lines = reader.run("exec", "m", "cat", "/etc/hosts").stdout.splitlines()
        return [line.split() for line in lines if line.split()[1:] in (["one"], ["two"])]

    row = [bare.pod("one")["network"]["ip"], "one"]
    assert known() == [row]
    two = make(bare, "two", "--network", "back")
    assert known() == [row, [two["network"]["ip"], "two"]]
    assert reader.run("exec", "m", "nc", "two", "80").stdout == "two"
    bare.run("pod", "rm", "-f", "two")
    assert known() == [row]


def test_a_network_where_they_are_refused(bare, host):
    """Nobody may ask who has a lease there, so the bridge stays, and who would remove it is told."""
    bare.errno = errno.EPERM
    bare.run("network", "create", "back")
    web = make(bare, "web", "--network", "back", "-p", "20910:80")
    assert "since nf_tables are refused here" in web["said"] and ask("127.0.0.1", 20910) == "web"
    assert "used by pod web" in bare.fails(125, "network", "rm", "back")
    bare.run("pod", "rm", "-f", "web")
    said = bare.fails(125, "network", "rm", "back")
    assert "is not known" in said and f"ip link del {web['network']['bridge']}" in said
    assert bare.run("network", "ls", "-q").stdout.split() == ["bridge", "back"]
    sh("ip", "link", "del", web["network"]["bridge"])
    assert bare.run("network", "rm", "back").stdout == "back\n"


@not_editable
def test_what_strace_shows(bare, tmp_path):
    """The calls of the plan for a pod that is closed in are those that are made."""
    words = ["pod", "create", "-p", "0.0.0.0:20910:80", "x"]
    expected = Expected(bare, words)
    outside, others, _ = traced(bare, words, tmp_path)
    expected.check(outside, others)


def test_explain_and_doctor(bare):
    plan = bare.run("explain", "pod", "create", "-p", "20910:80", "x").stdout
    assert "IP_FREEBIND" in plan and "nft add" not in plan and "nsrun-forward" in plan
    found = {finding["what"]: finding for finding in json.loads(bare.run("doctor", "--json", check=False).stdout)}
    for what in ("published ports", "IPv6", "forwarding"):
        assert found[what]["status"] == "limited" and "has no nf_tables" in found[what]["detail"], found[what]
    make(bare, "web", "-p", "20910:80")
    assert "20910" in bare.run("map", "web").stdout
