# SPDX-License-Identifier: Apache-2.0
"""Draw a map as text: a list of the stations of each box, and below it the lines, with a column for each station."""

from __future__ import annotations

from nsrun.teach.map.fit import cells, fit, pad, wrap
from nsrun.teach.map.model import Line, Map, Pod, lines, of_the_machine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

NARROW, WIDE = 72, 160
LEGEND = ("● is in that namespace", "○ is in this machine's own", "─ shared", "× has ended")
#: For a locale that has no other characters.
_ASCII = str.maketrans("●○─╌×…→·└", "*o-.x~>|`")
#: Two blanks, the kind, its inode.
_MARGIN, _KIND, _LABEL = 2, 9, 20
_LEAST, _MOST = 3, 6  # cells from one station to the next


def draw(shown: Map, width: int = 80, ascii: bool = False) -> str:
    """Return the map as lines of at most `width` cells; `ascii`: in no other characters, apart from those of names."""
    width = min(max(width, NARROW), WIDE)
    text: list[str] = []
    for pod in shown.pods:
        text += [*(line.rstrip() for line in _box(pod, shown.machine, width)), ""]
    text += wrap(LEGEND, width, between="   ") if shown.pods else ["no pod is running here"]
    found = "\n".join(text) + "\n"
    return found.translate(_ASCII) if ascii else found


def _box(pod: Pod, machine: dict[str, str], width: int) -> Iterator[str]:
    about = ", ".join([*pod.about, *(["ended"] if pod.ended else [])])
    yield pad(pod.title, width - cells(fit(about, width // 2)) - 1) + " " + fit(about, width // 2)
    yield "─" * width
    yield from _stations(pod, width)
    room = max(1, (width - _MARGIN - _KIND - _LABEL - 1) // _LEAST)
    for first in range(0, len(pod.stations), room):
        yield ""
        yield from _lines(pod, machine, range(first, min(first + room, len(pod.stations))), width)
    yield ""
    for title, parts in _below(pod, machine):
        for number, line in enumerate(wrap(parts, width - _MARGIN - _KIND, between=" · ")):
            yield " " * _MARGIN + pad("" if number else title, _KIND) + line


def _stations(pod: Pod, width: int) -> Iterator[str]:
    rows = [["", "station", "PID", "inside", "uid", "command"]]
    for number, station in enumerate(pod.stations, 1):
        more = f" +{station.children}" if station.children else ""
        command = "has ended" if station.ended else " ".join(station.command)
        rows.append([str(number), station.title, str(station.pid), station.inside, station.user, command + more])
    most = (3, 24, 8, 16, 18) if width >= 100 else (3, 20, 8, 9, 16)
    widths = [min(most[i], max(cells(fit(row[i], width)) for row in rows)) for i in range(5)]
    last = width - _MARGIN - sum(widths) - 2 * len(widths)
    for row, children in zip(rows, [0, *(station.children for station in pod.stations)], strict=True):
        more = f" +{children}" if children else ""
        command = fit(row[5].removesuffix(more), last - len(more)) + more
        rest = [pad(cell, size) for cell, size in zip(row[1:5], widths[1:], strict=True)]
        yield " " * _MARGIN + "  ".join([row[0].rjust(widths[0]), *rest, command])
    if pod.hidden:
        yield " " * _MARGIN + f"and {pod.hidden} more"


def _lines(pod: Pod, machine: dict[str, str], band: range, width: int) -> Iterator[str]:
    """Draw the lines over the stations of one band; a box that is too wide has several."""
    left = _MARGIN + _KIND + _LABEL
    step = min(_MOST, max(_LEAST, (width - left) // max(1, len(band))))
    yield " " * left + "".join(str(number + 1).rjust(2).ljust(step) for number in band)
    before = ""
    for line in lines(pod, machine):
        if not any(stop in band for stop in line.stops):
            continue
        title = "" if line.kind == before else line.title
        before = line.kind
        yield " " * _MARGIN + pad(title, _KIND) + pad(line.label, _LABEL) + _track(pod, line, band, step)
        children: dict[str, list[str]] = {}
        for stop, parent in line.nested:
            if stop in band:
                children.setdefault(parent, []).append(str(stop + 1))
        for parent, stops in children.items():
            of = "this machine's own" if parent == machine.get("pid") else parent
            yield " " * (_MARGIN + _KIND) + fit(f"└ {', '.join(stops)}: below {of}", width - _MARGIN - _KIND)


def _track(pod: Pod, line: Line, band: range, step: int) -> str:
    rail = " " if line.own else "╌" if line.machine else "─"
    first, last = line.stops[0], line.stops[-1]
    track = " "
    for stop in band:
        mark = rail if first < stop < last else " "
        if stop in line.stops:
            mark = "×" if pod.stations[stop].ended else "○" if line.machine else "●"
        track += mark + (rail if first <= stop < last else " ") * (step - 1)
    return track


def _below(pod: Pod, machine: dict[str, str]) -> Iterator[tuple[str, list[str]]]:
    if pod.way:
        yield "way in", [f"{stop.title} {', '.join(stop.details)}" for stop in pod.way]
    for ids in pod.maps:
        yield "ids", [ids.label]
    if pod.limits:
        yield "limits", pod.limits
    if pod.helpers:
        yield "helpers", [f"of nsrun, in the user namespace only: {', '.join(pod.helpers)}"]
    if unseen := [str(number) for number, station in enumerate(pod.stations, 1) if not station.places]:
        yield "hidden", [f"you may not look into {', '.join(unseen)}"]
    if shared := of_the_machine(pod, machine):
        yield "machine", [f"all have its own {', '.join('/dev/shm' if kind == 'shm' else kind for kind in shared)}"]
