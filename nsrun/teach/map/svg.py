# SPDX-License-Identifier: Apache-2.0
"""Draw a map as one SVG that needs nothing else: it is as wide as a projector shows, follows the reader's light or dark
scheme, and tells a screen reader in words what is drawn.

Nothing overlaps, because every text is cut to the room that it has, by the widest that a monospace font is.
"""

from __future__ import annotations

from html import escape

from nsrun.teach.map.fit import cells, clean, fit, wrap
from nsrun.teach.map.model import ROLES, TITLES, Line, Map, Pod, Station, lines, of_the_machine

WIDTH = 1240  # of the whole picture: a page at 1280 × 720 need not be scrolled sideways
FONT, CHARACTER = 12, 7.4  # pixels; no usual monospace font is wider than 0.61 em
_EDGE, _INDENT = 10, 16
_GUTTER = 244  # for the names of the lines
_LEAST, _MOST = 105, 156  # from one station to the next
_HEAD, _STATION, _ROW = 34, 76, 24
_STOP, _STOP_HIGH, _LINK = 176, 44, 14

STYLE = """
:root{--bg:#fff;--fg:#1b1f24;--dim:#57606a;--box:#f6f8fa;--edge:#d0d7de;--user:#1a7f37;--net:#0969da;--ipc:#8a5d00;--shm:#b04600;--uts:#8250df;--pid:#cf222e;--mnt:#57606a;--cgroup:#0b7285;--time:#a0327a}
@media(prefers-color-scheme:dark){:root{--bg:#0d1117;--fg:#e6edf3;--dim:#9198a1;--box:#161b22;--edge:#3d444d;--user:#3fb950;--net:#58a6ff;--ipc:#d29922;--shm:#f0883e;--uts:#bc8cff;--pid:#ff7b72;--mnt:#9198a1;--cgroup:#39c5cf;--time:#f778ba}}
.map{background:var(--bg);font:12px ui-monospace,Menlo,Consolas,'DejaVu Sans Mono','Liberation Mono',monospace}
.map text{fill:var(--fg)}.map .dim{fill:var(--dim)}.map .bold,.map .kind{font-weight:700}.map .kind{fill:var(--c)}
.map .frame{fill:none;stroke:var(--edge)}.map .box{fill:var(--box);stroke:var(--edge)}
.map .foreign .box{stroke:var(--pid);stroke-dasharray:4 3}
.map .line{stroke:var(--c);stroke-width:3;fill:none}.map .dot{fill:var(--c);stroke:var(--c);stroke-width:2}
.map .machine .line{stroke-dasharray:2 5}.map .machine .dot{fill:var(--bg)}.map .below{stroke:var(--c);stroke-dasharray:2 4;fill:none}
.map .cross{stroke:var(--dim);stroke-width:2}.map .ended text{fill:var(--dim)}.map .ended .box{fill:none;stroke-dasharray:2 3}
"""
KINDS_STYLE = "".join(f".map .{kind}{{--c:var(--{kind})}}" for kind in ("user", "net", "ipc", "shm", "uts", "pid", "mnt", "cgroup", "time")) + ".map .gone,.map .pod.ended{--c:var(--dim)}"  # fmt: skip
LEGEND = "one line = one namespace; a dot on it = the process is in it; hollow = this machine's own; dotted = a child of; × = has ended"


def draw(shown: Map) -> str:
    """Return the map as an SVG document."""
    canvas = _Canvas()
    y: float = _EDGE
    for pod in shown.pods:
        y = _box(canvas, pod, shown.machine, y) + _EDGE
    if not shown.pods:
        canvas.text(_EDGE + _INDENT, y + 20, "no pod is running here", WIDTH)
        y += 34
    canvas.text(_EDGE, y + FONT + 2, LEGEND, WIDTH - 2 * _EDGE, "dim")
    height = y + FONT + 2 + _EDGE
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="map" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" height="{height:g}"'
        f' role="img" aria-labelledby="map-title map-words"><title id="map-title">{_safe(_title(shown))}</title>'
        f'<desc id="map-words">{_safe(in_words(shown))}</desc><style>{STYLE}{KINDS_STYLE}</style>{"".join(canvas.parts)}</svg>\n'
    )


def _title(shown: Map) -> str:
    return "Map of " + (", ".join(pod.title for pod in shown.pods) or "no pods")


def in_words(shown: Map) -> str:
    """Return what is drawn, for those who do not see it."""
    told = []
    for pod in shown.pods:
        names = [f"{station.title}{' (ended)' if station.ended else ''}" for station in pod.stations]
        told.append(f"{pod.title} has {', '.join(names) or 'no process'}.")
        for line in lines(pod, shown.machine):
            who = ", ".join(pod.stations[stop].title for stop in line.stops)
            told.append(f"{who} {_what(line)}.")
    return " ".join(told)


def _what(line: Line) -> str:
    many = len(line.stops) > 1
    if line.machine:
        return f"{'have' if many else 'has'} this machine's own {line.title}"
    if line.own:
        return f"{'each have their' if many else 'has its'} own {line.title}"
    return f"{'share' if many else 'is alone in'} the {line.title} {line.label}"


def _safe(text: str) -> str:
    return escape(clean(text))


class _Canvas:
    """The elements so far."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def text(self, x: float, y: float, text: str, room: float, style: str = "", anchor: str = "") -> None:
        """Write a line that is at most `room` pixels wide, with its base at y; `anchor`: what of it is at x."""
        attributes = (f' class="{style}"' if style else "") + (f' text-anchor="{anchor}"' if anchor else "")
        self.parts.append(f'<text x="{x:g}" y="{y:g}"{attributes}>{escape(fit(text, int(room / CHARACTER)))}</text>')

    def rect(self, x: float, y: float, width: float, height: float, style: str, radius: int = 6) -> None:
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius}" class="{style}"/>'
        )

    def path(self, path: str, style: str) -> None:
        self.parts.append(f'<path d="{path}" class="{style}"/>')

    def open(self, style: str, tip: str = "") -> None:
        """Begin a group; `tip` is shown under a pointer."""
        self.parts.append(f'<g class="{style}">' + (f"<title>{_safe_lines(tip)}</title>" if tip else ""))

    def close(self) -> None:
        self.parts.append("</g>")


def _safe_lines(text: str) -> str:
    return "\n".join(_safe(line) for line in text.split("\n"))


def _box(canvas: _Canvas, pod: Pod, machine: dict[str, str], top: float) -> float:
    """Draw a box; return the y of its bottom."""
    canvas.open("pod ended" if pod.ended else "pod")
    place = len(canvas.parts)
    about = ", ".join([*pod.about, *(["ended"] if pod.ended else [])])
    half = (WIDTH - 2 * _EDGE - 2 * _INDENT) / 2
    canvas.text(_EDGE + _INDENT, top + 22, pod.title, half, "bold")
    canvas.text(WIDTH - _EDGE - _INDENT, top + 22, about, half - _INDENT, "dim", "end")
    y = top + _HEAD
    room = (WIDTH - 2 * _EDGE - _GUTTER - _INDENT) // _LEAST
    for first in range(0, len(pod.stations), room):
        y = _band(canvas, pod, machine, range(first, min(first + room, len(pod.stations))), y) + 8
    y = _way(canvas, pod, y)
    width = WIDTH - 2 * _EDGE - 2 * _INDENT
    for line in _below(pod, machine, int(width / CHARACTER)):
        canvas.text(_EDGE + _INDENT, y + 12, line, width, "dim")
        y += 18
    bottom = y + 8
    canvas.parts.insert(place, f'<rect x="{_EDGE}" y="{top:g}" width="{WIDTH - 2 * _EDGE}" height="{bottom - top:g}" rx="10" class="frame"/>')  # fmt: skip
    canvas.close()
    return bottom


def _below(pod: Pod, machine: dict[str, str], width: int) -> list[str]:
    found = [f"and {pod.hidden} more processes"] if pod.hidden else []
    for ids in pod.maps:
        found += wrap([f"ids {ids.label}"], width)
    found += wrap([f"limits: {', '.join(pod.limits)}"], width) if pod.limits else []
    if pod.helpers:
        found += wrap([f"helpers of nsrun, in the user namespace only: {', '.join(pod.helpers)}"], width)
    if shared := of_the_machine(pod, machine):
        found.append(f"all have this machine's own {', '.join(TITLES.get(kind, kind) for kind in shared)}")
    if unseen := [station.title for station in pod.stations if not station.places]:
        found += wrap([f"you may not look into {', '.join(unseen)}"], width)
    return found


# ---- stations and lines ------------------------------------------------------------------------------------------


def _band(canvas: _Canvas, pod: Pod, machine: dict[str, str], band: range, y: float) -> float:
    """Draw the lines over as many stations as have room beside each other; return the y below them."""
    step = min(_MOST, (WIDTH - 2 * _EDGE - _GUTTER - _INDENT) / len(band))
    left = _EDGE + _GUTTER
    middle = {number: left + step * (place + 0.5) for place, number in enumerate(band)}
    for number in band:
        _station(canvas, pod.stations[number], middle[number], y, step - 8)
    y += _STATION + 8
    drawn = [line for line in lines(pod, machine) if any(stop in middle for stop in line.stops)]
    rows = {}  # PID namespace → (y, leftmost and rightmost x of its line)
    for number, line in enumerate(drawn):
        here = [middle[stop] for stop in line.stops if stop in middle]
        if line.kind == "pid" and not line.own:
            rows[line.places[0]] = (y + number * _ROW + _ROW / 2, here[0], here[-1])
    before = ""
    for line in drawn:
        _line(canvas, pod, line, middle, y + _ROW / 2, line.kind != before)
        _nested(canvas, line, middle, y + _ROW / 2, rows)
        before = line.kind
        y += _ROW
    return y


def _station(canvas: _Canvas, station: Station, x: float, y: float, width: float) -> None:
    command = " ".join(station.command)
    tip = (
        f"{station.title}: {ROLES[station.role]}\n{command}\nuid {station.user}\ngrep NSpid /proc/{station.pid}/status"
    )
    canvas.open(f"station {station.role}{' ended' if station.ended else ''}", tip)
    canvas.rect(x - width / 2, y, width, _STATION, "box")
    role = station.role + (f" +{station.children}" if station.children else "")
    inside = f" → {'>'.join(map(str, station.pids[1:]))}" if station.pids[1:] else ""
    for number, (line, style) in enumerate(
        ((station.name, "bold"), ("has ended" if station.ended else role, "dim"), (command, "dim"), (f"{station.pid}{inside}", "dim"))
    ):  # fmt: skip
        canvas.text(x, y + 17 + 17 * number, line, width - 6, style, "middle")
    canvas.close()


def _line(canvas: _Canvas, pod: Pod, line: Line, middle: dict[int, float], y: float, first: bool) -> None:
    gone = all(pod.stations[stop].ended for stop in line.stops)
    canvas.open(line.kind + (" machine" if line.machine else "") + (" gone" if gone else ""))
    base = y + FONT / 3
    if first:
        canvas.text(_EDGE + 86, base, line.title, 76, "kind", "end")
    canvas.text(_EDGE + 98, base, line.label, _GUTTER - 98, "dim")
    here = [stop for stop in line.stops if stop in middle]
    edges = list(middle.values())
    if not line.own and len(line.stops) > 1:
        # a line that goes on in another band runs on to that side
        begin = middle.get(line.stops[0], edges[0] - 20)
        end = middle.get(line.stops[-1], edges[-1] + 20)
        canvas.path(f"M{begin:g} {y:g}H{end:g}", "line")
    for stop in here:
        station = pod.stations[stop]
        if station.ended:
            x = middle[stop]
            canvas.path(f"M{x - 5:g} {y - 5:g}l10 10m0 -10l-10 10", "cross")
            continue
        place = station.places[line.kind]
        see = f"readlink /proc/{station.pid}/ns/{line.kind}" if line.kind != "shm" else f"grep ' /dev/shm ' /proc/{station.pid}/mountinfo"  # fmt: skip
        canvas.open("stop", f"{station.title}: {line.title} {place}\n{see}")
        canvas.parts.append(f'<circle cx="{middle[stop]:g}" cy="{y:g}" r="6" class="dot"/>')
        canvas.close()
    canvas.close()


def _nested(
    canvas: _Canvas, line: Line, middle: dict[int, float], y: float, rows: dict[str, tuple[float, float, float]]
) -> None:
    """Link a PID namespace to the line of the one that it is a child of."""
    for stop, parent in line.nested:
        if stop in middle and parent in rows:
            x = middle[stop]
            above, left, right = rows[parent]
            end = min(max(x, left), right)
            canvas.open(line.kind)
            canvas.path(
                f"M{x:g} {y + (6 if above > y else -6):g}V{above:g}" + (f"H{end:g}" if end != x else ""), "below"
            )
            canvas.close()


# ---- the way of a packet ----------------------------------------------------------------------------------------


def _way(canvas: _Canvas, pod: Pod, y: float) -> float:
    if not pod.way:
        return y
    room = (WIDTH - 2 * _EDGE - 2 * _INDENT + _LINK) // (_STOP + _LINK)
    canvas.open("net way")
    for number, stop in enumerate(pod.way):
        row, column = divmod(number, room)
        x, top = _EDGE + _INDENT + column * (_STOP + _LINK), y + row * (_STOP_HIGH + 8)
        if column:
            canvas.path(f"M{x - _LINK:g} {top + _STOP_HIGH / 2:g}H{x:g}", "line")
        canvas.open("way-stop", "\n".join([stop.title, *stop.details]))
        canvas.rect(x, top, _STOP, _STOP_HIGH, "box")
        canvas.text(x + _STOP / 2, top + 18, stop.title, _STOP - 8, "kind", "middle")
        canvas.text(
            x + _STOP / 2, top + 35, _first(stop.details, int((_STOP - 8) / CHARACTER)), _STOP - 8, "dim", "middle"
        )
        canvas.close()
    canvas.close()
    return y + (len(pod.way) - 1) // room * (_STOP_HIGH + 8) + _STOP_HIGH + 8


def _first(details: list[str], width: int) -> str:
    """Return the details that have room, and the number of the others."""
    if not details or cells(", ".join(details)) <= width:
        return ", ".join(details)
    more = f" +{len(details) - 1}" if len(details) > 1 else ""
    return fit(details[0], width - len(more)) + more
