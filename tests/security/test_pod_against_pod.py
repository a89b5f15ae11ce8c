# SPDX-License-Identifier: Apache-2.0
"""Attacks from one pod on its neighbours and on the host's network, by processes with exactly the attacker's power.

`member`: a process with Docker's default capabilities (NET_RAW among them) in a pod of root's.  `owner`: an ordinary
user who enters an owned pod's namespaces and has every capability there.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import struct
import subprocess
import sys
import time

import pytest
from conftest import CACHE, NSRUN, kill, settled, sh, wait_for

pytestmark = pytest.mark.live

FRAME_C = r"""
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static long now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000 + t.tv_nsec / 1000000; }
int main(int argc, char **argv)
{
	/* send IFACE HEX… | spray IFACE MILLISECONDS HEX… | listen IFACE MILLISECONDS */
	int fd = socket(AF_PACKET, SOCK_RAW, htons(3));
	struct sockaddr_ll at = {.sll_family = AF_PACKET, .sll_protocol = htons(3), .sll_ifindex = if_nametoindex(argv[2])};
	if (fd < 0 || bind(fd, (void *)&at, sizeof at)) { perror("packet socket"); return 1; }
	unsigned char frame[2048];
	int spray = !strcmp(argv[1], "spray"), failed = 0;
	long end = now() + (strcmp(argv[1], "send") ? atol(argv[3]) : 0);
	if (!strcmp(argv[1], "listen")) {
		struct timeval wait = {0, 50000};
		setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
		struct packet_mreq all = {.mr_ifindex = at.sll_ifindex, .mr_type = PACKET_MR_PROMISC};
		setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &all, sizeof all);
		puts("ready");
		fflush(stdout);
		while (now() < end) {
			socklen_t size = sizeof at;
			long got = recvfrom(fd, frame, sizeof frame, 0, (void *)&at, &size);
			if (got <= 0 || at.sll_pkttype == PACKET_OUTGOING) continue;
			for (long i = 0; i < got; i++) printf("%02x", frame[i]);
			puts("");
			fflush(stdout);
		}
		return 0;
	}
	do {
		for (int i = 3 + spray; i < argc; i++) {
			int size = strlen(argv[i]) / 2;
			for (int n = 0; n < size; n++) sscanf(argv[i] + 2 * n, "%2hhx", frame + n);
			failed |= send(fd, frame, size, 0) != size;
		}
		usleep(3000);
	} while (now() < end);
	if (failed) perror("send");
	return failed;
}
"""


@pytest.fixture(scope="session")
def frame_program(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("frame")
    (path / "frame.c").write_text(FRAME_C)
    sh("cc", "-static", "-O1", "-o", path / "frame", path / "frame.c")
    return path / "frame"


# ---- frames -----------------------------------------------------------------------------------------------------

BUSYBOX = CACHE / "busybox/bin/busybox"  # its ping
BROADCAST = b"\xff" * 6


def mac_in(pid: object) -> bytes:
    links = json.loads(sh("nsenter", "-t", pid, "-n", "ip", "-j", "link", "show", "dev", "eth0").stdout)
    return bytes.fromhex(links[0]["address"].replace(":", ""))


def bridge_mac() -> bytes:
    return bytes.fromhex(json.loads(sh("ip", "-j", "link", "show", "nsrun0").stdout)[0]["address"].replace(":", ""))


def arp(
    dst: bytes, src: bytes, sender_mac: bytes, sender_ip: str, target_ip: str, op: int = 2, tail: bytes = b""
) -> bytes:
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, op) + sender_mac + socket.inet_aton(sender_ip)
    return dst + src + b"\x08\x06" + body + bytes(6) + socket.inet_aton(target_ip) + tail


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF


def ipv4(src: str, dst: str, payload: bytes, protocol: int = 17, options: bytes = b"") -> bytes:
    size = 20 + len(options)
    head = struct.pack("!BBHHHBBH4s4s", 0x40 | size // 4, 0, size + len(payload), 7, 0, 64, protocol, 0, socket.inet_aton(src), socket.inet_aton(dst)) + options  # fmt: skip
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def udp(source_port: int, port: int, data: bytes) -> bytes:
    return struct.pack("!HHHH", source_port, port, 8 + len(data), 0) + data


def ipv6(protocol: int, payload: bytes, src: str = "fe80::4e:1", dst: str = "ff02::1") -> bytes:
    pseudo = socket.inet_pton(socket.AF_INET6, src) + socket.inet_pton(socket.AF_INET6, dst)
    if protocol == 58:
        payload += bytes(len(payload) % 2)
        total = checksum(pseudo + struct.pack("!II", len(payload), 58) + payload)
        payload = payload[:2] + struct.pack("!H", total) + payload[4:]
    return struct.pack("!IHBB", 0x60000000, len(payload), protocol, 255) + pseudo + payload


# ---- who attacks ------------------------------------------------------------------------------------------------


class Attacker:
    """A pod "evil" and somebody in it."""

    def __init__(self, host, alice, program: pathlib.Path, rootfs: pathlib.Path, who: str) -> None:
        self.host, self.alice, self.who, self.program = host, alice, who, program
        if who == "owner":
            host.run("pod", "create", "-p", "20901:80", "evil", env={"SUDO_UID": str(alice.uid)})
            self.program = alice.home / "frame"
            sh("install", "-o", alice.uid, "-m", "755", program, self.program)
        else:
            host.run("pod", "create", "-p", "20901:80", "evil")
            sh("cp", program, rootfs / "frame")
            host.run("join", "evil", "-d", "--name", "evil-m", "--rootfs", rootfs, "--", "sleep", "1000")
        info = host.pod("evil")
        self.pid, self.ip, self.veth = info["pid"], info["network"]["ip"], info["network"]["veth"]
        self.ip6 = info["network"]["ip6"]
        self.mac = mac_in(self.pid)

    def words(self, *command: object) -> list[str]:
        """A command line that runs `frame …` (or, for the owner, anything) with the attacker's power."""
        if self.who == "owner":
            first = self.program if command[0] == "frame" else command[0]
            return self.alice.words("nsenter", "-t", self.pid, "-U", "-n", first, *command[1:])
        assert command[0] == "frame"
        return [NSRUN, "exec", "evil-m", "/frame", *map(str, command[1:])]

    def run(self, *command: object, check: bool = True) -> str:
        return sh(*self.words(*command), env=self.host.env, cwd="/", check=check).stdout

    def send(self, *frames: bytes) -> None:
        self.run("frame", "send", "eth0", *(frame.hex() for frame in frames))

    @contextlib.contextmanager
    def spraying(self, *frames: bytes):
        """While the block runs, these frames are sent all the time."""
        words = self.words("frame", "spray", "eth0", 20000, *(frame.hex() for frame in frames))
        process = subprocess.Popen(words, env=self.host.env, cwd="/", stdout=subprocess.DEVNULL)
        try:
            time.sleep(0.5)
            assert process.poll() is None
            yield
        finally:
            process.kill()
            process.wait()


@pytest.fixture(params=["member", "owner"])
def evil(request, host, alice, frame_program, rootfs):
    return Attacker(host, alice, frame_program, rootfs, request.param)


@pytest.fixture
def member(host, alice, frame_program, rootfs):
    return Attacker(host, alice, frame_program, rootfs, "member")


@pytest.fixture
def owner(host, alice, frame_program, rootfs):
    return Attacker(host, alice, frame_program, rootfs, "owner")


class Neighbour:
    """A pod of root's that serves its name on port 80."""

    def __init__(self, host, busybox: str, name: str, *options: str) -> None:
        self.name = name
        host.run("pod", "create", *options, name)
        serve = f"mkdir -p /w; echo {name} >/w/index.html; exec httpd -f -p 80 -h /w"
        host.run("join", name, "-d", "--name", f"{name}-web", "--rootfs", busybox, "--", "sh", "-c", serve)
        info = host.pod(name)
        self.pid, self.ip, self.gateway = info["pid"], info["network"]["ip"], info["network"]["gateway"]
        self.ip6 = info["network"]["ip6"]
        self.net = ["nsenter", "-t", str(self.pid), "-n"]
        wait_for(lambda: get(self.ip, 80, *self.net) == name)
        self.mac = mac_in(self.pid)


@pytest.fixture
def victim(host, busybox):
    return Neighbour(host, busybox, "victim", "-p", "20900:80")


def get(address: str, port: int, *prefix: str) -> str:
    done = sh(*prefix, "curl", "-sS", "-m", "2", f"http://{address}:{port}/", check=False)
    return done.stdout.strip() if done.returncode == 0 else f"curl {done.returncode}"


class Listener:
    """Records the frames that an interface gets."""

    def __init__(self, program: pathlib.Path, *prefix: object, interface: str = "eth0") -> None:
        words = [*map(str, prefix), str(program), "listen", interface, "15000"]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n"
        os.set_blocking(self.process.stdout.fileno(), False)
        self.text = ""

    def heard(self, data: bytes, whole: bool = False) -> bool:
        """Has a frame come that holds this, or is this?"""
        self.text += os.read(self.process.stdout.fileno(), 1 << 22).decode() if self._readable() else ""
        return data.hex() in (self.text.split("\n") if whole else self.text)

    def _readable(self) -> bool:
        import select

        return bool(select.select([self.process.stdout.fileno()], [], [], 0)[0])

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def listening(*listeners: Listener):
    try:
        yield
    finally:
        for listener in listeners:
            listener.close()


# ---- who is who -------------------------------------------------------------------------------------------------


def forged(evil: Attacker, victim: Neighbour, dst: bytes) -> dict[str, tuple[bytes, bytes]]:
    """name → (what it is known by, the frame)."""
    frames: dict[str, tuple[bytes, bytes]] = {}

    def add(name: str, make) -> None:
        mark = b"\xa5forged%04d\xa5" % len(frames) + dst
        frames[name] = (mark, make(mark))

    me, my, his = evil.mac, evil.ip, victim.mac
    other = b"\x02\x99\x01\x02\x03\x04"
    head = dst + me
    for op in (1, 2):
        add(f"ARP {op}: his address is mine", lambda m, op=op: arp(dst, me, me, victim.ip, my, op, m))
        add(f"ARP {op}: my address is his MAC's", lambda m, op=op: arp(dst, me, his, my, my, op, m))
        add(f"ARP {op}: the gateway is me", lambda m, op=op: arp(dst, me, me, victim.gateway, victim.ip, op, m))
        add(f"ARP {op}: as him altogether", lambda m, op=op: arp(dst, his, his, victim.ip, my, op, m))
        add(f"ARP {op}: from another MAC", lambda m, op=op: arp(dst, other, other, my, my, op, m))
        add(f"ARP {op}: from no address", lambda m, op=op: arp(dst, me, me, "0.0.0.0", victim.ip, op, m))
    add("ARP of eight-byte addresses", lambda m: (lambda f: f[:18] + b"\x08" + f[19:])(arp(dst, me, me, my, my, 2, m)))
    add("ARP of other hardware", lambda m: (lambda f: f[:14] + b"\0\6" + f[16:])(arp(dst, me, me, my, my, 2, m)))
    add("RARP", lambda m: head + b"\x80\x35" + arp(dst, me, me, my, my, 3)[14:] + m)
    datagram = lambda m: udp(5, 6, m)  # noqa: E731
    add("IPv4 as him", lambda m: head + b"\x08\0" + ipv4(victim.ip, my, datagram(m)))
    add("IPv4 as the gateway", lambda m: head + b"\x08\0" + ipv4(victim.gateway, victim.ip, datagram(m)))
    add("IPv4 as nobody", lambda m: head + b"\x08\0" + ipv4("0.0.0.0", victim.ip, datagram(m)))
    add("IPv4 as an address of the world", lambda m: head + b"\x08\0" + ipv4("192.0.2.9", victim.ip, datagram(m)))
    add("IPv4 from his MAC", lambda m: dst + his + b"\x08\0" + ipv4(my, victim.ip, datagram(m)))
    add("IPv4 from another MAC", lambda m: dst + other + b"\x08\0" + ipv4(my, victim.ip, datagram(m)))
    add("a redirect as the gateway", lambda m: head + b"\x08\0" + ipv4(victim.gateway, victim.ip, b"\5\1\0\0" + m, 1))
    add("to this host's loopback", lambda m: head + b"\x08\0" + ipv4(my, "127.9.8.7", datagram(m)))
    add("a DHCP offer", lambda m: head + b"\x08\0" + ipv4(my, "255.255.255.255", udp(67, 68, m)))
    add("a DHCP offer behind IP options", lambda m: head + b"\x08\0" + ipv4(my, victim.ip, udp(67, 68, m), options=b"\1" * 40))  # fmt: skip
    add("a router advertisement", lambda m: head + b"\x86\xdd" + ipv6(58, struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + m))  # fmt: skip
    add("a neighbour advertisement", lambda m: head + b"\x86\xdd" + ipv6(58, b"\x88\0\0\0" + bytes(20) + m))
    add("an ND redirect", lambda m: head + b"\x86\xdd" + ipv6(58, b"\x89\0\0\0" + bytes(36) + m))
    add("DHCPv6", lambda m: head + b"\x86\xdd" + ipv6(17, udp(547, 546, m)))
    add("IPv6", lambda m: head + b"\x86\xdd" + ipv6(59, m))
    for name, ethernet, packet in forged6(evil, victim):
        add(f"IPv6: {name}", lambda m, e=ethernet or head, p=packet: e + b"\x86\xdd" + p(m))
    for tag in (b"\x81\0\0\0", b"\x81\0\0\5", b"\x88\xa8\0\0", b"\x81\0\0\0\x81\0\0\0"):
        add(f"ARP in VLAN {tag.hex()}", lambda m, t=tag: head + t + arp(dst, me, me, victim.ip, my, 2, m)[12:])
        add(f"my own IPv4 in VLAN {tag.hex()}", lambda m, t=tag: head + t + b"\x08\0" + ipv4(my, victim.ip, datagram(m)))  # fmt: skip
    add("a BPDU", lambda m: b"\x01\x80\xc2\0\0\0" + me + struct.pack("!H", 3 + len(m)) + b"\x42\x42\3" + m)
    add("IPX", lambda m: head + b"\x81\x37" + m)
    add("MPLS", lambda m: head + b"\x88\x47\0\0\1\x40" + ipv4(my, victim.ip, datagram(m)))
    for size in (*range(15, 42, 3), 41):
        frame = arp(dst, me, me, victim.ip, my)[:size]
        frames[f"{size} bytes of ARP"] = (frame, frame)
    for size in range(15, 34, 3):
        frame = (head + b"\x08\0" + ipv4(victim.ip, my, b""))[:size]
        frames[f"{size} bytes of IPv4"] = (frame, frame)
    for size in range(15, 62, 3):
        frame = (head + b"\x86\xdd" + ipv6(58, b"\x88" + bytes(15), evil.ip6, victim.ip6))[:size]
        frames[f"{size} bytes of IPv6"] = (frame, frame)
    return frames


def forged6(evil: Attacker, victim: Neighbour):
    """Yield (name, Ethernet addresses if not the attacker's, what makes the packet) of IPv6 that is not the pod's own to send."""
    mine, his, gateway = evil.ip6, victim.ip6, victim.ip6.rpartition(":")[0] + ":1"
    local, prefix = "fe80::4c:58ff:fe58:2", mine.rpartition("::")[0]
    datagram = lambda m: udp(5, 6, m)  # noqa: E731
    raw = lambda ip: socket.inet_pton(socket.AF_INET6, ip)  # noqa: E731
    icmp = lambda kind, rest: lambda m: struct.pack("!BBHI", kind, 0, 0, 0) + rest + m  # noqa: E731
    option = b"\2\1" + evil.mac
    for name, source in (
        ("as him", his), ("as the gateway", gateway), ("as nobody", "::"), ("as an address of the world", "2001:db8::9"),
        ("link-local", local), ("of the prefix", f"{prefix}::99"), ("beside it", f"{prefix}:0:1:{mine.partition('::')[2]}"),
        ("of another prefix", "fd00::" + mine.split("::")[1]),
    ):  # fmt: skip
        yield name, b"", lambda m, s=source: ipv6(17, datagram(m), s, his)
    yield "from his MAC", victim.mac * 2, lambda m: ipv6(17, datagram(m), mine, his)
    for name, target in (("a group", "ff02::1"), ("all routers", "ff02::2"), ("a link-local address", "fe80::1"), ("loopback", "::1"), ("IPv4 in disguise", "::ffff:127.0.0.1")):  # fmt: skip
        yield f"to {name}", b"", lambda m, t=target: ipv6(17, datagram(m), mine, t)
    for kind, name, rest in (
        (133, "a router solicitation", b""), (134, "a router advertisement", bytes(8)),
        (135, "a solicitation of his address", raw(his) + b"\1\1" + evil.mac), (136, "an advertisement of his address", raw(his) + option),
        (136, "an advertisement of the gateway's", raw(gateway) + option), (136, "an advertisement of its own", raw(mine) + option),
        (137, "a redirect", raw(gateway) + raw(mine)), (130, "an MLD query", bytes(16)), (143, "an MLD report", b""), (139, "a node query", b""),
        (0, "ICMP of type 0", b""), (5, "ICMP of type 5", b""), (255, "ICMP of type 255", b""),
    ):  # fmt: skip
        for source, target in ((mine, his), (local, "ff02::1")):
            yield (
                f"{name} from {source}",
                b"",
                lambda m, s=source, t=target, k=kind, r=rest: ipv6(58, icmp(k, r)(m), s, t),
            )
    advertisement = icmp(136, raw(his) + option)
    for number, name in ((0, "hop-by-hop options"), (43, "a routing header"), (51, "an authentication header"), (60, "destination options"), (135, "a mobility header")):  # fmt: skip
        yield f"an advertisement behind {name}", b"", lambda m, n=number: ipv6(n, b"\x3a\0" + b"\1\4" + bytes(4) + advertisement(m), mine, his)  # fmt: skip
    fragment = lambda inner, body: lambda m: ipv6(44, struct.pack("!BBHI", inner, 0, 1, 7) + body(m), mine, his)  # noqa: E731
    yield "an advertisement in a fragment", b"", fragment(58, advertisement)
    yield "destination options in a fragment", b"", fragment(60, lambda m: b"\x3a\0\1\4" + bytes(4) + advertisement(m))
    yield "DHCPv6 as a server", b"", lambda m: ipv6(17, udp(547, 546, m), mine, his)
    yield "IPv4 in IPv6", b"", lambda m: ipv6(4, ipv4(evil.ip, victim.ip, datagram(m)), mine, his)
    yield "IPv6 in IPv6", b"", lambda m: ipv6(41, ipv6(17, datagram(m), his, mine), mine, his)


@pytest.mark.parametrize("to", ["everybody", "the neighbour", "the gateway"])
def test_only_what_is_its_own_leaves_a_pod(evil, victim, frame_program, to):
    """Every kind of forged frame, at the neighbour's eth0 and at the bridge; what is the pod's own arrives."""
    gateway = bridge_mac()
    dst = {"everybody": BROADCAST, "the neighbour": victim.mac, "the gateway": gateway}[to]
    frames = forged(evil, victim, dst)
    good = {
        "ARP": arp(dst, evil.mac, evil.mac, evil.ip, victim.ip, 1, b"good-arp" + dst),
        "IPv4": dst + evil.mac + b"\x08\0" + ipv4(evil.ip, victim.ip, udp(5, 6, b"good-udp" + dst)),
        "a DHCP client": dst + evil.mac + b"\x08\0" + ipv4(evil.ip, victim.ip, udp(68, 67, b"good-dhc" + dst)),
        "IP options": dst + evil.mac + b"\x08\0" + ipv4(evil.ip, victim.ip, udp(5, 6, b"good-opt" + dst), options=b"\1" * 8),
    }  # fmt: skip
    for name, protocol, packet in (
        ("UDP", 17, udp(5, 6, b"good-udp" + dst)), ("SCTP", 132, b"good-sctp" + dst), ("TCP", 6, bytes(20) + b"good-tcp" + dst),
        ("an echo", 58, b"\x80\0\0\0" + bytes(4) + b"good-echo" + dst), ("an error", 58, b"\1\0\0\0" + bytes(4) + b"good-err" + dst),
        ("a fragment of UDP", 44, b"\x11\0\0\1\0\0\0\7" + udp(5, 6, b"good-frag" + dst)),
        ("a later fragment of an echo", 44, b"\x3a\0\0\x09\0\0\0\7" + b"\x88good-later" + dst),
    ):  # fmt: skip
        good[f"IPv6: {name}"] = dst + evil.mac + b"\x86\xdd" + ipv6(protocol, packet, evil.ip6, victim.ip6)
    at_neighbour = Listener(frame_program, *victim.net)
    at_bridge = Listener(frame_program, interface="nsrun0")
    with listening(at_neighbour, at_bridge):
        evil.send(*(frame for _, frame in frames.values()), *good.values())
        for name, frame in good.items():
            if to != "the gateway":
                wait_for(lambda frame=frame: at_neighbour.heard(frame), 10, f"{name} at the neighbour's")
            if to != "the neighbour":
                wait_for(lambda frame=frame: at_bridge.heard(frame), 10, f"{name} at the bridge")
        time.sleep(0.2)
        for at in (at_neighbour, at_bridge):
            assert [name for name, (mark, frame) in frames.items() if at.heard(mark, whole=mark == frame)] == []


def test_a_published_port_stays_with_its_pod(evil, victim):
    """ARP for a neighbour's address, in every direction, all the time: the host goes on sending to the neighbour."""
    his, gateway = victim.ip, victim.gateway
    lies = [
        arp(BROADCAST, evil.mac, evil.mac, his, gateway),
        arp(BROADCAST, evil.mac, evil.mac, his, his, 1),
        arp(victim.mac, evil.mac, evil.mac, gateway, his),
        BROADCAST + victim.mac + b"\x08\0" + ipv4(his, gateway, udp(5, 6, b"x")),
        arp(BROADCAST, victim.mac, victim.mac, his, gateway),
    ]
    sh("ip", "neighbour", "flush", "dev", "nsrun0")  # not the permanent ones: nobody's memory helps
    with evil.spraying(*lies):
        for _ in range(5):
            assert get("127.0.0.1", 20900) == "victim" and get("192.0.2.1", 20900) == "victim"
            assert get(his, 80) == "victim"
            sh(*victim.net, "ip", "neighbour", "flush", "dev", "eth0")
            assert sh(*victim.net, BUSYBOX, "ping", "-c", "1", "-W", "2", gateway, check=False).returncode == 0
    entry = sh("ip", "neighbour", "show", "to", his, "dev", "nsrun0").stdout.lower()
    assert victim.mac.hex(":") in entry and "permanent" in entry


def test_no_default_route_by_a_router_advertisement(evil, victim):
    """Nor a redirect: nothing that a neighbour says changes where a pod's packets go."""
    for conf in ("all", "default", "eth0"):
        for setting in ("ipv6/conf/{}/accept_ra", "ipv6/conf/{}/accept_redirects", "ipv4/conf/{}/accept_redirects"):
            assert sh(*victim.net, "cat", f"/proc/sys/net/{setting.format(conf)}").stdout == "0\n", (setting, conf)
    assert "inet6 fd" in sh(*victim.net, "ip", "-6", "address", "show", "dev", "eth0").stdout
    before = sh(*victim.net, "ip", "-6", "route").stdout
    prefix = struct.pack(
        "!BBBBIII16s", 3, 4, 64, 0xC0, 3600, 3600, 0, socket.inet_pton(socket.AF_INET6, "2001:db8:bad::")
    )
    advertisement = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + prefix
    frame = b"\x33\x33\0\0\0\1" + evil.mac + b"\x86\xdd" + ipv6(58, advertisement)
    evil.send(*[frame] * 5)
    time.sleep(0.3)
    assert sh(*victim.net, "ip", "-6", "route").stdout == before
    assert "2001:db8:bad" not in sh(*victim.net, "ip", "-6", "address").stdout


@pytest.mark.parametrize("isolated", ["one", "two", "both"])
def test_nothing_passes_between_an_isolated_pod_and_another(host, busybox, frame_program, isolated):
    """Neither frames made by hand, in both families, nor routes by way of the host; published ports do."""
    ports = {"one": 20900, "two": 20901}
    one, two = (
        Neighbour(host, busybox, name, "-p", f"{port}:80", *(["--network", "bridge,isolated"] if isolated in (name, "both") else []))
        for name, port in ports.items()
    )  # fmt: skip
    assert host.pod("one")["network"]["isolated"] == (isolated != "two")
    gateway, gateway6 = bridge_mac(), one.ip6.rpartition(":")[0] + ":1"
    for sender, receiver in ((one, two), (two, one)):
        frames = {}
        for dst in (receiver.mac, gateway, BROADCAST):
            mark = b"\xa5isolated\xa5" + dst
            frames["IPv4", dst] = dst + sender.mac + b"\x08\0" + ipv4(sender.ip, receiver.ip, udp(5, 6, mark))
            frames["IPv6", dst] = dst + sender.mac + b"\x86\xdd" + ipv6(17, udp(5, 6, mark), sender.ip6, receiver.ip6)
            for op in (1, 2):
                frames[f"ARP {op}", dst] = arp(dst, sender.mac, sender.mac, sender.ip, receiver.ip, op, mark)
        good = gateway + sender.mac + b"\x08\0" + ipv4(sender.ip, one.gateway, udp(5, 6, b"good" + sender.mac))
        at_receiver, at_bridge = Listener(frame_program, *receiver.net), Listener(frame_program, interface="nsrun0")
        with listening(at_receiver, at_bridge):
            sh(*sender.net, frame_program, "send", "eth0", *(frame.hex() for frame in frames.values()), good.hex())
            wait_for(lambda at=at_bridge, good=good: at.heard(good), 10, "what is for the host")
            time.sleep(0.3)
            assert [what for what in frames if at_receiver.heard(b"\xa5isolated\xa5" + what[1])] == []
        sh(*sender.net, "ip", "route", "add", receiver.ip, "via", one.gateway)
        for address in (receiver.ip, f"[{receiver.ip6}]"):
            assert get(address, 80, *sender.net).startswith("curl"), "by way of the host"
        for address in (one.gateway, f"[{gateway6}]", "192.0.2.1"):
            assert get(address, ports[receiver.name], *sender.net) == receiver.name, "a published port"
        assert get(receiver.ip, 80) == get(f"[{receiver.ip6}]", 80) == receiver.name, "the host"


def test_an_owner_who_takes_the_neighbours_address_and_mac(host, owner, victim):
    """With every capability in the pod, eth0 gets the neighbour's address and MAC; the host still finds the neighbour."""
    mac = victim.mac.hex(":")
    for words in (
        f"address add {victim.ip}/32 dev eth0",
        "link set eth0 down",
        f"link set eth0 address {mac}",
        "link set eth0 up",
    ):
        owner.run("ip", *words.split())
    sh("ip", "neighbour", "flush", "dev", "nsrun0")
    with owner.spraying(arp(BROADCAST, victim.mac, victim.mac, victim.ip, victim.ip)):
        for _ in range(5):
            assert get("127.0.0.1", 20900) == "victim" and get(victim.ip, 80) == "victim"
    assert owner.run(BUSYBOX, "ping", "-c", "1", "-W", "1", victim.gateway, check=False).count("bytes from") == 0
    # as it was before, it works as before
    for words in (f"address del {victim.ip}/32 dev eth0", "link set eth0 down", f"link set eth0 address {owner.mac.hex(':')}", "link set eth0 up"):  # fmt: skip
        owner.run("ip", *words.split())
    wait_for(lambda: "bytes from" in owner.run(BUSYBOX, "ping", "-c", "1", "-W", "1", victim.gateway, check=False))


def holder_of(pid: int) -> int:
    """The nsrun-hold of an owned pod: the only one that has a pidfd of this pause."""
    for each in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if pathlib.Path(f"/proc/{each}/comm").read_text() == "nsrun-hold\n":
                infos = [path.read_text() for path in pathlib.Path(f"/proc/{each}/fdinfo").iterdir()]
                if any(f"Pid:\t{pid}\n" in info for info in infos):
                    return int(each)
    raise AssertionError("no nsrun-hold")


def test_an_address_is_free_when_its_pod_is_gone(host, owner, busybox):
    """The owner deletes eth0: their published port must not lead to the next pod, which publishes nothing."""
    owner.run("ip", "link", "del", "eth0")
    wait_for(lambda: owner.veth not in sh("ip", "-br", "link").stdout)
    assert "taken" in host.fails(125, "pod", "create", "--ip", owner.ip, "next")
    following = Neighbour(host, busybox, "next")
    assert following.ip != owner.ip
    assert get("127.0.0.1", 20901).startswith("curl") and get("192.0.2.1", 20901).startswith("curl")
    owner.run("ip", "link", "add", "eth0", "type", "bridge")  # another eth0 is no way back
    owner.run("ip", "address", "add", f"{owner.ip}/24", "dev", "eth0")
    assert "taken" in host.fails(125, "pod", "create", "--ip", owner.ip, "other")
    kill(holder_of(owner.pid))
    wait_for(lambda: f"nsrun-{owner.veth[3:]}" not in sh("nft", "list", "tables").stdout)
    host.run("pod", "create", "--ip", owner.ip, "other")  # nothing forwards to it any more


def test_the_bridge_stays_as_long_as_an_address_is_leased(host, owner):
    owner.run("ip", "link", "del", "eth0")
    wait_for(lambda: owner.veth not in sh("ip", "-br", "link").stdout)
    host.run("pod", "create", "--network", "none", "x")
    host.run("pod", "rm", "-f", "x")
    assert "nsrun0" in sh("ip", "-br", "link").stdout
    host.run("pod", "rm", "-f", "evil")
    settled()
    assert "nsrun0" not in sh("ip", "-br", "link").stdout


def test_a_killed_holder_frees_the_address(host):
    """The lease is what the kernel takes back from who is killed."""
    host.run("pod", "create", "--ip", "10.88.0.9", "a")
    info = host.pod("a")
    kill(info["pid"])
    wait_for(lambda: info["network"]["veth"] not in sh("ip", "-br", "link").stdout)
    host.run("pod", "create", "--ip", "10.88.0.9", "b")
    assert [pod["name"] for pod in host.json("pod", "ls")] == ["b"]
    assert host.pod("b")["network"]["veth"] in sh("ip", "-br", "link").stdout


def test_nothing_opens_when_a_holder_is_killed(host, evil, victim, rootfs, frame_program):
    """Its table goes; the pod's network lives on, in a member with a PID namespace of its own or under pause.

    Another firewall's `flush ruleset` takes nothing from what is checked either.
    """
    secret = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    secret.bind(("127.0.0.1", 8099))
    secret.settimeout(0.5)
    gateway = bridge_mac()
    knock = gateway + evil.mac + b"\x08\0" + ipv4(evil.ip, "127.0.0.1", udp(5, 8099, b"let me in"))
    if evil.who == "owner":
        keeper = None
        kill(holder_of(evil.pid))
    else:
        keeper = subprocess.Popen(["nsenter", "-t", str(evil.pid), "-n", "sleep", "60"])
        time.sleep(0.2)
        words = [frame_program, "spray", "eth0", 4000]
        own = [
            "join",
            "evil",
            "-d",
            "--name",
            "lasting",
            "--pid",
            "own",
            "--rootfs",
            rootfs,
            "--",
            "/frame",
            *words[1:],
            knock.hex(),
        ]
        host.run(*own)
        kill(evil.pid)
    try:
        wait_for(lambda: f"nsrun-{evil.veth[3:]}" not in sh("nft", "list", "tables").stdout)
        away = ["nsenter", "-t", str(host.throwaway.neighbour.pid), "-n"]
        sh(*away, "ip", "route", "replace", f"{evil.ip}/32", "via", "192.0.2.1")
        inside = ["nsenter", "-t", str(keeper.pid if keeper else evil.pid), "-n"]
        server = subprocess.Popen([*inside, BUSYBOX, "nc", "-l", "-p", "7777", "-e", "echo", "open"])
        wait_for(lambda: ":1E61 " in sh(*inside, "cat", "/proc/net/tcp", "/proc/net/tcp6").stdout)
        assert get(evil.ip, 7777, *away).startswith("curl 28"), "nobody outside reaches what was not published"
        server.kill()
        server.wait()
        sh(*away, "ip", "route", "del", f"{evil.ip}/32")
        sh("nft", "flush", "ruleset")  # of the throwaway host
        assert evil.veth in sh("ip", "-br", "link").stdout
        listener = Listener(frame_program, *victim.net)
        with listening(listener):
            lie = arp(BROADCAST, evil.mac, evil.mac, victim.ip, victim.gateway, 2, b"a lie")
            true = arp(BROADCAST, evil.mac, evil.mac, evil.ip, victim.ip, 1, b"the truth")
            if evil.who == "owner":
                evil.send(*[knock] * 5, lie, true)
            else:  # the kernel's view of the attacker is the same: a raw socket in that namespace
                sh("nsenter", "-t", keeper.pid, "-n", frame_program, "send", "eth0", knock.hex(), lie.hex(), true.hex())
            wait_for(lambda: listener.heard(b"the truth"))
            assert not listener.heard(b"a lie")
        with pytest.raises(TimeoutError):
            secret.recv(100)
        assert get("127.0.0.1", 20900) == "victim"
    finally:
        secret.close()
        if keeper:
            keeper.kill()
            keeper.wait()
            wait_for(
                lambda: host.run("rm", "-f", "lasting", check=False) and "lasting" not in host.run("ls", "-a").stdout
            )


@pytest.fixture(params=["0", "1"])
def br_netfilter(request):
    """Do frames on the bridge go through the rules of IPv4?"""
    switch = pathlib.Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    if not switch.exists():
        yield
        return
    before = switch.read_text()
    switch.write_text(request.param)
    yield
    switch.write_text(before)


def test_what_worked_still_works(host, owner, victim, br_netfilter):
    """Pods reach each other, the host and the world; the host and the world reach what is published."""
    assert get(victim.ip, 80) == "victim"
    assert owner.run(BUSYBOX, "ping", "-c", "1", "-W", "2", victim.ip).count("bytes from") == 1
    assert owner.run(BUSYBOX, "ping", "-c", "1", "-W", "2", "192.0.2.9").count("bytes from") == 1
    assert sh(BUSYBOX, "ping", "-c", "1", "-W", "2", owner.ip).stdout.count("bytes from") == 1
    assert get("192.0.2.1", 20900, *victim.net) == "victim"  # hairpin
    away = ("nsenter", "-t", str(host.throwaway.neighbour.pid), "-n")
    assert get("192.0.2.1", 20900, *away) == "victim" == get("127.0.0.1", 20900)
    inside = ["nsenter", "-t", str(owner.pid), "-n"]
    assert get(victim.ip, 80, *inside) == "victim" == get("192.0.2.1", 20900, *inside)


# ---- another network namespace ----------------------------------------------------------------------------------


@contextlib.contextmanager
def another_host(*_: object):
    """A network namespace like a fresh host's: indices begin anew."""
    keeper = subprocess.Popen(["unshare", "--net", "sleep", "300"], start_new_session=True)
    here = os.stat("/proc/thread-self/ns/net").st_ino
    wait_for(lambda: os.stat(f"/proc/{keeper.pid}/ns/net").st_ino != here)
    try:
        yield ["nsenter", "-t", str(keeper.pid), "-n"]
    finally:
        keeper.kill()
        keeper.wait()


def test_a_sweep_in_another_network_namespace_takes_no_living_pods_veth(host):
    """Two namespaces in which everything has equal names and indices, two roots: only the dead pod is forgotten."""
    two = {**host.env, "NSRUN_ROOT": str(host.root / "two")}
    with another_host() as here, another_host() as there:
        sh(*here, NSRUN, "pod", "create", "dead", env=host.env)
        sh(*there, NSRUN, "pod", "create", "living", env=two)
        show = lambda where: json.loads(sh(*where, "ip", "-j", "link", "show", "nsr0a580002").stdout)[0]  # noqa: E731
        assert show(here)["ifindex"] == show(there)["ifindex"] and show(here)["ifalias"] != show(there)["ifalias"]
        kill(host.pod("dead")["pid"])
        wait_for(lambda: sh(*here, "ip", "link", "show", "nsr0a580002", check=False).returncode)
        sh(*there, NSRUN, "pod", "ls", env=host.env)  # sweeps
        assert show(there)["ifalias"].startswith("nsrun:")
        sh(*there, NSRUN, "pod", "rm", "-f", "living", env=two)
        wait_for(lambda: "nsr" not in sh(*there, "ip", "-br", "link").stdout)


def test_a_pod_that_ends_elsewhere_leaves_other_links_alone(host):
    """`pod rm` from a namespace that is not the pod's: its own veth goes with it, its namesake stays."""
    with another_host() as here, another_host() as there:
        sh(*here, NSRUN, "pod", "create", "a", env=host.env)
        index = json.loads(sh(*here, "ip", "-j", "link", "show", "nsr0a580002").stdout)[0]["ifindex"]
        alias = json.loads(sh(*here, "ip", "-j", "link", "show", "nsr0a580002").stdout)[0]["ifalias"]
        sh(*there, "ip", "link", "add", "nsr0a580002", "index", index, "type", "bridge")
        sh(*there, "ip", "link", "set", "nsr0a580002", "alias", alias)  # even with its alias
        sh(*there, NSRUN, "pod", "rm", "-f", "a", env=host.env)
        assert "nsr0a580002" in sh(*there, "ip", "-br", "link").stdout
        wait_for(lambda: "nsr0a580002" not in sh(*here, "ip", "-br", "link").stdout)


def test_a_link_of_that_name_which_is_anothers_stays(host):
    """A dead pod's name and index, but not its alias."""
    host.run("pod", "create", "a")
    info = host.pod("a")
    veth = info["network"]["veth"]
    index = json.loads(sh("ip", "-j", "link", "show", veth).stdout)[0]["ifindex"]
    kill(info["pid"])
    wait_for(lambda: veth not in sh("ip", "-br", "link").stdout)
    sh("ip", "link", "add", veth, "index", index, "type", "bridge")
    try:
        host.run("pod", "ls")
        assert veth in sh("ip", "-br", "link").stdout
    finally:
        sh("ip", "link", "del", veth)


def test_a_bridge_of_that_name_which_is_not_ours_stays(host):
    """It is used, never removed, and no way to 127.0.0.1 when the last pod has gone."""
    sh("ip", "link", "add", "nsrun0", "type", "bridge")
    try:
        sh("ip", "address", "add", "10.77.0.1/24", "dev", "nsrun0")
        sh("ip", "link", "set", "nsrun0", "up")
        host.run("pod", "create", "a")
        assert host.pod("a")["network"]["ip"] == "10.77.0.2"
        host.run("pod", "rm", "-f", "a")
        settled()
        assert "nsrun0" in sh("ip", "-br", "link").stdout
        assert pathlib.Path("/proc/sys/net/ipv4/conf/nsrun0/route_localnet").read_text() == "0\n"
    finally:
        sh("ip", "link", "del", "nsrun0")


WORLD = """
import socket, sys
def call():
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("192.0.2.9", int(sys.argv[1])))
    s.settimeout(3)
    s.connect(("192.0.2.1", 20902))
    return s
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.bind(("192.0.2.9", 4445))
print("ready", flush=True)
peer = u.recvfrom(100)[1]
first = call()
first.recv(100)
print("connected", flush=True)
sys.stdin.readline()
first.setsockopt(socket.IPPROTO_TCP, 19, 1)  # TCP_REPAIR: closed without a word
first.close()
for _ in range(3):
    u.sendto(b"secret", peer)
try:
    print("reached", call().recv(100), flush=True)
except OSError as error:
    print("refused", error, flush=True)
"""

INSIDE = """
import socket, sys
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.bind(("0.0.0.0", 5353))
t = socket.create_server(("0.0.0.0", 80))
if sys.argv[1] == "old":
    u.sendto(b"hello", ("192.0.2.9", 4445))
    c = t.accept()[0]
    c.send(b"hello")
    sys.stdin.readline()
    c.setsockopt(socket.IPPROTO_TCP, 19, 1)
    sys.exit()
print("listens", flush=True)
sys.stdin.readline()
for s in (u, t):
    s.settimeout(0.3)
    try:
        s.recvfrom(100) if s is u else s.accept()
        print("reached", flush=True)
    except TimeoutError:
        print("quiet", flush=True)
"""


@pytest.mark.parametrize("swept", [True, False])
def test_connections_of_a_dead_pod_do_not_lead_to_the_next(host, swept):
    """What conntrack remembers of a pod forwards to its address, too: it is forgotten before the next one has it.

    An outsider and a pod keep a connection to a published port, and an exchange of datagrams, open as far as this host
    can see; the pod ends without a word, and the outsider goes on.
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    within = lambda pid: ["nsenter", "-t", str(pid), "-n", sys.executable, "-c"]  # noqa: E731
    running = []

    def start(*words: str) -> subprocess.Popen:
        running.append(subprocess.Popen(words, **pipes))
        return running[-1]

    def say(process: subprocess.Popen) -> None:
        process.stdin.write("\n")
        process.stdin.flush()

    try:
        port = "4444" if swept else "4446"  # what conntrack has of the other run would be dropped
        world = start(*within(host.throwaway.neighbour.pid), WORLD, port)
        assert world.stdout.readline() == "ready\n"
        host.run("pod", "create", "--ip", "10.88.0.9", "-p", "20902:80", "old")
        pid = host.pod("old")["pid"]
        old = start(*within(pid), INSIDE, "old")
        assert world.stdout.readline() == "connected\n"
        say(old)
        old.wait(timeout=10)
        if swept:
            host.run("pod", "rm", "-f", "old")
        else:
            kill(pid)
            wait_for(lambda: "nsr0a580009" not in sh("ip", "-br", "link").stdout)
        host.run("pod", "create", "--ip", "10.88.0.9", "-p", "20903:81", "new")
        new = start(*within(host.pod("new")["pid"]), INSIDE, "new")
        assert new.stdout.readline() == "listens\n"
        say(world)
        answer = world.stdout.readline()
        say(new)
        assert [new.stdout.readline() for _ in range(2)] == ["quiet\n"] * 2
        assert answer.startswith("refused")
    finally:
        for process in running:
            process.kill()
            process.wait()
