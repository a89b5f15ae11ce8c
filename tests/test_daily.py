# SPDX-License-Identifier: Apache-2.0
"""What people type every day with docker and podman, in the same words: pause, restart, rename."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from conftest import CACHE, NSRUN, not_editable, open_files, wait_for
from test_explain import foretold

pytestmark = pytest.mark.live
#: It counts for as long as it runs, into its own root.
COUNT = "n=0; while :; do n=$((n+1)); echo $n >/n.new; mv /n.new /n; done"


def counted(host, name: str) -> int:
    """How far COUNT has come, read from outside: exec is refused while the member is paused."""
    return int(pathlib.Path(f"/proc/{host.member(name)['pid']}/root/n").read_text())


def freezer(host, name: str) -> pathlib.Path:
    """The cgroup of a member."""
    pid = host.member(name)["pid"]
    line = next(line for line in pathlib.Path(f"/proc/{pid}/cgroup").read_text().splitlines() if line.startswith("0::"))
    base = "/sys/fs/cgroup/unified" if os.path.isdir("/sys/fs/cgroup/unified") else "/sys/fs/cgroup"
    return pathlib.Path(base + line[3:])


def is_frozen(group: pathlib.Path) -> bool:
    return "frozen 1" in (group / "cgroup.events").read_text()


# ---- pause, unpause -------------------------------------------------------------------------------------------


def test_a_paused_member_stands_still_and_goes_on(host, pod, busybox):
    host.start("m", busybox, "sh", "-c", COUNT)
    host.start("other", busybox, "sleep", "1000")
    wait_for(lambda: os.path.exists(f"/proc/{host.member('m')['pid']}/root/n"))
    assert host.run("pause", "m").stdout == "m\n"
    group = freezer(host, "m")
    assert is_frozen(group) and not is_frozen(freezer(host, "other"))
    stands = counted(host, "m")
    assert {m["name"]: m["status"] for m in host.json("ls")} == {"m": "paused", "other": "running"}
    assert "paused" in host.run("ls").stdout and host.member("m")["pid"] > 0
    assert host.json("stats")[0]["name"] == "m"
    for command in (["exec", "m", "true"], ["attach", "m"], ["pause", "m"]):
        assert "is paused" in (told := host.fails(125, *command)) and "unpause m" in told
    assert counted(host, "m") == stands
    assert host.run("unpause", "m").stdout == "m\n"
    assert not is_frozen(group) and host.member("m")["status"] == "running"
    wait_for(lambda: counted(host, "m") > stands)
    assert host.run("exec", "m", "echo", "hello").stdout == "hello\n"
    assert "is not paused" in host.fails(125, "unpause", "m")


def test_a_compiled_exec_does_not_enter_a_paused_member(host, pod, busybox):
    """It would be frozen at its first step, and its caller would wait."""
    host.start("m", busybox, "sleep", "1000")
    for _ in range(3):
        assert host.run("exec", "m", "echo", "hello").stdout == "hello\n"
    host.run("pause", "m")
    assert "is paused" in host.fails(125, "exec", "m", "echo", "hello")
    host.run("unpause", "m")
    assert host.run("exec", "m", "echo", "hello").stdout == "hello\n"


@pytest.mark.parametrize(
    ("command", "status"),
    [("stop m", 7), ("kill m", 137), ("rm -f m", None), ("pod kill pause", None), ("pod stop pause", None), ("pod rm -f pause", None)],
)  # fmt: skip
def test_what_is_paused_can_be_ended(host, pod, busybox, command, status):
    """By its own handler where there is time for one: it goes on with the signal."""
    host.start("m", busybox, "sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done")
    wait_for(lambda: host.run("logs", "m").stdout)
    host.run("pause", "m")
    done = host.run(*command.split())
    assert done.stderr == ""
    if status is not None:
        assert host.member("m")["status"] == "stopped" and host.member("m")["exit_code"] == status


def test_a_signal_waits_until_it_goes_on(host, pod, busybox):
    host.start("m", busybox, "sh", "-c", "trap 'exit 9' USR1; echo ready; while :; do sleep 0.05; done")
    wait_for(lambda: host.run("logs", "m").stdout)
    host.run("pause", "m")
    host.run("kill", "-s", "USR1", "m")
    assert host.member("m")["status"] == "paused"
    host.run("unpause", "m")
    assert host.run("wait", "m").stdout == "9\n"
    for verb in ("pause", "unpause"):
        assert "is stopped" in host.fails(125, verb, "m")
        assert "no member" in host.fails(125, verb, "nix")


def test_a_mark_without_a_frozen_cgroup_means_nothing(host, pod, busybox):
    """pause and unpause may be killed between the mark and the freezer."""
    host.start("m", busybox, "sleep", "1000")
    (host.root / "run/members/m/paused").touch()
    assert host.member("m")["status"] == "running" and host.json("ls")[0]["status"] == "running"
    host.run("pause", "m")
    (freezer(host, "m") / "cgroup.freeze").write_text("0")  # somebody else thaws it
    assert host.member("m")["status"] == "running"


def test_a_cgroup_above_that_is_frozen(host, pod, busybox):
    """unpause says so, and does not wait without a bound."""
    host.start("m", busybox, "sleep", "1000")
    host.run("pause", "m")
    above = freezer(host, "m").parent / "cgroup.freeze"
    above.write_text("1")
    try:
        assert "still frozen" in host.fails(125, "unpause", "m")
    finally:
        above.write_text("0")
    assert host.member("m")["status"] == "running"


def test_a_pod_without_a_cgroup_can_not_be_paused(host, busybox):
    env = {"NSRUN_CGROUP": "none"}
    host.run("pod", "create", "--network", "none", "pause", env=env)
    host.run("join", "pause", "-d", "--name", "m", "--rootfs", busybox, "sleep", "1000", env=env)
    assert "no cgroup" in host.fails(125, "pause", "m", env=env)


def test_the_owner_pauses_and_root_does_it_for_them(host, alice, owned, box):
    alice.run("join", owned, "-d", "--name", "m", "--image", box, "--", "sleep", "1000")
    alice.run("pause", "m")
    assert alice.member("m")["status"] == "paused" and host.json("ls")[0]["status"] == "paused"
    assert "is paused" in alice.fails(125, "exec", "m", "true")
    host.run("unpause", "m")
    assert alice.member("m")["status"] == "running"
    host.run("pause", "m")
    alice.run("stop", "-t", "0", "m")
    alice.run("join", owned, "-d", "--name", "again", "--image", box, "--", "sleep", "1000")
    alice.run("pause", "again")
    host.run("pod", "kill", owned)


@not_editable  # coverage makes calls of its own
def test_pausing_is_what_strace_shows(host, pod, busybox, tmp_path):
    host.start("m", busybox, "sleep", "1000")
    foretold(host, tmp_path, "pause", "m")
    assert "is paused already" in host.fails(125, "explain", "pause", "m")
    foretold(host, tmp_path, "unpause", "m")
    foretold(host, tmp_path, "pause", "m")
    foretold(host, tmp_path, "stop", "m")


# ---- start, restart, pod restart --------------------------------------------------------------------------------


def test_a_restart_keeps_what_was_written(host, pod, busybox, tmp_path):
    """The same member: its data, its log, its options, its environment; and another process."""
    host.run(
        "join pause -d --name m -e A=1 -e B --rootfs {} -u 5:6 -- sh -c {}",
        busybox, "echo $A $B $(id -u) $(cat /tmp/x); echo y >/tmp/x; exec sleep 1000", env={"B": "two"},
    )  # fmt: skip
    before = host.member("m")
    wait_for(lambda: host.run("logs", "m").stdout)
    assert host.run("restart", "m", env={"B": "three"}, cwd="/").stdout == "m\n"
    after = host.member("m")
    assert after["id"] == before["id"] and after["created"] == before["created"]
    assert after["status"] == "running" and after["pid"] != before["pid"] and after["restarts"] == 0
    wait_for(lambda: len(host.run("logs", "m").stdout.splitlines()) == 2)
    assert host.run("logs", "m").stdout.splitlines() == ["1 two 5", "1 two 5 y"]
    assert host.run("exec", "m", "id", "-u").stdout == "5\n"


def test_what_has_ended_is_started(host, pod, busybox):
    host.run("join", pod, "--name", "m", "--rootfs", busybox, "--", "sh", "-c", "exit 7", check=False)
    assert host.member("m")["exit_code"] == 7
    for verb in ("start", "restart"):
        assert host.run(verb, "m").stdout == "m\n"
        assert host.run("wait", "m").stdout == "7\n"
    host.start("n", busybox, "sleep", "1000")
    assert "nsrun restart n" in host.fails(125, "start", "n")
    host.run("stop", "-t", "0", "n")
    host.run("start", "n")
    assert host.member("n")["status"] == "running" and host.run("exec", "n", "echo", "x").stdout == "x\n"
    host.run("kill", "n")
    host.run("rm", "m", "n")
    assert host.json("ls", "-a") == []


def test_a_restart_that_has_to_kill_says_so(host, pod, busybox):
    host.start("m", busybox, "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done")
    wait_for(lambda: host.run("logs", "m").stdout)
    assert "was killed" in host.run("restart", "-t", "0.1", "m").stderr
    assert host.member("m")["status"] == "running"


def test_a_restart_policy_goes_on_after_a_restart(host, pod, busybox):
    host.start("m", busybox, "sleep", "1000", options=["--restart", "always"])
    host.run("restart", "-t", "0", "m")
    pid = host.member("m")["pid"]
    os.kill(pid, 9)
    wait_for(lambda: host.member("m")["status"] == "running" and host.member("m")["pid"] not in (0, pid))
    assert host.member("m")["restarts"] == 1
    host.run("stop", "-t", "0", "m")
    host.run("start", "m")
    assert host.member("m")["status"] == "running"


def test_a_start_that_fails_leaves_it_as_it_was(host, pod, rootfs):
    host.run("join", pod, "--name", "m", "--rootfs", rootfs, "--", "/bin/sh", "-c", "exit 3", check=False)
    before = host.member("m")
    os.rename(rootfs / "bin", rootfs / "nib")
    assert "/bin/sh" in host.fails(127, "start", "m")
    assert host.member("m") == before
    os.rename(rootfs / "nib", rootfs / "bin")
    host.run("start", "m")
    assert host.run("wait", "m").stdout == "3\n"


def test_what_can_not_be_started(host, pod, busybox):
    host.start("m", busybox, "sleep", "1000", options=["--rm"])
    assert "--rm" in host.fails(125, "restart", "m")
    assert host.member("m")["status"] == "running"
    host.start("n", busybox, "sleep", "1000")
    host.run("pod", "kill", "-s", "USR1", pod)
    os.kill(host.pod()["pid"], 9)
    wait_for(lambda: host.json("ls") == [])
    assert "has ended" in host.fails(125, "start", "n")
    assert "no member" in host.fails(125, "start", "nix")


def test_relative_paths_mean_what_they_meant(host, pod, rootfs):
    data = host.root / "data"
    data.mkdir()
    (data / "file").write_text("here")
    words = ["join", pod, "-d", "--name", "m", "--rootfs", "./rootfs", "-v", "./data:/data", "--", "sh", "-c", "cat /data/file; echo; sleep 1000"]  # fmt: skip
    host.run(*words, cwd=host.root)
    host.run("restart", "-t", "0", "m", cwd="/")
    wait_for(lambda: host.run("logs", "m").stdout == "here\nhere\n")


def test_many_at_once_start_it_once(host, pod, busybox):
    host.run(
        "join",
        pod,
        "--name",
        "m",
        "--rootfs",
        busybox,
        "--",
        "sh",
        "-c",
        "echo began; [ -e /x ] && exec sleep 1000; touch /x",
        check=False,
    )
    words = [[NSRUN, "start", "m"]] * 6 + [[NSRUN, "rm", "m"]] * 2
    running = [subprocess.Popen(w, env=host.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for w in words]  # fmt: skip
    done = [process.communicate(timeout=60) + (process.returncode,) for process in running]
    started = sum(code == 0 for _, _, code in done[:6])
    removed = sum(code == 0 for _, _, code in done[6:])
    assert started + removed >= 1 and all("Traceback" not in told for _, told, _ in done), done
    if removed:
        assert host.json("ls", "-a") == []
    else:
        assert started == 1, done
        wait_for(lambda: len(host.run("logs", "m").stdout.splitlines()) == 2)
        assert host.run("logs", "m").stdout == "began\n" * 2


#: Starts the member m, and is killed after so many of the steps that are not nsrun-init's.
DYING = """
import functools, os, signal, sys
from nsrun.lifecycle import again
from nsrun.plan import INIT
from nsrun.run import Run
from nsrun.state import State
class Dying(Run):
    def execute(self):
        steps = [step for step in self.plan if step.phase != INIT]
        for number, step in enumerate(steps, 1):
            step.do(self)
            if number == int(sys.argv[1]):
                os.kill(os.getpid(), signal.SIGKILL)
        sys.exit(3)
again.join = functools.partial(again.join, make=Dying)
again.start_member(State(), State().member("m"))
"""


def test_a_start_that_is_killed_leaves_what_can_be_started(host, pod, busybox):
    """At every step; what is left can be removed as well, and what was written is there."""
    host.run("join", pod, "--name", "m", "--rootfs", busybox, "--", "sh", "-c", "echo x >>/x; cat /x", check=False)
    for number in range(1, 40):
        words = [sys.executable, "-I", "-c", DYING, str(number)]
        done = subprocess.run(words, env=host.env, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode == 3:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        wait_for(lambda: host.member("m")["status"] in ("stopped", "lost"))
        host.run("start", "m")
        host.run("wait", "m")
    assert number > 10
    assert host.run("logs", "--tail", "2", "m").stdout == "x\nx\n"
    host.run("rm", "-f", "m")


def test_a_pod_is_restarted_in_its_place(host, busybox):
    host.run("pod", "create", "p")
    for name in ("a", "b"):
        host.run("join", "p", "-d", "--name", name, "--rootfs", busybox, "sh", "-c", "echo $0; sleep 1000", name)
    host.run("join", "p", "--name", "c", "--rootfs", busybox, "true")
    before, pids = host.pod("p"), {m["name"]: m["pid"] for m in host.json("ls", "-a")}
    assert host.run("pod", "restart", "-t", "0", "p", check=False).stdout == "p\n"
    after = host.pod("p")
    assert after["pid"] == before["pid"] and after["network"] == before["network"]
    now = {m["name"]: m for m in host.json("ls", "-a")}
    assert all(now[name]["status"] == "running" and now[name]["pid"] != pids[name] for name in "ab")
    assert host.run("wait", "c").stdout == "0\n" and now["c"]["started"] > now["c"]["created"]
    host.run("join", "p", "-d", "--rm", "--name", "d", "--rootfs", busybox, "sleep", "1000")
    assert "'d' was joined with --rm" in host.fails(125, "pod", "restart", "p")
    assert {name: m["pid"] for name, m in now.items() if name != "c"} == {m["name"]: m["pid"] for m in host.json("ls") if m["name"] != "d"}  # fmt: skip


def test_the_owner_restarts(host, alice, owned, box):
    alice.run("join", owned, "-d", "--name", "m", "--image", box, "--", "sleep", "1000")
    pid = alice.member("m")["pid"]
    alice.run("restart", "-t", "0", "m")
    assert alice.member("m")["pid"] != pid and alice.member("m")["status"] == "running"
    host.run("restart", "-t", "0", "m")
    assert f"-u {alice.name} nsrun pod restart" in host.fails(125, "pod", "restart", owned)
    pid = alice.member("m")["pid"]
    alice.run("pod", "restart", "-t", "0", owned)
    assert alice.member("m")["pid"] != pid and alice.member("m")["status"] == "running"


@not_editable  # coverage makes calls of its own
def test_a_restart_is_what_strace_shows(host, pod, busybox, tmp_path):
    host.start("m", busybox, "sleep", "1000")
    foretold(host, tmp_path, "restart", "-t", "0", "m")
    host.run("stop", "-t", "0", "m")
    foretold(host, tmp_path, "start", "m")
    foretold(host, tmp_path, "pod", "restart", "-t", "0", "pause")
    told = json.loads(host.run("explain", "--format", "json", "restart", "m").stdout)
    assert [step["step"] for step in told["steps"]][:2] == ["StopMember", "StartMember"]


# ---- rename -----------------------------------------------------------------------------------------------------


def test_a_running_member_gets_another_name(host, pod, busybox):
    """It goes on, and everything that asks for it by its new name finds it; the old one is free."""
    host.start("a", busybox, "sh", "-c", "echo one; exec sleep 1000", options=["-v", "/data"])
    before = host.member("a")
    waiting = host.background("wait", "a", stdout=subprocess.PIPE, text=True)
    follower = host.background("logs", "-f", "a", stdout=subprocess.PIPE, text=True)
    assert follower.stdout.readline() == "one\n"
    wait_for(lambda: "anon_inode:[pidfd]" in open_files(waiting.pid), what="it waits for the monitor")
    assert host.run("rename", "a", "b").stdout == "b\n"
    assert host.member("b") == {**before, "name": "b"} and host.pod()["members"] == ["b"]
    assert "no member" in host.fails(125, "exec", "a", "true")
    assert host.run("exec", "b", "echo", "x").stdout == "x\n" and host.run("logs", "b").stdout == "one\n"
    host.start("a", busybox, "sleep", "1000")  # blue and green
    assert host.pod()["members"] == ["a", "b"] and host.member("a")["id"] != before["id"]
    host.run("exec", "a", "true")
    host.run("kill", "a")
    assert host.member("b")["status"] == "running" and host.member("a")["status"] == "stopped"
    host.run("kill", "b")
    assert waiting.communicate(timeout=30)[0] == "137\n" and follower.wait(timeout=30) == 0
    host.run("restart", "b")
    assert host.member("b")["pid"] > 0 and host.run("exec", "b", "echo", "x").stdout == "x\n"
    host.run("rm", "-f", "b", "a")
    assert not list((host.root / "lib/upper").iterdir())


def test_a_name_that_can_not_be_had(host, pod, busybox):
    host.start("a", busybox, "sleep", "1000")
    host.run("join", pod, "--name", "b", "--rootfs", busybox, "true")
    before = host.json("ls", "-a")
    assert "is taken" in host.fails(125, "rename", "a", "b")
    assert "already" in host.fails(125, "rename", "a", "a")
    for name in ("", "..", "x/y", "-x"):
        assert host.run("rename", "--", "a", name, check=False).returncode in (2, 125)
    assert host.json("ls", "-a") == before
    host.run("rename", "b", "c")
    assert host.member("c")["status"] == "stopped"


def test_restart_and_rm_know_the_new_name(host, pod, busybox):
    """Their monitors were told the old one when they began."""
    host.start("a", busybox, "sleep", "1000", options=["--restart", "always"])
    host.start("c", busybox, "sleep", "1000", options=["--rm"])
    host.run("rename", "a", "b")
    host.run("rename", "c", "d")
    host.start("a", busybox, "sleep", "1000")  # and another has it
    pid = host.member("b")["pid"]
    os.kill(pid, 9)
    wait_for(lambda: host.member("b")["status"] == "running" and host.member("b")["pid"] not in (0, pid))
    assert host.member("b")["restarts"] == 1 and host.member("a")["restarts"] == 0
    host.run("kill", "d")
    wait_for(lambda: {m["name"] for m in host.json("ls", "-a")} == {"a", "b"})
    host.run("pod", "kill", pod)
    assert host.json("ls", "-a") == []


RENAMING = """
import os, signal, sys
from nsrun.lifecycle import rename
from nsrun.state import State
left = int(sys.argv[1])
def dying(name, made):
    def call(*args, **kwargs):
        global left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return made(*args, **kwargs)
    setattr(os, name, call)
for name in ("rename", "unlink", "open", "write"):
    dying(name, getattr(os, name))
rename.rename_member(State(), State().member(sys.argv[2]), sys.argv[3])
"""


def test_a_rename_that_is_killed_at_any_call(host, pod, busybox):
    """It has one of the two names, is whole, and can be renamed once more."""
    host.start("a", busybox, "sleep", "1000", options=["-v", "/data"])
    before, old, new, number = host.member("a"), "a", "b", 0
    while True:
        number += 1
        words = [sys.executable, "-I", "-c", RENAMING, str(number), old, new]
        done = subprocess.run(words, env=host.env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        (now,) = host.json("ls", "-a")
        assert now["name"] in (old, new) and {**now, "name": "a"} == before
        if done.returncode == 0:
            break
        if now["name"] == new:
            old, new = new, old
    assert now["name"] == new and number > 10
    host.run("exec", new, "true")
    host.run("pod", "kill", pod)
    assert host.json("ls", "-a") == [] and not list((host.root / "lib/upper").iterdir())


def test_the_owner_renames(host, alice, owned, box):
    alice.run("join", owned, "-d", "--name", "m", "--image", box, "--", "sleep", "1000")
    alice.run("rename", "m", "n")
    host.run("rename", "n", "o")
    assert [m["name"] for m in alice.json("ls")] == ["o"] == [m["name"] for m in host.json("ls")]
    alice.run("exec", "o", "true")
    alice.run("join", owned, "-d", "--name", "m", "--image", box, "--", "sleep", "1000")
    alice.run("exec", "m", "true")


@not_editable  # coverage makes calls of its own
def test_a_rename_is_what_strace_shows(host, pod, busybox, tmp_path):
    host.start("a", busybox, "sleep", "1000")
    foretold(host, tmp_path, "rename", "a", "b")
    host.run("join", pod, "--name", "c", "--rootfs", busybox, "--read-only", "true")
    foretold(host, tmp_path, "rename", "c", "a")
    assert "is taken" in host.fails(125, "explain", "rename", "a", "b")


# ---- top, port --------------------------------------------------------------------------------------------------


def test_the_processes_of_a_member(host, pod, busybox, tmp_path):
    host.start("m", busybox, "sh", "-c", "sleep 1000 & exec sleep 2000", options=["-u", "5"])
    host.start("other", busybox, "sleep", "3000")
    wait_for(
        lambda: len(host.json("top", "m")) == 2 and all("sleep" in row["command"] for row in host.json("top", "m"))
    )
    rows = host.json("top", "m")
    assert sorted(row["command"] for row in rows) == ["sleep 1000", "sleep 2000"] and {row["uid"] for row in rows} == {
        5
    }
    assert [row for row in host.json("pod", "ps", pod) if row["member"] == "m"] == rows
    assert host.run("top", "m").stdout.splitlines()[0].split() == ["PID", "HOSTPID", "UID", "MEMBER", "COMMAND"]
    host.run("kill", "m")
    assert "is stopped" in host.fails(125, "top", "m") and "no member" in host.fails(125, "top", "nix")


def test_the_processes_of_an_owners_member(host, alice, owned, box):
    alice.run("join", owned, "-d", "--name", "m", "--image", box, "--", "sleep", "1000")
    assert [row["uid"] for row in alice.json("top", "m")] == [0] == [row["uid"] for row in host.json("top", "m")]


def test_published_ports(host, alice, busybox, box):
    host.run("pod", "create", "-p", "127.0.0.1:20480:80", "-p", "20481:80", "-p", "20482:443", "p")
    host.run("join", "p", "-d", "--name", "m", "--rootfs", busybox, "sleep", "1000")
    told = ["80/tcp -> 127.0.0.1:20480"]
    told += [f"{port} -> {ip}:{n}" for ip in ("0.0.0.0", "[::]") for port, n in (("80/tcp", 20481), ("443/tcp", 20482))]
    assert sorted(host.run("port", "p").stdout.splitlines()) == sorted(told)
    assert host.run("port", "m").stdout == host.run("port", "p").stdout
    assert (
        host.run("port", "m", "443").stdout == "0.0.0.0:20482\n[::]:20482\n" == host.run("port", "p", "443/tcp").stdout
    )
    assert [p["host_port"] for p in host.json("port", "p", "443")] == [20482] * 2
    assert "not published" in host.fails(125, "port", "p", "81") and "not published" in host.fails(
        125, "port", "p", "80/udp"
    )
    for word in ("x", "0", "65536", "80/sctp", "80/"):
        assert host.run("port", "p", word, check=False).returncode == 2
    assert "no member" in host.fails(125, "port", "nix")
    host.run("pod", "create", "--network", "none", "q", env={"SUDO_UID": str(alice.uid)})
    alice.run("join", "q", "-d", "--name", "n", "--image", box, "--", "sleep", "1000")
    assert host.run("port", "n").stdout == "" == host.run("port", "q").stdout


def test_roots_member_of_an_owned_pod(host, alice, owned, busybox):
    """It is paused, restarted and renamed as any other of root's; the owner does not see it."""
    host.run("join", owned, "-d", "--name", "r", "--rootfs", busybox, "--", "sleep", "1000")
    pid = host.member("r")["pid"]
    host.run("pause", "r")
    host.run("restart", "-t", "0", "r")
    assert host.member("r")["status"] == "running" and host.member("r")["pid"] not in (0, pid)
    host.run("rename", "r", "s")
    assert host.run("exec", "s", "echo", "x").stdout == "x\n"
    assert "no member" in alice.fails(125, "pause", "s")


# ---- several members of a user's pod, and members of several users --------------------------------------------


@pytest.mark.parametrize("maker", ["root", "alice"])
def test_several_members_of_a_users_pod_start_again(host, alice, box, maker):
    """Each needs the pod's user namespace, which a process enters for good."""
    if maker == "root":
        host.run("pod", "create", "--network", "none", "pause", env={"SUDO_UID": str(alice.uid)})
    else:
        alice.run("pod", "create", "--network", "none", "pause")
    names = ["a", "b", "c"]
    for name in names:
        alice.run("join", "pause", "-d", "--name", name, "--image", box, "--", "sh", "-c", "echo x >>/lives; sleep 1000")  # fmt: skip
    lives = 1
    for user in (alice, host) if maker == "root" else (alice,):
        for commands in (
            [["stop", "-t", "0", *names], ["start", *names]],
            [["restart", "-t", "0", "a", "b"], ["restart", "-t", "0", "c"]],
            *([[["pod", "restart", "-t", "0", "pause"]]] if user is alice else []),
        ):
            before = {name: alice.member(name)["pid"] for name in names}
            for words in commands:
                user.run(*words)
            lives += 1
            now = {name: alice.member(name) for name in names}
            assert {m["status"] for m in now.values()} == {"running"}
            assert all(now[name]["pid"] not in (0, before[name]) for name in names)
            for name in names:
                wait_for(lambda name=name, n=lives: alice.run("exec", name, "cat", "/lives").stdout == "x\n" * n)
    assert "is running" in alice.fails(125, "start", "a", "b")
    alice.run("stop", "-t", "0", "a", "b")
    alice.run("start", "a")
    done = alice.run("start", "nix", "a", "b", check=False)
    assert (done.returncode, done.stdout) == (125, "b\n") and done.stderr.count("hint:") == 2
    assert alice.member("b")["status"] == "running"


def test_a_start_apart_tells_what_went_wrong(host, alice, owned, box):
    mounted = alice.home / "mounted"
    mounted.mkdir()
    os.chown(mounted, alice.uid, alice.uid)
    for name in ("a", "b"):
        alice.run("join", owned, "-d", "--name", name, "--image", box, "-v", f"{mounted}:/m", "--", "sleep", "1000")
    alice.run("stop", "-t", "0", "a", "b")
    mounted.rmdir()
    told = alice.fails(125, "start", "a", "b")
    assert told.count("nsrun: ") == 2 and told.count(str(mounted)) >= 2 and "Traceback" not in told
    assert {alice.member(name)["status"] for name in ("a", "b")} == {"stopped"}


def test_a_command_is_about_the_members_of_one_user(host, alice, owned, pod2, box, busybox):
    """Root names members of their own and of an owner, who has others of the same names: nothing is done."""
    for name in ("web", "newweb"):
        alice.run("join", owned, "-d", "--name", name, "--image", box, "--", "sleep", "1000")
    host.run("join", pod2, "-d", "--name", "web", "--rootfs", busybox, "--", "sleep", "1000")
    for command in ("stop", "kill", "restart", "pause", "inspect", "wait", "explain stop", "explain kill"):
        told = host.fails(125, *command.split(), "web", "newweb")
        assert "different users" in told and "one command for each" in told, command
    assert "different users" in host.fails(125, "cp", "newweb:/etc/passwd", "web:/p")
    assert {m["status"] for m in alice.json("ls", "-a")} == {"running"}
    assert host.member("web")["status"] == "running"
    host.run("rename", "web", "newweb")  # of root's own, whatever owners have
    assert {m["name"] for m in host.json("ls") if m["pod"] == pod2} == {"newweb"}
    assert host.fails(125, "inspect", "newweb", "nix").count("no member") == 1
    host.run("stop", "-t", "0", "web")  # which only alice has now
    assert {m["name"]: m["status"] for m in alice.json("ls", "-a")} == {"web": "stopped", "newweb": "running"}


@pytest.fixture
def pod2(host) -> str:
    """A pod of root's own beside that of an owner."""
    return host.run("pod", "create", "--network", "none", "--owner", "root", "roots").stdout.strip()


def test_members_of_two_owners(host, alice, bob, box):
    for user, name in ((alice, "of-alice"), (bob, "of-bob")):
        host.run("pod", "create", "--network", "none", f"pod-{name}", env={"SUDO_UID": str(user.uid)})
    alice.run("join", "pod-of-alice", "-d", "--name", "a", "--image", box, "--", "sleep", "1000")
    bob.run("image", "load", CACHE.parent / "images" / "busybox")
    bob.run("join", "pod-of-bob", "-d", "--name", "b", "--image", box, "--", "sleep", "1000")
    assert "different users" in host.fails(125, "stop", "a", "b")
    assert (alice.member("a")["status"], bob.member("b")["status"]) == ("running", "running")
    assert "different users" in host.fails(125, "cp", "a:/etc/passwd", "b:/p")
    host.run("stop", "-t", "0", "a")
    host.run("stop", "-t", "0", "b")
    assert (alice.member("a")["status"], bob.member("b")["status"]) == ("stopped", "stopped")


# ---- several commands at once about one member ----------------------------------------------------------------


def begin(host, *words):
    return subprocess.Popen([NSRUN, *words], env=host.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.03, 0.05, 0.08, 0.12])
def test_a_stop_while_it_is_started(host, pod, busybox, delay):
    """It has ended for good after that, or runs as if nobody had stopped it: if `start` came last."""
    host.start("t", busybox, "sleep", "1000")
    host.run("stop", "-t", "0", "t")
    for _ in range(4):
        start = begin(host, "start", "t")
        time.sleep(delay)
        assert host.run("stop", "-t", "0", "t", check=False).returncode == 0
        code = start.wait(timeout=30)
        status = host.member("t")["status"]
        assert status in ("stopped", "running"), (status, code)
        if status == "running":
            host.run("stop", "-t", "0", "t")
        assert host.member("t")["status"] == "stopped"


#: Stops the member t, and another process begins to start it after the stop has seen that it has ended.
OVERTAKEN = """
import os, signal, threading
from nsrun.lifecycle import again
from nsrun.lifecycle.stop import stop_member
from nsrun.run import Run
from nsrun.state import State
class Slow(Run):
    def execute(self):
        os.kill(os.getpid(), signal.SIGSTOP)
        return super().execute()
see = State.note_and_life
def overtaken(self, kind, name):
    State.note_and_life = see
    seen = see(self, kind, name)
    starter = os.fork()
    if not starter:
        again.join.__kwdefaults__["make"] = Slow
        again.start_member(State(), State().member("t"))
        os._exit(0)
    assert os.WIFSTOPPED(os.waitpid(starter, os.WUNTRACED)[1])
    threading.Timer(0.5, os.kill, (starter, signal.SIGCONT)).start()
    return seen
State.note_and_life = overtaken
stop_member(State(), State().member("t"), 0)
"""


def test_a_stop_that_a_start_overtakes(host, pod, busybox):
    host.start("t", busybox, "sleep", "1000")
    host.run("stop", "-t", "0", "t")
    done = subprocess.run(
        [sys.executable, "-I", "-c", OVERTAKEN], env=host.env, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr, host.member("t")["status"]) == (0, "", "stopped")


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.03, 0.05, 0.08, 0.12])
def test_a_rename_while_it_is_started(host, pod, busybox, delay):
    host.start("t", busybox, "sleep", "1000")
    host.run("stop", "-t", "0", "t")
    for _ in range(4):
        start = begin(host, "start", "t")
        time.sleep(delay)
        host.run("rename", "t", "u")
        code = start.wait(timeout=30)
        assert [m["name"] for m in host.json("ls", "-a")] == ["u"]
        assert host.member("u")["status"] == ("stopped" if code else "running"), code
        host.run("start", "u", check=False)
        assert host.run("exec", "u", "echo", "here").stdout == "here\n"
        host.run("rename", "u", "t")
        host.run("stop", "-t", "0", "t")
        assert host.member("t")["status"] == "stopped"


def test_renames_while_its_monitor_starts_it_again(host, pod, busybox):
    """A member that ends all the time, and is renamed all the time, goes on."""
    host.start("t", busybox, "sh", "-c", "echo life >>/lives; sleep 0.2", options=["--restart", "always"])
    end, name, count = time.monotonic() + 5, "t", 0
    while time.monotonic() < end:
        other = "u" if name == "t" else "t"
        host.run("rename", name, other)
        name, count = other, count + 1
        assert host.member(name)["status"] in ("running", "restarting"), count
    assert count > 10 and host.member(name)["restarts"] >= 2
    host.run("stop", "-t", "0", name)
    assert host.member(name)["status"] == "stopped"
