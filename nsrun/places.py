"""Where a mount's target is in a root: its symlinks are followed inside of it, by the kernel, before anything is mounted.

So `-v sock:/var/run/docker.sock` lands in /run where /var/run is a link, as people mean it, and the order of mounts is that of
the places they really have.  nsrun-init then refuses every symlink: what changed in between is not followed.
"""

from __future__ import annotations

import os
from errno import EACCES, ELOOP, ENOENT, ENOTDIR

from nsrun import kernel
from nsrun.errors import BadInput, KernelError, UsageError
from nsrun.words import check_place

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
            if place in taken and target != taken[place]:
                raise UsageError(f"two mounts are at {place}: {taken[place]} and {target} lead to it")
            taken[place] = target
    finally:
        for fd in layers:
            os.close(fd)
    return sorted(mounts, key=lambda mount: mount["destination"].split("/"))


def real_path(layers: Sequence[int], path: str) -> str:
    """Return a path of a root, whose layers these descriptors are, without symlinks; what does not exist of it stays as it is.

    BadInput: it passes too many links.
    """
    done: list[str] = []
    left = path.split("/")[::-1]
    links = 0
    while left:
        name = left.pop()
        if name in ("", "."):
            continue
        if name == "..":
            done[-1:] = []
            continue
        try:
            to = _link(layers, "/".join([*done, name]))
        except KernelError as error:
            if error.errno != EACCES:
                raise
            return "/" + "/".join([*done, name, *left[::-1]])  # nsrun-init may look, and refuses a link
        if to is None:
            done.append(name)
            continue
        links += 1
        if links > MOST_LINKS:
            raise BadInput(f"{path} passes more than {MOST_LINKS} symlinks of the rootfs", errno=ELOOP)
        if to.startswith("/"):
            done = []
        left += to.split("/")[::-1]
    return "/" + "/".join(done)


def _link(layers: Sequence[int], path: str) -> str | None:
    """What the uppermost thing of this name is a link to; None: it is none, or nothing."""
    for layer in layers:
        try:
            fd = kernel.open_in_root(layer, path, os.O_PATH | os.O_NOFOLLOW)
        except KernelError as error:
            if error.errno in (ENOENT, ENOTDIR):
                continue
            raise
        try:
            return os.readlink(b"", dir_fd=fd).decode("utf-8", "surrogateescape")
        except OSError:
            return None  # not a link; a whiteout is none, either
        finally:
            os.close(fd)
    return None
