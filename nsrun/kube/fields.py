# SPDX-License-Identifier: Apache-2.0
"""What single fields of Kubernetes mean: quantities, names, references to variables, and what is filled in when a member starts."""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from nsrun.kube.document import Field

#: Stand in a value for what is known when a member starts: the pod's id and address, and the directory of nsrun's data.
POD_ID, POD_IP, LIB = "\ufdd0id\ufdd1", "\ufdd0ip\ufdd1", "\ufdd0lib\ufdd1"
#: Annotations that nsrun writes, and reads: the name of a member, and options that Kubernetes has no field for.
NAME_OF, JOIN_OF, CREATE_OF = "nsrun.name/", "nsrun.join/", "nsrun.create/pod"
#: The label of a member that was an init container.
INIT = "nsrun.init"

_LABEL = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_QUANTITY = re.compile(r"\+?([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(Ki|Mi|Gi|Ti|Pi|Ei|n|u|m|k|M|G|T|P|E|[eE][+-]?[0-9]{1,2})?")
_POWERS = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}


def fill(value: Any, known: Mapping[str, str]) -> Any:
    """Return options with what stands for things that are `known` by now replaced by them."""
    if isinstance(value, str):
        for mark, text in known.items():
            value = value.replace(mark, text)
        return value
    if isinstance(value, dict):
        return {key: fill(one, known) for key, one in value.items()}
    return [fill(one, known) for one in value] if isinstance(value, list) else value


def is_label(text: str) -> bool:
    """Return whether this is a DNS label as RFC 1123 has it, in lower case."""
    return len(text) <= 63 and re.fullmatch(_LABEL, text) is not None


def is_subdomain(text: str) -> bool:
    return len(text) <= 253 and re.fullmatch(rf"{_LABEL}(?:\.{_LABEL})*", text) is not None


def is_label_key(text: str) -> bool:
    """Return whether this is a key of a label or an annotation: [PREFIX/]NAME."""
    prefix, slash, name = text.rpartition("/")
    return (not slash or is_subdomain(prefix)) and bool(name) and is_label_value(name)


def is_label_value(text: str) -> bool:
    return len(text) <= 63 and re.fullmatch(r"(?:[A-Za-z0-9](?:[-\w.]*[A-Za-z0-9])?)?", text, re.A) is not None


def quantity(field: Field, unit: int) -> int:
    """Return a quantity, "512Mi", "500m" or 2, in parts of 10^-unit, rounded up.  Raise UsageError."""
    from fractions import Fraction

    text = str(field.value) if type(field.value) in (int, float) else field.text()
    found = _QUANTITY.fullmatch(text)
    if not found or len(text) > 40:
        raise field.wrong(f"{text!r} is not a quantity", hint="512Mi, 1G, 500m, 0.5")
    suffix = found[2] or ""
    if suffix.endswith("i"):
        factor = Fraction(1024 ** ("KMGTPE".index(suffix[0]) + 1))
    else:
        power = _POWERS[suffix] if suffix in _POWERS else int(suffix[1:])
        factor = Fraction(10) ** power
    exact = Fraction(found[1].rstrip(".")) * factor * 10**unit
    return -int(-exact // 1)


def expand(text: str, known: Mapping[str, str]) -> str:
    """Return a text with the value in place of each $(NAME) that is known; $$ stands for $."""
    return re.sub(r"\$\$|\$\(([^)]*)\)", lambda m: "$" if m[1] is None else known.get(m[1], m[0]), text)
