# SPDX-License-Identifier: Apache-2.0
"""A person at a terminal."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time

from conftest import NSRUN


class Terminal:
    """Types, reads, resizes."""

    def __init__(self, host, *words, rows=31, columns=101, program=NSRUN):
        self.master, slave = pty.openpty()
        self.resize(rows, columns)
        self.process = subprocess.Popen(
            [program, *map(str, words)], stdin=slave, stdout=slave, stderr=slave, env={**host.env, "TERM": "vt100"}, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509
        )  # fmt: skip
        self.slave = slave
        self.seen = ""

    def resize(self, rows, columns):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def type(self, text):
        os.write(self.master, text.encode())

    def expect(self, pattern, seconds=10):
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen)):
            left = end - time.monotonic()
            assert left > 0, f"no {pattern!r} in {self.seen!r}"
            if select.select([self.master], [], [], min(left, 0.2))[0]:
                self.seen += os.read(self.master, 65536).decode("utf-8", "replace")
        self.seen = self.seen[found.end() :]
        return found.group(0)

    def close(self):
        self.process.kill()
        self.process.wait(timeout=30)
        os.close(self.master), os.close(self.slave)
