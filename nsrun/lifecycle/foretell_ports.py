# SPDX-License-Identifier: Apache-2.0
"""What `port rm` is about to do, as a plan that can be read; foretell.py tells how that is meant."""

from __future__ import annotations

import os

from nsrun.lifecycle import ports
from nsrun.lifecycle.foretell import Deed
from nsrun.plan import Part, Plan, Step, sh_quote
from nsrun.plan.network import netlink
from nsrun.spec.options import at, is_forwarded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsrun.state import State
    from nsrun.types import Port

BORROW = "SOCKET = pidfd_getfd(pidfd, N, 0)"


def _told(gone: tuple[Port, ...]) -> str:
    return ", ".join(f"{at(port['host_ip'], port['host_port'])}/{port['protocol']}" for port in gone)


def _named(file: str) -> str:
    return f'"pods/{os.path.basename(os.path.dirname(file))}/{os.path.basename(file)}'


class TakeTurn(Deed):
    why = "One command at a time changes published ports."
    man = "flock(2)"
    native = "lifecycle/ports.py remove"

    def made(self) -> list[str | Part]:
        return ['flock("ports.lock", LOCK_EX)']

    def brief(self) -> str:
        return "wait for our turn"


class EndHolder(Deed):
    why = "The process has nothing but these ports, and its table of nf_tables goes with it. Connections are the business of conntrack and of the pod's own table, so they go on."
    man = "pidfd_send_signal(2), nft(8)"
    native = "lifecycle/ports.py _end"
    file: str
    pid: int
    gone: tuple[Port, ...]

    def made(self) -> list[str | Part]:
        return [
            f"pidfd = pidfd_open({self.pid}, 0)",
            "pidfd_send_signal(pidfd, SIGKILL)",
            "poll(pidfd, 10 s)",
            f'unlink({_named(self.file)}")',
            f'unlink({_named(self.file)}.held")',
        ]

    def brief(self) -> str:
        return f"end nsrun-hold, which holds {_told(self.gone)}"

    def shell(self) -> str:
        file = sh_quote(self.file)
        return f"kill -9 {self.pid}; timeout 10 tail --pid={self.pid} -f /dev/null; rm {file} {file}.held"

    approx = "a number instead of a pidfd"

    def check(self) -> str:
        return "nsrun port ls POD; nft list tables"


class WithdrawPorts(Deed):
    why = "Only the socket that made a table may change it, and only who has bound a port can give it up; so the sockets of the process that has them are borrowed. It can't be made to close one: whoever sets SO_REUSEADDR, and every pod, can have the port beside it."
    man = "pidfd_getfd(2), nft(8), socket(7)"
    native = "lifecycle/ports.py _withdraw"
    file: str
    pid: int
    gone: tuple[Port, ...]

    def made(self) -> list[str | Part]:
        return [
            f"pidfd = pidfd_open({self.pid}, 0)",
            Part([BORROW], each=f"descriptor N of process {self.pid}"),
            netlink(f"nft delete element … {{ {_told(self.gone)} }}"),
            Part(["setsockopt(SOCKET, SOL_SOCKET, SO_REUSEADDR, 1)"], each="SOCKET that holds one of these ports"),
            f'rename({_named(self.file)}.tmp", {_named(self.file)}")',
        ]

    def brief(self) -> str:
        return f"take {_told(self.gone)} out of the table of process {self.pid}"

    def check(self) -> str:
        return "nsrun port ls POD; nft list ruleset"


class ShutPorts(Deed):
    why = "The sockets of nsrun-forward are shut down, upon which it closes them. Connections that it passes on go on; it ends with the last of them when it has no port any more."
    man = "pidfd_getfd(2), shutdown(2)"
    native = "lifecycle/ports.py _shut_down"
    file: str
    pid: int
    gone: tuple[Port, ...]
    whole: bool  # these are all of its ports

    def made(self) -> list[str | Part]:
        ended: list[str | Part] = [
            Part([f"pidfd = pidfd_open({self.pid}, 0)"], when="its lock is not free yet"),
            Part(["pidfd_send_signal(pidfd, SIGKILL)", "poll(pidfd, 10 s)"], when="even then it is not"),
            f'unlink({_named(self.file)}")',
            f'unlink({_named(self.file)}.held")',
        ]
        keep = f'rename({_named(self.file)}.tmp", {_named(self.file)}")'
        return [
            f"pidfd = pidfd_open({self.pid}, 0)",
            Part([BORROW], each=f"descriptor N of process {self.pid}"),
            Part(["shutdown(SOCKET, SHUT_RDWR)"], each="SOCKET that is one of these ports"),
            *([Part(ended, when="it ends"), Part([keep], when="it still has connections")] if self.whole else [keep]),
        ]

    def brief(self) -> str:
        return f"shut down {_told(self.gone)} of nsrun-forward, process {self.pid}"

    def check(self) -> str:
        return "nsrun port ls POD; ss -lntup"


class ForgetFlows(Deed):
    why = "UDP has no end of a connection: a client that keeps its socket would go on by what is tracked of it."
    man = "conntrack(8)"
    native = "host/conntrack.py forget_ports"
    gone: tuple[Port, ...]

    def made(self) -> list[str | Part]:
        return [
            Part(
                [netlink("conntrack -D -p udp --orig-port-dst PORT")], each="entry that leads to a pod or to this host"
            )
        ]

    def brief(self) -> str:
        return f"forget what is tracked of {_told(self.gone)}"

    def shell(self) -> str:
        asked = sorted({("ipv6" if ":" in port["host_ip"] else "ipv4", port["host_port"]) for port in self.gone})
        return "; ".join(
            f"conntrack -D -f {family} -p udp --orig-port-dst {port} 2>/dev/null || :" for family, port in asked
        )

    approx = "also what goes through this host to another one and has the same port"

    def check(self) -> str:
        return "conntrack -L -p udp"


class ShowPod(Deed):
    why = "The owner of a pod reads of its ports in a file that root writes for them."
    man = "rename(2)"
    native = "state/__init__.py show"
    pod: str

    def made(self) -> list[str | Part]:
        return [f'rename("owned/UID/{self.pod}.json.tmp", "owned/UID/{self.pod}.json")']

    def brief(self) -> str:
        return "show the ports that are left to the pod's owner"


def plan_rm(state: State, name: str, specs: list[str]) -> Plan:
    """`nsrun port rm`."""
    pod, wanted = ports.chosen(state, name, specs)
    steps: list[Step] = [TakeTurn()]
    for file, note, holder in state.more_ports(pod):
        gone = tuple(port for port in note["ports"] if port in wanted)
        if gone and is_forwarded(gone[0]):
            steps.append(ShutPorts(file, holder, gone, len(gone) == len(note["ports"])))
        elif gone and len(gone) == len(note["ports"]):
            steps.append(EndHolder(file, holder, gone))
        elif gone:
            steps.append(WithdrawPorts(file, holder, gone))
    if gone := tuple(port for port in pod.get("ports", []) if port in wanted):
        fd, holder = state.first_holder(pod)
        if fd >= 0:
            os.close(fd)
        steps.append(WithdrawPorts(state.path("pods", name, "note"), holder, gone))
    if udp := tuple(port for port in wanted if port["protocol"] == "udp" and not is_forwarded(port)):
        steps.append(ForgetFlows(udp))
    if pod.get("user") and not state.uid:
        steps.append(ShowPod(name))
    return Plan(f"port rm {name}", steps)
