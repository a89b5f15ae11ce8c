# SPDX-License-Identifier: Apache-2.0
"""Run a plan: the steps of phases 1, 2, 3 and 5 here, those of phase 4 in nsrun-init.

If a step fails, those done before it are undone in reverse and every descriptor is closed; the error says which step it
was, what the kernel returned, and what to do.  If nsrun is killed instead, the kernel undoes it: the descriptors close,
nsrun-init reads end of file and exits, and only a note is left beside a `held` that nobody locks.
"""

from __future__ import annotations

import os
from _struct import calcsize, pack, unpack_from  # struct would be one more module, which only imports this
from errno import ENOENT, ENOMEM, ESRCH, ETIMEDOUT

from nsrun import kernel
from nsrun._protocol import (
    DOOR_MAGIC,
    DOOR_REQUEST,
    GO,
    INIT_FAILED,
    INIT_RECORD,
    INIT_WAITS,
    OP_OF_STEP,
    PAUSE_READY,
    PLAN_HEADER,
    PLAN_MAGIC,
)
from nsrun.errors import KernelError, NsrunError, StepError
from nsrun.plan import INIT, InitStep
from nsrun.plan.process import Launch
from nsrun.schema import is_there
from nsrun.state import life

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from nsrun.plan import Launching, Plan, Step
    from nsrun.state import State
    from nsrun.types import Port

_SIGINT, _SIGTERM, _SIGHUP = 2, 15, 1


_GO = bytes((GO,))


_MONITOR_FDS = {
    "out": "out:read",
    "err": "err:read",
    "tty": "tty:master",
    "cgroup": "cgroup:dir",
    "parent": "cgroup:parent",
    "listen": "attach:fd",
    "dir": "directory:fd",
    "held": "lock:held",
    "data": "lock:data",
    "mnt": "member:mnt",
}


def monitor_arguments(run: Any, fds: dict[str, str]) -> tuple[list[str], list[int]]:
    """Return nsrun-monitor's arguments and the descriptors that it keeps."""
    options = run.monitor_options
    names = {**_MONITOR_FDS, **fds}
    if "in:write" in run.handles:
        names["in"] = "in:write"
    if run.directory and "directory:fd" not in run.handles:
        run.hold("directory:fd", os.open(run.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    if not options.get("own_cgroup", True):
        names.pop("cgroup"), names.pop("parent")
    if checks := options.get("checks"):
        names |= {"probe": "probe:fd"}
        if "connect" not in checks:
            names |= {"init": "init:fd", "filter": "seccomp:fd"}
    argv, keep = ["nsrun-monitor"], []
    for key, name in names.items():
        fd = run.fd(name)
        if fd >= 0:
            argv.append(f"{key}={fd}")
            keep.append(fd)
    if "cgroup:name" in run.values and "parent" in names:
        argv.append(f"name={run.values['cgroup:name']}")
    argv += [f"{key}={value}" for key, value in (checks or {}).items()]
    argv += [
        f"{key}={value}" for key, value in options.items() if key in ("foreground", "stdin", "cap", "delay", "status")
    ]
    if options.get("status", -1) >= 0:
        keep.append(options["status"])
    after = run.after + (["--held", f"{run.fd('lock:held')},{run.fd('lock:data')}"] if run.after else [])
    return argv + (["--", *after] if after else []), keep


def encode(steps: Sequence[InitStep], run: Any) -> bytes:
    """Return the steps as nsrun-init reads them (csrc/protocol.h, struct plan_header)."""
    parts = [pack(PLAN_HEADER, PLAN_MAGIC, len(steps))]
    for step in steps:
        parts.append(pack("=I", OP_OF_STEP[type(step).__name__]))
        for arg in step.args(run):
            if isinstance(arg, int):
                data = pack("=Q", arg & (1 << 64) - 1)
            elif isinstance(arg, str):
                data = os.fsencode(arg) + b"\0"
            else:
                data = b"".join(os.fsencode(item) + b"\0" for item in arg)
            parts.append(pack("=I", len(data)) + data)
    return b"".join(parts)


def encode_request(
    numbers: Sequence[int], stdio: Sequence[int], lists: Sequence[Sequence[int]], strings: Sequence[Sequence[str]]
) -> bytes:
    """Return a launch as nsrun-door reads it (csrc/protocol.h, struct door_request).

    `numbers`: join_fd, join_flags, clone_flags, cgroup, program, monitor, pidfd_slot.  `stdio`: three of the member,
    three of its monitor.  `lists`: the descriptors that are sent, that nsrun-init keeps, that nsrun-monitor keeps, and
    that are locked.  `strings`: the arguments of both, and the environment of the monitor.
    """
    parts = [pack(DOOR_REQUEST, DOOR_MAGIC, *numbers, *stdio)]
    parts += [pack(f"=I{len(some)}i", len(some), *some) for some in lists]
    for some in strings:
        text = b"".join(os.fsencode(item) + b"\0" for item in some)
        parts.append(pack("=I", len(text)) + text)
    return b"".join(parts)


class _Numbers:
    """Stands for the Run where a plan names descriptors by the numbers that another process gives them."""

    def __init__(self, numbers: Mapping[str, int]) -> None:
        self.fd = numbers.__getitem__


class Failed(Exception):
    """Raised when nsrun-init reports that its step `index` failed."""

    def __init__(self, index: int, errno: int, detail: str) -> None:
        self.index, self.errno, self.detail = index, errno, detail


class Run:
    """One run of one plan: the handles and values that its steps leave for each other."""

    def __init__(self, plan: Plan, state: State) -> None:
        self.plan, self.state = plan, state
        self.handles: dict[str, int] = {}
        self.values: dict[str, str | int] = {}
        self.ports: list[Port] = []
        self.files: Mapping[str, Mapping[str, Any]] = {}  # the files beside the note
        self.about: dict[str, Any] = {}  # `about`, beside what the member writes
        self.stdio: tuple[str, str, str] = ("", "", "")
        self.note: Mapping[str, Any] = {}
        self.directory = ""
        self.pid = self.pidfd = self.monitor_pid = -1
        self.said = 0  # by nsrun-init, with its last record
        self.monitor_options: dict[str, Any] = {}
        self.after: list[str] = []
        self.parent = False  # whether this process, which uses the library, is the member's parent
        self.again = False  # whether a member begins once more
        self.lead = -1  # the socket of the process that waits for us, when we follow a member for a door
        self.before_release: Callable[[], None] = lambda: (
            None
        )  # all is done but the exec; if we are killed, nothing is left
        self.before_handover: Callable[[], None] = lambda: None
        self.compiled = ""  # the file of the compiled plan that was left behind
        self.timing: list[tuple[int, float]] = []
        self._channel = -1
        self._patience = 0.0  # seconds to wait for a record of nsrun-init; 0: without limit, since it is ours alone
        self._deadline = 0.0  # the end of all waiting, however many records come; time.monotonic()
        self._mask: set[int] | None = None
        self._asked: set[int] = set()

    # ---- handles ---------------------------------------------------------------------------------------

    def hold(self, name: str, fd: int) -> int:
        self.handles[name] = fd
        return fd

    def fd(self, name: str) -> int:
        fd = self.handles.get(name, -1)
        self._asked.add(fd)
        return fd

    def text(self, template: str) -> str:
        """Replace `{pod:ip}` and the like by the values that earlier steps have found."""
        for key, value in self.values.items():
            template = template.replace("{" + key + "}", str(value))
        return template

    def close(self, *names: str) -> None:
        for name in names or list(self.handles):
            fd = self.handles.pop(name, -1)
            if name.startswith("lock:"):
                life.let_go(fd)
            elif fd >= 0:
                os.close(fd)

    def need_data(self, ident: str) -> None:
        """Make the directory of what a member writes, if we do not hold it yet."""
        if "lock:data" not in self.handles:
            self.hold("lock:data", self.state.make_data(ident, self.about))

    def drop_data(self, ident: str) -> None:
        """Undo need_data: remove the directory with everything in it."""
        if is_there(self.state.upper(ident)):
            self.state.remove_directory(self.state.upper(ident))

    # ---- the loop --------------------------------------------------------------------------------------

    def execute(self) -> None:
        """Run all steps.

        Raise NsrunError after undoing them; lifecycle/diagnose.py explains an error of the exec itself.
        """
        from time import perf_counter

        done: list[Step] = []
        steps = self.plan.steps
        number = 0
        kernel.reap()
        try:
            for number, step in enumerate(steps, 1):
                if step.phase == INIT:
                    continue
                started = perf_counter()
                done.append(step)  # before it runs, so that a step which fails half-way undoes its half
                step.do(self)
                self.timing.append((number, perf_counter() - started))
        except BaseException as error:
            self._undo(done)
            if isinstance(error, Failed):
                inits = [n for n, s in enumerate(steps, 1) if s.phase == INIT]
                index = inits[min(error.index, len(inits) - 1)]  # the pod's owner may have written the record
                step = steps[index - 1]
                failure = StepError(
                    index,
                    len(steps),
                    step.brief(),
                    error.errno,
                    about=error.detail,
                    hint=step.hints.get(error.errno, ""),
                )
                failure.errno, failure.step = error.errno, step.brief()
                failure.init_step, failure.detail = step, error.detail
                raise failure from None
            if isinstance(error, NsrunError):
                error.step = error.step or steps[number - 1].brief()
                raise
            if isinstance(error, OSError):
                step = steps[number - 1]
                hint = step.hints.get(error.errno or 0, "")
                call = error.call if isinstance(error, KernelError) else step.brief()
                about = str(error.filename) if error.filename else (step.brief() if call != step.brief() else "")
                raise StepError(number, len(steps), call, error.errno or 0, about=about, hint=hint) from None
            raise
        if self.parent:
            self._keep()
        self.close()

    def _keep(self) -> None:
        """Keep a member, until it is removed, as its parent without a monitor."""
        for name in ("lock:held", "lock:data"):
            fd = self.handles.pop(name, -1)
            if fd >= 0:
                life.own(fd, life.KEEPER)
        life.children[self.note["id"]] = self.handles.pop("member:pidfd")

    def _undo(self, done: list[Step]) -> None:
        import _signal

        blocked = _signal.pthread_sigmask(_signal.SIG_BLOCK, {_SIGINT, _SIGTERM, _SIGHUP})
        try:
            for step in reversed(done):
                if isinstance(step, Launch):
                    step.undo(self)
            # Close our descriptors first, so that mounts, ports and tables are released.  A restart has its locks from
            # the member's former monitor, which has to write down how it ended before anybody may consider the member
            # dead.
            lent = ("lock:held", "lock:data") if self.again else ()
            for name in [name for name in self.handles if name not in lent]:
                self.close(name)
            for step in reversed(done):
                if not isinstance(step, Launch):
                    try:
                        step.undo(self)
                    except (OSError, NsrunError):
                        continue  # the next command sweeps what can't be undone now
            if self.compiled and self.directory:
                try:  # the front would leave rubbish each time that it fails (front.c, take_back)
                    os.unlink(self.compiled)
                except OSError:
                    pass  # it is gone
        finally:
            _signal.pthread_sigmask(_signal.SIG_SETMASK, blocked)

    def write_plan(self, handle: str, name: str, steps: Sequence[InitStep], numbers: Mapping[str, int]) -> None:
        """Leave a plan of nsrun-init for another process, which has the handles as these descriptors."""
        self.hold(handle, kernel.sealed_memfd(name, encode(steps, _Numbers(numbers))))

    # ---- phase 3 and 4 ---------------------------------------------------------------------------------

    def launch(self, step: Launching) -> None:
        """Encode phase 4, start nsrun-init inside, and wait until everything but the exec is done."""
        steps = self.plan.init_steps()
        if step.door or step.one_way:
            self._be_patient(20, 60)
        ours, theirs = kernel.channel()
        self._channel = self.hold("channel:nsrun", ours)
        channel = self.hold("channel:init", theirs)
        self._asked.clear()
        document = encode(steps, self)
        inherited = self._asked - {-1}  # nsrun-init inherits only the descriptors that phase 4 names
        program = self.hold("plan:fd", kernel.sealed_memfd("plan", document))
        if self.stdio[0]:
            stdio = [self.fd(name) for name in self.stdio]
        else:
            stdio = [self.hold("null:fd", os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))] * 3
        if step.door:
            self._through(step, document=program, channel=channel, stdio=stdio, inherited=inherited)
            return
        extra: dict[str, Any] = {}
        if step.detach:
            go_read, go_write = kernel.channel()
            self.hold("go:read", go_read), self.hold("go:write", go_write)
            slot = self.hold("pidfd:slot", os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
            argv, keep = monitor_arguments(self, {"pidfd": "pidfd:slot", "go": "go:read"})
            extra = {
                "monitor": self.fd("monitor:fd"),
                "monitor_argv": argv,
                "monitor_keep": keep,
                "pidfd_slot": slot,
            }
        self.pid, self.pidfd, self.monitor_pid = kernel.launch(
            self.fd("init:fd"),
            ["nsrun-init", str(program), str(channel)],
            stdio=stdio,
            keep=sorted(inherited | {program, channel}),
            join_fd=self.fd(step.join) if step.join else -1,
            join_flags=step.join_flags,
            clone_flags=step.clone_flags,
            cgroup=self.fd("cgroup:dir"),
            user_fd=self.fd(step.user) if step.user else -1,
            locks=[self.fd(name) for name in step.locks if name in self.handles],
            lock_byte=life.KEEPER,
            **extra,
        )
        if self.pidfd >= 0:
            self.hold("member:pidfd", self.pidfd)
        if step.detach:
            kernel.started.add(self.monitor_pid)
        elif self.plan.facts.get("ready"):
            kernel.started.add(self.pid)  # pause; the caller waits for a member without a monitor
        self._await_ready()

    def _await_ready(self) -> None:
        # We must not keep the child's descriptors open: end of file has to mean that it is gone.
        self.close(
            "channel:init", "plan:fd", "in:read", "out:write", "err:write", "tty:slave", "go:read", "lead:theirs"
        )
        kind = self._hear()
        if kind != INIT_WAITS:
            if self._out_of_memory():
                raise NsrunError(
                    "the kernel killed nsrun-init for memory: the limit is too low even to start",
                    hint="raise --memory (of the member or of its pod)",
                    errno=ENOMEM,
                )
            raise KernelError(ESRCH, "nsrun-init ended before it was ready")
        if (
            self.monitor_options
            and self.monitor_options.get("own_cgroup", True)
            and self.handles.get("cgroup:dir", -1) < 0
        ):
            # the monitor finds what a member without a cgroup leaves behind by its mount namespace (csrc/monitor.c)
            try:
                self.hold("member:mnt", os.open(f"/proc/{self.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC))
            except OSError:
                pass  # we may not look into it

    def _out_of_memory(self) -> bool:
        """Return whether a memory limit was met, its own or the pod's.

        An exec that can't be charged ends without an OOM kill.
        """
        for name in ("cgroup:dir", "cgroup:parent"):
            try:
                with open(os.open("memory.events", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.fd(name))) as file:
                    events = dict(line.split() for line in file)
            except OSError:
                continue  # there is no cgroup, or no memory controller
            if events.get("max") != "0" or events.get("oom_kill") != "0":
                return True
        return False

    def _through(self, step: Launching, document: int, channel: int, stdio: list[int], inherited: set[int]) -> None:
        """Do the same through the pod's door (csrc/door.c), which forks the monitor, which forks nsrun-init."""
        go_read, go_write = kernel.channel()
        self.hold("go:read", go_read), self.hold("go:write", go_write)
        slot = self.hold("pidfd:slot", os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
        monitor_stdio = [-1, -1, -1]
        extra = {"pidfd": "pidfd:slot", "go": "go:read"}
        if not step.detach:
            ours, theirs = kernel.channel()
            self.hold("lead:ours", ours), self.hold("lead:theirs", theirs)
            extra["lead"] = "lead:theirs"
            monitor_stdio = [0, 1, 2]
            if self.after:
                self.after += ["--lead", str(theirs)]
        monitor_argv, monitor_keep = monitor_arguments(self, extra)
        monitor_keep.remove(slot)
        keep = sorted(inherited | {document, channel})
        join, cgroup = self.fd(step.join), self.fd("cgroup:dir")
        init, monitor = self.fd("init:fd"), self.fd("monitor:fd")
        sent = sorted({*keep, *monitor_keep, *stdio, *monitor_stdio, join, cgroup, init, monitor} - {-1})
        locks = [self.fd(name) for name in step.locks if name in self.handles]
        request = encode_request(
            (join, step.join_flags, step.clone_flags, cgroup, init, monitor, slot),
            (*stdio, *monitor_stdio),
            (sent, keep, monitor_keep, locks),
            (["nsrun-init", str(document), str(channel)], monitor_argv, [f"{k}={v}" for k, v in os.environ.items()]),
        )
        memory = self.hold("request:fd", kernel.sealed_memfd("request", request))
        self.pid, self.pidfd, self.monitor_pid, pidfd = kernel.ask_door(self.fd(step.door), [memory, *sent])
        self.close("request:fd")
        self.hold("member:pidfd", self.pidfd), self.hold("monitor:pidfd", pidfd)
        self._await_ready()

    def start_door(
        self,
        what: str,
        arguments: list[str],
        keep: list[int],
        path: str,
        lock: tuple[int, int] = (-1, 0),
        program: str = "door",
    ) -> None:
        """Start nsrun-door, or another `program`, with these descriptors in a cgroup; `what` distinguishes its handles.

        `lock` is a descriptor, and the byte of it that the program locks as long as it lives.
        """
        from nsrun.host import cgroup

        place = cgroup.make(path, {})
        if place >= 0:
            self.hold(f"{what}:cgroup", place)
        null = self.hold(f"{what}:null", os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
        pid, pidfd, _ = kernel.launch(
            self.fd("forwarder:program" if program == "forward" else "door:program"),
            [f"nsrun-{program}", *arguments],
            stdio=[null] * 3,
            keep=keep,
            cgroup=place,
            locks=[lock[0]] if lock[0] >= 0 else [],
            lock_byte=lock[1],
        )
        self.hold(f"{what}:pidfd", pidfd)
        kernel.started.add(pid)

    def _be_patient(self, seconds: float, altogether: float) -> None:
        from time import monotonic

        self._patience, self._deadline = seconds, monotonic() + altogether

    def _hear(self) -> int:
        """Return the kind of nsrun-init's next record, 0 at end of file.  Raise Failed for INIT_FAILED.

        In an owned pod, the owner may have the other end, and send nothing: so the end of nsrun-init counts as the end,
        and the wait is bounded (KernelError ETIMEDOUT).
        """
        if self._patience:
            from select import poll
            from time import monotonic

            poller = poll()
            for fd in (self._channel, self.fd("member:pidfd")):
                if fd >= 0:
                    poller.register(fd, 1)
            seconds = min(self._patience, self._deadline - monotonic())
            found = dict(poller.poll(seconds * 1000)) if seconds > 0 else {}
            if not found:
                raise KernelError(ETIMEDOUT, f"recv(channel): nsrun-init was not done within {self._patience:.0f} s")
            if self._channel not in found:
                return 0
        data = os.read(self._channel, 1024)
        if len(data) >= calcsize(INIT_RECORD):
            kind, index, errno = unpack_from(INIT_RECORD, data)
            self.said = int(errno)
            if kind == INIT_FAILED:
                raise Failed(index, errno, os.fsdecode(data[calcsize(INIT_RECORD) :]))
            return int(kind) or -1
        return data[0] if len(data) == 1 else -len(data)

    def release(self) -> None:
        """Let the program start.  From here on every signal that can be blocked is for the member, not for us."""
        import _signal

        self.before_release()
        self._mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())
        os.write(self._channel, _GO)
        ready = False
        if self._patience:
            self._be_patient(8, 8)
        try:
            while kind := self._hear():
                ready = ready or kind == PAUSE_READY
        except KernelError as error:
            if error.errno != ETIMEDOUT or self.plan.facts.get("ready"):
                raise
            # another process keeps the channel open; an exec takes no time, so it is done
        if self.plan.facts.get("ready") and not ready:
            raise KernelError(ENOENT, "pause ended before it was ready")

    def restore_signals(self) -> None:
        """Undo the blocking of release()."""
        import _signal

        if self._mask is not None:
            _signal.pthread_sigmask(_signal.SIG_SETMASK, self._mask)

    def kill_launched(self) -> None:
        """Undo a launch: kill whatever was started, and reap our children."""
        self.close("channel:nsrun", "go:write")
        if self.pid < 0:
            return
        if self.pidfd >= 0:
            try:
                kernel.pidfd_send_signal(self.pidfd, 9)
            except KernelError:
                pass  # it is dead already
        if "monitor:pidfd" in self.handles:  # they are not our children
            from select import poll

            for name in ("member:pidfd", "monitor:pidfd"):
                poller = poll()
                poller.register(self.fd(name), 1)
                poller.poll(2000)
            return
        for pid in (self.pid if self.pidfd >= 0 else -1, self.monitor_pid):
            if pid > 0:
                kernel.reap_within(pid, 5)  # the monitor ends by itself when its child has

    # ---- phase 5 ---------------------------------------------------------------------------------------

    def monitors_pidfd(self) -> int:
        """Return the number of the descriptor under which the member's keeper has a pidfd of it."""
        return self.fd("pidfd:slot") if "pidfd:slot" in self.handles else self.fd("member:pidfd")

    def _go(self, mounts: int) -> None:
        """Tell a running monitor that its member's note is written.

        `mounts` is a descriptor of the member's mount namespace, or negative.
        """
        if mounts < 0:
            os.write(self.fd("go:write"), _GO)
            return
        import _socket

        channel = _socket.socket(fileno=os.dup(self.fd("go:write")))
        try:
            channel.sendmsg([_GO], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, pack("=i", mounts))])
        finally:
            channel.close()

    def hand_over(self, detach: bool) -> None:
        door = "monitor:pidfd" in self.handles
        if detach or door:
            # its keeper may remove the member at once (--rm), which it can't while anybody else holds it
            self.close("lock:held", "lock:data")
            self._go(self.handles.get("member:mnt", -1))
        if detach:
            return
        self.before_handover()
        if door:
            arguments = [f"follow={self.fd('lead:ours')}", f"pidfd={self.fd('monitor:pidfd')}"]
            arguments += [f"lead={self.lead}"] if self.lead >= 0 else []
            for name in ("lead:ours", "monitor:pidfd"):
                os.set_inheritable(self.fd(name), True)
            kernel.replace_process(self.fd("monitor:fd"), ["nsrun-monitor", *arguments])
        argv, keep = monitor_arguments(self, {"pidfd": "member:pidfd"})
        for fd in keep:
            os.set_inheritable(fd, True)
        for name in ("lock:held", "lock:data"):  # a lock survives the exec
            if name in self.handles:
                life.own(self.fd(name), life.KEEPER)
        kernel.replace_process(self.fd("monitor:fd"), argv)
