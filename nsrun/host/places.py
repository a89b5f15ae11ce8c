# SPDX-License-Identifier: Apache-2.0
"""Where a mount's target is in a root: its symlinks are followed inside of it, by the kernel, before anything is mounted.

So `-v sock:/var/run/docker.sock` lands in /run where /var/run is a link, as people mean it, and the order of mounts is that of
the places they really have.  nsrun-init then refuses every symlink: what changed in between is not followed.
"""

from __future__ import annotations

import os
import stat
from errno import EACCES, ELOOP, ENOENT, ENOTDIR

from nsrun import kernel
from nsrun.errors import BadInput, KernelError, UsageError
from nsrun.spec.options import check_place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

MOST_LINKS = 40  # as many as path_resolution(7) follows


def arrange(mounts: list[dict[str, Any]], roots: Sequence[str], moved: dict[str, str]) -> list[dict[str, Any]]:
    """Return these mounts, parents first, at the real places of their targets; `moved` gets the place of each that differs.

    `roots`: the root's directory, or those of its layers, from the top down.  UsageError: a place that nothing may be mounted
    at, or two mounts at the same one.
    """
    layers = [os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for root in roots] if mounts else []
    taken: dict[str, str] = {}
    try:
        for mount in mounts:
            target = mount["destination"]
            mount["destination"] = place = real_path(layers, target)
            if place != target:
                check_place(place, f"the target {target!r}")
                moved[target] = place
            if place in taken:
                others = f": {taken[place]} and {target} lead to it" if {target, taken[place]} != {place} else ""
                raise UsageError(f"two mounts are at {place}{others}")
            taken[place] = target
    finally:
        for fd in layers:
            os.close(fd)
    return sorted(mounts, key=lambda mount: mount["destination"].split("/"))


def real_path(layers: Sequence[int], path: str) -> str:
    """Return a path of a root, whose layers these descriptors are, without symlinks; what does not exist of it stays as it is.

    BadInput: it passes too many links.
    """
    done: list[
        tuple[str, Sequence[int]]
    ] = []  # names, and the layers in which each of them is a directory that is seen
    left = path.split("/")[::-1]
    links = 0
    while left:
        name = left.pop()
        if name in ("", "."):
            continue
        if name == "..":
            done[-1:] = []
            continue
        seen = done[-1][1] if done else layers
        try:
            to, below = _look("/".join([*(name for name, _ in done), name]), seen)
        except KernelError as error:
            if error.errno != EACCES:
                raise
            return "/" + "/".join(
                [*(name for name, _ in done), name, *left[::-1]]
            )  # nsrun-init may look, and refuses a link
        if not to:
            done.append((name, below))
            continue
        links += 1
        if links > MOST_LINKS:
            raise BadInput(f"{path} passes more than {MOST_LINKS} symlinks of the rootfs", errno=ELOOP)
        if to.startswith("/"):
            done = []
        left += to.split("/")[::-1]
    return "/" + "/".join(name for name, _ in done)


def _look(path: str, layers: Sequence[int]) -> tuple[str, list[int]]:
    """(where the link of this name leads, or "", and the layers of it as a directory), as overlayfs merges layers.

    Documentation/filesystems/overlayfs.rst: what is no directory hides all below, and so do a whiteout and an opaque directory.
    """
    found: list[int] = []
    for layer in layers:
        try:
            fd = kernel.open_in_root(layer, path, os.O_PATH | os.O_NOFOLLOW, kernel.RESOLVE_NO_SYMLINKS)
        except KernelError as error:
            if error.errno == ENOENT:
                continue
            if error.errno in (ENOTDIR, ELOOP):  # what the layers above have as a directory is something else here
                break
            raise
        try:
            mode = os.fstat(fd).st_mode
            if not found and stat.S_ISLNK(mode):
                return os.fsdecode(os.readlink(b"", dir_fd=fd)), []
            if not stat.S_ISDIR(mode):
                break
            found.append(layer)
            if _is_opaque(fd):
                break
        finally:
            os.close(fd)
    return "", found


def _is_opaque(fd: int) -> bool:
    for name in ("user.overlay.opaque", "trusted.overlay.opaque"):
        try:
            if os.getxattr(f"/proc/self/fd/{fd}", name) == b"y":
                return True
        except OSError:
            continue  # it has none, or that is not ours to read
    return False
