# SPDX-License-Identifier: Apache-2.0
"""The steps that only containers of nsrun-oci have; the others are those of pods (nsrun/plan)."""

from __future__ import annotations

import os
from errno import EACCES, EINVAL, ELOOP, ENODEV, ENOENT, ENOSPC, ENOTDIR, EPERM
from stat import S_IFMT, S_ISFIFO

from nsrun import kernel
from nsrun.errors import BadInput, KernelError, NsrunError
from nsrun.oci import cgroups, state
from nsrun.plan import COMMIT, HOST, InitStep, Part, Step
from nsrun.plan.process import PTMX, Launch, open_ptmx, sealed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Protocol

    from nsrun.oci.resources import Setting
    from nsrun.oci.run import ContainerRun
    from nsrun.oci.systemd import Scope
    from nsrun.plan import Compiling, Context, Replayed

    class Making(Compiling, Protocol):
        """What a step may use of the compiler of a container's plan, or of one of `create`: nsrun.oci.leave, nsrun.oci.anew."""

        @property
        def path(self) -> str: ...  # the container's directory
        def inode_of(self, cgroup: str) -> int: ...
        def config(self, document: Mapping[str, Any]) -> str: ...
        def written(self, with_cgroups: bool, with_process: bool) -> str: ...
        def cgroups(self, paths: Mapping[str, str]) -> list[Replayed]: ...


def _own(run: Context) -> ContainerRun:
    """Only ContainerRun runs these."""
    return run  # type: ignore[return-value]


def _making(compiler: Compiling) -> Making:
    """Only nsrun-oci compiles these."""
    return compiler  # type: ignore[return-value]


# ---- 1 Open -------------------------------------------------------------------------------------------------------


class ClaimContainer(Step):
    why = "The directory of its name is the claim: of two creates one makes it. What has to be removed is written down before it is made."
    man = "mkdir(2), flock(2)"
    root: str
    ident: str
    note: Mapping[str, Any]
    config: Mapping[str, Any]

    def made(self) -> list[str | Part]:
        write = [Part([f'open("{name}.tmp")', f'rename("{name}.tmp", "{name}")']) for name in ("config", "state")]
        return [f'mkdir("{self.root}/{self.ident}", 0700)', "flock(LOCK_EX)", *write]

    def brief(self) -> str:
        return f'mkdir("{self.root}/{self.ident}", 0700)'

    def replayed(self, compiler: Compiling) -> list[Replayed]:
        own = _making(compiler)
        state = own.written(with_cgroups=False, with_process=False)
        return [("make_container",), ("note", f"{own.path}/config", own.config(self.config)), ("note", f"{own.path}/state", state)]  # fmt: skip

    def do(self, run: Context) -> None:
        own = _own(run)
        own.container = state.claim(self.root, self.ident)
        own.container.write("config", dict(self.config))
        own.container.write("state", dict(self.note))

    def undo(self, run: Context) -> None:
        own = _own(run)
        if own.container and not own.is_left:
            own.container.remove()


class MakeFifos(Step):
    why = "The first process waits for `start` at a FIFO, and tells through another how its exec went; a filter that is in force then has to allow no more than read and write."
    man = "mkfifo(3), fifo(7)"

    def made(self) -> list[str | Part]:
        return [f'{call}("{name}")' for name in ("start", "told") for call in ("mkfifo", "open")]

    def makes(self) -> tuple[str, ...]:
        return ("start:fd", "told:fd")

    def replayed(self, compiler: Compiling) -> list[Replayed]:
        return [("fifo", name, compiler.make(f"{name}:fd")) for name in ("start", "told")]

    def do(self, run: Context) -> None:
        container = _own(run).container
        assert container
        for name in ("start", "told"):
            path = f"{container.path}/{name}"
            os.mkfifo(path, 0o600)
            run.hold(f"{name}:fd", os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW))


class OpenTree(Step):
    """A mount, or mounts, of the host as a descriptor: the root, a bind mount, a device."""

    many = "{} trees are opened"
    why = "What lies on the host is opened by its path there; the container gets only the descriptor."
    man = "open_tree(2), mount_setattr(2)"
    source: str
    handle: str
    recursive: bool = False
    set: int = 0
    clear: int = 0
    below: tuple[int, int] = (0, 0)  # set and cleared on all mounts
    propagation: int = kernel.MS_PRIVATE
    maps: tuple[tuple[tuple[int, int, int], ...], ...] = ()  # of uids and gids: an idmapped mount
    maps_below: bool = False
    hints = {EINVAL: "its file system can't be shown with other ids, or the mount is unbindable"}

    def made(self) -> list[str | Part]:
        flags = "OPEN_TREE_CLONE" + ("|AT_RECURSIVE" if self.recursive else "")
        found: list[str | Part] = [f'{self.handle} = open_tree(AT_FDCWD, "{self.source}", {flags})']
        if self.maps:
            found += ["unshare(CLONE_NEWUSER)   /* in a child, for its maps */", f"mount_setattr({self.handle}, MOUNT_ATTR_IDMAP)"]  # fmt: skip
        changes = kernel.flag_names(self.set, kernel.MOUNT_ATTRS)
        return [*found, f'mount_setattr({self.handle}, "", AT_EMPTY_PATH, {self.propagation:#x}, {changes})']

    def brief(self) -> str:
        return f'open_tree(AT_FDCWD, "{self.source}", OPEN_TREE_CLONE)'

    def thing(self) -> str:
        return self.source

    def makes(self) -> tuple[str, ...]:
        return (self.handle,)

    def check(self) -> str:
        return "cat /proc/PID/mountinfo"

    def replayed(self, compiler: Compiling) -> list[Replayed] | None:
        if self.maps or type(self) is OpenDevice:
            return None
        propagation = self.propagation & ~0x4000
        deep = self.recursive and (self.propagation != propagation or self.propagation == kernel.MS_PRIVATE)
        attrs = (self.set, self.clear, *self.below)
        return [("open_tree", self.source, int(self.recursive), propagation, int(deep), *attrs, compiler.make(self.handle))]  # fmt: skip

    def do(self, run: Context) -> None:
        fd = run.hold(self.handle, kernel.open_tree(self.source, self.recursive))
        if self.maps:
            with kernel.Fd(new_userns({"uid": self.maps[0], "gid": self.maps[1]})) as user:
                kernel.mount_setattr(fd, propagation=kernel.MS_PRIVATE, userns=user, recursive=self.maps_below)
        propagation = self.propagation & ~0x4000  # MS_REC is of mount(2)
        if self.propagation != propagation or not self.recursive or self.propagation == kernel.MS_PRIVATE:
            kernel.mount_setattr(fd, propagation=propagation, recursive=self.recursive)
        else:
            kernel.mount_setattr(fd, propagation=propagation)
        if self.set or self.clear:
            kernel.mount_setattr(fd, self.set, self.clear)
        if any(self.below):
            kernel.mount_setattr(fd, *self.below, recursive=True)


class OpenDevice(OpenTree):
    """A node of the host's /dev, where we may make none."""

    wanted: tuple[int, int, int] = (0, 0, 0)  # the mode, of which the kind counts, major and minor

    def made(self) -> list[str | Part]:
        return [*super().made(), f"fstat({self.handle})   /* {self.wanted[1]}:{self.wanted[2]} */"]

    def do(self, run: Context) -> None:
        super().do(run)
        st, (mode, major, minor) = os.fstat(run.fd(self.handle)), self.wanted
        if S_IFMT(st.st_mode) != S_IFMT(mode) or st.st_rdev != os.makedev(major, minor):
            raise BadInput(f"linux.devices: {self.source} of the host is another device than {major}:{minor}")


class OpenCgroupTree(OpenTree):
    """The directory of a container in a hierarchy, which MakeCgroups has made."""

    phase = HOST
    otherwise: str = ""  # where we may make none, the container stays in our own

    def do(self, run: Context) -> None:
        if os.path.isdir(self.source):
            super().do(run)
            return
        fd = run.hold(self.handle, kernel.open_tree(self.otherwise))
        kernel.mount_setattr(fd, self.set, propagation=kernel.MS_PRIVATE)


class SeedTmpfs(Step):
    """A tmpfs with what the root has at its place: the option tmpcopyup."""

    why = "A tmpfs that begins with what it covers is filled on the host, before anything runs inside; no link of the root is followed."
    man = "tmpfs(5), fsopen(2)"
    target: str
    options: tuple[str, ...]
    attrs: int
    handle: str
    hints = {ENOSPC: "the tmpfs is too small for what it covers", ENODEV: "this kernel has no tmpfs"}

    def made(self) -> list[str | Part]:
        sets = [f'fsconfig(fs, "{option}")' for option in self.options]
        found: list[str | Part] = ['fs = fsopen("tmpfs", FSOPEN_CLOEXEC)', *sets, f"{self.handle} = fsmount(fs)"]
        return [*found, Part([f"# cp -a rootfs:fd{self.target}/. {self.handle}"], when="something is there")]

    def brief(self) -> str:
        return f"a tmpfs for {self.target}"

    def thing(self) -> str:
        return self.target

    def needs(self) -> tuple[str, ...]:
        return ("rootfs:fd",)

    def makes(self) -> tuple[str, ...]:
        return (self.handle,)

    def do(self, run: Context) -> None:
        options = [(key, value) for key, _, value in (option.partition("=") for option in self.options)]
        fd = run.hold(self.handle, kernel.mount_new("tmpfs", options, 0))
        root = run.fd("rootfs:fd")
        try:
            source = kernel.open_in_root(root, self.target, os.O_RDONLY | os.O_DIRECTORY)
        except KernelError as error:
            if error.errno != ENOENT:
                raise
        else:
            with kernel.Fd(source):
                self._fill(root, source, f"/proc/{os.getpid()}/fd/{fd}")
        kernel.mount_setattr(fd, set=self.attrs)

    def _fill(self, root: int, source: int, target: str) -> None:
        with os.scandir(source) as entries:
            empty = next(entries, None) is None
        if not empty:
            from nsrun.host.copy import copy_tree

            kernel.mount_setattr(root, set=kernel.MOUNT_ATTR_NOSYMFOLLOW)
            try:
                copy_tree(source, target)
            finally:
                kernel.mount_setattr(root, clear=kernel.MOUNT_ATTR_NOSYMFOLLOW)
        st = os.fstat(source)
        os.chown(target, st.st_uid, st.st_gid)
        if not any(option.startswith("mode=") for option in self.options):
            os.chmod(target, st.st_mode & 0o7777)


class OpenNamespace(Step):
    why = "A namespace of somebody else's is joined by a descriptor, of which the kernel says what kind it is."
    man = "namespaces(7), ioctl_ns(2)"
    kind: str
    path: str
    handle: str
    hints = {ENOENT: "the process that held it has ended?"}

    def made(self) -> list[str | Part]:
        return [f'{self.handle} = open("{self.path}", O_RDONLY)', f"ioctl({self.handle}, NS_GET_NSTYPE)"]

    def brief(self) -> str:
        return f'open("{self.path}", O_RDONLY)'

    def thing(self) -> str:
        return self.path

    def makes(self) -> tuple[str, ...]:
        return (self.handle,)

    def replayed(self, compiler: Compiling) -> list[Replayed]:
        return [("namespace", self.path, NAMESPACE_FLAGS[self.kind], compiler.make(self.handle))]

    def do(self, run: Context) -> None:
        from fcntl import ioctl

        fd = run.hold(self.handle, os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
        try:
            kind = ioctl(fd, 0xB703)
        except OSError:
            kind = 0
        if kind != NAMESPACE_FLAGS[self.kind]:
            raise BadInput(f"linux.namespaces: {self.path} is no {self.kind} namespace")


#: The flags of clone(2), by the names of the specification.
NAMESPACE_FLAGS = {
    "mount": kernel.CLONE_NEWNS, "pid": kernel.CLONE_NEWPID, "network": kernel.CLONE_NEWNET, "ipc": kernel.CLONE_NEWIPC,
    "uts": kernel.CLONE_NEWUTS, "user": kernel.CLONE_NEWUSER, "cgroup": kernel.CLONE_NEWCGROUP, "time": kernel.CLONE_NEWTIME,
}  # fmt: skip


class OpenContainer(Step):
    why = "A pidfd stands for one process for good; the start time tells that it is the container's."
    man = "pidfd_open(2), proc_pid_stat(5)"
    pid: int
    start: int
    handle: str = "member:ns"

    def made(self) -> list[str | Part]:
        return [f"{self.handle} = pidfd_open({self.pid}, 0)", f'open("/proc/{self.pid}/stat")']

    def makes(self) -> tuple[str, ...]:
        return (self.handle,)

    def replayed(self, compiler: Compiling) -> list[Replayed]:
        return [("process", self.pid, self.start, compiler.make(self.handle))]

    def do(self, run: Context) -> None:
        run.hold(self.handle, kernel.pidfd_open(self.pid))
        if kernel.process_start(self.pid) != self.start:
            raise BadInput("the container has just stopped")
        run.values[f"{self.handle}:pid"] = self.pid


class LoadContainerFilter(Step):
    why = "The filter is compiled on the host, once for each profile; nsrun-init gets the bytes."
    man = "seccomp(2)"
    profile: Mapping[str, Any]
    caps: int
    kept: str  # the directory of compiled filters

    def made(self) -> list[str | Part]:
        return [*sealed("seccomp:fd", "seccomp")]

    def brief(self) -> str:
        return "linux.seccomp"

    def makes(self) -> tuple[str, ...]:
        return ("seccomp:fd",)

    def replayed(self, compiler: Compiling) -> list[Replayed]:
        return [("memory", "seccomp", compiler.content("seccomp:fd"), compiler.make("seccomp:fd"))]

    def do(self, run: Context) -> None:
        from nsrun.oci import filters

        run.hold("seccomp:fd", kernel.sealed_memfd("seccomp", filters.compiled(self.kept, self.profile, self.caps)))


class OpenContainerTerminal(Step):
    why = "The terminal is of the container's own devpts; its master goes to whoever asked for it."
    man = "pty(7), ioctl_tty(2) TIOCGPTPEER"
    options: tuple[str, ...]
    attrs: int
    uid: int  # of the host
    size: tuple[int, int] = (0, 0)

    def made(self) -> list[str | Part]:
        sets = [f'fsconfig(fs, "{option}")' for option in self.options]
        found: list[str | Part] = ['fs = fsopen("devpts", FSOPEN_CLOEXEC)', *sets, "fsconfig(fs, FSCONFIG_CMD_CREATE)"]
        found += [
            "devpts:fd = fsmount(fs)",
            *PTMX,
            "ioctl(tty:master, TIOCSPTLCK, 0)",
        ]
        return [*found, "tty:slave = ioctl(tty:master, TIOCGPTPEER)", f"fchown(tty:slave, {self.uid}, -1)"]

    def brief(self) -> str:
        return "open a terminal in a new devpts"

    def makes(self) -> tuple[str, ...]:
        return ("devpts:fd", "tty:master", "tty:slave")

    def do(self, run: Context) -> None:
        options = [(key, value) for key, _, value in (option.partition("=") for option in self.options)]
        devpts = run.hold("devpts:fd", kernel.mount_new("devpts", options, self.attrs))
        open_terminal(run, devpts, self.uid, self.size)


class OpenTerminalInside(Step):
    why = "One more terminal of the devpts that the container has."
    man = "pty(7), ioctl_tty(2) TIOCGPTPEER"
    uid: int
    size: tuple[int, int] = (0, 0)

    def made(self) -> list[str | Part]:
        return [
            'devpts:fd = openat2(the root of the container, "/dev/pts", O_PATH|O_DIRECTORY, RESOLVE_IN_ROOT)',
            *PTMX,
            "ioctl(tty:master, TIOCSPTLCK, 0)",
            "tty:slave = ioctl(tty:master, TIOCGPTPEER)",
        ]

    def needs(self) -> tuple[str, ...]:
        return ("member:ns",)

    def makes(self) -> tuple[str, ...]:
        return ("devpts:fd", "tty:master", "tty:slave")

    def do(self, run: Context) -> None:
        pid = run.values["member:ns:pid"]
        with kernel.Fd(os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as root:
            devpts = run.hold("devpts:fd", kernel.open_in_root(root, "/dev/pts", os.O_PATH | os.O_DIRECTORY))
        if kernel.fs_magic(devpts) != kernel.DEVPTS_MAGIC:
            raise KernelError(ENODEV, "the container's /dev/pts is no devpts")
        open_terminal(run, devpts, self.uid, self.size)


def open_terminal(run: Context, devpts: int, uid: int, size: tuple[int, int]) -> None:
    """Open a terminal of a devpts, and make it the standard streams of what is started."""
    from fcntl import ioctl
    from struct import pack

    master = run.hold("tty:master", open_ptmx(devpts))
    ioctl(master, 0x40045431, b"\0\0\0\0")  # TIOCSPTLCK
    if any(size):
        ioctl(master, 0x5414, pack("=4H", *size, 0, 0))  # TIOCSWINSZ
    slave = run.hold("tty:slave", ioctl(master, 0x5441, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    try:
        os.fchown(slave, uid, -1)
    except OSError as error:
        if error.errno not in (EINVAL, EPERM):  # the user namespace has no such id
            raise
    run.values["tty:name"] = f"/dev/pts/{os.readlink(f'/proc/self/fd/{slave}').rpartition('/')[2]}"
    run.stdio = ("tty:slave", "tty:slave", "tty:slave")


class GiveStdio(Step):
    why = "The user of the container may open /dev/stdout again, whosever the pipe is."
    man = "fchown(2)"
    uid: int  # of the host

    def made(self) -> list[str | Part]:
        return [Part([f"fchown(FD, {self.uid}, -1)"], each="FD of 0, 1 and 2 that is a pipe or a terminal")]

    def replayed(self, compiler: Compiling) -> list[Replayed]:
        return [("give_stdio", self.uid)]

    def do(self, run: Context) -> None:
        for fd in (0, 1, 2):
            try:
                st = os.fstat(fd)
                if st.st_uid != self.uid and (S_ISFIFO(st.st_mode) or os.isatty(fd)):  # a file stays whose it is
                    os.fchown(fd, self.uid, -1)
            except OSError:
                continue  # it is closed, or on a file system that has other ids


# ---- 2 Host -------------------------------------------------------------------------------------------------------


def _tasks(paths: Mapping[str, str]) -> list[str | Part]:
    return [f'{handle} = open("{path}/tasks", O_WRONLY)' for handle, path in cgroups.entered(paths).items()]


def _hold(run: Context, paths: dict[str, str]) -> None:
    """Open the cgroup that a process is born in, and those that it enters."""
    fd = cgroups.open_v2(paths)
    if fd >= 0:
        run.hold("cgroup:dir", fd)
    for handle, path in cgroups.entered(paths).items():
        run.hold(handle, cgroups.open_tasks(path))


class MakeCgroups(Step):
    phase = HOST
    why = "The container is one directory in each hierarchy, with its limits, before a process is in it."
    man = "cgroups(7)"
    paths: Mapping[str, str]
    settings: tuple[Setting, ...]
    unified: bool
    may_lack: bool
    devices: bytes = b""  # a program for the device cgroup of v2
    hints = {EACCES: "needs root, or a path below a cgroup that was delegated", ENOSPC: "cpuset.cpus of the cgroup above is empty"}  # fmt: skip

    def made(self) -> list[str | Part]:
        return [*self.making(), *_tasks(self.paths)]

    def making(self) -> list[str | Part]:
        found: list[str | Part] = [f'mkdir("{path}", 0755)' for path in self.paths.values()]
        if found:
            note: list[str | Part] = ['open("state.tmp")', 'rename("state.tmp", "state")']
            found = note + found
        found = found or ["# there are no cgroups here"]
        found += [f'write("{one.file}", "{one.text}")' for one in self.settings]
        return found + (["bpf(BPF_PROG_LOAD)", "bpf(BPF_PROG_ATTACH, BPF_CGROUP_DEVICE)"] if self.devices else [])

    def brief(self) -> str:
        return "mkdir of the container's cgroups"

    def makes(self) -> tuple[str, ...]:
        return ("cgroup:dir?", *(f"{handle}?" for handle in cgroups.entered(self.paths)))

    def replayed(self, compiler: Compiling) -> list[Replayed] | None:
        if type(self) is not MakeCgroups:
            return None
        paths = dict(self.paths)
        found = _making(compiler).cgroups(paths)
        for one in self.settings:
            directory = cgroups.v2_of(paths) if self.unified else cgroups.path_with(paths, one.controller)
            found.append(("write", f"{directory}/{one.file}", one.text))
        return [*found, ("device_filter", compiler.fd("cgroup:dir"), self.devices)] if self.devices else found

    def do(self, run: Context) -> None:
        cgroups.check_empty(dict(self.paths))
        own = _own(run)
        assert own.container
        own.container.write("state", {**own.container.note(), "cgroups": dict(self.paths)})
        own.cgroups = dict(self.paths)
        own.cgroups = cgroups.make(cgroups.Machine(), dict(self.paths), self.may_lack)
        self._limit(own.cgroups)
        _hold(run, own.cgroups)

    def _limit(self, paths: dict[str, str]) -> None:
        """Write the limits of the container's cgroups."""
        cgroups.apply(paths, self.settings, self.unified)
        if not self.devices:
            return
        fd = cgroups.open_v2(paths)
        if fd < 0:
            raise BadInput("linux.resources.devices: there is no cgroup for them")
        with kernel.Fd(fd):
            try:
                kernel.device_filter(fd, self.devices)
            except KernelError as error:
                raise BadInput(f"linux.resources.devices: {error}", errno=error.errno or 0) from None

    def undo(self, run: Context) -> None:
        own = _own(run)
        if own.cgroups:
            own.is_left = True
            own.is_left = not cgroups.end(own.cgroups, 2) or bool(cgroups.remove(own.cgroups))


class MakeScope(MakeCgroups):
    phase = COMMIT
    why = "A unit of systemd is made of a process that there is: systemd moves it into a cgroup of its tree, and leaves what is below to us (Delegate)."
    man = "systemd.scope(5), org.freedesktop.systemd1(5)"
    ident: str = ""
    scope: Scope | None = None
    properties: Mapping[str, Any] = {}  # linux.resources

    def made(self) -> list[str | Part]:
        assert self.scope
        ask = f'StartTransientUnit("{self.scope.unit}", "fail", PIDs = [PID], Slice = "{self.scope.slice}", …)   /* to systemd, over D-Bus */'
        return [ask, Part(["recvmsg(JobRemoved)"], when="it is done"), *self.making()]

    def brief(self) -> str:
        return f'StartTransientUnit("{self.scope.unit if self.scope else ""}")'

    def makes(self) -> tuple[str, ...]:
        return ()

    def do(self, run: Context) -> None:
        from nsrun.oci import systemd

        own = _own(run)
        assert own.container and self.scope
        cgroups.check_empty(dict(self.paths))
        own.container.write("state", {**own.container.note(), "cgroups": dict(self.paths), "unit": self.scope.unit})
        asked = systemd.properties(self.ident, self.scope, run.pid, self.properties, self.unified)
        with systemd.Manager() as manager:
            manager.start(self.scope.unit, asked)
        own.cgroups = dict(self.paths)
        own.cgroups = cgroups.make(cgroups.Machine(), dict(self.paths), self.may_lack)
        self._limit(own.cgroups)

    def undo(self, run: Context) -> None:
        from nsrun.oci import systemd

        own = _own(run)
        if own.cgroups:
            own.is_left = True
            own.is_left = not cgroups.end(own.cgroups, 2)
        if self.scope and not own.is_left:
            try:
                with systemd.Manager() as manager:
                    manager.stop(self.scope.unit)
            except NsrunError:
                pass  # a scope without a process ends by itself
        super().undo(run)


class OpenCgroups(Step):
    phase = HOST
    why = "One more process of a container is born in its cgroup of v2, and enters those of v1."
    man = "clone3(2) CLONE_INTO_CGROUP, cgroups(7)"
    paths: Mapping[str, str]

    def made(self) -> list[str | Part]:
        v2 = cgroups.v2_of(dict(self.paths))
        return [f'cgroup:dir = open("{v2}", O_DIRECTORY)' if v2 else "# there is no cgroup of v2", *_tasks(self.paths)]

    def makes(self) -> tuple[str, ...]:
        return ("cgroup:dir?", *cgroups.entered(self.paths))

    def replayed(self, compiler: Compiling) -> list[Replayed]:
        path = cgroups.v2_of(dict(self.paths))
        found: list[Replayed] = [("open_cgroup", path, compiler.make(handle)) for handle, path in cgroups.entered(self.paths).items()]  # fmt: skip
        inode = _making(compiler).inode_of
        return [*([("cgroup", path, inode(path), compiler.make("cgroup:dir"))] if path else []), *found]

    def do(self, run: Context) -> None:
        own = _own(run)
        # One that can't be seen here is an error: the process would be outside of the container's limits.
        own.cgroups = dict(self.paths)
        _hold(run, own.cgroups)


class MakeUserNamespace(Step):
    phase = HOST
    why = "Ids of the container are other ids of the host, so that root in it has no power outside."
    man = "user_namespaces(7)"
    native = "kernel.c nsrun_spawn_userns"
    maps: Mapping[str, Sequence[Sequence[int]]]
    handle: str = "user:fd"
    hints = {
        ENOSPC: "the limit on user namespaces is reached: /proc/sys/user/max_user_namespaces",
        EINVAL: "linux.uidMappings or linux.gidMappings overlap, or are too many",
        EPERM: "only root may map ids other than one's own; newuidmap(1) those of /etc/subuid",
    }

    def made(self) -> list[str | Part]:
        maps = [f'write("/proc/PID/{kind}_map")' for kind in ("gid", "uid")]
        return ["fork()", Part(["unshare(CLONE_NEWUSER)"], by="a child"), *maps, f'{self.handle} = open("/proc/PID/ns/user")']  # fmt: skip

    def brief(self) -> str:
        return "unshare(CLONE_NEWUSER) and its maps"

    def makes(self) -> tuple[str, ...]:
        return (self.handle,)

    def do(self, run: Context) -> None:
        run.hold(self.handle, new_userns(self.maps))


class MakeTimeNamespace(Step):
    phase = HOST
    why = "Clocks of the container have other values than the host's; they can be set only before a process is in the namespace."
    man = "time_namespaces(7)"
    native = "kernel.c nsrun_new_timens"
    offsets: str
    user: str = ""  # the user namespace that it belongs to
    handle: str = "ns:time"
    hints = {EINVAL: "this kernel has no time namespaces (Linux 5.6, CONFIG_TIME_NS)", 34: "linux.timeOffsets: a clock would be below 0"}  # fmt: skip

    def made(self) -> list[str | Part]:
        join = [f"setns({self.user}, CLONE_NEWUSER)"] if self.user else []
        write = ['write("/proc/self/timens_offsets")'] if self.offsets else []
        return ["clone3()", Part([*join, "unshare(CLONE_NEWTIME)", *write, f'{self.handle} = open("/proc/self/ns/time_for_children")'], by="a child")]  # fmt: skip

    def brief(self) -> str:
        return "unshare(CLONE_NEWTIME) and its offsets"

    def needs(self) -> tuple[str, ...]:
        return (self.user,) if self.user else ()

    def makes(self) -> tuple[str, ...]:
        return (self.handle,)

    def do(self, run: Context) -> None:
        run.hold(self.handle, kernel.new_timens(self.offsets, run.fd(self.user) if self.user else -1))


class EnterOwnUserNamespace(Step):
    why = "An ordinary user has power over mounts only as root of a user namespace: so we enter the container's own, and what follows is made there."
    man = "user_namespaces(7), newuidmap(1)"
    native = "kernel.c nsrun_enter_userns"
    maps: Mapping[str, Sequence[Sequence[int]]]
    hints = {
        ENOSPC: "the limit on user namespaces is reached: /proc/sys/user/max_user_namespaces",
        EPERM: "only one's own id can be mapped, and newuidmap(1) maps those of /etc/subuid",
    }

    def made(self) -> list[str | Part]:
        maps = [f'write("/proc/PID/{kind}_map")' for kind in ("gid", "uid")]
        return ["fork()", Part(["unshare(CLONE_NEWUSER)"], by="a child"), *maps, "setns(user, CLONE_NEWUSER)", "unshare(CLONE_NEWNS)"]  # fmt: skip

    def brief(self) -> str:
        return "unshare(CLONE_NEWUSER) and its maps"

    def do(self, run: Context) -> None:
        with kernel.Fd(new_userns(self.maps)) as fd:
            kernel.enter_userns(fd)


def new_userns(maps: Mapping[str, Sequence[Sequence[int]]]) -> int:
    """Return a descriptor of a new user namespace of ours with these maps.  Raise OSError or NsrunError."""
    from nsrun.host import userns

    if os.geteuid() and not only_self(maps):
        return userns.make((os.geteuid(), os.getegid()), {kind: [list(line) for line in maps[kind]] for kind in maps})

    def write(pid: int) -> None:
        if os.geteuid():
            _write(f"/proc/{pid}/setgroups", "deny")
        for kind in ("gid", "uid"):
            _write(f"/proc/{pid}/{kind}_map", "".join(f"{i} {o} {n}\n" for i, o, n in maps[kind]))

    return kernel.new_userns(None, write)


def only_self(maps: Mapping[str, Sequence[Sequence[int]]]) -> bool:
    """Return whether only our own id is mapped, which needs no privilege, and forbids setgroups(2)."""
    ours = {"uid": os.geteuid(), "gid": os.getegid()}
    return all(len(maps[kind]) == 1 and list(maps[kind][0])[1:] == [ours[kind], 1] for kind in ours)


def _write(path: str, text: str) -> None:
    with kernel.Fd(os.open(path, os.O_WRONLY | os.O_CLOEXEC)) as fd:
        os.write(fd, text.encode())


# ---- 3 Join -------------------------------------------------------------------------------------------------------


class LaunchContainer(Launch):
    """The clone of nsrun-init, of which nobody is to be told: whoever called us becomes its parent when we end."""

    native = "kernel.c nsrun_do_launch"
    joins: tuple[str, ...] = ()  # handles of namespaces, joined one by one; the last is `user`, if there is one
    keep_keys: bool = False
    preserve: int = 0  # descriptors from 3 on that are the program's

    @property
    def one_way(self) -> bool:
        return (
            bool(self.joins or self.join_flags & kernel.CLONE_NEWTIME) or super().one_way
        )  # nobody comes back in time

    def made(self) -> list[str | Part]:
        if not self.joins:
            return super().made()
        joins = [f"setns({name})" for name in self.joins]
        helper = Part([*joins, self._clone("CLONE_PARENT"), self._child(["setsid()"])], by="a helper")
        return [*sealed("plan:fd", "plan"), "clone3(CLONE_FILES|CLONE_VM|CLONE_VFORK)", helper]

    def needs(self) -> tuple[str, ...]:
        return (*super().needs(), *self.joins)

    def replayed(self, compiler: Compiling) -> list[Replayed] | None:
        if self.join:
            return super().replayed(compiler)
        if self.user or self.keep_keys or self.preserve:
            return None
        return [("joins", [compiler.fd(name) for name in self.joins]), *self.launched(compiler)]


# ---- 4 Init -------------------------------------------------------------------------------------------------------

_ROOT = "openat2(rootfs, PATH, O_PATH, RESOLVE_IN_ROOT|RESOLVE_NO_MAGICLINKS)"


class NewMount(InitStep):
    man = "fsopen(2), mount_setattr(2)"
    many = "{} file systems are mounted"
    why = "A new mount of such a file system shows the namespaces of the process that mounts it; its place is looked up inside the root only."
    fstype: str
    source: str
    target: str
    options: tuple[str, ...] = ()
    attrs: int = 0
    propagation: int = 0
    hints = {
        ELOOP: "the root has a symlink there",
        ENOTDIR: "the root has a file where a directory must be",
        ENODEV: "this kernel has no such file system",
        EINVAL: "the file system does not know an option",
    }

    def args(self, run: Context) -> Sequence[int | str | list[str]]:
        return (self.fstype, self.source, self.target, list(self.options), self.attrs, self.propagation)

    def made(self) -> list[str | Part]:
        sets = [f'fsconfig(fs, "{option}")' for option in self.options]
        return [f'fs = fsopen("{self.fstype}", FSOPEN_CLOEXEC)', f'fsconfig(fs, "source", "{self.source}")', *sets, "mnt = fsmount(fs)", _ROOT, 'move_mount(mnt, "", at, "")']  # fmt: skip

    def brief(self) -> str:
        return f"mount {self.thing()}"

    def thing(self) -> str:
        return f"{self.fstype} on {self.target}"

    def check(self) -> str:
        return f"grep ' {self.target} ' /proc/PID/mountinfo"


class BindInside(InitStep):
    why = "The terminal is the console of the container, too."
    man = "open_tree(2), move_mount(2)"
    source: str
    target: str

    def args(self, run: Context) -> Sequence[str]:
        return (run.text(self.source), self.target)

    def made(self) -> list[str | Part]:
        return [f'tree = open_tree(rootfs, "{self.source}", OPEN_TREE_CLONE)', f'move_mount(tree, rootfs, "{self.target}")']  # fmt: skip


class MakeNode(InitStep):
    many = "{} nodes are made"
    why = "Where we may make devices, a container has nodes of its own."
    man = "mknod(2)"
    path: str
    mode: int
    major: int = 0
    minor: int = 0
    uid: int = 0
    gid: int = 0

    def args(self, run: Context) -> Sequence[int | str]:
        return (self.path, self.mode, self.major, self.minor, self.uid, self.gid)

    def made(self) -> list[str | Part]:
        return [
            f'mknodat(parent, "{self.path}", {self.mode:#o}, makedev({self.major}, {self.minor}))',
            f'node = openat2(parent, "{self.path}", O_PATH|O_NOFOLLOW)',
            "statx(node)",
            f'fchownat(node, "", {self.uid}, {self.gid}, AT_EMPTY_PATH)',
        ]

    def brief(self) -> str:
        return f'mknodat(parent, "{self.path}", …)'

    def thing(self) -> str:
        return self.path


class MakeLink(InitStep):
    many = "{} links are made"
    why = "Programs expect them in /dev."
    man = "symlink(2)"
    to: str
    path: str

    def args(self, run: Context) -> Sequence[str]:
        return (self.to, self.path)

    def made(self) -> list[str | Part]:
        return [f'symlinkat("{self.to}", parent, "{self.path}")']

    def thing(self) -> str:
        return self.path


class MoveRoot(InitStep):
    why = "With --no-pivot the root is moved over the one there is, which is how it goes on the initial ramfs."
    man = "mount(2) MS_MOVE, chroot(2)"

    def made(self) -> list[str | Part]:
        return ["fchdir(rootfs)", 'mount(".", "/", NULL, MS_MOVE, NULL)', 'chroot(".")', 'chdir("/")']


class SetPropagation(InitStep):
    why = "Mounts that come later travel as linux.rootfsPropagation says."
    man = "mount_namespaces(7)"
    flags: int

    def args(self, run: Context) -> Sequence[int]:
        return (self.flags,)

    def made(self) -> list[str | Part]:
        return [f'mount(NULL, "/", NULL, {self.flags:#x}, NULL)']


class SetReadonly(InitStep):
    why = "It is read-only only once everything below it is mounted."
    man = "mount_setattr(2)"
    path: str

    def args(self, run: Context) -> Sequence[str]:
        return (self.path,)

    def made(self) -> list[str | Part]:
        return [
            f'at = openat2(rootfs, "{self.path}", O_PATH)',
            'mount_setattr(at, "", AT_EMPTY_PATH, MOUNT_ATTR_RDONLY)',
        ]


class SetDomainname(InitStep):
    why = "The UTS namespace has a domain name of its own."
    man = "setdomainname(2)"
    name: str

    def args(self, run: Context) -> Sequence[str]:
        return (self.name,)

    def made(self) -> list[str | Part]:
        return [f'setdomainname("{self.name}", {len(self.name)})']


class SetUmask(InitStep):
    why = "The mode of new files is what process.user.umask leaves."
    man = "umask(2)"
    mask: int

    def args(self, run: Context) -> Sequence[int]:
        return (self.mask,)

    def made(self) -> list[str | Part]:
        return [f"umask({self.mask:#o})"]


class SetPersonality(InitStep):
    why = "The program sees a machine of linux.personality."
    man = "personality(2)"
    domain: int

    def args(self, run: Context) -> Sequence[int]:
        return (self.domain,)

    def made(self) -> list[str | Part]:
        return [f"personality({self.domain})"]


class SetIoPriority(InitStep):
    why = "The program reads and writes with process.ioPriority."
    man = "ioprio_set(2)"
    value: int

    def args(self, run: Context) -> Sequence[int]:
        return (self.value,)

    def made(self) -> list[str | Part]:
        return [f"ioprio_set(IOPRIO_WHO_PROCESS, 0, {self.value:#x})"]


class SetScheduler(InitStep):
    why = "The program is scheduled as process.scheduler says."
    man = "sched_setattr(2)"
    values: tuple[int, int, int, int, int, int, int]

    def args(self, run: Context) -> Sequence[int]:
        return self.values

    def made(self) -> list[str | Part]:
        return [f"sched_setattr(0, {self.values}, 0)"]


class SetCapabilitySets(InitStep):
    why = (
        "All sets of capabilities are what process.capabilities says; the bounding one was cut before the ids were set."
    )
    man = "capabilities(7)"
    effective: int
    permitted: int
    inheritable: int
    ambient: int
    hints = {EPERM: "a set asks for more than we have, or the ambient one for more than permitted and inheritable"}

    def args(self, run: Context) -> Sequence[int]:
        return (self.effective, self.permitted, self.inheritable, self.ambient)

    def made(self) -> list[str | Part]:
        raised = [f"prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE) of {self.ambient:#x}"] if self.ambient else []
        return [
            "prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)",
            f"capset(effective = {self.effective:#x}, permitted = {self.permitted:#x}, inheritable = {self.inheritable:#x})",
            *raised,
        ]

    def check(self) -> str:
        return "grep Cap /proc/PID/status"


class SetFilterFlags(InitStep):
    why = "Without no_new_privs only who has CAP_SYS_ADMIN may filter, so it is set before the ids are."
    man = "seccomp(2), close_range(2)"
    flags: int
    first: int = 3  # descriptors from this one on are closed by the exec, which the filter may forbid to say later

    def args(self, run: Context) -> Sequence[int]:
        return (run.fd("seccomp:fd"), self.flags, self.first)

    def made(self) -> list[str | Part]:
        close = f"close_range({self.first}, ~0, CLOSE_RANGE_CLOEXEC)"
        return [close, Part([f"seccomp(SECCOMP_SET_MODE_FILTER, {self.flags}, FILTER)"], each="FILTER in seccomp:fd")]

    def needs(self) -> tuple[str, ...]:
        return ("seccomp:fd",)


class SetFilterWithListener(InitStep):
    why = "The filter asks whoever has its listener, so that is handed out before anything else is done; nsrun-init waits as long."
    man = "seccomp_unotify(2), close_range(2)"
    flags: int
    first: int = 3

    def args(self, run: Context) -> Sequence[int]:
        return (run.fd("seccomp:fd"), self.flags, self.first)

    def made(self) -> list[str | Part]:
        close = f"close_range({self.first}, ~0, CLOSE_RANGE_CLOEXEC)"
        install = f"seccomp(SECCOMP_SET_MODE_FILTER, {self.flags}|SECCOMP_FILTER_FLAG_NEW_LISTENER, FILTER)"
        return [
            close,
            Part([install], each="FILTER in seccomp:fd"),
            "write(channel, INIT_WAITS)",
            "read(channel)   /* GO */",
            "close(listener)",
        ]

    def brief(self) -> str:
        return f"seccomp(SECCOMP_SET_MODE_FILTER, {self.flags}|SECCOMP_FILTER_FLAG_NEW_LISTENER, FILTER)"

    def needs(self) -> tuple[str, ...]:
        return ("seccomp:fd",)


class EnterCgroup(InitStep):
    many = "{} cgroups are entered"
    why = "Nobody can be born in a cgroup of v1. Who enters one by itself, as its only thread, does not wait until all forks of the machine are done, as who is moved does."
    man = "cgroups(7)"
    handle: str
    path: str
    optional: bool = False  # it may be missing, where it could not be made

    def args(self, run: Context) -> Sequence[int]:
        return (run.fd(self.handle), int(self.optional))

    def made(self) -> list[str | Part]:
        return [f'write({self.handle}, "0")', f"close({self.handle})"]

    def thing(self) -> str:
        return self.path

    def needs(self) -> tuple[str, ...]:
        return (f"{self.handle}?" if self.optional else self.handle,)

    def check(self) -> str:
        return "cat /proc/PID/cgroup"


def enter_cgroups(paths: Mapping[str, str], optional: bool = False) -> list[InitStep]:
    return [EnterCgroup(handle, path, optional) for handle, path in cgroups.entered(paths).items()]


class Wait(InitStep):
    """nsrun-init says that it has come here, and goes on when it is told to."""

    why = "What only the host can do is done now: see Proceed."
    man = "socketpair(2)"

    def made(self) -> list[str | Part]:
        return ["write(channel, INIT_WAITS)", "read(channel)   /* GO */"]


class ExecuteContainer(InitStep):
    why = "That there is such a program is known before the container counts as created; it is executed when `start` says so."
    man = "execve(2), close_range(2)"
    argv: tuple[str, ...]
    env: tuple[str, ...]
    first: int = 3  # descriptors from this one on are closed
    program: str = ""  # "": the first argument
    waits: bool = False  # for `start`
    filtered: bool = False  # the filter is set last of all
    flags: int = 0  # of the filter
    closed: bool = False  # close_range(2) was called before the filter was set

    def args(self, run: Context) -> Sequence[int | str | list[str]]:
        start, told = (run.fd(name) if self.waits else -1 for name in ("start:fd", "told:fd"))
        late = run.fd("seccomp:fd") if self.filtered else -1
        return (self.program, list(self.argv), list(self.env), self.first, start, told, late, self.flags)

    def made(self) -> list[str | Part]:
        found: list[str | Part] = [Part(["statx(FILE)", "faccessat(FILE, X_OK)"], each="FILE of PATH")]
        found += [] if self.closed else [f"close_range({self.first}, ~0, CLOSE_RANGE_CLOEXEC)"]
        found += ["write(channel, INIT_WAITS)", "read(channel)   /* GO */"]
        found += ["read(start:fd)   /* GO, from `start` */"] if self.waits else []
        found += ["seccomp(SECCOMP_SET_MODE_FILTER)"] if self.filtered else []
        return [*found, self.brief()]

    def brief(self) -> str:
        return f'execve("{self.program or self.argv[0]}", [{len(self.argv)} arguments], [{len(self.env)} variables])'

    def needs(self) -> tuple[str, ...]:
        return (*(("start:fd", "told:fd") if self.waits else ()), *(("seccomp:fd",) if self.filtered else ()))


# ---- 5 Commit -----------------------------------------------------------------------------------------------------


class JoinCgroups(Step):
    phase = COMMIT
    why = "A scope is made of a process that there is; and in a user namespace that others are root of, nsrun-init may hold no cgroup that root has opened, by which they could move any process that they see."
    man = "cgroups(7)"

    def made(self) -> list[str | Part]:
        return [Part(['write("cgroup.procs", PID)'], each="hierarchy but that in which it was born")]

    def do(self, run: Context) -> None:
        own = _own(run)
        cgroups.join(own.cgroups, run.pid, "cgroup:dir" in run.handles)


class Proceed(Step):
    phase = COMMIT
    why = "nsrun-init goes on to where it waits next."
    man = "socketpair(2)"

    def made(self) -> list[str | Part]:
        return ["write(channel:nsrun, GO)", "read(channel:nsrun)   /* INIT_WAITS */"]

    def do(self, run: Context) -> None:
        _own(run).proceed()


class SetOomScore(Step):
    phase = COMMIT
    why = "The OOM killer adds this to the score by which it chooses a process; only who is privileged outside may lower it."
    man = "proc_pid_oom_score_adj(5)"
    value: int

    def made(self) -> list[str | Part]:
        return [f'write("/proc/PID/oom_score_adj", "{self.value}")']

    def replayed(self, compiler: Compiling) -> list[Replayed]:
        return [("oom_score", self.value)]

    def do(self, run: Context) -> None:
        _write(f"/proc/{run.pid}/oom_score_adj", str(self.value))


def _sending(path: str, what: str) -> list[str | Part]:
    return ["socket(AF_UNIX, SOCK_STREAM)", f'connect("{path}")', f"sendmsg({what}, SCM_RIGHTS)"]


def _send(path: str, data: bytes, fd: int) -> None:
    """Send a text with a descriptor to whoever listens at a path.  Raise OSError, after 10 s too."""
    import _socket
    from struct import pack

    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(10)
        directory, _, name = path.rpartition("/")
        with kernel.Fd(os.open(directory or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as place:
            sock.connect(f"/proc/self/fd/{place}/{name}")  # a path of any length: sun_path holds 108 bytes
        sent = sock.sendmsg([data], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, pack("=i", fd))])
        if sent < len(data):  # of nothing, sendall() would tell that whoever has it all has closed the socket: EPIPE
            sock.sendall(data[sent:])
    finally:
        sock.close()


class SendTerminal(Step):
    phase = COMMIT
    why = "Whoever called us gets the master of the terminal."
    man = "unix(7) SCM_RIGHTS"
    path: str
    hints = {ENOENT: "--console-socket names nothing", 111: "nobody listens at --console-socket"}

    def made(self) -> list[str | Part]:
        return _sending(self.path, "tty:master")

    def brief(self) -> str:
        return f'connect("{self.path}")'

    def needs(self) -> tuple[str, ...]:
        return ("tty:master",)

    def do(self, run: Context) -> None:
        _send(self.path, str(run.values["tty:name"]).encode(), run.fd("tty:master"))


class SendListener(Step):
    phase = COMMIT
    why = "Who listens at linux.seccomp.listenerPath gets the listener of the filter, and is told of which process it is, before its program begins."
    man = "pidfd_getfd(2), unix(7) SCM_RIGHTS, seccomp_unotify(2)"
    path: str
    metadata: str
    state: Mapping[str, Any]  # of the container; pid 0: the new process is its first
    hints = {ENOENT: "linux.seccomp.listenerPath names nothing", 111: "nobody listens at linux.seccomp.listenerPath"}

    def made(self) -> list[str | Part]:
        return ["listener = pidfd_getfd(PIDFD, NUMBER)", *_sending(self.path, "listener")]

    def brief(self) -> str:
        return f'connect("{self.path}")'

    def do(self, run: Context) -> None:
        from nsrun.state import codec

        own = _own(run)
        state = {**self.state, "pid": self.state.get("pid") or own.pid}
        document = {"ociVersion": state["ociVersion"], "fds": ["seccompFd"], "pid": own.pid, "metadata": self.metadata, "state": state}  # fmt: skip
        with kernel.Fd(kernel.pidfd_getfd(own.pidfd, own.said)) as listener:
            _send(self.path, codec.dumps(document).encode(), listener)


class CallHooks(Step):
    phase = COMMIT
    why = "Whoever wrote the hooks sets up what the container is to find: on the host, or in its namespaces, but before its root is all there is."
    man = "https://github.com/opencontainers/runtime-spec/blob/main/config.md#posix-platform-hooks"
    kind: str
    hooks: tuple[Mapping[str, Any], ...]

    def made(self) -> list[str | Part]:
        return [f'execve("{hook["path"]}")   /* {self.kind} */' for hook in self.hooks]

    def brief(self) -> str:
        return f"hooks.{self.kind}"

    def do(self, run: Context) -> None:
        for hook in self.hooks:
            _own(run).call_hook(self.kind, hook)


class WriteState(Step):
    phase = COMMIT
    why = "From here on the container is there: the state says which process it is."
    man = "rename(2), proc_pid_stat(5)"

    def made(self) -> list[str | Part]:
        return ['open("state.tmp")', 'rename("state.tmp", "state")']

    def replayed(self, compiler: Compiling) -> list[Replayed]:
        own = _making(compiler)
        return [("note", f"{own.path}/state", own.written(with_cgroups=True, with_process=True))]

    def do(self, run: Context) -> None:
        own = _own(run)
        assert own.container
        note = {**own.container.note(), "pid": run.pid, "start": kernel.process_start(run.pid), "cgroups": own.cgroups}
        own.container.write("state", note)


class WritePidFile(Step):
    phase = COMMIT
    why = "The engine reads from it which process it is to wait for."
    man = "rename(2)"
    path: str

    def made(self) -> list[str | Part]:
        return ['open("DIRECTORY/.NAME")', f'rename("DIRECTORY/.NAME", "{self.path}")']

    def brief(self) -> str:
        return f'open("{self.path}")'

    def do(self, run: Context) -> None:
        directory, _, name = self.path.rpartition("/")
        # a name where nobody can have put a file before us
        temporary = f"{directory or '.'}/.{name[:200]}.{os.urandom(8).hex()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        with open(os.open(temporary, flags, 0o644), "w") as file:
            try:
                file.write(str(run.pid))
                file.flush()
                os.rename(temporary, self.path)
            except OSError:
                os.unlink(temporary)
                raise

    def undo(self, run: Context) -> None:
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass
