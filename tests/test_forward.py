# SPDX-License-Identifier: Apache-2.0
"""Ports that nsrun-forward passes on: --publish-mode forward, and where auto chooses it (csrc/forward.c)."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import random
import re
import resource
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import pytest
from conftest import HERE, NSRUN, need, not_editable, sh, wait_for
from conftest import kill as kill_pid
from test_explain import Expected, traced
from test_ipv6 import HERE as HERE6
from test_ipv6 import outside  # noqa: F401
from test_udp import inside

#: A member that is every kind of server.  What its port 14 met is told by port 15.
SERVER = r"""
import fcntl, hashlib, select, socket, struct, sys, threading
RESET = struct.pack("ii", 1, 0)
met = []

def echo(c, peer):
    while data := c.recv(65536):
        c.sendall(data)

def digest(c, peer):
    whole = hashlib.sha256()
    while data := c.recv(65536):
        whole.update(data)
    c.sendall(whole.hexdigest().encode())

def who(c, peer):
    c.sendall(peer[0].encode())

def reset(c, peer):
    c.recv(1)
    c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

def deaf(c, peer):
    threading.Event().wait()

def source(c, peer):
    c.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
    for n in range(256):
        c.sendall(bytes([n]) * 65536)

def first(c, peer):
    c.sendall(b"bye")
    c.shutdown(socket.SHUT_WR)
    met.append(c.recv(100, socket.MSG_WAITALL))

def record(c, peer):
    c.sendall(b"here")
    try:
        while c.recv(100):
            pass
        met.append(b"FIN")
    except ConnectionResetError:
        met.append(b"RST")

def marks(c, peer):
    c.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    while select.select([c], [], []):
        urgent = struct.unpack("i", fcntl.ioctl(c, 0x8905, bytes(4)))[0]  # SIOCATMARK
        if not (data := c.recv(1 if urgent else 65536)):
            return
        c.sendall(data, socket.MSG_OOB if urgent else 0)

def tell(c, peer):
    said = met[:]
    del met[: len(said)]  # what comes meanwhile stays for the next one
    c.sendall(b" ".join(said))

def serve(port, what):
    s = socket.create_server(("", port), backlog=4096)
    while True:
        c, peer = s.accept()
        threading.Thread(target=run, args=(what, c, peer), daemon=True).start()

def run(what, c, peer):
    try:
        what(c, peer)
    except OSError:
        pass
    c.close()

def datagrams():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(("", 53))
    while True:
        data, peer = s.recvfrom(65536)
        s.sendto(data.upper() if data != b"who" else repr(peer).encode(), peer)

threading.stack_size(65536)
threading.Thread(target=datagrams, daemon=True).start()
for port, what in {7: echo, 8: digest, 9: who, 10: reset, 11: deaf, 12: source, 13: first, 14: record, 17: marks}.items():
    threading.Thread(target=serve, args=(port, what), daemon=True).start()
serve(15, tell)
"""
ECHO, DIGEST, WHO, RESET, DEAF, SOURCE, FIRST, RECORD, TELL = range(7, 16)
LINGER = struct.pack("ii", 1, 0)


@pytest.fixture
def served(host):
    """Make a pod with SERVER in it; return its note.  8000 + N leads to port N, and 8053 to 53/udp."""

    def make(*options, name="web", who=host, publish=("8007-8016:7-16", "8053:53/udp"), mode="forward", **kwargs):
        # of IPv4 alone, unless a test says otherwise: without an address, ports are published in both families
        ports = [word for spec in publish for word in ("-p", spec if spec.count(":") > 1 else f"0.0.0.0:{spec}")]
        done = who.run("pod", "create", "--publish-mode", mode, *ports, *options, name, **kwargs)
        who.run("join", name, "-d", "--name", f"{name}-s", "--", sys.executable, "-IS", "-c", SERVER)
        pod = who.pod(name)
        enter = ["nsenter", "-t", pod["pid"], "-n", *(["-U", "--preserve-credentials"] if who is not host else [])]
        wait_for(lambda: ":15 " in sh(*enter, "ss", "-ltn").stdout)
        return {**pod, "said": done.stderr}

    return make


def connect(port: int, address: str = "127.0.0.1") -> socket.socket:
    sock = socket.create_connection((address, port), 30)
    sock.settimeout(30)
    return sock


def everything(sock: socket.socket) -> bytes:
    found = b""
    while data := sock.recv(1 << 20):
        found += data
    return found


def ask(port: int, address: str = "127.0.0.1", prefix=()) -> str:
    """What a server says to somebody who connects, as the caller or by a command; "" when there is none."""
    if prefix:
        script = f"import socket; print(socket.create_connection(({address!r}, {port}), 3).recv(100).decode())"
        return sh(*prefix, sys.executable, "-IS", "-c", script, check=False).stdout.strip()
    try:
        with connect(port, address) as sock:
            return everything(sock).decode()
    except OSError:
        return ""


def met() -> str:
    return ask(8000 + TELL)


def forwarders() -> list[int]:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if (
                pathlib.Path(f"/proc/{pid}/comm").read_text() == "nsrun-forward\n"
                and f"/nsrun-test-{os.getpid()}" in pathlib.Path(f"/proc/{pid}/cgroup").read_text()
                and pathlib.Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
            ):
                found.append(int(pid))
    return sorted(found)


def status(pid: int, key: str) -> str:
    return re.search(rf"^{key}:[ \t]*(.*)$", pathlib.Path(f"/proc/{pid}/status").read_text(), re.M).group(1)


def shown(who, name="web") -> set[str]:
    return set(who.run("port", "ls", name).stdout.splitlines())


# ---- where it leads -------------------------------------------------------------------------------------------------


def test_from_everywhere(host, served):
    """From ::1, the host, another host, another pod and the pod itself; the member sees the pod's own address."""
    before = host.snapshot()
    pod = served(publish=["8009:9", "[::1]:8009:9", "[::1]:8053:53/udp", "127.0.0.1:8109:9"])
    ip = pod["network"]["ip"]
    neighbour = ["nsenter", "-t", host.throwaway.neighbour.pid, "-n"]
    host.run("pod", "create", "other")
    inside = [["nsenter", "-t", host.pod(name)["pid"], "-n"] for name in ("web", "other")]
    assert ask(8009) == ask(8009, "::1") == ask(8009, "192.0.2.1") == ask(8109) == ip
    assert [ask(8009, "192.0.2.1", prefix) for prefix in (neighbour, *inside)] == [ip] * 3
    assert ask(8009, "10.88.0.1" if ip.startswith("10.88.0.") else pod["network"]["gateway"], inside[1]) == ip
    assert ask(8109, "192.0.2.1") == "" == ask(8109, "::1")
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.connect(("::1", 8053))
        sock.send(b"six")
        assert sock.recv(100) == b"SIX"
    assert {(p["host_ip"], p["host_port"], p["mode"]) for p in host.pod("web")["ports"]} == {
        ("0.0.0.0", 8009, "forward"), ("::1", 8009, "forward"), ("::1", 8053, "forward"), ("127.0.0.1", 8109, "forward"),
    }  # fmt: skip
    assert "9/tcp -> [::1]:8009 (forward)" in shown(host)
    assert "[::1]:8009->9" in host.run("pod", "ls").stdout
    assert "map" not in sh("nft", "list", "ruleset").stdout, "nat has nothing of it"
    host.run("pod", "rm", "-f", "web", "other")
    assert host.snapshot() == before and forwarders() == []


def test_both_families(host, served):
    """Without an address: the pod's one IPv4 address is reached by every address of the host, ::1 too."""
    pod = served(publish=[])
    if not pod["network"].get("ip6"):
        pytest.skip("this host has no IPv6; to enable: modprobe ipv6")
    host.run("port", "add", "--publish-mode", "forward", "web", "8009:9")
    assert ask(8009) == ask(8009, "::1") == ask(8009, pod["network"]["gateway"]) == pod["network"]["ip"]
    assert len(shown(host)) == 2


def test_servers_of_every_address_but_loopback(host, busybox, served):
    """As with nat: one on all addresses, and one on the pod's own; one that is on 127.0.0.1 is the pod's own affair."""
    pod = served(publish=["8009:9", "8180:80", "8081:81"])
    for number, address in ((80, pod["network"]["ip"]), (81, "127.0.0.1")):
        host.run(
            "join web -d --name {} --rootfs {} httpd -f -p {} -h /var/www", f"h{number}", busybox, f"{address}:{number}"
        )
    wait_for(lambda: "nsrun" in sh("curl", "-s", "-m", "3", "http://127.0.0.1:8180/", check=False).stdout)
    assert ask(8009) and sh("curl", "-s", "-m", "3", "http://127.0.0.1:8081/", check=False).returncode in (7, 56)


def test_auto_where_a_firewall_drops(host, served):
    """nat can't, so the forwarder does; it is said in one line.  Where nothing drops, it is nat."""
    assert served(mode="auto", name="a", publish=["8409:9"])["said"].count("nsrun-forward") == 0 and forwarders() == []
    sh("nft", "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }")
    try:
        neighbour = ["nsenter", "-t", host.throwaway.neighbour.pid, "-n"]
        assert ask(8409, "192.0.2.1", neighbour) == "", "nat is dropped"
        pod = served(mode="auto", publish=["8009:9"])
        (line,) = [line for line in pod["said"].splitlines() if "nsrun-forward" in line]
        assert "'ip filter FORWARD' drops" in line and "pod's own address" in line
        assert ask(8009, "192.0.2.1", neighbour) == pod["network"]["ip"] == ask(8009)
        done = host.run("port", "add", "web", "0.0.0.0:8209:9")
        assert "(forward)" in done.stdout and "'ip filter FORWARD' drops" in done.stderr
        assert ask(8209, "192.0.2.1", neighbour) == pod["network"]["ip"]
        assert host.run("port", "add", "--publish-mode", "nat", "web", "0.0.0.0:8509:9").stderr == ""
        assert ask(8509, "192.0.2.1", neighbour) == "" and ask(8509) == pod["network"]["gateway"]
    finally:
        sh("nft", "delete table ip filter")


def test_both_in_one_pod(host, served):
    """[::1] needs the forwarder, all else goes through nat, in one create and in one add."""
    pod = served(mode="auto", publish=["8609:9", "[::1]:8609:9"])
    assert pod["said"].count("nsrun-forward") == 1 and "::1" in pod["said"]
    assert "published 0.0.0.0:8609" in pod["said"] and "published [::1]" not in pod["said"], "nobody else reaches that"
    assert ask(8609) == pod["network"]["gateway"] and ask(8609, "::1") == pod["network"]["ip"]
    host.run("port", "add", "web", "0.0.0.0:8709:9", "[::1]:8709:9")
    assert ask(8709) == pod["network"]["gateway"] and ask(8709, "::1") == pod["network"]["ip"]
    assert len(forwarders()) == 2 and len(shown(host)) == 4
    host.run("port", "rm", "web", "[::1]:8609", "8709")
    assert shown(host) == {"9/tcp -> 0.0.0.0:8609"} and len(forwarders()) == 0
    assert ask(8609, "::1") == "" and ask(8709) == ""


def test_a_pod_without_a_network(host, served):
    """It can be reached and reaches nobody."""
    served("--network", "none", publish=["8009:9"])
    assert ask(8009) == "127.0.0.1"
    host.run("port", "add", "--publish-mode", "forward", "web", "0.0.0.0:8109:9")
    assert ask(8109) == "127.0.0.1"
    host.run("port", "rm", "web", "8009")
    assert ask(8009) == "" and ask(8109) == "127.0.0.1"
    assert "nothing to forward" in host.fails(125, "port", "add", "web", "8209:9")


# ---- connections ----------------------------------------------------------------------------------------------------


def test_every_byte(served):
    """Of many connections at once, in pieces of any size, with ends at any time, both directions at once."""
    served()
    seed = random.randrange(1 << 32)
    draw, failed = random.Random(seed), []

    def one(number: int) -> None:
        mine = random.Random(f"{seed} {number}")
        data = mine.randbytes(mine.choice([0, 1, 100, 65536, 1 << 20, 8 << 20]))
        with connect(8000 + (ECHO if number % 2 else DIGEST)) as sock:

            def send() -> None:
                at = 0
                while at < len(data):
                    step = mine.choice([1, 1000, 65536, 1 << 20])
                    sock.sendall(data[at : at + step])
                    at += step
                    if mine.random() < 0.1:
                        time.sleep(0.01)
                sock.shutdown(socket.SHUT_WR)

            thread = threading.Thread(target=send)
            thread.start()
            if draw.random() < 0.3:
                time.sleep(0.3)
            got = everything(sock)
            thread.join()
        wanted = data if number % 2 else hashlib.sha256(data).hexdigest().encode()
        if got != wanted:
            failed.append((seed, number, len(got), len(wanted)))

    def guarded(number: int) -> None:
        try:
            one(number)
        except OSError as error:
            failed.append((seed, number, error))

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_each_direction_ends_by_itself(served):
    served()
    with connect(8000 + DIGEST) as sock:  # the client first: the server answers afterwards
        sock.sendall(b"abc")
        sock.shutdown(socket.SHUT_WR)
        assert everything(sock).decode() == hashlib.sha256(b"abc").hexdigest()
    with connect(8000 + FIRST) as sock:  # the server first: the client sends afterwards
        assert everything(sock) == b"bye"
        sock.sendall(b"later")
    wait_for(lambda: met() == "later")
    wait_for(lambda: not sockets_of(forwarders()[0]), what="no connection is left")


def links_of(pid: int) -> list[str]:
    """What the descriptors of a process lead to."""
    links = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # it is closed by now
            links.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return links


def sockets_of(pid: int) -> list[str]:
    """The connections of a forwarder, on both sides."""
    states = ("01", "04", "05", "08", "09", "0B")
    found = []
    for view in ("/proc/thread-self/net/tcp", f"/proc/{pid}/net/tcp"):
        mine = links_of(pid)
        for line in pathlib.Path(view).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] in states and f"socket:[{fields[9]}]" in mine:
                found.append(line)
    return found


def marked(port: int) -> None:
    """Pieces come back as they were sent, the last byte of an urgent one urgent (TCP can point at it from 64 KiB before it)."""
    pieces = [(b"a", 0), (b"b", 1), (b"c" * 20_000 + b"d", 1), (b"e" * 300_000, 0), (b"f" * 3000, 1), (b"g", 0)]
    with connect(port) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        for piece, urgent in pieces:
            sock.sendall(piece, socket.MSG_OOB if urgent else 0)
            got, urgent_at = b"", []
            while len(got) < len(piece):
                assert select.select([sock], [], [], 20)[0], (len(got), len(piece))
                at = struct.unpack("i", fcntl.ioctl(sock, 0x8905, bytes(4)))[0]  # SIOCATMARK
                urgent_at += [len(got)] if at else []
                got += sock.recv(1 if at else 65536)
            assert got == piece and urgent_at == [len(piece) - 1] * urgent
        sock.shutdown(socket.SHUT_WR)
        assert everything(sock) == b""


@pytest.mark.parametrize("mode", ["nat", "forward"])
def test_urgent_data_stays_urgent(served, mode):
    """splice(2) stops at it for ever."""
    served(publish=["8017:17"], mode=mode)
    marked(8017)


@pytest.mark.parametrize("mode", ["nat", "forward"])
def test_urgent_data_is_no_end(served, mode):
    """splice(2) says of it what it says of an end, when that has come as well; what follows it would be lost."""
    served(publish=["8008:8"], mode=mode)
    for before in (100, 3000, 300_000, 2_000_000) * 10:
        with connect(8000 + DIGEST) as sock:
            sock.sendall(b"x" * before)
            sock.send(b"!", socket.MSG_OOB)  # this server does not read it
            sock.sendall(b"y" * 5000)
            sock.shutdown(socket.SHUT_WR)
            wanted = hashlib.sha256(b"x" * before + b"y" * 5000).hexdigest()
            assert everything(sock).decode() == wanted, before


def test_a_reset_stays_a_reset(served):
    served()
    with connect(8000 + RESET) as sock:
        sock.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            everything(sock)
    sock = connect(8000 + RECORD)
    assert sock.recv(4) == b"here"
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
    sock.close()
    wait_for(lambda: met() == "RST")
    with connect(8000 + RECORD) as sock:
        assert sock.recv(4) == b"here"
    wait_for(lambda: met() == "FIN")
    # also of one that has ended its own direction before
    sock = connect(8000 + SOURCE)
    sock.shutdown(socket.SHUT_WR)
    time.sleep(0.3)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
    sock.close()
    wait_for(lambda: not sockets_of(forwarders()[0]), what="no connection is left")


def test_a_refused_connection_is_reset(served):
    served()
    try:
        with connect(8016) as sock, pytest.raises(ConnectionError):
            if everything(sock) == b"":
                raise AssertionError("it looks as if it had ended well")
    except ConnectionError:
        pass  # so fast that connect(2) has it already


def test_who_never_reads_holds_nobody_up(served):
    """More of them than there are pipes, in both directions; the memory is bounded, and what they left is let go."""
    served(publish=["8007-8017:7-17"])
    (pid,) = forwarders()
    late = connect(8000 + SOURCE)
    stuck = [deaf(8000 + SOURCE) for _ in range(300)]
    for _ in range(5):
        sock = connect(8000 + DEAF)
        sock.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            while True:
                sock.send(bytes(65536))
        stuck.append(sock)
    wait_for(lambda: count_pipes(pid) == 2 * 256, 90, what="all pipes are in use")
    began = time.monotonic()
    for _ in range(50):
        with connect(8000 + ECHO) as sock:
            sock.sendall(b"hello")
            assert sock.recv(5) == b"hello"
    data = os.urandom(4 << 20)
    with connect(8000 + DIGEST) as sock:  # a large one, without a pipe
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        assert everything(sock).decode() == hashlib.sha256(data).hexdigest()
    marked(8017)
    assert time.monotonic() - began < 60
    assert int(status(pid, "VmRSS").split()[0]) < 400
    # who reads after all gets every byte
    late.settimeout(20)
    assert (
        hashlib.sha256(everything(late)).digest()
        == hashlib.sha256(b"".join(bytes([n]) * 65536 for n in range(256))).digest()
    )
    for sock in (late, *stuck):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
        sock.close()
    wait_for(lambda: count_pipes(pid) <= 2 * 2, 20, what="the pipes are closed")


def deaf(port: int) -> socket.socket:
    """A connection of which nobody reads; next to nothing lies in its own buffer."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(10)
    sock.connect(("127.0.0.1", port))
    return sock


def count_pipes(pid: int) -> int:
    return sum(link.startswith("pipe:") for link in links_of(pid))


def bounded(*command: str) -> list[str]:
    """A command that can't have more than 2400 descriptors, nor raise that: room for about 390 connections."""
    return ["setpriv", "--bounding-set", "-sys_resource", "prlimit", "--nofile=2400:2400", *command]


def test_one_too_many(host, served):
    """The connection that was idle longest is reset, and those in use stay."""
    served(publish=["8015:15"])
    sh(*bounded(NSRUN, "port", "add", "--publish-mode", "forward", "web", "0.0.0.0:8007:7"), env=host.env)
    (pid,) = [pid for pid in forwarders() if "Max open files            2400" in limits(pid)]
    used, idle = connect(8007), []
    for number in range(700):
        idle.append(connect(8007))
        if number % 50 == 0:
            used.sendall(b"y")
            assert used.recv(1) == b"y"
    gone = [was_reset(sock) for sock in idle]
    assert gone == sorted(gone, reverse=True), "the oldest ones"
    assert 290 <= sum(gone) <= 320 and not was_reset(used)
    assert len(os.listdir(f"/proc/{pid}/fd")) <= 2400
    for sock in (used, *idle):
        sock.close()
    with connect(8007) as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"


def was_reset(sock: socket.socket) -> bool:
    try:
        sock.sendall(b"x")
        return sock.recv(1) != b"x"
    except ConnectionError:
        return True


def limits(pid: int) -> str:
    return pathlib.Path(f"/proc/{pid}/limits").read_text()


@pytest.mark.slow
def test_ten_thousand_idle_connections(host, served):
    """As many of them as descriptors are allowed here; each costs the forwarder 40 bytes, and all of it is given back."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    number = min(10_000, (hard - 2000) // 2)
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        served("--sysctl", "net.core.somaxconn=4096")
        (pid,) = forwarders()
        before = int(status(pid, "VmRSS").split()[0])
        host.run("join", "web", "-d", "--name", "many", "--ulimit", f"nofile={hard}:{hard}", "--", sys.executable, "-IS", "-c", MANY)  # fmt: skip
        host.run("port", "add", "--publish-mode", "forward", "web", "0.0.0.0:8020:20")
        pid = forwarders()[1]
        wait_for(lambda: begins(8020) == b"x")
        idle = [connect(8020, f"127.0.0.{1 + n % 3}") for n in range(number)]
        assert all(sock.recv(1) == b"x" for sock in idle)
        assert int(status(pid, "VmRSS").split()[0]) < before + number * 40 // 1024 + 100
        with connect(8000 + ECHO) as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
        for sock in idle:
            sock.close()
        wait_for(lambda: int(status(pid, "VmRSS").split()[0]) < before + 100, 20, what="the memory is given back")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def begins(port: int) -> bytes:
    """What comes first; nothing when there is no server."""
    try:
        with connect(port) as sock:
            return sock.recv(1)
    except OSError:
        return b""


MANY = r"""
import socket, select
s = socket.create_server(("", 20), backlog=4096)
poll, kept = select.epoll(), {}
poll.register(s, 1)
while True:
    for fd, _ in poll.poll():
        if fd == s.fileno():
            c = s.accept()[0]
            c.send(b"x")
            kept[c.fileno()] = c
            poll.register(c, 1)
        else:
            kept.pop(fd).close()
"""


def test_many_short_connections(served):
    """More than there are ports between two addresses, if each were kept for a minute in TIME_WAIT."""
    pod = served(publish=["8007:7"])
    enter = ["nsenter", "-t", pod["pid"], "-n"]
    assert sh(*enter, "sysctl", "-n", "net.ipv4.tcp_tw_reuse").stdout == "1\n"
    sh(*enter, "sysctl", "-qw", "net.ipv4.ip_local_port_range=30000 30099")
    for _ in range(4):
        for _ in range(90):
            with connect(8007) as sock:
                sock.sendall(b"x")
                assert sock.recv(1) == b"x"
                sock.shutdown(socket.SHUT_WR)
                assert sock.recv(1) == b""
        time.sleep(1.2)


# ---- datagrams ------------------------------------------------------------------------------------------------------


def client(address: str = "127.0.0.1", port: int = 8053) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(5)
    sock.connect((address, port))
    return sock


def test_datagrams(host, served):
    """Of any size; a connected client accepts answers only from the address to which it has sent."""
    pod = served()
    for address in ("127.0.0.1", "127.0.0.9", "192.0.2.1"):
        with client(address) as sock:
            for size in (0, 1, 1400, 9000, 65507):
                sock.send(b"a" * size)
                assert sock.recv(65536) == b"A" * size
    with client() as one, client() as two:
        for sock in (one, two):
            sock.send(b"who")
        first, second = one.recv(100), two.recv(100)
        assert first != second and pod["network"]["ip"].encode() in first
        one.send(b"who")
        assert one.recv(100) == first, "a client keeps its port in the pod"
        for number in range(200):
            one.send(b"%d" % number)
        assert [one.recv(100) for _ in range(200)] == [b"%d" % number for number in range(200)]
    with client(port=8054) as sock:
        sock.settimeout(0.3)
        host.run("port", "add", "--publish-mode", "forward", "web", "0.0.0.0:8054:54/udp")
        for _ in range(3):
            sock.send(b"nobody is there")
            with pytest.raises((TimeoutError, ConnectionRefusedError)):
                sock.recv(100)


def test_datagrams_of_ipv6(host, outside, served):  # noqa: F811
    """Answers come from the address to which a client has sent, whichever the host has; ::1 is one of them."""
    pod = served(publish=["[::]:8053:53/udp"])
    sh("ip", "-6", "address", "add", f"{HERE6}:a/64", "dev", "up0", "nodad")
    gateway = pod["network"]["ip6"].rpartition(":")[0] + ":1"
    script = """
import socket, sys
socks = []
for address in sys.argv[1:]:  # from one port, so that only the address of the host tells them apart
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.settimeout(5)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("::", socks[0].getsockname()[1] if socks else 0))
    sock.connect((address, 8053))
    socks.append(sock)
for sock in socks * 2:
    sock.send(address := sock.getpeername()[0].encode())
    assert sock.recv(100) == address.upper(), address
"""
    try:
        for prefix, addresses in (
            ((), ("::1", HERE6, f"{HERE6}:a", gateway)),
            (outside, (HERE6, f"{HERE6}:a")),
            (inside(pod["pid"]), (HERE6, f"{HERE6}:a", gateway)),
        ):
            sh(*prefix, sys.executable, "-IS", "-c", script, *addresses, cwd="/")
    finally:
        sh("ip", "-6", "address", "del", f"{HERE6}:a/64", "dev", "up0")


def test_more_clients_than_are_kept(served):
    """The one that was silent longest is forgotten: its next datagram makes it new."""
    served()
    (pid,) = forwarders()
    sock = client()
    sock.send(b"who")
    first = sock.recv(100)
    for _ in range(12):
        some = [client() for _ in range(100)]
        for one in some:
            one.send(b"x")
        assert all(one.recv(10) == b"X" for one in some)
        for one in some:
            one.close()
    assert 1000 < len(os.listdir(f"/proc/{pid}/fd")) < 1024 + 50
    sock.send(b"who")
    assert sock.recv(100) != first


@pytest.mark.skipif(not shutil.which("cc"), reason="there is no compiler; to enable: apt-get install gcc")
def test_silent_clients_end(host, served):
    """The same program, with a shorter time."""
    programs = host.root / "programs"
    libexec = sh(sys.executable, "-I", "-c", "from nsrun import kernel; print(kernel.LIBEXEC)").stdout.strip()
    shutil.copytree(libexec, programs)
    flags = "-std=gnu11 -Os -ffreestanding -fno-builtin -fno-stack-protector -fno-pie -static -nostdlib -nostartfiles"
    sh("cc", *flags.split(), "-DUDP_SECONDS=1", "-o", programs / "nsrun-forward", HERE.parent / "csrc/forward.c")
    start = f"import sys; from nsrun import kernel; kernel.LIBEXEC = {str(programs)!r}; from nsrun.cli import main; sys.exit(main())"
    served(publish=["8009:9"])
    words = ["port", "add", "--publish-mode", "forward", "web", "0.0.0.0:8053:53/udp"]
    sh(sys.executable, "-I", "-c", start, *words, env=host.env)
    pid = forwarders()[-1]
    idle = len(os.listdir(f"/proc/{pid}/fd"))
    some = [client() for _ in range(20)]

    def all_are_kept() -> bool:
        for sock in some:
            sock.send(b"x")
            assert sock.recv(10) == b"X"
        return len(os.listdir(f"/proc/{pid}/fd")) == idle + 20

    wait_for(all_are_kept, what="one round of all within their second")
    wait_for(lambda: len(os.listdir(f"/proc/{pid}/fd")) == idle, 10)
    some[0].send(b"y")
    assert some[0].recv(10) == b"Y"


# ---- what it may do, and how it ends ------------------------------------------------------------------------------------


def test_it_may_do_nothing_else(host, served):
    pod = served()
    (pid,) = forwarders()
    assert int(status(pid, "VmRSS").split()[0]) <= 30
    for caps in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
        assert int(status(pid, caps), 16) == 0
    assert status(pid, "Uid").split() == status(pid, "Gid").split() == ["65535"] * 4
    assert (status(pid, "Seccomp"), status(pid, "NoNewPrivs"), status(pid, "Groups")) == ("2", "1", "")
    assert os.readlink(f"/proc/{pid}/ns/net") == os.readlink(f"/proc/{pod['pid']}/ns/net")
    assert not [line for line in host.run("exec", "web-s", "ps", "-e").stdout.splitlines() if "forward" in line]


@pytest.mark.parametrize("how", ["pause", "forwarder", "rm"])
def test_it_ends(host, served, how):
    """With pause, however that ends; when it is killed itself, its ports are gone, and nothing says that they are there."""
    before = host.snapshot()
    pod = served(publish=["8009:9"])
    host.run("port", "add", "--publish-mode", "forward", "web", "0.0.0.0:8109:9")
    first, second = forwarders()
    held = connect(8009)
    if how == "pause":
        kill_pid(pod["pid"])
        wait_for(lambda: forwarders() == [])
    elif how == "forwarder":
        kill_pid(second)
        wait_for(lambda: shown(host) == {"9/tcp -> 0.0.0.0:8009 (forward)"})
        assert ask(8109) == "" and ask(8009)
        host.run("port", "add", "--publish-mode", "forward", "web", "0.0.0.0:8109:9")
        assert ask(8109)
        kill_pid(first)
        wait_for(lambda: ask(8009) == "")
    else:
        host.run("pod", "rm", "-f", "web")
        assert forwarders() == []
    held.close()
    for port in (8009,):
        wait_for(lambda port=port: is_free(port))
    host.run("pod", "rm", "-f", "web", check=False)
    host.run("pod", "prune")
    wait_for(lambda: host.snapshot() == before)


def is_free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True


def test_a_port_that_was_removed_is_free(host, served):
    """For every program, at once, with or without SO_REUSEADDR; connections that are there go on, and other ports."""
    pod = served()
    (pid,) = forwarders()
    with connect(8000 + ECHO) as sock:
        host.run("port", "rm", "web", "8007", "8053/udp")
        sock.sendall(b"still")
        assert sock.recv(10) == b"still"
        with pytest.raises(ConnectionRefusedError):
            connect(8007)
    assert forwarders() == [pid] and ask(8009) == pod["network"]["ip"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("0.0.0.0", 8053))
    wait_for(lambda: is_free(8007))
    host.run("port", "add", "--publish-mode", "forward", "web", "0.0.0.0:8007:7", "0.0.0.0:8053:53/udp")
    with client() as sock, connect(8007) as other:
        sock.send(b"again"), other.sendall(b"again")
        assert sock.recv(10) == b"AGAIN" and other.recv(10) == b"again"


def ended(port: int) -> bool:
    """Whether connections to a port have ended on its side, and linger."""
    return bool(sh("ss", "-tanH", "state", "time-wait", f"sport = :{port}").stdout)


def reusing(port: int, address: str = "0.0.0.0", kind: int = socket.SOCK_STREAM) -> socket.socket:
    sock = socket.socket(socket.AF_INET, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, port))
    return sock


def test_connections_outlive_the_last_port(host, served):
    """Their forwarder ends when they have; without any, with the port, as it does with the pod."""
    before = host.snapshot()
    served(publish=["8015:15"])
    first = forwarders()
    add = ["port", "add", "--publish-mode", "forward", "web", "0.0.0.0:8007:7", "0.0.0.0:8053:53/udp"]
    host.run(*add)
    with client() as datagrams, connect(8007) as sock:
        datagrams.send(b"a")
        assert datagrams.recv(10) == b"A"
        host.run("port", "rm", "web", "8007", "8053/udp")
        assert shown(host) == {"15/tcp -> 0.0.0.0:8015 (forward)"}
        with pytest.raises(ConnectionRefusedError):
            connect(8007)
        sock.sendall(b"still")
        assert sock.recv(10) == b"still" and len(forwarders()) == 2
        host.run(*add)  # beside the one that is about to end
        with connect(8007) as other:
            other.sendall(b"new")
            assert other.recv(10) == b"new" and len(forwarders()) == 3
        host.run("port", "rm", "web", "8007")
        host.run("port", "rm", "web", "8053/udp")
        assert len(forwarders()) == 2, "the second one had no connection left"
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(10) == b""
    wait_for(lambda: forwarders() == first)
    host.run(*add)
    with connect(8007):
        host.run("port", "rm", "web", "8007", "8053/udp")
        host.run("pod", "rm", "-f", "web")
        assert forwarders() == [] and host.snapshot() == before


def test_from_forward_to_nat_at_once(host, served):
    """Connections that have ended are no hindrance; and then the port is the pod's alone."""
    pod = served(publish=[])
    host.run("port", "add", "--publish-mode", "forward", "web", "0.0.0.0:8009:9")
    assert ask(8009) == pod["network"]["ip"]
    wait_for(lambda: ended(8009))
    host.run("port", "rm", "web", "8009")
    host.run("port", "add", "--publish-mode", "nat", "web", "0.0.0.0:8009:9")
    assert ended(8009) and ask(8009) == pod["network"]["gateway"]
    for address in ("0.0.0.0", "127.0.0.1", "192.0.2.1"):
        with pytest.raises(OSError, match="in use"):
            reusing(8009, address)
    assert "is taken" in host.fails(125, "port", "add", "--publish-mode", "nat", "web", "0.0.0.0:8009:9")


def test_who_is_bound_there_can_not_listen_any_more(host, served):
    """A program that shares the address with connections that have ended shares it with the pod, and gets nothing of it."""
    pod = served(publish=[])
    host.run("port", "add", "--publish-mode", "forward", "web", "0.0.0.0:8009:9")
    assert ask(8009) == pod["network"]["ip"]
    wait_for(lambda: ended(8009))
    host.run("port", "rm", "web", "8009")
    with reusing(8009) as other:
        host.run("port", "add", "--publish-mode", "nat", "web", "0.0.0.0:8009:9")
        with pytest.raises(OSError, match="in use"):
            other.listen()
        assert ask(8009) == pod["network"]["gateway"]
    host.run("port", "rm", "web", "8009")
    with reusing(8009) as other:
        other.listen()
        assert "is taken" in host.fails(125, "port", "add", "--publish-mode", "nat", "web", "0.0.0.0:8009:9")
    with reusing(8019):  # nothing has ended there: it may be another's for good
        assert "does not listen" in host.fails(125, "port", "add", "--publish-mode", "nat", "web", "0.0.0.0:8019:9")


def test_a_port_of_udp_is_shared_with_nobody(host, served):
    """Of two that share one, the later gets everything."""
    served(publish=[])
    with reusing(8053, kind=socket.SOCK_DGRAM):
        assert "is taken" in host.fails(125, "port", "add", "--publish-mode", "nat", "web", "0.0.0.0:8053:53/udp")
    host.run("port", "add", "--publish-mode", "nat", "web", "0.0.0.0:8053:53/udp")
    with pytest.raises(OSError, match="in use"):
        reusing(8053, kind=socket.SOCK_DGRAM)


def test_nobody_else_binds_meanwhile(host, served):
    """Whoever keeps the lock of this network namespace lets nsrun wait, for a second, and not for ever."""
    import fcntl

    pod = served(publish=[])
    host.run("port", "add", "--publish-mode", "forward", "web", "0.0.0.0:8009:9")
    assert ask(8009) == pod["network"]["ip"]
    wait_for(lambda: ended(8009))
    host.run("port", "rm", "web", "8009")
    with open("/proc/thread-self/ns/net") as netns:
        fcntl.flock(netns, fcntl.LOCK_EX)
        assert "TIME_WAIT" in host.fails(125, "port", "add", "--publish-mode", "nat", "web", "0.0.0.0:8009:9")
    host.run("port", "add", "--publish-mode", "nat", "web", "0.0.0.0:8009:9")


def test_a_port_that_is_taken(host, served):
    served(publish=["8009:9", "[::1]:8019:9"])
    for spec in ("8009:9", "[::1]:8019:9", "127.0.0.1:8009:9"):
        assert "is taken" in host.fails(125, "port", "add", "--publish-mode", "forward", "web", spec)
        assert "is taken" in host.fails(125, "pod", "create", "--publish-mode", "forward", "-p", spec, "other")
    with socket.create_server(("127.0.0.1", 8029)):
        assert "is taken" in host.fails(125, "port", "add", "--publish-mode", "forward", "web", "8029:9")
    host.run("port", "add", "--publish-mode", "forward", "web", "[::1]:8009:9")
    assert len(forwarders()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("what", ["add", "rm", "create"])
def test_killed_at_any_call(host, served, what):
    """What is listed answers, and nothing else does."""
    served(publish=["8009:9"])
    count, done = {"add": 300, "rm": 300, "create": 400}[what], None
    words = {
        "add": ["port", "add", "--publish-mode", "forward", "web", "0.0.0.0:8109:9", "0.0.0.0:8209:9"],
        "rm": ["port", "rm", "web", "8109"],
        "create": ["pod", "create", "--publish-mode", "forward", "-p", "0.0.0.0:8309:9", "more"],
    }[what]
    while done is None or done.returncode:
        if what == "rm":
            host.run("port", "add", "--publish-mode", "forward", "web", "0.0.0.0:8109:9", "0.0.0.0:8209:9", check=False)
        inject = ["strace", "-qq", "-o", "/dev/null", "-e", "trace=all", "-e", f"inject=all:signal=KILL:when={count}"]
        done = subprocess.run([*inject, NSRUN, *words], env=host.env, capture_output=True, timeout=120, check=False)
        assert done.returncode in (0, -9, 137), done
        if what == "create":
            host.run("pod", "prune")
            there = {pod["name"] for pod in host.json("pod", "ls")}
            wait_for(lambda there=there: len(forwarders()) == len(there))
            host.run("pod", "rm", "-f", "more", check=False)
            wait_for(lambda: is_free(8309))
        else:
            if (
                what == "rm"
            ):  # killed between the end of the socket and the list: the same command removes it from there
                host.run("port", "rm", "web", "8109", check=False)
            wait_for(
                lambda: (
                    {int(line.split(":")[1].split()[0]) for line in shown(host)}
                    == {port for port in (8009, 8109, 8209) if ask(port)}
                ),
                10,
                "what is listed answers",
            )
            for port in (8109, 8209):
                host.run("port", "rm", "web", port, check=False)
            assert {line.split(":")[1].split()[0] for line in shown(host)} == {"8009"}
        count += 211
        assert count < 20000


# ---- pods of users ------------------------------------------------------------------------------------------------------


def test_a_pod_made_without_root(host, alice, served):
    """pasta has the ports of create; later the forwarder has more, which come and go."""
    need(shutil.which("pasta"), "pasta is missing", "apt-get install passt")
    served(who=alice, mode="auto", publish=["8009:9"])
    assert forwarders() == [] and shown(alice) == {"9/tcp -> 0.0.0.0:8009"}
    done = alice.run("port", "add", "web", "0.0.0.0:8007-8008:7-8", "[::1]:8007:7", "0.0.0.0:8053:53/udp")
    assert "pasta can't" in done.stderr and done.stdout.count("(forward)") == 4
    (pid,) = forwarders()
    assert status(pid, "Uid").split() == [str(alice.uid)] * 4 and int(status(pid, "CapEff"), 16) == 0
    assert (status(pid, "Seccomp"), status(pid, "NoNewPrivs")) == ("2", "1")
    for address in ("127.0.0.1", "::1", "192.0.2.1"):
        with connect(8007, address) as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
    with client() as sock:
        sock.send(b"x")
        assert sock.recv(1) == b"X"
    assert "root" in alice.fails(125, "port", "add", "web", "80:9")
    assert "no nat" in alice.fails(2, "port", "add", "--publish-mode", "nat", "web", "8180:9")
    assert "pasta has these ports" in alice.fails(125, "port", "rm", "web", "8009")
    alice.run("port", "rm", "web", "8007", "8053/udp")
    assert shown(alice) == {"9/tcp -> 0.0.0.0:8009", "8/tcp -> 0.0.0.0:8008 (forward)"} and is_free(8007)
    alice.run("pod", "rm", "-f", "web")
    assert forwarders() == []


@pytest.mark.parametrize("network", ["pasta", "none"])
def test_a_pod_made_without_root_that_asks_for_it(host, alice, served, network):
    need(shutil.which("pasta"), "pasta is missing", "apt-get install passt")
    served("--network", network, who=alice, publish=["8009:9", "[::1]:8019:9"])
    assert ask(8009) == ask(8019, "::1") == ("127.0.0.1" if network == "none" else "192.0.2.1")
    alice.run("port", "rm", "web", "8009")
    assert ask(8009) == "" and ask(8019, "::1")
    kill_pid(alice.pod("web")["pid"])
    wait_for(lambda: forwarders() == [])


def test_a_pod_that_root_made_for_a_user(host, alice, served):
    """Root's forwarder, out of the owner's reach; the owner sees the ports, and root changes them."""
    env = {"SUDO_UID": str(alice.uid)}
    host.run("pod", "create", "--publish-mode", "forward", "-p", "0.0.0.0:8009:9", "theirs", env=env)
    alice.run("join", "theirs", "-d", "--name", "s", "--", sys.executable, "-IS", "-c", SERVER)
    wait_for(lambda: ask(8009) == host.pod("theirs")["network"]["ip"])
    (pid,) = forwarders()
    assert status(pid, "Uid").split() == ["65535"] * 4
    assert alice.sh("ls", f"/proc/{pid}/fd", check=False).returncode != 0
    assert shown(alice, "theirs") == shown(host, "theirs") == {"9/tcp -> 0.0.0.0:8009 (forward)"}
    assert "sudo" in alice.fails(125, "port", "rm", "theirs", "8009")
    host.run("port", "add", "--publish-mode", "forward", "theirs", "0.0.0.0:8109:9")
    assert len(shown(alice, "theirs")) == 2 and ask(8109)
    alice.run("pod", "stop", "-t", "0", "theirs")
    wait_for(lambda: forwarders() == [])
    assert is_free(8009)


# ---- words --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--publish-mode", "nat", "-p", "[::1]:8180:80"], 2, "forwarder only"),
        (["--publish-mode", "proxy", "-p", "0.0.0.0:8180:80"], 2, "unknown value"),
        (["-p", "[::1]8180:80"], 2, "not [IP:]"),
        (["-p", "[::1]:8180:80", "-p", "[::1]:8180:81"], 2, "published twice"),
        (["-p", "[::1]:0:80"], 2, "ports go from"),
        (["--network", "none", "-p", "0.0.0.0:8180:80"], 2, "nothing to forward"),
        (["--network", "host", "--publish-mode", "forward", "-p", "0.0.0.0:8180:80"], 2, "nothing to forward"),
        (["--network", "none", "--publish-mode", "nat", "-p", "0.0.0.0:8180:80"], 2, "nothing to forward"),
    ],
)
def test_what_is_refused(host, words, code, said):
    before = host.snapshot()
    assert said in host.fails(code, "pod", "create", *words)
    assert host.snapshot() == before


def test_a_free_port_of_each(host, served):
    pod = served(publish=["0.0.0.0::9", "[::1]::9"])
    assert len({port["host_port"] for port in pod["ports"]}) == 2
    for port in pod["ports"]:
        assert ask(port["host_port"], "127.0.0.1" if port["host_ip"] == "0.0.0.0" else "::1") == pod["network"]["ip"]


@not_editable
def test_what_strace_shows(host, tmp_path):
    host.run("pod", "create", "x")
    words = [
        "port",
        "add",
        "--publish-mode",
        "forward",
        "x",
        "0.0.0.0:20900:80",
        "127.0.0.1:20901:53/udp",
        "[::1]:20902:80",
    ]
    expected = Expected(host, words)
    by_nsrun, others, _ = traced(host, words, tmp_path)
    expected.check(by_nsrun, others)


def test_the_shell_form(host, served, tmp_path):
    """What explain prints as a script passes connections on as well."""
    need(shutil.which("socat"), "socat is missing", "apt-get install socat")
    pod = served(publish=["8009:9"])
    script = host.run(
        "explain", "--format", "shell", "port", "add", "--publish-mode", "forward", "web", "0.0.0.0:8109:9"
    ).stdout
    (tmp_path / "add.sh").write_text(script + "\nwait\n")
    with subprocess.Popen(["sh", tmp_path / "add.sh"], start_new_session=True) as shell:
        try:
            wait_for(lambda: ask(8109) == pod["network"]["ip"])
        finally:
            os.killpg(shell.pid, signal.SIGKILL)


def test_explain_names_it(host):
    plan = host.run("explain", "pod", "create", "--publish-mode", "forward", "-p", "0.0.0.0:8180:80", "x").stdout
    assert "nsrun-forward" in plan and "listen(fd, 4096)" in plan
    steps = json.loads(host.run("explain", "--format", "json", "pod", "create", "-p", "[::1]:8180:80", "x").stdout)
    assert "StartForwarder" in json.dumps(steps) or "nsrun-forward" in json.dumps(steps)
