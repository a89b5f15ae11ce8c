# SPDX-License-Identifier: Apache-2.0
"""Write a map as one page that loads nothing: the picture, and a table of the same, which can be searched and read aloud."""

from __future__ import annotations

from html import escape

from nsrun.teach.map import svg
from nsrun.teach.map.fit import clean
from nsrun.teach.map.model import KINDS, TITLES, Map, Pod, Station

STYLE = """
:root{color-scheme:light dark}
body{margin:8px;background:var(--bg);color:var(--fg);font:14px system-ui,sans-serif}
h1{font-size:16px;margin:4px 2px}#picture{overflow-x:auto}table{border-collapse:collapse;margin:8px 2px;font:12px ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace}
#table{overflow-x:auto}th,td{border:1px solid var(--edge);padding:3px 7px;text-align:left;vertical-align:top;white-space:nowrap}td.command{white-space:normal;overflow-wrap:anywhere;min-width:180px}
thead th{background:var(--box)}tr.ended{color:var(--dim);text-decoration:line-through}caption{text-align:left;font-weight:700;padding:4px 0}
#state{color:var(--dim);font-size:12px;margin-left:12px;font-weight:400}
"""
#: What is not the caller's own is what one looks for; the rest is told by a word.
SAME = "machine's"


def page(shown: Map, script: str = "", nonce: str = "") -> str:
    """Return the page; `script`, which the nonce allows, keeps it up to date."""
    live = f'<script nonce="{nonce}">{script}</script>' if script else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<meta name="referrer" content="no-referrer"><link rel="icon" href="data:,"><title>nsrun map</title><style>{STYLE}</style></head>'
        f'<body><h1>nsrun map<span id="state" role="status"></span></h1><main><div id="picture">{svg.draw(shown)}</div>'
        f'<div id="table">{table(shown)}</div></main>{live}</body></html>\n'
    )


def table(shown: Map) -> str:
    """Return the stations as a table for each box."""
    return "".join(_box(pod, shown.machine) for pod in shown.pods) or "<p>no pod is running here</p>"


def _box(pod: Pod, machine: dict[str, str]) -> str:
    kinds = [kind for kind in KINDS if any(kind in station.places for station in pod.stations)]
    head = ["process", "PID", "inside", "uid", *(TITLES.get(kind, kind) for kind in kinds), "command"]
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    rows = "".join(_row(station, kinds, machine) for station in pod.stations)
    about = _cell(", ".join([pod.title, *pod.about, *(["ended"] if pod.ended else [])]))
    return f"<table><caption>{about}</caption><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table>"


def _row(station: Station, kinds: list[str], machine: dict[str, str]) -> str:
    places = [station.places.get(kind, "-") for kind in kinds]
    places = [SAME if place == machine.get(kind) else place for kind, place in zip(kinds, places, strict=True)]
    cells = "".join(f"<td>{_cell(text)}</td>" for text in [str(station.pid), station.inside, station.user, *places])
    more = f" +{station.children}" if station.children else ""
    ended = ' class="ended"' if station.ended else ""
    command = _cell(" ".join(station.command) + more)
    return f'<tr{ended}><th scope="row">{_cell(station.title)}</th>{cells}<td class="command">{command}</td></tr>'


def _cell(text: str) -> str:
    return escape(clean(text))
