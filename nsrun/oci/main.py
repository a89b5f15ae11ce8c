# SPDX-License-Identifier: Apache-2.0
"""The command nsrun-oci: read the command line, do what it says, and end with the status that engines expect."""

from __future__ import annotations

import os

from nsrun.errors import BadInput, NsrunError, UnknownError, UsageError
from nsrun.oci import say
from nsrun.oci.commands import COMMANDS, Words, container_id, read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

#: The status of an error: 1, and of `exec` what no command of a container's returns.
FAILED, EXEC_FAILED = 1, 255


def main(arguments: Sequence[str]) -> int:
    """Run one command; return its exit status."""
    log = say.Log()
    words = Words()
    try:
        words = read(arguments)
        form = words.value("log-format", "text")
        log = say.Log(words.value("log"), form)
        if form not in ("text", "json"):
            raise UsageError(f"--log-format: {form!r} is neither text nor json")
        return command(words, log)
    except NsrunError as error:
        log.error(error.message + (f" ({error.hint})" if error.hint else ""))
    except BrokenPipeError:
        pass  # who asked does not listen
    except OSError as error:
        log.error(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except KeyboardInterrupt:
        log.error("interrupted")
    except Exception as error:
        if words.flag("debug"):
            raise
        log.error(f"this is a bug of nsrun-oci: {error!r}")
    return EXEC_FAILED if words.command == "exec" or (not words.command and "exec" in arguments) else FAILED


def command(words: Words, log: say.Log) -> int:
    """Do what a command line says; return the exit status.  Raise NsrunError or OSError."""
    if words.flag("version"):
        from nsrun.oci.describe import version

        say.out(version())
        return 0
    if words.flag("help") or not words.command:
        from nsrun.oci.describe import usage

        say.out(usage(words.command))
        return 0
    if words.command == "features":
        from nsrun.oci.describe import features

        say.out(say.document(features()))
        return 0
    if words.command == "spec":
        from nsrun.oci.describe import write_spec

        write_spec(words.value("bundle", "."), words.flag("rootless"))
        return 0
    if words.command == "install":
        return _install(words)
    if words.value("cgroup-manager", "cgroupfs") not in ("cgroupfs", "systemd", "disabled"):
        raise UsageError(
            f"--cgroup-manager: {words.value('cgroup-manager')!r} is none of cgroupfs, systemd and disabled"
        )
    if words.flag("systemd-cgroup") or words.value("cgroup-manager") == "systemd":
        _check_systemd(words)
    from nsrun.oci import state

    root = os.path.abspath(words.value("root")) if words.value("root") else state.default_root()
    return _on_containers(words, root, log)


def _install(words: Words) -> int:
    from nsrun.oci import install

    if len(words.arguments) != 1:
        raise UsageError(f"install: which engine? one of {', '.join(install.ENGINES)}")
    etc = os.path.abspath(words.value("etc", "/etc"))
    for line in install.install(words.arguments[0], etc, install.program(), words.flag("remove")):
        say.out(f"{line}\n")
    return 0


def _check_systemd(words: Words) -> None:
    """Raise UsageError when a container can't be a scope of systemd.  Other commands find it by what is written down."""
    if words.command not in ("create", "run"):
        return
    from nsrun.oci import systemd

    systemd.check_here()
    if os.geteuid():
        raise UsageError("--systemd-cgroup: nsrun-oci asks the systemd of the machine alone, which takes root")


def _on_containers(words: Words, root: str, log: say.Log) -> int:
    from nsrun.oci import state

    name = words.command
    if name == "list":
        return _list(words, root)
    if name == "state":
        say.out(say.document(state.look(root, container_id(words)).document()))
        return 0
    from nsrun.oci import lifecycle

    if name in ("create", "run", "start"):
        _obey_signals()
    if name == "create":
        lifecycle.create(words, root, log)
    elif name == "run":
        return lifecycle.run(words, root, log)
    elif name == "exec":
        return lifecycle.execute(words, root, log)
    elif name == "kill":
        lifecycle.kill(words, root)
    elif name == "delete":
        lifecycle.delete(container_id(words), root, words.flag("force"), log)
    elif name in ("pause", "resume"):
        lifecycle.pause(container_id(words), root, name == "pause")
    elif name == "update":
        lifecycle.update(words, root)
    elif name == "start":
        ident = container_id(words)
        try:
            container = state.find(root, ident)
        except UnknownError:
            if os.environ.get("NSRUN_OCI_TOLD"):  # csrc/oci.c has let it go
                raise BadInput(f"container {ident!r} was killed and deleted before its program began") from None
            raise
        with container:
            lifecycle.start(container, log)
    elif name == "ps":
        return _ps(words, root)
    elif name == "events":
        return _events(words, root)
    else:
        raise AssertionError(f"{name} is in COMMANDS ({len(COMMANDS)}) and nobody does it")
    return 0


def _obey_signals() -> None:
    """Let every signal that asks us to end interrupt the command as SIGINT does, so that it undoes what it has begun."""
    import _signal

    from nsrun.oci.foreground import INTERRUPTS

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    for number in INTERRUPTS:
        if _signal.getsignal(number) == _signal.SIG_DFL:
            _signal.signal(number, interrupt)


def _list(words: Words, root: str) -> int:
    from nsrun.oci import state

    form = words.value("format", "table")
    if form not in ("table", "json"):
        raise UsageError(f"--format: {form!r} is neither table nor json")
    found = []
    for ident in state.ids(root):
        if words.flag("quiet"):
            say.out(f"{ident}\n")
            continue
        try:
            found.append(state.look(root, ident).document())
        except (NsrunError, FileNotFoundError):
            continue  # it has just gone, or is damaged: delete --force
    if words.flag("quiet"):
        return 0
    if form == "json":
        from nsrun.state import codec

        say.out(codec.dumps(found) + "\n")
        return 0
    rows = [("ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER")]
    rows += [tuple(str(one[key]) for key in ("id", "pid", "status", "bundle", "created", "owner")) for one in found]  # type: ignore[misc]
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    for row in rows:
        say.out("   ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() + "\n")
    return 0


def _ps(words: Words, root: str) -> int:
    from nsrun.oci import lifecycle, state

    form = words.value("format", "table")
    if form not in ("table", "json"):
        raise UsageError(f"--format: {form!r} is neither table nor json")
    with state.find(root, container_id(words, 1 << 10)) as container:
        pids = lifecycle.living(container)
    if form == "json":
        from nsrun.state import codec

        say.out(codec.dumps(pids) + "\n")
        return 0
    from nsrun.errors import printable

    say.out("PID     CMD\n")
    for pid in pids:
        try:
            with open(f"/proc/{pid}/cmdline", errors="surrogateescape", newline="\n") as file:
                text = file.read(4096).rstrip("\0").replace("\0", " ")
        except OSError:
            continue
        say.out(f"{pid:<7} {printable(text)}\n")
    return 0


def _events(words: Words, root: str) -> int:
    from time import sleep

    from nsrun.oci import lifecycle, state
    from nsrun.schema import is_number
    from nsrun.state import codec

    ident = container_id(words)
    text = words.value("interval", "5s")
    seconds = text.removesuffix("s")
    if not is_number(seconds.replace(".", "", 1)) or not float(seconds):
        raise UsageError(f"--interval: {text!r} is no number of seconds")
    seen = False
    while True:
        try:
            container = state.look(root, ident)
            status, _ = container.status()
        except (UnknownError, state.Damaged):
            if seen and not os.path.lexists(f"{root}/{ident}/state"):
                return 0  # it was deleted meanwhile
            raise
        seen = True
        if status == "stopped":
            if words.flag("stats"):
                raise NsrunError(f"container {ident!r} is stopped")
            return 0
        data = lifecycle.statistics(container.note()["cgroups"])
        say.out(codec.dumps({"type": "stats", "id": ident, "data": data}) + "\n")
        if words.flag("stats"):
            return 0
        sleep(float(seconds))
