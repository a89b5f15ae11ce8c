# SPDX-License-Identifier: Apache-2.0
"""Start a lab, check it, reset it: what is recorded, what is made, and what may be removed.

reset ends what is provably the lab's (Work.mine), by pidfds, and never by a number or a name alone.  What only shares a
namespace with it is left, and reported.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from errno import EPERM, ESRCH

from nsrun import kernel
from nsrun.errors import BadInput, NsrunError
from nsrun.state import make_directory, remove_tree, timestamp
from nsrun.teach import facts, labs, progress
from nsrun.teach.lab import MARK, Lab, Row, Work, ancestors, values_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from typing import Any

    from nsrun.state import State


def chosen(state: State, text: str = "") -> Lab:
    """Return the lab that a command is about: the one that is named, or the one that was started last.

    Raise BadInput when none is meant.
    """
    if text:
        return labs.find(text)
    found = progress.load(state)
    if (number := found.get("current")) not in {lab.number for lab in labs.every()}:
        raise BadInput("no lab is started", hint="nsrun lab ls shows them, nsrun lab start N starts one")
    return labs.find(str(number))


def work_of(state: State, lab: Lab, whole: bool = True) -> Work:
    """Return the work on a lab that is started; with `whole`, whose start was not killed.  Raise BadInput when it is not."""
    found = progress.load(state)
    entry = found["labs"].get(str(lab.number), {})
    if not entry.get("id"):
        raise BadInput(f"lab {lab.number} is not started", hint=f"nsrun lab start {lab.number}")
    if whole and not entry.get("ready"):
        raise BadInput(
            f"the start of lab {lab.number} was interrupted", hint=f"nsrun lab start {lab.number} begins again"
        )
    return _work(state, lab, found)


def _work(state: State, lab: Lab, found: dict[str, Any]) -> Work:
    entry = progress.entry(found, lab.number)
    # with no link in it: the kernel names what is mounted below by such a path
    where = f"{os.path.realpath(progress.directory(state))}/{lab.number:02}-{lab.name}"
    others = frozenset(other["id"] for other in found["labs"].values() if other.get("id") and other is not entry)
    return Work(lab, entry["id"], found["seed"], where, state, entry["variables"], entry["home"], others=others)


def _alone(state: State, lab: Lab) -> AbstractContextManager[None]:
    """Let nobody else start or reset this lab meanwhile."""
    busy = f"another command starts or resets lab {lab.number}"
    return progress.alone(f"{progress.directory(state)}/{lab.number:02}.lock", busy)


#: The namespaces from which a lab was started, as `environment` says them to whoever asks from another one.
_HOME = "NSRUN_LAB_HOME"


def environment(work: Work) -> dict[str, str]:
    """Return the variables of a lab's shell, beside those of the caller."""
    found = {MARK: work.id, "LAB_DIR": work.directory, **work.variables}
    found[_HOME] = " ".join(f"{kind}:[{inode}]" for kind, inode in work.home.items())
    if work.state.root:
        found["NSRUN_ROOT"] = work.state.root
    here = os.path.dirname(os.path.abspath(sys.argv[0]))
    path = os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin")
    for directory in (here, "/usr/sbin", "/sbin"):
        if directory not in path.split(":") and (directory != here or os.access(f"{here}/nsrun", os.X_OK)):
            path += f":{directory}"
    return {**found, "PATH": path}


def refuse_inside(state: State) -> None:
    """Raise BadInput when who asks is in a namespace of a lab's, where nothing is seen as it is outside."""
    own = facts.namespaces_of(os.getpid())
    home = dict(re.findall(r"(\w+):\[(\d+)\]", os.environ.get(_HOME, "")))
    away = [kind for kind, inode in home.items() if kind in own and own[kind] != int(inode)]
    lab = os.environ.get(MARK, "").partition("-")[0]
    hint = "ask from another shell, one that you have not moved: exit this one, or take a second terminal"
    if away and lab:
        text = f"you are in another {', '.join(away)} namespace than the one from which lab {lab} was started"
        raise BadInput(f"{text}: this shell is a part of the lab, and sees it from within", hint=hint)
    where = _nearest(progress.directory(state))
    if kernel.in_userns() and not state.uid and os.stat(where).st_uid and not os.access(where, os.W_OK):
        text = "you are root only in a user namespace, where your own records are not known"
        raise BadInput(text, hint=hint)


def _nearest(path: str) -> str:
    """Return a path, or the directory above it that exists."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


# ---- start -----------------------------------------------------------------------------------------------------


def start(state: State, lab: Lab, made: Callable[[], None] = lambda: None) -> Work:
    """Make the scene of a lab.  Whatever goes wrong, Ctrl-C included, what was made is removed again.

    `made` is called when the scene is there, and before it is recorded that it is.
    Raise BadInput when it is started already, or when this machine lacks what it needs.
    """
    if lacking := lab.lacking(state.uid):
        what, cure = lacking[0]
        raise BadInput(f"lab {lab.number} can't be done here: {what}", hint=cure)
    with _alone(state, lab):
        return _start(state, lab, made)


def _start(state: State, lab: Lab, made: Callable[[], None]) -> Work:
    with progress.changing(state) as found:
        entry = progress.entry(found, lab.number)
        if entry.get("id") and entry.get("ready"):
            raise BadInput(
                f"lab {lab.number} is started already",
                hint=f"nsrun lab start {lab.number} --shell opens another shell in it; nsrun lab reset {lab.number} ends it",
            )
        if entry.get("id"):  # a start that was killed
            reset(_work(state, lab, found))
        variables, salt = _free_values(lab, found["seed"], bool(progress.class_note(state)))
        entry.update(
            id=f"{lab.number:02}-{os.urandom(8).hex()}", variables=variables, home=facts.namespaces_of(os.getpid()), ready=False, salt=salt,
            begun=timestamp(), starts=entry.get("starts", 0) + 1,
        )  # fmt: skip
        found["current"] = lab.number
    work = _work(state, lab, found)
    try:
        make_directory(work.directory)
        if lab.scene:
            os.environ[MARK] = work.id  # what the scene starts is the lab's
            work.variables.update(lab.scene(work))
        if progress.class_note(state):
            _tell_class(work)
        made()
    except BaseException:
        _remove(work)
        _end(work)
        raise
    with progress.changing(state) as found:
        entry = progress.entry(found, lab.number)
        if entry.get("id") != work.id:
            raise BadInput(
                f"lab {lab.number}: the record of this start was changed", hint=f"nsrun lab reset {lab.number}"
            )
        entry.update(ready=True, variables=work.variables)
    return work


def _tell_class(work: Work) -> None:
    """Start a process whose environment tells root, who grades, which lab is started, and what the scene's parts are.

    It ends with the lab, like everything that has the mark.
    """
    import subprocess

    subprocess.Popen(
        ["sleep", "infinity"], env={**os.environ, **environment(work)}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True, cwd="/",
    )  # fmt: skip


def _free_values(lab: Lab, seed: str, fixed: bool) -> tuple[dict[str, str], int]:
    """Return the values of the variables, such that nobody listens on the ports that it publishes; in a class there is no choice."""
    for salt in range(1 if fixed else 50):
        values = values_of(lab, seed, salt)
        ports = {int(value) for name, value in values.items() if name.startswith("PORT") and lab.publishes}
        if not ports or not (
            taken := [sock for sock in facts.tcp(os.getpid()) if sock.state == "LISTEN" and sock.port in ports]
        ):
            return values, salt
    port, hint = taken[0].port, f"ss -ltnp 'sport = {taken[0].port}' shows who listens; end it"
    if fixed and taken[0].uid != os.getuid():
        hint = "in a class you have this port and no other: tell the teacher who takes it"
    raise BadInput(f"lab {lab.number}: port {port} is taken by {_name_of(taken[0].uid)}", hint=hint)


def _name_of(uid: int) -> str:
    import pwd

    try:
        return f"{pwd.getpwuid(uid).pw_name}, uid {uid}"
    except KeyError:
        return f"uid {uid}"


# ---- check -----------------------------------------------------------------------------------------------------


def check(work: Work) -> list[Row]:
    """Ask the kernel about the student's work; a row that can't be asked about is not fulfilled."""
    work.look_again()
    return work.lab.check(work)


def record(state: State, lab: Lab, passed: bool) -> None:
    """Record a check, and the time when the lab was passed first."""
    with progress.changing(state) as found:
        entry = progress.entry(found, lab.number)
        entry["checks"] = entry.get("checks", 0) + 1
        if passed and not entry.get("passed"):
            entry["passed"] = timestamp()


def status(entry: dict[str, Any]) -> str:
    """Return passed, started or "-"; a lab that was passed stays so."""
    return "passed" if entry.get("passed") else "started" if entry.get("id") else "-"


# ---- reset -----------------------------------------------------------------------------------------------------


def reset(work: Work) -> list[str]:
    """Remove the scene and what the student made; return what is left, and why."""
    return _remove(work)


def finish(state: State, lab: Lab) -> list[str]:
    """Reset a lab that is started, and record that it is not any more."""
    with _alone(state, lab):
        work = work_of(state, lab, whole=False)
        left = reset(work)
        _end(work)
        return left


def _end(work: Work) -> None:
    """Record that this start of a lab is over."""
    number = work.lab.number
    with progress.changing(work.state) as found:
        entry = progress.entry(found, number)
        if entry.get("id") == work.id:
            entry.update(id=None, variables=None, home=None, ready=None)
            if found.get("current") == number:
                found["current"] = None


def _remove(work: Work) -> list[str]:
    work.look_again()
    others = _sharing(work)
    left = _remove_made(work)
    end_all(work)
    end = time.monotonic() + 2
    while (
        left and time.monotonic() < end
    ):  # the processes of the lab took all room for others, until somebody waits for them
        time.sleep(0.05)
        left = _remove_made(work)
    work.troubles += left
    _remove_directory(work)
    for process, kinds in others:
        now = facts.process(process.pid)
        if now and now.start == process.start and now.state != "Z":
            work.troubles.append(_left(work, process, kinds))
    return work.troubles


def _left(work: Work, process: facts.Process, kinds: list[str]) -> str:
    if facts.is_pause(process.pid):
        for name in work.state.names("pods"):
            if (pause := work.pause(name)) and pause.pid == process.pid:
                return f"pod {name} had members of the lab's, but not a name of the lab's; nsrun pod rm --force {name} removes it"
    command = " ".join(process.command) or process.name
    shared = f"process {process.pid} ({command[:60]}) is in the lab's {', '.join(kinds)} namespace"
    return f"{shared}, but nothing proves that the lab started it"


def _remove_made(work: Work) -> list[str]:
    """Remove what the lab or the student made, apart from processes and files; return what is left, and why."""
    before, work.troubles = work.troubles, []
    try:
        if action := work.lab.reset:
            _try(work, lambda: action(work))
        _remove_pods(work)
        return work.troubles
    finally:
        work.troubles = before


def _sharing(work: Work) -> list[tuple[facts.Process, list[str]]]:
    """Return the processes that are not provably the lab's and share a namespace with it that is not the machine's."""
    spaces = {(kind, inode) for p in work.mine for kind, inode in p.namespaces.items() if inode != work.home.get(kind)}
    known = {process.pid for process in work.mine} | ancestors(os.getpid(), work.processes)
    found = []
    for process in work.processes:
        kinds = sorted(kind for kind, inode in process.namespaces.items() if (kind, inode) in spaces)
        if kinds and process.pid not in known and process.state != "Z":
            found.append((process, kinds))
    return found


def _remove_pods(work: Work) -> None:
    from nsrun.lifecycle import remove

    names, mine = set(work.pods()), {process.pid for process in work.mine}
    for note in work.state.all("members"):
        # to end only the processes of a member in another pod would leave a member that nobody looks after
        if note["pod"] in names or (
            note.get("process") and note["process"][0] in mine and not work.state.surely_ended(note)
        ):
            _try(work, lambda name=note["name"]: remove.remove_named(work.state, name, True))
    for name in names & set(work.state.names("pods")):
        _try(work, lambda name=name: remove.remove_pod(work.state, name, True))
    if names:
        from nsrun.state.sweep import Sweeper

        _try(work, Sweeper(work.state).all)


def _try(work: Work, action: Any) -> None:
    try:
        action()
    except (OSError, NsrunError) as error:
        work.troubles.append(str(error).partition("\n")[0])


def end_all(work: Work, seconds: float = 10) -> None:
    """End the student's processes: stop them all first, so that none can start another that we have not seen."""
    end = time.monotonic() + seconds
    others: set[int] = set()  # which have become another user's: only root can end them
    while time.monotonic() < end:
        work.look_again()
        mine = [process for process in work.mine if process.state != "Z" and process.pid not in others]
        if not mine:
            break
        fds = []
        for process in mine:
            try:
                fd = kernel.pidfd_of(process.pid)
                if fd < 0:
                    continue
                fds.append(fd)
                now = facts.process(process.pid, command_line=False)
                if not now or now.start != process.start:  # with the pidfd open, this is the process that we saw
                    os.close(fds.pop())
                    continue
                kernel.pidfd_send_signal(fd, signal.SIGSTOP)
            except OSError as error:
                if error.errno == EPERM:
                    others.add(process.pid)
                elif error.errno != ESRCH:
                    raise
        for fd in fds:
            with kernel.Fd(fd):
                _signal(fd, signal.SIGKILL)
        _wait_until_gone(mine, end)
    work.look_again()
    work.troubles += [f"process {p.pid} does not end (state {p.state})" for p in work.mine if p.state != "Z"]


def _signal(fd: int, number: int) -> None:
    """Send a signal to a process that may have ended, or may be another user's by now: then it is reported as left."""
    try:
        kernel.pidfd_send_signal(fd, number)
    except OSError as error:
        if error.errno not in (ESRCH, EPERM):
            raise


def _wait_until_gone(mine: list[facts.Process], end: float) -> None:
    for process in mine:
        while time.monotonic() < end:
            now = facts.process(process.pid, command_line=False)
            if not now or now.start != process.start or now.state in "ZX":
                break
            time.sleep(0.005)


def _remove_directory(work: Work) -> None:
    """Remove the student's files, after what is mounted there."""
    import subprocess

    below = [mount.point for mount in facts.mounts(os.getpid()) if mount.point.startswith(f"{work.directory}/")]
    mounted = False
    for point in sorted(below, reverse=True):
        done = subprocess.run(["umount", "--lazy", "--", point], capture_output=True, check=False)
        if done.returncode:
            work.troubles.append(f"{point} is mounted: {done.stderr.decode('utf-8', 'replace').strip()}")
            mounted = True
    if mounted:
        return
    remove_tree(work.directory)
    if os.path.exists(work.directory) and work.state.uid:  # files of subordinate ids: as root of a user namespace
        subprocess.run(
            kernel.nsrun_command(work.state.root, "_remove", work.directory), capture_output=True, check=False
        )
    if os.path.exists(work.directory):
        work.troubles.append(f"{work.directory} can't be removed")
