"""What a note is on disk: one JSON object that begins with its own checksum, of known types, of bounded size.

    {"crc": "89abcdef", "id": …}

The checksum is the CRC-32 of everything behind it.  A note that does not fit it, or whose values have other types than
they should, is *broken*: that is no absence, and nobody concludes anything from it (state.py).

JSON itself costs one C call here: importing `json` pulls `re` in, 5 ms of every command.
"""

from __future__ import annotations

from nsrun import kernel

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
        """ValueError when it is not a JSON document."""
        text = text.strip()
        try:
            value, end = _scan(text, 0)
        except (
            StopIteration,
            SystemError,
            RecursionError,
        ):  # SystemError: it wants the exception of a json.decoder that is not imported
            end = -1
        if end != len(text):
            raise ValueError("not JSON")
        return value

    def dumps(value: object) -> str:
        return "".join(_encode(value, 0))

except ImportError:  # an interpreter without the accelerator
    import json

    loads, dumps = json.loads, json.dumps  # type: ignore[assignment]


#: Bytes: a config.json may have an argument list as long as the kernel takes.
MAX_BYTES = 16 << 20
_HEAD = b'{"crc": "%08x", '
_NUMBERS = [int]
_TEXTS = [str]
_MAPS = {"uid": [_NUMBERS], "gid": [_NUMBERS]}
_NETWORK = {"mode": str, "ip?": str, "gateway?": str, "bridge?": str, "veth?": str, "veth_index?": int}
_PORTS = [{"host_ip": str, "host_port": int, "pod_port": int, "protocol": str}]
#: What must be in a note, and of which type; `?`: it may be missing.
SHAPES: dict[str, dict[str, Any]] = {
    "pods": {
        "id": str, "name": str, "created": str, "owner": str, "hostname": str, "network": _NETWORK, "labels": dict, "cgroup": str,
        "ports?": _PORTS, "pause?": list, "pause_fd?": int, "namespaces?": dict, "cgroup_id?": int,
        "user?": {"uid": int, "gid": int, "maps": _MAPS}, "nested?": {"maps": _MAPS, "setgroups": bool}, "devices?": str,
    },
    "members": {
        "id": str, "name": str, "pod": str, "pod_id": str, "created": str, "started": str, "command": _TEXTS, "rootfs": str,
        "cgroup": str, "shares_pid": bool, "terminal": bool, "stop_signal": int, "restart": str, "restarts": int, "rm": bool,
        "detached": bool, "process?": list, "pidfd?": int, "image?": str, "image_id?": str, "layers?": _TEXTS, "cgroup_id?": int,
    },
    "config.json": {"process": {"args": _TEXTS, "env": _TEXTS, "cwd": str, "user": dict, "capabilities": dict}, "root": dict, "linux": dict, "annotations": dict},
    "options.json": {},
    "about": {"name": str, "pod": str, "image_id": str, "layers": _TEXTS},
}  # fmt: skip


def encode(note: dict[str, Any]) -> bytes:
    """The bytes of a note."""
    body = dumps(note).encode()[1:] + b"\n"
    return _HEAD % kernel.checksum(body) + body


def decode(data: bytes, shape: str) -> dict[str, Any]:
    """The note of these bytes.  ValueError tells what is wrong with them."""
    size = len(_HEAD % 0)
    body = data[size:]
    if data[:size] != _HEAD % kernel.checksum(body):
        raise ValueError("its checksum does not fit: it was changed, or written only in part")
    note = loads("{" + body.decode())
    _check(note, SHAPES[shape], "")
    return note  # type: ignore[no-any-return]


def _check(value: Any, shape: Any, where: str) -> None:
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            raise ValueError(f"{where or 'it'} is no object")
        for key, inner in shape.items():
            name = key.removesuffix("?")
            if name in value:
                _check(value[name], inner, f"{where}.{name}".lstrip("."))
            elif name == key:
                raise ValueError(f"{where}.{name}".lstrip(".") + " is missing")
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise ValueError(f"{where} is no list")
        for item in value:
            _check(item, shape[0], f"{where}[]")
    elif not isinstance(value, shape) or (shape is int and isinstance(value, bool)):
        raise ValueError(f"{where} is no {shape.__name__}")
