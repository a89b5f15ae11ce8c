# SPDX-License-Identifier: Apache-2.0
"""Addresses, published ports, four ways to reach them; what stays closed."""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import pytest
from conftest import NSRUN, kill, settled, sh, tables, wait_for


@pytest.fixture
def web(host, busybox):
    """A pod that answers on port 8080 of the host with its name."""

    def make(name="pause", *options):
        host.run("pod", "create", *options, name)
        host.run(
            "join {} -d --name {} --rootfs {} sh -c {}",
            name,
            f"{name}-web",
            busybox,
            f"mkdir -p /w; echo {name} >/w/index.html; exec httpd -f -p 80 -h /w",
        )
        pid = host.pod(name)["pid"]
        wait_for(
            lambda: (
                ":0050 "
                in pathlib.Path(f"/proc/{pid}/net/tcp").read_text() + pathlib.Path(f"/proc/{pid}/net/tcp6").read_text()
            ),
            what="httpd listens",
        )
        return host.pod(name)

    return make


def get(address: str, port: int, prefix=()) -> str:
    done = sh(*prefix, "curl", "-sS", "-m", "3", f"http://{address}:{port}/", check=False)
    return done.stdout.strip() if done.returncode == 0 else f"curl {done.returncode}"


def test_a_published_port_answers_from_everywhere(host, web):
    """docker/docs#17312: from 127.0.0.1, from the host's address, from another host, from the pod itself."""
    info = web("pause", "-p", "8080:80")
    neighbour = ["nsenter", "-t", host.throwaway.neighbour.pid, "-n"]
    inside = ["nsenter", "-t", info["pid"], "-n"]
    assert get("127.0.0.1", 8080) == "pause"
    assert get("192.0.2.1", 8080) == "pause"
    assert get("192.0.2.1", 8080, neighbour) == "pause"
    assert get("192.0.2.1", 8080, inside) == "pause"
    assert get(info["network"]["gateway"], 8080, inside) == "pause"
    assert get(info["network"]["ip"], 80) == "pause"


def test_two_pods_reach_each_other(host, web):
    one, two = web("one", "-p", "8081:80"), web("two", "-p", "8082:80")
    inside = ["nsenter", "-t", one["pid"], "-n"]
    assert get(two["network"]["ip"], 80, inside) == "two"
    assert get("192.0.2.1", 8082, inside) == "two"
    assert get("127.0.0.1", 8081) == "one" and get("127.0.0.1", 8082) == "two"


def test_out_of_the_pod(host, busybox):
    """Masqueraded: the neighbour, which knows nothing of 10.88.0.0/24, sees the host."""
    host.run("pod", "create")
    out = host.run("join", "pause", "--rootfs", busybox, "ping", "-c", "1", "-W", "2", "192.0.2.9")
    assert "1 packets received" in out.stdout


def test_bound_to_one_address(host, web):
    web("pause", "-p", "127.0.0.1:8080:80")
    assert get("127.0.0.1", 8080) == "pause"
    assert get("192.0.2.1", 8080).startswith("curl")
    assert get("192.0.2.1", 8080, ["nsenter", "-t", host.throwaway.neighbour.pid, "-n"]).startswith("curl")


def test_ranges_and_random_ports(host, web):
    info = web("pause", "-p", "8000-8002:80-82", "-p", ":80")
    assert [(p["host_port"], p["pod_port"]) for p in info["ports"][:3]] == [(8000, 80), (8001, 81), (8002, 82)]
    free = info["ports"][-1]["host_port"]
    assert free > 1023 and info["ports"][6] == {**info["ports"][7], "host_ip": "0.0.0.0"}
    assert get("127.0.0.1", 8000) == "pause" and get("127.0.0.1", free) == "pause"


def test_a_thousand_ports(host, web):
    """By one map, and as one line where they are shown; an error does not list them."""
    done = host.run("pod", "create", "-p", "20000-20999:20000-20999", "many")
    assert done.stderr == "".join(f"published {ip}:20000-20999 → 20000-20999/tcp\n" for ip in ("0.0.0.0", "[::]"))
    assert len(host.pod("many")["ports"]) == 2000 and "20000-20999->20000-20999" in host.run("pod", "ls").stdout
    table = sh("nft", "list", "ruleset").stdout
    assert len(re.findall(r"\d+ : [\d.]+ \. \d+", table)) == 1000 and table.count("dnat ip ") == 2
    assert len(re.findall(r"\d+ : [\da-f:]+ \. \d+", table)) == 1000 and table.count("dnat ip6 ") == 2
    message = host.fails(125, "pod", "create", "-p", "30000-30999:30000-30999", "-p", "127.0.0.1:20500:80", "other")
    assert len(message) < 300 and "by pod 'many'" in message
    web("pause", "-p", "31000-31999:80-1079", "-p", "127.0.0.1:32000-32099:80-179")
    assert get("127.0.0.1", 31000) == "pause" and get("127.0.0.1", 32000) == "pause"
    assert get("192.0.2.1", 31000) == "pause" and get("192.0.2.1", 32000).startswith("curl")


def test_ports_that_look_like_the_samples_of_a_template(host, web):
    """0xb1b2 and 0xc1c2 stand for ports in the messages that are kept; as real ports they are themselves."""
    web("pause", "-p", f"{0xC1C2}:80", "-p", f"{0xB1B2}:80", "-p", f"127.0.0.1:{0xC1C3}:80")
    for port in (0xC1C2, 0xB1B2, 0xC1C3):
        assert get("127.0.0.1", port) == "pause"
    assert get("127.0.0.1", 80).startswith("curl")


def test_who_has_a_port(host, alice, box):
    host.run("pod", "create", "-p", "8080:80", "mine")
    assert "by pod 'mine'" in host.fails(125, "pod", "create", "-p", "127.0.0.1:8080:80", "other")
    with socket.create_server(("127.0.0.1", 8088)):
        message = host.fails(125, "pod", "create", "-p", "8088:80", "other")
        assert f"process {os.getpid()}" in message
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 8089))
        assert "does not listen" in host.fails(125, "pod", "create", "-p", "8089:80", "other")
    assert "sudo" in alice.fails(125, "pod", "create", "-p", "8080:80", "hers")


def test_a_free_port_is_told(host):
    for word in ("127.0.0.1::80", ":80"):
        name = host.run("pod", "create", "-p", word, "free")
        port = host.pod("free")["ports"][0]["host_port"]
        assert f":{port} → 80/tcp" in name.stderr
        host.run("pod", "rm", "-f", "free")
    assert host.run("pod", "create", "-p", "127.0.0.1:8080:80", "known").stderr == ""


def test_a_port_is_held(host, web):
    """moby#13024: the kernel itself refuses the port to anybody else, and gives it back when pause is killed."""
    info = web("pause", "-p", "8080:80")
    with socket.socket() as sock, pytest.raises(OSError):
        sock.bind(("0.0.0.0", 8080))
    before = host.snapshot()
    message = host.fails(125, "pod", "create", "-p", "8080:80", "other")
    assert "8080" in message and "taken" in message
    assert host.snapshot() == before
    kill(info["pid"])

    def free():
        with socket.socket() as sock:
            try:
                sock.bind(("0.0.0.0", 8080))
            except OSError:
                return False
            return True

    wait_for(free, what="the port is free")


def test_a_port_of_another_program(host):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        before = host.snapshot()
        assert "taken" in host.fails(125, "pod", "create", "-p", f"{port}:80")
        assert host.snapshot() == before


def test_the_table_has_an_owner(host, web):
    """Nobody can delete it while pause lives; the kernel does when pause is killed."""
    info = web("pause", "-p", "8080:80")
    (four, name), (six, other) = [table for table in tables() if table[1] != "nsrun-all-pods"]
    assert (four, six) == ("ip", "ip6") and name == other
    for family in ("ip", "ip6"):
        done = sh("nft", "delete", "table", family, name, check=False)
        assert done.returncode != 0 and "not permitted" in done.stderr
    kill(info["pid"])
    wait_for(lambda: name not in sh("nft", "list", "tables").stdout)
    host.run("pod", "ls")
    settled()
    assert "nsr" not in sh("ip", "-br", "link").stdout


def test_the_address_of_a_killed_pod_is_anothers_before_it_is_swept(host, web):
    """The kernel gave it back with the interface; the sweep takes no interface away that is not the dead pod's."""
    first = web("a", "-p", "8080:80")
    kill(first["pid"])
    wait_for(lambda: first["network"]["veth"] not in sh("ip", "-br", "link").stdout)
    second = web("b", "-p", "8080:80")
    assert second["network"]["veth"] == first["network"]["veth"]
    assert get("127.0.0.1", 8080) == "b"
    assert [pod["name"] for pod in host.json("pod", "ls")] == ["b"]


def test_route_localnet_is_no_way_in(host, web):
    """CVE-2020-8558: neither a neighbour nor a pod reaches the host's 127.0.0.1 through the bridge."""
    info = web("pause", "-p", "8080:80")
    assert pathlib.Path("/proc/sys/net/ipv4/conf/nsrun0/route_localnet").read_text().strip() == "1"
    assert pathlib.Path("/proc/sys/net/ipv4/conf/all/route_localnet").read_text().strip() == "0"
    secret = socket.create_server(("127.0.0.1", 8099))
    secret.setblocking(False)
    inside = ["nsenter", "-t", info["pid"], "-n"]
    sh(*inside, "ip", "link", "set", "lo", "down")
    sh(*inside, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/conf/eth0/route_localnet")
    sh(*inside, "ip", "route", "add", "127.0.0.0/8", "via", info["network"]["gateway"], check=False)
    sh(
        *inside,
        "sh",
        "-c",
        "ip route del local 127.0.0.0/8 table local; ip route del local 127.0.0.1 table local",
        check=False,
    )
    assert get("127.0.0.1", 8099, inside).startswith("curl")
    neighbour = ["nsenter", "-t", host.throwaway.neighbour.pid, "-n"]
    sh(*neighbour, "ip", "route", "add", "10.88.0.0/16", "via", "192.0.2.1", check=False)
    assert get(info["network"]["ip"], 80, neighbour).startswith("curl"), "only published ports are let in"
    with secret, pytest.raises(BlockingIOError):
        secret.accept()


def test_own_address_and_bad_ones(host):
    host.run("pod", "create", "--ip", "10.88.0.77", "a")
    assert host.pod("a")["network"]["ip"] == "10.88.0.77" and host.pod("a")["network"]["veth"] == "nsr0a58004d"
    assert "taken" in host.fails(125, "pod", "create", "--ip", "10.88.0.77", "b")
    for bad in ("10.88.1.1", "10.88.0.0", "10.88.0.255", "10.88.0.1", "192.0.2.5"):
        assert "not a free address" in host.fails(125, "pod", "create", "--ip", bad, "b")
    assert "IPv4" in host.fails(125, "pod", "create", "--ip", "10.88.0", "b")
    assert "not an address of this host" in host.fails(125, "pod", "create", "-p", "203.0.113.1:80:80", "b")
    assert [p["name"] for p in host.json("pod", "ls")] == ["a"]


@pytest.mark.parametrize("stays", [True, False], ids=["held", "going"])
def test_the_address_of_a_pod_that_was_killed(host, stays):
    """Its veth is there as long as something has its network namespace, or a moment longer; the lease is free at once."""
    host.run("pod", "create", "--ip", "10.88.0.77", "a")
    seconds = "1000" if stays else "1"
    with subprocess.Popen(["nsenter", "-t", str(host.pod("a")["pid"]), "-n", "sleep", seconds]) as keeper:
        wait_for(lambda: "sleep" in pathlib.Path(f"/proc/{keeper.pid}/comm").read_text())
        kill(host.pod("a")["pid"])
        wait_for(lambda: "nsrun-0a58004d" not in sh("nft", "list", "tables").stdout, what="the lease is free")
        if stays:
            assert "of a pod that has ended" in host.fails(125, "pod", "create", "--ip", "10.88.0.77", "b")
        else:
            host.run("pod", "create", "--ip", "10.88.0.77", "b")
            assert host.pod("b")["network"]["ip"] == "10.88.0.77"
        keeper.kill()


def test_a_subnet_that_is_in_use_is_never_taken(host):
    sh("ip", "link", "add", "dummyx", "type", "bridge")
    try:
        sh("ip", "address", "add", "10.88.0.9/16", "dev", "dummyx")
        sh("ip", "link", "set", "dummyx", "up")
        assert "in use" in host.fails(125, "pod", "create", "--subnet", "10.88.5.0/24", "b")
        host.run("pod", "create", "a")
        assert host.pod("a")["network"]["ip"].startswith("172.28.0.")
        assert "pods are on it" in host.fails(125, "pod", "create", "--subnet", "10.99.0.0/24", "b")
    finally:
        sh("ip", "link", "del", "dummyx")


def test_a_subnet_of_ones_own(host):
    host.run("pod", "create", "--subnet", "10.99.3.0/24", "a")
    assert host.pod("a")["network"]["ip"] == "10.99.3.2" and host.pod("a")["network"]["gateway"] == "10.99.3.1"


def test_two_roots_do_not_see_each_other(host):
    host.run("pod", "create", "a")
    other = host.root / "other"
    host.run("--root", other, "pod", "create", "a")
    try:
        pods = json.loads(host.run("--root", other, "pod", "ls", "--json").stdout) + host.json("pod", "ls")
        assert len({p["id"] for p in pods}) == 2 and len({p["network"]["ip"] for p in pods}) == 2
    finally:
        host.run("--root", other, "pod", "rm", "-f", "a")


PING = """
import os, socket, sys
os.setgid(1000); os.setuid(1000)
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
sock.settimeout(5)
sock.sendto(b"\\x08" + bytes(7) + b"hello", ("127.0.0.1", 0))
print(sock.recv(100)[8:].decode())
"""


def test_who_may_ping(host):
    """Everybody in the pod, without a capability, unless --sysctl says otherwise.  icmp(7), ping_group_range"""
    for options, may in (((), True), (("net.ipv4.ping_group_range=1001 2000",), False)):
        host.run("pod", "create", "--network", "none", *(f"--sysctl={option}" for option in options), "p")
        done = host.run("join", "p", "--rm", "--", sys.executable, "-IS", "-c", PING, check=False)
        assert done.stdout == ("hello\n" if may else "") and ("PermissionError" in done.stderr) == (not may), done
        host.run("pod", "rm", "-f", "p")


def test_what_cannot_be_told_is_not_taken_for_good(host):
    """Without CAP_NET_ADMIN no table is seen: doctor says so instead of "no other table"."""
    words = ["setpriv", "--inh-caps=-net_admin", "--bounding-set=-net_admin", NSRUN, "doctor", "--json"]
    found = {f["what"]: f for f in json.loads(sh(*words, env=host.env, check=False).stdout)}
    assert found["forwarding"]["status"] == "limited" and "can't find out" in found["forwarding"]["detail"]


def test_the_common_table_comes_back_and_goes_with_the_bridge(host):
    """Flushed by an administrator, it is made again by the next pod; with the last pod it goes."""
    host.run("pod", "create", "a")
    assert "nsrun-all-pods" in sh("nft", "list", "tables").stdout
    sh("nft", "flush", "ruleset")
    assert "nsrun-all-pods" not in sh("nft", "list", "tables").stdout
    host.run("pod", "create", "b")
    assert sh("nft", "list", "table", "ip", "nsrun-all-pods").stdout.count("drop") == 4
    assert sh("nft", "list", "table", "ip6", "nsrun-all-pods").stdout.count("drop") == 1
    host.run("pod", "rm", "-f", "a", "b")
    settled()
    assert "nsrun" not in sh("nft", "list", "tables").stdout + sh("ip", "-br", "link").stdout


#: Fills the table of tracked connections with such as have been answered, since the kernel drops others for new ones; or empties it.
FILL = r"""
import socket, struct, sys
def attribute(kind, data, nested=0):
    return struct.pack("=HH", 4 + len(data), kind | nested << 15) + data + bytes(-len(data) % 4)
def flow(kind, one, other, port, other_port):
    ports = attribute(1, b"\x11") + attribute(2, struct.pack(">H", port)) + attribute(3, struct.pack(">H", other_port))
    return attribute(kind, attribute(1, attribute(1, one) + attribute(2, other), 1) + attribute(2, ports, 1), 1)
sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)  # NETLINK_NETFILTER
sock.bind((0, 0))
if sys.argv[1] == "0":
    sock.send(struct.pack("=LHHLLBBH", 20, 0x102, 5, 1, 0, 0, 0, 0))  # IPCTNL_MSG_CT_DELETE, of all
    sock.recv(65536)
    sys.exit()
batch, client = b"", socket.inet_aton("203.0.113.7")
for number in range(int(sys.argv[1])):
    server = socket.inet_aton(f"198.51.100.{number >> 16}")
    port = number & 0xffff
    body = struct.pack("=BBH", socket.AF_INET, 0, 0) + flow(1, client, server, port, 53) + flow(2, server, client, 53, port)
    body += attribute(3, struct.pack(">I", 14)) + attribute(7, struct.pack(">I", 600))  # CTA_STATUS: answered, assured; CTA_TIMEOUT
    batch += struct.pack("=LHHLL", 16 + len(body), 0x100, 0x601, number, 0) + body  # IPCTNL_MSG_CT_NEW
    if len(batch) > 60000:
        sock.send(batch)
        batch = b""
sock.send(batch)
"""


@pytest.mark.slow
def test_a_full_table_of_connections(host, web):
    """What is there goes on, nothing new comes in by nat or by the forwarder; pods and ports come and go, and doctor names it."""
    most = int(pathlib.Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text())
    if most > 1 << 19:
        pytest.skip(
            f"{most} connections are too many for a test; to enable: sysctl net.netfilter.nf_conntrack_max=262144"
        )

    def doctor() -> dict[str, str]:
        found = json.loads(host.run("doctor", "--json", check=False).stdout)
        return next(finding for finding in found if finding["what"] == "connections")

    info = web("pause", "-p", "8080:80")
    host.run("port", "add", "--publish-mode", "forward", "pause", "0.0.0.0:8081:80")
    assert get("127.0.0.1", 8080) == get("127.0.0.1", 8081) == "pause" and doctor()["status"] == "ok"
    fill = [sys.executable, "-IS", "-c", FILL]
    sh(*fill, 0, cwd="/")  # the kernel would take entries of connections that have ended for new ones, as it needs
    with socket.create_connection(("127.0.0.1", 8080), 5) as early:
        sh(*fill, most + 1000, cwd="/", timeout=120)
        try:
            assert get("127.0.0.1", 8080) == get("192.0.2.1", 8081) == get(info["network"]["ip"], 80) == "curl 28"
            early.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert b" 200 " in early.recv(100)
            host.run("pod", "create", "-p", "8082:80", "-p", "8082:80/udp", "other")
            host.run("port", "add", "other", "8083:80/udp")
            host.run("port", "rm", "other", "8083/udp")
            host.run("pod", "rm", "-f", "other")
            found = doctor()
            assert found["status"] == "limited" and f"of {most} connections" in found["detail"]
            assert "nf_conntrack_max" in found["fix"]
        finally:
            sh(*fill, 0, cwd="/")
    assert get("127.0.0.1", 8080) == get("127.0.0.1", 8081) == "pause" and doctor()["status"] == "ok"
