# SPDX-License-Identifier: Apache-2.0
"""Labs with a scene that students of a class can do: root grades them without the student's record of the scene."""

from __future__ import annotations

import pytest
from test_class import accounts, graded, pair  # noqa: F401  # fixtures

from nsrun.teach import labs

SCENES = [lab.number for lab in labs.every() if lab.scene and not lab.root]


@pytest.mark.parametrize("number", SCENES)
def test_root_grades(host, pair, number):  # noqa: F811
    dora, emil = pair
    dora.solve(number)
    grade = graded(host)["dora", number]
    assert grade["passed"] and grade["fulfilled"] == grade["rows"], grade
    assert not graded(host)["emil", number]["passed"]
    dora.run("lab", "reset", number)
