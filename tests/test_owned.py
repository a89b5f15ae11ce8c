# SPDX-License-Identifier: Apache-2.0
"""Pods that root makes for a user: who may do what, and as whom.  The kernel is asked."""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import time

import pytest
from conftest import NSRUN, USERS, kill, need, sh, wait_for
from images import Layout, directory, entry, tar

pytestmark = pytest.mark.live
ALICE, FIRST = USERS["alice"], 3_000_000  # her uid and the first of her subordinate ids
NS_GET_OWNER_UID = 0xB704


def owner_of(pid: int, kind: str) -> int:
    """The uid that owns the user namespace of a process, or the one that owns another namespace of it."""
    fd = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY)
    try:
        if kind != "user":
            fd, old = fcntl.ioctl(fd, 0xB701), fd  # NS_GET_USERNS
            os.close(old)
        return struct.unpack("I", fcntl.ioctl(fd, NS_GET_OWNER_UID, b"\0" * 4))[0]
    finally:
        os.close(fd)


def status_of(pid: int) -> dict[str, str]:
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


# ---- whose ---------------------------------------------------------------------------------------------------


def test_under_sudo_a_pod_belongs_to_who_called(host, alice):
    done = host.run("pod", "create", "--network", "none", env={"SUDO_UID": str(ALICE)})
    assert done.stdout == "pause\n" and done.stderr.count("\n") == 1 and "belongs to alice" in done.stderr
    pod = host.pod()
    assert pod["owner"] == "alice" and alice.pod() == pod
    for kind in ("user", "net", "ipc", "pid", "uts", "mnt"):
        assert owner_of(pod["pid"], kind) == ALICE, kind
        assert os.stat(f"/proc/{pod['pid']}/ns/{kind}").st_ino != os.stat(f"/proc/self/ns/{kind}").st_ino
    for kind in ("uid", "gid"):
        lines = [line.split() for line in pathlib.Path(f"/proc/{pod['pid']}/{kind}_map").read_text().splitlines()]
        assert lines == [["0", str(ALICE), "1"], ["1", str(FIRST), "65536"]]
    pause = status_of(pod["pid"])
    assert pause["Uid"].split() == [str(FIRST + 65534)] * 4 and int(pause["CapBnd"], 16) == 0
    assert pause["Groups"] == ""


@pytest.mark.parametrize(
    ("sudo", "options"), [("", []), (str(ALICE), ["--owner", "root"]), ("0", []), (str(ALICE), ["--owner", "0"])]
)
def test_a_pod_of_root_is_out_of_a_users_reach(host, alice, sudo, options):
    done = host.run("pod", "create", "--network", "none", *options, env={"SUDO_UID": sudo} if sudo else {})
    assert done.stderr == "" and host.pod()["owner"] == "root"
    assert os.stat(f"/proc/{host.pod()['pid']}/ns/user").st_ino == os.stat("/proc/self/ns/user").st_ino
    assert alice.json("pod", "ls") == []
    assert "no pod 'pause'" in alice.fails(125, "join", "pause", "true")


def test_owner_by_name(host, alice):
    host.run("pod", "create", "--network", "none", "--owner", "alice", "a")
    assert [pod["name"] for pod in alice.json("pod", "ls")] == ["a"]


@pytest.mark.parametrize(
    ("owner", "said"),
    [("carol", "usermod --add-subuids"), ("nobody-here", "no user"), ("", "empty"), ("4294967296", "no user"), ("-1", "no user")],
)  # fmt: skip
def test_an_owner_without_an_account_or_ids_is_refused(host, owner, said):
    before = host.snapshot()
    assert said in host.fails(125, "pod", "create", "--owner", owner)
    assert host.snapshot() == before


def test_the_command_that_gives_ids_is_right(host, alice):
    """The hint is a command line; it names a range that nobody has."""
    text = host.fails(125, "pod", "create", "--owner", "carol")
    words = text.split("sudo usermod", 1)[1].split()
    first, last = map(int, words[words.index("--add-subuids") + 1].split("-"))
    assert last - first == 65535 and words[words.index("--add-subgids") + 1] == f"{first}-{last}"
    for line in pathlib.Path("/etc/subuid").read_text().splitlines():
        start, count = map(int, line.split(":")[1:])
        assert last < start or first >= start + count


def test_a_create_killed_before_the_acl_is_made_good(host, alice):
    """What a kill between mkdir(2) and setxattr(2) leaves, the next pod mends."""
    for path in (host.root / "owned" / str(ALICE), host.root / "users" / str(ALICE)):
        path.parent.mkdir(mode=0o711, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        os.chown(path, 0, 0)
    host.run("pod", "create", "--network", "none", env={"SUDO_UID": str(ALICE)})
    assert alice.pod() == host.pod()
    assert (host.root / "users" / str(ALICE)).stat().st_uid == ALICE


# ---- the owner --------------------------------------------------------------------------------------------------


def test_the_owner_comes_to_a_state_directory_that_nsrun_made(host, alice):
    host.root.joinpath("new").mkdir(mode=0o711)
    root = host.root / "new/state"
    words = ["--root", root, "pod", "create", "--owner", "alice", "--network", "none", "p"]
    try:
        host.run(*words)
        assert [pod["name"] for pod in json.loads(alice.run("--root", root, "pod", "ls", "--json").stdout)] == ["p"]
        private = ("run", "users/12001")
        assert [oct(os.stat(root / path).st_mode & 0o777) for path in ("", *private)] == ["0o711", "0o700", "0o700"]
    finally:
        host.run("--root", root, "pod", "rm", "-f", "p")


def test_the_owner_needs_no_privilege(host, alice, owned, box):
    """Joins, executes, lists, stops; and what she starts is in the pod's namespaces and cgroup, hers on the host."""
    assert alice.run("join", owned, "-d", "--name", "m", "--image", box, "--", "sleep", "1000").stdout == "m\n"
    member, pod = alice.member("m"), host.pod()
    for kind in ("user", "net", "ipc", "pid", "uts"):
        assert member["namespaces"][kind] == pod["namespaces"][kind]
    assert member["namespaces"]["mnt"] != pod["namespaces"]["mnt"]
    status = status_of(member["pid"])
    assert status["Uid"].split() == [str(ALICE)] * 4 and status["Groups"] == str(ALICE)
    assert status["CapEff"] == status["CapBnd"] == "00000000a80425fb" and status["Seccomp"] == "2"
    assert alice.run("exec", "m", "id", "-u").stdout == "0\n"
    assert alice.run("exec", "-u", "33", "m", "sh", "-c", "echo $(id -u) >/tmp/x; stat -c %u /tmp/x").stdout == "33\n"
    assert host.run("pod", "ls").stdout.split()[-1] == "m"
    cgroup = next(
        line
        for line in pathlib.Path(f"/proc/{member['pid']}/cgroup").read_text().splitlines()
        if line.startswith("0::")
    )
    assert cgroup.endswith("/m-m") and f"/{owned}-" in cgroup
    assert alice.run("stop", "-t", "0", "m").stdout == "m\n"
    assert alice.member("m")["status"] == "stopped"
    alice.run("pod", "stop", owned)
    wait_for(lambda: not os.path.exists(f"/proc/{pod['pid']}"))


def test_foreground_input_output_and_status(host, alice, owned, box):
    done = alice.run(
        "join {} --rm -i --image {} -- sh -c 'cat; echo err >&2; exit 7'", owned, box, input="hello", check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "hello", "err\n")
    assert (
        alice.run("join", owned, "--rm", "--image", box, "--", "sh", "-c", "kill -9 $$", check=False).returncode == 137
    )
    assert alice.fails(127, "join", owned, "--rm", "--image", box, "--", "nothing-there")
    wait_for(lambda: alice.json("ls", "-a") == [], 10, "the monitors have removed the members")


def test_a_signal_reaches_a_foreground_member(host, alice, owned, box):
    script = "trap 'echo got; exit 3' INT; echo ready; while :; do sleep 0.05; done"
    process = alice.background(
        "join", owned, "--name", "m", "--image", box, "--", "sh", "-c", script, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[0] == "got\n" and process.returncode == 3


def test_a_terminal(host, alice, owned, box):
    typescript = alice.home / "typescript"
    command = f"{NSRUN} join {owned} --rm -it --image {box} -- sh -c 'tty; stty size'"
    alice.sh("script", "-qec", f"stty rows 33 cols 99; {command}", typescript)
    text = typescript.read_text()
    assert "/dev/pts/0" in text and "33 99" in text


def test_signals_and_attach_for_a_member_of_another_id(host, alice, owned, box):
    """Her power over the pod's user namespace reaches processes with ids that are not hers."""
    script = "trap 'echo got; exit 0' USR1; echo ready; while read line; do echo \"<$line>\"; done; while :; do sleep 0.05; done"
    alice.run("join", owned, "-d", "-i", "--name", "m", "-u", "33", "--image", box, "--", "sh", "-c", script)
    wait_for(lambda: "ready" in alice.run("logs", "m").stdout)
    rows = {row["member"]: row["uid"] for row in alice.json("pod", "ps", owned)}
    assert (
        rows == {"pause": 65535, "m": 33} == {row["member"] or "m": row["uid"] for row in host.json("pod", "ps", owned)}
    )
    attached = alice.background("attach", "m", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    attached.stdin.write("hello\n")
    attached.stdin.flush()
    assert attached.stdout.readline() == "<hello>\n"
    attached.stdin.close()
    alice.run("kill", "-s", "USR1", "m")
    assert attached.stdout.read() == "got\n" and attached.wait(timeout=30) == 0
    attached.stdout.close()
    assert alice.member("m")["exit_code"] == 0


def test_restarts_in_the_foreground_and_the_background(host, alice, owned, box):
    done = alice.run("join", owned, "--name", "f", "--restart", "on-failure:2", "--image", box, "--", "sh", "-c", "echo run; exit 4", check=False)  # fmt: skip
    assert (done.returncode, done.stdout) == (4, "run\n" * 3)
    alice.run("join {} -d --name b --restart on-failure:2 --image {} -- sh -c 'echo run; exit 4'", owned, box)
    wait_for(lambda: alice.member("b")["status"] == "stopped" and alice.member("b")["restarts"] == 2)
    assert alice.run("logs", "b").stdout == "run\n" * 3


@pytest.mark.parametrize(
    "options",
    [["--pid", "nested"], ["--pid", "own"], ["--net", "own"], ["--ipc", "own"], ["--uts", "own"], ["--net", "host"]],
)
def test_namespaces_of_its_own(host, alice, owned, box, options):
    alice.run("join", owned, "-d", "--name", "m", *options, "--image", box, "--", "sleep", "1000")
    kind, mode = options[0][2:], options[1]
    member, pod = alice.member("m"), host.pod()
    assert member["namespaces"][kind] != pod["namespaces"][kind]
    others = {"net", "ipc", "pid", "uts"} - {kind}
    assert all(member["namespaces"][other] == pod["namespaces"][other] for other in others)
    if mode == "host":
        assert member["namespaces"]["net"] == os.stat("/proc/thread-self/ns/net").st_ino
    else:
        assert owner_of(member["pid"], kind) == ALICE
    assert alice.run("exec", "m", "id", "-u").stdout == "0\n"
    alice.run("rm", "-f", "m")


def test_on_the_hosts_own_filesystem(host, alice, owned):
    """`nsrun join pause -- mysqld`, word for word: her files are hers, root's are nobody's."""
    out = alice.run(
        "join {} --rm -- sh -c {}",
        owned,
        f"id -u; stat -c %u {alice.home} /etc; touch /etc/nsrun-was-here; hostname",
        check=False,
    )
    assert out.stdout.split() == ["0", "0", "65534", "pause"] and "Permission denied" in out.stderr


def test_a_rootfs_directory_of_hers(host, alice, owned, busybox):
    sh("cp", "-a", busybox, alice.home / "root")
    sh("chown", "-R", f"{ALICE}:{ALICE}", alice.home / "root")
    out = alice.run(
        "join {} --rootfs {} -- sh -c 'stat -c %u:%g /bin; touch /new /etc/passwd; stat -c %u /new'",
        owned,
        alice.home / "root",
    ).stdout
    assert out == "0:0\n0\n" and not (alice.home / "root/new").exists()
    assert "sudo nsrun join" in alice.fails(125, "join", owned, "--rootfs", busybox, "true")
    alice.run("join", owned, "--rm", "--writable", "--rootfs", alice.home / "root", "--", "touch", "/new")
    assert (alice.home / "root/new").stat().st_uid == ALICE


def test_volumes_keep_her_ids(host, alice, owned, box):
    (alice.home / "data").mkdir()
    os.chown(alice.home / "data", ALICE, ALICE)
    run = ("join", owned, "--rm", "-v", f"{alice.home}/data:/d", "-v", "named:/n", "--image", box, "--", "sh", "-c")
    assert alice.run(*run, "echo a >/d/a; chown 33 /d/a; stat -c %u /d /d/a; echo n >/n/n").stdout == "0\n33\n"
    assert (alice.home / "data/a").stat().st_uid == FIRST + 32
    assert alice.run(*run, "cat /n/n").stdout == "n\n"
    secret = host.root / "secret"
    secret.mkdir(mode=0o700)
    (secret / "file").write_text("s")
    done = alice.run("join", owned, "--rm", "-v", f"{secret}:/s", "--image", box, "--", "cat", "/s/file", check=False)
    assert done.returncode == 1 and "Permission denied" in done.stderr


def test_an_image_of_her_own_store(host, alice, owned, tmp_path, busybox):
    """Owners, modes, whiteouts, opaque directories: a stack of layers looks in the pod as it would as root."""
    base = subprocess.run(["tar", "-C", busybox, "-c", "."], stdout=subprocess.PIPE, check=True, timeout=30).stdout
    lower = tar(
        directory("d"),
        entry("d/hidden"),
        entry("d/gone"),
        directory("o"),
        entry("o/lower"),
        entry("s", mode=0o4755, uid=999, gid=998),
    )
    upper = tar(
        entry("d/.wh.gone"), entry("d/new", uid=1000), directory("o"), entry("o/.wh..wh..opq"), entry("o/upper")
    )
    layout = Layout(base, lower, upper, name="three:1", Cmd=["true"]).write(alice.home / "layout")
    sh("chown", "-R", f"{ALICE}", alice.home)
    alice.run("image", "load", layout)
    out = alice.run(
        "join {} --rm --image three:1 -- sh -c {}", owned, "ls /d /o; stat -c '%u %g %a' /s; stat -c %u /d/new"
    ).stdout
    assert out.split() == ["/d:", "hidden", "new", "/o:", "upper", "999", "998", "4755", "1000"]
    listed = alice.json("image", "ls")
    assert [image["names"] for image in listed] == [["three:1"]] and host.json("image", "ls") == []
    assert (alice.root / f"users/{ALICE}/lib").stat().st_mode & 0o777 == 0o700
    alice.run("image", "rm", "three:1")
    left = alice.root / f"users/{ALICE}/lib/images"
    assert list((left / "layers").iterdir()) == [] and list((left / "tmp").iterdir()) == []


def test_no_more_power_than_before(host, alice, owned, box):
    """Root of the pod is alice outside: no mount of the host's, no module, no clock, no other's file, no raw device."""
    tries = """
      mount -t tmpfs t /tmp; echo 1 >/proc/sys/kernel/core_pattern; date -s 2000-01-01; mknod /n b 8 0; chroot /proc/1/root true
      hostname x; cat /proc/kcore | head -c1; ls /proc/1/root; echo b >/proc/sysrq-trigger; nice -n -5 true; dmesg | head -1"""
    done = alice.run("join", owned, "--rm", "--image", box, "--", "sh", "-c", tries, check=False)
    assert (
        len([line for line in done.stderr.splitlines() if line]) >= 10
        and done.stdout.startswith("Sat Jan  1")
        and done.stdout.count("\n") == 1
    )
    everything = alice.run("join", owned, "--rm", "--cap-add", "ALL", "--security-opt", "seccomp=unconfined", "--image", box, "--", "sh", "-c",
                           "mount -t tmpfs t /tmp && echo mounted; mknod /n b 8 0; date -s 2000-01-01; echo 1 >/proc/sys/kernel/core_pattern", check=False)  # fmt: skip
    assert everything.stdout.startswith("mounted") and everything.stderr.count("\n") == 3


# ---- others -----------------------------------------------------------------------------------------------------


def test_another_user_sees_and_touches_nothing(host, alice, bob, owned, box):
    alice.run("join", owned, "-d", "--name", "m", "--image", box, "--", "sleep", "1000")
    assert bob.json("pod", "ls") == [] and bob.json("ls", "-a") == []
    for words in (
        ["join", owned, "true"],
        ["exec", "m", "true"],
        ["pod", "kill", owned],
        ["kill", "m"],
        ["logs", "m"],
        ["pod", "inspect", owned],
    ):
        assert "no " in bob.fails(125, *words)
    shown = host.root / "owned" / str(ALICE)
    for words in (["ls", shown], ["cat", shown / "pause.json"], ["ls", host.root / f"users/{ALICE}"]):
        assert "Permission denied" in bob.sh(*words, check=False).stderr
    pid = host.pod()["pid"]
    for words in (
        ["nsenter", "-t", pid, "-U", "true"],
        ["nsenter", "-t", pid, "-n", "true"],
        ["kill", pid],
        ["cat", f"/proc/{pid}/environ"],
    ):
        assert bob.sh(*words, check=False).returncode != 0, words
    connect = f"import socket; socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect('{shown}/pause.door')"
    assert "PermissionError" in bob.sh("python3", "-c", connect, check=False).stderr
    assert alice.member("m")["status"] == "running"


def test_what_root_shows_can_not_be_changed_by_the_owner(host, alice, owned):
    shown = host.root / "owned" / str(ALICE)
    for words in (
        ["touch", shown / "x"],
        ["rm", "-f", shown / "pause.json"],
        ["chmod", "777", shown],
        ["sh", "-c", f"echo >{shown}/pause.json"],
        ["mv", shown, f"{shown}.x"],
    ):
        assert alice.sh(*words, check=False).returncode != 0, words
    assert (shown / "pause.json").stat().st_uid == 0 and (shown / "pause.door").stat().st_mode & 0o777 == 0o600


def test_root_can_do_everything(host, alice, owned, box):
    alice.run("join", owned, "-d", "--name", "m", "--image", box, "--", "sleep", "1000")
    assert [m["name"] for m in host.json("ls")] == ["m"] and "sleep 1000" in host.run("ls").stdout
    assert host.run("exec", "m", "id", "-u").stdout == "0\n"
    assert host.member("m")["pid"] == alice.member("m")["pid"]
    assert host.run("logs", "m").stdout == ""
    assert host.run("stop", "-t", "0", "m").stdout == "m\n" and alice.member("m")["status"] == "stopped"
    host.run("rm", "m")
    assert alice.json("ls", "-a") == []
    assert "no member 'nix'" in host.fails(125, "rm", "nix")
    host.run("pod", "rm", "-f", owned)
    assert alice.json("pod", "ls") == [] and not list((host.root / "owned").glob("*/*"))


@pytest.mark.parametrize("source", ["rootfs", "image"])
def test_root_joins_with_its_own_files(host, alice, owned, busybox, tmp_path, source):
    """Its layers are shown with the pod's ids, and what the member writes over them has those."""
    words = ["--rootfs", busybox]
    if source == "image":
        base = subprocess.run(["tar", "-C", busybox, "-c", "."], stdout=subprocess.PIPE, check=True, timeout=30).stdout
        host.run("image", "load", Layout(base, tar(entry("x", uid=5)), name="box:1").write(tmp_path / "l"))
        words = ["--image", "box:1"]
    look = "stat -c %u /bin /etc/passwd; chown 7 /etc/passwd; touch /new; stat -c %u /etc/passwd /new; echo v >/v/v"
    assert host.run("join", owned, "--name", "r", *words, "-v", "vol:/v", "--", "sh", "-c", look).stdout.split() == [
        "0",
        "0",
        "7",
        "0",
    ]
    ident = host.member("r")["id"]
    upper = host.root / f"lib/upper/{ident}/upper"
    assert (upper / "new").stat().st_uid == ALICE and (upper / "etc/passwd").stat().st_uid == FIRST + 6
    assert (host.root / "lib/volumes/vol/v").stat().st_uid == ALICE
    host.run(
        "join", owned, "-d", "--name", "d", "-u", "33", *words, "--", "sh", "-c", "echo out >/dev/stdout; sleep 1000"
    )
    status = status_of(host.member("d")["pid"])
    assert status["Uid"].split() == [str(FIRST + 32)] * 4
    assert host.run("exec", "-u", "0", "d", "id", "-u").stdout == "0\n" and host.run("logs", "d").stdout == "out\n"
    assert alice.json("ls", "-a") == []


def test_the_same_name_twice_in_one_pod(host, alice, owned, box, busybox):
    """Root's member and the owner's may have one name; ending one does not touch the other (moby#50523)."""
    host.run("join", owned, "-d", "--name", "m", "--rootfs", busybox, "--", "sleep", "1000")
    alice.run("join", owned, "-d", "--name", "m", "--image", box, "--", "sleep", "1000")
    alice.run("rm", "-f", "m")
    assert host.member("m")["status"] == "running"


def test_the_owner_keeps_nothing_of_roots(host, alice, box):
    """She takes every descriptor out of pause and of the door that the kernel gives her; port and table go with the pod all the same."""
    before = host.snapshot()
    host.run("pod", "create", "-p", "127.0.0.1:20830:80", "p", env={"SUDO_UID": str(ALICE)})
    holder = next(
        p
        for p in filter(str.isdigit, os.listdir("/proc"))
        if _comm(p) == "nsrun-hold" and _serves(p, host.pod("p")["pid"])
    )
    door = next(
        p
        for p in filter(str.isdigit, os.listdir("/proc"))
        if _comm(p) == "nsrun-door" and _serves(p, host.pod("p")["pid"])
    )
    assert status_of(int(holder))["Uid"].split() == ["65535"] * 4 and int(status_of(int(holder))["CapPrm"], 16) == 0
    script = f"""
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
for pid in ({host.pod("p")["pid"]}, {door}, {holder}):
    fd = os.pidfd_open(pid)
    print(sum(libc.syscall(438, fd, n, 0) >= 0 for n in range(64)), flush=True)
sys.stdin.read()
"""
    thief = subprocess.Popen(
        alice.words(sys.executable, "-c", script), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/"
    )
    try:
        taken = [int(thief.stdout.readline()) for _ in range(3)]
        # of pause they get what is theirs to see: the file that tells them that the pod lives, and the end of a pipe
        directory = f"/proc/{host.pod('p')['pid']}/fd"
        found = [os.readlink(f"{directory}/{fd}") for fd in os.listdir(directory)]
        assert taken == [2, 0, 0]
        assert {f.partition(":")[0] for f in found} == {f"{host.root}/owned/{ALICE}/p.held", "pipe"}
        group = next(
            line[3:].strip()
            for line in pathlib.Path(f"/proc/{holder}/cgroup").read_text().splitlines()
            if line.startswith("0::")
        )
        for mount in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
            if os.path.exists(f"{mount}{group}/cgroup.freeze"):
                assert alice.sh("sh", "-c", f"echo 1 >{mount}{group}/cgroup.freeze", check=False).returncode != 0
        host.run("pod", "rm", "-f", "p")
        wait_for(lambda: host.snapshot()["tables"] == before["tables"], what="the table goes")
        host.run("pod", "create", "-p", "127.0.0.1:20830:80", "again")
    finally:
        thief.kill()
        thief.wait()


def test_owners_who_stop_what_root_asks(host, alice, bob, owned, box):
    """Their processes are theirs to stop: root waits some seconds, not for ever, and for all of them together."""
    host.run("pod", "create", "--network", "none", "his", env={"SUDO_UID": str(bob.uid)})
    alice.run("join", owned, "-d", "--name", "m", "--image", box, "--", "sleep", "1000")
    script = f"""
import os, time, signal
end = time.time() + 15
while time.time() < end:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = open(f"/proc/{{pid}}/cmdline", "rb").read()
            if int(pid) != os.getpid() and b"__main__.py" in words and b"{host.root}" in words: os.kill(int(pid), signal.SIGSTOP)
        except OSError: pass
"""
    stoppers = [subprocess.Popen(who.words(sys.executable, "-c", script), cwd="/") for who in (alice, bob)]
    try:
        began = time.monotonic()
        host.run("ls", "-a", timeout=20)
        assert time.monotonic() - began < 9
    finally:
        for stopper in stoppers:
            stopper.kill()
            stopper.wait()


# ---- faults -----------------------------------------------------------------------------------------------------


def test_root_is_not_led_astray_by_the_owners_files(host, alice, owned, box, busybox):
    """Every file that she can write becomes a FIFO, a link to a file of root's, a huge file; root's commands go on."""
    alice.run("join", owned, "-d", "--name", "m", "--image", box, "--", "sleep", "1000")
    host.run("pod", "create", "--network", "none", "roots")
    host.run("join", "roots", "-d", "--name", "keep", "--rootfs", busybox, "--", "sleep", "1000")
    victim = host.root / "victim"
    victim.write_text("precious")
    base = host.root / f"users/{ALICE}/run"
    note = base / "members/m/note"
    for trick in (lambda p: os.mkfifo(p), lambda p: p.symlink_to(victim), lambda p: p.symlink_to("/dev/zero"), lambda p: p.write_text('{"name": "../../x", "pod": "pause"}'),
                  lambda p: os.truncate(os.open(p, os.O_CREAT | os.O_WRONLY), 1 << 40)):  # fmt: skip
        note.parent.mkdir(parents=True, exist_ok=True)
        note.unlink(missing_ok=True)
        trick(note)
        for words in (["pod", "ls"], ["ls", "-a"], ["pod", "ps", owned], ["pod", "prune"], ["pod", "inspect", owned]):
            assert "Traceback" not in host.run(*words, check=False, timeout=20).stderr
    for name in ("members", "pods", "tmp"):
        (base / name).rename(base / f"{name}.old") if (base / name).exists() else None
        (base / name).symlink_to(host.root / "run" / name)
    host.run("pod", "ls"), host.run("pod", "prune")
    host.run("pod", "rm", "-f", owned)
    assert victim.read_text() == "precious" and host.member("keep")["status"] == "running"
    assert [pod["name"] for pod in host.json("pod", "ls")] == ["roots"]
    for name in ("members", "pods", "tmp"):
        (base / name).unlink()


def test_an_owner_who_answers_with_rubbish(host, alice, owned, box, monkeypatch):
    """What comes back is shown only when it is sound, and without control characters."""
    from nsrun.lifecycle import owners
    from nsrun.state import State

    state = State(str(host.root))
    good = {
        "name": "m",
        "pod": owned,
        "status": "running",
        "pid": 1,
        "pid_in_pod": 1,
        "exit_code": None,
        "orphaned": False,
        "command": ["\x1b[2Jx"],
    }
    bad = [
        {},
        5,
        None,
        {**good, "name": "a\nb"},
        {**good, "pod": "else"},
        {**good, "pid": "1"},
        {**good, "command": 1},
        {**good, "status": "\x1b"},
    ]
    monkeypatch.setattr(owners, "_ask_all", lambda state, uids, words: {uid: [*bad, good] for uid in uids})
    (only,) = owners.members(state)
    assert only["name"] == "m" and only["command"] == ["?[2Jx"]
    monkeypatch.setattr(owners, "_ask_all", lambda state, uids, words: {uid: {"x": 1} for uid in uids})
    assert owners.members(state) == []


def test_a_deleted_owner(host, alice, owned, box):
    """Root still lists and removes the pod of somebody who has no account any more."""
    alice.run("join", owned, "-d", "--name", "m", "--image", box, "--", "sleep", "1000")
    path = pathlib.Path("/run/etc/passwd")
    text = path.read_text()
    try:
        path.write_text("".join(line for line in text.splitlines(True) if not line.startswith("alice:")))
        assert host.json("pod", "ls")[0]["owner"] == "alice"
        host.run("ls", "-a")
        host.run("pod", "rm", "-f", owned)
        assert host.json("pod", "ls") == []
    finally:
        path.write_text(text)


def test_pause_killed_while_she_joins(host, alice, box):
    """At any moment: the join fails with a message or its member ends; nothing hangs, nothing is left."""
    for delay in (0.0, 0.01, 0.02, 0.03, 0.05):
        name = host.run("pod", "create", "--network", "none", env={"SUDO_UID": str(ALICE)}).stdout.strip()
        pid = host.pod()["pid"]
        process = alice.background(
            "join", name, "--image", box, "--", "sleep", "1000", stderr=subprocess.PIPE, text=True
        )
        time.sleep(delay)
        kill(pid)
        error = process.communicate(timeout=20)[1]
        assert process.returncode in (125, 137) and "Traceback" not in error, error
        host.run("pod", "prune"), alice.run("pod", "prune")
        assert alice.json("ls", "-a") == []


def test_a_killed_door(host, alice, owned, box):
    """Members live on; a new join says what has happened."""
    alice.run("join", owned, "-d", "--name", "m", "--image", box, "--", "sleep", "1000")
    door = next(
        p
        for p in filter(str.isdigit, os.listdir("/proc"))
        if _comm(p) == "nsrun-door" and status_of(int(p))["PPid"] and _serves(p, host.pod()["pid"])
    )
    kill(int(door))
    assert "nsrun-door has ended" in alice.fails(125, "join", owned, "--image", box, "true")
    assert alice.member("m")["status"] == "running"
    alice.run("stop", "-t", "0", "m")
    assert alice.member("m")["status"] == "stopped"


def _comm(pid: str) -> str:
    try:
        return pathlib.Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return ""


def _serves(pid: str, pause: int) -> bool:
    try:
        return any(f"Pid:\t{pause}\n" in fd.read_text() for fd in pathlib.Path(f"/proc/{pid}/fdinfo").iterdir())
    except OSError:
        return False  # another test's, which has just ended


def test_garbage_at_the_door(host, alice, owned, box):
    """Whatever she sends, the door goes on serving her."""
    path = host.root / "owned" / str(ALICE) / "pause.door"
    script = f"""
import array, os, socket, struct
def send(data, fds):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.settimeout(5); s.connect('{path}')
    s.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', fds))] if fds else [])
    try: print(struct.unpack('4i', s.recv(100))[3])
    except (struct.error, ConnectionResetError): print('closed')
def memory(data):
    fd = os.memfd_create('x'); os.write(fd, data); return fd
send(b'L', []); send(b'x' * 1000, []); send(b'L', [0] * 250); send(b'L', [memory(b'')]); send(b'L', [memory(os.urandom(4096))])
head = b'NSD2' + struct.pack('=13i', 3, 0, 0, -1, 4, 5, 6, 0, 1, 2, -1, -1, -1)
for tail in (b'', struct.pack('=I', 1 << 31), struct.pack('=Ii', 1, 5), struct.pack('=Ii', 1, -5), struct.pack('=III', 0, 0, 0) + struct.pack('=I', 9) + b'a', struct.pack('=IIIIII', 0, 0, 0, 0, 0, 0)):
    send(b'L', [memory(head + tail)])
"""
    out = alice.sh("python3", "-c", script).stdout.split()
    assert len(out) == 11 and all(word == "closed" or int(word) < 0 for word in out)
    assert alice.run("join", owned, "--rm", "--image", box, "--", "echo", "fine").stdout == "fine\n"


def test_an_id_that_the_pod_does_not_have(host, alice, owned, box):
    text = alice.fails(125, "join", owned, "--image", box, "-u", "70000", "--", "true")
    assert "no uid 70000" in text and "/etc/subuid" in text
    assert alice.json("ls", "-a") == []


def test_everything_goes_with_the_pod(host, alice, box):
    before = host.snapshot()
    host.run("pod", "create", "-p", "127.0.0.1:20801:80", "w", env={"SUDO_UID": str(ALICE)})
    alice.run("join", "w", "-d", "--name", "m", "--image", box, "--", "httpd", "-f", "-p", "80", "-h", "/var/www")
    wait_for(lambda: "nsrun" in sh("curl", "-s", "-m", "5", "http://127.0.0.1:20801/", check=False).stdout)
    kill(host.pod("w")["pid"])
    wait_for(lambda: alice.run("pod", "ls").stdout.count("\n") == 1)
    alice.run("ls", "-a"), host.run("pod", "ls")
    wait_for(lambda: host.snapshot() == {**before, "notes": host.snapshot()["notes"]}, what="all is gone")
    assert [m["status"] for m in alice.json("ls", "-a")] == ["stopped"]  # of the story, each removes their own part
    host.run("pod", "rm", "w"), alice.run("rm", "m")
    assert host.snapshot()["notes"] == before["notes"]


def test_the_note_is_json_and_holds_no_secret(host, alice, owned):
    note = json.loads((host.root / "owned" / str(ALICE) / "pause.json").read_text())
    assert note["owner"] == "alice" and set(note["user"]) == {"uid", "gid", "maps"}


def test_who_started_it_does_not_keep_what_is_removed(host, alice, owned, box):
    """The member has ended, and its monitor removes it, before the nsrun in the foreground has become what follows it."""
    need(shutil.which("strace"), "strace is missing", "apt-get install strace")
    slow = ["strace", "-qq", "-o", "/dev/null", "-e", "trace=execveat", "-e", "inject=execveat:delay_enter=1500000"]
    before = host.snapshot()["notes"]
    sh(*alice.words(*slow, NSRUN, "join", owned, "--rm", "--image", box, "true"), env=alice.env, cwd="/")
    assert host.snapshot()["notes"] == before
