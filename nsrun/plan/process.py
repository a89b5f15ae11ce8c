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

from nsrun import kernel
from nsrun.errors import KernelError, UnknownError
from nsrun.linux import RESOURCES, UNLIMITED, capability_names
from nsrun.plan import COMMIT, JOIN, OWN_KEYRING, InitStep, Step, sh_quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from nsrun.plan import Context


class OpenProcess(Step):
    """pidfd of pause, or of a member."""

    why = (
        "A pidfd names the process for good: a number may be reused, and a dead one gives ESRCH instead of a surprise. "
        "Which process it is, the lock on `held` tells."
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

    def call(self) -> str:
        return f"pidfd_open({self.what}, 0)"

    def shell(self) -> str:
        return f"POD=${{POD:-{self.pid}}}   # {self.what}"

    approx = "a number instead of a descriptor"

    def check(self) -> str:
        return "ps -p PID"

    def do(self, run: Context) -> None:
        fd, pid = (run.state.process if self.member else run.state.pause)(self.note)
        if fd < 0:
            raise UnknownError(f"{self.what} is dead: its process has ended", hint="nsrun pod ls, nsrun ls -a")
        run.hold(self.handle, fd)
        run.values[f"{self.handle}:pid"] = pid


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

    def do(self, run: Context) -> None:
        run.hold(self.handle, kernel.load_program(self.program))


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

    def do(self, run: Context) -> None:
        from nsrun import seccomp

        data = seccomp.compiled(run.state, self.name, self.profile, self.caps)
        run.hold("seccomp:fd", kernel.sealed_memfd("seccomp", data))


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
    why = "The caller of the library is the parent: its own descriptors become the member's."
    man = "dup2(2)"
    fds: tuple[int, int, int]

    def call(self) -> str:
        return f"dup2({self.fds[0]}, 0); dup2({self.fds[1]}, 1); dup2({self.fds[2]}, 2)"

    def calls(self) -> list[str]:
        return []

    def do(self, run: Context) -> None:
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

    def do(self, run: Context) -> None:
        run.launch(self)

    def undo(self, run: Context) -> None:
        run.kill_launched()


class Undumpable(InitStep):
    why = "What is already in the pod must not read our memory or descriptors while we still have the host's."
    man = "prctl(2) PR_SET_DUMPABLE"

    def call(self) -> str:
        return "prctl(PR_SET_DUMPABLE, 0)"

    def check(self) -> str:
        return "ls -l /proc/PID/fd   # from another member: Permission denied"


class Unshare(InitStep):
    why = "A copy of its own: what it mounts, nobody else sees."
    man = "unshare(2)"
    flags: int

    def args(self, run: Context) -> Sequence[int]:
        return (self.flags,)

    def call(self) -> str:
        return f"unshare({kernel.flag_names(self.flags, kernel.CLONE_FLAGS)})"

    def check(self) -> str:
        return "readlink /proc/PID/ns/mnt /proc/1/ns/mnt   # two numbers"


class SetHostname(InitStep):
    why = "The UTS namespace has a name of its own."
    man = "sethostname(2), uts_namespaces(7)"
    name: str

    def args(self, run: Context) -> Sequence[str]:
        return (self.name,)

    def call(self) -> str:
        return f'sethostname("{self.name}", {len(self.name)})'

    def shell(self) -> str:
        return f"hostname {sh_quote(self.name)}"

    def check(self) -> str:
        return "uname -n"


class SetLimit(InitStep):
    why = "A resource limit that can't be set is an error, never silence."
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

    def call(self) -> str:
        soft, hard = ("RLIM_INFINITY" if v == UNLIMITED else v for v in (self.soft, self.hard))
        return f"prlimit(0, RLIMIT_{self.resource.upper()}, {{{soft}, {hard}}})"

    def calls(self) -> list[str]:
        return ["prlimit64"]

    def shell(self) -> str:
        soft, hard = ("unlimited" if v == UNLIMITED else v for v in (self.soft, self.hard))
        return f"prlimit --pid $$ --{self.resource}={soft}:{hard}"

    def check(self) -> str:
        return "cat /proc/PID/limits"


class NewSession(InitStep):
    why = "A session of its own: it can't push keys into the caller's terminal (TIOCSTI)."
    man = "setsid(2), tty_ioctl(4)"
    terminal: bool = False

    def args(self, run: Context) -> Sequence[int]:
        return (int(self.terminal),)

    def call(self) -> str:
        return "setsid()" + ("; ioctl(0, TIOCSCTTY, 1)" if self.terminal else "")

    def check(self) -> str:
        return "ps -o pid,sid,tty -p PID"


class NewKeyring(InitStep):
    why = "Keys of the caller's session are not the member's."
    man = "keyctl(2), session-keyring(7)"

    def call(self) -> str:
        return OWN_KEYRING

    def check(self) -> str:
        return "cat /proc/keys"


class SetUser(InitStep):
    why = "Bounding set first, then groups, then ids: each needs a power that the next one takes away."
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

    def call(self) -> str:
        groups = f"setgroups({len(self.groups)}, [{', '.join(map(str, self.groups))}]); "
        ids = f"setresgid({self.gid}, {self.gid}, {self.gid}); setresuid({self.uid}, {self.uid}, {self.uid})"
        return ids if self.keep_groups else groups + ids

    def calls(self) -> list[str]:
        return [*([] if self.keep_groups else ["setgroups"]), "setresgid", "setresuid"]

    def check(self) -> str:
        return "grep -E 'Uid|Gid|Groups|CapBnd' /proc/PID/status"


class SetCapabilities(InitStep):
    why = "Only what was asked for; inheritable and ambient stay empty (CVE-2022-29162)."
    man = "capabilities(7)"
    mask: int

    def args(self, run: Context) -> Sequence[int]:
        return (self.mask,)

    def call(self) -> str:
        return f"capset(permitted = effective = {self.mask:#x}, inheritable = 0)"

    def calls(self) -> list[str]:
        return ["capset"]

    def check(self) -> str:
        return "grep Cap /proc/PID/status"


class SetProfile(InitStep):
    why = "From its exec on the member is confined by this AppArmor profile; the file is one of a real /proc, or it would go nowhere (CVE-2019-16884)."
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

    def call(self) -> str:
        return f'write(open("/proc/self/attr/apparmor/exec"), "exec {self.name}")'

    def calls(self) -> list[str]:
        return []

    def shell(self) -> str:
        return ""

    approx = "aa-exec -p PROFILE before the command"

    def check(self) -> str:
        return "cat /proc/PID/attr/apparmor/current"


class NoNewPrivileges(InitStep):
    why = "No setuid program can raise it any more."
    man = "prctl(2) PR_SET_NO_NEW_PRIVS"

    def call(self) -> str:
        return "prctl(PR_SET_NO_NEW_PRIVS, 1)"

    def check(self) -> str:
        return "grep NoNewPrivs /proc/PID/status"


class SetFilter(InitStep):
    why = "System calls that a service never needs end with an error; the kernel's answer is the strictest of all filters."
    man = "seccomp(2)"
    approx = "a shell can't load a filter"
    hints = {
        EINVAL: "the filter is not one that this kernel takes",
        EACCES: "without no-new-privileges only root may filter",
    }

    def args(self, run: Context) -> Sequence[int]:
        return (run.fd("seccomp:fd"),)

    def call(self) -> str:
        return "seccomp(SECCOMP_SET_MODE_FILTER, 0, …)   # each filter in seccomp:fd"

    def check(self) -> str:
        return "grep Seccomp /proc/PID/status   # 2"


class ChangeDirectory(InitStep):
    why = "After the ids: a directory that the user may not enter is an error."
    man = "chdir(2)"
    path: str
    hints = {ENOENT: "make it in the rootfs, or choose another with -w", EACCES: "the user may not enter it"}

    def args(self, run: Context) -> Sequence[str]:
        return (self.path,)

    def call(self) -> str:
        return f'chdir("{self.path}")'

    def check(self) -> str:
        return "readlink /proc/PID/cwd"


class Execute(InitStep):
    """The last step: the member's own program.  nsrun-init waits for the commit before it."""

    why = "nsrun-init turns into the member, once the note is written; only descriptors 0, 1, 2 survive."
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

    def call(self) -> str:
        words = ", ".join(f'"{a}"' for a in self.argv)
        return f'execve("{self.argv[0]}", [{words}], [{len(self.env)} variables])'

    def calls(self) -> list[str]:
        return ["close_range", "execve"]

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
    why = "Pause is executed from a sealed memfd, and holds what must live as long as the pod."
    man = "execveat(2), memfd_create(2)"
    handle: str
    held: tuple[str, ...]

    def args(self, run: Context) -> Sequence[int | list[str]]:
        return (run.fd(self.handle), ["/pause"], [str(run.fd(h)) for h in self.held])

    def call(self) -> str:
        ports = [name for name in self.held if name.startswith("port:")]
        held = [name for name in self.held if len(ports) <= 8 or name not in ports[8:]]
        more = f" and {len(self.held) - len(held)} more ports" if len(held) < len(self.held) else ""
        holds = f"   # it keeps {', '.join(held)}{more}" if held else ""
        return f'execveat({self.handle}, "", ["/pause"], [], AT_EMPTY_PATH){holds}'

    def calls(self) -> list[str]:
        return ["close_range", "execveat"]

    approx = "sleep stands for pause: it neither reaps nor holds the ports"

    def shell(self) -> str:
        return (
            "exec setpriv --reuid 65535 --regid 65535 --clear-groups --bounding-set=-all --inh-caps=-all sleep infinity"
        )

    def check(self) -> str:
        return "ps -o uid,pid,args -p PID; ls -l /proc/PID/fd"


class Release(Step):
    phase = COMMIT
    why = "Only now the program starts: had we died before, nothing would be left."
    man = "socketpair(2), unix(7) SOCK_SEQPACKET"

    def call(self) -> str:
        return 'send(channel, "G"); recv(channel)   # end of file: exec succeeded'

    def calls(self) -> list[str]:
        return []

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
            return "The monitor is the member's parent; it learns that all is well, and Python ends."
        return "Python is no longer needed: it becomes the monitor, some tens of KiB, with the same pid."

    def call(self) -> str:
        return 'write(go, "G")' if self.detach else 'execveat(monitor:fd, "", ["nsrun-monitor", …], AT_EMPTY_PATH)'

    def calls(self) -> list[str]:
        return [] if self.detach else ["execveat"]

    def check(self) -> str:
        return "pgrep -a nsrun-monitor"

    def do(self, run: Context) -> None:
        run.hand_over(self.detach)
