# SPDX-License-Identifier: Apache-2.0
"""What each command does: ask the machine, build the plan, run it, and say what is."""

from __future__ import annotations

import os
from errno import EACCES, ENOENT, ENOEXEC, ENOTDIR, ENXIO, EPERM, ESRCH

from nsrun import kernel
from nsrun._protocol import GO, INIT_FAILED, INIT_RECORD
from nsrun.errors import BadInput, NsrunError, StepError, UnknownError, UsageError, errno_text
from nsrun.linux import MAX_ID
from nsrun.oci import cgroups, hooks, state
from nsrun.oci.commands import Words, check_id, container_id
from nsrun.schema import is_number, read_document

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nsrun.oci.plan import Facts
    from nsrun.oci.run import ContainerRun
    from nsrun.oci.say import Log
    from nsrun.oci.state import Container

    Config = dict[str, Any]

_CAP_MKNOD = 27
_MOST = 64 << 20  # bytes of a document


# ---- create, run, start -------------------------------------------------------------------------------------------


def _absolute(path: str) -> str:
    """Return a path without links and without `..`, as engines compare them."""
    return os.path.realpath(path)


def _bundle(words: Words) -> tuple[str, bytes, Config]:
    """Return the directory of the bundle, its config.json, and what that says."""
    from nsrun.oci import config

    given = words.value("bundle", ".")
    if not given:
        raise UsageError("--bundle is empty")
    bundle = _absolute(given)
    path = words.value("config") or f"{bundle}/config.json"
    data = _read(path)
    return bundle, data, config.load(_parsed(data, path), path)


def _document(path: str) -> Any:
    """Return the JSON document in a file ("-": standard input).  Raise BadInput."""
    return _parsed(_read(path), path)


def _read(path: str) -> bytes:
    try:
        if path == "-":
            with open(0, "rb", closefd=False) as file:
                return file.read(_MOST)
        return read_document(path, _MOST)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None


def _parsed(data: bytes, path: str) -> Any:
    from nsrun.state import codec

    try:
        return codec.loads(data.decode())
    except UnicodeDecodeError:
        raise BadInput(f"{path} is not UTF-8") from None
    except ValueError:
        raise BadInput(f"{path} is not JSON") from None


def _check_console(process: Config, console: str, detach: bool) -> None:
    terminal = bool(process.get("terminal"))
    if terminal and detach and not console:
        raise BadInput("process.terminal: a terminal needs --console-socket, because nobody of ours stays to hold it")
    if console and not (terminal and detach):
        raise BadInput("--console-socket: there is no terminal to send (process.terminal, and no foreground)")


def _preserve(words: Words, environment: list[str]) -> int:
    """Return how many descriptors from 3 on are the program's.  Raise BadInput when one of them is not open."""
    given = words.value("preserve-fds", "0")
    if not is_number(given) or int(given) > 1 << 16:
        raise UsageError(f"--preserve-fds: {given!r} is no number of descriptors")
    count = int(given)
    listen = os.environ.get("LISTEN_FDS", "")
    if is_number(listen) and 0 < int(listen) < 1 << 16:  # sd_listen_fds(3): those of a socket unit
        count += int(listen)
        environment += [f"LISTEN_FDS={listen}", "LISTEN_PID=1"]
    for fd in range(3, 3 + count):
        try:
            os.fstat(fd)
        except OSError:
            raise BadInput(f"--preserve-fds: descriptor {fd} is not open") from None
    return count


def _home(root: int, environment: list[str], uid: int) -> list[str]:
    """Return the environment with a HOME: that of the user in the container's own /etc/passwd."""
    if any(word.startswith("HOME=") for word in environment):
        return environment
    try:
        return [*environment, state.home_of(root, uid)]
    except (NsrunError, OSError):
        return [*environment, "HOME=/"]


def _host_maps(path: str) -> dict[str, list[list[int]]]:
    """Return the maps of a user namespace, as we see them; none for ours, and without a path.

    The kernel shows them only of a process: of that in /proc/PID/ns/user, or of any that is in the namespace.  Raise BadInput
    when there is none, since to take the ids for those of the host would give files to others.
    """
    if not path:
        return {}
    wanted = os.stat(path)
    if _is_in("self", wanted):
        return {}
    parts = path.split("/")
    named = parts[2:3] if parts[:2] == ["", "proc"] and parts[3:] == ["ns", "user"] else []
    for pid in [*named, *filter(is_number, os.listdir("/proc"))]:
        try:
            if not _is_in(pid, wanted):
                continue
            found: dict[str, list[list[int]]] = {}
            for kind in ("uid", "gid"):
                with open(f"/proc/{pid}/{kind}_map", errors="surrogateescape") as file:
                    found[kind] = [[int(n) for n in line.split()] for line in file]
            if _is_in(pid, wanted):
                return found
        except OSError:
            continue  # it has just ended, or is not ours to look at
    raise BadInput(f"linux.namespaces: user: no process is in {path}, so its ids can't be known")


def _is_in(pid: str, wanted: os.stat_result) -> bool:
    """Return whether a process is in that user namespace."""
    there = os.stat(f"/proc/{pid}/ns/user")
    return (there.st_dev, there.st_ino) == (wanted.st_dev, wanted.st_ino)


def _facts(words: Words, root: str, ident: str, bundle: str, document: Config, detach: bool) -> Facts:
    from nsrun.oci import config, resources
    from nsrun.oci.plan import Facts
    from nsrun.oci.say import now
    from nsrun.oci.steps import only_self

    process, linux = document["process"], document.get("linux") or {}
    rootfs = document["root"]["path"]
    rootfs = _absolute(rootfs if rootfs.startswith("/") else f"{bundle}/{rootfs}")
    if not os.path.isdir(rootfs):
        raise BadInput(
            f"root.path: {rootfs}: no such directory"
            if not os.path.exists(rootfs)
            else f"root.path: {rootfs} is not a directory"
        )
    if rootfs == "/":
        raise BadInput("root.path is the host's own root")
    machine = cgroups.Machine()
    if words.value("cgroup-manager") == "disabled":
        machine.hierarchies = []  # the container stays in our cgroups; a limit finds no controller
    asked = linux.get("resources") or {}
    settings = resources.settings(asked, machine.unified)
    scope = None
    if words.flag("systemd-cgroup") or words.value("cgroup-manager") == "systemd":
        from nsrun.oci.systemd import limits, scope_of

        scope = scope_of(linux.get("cgroupsPath") or "", ident)
        limits(asked, machine.unified)  # what is no number is said before anything is made
    paths = machine.paths(f"/{scope.path()}" if scope else linux.get("cgroupsPath") or "", ident)
    kinds = {entry["type"]: entry.get("path") or "" for entry in linux.get("namespaces") or []}
    environment = list(process.get("env") or [])
    preserve = _preserve(words, environment)
    with kernel.Fd(os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        process["env"] = _home(fd, environment, (process.get("user") or {}).get("uid") or 0)
    nested = kernel.in_userns()
    note = {
        "id": ident,
        "bundle": bundle,
        "rootfs": rootfs,
        "created": now(),
        "ociVersion": document["ociVersion"],
        "annotations": document.get("annotations") or {},
        "owner": _user_name(os.geteuid()),
        "boot": state.boot_id(),
        "view": kernel.our_view(),
        "cgroups": {},  # none is ours yet: MakeCgroups writes them down
        "uid": os.geteuid(),
    }
    console = words.value("console-socket")
    maps = config.maps_of(linux)
    alone = bool(os.geteuid()) and "user" in kinds and not kinds["user"] and only_self(maps)
    return Facts(
        root=root,
        ident=ident,
        note=note,
        rootfs=rootfs,
        bundle=bundle,
        cgroups=paths,
        settings=settings,
        unified=machine.unified,
        scope=scope,
        properties=asked,
        devices=resources.DeviceRules(asked["devices"]).program() if machine.unified and asked.get("devices") else b"",
        hierarchies=[(one.key, one.mount, one.mount + machine.own(one).rstrip("/")) for one in machine.hierarchies],
        may_lack=not settings and (bool(os.geteuid()) or nested),
        nodes=not nested and "user" not in kinds and bool(kernel.capability_sets()["CapEff"] >> _CAP_MKNOD & 1),
        rootless=bool(os.geteuid()),
        selinux=os.path.isdir("/sys/fs/selinux") and os.path.exists("/sys/fs/selinux/enforce"),
        keep_groups=alone or ("user" not in kinds and nested and _denies_groups()),
        console=os.path.abspath(console) if console else "",
        pid_file=os.path.abspath(words.value("pid-file")) if words.value("pid-file") else "",
        preserve=preserve,
        pivot=not words.flag("no-pivot"),
        keep_keys=words.flag("no-new-keyring"),
        foreground=not detach,
        host_maps=_host_maps(kinds.get("user") or ""),
    )


def _denies_groups() -> bool:
    return cgroups.read("/proc/self/setgroups").strip() == "deny"


def _user_name(uid: int) -> str:
    if not uid:
        return "root"
    try:
        import pwd

        return pwd.getpwuid(uid).pw_name
    except (ImportError, KeyError):
        return str(uid)


def _explain(error: StepError) -> NsrunError:
    """Return an error with the words that engines look for, when the program can't be executed."""
    from nsrun.oci.steps import ExecuteContainer

    if not isinstance(error.init_step, ExecuteContainer):
        return error
    return _no_program(error.detail or error.init_step.argv[0], error.errno)


def _no_program(name: str, errno: int) -> NsrunError:
    if errno in (ENOENT, ENOTDIR):
        missing = ": no such file or directory" if "/" in name else ""
        return BadInput(f'exec: "{name}"{missing}: executable file not found in $PATH', errno=errno)
    if errno in (EACCES, EPERM):
        return BadInput(f'exec: "{name}": permission denied', errno=errno)
    if errno == ENOEXEC:
        return BadInput(f'exec: "{name}": exec format error', errno=errno)
    return BadInput(f'exec: "{name}": {errno_text(errno)}', errno=errno)


def create(words: Words, root: str, log: Log, detach: bool = True) -> ContainerRun:
    """Make a container, whose first process waits for `start`."""
    from nsrun.oci.plan import create_plan
    from nsrun.oci.run import ContainerRun

    ident = container_id(words)
    bundle, data, document = _bundle(words)
    _check_console(document["process"], words.value("console-socket"), detach)
    facts = _facts(words, root, ident, bundle, document, detach)
    run = ContainerRun(create_plan(document, facts))
    run.call_hook = lambda kind, hook: hooks.call(
        kind, hook, hooks.state_of(facts.note, run.pid, "creating"), run.pid, run.cgroups
    )
    master: list[int] = []

    def before_release() -> None:
        if "tty:master" in run.handles:
            master.append(os.dup(run.fd("tty:master")))
        if detach and os.environ.get("NSRUN_REPLAY") != "0":
            _leave_plans(run, data, document, facts, set(words.options))

    run.before_release = before_release
    run.patience = 0.1 if detach else 5
    try:
        run.execute()
    except BaseException as error:
        _poststop(run, document, log)
        if isinstance(error, StepError):
            raise _explain(error) from None
        raise
    finally:
        if detach:  # otherwise a signal waits until it can be passed on
            run.restore_signals()
    run.values["master"] = master[0] if master else -1
    return run


def _leave_plans(run: ContainerRun, data: bytes, document: Config, facts: Facts, options: set[str]) -> None:
    """Leave compiled plans for what follows, and for the next container like this one."""
    try:
        from nsrun.oci import anew, leave
    except (ImportError, OSError):
        return  # there are no descriptors left, say
    leave.leave(run, document)
    anew.leave(run, data, document, facts, options)


def _poststop(run: ContainerRun, document: Config, log: Log) -> None:
    """Call the hooks that clean up, after a create that failed."""
    if run.container and run.pid > 0:
        _call_all("poststop", document, run.container, 0, "stopped", log)


def _call_all(kind: str, document: Config, container: Container, pid: int, status: str, log: Log) -> None:
    """Call hooks of which a failure is only logged: the specification wants the container to go on."""
    for hook in (document.get("hooks") or {}).get(kind) or []:
        try:
            hooks.call(kind, hook, hooks.state_of(container.note(), pid, status), pid, container.note()["cgroups"])
        except NsrunError as error:
            log.warn(error.message)


def start(container: Container, log: Log) -> None:
    """Let the first process of a container become its program."""
    if given := os.environ.pop("NSRUN_OCI_TOLD", ""):
        from nsrun.oci.leave import is_told

        if (fd := is_told(container, given)) >= 0:  # csrc/oci.c has let it go
            _hear(container, fd)
            _is_started(container)
            return
    status, pid = container.status()
    if status != "created":
        raise BadInput(f"container {container.id!r} can't be started: it is {status}")
    document = container.config()
    some = (document.get("hooks") or {}).get("startContainer") or []
    for hook in some:
        try:
            found = hooks.state_of(container.note(), pid, "created")
            hooks.call("startContainer", hook, found, pid, container.note()["cgroups"], document, container.root)
        except BaseException:
            _kill_first(container)
            raise
    _release(container)
    _is_started(container)
    if (document.get("hooks") or {}).get("poststart"):
        pid = container.pid()
        container.close()  # the program runs, and others may work on it while the hooks do what they do
        _call_all("poststart", document, container, pid, "running", log)


def _is_started(container: Container) -> None:
    """Write down that the program runs."""
    container.mark("started")
    for name in ("start", "told", "killed"):
        try:
            os.unlink(f"{container.path}/{name}")
        except FileNotFoundError:
            pass


def _release(container: Container) -> None:
    """Tell nsrun-init to become the program, and hear how that went.  Raise BadInput."""
    flags = os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
    with kernel.Fd(os.open(f"{container.path}/told", os.O_RDONLY | flags)) as told:
        try:
            with kernel.Fd(os.open(f"{container.path}/start", os.O_WRONLY | flags)) as fd:
                os.write(fd, bytes((GO,)))
        except OSError as error:
            if error.errno == ENXIO:  # nobody reads
                raise BadInput(f"container {container.id!r} has just stopped") from None
            raise
        _hear(container, told)


def _hear(container: Container, told: int) -> None:
    """Hear from nsrun-init how its exec went.  Raise BadInput when it did not go well."""
    from _struct import calcsize, unpack_from

    os.set_blocking(told, True)
    pid = container.pid()  # 0: the program has ended already
    with kernel.Fd(kernel.pidfd_of(pid) if pid else -1) as first:
        _await_told(container, told, first)
    said = os.read(told, 1024)
    if len(said) >= calcsize(INIT_RECORD):
        kind, _, errno = unpack_from(INIT_RECORD, said)
        if kind == INIT_FAILED:
            raise _no_program(os.fsdecode(said[calcsize(INIT_RECORD) :]), errno)
    elif not said and _never_began(container):
        raise BadInput(f"container {container.id!r} was killed before its program began")


def _never_began(container: Container) -> bool:
    """Return whether the first process has ended, or is about to, without becoming the program.

    One that has become it has another executable and another name.  Of one that was reaped, only `kill` knows.
    """
    from time import monotonic, sleep

    note, deadline = container.note(), monotonic() + 1
    while (pid := container.pid()) and container.waits(pid):
        if monotonic() > deadline:
            return False
        sleep(0.001)
    if pid:
        return False
    name, _, rest = cgroups.read(f"/proc/{note['pid']}/stat").partition("(")[2].rpartition(")")
    fields = rest.split()
    if len(fields) > 19 and fields[19] == str(note["start"]):
        return name == "nsrun-init"
    return container.has("killed")


def _await_told(container: Container, told: int, first: int) -> None:
    """Wait until nsrun-init has said something, has become the program or has ended.  Raise BadInput when it is frozen."""
    from select import POLLIN, poll

    from nsrun.oci.foreground import is_interrupted

    poller = poll()
    for fd in (told, first):
        if fd >= 0:
            poller.register(fd, POLLIN)
    tries = 0
    while not poller.poll(200):
        tries += 1
        if tries > 25 and is_interrupted():
            raise KeyboardInterrupt  # `run` has blocked the signals, to pass them on to a program that does not begin
        if cgroups.is_frozen(container.note()["cgroups"]):
            raise BadInput(f"container {container.id!r} was frozen before its program began: nsrun-oci resume")


def _kill_first(container: Container) -> None:
    """Kill the first process, and wait for its end.  Raise BadInput when that does not come."""
    pid = container.pid()
    if pid:
        with kernel.Fd(kernel.pidfd_of(pid)) as fd:
            if fd >= 0 and container.pid() == pid:
                _signal(fd, 9)
                paths = container.note()["cgroups"]
                cgroups.thaw(paths)
                # PID 1 of a namespace is not gone before all in it are reaped, which others may leave undone; but who has
                # left the cgroup runs no more.
                if not _await_end(fd, 0.5) and not (paths and cgroups.is_empty(paths)) and not _await_end(fd, 10):
                    raise BadInput(f"container {container.id!r}: a process does not end: [{pid}]")


def _signal(fd: int, number: int) -> bool:
    """Send a signal; return False when the process has ended."""
    from nsrun.errors import KernelError

    try:
        kernel.pidfd_send_signal(fd, number)
    except KernelError as error:
        if error.errno == ESRCH:
            return False
        raise
    return True


def _await_end(fd: int, seconds: float) -> bool:
    from select import poll

    poller = poll()
    poller.register(fd, 1)
    return bool(poller.poll(seconds * 1000))


def run(words: Words, root: str, log: Log) -> int:
    """create and start; in the foreground stay until the end, and remove the container."""
    detach = words.flag("detach")
    made = create(words, root, log, detach)
    container = made.container
    assert container
    master = int(made.values["master"])
    try:
        start(container, log)
    except BaseException:
        _remove(container, log)
        raise
    if detach:
        return 0
    from nsrun.oci.foreground import stay

    ours = [container.note()[key] for key in ("pid", "start", "created")]
    container.close()  # others may work on it meanwhile
    code = stay(made.pid, master, made.restore_signals)
    if not words.flag("keep"):
        try:
            with state.find(root, container.id) as again:
                # another may have its name now
                if [again.note().get(key) for key in ("pid", "start", "created")] == ours:
                    _remove(again, log)
        except UnknownError:
            pass  # somebody has deleted it
    return code


# ---- delete -------------------------------------------------------------------------------------------------------


def delete(ident: str, root: str, force: bool, log: Log) -> None:
    try:
        container = _take(ident, root) if force else state.find(root, ident)
    except UnknownError:
        if force:
            return
        raise
    with container:
        try:
            status, _ = container.status()
        except state.Damaged:
            if not force:
                raise
            _remove_damaged(container, log)
            return
        except state.Elsewhere:
            if not force or not container.note()["cgroups"]:
                raise
            status = "running"  # the kernel ends what is in its cgroups, or says that nothing is
        if status not in ("stopped", "created") and not force:
            raise BadInput(f"container {ident!r} is {status}: nsrun-oci kill, or delete --force")
        _remove(container, log)


def _take(ident: str, root: str) -> Container:
    """Return a container that is to be removed, locked; end it before when another command holds it, since that may wait for it."""
    try:
        return state.find(root, ident, 1)
    except state.Busy:
        held = state.look(root, ident)
    try:
        _note_kill(held)
        _kill_first(held)
        if held.note()["boot"] == state.boot_id():
            cgroups.end(held.note()["cgroups"])
    except (state.Damaged, state.Elsewhere):
        pass  # who holds it has just begun, or we can't see what runs
    return state.find(root, ident)


def _note_kill(container: Container) -> None:
    """Write down that we kill a container that another command holds: if that is `start`, it has to tell."""
    if container.fd < 0 and not container.has("started"):
        try:
            container.mark("killed")
        except FileNotFoundError:
            pass  # it has just been deleted


def _remove(container: Container, log: Log) -> None:
    """End what lives of a container, and remove its cgroups, then what is written of it."""
    note = container.note()
    try:
        _kill_first(container)
    except state.Elsewhere:
        pass  # delete has asked for its cgroups
    if note["boot"] == state.boot_id():
        if note.get("unit"):
            _stop_unit(container, log)
        _remove_cgroups(container.id, note["cgroups"])
    try:
        document = container.config()
    except state.Damaged as error:
        log.warn(error.message)
        document = {}
    if (document.get("hooks") or {}).get("poststop"):
        _call_all("poststop", document, container, 0, "stopped", log)
    container.remove()


def _stop_unit(container: Container, log: Log) -> None:
    """Let systemd end the scope of a container, in which nothing runs any more."""
    from nsrun.oci import systemd

    note = container.note()
    if cgroups.end(note["cgroups"]):
        try:
            with systemd.Manager() as manager:
                manager.stop(note["unit"])
        except (NsrunError, ImportError) as error:
            log.warn(f"container {container.id!r}: {error}")  # a scope without a process ends by itself


def _remove_cgroups(ident: str, paths: dict[str, str]) -> None:
    """End what is in a container's cgroups, and remove them.  Raise BadInput when one of the two can't be done."""
    for last in (False, True):
        if not cgroups.end(paths):
            raise BadInput(f"container {ident!r}: a process does not end: {sorted(cgroups.members(paths))[:5]}")
        left = cgroups.remove(paths)
        if not left:
            return
        if last:
            raise BadInput(f"container {ident!r}: a cgroup can't be removed: {left[0]}")


def _remove_damaged(container: Container, log: Log) -> None:
    """Remove a container whose state can't be read.  Raise BadInput when it can't be known what runs of it."""
    from nsrun.oci.leave import recorded

    first: list[tuple[int, int]] = []
    paths: dict[str, str] = {}
    is_known = not container.has("state")  # without one, no process was made that has outlived its maker
    try:
        pid, start, found = recorded(f"{container.path}/plan")
        mounts = {one.mount: one.key for one in cgroups.Machine().hierarchies}
        paths = {mounts[top]: path for path in found for top in mounts if path.startswith(f"{top}/")}
        first, is_known = [(pid, start)] if pid else [], True
    except (NsrunError, OSError, ValueError):
        first = [(pid, kernel.process_start(pid)) for pid in container.waiting()]
        is_known = is_known or bool(first)
    try:
        path = (container.config().get("linux") or {}).get("cgroupsPath") or ""
        if path.startswith("/"):
            paths = {**cgroups.Machine().paths(path, container.id), **paths}
            is_known = is_known or any(map(os.path.isdir, paths.values()))
        elif not paths:
            log.warn(f"container {container.id!r}: its cgroup was below that of whoever made it, which is not known")
    except (NsrunError, OSError, AttributeError) as error:
        log.warn(f"container {container.id!r}: its cgroups are not known: {error}")
    if not is_known:
        raise BadInput(
            f"container {container.id!r}: its state is damaged, so it is not known which processes are its: "
            f"end them, and remove {container.path}"
        )
    for pid, start in first:
        with kernel.Fd(kernel.pidfd_of(pid)) as fd:
            if fd >= 0 and kernel.process_start(pid) == start and _signal(fd, 9):
                cgroups.thaw(paths)
                if not _await_end(fd, 10) and not (paths and cgroups.is_empty(paths)):
                    raise BadInput(f"container {container.id!r}: a process does not end: [{pid}]")
    _remove_cgroups(container.id, paths)
    container.remove()


# ---- kill, ps, pause ----------------------------------------------------------------------------------------------


def signal_number(text: str) -> int:
    """Return a signal by number or name, with or without SIG.  Raise UsageError."""
    import _signal  # signal makes enums of them, 9 ms

    if is_number(text) and 0 < int(text) <= 64:
        return int(text)
    name = text.upper()
    if not name.startswith("SIG"):
        name = f"SIG{name}"
    if name.startswith(("SIGRTMIN+", "SIGRTMAX-")) and is_number(name[9:]):
        number = 34 + int(name[9:]) if name[6] == "I" else 64 - int(name[9:])
        if 34 <= number <= 64:
            return number
    found = getattr(_signal, name, None)
    if not isinstance(found, int) or not found or name.startswith("SIG_"):
        raise UsageError(f"unknown signal {text!r}")
    return found


def kill(words: Words, root: str) -> None:
    ident = container_id(words, 2)
    number = signal_number(words.arguments[1] if len(words.arguments) > 1 else "SIGTERM")
    try:
        container = state.find(root, ident, 1)
    except state.Busy:
        container = state.look(root, ident)  # a pidfd and the start time say whom we kill, and a note is never changed
        if container.status()[0] == "creating":
            raise
    with container:
        status, pid = container.status()
        _note_kill(container)
        if words.flag("all"):
            cgroups.signal_all(
                container.note()["cgroups"] if container.note()["boot"] == state.boot_id() else {}, number
            )
            return
        with kernel.Fd(kernel.pidfd_of(pid) if pid else -1) as fd:
            if fd < 0 or container.pid() != pid or not _signal(fd, number):
                raise BadInput(f"container {ident!r} is not running")


def pause(ident: str, root: str, on: bool) -> None:
    with state.find(root, ident) as container:
        status, _ = container.status()
        if status not in ("running", "created", "paused"):
            raise BadInput(f"container {ident!r} can't be {'paused' if on else 'resumed'}: it is {status}")
        cgroups.freeze(container.note()["cgroups"], on)


def living(container: Container) -> list[int]:
    """Return the processes of a container that is not stopped.  Raise BadInput."""
    status, pid = container.status()
    if status == "stopped":
        raise BadInput(f"container {container.id!r} is stopped")
    return cgroups.pids(container.note()["cgroups"]) or [pid]


# ---- exec ---------------------------------------------------------------------------------------------------------


def _is_id(text: str) -> bool:
    """Return whether it is a uid or gid: 4294967295 is none, it leaves the id as it is."""
    return is_number(text) and int(text) <= MAX_ID


def _exec_process(words: Words, document: Config, file: Config) -> Config:
    """Return the process of an exec: what the options say, or the `file` of --process, and the container's own for the rest."""
    from nsrun.oci import config

    own = document["process"]
    if file:
        process = dict(file)
        for name in ("capabilities", "apparmorProfile", "selinuxLabel", "rlimits"):
            if process.get(name) in (None, "") and own.get(name):  # {} and [] are none of them, and not the container's
                process[name] = own[name]
        if words.flag("tty"):
            process["terminal"] = True
    else:
        if not words.arguments[1:]:
            raise UsageError("exec: no command")
        process = {**own, "args": words.arguments[1:], "terminal": words.flag("tty"), "consoleSize": None}
        if cwd := words.value("cwd"):
            if not cwd.startswith("/"):
                raise UsageError(f"--cwd {cwd!r} is not an absolute path")
            process["cwd"] = cwd
        process["env"] = [*(own.get("env") or []), *words.lists.get("env", [])]
        user = dict(own.get("user") or {})
        if given := words.value("user"):
            uid, colon, gid = given.partition(":")
            if not _is_id(uid) or (colon and not _is_id(gid)):
                raise UsageError(f"--user {given!r} is not UID or UID:GID")
            user = {**user, "uid": int(uid), "gid": int(gid) if colon else user.get("gid") or 0}
        if groups := words.lists.get("additional-gids"):
            if not all(map(_is_id, groups)):
                raise UsageError("--additional-gids takes ids of groups")
            user["additionalGids"] = [*(user.get("additionalGids") or []), *map(int, groups)]
        process["user"] = user
        if caps := words.lists.get("cap"):
            named = [word for given in caps for word in given.split(",")]
            sets = {name: list((own.get("capabilities") or {}).get(name) or []) for name in config.CAPABILITY_SETS}
            for name in ("bounding", "effective", "permitted"):
                sets[name] += named
            process["capabilities"] = sets
            for name in sets:
                config.capabilities(process, name, "--cap")
        if words.value("apparmor"):
            process["apparmorProfile"] = words.value("apparmor")
        if words.value("process-label"):
            process["selinuxLabel"] = words.value("process-label")
        if words.flag("no-new-privs"):
            process["noNewPrivileges"] = True
    if process.get("oomScoreAdj") is None and own.get("oomScoreAdj") is not None:
        process["oomScoreAdj"] = own["oomScoreAdj"]
    if words.value("cgroup"):
        raise UsageError("--cgroup: an exec is in the container's own cgroup")
    return process


def execute(words: Words, root: str, log: Log) -> int:
    """Start one more process in a container; return its exit status, or 0 when it is detached."""
    from nsrun.oci.plan import Facts, exec_plan
    from nsrun.oci.run import ContainerRun

    if not words.arguments:
        raise UsageError("exec: the container's id is missing")
    ident = check_id(words.arguments[0])
    detach = words.flag("detach")
    with state.find(root, ident) as container:
        status, pid = container.status()
        if status == "paused" and words.flag("ignore-paused"):
            status = "running"
        if status not in ("created", "running"):
            raise BadInput(f"container {ident!r} can't execute anything: it is {status}")
        note, document = container.note(), container.config()
    file: Config = {}
    if path := words.value("process"):
        from nsrun.oci import config

        if words.arguments[1:]:
            raise UsageError("--process and a command exclude each other")
        file = config.load_process(_document(path), path)
    process = _exec_process(words, document, file)
    _check_console(process, words.value("console-socket"), detach)
    linux = document.get("linux") or {}
    environment = list(process.get("env") or [])
    preserve = _preserve(words, environment)
    with kernel.Fd(os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        process["env"] = _home(fd, environment, (process.get("user") or {}).get("uid") or 0)
    console = words.value("console-socket")
    flags = hooks.foreign(pid)
    facts = Facts(
        root=root,
        ident=ident,
        console=os.path.abspath(console) if console else "",
        pid_file=os.path.abspath(words.value("pid-file")) if words.value("pid-file") else "",
        preserve=preserve,
        selinux=os.path.exists("/sys/fs/selinux/enforce"),
        keep_groups=cgroups.read(f"/proc/{pid}/setgroups").strip() == "deny",
        host_maps=_host_maps(f"/proc/{pid}/ns/user") if flags & kernel.CLONE_NEWUSER else {},
    )
    made = ContainerRun(exec_plan(process, linux.get("seccomp"), note, flags, facts))
    master: list[int] = []

    def before_release() -> None:
        if "tty:master" in made.handles:
            master.append(os.dup(made.fd("tty:master")))
        if file and not preserve and os.environ.get("NSRUN_REPLAY") != "0":
            _leave_exec(made, root, note, process, file)

    made.before_release = before_release
    try:
        made.execute()
    except StepError as error:
        raise _explain(error) from None
    if detach:
        return 0  # signals that wait are of no use any more
    from nsrun.oci.foreground import stay

    return stay(made.pid, master[0] if master else -1, made.restore_signals)


def _leave_exec(run: ContainerRun, root: str, note: Config, process: Config, file: Config) -> None:
    """Leave the plan of an exec with --process, if nobody works on the container now."""
    from nsrun.oci import leave

    try:
        container = state.find(root, note["id"], 0)
    except (NsrunError, OSError):
        return
    with container:
        if container.has("state") and container.note() == note:
            leave.leave_exec(run, container, process, leave.members(file))


# ---- update, events -----------------------------------------------------------------------------------------------

_UPDATE = {
    "blkio-weight": ("blockIO", "weight"), "cpu-period": ("cpu", "period"), "cpu-quota": ("cpu", "quota"), "cpu-burst": ("cpu", "burst"),
    "cpu-share": ("cpu", "shares"), "cpu-idle": ("cpu", "idle"), "cpu-rt-period": ("cpu", "realtimePeriod"),
    "cpu-rt-runtime": ("cpu", "realtimeRuntime"), "cpuset-cpus": ("cpu", "cpus"), "cpuset-mems": ("cpu", "mems"), "memory": ("memory", "limit"),
    "memory-reservation": ("memory", "reservation"), "memory-swap": ("memory", "swap"), "pids-limit": ("pids", "limit"),
}  # fmt: skip
_UNITS = {
    "": 1,
    "b": 1,
    "k": 1 << 10,
    "kb": 1 << 10,
    "m": 1 << 20,
    "mb": 1 << 20,
    "g": 1 << 30,
    "gb": 1 << 30,
    "t": 1 << 40,
}


def _number(name: str, text: str) -> int:
    """Return a number of an option, with a unit.  Raise UsageError."""
    digits = text.lstrip("-").rstrip("bkmgtBKMGT")
    unit = text.lstrip("-")[len(digits) :].lower()
    if not is_number(digits) or unit not in _UNITS:
        raise UsageError(f"--{name}: {text!r} is no number")
    return int(digits) * _UNITS[unit] * (-1 if text.startswith("-") else 1)


def update(words: Words, root: str) -> None:
    from nsrun.oci import config, resources
    from nsrun.schema import check

    ident = container_id(words)
    asked: Config = {}
    if path := words.value("resources"):
        asked = _document(path)
        check(asked, config.RESOURCE_SHAPE, "--resources")
    for name, (group, key) in _UPDATE.items():
        if text := words.value(name):
            asked[group] = {**(asked.get(group) or {}), key: text if name.startswith("cpuset") else _number(name, text)}
    with state.find(root, ident) as container:
        status, _ = container.status()
        if status == "stopped":
            raise BadInput(f"container {ident!r} is stopped")
        machine = cgroups.Machine()
        if machine.unified and asked.get("devices"):
            raise BadInput("linux.resources.devices: on cgroup v2 they can't be changed later")
        _check_memory(container.note()["cgroups"], asked.get("memory") or {})
        settings = resources.settings(asked, machine.unified)
        if unit := container.note().get("unit"):
            from nsrun.oci import systemd

            with systemd.Manager() as manager:  # which would write its own values when it is reloaded
                manager.change(unit, systemd.limits(asked, machine.unified))
        cgroups.apply(container.note()["cgroups"], settings, machine.unified)


def _check_memory(paths: dict[str, str], memory: Config) -> None:
    """Raise BadInput when more memory is used than is to be allowed, and memory.checkBeforeUpdate wants that checked."""
    limit = memory.get("limit") or 0
    if memory.get("checkBeforeUpdate") and limit > 0:
        used = statistics(paths)["memory"]["usage"].get("usage") or 0
        if used > limit:
            raise BadInput(f"linux.resources.memory.limit: {limit} is less than the {used} in use")


def statistics(paths: dict[str, str]) -> Config:
    """Return what `events --stats` tells: what the kernel counts, by the names that runc has for it."""

    def number(controller: str, file: str) -> int | None:
        directory = (
            cgroups.path_with(paths, controller) if controller in ",".join(paths).split(",") else cgroups.v2_of(paths)
        )
        word = cgroups.read(f"{directory}/{file}").strip() if directory else ""
        try:
            return int(word)  # "max" is none
        except ValueError:
            return None

    v1 = bool(set(paths) - {"0"})
    data: Config = {}
    if v1:
        usage = {"total": number("cpuacct", "cpuacct.usage")}
        memory = {"usage": number("memory", "memory.usage_in_bytes"), "limit": number("memory", "memory.limit_in_bytes"), "max": number("memory", "memory.max_usage_in_bytes")}  # fmt: skip
    else:
        lines = [line.split() for line in cgroups.read(f"{cgroups.v2_of(paths)}/cpu.stat").split("\n")]
        found = {line[0]: int(line[1]) * 1000 for line in lines if len(line) == 2 and is_number(line[1])}
        usage = {"total": found.get("usage_usec"), "user": found.get("user_usec"), "kernel": found.get("system_usec")}
        memory = {"usage": number("memory", "memory.current"), "limit": number("memory", "memory.max"), "max": number("memory", "memory.peak")}  # fmt: skip
    data["cpu"] = {"usage": {key: value for key, value in usage.items() if value is not None}, "throttling": {}}
    data["memory"] = {"usage": {key: value for key, value in memory.items() if value is not None}}
    pids = {"current": number("pids", "pids.current"), "limit": number("pids", "pids.max")}
    data["pids"] = {key: value for key, value in pids.items() if value is not None}
    return data
