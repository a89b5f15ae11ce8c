# SPDX-License-Identifier: Apache-2.0
"""Other engines, each on a machine of its own: a network and a mount namespace, and cgroups below a name of ours.

podman, crun and runc are Debian's; containerd and ctr may be in .venv/bin, where .ci/deps puts them.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

from conftest import NSRUN, Host, UserHost, need, sh, wait_for

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:{os.path.dirname(sys.executable)}"
GROUP = f"nsrun-engines-{os.getpid()}"
HOLD = ["/bin/sleep", "100000"]
CONF = """
[engine]
cgroup_manager="cgroupfs"
events_logger="file"
[containers]
default_ulimits=["nofile=1024:1024","nproc=1024:1024"]
"""
CONTAINERD = """
version = 2
root = "{0}/root"
state = "{0}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{0}/socket"
"""


class Machine:
    """Where an engine runs, and `nsrun map` beside it."""

    def __init__(self, host: Host, rootfs: pathlib.Path) -> None:
        self.host, self.rootfs = host, rootfs
        self.base = host.root / "engine"
        self.base.mkdir()
        self.env = {**host.env, "PATH": PATH, "HOME": str(self.base), "CONTAINERS_CONF": str(self.base / "containers.conf"), "PODMAN_IGNORE_CGROUPSV1_WARNING": "1"}  # fmt: skip
        (self.base / "containers.conf").write_text(CONF)
        self.holder = subprocess.Popen(["unshare", "--mount", "--net", *HOLD])
        wait_for(lambda: os.readlink(f"/proc/{self.holder.pid}/ns/net") != os.readlink("/proc/self/ns/net"))
        wait_for(lambda: pathlib.Path(f"/proc/{self.holder.pid}/comm").read_text() == "sleep\n")
        self.run("ip", "link", "set", "lo", "up")
        if os.path.isdir("/sys/fs/cgroup/unified"):  # crun refuses the hybrid layout
            self.run("mount", "-t", "tmpfs", "tmpfs", "/sys/fs/cgroup/unified")

    def words(self, *words: object) -> list[str]:
        return ["nsenter", f"--target={self.holder.pid}", "--mount", "--net", *map(str, words)]

    def run(self, *words: object, **kwargs) -> subprocess.CompletedProcess[str]:
        return sh(*self.words(*words), env=self.env, **kwargs)

    def start(self, *words: object) -> subprocess.Popen:
        """A command in the background, or a container's, whose output nobody reads."""
        null = subprocess.DEVNULL
        return subprocess.Popen(self.words(*words), env=self.env, stdin=null, stdout=null, stderr=null)

    def detached(self, *words: object) -> None:
        """A command that ends, while what it started has its output: nobody waits for the end of that."""
        assert self.start(*words).wait(timeout=60) == 0, words

    def limit(self, file: str, value: int) -> None:
        """Limit all containers together."""
        tops = ("/sys/fs/cgroup", *(f"/sys/fs/cgroup/{name}" for name in os.listdir("/sys/fs/cgroup")))
        (found,) = (path for top in tops if (path := pathlib.Path(top, GROUP, file)).exists())
        found.write_text(str(value))

    def map(self, *words: object) -> str:
        return self.run(NSRUN, "map", *words).stdout

    def mapped(self, *words: object) -> dict:
        (pod,) = json.loads(self.map(*words, "--format", "json"))["pods"]
        return pod

    def close(self) -> None:
        self.holder.kill()
        self.holder.wait()
        for top in {f"/sys/fs/cgroup/{name}/{GROUP}" for name in ("", *os.listdir("/sys/fs/cgroup"))}:
            for _ in range(100):  # what was killed has to end
                for directory, _, _ in os.walk(top, topdown=False):
                    with contextlib.suppress(OSError):
                        os.rmdir(directory)
                if not os.path.exists(top):
                    break
                time.sleep(0.05)
            assert not os.path.exists(top), f"{top} is left"


class Podman(Machine):
    """A pod of podman's: `sandbox`, its infra container, and others."""

    def __init__(self, host: Host, rootfs: pathlib.Path) -> None:
        need(shutil.which("podman", path=PATH), "podman is missing", "apt-get install podman crun netavark iptables")
        need(os.path.exists("/usr/lib/podman/netavark"), "netavark is missing", "apt-get install netavark iptables")
        super().__init__(host, rootfs)
        self.run("tar", "-C", rootfs, "-cf", self.base / "busybox.tar", ".")
        self.podman("import", "--quiet", self.base / "busybox.tar", "busybox")

    def podman(self, *words: object) -> str:
        return self.call(*words).stdout.strip()

    def call(self, *words: object, **kwargs) -> subprocess.CompletedProcess[str]:
        runtime = "crun" if shutil.which("crun", path=PATH) else "runc"
        places = [f"--{name}={self.base}/{name}" for name in ("root", "runroot", "tmpdir")]
        return self.run("podman", *places, "--cgroup-manager=cgroupfs", f"--runtime={runtime}", *words, **kwargs)

    def pod(self, *options: object) -> None:
        command = ["--infra-image=busybox", "--infra-command=/bin/sleep 100000", f"--cgroup-parent=/{GROUP}"]
        self.podman("pod", "create", "--name=shop", "--infra-name=sandbox", *command, *options)

    def container(self, name: str, *command: str, options: tuple[str, ...] = ()) -> None:
        self.podman("run", "--detach", "--pod=shop", f"--name={name}", *options, "busybox", *command)

    def ask(self, name: str) -> tuple[int, str]:
        """(pid of its first process, the beginning of its id) of a container."""
        pid, ident = self.podman("inspect", "--format={{.State.Pid}} {{.Id}}", name).split()
        return int(pid), ident[:12]

    def close(self) -> None:
        try:  # under load, podman finds now and then what it has just ended still busy
            wait_for(lambda: self.call("pod", "rm", "--force", "--time=0", "--all", check=False).returncode == 0)
        finally:
            self.end()
            super().close()

    def end(self) -> None:
        """End what is left when there is no pod any more."""


class UserPodman(Podman):
    """The same as an ordinary user, whose containers have no cgroups: podman has one user namespace for all of them."""

    def __init__(self, host: Host, rootfs: pathlib.Path, user: UserHost) -> None:
        self.user = user
        sh("chmod", "-R", "a+rX", rootfs)
        super().__init__(host, rootfs)

    def call(self, *words: object, **kwargs) -> subprocess.CompletedProcess[str]:
        for directory in (self.base, self.base / "run"):
            directory.mkdir(exist_ok=True)
            os.chown(directory, self.user.uid, self.user.uid)
        environment = {**self.env, "XDG_RUNTIME_DIR": str(self.base / "run")}
        places = [f"--{name}={self.base}/{name}" for name in ("root", "runroot", "tmpdir")]
        call = ["podman", *places, "--storage-driver=vfs", "--cgroup-manager=cgroupfs", "--runtime=crun", *words]
        return sh(*self.words(*self.user.words(*call)), env=environment, **kwargs)

    def pod(self, *options: object) -> None:
        command = ["--infra-image=busybox", "--infra-command=/bin/sleep 100000", "--share=net,ipc,uts"]
        self.podman("pod", "create", "--name=shop", "--infra-name=sandbox", *command, *options)

    def container(self, name: str, *command: str, options: tuple[str, ...] = ()) -> None:
        super().container(name, *command, options=("--cgroups=disabled", *options))

    def end(self) -> None:
        self.call("system", "migrate", check=False)  # this ends the process that holds the user namespace


class Runtime(Machine):
    """crun or runc alone: bundles, of which one may join the namespaces of another by path."""

    def __init__(self, host: Host, rootfs: pathlib.Path, program: str) -> None:
        need(shutil.which(program, path=PATH), f"{program} is missing", f"apt-get install {program}")
        self.names: list[str] = []
        super().__init__(host, rootfs)
        self.call = [program, f"--root={self.base}/{program}"]

    def container(self, name: str, joined: int = 0, shm: pathlib.Path | None = None, **linux: object) -> int:
        """Start one, and return its pid; `joined`: whose network, IPC and UTS namespace it gets, and `shm` is the /dev/shm."""
        bundle = self.base / name
        bundle.mkdir()
        self.run(self.call[0], "spec", "--bundle", bundle)
        config = json.loads((bundle / "config.json").read_text())
        config["root"] = {"path": str(self.rootfs), "readonly": True}
        config["process"].update(terminal=False, args=HOLD, rlimits=[])
        kinds = {"network": "net", "ipc": "ipc", "uts": "uts"}
        found = [{"type": kind, **({"path": f"/proc/{joined}/ns/{kinds[kind]}"} if joined and kind in kinds else {})} for kind in (*kinds, "pid", "mount")]  # fmt: skip
        config["linux"].update(namespaces=found, cgroupsPath=f"/{GROUP}/{name}", **linux)
        if joined:
            del config["hostname"]
        for mount in config["mounts"]:
            if mount["destination"] == "/dev/shm" and shm:
                mount.update(type="bind", source=str(shm), options=["bind"])
        if "uidMappings" in linux:
            config["linux"]["namespaces"].append({"type": "user"})
        (bundle / "config.json").write_text(json.dumps(config))
        self.names.append(name)
        self.detached(*self.call, "run", "--detach", f"--bundle={bundle}", name)
        return self.pid(name)

    def pid(self, name: str) -> int:
        return int(json.loads(self.run(*self.call, "state", name).stdout)["pid"])

    def close(self) -> None:
        for name in self.names:
            self.run(*self.call, "delete", "--force", name, check=False)
        super().close()


class Containerd(Machine):
    """containerd with its shim and runc, by ctr, which is its own client."""

    def __init__(self, host: Host, rootfs: pathlib.Path) -> None:
        for program in ("containerd", "ctr", "containerd-shim-runc-v2"):
            need(
                shutil.which(program, path=PATH),
                f"{program} is missing",
                ".ci/deps test, or apt-get install containerd",
            )
        need(shutil.which("runc", path=PATH), "runc is missing", "apt-get install runc")
        self.names: list[str] = []
        self.daemon: subprocess.Popen | None = None
        super().__init__(host, rootfs)
        (self.base / "config.toml").write_text(CONTAINERD.format(self.base))
        self.daemon = self.start("containerd", "--config", self.base / "config.toml")
        wait_for(lambda: self.ctr("version", check=False).returncode == 0, what="containerd")

    def ctr(self, *words: object, **kwargs) -> subprocess.CompletedProcess[str]:
        return self.run("ctr", "--address", self.base / "socket", *words, **kwargs)

    def container(self, name: str, *options: object) -> int:
        self.names.append(name)
        self.ctr("run", "--detach", f"--cgroup=/{GROUP}/{name}", *options, "--rootfs", self.rootfs, name, *HOLD)
        tasks = self.ctr("tasks", "ls").stdout.splitlines()
        return next(int(line.split()[1]) for line in tasks if line.split()[0] == name)

    def close(self) -> None:
        for name in self.names:
            self.ctr("tasks", "rm", "--force", name, check=False)
            self.ctr("containers", "rm", name, check=False)
        if self.daemon:
            self.daemon.terminate()
            self.daemon.wait(timeout=30)
        super().close()


@contextlib.contextmanager
def engine(kind: type[Machine], *arguments: object) -> Iterator:
    made = kind.__new__(kind)
    try:
        made.__init__(*arguments)  # type: ignore[misc]
        yield made
    finally:
        if hasattr(made, "holder"):
            made.close()
