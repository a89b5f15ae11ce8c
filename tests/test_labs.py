# SPDX-License-Identifier: Apache-2.0
"""The matrix of the labs: what is untouched is refused, each mistake is refused at its row, each solution is accepted.

The scripts are those of the pages, docs/labs/NN-name.md; there is no copy.  After a reset nothing of the lab is left.
A row that no mistake falsifies fails here, too: a check that can't fail teaches nothing.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import shlex
import subprocess
import time

import pytest
from conftest import HERE, UserHost, sh

from nsrun.teach import labs, labtext
from nsrun.teach.lab import MARK, environment

LABS = labs.every()
PAGES = {lab.number: labtext.page_of(lab) for lab in LABS}
SCRIPTS = [
    pytest.param(lab, script, id=re.sub(r"\W+", "-", f"{lab.number:02} {script.kind} {'user ' * script.user}{script.row} {script.label}"))
    for lab in LABS
    for script in PAGES[lab.number].scripts
    if script.kind in ("solution", "mistake")
]  # fmt: skip
each_lab = pytest.mark.parametrize("lab", LABS, ids=lambda lab: f"{lab.number:02}-{lab.name}")


class Student:
    """Somebody who works on a lab."""

    def __init__(self, host, lab) -> None:
        self.host, self.lab = host, lab

    def start(self) -> None:
        self.host.run("lab", "start", self.lab.number)
        lines = self.host.run("lab", "env", self.lab.number).stdout.splitlines()
        words = [shlex.split(line)[1].partition("=") for line in lines if line.startswith("export ")]
        self.variables = {name: value for name, _, value in words}
        self.directory = pathlib.Path(self.variables["LAB_DIR"])

    def do(self, script: labtext.Script) -> None:
        """Run a script as it stands in the page; what it leaves in the background keeps no pipe of ours open."""
        for before in [*PAGES[self.lab.number].of("before", script.user), script]:
            with open(f"{self.host.root}/script.log", "w+") as log:
                done = subprocess.run(
                    self.host.words("sh", "-c", before.text), env={**self.host.env, **self.variables}, cwd=self.directory,
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=60, check=False,
                )  # fmt: skip
                log.seek(0)
                self.log = f"{before.kind} {before.label} → {done.returncode}\n{log.read()}"

    def check(self) -> dict[str, dict]:
        done = self.host.run("lab", "check", self.lab.number, "--json", check=False)
        assert done.returncode in (0, 1), done.stderr
        found = json.loads(done.stdout)
        assert found["passed"] == (done.returncode == 0) == all(row["ok"] for row in found["rows"])
        assert all(row["wanted"] and row["seen"] and row["see"] for row in found["rows"]), found
        return {row["name"]: row for row in found["rows"]}

    def settled(self) -> dict[str, dict]:
        """The rows, as soon as two checks in a row say the same."""
        before: list[bool] = []
        for _ in range(20):
            rows = self.check()
            now = [row["ok"] for row in rows.values()]
            if now == before:
                return rows
            before = now
            time.sleep(0.25)
        raise AssertionError(f"the check does not settle: {rows}")

    def reset(self) -> None:
        done = self.host.run("lab", "reset", self.lab.number)
        assert done.stderr == "", done.stderr
        assert not self.directory.exists()
        assert not [pid for pid in os.listdir("/proc") if pid.isdigit() and self.mark in environment(int(pid))]

    @property
    def mark(self) -> bytes:
        return f"{MARK}={self.variables[MARK]}".encode()


def student_of(host, lab, user: bool) -> Student:
    return Student(UserHost(host, "alice") if user else host, lab)


def machine() -> dict[str, object]:
    """What a lab could leave on the machine, apart from what the host fixture compares."""
    return {
        "mounts": pathlib.Path("/proc/thread-self/mountinfo").read_text(),
        "links": sh("ip", "-o", "link").stdout,
        "routes": sh("ip", "route").stdout,
        "rules": sh("nft", "list", "ruleset").stdout,
        "hostname": os.uname().nodename,
        "segments": pathlib.Path("/proc/sysvipc/shm").read_text(),
        "listening": sh("ss", "-Hltn").stdout,
    }


def assert_as(host, before: dict[str, object]) -> None:
    """The machine is as it was.  A veth takes a moment to die, and the next command removes the bridge that it was on."""
    for _ in range(20):
        if machine() == before:
            return
        host.run("pod", "prune")
        time.sleep(0.25)
    assert machine() == before


@pytest.mark.parametrize(("lab", "script"), SCRIPTS)
def test_script(host, lab, script):
    before, begin = machine(), time.monotonic()
    student = student_of(host, lab, script.user)
    student.start()
    student.do(script)
    refused: list[str] = []
    if script.kind == "solution":
        end = time.monotonic() + 15
        while left := [row for row in student.check().values() if not row["ok"]]:
            assert time.monotonic() < end, f"{left}\n{student.log}"
            time.sleep(0.05)
    else:
        rows = student.settled()
        assert script.row in rows, f"the page names a row that there is not: {script.row}"
        assert not rows[script.row]["ok"], f"{script.label} was accepted\n{rows}\n{student.log}"
        refused = [name for name, row in rows.items() if not row["ok"]]
    student.reset()
    if table := os.environ.get("NSRUN_LAB_TABLE"):  # a file: what the matrix did, for a report
        with open(table, "a") as file:
            what = [
                lab.number,
                script.kind,
                "user" if script.user else "root",
                script.row,
                script.label,
                round(time.monotonic() - begin, 2),
                refused,
            ]
            file.write(json.dumps(what) + "\n")
    assert_as(host, before)


@each_lab
def test_untouched(host, lab):
    """Nothing was done: refused.  And each row is one that some mistake falsifies, as root or as a user."""
    before = machine()
    student = student_of(host, lab, False)
    student.start()
    rows = student.check()
    assert not all(row["ok"] for row in rows.values()), rows
    falsified = {script.row for script in PAGES[lab.number].of("mistake")}
    assert falsified == rows.keys(), "each row needs a mistake that it refuses, and each mistake a row"
    student.reset()
    assert_as(host, before)


@each_lab
def test_page(lab):
    page = PAGES[lab.number]
    assert tuple(page.sections) == labtext.SECTIONS
    assert page.title == f"{lab.number:02}. {lab.title}"
    assert len(page.hints) == 3
    index = pathlib.Path(labtext.path_of(lab)).name
    assert f"| [{lab.number:02}]({index}) |" in (HERE.parent / "docs/labs/README.md").read_text()
    assert page.of("solution"), "a lab without a solution"
    assert not lab.root or not [script for script in page.scripts if script.user], "it says that it needs root"
    assert lab.root or page.of("solution", True), "an ordinary user can do it, so there is a solution for them"
    for variable in lab.values:
        texts = [*(script.text for script in page.scripts), page.sections["With nsrun"]]
        assert variable in "".join(texts), f"{variable} is of no use"
    for section in ("Idea", "By hand", "With nsrun", "Break it"):
        told = labtext.told(page.sections[section])
        assert "```" not in told and not [script for script in page.of("solution") if script.text.strip() in told]
