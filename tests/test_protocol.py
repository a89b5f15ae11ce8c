# SPDX-License-Identifier: Apache-2.0
"""The protocol: csrc/protocol.h and what setup.py made of it for Python are one, and its bytes do not change unseen."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys

import pytest
from conftest import need, sh, wait_for

from nsrun import _protocol, kernel, run
from nsrun.host import userns
from nsrun.kernel import LIBEXEC
from nsrun.plan import mounts, process
from nsrun.spec import member

TOP = pathlib.Path(__file__).parent.parent
HEADER = TOP / "csrc/protocol.h"
TABLES = {"OPS", "OP_OF_STEP", "REPLAY", "BUILD"}


def test_c_and_python_agree(tmp_path):
    """Every number, text and layout of the module, as a C compiler understands the header."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    need(compiler, "no C compiler", "apt-get install gcc")
    names = {name: value for name, value in vars(_protocol).items() if name.isupper()}
    layouts = {name: value for name, value in names.items() if isinstance(value, str) and value.startswith("=")}
    lines = []
    for name, value in names.items():
        if name in layouts:
            lines.append(f'printf("{name} %zu\\n", sizeof(struct {name.lower()}));')
        elif isinstance(value, int):
            lines.append(f'printf("{name} %lld\\n", (long long){name});')
        elif name not in TABLES:
            lines.append(f'printf("{name} %s\\n", {name});')
    lines.append('#define PRINT(name, args) printf("op " #name " " args "\\n");\nOPS(PRINT)')
    lines.append('#define SHOW(name, args) printf("replay " #name " " args "\\n");\nREPLAY(SHOW)\nCONTAINER(SHOW)')
    (tmp_path / "print.c").write_text(
        '#include <stdio.h>\n#include "protocol.h"\nint main(void)\n{\n' + "\n".join(lines) + "\nreturn 0;\n}\n"
    )
    sh(compiler, f"-I{HEADER.parent}", tmp_path / "print.c", "-o", tmp_path / "print", timeout=60)
    said = [line.split(" ", 1) for line in sh(tmp_path / "print").stdout.splitlines()]
    found = {name: value for name, value in said if name not in ("op", "replay")}
    for name, value in names.items():
        if name in layouts:
            assert struct.calcsize(layouts[name]) == int(found[name]), name
        elif name not in TABLES:
            assert found[name] == (value.decode() if isinstance(value, bytes) else str(value)), name
    assert tuple(value.split()[0] for name, value in said if name == "op") == _protocol.OPS
    replay = [value.split(" ") for name, value in said if name == "replay"]
    assert {name: (number, kinds) for number, (name, kinds) in enumerate(replay)} == _protocol.REPLAY
    assert len(found) > 50


def test_nothing_of_the_header_is_left_out():
    """Whatever it names in an enum, a struct or a text is in the module."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.S)
    enumerators = re.findall(r"^\t([A-Z_]+) =", text, re.M)
    structs = [name.upper() for name in re.findall(r"^struct (\w+) \{", text, re.M)]
    texts = re.findall(r'^#define (\w+) "', text, re.M)
    assert len(enumerators) > 40 and len(structs) == 7 and len(texts) == 5
    assert {*enumerators, *structs, *texts} == {n for n in vars(_protocol) if n.isupper()} - TABLES


def test_the_path_that_parsers_know_is_the_programs():
    """spec needs no build, so it has this one for itself."""
    assert member.DEFAULT_PATH == _protocol.DEFAULT_PATH
    assert userns.environment_of(userns.User("0"), {})["PATH"] == _protocol.DEFAULT_PATH


class Handles:
    def fd(self, _: str) -> int:
        return 7

    def text(self, value: str) -> str:
        return value


def test_the_bytes_of_a_plan():
    steps = [mounts.AttachRoot("rootfs:fd", "/member"), process.SetLimit("nofile", 64, 128), mounts.Pivot()]
    assert run.encode(steps, Handles()) == b"".join(
        (
            b"NSP1" + struct.pack("=I", 3),
            struct.pack("=I", 3) + struct.pack("=Iq", 8, 7) + struct.pack("=I", 8) + b"/member\0",
            struct.pack("=I", 18) + struct.pack("=IqIqIq", 8, 7, 8, 64, 8, 128),
            struct.pack("=I", 14),
        )
    )


def test_the_bytes_of_a_request():
    found = run.encode_request(
        (5, 1, 2, -1, 6, 7, 8), (0, 1, 2, -1, -1, -1), ([5, 6], [], [8], []), (["init"], ["m", "é"], [])
    )
    assert found == b"".join(
        (
            b"NSD2" + struct.pack("=7i", 5, 1, 2, -1, 6, 7, 8) + struct.pack("=6i", 0, 1, 2, -1, -1, -1),
            struct.pack("=Iii", 2, 5, 6) + struct.pack("=I", 0) + struct.pack("=Ii", 1, 8) + struct.pack("=I", 0),
            struct.pack("=I", 5) + b"init\0" + struct.pack("=I", 5) + "m\0é\0".encode() + struct.pack("=I", 0),
        )
    )


def make(header: pathlib.Path) -> dict[str, object]:
    """The module as setup.py would write it for this header."""
    script = "import pathlib, sys, protocol_build; print(protocol_build.module(pathlib.Path(sys.argv[1])), end='')"
    text = sh(sys.executable, "-c", script, header, cwd=TOP / "csrc").stdout
    made: dict[str, object] = {}
    exec(text, made)
    return {name: value for name, value in made.items() if name.isupper()}


def test_the_module_is_made_of_this_header():
    made = {name: value for name, value in vars(_protocol).items() if name.isupper()}
    assert len(made.pop("BUILD")) == 64  # setup.py adds it
    assert make(HEADER) == made


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("uint32_t kind, step;", "uint32_t kind; uint64_t step;", "struct init_record has padding"),
        ("DOOR_BYTES =", "DOOR_REQUEST =", "its name is taken"),
    ],
)
def test_what_python_could_not_know_is_refused(old, new, why, tmp_path):
    text = HEADER.read_text()
    assert old in text
    (tmp_path / "protocol.h").write_text(text.replace(old, new))
    with pytest.raises(AssertionError, match=why):
        make(tmp_path / "protocol.h")


# ---- supplementary groups: all of them, or an error ----------------------------------------------------------


@pytest.mark.live
def test_more_groups_than_most_have(host, busybox, tmp_path):
    """300 arrive, of a member and of a door's owner; 65,537, more than the kernel has room for, are refused, not cut off."""
    host.run("pod", "create", "--network", "none", "pause")

    def root_with(count: int) -> pathlib.Path:
        root = tmp_path / f"root-{count}"
        shutil.copytree(busybox, root, symlinks=True)
        (root / "etc").mkdir(exist_ok=True)
        (root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\nm:x:5:5::/:/bin/sh\n")
        (root / "etc/group").write_text("".join(f"g:x:{1000 + n}:m\n" for n in range(count)))
        return root

    words = ("join", "pause", "--user", "m", "--rootfs")
    groups = host.run(*words, root_with(300), "id", "-G").stdout.split()
    assert [int(g) for g in groups if int(g) >= 1000] == list(range(1000, 1300))
    done = host.run(*words, root_with(65_537), "true", check=False)
    assert done.returncode == 125 and "setgroups" in done.stderr and "Invalid argument" in done.stderr, done.stderr
    host.run("pod", "rm", "-f", "pause")


@pytest.mark.live
def test_a_door_has_all_groups_of_its_owner(host):
    sleep = subprocess.Popen(["sleep", "100"])
    pidfd = os.pidfd_open(sleep.pid)
    groups = list(range(2000, 2300))
    words = [
        f"{LIBEXEC}/nsrun-door",
        f"pause={pidfd}",
        "uid=65534",
        "gid=65534",
        f"groups={','.join(map(str, groups))}",
    ]
    door = subprocess.Popen(words, pass_fds=[pidfd])
    try:
        status = pathlib.Path(f"/proc/{door.pid}/status")
        wait_for(lambda: "Uid:\t65534" in status.read_text(), 10, "it becomes that user")
        said = next(line for line in status.read_text().splitlines() if line.startswith("Groups:"))
        assert [int(g) for g in said.split()[1:]] == groups
    finally:
        sleep.kill()
        sleep.wait()
        assert door.wait(timeout=10) == 0
        os.close(pidfd)


# ---- descriptors and who owns them ------------------------------------------------------------------------------


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_a_descriptor_is_closed_by_its_owner():
    with kernel.Fd(os.open("/", os.O_PATH)) as fd:
        assert isinstance(fd, int) and is_open(fd) and os.stat("etc", dir_fd=fd)
    assert not is_open(fd)
    with pytest.raises(ZeroDivisionError), kernel.Fd(os.open("/", os.O_PATH)) as fd:
        _ = 1 / 0
    assert not is_open(fd)


def test_a_descriptor_that_was_taken_stays_open():
    with kernel.Fd(os.open("/", os.O_PATH)) as fd:
        number = fd.take()
    assert type(number) is int and is_open(number)
    os.close(number)
    with kernel.Fd(-1) as none:
        assert none == -1
