# SPDX-License-Identifier: Apache-2.0
"""Copy whole trees: what the root has at the place of a new volume, and an image into a directory.

The host's cp(1) does it, from a descriptor to a directory: owners, times, holes, extended attributes and hard links
stay; links are copied and never followed.  We never run a program of the rootfs for it (CVE-2026-41567).
"""

from __future__ import annotations

import os
from errno import EEXIST, ENOENT, ENOTEMPTY

from nsrun import kernel
from nsrun.errors import KernelError, NsrunError

_CP = next((path for path in ("/bin/cp", "/usr/bin/cp") if os.path.exists(path)), "cp")


def copy_tree(directory: int, target: str) -> None:
    """Copy everything in `directory` (a descriptor), and its own attributes, to the existing directory `target`."""
    import fcntl

    errors = os.memfd_create("errors", os.MFD_CLOEXEC)
    source = fcntl.fcntl(directory, fcntl.F_DUPFD_CLOEXEC, 10)
    try:
        pid = os.posix_spawn(
            _CP,
            ["cp", "-a", "--reflink=auto", "--", "/proc/self/fd/3/.", target],
            {"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
            file_actions=[(os.POSIX_SPAWN_DUP2, errors, 2), (os.POSIX_SPAWN_DUP2, source, 3)],
            setsigmask=[],
        )
        _, status = os.waitpid(pid, 0)
        if status:
            os.lseek(errors, 0, os.SEEK_SET)
            lines = os.read(errors, 4096).decode("utf-8", "replace").strip().splitlines()
            raise NsrunError(
                f"copying to {target} failed: {lines[-1] if lines else f'cp ended with {status}'}",
                hint="is the disk full? df -h",
            )
    finally:
        os.close(errors)
        os.close(source)


def seed_volume(root: int, path: str, target: str, staging: str, ids: tuple[int, int]) -> None:
    """Make the volume `target` with what the root has at `path`, or empty, completely or not at all.

    `root` is a detached mount of ours, on which no symlink is followed meanwhile (MOUNT_ATTR_NOSYMFOLLOW, Linux 5.14).
    `ids` are the uid and gid of a volume for which the root has no directory.

    Raise KernelError: ENOTDIR when a file is there, ELOOP when a symlink is on the way.
    """
    from nsrun.host.trees import remove

    os.makedirs(staging, 0o755)
    try:
        os.chmod(staging, 0o755)
        os.chown(staging, *ids)
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY
            source = kernel.open_in_root(root, path, flags, kernel.RESOLVE_NO_SYMLINKS)
        except KernelError as error:
            if error.errno != ENOENT:
                raise
        else:
            try:
                # a process that can write to the root could replace a directory by a link while cp is on its way there
                kernel.mount_setattr(root, set=kernel.MOUNT_ATTR_NOSYMFOLLOW)
                _copy(source, staging)
                kernel.mount_setattr(root, clear=kernel.MOUNT_ATTR_NOSYMFOLLOW)
            finally:
                os.close(source)
        os.rename(staging, target)
    except OSError as error:
        remove(staging)
        if error.errno not in (EEXIST, ENOTEMPTY):  # another member was faster: its volume has the same content
            raise
    except BaseException:
        remove(staging)
        raise


def _copy(source: int, target: str) -> None:
    with os.scandir(source) as entries:
        empty = next(entries, None) is None
    if not empty:
        copy_tree(source, target)
        return
    st = os.fstat(source)
    os.chown(target, st.st_uid, st.st_gid)
    os.chmod(target, st.st_mode & 0o7777)
    os.utime(target, ns=(st.st_atime_ns, st.st_mtime_ns))
