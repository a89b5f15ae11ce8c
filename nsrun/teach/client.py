# SPDX-License-Identifier: Apache-2.0
"""A client that `facts.http` starts in another network namespace: python -m nsrun.teach.client ADDRESS PORT.

It connects, says its own port, waits for the end of its input, then asks for / and prints what the server answers, as far
as that comes within SECONDS and is no longer than MOST bytes: the server may be anybody's.  Whatever happens, also to
who started it, it does not live longer than LIFE.
"""

from __future__ import annotations

import signal
import socket
import sys
import time

SECONDS = 1.0
LIFE = 10
MOST = 1 << 16


def main(address: str, port: int) -> int:
    """Return the exit status: 1 when no connection came about, 2 when no answer came."""
    signal.alarm(LIFE)
    with open(1, "wb", buffering=0) as parent:  # a pipe to facts.http
        try:
            sock = socket.create_connection((address, port), SECONDS)
        except OSError as error:
            parent.write((error.strerror or "timed out").encode())
            return 1
        with sock:
            parent.write(f"connected {sock.getsockname()[1]}\n".encode())
            sys.stdin.buffer.read()
            try:
                answer = _answer(sock, address)
            except OSError:
                return 2
        parent.write(answer.partition(b"\r\n\r\n")[2])
        return 0 if answer else 2


def _answer(sock: socket.socket, address: str) -> bytes:
    sock.sendall(f"GET / HTTP/1.0\r\nHost: {address}\r\n\r\n".encode())
    answer, end = b"", time.monotonic() + SECONDS
    while len(answer) < MOST and (left := end - time.monotonic()) > 0:
        sock.settimeout(left)
        if not (piece := sock.recv(MOST)):
            break
        answer += piece
    return answer


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], int(sys.argv[2])))
