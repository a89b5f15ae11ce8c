# SPDX-License-Identifier: Apache-2.0
"""The ports that an image exposes, for --publish-all.  Pure."""

from __future__ import annotations

from nsrun.errors import BadInput
from nsrun.schema import is_number
from nsrun.spec.options import PROTOCOLS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    from nsrun.types import ImageConfig


def exposed_ports(image: ImageConfig, named: Collection[tuple[int, str]]) -> tuple[list[str], list[str]]:
    """Return the values of -p that publish each exposed port on a free one, and what can't be published.

    `named` are the ports of the pod, with their protocols, that -p publishes already.  Raise BadInput for what is no port.
    """
    found: set[tuple[str, int]] = set()
    left = []
    for text in image.get("ExposedPorts") or {}:
        ports, _, protocol = text.partition("/")
        first, dash, last = ports.partition("-")
        numbers = [first, last] if dash else [first, first]
        if not all(is_number(n[:6]) and is_number(n) and 1 <= int(n) <= 65535 for n in numbers):
            raise BadInput(f"the image exposes {text[:60]!r}, which is no port", hint="-p, with each port")
        if (protocol or "tcp") not in PROTOCOLS:
            left.append(text)
            continue
        all_of_it = range(int(numbers[0]), int(numbers[1]) + 1)
        found.update((protocol or "tcp", number) for number in all_of_it if (number, protocol or "tcp") not in named)
    return [f":{first}{f'-{last}' if last > first else ''}/{protocol}" for protocol, first, last in _runs(found)], left


def _runs(ports: set[tuple[str, int]]) -> list[tuple[str, int, int]]:
    """Return (protocol, first port, last port) of each run of consecutive ports."""
    runs: list[tuple[str, int, int]] = []
    for protocol, number in sorted(ports):
        if runs and (runs[-1][0], runs[-1][2]) == (protocol, number - 1):
            runs[-1] = (protocol, runs[-1][1], number)
        else:
            runs.append((protocol, number, number))
    return runs
