# SPDX-License-Identifier: Apache-2.0
"""The cgroups of containers: one in every hierarchy that this machine has, v1, v2 or both (hybrid).

Unlike pods, which have a place of their own on v2 (nsrun.host.cgroup), a container has the path that its engine gives it.
A container is one directory of that path in each hierarchy; what was made is written down before it is made, so that
`delete` finds it whatever happened.
"""

from __future__ import annotations

import os
import time
from errno import EACCES, EBUSY, EINVAL, ENODEV, ENOENT, EOPNOTSUPP, EPERM, EROFS, ESRCH

from nsrun import kernel
from nsrun.errors import BadInput, KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from nsrun.oci.resources import Setting

_CGROUP_MAGIC = 0x27E0EB
_V2 = "0"  # the key of the v2 hierarchy, as in cgroups(7), /proc/PID/cgroup
_ABSENT = (ENOENT, ENODEV)  # ENODEV: it was removed while it was open
MOST_CGROUPS = 100_000  # below one container
#: What a container may make of its own on v2.  v1 has no such limits.
_LIMITS = (("cgroup.max.depth", "100"), ("cgroup.max.descendants", "10000"))
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Hierarchy:
    """One mounted hierarchy: its controllers (of v1, with the name if it has one; of v2 none), mount point and root."""

    __slots__ = ("controllers", "mount", "root", "unified")

    def __init__(self, controllers: tuple[str, ...], mount: str, root: str, unified: bool) -> None:
        self.controllers, self.mount, self.root, self.unified = controllers, mount, root, unified

    @property
    def key(self) -> str:
        return _V2 if self.unified else ",".join(self.controllers)


#: Options of a v1 hierarchy that name no controller.
_PLAIN = {
    "rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "none", "nsdelegate", "memory_recursiveprot",
    "memory_localevents", "favordynmods", "seclabel",
}  # fmt: skip


def parse_mounts(text: str) -> list[Hierarchy]:
    """Return the hierarchies in a text of /proc/self/mountinfo, each once.  Pure."""
    found: dict[str, Hierarchy] = {}
    for line in text.split("\n"):
        if " - cgroup" not in line:
            continue
        before, _, after = line.partition(" - ")
        fields, (kind, *_, options) = before.split(" "), after.split(" ")
        root, mount = fields[3], fields[4]
        if kind == "cgroup2":
            one = Hierarchy((), mount, root, True)
        else:
            words = [w for w in options.split(",") if w not in _PLAIN and not w.startswith("release_agent")]
            one = Hierarchy(tuple(sorted(words)), mount, root, False)
        found.setdefault(one.key, one)
    return list(found.values())


def _is_visible(one: Hierarchy) -> bool:
    """Return whether a mount is what its mount point leads to: something else may be mounted over it."""
    try:
        with kernel.Fd(os.open(one.mount, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
            return kernel.fs_magic(fd) == (kernel.CGROUP2_MAGIC if one.unified else _CGROUP_MAGIC)
    except OSError:
        return False


class Machine:
    """The hierarchies that are mounted here, and where we are in each."""

    def __init__(self) -> None:
        with open("/proc/self/mountinfo", errors="surrogateescape", newline="\n") as file:
            self.hierarchies = [one for one in parse_mounts(file.read()) if _is_visible(one)]
        self.unified = bool(self.hierarchies) and all(one.unified for one in self.hierarchies)
        with open("/proc/self/cgroup", errors="surrogateescape", newline="\n") as file:
            self._own = parse_own(file.read())

    def own(self, hierarchy: Hierarchy) -> str:
        """Return the cgroup that we are in, as a path below the mount point."""
        path = self._own.get(hierarchy.key, "/")
        root = hierarchy.root.rstrip("/")
        return path[len(root) :] if root and (path + "/").startswith(f"{root}/") else path

    def paths(self, cgroups_path: str, ident: str) -> dict[str, str]:
        """Return the directory of a container in each hierarchy, by its key.  Raise BadInput for a path that leads out."""
        if ".." in cgroups_path.split("/"):
            raise BadInput(f"linux.cgroupsPath: {cgroups_path!r} has a component '..'")
        if ":" in cgroups_path and not cgroups_path.startswith("/"):
            raise BadInput(
                f"linux.cgroupsPath: {cgroups_path!r} is a path for systemd, and --systemd-cgroup was not given"
            )
        found = {}
        for one in self.hierarchies:
            below = cgroups_path if cgroups_path.startswith("/") else f"{self.own(one)}/{cgroups_path or ident}"
            parts = [part for part in below.split("/") if part not in ("", ".")]
            if ".." in parts:  # we are outside of the root of this mount
                raise BadInput("our own cgroup is not visible here: linux.cgroupsPath has to be an absolute path")
            if not parts:
                raise BadInput("linux.cgroupsPath: / is the root of all cgroups")
            found[one.key] = "/".join([one.mount, *parts])
        return found


def parse_own(text: str) -> dict[str, str]:
    """Return the cgroup of a process in each hierarchy, of a text of /proc/PID/cgroup.  Pure."""
    found = {}
    for line in text.split("\n"):
        if line.count(":") >= 2:
            number, controllers, path = line.split(":", 2)
            found[_V2 if number == "0" and not controllers else ",".join(sorted(controllers.split(",")))] = path
    return found


def v2_of(paths: dict[str, str]) -> str:
    return paths.get(_V2, "")


def path_with(paths: dict[str, str], controller: str) -> str:
    """Return the directory whose hierarchy has a controller of v1; "" when none has."""
    return next((path for key, path in paths.items() if controller in key.split(",")), "")


# ---- making ------------------------------------------------------------------------------------------------------


def make(machine: Machine, paths: dict[str, str], may_lack: bool) -> dict[str, str]:
    """Make the directories, and return those that there are.

    `may_lack`: nothing was asked of them, so one that we may not make is left out.  Raise OSError.
    """
    found = {}
    for one in (one for one in machine.hierarchies if one.key in paths):
        path = paths[one.key]
        try:
            _make_one(one, path)
        except OSError as error:
            if may_lack and error.errno in (EACCES, EPERM, EROFS):
                continue
            raise
        found[one.key] = path
        if one.unified:
            _limit(path)
    return found


def _limit(path: str) -> None:
    """Limit how many cgroups a container may make in its own on v2, unless whoever gave us that one keeps its limits."""
    for file, value in _LIMITS:
        try:
            _write(f"{path}/{file}", value)
        except OSError as error:
            if error.errno not in (EACCES, EPERM, EROFS, ENOENT):
                raise


def _make_one(one: Hierarchy, path: str) -> None:
    """Make a directory and those above it, whoever else makes or removes them at the same time."""
    parts = path[len(one.mount) + 1 :].split("/")
    for _ in range(20):
        try:
            here = one.mount
            for number, part in enumerate(parts):
                if one.unified:
                    _offer(here)
                here = f"{here}/{part}"
                try:
                    os.mkdir(here, 0o755)
                    if number < len(parts) - 1 or "cpuset" in one.controllers:
                        os.chmod(here, 0o755)
                except FileExistsError:
                    pass
                if "cpuset" in one.controllers:
                    _inherit_cpuset(here)
            return
        except FileNotFoundError:
            continue
    raise OSError(ENOENT, "it is removed again and again", path)


def _inherit_cpuset(path: str) -> None:
    """Give a new cgroup of v1 the processors and memory of the one above, without which no process may be in it."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        if not _read(f"{path}/{name}").strip():
            _write(f"{path}/{name}", _read(f"{os.path.dirname(path)}/{name}").strip())


def _offer(path: str) -> None:
    """Offer all controllers of a v2 cgroup to those below it, as far as that is possible."""
    there = set(_read(f"{path}/cgroup.subtree_control").split())
    missing = [name for name in _read(f"{path}/cgroup.controllers").split() if name not in there]
    if not missing:
        return
    try:
        _write(f"{path}/cgroup.subtree_control", " ".join(f"+{name}" for name in missing))
    except OSError:
        for name in missing:
            try:
                _write(f"{path}/cgroup.subtree_control", f"+{name}")
            except OSError:
                continue  # processes are in it, or it is not ours: a limit that needs it will say so


_GROWING = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]


def apply(paths: dict[str, str], settings: Sequence[Setting], unified: bool) -> None:
    """Write the settings of a container.  Raise BadInput that names the field whose controller is not there, or refuses."""
    left, late = list(settings), False
    while left:
        setting = left.pop(0)
        directory = v2_of(paths) if unified else path_with(paths, setting.controller)
        field = f"linux.resources.{setting.field}"
        if not directory:
            raise BadInput(f"{field}: the cgroup controller {setting.controller!r} is not there")
        try:
            _write(f"{directory}/{setting.file}", setting.text)
        except OSError as error:
            if error.errno in (EINVAL, EBUSY) and not late and [setting.file, *(s.file for s in left[:1])] == _GROWING:
                left[:1], late = [left[0], setting], True  # both grow: that of both has to grow first
                continue
            if error.errno == EBUSY and setting.file == "memory.limit_in_bytes":
                raise BadInput(f"{field}: {setting.text} is less than is in use", errno=EBUSY) from None
            what = (
                f"the cgroup controller {setting.controller!r} is not there"
                if error.errno == ENOENT and unified
                else ""
            )
            raise BadInput(f"{field}: {what or os.strerror(error.errno or 0)} ({setting.file} = {setting.text})", errno=error.errno or 0) from None  # fmt: skip


def handle(key: str) -> str:
    """Return the handle of a cgroup of v1 by which a process enters it."""
    return f"cgroup:{key}"


def entered(paths: Mapping[str, str]) -> dict[str, str]:
    """Return the cgroups that a process has to enter, since nobody can be born in one of v1: their paths by their handles."""
    return {handle(key): path for key, path in paths.items() if key != _V2}


def join(paths: dict[str, str], pid: int, born: bool) -> None:
    """Move a process into them; `born`: it was born in that of v2."""
    for key, path in paths.items():
        if key != _V2 or not born:
            _write(f"{path}/cgroup.procs", str(pid))


# ---- what is in them ----------------------------------------------------------------------------------------------


def _read(path: str) -> str:
    """Return the text of a file; "" when there is none, or it can't be read."""
    try:
        with open(path, errors="surrogateescape", newline="\n") as file:
            return file.read()
    except OSError:
        return ""


read = _read


def _read_at(directory: int, name: str) -> str | None:
    """Return the text of a file of a cgroup; None when that has gone.  Raise OSError for anything else."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        with open(fd, errors="surrogateescape", newline="\n") as file:
            return file.read()
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise


def _write(path: str, text: str) -> None:
    with kernel.Fd(os.open(path, os.O_WRONLY | os.O_CLOEXEC)) as fd:
        os.write(fd, text.encode())


def _inner(fd: int) -> list[str]:
    """Return the names of the cgroups in a cgroup, without order."""
    try:
        with os.scandir(fd) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError as error:
        if error.errno in _ABSENT:
            return []
        raise


def _below(top: str) -> Iterator[tuple[int, str, int]]:
    """Yield a cgroup and all below it, deepest first: a descriptor of what it is in, its name there, and one of itself.

    The container may have made as many as it likes, one in the other, so no path is built and nothing recurses; two
    descriptors are open at a time.  Raise BadInput when there are more than anybody needs, or OSError.
    """
    above, _, name = top.rpartition("/")
    try:
        here = os.open(above, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _ABSENT:
            return
        raise
    left, way, count = [name], list[tuple[str, list[str]]](), 0
    try:
        while left or way:
            if left:
                name = left.pop()
                try:
                    inner = os.open(name, _DIRECTORY, dir_fd=here)
                except OSError as error:
                    if error.errno in _ABSENT:
                        continue
                    raise
                os.close(here)
                here = inner
                way.append((name, left))
                left = _inner(here)
                count += 1
                if count + len(left) > MOST_CGROUPS:
                    raise BadInput(f"{top}: there are more than {MOST_CGROUPS} cgroups in it")
            else:
                name, left = way.pop()
                outer = os.open("..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=here)
                try:
                    yield outer, name, here
                finally:
                    os.close(here)
                    here = outer
    finally:
        os.close(here)


def _processes(cgroup: int) -> set[int]:
    """Return the processes in one cgroup; 0 stands for those of a PID namespace that is not ours or below ours."""
    try:
        return {int(pid) for pid in (_read_at(cgroup, "cgroup.procs") or "").split()}
    except OSError as error:
        if error.errno != EOPNOTSUPP:
            raise
    # a threaded cgroup of v2
    threads = {int(tid) for tid in (_read_at(cgroup, "cgroup.threads") or "").split()}
    found = threads & {0}
    for tid in threads - {0}:
        lines = [line.split() for line in _read(f"/proc/{tid}/status").split("\n") if line.startswith("Tgid:")]
        found.update(int(words[1]) for words in lines)
    return found


def members(paths: dict[str, str]) -> set[int]:
    """Return the processes of a container, those in cgroups of its own below included; 0 for one that we can't see."""
    found: set[int] = set()
    for path in _some(paths):
        for _, _, cgroup in _below(path):
            found |= _processes(cgroup)
        if found:
            break
    return found


def pids(paths: dict[str, str]) -> list[int]:
    """Return the processes of a container that we see."""
    return sorted(members(paths) - {0})


def _some(paths: dict[str, str]) -> list[str]:
    """Return the directories in the order in which they are likely to say everything."""
    first = [v2_of(paths), *(path_with(paths, name) for name in ("freezer", "pids", "devices", "name=systemd"))]
    return [path for path in dict.fromkeys([*first, *paths.values()]) if path]


def signal_all(paths: dict[str, str], sig: int) -> None:
    """Send a signal to all processes of a container, each by a pidfd: who reuses its pid meanwhile is not meant."""
    listed = pids(paths)
    for start in range(0, len(listed), 64):
        held: dict[int, int] = {}
        try:
            for pid in listed[start : start + 64]:
                if (fd := kernel.pidfd_of(pid)) >= 0:
                    held[pid] = fd
            for pid in members(paths) & set(held):  # asked with the pidfds in hand
                try:
                    kernel.pidfd_send_signal(held[pid], sig)
                except KernelError as error:
                    if error.errno != ESRCH:
                        raise
        finally:
            for fd in held.values():
                os.close(fd)


def _is_unpopulated(v2: str) -> bool:
    """Return whether the kernel says that no process is in a cgroup of v2, nor below it, or it is not there at all."""
    try:
        with open(f"{v2}/cgroup.events", errors="surrogateescape", newline="\n") as file:
            return "populated 0" in file.read().split("\n")
    except OSError as error:
        return error.errno in _ABSENT


def is_empty(paths: dict[str, str]) -> bool:
    """Return whether no process is in a container's cgroups."""
    v2 = v2_of(paths)
    return (not v2 or _is_unpopulated(v2)) and not members({key: path for key, path in paths.items() if key != _V2})


def end(paths: dict[str, str], seconds: float = 10) -> bool:
    """Kill all processes of a container, and wait until none is left; return whether that is so."""
    deadline = time.monotonic() + seconds
    v2 = v2_of(paths)
    pause = 0.0005
    while not is_empty(paths):
        if time.monotonic() > deadline:
            return False
        done = False
        if v2:
            try:
                _write(f"{v2}/cgroup.kill", "1")  # Linux 5.14
                done = len(paths) == 1
            except OSError:
                pass  # an older one, or a threaded cgroup
        if not done:
            freezer = path_with(paths, "freezer")
            _set_freezer(freezer, "FROZEN")  # so that nothing is forked between the list and the signals
            signal_all(paths, 9)
            _set_freezer(freezer, "THAWED")  # what is frozen on v1 does not die
        time.sleep(pause)
        pause = min(pause * 2, 0.02)
    return True


def _set_freezer(directory: str, state: str) -> None:
    """Freeze or thaw what is in a cgroup of v1, if there is one and it can be done."""
    try:
        if directory:
            _write(f"{directory}/freezer.state", state)
    except OSError:
        pass


def thaw(paths: dict[str, str]) -> None:
    """Thaw what a cgroup of v1 freezes: only then a process dies of SIGKILL."""
    _set_freezer(path_with(paths, "freezer"), "THAWED")


def remove(paths: dict[str, str]) -> list[str]:
    """Remove the directories of a container and those below; return those that can't be removed."""
    left = []
    for path in paths.values():
        for outer, name, _ in _below(path):
            if not _remove_one(outer, name):
                left.append(path if name == path.rpartition("/")[2] else f"{path}/…/{name}")
    return left


def _remove_one(outer: int, name: str) -> bool:
    for tries in range(50):
        try:
            os.rmdir(name, dir_fd=outer)
        except OSError as error:
            if error.errno in _ABSENT:
                return True
            if error.errno != EBUSY:
                return False
            time.sleep(0.002 if tries < 10 else 0.02)
            continue
        return True
    return False


# ---- the freezer --------------------------------------------------------------------------------------------------


def _freezer(paths: dict[str, str]) -> str:
    """Return the directory whose freezer freezes a container; "" when there is none."""
    return path_with(paths, "freezer") or v2_of(paths)


def is_frozen(paths: dict[str, str]) -> bool:
    if path := path_with(paths, "freezer"):
        return _read(f"{path}/freezer.state").strip() in ("FROZEN", "FREEZING")
    if not (path := v2_of(paths)):
        return False
    return _read(f"{path}/cgroup.freeze").strip() == "1" or "frozen 1" in _read(f"{path}/cgroup.events")


def freeze(paths: dict[str, str], on: bool) -> None:
    """Freeze a container's processes, or let them go on.  Raise BadInput when there is no freezer, or it takes 5 s."""
    v1 = path_with(paths, "freezer")
    directory = v1 or v2_of(paths)
    if not directory:
        raise BadInput("the container has no cgroup with a freezer")
    deadline = time.monotonic() + 5
    while True:
        if v1:
            _write(f"{v1}/freezer.state", "FROZEN" if on else "THAWED")
            if _read(f"{v1}/freezer.state").strip() == ("FROZEN" if on else "THAWED"):
                return
        else:
            _write(f"{directory}/cgroup.freeze", "1" if on else "0")
            if f"frozen {int(on)}" in _read(f"{directory}/cgroup.events"):
                return
        if time.monotonic() > deadline:
            if on:
                freeze(paths, False)
            raise BadInput("the container's processes can't be frozen: one of them does not answer the kernel")
        time.sleep(0.001)


def check_empty(paths: dict[str, str]) -> None:
    """Raise BadInput when a process is in a cgroup that is to be a new container's, or below it: `delete` would end it."""
    for key, path in paths.items():
        if members({key: path}):
            raise BadInput(f"linux.cgroupsPath: processes are in {path} already")


def open_tasks(path: str) -> int:
    """Return a descriptor by which a process of one thread enters a cgroup of v1."""
    return os.open(f"{path}/tasks", os.O_WRONLY | os.O_CLOEXEC)


def open_v2(paths: dict[str, str]) -> int:
    """Return a descriptor of the v2 directory, or -1 when there is none."""
    path = v2_of(paths)
    if not path:
        return -1
    fd = os.open(path, _DIRECTORY)
    if kernel.fs_magic(fd) != kernel.CGROUP2_MAGIC:
        os.close(fd)
        raise OSError(ENODEV, "not a directory of cgroup2", path)
    return fd
