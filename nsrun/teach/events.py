# SPDX-License-Identifier: Apache-2.0
"""What the kernel tells of its own accord, for who follows something: `nsrun map --watch`, `lab watch` and `events`.

    process   a pidfd says that it has ended: pidfd_open(2)
    file      an entry of a directory has come, gone, or been written: inotify(7); the notes of nsrun, a cgroup
    program   somebody has opened a file in a directory of programs, which execve(2) does first: inotify(7)
    mount     what is mounted in a mount namespace has changed: proc_pid_mountinfo(5), poll(2)
    name      a hostname has changed, in whichever UTS namespace: /proc/sys/kernel/hostname, poll(2)
    network   an interface, an address or a route of the caller's network namespace, or its nf_tables: netlink(7)

There is no event that an ordinary process could wait for when somebody calls setns(2), unshare(2) or bind(2), nor for
the interfaces of another network namespace: a socket in there would tell, and would keep that namespace alive, too.
So whoever follows such things has to look from time to time: a Pace says when.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import time
from errno import EACCES, ENOENT, ENOTDIR

from nsrun import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from typing import Any

_IN_MODIFY, _IN_CLOSE_WRITE, _IN_OPEN, _IN_MOVE, _IN_CREATE, _IN_DELETE, _IN_ONLYDIR = 2, 8, 0x20, 0xC0, 0x100, 0x200, 0x01000000  # fmt: skip
COMES_AND_GOES = _IN_CREATE | _IN_DELETE | _IN_MOVE
IS_WRITTEN = COMES_AND_GOES | _IN_MODIFY | _IN_CLOSE_WRITE
_NETLINK_ROUTE, _NETLINK_NETFILTER = 0, 12
LINKS, ROUTES = 1 | 0x10, 0x40  # RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE
_NFNLGRP_NFTABLES = 7
_CHANGED = select.POLLPRI | select.POLLERR
#: So many processes, and so many mount namespaces, are followed at most: the descriptors of a process are limited, and
#: these are no more than a half and an eighth of them (RLIMIT_NOFILE), because whoever follows has to look as well.
MOST = 512
_MOST_MOUNTS = 64
#: So often something is read at most when it has told: who writes without end is not to keep us.
_READS = 16


class Events:
    """What is told while it is open.  What can't be followed here, by this user, is left out."""

    def __init__(self) -> None:
        self.poller = select.poll()
        self.kinds: dict[int, str] = {}  # descriptor → kind of event
        self.masks: dict[int, int] = {}  # descriptor → what poll(2) is asked for
        self.sockets: list[Any] = []
        self.pidfds: dict[tuple[int, int], int] = {}
        self.mounts: dict[int, int] = {}  # mount namespace → descriptor
        self.inotify: dict[str, int] = {}  # kind → descriptor
        self.muted: set[int] = set()  # descriptors
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.most, self.most_mounts = min(MOST, descriptors // 2), min(_MOST_MOUNTS, descriptors // 8)
        self.have_ended = False  # a process, before it could be followed
        self.lacks = ""  # why some directory is not followed, in the kernel's words; inotify(7)
        self.libc = ctypes.CDLL(None, use_errno=True)

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self.sockets:
            self.kinds.pop(sock.fileno())
            sock.close()
        for fd in self.kinds:
            os.close(fd)

    def _add(self, fd: int, kind: str, mask: int = select.POLLIN) -> None:
        self.kinds[fd], self.masks[fd] = kind, mask
        self.poller.register(fd, mask)

    def _drop(self, fd: int) -> None:
        del self.kinds[fd], self.masks[fd]
        if fd in self.muted:
            self.muted.remove(fd)
        else:
            self.poller.unregister(fd)
        os.close(fd)

    # ---- what to follow -----------------------------------------------------------------------------------------

    def network(self, groups: int, rules: bool = False) -> None:
        """Follow these groups of rtnetlink(7), and the rules of nf_tables if this user may."""
        from nsrun.host import wire

        # AF_NETLINK, SOCK_RAW|SOCK_CLOEXEC|SOCK_NONBLOCK
        wanted = [(_NETLINK_ROUTE, groups)] + ([(_NETLINK_NETFILTER, 1 << (_NFNLGRP_NFTABLES - 1))] if rules else [])
        for protocol, group in wanted:
            sock = wire.Socket(16, 0x80803, protocol)
            try:
                sock.bind((0, group))
            except OSError:
                sock.close()
                continue
            self.sockets.append(sock)
            self._add(sock.fileno(), "network")

    def reader(self, fd: int) -> None:
        """Follow whether somebody reads what is written to a pipe: poll(2) tells of POLLERR without being asked."""
        self._add(os.dup(fd), "reader", 0)

    def names(self) -> None:
        """Follow the hostnames."""
        try:
            self._add(os.open("/proc/sys/kernel/hostname", os.O_RDONLY | os.O_CLOEXEC), "name", _CHANGED)
        except OSError:
            pass

    def directories(self, paths: Iterable[str], mask: int = COMES_AND_GOES) -> None:
        """Follow the entries of these directories, from now on, or as before; those that do not exist are left out."""
        self._watch("file", paths, mask)

    def programs(self, paths: Iterable[str]) -> None:
        """Follow what is opened in these directories."""
        self._watch("program", paths, _IN_OPEN)

    def _watch(self, kind: str, paths: Iterable[str], mask: int) -> None:
        if kind not in self.inotify:
            self.inotify[kind] = self.libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
            if self.inotify[kind] >= 0:
                self._add(self.inotify[kind], kind)
            else:
                self.lacks = f"inotify_init1: {os.strerror(ctypes.get_errno())}"
        for path in paths if self.inotify[kind] >= 0 else ():
            # the same watch again, if there is one: inotify_add_watch(2)
            made = self.libc.inotify_add_watch(self.inotify[kind], os.fsencode(path), mask | _IN_ONLYDIR)
            if made < 0 and (errno := ctypes.get_errno()) not in (ENOENT, ENOTDIR, EACCES):
                self.lacks = f"inotify_add_watch: {os.strerror(errno)}"

    def mute(self, kinds: Collection[str]) -> None:
        """Do not wake up for what is told of these kinds until the next time; wake up again for all others.

        Of what a directory or the network tells meanwhile nothing is kept.
        """
        muted = {fd for fd, kind in self.kinds.items() if kind in kinds}
        for fd in muted - self.muted:
            self.poller.unregister(fd)  # for poll(2) tells of POLLERR without being asked, and so of names and mounts
        for fd in self.muted - muted:
            self.poller.register(fd, self.masks[fd])
        self.muted = muted

    def processes(self, wanted: Collection[tuple[int, int]]) -> None:
        """Follow the end of these processes, (pid, start), and of no others; of one that has ended the next wait() tells."""
        for gone in self.pidfds.keys() - set(wanted):
            self._drop(self.pidfds.pop(gone))
        for one in wanted:
            if one not in self.pidfds and len(self.pidfds) < self.most:
                try:
                    fd = kernel.pidfd_of(one[0])
                except OSError:
                    continue  # there are no descriptors left
                if fd >= 0 and kernel.process_start(one[0]) == one[1]:
                    self.pidfds[one] = fd
                    self._add(fd, "process")
                    continue
                self.have_ended = True
                if fd >= 0:
                    os.close(fd)  # the pid is another's now

    def mount_namespaces(self, wanted: dict[int, int]) -> None:
        """Follow what is mounted in these mount namespaces, and in no others: namespace → a process in it."""
        for gone in self.mounts.keys() - wanted.keys():
            self._drop(self.mounts.pop(gone))
        for place, pid in wanted.items():
            if place not in self.mounts and len(self.mounts) < self.most_mounts:
                try:
                    fd = os.open(f"/proc/{pid}/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
                except OSError:
                    continue  # it has ended, or we may not look
                self.mounts[place] = fd
                self._add(fd, "mount", _CHANGED)

    # ---- what is told -------------------------------------------------------------------------------------------

    def wait(self, seconds: float) -> set[str]:
        """Return the kinds of what was told since the last time, or within this time: each is told once.

        What was told is read, and not kept: that is all that there is to know, as everything is asked again.  What
        comes while it is read is of a kind that is returned, or it is left for the next time.
        """
        # one poll() only: the hostname and the mounts tell of a change to the first who polls, and never again
        told = {fd for fd, _ in self.poller.poll(0 if self.have_ended else max(0.0, seconds * 1000))}
        for fd in {*told, *self.muted} & {*(sock.fileno() for sock in self.sockets), *self.inotify.values()}:
            try:
                for _ in range(_READS):
                    os.read(fd, 1 << 16)
            except OSError:
                continue  # there is no more (EAGAIN), or more than the socket could hold (ENOBUFS)
        kinds = {self.kinds[fd] for fd in told} | ({"process"} if self.have_ended else set())
        self.have_ended = False
        for one, fd in [(one, fd) for one, fd in self.pidfds.items() if fd in told]:
            del self.pidfds[one]
            self._drop(fd)
        return kinds


class Pace:
    """When to look again: after `least` seconds, or later, so that looking takes no more than this share of a processor.

    After `most` seconds it is time in any case.
    """

    def __init__(self, share: float, least: float, most: float = float("inf")) -> None:
        self.share, self.least, self.most = share, least, most
        self.last = time.monotonic()
        self.next = self.last + least

    def __enter__(self) -> None:
        self.began = _used()

    def __exit__(self, *_: object) -> None:
        self.last = time.monotonic()
        self.next = self.last + min(max(self.least, (_used() - self.began) / self.share), self.most)


def _used() -> float:
    """Return the seconds of processor time of this thread, and of the commands that have run for this process."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.thread_time() + children.ru_utime + children.ru_stime
