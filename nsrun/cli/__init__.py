# SPDX-License-Identifier: Apache-2.0
"""The command line: main(), and the commands on the way to a member (pod create, join, exec).

commands.py is the table of all commands and reads a command line by it.  A command is a function of one Call, named by
the table's `handler`: in pods.py, members.py, images.py and so on.  The three here are in this file because each module
costs 0.3 ms of every command that loads it (tests/test_layers.py counts them); for the same reason a module is imported
in the function that needs it.
"""

from __future__ import annotations

import os
import sys

from nsrun.cli.commands import function, parse
from nsrun.errors import NsrunError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import FrameType
    from typing import Any

    from nsrun.cli.commands import Call
    from nsrun.run import Run
    from nsrun.state import State


class Interrupted(BaseException):
    """SIGTERM or SIGHUP arrived: undo what was begun and exit, as for Ctrl-C."""


class HandOver(BaseException):
    """A compiled plan was left behind: undo what was begun, and have the front replay it at once (NSRUN_REPLAY=always)."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit status (docs/cli.md, "Exit status").

    Whatever goes wrong is one line, and perhaps a hint; --debug raises it.
    """
    try:
        return _main(sys.argv[1:] if arguments is None else arguments)
    except (
        KeyboardInterrupt,
        Interrupted,
    ) as error:  # while an error was being reported, or a second one: timeout(1) sends two
        return _interrupted(error)


def _interrupted(signal: BaseException) -> int:
    """Say that a signal has ended the command, and return its exit status."""
    import _signal

    _signal.pthread_sigmask(_signal.SIG_BLOCK, {_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP})  # once is enough
    from nsrun.cli import say

    say.interrupted()
    return _status_of(signal)


def _status_of(signal: BaseException) -> int:
    """Return the exit status of a command that a signal has ended, as a shell gives it."""
    return 128 + (int(signal.args[0]) if isinstance(signal, Interrupted) else 2)


def _main(arguments: list[str]) -> int:
    debug = "--debug" in arguments[:4]
    status_fd = -1
    try:
        _fill_standard_descriptors()
        _take_signals()
        call = parse(arguments)
        status_fd = _status_fd(call.options)
        code = _run(call)
        _flush()
        return code
    except (KeyboardInterrupt, Interrupted) as error:
        return _interrupted(error)
    except BrokenPipeError:
        from nsrun.cli.say import give_up

        give_up()
        return 141
    except HandOver:
        return _by_the_front(arguments)
    except Exception as error:
        if debug:
            raise
        return _failed(error, status_fd, arguments)


def _front() -> str:
    """Return the program that a script of ours is beside; "" when there is none."""
    front = os.path.join(os.path.dirname(sys.argv[0]), "nsrun")
    return front if os.path.basename(sys.argv[0]) == "nsrun-python" and os.path.exists(front) else ""


def _is_at_once() -> bool:
    """Return whether a compiled plan that we leave is to be replayed by this very command: for tests."""
    return os.environ.get("NSRUN_REPLAY") == "always" and bool(_front())


def _by_the_front(arguments: list[str]) -> int:
    """Execute the front, with the signals that Python ignores as they were."""
    import _signal

    for number in (_signal.SIGPIPE, _signal.SIGXFSZ):
        _signal.signal(number, _signal.SIG_DFL)
    os.execve(_front(), ["nsrun", *arguments], {**os.environ, "NSRUN_REPLAY": "once"})


def _fill_standard_descriptors() -> None:
    """Open /dev/null as those of 0, 1 and 2 that are closed: the next file that is opened would be taken for one of them."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open("/dev/null", os.O_RDWR), True)  # the lowest free number is this one


def _take_signals() -> None:
    """Have SIGINT, SIGTERM and SIGHUP raise an exception, unless our caller ignores them; and have children to wait for."""
    import _signal

    def interrupted(number: int, frame: FrameType | None) -> None:
        error = KeyboardInterrupt() if number == _signal.SIGINT else Interrupted(number)
        while frame:
            if frame.f_code is _unraisable.__code__:  # nothing propagates from there
                from nsrun.cli.interrupts import raise_later

                raise_later(error, frame.f_code)
                return
            frame = frame.f_back
        raise error

    sys.unraisablehook = _unraisable
    if _signal.getsignal(_signal.SIGINT) in (_signal.SIG_DFL, _signal.default_int_handler):
        _signal.signal(_signal.SIGINT, interrupted)
    if _signal.getsignal(_signal.SIGCHLD) == _signal.SIG_IGN:  # the kernel would reap our children: wait(2), ECHILD
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    for number in (_signal.SIGTERM, _signal.SIGHUP):
        if _signal.getsignal(number) == _signal.SIG_DFL:
            _signal.signal(number, interrupted)


def _unraisable(unraisable: Any) -> None:
    from nsrun.cli.interrupts import take_up

    take_up(unraisable, (KeyboardInterrupt, Interrupted), _unraisable.__code__)


def _run(call: Call) -> int:
    """Run the command.  Raise whatever goes wrong."""
    command = call.command
    if command is None or "help" in call.general or "version" in call.general:
        from nsrun.cli import help

        return help.general(call)
    from nsrun.state import State

    call.state = State(call.general.get("root", ""))
    if "NSRUN_LEFT" in os.environ:  # the front began, and failed (front.c, say_what_is_left)
        from nsrun.state.sweep import Sweeper

        Sweeper(call.state).one(os.environ.pop("NSRUN_LEFT"))
    if command.of_members and not call.state.uid:
        _become_owner(call)
    if command.userns:
        from nsrun.host import userns

        userns.enter(call.state.uid)
    call.state.later = []
    try:
        code: int = function(command.handler)(call)
        if command.sweeps and call.state.later:
            call.state.after(lambda: _sweep(call.state))
        elif command.sweeps:
            _sweep(call.state)  # which may leave something, too
    finally:
        tasks, call.state.later = call.state.later, None
        if tasks:
            from nsrun.cli import later

            later.leave(tasks)
    return code


def _become_owner(call: Call) -> None:
    """Act as the owner of members that are not root's own, if such are named."""
    if not all(map(call.state.has_member, call.operands)):
        from nsrun.cli.owner import become_owner_of

        become_owner_of(call)


def _flush() -> None:
    """Have everything written that the command printed.  NsrunError: it can't be, although the command succeeded."""
    from nsrun.cli import say

    try:
        say.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        from nsrun.errors import errno_text

        raise NsrunError(
            f"the command succeeded, but its output can't be written: {errno_text(error.errno or 0)}",
            hint="df -h shows whether a disk is full",
        ) from None


def _failed(error: Exception, status_fd: int, arguments: list[str]) -> int:
    """Report what went wrong, also to --status-fd; return the exit status."""
    try:
        from nsrun.cli import say
    except OSError:  # there are no descriptors left, not even to read a module
        from nsrun.errors import last_words

        last_words(f"nsrun: {error}")
        return 125
    failure = say.failure_of(error)
    say.failure(failure.message, failure.hint, _plan_of_failed(error, arguments))
    if status_fd >= 0:
        _tell_event(status_fd, failure)
    return failure.exit_code


def _plan_of_failed(error: Exception, arguments: list[str]) -> str:
    """Return the hint that shows the plan of which a step failed; "" for other errors."""
    from nsrun.errors import StepError

    if not isinstance(error, StepError):
        return ""
    try:
        from nsrun.cli.planning import explain_line

        line = explain_line(arguments)
    except (OSError, NsrunError):
        return ""  # there may be no descriptors left to read a module
    return f"the plan, step by step: {line}" if line else ""


def _tell_event(status_fd: int, failure: NsrunError) -> None:
    from errno import errorcode

    try:
        from nsrun.lifecycle import tell_event
    except (ImportError, OSError):
        return  # of which we speak already
    event = {
        "event": "error",
        "step": failure.number,
        "errno": errorcode.get(failure.errno, ""),
        "message": failure.message,
        "hint": failure.hint,
        "exit_code": failure.exit_code,
    }
    tell_event(status_fd, event)


def _status_fd(options: dict[str, Any]) -> int:
    text = options.get("status_fd")
    if text is None:
        return -1
    from nsrun.spec.options import parse_count

    number = parse_count(text, "--status-fd", "a file descriptor", 0, (1 << 31) - 1)
    try:
        os.fstat(number)
    except OSError:
        raise UsageError(f"--status-fd {text}: file descriptor {number} is not open") from None
    return number


def _sweep(state: State) -> None:
    """Remove what died since the last command; report only what can't be removed."""
    from nsrun.state.sweep import Sweeper

    sweeper = Sweeper(state)
    try:
        sweeper.some()
        if os.path.exists(f"{state.run}/runs") and os.listdir(f"{state.run}/runs"):
            from nsrun.lifecycle import runs

            runs.sweep(state)
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


def trace_of(call: Call) -> Any:
    if not call.general.get("trace"):
        return None

    def observe(run: Run) -> None:
        from nsrun.cli import say
        from nsrun.explain import trace

        say.err_page(trace(run))

    return observe


# ---- the commands on the way to a member -----------------------------------------------------------------------


def create_pod(call: Call) -> int:
    from nsrun.cli.say import out

    name = {"name": call.operands[0]} if call.operands else {}
    leave = _leave(call, _POD_REPLAYED, _POD_VARIABLES) if call.options.get("network") in ("none", "host") else None
    note = create(call, {**call.options, **name}, leave)
    tell_of_pod(call, call.options, note)
    out(note["name"])
    return 0


def create(call: Call, options: dict[str, Any], leave: Any = None, ident: str = "") -> Mapping[str, Any]:
    """Create a pod; return its note.  Signals stay blocked."""
    from nsrun.lifecycle.create import create_pod

    return create_pod(call.state, options, trace_of(call), leave, last=True, ident=ident)


def tell_of_pod(call: Call, options: Mapping[str, Any], note: Mapping[str, Any]) -> None:
    """Tell what the owner of a new pod has to know."""
    from nsrun.cli.say import err
    from nsrun.spec.options import parse_ports, port_ranges, published

    if note.get("user") and not call.state.uid:
        err(
            f"the pod belongs to {note['owner']}: they join it without sudo (nsrun join {note['name']} …) and are root only inside it; --owner root makes it root's"
        )
    if not note["cgroup"]:
        from nsrun.cli.pods import warn_without_cgroup

        warn_without_cgroup(call.state)
    for name in note.get("untold", ()):
        err(
            f"warning: the pods of network {note['network']['name']} have no file in pod {name!r} that can be written: it does not know the new name"
        )
    asked = [p[:2] for p in published(parse_ports(options.get("publish") or []))]
    for ip, host, pod in port_ranges(
        p for p in published(note["ports"]) if p[0] not in ("127.0.0.1", "::1") or p[:2] not in asked
    ):
        err(f"published {ip}:{host} → {pod if '/' in pod else pod + '/tcp'}")
    if closed := note["network"].get("closed"):
        err(
            f"the pod is closed in, since {closed}: it reaches this host and other pods, and is reached from outside by published ports only"
        )
        tell_of_forwarder(note["ports"], options, closed)
    elif note["network"]["mode"] == "bridge":
        from nsrun.host import net

        try:
            chains = net.foreign_drops(bool(note["network"].get("ip6")))
        except OSError as error:
            chains = []
            err(f"warning: can't tell whether another firewall drops forwarded packets: {error}")
        why = f"the firewall chain {chains[0]!r} drops what nat would forward" if chains else ""
        tell_of_forwarder(note["ports"], options, why)
        for chain in chains:
            err(f"warning: the firewall chain {chain!r} drops packets that are forwarded to and from the pod")
        if chains:
            err(f"hint: {net.firewall_fix(chains, note['network']['bridge'])}")
    else:
        tell_of_forwarder(note["ports"], options)


def tell_of_forwarder(ports: list[Any], options: Mapping[str, Any], why: str = "") -> None:
    """Say why nsrun-forward passes on ports for which nobody asked that.  `why`: of all, not only those of [::1]."""
    from nsrun.cli.say import err

    if not any("mode" in port for port in ports) or options.get("publish_mode") == "forward":
        return
    why = why or "nothing else leads from ::1 to a pod"
    err(f"nsrun-forward passes on what is published, since {why}; members see the pod's own address as the client's")


def join(call: Call) -> int:
    # a member that keeps its name is not joined by the same words again
    keeps_name = "name" in call.options and not call.options.get("rm") and not _is_at_once()
    again = {"rootfs", "image"} & call.options.keys() and not keeps_name
    leave = _leave(call, _JOIN_REPLAYED) if again else None
    return start(call, call.operands[0], {**call.options, "command": call.rest}, leave)


def start(call: Call, pod: str, options: dict[str, Any], leave: Any = None, begun: Any = None) -> int:
    """Start a member in a pod, and print its name; in the foreground this process becomes its monitor.

    `begun` is called once the member has begun.
    """
    from nsrun.cli.say import out
    from nsrun.lifecycle.join import join

    detach = bool(call.options.get("detach"))
    check_terminal(call, detach)
    trace = trace_of(call)

    cidfile = new_file(call.options["cidfile"]) if "cidfile" in call.options else -1

    def observe(run: Run) -> None:
        warn_of_plan(run)
        if trace:
            trace(run)
        if cidfile >= 0 and run.note:
            os.write(cidfile, run.note["id"].encode())
        if begun and run.note:
            begun()

    try:
        note = join(
            call.state,
            pod,
            options,
            detach=detach,
            status_fd=_status_fd(call.options),
            observe=observe,
            leave=leave,
            last=True,
        )
    except BaseException:
        if cidfile >= 0:
            os.unlink(call.options["cidfile"])
        raise
    out(note["name"])
    return 0


def new_file(path: str) -> int:
    """Make the file of --cidfile, which must not exist.  Raise BadInput."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except OSError as error:
        from nsrun.errors import BadInput

        raise BadInput(f"--cidfile {path!r}: {error.strerror}", hint="it has to be a new file") from None


def warn_of_plan(run: Run) -> None:
    """Report mounts that a symlink of the root leads elsewhere, and capabilities that can't be granted (capabilities(7), the bounding set)."""
    for target, place in run.plan.facts.get("moved", {}).items():
        from nsrun.cli.say import err

        err(f"the target {target} passes a symlink of the root: it is mounted at {place}")
    if refused := run.plan.facts.get("refused"):
        from nsrun.cli.say import err

        err(f"warning: --cap-add: root does not have {', '.join(refused)} here, so the member does not get it")


def execute(call: Call) -> int:
    from nsrun.lifecycle.execute import execute

    check_terminal(call, bool(call.options.get("detach")))
    options = {**call.options, "command": call.rest}
    execute(call.state, call.operands[0], options, observe=trace_of(call), leave=_leave(call, _EXEC_REPLAYED))
    return 0


#: Options whose effect does not depend on anything that has no witness (docs/replay.md).
_EXEC_REPLAYED = {"interactive", "terminal", "env", "workdir", "user"}
_JOIN_REPLAYED = _EXEC_REPLAYED - {"terminal", "env"} | {  # what -e says would outlive the member
    *("rootfs", "image", "entrypoint", "name", "detach", "rm", "restart", "stop_signal"),
    *("volume", "tmpfs", "read_only", "writable", "cap_add", "cap_drop", "ulimit", "oom_score_adj"),
}
_POD_REPLAYED = {
    "network",
    "hostname",
    "add_host",
    "dns",
    "sysctl",
    "shm_size",
    "label",
    "owner",
    *("memory", "cpus", "pids_limit"),
}
#: The variables of the environment that pod create reads.
_POD_VARIABLES = ("NSRUN_CGROUP", "NSRUN_SUBNET", "SUDO_UID", "DOAS_USER", "PKEXEC_UID")


def _leave(call: Call, replayed: set[str], read: tuple[str, ...] = ()) -> Any:
    """Return what leaves the compiled plan of a command, by which the next one with these words needs no Python; None: nothing may.

    `read`: the variables of the environment that it has read.  The value of -e NAME stays the caller's: it is not to be found in a
    file.
    """
    if call.state.uid or call.general or not replayed.issuperset(call.options) or os.environ.get("NSRUN_REPLAY") == "0":
        return None
    if any("=" not in entry for entry in call.options.get("env") or []):
        return None

    def leave(run: Run) -> None:
        from nsrun.run import replay

        terminal = bool(call.options.get("terminal"))
        words = call.words[: len(call.words) - len(call.rest)]
        variables = [*read, *(["TERM"] if terminal else [])]
        asked = replay.Asked(words, call.rest, variables, terminal and bool(call.options.get("interactive")))
        if _from_anywhere(call.options, run) and replay.leave(run, asked) and _is_at_once():
            run.compiled = ""
            raise HandOver

    return leave


def _from_anywhere(options: Mapping[str, Any], run: Run) -> bool:
    """Return whether the paths among the options of a join lead to the same from every directory, and through no links."""
    from nsrun.schema import is_name

    sources = [volume.partition(":")[0] for volume in options.get("volume", [])]
    if not all(source.startswith("/") or is_name(source) for source in sources):
        return False
    facts = run.plan.facts
    return not (facts.get("moved") or facts.get("refused")) and (
        "rootfs" not in options or os.path.realpath(options["rootfs"]) == options["rootfs"]
    )


def check_terminal(call: Call, detach: bool) -> None:
    """Raise UsageError for -it without a terminal."""
    if call.options.get("terminal") and call.options.get("interactive") and not detach and not os.isatty(0):
        raise UsageError("-it: standard input is not a terminal", hint="leave out -t")
