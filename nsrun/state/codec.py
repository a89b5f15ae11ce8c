# SPDX-License-Identifier: Apache-2.0
"""The format of a note on disk: one JSON object of bounded size and known types, which begins with its own checksum.

    {"crc": "89abcdef", "id": …}

The checksum is the CRC-32 of everything after it.  A note that does not match it, or whose values have wrong types, is
*broken*.  A broken note is not a missing one: nothing is concluded from it (state/__init__.py).  The records of the
image store have this format, too (image/shapes.py).

We call the C scanner and encoder of `json` directly: importing `json` pulls in `re`, 5 ms of every command.
"""

from __future__ import annotations

from nsrun import kernel
from nsrun.errors import BadInput
from nsrun.schema import FLAG, HEX, LINE, STRING, WORD, Number, Text, check

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

try:
    from _json import encode_basestring_ascii, make_encoder, make_scanner  # the C functions that json itself uses

    class _Context:
        strict, object_hook, object_pairs_hook = True, None, None
        parse_float, parse_int, parse_constant = float, int, float
        memo: dict[str, str] = {}

    def _refuse(value: object) -> object:
        raise TypeError(f"{value!r} is not JSON")

    _scan = make_scanner(_Context())  # type: ignore[arg-type]
    _encode = make_encoder(None, _refuse, encode_basestring_ascii, None, ": ", ", ", False, False, True)

    def scan(text: str, at: int) -> tuple[Any, int]:
        """Return the JSON value that begins there, and where it ends.  Raise ValueError when there is none."""
        try:
            return _scan(text, at)
        except (StopIteration, SystemError, RecursionError):
            # SystemError: the scanner wants to raise an exception of json.decoder, which is not imported
            raise ValueError("not JSON") from None

    def loads(text: str) -> Any:
        """Return the value of a JSON document.  Raise ValueError when it is not one, or is nested too deeply."""
        text = text.strip()
        value, end = scan(text, 0)
        if end != len(text):
            raise ValueError("not JSON")
        return value

    _pack = make_encoder(None, _refuse, encode_basestring_ascii, None, ":", ",", False, False, True)

    def dumps(value: object) -> str:
        return "".join(_encode(value, 0))

    def compact(value: object) -> str:
        """Return the same without blanks, as engines write it."""
        return "".join(_pack(value, 0))

except ImportError:  # this interpreter lacks the C accelerator
    import json

    dumps = json.dumps  # type: ignore[assignment]

    def compact(value: object) -> str:
        return json.dumps(value, separators=(",", ":"))

    def scan(text: str, at: int) -> tuple[Any, int]:
        try:
            return json.JSONDecoder().raw_decode(text, at)
        except RecursionError:
            raise ValueError("not JSON") from None

    def loads(text: str) -> Any:
        try:
            return json.loads(text)
        except RecursionError:
            raise ValueError("not JSON") from None


#: Bytes of the largest note: a config.json may have an argument list as long as the kernel accepts.
MAX_BYTES = 16 << 20
_HEAD = b'{"crc": "%08x", '
_HEAD_SIZE = len(_HEAD % 0)
_COUNT, _SIGNED = Number(), Number(-1)
_NAME = Text("a name", 63, of="abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
_MAPS = {"uid": [[_COUNT]], "gid": [[_COUNT]]}
_NETWORK = {
    "mode": LINE, "name?": _NAME, "network_id?": HEX, "mtu?": _COUNT, "hosts?": STRING, "hosts_file?": [_COUNT], "ipv6?": LINE, "isolated?": FLAG, "closed?": LINE, "ip?": LINE, "ip6?": LINE, "gateway?": LINE, "prefix?": Number(1, 32), "bridge?": LINE, "veth?": LINE, "veth_index?": _COUNT, "netns?": _COUNT,
}  # fmt: skip
_PORTS = [{"host_ip": LINE, "host_port": _COUNT, "pod_port": _COUNT, "protocol": LINE, "mode?": LINE}]
#: The shape of each kind of note (schema.py).
SHAPES: dict[str, dict[str, Any]] = {
    "pods": {
        "id": HEX, "name": _NAME, "created": LINE, "owner": LINE, "hostname": LINE, "network": _NETWORK, "labels": dict,
        "cgroup": WORD, "ports?": _PORTS, "released?": _PORTS, "pause?": list, "pause_fd?": _SIGNED, "namespaces?": {str: _COUNT}, "cgroup_id?": _COUNT,
        "held?": _COUNT, "held_since?": _COUNT, "user?": {"uid": _COUNT, "gid": _COUNT, "maps": _MAPS}, "nested?": {"maps": _MAPS, "setgroups": FLAG}, "devices?": LINE,
    },
    "members": {
        "id": HEX, "name": _NAME, "pod": _NAME, "pod_id": HEX, "created": LINE, "started": LINE, "command": [WORD], "rootfs": WORD,
        "cgroup": WORD, "shares_pid": FLAG, "terminal": FLAG, "stop_signal": Number(1, 64), "restart": LINE, "restarts": _COUNT,
        "rm": FLAG, "detached": FLAG, "process?": list, "pidfd?": _SIGNED, "image?": WORD, "image_id?": HEX, "layers?": [HEX],
        "cgroup_id?": _COUNT, "held?": _COUNT, "held_since?": _COUNT, "renamed?": _NAME, "labels?": dict, "stop_timeout?": _COUNT, "ends_pod?": FLAG, "health?": dict,
    },
    "published": {"id": HEX, "ports": _PORTS, "released?": _PORTS},
    "networks": {"id": Text("an id", 12, of="0123456789abcdef"), "name": _NAME, "created": LINE, "bridge": LINE, "subnet": LINE, "subnet6": LINE, "mtu": _COUNT},
    "config.json": {
        "process": {"args": [WORD], "env": [WORD], "cwd": WORD, "user": dict, "capabilities": dict}, "root": {"path": WORD},
        "linux": dict, "annotations": {str: WORD},
    },
    "options.json": {},
    "removing": {"process": list},
    "committed": {
        "id": HEX, "name": _NAME, "pod": _NAME, "pod_id": HEX, "cgroup": WORD, "cgroup_id": _COUNT, "shares_pid": FLAG, "process": list,
    },
    "about": {"name": _NAME, "pod": _NAME, "image_id": Text("an id", 64), "layers": [HEX]},
}  # fmt: skip


def encode(note: Mapping[str, Any]) -> bytes:
    """Return the bytes of a note.  Raise BadInput for a text that could be written, but not be used when it is read.

    That is half a surrogate pair, but for those that os.fsdecode has for bytes that are not UTF-8.
    """
    data = seal(note)
    if b"\\ud" in data:  # few notes have such an escape, or a letter beyond U+FFFF
        import json

        try:
            json.dumps(note, ensure_ascii=False).encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise BadInput(f"U+{ord(error.object[error.start]):04X} is not a character of text") from None
    return data


def seal(note: Mapping[str, Any]) -> bytes:
    """Return the bytes of a note, whatever is in it."""
    body = dumps(note).encode()[1:] + b"\n"
    return _HEAD % kernel.checksum(body) + body


def quick(data: bytes, fits: Callable[[Any], bool]) -> dict[str, Any] | None:
    """Return the note of these bytes, or None when `decode` has to say what is wrong with them."""
    body = data[_HEAD_SIZE:]
    if data[:_HEAD_SIZE] != _HEAD % kernel.checksum(body):
        return None
    try:
        note: dict[str, Any] = loads("{" + body.decode())
    except ValueError:
        return None
    return note if fits(note) else None


def decode(data: bytes, shape: dict[Any, Any]) -> dict[str, Any]:
    """Return the note of these bytes.  Raise ValueError, which tells what is wrong with them."""
    body = data[_HEAD_SIZE:]
    if data[:_HEAD_SIZE] != _HEAD % kernel.checksum(body):
        raise ValueError("its checksum does not match: it was changed, or written only in part")
    note = loads("{" + body.decode())
    try:
        check(note, shape, "it")
    except BadInput as error:
        raise ValueError(error.message) from None
    return note  # type: ignore[no-any-return]
