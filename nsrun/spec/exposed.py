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
    found: dict[tuple[int, str], str] = {}
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
        for number in range(int(numbers[0]), int(numbers[1]) + 1):
            key = (number, protocol or "tcp")
            if key not in named:
                found[key] = f":{number}/{key[1]}"
    return [found[key] for key in sorted(found)], left
