# SPDX-License-Identifier: Apache-2.0
"""Root and the members of owned pods: their notes are their owner's files, so root does not read them, it asks, as that owner.

A process that has become her runs nsrun and answers in JSON, bounded in time and size: what she can do with her files then
is what she can do anyway.  What comes back is text to be shown, never a path, a pid or an option.
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
    """The living pods that root made for others: uid → names."""
    found: dict[int, list[str]] = {}
    for note in state.all("pods"):
        try:
            kept = bool(note.get("user")) and state.pod_life(note).kept
        except (OSError, NsrunError):
            continue  # it can't be asked about; `nsrun doctor` and `pod ls` say so
        if kept:
            found.setdefault(note["user"]["uid"], []).append(note["name"])
    return found


class _Question:
    """A process that has become an owner, and what it has said so far.  NsrunError: the account is gone."""

    def __init__(self, state: State, uid: int, words: list[str]) -> None:
        from nsrun import kernel

        try:
            user = userns.User(str(uid))
        except BadInput:
            raise NsrunError(f"the owner {uid} has no account any more") from None
        command = nsrun_command(state.root, *words)
        environment = {**userns.environment_of(user, dict(os.environ)), "LC_ALL": "C.UTF-8"}
        self.data, self.complete = b"", False
        self.what, self.hint = f"{user.name}'s nsrun gave no answer", f"sudo -u {user.name} nsrun {' '.join(words)}"
        self.fd, write = os.pipe2(os.O_CLOEXEC)
        try:
            self.pid = kernel.spawn_as(user.uid, user.gid, user.groups, command, environment, write)
        except BaseException:
            os.close(self.fd)
            raise
        finally:
            os.close(write)

    def hear(self) -> bool:
        """Read what there is; False: it has said all, or too much."""
        piece = os.read(self.fd, 1 << 16)
        self.data += piece
        self.complete = not piece
        return bool(piece) and len(self.data) <= BYTES

    def answer(self) -> Any:
        """The JSON that it printed.  NsrunError: it took too long, said too much, or no."""
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
        # it has said all, or too much, or was stopped by its owner: a signal of root's reaches it always
        kernel.end_child(self.pid)


def ask(state: State, uid: int, words: list[str]) -> Any:
    """The JSON that nsrun prints for this user.

    NsrunError: the account is gone, it took too long, it said too much, or no.
    """
    question = _Question(state, uid, words)
    _listen([question])
    return question.answer()


def _ask_all(state: State, uids: list[int], words: list[str]) -> dict[int, Any]:
    """The answers of those who gave one.  Several are asked at once: who keeps root waiting does so for all of them together."""
    answers: dict[int, Any] = {}
    for first in range(0, len(uids), AT_ONCE):
        questions: dict[int, _Question] = {}
        for uid in uids[first : first + AT_ONCE]:
            try:
                questions[uid] = _Question(state, uid, words)
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
    """Until all have said everything, in SECONDS and BYTES at most; then they are ended."""
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
    "id", "name", "pod", "status", "orphaned", "pid", "pid_in_pod", "exit_code", "oom_killed", "created", "started", "finished", "image",
    "image_id", "rootfs", "restarts",
)  # fmt: skip


def members(state: State) -> list[dict[str, Any]]:
    """The members that owners have in their pods, as `nsrun ls --json` tells; an owner who does not answer has none."""
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
    """What root prints of it, and gives to programs: no control characters, nothing nested deeper than it ought to be."""
    flat = {key: member[key] for key in _KEPT if key in member and isinstance(member[key], (str, int, type(None)))}
    command = ["".join(c if c.isprintable() else "?" for c in word) for word in member["command"]]
    return {**flat, "command": command, "namespaces": member.get("namespaces", {})}


def _is_sound(member: dict[str, Any]) -> bool:
    plain = all(isinstance(member.get(key), kind) for key, kind in _SHOWN.items())
    plain = plain and all(isinstance(word, str) for word in member["command"])
    namespaces = member.get("namespaces", {})
    plain = plain and isinstance(namespaces, dict) and all(isinstance(number, int) for number in namespaces.values())
    names = plain and all(is_name(member[key]) for key in ("name", "status"))
    return names and isinstance(member.get("exit_code"), (int, type(None))) and isinstance(member.get("orphaned"), bool)


def owner_of_member(state: State, name: str) -> int:
    """Return the uid of the owner in whose pod this member is; -1: nobody's.

    Names and ids are what owners say of their own members.  Raise BadInput when several say it: whose is meant, nobody can tell.
    """
    found = {m["owner"]: m["pod"] for m in members(state) if name in (m["name"], m.get("id"))}
    if len(found) > 1:
        theirs = ", ".join(f"{userns.name_of(uid)} (pod {pod})" for uid, pod in found.items())
        raise BadInput(
            f"several owners have a member {name!r}: {theirs}", hint=f"as the one you mean: sudo -u USER nsrun … {name}"
        )
    return next(iter(found), -1)
