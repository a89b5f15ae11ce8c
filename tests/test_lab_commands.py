# SPDX-License-Identifier: Apache-2.0
"""`nsrun lab` around its checks: what goes wrong, what a student does to it, what is kept and what is removed."""

from __future__ import annotations

import csv
import io
import json
import os
import pathlib
import shlex
import signal
import subprocess
import time

import pytest
from conftest import NSRUN, not_editable, sh, wait_for

from nsrun.errors import BadInput
from nsrun.teach import progress
from nsrun.teach.lab import MARK, environment


def variables(host, number: int = 1) -> dict[str, str]:
    lines = host.run("lab", "env", number).stdout.splitlines()
    found = [shlex.split(line)[1].partition("=") for line in lines if line.startswith("export ")]
    return {name: value for name, _, value in found}


def do(host, script: str, number: int = 1) -> None:
    """What a student does in the lab's shell."""
    subprocess.run(
        host.words("sh", "-c", script), env={**host.env, **variables(host, number)}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, timeout=30, check=False,
    )  # fmt: skip


def rows(host, number: int = 1) -> dict[str, bool]:
    done = host.run("lab", "check", number, "--json", check=False)
    return {row["name"]: row["ok"] for row in json.loads(done.stdout)["rows"]}


def marked(mark: str) -> list[int]:
    return [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and mark.encode() in environment(int(pid))]


SOLUTION = """unshare --uts sh -c 'hostname "$WORD"; exec sleep 1000' &"""


def test_what_is_not_started(host):
    assert "no lab is started" in host.fails(125, "lab", "check")
    for command in ("check", "hint", "reset", "watch", "env"):
        assert "nsrun lab start 2" in host.fails(125, "lab", command, "2")
    assert "nsrun lab ls" in host.fails(125, "lab", "start", "99")
    assert host.run("lab", "solution", "first").stdout


def test_completion(host):
    assert host.run("_complete", "lab", "start", "ino").stdout == "inode\n"
    assert host.run("_complete", "lab", "class", "").stdout.split() == ["create", "report", "rm"]


def test_started_twice(host):
    host.run("lab start 1")
    assert "started already" in host.fails(125, "lab", "start", "1")
    before = variables(host)
    host.run("lab reset")
    host.run("lab start 1")
    after = variables(host)
    assert after["WORD"] == before["WORD"], "the values are the student's"
    assert after[MARK] != before[MARK], "and each start has a mark of its own"
    host.run("lab reset 1")


def test_values_differ_between_students(host, alice, bob):
    words = set()
    for student in (host, alice, bob):
        student.run("lab start 1")
        words.add(variables(student)["WORD"])
        student.run("lab reset 1")
    assert len(words) == 3


def test_a_neighbours_work_does_not_count(host, alice, bob):
    for student in (alice, bob):
        student.run("lab start 1")
    do(bob, SOLUTION.replace("--uts", "--user --map-root-user --uts").replace("$WORD", variables(alice)["WORD"]))
    assert not any(rows(alice).values())
    for student in (alice, bob):
        student.run("lab reset 1")


def test_a_tool_that_is_missing(host, tmp_path):
    """It says which, and the package that has it."""
    for name in ("python3", "sh"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    text = host.fails(125, "lab", "start", "5", env={"PATH": str(tmp_path)})
    assert "can't be done here" in text and "apt-get install" in text
    listed = {
        row["number"]: row for row in json.loads(host.run("lab", "ls", "--json", env={"PATH": str(tmp_path)}).stdout)
    }
    assert any("unshare" in what for what in listed[5]["lacking"]) and listed[5]["status"] == "-"


def test_a_port_that_is_taken(host):
    """Somebody listens on it before the lab starts: the student gets another one."""
    host.run("lab start 3")
    port = variables(host, 3)["PORT"]
    host.run("lab reset 3")
    server = subprocess.Popen(["python3", "-m", "http.server", "--bind", "127.0.0.1", port], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)  # fmt: skip
    try:
        wait_for(lambda: sh("ss", "-Hltn", f"sport = {port}").stdout, what="a server")
        host.run("lab start 3")
        assert variables(host, 3)["PORT"] != port
        host.run("lab reset 3")
    finally:
        server.kill()
        server.wait()


@not_editable
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_start(host, number):
    """Ctrl-C at any moment of the start: the scene is removed, and the lab is not started."""
    for delay in (0.05, 0.1, 0.15, 0.2, 0.3):
        start = host.background(
            "lab", "start", "6", stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        time.sleep(delay)
        os.killpg(start.pid, number)
        out, err = start.communicate(timeout=30)
        assert b"Traceback" not in err, err
        host.run("pod", "prune")
        if start.returncode:
            assert start.returncode in (128 + number, -number), (start.returncode, err)  # before nsrun can catch it
            host.fails(125, "lab", "check", "6")
            assert not [pod for pod in host.json("pod", "ls") if pod["name"].startswith("lab06")]
        else:
            host.run("lab reset 6")


@pytest.mark.parametrize("number", [7, 14])
@pytest.mark.parametrize("delay", [0.05, 0.2, 0.35])
def test_two_starts_at_once(host, number, delay):
    """One is a start, the other says that there is one; a reset finds all of it."""
    starts = []
    for pause in (delay, 0):
        starts.append(
            host.background("lab", "start", number, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        )
        time.sleep(pause)
    said = [start.communicate(timeout=60)[1] for start in starts]
    assert sorted(start.returncode for start in starts) == [0, 125], said
    assert "is started already" in "".join(said)
    found = variables(host, number)
    assert found[MARK] and marked(f"{MARK}={found[MARK]}")
    host.run("lab", "reset", number)
    assert not marked(f"{MARK}={number:02}-") and not os.path.exists(found["LAB_DIR"])


def test_a_reset_beside_a_start(host):
    """It waits, and ends what was started."""
    start = host.background("lab", "start", "7", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    time.sleep(0.3)
    done = host.run("lab", "reset", "7", check=False)
    assert start.wait(timeout=30) == 0, start.stderr.read()
    start.stderr.close()
    if done.returncode:  # it came before the start
        host.run("lab", "reset", "7")
    host.fails(125, "lab", "check", "7")
    ours = f"NSRUN_ROOT={host.root}".encode()
    left = [name for name in os.listdir("/proc") if name.isdigit() and ours in environment(int(name))]
    assert not [
        name for name in left if any(line.startswith(f"{MARK}=07-".encode()) for line in environment(int(name)))
    ]


def test_a_start_that_lasts(host):
    """Who does not want to wait for it is told what to do."""
    host.run("lab start 1")
    where = pathlib.Path(variables(host)["LAB_DIR"]).parent
    import fcntl

    with open(where / "01.lock") as held, pytest.raises(BadInput, match="another command"):
        fcntl.flock(held, fcntl.LOCK_EX)
        with progress.alone(f"{where}/01.lock", "another command", 0.1):
            pass
    host.run("lab reset 1")


def test_a_lab_from_the_shell_of_another(host):
    """Its processes descend from the other's shell, and are not the other's."""
    host.run("lab start 1")
    host.run("lab start 2")
    second = variables(host, 2)
    do(host, f"env {MARK}={second[MARK]} sh -c 'sleep 1000 & exec sleep 1000' & sleep 1000 &")
    wait_for(lambda: len(marked(f"{MARK}={second[MARK]}")) == 2, what="they run")
    first = variables(host)[MARK]
    host.run("lab reset 1")
    assert not marked(f"{MARK}={first}") and len(marked(f"{MARK}={second[MARK]}")) == 2
    host.run("lab reset 2")
    assert not marked(f"{MARK}={second[MARK]}")


def test_asked_from_within(host, alice):
    """In a namespace of the lab's own nothing is seen as it is; it says so, and where to ask, and changes nothing."""
    for who, how in (
        (host, "unshare --uts"),
        (host, "unshare --pid --fork --mount-proc"),
        (alice, "unshare -Ur --uts"),
        (alice, "unshare -Ur"),
    ):
        who.run("lab start 1")
        found = variables(who)
        words = [*how.split(), NSRUN, "lab"]
        for command in ("check", "ls", "start 2", "reset", "hint", "report", "env"):
            done = subprocess.run(
                who.words(*words, *command.split()),
                env={**who.env, **found},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 125 and "lab 01 was started" in done.stderr, (command, done)
            assert "another shell" in done.stderr and not done.stdout
        assert variables(who) == found and who.run("lab", "check", check=False).returncode == 1
        who.run("lab reset")
    bare = {name: value for name, value in alice.env.items() if name not in ("NSRUN_ROOT", MARK)}
    words = alice.words("unshare", "-Ur", NSRUN, "lab", "ls")
    done = subprocess.run(words, env=bare, capture_output=True, text=True, check=False)
    assert done.returncode == 125 and "only in a user namespace" in done.stderr, done


def test_a_pod_of_another_name(host):
    """Its members are the lab's and are removed as a whole; the pod may be older than the lab, so it is named."""
    host.run("lab start 1")
    do(host, f"{NSRUN} pod create --network none other && {NSRUN} join other -d --name one -- sleep 1000")
    assert [member["status"] for member in host.json("ls", "-a")] == ["running"]
    done = host.run("lab", "reset", check=False)
    assert done.returncode == 1 and "nsrun pod rm --force other removes it" in done.stderr, done
    assert done.stderr.count("left as it is") == 1 and host.json("ls", "-a") == []
    host.run("pod rm --force other")


def test_reset_where_the_path_has_a_link(host, tmp_path):
    (tmp_path / "link").symlink_to(host.root)
    env = {"NSRUN_ROOT": str(tmp_path / "link")}
    host.run("lab start 1", env=env)
    where = variables(host)["LAB_DIR"]
    do(host, 'mkdir "$LAB_DIR/m" && mount -t tmpfs none "$LAB_DIR/m"')
    assert f" {os.path.realpath(where)}/m " in pathlib.Path("/proc/thread-self/mountinfo").read_text()
    assert host.run("lab reset 1", env=env).stderr == ""
    assert not os.path.exists(where)


def test_reset_that_leaves_something(host, alice):
    """A mount that is not hers to remove: it says so, and keeps what is below it."""
    alice.run("lab start 1")
    where = pathlib.Path(variables(alice)["LAB_DIR"])
    (where / "m").mkdir()
    sh("mount", "-t", "tmpfs", "none", where / "m")
    try:
        (where / "m/kept").touch()
        done = alice.run("lab", "reset", "1", check=False)
        assert done.returncode == 1 and f"left as it is: {where}/m is mounted" in done.stderr
        assert "apart from what is left" in done.stdout and (where / "m/kept").exists()
    finally:
        sh("umount", where / "m")
        sh("rm", "-rf", where)


def test_killed_start(host):
    """SIGKILL leaves the scene as it was then; reset removes it, and so does the next start."""
    for delay, next_command in ((0.15, "lab start 6"), (0.25, "lab reset 6"), (0.3, "lab start 6")):
        start = host.background(
            "lab", "start", "6", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(delay)
        os.killpg(start.pid, signal.SIGKILL)
        start.wait(timeout=30)
        done = host.run(*next_command.split(), check=False)
        assert done.returncode == 0 or "not started" in done.stderr or "started already" in done.stderr, done.stderr
        host.run("lab reset 6", check=False)
        assert not [pod for pod in host.json("pod", "ls") if pod["name"].startswith("lab06")]


def test_reset_touches_nothing_else(host):
    """Who only shares a namespace with the lab is left, and reported."""
    host.run("lab start 1")
    do(host, SOLUTION)
    wait_for(lambda: all(rows(host).values()), what="the solution")
    mark = f"{MARK}={variables(host)[MARK]}"
    pid = marked(mark)[-1]
    clean = {name: value for name, value in host.env.items() if name != MARK}
    other = subprocess.Popen(["nsenter", "--target", str(pid), "--uts", "sleep", "1000"], env=clean)
    try:
        own = os.stat("/proc/self/ns/uts").st_ino
        wait_for(lambda: os.stat(f"/proc/{other.pid}/ns/uts").st_ino != own, what="nsenter")
        done = host.run("lab reset", check=False)
        assert done.returncode == 1 and "apart from what is left" in done.stdout
        assert f"process {other.pid} (sleep 1000) is in the lab's uts namespace" in done.stderr
        assert other.poll() is None and not marked(mark)
    finally:
        other.kill()
        other.wait()


def test_reset_ends_what_forks(host):
    """A student's processes that start others all the time, and do not end when asked."""
    host.run("lab start 1")
    mark = f"{MARK}={variables(host)[MARK]}"
    do(
        host,
        "trap '' TERM INT HUP; (while :; do sleep 3 & sleep 0.02; done) & (setsid sh -c 'while :; do sleep 3 & sleep 0.02; done') &",
    )
    wait_for(lambda: len(marked(mark)) > 20, what="many processes")
    assert host.run("lab reset").stderr == ""
    assert not marked(mark)


def test_reset_removes_what_is_mounted_in_its_directory(host):
    host.run("lab start 1")
    where = variables(host)["LAB_DIR"]
    do(
        host,
        'mkdir -p "$LAB_DIR/a b" && mount -t tmpfs none "$LAB_DIR/a b"; ln -s /etc "$LAB_DIR/etc"; mkdir "$LAB_DIR/dir"',
    )
    assert f"{where}/a\\040b" in pathlib.Path("/proc/thread-self/mountinfo").read_text()
    assert host.run("lab reset").stderr == ""
    assert not os.path.exists(where) and os.path.exists("/etc/passwd")


def test_files_of_a_student_prove_nothing(host, alice):
    """Fake programs in PATH, a fake record of progress, and a process that calls itself something else."""
    alice.run("lab start 1")
    found = variables(alice)
    fake = alice.home / "bin"
    fake.mkdir()
    for name in ("nsenter", "uname", "hostname", "unshare"):
        (fake / name).write_text(f"#!/bin/sh\necho {found['WORD']}\n")
        (fake / name).chmod(0o755)
    do(alice, f'cp "$(command -v sleep)" "$HOME/bin/{found["WORD"]}"; "$HOME/bin/{found["WORD"]}" 1000 &')
    assert not any(json.loads(alice.run("lab", "check", "1", "--json", check=False, env={"PATH": f"{fake}:{os.environ['PATH']}"}).stdout)["rows"][i]["ok"] for i in (0, 1))  # fmt: skip
    record = pathlib.Path(found["LAB_DIR"]).parent / "progress.json"
    known = json.loads(record.read_text())
    known["labs"]["1"]["passed"] = "2026-01-01T00:00:00Z"
    record.write_text(json.dumps(known))
    assert alice.run("lab", "check", "1", check=False).returncode == 1
    alice.run("lab reset 1")


def test_progress_that_is_damaged(host):
    host.run("lab start 1")
    record = pathlib.Path(variables(host)["LAB_DIR"]).parent / "progress.json"
    good = record.read_text()
    for bad in ("", "{", "[]", '{"seed": 5, "labs": {}}', '{"seed": "x", "labs": {"1": {"hints": "many"}}}'):
        record.write_text(bad)
        assert "is damaged" in host.fails(125, "lab", "check"), bad
    for key in ("variables", "home"):
        known = json.loads(good)
        del known["labs"]["1"][key]
        record.write_text(json.dumps(known))
        for command in ("check", "env", "hint", "reset"):
            assert "is damaged" in host.fails(125, "lab", command, "1")
    record.write_text(json.dumps({**json.loads(good), "current": 77}))
    assert "no lab is started" in host.fails(125, "lab", "check")
    record.write_text(good)
    host.run("lab reset 1")


def test_a_full_disk(host):
    """The rows are printed, what is recorded stays as it was, and the command says what it could not write."""
    host.run("lab start 1")
    where = pathlib.Path(variables(host)["LAB_DIR"]).parent
    before = (where / "progress.json").read_text()
    sh("mount", "-t", "tmpfs", "-o", "size=16k", "none", where)
    try:
        (where / "progress.json").write_text(before)
        sh("sh", "-c", f"cat /dev/zero >{where}/fill 2>/dev/null || true")
        done = host.run("lab", "check", check=False)
        assert done.returncode == 125 and "ENOSPC" in done.stderr and "NO  own" in done.stdout
        assert (where / "progress.json").read_text() == before
    finally:
        sh("umount", where)
    host.run("lab reset 1")


def test_a_checker_that_is_killed(host):
    host.run("lab start 1")
    for delay in (0.02, 0.05, 0.08, 0.1):
        check = host.background("lab", "check", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(delay)
        check.kill()
        check.wait(timeout=30)
        assert not rows(host)["own"]
    host.run("lab reset 1")


def test_watch(host, tmp_path):
    """It says what changed, and ends when all rows are fulfilled."""
    host.run("lab start 1")
    told = tmp_path / "told"
    with told.open("w") as file:
        watch = host.background("lab", "watch", stdout=file)
    try:
        wait_for(lambda: "NO  own" in told.read_text(), what="the first check")
        do(host, "unshare --uts sleep 1000 &")
        wait_for(lambda: "ok  own" in told.read_text(), what="the process")
        do(host, SOLUTION)
        assert watch.wait(timeout=30) == 0
    finally:
        watch.kill()
    out = told.read_text()
    assert "lab 1 is solved" in out
    assert [out.count(f"{word} own") for word in ("NO ", "ok ")] == [1, 2]
    assert {row["lab"]: row["status"] for row in json.loads(host.run("lab", "report", "--json").stdout)}[1] == "passed"
    watch = host.background("lab", "watch", stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert watch.wait(timeout=30) == 0
    watch.stderr.close()
    host.run("lab reset 1")


def test_watch_ends_with_the_lab(host):
    host.run("lab start 1")
    watch = host.background("lab", "watch", stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    time.sleep(0.5)
    host.run("lab reset 1")
    _, err = watch.communicate(timeout=30)
    assert watch.returncode == 125 and "not started" in err


def test_hints_come_in_steps(host):
    host.run("lab start 2")
    for count in (1, 2, 3, 3):
        lines = [line for line in host.run("lab", "hint").stdout.splitlines() if not line.startswith(" ")]
        assert [line.partition(":")[0] for line in lines] == [f"{n} of 3" for n in range(1, count + 1)]
    host.run("lab", "solution", "2")
    row = next(csv.DictReader(io.StringIO(host.run("lab", "report", "--csv").stdout.split("\n", 2)[0] + "\n" + host.run("lab", "report", "--csv").stdout.split("\n")[2])))  # fmt: skip
    assert (row["lab"], row["hints"], row["solution"], row["status"]) == ("2", "3", "True", "started")
    host.run("lab reset 2")


IN_POD = """
nsrun lab start 1 >/dev/null && eval "$(nsrun lab env)" || exit
unshare --uts sh -c 'hostname "$WORD"; exec sleep 1000' &
for i in $(seq 50); do nsrun lab check && break; sleep 0.1; done
nsrun lab reset
"""


def test_in_an_owned_pod(host, alice, owned):
    """A member without the power to make namespaces is told how to get it; with it, the lab is as everywhere else."""
    where = alice.home / "state"
    where.mkdir()
    os.chown(where, alice.uid, alice.uid)
    path = f"{os.path.dirname(NSRUN)}:{os.environ['PATH']}"
    words = ("-e", f"NSRUN_ROOT={where}", "-e", f"PATH={path}", "--", "sh", "-c", IN_POD)
    refused = alice.run("join", owned, *words, check=False)
    assert "can't be done here" in refused.stderr and "--cap-add SYS_ADMIN" in refused.stderr, refused
    done = alice.run("join", owned, "--cap-add", "SYS_ADMIN", "--security-opt", "seccomp=unconfined", *words)
    assert "lab 1 is solved" in done.stdout and "lab 1 is reset" in done.stdout and not done.stderr, done


def test_shell(host, terminal):
    """A prompt that names the lab, and its variables; the lab stays started when the shell ends."""
    shell = terminal("lab", "start", "1", "--shell")
    shell.expect(r"\(lab 01\)")
    shell.type("echo word=$WORD mark=$NSRUN_LAB\n")
    assert shell.expect(r"word=\w+-\d+ mark=01-[0-9a-f]{16}")
    shell.type("nsrun lab check\n")
    shell.expect("NO  own")
    shell.expect(r"\(lab 01\)")
    shell.type(SOLUTION + "\n")
    shell.expect(r"\(lab 01\)")
    shell.type("until nsrun lab check; do sleep 0.1; done\n")
    shell.expect("lab 1 is solved")
    shell.type("nsrun lab reset; echo still $((40 + 2))\n")
    shell.expect("lab 1 is reset")
    shell.expect("still 42")


def test_a_second_shell(host, terminal):
    host.run("lab start 1")
    shell = terminal("lab", "start", "1", "--shell")
    shell.expect(r"\(lab 01\)")
    shell.type(f"echo {MARK}=$NSRUN_LAB\n")
    shell.expect(f"{MARK}={variables(host)[MARK]}")
    host.run("lab reset 1")
    wait_for(lambda: shell.process.poll() is not None, what="the end of a shell of the lab")
