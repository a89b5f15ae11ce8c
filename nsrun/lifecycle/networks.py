# SPDX-License-Identifier: Apache-2.0
"""`nsrun network`: the default bridge and the networks that an administrator makes, and which pods are on them."""

from __future__ import annotations

from nsrun import kernel
from nsrun.errors import BadInput, BrokenNote
from nsrun.host import bridges, net
from nsrun.schema import is_there
from nsrun.spec.options import parse_mtu, parse_subnet, parse_subnet6
from nsrun.state import networks, new_id, timestamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from nsrun.state import State
    from nsrun.state.networks import Record

#: The name of the default one, as --network has it.
DEFAULT = "bridge"
#: Seconds to wait for the veth of a pod that has just ended, which goes in the background (cli/later.py), on a busy machine.
PATIENCE = 5.0


def need_root(state: State) -> None:
    """Raise BadInput for an ordinary user."""
    if state.uid:
        raise BadInput(
            "networks are root's", hint="sudo nsrun network …; a pod made without root has pasta, and no bridge"
        )


def new_record(state: State, name: str, options: Mapping[str, Any], ident: str = "") -> Record:
    """Return the record of a network that is to be made.  Raise BadInput when it can't be had; nothing is done."""
    need_root(state)
    networks.check_new(name)
    if is_there(networks.path_of(state, name)):
        raise BadInput(f"network name {name!r} is taken", hint="nsrun network ls")
    others = networks.every(state)
    taken = [parse_subnet(record["subnet"]) for record in others]
    wanted = options.get("subnet") or ""
    if not wanted:
        taken.append(parse_subnet(bridges.SUBNETS[0]))  # that is the default bridge's
    subnet = bridges.pick_subnet(wanted, taken)
    bridge = bridges.free_name(record["bridge"] for record in others)
    subnet6 = parse_subnet6(options["subnet6"]) if options.get("subnet6") else ""
    if subnet6:
        if why := bridges.without_ipv6(bridge):
            raise BadInput(f"--subnet6 {subnet6}/64: {why}", hint="leave --subnet6 out; nsrun doctor tells of IPv6")
        if subnet6 in [record["subnet6"] for record in others]:
            raise BadInput(f"--subnet6 {subnet6}/64 belongs to another network", hint="nsrun network ls shows them")
        bridges.pick_subnet6(subnet6, subnet)
    return {
        "id": ident or new_id(),
        "name": name,
        "created": "" if ident else timestamp(),
        "bridge": bridge,
        "subnet": str(subnet),
        "subnet6": subnet6,
        "mtu": parse_mtu(options["mtu"]) if options.get("mtu") else 0,
    }


def create(state: State, name: str, options: Mapping[str, Any]) -> Record:
    """Make a network.  Its bridge is made when its first pod comes."""
    need_root(state)
    with kernel.Fd(state.lock(networks.LOCK)):
        record = new_record(state, name, options)
        networks.save(state, record)
    return record


def pods_of(state: State, name: str) -> list[str]:
    """Return the names of the living pods of a network, as their notes have it; "" is the default one."""
    return [
        note["name"]
        for note in state.all("pods")
        if note["network"]["mode"] == "bridge"
        and note["network"].get("name", "") == name
        and state.pod_life(note).alive
    ]


def remove(state: State, name: str, force: bool = False) -> bool:
    """Remove a network that no pod is on, and its bridge; return whether there was one.

    Raise BadInput when a pod is on it.  With `force` one that does not exist is no error, nor is a record that can't be read.
    """
    need_root(state)
    refuse_default(name)
    try:
        record = networks.read(state, name)
        if record is None:
            if not force:
                networks.get(state, name)
            return False
    except BrokenNote as error:
        if not force or not error.damaged:
            raise
        _remove_broken(state, name)
        return True
    if pods_of(state, name):
        raise in_use(state, name)
    bridge = networks.bridge_of(record)
    if bridges.remove_idle_bridge(lambda: state.lock(networks.LOCK), bridge, patience=PATIENCE):
        with kernel.Fd(state.lock(networks.LOCK)):
            if networks.read(state, name) != record:  # another command was faster
                return False
            if bridges.take_down(bridge):
                networks.remove(state, name)
                return True
    raise in_use(state, name)


def refuse_default(name: str) -> None:
    """Raise BadInput for the default network."""
    if name == DEFAULT:
        raise BadInput(
            f"network {name!r} is the default one, and can't be removed",
            hint="its bridge goes with the last pod that is on it",
        )


def in_use(state: State, name: str) -> BadInput:
    """Return the error about a network that pods are on."""
    pods = pods_of(state, name)
    by = f"pod{'s' if len(pods) > 1 else ''} {', '.join(pods)}" if pods else "what is left of a pod"
    hint = f"nsrun pod rm -f {' '.join(pods)}" if pods else "nsrun pod prune; nsrun ns ls shows who has its namespace"
    return BadInput(f"network {name!r} is used by {by}", hint=hint)


def _remove_broken(state: State, name: str) -> None:
    """Remove a record that can't be read, and the idle bridges that no record speaks of: one of them was this network's."""
    with kernel.Fd(state.lock(networks.LOCK)):
        if pods_of(state, name):
            raise in_use(state, name)
        networks.remove(state, name)
        known = {record["bridge"] for record in map(lambda one: _readable(state, one), networks.names(state)) if record}
        for link in net.link_names():
            if (
                bridges.is_bridge(link)
                and link != bridges.BRIDGE
                and link not in known
                and (ident := bridges.ident_of(link))
            ):
                bridges.take_down(bridges.Bridge(link, name, ident))


def _readable(state: State, name: str) -> Record | None:
    try:
        return networks.read(state, name)
    except BrokenNote:
        return None


def describe(state: State, wanted: list[str] | None = None) -> list[dict[str, Any]]:
    """Return what there is to say of networks (None: of all).  Raise UnknownError for one that does not exist.

    Of the list of all, those that can't be read are left out, and are in State.broken.
    """
    need_root(state)
    if wanted is not None:
        return [_default(state) if name == DEFAULT else _describe(state, networks.get(state, name)) for name in wanted]
    found = [_default(state)]
    for name in networks.names(state):
        try:
            if record := networks.read(state, name):
                found.append(_describe(state, record))
        except BrokenNote as error:
            state.broken[error.path] = error.why
    return found


def _default(state: State) -> dict[str, Any]:
    return _row(state, DEFAULT, "", bridges.Bridge(), "", 0)


def _describe(state: State, record: Record) -> dict[str, Any]:
    return _row(state, record["name"], record["id"], networks.bridge_of(record), record["created"], record["mtu"])


def _row(state: State, name: str, ident: str, bridge: bridges.Bridge, created: str, mtu: int) -> dict[str, Any]:
    current, gateway6 = bridges.current_subnet(bridge.name), bridges.current_gateway6(bridge.name)
    subnet = current or (parse_subnet(bridge.subnet) if bridge.subnet else None)
    subnet6 = net.text6(net.net6_of(gateway6) + bytes(8)) if gateway6 else bridge.subnet6
    return {
        "name": name,
        "id": ident,
        "created": created,
        "bridge": bridge.name,
        "up": bool(current),
        "subnet": str(subnet or ""),
        "gateway": subnet.gateway if subnet else "",
        "subnet6": f"{subnet6}/64" if subnet6 else "",
        "mtu": mtu,
        "pods": pods_of(state, "" if name == DEFAULT else name),
    }


def names(state: State) -> list[str]:
    """Return the names of all networks, the default one first."""
    need_root(state)
    return [DEFAULT, *networks.names(state)]
