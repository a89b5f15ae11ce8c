# SPDX-License-Identifier: Apache-2.0
"""Nobody's blocked reader holds a member, a pod or the truth: slow, stopped and gone readers, closed and full descriptors, signals."""

import fcntl
import os
import pathlib
import pty
import select
import signal
import socket
import subprocess
import termios
import time

import pytest
from conftest import NSRUN, open_files, wait_for
from person import Terminal


def start(host, *words, **kwargs) -> subprocess.Popen:
    return host.background(*words, **{"stderr": subprocess.PIPE, **kwargs})


@pytest.fixture
def full():
    """The write end of a pipe that nobody reads from."""
    ends = os.pipe()
    os.set_blocking(ends[1], False)
    for size in (65536, 1):
        try:
            while True:
                os.write(ends[1], b"x" * size)
        except BlockingIOError:
            continue
    os.set_blocking(ends[1], True)
    yield ends[1]
    for fd in ends:
        os.close(fd)


@pytest.fixture
def full_socket():
    """A stream socket with a reader that takes nothing."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    try:
        while True:
            ours.send(b"x" * 4096)
    except BlockingIOError:
        ours.setblocking(True)
    yield ours.fileno()
    ours.close(), theirs.close()


@pytest.fixture
def stopped_terminal():
    """A terminal on which somebody pressed Ctrl-S."""
    master, slave = pty.openpty()
    termios.tcflow(slave, termios.TCOOFF)
    yield slave
    os.close(master), os.close(slave)


@pytest.fixture(params=["pipe", "socket", "terminal"])
def blocked(request):
    return request.getfixturevalue(
        {"pipe": "full", "socket": "full_socket", "terminal": "stopped_terminal"}[request.param]
    )


def ends(words: list, host, seconds: float = 8) -> None:
    began = time.monotonic()
    host.run(*words)
    assert time.monotonic() - began < seconds, words


@pytest.mark.parametrize(
    "end", ["stop -t 1 y", "rm -f y", "kill y", "pod stop -t 1 pause", "pod kill pause", "pod rm -f pause"]
)
def test_a_reader_that_takes_nothing(host, pod, busybox, full, end):
    done = start(host, "join", "pause", "--name", "y", "--rootfs", busybox, "--", "yes", stdout=full)
    wait_for(lambda: [m["status"] for m in host.json("ls")] == ["running"])
    time.sleep(0.2)  # its pipes are full
    ends(end.split(), host)
    assert done.wait(timeout=8) in (128 + 15, 128 + 9)
    assert host.json("ls") == []


def programs(pid: int) -> set[bytes]:
    """The names of all processes in the PID namespace of a process: other tests have some, too."""
    found, namespace = set(), os.readlink(f"/proc/{pid}/ns/pid")
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "ns/pid") == namespace:
                found.add((process / "comm").read_bytes().strip())
        except OSError:
            continue  # it has just ended
    return found


@pytest.mark.parametrize("command", ["join", "exec"])
def test_every_kind_of_reader(host, pod, busybox, blocked, command):
    """A pipe, a socket, a terminal under Ctrl-S: a signal ends what runs in the foreground."""
    pause = host.pod("pause")["pid"]
    words = ["exec", "m"] if command == "exec" else ["join", "pause", "--name", "y", "--rootfs", busybox, "--"]
    for stream in ("", ">&2"):
        host.start("m", busybox, "sleep", "1000")
        done = start(
            host, *words, "sh", "-c", f"trap 'exit 7' TERM; yes {stream} & wait", stdout=blocked, stderr=blocked
        )
        wait_for(lambda: b"yes" in programs(pause))
        time.sleep(0.2)
        done.send_signal(signal.SIGTERM)
        assert done.wait(timeout=8) == 7
        host.run("rm", "-f", "y", "m")  # what is left of them, too
        assert programs(pause) == {b"pause"}


def catches_signals(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM (proc_pid_status(5)); for SIGINT, Python has one before nsrun begins."""
    caught = pathlib.Path(f"/proc/{pid}/status").read_text().partition("SigCgt:\t")[2].split()[0]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_while_an_error_is_told(host, full, number):
    done = start(host, "pod", "inspect", "nosuch", stderr=full)
    wait_for(lambda: "pipe_write" in pathlib.Path(f"/proc/{done.pid}/wchan").read_text())
    done.send_signal(number)
    assert done.wait(timeout=8) == 128 + number


@pytest.mark.parametrize("words", ["wait m", "logs -f m", "events", "run --rm --network none --rootfs {} -- sleep 99"])
def test_a_signal_ends_a_command_that_could_not_say_so(host, pod, busybox, blocked, words):
    """The signal that ended it is told on standard error, and nobody takes that."""
    host.start("m", busybox, "sleep", "1000")
    before = host.snapshot()
    for number in (signal.SIGTERM, signal.SIGINT):
        done = start(host, *words.format(busybox).split(), stdout=blocked, stderr=blocked)
        wait_for(lambda: catches_signals(done.pid))  # noqa: B023
        done.send_signal(number)
        assert done.wait(timeout=8) == 128 + number
    host.run("pod", "prune")
    wait_for(lambda: host.snapshot() == before)


def test_the_status_is_known_before_the_reader_goes_on(host, pod, busybox):
    """The member has ended: everybody sees that, and the one who reads gets every byte."""
    ours, theirs = os.pipe()
    done = start(
        host, "join", "pause", "--name", "y", "--rootfs", busybox, "--", "sh", "-c", "seq 30000; exit 5", stdout=theirs
    )
    os.close(theirs)
    wait_for(lambda: select.select([ours], [], [], 0)[0])
    time.sleep(0.3)
    data = os.read(ours, 1000)
    while host.member("y")["status"] != "stopped":
        data += os.read(ours, 20000)
        time.sleep(0.05)
    assert host.member("y")["exit_code"] == 5
    assert done.poll() is None, "what was written is kept for its reader"
    with open(ours, "rb") as file:
        data += file.read()
    assert done.wait(timeout=8) == 5
    assert data.split() == [str(n).encode() for n in range(1, 30001)]
    assert len(host.run("logs", "y").stdout.split()) == 30000


def test_a_burst_at_the_end_is_not_lost(host, pod, busybox):
    """More than a pipe holds, from a member whose pipe is larger, to a reader that wakes up late."""
    # a user has a limit for all of their pipes, pipe-user-pages-soft of pipe(7), which other tests may have used up
    grow = """
import fcntl, os
fcntl.fcntl(1, 1031, 1 << 20)
os.write(1, b'0123456789abcdef' * 60000)
"""
    words = ["--cap-add", "SYS_ADMIN", "--name", "y", "--", "python3", "-c", grow]
    done = start(host, "join", "pause", *words, stdout=subprocess.PIPE)
    wait_for(lambda: host.json("ls", "-a") and host.member("y")["status"] == "stopped", 40)
    assert len(done.stdout.read()) == 960000, (host.member("y"), host.run("logs", "y").stdout[-2000:])
    assert done.wait(timeout=8) == 0


@pytest.mark.parametrize(
    "words",
    [
        "exec m yes",
        "join pause --rm --rootfs {box} -- yes",
        "join pause --restart always --name r --rootfs {box} -- yes",
    ],
)
def test_a_reader_that_has_gone(host, pod, busybox, words):
    """`| head -1`: the writer gets SIGPIPE, as in any pipeline."""
    host.start("m", busybox, "sleep", "1000")
    done = start(host, *words.format(box=busybox).split(), stdout=subprocess.PIPE)
    assert done.stdout.read(2) == b"y\n"
    done.stdout.close()
    if "--restart" in words:
        wait_for(lambda: host.member("r")["restarts"] > 1)
        host.run("stop", "-t", "1", "r")
    # what stop sends may be faster, where it begins once more
    assert done.wait(timeout=8) in (128 + signal.SIGPIPE, *([143] if "--restart" in words else []))
    assert host.member("m")["status"] == "running"


def test_standard_error_is_kept_after_the_reader_of_output_has_gone(host, pod, busybox):
    script = "trap '' PIPE; while echo tick; do sleep 0.05; done; echo deaf >&2; exit 3"
    done = start(
        host, "join", "pause", "--name", "y", "--rootfs", busybox, "--", "sh", "-c", script, stdout=subprocess.PIPE
    )
    assert done.stdout.read(5) == b"tick\n"
    done.stdout.close()
    assert b"deaf\n" in done.communicate(timeout=8)[1] and done.returncode == 3
    lines = host.run("logs", "y")
    assert lines.stdout.startswith("tick\n") and "deaf\n" in lines.stderr


@pytest.mark.parametrize("end", ["stop -t 1 y", "rm -f y", "pod stop -t 1 pause", "pod rm -f pause"])
def test_a_monitor_that_is_stopped(host, pod, busybox, end):
    """Ctrl-Z, or SIGSTOP: it goes on, so that its member's end is written down."""
    done = start(host, "join", "pause", "--name", "y", "--rootfs", busybox, "--", "yes", stdout=subprocess.DEVNULL)
    wait_for(lambda: [m["status"] for m in host.json("ls")] == ["running"])
    done.send_signal(signal.SIGSTOP)
    ends(end.split(), host)
    assert done.wait(timeout=8) in (128 + 15, 128 + 9)


def test_one_who_attaches_and_reads_nothing(host, pod, busybox):
    """Two seconds behind, it is let go; the member goes on, and so does who reads."""
    host.start("a", busybox, "sh", "-c", "while :; do echo 0123456789012345678901234567890123456789; done")
    stuck = start(host, "attach", "a", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    stuck.stdout.read(1)
    reader = start(host, "attach", "a", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    for _ in range(50):
        assert len(reader.stdout.read(100_000)) == 100_000
    ends(["stop", "-t", "1", "a"], host)
    for process in (stuck, reader):
        process.stdout.close()
        process.wait(timeout=8)
        process.stderr.close()


def test_the_fifth_who_attaches_is_told_why(host, pod, busybox):
    host.start("a", busybox, "sleep", "1000")
    monitor = int(pathlib.Path(f"/proc/{host.member('a')['pid']}/stat").read_text().rpartition(")")[2].split()[1])

    def sockets() -> int:
        return sum(file.startswith("socket:") for file in open_files(monitor))

    before = sockets()
    others = [start(host, "attach", "a", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) for _ in range(4)]
    wait_for(lambda: sockets() == before + 4)
    assert "too many clients" in host.fails(125, "attach", "a", stdin=subprocess.DEVNULL)
    for process in others:
        process.kill()
        process.communicate(timeout=8)


@pytest.mark.parametrize("options", [["-i"], ["-it"]])
@pytest.mark.parametrize("how", ["null", "pipe", "hang-up", "no stdin"])
def test_a_detached_member_outlives_who_attaches(host, pod, busybox, options, how):
    host.start("a", busybox, "sh", options=options)
    if how == "hang-up":
        t = Terminal(host, "attach", "a")
        time.sleep(0.5)
        os.close(t.master)
        t.process.wait(timeout=8)
        os.close(t.slave)
    else:
        given = {"null": "", "pipe": "echo hello $((6*7))\n", "no stdin": "exit 3\n"}[how]
        client = start(
            host,
            "attach",
            *(["--no-stdin"] if how == "no stdin" else []),
            "a",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        client.stdin.write(given.encode())
        client.stdin.close()
        if how == "pipe":
            seen = b""
            while b"hello 42" not in seen:
                seen += client.stdout.read1(1000)
        time.sleep(0.5)
        assert client.poll() is None, "it goes on showing what the member writes"
        client.kill()
        client.wait(timeout=8)
        client.stdout.close(), client.stderr.close()
    time.sleep(0.3)
    assert host.member("a")["status"] == "running"


def test_the_end_of_input_is_passed_on_when_asked_for(host, pod, busybox):
    host.start("a", busybox, "cat", options=["-i"])
    done = host.run("attach", "--close-stdin", "a", input="one\ntwo\n")
    assert done.stdout == "one\ntwo\n"
    assert host.member("a")["status"] == "stopped"
    assert "contradict" in host.fails(2, "attach", "--close-stdin", "--no-stdin", "a")


# ---- closed and full descriptors -----------------------------------------------------------------------------

COMMANDS = {
    "ls": "ls", "pod ls": "pod ls", "doctor": "doctor", "inspect": "inspect m", "logs": "logs m", "explain": "explain pod create", "help": "help",
    "completion": "completion bash", "exec": "exec m echo hello", "join": "join pause --rm --rootfs {box} -- echo hello", "image ls": "image ls",
    "join -d": "join pause -d --name d --rootfs {box} -- sleep 1000", "version": "--version", "stop": "stop m", "wrong": "nonsense",
}  # fmt: skip


@pytest.mark.parametrize(
    "closing", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-", ">/dev/full", ">/dev/full 2>/dev/full", "2>/dev/full"]
)
def test_closed_and_full_descriptors(host, pod, busybox, closing):
    for name, words in COMMANDS.items():
        host.run("rm", "-f", "d", "m")
        host.start("m", busybox, "sh", "-c", "echo begun; exec sleep 1000")
        wait_for(lambda: host.run("logs", "m").stdout)
        line = f"exec {NSRUN} {words.format(box=busybox)} {closing}"
        done = subprocess.run(
            ["sh", "-c", line], env=host.env, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL
        )
        assert "Traceback" not in done.stderr and "Exception" not in done.stderr, (name, done.stderr)
        failed = name == "wrong" or ">/dev/full" in closing and not closing.startswith("2")
        assert (done.returncode != 0) == failed or name in ("doctor", "stop"), (name, done.returncode, done.stderr)
        if name == "join -d":
            assert host.member("d")["status"] == "running"
        if failed and "2>" not in closing and name != "wrong":
            assert len([part for part in done.stderr.splitlines() if part.startswith("nsrun: ")]) == 1, (
                name,
                done.stderr,
            )


@pytest.mark.parametrize("command", ["join pause --rootfs {box} --", "exec m"])
def test_a_member_gets_its_three_descriptors_whatever_is_closed(host, pod, busybox, command):
    host.start("m", busybox, "sleep", "1000")
    for closing in ("<&-", "<&- >&2", "<&- >&2 2>&-"):
        line = f"exec {NSRUN} {command.format(box=busybox)} ls /proc/self/fd {closing}"
        done = subprocess.run(["sh", "-c", line], env=host.env, capture_output=True, text=True, timeout=30, check=True)
        assert (done.stdout + done.stderr).split() in (["0", "1", "2", "3"], []), closing


# ---- signals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGUSR1,
        signal.SIGWINCH,
        signal.SIGALRM,
        signal.SIGIO,
        signal.SIGVTALRM,
        signal.SIGRTMIN,
        signal.SIGRTMIN + 3,
        signal.SIGRTMAX,
    ],
)
@pytest.mark.parametrize("command", ["join", "exec"])
def test_signals_are_passed_on(host, pod, busybox, number, command):
    """All that can be, the real-time ones too; SIGWINCH is the terminal's, and means "stop" to some."""
    host.start("m", busybox, "sleep", "1000")
    words = ["exec", "m"] if command == "exec" else ["join", "pause", "--rm", "--rootfs", busybox, "--"]
    done = start(
        host,
        *words,
        "sh",
        "-c",
        f"trap 'exit 9' {int(number)}; trap 'exit 4' TERM; echo ready; while :; do sleep 0.05; done",
        stdout=subprocess.PIPE,
    )
    assert done.stdout.read(6) == b"ready\n"
    done.send_signal(number)
    if number == signal.SIGWINCH:
        time.sleep(0.3)
        done.send_signal(signal.SIGTERM)
    assert done.wait(timeout=8) == (4 if number == signal.SIGWINCH else 9)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1])
def test_what_was_ignored_is_not_passed_on(host, pod, busybox, number):
    """nohup(1), and the background jobs of a shell's script."""
    done = start(host, "join", "pause", "--name", "y", "--rootfs", busybox, "--", "sleep", "1000", stdout=subprocess.DEVNULL,
                 preexec_fn=lambda: signal.signal(number, signal.SIG_IGN))  # fmt: skip
    wait_for(lambda: [m["status"] for m in host.json("ls")] == ["running"])
    done.send_signal(number)
    time.sleep(0.3)
    assert host.member("y")["status"] == "running"
    host.run("stop", "y")
    assert done.wait(timeout=8) == 128 + 15


def test_a_signal_in_the_first_moment(host, pod, busybox):
    """Whenever it comes, nothing runs that nobody waits for."""
    for delay in range(0, 80, 4):
        done = start(
            host, "join", "pause", "--name", "y", "--rootfs", busybox, "--", "sleep", "1000", stdout=subprocess.DEVNULL
        )
        time.sleep(delay / 1000)
        done.send_signal(signal.SIGRTMIN + 3)
        done.wait(timeout=8)
        wait_for(lambda: host.json("ls") == [], 8, f"the end of what was signalled after {delay} ms")
        host.run("rm", "-f", "y")


# ---- the terminal --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, 1, 2])
def test_the_first_size(host, pod, busybox, which):
    """It is set before the program runs, by whichever of 0, 1 and 2 is a terminal."""
    master, slave = pty.openpty()
    fcntl.ioctl(master, termios.TIOCSWINSZ, b"\x1d\x00\x4d\x00\0\0\0\0")
    streams = {
        name: slave if number == which else subprocess.DEVNULL
        for number, name in enumerate(("stdin", "stdout", "stderr"))
    }
    for _ in range(5):
        host.run("rm", "-f", "y")
        done = host.background(
            "join", "pause", "-t", "--name", "y", "--rootfs", busybox, "--", "stty", "size", **streams
        )
        assert done.wait(timeout=8) == 0
        assert host.run("logs", "y").stdout.strip() == "29 77"
    os.close(master), os.close(slave)


# ---- ends ----------------------------------------------------------------------------------------------------------

DEAF = ["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"]


def test_who_had_to_be_killed_is_said(host, pod, busybox):
    for name in ("a", "b", "c"):
        host.start(name, busybox, *DEAF)
    began = time.monotonic()
    done = host.run("stop", "-t", "4", "a", "b")
    assert time.monotonic() - began < 7.5, "side by side"
    assert done.stdout == "a\nb\n"
    assert "member 'a' had not ended 4 s after its stop signal, and was killed" in done.stderr
    done = host.run("pod", "stop", "-t", "1", "pause")
    assert done.stdout == "pause\n" and "'c' had not ended 1 s" in done.stderr and "'a'" not in done.stderr


def test_one_that_is_unknown_among_several(host, pod, busybox):
    host.start("a", busybox, "sleep", "1000")
    done = host.run("stop", "-t", "0", "nosuch", "a", check=False)
    assert (done.returncode, done.stdout) == (125, "a\n") and "no member 'nosuch'" in done.stderr
    assert host.run("rm", "-f", "nosuch", "a").stdout == "a\n"
    host.fails(125, "rm", "nosuch")
    host.fails(125, "rm", "-f", "no/such")


def test_restarting(host, pod, busybox):
    """Between two lives a member is one that lives: nobody forgets it, and who follows it goes on."""
    host.start("r", busybox, "sh", "-c", "echo life; exit 3", options=["--restart", "always"])
    wait_for(lambda: host.member("r")["status"] == "restarting" and host.member("r")["restarts"] > 2)
    assert host.member("r")["exit_code"] in (3, None)
    assert [m["name"] for m in host.json("ls")] == ["r"]
    assert "restarting" in host.run("ls").stdout
    assert "restarting" in host.fails(125, "rm", "r")
    assert host.run("pod", "prune").stdout == ""
    follower = start(host, "logs", "-f", "r", stdout=subprocess.PIPE)
    for _ in range(5):
        assert follower.stdout.readline() == b"life\n"
    host.run("stop", "r")
    assert host.member("r")["status"] == "stopped"
    assert follower.wait(timeout=8) == 0
    follower.communicate()
    host.run("rm", "r")


def test_stop_while_the_next_life_begins(host, pod, busybox):
    """The monitor's signals stay blocked until the nsrun that it becomes can take them: no status is lost."""
    for delay in range(0, 60, 5):
        done = start(
            host,
            "join",
            "pause",
            "--name",
            "r",
            "--rm",
            "--rootfs",
            busybox,
            "--",
            "sh",
            "-c",
            "exit 6",
            stdout=subprocess.DEVNULL,
        )
        while done.poll() is None and not host.json("ls", "-a"):
            time.sleep(0.01)
        time.sleep(delay / 1000)
        done.send_signal(signal.SIGTERM)
        assert done.wait(timeout=8) in (6, 128 + 15), delay
    for delay in range(0, 60, 5):
        host.start("r", busybox, "sh", "-c", "exit 6", options=["--restart", "always"])
        time.sleep(0.1 + delay / 1000)
        host.run("stop", "-t", "1", "r")
        assert host.member("r")["status"] == "stopped"
        assert host.member("r")["exit_code"] in (6, 128 + 15, 128 + 9)
        host.run("rm", "r")


def test_a_status_descriptor_that_nobody_reads(host, pod, busybox, full):
    host.run(
        "join", "pause", "--status-fd", str(full), "--rm", "--rootfs", busybox, "--", "true", pass_fds=[full], timeout=8
    )


# ---- what fresh eyes found -----------------------------------------------------------------------------------------


def monitor_of(pid: int) -> int:
    return int(pathlib.Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])


@pytest.mark.parametrize("words", ["kill k", "kill -s 9 k", "rm -f k"])
def test_kill_is_sigkill(host, pod, busybox, words):
    """No handler runs, whatever the stop signal is."""
    script = "trap 'echo BYE; exit 0' TERM USR1; echo ready; while :; do :; done"
    done = start(
        host,
        "join",
        "pause",
        "--name",
        "k",
        "--stop-signal",
        "USR1",
        "--rootfs",
        busybox,
        "--",
        "sh",
        "-c",
        script,
        stdout=subprocess.PIPE,
    )
    assert done.stdout.readline() == b"ready\n"
    host.run(*words.split())
    assert done.communicate(timeout=8)[0] == b"" and done.returncode == 137
    if words != "rm -f k":
        assert host.run("wait", "k").stdout == "137\n"


def test_another_writer_does_not_keep_an_ended_member(host, pod, busybox):
    """A sibling writes to its output for ever: what the member left is taken, and no more."""
    host.start("b", busybox, "sh", "-c", "echo mine; sleep 1000; exit 7", options=["--rm"] * 0)
    pid = host.member("b")["pid_in_pod"]
    writers = f"for i in 1 2 3; do yes >/proc/{pid}/fd/1 & done; sleep 0.3; kill {pid}; wait"
    host.start("sibling", busybox, "sh", "-c", writers)
    assert host.run("wait", "b", timeout=8).stdout == "143\n"
    assert host.member("b")["exit_code"] == 143


def test_a_signal_that_a_member_survives_cuts_nothing(host, pod, busybox):
    """Ctrl-C that is handled, much later the end, and a reader that wakes up later still: every line is there."""
    script = "trap 'echo caught' INT; echo ready; sleep 0.2; sleep 11; seq 12000; exit 3"
    done = start(
        host, "join", "pause", "--name", "s", "--rootfs", busybox, "--", "sh", "-c", script, stdout=subprocess.PIPE
    )
    assert done.stdout.readline() == b"ready\n"
    done.send_signal(signal.SIGINT)
    wait_for(lambda: host.member("s")["status"] == "stopped")
    time.sleep(1)
    assert len(done.stdout.read().split()) in (12000, 12001)
    assert done.wait(timeout=8) == 3


def test_what_is_cut_is_said(host, pod, busybox, full):
    done = start(
        host,
        "join",
        "pause",
        "--name",
        "s",
        "--rootfs",
        busybox,
        "--",
        "sh",
        "-c",
        "trap 'exit 0' TERM; yes & wait",
        stdout=full,
    )
    wait_for(lambda: [m["status"] for m in host.json("ls")] == ["running"])
    time.sleep(0.3)
    done.send_signal(signal.SIGTERM)
    said = done.communicate(timeout=8)[1]
    assert done.returncode == 125 and b"its reader took no more" in said
    assert host.member("s")["exit_code"] == 0


def test_a_closed_terminal_and_a_full_one(host, pod, busybox):
    """Nobody reads what was typed, and nobody what is written: the monitor sleeps."""
    t = Terminal(
        host,
        "join",
        "pause",
        "-it",
        "--name",
        "t",
        "--rootfs",
        busybox,
        "--",
        "sh",
        "-c",
        "stty raw -echo; echo ready; sleep 1; yes | head -c 400000; exec >/dev/null </dev/null 2>&1; exec sleep 1000",
    )
    t.expect("ready")
    os.set_blocking(t.master, False)
    for _ in range(30):
        try:
            os.write(t.master, b"x" * 4000)
        except BlockingIOError:
            time.sleep(0.05)
    time.sleep(2.5)
    monitor = monitor_of(host.member("t")["pid"])

    def ticks() -> int:
        return sum(map(int, pathlib.Path(f"/proc/{monitor}/stat").read_text().rpartition(")")[2].split()[11:13]))

    before = ticks()
    time.sleep(1)
    assert ticks() - before < 20
    t.close()


def test_input_for_a_member_that_has_none(host, pod, busybox):
    host.start("d", busybox, "sleep", "1000")
    for _ in range(6):
        client = start(host, "attach", "d", stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        client.stdin.write(b"hello\n")
        client.stdin.flush()
        time.sleep(0.4)
        client.kill()
        assert b"too many clients" not in client.communicate(timeout=8)[1]


def test_nothing_is_gained_by_a_descriptor(host, pod, busybox, tmp_path):
    """What the caller may only read from is not written to, though root could open it anew."""
    os.mkfifo(tmp_path / "f")
    reader = os.open(tmp_path / "f", os.O_RDONLY | os.O_NONBLOCK)
    done = start(host, "join", "pause", "--rm", "--rootfs", busybox, "--", "echo", "written", stdout=reader)
    assert done.wait(timeout=8) == 125 and b"reading only" in done.stderr.read()
    writer = os.open(tmp_path / "f", os.O_WRONLY | os.O_NONBLOCK)
    with pytest.raises(BlockingIOError):
        os.read(reader, 100)
    os.close(reader), os.close(writer)


def test_only_the_members_own_are_killed_with_it(host, busybox):
    """Without a cgroup: while its monitor is held up, others get new mount namespaces, and none of them the number of its."""
    env = {"NSRUN_CGROUP": "none"}
    host.run("pod", "create", "--network", "none", "p", env=env)
    host.run("join", "p", "-d", "--name", "m", "--rootfs", busybox, "sleep", "1000", env=env)
    pid = host.member("m")["pid"]
    monitor = monitor_of(pid)
    os.kill(monitor, signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
    strangers = [subprocess.Popen(["unshare", "--mount", "sleep", "1000"]) for _ in range(40)]
    time.sleep(0.5)
    os.kill(monitor, signal.SIGCONT)
    wait_for(lambda: host.member("m")["status"] == "stopped")
    time.sleep(0.5)
    alive = [stranger.poll() is None for stranger in strangers]
    for stranger in strangers:
        stranger.kill()
        stranger.wait(timeout=8)
    assert all(alive)
    host.run("pod", "rm", "-f", "p")


def test_keys_to_leave_that_are_typed_slowly(host, pod, busybox, terminal):
    """Ctrl-P is held back until the next key: the shell does not see it."""
    host.run("join", "pause", "-dit", "--name", "t", "--rootfs", busybox, "sh")
    t = terminal("attach", "t")
    t.expect(r"# \x1b\[J")
    t.type("echo x >>/n; echo $((6*7))\n")
    t.expect(r"42\r\n")
    t.type("\x10")
    time.sleep(0.3)
    t.type("\x11")
    assert t.process.wait(timeout=8) == 0
    again = terminal("attach", "t", rows=20)
    again.expect(r"# \x1b\[J")
    again.type("\n")
    time.sleep(0.3)
    again.type("wc -l </n; exit 12\n")
    again.expect(r"\b1\r\n")
    assert again.process.wait(timeout=8) == 12


def test_a_new_size_is_passed_on_at_once(host, pod, busybox, terminal):
    host.run(
        "join pause -dit --name t --rootfs {} sh -c {}",
        busybox,
        "trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done",
    )
    t = terminal("attach", "t")
    time.sleep(0.5)
    t.resize(40, 111)
    t.process.send_signal(signal.SIGWINCH)
    t.expect(r"40 111", 3)
