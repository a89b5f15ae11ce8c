# SPDX-License-Identifier: Apache-2.0
"""The map: what is drawn from a model made by hand, and what of living pods comes into the model."""

from __future__ import annotations

import contextlib
import http.client
import io
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import unicodedata
import urllib.error
import urllib.request
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser

import pytest
from browser import Browser
from conftest import HERE, NSRUN, kill, need, sh, wait_for
from mapped import MACHINE, crowd, shop, station
from test_printable import WORD

from nsrun.cli import maps
from nsrun.teach.map import dot, gather, html, svg, text
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


@pytest.mark.parametrize("width", [72, 80, 120, 160])
@pytest.mark.parametrize("shown", [shop(), ended_shop(), odd(), *(crowd(*size) for size in SIZES)])
def test_text_has_room(shown, width):
    drawn = text.draw(shown, width)
    assert drawn.endswith("\n") and not any(line.endswith(" ") for line in drawn.split("\n"))
    assert max(cells(line) for line in drawn.split("\n")) <= width
    assert all(c.isprintable() or c == "\n" for c in drawn)


@pytest.mark.parametrize("members", [1, 8, 30])
def test_every_stop_is_below_its_station(members):
    """In the text, the number of a station and each of its dots are in one column."""
    shown = crowd(1, members)
    seen: dict[int, int] = {}
    column: dict[int, int] = {}
    for line in text.draw(shown, 80).removesuffix("   ".join(text.LEGEND) + "\n").split("\n"):
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


def test_the_locale_is_asked(monkeypatch):
    for encoding, mark in (("utf-8", "●─────●"), ("iso8859-1", "*-----*")):
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
        assert mark in maps._drawn(shop(), "text")


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
    found: list[tuple[Box, Box]] = []
    open_: list[Box] = []
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
    classes = [one.get("class") or "" for one in root.iter()]
    assert len([name for name in classes if name.endswith(" ended")]) == 3
    # nobody is left on island's network, nor on any line of which the stranger was alone
    assert sorted(name for name in classes if name.endswith(" gone")) == sorted(
        ["net gone", *(f"{kind} machine gone" for kind in ("user", "ipc", "shm", "uts", "pid", "mnt"))]
    )


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


def test_the_pictures_of_the_docs_are_these():
    golden(DOCS / "map.svg", svg.draw(shop()))
    assert f"```\n{text.draw(shop(), 80)}```" in (DOCS / "map.md").read_text()


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


# ---- living pods ---------------------------------------------------------------------------------------------------


def mapped(who, *words: object, **kwargs) -> dict:
    return json.loads(who.run("map", *words, "--format", "json", **kwargs).stdout)


def box(shown: dict, name: str) -> dict:
    return next(pod for pod in shown["pods"] if pod["name"] == name)


def roles(pod: dict) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for one in pod["stations"]:
        found.setdefault(one["role"], []).append(one["name"])
    return found


def one(pod: dict, role: str, name: str = "") -> dict:
    return next(s for s in pod["stations"] if s["role"] == role and name in ("", s["name"]))


def namespace(pid: int, kind: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{kind}")[len(kind) + 2 : -1]


@contextlib.contextmanager
def running(*command: object, **kwargs):
    """A process that is killed in the end."""
    process = subprocess.Popen([str(word) for word in command], **kwargs)
    try:
        yield process
    finally:
        process.kill()
        process.wait(timeout=20)


def test_members_exec_and_strangers(host, pod, busybox):
    host.start("web", busybox, "sh", "-c", "sleep 100 & (sleep 101 &); sleep 102; true")
    host.start("clock", busybox, "sleep", "100", options=("--pid", "own"))
    host.start("worker", busybox, "sleep", "100", options=("--pid", "nested", "--net", "own"))
    pause = host.pod()["pid"]
    with (
        running(NSRUN, "exec", "web", "sleep", "103", env=host.env),
        running("nsenter", "-t", pause, "-n", "-i", "sleep", "104"),
    ):
        wanted = {"pause": ["pause"], "member": ["web", "clock", "worker"], "exec": ["web"], "foreign": ["sleep"]}
        found = wait_for(
            lambda: roles(b := box(mapped(host), "pause")) == wanted and one(b, "member", "web")["children"] == 3 and b,
            what="the map",
        )
    assert [s["role"] for s in found["stations"]] == ["pause", "member", "exec", "member", "member", "foreign"]
    web, stranger = one(found, "member", "web"), one(found, "foreign")
    assert web["pid"] == host.member("web")["pid"]
    assert found["stations"][0]["pid"] == pause
    for each in found["stations"]:
        own = {"clock": {"pid"}, "worker": {"pid", "net"}, "sleep": {"uts", "pid"}}.get(each["name"], set())
        kinds = ("net", "ipc", "uts", "pid")
        assert {kind for kind in kinds if each["places"][kind] != namespace(pause, kind)} == own, each
    assert stranger["places"]["uts"] == namespace(os.getpid(), "uts")
    assert found["parents"] == {
        one(found, "member", "worker")["places"]["pid"]: namespace(pause, "pid"),
        one(found, "member", "clock")["places"]["pid"]: namespace(os.getpid(), "pid"),
    }


#: Executes a copy of sleep in memory, under a name that nsrun gives to its own.
DISGUISED = """
import os, sys
fd = os.memfd_create("nsrun-monitor", 0)
os.write(fd, open(sys.argv[1], "rb").read())
os.execve(fd, ["sleep", "100"], {})
"""


def test_a_stranger_in_disguise(host, pod, busybox):
    """Whoever calls their program as nsrun does is a helper in name, and a station all the same."""
    with running("nsenter", "-t", host.pod()["pid"], "-n", sys.executable, "-c", DISGUISED, f"{busybox}/bin/busybox") as stranger:  # fmt: skip
        wait_for(lambda: os.readlink(f"/proc/{stranger.pid}/exe").startswith("/memfd:nsrun-monitor"))
        found = box(mapped(host), "pause")
    assert one(found, "helper")["pid"] == stranger.pid and not found["helpers"]


def test_shared_memory_is_a_line_of_its_own(host, pod, busybox):
    """A member with an IPC namespace of its own has a /dev/shm of its own, too; a stranger in the pod's has the machine's."""
    host.start("web", busybox, "sleep", "100")
    host.start("island", busybox, "sleep", "100", options=("--ipc", "own"))
    with running("nsenter", "-t", host.pod()["pid"], "-i", "sleep", "104"):
        found = wait_for(lambda: "foreign" in roles(b := box(mapped(host), "pause")) and b)
    pause, web, island, stranger = (one(found, *key)["places"] for key in (("pause",), ("member", "web"), ("member", "island"), ("foreign",)))  # fmt: skip
    assert pause["shm"] == web["shm"] != island["shm"] and pause["ipc"] == web["ipc"] != island["ipc"]
    assert stranger["ipc"] == pause["ipc"] and stranger["shm"] == mapped(host)["machine"]["shm"] != pause["shm"]


def test_the_way_of_a_packet(host, busybox):
    host.run("pod create -p 127.0.0.1:8087:80 shop")
    host.run("join shop -d --name web --rootfs {} -- httpd -f -p 80", busybox)
    note = host.pod("shop")
    way = wait_for(
        lambda: (w := box(mapped(host), "shop")["way"]) and w[-1]["title"] == "listening" and w, what="a listener"
    )
    assert [(stop["title"], stop["details"]) for stop in way] == [
        ("ports", ["127.0.0.1:8087 → 80"]),
        (note["network"]["bridge"], [note["network"]["gateway"]]),
        (note["network"]["veth"], [f"port of {note['network']['bridge']}"]),
        ("eth0", [f"{note['network']['ip']}/24"]),
        ("lo", ["127.0.0.1/8"]),
        ("listening", ["80"]),
    ]
    sh("nsenter", "-t", note["pid"], "-n", "ip", "link", "set", "lo", "down")
    way = box(mapped(host), "shop")["way"]
    assert ("lo", ["down"]) in [(stop["title"], stop["details"]) for stop in way]


def test_a_pod_of_a_user(host, alice, owned, rootfs):
    """Root names its members by their cgroups, or as their owner does; the owner sees the same."""
    sh("chown", "-R", f"{alice.uid}:{alice.uid}", rootfs)
    alice.start("web", rootfs, "sleep", "100", options=("--user", "33"))
    with running(*alice.words(NSRUN, "exec", "web", "sleep", "101"), env=alice.env, cwd="/"):
        wait_for(lambda: "exec" in roles(box(mapped(host), "pause")))
        for who in (host, alice):
            found = box(mapped(who), "pause")
            assert roles(found) == {"pause": ["pause"], "member": ["web"], "exec": ["web"]}, who
            assert found["about"] == ["owner alice"] and len(found["helpers"]) == 1
            (ids,) = found["maps"]
            assert ids["owner"] == alice.uid and ids["uids"][0] == [0, alice.uid, 1]
            member = one(found, "member")
            assert member["uid_inside"] == 33 and member["uid"] == ids["uids"][1][1] + 32


def test_a_pod_of_a_user_without_cgroups(host, alice, rootfs):
    """There are no cgroups to name its members, so root asks their owner, and says what is not known."""
    sh("chown", "-R", f"{alice.uid}:{alice.uid}", rootfs)
    host.run("pod create --network none pause", env={"SUDO_UID": str(alice.uid), "NSRUN_CGROUP": "none"})
    alice.start("web", rootfs, "sleep", "100")
    with running(*alice.words(NSRUN, "exec", "web", "sleep", "101"), env=alice.env, cwd="/"):
        found = wait_for(lambda: "exec" in roles(b := box(mapped(host), "pause")) and b)
    assert roles(found) == {"pause": ["pause"], "member": ["web"], "exec": ["web"]}


def test_a_pod_without_root(host, alice):
    """A user maps a pod of their own; root, whose notes do not speak of it, maps it by a pid."""
    need(shutil.which("pasta"), "pasta is missing", "apt-get install passt")
    alice.run("pod create -p 127.0.0.1:8099:80 mine")
    (pod,) = mapped(alice)["pods"]
    assert pod["name"] == "mine" and roles(pod) == {"pause": ["pause"]} and not pod["parents"]
    titles = [stop["title"] for stop in pod["way"]]
    assert titles[:2] == ["ports", "pasta"] and titles[-1] == "lo", titles
    assert mapped(host)["pods"] == []
    (found,) = mapped(host, pod["stations"][0]["pid"])["pods"]
    assert found["kind"] == "process" and found["stations"][0]["places"] == pod["stations"][0]["places"]


def test_what_a_user_may_not_look_into(host, alice):
    with running("unshare", "--net", "sleep", "100") as process:
        wait_for(lambda: namespace(process.pid, "net") != namespace(os.getpid(), "net"))
        (found,) = mapped(alice, process.pid)["pods"]
        drawn = alice.run("map", process.pid).stdout
    assert found["stations"][0]["places"] == {} and found["lines"] == []
    assert "you may not look into 1" in drawn


def test_a_pod_whose_note_is_lost(host, pod, busybox):
    """Its pause is found by the file that it holds, its member by its own note; both are in one box."""
    host.start("web", busybox, "sleep", "100")
    pause = host.pod()["pid"]
    shutil.rmtree(host.root / "run/pods/pause")
    (found,) = mapped(host)["pods"]
    assert (found["kind"], roles(found)) == ("orphan", {"pause": ["pause"], "member": ["web"]})
    assert found["stations"][0]["pid"] == pause and "no note speaks of it" in found["about"][0]
    host.run("rm", "-f", "web")
    host.run("pod", "prune")
    wait_for(lambda: "of no pod" in host.run("pod", "prune").stdout or not host.cgroups(), what="the cgroup goes")


@pytest.mark.parametrize("lost", ["pods/pause", "members/web"])
def test_a_damaged_note(host, pod, busybox, lost):
    """The pod and its member are on the map all the same; the member's name is that of its cgroup."""
    host.start("web", busybox, "sleep", "100")
    pid, note = host.member("web")["pid"], host.root / "run" / lost / "note"
    good = note.read_bytes()
    note.write_bytes(good.replace(b"{", b"[", 1))
    (found,) = mapped(host)["pods"]
    note.write_bytes(good)
    assert found["name"] == "pause" and ("its note is damaged" in found["about"]) == lost.startswith("pods")
    assert (found["stations"][1]["pid"], roles(found)["member"]) == (pid, ["web"] if host.cgroups() else ["sleep"])


def test_a_number_may_be_the_name_of_a_pod(host):
    name = str(os.getpid())
    host.run("pod", "create", "--network", "none", name)
    (found,) = mapped(host, name)["pods"]
    assert (found["kind"], found["name"]) == ("pod", name)


def test_two_processes_in_no_namespace_of_their_own(host):
    """They share everything with the map itself, so nobody else belongs to them, and there is no line."""
    (found,) = mapped(host, os.getpid())["pods"]
    assert [s["pid"] for s in found["stations"]] == [os.getpid()]
    assert found["lines"] == [] and found["way"] == [{"title": "this machine's network", "details": []}]


def test_limits(monkeypatch):
    """What cgroup v2 allows, and what is used of it."""
    used_ = {"memory": 19 << 20, "memory_limit": 64 << 20, "cpu_limit": 1.5, "pids": 12, "pids_limit": 100}
    monkeypatch.setattr("nsrun.host.cgroup.usage", lambda path, ident: used_ if (path, ident) == ("/x", 7) else {})
    look = type("Look", (), {"limited": True})
    note = {"cgroup": "/x", "cgroup_id": 7}
    assert gather._of_pod(look, note) == ["memory 19 MiB of 64 MiB", "processors 1.5", "processes 12 of 100"]
    used_.update(memory_limit=None, cpu_limit=None, pids_limit=None)
    assert gather._of_pod(look, note) == []
    assert [gather.size(n) for n in (0, 1023, 1 << 10, 1536 << 10, 5 << 30)] == ["0 B", "1023 B", "1 KiB", "1.5 MiB", "5 GiB"]  # fmt: skip


def test_there_is_room_for_so_many(host, pod):
    """A stranger who forks without end fills one box with stations, and no more than have room."""
    line = f"for i in $(seq 60); do nsenter -t {host.pod()['pid']} -n sleep 100 & done; wait"
    with running("setpriv", "--pdeathsig", "KILL", "sh", "-c", line, start_new_session=True) as process:
        wait_for(lambda: box(mapped(host), "pause")["hidden"] == 61 - gather.MOST)
        drawn = host.run("map").stdout
        os.killpg(process.pid, 9)
    assert f"and {61 - gather.MOST} more" in drawn


def test_a_member_that_outlived_its_pod(host, pod, busybox):
    host.start("clock", busybox, "sleep", "100", options=("--pid", "own"))
    host.run("pod", "kill", "pause")
    wait_for(lambda: host.member("clock")["orphaned"])
    (found,) = mapped(host)["pods"]
    assert (found["kind"], found["name"], roles(found)) == ("orphan", "clock", {"member": ["clock"]})
    assert found["about"] == ["member of pod pause, which has ended"]


def test_what_nsrun_did_not_make(host):
    """Two processes by hand that share a network, and nothing else; a third one in there is found."""
    with running("unshare", "--net", "--uts", "sleep", "100") as first:
        wait_for(lambda: namespace(first.pid, "net") != namespace(os.getpid(), "net"))
        with (
            running("nsenter", "-t", first.pid, "-n", "sleep", "101") as second,
            running("nsenter", "-t", first.pid, "-n", "sleep", "102") as third,
        ):
            wait_for(lambda: all(namespace(p.pid, "net") == namespace(first.pid, "net") for p in (second, third)))
            (found,) = mapped(host, first.pid, second.pid)["pods"]
    assert found["kind"] == "process" and found["name"] == f"{first.pid} and {second.pid}"
    assert {s["pid"] for s in found["stations"]} == {first.pid, second.pid, third.pid}
    shared = {line["kind"]: len(line["stops"]) for line in found["lines"] if not line["machine"]}
    assert shared == {"net": 3, "uts": 1}


def test_a_pid_of_a_pod_is_shown_with_its_pod(host, pod, busybox):
    host.start("web", busybox, "sleep", "100")
    (found,) = mapped(host, host.member("web")["pid"])["pods"]
    assert (found["kind"], found["name"], roles(found)["member"]) == ("pod", "pause", ["web"])


def test_what_can_not_be_mapped(host, pod):
    assert "no pod 'nosuch'" in host.fails(125, "map", "nosuch")
    assert "there is no process 4194304" in host.fails(125, "map", "4194304")
    assert "not svg" in host.fails(2, "map", "--watch", "--format", "svg")
    assert "unknown value" in host.fails(2, "map", "--format", "png")
    for address in ("0.0.0.0:8000", "192.0.2.1:8000", "[::]:80", "[::ffff:127.0.0.1]:80", "example.com:80", "8000", "127.0.0.1", "127.0.0.1:99999", "127.0.0.1:x"):  # fmt: skip
        host.fails(2, "map", "--serve", address)
    assert "--watch" in host.fails(2, "map", "--watch", "--serve", "127.0.0.1:0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "EADDRINUSE" in host.fails(125, "map", "--serve", f"127.0.0.1:{taken.getsockname()[1]}")


def test_all_forms_of_a_living_pod(host, pod, busybox):
    host.start("web", busybox, "sh", "-c", "sleep 100; true", "\x1b[31m<b>")
    assert "\\x1b[31m<b>" in host.run("map").stdout
    ElementTree.fromstring(host.run("map", "--format", "svg").stdout)
    assert Page(host.run("map", "--format", "html").stdout).tags.count("table") == 1
    assert host.run("map", "--format", "dot").stdout.startswith("graph")
    assert max(len(line) for line in host.run("map", env={"COLUMNS": "120"}).stdout.split("\n")) == 120


def test_the_map_while_pods_come_and_go(host, busybox):
    """No moment is a wrong one: neither an error nor a traceback, whatever has just begun or ended."""

    def come_and_go(name: str) -> None:
        for number in range(6):
            pod = f"{name}{number}"
            host.run("pod", "create", "--network", "none", pod)
            host.run("join", pod, "-d", "--rootfs", busybox, "--", "sleep", "100")
            pause = host.pod(pod)["pid"]
            assert pause > 1
            kill(pause)

    seen = set()
    with ThreadPoolExecutor(2) as makers:
        busy = [makers.submit(come_and_go, name) for name in "ab"]
        while not all(one_.done() for one_ in busy):
            done = host.run("map", "--format", "json", check=False)
            assert done.returncode == 0 and not done.stderr, done
            seen.add(len(json.loads(done.stdout)["pods"]))
    for one_ in busy:
        one_.result()
    assert len(seen) > 1


@pytest.mark.slow
def test_twenty_pods_of_eight_members(host, busybox):
    """Each is there with its pause; bench/teach has how long it takes."""
    names = [f"p{number}" for number in range(20)]

    def make(name: str) -> None:
        host.run("pod", "create", "--network", "none", name)
        for number in range(8):
            host.run("join", name, "-d", "--name", f"{name}-{number}", "--rootfs", busybox, "--", "sleep", "1000")

    with ThreadPoolExecutor(2) as makers:
        list(makers.map(make, names))
    found = mapped(host)["pods"]
    assert [len(pod["stations"]) for pod in found] == [9] * 20


# ---- watch and serve -------------------------------------------------------------------------------------------------


class Watch:
    """`map --watch --format json` in the background: the maps so far."""

    def __init__(self, host, file, *words: object) -> None:
        self.file, self.shown = file, 0
        with file.open("w") as out:
            self.process = host.background("map", "--watch", "--format", "json", *words, stdout=out, stderr=out)

    def maps(self) -> list[dict]:
        return [json.loads(line) for line in self.file.read_text().split("\n")[:-1] if line]

    def shows(self, stations: dict[str, bool]) -> bool:
        """Whether a map has these, name → has it ended, that is not older than the one that was asked for before."""
        for number, found in enumerate(self.maps()):
            seen = {s["name"]: s["ended"] for pod in found["pods"] for s in pod["stations"]}
            if number >= self.shown and seen == stations:
                self.shown = number
                return True
        return False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait(timeout=20)


def test_watch_follows(host, pod, busybox, tmp_path):
    """A member, a stranger and pause come and go; what has ended is shown so for a moment."""
    with Watch(host, tmp_path / "maps") as following:
        wait_for(lambda: following.shows({"pause": False}))
        host.start("web", busybox, "sleep", "100")
        wait_for(lambda: following.shows({"pause": False, "web": False}))
        with running("nsenter", "-t", host.pod()["pid"], "-n", "sleep", "101"):
            wait_for(lambda: following.shows({"pause": False, "web": False, "sleep": False}))
        wait_for(lambda: following.shows({"pause": False, "web": False, "sleep": True}))
        wait_for(lambda: following.shows({"pause": False, "web": False}))
        kill(host.pod()["pid"])
        wait_for(lambda: following.shows({"pause": True, "web": True}))
        wait_for(lambda: following.maps()[-1]["pods"] == [])
        following.process.send_signal(2)
        assert following.process.wait(timeout=20) == 130


def test_watch_of_a_process_ends_with_it(host, tmp_path):
    with running("unshare", "--net", "sleep", "100") as process:
        wait_for(lambda: namespace(process.pid, "net") != namespace(os.getpid(), "net"))
        following = Watch(host, tmp_path / "maps", process.pid)
        with following:
            wait_for(lambda: following.shows({"sleep": False}))
            process.kill()
            process.wait(timeout=20)
            wait_for(lambda: following.shows({"sleep": True}))
            assert following.process.wait(timeout=20) == 0
        assert following.maps()[-1]["pods"] == []


def test_watch_on_a_terminal(terminal, host, pod, busybox):
    """It redraws the screen, and never writes more lines than the terminal has."""
    screen = terminal("map", "--watch", rows=20)
    screen.expect("pod pause")
    host.start("web", busybox, "sleep", "100")
    screen.expect(r"\x1b\[H\x1b\[2Jpod pause")
    screen.expect("web .* sleep 100")
    assert "shared" not in screen.seen
    screen.expect("… \\d+ more lines\r\n")
    screen.type("\x03")
    screen.expect("interrupted")
    assert screen.process.wait(timeout=20) == 130


@contextlib.contextmanager
def served(host, port: str = "127.0.0.1:0"):
    process = host.background("map", "--serve", port, stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().strip(), process
    finally:
        process.kill()
        process.wait(timeout=20)
        process.stdout.close()


def get(url: str, **headers: str) -> tuple[int, dict[str, str], str]:
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
            return answer.status, dict(answer.headers), answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read().decode()


def test_serve(host, pod, busybox):
    with served(host) as (url, _):
        status, headers, source = get(url)
        assert status == 200 and headers["Referrer-Policy"] == "no-referrer" and headers["Cache-Control"] == "no-store"
        nonce = re.search(r"script-src 'nonce-([^']+)'", headers["Content-Security-Policy"])
        assert nonce and f'<script nonce="{nonce[1]}">' in source and "pod pause" in source
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert json.loads(get(f"{url}map.json")[2])["pods"][0]["name"] == "pause"
        ElementTree.fromstring(get(f"{url}map.svg")[2])
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}events", timeout=20) as stream:
            first = json.loads(stream.readline().removeprefix(b"data: "))
            assert "pause" in first["picture"] and stream.readline() == b"\n"
            host.start("web", busybox, "sleep", "100")
            news = [first]
            while "web" not in news[-1]["table"]:
                if (line := stream.readline()).startswith(b"data: "):
                    news.append(json.loads(line.removeprefix(b"data: ")))
            assert "web" in news[-1]["picture"]


def test_serve_refuses_strangers(host, pod):
    """Without the token, and under another name than its own: DNS rebinding."""
    with served(host) as (url, process):
        base, port = url.rpartition("/")[0].rpartition("/")[0], url.split(":")[2].split("/")[0]
        assert [get(f"{base}/{path}")[0] for path in ("", "map.json", "x" * 32 + "/", "events")] == [404] * 4
        for name in (f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{int(port) - 1}", "", f"127.0.0.1.evil.example:{port}"):  # fmt: skip
            assert get(url, Host=name)[0] == 403, name
        assert get(url, Host=f"localhost:{port}")[0] == 200
        assert get(f"{url}../etc/passwd")[0] == get(f"{url}nosuch")[0] == 404
        listening = sh("ss", "-Hltnp").stdout
        assert [line.split()[3] for line in listening.split("\n") if f"pid={process.pid}," in line] == [f"127.0.0.1:{port}"]  # fmt: skip
        with socket.create_connection(("127.0.0.1", int(port)), timeout=10) as sock:
            sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b" 501 " in sock.recv(4096)
        assert get(url)[0] == 200


def test_serve_over_ipv6(host, pod):
    with served(host, port="[::1]:0") as (url, _):
        assert url.startswith("http://[::1]:") and get(url)[0] == 200


def test_serve_has_room_for_so_many(host, pod):
    """Connections that say nothing are closed when there are too many, and do not keep the others for long."""
    with served(host) as (url, process), contextlib.ExitStack() as open_:
        port = int(url.split(":")[2].split("/")[0])
        socks = [open_.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10)) for _ in range(80)]
        assert socks[0].recv(1) == b"", "the first is closed for the last ones"
        wait_for(lambda: 60 <= len(os.listdir(f"/proc/{process.pid}/task")) <= 70, 10, "the others have a thread each")
        assert answers(url), "of those who did not ask for anything, the first has to go"
        wait_for(lambda: len(os.listdir(f"/proc/{process.pid}/task")) < 10, 20, "the idle ones are let go")


def test_serve_who_does_not_know_the_token_keeps_nobody_out(host, pod):
    """Many who send a byte from time to time, each on a connection that is never silent for long."""
    with served(host) as (url, process), contextlib.ExitStack() as open_:
        port = int(url.split(":")[2].split("/")[0])
        socks = [open_.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10)) for _ in range(200)]
        begin = time.monotonic()
        while time.monotonic() - begin < 8:
            for sock in socks:
                with contextlib.suppress(OSError):
                    sock.sendall(b"G")
            asked = time.monotonic()
            assert answers(url) and time.monotonic() - asked < 10  # of the 20 seconds that each of them is borne
            time.sleep(0.5)
        assert len(os.listdir(f"/proc/{process.pid}/task")) < 10


def test_serve_sends_to_the_directory(host, pod):
    """What the page asks for is relative to its address."""
    with served(host) as (url, _):
        base, token = url.split("/", 3)[2], url.rstrip("/").rpartition("/")[2]
        connection = http.client.HTTPConnection(base, timeout=10)
        connection.request("GET", f"/{token}")
        answer = connection.getresponse()
        assert (answer.status, answer.headers["Location"]) == (308, f"/{token}/")
        connection.close()


def answers(url: str) -> bool:
    try:
        return get(url)[0] == 200
    except OSError:
        return False


# ---- in a browser --------------------------------------------------------------------------------------------------

#: What is seen in the page: [pairs that overlap, texts that leave their box, …].
LOOK = """(() => {
const place = e => { const b = e.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; };
const all = (from, what) => [...from.querySelectorAll(what)].map(place);
const within = (a, b) => a[0] >= b[0] && a[1] >= b[1] && a[2] <= b[2] && a[3] <= b[3];
const meet = (a, b) => a[0] < b[2] - 1 && b[0] < a[2] - 1 && a[1] < b[3] - 1 && b[1] < a[3] - 1;
const svg = document.querySelector('svg.map'), style = (e, key) => getComputedStyle(e)[key];
const texts = all(svg, 'text'), dots = all(svg, 'circle'), marks = [...texts, ...dots];
let clashes = 0, left = 0;
for (let i = 0; i < marks.length; i++) for (let j = i + 1; j < marks.length; j++) clashes += meet(marks[i], marks[j]);
for (const group of svg.querySelectorAll('.station, .way-stop'))
  for (const text of all(group, 'text')) left += !within(text, place(group.querySelector('rect')));
return {
  clashes, left, dots: dots.length, stations: svg.querySelectorAll('.station').length,
  rows: document.querySelectorAll('tbody tr').length, tables: document.querySelectorAll('table').length,
  picture: document.querySelector('#picture').scrollWidth - document.querySelector('#picture').clientWidth,
  size: parseFloat(style(svg.querySelector('text'), 'fontSize')), back: style(document.body, 'backgroundColor'),
  dot: style(svg.querySelector('.net .dot'), 'fill'), text: style(svg.querySelector('text'), 'fill'),
  title: document.getElementById(svg.getAttribute('aria-labelledby').split(' ')[0]).textContent,
};
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    "shown", [shop(), ended_shop(), crowd(1, 30), crowd(20, 8)], ids=["shop", "ended", "crowd", "twenty"]
)
def test_in_a_browser(shown, scheme, tmp_path):
    """With a real font nothing overlaps either, no text leaves its box, and 1280 pixels are wide enough."""
    page = tmp_path / "map.html"
    page.write_text(html.page(shown))
    with Browser(tmp_path, scheme) as browser:
        browser.go(page.as_uri())
        found = browser.evaluate(LOOK)
    stations = [station for pod in shown.pods for station in pod.stations]
    stops = [pod.stations[stop] for pod in shown.pods for line in lines(pod, MACHINE) for stop in line.stops]
    assert (found["clashes"], found["left"], found["picture"]) == (0, 0, 0), found
    assert found["stations"] == found["rows"] == len(stations) and found["tables"] == len(shown.pods)
    assert found["dots"] == sum(not stop.ended for stop in stops)
    assert found["size"] >= 12 and found["title"].startswith("Map of pod ")
    assert (found["back"], found["text"], found["dot"]) == {
        "light": ("rgb(255, 255, 255)", "rgb(27, 31, 36)", "rgb(9, 105, 218)"),
        "dark": ("rgb(13, 17, 23)", "rgb(230, 237, 243)", "rgb(88, 166, 255)"),
    }[scheme]


def test_the_live_page_in_a_browser(host, pod, busybox, tmp_path):
    """The page follows the pod, and its own policy stops none of it; what strangers are called is only text."""
    with served(host) as (url, process), Browser(tmp_path) as browser:
        browser.go(url)
        count, state = "document.querySelectorAll('.station').length", "document.getElementById('state').textContent"
        wait_for(lambda: browser.evaluate(state).startswith("live, as of"), what="the first event")
        assert browser.evaluate(count) == 1
        host.start("web", busybox, "sh", "-c", "sleep 100; true", "<img src=x onerror=alert(1)>")
        wait_for(lambda: browser.evaluate(count) == 2)
        assert "<img src=x" in browser.evaluate("document.querySelector('#table').textContent")
        assert browser.evaluate("document.querySelectorAll('img, script').length") == 1
        host.run("rm", "-f", "web")
        wait_for(lambda: browser.evaluate("document.querySelectorAll('.station.ended').length") == 1)
        wait_for(lambda: browser.evaluate(count) == 1)
        assert browser.screenshot().startswith(b"\x89PNG")
        process.kill()
        wait_for(lambda: browser.evaluate(state).startswith("not connected"))
