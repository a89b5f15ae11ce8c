# SPDX-License-Identifier: Apache-2.0
"""What happened, counted; and what should not have happened, with where to find it again."""

from __future__ import annotations

import collections
import re
import threading
from collections.abc import Callable

_VARIES = re.compile(r"/run/\S+|[0-9a-f]{12}|\b[a-z]*[0-9]+")


class Ledger:
    """One for a whole run; every thread writes to it."""

    def __init__(self) -> None:
        self.counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        self.findings: dict[str, list[str]] = {}
        self.where = ""  # the round and its seed
        self._lock = threading.Lock()

    def count(self, kind: str, what: str) -> None:
        with self._lock:
            self.counts[kind][what] += 1

    def find(self, kind: str, text: str, key: str = "", evidence: Callable[[], str] = str) -> None:
        """A fault.  Those of one kind and key (without one: whose texts differ in numbers only) are one, shown when first found; what is
        left is shown always, since its cause differs.

        `evidence`: what is there, for who looks for the cause.
        """
        key = f"{kind}: {_VARIES.sub('#', key or text)[:120]}"
        with self._lock:
            first = kind.startswith("left") or key not in self.findings
            self.findings.setdefault(key, []).append(self.where)
        if first:
            print(f"FOUND [{self.where}] {kind}: {text[:1500]}\n{evidence()}", flush=True)

    def report(self) -> str:
        lines = []
        for kind, counter in self.counts.items():
            lines.append(f"{sum(counter.values()):6} {kind}")
            lines += [f"{number:12} {what}" for what, number in counter.most_common()]
        total = sum(map(len, self.findings.values()))
        lines.append(f"{total:6} findings, {len(self.findings)} different")
        for key, places in sorted(self.findings.items(), key=lambda item: -len(item[1])):
            lines.append(f"{len(places):12} {key}   [first: {places[0]}]")
        return "\n".join(lines)
