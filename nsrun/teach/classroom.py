# SPDX-License-Identifier: Apache-2.0
"""A class: students on one machine, who work without root, and whose work root grades by what the kernel shows.

    LIB/labs/class.json     root's: the students, their seeds, and when root has seen which lab solved
    OWNED/UID/class.json    what a student is shown of that; root writes it, and nobody reads it back

Grading reads no file of a student, and no memory of a student's process but its environment.  It tells which lab is
started, and which pids are the parts of its scene (such as KEEPER); these count only if they are those of the student's
own processes.  Each student is graded by a process of its own, as they may make it wait, or take much memory: looks.py.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from dataclasses import dataclass

from nsrun import kernel
from nsrun.errors import BadInput, NsrunError, UsageError
from nsrun.host import cgroup, userns
from nsrun.schema import FLAG, STRING, Number, check, is_number, open_regular
from nsrun.state import make_directory, remove_tree, timestamp
from nsrun.teach import facts, labs, progress, sessions
from nsrun.teach.lab import MARK, Lab, Work, environment, graded, run_nsrun, values_of
from nsrun.teach.looks import Looks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from typing import Any

    from nsrun.state import State
    from nsrun.teach.facts import Process

_OPTIONS = {"pids": "--pids-limit", "memory": "--memory", "cpus": "--cpus"}  # of pod create
LIMITS = "/etc/security/limits.d"  # limits.conf(5): what holds at a login

_STUDENT = {
    "uid": Number(1, 1 << 32),
    "seed": STRING,
    "account": FLAG,
    "first_id": Number(0, 1 << 32),
    "passed": {str: STRING},
}
_SHAPE = {"created": STRING, "since": Number(0, 1 << 53), "students": {str: _STUDENT}, "limits": FLAG}


def alone(state: State) -> AbstractContextManager[None]:
    """Let nobody else create or remove the class meanwhile."""
    return progress.alone(f"{state.lib}/labs/class.going", "another command creates or removes the class")


def _path(state: State) -> str:
    return f"{state.lib}/labs/class.json"


@contextmanager
def _changing(state: State, new: dict[str, Any] | None = None) -> Iterator[dict[str, Any]]:
    """Give the record of the class, to change; an empty one removes it.  Raise BadInput when there is no class."""
    import fcntl
    import json

    make_directory(f"{state.lib}/labs")
    fd = os.open(f"{state.lib}/labs/class.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        if new is not None and os.path.exists(_path(state)):
            raise BadInput(
                "there is a class already", hint="nsrun lab class report shows it, nsrun lab class rm removes it"
            )
        found = new if new is not None else _load(state)
        yield found
        if not found:
            os.unlink(_path(state))
            return
        _write(_path(state), json.dumps(found, indent=1), 0o600)
    finally:
        os.close(fd)


def _load(state: State) -> dict[str, Any]:
    import json

    try:
        with open(open_regular(_path(state)), encoding="utf-8", errors="surrogateescape") as file:
            found: dict[str, Any] = json.load(file)
    except FileNotFoundError:
        raise BadInput("there is no class", hint="sudo nsrun lab class create --users USER,… or --count N") from None
    except ValueError as error:
        raise BadInput(f"{_path(state)} is damaged: {error}") from None
    check(found, _SHAPE, "class.json")
    return found


def _write(path: str, text: str, mode: int) -> None:
    new = f"{path}.new"
    remove_tree(new)
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "w") as file:
            file.write(text)
    except OSError as error:  # of write(2), which does not say where
        raise OSError(error.errno, error.strerror, path) from None
    os.chmod(new, mode)
    os.rename(new, path)


def _limits(state: State) -> str:
    """Return the file with the limits of a class's logins; a class of another state directory has one of its own."""
    of = f"-{kernel.checksum(os.fsencode(state.root)):08x}" if state.root else ""
    return f"{LIMITS}/90-nsrun-class{of}.conf"


# ---- create ----------------------------------------------------------------------------------------------------


def create(
    state: State, users: Sequence[str], count: int, limits: dict[str, str], network: str, warn: Callable[[str], None]
) -> None:
    """Prepare a class of existing accounts, or of new ones.

    `limits`: the pids, and "" or the memory and the cpus, of each student's pod; pids are also the limit of each login.
    Whatever goes wrong, what was made is removed again; `warn` is told what could not be done, or undone.
    """
    names = list(users) or [f"student{number:02}" for number in range(1, count + 1)]
    if len(set(names)) != len(names):
        raise UsageError("--users names somebody twice")
    if users and (uid0 := [name for name in names if not userns.User(name).uid]):
        raise BadInput(f"{uid0[0]} is root, who can't be a student")
    students = {
        name: {
            "uid": userns.User(name).uid if users else 1,
            "seed": seed,
            "account": False,
            "first_id": 0,
            "passed": {},
        }
        for name, seed in zip(names, _seeds(len(names)), strict=True)
    }
    new = {"created": timestamp(), "since": int(time.time()), "students": students, "limits": False}
    with _changing(state, new):
        pass  # from now on, rm knows what there may be
    try:
        _make(state, new, not users, limits, network, warn)
    except BaseException:
        for line in remove(state):
            warn(f"left as it is: {line}")
        raise


def _make(
    state: State, new: dict[str, Any], accounts: bool, limits: dict[str, str], network: str, warn: Callable[[str], None]
) -> None:
    wanted = {key: value for key, value in limits.items() if value}
    refused = {key for key in wanted if cgroup.LIMITS[key][0] in cgroup.missing()}
    options = [word for key in wanted if key not in refused for word in (_OPTIONS[key], wanted[key])]
    options += ["--network", network] if network else []
    for name, student in new["students"].items():
        if accounts:
            student["uid"] = _new_account(state, name)
        if first := _give_ids(name):
            with _changing(state) as found:
                found["students"][name]["first_id"] = first
        _show(state, student)
        run_nsrun(state, "pod", "create", "--owner", name, *options, _pod(name))
    if refused:
        reason, _ = cgroup.why_none(0)
        of = " or ".join(sorted({"pids": "processes", "cpus": "processors"}.get(key, key) for key in refused))
        warn(f"the pods have no limit of {of}: {reason or 'cgroup v2 has no such controller here'}")
    if os.path.isdir(LIMITS):
        lines = [f"{name} hard nproc {limits['pids']}\n" for name in new["students"]]
        _write(_limits(state), "# made by nsrun lab class create\n" + "".join(lines), 0o644)
        with _changing(state) as found:
            found["limits"] = True
    else:
        warn(f"there is no {LIMITS}: a student who logs in may start any number of processes")


def _pod(name: str) -> str:
    return f"class-{name}"


def _seeds(count: int) -> list[str]:
    """Draw seeds such that no two students are told the same port."""
    seeds: list[str] = []
    taken: set[str] = set()
    while len(seeds) < count:
        seed = os.urandom(8).hex()
        values = (values_of(lab, seed).items() for lab in labs.every())
        ports = [value for pairs in values for name, value in pairs if name.startswith("PORT")]
        if not taken.intersection(ports) or len(taken) > 8000:
            taken.update(ports)
            seeds.append(seed)
    return seeds


#: In the accounts that are ours, and so may be removed: passwd(5), the field for comments.
_COMMENT = "nsrun lab class"


def _is_ours(name: str) -> bool:
    import pwd

    try:
        return pwd.getpwnam(name).pw_gecos == _COMMENT
    except KeyError:
        return False


def _new_account(state: State, name: str) -> int:
    """Make an account, and return its uid.  Raise BadInput when there is one of this name."""
    import pwd

    if any(entry.pw_name == name for entry in pwd.getpwall()):
        raise BadInput(f"there is an account {name} already", hint="--users takes accounts that exist")
    with _changing(state) as found:
        found["students"][name]["account"] = True  # if we are killed now, rm finds it by its comment
    _run("useradd", "--create-home", "--shell", "/bin/bash", "--comment", _COMMENT, name)
    with _changing(state) as found:
        found["students"][name]["uid"] = userns.User(name).uid
    return userns.User(name).uid


def _give_ids(name: str) -> int:
    """Give an account subordinate ids if it has none; return the first one that it was given, or 0."""
    if userns.has_ids(userns.User(name)):
        return 0
    first = userns.free_ids()
    last = first + userns.WANTED - 1
    _run("usermod", "--add-subuids", f"{first}-{last}", "--add-subgids", f"{first}-{last}", name)
    return first


def _run(*command: str) -> None:
    import subprocess

    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        raise BadInput(f"{command[0]} is not installed", hint="apt-get install passwd uidmap") from None
    if done.returncode:
        raise NsrunError(f"{' '.join(command)}: {done.stderr.decode('utf-8', 'replace').strip()}")


def _show(state: State, student: dict[str, Any]) -> None:
    """Let a student read the seed that is theirs, and what root has seen."""
    import json

    state.make_owned(student["uid"])
    shown = {"seed": student["seed"], "passed": student["passed"]}
    _write(f"{state.owned}/{student['uid']}/class.json", json.dumps(shown), 0o644)


# ---- report ----------------------------------------------------------------------------------------------------


@dataclass
class Grade:
    """How far one student is with one lab."""

    student: str
    lab: int
    fulfilled: int
    rows: int
    passed: str  # when root saw that first; "": not yet
    seconds: int  # from the beginning of the class to that
    trouble: str  # why it can't be graded


class Report:
    """The grades of a class, over rounds.  As a context manager it ends the looks at students that still go on."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.looks = Looks()
        self.known: dict[str, list[Grade]] = {}  # the newest grades of each student
        self.seen: dict[tuple[str, int], str] = {}  # what was passed, and when, also if it could not be recorded yet
        self.unshown: set[str] = set()  # students who do not see yet what is recorded

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *_: object) -> None:
        self.looks.__exit__()

    def round(self, wait: bool = True) -> list[Grade]:
        """Return the grades of every lab of every student now; without `wait`, of slow students those of an earlier round."""
        record = _load(self.state)
        students = record["students"]
        home = facts.namespaces_of(os.getpid())
        every, everything = labs.every(), facts.processes(command_lines=False)

        def look(name: str) -> list[dict[str, Any]]:
            return [vars(grade) for grade in _grade(self.state, name, students[name], every, everything, home)]

        told = self.looks.round(students, look, wait)
        for name in students:
            if isinstance(trouble := told.get(name), Exception):
                self.known[name] = [Grade(name, lab.number, 0, 0, "", 0, str(trouble)) for lab in every]
            elif trouble is not None:
                self.known[name] = [Grade(**grade) for grade in trouble]
            elif name not in self.known:
                self.known[name] = [Grade(name, lab.number, 0, 0, "", 0, HIDES_YET) for lab in every]
        grades = [grade for name in students for grade in self.known[name]]
        now, seconds = timestamp(), int(time.time()) - record["since"]
        for grade in grades:
            passed = students[grade.student]["passed"].get(str(grade.lab), "")
            if grade.rows and grade.fulfilled == grade.rows and not passed:
                self.seen.setdefault((grade.student, grade.lab), f"{now} {seconds}")
            grade.passed, _, after = (passed or self.seen.get((grade.student, grade.lab), "")).partition(" ")
            grade.seconds = int(after or 0)
        return grades

    def record(self) -> None:
        """Record what was seen to be passed, and show it to the students.

        Raise OSError when that can't be done, such as on a full disk: then the next call does it.
        """
        if self.seen:
            with _changing(self.state) as found:
                for (name, number), said in self.seen.items():
                    if name in found["students"]:
                        found["students"][name]["passed"].setdefault(str(number), said)
            self.unshown |= {name for name, _ in self.seen}
            self.seen = {}
        if self.unshown:
            found = _load(self.state)
            for name in self.unshown & found["students"].keys():
                _show(self.state, found["students"][name])
                self.unshown.discard(name)


#: Of a student whose first look takes its time.
HIDES_YET = "a process has not let itself be looked at yet"


def _grade(
    state: State, name: str, student: dict[str, Any], every: list[Lab], everything: list[Process], home: dict[str, int]
) -> list[Grade]:
    mine = graded([process for process in everything if process.state != "X"], student["uid"])
    given = _pid_namespace_of_pod(state, _pod(name))  # the pod of the class is not the student's work, nor is its door
    mine = [p for p in mine if p.namespaces.get("pid", 0) != given and "nsrun-door" not in facts.program(p.pid)]
    claims = _claims(mine)
    hostnames: dict[int, str] = {}
    grades = []
    for lab in every:
        if lab.number not in claims:
            grades.append(Grade(name, lab.number, 0, 0, "", 0, ""))
            continue
        variables = {**claims[lab.number], **values_of(lab, student["seed"])}
        work = Work(lab, "", student["seed"], "", state, variables, home, student["uid"], _hostnames=hostnames)
        work.__dict__.update(processes=everything, mine=mine)  # seen once for all
        trouble = ""
        try:
            rows = lab.check(work)
        except KeyError as error:
            rows, trouble = [], f"the scene is not there, or {error} is not in the student's processes"
        except (OSError, NsrunError, ValueError) as error:
            rows, trouble = [], str(error).partition("\n")[0]
        grades.append(Grade(name, lab.number, sum(row.ok for row in rows), len(rows), "", 0, trouble))
    return grades


def _pid_namespace_of_pod(state: State, name: str) -> int:
    """Return the inode of a pod's PID namespace; -1 when the pod does not live."""
    note = state.try_read("pods", name)
    try:
        fd, pid = state.pause(note) if note else (-1, 0)
    except BadInput:
        return -1
    with kernel.Fd(fd):
        return facts.namespaces_of(pid).get("pid", -1) if pid else -1


def _claims(mine: list[Process]) -> dict[int, dict[str, str]]:
    """Return, by lab, the variables that name processes of the student's, from the environments of the student's processes."""
    pids = {str(process.pid) for process in mine}
    found: dict[int, dict[str, str]] = {}
    for process in sorted(mine, key=lambda one: one.start):
        variables = dict(
            pair.decode("utf-8", "replace").split("=", 1) for pair in environment(process.pid) if b"=" in pair
        )
        number, _, _ = variables.get(MARK, "").partition("-")
        if is_number(number):
            found.setdefault(int(number), {}).update({key: value for key, value in variables.items() if value in pids})
    return found


# ---- rm --------------------------------------------------------------------------------------------------------


def remove(state: State) -> list[str]:
    """Remove what create made; return what is left, and why.  Accounts that were there before keep their processes."""
    left: list[str] = []
    for name, student in _load(state)["students"].items():
        for action in (
            lambda n=name: run_nsrun(state, "pod", "rm", "-f", _pod(n)),
            lambda s=student: _unshow(state, s),
            lambda n=name, s=student: _take_ids(n, s),
            lambda n=name, s=student: _userdel(state, n, s, left),
        ):
            try:
                action()
            except (OSError, NsrunError) as error:
                left.append(str(error).partition("\n")[0])
    with _changing(state) as found:
        if found["limits"]:
            remove_tree(_limits(state))
        found.clear()
    return left


def _unshow(state: State, student: dict[str, Any]) -> None:
    remove_tree(f"{state.owned}/{student['uid']}/class.json")


def _take_ids(name: str, student: dict[str, Any]) -> None:
    if (first := student["first_id"]) and not student["account"]:
        last = first + userns.WANTED - 1
        _run("usermod", "--del-subuids", f"{first}-{last}", "--del-subgids", f"{first}-{last}", name)


def _userdel(state: State, name: str, student: dict[str, Any], left: list[str]) -> None:
    """Remove an account that create made, after its processes."""
    if not student["account"] or not _is_ours(name):
        return
    work = Work(labs.every()[0], "", "", "", state, {}, facts.namespaces_of(os.getpid()), userns.User(name).uid)
    sessions.end_all(work)
    left += work.troubles
    if work.troubles:  # nobody removes a tree as root that somebody hostile may still change
        left.append(f"account {name}: it has processes; sudo userdel --remove {name}, when they have ended")
        return
    uid = userns.User(name).uid
    _run("userdel", "--remove", name)
    for path in (f"{state.owned}/{uid}", *([f"{state.root}/users/{uid}"] if state.root else [])):
        remove_tree(path)  # or the next account with this uid would find it
