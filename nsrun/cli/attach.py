# SPDX-License-Identifier: Apache-2.0
"""`nsrun attach`: the client of the packet protocol of csrc/monitor.c."""

from __future__ import annotations

import os
import socket

from nsrun._protocol import ATTACH_CLOSE, ATTACH_ERR, ATTACH_EXIT, ATTACH_FULL, ATTACH_INPUT, ATTACH_SIZE
from nsrun.cli import say
from nsrun.errors import BadInput, UnknownError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsrun.state import State

LEAVE = b"\x10\x11"  # Ctrl-P Ctrl-Q, as in Docker


def parse_keys(text: str) -> bytes:
    """Return the bytes of --detach-keys: characters and ctrl-X, with commas between them.  Raise UsageError."""
    found = b""
    for key in text.split(",") if text else []:
        control = key[5:].lower() if key.lower().startswith("ctrl-") else ""
        if len(key) == 1 and key.isascii() and key.isprintable():
            found += key.encode()
        elif len(control) == 1 and control in "abcdefghijklmnopqrstuvwxyz@[\\]^_":
            found += bytes((ord(control.upper()) & 0x1F,))
        else:
            raise UsageError(
                f"--detach-keys {text!r}: {key!r} is not a key",
                hint="for example ctrl-p,ctrl-q, or ctrl-], or empty for none",
            )
    return found


def attach(state: State, name: str, stdin: bool = True, close_stdin: bool = False, leave: bytes = LEAVE) -> int:
    """Relay input and output until the member ends; return its exit status, or 0 if we detached before.

    We detach when the user types the keys for it, or when our terminal hangs up.  `stdin`: pass our input on;
    `close_stdin`: close the member's input when ours ends.
    """
    import select
    import signal
    import struct

    note = state.member(name)
    status = state.member_status(note)[0]
    if status == "paused":
        raise BadInput(f"member {note['name']!r} is paused", hint=f"nsrun unpause {note['name']}")
    if status not in ("running", "stopping"):
        raise UnknownError(f"member {note['name']!r} is not running", hint="nsrun logs shows what it wrote")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    directory = os.open(state.path("members", note["name"]), os.O_PATH | os.O_DIRECTORY)
    try:
        sock.connect(f"/proc/self/fd/{directory}/attach")
    except OSError as error:
        raise BadInput(
            f"can't attach to member {note['name']!r}: {error.strerror}",
            hint="only a detached member whose monitor is alive can be attached to",
        ) from None
    finally:
        os.close(directory)
    ours = stdin and os.isatty(0)
    terminal = note["terminal"] and ours
    saved = None
    if terminal:
        import fcntl
        import termios
        import tty

        saved = termios.tcgetattr(0)
        tty.setraw(0)

        def resize(*_: object) -> None:
            packets.append(bytes((ATTACH_SIZE,)) + fcntl.ioctl(0, termios.TIOCGWINSZ, struct.pack("8x")))
            if len(packets) == 1:  # select(2) is restarted with its old arguments
                send()

    packets: list[bytes] = []  # to be sent; our input is read when there is none, and output is shown meanwhile
    held = b""

    def send() -> None:
        nonlocal stdin
        try:
            sock.send(packets[0], socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):
            stdin, packets[1:] = False, []  # the member has just ended; its last packets are still to be read
        del packets[0]

    try:
        if terminal:
            signal.signal(signal.SIGWINCH, resize)
            resize()
        while True:
            readable = [sock.fileno(), *([0] if stdin and not packets else [])]
            ready, writable, _ = select.select(readable, [sock.fileno()] if packets else [], [])
            if writable:
                send()
            if sock.fileno() in ready:
                try:
                    packet = sock.recv(8192)
                except ConnectionResetError:
                    continue  # reported once if the monitor ended with a packet of ours unread; what it sent is still to be read
                if not packet:
                    raise BadInput(
                        f"the monitor of {note['name']!r} has closed the connection",
                        hint="the monitor was killed, or our output was not read for two seconds",
                    )
                if packet[0] == ATTACH_FULL:
                    raise BadInput(
                        f"too many clients are attached to {note['name']!r}",
                        hint="detach one of them (Ctrl-P Ctrl-Q, or what --detach-keys says); nsrun logs -f shows the output to any number of readers",
                    )
                if packet[0] == ATTACH_EXIT:
                    return int(packet[1:])
                say.raw(2 if packet[0] == ATTACH_ERR else 1, packet[1:])
            if 0 in ready:
                try:
                    data = os.read(0, 4000)
                except OSError:
                    data = b""  # the terminal was hung up
                if not data:
                    stdin = False
                    if close_stdin:
                        packets.append(bytes((ATTACH_CLOSE,)))
                    elif ours:
                        return 0
                    continue
                data = held + data
                if terminal and leave and leave in data:
                    return 0
                sizes = range(len(leave) - 1, 0, -1) if terminal else ()
                held = next((leave[:size] for size in sizes if data.endswith(leave[:size])), b"")  # the next key tells
                if data := data.removesuffix(held):
                    packets.append(bytes((ATTACH_INPUT,)) + data)
    finally:
        sock.close()
        if saved:
            import termios

            termios.tcsetattr(0, termios.TCSADRAIN, saved)
            say.err("")
