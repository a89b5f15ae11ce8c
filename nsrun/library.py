# SPDX-License-Identifier: Apache-2.0
"""The interface of nsrun for Python programs.  `import nsrun` offers what is below.

    import nsrun

    pod = nsrun.Pod.create("web", publish=["8080:80"])
    db = pod.join(["docker-entrypoint.sh", "mysqld"], rootfs="mariadb", name="mysql", detach=True)
    result = pod.run(["ps", "-ef"], rootfs="busybox")       # waits; result.exit_code, result.stdout
    db.exec(["sh", "-c", "echo hello >/dev/shm/test"])
    pod.stop()

Options have the names of the command line, with `_` for `-`, and are checked by the same table: an option that a
command does not have is a TypeError, a value that it does not accept a UsageError.  Nothing is printed.  Other errors
are `NsrunError`s; see nsrun.errors.  All of it is safe to use from several threads: only one thread joins a namespace,
for the duration of one call.
"""

from __future__ import annotations

import os

from nsrun.cli.commands import arguments, checked
from nsrun.errors import CommandError, NsrunError, UsageError, told
from nsrun.kernel import nsrun_command
from nsrun.lifecycle import need_root, pod_of
from nsrun.lifecycle.create import create_pod
from nsrun.lifecycle.execute import execute
from nsrun.lifecycle.join import join
from nsrun.lifecycle.query import inspect_member, pod_json, pod_note, processes
from nsrun.lifecycle.query import pods as all_pods
from nsrun.lifecycle.remove import remove_member
from nsrun.lifecycle.stop import kill_pod, signal_member, stop_member, stop_pod
from nsrun.lifecycle.wait import wait_health, wait_member
from nsrun.state import State
from nsrun.state.sweep import Sweeper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from nsrun.plan import Plan


#: Options of `nsrun join` that are parameters here, or make no sense outside a command line.
_NOT_OF_JOIN = ("detach", "status_fd", "cidfile")


class Result:
    """The result of a finished command: its exit status (128+N for signal N) and, if asked for, its output."""

    def __init__(self, exit_code: int, stdout: bytes, stderr: bytes) -> None:
        self.exit_code, self.stdout, self.stderr = exit_code, stdout, stderr

    def __repr__(self) -> str:
        return f"Result(exit_code={self.exit_code}, stdout={self.stdout!r}, stderr={self.stderr!r})"

    def check(self) -> Result:
        """Return this result.  Raise NsrunError when the exit status is not 0."""
        if self.exit_code:
            raise NsrunError(f"exit status {self.exit_code}: {self.stderr.decode('utf-8', 'replace').strip()}")
        return self


class Member:
    """One member of a pod, by name."""

    def __init__(self, name: str, state: State) -> None:
        self.name, self._state = name, state

    def __repr__(self) -> str:
        return f"Member({self.name!r})"

    def _note(self) -> Mapping[str, Any]:
        return self._state.member(self.name)

    def inspect(self) -> dict[str, Any]:
        """Return what `nsrun inspect` prints."""
        return inspect_member(self._state, self._note())

    @property
    def status(self) -> str:
        """The status: created, running, restarting, stopping, stopped or lost."""
        return self._state.member_status(self._note())[0]

    @property
    def health(self) -> str:
        """starting, healthy or unhealthy; none: nothing checks it."""
        return str(self.inspect()["health"])

    @property
    def pid(self) -> int:
        """The pid on the host; 0 when it is not running."""
        return int(self.inspect()["pid"])

    def exec(self, command: Sequence[str], *, input: bytes = b"", **options: Any) -> Result:
        """Execute a command in the member, wait for it, and return its output.  Options: env, workdir, user."""
        command, options = _command(command), checked("exec", options, ("detach",))
        if _in_child(self._state, pod_of(self._state, self.name)):
            return _run(self._state, ["exec", "-i", *arguments(options), self.name, "--", *command], input)
        return _collect(
            input, lambda fds: execute(self._state, self.name, {**options, "command": list(command)}, fds=fds).pid
        )

    def wait(self) -> int:
        """Wait until the member has ended; return its exit status."""
        return wait_member(self._state, self.name)

    def wait_health(self, wanted: str = "healthy") -> None:
        """Wait until the member is healthy, or unhealthy.  Raise BadInput when it can't get so any more."""
        if wanted not in ("healthy", "unhealthy"):
            raise UsageError(f"{wanted!r} can't be waited for", hint="healthy or unhealthy")
        wait_health(self._state, self.name, wanted)

    def logs(self, tail: int | None = None, follow: bool = False) -> Iterator[tuple[str, str, str]]:
        """Yield (time, stdout|stderr, text) of what it wrote."""
        from nsrun.lifecycle.logs import logs

        return logs(self._state, self.name, tail, follow)

    def signal(self, number: int) -> None:
        """Send a signal to its first process, by pidfd."""
        signal_member(self._state, self._note(), number)

    def stop(self, seconds: float | None = None) -> bool:
        """Send its stop signal, and after `seconds` (stop_timeout, or 10) SIGKILL to its cgroup; return whether that was needed."""
        return stop_member(self._state, self._note(), seconds)

    def remove(self, force: bool = False) -> None:
        remove_member(self._state, self._note(), force)


class Pod:
    """One pod, by name."""

    def __init__(self, name: str = "pause", *, root: str = "", state: State | None = None) -> None:
        """Refer to a pod that exists.  Raise UnknownError when it is not running."""
        self._state = state or State(root)
        self.name = self._state.pod(name)["name"]

    def __repr__(self) -> str:
        return f"Pod({self.name!r})"

    @classmethod
    def create(cls, name: str = "pause", *, root: str = "", **options: Any) -> Pod:
        """Make a pod.

        Options: publish, network, ip, subnet, hostname, add_host, dns, sysctl, shm_size, label, memory, cpus,
        pids_limit.
        """
        options, state = checked("pod create", options), State(root)
        create_pod(state, {**options, "name": name})
        return cls(name, state=state)

    def inspect(self) -> dict[str, Any]:
        """Return what `nsrun pod inspect` prints."""
        note = pod_note(self._state, self.name)
        return pod_json(self._state, note, self._state.members_of(note))

    @property
    def pid(self) -> int:
        """The pid of pause on the host."""
        return int(self.inspect()["pid"])

    def members(self) -> list[Member]:
        note = pod_note(self._state, self.name)
        return [Member(member["name"], self._state) for member in self._state.members_of(note)]

    def processes(self) -> list[dict[str, Any]]:
        return processes(self._state, self.name)

    def join(self, command: Sequence[str] = (), *, detach: bool = True, **options: Any) -> Member:
        """Start a member without waiting for it.  Options: those of `nsrun join`; an `image` may have its own command.

        Detached, a monitor keeps it and its log, and checks its health (health_cmd).  With `detach=False` this process is its parent: it inherits our
        descriptors 0, 1, 2 (or those in `fds`), there is no log, and `os.waitpid` returns its status.
        """
        fds = None if detach else options.pop("fds", (0, 1, 2))
        command, options = _command(command), checked("join", options, _NOT_OF_JOIN)
        if detach and _in_child(self._state, self._state.pod(self.name)):
            words = ["join", self.name, "-d", *arguments(options), *(["--", *command] if command else [])]
            return Member(_run(self._state, words).check().stdout.decode().strip(), self._state)
        note = join(self._state, self.name, {**options, "command": list(command)}, detach=detach, fds=fds)
        return Member(note["name"], self._state)

    def run(self, command: Sequence[str] = (), *, input: bytes = b"", **options: Any) -> Result:
        """Start a member, wait for it, remove it, and return its output."""
        notes: list[Mapping[str, Any]] = []
        command, options = _command(command), checked("join", options, _NOT_OF_JOIN)
        if _in_child(self._state, self._state.pod(self.name)):
            words = ["join", self.name, "--rm", "-i", *arguments(options), *(["--", *command] if command else [])]
            return _run(self._state, words, input)

        def start(fds: tuple[int, int, int]) -> int:
            notes.append(join(self._state, self.name, {**options, "command": list(command)}, fds=fds))
            return int(notes[0]["process"][0])

        try:
            return _collect(input, start)
        finally:
            for note in notes:
                remove_member(self._state, note, True)

    def stop(self, seconds: float | None = None) -> None:
        """Stop the members first, and pause last."""
        stop_pod(self._state, self.name, seconds)

    def kill(self, number: int = 9) -> None:
        """Send a signal to pause; KILL, TERM and INT end the pod at once."""
        kill_pod(self._state, self.name, number)


class Image:
    """One image of the store, by name, id or digest."""

    def __init__(self, name: str, *, root: str = "", state: State | None = None) -> None:
        """Refer to an image that exists.  Raise UnknownError, which lists the images."""
        from nsrun.image import lookup

        self._state = state or State(root)
        self.name, self.id = name, str(lookup.find(self._state, name)["id"])

    def __repr__(self) -> str:
        return f"Image({self.name!r})"

    @classmethod
    def load(cls, path: str, names: Sequence[str] = (), *, root: str = "", platform: str = "") -> list[Image]:
        """Load the images of a layout directory or an archive.  Raise BadInput, which says what is wrong with one."""
        from nsrun.image import intake

        state = State(root)
        need_root()
        return [cls(i.names[0] if i.names else i.id, state=state) for i in intake.load(state, path, names, platform)]

    @classmethod
    def pull(
        cls, name: str, *, root: str = "", platform: str = "", authfile: str | None = None, tls: bool = True
    ) -> Image:
        """Pull an image from a registry, through skopeo.  Raise NsrunError with the registry's message."""
        from nsrun.image import intake

        state = State(root)
        need_root()
        taken = intake.pull(state, name, platform, authfile=authfile, tls=tls)[0]
        return cls(taken.names[0] if taken.names else taken.id, state=state)

    def inspect(self) -> dict[str, Any]:
        """Return what `nsrun image inspect` prints."""
        from nsrun.image.store import Store

        return Store(self._state).inspect(self.id)

    def unpack(self, directory: str) -> None:
        """Write an OCI bundle: directory/rootfs and directory/config.json.

        Raise BadInput when the directory exists and is not empty.
        """
        from nsrun.image import bundle

        bundle.unpack(self._state, self.id, directory)

    def tag(self, name: str) -> None:
        """Give the image one more name."""
        from nsrun.image.store import Store

        need_root()
        Store(self._state).tag(self.id, name)

    def remove(self) -> int:
        """Remove the image with all of its names; return the bytes freed.

        Raise BadInput when a running member uses it.
        """
        from nsrun.image.store import Store

        need_root()
        return Store(self._state).remove(self.id, True)[1]


def _in_child(state: State, pod: Mapping[str, Any]) -> bool:
    """Return whether the work must be done in a child process, which runs the command line.

    setns(CLONE_NEWUSER) is one-way, and an ordinary user's owned pod has a user namespace.
    """
    return bool(state.uid and pod.get("user"))


def _command(command: Sequence[str]) -> list[str]:
    """Return a command as a list.

    Raise TypeError for a single string, each of whose letters would become an argument.
    """
    if isinstance(command, (str, bytes)) or not all(isinstance(argument, str) for argument in command):
        raise TypeError(f"the command {command!r} is not a list of strings")
    return list(command)


def _run(state: State, arguments: list[str], input: bytes = b"") -> Result:
    """Run the command line in a child process.

    Raise NsrunError or CommandError with its message when nsrun itself failed.
    """
    import subprocess

    done = subprocess.run(nsrun_command(state.root, *arguments), input=input, capture_output=True, check=False)
    if done.returncode in (2, 125, 126, 127) and done.stderr.startswith(b"nsrun: "):
        message, hint = told(done.stderr)
        if done.returncode in (126, 127):
            raise CommandError(message, exit_code=done.returncode, hint=hint)
        raise (UsageError if done.returncode == 2 else NsrunError)(message, hint=hint)
    return Result(done.returncode, done.stdout, done.stderr)


def _collect(input: bytes, start: Any) -> Result:
    """Run `start((stdin, stdout, stderr))` with temporary files, which never block as pipes do, and wait for the pid."""
    import tempfile

    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        stdin.write(input)
        stdin.seek(0)
        pid = start((stdin.fileno(), out.fileno(), err.fileno()))
        _, status = os.waitpid(pid, 0)
        out.seek(0), err.seek(0)
        code = os.waitstatus_to_exitcode(status)
        return Result(code if code >= 0 else 128 - code, out.read(), err.read())


def pods(root: str = "") -> list[Pod]:
    """Return the running pods."""
    state = State(root)
    return [Pod(p["name"], state=state) for p in all_pods(state) if p["status"] == "running"]


def images(root: str = "") -> list[Image]:
    """Return the images of the store that can be read; `nsrun image ls` reports what is wrong with others."""
    from nsrun.image import lookup

    state = State(root)
    return [Image(record["id"], state=state) for record in lookup.records(state, [])]


def member(name: str, root: str = "") -> Member:
    """Return a member by name.  Raise UnknownError, which lists those that exist."""
    state = State(root)
    return Member(state.member(name)["name"], state)


def plan_of(words: Sequence[str], root: str = "") -> Plan:
    """Return the plan of a command line (pod create, join, exec), without carrying it out.

    For example: `for step in nsrun.plan_of([...]): print(step.call())`.
    """
    from nsrun.cli import planning

    return planning.plan_of(State(root), list(words))


def prune(root: str = "") -> list[str]:
    """Sweep what has ended; return descriptions of what was removed."""
    return Sweeper(State(root)).all()
