# SPDX-License-Identifier: Apache-2.0
"""Docker with nsrun-oci as its runtime: dockerd and the containerd that it starts, on a machine and in a PID namespace of their own."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from conftest import Host, need, sh, wait_for
from engines import GROUP, PATH, Machine, engine
from oci import OCI
from person import Terminal

pytestmark = [pytest.mark.live, pytest.mark.slow]
#: docker is that of the dockerd that is called; another one on the machine may be anything.
DOCKERD = shutil.which("dockerd", path=PATH) or ""
CLIENT = next((path for path in (os.path.join(os.path.dirname(sys.executable), "docker"), "/usr/bin/docker") if os.path.exists(path)), "")  # fmt: skip


class Docker(Machine):
    def __init__(self, host: Host, rootfs: pathlib.Path) -> None:
        for program in ("containerd", "containerd-shim-runc-v2", "docker-proxy", "runc"):
            need(shutil.which(program, path=PATH), f"{program} is missing", ".ci/deps test")
        need(DOCKERD and CLIENT, "dockerd or docker is missing", ".ci/deps test")
        self.daemon: subprocess.Popen | None = None
        super().__init__(host, rootfs)
        self.env["DOCKER_HOST"] = f"unix://{self.base}/socket"
        places = {"data-root": "data", "exec-root": "exec", "pidfile": "pid", "config-file": "etc/docker/daemon.json"}
        sh(OCI, "install", "docker", "--etc", self.base / "etc")
        options = [
            *(f"--{option}={self.base / name}" for option, name in places.items()),
            f"--host={self.env['DOCKER_HOST']}", "--storage-driver=vfs", "--bip=10.98.0.1/24", "--iptables=false", "--ip6tables=false",
            "--default-runtime=nsrun", f"--cgroup-parent=/{GROUP}",
        ]  # fmt: skip
        # the namespace of pids ends with its first process, and all that docker has started with it
        boxed = ["unshare", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", DOCKERD, *options]
        with open(self.base / "log", "wb") as log:
            self.daemon = subprocess.Popen(self.words(*boxed), env=self.env, stdout=log, stderr=log)
        wait_for(lambda: self.call("version", check=False).returncode == 0, what="dockerd")
        self.run("tar", "-C", rootfs, "-cf", self.base / "busybox.tar", ".")
        self.docker("import", self.base / "busybox.tar", "busybox")

    def call(self, *words: object, **kwargs) -> subprocess.CompletedProcess[str]:
        return self.run(CLIENT, *words, **kwargs)

    def docker(self, *words: object) -> str:
        return self.call(*words).stdout.strip()

    def inspect(self, name: str, path: str) -> str:
        return self.docker("inspect", f"--format={{{{{path}}}}}", name)

    def terminal(self, *words: object) -> Terminal:
        first, *rest = self.words(CLIENT, *words)
        return Terminal(self, *rest, program=shutil.which(first))

    def left(self) -> list[str]:
        """What is there of containers that were removed: in docker's list, cgroups, mounts, and the runtime's directory."""
        found = self.docker("ps", "--all", "--quiet").split()
        for top in ("/sys/fs/cgroup", *(f"/sys/fs/cgroup/{name}" for name in os.listdir("/sys/fs/cgroup"))):
            place = pathlib.Path(top, GROUP)
            found += [str(path) for path in place.iterdir() if path.is_dir()] if place.exists() else []
        mounts = pathlib.Path(f"/proc/{self.first()}/mountinfo").read_text()
        found += [line.split()[4] for line in mounts.splitlines() if re.search(r"/(containers|rootfs|netns)/", line.split()[4])]  # fmt: skip
        states = [path for path in self.states().glob("*") if path.name[0] != "."]
        return [*found, *map(str, states)]

    def states(self) -> pathlib.Path:
        """The directory that dockerd gives to the runtime."""
        (found,) = (self.base / "exec").glob("runtime-*/moby")
        return found

    def first(self) -> int:
        """The pid of dockerd on this host: it is the child of unshare."""
        return int(pathlib.Path(f"/proc/{self.daemon.pid}/task/{self.daemon.pid}/children").read_text().split()[0])

    def close(self) -> None:
        try:
            if self.daemon and self.daemon.poll() is None:
                os.kill(self.first(), signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.daemon.wait(timeout=30)
        finally:
            if self.daemon:
                self.daemon.kill()
                self.daemon.wait()
            super().close()


@pytest.fixture
def docker(host: Host, busybox: str) -> Iterator[Docker]:
    with engine(Docker, host, pathlib.Path(busybox)) as made:
        yield made


def cgroup(ident: str, *files: str) -> str:
    """The content of the first of these files that the cgroup of a container has: of v1 and v2."""
    places = ("/sys/fs/cgroup", *(f"/sys/fs/cgroup/{name}" for name in os.listdir("/sys/fs/cgroup")))
    return next(path.read_text().strip() for file in files for top in places if (path := pathlib.Path(top, GROUP, ident, file)).exists())  # fmt: skip


def in_the_foreground(docker: Docker) -> None:
    done = docker.call("run", "--rm", "busybox", "sh", "-c", "cat /proc/1/comm; echo err >&2; exit 7", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, "sh\n", "err\n"), done
    assert docker.call("run", "--rm", "-i", "busybox", "cat", input="through\n").stdout == "through\n"
    missing = docker.call("run", "--rm", "busybox", "nosuch", check=False)
    assert missing.returncode == 127 and "executable file not found in $PATH" in missing.stderr, missing
    denied = docker.call("run", "--rm", "busybox", "/etc/passwd", check=False)
    assert denied.returncode == 126 and "permission denied" in denied.stderr, denied
    words = ("--read-only", "--user=1000:1001", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--env=A=b", "--workdir=/tmp")  # fmt: skip
    script = "id -u; id -g; pwd; echo $A; grep -E 'CapEff|Seccomp:|NoNewPrivs' /proc/self/status; touch /x"
    text = docker.call("run", "--rm", *words, "busybox", "sh", "-c", script, check=False).stdout.split()
    assert text[:4] == ["1000", "1001", "/tmp", "b"]
    assert dict(zip(text[4::2], text[5::2], strict=True)) == {"CapEff:": "0" * 16, "NoNewPrivs:": "1", "Seccomp:": "2"}


def in_the_background(docker: Docker) -> None:
    """Limits, exec, pause, stop, kill; its network is docker's, by a hook that calls dockerd back."""
    script = "trap 'exit 5' TERM; hostname > /tmp/page; httpd -h /tmp; echo up; while :; do sleep 0.1; done"
    limits = ("--memory=64m", "--cpus=0.5", "--pids-limit=50", "--publish=127.0.0.1:18081:80")
    ident = docker.docker("run", "-d", "--name=one", "--hostname=box", *limits, "busybox", "sh", "-c", script)
    assert docker.inspect("one", ".HostConfig.Runtime") == "nsrun"
    wait_for(lambda: docker.docker("logs", "one") == "up")
    assert docker.run("curl", "-sSf", "http://127.0.0.1:18081/page").stdout == "box\n"
    memory, quota = ("memory.limit_in_bytes", "memory.max"), ("cpu.cfs_quota_us", "cpu.max")
    assert (cgroup(ident, *memory), cgroup(ident, *quota).split()[0]) == (str(64 << 20), "50000")
    assert cgroup(ident, "pids.max") == "50"
    docker.docker("update", "--memory=96m", "--memory-swap=192m", "one")
    assert cgroup(ident, *memory) == str(96 << 20)
    done = docker.call("exec", "one", "sh", "-c", "cat /proc/1/comm; exit 4", check=False)
    assert (done.returncode, done.stdout) == (4, "sh\n"), done
    missing = docker.call("exec", "one", "nosuch", check=False)
    assert missing.returncode in (126, 127) and "executable file not found in $PATH" in missing.stdout + missing.stderr
    assert docker.docker("exec", "--user=1000", "--env=B=c", "one", "sh", "-c", "id -u; echo $B") == "1000\nc"
    assert "httpd" in docker.docker("top", "one")
    docker.docker("pause", "one")
    assert docker.inspect("one", ".State.Status") == "paused"
    docker.docker("unpause", "one")
    docker.docker("stop", "one")
    assert docker.inspect("one", ".State.ExitCode") == "5"
    docker.docker("start", "one")
    docker.docker("kill", "one")
    assert docker.docker("wait", "one") == "137"
    docker.docker("rm", "one")


def at_a_terminal(docker: Docker) -> None:
    t = docker.terminal("run", "--rm", "-it", "--network=none", "busybox", "sh")
    try:
        t.expect(r"# ", 30)
        t.type("tty\n")
        t.expect(r"/dev/pts/0\r\n")
        # docker tells the size when the container runs already
        t.type("until stty size 2>/dev/null | grep '31 101'; do sleep 0.1; done\n")
        t.expect(r"\n31 101\r\n")
        t.type("sh -c 'echo beg''un; sleep 100'\n")
        t.expect(r"begun\r\n")
        t.type("\x03")
        t.expect(r"# ")
        t.type("exit 9\n")
        assert t.process.wait(timeout=30) == 9
    finally:
        t.close()


def its_health(docker: Docker) -> None:
    options = ("--health-cmd=test ! -e /ill", "--health-interval=200ms", "--health-retries=1", "--network=none")
    docker.docker("run", "-d", "--name=two", *options, "busybox", "sleep", "1000")
    wait_for(lambda: docker.inspect("two", ".State.Health.Status") == "healthy")
    docker.docker("exec", "two", "touch", "/ill")
    wait_for(lambda: docker.inspect("two", ".State.Health.Status") == "unhealthy")
    docker.docker("rm", "--force", "two")


@pytest.mark.timeout(300)
def test_what_docker_asks(docker):
    """One dockerd tells four stories, since its start is most of the time; then nothing is left."""
    assert "nsrun" in json.loads(docker.docker("info", "--format={{json .}}"))["Runtimes"]
    in_the_foreground(docker)
    in_the_background(docker)
    at_a_terminal(docker)
    its_health(docker)
    with contextlib.suppress(AssertionError):
        wait_for(lambda: docker.left() == [])
    assert docker.left() == []
