# SPDX-License-Identifier: Apache-2.0
"""Image names as people write them, and as they are kept: `mysql:8` is kept as docker.io/library/mysql:8.  Pure.

The grammar is that of the distribution project: [HOST[:PORT]/]PATH[:TAG][@sha256:HEX].
"""

from __future__ import annotations

from nsrun.errors import UsageError

_HEX = frozenset("0123456789abcdef")
_HOST = (
    r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
    r"(?:\.(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9]))*(?::[0-9]{1,5})?|\[[a-fA-F0-9:]+\](?::[0-9]{1,5})?"
)
_PATH = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_HINT = "for example mysql:8, docker.io/library/mysql:8, localhost:5000/mine/app@sha256:…"


class Reference:
    """`host`/`path` with `tag` ("" when a digest was given alone) and `digest` ("" or sha256:…)."""

    def __init__(self, host: str, path: str, tag: str, digest: str = "") -> None:
        self.host, self.path, self.tag, self.digest = host, path, tag, digest

    @property
    def name(self) -> str:
        """The name as it is kept: docker.io/library/mysql:8."""
        return f"{self.host}/{self.path}" + (f":{self.tag}" if self.tag else "")

    def __str__(self) -> str:
        return self.name + (f"@{self.digest}" if self.digest else "")


def is_digest(text: str) -> bool:
    """Return whether this is "sha256:" and 64 hexadecimal digits."""
    return len(text) == 71 and text.startswith("sha256:") and _HEX.issuperset(text[7:])


def split(text: str, host: str = "") -> tuple[str, str, str]:
    """Return (host, path, tag or "") of a name without a digest, as it is kept; nothing is checked.

    `host` is the default for a name without one, instead of docker.io.
    """
    first, slash, rest = text.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost" or first != first.lower()):
        host = "docker.io" if first == "index.docker.io" else first
    else:
        host, rest = host or "docker.io", text
    path, _, tag = rest.partition(":")
    if host == "docker.io" and "/" not in path:
        path = f"library/{path}"
    return host, path, tag


def meanings(word: str) -> list[str]:
    """Return the full names that a short name may have, likeliest first: mysql is of docker.io, or else of localhost."""
    found = []
    for default in ("docker.io", "localhost"):
        host, path, tag = split(word, default)
        name = f"{host}/{path}"
        found += [f"{name}:{tag}"] if tag else [f"{name}:latest", name]
    return found


def parse(text: str) -> Reference:
    """Return the reference.  Raise UsageError when it is not an image name."""
    from re import fullmatch

    rest, at, digest = text.partition("@")
    if at and not is_digest(digest):
        raise UsageError(f"image name {text!r}: {digest!r} is not sha256: and 64 hexadecimal digits", hint=_HINT)
    host, path, tag = split(rest)
    colon = tag or rest.endswith(":")
    if not colon and not digest:
        tag = "latest"
    if (
        not fullmatch(_HOST, host)
        or not fullmatch(_PATH, path)
        or len(path) > 255
        or (colon and not fullmatch(_TAG, tag))
    ):
        hint = "names are in lower case" if rest != rest.lower() and not fullmatch(_PATH, path) else _HINT
        raise UsageError(f"{text!r} is not an image name", hint=hint)
    # sha256:HEX is an id, and can't be the name of another image
    if host in ("docker.io", "localhost") and path in ("sha256", "library/sha256"):
        raise UsageError(f"{text!r} is not an image name: sha256: begins an id", hint=_HINT)
    return Reference(host, path, tag, digest)


def familiar(name: str) -> str:
    """Return the short form: docker.io/library/mysql:8 → mysql:8."""
    return name.removeprefix("docker.io/library/").removeprefix("docker.io/")
