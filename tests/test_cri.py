# SPDX-License-Identifier: Apache-2.0
"""A kubelet's calls: containerd's CRI plugin with a handler for which nsrun-oci is the runtime, on a machine of its own.

The sandbox of a pod is nsrun-pause (rootfs/pause), its network CNI's bridge, where Debian's plugins are.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import CACHE, EDITABLE, HERE, Host, need, sh, wait_for
from engines import GROUP, PATH, Machine, engine
from oci import replaying

pytestmark = [pytest.mark.live, pytest.mark.slow]
PAUSE, BUSYBOX = "localhost/nsrun-pause:cri", "localhost/busybox:latest"
CNI = next((path for path in ("/usr/lib/cni", os.path.join(os.path.dirname(os.path.dirname(sys.executable)), "cni")) if os.path.exists(f"{path}/host-local")), "")  # fmt: skip
POD, CONTAINER, NODE = range(3)
RUNNING, EXITED = 1, 2
CONFIG = """
version = 2
root = "{base}/root"
state = "{base}/state"
[grpc]
address = "{base}/socket"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
disable_apparmor = true
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
stream_server_address = "127.0.0.1"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{cni}"
conf_dir = "{base}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "nsrun"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nsrun]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nsrun.options]
BinaryName = "{oci}"
Root = "{base}/runtime"
SystemdCgroup = false
"""
NETWORK = {
    "cniVersion": "0.4.0",
    "name": "pods",
    "plugins": [
        {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipam": {"type": "host-local", "subnet": "10.99.0.0/24"}}
    ],
}  # fmt: skip


class Refused(Exception):
    """What gRPC says: a code, and a text."""


class Kubelet(Machine):
    """containerd, and the client of its CRI."""

    def __init__(self, host: Host, rootfs: pathlib.Path) -> None:
        for program in ("containerd", "ctr", "containerd-shim-runc-v2"):
            need(shutil.which(program, path=PATH), f"{program} is missing", ".ci/deps test")
        need(_has_grpc(), "grpcio is missing", "make .venv/.tested")
        need(CNI, "the plugins of CNI are missing", ".ci/deps test")
        need((CACHE.parent / "images/busybox").is_dir(), "the busybox image is not built", "sudo rootfs/build --image busybox")  # fmt: skip
        self.daemon: subprocess.Popen | None = None
        self.client: subprocess.Popen | None = None
        super().__init__(host, rootfs)
        for directory in ("cni", "lib", "work", "logs"):
            (self.base / directory).mkdir()
        # what a plugin writes to /var/lib/cni stays here
        layers = f"lowerdir=/var/lib,upperdir={self.base}/lib,workdir={self.base}/work"
        self.run("mount", "-t", "overlay", "-o", layers, "overlay", "/var/lib")
        (self.base / "cni/10-pods.conflist").write_text(json.dumps(NETWORK))
        (self.base / "config.toml").write_text(
            CONFIG.format(base=self.base, pause=PAUSE, cni=CNI, oci=replaying(self.base))
        )
        with open(self.base / "log", "wb") as log:
            self.daemon = subprocess.Popen(self.words("containerd", "--config", self.base / "config.toml"), env=self.env, stdout=log, stderr=log)  # fmt: skip
        wait_for(lambda: self.ctr("version", check=False).returncode == 0, what="containerd")
        sh(sys.executable, HERE.parent / "rootfs/pause", self.base / "pause.tar", PAUSE)
        self.run("tar", "-C", CACHE.parent / "images/busybox", "-cf", self.base / "busybox.tar", ".")
        for name in ("pause", "busybox"):
            self.ctr("--namespace=k8s.io", "images", "import", self.base / f"{name}.tar")
        self.client = subprocess.Popen(self.words(sys.executable, HERE / "cri.py", self.base / "socket"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
        wanted = {PAUSE, BUSYBOX}
        wait_for(lambda: wanted <= {tag for image in self.call("ListImages")["images"] for tag in image["repo_tags"]})

    def ctr(self, *words: object, **kwargs) -> subprocess.CompletedProcess[str]:
        return self.run("ctr", "--address", self.base / "socket", *words, **kwargs)

    def ask(self, *question: object) -> Any:
        self.client.stdin.write(json.dumps(question) + "\n")
        self.client.stdin.flush()
        refused, answer = json.loads(self.client.stdout.readline())
        if refused:
            raise Refused(f"{refused}: {answer}")
        return answer

    def call(self, method: str, **fields: object) -> Any:
        return self.ask(method, fields, 60)

    def stream(self, method: str, given: str = "", **fields: object) -> Any:
        return self.ask("stream", self.call(method, **fields)["url"], given)

    def sandbox(self, name: str, network: int = POD, pid: int = CONTAINER, handler: str = "nsrun") -> Sandbox:
        return Sandbox(self, name, network, pid, handler)

    def tasks(self) -> list[str]:
        """The containers in the runtime's directory, which has filters that it compiled, too (.seccomp)."""
        place = self.base / "runtime/k8s.io"
        return [name for name in os.listdir(place) if name[0] != "."] if place.exists() else []

    def left(self) -> list[str]:
        """What is there of the containers: in cgroups, mounts, processes, and in the runtime's directory."""
        found = [f"container {name}" for name in self.tasks()]
        for top in ("/sys/fs/cgroup", *(f"/sys/fs/cgroup/{name}" for name in os.listdir("/sys/fs/cgroup"))):
            place = pathlib.Path(top, GROUP)
            found += [str(path) for path in place.iterdir() if path.is_dir()] if place.exists() else []
        mounts = pathlib.Path(f"/proc/{self.holder.pid}/mountinfo").read_text()
        state = f"{self.base}/state/"
        found += [line.split()[4] for line in mounts.splitlines() if line.split()[4].startswith(state)]
        return found + self.shims()

    def shims(self) -> list[str]:
        """The command lines of the shims of this containerd."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if "shim" in words[0] and f"{self.base}/socket" in words:
                found.append(f"{pid} {' '.join(words)}")
        return found

    def close(self) -> None:
        try:
            for pod in self.call("ListPodSandbox")["items"] if self.client else []:
                for call in ("StopPodSandbox", "RemovePodSandbox"):
                    self.call(call, pod_sandbox_id=pod["id"])
        finally:
            if self.client:
                self.client.stdin.close()
                self.client.wait(timeout=30)
            if self.daemon:
                self.daemon.terminate()
                self.daemon.wait(timeout=30)
            super().close()


class Sandbox:
    """One pod, and its containers by their names."""

    def __init__(self, kubelet: Kubelet, name: str, network: int, pid: int, handler: str) -> None:
        self.kubelet = kubelet
        self.namespaces = {"network": network, "pid": pid, "ipc": POD}
        linux = {
            "cgroup_parent": f"/{GROUP}",
            "security_context": {"namespace_options": self.namespaces, "seccomp": {"profile_type": 0}},
            "sysctls": {} if network == NODE else {"net.ipv4.ip_unprivileged_port_start": "80"},
        }
        self.logs = kubelet.base / "logs" / name
        self.config = {
            "metadata": {"name": name, "uid": f"uid-{name}", "namespace": "default"},
            "log_directory": str(self.logs),
            "linux": linux,
            **({} if network == NODE else {"hostname": name}),
        }
        self.id = kubelet.call("RunPodSandbox", config=self.config, runtime_handler=handler)["pod_sandbox_id"]

    def create(self, name: str, *args: str, resources: dict[str, int] | None = None, **config: Any) -> str:
        security = {
            "namespace_options": self.namespaces,
            "seccomp": {"profile_type": 0},
            "no_new_privs": True,
            "masked_paths": ["/proc/kcore"],
            "readonly_paths": ["/proc/sys"],
            **config.pop("security", {}),
        }
        made = {
            "metadata": {"name": name},
            "image": {"image": BUSYBOX},
            "command": list(args),
            "log_path": f"{name}.log",
            "linux": {"resources": resources or {}, "security_context": security},
            **config,
        }
        request = {"pod_sandbox_id": self.id, "config": made, "sandbox_config": self.config}
        return self.kubelet.call("CreateContainer", **request)["container_id"]

    def run(self, name: str, *args: str, **config: Any) -> str:
        container = self.create(name, *args, **config)
        self.kubelet.call("StartContainer", container_id=container)
        return container

    def status(self, container: str) -> dict[str, Any]:
        return self.kubelet.call("ContainerStatus", container_id=container)["status"]

    def ended(self, container: str) -> dict[str, Any]:
        return wait_for(lambda: found if (found := self.status(container))["state"] == EXITED else None)

    def pid(self, container: str = "") -> int:
        """The pid, on this host, of the first process of a container or of the sandbox."""
        if container:
            found = self.kubelet.call("ContainerStatus", container_id=container, verbose=True)
        else:
            found = self.kubelet.call("PodSandboxStatus", pod_sandbox_id=self.id, verbose=True)
        return json.loads(found["info"]["info"])["pid"]

    def exec(self, container: str, *command: str, timeout: int = 10) -> tuple[int, str, str]:
        done = self.kubelet.call("ExecSync", container_id=container, cmd=list(command), timeout=timeout)
        return done["exit_code"], done["stdout"], done["stderr"]

    def log(self, name: str) -> list[tuple[str, str]]:
        """(stream, text) of each line of a container's log, which CRI writes as TIME STREAM F TEXT."""
        lines = (self.logs / f"{name}.log").read_text().splitlines()
        return [(parts[1], parts[3]) for line in lines if len(parts := line.split(" ", 3)) == 4]


def _has_grpc() -> bool:
    try:
        import grpc  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.fixture
def kubelet(host: Host, busybox: str) -> Iterator[Kubelet]:
    with engine(Kubelet, host, pathlib.Path(busybox)) as made:
        yield made


TRAP = "trap 'echo ended; exit 5' TERM; echo up; while :; do sleep 0.1; done"


def cgroup(container: str, *files: str) -> str:
    """The content of the first of these files that a cgroup of the container has: of v1 and v2."""
    places = ("/sys/fs/cgroup", *(f"/sys/fs/cgroup/{name}" for name in os.listdir("/sys/fs/cgroup")))
    found = [path for file in files for top in places if (path := pathlib.Path(top, GROUP, container, file)).exists()]
    return found[0].read_text().strip()


def nothing_is_left(kubelet: Kubelet) -> None:
    """Of a container that is removed, a shim ends, and with it what it holds, soon after the answer."""
    with contextlib.suppress(AssertionError):
        wait_for(lambda: kubelet.left() == [])
    assert kubelet.left() == []


def a_pod_from_its_sandbox_to_its_end(kubelet):
    """What a kubelet does with a pod of an init container and two others, and that nothing of it is left."""
    assert kubelet.call("Version", version="v1")["runtime_name"] == "containerd"
    conditions = kubelet.call("Status")["status"]["conditions"]
    found = {one["type"]: one["status"] for one in conditions}  # newer ones tell of deprecated settings, too
    assert found.items() >= {"RuntimeReady": True, "NetworkReady": True}.items()
    with pytest.raises(Refused, match="no runtime for"):
        kubelet.sandbox("other", handler="nosuch")
    pod = kubelet.sandbox("web")
    status = kubelet.call("PodSandboxStatus", pod_sandbox_id=pod.id)["status"]
    assert (status["state"], status["runtime_handler"]) == (0, "nsrun")
    assert re.fullmatch(r"10\.99\.0\.\d+", status["network"]["ip"])
    sandbox = pod.pid()
    assert pathlib.Path(f"/proc/{sandbox}/comm").read_text() == "pause\n"
    assert "Uid:\t65535\t" in pathlib.Path(f"/proc/{sandbox}/status").read_text()
    shared = kubelet.base / "shared"
    shared.mkdir()
    mounts = [{"container_path": "/shared", "host_path": str(shared)}]
    init = pod.run("init", "sh", "-c", "hostname > /shared/page; echo done", mounts=mounts)
    ended = pod.ended(init)
    assert (ended["exit_code"], ended["reason"]) == (0, "Completed")
    assert pod.log("init") == [("stdout", "done")] and (shared / "page").read_text() == "web\n"
    failed = pod.run("failed", "sh", "-c", "echo why >&2; exit 3", mounts=mounts)
    assert (pod.ended(failed)["exit_code"], pod.log("failed")) == (3, [("stderr", "why")])

    mounts = [{"container_path": "/www", "host_path": str(shared), "readonly": True}]
    server = pod.create("server", "httpd", "-f", "-h", "/www", mounts=mounts, security={"readonly_rootfs": True, "run_as_user": {"value": 1000}})  # fmt: skip
    assert pod.status(server)["state"] == 0, "created, not started"
    kubelet.call("StartContainer", container_id=server)
    client = pod.run("client", "sh", "-c", TRAP, envs=[{"key": "A", "value": "b"}], working_dir="/tmp")
    wait_for(lambda: pod.log("client") == [("stdout", "up")])
    fetched = wait_for(lambda: found if (found := pod.exec(client, "wget", "-qO-", "127.0.0.1/page"))[0] == 0 else None)
    assert fetched == (0, "web\n", ""), "they share their network"
    assert kubelet.run("curl", "-sSf", f"http://{status['network']['ip']}/page").stdout == "web\n", "CNI's bridge"
    assert pod.exec(client, "sh", "-c", "pwd; echo $A; exit 4") == (4, "/tmp\nb\n", "")
    assert pod.exec(client, "sh", "-c", "grep -c . /proc/1/cmdline; readlink /proc/self/ns/pid")[1].split()[1] == os.readlink(f"/proc/{pod.pid(client)}/ns/pid")  # fmt: skip
    assert "Seccomp:\t2" in pod.exec(client, "grep", "Seccomp:", "/proc/self/status")[1]
    assert pod.exec(server, "id", "-u")[1] == "1000\n" and pod.exec(server, "touch", "/www/x", "/x")[0] == 1
    listed = {one["metadata"]["name"]: one["state"] for one in kubelet.call("ListContainers")["containers"]}
    assert listed == {"init": EXITED, "failed": EXITED, "server": RUNNING, "client": RUNNING}

    kubelet.call("StopContainer", container_id=client, timeout=20)
    assert (pod.status(client)["exit_code"], pod.log("client")[-1]) == (5, ("stdout", "ended")), "TERM, in time"
    kubelet.call("RemoveContainer", container_id=client)
    with pytest.raises(Refused, match="NOT_FOUND"):
        pod.status(client)
    kubelet.call("StopPodSandbox", pod_sandbox_id=pod.id)
    assert pod.ended(server)["exit_code"] in (137, 143)
    assert kubelet.call("PodSandboxStatus", pod_sandbox_id=pod.id)["status"]["state"] == 1
    kubelet.call("RemovePodSandbox", pod_sandbox_id=pod.id)
    assert kubelet.call("ListContainers")["containers"] == kubelet.call("ListPodSandbox")["items"] == []
    nothing_is_left(kubelet)


def one_pid_namespace_and_streams(kubelet):
    """shareProcessNamespace: pause is PID 1 of all, and reaps; exec and attach by WebSocket; a host network."""
    pod = kubelet.sandbox("shared", network=NODE, pid=POD)
    one = pod.run("one", "sleep", "1001")
    two = pod.run("two", "sh", "-c", TRAP)
    seen = pod.exec(one, "ps", "-o", "pid,args")[1]
    assert re.search(r"^ +1 /pause$", seen, re.M) and "sleep 1001" in seen and "trap" in seen, seen
    assert os.readlink(f"/proc/{pod.pid()}/ns/pid") == os.readlink(f"/proc/{pod.pid(one)}/ns/pid")
    assert os.readlink(f"/proc/{pod.pid(two)}/ns/net") == os.readlink(f"/proc/{kubelet.holder.pid}/ns/net")
    pod.exec(one, "sh", "-c", "sleep 0.1 & exec sleep 0")
    wait_for(lambda: " Z " not in pod.exec(one, "ps", "-o", "stat,args")[1], what="orphans are reaped")

    request = {"container_id": one, "stdin": True, "stdout": True, "stderr": True}
    done = kubelet.stream("Exec", "hello\n", cmd=["sh", "-c", "read x; echo got $x; echo err >&2; exit 6"], **request)
    assert (done["stdout"], done["stderr"]) == ("got hello\n", "err\n")
    assert done["end"]["details"]["causes"] == [{"reason": "ExitCode", "message": "6"}]
    words = ["sh", "-c", "tty; read x; stty size; echo $x"]
    done = kubelet.stream("Exec", "again\n", cmd=words, tty=True, container_id=one, stdin=True, stdout=True)
    assert "/dev/pts/" in done["stdout"] and done["stdout"].endswith("again\r\n"), done
    assert done["end"]["status"] == "Success"
    reader = pod.run("reader", "sh", "-c", "read x; echo got $x; echo err >&2", stdin=True, stdin_once=True)
    done = kubelet.stream("Attach", "attached\n", container_id=reader, stdin=True, stdout=True, stderr=True)
    assert (done["stdout"], done["stderr"]) == ("got attached\n", "err\n") and pod.ended(reader)["exit_code"] == 0

    kubelet.call("StopPodSandbox", pod_sandbox_id=pod.id)
    kubelet.call("RemovePodSandbox", pod_sandbox_id=pod.id)
    nothing_is_left(kubelet)


def limits_probes_and_what_does_not_end(kubelet):
    pod = kubelet.sandbox("limits", network=NODE)
    limits = {"memory_limit_in_bytes": 64 << 20, "cpu_quota": 50000, "cpu_period": 100000, "cpu_shares": 512, "oom_score_adj": 900}  # fmt: skip
    one = pod.run("one", "sh", "-c", "trap '' TERM; while :; do sleep 0.1; done", resources=limits)
    memory, quota = ("memory.limit_in_bytes", "memory.max"), ("cpu.cfs_quota_us", "cpu.max")
    assert (cgroup(one, *memory), cgroup(one, *quota).split()[0]) == (str(64 << 20), "50000")
    assert pathlib.Path(f"/proc/{pod.pid(one)}/oom_score_adj").read_text() == "900\n"
    kubelet.call("UpdateContainerResources", container_id=one, linux={**limits, "memory_limit_in_bytes": 128 << 20, "cpu_quota": 70000})  # fmt: skip
    assert (cgroup(one, *memory), cgroup(one, *quota).split()[0]) == (str(128 << 20), "70000")
    stats = wait_for(lambda: kubelet.call("ContainerStats", container_id=one)["stats"])
    assert stats["memory"]["working_set_bytes"]["value"] and stats["cpu"]["usage_core_nano_seconds"]["value"]
    # a probe that takes too long is ended, and its process with it
    with pytest.raises(Refused, match="DEADLINE_EXCEEDED|timeout"):
        pod.exec(one, "sleep", "1003", timeout=1)
    wait_for(lambda: "1003" not in pod.exec(one, "ps", "-o", "args")[1])
    with pytest.raises(Refused, match="executable file not found in .PATH"):
        pod.exec(one, "nosuch")
    with pytest.raises(Refused, match="executable file not found in .PATH|no such file"):
        pod.run("missing", "nosuch")
    # a kubelet that comes back finds what it had
    kubelet.call("StopContainer", container_id=one, timeout=1)
    assert (pod.status(one)["exit_code"], pod.status(one)["reason"]) == (137, "Error"), "KILL, after TERM was ignored"
    eater = pod.run("eater", "sh", "-c", "tail /dev/zero", resources={"memory_limit_in_bytes": 16 << 20})
    ended = pod.ended(eater)
    assert (ended["exit_code"], ended["reason"]) == (137, "OOMKilled"), ended
    kubelet.call("StopPodSandbox", pod_sandbox_id=pod.id)
    kubelet.call("RemovePodSandbox", pod_sandbox_id=pod.id)
    nothing_is_left(kubelet)


def a_pod_like_the_last(kubelet):
    """A pod that is made anew, and a container that is started once more, need no Python: what differs are ids."""
    said = []
    for again in (False, True):
        if again and not EDITABLE:
            (kubelet.base / "replay-create").touch()
        pod = kubelet.sandbox("like")
        for number in range(2):
            container = pod.run("app", "sh", "-c", f"echo {number}; id; hostname; grep Cap /proc/self/status; exit 3")
            assert pod.ended(container)["exit_code"] == 3
            said.append(pod.log("app"))
            kubelet.call("RemoveContainer", container_id=container)
            (pod.logs / "app.log").unlink()
        kubelet.call("StopPodSandbox", pod_sandbox_id=pod.id)
        kubelet.call("RemovePodSandbox", pod_sandbox_id=pod.id)
    (kubelet.base / "replay-create").unlink(missing_ok=True)
    assert said[:2] == said[2:] and said[0][1:] == said[1][1:] and said[0][0] == ("stdout", "0"), said
    nothing_is_left(kubelet)


@pytest.mark.timeout(300)
def test_what_a_kubelet_asks(kubelet):
    """One containerd tells three stories, since its start is most of the time."""
    a_pod_from_its_sandbox_to_its_end(kubelet)
    one_pid_namespace_and_streams(kubelet)
    limits_probes_and_what_does_not_end(kubelet)
    a_pod_like_the_last(kubelet)
