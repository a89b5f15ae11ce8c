"""`nsrun attach`: the client's side of the packets that csrc/monitor.c speaks."""

from __future__ import annotations

import os
import socket

from nsrun.cli import say
from nsrun.errors import BadInput, UnknownError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsrun.state import State

LEAVE = b"\x10\x11"  # Ctrl-P Ctrl-Q, as in Docker


def attach(state: State, name: str) -> int:
    """Relays until the member has ended (its exit status) or the keys to leave were typed (0)."""
    import select
    import signal
    import struct

    note = state.member(name)
    if state.member_status(note)[0] not in ("running", "stopping"):
        raise UnknownError(f"member {note['name']!r} is not running", hint="nsrun logs shows what it wrote")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    directory = os.open(state.path("members", note["name"]), os.O_PATH | os.O_DIRECTORY)
    try:
        sock.connect(f"/proc/self/fd/{directory}/attach")
    except OSError as error:
        raise BadInput(
            f"member {note['name']!r} can't be attached to: {error.strerror}",
            hint="only a detached member with a living monitor can",
        ) from None
    finally:
        os.close(directory)
    terminal = note["terminal"] and os.isatty(0)
    saved = None
    if terminal:
        import fcntl
        import termios
        import tty

        saved = termios.tcgetattr(0)
        tty.setraw(0)

        def resize(*_: object) -> None:
            sock.send(b"w" + fcntl.ioctl(0, termios.TIOCGWINSZ, struct.pack("8x")))

        signal.signal(signal.SIGWINCH, resize)
        resize()
    watched = [sock.fileno(), 0]
    tail = b""

    def send(packet: bytes) -> None:
        try:
            sock.send(packet)
        except (BrokenPipeError, ConnectionResetError):
            watched[1:] = []  # it has just ended; its last packets are still to be read

    try:
        while True:
            ready = select.select(watched, [], [])[0]
            if sock.fileno() in ready:
                try:
                    packet = sock.recv(8192)
                except ConnectionResetError:
                    continue  # said once when it has ended with a packet of ours unread; what it sent is still to be read
                if not packet:
                    raise BadInput(f"the monitor of {note['name']!r} has gone")
                if packet[:1] == b"x":
                    return int(packet[1:])
                say.raw(2 if packet[:1] == b"e" else 1, packet[1:])
            if 0 in ready:
                data = os.read(0, 4000)
                if not data:
                    watched.remove(0)
                    send(b"c")
                    continue
                if terminal and (tail + data).find(LEAVE) >= 0:
                    return 0
                tail = data[-1:]
                send(b"i" + data)
    finally:
        sock.close()
        if saved:
            import termios

            termios.tcsetattr(0, termios.TCSADRAIN, saved)
            say.err("")
