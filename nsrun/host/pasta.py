# SPDX-License-Identifier: Apache-2.0
"""The network of a pod that has no bridge: pasta(1), which needs no privilege.

A user's pasta writes its pid file last, so it is ready when that is there.  Root's can't, since it gives up root before that, and
root's directories are closed; it is ready when it has its own filter of system calls, which comes even later.  It ends with
pause: nsrun-door or nsrun-hold sees to that, or, if those were killed, the sweep that releases the pod.

The namespaces are its standard input and output, for root's: it opens them when it has no power over /proc/PID/ns any more, and
newer versions close all other descriptors first.
"""

from __future__ import annotations

import _signal
import os
import time
from errno import EACCES
from fcntl import LOCK_EX, LOCK_NB, flock

from nsrun import kernel
from nsrun.errors import BadInput, NsrunError
from nsrun.schema import is_number, open_regular, open_text

SECONDS = 10


def without_ipv6() -> str:
    """Return why pasta gives pods no IPv6: it copies the address of the interface with the default route; proc_net(5), ipv6_route."""
    try:
        with open("/proc/thread-self/net/ipv6_route", "rb") as file:
            routes = [line.split() for line in file]
    except FileNotFoundError:
        routes = []
    if any(fields[1] == b"00" and fields[9] != b"lo" for fields in routes):
        return ""
    return "pasta gives a pod no IPv6 address, since this host has no default route of IPv6"


def _may_open(path: str, anybody: bool) -> bool:
    return os.access(path, os.R_OK | os.W_OK) and (not anybody or os.stat(path).st_mode & 0o006 == 0o006)


def _filters(pid: int) -> int:
    """Return how many filters of system calls a process has: proc_pid_status(5), Seccomp_filters."""
    with open(f"/proc/{pid}/status", "rb") as file:
        return next((int(line.split()[1]) for line in file if line.startswith(b"Seccomp_filters:")), 0)


def start(command: list[str], directory: str, namespaces: tuple[int, int] | None = None) -> tuple[int, int]:
    """Start pasta; return its (pid, pidfd).  `namespaces`: descriptors of the pod's network and of its user namespace, of root's.

    Raise NsrunError with its messages, or when it is missing.  They go to DIRECTORY/forward.log.
    """
    if not _may_open("/dev/net/tun", bool(namespaces)):
        there = os.path.exists("/dev/net/tun")
        raise NsrunError(
            f"pasta needs /dev/net/tun, which {('only root may open' if namespaces else 'you may not open') if there else 'is not there'}",
            hint="sudo chmod 0666 /dev/net/tun (what udev does)" if there else "sudo modprobe tun",
        )
    pidfile, log = f"{directory}/forward.pid", f"{directory}/forward.log"
    errors = open_regular(log, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW)
    try:
        flock(errors, LOCK_EX | LOCK_NB)  # pasta inherits it, since this is its standard error: see end_of
    except BlockingIOError:
        os.close(errors)
        raise NsrunError(f"another pasta is writing to {log}", hint="nsrun pod ls -a; nsrun pod prune") from None
    os.ftruncate(errors, 0)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    if namespaces:
        command = [f"{directory}/pasta", *command[1:]]  # it goes by the last part, and end_of() by all of it
    else:
        command = [*command, "--pid", pidfile]
    before = _filters(os.getpid())
    try:
        stdio = (*(namespaces or (null, null)), errors)
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(stdio)]
        pid = os.posix_spawnp(
            "pasta",
            command,
            os.environ,
            file_actions=actions,
            setsigmask=[],
            setsigdef=[_signal.SIGPIPE],  # Python ignores SIGPIPE, and pasta fails when it inherits that
            setsid=True,
        )
    except FileNotFoundError:
        raise NsrunError(
            "pasta is missing: a pod that is made without root, or with --network pasta, needs it for its network",
            hint="apt-get install passt; or --network none; or let root make the pod, on the bridge: sudo nsrun pod create",
        ) from None
    finally:
        os.close(errors)
        os.close(null)
    end = time.monotonic() + SECONDS
    try:
        while time.monotonic() < end:
            if os.waitpid(pid, os.WNOHANG)[0]:
                break
            try:
                if _filters(pid) > before if namespaces else os.stat(pidfile).st_size:
                    return pid, kernel.pidfd_open(pid)
            except (FileNotFoundError, ProcessLookupError):
                pass
            time.sleep(0.002)
        else:
            stop(pid)
    except BaseException:  # including KeyboardInterrupt
        stop(pid)
        raise
    with open_text(log) as file:
        said = [line for line in file.read(4096).split("\n") if line and not line.startswith("Failed to send")]
    hint = " ".join(command)
    if any("routable interface" in line for line in said):
        hint = "this host has no route to a network that pasta could copy (ip route shows none): use --network none"
    raise NsrunError(f"pasta did not start: {' '.join(said) or 'it said nothing'}", hint=hint)


def stop(pid: int) -> None:
    """Kill pasta and reap it, when it is a child of ours."""
    try:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        return


def end_of(directory: str) -> None:
    """End the pasta of a pod whose nsrun-door was killed.  It is recognised by its --pid DIRECTORY/forward.pid, or by the name DIRECTORY/pasta.

    As long as forward.log is locked there is one, though perhaps not under that name yet, if its maker was killed
    between fork and exec.  Raise NsrunError when it does not end.
    """
    _kill(directory)
    try:
        log = open_regular(f"{directory}/forward.log")
    except OSError:
        return  # there was none, or something else took its place: then only the command line can tell
    try:
        for _ in range(300):
            try:
                flock(log, LOCK_EX | LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(0.01)
                _kill(directory)
    finally:
        os.close(log)
    raise _stays(directory)


def _stays(directory: str) -> NsrunError:
    return NsrunError(f"pasta of {directory} does not end", hint="ps -eo pid,ppid,stat,wchan,args | grep pasta")


def _await(pidfd: int, directory: str) -> None:
    """Wait until a process that was killed has ended.  Raise NsrunError when it does not."""
    from select import poll

    poller = poll()
    poller.register(pidfd, 1)
    if not poller.poll(3000):
        raise _stays(directory)


def _kill(directory: str) -> None:
    """Kill the pasta that has the directory in its command line, and wait for its end.  Raise NsrunError when it does not end."""
    tail, name = os.fsencode(f"\0--pid\0{directory}/forward.pid\0"), os.fsencode(f"{directory}/pasta\0")
    for pid in filter(is_number, os.listdir("/proc")):
        try:
            fd = kernel.pidfd_of(int(pid))
            if fd < 0:
                continue
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    command = file.read()
                if command.startswith(name) or (command.startswith(b"pasta\0") and command.endswith(tail)):
                    # we had the pidfd before we read the command line, so the pid has not passed to another process
                    kernel.pidfd_send_signal(fd, 9)
                    _await(fd, directory)
            finally:
                os.close(fd)
        except OSError:
            continue  # it has ended, or it is another user's


def check_port(port: int) -> None:
    """Raise BadInput for a port that an ordinary user may not bind.

    The hint is the exact command that allows it (podman#3212).
    """
    with open("/proc/sys/net/ipv4/ip_unprivileged_port_start", errors="surrogateescape") as file:
        first = int(file.read())
    if 0 < port < first:
        raise BadInput(
            f"port {port} needs root: ordinary users may bind ports from {first} on",
            hint=f"use a higher port; or: sudo sysctl net.ipv4.ip_unprivileged_port_start={port}; or: sudo nsrun pod create",
            errno=EACCES,
        )
