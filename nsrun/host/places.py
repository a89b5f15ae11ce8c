# SPDX-License-Identifier: Apache-2.0
"""Find the place of a mount's target in a root: the kernel follows its symlinks there before anything is mounted.

So `-v sock:/var/run/docker.sock` is mounted in /run where /var/run is a link, as people mean it, and mounts are ordered
by their real places.  nsrun-init then refuses every symlink, so a link that was made in between is not followed.
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

    from nsrun.types import Mount

MOST_LINKS = 40  # the limit of path_resolution(7)


def arrange(mounts: list[Mount], roots: Sequence[str], moved: dict[str, str]) -> list[Mount]:
    """Return these mounts, parents first, at the real places of their targets; `moved` gets the places that differ.

    `roots` is the root's directory, or those of its layers, from the top down.  Raise UsageError for a place at which
    nothing may be mounted, or for two mounts at the same place.
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
    """Return a path of a root, whose layers these descriptors are, without symlinks.

    A part that does not exist stays as it is.  Raise BadInput when the path passes too many links.
    """
    # names, and the layers in which each of them is a visible directory
    done: list[tuple[str, Sequence[int]]] = []
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
            # nsrun-init may look there, and refuses a link
            return "/" + "/".join([*(name for name, _ in done), name, *left[::-1]])
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
    """Return (the target of the link of this name or "", the layers that have it as a directory).

    Layers are merged as in overlayfs (Documentation/filesystems/overlayfs.rst): anything but a directory hides
    everything below it, and so do a whiteout and an opaque directory.
    """
    found: list[int] = []
    for layer in layers:
        try:
            fd = kernel.open_in_root(layer, path, os.O_PATH | os.O_NOFOLLOW, kernel.RESOLVE_NO_SYMLINKS)
        except KernelError as error:
            if error.errno == ENOENT:
                continue
            if error.errno in (ENOTDIR, ELOOP):  # a directory of the layers above is something else in this one
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
            continue  # it has none, or we may not read it
    return False
