# SPDX-License-Identifier: Apache-2.0
"""Write a map as a graph for Graphviz: a cluster for each box, an edge from each process to each namespace that it is in."""

from __future__ import annotations

from nsrun.teach.map.fit import clean
from nsrun.teach.map.model import TITLES, Map, Pod, lines

COLORS = {
    "user": "#1a7f37", "net": "#0969da", "ipc": "#8a5d00", "shm": "#b04600", "uts": "#8250df", "pid": "#cf222e", "mnt": "#57606a",
    "cgroup": "#0b7285", "time": "#a0327a",
}  # fmt: skip


def draw(shown: Map) -> str:
    """Return the map in the language of dot(1)."""
    text = ["graph nsrun {", "  rankdir=LR;", '  node [fontname="monospace", fontsize=10];']
    for number, pod in enumerate(shown.pods):
        text += _box(number, pod, shown.machine)
    return "\n".join([*text, "}"]) + "\n"


def _box(number: int, pod: Pod, machine: dict[str, str]) -> list[str]:
    text = [f"  subgraph cluster_{number} {{", f"    label={_quoted(', '.join([pod.title, *pod.about]))};"]
    for station in pod.stations:
        label = "\n".join([station.title, f"{station.pid} → {station.inside}", " ".join(station.command)[:40]])
        style = "dotted" if station.ended else "dashed" if station.role == "foreign" else "solid"
        text.append(f"    p{number}_{station.pid} [shape=box, style={style}, label={_quoted(label)}];")
    places: dict[str, str] = {}
    for line in lines(pod, machine):
        for stop in line.stops:
            station, color = pod.stations[stop], COLORS[line.kind]
            place = station.places[line.kind]
            node = f"n{number}_{line.kind}_{place.replace(':', '_')}"
            whose = "\nthis machine's own" if line.machine else ""
            places[node] = (
                f"label={_quoted(f'{TITLES.get(line.kind, line.kind)} {place}{whose}')}, color={_quoted(color)}"
            )
            text.append(f"    p{number}_{station.pid} -- {node} [color={_quoted(color)}];")
        for stop, parent in line.nested:
            text.append(f"    n{number}_pid_{pod.stations[stop].places['pid']} -- n{number}_pid_{parent} [style=dotted, label=below];")  # fmt: skip
    return [*text, *(f"    {node} [{attributes}];" for node, attributes in places.items()), "  }"]


def _quoted(text: str) -> str:
    """Return a string of dot: a backslash begins an escape there, and \\n a new line."""
    lines = (clean(line).replace("\\", "\\\\").replace('"', '\\"') for line in text.split("\n"))
    return '"' + "\\n".join(lines) + '"'
