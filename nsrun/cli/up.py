# SPDX-License-Identifier: Apache-2.0
"""`nsrun up` and `down`: a whole pod from one file (podfile.py).

`up` compares what the file wants with what there is, and changes only what differs.  It knows what it has made by a label, in
which a digest of the options is; nothing else is kept.  What others have made is left alone, and is in the way if it has a
name that the file wants.  If it is killed, the next `up` does the rest.
"""

from __future__ import annotations

import os

from nsrun.cli import podfile
from nsrun.cli.podfile import LABEL
from nsrun.errors import BadInput, NsrunError
from nsrun.state import ALIVE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from nsrun.cli.commands import Call
    from nsrun.cli.podfile import PodFile, Wanted
    from nsrun.state import Note, State


def up(call: Call) -> int:
    """Make what the file wants of what there is, and print what was done."""
    from nsrun.cli.say import err, out

    path = call.operands[0]
    wanted = podfile.read(path)
    os.chdir(os.path.dirname(path) or ".")  # paths in the file are relative to it
    if "dry_run" in call.options:
        return _show(call.state, wanted)
    pod = _pod(call, wanted)
    code = 0
    for member in wanted.members:
        try:
            done = _member(call.state, pod, member)
        except (OSError, NsrunError) as error:
            from nsrun.cli.say import go_on_after

            code = go_on_after(error, code)
            err(f"nsrun: what comes after member {member.name!r} was not started; nsrun up {path} goes on from here")
            return code
        out(f"member {member.name}: {done}")
    for name in _superfluous(call.state, pod, wanted):
        _remove(call.state, call.state.member(name))
        out(f"member {name}: removed")
    return code


def down(call: Call) -> int:
    """Stop the members, the last one first, then the pod, and remove them; volumes with a name stay."""
    from nsrun.cli.members import seconds_of
    from nsrun.cli.say import out
    from nsrun.lifecycle.stop import stop_member, stop_pod

    wanted, state = podfile.read(call.operands[0]), call.state
    pod = _living(state, wanted.name)
    if pod is None:
        out(f"pod {wanted.name}: is not there")
        return 0
    _check_ours(pod, "pod")
    seconds = seconds_of(call)
    for member in reversed(wanted.members):
        note = state.read("members", member.name)
        if note and note["pod_id"] == pod["id"] and state.member_status(note)[0] in ALIVE:
            stop_member(state, note, seconds)
    stop_pod(state, wanted.name, seconds)
    out(f"pod {wanted.name}: removed")
    return 0


def _living(state: State, name: str) -> Note | None:
    """Return the note of a pod that lives, or None."""
    note, life = state.note_and_life("pods", name)
    return note if note is not None and life.kept else None


def _check_ours(note: Note, kind: str) -> None:
    """Raise BadInput for a pod or member that `up` has not made."""
    if LABEL not in (note.get("labels") or {}):
        remove = "nsrun pod rm -f" if kind == "pod" else "nsrun rm -f"
        raise BadInput(
            f"there is a {kind} {note['name']!r} that was not made by nsrun up",
            hint=f"{remove} {note['name']}, or another name in the file",
        )


def _labelled(options: Mapping[str, Any], mark: str) -> dict[str, Any]:
    return {**options, "label": [*options.get("label", []), f"{LABEL}={mark}"]}


def _pod(call: Call, wanted: PodFile) -> Note:
    """Return the note of the pod that the file wants; make it, also anew when its options have changed."""
    from nsrun.cli import create
    from nsrun.cli.say import out
    from nsrun.lifecycle.stop import stop_pod

    state, done = call.state, "created"
    note = _living(state, wanted.name)
    if note is not None:
        _check_ours(note, "pod")
        if note["labels"][LABEL] == wanted.mark:
            out(f"pod {wanted.name}: unchanged")
            return note
        stop_pod(state, wanted.name)
        done = "created anew, since its options have changed"
    made: Any = create(call, {**_labelled(wanted.options, wanted.mark), "name": wanted.name})
    out(f"pod {wanted.name}: {done}")
    known: Note = made
    return known


def _member(state: State, pod: Note, wanted: Wanted) -> str:
    """Make a member as the file wants it; return what was done."""
    from nsrun.cli import warn_of_plan
    from nsrun.lifecycle import environment_options
    from nsrun.lifecycle.again import start_member
    from nsrun.lifecycle.join import join

    image_id = ""
    if "image" in wanted.options:
        from nsrun.image import lookup

        image_id = str(lookup.find(state, wanted.options["image"])["id"])
    asked: Any = wanted.options
    env = {"env": environment_options(asked)}  # what --env-file has counts, and not its name
    mark, done = wanted.mark({**env, "image_id": image_id}), "started"
    note = state.read("members", wanted.name)
    if note and note["pod_id"] == pod["id"]:
        _check_ours(note, "member")
        if note["labels"][LABEL] == mark:
            if state.member_status(note)[0] in ALIVE:
                return "unchanged"
            start_member(state, note)
            return "started again"
        _remove(state, note)
        done = "started anew, since it has changed"
    options = {**_labelled(wanted.options, mark), "name": wanted.name, "command": wanted.command}
    join(state, pod["name"], options, detach=True, observe=warn_of_plan)
    return done


def _remove(state: State, note: Note) -> None:
    """Stop a member as it likes to be stopped, and remove it."""
    from nsrun.lifecycle.remove import remove_member
    from nsrun.lifecycle.stop import stop_member

    if state.member_status(note)[0] in ALIVE:
        stop_member(state, note)
    remove_member(state, note, True)


def _superfluous(state: State, pod: Note, wanted: PodFile) -> list[str]:
    """Return the names of members that an earlier `up` of this pod has made, and the file does not want any more."""
    names = {member.name for member in wanted.members}
    ours = (note["name"] for note in state.members_of(pod) if LABEL in (note.get("labels") or {}))
    return sorted(name for name in ours if name not in names)


def _show(state: State, wanted: PodFile) -> int:
    """Print the commands that the file stands for."""
    from nsrun.cli.commands import arguments
    from nsrun.cli.say import out
    from nsrun.plan import sh_quote

    lines = [["pod", "create", *arguments(wanted.options), wanted.name]]
    for member in wanted.members:
        command = ["--", *member.command] if member.command else []
        lines.append(["join", wanted.name, "-d", "--name", member.name, *arguments(member.options), *command])
    for words in lines:
        out(" ".join(map(sh_quote, ["nsrun", *words])))
    return 0
