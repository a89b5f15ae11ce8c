# SPDX-License-Identifier: Apache-2.0
"""podman with nsrun-oci as its runtime, on a machine of its own (engines.py)."""

import json
import os
import pathlib
import re
import shutil

import pytest
from conftest import NSRUN, Host, need, not_editable, wait_for
from engines import GROUP, PATH, Podman, engine
from oci import replaying

pytestmark = [pytest.mark.live, pytest.mark.slow]
OCI = os.path.join(os.path.dirname(NSRUN), "nsrun-oci")


class OciPodman(Podman):
    """podman as engines.py has it, but what runs the containers is nsrun-oci."""

    runtime = OCI

    def call(self, *words: object, **kwargs):
        places = [f"--{name}={self.base}/{name}" for name in ("root", "runroot", "tmpdir")]
        return self.run("podman", *places, "--cgroup-manager=cgroupfs", f"--runtime={self.runtime}", *words, **kwargs)


@pytest.fixture
def podman(host: Host, busybox):
    need(shutil.which("conmon", path=PATH), "conmon is missing", "apt-get install podman")
    with engine(OciPodman, host, pathlib.Path(busybox)) as made:
        yield made


OPTIONS = ("--network=none", f"--cgroup-parent=/{GROUP}")


def test_podman_runs_a_container(podman):
    done = podman.call("run", "--rm", *OPTIONS, "busybox", "sh", "-c", "hostname; echo err >&2; exit 7", check=False)
    assert done.returncode == 7 and done.stdout and done.stderr == "err\n", done
    missing = podman.call("run", "--rm", *OPTIONS, "busybox", "nosuch", check=False)
    assert missing.returncode == 127 and "executable file not found" in missing.stderr, missing
    denied = podman.call("run", "--rm", *OPTIONS, "busybox", "/etc/passwd", check=False)
    assert denied.returncode == 126 and "permission denied" in denied.stderr, denied
    assert podman.podman("ps", "--all", "--quiet") == ""


def test_podman_execs_stops_and_kills(podman):
    podman.podman(
        "run",
        "--detach",
        "--name=one",
        *OPTIONS,
        "busybox",
        "sh",
        "-c",
        "trap 'exit 5' TERM; echo up; while :; do sleep 0.1; done",
    )
    wait_for(lambda: podman.podman("logs", "one") == "up")
    done = podman.call("exec", "one", "sh", "-c", "cat /proc/1/comm; exit 4", check=False)
    assert (done.returncode, done.stdout) == (4, "sh\n"), done
    assert podman.call("exec", "one", "nosuch", check=False).returncode == 127
    assert podman.call("exec", "--user=1000", "one", "id", "-u").stdout == "1000\n"
    podman.podman("pause", "one")
    assert podman.podman("inspect", "--format={{.State.Status}}", "one") == "paused"
    podman.podman("unpause", "one")
    podman.podman("stop", "one")
    assert json.loads(podman.podman("inspect", "one"))[0]["State"]["ExitCode"] == 5
    podman.podman("start", "one")
    podman.podman("kill", "one")
    assert podman.podman("wait", "one") == "137"
    podman.podman("rm", "one")


def replayed(podman, *words: str) -> str:
    """What a `podman run` prints that no Python makes; podman notes the time with as many digits as it has, so not each is like the last."""
    flag = podman.base / "replay-create"
    for _ in range(20):
        flag.touch()
        done = podman.call(*words, check=False)
        flag.unlink()
        if "nothing to replay" not in done.stderr:
            return f"{done.stdout}{done.stderr}{done.returncode}"
        podman.call(*words, check=False)
    raise AssertionError("each one was Python's")


@not_editable
def test_a_container_like_the_last_needs_no_python(podman):
    """Its id, layer and paths are others, and so are its command and its environment; what it is of podman's is the same."""
    podman.runtime = str(replaying(podman.base))
    look = "hostname; id; pwd; env | sort; grep -E 'Cap|Sec|NoNew' /proc/self/status; cut -d' ' -f5- /proc/self/mountinfo | sort; cat /proc/self/cgroup"
    command = ("run", "--rm", *OPTIONS, "busybox", "sh", "-c")
    first = podman.podman(*command, look)
    second = replayed(podman, *command, f"{look}; echo end").removesuffix("\nend\n0")
    names = [text.partition("\n")[0] for text in (first, second)]
    assert names[0] != names[1] and len(names[0]) == 12
    plain, plain2 = (
        re.sub(r"[0-9a-f]{64}|(?<=overlay/l/)\w{26}", "ID", text).replace(name, "NAME")
        for text, name in zip((first, second), names, strict=True)
    )
    assert plain.split("\n") == plain2.split("\n")
    variables = ("run", "--rm", "--env", "A=b c", *OPTIONS, "busybox", "sh", "-c", "echo $A; exit 5")
    assert replayed(podman, *variables) == "b c\n5"
    missing = podman.call(*command[:-2], "nosuch", check=False)
    assert missing.returncode == 127 and "executable file not found" in missing.stderr, missing
    assert podman.podman("ps", "--all", "--quiet") == ""


@not_editable
def test_an_exec_of_podmans_needs_no_python(podman):
    """What it writes for --process is like what it wrote before, once Python has seen that: this one has no umask."""
    podman.runtime = str(replaying(podman.base))
    podman.podman("run", "--detach", "--name=one", *OPTIONS, "busybox", "sleep", "1000")
    flag = podman.base / "replay-exec"
    command = ("one", "sh", "-c", "id; pwd; echo $A; cat /proc/self/status | grep -E 'Cap|Umask'; exit 4")
    for options in ((), ("--user=1000", "--workdir=/tmp"), ("--privileged",)):
        flag.unlink(missing_ok=True)
        first = podman.call("exec", *options, *command, check=False)
        flag.touch()
        again = podman.call("exec", *options, *command, check=False)
        assert (again.returncode, again.stdout, again.stderr) == (4, first.stdout, "") and first.returncode == 4, (
            first,
            again,
        )
    done = podman.call("exec", "--privileged", "--env=A=b", "--interactive", *command, check=False)
    assert done.returncode == 4 and "\nb\n" in done.stdout, done
    podman.podman("rm", "--force", "--time=0", "one")


def test_podman_runs_at_a_terminal(podman):
    done = podman.call("run", "--rm", "--tty", *OPTIONS, "busybox", "sh", "-c", "tty; ls -l /dev/console")
    first, second = done.stdout.splitlines()
    assert first == "/dev/pts/0" and second.startswith("crw"), done


def test_podman_pods_share_a_pid_namespace(podman):
    podman.pod("--share=net,ipc,uts,pid", "--network=none")
    podman.container("member", "sleep", "1000")
    assert "sleep 1000" in podman.podman("exec", "member", "ps")
    assert podman.podman("exec", "member", "cat", "/proc/1/comm") == "sleep"


def test_podman_limits(podman):
    text = podman.podman("run", "--rm", "--memory=64m", "--pids-limit=50", "--cpus=0.5", "--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", "--user=1000:1000", "--ulimit=nofile=100:200", "--ulimit=nproc=500:500", "--sysctl=net.ipv4.ip_forward=1", "--tmpfs=/tmp", "-v", f"{podman.base}:/data:ro", *OPTIONS, "busybox", "sh", "-c", "grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status; ulimit -n; cat /proc/sys/net/ipv4/ip_forward; touch /tmp/x /x /data/x; ls /data | head -1; id -u")  # fmt: skip
    assert "CapEff:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n100\n1\n" in text, text
    assert text.endswith("\n1000"), text
