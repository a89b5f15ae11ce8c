# SPDX-License-Identifier: Apache-2.0
"""`nsrun start` and `restart`, of members and of pods: a member that has ended begins once more, with what it wrote.

What a monitor does for --restart (restart.py), a command does here, and it has to take first what a monitor has already:
the locks that prove that somebody keeps the member and its data.  It takes them while it has the lock `names`, under which
names are given back, so of two that start or remove a member at once one is told that it was too late.
"""

from __future__ import annotations

import os

from nsrun import kernel
from nsrun.errors import BadInput, NsrunError, UnknownError, told
from nsrun.lifecycle.join import Former, join, plan_join
from nsrun.lifecycle.stop import is_used, lock_of, settled, stop_member, stop_members
from nsrun.plan.member import Request
from nsrun.schema import is_there
from nsrun.state import ALIVE, PAUSED, life, timestamp
from nsrun.state.sweep import hides_another

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from nsrun.plan import Plan
    from nsrun.state import Note, State

    Options = Mapping[str, Any]


def check(state: State, note: Note, may_run: bool) -> None:
    """Raise NsrunError for a member that can't be started once more, before anything is done.  `may_run`: it is stopped first."""
    name, status = note["name"], state.member_status(note)[0]
    if status == "created" and not may_run:
        raise BadInput(f"another process starts member {name!r} just now", hint="nsrun ls -a")
    if status in ALIVE and not may_run:
        raise BadInput(f"member {name!r} is {status}", hint=f"nsrun restart {name}")
    if status not in ALIVE and not state.began(note):
        raise UnknownError(
            f"member {name!r} was never started: the nsrun that made it was killed", hint="nsrun join makes it anew"
        )
    if note["rm"]:
        raise BadInput(f"member {name!r} was joined with --rm: its end removes it", hint="nsrun join it again")
    pod, found = state.note_and_life("pods", note["pod"])
    if pod is None or pod["id"] != note["pod_id"] or not found.kept:
        raise UnknownError(
            f"the pod {note['pod']!r} of member {name!r} has ended", hint="nsrun pod create, then nsrun join"
        )


def options_of(state: State, note: Note) -> Options:
    """Return the options with which a member was joined, and the environment that it had then.

    The caller's own is another by now.  Raise BadInput when they were lost.
    """
    name = note["name"]
    options, spec = state.read("members", name, "options.json"), state.read("members", name, "config.json")
    if options is None or spec is None:
        raise BadInput(f"the options of member {name!r} are gone", hint=f"nsrun rm {name}, then nsrun join")
    return {**{key: value for key, value in options.items() if key != "env_file"}, "env": spec["process"]["env"]}


class _there:
    """`with` the directory in which `join` was called, to which the paths among its options may be relative."""

    def __init__(self, options: Options) -> None:
        self.path, self.back = str(options.get("cwd", "")), -1

    def __enter__(self) -> None:
        if not self.path:
            return
        self.back = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.chdir(self.path)
        except OSError as error:
            os.close(self.back)
            raise BadInput(
                f"{self.path}, from where the member was joined, can't be entered: {error.strerror}",
                hint="nsrun rm, then nsrun join with paths that begin with /",
            ) from None

    def __exit__(self, *_: object) -> None:
        if self.back >= 0:
            os.fchdir(self.back)
            os.close(self.back)


def _former(note: Note) -> Any:
    return {**note, "restarts": -1}  # a user's start is not one of --restart


def plan_again(state: State, note: Note) -> Plan:
    """Return the plan by which the member begins once more; nothing is done."""
    options = options_of(state, note)
    with _there(options):
        request = Request(detach=True, interactive=bool(options.get("interactive")), background=note["detached"])
        return plan_join(state, state.pod(note["pod"]), options, request, Former(_former(note))).plan


def start_member(state: State, note: Note) -> None:
    """Start a member that has ended once more, in the background.  Raise NsrunError when it can't be: then it is as it was."""
    check(state, note, False)
    options = options_of(state, note)
    name, held, data, ours = note["name"], -1, -1, -1
    lock = state.lock("names")
    try:
        now = state.read("members", name)
        if now is None or now["id"] != note["id"]:
            raise UnknownError(f"member {name!r} has just been removed", hint="nsrun ls -a")
        note, status = now, state.member_status(now)[0]
        if status not in ALIVE and is_used(state, name):
            raise BadInput(
                f"another nsrun uses member {name!r}", hint="nsrun cp, or start? try again when it has ended"
            )
        if status in ALIVE or state.life("members", name).alive:
            raise BadInput(f"another process has just started member {name!r}", hint="nsrun ls")
        if not state.surely_ended(note) or hides_another(state, note):
            raise BadInput(
                f"member {name!r} may still run: nothing proves its end from here", hint=f"nsrun rm -f {name}"
            )
        ended = state.exit_of(name)
        ours = lock_of(state, name)
        if ours < 0:
            raise BadInput(f"another nsrun uses member {name!r}", hint="nsrun ls -a")
        held = life.take(state.held("members", name), life.MAKER)
        if is_there(state.upper(note["id"])):
            data = life.take(f"{state.upper(note['id'])}/{life.HELD}", life.MAKER)
    except BaseException:
        life.let_go(held)
        if ours >= 0:
            os.close(ours)
        raise
    finally:
        os.close(lock)
    try:
        for mark in ("stop", PAUSED):
            state.unmark("members", name, mark)
        state.renew_exit(name)
        with _there(options):
            join(state, note["pod"], options, detach=True, former=Former(_former(note), locks=(held, data)))
    except BaseException:
        if ended:
            code, when, oom = ended
            state.record_exit(name, f"{code} {when or timestamp()}{' oom' if oom else ''}")
        state.save("members", name, note)
        raise
    finally:
        for path in (state.held("members", name), f"{state.upper(note['id'])}/{life.HELD}"):
            life.let_go_of(path)
        os.close(ours)


def enters_for_good(state: State, note: Note) -> bool:
    """Return whether a process that starts this member can start no other: it enters the user namespace of an owner's pod."""
    pod = state.try_read("pods", note["pod"]) if state.uid else None
    return bool(pod and pod.get("user"))


def run_apart(state: State, arguments: list[str]) -> None:
    """Run a command of nsrun in a process of its own.  Raise NsrunError with its message when it fails."""
    import subprocess

    process = subprocess.Popen(
        kernel.nsrun_command(state.root, *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        _, output = process.communicate()
    except BaseException as error:  # it undoes what it has begun; Ctrl-C has reached it as well
        if not isinstance(error, KeyboardInterrupt):
            process.terminate()
        process.wait()
        raise
    if not process.returncode:
        return
    message, hint = told(output)
    failed = NsrunError(message or f"nsrun {arguments[0]} has ended with status {process.returncode}", hint=hint)
    failed.exit_code = process.returncode if process.returncode > 0 else 128 - process.returncode
    raise failed


def start_one_of(state: State, note: Note) -> None:
    """Start a member as start_member does, so that this process can start another one afterwards."""
    check(state, note, False)
    if enters_for_good(state, note):
        run_apart(state, ["start", note["id"]])
    else:
        start_member(state, note)


def restart_member(state: State, note: Note, seconds: float | None) -> bool:
    """Stop a member, unless it has ended, and start it again, so that this process can do so with another one.

    Return whether it had to be killed.
    """
    check(state, note, True)
    options_of(state, note)
    killed = state.member_status(note)[0] in ALIVE and stop_member(state, note, seconds)
    _start_after_stop(state, note)
    return killed


def _start_after_stop(state: State, note: Note) -> None:
    """Start a member that we have stopped.  Of several that restart it at once, one starts it, and then it is started for all.

    `note`: as it was before the stop.
    """
    for left in range(20, -1, -1):
        try:
            start_one_of(state, _as_it_is(state, note))
            return
        except (OSError, NsrunError):
            try:
                now = settled(state, "members", _as_it_is(state, note))
            except NsrunError:
                now = note
            if now.get("process") == note.get("process") or not left:
                raise  # nobody else has started it
            if state.member_status(now)[0] in ALIVE:
                return
            note = now  # another has stopped it again, perhaps to restart it


def _as_it_is(state: State, note: Note) -> Note:
    now = state.read("members", note["name"])
    if now is None or now["id"] != note["id"]:
        raise UnknownError(f"member {note['name']!r} was removed", hint="nsrun ls -a")
    return now


def members_to_restart(state: State, name: str) -> list[Note]:
    """Return the members of a living pod, in the order in which they were made.  Raise NsrunError for a pod of which we can't."""
    pod = state.pod(name)
    if pod.get("user") and not state.uid:
        raise BadInput(
            f"pod {name!r} belongs to {pod['owner']}, and so do its members",
            hint=f"sudo -u {pod['owner']} nsrun pod restart {name}",
        )
    there = (note for note in state.members_of(pod) if state.began(note) or state.member_status(note)[0] in ALIVE)
    notes = sorted(there, key=lambda note: note["created"])
    for note in notes:
        check(state, note, True)
    return notes


def restart_pod(state: State, name: str, seconds: float | None) -> list[str]:
    """Stop the members of a pod, all at once, and start each again; return the names of those that had to be killed.

    Each is tried; raise the first error.
    """
    notes = members_to_restart(state, name)
    alive = [note for note in notes if state.member_status(note)[0] in ALIVE]
    results = dict(zip((note["id"] for note in alive), stop_members(state, alive, seconds), strict=True))
    troubles: list[OSError | NsrunError] = [one for one in results.values() if not isinstance(one, bool)]
    for note in notes:
        try:
            if isinstance(results.get(note["id"], True), bool):
                _start_after_stop(state, note)
        except (OSError, NsrunError) as error:
            troubles.append(error)
    if troubles:
        raise troubles[0]
    return [note["name"] for note in alive if results[note["id"]] is True]
