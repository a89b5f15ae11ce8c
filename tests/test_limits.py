# SPDX-License-Identifier: Apache-2.0
"""Limits, what hits them, and stats.  They need cgroup v2 with its controllers: test_machine.py runs this file in one that has."""

from __future__ import annotations

import os
import pathlib
import time

import pytest
from conftest import USERS, sh, wait_for

pytestmark = pytest.mark.live
MIB = 1 << 20
OFFERED = pathlib.Path("/sys/fs/cgroup/cgroup.controllers")
PURE = OFFERED.exists() and {"cpu", "memory", "pids"} <= set(OFFERED.read_text().split())
on_v2 = pytest.mark.skipif(not PURE, reason="no cgroup v2 with controllers here; test_machine.py enables it")
#: a file in the pod's shared memory is charged to who fills it
EAT = "dd if=/dev/zero of=/dev/shm/x bs=1M count=200 2>/dev/null; echo survived"


def cgroup_of(pid: int) -> pathlib.Path:
    line = next(line for line in pathlib.Path(f"/proc/{pid}/cgroup").read_text().splitlines() if line.startswith("0::"))
    return pathlib.Path("/sys/fs/cgroup" + line[3:])


@pytest.mark.skipif(PURE, reason="cgroup v2 has its controllers here")
@pytest.mark.parametrize(
    ("option", "controller"), [("--memory=64m", "memory"), ("--cpus=1", "cpu"), ("--pids-limit=9", "pids")]
)
def test_a_limit_that_can_not_be_set_names_the_controller(host, pod, busybox, option, controller):
    before = host.snapshot()
    for words in (
        ["join", pod, option, "--rootfs", busybox, "true"],
        ["pod", "create", "--network", "none", option, "x"],
    ):
        assert repr(controller) in host.fails(125, *words)
    assert host.snapshot() == before


def test_stats(host, pod, busybox):
    host.start("busy", busybox, "sh", "-c", "while :; do :; done")
    host.start("idle", busybox, "sleep", "1000")
    rows = {row["name"]: row for row in host.json("stats")}
    assert rows["busy"]["cpu_percent"] > 2 > rows["idle"]["cpu_percent"]  # of a processor that others use as well
    assert rows["idle"]["pids"] == 1
    whole = host.json("pod", "stats", pod)[0]
    assert whole["pids"] == 3 and whole["cpu_seconds"] >= rows["busy"]["cpu_seconds"]
    done = host.run("stats", "busy")
    assert done.stdout.splitlines()[0].split()[:3] == ["NAME", "CPU", "MEMORY"] and "busy" in done.stdout
    assert ("no controller" in done.stderr) == (not PURE) and (rows["idle"]["memory"] is None) == (not PURE)
    host.run("stop", "-t", "0", "busy", "idle")
    assert host.json("stats") == [] and "not running" in host.fails(125, "stats", "idle")
    assert "no member" in host.fails(125, "stats", "nix") and "no pod" in host.fails(125, "pod", "stats", "nix")


def test_stats_for_the_owner_and_for_root(host, alice, owned, box):
    alice.run("join", owned, "-d", "--name", "m", "--image", box, "--", "sleep", "1000")
    assert [row["pids"] for row in (alice.json("stats")[0], host.json("stats", "m")[0])] == [1, 1]
    assert host.json("pod", "stats", owned)[0]["pids"] == alice.json("pod", "stats", owned)[0]["pids"] >= 3


@on_v2
def test_memory_of_a_member(host, busybox):
    host.run("pod", "create", "--network", "none", "--shm-size", "256m", "pause")
    host.start("other", busybox, "sleep", "1000")
    done = host.run(
        "join pause --name fat --memory 32m --rootfs {} sh -c {}", busybox, f"trap '' TERM; {EAT}; exit 0", check=False
    )
    member = host.member("fat")
    killed = "survived" not in done.stdout
    if not killed:  # dd was killed, the shell lived on
        done = host.run("join", "pause", "--name", "fatter", "--memory", "32m", "--rootfs", busybox, "dd", "if=/dev/zero", "of=/dev/shm/y", "bs=1M", "count=200", check=False)  # fmt: skip
        member = host.member("fatter")
    assert done.returncode == 137 and member["oom_killed"] is True and member["exit_code"] == 137
    assert "killed for memory" in done.stderr and "out of memory" in host.run("ls", "-a").stdout
    assert host.member("other")["status"] == "running" and host.member("other")["oom_killed"] is False
    row = host.json("stats", "other")[0]
    assert row["memory"] > 0 and row["memory_limit"] is None and row["oom_kills"] == 0
    host.run("join", "pause", "--rm", "--rootfs", busybox, "rm", "-f", "/dev/shm/x", "/dev/shm/y")


@on_v2
def test_memory_of_a_pod(host, busybox):
    """The limit of all members together; and pause is the last to go."""
    host.run("pod", "create", "--network", "none", "--memory", "64m", "--shm-size", "256m", "pause")
    pid = host.pod()["pid"]
    assert (cgroup_of(pid).parent / "memory.max").read_text() == f"{64 * MIB}\n"
    assert (cgroup_of(pid).parent / "memory.swap.max").read_text() in ("0\n",) or not (
        cgroup_of(pid).parent / "memory.swap.max"
    ).exists()
    done = host.run(
        "join pause --name fat --rootfs {} dd if=/dev/zero of=/dev/shm/x bs=1M count=200", busybox, check=False
    )
    assert done.returncode == 137 and host.member("fat")["oom_killed"]
    assert host.pod()["status"] == "running" and host.json("pod", "stats", "pause")[0]["memory_limit"] == 64 * MIB


@on_v2
@pytest.mark.parametrize("size", ["4096", "64k"])
def test_less_memory_than_pause_needs(host, size):
    before = host.snapshot()
    assert "--memory" in host.fails(125, "pod", "create", "--network", "none", "--memory", size)
    assert host.snapshot() == before


@on_v2
def test_processors(host, pod, busybox):
    host.start("busy", busybox, "sh", "-c", "while :; do :; done", options=["--cpus", "0.2"])
    assert (cgroup_of(host.member("busy")["pid"]) / "cpu.max").read_text() == "20000 100000\n"
    used = [host.json("stats", "busy")[0]["cpu_seconds"]]
    began = time.monotonic()
    time.sleep(2)
    used.append(host.json("stats", "busy")[0]["cpu_seconds"])
    assert (used[1] - used[0]) / (time.monotonic() - began) < 0.35


@on_v2
def test_processes(host, pod, busybox):
    fork = "n=0; while [ $n -lt 20 ]; do sleep 100 & n=$((n+1)); done 2>&1; ls /proc >/dev/null; echo end"
    out = host.run("join", pod, "--name", "m", "--pids-limit", "10", "--rootfs", busybox, "sh", "-c", fork, check=False)
    assert "can't fork" in out.stdout + out.stderr
    host.start("other", busybox, "sleep", "1000")
    host.run("pod", "create", "--network", "none", "--pids-limit", "4", "small")
    done = host.run("join", "small", "--rootfs", busybox, "sh", "-c", fork, check=False)
    assert "can't fork" in done.stdout + done.stderr
    assert host.json("pod", "stats", "small")[0]["pids_limit"] == 4


@on_v2
def test_the_owner_limits_members_and_not_the_pod(host, alice, box):
    """Her own members she may limit; the pod's limit binds all of them, and she can't lift it."""
    host.run(
        "pod create --network none --memory 128m --pids-limit 50 --shm-size 256m", env={"SUDO_UID": str(alice.uid)}
    )
    alice.run("join pause -d --name m --memory 32m --cpus 0.5 --pids-limit 9 --image {} -- sleep 1000", box)
    member = cgroup_of(alice.member("m")["pid"])
    assert (member / "memory.max").read_text() == f"{32 * MIB}\n" and (member / "pids.max").read_text() == "9\n"
    whole = member.parent
    assert (whole / "memory.max").read_text() == f"{128 * MIB}\n"
    for file in (
        "memory.max",
        "pids.max",
        "cpu.max",
        "memory.swap.max",
        "cgroup.max.descendants",
        "cgroup.freeze",
        "cgroup.kill",
    ):
        if (whole / file).exists():
            assert alice.sh("sh", "-c", f"echo max >{whole}/{file}", check=False).returncode != 0, file
    # out of it she can't move what is in it, nor into it what is not
    script = f"echo $$ >{whole}/cgroup.procs"
    assert alice.sh("sh", "-c", script, check=False).returncode != 0
    assert (
        alice.sh("sh", "-c", f"echo {alice.member('m')['pid']} >{whole.parent}/cgroup.procs", check=False).returncode
        != 0
    )
    done = alice.run(
        "join pause --name fat --image {} -- dd if=/dev/zero of=/dev/shm/x bs=1M count=200", box, check=False
    )
    assert done.returncode == 137 and alice.member("fat")["oom_killed"] is True
    assert host.pod()["status"] == "running"


def test_an_owner_with_a_thousand_cgroups(host, alice, owned, box):
    """What she makes below the pod's is bounded, and goes with it."""
    from nsrun.host.cgroup import MAX_BELOW

    alice.run("join", owned, "-d", "--name", "m", "--image", box, "--", "sleep", "1000")
    whole = pathlib.Path(host.json("pod", "inspect", owned) and _cgroup(host, owned))
    script = f"cd {whole} && seq -f g%.0f {MAX_BELOW + 200} | xargs mkdir; ls -d g* | wc -l; mkdir -p m-m/a/b/c/d/e"
    made = int(alice.sh("sh", "-c", script, timeout=60, check=False).stdout)
    assert 0 < made <= MAX_BELOW
    host.run("pod", "rm", "-f", owned, timeout=60)
    assert not whole.exists()


def _cgroup(host, name: str) -> str:
    import json

    return json.loads((host.root / f"run/pods/{name}/note").read_text())["cgroup"]


def test_killing_one_member_with_a_dead_first_process_touches_no_other(host, alice, owned, box):
    """moby#50523, runc#4047: by its cgroup, also for an owner."""
    for name in ("one", "two"):
        alice.run(
            "join", owned, "-d", "--name", name, "--image", box, "--", "sh", "-c", "sleep 1000 & sleep 1000 & wait"
        )
    pids = {name: alice.member(name)["pid"] for name in ("one", "two")}
    rows = [row for row in alice.json("pod", "ps", owned) if row["member"] == "one"]
    assert len(rows) == 3
    os.kill(pids["one"], 9)
    wait_for(lambda: alice.member("one")["status"] == "stopped")
    wait_for(lambda: not [row for row in alice.json("pod", "ps", owned) if row["member"] == "one"])
    assert len([row for row in alice.json("pod", "ps", owned) if row["member"] == "two"]) == 3
    assert alice.member("two")["status"] == "running" and USERS["alice"] == alice.uid
    assert sh("cat", f"/proc/{pids['two']}/comm").stdout == "sh\n"
