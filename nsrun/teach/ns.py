# SPDX-License-Identifier: Apache-2.0
"""Namespaces: who is in them, who owns them, what holds them; what two processes share; and pins of namespaces.

What is said comes from the kernel (facts.py); only the names of pods and members are nsrun's (names.py).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from errno import EACCES, EBUSY, EEXIST, EINVAL, ELOOP, ENOENT, ENOTDIR, EPERM

from nsrun import kernel
from nsrun.errors import BadInput, KernelError, NsrunError, UnknownError
from nsrun.plan import sh_quote
from nsrun.schema import is_number
from nsrun.teach import facts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsrun.teach.facts import Mount, Namespace, Process
    from nsrun.teach.names import Whose

NSFS_MAGIC = 0x6E736673  # linux/magic.h


@dataclass
class Space:
    """A namespace and everything that keeps it alive: namespaces(7), "Namespace lifetime"."""

    kind: str
    inode: int
    parent: int = 0  # as in facts.Namespace
    user: int = 0
    owner: int = -1  # the uid that made the user namespace which owns this one; for a user namespace, its own creator
    initial: bool = False
    processes: list[Process] = field(default_factory=list)
    threads: list[tuple[int, int]] = field(
        default_factory=list
    )  # (pid, tid) of threads that are elsewhere than their process
    awaited: list[int] = field(default_factory=list)  # processes whose next children will be in it
    mounts: list[tuple[int, str]] = field(
        default_factory=list
    )  # (pid, path): a bind mount, in the mount namespace of that process
    descriptors: list[tuple[int, int]] = field(default_factory=list)  # (pid, number)
    children: list[int] = field(default_factory=list)  # namespaces whose parent it is
    owns: list[int] = field(default_factory=list)  # for a user namespace: the other namespaces that it owns

    @property
    def held_by(self) -> str:
        """Return what keeps it alive: processes, or the nearest thing to them, when no process is in it."""
        order = ("processes", "threads", "awaited", "mounts", "descriptors", "children", "owns")
        return next((what for what in order if getattr(self, what)), "initial" if self.initial else "")


@dataclass
class Survey:
    spaces: list[Space]
    hidden: list[Process]  # what the caller may not look into


def survey() -> Survey:
    """Return every namespace that can be found from here, and the processes that the caller may not look into."""
    found: dict[int, Space] = {}
    seen: set[int] = set()  # the inodes of which facts.family told
    hidden, views = [], {}  # type: list[Process], dict[int, int]
    initial = set(facts.initial().items())

    def space(kind: str, inode: int) -> Space:
        if inode not in found:
            found[inode] = Space(kind, inode, initial=(kind, inode) in initial)
        return found[inode]

    def learn(inode: int, path: str, pid: int = 0) -> None:
        """Ask about the namespace of a file; `path` is as the process `pid` sees it, or as we do."""
        if inode not in seen:
            for one in _family(path, pid, seen):
                that = space(one.kind, one.inode)
                that.parent, that.user, that.owner = one.parent, one.user, one.owner

    for process in facts.processes():
        if not process.namespaces and process.state not in "ZX" and facts.process(process.pid):
            hidden.append(process)
        for kind, inode in process.namespaces.items():
            space(kind, inode).processes.append(process)
            learn(inode, f"/proc/{process.pid}/ns/{kind}")
        if process.namespaces.get("mnt"):
            views.setdefault(process.namespaces["mnt"], process.pid)
        if process.status.get("Threads", "1") != "1":
            for tid, theirs in facts.threads(process.pid):
                for kind, inode in theirs.items():
                    if inode != process.namespaces.get(kind):
                        space(kind, inode).threads.append((process.pid, tid))
                        learn(inode, f"/proc/{tid}/ns/{kind}")
        for kind, inode in facts.of_children(process.pid).items():
            space(kind, inode).awaited.append(process.pid)
            learn(inode, f"/proc/{process.pid}/ns/{kind}_for_children")
        for number, kind, inode in facts.descriptors(process.pid) if process.pid != os.getpid() else ():
            space(kind, inode).descriptors.append((process.pid, number))
            learn(inode, f"/proc/{process.pid}/fd/{number}")
    for pid in views.values():
        for mount in facts.mounts(pid, "nsfs"):
            if named := facts.mounted_namespace(mount):
                space(*named).mounts.append((pid, mount.point))
                learn(named[1], mount.point, pid)
    for one in list(found.values()):
        if one.parent in found and one.kind in ("user", "pid"):
            found[one.parent].children.append(one.inode)
        if one.user in found and one.kind != "user":
            found[one.user].owns.append(one.inode)
            one.owner = found[one.user].owner
    order = {kind: number for number, kind in enumerate(facts.KINDS)}
    return Survey(sorted(found.values(), key=lambda one: (order[one.kind], not one.initial, one.inode)), hidden)


def _family(path: str, pid: int, seen: set[int]) -> list[Namespace]:
    """Return facts.family of a file; [] when it has gone, we may not look, or something else is in its place by now."""
    try:
        with kernel.Fd(facts.open_at(pid, path) if pid else os.open(path, os.O_PATH | os.O_CLOEXEC)) as place:
            if (
                kernel.fs_magic(place) != NSFS_MAGIC
            ):  # another mount covers it: opening that might hang, or do something
                return []
            with kernel.Fd(os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC)) as fd:
                return list(facts.family(fd, seen))
    except OSError:
        return []


# ---- one process -----------------------------------------------------------------------------------------------


def looked_into(pid: int) -> Process:
    """Return a process.  Raise UnknownError when it has ended, or BadInput when the caller may not look into it."""
    process = facts.process(pid)
    if process is None:
        raise UnknownError(f"process {pid} has just ended")
    if process.state in "ZX":
        raise BadInput(
            f"process {pid} is a zombie: it has ended and left its namespaces, and its parent {process.ppid} has not waited for it",
            hint=f"show its parent: nsrun ns show {process.ppid}",
        )
    if not process.namespaces:
        raise BadInput(
            f"process {pid} (uid {process.uid}) may not be looked into by uid {os.geteuid()}: ptrace(2), access mode checking",
            hint="sudo nsrun ns …"
            if os.geteuid()
            else "root lacks a capability here that the process has: capsh --print",
            errno=EACCES,
        )
    return process


def lineage(spaces: dict[int, Space], inode: int) -> list[int]:
    """Return the namespaces above one, from its parent up, as far as the caller may see."""
    found: list[int] = []
    while (above := spaces[inode].parent if inode in spaces else 0) and above not in found:
        found.append(above)
        inode = above
    return found


# ---- two processes ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """One thing that two processes share or don't."""

    what: str  # a kind of namespace, or shm, or root
    shared: bool
    a: str
    b: str
    means: str
    see: str


#: Kind → what it means to share the namespace, and not to.  {a} and {b} are what the caller called the processes.
MEANING = {
    "user": (
        "A uid, a gid and a capability mean the same for both.",
        "Their ids and capabilities count in different worlds: root in one need not be root in the other.",
    ),
    "pid": (
        "They see each other's processes, and both number them alike.",
        "Neither sees the processes of the other, and both may have a process 1.",
    ),
    "net": (
        "They have the same interfaces, addresses, routes, firewall and ports: they meet on 127.0.0.1, and one port is there once for both.",
        "Each has interfaces, routes, a firewall, a 127.0.0.1 and all ports of its own.",
    ),
    "ipc": (
        "System V shared memory, semaphores and message queues of one are there for the other.",
        "System V objects and POSIX message queues of one do not exist for the other.",
    ),
    "uts": ("They have one hostname: what one sets, the other has.", "Each has a hostname of its own."),
    "mnt": (
        "What one mounts, the other sees.",
        "Each has its own mounts: what one mounts, the other does not see, unless a shared mount propagates it.",
    ),
    "cgroup": (
        "Paths in /proc/PID/cgroup begin at the same place for both. Which cgroup they are in is another matter.",
        "Each sees another cgroup as the root of all cgroups. Which cgroup they are in is another matter.",
    ),
    "time": (
        "CLOCK_MONOTONIC and CLOCK_BOOTTIME show both the same.",
        "Their CLOCK_MONOTONIC and CLOCK_BOOTTIME may be apart; the time of day is the same.",
    ),
    "shm": (
        "They have the same directory at /dev/shm, so POSIX shared memory (shm_open) of one is there for the other.",
        "Their /dev/shm are different directories, so POSIX shared memory of one is not there for the other, whatever the IPC namespaces are.",
    ),
    "root": (
        "/ is the same directory for both.",
        "/ is another directory for each: the same path leads to different files.",
    ),
}  # fmt: skip
ABOVE = {
    "user": "{b}'s user namespace is below {a}'s: root of {a}'s has all power over {b}'s, and root of {b}'s has none in {a}'s.",
    "pid": "{b}'s PID namespace is below {a}'s: {a} sees {b}, which has a number in each, and {b} does not see {a}.",
}


def differences(a: Process, b: Process, names: tuple[str, str], spaces: dict[int, Space]) -> list[Difference]:
    """Return what two processes share and what not: the kinds of namespace, /dev/shm and the root directory."""
    found = []
    for kind in facts.KINDS:
        ours, theirs = a.namespaces.get(kind, 0), b.namespaces.get(kind, 0)
        if ours or theirs:
            means = _meaning(kind, ours, theirs, names, spaces)
            found.append(
                Difference(kind, ours == theirs, str(ours or "-"), str(theirs or "-"), means, _see(kind, a, b))
            )
    for what, path in (("shm", "/dev/shm"), ("root", "/")):
        left, right = facts.identity_at(a.pid, path), facts.identity_at(b.pid, path)
        same = left is not None and left == right
        means = MEANING[what][not same]
        if missing := [name for name, there in zip(names, (left, right), strict=True) if there is None]:
            means = f"{' and '.join(missing)} {'has' if len(missing) == 1 else 'have'} no {path}."
        found.append(Difference(what, same, device(left), device(right), means, _see(what, a, b)))
    return found


def _meaning(kind: str, ours: int, theirs: int, names: tuple[str, str], spaces: dict[int, Space]) -> str:
    if kind in ABOVE:
        if ours in lineage(spaces, theirs):
            return ABOVE[kind].format(a=names[0], b=names[1])
        if theirs in lineage(spaces, ours):
            return ABOVE[kind].format(a=names[1], b=names[0])
    return MEANING[kind][ours != theirs]


def device(where: tuple[int, int] | None) -> str:
    return f"{os.major(where[0])}:{os.minor(where[0])} {where[1]}" if where else "-"


def _see(what: str, a: Process, b: Process) -> str:
    """Return the command by which a person sees whether it is shared, as far as the caller may run it."""
    proc = f"/proc/{a.pid}/{{0}} /proc/{b.pid}/{{0}}".format
    inside = {"ipc": "ipcs", "uts": "hostname", "net": "ip -brief address"}
    if what in inside and all(_may_enter(process) for process in (a, b)):
        return "; ".join(f"{_nsenter(process, what)} {inside[what]}" for process in (a, b))
    return {
        "user": f"cat {proc('uid_map')}",
        "pid": f"grep NSpid {proc('status')}",
        "net": f"cat {proc('net/dev')}",
        "mnt": f"diff {proc('mountinfo')}",
        "cgroup": f"cat {proc('cgroup')}",
        "time": f"cat {proc('timens_offsets')}",
        "shm": f"stat -c '%d %i %n' {proc('root/dev/shm')}",
        "root": f"stat -c '%d %i %n' {proc('root/')}",
    }.get(what, f"readlink {proc(f'ns/{what}')}")


def _may_enter(process: Process) -> bool:
    """Tell whether nsenter(1) gets the caller into the namespaces of a process: as root, or from a user namespace of theirs."""
    return not os.geteuid() or process.namespaces.get("user") != os.stat("/proc/self/ns/user").st_ino


def _nsenter(process: Process, kind: str) -> str:
    own = f"--user --preserve-credentials --{kind}" if os.geteuid() else f"--{kind}"
    return f"nsenter --target {process.pid} {own}"


# ---- pins ------------------------------------------------------------------------------------------------------

#: nsenter(1)'s option for a file of each kind.
ENTER = {kind: f"--{'mount' if kind == 'mnt' else kind}" for kind in facts.KINDS}
MS_BIND, UMOUNT_NOFOLLOW = 0x1000, 8  # linux/mount.h, mount(2) and umount2(2)


@dataclass(frozen=True)
class Pin:
    kind: str
    inode: int
    path: str
    shared: str  # the peer group of the mount that the path is in, shared:N; "" when it is private
    enter: str  # the command that starts a process in it


def pin(kind: str, pid: int, path: str) -> Pin:
    """Bind-mount a namespace of a process at a path that does not exist yet, so that it outlives its processes.

    The file below the mount says that nsrun made it: unpin removes no other.
    """
    with kernel.Fd(_open_namespace(kind, pid)) as namespace, kernel.Fd(_open_parent(path)) as parent:
        inode, name = os.fstat(namespace).st_ino, os.path.basename(path)
        place = facts.mount_of(parent)
        shared = next((tag for tag in place.propagation if tag.startswith("shared:")), "") if place else ""
        mark = _mark(kind, inode)
        try:
            file = os.open(
                name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o444, dir_fd=parent
            )
        except OSError as error:
            if error.errno == EEXIST:
                raise BadInput(f"{path} exists", hint="a pin covers nothing: give a path that does not exist yet", errno=EEXIST) from None  # fmt: skip
            raise BadInput(f"{path}: {error.strerror}", errno=error.errno or 0) from None
        try:
            with kernel.Fd(file):
                os.write(file, mark)
                # on the file itself: whoever else may write to the directory can't put a link in its place
                _mount(f"/proc/self/fd/{namespace}", f"/proc/self/fd/{file}", MS_BIND)
        except BaseException as error:
            os.unlink(name, dir_fd=parent)
            if isinstance(error, OSError):
                raise _why_not_pinned(error, kind, inode, pid, path, place, shared) from None
            raise
    return Pin(kind, inode, path, shared, f"nsenter {ENTER[kind]}={sh_quote(path)} COMMAND")


def _open_namespace(kind: str, pid: int) -> int:
    process = looked_into(pid)
    try:
        fd = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == ENOENT and facts.process(pid):
            raise BadInput(f"this kernel has no namespaces of kind {kind}", errno=ENOENT) from None
        raise UnknownError(f"process {pid} has just ended") from None
    now = facts.process(pid)
    if now is None or now.start != process.start:  # asked with the descriptor in hand: the pid may be another's by now
        os.close(fd)
        raise UnknownError(f"process {pid} has just ended")
    return fd


def _open_parent(path: str) -> int:
    """Return the directory that a new or an old pin is in.  Raise BadInput for a path that can't be one."""
    directory, name = os.path.split(path)
    if "\0" in path or name in ("", ".", ".."):
        raise BadInput(f"{path!r} does not end in the name of a file", hint="/run/my-net")
    try:
        return os.open(directory or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise BadInput(f"{directory}: {error.strerror}", errno=error.errno or 0) from None


def _mark(kind: str, inode: int) -> bytes:
    return f"nsrun ns pin {kind}:[{inode}]\n".encode()


def _why_not_pinned(
    error: OSError, kind: str, inode: int, pid: int, path: str, place: Mount | None, shared: str
) -> NsrunError:
    errno = error.errno or 0
    if errno == EPERM:
        return BadInput(
            f"{path}: to mount needs CAP_SYS_ADMIN in the user namespace that owns the mount namespace",
            hint="sudo nsrun ns pin …; or in a world of your own: unshare --user --map-root-user --mount",
            errno=errno,
        )
    if errno == EINVAL and kind == "mnt":
        if inode == os.stat("/proc/self/ns/mnt").st_ino:
            return BadInput(f"{path}: a mount namespace can't be mounted in itself", hint="it would keep itself alive forever", errno=errno)  # fmt: skip
        theirs, ours = _ids(pid)
        if shared and not 0 < theirs <= ours:
            point = sh_quote(place.point) if place else "DIR"
            return BadInput(
                f"{path} is in a shared mount ({shared}), which would propagate a mount namespace into others",
                hint=f"make the mount private: mount --make-private {point}; or a directory of its own: mount --bind DIR DIR; mount --make-private DIR",
                errno=errno,
            )
        return BadInput(
            f"{path}: only a mount namespace with a higher id than our own can be mounted here"
            + (f"; its id is {theirs}, ours {ours}" if theirs else ""),
            hint="it keeps mount namespaces from holding each other in a circle: only younger ones are taken. Linux 6.18 counts the ids on each processor, where a younger one may have a lower id: taskset -c 0 when both are made",
            errno=errno,
        )
    return BadInput(f"{path}: mount(2): {error.strerror}", errno=errno)


def _ids(pid: int) -> tuple[int, int]:
    """Return the ids of the mount namespace of a process and of our own; 0 where the kernel does not tell."""
    found = []
    for who in (str(pid), "self"):
        try:
            with kernel.Fd(os.open(f"/proc/{who}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)) as fd:
                found.append(facts.mount_namespace_id(fd))
        except OSError:
            found.append(0)
    return found[0], found[1]


def unpin(path: str) -> str:
    """Remove a pin, and return what it was: `net:[4026532256]`.  Raise BadInput for anything that pin() did not make."""
    with kernel.Fd(_open_parent(path)) as parent:
        name = os.path.basename(path)
        place = f"{os.readlink(f'/proc/self/fd/{parent}').rstrip('/')}/{name}"
        try:
            os.stat(name, dir_fd=parent, follow_symlinks=False)
        except OSError as error:
            raise BadInput(f"{path}: {error.strerror}", errno=error.errno or 0) from None
        here = [mount for mount in facts.mounts(os.getpid()) if mount.point == place]
        named = facts.mounted_namespace(here[-1]) if here else None
        if here and not named:
            raise BadInput(f"a file system of type {here[-1].fstype} is mounted at {path}, not a namespace", hint="nsrun removes only what nsrun ns pin made")  # fmt: skip
        if len(here) > 1:
            raise BadInput(f"{len(here)} mounts lie on each other at {path}", hint=f"remove the upper ones first: umount {sh_quote(path)}")  # fmt: skip
        covered = _covered(parent, name, path)
        with kernel.Fd(covered) as file:
            text = _text_of(file)
            what = text.removeprefix(b"nsrun ns pin ").decode("ascii", "replace").rstrip()
            if (text != _mark(*named)) if named else not _is_mark(text):
                is_what = f"the namespace {named[0]}:[{named[1]}] at {path}" if named else path
                raise BadInput(
                    f"{is_what} was not pinned by nsrun",
                    hint=f"whoever mounted it removes it: umount {sh_quote(path)}" if named else "nsrun removes only what nsrun ns pin made",
                )  # fmt: skip
            if named:
                _unmount(f"/proc/self/fd/{parent}/{name}", path)
            st, own = os.stat(name, dir_fd=parent, follow_symlinks=False), os.fstat(file)
            if (st.st_dev, st.st_ino) == (own.st_dev, own.st_ino):
                os.unlink(name, dir_fd=parent)
        return what


def _covered(parent: int, name: str, path: str) -> int:
    """Return a descriptor of the file that the mount covers: in a copy of the directory's mount, nothing is mounted on it.

    open_tree(2).
    """
    try:
        with kernel.Fd(kernel.open_tree("", dir_fd=parent)) as tree:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=tree)
            return fd
    except KernelError as error:
        if error.errno == EPERM:
            raise BadInput(f"{path}: to unmount needs CAP_SYS_ADMIN, as to pin did", hint="sudo nsrun ns unpin …", errno=EPERM) from None  # fmt: skip
        raise BadInput(
            f"{path}: what is below the mount can't be looked at here, so nobody knows whether nsrun pinned it: {error}",
            hint=f"if you know it: umount {sh_quote(path)}; rm {sh_quote(path)}",
            errno=error.errno or 0,
        ) from None
    except OSError as error:
        if error.errno in (ELOOP, ENOTDIR, EACCES, ENOENT):
            raise BadInput(
                f"{path} was not pinned by nsrun", hint="nsrun removes only what nsrun ns pin made"
            ) from None
        raise


def _text_of(fd: int) -> bytes:
    import stat

    return os.read(fd, 100) if stat.S_ISREG(os.fstat(fd).st_mode) else b""


def _is_mark(text: bytes) -> bool:
    """Tell whether it is what pin() writes: the file is left when somebody else unmounted the pin, or after a reboot."""
    head, _, rest = text.decode("ascii", "replace").partition(" pin ")
    kind, _, number = rest.partition(":[")
    return head == "nsrun ns" and kind in facts.KINDS and is_number(number[:-2]) and number.endswith("]\n")


def _mount(source: str, target: str, flags: int) -> None:
    """mount(2).  Raise OSError."""
    import ctypes

    if ctypes.CDLL(None, use_errno=True).mount(os.fsencode(source), os.fsencode(target), None, flags, None):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _unmount(target: str, path: str) -> None:
    import ctypes

    if ctypes.CDLL(None, use_errno=True).umount2(os.fsencode(target), UMOUNT_NOFOLLOW):
        errno = ctypes.get_errno()
        hint = f"a process has it open: fuser -vm {sh_quote(path)}" if errno == EBUSY else ""
        raise BadInput(f"{path}: umount2(2): {os.strerror(errno)}", hint=hint, errno=errno)


def accounts(owner: int) -> str:
    """Return the name of the account that made a user namespace; "?" when it is not visible from here."""
    if owner < 0:
        return "?"
    from nsrun.host import userns

    return userns.name_of(owner)


def of_pods(space: Space, whose: dict[int, Whose]) -> dict[str, list[str]]:
    """Return, by pod, who of it is in a namespace: pause, members, and the number of processes that nsrun did not start."""
    found: dict[str, list[str]] = {}
    for process in space.processes:
        if one := whose.get(process.pid):
            names = found.setdefault(one.pod, [])
            if one.short not in names:
                names.insert(0, "pause") if not one.member else names.append(one.member)
    return found
