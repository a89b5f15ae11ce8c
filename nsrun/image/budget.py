# SPDX-License-Identifier: Apache-2.0
"""The limits of what images may cost, and the account of what they did cost: one for all images of a load.

Everything is charged where it is spent, whatever led there.  nsrun-unpack (csrc/unpack.c) charges what is written; all
of its processes share the page `Account.fd`: bytes of files, entries, bytes of reports.  What is read, decompressed and
parsed here is charged here.  When a layer has to be unpacked again, the charges of the first attempt are refunded,
because its work was removed.
"""

from __future__ import annotations

import os
import struct
import threading

from nsrun._protocol import UNPACK_ACCOUNT
from nsrun.errors import BadInput

# bytes of all JSON documents of one source; parsed, they take some twenty times as much memory
MAX_DOCUMENTS = 16 << 20
MAX_NAMES = 1000  # that one source may give to its images


class Budget:
    """The limits; what exceeds them is refused (docs/threats.md, R17).

    size: bytes of all files, holes included; entries: files, directories and links; depth: of directories; ratio:
    unpacked to packed bytes of a layer, checked from the first 256 MiB on; records: bytes of the writers' reports.
    """

    def __init__(self, size: int = 32 << 30, entries: int = 1_000_000, depth: int = 512, ratio: int = 250) -> None:
        self.size, self.entries, self.depth, self.ratio, self.records = size, entries, depth, ratio, 16 << 20

    def arguments(self) -> list[str]:
        """Return the arguments of nsrun-unpack."""
        return [str(n) for n in (self.size, self.entries, self.depth, self.records)]


class Account:
    """What was spent of a budget.  It has to be closed.

    The writers also charge the time that the kernel takes to follow links (FOLLOWING_MAX of csrc/unpack.c): a path
    through links of 4,000 bytes each takes milliseconds, and costs the packer only some bytes per entry.
    """

    WRITERS = struct.Struct(UNPACK_ACCOUNT)

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.fd = os.memfd_create("account", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, self.WRITERS.size)
        self._lock = threading.Lock()
        self._plain = self._spooled = self._documents = self._names = 0

    def close(self) -> None:
        os.close(self.fd)

    def plain(self, count: int) -> None:
        """Charge decompressed bytes of tars: the content of their files, and a KiB for each entry."""
        with self._lock:
            self._plain += count
        if self._plain > self.budget.size + (self.budget.entries << 10):
            raise BadInput("it unpacks to more than its budget", hint="--max-size")

    def spool(self, count: int) -> None:
        """Charge bytes of a stream that is kept in a file until it is read."""
        self._spooled += count
        if self._spooled > self.budget.size + (self.budget.entries << 10):
            raise BadInput("it is larger than its budget", hint="--max-size")

    def document(self, count: int) -> None:
        """Charge a JSON document of that many bytes."""
        self._documents += count + 512
        if self._documents > MAX_DOCUMENTS:
            raise BadInput(f"its indexes, manifests and configs are larger than {MAX_DOCUMENTS >> 20} MiB together")

    def names(self, count: int) -> None:
        self._names += count
        if self._names > MAX_NAMES:
            raise BadInput(f"it has more than {MAX_NAMES} names")

    def written(self) -> tuple[int, int, int]:
        """Return what the writers were charged: bytes, entries, bytes of reports."""
        bytes_, entries, records, _ = self._spent()
        return bytes_, entries, records

    def _spent(self) -> tuple[int, ...]:
        return self.WRITERS.unpack(os.pread(self.fd, self.WRITERS.size, 0))

    def refund(self, charged: tuple[int, int, int]) -> None:
        """Refund what a writer was charged whose work has been removed.  No writer may be running."""
        left = (a - b for a, b in zip(self._spent(), (*charged, 0), strict=True))
        os.pwrite(self.fd, self.WRITERS.pack(*left), 0)
