# SPDX-License-Identifier: Apache-2.0
"""What the kernel says about the network of a process: its interfaces, sockets, routes and rules."""

from __future__ import annotations

import json
import os
import re
import struct
import sys
from dataclasses import dataclass
from errno import EIO

from nsrun import kernel
from nsrun.schema import is_number
from nsrun.teach.facts.entered import PLAIN, _as_owner, enter, printed_by
from nsrun.teach.facts.processes import read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any


@dataclass(frozen=True)
class Socket:
    """One line of proc_pid_net(5) for TCP; an address of IPv4 is as people write it, also where IPv6 carries it."""

    address: str
    port: int
    peer: str
    peer_port: int
    state: str  # ESTABLISHED, LISTEN, …; "" for others
    inode: int  # 0: no process has it any more, or it was not accepted yet
    uid: int  # of whoever made it


_TCP_STATES = {"01": "ESTABLISHED", "02": "SYN_SENT", "06": "TIME_WAIT", "08": "CLOSE_WAIT", "0A": "LISTEN"}


def tcp(pid: int) -> list[Socket]:
    """Return the TCP sockets of the network namespace of a process; [] when it has ended."""
    found = []
    for family in ("tcp", "tcp6"):
        try:
            lines = read(pid, f"net/{family}").split(b"\n")[1:]
        except OSError:
            continue
        for fields in (line.decode().split() for line in lines if line):
            (address, port), (peer, peer_port) = (_end(fields[1]), _end(fields[2]))
            found.append(
                Socket(address, port, peer, peer_port, _TCP_STATES.get(fields[3], ""), int(fields[9]), int(fields[7]))
            )
    return found


def _end(text: str) -> tuple[str, int]:
    import ipaddress

    words, _, port = text.partition(":")
    # the kernel prints words of 32 bits as they lie in memory
    raw = b"".join(int(words[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(words), 8))
    address = ipaddress.ip_address(raw)
    return str(getattr(address, "ipv4_mapped", None) or address), int(port, 16)


def holders(inode: int, among: Iterable[int] | None = None) -> list[int]:
    """Return the pids of the processes, all or some, that have a socket open."""
    pids = among if among is not None else map(int, filter(is_number, os.listdir("/proc")))
    return [pid for pid in pids if f"socket:[{inode}]" in _open_files(pid)]


def _open_files(pid: int) -> list[str]:
    """Return what the descriptors of a process are; [] when it has ended, or we may not look."""
    found = []
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            try:
                found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
            except FileNotFoundError:
                continue  # it was closed meanwhile
    except PermissionError:
        listed = _as_owner(pid, "find", f"/proc/{pid}/fd", "-type", "l", "-printf", "%l\\n")
        return listed.decode("utf-8", "surrogateescape").split("\n")
    except OSError:
        return []
    return found


def http(pid: int, address: str, port: int, meanwhile: Callable[[int], object] | None = None) -> str:
    """Return the body that a web server answers to a client in the network namespace of a process.

    `meanwhile` is called with the client's own port when the connection stands, before anything is asked for.
    Raise OSError when there is no answer.
    """
    import subprocess

    command = [*enter(pid, "net"), sys.executable, "-I", "-m", "nsrun.teach.client", address, str(port)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=PLAIN, cwd="/"
    ) as client:  # which ends by itself, whatever the server does
        assert client.stdin and client.stdout
        said = client.stdout.readline()
        if said.startswith(b"connected ") and meanwhile:
            meanwhile(int(said.split()[1]))
        client.stdin.close()
        answer = client.stdout.read()
    if not said.startswith(b"connected "):
        raise OSError(EIO, said.decode("utf-8", "replace").strip() or f"process {pid} has ended, or we may not join it")
    if client.returncode:
        raise OSError(EIO, "connected, but no answer came")
    return answer.decode("utf-8", "replace")


def ip_addresses(pid: int) -> list[dict[str, Any]]:
    """Return the interfaces in the network namespace of a process, as `ip -json -details address` prints them."""
    found: list[dict[str, Any]] = _json_of(pid, "ip", "-json", "-details", "address") or []
    return found


def routes(pid: int) -> list[dict[str, Any]]:
    """Return the routes of IPv4 in the network namespace of a process, as `ip -json route` prints them."""
    found: list[dict[str, Any]] = _json_of(pid, "ip", "-json", "route") or []
    return found


def tables(pid: int) -> dict[tuple[str, str], str]:
    """Return the tables of nf_tables in the network namespace of a process: (family, name) → what `nft list ruleset` prints.

    Its JSON is not asked for: over a table that has an owner nft 1.0.6 prints half of it, or crashes.
    """
    found = {}
    for text in re.split(r"^(?=table )", _in_netns(pid, "nft", "list", "ruleset"), flags=re.M)[1:]:
        _, family, name, _ = text.split(maxsplit=3)
        found[family, name] = text
    return found


def has_owner(table: str) -> bool:
    """Return whether one of the `tables` belongs to a process and ends with it: nft(8), "flags owner"."""
    return bool(re.search(r"^\tflags .*\bowner\b", table, re.M))


def _json_of(pid: int, *command: str) -> Any:
    printed = _in_netns(pid, *command).strip()
    return json.loads(printed) if printed else None


def _in_netns(pid: int, *command: str) -> str:
    """Return what a command prints in the network namespace of a process; "" when it fails."""
    try:
        inside = enter(pid, "net")
    except OSError:
        return ""
    return (printed_by([*inside, *command]) or b"").decode("utf-8", "replace")


def sockets(pid: int) -> Iterator[tuple[str, str, int]]:
    """Yield (tcp|tcp6, address in hexadecimal as the kernel prints it, port) of the sockets that listen in its network namespace.

    proc_pid_net(5)
    """
    for family in ("tcp", "tcp6"):
        try:
            lines = read(pid, f"net/{family}").split(b"\n")[1:]
        except OSError:
            continue
        for fields in (line.split() for line in lines if line):
            if fields[3] == b"0A":  # TCP_LISTEN
                address, _, port = fields[1].decode().partition(":")
                yield family, address, int(port, 16)


def listening(pid: int) -> set[int]:
    """Return the TCP ports that somebody listens on in a process's network namespace.

    The kernel is asked by sock_diag(7) from inside where that is allowed: for /proc/PID/net/tcp it goes through the
    whole machine's table of connections, which takes some ten milliseconds.
    """
    from nsrun.host import wire

    try:
        with kernel.Fd(os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)) as netns, kernel.inside_netns(netns):
            sock = wire.open_socket(4)  # NETLINK_SOCK_DIAG
    except OSError:
        return {port for _, _, port in sockets(pid)}
    found = set()
    with sock:
        for family in (2, 10):  # AF_INET, AF_INET6
            # SOCK_DIAG_BY_FAMILY, REQUEST|DUMP; of TCP those in state LISTEN
            request = struct.pack("=LHHLLBBBxL48x", 72, 20, 0x301, 0, 0, family, 6, 0, 1 << 10)
            try:
                bodies = wire.ask(sock, "ss -tln", request)
            except OSError:
                continue  # this kernel lacks tcp_diag or IPv6
            found |= {int.from_bytes(body[4:6], "big") for body in bodies}
    return found


@dataclass(frozen=True)
class Interface:
    """A network interface as proc_pid_net(5) shows it to those who are not in its namespace."""

    name: str
    index: int  # 0: not told, because it is down
    addresses: list[str]  # ADDRESS/PREFIX

    @property
    def up(self) -> bool:
        return self.index > 0


def interfaces(pid: int) -> list[Interface]:
    """Return the interfaces of a process's network namespace, for which nobody needs to enter it; [] when it has ended."""
    try:
        texts = [
            read(pid, f"net/{file}").decode("utf-8", "surrogateescape") for file in ("dev", "igmp", "route", "fib_trie")
        ]
    except OSError:
        return []
    names = [line.rpartition(":")[0].strip() for line in texts[0].split("\n")[2:] if ":" in line]
    # all that are up are members of 224.0.0.1 (RFC 1112), lo as well
    numbers = {f[1]: int(f[0]) for line in texts[1].split("\n") if len(f := line.split()) > 1 and is_number(f[0])}
    routes = [("lo", 127, 0xFF)] if "lo" in names else []
    for fields in (line.split() for line in texts[2].split("\n")[1:] if line):
        if mask := int(fields[7], 16):
            routes.append((fields[0], int(fields[1], 16), mask))
    found: dict[str, list[str]] = {name: [] for name in names}
    for address in _local(texts[3]):
        number = int.from_bytes(bytes(map(int, address.split("."))), "little")  # as the kernel prints those of a route
        for name, to, mask in routes:
            if number & mask == to and name in found:
                found[name].append(f"{address}/{mask.bit_count()}")
                break
    return [Interface(name, numbers.get(name, 0), found[name]) for name in names]


def _local(trie: str) -> list[str]:
    """Return the addresses in fib_trie that are the namespace's own."""
    found, last = {}, ""
    for line in trie.split("\n"):
        if "|-- " in line:
            last = line.rpartition(" ")[2]
        elif "/32 host LOCAL" in line:
            found[last] = True  # each stands there twice
    return list(found)


@dataclass(frozen=True)
class Link:
    """An interface of the caller's network namespace: rtnetlink(7), RTM_GETLINK."""

    index: int
    name: str
    master: int  # index of the bridge that it is a port of; 0: none
    peer: int  # index of the other end of a veth, in its own namespace; 0: none
    netns: int  # which namespace that is, as netns_number() tells it; -1: this one


def netns_number(pid: int) -> int:
    """Return the number by which the caller's network namespace knows a process's (ip-netns(8), nsid); -1: by none."""
    from nsrun.errors import KernelError
    from nsrun.host import wire

    request = struct.pack("=LHHLLBxxxHHI", 28, 90, 5, 0, 0, 0, 8, 2, pid)  # RTM_GETNSID, REQUEST|ACK; NETNSA_PID
    with wire.open_socket(wire.NETLINK_ROUTE) as sock:
        try:
            bodies = wire.ask(sock, f"ip netns (nsid of {pid})", request)
        except KernelError:
            return -1  # it has ended
    return struct.unpack("=i", wire.attributes(bodies[0][4:])[1])[0] if bodies else -1


def addresses(pid: int) -> set[str]:
    """Return the IPv4 addresses of the interfaces that are up in the network namespace of a process: proc_pid_net(5), fib_trie."""
    try:
        return set(_local(read(pid, "net/fib_trie").decode()))
    except OSError:
        return set()


def own_links() -> list[Link]:
    """Return the interfaces of the caller's network namespace.  Raise OSError when the kernel refuses."""
    from nsrun.host import wire

    request = struct.pack("=LHHLLBxHiII", 32, 18, 0x301, 0, 0, 0, 0, 0, 0, 0)  # RTM_GETLINK, REQUEST|DUMP
    found = []
    with wire.open_socket(wire.NETLINK_ROUTE) as sock:
        for body in wire.ask(sock, "ip link", request):
            told = wire.attributes(body[16:])
            name = told.get(3, b"").rstrip(b"\0").decode("utf-8", "surrogateescape")
            netns = struct.unpack("=i", told[37])[0] if 37 in told else -1
            master, peer = (int.from_bytes(told.get(key, b""), sys.byteorder) for key in (10, 5))
            found.append(Link(struct.unpack_from("=i", body, 4)[0], name, master, peer, netns))
    return found
