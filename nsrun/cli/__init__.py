# SPDX-License-Identifier: Apache-2.0
"""The command line: a thin face over nsrun.lifecycle.join and nsrun.lifecycle.query.  Each function below is one command."""

from __future__ import annotations

import os
import sys

from nsrun.cli.commands import parse
from nsrun.errors import NsrunError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nsrun.run import Run
    from nsrun.state import State

    Words = list[str]
    Options = dict[str, Any]


class Interrupted(BaseException):
    """SIGTERM or SIGHUP: undo and go, like Ctrl-C."""


def _ignored(unraisable: Any) -> None:
    """A signal that arrives in a destructor or a weak reference's callback (imports have one) is raised once that is over.

    Python would print "Exception ignored in …", and go on as if nobody had pressed Ctrl-C (sys.unraisablehook).
    """
    error = unraisable.exc_value
    if not isinstance(error, KeyboardInterrupt | Interrupted):
        if "--debug" in sys.argv:
            sys.__unraisablehook__(unraisable)
        elif isinstance(error, Exception):
            from nsrun.cli.failures import failure_of, tell

            failure = failure_of(error)
            tell(failure.message, failure.hint)
        return

    def again(frame: Any, event: str, _: object) -> None:
        if frame.f_code is not _ignored.__code__:
            raise error  # which also takes this function out of the profiler's place

    sys.setprofile(again)


def main(words: Words | None = None) -> int:
    """Run one command and return the exit status (docs/cli.md, "Exit status").

    Whatever goes wrong is one line, and perhaps a hint; --debug raises it.
    """
    try:
        return _main(words)
    except (KeyboardInterrupt, Interrupted):  # one more, while the first was being told
        return 130


def _main(words: Words | None) -> int:
    import _signal

    words = sys.argv[1:] if words is None else words
    debug = "--debug" in words[:4]
    status_fd = -1

    def interrupted(number: int, _: object) -> None:
        raise Interrupted(number)

    sys.unraisablehook = _ignored
    try:
        _fill_standard_descriptors()
        if _signal.getsignal(_signal.SIGINT) == _signal.SIG_DFL:
            _signal.signal(_signal.SIGINT, _signal.default_int_handler)
        if _signal.getsignal(_signal.SIGCHLD) == _signal.SIG_IGN:  # the kernel would reap our children: wait(2), ECHILD
            _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        for number in (_signal.SIGTERM, _signal.SIGHUP):
            if _signal.getsignal(number) == _signal.SIG_DFL:
                _signal.signal(number, interrupted)
        general, command, options, operands, rest = ({}, None, {}, [], []) if _is_hidden(words) else parse(words)
        status_fd = _status_fd(options)
        code = _command(words, general, command, options, operands, rest)
        _flush()
        return code
    except (KeyboardInterrupt, Interrupted) as error:
        _signal.pthread_sigmask(_signal.SIG_BLOCK, {_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP})  # once is enough
        from nsrun.cli.failures import tell

        tell("interrupted")
        return 128 + (error.args[0] if isinstance(error, Interrupted) else 2)
    except BrokenPipeError:
        _give_up()
        return 141
    except Exception as error:
        if debug:
            raise
        return _failed(error, status_fd)


def _failed(error: Exception, status_fd: int) -> int:
    """Tell what went wrong, on --status-fd, too; return the exit status."""
    try:
        from nsrun.cli.failures import failure_of, tell
    except OSError:  # there are no descriptors left, not even to read a module
        from nsrun.errors import last_words

        last_words(f"nsrun: {error}")
        return 125
    failure = failure_of(error)
    tell(failure.message, failure.hint)
    if status_fd >= 0:
        from nsrun.lifecycle import tell_event

        tell_event(status_fd, _event(failure))
    return failure.exit_code


def _fill_standard_descriptors() -> None:
    """Open on /dev/null what was closed of 0, 1 and 2: the next descriptor that is opened would be taken for it."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open("/dev/null", os.O_RDWR), True)  # the lowest free number is this one


def _command(words: Words, general: Options, command: Any, options: Options, operands: Words, rest: Words) -> int:
    """What main() does when nothing goes wrong."""
    if words[:1] == ["_complete"]:
        from nsrun.cli import text

        return text.complete(words[1:])
    if _is_hidden(words):
        return _hidden(words)
    if "help" in general or "version" in general or command is None:
        from nsrun.cli import text

        return text.general(general, command)
    from nsrun.state import State

    state = State(general.get("root", ""))
    if command.name in _OF_MEMBERS and not state.uid:
        state = _as_owner(state, operands, options)
    if command.name in _IN_USERNS:
        from nsrun.host import userns

        userns.enter(state.uid)
    code: int = _handler(command.name)(state, options, operands, rest, general)
    if command.name not in ("exec", "explain", "help", "completion", "doctor"):
        _sweep(state)
    return code


def _flush() -> None:
    """Have all written that the command printed.  NsrunError: it can't be, and that it was done is not hidden."""
    from nsrun.cli import say

    try:
        say.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        from nsrun.errors import errno_text

        raise NsrunError(
            f"it is done, but what it prints can't be written: {errno_text(error.errno or 0)}",
            hint="df -h tells whether a disk is full",
        ) from None


def _give_up() -> None:
    from nsrun.cli import say

    say.give_up()


#: Their operands are members.
_OF_MEMBERS = ("exec", "stats", "inspect", "logs", "wait", "stop", "kill", "rm", "attach")


def _as_owner(state: State, names: Words, options: Options) -> State:
    """Root names a member that is not its own: from here on we are the owner of its pod, with the owner's notes.

    What `-e NAME` asks for of root's environment is taken before.
    """
    from nsrun.errors import BrokenNote, UnknownError
    from nsrun.state import FOR_ROOT, State

    for name in names:
        try:
            state.member(name)
        except BrokenNote:
            return state  # it is ours; the command says what is wrong with it
        except UnknownError:
            from nsrun.host import userns
            from nsrun.lifecycle import owners

            uid = owners.owner_of_member(state, name)
            if uid < 0:
                return state  # the command itself says so, after what else is wrong with it
            if options.get("env"):
                from nsrun.spec.options import parse_environment

                named = parse_environment(options["env"], dict(os.environ))
                options["env"] = [f"{key}={value}" for key, value in named.items()]
            userns.become(userns.User(str(uid)))
            theirs = State(state.root)
            theirs.patience = FOR_ROOT
            return theirs
    return state


#: Of an ordinary user, what they touch has ids of a user namespace of hers.
_IN_USERNS = ("image load", "image pull", "image unpack", "image rm", "image prune", "image tag")


def _handler(name: str) -> Any:
    if name.startswith("image "):
        from nsrun.cli import images

        return getattr(images, name.removeprefix("image "))
    return _HANDLERS[name]


def _is_hidden(words: Words) -> bool:
    """Whether it is what the monitor (`_ended`), a shell (`_complete`) or nsrun itself (the others) call: no commands for people."""
    at = 2 if words[:1] == ["--root"] else 0
    return words[:1] == ["_complete"] or (len(words) > at and words[at] in _HIDDEN)


def _hidden(words: Words) -> int:
    from nsrun.state import State

    at = 2 if words[:1] == ["--root"] else 0
    return int(_HIDDEN[words[at]](State(words[1] if at else ""), words[at + 1 :]))


def _ended(state: State, words: Words) -> int:
    """NAME [--lead FD] --held FD,FD STATUS: the locks of the monitor that we were are ours still."""
    from nsrun.lifecycle.restart import ended
    from nsrun.state import life

    lead = int(words[2]) if words[1] == "--lead" else -1
    held, data = (int(word) for word in words[-2].split(","))
    for fd in (held, data):
        if fd >= 0:
            os.set_inheritable(fd, False)
            life.adopt(fd)
    return ended(state, words[0], int(words[-1]), lead, (held, data))


def _remove(state: State, words: Words) -> int:
    from nsrun.host import userns
    from nsrun.state import remove_tree

    userns.enter(state.uid)
    for path in words:
        remove_tree(path)
    return 0


def _say(error: NsrunError) -> None:
    """Tell an error after which the command goes on."""
    from nsrun.cli import say

    say.err(f"nsrun: {error.message}")
    if error.hint:
        say.err(f"hint: {error.hint}")


def _event(error: NsrunError) -> dict[str, Any]:
    from errno import errorcode

    return {
        "event": "error",
        "step": getattr(error, "number", 0),
        "errno": errorcode.get(error.errno, ""),
        "message": error.message,
        "hint": error.hint,
        "exit_code": error.exit_code,
    }


def _status_fd(options: Options) -> int:
    text = options.get("status_fd")
    if text is None:
        return -1
    from nsrun.spec.options import parse_count

    number = parse_count(text, "--status-fd", "a descriptor", 0, (1 << 31) - 1)
    try:
        os.fstat(number)
    except OSError:
        raise UsageError(f"--status-fd {text}: no such descriptor is open") from None
    return number


def _sweep(state: State) -> None:
    """What died since the last command is forgotten now, quietly."""
    from nsrun.state.sweep import Sweeper

    sweeper = Sweeper(state)
    try:
        sweeper.all()
    except (NsrunError, OSError) as error:
        sweeper.troubles.append(str(error).partition("\n")[0])
    for what, where in (
        (sweeper.troubles, "left as it is"),
        ([f"{p}: {w}" for p, w in state.broken.items()], "damaged"),
    ):
        if what:
            from nsrun.cli.say import err

            more = f" (and {len(what) - 1} more)" if len(what) > 1 else ""
            err(f"nsrun: {where}: {what[0]}{more}; nsrun doctor")


def _trace(general: Options) -> Any:
    if not general.get("trace"):
        return None

    def observe(run: Run) -> None:
        from nsrun.cli import say
        from nsrun.explain import trace

        say.err_page(trace(run))

    return observe


def _whole(state: State, words: Words) -> int:
    """LAYER: says "whole" when all of it is there."""
    from nsrun.cli.say import out
    from nsrun.host import userns
    from nsrun.image import lookup

    userns.enter(state.uid)
    out("whole" if lookup.whole(state, words[0]) else "damaged")
    return 0


_HIDDEN = {"_ended": _ended, "_remove": _remove, "_whole": _whole}


# ---- pods --------------------------------------------------------------------------------------------------


def pod_create(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun.cli.say import err, out
    from nsrun.lifecycle.create import create_pod

    note = create_pod(state, {**options, **({"name": operands[0]} if operands else {})}, _trace(general), last=True)
    if note.get("user") and not state.uid:
        err(
            f"the pod belongs to {note['owner']}, who joins it without sudo (nsrun join {note['name']} …) and is root in it only; --owner root makes it root's"
        )
    if not note["cgroup"]:
        _say_without_cgroup(state)
    from nsrun.spec.options import parse_ports, port_ranges

    asked = [(p["host_ip"], p["host_port"]) for p in parse_ports(options.get("publish") or [])]
    for ip, host, pod in port_ranges(
        (p["host_ip"], p["host_port"], p["pod_port"])
        for p in note["ports"]
        if p["host_ip"] != "127.0.0.1" or (p["host_ip"], p["host_port"]) not in asked
    ):
        err(f"published {ip}:{host} → {pod}/tcp")
    if note["network"]["mode"] == "bridge":
        from nsrun.host import net

        try:
            chain = net.foreign_drop()
        except OSError as error:
            chain = ""
            err(f"warning: whether another firewall drops what is forwarded can't be told: {error}")
        if chain:
            err(f"warning: the firewall chain {chain!r} drops what is forwarded to and from the pod")
            err(f"hint: {net.firewall_fix(chain)}")
    out(note["name"])
    return 0


def _say_without_cgroup(state: State) -> None:
    """Once for each pod, unless it was asked for."""
    from nsrun.host import cgroup

    reason, fix = ("", "") if cgroup.chosen_none() else cgroup.why_none(state.uid)
    if reason:
        from nsrun.cli.say import err

        err(f"warning: no cgroup for the pod, {reason}: limits are refused, and what a member leaves behind in a mount namespace of its own is not killed with it")  # fmt: skip
        err(f"hint: {fix}; or NSRUN_CGROUP=none, to go without and hear no more of it")


def pod_ls(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun.cli import text
    from nsrun.lifecycle.query import pods

    found = pods(state, bool(options.get("all")))
    if options.get("json"):
        return text.json(found)
    rows = [
        [p["name"], p["status"], str(p["pid"] or "-"), p["network"]["ip"] or p["network"]["mode"], _ports(p["ports"]), ",".join(p["members"]) or "-"]
        for p in found
    ]  # fmt: skip
    return text.table(["NAME", "STATUS", "PID", "ADDRESS", "PORTS", "MEMBERS"], rows)


def _ports(ports: list[dict[str, Any]]) -> str:
    from nsrun.spec.options import port_ranges

    ranges = port_ranges((p["host_ip"], p["host_port"], p["pod_port"]) for p in ports)
    return ",".join(f"{'' if ip == '0.0.0.0' else ip + ':'}{host}->{pod}" for ip, host, pod in ranges) or "-"


def pod_inspect(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun.cli import text
    from nsrun.lifecycle.query import pod_json, pod_note

    notes, members = [pod_note(state, name) for name in operands], state.all("members")
    return text.json([pod_json(state, note, members) for note in notes])


def pod_ps(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun.cli import text
    from nsrun.lifecycle.query import processes

    rows = processes(state, operands[0])
    if options.get("json"):
        return text.json(rows)
    cells = [
        [str(r["pid_in_pod"] or "-"), str(r["pid"]), str(r["uid"]), r["member"] or "-", r["command"]] for r in rows
    ]
    return text.table(["PID", "HOSTPID", "UID", "MEMBER", "COMMAND"], cells)


def pod_stats(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    return _stats(state, options, [state.pod(name) for name in operands])


def stats(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun.errors import UnknownError

    notes = [state.member(name) for name in operands] or state.all("members")
    alive = [note for note in notes if state.member_status(note)[0] in ("running", "stopping")]
    for note in notes if operands else []:
        if note not in alive:
            raise UnknownError(f"member {note['name']!r} is not running", hint="nsrun ls -a")
    return _stats(state, options, alive)


def _stats(state: State, options: Options, notes: list[Any]) -> int:
    from nsrun.cli import text
    from nsrun.cli.say import err
    from nsrun.host import cgroup
    from nsrun.lifecycle.query import stats

    rows = stats(state, notes)
    if lacking := cgroup.missing():
        err(f"cgroup v2 has no controller {', '.join(lacking)} here: some figures are missing; nsrun doctor")  # fmt: skip
    if options.get("json"):
        return text.json(rows)

    def of(used: str, limit: str | None) -> str:
        return used + (f" / {limit}" if limit else "")

    from nsrun.cli.images import size_text as size

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


def _each(operands: Words, action: Any) -> int:
    """Does it for each name; goes on after an error, and gives the first one's status."""
    from nsrun.cli.say import out

    code = 0
    for name in operands:
        try:
            action(name)
            out(name)
        except (OSError, NsrunError) as error:
            code = code or _go_on_after(error)
    return code


def _go_on_after(error: OSError | NsrunError) -> int:
    """Tell an error of one of several items; return the exit status that it gives."""
    if isinstance(error, BrokenPipeError):
        raise error  # nobody reads what we say
    from nsrun.cli.failures import failure_of

    failure = failure_of(error)
    _say(failure)
    return failure.exit_code


def _seconds(options: Options) -> float:
    text = options.get("time", "10")
    from nsrun.spec.options import parse_fraction

    return parse_fraction(text, "-t", "a number of seconds", 0, 86400)


def _signal_of(options: Options) -> int:
    from nsrun.spec.options import parse_signal

    return parse_signal(options.get("signal", "KILL"))


def pod_stop(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun.cli.failures import threads_tell
    from nsrun.lifecycle.stop import stop_pod

    threads_tell()
    seconds = _seconds(options)

    def one(name: str) -> None:
        for member in stop_pod(state, name, seconds):
            _say_killed(member, seconds)

    return _each(operands, one)


def _say_killed(member: str, seconds: float) -> None:
    from nsrun.cli.say import err

    err(f"nsrun: member {member!r} had not ended {seconds:g} s after its stop signal, and was killed")


def pod_kill(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun.lifecycle.stop import kill_pod

    signal = _signal_of(options)
    return _each(operands, lambda name: kill_pod(state, name, signal))


def pod_rm(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun.lifecycle.remove import remove_pod

    return _each(operands, lambda name: remove_pod(state, name, bool(options.get("force"))))


def pod_prune(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun.cli.say import err, out
    from nsrun.lifecycle.remove import end_committed, prune
    from nsrun.state import orphans
    from nsrun.state.sweep import Sweeper

    sweeper, code = Sweeper(state), 0
    for kind, notes in (("pod", state.all("pods")), ("member", state.all("members"))):
        for note in notes:
            try:
                if prune(state, kind, note):
                    out(f"{kind} {note['name']}")
            except (OSError, NsrunError) as error:
                code = code or _go_on_after(error)
    sweeper.set_broken_aside()
    state.broken.clear()
    for process in orphans.processes(state):
        try:
            if orphans.end(process, state):
                out(str(process))
            else:
                err(f"nsrun: left as it is: {process}")
        except (OSError, NsrunError) as error:
            code = code or _go_on_after(error)
    for path in orphans.remove_idle_cgroups(state):
        out(f"cgroup {path}, of no pod")
    lost, data_of = [], []
    if options.get("all"):
        try:
            lost = orphans.lost_members(state)
        except (OSError, NsrunError) as error:
            code = code or _go_on_after(error)
    for committed in lost:
        try:
            end_committed(state, committed)
            out(f"member {committed['name']} of pod {committed['pod']}, of which only its data spoke")
        except (OSError, NsrunError) as error:
            code = code or _go_on_after(error)
    if options.get("all"):
        try:
            data_of = orphans.data(state)
        except (OSError, NsrunError) as error:
            code = code or _go_on_after(error)
    for data in data_of:
        try:
            if data.free and state.remove_directory(data.path):
                out(str(data))
            else:
                err(f"nsrun: left as it is: {data}")
        except (OSError, NsrunError) as error:
            code = code or _go_on_after(error)
    for line in sweeper.all():
        out(line)
    return code


# ---- members -----------------------------------------------------------------------------------------------


def join(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun.cli.say import out
    from nsrun.lifecycle.join import join

    options = {**options, "command": rest}
    _check_terminal(options, bool(options.get("detach")))
    status = _status_fd(options)
    note = join(
        state,
        operands[0],
        options,
        detach=bool(options.get("detach")),
        status_fd=status,
        observe=_with_warnings(_trace(general)),
        last=True,
    )
    out(note["name"])
    return 0


def _with_warnings(trace: Any) -> Any:
    """Tells of mounts that symlinks of the root lead elsewhere, and of capabilities that can't be granted (capabilities(7), the bounding set)."""

    def observe(run: Run) -> None:
        for target, place in run.plan.facts.get("moved", {}).items():
            from nsrun.cli.say import err

            err(f"the target {target} passes a symlink of the root: it is mounted at {place}")
        if refused := run.plan.facts.get("refused"):
            from nsrun.cli.say import err

            err(f"warning: --cap-add: root does not have {', '.join(refused)} here, the member goes without")
        if trace:
            trace(run)

    return observe


def _check_terminal(options: Options, detach: bool) -> None:
    if options.get("terminal") and options.get("interactive") and not detach and not os.isatty(0):
        raise UsageError("-it: standard input is not a terminal", hint="leave -t out")


def execute(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun.lifecycle.execute import execute

    options = {**options, "command": rest}
    _check_terminal(options, False)
    execute(state, operands[0], options, observe=_trace(general))
    return 0


def ls(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun.cli import text
    from nsrun.lifecycle.query import members
    from nsrun.state import ALIVE

    found = members(state, bool(options.get("all")))
    if not state.uid and any(note.get("user") for note in state.all("pods")):
        from nsrun.lifecycle import owners

        found += [m for m in owners.members(state) if options.get("all") or m["status"] in ALIVE]
    if options.get("json"):
        return text.json(found)
    rows = []
    for m in found:
        status = (
            m["status"]
            + (f" ({m['exit_code']})" if m["exit_code"] is not None else "")
            + (" out of memory" if m.get("oom_killed") else "")
            + (" (orphaned)" if m["orphaned"] else "")
        )
        rows.append(
            [m["name"], m["pod"], status, str(m["pid_in_pod"] or "-"), str(m["pid"] or "-"), " ".join(m["command"])]
        )
    return text.table(["NAME", "POD", "STATUS", "PID", "HOSTPID", "COMMAND"], rows)


def inspect(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun.cli import text
    from nsrun.lifecycle.query import member_json

    return text.json([member_json(state, state.member(name)) for name in operands])


def logs(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun.cli.say import member_output
    from nsrun.lifecycle import logs as module
    from nsrun.spec.options import parse_count

    word = options.get("tail", "all")
    tail = None if word == "all" else parse_count(word, "--tail", "a number of lines")
    since, until = (module.moment(options[key], f"--{key}") if key in options else "" for key in ("since", "until"))
    follow, stamps, raw = (bool(options.get(key)) for key in ("follow", "timestamps", "raw"))
    names = list(dict.fromkeys(state.member(name)["name"] for name in operands))
    sources = {name: module.logs(state, name, tail, follow, since, until) for name in names}
    if len(sources) == 1:
        lines = module.Lines()
        for time, stream, text in sources[names[0]]:
            begins = lines.begins(stream, text)
            member_output(2 if stream == "stderr" else 1, (f"{time} {text}" if stamps and begins else text), raw)
        return 0
    width = max(map(len, names), default=0)
    for name, (time, stream, text) in module.together(sources, follow):
        head = f"{name:{width}} | " + (f"{time} " if stamps else "")
        member_output(2 if stream == "stderr" else 1, head + text, raw)
    return 0


def pod_logs(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun.lifecycle.query import pod_note

    note = pod_note(state, operands[0])
    return logs(state, options, [member["name"] for member in state.members_of(note)], rest, general)


def wait(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun.cli.say import out
    from nsrun.lifecycle.wait import wait_member

    code = 0
    for name in operands:
        try:
            out(str(wait_member(state, name)))
        except (OSError, NsrunError) as error:
            code = code or _go_on_after(error)
    return code


def stop(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun.cli.failures import threads_tell
    from nsrun.lifecycle.stop import stop_members

    threads_tell()
    seconds, notes, failed = _seconds(options), {}, {}
    for name in operands:
        try:
            notes[name] = state.member(name)
        except (OSError, NsrunError) as error:
            failed[name] = error
    done = dict(zip(notes, stop_members(state, list(notes.values()), seconds), strict=True))

    def one(name: str) -> None:
        killed = failed.get(name) or done[name]
        if not isinstance(killed, bool):
            raise killed
        if killed:
            _say_killed(name, seconds)

    return _each(operands, one)


def kill(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun.lifecycle.stop import SIGKILL, signal_member, stop_member

    signal = _signal_of(options)

    def one(name: str) -> None:
        note = state.member(name)
        if signal == SIGKILL and state.member_status(note)[0] in ("running", "stopping", "restarting"):
            stop_member(state, note, 0, SIGKILL)
        else:
            signal_member(state, note, signal)

    return _each(operands, one)


def rm(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun.lifecycle.remove import remove_named

    return _each(operands, lambda name: remove_named(state, name, bool(options.get("force"))))


def attach(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun.cli.attach import attach as connect

    if options.get("no_stdin") and options.get("close_stdin"):
        raise UsageError("--no-stdin and --close-stdin contradict each other")
    return connect(state, operands[0], not options.get("no_stdin"), bool(options.get("close_stdin")))


# ---- teaching and help -------------------------------------------------------------------------------------


def explain(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun import explain as module
    from nsrun.cli import say
    from nsrun.cli.planning import plan_of

    form = options.get("format", "text")
    (say.page if form == "text" else say.script)(module.explain(plan_of(state, rest), rest, form))
    return 0


def doctor(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun import doctor as module
    from nsrun.cli import say, text

    findings = module.examine(state)
    if options.get("json"):
        text.json(findings)
    else:
        say.page(module.report(findings))
    return 0 if all(f["status"] != "missing" for f in findings) else 1


def completion(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun.cli import text

    return text.completion(operands[0])


def help_(state: State, options: Options, operands: Words, rest: Words, general: Options) -> int:
    from nsrun.cli import text

    return text.help_for(" ".join(rest))


_HANDLERS = {
    "pod create": pod_create, "pod ls": pod_ls, "pod inspect": pod_inspect, "pod ps": pod_ps, "pod logs": pod_logs, "pod stats": pod_stats, "stats": stats, "pod stop": pod_stop, "pod kill": pod_kill,
    "pod rm": pod_rm, "pod prune": pod_prune, "join": join, "exec": execute, "ls": ls, "inspect": inspect, "logs": logs, "wait": wait,
    "stop": stop, "kill": kill, "rm": rm, "attach": attach, "explain": explain, "doctor": doctor, "completion": completion, "help": help_,
}  # fmt: skip
