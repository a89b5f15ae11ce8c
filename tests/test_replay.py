# SPDX-License-Identifier: Apache-2.0
"""The front (csrc/front.c): what it replays does the same as Python, and what is stale is never replayed.

NSRUN_REPLAY=must makes the front fail instead of executing Python, so that a test knows which of the two it was.
"""

from __future__ import annotations

import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from conftest import NSRUN, kill, need, not_editable, sh, wait_for

from nsrun import _protocol

pytestmark = [pytest.mark.live, not_editable]

MUST = {"NSRUN_REPLAY": "must"}
NOTHING = "nsrun: nothing to replay\n"


def start(host, name: str, rootfs: str, *command: str) -> None:
    """Start a member, and leave no compiled plan of that."""
    host.start(name, rootfs, *command, env={"NSRUN_REPLAY": "0"})


@pytest.fixture
def pod(host) -> str:
    """A pod that Python has made, and of which it has left no compiled plan."""
    return host.run("pod create --network none pause", env={"NSRUN_REPLAY": "0"}).stdout.strip()


@pytest.fixture
def member(host, pod, busybox):
    start(host, "m", busybox, "sleep", "1000")
    host.run("exec m true")
    assert plans(host)
    return host.member("m")


def plans(host) -> list[pathlib.Path]:
    return sorted(host.root.glob("run/plans/*"))


def is_replayed(host, *words: str, **kwargs) -> bool:
    done = host.run(*words, env={**MUST, **kwargs.pop("env", {})}, check=False, **kwargs)
    assert done.returncode == 0 or (done.returncode, done.stderr) == (125, NOTHING), done
    return done.returncode == 0


def both(host, *words: str, **kwargs) -> tuple[subprocess.CompletedProcess[str], subprocess.CompletedProcess[str]]:
    """What Python and what the front make of a command."""
    first = host.run(*words, env={"NSRUN_REPLAY": "0"}, check=False, **kwargs)
    host.run(*words, check=False, **kwargs)  # leaves the plan
    return first, host.run(*words, env=MUST, check=False, **kwargs)


@pytest.mark.parametrize(
    ("words", "stdin", "code"),
    [
        (["exec", "m", "echo", "a  b", "", "ä\n*", "$HOME"], "", 0),
        (["exec", "m", "sh", "-c", "echo out; echo err >&2; exit 7"], "", 7),
        (["exec", "m", "sh", "-c", "kill -9 $$"], "", 137),
        (["exec", "-i", "m", "sh", "-c", "cat; exit 3"], "some\ninput\n", 3),
        (["exec", "m", "cat"], "not for you", 0),
        (["exec", "-e", "A=1", "-e", "B=2 3", "m", "env"], "", 0),
        (["exec", "-w", "/tmp", "m", "pwd"], "", 0),
        (["exec", "-w", "/tmp", "m", "--", "pwd"], "", 0),
        (["exec", "m", "sh", "-c", "head -c 300000 /dev/zero | tr '\\0' x"], "", 0),
    ],
)
def test_the_same_comes_out(host, member, words, stdin, code):
    python, front = both(host, *words, input=stdin)
    assert (front.returncode, front.stdout, front.stderr) == (python.returncode, python.stdout, python.stderr)
    assert front.returncode == code


def test_one_plan_is_for_any_command(host, member):
    assert len(plans(host)) == 1
    for words in (["true"], ["echo", "x" * 100_000], ["sh", "-c", "exit 0"]):
        assert is_replayed(host, "exec", "m", *words)
    assert len(plans(host)) == 1


def test_explain_tells_what_is_taken_for_granted(host, member):
    told = " ".join(host.run("explain exec m true").stdout.split())
    assert "There is a compiled plan" in told and f"{host.root}/run/members/m/note" in told and "$NSRUN_ROOT" in told
    for words in ("explain exec -w / m true", "explain --format json exec m true"):
        assert "compiled plan" not in host.run(words).stdout
    (path,) = plans(host)
    for content in (b"", path.read_bytes()[:200]):
        path.write_bytes(content)
        assert "compiled plan" not in host.run("explain exec m true").stdout


def test_a_longer_line_that_begins_alike(host, member):
    """The plan of `exec m` is not for `exec m --`, which has one of its own."""
    assert not is_replayed(host, "exec", "m", "--", "true")
    host.run("exec", "m", "--", "true")
    assert is_replayed(host, "exec", "m", "--", "true") and is_replayed(host, "exec", "m", "true")


def test_a_copy_without_its_script(host, tmp_path):
    shutil.copy(NSRUN, tmp_path / "nsrun")
    done = sh(tmp_path / "nsrun", "ls", env=host.env, check=False)
    assert done.returncode == 125 and "with nsrun-python [errno 2]" in done.stderr


def test_a_command_that_is_not_there_is_told_by_python(host, member):
    done = host.run("exec m nosuch", check=False)
    assert done.returncode == 127 and "not found in the member's PATH" in done.stderr
    assert host.run("exec m /etc", check=False).returncode == 126


#: What the kernel shows of a process. Nothing is piped: the shell whose descriptors are listed would have one more for a moment.
SHOWN = "cd /proc/self; cat status limits cgroup mountinfo; ls -l ns fd; env; umask; pwd; cat oom_score_adj attr/current 2>&1; ulimit -a"


def told(text: str) -> list[str]:
    """Return the lines that are the same from one process and moment to the next: a shell that waits may still run."""
    volatile = re.compile(r"^(State|Pid|PPid|Tgid|Ngid|NS\w+|Vm\w+|Rss\w+|\w*ctxt\w*|Threads|HugetlbPages|SigQ|total|.*pipe:|Cpus|Mems)")  # fmt: skip
    dated = re.compile(r"^(l\S{9}) .*:\d\d (\S+ -> )")
    return [dated.sub(r"\1 \2", line) for line in text.splitlines() if not volatile.match(line)]


def test_the_kernel_shows_the_same(host, member):
    python, front = both(host, "exec", "-e", "X=1", "m", "sh", "-c", SHOWN)
    assert told(front.stdout) == told(python.stdout) and len(told(front.stdout)) > 80
    here = host.run("exec m readlink /proc/self/ns/pid", env=MUST).stdout
    assert here.strip() == os.readlink(f"/proc/{member['pid']}/ns/pid")


def test_a_caller_that_ignores_the_end_of_children(host, member):
    for replay in ("0", "must"):
        words = ["sh", "-c", "trap '' CHLD; exec \"$@\"", "-", NSRUN, "exec", "m", "sh", "-c", "exit 7"]
        assert sh(*words, env={**host.env, "NSRUN_REPLAY": replay}, check=False).returncode == 7


def test_the_monitor_is_the_same(host, member):
    seen = []
    for replay in ("0", "must"):
        process = subprocess.Popen([NSRUN, "exec", "m", "sleep", "1000"], env={**host.env, "NSRUN_REPLAY": replay})
        status = pathlib.Path(f"/proc/{process.pid}/status")
        wait_for(lambda status=status: "nsrun-monitor" in status.read_text(), 5, "it is the monitor")
        time.sleep(0.2)
        lines = told(status.read_text())
        words = re.sub(r"=\d+", "=N", pathlib.Path(f"/proc/{process.pid}/cmdline").read_text())
        files = sorted(re.sub(r"\d+", "N", os.readlink(path)) for path in pathlib.Path(f"/proc/{process.pid}/fd").iterdir())  # fmt: skip
        seen.append((lines, words, files))
        process.kill()
        process.wait()
    assert seen[0] == seen[1]


CALLS = "setns,clone3,execve,execveat,seccomp,prctl,capset,setresuid,setresgid,setgroups,keyctl,setsid,chdir,unshare,memfd_create,pidfd_open,socketpair"


def calls_of(host, tmp_path, name: str, words: list[str], more: str = "", **env: str) -> list[list[str]]:
    """The system calls of each process, in order, from the first one that is not about being Python or the front."""
    out = tmp_path / name
    trace = f"trace={CALLS}{',' if more else ''}{more}"
    sh("strace", "-ff", "-qq", "-e", trace, "-o", out, NSRUN, *words, env={**host.env, **env})
    found = []
    for path in sorted(tmp_path.glob(f"{name}.*"), key=lambda path: int(path.suffix[1:])):
        lines = [
            re.sub(r"\b[0-9a-f]{12}\b|0x[0-9a-f]+|\d+", "N", re.sub(r"\s+", " ", line))
            for line in path.read_text().splitlines()
        ]
        lines = [line for line in lines if not line.startswith(("---", "+++"))]  # signals, and the end
        starts = [number for number, line in enumerate(lines) if line.startswith("memfd_create")]
        found.append(lines[starts[0] :] if starts else lines)
    return found


def test_the_same_system_calls_are_made(host, member, tmp_path):
    need(shutil.which("strace"), "strace is missing", "apt-get install strace")
    python, front = (calls_of(host, tmp_path, name, ["exec", "m", "true"], NSRUN_REPLAY=name) for name in ("0", "must"))
    assert len(python) == len(front) == 2
    ours, its = (
        [
            line
            for line in process
            if not line.startswith(("prctl(PR_SET_DUMPABLE", "prctl(PR_GET_DUMPABLE", "pidfd_open"))
        ]
        for process in (python[0], front[0])
    )  # kernel.c hides for the time of the launch, the front from its beginning to its end
    assert [line for line in its if not line.startswith("memfd_create")] == [line for line in ours if not line.startswith("memfd_create")]  # fmt: skip
    assert sorted(line for line in its if line.startswith("memfd_create")) == sorted(line for line in ours if line.startswith("memfd_create"))  # fmt: skip
    assert front[1] == python[1]  # of nsrun-init, and of what it becomes


# ---- what is stale ---------------------------------------------------------------------------------------------------


def other_member(host, busybox) -> None:
    host.run("rm -f m")
    start(host, "m", busybox, "sleep", "1000")


STALE = {
    "the note": lambda host, busybox: os.utime(host.root / "run/members/m/note"),
    "the configuration": lambda host, busybox: os.utime(host.root / "run/members/m/config.json"),
    "the note of the pod": lambda host, busybox: os.utime(host.root / "run/pods/pause/note"),
    "a member of the same name": other_member,
}


@pytest.mark.parametrize("what", STALE)
def test_what_was_read_has_changed(host, member, busybox, what):
    assert is_replayed(host, "exec", "m", "true")
    STALE[what](host, busybox)
    assert not is_replayed(host, "exec", "m", "true")
    assert host.run("exec m echo works").stdout == "works\n"  # and leaves another plan
    assert is_replayed(host, "exec", "m", "true")


def test_a_member_that_has_ended(host, member):
    kill(member["pid"])
    wait_for(lambda: host.member("m")["status"] == "stopped", 5, "its end")
    assert not is_replayed(host, "exec", "m", "true")
    assert "is stopped" in host.fails(125, "exec", "m", "true")
    host.run("rm m")
    assert not is_replayed(host, "exec", "m", "true")
    assert "no member" in host.fails(125, "exec", "m", "true")


def test_a_value_of_the_callers_is_left_in_no_file(host, member):
    """-e NAME is how one keeps a value out of words and files."""
    words = ["exec", "-e", "SECRET", "m", "env"]
    assert "SECRET=geheim42" in host.run(*words, env={"SECRET": "geheim42"}).stdout
    assert not is_replayed(host, *words, env={"SECRET": "geheim42"})
    assert not any(b"geheim42" in path.read_bytes() for path in plans(host))


def test_plans_go_with_their_member(host, member, busybox):
    start(host, "other", busybox, "sleep", "1000")
    host.run("exec other true")
    assert len(plans(host)) == 2
    host.run("rm -f m")
    assert len(plans(host)) == 1 and is_replayed(host, "exec", "other", "true")
    host.run("pod rm -f pause")
    assert plans(host) == []


@pytest.mark.parametrize("build", ["another", "none"])
def test_the_front_of_another_build(host, member, tmp_path, build):
    """A plan is for the front of the very nsrun that made it, and not for one beside it, or the next version."""
    data, digest = pathlib.Path(NSRUN).read_bytes(), _protocol.BUILD
    assert data.count(digest) == 1
    (tmp_path / "nsrun").write_bytes(data.replace(digest, digest[::-1] if build == "another" else bytes(64)))
    (tmp_path / "nsrun").chmod(0o755)
    tmp_path.chmod(0o755)
    for name in ("python3", "nsrun-python"):
        (tmp_path / name).symlink_to(pathlib.Path(NSRUN).parent / name)
    assert sh(tmp_path / "nsrun", "exec", "m", "true", env={**host.env, **MUST}, check=False).stderr == NOTHING
    assert is_replayed(host, "exec", "m", "true")


@pytest.mark.parametrize("free", range(6))
def test_where_few_descriptors_are_free(host, member, free):
    """What the front opens may land on a number that the plan has for something else."""
    script = "import os, sys\nfd = os.open('/dev/null', 0)\nfor n in range(3 + int(sys.argv[1]), 20):\n    os.dup2(fd, n)\nos.closerange(20, 64)\nos.execvp(sys.argv[2], sys.argv[2:])\n"
    command = [sys.executable, "-c", script, free, NSRUN, "exec", "m", "sh", "-c", "echo out; echo err >&2; exit 3"]
    done = sh(*command, env=host.env, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")


def test_a_limit_of_file_sizes(host, member):
    """Files in memory count; then Python tells it."""
    done = sh("sh", "-c", f"ulimit -f 4; exec {NSRUN} exec m echo hi", env=host.env, check=False)
    assert done.returncode == 125 and "EFBIG" in done.stderr


def test_no_room_for_a_plan(host, member):
    directory = host.root / "run/plans"
    sh("mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", directory)
    try:
        (directory / "fill").write_bytes(bytes(12 << 10))
        for _ in range(3):
            assert host.run("exec m echo works").stdout == "works\n"
        assert sorted(os.listdir(directory)) == ["fill"]
    finally:
        sh("umount", directory)


def test_a_plan_is_left_before_the_command_starts(host, member, tmp_path):
    """So a slow disk delays the command, and not its output or signals; killed while it is written, nothing runs."""
    (path,) = plans(host)
    path.unlink()
    killer = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=rename,renameat,renameat2", "-e", "inject=rename,renameat,renameat2:signal=KILL"]  # fmt: skip
    done = sh(*killer, NSRUN, "exec", "m", "touch", "/tmp/started", env=host.env, check=False)
    assert done.returncode == -signal.SIGKILL
    time.sleep(0.3)
    assert host.run("exec m ls /tmp").stdout == ""


def test_something_else_in_the_place_of_the_plans(host, member):
    directory = host.root / "run/plans"
    shutil.rmtree(directory)
    directory.write_text("")
    assert host.run("exec m echo works").stdout == "works\n"
    assert "plans: Not a directory" in host.run("doctor", check=False).stdout
    host.run("rm -f m")


def test_more_than_execve_takes(host):
    """Python is executed with two words more, which may be too much."""
    script = """
import os, sys
for left in range(120_000, 0, -16):
    try:
        os.execve(sys.argv[1], [sys.argv[1], "ls", *["x" * 100_000] * 20, "z" * left], {})
    except OSError:
        continue
"""
    done = sh(sys.executable, "-c", script, NSRUN, check=False)
    assert done.returncode == 125 and done.stderr.startswith("nsrun: the arguments and the environment are too long [E2BIG]")  # fmt: skip


def test_a_terminal(host, member, terminal):
    words = ["exec", "-it", "m", "sh"]
    for replay in ("0", "1", "must"):
        host.env["NSRUN_REPLAY"] = replay
        t = terminal(*words)
        t.expect(r"# ")
        t.type("tty; stty size; echo $TERM; cat\n")
        t.expect(r"/dev/pts/\d\r\n31 101\r\nvt100\r\n")
        time.sleep(0.5)  # until cat has the terminal
        t.type("\x03")
        t.expect(r"# ")
        t.type("exit 7\n")
        assert t.process.wait(timeout=30) == 7, replay
    del host.env["NSRUN_REPLAY"]
    assert not is_replayed(host, *words, "-c", "true", stdin=subprocess.DEVNULL)  # not from a terminal
    assert "not a terminal" in host.fails(2, *words, "-c", "true", stdin=subprocess.DEVNULL)
    assert "TERM=" in host.run("exec -t m env").stdout
    assert is_replayed(host, "exec", "-t", "m", "env") and not is_replayed(host, "exec", "-t", "m", "env", env={"TERM": "x"})  # fmt: skip


ACCOUNTS = {
    "it is another file": "echo 'web:x:9:9::/srv:/bin/sh' >/etc/passwd",
    "a group more": "echo 'many:x:77:web' >>/etc/group",
    "there is none": "rm /etc/group",
}


@pytest.mark.parametrize("change", ACCOUNTS)
def test_the_accounts_of_the_member(host, member, change):
    host.run("exec", "m", "sh", "-c", "echo 'web:x:5:5::/home/web:/bin/sh' >>/etc/passwd; echo 'web:x:5:' >>/etc/group")
    words = ["exec", "-u", "web", "m", "sh", "-c", "id; echo $HOME"]
    host.run(*words)
    assert not is_replayed(host, *words), "what has just been changed could be changed again"
    time.sleep(1.1)
    first = host.run(*words)
    assert "uid=5(web)" in first.stdout and first.stdout.endswith("/home/web\n")
    assert host.run(*words, env=MUST).stdout == first.stdout
    host.run("exec", "m", "sh", "-c", ACCOUNTS[change])
    assert not is_replayed(host, *words)
    assert host.run(*words, check=False).stdout == host.run(*words, check=False, env={"NSRUN_REPLAY": "0"}).stdout


def test_without_proc_python_says_so(host, member):
    words = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /proc; exec "$@"', "-"]
    link = host.root / "link"
    link.symlink_to(NSRUN)
    for nsrun in (NSRUN, link):
        done = sh(*words, nsrun, "exec", "m", "true", env=host.env, check=False)
        assert done.returncode == 125 and "nsrun: /proc: " in done.stderr


def test_pythons_descriptors_are_the_callers(host, member):
    """The front closes none on the way to Python: --status-fd names one."""
    read, write = os.pipe()
    host.run("join", "pause", "--status-fd", write, "--rm", "--rootfs", member["rootfs"], "true", pass_fds=[write])
    os.close(write)
    with open(read) as events:
        assert "exit" in events.read()


def test_a_fifo_over_the_boot_id(host, member):
    os.mkfifo(host.root / "fifo")
    words = ["unshare", "--mount", "sh", "-c", f'mount --bind {host.root}/fifo /proc/sys/kernel/random/boot_id; exec "$@"', "-", NSRUN, "exec", "m", "echo", "works"]  # fmt: skip
    assert sh(*words, env={**host.env, **MUST}, check=False, timeout=10).returncode == 125
    assert sh(*words, env=host.env, timeout=10).stdout == "works\n"
    assert is_replayed(host, "exec", "m", "true")


WRAPPED = {
    "another boot": ["unshare", "--mount", "sh", "-c", 'mount --bind /proc/sys/kernel/random/uuid /proc/sys/kernel/random/boot_id; exec "$@"', "-"],
    "another PID namespace": ["unshare", "--pid", "--fork", "--mount-proc"],
    "the old /proc": ["unshare", "--pid", "--fork"],
    "a user namespace": ["unshare", "--user", "--map-root-user"],
    "another clock": ["unshare", "--time", "--boottime", "1000000", "--fork"],
    "fewer capabilities": ["setpriv", "--bounding-set", "-net_raw"],
    "a closed input": ["sh", "-c", 'exec "$@" <&-', "-"],
    "a closed output": ["sh", "-c", 'exec "$@" 2>&-', "-"],
    "a descriptor of the caller's": ["bash", "-c", 'exec "$@" 45</dev/null', "-"],
    "no /proc": ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /proc; exec "$@"', "-"],
}  # fmt: skip


@pytest.mark.parametrize("what", WRAPPED)
def test_from_another_place(host, member, what):
    words = [*WRAPPED[what], NSRUN, "exec", "m", "touch", "/tmp/was-here"]
    done = sh(*words, env={**host.env, **MUST}, check=False)
    assert done.returncode == 125 and done.stderr in (NOTHING, ""), done
    assert host.run("exec m ls /tmp").stdout == ""


@pytest.mark.parametrize("words", [["exec", "m"], ["exec", "m", "-x"], ["exec", "-t", "m", "true"], ["exec", "-u", "1", "m", "true"], ["exec", "nobody", "true"], ["--debug", "exec", "m", "true"], ["--no-replay", "exec", "m", "true"]])  # fmt: skip
def test_other_words(host, member, words):
    assert not is_replayed(host, *words)


def test_without_replay_none_is_left(host, pod, busybox):
    start(host, "m", busybox, "sleep", "1000")
    host.run("--no-replay exec m true")
    host.run("exec m true", env={"NSRUN_REPLAY": "0"})
    host.run("--root", host.root, "exec", "m", "true")
    assert plans(host) == []
    assert "0 compiled plans" in host.run("doctor", check=False).stdout
    host.run("exec m true")
    assert "1 compiled plans" in host.run("doctor", check=False).stdout
    assert "NSRUN_REPLAY=0" in host.run("doctor", check=False, env={"NSRUN_REPLAY": "0"}).stdout


# ---- whose plan it is ------------------------------------------------------------------------------------------------


def spoilt(path: pathlib.Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 2, 8))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def _linked(path: pathlib.Path, alice) -> None:
    path.rename(path.with_suffix(".x"))
    path.symlink_to(path.with_suffix(".x"))


def _fifo(path: pathlib.Path, alice) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def _directory(path: pathlib.Path, alice) -> None:
    path.unlink()
    path.mkdir(0o700)


def _device(path: pathlib.Path, alice) -> None:
    path.unlink()
    os.mknod(path, 0o20600, os.makedev(1, 5))


UNFIT: dict[str, Callable[[pathlib.Path, Any], object]] = {
    "one that others may read": lambda path, alice: path.chmod(0o644),
    "another user's": lambda path, alice: os.chown(path, alice.uid, alice.uid),
    "a link": _linked,
    "a FIFO": _fifo,
    "a directory": _directory,
    "a device": _device,
    "an empty file": lambda path, alice: path.write_bytes(b""),
    "half of it": lambda path, alice: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one that is too large": lambda path, alice: path.write_bytes(path.read_bytes() + bytes(1 << 20)),
}


@pytest.mark.parametrize("what", UNFIT)
def test_a_file_that_is_no_plan_of_ours(host, alice, member, what):
    (path,) = plans(host)
    UNFIT[what](path, alice)
    assert not is_replayed(host, "exec", "m", "true")
    assert host.run("exec m echo works").stdout == "works\n"


def test_a_flipped_bit(host, member):
    (path,) = plans(host)
    whole, rng = path.read_bytes(), random.Random(1)
    for _ in range(60):
        spoilt(path, rng)
        assert not is_replayed(host, "exec", "m", "true")
        path.write_bytes(whole)
    assert is_replayed(host, "exec", "m", "true")


def test_a_users_front_replays_nothing(host, alice, member):
    shutil.copytree(host.root / "run/plans", alice.home / "run/plans")
    sh("chown", "-R", f"{alice.uid}:{alice.uid}", alice.home)
    for who, root in ((alice, alice.home), (host, alice.home)):
        assert not is_replayed(who, "exec", "m", "true", env={"NSRUN_ROOT": str(root)})


def test_old_plans_go_first(host, member):
    for number in range(70):
        host.run("exec", "-e", f"N={number}", "m", "true")
    assert len(plans(host)) == 64
    assert is_replayed(host, "exec", "-e", "N=69", "m", "true") and not is_replayed(host, "exec", "m", "true")


# ---- faults ----------------------------------------------------------------------------------------------------------


def test_killed_after_every_system_call(host, member):
    """Nothing of the exec is left, whenever its front is killed."""
    need(shutil.which("strace"), "strace is missing", "apt-get install strace")
    group = pathlib.Path(member["cgroup"], "cgroup.procs") if member.get("cgroup") else None
    before = host.snapshot()
    for count in range(1, 400):
        killer = ["strace", "-qq", "-o", "/dev/null", "-e", "trace=all", "-e", f"inject=all:signal=KILL:when={count}"]
        words = [*killer, NSRUN, "exec", "m", "sleep", "0.01"]
        done = subprocess.run(words, env={**host.env, **MUST}, capture_output=True, timeout=30, check=False, cwd="/")
        if not done.returncode:
            break
        assert done.returncode == -signal.SIGKILL, (count, done)
    assert 60 < count < 399
    wait_for(lambda: host.snapshot() == before, 5, "nothing of it is left")
    if group:
        wait_for(lambda: group.read_text().split() == [str(member["pid"])], 5, "only the member is in its cgroup")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_the_commands(host, member, number):
    words = ["exec", "m", "sh", "-c", f"trap 'exit 9' {int(number)}; echo ready; while :; do sleep 0.05; done"]
    process = subprocess.Popen([NSRUN, *words], env={**host.env, **MUST}, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.wait(10) == 9


def test_how_much_stays_resident(host, member):
    """The front is what runs for a millisecond, and its program is small."""
    size = os.path.getsize(NSRUN)
    assert size < 32 << 10, size
