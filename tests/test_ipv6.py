# SPDX-License-Identifier: Apache-2.0
"""IPv6 of pods on the bridge: their addresses, published ports, and what the host keeps of its own."""

import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys

import pytest
from conftest import CACHE, NSRUN, kill, sh, wait_for
from test_explain import Expected, not_editable, traced
from test_udp import SERVER, Client, ask, inside

CONF = pathlib.Path("/proc/sys/net/ipv6/conf")
HERE, THERE = "2001:db8:77::1", "2001:db8:77::9"


def conf(interface: str, key: str) -> str:
    return (CONF / interface / key).read_text().strip()


@pytest.fixture
def outside(host):
    """Give this host and its neighbour global addresses; return what enters the neighbour's network."""
    neighbour = inside(host.throwaway.neighbour.pid)
    sh("ip", "-6", "address", "add", f"{HERE}/64", "dev", "up0", "nodad")
    sh(*neighbour, "ip", "-6", "address", "add", f"{THERE}/64", "dev", "up1", "nodad")
    yield neighbour
    sh("ip", "-6", "address", "del", f"{HERE}/64", "dev", "up0")
    sh(*neighbour, "ip", "-6", "address", "del", f"{THERE}/64", "dev", "up1")


@pytest.fixture
def settings():
    """Set this host's settings for one test."""
    kept: list[tuple[pathlib.Path, str]] = []

    def put(interface: str, key: str, value: str) -> None:
        path = CONF / interface / key
        kept.append((path, path.read_text()))
        path.write_text(value)

    yield put
    for path, value in reversed(kept):
        path.write_text(value)


ECHO = """
import socket, sys
six = socket.create_server(("::", 80), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    sock, peer = six.accept()
    sock.sendall(f"{sys.argv[1]} {peer[0]}".encode())
    sock.close()
"""


@pytest.fixture
def serve(host):
    """Make a pod whose member answers on port 80 with the pod's name and the caller's address."""

    def make(name, *options, **kwargs):
        host.run("pod", "create", *options, name, **kwargs)
        host.run("join", name, "-d", "--name", f"{name}-s", "--", sys.executable, "-IS", "-c", ECHO, name)
        pod = host.pod(name)
        wait_for(lambda: call(pod["network"]["ip"], 80).startswith(name), what="it listens")
        return pod

    return make


CALL = """
import socket, sys
try:
    sock = socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)
    print(sock.recv(100).decode())
except OSError as error:
    print(type(error).__name__)
"""


def call(address: str, port: int, prefix=()) -> str:
    """Return what answers at a port, or the error."""
    return sh(*prefix, sys.executable, "-IS", "-c", CALL, address, port, cwd="/").stdout.strip()


def test_a_published_port_answers_from_everywhere(host, outside, serve):
    pod = serve("web", "-p", "8080:80")
    six, gateway = pod["network"]["ip6"], pod["network"]["ip6"].rpartition(":")[0] + ":1"
    assert six.startswith("fd") and six.endswith(":a58:2") and pod["network"]["ipv6"] == "on"
    assert [(p["host_ip"], p["host_port"]) for p in pod["ports"]] == [("0.0.0.0", 8080), ("::", 8080)]
    assert host.run("port", "web").stdout == "80/tcp -> 0.0.0.0:8080\n80/tcp -> [::]:8080\n"
    assert "8080->80,[::]:8080->80" in host.run("pod", "ls").stdout
    assert call("127.0.0.1", 8080) == "web ::ffff:10.88.0.1"
    assert call(six, 80) == f"web {gateway}"
    assert call(HERE, 8080) == f"web {HERE}" and call(gateway, 8080) == f"web {gateway}"
    assert call(HERE, 8080, outside) == f"web {THERE}", "the member sees who calls"
    other = serve("other")
    for caller in (other, pod):
        assert call(HERE, 8080, inside(caller["pid"])) == f"web {gateway}", "an answer goes the way back"
    assert call(six, 80, inside(other["pid"])) == f"web {other['network']['ip6']}"
    assert call("::1", 8080) == "ConnectionRefusedError", "at once: a client then takes 127.0.0.1"
    sh(*outside, "ip", "-6", "route", "replace", "fd00::/8", "via", HERE)
    assert call(six, 80, outside) == "TimeoutError", "only published ports are let in"
    assert f"{six}\tweb" in host.run("join", "web", "--rm", "--", "cat", "/etc/hosts").stdout.splitlines()


def test_out_of_a_pod(host, outside, serve):
    """What a pod sends has this host's address outside, and comes back."""
    pod = serve("web")
    with subprocess.Popen(
        [*map(str, outside), sys.executable, "-IS", "-c", ECHO, "far"], stdout=subprocess.DEVNULL
    ) as far:
        try:
            wait_for(lambda: call(THERE, 80) == f"far {HERE}")
            assert call(THERE, 80, inside(pod["pid"])) == f"far {HERE}"
        finally:
            far.kill()
    ping = sh(
        *inside(pod["pid"]), CACHE / "busybox/bin/busybox", "ping", "-6", "-c", "1", "-W", "2", THERE, check=False
    )
    assert ping.returncode == 0, ping


def test_udp(host, outside):
    """From everywhere, and a client that keeps its socket is not stuck on a pod that is gone."""
    shutil.copy(SERVER, "/run/dns.py")

    def make(name, answer):
        host.run("pod", "create", "-p", "5353:53/udp", name)
        host.run("join {} -d --name {} -- {} -IS /run/dns.py serve 53 {} ::", name, f"{name}-s", sys.executable, answer)
        pod = host.pod(name)
        wait_for(lambda: ":0035 " in pathlib.Path(f"/proc/{pod['pid']}/net/udp6").read_text(), what="it listens")
        return pod

    try:
        pod = make("a", "192.0.2.71")
        for address, prefix in ((HERE, ()), (HERE, outside), (HERE, inside(pod["pid"])), ("127.0.0.1", ())):
            assert ask(address, 5353, prefix) == "192.0.2.71", (address, prefix)
        with Client(HERE, 5353, outside) as far, Client(HERE, 5353) as near:
            assert far.ask() == near.ask() == "192.0.2.71"
            host.run("pod", "rm", "-f", "a")
            assert far.ask() == "silent"
            make("b", "192.0.2.72")
            assert far.learns("192.0.2.72") and near.learns("192.0.2.72")
    finally:
        pathlib.Path("/run/dns.py").unlink()


def test_one_address_of_ipv6(host, outside, serve):
    serve("web", "-p", f"[{HERE}]:8081-8082:80-81", "-p", "[::]::80", "-p", "0.0.0.0:8083:80")
    ports = host.pod("web")["ports"]
    assert [p["host_ip"] for p in ports] == [HERE, HERE, "::", "0.0.0.0"]
    assert call(HERE, 8081, outside).startswith("web") and call("127.0.0.1", 8081) == "ConnectionRefusedError"
    assert call(HERE, ports[2]["host_port"]).startswith("web")
    assert call("127.0.0.1", 8083).startswith("web") and call(HERE, 8083, outside) == "ConnectionRefusedError"
    before = host.snapshot()
    assert "not an address of this host" in host.fails(125, "pod", "create", "-p", "[2001:db8:78::1]:80:80", "x")
    nat = ("--publish-mode", "nat")
    assert "forwarder only" in host.fails(2, "pod", "create", *nat, "-p", "[::1]:8080:80", "x")
    assert "forwarder only" in host.fails(2, "port", "add", *nat, "web", "[::1]:8080:80")
    assert host.snapshot() == before


def test_a_free_port_is_the_same_in_both_families(host, serve):
    serve("web", "-p", ":80", "-p", ":80/udp")
    numbers = {}
    for port in host.pod("web")["ports"]:
        numbers.setdefault(port["protocol"], []).append(port["host_port"])
    assert all(len(both) == 2 and both[0] == both[1] for both in numbers.values()), numbers


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
@pytest.mark.parametrize("both", [True, False])
def test_a_port_of_another_program(host, kind, both):
    """In either family, by a socket of one or of both: nothing is made, and the message says whose it is."""
    protocol = "tcp" if kind == socket.SOCK_STREAM else "udp"
    before = host.snapshot()
    with socket.socket(socket.AF_INET6, kind) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not both))
        sock.bind(("::", 0))
        if protocol == "tcp":
            sock.listen()
        port = sock.getsockname()[1]
        message = host.fails(125, "pod", "create", "-p", f"{port}:80/{protocol}", "x")
        assert (
            f"{'0.0.0.0' if both else '[::]'}:{port}/{protocol} is taken" in message
            and f"process {os.getpid()}" in message
        )
        assert host.snapshot() == before
        if not both:
            host.run("pod", "create", "-p", f"0.0.0.0:{port}:80/{protocol}", "x")
    host.run("pod", "create", "-p", f"[::]:{port}:80/{protocol}", "y")
    with socket.socket(socket.AF_INET6, kind) as sock, pytest.raises(OSError):
        sock.bind(("::", port))
    assert "by pod 'y'" in host.fails(125, "pod", "create", "-p", f"[::]:{port}:81/{protocol}", "z")


def test_ports_come_and_go(host, outside, serve):
    before = host.snapshot()
    serve("web", "-p", "8080:80")
    added = host.run("port", "add", "web", "8081:80", f"[{HERE}]:8082:80", ":80").stdout.splitlines()
    free = int(added[-1].rpartition(":")[2])
    assert len(added) == 5 and added[-2] == f"80/tcp -> 0.0.0.0:{free}" and added[-1] == f"80/tcp -> [::]:{free}"
    for port in (8080, 8081, 8082, free):
        assert call(HERE, port, outside) == f"web {THERE}", port
    assert host.run("port", "rm", "web", "[::]:8080").stdout == "80/tcp -> [::]:8080\n"
    assert call(HERE, 8080, outside) == "ConnectionRefusedError" and call("127.0.0.1", 8080).startswith("web")
    assert host.run("port", "rm", "web", "8081").stdout.count("->") == 2
    assert call(HERE, 8081) == "ConnectionRefusedError" and call("127.0.0.1", 8081) == "ConnectionRefusedError"
    assert "not published" in host.fails(125, "port", "rm", "web", "[::]:8082")
    host.run("port", "rm", "web", f"[{HERE}]:8082:80", "8080", str(free))
    assert host.run("port", "web").stdout == ""
    host.run("port", "add", "web", "8080:80")
    assert call(HERE, 8080, outside) == f"web {THERE}"
    host.run("pod", "rm", "-f", "web")
    assert host.snapshot() == before


def test_an_owned_pod(host, alice, outside, serve):
    pod = serve("web", "-p", "8080:80", env={"SUDO_UID": str(alice.uid)})
    assert call(HERE, 8080, outside) == f"web {THERE}" and call(pod["network"]["ip6"], 80).startswith("web")
    host.run("port", "add", "web", "8081:80")
    assert call(HERE, 8081, outside) == f"web {THERE}"
    alice.run("pod", "rm", "-f", "web")
    wait_for(lambda: "nsrun-0a58" not in sh("nft", "list", "tables").stdout)
    assert call(HERE, 8080, outside) == "ConnectionRefusedError"


def test_a_pod_without_it(host, outside, serve):
    pod = serve("web", "-p", "8080:80", "--network", "bridge,ipv6=off")
    assert pod["network"]["ip6"] == "" and pod["network"]["ipv6"] == "off: --network bridge,ipv6=off"
    assert [p["host_ip"] for p in pod["ports"]] == ["0.0.0.0"]
    assert "ip6" not in sh("nft", "list", "tables").stdout
    assert "inet6" not in sh("ip", "-6", "address", "show", "dev", "nsrun0", "scope", "global").stdout
    assert "no IPv6 address" in host.fails(2, "port", "add", "web", "[::]:8081:80")
    two = serve("two", "-p", "[::]:8080:80")
    assert call(HERE, 8080, outside) == f"two {THERE}" and call("127.0.0.1", 8080).startswith("web")
    assert two["network"]["ip6"].endswith(":a58:3")


@pytest.mark.parametrize("where", ["all", "default"])
def test_a_host_with_disable_ipv6(host, settings, serve, where):
    """It is off, without a word but in inspect and doctor; asked for, it is refused."""
    settings(where, "disable_ipv6", "1")
    pod = serve("web", "-p", "8080:80")
    assert pod["network"]["ip6"] == "" and "disable_ipv6 of this host is set" in pod["network"]["ipv6"]
    assert call("127.0.0.1", 8080).startswith("web")
    assert "ip6" not in sh("nft", "list", "tables").stdout
    before = host.snapshot()
    assert "disable_ipv6" in host.fails(125, "pod", "create", "--network", "bridge,ipv6=on", "x")
    assert "disable_ipv6" in host.fails(2, "pod", "create", "-p", "[::]:80:80", "x")
    assert "disable_ipv6" in host.fails(125, "network", "create", "--subnet6", "fd00:5::/64", "back")
    assert host.snapshot() == before
    found = {f["what"]: f for f in json.loads(host.run("doctor", "--json", check=False).stdout)}
    assert found["IPv6"]["status"] == "limited" and "disable_ipv6" in found["IPv6"]["detail"]


def test_a_bridge_with_disable_ipv6(host, serve):
    """It is off for the pods of this bridge, and no other."""
    serve("web")
    sh("sysctl", "-qw", "net.ipv6.conf.nsrun0.disable_ipv6=1")
    host.run("network", "create", "--subnet6", "fd00:5::/64", "back")
    host.run("pod", "create", "--network", "back", "there")
    host.run("pod", "create", "here")
    assert host.pod("there")["network"]["ip6"].startswith("fd00:5::")
    assert "net.ipv6.conf.nsrun0.disable_ipv6" in host.pod("here")["network"]["ipv6"]


def test_a_pod_that_switches_it_off(host, serve):
    pod = serve("web", "-p", "8080:80", "--sysctl", "net.ipv6.conf.all.disable_ipv6=1")
    assert pod["network"]["ip6"] == "" and len(pod["ports"]) == 1


ADVERTISE = """
import socket, struct, sys
sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex("up1"))
prefix = struct.pack("!BBBBIII16s", 3, 4, 64, 0xC0, 3600, 3600, 0, socket.inet_pton(socket.AF_INET6, "2001:db8:aa::"))
sock.sendto(struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + prefix, ("ff02::1", 0))
"""


def test_a_host_that_learns_from_a_router_goes_on(host, outside, settings):
    """Forwarding alone would drop the route of a router, and the address with it sooner or later (accept_ra=2)."""
    settings("all", "forwarding", "0")
    settings("up0", "accept_ra", "1")
    settings("lo", "forwarding", "0")
    route = ("ip", "-6", "route", "show", "default")

    def advertised() -> bool:
        sh(*outside, sys.executable, "-IS", "-c", ADVERTISE)
        return "proto ra" in sh(*route).stdout

    for prefix, name in (((), "up0"), (outside, "up1")):  # their link-local addresses
        wait_for(
            lambda p=prefix, n=name: (
                "inet6 fe80" in sh(*p, "ip", "-6", "address", "show", "dev", n, "-tentative").stdout
            )
        )
    try:
        wait_for(advertised, what="this host learns a route")
        host.run("pod", "create", "web")
        assert conf("all", "forwarding") == "1" and conf("up0", "accept_ra") == "2"
        assert conf("default", "forwarding") == "0", "an interface that comes later learns as ever"
        assert "proto ra" in sh(*route).stdout, "the route was not dropped"
        found = {f["what"]: f for f in json.loads(host.run("doctor", "--json", check=False).stdout)}
        assert found["IPv6"]["status"] == "ok" and "accept_ra is 2 for up0" in found["IPv6"]["detail"]
        sh("ip", "-6", "route", "flush", "proto", "ra")
        wait_for(advertised, what="it is learnt anew while this host forwards")
        for name in ("all", "default", "eth0"):
            assert sh(*inside(host.pod("web")["pid"]), "cat", CONF / name / "accept_ra").stdout == "0\n"
    finally:
        sh("ip", "-6", "route", "flush", "proto", "ra", check=False)
        sh("ip", "-6", "address", "del", "2001:db8:aa::/64", "dev", "up0", check=False)
        for line in sh("ip", "-6", "-o", "address", "show", "dev", "up0").stdout.splitlines():
            if "2001:db8:aa:" in line:
                sh("ip", "-6", "address", "del", line.split()[3], "dev", "up0")


def test_what_does_not_learn_is_left_alone(host, settings):
    settings("all", "forwarding", "0")
    settings("up0", "accept_ra", "0")
    host.run("pod", "create", "web")
    assert conf("up0", "accept_ra") == "0" and conf("all", "forwarding") == "1"


def test_a_subnet_of_ones_own(host, serve):
    before = host.snapshot()
    sh("ip", "-6", "route", "add", "fd00:5::/64", "dev", "lo")
    try:
        assert "in use" in host.fails(125, "pod", "create", "--subnet6", "fd00:5::/64", "x")
        host.run("pod", "prune")
        wait_for(lambda: host.snapshot() == before)
    finally:
        sh("ip", "-6", "route", "del", "fd00:5::/64", "dev", "lo")
    pod = serve("web", "--subnet6", "fd00:1:2:3::/64")
    assert pod["network"]["ip6"] == "fd00:1:2:3::a58:2" and call("fd00:1:2:3::a58:2", 80) == "web fd00:1:2:3::a58:1"
    assert "pods are on it" in host.fails(125, "pod", "create", "--subnet6", "fd00:1:2:4::/64", "x")
    host.run("pod", "create", "two", env={"NSRUN_SUBNET6": "fd00:1:2:3::/64"})
    assert host.pod("two")["network"]["ip6"] == "fd00:1:2:3::a58:3"


def test_the_subnet_is_the_same_again(host):
    found = []
    for _ in range(2):
        host.run("pod", "create", "web")
        found.append(host.pod("web")["network"]["ip6"])
        host.run("pod", "rm", "-f", "web")
    assert found[0] == found[1]


def test_a_bridge_of_an_administrators(host, serve):
    """Its IPv6 network is used, and stays."""
    sh("ip", "link", "add", "nsrun0", "type", "bridge")
    try:
        sh("ip", "address", "add", "10.97.0.254/24", "dev", "nsrun0")
        sh("ip", "-6", "address", "add", "2001:db8:1:2::5/64", "dev", "nsrun0", "nodad")
        sh("ip", "link", "set", "nsrun0", "up")
        pod = serve("web")
        assert pod["network"]["ip6"] == "2001:db8:1:2::a61:2"
        assert call(pod["network"]["ip6"], 80) == "web 2001:db8:1:2::5"
        host.run("pod", "rm", "-f", "web")
        assert "2001:db8:1:2::5/64" in sh("ip", "-6", "address", "show", "dev", "nsrun0").stdout
    finally:
        sh("ip", "link", "del", "nsrun0")


def is_free(kind: int, port: int) -> bool:
    with socket.socket(socket.AF_INET6, kind) as sock:
        try:
            sock.bind(("::", port))
        except OSError:
            return False
    return True


def test_killed(host, outside, serve):
    """With pause go its tables of both families, its sockets and its address."""
    before = host.snapshot()
    pod = serve("web", "-p", "8080:80", "-p", "5353:53/udp")
    kill(pod["pid"])
    wait_for(lambda: "nsrun-0a58" not in sh("nft", "list", "tables").stdout)
    for kind, port in ((socket.SOCK_STREAM, 8080), (socket.SOCK_DGRAM, 5353)):
        wait_for(lambda kind=kind, port=port: is_free(kind, port), what="pause has closed its sockets")
    host.run("pod", "prune")
    wait_for(lambda: host.snapshot() == before)


@pytest.mark.slow
def test_killed_at_any_call(host):
    """Wherever `pod create` is killed, all is gone after a sweep, and what is forwarded is what is listed."""
    before, count, done = host.snapshot(), 150, None
    while done is None or done.returncode:
        killer = ["strace", "-qq", "-o", "/dev/null", "-e", "trace=all", "-e", f"inject=all:signal=KILL:when={count}"]
        done = subprocess.run(
            [*killer, NSRUN, "pod", "create", "-p", "8080:80", "web"],
            env=host.env,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode in (0, -9, 137), done
        host.run("pod", "rm", "-f", "web", check=False)
        host.run("pod", "prune")
        wait_for(lambda: host.snapshot() == before, what=f"nothing is left after call {count}")
        count += 53
        assert count < 20000


def test_nothing_of_neighbour_discovery(host, serve):
    """Pod and bridge know each other by configuration, and neither has a link-local address."""
    pod = serve("web")
    within = inside(pod["pid"])
    assert "fe80" not in sh(*within, "ip", "-6", "address", "show", "dev", "eth0").stdout
    assert "fe80" not in sh("ip", "-6", "address", "show", "dev", "nsrun0").stdout
    for line in (
        sh(*within, "ip", "-6", "neighbour").stdout.strip(),
        sh("ip", "-6", "neighbour", "show", "to", pod["network"]["ip6"], "dev", "nsrun0").stdout.strip(),
    ):
        assert line.endswith("PERMANENT") and "\n" not in line
    assert "nodad" in sh("ip", "-6", "address", "show", "dev", "nsrun0").stdout


@not_editable
def test_port_add_is_what_strace_shows(host, outside, tmp_path):
    host.run("pod", "create", "x")
    words = ["port", "add", "x", "20900:80", f"[{HERE}]:20901:53/udp"]
    expected = Expected(host, words)
    found, others, _ = traced(host, words, tmp_path)
    expected.check(found, others)


def test_the_shell_form_of_port_add(host, outside, serve, tmp_path):
    serve("web")
    (tmp_path / "add.sh").write_text(
        host.run("explain", "--format", "shell", "port", "add", "web", "8085:80", f"[{HERE}]:8086:80").stdout
    )
    sh("sh", tmp_path / "add.sh")
    for port in (8085, 8086):
        assert call(HERE, port, outside) == f"web {THERE}" and call(HERE, port) == f"web {HERE}"
    assert call("::1", 8085) == "ConnectionRefusedError"
    for family, name in re.findall(r"table (ip6?) (nsadd-\S+)", sh("nft", "list", "tables").stdout):
        sh("nft", "delete", "table", family, name)
