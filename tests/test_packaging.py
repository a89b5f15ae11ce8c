"""The door: what is tested is the checkout, and what is installed is whole."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

TOP = pathlib.Path(__file__).parent.parent


def sources(to: pathlib.Path) -> pathlib.Path:
    """Copy what the build and the tests read, and nothing that a build made."""
    generated = shutil.ignore_patterns("__pycache__", "libexec", "*.so", "_templates.py", "_protocol.py", ".*_cache")
    for name in ("nsrun", "csrc", "tests"):
        shutil.copytree(TOP / name, to / name, ignore=generated)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(TOP / name, to)
    return to


def collect(top: pathlib.Path, **env: str) -> subprocess.CompletedProcess[str]:
    words = [
        sys.executable,
        "-I",
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/test_words.py",
    ]
    if env:
        words.remove("-I")
    return subprocess.run(words, cwd=top, env={**os.environ, **env}, capture_output=True, text=True, timeout=60, check=False)  # fmt: skip


@pytest.mark.parametrize(
    "file, says",
    [
        ("nsrun/errors.py", "nsrun/errors.py is not as installed"),
        ("nsrun/new.py", "nsrun/new.py is not as installed"),
        ("csrc/pause.c", "not from the sources"),
        ("csrc/new.h", "not from the sources"),
        ("setup.py", "not from the sources"),
    ],
)
def test_pytest_refuses_what_is_built_from_other_sources(tmp_path, file, says):
    top = sources(tmp_path)
    assert collect(top).returncode == 0
    with (top / file).open("a") as changed:
        changed.write("\n")
    done = collect(top)
    assert done.returncode == 4
    assert says in done.stderr and "run: make build" in done.stderr


def test_pytest_refuses_a_checkout_in_which_nothing_is_built(tmp_path):
    top = sources(tmp_path)
    done = collect(top, PYTHONPATH=str(top))
    assert done.returncode == 4
    assert "run: " in done.stderr and "make dev" in done.stderr
