# SPDX-License-Identifier: Apache-2.0
"""The shapes of image documents for schema.py: those that others write, and those that the store writes.

OCI image-spec 1.1: descriptor.md, config.md.  Keys that are not listed here are ignored.
"""

from __future__ import annotations

from nsrun.schema import FLAG, HEX, LINE, STRING, TEXT, WORD, Number, Text

DIGEST = Text("a SHA-256 digest: sha256: and 64 hexadecimal digits", 71, of="sha256:0123456789abcdef")
PLATFORM = {"os?": LINE, "architecture?": LINE, "variant?": LINE}
DESCRIPTOR = {"mediaType?": LINE, "digest": DIGEST, "size": Number(0, (1 << 62) - 1), "platform?": PLATFORM}
PROCESS = {
    "Entrypoint?": [STRING],
    "Cmd?": [STRING],
    "Env?": [STRING],
    "User?": LINE,
    "WorkingDir?": LINE,
    "StopSignal?": LINE,
    "Volumes?": {str: object},
    "ExposedPorts?": {str: object},
    "Labels?": {str: TEXT},
    "Healthcheck?": {  # Docker's
        "Test?": [STRING],
        "Interval?": Number(),
        "Timeout?": Number(),
        "StartPeriod?": Number(),
        "StartInterval?": Number(),
        "Retries?": Number(),
    },
    "Shell?": [STRING],
}
CONFIG = {
    **PLATFORM,
    "created?": LINE,
    "author?": TEXT,
    "rootfs": {"diff_ids": [DIGEST]},
    "config?": PROCESS,
    "history?": [{"created?": TEXT, "created_by?": TEXT, "comment?": TEXT, "empty_layer?": FLAG}],
}

# documents of the store
NAMES = {str: HEX}
RECORD = {
    "id": HEX,
    "digests": [DIGEST],
    "layers": [HEX],
    "process": PROCESS,
    "users": {"passwd": TEXT, "group": TEXT, "error?": TEXT},
    "created": TEXT,
    "loaded": TEXT,
    "os": LINE,
    "architecture": LINE,
    "variant?": LINE,
}
LAYER = {"diff_id": DIGEST, "size": Number(), "files?": Number(), "entries": Number(), "skipped": [WORD]}
MAX_BYTES = 8 << 20  # of each document
