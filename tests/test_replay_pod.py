# SPDX-License-Identifier: Apache-2.0
"""What the front replays of `pod create`: the same pod, the same notes, and nothing is left when it fails (docs/replay.md)."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import NSRUN, Host, need, not_editable, processes, sh, wait_for
from test_limits import on_v2
from test_replay import CALLS, MUST, NOTHING, WRAPPED, plans, told
from test_replay_join import injected, normal, settle

from nsrun.state import codec

pytestmark = [pytest.mark.live, not_editable]

CREATE = ["pod", "create", "--network", "none", "x"]


@pytest.fixture
def again(host) -> list[str]:
    """The words of a pod that was made, and ended: what it has left is the plan."""
    leave(host, CREATE)
    return CREATE


def leave(host: Host, words: list[str]) -> str:
    """Have Python make the pod, which leaves the plan, and end it; return its name."""
    name = host.run(*words).stdout.strip()
    host.run("pod", "kill", name)
    return name


def is_replayed(host: Host, words: list[str], **kwargs: Any) -> bool:
    """Whether the front makes the pod, which is ended again."""
    done = host.run(*words, env={**MUST, **kwargs.pop("env", {})}, check=False, **kwargs)
    assert done.returncode == 0 or (done.returncode, done.stderr) == (125, NOTHING), done
    if done.returncode == 0:
        host.run("pod", "kill", done.stdout.strip())
    return done.returncode == 0


def both(host: Host, words: list[str]) -> Iterator[str]:
    """Make the pod by Python, and then by the front; yield its name each time, and end it."""
    for replay in ("0", "1", "must"):
        name = host.run(*words, env={"NSRUN_REPLAY": replay}).stdout.strip()
        if replay != "1":
            yield name
        host.run("pod", "kill", name)


def shown(host: Host, name: str) -> list[str]:
    """What the kernel shows of pause, but for what differs from one process to the next."""
    proc = pathlib.Path(f"/proc/{host.pod(name)['pid']}")
    own = os.readlink("/proc/self/ns/user"), os.readlink("/proc/self/ns/cgroup")
    spaces = [f"{path.name} {os.readlink(path) in own}" for path in sorted((proc / "ns").iterdir())]
    files = sorted(os.readlink(path) for path in (proc / "fd").iterdir())
    texts = [
        (proc / file).read_text().rstrip("\0")  # of the arguments, where the number of a descriptor was
        for file in ("status", "limits", "mountinfo", "cgroup", "cmdline", "environ", "oom_score_adj", "comm")
    ]
    inside = ["nsenter", "-t", proc.name, "--net", "--ipc", "--uts"]
    texts += [sh(*inside, "sh", "-c", "ip -o address; ip -o link; hostname; ipcs -l; cat /proc/sys/net/ipv4/ping_group_range").stdout]  # fmt: skip
    root = proc / "root"
    tree = [f"{path.relative_to(root)} {path.lstat().st_mode:o} {path.lstat().st_uid}" for path in sorted([*root.iterdir(), *(root / "etc").iterdir(), *(root / "dev").iterdir()])]  # fmt: skip
    tree += [(root / "etc" / file).read_text() for file in ("hosts", "hostname", "resolv.conf")]
    return [normal(line) for line in [*spaces, *files, *told("\n".join(texts)), *tree]]


OPTIONS: dict[str, list[str]] = {
    "nothing": [],
    "the network of the host": ["--network", "host"],
    "a host name": ["--hostname", "other.example"],
    "names": ["--add-host", "a:10.0.0.1", "--dns", "9.9.9.9"],
    "parameters": ["--sysctl", "net.ipv4.ip_default_ttl=77", "--sysctl", "kernel.shmmni=99"],
    "a small memory": ["--shm-size", "1m"],
    "labels": ["--label", "a=\u00e4\x01n", "--label", "b="],
    "root's": ["--owner", "root"],
}


@pytest.mark.parametrize("what", OPTIONS)
def test_the_pod_is_the_same(host, what):
    words = ["pod", "create", "--network", "none", *OPTIONS[what], "x"]
    python, front = [(shown(host, name), note_of(host, name)) for name in both(host, words)]
    for ours, its in zip(python, front, strict=True):
        assert its == ours
    assert len(front[0]) > 80


def note_of(host: Host, name: str) -> tuple[str, list[tuple[str, int, int]]]:
    """Its note, but for what differs from one pod to the next, and the files that there are beside it."""
    directory = host.root / "run/pods" / name
    files = [(path.name, path.stat().st_mode, path.stat().st_size * (path.name != "note")) for path in sorted(directory.iterdir())]  # fmt: skip
    note = (directory / "note").read_text()
    codec.decode(note.encode(), codec.SHAPES["pods"])
    return normal(re.sub(r'"(crc|created)": "[^"]*"', "", note)), files


def group_of(host: Host, name: str) -> pathlib.Path:
    note = codec.decode((host.root / "run/pods" / name / "note").read_bytes(), codec.SHAPES["pods"])
    return pathlib.Path(note["cgroup"])


def test_the_note_is_of_this_pod(host, again):
    host.run(*again, env=MUST)
    directory = host.root / "run/pods/x"
    note = codec.decode((directory / "note").read_bytes(), codec.SHAPES["pods"])
    assert note["pause"][0] == host.pod("x")["pid"]
    for name, inode in note["namespaces"].items():
        assert os.stat(f"/proc/{note['pause'][0]}/ns/{name}").st_ino == inode
    assert set(note["namespaces"]) == {"net", "ipc", "uts", "pid", "mnt", "cgroup", "user"}
    assert note["held"] == (directory / "held").stat().st_ino
    assert (note["cgroup_id"], note["cgroup"].rpartition("-")[2]) == (os.stat(note["cgroup"]).st_ino, note["id"])
    first = note["id"], note["created"]
    host.run("pod kill x")
    host.run(*again, env=MUST)
    note = codec.decode((directory / "note").read_bytes(), codec.SHAPES["pods"])
    assert note["id"] != first[0] and note["created"] > first[1]
    assert os.listdir(host.root / "run/tmp") == []


def test_it_works_as_one(host, again, busybox):
    """Members join it, and it ends as any other."""
    host.run(*again, env=MUST)
    words = ["join", "x", "--rootfs", busybox, "sh", "-c", "hostname; ip -o -4 address; cat /etc/hosts"]
    assert host.run(*words).stdout.startswith("x\n1: lo    inet 127.0.0.1/8 ")
    assert "127.0.1.1\tx\n" in host.run(*words).stdout
    assert [pod["status"] for pod in host.json("pod ls")] == ["running"]
    host.run("pod stop x")
    assert host.json("pod ls -a") == []


def test_without_a_name(host):
    words = ["pod", "create", "--network", "none"]
    assert leave(host, words) == "pause"
    assert host.run(*words, env=MUST).stdout == "pause\n" and host.pod("pause")["status"] == "running"


def test_the_plan_outlives_its_pod(host, again):
    for end in ("pod kill x", "pod stop x", "pod rm -f x"):
        host.run(*again, env=MUST)
        host.run(end)
    assert len(plans(host)) == 1 and is_replayed(host, again)


def test_explain_tells_what_is_taken_for_granted(host, again):
    text = " ".join(host.run("explain", *again).stdout.split())
    assert "There is a compiled plan" in text and "/etc/resolv.conf" in text and "$NSRUN_CGROUP" in text


def test_the_same_system_calls_are_made(host, again, tmp_path):
    need(shutil.which("strace"), "strace is missing", "apt-get install strace")
    python, front = (calls_of(host, tmp_path / replay, again, replay) for replay in ("0", "must"))
    assert len(front) == len(python) == 3  # nsrun, what makes the network namespace, and pause
    kept = re.compile(
        r"PR_[GS]ET_DUMPABLE|^pidfd_open|^memfd_create|^socket\(AF_UNIX, SOCK_DGRAM"
    )  # if_nametoindex(3), of lo
    assert [line for line in front[0] if not kept.search(line)] == [line for line in python[0] if not kept.search(line)]
    assert sorted(line for line in front[0] if line.startswith("memfd_create")) == sorted(line for line in python[0] if line.startswith("memfd_create"))  # fmt: skip
    assert front[1:] == python[1:]
    assert any("execveat" in line and '"/pause"' in line for line in front[2])


def calls_of(host: Host, directory: pathlib.Path, words: list[str], replay: str) -> list[list[str]]:
    """The system calls of each process of a `pod create`, in order, up to when pause is there."""
    directory.mkdir()
    trace = f"trace={CALLS},mkdir,mkdirat,mount,move_mount,pivot_root,mount_setattr,socket,bind,sethostname"
    tracer = subprocess.Popen(
        ["strace", "-ff", "-qq", "-e", trace, "-o", directory / "t", NSRUN, *words],
        env={**host.env, "NSRUN_REPLAY": replay},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert tracer.stdout and tracer.stdout.readline() == "x\n"
    host.run("pod kill x")  # it traces pause, too, until that ends
    assert tracer.wait(30) == 0
    found = []
    for path in sorted(directory.iterdir(), key=lambda path: int(path.suffix[1:])):
        lines = [re.sub(r"\b[0-9a-f]{12}\b|0x[0-9a-f]+|\d+", "N", re.sub(r"\s+", " ", line)) for line in path.read_text().splitlines()]  # fmt: skip
        lines = [
            line.replace("mkdirat(AT_FDCWD, ", "mkdir(").replace("nl_pad=N, ", "")
            for line in lines
            if not line.startswith(("---", "+++"))
        ]
        starts = [number for number, line in enumerate(lines) if line.startswith("mkdir(") and "run/tmp" in line]
        found.append(lines[starts[0] :] if starts else lines)
    return found


# ---- what is stale ---------------------------------------------------------------------------------------------------


def over(path: str, content: str) -> list[str]:
    """A command line that begins with another file in the place of this one, for what comes after it."""
    script = f'f=$(mktemp -p /run); printf "{content}" >$f; mount --bind $f {path}; rm $f; exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, "-"]


RESOLV = os.path.realpath("/etc/resolv.conf")
PLACES = {
    **WRAPPED,
    "another name server": over(RESOLV, "nameserver 192.0.2.53\\n"),
    "no name server": over(RESOLV, ""),
    "a name server that is no text": over(RESOLV, "a\\0b"),
    "another cgroup": ["env", "NSRUN_CGROUP=nsrun-test-other"],
    "no cgroup": ["env", "NSRUN_CGROUP=none"],
    "the cgroups of the host": ["env", "-u", "NSRUN_CGROUP"],
    "a caller": ["env", "SUDO_UID=12001"],
    "another caller": ["env", "DOAS_USER=alice"],
    "one more": ["env", "PKEXEC_UID=12001"],
    "another subnet": ["env", "NSRUN_SUBNET=10.99.0.0/24"],
    "another state": ["env", "NSRUN_ROOT=/run/nowhere"],
    "something else over the cgroups": ["unshare", "--mount", "sh", "-c", 'for d in /sys/fs/cgroup/unified /sys/fs/cgroup; do [ ! -d $d ] || mount -t tmpfs tmpfs $d || exit; done; exec "$@"', "-"],
}  # fmt: skip


@pytest.mark.parametrize("what", PLACES)
def test_from_another_place(host, alice, again, what):
    before = host.snapshot()
    done = sh(*PLACES[what], NSRUN, *again, env={**host.env, **MUST}, check=False)
    assert done.returncode == 125 and done.stderr in (NOTHING, ""), done
    assert host.snapshot() == before
    assert is_replayed(host, again)


def test_a_name_server_that_has_changed(host):
    """Python leaves another plan, by which the front makes the same pod."""
    servers = host.root / "servers"
    for text in ("nameserver 192.0.2.1\n", "nameserver 192.0.2.2\n"):
        servers.write_text(text)
        words = ["unshare", "--mount", "sh", "-c", f'mount --bind {servers} {RESOLV}; exec "$@"', "-", NSRUN, *CREATE]
        assert sh(*words, env={**host.env, **MUST}, check=False).stderr == NOTHING
        for env in (host.env, {**host.env, **MUST}):
            sh(*words, env=env)
            assert pathlib.Path(f"/proc/{host.pod('x')['pid']}/root/etc/resolv.conf").read_text() == text
            host.run("pod kill x")


@pytest.mark.parametrize("more", [" " * 4200, "\0"], ids=("large", "no text"))
def test_a_name_server_that_leaves_no_plan(host, more):
    (host.root / "servers").write_text(f"nameserver 192.0.2.1\n#{more}\n")
    words = ["unshare", "--mount", "sh", "-c", f'mount --bind {host.root}/servers {RESOLV}; exec "$@"', "-"]
    sh(*words, NSRUN, *CREATE, env=host.env)
    assert plans(host) == []


def test_what_leaves_no_plan(host, alice):
    for number, (options, env) in enumerate((
        (["--owner", "alice"], {}),
        ([], {"SUDO_UID": str(alice.uid)}),
        ([], {"DOAS_USER": "alice"}),
        ([], {"NSRUN_CGROUP": "none"}),
        ([], {"NSRUN_CGROUP": ""}),
        ([], {"NSRUN_REPLAY": "0"}),
    )):  # fmt: skip
        host.run("pod create --network none", *options, f"p{number}", env=env)
        assert plans(host) == [], (options, env)
    host.run("pod create with-bridge")
    host.run("--root", host.root, "pod", "create", "--network", "none", "named-root")
    host.run("pod create --network none -p 80:80 q", check=False)
    assert plans(host) == []
    alice.run("pod create --network none hers")
    assert list(alice.root.glob(f"users/{alice.uid}/run/plans/*")) == []


def test_other_words(host, again):
    for words in (again[:-1], [*again, "y"], [*again, "--"], [*again[:-1], "y"], ["pod", "create", "x"], ["--debug", *again]):  # fmt: skip
        assert not is_replayed(host, words), words


def test_many_directories_of_cgroups(host):
    env = {"NSRUN_CGROUP": f"{os.environ['NSRUN_CGROUP']}/a/b"}
    host.run(*CREATE, env=env)
    host.run("pod kill x", env=env)
    assert host.cgroups() == []
    host.run(*CREATE, env={**env, **MUST})
    assert "/a/b/x-" in str(group_of(host, "x"))
    host.run("pod kill x", env=env)


@on_v2
def test_limits(host):
    words = ["pod", "create", "--network", "none", "--memory", "64m", "--cpus", "0.5", "--pids-limit", "77", "x"]
    host.run(*words)
    host.run("pod kill x")
    seen = []
    for name in both(host, words):
        group = group_of(host, name)
        files = ["memory.max", "cpu.max", "pids.max", "cgroup.subtree_control", "pause/cgroup.controllers"]
        files += ["memory.swap.max"] if (group / "memory.swap.max").exists() else []
        seen.append([(group / file).read_text() for file in files])
    assert seen[0] == seen[1] and seen[0][:3] == [f"{64 << 20}\n", "50000 100000\n", "77\n"]


def test_what_members_use_is_counted(host, again):
    """What this machine's cgroups can count is offered to those of the members, as Python does it."""
    seen = []
    for name in both(host, again):
        group = group_of(host, name)
        seen.append([(path / "cgroup.subtree_control").read_text() for path in (group, group.parent)])
    assert seen[0] == seen[1]


# ---- names -----------------------------------------------------------------------------------------------------------


def test_a_name_that_is_taken(host, again):
    host.run(*again, env=MUST)
    ident = host.pod("x")["id"]
    done = host.run(*again, env=MUST, check=False)
    assert (done.returncode, done.stderr) == (125, NOTHING)
    assert "pod name 'x' is taken" in host.fails(125, *again)
    assert host.pod("x")["id"] == ident and os.listdir(host.root / "run/tmp") == []
    assert len(plans(host)) == 1


def test_a_pod_that_has_ended(host, again):
    """Its notes are still there, which are Python's to remove; the plan that it leaves then is good for the next."""
    for _ in range(2):
        host.run(*again)
        pid = host.pod("x")["pid"]
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: [pod["status"] for pod in host.json("pod ls -a")] == ["stopped"], 10, "its end")
        assert not is_replayed(host, again)
    host.run(*again)
    host.run("pod kill x")
    assert is_replayed(host, again)


def test_two_at_once(host, again):
    """Whoever comes first has the name; the other one's claim is found to be rubbish."""
    for _ in range(10):
        running = [subprocess.Popen([NSRUN, *again], env=host.env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) for _ in range(6)]  # fmt: skip
        ended = [(process.communicate(timeout=60)[1], process.returncode) for process in running]
        assert sorted(code for _, code in ended) == [0, *[125] * 5], ended
        assert all("is taken" in text or "is being made" in text for text, code in ended if code)
        assert len(host.json("pod ls -a")) == 1
        assert len(host.cgroups()) == 3  # of all pods, of this one, of pause
        host.run("pod kill x")
    host.run("pod ls")
    assert os.listdir(host.root / "run/tmp") == []


def test_several_names_at_once(host):
    for number in range(8):
        leave(host, ["pod", "create", "--network", "none", f"p{number}"])
    words = [[NSRUN, "pod", "create", "--network", "none", f"p{number}"] for number in range(8)]
    running = [subprocess.Popen(some, env={**host.env, **MUST}, stdout=subprocess.DEVNULL) for some in words]
    assert [process.wait(60) for process in running] == [0] * 8
    assert [pod["status"] for pod in host.json("pod ls")] == ["running"] * 8


# ---- faults ----------------------------------------------------------------------------------------------------------


def test_a_full_state_directory(host, again):
    """Python says what is wrong, wherever the space ends; nothing is left."""
    before = host.snapshot()
    where = host.root / "run/tmp"
    for inodes in range(1, 5):
        sh("mount", "-t", "tmpfs", "-o", f"nr_inodes={inodes}", "tmpfs", where)
        try:
            assert "ENOSPC" in host.fails(125, *again) or "full" in host.fails(125, *again)
        finally:
            sh("umount", where)
    assert host.snapshot() == before
    assert is_replayed(host, again)


FAILING = {
    "renameat": 3,  # the first note, the name, the note
    "mkdirat": 4,  # the claim, and three cgroups
    "socket": 1,
    "unshare": 1,
    "setns": 4,  # for lo and for pause, there and back
    "memfd_create": 3,  # two programs, and the plan of one of them
    "socketpair": 1,
    "clone3": 2,
    "bind": 1,
}


@pytest.mark.parametrize("call", FAILING)
def test_a_step_that_fails(host, again, call):
    """What was begun is taken back: the front itself leaves nothing that anybody holds, no name and no cgroup."""
    before, rest_before = host.snapshot(), rest(host)
    for count in range(1, 12):
        rules = injected("-e", f"trace={call}", "-e", f"inject={call}:error=ENOSPC:when={count}")
        done = traced(host, [*rules, *(["-f"] if call == "unshare" else [])], again)
        if done.returncode == 0:
            break
        assert done.returncode == 125 and (done.stderr == NOTHING or "setns(2) back" in done.stderr), done
        assert rest(host) == rest_before and len(host.cgroups()) <= 1
        assert not (host.root / "run/pods/x").exists()
        if not plans(host):  # the name was taken: so that this is left only once
            leave(host, again)
    assert count - 1 == FAILING[call]
    host.run("pod kill x")
    host.run("pod prune")
    assert host.snapshot() == before


def rest(host: Host) -> dict[str, object]:
    """What may not be left even until the next command: not rubbish in the state directory, nor the cgroup of all pods."""
    return {key: value for key, value in host.snapshot().items() if key not in ("notes", "cgroups")}


def traced(host: Host, tracer: list[str], words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run it with all its processes traced, and let pause end when it is there."""
    process = subprocess.Popen([*tracer, NSRUN, *words], env={**host.env, **MUST}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stdout
    if process.stdout.readline():
        host.run("pod kill x")
        process.communicate(timeout=30)
        return host.run(*words, env=MUST, check=False)
    out, err = process.communicate(timeout=30)
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def test_python_says_what_failed(host, again):
    """It does the same anew, and its message is about what it met itself."""
    (path,) = plans(host)
    data = path.read_bytes()
    limit = ["sh", "-c", 'ulimit -f 4; exec "$@"', "-"]
    done = sh(*limit, NSRUN, *again, env=host.env, check=False)
    assert done.returncode == 125 and "EFBIG" in done.stderr and done.stderr.startswith("nsrun: ")
    assert not (host.root / "run/pods/x").exists()
    assert path.exists() is False or path.read_bytes() == data
    host.run(*again)


def test_what_fails_after_the_release(host, again):
    """Pause runs already: it is ended, with its cgroup, and Python makes the pod."""
    before, rest_before = host.snapshot(), rest(host)
    mark = host.root / "run/pods/x/started"
    rules = injected("-P", str(mark), "-e", "trace=openat", "-e", "inject=openat:error=ENOSPC:when=1")
    done = sh(*rules, NSRUN, *again, env={**host.env, **MUST}, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (125, "", NOTHING)
    assert host.json("pod ls -a") == [] and plans(host) == []
    assert rest(host) == rest_before and len(host.cgroups()) <= 1
    host.run("pod ls")
    wait_for(lambda: host.snapshot() == before, 10, "nothing of it is left")
    leave(host, again)
    assert sh(*rules, NSRUN, *again, env=host.env).stdout == "x\n"
    assert host.pod("x")["status"] == "running"


def test_into_what_nobody_reads(host, again):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([NSRUN, *again], env={**host.env, **MUST}, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"") and host.pod("x")["status"] == "running"
    host.run("pod kill x")
    with open("/dev/full", "w") as full:
        done = subprocess.run([NSRUN, *again], env={**host.env, **MUST}, stdout=full, stderr=subprocess.PIPE, check=False)  # fmt: skip
    assert done.returncode == 125 and b"can't be written: No space left" in done.stderr
    assert host.pod("x")["status"] == "running"


def test_killed_after_every_system_call(host, again):
    """No process is left, whenever the front is killed before the release; the next commands remove what it had begun."""
    before = host.snapshot()
    out = host.root / "calls"
    sh(*injected("-o", str(out)), NSRUN, *again, env={**host.env, **MUST})
    host.run("pod kill x")
    calls = [line.partition("(")[0] for line in out.read_text().splitlines() if line[0].isalpha()]
    begin = calls.index("getrandom")  # what is before it only looks
    made = 0
    for at in range(begin, len(calls)):
        name, count = calls[at], calls[: at + 1].count(calls[at])
        if name in ("exit_group", "munmap", "mmap", "close"):
            continue
        killer = injected("-e", f"trace={name}", "-e", f"inject={name}:signal=KILL:when={count}")
        done = subprocess.run([*killer, NSRUN, *again], env={**host.env, **MUST}, capture_output=True, timeout=30, check=False)  # fmt: skip
        assert done.returncode == -signal.SIGKILL, (name, count, done)
        wait_for(lambda: processes() == before["processes"], 10, "no nsrun-init is left")
        if host.json("pod ls"):  # which sweeps; it was killed after the release
            made += 1
            # a pause that finds nobody to tell that it is ready ends by itself, perhaps only now
            host.run("pod kill x", check=False)
        wait_for(lambda: host.run("pod ls") and left(host) == [], 10, f"nothing of it is left: {name} {count}")
    assert len(calls) - begin > 80 and 0 < made < 10 and host.snapshot() == before
    assert is_replayed(host, again)


def left(host: Host) -> list[str]:
    """Names, claims and cgroups."""
    return [*map(str, host.root.glob("run/pods/*")), *map(str, host.root.glob("run/tmp/*")), *host.cgroups()]


def held_at(host: Host, words: list[str], path: str, call: str, seconds: float = 1.5) -> subprocess.Popen[str]:
    """A front that waits a while in a system call about a file of the pod's, after it was made."""
    delay = f"inject={call}:delay_exit={int(seconds * 1e6)}"
    rules = injected("-P", str(host.root / path), "-e", f"trace={call}", "-e", delay)
    return subprocess.Popen([*rules, NSRUN, *words], env=host.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip


def test_it_is_not_swept_while_it_is_made(host, again):
    begun = held_at(host, again, "run/pods/x", "renameat", 8)  # longer than six commands take on a busy machine
    wait_for((host.root / "run/pods/x").exists, 10, "its claim")
    for _ in range(2):
        host.run("pod prune --all")
        assert "is being made" in host.fails(125, "pod kill x") and "is taken" in host.fails(125, *again)
    out, errors = begun.communicate(timeout=60)
    assert (begun.returncode, out) == (0, "x\n"), errors
    assert host.pod("x")["status"] == "running" and len(host.cgroups()) == 3


def test_ended_while_it_is_made(host, again):
    """Whoever ends it means it: it is not made once more."""
    note = host.root / "run/pods/x/note"
    before = host.snapshot()
    begun = held_at(host, again, "run/pods/x/note", "renameat")
    wait_for(lambda: note.exists() and '"pause"' in note.read_text(), 10, "its note")
    host.run("pod kill x", check=False)
    _, errors = begun.communicate(timeout=60)
    assert begun.returncode == 125 and "the pod was ended before it had begun" in errors
    wait_for(lambda: host.snapshot() == before, 10, "nothing of it is left")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("command", ["pod create", "join"])
def test_interrupted(host, rootfs, command, number):
    """What was begun is taken back, and Python says so, as for its own."""
    words = CREATE
    settle(rootfs)
    if command == "join":
        host.run("pod create --network none pause")
        words = ["join", "--rm", "pause", "--rootfs", str(rootfs), "true"]
    host.run(*words)
    if command == "pod create":
        host.run("pod kill x")
    before = host.snapshot()
    rules = injected("-e", "trace=socketpair", "-e", f"inject=socketpair:signal={number.name}:when=1")
    done = subprocess.run([*rules, NSRUN, *words], env={**host.env, **MUST}, capture_output=True, text=True, timeout=30, check=False)  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "nsrun: interrupted\n")
    assert host.snapshot() == before and not is_replayed(host, words)
    host.run(*words)
    if command == "pod create":
        host.run("pod kill x")
    done = sh("sh", "-c", f'trap "" {number.name[3:]}; exec "$@"', "-", *rules, NSRUN, *words, env={**host.env, **MUST})
    assert done.stderr == "", "a caller that ignores it is not interrupted"


def test_few_descriptors(host, again):
    for most in range(24, 62, 3):
        done = sh("sh", "-c", f'ulimit -n {most}; exec "$@"', "-", NSRUN, *again, env=host.env, check=False)
        assert (done.returncode, done.stdout) == (0, "x\n"), (most, done.stderr)
        host.run("pod kill x")


def test_an_umask(host, again):
    seen = []
    for replay in ("0", "must"):
        sh("sh", "-c", 'umask 077; exec "$@"', "-", NSRUN, *again, env={**host.env, "NSRUN_REPLAY": replay})
        group = group_of(host, "x")
        paths = [group, group.parent, group / "pause", *(host.root / "run/pods/x").iterdir()]
        seen.append([oct(path.stat().st_mode) for path in sorted(paths, key=lambda path: path.name.partition("-")[0])])
        host.run("pod kill x")
    assert seen[0] == seen[1]


def test_without_its_plan_it_says_so(host):
    done = host.run(*CREATE, env=MUST, check=False)
    assert (done.returncode, done.stderr) == (125, NOTHING)
    assert json.loads(host.run("pod ls --json").stdout) == []


#: Each witness of the plan, by its name in csrc/protocol.h, and the test that changes it.
WITNESSES: dict[str, Callable[..., object]] = {
    "words": test_other_words,
    "same_link": test_from_another_place,
    "same_text": test_from_another_place,
    "same_powers": test_from_another_place,
    "same_variable": test_from_another_place,
    "absent": test_a_name_that_is_taken,
    "cgroup": test_from_another_place,
}
