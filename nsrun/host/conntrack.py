# SPDX-License-Identifier: Apache-2.0
"""Remove entries of the connection tracking that lead where a published port does not lead any more.

UDP has no end of a connection: an entry lives as long as somebody keeps sending, and all that belongs to it goes where the
first datagram went.  So a client that keeps its socket would be stuck on a pod that is gone, or, when it sent while no pod was
there, on this host itself (moby#8795).  And an entry that leads to an address must not lead to the next pod that has it.

We list, and delete what matches one by one, by its own words and its id: a kernel that did not know the filter of a deletion
would delete everything.  One without nf_conntrack_netlink can't be asked; then entries end by themselves, 30 to 120 seconds
after the last datagram.
"""

from __future__ import annotations

import _socket
import struct
from errno import EINVAL, ENOENT, EOPNOTSUPP, EPROTONOSUPPORT

from nsrun.errors import KernelError
from nsrun.host import wire
from nsrun.schema import is_number, read_setting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from nsrun.spec.options import Subnet
    from nsrun.types import Port

DELETE = 1 << 8 | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE
ORIGINAL, REPLY, IDENT, ZONE = 1, 2, 12, 18  # CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_ID, CTA_ZONE
UDP = 17


class Flow:
    """An entry: from whom to whom its first packet went, and who answers.  Addresses are in network byte order."""

    def __init__(self, body: bytes) -> None:
        self.raw = wire.attributes(body[4:])
        _, self.to, self.protocol, self.port = _tuple(self.raw.get(ORIGINAL, b""))
        self.answers, _, _, _ = _tuple(self.raw.get(REPLY, b""))
        self.family = _family(self.to)


def _tuple(data: bytes) -> tuple[bytes, bytes, int, int]:
    """Return (source, destination, protocol, port of the destination); 0 where there are no ports."""
    both = wire.attributes(data)
    address, protocol = wire.attributes(both.get(1, b"")), wire.attributes(both.get(2, b""))
    port = int.from_bytes(protocol.get(3, b""), "big")
    source, to = (1, 2) if 1 in address else (3, 4)  # CTA_IP_V4_SRC, CTA_IP_V4_DST; CTA_IP_V6_…
    return address.get(source, b""), address.get(to, b""), (protocol.get(1, b"") + b"\0")[0], port


def _family(address: bytes) -> int:
    return _socket.AF_INET if len(address) == 4 else _socket.AF_INET6


#: The kernel looks at its whole table for each question.  So up to so many entries, all of them are asked for at once …
FEW = 1000
#: … and for up to so many ports, the entries of each: to read what it answers takes us a hundred times as long as its looking.
FEW_PORTS = 32
ALL = struct.pack("=LHHLLL", 20, 1 << 8 | 1, 0x301, 0, 0, 0)  # IPCTNL_MSG_CT_GET; NLM_F_REQUEST | NLM_F_DUMP


def forget_addresses(*addresses: str) -> None:
    """Delete all entries that lead to addresses of the bridge.  The caller has just leased them, so they are a dead pod's."""
    count = _count()
    if not count:
        return
    wanted, asked = set(), []
    for ip in addresses:
        wanted.add(_socket.inet_pton(_socket.AF_INET6 if ":" in ip else _socket.AF_INET, ip))
        asked.append(wire.encode("flows_to6", pod_ip6=ip) if ":" in ip else wire.encode("flows_to", pod_ip=ip))
    with wire.open_socket(wire.NETLINK_NETFILTER) as sock:
        for request in [ALL] if count <= FEW else asked:
            _delete(sock, (flow for flow in _flows(sock, request) if flow.answers in wanted))


def _count() -> int:
    """Return how many entries this network namespace has; more than FEW when nobody says so."""
    try:
        with open("/proc/sys/net/netfilter/nf_conntrack_count", "rb") as file:
            return int(file.read())
    except (OSError, ValueError):
        return FEW + 1


def room() -> tuple[int, int]:
    """Return how many connections this network namespace tracks, and how many it may; 0: there is no limit.

    When all are in use, the kernel drops the first packet of each new one.
    """
    count, most = (read_setting(f"/proc/sys/net/netfilter/nf_conntrack_{which}") for which in ("count", "max"))
    return (int(count), int(most)) if is_number(count) and is_number(most) else (0, 0)


def forget_ports(ports: Iterable[Port], subnet: Subnet, pod_ip6: str) -> None:
    """Delete what is tracked of UDP to published ports, and leads to a pod or to this host.

    `subnet`: the bridge's; `pod_ip6`: an address of its IPv6 network; "": it has none.

    What goes through this host to another one, and has the same port, is left alone.
    """
    asked = {(port["host_ip"], port["host_port"]) for port in ports if port["protocol"] == "udp"}
    net6 = _socket.inet_pton(_socket.AF_INET6, pod_ip6)[:8] if pod_ip6 else b""
    local: dict[bytes, bool] = {}

    def leads_nowhere(flow: Flow) -> bool:
        if flow.protocol != UDP or len(flow.to) != len(flow.answers) or len(flow.to) not in (4, 16):
            return False
        wildcard = "0.0.0.0" if flow.family == _socket.AF_INET else "::"
        if not {(wildcard, flow.port), (_socket.inet_ntop(flow.family, flow.to), flow.port)} & asked:
            return False
        if flow.answers != flow.to:
            if flow.family == _socket.AF_INET:
                return int.from_bytes(flow.answers, "big") in subnet
            return bool(net6) and flow.answers.startswith(net6)
        if flow.to not in local:
            local[flow.to] = _is_local(flow.to)
        return local[flow.to]

    with wire.open_socket(wire.NETLINK_NETFILTER) as sock:
        for request in _questions(asked):
            _delete(sock, (flow for flow in _flows(sock, request) if leads_nowhere(flow)))


def _questions(asked: set[tuple[str, int]]) -> list[bytes]:
    """Return the requests whose answers have all entries of UDP to these addresses and ports, and maybe others."""
    ports = sorted({("6" if ":" in ip else "", port) for ip, port in asked})
    if len(ports) <= FEW_PORTS:
        return [wire.encode(f"udp_flows_to{version}", port=port) for version, port in ports]
    return [wire.encode(f"udp_flows{version}") for version in sorted({version for version, _ in ports})]


def _flows(sock: wire.Socket, request: bytes) -> list[Flow]:
    try:
        return [Flow(body) for body in wire.ask(sock, "conntrack -L", request)]
    except KernelError as error:
        if error.errno in (EINVAL, EOPNOTSUPP, EPROTONOSUPPORT):
            return []  # no connection tracking here, or none that can be asked
        raise


def _is_local(address: bytes) -> bool:
    """Return whether this host has an address: only then a socket can be bound to it.  ip(7)"""
    family = _family(address)
    with wire.Socket(family, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC) as sock:
        try:
            sock.bind((_socket.inet_ntop(family, address), 0))
        except OSError:
            return False
        return True


def _delete(sock: wire.Socket, flows: Iterator[Flow]) -> None:
    for flow in flows:
        body = struct.pack("=BBH", flow.family, 0, 0)
        for kind in (ORIGINAL, IDENT, ZONE):  # the id, so that an entry made meanwhile by the same words is left
            if data := flow.raw.get(kind, b""):
                nested = 0x8000 if kind == ORIGINAL else 0  # NLA_F_NESTED
                body += struct.pack("=HH", 4 + len(data), kind | nested) + data + bytes(-len(data) % 4)
        request = struct.pack("=LHHLL", 16 + len(body), DELETE, 5, 0, 0) + body  # NLM_F_REQUEST | NLM_F_ACK
        try:
            wire.talk(sock, [("conntrack -D", request)])
        except KernelError as error:
            if error.errno != ENOENT:  # it has ended
                raise
