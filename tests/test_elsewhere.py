# SPDX-License-Identifier: Apache-2.0
"""From wherever a command is called, what lives is left alone: right, or refused with the reason.

A table of places (other PID, time, network, mount, user and cgroup namespaces, chroots, hidepid, another /run, another boot id …)
by a table of commands.  A pod with a member that wrote something, and bystanders whose pids are small numbers, stand by.
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess

import pytest
from conftest import NSRUN, Host, sh, wait_for

from nsrun.host import cgroup

#: The command line stands at the end: "$@".  {root}: the state directory's parent; {new}: an empty directory.
PLACES = {
    "pid": "unshare --pid --fork --mount-proc",
    "pid, the old /proc": "unshare --pid --fork",
    "time": "unshare --time --boottime 1000000 --monotonic 1000000",
    "net": "unshare --net",
    "mount": "unshare --mount",
    "ipc and uts": "unshare --ipc --uts",
    "cgroup": "unshare --cgroup",
    "cgroup, with a mount of its own": """sh -c 'mkdir -p {v2}/{away}; echo $$ >{v2}/{away}/cgroup.procs; exec unshare --cgroup --mount "$@"' sh sh -c 'umount -l {v2} && mount -t cgroup2 none {v2} && exec "$@"' sh""",
    "cgroup, read-only": """unshare --mount sh -c 'mount -o remount,bind,ro {v2} && exec "$@"' sh""",
    "no cgroups": """unshare --mount sh -c 'umount -l {v2} && exec "$@"' sh""",
    "user": "unshare --user --map-root-user",
    "user, with all else": "unshare --user --map-root-user --mount --net --ipc --uts --pid --fork --mount-proc",
    "hidepid": """unshare --mount sh -c 'mount -t proc -o hidepid=2 proc /proc && exec "$@"' sh""",
    "subset=pid": """unshare --mount sh -c 'mount -t proc -o subset=pid proc /proc && exec "$@"' sh""",
    "no /proc": """unshare --mount sh -c 'umount -l /proc && exec "$@"' sh""",
    "another boot id": """unshare --mount sh -c 'echo 11111111-2222-3333-4444-555555555555 >{new}/boot; mount --bind {new}/boot /proc/sys/kernel/random/boot_id && exec "$@"' sh""",
    "a FIFO for a boot id": """unshare --mount sh -c 'mkfifo {new}/boot; mount --bind {new}/boot /proc/sys/kernel/random/boot_id && exec "$@"' sh""",
    "an emptied run": """unshare --mount sh -c 'mount -t tmpfs none {root}/run && exec "$@"' sh""",
    "an emptied lib": """unshare --mount sh -c 'mount -t tmpfs none {root}/lib && exec "$@"' sh""",
    "a chroot": """unshare --mount sh -c 'mkdir -p {new}/r && mount --rbind / {new}/r && exec chroot {new}/r "$@"' sh""",
    "few descriptors": """sh -c 'ulimit -n 12; exec "$@"' sh""",
}
COMMANDS = [
    ["pod", "ls", "-a"], ["ls", "-a"], ["pod", "inspect", "s"], ["inspect", "m"], ["pod", "ps", "s"], ["pod", "stats", "s"], ["stats"],
    ["logs", "m"], ["image", "ls"], ["image", "prune", "-a"], ["pod", "prune"], ["pod", "prune", "--all"], ["doctor"],
    ["explain", "join", "s", "--", "true"], ["pod", "create", "--network", "none", "s"], ["pod", "create", "--network", "none", "other"],
    ["pod", "rm", "-f", "other"], ["pod", "rm", "s"], ["rm", "m"], ["exec", "m", "true"], ["join", "s", "--rm", "--rootfs", "{busybox}", "true"],
    ["kill", "-s", "USR2", "m"], ["pod", "kill", "-s", "USR2", "s"], ["wait", "ended"], ["join", "s", "--rm", "--", "true"],
]  # fmt: skip
#: Those that end what they name; wherever they do not refuse, they must have done it, and nothing else.
ENDING = [
    ["stop", "-t", "0", "m"],
    ["rm", "-f", "m"],
    ["kill", "m"],
    ["pod", "stop", "-t", "0", "s"],
    ["pod", "kill", "s"],
    ["pod", "rm", "-f", "s"],
]
WRITES = "trap : USR2; echo precious >/precious; while :; do sleep 1; done"


class Scene:
    """A pod "s" with a member "m" that has written something, one that has ended, and bystanders."""

    def __init__(self, host: Host, busybox: str) -> None:
        self.host = host
        host.run("pod", "create", "--network", "none", "s")
        host.run("join", "s", "-d", "--name", "m", "--rootfs", busybox, "--", "sh", "-c", WRITES)
        host.run("join", "s", "--name", "ended", "--rootfs", busybox, "--", "true")
        self.member, self.pause = host.member("m")["pid"], host.pod("s")["pid"]
        self.precious = pathlib.Path(f"/proc/{self.member}/root/precious")
        wait_for(self.precious.exists)
        self.upper = f"{host.root}/lib/upper/{host.member('m')['id']}/upper/precious"
        #: In a PID namespace of its own, pause's and the member's numbers are likely theirs.
        self.bystanders = [subprocess.Popen(["sleep", "1000"]) for _ in range(2)]

    def stands(self) -> None:
        assert self.precious.read_text() == "precious\n" and pathlib.Path(self.upper).read_text() == "precious\n"
        assert self.host.pod("s")["status"] == "running" and self.host.pod("s")["pid"] == self.pause
        member = self.host.member("m")
        assert member["status"] == "running" and member["pid"] == self.member
        assert self.host.run("exec", "m", "cat", "/precious").stdout == "precious\n"

    def nobody_else_was_hit(self) -> None:
        assert [process.poll() for process in self.bystanders] == [None, None]

    def close(self) -> None:
        for process in self.bystanders:
            process.kill()
            process.wait()


@pytest.fixture
def scene(host, busybox):
    scene = Scene(host, busybox)
    yield scene
    scene.close()
    away = pathlib.Path(cgroup.mount_point(), f"{os.environ['NSRUN_CGROUP']}-away")
    for path in [*sorted(away.glob("**/"), reverse=True)] if away.exists() else []:
        wait_for(lambda path=path: not path.exists() or not (path / "cgroup.procs").read_text())
        path.rmdir()


def call(host: Host, place: str, words: list[str], busybox: str, tmp_path) -> subprocess.CompletedProcess[str]:
    new = tmp_path / "new"
    new.mkdir(exist_ok=True)
    away = f"{os.environ['NSRUN_CGROUP']}-away"
    prefix = PLACES[place].format(root=host.root, new=new, v2=cgroup.mount_point(), away=away)
    words = [word.format(busybox=busybox) for word in words]
    script = f'exec {prefix} "$@"'
    return sh("sh", "-c", script, "sh", NSRUN, *words, env=host.env, check=False, cwd="/", timeout=60)


def understood(done: subprocess.CompletedProcess[str], what: object) -> None:
    assert "Traceback" not in done.stderr, (what, done.stderr)
    assert done.returncode in (0, 1, 2, 125, 126, 127), (what, done.returncode, done.stderr)
    if done.returncode == 125:
        assert done.stderr.startswith("nsrun: ") or "\nnsrun: " in done.stderr, (what, done.stderr)


@pytest.mark.parametrize("place", PLACES)
def test_what_lives_is_left_alone(host, scene, busybox, tmp_path, place):
    """Every command that ends nothing, one after the other; then all is as it was."""
    for words in COMMANDS:
        if place == "an emptied run" and words[:2] == ["pod", "create"]:
            continue  # it would be a pod whose notes are gone with that /run
        understood(call(host, place, words, busybox, tmp_path), (place, words))
        assert os.path.exists(scene.upper) and scene.precious.read_text() == "precious\n", (place, words)
        if words[:2] == ["pod", "create"] and words[-1] == "other":
            host.run("pod", "rm", "-f", "other")  # what was made elsewhere is ended from here
    scene.stands()
    scene.nobody_else_was_hit()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("words", ENDING, ids=" ".join)
def test_what_is_to_end_ends_or_is_refused(host, scene, busybox, tmp_path, place, words):
    done = call(host, place, words, busybox, tmp_path)
    understood(done, (place, words))
    scene.nobody_else_was_hit()
    if done.returncode or place == "an emptied run":  # where -f of what is not there is no error
        scene.stands()
    elif words[-1] == "s" and "s" in done.stdout.split():
        wait_for(lambda: not os.path.exists(f"/proc/{scene.pause}"), what="the pod ends")


def test_from_a_member_on_the_hosts_own_files(host, scene):
    """A member without a root of its own sees the host's notes, from the pod's PID namespace."""
    for words in (
        ["image", "ls"],
        ["pod", "ls", "-a"],
        ["pod", "prune", "--all"],
        ["rm", "-f", "m"],
        ["pod", "rm", "-f", "s"],
    ):
        done = host.run("join", "s", "--rm", "-e", f"NSRUN_ROOT={host.root}", "--", NSRUN, *words, check=False)
        assert "Traceback" not in done.stderr and scene.precious.read_text() == "precious\n", words
    scene.stands()


def test_a_pod_made_in_another_pid_namespace(host, busybox):
    """It is kept, seen and ended from outside, by the numbers that it has outside."""
    words = ["unshare", "--pid", "--fork", "--mount-proc", NSRUN, "pod", "create", "--network", "none", "inner"]
    keeper = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", f'"{NSRUN}" pod create --network none inner; sleep 1000'],
        env=host.env, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert words and wait_for(lambda: host.json("pod", "ls"))[0]["name"] == "inner"
        pid = host.pod("inner")["pid"]
        assert pathlib.Path(f"/proc/{pid}/comm").read_text() == "pause\n"
        assert host.run("join", "inner", "--rootfs", busybox, "echo", "works").stdout == "works\n"
        host.run("pod", "kill", "inner")
        wait_for(lambda: not os.path.exists(f"/proc/{pid}"))
    finally:
        keeper.kill()
        keeper.wait()


def test_a_member_of_a_place_with_another_boot_id(host, busybox, tmp_path):
    """Its pod has no cgroup, and its monitor is killed: what tells its process from another is noted all the same."""
    host.env = {**host.env, "NSRUN_CGROUP": "none"}
    host.run("pod", "create", "--network", "none", "s")
    words = ["join", "s", "-d", "--name", "m", "--rootfs", busybox, "--pid", "own", "--", "sleep", "1000"]
    assert call(host, "another boot id", words, busybox, tmp_path).returncode == 0
    member = host.member("m")["pid"]
    monitor = pathlib.Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()[1]
    os.kill(int(monitor), signal.SIGKILL)
    wait_for(lambda: not os.path.exists(f"/proc/{monitor}"))
    host.run("rm", "-f", "m")
    wait_for(lambda: not os.path.exists(f"/proc/{member}"))
    assert host.json("ls", "-a") == []


def test_pause_in_a_chroot(host, busybox, tmp_path):
    """Its root is the tmpfs that it should be: of whoever enters its mount namespace, too."""
    done = call(host, "a chroot", ["pod", "create", "--network", "none", "c"], busybox, tmp_path)
    assert done.returncode == 0, done.stderr
    pid = host.pod("c")["pid"]
    assert set(sh("nsenter", "-m", "-t", pid, "/proc/self/exe", "--version", check=False).stdout.split()) is not None
    root = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
    script = f"import os, ctypes; ctypes.CDLL(None).setns({root}, 0x20000); print(sorted(os.listdir('/')))"
    done = subprocess.run(["python3", "-c", script], pass_fds=[root], capture_output=True, text=True, check=True)
    os.close(root)
    assert done.stdout.strip() == "['dev', 'etc', 'member', 'proc']"
    assert host.run("join", "c", "--rootfs", busybox, "ls", "/").stdout.split()[0] == "bin"


def test_a_user_under_hidepid(host, alice, box):
    """A join to one pod forgets no other, and kills nobody (with hidepid=2 a user sees no other pod's processes from inside)."""
    one = host.run("pod", "create", "--network", "none", "one", env={"SUDO_UID": str(alice.uid)}).stdout.strip()
    alice.run("pod", "create", "--network", "none", "two")
    for pod in (one, "two"):
        alice.run("join", pod, "-d", "--name", f"m-{pod}", "--image", box, "--", "sleep", "1000")
    prefix = ["unshare", "--mount", "sh", "-c", 'mount -t proc -o hidepid=2 proc /proc && exec "$@"', "sh"]
    for words in (["join", one, "--image", box, "true"], ["join", "two", "-d", "--name", "n", "--image", box, "sleep", "9"],
                  ["ls"], ["exec", "m-two", "true"], ["pod", "ls"], ["exec", "-u", "0", "m-one", "true"]):  # fmt: skip
        done = sh(*prefix, *alice.words(NSRUN, *words), env=alice.env, cwd="/", check=False)
        assert done.returncode == 0, (words, done.stderr)
    assert {m["name"]: m["status"] for m in alice.json("ls")} == {
        "m-one": "running",
        "m-two": "running",
        "n": "running",
    }
    assert {p["name"] for p in alice.json("pod", "ls")} == {"one", "two"}
    assert json.loads(host.run("pod", "ls", "--json").stdout)[0]["name"] == "one"
