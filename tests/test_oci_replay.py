# SPDX-License-Identifier: Apache-2.0
"""What nsrun-oci does without Python, by the plan that `create` leaves (csrc/oci.c), is what Python does.

Each story is told twice, once with NSRUN_REPLAY=0 and once as engines call it, and the two are compared: exit status, output, what
is written, cgroups, and what became of the process.
"""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time
from typing import Any

import pytest
from conftest import need, not_editable, wait_for
from oci import SLEEP, Runtime, runtime
from test_oci_faults import descendants_in, nothing_left

pytestmark = [pytest.mark.live, not_editable]


@pytest.fixture
def r(host, busybox):
    with runtime(host, busybox, "nsrun-oci", hybrid=True) as made:
        yield made


def told(r: Runtime, replay: str, *words: object, **kwargs: Any) -> tuple[int, str, str]:
    done = r.call(*words, env={**r.env, "NSRUN_REPLAY": replay}, **kwargs)
    return done.returncode, done.stdout, done.stderr


def must(r: Runtime, *words: object, **kwargs: Any) -> tuple[int, str, str]:
    """The command as the front alone does it."""
    found = told(r, "must", *words, **kwargs)
    assert "nothing to replay" not in found[2], (words, found)
    return found


def pythons(r: Runtime, *words: object, **kwargs: Any) -> None:
    """The front leaves this one to Python."""
    assert told(r, "must", *words, **kwargs) == (125, "", "nsrun-oci: nothing to replay\n"), words


def plain(text: str, pid: int) -> str:
    """Without what differs from one container to the next."""
    return re.sub(r"\d{4}-\d\d-\d\dT[0-9:.]+Z", "TIME", re.sub(rf"\b{pid}\b", "PID", text))


def picture(r: Runtime, pid: int) -> object:
    """What is to be seen of a container: its files, its cgroups, its process."""
    files = sorted(path.name for path in (r.state / "c").iterdir()) if (r.state / "c").exists() else None
    try:
        lives = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        program = os.readlink(f"/proc/{pid}/exe") if lives else ""
    except OSError:
        lives, program = False, ""
    return (
        files and [name for name in files if name not in ("plan", "exec")],
        r.cgroups("c"),
        lives,
        os.path.basename(program),
    )


def is_ready(pid: int) -> bool:
    """Whether the shell has set its traps, or there is none."""
    try:
        caught = re.findall(r"^SigCgt:\s+(\w+)", pathlib.Path(f"/proc/{pid}/status").read_text(), re.M)
    except OSError:
        return True
    return not caught or bool(int(caught[0], 16) & 1 << (signal.SIGUSR1 - 1))


LOOK = "id; pwd; env; ulimit -n; grep -E 'Cap|NoNew|Seccomp|Umask' /proc/self/status; cat /proc/self/cgroup /proc/self/oom_score_adj; ls /proc/self/fd"
#: What engines, and others, write for --process: the container's own process with other members, or a text.
FILES: dict[str, Any] = {
    "own.json": {"args": ["sh", "-c", LOOK]},
    "env.json": {"args": ["sh", "-c", LOOK], "env": ["PATH=/bin", "A=\"\\\t<&>\x7f", "HOME=/h", "E="]},
    "noenv.json": {"args": ["/bin/env"], "env": None},
    "user.json": {"args": ["sh", "-c", LOOK], "user": {"uid": 1, "gid": 2, "additionalGids": [3], "umask": 23}, "cwd": "/tmp"},
    "caps.json": {"args": ["sh", "-c", LOOK], "capabilities": {"bounding": ["CAP_CHOWN"], "ambient": []}, "noNewPrivileges": False},
    "limits.json": {"args": ["sh", "-c", LOOK], "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88}], "oomScoreAdj": 300, "unknown": [{}]},
    "exit.json": {"args": ["sh", "-c", "echo out; echo err >&2; exit 41"]},
    "killed.json": {"args": ["sh", "-c", "kill -9 $$"]},
    "unicode.json": {"args": ["echo", "\u00e9\u20ac\U0001f600"]},
    "sleep.json": {"args": ["sleep", "1000"]},
    "nosuch.json": {"args": ["/nosuch"]},
    "noargs.json": {"args": []},
    "nul.json": {"args": ["a\0b"]},
    "relative.json": {"args": ["true"], "cwd": "tmp"},
    "cap.json": {"args": ["true"], "capabilities": {"bounding": ["CAP_NOPE"]}},
    "terminal.json": {"args": ["tty"], "terminal": True, "consoleSize": {"height": 33, "width": 77}},
    "text.json": "{", "two.json": '{"args":["true"],"cwd":"/"}{}', "list.json": "[]", "empty.json": "", "latin.json": b'{"args":["\xe9"],"cwd":"/"}',
}  # fmt: skip

Story = list[Any]  # command lines, and "reap"
STORIES: dict[str, Story] = {
    "a life": [("state", "c"), ("start", "c"), ("state", "c"), ("exec", "c", "echo", "hi"), ("kill", "c", "KILL"), "reap", ("state", "c"), ("delete", "c")],
    "a life with options": [
        ("--log", "LOG", "--log-format", "json", "--systemd-cgroup", "start", "c"), ("state", "--log=LOG", "c"), ("kill", "c", "15"), "reap",
        ("--log-format=text", "delete", "--force", "c"),
    ],
    "what is wrong": [
        ("start", "nobody"), ("start",), ("start", "c", "d"), ("start", "--nope", "c"), ("kill", "c", "NOPE"), ("kill", "c", "0"), ("kill", "c", "65"),
        ("start", "c"), ("start", "c"), ("delete", "c"), ("exec", "c", "/nosuch"), ("exec", "c"), ("exec", "nobody", "true"), ("state", "c/d"),
        ("kill", "c"), "reap", ("kill", "c"), ("start", "c"), ("exec", "c", "true"), ("delete", "c"), ("delete", "c"), ("delete", "--force", "c"),
    ],
    "created": [("exec", "c", "sh", "-c", "exit 5"), ("kill", "c", "KILL"), "reap", ("delete", "c")],
    "deleted as created": [("delete", "c")],
    "deleted as running": [("start", "c"), ("delete", "-f", "c")],
    "paused": [
        ("start", "c"), ("pause", "c"), ("state", "c"), ("exec", "c", "true"), ("delete", "c"), ("kill", "c", "USR2"), ("delete", "--force", "c"),
    ],
    "paused as created": [("pause", "c"), ("start", "c"), ("state", "c"), ("resume", "c"), ("start", "c"), ("delete", "--force", "c")],
    "an exec": [
        ("start", "c"), ("exec", "c", "sh", "-c", "id; pwd; env; ulimit -n; cat /proc/self/status | grep -E 'Cap|NoNew|Seccomp'"),
        ("exec", "c", "sh", "-c", "echo out; echo err >&2; kill -9 $$"), ("exec", "c", "cat", "/proc/self/cgroup"), ("exec", "c", "ls", "/proc/self/fd"),
        ("exec", "c", "sh", "-c", "cat /proc/self/oom_score_adj; readlink /proc/self/ns/pid | cut -c1-3"), ("exec", "c", "echo", "--", "-x"),
        ("exec", "--cwd", "/tmp", "c", "pwd"), ("exec", "-e", "A=1", "c", "sh", "-c", "echo $A"), ("delete", "--force", "c"),
    ],
    "an exec by a file": [
        *((*engine, "own.json", "c") for engine in (("exec", "--process"), ("exec", "--detach", "--pid-file", "PIDFILE", "--process"))), ("start", "c"),
        *(("exec", "--process", file, "c") for file in FILES for _ in range(2)),
        ("exec", "--preserve-fds", "0", "--process=own.json", "c"), ("exec", "--process", "own.json", "--process", "exit.json", "c"),
        ("exec", "--detach", "--pid-file=PIDFILE", "--process", "sleep.json", "c"), ("exec", "-d", "--pid-file", "PIDFILE", "c", "sleep", "1000"),
        ("--log", "LOG", "--log-format", "json", "exec", "--process", "nosuch.json", "--detach", "--pid-file", "PIDFILE", "c"),
        ("exec", "--process", "own.json", "--pid-file", "/nosuch/pid", "c"), ("exec", "--process", "own.json", "c", "true"), ("exec", "--process=", "c", "true"),
        ("exec", "--process", "none.json", "c"), ("exec", "--process", "/", "c"), ("exec", "--process", "own.json", "--tty", "c"), ("exec", "--process", "own.json"),
        ("exec", "--process", "own.json", "--console-socket", "/nosuch", "c"), ("exec", "--process", "own.json", "--preserve-fds", "90", "c"),
        ("pause", "c"), ("exec", "--process", "own.json", "c"), ("resume", "c"), ("delete", "--force", "c"), ("exec", "--process", "own.json", "c"),
    ],
    "signals": [("start", "c"), ("kill", "--all", "c", "CONT"), ("kill", "c", "USR1"), "reap", ("delete", "c")],
    "kills by name": [("start", "c"), ("kill", "c", "SIGURG"), ("kill", "c", "sigcont"), ("kill", "c", "SIGTERM"), "reap", ("delete", "c")],
}  # fmt: skip


def write_files(r: Runtime, document: dict[str, Any]) -> None:
    """As Go's encoder does: without blanks, and with <, > and & escaped."""
    for name, change in FILES.items():
        data = change
        if isinstance(change, dict):
            text = json.dumps({**document["process"], **change}, separators=(",", ":"), ensure_ascii=False) + "\n"
            data = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
        (r.base / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def in_cgroup(r: Runtime, pid: int) -> tuple[str, str]:
    """What a detached process is, when it has become that, and where."""
    wait_for(lambda: "nsrun-init" not in os.readlink(f"/proc/{pid}/exe"))
    return (
        pathlib.Path(f"/proc/{pid}/cmdline").read_text(),
        re.sub(r"(?m)^\d+:", "", pathlib.Path(f"/proc/{pid}/cgroup").read_text()),
    )


def tell(r: Runtime, story: Story, replay: str, document: dict[str, Any]) -> list[object]:
    pid = r.create("c", document)
    write_files(r, document)
    pid_file = r.base / "execpid"
    places = {"LOG": str(r.base / "log"), "PIDFILE": str(pid_file)}
    found: list[object] = [picture(r, pid)]
    for words in story:
        pid_file.unlink(missing_ok=True)
        if words == "reap":
            found.append(r.reap(pid))
        else:
            given = [re.sub("^(--pid-file=)PIDFILE$", rf"\1{pid_file}", places.get(word, word)) for word in words]
            code, out, err = told(r, replay, *given, cwd=r.base)
            found.append((words, code, plain(out, pid), plain(err, pid)))
        found.append(sorted(path.name for path in r.base.iterdir() if "pid" in path.name))
        if pid_file.exists():
            started = int(pid_file.read_text())
            found.append((pid_file.stat().st_mode, os.stat(f"/proc/{started}").st_uid))
            if "sleep" in str(words):
                found.append(in_cgroup(r, started))
        if words == ("start", "c") and code == 0:
            wait_for(lambda: is_ready(pid))
        if "kill" not in words:  # which takes its time
            found.append(picture(r, pid))
    nothing_left(r)
    r.pids.clear()
    return found


@pytest.mark.parametrize("name", STORIES)
def test_python_and_the_front_tell_the_same_story(r, name):
    document = r.config(
        "sh", "-c", "trap 'exit 3' TERM; trap 'exit 4' USR1; trap '' USR2; while :; do sleep 0.05; done"
    )
    document["process"]["oomScoreAdj"] = 100
    document["annotations"] = {"a": '"pid": 0,\n  "status": ""'}
    document["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["swapon"], "action": "SCMP_ACT_ERRNO"}]}  # fmt: skip
    assert tell(r, STORIES[name], "0", document) == tell(r, STORIES[name], "1", document)


def test_the_usual_life_needs_no_python(r):
    pid = r.create("c", None, *SLEEP)
    created = json.loads(must(r, "state", "c")[1])
    assert (created["status"], created["pid"], created["id"]) == ("created", pid, "c")
    assert must(r, "start", "c") == (0, "", "")
    assert must(r, "exec", "c", "sh", "-c", "hostname; exit 9") == (9, "box\n", "")
    assert json.loads(must(r, "state", "c")[1]) == {**created, "status": "running"}
    assert must(r, "kill", "c", "KILL") == (0, "", "")
    assert r.reap(pid) == -9
    assert json.loads(must(r, "state", "c")[1]) == {**created, "status": "stopped", "pid": 0}
    assert must(r, "delete", "c") == (0, "", "")
    assert not r.cgroups("c") and not (r.state / "c").exists()


ENGINE = ("--log", "LOG", "--log-format", "json", "exec", "--process")


def test_an_exec_by_a_file_needs_no_python(r):
    """As containerd and podman call it: one like the container's own at once, another one from the second time on."""
    document = r.config(*SLEEP)
    r.create("c", document)
    must(r, "start", "c")
    write_files(r, document)
    pid_file = r.base / "execpid"

    def words(name: str, *options: str) -> list[str]:
        return [str(r.base / "log") if word == "LOG" else word for word in (*ENGINE, str(r.base / name), *options, "c")]

    for name in ("own.json", "env.json", "exit.json", "sleep.json"):
        assert must(r, *words(name, "--detach", "--pid-file", str(pid_file)))[0] == 0
        started = int(pid_file.read_text())
        assert not [path for path in pid_file.parent.iterdir() if path.name.startswith(".")]
        if name == "sleep.json":
            assert in_cgroup(r, started)[0] == "sleep\x001000\0"
            os.kill(started, signal.SIGKILL)
        assert r.reap(started) == {"own.json": 0, "env.json": 0, "exit.json": 41, "sleep.json": -9}[name]
    assert must(r, *words("exit.json")) == (41, "out\n", "err\n")
    out = must(r, *words("env.json"))[1]
    assert {'A="\\\t<&>\x7f', "HOME=/h", "E="} < set(out.splitlines()) and "HOME=/root" in must(r, *words("own.json"))[
        1
    ]
    for name in ("user.json", "caps.json", "limits.json"):
        pythons(r, *words(name))
        code, out, err = told(r, "1", *words(name))
        assert (code, err) == (0, ""), name
        assert must(r, *words(name)) == (code, out, err), name
        assert must(r, *words("exit.json"))[0] == 41
    assert b"PATH=" not in (r.state / "c/exec").read_bytes()  # the environment of an exec is written nowhere
    for name in (
        "noenv.json",
        "unicode.json",
        "terminal.json",
        "noargs.json",
        "nul.json",
        "text.json",
        "two.json",
        "list.json",
        "empty.json",
        "latin.json",
        "nosuch.json",
    ):
        told(r, "1", *words(name))
        pythons(r, *words(name))
    os.mkfifo(r.base / "fifo")
    own = str(r.base / "own.json")
    for some in (
        ("--process", "-"), ("--process", str(r.base / "fifo")), ("--process", own, "--pid-file", "relative"), ("--process", own, "--pid-file", "/run/../x"),
        ("--process", own, "--pid-file", "/run/"), ("--process", own, "--preserve-fds", "1"), ("--process", own, "--tty"), ("--process", own, "--console-socket", "/x"),
        ("--process", own, "--user", "1"), ("--process", own, "--cap", "CHOWN"), ("--process", own, "--apparmor", "x"), ("--process", own, "--ignore-paused"),
    ):  # fmt: skip
        pythons(r, "exec", *some, "c")
    r.env["LISTEN_FDS"] = "1"
    pythons(r, *words("own.json"))
    del r.env["LISTEN_FDS"]
    r.ok("pause", "c")
    pythons(r, *words("own.json"))


def test_a_home_is_looked_up_when_the_passwd_has_changed(r):
    root = r.base / "root"
    subprocess.run(["cp", "-a", r.rootfs, root], check=True)
    (root / "etc/passwd").write_text("root:x:0:0::/one:/bin/sh\n")
    time.sleep(1.1)  # a file that has just been changed is no witness
    document = r.config(*SLEEP)
    document["root"]["path"] = str(root)
    r.create("c", document)
    must(r, "start", "c")
    file = r.base / "home.json"
    file.write_text(json.dumps({**document["process"], "args": ["sh", "-c", "echo $HOME"]}, separators=(",", ":")))
    assert must(r, "exec", "--process", file, "c") == (0, "/one\n", "")
    (root / "etc/passwd").write_text("root:x:0:0::/two:/bin/sh\n")
    pythons(r, "exec", "--process", file, "c")
    assert told(r, "1", "exec", "--process", file, "c") == (0, "/two\n", "")
    time.sleep(1.1)
    assert told(r, "1", "exec", "--process", file, "c") == (0, "/two\n", "")
    assert must(r, "exec", "--process", file, "c") == (0, "/two\n", "")
    (root / "etc/passwd").unlink()
    assert told(r, "1", "exec", "--process", file, "c") == (0, "/\n", "")
    assert must(r, "exec", "--process", file, "c") == (0, "/\n", "")


def test_others_may_work_on_a_container_while_an_exec_runs(r):
    """Whoever does it holds the lock of the container only until the process is made."""
    r.running("c")
    for replay in ("0", "must"):
        command = r.words(r.program, f"--root={r.state}", "exec", "c", "sh", "-c", "echo ready; exec sleep 1000")
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env={**r.env, "NSRUN_REPLAY": replay})  # fmt: skip
        assert child.stdout and child.stdout.readline() == "ready\n"
        assert must(r, "exec", "c", "true")[0] == 0
        assert must(r, "kill", "c", "18")[0] == 0  # SIGCONT
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=20) == 143


def test_what_is_pythons(r):
    """What the plan does not know, or where something is not as it was."""
    pid = r.create("c", None, *SLEEP)
    for words in (
        ("create", "c"), ("list",), ("ps", "c"), ("--version",), ("state", "--debug", "c"), ("state", "-x", "c"), ("state",), ("state", "c", "d"), ("state", "./c"),
        ("--log-format", "xml", "state", "c"), ("--root", f"{r.state}/", "state", "c"), ("--root", f"/proc/self/root{r.state}", "state", "c"), ("kill", "--all", "c"),
        ("kill", "c", "RTMIN+1"), ("kill", "c", "99"), ("exec", "--tty", "c", "true"), ("exec", "c"), ("exec", "c", "--", "true"), ("exec", "c", "/nosuch"), ("delete", "--force", "nobody"),
        ("pause", "c"), ("start", "--", "c"),
    ):  # fmt: skip
        pythons(r, *words)
    for name, change, back in (
        ("state", lambda: os.utime(r.state / "c/state"), None),
        ("config", lambda: os.utime(r.state / "c/config"), None),
        ("plan", lambda: (r.state / "c/plan").chmod(0o644), lambda: (r.state / "c/plan").chmod(0o600)),
        ("directory", lambda: (r.state / "c").chmod(0o770), lambda: (r.state / "c").chmod(0o700)),
        ("owner", lambda: os.chown(r.state / "c", 12345, 0), lambda: os.chown(r.state / "c", 0, 0)),
        ("root", lambda: r.state.chmod(0o777), lambda: r.state.chmod(0o711)),
        ("root's owner", lambda: os.chown(r.state, 12345, 0), lambda: os.chown(r.state, 0, 0)),
    ):
        if back:
            must(r, "state", "c")
        kept = os.stat(r.state / "c" / name) if back is None else None
        change()
        pythons(r, "state", "c")
        if back:
            back()
        elif kept:
            os.utime(r.state / "c" / name, ns=(kept.st_atime_ns, kept.st_mtime_ns))  # but not the time of the change
            pythons(r, "state", "c")
            r.ok("delete", "--force", "c")
            pid = r.create("c", None, *SLEEP)
    data = bytearray((r.state / "c/plan").read_bytes())
    data[-1] ^= 1
    (r.state / "c/plan").write_bytes(data)
    pythons(r, "state", "c")
    assert r.status("c")["pid"] == pid


def test_the_state_of_another_boot_and_of_another_pid_namespace(r):
    pid = r.create("c", None, *SLEEP)
    other = r.base / "boot"
    other.write_text("00000000-0000-4000-8000-000000000000\n")
    r.run("mount", "--bind", other, "/proc/sys/kernel/random/boot_id")
    for words in (("state", "c"), ("start", "c"), ("kill", "c"), ("delete", "--force", "c"), ("exec", "c", "true")):
        pythons(r, *words)
    r.run("umount", "/proc/sys/kernel/random/boot_id")
    inner = ["unshare", "--pid", "--fork", "--mount-proc", r.program, f"--root={r.state}", "kill", "c", "KILL"]
    done = r.run(*inner, check=False)
    assert done.returncode == 1 and "another PID or time namespace" in done.stderr
    assert must(r, "state", "c")[0] == 0 and os.path.exists(f"/proc/{pid}/exe")


@pytest.mark.parametrize("kind, verb", [("startContainer", "start"), ("poststart", "start"), ("poststop", "delete")])
def test_hooks_are_pythons(r, kind, verb):
    document = {**r.config(*SLEEP), "hooks": {kind: [{"path": "/bin/sh", "args": ["sh", "-c", "exit 0"]}]}}
    r.create("c", document)
    pythons(r, *[verb, "--force", "c"][:: 2 if verb == "start" else 1])
    must(r, "state", "c")
    r.ok("start", "c")
    assert must(r, "exec", "c", "echo", "x") == (0, "x\n", "")


def test_a_container_that_is_busy_is_waited_for(r):
    """By Python, which says so in the end."""
    import fcntl

    r.create("c", None, *SLEEP)
    held = os.open(r.state / "c", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    for words in (("start", "c"), ("kill", "c", "9"), ("delete", "c"), ("exec", "c", "true")):
        pythons(r, *words)
    assert must(r, "state", "c")[0] == 0
    os.close(held)


def test_a_pid_that_another_has_now_gets_no_signal(r):
    """The start time in the plan is that of the container's process."""
    pid = r.running("c", "sleep", "1000")
    r.ok("kill", "c", "KILL")
    r.reap(pid)
    child = subprocess.Popen(["sleep", "1000"])
    try:
        data = (r.state / "c/plan").read_bytes()
        # what the plan would be if the container's pid were this process's, now that it is used again
        import zlib
        from struct import calcsize, pack

        from nsrun._protocol import REPLAY_HEADER

        head = calcsize(REPLAY_HEADER)
        body = data[head:].replace(pack("=Iq", 8, pid), pack("=Iq", 8, child.pid))
        assert body != data[head:]
        (r.state / "c/plan").write_bytes(data[: head - 8] + pack("=I", zlib.crc32(body)) + data[head - 4 : head] + body)
        assert json.loads(must(r, "state", "c")[1])["status"] == "stopped"
        pythons(r, "kill", "c", "KILL")
        assert must(r, "delete", "--force", "c")[0] == 0
        assert child.poll() is None
    finally:
        child.kill()
        child.wait()


def test_signals_have_the_numbers_that_python_gives_them(r):
    from nsrun.oci.lifecycle import signal_number

    document = r.config("sh", "-c", "trap 'echo' TERM; while :; do sleep 0.05; done")
    r.create("c", document)
    r.ok("start", "c")
    trace = need_strace()
    for name in ("HUP", "SIGINT", "QUIT", "USR1", "SIGUSR2", "ALRM", "1", "64"):
        out = r.base / "trace"
        command = r.words(trace, "-o", out, "-e", "pidfd_send_signal", "-e", "inject=pidfd_send_signal:retval=0", r.program, f"--root={r.state}", "kill", "c", name)  # fmt: skip
        subprocess.run(
            command, check=True, timeout=30, env={**r.env, "NSRUN_REPLAY": "must"}, stderr=subprocess.DEVNULL
        )
        (sent,) = re.findall(r"pidfd_send_signal\(\d+, (\w+)", out.read_text())
        number = int(sent.removeprefix("SIGRT_")) + 32 if "SIGRT_" in sent else getattr(signal, sent, None)
        assert int(number or 0) == signal_number(name), (sent, name)


def need_strace() -> str:
    found = shutil.which("strace")
    need(found, "strace is missing", "apt-get install strace")
    return str(found)


#: Calls by which something is changed, or waited for; the first ones, up to the lock, only look.
_CHANGES = {
    "openat",
    "write",
    "unlinkat",
    "pidfd_send_signal",
    "ppoll",
    "clone3",
    "setns",
    "exit_group",
    "socketpair",
    "fchown",
    "renameat",
}


@pytest.mark.parametrize("verb", ["start", "kill", "delete", "exec", "exec --process"])
def test_the_front_killed_at_every_call(r, verb):
    """`delete --force` cleans what any of them leaves."""
    words = {"start": ["start", "c"], "kill": ["kill", "c", "KILL"], "delete": ["delete", "--force", "c"], "exec": ["exec", "c", "true"],
             "exec --process": ["exec", "--process", str(r.base / "file"), "--detach", "--pid-file", str(r.base / "execpid"), "c"]}[verb]  # fmt: skip
    null, out = subprocess.DEVNULL, r.base / "trace"

    def traced(*options: str) -> int:
        command = r.words(need_strace(), "-o", out, *options, r.program, f"--root={r.state}", *words)
        return subprocess.run(command, stdin=null, stdout=null, stderr=null, timeout=60, check=False, env={**r.env, "NSRUN_REPLAY": "must"}).returncode  # fmt: skip

    document = r.config(*SLEEP)
    (r.base / "file").write_text(json.dumps({**document["process"], "args": ["true"]}, separators=(",", ":")))

    def begin() -> None:
        r.create("c", document)
        if "exec" in verb:
            must(r, "start", "c")

    begin()
    assert traced() == 0
    calls = re.findall(r"^(\w+)\(", out.read_text(), re.M)
    places = [
        (name, calls[: at + 1].count(name))
        for at, name in enumerate(calls)
        if name in _CHANGES and "flock" in calls[:at]
    ]
    nothing_left(r)
    begin()
    for name, count in places:
        assert traced("-e", f"inject={name}:signal=SIGKILL:when={count}") == -9, (name, count)
        if "exec" in verb:
            wait_for(lambda: len(descendants_in(r)) <= 2)  # the shell, and its sleep
            if (r.base / "execpid").exists():
                assert int((r.base / "execpid").read_text()) > 0  # never half of it
                (r.base / "execpid").unlink()
            continue
        nothing_left(r)
        begin()
    assert len(places) > 5, calls
    if "exec" in verb:
        assert must(r, *words)[0] == 0
        assert r.ok("exec", "c", "echo", "lives") == "lives\n"
    nothing_left(r)


def test_what_start_hears_after_it_has_let_the_process_go(r):
    """Python takes over where the front has no words: with the descriptor, since that can be heard only once."""
    root = r.base / "root"
    subprocess.run(["cp", "-a", r.rootfs, root], check=True)
    for content, expected in (
        ("#!/nosuch/interpreter\n", "executable file not found"),
        ("rubbish", "exec format error"),
    ):
        (root / "script").write_text(content)
        (root / "script").chmod(0o755)
        document = r.config("/script")
        document["root"]["path"] = str(root)
        said = []
        for replay in ("0", "1"):
            r.create("c", document)
            code, out, err = told(r, replay, "start", "c")
            assert code == 1 and not out and expected in err, err
            said.append(err)
            r.ok("delete", "--force", "c")
        assert said[0] == said[1]


def test_what_a_caller_says_was_told_is_not_believed(r):
    """NSRUN_OCI_TOLD counts only with a descriptor of the container's own FIFO."""
    pid = r.create("c", None, *SLEEP)
    for value in ("0", "5", "-1", "x", "99999999999999999999"):
        done = r.call("start", "c", "--log", "/dev/null", "--debug", env={**r.env, "NSRUN_OCI_TOLD": value})
        assert done.returncode == 0, done
        assert r.status("c") == {**r.status("c"), "status": "running"}
        r.ok("delete", "--force", "c")
        pid = r.create("c", None, *SLEEP)
    assert r.status("c")["pid"] == pid


@pytest.mark.parametrize("replay", ["0", "must"])
def test_a_process_enters_the_cgroups_of_v1_by_itself(r, replay):
    """Nobody is moved by its pid, which waits some milliseconds for all forks of the machine."""
    pid = r.running("c")
    out = r.base / "trace"
    words = r.words(need_strace(), "-f", "-o", out, "-e", "trace=openat", r.program, f"--root={r.state}", "exec", "c", "cat", "/proc/self/cgroup")  # fmt: skip
    done = subprocess.run(words, stdout=subprocess.PIPE, timeout=60, check=True, text=True, env={**r.env, "NSRUN_REPLAY": replay})  # fmt: skip
    assert done.stdout == pathlib.Path(f"/proc/{pid}/cgroup").read_text()
    opened = out.read_text()
    assert "cgroup.procs" not in opened
    assert opened.count("/tasks") == len([path for path in r.cgroups("c") if os.path.exists(f"{path}/tasks")])


def test_an_exec_passes_signals_on(r):
    r.running("c")
    command = r.words(r.program, f"--root={r.state}", "exec", "c", "sh", "-c", "trap 'exit 6' TERM; echo ready; while :; do sleep 0.05; done")  # fmt: skip
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env={**r.env, "NSRUN_REPLAY": "must"})  # fmt: skip
    assert child.stdout and child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=20) == 6


def test_a_closed_stdout_and_a_reader_that_has_gone(r):
    r.create("c", None, *SLEEP)
    read, write = os.pipe()
    os.close(read)
    for replay in ("0", "must"):
        command = r.words(r.program, f"--root={r.state}", "state", "c")
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, timeout=30, check=False, env={**r.env, "NSRUN_REPLAY": replay})  # fmt: skip
        assert (done.returncode, done.stderr) == (1, b""), replay
    os.close(write)
    closed = r.words("sh", "-c", f"exec {r.program} --root={r.state} state c >&-")
    done = subprocess.run(
        closed, stderr=subprocess.PIPE, timeout=30, check=False, env={**r.env, "NSRUN_REPLAY": "must"}
    )
    assert done.returncode == 125


def test_two_at_once(r):
    """Starts and deletes of one container, at the same time: one of the starts succeeds."""
    null = subprocess.DEVNULL

    def four(*words: str) -> list[int]:
        command = r.words(r.program, f"--root={r.state}", *words)
        calls = [subprocess.Popen(command, stdin=null, stdout=null, stderr=null, env=r.env) for _ in range(4)]
        return sorted(one.wait(timeout=60) for one in calls)

    for _ in range(5):
        pid = r.create("c", None, *SLEEP)
        assert four("start", "c") == [0, 1, 1, 1]
        assert r.status("c")["status"] == "running"
        assert four("delete", "--force", "c") == [0, 0, 0, 0]
        r.reap(pid)
        assert not r.cgroups("c") and not (r.state / "c").exists()
    wait_for(lambda: not descendants_in(r))
