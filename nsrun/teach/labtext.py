# SPDX-License-Identifier: Apache-2.0
"""The page of a lab, docs/labs/NN-name.md: its text, its hints, and its scripts, which have no other home.

```sh solution              accepted by the check, as root
```sh solution nsrun        likewise: any further label but "user" only tells solutions apart
```sh solution user         accepted by the check, as an ordinary user
```sh mistake ROW: TEXT     refused by the check, at this row; `mistake user ROW: TEXT` as an ordinary user
```sh before                run before each solution and mistake
```sh later                 what a teacher or a test needs, and no reader
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from nsrun.errors import BadInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsrun.teach.lab import Lab

SECTIONS = ("Idea", "By hand", "With nsrun", "Break it", "Check", "Hints", "Man pages")
_HERE = os.path.dirname(os.path.abspath(__file__))


@dataclass(frozen=True)
class Script:
    """One block of code that is a solution, a mistake, or runs before them."""

    kind: str  # solution, mistake, before
    label: str  # of a solution: nsrun, …; of a mistake: what is wrong
    row: str  # of a mistake: the row that must refuse it
    user: bool  # it is for an ordinary user
    text: str


@dataclass(frozen=True)
class Page:
    """What a page says."""

    title: str
    sections: dict[str, str]
    scripts: list[Script]

    @property
    def hints(self) -> list[str]:
        """The numbered steps of "Hints"."""
        return [" ".join(found.split()) for found in re.split(r"^\d+\. ", self.sections["Hints"], flags=re.M)[1:]]

    def of(self, kind: str, user: bool | None = None) -> list[Script]:
        """Return the scripts of one kind."""
        return [script for script in self.scripts if script.kind == kind and user in (None, script.user)]


def path_of(lab: Lab) -> str:
    """Return the path of a lab's page: beside this module where nsrun is installed, in docs/ of a checkout."""
    name = f"{lab.number:02}-{lab.name}.md"
    installed = f"{_HERE}/labs/pages/{name}"
    return installed if os.path.exists(installed) else f"{os.path.dirname(os.path.dirname(_HERE))}/docs/labs/{name}"


def page_of(lab: Lab) -> Page:
    """Read the page of a lab."""
    try:
        with open(path_of(lab), encoding="utf-8", errors="surrogateescape") as file:
            return read(file.read())
    except FileNotFoundError as error:
        raise BadInput(f"the page of lab {lab.number} is not installed: {error.filename}", hint="make build") from None


_BLOCK = re.compile(r"^```sh (solution|mistake|before|later)\b ?(.*)\n((?:.*\n)*?)```\n", re.M)


def read(text: str) -> Page:
    """Take a page apart."""
    scripts = []
    for kind, label, body in _BLOCK.findall(text):
        labels = label.split()
        who = labels.pop(0) if labels[:1] in (["user"], ["anybody"]) else "root"
        label = " ".join(labels)
        row = ""
        if kind == "mistake":
            row, _, label = label.partition(": ")
        scripts += [
            Script(kind, label, row, user == "user", body) for user in ("root", "user") if who in (user, "anybody")
        ]
    title, _, rest = text.partition("\n")
    parts = re.split(r"^## (.+)\n", rest, flags=re.M)
    return Page(title.lstrip("# "), dict(zip(parts[1::2], parts[2::2], strict=True)), scripts)


def told(text: str) -> str:
    """Return a section as it is told before the student has tried: without the scripts that give the answer away."""
    text = re.sub(r"^<details>(?:.*\n)*?</details>\n", "", text, flags=re.M)
    return re.sub(r"\n{3,}", "\n\n", _BLOCK.sub("", text)).strip("\n")
