# SPDX-License-Identifier: Apache-2.0
"""Published UDP: a name server in a pod, asked from everywhere, and by clients that keep their socket over a pod's end."""

import pathlib
import shutil
import socket
import subprocess
import sys

import pytest
from conftest import kill, sh, wait_for

SERVER = pathlib.Path(__file__).with_name("dns.py")


@pytest.fixture
def script(tmp_path):
    """The server, where a user of the test's can read it."""
    shutil.copy(SERVER, "/run/dns.py")
    yield "/run/dns.py"
    pathlib.Path("/run/dns.py").unlink()


@pytest.fixture
def names(host, script):
    """Make a pod whose server answers with an address."""

    def make(name, answer, *options, port=53):
        host.run("pod", "create", *options, name)
        host.run(
            "join {} -d --name {} -- {} -IS {} serve {} {}", name, f"{name}-dns", sys.executable, script, port, answer
        )
        pid = host.pod(name)["pid"]
        wait_for(lambda: f":{port:04X} " in pathlib.Path(f"/proc/{pid}/net/udp").read_text(), what="it listens")
        return host.pod(name)

    return make


class Client:
    """A client that asks from one socket as long as it lives."""

    def __init__(self, address: str, port: int, prefix=()) -> None:
        words = [*map(str, prefix), sys.executable, "-IS", str(SERVER), "ask", address, str(port)]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()

    def ask(self) -> str:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def learns(self, answer: str) -> bool:
        """Ask until that is the answer; a datagram may be lost."""
        return any(self.ask() == answer for _ in range(6))


def ask(address: str, port: int, prefix=()) -> str:
    with Client(address, port, prefix) as client:
        return client.ask()


def inside(pid: object) -> list[object]:
    return ["nsenter", "-t", pid, "-n"]


def test_a_published_port_answers_from_everywhere(host, names):
    pod = names("dns", "192.0.2.77", "-p", "5353:53/udp")
    neighbour = inside(host.throwaway.neighbour.pid)
    assert host.run("port", "dns").stdout == "53/udp -> 0.0.0.0:5353\n53/udp -> [::]:5353\n"
    assert "5353->53/udp" in host.run("pod", "ls").stdout
    for address, prefix in (
        ("127.0.0.1", ()),
        ("192.0.2.1", ()),
        ("192.0.2.1", neighbour),
        ("192.0.2.1", inside(pod["pid"])),
        (pod["network"]["gateway"], inside(pod["pid"])),
    ):
        assert ask(address, 5353, prefix) == "192.0.2.77", (address, prefix)
    assert ask(pod["network"]["ip"], 53) == "192.0.2.77"
    sh(*neighbour, "ip", "route", "replace", "10.88.0.0/16", "via", "192.0.2.1")
    assert ask(pod["network"]["ip"], 53, neighbour) == "silent", "only published ports are let in"


def test_one_address_ranges_and_both_protocols(host, names):
    names(
        "dns",
        "192.0.2.78",
        "-p",
        "127.0.0.1:5300-5302:52-54/udp",
        "-p",
        "5301:53",
        "-p",
        "192.0.2.1::53/udp",
        "-p",
        ":53/udp",
    )
    ports = host.pod("dns")["ports"]
    assert [(p["host_ip"], p["pod_port"], p["protocol"]) for p in ports] == [
        ("127.0.0.1", 52, "udp"), ("127.0.0.1", 53, "udp"), ("127.0.0.1", 54, "udp"),
        ("0.0.0.0", 53, "tcp"), ("::", 53, "tcp"), ("192.0.2.1", 53, "udp"), ("0.0.0.0", 53, "udp"), ("::", 53, "udp"),
    ]  # fmt: skip
    one, every = ports[5]["host_port"], ports[6]["host_port"]
    neighbour = inside(host.throwaway.neighbour.pid)
    assert ask("127.0.0.1", 5301) == "192.0.2.78" and ask("192.0.2.1", 5301, neighbour) == "silent"
    assert ask("127.0.0.1", 5300) == "silent", "nobody listens there in the pod"
    assert ask("192.0.2.1", one, neighbour) == "192.0.2.78" and ask("127.0.0.1", one) == "silent"
    assert ask("192.0.2.1", every, neighbour) == "192.0.2.78" and ask("127.0.0.1", every) == "192.0.2.78"


def test_a_port_is_held_for_its_protocol_alone(host, names):
    names("dns", "192.0.2.79", "-p", "5353:53/udp")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError):
            sock.bind(("127.0.0.1", 5353))
    with socket.create_server(("127.0.0.1", 5353)):
        pass
    before = host.snapshot()
    message = host.fails(125, "pod", "create", "-p", "127.0.0.1:5353:53/udp", "other")
    assert "5353/udp is taken" in message and "by pod 'dns'" in message
    assert host.snapshot() == before
    host.run("pod", "create", "-p", "5353:53", "tcp")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 5354))
        message = host.fails(125, "pod", "create", "-p", "5354:53/udp", "other")
        assert f"process {sh('sh', '-c', 'echo $PPID').stdout.strip()}" in message
    kill(host.pod("dns")["pid"])

    def free() -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            try:
                sock.bind(("0.0.0.0", 5353))
            except OSError:
                return False
            return True

    wait_for(free, what="the port is free")


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "removed"])
def test_a_client_that_keeps_its_socket_is_not_stuck(host, names, killed):
    """moby#8795: an entry lives as long as somebody sends, and leads where the first datagram went."""
    neighbour = inside(host.throwaway.neighbour.pid)
    with (
        Client("127.0.0.1", 5353) as here,
        Client("192.0.2.1", 5353) as self,
        Client("192.0.2.1", 5353, neighbour) as there,
    ):
        clients = (here, self, there)
        assert [client.ask() for client in clients] == ["silent"] * 3
        first = names("one", "192.0.2.1", "-p", "5353:53/udp")
        assert [client.learns("192.0.2.1") for client in clients] == [True] * 3
        if killed:
            kill(first["pid"])
            wait_for(lambda: "5353" not in sh("nft", "list", "ruleset").stdout, what="its table is gone")
        else:
            host.run("pod rm -f one")
        assert [client.ask() for client in clients] == ["silent"] * 3
        host.run("pod create --ip {} in-its-place", first["network"]["ip"])
        second = names("two", "192.0.2.2", "-p", "5353:53/udp")
        assert second["network"]["ip"] != first["network"]["ip"]
        assert [client.learns("192.0.2.2") for client in clients] == [True] * 3


def test_the_next_pod_of_an_address_gets_nothing_of_the_last_ones(host, names):
    """A client that goes on sending to a pod that is gone does not reach another one that publishes nothing."""
    with Client("127.0.0.1", 5353) as client:
        first = names("one", "192.0.2.1", "-p", "5353:53/udp")
        assert client.learns("192.0.2.1")
        kill(first["pid"])
        wait_for(lambda: first["network"]["veth"] not in sh("ip", "-br", "link").stdout)
        second = names("two", "192.0.2.2")
        assert second["network"]["ip"] == first["network"]["ip"]
        assert [client.ask() for _ in range(3)] == ["silent"] * 3


@pytest.mark.parametrize("more", [(), ("-p", "6000-6099:6000-6099/udp")], ids=["asked_by_port", "asked_for_all"])
def test_only_what_leads_to_a_pod_or_to_this_host_is_removed(host, names, more):
    """A pod that has begun to talk to another host, by the same port, goes on with the same entry."""
    from nsrun.host import conntrack, wire

    def idents(port: int) -> set[bytes]:
        with wire.open_socket(wire.NETLINK_NETFILTER) as sock:
            flows = conntrack._flows(sock, wire.encode("udp_flows"))
            found = {flow.raw[conntrack.IDENT] for flow in flows if flow.port == port}
            selected = conntrack._flows(sock, wire.encode("udp_flows_to", port=port))
        assert {flow.raw[conntrack.IDENT] for flow in selected} == found and len(flows) > len(found)
        return found

    pod = names("other", "192.0.2.3", "-p", "5400:53/udp")
    with Client("127.0.0.1", 5400) as client, Client("192.0.2.9", 5361, inside(pod["pid"])) as passing:
        assert client.learns("192.0.2.3") and passing.ask() == "silent"
        through, local = idents(5361), idents(5400)
        assert through and local
        with Client("127.0.0.1", 5361) as stale:
            assert stale.ask() == "silent" and len(idents(5361)) == len(through) + 1
            names("dns", "192.0.2.4", "-p", "5361:53/udp", *more)
            assert idents(5361) == through and idents(5400) == local
            assert stale.learns("192.0.2.4") and client.ask() == "192.0.2.3"


def test_what_comes_for_a_held_port_is_not_kept(host, names):
    """Nobody reads from the socket that holds a port: what reaches it, past a table that was flushed, is dropped."""
    pod = names("dns", "192.0.2.80", "-p", "5353:53/udp")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(200):
            sock.sendto(bytes(1000), ("127.0.0.1", 5353))
    lines = [line.split() for line in pathlib.Path("/proc/net/udp").read_text().splitlines() if ":14E9 " in line]
    assert lines and all(int(fields[4].partition(":")[2], 16) < 8192 for fields in lines)
    assert host.pod("dns")["pid"] == pod["pid"]


def test_a_pod_of_a_users(host, alice, script):
    """Made by root for a user, and made by the user: pasta has sockets of its own."""
    env = {"SUDO_UID": str(alice.uid)}
    host.run("pod", "create", "-p", "5353:5400/udp", "theirs", env=env)
    alice.run("pod", "create", "-p", "127.0.0.1:5400:5400/udp", "-p", "5454:5400/udp", "-p", "5454:80", "own")
    neighbour = inside(host.throwaway.neighbour.pid)
    for name in ("theirs", "own"):
        server = [sys.executable, "-IS", script, "serve", 5400, "192.0.2.5"]
        alice.run("join", name, "-d", "--name", f"{name}-dns", "--", *server)
    # pasta before 2024 answers clients on this host only where both ports have the same number (docs/owned.md)
    for address, port, prefix in (("127.0.0.1", 5353, ()), ("127.0.0.1", 5400, ()), ("192.0.2.1", 5454, neighbour)):
        with Client(address, port, prefix) as client:
            assert client.learns("192.0.2.5"), (address, port)
    assert "5454/udp is taken" in alice.fails(125, "pod", "create", "-p", "5454:53/udp", "more")
    kill(alice.pod("own")["pid"])

    def free() -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            try:
                sock.bind(("127.0.0.1", 5454))
            except OSError:
                return False
            return True

    wait_for(free, what="pasta has ended")


def test_what_is_refused(host):
    for word, said in (
        ("53:53/sctp", "can't forward SCTP"),
        ("53:53/UDP", "no protocol"),
        ("53:53/", "no protocol"),
        ("5353:53/udp/tcp", "no protocol"),
    ):
        assert said in host.fails(2, "pod", "create", "-p", word, "p")
    assert "5353/udp is published twice" in host.fails(
        2, "pod", "create", "-p", "5353:53/udp", "-p", "127.0.0.1:5353:54/udp", "p"
    )
    assert host.json("pod", "ls", "-a") == []
