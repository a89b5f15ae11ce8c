# SPDX-License-Identifier: Apache-2.0
"""Words of docker's and podman's: each hint is of use, and names only what there is."""

import re

import pytest

from nsrun.cli import foreign
from nsrun.cli.commands import BY_NAME, GROUPS, parse
from nsrun.errors import UsageError

HINTS = [*foreign.COMMANDS.values(), *foreign.OPTIONS.values()]


def test_none_is_a_word_of_ours():
    assert not set(foreign.COMMANDS) & set(BY_NAME)
    for command, flag in foreign.OPTIONS:
        assert command in BY_NAME and not any(flag in option.flags for option in BY_NAME[command].options), (
            command,
            flag,
        )


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
    ("line", "word"),
    [
        ("container run x", "nsrun pod create"),
        ("container ls", "nsrun"),
        ("pod list", "nsrun pod ls"),
        ("join p --tty true", "--terminal"),
        ("kill -9 m", "-s 9"),
        ("logs -n 5 m", "--tail"),
        ("stop --timeout 3 m", "--time"),
    ],
)
def test_they_are_told(line, word):
    with pytest.raises(UsageError) as caught:
        parse(line.split())
    assert word in caught.value.hint
