# SPDX-License-Identifier: Apache-2.0
"""How root learns about members of a user's pod: it never reads that user's files; it runs nsrun as the user.

The child process becomes the user, runs nsrun, and answers in JSON, bounded in time and size: what users can do to it
with their files, they can do anyway.  The answer is text to be shown, never a path, a pid or an option.
"""

from __future__ import annotations

import os

from nsrun.errors import BadInput, NsrunError
from nsrun.host import userns
from nsrun.kernel import nsrun_command
from nsrun.schema import is_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nsrun.state import State

SECONDS, BYTES, AT_ONCE = 5, 4 << 20, 8


def owned_pods(state: State) -> dict[int, list[str]]:
    """Return the living pods that root made for users: uid → names."""
    found: dict[int, list[str]] = {}
    for note in state.all("pods"):
        try:
            kept = bool(note.get("user")) and state.pod_life(note).kept
        except (OSError, NsrunError):
            continue  # it can't be asked about, which `nsrun doctor` and `pod ls` report
        if kept:
            found.setdefault(note["user"]["uid"], []).append(note["name"])
    return found


class _Question:
    """A process that has become an owner, and its output so far.

    The constructor raises NsrunError when the account is gone.
    """

    def __init__(self, state: State, uid: int, arguments: list[str]) -> None:
        from nsrun import kernel

        try:
            user = userns.User(str(uid))
        except BadInput:
            raise NsrunError(f"the owner {uid} has no account any more") from None
        command = nsrun_command(state.root, *arguments)
        environment = {**userns.environment_of(user, dict(os.environ)), "LC_ALL": "C.UTF-8"}
        self.data, self.complete = b"", False
        self.what, self.hint = f"{user.name}'s nsrun gave no answer", f"sudo -u {user.name} nsrun {' '.join(arguments)}"
        self.fd, write = os.pipe2(os.O_CLOEXEC)
        try:
            self.pid = kernel.spawn_as(user.uid, user.gid, user.groups, command, environment, write)
        except BaseException:
            os.close(self.fd)
            raise
        finally:
            os.close(write)

    def hear(self) -> bool:
        """Read what there is; return False when it has printed everything, or too much."""
        piece = os.read(self.fd, 1 << 16)
        self.data += piece
        self.complete = not piece
        return bool(piece) and len(self.data) <= BYTES

    def answer(self) -> Any:
        """Return the JSON that it printed.  Raise NsrunError when it took too long, printed too much, or no JSON."""
        import json

        try:
            if self.complete:
                return json.loads(self.data)
        except (ValueError, RecursionError):
            pass
        raise NsrunError(self.what, hint=self.hint)

    def close(self) -> None:
        from nsrun import kernel

        os.close(self.fd)
        # it has printed everything, or too much, or its owner has stopped it: a signal from root always reaches it
        kernel.end_child(self.pid)


def ask(state: State, uid: int, arguments: list[str]) -> Any:
    """Return the JSON that nsrun prints for this user.

    Raise NsrunError when the account is gone, it took too long, printed too much, or no JSON.
    """
    question = _Question(state, uid, arguments)
    _listen([question])
    return question.answer()


def _ask_all(state: State, uids: list[int], arguments: list[str]) -> dict[int, Any]:
    """Return the answers of those who gave one.

    Several are asked at the same time: owners who keep root waiting do so at the same time, not one after the other.
    """
    answers: dict[int, Any] = {}
    for first in range(0, len(uids), AT_ONCE):
        questions: dict[int, _Question] = {}
        for uid in uids[first : first + AT_ONCE]:
            try:
                questions[uid] = _Question(state, uid, arguments)
            except (OSError, NsrunError):
                continue
        _listen(list(questions.values()))
        for uid, question in questions.items():
            try:
                answers[uid] = question.answer()
            except NsrunError:
                continue
    return answers


def _listen(questions: list[_Question]) -> None:
    """Read until all have printed everything, at most SECONDS and BYTES; then end them."""
    from select import poll
    from time import monotonic

    poller, end = poll(), monotonic() + SECONDS
    waiting = {question.fd: question for question in questions}
    try:
        for fd in waiting:
            poller.register(fd, 1)
        while waiting and (left := end - monotonic()) > 0:
            for fd, _ in poller.poll(left * 1000):
                if not waiting[fd].hear():
                    poller.unregister(fd)
                    del waiting[fd]
    finally:
        for question in questions:
            question.close()


_SHOWN = {"name": str, "pod": str, "status": str, "pid": int, "pid_in_pod": int, "command": list}
_KEPT = (
    "id", "name", "pod", "status", "health", "orphaned", "pid", "pid_in_pod", "exit_code", "oom_killed", "created", "started", "finished", "image",
    "image_id", "rootfs", "restarts",
)  # fmt: skip


def members(state: State) -> list[dict[str, Any]]:
    """Return the members that owners have in their pods, as their `nsrun ls --json` prints them, if they answer."""
    found = []
    owned = owned_pods(state)
    answers = _ask_all(state, list(owned), ["ls", "-a", "--json"])
    for uid, pods in owned.items():
        answer = answers.get(uid)
        for member in answer if isinstance(answer, list) else []:
            if isinstance(member, dict) and _is_sound(member) and member["pod"] in pods:
                found.append({**_shown(member), "owner": uid})
    return found


def _shown(member: dict[str, Any]) -> dict[str, Any]:
    """Return what root prints and passes to programs: no control characters, nothing nested deeper than expected."""
    flat = {key: member[key] for key in _KEPT if key in member and isinstance(member[key], (str, int, type(None)))}
    command = ["".join(c if c.isprintable() else "?" for c in word) for word in member["command"]]
    return {**flat, "command": command, "labels": _labels(member), "namespaces": member.get("namespaces", {})}


def _labels(member: dict[str, Any]) -> dict[str, str]:
    """Return the labels that an owner says a member has: a flat table of texts, or none."""
    found = member.get("labels")
    texts = isinstance(found, dict) and all(isinstance(value, str) for value in found.values())
    return dict(found) if texts and found else {}


def _is_sound(member: dict[str, Any]) -> bool:
    plain = all(isinstance(member.get(key), kind) for key, kind in _SHOWN.items())
    plain = plain and all(isinstance(word, str) for word in member["command"])
    namespaces = member.get("namespaces", {})
    plain = plain and isinstance(namespaces, dict) and all(isinstance(number, int) for number in namespaces.values())
    names = plain and all(is_name(member[key]) for key in ("name", "status"))
    return names and isinstance(member.get("exit_code"), (int, type(None))) and isinstance(member.get("orphaned"), bool)


def owner_of_member(state: State, name: str) -> int:
    """Return the uid of the owner in whose pod this member is; -1 when no owner has it.

    Names and ids are what owners say about their own members.  Raise BadInput when several say it, since it is not
    clear whose is meant.
    """
    found = {m["owner"]: m["pod"] for m in members(state) if name in (m["name"], m.get("id"))}
    if len(found) > 1:
        theirs = ", ".join(f"{userns.name_of(uid)} (pod {pod})" for uid, pod in found.items())
        raise BadInput(
            f"several owners have a member {name!r}: {theirs}",
            hint=f"run it as one of them: sudo -u USER nsrun … {name}",
        )
    return next(iter(found), -1)
