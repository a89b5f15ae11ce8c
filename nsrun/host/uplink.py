# SPDX-License-Identifier: Apache-2.0
"""The way out of this host: the interface of the default route, and how large a packet it takes."""

from __future__ import annotations

import os

from nsrun.host import wire

#: The MTU of a pod on a host that has no default route, in bytes.
USUAL = 1500
#: Of the flags of a route, those that tell whether packets take it: RTF_UP, and not RTF_REJECT.
_USED, _UP = 0x201, 0x001


def interface() -> str:
    """Return the interface of the default route of IPv4 that is preferred, or else of IPv6; "" when there is none.  proc_net(5)"""
    found = [
        (int(metric), os.fsdecode(name))
        for name, to, _, flags, _, _, metric, mask, *_ in _lines("route")[1:]
        if not int(to, 16) and not int(mask, 16) and int(flags, 16) & _USED == _UP
    ] or [
        (int(metric, 16), os.fsdecode(name))
        for to, bits, _, _, _, metric, _, _, flags, name in _lines("ipv6_route")
        if not int(to, 16) and not int(bits, 16) and int(flags, 16) & _USED == _UP and name != b"lo"
    ]
    return min(found)[1] if found else ""


def _lines(file: str) -> list[list[bytes]]:
    try:
        with open(f"/proc/thread-self/net/{file}", "rb") as routes:
            return [line.split() for line in routes.readlines()]
    except FileNotFoundError:
        return []  # no IPv6 here


def mtu() -> int:
    """Return the MTU of the default route's interface, in bytes; USUAL when there is none."""
    name = interface()
    return (wire.mtu_of_link(name) if name else 0) or USUAL
