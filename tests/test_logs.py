# SPDX-License-Identifier: Apache-2.0
"""Lines, pieces of lines, times, several members; what a terminal is spared."""

import datetime
import signal
import subprocess
import sys
import time

import pytest
from conftest import NSRUN, wait_for

from nsrun.errors import UsageError
from nsrun.lifecycle import logs

PIECES = [
    ("1", "stdout", "one\n"),
    ("2", "stdout", "two, "),
    ("3", "stderr", "error\n"),
    ("4", "stdout", "still two\n"),
    ("5", "stdout", "prompt"),
]


@pytest.mark.parametrize(
    ("count", "first"), [(0, None), (1, "prompt"), (2, "error\n"), (3, "two, "), (4, "one\n"), (9, "one\n")]
)
def test_the_last_lines(count, first):
    """Lines are counted where they begin, however many pieces they have."""
    found = logs.last_lines(PIECES, count)
    assert found[0][2] == first if first else found == []


def test_whole_lines():
    assert list(logs.whole_lines(PIECES)) == [
        ("1", "stdout", "one\n"), ("3", "stderr", "error\n"), ("2", "stdout", "two, still two\n"), ("5", "stdout", "prompt\n"),
    ]  # fmt: skip


def test_moments():
    now = datetime.datetime.now(datetime.UTC)
    assert logs.moment("2026-01-31T12:00:00Z", "x") == "2026-01-31T12:00:00.000000000Z"
    assert logs.moment("2026-01-31T12:00:00.5+02:00", "x") == "2026-01-31T10:00:00.500000000Z"
    assert logs.moment("0", "x") == "1970-01-01T00:00:00.000000000Z"
    assert logs.moment("1700000000.25", "x") == "2023-11-14T22:13:20.250000000Z"
    assert logs.moment("1700000000.123456789", "x") == "2023-11-14T22:13:20.123456789Z"
    assert logs.moment("2026-01-31 12:00:00.123456789Z", "x") == "2026-01-31T12:00:00.123456789Z"
    local = datetime.datetime(2026, 1, 31).astimezone(datetime.UTC)
    assert logs.moment("2026-01-31", "x")[:19] == local.strftime("%Y-%m-%dT%H:%M:%S")
    for text, seconds in (("10m", 600), ("1h30m", 5400), ("1.5h", 5400), ("2d", 172800), ("90s", 90)):
        then = datetime.datetime.strptime(logs.moment(text, "x")[:19] + "+0000", "%Y-%m-%dT%H:%M:%S%z")
        assert abs((now - then).total_seconds() - seconds) < 60


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "10",
        "m",
        "10 m",
        "²",
        "1m2",
        "2026-13-01",
        "-5m",
        "2026-01-31T25:00",
        "1e9",
        "nan",
        "1" * 400,
        "9" * 12 + "d",
        "\udcff",
    ],
)
def test_no_moments(text):
    if text == "10":
        assert logs.moment(text, "x").startswith("1970-01-01T00:00:10")
        return
    with pytest.raises(UsageError):
        logs.moment(text, "--since")


def test_a_terminal_is_spared(host, pod, busybox, terminal):
    """What a member wrote can't speak to it, unless --raw asks for that; into a pipe every byte goes."""
    host.run("join", "pause", "--name", "m", "--rootfs", busybox, "--", "printf", r"\033]0;title\007\033[31mred\n")
    assert host.run("logs", "m").stdout == "\033]0;title\007\033[31mred\n"
    shown = terminal("logs", "m")
    assert "\033" not in shown.expect(r"[^\n]*red\r\n")
    shown.process.wait(timeout=8)
    raw = terminal("logs", "--raw", "m")
    assert "\033[31m" in raw.expect(r"[^\n]*red\r\n")
    raw.process.wait(timeout=8)


def test_times_of_lines(host, pod, busybox):
    """--since and --until cut between lines; -t gives one time for each, however long it is."""
    script = "head -c 100000 /dev/zero | tr '\\0' a; echo; sleep 1; echo second"
    host.run("join", "pause", "--name", "m", "--rootfs", busybox, "--", "sh", "-c", script)
    lines = host.run("logs", "-t", "m").stdout.splitlines()
    assert len(lines) == 2 and len(lines[0]) == 100031
    second = lines[1].split()[0]
    assert host.run("logs", "--since", second, "m").stdout == "second\n"
    before = host.run("logs", "--until", lines[0].split()[0], "m").stdout
    assert before.startswith("aaa") and "second" not in before
    assert host.run("logs", "--since", second, "--tail", "5", "m").stdout == "second\n"


def test_several_that_are_followed(host, pod, busybox):
    for name in ("one", "two"):
        host.start(
            name, busybox, "sh", "-c", f"i=0; while [ $i -lt 5 ]; do echo {name} $i; i=$((i+1)); sleep 0.05; done"
        )
    done = host.run("logs", "-f", "one", "two", timeout=20)
    assert sorted(done.stdout.splitlines()) == sorted(f"{n} | {n} {i}" for n in ("one", "two") for i in range(5))
    together = host.run("logs", "-t", "one", "two").stdout.splitlines()
    times = [line.split()[2] for line in together]
    assert times == sorted(times) and len(times) == 10


def test_a_follower_whose_reader_goes(host, pod, busybox):
    host.start("m", busybox, "sh", "-c", "while :; do echo tick; sleep 0.05; done")
    for names in (["m"], ["m", "other"]):
        host.start("other", busybox, "sleep", "1000") if names[1:] else None
        done = subprocess.run(
            ["sh", "-c", f"{NSRUN} logs -f {' '.join(names)} | head -2"],
            env=host.env,
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert done.stdout.count("tick") == 2 and done.stderr == ""
    wait_for(lambda: host.member("m")["status"] == "running")
    time.sleep(0.1)


def test_the_last_lines_of_two_streams():
    """A line that another is in the middle of is not begun in its middle."""
    pieces = [("1", "stdout", "a"), ("2", "stderr", "E\n"), ("3", "stdout", "b\n"), ("4", "stderr", "F\n")]
    assert logs.last_lines(pieces, 2) == [pieces[1], pieces[3]]
    assert logs.last_lines(pieces, 3) == pieces


def test_until_comes_before_tail_and_ends_what_is_followed(host, pod, busybox):
    host.start("m", busybox, "sh", "-c", "for i in 1 2 3; do echo l$i; sleep 0.3; done; sleep 1000")
    wait_for(lambda: "l3" in host.run("logs", "m").stdout)
    second = host.run("logs", "-t", "m").stdout.splitlines()[1].split()[0]
    assert host.run("logs", "--until", second, "--tail", "1", "m").stdout == "l2\n"
    soon = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert host.run("logs", "-f", "--until", soon, "m", timeout=10).stdout.startswith("l1\n")


def test_a_follower_that_was_stopped_while_logs_were_full(host, pod, busybox):
    """Two rotations lose nothing; of more, what is gone is told."""
    for lines, gone in ((800_000, False), (2_600_000, True)):
        host.run("rm", "-f", "big")
        host.start("big", busybox, "sh", "-c", f"echo 0; sleep 2; seq {lines}; echo end")
        follower = subprocess.Popen(
            [NSRUN, "logs", "-f", "big"], env=host.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert follower.stdout.readline() == "0\n"
        follower.send_signal(signal.SIGSTOP)
        wait_for(lambda: host.member("big")["status"] == "stopped", 60)
        follower.send_signal(signal.SIGCONT)
        out, err = follower.communicate(timeout=100)
        numbers = [int(line) for line in out.split()[:-1]]
        assert out.endswith("end\n")
        if gone:
            assert "before they could be read" in err and len(numbers) < lines
        else:
            assert err == "" and numbers == list(range(1, lines + 1))


def test_names_have_colours_on_a_terminal_only(host, pod, busybox, terminal):
    """And what a member wrote has none, whatever it wrote."""
    for name in ("a", "b"):
        host.run("join", pod, "--name", name, "--rootfs", busybox, "--", "printf", f"\\033[31m{name}\\n")
    at = terminal("pod", "logs", pod)
    at.expect(r"\x1b\[31ma \| \x1b\[0m\\x1b\[31ma")
    at.expect(r"\x1b\[32mb \| \x1b\[0m\\x1b\[31mb")
    piped = host.run("pod", "logs", pod).stdout
    assert piped == "a | \x1b[31ma\nb | \x1b[31mb\n"


def test_those_that_are_followed_take_turns():
    """One that writes without end keeps nobody waiting, and one that has ended is asked no more."""
    endless = (("1", "stdout", "x\n") for _ in iter(int, 1))
    sources = {"a": endless, "b": iter([None, ("2", "stdout", "half"), None, ("3", "stdout", " and half\n")])}
    found = (name for name, _ in logs.together(sources, True) if name == "b")
    assert next(found) == "b"
    last = logs.together({"c": iter([]), "d": iter([("4", "stderr", "end")])}, True)
    assert list(last) == [("d", ("4", "stderr", "end\n"))]


def test_a_second_signal_before_the_first_one_is_told():
    """timeout(1) sends two: to its child, and to the process group."""
    script = """
import os, signal, sys
from nsrun import cli
def twice(arguments):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except cli.Interrupted:
        os.kill(os.getpid(), signal.SIGTERM)
cli._take_signals()
cli._main = twice
sys.exit(cli.main([]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (143, "nsrun: interrupted\n")
