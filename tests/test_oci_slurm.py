# SPDX-License-Identifier: Apache-2.0
"""Slurm with nsrun-oci for the containers of its tasks: a controller and two nodes on a machine of their own."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from conftest import Host, need, wait_for
from engines import Machine, engine
from oci import OCI, config

pytestmark = [pytest.mark.live, pytest.mark.slow]
#: Debian's packages, unpacked by .ci/deps: the machine has them above its /usr.
SLURM = os.path.join(os.path.dirname(os.path.dirname(sys.executable)), "slurm")
NODES = ("n1", "n2")
CONF = """
ClusterName=nsrun
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=17000
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={base}/munge.socket
CredType=cred/munge
StateSaveLocation={base}/state
SlurmctldPidFile={base}/slurmctld.pid
SlurmdPidFile={base}/slurmd-%n.pid
SlurmdSpoolDir={base}/spool-%n
SlurmctldLogFile={base}/slurmctld.log
SlurmdLogFile={base}/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/linear
SchedulerType=sched/builtin
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=8
UnkillableStepTimeout=20
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port=17001 CPUs=2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port=17002 CPUs=2
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""
#: %n node, %u user, %j job, %s step, %t task, %b bundle.
OCI_CONF = """
RunTimeQuery="{oci} --root={base}/oci state %n.%u.%j.%s.%t"
RunTimeKill="{oci} --root={base}/oci kill -a %n.%u.%j.%s.%t"
RunTimeDelete="{oci} --root={base}/oci delete --force %n.%u.%j.%s.%t"
RunTimeRun="exec {oci} --root={base}/oci run %n.%u.%j.%s.%t -b %b"
"""


class Slurm(Machine):
    def __init__(self, host: Host, rootfs: pathlib.Path) -> None:
        if not os.path.isdir(SLURM):
            found = shutil.which("slurmctld") and shutil.which("slurmd") and shutil.which("munged")
            need(found, "Slurm is missing", ".ci/deps test")
        self.daemons: list[subprocess.Popen] = []
        super().__init__(host, rootfs)
        if os.path.isdir(SLURM):
            self.run("mount", "-t", "overlay", "-o", f"lowerdir={SLURM}/usr:/usr", "overlay", "/usr")
        # without an address that is not of lo, getaddrinfo(3) finds none to listen at (AI_ADDRCONFIG)
        for words in ("link add br0 type bridge", "address add 10.97.0.1/24 dev br0", "link set br0 up"):
            self.run("ip", *words.split())
        self.env |= {
            "SLURM_CONF": str(self.base / "slurm.conf"),
            "LD_LIBRARY_PATH": "/usr/lib/x86_64-linux-gnu/slurm-wlm",
        }
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self.base / name).mkdir()
        (self.base / "munge.key").write_bytes(os.urandom(128))
        (self.base / "munge.key").chmod(0o600)
        self.base.chmod(0o755)
        for name, text in (("slurm.conf", CONF), ("oci.conf", OCI_CONF), ("cgroup.conf", "IgnoreSystemd=yes\n")):
            (self.base / name).write_text(text.format(base=self.base, oci=OCI, host=socket.gethostname()))
        munge = {"socket": "munge.socket", "key-file": "munge.key", "log-file": "munge.log", "pid-file": "munge.pid", "seed-file": "munge.seed"}  # fmt: skip
        self.daemon(
            "munged", "--foreground", "--force", *(f"--{key}={self.base / name}" for key, name in munge.items())
        )
        wait_for((self.base / "munge.socket").exists)
        self.daemon("slurmctld", "-D")
        for node in NODES:
            self.daemon("slurmd", "-D", "-N", node)
        wait_for(
            lambda: self.run("sinfo", "--noheader", "--format=%T", check=False).stdout == "idle\n", what="two nodes"
        )

    def daemon(self, *words: object) -> None:
        with open(self.base / f"{words[0]}.out", "ab") as out:
            self.daemons.append(subprocess.Popen(self.words(*words), env=self.env, stdout=out, stderr=out))

    def bundle(self, name: str) -> pathlib.Path:
        """A bundle without linux.cgroupsPath, since many tasks run it: each has a cgroup of its own below that of slurmd."""
        path = self.base / name
        path.mkdir()
        self.run("cp", "-a", self.rootfs, path / "rootfs")
        document = config(self.rootfs)
        (path / "config.json").write_text(json.dumps(document))
        return path

    def srun(self, bundle: pathlib.Path, *words: object, **kwargs) -> subprocess.CompletedProcess[str]:
        return self.run("srun", f"--container={bundle}", *words, **kwargs)

    def left(self) -> list[str]:
        """What is there of the tasks: in the runtime's directory, in cgroups, and in Slurm's list."""
        states = [path.name for path in (self.base / "oci").glob("*") if path.name[0] != "."]
        groups = [top for top, _, _ in os.walk("/sys/fs/cgroup") if re.match(r"n[12]\.root\.", os.path.basename(top))]
        return states + groups + self.jobs()

    def jobs(self) -> list[str]:
        return self.run("squeue", "--noheader", "--format=%i %T").stdout.splitlines()

    def close(self) -> None:
        for daemon in reversed(self.daemons):
            daemon.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(timeout=20)
            daemon.kill()
            daemon.wait()
        for place in (self.base / "oci").glob("[!.]*"):  # of a test that failed
            self.run(OCI, f"--root={place.parent}", "delete", "--force", place.name, check=False)
        super().close()


@pytest.fixture
def slurm(host: Host, busybox: str) -> Iterator[Slurm]:
    with engine(Slurm, host, pathlib.Path(busybox)) as made:
        yield made


@pytest.mark.timeout(300)
def test_what_slurm_asks(slurm):
    bundle = slurm.bundle("bundle")  # newer srun looks for programs on the host, and finds /usr/bin/sh
    done = slurm.srun(bundle, "-N1", "/bin/sh", "-c", "cat /proc/1/comm; hostname; echo err >&2; exit 7", check=False)
    assert (done.returncode, done.stdout) == (7, "sh\nbox\n") and "err\n" in done.stderr, done
    # a task on each node
    done = slurm.srun(
        bundle, "-N2", "-n2", "--label", "/bin/sh", "-c", "echo $SLURM_NTASKS $PPID; readlink /proc/self/ns/pid"
    )
    rows = sorted(line.split() for line in done.stdout.splitlines())
    assert [row for row in rows if len(row) == 3] == [["0:", "2", "0"], ["1:", "2", "0"]], rows
    assert os.readlink("/proc/self/ns/pid") not in done.stdout
    assert slurm.srun(bundle, "-N1", "/bin/cat", input="through\n").stdout == "through\n"
    done = slurm.srun(bundle, "-N2", "-n2", "/bin/sh", "-c", "kill -KILL $$; exit 3", check=False)
    assert done.returncode == 3, "PID 1 can't end itself; the highest of the tasks' is srun's"
    missing = slurm.srun(bundle, "-N1", "nosuch", check=False)
    assert missing.returncode == 1 and "executable file not found in $PATH" in missing.stderr, missing

    # scancel ends both tasks, first by SIGTERM
    words = [
        "srun",
        f"--container={bundle}",
        "-N2",
        "-n2",
        "/bin/sh",
        "-c",
        "trap 'echo ended; exit 5' TERM; echo up; while :; do sleep 0.1; done",
    ]
    with open(slurm.base / "out", "w+") as out:
        job = subprocess.Popen(slurm.words(*words), env=slurm.env, stdout=out, stderr=out)
        try:
            wait_for(lambda: (slurm.base / "out").read_text().count("up\n") == 2)
            (one,) = slurm.jobs()
            slurm.run("scancel", one.split()[0])
            assert job.wait(timeout=60) != 0
        finally:
            job.kill()
            job.wait()
    said = (slurm.base / "out").read_text()
    assert said.count("ended\n") == said.count("Exited with exit code 5\n") == 2, said
    with contextlib.suppress(AssertionError):
        wait_for(lambda: slurm.left() == [])
    assert slurm.left() == []
