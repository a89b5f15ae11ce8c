# SPDX-License-Identifier: Apache-2.0
"""What is written about nsrun is checked against nsrun."""

import ast
import pathlib
import re
import shlex
import subprocess

from conftest import HERE, NSRUN, UserHost, need, sh

from nsrun.cli import completion, foreign, help
from nsrun.cli.commands import BY_NAME, COMMANDS, function, parse

TOP = HERE.parent
#: What people wrote: docs/cli.md is generated.
DOCS = [
    file
    for file in (TOP / "README.md", TOP / "SECURITY.md", *sorted((TOP / "docs").rglob("*.md")))
    if file.name != "cli.md"
]


def test_cli_md_is_generated():
    assert (TOP / "docs/cli.md").read_text() == help.manual(), "make docs"


def test_every_command_has_a_handler_an_example_and_help():
    assert len(COMMANDS) == len(BY_NAME)
    for command in COMMANDS:
        assert callable(function(command.handler))
        words = shlex.split(command.example.split(">")[0])
        words = words[words.index("nsrun") + 1 :]
        assert parse(words).command is command, command.example
        assert command.example in help.command_help(command)
        for option in command.options:
            assert option.help


def test_help_and_version():
    assert "usage: nsrun" in sh(NSRUN, "--help").stdout
    assert sh(NSRUN, "help", "pod", "create").stdout == sh(NSRUN, "pod", "create", "--help").stdout
    assert re.match(r"nsrun \d", sh(NSRUN, "--version").stdout)
    assert "create" in sh(NSRUN, "pod", "--help").stdout
    assert sh(NSRUN, check=False).returncode == 2


def test_readme_commands_exist():
    """Every `make X` and every nsrun command line in the README and docs is one that exists."""
    targets = set(re.findall(r"^([a-z-]+):", (TOP / "Makefile").read_text(), re.M))
    for file in [*DOCS, TOP / "docs/cli.md"]:
        body = file.read_text()
        for target in re.findall(r"`make ([a-z-]+)", body) + re.findall(r"^make ([a-z-]+)", body, re.M):
            assert target in targets, (file.name, target)
        if file not in DOCS:
            continue
        blocks = "\n".join(re.findall(r"^```\n(.*?)^```", body, re.M | re.S))
        for line in re.findall(r"^(?:sudo )?nsrun (.+)$", blocks.replace("\\\n", " "), re.M):
            line = re.split(r"\s+[#>]|\s*;\s|\s&&\s", line)[0].replace("…", "x")
            parse(shlex.split(line))


#: Turns of phrase that a reader who comes to this project for the first time stumbles over.
DIALECT = (
    r"\b(she|her|hers|herself|he|him|his|himself)\b",  # they, their
    r"\bof root's\b(?! own \w|\s+(?!own\b)\w)",  # root's key, or one of root's keys
    r"\b(is|are) none\b",  # there is no such thing; it is not one
    r"\bwhat is no\b",
    r"\b(of|for|from|by) who\b",  # of the process that asks
    r"\bforg(et|ets|ot|etting)\b",  # remove
    r"\bwords of (the|a|its) (command|option)",  # options and arguments
)


def prose(file: pathlib.Path) -> list[tuple[int, str]]:
    """The lines of a page that are neither code nor rows of a table, without what is quoted as code."""
    lines, code = [], False
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if line.lstrip().startswith("```"):
            code = not code
        elif not code and not line.startswith("|"):
            lines.append((number, line))
    assert not code, f"{file.name}: a code block that never ends"
    return lines


def test_prose_is_wrapped_at_100_columns():
    """A line may be longer only if it can't be broken: one long link or command."""
    for file in DOCS:
        for number, line in prose(file):
            words = re.sub(r"`[^`]*`", lambda code: code[0].replace(" ", "_"), line.strip(" -*")).split()
            assert len(line) <= 100 or len(words) == 1, (file.name, number, line)


def test_prose_is_plain_english():
    """Also in tables; what is quoted as code, and the names of tests, are none of its business."""
    for file in DOCS:
        text = re.sub(r"```.*?```|`[^`]*`|\btest_\w+", " ", file.read_text(), flags=re.S)
        for pattern in DIALECT:
            found = re.search(rf".*{pattern}.*", text, re.I)
            assert not found, (file.name, pattern, found[0])


def test_help_and_hints_are_plain_english():
    for text in (help.manual(), *foreign.COMMANDS.values(), *(h for hints in foreign.OPTIONS.values() for h in hints.values())):  # fmt: skip
        for pattern in (*DIALECT, r"\bwords?\b"):
            assert not (found := re.search(rf".*{pattern}.*", text, re.I)), (pattern, found[0])


def test_the_check_of_prose_finds_what_it_is_for():
    for bad in ("only she reaches it", "a key of root's, too", "it is none", "for who called sudo", "forget it"):
        assert any(re.search(pattern, bad, re.I) for pattern in DIALECT), bad


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_links_lead_somewhere():
    """Every relative link of a page is a file of the repository, and every #part of it a heading."""
    for file in DOCS:
        for target in re.findall(r"\]\(([^)\s]+)\)", file.read_text()):
            if target.startswith(("http:", "https:", "mailto:")):
                continue
            path, _, part = target.partition("#")
            page = (file.parent / path).resolve() if path else file
            assert page.exists() and page.is_relative_to(TOP), (file.name, target)
            if part:
                headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
                assert part in [slug(heading) for heading in headings], (file.name, target)


def test_files_that_pages_name():
    """A path below one of our directories leads to a file; a bare name of a source file is one that there is."""
    sources = {path.name for top in ("nsrun", "csrc", "tests", "bench") for path in (TOP / top).rglob("*.*")}
    sources |= {path.name for path in TOP.glob("*.*")}
    made = {line.strip("/") for line in (TOP / ".gitignore").read_text().splitlines()}  # by the build
    sources |= {path.rpartition("/")[2] for path in made}
    found = 0
    for file in DOCS:
        text = file.read_text()
        for path in re.findall(r"(?<![\w/.-])(?:nsrun|csrc|tests|docs|bench|rootfs)/[\w./-]*\w", text):
            found += 1
            assert (TOP / path).exists() or path in made, (file.name, path)
        for name in re.findall(r"(?<![\w.-])\w+\.(?:py|c|h)\b", text):
            assert name in sources, (file.name, name)
    assert found


def defined_names() -> set[str]:
    """Classes, functions, methods and constants of nsrun, and functions of the C programs."""
    names = set()
    for path in (*(TOP / "nsrun").rglob("*.py"), *HERE.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
    for path in (*(TOP / "csrc").glob("*.c"), *(TOP / "csrc").glob("*.h")):
        for line in re.findall(r"^[a-z_].*", path.read_text(), re.M):
            names |= set(re.findall(r"\b(\w+)\(", line))
    return names


def test_decisions():
    """A page each, numbered without a gap, in the index, with every part; the code that it names is there."""
    pages = sorted((TOP / "docs/decisions").glob("0*.md"))
    index = (TOP / "docs/decisions/README.md").read_text()
    known = defined_names()
    for number, page in enumerate(pages, 1):
        body = page.read_text()
        assert page.name.startswith(f"{number:04}-") and body.startswith(f"# {number}. "), page.name
        title = body.splitlines()[0].partition(". ")[2]
        assert f"[{number:04}: {title}]({page.name})" in re.sub(r"\s+", " ", index), page.name
        assert re.search(r"^Date: 20\d\d-\d\d-\d\d\b", body, re.M), page.name
        parts = dict(re.findall(r"^## (.+?)\n\n(.*?)(?=^## |\Z)", body, re.M | re.S))
        assert list(parts) == ["Context", "Decision", "Alternatives", "Measured cost", "Code"], page.name
        code = parts["Code"]
        named = re.findall(r"`([A-Za-z_][\w.]*)`", code)
        files = re.findall(r"(?<![\w/.`])(?:nsrun|csrc|tests)/[\w/.-]*\w", code)
        assert named or files, page.name
        for name in named:
            assert name in known, (page.name, name)
        for path in files:
            assert (TOP / path).exists(), (page.name, path)


def test_rules_that_comments_refer_to():
    """`threats R1` in a comment is a rule of docs/threats.md; the rules are numbered without a gap."""
    rules = re.findall(r"^- \*\*R(\d+)[:\b]", (TOP / "docs/threats.md").read_text(), re.M)
    assert rules == [str(number) for number in range(1, len(rules) + 1)]
    used = set()
    for path in [*(TOP / "nsrun").rglob("*.py"), *(TOP / "csrc").glob("*.[ch]"), *HERE.rglob("*.py")]:
        body = path.read_text(errors="replace")
        for found in re.findall(r"\bthreats (R\d+(?:, R\d+)*)", body):
            for number in re.findall(r"\d+", found):
                used.add(number)
                assert number in rules, (path.name, f"threats R{number}")
        assert not re.search(r'"""R\d+\b', body), f"{path.name}: say `threats R…`"
    assert used, "no comment refers to a rule"


def test_completion():
    assert "pod" in completion.candidates(["p"]) and "create" in completion.candidates(["pod", ""])
    assert completion.candidates(["pod", "create", "--netw"]) == ["--network"]
    assert completion.candidates(["pod", "create", "--network", ""]) == ["bridge", "pasta", "none", "host"]
    assert completion.candidates(["join", "--roo"]) == ["--rootfs"]
    assert completion.candidates(["join", "pod", "cmd", ""]) == []
    assert completion.candidates(["explain", "pod", "cr"]) == ["create"]
    planned = completion.candidates(["explain", ""])
    assert {"join", "pod", "image"} <= set(planned) and not {"ls", "inspect", "lab", "map"} & set(planned)
    assert "ls" not in completion.candidates(["explain", "pod", ""])
    for shell in ("bash", "zsh", "fish"):
        assert "_complete" in sh(NSRUN, "completion", shell).stdout
    assert sh(NSRUN, "completion", "tcsh", check=False).returncode == 2


def test_completion_of_names(host, pod, busybox):
    host.start("mymember", busybox, "sleep", "100")
    assert host.run("_complete", "exec", "my").stdout == "mymember\n"
    assert host.run("_complete", "pod", "kill", "pa").stdout == "pause\n"
    for line, want in {
        "--format ''": "text",
        "--form": "--format",
        "--format json join pause --net h": "host",
        "pod k": "kill",
    }.items():
        assert host.run(f"_complete explain {line}").stdout.split()[0] == want, line
    script = host.run("completion", "bash").stdout
    line = f'{script}\nnsrun() {{ {NSRUN} "$@"; }}\nCOMP_WORDS=(nsrun exec my); COMP_CWORD=2; _nsrun; echo "${{COMPREPLY[@]}}"'
    assert sh("bash", "-c", line, env=host.env).stdout.strip() == "mymember"


def test_doctor(host):
    done = host.run("doctor", check=False)
    assert done.returncode in (0, 1) and "namespaces" in done.stdout and "published ports" in done.stdout
    rows = host.json("doctor")
    assert {r["status"] for r in rows} <= {"ok", "limited", "missing"}
    assert all(r["fix"] for r in rows if r["status"] != "ok")
    assert not [r for r in rows if r["status"] == "missing"], rows


def test_doctor_for_an_ordinary_user(host, alice, bob):
    """What she needs, found in a user namespace of hers; who has no ids is told how to get some."""
    done = alice.run("doctor", check=False)
    assert done.returncode == 0, done.stdout
    rows = {row["what"]: row for row in alice.json("doctor")}
    assert rows["subordinate ids"]["detail"] == "alice: 65537 ids in a pod" and rows["without root"]["status"] == "ok"
    assert rows["overlay"]["status"] == rows["detached mounts"]["status"] == rows["seccomp"]["status"] == "ok"
    carol = UserHost(host, "carol")
    done = carol.run("doctor", check=False)
    assert done.returncode == 1 and "usermod --add-subuids" in done.stdout


def test_doctor_names_a_firewall_that_drops(host):
    """netavark#977."""
    sh(
        "nft",
        "add table ip otherfw; add chain ip otherfw FORWARD { type filter hook forward priority 0; policy drop; }",
    )
    try:
        out = host.run("doctor").stdout
        assert "ip otherfw FORWARD" in out and "to get it" in out
        done = host.run("pod", "create", "-p", "127.0.0.1:20950:80", "x")
        assert "otherfw" in done.stderr, "pod create says so too"
    finally:
        sh("nft", "delete", "table", "ip", "otherfw")


def test_programs_for_aarch64(tmp_path):
    """Cross-compiled, and run under qemu-user: pause, and the decoder of nsrun-init."""
    import os
    import shutil
    import sys

    need(
        shutil.which("aarch64-linux-gnu-gcc") and shutil.which("qemu-aarch64-static"),
        "no cross compiler or qemu-user",
        "apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static",
    )
    sys.path.insert(0, str(TOP))
    flags = re.search(r"FLAGS = \(\n(.*?)\)\.split", (TOP / "setup.py").read_text(), re.S).group(1)
    flags = " ".join(re.findall(r'"(.*?)"', flags)).split()
    for name in ("pause", "init", "monitor", "unpack", "door", "forward"):
        sh("aarch64-linux-gnu-gcc", *flags, "-o", tmp_path / name, TOP / f"csrc/{name}.c", timeout=60)
    qemu = ["qemu-aarch64-static"]
    assert sh(*qemu, tmp_path / "pause", "-v").stdout.startswith("nsrun-pause")
    native = sh(pathlib.Path(help.__file__).parent.parent / "libexec/nsrun-init", "--ops").stdout
    assert sh(*qemu, tmp_path / "init", "--ops").stdout == native
    for name in ("monitor", "unpack", "door", "forward"):
        assert sh(*qemu, tmp_path / name, check=False).returncode == 2
    read, write = os.pipe()
    pause = subprocess.Popen([*qemu, str(tmp_path / "pause"), str(write)], pass_fds=[write], stderr=subprocess.PIPE)
    try:
        os.close(write)
        assert os.read(read, 1) == b"R"
        pause.terminate()
        assert pause.wait(timeout=30) == 0
    finally:
        pause.kill()
        pause.stderr.close()
        os.close(read)
    sh(
        "aarch64-linux-gnu-gcc -fsyntax-only -Wall -Wextra -Werror -Wno-unused-function {}",
        TOP / "csrc/kernel.c",
        timeout=60,
    )
