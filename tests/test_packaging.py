# SPDX-License-Identifier: Apache-2.0
"""The door: what is tested is the checkout, and what is installed is whole."""

import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile

import pytest
from conftest import need, not_editable

from nsrun.cli import man
from nsrun.cli.commands import COMMANDS, GLOBAL
from nsrun.oci.commands import COMMANDS as OCI

TOP = pathlib.Path(__file__).parent.parent


def sources(to: pathlib.Path) -> pathlib.Path:
    """Copy what the build and the tests read, and nothing that a build made."""
    generated = shutil.ignore_patterns("__pycache__", "libexec", "*.so", "_templates.py", "_protocol.py", ".*_cache")
    for name in ("nsrun", "csrc", "tests", "docs"):
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


@not_editable
@pytest.mark.parametrize(
    "file, says",
    [
        ("nsrun/errors.py", "nsrun/errors.py is not as installed"),
        ("nsrun/new.py", "nsrun/new.py is not as installed"),
        ("csrc/pause.c", "not from the sources"),
        ("csrc/new.h", "not from the sources"),
        ("setup.py", "not from the sources"),
        ("docs/labs/01-inode.md", "docs/labs is not as installed"),
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


def checkout(to: pathlib.Path) -> pathlib.Path:
    """Copy the checkout, without what git ignores."""
    made = shutil.ignore_patterns("__pycache__", "libexec", "*.so", "_templates.py", "_protocol.py", ".*_cache")
    at_top = shutil.ignore_patterns(".git", ".venv*", "build", "dist", "*.egg-info", ".coverage*")
    shutil.copytree(
        TOP,
        to,
        ignore=lambda folder, names: made(folder, names) | (at_top(folder, names) if folder == str(TOP) else set()),
        symlinks=True,
    )
    return to


def call(*words: object, **kwargs) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=300, check=False, **kwargs)  # fmt: skip
    assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    return done.stdout


def outside() -> list[object]:
    """Return what to put before a command that needs the network, when live tests have taken this process out of it."""
    parent = os.getppid()  # pytest-xdist's, or the shell
    if os.stat("/proc/self/ns/net").st_ino == os.stat(f"/proc/{parent}/ns/net").st_ino:
        return []
    return ["nsenter", "--target", parent, "--mount", "--net"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_sdist_builds_a_wheel_and_runs_unit_tests(tmp_path):
    """One test, because each build takes half a minute."""
    need(importlib.util.find_spec("build"), "build is missing", "make dev")
    top, out = checkout(tmp_path / "checkout"), tmp_path / "out"
    call(*outside(), sys.executable, "-I", "-m", "build", "--outdir", out, top)  # the wheel from the sdist
    version = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["version"]
    sdist, wheel = out / f"nsrun-{version}.tar.gz", out / f"nsrun-{version}-cp311-abi3-linux_{os.uname().machine}.whl"
    assert sorted(out.iterdir()) == sorted([sdist, wheel])

    # the sdist: everything that is in the checkout
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path)  # it is ours; Debian 12 has no filters
    unpacked = tmp_path / f"nsrun-{version}"
    for path in top.rglob("*"):
        name = path.relative_to(top)
        if path.is_file() and str(name) != ".gitignore" and not {"build", "__pycache__"} & {*name.parts}:
            assert (unpacked / name).is_file() or "egg-info" in str(name), f"{name} is not in the sdist: MANIFEST.in"

    # the wheel
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        script = f"nsrun-{version}.data/scripts/nsrun"
        assert [name for name in names if name.endswith(("/nsrun", "/nsrun-python"))] == [script, f"{script}-python"]
        assert archive.read(script).startswith(b"\x7fELF")
        metadata = archive.read(f"nsrun-{version}.dist-info/METADATA").decode()
    assert f"nsrun-{version}.dist-info/licenses/LICENSE" in names
    assert "License-Expression: Apache-2.0" in metadata
    for program in ("pause", "init", "monitor", "unpack", "door", "forward"):
        assert f"nsrun/libexec/nsrun-{program}" in names
    assert {"nsrun/py.typed", "nsrun/_kernel.abi3.so", "nsrun/host/_templates.py", "nsrun/seccomp/default.json"} <= {
        *names
    }
    pages = {path.name for path in (TOP / "docs/labs").glob("[0-9]*.md")}
    assert pages == {name.rpartition("/")[2] for name in names if name.startswith("nsrun/teach/labs/pages/")}
    assert not [name for name in names if name.startswith(("tests/", "csrc/"))]

    # installed by pip into another environment, with this one's libraries: -IS is there, and no site
    call(sys.executable, "-I", "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    site = pathlib.Path(call(python, "-I", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    for path in pathlib.Path(sysconfig.get_path("purelib")).iterdir():
        if "nsrun" not in path.name and path.suffix != ".pth" and path.name != "sitecustomize.py":
            (site / path.name).symlink_to(path)
    call(sys.executable, "-I", "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel)
    (site / "sitecustomize.py").write_text("import sys; print('site was imported', sys.flags)\n")
    (tmp_path / "link").symlink_to(tmp_path / "venv/bin/nsrun")
    for nsrun in (tmp_path / "venv/bin/nsrun", tmp_path / "link"):
        assert call(nsrun, "--version", env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(top)}) == f"nsrun {version}\n"
    (site / "sitecustomize.py").unlink()

    # unit tests of the sdist, with what was built from it
    chosen = ["tests/test_words.py", "tests/test_plan.py", "tests/test_layers.py", "tests/test_documents.py"]
    done = call(python, "-I", "-m", "pytest", "-m", "not live", "-p", "no:cacheprovider", f"--basetemp={tmp_path}/unit", *chosen, cwd=unpacked)  # fmt: skip
    assert re.search(r"^\d{2,} passed", done.splitlines()[-1]), done


def test_the_version_is_that_of_the_changelog():
    version = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["version"]
    headings = re.findall(r"^## \[(.+?)\]", (TOP / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == "Unreleased" and headings[1] == version


def test_a_manual_page_for_every_command_and_every_option():
    files = man.files()
    for command in COMMANDS:
        page = files[f"man/man1/nsrun-{command.name.replace(' ', '-')}.1"].replace("\\-", "-")
        for option in command.options:
            for flag in option.flags:
                assert f"\\fB{flag}\\fP" in page, (command.name, flag)
        assert f"nsrun-{command.name.replace(' ', '-')} (1)" in files["man/man1/nsrun.1"].replace("\\-", "-")
    for option in GLOBAL:
        assert option.flags[-1] in files["man/man1/nsrun.1"].replace("\\-", "-")
    page = files["man/man1/nsrun-oci.1"].replace("\\-", "-")
    assert all(name in page and all(f"--{option}" in page for option in options) for name, options in OCI.items())


def test_manual_pages_are_right_for_roff_and_for_whatis(tmp_path):
    need(shutil.which("groff") and shutil.which("lexgrog"), "groff or man-db is missing", ".ci/deps test")
    man.write(str(tmp_path))
    for page in (tmp_path / "man/man1").iterdir():
        done = subprocess.run(["groff", "-man", "-ww", "-Tutf8", page], capture_output=True, text=True, timeout=30, check=True)  # fmt: skip
        assert done.stderr == "", page.name
        assert re.match(rf"\S+: \"{page.stem} - ", call("lexgrog", page))
    text = re.sub("\x1b.*?m|.\b", "", subprocess.run(["groff", "-man", "-Tascii", tmp_path / "man/man1/nsrun-logs.1"], capture_output=True, text=True, timeout=30, check=True).stdout)  # fmt: skip
    assert "--tail N" in text and "nsrun logs -f --tail 20 mysql" in text


def test_completions_are_scripts_of_their_shells(tmp_path):
    man.write(str(tmp_path))
    call("bash", "-n", tmp_path / "bash-completion/completions/nsrun")
    files = man.files()
    assert files["zsh/site-functions/_nsrun"].startswith("#compdef nsrun\n")
    for shell, name in (("zsh", "zsh/site-functions/_nsrun"), ("fish", "fish/vendor_completions.d/nsrun.fish")):
        if shutil.which(shell):
            call(shell, "-n", tmp_path / name)


def test_uninstall_removes_what_install_made(tmp_path):
    man.write(str(tmp_path / "share"))
    (tmp_path / "share/man/man1/other.1").touch()
    (tmp_path / "lib/nsrun/bin").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/nsrun").symlink_to("../lib/nsrun/bin/nsrun")
    (tmp_path / "bin/nsrun-oci").symlink_to("../lib/nsrun/bin/nsrun-oci")
    call("make", "-s", "uninstall", f"PREFIX={tmp_path}", cwd=TOP)
    assert [p.name for p in tmp_path.rglob("*") if not p.is_dir()] == ["other.1"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_lintian_accepts_the_debian_package(tmp_path):
    """tests/fresh --deb installs it in a fresh root, too."""
    need(shutil.which("dpkg-shlibdeps") and shutil.which("lintian"), "dpkg-dev or lintian is missing", ".ci/deps test")
    call(*outside(), TOP / "packaging/deb", tmp_path)
    (package,) = tmp_path.iterdir()
    assert call("lintian", "--allow-root", "--fail-on", "error,warning", package) == ""
    names = call("dpkg-deb", "--contents", package)
    for name in (
        "usr/bin/nsrun ",
        "usr/bin/nsrun-oci ",
        "man1/nsrun-oci.1.gz",
        "usr/lib/nsrun/bin/nsrun",
        "man1/nsrun-join.1.gz",
        "completions/nsrun",
        "libexec/nsrun-door",
    ):
        assert name in names
    assert "/site-packages/pip" not in names and "__pycache__" not in names
