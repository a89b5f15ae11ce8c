# SPDX-License-Identifier: Apache-2.0
"""The owner of a pod against root: what root lends the pod, and what root's own session has, stays root's.

Every attack is carried out by a process with exactly the owner's power: alice's ids, no capability, in the host's namespaces.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import resource
import select
import subprocess
import sys
import termios
import time
from typing import Any

import pytest
from conftest import NSRUN, USERS, sh, wait_for

from nsrun.errors import BadInput
from nsrun.host import userns
from nsrun.state import life

pytestmark = pytest.mark.live
ALICE = USERS["alice"]
SECRET = {"SECRET_OF_ROOT": "1", "AWS_SESSION_TOKEN": "root's"}

#: `session PROGRAM…`: a session keyring, whose serial number is printed to stderr first.
#: `keyring PID`: makes that process call keyctl(KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING), and prints what it got.
KEYRING_PROGRAM = r"""
#include <elf.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

static struct user_regs_struct regs;
static struct iovec iov = {&regs, sizeof regs};

static void get(int pid) { ptrace(PTRACE_GETREGSET, pid, NT_PRSTATUS, &iov); }
static void set(int pid) { ptrace(PTRACE_SETREGSET, pid, NT_PRSTATUS, &iov); }

/* Until it is at the beginning of a system call; its end comes next. */
static int to_syscall(int pid)
{
	int status;
	for (int i = 0; i < 100; i++) {
		if (ptrace(PTRACE_SYSCALL, pid, 0, 0) < 0 || waitpid(pid, &status, __WALL) != pid || !WIFSTOPPED(status))
			return -1;
		if (WSTOPSIG(status) == (SIGTRAP | 0x80))
			return 0;
	}
	return -1;
}

static long inject(int pid)
{
	struct user_regs_struct before;
	int status;

	if (ptrace(PTRACE_SEIZE, pid, 0, PTRACE_O_TRACESYSGOOD) < 0 || ptrace(PTRACE_INTERRUPT, pid, 0, 0) < 0)
		return -errno;
	if (waitpid(pid, &status, __WALL) != pid || to_syscall(pid) < 0)
		return -ESRCH;
	get(pid);
	before = regs;
#if defined(__x86_64__)
	regs.orig_rax = SYS_keyctl, regs.rdi = 0, regs.rsi = (unsigned long)-3, regs.rdx = 0;
#else
	int number = SYS_keyctl;
	struct iovec call = {&number, sizeof number};
	ptrace(PTRACE_SETREGSET, pid, 0x404 /* NT_ARM_SYSTEM_CALL */, &call);
	regs.regs[0] = 0, regs.regs[1] = (unsigned long)-3, regs.regs[2] = 0;
#endif
	set(pid);
	if (to_syscall(pid) < 0)
		return -ESRCH;
	get(pid);
#if defined(__x86_64__)
	long result = (long)regs.rax;
	regs = before, regs.rip -= 2, regs.rax = before.orig_rax;
#else
	long result = (long)regs.regs[0];
	regs = before, regs.pc -= 4;
#endif
	set(pid);
	ptrace(PTRACE_DETACH, pid, 0, 0);
	return result;
}

int main(int argc, char **argv)
{
	if (argc > 2 && !strcmp(argv[1], "session")) {
		syscall(SYS_keyctl, 1, 0, 0, 0, 0);
		if (syscall(SYS_add_key, "user", "nsrun-secret", "s", 1, -3) < 0)
			perror("add_key");
		fprintf(stderr, "keyring %ld\n", (long)syscall(SYS_keyctl, 0, -3, 0));
		execvp(argv[2], argv + 2);
	}
	if (argc > 1 && !strcmp(argv[1], "find"))
		printf("%ld\n", (long)syscall(SYS_keyctl, 10, -3, "user", "nsrun-secret", 0));
	if (argc > 2 && !strcmp(argv[1], "keyring"))
		printf("%ld\n", inject(atoi(argv[2])));
	return 0;
}
"""


@pytest.fixture(scope="module")
def keyring(tmp_path_factory) -> pathlib.Path:
    """The program above, where alice may execute it."""
    path = tmp_path_factory.mktemp("keyring")
    for directory in [path, *path.parents][:4]:
        if directory.stat().st_uid == os.geteuid() and str(directory) != "/tmp":
            directory.chmod(0o755)
    (path / "k.c").write_text(KEYRING_PROGRAM)
    sh("cc", "-static", "-O1", "-o", path / "keyring", path / "k.c", timeout=60)
    return path / "keyring"


class Session:
    """Root's own: a session keyring with a key, variables, a descriptor and a working directory that are nobody else's, priorities."""

    def __init__(self, host, program: pathlib.Path) -> None:
        self.host, self.program = host, program
        self.file = host.root / "file-of-roots"
        self.file.write_text("precious")
        self.file.chmod(0o600)
        self.directory = host.root / "closed" / "open"
        self.directory.mkdir(parents=True)
        self.directory.parent.chmod(0o700)
        self.keyring = 0

    def _become(self) -> None:
        os.dup2(os.open(self.file, os.O_RDWR), 57)
        os.umask(0)
        os.setpriority(os.PRIO_PROCESS, 0, -5)
        with contextlib.suppress(PermissionError):  # root without CAP_SYS_RESOURCE
            pathlib.Path("/proc/self/oom_score_adj").write_text("-400")

    def start(self, *words: object, env: dict[str, str] | None = None, **kwargs) -> subprocess.Popen:
        command = [str(self.program), "session", str(NSRUN), *map(str, words)]
        kwargs = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **kwargs}
        env = {**self.host.env, **SECRET, **(env or {})}
        process = subprocess.Popen(
            command, env=env, cwd=self.directory, preexec_fn=self._become, close_fds=False, text=True, **kwargs
        )
        self.keyring = int(process.stderr.readline().split()[1])
        return process

    def run(self, *words: object, **kwargs) -> str:
        process = self.start(*words, **kwargs)
        out, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        return out


@pytest.fixture
def session(host, keyring) -> Session:
    return Session(host, keyring)


@pytest.fixture
def lent(session, alice) -> str:
    """A pod of alice's that root made from such a session."""
    return session.run("pod", "create", "--network", "none", "pause", env={"SUDO_UID": str(ALICE)}).strip()


def of_process(pid: int | str) -> dict[str, object]:
    """What /proc tells of a process's standing."""
    base = pathlib.Path(f"/proc/{pid}")
    return standing({name: (base / name).read_text() for name in ("limits", "stat", "status", "oom_score_adj")})


def standing(files: dict[str, str]) -> dict[str, Any]:
    limits = {line[:25].strip(): line[26:].split()[:2] for line in files["limits"].splitlines()[1:]}
    stat = files["stat"].rpartition(")")[2].split()
    status = dict(line.split(":\t", 1) for line in files["status"].splitlines() if ":\t" in line)
    return {
        "limits": {k: [float("inf") if w == "unlimited" else int(w) for w in v] for k, v in limits.items()},
        "nice": int(stat[16]),
        "policy": int(stat[38]),
        "cpus": int(status["Cpus_allowed"].replace(",", ""), 16),
        "oom": int(files["oom_score_adj"]),
        "status": status,
    }


def higher(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """The limits of a that are above those of b, soft or hard."""
    return [k for k, v in a["limits"].items() if v[0] > b["limits"][k][0] or v[1] > b["limits"][k][1]]


def modest() -> None:
    """What an administrator, or alice herself, has lowered in a shell of hers."""
    for kind, value in (
        (resource.RLIMIT_NPROC, 500), (resource.RLIMIT_NOFILE, 500), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_MEMLOCK, 65536),
        (resource.RLIMIT_FSIZE, 1 << 28), (resource.RLIMIT_CPU, 3000), (resource.RLIMIT_SIGPENDING, 99), (resource.RLIMIT_MSGQUEUE, 4096),
    ):  # fmt: skip
        resource.setrlimit(kind, (value, value))
    resource.setrlimit(resource.RLIMIT_STACK, (4 << 20, 6 << 20))
    os.nice(5)
    os.sched_setaffinity(0, {0})
    pathlib.Path("/proc/self/oom_score_adj").write_text("300")


FILES = ("limits", "stat", "status", "oom_score_adj", "environ", "cgroup")
READ = "; ".join(f"echo ---{name}; cat /proc/self/{name}" for name in FILES)


def told(text: str) -> dict[str, str]:
    return {part.partition("\n")[0]: part.partition("\n")[2] for part in text.split("---")[1:]}


def test_a_member_has_what_her_own_shell_has(host, alice, lent, box, keyring):
    """Limits, priorities, keys, environment: of the one who joins, whatever root's were when it made the pod."""
    mine = told(alice.sh("sh", "-c", READ, preexec_fn=modest).stdout)
    options = ["--security-opt", "seccomp=unconfined", "-v", f"{keyring}:/keyring:ro", "--image", box]
    script = f"{READ}; echo ---key; /keyring find; echo ---"
    for detach in (False, True):
        if detach:
            words = ["-d", "--name", "m", *options, "--", "sh", "-c", f"{script}; sleep 1000"]
            alice.run("join", lent, *words, preexec_fn=modest)
            out = wait_for(lambda: text if (text := alice.run("logs", "m").stdout).endswith("---\n") else "")
        else:
            out = alice.run("join", lent, "--rm", *options, "--", "sh", "-c", script, preexec_fn=modest).stdout
        theirs = told(out)
        a, b = standing(theirs), standing(mine)
        assert higher(a, b) == [] and a["limits"]["Max processes"] == [500, 500]
        assert (a["nice"], a["policy"], a["oom"]) == (5, 0, 300) == (b["nice"], b["policy"], b["oom"])
        assert a["cpus"] == 1 and b["cpus"] == 1
        assert theirs["key"] == "-1\n"
        assert not any(name in theirs["environ"] for name in SECRET) and str(host.root) not in theirs["environ"]
        status = a["status"]
        assert status["Umask"] == "0022" and int(status["SigIgn"], 16) == int(status["SigBlk"], 16) == 0
        assert status["Groups"].split() in ([], ["0"])
    pid = alice.member("m")["pid"]
    login = pathlib.Path(f"/proc/{pid}/loginuid")
    assert not login.exists() or login.read_text() == str(ALICE)
    cgroup = pathlib.Path(f"/proc/{pid}/cgroup").read_text()
    assert not (host.cgroups() and "0::" in cgroup) or "/m-m" in cgroup, cgroup


@pytest.mark.parametrize("policy", [os.SCHED_BATCH, os.SCHED_IDLE])
def test_the_scheduling_of_who_asks(alice, lent, box, policy):
    def lower() -> None:
        os.sched_setscheduler(0, policy, os.sched_param(0))

    out = alice.run("join", lent, "--rm", "--image", box, "--", "cat", "/proc/self/stat", preexec_fn=lower).stdout
    assert int(out.rpartition(")")[2].split()[38]) == policy


#: A launch of alice's own making: her own program in nsrun-monitor's place, which keeps every descriptor that there might be.
REQUEST = r"""
import array, fcntl, os, socket, struct, sys, time
path, pause, script = sys.argv[1], int(sys.argv[2]), sys.argv[3]
out, python, true = os.dup(1), os.open(sys.executable, os.O_RDONLY), os.open("/bin/true", os.O_RDONLY)
join = os.pidfd_open(pause)
sent = [out, python, true, join]
keep = [*range(3, 60), *range(500, 512)]
request = struct.pack("=4s7i", b"NSD2", join, 0x10000000, 0, -1, true, python, 100) + struct.pack("=6i", -1, -1, -1, -1, out, out)
for numbers in (sent, [], keep, []): request += struct.pack(f"=I{len(numbers)}i", len(numbers), *numbers)
for words in (["true"], [os.path.realpath(sys.executable), "-c", script], []):
    text = b"".join(os.fsencode(word) + b"\0" for word in words)
    request += struct.pack("=I", len(text)) + text
memory = os.memfd_create("request", os.MFD_ALLOW_SEALING); os.write(memory, request); fcntl.fcntl(memory, fcntl.F_ADD_SEALS, 15)
if sys.argv[4:] and (asker := os.fork()):
    os.waitpid(asker, 0)
    os._exit(0)
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.settimeout(10); s.connect(path)
if sys.argv[4:]:  # who connected goes; another asks
    asker = os.getpid()
    if os.fork(): os._exit(0)
    end = time.time() + 10
    while os.path.exists(f"/proc/{asker}") and time.time() < end: time.sleep(0.01)
s.sendmsg([b"L"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [memory, *sent]))])
print(struct.unpack("=4i", s.recv(100)), flush=True)
"""

LOOK = r"""
import ctypes, json, os
files = {name: open(f"/proc/self/{name}").read() for name in ("limits", "stat", "status", "oom_score_adj", "environ")}
fds = {}
for fd in os.listdir("/proc/self/fd"):
    try: fds[fd] = os.readlink(f"/proc/self/fd/{fd}")
    except OSError: pass
key = ctypes.CDLL(None).syscall({"x86_64": 250, "aarch64": 219}[os.uname().machine], 10, -3, b"user", b"nsrun-secret", 0)
print(json.dumps({"files": files, "fds": fds, "key": key, "cwd": os.getcwd(), "ids": [os.getresuid(), os.getresgid()]}), flush=True)
"""


def test_her_own_program_in_the_monitors_place(host, session, alice, lent):
    """The door executes what she sends, so what it forks has nothing but hers by then; and door's own descriptors are not for her to name."""
    pause, path = host.pod()["pid"], host.root / "owned" / str(ALICE) / "pause.door"
    mine = told(alice.sh("sh", "-c", READ, preexec_fn=modest).stdout)
    done = alice.sh(sys.executable, "-c", REQUEST, path, pause, LOOK, preexec_fn=modest)
    text = wait_for(
        lambda: [line for line in done.stdout.splitlines() if line.startswith("{")], 5, done.stdout + done.stderr
    )[0]
    found = json.loads(text)
    assert higher(standing(found["files"]), standing(mine)) == []
    assert standing(found["files"])["nice"] == 5 and standing(found["files"])["oom"] == 300
    assert found["key"] == -1 and found["files"]["environ"] == "" and found["cwd"] == "/"
    assert found["ids"] == [[ALICE] * 3] * 2
    status = standing(found["files"])["status"]
    assert all(int(status[name], 16) == 0 for name in ("CapInh", "CapPrm", "CapEff", "CapAmb", "SigBlk"))
    assert status["Umask"] == "0022"
    for fd, target in found["fds"].items():
        assert str(session.file) not in target and "memfd:nsrun-door" not in target, (fd, target)
    assert not any(
        target == "anon_inode:[pidfd]" for fd, target in found["fds"].items() if int(fd) < 60 and int(fd) not in (100,)
    ) or (sum("pidfd" in target for target in found["fds"].values()) <= 3)
    assert not any("socket:" in target for fd, target in found["fds"].items() if int(fd) > 2)  # door's listener


def test_who_asks_lies_about_nothing(host, alice, lent, box):
    """The door's and its children's limits are root's: nobody of hers is told, so no false peer can have them."""
    door = next(int(pid) for pid in filter(str.isdigit, os.listdir("/proc")) if _is_door(pid, host))
    assert of_process(door)["limits"]["Max processes"][1] > 50
    script = "import resource, sys; resource.prlimit(int(sys.argv[1]), resource.RLIMIT_NPROC)"
    done = alice.sh(sys.executable, "-c", script, door, check=False)
    assert "PermissionError" in done.stderr
    trace = "import ctypes, sys; print(ctypes.CDLL(None).ptrace(16, int(sys.argv[1]), 0, 0))"
    assert alice.sh(sys.executable, "-c", trace, door).stdout == "-1\n"
    assert of_process(door)["nice"] == 0 and of_process(door)["oom"] == 0


def test_who_asked_is_gone(host, alice, lent, box):
    """The socket is another's by now: whose limits would those be?  Nothing is started."""
    pause, path = host.pod()["pid"], host.root / "owned" / str(ALICE) / "pause.door"
    said = alice.sh(sys.executable, "-c", REQUEST, path, pause, LOOK, "go").stdout
    assert "{" not in said and said == f"(0, 0, 8, -{errno.ESRCH})\n"
    assert alice.run("join", lent, "--rm", "--image", box, "--", "echo", "fine").stdout == "fine\n"


def _is_door(pid: str, host) -> bool:
    try:
        if pathlib.Path(f"/proc/{pid}/comm").read_text(errors="replace") != "nsrun-door\n":
            return False
        return os.stat(f"/proc/{pid}/ns/net").st_ino == os.stat("/proc/thread-self/ns/net").st_ino
    except OSError:
        return False


def test_pause_has_nothing_of_roots(host, session, alice, lent, keyring):
    """She may ptrace pause: its keyring is not root's session's, and its limits and priorities are less than anybody's."""
    pause = host.pod()["pid"]
    answer = int(alice.sh(keyring, "keyring", pause).stdout)
    assert answer > 0 and answer != session.keyring
    found = of_process(pause)
    assert higher(found, standing(told(alice.sh("sh", "-c", READ, preexec_fn=modest).stdout))) == ["Max cpu time"]
    assert found["nice"] == 0 and found["oom"] >= 0
    assert "precious" not in str(session.file.read_text()) or not [
        fd for fd in os.listdir(f"/proc/{pause}/fd") if str(session.file) in os.readlink(f"/proc/{pause}/fd/{fd}")
    ]


@pytest.mark.parametrize("owner", ["alice", "root"])
def test_roots_terminal_is_out_of_reach(host, owner):
    """What pause opens as /dev/tty is not the terminal at which root made the pod: the owner may ptrace pause."""
    master, slave = os.openpty()

    def take() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    words = [NSRUN, "pod", "create", "--network", "none", "--owner", owner, "pause"]
    with subprocess.Popen(words, env=host.env, stdin=slave, stdout=slave, stderr=slave, preexec_fn=take) as process:
        assert process.wait(timeout=60) == 0
    doors = [pid for pid in filter(str.isdigit, os.listdir("/proc")) if _is_door(pid, host)]
    assert len(doors) == (owner == "alice")
    for pid in [str(host.pod()["pid"]), *doors]:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        assert stat[3] == pid and stat[4] == "0", (pid, stat[:6])  # a session of its own, without a terminal
    os.close(master), os.close(slave)


def test_what_root_asks_as_her_has_nothing_of_roots(host, session, alice, lent, box, keyring):
    """She stops the process in which root asks her nsrun, looks into it, and finds a keyring of its own and few limits."""
    alice.run("join", lent, "-d", "--name", "m", "--image", box, "--", "sleep", "1000")
    script = f"""
import os, signal, sys, time
print("ready", flush=True)
end = time.time() + 20
while time.time() < end:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = open(f"/proc/{{pid}}/cmdline", "rb").read()
            if int(pid) != os.getpid() and b"__main__.py" in words and b"{host.root}" in words:
                os.kill(int(pid), signal.SIGSTOP)
                print(pid, flush=True)
                sys.exit()
        except OSError: pass
"""
    thief = subprocess.Popen(alice.words(sys.executable, "-c", script), cwd="/", stdout=subprocess.PIPE, text=True)
    assert thief.stdout.readline() == "ready\n"
    for _ in range(10):  # it may be quicker than she looks
        asking = session.start("ls", "-a")
        wait_for(lambda p=asking: p.poll() is not None or select.select([thief.stdout], [], [], 0)[0])
        if asking.poll() is None:
            break
    try:
        pid = int(thief.stdout.readline())
        found = of_process(pid)
        environ = pathlib.Path(f"/proc/{pid}/environ").read_text()
        links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        cwd = os.readlink(f"/proc/{pid}/cwd")
        answer = int(alice.sh(keyring, "keyring", pid).stdout)
    finally:
        thief.wait(timeout=30)
        asking.communicate(timeout=30)
    assert answer > 0 and answer != session.keyring
    assert found["limits"]["Max processes"] == [1, 1] and found["limits"]["Max locked memory"] == [0, 0]
    assert found["nice"] == 0 and found["oom"] >= 0 and found["status"]["Umask"] == "0022"
    assert not any(name in environ for name in SECRET) and cwd == "/"
    assert not any(str(session.file) in link for link in links)


def test_sudo_exec_takes_nothing_along(host, session, alice, lent, box, keyring):
    """`sudo nsrun exec` of a member of hers: the process that waits is hers, with her own limits, an environment that is named, and no key."""
    alice.run("join", lent, "-d", "--name", "m", "--image", box, "--", "sleep", "1000", preexec_fn=modest)
    words = ["exec", "-i", "-e", "SECRET_OF_ROOT", "m", "sh", "-c", "env; cat /proc/self/limits; cat"]
    waiting = session.start(*words, env={"TERM": "vt100"}, stdin=subprocess.PIPE)
    try:
        wait_for(lambda: "follow=" in pathlib.Path(f"/proc/{waiting.pid}/cmdline").read_text())
        found, environ = of_process(waiting.pid), pathlib.Path(f"/proc/{waiting.pid}/environ").read_text()
        links = [os.readlink(f"/proc/{waiting.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{waiting.pid}/fd")]
        answer = int(alice.sh(keyring, "keyring", waiting.pid).stdout)
        cwd = os.readlink(f"/proc/{waiting.pid}/cwd")
    finally:
        out, _ = waiting.communicate(timeout=30)  # its end of input ends it
    assert found["status"]["Uid"].split() == [str(ALICE)] * 4
    assert answer > 0 and answer != session.keyring
    assert found["nice"] >= 0 and found["oom"] >= 0
    names = {line.partition("=")[0] for line in environ.split("\0") if line}
    assert names <= {"HOME", "USER", "LOGNAME", "PATH", "TERM", "LANG", "LC_ALL", "LC_CTYPE", "NSRUN_CGROUP"}, names
    assert cwd == "/" and not any(str(session.file) in link for link in links)
    assert "SECRET_OF_ROOT=1" in out and "AWS_SESSION_TOKEN" not in out  # -e NAME: root asked for it


def test_root_as_a_user_has_the_limits_of_that_users_processes():
    """The highest of any process of theirs, not of root's; a door, whose saved group is not theirs, does not count."""
    ident = 500_000 + os.getpid()  # nobody else's, whatever runs at the same time

    def start(most: int, saved: int) -> subprocess.Popen:
        script = f"""
import os, resource, time
for kind in (resource.RLIMIT_NPROC, resource.RLIMIT_NOFILE): resource.setrlimit(kind, ({most} - 1, {most}))
os.setgroups([]), os.setresgid({ident}, {ident}, {saved}), os.setresuid({ident}, {ident}, {ident})
print(flush=True)
time.sleep(1000)
"""
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        process.stdout.readline()
        return process

    script = f"""
import resource, sys
sys.path[:] = {sys.path!r}
from nsrun import kernel
from nsrun.host import userns
kernel.become({ident}, {ident}, [])
userns._take_limits()
print(*resource.getrlimit(resource.RLIMIT_NPROC), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""
    ask = lambda: sh(sys.executable, "-c", script).stdout.split()  # noqa: E731
    processes = [start(5000, 65535)]
    try:
        assert ask()[:2] == ["64", "64"]
        processes.append(start(50, ident))
        assert ask() == ["49", "50", "49", "50"]
        processes.append(start(70, ident))
        assert ask() == ["69", "70", "69", "70"]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_limits_of_somebody_without_a_process(alice, host, owned, box):
    """Nobody to compare with: root's commands for her dead member work, with few limits."""
    alice.run("join", owned, "-d", "--name", "m", "--image", box, "--", "true")
    wait_for(lambda: alice.member("m")["status"] == "stopped")
    assert host.run("logs", "m").stdout == ""
    host.run("rm", "m")
    assert alice.json("ls", "-a") == []


def test_what_root_joins_has_no_more_than_limits_of_roots(host, session, lent, busybox, keyring):
    """Root's own member in her pod is in her hands (SECURITY.md): no key, no variable, no descriptor, no priority of root's."""
    script = f"{READ}; echo ---key; /keyring find; echo ---fds; ls -l /proc/self/fd; echo ---"
    options = ["--security-opt", "seccomp=unconfined", "-v", f"{keyring}:/keyring:ro", "--rootfs", busybox]
    found = told(session.run("join", lent, "--rm", *options, "--", "sh", "-c", script))
    assert found["key"] == "-1\n" and not any(name in found["environ"] for name in SECRET)
    assert str(session.file) not in found["fds"]
    assert standing(found)["nice"] == 0 and standing(found)["oom"] >= 0
    # what is lower than an ordinary process's was root's choice, and stays
    out = host.run("join", lent, "--rm", "--rootfs", busybox, "cat", "/proc/self/stat", preexec_fn=lambda: os.nice(7))
    assert int(out.stdout.rpartition(")")[2].split()[16]) == 7


def test_securebits_do_not_keep_roots_capabilities(host, alice, box):
    """With SECBIT_NO_SETUID_FIXUP setresuid keeps every capability: what becomes her drops them itself."""
    command = ["setpriv", "--securebits", "+no_setuid_fixup", NSRUN]
    sh(*command, "pod", "create", "--network", "none", "pause", env={**host.env, "SUDO_UID": str(ALICE)})
    door = next(int(pid) for pid in filter(str.isdigit, os.listdir("/proc")) if _is_door(pid, host))
    status = of_process(door)["status"]
    assert all(int(status[name], 16) == 0 for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"))
    assert alice.run("join", "pause", "--rm", "--image", box, "--", "id", "-u").stdout == "0\n"


def test_a_namespace_that_she_stops():
    """The process in whose user namespace root writes the maps is hers to stop: root ends it all the same."""
    script = f"""
import os, signal, sys
sys.path[:] = {sys.path!r}
from nsrun import kernel
os.close(kernel.new_userns(({ALICE}, {ALICE}), lambda pid: os.kill(pid, signal.SIGSTOP)))
"""
    sh(sys.executable, "-c", script, timeout=10)


def test_who_called(monkeypatch):
    """sudo, doas and pkexec tell who called; when they contradict each other, nobody is guessed."""
    accounts = {"alice": 12001, "bob": 12002, "12001": 12001, "12002": 12002, "0": 0}

    class Account:
        def __init__(self, word: str) -> None:
            if word not in accounts:
                raise BadInput(f"this machine has no user {word!r}")
            self.uid = accounts[word]

    monkeypatch.setattr(userns, "User", Account)
    for environ, uid in (
        ({"SUDO_UID": "12001"}, 12001), ({"DOAS_USER": "alice"}, 12001), ({"PKEXEC_UID": "12001"}, 12001),
        ({"SUDO_UID": "12001", "DOAS_USER": "alice", "PKEXEC_UID": "12001"}, 12001),
    ):  # fmt: skip
        assert userns.owner_of(None, environ).uid == uid
    for environ in ({}, {"SUDO_UID": "0"}, {"DOAS_USER": "root"}, {"PKEXEC_UID": "0", "SUDO_UID": "0"}):
        assert userns.owner_of(None, environ) is None
    for environ in (
        {"SUDO_UID": "12001", "DOAS_USER": "bob"}, {"SUDO_UID": "12001", "PKEXEC_UID": "0"}, {"SUDO_UID": "alice"}, {"PKEXEC_UID": "+1"},
        {"SUDO_UID": ""}, {"DOAS_USER": ""}, {"DOAS_USER": "nobody-here"},
    ):  # fmt: skip
        with pytest.raises(BadInput):
            userns.owner_of(None, environ)
        assert userns.owner_of("bob", environ).uid == 12002  # --owner is clear


@pytest.mark.parametrize("env", [{"DOAS_USER": "alice"}, {"PKEXEC_UID": str(ALICE)}])
def test_doas_and_pkexec(host, alice, env):
    host.run("pod", "create", "--network", "none", "pause", env=env)
    assert host.pod()["owner"] == "alice" and alice.json("pod", "ls")[0]["name"] == "pause"


def test_callers_who_contradict_each_other(host, alice, bob):
    text = host.fails(125, "pod", "create", "--network", "none", env={"SUDO_UID": str(ALICE), "DOAS_USER": "bob"})
    assert "SUDO_UID" in text and "DOAS_USER" in text and "--owner" in text
    assert host.json("pod", "ls") == []


# ---- root's resources do not hang on what she can hold up ----------------------------------------------------------
#
# Row 1 of "An owner against root".  The remedy is in manage.py, sweep.py and cgroup.py.

#: As alice, on the host: a server in the pod's network namespace, outside of its cgroup, and a process in the pod's PID
#: namespace whose parent, which is outside, never waits for it: pause can't end before it is reaped (pid_namespaces(7)).
HOLD_UP = r"""
import ctypes, os, signal, socket, sys, time
pause = os.pidfd_open(int(sys.argv[1]))
libc = ctypes.CDLL(None, use_errno=True)
def enter(flags):
    if libc.setns(pause, flags): raise OSError(ctypes.get_errno(), "setns")
if os.fork() == 0:
    enter(0x10000000 | 0x40000000)  # user, net
    server = socket.create_server(("0.0.0.0", 80))
    os.write(1, b"server\n")
    while True:
        conn, _ = server.accept()
        conn.sendall(b"HTTP/1.0 200 OK\r\n\r\nhers\n")
        conn.close()
enter(0x10000000 | 0x20000000)  # user, pid
if os.fork() == 0:
    time.sleep(1000)
os.write(1, b"parent\n")
while True: time.sleep(1000)  # and never waits
"""


def test_root_removes_a_pod_whose_pause_can_not_end(host, alice, box):
    """`sudo nsrun pod rm -f` needs nothing of hers: ports, table, link, cgroup and name are free, and her server is out of reach."""
    before = host.snapshot()
    host.run("pod", "create", "-p", "127.0.0.1:20840:80", "held", env={"SUDO_UID": str(ALICE)})
    alice.run("join", "held", "-d", "--name", "m", "--image", box, "--", "sleep", "1000")
    pause = host.pod("held")["pid"]
    holder = subprocess.Popen(
        alice.words(sys.executable, "-c", HOLD_UP, pause),
        cwd="/",
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert {holder.stdout.readline() for _ in range(2)} == {"server\n", "parent\n"}
        page = lambda: sh("curl", "-s", "-m", "3", "http://127.0.0.1:20840/", check=False).stdout  # noqa: E731
        wait_for(lambda: page() == "hers\n")
        began = time.monotonic()
        host.run("pod", "rm", "-f", "held", timeout=30)
        assert time.monotonic() - began < 5
        assert page() == ""
        assert host.json("pod", "ls") == []
        after = host.snapshot()
        for key in ("links", "tables", "cgroups"):
            assert after[key] == before[key], key
        assert not [line for line in after["processes"] if "nsrun-hold" in line or "nsrun-door" in line]
        # the name, the address and the port serve another pod, while what she holds is still there
        host.run("pod", "create", "-p", "127.0.0.1:20840:80", "held", env={"SUDO_UID": str(ALICE)})
        assert page() == ""
        host.run("pod", "rm", "-f", "held")
    finally:
        os.killpg(holder.pid, 9)
        holder.wait()


def test_a_pod_whose_pause_was_killed_and_can_not_end(host, alice, box):
    """She kills pause herself: for names, ports and addresses the pod is gone with the next command of root's."""
    host.run("pod", "create", "-p", "127.0.0.1:20841:80", "held", env={"SUDO_UID": str(ALICE)})
    pause = host.pod("held")["pid"]
    holder = subprocess.Popen(
        alice.words(sys.executable, "-c", HOLD_UP, pause),
        cwd="/",
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        for _ in range(2):
            holder.stdout.readline()
        assert alice.sh("kill", "-9", pause, check=False).returncode == 0
        held = str(host.root / "run/pods/held/held")
        wait_for(lambda: not life.ask(held).alive, what="nsrun-hold has seen it")
        host.run("pod", "create", "-p", "127.0.0.1:20841:80", "held", env={"SUDO_UID": str(ALICE)}, timeout=30)
        assert sh("curl", "-s", "-m", "3", "http://127.0.0.1:20841/", check=False).stdout == ""
        host.run("pod", "rm", "-f", "held", timeout=30)
    finally:
        os.killpg(holder.pid, 9)
        holder.wait()


# ---- what she locks, what she holds up ---------------------------------------------------------------------

#: `lock HOW FILE`: takes a read lock on the keeper's byte of a file, prints who has it, and stays.
LOCK = r"""
import ctypes, fcntl, os, struct, sys, time
how, fd = sys.argv[1], os.open(sys.argv[2], os.O_RDONLY)
lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 1, 1, 0)
if how == "shared":  # by a process that ends, while its descriptor table goes on
    if os.fork() == 0:
        if ctypes.CDLL(None).syscall({"x86_64": 56, "aarch64": 220}[os.uname().machine], 0x400 | 17, 0, 0, 0, 0) == 0:
            time.sleep(100); os._exit(0)
        fcntl.fcntl(fd, fcntl.F_SETLK, lock)
        os._exit(0)
    os.wait()
else:
    fcntl.fcntl(fd, 37 if how == "description" else fcntl.F_SETLK, lock)
print(os.getpid(), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["process", "description", "shared"])
def test_a_lock_of_hers_is_no_proof_of_life(host, alice, owned, how):
    """She locks the file that root shows her, and kills pause: for root the pod is dead, and nobody else is killed for it."""
    shown = host.root / "owned" / str(ALICE) / f"{owned}.held"
    pause = host.pod()["pid"]
    locker = subprocess.Popen(
        alice.words(sys.executable, "-c", LOCK, how, shown), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )  # fmt: skip
    try:
        bystander = int(locker.stdout.readline())
        alice.sh("kill", "-9", pause)
        wait_for(lambda: host.json("pod", "ls", "-a")[0]["status"] == "stopped", 10, "root sees it dead")
        assert host.json("pod", "ls") == []
        for words in (["pod", "ls", "-a"], ["doctor"], ["pod", "kill", "-s", "USR1", owned], ["pod", "stop", owned]):
            done = host.run(*words, check=False)
            assert "F_GETLK" not in done.stderr and "Traceback" not in done.stderr
        host.run("pod", "create", "--network", "none", owned)  # the name is free
        host.run("pod", "rm", "-f", owned)
        host.run("pod", "prune")
        assert locker.poll() is None and os.path.exists(f"/proc/{bystander}")
    finally:
        locker.kill()
        sh("pkill", "-KILL", "-s", str(locker.pid), check=False)
        locker.communicate()


def test_a_pod_whose_holder_was_killed_is_known_and_ended(host, alice, owned, busybox):
    """Its pause goes on, and holds no lock that root believes: its number, start time and open files do."""
    host.run("join", owned, "-d", "--name", "r", "--rootfs", busybox, "--", "sleep", "1000")
    pause, member = host.pod()["pid"], host.member("r")["pid"]
    holder = next(pid for pid in filter(str.isdigit, os.listdir("/proc")) if _holds(pid, host))
    os.kill(int(holder), 9)
    wait_for(lambda: not os.path.exists(f"/proc/{holder}") or "Z" in pathlib.Path(f"/proc/{holder}/stat").read_text())
    assert host.pod()["pid"] == pause and host.json("ls")[0]["pid"] == member
    assert host.run("pod", "create", "--network", "none", owned, check=False).returncode == 125
    host.run("pod", "rm", "-f", owned)
    wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in (pause, member)), 5, "all of it ends")


def _holds(pid: str, host) -> bool:
    try:
        named = pathlib.Path(f"/proc/{pid}/comm").read_bytes().strip() == b"nsrun-hold"
        return named and any(
            os.readlink(f"/proc/{pid}/fd/{fd}").startswith(f"{host.root}/") for fd in os.listdir(f"/proc/{pid}/fd")
        )
    except OSError:
        return False


#: Seizes every nsrun of hers, and never waits for it: whoever is its parent can't take its exit status.
TRACER = r"""
import ctypes, os, sys
libc, seen = ctypes.CDLL(None), set()
print("ready", flush=True)
while True:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if pid in seen or int(pid) == os.getpid(): continue
        try:
            if b"__main__.py" in open(f"/proc/{pid}/cmdline", "rb").read() and os.stat(f"/proc/{pid}").st_uid == os.getuid():
                seen.add(pid)
                if libc.ptrace(0x4206, int(pid), 0, 0) == 0: print("seized", flush=True)
        except OSError: pass
"""


def test_root_does_not_wait_for_what_she_traces(host, alice, owned, box):
    alice.run("join", owned, "-d", "--name", "m", "--image", box, "--", "sleep", "1000")
    tracer = subprocess.Popen(alice.words(sys.executable, "-c", TRACER), stdout=subprocess.PIPE, text=True)
    try:
        assert tracer.stdout.readline() == "ready\n"
        forbidden = pathlib.Path("/proc/sys/kernel/yama/ptrace_scope")
        can = not forbidden.exists() or forbidden.read_text() == "0\n"
        for _ in range(20):
            began = time.monotonic()
            for words in (["ls"], ["exec", "m", "true"]):
                host.run(*words, check=False, timeout=20)
            assert time.monotonic() - began < 19  # of each, at most the 5 s of its answer, and a second
            if not can or select.select([tracer.stdout], [], [], 0)[0]:
                break
        else:
            raise AssertionError("she traced nothing")
    finally:
        tracer.kill()
        tracer.communicate()
