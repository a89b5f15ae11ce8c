"""The host's side of a pod's network: one bridge, a veth pair per pod, published ports.

    pod A eth0 ── nsr0a580002 ┐
    pod B eth0 ── nsr0a580003 ┴ nsrun0 10.88.0.1/24 … routed and masqueraded by the host

The kernel keeps the books.  A pod's address is in the name of its veth, and names are unique: whoever gets
the interface has the address, and loses it when the pod's namespace dies.  A published port is a bound
socket and an nf_tables table with an owner, both held by pause.  So nothing here needs a lease file, and
nothing is left when pause is killed, except an idle bridge, which the next command removes.

veth(4), bridge(8), nft(8) "owner"; the rules' reasons are in messages.py.
"""

from __future__ import annotations

import _socket
import os
from errno import EADDRINUSE, EADDRNOTAVAIL, EEXIST, ENODEV

from nsrun.errors import BadInput, KernelError
from nsrun.host import wire
from nsrun.schema import is_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nsrun.state import State

BRIDGE = "nsrun0"
PREFIX = 24
#: Tried in this order until one is free on this machine; NSRUN_SUBNET (or --subnet) names another.
SUBNETS = (
    [f"10.88.{n}.0" for n in range(16)]
    + [f"172.28.{n}.0" for n in range(16)]
    + [f"192.168.{n}.0" for n in range(200, 232)]
)


def ip_number(ip: str) -> int:
    return int.from_bytes(_socket.inet_aton(ip), "big")


def ip_text(number: int) -> str:
    return _socket.inet_ntoa(number.to_bytes(4, "big"))


def parse_ipv4(text: str, what: str) -> str:
    """BadInput unless it is four decimal numbers."""
    parts = text.split(".")
    if len(parts) != 4 or not all(is_number(p) and len(p) <= 3 and int(p) < 256 for p in parts):
        raise BadInput(f"{what}: {text!r} is not an IPv4 address")
    return ".".join(str(int(p)) for p in parts)


def veth_name(ip: str) -> str:
    """An interface name holds 15 bytes: the address in hex fits and says who it is."""
    return f"nsr{ip_number(ip):08x}"


def mac_of(ip: str) -> bytes:
    """Locally administered, the same for the same address: a neighbour's ARP entry never goes stale."""
    return b"\x02\x4e" + ip_number(ip).to_bytes(4, "big")


def interfaces() -> dict[str, int]:
    return {name: index for index, name in _socket.if_nameindex()}


def _routes() -> list[tuple[int, int]]:
    """(destination, mask) of every route but the default, proc_net(5) route."""
    found = []
    with open("/proc/thread-self/net/route") as file:
        for line in file.readlines()[1:]:
            fields = line.split()
            to, mask = (int.from_bytes(bytes.fromhex(f), "little") for f in (fields[1], fields[7]))
            if mask:
                found.append((to, mask))
    return found


def subnet_in_use(subnet: str) -> bool:
    net, mask = ip_number(subnet), 0xFFFFFF00
    return any(net & m == to & m & mask or to & mask == net for to, m in _routes())


def pick_subnet(wanted: str) -> str:
    """The first address of a free /24.  BadInput when the wanted one is in use, or all are."""
    if wanted:
        address, _, prefix = wanted.partition("/")
        address = parse_ipv4(address, "--subnet")
        if prefix not in ("", "24"):
            raise BadInput(f"--subnet {wanted}: the bridge's network is a /24")
        net = ip_text(ip_number(address) & 0xFFFFFF00)
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
            wire.talk(sock, [(f"ip link add {BRIDGE} type bridge", wire.encode("new_bridge", bridge=BRIDGE))])
        except KernelError as error:
            if error.errno != EEXIST:
                raise
        index = _socket.if_nametoindex(BRIDGE)
        wire.talk(
            sock,
            [
                (
                    f"ip address add {gateway}/{PREFIX} dev {BRIDGE}",
                    wire.encode("new_address", index=index, pod_ip=gateway),
                )
            ],
        )
        for setting in ("ipv6/conf/{}/accept_ra", "ipv6/conf/{}/accept_redirects", "ipv4/conf/{}/accept_redirects"):
            try:  # a pod must not tell this host where to send its packets (CVE-2020-13401)
                _write("/proc/sys/net/" + setting.format(BRIDGE), "0")
            except FileNotFoundError:
                continue  # no IPv6 here
    with open("/proc/sys/net/ipv4/ip_forward") as file:
        forwards = file.read().strip() == "1"
    if not forwards:
        _write("/proc/sys/net/ipv4/ip_forward", "1")
    # Only this link: 127.0.0.1 may be routed to a pod.  The guard rule closes the way back.
    _write(f"/proc/sys/net/ipv4/conf/{BRIDGE}/route_localnet", "1")
    return gateway, _socket.if_nametoindex(BRIDGE)


def make_veth(sock: Any, netns: int, gateway: str, bridge_index: int, wanted_ip: str) -> tuple[str, int]:
    """The pair, named after the first free address (or the wanted one); gives the address, and this end's index."""
    net = ip_number(gateway) & 0xFFFFFF00
    if wanted_ip:
        number = ip_number(wanted_ip)
        if number & 0xFFFFFF00 != net or number in (net, net + 255, ip_number(gateway)):
            raise BadInput(f"--ip {wanted_ip} is not a free address of {ip_text(net)}/{PREFIX}")
        candidates = [number]
    else:
        taken = interfaces()
        candidates = [n for n in range(net + 2, net + 255) if veth_name(ip_text(n)) not in taken]
    for number in candidates:
        ip = ip_text(number)
        message = wire.encode("new_veth", veth=veth_name(ip), bridge_index=bridge_index, netns_fd=netns, mac=mac_of(ip))
        try:
            wire.talk(
                sock, [(f"ip link add {veth_name(ip)} master {BRIDGE} type veth peer name eth0 netns {netns}", message)]
            )
            index = _socket.if_nametoindex(veth_name(ip))
            hairpin = wire.encode("hairpin", index=index)
            wire.talk(sock, [(f"bridge link set dev {veth_name(ip)} hairpin on", hairpin)])
            return ip, index
        except KernelError as error:
            if error.errno != EEXIST:
                raise
            if wanted_ip:
                raise BadInput(
                    f"--ip {wanted_ip} is taken by another pod", hint="nsrun pod ls shows the addresses"
                ) from None
    raise BadInput(f"all addresses of {ip_text(net)}/{PREFIX} are in use", hint="remove a pod: nsrun pod ls")


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


def loopback_up() -> None:
    with wire.open_socket(wire.NETLINK_ROUTE) as sock:
        wire.talk(sock, [("ip link set lo up", wire.encode("link_up", index=_socket.if_nametoindex("lo")))])


def hold_port(host_ip: str, port: int) -> tuple[_socket.socket, int]:
    """A bound TCP socket: no other program, and no other pod, can have this port while it is open (moby#13024)."""
    sock = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        sock.bind((host_ip, port))
    except OSError as error:
        sock.close()
        if error.errno == EADDRINUSE:
            raise BadInput(
                f"port {host_ip}:{port}/tcp is taken",
                hint=f"by another pod (nsrun pod ls) or program: ss -ltnp 'sport = {port}'",
                errno=EADDRINUSE,
            ) from None
        if error.errno == EADDRNOTAVAIL:
            raise BadInput(
                f"{host_ip} is not an address of this host", hint="ip address shows them", errno=EADDRNOTAVAIL
            ) from None
        raise
    return sock, sock.getsockname()[1]


CHAINS = ("prerouting", "output", "postrouting", "guard", "forward")


def rules(table: str, pod_ip: str, gateway: str, ports: list[dict[str, Any]]) -> list[tuple[str, bytes]]:
    """The pod's own nf_tables table, as (nft's words, message) …"""
    requests = [("nft batch", wire.encode("batch_begin"))]
    requests.append((f"nft add table ip {table} {{ flags owner; }}", wire.encode("new_table", table=table)))
    for chain in CHAINS:
        requests.append((f"nft add chain ip {table} {chain}", wire.encode(f"chain_{chain}", table=table)))
    on_bridge = {"table": table, "bridge": BRIDGE, "pod_ip": pod_ip}
    for text, data in (
        ("guard", wire.encode("guard_loopback", table=table, bridge=BRIDGE)),
        ("postrouting", wire.encode("masquerade_out", **on_bridge)),
        ("postrouting", wire.encode("masquerade_loopback", **on_bridge)),
        (
            "postrouting",
            wire.encode("masquerade_hairpin", **on_bridge, subnet=ip_text(ip_number(gateway) & 0xFFFFFF00)),
        ),
        ("forward", wire.encode("forward_in", table=table, pod_ip=pod_ip)),
        ("forward", wire.encode("forward_closed", **on_bridge)),
    ):
        requests.append((f"nft add rule ip {table} {text}", data))
    for port in ports:
        values = {"table": table, "port": port["host_port"], "pod_ip": pod_ip, "pod_port": port["pod_port"]}
        name = "publish_any"
        if port["host_ip"] != "0.0.0.0":
            name, values["host_ip"] = "publish", port["host_ip"]
        for chain in ("prerouting", "output"):
            text = f"nft add rule ip {table} {chain} tcp dport {port['host_port']} dnat to {pod_ip}:{port['pod_port']}"
            requests.append((text, wire.encode(f"{name}_{chain}", **values)))
    requests.append(("nft batch", wire.encode("batch_end")))
    return requests


def publish(table: str, pod_ip: str, gateway: str, ports: list[dict[str, Any]]) -> _socket.socket:
    """Makes the table; it lives as long as the socket that is given back."""
    sock = wire.open_socket(wire.NETLINK_NETFILTER)
    sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, 1 << 20)
    try:
        wire.talk(sock, rules(table, pod_ip, gateway, ports))
    except BaseException:
        sock.close()
        raise
    return sock


def forget_pod(note: dict[str, Any]) -> None:
    """Removes the pod's veth now: the kernel would, a little later.  What has the address since is another."""
    network = note.get("network") or {}
    if network.get("veth"):
        delete_link(network["veth"], network.get("veth_index", 0))


def delete_link(name: str, index: int) -> None:
    """Removes an interface and waits until it is gone; one that is not there is no error.

    By its index, which the kernel counts up; the name can be another's a moment after.
    """
    import time

    for attempt in range(200):
        if interfaces().get(name) != index:
            return
        try:
            with wire.open_socket(wire.NETLINK_ROUTE) as sock:
                wire.talk(sock, [(f"ip link del {name}", wire.encode("del_link", index=index))])
        except KernelError as error:
            if error.errno != ENODEV:
                raise
        if attempt:
            time.sleep(0.005)  # its namespace is dying: the kernel is at it


def remove_idle_bridge(state: State, known: set[str] | None = None, patience: float = 0.0) -> None:
    """The bridge goes when no pod is on it.

    `patience`: seconds to wait for interfaces that are not among the `known` ones: what dies takes a moment.
    """
    import time

    end = time.monotonic() + patience
    while BRIDGE in interfaces():
        lock = state.lock("net")
        try:
            pods = {name for name in interfaces() if name.startswith("nsr") and len(name) == 11}
            if not pods:
                delete_link(BRIDGE, interfaces().get(BRIDGE, 0))
                return
        finally:
            os.close(lock)
        if pods <= (known or set()) or time.monotonic() >= end:
            return
        time.sleep(0.005)


_FAMILIES = {1: "inet", 2: "ip", 10: "ip6", 5: "netdev", 7: "bridge", 3: "arp"}


def foreign_drop() -> str:
    """The chain of another firewall that drops what is forwarded, as nft names it ("ip filter FORWARD"); "" if none.

    An accept in our table can't undo another table's drop (netavark#977): Docker, ufw and firewalld have such chains.
    """
    try:
        with wire.open_socket(wire.NETLINK_NETFILTER) as sock:
            chains = wire.dump(sock, wire.encode("get_chains"))
    except OSError:
        return ""  # no nf_tables here: nothing of it can drop
    for body in chains:
        chain = wire.attributes(body[4:])
        if 4 not in chain or 5 not in chain:  # NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY
            continue
        hook = wire.attributes(chain[4]).get(1, b"")
        table, name = (chain[key].rstrip(b"\0").decode() for key in (1, 3))
        if hook[-1:] == b"\2" and chain[5][-1:] == b"\0" and body[0] in (1, 2) and not table.startswith("nsrun-"):
            return f"{_FAMILIES[body[0]]} {table} {name}"
    return ""


def firewall_fix(chain: str) -> str:
    return f"nft insert rule {chain} oifname {BRIDGE} accept; nft insert rule {chain} iifname {BRIDGE} accept"
