# SPDX-License-Identifier: Apache-2.0
"""`nsrun unit`, and what `up --notify` tells systemd."""

import os
import re
import shutil
import socket
import subprocess

import pytest
from conftest import CACHE, need, wait_for

TOML = """
[pod]
name = "p"
network = "none"
[members.m]
rootfs = "{box}"
command = ["sleep", "1000"]
stop_timeout = 7
[members.n]
rootfs = "{box}"
command = ["sleep", "1000"]
"""


@pytest.fixture
def file(busybox, tmp_path):
    path = tmp_path / "a pod.toml"
    path.write_text(TOML.format(box=busybox))
    return path


def settings(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))


def verify(text: str, path, *words: str) -> None:
    need(shutil.which("systemd-analyze"), "systemd-analyze is missing", "apt-get install systemd")
    path.write_text(text)
    os.chmod(path, 0o644)
    command = ["systemd-analyze", *words, "--man=no", "verify", path]
    env = {**os.environ, "XDG_RUNTIME_DIR": str(path.parent)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env)
    assert done.returncode == 0 and str(path.name) not in done.stderr, done.stderr


@pytest.mark.live
def test_a_unit_of_a_file(host, file, tmp_path):
    """It is what systemd takes, and stops the members in their time."""
    text = host.run("unit", file).stdout
    found = settings(text)
    assert found["ExecStart"].endswith(f'--root {host.root} up --notify "{file}"') and os.path.isabs(found["ExecStart"])
    assert found["ExecStop"].endswith(f'down "{file}"') and found["ExecStopPost"].startswith("-/")
    assert found["TimeoutStopSec"] == str(7 + 10 + 30) and found["Type"] == "notify" and found["Delegate"] == "yes"
    assert found["WantedBy"] == "multi-user.target" and found["Restart"] == "on-failure"
    verify(text, tmp_path / "p.service")
    user = settings(host.run("unit", "--user", file).stdout)
    assert user["WantedBy"] == "default.target" and user["Restart"] == "always" and "After" not in user
    verify(host.run("unit", "--user", file).stdout, tmp_path / "p.service", "--user")


@pytest.mark.live
def test_a_unit_of_a_pod(host, pod, busybox, tmp_path):
    """It says which file it needs, and how that is written."""
    host.run("join", pod, "-d", "--name", "m", "--stop-timeout", "3", "--rootfs", busybox, "sleep", "1000")
    text = host.run("unit", pod).stdout
    assert "# nsrun kube generate pause >/etc/nsrun/pause.yaml\n" in text and settings(text)["TimeoutStopSec"] == "33"
    assert settings(text)["ExecStart"].endswith(" up --notify /etc/nsrun/pause.yaml")
    assert settings(host.run("unit", "--user", pod).stdout)["ExecStart"].endswith(" %h/.config/nsrun/pause.yaml")
    assert "no pod 'nope'" in host.fails(125, "unit", "nope")


def test_paths_as_systemd_reads_them():
    from nsrun.cli.units import _word
    from nsrun.errors import BadInput

    assert _word("/a/b-c.toml") == "/a/b-c.toml" and _word("/a%b") == "/a%%b" and _word("/a b") == '"/a b"'
    assert _word('/a"\\$') == '"/a\\"\\\\$$"'
    with pytest.raises(BadInput):
        _word("/a\nExecStart=/bin/sh")


@pytest.mark.live
def test_several_pods_are_no_unit(host, tmp_path):
    pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec: {containers: [{name: c, image: box}]}\n---\n"
    (tmp_path / "two.yaml").write_text(pod % "a" + pod % "b")
    assert "a unit is for one pod, and there are 2" in host.fails(125, "unit", tmp_path / "two.yaml")


@pytest.fixture
def manager(tmp_path):
    """What listens where systemd would, and the words that it heard."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        os.chmod(tmp_path / "notify", 0o666)
        listening.settimeout(30)
        yield listening, {"NOTIFY_SOCKET": str(tmp_path / "notify")}


def heard(listening: socket.socket) -> dict[str, str]:
    return dict(line.split("=", 1) for line in listening.recv(4096).decode().splitlines())


@pytest.mark.live
def test_root_names_pause_as_the_main_process(host, file, manager, tmp_path):
    """It is told when all members run; pause is a child of process 1 by then, which is systemd elsewhere."""
    listening, env = manager
    host.run("up", "--notify", file, env=env)
    said, pause = heard(listening), host.pod("p")["pid"]
    assert said["READY"] == "1" and said["MAINPID"] == str(pause)
    assert {host.member(name)["status"] for name in "mn"} == {"running"}
    parent = re.search(r"PPid:\t(\d+)", open(f"/proc/{pause}/status").read())
    assert parent and parent[1] in ("1", str(os.getppid()), str(os.getpid()))
    host.run("up", "--notify", file, env=env)
    assert heard(listening)["MAINPID"] == str(pause), "a second time, too"
    assert "NOTIFY_SOCKET" in host.run("up", "--notify", file, check=False).stderr
    gone = tmp_path / "gone"
    for told in ("No such file", "refused"):
        done = host.run("up", "--notify", file, check=False, env={"NOTIFY_SOCKET": str(gone)})
        assert f"NOTIFY_SOCKET={gone}: " in done.stderr and told in done.stderr, done.stderr
        if not gone.exists():
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
                bound.bind(str(gone))


@pytest.mark.live
def test_an_abstract_socket(host, file):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0nsrun-test-{os.getpid()}")
        listening.settimeout(30)
        host.run("up", "--notify", file, env={"NOTIFY_SOCKET": f"@nsrun-test-{os.getpid()}"})
        assert heard(listening)["READY"] == "1"


@pytest.mark.live
def test_a_users_main_process_waits_for_pause(host, alice, box):
    """No Python stays: a tail, which ends with the pod."""
    path = alice.home / "pod.toml"
    path.write_text(
        f'[pod]\nname = "hers"\nnetwork = "none"\n[members.m]\nimage = "{box}"\ncommand = ["sleep", "1000"]\n'
    )
    path.chmod(0o644)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0nsrun-test-{os.getpid()}")
        listening.settimeout(30)
        alice.env["NOTIFY_SOCKET"] = f"@nsrun-test-{os.getpid()}"
        process = alice.background("up", "--notify", path, stdout=subprocess.DEVNULL)
        try:
            said = heard(listening)
            assert said["READY"] == "1" and "MAINPID" not in said
            wait_for(lambda: "tail" in open(f"/proc/{process.pid}/comm").read())
            del alice.env["NOTIFY_SOCKET"]
            alice.run("pod", "kill", "hers")
            assert process.wait(30) == 0
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


@pytest.mark.live
def test_a_generated_file_runs_as_a_unit(host, manager, tmp_path):
    """The way that the unit's first lines describe."""
    pytest.importorskip("yaml")
    listening, env = manager
    host.run("image", "load", "-t", "box", CACHE.parent / "images/busybox")
    host.run("pod", "create", "--network", "none", "p")
    host.run("join", "p", "-d", "--name", "m", "--image", "box", "sleep", "1000")
    (tmp_path / "p.yaml").write_text(host.run("kube", "generate", "p").stdout)
    host.run("pod", "rm", "-f", "p")
    host.run("up", "--notify", tmp_path / "p.yaml", env=env)
    assert heard(listening)["MAINPID"] == str(host.pod("p")["pid"]) and host.member("m")["status"] == "running"
    host.run("down", "-t", "0", tmp_path / "p.yaml")
