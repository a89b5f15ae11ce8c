# SPDX-License-Identifier: Apache-2.0
"""The layers of nsrun/, as its tree shows them: a module imports what is below it, and nothing above or around.

The graph is the real one: imports at the top, in functions and for types alone are all edges.
"""

from __future__ import annotations

import ast
import importlib
import os
import pathlib
import re
import subprocess
import sys

import pytest
from conftest import NSRUN

TOP = pathlib.Path(__file__).parent.parent / "nsrun"

#: From the ground up.  A name stands for a module, or for a package and all that is in it.
LAYERS = (
    ("errors", "_protocol", "linux", "types"),
    ("schema",),
    ("spec",),  # what a member and a pod are: pure
    ("kube",),  # the same as Kubernetes writes it: pure
    ("_kernel", "kernel"),  # the system calls
    ("host",),  # what else is asked of this machine
    ("state",),  # the notes, and who lives
    ("image",),
    ("seccomp",),
    ("plan",),  # what is to be done
    ("run",),  # and doing it
    ("lifecycle",),
    ("oci",),  # containers, for engines
    ("explain", "doctor", "teach"),
    ("cli",),
    ("library",),
    ("__init__", "__main__"),
)
#: These ask nothing of the machine, and need no build.
PURE = (
    "errors",
    "linux",
    "types",
    "schema",
    "spec",
    "kube",
    "cli.commands",
    "cli.parse",
    "cli.foreign",
    "oci.commands",
    "oci.config",
    "oci.resources",
    "image.documents",
    "image.references",
)

#: How many modules of nsrun a command loads at most, when the filter is compiled and nothing goes wrong.
MODULES_LOADED = {"pod create": 33, "join": 28, "exec": 25, "stop": 21, "pod kill": 19}


def module_of(path: pathlib.Path) -> str:
    name = ".".join(path.relative_to(TOP).with_suffix("").parts)
    return name.removesuffix(".__init__") if name != "__init__" else name


MODULES = {
    module_of(path): path for path in sorted(TOP.rglob("*.py")) if path.name not in ("_templates.py", "_protocol.py")
}


def for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports(name: str, types: bool = True) -> set[str]:
    """The modules of nsrun that a module imports, wherever in its text it does so; with `types`, also for annotations."""
    found = set()
    tree = ast.parse(MODULES[name].read_text())
    if not types:
        tree.body = [node for node in tree.body if not for_types_only(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "nsrun":
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                known = full.removeprefix("nsrun.")
                found.add(
                    known
                    if known in MODULES or known == "_kernel"
                    else (node.module or "").removeprefix("nsrun").lstrip(".")
                )
        elif isinstance(node, ast.Import):
            found |= {
                alias.name.removeprefix("nsrun").lstrip(".")
                for alias in node.names
                if alias.name.partition(".")[0] == "nsrun"
            }
    generated = {"host._templates": "host", "_protocol": "errors"}
    return {generated.get(module, module or "__init__") for module in found} - {name}


def layer(name: str) -> int:
    for number, names in enumerate(LAYERS):
        if name in names or name.partition(".")[0] in names:
            return number
    raise AssertionError(f"{name} is in no layer: LAYERS says where it belongs")


@pytest.mark.parametrize("name", MODULES)
def test_no_edge_goes_up(name):
    upward = {module for module in imports(name) if layer(module) > layer(name)}
    assert not upward, f"{name} imports {upward}, which are above it"


def test_no_circles():
    """A package's own module (its __init__) is one like the others."""
    left = {name: imports(name) for name in MODULES}
    while left:
        free = [name for name, needs in left.items() if not needs & left.keys()]
        assert free, f"a circle among {sorted(left)}: {left}"
        for name in free:
            del left[name]


def test_one_module_for_each_library():
    """pyroute2 stands in one place, and the extension in another."""
    for library, home in (("pyroute2", "host.messages"), ("prctl", "kernel")):
        users = {name for name, path in MODULES.items() if any(library in line.split() for line in imported(path))}
        assert users <= {home}, (library, users)
    assert {name for name in MODULES if "_kernel" in imports(name)} == {"kernel"}


def imported(path: pathlib.Path) -> list[str]:
    lines = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            lines += [alias.name.replace(".", " ") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            lines.append((node.module or "").replace(".", " "))
    return lines


def is_pure(name: str) -> bool:
    return name in PURE or name.partition(".")[0] in PURE


@pytest.mark.parametrize("name", [name for name in MODULES if is_pure(name)])
def test_the_pure_need_no_build_and_no_machine(name, tmp_path):
    """They are imported from a copy that has no extension, and open nothing."""
    needs, todo = set(), [name]
    while todo:
        module = todo.pop()
        if module not in needs:
            needs.add(module)
            todo += imports(module, types=False)
    assert "_kernel" not in needs, sorted(needs)
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            touches = called == "open" or called in {
                f"os.{call}" for call in ("open", "mkdir", "stat", "listdir", "unlink")
            }
            assert not touches or name == "schema", (name, node.lineno, called)
    copy = tmp_path / "nsrun"
    for path in TOP.rglob("*.py"):
        target = copy / path.relative_to(TOP)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    command = [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import nsrun.{name}"]
    subprocess.run(command, check=True, timeout=30, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})


def modules_of(host, *words: str) -> list[str]:
    """The modules of nsrun that a command loads."""
    command = [sys.executable, "-I", "-X", "importtime", f"{NSRUN}-python", *words]
    env = {**host.env, "NSRUN_REPLAY": "0"}  # a plan is left behind once, by a module of its own
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=True)
    names = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")]
    return sorted({name for name in names if name.partition(".")[0] == "nsrun"})


@pytest.mark.live
def test_how_many_modules_a_command_loads(host, pod, busybox):
    """Each one costs some 0.3 ms of every command.  An idea of its own deserves that only off the way to a member."""
    host.start("first", busybox, "sleep", "100")  # compiles the filter that the next one finds
    loaded = {
        "pod create": modules_of(host, "pod", "create", "--network", "none", "other"),
        "join": modules_of(host, "join", pod, "-d", "--name", "m", "--rootfs", busybox, "--", "sleep", "100"),
        "exec": modules_of(host, "exec", "m", "true"),
        "stop": modules_of(host, "stop", "-t", "0", "m"),
        "pod kill": modules_of(host, "pod", "kill", "other"),
    }
    assert loaded.keys() == MODULES_LOADED.keys()
    for name, modules in loaded.items():
        assert 10 < len(modules) <= MODULES_LOADED[name], (name, modules)


def test_what_the_bench_imports_is_there():
    """Its scripts for other processes are texts, which no linter reads."""
    text = (TOP.parent / "bench/run").read_text()
    found = re.findall(r"from (nsrun[\w.]*) import ([\w, ]+)", text)
    assert len(found) > 5
    for module, names in found:
        for name in names.split(","):
            known = f"{module}.{name.strip()}".removeprefix("nsrun.") in MODULES
            assert known or hasattr(importlib.import_module(module), name.strip()), (module, name)
