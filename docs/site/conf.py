# SPDX-License-Identifier: Apache-2.0
"""The settings of the site (make site); toc.yml has its navigation, and pages.py what the pages are."""

import os
import pathlib
import sys
import tomllib

TOP = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(TOP / "docs/site"))

project = "nsrun"
version = release = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["version"]
extensions = ["myst_parser", "sphinx_external_toc", "pages"]
external_toc_path = str(TOP / "docs/site/toc.yml")
include_patterns = ["*.md", "docs/**.md"]
exclude_patterns = sorted(name for name in os.listdir(TOP) if name != "docs" and not name.endswith(".md"))
myst_heading_anchors = 6
highlight_language = "none"
smartquotes = False
html_theme = "furo"
html_title = "nsrun"
html_favicon = "icon.svg"
html_static_path = ["site.css", "site.js"]
html_css_files = ["site.css"]
html_js_files = [("site.js", {"defer": "defer"})]
html_copy_source = False
html_show_copyright = False
html_show_search_summary = False  # it would fetch the pages, which a browser refuses for file://
html_use_index = False
