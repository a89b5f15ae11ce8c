# SPDX-License-Identifier: Apache-2.0
"""`nsrun kube`: pods as Kubernetes writes them."""

from __future__ import annotations

import os

from nsrun.errors import BadInput, NsrunError, UsageError
from nsrun.kube.generate import own_volume
from nsrun.lifecycle.query import owners_members

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nsrun.cli.commands import Call
    from nsrun.plan import Plan
    from nsrun.state import Note, State


def play(call: Call) -> int:
    """Make the pods of a YAML file, as `up` makes that of a TOML file; or remove them."""
    from nsrun.cli import podfile, up

    path = call.operands[0]
    pods = podfile.read_yaml(path)
    return up.take_down(call, pods) if "down" in call.options else up.apply(call, pods, path, "nsrun kube play")


def plans(call: Call) -> list[tuple[list[str], Plan]]:
    """Return the plans of all that `kube play` would do now; nothing is done."""
    from nsrun.cli import podfile, up

    if "down" in call.options:
        raise UsageError("--down has no plan", hint="nsrun explain pod stop")
    return up.plans_of(call, podfile.read_yaml(call.operands[0]))


def generate(call: Call) -> int:
    """Print a pod as YAML."""
    from nsrun.cli.podfile import LABEL
    from nsrun.cli.say import script
    from nsrun.kube.generate import write
    from nsrun.lifecycle.query import pod_note

    state = call.state
    note = pod_note(state, call.operands[0])
    if note.get("user") and not state.uid and owners_members(state, note):
        raise BadInput(
            f"the members of pod {note['name']!r} belong to {note['owner']}",
            hint=f"sudo -u {note['owner']} nsrun kube generate {note['name']}",
        )
    members = [_member(state, member) for member in state.members_of(note)]
    members.sort(key=lambda member: (member.note["created"], member.note["name"]))
    script(write(_pod(state, note, members), members, LABEL))
    return 0


def _member(state: State, note: Note) -> Any:
    """Return what there is to write of a member.  The variables are those that it has, but for what its image and nsrun give."""
    from nsrun.kube.generate import Member
    from nsrun.lifecycle.again import options_of
    from nsrun.spec.options import parse_environment

    options = options_of(state, note)  # the environment in it is the whole
    asked = state.read("members", note["name"], "options.json") or {}
    env = parse_environment(list(options["env"]), {})
    names = {word.partition("=")[0] for word in asked.get("env") or []}
    if asked.get("env_file"):
        names |= set(env) - {"PATH", "HOSTNAME", "HOME", "TERM"}
    if note.get("image"):
        names -= {key for key, value in _image_env(state, note).items() if env.get(key) == value}
    return Member(dict(note), dict(asked), {key: value for key, value in env.items() if key in names})


def _image_env(state: State, note: Note) -> dict[str, str]:
    from nsrun.image import lookup
    from nsrun.spec.options import parse_environment

    try:
        return parse_environment(lookup.find(state, note["image_id"])["process"].get("Env") or [], {})
    except NsrunError:
        return {}  # the image was removed: what it gave is told as well


def _pod(state: State, note: Note, members: list[Any]) -> Any:
    """Return what there is to write of a pod: files of pause's root tell what its note does not."""
    from nsrun.kube.generate import Pod

    found = Pod(dict(note), state.lib)
    found.ports = state.ports(note)
    found.owner = note["owner"] if note.get("user") and not state.uid else ""
    fd, pause = state.pause(note)
    if fd >= 0:
        os.close(fd)
        root = f"/proc/{pause}/root"
        for line in _lines(f"{root}/etc/hosts"):
            address, *names = line.split()
            if names and note["hostname"] not in names and "localhost" not in names:
                found.aliases += [(address, name) for name in names]
        found.dns = _servers(f"{root}/etc/resolv.conf")
        shm = os.statvfs(f"{root}/dev/shm")
        found.shm_size = shm.f_blocks * shm.f_frsize
    for member in members:
        for word in member.options.get("volume") or []:
            source = word.partition(":")[0].removeprefix(f"{state.lib}/volumes/").partition("/")[0]
            if own_volume(note["name"], source)[0] and not source.endswith(note["id"]):
                found.contents[source] = _content(f"{state.lib}/volumes/{source}", note)
    return found


def _lines(path: str) -> list[str]:
    with open(path, errors="surrogateescape", newline="\n") as file:
        return [line for line in file.read(1 << 20).split("\n") if line.strip() and not line.startswith("#")]


def _servers(path: str) -> list[str]:
    """Return the name servers that a pod was given; [] where its resolv.conf is the one of this host."""
    from nsrun.lifecycle.create import host_resolv_conf

    lines = _lines(path)
    known = [line for line in host_resolv_conf({}).split("\n") if line.strip() and not line.startswith("#")]
    servers = [line.split()[1] for line in lines if line.startswith("nameserver ")]
    return servers if len(servers) == len(lines) and lines != known else []


def _content(path: str, note: Note) -> tuple[dict[str, tuple[bytes, int]], int]:
    """Return the files of a volume, and the group that they were given to."""
    from nsrun.schema import read_document
    from nsrun.spec.idmaps import to_pod

    found = {}
    for directory, _, files in os.walk(path):
        for file in files:
            whole = os.path.join(directory, file)
            mode = os.stat(whole).st_mode & 0o777
            found[os.path.relpath(whole, path)] = (read_document(whole, 4 << 20), mode)
    top = os.stat(path)
    group = top.st_gid if top.st_mode & 0o2000 else -1
    if group >= 0 and note.get("user"):
        group = to_pod(note["user"]["maps"]["gid"], group)
    return found, group
