# SPDX-License-Identifier: Apache-2.0
"""-it: a terminal of the member's own; job control, size, Ctrl-C, attach."""

import hashlib
import os
import re
import select
import signal
import socket
import subprocess
import termios
import time

from conftest import NSRUN
from images import Layout, entry, tar
from test_sweep import MEMBER

from nsrun.state import State, life


def test_join_it(host, pod, busybox, terminal):
    t = terminal("join", "pause", "-it", "--name", "a", "--rootfs", busybox, "sh")
    t.expect(r"# ")
    t.type("tty; stty size; echo $TERM; ls -l /dev/console\n")
    t.expect(r"/dev/pts/0\r\n31 101\r\nvt100\r\n")
    t.expect(r"/dev/console -> pts/0")
    t.resize(40, 120)
    os.kill(t.process.pid, signal.SIGWINCH)
    t.type("stty size\n")
    t.expect(r"40 120")
    t.type("sleep 100\n")
    time.sleep(0.3)
    t.type("\x03")
    t.expect(r"# ")
    t.type("sleep 99 &\njobs\n")
    t.expect(r"\[1\]\+  Running")
    t.type("exit 7\n")
    assert t.process.wait(timeout=30) == 7
    assert termios.tcgetattr(t.slave)[3] & termios.ECHO, "the caller's terminal is as before"
    assert "exit 7" in host.run("logs", "a").stdout


def test_exec_it(host, pod, busybox, terminal):
    host.start("a", busybox, "sleep", "1000")
    t = terminal("exec", "-it", "a", "sh")
    t.expect(r"# ")
    t.type("tty; stty size; ps -o pid,tty,args\n")
    t.expect(r"/dev/pts/0\r\n31 101\r\n")
    t.expect(r"PID(?s:.*)# ")
    t.type("\x04")
    assert t.process.wait(timeout=30) == 0
    assert host.member("a")["status"] == "running"


def test_no_keys_into_the_callers_terminal(host, pod, busybox, terminal):
    """TIOCSTI (CVE-2017-5226): the member's terminal is another one, and without -t there is none."""
    t = terminal(
        "join",
        "pause",
        "--rootfs",
        busybox,
        "sh",
        "-c",
        "ls -l /proc/self/fd/0 /proc/self/fd/1; cat /proc/self/stat | cut -d' ' -f7; echo done",
    )
    seen = t.expect(r"(?s).*done")
    assert "/dev/null" in seen and "pipe:" in seen and "pts" not in seen
    assert re.search(r"\r\n0\r\n", seen), "no controlling terminal"


def test_attach_and_leave(host, pod, busybox, terminal):
    host.run("join", "pause", "-dit", "--name", "a", "--rootfs", busybox, "sh")
    t = terminal("attach", "a")
    t.expect(r"# \x1b\[J")  # the shell saw the new size
    t.type("echo $((6*7)); stty size\n")
    t.expect(r"42\r\n31 101")
    t.type("\x10\x11")
    assert t.process.wait(timeout=30) == 0
    again = terminal("attach", "a", rows=20)
    again.expect(r"# \x1b\[J")
    again.type("exit 5\n")
    assert again.process.wait(timeout=30) == 5
    assert host.member("a")["exit_code"] == 5


def test_attach_without_a_terminal(host, pod, busybox):
    host.start("a", busybox, "sh", "-c", "read x; echo got $x; echo err >&2; exit 3", options=["-i"])
    done = host.run("attach", "a", input="line\n", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "got line\n", "err\n")


def test_attach_to_a_monitor_that_ends_before_it_has_read_everything(tmp_path):
    """Then unix(7) says ECONNRESET once, before it gives what had been sent: the output and the exit status."""
    state = State(str(tmp_path))
    process = {"process": state.identify(os.getpid()), "pidfd": os.pidfd_open(os.getpid())}
    note = {"id": "1", "name": "a", **MEMBER, **process}
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    path, held = state.claim("members", "a", note, {}, lambda kind, name: None)
    life.own(held, life.KEEPER)  # we are the monitor, and the member, too
    directory = os.open(path, os.O_PATH)
    listener.bind(f"/proc/self/fd/{directory}/attach")  # sun_path is short
    listener.listen()
    words = [NSRUN, "--root", tmp_path, "attach", "a"]
    client = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    client.stdin.write("line\n")
    client.stdin.flush()
    monitor = listener.accept()[0]
    select.select([monitor], [], [], 30)  # its packet is there, and is not read
    client.send_signal(signal.SIGSTOP)
    monitor.send(b"ogot line\n")
    monitor.send(b"x3")
    monitor.close()
    client.send_signal(signal.SIGCONT)
    assert (*client.communicate(timeout=30), client.returncode) == ("got line\n", "", 3)


def test_it_needs_a_terminal(host, pod, busybox):
    assert "terminal" in host.fails(2, "join", "pause", "-it", "--rootfs", busybox, "sh", stdin=subprocess.DEVNULL)


def test_a_terminal_on_the_hosts_own_filesystem(host, pod, terminal):
    t = terminal("join", "pause", "-it", "--name", "a", "--", "bash", "--norc", "--noprofile")
    t.expect(r"\$ |# ")
    t.type("tty; ps -o pid,args | head -3; exit 9\n")
    t.expect(r"/dev/pts/0\r\n")
    t.expect(r"bash --norc")
    assert t.process.wait(timeout=30) == 9


def test_attach_loses_no_input(host, pod, busybox):
    """A member that reads slowly holds the sender up; nothing is dropped."""
    host.start("a", busybox, "sh", "-c", "sleep 0.5; md5sum", options=["-i"])
    data = "".join(f"line {i}\n" for i in range(40000))
    done = host.run("attach", "--close-stdin", "a", input=data)
    assert done.stdout.split()[0] == hashlib.md5(data.encode()).hexdigest()


def test_a_load_shows_how_far_it_is(host, terminal, tmp_path):
    layers = [b"".join(entry(f"{n}/{m}", b"x" * 2000) for m in range(3000)) + tar() for n in range(3)]
    path = Layout(*layers, how="plain", name="long:1").write(tmp_path / "l")
    person = terminal("image", "load", path)
    person.expect(r"long:1 [█░]{30} +\d+% of [\d.]+ MB")
    person.expect(r"100% of [\d.]+ MB")
    person.expect("\r\x1b\\[Klong:1\r\n")  # the bar is wiped before the name is printed
    assert person.process.wait(timeout=30) == 0
    assert host.run("image", "load", path).stderr == ""  # no terminal, no bar
