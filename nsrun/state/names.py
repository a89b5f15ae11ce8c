# SPDX-License-Identifier: Apache-2.0
"""The names by which the pods of a network find each other: lines in the hosts(5) file of each of them.

The file is on a tmpfs that root made (plan/names.py), and stays open in a process of the pod's: in its pause, or, where the pod
has an owner, in nsrun-hold, which is root's.  Root borrows that descriptor (pidfd_getfd(2)), knows the file by its device and inode,
which are in the note, and writes to it.  No path is followed, and all that is written is from root's own notes.

Whoever adds a pod or removes one writes all files anew, under the lock `hosts`, from the notes of those that live then: so two
who do that at once end with the same.
"""

from __future__ import annotations

import os
import stat
from errno import EBADF, EPERM, ESRCH

from nsrun import kernel
from nsrun.errors import KernelError, NsrunError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from nsrun.state import Note, State

LOCK = "hosts"
#: Bytes that the files may have (plan/names.py, SIZE).
MOST = 512 << 10


def tell(state: State, network: str, own: Mapping[str, int] | None = None, without: str = "") -> list[str]:
    """Write the names of a network's living pods into the files of all of them; return the pods whose file can't be had.

    `own`: descriptors that we have, by the ids of their pods.  `without`: the id of a pod that is about to go.
    """
    untold = []
    with kernel.Fd(state.lock(LOCK)):
        pods = [note for note in state.all("pods") if _is_on(state, note, network) and note["id"] != without]
        for note in sorted(pods, key=lambda note: note["id"] not in (own or {})):  # our own first
            ours = (own or {}).get(note["id"], -1)
            try:
                with kernel.Fd(os.dup(ours) if ours >= 0 else _borrow(state, note)) as fd:
                    write(fd, text_of(note, pods))
            except (OSError, NsrunError):
                if _is_on(state, note, network):  # it has not ended meanwhile
                    untold.append(note["name"])
    return untold


def _is_on(state: State, note: Note, network: str) -> bool:
    on = note["network"].get("name") == network and "hosts_file" in note["network"]
    return bool(on and state.pod_life(note).alive)


def text_of(note: Note, pods: list[Note]) -> str:
    """Return the file of a pod: what it was made with, and then the pods whose names that does not have."""
    base = note["network"]["hosts"]
    known = {name.lower() for line in base.split("\n") for name in line.split()[1:]}
    found = [f"{base}# pods of network {note['network']['name']}\n"]
    for pod in pods:
        if pod["name"].lower() not in known:
            addresses = (pod["network"].get(key, "") for key in ("ip", "ip6"))
            found += [f"{address}\t{pod['name']}\n" for address in addresses if address]
    return "".join(found)


def write(fd: int, text: str) -> None:
    """Replace what is in an open file.  It is written at once, with empty lines where it was longer, and cut then.

    One that a member with more capabilities has made longer than ours can get is cut first.
    """
    data = text.encode()
    there = os.fstat(fd).st_size
    if there > MOST:
        os.ftruncate(fd, 0)
        there = 0
    if there == len(data) and os.pread(fd, there, 0) == data:
        return
    left, at = data + b"\n" * (there - len(data)), 0
    while left:
        done = os.pwrite(fd, left, at)
        left, at = left[done:], at + done
    os.ftruncate(fd, len(data))


def _borrow(state: State, note: Note) -> int:
    """Return a descriptor of a pod's file.  Raise OSError or NsrunError when nobody has it."""
    pidfd, pid = state.first_holder(note)
    if pidfd < 0:
        raise KernelError(ESRCH, f"pidfd_open: pod {note['name']!r} has ended")
    with kernel.Fd(pidfd):
        for number in map(int, os.listdir(f"/proc/{pid}/fd")):
            try:
                if not os.readlink(f"/proc/{pid}/fd/{number}").startswith("/"):
                    continue  # a socket, or a pidfd
                fd = kernel.pidfd_getfd(pidfd, number)
            except OSError as error:
                if error.errno == EPERM:
                    raise
                continue  # it was closed just now
            if _is_its_file(fd, note):
                return fd
            os.close(fd)
    raise KernelError(EBADF, f"pidfd_getfd: process {pid} does not have the file of pod {note['name']!r}")


def _is_its_file(fd: int, note: Note) -> bool:
    st = os.fstat(fd)
    return stat.S_ISREG(st.st_mode) and [st.st_dev, st.st_ino] == note["network"]["hosts_file"]


def forget(state: State, note: Note) -> list[str]:
    """Take the names of a pod that has ended out of the files of the others; return the pods whose file can't be had."""
    network = note["network"].get("name", "")
    return tell(state, network, without=note["id"]) if network and not state.uid else []
