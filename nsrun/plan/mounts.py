"""Steps of phase 4: what nsrun-init does inside, before it becomes the member (csrc/init.c)."""

from __future__ import annotations

from errno import EACCES, EBUSY, EINVAL, ELOOP, ENODEV, ENOENT, ENOTDIR, EPERM, EROFS

from nsrun import kernel
from nsrun.plan import OWN_KEYRING, InitStep, sh_quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsrun.run import Run

#: In the shell form the new root is a directory, "$ROOT", in a mount namespace of its own.
RESOURCES = {
    "cpu": 0, "fsize": 1, "data": 2, "stack": 3, "core": 4, "rss": 5, "nproc": 6, "nofile": 7, "memlock": 8,
    "as": 9, "locks": 10, "sigpending": 11, "msgqueue": 12, "nice": 13, "rtprio": 14, "rttime": 15,
}  # fmt: skip
UNLIMITED = (1 << 64) - 1


def _c(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


class Undumpable(InitStep):
    op = "undumpable"
    why = "What is already in the pod must not read our memory or descriptors while we still have the host's."
    man = "prctl(2) PR_SET_DUMPABLE"

    def call(self) -> str:
        return "prctl(PR_SET_DUMPABLE, 0)"

    def check(self) -> str:
        return "ls -l /proc/PID/fd   # from another member: Permission denied"


class EnterMountNamespace(InitStep):
    op = "setns"
    man = "setns(2), mount_namespaces(7)"
    approx = (
        "nsenter --mount did it, where the shell's own programs are in view there; else a bind mount of /proc/PID/root"
    )
    handle: str
    reason: str = "Pause's mount namespace holds the pod's /dev/shm and files, and nothing of the host."
    flags: int = kernel.CLONE_NEWNS

    @property
    def why(self) -> str:  # type: ignore[override]
        return self.reason

    def args(self, run: Run) -> Sequence[int]:
        return (run.fd(self.handle), self.flags)

    def call(self) -> str:
        return f"setns({self.handle}, {kernel.flag_names(self.flags, kernel.CLONE_FLAGS)})"

    def check(self) -> str:
        return "readlink /proc/PID/ns/mnt"


class Unshare(InitStep):
    op = "unshare"
    why = "A copy of its own: what it mounts, nobody else sees."
    man = "unshare(2)"
    flags: int

    def args(self, run: Run) -> Sequence[int]:
        return (self.flags,)

    def call(self) -> str:
        return f"unshare({kernel.flag_names(self.flags, kernel.CLONE_FLAGS)})"

    def check(self) -> str:
        return "readlink /proc/PID/ns/mnt /proc/1/ns/mnt   # two numbers"


class MakePrivate(InitStep):
    op = "private"
    why = (
        "Host mounts are usually shared: without this, ours would appear on the host. "
        "And should nsrun run in a chroot, setns leads to the root of the mount namespace, which is the one to be left behind."
    )
    man = "mount_namespaces(7), setns(2), chroot(2)"

    def call(self) -> str:
        return 'setns(open("/proc/self/ns/mnt"), CLONE_NEWNS); mount(NULL, "/", NULL, MS_REC|MS_PRIVATE, NULL)'

    def calls(self) -> list[str]:
        return ["setns", "mount"]

    def shell(self) -> str:
        return "mount --make-rprivate /"

    def check(self) -> str:
        return "grep -c shared: /proc/self/mountinfo   # 0 inside"


class TmpfsRoot(InitStep):
    op = "tmproot"
    why = "Pause's root: empty, and in memory, so no path of the host is in view."
    man = "tmpfs(5), fsopen(2)"
    options: str
    at: str = "/proc"

    def args(self, run: Run) -> Sequence[str]:
        return (self.options, self.at)

    def call(self) -> str:
        return f'move_mount(fsmount(fsopen("tmpfs"), "{self.options}"), "", AT_FDCWD, "{self.at}", MOVE_MOUNT_F_EMPTY_PATH)'

    def calls(self) -> list[str]:
        return ["fsopen", "fsmount", "move_mount"]

    def shell(self) -> str:
        return f'mkdir -p "$ROOT"; mount -t tmpfs -o {self.options} tmpfs "$ROOT"'

    def check(self) -> str:
        return "head -1 /proc/PID/mountinfo   # tmpfs on /"


class AttachRoot(InitStep):
    op = "root"
    why = "The member's root gets a place in the mount tree, so that it can become /."
    man = "move_mount(2)"
    handle: str = "rootfs:fd"
    at: str = "/member"

    def args(self, run: Run) -> Sequence[int | str]:
        return (run.fd(self.handle), self.at)

    def call(self) -> str:
        return f'move_mount({self.handle}, "", AT_FDCWD, "{self.at}", MOVE_MOUNT_F_EMPTY_PATH)'

    def check(self) -> str:
        return "head -1 /proc/PID/mountinfo"


_READ_ONLY = "the target is missing below a volume that is read-only: make it in the volume first, or leave its :ro out"


class Mount(InitStep):
    op = "mount"
    man = "mount(8), fsopen(2)"
    fstype: str
    target: str
    options: str = ""
    attrs: int = 0
    reason: str = ""
    hints = {
        ELOOP: "the rootfs has a symlink there: mounting through it is refused, it could lead anywhere",
        ENOTDIR: "the rootfs has a file where a directory must be",
        ENODEV: "this kernel was built without that file system",
        EROFS: _READ_ONLY,
        EPERM: "a user namespace may mount proc and sysfs only where a whole one is in view: an engine's container masks parts"
        " of them (--security-opt systempaths=unconfined), and no sysfs shows a network namespace that is not its own",
    }

    @property
    def why(self) -> str:  # type: ignore[override]
        return self.reason or f"A fresh {self.fstype} shows the namespaces of whoever mounts it."

    def args(self, run: Run) -> Sequence[str | int]:
        return (self.fstype, self.target, self.options, self.attrs)

    def call(self) -> str:
        attrs = kernel.flag_names(self.attrs, kernel.MOUNT_ATTRS)
        return f'mount("{self.fstype}", "{self.target}", "{self.fstype}", {attrs}, "{self.options}")'

    def calls(self) -> list[str]:
        return ["fsopen", "fsmount", "move_mount"]

    def shell(self) -> str:
        words = [n[11:].lower().replace("rdonly", "ro") for n, bit in kernel.MOUNT_ATTRS.items() if self.attrs & bit]
        words += [self.options] if self.options else []
        option = f"-o {','.join(words)} " if words else ""
        return f'mkdir -p "$ROOT{self.target}"; mount -t {self.fstype} {option}{self.fstype} "$ROOT{self.target}"'

    def check(self) -> str:
        return f"grep ' {self.target} ' /proc/PID/mountinfo"


class MountTree(InitStep):
    """A volume: a tree that phase 1 opened on the host."""

    op = "tree"
    why = "The volume comes in as a descriptor; its place is found by the kernel inside the root."
    man = "move_mount(2), openat2(2)"
    handle: str
    target: str
    source: str
    readonly: bool = False
    hints = {
        ELOOP: "the target passes a symlink that was not there a moment ago, or that only the pod may look at: name the real directory",
        EROFS: _READ_ONLY,
        ENOTDIR: "the source is a directory and the target a file, or a part of the target is a file",
        21: "the source is a file and the target a directory",
    }

    def args(self, run: Run) -> Sequence[int | str]:
        return (run.fd(self.handle), self.target, 1)

    def call(self) -> str:
        return f'move_mount({self.handle}, "", openat2(rootfs, "{self.target}", RESOLVE_IN_ROOT), "")'

    def calls(self) -> list[str]:
        return ["move_mount"]

    def shell(self) -> str:
        source, target = sh_quote(self.source), sh_quote(self.target)
        make = f'if [ -d {source} ]; then mkdir -p "$ROOT"{target}; else mkdir -p "$(dirname "$ROOT"{target})"; touch "$ROOT"{target}; fi'
        extra = f'\nmount -o remount,bind,ro "$ROOT"{target}' if self.readonly else ""
        return f'{make}; mount --rbind {source} "$ROOT"{target}{extra}'

    def check(self) -> str:
        return f"grep ' {self.target} ' /proc/PID/mountinfo"


class MountFromPod(InitStep):
    op = "podtree"
    man = "open_tree(2), move_mount(2)"
    source: str
    target: str
    readonly: bool = False
    reason: str = "It belongs to the pod: all members see the same one."

    @property
    def why(self) -> str:  # type: ignore[override]
        return self.reason

    def args(self, run: Run) -> Sequence[str | int]:
        return (self.source, self.target, int(self.readonly))

    def call(self) -> str:
        attrs = ", MOUNT_ATTR_RDONLY" if self.readonly else ""
        return f'move_mount(open_tree(AT_FDCWD, "{self.source}", OPEN_TREE_CLONE), "", rootfs, "{self.target}"{attrs})'

    def calls(self) -> list[str]:
        return ["open_tree", *(["mount_setattr"] if self.readonly else []), "move_mount"]

    def shell(self) -> str:
        make = 'mkdir -p "$ROOT{0}"' if self.source == "/dev/shm" else '{{ [ -e "$ROOT{0}" ] || : >"$ROOT{0}"; }}'
        text = f'{make.format(self.target)}; mount --bind "$POD_ROOT{self.source}" "$ROOT{self.target}"'
        return text + (f'; mount -o remount,bind,ro "$ROOT{self.target}"' if self.readonly else "")

    def check(self) -> str:
        return f"stat -c %d /proc/PID/root{self.target}   # the same number in every member"


class MakeDirectory(InitStep):
    op = "mkdir"
    why = "Mounts need a directory to stand on."
    man = "mkdirat(2), openat2(2)"
    path: str

    def args(self, run: Run) -> Sequence[str]:
        return (self.path,)

    def call(self) -> str:
        return f'mkdirat(rootfs, "{self.path}", 0755)'

    def calls(self) -> list[str]:
        return []

    def shell(self) -> str:
        return f'mkdir -p "$ROOT"{sh_quote(self.path)}'

    def check(self) -> str:
        return f"stat /proc/PID/root{self.path}"


class WriteFile(InitStep):
    op = "file"
    man = "openat2(2)"
    path: str
    text: str
    why = "Hostname, hosts and resolv.conf are the pod's: one file each, for all members."

    def args(self, run: Run) -> Sequence[str]:
        return (self.path, run.text(self.text))

    def call(self) -> str:
        return f"write(openat2(rootfs, {_c(self.path)}, O_CREAT|O_EXCL), {_c(self.text)})"

    def calls(self) -> list[str]:
        return []

    def shell(self) -> str:
        text = self.text.replace("{pod:ip}", "$IP")
        return f'cat >"$ROOT{self.path}" <<EOF\n{text}EOF'

    def check(self) -> str:
        return f"cat /proc/PID/root{self.path}"


#: name, major, minor
DEVICE_NODES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0))


class MakeDev(InitStep):
    op = "dev"
    man = "null(4), full(4), random(4), tty(4), tmpfs(5)"
    why = "A member gets six harmless devices; what it makes with mknod itself can't be opened (nodev)."
    target: str = "/dev"
    empty: bool = False  # in a user namespace no device can be made: they come from the pod
    hints = {
        ELOOP: "the rootfs has a symlink at /dev: it is never followed",
        EPERM: "mknod needs CAP_MKNOD; a pod that is made without it has the host's own nodes for its members",
    }

    @property
    def nodes(self) -> tuple[tuple[str, int, int], ...]:
        return () if self.empty else DEVICE_NODES

    def args(self, run: Run) -> Sequence[str | list[str]]:
        return (self.target, [str(part) for node in self.nodes for part in node])

    def call(self) -> str:
        names = "; mknodat: " + " ".join(node[0] for node in self.nodes) if self.nodes else ""
        return f'mount("tmpfs", "{self.target}", "tmpfs", MOUNT_ATTR_NOSUID|MOUNT_ATTR_NOEXEC|MOUNT_ATTR_NODEV, "mode=755"){names}'

    def calls(self) -> list[str]:
        return (
            ["fsopen", "fsmount", "move_mount"]
            + ["mknodat", "open_tree"] * len(self.nodes)
            + ["mount_setattr"]
            + ["move_mount"] * len(self.nodes)
        )

    approx = "the nodes lie in the tmpfs itself, which is therefore not nodev"

    def shell(self) -> str:
        lines = [f'mkdir -p "$ROOT{self.target}"; mount -t tmpfs -o mode=755,nosuid,noexec tmpfs "$ROOT{self.target}"']
        lines += [f'mknod -m 666 "$ROOT{self.target}/{n}" c {a} {b}' for n, a, b in self.nodes]
        return "\n".join(lines)

    def check(self) -> str:
        return f"ls -l /proc/PID/root{self.target}"


class MakeSymlink(InitStep):
    op = "symlink"
    why = "Programs expect the link; it leads into their own /proc or devpts."
    man = "symlink(2)"
    to: str
    path: str

    def args(self, run: Run) -> Sequence[str]:
        return (self.to, self.path)

    def call(self) -> str:
        return f'symlinkat("{self.to}", rootfs, "{self.path}")'

    def calls(self) -> list[str]:
        return ["symlinkat"]

    def shell(self) -> str:
        return f'ln -s {self.to} "$ROOT{self.path}"'

    def check(self) -> str:
        return f"readlink /proc/PID/root{self.path}"


class Mask(InitStep):
    op = "mask"
    why = "It tells about, or changes, the whole machine."
    man = "proc(5)"
    path: str

    def args(self, run: Run) -> Sequence[str]:
        return (self.path,)

    def call(self) -> str:
        return f'mount("/dev/null or an empty tmpfs", "{self.path}", MS_BIND|MS_RDONLY)   # when it exists'

    def calls(self) -> list[str]:
        return []

    def shell(self) -> str:
        p = f'"$ROOT{self.path}"'
        return f'if [ -d {p} ]; then mount -t tmpfs -o ro,size=0k tmpfs {p}; elif [ -e {p} ]; then mount --bind "$ROOT/dev/null" {p}; fi'

    def check(self) -> str:
        return f"ls /proc/PID/root{self.path}"


class ReadonlyPath(InitStep):
    op = "readonly"
    why = "It may be read; writing would change the whole machine."
    man = "mount_setattr(2)"
    path: str

    def args(self, run: Run) -> Sequence[str]:
        return (self.path,)

    def call(self) -> str:
        return f'mount("{self.path}", "{self.path}", MS_BIND|MS_REC|MS_RDONLY)   # when it exists'

    def calls(self) -> list[str]:
        return []

    def shell(self) -> str:
        p = f'"$ROOT{self.path}"'
        return f"if [ -e {p} ]; then mount --bind {p} {p}; mount -o remount,bind,ro {p}; fi"

    def check(self) -> str:
        return f"grep ' {self.path} ' /proc/PID/mountinfo   # ro"


class WriteProc(InitStep):
    op = "write"
    man = "proc(5)"
    path: str
    value: str
    reason: str
    optional: bool = False
    hints = {
        ENOENT: "this kernel has no such setting, or it does not belong to one of the pod's namespaces",
        EACCES: "the kernel allows this only to the host",
    }

    @property
    def why(self) -> str:  # type: ignore[override]
        return self.reason

    def args(self, run: Run) -> Sequence[str | int]:
        return (self.path, self.value, int(self.optional))

    def call(self) -> str:
        return f'write(openat2(rootfs, "{self.path}", O_WRONLY), "{self.value}")' + (
            "   # may be refused" if self.optional else ""
        )

    def calls(self) -> list[str]:
        return []

    def shell(self) -> str:
        return f"echo {sh_quote(self.value)} >{self.path}" + (" 2>/dev/null || :" if self.optional else "")

    def check(self) -> str:
        return f"cat {self.path.replace('/self/', '/PID/')}"


class Pivot(InitStep):
    op = "pivot"
    why = "The new root becomes /, and the old one is let go: there is no way back out (unlike chroot)."
    man = "pivot_root(2)"
    approx = "the shell keeps the old root: its own programs lie there; the exec line uses chroot"

    def call(self) -> str:
        return 'pivot_root(".", "."); umount2(".", MNT_DETACH); chdir("/")'

    def calls(self) -> list[str]:
        return ["pivot_root", "umount2", "chdir"]

    def check(self) -> str:
        return "wc -l /proc/PID/mountinfo"


class ReadonlyRoot(InitStep):
    op = "rootro"
    why = "Nothing can be written to the root any more."
    man = "mount_setattr(2)"

    def call(self) -> str:
        return 'mount_setattr(rootfs, "", AT_EMPTY_PATH, MOUNT_ATTR_RDONLY)'

    def shell(self) -> str:
        return 'mount -o remount,bind,ro "$ROOT"'

    def check(self) -> str:
        return "touch /x   # Read-only file system"


class SetHostname(InitStep):
    op = "hostname"
    why = "The UTS namespace has a name of its own."
    man = "sethostname(2), uts_namespaces(7)"
    name: str

    def args(self, run: Run) -> Sequence[str]:
        return (self.name,)

    def call(self) -> str:
        return f'sethostname("{self.name}", {len(self.name)})'

    def shell(self) -> str:
        return f"hostname {sh_quote(self.name)}"

    def check(self) -> str:
        return "uname -n"


class LoopbackUp(InitStep):
    op = "loopback"
    why = "A new network namespace has its lo down; without it, localhost hangs."
    man = "netdevice(7)"

    def call(self) -> str:
        return 'ioctl(socket, SIOCSIFFLAGS, {"lo", IFF_UP})'

    def shell(self) -> str:
        return "ip link set lo up"

    def check(self) -> str:
        return "cat /sys/class/net/lo/operstate"


class SetLimit(InitStep):
    op = "rlimit"
    why = "A resource limit that can't be set is an error, never silence."
    man = "prlimit(2)"
    resource: str
    soft: int
    hard: int
    hints = {
        EPERM: "a hard limit can't be raised without CAP_SYS_RESOURCE: ask for less (ulimit -H shows what there is)",
        EINVAL: "the soft limit is above the hard one",
    }

    def args(self, run: Run) -> Sequence[int]:
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
    op = "session"
    why = "A session of its own: it can't push keys into the caller's terminal (TIOCSTI)."
    man = "setsid(2), tty_ioctl(4)"
    terminal: bool = False

    def args(self, run: Run) -> Sequence[int]:
        return (int(self.terminal),)

    def call(self) -> str:
        return "setsid()" + ("; ioctl(0, TIOCSCTTY, 1)" if self.terminal else "")

    def check(self) -> str:
        return "ps -o pid,sid,tty -p PID"


class NewKeyring(InitStep):
    op = "keyring"
    why = "Keys of the caller's session are not the member's."
    man = "keyctl(2), session-keyring(7)"

    def call(self) -> str:
        return OWN_KEYRING

    def check(self) -> str:
        return "cat /proc/keys"


class SetUser(InitStep):
    op = "user"
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

    def args(self, run: Run) -> Sequence[int | list[str]]:
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
    op = "caps"
    why = "Only what was asked for; inheritable and ambient stay empty (CVE-2022-29162)."
    man = "capabilities(7)"
    mask: int

    def args(self, run: Run) -> Sequence[int]:
        return (self.mask,)

    def call(self) -> str:
        return f"capset(permitted = effective = {self.mask:#x}, inheritable = 0)"

    def calls(self) -> list[str]:
        return ["capset"]

    def check(self) -> str:
        return "grep Cap /proc/PID/status"


class SetProfile(InitStep):
    op = "apparmor"
    why = "From its exec on the member is confined by this AppArmor profile; the file is one of a real /proc, or it would go nowhere (CVE-2019-16884)."
    man = "apparmor(7), aa_change_onexec(2)"
    name: str
    hints = {
        ENOENT: "this kernel has no AppArmor, or no such profile is loaded: sudo aa-status; apparmor_parser -r FILE",
        EINVAL: "this kernel has no AppArmor: nsrun doctor; without it, leave apparmor= out",
        EACCES: "AppArmor does not allow this change of profile",
        EPERM: "AppArmor does not allow this change of profile",
    }

    def args(self, run: Run) -> Sequence[str]:
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
    op = "nonewprivs"
    why = "No setuid program can raise it any more."
    man = "prctl(2) PR_SET_NO_NEW_PRIVS"

    def call(self) -> str:
        return "prctl(PR_SET_NO_NEW_PRIVS, 1)"

    def check(self) -> str:
        return "grep NoNewPrivs /proc/PID/status"


class SetFilter(InitStep):
    op = "seccomp"
    why = "System calls that a service never needs end with an error; the kernel's answer is the strictest of all filters."
    man = "seccomp(2)"
    approx = "a shell can't load a filter"
    hints = {
        EINVAL: "the filter is not one that this kernel takes",
        EACCES: "without no-new-privileges only root may filter",
    }

    def args(self, run: Run) -> Sequence[int]:
        return (run.fd("seccomp:fd"),)

    def call(self) -> str:
        return "seccomp(SECCOMP_SET_MODE_FILTER, 0, …)   # each filter in seccomp:fd"

    def check(self) -> str:
        return "grep Seccomp /proc/PID/status   # 2"


class ChangeDirectory(InitStep):
    op = "cwd"
    why = "After the ids: a directory that the user may not enter is an error."
    man = "chdir(2)"
    path: str
    hints = {ENOENT: "make it in the rootfs, or choose another with -w", EACCES: "the user may not enter it"}

    def args(self, run: Run) -> Sequence[str]:
        return (self.path,)

    def call(self) -> str:
        return f'chdir("{self.path}")'

    def check(self) -> str:
        return "readlink /proc/PID/cwd"


class Execute(InitStep):
    """The last step: the member's own program.  nsrun-init waits for the commit before it."""

    op = "exec"
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

    def args(self, run: Run) -> Sequence[list[str]]:
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
    op = "execfd"
    why = "Pause is executed from a sealed memfd, and holds what must live as long as the pod."
    man = "execveat(2), memfd_create(2)"
    handle: str
    held: tuple[str, ...]

    def args(self, run: Run) -> Sequence[int | list[str]]:
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


CAPABILITIES = (
    "chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable net_bind_service "
    "net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct sys_admin "
    "sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write audit_control setfcap mac_override "
    "mac_admin syslog wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore"
).split()


def capability_names(mask: int) -> list[str]:
    return [name for bit, name in enumerate(CAPABILITIES) if mask >> bit & 1]


def capability_mask(names: Sequence[str]) -> int:
    """KeyError for a name that is none."""
    return sum(1 << CAPABILITIES.index(name) for name in set(names))
