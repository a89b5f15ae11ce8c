# SPDX-License-Identifier: Apache-2.0
"""Filters of containers: linux.seccomp compiled by nsrun.seccomp, and kept by the checksum of what they were made from."""

from __future__ import annotations

import os

from nsrun import seccomp
from nsrun.errors import BadInput
from nsrun.schema import read_document

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 1,
    "SECCOMP_FILTER_FLAG_LOG": 2,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": 32,
}
_WHAT = "linux.seccomp"
_NOTIFY = "SCMP_ACT_NOTIFY"
#: What nsrun-init calls while it has the listener itself: nobody would notice that the other one who has it ends.
_OURS = {
    "write": "it is how nsrun-init says that the listener is there",
    "read": "it is how nsrun-init hears that the listener was sent",
    "close": "it is how nsrun-init gives its own copy of the listener away",
}


def flags(profile: Mapping[str, Any]) -> int:
    """Return the flags of seccomp(2) that a profile asks for.  Raise BadInput for an unknown one."""
    found = 0
    for word in profile.get("flags") or []:
        if word not in FLAGS:
            raise BadInput(f"{_WHAT}.flags: {word!r} is unknown")
        found |= FLAGS[word]
    return found & ~1  # one thread alone: nothing to synchronize


def asks(profile: Mapping[str, Any] | None) -> bool:
    """Return whether a filter asks a listener (SCMP_ACT_NOTIFY).  Raise BadInput when nobody could answer."""
    if not profile:
        return False
    if profile["defaultAction"] == _NOTIFY:
        raise BadInput(f"{_WHAT}.defaultAction: {_NOTIFY} would ask for every call, those of nsrun-init too")
    named = [rule.get("names") or [] for rule in profile.get("syscalls") or [] if rule.get("action") == _NOTIFY]
    if not named:
        return False
    for call, why in _OURS.items():
        if any(call in names for names in named):
            raise BadInput(f"{_WHAT}.syscalls: {_NOTIFY} for {call}: {why}")
    path = profile.get("listenerPath") or ""
    if not path.startswith("/"):
        raise BadInput(f"{_WHAT}.listenerPath: {_NOTIFY} needs one, and it is an absolute path")
    return True


def compiled(kept: str, profile: Mapping[str, Any], caps: int) -> bytes:
    """Return the programs of a profile, from the directory `kept` or made now."""
    from nsrun import kernel
    from nsrun.state import codec

    document = {
        key: value for key, value in profile.items() if key not in ("flags", "listenerPath", "listenerMetadata")
    }
    text = f"{seccomp.COMPILER} {os.uname().machine} {codec.dumps(document)}".encode()
    path = f"{kept}/{_digest(text)}"
    try:
        data = read_document(path, seccomp.MAX_COMPILED)
        if data[:4] == kernel.checksum(data[4:]).to_bytes(4, "little"):
            return data[4:]
    except (OSError, BadInput):
        pass  # there is none yet, or something else: it is made anew
    data = seccomp.programs(document, caps, _WHAT, notify=True)
    temporary = f"{path}.{os.getpid()}"
    try:
        os.makedirs(kept, 0o700, exist_ok=True)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(kernel.checksum(data).to_bytes(4, "little") + data)
        os.rename(temporary, path)
    except OSError:
        pass  # the disk is full, say: then it is compiled every time
    return data


def _digest(data: bytes) -> str:
    """Return SHA-256 in hexadecimal digits; hashlib costs 3 ms."""
    try:
        from _sha256 import sha256  # type: ignore[import-not-found]
    except ImportError:
        from hashlib import sha256
    return str(sha256(data).hexdigest())
