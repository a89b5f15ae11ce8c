# SPDX-License-Identifier: Apache-2.0
"""Pods on pasta: made by root for root, by root for a user, and by a user; both families, both protocols, both directions."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from conftest import kill, need, sh, wait_for
from test_rootless import forwarders

#: Answers on 80/tcp and 20921/udp of both families: who it is to TCP, and in capitals to UDP.
SERVER = """
import socket, sys, threading
def tcp(family, address):
    with socket.create_server((address, 80), family=family) as s:
        while True:
            c, peer = s.accept()
            c.recv(100); c.sendall(sys.argv[1].encode()); c.close()
def udp(family, address):
    s = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    s.bind((address, 20921))
    while True:
        data, peer = s.recvfrom(100)
        s.sendto(data.upper(), peer)
for what in (tcp, udp):
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        threading.Thread(target=what, args=(family, address)).start()
"""
ASK = """
import socket, sys
address, port, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
s.settimeout(3)
s.connect((address, port))
s.send(b"who")
print(s.recv(100).decode())
"""
WHO = ["root", "for alice", "alice"]


@pytest.fixture(autouse=True)
def installed():
    need(shutil.which("pasta"), "pasta is missing", "apt-get install passt")


@pytest.fixture
def away(host) -> list[str]:
    return ["nsenter", "-t", str(host.throwaway.neighbour.pid), "-n"]


@pytest.fixture
def six(host, away):
    """This host has IPv6 too, and a way out."""
    sh("ip", "-6", "address", "add", "2001:db8::1/64", "dev", "up0", "nodad")
    sh(*away, "ip", "-6", "address", "add", "2001:db8::9/64", "dev", "up1", "nodad")
    sh("ip", "-6", "route", "add", "default", "via", "2001:db8::9")
    yield
    sh("ip", "-6", "route", "del", "default", "via", "2001:db8::9")
    sh("ip", "-6", "address", "del", "2001:db8::1/64", "dev", "up0")
    sh(*away, "ip", "-6", "address", "del", "2001:db8::9/64", "dev", "up1")


@pytest.fixture
def make(host, alice):
    """Make a pod on pasta, and start SERVER in it; return its note."""

    def make(who: str, *options: str, name: str = "web") -> dict:
        maker = alice if who == "alice" else host
        owner = ["--owner", "alice" if who == "for alice" else "root"] if who != "alice" else []
        done = maker.run("pod", "create", "--network", "pasta", *owner, *options, name)
        maker.run("join", name, "-d", "--name", f"{name}-s", "--", sys.executable, "-IS", "-c", SERVER, name)
        pod = maker.pod(name)
        wait_for(
            lambda: len(sh("nsenter", "-t", pod["pid"], "-n", "ss", "-ltnH", "sport = :80").stdout.splitlines()) == 2
        )
        # or what pasta passes on by IPv6 would be lost for the first second or two, and it does not send it again
        assert not sh("nsenter", "-t", pod["pid"], "-n", "ip", "-6", "address", "show", "tentative").stdout
        return {**pod, "said": done.stderr}

    return make


def ask(address: str, port: int, kind: str = "tcp", where=()) -> str:
    return sh(*where, sys.executable, "-c", ASK, address, port, kind, check=False).stdout.strip()


@contextlib.contextmanager
def serving(where: list[str]):
    with subprocess.Popen([*where, sys.executable, "-c", SERVER, "outside"]) as server:
        try:
            wait_for(lambda: ask("192.0.2.9", 20921, "udp") and ask("192.0.2.9", 80))
            yield
        finally:
            server.kill()


@pytest.mark.parametrize("who", WHO)
def test_published_ports(away, six, make, who):
    pod = make(who, "-p", "20920:80", "-p", "20921:20921/udp")
    assert [(p["host_ip"], p["protocol"]) for p in pod["ports"]] == [(ip, kind) for kind in ("tcp", "udp") for ip in ("0.0.0.0", "::")]  # fmt: skip
    here = ("127.0.0.1", "192.0.2.1", "::1", "2001:db8::1")
    assert {address: ask(address, 20920) for address in here} == dict.fromkeys(here, "web")
    assert ask("192.0.2.1", 20920, where=away) == ask("2001:db8::1", 20920, where=away) == "web"
    assert ask("127.0.0.1", 20921, "udp") == ask("::1", 20921, "udp") == "WHO"
    assert ask("192.0.2.1", 20921, "udp", away) == ask("2001:db8::1", 20921, "udp", away) == "WHO"


@pytest.mark.parametrize("who", WHO)
def test_the_way_out(away, six, make, who):
    pod = make(who)
    inside = ["nsenter", "-t", str(pod["pid"]), "-n"]
    with serving(away):
        for address in ("192.0.2.9", "2001:db8::9"):
            assert ask(address, 80, where=inside) == "outside", address
            assert ask(address, 20921, "udp", inside) == "WHO", address


@pytest.mark.parametrize("who", ["root", "alice"])
def test_one_address_is_one_address(away, six, make, who):
    """0.0.0.0 is not every address of IPv6 as well, nor the other way round."""
    make(
        who, "-p", "0.0.0.0:20920:80", "-p", "[::]:20922:80", "-p", "127.0.0.1:20923:80", "-p", "[2001:db8::1]:20924:80"
    )
    answers = {
        port: [ask(address, port) for address in ("127.0.0.1", "192.0.2.1", "::1", "2001:db8::1")]
        for port in (20920, 20922, 20923, 20924)
    }
    assert answers == {20920: ["web", "web", "", ""], 20922: ["", "", "web", "web"], 20923: ["web", "", "", ""], 20924: ["", "", "", "web"]}  # fmt: skip


@pytest.mark.parametrize("who", ["root", "alice"])
def test_without_ipv6(host, alice, make, who):
    """Where pasta has no address to copy, ports are those of IPv4, and who asks for others is told."""
    pod = make(who, "-p", "20920:80")
    assert [p["host_ip"] for p in pod["ports"]] == ["0.0.0.0"] and ask("127.0.0.1", 20920) == "web"
    maker = alice if who == "alice" else host
    said = maker.fails(2, "pod", "create", "--network", "pasta", "-p", "[::]:20925:80", "x")
    assert "no default route of IPv6" in said


def test_roots_pasta_has_power_over_its_pod_alone(host, make):
    """It is nobody, in a user namespace of its own; a port below 1024 is bound as root, before that."""
    pod = make("root", "-p", "0.0.0.0:85:80")
    assert ask("127.0.0.1", 85) == "web"
    (line,) = forwarders(host)
    pasta = f"/proc/{line.split()[0]}"
    status = dict(
        line.split(":\t", 1) for line in pathlib.Path(f"{pasta}/status").read_text().splitlines() if ":\t" in line
    )
    assert status["Uid"].split() == status["Gid"].split() == ["65535"] * 4 and status["Seccomp"] == "2"
    assert (
        os.readlink(f"{pasta}/ns/user")
        != os.readlink("/proc/self/ns/user")
        == os.readlink(f"/proc/{pod['pid']}/ns/user")
    )
    host.run("pod", "rm", "-f", "web")
    wait_for(lambda: forwarders(host) == [])


def test_a_user_gets_no_port_of_roots(host):
    """The process that has the sockets is the owner's, also if root makes the pod."""
    assert "port 85 needs root" in host.fails(
        125, "pod", "create", "--network", "pasta", "--owner", "alice", "-p", "85:80", "x"
    )


@pytest.mark.parametrize("who", ["root", "for alice"])
@pytest.mark.parametrize("killed", ["pause", "pause and its helpers", "pasta"])
def test_it_ends_with_its_pod(host, make, who, killed):
    pod = make(who, "-p", "20920:80")
    helpers = ("nsrun-hold", "nsrun-door")
    if killed == "pasta":
        kill(int(forwarders(host)[0].split()[0]))
        wait_for(lambda: ask("127.0.0.1", 20920) == "")
        assert [pod["status"] for pod in host.json("pod", "ls")] == ["running"]
    else:
        if killed != "pause":
            for line in host.snapshot()["processes"]:  # type: ignore[attr-defined]
                if line.split()[1] in helpers:
                    kill(int(line.split()[0]))
        kill(pod["pid"])
        wait_for(lambda: not os.path.exists(f"/proc/{pod['pid']}"))
        host.run("pod", "prune", "--all")
        wait_for(lambda: forwarders(host) == [])
    host.run("pod", "rm", "-f", "web", check=False)
    make(who, "-p", "20920:80", name="two")
    assert ask("127.0.0.1", 20920) == "two"


def test_more_ports_later(host, make):
    make("root", "-p", "0.0.0.0:20920:80")
    done = host.run("port", "add", "web", "0.0.0.0:20926:80")
    assert "pasta can't" in done.stderr and ask("127.0.0.1", 20926) == "web"
    host.run("port", "rm", "web", "20926")
    assert ask("127.0.0.1", 20926) == "" and "pasta has these ports" in host.fails(125, "port", "rm", "web", "20920")


@pytest.mark.parametrize("who", WHO)
def test_more_ports_later_in_both_families(host, alice, away, six, make, who):
    """As those of `pod create`: the pod has IPv6, if not by a bridge."""
    make(who)
    maker = alice if who == "alice" else host
    maker.run("port", "add", "web", "20926:80", "20927:20921/udp", "[2001:db8::1]:20928:80")
    assert ask("127.0.0.1", 20926) == ask("2001:db8::1", 20926, where=away) == ask("::1", 20926) == "web"
    assert ask("192.0.2.1", 20927, "udp", away) == ask("2001:db8::1", 20927, "udp", away) == "WHO"
    assert ask("2001:db8::1", 20928) == "web" and ask("::1", 20928) == ""


def test_more_ports_later_of_a_pod_without_ipv6(host, make):
    make("root")
    host.run("port", "add", "web", "20926:80")
    assert [p["host_ip"] for p in host.json("port", "ls", "web")] == ["0.0.0.0"]
    assert "no default route of IPv6" in host.fails(2, "port", "add", "web", "[::]:20927:80")


def test_a_free_port_of_both_families(six, make):
    pod = make("root", "-p", ":80")
    numbers = {port["host_port"] for port in pod["ports"]}
    assert len(pod["ports"]) == 2 and len(numbers) == 1
    assert ask("127.0.0.1", numbers.pop()) == "web"


@pytest.mark.parametrize("who", ["root", "alice"])
def test_less_under_way(make, who):
    """What docs/network.md advises, so that an old pasta does not lose what the pod sends."""
    pod = make(who, "--sysctl", "net.ipv4.tcp_wmem=4096 16384 262144")
    assert sh("nsenter", "-t", pod["pid"], "-n", "sysctl", "-n", "net.ipv4.tcp_wmem").stdout.split()[2] == "262144"


def test_what_is_refused(host):
    os.chmod("/dev/net/tun", 0o600)
    try:
        assert "only root may open" in host.fails(125, "pod", "create", "--network", "pasta", "x")
    finally:
        os.chmod("/dev/net/tun", 0o666)
    assert "nat" in host.fails(2, "pod", "create", "--network", "pasta", "--publish-mode", "nat", "-p", "20920:80", "x")
    assert host.json("pod", "ls", "-a") == []
