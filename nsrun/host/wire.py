# SPDX-License-Identifier: Apache-2.0
"""Speak netlink: fill in the templates of messages.py and send them over a plain socket.

`_socket` is what `socket` wraps: importing the wrapper costs 5 ms (enum, selectors), which creating a pod does not
need.
"""

from __future__ import annotations

import _socket
import os
import struct
from errno import EINTR, ENODEV

from nsrun.errors import KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

try:
    from nsrun.host._templates import SAMPLES, TEMPLATES
except ImportError:  # the templates are not built (in an editable checkout), so let pyroute2 encode them now
    from nsrun.host import messages

    SAMPLES = {name: sample for name, (_, sample) in messages.SAMPLES.items()}
    TEMPLATES = messages.templates()

NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_DUMP_INTR = 0x10
_NUMBERS = (
    "bridge_index",
    "netns_fd",
    "index",
    "mtu",
    "ip_word",
    "high6",
    "low6",
    "mac_high",
    "mac_low",
    "gateway_word",
    "net_word",
    "mask_word",
    "third6",
    "fourth6",
)
_PORTS = ("port", "pod_port")
_ADDRESSES = ("pod_ip", "host_ip", "gateway", "subnet", "netmask")
_ADDRESSES6 = ("pod_ip6", "host_ip6", "gateway6")


def encode(name: str, **values: object) -> bytes:
    """Return the message `name` with these values in place of the samples."""
    return _fill(TEMPLATES[name], values)


def _fill(data: bytes, values: dict[str, object]) -> bytes:
    """Replace all samples at once, since a value may look like the sample of another."""
    filled = bytearray(data)
    for key, value in values.items():
        if key in _NUMBERS:
            raw = struct.pack("=I", value)
        elif key in _PORTS:
            raw = struct.pack(">H", value)
        elif key in _ADDRESSES:
            raw = _socket.inet_aton(str(value))
        elif key in _ADDRESSES6:
            raw = _socket.inet_pton(_socket.AF_INET6, str(value))
        else:
            raw = value if isinstance(value, bytes) else str(value).encode()
        sample = SAMPLES[key]
        if len(raw) != len(sample):
            raise ValueError(f"{key}={value!r} must be {len(sample)} bytes on the wire")
        at = data.find(sample)
        while at >= 0:
            filled[at : at + len(raw)] = raw
            at = data.find(sample, at + len(raw))
    return bytes(filled)


def encode_list(name: str, items: Sequence[dict[str, object]], **values: object) -> bytes:
    """Return the message `name`, whose last attribute is a list of one sample, with these items in its place."""
    data, at = _fill(TEMPLATES[name], values), 20  # the headers of netlink and of nfnetlink
    while (length := struct.unpack_from("=H", data, at)[0]) and at + length < len(data):
        at += (length + 3) & ~3
    body = b"".join(_fill(data[at + 4 :], item) for item in items)
    whole = data[:at] + struct.pack("=H", 4 + len(body)) + data[at + 2 : at + 4] + body
    return struct.pack("=L", len(whole)) + whole[4:]


class Socket(_socket.socket):
    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_socket(protocol: int) -> Socket:
    sock = Socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, protocol)
    sock.bind((0, 0))
    return sock


def talk(sock: _socket.socket, requests: Sequence[tuple[str, bytes]]) -> None:
    """Send (text, message) … as one datagram and wait for every acknowledgement.

    Raise KernelError with the text of the first request that the kernel refused.  rtnetlink carries out the requests
    before it; an nf_tables batch is carried out completely or not at all.
    """
    parts, waiting = [], {}
    for seq, (text, data) in enumerate(requests, 1):
        parts.append(data[:8] + struct.pack("=I", seq) + data[12:])
        if struct.unpack_from("=H", data, 6)[0] & 4:  # NLM_F_ACK
            waiting[seq] = text
    sock.send(b"".join(parts))
    error: KernelError | None = None
    while waiting:
        data = sock.recv(65536)
        while len(data) >= 16:
            length, kind, _, seq = struct.unpack_from("=LHHL", data)
            if kind == NLMSG_ERROR:
                text = waiting.pop(seq, "netlink request")
                code = -struct.unpack_from("=i", data, 16)[0]
                if code and error is None:
                    error = KernelError(code, text)
                    if sock.proto == NETLINK_NETFILTER and seq in (1, len(requests)):
                        raise error  # the batch as a whole was refused: no further answers come
            data = data[max(16, (length + 3) & ~3) :]
    if error:
        raise error


def attributes(data: bytes) -> dict[int, bytes]:
    """Return netlink attributes as type → bytes; netlink(7)."""
    found = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return found


def ask(sock: Socket, text: str, request: bytes) -> list[bytes]:
    """Return the bodies of all messages that answer a request: a dump, or one that wants an acknowledgement.

    Raise KernelError with `text` when the kernel refuses, or with EINTR when the dumped objects changed five times
    meanwhile.
    """
    for _ in range(5):
        sock.send(request)
        bodies: list[bytes] = []
        done = torn = False
        while not done:
            data, at = sock.recv(1 << 18), 0
            while len(data) - at >= 16 and not done:
                length, kind, flags = struct.unpack_from("=LHH", data, at)
                torn |= bool(flags & NLM_F_DUMP_INTR)
                if kind == NLMSG_ERROR and (code := -struct.unpack_from("=i", data, at + 16)[0]):
                    raise KernelError(code, text)
                done = kind in (NLMSG_ERROR, NLMSG_DONE)
                if not done:
                    bodies.append(data[at + 16 : at + length])
                at += max(16, (length + 3) & ~3)
        if not torn:
            return bodies
    raise KernelError(EINTR, text)


def address_of(interface: str) -> tuple[str, int]:
    """Return the first IPv4 address of an interface and the length of its prefix; "" when it has none.

    netdevice(7), SIOCGIFADDR and SIOCGIFNETMASK.
    """
    from fcntl import ioctl

    with Socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC) as sock:
        try:
            address, mask = (
                ioctl(sock.fileno(), request, struct.pack("16s24x", interface.encode()))[20:24]
                for request in (0x8915, 0x891B)
            )
        except OSError:
            return "", 0
    return _socket.inet_ntoa(address), int.from_bytes(mask, "big").bit_count()


def mac_of_link(interface: str) -> bytes:
    """Return the MAC of an interface (netdevice(7), SIOCGIFHWADDR)."""
    from fcntl import ioctl

    with Socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC) as sock:
        return ioctl(sock.fileno(), 0x8927, struct.pack("16s24x", interface.encode()))[18:24]


def mtu_of_link(interface: str) -> int:
    """Return the MTU of an interface, in bytes (netdevice(7), SIOCGIFMTU); 0 when it is gone."""
    from fcntl import ioctl

    with Socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC) as sock:
        try:
            answer = ioctl(sock.fileno(), 0x8921, struct.pack("16s24x", os.fsencode(interface)))
        except OSError as error:
            if error.errno != ENODEV:
                raise
            return 0
    return int(struct.unpack_from("=i", answer, 16)[0])
