# SPDX-License-Identifier: Apache-2.0
"""Steps that make what a member sees: its root, its volumes, its mounts, and the files in them.

Those of phase 1 open them on the host; those of phase 4 put them into place, inside. In the shell form the new root is a
directory, "$ROOT", in a mount namespace of its own.
"""

from __future__ import annotations

import os
from errno import (
    EACCES,
    EINVAL,
    ELOOP,
    ENODEV,
    ENOENT,
    ENOSPC,
    ENOSYS,
    ENOTDIR,
    EPERM,
    EROFS,
)

from nsrun import kernel
from nsrun.errors import BadInput, KernelError
from nsrun.linux import DEVICE_NODES
from nsrun.plan import InitStep, Step, sh_quote
from nsrun.state import make_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsrun.plan import Context


def _c(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


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

    def do(self, run: Context) -> None:
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

    def undo(self, run: Context) -> None:
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

    def do(self, run: Context) -> None:
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

    def do(self, run: Context) -> None:
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

    def undo(self, run: Context) -> None:
        if self.ident and not run.again:
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

    def do(self, run: Context) -> None:
        import stat

        fd = run.hold(self.handle, kernel.open_tree(self.source))
        mode = os.fstat(fd).st_mode
        if not stat.S_ISCHR(mode) and not stat.S_ISBLK(mode):
            raise KernelError(EINVAL, f'open_tree("{self.source}"): a device')
        kernel.mount_setattr(fd, set=self._attrs, clear=kernel.MOUNT_ATTR_NODEV, propagation=kernel.MS_PRIVATE)


class EnterMountNamespace(InitStep):
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

    def args(self, run: Context) -> Sequence[int]:
        return (run.fd(self.handle), self.flags)

    def call(self) -> str:
        return f"setns({self.handle}, {kernel.flag_names(self.flags, kernel.CLONE_FLAGS)})"

    def check(self) -> str:
        return "readlink /proc/PID/ns/mnt"


class MakePrivate(InitStep):
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
    why = "Pause's root: empty, and in memory, so no path of the host is in view."
    man = "tmpfs(5), fsopen(2)"
    options: str
    at: str = "/proc"

    def args(self, run: Context) -> Sequence[str]:
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
    why = "The member's root gets a place in the mount tree, so that it can become /."
    man = "move_mount(2)"
    handle: str = "rootfs:fd"
    at: str = "/member"

    def args(self, run: Context) -> Sequence[int | str]:
        return (run.fd(self.handle), self.at)

    def call(self) -> str:
        return f'move_mount({self.handle}, "", AT_FDCWD, "{self.at}", MOVE_MOUNT_F_EMPTY_PATH)'

    def check(self) -> str:
        return "head -1 /proc/PID/mountinfo"


_READ_ONLY = "the target is missing below a volume that is read-only: make it in the volume first, or leave its :ro out"


class Mount(InitStep):
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

    def args(self, run: Context) -> Sequence[str | int]:
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

    def args(self, run: Context) -> Sequence[int | str]:
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
    man = "open_tree(2), move_mount(2)"
    source: str
    target: str
    readonly: bool = False
    reason: str = "It belongs to the pod: all members see the same one."

    @property
    def why(self) -> str:  # type: ignore[override]
        return self.reason

    def args(self, run: Context) -> Sequence[str | int]:
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
    why = "Mounts need a directory to stand on."
    man = "mkdirat(2), openat2(2)"
    path: str

    def args(self, run: Context) -> Sequence[str]:
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
    man = "openat2(2)"
    path: str
    text: str
    why = "Hostname, hosts and resolv.conf are the pod's: one file each, for all members."

    def args(self, run: Context) -> Sequence[str]:
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


class MakeDev(InitStep):
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

    def args(self, run: Context) -> Sequence[str | list[str]]:
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
    why = "Programs expect the link; it leads into their own /proc or devpts."
    man = "symlink(2)"
    to: str
    path: str

    def args(self, run: Context) -> Sequence[str]:
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
    why = "It tells about, or changes, the whole machine."
    man = "proc(5)"
    path: str

    def args(self, run: Context) -> Sequence[str]:
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
    why = "It may be read; writing would change the whole machine."
    man = "mount_setattr(2)"
    path: str

    def args(self, run: Context) -> Sequence[str]:
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

    def args(self, run: Context) -> Sequence[str | int]:
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
    why = "Nothing can be written to the root any more."
    man = "mount_setattr(2)"

    def call(self) -> str:
        return 'mount_setattr(rootfs, "", AT_EMPTY_PATH, MOUNT_ATTR_RDONLY)'

    def shell(self) -> str:
        return 'mount -o remount,bind,ro "$ROOT"'

    def check(self) -> str:
        return "touch /x   # Read-only file system"
