# SPDX-License-Identifier: Apache-2.0
"""A member of root's in a pod that root made for alice, who may move its processes, remove its cgroup, freeze and trace it.

Alice writes to the cgroups of the pod, which are delegated to her, and is root of its user namespace.
"""

from __future__ import annotations

import os
import pathlib
import resource
import subprocess
import sys
import time

import pytest
from conftest import USERS, wait_for
from test_lost import lives, monitor_of

pytestmark = pytest.mark.live
LOOP = "trap '' TERM; echo x >/precious; while :; do sleep 1; done"
#: Seconds: root does not wait longer, whatever an owner does.
PATIENCE = 18


def bounded(host, *words, **kwargs) -> tuple[int, str]:
    """(exit status, stderr) of a command of root's, which ends in time."""
    done = host.run(*words, check=False, timeout=PATIENCE, **kwargs)
    assert "Traceback" not in done.stderr and "unexpected" not in done.stderr, done.stderr
    return done.returncode, done.stderr


def group_of(host) -> pathlib.Path:
    own = pathlib.Path(f"/proc/{host.pod()['pid']}/cgroup").read_text().split("0::")[1].split()[0]
    mounts = (pathlib.Path(f"/sys/fs/cgroup/unified{own}"), pathlib.Path(f"/sys/fs/cgroup{own}"))
    return next(path for path in mounts if path.exists()).parent


MOVE = """
import os, sys
group, name, rmdir = sys.argv[1:]
os.makedirs(f"{group}/hers", exist_ok=True)
for pid in open(f"{group}/root-{name}/cgroup.procs").read().split():
    open(f"{group}/hers/cgroup.procs", "w").write(pid)
if rmdir: os.rmdir(f"{group}/root-{name}")
"""


def begin(host, owned, busybox) -> int:
    host.run("join", owned, "-d", "--name", "r", "--rootfs", busybox, "--", "sh", "-c", LOOP)
    wait_for(lambda: list(host.root.glob("lib/upper/*/upper/precious")))
    return host.member("r")["pid"]


def test_what_the_owner_moved_has_not_ended(host, alice, owned, busybox):
    """Its cgroup is empty and its monitor was killed: that it has ended is not proven, and it can still be ended by name."""
    pid = begin(host, owned, busybox)
    alice.sh(sys.executable, "-c", MOVE, group_of(host), "r", "")
    os.kill(monitor_of(pid), 9)
    for words in (["ls"], ["pod", "prune"], ["pod", "prune", "--all"]):
        host.run(*words)
        assert lives(pid) and list(host.root.glob("lib/upper/*/upper/precious")), words
    assert host.member("r")["status"] == "running"
    host.run("rm", "-f", "r")
    assert not lives(pid)


@pytest.mark.parametrize("rmdir", [False, True])
@pytest.mark.parametrize("words", [["kill", "r"], ["stop", "-t", "1", "r"], ["rm", "-f", "r"]])
def test_root_ends_what_the_owner_moved(host, alice, owned, busybox, words, rmdir):
    pid = begin(host, owned, busybox)
    alice.sh(sys.executable, "-c", MOVE, group_of(host), "r", "1" if rmdir else "")
    assert bounded(host, *words)[0] == 0
    wait_for(lambda: not lives(pid), 5, "the end of what was moved")


TRACE = r"""
import ctypes, os, sys, time
libc, pause = ctypes.CDLL(None), os.pidfd_open(int(sys.argv[1]))
assert libc.setns(pause, 0x10000000) == 0
assert libc.ptrace(0x4206, int(sys.argv[2]), 0, 0) == 0
print("traced", flush=True)
time.sleep(300)
"""


@pytest.mark.parametrize("words", [["stop", "-t", "1", "r"], ["rm", "-f", "r"], ["kill", "r"]])
def test_root_ends_what_the_owner_traces(host, alice, owned, busybox, words):
    """It stays a zombie of the tracer's, but its monitor ends, with the exit status that the kernel tells."""
    host.run("join", owned, "-d", "--name", "r", "--rootfs", busybox, "--", "sleep", "1000")
    command = alice.words(sys.executable, "-c", TRACE, host.pod()["pid"], host.member("r")["pid"])
    tracer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd="/")
    try:
        assert tracer.stdout.readline() == "traced\n"
        assert bounded(host, *words)[0] == 0
        if words[0] == "kill":
            wait_for(lambda: host.member("r")["status"] == "stopped", 5, "its end")
        if words[0] != "rm":
            assert host.member("r")["exit_code"] in (137, 143)
    finally:
        tracer.kill()
        tracer.communicate()


def test_root_does_not_wait_for_the_owners_flock(host, alice, owned, box):
    alice.run("join", owned, "-d", "--name", "m", "--image", box, "--", "true")
    wait_for(lambda: alice.member("m")["status"] == "stopped")
    lock = host.root / "users" / str(USERS["alice"]) / "run" / "names.lock"
    script = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], 66), 2); print(flush=True); sys.stdin.read()"
    command = alice.words(sys.executable, "-c", script, lock)
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/")
    try:
        holder.stdout.readline()
        code, errors = bounded(host, "rm", "m")
        assert code == 125 and "names.lock" in errors
    finally:
        holder.kill()
        holder.communicate()
    host.run("rm", "m")


FREEZE = """
import glob, os, sys, time
group = sys.argv[1]
os.mkdir(f"{group}/ice")
open(f"{group}/ice/cgroup.freeze", "w").write("1")
print(flush=True)
end = time.time() + 400
while time.time() < end:
    for file in glob.glob(f"{group}/root-*/cgroup.procs"):
        try:
            for pid in open(file).read().split(): open(f"{group}/ice/cgroup.procs", "w").write(pid)
        except OSError: pass
"""


def test_root_does_not_wait_for_a_frozen_init(host, alice, owned, busybox):
    command = alice.words(sys.executable, "-c", FREEZE, group_of(host))
    freezer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd="/")
    try:
        freezer.stdout.readline()
        # several waits of some seconds, each bounded; the init is frozen for far longer
        host.run("join", owned, "-d", "--name", "z", "--rootfs", busybox, "--", "sleep", "1", check=False, timeout=200)
    finally:
        freezer.kill()
        freezer.communicate()


def test_an_owners_log_of_one_endless_line(host, alice, owned, box):
    alice.run("join", owned, "-d", "--name", "m", "--image", box, "--", "sh", "-c", "echo hi; sleep 1000")
    log = host.root / "users" / str(USERS["alice"]) / "run" / "members" / "m" / "log"
    wait_for(lambda: log.exists() and log.stat().st_size)
    os.truncate(log, 3 << 30)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))

    code, errors = bounded(host, "logs", "--tail", "1", "m", preexec_fn=limit)
    assert (code, errors) == (0, "")
    with open(log, "ab") as file:
        file.write(b"\n2026-01-01T00:00:00Z stdout F last\n")
    assert host.run("logs", "--tail", "1", "m").stdout == "last\n"
    began = time.monotonic()
    assert host.run("logs", "m").stdout.endswith("last\n") and time.monotonic() - began < PATIENCE
    os.truncate(log, 0)
