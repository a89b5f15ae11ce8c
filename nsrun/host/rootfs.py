"""Root directories of members, looked at before anything is made: are they what they are said to be, and whose are they?"""

from __future__ import annotations

import os
import stat
from errno import ENOENT

from nsrun import kernel
from nsrun.errors import BadInput, KernelError
from nsrun.spec.options import MAX_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def check_rootfs(path: str) -> str:
    """The absolute path of a directory with something in it."""
    if not path:
        raise BadInput("the rootfs is an empty word", hint="an unset variable?")
    real = os.path.realpath(path)
    if not os.path.lexists(path):
        raise BadInput(
            f"rootfs {path!r} does not exist", hint="rootfs/ has recipes that build one: make -C rootfs busybox"
        )
    if not os.path.isdir(real):
        raise BadInput(
            f"rootfs {path!r} is not a directory", hint="unpack an archive first: mkdir DIR; tar -C DIR -xf FILE"
        )
    if not os.listdir(real):
        raise BadInput(f"rootfs {path!r} is empty")
    if real == "/":
        raise BadInput("rootfs / is the host itself", hint="leave --rootfs out to run on the host's own filesystem")
    return real


def check_owner(root: str, pod: dict[str, Any]) -> None:
    """A rootfs whose ids mean nothing in the pod would be nobody's there; an ordinary user can't map it."""
    from nsrun.spec.idmaps import to_pod

    st = os.stat(root)
    if to_pod(pod["user"]["maps"]["uid"], st.st_uid) < 0:
        raise BadInput(
            f"rootfs {root!r} belongs to uid {st.st_uid} of this machine: in a pod of {pod['owner']}'s its files would be nobody's",
            hint="sudo nsrun join maps its ids; or take an image of your own: nsrun image load FILE, then --image",
        )


def read_small(root: str, path: str) -> str:
    """A regular file of at most 1 MiB, resolved inside `root`; "" when it is missing.

    BadInput for anything else there: a FIFO would hang us, a huge file fill the memory (threats R19).
    """
    try:
        directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    try:
        return read_small_at(directory, path)
    finally:
        os.close(directory)


def read_small_at(directory: int, path: str) -> str:
    """The same below a descriptor."""
    try:
        fd = kernel.open_in_root(directory, path, os.O_RDONLY | os.O_NONBLOCK)
    except KernelError as error:
        if error.errno == ENOENT:
            return ""
        raise BadInput(f"{path} of the rootfs can't be read: {error}", errno=error.errno or 0) from None
    try:
        st = os.fstat(fd)
        if not stat.S_ISREG(st.st_mode) or st.st_size > MAX_BYTES:
            raise BadInput(f"{path} of the rootfs is not a regular file of at most 1 MiB")
        return os.fsdecode(os.read(fd, MAX_BYTES))
    finally:
        os.close(fd)
