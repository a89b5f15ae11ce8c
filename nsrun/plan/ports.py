# SPDX-License-Identifier: Apache-2.0
"""The plan of `nsrun port add`: ports for a pod that lives, held by a process of their own, or passed on by one."""

from __future__ import annotations

import os

from nsrun.plan import COMMIT, HOST, OWN_KEYRING, Part, Plan, Step
from nsrun.plan.forward import ListenPorts, StartForwarder, address_of
from nsrun.plan.network import HoldPorts, PublishTable, netlink, subnet_in
from nsrun.plan.process import LoadProgram, OpenProcess
from nsrun.spec.options import is_forwarded, published
from nsrun.state.life import HELD, KEEPER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsrun.plan import Context
    from nsrun.types import PodNote, Port

#: The ids of what holds ports, outside of every user namespace.
NOBODY = 65535


class MakeTable(Step):
    phase = HOST
    why = "Only the socket that made the pod's table can change it, and pause has that. A table of their own ends with whoever holds these ports."
    man = "nft(8)"
    table: str
    handle: str = "table:fd"

    def made(self) -> list[str | Part]:
        return [netlink(f"nft add table ip {self.table} {{ flags owner; }}")]

    def makes(self) -> tuple[str, ...]:
        return (self.handle,)

    def shell(self) -> str:
        return f"nft create table ip {self.table}"

    approx = "without the owner flag, which needs a socket that stays open: nft delete table removes it"

    def check(self) -> str:
        return "nft list tables"

    def do(self, run: Context) -> None:
        from nsrun.errors import KernelError
        from nsrun.host import net

        made = net.make_table(self.table)
        if made is None:
            raise KernelError(17, f"nft add table ip {self.table}")
        run.hold(self.handle, made.detach())


class FillTable(PublishTable):
    why = "The pod's own table lets in what is forwarded to it, whichever table has done that. So this one has nothing but the forwarding."
    table: str = ""

    def shell(self) -> str:
        six = self.chains("6")
        more = f"\ntable ip6 {self.table} {{\n{six}}}" if six else ""
        return f"""IP={self.pod_ip}{f"; IP6={self.pod_ip6}" if six else ""}
nft -f - <<EOF
table ip {self.table} {{
{self.chains()}}}{more}
EOF"""

    pod_ip: str = ""
    pod_ip6: str = ""

    def needs(self) -> tuple[str, ...]:
        return (self.handle,)

    def check(self) -> str:
        return f"nft list table ip {self.table}"

    def do(self, run: Context) -> None:
        from nsrun.host import net

        ports = [port for port in run.ports if not is_forwarded(port)]
        net.publish(run.fd(self.handle), self.ident, "", self.pod_ip, subnet_in(run), ports, self.table, self.pod_ip6)


class HoldMore(Step):
    """Starts nsrun-hold for ports that came later."""

    phase = COMMIT
    why = "The process that holds these ports and their table ends with pause. It has a lock beside the file that lists them, so without a lock that means nothing."
    man = "fcntl(2) F_SETLK, bind(2), nft(8)"
    pod: str
    ident: str
    cgroup: str
    held: tuple[str, ...]

    def made(self) -> list[str | Part]:
        child = ["fcntl(ports:held, F_SETLK, F_RDLCK)", "setsid()", OWN_KEYRING]
        child.append(
            f'execveat(door:program, "", ["nsrun-door", "pause=…"], [], AT_EMPTY_PATH)   /* it keeps {", ".join(self.held)} */'
        )
        return [
            f'openat("pods/{self.pod}/{self.file}.held", O_CREAT)',
            f'rename("pods/{self.pod}/{self.file}.tmp", "pods/{self.pod}/{self.file}")',
            Part(["mkdirat(parent, PART, 0755)"], when="it is missing", each=f"PART of {self.cgroup}"),
            "clone3(CLONE_VM|CLONE_VFORK|CLONE_PIDFD|CLONE_INTO_CGROUP)",
            Part(child, by="the child, which becomes nsrun-hold"),
        ]

    @property
    def file(self) -> str:
        from nsrun.state import PORTS

        return f"{PORTS}{self.ident}"

    def brief(self) -> str:
        return "start nsrun-hold"

    def needs(self) -> tuple[str, ...]:
        return ("door:program", "pod:pidfd", *self.held)

    def makes(self) -> tuple[str, ...]:
        return ("ports:held", "more:pidfd", "more:null", "more:cgroup?")

    def check(self) -> str:
        return "pgrep -a nsrun-hold; nsrun port ls POD"

    def do(self, run: Context) -> None:
        state, path = run.state, run.state.path("pods", self.pod, f"{self.file}.{HELD}")
        flags = os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        lock = run.hold("ports:held", os.open(path, flags, 0o600))
        ports = [port for port in run.ports if not is_forwarded(port)]
        state.save("pods", self.pod, {"id": self.ident, "ports": ports}, self.file)
        keep = [run.fd("pod:pidfd"), lock, *(run.fd(name) for name in self.held)]
        words = [f"pause={run.fd('pod:pidfd')}", "uid=65535", "gid=65535"]
        run.start_door("more", words, keep, self.cgroup, (lock, KEEPER))

    def undo(self, run: Context) -> None:
        from nsrun.state import remove_tree

        for file in (f"{self.file}.{HELD}", self.file):
            remove_tree(run.state.path("pods", self.pod, file))


def add_plan(pod: PodNote, ident: str, ports: Sequence[Port], cgroup: str, rootless: bool) -> Plan:
    """Return the plan that adds published ports to a pod.  `ident`: of this set of ports.  `rootless`: by an ordinary user."""
    by_table = published(port for port in ports if not is_forwarded(port))
    passed_on = published(filter(is_forwarded, ports))
    name, network = pod["name"], pod["network"]
    table = f"nsadd-{ident[:8]}"
    hold, listen = HoldPorts(by_table), ListenPorts(passed_on)
    steps: list[Step] = [OpenProcess(f"the pause of {name}", pod, False, "pod:pidfd")]
    if by_table:
        steps.append(LoadProgram("nsrun-door", "door:program"))
    if passed_on:
        steps.append(LoadProgram("nsrun-forward", "forwarder:program"))
    if by_table:
        ip, ip6 = network.get("ip", ""), network.get("ip6", "")
        fill = FillTable(pod["id"], by_table, table=table, pod_ip=ip, pod_ip6=ip6)
        steps += [hold, MakeTable(table), fill]
    if passed_on:
        steps.append(listen)
    if by_table:
        steps.append(HoldMore(name, ident, cgroup, (*hold.handles, "table:fd")))
    if passed_on:
        to = address_of(network["mode"], network.get("ip", ""))
        ids = () if rootless or pod.get("nested") else (NOBODY,)
        steps.append(StartForwarder(name, f"{ident}f", cgroup, passed_on, to, rootless, ids, "pod:pidfd"))
    return Plan(f"port add {name}", steps)
