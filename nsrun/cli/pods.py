# SPDX-License-Identifier: Apache-2.0
"""The commands of `nsrun pod`, apart from `pod create`."""

from __future__ import annotations

from nsrun.cli import say
from nsrun.cli.say import each, err, go_on_after, out
from nsrun.errors import NsrunError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from nsrun.cli.commands import Call
    from nsrun.state import State
    from nsrun.types import Port


def warn_without_cgroup(state: State) -> None:
    """Say what a new pod lacks because it has no cgroup, unless the user chose that."""
    from nsrun.host import cgroup

    reason, fix = ("", "") if cgroup.chosen_none() else cgroup.why_none(state.uid)
    if reason:
        err(
            f"warning: the pod has no cgroup, {reason}: limits are refused, and processes that a member leaves in a mount namespace of their own are not killed with it"
        )
        err(f"hint: {fix}; or set NSRUN_CGROUP=none to go without and silence this warning")


def ls(call: Call) -> int:
    from nsrun.cli import lists, text
    from nsrun.lifecycle.query import pods

    shape = lists.Shape(call, lists.POD_FILTERS, lists.POD_FIELDS)
    found = pods(call.state, bool(call.options.get("all")) or shape.everything, shape.json)
    found = list(filter(shape.takes, found))
    if shape.json:
        return text.json(found)
    if shape.show(found):
        return 0
    rows = [
        [p["name"], p["status"], str(p["pid"] or "-"), p["network"]["ip"] or p["network"]["mode"], _ports(p["ports"]), ",".join(p["members"]) or "-"]
        for p in found
    ]  # fmt: skip
    return text.table(["NAME", "STATUS", "PID", "ADDRESS", "PORTS", "MEMBERS"], rows)


def _ports(ports: list[Port]) -> str:
    from nsrun.spec.options import port_ranges, published

    ranges = port_ranges(published(ports))
    return ",".join(f"{'' if ip == '0.0.0.0' else ip + ':'}{host}->{pod}" for ip, host, pod in ranges) or "-"


def inspect(call: Call) -> int:
    from nsrun.cli import text
    from nsrun.lifecycle.query import pod_json, pod_note

    notes = [pod_note(call.state, name) for name in call.operands]
    return text.json([pod_json(call.state, note, call.state.members_of(note)) for note in notes])


def ps(call: Call) -> int:
    from nsrun.cli.members import print_processes
    from nsrun.lifecycle.query import processes

    return print_processes(call, processes(call.state, call.operands[0]))


def logs(call: Call) -> int:
    from nsrun.cli import members
    from nsrun.lifecycle.query import pod_note

    note = pod_note(call.state, call.operands[0])
    call.operands = [member["name"] for member in call.state.members_of(note)]
    return members.logs(call)


def stats(call: Call) -> int:
    from nsrun.cli.members import print_usage

    return print_usage(call, [call.state.pod(name) for name in call.operands])


def stop(call: Call) -> int:
    from nsrun.cli.members import say_killed, seconds_of
    from nsrun.lifecycle.stop import stop_pod

    say.failures_of_threads()
    seconds = seconds_of(call)

    def one(name: str) -> None:
        for member in stop_pod(call.state, name, seconds):
            say_killed(member, seconds)

    return each(call.operands, one)


def restart(call: Call) -> int:
    from nsrun.cli.members import say_killed, seconds_of
    from nsrun.lifecycle.again import restart_pod

    say.failures_of_threads()
    seconds = seconds_of(call)

    def one(name: str) -> None:
        for member in restart_pod(call.state, name, seconds):
            say_killed(member, seconds)

    return each(call.operands, one)


def kill(call: Call) -> int:
    from nsrun.lifecycle.stop import SIGKILL, kill_pod

    signal = SIGKILL
    if text := call.options.get("signal"):
        from nsrun.spec.options import parse_signal

        signal = parse_signal(text)
    return each(call.operands, lambda name: kill_pod(call.state, name, signal))


def rm(call: Call) -> int:
    from nsrun.lifecycle.remove import remove_pod

    return each(call.operands, lambda name: remove_pod(call.state, name, bool(call.options.get("force"))))


def prune(call: Call) -> int:
    from nsrun.lifecycle import remove, volumes
    from nsrun.state import orphans
    from nsrun.state.sweep import Sweeper

    state, code = call.state, 0
    sweeper = Sweeper(state)

    def prune_all(items: Iterable[Any], action: Callable[[Any], bool], name: Callable[[Any], str], kept: bool) -> None:
        """Remove each of what was found; report those that remain if they are `kept` for a reason."""
        nonlocal code
        for item in items:
            try:
                if action(item):
                    out(name(item))
                elif kept:
                    err(f"nsrun: left as it is: {name(item)}")
            except (OSError, NsrunError) as error:
                code = go_on_after(error, code)

    def look(find: Callable[[State], list[Any]]) -> list[Any]:
        nonlocal code
        try:
            return find(state)
        except (OSError, NsrunError) as error:
            code = go_on_after(error, code)
            return []

    def end_committed(committed: dict[str, Any]) -> bool:
        remove.end_committed(state, committed)
        return True

    known = [(kind, note) for kind in ("pod", "member") for note in state.all(f"{kind}s")]
    prune_all(known, lambda one: remove.prune(state, *one), lambda one: f"{one[0]} {one[1]['name']}", False)
    sweeper.set_broken_aside()
    state.broken.clear()
    prune_all(orphans.processes(state), lambda process: orphans.end(process, state), str, True)
    for path in orphans.remove_idle_cgroups(state):
        out(f"cgroup {path}, of no pod")
    if call.options.get("all"):
        prune_all(
            look(orphans.lost_members),
            end_committed,
            lambda lost: f"member {lost['name']} of pod {lost['pod']}, of which only its data were left",
            False,
        )
        prune_all(look(orphans.data), lambda data: data.free and state.remove_directory(data.path), str, True)
    for path in look(volumes.finish):
        out(f"{path}, of a volume that was removed")
    for line in sweeper.all():
        out(line)
    return code
