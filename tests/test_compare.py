# SPDX-License-Identifier: Apache-2.0
"""`nsrun explain --compare`: the words of other tools are theirs, and every option of ours has an answer."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess

import pytest
from conftest import NSRUN, need, sh

from nsrun.cli.commands import BY_NAME, COMMANDS
from nsrun.teach import compare

PLANNED = [command for command in COMMANDS if command.plan]


def said(tool: str, line: str) -> tuple[str, dict[str, str]]:
    """The command line of the other tool, and what is said to each option."""
    lines = sh(NSRUN, "explain", "--compare", tool, *shlex.split(line)).stdout.splitlines()
    assert lines[0] == f"nsrun:    nsrun {line}"
    rows = dict(re.split(r"  +", row.strip(), maxsplit=1) for row in lines[2:] if row.startswith("  "))
    return lines[1].removeprefix(f"{tool}:").strip(), rows


def test_every_option_of_every_plan_has_an_answer():
    """An option that is added to the table has to be compared, too; and so has a value of a closed set."""
    assert compare.COMMANDS.keys() == {command.name for command in PLANNED}
    for command in PLANNED:
        answers = compare.OPTIONS.get(command.name, {})
        assert answers.keys() == {option.key for option in command.options}, command.name
        for option in command.options:
            for entry in answers[option.key]:
                if isinstance(entry, dict):
                    values = {*option.value.split("|"), *option.also}
                    assert entry.keys() == values, (command.name, option.key)
                for key, one in (entry if isinstance(entry, dict) else {"VALUE": entry}).items():
                    assert re.match(r"(-|none$|none: |field |default|argument$)", one), one
                    assert not one.startswith("-") or ("{}" in one) == (bool(option.value) and key.isupper())


def used(tool: int) -> set[tuple[str, str]]:
    """Every (subcommand, flag) of a tool that the tables name."""
    found = set()
    for name, commands in compare.COMMANDS.items():
        head = commands[tool][0].split()
        words = [word for word in head[1:] if not word.startswith(("-", "{")) and word.islower()]
        subcommand = " ".join(
            words[: 2 if words[:1] in (["pod"], ["container"], ["image"], ["volume"], ["network"]) else 1]
        )
        entries = [entry[tool] for entry in compare.OPTIONS.get(name, {}).values()]
        templates = [t for e in entries for t in (e.values() if isinstance(e, dict) else [e])] if head else []
        for text in (commands[tool][0], *(t for t in templates if t.startswith("-"))):
            found |= {(subcommand, word.partition("=")[0]) for word in text.split() if word.startswith("-")}
    return found


#: Newer than the oldest version that the tables are right for, or than the one of Debian 12.
NEWER = {("load", "--platform")}


@pytest.mark.parametrize("tool", compare.TOOLS)
def test_the_tools_have_these_words(tool):
    """By their own --help; which needs no daemon and no cluster."""
    need(shutil.which(tool) or tool != "podman", f"{tool} is missing", f"apt-get install {tool}")
    if not shutil.which(tool):
        pytest.skip(f"{tool} is missing; to enable: install it")
    wanted = used(compare.TOOLS.index(tool)) - NEWER
    assert len(wanted) > 10
    helps: dict[str, str] = {}
    for subcommand, flag in sorted(wanted):
        if subcommand not in helps:
            words = [tool, *subcommand.split(), "--help"]
            helps[subcommand] = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout
        assert re.search(rf"(^|[\s,]){re.escape(flag)}[\s,=]", helps[subcommand]), (tool, subcommand, flag)


def test_a_word_that_no_tool_has_would_be_found():
    assert ("run", "--network") in used(0) and ("pod create", "--share") in used(1) and ("debug", "--image") in used(2)


def test_pod_create():
    line = "pod create -p 8080:80 --hostname 'a b' --pids-limit 100 web"
    docker, rows = said("docker", line)
    assert (
        docker
        == "docker run --detach --name web --ipc shareable --publish 8080:80 --hostname 'a b' --pids-limit 100 IMAGE"
    )
    assert rows["--hostname 'a b'"] == "--hostname 'a b'"
    podman, rows = said("podman", line)
    assert podman == "podman pod create --name web --share ipc,net,uts,pid --publish 8080:80 --hostname 'a b'"
    assert rows["--pids-limit 100"].startswith("(none: ")
    kubectl, rows = said("kubectl", line)
    assert kubectl == "kubectl apply --filename web.yaml"
    assert rows["--hostname 'a b'"] == "(field spec.hostname)" and rows["--publish 8080:80"].startswith("(none: ")


def test_join_says_what_is_shared():
    """What nsrun shares without being asked is said where another tool has to be asked for it."""
    docker, rows = said("docker", "join web --image m:8 -e 'A={0}' --pid own -- sh -c 'echo {command}'")
    assert docker == "docker run --network container:web --ipc container:web --env 'A={0}' m:8 sh -c 'echo {command}'"
    assert rows["--net pod (default)"] == "--network container:web" and rows["--pid own"] == "(default)"
    docker, _ = said("docker", "join web --image m --net own --ipc own")
    assert docker == "docker run --network none --ipc private --pid container:web m"
    assert said("podman", "join web --rootfs /r true")[0] == "podman run --pod web --rootfs /r:O true"
    assert said("podman", "join web --rootfs /r --writable true")[0] == "podman run --pod web --rootfs /r true"
    kubectl, rows = said("kubectl", "join web --image m --name db -v /a:/b -- sh -c x")
    assert kubectl == "kubectl debug web --image m --container db -- sh -c x"
    assert rows["--volume /a:/b"].startswith("(field ")


def test_what_another_tool_does_not_have():
    assert said("kubectl", "stop -t 3 a b")[0] == "(it has no such command)"
    assert said("docker", "stop -t 3 a b")[0] == "docker stop -t 3 a b"
    assert said("docker", "pod stop p")[0] == "(it has no such command)"
    assert said("docker", "image load -")[0] == "docker load"
    assert said("docker", "image load x.tar")[0] == "docker load --input x.tar"


@pytest.mark.parametrize("command", PLANNED, ids=lambda command: command.name)
def test_every_plan_can_be_compared(command):
    words = command.example.split()
    line = words[words.index("nsrun") + 1 :]
    for tool in compare.TOOLS:
        out = sh(NSRUN, "explain", "--compare", tool, *line).stdout
        assert out.startswith("nsrun:") and "{" not in out


def test_bad_input():
    for words in (
        ["--compare", "rkt", "pod", "create"],
        ["--compare", "docker", "pod", "ls"],
        ["--compare", "docker"],
        ["--compare", "docker", "join", "--no-such", "x"],
        ["--compare", "docker", "--format", "json", "pod", "create"],
        ["--compare", "docker", "--step", "pod", "create"],
    ):
        done = sh(NSRUN, "explain", *words, check=False)
        assert done.returncode == 2 and done.stderr.startswith("nsrun: ") and not done.stdout, words
    assert BY_NAME["explain"]
