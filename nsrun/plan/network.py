# SPDX-License-Identifier: Apache-2.0
"""Steps of phase 2 that only a pod has: its network namespace, its veth, its published ports."""

from __future__ import annotations

from errno import EINVAL, EMFILE, ENOENT, EOPNOTSUPP, EPERM, EPROTONOSUPPORT

from nsrun import kernel
from nsrun.plan import HOST, OWN_KEYRING, InitStep, Part, Step
from nsrun.spec.options import PROTOCOLS, is_forwarded, port_ranges

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsrun.plan import Compiling, Context, Replayed
    from nsrun.spec.options import Published


def netlink(command: str) -> str:
    """A netlink message, as the command of ip(8), bridge(8), tc(8) or nft(8) that sends the same."""
    return f"sendto(netlink, {{{command}}})"


class NewNetns(Step):
    phase = HOST
    why = "The network of the pod exists before its first process. It is held by a descriptor and not bind-mounted, so nothing can be left behind."
    man = "network_namespaces(7), unshare(2)"
    native = "kernel.c nsrun_new_netns"
    user: str = ""
    handle: str = "net:fd"

    def made(self) -> list[str | Part]:
        join = [OWN_KEYRING, f"setns({self.user}, CLONE_NEWUSER)"] if self.user else []
        helper = [*join, "unshare(CLONE_NEWNET)", f'{self.handle} = open("/proc/thread-self/ns/net")']
        return ["clone3(CLONE_FILES|CLONE_VM|CLONE_VFORK)", Part(helper, by="a helper, which shares our descriptors")]

    def brief(self) -> str:
        return "unshare(CLONE_NEWNET)"

    def needs(self) -> tuple[str, ...]:
        return (self.user,) if self.user else ()

    def makes(self) -> tuple[str, ...]:
        return (self.handle,)

    approx = "a process holds the namespace instead of a descriptor"

    def shell(self) -> str:
        join = "nsenter --user --target $USERNS " if self.user else ""
        return (
            join
            + 'unshare --net sleep infinity >/dev/null & NET=$!; until [ "$(readlink /proc/$NET/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.01; done'
        )

    def check(self) -> str:
        return "readlink /proc/PID/ns/net"

    def replayed(self, compiler: Compiling) -> list[Replayed] | None:
        return None if self.user else [("new_netns", compiler.make(self.handle))]

    def do(self, run: Context) -> None:
        run.hold(self.handle, kernel.new_netns(run.fd(self.user) if self.user else -1))


class LoopbackUp(InitStep):
    why = "In a new network namespace lo is down, and without it localhost hangs."
    man = "netdevice(7)"

    def made(self) -> list[str | Part]:
        flags = [
            f'ioctl(fd, SIOC{way}IFFLAGS, {{"lo", {bits}}})' for way, bits in (("G", "flags"), ("S", "flags|IFF_UP"))
        ]
        return ["fd = socket(AF_INET, SOCK_DGRAM, 0)", *flags]

    def shell(self) -> str:
        return "ip link set lo up"

    def check(self) -> str:
        return "nsenter --target PID --net ip -br link show lo"


COMMON_RULES = """nft list table ip nsrun-all-pods >/dev/null 2>&1 || nft -f - <<EOF
table ip nsrun-all-pods {
 chain guard { type filter hook prerouting priority -300;
  iifname "nsrun0" ip daddr 127.0.0.0/8 drop
 }
 chain forward { type filter hook forward priority 0;
  oifname "nsrun0" iifname != "nsrun0" ct status & dnat == 0 ct state new drop
 }
}
EOF"""


class ConnectPod(Step):
    """The bridge, the lease, the pair."""

    phase = HOST
    why = (
        "A table with an owner is named after the address. Names are unique, so the kernel itself leases the address "
        "for as long as the pod's table lives. A filter, which lives as long as the veth, lets nothing pass but frames "
        "from this MAC and address. Which MAC is behind which port is written down and not learned."
    )
    man = "veth(4), bridge(8), ip-link(8), nft(8), tc-bpf(8)"
    ident: str
    ip: str = ""
    subnet: str = ""
    handle: str = "table:fd"
    hints = {
        EPERM: "needs CAP_NET_ADMIN",
        EOPNOTSUPP: "this kernel has no veth, bridge or nf_tables: modprobe veth bridge nf_tables; or --network none",
        EPROTONOSUPPORT: "this kernel has no nf_tables: modprobe nf_tables; or --network none",
        ENOENT: "this kernel can't filter what a pod sends: modprobe sch_ingress cls_bpf; or --network none",
        EINVAL: "tables with an owner came with Linux 5.12",
    }

    def made(self) -> list[str | Part]:
        which = self.ip or "the first free one"
        bridge = [
            netlink("ip link add nsrun0 type bridge"),
            netlink("ip link set nsrun0 alias …; ip address add … dev nsrun0"),
        ]
        return [
            'flock("net.lock", LOCK_EX)',
            Part([*bridge, 'write("/proc/sys/net/ipv4/ip_forward", "1")'], when="there is no bridge nsrun0"),
            Part([netlink("nft create table ip nsrun-all-pods …")], when="there is no such table"),
            netlink("nft add table ip nsrun-… { flags owner; }") + f"   /* pod:ip: {which} */",
            Part([netlink("conntrack -D --reply-src pod:ip")], each="entry that a dead pod has left of the address"),
            netlink("ip link add nsr… master nsrun0 type veth peer name eth0 netns net:fd"),
            netlink("tc filter add dev nsr… ingress bpf …; bridge fdb …; ip neighbour …; ip link set nsr… up"),
        ]

    def brief(self) -> str:
        return "ip link add nsr… master nsrun0 type veth peer name eth0 netns net:fd"

    def needs(self) -> tuple[str, ...]:
        return ("net:fd",)

    def makes(self) -> tuple[str, ...]:
        return (self.handle, "pod:ip")

    def shell(self) -> str:
        from nsrun.host.net import ADVICE, BRIDGE_ALIAS, alias_of
        from nsrun.host.portfilter import MAC_PREFIX, tc_bytecode

        prefix = f"{MAC_PREFIX >> 8:02x}:{MAC_PREFIX & 255:02x}"
        choose = f"IP={self.ip}" if self.ip else (
            "IP=; n=2; while [ $n -lt 255 ]; do a=$(printf '%02x%02x%02x%02x' $(echo $NETWORK.$n | tr . ' '));"
            " ip link show nsr$a >/dev/null 2>&1 || nft list table ip nsrun-$a >/dev/null 2>&1 || { IP=$NETWORK.$n; break; }; n=$((n+1)); done"
        )  # fmt: skip
        default = self.subnet.rsplit(".", 1)[0] if self.subnet else "10.88.0"
        mac = f"$(printf '{prefix}:%02x:%02x:%02x:%02x' $(echo {{}} | tr . ' '))"
        advice = " ".join("/proc/sys/net/" + setting.format("nsrun0") for setting in ADVICE)
        return "\n".join(
            [
                f'GATEWAY=$(ip -4 -o address show nsrun0 2>/dev/null | awk \'{{sub("/.*", "", $4); print $4}}\'); : ${{GATEWAY:={default}.1}}; NETWORK=${{GATEWAY%.*}}',
                f"ip link show nsrun0 >/dev/null 2>&1 || {{ ip link add nsrun0 address {mac.format('$GATEWAY')} type bridge mcast_snooping 0; ip link set nsrun0 alias '{BRIDGE_ALIAS}'; ip address add $GATEWAY/24 dev nsrun0; for f in {advice}; do [ ! -e $f ] || echo 0 >$f; done; ip link set nsrun0 up; }}",
                COMMON_RULES,
                "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv4/conf/nsrun0/route_localnet",
                choose,
                f"HEX=$(printf '%02x%02x%02x%02x' $(echo $IP | tr . ' ')); VETH=nsr$HEX; MAC={mac.format('$IP')}",
                "nft create table ip nsrun-$HEX",
                "conntrack -D -f ipv4 --reply-src $IP 2>/dev/null || :",
                "ip link add $VETH type veth peer name eth0 address $MAC netns $NET; ip link set $VETH master nsrun0",
                f'tc qdisc add dev $VETH ingress; tc filter add dev $VETH ingress bpf direct-action bytecode "{tc_bytecode("$((0x$HEX))")}"',
                "bridge fdb replace $MAC dev $VETH master static sticky; ip neighbour replace $IP lladdr $MAC dev nsrun0 nud permanent",
                f"bridge link set dev $VETH learning off flood off hairpin on; ip link set $VETH alias {alias_of(self.ident)} up",
            ]
        )

    approx = (
        "the search for a free address is not atomic; the table has no owner, nft delete table gives the address back"
    )

    def check(self) -> str:
        return (
            "ip -br link show master nsrun0; nft list tables; tc filter show dev VETH ingress; bridge fdb show dev VETH"
        )

    def do(self, run: Context) -> None:
        from nsrun.host import net, wire

        with kernel.Fd(run.state.lock("net")):
            with wire.open_socket(wire.NETLINK_ROUTE) as sock:
                gateway, index = net.ensure_bridge(sock, self.subnet)
                ip, veth, table = net.connect(sock, run.fd("net:fd"), gateway, index, self.ip, self.ident)
        run.hold(self.handle, table.detach())
        run.values.update({"pod:ip": ip, "pod:gateway": gateway, "veth:index": veth, "host:netns": net.netns_cookie()})

    def undo(self, run: Context) -> None:
        from nsrun.host import net

        if "pod:ip" in run.values:
            name = net.veth_name(str(run.values["pod:ip"]))
            net.delete_link(name, int(run.values["veth:index"]), net.alias_of(self.ident))
        net.remove_idle_bridge(lambda: run.state.lock("net"))


class ConfigurePod(Step):
    phase = HOST
    man = "rtnetlink(7), ip-address(8), ip-route(8)"
    bridge: bool = True

    @property
    def why(self) -> str:  # type: ignore[override]
        lo = "Inside, lo has to come up, or localhost hangs"
        return (
            f"{lo}; eth0 gets the address and the way out, and the pod listens to no router and no redirect."
            if self.bridge
            else f"{lo}."
        )

    def made(self) -> list[str | Part]:
        quiet = ['write("/proc/sys/net/ipv6/conf/eth0/accept_ra", "0")   /* and the like */'] if self.bridge else []
        eth0 = (
            "; ip address add pod:ip/24 dev eth0; ip link set eth0 up; ip route add default via …"
            if self.bridge
            else ""
        )
        return ["setns(net:fd, CLONE_NEWNET)", *quiet, netlink(f"ip link set lo up{eth0}"), "setns(back, CLONE_NEWNET)"]

    def brief(self) -> str:
        return "ip address add pod:ip/24 dev eth0" if self.bridge else "ip link set lo up"

    def needs(self) -> tuple[str, ...]:
        return ("net:fd", "pod:ip") if self.bridge else ("net:fd",)

    def shell(self) -> str:
        run = "nsenter --target $NET --net ip"
        if not self.bridge:
            return f"{run} link set lo up"
        from nsrun.host.net import ADVICE

        advice = " ".join("/proc/sys/net/" + setting.format("$c") for setting in ADVICE)
        quiet = f"for c in all default eth0; do for f in {advice}; do [ ! -e $f ] || echo 0 >$f; done; done"
        return f"nsenter --target $NET --net sh -c '{quiet}'; {run} link set lo up; {run} address add $IP/24 dev eth0; {run} link set eth0 up; {run} route add default via $GATEWAY"

    def check(self) -> str:
        return "nsenter --target PID --net ip -br address"

    def replayed(self, compiler: Compiling) -> list[Replayed] | None:
        if self.bridge:
            return None
        from nsrun.host import net, wire

        return [("netlink", compiler.fd("net:fd"), wire.NETLINK_ROUTE, net.loopback_message())]

    def do(self, run: Context) -> None:
        from nsrun.host import net

        with kernel.inside_netns(run.fd("net:fd")):
            if self.bridge:
                net.trust_no_router()
                net.configure_pod(str(run.values["pod:ip"]), str(run.values["pod:gateway"]))
            else:
                net.loopback_up()


def binding(ports: Sequence[Published], purpose: str = "") -> list[str | Part]:
    """Return the calls by which ports of the host are bound (net.hold_port), protocol by protocol; `purpose` says why."""
    found: list[str | Part] = []
    for protocol in PROTOCOLS:
        some = [port for port in ports if port[3] == protocol]
        each = purpose or "PORT of " + ", ".join(
            f"{ip}:{'any free port' if host == 'free' else host}" for ip, host, _ in port_ranges(some)
        )
        calls = ["fd = socket(AF_INET, SOCK_STREAM)", "bind(fd, PORT)"]
        if protocol == "udp":
            keep = "setsockopt(fd, SOL_SOCKET, SO_RCVBUF, 0)"
            calls = ["fd = socket(AF_INET, SOCK_DGRAM)", keep, "bind(fd, PORT)"]
        if some:
            found.append(Part(calls, each=each, times=len(some)))
    return found


class HoldPorts(Step):
    phase = HOST
    why = "Pause keeps these bound sockets, so that another pod or program gets EADDRINUSE from the kernel."
    man = "bind(2)"
    ports: tuple[Published, ...]
    hints = {EMFILE: "more ports than descriptors: ulimit -n"}

    @property
    def handles(self) -> list[str]:
        return [
            f"port:{'' if protocol == 'tcp' else protocol + ':'}{ip}:{host or 'free'}:{pod}"
            for ip, host, pod, protocol in self.ports
        ]

    def made(self) -> list[str | Part]:
        return binding(self.ports)

    def makes(self) -> tuple[str, ...]:
        return tuple(self.handles)

    approx = "no shell tool binds without listening: no port is held"

    def check(self) -> str:
        _, host, _, protocol = self.ports[0]
        ask = "nc -u 127.0.0.1 {}" if protocol == "udp" else "curl http://127.0.0.1:{}/"
        return "nsrun pod ls; " + ask.format(host or "PORT")

    def do(self, run: Context) -> None:
        from nsrun.host import net

        if len(self.ports) > 1:
            net.raise_open_files(len(self.ports))
        for handle, (ip, host, pod, protocol) in zip(self.handles, self.ports, strict=True):
            sock, port = net.hold_port(ip, host, protocol, run.state.pod_with_port, run.state.was_released)
            run.hold(handle, sock.detach())
            run.ports.append({"host_ip": ip, "host_port": port, "pod_port": pod, "protocol": protocol})


class PublishTable(Step):
    phase = HOST
    why = "All rules are in a table of the pod's own, which has an owner: when pause dies, even by SIGKILL, the kernel removes it."
    man = "nft(8)"
    ident: str
    ports: tuple[Published, ...] = ()
    handle: str = "table:fd"
    hints = {
        EOPNOTSUPP: "this kernel lacks nf_tables nat, fib or masquerade: modprobe nf_tables nft_chain_nat nft_fib_ipv4 nft_masq",
        ENOENT: "this kernel lacks an nf_tables expression: modprobe nft_chain_nat nft_fib_ipv4 nft_masq nft_ct",
        EPERM: "needs CAP_NET_ADMIN",
    }

    def made(self) -> list[str | Part]:
        ports = ", ".join(f"{ip}:{host}→{pod}" for ip, host, pod in port_ranges(self.ports))
        udp = any(protocol == "udp" for *_, protocol in self.ports)
        stale = Part(
            [netlink("conntrack -D -p udp --orig-port-dst PORT")], each="entry that leads to a pod or to this host"
        )
        return [netlink("nft add chain …, rule …" + (f" {ports}" if ports else "")), *([stale] if udp else [])]

    def needs(self) -> tuple[str, ...]:
        return (self.handle, "pod:ip")

    approx = (
        "without the owner flag, which needs a socket that stays open: nft delete table removes it; "
        "for nft a label is one of 128 bits, nsrun's hold the pod's id"
    )

    def maps(self) -> tuple[str, str]:
        """Return the maps and the rules that forward, as nft reads them."""
        from nsrun.host.net import ports_by_map

        maps, rules = "", ""
        for name, protocol, some in ports_by_map(self.ports):
            one = not name.endswith("addresses")  # keyed by the port alone
            key, way = (f"{protocol} dport", "fib daddr type local ") if one else (f"ip daddr . {protocol} dport", "")
            elements = ", ".join(f"{'' if one else ip + ' . '}{host} : $IP . {pod}" for ip, host, pod, _ in some)
            type_ = "inet_service" if one else "ipv4_addr . inet_service"
            maps += f" map {name} {{ type {type_} : ipv4_addr . inet_service; elements = {{ {elements} }}\n }}\n"
            rules += f"  {way}meta l4proto {protocol} dnat ip addr . port to {key} map @{name}\n"
        return maps, rules

    def shell(self) -> str:
        maps, rules = self.maps()
        return f"""LABEL=$(($(od -An -N1 -tu1 /dev/urandom) % 128))


nft -f - <<EOF
table ip nsrun-$HEX {{
{maps} chain prerouting {{ type nat hook prerouting priority -100;
{rules} }}
 chain output {{ type nat hook output priority -100;
{rules} }}
 chain postrouting {{ type nat hook postrouting priority 100;
  ip saddr $IP oifname != "nsrun0" masquerade
  ip saddr 127.0.0.0/8 ip daddr $IP oifname "nsrun0" masquerade
  ip saddr $NETWORK.0/24 ip daddr $IP ct status dnat oifname "nsrun0" masquerade
 }}
 chain guard {{ type filter hook prerouting priority -300;
  iifname "nsrun0" ip daddr 127.0.0.0/8 drop
 }}
 chain forward {{ type filter hook forward priority 0;
  ip saddr $IP oifname != "nsrun0" ct label set $LABEL
  ip daddr $IP oifname "nsrun0" ct status dnat ct state new ct label set $LABEL
  ip daddr $IP iifname != "nsrun0" ct label $LABEL accept
  ip daddr $IP iifname != "nsrun0" ct state related accept
  ip daddr $IP iifname != "nsrun0" drop
 }}
}}
EOF"""

    def check(self) -> str:
        return "nft list table ip nsrun-…   # the address in hexadecimal"

    def do(self, run: Context) -> None:
        from nsrun.host import net

        ports = [port for port in run.ports if not is_forwarded(port)]
        net.publish(run.fd(self.handle), self.ident, str(run.values["pod:ip"]), str(run.values["pod:gateway"]), ports)
