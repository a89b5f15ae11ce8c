# SPDX-License-Identifier: Apache-2.0
"""The commands that are about members, apart from `join` and `exec`."""

from __future__ import annotations

from nsrun.cli import say
from nsrun.cli.say import each, err, out
from nsrun.errors import NsrunError, UnknownError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nsrun.cli.commands import Call


def ls(call: Call) -> int:
    from nsrun.cli import lists, text
    from nsrun.lifecycle.query import members
    from nsrun.state import ALIVE

    shape = lists.Shape(call, lists.MEMBER_FILTERS, lists.MEMBER_FIELDS)
    state, everything = call.state, bool(call.options.get("all")) or shape.everything
    found, owned = members(state, everything, shape.json)
    if not state.uid and owned:
        from nsrun.lifecycle import owners

        found += [m for m in owners.members(state) if everything or m["status"] in ALIVE]
    found = list(filter(shape.takes, found))
    if shape.json:
        return text.json(found)
    if shape.show(found):
        return 0
    rows = []
    for m in found:
        status = (
            lists.with_health(m["status"], m)
            + (f" ({m['exit_code']})" if m["exit_code"] is not None else "")
            + (" out of memory" if m.get("oom_killed") else "")
            + (" (orphaned)" if m["orphaned"] else "")
        )
        rows.append(
            [m["name"], m["pod"], status, str(m["pid_in_pod"] or "-"), str(m["pid"] or "-"), " ".join(m["command"])]
        )
    return text.table(["NAME", "POD", "STATUS", "PID", "HOSTPID", "COMMAND"], rows)


def inspect(call: Call) -> int:
    from nsrun.cli import text
    from nsrun.lifecycle.query import inspect_member

    return text.json([inspect_member(call.state, call.state.member(name)) for name in call.operands])


def stats(call: Call) -> int:
    from nsrun.state import BEGUN

    state = call.state
    notes = [state.member(name) for name in call.operands] or state.all("members")
    alive = [note for note in notes if state.member_status(note)[0] in BEGUN]
    for note in notes if call.operands else []:
        if note not in alive:
            raise UnknownError(f"member {note['name']!r} is not running", hint="nsrun ls -a")
    return print_usage(call, alive)


def print_usage(call: Call, notes: list[Any]) -> int:
    """Print what pods or members use."""
    from nsrun.cli import text
    from nsrun.host import cgroup
    from nsrun.lifecycle.query import stats

    rows = stats(call.state, notes)
    if lacking := cgroup.missing():
        err(f"cgroup v2 has no controller {', '.join(lacking)} here: some figures are missing; nsrun doctor")
    if call.options.get("json"):
        return text.json(rows)

    def of(used: str, limit: str | None) -> str:
        return used + (f" / {limit}" if limit else "")

    size = text.size
    cells = [
        [
            r["name"],
            of(
                "-" if r["cpu_percent"] is None else f"{r['cpu_percent']}%",
                r["cpu_limit"] and f"{100 * r['cpu_limit']:g}%",
            ),
            of("-" if r["memory"] is None else size(r["memory"]), r["memory_limit"] and size(r["memory_limit"])),
            of(str(r["pids"]) if r["pids"] is not None else "-", r["pids_limit"] and str(r["pids_limit"])),
            "-" if r["cpu_seconds"] is None else f"{r['cpu_seconds']:.2f} s",
        ]
        for r in rows
    ]
    return text.table(["NAME", "CPU", "MEMORY", "PROCESSES", "CPU TIME"], cells)


def print_processes(call: Call, rows: list[dict[str, Any]]) -> int:
    """Print the processes of a pod or of a member."""
    from nsrun.cli import text

    if call.options.get("json"):
        return text.json(rows)
    cells = [
        [str(r["pid_in_pod"] or "-"), str(r["pid"]), str(r["uid"]), r["member"] or "-", r["command"]] for r in rows
    ]
    return text.table(["PID", "HOSTPID", "UID", "MEMBER", "COMMAND"], cells)


def logs(call: Call) -> int:
    from nsrun.lifecycle import logs as module
    from nsrun.spec.options import parse_count

    state, options = call.state, call.options
    text = options.get("tail", "all")
    tail = None if text == "all" else parse_count(text, "--tail", "a number of lines")
    since, until = (module.moment(options[key], f"--{key}") if key in options else "" for key in ("since", "until"))
    follow, stamps, raw = (bool(options.get(key)) for key in ("follow", "timestamps", "raw"))
    names = list(dict.fromkeys(state.member(name)["name"] for name in call.operands))
    if len(names) == 1:
        lines = module.Lines()
        for time, stream, text in module.logs(state, names[0], tail, follow, since, until):
            begins = lines.begins(stream, text)
            say.member_output(2 if stream == "stderr" else 1, (f"{time} {text}" if stamps and begins else text), raw)
        return 0
    width = max(map(len, names), default=0)
    sources = {name: module.pieces(state, name, tail, follow, since, until) for name in names}
    for name, (time, stream, text) in module.together(sources, follow):
        line = (f"{time} " if stamps else "") + text
        say.member_output(2 if stream == "stderr" else 1, line, raw, f"{name:{width}} | ", names.index(name))
    return 0


def wait(call: Call) -> int:
    from nsrun.lifecycle.wait import wait_health, wait_member

    if (wanted := call.options.get("condition", "stopped")) != "stopped":

        def one(name: str) -> None:
            wait_health(call.state, name, wanted)
            out(wanted)

        return each(call.operands, one, print_names=False)
    return each(call.operands, lambda name: out(str(wait_member(call.state, name))), print_names=False)


def stop(call: Call) -> int:
    from nsrun.lifecycle.stop import stop_members

    say.failures_of_threads()
    seconds, notes, failed = seconds_of(call), {}, {}
    for name in call.operands:
        try:
            notes[name] = call.state.member(name)
        except (OSError, NsrunError) as error:
            failed[name] = error
    done = dict(zip(notes, stop_members(call.state, list(notes.values()), seconds), strict=True))

    def one(name: str) -> None:
        killed = failed.get(name) or done[name]
        if not isinstance(killed, bool):
            raise killed
        if killed:
            say_killed(name, seconds)

    return each(call.operands, one)


def top(call: Call) -> int:
    from nsrun.lifecycle.query import member_processes

    return print_processes(call, member_processes(call.state, call.state.member(call.operands[0])))


def start(call: Call) -> int:
    from nsrun.lifecycle.again import start_member, start_one_of

    begin = start_member if len(call.operands) == 1 else start_one_of
    return each(call.operands, lambda name: begin(call.state, call.state.member(name)))


def restart(call: Call) -> int:
    from nsrun.lifecycle.again import restart_member

    seconds = seconds_of(call)

    def one(name: str) -> None:
        if restart_member(call.state, call.state.member(name), seconds):
            say_killed(name, seconds)

    return each(call.operands, one)


def rename(call: Call) -> int:
    from nsrun.lifecycle.rename import rename_member

    rename_member(call.state, call.state.member(call.operands[0]), call.operands[1])
    out(call.operands[1])
    return 0


def pause(call: Call) -> int:
    from nsrun.lifecycle.pause import pause_member

    return each(call.operands, lambda name: pause_member(call.state, call.state.member(name)))


def unpause(call: Call) -> int:
    from nsrun.lifecycle.pause import unpause_member

    return each(call.operands, lambda name: unpause_member(call.state, call.state.member(name)))


def seconds_of(call: Call) -> float | None:
    """Return how long --time says to wait before SIGKILL; None: as long as each member says."""
    text = call.options.get("time")
    if text is None:
        return None
    from nsrun.spec.options import parse_fraction

    return parse_fraction(text, "-t", "a number of seconds", 0, 86400)


def say_killed(member: str, seconds: float | None) -> None:
    after = "in time" if seconds is None else f"{seconds:g} s"
    err(f"nsrun: member {member!r} had not ended {after} after its stop signal, and was killed")


def kill(call: Call) -> int:
    from nsrun.lifecycle.stop import SIGKILL, signal_member, stop_member
    from nsrun.spec.options import parse_signal
    from nsrun.state import BEGUN

    signal = parse_signal(call.options.get("signal", "KILL"))

    def one(name: str) -> None:
        note = call.state.member(name)
        if signal == SIGKILL and call.state.member_status(note)[0] in (*BEGUN, "restarting"):
            stop_member(call.state, note, 0, SIGKILL)
        else:
            signal_member(call.state, note, signal)

    return each(call.operands, one)


def rm(call: Call) -> int:
    from nsrun.lifecycle.remove import remove_named
    from nsrun.schema import is_name

    state = call.state
    of_run = [name for name in call.operands if is_name(name) and state.has_pod(name) and state.has_member(name)]
    of_run = [name for name in of_run if (note := state.try_read("members", name)) and note["pod"] == name]
    code = each(call.operands, lambda name: remove_named(state, name, bool(call.options.get("force"))))
    for name in of_run:  # a pod and its only member, of one name
        pod = state.try_read("pods", name)
        if pod and state.note_and_life("pods", name)[1].kept and not state.members_of(pod):
            err(f"pod {name!r} stays, without a member, and keeps its name and its ports; nsrun pod rm -f {name}")
    return code


def attach(call: Call) -> int:
    from nsrun.cli.attach import LEAVE, parse_keys
    from nsrun.cli.attach import attach as connect

    if call.options.get("no_stdin") and call.options.get("close_stdin"):
        raise UsageError("--no-stdin and --close-stdin contradict each other")
    keys = parse_keys(call.options["detach_keys"]) if "detach_keys" in call.options else LEAVE
    stdin, close = not call.options.get("no_stdin"), bool(call.options.get("close_stdin"))
    return connect(call.state, call.operands[0], stdin, close, keys)
