"""What is written about nsrun is checked against nsrun."""

import pathlib
import re
import shlex
import subprocess

from conftest import HERE, NSRUN, UserHost, need, sh

from nsrun.cli import _handler, text
from nsrun.cli.commands import BY_NAME, COMMANDS, parse

TOP = HERE.parent


def test_cli_md_is_generated():
    assert (TOP / "docs/cli.md").read_text() == text.manual(), "make docs"


def test_every_command_has_a_handler_an_example_and_help():
    assert len(COMMANDS) == len(BY_NAME)
    for command in COMMANDS:
        assert callable(_handler(command.name))
        words = shlex.split(command.example.split(">")[0])
        words = words[words.index("nsrun") + 1 :]
        assert parse(words)[1] is command, command.example
        assert command.example in text.command_help(command)
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
    for file in [TOP / "README.md", TOP / "SECURITY.md", *(TOP / "docs").glob("*.md")]:
        body = file.read_text()
        for target in re.findall(r"`make ([a-z-]+)", body) + re.findall(r"^make ([a-z-]+)", body, re.M):
            assert target in targets, (file.name, target)
        if file.name == "cli.md":
            continue
        blocks = "\n".join(re.findall(r"^```\n(.*?)^```", body, re.M | re.S))
        for line in re.findall(r"^(?:sudo )?nsrun (.+)$", blocks.replace("\\\n", " "), re.M):
            line = re.split(r"\s+[#>]|\s*;\s|\s&&\s", line)[0].replace("…", "x")
            parse(shlex.split(line))


def test_completion():
    assert "pod" in text.candidates(["p"]) and "create" in text.candidates(["pod", ""])
    assert text.candidates(["pod", "create", "--netw"]) == ["--network"]
    assert text.candidates(["pod", "create", "--network", ""]) == ["bridge", "none", "host"]
    assert text.candidates(["join", "--roo"]) == ["--rootfs"]
    assert text.candidates(["join", "pod", "cmd", ""]) == []
    assert text.candidates(["explain", "pod", "cr"]) == ["create"]
    for shell in ("bash", "zsh", "fish"):
        assert "_complete" in sh(NSRUN, "completion", shell).stdout
    assert sh(NSRUN, "completion", "tcsh", check=False).returncode == 2


def test_completion_of_names(host, pod, busybox):
    host.start("mymember", busybox, "sleep", "100")
    assert host.run("_complete", "exec", "my").stdout == "mymember\n"
    assert host.run("_complete", "pod", "kill", "pa").stdout == "pause\n"
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
    for name in ("pause", "init", "monitor", "unpack", "door"):
        sh("aarch64-linux-gnu-gcc", *flags, "-o", tmp_path / name, TOP / f"csrc/{name}.c", timeout=60)
    qemu = ["qemu-aarch64-static"]
    assert sh(*qemu, tmp_path / "pause", "-v").stdout.startswith("nsrun-pause")
    native = sh(pathlib.Path(text.__file__).parent.parent / "libexec/nsrun-init", "--ops").stdout
    assert sh(*qemu, tmp_path / "init", "--ops").stdout == native
    for name in ("monitor", "unpack", "door"):
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
        "aarch64-linux-gnu-gcc",
        "-fsyntax-only",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unused-function",
        TOP / "csrc/kernel.c",
        timeout=60,
    )
