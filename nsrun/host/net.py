# SPDX-License-Identifier: Apache-2.0
"""The host's side of a pod's network: one bridge, a veth pair per pod, published ports.

    pod A eth0 ── nsr0a580002 ┐
    pod B eth0 ── nsr0a580003 ┴ nsrun0 10.88.0.1/24 … routed and masqueraded by the host

The kernel keeps the books.  A pod's nf_tables table is named after its address, names are unique, and the table lives
as long as a socket that pause holds (in a user's pod, nsrun-hold): so whoever gets the table has the address, and
whatever the owner of a pod does to its eth0, nobody else gets an address to which that table still forwards.  A published
port is a bound socket.  So nothing here needs a lease file, and nothing is left when pause is killed but an idle bridge
with its table, which the next command removes.

What a pod may send is checked on its veth (portfilter.py), and that check goes with the veth.  Who is behind which port
is written down for the bridge and for the host, never learned.  What holds for the whole bridge stands in a table without
an owner, which goes with the bridge.

Links are named by index and by an alias that holds the pod's id; a note also tells the network namespace it was made in.
What does not match is another's, and left alone.

veth(4), bridge(8), nft(8) "owner"; the rules' reasons are in messages.py.
"""

from __future__ import annotations

import _socket
import os
import sys
from errno import EADDRINUSE, EADDRNOTAVAIL, EEXIST, EINVAL, ENODEV, ENOENT, EOPNOTSUPP, EPERM, EPROTONOSUPPORT

from nsrun import kernel
from nsrun.errors import BadInput, KernelError
from nsrun.host import portfilter, wire
from nsrun.schema import is_number
from nsrun.spec.options import ip_number, ip_text, parse_subnet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


BRIDGE = "nsrun0"
BRIDGE_ALIAS = "nsrun:all the pods"
#: The one table without an owner: what holds for the bridge as long as there is one, whoever was killed.
COMMON_TABLE = "nsrun-all-pods"
PREFIX = 24
#: Tried in this order until one is free on this machine; NSRUN_SUBNET (or --subnet) names another.
SUBNETS = (
    [f"10.88.{n}.0" for n in range(16)]
    + [f"172.28.{n}.0" for n in range(16)]
    + [f"192.168.{n}.0" for n in range(200, 232)]
)


#: Settings by which a host takes advice from its network: below /proc/sys/net, with the interface left out.
ADVICE = ("ipv6/conf/{}/accept_ra", "ipv6/conf/{}/accept_redirects", "ipv4/conf/{}/accept_redirects")


def veth_name(ip: str) -> str:
    """An interface name holds 15 bytes: the address in hex fits and says who it is."""
    return f"nsr{ip_number(ip):08x}"


def table_name(ip: str) -> str:
    """The pod's table, and its lease on the address."""
    return f"nsrun-{ip_number(ip):08x}"


def alias_of(ident: str) -> str:
    """What `ip link` shows of a pod's veth: whose it is."""
    return f"nsrun:{ident}"


def label_of(ident: str) -> bytes:
    """What conntrack's label of a connection says: whose it is."""
    return bytes.fromhex(ident).rjust(16, b"\0")


def mac_of(ip: str) -> bytes:
    """Locally administered, the same for the same address: a neighbour's ARP entry never goes stale."""
    return portfilter.MAC_PREFIX.to_bytes(2, "big") + ip_number(ip).to_bytes(4, "big")


def netns_cookie() -> int:
    """Return a number for the network namespace of this thread that no other has, nor will have until the next boot.

    SO_NETNS_COOKIE, Linux 5.14; the inode of /proc/self/ns/net is given to another when the namespace is gone.
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


def _routes() -> list[tuple[int, int]]:
    """(destination, mask) of every route but the default, proc_net(5) route."""
    found = []
    with open("/proc/thread-self/net/route", "rb") as file:  # an interface's name may be of any bytes but ASCII blanks
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
    """The first address of a free /24.  BadInput when the wanted one is in use, or all are."""
    if wanted:
        net = parse_subnet(wanted)
        if subnet_in_use(net):
            raise BadInput(
                f"--subnet {net}/24 is in use on this machine", hint="ip route shows by whom; choose another"
            )
        return net
    for net in SUBNETS:
        if not subnet_in_use(net):
            return net
    raise BadInput("no free /24 for the bridge", hint="name one with --subnet or NSRUN_SUBNET")


def current_gateway() -> str:
    return wire.address_of(BRIDGE)


def _write(path: str, value: str) -> None:
    with open(path, "w") as file:
        file.write(value)


def ensure_bridge(sock: Any, wanted: str) -> tuple[str, int]:
    """(gateway, index) of the bridge, made if need be.  The caller holds the lock on the network."""
    gateway = current_gateway()
    if gateway and wanted and ip_number(gateway) & 0xFFFFFF00 != ip_number(wanted.partition("/")[0]) & 0xFFFFFF00:
        raise BadInput(
            f"the bridge {BRIDGE} is {gateway}/{PREFIX}: pods are on it",
            hint="all pods of a machine share one network; leave --subnet out",
        )
    if not gateway:
        gateway = ip_text(ip_number(pick_subnet(wanted)) + 1)
        try:
            message = wire.encode("new_bridge", bridge=BRIDGE, mac=mac_of(gateway))
            wire.talk(sock, [(f"ip link add {BRIDGE} type bridge", message)])
        except KernelError as error:
            if error.errno != EEXIST:  # else its maker was killed
                raise
        index = _socket.if_nametoindex(BRIDGE)
        wire.talk(
            sock,
            [
                (
                    f"ip link set {BRIDGE} alias '{BRIDGE_ALIAS}'",
                    wire.encode("set_alias", index=index, alias=BRIDGE_ALIAS),
                ),
                (
                    f"ip address add {gateway}/{PREFIX} dev {BRIDGE}",
                    wire.encode("new_address", index=index, pod_ip=gateway),
                ),
            ],
        )
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


def _ensure_common_table() -> None:
    if COMMON_TABLE in tables():  # asking first: a batch that is refused waits for an RCU grace period, 5 ms
        return
    batch = [
        ("nft batch", wire.encode("batch_begin")),
        (f"nft create table ip {COMMON_TABLE}", wire.encode("new_common_table", table=COMMON_TABLE)),
    ]
    for chain, rule in (("guard", "guard_loopback"), ("forward", "forward_nothing_new")):
        batch.append((f"nft add chain ip {COMMON_TABLE} {chain}", wire.encode(f"chain_{chain}", table=COMMON_TABLE)))
        batch.append((f"nft add rule ip {COMMON_TABLE} {chain}", wire.encode(rule, table=COMMON_TABLE, bridge=BRIDGE)))
    batch.append(("nft batch", wire.encode("batch_end")))
    with wire.open_socket(wire.NETLINK_NETFILTER) as sock:
        try:
            wire.talk(sock, batch)
        except KernelError as error:
            if error.errno != EEXIST:  # somebody was faster; a batch is carried out whole or not at all
                raise


def _remove_common_table() -> None:
    words = [
        ("nft batch", wire.encode("batch_begin")),
        (f"nft delete table ip {COMMON_TABLE}", wire.encode("del_table", table=COMMON_TABLE)),
        ("nft batch", wire.encode("batch_end")),
    ]
    with wire.open_socket(wire.NETLINK_NETFILTER) as sock:
        try:
            wire.talk(sock, words)
        except KernelError as error:
            if error.errno != ENOENT:  # flushed just now
                raise


def connect(
    sock: wire.Socket, netns: int, gateway: str, bridge_index: int, wanted_ip: str, ident: str
) -> tuple[str, int, wire.Socket]:
    """Lease the first free address (or the wanted one) and make the pair: (address, this end's index, the lease).

    The lease is a socket: the address is the pod's as long as it is open.  An address is free when its table and its
    veth are gone.  BadInput: it is taken, or all are.
    """
    net = ip_number(gateway) & 0xFFFFFF00
    if wanted_ip:
        number = ip_number(wanted_ip)
        if number & 0xFFFFFF00 != net or number in (net, net + 255, ip_number(gateway)):
            raise BadInput(f"--ip {wanted_ip} is not a free address of {ip_text(net)}/{PREFIX}")
        candidates = [number]
    else:
        taken = {name[3:] for name in interfaces()} | {name[6:] for name in leases()}
        candidates = [n for n in range(net + 2, net + 255) if f"{n:08x}" not in taken]
    for number in candidates:
        ip = ip_text(number)
        table = lease(ip)
        if table is None:
            continue
        try:
            index = _make_port(sock, netns, bridge_index, ip, ident)
        except BaseException:
            table.close()
            raise
        if index:
            return ip, index, table
        table.close()
    if wanted_ip:
        raise BadInput(f"--ip {wanted_ip} is taken by another pod", hint="nsrun pod ls shows the addresses")
    raise BadInput(f"all addresses of {ip_text(net)}/{PREFIX} are in use", hint="remove a pod: nsrun pod ls")


def lease(ip: str) -> wire.Socket | None:
    """Make the pod's table, still empty; it lives as long as the socket that is returned.  None: it is another's."""
    name = table_name(ip)
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


def tables() -> set[str]:
    """Return the names of all tables of nsrun's in this network namespace."""
    with wire.open_socket(wire.NETLINK_NETFILTER) as sock:
        bodies = wire.ask(sock, "nft list tables", wire.encode("get_tables"))
    names = (wire.attributes(body[4:]).get(1, b"").rstrip(b"\0").decode(errors="replace") for body in bodies)
    return {name for name in names if name.startswith("nsrun-") and len(name) == len(COMMON_TABLE)}


def leases() -> set[str]:
    """Return the names of the tables of pods."""
    return tables() - {COMMON_TABLE}


def _make_port(sock: wire.Socket, netns: int, bridge_index: int, ip: str, ident: str) -> int:
    """Make the pair, and let this end come up when the filter is on it; return its index, 0: the name is taken."""
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
        secure_port(sock, name, index, bridge_index, ip, ident)
    except BaseException:
        wire.talk(sock, [(f"ip link del {name}", wire.encode("del_link", index=index))])
        raise
    return index


def secure_port(sock: wire.Socket, name: str, index: int, bridge_index: int, ip: str, ident: str) -> None:
    """Say who is behind a port of the bridge and what may come from it; then it comes up."""
    mac = mac_of(ip)
    words = ":".join(f"{byte:02x}" for byte in mac)
    wire.talk(
        sock,
        [
            (f"tc qdisc add dev {name} ingress", wire.encode("ingress", index=index)),
            (
                f"tc filter add dev {name} ingress bpf direct-action …",
                wire.encode("port_filter", index=index, ip_word=ip_number(ip)),
            ),
            (
                f"bridge fdb replace {words} dev {name} master static sticky",
                wire.encode("fdb_entry", index=index, mac=mac),
            ),
            (
                f"ip neighbour replace {ip} lladdr {words} dev {BRIDGE} nud permanent",
                wire.encode("neighbour", bridge_index=bridge_index, pod_ip=ip, mac=mac),
            ),
            (
                f"ip link set {name} up alias {alias_of(ident)}; bridge link set dev {name} learning off flood off …",
                wire.encode("port_up", index=index, alias=alias_of(ident)),
            ),
        ],
    )


def configure_pod(ip: str, gateway: str) -> None:
    """Inside the pod's network namespace: lo and eth0 up, the address, the default route."""
    with wire.open_socket(wire.NETLINK_ROUTE) as sock:
        index = _socket.if_nametoindex("eth0")
        wire.talk(
            sock,
            [
                ("ip link set lo up", wire.encode("link_up", index=_socket.if_nametoindex("lo"))),
                (f"ip address add {ip}/{PREFIX} dev eth0", wire.encode("new_address", index=index, pod_ip=ip)),
                ("ip link set eth0 up", wire.encode("link_up", index=index)),
                (f"ip route add default via {gateway}", wire.encode("default_route", gateway=gateway)),
            ],
        )


def trust_no_router() -> None:
    """Inside the pod's network namespace, before eth0 is up: advertisements and redirects change nothing."""
    for setting in ADVICE:
        for where in ("all", "default", "eth0"):
            try:
                _write(f"/proc/sys/net/{setting.format(where)}", "0")
            except FileNotFoundError:
                continue  # no IPv6 here


def loopback_up() -> None:
    with wire.open_socket(wire.NETLINK_ROUTE) as sock:
        wire.talk(sock, [("ip link set lo up", wire.encode("link_up", index=_socket.if_nametoindex("lo")))])


def raise_open_files(more: int) -> None:
    """So many more descriptors, as far as may be: each published port is one.  getrlimit(2)."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = more + 256
    if 0 <= soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard < 0 else min(wanted, hard), hard))


def hold_port(
    host_ip: str, port: int, holder: Callable[[str, int], str], to_listen: bool = False
) -> tuple[_socket.socket, int]:
    """A bound TCP socket: no other program, and no other pod, can have this port while it is open (moby#13024).

    `to_listen`: it is only asked whether somebody else could bind it with SO_REUSEADDR and listen, socket(7): connections that
    ended in the last minute are in nobody's way then.
    """
    sock = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    if to_listen:
        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host_ip, port))
    except OSError as error:
        sock.close()
        if error.errno == EADDRINUSE:
            raise BadInput(
                f"port {host_ip}:{port}/tcp is taken",
                hint=holder(host_ip, port) or _who_has(port),
                errno=EADDRINUSE,
            ) from None
        if error.errno == EADDRNOTAVAIL:
            raise BadInput(
                f"{host_ip} is not an address of this host", hint="ip address shows them", errno=EADDRNOTAVAIL
            ) from None
        raise
    return sock, sock.getsockname()[1]


CHAINS = ("prerouting", "output", "postrouting", "guard", "forward")


def rules(table: str, ident: str, pod_ip: str, gateway: str, ports: list[dict[str, Any]]) -> list[tuple[str, bytes]]:
    """What goes into the pod's own nf_tables table, as (nft's words, message) …"""
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
    for name in ("ports", "addresses"):
        some = [port for port in ports if (port["host_ip"] == "0.0.0.0") == (name == "ports")]
        if not some:
            continue
        requests.append((f"nft add map ip {table} {name}", wire.encode(f"map_{name}", table=table)))
        for first in range(0, len(some), 1000):  # as many as an attribute's 64 KiB hold
            items: list[dict[str, object]] = [
                {"port": port["host_port"], "pod_ip": pod_ip, "pod_port": port["pod_port"]}
                | ({"host_ip": port["host_ip"]} if name == "addresses" else {})
                for port in some[first : first + 1000]
            ]
            text = f"nft add element ip {table} {name}"
            requests.append((text, wire.encode_list(f"elements_{name}", items, table=table)))
        for chain in ("prerouting", "output"):
            text = f"nft add rule ip {table} {chain} dnat to map @{name}"
            requests.append((text, wire.encode(f"publish_{name}_{chain}", table=table)))
    requests.append(("nft batch", wire.encode("batch_end")))
    return requests


def _who_has(port: int) -> str:
    """Return which program has a port that no pod of ours has, as far as the kernel's tables show it."""
    inodes, lingers = set(), False
    for file in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(file, errors="surrogateescape") as lines:
                for fields in (line.split() for line in list(lines)[1:]):
                    if int(fields[1].rpartition(":")[2], 16) == port:
                        lingers |= fields[3] == "06"  # TIME_WAIT
                        if fields[3] == "0A":  # LISTEN
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
        return f"by a program of another user's: sudo ss -ltnp 'sport = {port}'"
    if lingers:
        return "by connections that have just ended (TIME_WAIT): try again in a minute, or take another port"
    return "by what has bound it and does not listen: a pod of another user's or of another --root, perhaps (sudo nsrun pod ls)"


def publish(table: int, ident: str, pod_ip: str, gateway: str, ports: list[dict[str, Any]]) -> None:
    """Fill the pod's table; `table`: a descriptor of the lease, which only its owner can change."""
    with wire.Socket(fileno=os.dup(table)) as sock:
        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, 1 << 20)
        wire.talk(sock, rules(table_name(pod_ip), ident, pod_ip, gateway, ports))


def forget_pod(note: dict[str, Any]) -> None:
    """Remove the pod's veth now: the kernel would, a little later.

    Neither what has its name since nor a link of another network namespace is touched.
    """
    network = note.get("network") or {}
    if network.get("veth") and network.get("netns") == netns_cookie():
        delete_link(network["veth"], network.get("veth_index", 0), alias_of(note["id"]))
        if note.get("user"):  # nsrun-hold ends a moment after pause, and the lease with it
            _wait(lambda: table_name(network["ip"]) not in leases(), 1.0)


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    """Return whether it came true in time."""
    import time

    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= end:
            return False
        time.sleep(0.005)
    return True


def delete_link(name: str, index: int, alias: str) -> None:
    """Remove an interface, if it is the one with this name, index and alias, and wait a second until it is gone.

    The kernel counts indices up, so it is no other afterwards.  One that is not there, or is another's, is no error.
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
        _wait(gone, 1.0)  # what can't be deleted now is on its way: its namespace is dying


def in_our_power() -> bool:
    """May we change links and tables of the network namespace that we are in?

    Not without CAP_NET_ADMIN, nor as root of a user namespace that it does not belong to.  network_namespaces(7).
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

    `patience`: seconds to wait for veths that are not among the `known` ones: what dies takes a moment.  A bridge that
    is not nsrun's own stays, but is no way to 127.0.0.1 any more.
    """

    if BRIDGE not in interfaces() or not in_our_power():
        return

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
            delete_link(BRIDGE, links[BRIDGE], BRIDGE_ALIAS)  # last: as long as it is there, a next command tries again
            return True

    _wait(settled, patience)


_FAMILIES = {1: "inet", 2: "ip", 10: "ip6", 5: "netdev", 7: "bridge", 3: "arp"}


def foreign_drop() -> str:
    """The chain of another firewall that drops what is forwarded, as nft names it ("ip filter FORWARD"); "" if none.

    An accept in our table can't undo another table's drop (netavark#977): Docker, ufw and firewalld have such chains.
    """
    try:
        with wire.open_socket(wire.NETLINK_NETFILTER) as sock:
            chains = wire.ask(sock, "nft list chains", wire.encode("get_chains"))
    except OSError as error:
        if error.errno not in (EPROTONOSUPPORT, EOPNOTSUPP, EINVAL):
            raise
        return ""  # no nf_tables here: nothing of it can drop
    for body in chains:
        chain = wire.attributes(body[4:])
        if 4 not in chain or 5 not in chain:  # NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY
            continue
        hook = wire.attributes(chain[4]).get(1, b"")
        table, name = (os.fsdecode(chain[key].rstrip(b"\0")) for key in (1, 3))
        if hook[-1:] == b"\2" and chain[5][-1:] == b"\0" and body[0] in (1, 2) and not table.startswith("nsrun-"):
            return f"{_FAMILIES[body[0]]} {table} {name}"
    return ""


def firewall_fix(chain: str) -> str:
    return f"nft insert rule {chain} oifname {BRIDGE} accept; nft insert rule {chain} iifname {BRIDGE} accept"
