# SPDX-License-Identifier: Apache-2.0
"""What people are used to from docker and podman: command lines, and what the kernel must show.

Each *.txt beside this file is a list of habits, easy to add to.  A habit begins with `# TITLE`; its lines are

    $ COMMAND        run by sh on a host with the pod `p` (no network) and the busybox root $R, one after the other
    OUTPUT           what the last command prints, standard error too; … stands for anything
    → STATUS         its exit status, when that is not 0

`pid MEMBER` prints a member's pid on the host, `pause` that of the pod's pause.
"""

import pathlib
import re
import subprocess

import pytest
from conftest import NSRUN

HERE = pathlib.Path(__file__).parent
PRELUDE = f"""
PATH={pathlib.Path(NSRUN).parent}:$PATH
pid() {{ nsrun inspect "$1" | sed -n 's/^    "pid": \\([0-9]*\\).*/\\1/p'; }}
pause() {{ nsrun pod inspect p | sed -n 's/^    "pid": \\([0-9]*\\).*/\\1/p'; }}
cd "$WORK"
"""


def habits() -> list:
    found = []
    for file in sorted(HERE.glob("*.txt")):
        for block in re.split(r"^# ", file.read_text(), flags=re.M)[1:]:
            title, _, lines = block.partition("\n")
            found.append(pytest.param(lines.rstrip(), id=f"{file.stem}: {title.strip()}"))
    return found


def commands(lines: str) -> list[tuple[str, str, int]]:
    """(command, output, status) …"""
    found = []
    for block in re.split(r"^\$ ", lines, flags=re.M)[1:]:
        command, _, rest = block.partition("\n")
        output, arrow, status = rest.partition("→ ")
        found.append((command, output.strip(), int(status) if arrow else 0))
    return found


@pytest.mark.parametrize("lines", habits())
def test_habit(host, busybox, tmp_path, lines):
    host.run("pod", "create", "--network", "none", "p")
    env = {**host.env, "R": busybox, "WORK": str(tmp_path)}
    for command, output, status in commands(lines):

        def try_it(command=command) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                ["sh", "-c", PRELUDE + command], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, errors="replace"
            )  # fmt: skip

        done = try_it()
        pattern = ".*".join(re.escape(part) for part in output.split("…"))
        assert done.returncode == status, f"$ {command}\n{done.stdout}→ {done.returncode}"
        assert re.fullmatch(pattern, done.stdout.strip(), re.S), f"$ {command}\n{done.stdout}"
