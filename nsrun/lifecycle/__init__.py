# SPDX-License-Identifier: Apache-2.0
"""The life of pods and members, from what is asked of the machine to what is left: create, join, execute, query, stop, remove, restart.

Every function takes the `State` it works on; nothing is printed; what goes wrong is an `NsrunError` that carries step, errno
and hint.  Here stands what create, join and execute have in common.
"""

from __future__ import annotations

import os
from errno import ENOENT

from nsrun import kernel
from nsrun.errors import BadInput, CommandError, NsrunError, StepError
from nsrun.state import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from nsrun.types import ExecOptions, PodNote, Process

    Options = Mapping[str, Any]  # as the table of commands has checked them

MAX_ENVIRONMENT = 4 << 20  # bytes of an --env-file: execve(2) takes less


NO_ID = "ID"  # what explain prints where a real run has a random id


def need_root() -> None:
    if os.geteuid():
        raise BadInput(
            "needs root (CAP_SYS_ADMIN, CAP_NET_ADMIN) to make and join namespaces, mounts and images",
            hint="sudo nsrun …",
        )


#: The capabilities without which root can't make a pod, or join one (of its own: a user namespace has them all).
OF_CREATE = ("sys_admin", "setpcap", "setuid", "setgid", "kill", "sys_ptrace")


OF_JOIN = ("sys_admin", "setpcap", "setuid", "setgid", "sys_chroot", "sys_ptrace")


def need_powers(names: tuple[str, ...], what: str) -> int:
    """Return the capabilities that our children may have (CapBnd, capabilities(7)).  Raise BadInput when we lack one of `names`."""
    from nsrun.linux import capability_mask, capability_names

    sets = kernel.capability_sets()
    lacking = capability_mask(names) & ~(sets["CapEff"] & sets["CapBnd"])
    if lacking:
        words = ", ".join(f"CAP_{name.upper()}" for name in capability_names(lacking))
        raise BadInput(
            f"{what} needs {words}, which root does not have here",
            hint="capsh --print, or grep Cap /proc/self/status, shows what there is; an engine's container gets it with --cap-add",
        )
    return sets["CapBnd"]


def grant(process: Process, granted: int) -> None:
    """Take out of a process's capabilities those that can't be `granted` here (a bit mask)."""
    from nsrun.linux import capability_mask

    sets = process["capabilities"]
    rest = [name for name in sets["bounding"] if granted & capability_mask([name[4:].lower()])]
    if rest != sets["bounding"]:
        process["capabilities"] = {**sets, "bounding": rest, "permitted": rest, "effective": rest}


def check_userns(pod: PodNote) -> None:
    """Raise BadInput when a pod without a user namespace of its own was made in another one than ours.

    Whoever joined it all the same would be root of a larger world than those who are in it.  Of a member that outlived its pod
    nothing is noted: there the kernel decides, at setns(2).
    """
    theirs = pod.get("namespaces", {}).get("user")
    if theirs and theirs != os.stat("/proc/thread-self/ns/user").st_ino:
        raise BadInput(
            f"pod {pod['name']!r} was made in another user namespace",
            hint=f"join it from there: nsenter --user --target {pod['pause'][0]} --preserve-credentials nsrun …",
        )


def check_allowed(state: State, pod: PodNote) -> None:
    """Raise BadInput unless we are root or the owner of the pod."""
    if state.uid and not pod.get("user"):
        need_root()


def check_parent(state: State, pod: PodNote, fds: tuple[int, int, int] | None) -> None:
    """Raise BadInput when a caller of the library wants to be the parent of a process that only the pod's door can start."""
    if fds and pod.get("user") and state.uid:
        raise BadInput(
            "in a pod with a user namespace this process can't be the parent of members",
            hint="detach=True; or the command line: nsrun join, nsrun exec",
        )


def door_of(state: State, pod: PodNote) -> str:
    """Return the socket through which the owner of a pod starts processes in its cgroup; "": we are root, or it has no owner."""
    return state.door(pod) if pod.get("user") and state.uid else ""


def read_environment_file(path: str) -> list[str]:
    """Return the NAME=VALUE lines of a file; # begins a comment, and NAME alone takes the caller's value.

    A line ends at \\n, or at \\r\\n, as in Docker: every other character belongs to the value.  A byte order mark is
    dropped.  BadInput: it can't be read, is larger than MAX_ENVIRONMENT, or a name is empty or has blanks in it.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC), "rb") as file:
            data = file.read(MAX_ENVIRONMENT + 1)
    except OSError as error:
        raise BadInput(f"--env-file {path!r}: {error.strerror}") from None
    if len(data) > MAX_ENVIRONMENT:
        raise BadInput(f"--env-file {path!r} is larger than {MAX_ENVIRONMENT >> 20} MiB")
    found = []
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        line = os.fsdecode(raw.removesuffix(b"\r").lstrip(b" \t"))
        name = line.partition("=")[0]
        if not line or line.startswith("#"):
            continue
        if not name or "\0" in line or any(c.isspace() for c in name):
            raise BadInput(
                f"--env-file {path!r}, line {number}: {name!r} is not a name", hint="NAME=VALUE; no `export`"
            )
        found.append(line)
    return found


def environment_options(options: ExecOptions) -> list[str]:
    """Return what --env-file and -e say: a later file wins over an earlier one, and -e over all."""
    files = [line for path in options.get("env_file") or [] for line in read_environment_file(path)]
    return [*files, *(options.get("env") or [])]


def tell_event(fd: int, event: dict[str, Any]) -> None:
    """Write an event to --status-fd, as one line of JSON; an unread pipe loses it after a second."""
    if fd >= 0:
        from select import POLLOUT, poll

        from nsrun.state import codec

        poller = poll()
        poller.register(fd, POLLOUT)
        try:
            if poller.poll(1000):
                os.write(fd, codec.dumps(event).encode() + b"\n")
        except OSError:
            pass  # a reader that went away, or reads nothing, must not stop a member


def explain_exec(error: StepError, root: str) -> NsrunError:
    """Return the error of an exec in people's terms: what is missing, and in which file of the root directory `root`."""
    from nsrun.plan.process import Execute

    if not isinstance(error.init_step, Execute):
        return error
    from nsrun.lifecycle.diagnose import why_not

    message, hint = why_not(root, error.init_step, error.errno, error.detail)
    code = 127 if error.errno == ENOENT else 126
    failure = CommandError(message, exit_code=code, hint=hint, errno=error.errno, step=error.step)
    failure.number = error.number
    return failure


def pod_of(state: State, member: str) -> PodNote:
    """Return the note of a member's pod, which may be gone when the member has a PID namespace of its own."""
    note = state.member(member)
    found: Any = state.try_read("pods", note["pod"])
    pod: PodNote = found if found and found["id"] == note["pod_id"] else {"name": note["pod"]}
    return pod
