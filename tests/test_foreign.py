# SPDX-License-Identifier: Apache-2.0
"""Commands and options of docker and podman: each hint is of use, and names only what there is."""

import re

import pytest

from nsrun.cli import foreign
from nsrun.cli.commands import BY_NAME, GROUPS, parse
from nsrun.errors import UsageError

FLAGS = [(c, flag, hint) for c, hints in foreign.OPTIONS.items() for flags, hint in hints.items() for flag in flags.split(", ")]  # fmt: skip
HINTS = [*foreign.COMMANDS.values(), *(hint for _, _, hint in FLAGS)]


def test_they_are_not_ours():
    assert not set(foreign.COMMANDS) & set(BY_NAME)
    for command, flag, hint in FLAGS:
        assert not any(flag in option.flags for option in BY_NAME[command].options), (command, flag)
        assert foreign.instead_of_option(command, flag, BY_NAME) == hint, "given once"


@pytest.mark.parametrize("hint", sorted(set(HINTS)))
def test_what_a_hint_names_exists(hint):
    """`nsrun X Y --flag` in a hint is a command that is parsed, and a flag of it."""
    for words in re.findall(r"nsrun ((?:[a-z]+ ?)+)((?: -[^ ;,)]+)*)", hint):
        name = words[0].split()
        found = " ".join(name[:2]) if name[0] in GROUPS else name[0]
        if found in ("can", "is"):
            continue
        assert found in BY_NAME, (hint, found)
        for flag in words[1].split():
            assert any(flag in option.flags for option in BY_NAME[found].options), (hint, found, flag)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("container run x", "nsrun run"),
        ("container create x", "nsrun pod create"),
        ("run --net host x", "--network"),
        ("run --privileged x", "--cap-add ALL"),
        ("container ls", "nsrun ls"),
        ("pod list", "nsrun pod ls"),
        ("join p --tty true", "--terminal"),
        ("kill -9 m", "-s 9"),
        ("logs -n 5 m", "--tail"),
        ("stop --timeout 3 m", "--time"),
        ("kill -KILL m", "-s KILL"),
        ("top m -ef", "nsrun exec"),
        ("pod ps", "nsrun pod ls"),
        ("pod ps --format x", "nsrun pod ls"),
        ("join p --mtu 9000 x", "nsrun pod create --mtu"),
        ("join p -p 80:80 x", "nsrun pod create -p"),
        ("pod create --device /dev/fuse", "nsrun join --device"),
        ("pod create -v a:/b", "nsrun join -v"),
        ("pod stop --latest", "nsrun pod ls"),
        ("logs -l", "names are given: nsrun ls"),
        ("explain --shell ls", "--format shell"),
        ("--latest ls", "nsrun --help"),
        ("events --since 1m", "--all"),
        ("run --rm=true x", "--rm by itself"),
        ("run -d=true x", "-d by itself"),
    ],
)
def test_they_are_hinted_at(line, says):
    with pytest.raises(UsageError) as caught:
        parse(line.split())
    assert says in caught.value.hint


def test_two_dashes_stand_before_all_that_is_no_option():
    call = parse(["exec", "-i", "--", "m", "ls", "--", "-l"])
    assert (call.operands, call.rest) == (["m"], ["ls", "--", "-l"])
    call = parse(["exec", "m", "--", "ls", "-l"])
    assert (call.operands, call.rest) == (["m"], ["ls", "-l"])
    assert parse(["join", "p", "--", "ls", "-l"]).rest == ["ls", "-l"]
