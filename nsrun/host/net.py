# SPDX-License-Identifier: Apache-2.0
"""The host's side of a pod's network: one bridge, a veth pair per pod, published ports.

    pod A eth0 ── nsr0a580002 ┐
    pod B eth0 ── nsr0a580003 ┴ nsrun0 10.88.0.1/24 … routed and masqueraded by the host

The kernel keeps the books.  A pod's nf_tables table is named after its address, names are unique, and the table lives
as long as a socket that pause (for an owned pod, nsrun-hold) holds: so the pod that gets the table has the address, and
whatever the owner of a pod does to its eth0, nobody else gets an address to which that table still forwards.  A
published port is a bound socket.  So nothing here needs a lease file, and when pause is killed, nothing is left but an
idle bridge with its table, which the next command removes.

A filter on a pod's veth checks what the pod sends (portfilter.py), and ends with the veth.  Which port of the bridge
leads to whom is configured for the bridge and for the host, never learned.  The rules for the whole bridge are in a
table without an owner, which is removed with the bridge.

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
from errno import EADDRINUSE, EADDRNOTAVAIL, EEXIST, EINVAL, ENODEV, ENOENT, EOPNOTSUPP, EPERM, EPROTONOSUPPORT

from nsrun import kernel
from nsrun.errors import BadInput, KernelError
from nsrun.host import portfilter, wire
from nsrun.schema import is_number, read_setting
from nsrun.spec.options import ANY, PROTOCOLS, at, ip_number, ip_text, parse_subnet, parse_subnet6, published

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

    from nsrun.spec.options import Published
    from nsrun.types import Port


BRIDGE = "nsrun0"
BRIDGE_ALIAS = "nsrun:all the pods"
#: The one table without an owner: its rules hold as long as there is a bridge, whichever process is killed.
COMMON_TABLE = "nsrun-all-pods"
PREFIX = 24
#: The subnets that are tried in this order until one is free on this machine; NSRUN_SUBNET (or --subnet) names another.
SUBNETS = (
    [f"10.88.{n}.0" for n in range(16)]
    + [f"172.28.{n}.0" for n in range(16)]
    + [f"192.168.{n}.0" for n in range(200, 232)]
)


#: Settings by which a host takes advice from its network: below /proc/sys/net, with the interface left out.
ADVICE = ("ipv6/conf/{}/accept_ra", "ipv6/conf/{}/accept_redirects", "ipv4/conf/{}/accept_redirects")


#: What distinguishes messages and tables of family ip6.
V6 = "6"


def _nft_family(version: str) -> str:
    return f"ip{version}"


def address6(network: str, ip: str) -> str:
    """Return the IPv6 address that goes with a pod's IPv4 address; `network` is any address of the /64."""
    return _text6(net6_of(network) + bytes(4) + ip_number(ip).to_bytes(4, "big"))


def net6_of(ip6: str) -> bytes:
    """Return the prefix of an address, which is its first half."""
    return _socket.inet_pton(_socket.AF_INET6, ip6)[:8]


def _text6(raw: bytes) -> str:
    return _socket.inet_ntop(_socket.AF_INET6, raw)


def veth_name(ip: str) -> str:
    """Return the name of a pod's veth.

    An interface name holds 15 bytes: the address in hex fits, and identifies the pod.
    """
    return f"nsr{ip_number(ip):08x}"


def table_name(ip: str) -> str:
    """Return the name of the pod's table, which is its lease on the address."""
    return f"nsrun-{ip_number(ip):08x}"


def alias_of(ident: str) -> str:
    """Return the alias of a pod's veth, by which `ip link` shows whose it is."""
    return f"nsrun:{ident}"


def label_of(ident: str) -> bytes:
    """Return the conntrack label of a pod's connections, which says whose they are."""
    return bytes.fromhex(ident).rjust(16, b"\0")


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


def _link_names() -> set[str]:
    """Return the names of all links: proc_net(5), dev.  A dump of the links themselves takes ten times as long."""
    with open("/proc/thread-self/net/dev", "rb") as file:
        return {os.fsdecode(line.partition(b":")[0].strip()) for line in file.readlines()[2:]}


def _routes() -> list[tuple[int, int]]:
    """Return (destination, mask) of every route but the default; proc_net(5), route."""
    found = []
    with open("/proc/thread-self/net/route", "rb") as file:  # an interface's name may have any bytes but ASCII blanks
        for line in file.readlines()[1:]:
            fields = line.split()
            to, mask = (int.from_bytes(bytes.fromhex(f.decode()), "little") for f in (fields[1], fields[7]))
            if mask:
                found.append((to, mask))
    return found


def subnet_in_use(subnet: str) -> bool:
    net, mask = ip_number(subnet), 0xFFFFFF00
    return any(net & m == to & m & mask or to & mask == net for to, m in _routes())


def pick_subnet(wanted: str) -> str:
    """Return the first address of a free /24.  Raise BadInput when the wanted one is in use, or all are."""
    if wanted:
        net = parse_subnet(wanted)
        if subnet_in_use(net):
            raise BadInput(
                f"--subnet {net}/24 is in use on this machine", hint="ip route shows what uses it; choose another"
            )
        return net
    for net in SUBNETS:
        if not subnet_in_use(net):
            return net
    raise BadInput("no free /24 for the bridge", hint="name one with --subnet or NSRUN_SUBNET")


def current_gateway() -> str:
    return wire.address_of(BRIDGE)


def _prefix_in_use(prefix: bytes) -> bool:
    """Return whether a route of at least 40 bits overlaps with a /64, or it is part of one; proc_net(5), ipv6_route."""
    wanted = int.from_bytes(prefix, "big")
    with open("/proc/thread-self/net/ipv6_route", "rb") as file:
        for line in file:
            fields = line.split()
            to, bits = int(fields[0], 16) >> 64, min(int(fields[1], 16), 64)
            if bits >= 40 and to >> (64 - bits) == wanted >> (64 - bits):
                return True
    return False


def pick_subnet6(wanted: str, gateway: str) -> str:
    """Return a free /64.  Raise BadInput when the wanted one is in use.

    Else it is a ULA (RFC 4193), the same whenever the bridge has this IPv4 address: fd, 40 bits of b2sum(1) of machine-id(5),
    and two bytes of the IPv4 subnet.
    """
    if wanted:
        network = parse_subnet6(wanted)
        if _prefix_in_use(net6_of(network)):
            raise BadInput(
                f"--subnet6 {network}/64 is in use on this machine",
                hint="ip -6 route shows what uses it; choose another",
            )
        return network
    from _blake2 import blake2b

    try:
        with open("/etc/machine-id", "rb") as file:
            machine = file.read(64)
    except OSError:
        machine = b""  # behind NAT it need not be unique
    for attempt in range(16):
        digest = blake2b(machine + b"\n" * attempt).digest()
        prefix = b"\xfd" + digest[:5] + ip_number(gateway).to_bytes(4, "big")[1:3]
        if not _prefix_in_use(prefix):
            return _text6(prefix + bytes(8))
    raise BadInput("no free /64 for the bridge", hint="name one with --subnet6 or NSRUN_SUBNET6")


def current_gateway6() -> str:
    """Return the bridge's first IPv6 address of a /64 that is not link-local; proc_net(5), if_inet6."""
    try:
        with open("/proc/thread-self/net/if_inet6", "rb") as file:
            for line in file:
                address, _, prefix, scope, _, name = line.split()
                if (name, prefix, scope) == (BRIDGE.encode(), b"40", b"00"):
                    return _text6(bytes.fromhex(address.decode()))
    except FileNotFoundError:
        pass  # no IPv6 here
    return ""


def _write(path: str, value: str) -> None:
    with open(path, "w") as file:
        file.write(value)


def ensure_bridge(sock: Any, wanted: str) -> tuple[str, int]:
    """Return (gateway, index) of the bridge, which is made if there is none.

    The caller holds the lock on the network.
    """
    gateway = current_gateway()
    if gateway and wanted and ip_number(gateway) & 0xFFFFFF00 != ip_number(wanted.partition("/")[0]) & 0xFFFFFF00:
        raise BadInput(
            f"the bridge {BRIDGE} is {gateway}/{PREFIX}: pods are on it",
            hint="all pods of a machine share one network; leave --subnet out",
        )
    if not gateway:
        gateway = ip_text(ip_number(pick_subnet(wanted)) + 1)
        # one datagram, which the kernel carries out whatever signal comes: a bridge without the alias is nobody's to remove
        requests = [
            (f"ip link add {BRIDGE} type bridge", wire.encode("new_bridge", bridge=BRIDGE, mac=mac_of(gateway))),
            (
                f"ip link set {BRIDGE} alias '{BRIDGE_ALIAS}'",
                wire.encode("alias_bridge", bridge=BRIDGE, alias=BRIDGE_ALIAS),
            ),
        ]
        try:
            wire.talk(sock, requests)
        except KernelError as error:
            if error.errno != EEXIST:  # if it exists without an address, its maker was killed
                raise
        index = _socket.if_nametoindex(BRIDGE)
        message = wire.encode("new_address", index=index, pod_ip=gateway)
        wire.talk(sock, [(f"ip address add {gateway}/{PREFIX} dev {BRIDGE}", message)])
        for setting in ADVICE:
            try:  # a pod must not tell this host where to send its packets (CVE-2020-13401)
                _write("/proc/sys/net/" + setting.format(BRIDGE), "0")
            except FileNotFoundError:
                continue  # no IPv6 here
    with open("/proc/sys/net/ipv4/ip_forward", errors="surrogateescape") as file:
        forwards = file.read().strip() == "1"
    if not forwards:
        _write("/proc/sys/net/ipv4/ip_forward", "1")
    _ensure_common_table()
    # Only this link: 127.0.0.1 may be routed to a pod.  What comes back that way is dropped on the pod's veth, by the
    # table of all pods, and, should an administrator flush that, by every pod's own (rule_guard_loopback).
    _write(f"/proc/sys/net/ipv4/conf/{BRIDGE}/route_localnet", "1")
    return gateway, _socket.if_nametoindex(BRIDGE)


def ensure_bridge6(sock: wire.Socket, gateway: str, index: int, wanted: str) -> str:
    """Return the bridge's IPv6 address, which it gets if it has none.

    The caller holds the lock on the network, and has made the bridge.
    """
    gateway6 = current_gateway6()
    if gateway6 and wanted and net6_of(gateway6) != net6_of(parse_subnet6(wanted)):
        raise BadInput(
            f"the bridge {BRIDGE} is {gateway6}/64: pods are on it",
            hint="all pods of a machine share one network; leave --subnet6 out",
        )
    if not gateway6:
        gateway6 = address6(pick_subnet6(wanted, gateway), gateway)
        # without a link-local address of its own it sends no redirects: what pods send to each other passes by this host
        _write(f"/proc/sys/net/ipv6/conf/{BRIDGE}/addr_gen_mode", "1")
        message = wire.encode("bridge_address6", index=index, gateway6=gateway6)
        wire.talk(sock, [(f"ip -6 address add {gateway6}/64 dev {BRIDGE} nodad", message)])
    _ensure_common_table(V6)
    forward6()
    return gateway6


def listens_to_routers() -> list[tuple[str, str]]:
    """Return (interface, accept_ra) for the interfaces of this network namespace that may learn from a router."""
    found = []
    for name in sorted(os.listdir("/proc/sys/net/ipv6/conf")):
        if name not in ("all", "default", "lo", BRIDGE) and not (name.startswith("nsr") and len(name) == 11):
            accept, forwards = (
                read_setting(f"/proc/sys/net/ipv6/conf/{name}/{key}") for key in ("accept_ra", "forwarding")
            )
            if accept == "2" or (accept == "1" and forwards == "0"):
                found.append((name, accept))
    return found


def forward6() -> None:
    """Make this host forward IPv6, if it does not.

    An interface that forwards learns nothing from routers, and the routes that it has learnt are dropped, unless accept_ra
    is 2 by then (ip-sysctl.rst); so where it is 1 it becomes 2.  Interfaces to come are left as they would have been: whether
    this host forwards depends on "all" alone.
    """
    conf = "/proc/sys/net/ipv6/conf"
    if read_setting(f"{conf}/all/forwarding") == "1":
        return
    for name, accept in listens_to_routers():
        if accept == "1":
            try:
                _write(f"{conf}/{name}/accept_ra", "2")
            except FileNotFoundError:
                continue  # the interface has just gone
    later = read_setting(f"{conf}/default/forwarding")
    _write(f"{conf}/all/forwarding", "1")
    if later == "0":
        _write(f"{conf}/default/forwarding", "0")


def _ensure_common_table(version: str = "") -> None:
    if COMMON_TABLE in tables(version):  # asking first: a batch that is refused waits for an RCU grace period, 5 ms
        return
    family = _nft_family(version)
    batch = [
        ("nft batch", wire.encode("batch_begin")),
        (f"nft create table {family} {COMMON_TABLE}", wire.encode(f"new_common_table{version}", table=COMMON_TABLE)),
    ]
    rules_of_all = [("forward", "forward_nothing_new")]
    for chain, rule in rules_of_all if version else [("guard", "guard_loopback"), *rules_of_all]:
        text, words = f"{family} {COMMON_TABLE} {chain}", {"table": COMMON_TABLE}
        batch.append((f"nft add chain {text}", wire.encode(f"chain_{chain}{version}", **words)))
        batch.append((f"nft add rule {text}", wire.encode(f"{rule}{version}", **words, bridge=BRIDGE)))
    batch.append(("nft batch", wire.encode("batch_end")))
    with wire.open_socket(wire.NETLINK_NETFILTER) as sock:
        try:
            wire.talk(sock, batch)
        except KernelError as error:
            if error.errno != EEXIST:  # another process was faster; a batch is carried out completely or not at all
                raise


def _remove_common_table(version: str = "") -> None:
    text = f"nft delete table {_nft_family(version)} {COMMON_TABLE}"
    requests = [
        ("nft batch", wire.encode("batch_begin")),
        (text, wire.encode(f"del_table{version}", table=COMMON_TABLE)),
        ("nft batch", wire.encode("batch_end")),
    ]
    with wire.open_socket(wire.NETLINK_NETFILTER) as sock:
        try:
            wire.talk(sock, requests)
        except KernelError as error:
            if error.errno != ENOENT:  # it has just been flushed
                raise


def connect(
    sock: wire.Socket,
    netns: int,
    gateway: str,
    bridge_index: int,
    wanted_ip: str,
    ident: str,
    gateway6: str = "",
    isolated: bool = False,
) -> tuple[str, int, wire.Socket]:
    """Lease the first free address (or the wanted one) and make the pair; return (address, index of our end, the
    lease).  With `gateway6`, the pod has an IPv6 address too (address6); `isolated` is as for secure_port().

    The lease is a socket: the address is the pod's as long as it is open.  An address is free when its table and its
    veth are gone.  Raise BadInput when the wanted one is taken, or all are.
    """
    from nsrun.host.conntrack import forget_addresses

    net = ip_number(gateway) & 0xFFFFFF00
    if wanted_ip:
        number = ip_number(wanted_ip)
        if number & 0xFFFFFF00 != net or number in (net, net + 255, ip_number(gateway)):
            raise BadInput(f"--ip {wanted_ip} is not a free address of {ip_text(net)}/{PREFIX}")
        candidates = [number]
    else:
        taken = {name[3:] for name in _link_names()} | {name[6:] for name in leases()}
        candidates = [n for n in range(net + 2, net + 255) if f"{n:08x}" not in taken]
    for number in candidates:
        ip = ip_text(number)
        table = lease(ip)
        if table is None:
            continue
        try:
            ip6 = address6(gateway6, ip) if gateway6 else ""
            forget_addresses(ip, *([ip6] if ip6 else []))
            alone = (gateway, gateway6) if isolated else None
            index = _make_port(sock, netns, bridge_index, ip, ident, ip6, alone)
            if not index and wanted_ip:  # we have the lease, so its pod has ended: the kernel takes the veth away
                wait(lambda: veth_name(wanted_ip) not in _link_names(), 5.0)
                index = _make_port(sock, netns, bridge_index, ip, ident, ip6, alone)
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
    raise BadInput(f"all addresses of {ip_text(net)}/{PREFIX} are in use", hint="remove a pod: nsrun pod ls")


def lease(ip: str) -> wire.Socket | None:
    """Make the pod's table, still empty; return its socket, with which it ends.

    Return None when another pod has the table.
    """
    return make_table(table_name(ip))


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


def tables(version: str = "") -> set[str]:
    """Return the names of all tables of nsrun in this network namespace, of family ip, or ip6 for V6."""
    with wire.open_socket(wire.NETLINK_NETFILTER) as sock:
        bodies = wire.ask(sock, "nft list tables", wire.encode(f"get_tables{version}"))
    names = (wire.attributes(body[4:]).get(1, b"").rstrip(b"\0").decode(errors="replace") for body in bodies)
    return {name for name in names if name.startswith("nsrun-") and len(name) == len(COMMON_TABLE)}


def leases() -> set[str]:
    """Return the names of the pods' tables."""
    return tables() - {COMMON_TABLE}


def _make_port(
    sock: wire.Socket, netns: int, bridge_index: int, ip: str, ident: str, ip6: str, alone: tuple[str, str] | None
) -> int:
    """Make the pair, and bring this end up when the filter is on it; return its index, or 0 when the name is taken."""
    name, mac = veth_name(ip), mac_of(ip)
    message = wire.encode("new_veth", veth=name, bridge_index=bridge_index, netns_fd=netns, mac=mac)
    try:
        wire.talk(sock, [(f"ip link add {name} master {BRIDGE} type veth peer name eth0 netns {netns}", message)])
    except KernelError as error:
        if error.errno == EEXIST:
            return 0
        raise
    index = _socket.if_nametoindex(name)
    try:
        secure_port(sock, name, index, bridge_index, ip, ident, ip6, alone)
    except BaseException:
        wire.talk(sock, [(f"ip link del {name}", wire.encode("del_link", index=index))])
        raise
    return index


def secure_port(
    sock: wire.Socket,
    name: str,
    index: int,
    bridge_index: int,
    ip: str,
    ident: str,
    ip6: str = "",
    alone: tuple[str, str] | None = None,
) -> None:
    """Configure who is behind a port of the bridge and what may come from it; then bring it up.

    `alone`: the bridge's addresses, when the pod is isolated; then nothing may come from or go to another pod.
    """
    mac, device = mac_of(ip), f"dev {name}"
    mac_text = ":".join(f"{byte:02x}" for byte in mac)
    six = V6 if ip6 else ""
    words: dict[str, object] = {"index": index}
    if ip6:
        words |= zip(("high6", "low6"), _words(net6_of(ip6)), strict=True)
    if alone:
        own = wire.mac_of_link(BRIDGE)
        words |= {"mac_high": int.from_bytes(own[:4], "big"), "mac_low": int.from_bytes(own[4:], "big")}
        words |= {"gateway_word": ip_number(alone[0]), "net_word": ip_number(alone[0]) & 0xFFFFFF00}
        if ip6:
            words |= zip(("third6", "fourth6"), _words(_socket.inet_pton(_socket.AF_INET6, alone[1])[8:]), strict=True)
        requests = [
            (f"tc qdisc add {device} clsact", wire.encode("both_ways", index=index)),
            (f"tc filter add {device} ingress bpf direct-action …", wire.encode(f"isolating_filter{six}", ip_word=ip_number(ip), **words)),
            (f"tc filter add {device} egress bpf direct-action …", wire.encode(f"arrival_filter{six}", **words)),
        ]  # fmt: skip
    else:
        requests = [
            (f"tc qdisc add {device} ingress", wire.encode("ingress", index=index)),
            (f"tc filter add {device} ingress bpf direct-action …", wire.encode(f"port_filter{six}", ip_word=ip_number(ip), **words)),
        ]  # fmt: skip
    text = f"bridge fdb replace {mac_text} {device} master static sticky"
    requests.append((text, wire.encode("fdb_entry", index=index, mac=mac)))
    text = f"lladdr {mac_text} dev {BRIDGE} nud permanent"
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


def configure_pod(
    ip: str, gateway: str, ip6: str = "", gateway6: str = "", mac: bytes = b"", isolated: bool = False
) -> None:
    """In the pod's network namespace, bring up lo and eth0, and set the addresses and the default routes.

    `mac`: the bridge's, which need not be asked for by neighbour discovery then, and in a pod that is `isolated` by ARP neither.
    """
    with wire.open_socket(wire.NETLINK_ROUTE) as sock:
        index = _socket.if_nametoindex("eth0")
        requests = [
            ("ip link set lo up", wire.encode("link_up", index=_socket.if_nametoindex("lo"))),
            (f"ip address add {ip}/{PREFIX} dev eth0", wire.encode("new_address", index=index, pod_ip=ip)),
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
                _write(f"/proc/sys/net/{setting.format(where)}", "0")
            except FileNotFoundError:
                continue  # no IPv6 here
    if not link_local:
        _write("/proc/sys/net/ipv6/conf/eth0/addr_gen_mode", "1")


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
    bound beside the socket that this pod still has.
    With `to_listen`, bind it as a server does that sets SO_REUSEADDR (socket(7)): connections that ended in the last minute
    do not count, and of UDP there is room for what comes.
    """
    kind = _socket.SOCK_DGRAM if protocol == "udp" else _socket.SOCK_STREAM
    sock = _socket.socket(_socket.AF_INET6 if ":" in host_ip else _socket.AF_INET, kind | _socket.SOCK_CLOEXEC)
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
            if error.errno != EADDRINUSE or not port or not released(host_ip, port, protocol):
                raise
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
            sock.bind((host_ip, port))
            if not to_listen:  # listen(2) asks again
                sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 0)  # from now on it is ours alone
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
    table: str, ident: str, pod_ip: str, gateway: str, ports: list[Port], pod_ip6: str = ""
) -> list[tuple[str, bytes]]:
    """Return the content of the pod's own nf_tables tables as (nft command, message) …

    The table of family ip is there already, being the lease; that of family ip6 is made.
    """
    requests = [("nft batch", wire.encode("batch_begin"))]
    for chain in CHAINS:
        requests.append((f"nft add chain ip {table} {chain}", wire.encode(f"chain_{chain}", table=table)))
    label = label_of(ident)
    on_bridge = {"table": table, "bridge": BRIDGE, "pod_ip": pod_ip}
    for text, data in (
        ("guard", wire.encode("guard_loopback", table=table, bridge=BRIDGE)),
        ("postrouting", wire.encode("masquerade_out", **on_bridge)),
        ("postrouting", wire.encode("masquerade_loopback", **on_bridge)),
        (
            "postrouting",
            wire.encode("masquerade_hairpin", **on_bridge, subnet=ip_text(ip_number(gateway) & 0xFFFFFF00)),
        ),
        ("forward", wire.encode("label_out", **on_bridge, label=label)),
        ("forward", wire.encode("label_in", **on_bridge, label=label)),
        ("forward", wire.encode("forward_labelled", **on_bridge, label=label)),
        ("forward", wire.encode("forward_related", **on_bridge)),
        ("forward", wire.encode("forward_closed", **on_bridge)),
    ):
        requests.append((f"nft add rule ip {table} {text}", data))
    requests += forwarding(table, pod_ip, ports)
    if pod_ip6:
        requests += _rules6(table, label, pod_ip6, ports)
    return [*requests, ("nft batch", wire.encode("batch_end"))]


def _rules6(table: str, label: bytes, pod_ip6: str, ports: list[Port]) -> list[tuple[str, bytes]]:
    """Return what makes and fills the pod's table of family ip6; messages.py has the reasons for the rules."""
    requests = [(f"nft add table ip6 {table} {{ flags owner; }}", wire.encode("new_table6", table=table))]
    chains = ("prerouting", "output") if any(":" in port["host_ip"] for port in ports) else ()
    for chain in (*chains, "postrouting", "forward"):
        requests.append((f"nft add chain ip6 {table} {chain}", wire.encode(f"chain_{chain}6", table=table)))
    on_bridge = {"table": table, "bridge": BRIDGE, "pod_ip6": pod_ip6}
    for text, data in (
        ("postrouting", wire.encode("masquerade_out6", **on_bridge)),
        ("postrouting", wire.encode("masquerade_hairpin6", **on_bridge, net6=net6_of(pod_ip6))),
        ("forward", wire.encode("label_out6", **on_bridge, label=label)),
        ("forward", wire.encode("label_in6", **on_bridge, label=label)),
        ("forward", wire.encode("forward_labelled6", **on_bridge, label=label)),
        ("forward", wire.encode("forward_related6", **on_bridge)),
        ("forward", wire.encode("forward_closed6", **on_bridge)),
    ):
        requests.append((f"nft add rule ip6 {table} {text}", data))
    return [*requests, *forwarding(table, pod_ip6, ports, V6)]


def forwarding(table: str, pod_ip: str, ports: list[Port], version: str = "") -> list[tuple[str, bytes]]:
    """Return what forwards ports of this host to an address of a pod, as (nft command, message) …; the two chains are there."""
    requests, family = [], _nft_family(version)
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
        family = _nft_family(version)
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
                text = f"nft delete element {_nft_family(version)} {table} {name}"
                requests.append((text, wire.encode_list(f"no_elements_{name}{version}", items, table=table)))
    wire.talk(sock, [*requests, ("nft batch", wire.encode("batch_end"))])


def release_port(sock: _socket.socket) -> None:
    """Let others have the port of a bound socket that stays open: programs that set SO_REUSEADDR, as servers do, and pods.

    Its process can't be told to close it.  socket(7)
    """
    sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)


def _who_has(host_ip: str, port: int, protocol: str) -> str:
    """Return which program has a port that no pod of ours has, as far as the kernel's tables show."""
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
    table: int, ident: str, pod_ip: str, gateway: str, ports: list[Port], more: str = "", pod_ip6: str = ""
) -> None:
    """Fill the pod's tables; `table` is a descriptor of the lease, since only its owner can change the table.

    `more`: the name of a table for ports that the pod gets later, of which `table` is a descriptor then.
    """
    with wire.Socket(fileno=os.dup(table)) as sock:
        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, 1 << 20)
        if more:
            requests = only_forwarding(more, pod_ip, ports, pod_ip6)
        else:
            requests = rules(table_name(pod_ip), ident, pod_ip, gateway, ports, pod_ip6)
        wire.talk(sock, requests)
    if any(port["protocol"] == "udp" for port in ports):
        from nsrun.host.conntrack import forget_ports

        forget_ports(ports, gateway, pod_ip6)  # whoever has sent before, and still sends, reaches the pod from now on


def remove_veth(note: Mapping[str, Any]) -> None:
    """Remove the pod's veth now; the kernel would do so a little later.

    A later link of the same name, or one of another network namespace, is not touched.
    """
    network = note.get("network") or {}
    if network.get("veth") and network.get("netns") == netns_cookie():
        delete_link(network["veth"], network.get("veth_index", 0), alias_of(note["id"]))
        if note.get("user"):  # nsrun-hold, and with it the lease, ends a moment after pause
            wait(lambda: table_name(network["ip"]) not in leases(), 1.0)


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


def in_our_power() -> bool:
    """Return whether we may change links and tables of the network namespace that we are in.

    That needs CAP_NET_ADMIN in the user namespace to which it belongs; root of another one does not have it.
    network_namespaces(7).
    """
    from nsrun.linux import capability_mask

    if not kernel.capability_sets()["CapEff"] & capability_mask(["net_admin"]):
        return False
    if not kernel.in_userns():
        return True
    from nsrun.host import userns

    return userns.owns_network()


def remove_idle_bridge(lock: Callable[[], int], known: set[str] | None = None, patience: float = 0.0) -> None:
    """Remove the bridge when no pod is on it, neither by a veth nor by a lease.

    `patience` is the number of seconds to wait for veths that are not among the `known` ones: a dying pod takes a
    moment.  A bridge that is not nsrun's own stays, but does not lead to 127.0.0.1 any more.
    """

    if BRIDGE not in _link_names() or not in_our_power():
        return
    if known is None and kernel.has_carrier(BRIDGE):
        return  # a pod is on it

    def settled() -> bool:
        with kernel.Fd(lock()):
            links = interfaces()
            if BRIDGE not in links:
                return True
            found = tables()
            pods = {name for name in links if name.startswith("nsr") and len(name) == 11}
            pods |= {f"nsr{name[6:]}" for name in found - {COMMON_TABLE}}
            if pods:
                return pods <= (known or set())
            _write(f"/proc/sys/net/ipv4/conf/{BRIDGE}/route_localnet", "0")
            if COMMON_TABLE in found:
                _remove_common_table()
            if COMMON_TABLE in tables(V6):
                _remove_common_table(V6)
            # last, because the next command tries again while it exists
            delete_link(BRIDGE, links[BRIDGE], BRIDGE_ALIAS)
            return True

    wait(settled, patience)


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
        if error.errno not in (EPROTONOSUPPORT, EOPNOTSUPP, EINVAL):
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


def firewall_fix(chains: Iterable[str]) -> str:
    """Return the commands that let pods' packets through these chains."""
    return "; ".join(
        f"nft insert rule {chain} {way} {BRIDGE} accept" for chain in chains for way in ("oifname", "iifname")
    )
