"""cgroups(7), version 2 only: every pod and every member is one, so that each can be killed and limited as a whole.

    BASE/POD-ID/pause        BASE/POD-ID/m-MEMBER        BASE: NSRUN_CGROUP, or "nsrun"

On the hybrid layout (v1 controllers, an empty v2 tree beside them) grouping and cgroup.kill work; a limit
needs its controller on v2, and is an error that names it otherwise.
"""

from __future__ import annotations

import os
import time
from errno import EBUSY, ENODEV, ENOENT

from nsrun.errors import BadInput
from nsrun.schema import is_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nsrun.state import State

MOUNTS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
LIMITS = {"memory": ("memory", "memory.max"), "cpus": ("cpu", "cpu.max"), "pids": ("pids", "pids.max")}


def mount_point() -> str:
    """Where the v2 tree is mounted; "" when it is not."""
    for mount in MOUNTS:
        if os.path.exists(f"{mount}/cgroup.procs") and os.path.exists(f"{mount}/cgroup.controllers"):
            return mount
    return ""


def base() -> str:
    return os.environ.get("NSRUN_CGROUP", "nsrun").strip("/")


def pod_path(name: str, ident: str, uid: int = 0) -> str:
    """The cgroup directory of a pod; "" on a machine without cgroup v2, or for a user to whom no cgroup was delegated."""
    mount = mount_point()
    within = _delegated(mount) if uid and mount else mount
    return f"{within}/{base()}/{name}-{ident}" if within else ""


def _delegated(mount: str) -> str:
    """The topmost cgroup above this process that its user may write to (systemd gives users one, with Delegate=yes)."""
    with open("/proc/self/cgroup") as file:
        own = next((line[3:].strip() for line in file if line.startswith("0::")), "/")
    path, found = f"{mount}{own}".rstrip("/"), ""
    while len(path) > len(mount):
        if os.access(path, os.W_OK) and os.access(f"{path}/cgroup.procs", os.W_OK):
            found = path
        path = os.path.dirname(path)
    return found


def _controllers(path: str) -> list[str]:
    try:
        with open(f"{path}/cgroup.controllers") as file:
            return file.read().split()
    except OSError:
        return []


def make(path: str, limits: dict[str, str]) -> int:
    """Makes the cgroup with its limits and gives a descriptor of the directory; -1 without cgroup v2."""
    if not path:
        if limits and mount_point():
            raise BadInput(
                "limits need a cgroup of your own, and none was delegated to you",
                hint="systemd-run --user --scope -p Delegate=yes nsrun …; or let root make the pod: sudo nsrun pod create",
            )
        if limits:
            raise BadInput(
                "limits need cgroup v2, which is not mounted",
                hint="mount -t cgroup2 none /sys/fs/cgroup, or see nsrun doctor",
            )
        return -1
    mount = mount_point()
    parent = path[: path.rindex("/")]
    wanted = sorted({LIMITS[key][0] for key in limits})
    for controller in wanted:
        if controller not in _controllers(mount):
            raise BadInput(
                f"the limit needs the cgroup v2 controller {controller!r}, which this machine does not offer",
                hint=f"{mount}/cgroup.controllers lists those it has; boot with systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all",
            )
    for _ in range(20):  # a sweeper may remove an empty parent under our feet
        try:
            os.makedirs(path, 0o755, exist_ok=True)
            if wanted:
                step = mount
                for part in parent[len(mount) + 1 :].split("/"):
                    _enable(step, wanted)
                    step += f"/{part}"
                _enable(step, wanted)
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            break
        except FileNotFoundError:
            continue
    else:
        raise BadInput(f"can't make the cgroup {path}")
    try:
        for key, value in limits.items():
            _write(f"{path}/{LIMITS[key][1]}", value)
            if key == "memory":
                try:
                    _write(f"{path}/memory.swap.max", "0")
                except FileNotFoundError:
                    pass  # a kernel without swap accounting has nothing to limit
    except BaseException:
        os.close(fd)
        remove(path)
        raise
    return fd


def _enable(path: str, controllers: list[str]) -> None:
    """Offers controllers to the cgroups below `path`, those that are not offered yet."""
    with open(f"{path}/cgroup.subtree_control") as file:
        there = file.read().split()
    if missing := [f"+{c}" for c in controllers if c not in there]:
        _write(f"{path}/cgroup.subtree_control", " ".join(missing))


MAX_BELOW = 1000  # cgroups that an owner may make in her pod's: what root has to walk when it is removed
MAX_DEPTH = 32  # and how deep they may be nested


def offer(path: str) -> None:
    """Has the kernel count what each member of a pod uses: the controllers of this machine go down to its cgroup."""
    mount = mount_point()
    offered = [c for c in ("cpu", "memory", "pids") if path and c in _controllers(mount)]
    step = mount
    for part in [*path[len(mount) + 1 :].split("/"), ""] if offered else []:
        for controller in offered:
            try:
                _enable(step, [controller])
            except OSError:
                continue  # a limit that needs it will say so
        step += f"/{part}"


def delegate(path: str, uid: int, gid: int) -> None:
    """Gives a pod's cgroup to its owner: she makes cgroups for members, and limits those; the pod's own files stay root's."""
    if path:
        _write(f"{path}/cgroup.max.descendants", str(MAX_BELOW))
        _write(f"{path}/cgroup.max.depth", str(MAX_DEPTH))
        for file in ("", "/cgroup.procs", "/cgroup.threads", "/cgroup.subtree_control"):
            os.chown(f"{path}{file}", uid, gid)


def _write(path: str, value: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def kill(path: str) -> bool:
    """cgroup.kill (Linux 5.14): SIGKILL to all in it, at once.  False when there is no such cgroup (any more)."""
    try:
        _write(f"{path}/cgroup.kill", "1")
        return True
    except OSError as error:
        if error.errno in (ENOENT, ENODEV):  # ENODEV: removed between open and write
            return False
        raise


def pids(path: str) -> list[int]:
    """List the processes in a cgroup and below it."""
    from nsrun.host.trees import walk

    found: list[int] = []
    try:
        for directory, name, _ in walk(path):
            if name == "cgroup.procs":
                try:
                    with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)) as file:
                        found += [int(line) for line in file]
                except OSError:
                    continue
    except OSError:
        pass  # it went while it was read
    return found


def _number(path: str) -> int | None:
    """A file with one number; None: no such file (its controller is not there), or "max", no limit."""
    try:
        with open(path) as file:
            word = file.read().split()[0]
    except (OSError, IndexError):
        return None
    return int(word) if is_number(word) else None


def usage(path: str) -> dict[str, Any]:
    """What a cgroup and those below it use, and its own limits; cgroup-v2.rst.  None: the kernel does not tell."""
    found: dict[str, Any] = dict.fromkeys(
        ("cpu_seconds", "cpu_limit", "memory", "memory_peak", "memory_limit", "pids", "pids_limit", "oom_kills")
    )
    if not path or not os.path.isdir(path):
        return found
    try:
        with open(f"{path}/cpu.stat") as file:
            lines = dict(line.split() for line in file)
        found["cpu_seconds"] = int(lines["usage_usec"]) / 1e6
        with open(f"{path}/cpu.max") as file:
            quota, period = file.read().split()
        found["cpu_limit"] = int(quota) / int(period) if quota != "max" else None
    except (OSError, KeyError, ValueError):
        pass  # the controller is not offered here
    for key, name in (("memory", "current"), ("memory_peak", "peak"), ("memory_limit", "max")):
        found[key] = _number(f"{path}/memory.{name}")
    found["pids"], found["pids_limit"] = _number(f"{path}/pids.current"), _number(f"{path}/pids.max")
    if found["pids"] is None:
        found["pids"] = len(pids(path))
    try:
        with open(f"{path}/memory.events") as file:
            found["oom_kills"] = next(int(line.split()[1]) for line in file if line.startswith("oom_kill "))
    except (OSError, StopIteration):
        pass  # no memory controller here
    return found


def missing() -> list[str]:
    """The controllers that limits and stats need and cgroup v2 does not offer here."""
    mount = mount_point()
    return [c for c in ("cpu", "memory", "pids") if not mount or c not in _controllers(mount)]


def members(path: str) -> list[str]:
    """The names of the members (m-NAME) that have a cgroup in a pod's."""
    from nsrun.state import NAME_CHARS

    try:
        entries = os.listdir(path)
    except OSError:
        return []
    return sorted(e[2:] for e in entries if e.startswith("m-") and len(e) < 66 and NAME_CHARS.issuperset(e))


def remove(path: str, kill: bool = False) -> None:
    """Removes a cgroup and those below it; waits a little for what is dying in it.  An empty path is none."""
    if not path or not os.path.isdir(path):
        return
    if kill:
        globals()["kill"](path)
    from nsrun.host.trees import walk

    for _ in range(3):  # it may change while it is read
        try:
            if not all(_rmdir_when_empty(name, fd) for fd, name, is_directory in walk(path) if is_directory):
                return
            if _rmdir_when_empty(path):
                return
        except OSError:
            continue


def _rmdir_when_empty(path: str, directory: int | None = None) -> bool:
    """Remove one cgroup, at most 0.2 s after the last in it died; False when something lives in it: not ours to end."""
    for _ in range(100):
        try:
            os.rmdir(path, dir_fd=directory)
            return True
        except OSError as error:
            if error.errno == ENOENT:
                return True
            if error.errno != EBUSY:
                return False
            time.sleep(0.002)
    return False


def remove_empty(state: State) -> None:
    """The base directory, once no pod is in it."""
    mount = mount_point()
    if mount and base():
        _rmdir(f"{mount}/{base()}")


def remove_member(path: str) -> None:
    """A member's cgroup; with an orphan, the last of its dead pod, the pod's directory too."""
    remove(path, kill=True)
    if path:
        _rmdir(os.path.dirname(path))


def _rmdir(path: str) -> None:
    try:
        os.rmdir(path)
    except OSError:
        return  # not there, or somebody is in it
