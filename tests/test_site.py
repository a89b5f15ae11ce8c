# SPDX-License-Identifier: Apache-2.0
"""The site of `make site`: what it is built from, where its links lead, and how it looks in a browser."""

import contextlib
import fcntl
import functools
import http.server
import importlib.util
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest
from browser import Browser
from conftest import HERE, need, wait_for

TOP = HERE.parent
#: What the site is built from, without the page that it opens with.
PAGES = sorted(
    str(path.relative_to(TOP))
    for path in (*TOP.glob("*.md"), *(TOP / "docs").rglob("*.md"))
    if path != TOP / "README.md"
)


def build(top: pathlib.Path, out: pathlib.Path) -> subprocess.CompletedProcess[str]:
    """Build as `make site` does, with this Python and into another directory."""
    recipe = re.search(r"^site:.*?^\t@?(\S+/python .*?)$", (TOP / "Makefile").read_text(), re.M | re.S)
    assert recipe
    place = {".venv/bin/python": sys.executable, "build/site": str(out), "build/doctrees": f"{out}.doctrees"}
    words = [place.get(word, word) for word in shlex.split(recipe[1])]
    return subprocess.run(words, cwd=top, capture_output=True, text=True, timeout=100, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> pathlib.Path:
    """Return the site, which the first process of a run that needs it builds."""
    need(importlib.util.find_spec("furo") and importlib.util.find_spec("myst_parser"), "Sphinx is missing", "make dev")
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if os.environ.get("PYTEST_XDIST_WORKER") else shared
    out = shared / "site"
    with (shared / "site.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.exists():
            done = build(TOP, shared / "site.new")
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
            (shared / "site.new").rename(out)
    return out


class Page(HTMLParser):
    """What is in a page: its links, what it loads, its ids, headings, pictures and blocks of code."""

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.headings: list[int] = []
        self.alts: list[str | None] = []
        self.blocks: list[str] = []
        self.navigation: list[str] = []
        self.block, self.tree = False, 0
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.ids.add(attributes.get("id") or "")
        self.tree += tag == "div" and (self.tree > 0 or "sidebar-tree" in (attributes.get("class") or "").split())
        if tag == "a" and attributes.get("href"):
            self.links.append(str(attributes["href"]))
            if self.tree:
                self.navigation.append(str(attributes["href"]))
        if tag == "link" and attributes.get("rel") not in ("next", "prev", "index", "search"):
            self.loads.append(str(attributes["href"]))
        if tag in ("script", "img", "iframe", "source") and "src" in attributes:
            self.loads.append(str(attributes["src"]))
        if tag == "img":
            self.alts.append(attributes.get("alt"))
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "pre":
            self.block = True
            self.blocks.append("")

    def handle_endtag(self, tag: str) -> None:
        self.tree -= tag == "div" and self.tree > 0
        self.block = self.block and tag != "pre"

    def handle_data(self, data: str) -> None:
        if self.block:
            self.blocks[-1] += data


@pytest.fixture(scope="module")
def read(site) -> dict[str, Page]:
    return {str(path.relative_to(site)): Page(path) for path in sorted(site.rglob("*.html"))}


def shown_at(page: str) -> str:
    """Return where the site has a page of the repository."""
    return re.sub(r"(^|/)README\.md$", r"\1index.html", page).replace(".md", ".html")


def blocks(page: str) -> list[str]:
    """Return the blocks of code of a page, as they stand there."""
    text = (TOP / page).read_text()
    found = re.finditer(r"^( *)(`{3,})[^`\n]*\n(.*?)^\1\2$", text, re.M | re.S)
    return [re.sub(rf"^{block[1]}", "", block[3], flags=re.M) for block in found]


def test_every_link_leads_somewhere(site, read):
    """Also to source files and directories, which have pages, and to places in a page."""
    checked = 0
    for name, page in read.items():
        for link in {*page.links, *page.loads}:
            parts = urlsplit(link)
            if parts.scheme == "data" or parts.scheme in ("http", "https") and link in page.links:
                continue
            assert not parts.scheme and not parts.netloc, (name, link)
            target = os.path.normpath(site / os.path.dirname(name) / unquote(parts.path)) if parts.path else site / name
            assert os.path.isfile(target), (name, link)
            if parts.fragment and str(target).endswith(".html"):
                assert unquote(parts.fragment) in read[os.path.relpath(target, site)].ids | {"top"}, (name, link)
            checked += 1
    assert checked > 5000


def test_nothing_is_loaded_from_another_host(site, read):
    for name, page in read.items():
        assert page.loads and not [link for link in page.loads if re.match(r"\w+://|//", link)], name
    for path in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(\w+:)?//", path.read_text()), path.name


def test_the_navigation_leads_a_newcomer(read):
    names = [os.path.normpath(link) for link in read["index.html"].navigation]
    labs = [shown_at(page) for page in PAGES if re.match(r"docs/labs/\d", page)]
    order = ["tour", "labs/index", "explain", "map", "ns", "cli", "design", "decisions/index"]
    order = ["docs/tour.html", "docs/labs/index.html", *labs, *(f"docs/{name}.html" for name in order[2:])]
    order += ["SECURITY.html", "docs/threats.html"]
    assert len(labs) == 17
    assert [name for name in names if name in order] == order
    assert sorted(names) == sorted(map(shown_at, PAGES)), "docs/site/toc.yml: every page, once"
    for page in PAGES:
        assert len(read[shown_at(page)].navigation) == len(names)


@pytest.mark.parametrize("page", ["README.md", *PAGES])
def test_pages_are_as_the_repository_has_them(read, page):
    """Each block of code, character by character; headings in order, and pictures with words."""
    found = read[shown_at(page)]
    assert found.blocks == blocks(page)
    assert found.headings[0] == 1 and found.headings.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(found.headings, found.headings[1:], strict=False))
    assert all(found.alts)


def test_source_files_are_shown_as_they_are(read):
    sources = {name for name in read if re.search(r"\.(py|c|h)\.html$", name)}
    assert {"csrc/pause.c.html", "csrc/protocol.h.html", "nsrun/plan/pod.py.html"} <= sources
    for name in sources | {"LICENSE.html"}:
        (shown,) = read[name].blocks
        assert shown.strip("\n") == (TOP / name.removesuffix(".html")).read_text().strip("\n"), name


def test_a_broken_link_fails_the_build(site, tmp_path):
    """And what else the strict build is for; `site` is asked for what it needs."""
    shutil.copytree(TOP / "docs/site", tmp_path / "docs/site", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(TOP / "pyproject.toml", tmp_path)
    (tmp_path / "docs/site/toc.yml").write_text("root: index\nentries:\n  - file: docs/one\n")
    (tmp_path / "docs/one.md").write_text("# One\n\n## A heading\n")
    (tmp_path / "README.md").write_text("# nsrun\n\n[one](docs/one.md#a-heading), [itself](pyproject.toml)\n")
    done = build(tmp_path, tmp_path / "right")
    assert (done.returncode, done.stderr) == (0, "")
    wrong = "[page](docs/two.md) [place](docs/one.md#two) [source](csrc/two.c) [outside](..) ![picture](two.svg)\n"
    (tmp_path / "README.md").write_text(f"# nsrun\n\n{wrong}")
    (tmp_path / "docs/lost.md").write_text("# Lost\n")
    done = build(tmp_path, tmp_path / "wrong")
    assert done.returncode == 1
    for what in ("'docs/two.md'", "'two'", "'csrc/two.c'", "'..'", "two.svg", "docs/lost.md"):
        assert what in done.stderr, done.stderr


# ---- in a browser --------------------------------------------------------------------------------------------------

#: What is seen in a page: prose that is wider than the window is named, also what was folded.
LOOK = """(() => {
document.querySelectorAll('details').forEach(e => e.open = true);
const inner = e => e.closest('.table-wrapper, pre'), root = document.documentElement;
const prose = [...document.querySelectorAll('article :is(h1, h2, h3, h4, p, li, summary, img)')].filter(e => !inner(e));
return {
  at: location.href,
  blocks: [...document.querySelectorAll('article pre')].map(e => e.textContent),
  pictures: [...document.images].map(e => [e.getAttribute('src').split('/').pop(), e.naturalWidth, e.naturalHeight]),
  wide: root.scrollWidth - root.clientWidth,
  left: prose.filter(e => e.getBoundingClientRect().right > root.clientWidth || e.scrollWidth > root.clientWidth)
    .map(e => e.textContent.slice(0, 60)),
  prose: prose.length, title: document.title, back: getComputedStyle(document.body).backgroundColor,
};
})()"""

#: Whether the navigation shows where the reader is.
HERE_I_AM = """[...document.querySelectorAll('.sidebar-scroll li.current-page')].map(e => {
  const [tree, own] = [e.closest('.sidebar-scroll'), e].map(e => e.getBoundingClientRect());
  return own.top >= tree.top && own.top < tree.bottom;
})"""


def resize(browser: Browser, width: int) -> None:
    browser.call(
        "Emulation.setDeviceMetricsOverride", width=width, height=720, deviceScaleFactor=1, mobile=width < 1000
    )


def troubles(browser: Browser, base: str) -> list[object]:
    """Return what the console said, what went wrong in a script, and what was asked of anybody but the site."""
    found: list[object] = []
    for event in browser.events:
        what = event["params"]
        match event["method"]:
            case "Runtime.exceptionThrown" | "Log.entryAdded" | "Network.loadingFailed":
                found.append(what)
            case "Runtime.consoleAPICalled":
                found += [what] if what["type"] in ("error", "warning", "assert") else []
            case "Network.requestWillBeSent":
                url = what["request"]["url"]
                found += [] if url.startswith((base, "data:")) else [url]
    return found


@contextlib.contextmanager
def looking(directory: pathlib.Path, base: str, scheme: str = "light"):
    """A browser in which nothing may go wrong."""
    with Browser(directory, scheme) as browser:
        for domain in ("Runtime", "Log", "Network"):
            browser.call(f"{domain}.enable")
        yield browser
        browser.evaluate("1")  # what happened before is told before
        assert any(event["method"] == "Network.requestWillBeSent" for event in browser.events)
        assert troubles(browser, base) == []


def look(browser: Browser, base: str, page: str, widths: tuple[int, ...] = (360, 1280)) -> dict:
    """Return what is seen in a page of the repository, after it was looked at as on a phone, too."""
    browser.go(base + shown_at(page))
    assert browser.evaluate(HERE_I_AM) == ([] if page == "README.md" else [True]), page
    for width in widths:
        resize(browser, width)
        found = browser.evaluate(LOOK)
        assert found["at"] == base + shown_at(page)
        assert (found["wide"], found["left"]) == (0, []), (page, width)
    assert found["prose"] > 1 and found["title"], page
    assert found["blocks"] == blocks(page), page
    assert all(width > 0 and height > 0 for _, width, height in found["pictures"]), page
    assert troubles(browser, base) == [], page
    return found


def test_every_page_in_a_browser(site, tmp_path):
    base = f"{site.as_uri()}/"
    with looking(tmp_path, base) as browser:
        seen = {page: look(browser, base, page) for page in ["README.md", *PAGES]}
    assert seen["README.md"]["back"] == "rgb(255, 255, 255)"
    assert ["map.svg", 1240, 740] in seen["docs/map.md"]["pictures"]
    assert len(seen["docs/labs/01-inode.md"]["blocks"]) > 10


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_the_site_from_a_server_and_in_the_dark(site, tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}/"
        try:
            with looking(tmp_path, base, "dark") as browser:
                for page in ("README.md", "docs/labs/07-publish-a-port.md", "docs/map.md", "docs/threats.md"):
                    found = look(browser, base, page)
                    assert max(map(int, re.findall(r"\d+", found["back"]))) < 40
                look(browser, base, "docs/cli.md", (320, 768, 1015, 1085, 1316, 1561))  # about where the layout changes
        finally:
            server.shutdown()


def test_the_search_works_without_a_server(site, tmp_path):
    base = f"{site.as_uri()}/"
    with looking(tmp_path, base) as browser:
        browser.go(f"{base}docs/tour.html")
        form = browser.evaluate("document.querySelector('.sidebar-search-container').action")
        field = browser.evaluate("document.querySelector('.sidebar-search').name")
        browser.go(f"{form}?{field}=pivot_root")
        links = "Object.fromEntries([...document.querySelectorAll('#search-results li a')].map(e => [e.text, e.href]))"
        wait_for(lambda: "10. A root of its own" in browser.evaluate(links), what="the lab among what was found")
        browser.go(browser.evaluate(links)["10. A root of its own"])
        assert browser.evaluate("document.querySelector('h1').textContent").startswith("10. A root of its own")
