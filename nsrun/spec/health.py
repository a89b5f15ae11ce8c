# SPDX-License-Identifier: Apache-2.0
"""Health checks as --health-cmd and its companions, and an image's config, say them.  Pure.

Docker's meanings and defaults: a member is *starting* until a check has succeeded, *unhealthy* after so many failures one
after the other, and failures within the start period do not count.
"""

from __future__ import annotations

from nsrun.errors import BadInput, UsageError
from nsrun.schema import is_number
from nsrun.spec.options import parse_count
from nsrun.spec.pod import is_address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nsrun.types import Health, ImageConfig, JoinOptions

#: What is said when there is something to check, but not how.
SHELL = ["/bin/sh", "-c"]
TIMES = {"interval": 30.0, "timeout": 30.0, "start_period": 0.0, "start_interval": 5.0}
RETRIES = 3
_UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
_TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
#: Bytes of a request, which the monitor's child reads into a buffer of 4096 with the address (csrc/connect.h).
MAX_REQUEST = 4096 - 28
_MOST = 366 * 24 * 3_600_000  # ms


def parse_duration(text: str, flag: str) -> float:
    """Return the seconds of a duration as Docker writes it: 30s, 1m30s, 500ms; a number alone is one of seconds."""
    rest, total = text, 0.0
    while rest:
        number = rest[: len(rest) - len(rest.lstrip("0123456789."))]
        unit = rest[len(number) :][: len(rest) - len(number) - len(rest[len(number) :].lstrip("smh"))]
        whole, _, part = number.partition(".")
        if not is_number((whole + part)[:18]) or (unit not in _UNITS and (unit or rest != text)):
            total = -1
            break
        total += float(number) * _UNITS[unit or "s"]
        rest = rest[len(number) + len(unit) :]
    if not text or not 0 <= total <= _MOST or 0 < total < 1:
        raise UsageError(f"{flag} {text[:80]!r} is not a duration", hint="for example 30s, 1m30s, 500ms")
    return round(total) / 1000


def _test_of(options: JoinOptions) -> list[str]:
    """Return what --health-cmd and --no-healthcheck say, as Docker's `Test`; [] when they say nothing."""
    others = sorted(key for key in options if key.startswith("health_"))
    if options.get("no_healthcheck"):
        if others:
            raise UsageError(f"--no-healthcheck and --{others[0].replace('_', '-')} contradict each other")
        return ["NONE"]
    text = options.get("health_cmd")
    if text is None:
        return []
    if text == "none":
        return ["NONE"]
    if text.startswith("["):
        import json

        try:
            words = json.loads(text)
        except (ValueError, RecursionError):
            words = None  # the [ of a shell
        if isinstance(words, list) and words and all(isinstance(word, str) for word in words):
            return words if words[0] in ("CMD", "CMD-SHELL", "NONE") else ["CMD", *words]
    return ["CMD-SHELL", text]


def _command(test: list[str], shell: list[str], what: str) -> list[str]:
    """Return what is executed; [] when nothing is checked.  Raise BadInput for a `Test` that says something else."""
    kind, words = test[0] if test else "NONE", test[1:]
    if kind == "NONE":
        return []
    if kind == "CMD-SHELL" and len(words) == 1:
        words = [*shell, *words]
    elif kind != "CMD" or not words:
        raise BadInput(f"{what}: {kind!r} with {len(words)} words is no health check", hint="--no-healthcheck")
    if any("\0" in word for word in words) or not words[0]:
        raise BadInput(f"{what} holds a NUL byte, or names no program")
    return words


def _place(text: str, what: str, port: int = 0) -> tuple[str, int]:
    """Return (address, port) of "[HOST:]PORT", or with a default `port` of "HOST[:PORT]"; the address may be ""."""
    host, colon, number = text.rpartition(":")
    if port and (not colon or text.endswith("]")):
        host, number = text, str(port)
    bracketed = host.startswith("[") and host.endswith("]")
    address = host[1:-1] if bracketed else host
    address = "127.0.0.1" if address == "localhost" else address
    if not is_number(number) or not 0 < int(number) < 65536:
        raise UsageError(f"{what}: {number[:80]!r} is not a port")
    if host and (bracketed != (":" in address) or not is_address(address)):
        raise UsageError(
            f"{what}: {host[:80]!r} is not an address", hint="127.0.0.1, [::1]; without one, the pod's own"
        )
    return address, int(number)


def parse_connect(text: str, headers: list[str], own: str) -> tuple[str, int, bytes]:
    """Return (address, port, request) of a check that connects; no request for one that does only that.

    `own`: the address of the pod, "" for none, which then is the loopback interface's.  Raise UsageError for what is no URL.
    """
    scheme, _, rest = text.partition("://")
    if scheme == "tcp":
        address, port = _place(rest, "--health-tcp")
        return address or own or "127.0.0.1", port, b""
    what, (place, _, path) = "--health-http", rest.partition("/")
    if scheme != "http":
        raise UsageError(f"{what} {text[:80]!r} does not begin with http://", hint="https is not done")
    if not (path.isascii() and path.isprintable()) or " " in path or "#" in path or not place or "?" in place:
        raise UsageError(f"{what}: {text[:80]!r} is not a URL", hint="http://:8080/path, where %20 is a blank")
    address, port = _place(place, what, 80)
    address = address or own or "127.0.0.1"
    host = f"[{address}]" if ":" in address else address
    default = {"host": f"Host: {host}:{port}", "user-agent": "User-Agent: nsrun", "accept": "Accept: */*"}
    lines = []
    for header in headers:
        name, colon, value = header.partition(":")
        if not colon or not name or not set(name) <= _TOKEN or not value.replace("\t", " ").isprintable():
            raise UsageError(f"--health-header {header[:80]!r} is not a header", hint="NAME: VALUE")
        if name.lower() == "connection":
            raise UsageError("--health-header: Connection is nsrun's own, close")
        default.pop(name.lower(), None)
        lines.append(f"{name}: {value.strip()}")
    head = [f"GET /{path} HTTP/1.1", *default.values(), *lines, "Connection: close", "", ""]
    request = "\r\n".join(head).encode()
    if len(request) > MAX_REQUEST:
        raise UsageError(f"{what}: the request has more than {MAX_REQUEST} bytes")
    return address, port, request


def check_connect(options: JoinOptions) -> tuple[str, list[str]]:
    """Return the URL that the options have checked, and headers; "" for none.  Raise UsageError for two kinds of check."""
    kinds = [
        key for key in ("health_cmd", "health_http", "health_tcp", "no_healthcheck") if options.get(key) is not None
    ]
    if len(kinds) > 1 and kinds != ["health_cmd", "no_healthcheck"]:
        first, second = (f"--{key.replace('_', '-')}" for key in kinds[:2])
        raise UsageError(f"{first} and {second} contradict each other")
    headers = options.get("health_header") or []
    if headers and "health_http" not in kinds:
        raise UsageError("--health-header needs --health-http")
    url = options["health_http"] if "health_http" in kinds else ""
    if url.startswith("tcp:"):
        raise UsageError(f"--health-http {url[:80]!r} does not begin with http://", hint="--health-tcp [HOST:]PORT")
    if "health_tcp" in kinds:
        url = f"tcp://{options['health_tcp']}"
    if url or "health_http" in kinds:
        parse_connect(url, headers, "")
    return url, headers


def parse_health(options: JoinOptions, image: ImageConfig) -> Health | None:
    """Return how a member's health is to be checked: as the options say, and for the rest as its image does; None: not at all."""
    found: dict[str, Any] = image.get("Healthcheck") or {}
    test = _test_of(options)
    what = "--health-cmd" if test else "the image's health check"
    url, headers = check_connect(options)
    command = [] if url else _command(test or found.get("Test") or [], image.get("Shell") or SHELL, what)
    if not command and not url:
        if not test and (others := sorted(key for key in options if key.startswith("health_"))):
            raise UsageError(f"--{others[0].replace('_', '-')}: there is no health check", hint="--health-cmd CMD")
        return None
    times = {}
    for key, default in TIMES.items():
        asked: Any = options.get(f"health_{key}")
        flag = f"--health-{key.replace('_', '-')}"
        given = found.get("".join(part.title() for part in key.split("_"))) or 0  # in nanoseconds
        seconds = parse_duration(asked, flag) if asked is not None else round(min(given // 10**6, _MOST)) / 1000
        times[key] = seconds or default
    retries = found.get("Retries") or 0
    if "health_retries" in options:
        retries = parse_count(options["health_retries"], "--health-retries", "a number of failures", 0, 1 << 20)
    health: Health = {
        "command": command,
        "interval": times["interval"],
        "timeout": times["timeout"],
        "start_period": times["start_period"],
        "start_interval": times["start_interval"],
        "retries": retries or RETRIES,
    }
    if url:
        health["connect"] = url
    if headers:
        health["headers"] = headers
    return health
