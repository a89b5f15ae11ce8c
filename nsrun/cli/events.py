# SPDX-License-Identifier: Apache-2.0
"""`nsrun events`: what happens to pods and members, as lines of JSON, while it is watched.

There is no daemon that could tell, and nobody writes events down.  The kernel says when to look: inotify(7) that an entry of
nsrun's state has come, gone or been renamed, a pidfd that a process has ended.  Then everything is looked at, and what
differs from before is told.  So two changes in the same moment may be told together, a member that came and went between
two looks is not told of at all, and a slow reader keeps nobody but this process.
"""

from __future__ import annotations

import os
import time

from nsrun import kernel
from nsrun.cli import say
from nsrun.errors import UsageError
from nsrun.state import BEGUN, timestamp
from nsrun.teach.events import Events

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from nsrun.cli.commands import Call
    from nsrun.state import State

    Row = dict[str, Any]
    Seen = dict[tuple[str, str], Row]  # (pod or member, id) → what is known of it

LOOK_AGAIN = 30.0  # seconds after which we look even if nothing was told: there may be more than can be followed
TOGETHER = 0.02  # seconds for which we wait for more, once something was told
KEYS = ("type", "event", "pod", "member", "label")
ACTIONS = ("create", "start", "health", "pause", "unpause", "rename", "oom", "die", "remove")


def look(state: State) -> Seen:
    """Return the pods and members that there are, by id."""
    from nsrun.lifecycle import query

    found: Seen = {}
    for kind, rows in (("pod", query.pods(state, True, False)), ("member", query.members(state, True, False)[0])):
        found |= {(kind, row["id"]): row for row in rows if row["id"]}
    return found


def changes(before: Seen, now: Seen) -> Iterator[Row]:
    """Yield what has happened between two looks, each thing's events in their order."""
    for key in before.keys() - now.keys():
        was = before[key]
        if _lives(was):
            yield _event(key, was, "die", timestamp())
        yield _event(key, was, "remove", timestamp())
    for key, row in now.items():
        yield from _changed(key, before.get(key), row)


def _lives(row: Row) -> bool:
    return row["status"] in (*BEGUN, "removing")


def _begun(row: Row) -> str | None:
    """Return when it began; None for what is only created, which a member is until somebody keeps it."""
    return None if row["status"] == "created" else row.get("started", row["created"])


def _event(key: tuple[str, str], row: Row, action: str, when: str, **more: Any) -> Row:
    kind, ident = key
    found = {"time": when, "type": kind, "event": action, "id": ident, "name": row["name"]}
    if kind == "member":
        found |= {"pod": row["pod"], "labels": row["labels"]}
    else:
        found |= {"pod": row["name"], "labels": row["labels"]}
    return {**found, **more}


def _changed(key: tuple[str, str], was: Row | None, row: Row) -> Iterator[Row]:
    """Yield what has happened to one pod or member, of which there may have been nothing before."""
    if was is None:
        yield _event(key, row, "create", row["created"])
    elif was["name"] != row["name"]:
        yield _event(key, row, "rename", timestamp(), old_name=was["name"])
    lived, lives = was is not None and _lives(was), _lives(row)
    begun, before = _begun(row), was and _begun(was)
    if begun and begun != before:
        if lived and before:
            yield _event(key, row, "die", begun)  # and it has begun once more: its exit status was recorded in between
        yield _event(key, row, "start", begun, **({"pid": row["pid"]} if row["pid"] else {}))
        lived, was = True, None
    health = row.get("health", "none")
    if begun and health != "none" and health != (was or {}).get("health", "none"):
        yield _event(key, row, "health", timestamp(), health=health)
    paused, now_paused = bool(was and was["status"] == "paused"), row["status"] == "paused"
    if paused != now_paused and (lives or now_paused):
        yield _event(key, row, "pause" if now_paused else "unpause", timestamp())
    if lived and not lives:
        if row.get("oom_killed"):
            yield _event(key, row, "oom", row["finished"])
        yield _event(key, row, "die", row.get("finished") or timestamp(), **({"exit_code": row["exit_code"]} if row.get("exit_code") is not None else {}))  # fmt: skip


class _Filter:
    """The events that are wanted: values of one key are alternatives."""

    def __init__(self, texts: list[str]) -> None:
        self.wanted: dict[str, list[str]] = {}
        for text in texts:
            key, equals, value = text.partition("=")
            if key not in KEYS or not equals:
                raise UsageError(
                    f"--filter {text!r}: unknown", hint=f"KEY=VALUE, where KEY is one of: {', '.join(KEYS)}"
                )
            if not value:
                raise UsageError(f"--filter {key}= has no value", hint="is a shell variable unset?")
            known = {"type": ("pod", "member"), "event": ACTIONS}.get(key, (value,))
            if value not in known:
                raise UsageError(f"--filter {text!r}: unknown {key}", hint=f"one of: {', '.join(known)}")
            self.wanted.setdefault(key, []).append(value)

    def takes(self, event: Row) -> bool:
        return all(any(self._fits(event, key, value) for value in values) for key, values in self.wanted.items())

    def _fits(self, event: Row, key: str, value: str) -> bool:
        if key == "member":
            return event["type"] == "member" and value in (event["name"], event["id"], event.get("old_name"))
        if key == "label":
            from nsrun.cli.lists import has_label

            return has_label(event, value)
        return bool(event[key] == value)


def show(call: Call) -> int:
    """Print events until the reader, or the user, ends it."""
    import json

    wanted, state = _Filter(call.options.get("filter") or []), call.state
    state.prepare()
    with Events() as events:
        events.reader(1)
        seen: Seen = {}
        first = not call.options.get("all")
        while True:
            now = _look_and_follow(state, events)
            for event in changes(now if first else seen, now):
                if wanted.takes(event):
                    say.out(json.dumps(event))
            say.flush()
            seen, first = now, False
            if "reader" in events.wait(LOOK_AGAIN):
                raise BrokenPipeError
            time.sleep(TOGETHER)
            events.wait(0)


def _look_and_follow(state: State, events: Events) -> Seen:
    """Look, after everything that will be there is followed: what comes in between is told of once more."""
    events.directories([f"{state.run}/pods", f"{state.run}/members", state.owned])
    for kind in ("pods", "members"):
        events.directories(state.path(kind, name) for name in state.names(kind))
    now = look(state)
    lives = [row["pid"] for row in now.values() if row["pid"]]
    events.processes([(pid, start) for pid in lives if (start := kernel.process_start(pid))])
    if any(row["pid"] and not os.path.exists(f"/proc/{row['pid']}") for row in now.values()):
        return look(state)  # it has ended before we could follow it
    return now
