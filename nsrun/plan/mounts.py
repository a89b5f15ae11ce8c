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
from stat import S_IMODE

from nsrun import kernel
from nsrun.errors import BadInput, KernelError
from nsrun.linux import DEVICE_NODES
from nsrun.plan import InitStep, Part, Step, sh_quote
from nsrun.state import make_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsrun.plan import Compiling, Context, Replayed


_STRICT = "RESOLVE_IN_ROOT|RESOLVE_NO_SYMLINKS"
_IN_ROOT = "RESOLVE_IN_ROOT|RESOLVE_NO_MAGICLINKS"
_HERE = "MOVE_MOUNT_F_EMPTY_PATH|MOVE_MOUNT_T_EMPTY_PATH"
_CREATE = "fsconfig(fs, FSCONFIG_CMD_CREATE)"


def _c(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def set_option(option: str) -> str:
    """Return the fsconfig(2) of one mount option, KEY or KEY=VALUE."""
    key, equals, value = option.partition("=")
    if equals:
        return f'fsconfig(fs, FSCONFIG_SET_STRING, "{key}", "{value}")'
    return f'fsconfig(fs, FSCONFIG_SET_FLAG, "{key}")'


def _new_mount(fstype: str, options: str, attrs: int) -> list[str]:
    """What init.c new_mount() does: a mount that is attached nowhere."""
    told = [set_option(option) for option in (f"source={fstype}", *options.split(",")) if option]
    flags = kernel.flag_names(attrs, kernel.MOUNT_ATTRS)
    return [f'fs = fsopen("{fstype}", FSOPEN_CLOEXEC)', *told, _CREATE, f"mnt = fsmount(fs, FSMOUNT_CLOEXEC, {flags})"]


def _place(target: str, resolve: str, file: bool = False) -> list[str | Part]:
    """What init.c open_or_make() does: the kernel finds the place inside the root, and what is missing is made."""
    make = ["openat2(rootfs, PART, O_PATH)", "mkdirat(parent, PART, 0755)"]
    make += ["openat(parent, PART, O_CREAT|O_EXCL|O_NOFOLLOW)"] if file else []
    return [
        f"at = openat2(rootfs, {_c(target)}, O_PATH, {resolve})",
        Part(make, when="it is missing", each="part of the path"),
    ]


def _own_data(ident: str) -> list[str | Part]:
    """What nsrun.state.State.make_data() does: a directory for what the member writes, with a proof of life of its own."""
    return [
        Part(["mkdir(DIRECTORY, 0700)"], each="DIRECTORY above that is missing"),
        f'mkdir("upper/{ident}", 0700)',
        "fcntl(lock:data, F_SETLK, F_RDLCK)",
        f'rename("upper/{ident}/about.tmp", "upper/{ident}/about")',
    ]


def _onto(tree: str) -> str:
    return f'move_mount({tree}, "", at, "", {_HERE})'


class OverlayRoot(Step):
    why = "What the member writes goes to a directory of its own, so the rootfs stays clean and can be shared."
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

    def made(self) -> list[str | Part]:
        n, child = len(self.lowers), "a child in that mount namespace"
        lower = "lowerdir+" if n > 1 else "lowerdir"
        names = [path.split("/")[-2][:12] if n > 1 else path for path in self.lowers]  # layers: HEX/tree each
        settings = ["source=nsrun", *(f"{lower}={name}" for name in names)]
        settings += [
            f"upperdir=upper/{self.ident}/upper",
            f"workdir=upper/{self.ident}/work",
            "metacopy=off",
            "index=off",
        ]

        def configured(call: str) -> list[str | Part]:
            if not self.idmap:
                return [call]
            return ["vfork()", Part(["setns(apart, CLONE_NEWNS)", call], by=child)]

        found: list[str | Part] = []
        if self.idmap:
            for path in self.lowers:
                found.append(f'layer = open_tree(AT_FDCWD, "{path}", OPEN_TREE_CLONE)')
                found.append(f'mount_setattr(layer, "", AT_EMPTY_PATH, MS_PRIVATE, MOUNT_ATTR_IDMAP of {self.idmap})')
        if not self.again:
            found += _own_data(self.ident) + [f'mkdir("upper/{self.ident}/{part}", 0700)' for part in ("upper", "work")]
        if self.idmap:
            found.append(f'open_tree(AT_FDCWD, "upper/{self.ident}", OPEN_TREE_CLONE)')
            helper: list[str | Part] = ["unshare(CLONE_NEWNS)", 'mount(NULL, "/", NULL, MS_REC|MS_PRIVATE, NULL)']
            helper.append(
                Part(['move_mount(TREE, "", AT_FDCWD, "/sys", MOVE_MOUNT_F_EMPTY_PATH)'], each="of them", times=n + 1)
            )
            helper.append('apart = open("/proc/thread-self/ns/mnt")')
            found += ["clone3(CLONE_FILES|CLONE_VM|CLONE_VFORK)", Part(helper, by="a helper")]
        found.append('fs = fsopen("overlay", FSOPEN_CLOEXEC)')
        if n > 1:
            found.append(
                'fsconfig(fs, FSCONFIG_SET_FLAG, "nsrun")   /* refused at once since Linux 6.5, which has lowerdir+ */'
            )
        found += configured(set_option(settings[0]))
        found.append(Part([set_option("userxattr")], when="we are in a user namespace"))
        for setting in settings[1:]:
            found += configured(set_option(setting))
        found.append(Part(configured(set_option("redirect_dir=off")), when="we are in none"))
        found += configured(_CREATE)
        return [*found, f"{self.handle} = fsmount(fs, FSMOUNT_CLOEXEC, MOUNT_ATTR_NODEV)"]

    def brief(self) -> str:
        return f"an overlay of {':'.join(self.lowers)} and upper/{self.ident}"

    def needs(self) -> tuple[str, ...]:
        return (*([self.idmap] if self.idmap else []), "lock:data?")

    def makes(self) -> tuple[str, ...]:
        return (self.handle, "lock:data?")

    def shell(self) -> str:
        up, lower = f"/var/tmp/nsrun-shell/{self.ident}", sh_quote(":".join(self.lowers))
        return f"mkdir -p {up}/upper {up}/work; ROOT_OPTIONS=lowerdir={lower},upperdir={up}/upper,workdir={up}/work"

    approx = "mounted later, inside: mount(8) can't make a mount that is attached nowhere"

    def check(self) -> str:
        return "head -1 /proc/PID/mountinfo   # overlay on /"

    def replayed(self, compiler: Compiling) -> list[Replayed] | None:
        if self.again or self.idmap or (len(self.lowers) > 1 and not kernel.has_many_lowers()):
            return None
        upper, st = compiler.state.upper(self.ident), os.stat(self.lowers[0])
        return [
            ("claim", upper, compiler.make("lock:data"), 0),
            ("note", f"{upper}/about", compiler.template(compiler.about)),
            ("directory", f"{upper}/upper", S_IMODE(st.st_mode), st.st_uid, st.st_gid),
            ("directory", f"{upper}/work", 0, 0, 0),
            ("overlay", self.lowers, upper, kernel.MOUNT_ATTR_NODEV, compiler.make(self.handle)),
        ]

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
                            hint="one that can (ext4, XFS, btrfs, tmpfs since 6.3); or let the owner join, with files of their own; overlay over such layers came with Linux 5.19",
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
            return "No rootfs was named, so the member sees the host's own files, in a private copy of the host's mount tree."
        return "With --writable the member writes to the directory itself, without an overlay."

    def made(self) -> list[str | Part]:
        flags = "OPEN_TREE_CLONE" + ("|AT_RECURSIVE" if self.recursive else "")
        attrs = "MS_PRIVATE" if self.recursive else "MS_PRIVATE, MOUNT_ATTR_NODEV"
        return [
            f'{self.handle} = open_tree(AT_FDCWD, "{self.path}", {flags})',
            f'mount_setattr({self.handle}, "", AT_EMPTY_PATH{"|AT_RECURSIVE" if self.recursive else ""}, {attrs})',
        ]

    def makes(self) -> tuple[str, ...]:
        return (self.handle,)

    def shell(self) -> str:
        return f"ROOT_BIND={sh_quote(self.path)}"

    approx = "mounted later, inside: mount(8) can't make a mount that is attached nowhere"

    def check(self) -> str:
        return "head -1 /proc/PID/mountinfo"

    def replayed(self, compiler: Compiling) -> list[Replayed]:
        attrs = 0 if self.recursive else kernel.MOUNT_ATTR_NODEV
        return [("tree", self.path, int(self.recursive), attrs, compiler.make(self.handle))]

    def do(self, run: Context) -> None:
        fd = run.hold(self.handle, kernel.open_tree(self.path, self.recursive))
        attrs = 0 if self.recursive else kernel.MOUNT_ATTR_NODEV
        kernel.mount_setattr(fd, set=attrs, propagation=kernel.MS_PRIVATE, recursive=self.recursive)


class OpenVolume(Step):
    man = "open_tree(2), mount_setattr(2)"
    many = "{} volumes are opened"
    why = "The volume is opened here, by a path of the host; the pod gets only the descriptor."
    source: str
    handle: str
    readonly: bool = False
    attrs: int = 0
    make: bool = False
    seed: str = ""  # a new volume gets what the root has here
    staging: str = ""  # where it is made until it is whole
    ids: tuple[int, int] = (0, 0)  # whose a new volume is
    ident: str = ""  # of the member whose own it is, and whose data it is part of
    below: str = ""  # what of it is mounted; "": all.  A directory is made of what is missing
    hints = {
        ENOENT: "the source must exist",
        ENOSYS: "mount_setattr came with Linux 5.12",
        ENOTDIR: "the root has a file where the volume's directory must be",
        ELOOP: "the root has a symlink on the way to the volume's target: name the real directory",
    }

    def made(self) -> list[str | Part]:
        found: list[str | Part] = []
        if self.ident:
            found.append(Part(_own_data(self.ident), when="the member has nothing of its own yet"))
        if self.seed:
            new = 'mount_setattr(rootfs:fd, "", AT_EMPTY_PATH, {}MOUNT_ATTR_NOSYMFOLLOW)'
            copy = [new.format(""), f"# cp -a rootfs:fd{self.seed}/. {self.staging}", new.format("without ")]
            make: list[str | Part] = [f'mkdir("{self.staging}", 0755)', Part(copy, when=f"rootfs:fd has {self.seed}")]
            make.append(f'rename("{self.staging}", "{self.source}")')
            found.append(Part(make, when="it is missing"))
        elif self.make:
            found.append(Part([f'mkdir("{self.source}", 0755)'], when="it is missing"))
        attrs = kernel.flag_names(self._attrs(), kernel.MOUNT_ATTRS)
        if self.below:
            found += [
                f'volume = open("{self.source}", O_PATH|O_DIRECTORY)',
                Part(
                    [
                        f"openat2(volume, PART, O_PATH|O_DIRECTORY, {_IN_ROOT})",
                        "mkdirat(parent, PART, 0700)",
                        "fchown(made, the volume's)",
                        "fchmod(made, the volume's)",
                    ],
                    each=f"PART of {self.below} that is missing",
                ),
                f"below = openat2(volume, {_c(self.below)}, O_PATH, {_IN_ROOT})",
            ]
        tree = (
            'below, "", OPEN_TREE_CLONE|AT_EMPTY_PATH' if self.below else f'AT_FDCWD, "{self.source}", OPEN_TREE_CLONE'
        )
        return [
            *found,
            f"{self.handle} = open_tree({tree}|AT_RECURSIVE)",
            f'mount_setattr({self.handle}, "", AT_EMPTY_PATH|AT_RECURSIVE, MS_PRIVATE, {attrs})',
        ]

    def thing(self) -> str:
        return self.source

    def needs(self) -> tuple[str, ...]:
        return ("rootfs:fd", "lock:data?") if self.seed else ("lock:data?",)

    def makes(self) -> tuple[str, ...]:
        return (self.handle, "lock:data?") if self.ident else (self.handle,)

    def _attrs(self) -> int:
        return self.attrs | kernel.MOUNT_ATTR_NODEV | (kernel.MOUNT_ATTR_RDONLY if self.readonly else 0)

    def shell(self) -> str:
        if self.seed:
            return f"mkdir -p {sh_quote(self.source)}   # new, it gets what the root has at {self.seed}"
        return f"mkdir -p {sh_quote(self.source)}" if self.make else f"test -e {sh_quote(self.source)}"

    def check(self) -> str:
        return "cat /proc/PID/mountinfo"

    def replayed(self, compiler: Compiling) -> list[Replayed] | None:
        if self.below:
            return None  # it is looked for below the volume each time
        if self.ident and self.source.startswith(f"{compiler.state.upper(self.ident)}/"):
            return None  # it is made for each member
        return [("tree", self.source, 1, self._attrs(), compiler.make(self.handle))]

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
        fd = run.hold(self.handle, self._open_below() if self.below else kernel.open_tree(self.source, recursive=True))
        kernel.mount_setattr(fd, set=self._attrs(), propagation=kernel.MS_PRIVATE, recursive=True)

    def _open_below(self) -> int:
        """Return a tree of what is below: a symlink that somebody has put there leads nowhere out of the volume."""
        with kernel.Fd(os.open(self.source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as volume:
            with kernel.Fd(self._make_below(volume)) as found:
                return kernel.open_tree("", recursive=True, dir_fd=found)

    def _make_below(self, volume: int) -> int:
        """Open it; what is missing becomes a directory of ours with the volume's mode, as a kubelet makes it.

        Nothing is changed once it is made: whoever may write there could have put another directory in its place.
        """
        mode = os.stat(volume).st_mode & 0o1777
        parts = [part for part in self.below.split("/") if part not in ("", ".")]
        for depth in range(1, len(parts) + 1):
            path, above = "/".join(parts[:depth]), "/".join(parts[: depth - 1]) or "."
            try:
                os.close(kernel.open_in_root(volume, path, os.O_PATH | os.O_CLOEXEC))
            except KernelError as error:
                if error.errno != ENOENT:
                    raise
                umask = os.umask(0)
                try:
                    with kernel.Fd(
                        kernel.open_in_root(volume, above, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                    ) as parent:
                        os.mkdir(parts[depth - 1], mode, dir_fd=parent)
                except FileExistsError:  # a symlink that leads nowhere, or another has made it just now
                    pass
                finally:
                    os.umask(umask)
        return kernel.open_in_root(volume, "/".join(parts) or ".", os.O_PATH | os.O_CLOEXEC)

    def undo(self, run: Context) -> None:
        if self.ident and not run.again:
            run.drop_data(self.ident)


class OpenDevice(Step):
    many = "{} devices are opened"
    why = "One device node of the host becomes a mount of its own, so everything else in the member can stay nodev."
    man = "open_tree(2), mount_setattr(2)"
    source: str
    handle: str
    hints = {ENOENT: "is its module loaded?", EINVAL: "it is no device node"}

    def made(self) -> list[str | Part]:
        attrs = kernel.flag_names(self._attrs, kernel.MOUNT_ATTRS)
        return [
            f'{self.handle} = open_tree(AT_FDCWD, "{self.source}", OPEN_TREE_CLONE)',
            f'mount_setattr({self.handle}, "", AT_EMPTY_PATH, MS_PRIVATE, {attrs})',
        ]

    def thing(self) -> str:
        return self.source

    def makes(self) -> tuple[str, ...]:
        return (self.handle,)

    _attrs = kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NOEXEC

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
    reason: str = "The mount namespace of pause holds the pod's /dev/shm and files, and nothing of the host."
    flags: int = kernel.CLONE_NEWNS

    @property
    def why(self) -> str:  # type: ignore[override]
        return self.reason

    def args(self, run: Context) -> Sequence[int]:
        return (run.fd(self.handle), self.flags)

    def made(self) -> list[str | Part]:
        return [f"setns({self.handle}, {kernel.flag_names(self.flags, kernel.CLONE_FLAGS)})"]

    def needs(self) -> tuple[str, ...]:
        return (self.handle,)

    def check(self) -> str:
        return "readlink /proc/PID/ns/mnt"


class MakePrivate(InitStep):
    why = (
        "Mounts of the host are usually shared, so ours would appear on the host without this. "
        "If nsrun runs in a chroot, setns first leads to the root of the mount namespace, which is the one to leave behind."
    )
    man = "mount_namespaces(7), setns(2), chroot(2)"

    def made(self) -> list[str | Part]:
        return [
            'mnt = openat(AT_FDCWD, "/proc/self/ns/mnt", O_RDONLY)',
            "setns(mnt, CLONE_NEWNS)",
            'mount(NULL, "/", NULL, MS_REC|MS_PRIVATE, NULL)',
        ]

    def shell(self) -> str:
        return "mount --make-rprivate /"

    def check(self) -> str:
        return "grep -c shared: /proc/PID/mountinfo   # 0"


class TmpfsRoot(InitStep):
    why = "The root of pause is empty and in memory, so that no path of the host is in view."
    man = "tmpfs(5), fsopen(2)"
    options: str
    at: str = "/proc"

    def args(self, run: Context) -> Sequence[str]:
        return (self.options, self.at)

    def made(self) -> list[str | Part]:
        return [
            *_new_mount("tmpfs", self.options, kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV),
            f'move_mount(mnt, "", AT_FDCWD, "{self.at}", MOVE_MOUNT_F_EMPTY_PATH)',
        ]

    def brief(self) -> str:
        return f"mount tmpfs on {self.at}"

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

    def made(self) -> list[str | Part]:
        return [f'move_mount({self.handle}, "", AT_FDCWD, "{self.at}", MOVE_MOUNT_F_EMPTY_PATH)']

    def needs(self) -> tuple[str, ...]:
        return (self.handle,)

    def check(self) -> str:
        return "head -1 /proc/PID/mountinfo"


_READ_ONLY = "the target is missing below a volume that is read-only: make it in the volume first, or leave its :ro out"


class Mount(InitStep):
    man = "mount(8), fsopen(2)"
    many = "{} file systems are mounted"
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
        return self.reason or "A new mount of such a file system shows the namespaces of the process that mounts it."

    def args(self, run: Context) -> Sequence[str | int]:
        return (self.fstype, self.target, self.options, self.attrs)

    def made(self) -> list[str | Part]:
        return [*_new_mount(self.fstype, self.options, self.attrs), *_place(self.target, _STRICT), _onto("mnt")]

    def brief(self) -> str:
        return f"mount {self.thing()}"

    def thing(self) -> str:
        return f"{self.fstype} on {self.target}"

    def shell(self) -> str:
        words = [n[11:].lower().replace("rdonly", "ro") for n, bit in kernel.MOUNT_ATTRS.items() if self.attrs & bit]
        words += [self.options] if self.options else []
        option = f"-o {','.join(words)} " if words else ""
        return f'mkdir -p "$ROOT{self.target}"; mount -t {self.fstype} {option}{self.fstype} "$ROOT{self.target}"'

    def check(self) -> str:
        return f"grep ' {self.target} ' /proc/PID/mountinfo"


class MountTree(InitStep):
    """A volume: a tree that phase 1 opened on the host."""

    many = "{} volumes are mounted"
    why = "The volume comes in as a descriptor, and the kernel looks its place up inside the root only."
    man = "move_mount(2), openat2(2)"
    handle: str
    target: str
    source: str
    readonly: bool = False
    strict: bool = True  # a symlink on the way is an error; otherwise it is followed, inside the root
    hints = {
        ELOOP: "the target passes a symlink that was not there a moment ago, or that only the pod may look at: name the real directory",
        EROFS: _READ_ONLY,
        ENOTDIR: "the source is a directory and the target a file, or a part of the target is a file",
        21: "the source is a file and the target a directory",
    }

    def args(self, run: Context) -> Sequence[int | str]:
        return (run.fd(self.handle), self.target, int(self.strict))

    def made(self) -> list[str | Part]:
        return [*_place(self.target, _STRICT if self.strict else _IN_ROOT, file=True), _onto(self.handle)]

    def brief(self) -> str:
        return f"mount {self.source} on {self.target}"

    def thing(self) -> str:
        return self.target

    def needs(self) -> tuple[str, ...]:
        return (self.handle,)

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
    many = "{} files of the pod are mounted"
    reason: str = "It belongs to the pod, so that all members see the same one."

    @property
    def why(self) -> str:  # type: ignore[override]
        return self.reason

    def args(self, run: Context) -> Sequence[str | int]:
        return (self.source, self.target, int(self.readonly))

    def made(self) -> list[str | Part]:
        tree = f'tree = open_tree(AT_FDCWD, "{self.source}", OPEN_TREE_CLONE)'
        attr = ['mount_setattr(tree, "", AT_EMPTY_PATH, MOUNT_ATTR_RDONLY)'] if self.readonly else []
        return [tree, *attr, *_place(self.target, _IN_ROOT, file=True), _onto("tree")]

    def brief(self) -> str:
        return f"mount the pod's {self.source} on {self.target}"

    def thing(self) -> str:
        return self.target

    def shell(self) -> str:
        make = 'mkdir -p "$ROOT{0}"' if self.source == "/dev/shm" else '{{ [ -e "$ROOT{0}" ] || : >"$ROOT{0}"; }}'
        text = f'{make.format(self.target)}; mount --bind "$POD_ROOT{self.source}" "$ROOT{self.target}"'
        return text + (f'; mount -o remount,bind,ro "$ROOT{self.target}"' if self.readonly else "")

    def check(self) -> str:
        return f"stat -c %d /proc/PID/root{self.target}   # the same number in every member"


class MakeDirectory(InitStep):
    many = "{} directories are made"
    why = "What follows needs this directory: a mount, a file, or the working directory."
    man = "mkdirat(2), openat2(2)"
    path: str

    def args(self, run: Context) -> Sequence[str]:
        return (self.path,)

    def made(self) -> list[str | Part]:
        return _place(self.path, _IN_ROOT)

    def brief(self) -> str:
        return f"make the directory {self.path}"

    def thing(self) -> str:
        return self.path

    def shell(self) -> str:
        return f'mkdir -p "$ROOT"{sh_quote(self.path)}'

    def check(self) -> str:
        return f"stat /proc/PID/root{self.path}"


class WriteFile(InitStep):
    man = "openat2(2)"
    path: str
    text: str
    many = "{} files are written"
    why = "The files hostname, hosts and resolv.conf belong to the pod, and all its members see the same ones."

    def args(self, run: Context) -> Sequence[str]:
        return (self.path, run.text(self.text))

    def made(self) -> list[str | Part]:
        return [
            f"fd = openat2(rootfs, {_c(self.path)}, O_CREAT|O_EXCL|O_WRONLY, {_STRICT})",
            f"write(fd, {_c(self.text)})",
        ]

    def brief(self) -> str:
        return f"write {self.path}"

    def thing(self) -> str:
        return self.path

    def needs(self) -> tuple[str, ...]:
        return tuple(name for name in ("pod:ip", "pod:ip6") if f"{{{name}}}" in self.text)

    def shell(self) -> str:
        text = self.text.replace("{pod:ip}", "$IP").replace("{pod:ip6}", "$IP6")
        return f'cat >"$ROOT{self.path}" <<EOF\n{text}EOF'

    def check(self) -> str:
        return f"cat /proc/PID/root{self.path}"


class MakeDev(InitStep):
    man = "null(4), full(4), random(4), tty(4), tmpfs(5)"
    why = "A member gets six harmless devices; a device that it makes itself with mknod can't be opened, because /dev is nodev."
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

    def made(self) -> list[str | Part]:
        attrs = kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NOEXEC
        found = [*_new_mount("tmpfs", "mode=755,size=64k", attrs), *_place(self.target, _STRICT), _onto("mnt")]
        each, n = f"NODE of {' '.join(node[0] for node in self.nodes)}", len(self.nodes)
        if self.nodes:
            make = ["mknodat(mnt, NODE, S_IFCHR|0666, DEVICE)", "node = open_tree(mnt, NODE, OPEN_TREE_CLONE)"]
            found.append(Part(make, each=each, times=n))
        found.append('mount_setattr(mnt, "", AT_EMPTY_PATH, MOUNT_ATTR_NODEV)')
        if self.nodes:
            found.append(Part(['move_mount(node, "", mnt, NODE, MOVE_MOUNT_F_EMPTY_PATH)'], each=each, times=n))
        return found

    def brief(self) -> str:
        return f"mount a tmpfs with devices on {self.target}"

    approx = "the nodes lie in the tmpfs itself, which is therefore not nodev"

    def shell(self) -> str:
        lines = [f'mkdir -p "$ROOT{self.target}"; mount -t tmpfs -o mode=755,nosuid,noexec tmpfs "$ROOT{self.target}"']
        lines += [f'mknod -m 666 "$ROOT{self.target}/{n}" c {a} {b}' for n, a, b in self.nodes]
        return "\n".join(lines)

    def check(self) -> str:
        return f"ls -l /proc/PID/root{self.target}"


class MakeSymlink(InitStep):
    many = "{} symbolic links are made"
    why = "Programs expect this link, which leads into their own /proc or devpts."
    man = "symlink(2)"
    to: str
    path: str

    def args(self, run: Context) -> Sequence[str]:
        return (self.to, self.path)

    def made(self) -> list[str | Part]:
        return [f'symlinkat("{self.to}", rootfs, "{self.path}")']

    def thing(self) -> str:
        return self.path

    def shell(self) -> str:
        return f'ln -s {self.to} "$ROOT{self.path}"'

    def check(self) -> str:
        return f"readlink /proc/PID/root{self.path}"


class Mask(InitStep):
    many = "{} paths are hidden"
    why = "This path exposes or changes the state of the whole machine, so it is hidden."
    man = "proc(5)"
    path: str

    def args(self, run: Context) -> Sequence[str]:
        return (self.path,)

    def made(self) -> list[str | Part]:
        attrs = kernel.MOUNT_ATTR_RDONLY | kernel.MOUNT_ATTR_NOSUID
        null = [f'null = openat2(rootfs, "/dev/null", O_PATH, {_STRICT})', 'mnt = open_tree(null, "", OPEN_TREE_CLONE)']
        return [
            f'at = openat2(rootfs, "{self.path}", O_PATH, {_STRICT})',
            Part(_new_mount("tmpfs", "size=0k,mode=0555,nr_inodes=2", attrs), when="it is a directory"),
            Part(null, when="it is a file"),
            Part([_onto("mnt")], when="it exists"),
        ]

    def brief(self) -> str:
        return f"hide {self.path}"

    def thing(self) -> str:
        return self.path

    def shell(self) -> str:
        p = f'"$ROOT{self.path}"'
        return f'if [ -d {p} ]; then mount -t tmpfs -o ro,size=0k tmpfs {p}; elif [ -e {p} ]; then mount --bind "$ROOT/dev/null" {p}; fi'

    def check(self) -> str:
        return f"ls /proc/PID/root{self.path}"


class ReadonlyPath(InitStep):
    many = "{} paths become read-only"
    why = "This path may be read, but writing to it would change the whole machine."
    man = "mount_setattr(2)"
    path: str

    def args(self, run: Context) -> Sequence[str]:
        return (self.path,)

    def made(self) -> list[str | Part]:
        make = [
            'tree = open_tree(at, "", OPEN_TREE_CLONE|AT_EMPTY_PATH|AT_RECURSIVE)',
            'mount_setattr(tree, "", AT_EMPTY_PATH|AT_RECURSIVE, MOUNT_ATTR_RDONLY)',
            _onto("tree"),
        ]
        return [f'at = openat2(rootfs, "{self.path}", O_PATH, {_STRICT})', Part(make, when="it exists")]

    def brief(self) -> str:
        return f"make {self.path} read-only"

    def thing(self) -> str:
        return self.path

    def shell(self) -> str:
        p = f'"$ROOT{self.path}"'
        return f"if [ -e {p} ]; then mount --bind {p} {p}; mount -o remount,bind,ro {p}; fi"

    def check(self) -> str:
        return f"grep ' {self.path} ' /proc/PID/mountinfo   # ro"


class WriteProc(InitStep):
    man = "proc(5)"
    many = "{} kernel settings are written"
    path: str
    value: str
    reason: str
    optional: bool = False
    hints = {
        ENOENT: "this kernel has no such setting, or it does not belong to one of the pod's namespaces",
        EACCES: "the kernel allows this only to the host; a lower oom_score_adj takes CAP_SYS_RESOURCE",
    }

    @property
    def why(self) -> str:  # type: ignore[override]
        return "The user asked for this setting with --sysctl." if self.reason == "--sysctl" else self.reason

    def args(self, run: Context) -> Sequence[str | int]:
        return (self.path, self.value, int(self.optional))

    def made(self) -> list[str | Part]:
        write = f'write(fd, "{self.value}")' + ("   /* it may be refused */" if self.optional else "")
        opened = f'fd = openat2(rootfs, "{self.path}", O_WRONLY, {_IN_ROOT})'
        return [opened, Part([write], when="it can be opened") if self.optional else write]

    def brief(self) -> str:
        return f"write {self.value!r} to {self.path}"

    def thing(self) -> str:
        return f"{self.path} = {self.value}"

    def shell(self) -> str:
        return f"echo {sh_quote(self.value)} >{self.path}" + (" 2>/dev/null || :" if self.optional else "")

    def check(self) -> str:
        if self.path.startswith("/proc/self/"):
            return f"cat {self.path.replace('/self/', '/PID/')}"
        return f"nsenter --target PID --net --ipc --uts cat {self.path}"


class Pivot(InitStep):
    why = "The new root becomes /, and the old one is detached, so there is no way back out, unlike after chroot."
    man = "pivot_root(2)"
    approx = "the shell keeps the old root: its own programs lie there; the exec line uses chroot"

    def made(self) -> list[str | Part]:
        return ["fchdir(rootfs)", 'pivot_root(".", ".")', 'umount2(".", MNT_DETACH)', 'chdir("/")']

    def check(self) -> str:
        return "wc -l /proc/PID/mountinfo"


class ReadonlyRoot(InitStep):
    why = "From here on nothing can be written to the root."
    man = "mount_setattr(2)"

    def made(self) -> list[str | Part]:
        return ['mount_setattr(rootfs, "", AT_EMPTY_PATH, MOUNT_ATTR_RDONLY)']

    def shell(self) -> str:
        return 'mount -o remount,bind,ro "$ROOT"'

    def check(self) -> str:
        return "touch /proc/PID/root/x   # Read-only file system"
