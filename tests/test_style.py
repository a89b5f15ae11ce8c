# SPDX-License-Identifier: Apache-2.0
"""Linters are tests: a missing tool skips here and fails in CI."""

import ast
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from conftest import need

TOP = pathlib.Path(__file__).parent.parent
BIN = pathlib.Path(sys.executable).parent


def check(*words, timeout=300, cwd="."):
    done = subprocess.run(
        [str(w) for w in words], cwd=TOP / cwd, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff():
    need((BIN / "ruff").exists(), "ruff is missing", "pip install ruff")
    check(
        BIN / "ruff",
        "check",
        "--no-cache",
        ".",
        "bench/run",
        "bench/images",
        "bench/many",
        "bench/forward",
        "bench/profile",
        "bench/teach",
        "bench/engines",
        "rootfs/layout",
        "rootfs/pause",
        "tests/coverage",
    )
    check(BIN / "ruff", "format", "--check", "--no-cache", ".", "tests/coverage")


def test_mypy():
    need((BIN / "mypy").exists(), "mypy is missing", "pip install mypy")
    check(BIN / "mypy", "--cache-dir", os.devnull, "nsrun")
    check(BIN / "mypy", "--cache-dir", os.devnull, ".", cwd="tests")


def test_shellcheck():
    need(shutil.which("shellcheck"), "shellcheck is missing", "apt-get install shellcheck")
    scripts = [TOP / p for p in (".ci/deps", ".ci/run", "packaging/deb", "rootfs/build", "rootfs/demo", "tests/fresh", "tests/machine")]  # fmt: skip
    scripts += [*TOP.glob("rootfs/*/*.sh"), TOP / "rootfs/wordpress/apache2-foreground"]
    check("shellcheck", "-S", "warning", "-e", "SC1090,SC1091,SC2034,SC2154", *scripts)


def test_c_is_formatted():
    """`make format` formats; another version of clang-format would do so in another way, so pyproject.toml names one."""
    need((BIN / "clang-format").exists(), "clang-format is missing", "make dev")
    files = [path for kind in ("c", "h") for folder in ("csrc", "tests", "bench") for path in (TOP / folder).rglob(f"*.{kind}")]  # fmt: skip
    assert len(files) >= 14
    check(BIN / "clang-format", "--dry-run", "-Werror", *files)


def test_spelling():
    """codespell knows common misspellings; pyproject.toml lists what is none."""
    need((BIN / "codespell").exists(), "codespell is missing", "make dev")
    names = ("nsrun", "csrc", "docs", "tests", "bench", "rootfs", "packaging", ".ci", "Makefile", "setup.py")
    check(BIN / "codespell", *names, *(path.name for path in TOP.glob("*.md")))


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_c_compiles_without_a_warning(compiler, tmp_path):
    need(shutil.which(compiler), f"{compiler} is missing", f"apt-get install {compiler}")
    flags = "-std=gnu11 -Os -Wall -Wextra -Wshadow -Wconversion -Wsign-conversion -Wcast-qual -Wmissing-prototypes -Werror -ffreestanding -fno-builtin -fno-stack-protector -nostdlib -nostartfiles -static"
    for name in ("pause", "init", "monitor", "unpack", "door", "forward", "oci"):
        check(compiler, *flags.split(), "-o", tmp_path / name, f"csrc/{name}.c")


def test_every_source_file_says_its_licence():
    generated, kinds, checked = ("_templates.py", "_protocol.py"), (".py", ".pyi", ".c", ".h", ".sh", ".php"), 0
    files = [TOP / "setup.py", TOP / "Makefile", TOP / "pyproject.toml"]
    for folder in ("nsrun", "csrc", "tests", "bench", "rootfs", "packaging", ".ci"):
        files += [path for path in (TOP / folder).rglob("*") if path.is_file() and path.name not in generated]
    for path in files:
        text = path.read_bytes()
        if path.suffix in kinds or path.name in ("Makefile", "recipe", "pyproject.toml") or text.startswith(b"#!"):
            assert b"SPDX-License-Identifier: Apache-2.0" in b"".join(text.splitlines(True)[:2]), path.relative_to(TOP)
            checked += 1
    assert checked > 150


def test_names_of_files():
    """A test that ran with odd names in the wrong directory leaves nothing here."""
    for name in os.listdir(TOP):
        assert re.fullmatch(r"[A-Za-z0-9._-]+", name), ascii(name)


def test_no_unsafe_paths_below_a_rootfs():
    """threats R1: nobody joins strings below a rootfs and opens them; the kernel resolves."""
    for path in (TOP / "nsrun").rglob("*.py"):
        body = path.read_text()
        assert not re.search(r"os\.path\.join\(root(fs|_path)?,", body), path
        assert "shell=True" not in body and "preexec_fn" not in body and "extractall" not in body, path


def test_one_place_writes():
    """What others wrote reaches a terminal through cli/say.py only, which escapes it, or for engines oci/say.py; skopeo's progress is skopeo's."""
    for path in (TOP / "nsrun").rglob("*.py"):
        name, body = str(path.relative_to(TOP / "nsrun")), path.read_text()
        if name == "image/pull.py":
            body = body.replace("stdout = sys.stderr if os.isatty(2)", "")
        if name == "errors.py":  # when there are no descriptors left to load say.py with
            body = body.replace('os.write(2, f"{printable(line)}', "")
        if name not in ("cli/say.py", "oci/say.py"):
            found = re.findall(r"^(?!.*`).*(?:\bprint\(|sys\.std(?:out|err)|os\.write\([12],).*", body, re.M)
            assert not found, (path, found)


def test_text_of_others_is_read_whatever_it_is():
    """No file is read as strict UTF-8 (a process may have any name), and no foreign text ends a line at U+2028."""
    for path in (TOP / "nsrun").rglob("*.py"):
        name, body = str(path.relative_to(TOP / "nsrun")), path.read_text()
        if name.startswith("image/") or name == "run/__init__.py":
            continue
        for call in ast.walk(ast.parse(body)):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "open":
                mode = ast.literal_eval(call.args[1]) if len(call.args) > 1 else "r"
                errors = [ast.literal_eval(word.value) for word in call.keywords if word.arg == "errors"]
                assert "b" in mode or "w" in mode or errors == ["surrogateescape"], (path, call.lineno)
        if name != "host/copy.py":  # what cp(1) said
            assert "splitlines" not in body, path
