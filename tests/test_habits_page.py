# SPDX-License-Identifier: Apache-2.0
"""docs/habits.md: each row names a command, and options, that there are; and no verb or option of theirs is without a row."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from conftest import HERE

from nsrun.cli.commands import BY_NAME, COMMANDS, GROUPS
from nsrun.cli.foreign import instead_of_command, instead_of_option

PAGE = (HERE.parent / "docs/habits.md").read_text()


def rows(text: str = PAGE) -> dict[str, list[tuple[list[str], str]]]:
    """Title of a table → (what is typed, what nsrun has) of each of its rows."""
    found: dict[str, list[tuple[list[str], str]]] = {}
    for title, body in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", text, re.M | re.S):
        lines = [line for line in body.splitlines() if line.startswith("| ")][1:]
        cells = [re.fullmatch(r"\| (.*?) \| (.*) \|", line) for line in lines]
        assert all(cells), title
        found[title.replace("`", "")] = [(re.findall(r"`([^`]*)`", cell[1]), cell[2]) for cell in cells if cell]
    return found


def wrong(answer: str) -> str:
    """What is wrong with the second cell of a row: a command or an option that we do not have, or no reason; "" if nothing."""
    named = 0
    for code in re.findall(r"`([^`]*)`", answer):
        words = code.split()
        if words[:2] in (["docker", "run"], ["podman", "pod"]):
            continue  # another row
        if words[0] == "help":
            words = words[1:] or ["help"]
        name = next((name for name in (" ".join(words[:2]), words[0]) if name in BY_NAME), "")
        if not name:
            return f"{code}: no command of ours"
        named += 1
        flags = {flag for option in BY_NAME[name].options for flag in option.flags}
        for word in words[len(name.split()) :]:
            if word.startswith("-") and word != "-" and word not in flags:
                return f"{code}: {name} has no option {word}"
    if answer.startswith("no: "):
        return "" if len(answer) > 10 else "no reason"
    return "" if named else "neither a command of ours nor a reason"


@pytest.mark.parametrize("title", rows())
def test_what_a_row_names_is_there(title):
    assert len(rows()[title]) > 10
    for typed, answer in rows()[title]:
        assert typed and not wrong(answer), (typed, wrong(answer))


def unanswered(typed: str, table: str) -> str:
    """What of a first cell is neither ours nor answered with a hint; "" if nothing."""
    words = ["docker", "run", typed] if table == "docker run" else typed.split()
    flags, words = [w for w in words[1:] if w.startswith("-")], [w for w in words[1:] if not w.startswith("-")]
    name = " ".join(words)
    if name not in BY_NAME:
        heads = (name,) if words[0] in GROUPS else (name, words[0])
        return "" if name in GROUPS or any(instead_of_command(head, [], BY_NAME) for head in heads) else typed
    ours = {"-h", "--help", *(flag for option in BY_NAME[name].options for flag in option.flags)}
    return "" if all(flag in ours or instead_of_option(name, flag, BY_NAME) for flag in flags) else typed


def test_each_row_is_answered_when_it_is_typed():
    wanting = [
        word for table, cells in rows().items() for typed, _ in cells for word in typed if unanswered(word, table)
    ]
    assert not wanting
    assert unanswered("docker nix", "docker") and unanswered("--nix", "docker run")
    assert unanswered("podman pod stop --nix", "The options of podman pod")


def test_no_row_twice():
    for title, table in rows().items():
        typed = [one for words, _ in table for one in words]
        assert len(typed) == len(set(typed)), (title, [one for one in typed if typed.count(one) > 1])


@pytest.mark.parametrize("answer", ["`joyn --rm`", "`join --nope`", "`pod create -Z`", "somehow", "no: x", "`pod`"])
def test_a_wrong_row_would_be_found(answer):
    assert wrong(answer)


def test_every_daily_verb_of_ours_is_named():
    """What has no counterpart elsewhere needs none."""
    told = {name for table in rows().values() for _, answer in table for name in BY_NAME if re.search(rf"`(help )?{name}\b", answer)}  # fmt: skip
    own = {"explain", "map", "completion", "image unpack", "ns", "lab"}
    missing = {command.name for command in COMMANDS} - told
    assert {name for name in missing if name not in own and name.split()[0] not in own} == set()


def words_of(*command: str) -> str:
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is missing; to enable: apt-get install {command[0]}")
    return subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=60, check=True).stdout


def flags_of(*command: str) -> list[list[str]]:
    found = re.findall(r"^ +(?:(-\w), )?(--[a-z0-9-]+)", words_of(*command), re.M)
    assert found, command
    return [list(filter(None, pair)) for pair in found]


def verbs_of(*command: str) -> set[str]:
    """The subcommands, which are indented by two blanks, some marked with a star."""
    text = words_of(*command).partition("Commands:\n")[2]
    return set(re.findall(r"^  ([a-z]+)[ *]", text, re.M))


def test_no_option_of_docker_run_is_missing():
    typed = [words for words, _ in rows()["docker run"]]
    for flags in flags_of("docker", "run"):
        assert flags in typed, flags


def test_no_verb_of_docker_is_missing():
    typed = {words[0].removeprefix("docker ") for words, _ in rows()["docker"]}
    verbs = verbs_of("docker")
    assert len(verbs) > 30 and verbs <= typed, verbs - typed


def test_no_verb_and_no_option_of_podman_pod_is_missing():
    typed = {words[0].removeprefix("podman pod ") for words, _ in rows()["podman pod"]}
    verbs = verbs_of("podman", "pod") - {"pod"}
    assert len(verbs) > 10 and verbs <= typed, verbs - typed
    options = {words[0].removeprefix("podman pod ") for words, _ in rows()["The options of podman pod"]}
    for verb in verbs - {"clone", "exists"}:  # clone stays out, whatever its options are
        text = words_of("podman", "pod", verb)
        for flag in re.findall(r"^ +(?:-\w, )?(--[a-z0-9-]+)", text, re.M):
            assert f"{verb} {flag}" in options, (verb, flag)
