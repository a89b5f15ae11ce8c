# SPDX-License-Identifier: Apache-2.0
"""Steps that make a process: what it is started from, its streams, its launch, its ids and powers, and its exec."""

from __future__ import annotations

import os
from errno import (
    EACCES,
    EBUSY,
    EINVAL,
    ENODEV,
    ENOENT,
    ENOMEM,
    ENOSPC,
    EPERM,
    ESRCH,
)
from stat import S_ISCHR

from nsrun import kernel
from nsrun._protocol import KEEPER
from nsrun.errors import KernelError, UnknownError
from nsrun.linux import RESOURCES, UNLIMITED, capability_names
from nsrun.plan import COMMIT, JOIN, OWN_KEYRING, InitStep, Part, Step, sh_quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from nsrun.plan import Compiling, Context, Replayed


def sealed(handle: str, name: str, kind: str = "MFD_NOEXEC_SEAL") -> list[str | Part]:
    """What kernel.c nsrun_sealed_memfd() does."""
    seals = "F_SEAL_SEAL|F_SEAL_SHRINK|F_SEAL_GROW|F_SEAL_WRITE|F_SEAL_EXEC"
    return [
        f'{handle} = memfd_create("{name}", MFD_ALLOW_SEALING|{kind})',
        f"fcntl({handle}, F_ADD_SEALS, {seals})",
    ]


class OpenProcess(Step):
    """pidfd of pause, or of a member."""

    why = (
        "A pidfd stands for one process for good, where a pid may be reused: once that has ended, every use gives ESRCH. "
        "The lock on the file `held` tells which process it is."
    )
    man = "pidfd_open(2), fcntl(2) F_GETLK"
    what: str
    note: Mapping[str, Any]  # of the pod, or of the member
    member: bool
    handle: str
    hints = {ESRCH: "it has just ended"}

    @property
    def pid(self) -> object:
        """What the note says, for people."""
        return (self.note.get("process" if self.member else "pause") or ["PID"])[0]

    def made(self) -> list[str | Part]:
        return [f"{self.handle} = pidfd_open({self.what}, 0)"]

    def makes(self) -> tuple[str, ...]:
        return (self.handle,)

    def shell(self) -> str:
        return f"POD=${{POD:-{self.pid}}}   # {self.what}"

    approx = "a number instead of a descriptor"

    def check(self) -> str:
        return "ps -p PID"

    def replayed(self, compiler: Compiling) -> list[Replayed]:
        return [("process", *compiler.process(self.handle), compiler.make(self.handle))]

    def do(self, run: Context) -> None:
        fd, pid = (run.state.process if self.member else run.state.pause)(self.note)
        if fd < 0:
            raise UnknownError(f"{self.what} is dead: its process has ended", hint="nsrun pod ls, nsrun ls -a")
        run.hold(self.handle, fd)
        run.values[f"{self.handle}:pid"] = pid


class LoadProgram(Step):
    many = "{} programs are loaded"
    why = "The program is a sealed copy in memory, so that no member reaches a file of the host through /proc/PID/exe (CVE-2019-5736)."
    man = "memfd_create(2), fcntl(2) F_ADD_SEALS"
    program: str
    handle: str
    hints = {
        ENOENT: "the installation is incomplete: build nsrun again (make build)",
        EACCES: "vm.memfd_noexec is 2: programs in memory are forbidden here, and only root can have them otherwise:"
        " sudo sysctl vm.memfd_noexec=1; or let root make the pod: sudo nsrun pod create",
    }

    def made(self) -> list[str | Part]:
        return sealed(self.handle, self.program, "MFD_EXEC")

    def brief(self) -> str:
        return f'memfd_create("{self.program}", MFD_ALLOW_SEALING|MFD_EXEC)'

    def thing(self) -> str:
        return self.program

    def makes(self) -> tuple[str, ...]:
        return (self.handle,)

    def check(self) -> str:
        return "readlink /proc/PID/exe   # memfd: (deleted)"

    def replayed(self, compiler: Compiling) -> list[Replayed]:
        path = f"{kernel.LIBEXEC}/{self.program}"
        return [compiler.same_file(path), ("program", path, self.program, compiler.make(self.handle))]

    def do(self, run: Context) -> None:
        run.hold(self.handle, kernel.load_program(self.program))


class LoadFilter(Step):
    why = "The filter was compiled earlier; nsrun-init receives BPF bytes and needs no libseccomp."
    man = "seccomp(2), memfd_create(2)"
    name: str  # of the compiled filter
    profile: str  # "": ours
    caps: int

    def made(self) -> list[str | Part]:
        return [*sealed("seccomp:fd", "seccomp"), f"# {self.profile or 'the default profile'}"]

    def brief(self) -> str:
        return f'memfd_create("seccomp", MFD_ALLOW_SEALING)   # {self.profile or "the default profile"}'

    def makes(self) -> tuple[str, ...]:
        return ("seccomp:fd",)

    def replayed(self, compiler: Compiling) -> list[Replayed]:
        return [("memory", "seccomp", compiler.content("seccomp:fd"), compiler.make("seccomp:fd"))]

    def do(self, run: Context) -> None:
        from nsrun import seccomp

        data = seccomp.compiled(run.state, self.name, self.profile, self.caps)
        run.hold("seccomp:fd", kernel.sealed_memfd("seccomp", data))


class OpenStdio(Step):
    """Pipes for a member's stdout and stderr (and stdin), owned by its user so that /dev/stdout can be re-opened."""

    why = "The member gets pipes and never the caller's own terminal; they belong to its user, who may open /dev/stdout again."
    man = "pipe(7), fchown(2)"
    stdin: bool
    uid: int = 0

    def made(self) -> list[str | Part]:
        names = ["out", "err", *(["in"] if self.stdin else [])]
        found: list[str | Part] = [f"pipe2({name}, O_CLOEXEC)" for name in names]
        if not self.stdin:
            found.append('in:read = open("/dev/null", O_RDONLY)')
        ends = ["in:read"] * self.stdin + ["out:write", "err:write"]
        return found + [f"fchown({end}, {self.uid}, -1)" for end in ends if self.uid]

    def makes(self) -> tuple[str, ...]:
        streams = ("out:read", "out:write", "err:read", "err:write", "in:read")
        return (*streams, "in:write") if self.stdin else streams

    def check(self) -> str:
        return "ls -l /proc/PID/fd"

    def replayed(self, compiler: Compiling) -> list[Replayed]:
        found: list[Replayed] = []
        for name, owned in (("out", "write"), ("err", "write"), *([("in", "read")] if self.stdin else [])):
            ends = {end: compiler.make(f"{name}:{end}") for end in ("read", "write")}
            found.append(("pipe", *ends.values(), ends[owned], self.uid))
        if not self.stdin:
            found.append(("null", compiler.make("in:read"), os.O_RDONLY))
        compiler.stdio = ("in:read", "out:write", "err:write")
        return found

    def do(self, run: Context) -> None:
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
    why = "The caller of the library is the parent, and its own descriptors become those of the member."
    man = "dup2(2)"
    fds: tuple[int, int, int]

    def made(self) -> list[str | Part]:
        names = ("in:read", "out:write", "err:write")
        return [f"{name} = dup({fd})" for name, fd in zip(names, self.fds, strict=True)]

    def makes(self) -> tuple[str, ...]:
        return ("in:read", "out:write", "err:write")

    def do(self, run: Context) -> None:
        for name, fd in zip(("in:read", "out:write", "err:write"), self.fds, strict=True):
            run.hold(name, os.dup(fd))
        run.stdio = ("in:read", "out:write", "err:write")


#: What open_ptmx does.
PTMX = (
    'ptmx = openat2(devpts:fd, "ptmx", O_PATH, RESOLVE_NO_XDEV|RESOLVE_NO_SYMLINKS)',
    "fstat(ptmx)   /* 5:2 */",
    'tty:master = open("/proc/self/fd/PTMX", O_RDWR|O_NOCTTY)',
)


def open_ptmx(devpts: int) -> int:
    """Return the master of a new terminal of a devpts.  Raise KernelError when something else is mounted over its ptmx.

    Only what was seen to be that device is opened: to open something else could wait for ever, or have an effect.
    """
    resolve = kernel.RESOLVE_NO_XDEV | kernel.RESOLVE_NO_SYMLINKS
    with kernel.Fd(kernel.open_in_root(devpts, "ptmx", os.O_PATH, resolve)) as fd:
        st = os.fstat(fd)
        if not S_ISCHR(st.st_mode) or st.st_rdev != os.makedev(5, 2):
            raise KernelError(ENODEV, "ptmx is not the device 5:2")
        return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)


class OpenTerminal(Step):
    why = "The member gets a terminal of its own from its own devpts, and the master never leaves the host (CVE-2025-52565)."
    man = "pty(7), ioctl_tty(2) TIOCGPTPEER"
    uid: int = 0
    member: str = ""  # exec: the handle of the member, which has a devpts already
    tty: bool = True  # the pod has a gid 5

    def made(self) -> list[str | Part]:
        found: list[str | Part] = []
        if self.member:
            found.append('devpts:fd = openat2(the root of the member, "/dev/pts", O_PATH|O_DIRECTORY, RESOLVE_IN_ROOT)')
        else:
            found += ['fs = fsopen("devpts", FSOPEN_CLOEXEC)', 'fsconfig(fs, FSCONFIG_SET_FLAG, "newinstance")']
            options = [("ptmxmode", "0666"), *([("mode", "0620"), ("gid", "5")] if self.tty else [("mode", "0600")])]
            found += [f'fsconfig(fs, FSCONFIG_SET_STRING, "{key}", "{value}")' for key, value in options]
            found += ["fsconfig(fs, FSCONFIG_CMD_CREATE)"]
            found += ["devpts:fd = fsmount(fs, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID|MOUNT_ATTR_NOEXEC)"]
        found += [*PTMX, "ioctl(tty:master, TIOCSPTLCK, 0)"]
        found += [Part(["ioctl(tty:master, TIOCSWINSZ, the size of it)"], when="we have a terminal")]
        return [*found, "tty:slave = ioctl(tty:master, TIOCGPTPEER)", f"fchown(tty:slave, {self.uid}, -1)"]

    def brief(self) -> str:
        return "open a terminal" + (" in the devpts of the member" if self.member else " in a new devpts")

    def needs(self) -> tuple[str, ...]:
        return (self.member,) if self.member else ()

    def makes(self) -> tuple[str, ...]:
        return ("devpts:fd", "tty:master", "tty:slave")

    def check(self) -> str:
        return "ls -l /proc/PID/fd/0"

    def replayed(self, compiler: Compiling) -> list[Replayed] | None:
        if not self.member:
            return None
        root = f"/proc/{compiler.process(self.member)[0]}/root"
        compiler.stdio = ("tty:slave", "tty:slave", "tty:slave")
        return [("terminal", root, self.uid, compiler.make("tty:master"), compiler.make("tty:slave"))]

    def do(self, run: Context) -> None:
        from fcntl import ioctl

        if self.member:
            pid = run.values[f"{self.member}:pid"]
            with kernel.Fd(os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as root:
                devpts = run.hold("devpts:fd", kernel.open_in_root(root, "/dev/pts", os.O_PATH | os.O_DIRECTORY))
            if kernel.fs_magic(devpts) != kernel.DEVPTS_MAGIC:
                raise KernelError(ENODEV, "the member's /dev/pts is no devpts")
        else:
            options = [("newinstance", ""), ("ptmxmode", "0666")]
            options += [("mode", "0620"), ("gid", "5")] if self.tty else [("mode", "0600")]
            attrs = kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NOEXEC
            devpts = run.hold("devpts:fd", kernel.mount_new("devpts", options, attrs))
        master = run.hold("tty:master", open_ptmx(devpts))
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
    why = "Here `nsrun attach` connects, by a path that only the user of nsrun reaches; an abstract name would be open to all."
    man = "unix(7)"

    def made(self) -> list[str | Part]:
        return [
            "attach:fd = socket(AF_UNIX, SOCK_SEQPACKET)",
            'bind(attach:fd, "members/NAME/attach")',
            "listen(attach:fd, 4)",
        ]

    def needs(self) -> tuple[str, ...]:
        return ()

    def makes(self) -> tuple[str, ...]:
        return ("attach:fd",)

    def replayed(self, compiler: Compiling) -> list[Replayed]:
        return [("listen", compiler.directory, compiler.make("attach:fd"))]

    def do(self, run: Context) -> None:
        import _socket

        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
        with kernel.Fd(os.open(run.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as directory:
            try:
                os.unlink(f"{run.directory}/attach")
            except FileNotFoundError:
                pass
            sock.bind(f"/proc/self/fd/{directory}/attach")  # a path of any length: sun_path holds 108 bytes
            sock.listen(4)
        run.hold("attach:fd", sock.detach())


#: What nsrun-monitor keeps, if it is there (nsrun.run.Run.monitor_arguments).
KEPT = (
    *("out:read", "err:read", "in:write", "tty:master", "cgroup:dir", "cgroup:parent", "attach:fd", "lock:held"),
    *("lock:data", "member:mnt", "directory:fd", "probe:fd", "init:fd", "seccomp:fd"),
)


class Launch(Step):
    """setns, clone3, setns back (csrc/kernel.c); then nsrun-init runs phase 4 and says how it went."""

    phase = JOIN
    man = "setns(2), clone3(2), cgroups(7)"
    native = "kernel.c nsrun_do_launch"
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
            return "nsrun-door forks the monitor; a helper joins the pod and makes nsrun-init the child of the monitor, born in the member's cgroup."
        if self.one_way:
            become = "joins it, becomes its root," if self._becomes else "joins the pod"
            return f"A process can't leave a user namespace, nor go back to what is outside of its own, so a helper {become} and makes nsrun-init our child."
        return (
            "One setns joins all namespaces or none; the clone is born inside, in its cgroup; nsrun then returns to its own, so it never keeps the pod alive."
            if self.join_flags
            else "The clone is born in new namespaces, and nsrun itself enters none of them."
        )

    @property
    def one_way(self) -> bool:
        return bool(self.user or self.nested or self.join_flags & kernel.CLONE_NEWUSER)

    @property
    def _becomes(self) -> bool:
        """Does nsrun-init become root of a user namespace that it was not in?"""
        return not self.door and bool(self.user or self.join_flags & kernel.CLONE_NEWUSER)

    def made(self) -> list[str | Part]:
        plan: list[str | Part] = sealed("plan:fd", "plan")
        if self.door:
            asked = [*plan, *sealed("request:fd", "request"), f"sendmsg({self.door}, SCM_RIGHTS)"]
            return [
                *asked,
                Part(self._apart("CLONE_PARENT"), by="nsrun-door"),
                "pidfd_send_signal(member:pidfd, 0)",
                "pidfd_send_signal(monitor:pidfd, 0)",
            ]
        middle = self._apart("CLONE_PARENT") if self.one_way else self._and_back()
        if not self.detach:
            return plan + middle
        monitor = [
            "setsid()",
            *self._lock(),
            *middle,
            'chdir("/")',
            'execveat(monitor:fd, "", ["nsrun-monitor", …], […], AT_EMPTY_PATH)',
        ]
        return [*plan, "clone3(CLONE_VM|CLONE_VFORK)", Part(monitor, by="the child, which becomes nsrun-monitor")]

    def _lock(self) -> list[str | Part]:
        """What stays proves by these locks that it lives; a member that writes nothing of its own has no lock:data."""
        found: list[str | Part] = []
        for name in self.locks:
            call = f"fcntl({name}, F_SETLK, F_RDLCK)"
            found.append(Part([call], when="it is there") if name == "lock:data" else call)
        return found

    def _clone(self, parent: str) -> str:
        into = kernel.flag_names(self.clone_flags, kernel.CLONE_FLAGS)
        flags = ["CLONE_VM|CLONE_VFORK|CLONE_PIDFD", parent, "CLONE_INTO_CGROUP", into if self.clone_flags else ""]
        return f"clone3({'|'.join(filter(None, flags))})"

    def _child(self, before: list[str]) -> Part:
        """What becomes nsrun-init, up to its exec."""
        last = 'execveat(init:fd, "", ["nsrun-init"], [], AT_EMPTY_PATH)'
        locks = [] if self.detach or self.door else self._lock()
        return Part([*locks, *before, last], by="its child")

    def _and_back(self) -> list[str | Part]:
        """csrc/join.h join_and_return()."""
        setns = f"setns({self.join}, {kernel.flag_names(self.join_flags, kernel.CLONE_FLAGS)})" if self.join else ""
        back: list[str | Part] = [
            f"setns(back, {name})" for name, bit in kernel.CLONE_FLAGS.items() if self.join_flags & bit
        ]
        child = self._child(["setsid()", OWN_KEYRING])
        nest: list[str | Part] = [self._clone(""), child]
        if self._nests:
            nest = [
                "clone3(CLONE_FILES|CLONE_VM|CLONE_VFORK)",
                Part([self._clone("CLONE_PARENT"), child], by="a helper in the pod"),
            ]
        return [*([setns] if setns else []), *nest, *(back if self.join else [])]

    def _apart(self, parent: str) -> list[str | Part]:
        """csrc/launch.h join_apart(): a helper joins, because it can't come back."""
        ids = ["setgroups(0, [])", "setresgid(0, 0, 0)", "setresuid(0, 0, 0)"] if self._becomes else []
        helper: list[str | Part] = [] if self.door else [OWN_KEYRING]
        helper += [f"setns({self.user}, CLONE_NEWUSER)"] if self.user else []
        flags = kernel.flag_names(self.join_flags, kernel.CLONE_FLAGS)
        helper += [f"setns({self.join}, {flags})"] if self.join else []
        clone: list[str | Part] = [self._clone(parent), self._child(["setsid()"] * (not self.door) + ids)]
        if self._nests:
            clone = ["clone3(CLONE_PARENT|CLONE_FILES|CLONE_VM|CLONE_VFORK)", Part(clone, by="a helper in the pod")]
        return ["clone3(CLONE_FILES|CLONE_VM|CLONE_VFORK)", Part(helper + clone, by="a helper")]

    @property
    def _nests(self) -> bool:
        """Is the PID namespace to be one inside the pod's?  clone3 makes it only for a process of the pod."""
        return bool(self.join_flags & self.clone_flags & kernel.CLONE_NEWPID)

    def brief(self) -> str:
        where = f" into the namespaces of {self.join or self.user}" if self.join or self.user else ""
        return f"clone nsrun-init{where}{' by nsrun-door' if self.door else ''}"

    def needs(self) -> tuple[str, ...]:
        """And what the steps of phase 4 need."""
        found = ["init:fd", *(name for name in (self.join, self.user, self.door) if name)]
        found += [f"{name}?" for name in self.locks]
        streams = ("in:read", "out:write", "err:write", "tty:slave")
        return (
            *found,
            "cgroup:dir?",
            "cgroup:parent?",
            *(["monitor:fd"] if self.detach or self.door else []),
            *(f"{name}?" for name in streams + KEPT),
        )

    def makes(self) -> tuple[str, ...]:
        found: tuple[str, ...] = ("channel:nsrun", "member:pidfd?", "member:mnt?", "directory:fd?", "null:fd?")
        if self.detach or self.door:
            found += ("go:write", "pidfd:slot")
        if self.door:
            found += ("monitor:pidfd", *(() if self.detach else ("lead:ours",)))
        return found

    def check(self) -> str:
        return "ls -l /proc/PID/ns"

    def replayed(self, compiler: Compiling) -> list[Replayed] | None:
        if self.one_way or self.door or (self.clone_flags and compiler.stdio[0]):  # a member with namespaces of its own
            return None
        return self.launched(compiler)

    def launched(self, compiler: Compiling) -> list[Replayed]:
        """Return the same for whoever has looked whether it can be replayed."""
        document, keep = compiler.document()
        pidfd = "pidfd:slot" if self.detach else "member:pidfd"
        plan, channel, slot = (compiler.make(name) for name in ("plan:fd", "channel:init", pidfd))
        join, cgroup, init = (compiler.fd(name) for name in (self.join, "cgroup:dir", "init:fd"))
        keep = sorted({*keep, plan, channel})
        found: list[Replayed] = [(*document, plan)]
        if not compiler.stdio[0]:
            found.append(("null", compiler.make("null:fd"), os.O_RDWR))
        stdio = [compiler.fd(name or "null:fd") for name in compiler.stdio]
        words: list[str] = []
        kept: list[int] = []
        if self.detach:
            go = [compiler.make(f"go:{end}") for end in ("read", "write")]
            found += [("open_directory", compiler.directory, compiler.make("directory:fd"))]
            found += [("channel", *go), ("null", slot, os.O_RDONLY)]
            words, kept = compiler.monitor({"pidfd": pidfd, "go": "go:read"})
        locks = [compiler.fd(name) for name in self.locks if compiler.fd(name) >= 0]
        numbers = (join, self.join_flags, cgroup, init, plan, channel, slot)
        program = compiler.fd("monitor:fd") if self.detach else -1
        return [*found, ("launch", *numbers, keep, stdio, program, words, kept, locks, self.clone_flags)]

    def do(self, run: Context) -> None:
        run.launch(self)

    def undo(self, run: Context) -> None:
        run.kill_launched()


class Undumpable(InitStep):
    why = "The processes of the pod must not read the memory or descriptors of nsrun-init while it still has some of the host's."
    man = "prctl(2) PR_SET_DUMPABLE"

    def made(self) -> list[str | Part]:
        return ["prctl(PR_SET_DUMPABLE, 0)"]

    def check(self) -> str:
        return "ls -l /proc/PID/fd   # from another member: Permission denied"


class Unshare(InitStep):
    why = "The member has a mount namespace of its own, so that nobody else sees what it mounts."
    man = "unshare(2)"
    flags: int

    def args(self, run: Context) -> Sequence[int]:
        return (self.flags,)

    def made(self) -> list[str | Part]:
        return [f"unshare({kernel.flag_names(self.flags, kernel.CLONE_FLAGS)})"]

    def check(self) -> str:
        return "readlink /proc/PID/ns/mnt /proc/1/ns/mnt   # two numbers"


class SetHostname(InitStep):
    why = "The UTS namespace has a host name of its own."
    man = "sethostname(2), uts_namespaces(7)"
    name: str

    def args(self, run: Context) -> Sequence[str]:
        return (self.name,)

    def made(self) -> list[str | Part]:
        return [f'sethostname("{self.name}", {len(self.name)})']

    def shell(self) -> str:
        return f"hostname {sh_quote(self.name)}"

    def check(self) -> str:
        return "nsenter --target PID --uts uname -n"


class SetLimit(InitStep):
    many = "{} resource limits are set"
    why = "A resource limit that can't be set is an error and is never left out silently."
    man = "prlimit(2)"
    resource: str
    soft: int
    hard: int
    hints = {
        EPERM: "a hard limit can't be raised without CAP_SYS_RESOURCE: ask for less (ulimit -H shows what there is)",
        EINVAL: "the soft limit is above the hard one",
    }

    def args(self, run: Context) -> Sequence[int]:
        return (RESOURCES[self.resource], self.soft, self.hard)

    def made(self) -> list[str | Part]:
        soft, hard = ("RLIM_INFINITY" if v == UNLIMITED else v for v in (self.soft, self.hard))
        return [f"prlimit64(0, RLIMIT_{self.resource.upper()}, {{{soft}, {hard}}})"]

    def thing(self) -> str:
        return self.resource

    def shell(self) -> str:
        soft, hard = ("unlimited" if v == UNLIMITED else v for v in (self.soft, self.hard))
        return f"prlimit --pid $$ --{self.resource}={soft}:{hard}"

    def check(self) -> str:
        return "cat /proc/PID/limits"


class NewSession(InitStep):
    why = "In a session of its own the member can't push keys into the caller's terminal (TIOCSTI)."
    man = "setsid(2), tty_ioctl(4)"
    terminal: bool = False

    def args(self, run: Context) -> Sequence[int]:
        return (int(self.terminal),)

    def made(self) -> list[str | Part]:
        return ["setsid()", *(["ioctl(0, TIOCSCTTY, 1)"] if self.terminal else [])]

    def check(self) -> str:
        return "ps -o pid,sid,tty -p PID"


class NewKeyring(InitStep):
    why = "The member gets an empty session keyring, so that it has no keys of the caller."
    man = "keyctl(2), session-keyring(7)"

    def made(self) -> list[str | Part]:
        return [OWN_KEYRING]


class SetUser(InitStep):
    why = "The bounding set comes first, then the groups, then the ids, because each needs a capability that the next one takes away."
    man = "capabilities(7), setresuid(2), setgroups(2)"
    hints = {
        EINVAL: "the pod's user namespace has no such id: cat /proc/PID/uid_map; a larger range in /etc/subuid, and the pod anew",
        EPERM: "it takes CAP_SETPCAP, CAP_SETUID and CAP_SETGID: nsrun doctor",
    }
    uid: int
    gid: int
    groups: tuple[int, ...]
    bounding: int
    keep_groups: bool = False  # the user namespace that we are in denies setgroups(2)

    def args(self, run: Context) -> Sequence[int | list[str]]:
        return (self.uid, self.gid, [str(g) for g in self.groups], self.bounding, int(self.keep_groups))

    def _groups(self) -> str:
        some = ", ".join(map(str, self.groups[:8])) + (", …" if len(self.groups) > 8 else "")
        return f"setgroups({len(self.groups)}, [{some}])"

    def made(self) -> list[str | Part]:
        drop = ["prctl(PR_CAPBSET_READ, CAP)", "prctl(PR_CAPBSET_DROP, CAP)"]
        return [
            Part(drop, each=f"CAP outside {self.bounding:#x}"),
            *([] if self.keep_groups else [self._groups()]),
            "prctl(PR_SET_KEEPCAPS, 1)",
            f"setresgid({self.gid}, {self.gid}, {self.gid})",
            f"setresuid({self.uid}, {self.uid}, {self.uid})",
        ]

    def brief(self) -> str:
        groups = "" if self.keep_groups else f"{self._groups()}; "
        return f"{groups}setresgid({self.gid}, {self.gid}, {self.gid}); setresuid({self.uid}, {self.uid}, {self.uid})"

    def check(self) -> str:
        return "grep -E 'Uid|Gid|Groups|CapBnd' /proc/PID/status"


class SetCapabilities(InitStep):
    why = "The member has only the capabilities that it is meant to have; inheritable and ambient ones stay empty (CVE-2022-29162)."
    man = "capabilities(7)"
    mask: int

    def args(self, run: Context) -> Sequence[int]:
        return (self.mask,)

    def made(self) -> list[str | Part]:
        return [
            "prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)",
            f"capset(permitted = effective = {self.mask:#x}, inheritable = 0)",
        ]

    def check(self) -> str:
        return "grep Cap /proc/PID/status"


class SetProfile(InitStep):
    why = "The AppArmor profile takes effect at the exec. nsrun-init checks that the file is on a real procfs, because an image could bring one of that name (CVE-2019-16884)."
    man = "apparmor(7), aa_change_onexec(2)"
    name: str
    hints = {
        ENOENT: "this kernel has no AppArmor, or no such profile is loaded: sudo aa-status; apparmor_parser -r FILE",
        EINVAL: "this kernel has no AppArmor: nsrun doctor; without it, leave apparmor= out",
        EACCES: "AppArmor does not allow this change of profile",
        EPERM: "AppArmor does not allow this change of profile",
    }

    def args(self, run: Context) -> Sequence[str]:
        return (f"exec {self.name}",)

    def made(self) -> list[str | Part]:
        return [
            'fd = openat(AT_FDCWD, "/proc/self/attr/apparmor/exec", O_WRONLY)',
            Part(['fd = openat(AT_FDCWD, "/proc/self/attr/exec", O_WRONLY)'], when="there is no such file"),
            f'write(fd, "exec {self.name}")',
        ]

    def shell(self) -> str:
        return ""

    approx = "aa-exec -p PROFILE before the command"

    def check(self) -> str:
        return "cat /proc/PID/attr/apparmor/current"


class NoNewPrivileges(InitStep):
    why = "From here on no set-user-ID program gives the member more privileges."
    man = "prctl(2) PR_SET_NO_NEW_PRIVS"

    def made(self) -> list[str | Part]:
        return ["prctl(PR_SET_NO_NEW_PRIVS, 1)"]

    def check(self) -> str:
        return "grep NoNewPrivs /proc/PID/status"


class SetFilter(InitStep):
    why = "System calls that a service never needs fail; where there are several filters, the strictest answer counts."
    man = "seccomp(2)"
    approx = "a shell can't load a filter"
    hints = {
        EINVAL: "the filter is not one that this kernel takes",
        EACCES: "without no-new-privileges only root may filter",
    }

    def args(self, run: Context) -> Sequence[int]:
        return (run.fd("seccomp:fd"),)

    def made(self) -> list[str | Part]:
        return [Part(["seccomp(SECCOMP_SET_MODE_FILTER, 0, FILTER)"], each="FILTER in seccomp:fd")]

    def needs(self) -> tuple[str, ...]:
        return ("seccomp:fd",)

    def check(self) -> str:
        return "grep Seccomp /proc/PID/status   # 2"


class ChangeDirectory(InitStep):
    why = "The ids are set already, so a directory that the user may not enter is an error."
    man = "chdir(2)"
    path: str
    hints = {ENOENT: "make it in the rootfs, or choose another with -w", EACCES: "the user may not enter it"}

    def args(self, run: Context) -> Sequence[str]:
        return (self.path,)

    def made(self) -> list[str | Part]:
        return [f'chdir("{self.path}")']

    def check(self) -> str:
        return "readlink /proc/PID/cwd"


#: What nsrun-init does before each exec: it says that all is done, and waits for the note to be written.
_WAIT = (
    "prctl(PR_SET_DUMPABLE, 0)",
    "write(channel, INIT_WAITS)",
    "read(channel)   /* GO, once the note is written */",
    "close_range(3, ~0, CLOSE_RANGE_CLOEXEC)",
)


class Execute(InitStep):
    """The last step: the member's own program.  nsrun-init waits for the commit before it."""

    why = "Once the note is written, nsrun-init becomes the command; only the descriptors 0, 1 and 2 survive."
    man = "execve(2), close_range(2)"
    argv: tuple[str, ...]
    env: tuple[str, ...]
    #: for the shell form: what the steps before it set, in one line
    user: tuple[int, int, tuple[int, ...]] = (0, 0, ())
    caps: int = 0
    no_new_privs: bool = False
    cwd: str = "/"
    hints = {EBUSY: "a shared library or the program is being written to"}

    def args(self, run: Context) -> Sequence[list[str]]:
        return (list(self.argv), list(self.env))

    def made(self) -> list[str | Part]:
        where = "" if "/" in self.argv[0] else "   /* in the first directory of PATH that has it */"
        return [*_WAIT, f"{self.brief()}{where}"]

    def brief(self) -> str:
        return f'execve("{self.argv[0]}", [{", ".join(f"{chr(34)}{a}{chr(34)}" for a in self.argv)}], [{len(self.env)} variables])'

    def shell(self) -> str:
        uid, gid, groups = self.user
        names = capability_names(self.caps)
        bounding = ",".join(["-all"] + [f"+{n}" for n in names])
        words = [
            "exec",
            "env",
            "-i",
            *map(sh_quote, self.env),
            '"$(command -v setpriv)"',
            "--inh-caps=-all",
            f"--bounding-set={bounding}",
        ]
        words += ["--no-new-privs"] if self.no_new_privs else []
        words += ['"$(command -v chroot)"', f"--userspec={uid}:{gid}", f"--groups={','.join(map(str, groups)) or gid}"]
        words += [
            '"$ROOT"',
            "/bin/sh",
            "-c",
            sh_quote('cd "$0" && exec "$@"'),
            sh_quote(self.cwd),
        ]
        return " ".join(words + [sh_quote(a) for a in self.argv])

    approx = "setpriv and chroot stand for capset, setresuid and pivot_root; a /bin/sh of the rootfs does the chdir"

    def check(self) -> str:
        return "ps -o pid,args -p PID; ls -l /proc/PID/fd"


class ExecutePause(InitStep):
    why = "Pause is executed from a sealed memfd, and holds the descriptors that must live as long as the pod."
    man = "execveat(2), memfd_create(2)"
    handle: str
    held: tuple[str, ...]

    def args(self, run: Context) -> Sequence[int | list[str]]:
        return (run.fd(self.handle), ["/pause"], [str(run.fd(h)) for h in self.held])

    def made(self) -> list[str | Part]:
        ports = [name for name in self.held if name.startswith("port:")]
        held = [name for name in self.held if len(ports) <= 8 or name not in ports[8:]]
        more = f" and {len(self.held) - len(held)} more ports" if len(held) < len(self.held) else ""
        keep = f"FD of {', '.join(held)}{more}, channel"
        return [
            *_WAIT,
            Part(["fcntl(FD, F_SETFD, 0)"], each=keep, times=len(self.held) + 1),
            f'execveat({self.handle}, "", ["/pause"], [], AT_EMPTY_PATH)',
        ]

    def brief(self) -> str:
        return f'execveat({self.handle}, "", ["/pause"], [], AT_EMPTY_PATH)'

    def needs(self) -> tuple[str, ...]:
        return (self.handle, *self.held)

    approx = "sleep stands for pause: it neither reaps nor holds the ports"

    def shell(self) -> str:
        return (
            "exec setpriv --reuid 65535 --regid 65535 --clear-groups --bounding-set=-all --inh-caps=-all sleep infinity"
        )

    def check(self) -> str:
        return "ps -o uid,pid,args -p PID; ls -l /proc/PID/fd"


class Release(Step):
    phase = COMMIT
    why = "Only now does the program start; had nsrun died before, nothing would be left."
    man = "socketpair(2), unix(7) SOCK_SEQPACKET"

    def made(self) -> list[str | Part]:
        return [
            "write(channel:nsrun, GO)",
            "read(channel:nsrun)   /* the end of the file means that the exec succeeded */",
        ]

    def needs(self) -> tuple[str, ...]:
        return ("channel:nsrun", "member:pidfd?")

    def replayed(self, compiler: Compiling) -> list[Replayed]:
        if not compiler.directory:
            return [("release", 0)]
        found: list[Replayed] = []
        if not compiler.stdio[0]:  # a pod: its name is all that there is to say
            return [("release", 1), ("file", f"{compiler.directory}/started", b""), ("go", -1, compiler.note["name"])]
        if compiler.fd("directory:fd") < 0:  # after the release nothing may fail that can be done before it
            found.append(("open_directory", compiler.directory, compiler.make("directory:fd")))
        return [*found, ("release", 0), ("file", f"{compiler.directory}/started", b"")]

    def do(self, run: Context) -> None:
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
            return "The monitor is the parent of the member; it learns that all is well, and nsrun ends."
        return "Python is no longer needed, so nsrun becomes the monitor, some tens of KiB, with the same pid."

    def made(self) -> list[str | Part]:
        if self.detach:
            return [
                Part(["write(go:write, GO)"], when="the member has a cgroup"),
                Part(["sendmsg(go:write, GO, SCM_RIGHTS)"], when="it has none"),
            ]
        tell = Part(["write(go:write, GO)"], when="a door started the monitor")
        keep = Part(
            ["fcntl(lock:held, F_SETLK, F_RDLCK)", "fcntl(lock:data, F_SETLK, F_RDLCK)"],
            when="we become what keeps a member",
        )
        return [tell, keep, 'execveat(monitor:fd, "", ["nsrun-monitor", …], […], AT_EMPTY_PATH)']

    def brief(self) -> str:
        return (
            "write(go:write, GO)"
            if self.detach
            else 'execveat(monitor:fd, "", ["nsrun-monitor", …], […], AT_EMPTY_PATH)'
        )

    def needs(self) -> tuple[str, ...]:
        if self.detach:
            return ("go:write", "member:mnt?")
        others = ("go:write", "lead:ours", "monitor:pidfd", "member:pidfd")
        return ("monitor:fd", *(f"{name}?" for name in others + KEPT))

    def makes(self) -> tuple[str, ...]:
        return () if self.detach else ("directory:fd?",)

    def check(self) -> str:
        return "pgrep -a nsrun-monitor"

    def replayed(self, compiler: Compiling) -> list[Replayed] | None:
        if self.detach:
            return [("go", compiler.fd("go:write"), compiler.note["name"])]
        argv, keep = compiler.monitor({"pidfd": "member:pidfd"})
        held = [fd for fd in map(compiler.fd, ("lock:held", "lock:data")) if fd >= 0]
        return [*(("lock", fd, KEEPER) for fd in held), ("become", compiler.fd("monitor:fd"), argv, keep)]

    def do(self, run: Context) -> None:
        run.hand_over(self.detach)
