# SPDX-License-Identifier: Apache-2.0
"""`nsrun up` and `down`: a whole pod from one file (podfile.py).

`up` compares what the file wants with what there is, and changes only what differs.  It knows what it has made by a label, in
which a digest of the options is; nothing else is kept.  What others have made is left alone, and is in the way if it has a
name that the file wants.  If it is killed, the next `up` does the rest.
"""

from __future__ import annotations

import os

from nsrun import kernel
from nsrun.cli import podfile
from nsrun.cli.commands import arguments
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

#: Seconds that one `up` or `down` waits for another.
PATIENCE = 600.0


def up(call: Call) -> int:
    """Make what the file wants of what there is, and print what was done."""
    from nsrun.cli.say import err, go_on_after, out

    path, state = call.operands[0], call.state
    wanted = podfile.read(path)
    os.chdir(os.path.dirname(path) or ".")  # paths in the file are relative to it
    if "dry_run" in call.options:
        _check(call, wanted, None)
        return _show(wanted, os.path.dirname(path))
    with kernel.Fd(state.lock("up", PATIENCE)):  # two at once would remove what the other has just made
        _check(call, wanted, _unchanged(state, wanted))
        pod = _pod(call, wanted)
        for member in wanted.members:
            try:
                done = _member(state, pod, member)
            except (OSError, NsrunError) as error:
                code = go_on_after(error, 0)
                err(
                    f"nsrun: what comes after member {member.name!r} was not started; nsrun up {path} goes on from here"
                )
                return code
            out(f"member {member.name}: {done}")
        for name in _superfluous(state, pod, wanted):
            _remove(state, state.member(name))
            out(f"member {name}: removed")
    return 0


def down(call: Call) -> int:
    """Stop the members, the last one first, then the pod, and remove them; volumes with a name stay."""
    from nsrun.cli.members import say_killed, seconds_of
    from nsrun.cli.say import out
    from nsrun.lifecycle.remove import remove_pod
    from nsrun.lifecycle.stop import stop_member, stop_pod

    wanted, state = podfile.read(call.operands[0]), call.state
    with kernel.Fd(state.lock("up", PATIENCE)):
        pod = state.read("pods", wanted.name)
        if pod is None:
            out(f"pod {wanted.name}: is not there")
            return 0
        _check_ours(pod, "pod")
        if _living(state, wanted.name) is None:
            remove_pod(state, wanted.name, True)
        else:
            seconds = seconds_of(call)
            for member in reversed(wanted.members):
                note = state.read("members", member.name)
                if note and note["pod_id"] == pod["id"] and state.member_status(note)[0] in ALIVE:
                    if stop_member(state, note, seconds):
                        say_killed(member.name, seconds)
            for name in stop_pod(state, wanted.name, seconds, pod["id"]):
                say_killed(name, seconds)
        out(f"pod {wanted.name}: removed")
    return 0


def _unchanged(state: State, wanted: PodFile) -> Note | None:
    """Return the note of the pod if it stays as it is."""
    note = _living(state, wanted.name)
    return note if note and (note.get("labels") or {}).get(LABEL) == wanted.mark else None


def _check(call: Call, wanted: PodFile, pod: Note | None) -> None:
    """Raise NsrunError, with the line, for what can't be made, before anything is stopped or removed.

    `pod`: the note of the pod that stays; None: it is made anew.  Plans are built as for `explain`, and nothing is done.
    """
    from nsrun.cli.planning import pod_for
    from nsrun.lifecycle import NO_ID
    from nsrun.lifecycle.create import plan_pod
    from nsrun.lifecycle.join import plan_join
    from nsrun.plan.member import Request

    state = call.state
    if pod is None:
        try:
            plan_pod(state, {**wanted.options, "name": wanted.name}, ident=NO_ID)
        except NsrunError as error:
            raise wanted.locate(("pod",), error) from None
    place: Any = pod or pod_for(state, wanted.name)
    for member in wanted.members:
        try:
            _mark(state, member)
            options = {**member.options, "name": member.name, "command": member.command}
            plan_join(state, place, options, Request(detach=True), ident=NO_ID)
        except NsrunError as error:
            raise wanted.locate(("members", member.name), error) from None


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
    import _signal

    from nsrun.cli import create, tell_of_pod
    from nsrun.cli.say import out
    from nsrun.lifecycle.stop import stop_pod

    state, done = call.state, "created"
    note = _living(state, wanted.name)
    if note is not None:
        _check_ours(note, "pod")
        if note["labels"][LABEL] == wanted.mark:
            out(f"pod {wanted.name}: unchanged")
            return note
        stop_pod(state, wanted.name, None, note["id"])
        done = "created anew, since its options have changed"
    mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, ())
    made: Any = create(call, {**_labelled(wanted.options, wanted.mark), "name": wanted.name})
    _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)
    tell_of_pod(call, wanted.options, made)
    out(f"pod {wanted.name}: {done}")
    known: Note = made
    return known


def _mark(state: State, wanted: Wanted) -> str:
    """Return the digest of what a member is made of: its options, its environment, and the image that the name stands for."""
    from nsrun.lifecycle import environment_options
    from nsrun.spec.options import parse_environment

    asked: Any = wanted.options
    known: dict[str, Any] = {"env": parse_environment(environment_options(asked), os.environ)}
    if "image" in wanted.options:
        from nsrun.image import lookup

        known["image_id"] = str(lookup.find(state, wanted.options["image"])["id"])
    return wanted.mark(known)


def _member(state: State, pod: Note, wanted: Wanted) -> str:
    """Make a member as the file wants it; return what was done."""
    from nsrun.cli import warn_of_plan
    from nsrun.lifecycle.again import enters_for_good, run_apart, start_one_of
    from nsrun.lifecycle.join import join

    mark, done = _mark(state, wanted), "started"
    note = state.read("members", wanted.name)
    lives = note is not None and state.member_status(note)[0] in ALIVE
    if note and note["pod_id"] == pod["id"] and (lives or state.began(note)):
        _check_ours(note, "member")
        if note["labels"][LABEL] == mark:
            if lives:
                return "unchanged"
            start_one_of(state, note)
            return "started again"
        _remove(state, note)
        done = "started anew, since it has changed"
    options = _labelled(wanted.options, mark)
    if state.pod(pod["name"])["id"] != pod["id"]:
        raise BadInput(f"pod {pod['name']!r} is another one by now", hint="nsrun pod ls")
    if enters_for_good(state, {"pod": pod["name"]}):
        command = ["--", *wanted.command] if wanted.command else []
        run_apart(state, ["join", pod["name"], "-d", "--name", wanted.name, *arguments(options), *command])
    else:
        options = {**options, "name": wanted.name, "command": wanted.command}
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


def _show(wanted: PodFile, directory: str) -> int:
    """Print the commands that the file stands for."""
    from nsrun.cli.say import out
    from nsrun.plan import sh_quote

    lines = [["cd", directory]] if directory not in ("", ".") else []
    lines.append(["nsrun", "pod", "create", *arguments(wanted.options), wanted.name])
    for member in wanted.members:
        command = ["--", *member.command] if member.command else []
        lines.append(["nsrun", "join", wanted.name, "-d", "--name", member.name, *arguments(member.options), *command])
    for words in lines:
        out(" ".join(map(sh_quote, words)))
    return 0
