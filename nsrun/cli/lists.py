# SPDX-License-Identifier: Apache-2.0
"""What --quiet, --filter and --format make of a list, in docker's words.

A filter is KEY=VALUE.  Values of one key are alternatives, and different keys must all fit.  A format is a template of which
only {{.Field}} is known, with \\t and \\n; `table …` has a head.  Whatever is not known is refused.
"""

from __future__ import annotations

from nsrun.cli import say
from nsrun.errors import UsageError, printable
from nsrun.spec.options import at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from nsrun.cli.commands import Call

    Row = dict[str, Any]
    Fields = Mapping[str, Callable[[Row], object]]
    Filters = Mapping[str, Callable[[Row, str], bool]]


def _get(key: str) -> Callable[[Row], object]:
    return lambda row: row.get(key, "")


def _labels(row: Row) -> str:
    return ",".join(f"{key}={value}" for key, value in (row.get("labels") or {}).items())


def has_label(row: Row, wanted: str) -> bool:
    """Return whether a row has the label KEY, or KEY=VALUE."""
    labels = row.get("labels") or {}
    key, equals, value = wanted.partition("=")
    return key in labels and (not equals or labels[key] == value)


def _is_of_image(row: Row, wanted: str) -> bool:
    image = str(row.get("image") or "")
    return wanted in (image, image.rpartition(":")[0]) or bool(image) and image.endswith(f"/{wanted}")


def with_health(status: str, row: Row) -> str:
    """Return the status of a member as docker shows it: running (healthy)."""
    health = row.get("health", "none")
    return status if health == "none" else f"{status} ({health})"


class _Named:
    """A filter by a name: a part of it, in which ^ is the beginning and $ the end.  Docker's own names begin with /."""

    def __init__(self, value: str) -> None:
        self.begins, self.ends = value.startswith(("^", "/")), value.endswith("$")
        self.text = value.removeprefix("^").removeprefix("/").removesuffix("$")

    def fits(self, name: str) -> bool:
        if self.begins and self.ends:
            return name == self.text
        if self.begins or self.ends:
            return name.startswith(self.text) if self.begins else name.endswith(self.text)
        return self.text in name


_SHARED: Filters = {
    "name": lambda row, value: _Named(value).fits(row["name"]),
    "id": lambda row, value: bool(value) and row["id"].startswith(value),
    "status": lambda row, value: row["status"] == value,
    "label": has_label,
}
MEMBER_FILTERS: Filters = {
    **_SHARED,
    "pod": lambda row, value: row["pod"] == value,
    "ancestor": _is_of_image,
    "health": lambda row, value: row.get("health", "none") == value,
    "exited": lambda row, value: row["status"] == "stopped" and row["exit_code"] == int(value),
}
POD_FILTERS: Filters = {
    **_SHARED,
    "network": lambda row, value: value == (row["network"].get("name") or row["network"]["mode"]),
    "ctr-names": lambda row, value: any(map(_Named(value).fits, row["members"])),
}
_SHARED_FIELDS: Fields = {
    "ID": _get("id"),
    "Name": _get("name"),
    "Names": _get("name"),
    "Status": _get("status"),
    "State": _get("status"),
    "Pid": _get("pid"),
    "CreatedAt": _get("created"),
    "Created": _get("created"),
    "Labels": _labels,
}
MEMBER_FIELDS: Fields = {
    **_SHARED_FIELDS,
    "Status": lambda row: with_health(row["status"], row),
    "Health": lambda row: row.get("health", "none"),
    "Pod": _get("pod"),
    "PodName": _get("pod"),
    "Image": lambda row: row.get("image") or row.get("rootfs", ""),
    "Command": lambda row: " ".join(row["command"]),
    "ExitCode": lambda row: "" if row["exit_code"] is None else row["exit_code"],
    "StartedAt": lambda row: row["started"] or "",
    "Restarts": _get("restarts"),
}
POD_FIELDS: Fields = {
    **_SHARED_FIELDS,
    "Ports": lambda row: ", ".join(f"{at(p['host_ip'], p['host_port'])}->{p['pod_port']}/{p['protocol']}" for p in row["ports"]),
    "Network": lambda row: row["network"].get("name") or row["network"]["mode"],
    "Address": lambda row: row["network"]["ip"],
    "Members": lambda row: ",".join(row["members"]),
    "NumberOfContainers": lambda row: len(row["members"]),
    "Owner": _get("owner"),
}  # fmt: skip


#: The filters by names.
_NAMED = ("name", "ctr-names")
#: The statuses of members and pods, which a filter may ask for.
_STATUSES = ("created", "running", "paused", "restarting", "stopping", "stopped", "lost", "removing", "damaged")
_HEALTH = ("starting", "healthy", "unhealthy", "none")
#: What docker says, and what is meant here.
_ALIASES = {("status", "exited"): "stopped"}


def _value(key: str, value: str) -> str:
    """Return the value of a filter as the rows have it.  Raise UsageError for one that no row can have."""
    from nsrun.schema import NAME_CHARS, is_name, is_number

    if not value:
        raise UsageError(f"--filter {key}= has no value", hint="is a shell variable unset?")
    if key in _NAMED and not (_Named(value).text and NAME_CHARS.issuperset(_Named(value).text)):
        raise UsageError(
            f"--filter {key}={value}: no name is like that",
            hint="a part of a name; ^ stands for its beginning, $ for its end, and nothing else of a regular expression is known",
        )
    value = _ALIASES.get((key, value), value)
    known = {"status": _STATUSES, "health": _HEALTH}.get(key)
    if key == "network" and not is_name(value):
        raise UsageError(
            f"--filter {key}={value}: unknown", hint="bridge, none, host, pasta, or one of nsrun network ls"
        )
    if known and value not in known:
        raise UsageError(f"--filter {key}={value}: unknown", hint=f"one of: {', '.join(known)}")
    if key == "exited" and not (is_number(value) and len(value) < 4 and int(value) < 256):
        raise UsageError(f"--filter {key}={value}: not an exit status", hint="a number from 0 to 255")
    return value


class Shape:
    """How a list is to be printed, checked before anything is asked."""

    def __init__(self, call: Call, filters: Filters, fields: Fields) -> None:
        options = call.options
        self.quiet = bool(options.get("quiet"))
        self.format, self.fields = options.get("format", ""), fields
        self.json = bool(options.get("json")) or self.format == "json"
        if self.quiet + bool(options.get("json")) + bool(self.format) > 1:
            raise UsageError("--quiet, --json and --format exclude each other")
        self.wanted: dict[str, list[str]] = {}
        self.tests = filters
        for text in options.get("filter") or []:
            key, equals, value = text.partition("=")
            if key not in filters or not equals:
                raise UsageError(
                    f"--filter {text!r}: unknown", hint=f"KEY=VALUE, where KEY is one of: {', '.join(filters)}"
                )
            self.wanted.setdefault(key, []).append(_value(key, value))
        self.pieces = _parse(self.format, fields) if self.format and self.format != "json" else []

    @property
    def everything(self) -> bool:
        """Whether what has ended is asked for by its status."""
        return bool({"status", "exited"} & self.wanted.keys())

    def takes(self, row: Row) -> bool:
        return all(any(self.tests[key](row, value) for value in values) for key, values in self.wanted.items())

    def show(self, rows: list[Row]) -> bool:
        """Print names, or what the template makes of each row; return False when another form was asked for."""
        if self.quiet:
            for row in rows:
                say.out(row["name"])
            return True
        if not self.pieces:
            return False
        lines = [[self._fill(piece, row) for piece in self.pieces] for row in rows]
        if not self.format.startswith("table "):
            for line in lines:
                say.page("".join(line) + "\n", keep="\n\t")
            return True
        head = "".join(piece if is_text else _head(piece) for is_text, piece in self.pieces).split("\t")
        cells = ["".join(line).split("\t") for line in lines]
        width = max([len(head), *map(len, cells)])
        table = [[*row, *[""] * (width - len(row))] for row in [head, *cells]]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        say.page("".join("  ".join(map(str.ljust, row, widths)).rstrip() + "\n" for row in table))
        return True

    def _fill(self, piece: tuple[bool, str], row: Row) -> str:
        is_text, value = piece
        return value if is_text else printable(str(self.fields[value](row)))


def _head(field: str) -> str:
    """Return the head of a column, as docker writes it: CreatedAt is CREATED AT."""
    return "".join(
        f" {c}" if c.isupper() and at and not field[at - 1].isupper() else c for at, c in enumerate(field)
    ).upper()


def _parse(text: str, fields: Fields) -> list[tuple[bool, str]]:
    """Return the template as (True, text) and (False, name of a field).  Raise UsageError for what is not known."""
    pieces: list[tuple[bool, str]] = []
    rest = text.removeprefix("table ").replace("\\t", "\t").replace("\\n", "\n")
    while rest:
        before, opens, rest = rest.partition("{{")
        if before:
            pieces.append((True, before))
        if not opens:
            break
        inside, closes, rest = rest.partition("}}")
        name = inside.strip().removeprefix(".")
        if not closes or not inside.strip().startswith(".") or name not in fields:
            raise UsageError(
                f"--format: {{{{{inside[:60]}{closes} is not known",
                hint=f"json, or {{{{.FIELD}}}} of: {', '.join(sorted(fields))}",
            )
        pieces.append((False, name))
    return pieces
