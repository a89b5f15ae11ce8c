# SPDX-License-Identifier: Apache-2.0
"""The networks that an administrator has made: a record for each, LIB/networks/NAME.json, which only root has.

A record says what a network's bridge is called and which addresses it has.  Whether there is a bridge, and who is on it, only the
kernel says (host/bridges.py).  A record is written whole, under the lock `net`, and checked when it is read: one that can't be
read is an error, and not a network that does not exist, since its addresses and its bridge would be given to another.
"""

from __future__ import annotations

import os
from errno import EINVAL

from nsrun.errors import BadInput, BrokenNote, UnknownError
from nsrun.schema import check_name, is_name
from nsrun.spec.options import LEAST_MTU, MODES, MOST_MTU, parse_subnet, parse_subnet6
from nsrun.state import make_directory, remove_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from nsrun.host.bridges import Bridge
    from nsrun.spec.options import Subnet
    from nsrun.state import State

    Record = Mapping[str, Any]

LOCK = "net"
_END = ".json"


def path_of(state: State, name: str) -> str:
    """Return the path of a network's record."""
    return f"{state.lib}/networks/{check_name(name, 'network')}{_END}"


def names(state: State) -> list[str]:
    """Return the names of the networks, broken ones too.  Raise OSError when that can't be known."""
    try:
        found = os.listdir(f"{state.lib}/networks")
    except FileNotFoundError:
        return []
    return sorted(file[: -len(_END)] for file in found if file.endswith(_END) and is_name(file[: -len(_END)]))


def read(state: State, name: str) -> Record | None:
    """Return the record of a network, or None when there is none.  Raise BrokenNote when there is one that can't be trusted."""
    from nsrun.host.bridges import BRIDGE, is_bridge

    path = path_of(state, name)
    try:
        record = state.document(path, "networks")
    except BrokenNote as error:
        raise _broken(path, error.why, error.errno) from None
    if record is None:
        return None
    try:
        fits = record["name"] == name and is_bridge(record["bridge"]) and record["bridge"] != BRIDGE
        fits = fits and len(record["id"]) == 12 and (not record["mtu"] or LEAST_MTU <= record["mtu"] <= MOST_MTU)
        subnet = str(parse_subnet(record["subnet"]))
        fits = fits and record["subnet"] in (subnet, subnet.removesuffix("/24"))  # as it was before there were others
        fits = fits and (not record["subnet6"] or record["subnet6"] == parse_subnet6(record["subnet6"]))
    except BadInput:
        fits = False
    if not fits:
        raise _broken(path, f"it is not what nsrun wrote about a network {name!r}", EINVAL)
    return record


def _broken(path: str, why: str, errno: int) -> BrokenNote:
    error = BrokenNote(path, why, errno)
    error.hint = "it is the record of a network: nsrun network rm -f removes it, when none of its pods lives"
    return error


def get(state: State, name: str) -> Record:
    """Return the record of a network.  Raise UnknownError, with the ones that there are, when there is none."""
    if (record := read(state, name)) is None:
        raise UnknownError(f"no network {name!r}", hint=known(state))
    return record


def known(state: State) -> str:
    """Return what is to be said to somebody who named a network that does not exist."""
    found = names(state)
    return f"known networks: {', '.join(found)}" if found else "sudo nsrun network create NAME makes one"


def every(state: State) -> list[Record]:
    """Return all records.  Raise BrokenNote when one can't be read: nobody knows which addresses it has."""
    return [record for name in names(state) if (record := read(state, name))]


def save(state: State, record: Record) -> None:
    """Write a record: all of it, or nothing."""
    make_directory(f"{state.lib}/networks")
    state.write_document(path_of(state, record["name"]), record)


def remove(state: State, name: str) -> None:
    """Remove a record, or what is in its place."""
    try:
        os.unlink(path_of(state, name))
    except IsADirectoryError:
        remove_tree(path_of(state, name))


def subnets(state: State, but: str = "") -> list[Subnet]:
    """Return the subnets of all networks but one."""
    return [parse_subnet(record["subnet"]) for record in every(state) if record["name"] != but]


def bridge_of(record: Record) -> Bridge:
    """Return the bridge that a record describes."""
    from nsrun.host.bridges import Bridge

    return Bridge(record["bridge"], record["name"], record["id"], record["subnet"], record["subnet6"])


def check_new(name: str) -> str:
    """Return the name of a network to be.  Raise UsageError when --network understands it otherwise."""
    from nsrun.errors import UsageError

    if name in MODES:
        raise UsageError(
            f"a network can't be called {name!r}: --network {name} means something else", hint=f"not {', '.join(MODES)}"
        )
    return check_name(name, "network")


def bridge_in(network: Mapping[str, Any]) -> Bridge:
    """Return the bridge of a pod's network, as the pod's note has it: of one whose record is damaged or gone, too."""
    from nsrun.host.bridges import Bridge

    if name := network.get("name", ""):
        return Bridge(network["bridge"], name, network["network_id"])
    return Bridge()
