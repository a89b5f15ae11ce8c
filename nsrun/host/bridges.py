# SPDX-License-Identifier: Apache-2.0
"""The bridges that pods are on: how one is made when the first pod needs it, and removed when the last has gone.

There is the default one, nsrun0, and one for each network that an administrator has made (state/networks.py).  Each has a subnet, a
/64 and a table of nf_tables without an owner, whose rules hold for the whole bridge; that table is removed with the bridge.  What
is on a bridge is told by addresses: a pod's veth and its lease are named after its address (net.py), and networks do not overlap.
A bridge whose address somebody has changed stays as long as it has ports of pods.
"""

from __future__ import annotations

import _socket
import os
import sys
from errno import EACCES, EAFNOSUPPORT, EEXIST, EHOSTUNREACH, EINVAL, ENETUNREACH, ENOENT, EPERM

from nsrun import kernel
from nsrun.errors import BadInput, KernelError, NsrunError
from nsrun.host import wire
from nsrun.host.net import (
    ADVICE,
    LEASE,
    NO_TABLES,
    V6,
    VETH,
    address6,
    address_message,
    addresses,
    alias_of,
    ask_tables,
    delete_link,
    interfaces,
    leases,
    link_identity,
    link_names,
    mac_of,
    net6_of,
    nft_family,
    rules,
    tables,
    text6,
    veth_name,
    wait,
    write,
)
from nsrun.schema import read_setting
from nsrun.spec.options import LEAST_BITS, NO_IPV6, Subnet, ip_number, ip_text, parse_subnet, parse_subnet6

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nsrun.types import Port


#: The bridge of pods that name no network.
BRIDGE = "nsrun0"
#: What a bridge of a network is called, with a number: of the same length, since messages are made for names of that length.
NAMED = "nsrb{:02x}"
BRIDGE_ALIAS = "nsrun:all the pods"
COMMON_TABLE = "nsrun-all-pods"
_MAIN = 254  # RT_TABLE_MAIN
#: The subnets that are tried in this order until one is free on this machine; NSRUN_SUBNET (or --subnet) names another.
#: The last ones are for hosts where all private addresses lead elsewhere, into a VPN: nobody on the Internet has them (RFC 2544).
SUBNETS = (
    [f"10.88.{n}.0" for n in range(16)]
    + [f"172.28.{n}.0" for n in range(16)]
    + [f"192.168.{n}.0" for n in range(200, 232)]
    + [f"198.19.{n}.0" for n in range(16)]
)


class Bridge:
    """A bridge: of the network `network`, whose id is `ident`, or of all pods that name none.

    `subnet` and `subnet6` are what it is to have, "" for what is free; `taken` are the subnets of other networks.
    """

    __slots__ = ("ident", "name", "network", "subnet", "subnet6", "taken")

    def __init__(
        self,
        name: str = BRIDGE,
        network: str = "",
        ident: str = "",
        subnet: str = "",
        subnet6: str = "",
        taken: Iterable[Subnet] = (),
    ) -> None:
        self.name, self.network, self.ident = name, network, ident
        self.subnet, self.subnet6, self.taken = subnet, subnet6, tuple(taken)

    @property
    def alias(self) -> str:
        """What `ip link` shows of whose it is."""
        return alias_of(self.ident) if self.ident else BRIDGE_ALIAS

    @property
    def table(self) -> str:
        """The name of its table without an owner."""
        return common_table(self.name)


def common_table(bridge: str) -> str:
    """Return the name of the one table of a bridge without an owner: its rules hold whichever process is killed."""
    return COMMON_TABLE if bridge == BRIDGE else f"nsrun-b-{bridge}"


def is_bridge(name: str) -> bool:
    """Return whether nsrun's bridges are called so."""
    return name == BRIDGE or (len(name) == len(BRIDGE) and name.startswith("nsrb"))


class Route:
    """A route of IPv4 of this host; `to` and `mask` are what it leads to, `link` is the interface's name, "" if it has none or several."""

    __slots__ = ("link", "mask", "table", "to")

    def __init__(self, to: int, mask: int, link: str, table: int = _MAIN) -> None:
        self.to, self.mask, self.link, self.table = to, mask, link, table

    def __str__(self) -> str:
        return f"{ip_text(self.to)}/{self.mask.bit_count()}{f' to {self.link}' if self.link else ''}"

    @property
    def is_default(self) -> bool:
        """Whether it is a default route, or a part of one: VPNs have two, to 0.0.0.0/1 and to 128.0.0.0/1.  No network is so large."""
        return self.mask.bit_count() < LEAST_BITS


def _routes() -> list[Route]:
    """Return every route of the table main but the default, and one to the gateway of each; proc_net(5), route."""
    found = []
    with open("/proc/thread-self/net/route", "rb") as file:  # an interface's name may have any bytes but ASCII blanks
        for line in file.readlines()[1:]:
            fields = line.split()
            to, gateway, mask = (int.from_bytes(bytes.fromhex(fields[at].decode()), "little") for at in (1, 2, 7))
            link = os.fsdecode(fields[0])
            if not (route := Route(to, mask, link)).is_default:
                found.append(route)
            if gateway:  # which no route need lead to: ip-route(8), onlink
                found.append(Route(gateway, 0xFFFFFFFF, link))
    return found


def _addresses(sock: wire.Socket) -> list[Route]:
    """Return a route to each address of this host: one with a prefix of 32 bits has none that _routes() returns."""
    bodies = wire.ask(sock, "ip address show", wire.encode("get_addresses"))
    words = [wire.attributes(body[8:]).get(2, b"") for body in bodies]  # IFA_LOCAL
    return [Route(int.from_bytes(word, "big"), 0xFFFFFFFF, "") for word in words]


def _route_to(sock: wire.Socket, address: int) -> Route | None:
    """Return the route that this host's packets to an address take, of whichever table its rules name first; ip-rule(8).

    Return None when there is none.  Raise KernelError when they are refused: EHOSTUNREACH (unreachable), EACCES (prohibit) or
    EINVAL (blackhole); ip-route(8).
    """
    try:
        (body,) = wire.ask(sock, "ip route get fibmatch", wire.encode("get_route", pod_ip=ip_text(address)))
    except KernelError as error:
        if error.errno != ENETUNREACH:
            raise
        return None
    # what follows a struct rtmsg, whose second byte is the length of the prefix; rtnetlink(7)
    found = wire.attributes(body[12:])
    word, table, index = found.get(1, bytes(4)), found.get(15, b""), found.get(4, b"")  # RTA_DST, RTA_TABLE, RTA_OIF
    try:
        link = _socket.if_indextoname(int.from_bytes(index, sys.byteorder)) if index else ""
    except OSError:
        link = ""  # it has just gone
    mask = (1 << 32) - (1 << (32 - body[1]))
    return Route(int.from_bytes(word, "big"), mask, link, int.from_bytes(table, sys.byteorder) or body[4])


def _led_elsewhere(sock: wire.Socket, subnet: Subnet) -> Route | None:
    """Return a route that packets for a pod's address, the first or the last one, take already; None when there is only a default one.

    Where they are refused the bridge's own route may be the longer one: `unreachable default` is usual.
    """
    for address in (subnet.first + 2, subnet.last - 1):
        try:
            route = _route_to(sock, address)
        except KernelError as error:
            if error.errno not in (EHOSTUNREACH, EACCES, EINVAL):
                raise
            continue
        if route and not route.is_default:
            return route
    return None


def astray(bridge: str) -> tuple[str, str] | None:
    """Return what happens to this host's packets for pods on a bridge, or for some of them, and how to see why; None when they reach it."""
    if not (subnet := current_subnet(bridge)):
        return None
    for route in _routes():
        if subnet.overlaps(route.to, route.mask) and route.mask > subnet.mask and route.link != bridge:
            return f"take the route to {route}", "ip route"
    with wire.open_socket(wire.NETLINK_ROUTE) as sock:
        for address in (subnet.first + 2, subnet.last - 1):
            try:
                taken = _route_to(sock, address)
            except KernelError as error:
                return f"are refused ({os.strerror(error.errno or 0)})", "ip rule and ip route show table all"
            if not taken:
                return "have no route", "ip route"
            if taken.link != bridge:
                return f"take the route to {taken}", f"ip rule and ip route show table {taken.table}"
    return None


def _blame(network: str, option: str) -> tuple[str, str]:
    """Return what names a subnet that can't be had, an option or the record of a network, and what to do about it."""
    if network:
        return f"network {network!r}:", f"or: nsrun network rm {network}, and create it anew with another"
    return option, "choose another"


def pick_subnet(wanted: str, taken: Iterable[Subnet] = (), network: str = "") -> Subnet:
    """Return a subnet that is free and overlaps with none of the `taken` ones, which are those of networks.

    `network`: the one whose record has the wanted one.  Raise BadInput when the wanted one is in use, or all are.
    """
    what, instead = _blame(network, "--subnet")
    with wire.open_socket(wire.NETLINK_ROUTE) as sock:
        used = [*_routes(), *_addresses(sock)]
        for subnet in map(parse_subnet, [wanted] if wanted else SUBNETS):
            if others := [str(other) for other in taken if subnet.overlaps(other.first, other.mask)]:
                why, how = f"overlaps with {others[0]}, which belongs to another network", "nsrun network ls shows them"
            elif any(subnet.overlaps(one.to, one.mask) for one in used):
                why, how = "is in use on this machine", "ip route and ip address show what uses it"
            elif route := _led_elsewhere(sock, subnet):
                why = f"is in use on this machine: the route to {route} is of another table than main"
                how = f"ip rule shows when it is asked, ip route show table {route.table} what is in it"
            else:
                return subnet
            if wanted:
                raise BadInput(f"{what} {subnet} {why}", hint=f"{how}; {instead}")
    raise BadInput("no free /24 for the bridge", hint="name a network with --subnet or NSRUN_SUBNET")


def current_subnet(bridge: str = BRIDGE) -> Subnet | None:
    """Return a bridge's network, as the kernel has it; None when the bridge has no address, or does not exist."""
    gateway, bits = wire.address_of(bridge)
    return Subnet(gateway, bits) if gateway else None


def without_ipv6(bridge: str = BRIDGE) -> str:
    """Return why this host gives pods on a bridge no IPv6 address; "" when it does.  ip-sysctl.rst"""
    for where in ("all", "default", bridge):
        try:
            with open(f"/proc/sys/net/ipv6/conf/{where}/disable_ipv6", "rb") as file:
                if file.read(1) != b"0":
                    return f"net.ipv6.conf.{where}.disable_ipv6 of this host is set"
        except FileNotFoundError:
            if where != bridge:
                return NO_IPV6
    return ""


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


def pick_subnet6(wanted: str, subnet: Subnet, network: str = "") -> str:
    """Return a free /64.  Raise BadInput when the wanted one is in use; `network`: the one whose record has it.

    Else it is a ULA (RFC 4193), the same whenever the bridge has this IPv4 address: fd, 40 bits of b2sum(1) of machine-id(5),
    and two bytes of the IPv4 address.  Networks that have these in common differ in the last byte of their first address; as
    many line feeds follow the id.
    """
    if wanted:
        first = parse_subnet6(wanted)
        if _prefix_in_use(net6_of(first)):
            what, instead = _blame(network, "--subnet6")
            raise BadInput(
                f"{what} {first}/64 is in use on this machine",
                hint=f"ip -6 route shows what uses it; {instead}",
            )
        return first
    from _blake2 import blake2b

    try:
        with open("/etc/machine-id", "rb") as file:
            machine = file.read(64)
    except OSError:
        machine = b""  # behind NAT it need not be unique
    for attempt in range(16):
        digest = blake2b(machine + b"\n" * ((subnet.first & 255) + attempt)).digest()
        prefix = b"\xfd" + digest[:5] + ip_number(subnet.gateway).to_bytes(4, "big")[1:3]
        if not _prefix_in_use(prefix):
            return text6(prefix + bytes(8))
    raise BadInput("no free /64 for the bridge", hint="name one with --subnet6 or NSRUN_SUBNET6")


def current_gateway6(bridge: str = BRIDGE) -> str:
    """Return a bridge's first IPv6 address of a /64 that is not link-local; proc_net(5), if_inet6."""
    try:
        with open("/proc/thread-self/net/if_inet6", "rb") as file:
            for line in file:
                address, _, prefix, scope, _, name = line.split()
                if (name, prefix, scope) == (bridge.encode(), b"40", b"00"):
                    return text6(bytes.fromhex(address.decode()))
    except FileNotFoundError:
        pass  # no IPv6 here
    return ""


def ensure_bridge(sock: wire.Socket, bridge: Bridge, closed: bool = False) -> tuple[Subnet, int]:
    """Return (network, index) of the bridge, which is made if there is none.  `closed`: nothing is forwarded to and from the pod.

    The caller holds the lock on the network.  Raise BadInput when its subnet is in use, or its name is another's.
    """
    name = bridge.name
    subnet = current_subnet(name)
    if subnet and bridge.subnet and str(subnet) != str(parse_subnet(bridge.subnet)):
        if bridge.network:
            _check_owner(sock, bridge)
            raise BadInput(
                f"the bridge {name} of network {bridge.network!r} is {subnet.gateway}/{subnet.bits}, not of {bridge.subnet}: somebody has changed it",
                hint=f"ip address show {name}; its pods are left alone; it is made anew when none is left",
            )
        raise BadInput(
            f"the bridge {name} is {subnet.gateway}/{subnet.bits}: pods are on it",
            hint="all pods of the default bridge share one network; leave --subnet out, or: nsrun network create",
        )
    if not subnet:
        subnet = pick_subnet(bridge.subnet, bridge.taken, bridge.network)
        gateway, bits = subnet.gateway, subnet.bits
        # one datagram, which the kernel carries out whatever signal comes: a bridge without the alias is nobody's to remove
        requests = [
            (f"ip link add {name} type bridge", wire.encode("new_bridge", bridge=name, mac=mac_of(gateway))),
            (
                f"ip link set {name} alias '{bridge.alias}'",
                wire.encode("alias_bridge", bridge=name, alias=bridge.alias),
            ),
        ]
        if name in interfaces():  # without an address: its maker was killed, or it is another's
            _check_owner(sock, bridge)
        try:
            wire.talk(sock, requests)
        except KernelError as error:
            if error.errno != EEXIST:
                raise
        index = _socket.if_nametoindex(name)
        wire.talk(sock, [(f"ip address add {gateway}/{bits} dev {name}", address_message(index, gateway, bits))])
        for setting in ADVICE:
            try:  # a pod must not tell this host where to send its packets (CVE-2020-13401)
                write("/proc/sys/net/" + setting.format(name), "0")
            except FileNotFoundError:
                continue  # no IPv6 here
    else:
        _check_owner(sock, bridge)
    if closed:
        return subnet, _socket.if_nametoindex(name)
    with open("/proc/sys/net/ipv4/ip_forward", errors="surrogateescape") as file:
        forwards = file.read().strip() == "1"
    if not forwards:
        write("/proc/sys/net/ipv4/ip_forward", "1")
    _ensure_common_table(name)
    # Only this link: 127.0.0.1 may be routed to a pod.  What comes back that way is dropped on the pod's veth, by the
    # bridge's table, and, should an administrator flush that, by every pod's own (rule_guard_loopback).
    write(f"/proc/sys/net/ipv4/conf/{name}/route_localnet", "1")
    return subnet, _socket.if_nametoindex(name)


def _check_owner(sock: wire.Socket, bridge: Bridge) -> None:
    """Raise BadInput when the link with the name of a network's bridge is not the one that nsrun made for it.

    The default bridge may be an administrator's (docs/decisions/0034).
    """
    name, network = bridge.name, bridge.network
    if network and link_identity(sock, interfaces().get(name, 0)) != (name, bridge.alias):
        raise BadInput(
            f"the link {name}, which is to be the bridge of network {network!r}, is another's",
            hint=f"ip -d link show {name}; remove it, or: nsrun network rm {network}, and create it anew",
        )


def ident_of(name: str) -> str:
    """Return the id of the network whose bridge a link is, by its alias; "" when it is none."""
    with wire.open_socket(wire.NETLINK_ROUTE) as sock:
        found = link_identity(sock, interfaces().get(name, 0))
    alias = found[1] if found and found[0] == name else ""
    ident = alias.removeprefix(alias_of(""))
    return ident if alias == alias_of(ident) and len(ident) == 12 else ""


def free_name(taken: Iterable[str]) -> str:
    """Return the name for the bridge of a new network: no link has it, nor another network.  Raise BadInput when all are taken."""
    used = {*taken, *link_names()}
    for number in range(1, 256):
        if (name := NAMED.format(number)) not in used:
            return name
    raise BadInput("there are 255 networks: no bridge can be called otherwise", hint="nsrun network rm")


def ensure_bridge6(sock: wire.Socket, bridge: Bridge, subnet: Subnet, index: int) -> str:
    """Return the bridge's IPv6 address, which it gets if it has none.

    The caller holds the lock on the network, and has made the bridge.
    """
    name, wanted = bridge.name, bridge.subnet6
    gateway6 = current_gateway6(name)
    if gateway6 and wanted and net6_of(gateway6) != net6_of(parse_subnet6(wanted)):
        raise BadInput(
            f"the bridge {name} is {gateway6}/64: pods are on it",
            hint="all pods of a bridge share one network; leave --subnet6 out",
        )
    if not gateway6:
        gateway6 = address6(pick_subnet6(wanted, subnet, bridge.network), subnet.gateway)
        # without a link-local address of its own it sends no redirects: what pods send to each other passes by this host
        write(f"/proc/sys/net/ipv6/conf/{name}/addr_gen_mode", "1")
        message = wire.encode("bridge_address6", index=index, gateway6=gateway6)
        wire.talk(sock, [(f"ip -6 address add {gateway6}/64 dev {name} nodad", message)])
    _ensure_common_table(name, V6)
    forward6()
    return gateway6


def listens_to_routers() -> list[tuple[str, str]]:
    """Return (interface, accept_ra) for the interfaces of this network namespace that may learn from a router."""
    found = []
    for name in sorted(os.listdir("/proc/sys/net/ipv6/conf")):
        ours = is_bridge(name) or (name.startswith(VETH) and len(name) == len(VETH) + 8)
        if name not in ("all", "default", "lo") and not ours:
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
                write(f"{conf}/{name}/accept_ra", "2")
            except FileNotFoundError:
                continue  # the interface has just gone
    later = read_setting(f"{conf}/default/forwarding")
    write(f"{conf}/all/forwarding", "1")
    if later == "0":
        write(f"{conf}/default/forwarding", "0")


def _ensure_common_table(bridge: str, version: str = "") -> None:
    table = common_table(bridge)
    if table in tables(version):  # asking first: a batch that is refused waits for an RCU grace period, 5 ms
        return
    family = nft_family(version)
    batch = [
        ("nft batch", wire.encode("batch_begin")),
        (f"nft create table {family} {table}", wire.encode(f"new_common_table{version}", table=table)),
    ]
    chains = {"forward": ["forward_nothing_new"]}
    if not version:  # a pod that is closed in has no IPv6
        chains["guard"] = ["guard_loopback"]
        chains["forward"] += ["forward_apart_named", "forward_apart_default"]
    for chain, its_rules in chains.items():
        text, words = f"{family} {table} {chain}", {"table": table}
        batch.append((f"nft add chain {text}", wire.encode(f"chain_{chain}{version}", **words)))
        batch += [
            (f"nft add rule {text}", wire.encode(f"{rule}{version}", **words, bridge=bridge)) for rule in its_rules
        ]
    batch.append(("nft batch", wire.encode("batch_end")))
    with wire.open_socket(wire.NETLINK_NETFILTER) as sock:
        try:
            wire.talk(sock, batch)
        except KernelError as error:
            if error.errno != EEXIST:  # another process was faster; a batch is carried out completely or not at all
                raise


def _remove_common_table(bridge: str, version: str = "") -> None:
    table = common_table(bridge)
    if table not in tables(version):
        return
    text = f"nft delete table {nft_family(version)} {table}"
    requests = [
        ("nft batch", wire.encode("batch_begin")),
        (text, wire.encode(f"del_table{version}", table=table)),
        ("nft batch", wire.encode("batch_end")),
    ]
    with wire.open_socket(wire.NETLINK_NETFILTER) as sock:
        try:
            wire.talk(sock, requests)
        except KernelError as error:
            if error.errno != ENOENT:  # it has just been flushed
                raise


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


def without_tables(thoroughly: bool = False) -> str:
    """Return why pods on the bridge can't have nf_tables: this kernel has none, or a filter refuses them; "" when they can.

    `thoroughly`: try all rules, too, unless a pod has some; that takes 10 ms or more.  So it is also done where pods are on
    a bridge and have no rules.
    """
    try:
        ask_tables()
        if in_our_power() and not leases() and (thoroughly or any(map(_is_veth, link_names()))):
            _try_tables()
    except KernelError as error:
        if error.call.startswith("nft add ") and error.errno in (*NO_TABLES, ENOENT, EAFNOSUPPORT):
            return f"this kernel lacks a part of nf_tables ({error.call}: {os.strerror(error.errno)})"
        return _why_no_answer(error)
    except OSError as error:
        return _why_no_answer(error)
    return ""


def _why_no_answer(error: OSError) -> str:
    """Return what an error of nf_tables means, or raise it."""
    number = error.errno or 0
    if number in NO_TABLES:
        return f"this kernel has no nf_tables ({os.strerror(number)})"
    if number in (EPERM, EACCES):
        return f"nf_tables are refused here ({os.strerror(number)})" if in_our_power() else ""
    raise error


def _is_veth(name: str) -> bool:
    return name.startswith(VETH) and len(name) == len(VETH) + 8 and not is_bridge(name)


def _try_tables() -> None:
    """Make a table with all rules of a pod, and remove it, in one batch, so that it never takes effect.  Raise KernelError."""
    port: Port = {"host_ip": "0.0.0.0", "host_port": 1, "pod_port": 1, "protocol": "tcp"}
    begin, *content, end = rules("nsrun-trytable", "0" * 12, BRIDGE, "10.88.0.2", Subnet("10.88.0.1", 24), [port])
    batch = [
        begin,
        ("nft add table ip nsrun-trytable", wire.encode("new_table", table="nsrun-trytable")),
        *content,
        ("nft delete table ip nsrun-trytable", wire.encode("del_table", table="nsrun-trytable")),
        end,
    ]
    with wire.open_socket(wire.NETLINK_NETFILTER) as sock:
        wire.talk(sock, batch)


def pods_on(bridge: str, links: Iterable[str], leases: Iterable[str]) -> set[str]:
    """Return the veths of the pods on a bridge, also of those that are nothing any more but a lease or a veth.

    Their names have the address, and addresses of a bridge are of its network (decision 48).
    """
    subnet = current_subnet(bridge)
    if not subnet:
        return set()
    return {veth_name(ip_text(n)) for n in (*addresses(links, VETH), *addresses(leases, LEASE)) if n in subnet}


def _veths(bridge: str, index: int) -> set[int]:
    """Return the addresses of the pods whose veths are ports of a bridge, whatever network that has: an administrator may have changed it."""
    with wire.open_socket(wire.NETLINK_ROUTE) as sock:
        bodies = wire.ask(sock, f"ip link show master {bridge}", wire.encode("get_ports", bridge_index=index))
    found = (wire.attributes(body[16:]).get(3, b"") for body in bodies)  # IFLA_IFNAME
    return set(addresses((name.rstrip(b"\0").decode(errors="replace") for name in found), VETH))


def on_no_bridge() -> list[str]:
    """Return the addresses of the pods whose veth is a port of no bridge of nsrun's: somebody has removed that, or taken the port away."""
    links = interfaces()
    ports = [_veths(name, links[name]) for name in filter(is_bridge, links)]
    there = set(addresses(links, VETH)) & set(addresses(interfaces(), VETH))  # and neither comes nor goes just now
    return [ip_text(number) for number in sorted(there.difference(*ports))]


def remove_idle_bridge(
    lock: Callable[[], int], bridge: Bridge | None = None, known: set[str] | None = None, patience: float = 0.0
) -> bool:
    """Remove a bridge, by default nsrun0, when no pod is on it, neither by a veth nor by a lease; return whether none is known of.

    `patience` is the number of seconds to wait for veths that are not among the `known` ones: a dying pod takes a
    moment.  A bridge that is not nsrun's own stays, but does not lead to 127.0.0.1 any more.  Where nobody may ask who has a
    lease (NoAnswer), it stays as it is.
    """
    ours = bridge or Bridge()
    name = ours.name
    if not in_our_power():
        return True
    if known is None and not patience and not ours.network and kernel.has_carrier(name):
        return False  # a pod is on it
    idle = False

    def settled() -> bool:
        nonlocal idle
        with kernel.Fd(lock()):
            try:
                idle = take_down(ours)
                return idle or (known is not None and _only(known, name))
            except NoAnswer:
                idle = True
                return True

    wait(settled, patience)
    return idle


class NoAnswer(NsrunError):
    """A filter of system calls refuses nf_tables, so which addresses of a bridge are leased is not known."""


def _leases(bridge: str) -> set[str]:
    """Return the names of all tables of nsrun.  Raise NoAnswer."""
    try:
        return tables()
    except OSError as error:
        if error.errno not in (EPERM, EACCES):
            raise
        raise NoAnswer(
            f"nft list tables: {os.strerror(error.errno)}: whether a pod is on {bridge} is not known",
            hint=f"do it where nf_tables are not refused; or, when no pod is left: ip link del {bridge}",
            errno=error.errno,
        ) from None


def _only(known: set[str], bridge: str) -> bool:
    """Return whether the pods on a bridge are all known ones, for which there is nothing to wait."""
    return pods_on(bridge, interfaces(), _leases(bridge)) <= known


def take_down(bridge: Bridge) -> bool:
    """Remove a bridge unless a pod is on it; return whether none is.  The caller holds the lock on the network.  Raise NoAnswer."""
    name, links = bridge.name, interfaces()
    if name not in links:  # an administrator has removed it; where pods are left, their table stays
        try:
            if _leases(name) == {common_table(name)}:
                _remove_common_table(name)
                _remove_common_table(name, V6)
        except NoAnswer:
            pass
        return True
    with wire.open_socket(wire.NETLINK_ROUTE) as sock:
        if bridge.network and link_identity(sock, links[name]) != (name, bridge.alias):
            return True  # of another --root, or an administrator's
    if pods_on(name, links, ()) or pods_on(name, (), _leases(name)) or _veths(name, links[name]):
        return False
    write(f"/proc/sys/net/ipv4/conf/{name}/route_localnet", "0")
    _remove_common_table(name)
    _remove_common_table(name, V6)
    # last, because the next command tries again while it exists
    delete_link(name, links[name], bridge.alias)
    return True
