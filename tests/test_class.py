# SPDX-License-Identifier: Apache-2.0
"""A class: students without root, whom root grades by what the kernel shows.

A class of thirty takes minutes: NSRUN_CLASS=30 .venv/bin/pytest tests/test_class.py -k simulated
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import pathlib
import pwd
import shlex
import subprocess
import sys
import threading
import time

import pytest
from conftest import FIRST_SUBORDINATE, FIRST_UID, IN_CI, OWN_IDS, Host, UserHost, need, private, sh, wait_for
from test_lab_facts import clients_of_root
from test_labs import PAGES
from test_limits import MIB, PURE, cgroup_of, on_v2

from nsrun.errors import told
from nsrun.state import State
from nsrun.teach import classroom, facts, looks, sessions
from nsrun.teach.lab import MARK, Work

SIMULATED = int(os.environ.get("NSRUN_CLASS", "4" if IN_CI else "0"))


class ClassStudent(UserHost):
    """An account of a class, as its owner uses it; what they start stays below the limit that a login would have."""

    def __init__(self, host: Host, name: str, pids: int = 512) -> None:
        entry = pwd.getpwnam(name)
        super(UserHost, self).__init__(host.throwaway, host.root)
        host.root.chmod(0o711)
        self.name, self.uid, self.gid, self.home, self.pids = (
            name,
            entry.pw_uid,
            entry.pw_gid,
            pathlib.Path(entry.pw_dir),
            pids,
        )
        self.env = {**self.env, "HOME": entry.pw_dir, "USER": name}

    def words(self, *words: object) -> list[str]:
        limit = ["prlimit", f"--nproc={self.pids}"]
        return [*limit, "setpriv", f"--reuid={self.uid}", f"--regid={self.gid}", "--init-groups", *map(str, words)]

    def variables(self, number: int) -> dict[str, str]:
        lines = self.run("lab", "env", number).stdout.splitlines()
        found = [shlex.split(line)[1].partition("=") for line in lines if line.startswith("export ")]
        return {name: value for name, _, value in found}

    def do(self, number: int, script: str) -> None:
        variables = self.variables(number)
        subprocess.run(
            self.words("sh", "-c", script), env={**self.env, **variables}, cwd=variables["LAB_DIR"], stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120, check=False,
        )  # fmt: skip

    def solve(self, number: int) -> None:
        """Start a lab, run its solution, and wait until the student's own check says that it is solved."""
        self.run("lab", "start", number, timeout=120)
        page = PAGES[number]
        for script in [*page.of("before", True), page.of("solution", True)[0]]:
            self.do(number, script.text)
        end = time.monotonic() + 240
        while (done := self.run("lab", "check", number, check=False, timeout=120)).returncode:
            assert time.monotonic() < end, f"{self.name}: {done.stdout}{done.stderr}"
            time.sleep(2 if SIMULATED else 0.5)


def graded(host: Host, **kwargs) -> dict[tuple[str, int], dict]:
    found = json.loads(host.run("lab", "class", "report", "--json", timeout=120, **kwargs).stdout)
    return {(grade["student"], grade["lab"]): grade for grade in found}


@contextlib.contextmanager
def a_class(host: Host, *words: object):
    host.run("lab", "class", "create", *words, timeout=300)
    try:
        yield
    finally:
        host.run("lab", "class", "rm", timeout=300)


@pytest.fixture(scope="session")
def accounts(throwaway_host) -> str:
    """Two accounts whose ids no other test process has: root grades by uid, and all tests run on one machine."""
    for number, name in enumerate(("dora", "emil"), OWN_IDS - 2):
        uid, first = FIRST_UID + number, FIRST_SUBORDINATE + 65536 * number
        for file, line in (
            ("passwd", f"{name}:x:{uid}:{uid}::/nonexistent:/bin/sh"), ("group", f"{name}:x:{uid}:"),
            ("subuid", f"{name}:{first}:65536"), ("subgid", f"{name}:{first}:65536"),
        ):  # fmt: skip
            with open(f"/etc/{file}", "a") as opened:  # the throwaway host's own
                opened.write(f"{line}\n")
    return "dora,emil"


@pytest.fixture
def pair(host, accounts):
    """Two students who have accounts."""
    with a_class(host, "--users", accounts):
        students = tuple(ClassStudent(host, name) for name in accounts.split(","))
        yield students
        for student in students:
            student.close()


def test_what_is_refused(host, alice):
    for words in (
        (),
        ("--count", "2", "--users", "alice"),
        ("--count", "0"),
        ("--count", "x"),
        ("--users", "alice", "--watch"),
    ):
        host.fails(2, "lab", "class", "create", *words)
    for words in (("--memory", "much"), ("--cpus", "none"), ("--pids-limit", "few")):
        assert words[0] in host.fails(2, "lab", "class", "create", "--users", "alice", *words)
    assert "no user" in host.fails(125, "lab", "class", "create", "--users", "alice,nobody-of-this-name")
    assert "can't be a student" in host.fails(125, "lab", "class", "create", "--users", "root")
    for command in ("report", "rm"):
        assert "there is no class" in host.fails(125, "lab", "class", command)
    assert "sudo" in alice.fails(125, "lab", "class", "report")
    for report in ("class report", "report"):
        assert "exclude each other" in host.fails(2, "lab", *report.split(), "--json", "--csv")


@pytest.mark.skipif(PURE, reason="cgroup v2 has controllers here; to enable: a machine without them")
def test_limits_that_can_not_be_had(host, accounts):
    """They are not refused, but said; each pod is made."""
    limits = ("--memory", "64m", "--cpus", "0.5", "--network", "none")
    done = host.run("lab", "class", "create", "--users", accounts, *limits, timeout=300)
    assert "warning: the pods have no limit of memory or processes or processors" in done.stderr
    assert [pod["status"] for pod in host.json("pod", "ls")] == ["running", "running"]
    assert all(
        note["network"]["mode"] == "none" for note in (host.pod(f"class-{name}") for name in accounts.split(","))
    )
    host.run("lab", "class", "rm", timeout=300)


def test_why_create_fails():
    """A step of pod create that fails has two hints, which are one when another command passes them on."""
    said = b"nsrun: step 10 of 45 failed\nhint: modprobe bridge\nhint: the plan, step by step: nsrun explain\n"
    assert told(said) == ("step 10 of 45 failed", "modprobe bridge; the plan, step by step: nsrun explain")
    assert told(b"nsrun: no pod 'x'\n") == ("no pod 'x'", "")


def test_only_one_class(host, pair):
    assert "already" in host.fails(125, "lab", "class", "create", "--users", "dora")


def test_what_students_get(host, pair):
    """A pod each, in which they are root, a seed that they may read, and no two with the same port."""
    dora, emil = pair
    pods = {pod["name"]: pod for pod in host.json("pod", "ls")}
    assert {name: pod["owner"] for name, pod in pods.items()} == {"class-dora": "dora", "class-emil": "emil"}
    assert dora.run("join", "class-dora", "--", "id", "-u").stdout == "0\n"
    assert dora.run("join", "class-emil", "--", "true", check=False).returncode == 125
    shown = [host.root / "owned" / str(student.uid) / "class.json" for student in pair]
    assert dora.sh("cat", shown[0]).stdout != emil.sh("cat", shown[1]).stdout
    assert dora.sh("cat", shown[1], check=False).returncode != 0
    assert dora.sh("sh", "-c", f"echo >{shown[0]}", check=False).returncode != 0
    ports = [student.run("lab", "start", 3) and student.variables(3)["PORT"] for student in pair]
    assert ports[0] != ports[1]
    for student in pair:
        student.run("lab", "reset", 3)


def test_the_limits_of_logins(host, pair):
    """limits.conf(5); a class of another state directory neither replaces nor removes them."""
    where = pathlib.Path(classroom.LIMITS)
    need(where.is_dir(), f"there is no {where}", "apt-get install libpam-modules")
    lines = [f"{name} hard nproc 512" for name in ("dora", "emil")]
    with a_class(Host(host.throwaway, host.root / "other"), "--users", "bob", "--pids-limit", "99"):
        texts = [path.read_text() for path in where.glob("*.conf")]
        assert len(texts) == 2 and sum("bob hard nproc 99" in text for text in texts) == 1
    (text,) = (path.read_text() for path in where.glob("*.conf"))
    assert text.splitlines()[1:] == lines


def test_root_grades(host, pair):
    """What root sees, root records; it stays recorded when the student resets the lab."""
    dora, emil = pair
    assert {grade["passed"] for grade in graded(host).values()} == {""}
    dora.solve(1)
    assert "not have it yet" in dora.run("lab", "check", 1).stdout
    grades = graded(host)
    assert grades["dora", 1]["passed"] and not grades["emil", 1]["passed"]
    assert "the report of the class has it" in dora.run("lab", "check", 1).stdout
    dora.run("lab", "reset", 1)
    again = graded(host)
    assert again["dora", 1]["passed"] == grades["dora", 1]["passed"]
    lines = [line.split(",") for line in host.run("lab", "class", "report", "--csv").stdout.splitlines()]
    assert lines[0][:4] == ["student", "lab", "fulfilled", "rows"] and len(lines) == 1 + 2 * len(PAGES)
    table = host.run("lab", "class", "report").stdout.splitlines()
    assert table[0].split() == ["STUDENT", "01"], "only what somebody has started"
    assert table[1].startswith("dora     ok ") and table[2].startswith("emil     -")


def test_a_scene_is_graded(host, pair):
    """Lab 06 has a scene: pids in the student's environment are believed only if they are those of the student's processes."""
    dora, emil = pair
    dora.solve(6)
    assert graded(host)["dora", 6]["passed"]
    assert not graded(host)["emil", 6]["passed"]
    dora.run("lab", "reset", 6)


def test_a_students_record_is_not_believed(host, pair):
    """A seed of one's own, a record of what was passed, and a neighbour's work."""
    dora, emil = pair
    dora.run("lab", "start", 1)
    progress = pathlib.Path(dora.variables(1)["LAB_DIR"]).parent / "progress.json"
    known = json.loads(progress.read_text())
    word = known["labs"]["1"]["variables"]["WORD"]
    known["labs"]["1"].update(passed="2026-01-01T00:00:00Z", variables={"WORD": "easy"})
    known["seed"] = "mine"
    progress.write_text(json.dumps(known))
    script = "unshare --user --map-root-user --uts sh -c 'hostname NAME; exec sleep 1000' &"
    dora.do(1, script.replace("NAME", "easy"))
    wait_for(
        lambda: dora.run("lab", "check", 1, check=False).returncode == 0,
        what="their own check, which they have deceived",
    )
    assert not graded(host)["dora", 1]["passed"]
    emil.run("lab", "start", 2)
    emil.do(2, script.replace("NAME", word))
    time.sleep(0.5)
    assert not graded(host)["dora", 1]["passed"], "the neighbour's process is the neighbour's"
    dora.run("lab", "reset", 1)
    emil.run("lab", "reset", 2)


def test_a_port_that_is_taken_in_a_class(host, pair):
    """There is no other one: root knows it by the seed."""
    dora, _ = pair
    dora.run("lab", "start", 3)
    port = dora.variables(3)["PORT"]
    dora.run("lab", "reset", 3)
    server = subprocess.Popen(["python3", "-m", "http.server", "--bind", "127.0.0.1", port], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)  # fmt: skip
    try:
        wait_for(lambda: sh("ss", "-Hltn", f"sport = {port}").stdout, what="a server")
        said = dora.fails(125, "lab", "start", "3")
        assert f"port {port} is taken by root, uid 0" in said and "tell the teacher" in said
    finally:
        server.kill()
        server.wait()


def test_a_neighbour_who_takes_all_ports(host, pair):
    """Labs whose ports are in a namespace of their own do not mind."""
    dora, emil = pair
    dora.run("lab", "start", 5)
    port = dora.variables(5)["PORT"]
    dora.run("lab", "reset", 5)
    words = emil.words("python3", "-m", "http.server", "--bind", "127.0.0.1", port)
    server = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd="/")
    try:
        wait_for(lambda: sh("ss", "-Hltn", f"sport = {port}").stdout, what="a server")
        dora.run("lab", "start", 5)
        assert dora.variables(5)["PORT"] == port
        dora.run("lab", "reset", 5)
    finally:
        server.kill()
        server.wait()


def test_a_student_who_forks(host, pair):
    """They reach their limit; their neighbour and the report go on."""
    dora, emil = pair
    dora.pids = 120
    dora.run("lab", "start", 1)
    dora.do(1, "for i in $(seq 200); do sleep 1000 & done; exit 0")
    emil.solve(1)
    grades = graded(host)
    assert grades["emil", 1]["passed"]
    mine = sh("pgrep", "--uid", dora.uid, "--count").stdout
    assert 50 < int(mine) <= 120, mine
    dora.pids = 512
    dora.run("lab", "reset", 1)
    emil.run("lab", "reset", 1)
    states = sh("ps", "-U", dora.uid, "-o", "stat=,comm=", check=False).stdout.splitlines()
    assert not [line for line in states if "sleep" in line and not line.startswith("Z")]


def test_reset_where_no_process_can_be_had(host, pair):
    """A student is at the limit of processes, by processes of the lab: they are ended, and then the rest is removed."""
    dora, _ = pair
    dora.run("lab", "start", 15)
    found = dora.variables(15)
    script = "import os, time\nfor _ in range(60):\n    if not os.fork(): break\ntime.sleep(1000)"
    dora.pids = 512
    many = subprocess.Popen(dora.words(sys.executable, "-c", script), env={**dora.env, **found}, cwd="/")
    try:
        wait_for(lambda: int(sh("pgrep", "--uid", dora.uid, "--count").stdout) > 60, what="many processes")
        # the lowest with which the command itself can be executed; what an earlier test ended may still be to be reaped
        for limit in range(60, 600):
            dora.pids = limit
            done = dora.run("lab", "reset", 15, check=False)
            if done.returncode != 126:
                break
        assert done.returncode == 0 and not done.stderr, done
        assert not os.path.exists(found["LAB_DIR"])
        wait_for(lambda: not sh("pgrep", "--uid", dora.uid, "sleep", check=False).stdout, 10, "they have been reaped")
    finally:
        many.kill()
        many.wait()


#: A shell that can't fork ends; what it started stays, and so does the one around it.
BOMB = "sh -c 'while :; do sleep 1000 & done'; sleep 1000"
GREEDY = "x=aaaaaaaa; while :; do x=$x$x; done"


@on_v2
@pytest.mark.timeout(400)
def test_limits_of_a_class(host, accounts, rootfs):
    """One student forks and eats up to the limits of their pod; their neighbour, the report and rm go on."""
    limits = ("--pids-limit", "60", "--memory", "64m", "--cpus", "0.5")
    with a_class(host, "--users", accounts, "--network", "none", *limits):
        dora, emil = (ClassStudent(host, name) for name in accounts.split(","))
        sh("chmod", "-R", "a+rX", host.root / "rootfs")
        groups = [cgroup_of(host.pod(f"class-{student.name}")["pid"]).parent for student in (dora, emil)]
        for group in groups:
            found = [(group / f"{file}.max").read_text().strip() for file in ("pids", "memory", "memory.swap", "cpu")]
            assert found == ["60", str(64 * MIB), "0", "50000 100000"]
        homes = [host.root / f"root-{student.name}" for student in (dora, emil)]
        for home, student in zip(homes, (dora, emil), strict=True):
            sh("cp", "-a", rootfs, home)
            sh("chown", "-R", f"{student.uid}:{student.gid}", home)

        greedy = dora.run("join class-dora --name greedy --rootfs {} -- sh -c {}", homes[0], GREEDY, check=False)
        assert greedy.returncode == 137 and "memory" in greedy.stderr, greedy
        assert events(groups[0] / "memory.events")["oom_kill"] >= 1
        assert int((groups[0] / "memory.peak").read_text()) <= 64 * MIB
        assert host.pod("class-dora")["status"] == "running"

        dora.run("join class-dora -d --name bomb --rootfs {} -- sh -c {}", homes[0], BOMB)
        # before Linux 6.11, a fork that fails is counted where it was tried
        wait_for(lambda: events(groups[0] / "m-bomb/pids.events")["max"] > 0, 120, "the limit of processes")
        assert 55 <= int((groups[0] / "pids.current").read_text()) <= 60
        refused = dora.run("join class-dora --rootfs {} -- true", homes[0], check=False, timeout=120)
        assert refused.returncode == 125 and "Traceback" not in refused.stderr, refused
        assert emil.run("join class-emil --rootfs {} -- echo undisturbed", homes[1]).stdout == "undisturbed\n"
        emil.solve(1)
        grades = graded(host)
        assert grades["emil", 1]["passed"] and not grades["dora", 1]["passed"]
        assert {grade["trouble"] for grade in grades.values()} == {""}, "nobody was left out"
        emil.run("lab", "reset", 1)
        assert events(groups[0] / "cpu.stat")["nr_throttled"] > 0
        assert [events(groups[1] / file)[key] for file, key in (("memory.events", "oom_kill"), ("pids.events", "max"))] == [0, 0]  # fmt: skip
        assert 55 <= int((groups[0] / "pids.current").read_text()) <= 60, "rm has to end them"
    assert not any(group.exists() for group in groups) and not host.json("pod", "ls")
    assert not sh("ps", "-U", f"{dora.uid},{emil.uid}", "-o", "pid=,stat=,args=", check=False).stdout
    for student in (dora, emil):  # their notes of members that were are theirs
        student.close()


def events(file: pathlib.Path) -> dict[str, int]:
    return {key: int(value) for key, value in (line.split() for line in file.read_text().splitlines())}


def test_watch_records_what_is_short(host, pair):
    dora, _ = pair
    watch = host.background("lab", "class", "report", "--watch", stdout=subprocess.PIPE, text=True)
    try:
        dora.solve(2)
        wait_for(lambda: "has it" in dora.run("lab", "check", 2).stdout and "not have" not in dora.run("lab", "check", 2).stdout, what="a grade")  # fmt: skip
        dora.run("lab", "reset", 2)
    finally:
        watch.send_signal(2)
        out, _ = watch.communicate(timeout=30)
    assert watch.returncode == 130 and "ok " in out


def test_nothing_is_left(host, accounts):
    """Removed: pods, what was shown, the record.  An account that was there before stays as it was."""
    before = {file: pathlib.Path(file).read_text() for file in ("/etc/passwd", "/etc/subuid", "/etc/subgid")}
    with a_class(host, "--users", "dora"):
        pass
    assert {file: pathlib.Path(file).read_text() for file in before} == before
    assert not host.json("pod", "ls") and not list(host.root.glob("owned/*/class.json"))
    assert not (host.root / "lib/labs/class.json").exists()


def test_create_and_rm_at_once(host, accounts):
    """One waits for the other; nothing is left that nobody knows of."""
    for delay in (0.1, 0.5):
        create = host.background("lab", "class", "create", "--users", accounts, stdout=subprocess.DEVNULL)
        time.sleep(delay)
        removed = host.run("lab", "class", "rm", check=False)
        assert create.wait(timeout=60) == 0
        if removed.returncode:
            host.run("lab", "class", "rm")
        assert not host.json("pod", "ls") and not list(host.root.glob("owned/*/class.json"))
        host.fails(125, "lab", "class", "report")


def test_accounts_leave_no_records(host):
    """The next account gets the same uid, and must not find what the former one had."""
    with contextlib.ExitStack() as stack:
        for path in ("/etc", "/home", "/var/spool"):
            stack.enter_context(private(host, path))
        with a_class(host, "--count", 1):
            uid = pwd.getpwnam("student01").pw_uid
            assert (host.root / "owned" / str(uid)).exists() and (host.root / "users" / str(uid)).exists()
        assert not (host.root / "owned" / str(uid)).exists() and not (host.root / "users" / str(uid)).exists()


def test_subordinate_ids_where_some_reach_far_up(host):
    """The first gap is taken; a line that is none, and a range by uid, are read as shadow's tools do."""
    with contextlib.ExitStack() as stack:
        for path in ("/etc", "/home", "/var/spool"):
            stack.enter_context(private(host, path))
        sh("useradd", "--create-home", "fritz")
        text = "containers:2147483647:2147483648\nbob:x:y\nalice:100000:9900000\n"
        by_uid = f"{text}{pwd.getpwnam('fritz').pw_uid}:2000000000:65536\n"
        for before, after in ((text, f"{text}fritz:10000000:65536\n"), (by_uid, by_uid)):
            for file in ("/etc/subuid", "/etc/subgid"):
                pathlib.Path(file).write_text(before)
            with a_class(host, "--users", "fritz"):
                assert pathlib.Path("/etc/subuid").read_text() == after
            assert pathlib.Path("/etc/subuid").read_text() == before


def test_an_account_whose_processes_do_not_end(monkeypatch):
    """Root removes no home under the hands of somebody who may still change it; no command line of theirs is read."""
    commands: list[list[str]] = []

    def end_all(work: Work) -> None:
        commands.extend(process.command for process in work.processes)
        work.troubles.append("process 5 does not end (state D)")

    monkeypatch.setattr(sessions, "end_all", end_all)
    monkeypatch.setattr(classroom, "_is_ours", lambda name: True)
    monkeypatch.setattr(classroom, "_run", lambda *command: pytest.fail(" ".join(command)))
    left: list[str] = []
    classroom._userdel(State(), "nobody", {"account": True}, left)
    assert left[0].startswith("process 5") and "account nobody" in left[1] and "userdel" in left[1]
    assert commands and not any(commands)


def test_an_account_that_is_not_ours(host):
    """--count makes accounts; one that is there already is not touched, also when the rest is undone."""
    with contextlib.ExitStack() as stack:
        for path in ("/etc", "/home", "/var/spool"):
            stack.enter_context(private(host, path))
        sh("useradd", "--create-home", "student02")
        before = pathlib.Path("/etc/passwd").read_text()
        assert "there is an account student02 already" in host.fails(125, "lab", "class", "create", "--count", "3")
        assert pathlib.Path("/etc/passwd").read_text() == before and os.path.isdir("/home/student02")
        assert not os.path.exists("/home/student01")


def test_a_create_that_fails_is_undone(host, accounts):
    host.run("pod", "create", "--network", "none", "class-emil")
    assert "class-emil" in host.fails(125, "lab", "class", "create", "--users", accounts)
    host.fails(125, "lab", "class", "report")
    assert not list(host.root.glob("owned/*/class.json"))


SILENT = """
import os, socket, time
for number in range({count}):
    if os.fork():
        continue
    server = socket.create_server(("127.0.0.1", 8000 + number), backlog=64)
    time.sleep(1000)
time.sleep(1000)
"""


def test_a_student_whose_servers_do_not_answer(host, pair, monkeypatch):
    """Each of them would be asked, for a second; the neighbour's grade comes as fast as ever, and nothing piles up."""
    dora, emil = pair
    inside = f"ip link set lo up; exec {sys.executable} -c {shlex.quote(SILENT.format(count=100))}"
    words = dora.words("unshare", "--user", "--map-root-user", "--net", "sh", "-c", inside)
    hostile = subprocess.Popen(words, env={**dora.env, MARK: "11-x"}, start_new_session=True, cwd="/")
    try:
        wait_for(lambda: int(sh("pgrep", "--uid", dora.uid, "--count").stdout) > 100, what="her servers")
        emil.solve(1)
        monkeypatch.setattr(looks, "PATIENCE", 6.0)
        seen: list[int] = []
        with classroom.Report(State(str(host.root))) as report:
            for number in range(6):
                begin = time.monotonic()
                grades = {(grade.student, grade.lab): grade for grade in report.round(wait=False)}
                report.record()
                assert time.monotonic() - begin < (looks.QUICK + 2 if number == 0 else 2)
                assert grades["emil", 1].passed and not grades["emil", 1].trouble
                seen.append(len(report.looks.going))
                assert len(clients_of_root(hostile.pid)) <= 1 and threading.active_count() == 1
                time.sleep(1)
            grades = {(grade.student, grade.lab): grade for grade in report.round()}
        assert max(seen) == 1 and "look" in grades["dora", 11].trouble
        wait_for(lambda: not clients_of_root(hostile.pid), what="their end")
    finally:
        os.killpg(hostile.pid, 9)
        hostile.wait()
        sh("pkill", "-9", "--uid", dora.uid, check=False)
        emil.run("lab", "reset", 1)


def test_a_student_who_sends_without_end(host, pair, busybox):
    """The client of root's takes little of it, and ends."""
    dora, _ = pair
    script = f"ip link set lo up; while :; do cat /dev/zero | {busybox}/bin/busybox nc -l -p 80; done"
    words = dora.words("unshare", "--user", "--map-root-user", "--net", "sh", "-c", script)
    hostile = subprocess.Popen(words, env={**dora.env, MARK: "11-x"}, start_new_session=True, cwd="/", stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        wait_for(lambda: 80 in facts.listening(hostile.pid), what="her server")
        begin = time.monotonic()
        grade = graded(host)["dora", 11]
        assert time.monotonic() - begin < 15 and grade["fulfilled"] < grade["rows"]
        wait_for(lambda: not clients_of_root(hostile.pid), what="its end")
    finally:
        os.killpg(hostile.pid, 9)
        hostile.wait()


def test_a_full_disk_ends_no_report(host, pair):
    """What was seen is kept, and recorded as soon as that goes; nobody else's is lost, and it says what happens."""
    dora, _ = pair
    dora.solve(1)
    where = host.root / "lib/labs"
    before = (where / "class.json").read_text()
    sh("mount", "-t", "tmpfs", "-o", "size=16k", "none", where)
    watch = None
    try:
        (where / "class.json").write_text(before)
        sh("sh", "-c", f"cat /dev/zero >{where}/fill 2>/dev/null || true")
        assert "class.json: No space left" in host.run("lab", "class", "report", check=False).stderr
        watch = host.background("lab", "class", "report", "--watch", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # fmt: skip
        time.sleep(4)
        assert watch.poll() is None and (where / "class.json").read_text() == before
        dora.run("lab", "reset", 1)
        (where / "fill").unlink()
        wait_for(
            lambda: json.loads((where / "class.json").read_text())["students"]["dora"]["passed"], 10, what="a record"
        )
    finally:
        if watch:
            watch.send_signal(2)
            assert "class.json: No space left" in watch.communicate(timeout=30)[1]
        after = (where / "class.json").read_text()
        sh("umount", where)
    assert "1" in json.loads(after)["students"]["dora"]["passed"]


@pytest.mark.slow
@pytest.mark.skipif(not SIMULATED, reason="takes long; to enable: NSRUN_CLASS=4 (or 30)")
@pytest.mark.timeout(1500)
def test_simulated(host):
    """Accounts are made; all students work on two labs at once; the report has all of them, with times; rm removes all."""
    with contextlib.ExitStack() as stack:
        for path in ("/etc", "/home", "/var/spool"):
            stack.enter_context(private(host, path))
        before = pathlib.Path("/etc/passwd").read_text()
        with a_class(host, "--count", SIMULATED):
            names = [f"student{number:02}" for number in range(1, SIMULATED + 1)]
            students = [ClassStudent(host, name) for name in names]
            begin = time.monotonic()
            watch = host.background("lab", "class", "report", "--watch", stdout=subprocess.DEVNULL)
            try:
                with concurrent.futures.ThreadPoolExecutor(len(students)) as pool:
                    list(pool.map(work, students))
            finally:
                watch.send_signal(2)
                watch.wait(timeout=60)
            took = time.monotonic() - begin
            before_report = time.monotonic()
            grades = graded(host)
            print(
                f"\n{SIMULATED} students, two labs each: {took:.0f} s; a report: {time.monotonic() - before_report:.1f} s"
            )
            print(host.run("lab", "class", "report", timeout=120).stdout)
            for name in names:
                for number in TOGETHER:
                    assert grades[name, number]["passed"], (name, number, grades[name, number])
                    assert 0 < grades[name, number]["seconds"] <= took + 60
        assert pathlib.Path("/etc/passwd").read_text() == before
        assert not [name for name in os.listdir("/home") if name.startswith("student")]


TOGETHER = (5, 7) if 7 in PAGES and PAGES[7].of("solution", True) else (5, 3)


def work(student: ClassStudent) -> None:
    shown = student.root / "owned" / str(student.uid) / "class.json"
    for number in TOGETHER:
        student.solve(number)
        end = time.monotonic() + 300
        while str(number) not in json.loads(shown.read_text())["passed"]:
            assert time.monotonic() < end, (
                f"{student.name}, {number}: {student.run('lab', 'check', number, check=False).stdout}"
            )
            time.sleep(1)
        student.run("lab", "reset", number, timeout=120)


GRADED = [number for number, page in PAGES.items() if page.of("solution", True)]


@pytest.mark.parametrize("number", GRADED)
def test_every_lab_of_users_is_graded(host, pair, number):
    """What a student's own check accepts, root's does, too."""
    student, _ = pair
    student.solve(number)
    grade = graded(host)[student.name, number]
    student.run("lab", "reset", number)
    assert grade["passed"], grade


def test_marks_name_the_lab(host):
    """By which root knows to which lab a student's claims belong."""
    host.run("lab start 1")
    assert f"export {MARK}=01-" in host.run("lab", "env").stdout
    host.run("lab reset")
