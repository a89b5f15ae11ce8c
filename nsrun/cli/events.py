# SPDX-License-Identifier: Apache-2.0
"""`nsrun events`: what happens to pods and members, as lines of JSON, while it is watched.

There is no daemon that could tell, and nobody writes events down.  The kernel says when to look: inotify(7) that an entry of
nsrun's state has come, gone or been renamed, a pidfd that a process has ended.  Then everything is looked at, and what
differs from before is told.  So two changes in the same moment may be told together, a member that came and went between
two looks is not told of at all, and a slow reader keeps nobody but this process.
"""

from __future__ import annotations

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
LOOK_OFTEN = 1.0  # the same, where not all can be followed
LOOKS = 5  # so often we look again at most, when something seems to be gone while names come
TOGETHER = 0.02  # seconds for which we wait for more, once something was told
KEYS = ("type", "event", "pod", "member", "label")
ACTIONS = ("create", "start", "health", "pause", "unpause", "rename", "oom", "die", "remove")


def look(state: State, before: Seen) -> Seen:
    """Return the pods and members that there are, by id.

    What is not seen any more is returned as it was `before`, unless it is gone: its note may be damaged, or it has got
    another name between the list of names and its turn.
    """
    found, damaged, come = _look(state)
    for _ in range(LOOKS):
        if not come or before.keys() <= found.keys():
            break
        found, damaged, come = _look(state)
    kept = {key: row for key, row in before.items() if come or (key[0], row["name"]) in damaged}
    return kept | found


def _look(state: State) -> tuple[Seen, set[tuple[str, str]], set[str]]:
    """Return what there is, what of it is damaged, and the names that have come meanwhile."""
    from nsrun.lifecycle import query

    names = _names(state)
    state.broken.clear()
    rows = [("pod", row) for row in query.pods(state, True, False)]
    rows += [("member", row) for row in query.members(state, True, False)[0]]
    found = {(kind, row["id"]): row for kind, row in rows if row["id"]}
    return found, {(kind, row["name"]) for kind, row in rows if not row["id"]}, _names(state) - names


def _names(state: State) -> set[str]:
    return {f"{kind}/{name}" for kind in ("pods", "members") for name in state.names(kind)}


def changes(before: Seen, now: Seen) -> Iterator[Row]:
    """Yield what has happened between two looks, each thing's events in their order."""
    for key in before.keys() - now.keys():
        was = before[key]
        if _told(was)[1]:
            yield _event(key, was, "die", timestamp())
        yield _event(key, was, "remove", timestamp())
    for key, row in now.items():
        yield from _changed(key, before.get(key), row)


def _lives(row: Row) -> bool:
    return row["status"] in (*BEGUN, "removing")


def _is_known(row: Row) -> bool:
    """Return whether a row says if something lives: while it is started once more, or its end is not recorded yet, none does."""
    return row["status"] != "created" and (row["status"] != "restarting" or row["exit_code"] is not None)


def _told(row: Row) -> tuple[str | None, bool]:
    """Return when the last life of which was told began, and whether its end is still to be told.

    Of what was seen first nothing was told, and it is as it was: what is only created has not begun.
    """
    known: tuple[str | None, bool] = row.get("told") or (
        None if row["status"] == "created" else _begun(row),
        _lives(row),
    )
    return known


def _begun(row: Row) -> str | None:
    """Return when the life of which a row tells began."""
    return row.get("started", row["created"])


def _event(key: tuple[str, str], row: Row, action: str, when: str, **more: Any) -> Row:
    kind, ident = key
    found = {"time": when, "type": kind, "event": action, "id": ident, "name": row["name"]}
    if kind == "member":
        found |= {"pod": row["pod"], "labels": row["labels"]}
    else:
        found |= {"pod": row["name"], "labels": row["labels"]}
    return {**found, **more}


def _changed(key: tuple[str, str], was: Row | None, row: Row) -> Iterator[Row]:
    """Yield what has happened to one pod or member, of which there may have been nothing before; note it in the row."""
    if was is None:
        yield _event(key, row, "create", row["created"])
    elif was["name"] != row["name"]:
        yield _event(key, row, "rename", timestamp(), old_name=was["name"])
    before, lived = _told(was) if was else (None, False)
    row["told"] = before, lived
    if not _is_known(row):
        return
    begun = _begun(row)
    if begun and begun != before:
        if lived and before:
            yield _event(key, row, "die", begun)  # and it has begun once more: its exit status was recorded in between
        yield _event(key, row, "start", begun, **({"pid": row["pid"]} if row["pid"] else {}))
        before, lived, was = begun, True, None
    lives = lived and _lives(row)
    row["told"] = before, lives
    health = row.get("health", "none")
    if lived and begun and health != "none" and health != (was or {}).get("health", "none"):
        yield _event(key, row, "health", timestamp(), health=health)
    paused, now_paused = bool(was and was["status"] == "paused"), row["status"] == "paused"
    if paused != now_paused and lives:
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
        first, patience = not call.options.get("all"), LOOK_AGAIN
        while True:
            now = _look_and_follow(state, events, seen)
            if events.lacks and patience != LOOK_OFTEN:
                say.err(
                    f"warning: the kernel does not tell of all that happens, so nsrun looks once a second: {events.lacks}"
                )
                say.err("hint: sysctl fs.inotify user.max_inotify_instances user.max_inotify_watches shows the limits")
                patience = LOOK_OFTEN
            for event in changes(now if first else seen, now):
                if wanted.takes(event):
                    say.out(json.dumps(event))
            say.flush()
            seen, first = now, False
            if "reader" in events.wait(patience):
                raise BrokenPipeError
            time.sleep(TOGETHER)
            events.wait(0)


def _look_and_follow(state: State, events: Events, before: Seen) -> Seen:
    """Look, after everything that will be there is followed: what comes in between is told of once more."""
    events.directories([f"{state.run}/pods", f"{state.run}/members", state.owned])
    for kind in ("pods", "members"):
        events.directories(state.path(kind, name) for name in state.names(kind))
    now = look(state, before)
    lives = {pid: kernel.process_start(pid) for row in now.values() if (pid := row["pid"])}
    events.processes([(pid, start) for pid, start in lives.items() if start])
    return now if all(lives.values()) else look(state, before)  # one has ended before we could follow it
