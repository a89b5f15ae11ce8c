# SPDX-License-Identifier: Apache-2.0
"""What a pod of YAML needs beside its members: volumes that live with it, paths of this host, and values that come late.

`up` asks for it: `check` before anything is done, `provide` before a member starts, and `clear_away` when the pod is as it should be.
"""

from __future__ import annotations

import os
import stat

from nsrun.cli.podfile import PodFile, Wanted
from nsrun.errors import BadInput
from nsrun.kube.fields import LIB, POD_ID, POD_IP, fill
from nsrun.lifecycle import NO_ID, volumes
from nsrun.spec.options import parse_network

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nsrun.kube.document import Field
    from nsrun.kube.pods import Compiled
    from nsrun.state import State

_IS = {
    "Directory": stat.S_ISDIR,
    "File": stat.S_ISREG,
    "Socket": stat.S_ISSOCK,
    "CharDevice": stat.S_ISCHR,
    "BlockDevice": stat.S_ISBLK,
}


def known(state: State, pod: Any) -> dict[str, str]:
    """Return what is filled in when a member of this pod starts; None: the pod is not there yet."""
    address = (pod or {}).get("network", {}).get("ip")
    return {POD_ID: pod["id"] if pod else NO_ID, POD_IP: address or "POD_IP", LIB: state.lib}


def check(state: State, wanted: PodFile, pod: Any) -> None:
    """Raise BadInput, with the line and the field, for what can't be had here.  `pod`: the note of the pod that stays, or None."""
    compiled = wanted.compiled
    if compiled is None:
        return
    asked = wanted.options.get("network") or ("pasta" if state.uid else "bridge")
    mode = pod["network"]["mode"] if pod else parse_network(asked)[0]
    for field in compiled.wants_address.values() if mode != "bridge" else ():
        raise _wrong(field, "the pod has no address of its own", "a pod of root's has one, on the bridge")
    for volume in compiled.own.values():
        if volume.group >= 0 and state.uid:
            raise _wrong(volume.field, "only root gives volumes to a group", f"sudo nsrun kube play; or {_GROUPS}")
    for member, paths in compiled.hosts.items():
        for path, kind, field in paths:
            _check_path(path, kind, field, member)


_GROUPS = "supplementalGroups in its place"


def _wrong(field: Field, why: str, hint: str = "") -> BadInput:
    found = field.wrong(why, hint)
    return BadInput(found.message, hint=found.hint)


def _check_path(path: str, kind: str, field: Field, member: str) -> None:
    """Raise BadInput when what is at a path of this host is not of the kind that hostPath names."""
    wanted = kind.removesuffix("OrCreate")
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if kind.endswith("OrCreate") and (kind != "FileOrCreate" or os.path.isdir(os.path.dirname(path))):
            return
        raise _wrong(field, f"{path!r} does not exist", "make it first, or type: DirectoryOrCreate") from None
    except OSError as error:
        raise _wrong(field, f"{path!r}: {error.strerror}") from None
    if wanted and not _IS[wanted](mode):
        raise _wrong(field, f"{path!r} is no {wanted}, which member {member!r} asks for")


def without_unmade(state: State, compiled: Compiled, member: Wanted) -> Wanted:
    """Return a member without the mounts of what `provide` will make, so that a plan can be built before."""
    made = {path for path, kind, _ in compiled.hosts.get(member.name, ()) if kind.endswith("OrCreate")}

    def is_there(volume: str) -> bool:
        source = volume.partition(":")[0]
        ours = source in made or source.startswith(f"{state.lib}/volumes/")
        return not ours or os.path.exists(source)

    options = {**member.options, "volume": list(filter(is_there, member.options.get("volume", [])))}
    return Wanted(member.name, options, member.command, member.after, member.finish)


def provide(state: State, compiled: Compiled, member: Wanted, pod: Any) -> None:
    """Make what a member mounts and `join` does not make.  `member`: with its values filled in."""
    for path, kind, field in compiled.hosts.get(member.name, ()):
        try:
            if kind == "DirectoryOrCreate":
                os.makedirs(path, 0o755, exist_ok=True)
            elif kind == "FileOrCreate" and not os.path.exists(path):
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
        except OSError as error:
            raise _wrong(field, f"{path!r} can't be made: {error.strerror}") from None
    mounted = " ".join(member.options.get("volume", []))
    for volume in compiled.own.values():
        name = fill(volume.name, known(state, pod))
        if name in mounted:
            volumes.provide(state, name, volume.files, volume.group, pod)


def clear_away(state: State, wanted: PodFile, pod: Any) -> None:
    """Remove the volumes that lived with earlier pods of this name, or had another content; None: this pod has gone, too."""
    if wanted.compiled:
        keep = {fill(name, known(state, pod)) for name in wanted.own} if pod else set()
        volumes.drop_own(state, wanted.name, keep)
