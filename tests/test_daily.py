# SPDX-License-Identifier: Apache-2.0
"""What people type every day with docker and podman, in the same words: pause, restart, rename."""

from __future__ import annotations

import os
import pathlib

import pytest
from conftest import not_editable, wait_for
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
