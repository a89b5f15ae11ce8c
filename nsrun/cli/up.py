# SPDX-License-Identifier: Apache-2.0
"""`nsrun up` and `down`, and `kube play`: whole pods from one file (podfile.py).

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
    from nsrun.plan import Plan
    from nsrun.state import Note, State

#: Seconds that one `up` or `down` waits for another.
PATIENCE = 600.0


def up(call: Call) -> int:
    """Make what the file wants of what there is, and print what was done."""
    path = call.operands[0]
    return apply(call, podfile.read(path), path, "nsrun up")


def down(call: Call) -> int:
    """Stop the members, the last one first, then the pod, and remove them; volumes with a name stay."""
    return take_down(call, podfile.read(call.operands[0]))


def apply(call: Call, pods: list[PodFile], path: str, command: str) -> int:
    """Make what the pods of a file want of what there is.  `command` does so once more."""
    state = call.state
    os.chdir(os.path.dirname(path) or ".")  # paths in the file are relative to it
    if "dry_run" in call.options:
        for wanted in pods:
            _check(call, wanted, None)
        return _show(call, pods, os.path.dirname(path))
    with kernel.Fd(state.lock("up", PATIENCE)):  # two at once would remove what the other has just made
        for wanted in pods:
            _check(call, wanted, _unchanged(state, wanted))
        for wanted in pods:
            if code := _apply(call, wanted, f"{command} {path}"):
                return code
    if "notify" in call.options:
        from nsrun.cli import say, units

        say.flush()
        for wanted in pods:
            units.notify(state, state.pod(wanted.name))
    return 0


def _apply(call: Call, wanted: PodFile, again: str) -> int:
    from nsrun.cli.say import err, go_on_after, out

    state, pod = call.state, _pod(call, wanted)
    for member in wanted.members:
        try:
            done = _member(state, pod, wanted, member)
        except (OSError, NsrunError) as error:
            code = go_on_after(error, 0)
            err(f"nsrun: what comes after member {member.name!r} was not started; {again} goes on from here")
            return code
        out(f"member {member.name}: {done}")
    for name in _superfluous(state, pod, wanted):
        _remove(state, state.member(name))
        out(f"member {name}: removed")
    if wanted.compiled:
        from nsrun.cli import provide

        provide.clear_away(state, wanted, pod)
    return 0


def take_down(call: Call, pods: list[PodFile]) -> int:
    """Stop and remove pods, the last one first."""
    with kernel.Fd(call.state.lock("up", PATIENCE)):
        for wanted in reversed(pods):
            _take_down(call, wanted)
            if wanted.compiled:
                from nsrun.cli import provide

                provide.clear_away(call.state, wanted, None)
    return 0


def _take_down(call: Call, wanted: PodFile) -> None:
    from nsrun.cli.members import say_killed, seconds_of
    from nsrun.cli.say import out
    from nsrun.lifecycle.remove import remove_pod
    from nsrun.lifecycle.stop import stop_member, stop_pod

    state = call.state
    pod = state.read("pods", wanted.name)
    if pod is None:
        out(f"pod {wanted.name}: is not there")
        return
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


def _unchanged(state: State, wanted: PodFile) -> Note | None:
    """Return the note of the pod if it stays as it is."""
    note = _living(state, wanted.name)
    return note if note and (note.get("labels") or {}).get(LABEL) == wanted.mark else None


def _check(call: Call, wanted: PodFile, pod: Note | None) -> None:
    """Raise NsrunError, with the line, for what can't be made, before anything is stopped or removed.

    `pod`: the note of the pod that stays; None: it is made anew.  Plans are built as for `explain`, and nothing is done.
    """
    from nsrun.lifecycle import NO_ID
    from nsrun.lifecycle.create import plan_pod, pod_for
    from nsrun.lifecycle.join import plan_join
    from nsrun.plan.member import Request

    state = call.state
    _check_names(state, wanted)
    if pod is None:
        try:
            plan_pod(state, {**wanted.options, "name": wanted.name}, ident=NO_ID)
        except NsrunError as error:
            raise wanted.locate(("pod",), error) from None
    place: Any = pod or pod_for(state, wanted.name)
    if wanted.compiled:
        from nsrun.cli import provide

        provide.check(state, wanted, pod)
    for member in wanted.members:
        try:
            _mark(state, member)
            if wanted.compiled:
                known = provide.known(state, pod)
                member = provide.without_unmade(state, wanted.compiled, member.filled(known))
            options = {**member.options, "name": member.name, "command": member.command}
            plan_join(state, place, options, Request(detach=True), ident=NO_ID)
        except NsrunError as error:
            raise wanted.locate(("members", member.name), error) from None


def _check_names(state: State, wanted: PodFile) -> None:
    """Raise NsrunError, with the line, when others have a name that the file wants."""
    pod, stays = _living(state, wanted.name), _unchanged(state, wanted) is not None
    table: tuple[str, ...] = ("pod",)
    try:
        if pod is not None:
            _check_ours(pod, "pod")
        for member in wanted.members:
            table = ("members", member.name)
            note = state.read("members", member.name)
            if note is None:
                continue
            if pod is not None and note["pod_id"] == pod["id"]:
                if stays:  # else it ends with the pod
                    _found(state, pod, member.name, "")
            elif _keeps_its_name(state, note, wanted.name):
                raise BadInput(
                    f"member name {member.name!r} is taken, in pod {note['pod']!r}",
                    hint=f"nsrun rm -f {member.name}, or another name in the file",
                )
    except NsrunError as error:
        raise wanted.locate(table, error) from None


def _keeps_its_name(state: State, note: Note, pod: str) -> bool:
    """Return whether a member of another pod has its name still when there is a new pod called `pod`."""
    from nsrun.state.sweep import Sweeper

    if state.member_status(note)[0] in ALIVE:
        return True
    return state.began(note) and note["pod"] != pod and not Sweeper(state).is_superseded(note)


def plans(call: Call) -> list[tuple[list[str], Plan]]:
    """Return the plans of all that `up` would do now, each with a command line that does the same; nothing is done."""
    return plans_of(call, podfile.read(call.operands[0]))


def plans_of(call: Call, pods: list[PodFile]) -> list[tuple[list[str], Plan]]:
    """Return the plans of all that `apply` would do now with the pods of a file."""
    os.chdir(os.path.dirname(call.operands[0]) or ".")
    for wanted in pods:
        _check(call, wanted, _unchanged(call.state, wanted))
    return [plan for wanted in pods for plan in _plans_of(call.state, wanted)]


def _plans_of(state: State, wanted: PodFile) -> list[tuple[list[str], Plan]]:
    from nsrun.cli.halves import member_plan, pod_plan
    from nsrun.lifecycle.foretell import plan_pod_stop, plan_start

    note = _living(state, wanted.name)
    pod: Any = _unchanged(state, wanted)
    found: list[tuple[list[str], Plan]] = []
    if note is not None and pod is None:
        _check_ours(note, "pod")
        found.append((["pod", "stop", wanted.name], plan_pod_stop(state, [wanted.name], None)))
    if pod is None:
        words, plan, pod = pod_plan(state, {**_labelled(wanted.options, wanted.mark), "name": wanted.name})
        found.append((words, plan))
    for member in wanted.members:
        mark = _mark(state, member)
        note, is_there = _found(state, pod, member.name, mark)
        if note and is_there == "ended" and not _has_finished(state, note, member):
            found.append((["start", member.name], plan_start(state, [member.name])))
        if is_there in ("ended", "lives"):
            continue
        found += _removal(state, member.name) if is_there == "other" else []
        if wanted.compiled:
            from nsrun.cli import provide

            filled = member.filled(provide.known(state, pod))
            member = provide.without_unmade(state, wanted.compiled, filled)
        options = {**_labelled(member.options, mark), "detach": True, "name": member.name, "command": member.command}
        found.append(member_plan(state, pod, options))
    if pod["id"] != "ID":
        found += [one for name in _superfluous(state, pod, wanted) for one in _removal(state, name)]
    return found


def _removal(state: State, name: str) -> list[tuple[list[str], Plan]]:
    """Return the plans of what _remove does."""
    from nsrun.lifecycle.foretell import plan_rm, plan_stop

    lives = state.member_status(state.member(name))[0] in ALIVE
    stop = [(["stop", name], plan_stop(state, [name], None))] if lives else []
    return [*stop, (["rm", name], plan_rm(state, [name], False, True))]


def _found(state: State, pod: Note, name: str, mark: str) -> tuple[Note | None, str]:
    """Return the note of a member of this pod, and whether it is as the file wants it: absent, lives, ended, other.

    Raise BadInput when `up` has not made it.
    """
    note = state.read("members", name)
    lives = note is not None and state.member_status(note)[0] in ALIVE
    if not note or note["pod_id"] != pod["id"] or not (lives or state.began(note)):
        return None, "absent"
    _check_ours(note, "member")
    if note["labels"][LABEL] != mark:
        return note, "other"
    return note, "lives" if lives else "ended"


def _has_finished(state: State, note: Note, wanted: Wanted) -> bool:
    """Return whether this is a member that has only to end well, as an init container has, and it has done so."""
    return wanted.finish and state.member_status(note)[1] == 0


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


def _member(state: State, pod: Note, file: PodFile, wanted: Wanted) -> str:
    """Make a member as the file wants it; return what was done."""
    from nsrun.lifecycle.again import start_one_of
    from nsrun.lifecycle.stop import await_begun

    mark, done = _mark(state, wanted), "started"
    if note := state.read("members", wanted.name):
        await_begun(state, note)
    note, is_there = _found(state, pod, wanted.name, mark)
    if is_there == "lives":
        return _finished(state, wanted.name) if wanted.finish else "unchanged"
    if note and is_there == "ended":
        if _has_finished(state, note, wanted):
            return "unchanged"
        start_one_of(state, note)
        return _finished(state, wanted.name) if wanted.finish else "started again"
    if note:
        _remove(state, note)
        done = "started anew, since it has changed"
    if state.pod(pod["name"])["id"] != pod["id"]:
        raise BadInput(f"pod {pod['name']!r} is another one by now", hint="nsrun pod ls")
    if file.compiled:
        from nsrun.cli import provide

        wanted = wanted.filled(provide.known(state, pod))
        provide.provide(state, file.compiled, wanted, pod)
    _start(state, pod, wanted, mark)
    return _finished(state, wanted.name) if wanted.finish else done


def _start(state: State, pod: Note, wanted: Wanted, mark: str) -> None:
    from nsrun.cli import warn_of_plan
    from nsrun.lifecycle.again import enters_for_good, run_apart
    from nsrun.lifecycle.join import join

    options = _labelled(wanted.options, mark)
    if enters_for_good(state, {"pod": pod["name"]}):
        command = ["--", *wanted.command] if wanted.command else []
        run_apart(state, ["join", pod["name"], "-d", "--name", wanted.name, *arguments(options), *command])
    else:
        options = {**options, "name": wanted.name, "command": wanted.command}
        join(state, pod["name"], options, detach=True, observe=warn_of_plan)


def _finished(state: State, name: str) -> str:
    """Wait until a member has ended.  Raise BadInput unless it did so with status 0: the next `up` starts it again."""
    from nsrun.lifecycle.wait import wait_member

    if code := wait_member(state, name):
        raise BadInput(f"member {name!r} has ended with status {code}", hint=f"nsrun logs {name}")
    return "finished"


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


def _show(call: Call, pods: list[PodFile], directory: str) -> int:
    """Print the commands that the file stands for."""
    from nsrun.cli.say import page
    from nsrun.plan import sh_quote

    lines = [["cd", directory]] if directory not in ("", ".") else []
    for wanted in pods:
        lines.append(["nsrun", "pod", "create", *arguments(wanted.options), wanted.name])
        known = {}
        if wanted.compiled:
            from nsrun.cli import provide

            known = provide.known(call.state, None)
            for volume in wanted.own.values():
                if volume.files is not None:
                    page(f"# the volume {volume.name} gets {', '.join(sorted(volume.files))}\n", keep="\n")
        for member in (member.filled(known) for member in wanted.members):
            command = ["--", *member.command] if member.command else []
            options = ["--name", member.name, *arguments(member.options)]
            lines.append(["nsrun", "join", wanted.name, *([] if member.finish else ["-d"]), *options, *command])
    for words in lines:
        page(" ".join(map(sh_quote, words)) + "\n")
    return 0
