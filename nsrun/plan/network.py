"""Steps of phase 2 that only a pod has: its network namespace, its veth, its published ports."""

from __future__ import annotations

import os
from errno import EINVAL, ENOENT, EOPNOTSUPP, EPERM

from nsrun import kernel
from nsrun.plan import HOST, OWN_KEYRING, Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsrun.run import Run


class NewNetns(Step):
    phase = HOST
    why = "The pod's network exists before its first process; nothing is bind-mounted, so nothing can be left."
    man = "network_namespaces(7), unshare(2)"
    user: str = ""
    handle: str = "net:fd"

    def call(self) -> str:
        join = f"{OWN_KEYRING}; setns({self.user}, CLONE_NEWUSER); " if self.user else ""
        return f"clone3(CLONE_FILES|CLONE_VM|CLONE_VFORK); {join}unshare(CLONE_NEWNET); {self.handle} = open(/proc/thread-self/ns/net)"

    def calls(self) -> list[str]:
        return ["clone3", *(["keyctl", "setns"] if self.user else []), "unshare"]

    approx = "a process holds the namespace instead of a descriptor"

    def shell(self) -> str:
        join = "nsenter --user --target $USERNS " if self.user else ""
        return (
            join
            + 'unshare --net sleep infinity >/dev/null & NET=$!; until [ "$(readlink /proc/$NET/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.01; done'
        )

    def check(self) -> str:
        return "readlink /proc/PID/ns/net"

    def do(self, run: Run) -> None:
        run.hold(self.handle, kernel.new_netns(run.fd(self.user) if self.user else -1))


class ConnectPod(Step):
    """The bridge, the pair, the lease."""

    phase = HOST
    why = "The veth is named after the address: names are unique, so the kernel itself leases the address."
    man = "veth(4), bridge(8), ip-link(8)"
    ip: str = ""
    subnet: str = ""
    hints = {EPERM: "needs CAP_NET_ADMIN", EOPNOTSUPP: "this kernel has no veth or bridge: modprobe veth bridge"}

    def call(self) -> str:
        return f"ip link add nsr… master nsrun0 type veth peer name eth0 netns net:fd   # address: {self.ip or 'the first free one'}"

    def calls(self) -> list[str]:
        return []

    def shell(self) -> str:
        choose = f"IP={self.ip}" if self.ip else (
            "IP=; n=2; while [ $n -lt 255 ]; do a=$(printf 'nsr%02x%02x%02x%02x' $(echo $NETWORK.$n | tr . ' '));"
            " ip link show $a >/dev/null 2>&1 || { IP=$NETWORK.$n; break; }; n=$((n+1)); done"
        )  # fmt: skip
        default = self.subnet.rsplit(".", 1)[0] if self.subnet else "10.88.0"
        return "\n".join(
            [
                f'GATEWAY=$(ip -4 -o address show nsrun0 2>/dev/null | awk \'{{sub("/.*", "", $4); print $4}}\'); : ${{GATEWAY:={default}.1}}; NETWORK=${{GATEWAY%.*}}',
                "ip link show nsrun0 >/dev/null 2>&1 || { ip link add nsrun0 type bridge; ip address add $GATEWAY/24 dev nsrun0; ip link set nsrun0 up; }",
                "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv4/conf/nsrun0/route_localnet",
                choose,
                "VETH=$(printf 'nsr%02x%02x%02x%02x' $(echo $IP | tr . ' '))",
                "ip link add $VETH type veth peer name eth0 netns $NET; ip link set $VETH master nsrun0 up; bridge link set dev $VETH hairpin on",
            ]
        )

    approx = "the search for a free address is not atomic"

    def check(self) -> str:
        return "ip -br link show master nsrun0"

    def do(self, run: Run) -> None:
        from nsrun.host import net, wire

        lock = run.state.lock("net")
        try:
            with wire.open_socket(wire.NETLINK_ROUTE) as sock:
                gateway, index = net.ensure_bridge(sock, self.subnet)
                ip, veth = net.make_veth(sock, run.fd("net:fd"), gateway, index, self.ip)
        finally:
            os.close(lock)
        run.values.update({"pod:ip": ip, "pod:gateway": gateway, "veth:index": veth})

    def undo(self, run: Run) -> None:
        from nsrun.host import net

        if "pod:ip" in run.values:
            net.delete_link(net.veth_name(str(run.values["pod:ip"])), int(run.values["veth:index"]))
        net.remove_idle_bridge(run.state)


class ConfigurePod(Step):
    phase = HOST
    why = "Inside: lo up (or localhost hangs), the address, the way out."
    man = "rtnetlink(7), ip-address(8), ip-route(8)"
    bridge: bool = True

    def call(self) -> str:
        if not self.bridge:
            return "setns(net:fd, CLONE_NEWNET); ip link set lo up; setns(back)"
        return "setns(net:fd, CLONE_NEWNET); ip link set lo up; ip address add pod:ip/24 dev eth0; ip link set eth0 up; ip route add default; setns(back)"

    def calls(self) -> list[str]:
        return ["setns", "setns"]

    def shell(self) -> str:
        run = "nsenter --target $NET --net ip"
        if not self.bridge:
            return f"{run} link set lo up"
        return f"{run} link set lo up; {run} address add $IP/24 dev eth0; {run} link set eth0 up; {run} route add default via $GATEWAY"

    def check(self) -> str:
        return "nsenter --target PID --net ip -br address"

    def do(self, run: Run) -> None:
        from nsrun.host import net

        with kernel.inside_netns(run.fd("net:fd")):
            if self.bridge:
                net.configure_pod(str(run.values["pod:ip"]), str(run.values["pod:gateway"]))
            else:
                net.loopback_up()


class HoldPort(Step):
    phase = HOST
    why = "A bound socket that pause keeps: another pod or program gets EADDRINUSE from the kernel."
    man = "bind(2)"
    host_ip: str
    host_port: int
    pod_port: int

    @property
    def handle(self) -> str:
        return f"port:{self.host_ip}:{self.host_port or 'free'}:{self.pod_port}"

    def call(self) -> str:
        return f"bind(socket(AF_INET, SOCK_STREAM), {self.host_ip}:{self.host_port or 'any free port'})"

    def calls(self) -> list[str]:
        return ["bind"]

    approx = "no shell tool binds without listening: the port is not held"

    def check(self) -> str:
        return f"nsrun pod ls; curl http://127.0.0.1:{self.host_port or 'PORT'}/"

    def do(self, run: Run) -> None:
        from nsrun.host import net

        sock, port = net.hold_port(self.host_ip, self.host_port)
        run.hold(self.handle, sock.detach())
        run.ports.append({"host_ip": self.host_ip, "host_port": port, "pod_port": self.pod_port, "protocol": "tcp"})


class PublishTable(Step):
    phase = HOST
    why = "One nf_tables table of the pod's own, with an owner: when pause dies, by SIGKILL too, the kernel removes it."
    man = "nft(8)"
    table: str
    ports: tuple[tuple[str, int, int], ...] = ()
    handle: str = "table:fd"
    hints = {
        EOPNOTSUPP: "this kernel lacks nf_tables nat, fib or masquerade: modprobe nf_tables nft_chain_nat nft_fib_ipv4 nft_masq",
        ENOENT: "this kernel lacks an nf_tables expression: modprobe nft_chain_nat nft_fib_ipv4 nft_masq nft_ct",
        EINVAL: "tables with an owner came with Linux 5.12",
        EPERM: "needs CAP_NET_ADMIN",
    }

    def call(self) -> str:
        ports = ", ".join(f"{ip}:{port or 'free'}→{to}" for ip, port, to in self.ports)
        return f"nft add table ip {self.table} {{ flags owner; … }}" + (f"   # {ports}" if ports else "")

    def calls(self) -> list[str]:
        return []

    approx = "without the owner flag, which needs a socket that stays open: nft delete table removes it"

    def shell(self) -> str:
        dnat = "\n".join(
            "  {} tcp dport {} dnat to $IP:{}".format(
                "fib daddr type local" if ip == "0.0.0.0" else f"ip daddr {ip}", port, to
            )
            for ip, port, to in self.ports
        )
        return f"""nft -f - <<EOF
table ip {self.table} {{
 chain prerouting {{ type nat hook prerouting priority -100;
{dnat}
 }}
 chain output {{ type nat hook output priority -100;
{dnat}
 }}
 chain postrouting {{ type nat hook postrouting priority 100;
  ip saddr $IP oifname != "nsrun0" masquerade
  ip saddr 127.0.0.0/8 ip daddr $IP oifname "nsrun0" masquerade
  ip saddr $NETWORK.0/24 ip daddr $IP ct status dnat oifname "nsrun0" masquerade
 }}
 chain guard {{ type filter hook prerouting priority -300;
  iifname "nsrun0" ip daddr 127.0.0.0/8 drop
 }}
 chain forward {{ type filter hook forward priority 0;
  ip daddr $IP ct status dnat accept
  ip daddr $IP iifname != "nsrun0" ct state new drop
 }}
}}
EOF"""

    def check(self) -> str:
        return f"nft list table ip {self.table}"

    def do(self, run: Run) -> None:
        from nsrun.host import net

        sock = net.publish(self.table, str(run.values["pod:ip"]), str(run.values["pod:gateway"]), run.ports)
        run.hold(self.handle, sock.detach())
