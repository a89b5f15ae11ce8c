# SPDX-License-Identifier: Apache-2.0
"""cgroups(7), version 2 only: every pod and every member has one, so that each can be killed and limited as a whole.

    BASE/POD-ID/pause        BASE/POD-ID/m-MEMBER        BASE: NSRUN_CGROUP, or "nsrun"

On the hybrid layout (v1 controllers, and an empty v2 tree beside them) grouping and cgroup.kill work; a limit needs its
controller on v2, and otherwise is an error that names the controller.

A path is only a name: another mount, another cgroup namespace or no cgroup file system at all may be under it.  So
everything that is made, killed or removed here is reached by descriptors which fstatfs(2) proves to be of cgroup2, and
a cgroup is told from another of its name by its inode number, which the kernel gives to no other cgroup until the next
boot.
"""

from __future__ import annotations

import os
import time
from errno import EBUSY, ENODEV, ENOENT, ENOTDIR

from nsrun import kernel
from nsrun.errors import BadInput
from nsrun.schema import NAME_CHARS, is_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, NoReturn


MOUNTS = ("/sys/fs/cgroup/unified", "/sys/fs/cgroup")
LIMITS = {"memory": ("memory", "memory.max"), "cpus": ("cpu", "cpu.max"), "pids": ("pids", "pids.max"), "cpuset": ("cpuset", "cpuset.cpus")}  # fmt: skip
MAX_BELOW = 1000  # cgroups that an owner may make in their pod's; root has to walk them when it removes the pod's
MAX_DEPTH = 32  # levels that an owner may nest them
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ANOTHER = (
    "this is another cgroup namespace or mount than the one the pod was made in, and the pod's limits do not hold outside"
    " its cgroup: run nsrun where cgroup v2 shows the directory (compare /proc/self/cgroup and /proc/self/mountinfo)"
)


# ---- where -------------------------------------------------------------------------------------------------


def mount_point() -> str:
    """Return where the v2 tree is mounted, as fstatfs(2) proves; "" when it is not mounted."""
    for mount in MOUNTS:
        try:
            os.close(_open(mount))
            return mount
        except OSError:
            continue
    return ""


def _open(path: str, within: int | None = None) -> int:
    """Return a descriptor of a directory of cgroup2.  Raise OSError, with ENODEV when it is of another file system."""
    fd = os.open(path, _DIRECTORY, dir_fd=within)
    try:
        if kernel.fs_magic(fd) != kernel.CGROUP2_MAGIC:
            raise OSError(ENODEV, "not a directory of cgroup2", path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _split(path: str) -> tuple[str, list[str]]:
    """Split a path of ours into the mount that it is below and the names from there on.

    Raise OSError ENODEV when it is below none.
    """
    for mount in MOUNTS:
        if path.startswith(f"{mount}/"):
            parts = path[len(mount) + 1 :].split("/")
            if not {"", ".", ".."} & set(parts):
                return mount, parts
    raise OSError(ENODEV, "below no mount of cgroup2", path)


def _walk(path: str) -> int:
    """Open the directory name by name from the mount on.

    Raise OSError: ENOENT, or ENODEV when cgroup2 is not there.
    """
    mount, parts = _split(path)
    here = _open(mount)
    for part in parts:
        try:
            there = _open(part, here)
        finally:
            os.close(here)
        here = there
    return here


def _find(path: str, ident: int = 0) -> int:
    """Return the same, or -1 when it is not there or has another inode number than `ident` (0: any)."""
    if not path:
        return -1
    try:
        fd = _walk(path)
    except OSError as error:
        if error.errno in (ENOENT, ENODEV, ENOTDIR):
            return -1
        raise
    if ident and os.fstat(fd).st_ino != ident:
        os.close(fd)
        return -1
    return fd


def open_pod(path: str, ident: int = 0) -> int:
    """Return a descriptor of a pod's or member's cgroup; `ident` is its inode number, from the note (0: unknown).

    Raise BadInput when it is not visible here, or another cgroup has its name.
    """
    fd = _find(path, ident)
    if fd < 0:
        raise BadInput(f"the cgroup {path} is not visible here", hint=_ANOTHER)
    return fd


def locate(path: str, ident: int, pid: int) -> str:
    """Return where a cgroup is visible: at `path`, or where its process `pid` shows it; `path` when it is nowhere.

    If it is not at its path, it was made in another cgroup namespace, or below another mount.
    """
    fd = _find(path, ident)
    if fd >= 0 or not path or not ident:
        if fd >= 0:
            os.close(fd)
        return path
    mount, there = mount_point(), of_process(pid)
    while mount and len(there) > len(mount):
        fd = _find(there, ident)
        if fd >= 0:
            os.close(fd)
            return there
        there = os.path.dirname(there)
    return path


def check_reach(path: str, ident: int = 0) -> None:
    """Raise BadInput when what lives in this cgroup can't be ended from here.

    Then it is not visible, or mounted read-only.
    """
    if path:
        with kernel.Fd(open_pod(path, ident)) as fd:
            if os.fstatvfs(fd).f_flag & os.ST_RDONLY:
                raise BadInput(f"the cgroup {path} is mounted read-only here", hint="run nsrun where it is writable")


def base() -> str:
    """Return the directory of all pods, NSRUN_CGROUP.

    It is "" when that is empty or "none": then pods and members have no cgroups.
    """
    word = os.environ.get("NSRUN_CGROUP", "nsrun")
    if word in ("", "none"):
        return ""
    if {"", ".", ".."} & set(word.split("/")):
        raise BadInput(
            f"NSRUN_CGROUP={word!r} is not a path below the cgroup tree",
            hint="give a name, or names with / between them; or none, to do without cgroups",
        )
    return word


def chosen_none() -> bool:
    """Return whether the user asked for no cgroups."""
    return not base()


def _home(uid: int) -> tuple[str, str]:
    """Return (the directory below which pods of this user can have cgroups, ""), or ("", why there is none)."""
    if not base():
        return "", "NSRUN_CGROUP says so"
    mount = mount_point()
    if not mount:
        return "", "cgroup v2 is not mounted"
    if os.statvfs(mount).f_flag & os.ST_RDONLY:
        return "", f"{mount} is mounted read-only"
    if not uid and os.access(mount, os.W_OK):
        return mount, ""
    found = _delegated(mount)
    return found, "" if found else (
        "none was delegated to you" if uid else "no part of the cgroup tree belongs to this root"
    )


_HOW = {
    "NSRUN_CGROUP says so": "unset it",
    "cgroup v2 is not mounted": "mount -t cgroup2 none /sys/fs/cgroup",
    "none was delegated to you": "systemd-run --user --scope -p Delegate=yes nsrun …; or let root make the pod: sudo nsrun pod create",
}  # fmt: skip


def why_none(uid: int) -> tuple[str, str]:
    """Return (why a pod that this user makes now has no cgroup, what to do); ("", "") when it has one."""
    reason = _home(uid)[1]
    return reason, _HOW.get(
        reason, "make the cgroup tree writable: give the container one of its own; or mount -o remount,rw"
    ) if reason else ""


def pod_path(name: str, ident: str, uid: int = 0) -> str:
    """Return the cgroup directory of a pod; "" where none can be made (why_none tells why)."""
    within = _home(uid)[0]
    return f"{within}/{base()}/{name}-{ident}" if within else ""


def _delegated(mount: str) -> str:
    """Return the topmost cgroup above this process that its user may write to.

    systemd gives users one with Delegate=yes.
    """
    with open("/proc/self/cgroup", errors="surrogateescape", newline="\n") as file:
        own = next((line[3:].rstrip("\n") for line in file if line.startswith("0::")), "/")
    path, found = f"{mount}{own}".rstrip("/"), ""
    if ".." in path.split("/"):
        return ""  # it is outside this cgroup namespace
    while len(path) > len(mount):
        if os.access(path, os.W_OK) and os.access(f"{path}/cgroup.procs", os.W_OK):
            found = path
        path = os.path.dirname(path)
    return found


# ---- files of one cgroup -------------------------------------------------------------------------------------


def _read(directory: int, name: str) -> str:
    """Return the text of a file; "" when there is none, or it can't be read (its controller is not there)."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        with open(fd, errors="surrogateescape", newline="\n") as file:
            return file.read()
    except OSError:
        return ""


def _write(directory: int, name: str, value: str) -> None:
    with kernel.Fd(os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)) as fd:
        os.write(fd, value.encode())


def _controllers(mount: str) -> list[str]:
    with kernel.Fd(_open(mount)) as fd:
        return _read(fd, "cgroup.controllers").split()


def missing() -> list[str]:
    """Return the controllers that limits and stats need and that cgroup v2 does not offer here."""
    mount = mount_point()
    return [c for c in ("cpu", "memory", "pids") if not mount or c not in _controllers(mount)]


def _enable(directory: int, controllers: list[str]) -> None:
    """Offer controllers to the cgroups below, except those that are offered already."""
    there = _read(directory, "cgroup.subtree_control").split()
    if missing := [f"+{c}" for c in controllers if c not in there]:
        _write(directory, "cgroup.subtree_control", " ".join(missing))


# ---- making --------------------------------------------------------------------------------------------------


def make(path: str, limits: dict[str, str], pod: int | None = None) -> int:
    """Make the cgroup with its limits and return a descriptor of the directory; -1 when `path` is "" (no cgroups here).

    `pod` is the inode number of the directory above, which must exist and be that one (0: unknown), because a process
    in another would be outside the pod's limits.  With None, missing directories above are made, too.  Raise BadInput
    when the limits can't be had or the pod's cgroup is not visible, and OSError when the kernel refuses.
    """
    if not path:
        if limits:
            _refuse_limits(pod is not None)
        return -1
    mount, parts = _split(path)
    wanted = sorted({LIMITS[key][0] for key in limits})
    for controller in wanted:
        if controller not in _controllers(mount):
            raise BadInput(
                f"the limit needs the cgroup v2 controller {controller!r}, which this machine does not offer",
                hint=f"{mount}/cgroup.controllers lists those it has; boot with systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all",
            )
    for _ in range(20):  # a sweep may remove an empty parent meanwhile
        try:
            fd = _make(path, wanted, pod)
            break
        except FileNotFoundError:
            continue
    else:
        raise BadInput(f"can't make the cgroup {path}")
    try:
        for key, value in limits.items():
            _write(fd, LIMITS[key][1], value)
            if key == "memory":
                try:
                    _write(fd, "memory.swap.max", "0")
                except FileNotFoundError:
                    pass  # this kernel has no swap accounting
    except BaseException:
        ident = os.fstat(fd).st_ino
        os.close(fd)
        remove(path, ident)
        raise
    return fd


def _refuse_limits(joining: bool) -> None:
    inside = joining and not chosen_none() and kernel.in_userns()  # of the pod, maybe: its root's cgroups are no reason
    reason, fix = ("", "") if inside else why_none(os.geteuid())
    raise BadInput(
        f"limits need a cgroup, and there is none: {reason}"
        if reason
        else "limits need a cgroup, and the pod was made without one",
        hint=fix or "make the pod again: nsrun doctor tells whether it gets one now, and how",
    )


def _make(path: str, wanted: list[str], pod: int | None) -> int:
    """Make the directory, with those controllers; return its descriptor."""
    mount, parts = _split(path)
    if pod is None:
        here, left = _open(mount), parts
    else:
        here, left = open_pod(path[: path.rindex("/")], pod), parts[-1:]
        if wanted:
            _offer(mount, parts[:-1], wanted)
    for part in left:
        try:
            if wanted:
                _enable(here, wanted)
            try:
                # remove what is left of an earlier member first: its inode number must not become this member's
                if pod is not None and not _rmdir(part, here, 1):
                    _refuse_taken(path, os.stat(part, dir_fd=here).st_uid)
                os.mkdir(part, 0o755, dir_fd=here)
                os.chmod(part, 0o755, dir_fd=here)  # whatever the umask is
            except FileExistsError:
                pass
            there = _open(part, here)
        finally:
            os.close(here)
        here = there
    owner = os.fstat(here).st_uid
    if owner != os.geteuid():  # the pod's owner made it meanwhile, and could change its limits
        os.close(here)
        _refuse_taken(path, owner)
    return here


def _refuse_taken(path: str, owner: int) -> NoReturn:
    """Raise BadInput for a member's cgroup that exists already and can't be removed."""
    if owner != os.geteuid():
        raise BadInput(
            f"the cgroup {path} exists already, and belongs to uid {owner}",
            hint=f"cat {path}/cgroup.procs; once it is empty, or with another --name, the member starts",
        )
    raise BadInput(
        f"a process of an earlier member lives in the cgroup {path}",
        hint="nsrun rm -f with its name; or nsrun pod prune --all",
    )


def _offer(mount: str, parts: list[str], wanted: list[str]) -> None:
    """Make every cgroup on the way offer these controllers to those below."""
    here = _open(mount)
    try:
        for part in parts:
            _enable(here, wanted)
            there = _open(part, here)
            os.close(here)
            here = there
        _enable(here, wanted)
    finally:
        os.close(here)


def offer(path: str, seen: dict[str, str | None]) -> list[str]:
    """Make the kernel count what each member of a pod uses: offer this machine's controllers down to its cgroup.

    Return which those are; `seen` gets the text that tells it.
    """
    if not path:
        return []
    mount, parts = _split(path)
    with kernel.Fd(_open(mount)) as fd:
        text = seen[f"{mount}/cgroup.controllers"] = _read(fd, "cgroup.controllers")
    found = [controller for controller in text.split() if controller in ("cpu", "memory", "pids")]
    for controller in found:
        try:
            _offer(mount, parts, [controller])
        except OSError:
            continue  # a limit that needs it will say so
    return found


def below_mount(path: str) -> tuple[str, list[str], tuple[str, ...]] | None:
    """Return (the mount that the cgroup of a pod is below, the names from there on, mounts that would have come first).

    None: it has none, or it is below one that was delegated.
    """
    if not base() or not path:
        return None
    mount, parts = _split(path)
    others = MOUNTS[: MOUNTS.index(mount)]
    return (mount, parts, others) if path.startswith(f"{mount}/{base()}/") else None


def delegate(path: str, uid: int, gid: int) -> None:
    """Give a pod's cgroup to its owner, who makes and limits cgroups for members in it.

    The limits of the pod itself stay root's.
    """
    if path:
        with kernel.Fd(open_pod(path)) as fd:
            _write(fd, "cgroup.max.descendants", str(MAX_BELOW))
            _write(fd, "cgroup.max.depth", str(MAX_DEPTH))
            for file in (".", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"):
                os.chown(file, uid, gid, dir_fd=fd)


# ---- what there is -------------------------------------------------------------------------------------------


def _below(top: int) -> Iterator[tuple[int, str]]:
    """Yield all cgroups below `top` as (descriptor of the parent, name), deepest first.

    That takes one descriptor, however deep they are: a cgroup of v2 can't be moved, so `..` leads back to where we came
    from.
    """
    here, left = os.dup(top), [_children(top)]
    try:
        while left:
            if not left[-1]:
                left.pop()
                if left:
                    above = os.open("..", _DIRECTORY, dir_fd=here)
                    os.close(here)
                    here = above
                    yield here, left[-1].pop()
                continue
            try:
                there = _open(left[-1][-1], here)
            except OSError:
                left[-1].pop()  # it is gone, or we may not open it
                continue
            os.close(here)
            here = there
            left.append(_children(here))
    finally:
        os.close(here)


def _children(directory: int) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []  # it has just been removed


def _processes(directory: int) -> list[int]:
    return [int(pid) for pid in _read(directory, "cgroup.procs").split()]


def pids(path: str, ident: int = 0) -> list[int]:
    """Return the processes in a cgroup and below it; none when it is not there.  For `ident` see open_pod."""
    top = _find(path, ident)
    if top < 0:
        return []
    try:
        found = _processes(top)
        for above, name in _below(top):
            try:
                fd = _open(name, above)
            except OSError:
                continue  # it has just gone
            try:
                found += _processes(fd)
            finally:
                os.close(fd)
        return found
    finally:
        os.close(top)


def count(path: str, ident: int = 0) -> int:
    """Return the number of processes in a cgroup and below it; -1 when it is not there, or not visible."""
    top = _find(path, ident)
    if top < 0:
        return -1
    os.close(top)
    return len(pids(path, ident))


def of_process(pid: int) -> str:
    """Return the directory of the cgroup that a process is in; "" when that is not visible."""
    mount = mount_point()
    try:
        with open(f"/proc/{pid}/cgroup", errors="surrogateescape", newline="\n") as file:
            own = next((line[3:].rstrip("\n") for line in file if line.startswith("0::")), "")
    except OSError:
        return ""
    return f"{mount}{own}" if mount and own and ".." not in own.split("/") else ""


def members(path: str, ident: int = 0) -> list[str]:
    """Return the names of the members that have a cgroup (m-NAME) in a pod's."""
    top = _find(path, ident)
    if top < 0:
        return []
    try:
        return sorted(e[2:] for e in _children(top) if e.startswith("m-") and len(e) < 66 and NAME_CHARS.issuperset(e))
    finally:
        os.close(top)


def _number(directory: int, name: str) -> int | None:
    """Return the number in a file; None when there is no such file (no controller), or it says "max", no limit."""
    word = _read(directory, name).strip()
    return int(word) if is_number(word) else None


def usage(path: str, ident: int = 0) -> dict[str, Any]:
    """Return what a cgroup and those below it use, and its own limits; None where the kernel does not tell.

    See cgroup-v2.rst.  CPU is in seconds and processors, memory in bytes.  For `ident` see open_pod.
    """
    found: dict[str, Any] = dict.fromkeys(
        ("cpu_seconds", "cpu_limit", "memory", "memory_peak", "memory_limit", "pids", "pids_limit", "oom_kills")
    )
    top = _find(path, ident)
    if top < 0:
        return found
    try:
        try:
            lines = dict(line.split() for line in _read(top, "cpu.stat").split("\n") if line)
            found["cpu_seconds"] = int(lines["usage_usec"]) / 1e6
            quota, period = _read(top, "cpu.max").split()
            found["cpu_limit"] = int(quota) / int(period) if quota != "max" else None
        except (KeyError, ValueError):
            pass  # the controller is not offered here
        for key, name in (("memory", "current"), ("memory_peak", "peak"), ("memory_limit", "max")):
            found[key] = _number(top, f"memory.{name}")
        found["pids"], found["pids_limit"] = _number(top, "pids.current"), _number(top, "pids.max")
        for line in _read(top, "memory.events").split("\n"):
            if line.startswith("oom_kill "):
                found["oom_kills"] = int(line.split()[1])
    finally:
        os.close(top)
    if found["pids"] is None:
        found["pids"] = len(pids(path, ident))
    return found


# ---- freezing ------------------------------------------------------------------------------------------------


def freeze(path: str, ident: int, wanted: bool) -> bool:
    """Freeze or thaw what is in a cgroup and below it, by cgroup.freeze; do not wait for it.

    Return False when there is no such cgroup any more.  The hybrid layout has the file, too: it is no controller's.  For
    `ident` see open_pod.
    """
    fd = _find(path, ident)
    if fd < 0:
        return False
    try:
        _write(fd, "cgroup.freeze", "1" if wanted else "0")
        return True
    except OSError as error:
        if error.errno in (ENOENT, ENODEV):  # it was removed meanwhile
            return False
        raise
    finally:
        os.close(fd)


def is_frozen(path: str, ident: int = 0) -> bool:
    """Return whether a cgroup is to be frozen, itself and not only one above it.  For `ident` see open_pod."""
    fd = _find(path, ident)
    if fd < 0:
        return False
    try:
        return _read(fd, "cgroup.freeze").strip() == "1"
    finally:
        os.close(fd)


def wait_frozen(path: str, ident: int, wanted: bool, seconds: float) -> bool:
    """Wait until all of a cgroup's processes are frozen, or run again; return False when that takes longer than `seconds`.

    A process in an uninterruptible sleep delays it.  The kernel tells of each change of cgroup.events: POLLPRI.
    """
    from select import POLLPRI, poll

    directory, end = _find(path, ident), time.monotonic() + seconds
    if directory < 0:
        return True
    try:
        with kernel.Fd(os.open("cgroup.events", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)) as fd:
            poller = poll()
            poller.register(fd, POLLPRI)
            while f"frozen {int(wanted)}\n".encode() not in os.pread(fd, 4096, 0):
                left = end - time.monotonic()
                if left <= 0:
                    return False
                poller.poll(min(left, 1) * 1000)
            return True
    except OSError as error:
        if error.errno in (ENOENT, ENODEV):
            return True  # it was removed meanwhile
        raise
    finally:
        os.close(directory)


# ---- ending --------------------------------------------------------------------------------------------------


def kill(path: str, ident: int = 0) -> bool:
    """Send SIGKILL to all processes in it at once, by cgroup.kill (Linux 5.14).

    Return False when there is no such cgroup any more, or another has its name.  For `ident` see open_pod.
    """
    fd = _find(path, ident)
    return fd >= 0 and _kill(fd)


def _kill(fd: int) -> bool:
    """Kill what is in the cgroup, and close the descriptor."""
    try:
        _write(fd, "cgroup.kill", "1")
        return True
    except OSError as error:
        if error.errno in (ENOENT, ENODEV):  # it was removed meanwhile, or the kernel is older than 5.14
            return False
        raise
    finally:
        os.close(fd)


def remove(path: str, ident: int = 0, kill: bool = False) -> None:
    """Remove a cgroup and those below it; wait a little for what is dying in it.  Do nothing for an empty path.

    It is no error when it does not exist.  A cgroup of the same name with another inode number is not ours, and stays.
    """
    top = _find(path, ident)
    if top < 0:
        return
    try:
        if kill:
            _kill(os.dup(top))
        # What was killed dies, as fast as the machine can: a fork bomb that may use half a processor takes a while.  Once something
        # lives on in one of them, which is not ours to end, one try each: we still remove the others.
        tries = 2500 if kill else 100
        for above, name in _below(top):
            if not _rmdir(name, above, tries):
                tries = 1
        with kernel.Fd(os.open("..", _DIRECTORY, dir_fd=top)) as above:
            _rmdir(os.path.basename(path), above, tries)
    finally:
        os.close(top)


def _rmdir(name: str, above: int, tries: int) -> bool:
    """Remove a cgroup, with 2 ms between tries; return False when something lives in it."""
    for left in range(tries - 1, -1, -1):
        try:
            os.rmdir(name, dir_fd=above)
            return True
        except OSError as error:
            if error.errno == ENOENT:
                return True
            if error.errno != EBUSY:
                return False
            if left:
                time.sleep(0.002)
    return False


def remove_empty(uid: int) -> None:
    """Remove the base directory if no pod is in it."""
    within = _home(uid)[0]
    path = f"{within}/{base()}"
    while within and path != within:  # and then the directories above it, if nothing else is in them
        _remove_if_empty(path)
        path = os.path.dirname(path)


def remove_member(path: str, ident: int = 0) -> None:
    """Remove a member's cgroup, and the pod's directory if this was the last member of a dead pod."""
    remove(path, ident, kill=True)
    if path:
        _remove_if_empty(os.path.dirname(path))


def _remove_if_empty(path: str) -> None:
    try:
        mount, parts = _split(path)
        above = _walk(os.path.dirname(path)) if len(parts) > 1 else _open(mount)
    except OSError:
        return  # it does not exist
    try:
        os.rmdir(parts[-1], dir_fd=above)
    except OSError:
        pass  # it does not exist, or a process is in it
    finally:
        os.close(above)
