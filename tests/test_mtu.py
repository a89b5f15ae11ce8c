# SPDX-License-Identifier: Apache-2.0
"""The MTU of a pod is that of the way out of the host; and the checksums of what a pod gets."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys

import pytest
from conftest import sh

from nsrun.host import uplink

pytestmark = pytest.mark.live


def mtu_of(name: str, *prefix: object) -> int:
    found: int = json.loads(sh(*prefix, "ip", "-j", "link", "show", name).stdout)[0]["mtu"]
    return found


@contextlib.contextmanager
def uplink_of(host, mtu: int):
    """While the block runs, both ends of the uplink have this MTU."""
    other = ("nsenter", "-t", host.throwaway.neighbour.pid, "-n")

    def have(size: int) -> None:
        sh("ip", "link", "set", "up0", "mtu", size)
        sh(*other, "ip", "link", "set", "up1", "mtu", size)

    have(mtu)
    try:
        yield other
    finally:
        have(1500)
        sh("ip", "route", "flush", "cache")


#: Sends a datagram that may not be cut (IP_MTU_DISCOVER, IP_PMTUDISC_DO), and prints what it was, or the error.
DATAGRAM = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.IPPROTO_IP, 10, 2)
try:
    print(sock.sendto(bytes(int(sys.argv[2])), (sys.argv[1], 7009)))
except OSError as error:
    print(error.strerror)
"""
#: Prints the size of each datagram, and takes all of each TCP connection and prints how much that was.
SERVER = """
import select, socket
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.bind(("", 7009))
tcp = socket.create_server(("", 7010))
print("ready", flush=True)
while True:
    for one in select.select([udp, tcp], [], [])[0]:
        if one is udp:
            print("udp", len(udp.recv(65535)), flush=True)
        else:
            got, connection = 0, tcp.accept()[0]
            while data := connection.recv(65536):
                got += len(data)
            print("tcp", got, connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG), flush=True)
"""
CLIENT = "import socket, sys; sock = socket.create_connection((sys.argv[1], 7010)); sock.sendall(bytes(1 << 20)); print(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG))"  # fmt: skip


@contextlib.contextmanager
def server(*prefix: object):
    """A program that tells what came to it, in another network namespace."""
    process = subprocess.Popen([*map(str, prefix), sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process.stdout
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("mtu", [9000, 1500, 1400])
def test_what_the_way_out_takes_a_pod_sends(host, mtu):
    """To another host: datagrams of the whole size that may not be cut, none that is larger, and TCP by its segments."""
    with uplink_of(host, mtu) as other:
        assert uplink.interface() == "up0" and uplink.mtu() == mtu
        host.run("pod", "create", "-p", "7010:7010", "pause")
        pod = host.pod()
        inside = ("nsenter", "-t", pod["pid"], "-n")
        assert pod["network"]["mtu"] == mtu
        assert mtu_of("eth0", *inside) == mtu_of(pod["network"]["veth"]) == mtu_of("nsrun0") == mtu
        with server(*other) as told:
            out = sh(*inside, sys.executable, "-c", DATAGRAM, "192.0.2.9", mtu - 28).stdout
            assert out == f"{mtu - 28}\n" and told.readline() == f"udp {mtu - 28}\n"
            assert "too long" in sh(*inside, sys.executable, "-c", DATAGRAM, "192.0.2.9", mtu - 27).stdout
            segment = int(sh(*inside, sys.executable, "-c", CLIENT, "192.0.2.9", timeout=30).stdout)
            words = told.readline().split()
            assert words[:2] == ["tcp", str(1 << 20)] and mtu - 52 <= segment <= mtu - 40
        with server(*inside) as told:  # and in by a published port
            sh(*other, sys.executable, "-c", CLIENT, "192.0.2.1", timeout=30)
            assert told.readline().split()[:2] == ["tcp", str(1 << 20)]


def test_a_smaller_pod_on_a_jumbo_host(host):
    """--mtu is the pod's own: the kernel tells whoever sends it larger packets, and TCP goes on."""
    with uplink_of(host, 9000) as other:
        host.run("pod", "create", "--mtu", "1400", "-p", "7010:7010", "pause")
        host.run("pod", "create", "large")
        inside = ("nsenter", "-t", host.pod()["pid"], "-n")
        assert (
            mtu_of("eth0", *inside) == 1400 and mtu_of("eth0", "nsenter", "-t", host.pod("large")["pid"], "-n") == 9000
        )
        with server(*inside) as told:
            for client in (other, ("nsenter", "-t", host.pod("large")["pid"], "-n")):
                sh(*client, sys.executable, "-c", CLIENT, "192.0.2.1", timeout=30)
                assert told.readline().split()[:2] == ["tcp", str(1 << 20)]
        with server(*other) as told:
            sh(*inside, sys.executable, "-c", CLIENT, "192.0.2.9", timeout=30)
            assert told.readline().split()[:2] == ["tcp", str(1 << 20)]


def test_whose_mtu_it_is(host):
    """The pod's own, or the network's, or that of the way out; less than IPv6 needs is a pod without."""
    host.run("network", "create", "--mtu", "1300", "small")
    host.run("network", "create", "usual")
    with uplink_of(host, 9000):
        for name, options in (("a", ["--network", "small"]), ("b", ["--network", "small", "--mtu", "1290"]), ("c", ["--network", "usual"]), ("d", ["--mtu", "1200"])):  # fmt: skip
            host.run("pod", "create", *options, name)
    found = {name: host.pod(name)["network"] for name in "abcd"}
    assert {name: network["mtu"] for name, network in found.items()} == {"a": 1300, "b": 1290, "c": 9000, "d": 1200}
    assert all(mtu_of("eth0", "nsenter", "-t", host.pod(name)["pid"], "-n") == found[name]["mtu"] for name in "abcd")
    assert "1200" in found["d"]["ipv6"] and found["d"]["ip6"] == "" and found["b"]["ip6"]
    assert "1200" in host.fails(125, "pod", "create", "--mtu", "1200", "--network", "bridge,ipv6=on", "x")
    assert "needs" in host.fails(2, "pod", "create", "--mtu", "1400", "--network", "none", "x")


def test_which_way_out(host):
    """That of the default route of the least metric; of IPv6, where IPv4 has none; or the usual 1500."""
    try:
        sh("ip", "link", "add", "way1", "mtu", "1450", "type", "veth", "peer", "name", "way2")
        sh("ip", "link", "set", "way2", "up")
        sh("ip", "link", "set", "way1", "up")
        sh("ip", "route", "add", "default", "dev", "way1", "metric", "5")
        assert (uplink.interface(), uplink.mtu()) == ("up0", 1500)  # 0 is less
        sh("ip", "route", "del", "default", "dev", "up0")
        assert (uplink.interface(), uplink.mtu()) == ("way1", 1450)
        sh("ip", "route", "del", "default", "dev", "way1")
        sh("ip", "route", "add", "unreachable", "default", "metric", "1")
        assert (uplink.interface(), uplink.mtu()) == ("", 1500)
        sh("ip", "-6", "route", "add", "default", "dev", "way1")
        assert (uplink.interface(), uplink.mtu()) == ("way1", 1450)
    finally:
        sh("ip", "route", "del", "unreachable", "default", check=False)
        sh("ip", "link", "del", "way1", check=False)
        sh("ip", "route", "replace", "default", "via", "192.0.2.9")


# ---- checksums ----------------------------------------------------------------------------------------------------

#: Reads UDP packets for port 7011 from eth0, and prints whether the checksum is valid, and whether the kernel says that it is
#: still to be made: packet(7), PACKET_AUXDATA, TP_STATUS_CSUMNOTREADY.
RAW = """
import socket, struct
raw = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800)); raw.bind(("eth0", 0x0800))
raw.setsockopt(263, 8, 1)
print("ready", flush=True)
while True:
    data, more, _, _ = raw.recvmsg(65535, 4096)
    start = (data[0] & 15) * 4
    if data[9] != 17 or data[start + 2:start + 4] != struct.pack("!H", 7011):
        continue
    udp = data[start:struct.unpack_from("!H", data, 2)[0]]
    words = data[12:20] + struct.pack("!HH", 17, len(udp)) + udp + bytes(len(udp) % 2)
    total = sum(struct.unpack(f"!{len(words) // 2}H", words))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    status = struct.unpack_from("=I", more[0][2])[0]
    print("valid" if total == 0xffff else "invalid", "to be made" if status & 8 else "made", flush=True)
"""
SEND = "import socket, sys; sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); sock.sendto(bytes(range(101)), (sys.argv[1], 7011))"


def offload(interface: str, on: bool, *prefix: object) -> None:
    """Let an interface make checksums, or have the kernel make them before: ethtool -K INTERFACE tx on|off."""
    program = """
import fcntl, socket, struct, sys, ctypes
value = ctypes.create_string_buffer(struct.pack("=II", 0x17, int(sys.argv[2])))   # ETHTOOL_STXCSUM
request = struct.pack("16sQ16x", sys.argv[1].encode(), ctypes.addressof(value))
fcntl.ioctl(socket.socket(), 0x8946, request)   # SIOCETHTOOL
"""
    sh(*prefix, sys.executable, "-c", program, interface, int(on))


@contextlib.contextmanager
def raw_reader(pid: int):
    """Somebody in a pod who reads packets themselves, as a DHCP client or tcpdump does."""
    words = ["nsenter", "-t", str(pid), "-n", sys.executable, "-c", RAW]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process.stdout
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_the_checksum_of_what_is_forwarded(host):
    """What came over a wire has a valid checksum after DNAT, too.  Between veths none is made, and the kernel says so to whoever
    reads packets; where it is to make them nevertheless, before the pod's veth, they are valid."""
    other = ("nsenter", "-t", host.throwaway.neighbour.pid, "-n")
    host.run("pod", "create", "-p", "7011:7011/udp", "pause")
    host.run("network", "create", "back")
    host.run("pod", "create", "--network", "back", "more")
    pod, more = host.pod(), host.pod("more")
    veth = pod["network"]["veth"]
    from_pod = ("nsenter", "-t", more["pid"], "-n")
    with raw_reader(pod["pid"]) as told:
        offload("up1", False, *other)
        sh(*other, sys.executable, "-c", SEND, "192.0.2.1")
        assert told.readline() == "valid made\n"
        offload("up1", True, *other)
        for sender in (other, from_pod, ()):
            sh(*sender, sys.executable, "-c", SEND, "192.0.2.1")
            assert told.readline() == "invalid to be made\n"
        offload(veth, False)
        for sender in (other, from_pod, ()):
            sh(*sender, sys.executable, "-c", SEND, "192.0.2.1")
            assert told.readline() == "valid made\n"


def test_a_socket_takes_what_is_forwarded(host):
    """Whoever reads from a socket gets every datagram, with the sender's checksum made or not; one that was damaged on the way is not delivered."""
    other = ("nsenter", "-t", host.throwaway.neighbour.pid, "-n")
    host.run("pod", "create", "-p", "7009:7009/udp", "pause")
    forged = """
import socket, struct, sys
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
raw.sendto(struct.pack("!HHHH", 9, 7009, 8 + 50, 0xdead) + bytes(50), ("192.0.2.1", 0))
"""
    with server("nsenter", "-t", host.pod()["pid"], "-n") as told:
        for on in (False, True):
            offload("up1", on, *other)
            sh(*other, sys.executable, "-c", forged)
            sh(*other, sys.executable, "-c", DATAGRAM, "192.0.2.1", 60 + on)
            assert told.readline() == f"udp {60 + on}\n"
