# SPDX-License-Identifier: Apache-2.0
"""Steps of phase 2 that only a pod has: its network namespace, its veth, its published ports."""

from __future__ import annotations

from errno import EINVAL, EMFILE, ENOENT, EOPNOTSUPP, EPERM

from nsrun import kernel
from nsrun.errors import BadInput
from nsrun.plan import HOST, OWN_KEYRING, InitStep, Part, Step
from nsrun.spec.options import PROTOCOLS, Subnet, at, is_forwarded, parse_subnet, port_ranges

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsrun.host.bridges import Bridge
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


def common_rules(bridge: str) -> str:
    """Return the commands that make the table of family ip of a whole bridge."""
    from nsrun.host.bridges import common_table

    return f"""nft list table ip {common_table(bridge)} >/dev/null 2>&1 || nft -f - <<EOF
table ip {common_table(bridge)} {{
 chain guard {{ type filter hook prerouting priority -300;
  iifname "{bridge}" ip daddr 127.0.0.0/8 drop
 }}
 chain forward {{ type filter hook forward priority 0;
  oifname "{bridge}" iifname != "{bridge}" ct status & dnat == 0 ct state new drop
  iifname "{bridge}" oifname != "{bridge}" oifname "nsrb*" ct status & dnat == 0 drop
  iifname "{bridge}" oifname != "{bridge}" oifname "nsru*" ct status & dnat == 0 drop
 }}
}}
EOF"""


def common_rules6(bridge: str) -> str:
    """Return the commands that make the table of family ip6 of a whole bridge."""
    from nsrun.host.bridges import common_table

    return f"""nft list table ip6 {common_table(bridge)} >/dev/null 2>&1 || nft -f - <<EOF
table ip6 {common_table(bridge)} {{
 chain forward {{ type filter hook forward priority 0;
  oifname "{bridge}" iifname != "{bridge}" ct status & dnat == 0 ct state new drop
 }}
}}
EOF"""


FORWARD6 = """if [ "$(cat /proc/sys/net/ipv6/conf/all/forwarding)" = 0 ]; then
 for d in /proc/sys/net/ipv6/conf/*; do
  case ${d##*/} in all|default|lo|nsrun0|nsrb??) continue;; esac
  [ "$(cat $d/accept_ra) $(cat $d/forwarding)" != "1 0" ] || echo 2 >$d/accept_ra
 done
 later=$(cat /proc/sys/net/ipv6/conf/default/forwarding)
 echo 1 >/proc/sys/net/ipv6/conf/all/forwarding; echo $later >/proc/sys/net/ipv6/conf/default/forwarding
fi"""


def subnet_in(run: Context) -> Subnet:
    """Return the network of the pod's bridge, which an earlier step has found."""
    return Subnet(str(run.values["pod:gateway"]), int(run.values["pod:prefix"]))


#: For a shell: four bytes of an IPv4 address, as printf(1) formats them.
BYTES = "$(printf '{}' $(echo {} | tr . ' '))"
HEX = "%02x%02x%02x%02x"


class ConnectPod(Step):
    """The bridge, the lease, the pair."""

    phase = HOST
    man = "veth(4), bridge(8), ip-link(8), nft(8), tc-bpf(8)"
    ident: str
    ip: str = ""
    subnet: str = ""
    ipv6: bool = False
    subnet6: str = ""
    isolated: bool = False
    closed: bool = False
    mtu: int = 1500
    bridge: str = "nsrun0"
    network: str = ""  # its name and its id, if it is not the default one
    network_id: str = ""
    handle: str = "table:fd"
    hints = {
        EPERM: "needs CAP_NET_ADMIN",
        EOPNOTSUPP: "this kernel has no veth or bridge: modprobe veth bridge; or --network none, with --publish-mode forward for ports",
        ENOENT: "this kernel can't filter what a pod sends: modprobe sch_ingress cls_bpf; or --network none",
        EINVAL: "tables with an owner came with Linux 5.12",
    }

    @property
    def why(self) -> str:  # type: ignore[override]
        if self.closed:
            lease = "There is no nf_tables. A socket that is bound to the address leases it for as long as the pod lives. Two filters, which live as long as the veth, let pass only what stays on the bridge, since nothing else guards the ways by this host."
        else:
            lease = "A table with an owner is named after the address. Names are unique, so the kernel itself leases the address for as long as the pod's table lives. A filter, which lives as long as the veth, lets nothing pass but frames from this MAC and address."
        last = " The IPv6 address ends with the IPv4 one, so one lease serves both." if self.ipv6 else ""
        return f"{lease} Which MAC is behind which port is written down and not learned.{last}"

    def made(self) -> list[str | Part]:
        from nsrun.host.bridges import common_table

        which, table = self.ip or "the first free one", common_table(self.bridge)
        bridge = [
            netlink(f"ip link add {self.bridge} type bridge"),
            netlink(f"ip link set {self.bridge} alias …; ip address add … dev {self.bridge}"),
        ]
        six: list[str | Part] = [
            Part([netlink(f"ip -6 address add … dev {self.bridge} nodad")], when="the bridge has no IPv6 address"),
            Part([netlink(f"nft create table ip6 {table} …")], when="there is no such table"),
            Part(
                [
                    Part(
                        ['write("/proc/sys/net/ipv6/conf/LINK/accept_ra", "2")'], each="LINK that learns from routers"
                    ),
                    'write("/proc/sys/net/ipv6/conf/all/forwarding", "1")',
                ],
                when="this host does not forward IPv6",
            ),
        ]
        pair = netlink(self.brief())
        filters = "tc filter add dev nsr… ingress bpf …; " + (
            "tc filter add dev nsr… egress bpf …; " if self.isolated or self.closed else ""
        )
        port = netlink(f"{filters}bridge fdb …; ip neighbour …; ip link set nsr… up")
        if self.closed:
            return [
                'flock("net.lock", LOCK_EX)',
                Part(bridge, when=f"there is no bridge {self.bridge}"),
                f"{self.handle} = socket(AF_INET, SOCK_STREAM)",
                f"setsockopt({self.handle}, IPPROTO_IP, IP_FREEBIND, 1)",
                f"bind({self.handle}, pod:ip:4)   /* pod:ip: {which} */",
                pair,
                port,
            ]
        return [
            'flock("net.lock", LOCK_EX)',
            Part([*bridge, 'write("/proc/sys/net/ipv4/ip_forward", "1")'], when=f"there is no bridge {self.bridge}"),
            Part([netlink(f"nft create table ip {table} …")], when="there is no such table"),
            *(six if self.ipv6 else []),
            netlink("nft add table ip nsrun-… { flags owner; }") + f"   /* pod:ip: {which} */",
            Part(
                [netlink("conntrack -D --reply-src pod:ip")],
                each=f"entry that a dead pod has left of the address{'es' if self.ipv6 else ''}",
            ),
            pair,
            port,
        ]

    def brief(self) -> str:
        return (
            f"ip link add nsr… mtu {self.mtu} master {self.bridge} type veth peer name eth0 mtu {self.mtu} netns net:fd"
        )

    def needs(self) -> tuple[str, ...]:
        return ("net:fd",)

    def makes(self) -> tuple[str, ...]:
        return (self.handle, "pod:ip", *(("pod:ip6",) if self.ipv6 else ()))

    def shell(self) -> str:
        from nsrun.host.bridges import SUBNETS, Bridge
        from nsrun.host.net import ADVICE, alias_of
        from nsrun.host.portfilter import MAC_PREFIX

        name, alias = self.bridge, Bridge(self.bridge, self.network, self.network_id).alias
        prefix = f"{MAC_PREFIX >> 8:02x}:{MAC_PREFIX & 255:02x}"
        choose = f"IP={self.ip}" if self.ip else (
            "IP=; n=$((FIRST + 2)); while [ $n -lt $((FIRST | ~MASK & 0xFFFFFFFF)) ]; do a=$(printf %08x $n);"
            " ip link show nsr$a >/dev/null 2>&1 || nft list table ip nsrun-$a >/dev/null 2>&1 || { IP=$((n >> 24)).$((n >> 16 & 255)).$((n >> 8 & 255)).$((n & 255)); break; }; n=$((n+1)); done"
        )  # fmt: skip
        default = parse_subnet(self.subnet or SUBNETS[0])
        mac = BYTES.format(f"{prefix}:%02x:%02x:%02x:%02x", "{}")
        advice = " ".join("/proc/sys/net/" + setting.format(name) for setting in ADVICE)
        check = self._filters()
        bridge6 = [choose]
        if self.ipv6:
            bridge6 = [
                "six() { printf '%s::%x%02x:%x%02x' $PREFIX6 $(echo $1 | tr . ' '); }",
                f"""PREFIX6=$(ip -6 -o address show {name} scope global 2>/dev/null | awk '{{sub("::[^:]*:[^:]*/64$", "", $4); print $4; exit}}')""",
                f'if [ ! "$PREFIX6" ]; then PREFIX6={self._prefix6()}; echo 1 >/proc/sys/net/ipv6/conf/{name}/addr_gen_mode; ip -6 address add $(six $GATEWAY)/64 dev {name} nodad; fi',
                common_rules6(name),
                FORWARD6,
                choose,
                "IP6=$(six $IP); GATEWAY6=$(six $GATEWAY); set -- $(echo $PREFIX6 | tr : ' '); HIGH6=$(printf '%04x%04x' 0x$1 0x${2:-0}); LOW6=$(printf '%04x%04x' 0x${3:-0} 0x${4:-0})",
            ]
        return "\n".join(
            [
                f'set -- $(ip -4 -o address show {name} 2>/dev/null | awk \'{{sub("/", " ", $4); print $4; exit}}\'); GATEWAY=${{1:-{default.gateway}}}; BITS=${{2:-{default.bits}}}',
                f"MASK=$((0xFFFFFFFF << 32 - BITS & 0xFFFFFFFF)); FIRST=$((0x{BYTES.format(HEX, '$GATEWAY')} & MASK))",
                f"ip link show {name} >/dev/null 2>&1 || {{ ip link add {name} address {mac.format('$GATEWAY')} type bridge mcast_snooping 0; ip link set {name} alias '{alias}'; ip address add $GATEWAY/$BITS dev {name}; for f in {advice}; do [ ! -e $f ] || echo 0 >$f; done; ip link set {name} up; }}",
                *(
                    [
                        common_rules(name),
                        f"echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv4/conf/{name}/route_localnet",
                    ]
                    if not self.closed
                    else []
                ),
                *bridge6,
                f"HEX={BYTES.format(HEX, '$IP')}; VETH=nsr$HEX; MAC={mac.format('$IP')}",
                *(
                    ["nft create table ip nsrun-$HEX", "conntrack -D -f ipv4 --reply-src $IP 2>/dev/null || :"]
                    if not self.closed
                    else []
                ),
                *(["conntrack -D -f ipv6 --reply-src $IP6 2>/dev/null || :"] if self.ipv6 else []),
                f"ip link add $VETH mtu {self.mtu} type veth peer name eth0 mtu {self.mtu} address $MAC netns $NET; ip link set $VETH master {name}",
                *check,
                f"bridge fdb replace $MAC dev $VETH master static sticky; ip neighbour replace $IP lladdr $MAC dev {name} nud permanent",
                *([f"ip -6 neighbour replace $IP6 lladdr $MAC dev {name} nud permanent"] if self.ipv6 else []),
                f"bridge link set dev $VETH learning off flood off hairpin on; ip link set $VETH alias {alias_of(self.ident)} up",
            ]
        )

    def _filters(self) -> list[str]:
        """Return the commands that check what the pod sends, and what comes to one that is isolated."""
        from nsrun.host.portfilter import MARKERS, arrivals, closed_arrivals, program, tc_bytecode

        add = "tc filter add dev $VETH {} bpf direct-action bytecode"
        prefix6 = MARKERS[1:3] if self.ipv6 else ()
        words = ["$((0x$HEX))", "$((0x$HIGH6))", "$((0x$LOW6))"] if self.ipv6 else ["$((0x$HEX))", "", ""]
        if not self.isolated and not self.closed:
            return [
                f'tc qdisc add dev $VETH ingress; {add.format("ingress")} "{tc_bytecode(program(MARKERS[0], prefix6), words)}"'
            ]
        bridge = MARKERS[3:10] if self.ipv6 else MARKERS[3:8]
        sent = program(MARKERS[0], prefix6, bridge if self.isolated else (), bridge[3:5] if self.closed else ())
        comes = closed_arrivals(bridge, self.isolated) if self.closed else arrivals(prefix6, bridge)
        words += [
            "$((0x$MAC_HIGH))",
            "$((0x$MAC_LOW))",
            "$((0x$GATEWAY_HEX))",
            "$FIRST",
            "$MASK",
            "0",
            "$((0x$GATEWAY_HEX))",
        ]
        return [
            f"set -- $(ip -o link show {self.bridge} | sed 's/.*link.ether //; s/ .*//; y/:/ /'); MAC_HIGH=$1$2$3$4; MAC_LOW=$5$6; GATEWAY_HEX={BYTES.format(HEX, '$GATEWAY')}",
            f'tc qdisc add dev $VETH clsact; {add.format("ingress")} "{tc_bytecode(sent, words)}"',
            f'{add.format("egress")} "{tc_bytecode(comes, words)}"',
        ]

    def _prefix6(self) -> str:
        """Return the first four groups of the bridge's IPv6 network, or the commands that print them (bridges.pick_subnet6)."""
        if self.subnet6:
            from nsrun.host.net import net6_of

            prefix = net6_of(self.subnet6)
            return ":".join(prefix[at : at + 2].hex() for at in range(0, 8, 2))
        more = "head -c $((FIRST & 255)) /dev/zero | tr '\\0' '\\n'"
        machine = f"$({{ cat /etc/machine-id 2>/dev/null; {more}; }} | b2sum | sed 's/^\\(..\\)\\(....\\)\\(....\\).*/\\1:\\2:\\3/')"
        return f"fd{machine}:$(printf '%02x%02x' $(echo $GATEWAY | awk -F. '{{print $2, $3}}'))"

    @property
    def approx(self) -> str:  # type: ignore[override]
        lease = (
            "there is no lease" if self.closed else "the table has no owner, nft delete table gives the address back"
        )
        return f"the search for a free address is not atomic; {lease}"

    def check(self) -> str:
        return (
            f"ip -br link show master {self.bridge}; "
            + ("tc filter show dev VETH egress; " if self.closed else "nft list tables; ")
            + "tc filter show dev VETH ingress; bridge fdb show dev VETH"
        )

    def do(self, run: Context) -> None:
        from nsrun.host import bridges, net, wire

        with kernel.Fd(run.state.lock("net")):
            bridge = self._bridge(run)
            with wire.open_socket(wire.NETLINK_ROUTE) as sock:
                subnet, index = bridges.ensure_bridge(sock, bridge, self.closed)
                gateway6 = bridges.ensure_bridge6(sock, bridge, subnet, index) if self.ipv6 else ""
                ip, veth, table = net.connect(
                    sock,
                    run.fd("net:fd"),
                    self.bridge,
                    subnet,
                    index,
                    self.ip,
                    self.ident,
                    self.mtu,
                    gateway6,
                    self.isolated,
                    self.closed,
                )
                mac = wire.mac_of_link(self.bridge) if self.ipv6 or self.isolated else b""
        run.hold(self.handle, table.detach())
        if self.ipv6:
            ip6 = net.address6(gateway6, ip)
            run.values.update({"pod:ip6": ip6, "pod:gateway6": gateway6})
        run.values["bridge:mac"] = mac.hex()
        run.values.update({"pod:ip": ip, "pod:gateway": subnet.gateway, "pod:prefix": subnet.bits})
        run.values.update({"veth:index": veth, "host:netns": net.netns_cookie()})

    def _bridge(self, run: Context) -> Bridge:
        """Return the bridge, under the lock on the network.  Raise BadInput when its network has been removed."""
        from nsrun.host import bridges

        if not self.network and bridges.current_subnet(self.bridge):
            return bridges.Bridge(self.bridge, subnet=self.subnet, subnet6=self.subnet6)
        from nsrun.state import networks

        taken = networks.subnets(run.state, but=self.network)
        if self.network:
            record = networks.read(run.state, self.network)
            if record is None or record["id"] != self.network_id:
                raise BadInput(f"network {self.network!r} has just been removed", hint="nsrun network ls")
        return bridges.Bridge(self.bridge, self.network, self.network_id, self.subnet, self.subnet6, taken)

    def undo(self, run: Context) -> None:
        from nsrun.host import bridges, net

        if "pod:ip" in run.values:
            name = net.veth_name(str(run.values["pod:ip"]))
            net.delete_link(name, int(run.values["veth:index"]), net.alias_of(self.ident))
        bridge = bridges.Bridge(self.bridge, self.network, self.network_id)
        bridges.remove_idle_bridge(lambda: run.state.lock("net"), bridge)


class ConfigurePod(Step):
    phase = HOST
    man = "rtnetlink(7), ip-address(8), ip-route(8)"
    bridge: str = ""  # "": the pod has only lo
    ipv6: bool = False
    isolated: bool = False

    @property
    def why(self) -> str:  # type: ignore[override]
        lo = "Inside, lo has to come up, or localhost hangs"
        eth0 = "eth0 gets the address and the way out, and the pod listens to no router and no redirect."
        if self.ipv6:
            eth0 += " Of IPv6 it has one address, and one neighbour, the bridge, whose MAC is written down: nothing is asked by neighbour discovery."
        return f"{lo}; {eth0}" if self.bridge else f"{lo}."

    def made(self) -> list[str | Part]:
        quiet = ['write("/proc/sys/net/ipv6/conf/eth0/accept_ra", "0")   /* and the like */'] if self.bridge else []
        eth0 = (
            "; ip address add pod:ip/pod:prefix dev eth0; ip link set eth0 up; ip route add default via …"
            if self.bridge
            else ""
        )
        if self.ipv6:
            quiet.append('write("/proc/sys/net/ipv6/conf/eth0/addr_gen_mode", "1")')
            eth0 += "; ip -6 address add pod:ip6/128 dev eth0 nodad; ip -6 neighbour …; ip -6 route add default via …"
        return ["setns(net:fd, CLONE_NEWNET)", *quiet, netlink(f"ip link set lo up{eth0}"), "setns(back, CLONE_NEWNET)"]

    def brief(self) -> str:
        return "ip address add pod:ip/pod:prefix dev eth0" if self.bridge else "ip link set lo up"

    def needs(self) -> tuple[str, ...]:
        return ("net:fd", "pod:ip", *(("pod:ip6",) if self.ipv6 else ())) if self.bridge else ("net:fd",)

    def shell(self) -> str:
        run = "nsenter --target $NET --net ip"
        if not self.bridge:
            return f"{run} link set lo up"
        from nsrun.host.net import ADVICE

        advice = " ".join("/proc/sys/net/" + setting.format("$c") for setting in ADVICE)
        quiet = f"for c in all default eth0; do for f in {advice}; do [ ! -e $f ] || echo 0 >$f; done; done"
        six = ""
        if self.ipv6:
            quiet += "; echo 1 >/proc/sys/net/ipv6/conf/eth0/addr_gen_mode"
            six = f"\n{run} -6 address add $IP6/128 dev eth0 nodad; {run} -6 neighbour replace $GATEWAY6 lladdr $(ip -o link show {self.bridge} | sed 's/.*link.ether //; s/ .*//') dev eth0 nud permanent; {run} -6 route add default via $GATEWAY6 dev eth0 onlink"
        if self.isolated:
            six = f"; {run} neighbour replace $GATEWAY lladdr $(ip -o link show {self.bridge} | sed 's/.*link.ether //; s/ .*//') dev eth0 nud permanent{six}"
        return f"nsenter --target $NET --net sh -c '{quiet}'; {run} link set lo up; {run} address add $IP/$BITS dev eth0; {run} link set eth0 up; {run} route add default via $GATEWAY{six}"

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
                net.trust_no_router(not self.ipv6)
                ip, subnet = str(run.values["pod:ip"]), subnet_in(run)
                mac = bytes.fromhex(str(run.values["bridge:mac"]))
                ip6, gateway6 = (str(run.values.get(f"pod:{key}", "")) for key in ("ip6", "gateway6"))
                net.configure_pod(ip, subnet, ip6, gateway6, mac, self.isolated)
            else:
                net.loopback_up()


def binding(ports: Sequence[Published], purpose: str = "") -> list[str | Part]:
    """Return the calls by which ports of the host are bound (net.hold_port), protocol by protocol; `purpose` says why."""
    found: list[str | Part] = []
    for family, protocol in ((family, protocol) for protocol in PROTOCOLS for family in ("AF_INET", "AF_INET6")):
        some = [port for port in ports if (port[3], ":" in port[0]) == (protocol, family == "AF_INET6")]
        each = purpose or "PORT of " + ", ".join(
            f"{ip}:{'any free port' if host == 'free' else host}" for ip, host, _ in port_ranges(some)
        )
        calls = [f"fd = socket({family}, {'SOCK_STREAM' if protocol == 'tcp' else 'SOCK_DGRAM'})"]
        if family == "AF_INET6":
            calls.append("setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1)")
        if protocol == "udp":
            calls.append("setsockopt(fd, SOL_SOCKET, SO_RCVBUF, 0)")
        if some:
            found.append(Part([*calls, "bind(fd, PORT)"], each=each, times=len(some)))
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
            f"port:{'' if protocol == 'tcp' else protocol + ':'}{at(ip, host or 'free')}:{pod}"
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
        held = net.hold_ports(self.ports, run.state.pod_with_port, run.state.was_released)
        for handle, (sock, port), (ip, _, pod, protocol) in zip(self.handles, held, self.ports, strict=True):
            run.hold(handle, sock.detach())
            run.ports.append({"host_ip": ip, "host_port": port, "pod_port": pod, "protocol": protocol})


class PublishTable(Step):
    phase = HOST
    why = "All rules are in a table of the pod's own, which has an owner: when pause dies, even by SIGKILL, the kernel removes it."
    man = "nft(8)"
    ident: str
    ports: tuple[Published, ...] = ()
    handle: str = "table:fd"
    ipv6: bool = False
    bridge: str = "nsrun0"
    hints = {
        EOPNOTSUPP: "this kernel lacks nf_tables nat, fib or masquerade: modprobe nf_tables nft_chain_nat nft_fib_ipv4 nft_fib_ipv6 nft_masq",
        ENOENT: "this kernel lacks an nf_tables expression: modprobe nft_chain_nat nft_fib_ipv4 nft_fib_ipv6 nft_masq nft_ct",
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
        return (self.handle, "pod:ip", *(("pod:ip6",) if self.ipv6 else ()))

    approx = (
        "without the owner flag, which needs a socket that stays open: nft delete table removes it; "
        "for nft a label is one of 128 bits, nsrun's hold the pod's id"
    )

    def maps(self, version: str = "") -> tuple[str, str, str]:
        """Return the maps, the rules that forward on the way in, and those on the way from here, as nft reads them."""
        from nsrun.host.net import ports_by_map

        maps, rules, output = "", "", ""
        address = "ipv6_addr" if version else "ipv4_addr"
        for name, protocol, some in ports_by_map(self.ports, version):
            one = not name.endswith("addresses")  # keyed by the port alone
            key, way = (
                (f"{protocol} dport", "fib daddr type local ") if one else (f"ip{version} daddr . {protocol} dport", "")
            )
            elements = ", ".join(
                f"{'' if one else ip + ' . '}{host} : $IP{version} . {pod}" for ip, host, pod, _ in some
            )
            type_ = "inet_service" if one else f"{address} . inet_service"
            maps += f" map {name} {{ type {type_} : {address} . inet_service; elements = {{ {elements} }}\n }}\n"
            rule = f"{way}meta l4proto {protocol} dnat ip{version} addr . port to {key} map @{name}\n"
            rules += f"  {rule}"
            output += f"  {'ip6 daddr != ::1 ' if one and version else ''}{rule}"
        return maps, rules, output

    def chains(self, version: str = "") -> str:
        """Return the maps, and the two chains that forward."""
        maps, rules, output = self.maps(version)
        if version and not maps:
            return ""
        return f"""{maps} chain prerouting {{ type nat hook prerouting priority -100;
{rules} }}
 chain output {{ type nat hook output priority -100;
{output} }}
"""

    def shell(self) -> str:
        six = f"""
table ip6 nsrun-$HEX {{
{self.chains("6")} chain postrouting {{ type nat hook postrouting priority 100;
  ip6 saddr $IP6 oifname != "{self.bridge}" masquerade
  ip6 saddr $PREFIX6::/64 ip6 daddr $IP6 ct status dnat oifname "{self.bridge}" masquerade
 }}
 chain forward {{ type filter hook forward priority 0;
  ip6 saddr $IP6 oifname != "{self.bridge}" ct direction original ct label set $BEGAN
  ip6 daddr $IP6 oifname "{self.bridge}" ct status dnat ct state new ct label set $REACHED
  ip6 daddr $IP6 iifname != "{self.bridge}" ct label $BEGAN accept
  ip6 daddr $IP6 iifname != "{self.bridge}" ct label $REACHED accept
  ip6 daddr $IP6 iifname != "{self.bridge}" ct state related accept
  ip6 daddr $IP6 iifname != "{self.bridge}" drop
 }}
}}"""
        return f"""BEGAN=$(($(od -An -N1 -tu1 /dev/urandom) % 64)); REACHED=$((BEGAN + 64))


nft -f - <<EOF
table ip nsrun-$HEX {{
{self.chains()} chain postrouting {{ type nat hook postrouting priority 100;
  ip saddr $IP oifname != "{self.bridge}" masquerade
  ip saddr 127.0.0.0/8 ip daddr $IP oifname "{self.bridge}" masquerade
  ip saddr $GATEWAY/$BITS ip daddr $IP ct status dnat oifname "{self.bridge}" masquerade
 }}
 chain guard {{ type filter hook prerouting priority -300;
  iifname "{self.bridge}" ip daddr 127.0.0.0/8 drop
 }}
 chain forward {{ type filter hook forward priority 0;
  ip saddr $IP oifname != "{self.bridge}" ct direction original ct label set $BEGAN
  ip daddr $IP oifname "{self.bridge}" ct status dnat ct state new ct label set $REACHED
  ip daddr $IP iifname != "{self.bridge}" ct label $BEGAN accept
  ip daddr $IP iifname != "{self.bridge}" ct label $REACHED accept
  ip daddr $IP iifname != "{self.bridge}" ct state related accept
  ip daddr $IP iifname != "{self.bridge}" drop
 }}
}}{six if self.ipv6 else ""}
EOF"""

    def check(self) -> str:
        return "nft list table ip nsrun-…   # the address in hexadecimal"

    def do(self, run: Context) -> None:
        from nsrun.host import net

        ip, subnet = str(run.values["pod:ip"]), subnet_in(run)
        ports = [port for port in run.ports if not is_forwarded(port)]
        ip6 = str(run.values.get("pod:ip6", ""))
        net.publish(run.fd(self.handle), self.ident, self.bridge, ip, subnet, ports, pod_ip6=ip6)
