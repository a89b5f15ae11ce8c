# SPDX-License-Identifier: Apache-2.0
"""The id maps of a user namespace, as arithmetic: which id of the host is which of the pod.  user_namespaces(7)."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from nsrun.types import Maps, Ranges


def to_host(ranges: Ranges, ident: int) -> int:
    """Return the id of the host that an id of the pod is mapped to; -1: the pod has no such id."""
    return next((o + ident - i for i, o, n in ranges if i <= ident < i + n), -1)


def to_pod(ranges: Ranges, ident: int) -> int:
    """Return the id of the pod that an id of the host is mapped to; -1: it has none."""
    return next((i + ident - o for i, o, n in ranges if o <= ident < o + n), -1)


def size(ranges: Ranges) -> int:
    """Return how many ids there are."""
    return sum(n for _, _, n in ranges)


def nobody(maps: Maps, wish: int = 65535) -> int:
    """Return the largest number up to `wish` that is both a uid and a gid; 0 always is."""
    shared = (
        (max(u, g), min(u + un, g + gn) - 1) for u, _, un in maps["uid"] for g, _, gn in maps["gid"]
    )  # of each pair of ranges, what they have in common
    return max((min(last, wish) for first, last in shared if first <= min(last, wish)), default=0)


def maps_in(pod: Mapping[str, Any]) -> Maps | None:
    """Return the maps in a pod's note; None: it has no user namespace of its own."""
    user = pod.get("user")
    return user["maps"] if user else None
