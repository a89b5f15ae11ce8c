# SPDX-License-Identifier: Apache-2.0
"""The host's side of a pod's network: a veth pair per pod, its lease, published ports; bridges.py has the bridges.

    pod A eth0 ── nsr0a580002 ┐
    pod B eth0 ── nsr0a580003 ┴ nsrun0 10.88.0.1/24 … routed and masqueraded by the host

The kernel keeps the books.  A pod's nf_tables table is named after its address, names are unique, and the table lives
as long as a socket that pause (for an owned pod, nsrun-hold) holds: so the pod that gets the table has the address, and
whatever the owner of a pod does to its eth0, nobody else gets an address to which that table still forwards.  A
published port is a bound socket.  So nothing here needs a lease file, and when pause is killed, nothing is left but an
idle bridge with its table, which the next command removes.

A filter on a pod's veth checks what the pod sends (portfilter.py), and ends with the veth.  Which port of the bridge
leads to whom is configured for the bridge and for the host, never learned.

Without nf_tables a pod is closed in.  Its lease is a bound socket, its filters let nothing pass but what stays on the bridge, and
this host is told neither to forward nor to route 127.0.0.1 to a pod; nsrun-forward publishes its ports.

IPv6 stands beside that.  A pod's address is the prefix of the bridge's ULA and the pod's IPv4 address, so it has no lease of
its own; its table of family ip6 belongs to the same socket.  The bridge and the pod know each other's MAC by configuration,
and all that a pod sends goes by way of the bridge's address, so there is no neighbour discovery.

Links are identified by index and by an alias with the pod's id; a note also records the network namespace in which the
link was made.  A link that does not match is not ours, and is left alone.

See veth(4), bridge(8), nft(8) "owner"; messages.py has the reasons for the rules.
"""

from __future__ import annotations

import _socket
import os
import sys
from errno import (
    EADDRINUSE,
    EADDRNOTAVAIL,
    EAFNOSUPPORT,
    EEXIST,
    EINVAL,
    ENODEV,
    EOPNOTSUPP,
    EPERM,
    EPROTONOSUPPORT,
    EXFULL,
)

from nsrun import kernel
from nsrun.errors import BadInput, KernelError
from nsrun.host import portfilter, wire
from nsrun.schema import is_number
from nsrun.spec.options import ANY, NO_IPV6, PROTOCOLS, at, ip_number, ip_text, published

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any

    from nsrun.spec.options import Published, Subnet
    from nsrun.types import Port


#: What the names of a pod's veth and of its lease begin with; eight hexadecimal digits follow, which are the address.
VETH, LEASE = "nsr", "nsrun-"

#: Settings by which a host takes advice from its network: below /proc/sys/net, with the interface left out.
ADVICE = ("ipv6/conf/{}/accept_ra", "ipv6/conf/{}/accept_redirects", "ipv4/conf/{}/accept_redirects")


#: What distinguishes messages and tables of family ip6.
V6 = "6"


def nft_family(version: str) -> str:
    return f"ip{version}"


def address6(network: str, ip: str) -> str:
    """Return the IPv6 address that goes with a pod's IPv4 address; `network` is any address of the /64."""
    return text6(net6_of(network) + bytes(4) + ip_number(ip).to_bytes(4, "big"))


def net6_of(ip6: str) -> bytes:
    """Return the prefix of an address, which is its first half."""
    return _socket.inet_pton(_socket.AF_INET6, ip6)[:8]


def text6(raw: bytes) -> str:
    return _socket.inet_ntop(_socket.AF_INET6, raw)


def veth_name(ip: str) -> str:
    """Return the name of a pod's veth.

    An interface name holds 15 bytes: the address in hex fits, and identifies the pod.
    """
    return f"{VETH}{ip_number(ip):08x}"


def table_name(ip: str) -> str:
    """Return the name of the pod's table, which is its lease on the address."""
    return f"{LEASE}{ip_number(ip):08x}"


def addresses(names: Iterable[str], start: str) -> Iterator[int]:
    """Return the addresses that the names of veths (`start` is VETH) or of leases (LEASE) have, as numbers; other names have none."""
    for name in names:
        digits = name[len(start) :]
        if name.startswith(start) and len(digits) == 8 and set("0123456789abcdef").issuperset(digits):
            yield int(digits, 16)


def alias_of(ident: str) -> str:
    """Return the alias of a pod's veth, by which `ip link` shows whose it is."""
    return f"nsrun:{ident}"


def labels_of(ident: str) -> tuple[bytes, bytes]:
    """Return the conntrack labels of a pod's connections: of those that it began, and of those that reached it by a published port.

    Each takes half of the 16 bytes, since a connection between pods of two networks has both: of the one and of the other.
    """
    half = bytes.fromhex(ident).rjust(8, b"\0")
    return half + bytes(8), bytes(8) + half


def mac_of(ip: str) -> bytes:
    """Return a locally administered MAC, the same for the same address: so a neighbour's ARP entry never goes stale."""
    return portfilter.MAC_PREFIX.to_bytes(2, "big") + ip_number(ip).to_bytes(4, "big")


def netns_cookie() -> int:
    """Return a number for this thread's network namespace that no other has, nor will have until the next boot.

    It is SO_NETNS_COOKIE, Linux 5.14; the inode of /proc/self/ns/net is reused when the namespace is gone.
    """
    with wire.Socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC) as sock:
        return int.from_bytes(sock.getsockopt(_socket.SOL_SOCKET, 71, 8), sys.byteorder)


def link_identity(sock: wire.Socket, index: int) -> tuple[str, str] | None:
    """Return the (name, alias) of the interface with this index; None when there is none."""
    try:
        (body,) = wire.ask(sock, f"ip link show (index {index})", wire.encode("get_link", index=index))
    except KernelError as error:
        if error.errno == ENODEV:
            return None
        raise
    found = wire.attributes(body[16:])
    name, alias = (found.get(key, b"").rstrip(b"\0").decode(errors="replace") for key in (3, 20))
    return name, alias


def interfaces() -> dict[str, int]:
    return {name: index for index, name in _socket.if_nameindex()}


def link_names() -> set[str]:
    """Return the names of all links: proc_net(5), dev.  A dump of the links themselves takes ten times as long."""
    with open("/proc/thread-self/net/dev", "rb") as file:
        return {os.fsdecode(line.partition(b":")[0].strip()) for line in file.readlines()[2:]}


def write(path: str, value: str) -> None:
    with open(path, "w") as file:
        file.write(value)


def connect(
    sock: wire.Socket,
    netns: int,
    bridge: str,
    subnet: Subnet,
    bridge_index: int,
    wanted_ip: str,
    ident: str,
    mtu: int,
    gateway6: str = "",
    isolated: bool = False,
    closed: bool = False,
) -> tuple[str, int, _socket.socket]:
    """Lease the first free address (or the wanted one) and make the pair; return (address, index of our end, the
    lease).  With `gateway6`, the pod has an IPv6 address too (address6); `isolated` and `closed` are as for secure_port().
    Both ends have this `mtu`, in bytes.

    The lease is a socket: the address is the pod's as long as it is open.  An address is free when its table and its
    veth are gone.  Raise BadInput when the wanted one is taken, or all are, or the bridge has no port left.
    """
    from nsrun.host.conntrack import forget_addresses

    candidates: Iterable[int]
    if wanted_ip:
        number = ip_number(wanted_ip)
        if number not in subnet or number in (subnet.first, subnet.last, ip_number(subnet.gateway)):
            raise BadInput(f"--ip {wanted_ip} is not a free address of {subnet}")
        candidates = [number]
    else:
        candidates = free_addresses(subnet, {*addresses(link_names(), VETH), *(() if closed else leases())})
    for number in candidates:
        ip = ip_text(number)
        table = bound_lease(ip) if closed else lease(ip)
        if table is None:
            continue
        try:
            ip6 = address6(gateway6, ip) if gateway6 else ""
            if not closed:
                forget_addresses(ip, *([ip6] if ip6 else []))
            limits = ((subnet, gateway6) if isolated else None, subnet if closed else None)
            port = (sock, netns, bridge, bridge_index, ip, ident, mtu, ip6, *limits)
            index = _make_port(*port)
            if not index and wanted_ip:  # we have the lease, so its pod has ended: the kernel takes the veth away
                wait(lambda: veth_name(wanted_ip) not in link_names(), 5.0)
                index = _make_port(*port)
        except BaseException:
            table.close()
            raise
        if index:
            return ip, index, table
        table.close()
        if wanted_ip:
            raise BadInput(
                f"--ip {wanted_ip} was the address of a pod that has ended, and its veth {veth_name(ip)} is still there",
                hint=f"something has the network namespace of that pod: nsrun ns ls; or: ip link del {veth_name(ip)}",
            )
    if wanted_ip:
        raise BadInput(f"--ip {wanted_ip} is taken by another pod", hint="nsrun pod ls shows the addresses")
    raise BadInput(f"all addresses of {subnet} are in use", hint="remove a pod: nsrun pod ls")


def free_addresses(subnet: Subnet, taken: set[int]) -> Iterator[int]:
    """Return the addresses that pods may have of a bridge's network and that are not taken, one by one: there may be millions."""
    gateway = ip_number(subnet.gateway)
    return (number for number in range(subnet.first + 2, subnet.last) if number not in taken and number != gateway)


def lease(ip: str) -> wire.Socket | None:
    """Make the pod's table, still empty; return its socket, with which it ends.

    Return None when another pod has the table.
    """
    return make_table(table_name(ip))


#: A port of TCP that IANA has given to nobody; only root may bind it (ip_unprivileged_port_start).
LEASED_PORT = 4


def bound_lease(ip: str) -> _socket.socket | None:
    """Lease an address where there is no nf_tables, by a socket that is bound to it and to LEASED_PORT; None when another pod has it.

    It does not listen, and nothing reaches it, since the address is not this host's: ip(7), IP_FREEBIND.
    """
    sock = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(_socket.IPPROTO_IP, 15, 1)  # IP_FREEBIND
        sock.bind((ip, LEASED_PORT))
    except OSError as error:
        sock.close()
        if error.errno == EADDRINUSE:
            return None
        raise KernelError(error.errno or 0, f"bind({ip}:{LEASED_PORT})") from None
    return sock


def make_table(name: str) -> wire.Socket | None:
    """Make an empty table that ends with the socket, which is returned; None when there is one of this name."""
    sock = wire.open_socket(wire.NETLINK_NETFILTER)
    what = f"nft add table ip {name} {{ flags owner; }}"
    try:
        wire.talk(
            sock,
            [
                ("nft batch", wire.encode("batch_begin")),
                (what, wire.encode("new_table", table=name)),
                ("nft batch", wire.encode("batch_end")),
            ],
        )
    except BaseException as error:
        sock.close()
        if isinstance(error, KernelError) and error.call == what and error.errno in (EEXIST, EPERM):
            return None
        raise
    return sock


#: What the kernel answers where it has no nf_tables: there are no tables then.  nfnetlink.c
NO_TABLES = (EPROTONOSUPPORT, EOPNOTSUPP, EINVAL)


def ask_tables(version: str = "") -> list[bytes]:
    """Return the answers about all tables of a family in this network namespace.  Raise OSError, also for a filter that refuses it."""
    with wire.open_socket(wire.NETLINK_NETFILTER) as sock:
        return wire.ask(sock, "nft list tables", wire.encode(f"get_tables{version}"))


def tables(version: str = "") -> set[str]:
    """Return the names of all tables of nsrun in this network namespace, pods' and bridges', of family ip, or ip6 for V6."""
    try:
        bodies = ask_tables(version)
    except OSError as error:
        if error.errno not in NO_TABLES:
            raise
        return set()
    names = (wire.attributes(body[4:]).get(1, b"").rstrip(b"\0").decode(errors="replace") for body in bodies)
    return {name for name in names if name.startswith(LEASE) and len(name) == len(LEASE) + 8}


def leases() -> set[int]:
    """Return the addresses that the pods' tables lease."""
    return set(addresses(tables(), LEASE))


def _make_port(
    sock: wire.Socket,
    netns: int,
    bridge: str,
    bridge_index: int,
    ip: str,
    ident: str,
    mtu: int,
    ip6: str,
    alone: tuple[Subnet, str] | None,
    closed: Subnet | None,
) -> int:
    """Make the pair, and bring this end up when the filter is on it; return its index, or 0 when the name is taken."""
    name, mac = veth_name(ip), mac_of(ip)
    message = wire.encode("new_veth", veth=name, bridge_index=bridge_index, netns_fd=netns, mac=mac, mtu=mtu)
    text = f"ip link add {name} mtu {mtu} master {bridge} type veth peer name eth0 mtu {mtu} netns {netns}"
    try:
        wire.talk(sock, [(text, message)])
    except KernelError as error:
        if error.errno == EEXIST:
            return 0
        if error.errno == EXFULL:
            raise BadInput(
                f"no pod can be added to the bridge {bridge}: it has 1023 ports, and Linux allows no more",
                hint="remove a pod: nsrun pod ls; or make another bridge: nsrun network create",
            ) from None
        raise
    index = _socket.if_nametoindex(name)
    try:
        secure_port(sock, name, index, bridge, bridge_index, ip, ident, ip6, alone, closed)
    except BaseException:
        wire.talk(sock, [(f"ip link del {name}", wire.encode("del_link", index=index))])
        raise
    return index


def secure_port(
    sock: wire.Socket,
    name: str,
    index: int,
    bridge: str,
    bridge_index: int,
    ip: str,
    ident: str,
    ip6: str = "",
    alone: tuple[Subnet, str] | None = None,
    closed: Subnet | None = None,
) -> None:
    """Configure who is behind a port of the bridge and what may come from it; then bring it up.

    `alone`: the bridge's IPv4 network and its IPv6 address, when the pod is isolated; then nothing may come from or go to another
    pod.  `closed`: the former, when the pod is closed in; then nothing may come from or go to where the bridge does not lead.
    """
    mac, device = mac_of(ip), f"dev {name}"
    mac_text = ":".join(f"{byte:02x}" for byte in mac)
    six = V6 if ip6 else ""
    words: dict[str, object] = {"index": index}
    if ip6:
        words |= zip(("high6", "low6"), _words(net6_of(ip6)), strict=True)
    if subnet := alone[0] if alone else closed:
        own = wire.mac_of_link(bridge)
        words |= {"mac_high": int.from_bytes(own[:4], "big"), "mac_low": int.from_bytes(own[4:], "big")}
        words |= {"gateway_word": ip_number(subnet.gateway), "net_word": subnet.first, "mask_word": subnet.mask}
        if ip6 and alone:
            words |= zip(("third6", "fourth6"), _words(_socket.inet_pton(_socket.AF_INET6, alone[1])[8:]), strict=True)
        kind = ("closed_" if closed else "") + ("isolating_" if alone else "")
        sent, arrives = f"{kind}filter{six}", f"{kind if closed else ''}arrival_filter{six}"
        requests = [
            (f"tc qdisc add {device} clsact", wire.encode("both_ways", index=index)),
            (f"tc filter add {device} ingress bpf direct-action …", wire.encode(sent, ip_word=ip_number(ip), **words)),
            (f"tc filter add {device} egress bpf direct-action …", wire.encode(arrives, **words)),
        ]  # fmt: skip
    else:
        requests = [
            (f"tc qdisc add {device} ingress", wire.encode("ingress", index=index)),
            (f"tc filter add {device} ingress bpf direct-action …", wire.encode(f"port_filter{six}", ip_word=ip_number(ip), **words)),
        ]  # fmt: skip
    text = f"bridge fdb replace {mac_text} {device} master static sticky"
    requests.append((text, wire.encode("fdb_entry", index=index, mac=mac)))
    text = f"lladdr {mac_text} dev {bridge} nud permanent"
    message = wire.encode("neighbour", bridge_index=bridge_index, pod_ip=ip, mac=mac)
    requests.append((f"ip neighbour replace {ip} {text}", message))
    if ip6:
        message = wire.encode("neighbour6", index=bridge_index, pod_ip6=ip6, mac=mac)
        requests.append((f"ip -6 neighbour replace {ip6} {text}", message))
    text = f"ip link set {name} up alias {alias_of(ident)}; bridge link set {device} learning off flood off …"
    message = wire.encode("port_up", index=index, alias=alias_of(ident))
    wire.talk(sock, [*requests, (text, message)])


def _words(half: bytes) -> tuple[int, int]:
    """Return half of an IPv6 address as two words of a program."""
    return int.from_bytes(half[:4], "big"), int.from_bytes(half[4:], "big")


def address_message(index: int, ip: str, bits: int) -> bytes:
    """Return the message that gives an interface an IPv4 address and the length of its prefix."""
    return wire.encode("new_address", index=index, pod_ip=ip, prefix=bytes((_socket.AF_INET, bits)))


def configure_pod(
    ip: str, subnet: Subnet, ip6: str = "", gateway6: str = "", mac: bytes = b"", isolated: bool = False
) -> None:
    """In the pod's network namespace, bring up lo and eth0, and set the addresses and the default routes.

    `mac`: the bridge's, which need not be asked for by neighbour discovery then, and in a pod that is `isolated` by ARP neither.
    """
    gateway = subnet.gateway
    with wire.open_socket(wire.NETLINK_ROUTE) as sock:
        index = _socket.if_nametoindex("eth0")
        requests = [
            ("ip link set lo up", wire.encode("link_up", index=_socket.if_nametoindex("lo"))),
            (f"ip address add {ip}/{subnet.bits} dev eth0", address_message(index, ip, subnet.bits)),
        ]
        if ip6:
            text = f"ip -6 address add {ip6}/128 dev eth0 nodad"
            requests.append((text, wire.encode("pod_address6", index=index, pod_ip6=ip6)))
        requests += [
            ("ip link set eth0 up", wire.encode("link_up", index=index)),
            (f"ip route add default via {gateway}", wire.encode("default_route", gateway=gateway)),
        ]
        if isolated:
            text = f"ip neighbour replace {gateway} lladdr … dev eth0 nud permanent"
            requests.append((text, wire.encode("neighbour_gateway", index=index, gateway=gateway, mac=mac)))
        if ip6:
            text = f"ip -6 neighbour replace {gateway6} lladdr … dev eth0 nud permanent"
            requests.append((text, wire.encode("neighbour6", index=index, pod_ip6=gateway6, mac=mac)))
            text = f"ip -6 route add default via {gateway6} dev eth0 onlink"
            requests.append((text, wire.encode("default_route6", index=index, gateway6=gateway6)))
        wire.talk(sock, requests)


def trust_no_router(link_local: bool) -> None:
    """In the pod's network namespace, before eth0 is up, make it ignore router advertisements and redirects.

    Unless `link_local`, eth0 gets no link-local address: the host drops what has one.
    """
    for setting in ADVICE:
        for where in ("all", "default", "eth0"):
            try:
                write(f"/proc/sys/net/{setting.format(where)}", "0")
            except FileNotFoundError:
                continue  # no IPv6 here
    if not link_local:
        write("/proc/sys/net/ipv6/conf/eth0/addr_gen_mode", "1")


def loopback_message() -> bytes:
    """Return the message that brings lo up in the network namespace that we are in; its index is the same in all of them."""
    return wire.encode("link_up", index=_socket.if_nametoindex("lo"))


def loopback_up() -> None:
    with wire.open_socket(wire.NETLINK_ROUTE) as sock:
        wire.talk(sock, [("ip link set lo up", loopback_message())])


def raise_open_files(more: int) -> None:
    """Raise the limit of open files by `more`, as far as allowed: each published port is one.  getrlimit(2)."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = more + 256
    if 0 <= soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard < 0 else min(wanted, hard), hard))


def hold_port(
    host_ip: str,
    port: int,
    protocol: str,
    holder: Callable[[str, int, str], str],
    released: Callable[[str, int, str], bool],
    to_listen: bool = False,
) -> tuple[_socket.socket, int]:
    """Return a bound socket: while it is open, no other program and no other pod can have this port (moby#13024).

    `holder` tells which pod has a port, for the hint of an error.  A port that a living pod has `released` (release_port) is
    bound beside the socket that this pod still has, and one of TCP beside connections that have ended (_bind_beside).
    With `to_listen`, bind it as a server does that sets SO_REUSEADDR (socket(7)): connections that ended in the last minute
    do not count, and of UDP there is room for what comes.
    """
    kind = _socket.SOCK_DGRAM if protocol == "udp" else _socket.SOCK_STREAM
    try:
        sock = _socket.socket(_socket.AF_INET6 if ":" in host_ip else _socket.AF_INET, kind | _socket.SOCK_CLOEXEC)
    except OSError as error:
        if error.errno != EAFNOSUPPORT:
            raise
        raise BadInput(
            f"{at(host_ip, port)} can't be published: {NO_IPV6}", hint="write 127.0.0.1", errno=EAFNOSUPPORT
        ) from None
    try:
        if ":" in host_ip:
            sock.setsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, 1)
        if protocol == "udp" and not to_listen:
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVBUF, 0)  # nobody reads from it: keep next to nothing
        elif protocol == "tcp" and to_listen:
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host_ip, port))
        except OSError as error:
            if error.errno != EADDRINUSE or not port:
                raise
            ended = protocol == "tcp" and _sockets_of(host_ip, port, protocol) == (set(), True)
            if not ended and not released(host_ip, port, protocol):
                raise
            _bind_beside(sock, host_ip, port, protocol, to_listen)
    except OSError as error:
        sock.close()
        if error.errno == EADDRINUSE:
            raise BadInput(
                f"port {at(host_ip, port)}/{protocol} is taken",
                hint=holder(host_ip, port, protocol) or _who_has(host_ip, port, protocol),
                errno=EADDRINUSE,
            ) from None
        if error.errno == EADDRNOTAVAIL:
            raise BadInput(
                f"{host_ip} is not an address of this host", hint="ip address shows them", errno=EADDRNOTAVAIL
            ) from None
        raise
    return sock, sock.getsockname()[1]


def _bind_beside(sock: _socket.socket, host_ip: str, port: int, protocol: str, to_listen: bool) -> None:
    """Bind beside sockets that have SO_REUSEADDR: of connections that have ended (TIME_WAIT), or of a pod that has released the port.

    When ours has SO_REUSEADDR no more, nobody else can bind the port, nor listen who has bound it before: socket(7).  Meanwhile,
    no other nsrun of this network namespace does the same; and whoever has begun to listen is found, and has the port.
    Raise OSError EADDRINUSE when somebody has it.
    """
    from fcntl import LOCK_EX, LOCK_NB, flock

    with kernel.Fd(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)) as netns:

        def locked() -> bool:
            try:
                flock(netns, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                return False
            return True

        if not wait(locked, 1.0):  # anybody may lock it for as long as they like
            raise OSError(EADDRINUSE, os.strerror(EADDRINUSE))
        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        sock.bind((host_ip, port))
        if to_listen:  # listen(2) asks again
            return
        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 0)
        if protocol == "tcp" and _sockets_of(host_ip, port, protocol)[0]:
            raise OSError(EADDRINUSE, os.strerror(EADDRINUSE))


def hold_ports(
    ports: Sequence[Published], holder: Callable[[str, int, str], str], released: Callable[[str, int, str], bool]
) -> list[tuple[_socket.socket, int]]:
    """Hold all of these ports (hold_port), in their order.

    A port of any number that is published in both families has the same number in both.
    """
    held: dict[int, tuple[_socket.socket, int]] = {}
    others: dict[tuple[int, str], list[int]] = {}  # of [::] and any number, the last of them first
    for index in range(len(ports) - 1, -1, -1):
        ip, host, pod, protocol = ports[index]
        if (ip, host) == ("::", 0):
            others.setdefault((pod, protocol), []).append(index)
    try:
        for index, (ip, host, pod, protocol) in enumerate(ports):
            if index in held:
                continue
            twin = -1
            if (ip, host) == ("0.0.0.0", 0):
                of_this = others.get((pod, protocol), [])
                while of_this and twin < index:
                    twin = of_this.pop()
            if twin < index:
                held[index] = hold_port(ip, host, protocol, holder, released)
                continue
            for attempt in range(20):
                sock, number = hold_port(ip, host, protocol, holder, released)
                try:
                    held[twin] = hold_port("::", number, protocol, holder, released)
                except BadInput as error:
                    sock.close()
                    if error.errno != EADDRINUSE or attempt == 19:
                        raise
                else:
                    held[index] = sock, number
                    break
    except BaseException:
        for sock, _ in held.values():
            sock.close()
        raise
    return [held[index] for index in range(len(ports))]


CHAINS = ("prerouting", "output", "postrouting", "guard", "forward")


def ports_by_map(ports: Iterable[Published], version: str = "") -> list[tuple[str, str, list[Published]]]:
    """Return (map of the pod's table, protocol, its ports) for each map that has some of a family; messages.py, MAPS."""
    found: dict[tuple[str, bool], list[Published]] = {(p, every): [] for p in PROTOCOLS for every in (True, False)}
    for port in ports:
        if (":" in port[0]) == bool(version):
            found[port[3], port[0] in ANY].append(port)
    return [
        (("" if protocol == "tcp" else f"{protocol}-") + ("ports" if every else "addresses"), protocol, some)
        for (protocol, every), some in found.items()
        if some
    ]


def rules(
    table: str, ident: str, bridge: str, pod_ip: str, subnet: Subnet, ports: list[Port], pod_ip6: str = ""
) -> list[tuple[str, bytes]]:
    """Return the content of the pod's own nf_tables tables as (nft command, message) …

    The table of family ip is there already, being the lease; that of family ip6 is made.
    """
    requests = [("nft batch", wire.encode("batch_begin"))]
    for chain in CHAINS:
        requests.append((f"nft add chain ip {table} {chain}", wire.encode(f"chain_{chain}", table=table)))
    began, reached = labels = labels_of(ident)
    on_bridge = {"table": table, "bridge": bridge, "pod_ip": pod_ip}
    neighbours = {"subnet": ip_text(subnet.first), "netmask": ip_text(subnet.mask)}
    for text, data in (
        ("guard", wire.encode("guard_loopback", table=table, bridge=bridge)),
        ("postrouting", wire.encode("masquerade_out", **on_bridge)),
        ("postrouting", wire.encode("masquerade_loopback", **on_bridge)),
        ("postrouting", wire.encode("masquerade_hairpin", **on_bridge, **neighbours)),
        ("forward", wire.encode("label_out", **on_bridge, began=began)),
        ("forward", wire.encode("label_in", **on_bridge, reached=reached)),
        ("forward", wire.encode("forward_began", **on_bridge, began=began)),
        ("forward", wire.encode("forward_reached", **on_bridge, reached=reached)),
        ("forward", wire.encode("forward_related", **on_bridge)),
        ("forward", wire.encode("forward_closed", **on_bridge)),
    ):
        requests.append((f"nft add rule ip {table} {text}", data))
    requests += forwarding(table, pod_ip, ports)
    if pod_ip6:
        requests += _rules6(table, bridge, labels, pod_ip6, ports)
    return [*requests, ("nft batch", wire.encode("batch_end"))]


def _rules6(
    table: str, bridge: str, labels: tuple[bytes, bytes], pod_ip6: str, ports: list[Port]
) -> list[tuple[str, bytes]]:
    """Return what makes and fills the pod's table of family ip6; messages.py has the reasons for the rules."""
    requests = [(f"nft add table ip6 {table} {{ flags owner; }}", wire.encode("new_table6", table=table))]
    chains = ("prerouting", "output") if any(":" in port["host_ip"] for port in ports) else ()
    for chain in (*chains, "postrouting", "forward"):
        requests.append((f"nft add chain ip6 {table} {chain}", wire.encode(f"chain_{chain}6", table=table)))
    on_bridge, (began, reached) = {"table": table, "bridge": bridge, "pod_ip6": pod_ip6}, labels
    for text, data in (
        ("postrouting", wire.encode("masquerade_out6", **on_bridge)),
        ("postrouting", wire.encode("masquerade_hairpin6", **on_bridge, net6=net6_of(pod_ip6))),
        ("forward", wire.encode("label_out6", **on_bridge, began=began)),
        ("forward", wire.encode("label_in6", **on_bridge, reached=reached)),
        ("forward", wire.encode("forward_began6", **on_bridge, began=began)),
        ("forward", wire.encode("forward_reached6", **on_bridge, reached=reached)),
        ("forward", wire.encode("forward_related6", **on_bridge)),
        ("forward", wire.encode("forward_closed6", **on_bridge)),
    ):
        requests.append((f"nft add rule ip6 {table} {text}", data))
    return [*requests, *forwarding(table, pod_ip6, ports, V6)]


def forwarding(table: str, pod_ip: str, ports: list[Port], version: str = "") -> list[tuple[str, bytes]]:
    """Return what forwards ports of this host to an address of a pod, as (nft command, message) …; the two chains are there."""
    requests, family = [], nft_family(version)
    for name, _, some in ports_by_map(published(ports), version):
        requests.append((f"nft add map {family} {table} {name}", wire.encode(f"map_{name}{version}", table=table)))
        for first in range(0, len(some), 1000):  # an attribute holds 64 KiB
            items: list[dict[str, object]] = [
                {"port": host, f"pod_ip{version}": pod_ip, "pod_port": pod}
                | ({f"host_ip{version}": ip} if name.endswith("addresses") else {})
                for ip, host, pod, _ in some[first : first + 1000]
            ]
            text = f"nft add element {family} {table} {name}"
            requests.append((text, wire.encode_list(f"elements_{name}{version}", items, table=table)))
        for chain in ("prerouting", "output"):
            text = f"nft add rule {family} {table} {chain} dnat to map @{name}"
            requests.append((text, wire.encode(f"publish_{name}_{chain}{version}", table=table)))
    return requests


def only_forwarding(table: str, pod_ip: str, ports: list[Port], pod_ip6: str = "") -> list[tuple[str, bytes]]:
    """Return the content of the tables for ports that a pod got later; all else is in the pod's own."""
    requests = [("nft batch", wire.encode("batch_begin"))]
    for version, address in (("", pod_ip), (V6, pod_ip6)):
        family = nft_family(version)
        if not ports_by_map(published(ports), version):
            continue
        if version:
            requests.append((f"nft add table ip6 {table} {{ flags owner; }}", wire.encode("new_table6", table=table)))
        for chain in ("prerouting", "output"):
            text = f"nft add chain {family} {table} {chain}"
            requests.append((text, wire.encode(f"chain_{chain}{version}", table=table)))
        requests += forwarding(table, address, ports, version)
    return [*requests, ("nft batch", wire.encode("batch_end"))]


def withdraw(sock: wire.Socket, table: str, ports: list[Port]) -> None:
    """Remove ports from the tables of a name, through their owner's socket (another's, by pidfd_getfd): nothing is forwarded from then on."""
    requests = [("nft batch", wire.encode("batch_begin"))]
    for version in ("", V6):
        for name, _, some in ports_by_map(published(ports), version):
            for first in range(0, len(some), 1000):
                items: list[dict[str, object]] = [
                    {"port": host} | ({f"host_ip{version}": ip} if name.endswith("addresses") else {})
                    for ip, host, _, _ in some[first : first + 1000]
                ]
                text = f"nft delete element {nft_family(version)} {table} {name}"
                requests.append((text, wire.encode_list(f"no_elements_{name}{version}", items, table=table)))
    wire.talk(sock, [*requests, ("nft batch", wire.encode("batch_end"))])


def release_port(sock: _socket.socket) -> None:
    """Let others have the port of a bound socket that stays open: programs that set SO_REUSEADDR, as servers do, and pods.

    Its process can't be told to close it.  socket(7)
    """
    sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)


def _sockets_of(host_ip: str, port: int, protocol: str) -> tuple[set[str], bool]:
    """Return the sockets that have a port as proc_pid_fd(5) names them, of TCP those that listen, and whether connections linger."""
    inodes, lingers = set(), False
    # a socket of IPv6 may have it for IPv4 as well, but not the other way round
    for file in (f"/proc/net/{protocol}6", *(() if ":" in host_ip else (f"/proc/net/{protocol}",))):
        try:
            with open(file, errors="surrogateescape") as lines:
                for fields in (line.split() for line in list(lines)[1:]):
                    if int(fields[1].rpartition(":")[2], 16) == port:
                        lingers |= (protocol, fields[3]) == ("tcp", "06")  # TIME_WAIT
                        if protocol == "udp" or fields[3] == "0A":  # LISTEN
                            inodes.add(f"socket:[{fields[9]}]")
        except OSError:
            continue
    return inodes, lingers


def _who_has(host_ip: str, port: int, protocol: str) -> str:
    """Return which program has a port that no pod of ours has, as far as the kernel's tables show."""
    inodes, lingers = _sockets_of(host_ip, port, protocol)
    for pid in filter(is_number, os.listdir("/proc") if inodes else []):
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                if os.readlink(f"/proc/{pid}/fd/{fd}") in inodes:
                    with open(f"/proc/{pid}/comm", errors="surrogateescape") as name:
                        return f"by {name.read().strip()!r}, process {pid}; stop it, or take another port"
        except OSError:
            continue
    if inodes:
        return f"by a program of another user: sudo ss -ln{protocol[0]}p 'sport = {port}'"
    if lingers:
        return "by connections that have just ended (TIME_WAIT): try again in a minute, or take another port"
    return "by a socket that is bound and does not listen: perhaps of another user's pod, or one of another --root (sudo nsrun pod ls)"


def publish(
    table: int,
    ident: str,
    bridge: str,
    pod_ip: str,
    subnet: Subnet,
    ports: list[Port],
    more: str = "",
    pod_ip6: str = "",
) -> None:
    """Fill the pod's tables; `table` is a descriptor of the lease, since only its owner can change the table.

    `more`: the name of a table for ports that the pod gets later, of which `table` is a descriptor then.
    """
    with wire.Socket(fileno=os.dup(table)) as sock:
        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, 1 << 20)
        if more:
            requests = only_forwarding(more, pod_ip, ports, pod_ip6)
        else:
            requests = rules(table_name(pod_ip), ident, bridge, pod_ip, subnet, ports, pod_ip6)
        wire.talk(sock, requests)
    if any(port["protocol"] == "udp" for port in ports):
        from nsrun.host.conntrack import forget_ports

        forget_ports(ports, subnet, pod_ip6)  # whoever has sent before, and still sends, reaches the pod from now on


def remove_veth(note: Mapping[str, Any]) -> None:
    """Remove the pod's veth now; the kernel would do so a little later.

    A later link of the same name, or one of another network namespace, is not touched.
    """
    network = note.get("network") or {}
    if network.get("veth") and network.get("netns") == netns_cookie():
        delete_link(network["veth"], network.get("veth_index", 0), alias_of(note["id"]))


def await_holder(note: Mapping[str, Any]) -> None:
    """Wait until the lease of an owned pod has gone: nsrun-hold, which has it, ends a moment after pause."""
    network = note.get("network") or {}
    if network.get("veth") and network.get("netns") == netns_cookie() and not network.get("closed"):
        wait(lambda: ip_number(network["ip"]) not in leases(), 1.0)


def wait(condition: Callable[[], bool], seconds: float) -> bool:
    """Return whether the condition became true within `seconds`."""
    import time

    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= end:
            return False
        time.sleep(0.005)
    return True


def delete_link(name: str, index: int, alias: str) -> None:
    """Remove an interface if it is the one with this name, index and alias, and wait up to a second until it is gone.

    The kernel counts indices up, so the index is not reused.  It is no error when there is none, or it is another's.
    """

    def gone() -> bool:
        with wire.open_socket(wire.NETLINK_ROUTE) as sock:
            if link_identity(sock, index) != (name, alias):
                return True
            try:
                wire.talk(sock, [(f"ip link del {name}", wire.encode("del_link", index=index))])
            except KernelError as error:
                if error.errno != ENODEV:
                    raise
            return link_identity(sock, index) != (name, alias)

    if index > 0:
        wait(gone, 1.0)  # if it can't be deleted now, its namespace is dying, and the kernel will delete it


_FAMILIES = {1: "inet", 2: "ip", 10: "ip6", 5: "netdev", 7: "bridge", 3: "arp"}


def foreign_drops(ipv6: bool) -> list[str]:
    """Return the chains of other firewalls that drop forwarded packets, as nft names them: one for each family.

    An accept in our table can't undo another table's drop (netavark#977): Docker, ufw and firewalld have such chains,
    "ip filter FORWARD" for one.
    """
    try:
        with wire.open_socket(wire.NETLINK_NETFILTER) as sock:
            chains = wire.ask(sock, "nft list chains", wire.encode("get_chains"))
    except OSError as error:
        if error.errno not in NO_TABLES:
            raise
        return []  # there is no nf_tables here, so it drops nothing
    found: dict[int, str] = {}
    for body in chains:
        if body[6:14] == b"\1\0nsrun-":  # NFTA_CHAIN_TABLE comes first; there are several chains for each pod
            continue
        chain = wire.attributes(body[4:])
        if 4 not in chain or 5 not in chain:  # NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY
            continue
        hook = wire.attributes(chain[4]).get(1, b"")
        table, name = (os.fsdecode(chain[key].rstrip(b"\0")) for key in (1, 3))
        drops = hook[-1:] == b"\2" and chain[5][-1:] == b"\0" and not table.startswith("nsrun-")
        if drops and body[0] in ((1, 2, 10) if ipv6 else (1, 2)):
            found.setdefault(body[0], f"{_FAMILIES[body[0]]} {table} {name}")
    return list(found.values())


def firewall_fix(chains: Iterable[str], bridge: str) -> str:
    """Return the commands that let the packets of a bridge's pods through these chains."""
    return "; ".join(
        f"nft insert rule {chain} {way} {bridge} accept" for chain in chains for way in ("oifname", "iifname")
    )
