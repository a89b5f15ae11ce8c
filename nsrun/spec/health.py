# SPDX-License-Identifier: Apache-2.0
"""Health checks as --health-cmd and its companions, and an image's config, say them.  Pure.

Docker's meanings and defaults: a member is *starting* until a check has succeeded, *unhealthy* after so many failures one
after the other, and failures within the start period do not count.
"""

from __future__ import annotations

from nsrun.errors import BadInput, UsageError
from nsrun.schema import is_number
from nsrun.spec.options import parse_count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nsrun.types import Health, ImageConfig, JoinOptions

#: What is said when there is something to check, but not how.
SHELL = ["/bin/sh", "-c"]
TIMES = {"interval": 30.0, "timeout": 30.0, "start_period": 0.0, "start_interval": 5.0}
RETRIES = 3
_UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
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


def parse_health(options: JoinOptions, image: ImageConfig) -> Health | None:
    """Return how a member's health is to be checked: as the options say, and for the rest as its image does; None: not at all."""
    found: dict[str, Any] = image.get("Healthcheck") or {}
    test = _test_of(options)
    what = "--health-cmd" if test else "the image's health check"
    command = _command(test or found.get("Test") or [], image.get("Shell") or SHELL, what)
    if not command:
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
    return {
        "command": command,
        "interval": times["interval"],
        "timeout": times["timeout"],
        "start_period": times["start_period"],
        "start_interval": times["start_interval"],
        "retries": retries or RETRIES,
    }
