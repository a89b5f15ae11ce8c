# SPDX-License-Identifier: Apache-2.0
"""Hooks: programs that config.json names, called with the state of the container on standard input."""

from __future__ import annotations

import os

from nsrun import kernel
from nsrun.errors import BadInput, NsrunError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

#: Those that are called in the container's namespaces.
INSIDE = ("createContainer", "startContainer")


def state_of(note: Mapping[str, Any], pid: int, status: str) -> dict[str, Any]:
    """Return the state as hooks read it."""
    found: dict[str, Any] = {
        "ociVersion": note["ociVersion"],
        "id": note["id"],
        "status": status,
        "bundle": note["bundle"],
    }
    if pid:
        found["pid"] = pid
    if note["annotations"]:
        found["annotations"] = note["annotations"]
    return found


def call(
    kind: str,
    hook: Mapping[str, Any],
    document: Mapping[str, Any],
    pid: int,
    cgroups: Mapping[str, str],
    config: dict[str, Any] | None = None,
    root: str = "",
) -> None:
    """Call one hook and wait for it.  Raise BadInput when it fails, takes longer than its timeout, or its container is killed.

    `config` and `root` (of the state) are those of a container whose own root is all there is: then the hook is a program of
    the image, and confined as the container's are.
    """
    from nsrun.state import codec

    what = f"hooks.{kind}: {hook['path']}"
    with kernel.Fd(os.memfd_create("state", os.MFD_CLOEXEC)) as state, kernel.Fd(os.memfd_create("said", os.MFD_CLOEXEC)) as said:  # fmt: skip
        os.write(state, codec.dumps(document).encode())
        os.lseek(state, 0, os.SEEK_SET)
        try:
            if kind in INSIDE:
                child = _inside(hook, state, said, pid, cgroups, config, root)
            else:
                child = _outside(hook, state, said)
        except (OSError, NsrunError) as error:
            raise BadInput(f"{what}: {getattr(error, 'message', '') or error}") from None
        watched = 0 if kind in ("poststart", "poststop") else pid  # those two have their own end
        status = _wait(child, hook.get("timeout") or 0, watched, what)
        if status == 0:
            return
        text = "; ".join(filter(None, os.fsdecode(os.pread(said, 2000, 0)).split("\n")))
    why = (
        f"no end within {hook['timeout']} s"
        if status is None
        else f"signal {-status}"
        if status < 0
        else f"exit status {status}"
    )
    raise BadInput(f"{what}: {why}" + (f": {text}" if text else ""))


def _outside(hook: Mapping[str, Any], state: int, said: int) -> int:
    """Start a hook on the host."""
    environment = os.environ if hook.get("env") is None else dict(word.partition("=")[::2] for word in hook["env"])
    actions = [(os.POSIX_SPAWN_DUP2, state, 0), (os.POSIX_SPAWN_DUP2, said, 1), (os.POSIX_SPAWN_DUP2, said, 2)]
    arguments = hook.get("args") or [hook["path"]]
    return os.posix_spawn(hook["path"], arguments, environment, file_actions=actions, setsigdef=[13, 25], setsigmask=[])


def _inside(
    hook: Mapping[str, Any],
    state: int,
    said: int,
    pid: int,
    cgroups: Mapping[str, str],
    config: dict[str, Any] | None,
    root: str,
) -> int:
    """Start a hook in the namespaces of a container.  Raise BadInput when it is frozen: the hook would be, too."""
    from nsrun.oci.cgroups import is_frozen, read
    from nsrun.oci.plan import Facts, hook_plan
    from nsrun.oci.run import ContainerRun

    if is_frozen(dict(cgroups)):
        raise BadInput("the container's cgroup is frozen")
    keep_groups = read(f"/proc/{pid}/setgroups").strip() == "deny"
    facts = Facts(root=root, selinux=os.path.exists("/sys/fs/selinux/enforce"), keep_groups=keep_groups)
    run = ContainerRun(hook_plan(dict(hook), pid, kernel.process_start(pid), foreign(pid), cgroups, config, facts))
    run.hold("in:read", os.dup(state)), run.hold("out:write", os.dup(said)), run.hold("err:write", os.dup(said))
    run.watched, run.patience = pid, 5
    run.stdio = ("in:read", "out:write", "err:write")
    try:
        run.execute()
    finally:
        run.restore_signals()
    return run.pid


def foreign(pid: int) -> int:
    """Return the flags of the namespaces that a process has and we have not."""
    found = 0
    for name, flag in {**kernel.NAMESPACES, "time": kernel.CLONE_NEWTIME}.items():
        if name == "time" and not os.path.exists("/proc/self/ns/time"):
            continue  # this kernel has none
        if os.stat(f"/proc/{pid}/ns/{name}").st_ino != os.stat(f"/proc/self/ns/{name}").st_ino:
            found |= flag
    return found


def _wait(child: int, seconds: float, container: int, what: str) -> int | None:
    """Return the exit status of a child, negative for a signal; None when it was killed because it took too long.

    `container` is the first process of the container, 0 for none: when that ends, so does the child, and BadInput is raised.
    """
    from select import poll
    from time import monotonic

    from nsrun.oci.foreground import is_interrupted

    deadline = monotonic() + seconds if seconds else None
    with kernel.Fd(kernel.pidfd_open(child)) as fd, kernel.Fd(kernel.pidfd_of(container) if container else -1) as first:
        poller = poll()
        poller.register(fd, 1)
        if first >= 0:
            poller.register(first, 1)
        found: dict[int, int] = {}
        try:
            while not found and (deadline is None or monotonic() < deadline):
                left = 5.0 if deadline is None else min(5.0, max(deadline - monotonic(), 0))
                found = dict(poller.poll(left * 1000))
                if not found and left == 5.0 and is_interrupted():
                    raise KeyboardInterrupt  # `run` has blocked the signals
        finally:
            if fd not in found:
                kernel.pidfd_send_signal(fd, 9)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if fd in found and status == -9 and first >= 0:
            # the end of a PID namespace comes when all of its processes are reaped
            poller.unregister(fd)
            is_killed = bool(poller.poll(500))
        else:
            is_killed = bool(found) and fd not in found
    if is_killed:
        raise BadInput(f"{what}: the container was killed meanwhile")
    return status if found else None
