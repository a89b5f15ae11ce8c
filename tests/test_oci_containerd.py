# SPDX-License-Identifier: Apache-2.0
"""containerd with nsrun-oci below its shim, by ctr, on a machine of its own (engines.py)."""

import os
import pathlib

import pytest
from conftest import Host, not_editable, wait_for
from engines import GROUP, Containerd, engine
from oci import OCI, replaying

pytestmark = [pytest.mark.live, pytest.mark.slow]

#: What a program does after it has written, on a busy machine: the shim copies for two seconds after its end at most, and ctr takes
#: nothing from a pipe that the shim had opened for a moment only.
LASTS = "sleep 2"


class OciContainerd(Containerd):
    """containerd as engines.py has it, but what its shim calls is nsrun-oci."""

    runtime = OCI

    def container(self, name: str, *options: object) -> int:
        return super().container(name, f"--runc-binary={self.runtime}", *options)


@pytest.fixture
def containerd(host: Host, busybox):
    with engine(OciContainerd, host, pathlib.Path(busybox)) as made:
        yield made


def run(containerd: OciContainerd, name: str, *command: str, options: tuple[object, ...] = (), check: bool = True):
    containerd.names.append(name)
    where = [
        f"--runc-binary={containerd.runtime}",
        f"--cgroup=/{GROUP}/{name}",
        *options,
        "--rootfs",
        containerd.rootfs,
        name,
    ]
    return containerd.ctr("run", "--rm", *where, *command, check=check)


def test_ctr_runs_execs_pauses_and_kills(containerd):
    pid = containerd.container("one")
    assert pathlib.Path(f"/proc/{pid}/comm").read_text() == "sleep\n"
    assert f"/{GROUP}/one" in pathlib.Path(f"/proc/{pid}/cgroup").read_text()
    done = containerd.ctr("tasks", "exec", "--exec-id=e1", "one", "sh", "-c", f"cat /proc/1/comm; {LASTS}; exit 4", check=False)  # fmt: skip
    assert (done.returncode, done.stdout) == (4, "sleep\n"), done
    missing = containerd.ctr("tasks", "exec", "--exec-id=e2", "one", "nosuch", check=False)
    assert missing.returncode and "executable file not found in $PATH" in missing.stderr, missing
    containerd.ctr("tasks", "pause", "one")
    assert "PAUSED" in containerd.ctr("tasks", "ls").stdout
    containerd.ctr("tasks", "resume", "one")
    assert str(pid) in containerd.ctr("tasks", "ps", "one").stdout
    containerd.ctr("tasks", "kill", "--signal=SIGKILL", "one")
    wait_for(lambda: "STOPPED" in containerd.ctr("tasks", "ls").stdout)
    containerd.ctr("tasks", "rm", "one", check=False)
    wait_for(lambda: "one" not in containerd.ctr("tasks", "ls").stdout)


@not_editable
def test_a_container_like_the_last_needs_no_python(containerd):
    """Its id is another, and its command; its HOME is the one of its image."""
    containerd.runtime = str(replaying(containerd.base))
    look = (
        "id; pwd; env | sort; grep -E 'Cap|Sec|NoNew' /proc/self/status; cut -d' ' -f5- /proc/self/mountinfo; cat /proc/self/cgroup; "
        + LASTS
    )
    name, name2 = ("container-like-the-last", "container-like-no-other")
    first = run(containerd, name, "sh", "-c", look).stdout
    (containerd.base / "replay-create").touch()
    done = run(containerd, name2, "sh", "-c", f"{look}; exit 3", check=False)
    assert done.returncode == 3 and "HOME=/root" in first, (first, done)
    assert first.replace(name, "NAME") == done.stdout.replace(name2, "NAME")


@not_editable
def test_an_exec_of_containerds_needs_no_python(containerd):
    """What its shim writes for --process is like config.json, or like what it wrote before."""
    containerd.runtime = str(replaying(containerd.base))
    containerd.container("one")
    flag = containerd.base / "replay-exec"

    def execute(ident: str, *options: str):
        return containerd.ctr("tasks", "exec", f"--exec-id={ident}", *options, "one", "sh", "-c", f"id -u; pwd; echo $HOME; {LASTS}; exit 4", check=False)  # fmt: skip

    flag.touch()
    done = execute("e1")
    assert (done.returncode, done.stdout) == (4, "0\n/\n/root\n"), done
    flag.unlink()
    done = execute("e2", "--cwd=/tmp")
    flag.touch()
    again = execute("e3", "--cwd=/tmp")
    assert (again.returncode, again.stdout) == (done.returncode, done.stdout) == (4, "0\n/tmp\n/root\n"), (done, again)


def test_ctr_in_the_foreground(containerd):
    done = run(containerd, "two", "sh", "-c", f"echo out; echo err >&2; {LASTS}; exit 7", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n"), done
    done = run(containerd, "three", "/nosuch", check=False)
    assert done.returncode == 1 and "executable file not found" in done.stderr, done


def test_members_join_the_namespaces_of_a_sandbox(containerd):
    """As a kubelet's: members name the namespaces of the sandbox by path."""
    pid = containerd.container("sandbox")
    kinds = {"network": "net", "ipc": "ipc", "uts": "uts", "pid": "pid"}
    options = tuple(f"--with-ns={kind}:/proc/{pid}/ns/{name}" for kind, name in kinds.items())
    text = run(containerd, "member", "sh", "-c", "for n in net ipc uts pid; do readlink /proc/self/ns/$n; done; cat /proc/1/comm; " + LASTS, options=options).stdout  # fmt: skip
    assert text.split() == [*(os.readlink(f"/proc/{pid}/ns/{name}") for name in kinds.values()), "sleep"]


def test_ctr_limits_and_seccomp(containerd):
    options = ("--seccomp", "--memory-limit=50000000", "--read-only", "--env=A=b", "--cwd=/tmp")
    text = run(containerd, "limited", "sh", "-c", "grep -E 'Seccomp:|NoNewPrivs' /proc/self/status; echo $A; pwd; touch /x 2>&1; " + LASTS, options=options).stdout  # fmt: skip
    assert text.split()[:6] == ["NoNewPrivs:", "1", "Seccomp:", "2", "b", "/tmp"] and "Read-only" in text
