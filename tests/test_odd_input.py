# SPDX-License-Identifier: Apache-2.0
"""Whatever is typed, set or closed: a line that says what is wrong, never a traceback."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import NSRUN, need
from test_printable import WORD, clean

from nsrun.cli.commands import COMMANDS
from nsrun.errors import UsageError
from nsrun.spec import options

NUMBERS = ("9" * 5000, "9" * 20, "18446744073709551616", "\xb2", "\u0663", "-1", "nan", "inf", "1e400", "0x10", "1_0", " 1", "1\n", "")  # fmt: skip

RAISES = """
import sys
from nsrun import cli
from nsrun.cli import internal, members, say
def handler(call):
    exec(sys.argv[1])
members.wait = handler
internal.remove = handler
sys.exit(cli.main(sys.argv[2:]))
"""


def python(script: str, *words: str, **kwargs) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-Ic", script, *words], capture_output=True, timeout=30, check=False, **kwargs)  # fmt: skip


@pytest.mark.parametrize(
    "raised",
    [
        "raise ValueError('a' + chr(10) + chr(27) + '[31m')", "raise KeyError('pause')", "raise IndexError", "raise UnicodeDecodeError('utf-8', b'\\xff', 0, 1, 'x')",
        "raise UnicodeEncodeError('utf-8', chr(0xdcff), 0, 1, 'x')", "raise AssertionError", "raise ImportError('no such thing')", "import no_such_module", "raise MemoryError", "x = []; x += [x]; f = lambda: f(); f()",
        "raise OSError('no errno')", "raise OSError(5, 'x', b'\\xff\\x1b')", "import struct; struct.unpack('H', b'')", "1 / 0", "raise StopIteration", "print(chr(0xdcff)); raise TypeError(chr(0xdcff) * 5000)", "raise PermissionError(13, 'x', '/x')",
        "import json; json.loads('[' * 100000)", "raise ExceptionGroup('x', [ValueError(1)])", "raise Exception",
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", [["wait", "a"], ["_remove", "a"]])
def test_an_exception_that_nobody_expected(tmp_path, raised, command):
    for locale in ("C", "C.UTF-8"):
        done = python(RAISES, raised, "--root", str(tmp_path), *command, env={"LC_ALL": locale, "PYTHONUTF8": "1"})
        lines = clean(done.stderr).split("\n")
        assert done.returncode == 125 and lines[0].startswith("nsrun: ") and len(lines) == 3, (done, lines)
        assert lines[1].startswith("hint: ") and len(lines[0]) < 3000
    if command[0] == "wait":
        done = python(RAISES, raised, "--debug", "--root", str(tmp_path), *command)
        assert done.returncode == 1 and b"Traceback" in done.stderr


def test_an_exception_in_a_thread_or_a_destructor(tmp_path):
    thread = (
        "import threading; say.failures_of_threads(); t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()"
    )
    destructor = "exec('class C:' + chr(10) + ' def __del__(self): raise ValueError(chr(27))', globals()); C()"
    for raised, kind in ((thread, "ZeroDivisionError"), (destructor, "ValueError")):
        done = python(RAISES + "", raised + "; raise cli.NsrunError('done')", "--root", str(tmp_path), "wait", "a")
        assert done.returncode == 125 and clean(done.stderr).count(f"nsrun: unexpected {kind}") == 1, done
        assert clean(done.stderr).endswith("nsrun: done\n")


@pytest.mark.parametrize("module", ["nsrun.state", "nsrun.kernel", "nsrun._kernel", "nsrun.cli.text", "nsrun.lifecycle.query", "nsrun.lifecycle.join"])  # fmt: skip
@pytest.mark.parametrize("words", [["pod", "ls"], ["_complete", "pod", "rm", ""], ["_ended", "x", "--held", "-1,-1", "0"], ["explain", "pod", "create"]])  # fmt: skip
def test_a_part_that_can_not_be_loaded(tmp_path, module, words):
    script = f"import sys; sys.modules[{module!r}] = None\nfrom nsrun.cli import main\nsys.exit(main(sys.argv[1:]))"
    done = python(script, "--root", str(tmp_path), *words)
    if words[0] == "_complete":
        done = python(script, *words)
    assert b"Traceback" not in done.stderr, done.stderr
    if done.returncode:
        assert done.returncode == 125 and b"can't be loaded" in done.stderr and done.stderr.count(b"\n") == 2


def test_an_installation_without_its_package(tmp_path):
    script = pathlib.Path(f"{NSRUN}-python").read_text()
    assert "from nsrun.cli import main" in script
    (tmp_path / "nsrun").mkdir()
    (tmp_path / "nsrun/__init__.py").write_text("raise ImportError('half of it is gone')")
    (tmp_path / "run.py").write_text(f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{script}")
    done = subprocess.run([sys.executable, "-I", tmp_path / "run.py", "pod", "ls"], capture_output=True, timeout=30, check=False)  # fmt: skip
    assert done.returncode == 125 and clean(done.stderr).startswith("nsrun: a part of nsrun can't be loaded")


def told(done: subprocess.CompletedProcess[bytes], what: object, codes=(0, 2, 125, 126, 127)) -> str:
    text = clean(done.stderr)
    assert done.returncode in codes and "unexpected" not in text, (what, done)
    if done.returncode:
        assert text.startswith("nsrun: ") or "usage" in text, (what, done)
        assert text.count("\n") <= 4, (what, done)
    return text


def line(command, flags: list[str], operand: str | None = None) -> list[str]:
    expected = [*command.operands, *([command.rest] if command.rest and command.rest.kind == "line" else [])]
    operands = [operand if operand is not None else {"pod": "pause"}.get(one.kind, "x") for one in expected]
    if command.name == "pod create" and operand is None:
        flags, operands = ["--network", "none", *flags], ["made"]
    return [
        *command.name.split(),
        *flags,
        *operands,
        *(["--", "true"] if command.rest and command.rest.kind == "command" else []),
    ]


def every_line(busybox: str) -> list[list[str]]:
    """Every command with every option and every operand odd."""
    found = []
    parts = {option.key for command in COMMANDS if command.name in ("pod create", "join") for option in command.options}
    for command in COMMANDS:
        if command.name in ("attach", "logs", "doctor") and not command.operands:
            continue
        if command.operands or command.rest:
            found += [line(command, [], word) for word in (WORD, "", "/", "9" * 5000, "\n", "-")]
        for option in command.options:
            if not option.value:
                continue
            numeric = option.value in ("N", "SIZE", "SECONDS", "SIGNAL", "NAME=SOFT[:HARD]", "ADDR", "ADDR/BITS", "no|on-failure[:N]|always", "[IP:][HOST]:POD[/tcp]", "USER[:GROUP]")  # fmt: skip
            values = [WORD, f"{WORD}={WORD}", f"/{WORD}:/{WORD}"]
            if numeric:
                values += [*NUMBERS, *(f"{NUMBERS[2]}{u}" for u in "mg"), *(f"{x}:{x}" for x in NUMBERS[:5])]
                values += [f"nofile={x}" for x in NUMBERS] + [f"on-failure:{x}" for x in NUMBERS] + [f"RTMIN+{x}" for x in NUMBERS[:6]]  # fmt: skip
                values = [v for v in values if "=" not in v or "NAME" in option.value or v == values[1]]
                values = [v for v in values if "on-failure" not in v or option.key == "restart"]
                values = [v for v in values if "RTMIN" not in v or "SIGNAL" in option.value]
            if command.name == "run" and option.key in parts:  # the two that it is made of are given all of them
                values = values[:1]
            root = ["--rm", "--rootfs", busybox] if command.name == "join" and option.key not in ("image", "bundle", "rootfs", "restart") else []  # fmt: skip
            found += [line(command, [*root, f"{option.flags[-1]}={value}"]) for value in values]
    return found


@pytest.mark.live
@pytest.mark.timeout(400)
def test_every_command_with_odd_words(host, pod, busybox, tmp_path):
    def one(words: list[str]) -> None:
        done = subprocess.run(
            [NSRUN, *words], capture_output=True, stdin=subprocess.DEVNULL, env={**host.env, "LC_ALL": "C"}, timeout=60, cwd=tmp_path, check=False,
        )  # fmt: skip
        clean(done.stdout)
        told(done, words)
        if words[:2] == ["pod", "create"] and not done.returncode:
            host.run("pod", "rm", "-f", "made")

    lines = every_line(busybox)
    assert len(lines) > 300
    making = [words for words in lines if words[:2] == ["pod", "create"]]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(one, (words for words in lines if words not in making)))
    for words in making:
        one(words)


@pytest.mark.live
@pytest.mark.parametrize("name", ["NSRUN_ROOT", "NSRUN_SUBNET", "NSRUN_PUBLISH_IP", "SUDO_UID", "HOME", "TERM", "PATH", "LANG", "LC_ALL", "XDG_RUNTIME_DIR", "XDG_DATA_HOME", "COLUMNS", "PYTHONIOENCODING", "\udcff\x1b"])  # fmt: skip
def test_odd_variables(host, pod, busybox, tmp_path, name):
    for value in (WORD, "\xb2", "9" * 5000, "", "/dev/null", "relative"):
        env = {**host.env, name: value}
        if name == "NSRUN_ROOT" and not value:
            continue
        network = ["-p", ":80"] if name in ("NSRUN_SUBNET", "NSRUN_PUBLISH_IP") else ["--network", "none"]
        for words in (["pod", "ls"], ["ls"], ["pod", "create", *network, "q"], ["join", "pause", "--rm", "--rootfs", busybox, "--", "/bin/true"], ["_complete", "pod", "rm", ""], ["explain", "pod", "create"]):  # fmt: skip
            done = subprocess.run([NSRUN, *words], capture_output=True, env=env, timeout=60, cwd=tmp_path, check=False)
            told(done, (name, value, words))
            if words[:2] == ["pod", "create"] and not done.returncode:
                subprocess.run([NSRUN, "pod", "rm", "-f", "q"], env=env, cwd=tmp_path, timeout=60, check=True)


@pytest.mark.live
def test_odd_places(host, pod, busybox, tmp_path):
    """A working directory that was removed; closed descriptors; a full disk; a reader that has gone."""
    commands = ["pod ls", "ls --json", "pod inspect pause", "pod create --network none r$RANDOM$RANDOM", "pod rm -f r", "help", "--help", "explain pod create", f"join pause --rm --rootfs {busybox} -- true", "ls -a", "nope", "inspect nope", "completion bash", "_complete pod ''", "pod prune", "doctor"]  # fmt: skip
    for number, command in enumerate(commands):
        gone = f"mkdir {tmp_path}/{number} && cd {tmp_path}/{number} && rmdir {tmp_path}/{number} && "
        for before, after in ((gone, ""), ("", "<&-"), ("", ">&-"), ("", "2>&-"), ("", "<&- >&- 2>&-"), ("", ">/dev/full"), ("", "2>/dev/full")):  # fmt: skip
            words = ["bash", "-c", f"{before}exec {NSRUN} {command} {after}"]
            done = subprocess.run(words, capture_output=True, env=host.env, timeout=60, cwd="/", check=False)
            assert done.returncode in (0, 1, 2, 125), (command, after, done)
            for text in (done.stdout, done.stderr):
                clean(text)
                assert b"unexpected" not in text and b"Exception ignored" not in text, (command, after, done)
            if after == ">/dev/full" and command not in ("nope", "inspect nope", "pod prune", "pod rm -f r") and "join" not in command and "_complete" not in command:  # fmt: skip
                assert done.returncode == 125 and b"No space left" in done.stderr, (command, done)
    for words in ("--root ./x pod ls", f"join pause --rootfs {busybox} -v ./x:/x -- true", "image load ./x"):
        script = f"mkdir -p {tmp_path}/gone && cd {tmp_path}/gone && rmdir {tmp_path}/gone && exec {NSRUN} {words}"
        done = subprocess.run(["bash", "-c", script], capture_output=True, env=host.env, timeout=30, check=False)
        assert done.returncode == 125 and (b"has been removed" in done.stderr or b"./x" in done.stderr), done
    assert len(host.json("pod", "ls")) == 8  # what can't be printed is made all the same
    done = subprocess.run(["bash", "-c", f"({NSRUN} pod inspect pause; echo $? >&2) | true"], capture_output=True, env=host.env, timeout=30, check=True)  # fmt: skip
    assert done.stderr.strip() in (b"0", b"141")


@pytest.mark.live
@pytest.mark.parametrize("locale", ["C", "POSIX", "en_US.ISO-8859-1", "nonsense"])
def test_letters_that_the_locale_lacks(host, pod, busybox, tmp_path, locale):
    """They are escaped, and no error."""
    need(shutil.which("localedef"), "localedef is missing", "apt-get install locales")
    subprocess.run(["localedef", "-f", "ISO-8859-1", "-i", "en_US", tmp_path / "en_US.ISO-8859-1"], timeout=60, check=False, capture_output=True)  # fmt: skip
    need((tmp_path / "en_US.ISO-8859-1").exists(), "the locale can't be made", "apt-get install locales")
    env = {**host.env, "LC_ALL": locale, "LOCPATH": str(tmp_path)}
    for words in (["join", "--help"], ["explain", "pod", "create"], ["explain", "--format", "shell", "pod", "create"], ["pod", "create", "--network", "none", "--label", "日本=≈\udcff", "q"], ["pod", "inspect", "q"], ["join", "q", "--rm", "--rootfs", busybox, "echo", "日本"], ["join", "q", "--rootfs", busybox, "日本≈"], ["ls", "-a"]):  # fmt: skip
        done = subprocess.run([NSRUN, *words], capture_output=True, env=env, timeout=60, check=False)
        assert done.returncode in (0, 127) and b"unexpected" not in done.stderr and b"Traceback" not in done.stderr, (words, done)  # fmt: skip


@pytest.mark.parametrize("text", NUMBERS)
def test_numbers(text):
    for parse in (
        lambda: options.parse_count(text, "-x", "a number"), lambda: options.parse_size(text, "-x"), lambda: options.parse_fraction(text, "-x", "a number", 0, 10),
        lambda: options.parse_ulimit(f"nofile={text}"), lambda: options.parse_restart(f"on-failure:{text}"), lambda: options.parse_limits({"memory": text or "x"}),
        lambda: options.parse_limits({"cpus": text or "x"}), lambda: options.parse_limits({"pids_limit": text or "x"}), lambda: options.parse_ports([f"{text}:{text}"]),
        lambda: options.parse_ports([f"{text}.0.0.1:1:1"]), lambda: options.parse_signal(text), lambda: options.parse_signal(f"RTMIN+{text}1"),
    ):  # fmt: skip
        if text == "-1" or (text == "" and parse):
            continue
        with pytest.raises(UsageError) as error:
            parse()
        assert len(error.value.message) < 16000


def test_numbers_that_are_some():
    assert options.parse_count("0", "-x", "n") == 0 and options.parse_fraction("1.5", "-x", "n", 0, 2) == 1.5
    assert (
        options.parse_fraction(".5", "-x", "n", 0, 2) == 0.5
        and options.parse_size("8191p"[:-1] + "t", "-x") == 8191 << 40
    )
    assert options.parse_restart("on-failure:3") == ("on-failure", 3) and os.fsencode(WORD)
