# SPDX-License-Identifier: Apache-2.0
"""The map: what is drawn from a model made by hand, and what of living pods comes into the model."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import unicodedata
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest
from conftest import HERE, need
from mapped import MACHINE, crowd, shop, station
from test_printable import WORD

from nsrun.teach.map import dot, html, svg, text
from nsrun.teach.map.fit import cells, fit, pad, wrap
from nsrun.teach.map.model import Map, Pod, lines, of_the_machine, plain, with_ended

DOCS = HERE.parent / "docs"
SIZES = [(1, 0), (1, 1), (1, 8), (1, 30), (3, 5), (20, 8)]


def ended_shop() -> Map:
    """The shop in which exec, island and the stranger have just ended."""
    before = shop()
    pod = before.pods[0]
    left = [s for s in pod.stations if s.name not in ("island", "bash") and s.role != "exec"]
    return with_ended(before, Map(MACHINE, [Pod(**{**vars(pod), "stations": left})]))


def odd() -> Map:
    """A map in which everything that strangers can write is odd."""
    words = [WORD, "<script>alert(1)</script>", '"\\', "]]>", "漢字" * 30, "e\u0301" * 40, "&amp;"]
    stations = [station(100 + i, "foreign", word, "x", [i]) for i, word in enumerate(words)]
    stations = [type(s)(**{**vars(s), "command": [word, word]}) for s, word in zip(stations, words, strict=True)]
    return Map(MACHINE, [Pod(WORD, "process", [WORD], stations, limits=[WORD])])


def golden(file, found: str) -> None:
    """Compare with a file that is kept; NSRUN_GOLDEN=write renews it."""
    if os.environ.get("NSRUN_GOLDEN") == "write":
        file.write_text(found)
    assert found == file.read_text()


# ---- the model -------------------------------------------------------------------------------------------------


def line_of(shown: Map, kind: str, pod: int = 0) -> list[tuple[list[int], bool, bool]]:
    return [(line.stops, line.own, line.machine) for line in lines(shown.pods[pod], shown.machine) if line.kind == kind]


def test_lines():
    shown = shop()
    assert line_of(shown, "net") == [([0, 1, 2, 3, 5, 6, 7], False, False), ([4], True, False)]
    assert line_of(shown, "shm") == [([0, 1, 2, 3, 4, 5, 6], False, False), ([7], False, True)]
    assert line_of(shown, "pid") == [([0, 1, 2, 3, 4], False, False), ([5, 6], True, False), ([7], False, True)]
    assert line_of(shown, "mnt") == [([2, 3], False, False), ([0, 1, 4, 5, 6], True, False), ([7], False, True)]
    assert line_of(shown, "time") == [] and of_the_machine(shown.pods[0], MACHINE) == ["time"]


def test_a_child_namespace_hangs_below_its_parent():
    nested = [line.nested for line in lines(shop().pods[0], MACHINE) if line.nested]
    assert nested == [[(5, MACHINE["pid"]), (6, "4026535304")]]


def test_a_parent_that_nobody_is_in_is_not_drawn():
    pod = shop().pods[0]
    without = Pod(**{**vars(pod), "stations": [s for s in pod.stations if s.role != "foreign"]})
    assert [line.nested for line in lines(without, MACHINE) if line.nested] == [[(6, "4026535304")]]


def test_what_has_ended_stays_in_its_place():
    now = ended_shop().pods[0]
    assert [s.ended for s in now.stations] == [s.role == "exec" or s.name in ("island", "bash") for s in now.stations]
    assert [s.pid for s in now.stations] == [s.pid for s in shop().pods[0].stations]


def test_a_pid_that_is_used_again_is_another_process():
    before, pod = shop(), shop().pods[0]
    again = [type(s)(**{**vars(s), "start": s.start + (s.name == "web")}) for s in pod.stations]
    now = with_ended(before, Map(MACHINE, [Pod(**{**vars(pod), "stations": again})])).pods[0]
    assert [(s.start, s.ended) for s in now.stations if s.name == "web"] == [(47200, True), (47201, False)]


def test_a_pod_that_has_ended_stays_whole():
    now = with_ended(crowd(2, 2), Map(MACHINE, crowd(2, 2).pods[1:]))
    assert [pod.ended for pod in now.pods] == [True, False]
    assert all(s.ended for s in now.pods[0].stations) and not any(s.ended for s in now.pods[1].stations)


def test_json_is_the_model_and_its_lines():
    found = json.loads(json.dumps(plain(shop())))
    pod = found["pods"][0]
    assert [s["name"] for s in pod["stations"]][:3] == ["pause", "web", "php"]
    assert [line["stops"] for line in pod["lines"] if line["kind"] == "net"] == [[0, 1, 2, 3, 5, 6, 7], [4]]


# ---- text ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 120])
def test_text_is_stable(width):
    golden(HERE / "golden" / f"map-{width}.txt", text.draw(shop(), width))


def test_text_of_what_has_ended_is_stable():
    golden(HERE / "golden" / "map-ended.txt", text.draw(ended_shop(), 80))


@pytest.mark.parametrize("width", [60, 80, 120, 160])
@pytest.mark.parametrize("shown", [shop(), ended_shop(), odd(), *(crowd(*size) for size in SIZES)])
def test_text_has_room(shown, width):
    drawn = text.draw(shown, width)
    assert drawn.endswith("\n") and not any(line.endswith(" ") for line in drawn.split("\n"))
    assert max(cells(line) for line in drawn.split("\n")) <= max(width, cells(text.LEGEND))
    assert all(c.isprintable() or c == "\n" for c in drawn)


@pytest.mark.parametrize("members", [1, 8, 30])
def test_every_stop_is_below_its_station(members):
    """In the text, the number of a station and each of its dots are in one column."""
    shown = crowd(1, members)
    seen: dict[int, int] = {}
    column: dict[int, int] = {}
    for line in text.draw(shown, 80).removesuffix(text.LEGEND + "\n").split("\n"):
        if re.fullmatch(r" {20,}\d+( +\d+)*", line):
            column = {match.end() - 1: int(match[0]) for match in re.finditer(r"\d+", line)}
        elif column and line[11:12].strip() and "below" not in line:
            for at, c in enumerate(line):
                if at > 30 and c in "●○×":
                    seen[column[at]] = seen.get(column[at], 0) + 1
    kinds = sum(kind not in of_the_machine(shown.pods[0], MACHINE) for kind in MACHINE)
    assert seen == dict.fromkeys(range(1, members + 2), kinds)


def test_text_in_a_poor_locale():
    drawn = text.draw(shop(), 80, ascii=True)
    assert drawn.isascii() and "*-----*" in drawn and "127.0.0.1:8087 > 80" in drawn


def test_no_pods():
    empty = Map(MACHINE, [])
    assert text.draw(empty) == "no pod is running here\n"
    assert "no pod is running here" in svg.draw(empty) and "no pod is running here" in html.page(empty)
    assert dot.draw(empty).startswith("graph") and plain(empty)["pods"] == []


def test_width_of_text():
    assert cells("漢字") == 4 and cells("e\u0301") == 1 and cells("abc") == 3
    assert fit("漢字漢字", 5) == "漢字…" and fit("abcdef", 6) == "abcdef" and fit("abcdef", 0) == ""
    assert cells(pad("漢字漢字", 6)) == 6 and pad("a\x1b", 6) == "a\\x1b "
    assert wrap(["aa", "bb", "cc"], 7) == ["aa, bb,", "cc"] and wrap(["abcdef"], 4) == ["abc…"]


# ---- SVG -------------------------------------------------------------------------------------------------------

NAMES = {"svg": "http://www.w3.org/2000/svg"}
Box = tuple[float, float, float, float]  # left, top, right, bottom


class Picture:
    """An SVG taken apart: where its texts, frames and dots are, if a character is as wide as in the widest font."""

    def __init__(self, source: str) -> None:
        self.root = ElementTree.fromstring(source)
        self.width, self.height = (float(self.root.get(key, "")) for key in ("width", "height"))
        self.texts: list[tuple[Box, str]] = []
        self.boxes: list[Box] = []
        self.frames: list[Box] = []
        self.dots: list[Box] = []
        self.inside: list[tuple[Box, Box, str]] = []  # a text, and the box of its group
        for group in self.root.iter():
            rect = group.find("svg:rect", NAMES)
            for one in group.findall("svg:text", NAMES):
                place = self.of_text(one)
                self.texts.append((place, one.text or ""))
                if rect is not None:
                    self.inside.append((place, self.of_rect(rect), one.text or ""))
            for one in group.findall("svg:rect", NAMES):
                (self.frames if one.get("class") == "frame" else self.boxes).append(self.of_rect(one))
            for one in group.findall("svg:circle", NAMES):
                x, y, r = (float(one.get(key, "")) + (key == "r") for key in ("cx", "cy", "r"))
                self.dots.append((x - r, y - r, x + r, y + r))

    @staticmethod
    def of_text(one) -> Box:
        x, y, width = float(one.get("x")), float(one.get("y")), 0.61 * svg.FONT * cells(one.text or "")
        left = {"end": x - width, "middle": x - width / 2}.get(one.get("text-anchor"), x)
        return left, y - 0.8 * svg.FONT, left + width, y + 0.25 * svg.FONT

    @staticmethod
    def of_rect(one) -> Box:
        x, y, width, height = (float(one.get(key)) for key in ("x", "y", "width", "height"))
        return x, y, x + width, y + height


def overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def within(a: Box, b: Box) -> bool:
    return b[0] <= a[0] and b[1] <= a[1] and a[2] <= b[2] and a[3] <= b[3]


def clashes(places: list[Box]) -> list[tuple[Box, Box]]:
    """Pairs that overlap; only neighbours from top to bottom are compared."""
    found, open_ = [], []
    for place in sorted(places, key=lambda box: box[1]):
        open_ = [other for other in open_ if other[3] > place[1]]
        found += [(other, place) for other in open_ if overlap(other, place)]
        open_.append(place)
    return found


@pytest.mark.parametrize("shown", [shop(), ended_shop(), odd(), *(crowd(*size) for size in SIZES)])
def test_nothing_in_the_picture_overlaps(shown):
    picture = Picture(svg.draw(shown))
    whole = (0.0, 0.0, picture.width, picture.height)
    assert len(picture.frames) == len(shown.pods)
    assert len(picture.boxes) == sum(len(pod.stations) + len(pod.way) for pod in shown.pods)
    assert clashes(picture.frames) == [] and clashes(picture.boxes) == []
    assert clashes([place for place, _ in picture.texts] + picture.dots) == []
    for place, box, words in picture.inside:
        assert within(place, box), words
    for place in [*picture.boxes, *picture.dots, *(place for place, words in picture.texts if words != svg.LEGEND)]:
        assert any(within(place, frame) for frame in picture.frames), place
    for place in [*picture.frames, *(place for place, _ in picture.texts)]:
        assert within(place, whole), place
    for dot_, box in itertools.product(picture.dots, picture.boxes):
        assert not overlap(dot_, box)


def test_every_stop_is_a_dot():
    shown = crowd(20, 8)
    stops = sum(len(line.stops) for pod in shown.pods for line in lines(pod, MACHINE))
    assert len(Picture(svg.draw(shown)).dots) == stops


def test_what_has_ended_has_a_cross():
    root = ElementTree.fromstring(svg.draw(ended_shop()))
    crosses = [one for one in root.iter() if one.get("class") == "cross"]
    kinds = len(MACHINE) - len(of_the_machine(ended_shop().pods[0], MACHINE))
    assert len(crosses) == 3 * kinds
    assert len([one for one in root.iter() if (one.get("class") or "").endswith(" ended")]) == 3


def test_the_picture_needs_nothing_else():
    source = svg.draw(shop())
    root = ElementTree.fromstring(source)
    assert not re.search(r"(href|src|url|@import|<script|<image|<foreignObject|\son\w+=)", source, re.I)
    assert source.count("://") == 1  # the name of the language
    assert {one.tag.rpartition("}")[2] for one in root.iter()} == {
        *("svg", "title", "desc", "style", "g", "rect", "text", "path", "circle"),
    }


def test_the_picture_tells_in_words():
    root = ElementTree.fromstring(svg.draw(shop()))
    told = {one.get("id"): one.text or "" for one in root.iter() if one.get("id")}
    assert root.get("role") == "img" and set((root.get("aria-labelledby") or "").split()) == set(told)
    assert told["map-title"] == "Map of pod shop"
    assert "pause, web, php, exec in php, clock, worker, bash (foreign) share the net 4026533137." in told["map-words"]
    assert "island each have their own net." not in told["map-words"] and "island has its own net." in told["map-words"]


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)] if len(color) == 7 else [int(c, 16) / 15 for c in color[1:]]  # fmt: skip
    red, green, blue = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_can_be_read(scheme):
    """WCAG 2, 1.4.3: 4.5 to 1 for text, in front of the page and of a box."""
    colors = dict(re.findall(r"--(\w+):(#\w+)", re.findall(r":root\{([^}]*)\}", svg.STYLE)[scheme]))
    assert colors.keys() >= MACHINE.keys()
    for name, behind in itertools.product({"fg", "dim", *MACHINE}, ("bg", "box")):
        light, dark = sorted((luminance(colors[name]), luminance(colors[behind])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (name, behind)


def test_the_picture_of_the_docs_is_this_one():
    golden(DOCS / "map.svg", svg.draw(shop()))


# ---- HTML and dot ------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.words.append(data)


@pytest.mark.parametrize("shown", [shop(), ended_shop(), odd(), crowd(20, 8)])
def test_the_page_loads_nothing(shown):
    source = html.page(shown)
    page = Page(source)
    assert "script" not in page.tags and "img" not in page.tags and "iframe" not in page.tags
    assert [value for name, value in page.attributes if name in ("href", "src", "action")] == ["data:,"]
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert page.tags.count("tr") == sum(len(pod.stations) + 1 for pod in shown.pods)
    assert all(c.isprintable() or c == "\n" for c in source)


def test_the_table_tells_what_is_shared():
    words = Page(html.table(shop())).words
    assert words.count("4026533137") == 7 and words.count("4026535462") == 1 and "exec in php" in words


@pytest.mark.parametrize("shown", [shop(), ended_shop(), odd(), crowd(3, 8)])
def test_dot_is_understood(shown):
    need(shutil.which("dot"), "dot is missing", "apt-get install graphviz")
    done = subprocess.run(
        ["dot", "-Tplain"], input=dot.draw(shown), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0 and not done.stderr.strip(), done.stderr
    nodes = [line for line in done.stdout.split("\n") if line.startswith("node p")]
    assert len(nodes) == sum(len(pod.stations) for pod in shown.pods)


def test_strangers_words_are_escaped():
    for drawn in (text.draw(odd()), svg.draw(odd()), html.page(odd()), dot.draw(odd())):
        assert not [c for c in drawn if unicodedata.category(c)[0] == "C" and c != "\n"]
        assert "<script>" not in drawn or drawn.startswith(("process", "graph"))
