# SPDX-License-Identifier: Apache-2.0
"""`nsrun cp`: whose files are copied, as whom, and to where; host/treecopy.py copies."""

from __future__ import annotations

import os
from errno import EACCES, EINVAL, ELOOP, ENOENT, ENOTDIR
from stat import S_ISDIR, S_ISFIFO, S_ISLNK, S_ISREG

from nsrun import kernel
from nsrun.errors import BadInput, NsrunError, UnknownError, UsageError
from nsrun.host.treecopy import Directory, Names, Place, Tar, Walk, unpack
from nsrun.lifecycle import check_userns, pod_of
from nsrun.lifecycle.stop import wait_dead
from nsrun.plan import Plan
from nsrun.run import Run
from nsrun.schema import check_name, is_there
from nsrun.spec.idmaps import maps_in, to_host, to_pod
from nsrun.state import BEGUN, life

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Any

    from nsrun.state import State

#: What an id looks like that a user namespace does not have: /proc/sys/kernel/overflowuid.
NOBODY = 65534


def parse_end(text: str) -> tuple[str, str]:
    """Return (member, path) of one end of a copy; the member is "" for this host, whose path "-" is a stream.

    A colon after a slash, or after a dot at the beginning, belongs to a path of this host, as in docker and scp.
    """
    head, colon, rest = text.partition(":")
    if not text:
        raise UsageError("a path is empty", hint="is a shell variable unset?")
    if not colon or "/" in head or head.startswith("."):
        return "", text
    check_name(head, "member")
    if not rest:
        raise UsageError(f"{text!r} has no path after the colon", hint=f"{head}:/ is all of it")
    return head, rest


def parse_ends(source: str, target: str) -> list[str]:
    """Return the members of a copy.  Raise UsageError unless there is one, and at most one stream."""
    ends = parse_end(source), parse_end(target)
    members = [name for name, _ in ends if name]
    if not members:
        raise UsageError(
            "neither of the two is a path of a member", hint="nsrun cp MEMBER:PATH FILE, or nsrun cp FILE MEMBER:PATH"
        )
    return members


class _Root:
    """The root of a member: of one that runs, what its process has as /; of one that has ended, its overlay once more."""

    def __init__(self, state: State, name: str) -> None:
        self.state, self.run = state, Run(Plan("cp", []), state)
        self.note: Any = state.member(name)
        self.name, self.pod = self.note["name"], pod_of(state, name)
        self.fd, self.process, self.pid = -1, -1, 0
        self.status = state.member_status(self.note)[0]
        if self.status in BEGUN:
            self.process, self.pid = state.process(self.note)
            if self.process < 0:
                raise UnknownError(f"member {self.name!r} has just ended", hint="nsrun ls -a")
        elif self.status == "stopped":
            self._take()
        else:
            raise BadInput(f"member {self.name!r} is {self.status}", hint="nsrun ls -a")

    def _take(self) -> None:
        """Have a member that has ended for ourselves, so that it is not started or removed meanwhile."""
        from nsrun.lifecycle.again import _there, options_of
        from nsrun.lifecycle.join import Former, _source

        state, note = self.state, self.note
        lock = state.lock("names")
        try:
            if state.life("members", self.name).alive or not state.surely_ended(note):
                raise BadInput(
                    f"another nsrun uses member {self.name!r}", hint="try again when it has ended; nsrun ls -a"
                )
            self.run.hold("lock:held", life.take(state.held("members", self.name), life.MAKER))
            if is_there(state.upper(note["id"])):
                self.run.hold("lock:data", life.take(f"{state.upper(note['id'])}/{life.HELD}", life.MAKER))
        finally:
            os.close(lock)
        options: Any = options_of(state, note)
        if options.get("image") is not None:
            from nsrun.image import lookup

            self.run.hold("store", lookup.share_store(state))
        with _there(options):
            self.source = _source(state, options, Former(note))
        if self.source.root == "/":
            raise BadInput(f"member {self.name!r} had this host's own files", hint="cp(1)")
        self.plain = bool(options.get("writable"))

    def user_namespace(self) -> int:
        """Return a pidfd of a process in the user namespace of its pod, which an ordinary user enters; -1: it has none."""
        if not self.pod.get("user") and self.process < 0:
            return -1
        if self.process >= 0:
            return self.process
        fd, _ = self.state.pause(self.pod)
        if fd < 0:
            raise UnknownError(
                f"the pod of member {self.name!r} has ended, and with it the user namespace in which its files can be read",
                hint=f"what it wrote is in {self.state.upper(self.note['id'])}/upper",
            )
        return self.run.hold("pod:pidfd", fd)

    def open(self) -> int:
        """Return a descriptor of the root.  Raise NsrunError."""
        if self.process >= 0:
            fd = self.run.hold("root", os.open(f"/proc/{self.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            if wait_dead(self.process, 0):  # else the pid was its own when we opened that
                raise UnknownError(f"member {self.name!r} has just ended", hint="nsrun ls -a")
            return fd
        if self.plain:
            return self.run.hold("root", os.open(self.source.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        from nsrun.plan.mounts import OverlayRoot
        from nsrun.plan.owner import OpenUserNamespace
        from nsrun.plan.process import OpenProcess

        idmap = "pod:user" if self.pod.get("user") and not self.state.uid else ""
        if idmap:
            OpenProcess(f"the pause of {self.pod['name']}", self.pod, False, "pod:pidfd").do(self.run)
            OpenUserNamespace("pod:pidfd").do(self.run)
        OverlayRoot(self.source.layers or (self.source.root,), self.note["id"], True, idmap, "root").do(self.run)
        return self.run.fd("root")

    def close(self) -> None:
        self.run.close()
        if self.process >= 0:
            os.close(self.process)


def _names(root: _Root, inward: bool, archive: bool) -> Names:
    """Return as whose the files are copied.

    Root keeps owners as this host numbers them; one that the pod has no id for is its root there.  An ordinary user, who is in
    the pod's user namespace, keeps them as the pod numbers them; what they copy out is theirs.
    """
    maps = maps_in(root.pod)

    def inside(kind: str, ident: int) -> int:
        if root.state.uid:
            return 0 if ident == NOBODY else ident
        return ident if not maps or to_pod(maps[kind], ident) >= 0 else to_host(maps[kind], 0)

    def owner(uid: int, gid: int) -> tuple[int, int] | None:
        if inward:
            return inside("uid", uid), inside("gid", gid)
        return None if root.state.uid and not archive else (uid, gid)

    return Names(owner, inward)


def _why(error: OSError, end: str) -> NsrunError:
    hint = ""
    if error.errno == ENOENT:
        hint = "ls, or nsrun exec MEMBER ls, shows what is there"
    elif error.errno == EACCES:
        hint = "whose is it? ls -ln"
    elif error.errno in (ELOOP, ENOTDIR):
        hint = "a part of the path is not a directory, or is a link that leads nowhere"
    return BadInput(f"{end}: {os.strerror(error.errno or 0)}", hint=hint, errno=error.errno or 0)


def copy(
    state: State,
    source: str,
    target: str,
    follow: bool = False,
    archive: bool = False,
    output: IO[bytes] | None = None,
) -> list[str]:
    """Copy, and return what was left out.  Raise NsrunError when a path is not what it must be, or something fails.

    `output` gets a tar when that is the target.  As an ordinary user this process enters the pod's user namespace for good.
    """
    (from_member, from_path), (to_member, to_path) = parse_end(source), parse_end(target)
    roots: dict[str, _Root] = {}
    try:
        for name in filter(None, (from_member, to_member)):
            if name not in roots:
                roots[name] = _Root(state, name)
        if to_member and roots[to_member].note["rootfs"] == "/":
            raise BadInput(f"member {to_member!r} has this host's own files", hint="cp(1) writes to those")
        _enter(state, list(roots.values()))
        places = {name: Place(root.open()) for name, root in roots.items()}
        places[""] = Place()
        names = _names(roots[to_member or from_member], bool(to_member), archive)
        if not from_member and from_path == "-":
            return _from_tar(places[to_member], to_path, target, names)
        with kernel.Fd(_find(places[from_member], from_path, source, follow)) as fd:
            inner = _inner_name(from_path)
            if inner == "" and not S_ISDIR(os.fstat(fd).st_mode):
                raise BadInput(f"{source}: it is not a directory")
            if not to_member and to_path == "-":
                if output is None:
                    raise UsageError("standard output is not to be written to")
                return _to_tar(fd, inner or ".", source, output)
            return _to_directory(fd, inner, source, places[to_member], to_path, target, names)
    finally:
        for root in roots.values():
            root.close()


def _enter(state: State, roots: list[_Root]) -> None:
    """Enter the user namespace of the members, as an ordinary user.  Raise BadInput when they are of several."""
    if not state.uid:
        for root in roots:
            if not root.pod.get("user") and "id" in root.pod:
                check_userns(root.pod)
        return
    if len({root.note["pod_id"] for root in roots}) > 1:
        raise BadInput("the two members are in different pods", hint="nsrun cp A:PATH - | nsrun cp - B:DIR")
    fd = roots[0].user_namespace()
    if fd >= 0:
        kernel.enter_userns(fd)


def _from_tar(place: Place, path: str, end: str, names: Names) -> list[str]:
    if os.isatty(0):
        raise UsageError("standard input is a terminal, and not a tar", hint="tar -c … | nsrun cp - MEMBER:DIR")
    try:
        os.close(place.open(path, os.O_PATH | os.O_DIRECTORY))
        return unpack(0, place, path, names)
    except OSError as error:
        raise _why(error, end) from None


def _inner_name(path: str) -> str:
    """Return the name of a source; "" when its contents are meant: PATH/., a root, or this very directory."""
    name = path.rstrip("/").rpartition("/")[2]
    return "" if name in ("", ".", "..") else name


def _find(place: Place, path: str, end: str, follow: bool) -> int:
    """Return a descriptor (O_PATH) of a source; a link at its end is the source itself, unless it is to be followed."""
    try:
        above, name = place.split(path)
        with kernel.Fd(above) as directory:
            if follow or name == "." or path.endswith("/"):
                return place.open(path, os.O_PATH)
            return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except OSError as error:
        raise _why(error, end) from None


def _to_tar(fd: int, name: str, source: str, output: IO[bytes]) -> list[str]:
    sink = Tar(output)
    walk = Walk(sink)
    try:
        walk.everything(fd, name)
        sink.close()
    except BaseException as error:
        sink.give_up()
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            raise _why(error, f"{source} to a tar") from None
        raise
    return walk.told()


def _to_directory(fd: int, inner: str, source: str, to: Place, path: str, target: str, names: Names) -> list[str]:
    try:
        top, name = _place_for(to, path, target, inner, os.fstat(fd).st_mode)
        with kernel.Fd(top) as into:
            sink = Directory(into, names)
    except OSError as error:
        raise _why(error, target) from None
    walk = Walk(sink)
    try:
        walk.everything(fd, name)
    except OSError as error:
        raise _why(error, f"{source} to {target}, at {'/'.join(sink.path) or name or '.'}") from None
    finally:
        sink.close()
    return walk.told()


def _is_link(directory: int, name: str) -> bool:
    try:
        return S_ISLNK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _place_for(to: Place, path: str, end: str, inner: str, kind: int) -> tuple[int, str]:
    """Return (a descriptor of the directory in which the copy is made, its name there; "": the contents are copied into it).

    A link at the end of the path is followed as by cp(1): a link, or a FIFO, takes its place, and anything else that of what
    it leads to.
    """
    is_directory, follows = S_ISDIR(kind), not (S_ISLNK(kind) or S_ISFIFO(kind))
    try:
        found = to.open(path, os.O_PATH)
    except FileNotFoundError:
        if path.endswith("/") and not is_directory:
            raise
        above, name = to.split(path)
        if follows and _is_link(above, name):
            os.close(above)
            raise BadInput(
                f"{end} is a link that leads nowhere", hint="rm it first, or make what it leads to"
            ) from None
        return above, name
    with kernel.Fd(found) as fd:
        there = os.fstat(fd)
        if S_ISDIR(there.st_mode):
            return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), inner
    if is_directory or path.endswith("/"):
        raise BadInput(f"{end} is not a directory")
    if not S_ISREG(there.st_mode):
        raise BadInput(
            f"{end} is there, and is not a regular file", hint="what it leads to is not replaced: rm it first"
        )
    return _last_of_links(to, path, end, there) if follows else to.split(path)


def _last_of_links(to: Place, path: str, end: str, there: os.stat_result) -> tuple[int, str]:
    """Return (a descriptor of a directory, the name in it) of what a path leads to, through the links at its end."""
    for _ in range(40):  # as the kernel does
        above, name = to.split(path)
        with kernel.Fd(above) as directory:
            try:
                link = os.readlink(name, dir_fd=directory)
            except OSError as error:
                if error.errno != EINVAL:
                    raise
                now = os.stat(name, dir_fd=directory, follow_symlinks=False)
                if (now.st_dev, now.st_ino) == (there.st_dev, there.st_ino):
                    return directory.take(), name
                break
        head = path.rstrip("/").rpartition("/")[0]
        path = link if link.startswith("/") else f"{head}/{link}" if head or path.startswith("/") else link
    raise BadInput(f"{end} leads elsewhere by now", hint="try again")
