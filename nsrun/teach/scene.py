# SPDX-License-Identifier: Apache-2.0
"""What the scenes of labs are made with: processes that carry the mark of the lab, and a small root filesystem."""

from __future__ import annotations

import json
import os
import subprocess
import time

from nsrun import kernel
from nsrun.errors import NsrunError
from nsrun.teach import facts
from nsrun.teach.lab import MARK, Need, environment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nsrun.teach.facts import Process
    from nsrun.teach.lab import Work

_SECONDS = 10


# ---- processes -------------------------------------------------------------------------------------------------


def run(work: Work, *command: str) -> str:
    """Run a command of the scene, and return what it prints.  Raise NsrunError when it fails."""
    done = subprocess.run(
        command, cwd=work.directory, env=_environment(work), stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip()
        raise NsrunError(f"the scene: {' '.join(command)}: {said or f'exit status {done.returncode}'}")
    return done.stdout.decode("utf-8", "replace")


def start(work: Work, *command: str) -> int:
    """Start a process of the scene, which goes on when we end, and return its pid."""
    return subprocess.Popen(
        command, cwd=work.directory, env=_environment(work), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    ).pid  # fmt: skip


def holder(work: Work, *unshare: str) -> int:
    """Start a process that holds a new network namespace, made by this command line of unshare(1); return its pid."""
    ours = os.stat("/proc/self/ns/net").st_ino
    pid = start(work, *unshare, "sleep", "infinity")

    def ready() -> bool:
        found = facts.process(pid)
        return found is not None and found.command[:1] == ["sleep"] and found.namespaces.get("net") != ours

    until(ready, f"{' '.join(unshare)} has made its namespaces")
    return pid


def unshare(ids: bool = False) -> str:
    """Return the command line of unshare(1) for a script of root and of ordinary users, who need a user namespace.

    `ids`: also with their subordinate ids.
    """
    return f"unshare --user --map-root-user{' --map-auto' if ids else ''}" if os.geteuid() else "unshare"


def until(condition: Callable[[], object], what: str) -> None:
    """Wait until something of the scene has come true.  Raise NsrunError when it does not."""
    end = time.monotonic() + _SECONDS
    while not condition():
        if time.monotonic() > end:
            raise NsrunError(f"the scene: it did not come true in {_SECONDS} s that {what}")
        time.sleep(0.01)


def _environment(work: Work) -> dict[str, str]:
    return {**os.environ, **work.variables, MARK: work.id}


# ---- a root filesystem -----------------------------------------------------------------------------------------


def _busybox() -> str:
    """Return the path of a busybox that needs no library; "" when there is none."""
    from shutil import which

    cache = os.environ.get("NSRUN_CACHE", "/var/cache/nsrun")
    for path in (f"{cache}/roots/busybox/bin/busybox", which("busybox", path="/bin:/usr/bin:/usr/local/bin")):
        if path and os.access(path, os.X_OK):
            with open(path, "rb") as file:
                head = file.read(4096)
            if b"/ld-" not in head:  # the path of a dynamic linker, PT_INTERP of elf(5)
                return path
    return ""


BUSYBOX = Need(
    "a static busybox",
    lambda: "" if _busybox() else "none was found",
    "apt-get install busybox-static; or, in a checkout of nsrun, sudo rootfs/build busybox",
)


def _no_subordinate_ids() -> str:
    from nsrun.host import userns

    try:
        if os.geteuid():
            userns.maps_of(userns.User(str(os.geteuid())))
    except NsrunError as error:
        return error.message
    return ""  # root may map any


SUBORDINATE = Need("subordinate ids", _no_subordinate_ids, "nsrun doctor prints the command that adds some")


def rootfs(work: Work) -> str:
    """Make a small root filesystem of busybox in the student's directory, and return its path."""
    import shutil

    top = f"{work.directory}/rootfs"
    for directory in ("bin", "dev", "etc", "proc", "root", "sys", "tmp", "var"):
        os.makedirs(f"{top}/{directory}")
    os.chmod(f"{top}/tmp", 0o1777)
    shutil.copy(_busybox(), f"{top}/bin/busybox")
    for name in run(work, f"{top}/bin/busybox", "--list").split():
        if name != "busybox":
            os.symlink("busybox", f"{top}/bin/{name}")
    for file, text in (
        ("passwd", "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var:/bin/sh\n"),
        ("group", "root:x:0:\nwww-data:x:33:\n"),
    ):
        with open(f"{top}/etc/{file}", "w") as opened:
            opened.write(text)
    return top


# ---- what else a machine may lack ------------------------------------------------------------------------------


def nf_tables(kind: str, hook: str) -> Need:
    """Return the need of nft(8), and of chains of this type in the kernel."""
    probe = f"add table ip lab; add chain ip lab probe {{ type {kind} hook {hook} priority 0; }}"

    def lacks() -> str:
        from shutil import which

        if not which("nft", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin"):
            return "nft is not installed"
        command = [*unshare().split(), "--net", "nft", probe]
        environment = {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
        try:
            done = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=10)
        except FileNotFoundError:
            return ""  # unshare(1) is missing, which is a need of its own
        return f"this kernel has no chains of type {kind}" if done.returncode else ""

    return Need("nf_tables", lacks, "apt-get install nftables; modprobe nf_tables nft_chain_nat")


# ---- questions, and the end ------------------------------------------------------------------------------------


def pause_of(work: Work) -> Process | None:
    """Return the pause that the scene made, if it lives; in a class, where root has no note of it, too."""
    pid = work.variables["PAUSE"]
    return next((process for process in work.mine if str(process.pid) == pid and facts.is_pause(process.pid)), None)


def path(work: Work, name: str) -> str:
    """Return a variable of the scene that is a path.

    Root, who grades a class, takes it from a process of the student's: it is what the student says, and only compared
    with what the kernel shows.  Raise KeyError when no process has it.
    """
    if name in work.variables:
        return work.variables[name]
    for process in work.mine:
        for line in environment(process.pid):
            if line.startswith(f"{name}=/".encode()):
                return os.fsdecode(line.partition(b"=")[2])
    raise KeyError(name)


def ask(pid: int, address: str, port: int, meanwhile: Callable[[int], object] | None = None) -> str:
    """Return what a web server says to a client in the network namespace of a process, or why it says nothing.

    A server that was started a moment ago may not listen yet: a refused connection is tried again for half a second.
    """
    end = time.monotonic() + 0.5
    while True:
        try:
            return facts.http(pid, address, port, meanwhile).strip()[:80] or "nothing"
        except OSError as error:
            if "refused" not in str(error) or time.monotonic() > end:
                return error.strerror or str(error)
        time.sleep(0.05)


def remove_pods(work: Work, root: str, pid: int) -> None:
    """Remove the pods whose notes are below `root`, which were made in the network namespace of a process."""
    if not os.path.isdir(root):
        return
    try:
        inside = facts.enter(pid, "net") if facts.namespaces_of(pid).get("net") else []
    except OSError:
        inside = []
    listed = json.loads(run(work, *inside, *kernel.nsrun_command(root, "pod", "ls", "--all", "--json")))
    if listed:
        run(work, *inside, *kernel.nsrun_command(root, "pod", "rm", "--force", *(pod["name"] for pod in listed)))
