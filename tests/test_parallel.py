# SPDX-License-Identifier: Apache-2.0
"""Many commands at once on the same names: each does what it says or says why not, and nothing is left."""

from __future__ import annotations

import os
import pathlib
import random
import subprocess
import time

import pytest
from conftest import NSRUN, kill, sh, wait_for


def run_all(host, commands: list[list[str]], seconds: float = 90) -> list[tuple[list[str], int, str]]:
    """(words, status, stderr) of all of them, started at once."""
    started = [
        (words, subprocess.Popen([NSRUN, *words], env=host.env, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL))
        for words in commands
    ]  # fmt: skip
    done = []
    for words, process in started:
        _, said = process.communicate(timeout=seconds)
        done.append((words, process.returncode, said))
    return done


def understood(done: list[tuple[list[str], int, str]]) -> None:
    for words, code, said in done:
        assert "Traceback" not in said and code in (0, 125, 128 + 9, 128 + 15), (words, code, said)
        assert code != 125 or said.startswith("nsrun: "), (words, said)
        assert "[EINVAL]" not in said and "KeyError" not in said, (words, said)


@pytest.mark.parametrize("seed", range(3))
def test_fifty_commands_at_once(host, busybox, seed):
    """On two pods and three members that are made, stopped and removed all the time."""
    chance = random.Random(seed)
    before = host.snapshot()
    kinds = [
        lambda: ["pod", "create", "--network", "none", chance.choice("pq")],
        lambda: ["pod", "rm", "-f", chance.choice("pq")],
        lambda: ["pod", "stop", "-t", "0", chance.choice("pq")],
        lambda: ["pod", "kill", chance.choice("pq")],
        lambda: ["join", chance.choice("pq"), "-d", "--name", chance.choice("abc"), "--rootfs", busybox, "sleep", "60"],
        lambda: ["join", chance.choice("pq"), "--rm", "--rootfs", busybox, "true"],
        lambda: ["stop", "-t", "0", chance.choice("abc")],
        lambda: ["rm", "-f", chance.choice("abc")],
        lambda: ["kill", chance.choice("abc")],
        lambda: ["exec", chance.choice("abc"), "true"],
        lambda: ["ls", "-a"],
        lambda: ["pod", "prune"],
    ]
    for _ in range(2):
        understood(run_all(host, [chance.choice(kinds)() for _ in range(25)]))
    for name in "pq":
        host.run("pod", "rm", "-f", name)
    for member in host.json("ls", "-a"):
        host.run("rm", "-f", member["name"])
    host.run("pod", "prune")
    wait_for(lambda: host.snapshot() == before, what="nothing is left")


def test_a_pod_that_is_being_made_is_removed(host):
    """`pod rm -f` waits until it is there, and then ends it; or it came too early or too late to see any."""
    before = host.snapshot()
    for delay in range(0, 60, 6):
        creator = host.background(
            "pod", "create", "--network", "none", "p", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        time.sleep(delay / 1000)
        understood(run_all(host, [["pod", "rm", "-f", "p"], ["pod", "rm", "-f", "p"], ["pod", "stop", "p"]]))
        assert b"Traceback" not in creator.communicate(timeout=60)[1]
        host.run("pod", "rm", "-f", "p")
    wait_for(lambda: host.snapshot() == before, what="nothing is left")


def test_a_member_that_is_being_made_is_stopped(host, pod, busybox):
    for delay in range(0, 60, 6):
        words = ["join", "pause", "-d", "--name", "m", "--rootfs", busybox, "sleep", "60"]
        creator = host.background(*words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        time.sleep(delay / 1000)
        understood(run_all(host, [["stop", "-t", "0", "m"], ["rm", "-f", "m"], ["kill", "m"]]))
        assert b"Traceback" not in creator.communicate(timeout=60)[1]
        host.run("rm", "-f", "m", check=False)


def test_a_join_that_meets_a_removal(host, busybox):
    """What it makes below the pod that goes, it undoes: no cgroup, no note, no data stay."""
    before = host.snapshot()
    for delay in range(0, 50, 5):
        host.run("pod", "create", "--network", "none", "p")
        words = ["join", "p", "-d", "--name", "m", "--rootfs", busybox, "sleep", "60"]
        joiner = host.background(*words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        time.sleep(delay / 1000)
        host.run("pod", "rm", "-f", "p")
        assert b"Traceback" not in joiner.communicate(timeout=60)[1]
        host.run("pod", "ls")
        for member in host.json("ls", "-a"):
            assert member["status"] != "running"
            host.run("rm", member["name"])
        wait_for(lambda: host.snapshot() == before, what="nothing is left")


def test_a_full_disk_loses_no_exit_status(host, busybox):
    """There was room for it from the beginning."""
    small = host.root / "run"
    small.mkdir()
    sh("mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", small)
    try:
        host.run("pod", "create", "--network", "none", "pause")
        words = ["sh", "-c", "read x; exit 7"]
        member = host.background(
            "join", "pause", "-i", "--name", "m", "--rootfs", busybox, "--", *words, stdin=subprocess.PIPE
        )
        wait_for(lambda: (small / "members/m/started").exists())
        with open(small / "full", "wb", buffering=0) as file:
            with pytest.raises(OSError):
                while True:
                    file.write(b"x" * 4096)
        member.communicate(b"\n", timeout=30)
        assert member.returncode == 7
        assert host.run("wait", "m").stdout == "7\n" and host.member("m")["exit_code"] == 7
        (small / "full").unlink()
        host.run("rm", "m"), host.run("pod", "rm", "-f", "pause")
    finally:
        sh("umount", small)


def test_a_full_disk_keeps_nobody_from_ending_a_pod(host, busybox):
    """Nor does it lose the exit status of a member whose restart it prevents."""
    small = host.root / "run"
    small.mkdir()
    sh("mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", small)
    try:
        host.run("pod", "create", "--network", "none", "pause")
        words = ["sh", "-c", "read x; exit 3"]
        options = ["-i", "--restart", "on-failure", "--name", "m", "--rootfs", busybox]
        member = host.background("join", "pause", *options, "--", *words, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        host.run("join", "pause", "-d", "--name", "n", "--rootfs", busybox, "--", "sleep", "1000")
        wait_for(lambda: (small / "members/m/started").exists())
        with open(small / "full", "wb", buffering=0) as file, pytest.raises(OSError):
            while True:
                file.write(b"x" * 4096)
        member.communicate(b"\n", timeout=30)
        assert (host.member("m")["status"], host.member("m")["exit_code"]) == ("stopped", 3)
        pids = [host.pod()["pid"], host.member("n")["pid"]]
        host.run("pod", "stop", "-t", "0", "pause")
        wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), 5, "the end of the pod")
        (small / "full").unlink()
        host.run("pod", "rm", "-f", "pause")
    finally:
        sh("umount", small)


def test_stop_beside_an_end_and_a_restart(host, pod, busybox):
    """Whatever moment it is: it succeeds, and the exit status is kept."""
    rng = random.Random(7)
    for number in range(12):
        again = ["--restart", "always"] if number % 2 else []
        host.start("m", busybox, "sh", "-c", f"sleep {rng.random() / 5:.3f}; exit 3", options=again)
        time.sleep(rng.random() / 3)
        host.run("stop", "-t", "1", "m")
        found = host.member("m")
        assert (found["status"], found["exit_code"] in (3, 137, 143)) == ("stopped", True), (number, found)
        host.run("rm", "m")


def test_logs_that_are_followed_lose_no_line(host, pod, busybox):
    """However slow its reader is, and when the log is begun anew."""
    lines = 260_000  # more than one file of 16 MiB, and not more than two
    script = f"i=0; while [ $i -lt {lines} ]; do echo line $i; i=$((i+1)); done; sleep 0.5"
    host.start("m", busybox, "sh", "-c", script)
    log = host.background("logs", "-f", "m", stdout=subprocess.PIPE)
    assert log.stdout
    first = log.stdout.readline()
    time.sleep(1)
    rest = log.stdout.read().splitlines()
    numbers = [int(line.split()[1]) for line in [first, *rest]]
    assert numbers == list(range(lines))
    assert log.wait(20) == 0


def test_a_killed_monitor_is_named_only_when_it_was_killed(host, pod, busybox):
    host.start("m", busybox, "sleep", "1000")
    pid = host.member("m")["pid"]
    monitor = int(pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    kill(monitor)
    wait_for(lambda: not os.path.exists(f"/proc/{monitor}"))
    assert host.member("m")["status"] == "running" and host.member("m")["pid"] == pid
    assert "processes of member" in host.fails(125, "rm", "m") or "is running" in host.fails(125, "rm", "m")
    host.run("rm", "-f", "m")
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"))


def test_of_many_restarts_at_once_each_succeeds(host, pod, busybox):
    """What one has started again, the stop of another does not mark: a member with that mark is not restarted (--restart)."""
    host.start("m", busybox, "sleep", "1000")
    for _ in range(6):
        before = host.member("m")["pid"]
        for _, code, said in run_all(host, [["restart", "m"]] * 4):
            assert code == 0, said
        after = host.member("m")
        assert after["status"] == "running" and after["pid"] != before
    for words, code, said in run_all(host, [["pod", "restart", "pause"]] * 3):
        assert code == 0, (words, said)
    assert host.member("m")["status"] == "running"
    host.run("stop", "-t", "0", "m")
    done = run_all(host, [["start", "m"]] * 3)
    assert sorted(code for _, code, _ in done) == [0, 125, 125], done
