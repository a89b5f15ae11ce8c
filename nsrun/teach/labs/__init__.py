# SPDX-License-Identifier: Apache-2.0
"""The labs: each module here has one, as LAB."""

from __future__ import annotations

from nsrun.errors import BadInput
from nsrun.teach.lab import Lab


def every() -> list[Lab]:
    """Return all labs, in their order."""
    from importlib import import_module
    from pkgutil import iter_modules

    found = [import_module(f"{__name__}.{module.name}").LAB for module in iter_modules(__path__)]
    return sorted(found, key=lambda lab: lab.number)


def find(text: str) -> Lab:
    """Return a lab by its number or its name.  Raise BadInput when there is none."""
    labs = every()
    for lab in labs:
        if text in (lab.name, str(lab.number), f"{lab.number:02}", f"{lab.number:02}-{lab.name}"):
            return lab
    raise BadInput(f"there is no lab {text!r}", hint=f"nsrun lab ls; there are {labs[0].number} to {labs[-1].number}")
