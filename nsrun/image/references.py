"""Image names as people write them, and as they are kept: `mysql:8` is docker.io/library/mysql:8.  Pure.

The grammar is the distribution project's: [HOST[:PORT]/]PATH[:TAG][@sha256:HEX].
"""

from __future__ import annotations

import re

from nsrun.errors import UsageError

DIGEST = re.compile(r"sha256:[a-f0-9]{64}")
_HOST = re.compile(
    r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
    r"(?:\.(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9]))*(?::[0-9]{1,5})?|\[[a-fA-F0-9:]+\](?::[0-9]{1,5})?"
)
_PATH = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_HINT = "for example mysql:8, docker.io/library/mysql:8, localhost:5000/mine/app@sha256:…"


class Reference:
    """`host`/`path` with `tag` ("" when a digest was given alone) and `digest` ("" or sha256:…)."""

    def __init__(self, host: str, path: str, tag: str, digest: str = "") -> None:
        self.host, self.path, self.tag, self.digest = host, path, tag, digest

    @property
    def name(self) -> str:
        """As it is kept: docker.io/library/mysql:8."""
        return f"{self.host}/{self.path}" + (f":{self.tag}" if self.tag else "")

    def __str__(self) -> str:
        return self.name + (f"@{self.digest}" if self.digest else "")


def parse(text: str) -> Reference:
    """UsageError when it is no image name."""
    rest, at, digest = text.partition("@")
    if at and not DIGEST.fullmatch(digest):
        raise UsageError(f"image name {text!r}: {digest!r} is not sha256: and 64 hexadecimal digits", hint=_HINT)
    first, slash, remainder = rest.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost" or first != first.lower()):
        host, path = first, remainder
    else:
        host, path = "docker.io", rest
    if host == "index.docker.io":
        host = "docker.io"
    path, colon, tag = path.partition(":")
    if host == "docker.io" and "/" not in path:
        path = f"library/{path}"
    if not colon and not digest:
        tag = "latest"
    if not _HOST.fullmatch(host) or not _PATH.fullmatch(path) or len(path) > 255 or (colon and not _TAG.fullmatch(tag)):
        hint = "names are in lower case" if rest != rest.lower() and not _PATH.fullmatch(path) else _HINT
        raise UsageError(f"{text!r} is not an image name", hint=hint)
    return Reference(host, path, tag, digest)


def familiar(name: str) -> str:
    """The short form: docker.io/library/mysql:8 → mysql:8."""
    return name.removeprefix("docker.io/library/").removeprefix("docker.io/")
