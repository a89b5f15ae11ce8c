# SPDX-License-Identifier: Apache-2.0
"""Pods that a user makes with no root at all: newuidmap, pasta, and the same joins."""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import CACHE, NSRUN, USERS, UserHost, kill, need, sh, wait_for
from test_owned import FIRST, owner_of, status_of

pytestmark = pytest.mark.live
ALICE = USERS["alice"]


@pytest.fixture
def pod(alice) -> str:
    return alice.run("pod", "create", "--network", "none", "mine").stdout.strip()


def curl(port: int, address: str = "127.0.0.1") -> str:
    return sh("curl", "-s", "-m", "5", f"http://{address}:{port}/", check=False).stdout


def test_a_pod_without_root(host, alice, bob, pod, box):
    note = alice.pod(pod)
    assert note["owner"] == "alice" and all(
        owner_of(note["pid"], kind) == ALICE for kind in ("user", "net", "ipc", "pid", "uts", "mnt")
    )
    assert status_of(note["pid"])["Uid"].split() == [str(FIRST + 65534)] * 4
    alice.run(
        "join", pod, "-d", "--name", "m", "--image", box, "--", "sh", "-c", "echo hello >/dev/shm/test; sleep 1000"
    )
    assert (
        wait_for(
            lambda: alice.run("join", pod, "--rm", "--image", box, "--", "cat", "/dev/shm/test", check=False).stdout
        )
        == "hello\n"
    )
    out = alice.run(
        "exec m sh -c {}",
        "id -u; cat /sys/class/net/lo/operstate; ls /sys/class/net; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; ps | grep -c '^ *1 65535 '",
    ).stdout
    assert out.split() == ["0", "unknown", "lo", "0", "1"]
    assert bob.json("pod", "ls") == [] and host.json("pod", "ls") == []
    assert alice.run("pod", "stop", "-t", "0", pod).stdout == "mine\n" and alice.json("ls", "-a") == []
    wait_for(lambda: not os.path.exists(f"/proc/{note['pid']}"))


def test_published_ports(host, alice, box):
    """On this host's loopback, on its address, for another host; and pasta ends with pause, however that ends."""
    need(os.path.exists("/usr/bin/pasta"), "pasta is missing", "apt-get install passt")
    done = alice.run("pod", "create", "-p", "20810:80", "-p", "127.0.0.1:20811:80", "web")
    assert done.stdout == "web\n" and "published 0.0.0.0:20810" in done.stderr
    alice.run("join", "web", "-d", "--name", "h", "--image", box, "--", "httpd", "-f", "-p", "80", "-h", "/var/www")
    wait_for(lambda: "nsrun" in curl(20810))
    assert "nsrun" in curl(20811) and "nsrun" in curl(20810, "192.0.2.1") and curl(20811, "192.0.2.1") == ""
    away = ["nsenter", "-t", host.throwaway.neighbour.pid, "-n", "curl", "-s", "-m", "5"]
    assert "nsrun" in sh(*away, "http://192.0.2.1:20810/").stdout
    assert sh(*away, "http://192.0.2.1:20811/", check=False).stdout == ""
    assert alice.pod("web")["ports"][0] == {"host_ip": "0.0.0.0", "host_port": 20810, "pod_port": 80, "protocol": "tcp"}
    assert "is taken" in alice.fails(125, "pod", "create", "-p", "20810:80", "two")
    kill(alice.pod("web")["pid"])
    wait_for(
        lambda: not [p for p in host.snapshot()["processes"] if "pass" in p or "pasta" in p or "door" in p],
        what="pasta ends with pause",
    )
    assert curl(20810) == ""


def forwarders(host) -> list[str]:
    return [line for line in host.snapshot()["processes"] if "passt" in line or "pasta" in line]


@pytest.mark.parametrize("note", ["as it was", "damaged", "lost", "no log"])
def test_pasta_ends_with_its_pod_whatever_was_killed(host, alice, note):
    """nsrun-door, which sees to it, was killed, and so was pause; then the next commands do."""
    need(os.path.exists("/usr/bin/pasta"), "pasta is missing", "apt-get install passt")
    alice.run("pod", "create", "-p", "127.0.0.1:20810:80", "web")
    pause = alice.pod("web")["pid"]
    file = host.root / f"users/{alice.uid}/run/pods/web/note"
    if note == "damaged":
        file.write_text(file.read_text().replace("web", "wab"))
    elif note == "lost":
        file.unlink()
    elif note == "no log":
        (file.parent / "forward.log").unlink()
        (file.parent / "forward.log").mkdir()
    for line in host.snapshot()["processes"]:
        if "door" in line:
            kill(int(line.split()[0]))
        elif line in forwarders(host):
            kill(int(line.split()[0]), signal.SIGSTOP)  # else it finds out by itself
    kill(pause)
    wait_for(lambda: not os.path.exists(f"/proc/{pause}"))
    assert forwarders(host) != []
    alice.run("pod", "prune")
    assert forwarders(host) == []
    alice.run("pod", "create", "-p", "127.0.0.1:20810:80", "web")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_an_end_while_pasta_starts(host, alice, number):
    """Its maker is killed, or interrupted, before pasta is known under its name."""
    need(os.path.exists("/usr/bin/pasta"), "pasta is missing", "apt-get install passt")
    slow = alice.home / "bin"
    slow.mkdir()
    (slow / "pasta").write_text('#!/bin/sh\nsleep 1\nexec /usr/bin/pasta "$@"\n')
    (slow / "pasta").chmod(0o755)
    alice.env["PATH"] = f"{slow}:{alice.env['PATH']}"
    maker = alice.background("pod", "create", "-p", "127.0.0.1:20810:80", "web", stderr=subprocess.PIPE)
    log = host.root / f"users/{alice.uid}/run/pods/web/forward.log"
    wait_for(log.exists)
    time.sleep(0.1)
    kill(maker.pid, number)
    maker.communicate(timeout=10)
    alice.run("pod", "prune")
    time.sleep(1.2)
    assert forwarders(host) == []
    # pause may have ended after the prune: then the first of these shows the pod, and removes it afterwards
    wait_for(lambda: alice.json("pod", "ls", "-a") == [])


def test_no_way_out(host, alice):
    """pasta copies the host's routes: without any, its failure is named, and what to do; newer ones go on without."""
    need(os.path.exists("/usr/bin/pasta"), "pasta is missing", "apt-get install passt")
    words = ["unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh"]
    done = sh(*words, *alice.words(NSRUN, "pod", "create", "web"), env=alice.env, cwd="/", check=False)
    if done.returncode:
        assert done.returncode == 125 and "no route to a network" in done.stderr, done.stderr
        assert alice.json("pod", "ls", "-a") == []
    else:  # pasta(1), "local mode": inside there is only what pasta itself answers
        assert [pod["status"] for pod in alice.json("pod", "ls")] == ["running"]


def test_a_free_port(host, alice, box):
    alice.run("pod", "create", "-p", "127.0.0.1::80", "web")
    port = alice.pod("web")["ports"][0]["host_port"]
    assert port >= 1024
    alice.run("join", "web", "-d", "--name", "h", "--image", box, "--", "httpd", "-f", "-p", "80", "-h", "/var/www")
    wait_for(lambda: "nsrun" in curl(port))


def test_the_way_out(host, alice, box):
    """A member reaches another host, from the owner's own address."""
    (host.root / "www").mkdir()
    (host.root / "www/page").write_text("outside")
    server = subprocess.Popen(["nsenter", "-t", str(host.throwaway.neighbour.pid), "-n", "python3", "-m", "http.server", "-b", "192.0.2.9", "20812", "-d", str(host.root / "www")], stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        alice.run("pod", "create", "out")
        fetch = [
            "join",
            "out",
            "--rm",
            "--image",
            box,
            "--",
            "sh",
            "-c",
            "printf 'GET /page HTTP/1.0\\r\\n\\r\\n' | timeout 3 nc 192.0.2.9 20812",
        ]
        assert "outside" in wait_for(lambda: alice.run(*fetch, check=False).stdout)
    finally:
        server.kill()
        server.wait()


def test_the_hosts_network(host, alice, box):
    alice.run("pod", "create", "--network", "host", "h")
    alice.run("join", "h", "-d", "--name", "m", "--image", box, "--", "sleep", "1000")
    assert alice.member("m")["namespaces"]["net"] == os.stat("/proc/thread-self/ns/net").st_ino
    assert "up0" in alice.run("exec", "m", "ip", "link").stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["-p", "80:80"], 125, "sudo sysctl net.ipv4.ip_unprivileged_port_start=80"),
        (["--network", "bridge"], 2, "sudo nsrun pod create"),
        (["--owner", "bob"], 125, "only root"),
        (["--memory", "100m"], 125, "Delegate=yes"),
        (["--network", "none", "-p", "20813:80"], 2, "needs --network pasta"),
        (["-p", "198.51.100.1:20813:80"], 125, "not an address of this host"),
    ],
)
def test_what_an_ordinary_user_can_not_have(host, alice, words, code, said):
    before = host.snapshot()
    assert said in alice.fails(code, "pod", "create", *words)
    assert host.snapshot() == before


def test_limits_in_a_pod_without_a_cgroup(alice, box):
    """The one who joins is root of the pod's user namespace: what that root may do with cgroups is not the reason."""
    alice.run("pod", "create", "--network", "none")
    said = alice.fails(125, "join", "pause", "--memory", "64m", "--image", box, "true")
    assert "the pod was made without one" in said and "this root" not in said


def test_without_subordinate_ids(host):
    carol = UserHost(host, "carol")
    assert "usermod --add-subuids" in carol.fails(125, "pod", "create", "--network", "none")
    (carol.home / "l").mkdir()
    assert "usermod --add-subuids" in carol.fails(125, "image", "load", carol.home / "l")


def _with_path(user, tmp_path: pathlib.Path, *without: str) -> dict[str, str]:
    """A PATH without some programs."""
    tmp_path.chmod(0o755)
    for directory in ("/usr/bin", "/bin", "/usr/sbin"):
        for name in os.listdir(directory):
            if name not in without and not (tmp_path / name).exists():
                (tmp_path / name).symlink_to(f"{directory}/{name}")
    return {"PATH": str(tmp_path)}


@pytest.mark.parametrize(("program", "package"), [("newuidmap", "uidmap"), ("pasta", "passt")])
def test_what_is_missing_is_named(host, alice, program, package):
    path = pathlib.Path(f"/run/path-{program}")
    path.mkdir(exist_ok=True)
    before = host.snapshot()
    assert f"apt-get install {package}" in alice.fails(125, "pod", "create", env=_with_path(alice, path, program))
    assert host.snapshot() == before


def test_a_machine_that_forbids_user_namespaces(host, alice):
    """The call is refused (here by a filter), and the setting that says so is named (here by a file over it)."""
    setting = "/proc/sys/user/max_user_namespaces"
    (host.root / "zero").write_text("0\n")
    (host.root / "zero").chmod(0o644)
    script = f"""
import os, sys, pyseccomp as s
f = s.SyscallFilter(s.ALLOW); f.add_rule(s.ERRNO(1), "unshare"); f.load()
os.execv({NSRUN!r}, [{NSRUN!r}, "pod", "create", "--network", "none"])
"""
    sh("mount", "--bind", host.root / "zero", setting)
    try:
        done = alice.sh(sys.executable, "-c", script, check=False)
    finally:
        sh("umount", setting)
    assert done.returncode == 125 and "forbids user namespaces" in done.stderr
    assert "user.max_user_namespaces is 0: sudo sysctl user.max_user_namespaces=10000" in done.stderr


def test_a_name_that_root_has_given(host, alice, owned):
    assert "by one that root made for you" in alice.fails(125, "pod", "create", "--network", "none", owned)


def test_root_does_not_see_them_but_may_become_her(host, alice, pod):
    assert host.json("pod", "ls") == [] and [p["name"] for p in alice.json("pod", "ls")] == [pod]


def test_a_login_session_that_ends(host, alice, box, tmp_path):
    """The pod goes on, and is found, whatever XDG_RUNTIME_DIR says later: no session, another one, one that was emptied."""
    env = {"NSRUN_ROOT": "", "XDG_DATA_HOME": str(alice.home / "data")}
    sessions = [host.root / name for name in ("first", "second")]
    for session in sessions:
        session.mkdir()
        os.chown(session, ALICE, ALICE)
    first, second = ({**env, "XDG_RUNTIME_DIR": str(session)} for session in sessions)
    alice.run("image", "load", CACHE.parent / "images" / "busybox", env=first)
    alice.run("pod", "create", "--network", "none", "long", env=first)
    try:
        words = ("sh", "-c", "echo precious >/precious; sleep 1000")
        alice.run("join", "long", "-d", "--name", "m", "--image", "busybox", "--", *words, env=first)
        shutil.rmtree(sessions[0])
        for later in (first, second, {**env, "XDG_RUNTIME_DIR": ""}):
            assert "long" in alice.run("pod", "ls", env=later).stdout
            alice.run("image", "ls", env=later)
            assert alice.run("exec", "m", "cat", "/precious", env=later).stdout == "precious\n"
        data = alice.home / "data/nsrun"
        assert all(
            path.stat().st_mode & 0o777 == 0o700 for path in (data, data / "run", data / "run/pods", data / "upper")
        )
    finally:
        alice.run("pod", "rm", "-f", "long", env=second)
        alice.run("image", "rm", "busybox", env=second)


def test_a_cgroup_that_was_delegated(host, alice, box):
    """As systemd gives users one: pod and members get cgroups below it, also those that are joined from elsewhere."""
    from nsrun.host import cgroup

    mount = cgroup.mount_point()
    need(mount, "cgroup v2 is not mounted", "mount -t cgroup2 none /sys/fs/cgroup")
    base = pathlib.Path(mount, f"{os.environ['NSRUN_CGROUP']}-alice")
    base.mkdir()
    try:
        for file in ("", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"):
            os.chown(base / file, alice.uid, alice.uid)
        inside = ["sh", "-c", f'echo $$ >{base}/cgroup.procs && exec "$@"', "sh"]
        sh(*inside, *alice.words(NSRUN, "pod", "create", "--network", "none", "mine"), env=alice.env, cwd="/")
        alice.run(
            "join", "mine", "-d", "--name", "m", "--image", box, "--", "sh", "-c", "sleep 1000 & sleep 1000 & wait"
        )
        alice.run("join", "mine", "-d", "--name", "other", "--image", box, "--", "sleep", "1000")
        groups = pathlib.Path(f"/proc/{alice.member('m')['pid']}/cgroup").read_text()
        assert f"0::/{base.name}/" in groups and groups.strip().endswith("/m-m")
        assert len([row for row in alice.json("pod", "ps", "mine") if row["member"] == "m"]) == 3
        os.kill(alice.member("m")["pid"], 9)
        wait_for(
            lambda: not [row for row in alice.json("pod", "ps", "mine") if row["member"] == "m"],
            what="its children end",
        )
        assert alice.member("other")["status"] == "running"
        # pause, nsrun-door, the other member and its monitor
        wait_for(lambda: alice.json("pod", "stats", "mine")[0]["pids"] == 4)
        alice.run("pod", "rm", "-f", "mine")
        wait_for(lambda: not [p for p in base.rglob("*") if p.is_dir()], what="the cgroups go")
    finally:
        alice.run("pod", "rm", "-f", "mine", check=False)
        for path in sorted(base.rglob("*"), reverse=True):
            if path.is_dir():
                path.rmdir()
        base.rmdir()
