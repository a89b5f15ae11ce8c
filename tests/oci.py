# SPDX-License-Identifier: Apache-2.0
"""OCI runtimes on a machine of their own, each called as engines call it: nsrun-oci, and runc and crun where they are installed."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import json
import os
import pathlib
import shutil
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

from conftest import NSRUN, Host, need, wait_for
from engines import GROUP, PATH, Machine

OCI = os.path.join(os.path.dirname(NSRUN), "nsrun-oci")
RUNTIMES = {"runc": "runc", "crun": "crun", "nsrun-oci": OCI}
PR_SET_CHILD_SUBREAPER = 36
SLEEP = ["sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.05; done"]


def config(rootfs: object, *args: str, **process: Any) -> dict[str, Any]:
    """A config.json that all three take; what is to be different is changed in it."""
    caps = [f"CAP_{name}" for name in ("CHOWN", "DAC_OVERRIDE", "KILL", "SETGID", "SETUID", "NET_BIND_SERVICE", "SYS_CHROOT")]  # fmt: skip
    safe = ["nosuid", "noexec", "nodev"]
    return {
        "ociVersion": "1.0.2",
        "root": {"path": str(rootfs), "readonly": True},
        "hostname": "box",
        "process": {
            "terminal": False,
            "cwd": "/",
            "args": list(args or ["true"]),
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            "user": {"uid": 0, "gid": 0},
            "capabilities": {name: caps for name in ("bounding", "effective", "permitted")},
            "noNewPrivileges": True,
            **process,
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": safe},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": [*safe, "mode=1777", "size=65536k"]},
        ],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]},
    }  # fmt: skip


def replaying(base: pathlib.Path) -> pathlib.Path:
    """A program to be called in place of nsrun-oci, which lets no command be Python's that is named by a file BASE/replay-COMMAND."""
    script = base / "nsrun-oci"
    script.write_text(
        f'#!/bin/sh\nfor word; do [ -e "{base}/replay-${{word##*/}}" ] && export NSRUN_REPLAY=must; done\nexec {OCI} "$@"\n'
    )
    script.chmod(0o755)
    return script


def subreaper(on: bool) -> None:
    """Orphans below us become our children, as those of conmon and containerd's shim do: then they are ours to reap."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0)


class Runtime(Machine):
    """One runtime; `words` are its global options.  `hybrid`: cgroup v2 stays in view, which crun refuses beside v1."""

    def __init__(self, host: Host, rootfs: pathlib.Path, name: str, hybrid: bool = False) -> None:
        program = RUNTIMES[name]
        need(shutil.which(program, path=PATH), f"{name} is missing", f"apt-get install {name}")
        subreaper(True)
        self.name, self.program, self.made = name, program, set[str]()
        super().__init__(host, rootfs)
        if hybrid and os.path.isdir("/sys/fs/cgroup/unified"):
            self.run("umount", "/sys/fs/cgroup/unified")
        self.state = self.base / "state"
        self.pids: list[int] = []

    def config(self, *args: str, **process: Any) -> dict[str, Any]:
        made = config(self.rootfs, *args, **process)
        return made

    def bundle(self, name: str, document: dict[str, Any] | None = None, *args: str) -> pathlib.Path:
        """A bundle, and a place of its own among the cgroups."""
        path = self.base / f"bundle-{name}"
        path.mkdir(exist_ok=True)
        document = copy.deepcopy(document or self.config(*args))
        document["linux"].setdefault("cgroupsPath", f"/{GROUP}/{name}")
        (path / "config.json").write_text(json.dumps(document))
        self.made.add(name)
        return path

    def call(
        self, *words: object, stdin: Any = subprocess.DEVNULL, timeout: float = 30, **kwargs: Any
    ) -> subprocess.CompletedProcess[str]:
        """Call the runtime; its output goes to files, because a container that lives would keep a pipe open."""
        out, err = self.base / "stdout", self.base / "stderr"
        env = kwargs.pop("env", self.env)
        with open(out, "w") as stdout, open(err, "w") as stderr:
            command = self.words(self.program, f"--root={self.state}", *words)
            done = subprocess.run(command, stdin=stdin, stdout=stdout, stderr=stderr, timeout=timeout, check=False, env=env, **kwargs)  # fmt: skip
        return subprocess.CompletedProcess(command, done.returncode, out.read_text(), err.read_text())

    def ok(self, *words: object, **kwargs: Any) -> str:
        done = self.call(*words, **kwargs)
        assert done.returncode == 0, (words, done)
        return done.stdout

    def create(
        self,
        name: str,
        document: dict[str, Any] | None = None,
        *args: str,
        options: tuple[object, ...] = (),
        **kwargs: Any,
    ) -> int:
        bundle = self.bundle(name, document, *args)
        self.ok("create", "--bundle", bundle, "--pid-file", self.base / "pid", *options, name, **kwargs)
        pid = int((self.base / "pid").read_text())
        self.pids.append(pid)
        return pid

    def running(self, name: str, *args: str) -> int:
        pid = self.create(name, None, *(args or SLEEP))
        self.ok("start", name)
        return pid

    def stopped(self, name: str) -> None:
        pid = self.running(name)
        self.ok("kill", name, "KILL")
        self.reap(pid)

    def status(self, name: str) -> dict[str, Any]:
        return json.loads(self.ok("state", name))

    def reap(self, pid: int) -> int:
        """The exit status of a container's process: we are its parent now."""
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def cgroups(self, name: str) -> list[str]:
        tops = {f"/sys/fs/cgroup/{kind}/{GROUP}/{name}" for kind in ("", *os.listdir("/sys/fs/cgroup"))}
        return sorted(filter(os.path.isdir, tops))

    def close(self) -> None:
        for name in self.made:
            self.call("delete", "--force", name)
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for(self._reap_all)
        super().close()

    def _reap_all(self) -> bool:
        """A PID namespace ends when all in it are reaped, and what a runtime left running is ours to reap."""
        for pid in map(int, pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()):
            with contextlib.suppress(OSError):
                if pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                    os.waitpid(pid, 0)
        return not any(os.path.exists(f"/proc/{pid}") for pid in self.pids)


@contextlib.contextmanager
def runtime(host: Host, rootfs: str, name: str, hybrid: bool = False) -> Iterator[Runtime]:
    made = Runtime.__new__(Runtime)
    try:
        made.__init__(host, pathlib.Path(rootfs), name, hybrid)  # type: ignore[misc]
        yield made
    finally:
        if hasattr(made, "pids"):
            made.close()
        subreaper(False)
