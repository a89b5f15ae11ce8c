"""Steps that Python carries out on the host: phases 1 (Open), 2 (Host), 3 (Join) and 5 (Commit)."""

from __future__ import annotations

import os
from errno import EACCES, EBUSY, EINVAL, ELOOP, ENODEV, ENOENT, ENOMEM, ENOSPC, ENOSYS, ENOTDIR, EPERM, EROFS, ESRCH

from nsrun import kernel
from nsrun.errors import BadInput, KernelError, UnknownError
from nsrun.plan import COMMIT, HOST, JOIN, OWN_KEYRING, Step, sh_quote
from nsrun.state import make_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nsrun.run import Run

LIBEXEC = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "libexec")


# ---- 1 Open ------------------------------------------------------------------------------------------------


class ClaimName(Step):
    why = "One rename(2) takes the name: of two at the same time, one gets it. A record lock beside the note proves that we live."
    man = "rename(2), fcntl(2) F_SETLK"
    kind: str
    name: str
    note: dict[str, Any]
    hints = {
        ENOSPC: "the disk that holds nsrun's state is full",
        EACCES: "needs root; root of a user namespace needs a state directory of its own, too: --root DIR",
    }

    def call(self) -> str:
        return f'fcntl("held", F_SETLK, F_RDLCK); rename("tmp/ID", "{self.kind}/{self.name}")'

    def calls(self) -> list[str]:
        return ["rename"]

    def shell(self) -> str:
        return f"mkdir -p {sh_quote('/run/nsrun-shell/' + self.kind)} && mkdir {sh_quote(f'/run/nsrun-shell/{self.kind}/{self.name}')}"

    approx = "a directory of its own, so that nsrun does not take it for a note"

    def check(self) -> str:
        return "nsrun ls -a; nsrun pod ls"

    def do(self, run: Run) -> None:
        run.directory, held = run.state.claim(self.kind, self.name, self.note, run.files)
        run.hold("lock:held", held)

    def undo(self, run: Run) -> None:
        if run.directory:  # else somebody else has the name
            from nsrun.state.sweep import give_back

            give_back(run.state, self.kind, self.name, self.note["id"])


class LoadProgram(Step):
    why = "A sealed copy in memory: no member can reach a file of the host through /proc/PID/exe (CVE-2019-5736)."
    man = "memfd_create(2), fcntl(2) F_ADD_SEALS"
    program: str
    handle: str
    hints = {
        ENOENT: "the installation is incomplete: build nsrun again (make build)",
        EACCES: "vm.memfd_noexec is 2: programs in memory are forbidden here, and only root can have them otherwise:"
        " sudo sysctl vm.memfd_noexec=1; or let root make the pod: sudo nsrun pod create",
    }

    def call(self) -> str:
        return f'memfd_create("{self.program}", MFD_ALLOW_SEALING|MFD_EXEC); fcntl({self.handle}, F_ADD_SEALS, F_SEAL_WRITE|…)'

    def calls(self) -> list[str]:
        return ["memfd_create"]

    def check(self) -> str:
        return "readlink /proc/PID/exe   # memfd: (deleted)"

    def do(self, run: Run) -> None:
        with open(f"{LIBEXEC}/{self.program}", "rb", buffering=0) as file:
            data = file.read()
        run.hold(self.handle, kernel.sealed_program(self.program, data))


class LoadFilter(Step):
    why = "The filter was compiled before; what is inside gets it as bytes, and no library."
    man = "seccomp(2), memfd_create(2)"
    name: str  # of the compiled filter
    profile: str  # "": ours
    caps: int

    def call(self) -> str:
        return f'memfd_create("seccomp", MFD_ALLOW_SEALING)   # {self.profile or "the default profile"}'

    def calls(self) -> list[str]:
        return ["memfd_create"]

    def do(self, run: Run) -> None:
        from nsrun import seccomp

        data = seccomp.compiled(run.state, self.name, self.profile, self.caps)
        run.hold("seccomp:fd", kernel.sealed_memfd("seccomp", data))


class OpenProcess(Step):
    """pidfd of pause, or of a member."""

    why = (
        "A pidfd names the process for good: a number may be reused, and a dead one gives ESRCH instead of a surprise. "
        "Which process it is, the lock on `held` tells."
    )
    man = "pidfd_open(2), fcntl(2) F_GETLK"
    what: str
    note: dict[str, Any]  # of the pod, or of the member
    member: bool
    handle: str
    hints = {ESRCH: "it has just ended"}

    @property
    def pid(self) -> object:
        """What the note says, for people."""
        return (self.note.get("process" if self.member else "pause") or ["PID"])[0]

    def call(self) -> str:
        return f"pidfd_open({self.what}, 0)"

    def shell(self) -> str:
        return f"POD=${{POD:-{self.pid}}}   # {self.what}"

    approx = "a number instead of a descriptor"

    def check(self) -> str:
        return "ps -p PID"

    def do(self, run: Run) -> None:
        fd, pid = (run.state.process if self.member else run.state.pause)(self.note)
        if fd < 0:
            raise UnknownError(f"{self.what} is dead: its process has ended", hint="nsrun pod ls, nsrun ls -a")
        run.hold(self.handle, fd)
        run.values[f"{self.handle}:pid"] = pid


class OverlayRoot(Step):
    why = "Writes go to a directory of the member's own; the rootfs stays clean and can be shared."
    man = "fsopen(2), https://docs.kernel.org/filesystems/overlayfs.html"
    lowers: tuple[str, ...]  # a rootfs directory, or the layers of an image from the top down
    ident: str
    again: bool = False  # a restart: what was written before stays
    idmap: str = ""  # a user namespace: what belongs to id 0 of the host is shown as the pod's 0
    handle: str = "rootfs:fd"
    hints = {
        ENODEV: "this kernel has no overlay file system: modprobe overlay, or use --writable",
        EINVAL: "the upper directory's file system can't carry an overlay (is it an overlay itself?): --root DIR on another, or --writable",
        ENOSPC: "the disk that holds /var/lib/nsrun is full",
        EPERM: "needs root",
        EACCES: "overlayfs works in a directory of mode 0, and so needs CAP_DAC_OVERRIDE: nsrun doctor; or --writable",
    }

    def call(self) -> str:
        lower = ":".join(self.lowers)
        if len(self.lowers) > 1:  # layers: HEX/tree each
            lower = ":".join(path.split("/")[-2][:12] for path in self.lowers)
        idmap = (
            f"mount_setattr(open_tree(…), MOUNT_ATTR_IDMAP, {self.idmap}); unshare(CLONE_NEWNS); move_mount(…); "
            if self.idmap
            else ""
        )
        return f'{idmap}fsmount(fsopen("overlay"), "lowerdir={lower},upperdir=upper/{self.ident}", MOUNT_ATTR_NODEV)'

    def calls(self) -> list[str]:
        if not self.idmap:
            return ["fsopen", "fsmount"]
        n = len(self.lowers)
        return [
            *["open_tree", "mount_setattr"] * n,
            "open_tree",
            "clone3",
            "unshare",
            "mount",
            *["move_mount"] * (n + 1),
            "fsopen",
            *["setns"] * (n + 7),
            "fsmount",
        ]

    def shell(self) -> str:
        up, lower = f"/var/tmp/nsrun-shell/{self.ident}", sh_quote(":".join(self.lowers))
        return f"mkdir -p {up}/upper {up}/work; ROOT_OPTIONS=lowerdir={lower},upperdir={up}/upper,workdir={up}/work"

    approx = "mounted later, inside: mount(8) can't make a mount that is attached nowhere"

    def check(self) -> str:
        return "head -1 /proc/PID/mountinfo   # overlay on /"

    def do(self, run: Run) -> None:
        upper = run.state.upper(self.ident)
        apart = -1
        fds: list[int] = []
        try:
            for path in self.lowers:
                if self.idmap:
                    fds.append(kernel.open_tree(path))
                    try:
                        kernel.mount_setattr(fds[-1], propagation=kernel.MS_PRIVATE, userns=run.fd(self.idmap))
                    except KernelError as error:
                        if error.errno not in (EINVAL, EPERM):  # EPERM: only the first user namespace's root may
                            raise
                        raise BadInput(
                            f"{path}: {error}: its file system can't be shown with other ids",
                            hint="one that can (ext4, XFS, btrfs, tmpfs since 6.3); or let the owner join, with files of hers; overlay over such layers came with Linux 5.19",
                            errno=error.errno,
                        ) from None
                else:
                    fds.append(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            run.need_data(self.ident)
            if not self.again:
                st = os.fstat(fds[0])
                for part in ("upper", "work"):
                    os.mkdir(f"{upper}/{part}", 0o700)
                os.chmod(f"{upper}/upper", st.st_mode & 0o7777)
                self._give(f"{upper}/upper", st.st_uid, st.st_gid)
            flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
            fds.append(kernel.open_tree(upper) if self.idmap else os.open(upper, flags))
            if self.idmap:  # all of them attached in one mount namespace, which goes with its descriptor
                apart = kernel.attach_apart(fds)
            fds += [os.open(part, flags, dir_fd=fds[-1]) for part in ("upper", "work")]
            run.hold(self.handle, kernel.overlay(fds[:-3], fds[-2], fds[-1], kernel.MOUNT_ATTR_NODEV, apart))
        finally:
            for fd in [*fds, *([apart] if apart >= 0 else [])]:
                os.close(fd)

    def _give(self, upper: str, uid: int, gid: int) -> None:
        try:
            os.chown(upper, uid, gid)
        except OSError as error:
            if error.errno != EINVAL:
                raise
            raise BadInput(
                f"{self.lowers[0]} belongs to an id that this user namespace does not have: its files would be nobody's",
                hint="a root with ids of /proc/self/uid_map (unpack it in here), or a namespace with more: unshare --map-auto",
                errno=EINVAL,
            ) from None

    def undo(self, run: Run) -> None:
        if not self.again:
            run.drop_data(self.ident)


class PlainRoot(Step):
    man = "open_tree(2), mount_setattr(2)"
    path: str
    recursive: bool = False
    handle: str = "rootfs:fd"
    hints = {
        ENOENT: "no such directory",
        ENOTDIR: "it is not a directory",
        ENOSYS: "mount_setattr came with Linux 5.12",
    }

    @property
    def why(self) -> str:  # type: ignore[override]
        if self.recursive:
            return "No rootfs was named: the member sees the host's own files, in a private copy of its mount tree."
        return "--writable: the member writes to the directory itself."

    def call(self) -> str:
        flags = "OPEN_TREE_CLONE" + ("|AT_RECURSIVE" if self.recursive else "")
        return f'open_tree(AT_FDCWD, "{self.path}", {flags}); mount_setattr({self.handle}, MS_PRIVATE)'

    def calls(self) -> list[str]:
        return ["open_tree", "mount_setattr"]

    def shell(self) -> str:
        return f"ROOT_BIND={sh_quote(self.path)}"

    approx = "mounted later, inside: mount(8) can't make a mount that is attached nowhere"

    def check(self) -> str:
        return "head -1 /proc/PID/mountinfo"

    def do(self, run: Run) -> None:
        fd = run.hold(self.handle, kernel.open_tree(self.path, self.recursive))
        attrs = 0 if self.recursive else kernel.MOUNT_ATTR_NODEV
        kernel.mount_setattr(fd, set=attrs, propagation=kernel.MS_PRIVATE, recursive=self.recursive)


class OpenVolume(Step):
    man = "open_tree(2), mount_setattr(2)"
    why = "The volume is opened here, as the host sees it; inside, only its descriptor is known."
    source: str
    handle: str
    readonly: bool = False
    attrs: int = 0
    make: bool = False
    seed: str = ""  # a new volume gets what the root has here
    staging: str = ""  # where it is made until it is whole
    ids: tuple[int, int] = (0, 0)  # whose a new volume is
    ident: str = ""  # of the member whose own it is, and whose data it is part of
    hints = {
        ENOENT: "the source must exist",
        ENOSYS: "mount_setattr came with Linux 5.12",
        ENOTDIR: "the root has a file where the volume's directory must be",
        ELOOP: "the root has a symlink on the way to the volume's target: name the real directory",
    }

    def call(self) -> str:
        attrs = kernel.flag_names(self._attrs(), kernel.MOUNT_ATTRS)
        copy = f"cp -a rootfs{self.seed}/. {self.source}; " if self.seed else ""
        return f'{copy}open_tree(AT_FDCWD, "{self.source}", OPEN_TREE_CLONE|AT_RECURSIVE); mount_setattr({self.handle}, {attrs})'

    def _attrs(self) -> int:
        return self.attrs | kernel.MOUNT_ATTR_NODEV | (kernel.MOUNT_ATTR_RDONLY if self.readonly else 0)

    def calls(self) -> list[str]:
        return ["open_tree", "mount_setattr"]

    def shell(self) -> str:
        if self.seed:
            return f"mkdir -p {sh_quote(self.source)}   # new, it gets what the root has at {self.seed}"
        return f"mkdir -p {sh_quote(self.source)}" if self.make else f"test -e {sh_quote(self.source)}"

    def check(self) -> str:
        return "cat /proc/PID/mountinfo"

    def do(self, run: Run) -> None:
        if self.make and not os.path.isdir(self.source):
            if self.ident:
                run.need_data(self.ident)
            make_directory(os.path.dirname(self.source))
            if self.seed:
                from nsrun.host.copy import seed_volume

                seed_volume(run.fd("rootfs:fd"), self.seed, self.source, self.staging, self.ids)
            else:
                os.makedirs(self.source, 0o755, exist_ok=True)
                os.chmod(self.source, 0o755)  # whatever the umask
                os.chown(self.source, *self.ids)
        fd = run.hold(self.handle, kernel.open_tree(self.source, recursive=True))
        kernel.mount_setattr(fd, set=self._attrs(), propagation=kernel.MS_PRIVATE, recursive=True)

    def undo(self, run: Run) -> None:
        if self.ident and "again" not in run.values:
            run.drop_data(self.ident)


class OpenDevice(Step):
    why = "One node of the host's, as a mount of its own: the rest of the member stays nodev."
    man = "open_tree(2), mount_setattr(2)"
    source: str
    handle: str
    hints = {ENOENT: "is its module loaded?", EINVAL: "it is no device node"}

    def call(self) -> str:
        attrs = kernel.flag_names(self._attrs, kernel.MOUNT_ATTRS)
        return f'open_tree(AT_FDCWD, "{self.source}", OPEN_TREE_CLONE); mount_setattr({self.handle}, {attrs})'

    _attrs = kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NOEXEC

    def calls(self) -> list[str]:
        return ["open_tree", "mount_setattr"]

    def shell(self) -> str:
        return f"test -b {sh_quote(self.source)} -o -c {sh_quote(self.source)}"

    def check(self) -> str:
        return "cat /proc/PID/mountinfo"

    def do(self, run: Run) -> None:
        import stat

        fd = run.hold(self.handle, kernel.open_tree(self.source))
        mode = os.fstat(fd).st_mode
        if not stat.S_ISCHR(mode) and not stat.S_ISBLK(mode):
            raise KernelError(EINVAL, f'open_tree("{self.source}"): a device')
        kernel.mount_setattr(fd, set=self._attrs, clear=kernel.MOUNT_ATTR_NODEV, propagation=kernel.MS_PRIVATE)


class OpenStdio(Step):
    """Pipes for a member's stdout and stderr (and stdin), owned by its user so that /dev/stdout can be re-opened."""

    why = "Pipes, never the caller's own terminal; they belong to the member's user, who may re-open /dev/stdout."
    man = "pipe(7), fchown(2)"
    stdin: bool
    uid: int = 0

    def call(self) -> str:
        return f"pipe2(out); pipe2(err){'; pipe2(in)' if self.stdin else ''}; fchown(…, {self.uid}, -1)"

    def calls(self) -> list[str]:
        return []

    def check(self) -> str:
        return "ls -l /proc/PID/fd"

    def do(self, run: Run) -> None:
        for name in ("out", "err"):
            read, write = os.pipe2(os.O_CLOEXEC)
            run.hold(f"{name}:read", read), run.hold(f"{name}:write", write)
        if self.stdin:
            read, write = os.pipe2(os.O_CLOEXEC)
            run.hold("in:read", read), run.hold("in:write", write)
        else:
            run.hold("in:read", os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
        run.stdio = ("in:read", "out:write", "err:write")
        if self.uid:
            for name in run.stdio[0 if self.stdin else 1 :]:
                os.fchown(run.fd(name), self.uid, -1)


class InheritStdio(Step):
    why = "The caller of the library is the parent: its own descriptors become the member's."
    man = "dup2(2)"
    fds: tuple[int, int, int]

    def call(self) -> str:
        return f"dup2({self.fds[0]}, 0); dup2({self.fds[1]}, 1); dup2({self.fds[2]}, 2)"

    def calls(self) -> list[str]:
        return []

    def do(self, run: Run) -> None:
        for name, fd in zip(("in:read", "out:write", "err:write"), self.fds, strict=True):
            run.hold(name, os.dup(fd))
        run.stdio = ("in:read", "out:write", "err:write")


class OpenTerminal(Step):
    why = "A terminal of the member's own: its devpts is new, and the master never leaves the host (CVE-2025-52565)."
    man = "pty(7), ioctl_tty(2) TIOCGPTPEER"
    uid: int = 0
    member: str = ""  # exec: the handle of the member, which has a devpts already
    tty: bool = True  # the pod has a gid 5

    def call(self) -> str:
        if self.member:
            return 'open("ptmx" in the member\'s devpts); ioctl(master, TIOCGPTPEER)'
        group = "mode=0620,gid=5" if self.tty else "mode=0600"
        return f'fsmount(fsopen("devpts"), "newinstance,ptmxmode=0666,{group}"); openat("ptmx"); ioctl(TIOCGPTPEER)'

    def calls(self) -> list[str]:
        return [] if self.member else ["fsopen", "fsmount"]

    def check(self) -> str:
        return "ls -l /proc/PID/fd/0; tty"

    def do(self, run: Run) -> None:
        from fcntl import ioctl

        if self.member:
            pid = run.values[f"{self.member}:pid"]
            root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                devpts = run.hold("devpts:fd", kernel.open_in_root(root, "/dev/pts", os.O_PATH | os.O_DIRECTORY))
            finally:
                os.close(root)
            if kernel.fs_magic(devpts) != kernel.DEVPTS_MAGIC:
                raise KernelError(ENODEV, "the member's /dev/pts is no devpts")
        else:
            options = [("newinstance", ""), ("ptmxmode", "0666")]
            options += [("mode", "0620"), ("gid", "5")] if self.tty else [("mode", "0600")]
            attrs = kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NOEXEC
            devpts = run.hold("devpts:fd", kernel.mount_new("devpts", options, attrs))
        master = run.hold("tty:master", os.open("ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=devpts))
        ioctl(master, 0x40045431, b"\0\0\0\0")  # TIOCSPTLCK
        for fd in (0, 1, 2):  # its first size is ours, whichever of them is a terminal
            try:
                ioctl(master, 0x5414, ioctl(fd, 0x5413, bytes(8)))  # TIOCSWINSZ, TIOCGWINSZ
                break
            except OSError:
                continue
        slave = run.hold("tty:slave", ioctl(master, 0x5441, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
        os.fchown(slave, self.uid, -1)
        run.stdio = ("tty:slave", "tty:slave", "tty:slave")


class ListenForAttach(Step):
    why = "`nsrun attach` comes in here; a path that only root reaches, never an abstract name."
    man = "unix(7)"

    def call(self) -> str:
        return 'bind(socket(AF_UNIX, SOCK_SEQPACKET), "members/NAME/attach"); listen(4)'

    def calls(self) -> list[str]:
        return ["bind"]

    def do(self, run: Run) -> None:
        import _socket

        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
        directory = os.open(run.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                os.unlink(f"{run.directory}/attach")
            except FileNotFoundError:
                pass
            sock.bind(f"/proc/self/fd/{directory}/attach")  # a path of any length: sun_path holds 108 bytes
            sock.listen(4)
        finally:
            os.close(directory)
        run.hold("attach:fd", sock.detach())


# ---- 2 Host ------------------------------------------------------------------------------------------------

_READ_ONLY = "the cgroup tree is read-only here; NSRUN_CGROUP=none makes pods that go without cgroups"


class MakeCgroup(Step):
    phase = HOST
    why = "A cgroup of its own: it is killed as a whole, and stopping it touches nobody else (moby#50523)."
    man = "cgroups(7)"
    path: str
    limits: dict[str, str]
    whole: str = ""  # of a pod: the directory above, which goes with it
    pod: int | None = None  # of a member: the inode number of the pod's, from its note (0: unknown)
    hints = {
        EBUSY: "processes lie in a parent cgroup: controllers can't be enabled there",
        EACCES: _READ_ONLY,
        EROFS: _READ_ONLY,
        ENODEV: "another file system lies where cgroup v2 has to be mounted: nsrun doctor",
    }

    def call(self) -> str:
        extra = "".join(f"; {key}.max = {value}" for key, value in self.limits.items())
        return f'mkdir("{self.path}", 0755){extra}'

    def calls(self) -> list[str]:
        return []

    def shell(self) -> str:
        if not self.path:
            return "CGROUP=   # there are none here"
        lines = [f'CGROUP={sh_quote(self.path + ".shell")}; mkdir -p "$CGROUP"']
        lines += [
            f'echo {sh_quote(v)} >"$CGROUP/{ {"memory": "memory.max", "cpus": "cpu.max", "pids": "pids.max"}[k] }"'
            for k, v in self.limits.items()
        ]
        return "\n".join(lines)

    def check(self) -> str:
        return f"cat {self.path}/cgroup.procs"

    def do(self, run: Run) -> None:
        from nsrun.host import cgroup

        directory = cgroup.make(self.path, self.limits, self.pod)
        if self.whole:
            cgroup.offer(self.whole)
        if directory >= 0:
            run.hold("cgroup:dir", directory)
            above = os.open("..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
            run.hold("cgroup:parent", above)
            run.values["cgroup:name"] = os.path.basename(self.path)
            run.values["cgroup:id"] = os.fstat(directory).st_ino
            run.values["cgroup:pod_id"] = os.fstat(above).st_ino

    def undo(self, run: Run) -> None:
        from nsrun.host import cgroup

        if self.whole:  # its name holds the pod's id: nobody else's
            cgroup.remove(self.whole, int(run.values.get("cgroup:pod_id", 0)), kill=True)
        elif "cgroup:id" in run.values:
            # and the pod's, if what removed the pod met it in there
            cgroup.remove_member(self.path, int(run.values["cgroup:id"]))
        cgroup.remove_empty(run.state)


class OpenCgroup(Step):
    phase = HOST
    why = "What is started in a member belongs to its cgroup, and ends with it."
    man = "cgroups(7)"
    path: str
    ident: int = 0  # its inode number, from the note (0: unknown)

    def call(self) -> str:
        return f'open("{self.path}", O_DIRECTORY)'

    def calls(self) -> list[str]:
        return []

    def shell(self) -> str:
        return f"CGROUP={sh_quote(self.path)}"

    def check(self) -> str:
        return f"cat {self.path}/cgroup.procs"

    def do(self, run: Run) -> None:
        if self.path:
            from nsrun.host import cgroup

            run.hold("cgroup:dir", cgroup.open_pod(self.path, self.ident))


class LimitPod(Step):
    """Limits of the whole pod: on the directory above pause's and the members'."""

    phase = HOST
    why = "The pod's limits hold for all members together."
    man = "cgroups(7)"
    path: str
    limits: dict[str, str]
    hints = MakeCgroup.hints

    def call(self) -> str:
        return f'mkdir("{self.path}", 0755)' + "".join(f"; {k}.max = {v}" for k, v in self.limits.items())

    def calls(self) -> list[str]:
        return []

    def check(self) -> str:
        return f"cat {self.path}/*.max"

    def do(self, run: Run) -> None:
        from nsrun.host import cgroup

        fd = cgroup.make(self.path, self.limits)
        if fd >= 0:
            os.close(fd)

    def undo(self, run: Run) -> None:
        from nsrun.host import cgroup

        cgroup.remove(self.path)


# ---- 3 Join ------------------------------------------------------------------------------------------------


class Launch(Step):
    """setns, clone3, setns back (csrc/kernel.c); then nsrun-init runs phase 4 and says how it went."""

    phase = JOIN
    man = "setns(2), clone3(2), cgroups(7)"
    join: str = ""
    join_flags: int = 0
    clone_flags: int = 0
    detach: bool = False
    user: str = ""  # a user namespace to join first
    door: str = ""  # who does it for us, in the pod's cgroup
    locks: tuple[str, ...] = ()  # files by whose locks others know that what is started here (or its monitor) lives
    nested: bool = False  # we are root of a user namespace: we may have no power over what we would go back to
    hints = {
        ENOMEM: "the pod's PID 1 is dead: nothing can be started in its PID namespace any more",
        ESRCH: "the pod's PID 1 has just died",
        EPERM: "needs root (CAP_SYS_ADMIN); a seccomp profile or AppArmor may forbid namespaces: nsrun doctor",
        ENOSPC: "a limit on namespaces is reached: /proc/sys/user/max_*_namespaces",
        ENOENT: "this is another cgroup namespace than the pod's, and the kernel lets no process out of it (nsdelegate)",
        11: "the pids limit of this cgroup or user is reached",
    }

    @property
    def why(self) -> str:  # type: ignore[override]
        if self.door:
            return "nsrun-door forks the monitor; a helper of it joins, and makes nsrun-init the monitor's child, born in the member's cgroup."
        if self.one_way:
            become = "joins it, becomes its root," if self._becomes else "joins the pod"
            return f"Nobody comes back from a user namespace, or to what is outside of ours: a helper {become} and makes nsrun-init our child."
        return (
            "One call joins them all or none; the clone is born inside, in its cgroup, and we go back out, so that we never pin the pod."
            if self.join_flags
            else "The clone is born in new namespaces; nothing of nsrun itself enters them."
        )

    @property
    def one_way(self) -> bool:
        return bool(self.user or self.nested or self.join_flags & kernel.CLONE_NEWUSER)

    @property
    def _becomes(self) -> bool:
        """Does nsrun-init become root of a user namespace that it was not in?"""
        return not self.door and bool(self.user or self.join_flags & kernel.CLONE_NEWUSER)

    def call(self) -> str:
        keyring, session = ("", "") if self.door else (f"{OWN_KEYRING}; ", "setsid(); ")
        join = f"setns({self.user}, CLONE_NEWUSER); " if self.user else ""
        join += f"setns({self.join}, {kernel.flag_names(self.join_flags, kernel.CLONE_FLAGS)}); " if self.join else ""
        flags = kernel.flag_names(self.clone_flags, kernel.CLONE_FLAGS)
        clone = "CLONE_VM|CLONE_VFORK|CLONE_PIDFD|CLONE_INTO_CGROUP" + (f"|{flags}" if self.clone_flags else "")
        if self.door or self.one_way:
            clone = clone.replace("CLONE_VM|CLONE_VFORK", "CLONE_PARENT")
            how = f"sendmsg({self.door}, SCM_RIGHTS); " if self.door else "clone3(CLONE_FILES|CLONE_VM|CLONE_VFORK); "
            ids = "setgroups(0, []); setresgid(0, 0, 0); setresuid(0, 0, 0); " if self._becomes else ""
            return f'{how}{keyring}{join}clone3({clone}); {session}{ids}execveat(init:fd, "", ["nsrun-init"], [], AT_EMPTY_PATH)'
        return f'{join}clone3({clone}); {session}{keyring}execveat(init:fd, "", ["nsrun-init"], [], AT_EMPTY_PATH)' + (
            "; setns(back)" if self.join else ""
        )

    def calls(self) -> list[str]:
        """Outside; nsrun-init's own first call is the execveat."""
        if self.door:
            # the plan, the request; what door does is not ours to trace
            return ["memfd_create", "memfd_create"]
        if self.one_way:
            joins = ["keyctl", *["setns"] * (bool(self.user) + bool(self.join)), "clone3", "setsid"]
            joins += ["setgroups", "setresgid", "setresuid"] if self._becomes else []
            return [
                "memfd_create",
                *(["clone3", "setsid"] if self.detach else []),
                "clone3",
                *joins,
                *(["chdir", "execveat"] if self.detach else []),
            ]
        back = ["setns"] * bin(self.join_flags).count("1") if self.join else []
        calls = ["memfd_create", *(["setns"] if self.join else []), "clone3", "setsid", "keyctl", *back]
        return [calls[0], "clone3", "setsid", *calls[1:], "chdir", "execveat"] if self.detach else calls

    def check(self) -> str:
        return "ls -l /proc/PID/ns"

    def do(self, run: Run) -> None:
        run.launch(self)

    def undo(self, run: Run) -> None:
        run.kill_launched()


# ---- 5 Commit ----------------------------------------------------------------------------------------------


class WriteNote(Step):
    phase = COMMIT
    why = "From here on nsrun ls knows it. The note names a process for people; a lock on `held` says whether it lives."
    man = "rename(2)"
    kind: str
    name: str
    note: dict[str, Any]
    hints = {ENOSPC: "the disk that holds nsrun's state is full"}

    def call(self) -> str:
        return f'rename("{self.kind}/{self.name}/note.tmp", "{self.kind}/{self.name}/note")'

    def check(self) -> str:
        return f"nsrun {'pod ' if self.kind == 'pods' else ''}inspect {self.name}"

    def do(self, run: Run) -> None:
        state = run.state
        process = state.identify(run.pid)
        if self.kind == "pods":
            note = {**self.note, "pause": process, "pause_fd": run.pidfd, "ports": run.ports}
            note["namespaces"] = kernel.namespace_ids(run.pid)
            if "pod:ip" in run.values:
                from nsrun.host.net import veth_name

                ip = str(run.values["pod:ip"])
                note["network"] = {
                    **note["network"],
                    "ip": ip,
                    "gateway": run.values["pod:gateway"],
                    "veth": veth_name(ip),
                    "veth_index": run.values["veth:index"],
                    "netns": run.values["host:netns"],
                }
        else:
            note = {**self.note, "process": process, "pidfd": run.monitors_pidfd()}
        if "lock:held" in run.handles:
            note["held"] = os.fstat(run.fd("lock:held")).st_ino  # by which another file in its place is told from it
        note["cgroup_id"] = run.values.get("cgroup:pod_id" if self.kind == "pods" else "cgroup:id", 0)
        if self.kind == "members" and "lock:data" in run.handles:
            state.commit_data(note)
        run.note = note
        state.save(self.kind, self.name, note)
        if self.kind == "pods" and note.get("user") and not state.uid:
            state.show(note)
        if self.kind == "members" and state.is_being_removed(self.note["pod"]):
            raise BadInput(f"pod {self.note['pod']!r} is being removed", hint="nsrun pod ls")


class Release(Step):
    phase = COMMIT
    why = "Only now the program starts: had we died before, nothing would be left."
    man = "socketpair(2), unix(7) SOCK_SEQPACKET"

    def call(self) -> str:
        return 'send(channel, "G"); recv(channel)   # end of file: exec succeeded'

    def calls(self) -> list[str]:
        return []

    def do(self, run: Run) -> None:
        run.release()
        if run.directory:
            # A note alone does not tell what ended unseen from what never began.
            kind, name = run.directory.rsplit("/", 2)[1:]
            run.state.mark(kind, name, "started")


class HandOver(Step):
    phase = COMMIT
    man = "execveat(2)"
    detach: bool

    @property
    def why(self) -> str:  # type: ignore[override]
        if self.detach:
            return "The monitor is the member's parent; it learns that all is well, and Python ends."
        return "Python is no longer needed: it becomes the monitor, some tens of KiB, with the same pid."

    def call(self) -> str:
        return 'write(go, "G")' if self.detach else 'execveat(monitor:fd, "", ["nsrun-monitor", …], AT_EMPTY_PATH)'

    def calls(self) -> list[str]:
        return [] if self.detach else ["execveat"]

    def check(self) -> str:
        return "pgrep -a nsrun-monitor"

    def do(self, run: Run) -> None:
        run.hand_over(self.detach)
