# SPDX-License-Identifier: Apache-2.0
"""Show the map live to browsers of this machine, over server-sent events.

Only a loopback address is served, only to those who know the token in the URL, and only under the server's own name:
otherwise a page of elsewhere whose name was made to point at 127.0.0.1 could read it (DNS rebinding).
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import json
import secrets
import socket
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from nsrun.errors import BadInput, UsageError, errno_text
from nsrun.schema import is_number
from nsrun.teach.map import html, svg
from nsrun.teach.map.model import Map, plain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Connections at a time of those who know the token, and as many of others: each is a thread.  Seconds of silence after
#: which a stream shows that it is alive, and finds out whether somebody still reads it.
MOST, SILENCE = 64, 15.0
#: Seconds in which whoever connects must have asked for something: anybody on this machine can connect.
PATIENCE = 5.0

SCRIPT = """
const state = document.getElementById('state');
const source = new EventSource('events');
source.onmessage = event => {
  const now = JSON.parse(event.data);
  document.getElementById('picture').innerHTML = now.picture;
  document.getElementById('table').innerHTML = now.table;
  state.textContent = 'live, as of ' + now.time;
};
source.onerror = () => { state.textContent = 'not connected: nsrun map has ended, or starts again'; };
"""


def parse_address(text: str) -> tuple[str, int]:
    """Return (address, port) of "127.0.0.1:8000", "[::1]:8000" or "localhost:0".  Raise UsageError for any other address."""
    address, colon, port = text.rpartition(":")
    if not (colon and is_number(port) and len(port) < 6 and int(port) < 65536):
        raise UsageError(f"--serve {text}: expected ADDR:PORT", hint="--serve 127.0.0.1:8000")
    address = "127.0.0.1" if address == "localhost" else address
    try:
        bracketed = address.startswith("[") and address.endswith("]")
        found = ipaddress.ip_address(address[1:-1] if bracketed else address)
    except ValueError:
        raise UsageError(f"--serve {text}: {address!r} is not an address", hint="--serve 127.0.0.1:8000") from None
    if not found.is_loopback or getattr(found, "ipv4_mapped", None):
        raise UsageError(
            f"--serve {text}: only a loopback address is served, since a map shows command lines",
            hint="--serve 127.0.0.1:PORT; from another machine, through ssh -L PORT:127.0.0.1:PORT",
        )
    return str(found), int(port)


class Board:
    """The newest map, for all who wait for it."""

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.version = 0
        self.shown = Map({}, [])
        self.event = b""

    def publish(self, shown: Map) -> None:
        news = {"picture": svg.draw(shown), "table": html.table(shown), "time": time.strftime("%H:%M:%S")}
        event = b"data: " + json.dumps(news).encode() + b"\n\n"
        with self.condition:
            self.version, self.shown, self.event = self.version + 1, shown, event
            self.condition.notify_all()

    def wait(self, version: int) -> tuple[int, bytes]:
        """Return the next version and its event; after a while of silence, the same version and a comment."""
        with self.condition:
            if self.condition.wait_for(lambda: self.version > version, SILENCE):
                return self.version, self.event
        return version, b": nothing has changed\n\n"


class Server(ThreadingHTTPServer):
    """Serves a board in threads of its own; `url` is where."""

    daemon_threads, block_on_close, request_queue_size = True, False, 128

    def __init__(self, address: str, port: int, board: Board) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.board, self.token, self.room = board, secrets.token_urlsafe(24), threading.Semaphore(3 * MOST)
        self.lock = threading.Lock()
        self.strangers: dict[
            socket.socket, float
        ] = {}  # connections that have not shown the token yet, the oldest first
        self.known: set[socket.socket] = set()
        try:
            super().__init__((address, port), _Handler)
        except OSError as error:
            raise BadInput(
                f"--serve: can't listen on {address} port {port}: {errno_text(error.errno or 0)}",
                hint="port 0 takes any free one",
                errno=error.errno or 0,
            ) from None
        shown = f"[{address}]" if ":" in address else address
        self.hosts = {f"{name}:{self.server_port}" for name in (shown, "localhost")}
        self.url = f"http://{shown}:{self.server_port}/{self.token}/"

    def server_bind(self) -> None:
        """Bind without asking for the name of the address, which may take a name server's time."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own.  Of too many who have not shown the token, the one that came first has to go."""
        with self.lock:
            if len(self.strangers) >= MOST:
                self._send_away(next(iter(self.strangers)))
            self.strangers[request] = time.monotonic()
        if self.room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self._leave(request)
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._leave(request)
            self.room.release()

    def admit(self, request: Any) -> bool:
        """Let somebody stay who has shown the token; return False when too many have."""
        with self.lock:
            if len(self.known) >= MOST or not self.strangers.pop(request, 0):
                return False
            self.known.add(request)
            return True

    def _leave(self, request: Any) -> None:
        with self.lock:
            self.strangers.pop(request, None)
            self.known.discard(request)

    def _send_away(self, request: socket.socket) -> None:
        """End a connection, on which a thread waits that then ends."""
        del self.strangers[request]
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)

    def service_actions(self) -> None:
        """Send away, twice a second, who has taken too long to ask."""
        with self.lock:
            for request, since in list(self.strangers.items()):
                if time.monotonic() - since > PATIENCE:
                    self._send_away(request)

    def handle_error(self, *_: object) -> None:
        """A browser that has gone is no error of ours."""

    def start(self) -> None:
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = 20  # a browser that says nothing, or takes nothing, is let go
    server_version, sys_version = "nsrun", ""

    def log_message(self, *_: object) -> None:
        """Write no log: the path has the token in it."""

    def do_GET(self) -> None:
        if self.headers.get("Host", "") not in self.server.hosts:
            self._refuse(HTTPStatus.FORBIDDEN)
            return
        token, _, what = self.path.removeprefix("/").partition("/")
        if not hmac.compare_digest(token.encode("utf-8", "replace"), self.server.token.encode()):
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        if not self.server.admit(self.connection):
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)
            return
        shown = self.server.board.shown
        if self.path == f"/{self.server.token}":
            self._refuse(
                HTTPStatus.PERMANENT_REDIRECT, f"/{self.server.token}/"
            )  # what the page asks for is relative to it
        elif what == "":
            nonce = secrets.token_urlsafe(16)
            self._send("text/html; charset=utf-8", html.page(shown, SCRIPT, nonce), f"script-src 'nonce-{nonce}'; connect-src 'self'; ")  # fmt: skip
        elif what == "map.svg":
            self._send("image/svg+xml", svg.draw(shown))
        elif what == "map.json":
            self._send("application/json", json.dumps(plain(shown)))
        elif what == "events":
            self._stream()
        else:
            self._refuse(HTTPStatus.NOT_FOUND)

    def _head(self, status: HTTPStatus, kind: str, policy: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header(
            "Content-Security-Policy",
            f"default-src 'none'; {policy}style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        )

    def _send(self, kind: str, text: str, policy: str = "") -> None:
        data = text.encode("utf-8", "backslashreplace")
        self._head(HTTPStatus.OK, kind, policy)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _refuse(self, status: HTTPStatus, location: str = "") -> None:
        self._head(status, "text/plain")
        if location:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(f"{status.phrase}\n".encode())

    def _stream(self) -> None:
        self._head(HTTPStatus.OK, "text/event-stream")
        self.end_headers()
        version = 0
        while True:
            version, event = self.server.board.wait(version)
            self.wfile.write(event)
            self.wfile.flush()
