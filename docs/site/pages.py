# SPDX-License-Identifier: Apache-2.0
"""The pages of the site: the repository's Markdown as it stands, and a page for each source file that it links to.

They have the paths that the files have, so a link works here as it does on a forge.
"""

import html
import pathlib
import posixpath
import re

from docutils import nodes
from sphinx.addnodes import download_reference, pending_xref
from sphinx.project import Project

TOP = pathlib.Path(__file__).parents[2]
#: The files and directories that the pages link to.
linked: set[str] = set()


class Readme(Project):
    """The pages of a directory are found at its index.html, as its README.md is on a forge."""

    def path2doc(self, filename):
        name = super().path2doc(filename)
        return re.sub(r"(^|/)README$", r"\1index", name) if name else name


def address(path: str) -> str:
    """Return the name of the page that shows a file or lists a directory."""
    return f"{path}/index" if (TOP / path).is_dir() else path


def link_sources(app, doctree) -> None:
    """Let links to source files and directories lead to pages that show them."""
    here = posixpath.dirname(app.env.doc2path(app.env.docname, False).as_posix())
    for node in [*doctree.findall(download_reference), *doctree.findall(pending_xref)]:
        path = posixpath.normpath(posixpath.join(here, node["reftarget"]))
        if node.get("refdomain") == "doc" or path.split("/")[0] in (".", "..") or not (TOP / path).exists():
            continue  # the strict build names what leads nowhere
        linked.add(path)
        uri = app.builder.get_relative_uri(app.env.docname, address(path))
        node.replace_self(nodes.reference("", "", *node.children, refuri=uri, internal=True))


def show_sources(app):
    """Yield the pages of the source files and the lists of the directories."""
    directories = sorted(path for path in linked if (TOP / path).is_dir())
    listed = {
        path: sorted(
            f"{path}/{file.name}" for file in (TOP / path).iterdir() if file.suffix in (".py", ".c", ".h", ".pyi")
        )
        for path in directories
    }
    for path, files in listed.items():
        items = "".join(f'<li><a href="{posixpath.basename(f)}.html"><code>{html.escape(f)}</code></a></li>' for f in files)  # fmt: skip
        title = f"<code>{html.escape(path)}/</code>"
        yield address(path), {"title": f"{path}/", "body": f"<h1>{title}</h1><ul>{items}</ul>"}, "page.html"
    for path in sorted((linked - {*directories}).union(*listed.values())):
        language = {".py": "python", ".c": "c", ".h": "c"}.get(posixpath.splitext(path)[1], "none")
        code = app.builder.highlighter.highlight_block((TOP / path).read_text(), language)
        body = f'<h1><code>{html.escape(path)}</code></h1><div class="highlight-{language} notranslate">{code}</div>'
        yield address(path), {"title": path, "body": body}, "page.html"


def name_readmes(app) -> None:
    app.project.__class__ = Readme


def setup(app) -> None:
    app.connect("builder-inited", name_readmes)
    app.connect("doctree-read", link_sources, priority=400)  # before what would copy the files
    app.connect("html-collect-pages", show_sources)
