# SPDX-License-Identifier: Apache-2.0
"""What a note is on disk: one JSON object that begins with its own checksum, of known types, of bounded size.

    {"crc": "89abcdef", "id": …}

The checksum is the CRC-32 of everything behind it.  A note that does not fit it, or whose values have other types than
they should, is *broken*: that is no absence, and nobody concludes anything from it (state.py).  The documents of the
image store are notes, too (image/shapes.py).

JSON itself costs one C call here: importing `json` pulls `re` in, 5 ms of every command.
"""

from __future__ import annotations

from nsrun import kernel
from nsrun.errors import BadInput
from nsrun.schema import FLAG, HEX, LINE, WORD, Number, Text, check

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

try:
    from _json import encode_basestring_ascii, make_encoder, make_scanner  # what json itself runs on

    class _Context:
        strict, object_hook, object_pairs_hook = True, None, None
        parse_float, parse_int, parse_constant = float, int, float
        memo: dict[str, str] = {}

    def _refuse(value: object) -> object:
        raise TypeError(f"{value!r} is not JSON")

    _scan = make_scanner(_Context())  # type: ignore[arg-type]
    _encode = make_encoder(None, _refuse, encode_basestring_ascii, None, ": ", ", ", False, False, True)

    def loads(text: str) -> Any:
        """ValueError when it is not a JSON document, or one that is nested too deep."""
        text = text.strip()
        try:
            value, end = _scan(text, 0)
        except (StopIteration, SystemError, RecursionError):
            end = -1  # SystemError: it wants the exception of a json.decoder that is not imported
        if end != len(text):
            raise ValueError("not JSON")
        return value

    def dumps(value: object) -> str:
        return "".join(_encode(value, 0))

except ImportError:  # an interpreter without the accelerator
    import json

    dumps = json.dumps  # type: ignore[assignment]

    def loads(text: str) -> Any:
        try:
            return json.loads(text)
        except RecursionError:
            raise ValueError("not JSON") from None


#: Bytes: a config.json may have an argument list as long as the kernel takes.
MAX_BYTES = 16 << 20
_HEAD = b'{"crc": "%08x", '
_COUNT, _SIGNED = Number(), Number(-1)
_NAME = Text("a name", 63, of="abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
_MAPS = {"uid": [[_COUNT]], "gid": [[_COUNT]]}
_NETWORK = {
    "mode": LINE, "ip?": LINE, "gateway?": LINE, "bridge?": LINE, "veth?": LINE, "veth_index?": _COUNT, "netns?": _COUNT,
}  # fmt: skip
_PORTS = [{"host_ip": LINE, "host_port": _COUNT, "pod_port": _COUNT, "protocol": LINE}]
#: What must be in a note (schema.py).
SHAPES: dict[str, dict[str, Any]] = {
    "pods": {
        "id": HEX, "name": _NAME, "created": LINE, "owner": LINE, "hostname": LINE, "network": _NETWORK, "labels": dict,
        "cgroup": WORD, "ports?": _PORTS, "pause?": list, "pause_fd?": _SIGNED, "namespaces?": {str: _COUNT}, "cgroup_id?": _COUNT,
        "held?": _COUNT, "user?": {"uid": _COUNT, "gid": _COUNT, "maps": _MAPS}, "nested?": {"maps": _MAPS, "setgroups": FLAG}, "devices?": LINE,
    },
    "members": {
        "id": HEX, "name": _NAME, "pod": _NAME, "pod_id": HEX, "created": LINE, "started": LINE, "command": [WORD], "rootfs": WORD,
        "cgroup": WORD, "shares_pid": FLAG, "terminal": FLAG, "stop_signal": Number(1, 64), "restart": LINE, "restarts": _COUNT,
        "rm": FLAG, "detached": FLAG, "process?": list, "pidfd?": _SIGNED, "image?": WORD, "image_id?": HEX, "layers?": [HEX],
        "cgroup_id?": _COUNT, "held?": _COUNT,
    },
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


def encode(note: dict[str, Any]) -> bytes:
    """The bytes of a note."""
    body = dumps(note).encode()[1:] + b"\n"
    return _HEAD % kernel.checksum(body) + body


def decode(data: bytes, shape: dict[Any, Any]) -> dict[str, Any]:
    """The note of these bytes.  ValueError tells what is wrong with them."""
    size = len(_HEAD % 0)
    body = data[size:]
    if data[:size] != _HEAD % kernel.checksum(body):
        raise ValueError("its checksum does not fit: it was changed, or written only in part")
    note = loads("{" + body.decode())
    try:
        check(note, shape, "it")
    except BadInput as error:
        raise ValueError(error.message) from None
    return note  # type: ignore[no-any-return]
