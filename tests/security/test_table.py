# SPDX-License-Identifier: Apache-2.0
"""docs/threats.md and the tests hold each other: every row has a test that exists, or says why it does not apply."""

import re

from conftest import HERE

TABLE = (HERE.parent / "docs/threats.md").read_text()


def rows() -> list[list[str]]:
    lines = [line for line in TABLE.splitlines() if line.startswith("| ") and not line.startswith("| id")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_every_row_has_a_test_or_a_reason():
    import corpus

    known = set(re.findall(r"^def (test_\w+)", "".join(path.read_text() for path in HERE.rglob("test_*.py")), re.M))
    cases = set(re.findall(r'^@?\w+\(\s*"([a-z0-9-]+)"', (HERE / "corpus.py").read_text(), re.M))
    assert corpus and len(rows()) > 50
    for ident, why, tests in rows():
        if tests == "—":
            assert why.startswith("does not apply: "), ident
            continue
        for word in tests.split(", "):
            kind, _, name = word.rpartition(" ")
            assert name in (cases if kind == "corpus" else known), (ident, word)


def test_no_row_twice():
    idents = re.findall(r"CVE-\d+-\d+", " ".join(row[0] for row in rows()))
    assert len(idents) == len(set(idents)), sorted(i for i in idents if idents.count(i) > 1)
