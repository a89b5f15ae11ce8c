# SPDX-License-Identifier: Apache-2.0
"""What explain prints is what is run: strace shows the same calls, process by process, and the shell form builds the same."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest
from conftest import HERE, NSRUN, kill, need, not_editable, private, settled, sh, wait_for
from images import Layout, directory, entry, tar
from test_plan import PLANS

from nsrun.host import net
from nsrun.lifecycle import foretell, foretell_image, foretell_network, foretell_ports
from nsrun.plan import INIT, Part, name_of
from nsrun.plan.health import PrepareChecks

MOUNTS = "fsopen,fsconfig,fsmount,open_tree,move_mount,mount_setattr,mount,umount2,pivot_root"
PROCESSES = "clone3,fork,vfork,setns,unshare,setsid,keyctl,execve,execveat,setgroups,setresgid,setresuid,capset,chdir"
#: What strace is asked for, of nsrun (with the helpers that it clones), and of nsrun-init.
OF_NSRUN = f"{MOUNTS},{PROCESSES},memfd_create,bind,connect,pidfd_open,rename,mkdir,mkdirat,pipe2,fchown,fchownat,fcntl,sendto,sendmsg,pidfd_send_signal,flock,pidfd_getfd,pwrite64".split(",")  # fmt: skip
OF_INIT = f"{MOUNTS},{PROCESSES},openat,openat2,mkdirat,mknodat,symlinkat,write,read,prctl,ioctl,socket,fchdir,sethostname,seccomp,prlimit64,close_range,fcntl".split(",")  # fmt: skip
#: These can't be told from what Python does all the time: reading modules and notes, asking for the index of an interface.
TOO_COMMON = {
    "ftruncate",
    "open",
    "openat",
    "openat2",
    "fstat",
    "read",
    "write",
    "ioctl",
    "socket",
    "setsockopt",
    "listen",
    "dup",
    "poll",
    "unlinkat",
}


def traced(host, words, tmp_path, code=0, env=None):
    """(the calls of nsrun, those of each helper and child in the order in which they began, those of nsrun-init), by name."""
    need(os.path.exists("/usr/bin/strace"), "strace is missing", "apt-get install strace")
    file = tmp_path / "trace"
    file.unlink(missing_ok=True)
    options = "trace=" + ",".join(f"?{name}" for name in {*OF_NSRUN, *OF_INIT, "clone"})
    strace = subprocess.Popen(
        [*host.words("strace"), "-f", "-o", file, "-e", options, NSRUN, *map(str, words)],
        env={**host.env, "NSRUN_REPLAY": "0", **(env or {})},  # the calls of Python, which leaves no compiled plan
        cwd="/",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:  # it would follow pause, and the member, for as long as they live
        first = wait_for(lambda: file.exists() and re.match(r"(\d+) ", file.read_text()), 20).group(1)
        ended = wait_for(
            lambda: re.search(rf"^{first} +\+\+\+ exited with (\d+)", file.read_text(), re.M), 30, "nsrun ends"
        )
        settled()
    finally:
        strace.kill()
        strace.wait(timeout=100)
    assert int(ended.group(1)) == code, file.read_text()[-2000:]
    found: dict[str, list[str]] = {}
    over: set[str] = set()  # what has become another program than nsrun or nsrun-init
    inits: dict[str, list[str]] = {}
    for line in file.read_text().splitlines():
        match = re.match(r"(\d+) +(\w+)\((.*)", line)
        if not match or match.group(1) in over:
            continue
        pid, name, rest = match.groups()
        if pid in inits:
            inits[pid] += [name] if name in OF_INIT else []
            if name in ("execve", "execveat"):
                over.add(pid)
            continue
        if name == "clone" and "CLONE_VM" not in rest:
            name = "fork"
        if name == "memfd_create" and "EINVAL" in rest:
            continue  # MFD_EXEC came with Linux 6.3; without it, once more
        if (name == "sendto" and ("nlmsg_len" not in rest or re.search("NLM_F_DUMP|RTM_GET", rest))) or (
            name == "bind" and "AF_NETLINK" in rest
        ):
            continue  # of netlink only what changes something
        if name == "clone3" and "CLONE_THREAD" in rest:
            continue
        if (name == "connect" and "nscd" in rest) or (name == "rename" and "__pycache__" in rest):
            continue  # who somebody is; what Python compiled
        if name == "fcntl" and not re.search("F_SETLK|F_ADD_SEALS", rest):
            continue
        calls = found.setdefault(pid, [])
        if name not in OF_NSRUN or (name == "execve" and pid == first and not calls):
            continue
        calls.append(name)
        if name == "execveat" and '"nsrun-init"' in rest:
            inits[pid] = []
        elif name in ("execve", "execveat"):
            over.add(pid)
    (init,) = inits.values() or [[]]
    return found.pop(first), list(found.values()), init


class Expected:
    """What explain says of a command line, as regular expressions of names that are each followed by a blank."""

    def __init__(self, host, words, env=None):
        self.document = json.loads(host.run("explain", "--format", "json", *words, env=env or {}).stdout)
        self.others: list[str] = []  # of each process that is no more than part of a step
        self.nsrun: list[tuple[str, str]] = []  # (step, pattern)
        self.init = [("nsrun-init", "prctl prctl ")]  # it is not dumpable, and has its name, before the first step
        for number, step in enumerate(self.document["steps"], 1):
            inside = step["phase"] == "Init"
            told = (f"{number} {step['step']}", self._pattern(step["parts"], OF_INIT if inside else OF_NSRUN))
            (self.init if inside else self.nsrun).append(told)

    def _pattern(self, parts, names, optional=False):
        found = ""
        for part in parts:
            if isinstance(part, str):
                name = name_of(part)
                found += f"{name} " if name in names else ""
            elif part["by"] == "nsrun-door":
                continue  # it is not ours to trace
            elif part["by"]:
                place = len(self.others)
                self.others.append("")
                self.others[place] = f"(?:{self._pattern(part['parts'], names, optional)}\n){'?' if optional else ''}"
            elif part["each"] and not part["times"]:
                inner = re.findall(r"\w+", self._pattern(part["parts"], names, True))
                found += f"(?:(?:{'|'.join(inner)}) )*" if inner else ""
            else:
                inner = self._pattern(part["parts"], names, optional or bool(part["when"]))
                found += f"(?:{inner}){'?' if part['when'] else '{' + str(part['times']) + '}'}" if inner else ""
        return found

    def check(self, outside, others, init=None):
        before, sweep = (
            ("what holds the image before there is a plan", "(?:flock )?"),
            ("the sweep that follows", "(?:flock )?"),
        )
        same([before, *self.nsrun, sweep], [f"{name} " for name in outside])
        lines = ["".join(f"{name} " for name in calls) + "\n" for calls in others if calls]
        same([("another process", pattern) for pattern in self.others], lines)
        if init is not None:
            same(self.init, [f"{name} " for name in init])


def same(steps, calls):
    """Is what was called what the steps said, no less and no more?"""
    line, pattern = "".join(calls), ""
    for step, its in [*steps, ("the end", "$")]:
        before = re.match(pattern, line)
        pattern += its
        assert re.match(pattern, line), (step, its, "after", before and before[0][-300:], "of", line)


@not_editable  # coverage makes calls of its own
@pytest.mark.parametrize(
    "words",
    [
        ["pod", "create", "x"],
        ["pod", "create", "--network", "none", "x"],
        ["pod", "create", "-p", "127.0.0.1:20900:80", "x"],
    ],
)
def test_pod_create_is_what_strace_shows(host, tmp_path, words):
    expected = Expected(host, words)
    expected.check(*traced(host, words, tmp_path))


@not_editable  # coverage makes calls of its own
@pytest.mark.parametrize("options", [["--network", "none"], ["-p", "127.0.0.1:20900:80"]])
def test_an_owned_pod_is_what_strace_shows(host, alice, tmp_path, options):
    words, env = ["pod", "create", *options, "x"], {"SUDO_UID": str(alice.uid)}
    expected = Expected(host, words, env)
    expected.check(*traced(host, words, tmp_path, env=env))


@not_editable  # coverage makes calls of its own
@pytest.mark.parametrize("options", [[], ["-d"]])
def test_an_owners_join_is_what_strace_shows(host, alice, owned, box, options):
    """What she does herself; the door and what it forks are not hers to trace."""
    alice.run("join", owned, "--rm", "--image", box, "true")
    words = ["join", owned, *options, "--image", box, "--", "true"]
    expected = Expected(alice, words)
    outside, others, _ = traced(alice, words, alice.home)
    expected.check(outside, others)


@not_editable  # coverage makes calls of its own
@pytest.mark.parametrize("options", [[], ["-d"]])
def test_roots_join_of_an_owned_pod_is_what_strace_shows(host, alice, owned, busybox, tmp_path, options):
    host.run("join", owned, "--rm", "--rootfs", busybox, "true")
    words = ["join", owned, *options, "--rootfs", busybox, "true"]
    expected = Expected(host, words)
    expected.check(*traced(host, words, tmp_path))


@not_editable  # coverage makes calls of its own
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["-d"],
        ["--net", "own", "--uts", "own"],
        ["--read-only", "--tmpfs", "/t", "-u", "33", "--ulimit", "nofile=64:64"],
        ["-v", "/usr:/mnt/usr:ro", "-w", "/tmp", "--device", "/dev/full"],
        ["-d", "--health-cmd", "true"],
        ["-d", "--health-tcp", "80"],
    ],
)
def test_join_is_what_strace_shows(host, pod, busybox, tmp_path, options):
    host.run("join", "pause", "--rm", "--rootfs", busybox, "true")  # the filter is compiled by the first that needs it
    words = ["join", "pause", "--name", "m", *options, "--rootfs", busybox, "true"]
    expected = Expected(host, words)
    expected.check(*traced(host, words, tmp_path))


@not_editable  # coverage makes calls of its own
@pytest.mark.parametrize("volumes", [{}, {"/data": {}}])
def test_join_image_is_what_strace_shows(host, pod, busybox, tmp_path, volumes):
    base = subprocess.run(["tar", "-C", busybox, "-c", "."], stdout=subprocess.PIPE, check=True, timeout=30).stdout
    layout = Layout(base, tar(directory("data"), entry("x")), name="box:1", Cmd=["true"], Volumes=volumes)
    host.run("image", "load", layout.write(tmp_path / "l"))
    host.run("join", "pause", "--rm", "--image", "box:1")  # the filter is compiled by the first that needs it
    words = ["join", "pause", "--name", "m", "--image", "box:1"]
    expected = Expected(host, words)
    expected.check(*traced(host, words, tmp_path))


@not_editable  # coverage makes calls of its own
def test_exec_is_what_strace_shows(host, pod, busybox, tmp_path):
    host.start("a", busybox, "sleep", "1000")
    words = ["exec", "a", "true"]
    expected = Expected(host, words)
    expected.check(*traced(host, words, tmp_path))


@pytest.mark.parametrize("name", PLANS)
def test_strace_is_asked_for_every_call_that_is_named(name):
    """So that no text names a call which nothing compares with what is made."""

    def named(items):
        for item in items:
            yield from named(item.items) if isinstance(item, Part) else [name_of(item)]

    for step in PLANS[name]():
        known = OF_INIT if step.phase == INIT else {*OF_NSRUN, *TOO_COMMON}
        if isinstance(step, PrepareChecks):  # tests/test_health.py compares what a check calls
            known = {*OF_INIT, *OF_NSRUN}
        assert set(named(step.made())) - {""} <= {*known}, step


def foretold(host, tmp_path, *words, threads=True):
    """Is what explain says what is then done, by nsrun and each of its threads?"""
    expected = Expected(host, [*words])
    outside, others, _ = traced(host, words, tmp_path)
    expected.check(outside, others if threads else [])


@not_editable  # coverage makes calls of its own
def test_the_end_of_members_is_what_strace_shows(host, pod, busybox, tmp_path):
    for name in ("a", "c", "m"):
        host.start(name, busybox, "sleep", "1000")
    host.start("b", busybox, "sh", "-c", "trap : TERM; while :; do sleep 1; done")  # it is killed in the end
    host.start("d", busybox, "sleep", "1000", options=["--stop-signal", "KILL"])
    foretold(host, tmp_path, "kill", "-s", "CONT", "a")
    foretold(host, tmp_path, "stop", "-t", "0.2", "a", "b")
    foretold(host, tmp_path, "kill", "c")
    foretold(host, tmp_path, "rm", "a", "c")
    foretold(host, tmp_path, "rm", "-f", "b", "d")
    assert "'m' is running" in host.fails(125, "explain", "rm", "m")


@not_editable  # coverage makes calls of its own
def test_the_end_of_pods_is_what_strace_shows(host, busybox, tmp_path):
    for name in ("one", "two", "three"):
        host.run("pod", "create", name)
        host.run("join", name, "-d", "--name", f"in-{name}", "--rootfs", busybox, "sleep", "1000")
    foretold(host, tmp_path, "pod", "stop", "-t", "0.2", "one")
    foretold(host, tmp_path, "pod", "kill", "-s", "USR1", "two")
    foretold(host, tmp_path, "pod", "kill", "two")
    foretold(host, tmp_path, "pod", "rm", "-f", "three")


def test_a_step_that_failed_shows_its_plan(host, pod, busybox):
    """The line can be typed as it stands, and tells nothing that -e said."""
    words = ["join", "pause", "--rootfs", busybox, "-e", "TOKEN=s e c r e t", "--env=A=s e c r e t", "-eB=s e c r e t", "-w", "/etc/passwd/it's", "--", "echo", "a b"]  # fmt: skip
    told = host.fails(125, *words)
    line = told.splitlines()[-1].partition("step by step: ")[2]
    assert "step " in told and "secret" not in told.replace(" ", ""), told
    want = ["nsrun", "explain", *words]
    want[7], want[8], want[9] = "TOKEN", "--env=A", "-eB"
    assert shlex.split(line) == want
    assert "execve" in host.run(*shlex.split(line)[1:], env={"TOKEN": "x"}).stdout
    assert "step by step" not in host.fails(127, "join", "pause", "--rootfs", busybox, "nope")
    assert "step by step" not in host.fails(125, "join", "nopod", "true")


def test_one_step_is_one(host):
    assert host.run("explain", "volume", "prune", "--all").stdout.startswith("volume prune: 1 step\n")
    assert host.run("explain", "pod", "prune").stdout.startswith("pod prune: 2 steps\n")


def test_the_shell_form_of_an_end(host, pod, busybox, tmp_path):
    host.start("a", busybox, "sleep", "1000")
    (tmp_path / "stop.sh").write_text(host.run("explain", "--format", "shell", "stop", "-t", "3", "a").stdout)
    sh("sh", tmp_path / "stop.sh")
    assert host.run("wait", "a").stdout == "143\n"
    (tmp_path / "pod.sh").write_text(host.run("explain", "--format", "shell", "pod", "kill", "pause").stdout)
    sh("sh", tmp_path / "pod.sh")
    assert wait_for(lambda: "pause" not in host.run("pod", "ls").stdout)


def test_what_stands_for_a_function_names_it():
    """The steps of commands that run no plan."""
    modules = (foretell, foretell_image, foretell_network, foretell_ports)
    texts = [pathlib.Path(module.__file__).read_text() for module in modules]
    names = re.findall(r'(?:native = |, )"(\w+/\w+\.py) (\w+)"', "".join(texts))
    assert len(names) > 20
    for file, name in names:
        assert re.search(rf"^ *def {name}\(", (HERE.parent / "nsrun" / file).read_text(), re.M), (file, name)


@not_editable  # coverage makes calls of its own
def test_prune_is_what_strace_shows(host, pod, busybox, tmp_path):
    host.run("join", "pause", "-d", "--name", "old", "--rootfs", busybox, "true")
    host.run("wait", "old")
    host.run("pod", "create", "dead")
    kill(host.pod("dead")["pid"])
    foretold(host, tmp_path, "pod", "prune")


@not_editable  # coverage makes calls of its own
def test_image_load_is_what_strace_shows(host, tmp_path):
    layout = Layout(tar(directory("a")), tar(directory("b")), name="box:1").write(tmp_path / "l")
    for _ in range(2):  # the second time all is there
        foretold(host, tmp_path, "image", "load", layout, threads=False)  # their number is that of the layers


@not_editable  # coverage makes calls of its own
def test_what_is_done_to_images_is_what_strace_shows(host, tmp_path):
    one, two = Layout(tar(directory("a")), tar(directory("b")), name="one:1"), Layout(tar(directory("c")), name="two:1")
    for number, layout in enumerate((one, two)):
        host.run("image", "load", layout.write(tmp_path / f"l{number}"))
    for _ in range(2):  # the second time it has the name already
        foretold(host, tmp_path, "image", "tag", "one:1", "other:2")
    for image in ("one:1", "two:1"):
        foretold(host, tmp_path, "image", "unpack", image, tmp_path / f"new/{image[:3]}/bundle", threads=False)
        assert (tmp_path / f"new/{image[:3]}/bundle/config.json").exists()
    assert "new name" in host.fails(2, "explain", "image", "tag", "one:1", f"other:3@sha256:{'0' * 64}")
    assert "not an empty" in host.fails(125, "explain", "image", "unpack", "one:1", "/usr")
    assert "remove the image" in host.run("explain image rm one:1 other:2").stdout
    foretold(host, tmp_path, "image", "rm", "one:1")
    foretold(host, tmp_path, "image", "rm", "two:1")
    names = host.root / "lib/images/names.json"
    names.write_text("{")
    foretold(host, tmp_path, "image", "prune")
    foretold(host, tmp_path, "image", "prune")
    foretold(host, tmp_path, "image", "prune", "-a")
    assert host.json("image", "ls") == []
    assert "no image" in host.fails(125, "explain", "image", "rm", "one:1")


def handles_are_declared(host, *words):
    """What a step asks the run for, and what it leaves there, is what it declares."""
    done = sh(sys.executable, HERE / "handles.py", *words, env=host.env)
    found = json.loads(done.stdout)
    assert found, done.stderr
    for step in found:
        needs, makes = ({name.rstrip("?") for name in step[key]} for key in ("needs", "makes"))
        assert set(step["asked"]) <= needs, step
        assert set(step["left"]) <= makes, step
        assert {name for name in step["makes"] if not name.endswith("?")} <= set(step["left"]), step
    return [step["step"] for step in found]


def test_steps_declare_their_handles(host, pod, busybox, rootfs):
    host.start("a", busybox, "sleep", "1000")
    join = ["join", "pause", "--rootfs", busybox]
    handles_are_declared(host, "pod", "create", "-p", "127.0.0.1:20901:80", "x")
    handles_are_declared(host, *join, "-d", "--name", "b", "-v", "named:/v", "--device", "/dev/full", "sleep", "9")
    assert handles_are_declared(host, *join, "-i", "--name", "c", "cat")[-1] == "HandOver"
    handles_are_declared(host, *join, "--name", "h", "--health-cmd", "true", "true")
    handles_are_declared(host, *join, "-d", "--name", "i", "--health-cmd", "true", "true")
    written = ["join", "pause", "--rootfs", rootfs, "--writable"]  # its own copy
    assert handles_are_declared(host, *written, "-t", "--name", "d", "true")[-1] == "HandOver"
    assert handles_are_declared(host, "exec", "a", "true")[-1] == "HandOver"


def test_steps_of_an_owned_pod_declare_their_handles(host, alice, busybox):
    env = {"SUDO_UID": str(alice.uid)}
    host.env.update(env)
    steps = handles_are_declared(host, "pod", "create", "-p", "127.0.0.1:20902:80", "x")
    assert {"HoldForPod", "OpenDoor", "ShowOwner"} <= {*steps}
    handles_are_declared(host, "join", "x", "-d", "--rootfs", busybox, "sleep", "9")


def test_nothing_is_done(host, pod, busybox):
    before = host.snapshot()
    for form in ("text", "shell", "json"):
        assert host.run("explain", "--format", form, "pod", "create", "-p", "8080:80", "web").stdout
        assert host.run("explain", "--format", form, "join", "pause", "--rootfs", busybox, "true").stdout
        assert host.run("explain", "--format", form, "join", "not-yet-there", "true").stdout
    assert host.snapshot() == before
    assert "explain knows" in host.fails(2, "explain", "pod", "ls")


def test_the_text_is_stable(host):
    one, two = (host.run("explain", "pod", "create", "-p", "8080:80", "web").stdout for _ in range(2))
    assert one == two and "5 Commit" in one and "see: " in one and "man: " in one


def test_trace_names_every_step(host):
    done = host.run("--trace", "pod", "create", "--network", "none", "web")
    lines = [line for line in done.stderr.splitlines() if re.match(r" +\d+ ", line)]
    steps = json.loads(host.run("explain", "--format", "json", "pod", "create", "--network", "none", "web").stdout)[
        "steps"
    ]
    assert len(
        [line for line in lines if re.match(r" +\d+ +(\d+\.\d+ ms|·) +(Open|Host|Join|Init|Commit)", line)]
    ) == len(steps)


# ---- the shell form, run as root in the throwaway host --------------------------------------------------------


@pytest.fixture
def scratch(host):
    """Where the script keeps its overlay directories: on a tmpfs, because an overlay can't lie on an overlay."""
    with private(host, "/var/tmp"):
        os.mkdir("/var/tmp/nsrun-shell")
        sh("mount", "-t", "tmpfs", "tmpfs", "/var/tmp/nsrun-shell")
        yield
        sh("umount", "/var/tmp/nsrun-shell")


@pytest.fixture(params=[(), ("--subnet", "10.97.0.16/28"), ("--subnet", "10.97.0.0/16", "--ip", "10.97.7.200")], ids=lambda words: "-".join(words[1::2]) or "default")  # fmt: skip
def subnet(request):
    return request.param


@pytest.fixture
def by_hand(host, busybox, scratch, tmp_path, subnet):
    """A pod and a member built by the scripts that explain prints."""
    (tmp_path / "pod.sh").write_text(
        host.run("explain", "--format", "shell", "pod", "create", *subnet, "-p", "20800:80", "byhand").stdout
    )
    with open(tmp_path / "errors", "w") as errors:
        done = subprocess.run(
            ["sh", tmp_path / "pod.sh"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            timeout=100,
            check=False,
        )
    assert done.returncode == 0, (tmp_path / "errors").read_text()
    pid = int(done.stdout.split()[-1])
    words = [
        "join",
        "byhand",
        "--name",
        "m",
        "--rootfs",
        busybox,
        "-e",
        "A=b",
        "--",
        "sh",
        "-c",
        "mkdir -p /w; echo by-hand >/w/index.html; echo x >/dev/shm/shared; exec httpd -f -p 80 -h /w",
    ]
    (tmp_path / "join.sh").write_text(host.run("explain", "--format", "shell", *words).stdout)
    log = open(tmp_path / "log", "w")
    member = subprocess.Popen(
        ["sh", tmp_path / "join.sh"],
        env={**os.environ, "POD": str(pid)},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
    )
    try:
        wait_for(
            lambda: (
                member.poll() is not None
                or ":0050 "
                in pathlib.Path(f"/proc/{pid}/net/tcp6").read_text() + pathlib.Path(f"/proc/{pid}/net/tcp").read_text()
            ),
            what="httpd by hand",
        )
        assert member.poll() is None, (tmp_path / "log").read_text()
        yield pid, member.pid
    finally:
        host.run("pod", "rm", "-f", "real")
        sh("kill", "-9", pid)
        member.wait(timeout=100)
        log.close()
        wait_for(lambda: not os.path.exists(f"/proc/{pid}"))
        settled()
        for family, table in re.findall(r"table (ip6?) (\S+)", sh("nft", "list", "tables").stdout):
            sh("nft", "delete", "table", family, table)
        for link in json.loads(sh("ip", "-j", "link").stdout):
            if link["ifname"].startswith("nsr"):
                sh("ip", "link", "del", link["ifname"], check=False)
        for path in sorted(host.cgroups(), key=len, reverse=True):
            wait_for(lambda path=path: not pathlib.Path(path, "cgroup.procs").read_text())
            os.rmdir(path)
        sh("rm", "-r", "/run/nsrun-shell")


def checks(pid: int, port: int) -> dict[str, object]:
    """What can be seen of a pod, whoever built it."""
    found: dict[str, object] = {}
    for name in ("net", "ipc", "uts", "pid", "mnt"):
        found[f"own {name}"] = (
            os.stat(f"/proc/{pid}/ns/{name}").st_ino != os.stat(f"/proc/thread-self/ns/{name}").st_ino
        )
    found["uid"] = re.search(r"Uid:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text()).group(1)
    found["caps"] = re.search(r"CapBnd:\s+(\w+)", pathlib.Path(f"/proc/{pid}/status").read_text()).group(1)
    found["pid 1"] = re.search(r"NSpid:.*\s(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text()).group(1)
    inside = ["nsenter", "-t", str(pid), "-n", "-u"]
    found["hostname"] = sh(*inside, "hostname").stdout.strip()
    found["ports"] = sh(*inside, "sysctl", "-n", "net.ipv4.ip_unprivileged_port_start").stdout.strip()
    found["address"] = [
        f"{a['local']}/{a['prefixlen']}"
        for family in ("-4", "-6")
        for i in json.loads(sh(*inside, "ip", "-j", family, "address").stdout)
        for a in i["addr_info"]
    ]
    found["routes"] = [
        sorted(r["dst"] for r in json.loads(sh(*inside, "ip", "-j", family, "route").stdout)) for family in ("-4", "-6")
    ]
    found["itself"] = sh(*inside, "curl", "-sS", "-m", "3", f"http://192.0.2.1:{port}/", check=False).stdout.strip()
    bridge = sh("ip", "-6", "-o", "address", "show", "nsrun0", "scope", "global", check=False).stdout.split()[3:4]
    for address in ("127.0.0.1", "192.0.2.1", *(f"[{six.partition('/')[0]}]" for six in bridge), "[::1]"):
        found[address] = sh("curl", "-sS", "-m", "3", f"http://{address}:{port}/", check=False).stdout.strip()
    return found


def test_the_shell_form_builds_an_equivalent_pod(host, busybox, by_hand, subnet):
    hand = checks(by_hand[0], 20800)
    member = next(int(p) for p in os.listdir("/proc") if p.isdigit() and _is_httpd(p, by_hand[0]))
    status = pathlib.Path(f"/proc/{member}/status").read_text()
    hand_member = (
        re.search(r"CapEff:\s+(\w+)", status).group(1),
        sorted(os.listdir(f"/proc/{member}/root/dev")),
        pathlib.Path(f"/proc/{member}/environ").read_bytes().split(b"\0"),
    )
    its = {(): "10.88.0.2", ("10.97.0.16/28",): "10.97.0.18"}.get(subnet[1::2], "10.97.7.200")
    ip = its.rpartition(".")[0] + ".25"
    host.run("pod", "create", *subnet[:2], "-p", "20801:80", "--hostname", "byhand", "--ip", ip, "real")
    host.run(
        "join real -d --name m --rootfs {} -e A=b -- sh -c 'mkdir -p /w; echo by-hand >/w/index.html; exec httpd -f -p 80 -h /w'",
        busybox,
    )
    pid = host.pod("real")["pid"]
    wait_for(
        lambda: (
            ":0050 "
            in pathlib.Path(f"/proc/{pid}/net/tcp6").read_text() + pathlib.Path(f"/proc/{pid}/net/tcp").read_text()
        )
    )
    real = checks(pid, 20801)
    for known in (real["address"], real["routes"][1]):
        known[:] = [
            a.replace(ip, its).replace(net.address6("fd00::", ip)[4:], net.address6("fd00::", its)[4:]) for a in known
        ]
    assert hand == real and list(hand.values())[-4:] == ["by-hand"] * 3 + [""] and hand["itself"] == "by-hand"
    member = host.member("m")["pid"]
    status = pathlib.Path(f"/proc/{member}/status").read_text()
    real_member = (
        re.search(r"CapEff:\s+(\w+)", status).group(1),
        sorted(os.listdir(f"/proc/{member}/root/dev")),
        pathlib.Path(f"/proc/{member}/environ").read_bytes().split(b"\0"),
    )
    assert hand_member[0] == real_member[0] and hand_member[1] == real_member[1]
    wanted = {
        b"A=b",
        b"HOME=/root",
        b"HOSTNAME=byhand",
        b"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }
    assert wanted <= set(real_member[2]) and wanted <= set(hand_member[2])


def test_the_script_of_a_join_is_for_a_pod_made_by_hand(host, pod, busybox, tmp_path):
    """In a pod of nsrun's no shell is in view; so it says what is missing, before it does anything."""
    (tmp_path / "join.sh").write_text(
        host.run("explain", "--format", "shell", "join", "pause", "--rootfs", busybox, "true").stdout
    )
    before = host.snapshot()
    done = sh("sh", tmp_path / "join.sh", check=False)
    assert done.returncode and "POD" in done.stderr and "pod create" in done.stderr
    assert host.snapshot() == before and not os.path.exists("/run/nsrun-shell")


def test_the_shell_form_of_an_owned_pod(host, alice, tmp_path):
    """By hand, as root: the same user namespace, maps and ids, devices and sysfs for members."""
    env = {"SUDO_UID": str(alice.uid)}
    script = tmp_path / "pod.sh"
    script.write_text(
        host.run("explain", "--format", "shell", "pod", "create", "--network", "none", "byhand", env=env).stdout
    )
    with open(tmp_path / "errors", "w") as errors:
        try:
            done = subprocess.run(["sh", "-x", script], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True, timeout=100, check=False)  # fmt: skip
        except subprocess.TimeoutExpired:
            pytest.fail(
                f"it hangs: …{(tmp_path / 'errors').read_text()[-3000:]}\n{sh('ps', '-eo', 'pid,ppid,stat,args').stdout[-6000:]}"
            )
    assert done.returncode == 0, (tmp_path / "errors").read_text()
    hand = int(done.stdout.split()[-1])
    try:
        host.run("pod", "create", "--network", "none", "real", env=env)
        real = host.pod("real")["pid"]
        for file in ("uid_map", "gid_map"):
            assert pathlib.Path(f"/proc/{hand}/{file}").read_text() == pathlib.Path(f"/proc/{real}/{file}").read_text()
        one, two = checks(hand, 1), checks(real, 1)
        assert (one.pop("hostname"), two.pop("hostname")) == ("byhand", "real") and one == two
        root = f"/proc/{hand}/root/run/nsrun-shell/root-byhand"
        assert sorted(os.listdir(f"{root}/dev")) == sorted(os.listdir(f"/proc/{real}/root/dev"))
        assert os.path.isdir(f"{root}/sys/class/net") and os.listdir(f"{root}/sys/class/net") == ["lo"]
    finally:
        sh("kill", "-9", hand)
        wait_for(lambda: not os.path.exists(f"/proc/{hand}"))
        for path in sorted((p for p in host.cgroups() if "byhand" in p), key=len, reverse=True):
            wait_for(lambda path=path: not pathlib.Path(path, "cgroup.procs").read_text())
            os.rmdir(path)
        sh("rm", "-r", "/run/nsrun-shell")


def test_the_shell_form_of_exec(host, pod, busybox, tmp_path):
    host.start("a", busybox, "sleep", "1000", options=["-u", "33", "-e", "A=b", "-w", "/tmp"])
    look = "id -u; id -g; pwd; hostname; echo $A; readlink /proc/self/ns/net; readlink /proc/self/ns/pid; grep CapEff /proc/self/status; ls /; ps | wc -l"
    words = ["exec", "a", "sh", "-c", look]
    (tmp_path / "exec.sh").write_text(host.run("explain", "--format", "shell", *words).stdout)
    hand, real = sh("sh", tmp_path / "exec.sh").stdout.splitlines(), host.run(*words).stdout.splitlines()
    assert hand[:-1] == real[:-1] and "net:" in real[5]


def _is_httpd(pid: str, pod: int) -> bool:
    try:
        command = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
        return (
            command.startswith(b"httpd\0")
            and os.stat(f"/proc/{pid}/ns/net").st_ino == os.stat(f"/proc/{pod}/ns/net").st_ino
        )
    except OSError:
        return False


def test_explain_of_a_users_member(host, alice, owned, box):
    """Root explains what it would do to a member in a user's pod, as its commands do it: as the pod's owner."""
    alice.run("join", owned, "-d", "--name", "om", "--image", box, "--", "sleep", "1000")
    for words in (["exec", "om", "id"], ["stop", "om"], ["kill", "om"], ["rm", "-f", "om"]):
        assert "om" in host.run("explain", *words).stdout
    assert "pod prune" in host.run("explain", "pod", "prune", "-a").stdout


def test_explain_of_what_is_not_there(host, pod):
    """With -f that is no error, as for the commands."""
    for words in (["rm", "-f", "nope"], ["pod", "rm", "-f", "nope"]):
        host.run("explain", *words)
        host.run(*words)
        host.fails(125, "explain", *[word for word in words if word != "-f"])


def test_prune_all_explains_what_it_removes(host, pod):
    """Data that no record speaks of are named before they go."""
    data = host.root / "lib/upper/0123456789ac/x"
    data.mkdir(parents=True)
    (data / "y").write_text("z")
    assert str(data.parent) in host.run("explain", "pod", "prune", "-a").stdout
    assert str(data.parent) not in host.run("explain", "pod", "prune").stdout
    assert str(data.parent) in host.run("pod", "prune", "-a").stdout
