# SPDX-License-Identifier: Apache-2.0
"""`nsrun volume`: the named volumes, and which members use them.

A volume is a directory, LIB/volumes/NAME, and nothing is written down about it: a member uses it if the mounts in its
config.json say so, whether it runs or has ended, because it can be started again.  A note that can't be read may speak of
any volume, so then none is removed.
"""

from __future__ import annotations

import os

from nsrun import kernel
from nsrun.errors import BadInput, NsrunError, UnknownError
from nsrun.schema import is_directory, is_name, is_there
from nsrun.state import make_directory, new_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nsrun.state import Note, State

_GONE = ".gone-"  # what is being removed; no volume can have such a name
_LOCK = "volumes"


def _path(state: State, name: str) -> str:
    if not is_name(name) or not is_directory(f"{state.lib}/volumes/{name}"):
        known = ", ".join(names(state))
        raise UnknownError(
            f"no volume {name!r}", hint=f"known volumes: {known}" if known else "nsrun join -v NAME:DIR makes one"
        )
    return f"{state.lib}/volumes/{name}"


def names(state: State) -> list[str]:
    """Return the names of the volumes."""
    try:
        return sorted(filter(is_name, os.listdir(f"{state.lib}/volumes")))
    except FileNotFoundError:
        return []


def users(state: State) -> dict[str, list[str]]:
    """Return the members that use each volume.  Raise BadInput when a note can't be read, which may be about one."""
    found = _known_users(state)
    if state.broken:
        path, why = next(iter(state.broken.items()))
        raise BadInput(
            f"{path}: {why}: it may be about a member that uses a volume", hint="nsrun doctor; nsrun pod prune"
        )
    return found


def _known_users(state: State) -> dict[str, list[str]]:
    """Return the members that use each volume, as far as their notes can be read: State.broken has the others."""
    found: dict[str, list[str]] = {}
    within = f"{state.lib}/volumes/"
    for note in state.all("members"):
        spec = state.try_read("members", note["name"], "config.json")
        for mount in spec.get("mounts", []) if spec else []:
            source = str(mount.get("source", ""))
            if source.startswith(within):
                name = source[len(within) :].partition("/")[0]
                if note["name"] not in found.setdefault(name, []):
                    found[name].append(note["name"])
    return found


def _when(path: str) -> str:
    import time

    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(kernel.birth(path) // 10**9 or os.stat(path).st_mtime))


def describe(state: State, wanted: list[str] | None = None) -> list[dict[str, Any]]:
    """Return what there is to say of volumes (None: of all).  Raise UnknownError for one that does not exist."""
    paths = {name: _path(state, name) for name in (names(state) if wanted is None else wanted)}
    used = _known_users(state)
    return [
        {"name": name, "path": path, "created": _when(path), "members": used.get(name, [])}
        for name, path in paths.items()
    ]


def remove(state: State, name: str, used: dict[str, list[str]] | None = None) -> str:
    """Remove a volume that no member uses; return what is to be told, or "".  Raise BadInput when one does.

    It is renamed first, and then asked once more: a member that is being made has said what it uses before it opens or makes
    that, so whoever comes later gets a new volume, and whoever came before is seen.  Until that is known another command must
    not take it for half removed: the lock `volumes`.
    """
    told, gone = "", f"{state.lib}/volumes/{_GONE}{new_id()}"
    with kernel.Fd(state.lock(_LOCK)):
        path = _path(state, name)
        _refuse_used(name, users(state) if used is None else used)
        os.rename(path, gone)
        ours = _hold(gone)
        try:
            _refuse_used(name, users(state))
        except BaseException as error:
            if not is_there(path):
                os.rename(gone, path)
                _let_go(ours)
                raise
            if not isinstance(error, BadInput):
                _let_go(ours)
                raise
            told = f"volume {name!r} was removed, and a member has made a new one of that name meanwhile"
    try:
        state.remove_written(gone)
    finally:
        _let_go(ours)
    if is_there(gone):
        raise NsrunError(
            f"can't remove all of volume {name!r}: {gone}",
            hint="is something mounted in it, or is a file immutable? findmnt -R; lsattr -R; then nsrun volume prune",
        )
    return told


def _hold(gone: str) -> int:
    """Return a descriptor of a volume that is being removed, with a lock by which others know that somebody does so: flock(2).

    Return -1 when it can't be opened, since an ordinary user's member may have made it its own.  Raise BlockingIOError when
    another has the lock.
    """
    import fcntl

    try:
        fd = os.open(gone, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except PermissionError:
        return -1
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _let_go(fd: int) -> None:
    if fd >= 0:
        os.close(fd)


def _refuse_used(name: str, used: dict[str, list[str]]) -> None:
    if members := used.get(name):
        raise BadInput(
            f"volume {name!r} is used by member{'s' if len(members) > 1 else ''} {', '.join(members)}",
            hint=f"nsrun rm {' '.join(members)}",
        )


def unused(state: State) -> list[str]:
    """Return the volumes that no member uses."""
    used = users(state)
    return [name for name in names(state) if name not in used]


def finish(state: State) -> list[str]:
    """Remove what commands that were killed have left half removed, and what nobody else is removing; return its paths."""
    within, removed = f"{state.lib}/volumes", []
    try:
        if not any(entry.startswith(_GONE) for entry in os.listdir(within)):
            return []
        with kernel.Fd(state.lock(_LOCK)):  # else one of them may be renamed back
            entries = os.listdir(within)
    except FileNotFoundError:
        return []
    for entry in entries:
        if entry.startswith(_GONE):
            try:
                ours = _hold(f"{within}/{entry}")
            except (FileNotFoundError, BlockingIOError):
                continue  # somebody removes it
            try:
                state.remove_written(f"{within}/{entry}")
                removed.append(f"{within}/{entry}")
            finally:
                _let_go(ours)
    return removed


# ---- volumes that live with a pod: POD_NAME-MARK, of YAML (nsrun.kube.pods) -------------------------------------------


def provide(state: State, name: str, files: dict[str, tuple[bytes, int]] | None, group: int, pod: Note) -> None:
    """Make a volume of the pod's own, unless it is there: with these files, or an empty one that everybody may write to.

    It gets its name when it is whole, so a volume that is there has all of its files.  `group`: whose it is, -1: root's.
    """
    path, staging = f"{state.lib}/volumes/{name}", f"{state.lib}/volumes/{_GONE}{new_id()}"
    make_directory(f"{state.lib}/volumes")
    with kernel.Fd(state.lock(_LOCK)):
        if is_there(path):
            return
        os.mkdir(staging, 0o700)
        try:
            for file, (content, mode) in (files or {}).items():
                os.makedirs(os.path.dirname(f"{staging}/{file}"), 0o755, exist_ok=True)
                with open(f"{staging}/{file}", "xb") as opened:
                    opened.write(content)
                os.chmod(f"{staging}/{file}", mode | (0o040 if group >= 0 else 0))
            os.chmod(staging, 0o777 if files is None else 0o755)
            _give(state, staging, group, pod)
            os.rename(staging, path)
        except BaseException:
            state.remove_written(staging)
            raise


def _give(state: State, top: str, group: int, pod: Note) -> None:
    """Have what is in a new volume belong to root of the pod, and to a group."""
    from nsrun.spec.idmaps import to_host

    if state.uid:
        return  # an owner is root of the pod themselves
    uid, gid = 0, max(group, 0)
    if user := pod.get("user"):
        uid, gid = to_host(user["maps"]["uid"], uid), to_host(user["maps"]["gid"], gid)
        if uid < 0 or gid < 0:
            raise BadInput(f"the pod's user namespace has no group {group}", hint="a larger range in /etc/subgid")
    for directory, _, files in os.walk(top):
        os.chown(directory, uid, gid)
        mode = os.stat(directory).st_mode & 0o777
        os.chmod(directory, mode | (0o2000 if group >= 0 else 0))
        for file in files:
            kept = os.stat(f"{directory}/{file}").st_mode & 0o777
            os.chown(f"{directory}/{file}", uid, gid)
            os.chmod(f"{directory}/{file}", kept)


def drop_own(state: State, pod: str, keep: set[str]) -> None:
    """Remove the volumes that lived with pods of this name, but for those to `keep` and those that a member uses."""
    import re

    pattern = re.compile(re.escape(pod) + r"_[a-z0-9][a-z0-9-]*-[0-9a-f]{12}")
    found = [name for name in names(state) if pattern.fullmatch(name) and name not in keep]
    used = users(state) if found else {}
    for name in found:
        if not used.get(name):
            remove(state, name, used)
