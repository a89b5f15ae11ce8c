# SPDX-License-Identifier: Apache-2.0
"""`nsrun ns`: what it says about namespaces is what the kernel, lsns and the commands that it prints say."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import shlex
import subprocess
import sys

import pytest
from conftest import CLONE_NEWUTS, NSRUN, UserHost, need, processes, sh, wait_for

pytestmark = pytest.mark.live
KINDS = ("user", "pid", "net", "ipc", "uts", "mnt", "cgroup", "time")
TOOLS = "import ctypes, os, sys, threading, time; libc = ctypes.CDLL(None)\n"


def inode(pid: object, kind: str) -> int:
    return os.stat(f"/proc/{pid}/ns/{kind}").st_ino


def listing(host, *words: str) -> dict[int, dict]:
    found = json.loads(host.run("ns ls --json", *words).stdout)["namespaces"]
    return {one["namespace"]: one for one in found}


def pinned(host) -> set[str]:
    """Every path at which a namespace is mounted.  The number of one that has gone may be another one's by now."""
    return {mount["path"] for one in listing(host).values() for mount in one["mounts"]}


def table(host, *words: str) -> dict[str, str]:
    """The lines of `ns ls` by their number."""
    lines = host.run("ns ls", *words).stdout.splitlines()
    assert lines[0].split()[:4] == ["NAMESPACE", "TYPE", "PROCS", "PID"]
    return {line.split()[0]: line for line in lines[1:]}


def shared(host, a: object, b: object) -> dict[str, bool]:
    return {row["what"]: row["shared"] for row in differences(host, a, b)}


def differences(host, a: object, b: object) -> list[dict]:
    return json.loads(host.run("ns diff", a, b, "--json").stdout)["differences"]


@contextlib.contextmanager
def running(*words: object, ready: str = ""):
    """A process by hand; with `ready`, it prints that when it is so far."""
    process = subprocess.Popen([str(word) for word in words], stdout=subprocess.PIPE, text=True)
    try:
        if ready:
            assert process.stdout.readline().strip() == ready
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextlib.contextmanager
def unshared(*flags: str):
    """A process in namespaces of its own: gives its pid, on which --fork has no influence."""
    with running("unshare", *flags, "sh", "-c", "echo ready; exec sleep 300", ready="ready") as process:
        children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        yield int(children[0]) if children else process.pid


def python(script: str, *words: object):
    return running(sys.executable, "-u", "-c", TOOLS + script, *words, ready="ready")


@contextlib.contextmanager
def with_mounts():
    """A process in a mount namespace whose id is higher than our own's: Linux 6.18 counts them on each processor."""
    for cpu in sorted(os.sched_getaffinity(0)):
        with running("taskset", "-c", cpu, "unshare", "--mount", "sh", "-c", "echo ready; exec sleep 300", ready="ready") as process:  # fmt: skip
            if identity(process.pid) > identity("self") or not identity("self"):
                yield process.pid
                return
    raise AssertionError("no processor gives an id above our own's")


def identity(pid: object) -> int:
    """NS_GET_MNTNS_ID; 0 before Linux 6.10, where a younger one is always accepted."""
    fd, answer = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY), bytearray(8)
    try:
        fcntl.ioctl(fd, 0x8008B705, answer)
    except OSError:
        return 0
    finally:
        os.close(fd)
    return int.from_bytes(answer, "little")


@pytest.fixture
def two(host, pod, busybox):
    """The pids of pause and of the members web and db."""
    host.start("web", busybox, "sleep", "300")
    host.start("db", busybox, "sleep", "301")
    return host.pod()["pid"], host.member("web")["pid"], host.member("db")["pid"]


# ---- ls --------------------------------------------------------------------------------------------------------


def test_ls_says_what_lsns_says(host, two):
    pause, web, _ = two
    ours = listing(host)
    for pid in (pause, web, os.getpid()):
        words = ["lsns", "-J", "-o", "NS,TYPE", "-p", pid]  # which fails when another process ends meanwhile
        done = wait_for(lambda words=words: (done := sh(*words, check=False)).returncode == 0 and done)
        for row in json.loads(done.stdout)["namespaces"]:
            assert ours[row["ns"]]["type"] == row["type"], row
            assert inode(pid, row["type"]) == row["ns"]
    net = ours[inode(pause, "net")]
    assert {process["pid"] for process in net["processes"]} == set(two)
    assert [(p["pod"], p["member"]) for p in net["processes"]] == [("pause", ""), ("pause", "web"), ("pause", "db")]
    assert net["held_by"] == "processes" and not net["initial"] and net["owner_uid"] == 0
    if inode(os.getpid(), "pid") == 0xEFFFFFFC:  # otherwise it is out of view
        assert ours[0xEFFFFFFC]["initial"] and ours[0xEFFFFFFC]["type"] == "pid"
    pid = ours[inode(pause, "pid")]
    assert pid["parent"] == inode(os.getpid(), "pid") and pid["owner_namespace"] == inode(os.getpid(), "user")
    assert pid["namespace"] in ours[pid["parent"]]["children"]
    assert pid["namespace"] in ours[pid["owner_namespace"]]["owns"]


def test_ls_as_a_table(host, two):
    pause, web, _ = two
    lines = table(host)
    line = lines[str(inode(pause, "net"))]
    assert line.split()[1:4] == ["net", "3", str(pause)] and line.endswith("pod pause: pause web db")
    assert lines[str(inode(web, "mnt"))].endswith("pod pause: web")
    only = table(host, "--type", "uts")
    assert {line.split()[1] for line in only.values()} == {"uts"} and str(inode(pause, "uts")) in only


def test_ls_counts_whoever_joined_by_hand(host, two):
    pause, _, _ = two
    with running("nsenter", "-t", pause, "-n", "sleep", "300") as foreign:
        wait_for(lambda: inode(foreign.pid, "net") == inode(pause, "net"))
        assert "pause web db; 1 not started by nsrun" in table(host, "-t", "net")[str(inode(pause, "net"))]
        found = listing(host)[inode(pause, "net")]["processes"]
        assert [p["member"] for p in found if p["pid"] == foreign.pid] == [""]
        assert [p["pod"] for p in found if p["pid"] == foreign.pid] == [""]


def test_ls_knows_who_made_a_namespace(host, alice, owned):
    """An owner's pod: the creator is the owner, though root made it; the PID namespace is owned by the pod's user namespace."""
    pause = host.pod()["pid"]
    for who in (host, alice):
        found = listing(who)
        user = found[inode(pause, "user")]
        assert user["owner_uid"] == alice.uid and user["parent"] == inode(os.getpid(), "user")
        pid = found[inode(pause, "pid")]
        assert pid["owner_namespace"] == user["namespace"] and pid["owner_uid"] == alice.uid
        assert table(who)[str(pid["namespace"])].split()[4:7] == ["alice", str(user["namespace"]), str(pid["parent"])]
    assert listing(host)[0xEFFFFFFD]["owner_uid"] == 0


def test_ls_names_the_members_of_an_owner_for_root_too(host, alice, owned, box):
    alice.run("join pause -d --name hers --image {} sleep 300", box)
    need(host.cgroups(), "no cgroup v2", "a machine with cgroup v2")
    pid = alice.member("hers")["pid"]
    for who in (host, alice):
        assert "pod pause: pause hers" in table(who)[str(inode(pid, "net"))]
        assert json.loads(who.run("ns show hers --json").stdout)["pid"] == pid


def test_only_a_bind_mount(host, tmp_path):
    path = host.root / "a name"
    path.touch()
    with unshared("--net") as pid:
        number = inode(pid, "net")
        sh("mount", "--bind", f"/proc/{pid}/ns/net", path)
        assert listing(host)[number]["held_by"] == "processes"
        assert f"; pinned at {path}" in table(host)[str(number)]
    try:
        one = listing(host)[number]
        assert one["held_by"] == "mounts" and one["processes"] == []
        assert str(path) in [mount["path"] for mount in one["mounts"]]
        assert one["owner_namespace"] == inode(os.getpid(), "user"), "it was asked through the mount"
        assert table(host)[str(number)].endswith(f"only a bind mount: {path}")
    finally:
        sh("umount", path)
    assert str(path) not in pinned(host)


def test_only_an_open_descriptor(host):
    with unshared("--uts") as pid:
        number = inode(pid, "uts")
        holder = python("fd = os.open(f'/proc/{sys.argv[1]}/ns/uts', 0); print('ready'); time.sleep(300)", pid)
        process = holder.__enter__()
    try:
        one = listing(host)[number]
        assert one["held_by"] == "descriptors" and one["processes"] == []
        fd = one["descriptors"][0]
        assert fd["pid"] == process.pid and os.readlink(f"/proc/{process.pid}/fd/{fd['fd']}") == f"uts:[{number}]"
        assert table(host)[str(number)].endswith(f"only an open descriptor: /proc/{process.pid}/fd/{fd['fd']}")
    finally:
        holder.__exit__(None, None, None)
    others = [one for one in listing(host).values() if process.pid in [fd["pid"] for fd in one["descriptors"]]]
    assert not others


def test_only_a_thread(host):
    script = f"""
def apart():
    assert libc.unshare({CLONE_NEWUTS}) == 0
    print('ready'); time.sleep(300)
threading.Thread(target=apart).start()"""
    with python(script) as process:
        tids = [tid for tid in os.listdir(f"/proc/{process.pid}/task") if tid != str(process.pid)]
        number = inode(tids[0], "uts")
        assert number != inode(process.pid, "uts")
        one = listing(host)[number]
        assert one["held_by"] == "threads" and one["threads"] == [{"pid": process.pid, "tid": int(tids[0])}]
        assert table(host)[str(number)].endswith(f"only thread {tids[0]} of {process.pid}")


def test_only_children_to_come(host):
    need(os.path.exists("/proc/self/ns/time"), "no time namespaces", "Linux 5.6")
    with python("assert libc.unshare(0x80) == 0; print('ready'); time.sleep(300)") as process:
        number = inode(process.pid, "time_for_children")
        one = listing(host)[number]
        assert one["held_by"] == "awaited" and one["next_children_of"] == [process.pid]
        assert table(host)[str(number)].endswith(f"only the next children of {process.pid}")


def test_only_a_namespace_below(host):
    """A user namespace that all processes have left for one below it."""
    with unshared("--user", "--map-root-user", "unshare", "--user") as pid:
        one = listing(host)[inode(pid, "user")]
        between = listing(host)[one["parent"]]
        assert between["held_by"] == "children" and between["processes"] == []
        assert between["children"] == [one["namespace"]] and between["parent"] == inode(os.getpid(), "user")
        assert table(host)[str(one["parent"])].endswith(f"only as parent of {one['namespace']}")


def test_a_pin_that_another_mount_covers_is_not_opened(host):
    """The name of a bind mount may lead to something else by now, such as a FIFO that would keep us waiting."""
    path, fifo = host.root / "pinned", host.root / "fifo"
    path.touch()
    os.mkfifo(fifo)
    with unshared("--net") as pid:
        number = inode(pid, "net")
        sh("mount", "--bind", f"/proc/{pid}/ns/net", path)
    sh("mount", "--bind", fifo, path)
    try:
        one = listing(host)[number]
        assert one["held_by"] == "mounts" and one["owner_namespace"] == 0
    finally:
        sh("umount", path)
        sh("umount", path)


def test_ls_while_processes_come_and_go(host):
    churn = "while :; do unshare --net --uts true; done"
    with running("sh", "-c", churn):
        for _ in range(5):
            assert listing(host)


# ---- show ------------------------------------------------------------------------------------------------------


def test_show_every_namespace(host, two):
    _, web, _ = two
    shown = json.loads(host.run("ns show web --json").stdout)
    assert (shown["pid"], shown["pod"], shown["member"]) == (web, "pause", "web")
    assert {one["type"]: one["namespace"] for one in shown["namespaces"]} == {
        kind: inode(web, kind) for kind in KINDS if os.path.exists(f"/proc/{web}/ns/{kind}")
    }
    assert shown["pids"][0] == web and len(shown["pids"]) >= 2
    root = os.stat(f"/proc/{web}/root/")
    assert shown["root"] == f"{os.major(root.st_dev)}:{os.minor(root.st_dev)} {root.st_ino}"
    shm = os.stat(f"/proc/{web}/root/dev/shm")
    assert shown["shm"] == f"{os.major(shm.st_dev)}:{os.minor(shm.st_dev)} {shm.st_ino}"
    assert host.run("ns show", web).stdout == host.run("ns show web").stdout
    assert json.loads(host.run("ns show pause --json").stdout)["pid"] == two[0], "the name of a pod means its pause"


def test_show_parents_up_to_the_initial_one(host, pod, busybox):
    host.run("join pause -d --name deep --pid nested --rootfs {} sleep 300", busybox)
    pause, deep = host.pod()["pid"], host.member("deep")["pid"]
    shown = json.loads(host.run("ns show deep --json").stdout)
    parents = {one["type"]: one["parents"] for one in shown["namespaces"]}
    assert parents["pid"][:2] == [inode(pause, "pid"), inode(os.getpid(), "pid")] and parents["net"] == []
    assert len(shown["pids"]) == len(parents["pid"]) + 1
    lines = [line.split() for line in host.run("ns show deep").stdout.splitlines()]
    at = lines.index(next(line for line in lines if line[:1] == ["pid"]))
    assert lines[at][1] == str(inode(deep, "pid"))
    assert [line[:2] for line in lines[at + 1 : at + 3]] == [
        ["in", str(parents["pid"][0])],
        ["in", str(parents["pid"][1])],
    ]
    assert "from here inward: " + ", then ".join(map(str, shown["pids"])) in host.run("ns show deep").stdout


# ---- diff ------------------------------------------------------------------------------------------------------


def test_diff_of_two_members(host, two):
    found = shared(host, "web", "db")
    assert found == {kind: True for kind in KINDS if kind in found} | {
        "mnt": False, "cgroup": inode(two[1], "cgroup") == inode(two[2], "cgroup"), "shm": True, "root": False,
    }  # fmt: skip
    text = host.run("ns diff web db").stdout
    assert "they meet on" in text and "shared      net" in text and "not shared  mnt" in text
    assert f"readlink /proc/{two[1]}/ns/* /proc/{two[2]}/ns/*" in text


def test_diff_with_namespaces_of_its_own(host, pod, busybox):
    host.start("web", busybox, "sleep", "300")
    host.start("alone", busybox, "sleep", "300", options=("--net", "own", "--ipc", "own", "--uts", "own"))
    found = shared(host, "web", "alone")
    assert [what for what in ("net", "ipc", "uts", "shm", "pid", "user") if found[what]] == ["pid", "user"]


def test_ipc_and_shm_are_two_things(host, pod, busybox):
    """Joined by hand with --ipc alone: System V objects are shared, /dev/shm is not; and the other way round."""
    pause = host.pod()["pid"]
    with running("nsenter", "-t", pause, "-i", "sleep", "300") as only_ipc:
        wait_for(lambda: inode(only_ipc.pid, "ipc") == inode(pause, "ipc"))
        found = shared(host, pause, only_ipc.pid)
        assert found["ipc"] and not found["shm"]
    host.start("web", busybox, "sleep", "300")
    web = host.member("web")["pid"]
    with running("nsenter", "-t", web, "-m", "sleep", "300") as only_mounts:
        wait_for(lambda: inode(only_mounts.pid, "mnt") == inode(web, "mnt"))
        found = shared(host, web, only_mounts.pid)
        assert found["shm"] and found["root"] and not found["ipc"]


def test_diff_of_a_nested_pid_namespace(host, pod, busybox):
    host.start("web", busybox, "sleep", "300")
    host.start("deep", busybox, "sleep", "300", options=("--pid", "nested"))
    host.start("apart", busybox, "sleep", "300", options=("--pid", "own"))
    for a, b in (("web", "deep"), ("deep", "web")):
        means = next(row["means"] for row in differences(host, a, b) if row["what"] == "pid")
        assert means.startswith("deep's PID namespace is below web's: web sees deep")
    means = next(row["means"] for row in differences(host, "web", "apart") if row["what"] == "pid")
    assert means.startswith("Neither sees")


def test_diff_of_a_user_namespace_below(host, alice, owned):
    means = next(row["means"] for row in differences(host, os.getpid(), "pause") if row["what"] == "user")
    assert means.startswith(f"pause's user namespace is below {os.getpid()}'s: root of {os.getpid()}'s has all power")


def halves(see: str, tmp_path) -> tuple[str, str]:
    """What the command prints about the one process and about the other, without their pids."""
    if "; " in see:
        outputs = [sh(*shlex.split(part)).stdout for part in see.split("; ")]
    else:
        words = shlex.split(see)
        outputs = [sh(*words[:-2], word).stdout.replace(word, "") for word in words[-2:]]
    return outputs[0], outputs[1]


def test_what_diff_says_to_look_at_shows_it(host, pod, busybox, tmp_path):
    """Where two processes share a thing, its command prints the same for both, and otherwise something else."""
    host.start("web", busybox, "sleep", "300")
    host.start("db", busybox, "sleep", "300")
    host.start("alone", busybox, "sleep", "300", options=("--net", "own", "--ipc", "own", "--uts", "own"))
    alone = host.member("alone")["pid"]
    sh("nsenter", "-t", alone, "-u", "hostname", "another")
    sh("nsenter", "-t", alone, "-i", "ipcmk", "--shmem", "4096")
    sh("nsenter", "-t", alone, "-n", "ip", "link", "add", "another0", "type", "bridge")
    for b in ("db", "alone"):
        rows = {row["what"]: row for row in differences(host, "web", b)}
        for what in ("ipc", "uts", "net", "shm", "root", "time"):
            left, right = halves(rows[what]["see"], tmp_path)
            assert left and (left == right) == rows[what]["shared"], (b, rows[what], left, right)
        for what in ("user", "pid", "cgroup"):
            assert sh("sh", "-c", rows[what]["see"]).stdout
        assert sh("sh", "-c", rows["mnt"]["see"], check=False).returncode == 1


# ---- bad input -------------------------------------------------------------------------------------------------


def ended() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.mark.parametrize("words", ["show {}", "diff {} pause", "diff pause {}", "pin net {} {path}"])
def test_who_is_meant_must_be_there(host, pod, words):
    """A pid that ended, a garbage word, a name of nobody: refused, each with what to do; nothing is made."""
    path = host.root / "pin"
    for word, told in (
        (str(ended()), "there is no process"),
        ("no-such", "neither a pid nor the name"),
        ("\u0663", "neither a pid nor the name"),
        ("0", "there is no process"),
        ("99999999999999999999999", "neither a pid nor the name"),
        ("../self", "neither a pid nor the name"),
        ("", "neither a pid nor the name"),
    ):
        line = ["ns", *(w.replace("{path}", str(path)).replace("{}", word) for w in words.split())]
        error = host.fails(125, *line)
        assert told in error and "hint: " in error, (line, error)
    assert not path.exists()


def test_a_zombie_has_left_its_namespaces(host, pod):
    with python("pid = os.fork()\nif not pid: os._exit(0)\nprint('ready'); time.sleep(300)") as parent:
        zombie = wait_for(lambda: pathlib.Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split())[0]
        wait_for(lambda: " Z " in pathlib.Path(f"/proc/{zombie}/stat").read_text())
        error = host.fails(125, "ns show", zombie)
        assert "zombie" in error and f"nsrun ns show {parent.pid}" in error
        assert "zombie" in host.fails(125, "ns diff pause", zombie)
        assert listing(host), "ls is not disturbed by it"


def test_a_name_that_means_two_processes(host, pod, busybox):
    host.start("pause", busybox, "sleep", "300")
    error = host.fails(125, "ns show pause")
    assert "may be several processes" in error and str(host.pod()["pid"]) in error
    assert str(host.member("pause")["pid"]) in error
    assert host.run("ns show", host.pod()["pid"]).stdout


def test_words_that_are_refused(host, pod):
    for words in ("ns", "ns lsx", "ns show", "ns diff 1", "ns diff 1 2 3", "ns ls 1", "ns pin foo 1 /run/x", "ns pin net 1", "ns unpin", "ns ls --type foo", "ns show -1"):  # fmt: skip
        host.fails(2, *words.split())


# ---- pin, unpin ------------------------------------------------------------------------------------------------


def test_a_pin_outlives_its_processes(host, two):
    path = host.root / "it's mine"
    number = inode(two[0], "net")
    out = host.run("ns pin net web", path).stdout
    assert f"net:[{number}]" in out and os.stat(path).st_ino == number
    host.run("pod kill pause")
    wait_for(lambda: not os.path.exists(f"/proc/{two[1]}"))
    one = listing(host)[number]
    assert one["held_by"] == "mounts" and one["processes"] == [] and one["descriptors"] == []
    enter = next(line.partition(":")[2] for line in out.splitlines() if line.startswith("enter it:"))
    seen = sh("sh", "-c", enter.replace("COMMAND", "readlink /proc/self/ns/net")).stdout.strip()
    assert seen == f"net:[{number}]", "the command that it printed enters it"
    remove = next(line.partition(": nsrun")[2] for line in out.splitlines() if line.startswith("remove it:"))
    assert f"held net:[{number}]" in host.run(*shlex.split(remove)).stdout
    assert not path.exists() and str(path) not in pinned(host)


def test_a_pinned_network_does_not_hold_what_its_pod_had(host):
    """The veth and the port go with the pod; the next pod gets the port."""
    path, line = host.root / "pin", "pod create -p 127.0.0.1:20977:80 web"
    host.run(line)
    host.run("ns pin net web", path)
    links = ("nsenter", f"--net={path}", "ip", "-brief", "link")
    assert len(sh(*links).stdout.splitlines()) == 2
    host.run("pod kill web")
    assert sh(*links).stdout.startswith("lo ") and len(sh(*links).stdout.splitlines()) == 1
    host.run(line)
    host.run("pod rm -f web")
    host.run("ns unpin", path)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if os.path.exists(f"/proc/self/ns/{kind}") and kind != "mnt"])
def test_every_kind_can_be_pinned_and_entered(host, pod, busybox, kind):
    host.start("web", busybox, "sleep", "300")
    web, path = host.member("web")["pid"], host.root / "pin"
    done = host.run("ns pin", kind, "web", path)
    assert ("ENOMEM" in done.stderr) == (kind == "pid")
    assert os.stat(path).st_ino == inode(web, kind)
    option = done.stdout.partition("nsenter ")[2].split()[0]
    assert option == f"--{kind}={path}"
    if kind != "user":  # nobody enters the user namespace that they are in
        name = "pid_for_children" if kind == "pid" else kind  # nsenter --no-fork: only its children would be in it
        fork = ("--no-fork",) if kind == "pid" else ()
        seen = sh("nsenter", option, *fork, "readlink", f"/proc/self/ns/{name}").stdout
        assert seen == f"{kind}:[{inode(web, kind)}]\n"
    host.run("ns unpin", path)
    assert not path.exists()


def test_a_pin_covers_nothing(host, pod):
    """A path that exists, whatever it is, is refused and left as it was."""
    file, directory, link = host.root / "file", host.root / "directory", host.root / "link"
    file.write_text("precious")
    directory.mkdir()
    link.symlink_to(host.root / "nothing")
    for path in (file, directory, link):
        assert "exists" in host.fails(125, "ns pin net pause", path)
    assert file.read_text() == "precious" and os.readlink(link) == str(host.root / "nothing")
    assert not (host.root / "nothing").exists() and not os.listdir(directory)
    for path in (f"{host.root}/no/such", f"{file}/x", f"{host.root}/new/", f"{host.root}/..", "", "/"):
        error = host.fails(125, "ns", "pin", "net", "pause", path)
        assert "nsrun: " in error
    assert sorted(os.listdir(host.root / "directory")) == []
    assert "nsfs" not in pathlib.Path("/proc/thread-self/mountinfo").read_text()
    (host.root / "pin").mkdir()
    host.run("ns pin net pause", "relative", cwd=host.root / "pin")
    assert "exists" in host.fails(125, "ns pin net pause", host.root / "pin/relative")
    host.run("ns unpin relative", cwd=host.root / "pin")
    assert os.listdir(host.root / "pin") == []


def test_unpin_removes_only_what_pin_made(host, pod):
    """A file, a mount that somebody made by hand, a mark that was copied: refused, and left as they were."""
    pause = host.pod()["pid"]
    file, by_hand, forged, tmpfs = (host.root / name for name in ("file", "by-hand", "forged", "tmpfs"))
    file.write_text("precious")
    by_hand.touch()
    forged.write_text("nsrun ns pin net:[4026531999]\n")
    tmpfs.mkdir()
    for path in (by_hand, forged):
        sh("mount", "--bind", f"/proc/{pause}/ns/net", path)
    sh("mount", "-t", "tmpfs", "tmpfs", tmpfs)
    before = pathlib.Path("/proc/thread-self/mountinfo").read_text()
    try:
        for path in (file, by_hand, forged, tmpfs, host.root, "/proc/self/ns/net"):
            error = host.fails(125, "ns unpin", path)
            assert "hint: " in error and ("not pinned by nsrun" in error or "type tmpfs" in error), (path, error)
        assert "No such file" in host.fails(125, "ns", "unpin", host.root / "nothing")
        assert pathlib.Path("/proc/thread-self/mountinfo").read_text() == before
        assert file.read_text() == "precious"
    finally:
        for path in (by_hand, forged, tmpfs):
            sh("umount", path)
    assert forged.read_text().startswith("nsrun ns pin")


def test_unpin_under_another_mount(host, pod):
    path = host.root / "pin"
    host.run("ns pin uts pause", path)
    sh("mount", "--bind", f"/proc/{host.pod()['pid']}/ns/net", path)
    assert "2 mounts lie on each other" in host.fails(125, "ns unpin", path)
    sh("umount", path)
    host.run("ns unpin", path)
    assert not path.exists()


def test_unpin_what_is_left_of_a_pin(host, pod):
    """Somebody unmounted it by hand: the file with the mark is nsrun's, and goes."""
    path, other = host.root / "pin", host.root / "other"
    host.run("ns pin uts pause", path)
    sh("umount", path)
    assert path.read_text() == f"nsrun ns pin uts:[{inode(host.pod()['pid'], 'uts')}]\n"
    host.run("ns pin uts pause", other)
    assert f"{path} held uts:[" in host.run("ns unpin", path, other).stdout
    assert not path.exists() and not other.exists()


def test_unpin_of_several_goes_on_after_an_error(host, pod):
    path = host.root / "pin"
    host.run("ns pin uts pause", path)
    done = host.run("ns", "unpin", host.root / "nothing", path, check=False)
    assert done.returncode == 125 and "held uts" in done.stdout and not path.exists()


@contextlib.contextmanager
def shared_mount(host):
    directory = host.root / "shared"
    directory.mkdir()
    sh("mount", "--bind", directory, directory)
    sh("mount", "--make-shared", directory)
    try:
        yield directory
    finally:
        sh("umount", directory)


def test_a_pin_in_a_shared_mount_appears_elsewhere(host, pod):
    with shared_mount(host) as directory:
        with unshared("--mount", "--propagation", "unchanged") as peer:
            done = host.run("ns pin net pause", directory / "pin")
            assert "shared mount (shared:" in done.stderr and "every mount namespace" in done.stderr
            assert f"{directory}/pin" in pathlib.Path(f"/proc/{peer}/mountinfo").read_text()
            host.run("ns unpin", directory / "pin")
            assert "nsfs" not in pathlib.Path(f"/proc/{peer}/mountinfo").read_text()
    assert host.run("ns pin net pause", host.root / "private").stderr == ""
    host.run("ns unpin", host.root / "private")


def test_mount_namespaces_are_pinned_in_private_mounts_only(host):
    """The three refusals of the kernel (EINVAL) have three reasons, and each is told apart."""
    path = host.root / "pin"
    peer = unshared("--mount", "--propagation", "unchanged")
    with shared_mount(host) as directory, peer, with_mounts() as pid:
        error = host.fails(125, "ns pin mnt", pid, directory / "pin")
        assert "would propagate a mount namespace" in error and f"mount --make-private {directory}" in error
        assert os.listdir(directory) == []
        sh("mount", "--make-private", directory)
        out = host.run("ns pin mnt", pid, directory / "pin").stdout
        assert f"nsenter --mount={directory}/pin COMMAND" in out
        number = inode(pid, "mnt")
        seen = sh("nsenter", f"--mount={directory}/pin", "readlink", "/proc/self/ns/mnt").stdout
        assert seen == f"mnt:[{number}]\n"
        host.run("ns unpin", directory / "pin")
    assert "in itself" in host.fails(125, "ns pin mnt", os.getpid(), path)
    if inode(os.getpid(), "pid") != 0xEFFFFFFC:
        return  # kthreadd is not in view
    need(inode(2, "mnt") != inode(os.getpid(), "mnt"), "no kthreadd", "a machine of its own")
    error = host.fails(125, "ns pin mnt 2", path)
    assert "higher id" in error and (f"its id is {identity(2)}, ours {identity('self')}" in error or not identity(2))
    assert not path.exists()


# ---- an ordinary user ------------------------------------------------------------------------------------------


def test_a_user_is_told_what_was_not_looked_into(host, two, alice):
    """Root's processes are counted, and a namespace that only they are in is missing, not guessed."""
    done = alice.run("ns ls")
    assert "not looked into, for want of permission" in done.stderr and "of root: " in done.stderr
    assert "sudo nsrun ns ls" in done.stderr
    assert str(inode(two[0], "net")) not in done.stdout
    with running(*alice.words("sleep", "300")) as own:
        wait_for(lambda: os.stat(f"/proc/{own.pid}").st_uid == alice.uid)
        found = json.loads(alice.run("ns ls --json").stdout)
    hidden = {one["pid"] for one in found["hidden"]}
    assert {two[0], two[1]} <= hidden and own.pid not in hidden
    assert own.pid in {process["pid"] for one in found["namespaces"] for process in one["processes"]}
    for words in (("show", two[1]), ("diff", two[1], two[2]), ("pin", "net", two[1], alice.home / "pin")):
        error = alice.fails(125, "ns", *words)
        assert f"process {two[1]} (uid 0) may not be looked into by uid {alice.uid}" in error and "sudo" in error


def test_a_user_sees_their_own_pod(host, alice, owned, box):
    alice.run("join pause -d --name web --image {} sleep 300", box)
    alice.run("join pause -d --name db --image {} sleep 300", box)
    web = alice.member("web")["pid"]
    assert "pod pause: pause" in table(alice)[str(inode(web, "net"))]
    found = {row["what"]: row for row in differences(alice, "web", "db")}
    assert found["net"]["shared"] and found["shm"]["shared"] and not found["mnt"]["shared"]
    for row in found.values():
        done = alice.sh("sh", "-c", row["see"], check=False)
        assert done.returncode == 0 or row["what"] == "mnt", (row, done.stderr)


def test_a_user_can_not_pin(host, alice, owned):
    path = alice.home / "pin"
    error = alice.fails(125, "ns pin net pause", path)
    assert "CAP_SYS_ADMIN" in error and "unshare --user --map-root-user --mount" in error
    assert not path.exists(), "nothing is left of the attempt"
    path.write_text("nsrun ns pin net:[4026531999]\n")
    assert "CAP_SYS_ADMIN" in alice.fails(125, "ns unpin", path)


def test_a_user_pins_in_a_world_of_their_own(host, alice):
    """As the hint says."""
    path = alice.home / "pin"
    script = f"""set -e
unshare --net sleep 300 & P=$!
until [ "$(readlink /proc/$P/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
{NSRUN} ns pin net $P {path}
kill $P; wait $P || :
nsenter --net={path} true
{NSRUN} ns unpin {path}
[ ! -e {path} ]"""
    out = alice.sh("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script).stdout
    assert "enter it:" in out and "held net:[" in out


def test_a_user_without_accounts_of_others(host):
    """Nothing but what /proc lets everybody read is needed to list."""
    carol = UserHost(host, "carol")
    assert json.loads(carol.run("ns ls --json").stdout)["namespaces"]


def test_nothing_is_left(host, pod):
    """`host` compares mounts and notes before and after; no process of nsrun waits for a pin."""
    before = processes()
    host.run("ns pin net pause", host.root / "pin")
    assert processes() == before
    host.run("ns unpin", host.root / "pin")
