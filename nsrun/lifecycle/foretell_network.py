# SPDX-License-Identifier: Apache-2.0
"""What `network create` and `network rm` are about to do, as plans that can be read; foretell.py tells how that is meant."""

from __future__ import annotations

from nsrun.errors import BadInput
from nsrun.lifecycle import NO_ID
from nsrun.lifecycle.foretell import Deed, Sweep
from nsrun.plan import Part, Plan, Step, sh_quote
from nsrun.plan.network import netlink
from nsrun.state import codec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from nsrun.state import State
    from nsrun.state.networks import Record


class WriteNetwork(Deed):
    man = "rename(2), flock(2)"
    native = "lifecycle/networks.py create"
    why = "A network is a record of its bridge's name and its addresses. It gets its name when it is whole; the bridge is made when the first pod comes."
    path: str
    record: Record

    def made(self) -> list[str | Part]:
        return [
            'flock("net.lock", LOCK_EX)',
            Part(["mkdir(PART, 0700)"], when="it is missing", each="PART of the directory of networks"),
            f'write("{self.path}.tmp", {{{self.record["bridge"]}, {self.record["subnet"]}, …}})',
            f'rename("{self.path}.tmp", "{self.path}")',
        ]

    def brief(self) -> str:
        return f"write the record of network {self.record['name']}"

    def shell(self) -> str:
        directory, new = self.path.rpartition("/")[0], sh_quote(f"{self.path}.tmp")
        body = codec.dumps({**self.record, "id": "$ID", "created": "$NOW"})[1:].replace('"', '\\"')
        return "\n".join(
            [
                "ID=$(od -An -N6 -tx1 /dev/urandom | tr -d ' '); NOW=$(date -u +%Y-%m-%dT%H:%M:%SZ)",
                f'BODY="{body}"',
                "CRC=$(printf '%s\\n' \"$BODY\" | gzip -c | tail -c8 | od -An -N4 -tx4 | tr -d ' ')   # gzip(1) ends with the CRC-32",
                f'mkdir -p -m 700 {sh_quote(directory)}; printf \'{{"crc": "%s", %s\\n\' $CRC "$BODY" >{new}; mv {new} {sh_quote(self.path)}',
            ]
        )

    approx = "without the lock: two commands at once may give two networks the same addresses"

    def check(self) -> str:
        return f"nsrun network inspect {self.record['name']}"


class RemoveNetwork(Deed):
    man = "unlink(2), ip-link(8), nft(8)"
    native = "lifecycle/networks.py remove"
    why = "Under the lock under which a pod gets its address nobody is on the bridge; first it goes, then the record, so no bridge is left that no record speaks of."
    path: str
    bridge: str
    table: str
    there: bool

    def made(self) -> list[str | Part]:
        bridge = [
            f'write("/proc/sys/net/ipv4/conf/{self.bridge}/route_localnet", "0")',
            netlink(f"nft delete table ip {self.table}"),
            netlink(f"nft delete table ip6 {self.table}"),
            netlink(f"ip link del {self.bridge}"),
        ]
        return [
            'flock("net.lock", LOCK_EX)',
            Part(bridge, when="the bridge is there, and no pod is on it"),
            f'unlink("{self.path}")',
        ]

    def brief(self) -> str:
        return f"remove the network of the bridge {self.bridge}"

    def shell(self) -> str:
        tables = "; ".join(f"nft delete table {family} {self.table} 2>/dev/null" for family in ("ip", "ip6"))
        down = f"{tables}; ip link del {self.bridge}; " if self.there else ""
        return f"{down}rm {sh_quote(self.path)}"

    approx = "whether a pod is on it is not asked"

    def check(self) -> str:
        return "nsrun network ls"


def plan_create(state: State, name: str, options: Mapping[str, Any]) -> Plan:
    """`nsrun network create`."""
    from nsrun.lifecycle.networks import new_record
    from nsrun.state import networks

    record = new_record(state, name, options, NO_ID)
    return Plan(f"network create {name}", [WriteNetwork(networks.path_of(state, name), record), Sweep()])


def plan_rm(state: State, names: list[str], force: bool) -> Plan:
    """`nsrun network rm`."""
    from nsrun.host import bridges
    from nsrun.lifecycle.networks import in_use, need_root, pods_of, refuse_default
    from nsrun.state import networks

    need_root(state)
    steps: list[Step] = []
    for name in names:
        refuse_default(name)
        if force and networks.read(state, name) is None:
            continue
        record = networks.get(state, name)
        if pods_of(state, name):
            raise in_use(state, name)
        bridge = networks.bridge_of(record)
        there = bool(bridges.current_subnet(bridge.name))
        steps.append(RemoveNetwork(networks.path_of(state, name), bridge.name, bridge.table, there))
    if not steps:
        raise BadInput("there is nothing to remove", hint="nsrun network ls")
    return Plan(f"network rm {' '.join(names)}", [*steps, Sweep()])
