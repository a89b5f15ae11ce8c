# SPDX-License-Identifier: Apache-2.0
"""`nsrun run`: a pod of one member, made and removed by one command."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import urllib.request
from typing import Any

import pytest
from conftest import CACHE, NSRUN, processes, sh, wait_for
from images import Layout
from test_image import busybox_layer  # noqa: F401  # a fixture

from nsrun import plan_of
from nsrun.cli.commands import BY_NAME
from nsrun.errors import BadInput, UsageError
from nsrun.lifecycle import runs
from nsrun.spec.exposed import exposed_ports
from nsrun.state import State, new_id


def answers(port: int) -> bool:
    """Is there the hostname of the pod `web`?"""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/hostname", timeout=5) as answer:
            return bool(answer.read() == b"web\n")
    except OSError:
        return False


def nothing_left(host) -> bool:
    return not host.json("pod", "ls", "-a") and not host.json("ls", "-a")


def test_it_ends_with_its_member(host, busybox):
    before = host.snapshot()
    done = host.run(
        "run", "--network", "none", "--rootfs", busybox, "sh", "-c", "echo out; echo err >&2; exit 7", check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert host.run("run", "--rootfs", busybox, "--", "hostname", check=False).stdout.startswith("busybox-")
    done = host.run(
        "run",
        "--rootfs",
        busybox,
        "--hostname",
        "h",
        "--add-host",
        "x:192.0.2.9",
        "-e",
        "A=b",
        "cat",
        "/etc/hosts",
        "/etc/hostname",
    )
    assert "192.0.2.9\tx" in done.stdout and done.stdout.endswith("h\n")
    wait_for(lambda: nothing_left(host))
    assert host.snapshot() == before


def test_in_the_background(host, busybox):
    """It stays until it is removed, as with docker run -d; with --rm both go with the member."""
    run = ["run", "-d", "-p", "127.0.0.1:8080:80", "--rootfs", busybox]
    assert host.run(*run, "--name", "web", "--", "httpd", "-f", "-p", "80", "-h", "/etc").stdout == "web\n"
    wait_for(lambda: answers(8080))
    assert host.member("web")["pod"] == "web" and host.pod("web")["members"] == ["web"]
    host.run("stop", "-t", "0", "web")
    assert host.member("web")["status"] == "stopped" and host.pod("web")["status"] == "running"
    assert "is taken" in host.fails(125, "run", "--network", "none", "--name", "web", "--rootfs", busybox, "true")
    host.run("pod", "rm", "-f", "web")
    host.run(*run, "--rm", "--name", "gone", "sleep", "0.5")
    wait_for(lambda: nothing_left(host))


def test_an_image(host, busybox):
    host.run("image", "load", "-t", "box:1", CACHE.parent / "images/busybox")
    done = host.run("run", "--network", "none", "box:1", "echo", "-n", "$HOME", "--rm")
    assert done.stdout == "$HOME --rm", "what follows the image is the command's"
    wait_for(lambda: nothing_left(host))
    host.run("image", "rm", "box:1")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--rootfs", "{box}", "no-such-program"], 127, "not found"),
        (["no-such-image", "sh"], 125, "no image"),
        (["--rootfs", "{box}", "--cap-add", "NO_SUCH", "true"], 2, "NO_SUCH"),
        (["--rootfs", "/no/such", "true"], 125, "does not exist"),
        (["--rootfs", "{box}", "--restart", "always", "--rm", "true"], 2, "exclude each other"),
        (["--rootfs", "{box}", "--volume", "relative:/x:what", "true"], 2, "what"),
        ([], 2, "missing IMAGE"),
        (["--net", "own", "--rootfs", "{box}", "true"], 2, "--net"),
        (["--rootfs", ""], 125, "empty"),
        (["--name", "", "--rootfs", "{box}", "true"], 2, "name"),
        (["-p", "80:80/sctp", "--rootfs", "{box}", "true"], 2, "SCTP"),
    ],
)
def test_what_can_not_begin_leaves_nothing(host, busybox, words, code, said):
    before = host.snapshot()
    network = [] if "-p" in words else ["--network", "none"]
    assert said in host.fails(code, "run", *network, *(word.format(box=busybox) for word in words))
    assert host.snapshot() == before


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["no-such-image", "sh"], 125),
        (["", "sh"], 2),
        (["--rootfs", "/no/such", "true"], 125),
        (["--rootfs", "{box}", "--cidfile", "/etc/passwd", "true"], 125),
        (["--rootfs", "{box}", "-w", "relative", "true"], 2),
        (["--rootfs", "{box}", "-u", "no-such-user", "true"], 125),
        (["--rootfs", "{box}", "-i", "-t", "true"], 2),
    ],
)
def test_what_can_not_be_made_has_no_pod(host, busybox, words, code):
    """Its ports are not published for a moment either: this is told first, and is not in what is said."""
    said = host.fails(code, "run", "-p", ":80", *(word.format(box=busybox) for word in words), stdin=subprocess.DEVNULL)
    assert "published" not in said


def test_of_a_removed_member_the_pod_stays_and_this_is_told(host, busybox):
    words = ["run", "-d", "--name", "web", "--network", "none", "--rootfs", busybox, "sleep", "1000"]
    host.run(*words)
    assert "pod 'web' stays" in host.run("rm", "-f", "web").stderr and host.pod("web")
    assert "nsrun pod rm -f web" in host.fails(125, *words)
    host.run("pod", "rm", "-f", "web")
    host.run(*words)
    host.run("join", "web", "-d", "--name", "other", "--rootfs", busybox, "sleep", "1000")
    assert host.run("rm", "-f", "web").stderr == "" == host.run("rm", "-f", "other").stderr


def test_a_pod_that_others_have_joined_stays(host, busybox):
    first = host.background("run", "--network", "none", "--name", "first", "--rootfs", busybox, "sleep", "1000")
    wait_for(lambda: host.json("ls") and host.member("first")["status"] == "running")
    host.run("join", "first", "-d", "--name", "second", "--rootfs", busybox, "sleep", "1000")
    first.send_signal(signal.SIGTERM)
    assert first.wait(20) == 143
    assert [pod["name"] for pod in host.json("pod", "ls")] == ["first"] and host.member("second")["status"] == "running"
    host.run("pod", "rm", "-f", "first")


def test_a_restart_policy_keeps_it(host, busybox):
    host.run(
        "run", "-d", "--network", "none", "--name", "r", "--restart", "always", "--rootfs", busybox, "sleep", "0.1"
    )
    wait_for(lambda: host.member("r")["restarts"] > 1)
    host.run("pod", "rm", "-f", "r")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_while_it_is_made(host, busybox, number):
    """Whenever it comes, the pod does not stay."""
    for delay in range(0, 60, 3):
        words = [NSRUN, "run", "--network", "none", "--rootfs", busybox, "sleep", "1000"]
        process = subprocess.Popen(
            words, env=host.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        # Python itself ignores a SIGINT while it starts
        wait_for(
            lambda pid=process.pid: "_kernel" in pathlib.Path(f"/proc/{pid}/maps").read_text(), what="nsrun is loaded"
        )
        time.sleep(delay / 1000)
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
        assert process.returncode in (128 + number, -number), (delay, process.returncode, errors)
        assert b"Traceback" not in errors
    wait_for(lambda: nothing_left(host))
    assert not [line for line in processes() if "sleep" in line]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_again_and_again(host, busybox, number):
    for delay in range(0, 48, 4):
        words = [NSRUN, "run", "--network", "none", "--rootfs", busybox, "sleep", "1000"]
        process = subprocess.Popen(
            words, env=host.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        wait_for(
            lambda pid=process.pid: "_kernel" in pathlib.Path(f"/proc/{pid}/maps").read_text(), what="nsrun is loaded"
        )
        time.sleep(delay / 1000)
        while process.poll() is None:
            process.send_signal(number)
            time.sleep(0.004)
        process.communicate(timeout=20)
    wait_for(lambda: nothing_left(host))


def test_what_can_not_be_told_leaves_no_pod(host, busybox):
    """The port is told on standard error, where nothing can be written."""
    before = host.snapshot()
    with open("/dev/full", "w") as full:
        words = [NSRUN, "run", "-p", "8080:80", "--rootfs", busybox, "echo", "hi"]
        done = subprocess.run(words, env=host.env, stdout=subprocess.PIPE, stderr=full, timeout=60, check=False)
    assert done.returncode in (0, 125)
    wait_for(lambda: host.snapshot() == before)


def test_a_member_that_the_owner_has_joined(host, alice, box, busybox):
    """Root knows nothing of it but its cgroup."""
    env = {"SUDO_UID": str(alice.uid)}
    host.run("run", "-d", "--rm", "--network", "none", "--name", "o", "--rootfs", busybox, "sleep", "1000", env=env)
    alice.run("join", "o", "-d", "--name", "am", "--image", box, "--", "sleep", "1000")
    host.run("stop", "-t", "0", "o")
    wait_for(lambda: [member["name"] for member in host.json("ls", "-a")] == ["am"], what="the first is removed")
    time.sleep(0.5)
    assert host.pod("o")["status"] == "running" and alice.member("am")["status"] == "running"
    host.run("pod", "rm", "-f", "o")


def test_pods_of_users(host, alice, box, busybox):
    """Without root, and by sudo: then the pod is the caller's."""
    assert alice.run("run", "--network", "none", box, "id", "-u").stdout == "0\n"
    wait_for(lambda: nothing_left(alice))
    env = {"SUDO_UID": str(alice.uid)}
    done = host.run("run", "--network", "none", "--rootfs", busybox, "cat", "/proc/self/uid_map", env=env)
    assert done.stdout.split()[:2] == ["0", "100000"] or str(alice.uid) not in done.stdout.split()[:1]
    wait_for(lambda: nothing_left(host))
    alice.run("run", "-d", "--rm", "--network", "none", "--name", "hers", box, "sleep", "0.5")
    wait_for(lambda: nothing_left(alice))


def test_its_options_are_those_of_its_two_halves():
    keys = {name: {option.key for option in BY_NAME[name].options} for name in ("pod create", "join", "run")}
    assert keys["run"] - {"name", "rm", "publish_all"} <= keys["pod create"] | keys["join"]
    assert (keys["pod create"] | keys["join"]) - keys["run"] == {"image", "net", "ipc", "pid", "uts"}
    flags = [flag for option in BY_NAME["run"].options for flag in option.flags]
    assert len(flags) == len(set(flags)), "one meaning each"


def test_killed(host, busybox):
    """Its monitor is the member's: when that is killed, pod and member stay until they are removed."""
    process = host.background("run", "--network", "none", "--name", "k", "--rootfs", busybox, "sleep", "1000")
    wait_for(lambda: host.json("ls") and host.member("k")["status"] == "running")
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    assert host.pod("k")["status"] == "running"
    host.run("rm", "-f", "k")
    assert nothing_left(host), "the member's removal takes the pod as well"


def test_killed_before_there_is_a_member(host, busybox):
    """At any moment: the next command ends a pod that nobody has joined, and the one after that finds nothing."""
    for number in range(8):
        name = f"k{number}"
        words = ["run", "-d", "--rm", "--network", "none", "--name", name, "--rootfs", busybox, "sleep", "1000"]
        with host.background(*words, stdout=subprocess.DEVNULL) as running:
            pod, member = host.root / "run/pods" / name, host.root / "run/members" / name
            wait_for(lambda pod=pod: (pod / "started").exists())
            if number % 2:
                wait_for(lambda member=member: member.exists())
            running.kill()
        host.run("pod", "ls")
        left = {row["name"] for row in host.json("pod", "ls", "-a")}
        assert left <= {row["name"] for row in host.json("ls") if row["status"] == "running"}, left
        if left:
            host.run("pod", "kill", name)
    assert not os.listdir(host.root / "run/runs") and nothing_left(host)


def test_a_run_that_was_killed_and_what_became_of_its_pod(host, alice, box, busybox):
    """What has a member stays, and what another `run` is about to join, too; so does another pod of that name."""
    state = State(str(host.root))
    for name, joined in (("empty", False), ("joined", True), ("other", False), ("lives", False)):
        ident = new_id()
        fd = runs.begin(state, ident, name)
        if name == "other":
            host.run("pod", "create", "--network", "none", name)
        else:
            code = f"from nsrun.lifecycle.create import create_pod; from nsrun.state import State; create_pod(State(), {{'name': {name!r}, 'network': 'none'}}, ident={ident!r})"
            sh(sys.executable, "-I", "-c", code, env=host.env)
        if joined:
            host.run("join", name, "-d", "--name", "m", "--rootfs", busybox, "sleep", "1000")
        if name != "lives":
            os.close(fd)
    host.run("pod", "ls")
    assert sorted(row["name"] for row in host.json("pod", "ls")) == ["joined", "lives", "other"]
    assert len(os.listdir(host.root / "run/runs")) == 1
    os.close(fd)
    host.run("pod", "ls")
    assert sorted(row["name"] for row in host.json("pod", "ls")) == ["joined", "other"]
    fd = runs.begin(state, ident := new_id(), "owned")
    code = f"from nsrun.lifecycle.create import create_pod; from nsrun.state import State; create_pod(State(), {{'name': 'owned', 'network': 'none'}}, ident={ident!r})"
    sh(sys.executable, "-I", "-c", code, env={**host.env, "SUDO_UID": str(alice.uid)})
    alice.run("join", "owned", "-d", "--name", "a", "--image", box, "--", "sleep", "1000")
    os.close(fd)
    host.run("pod", "ls")
    assert host.pod("owned")["status"] == "running"


# ---- -P -----------------------------------------------------------------------------------------------------------


def test_exposed_ports():
    image: Any = {"ExposedPorts": {"80/tcp": {}, "53/udp": {}, "8001-8002": {}, "9/sctp": {}, "443": {}}}
    asked = [":80/tcp", ":443/tcp", ":53/udp", ":8001-8002/tcp"]
    found, left = exposed_ports(image, ())
    assert sorted(found) == sorted(asked) and left == ["9/sctp"] and found == exposed_ports(image, ())[0]
    assert exposed_ports(image, {(80, "tcp"), (53, "tcp")})[0] == [port for port in found if port != ":80/tcp"]
    assert exposed_ports({}, ()) == ([], [])
    for bad in ("", "x", "0", "65536", "80-", "1-99999999/tcp", "٣", "8x/tcp"):
        with pytest.raises(BadInput, match="no port"):
            exposed_ports({"ExposedPorts": {bad: {}}}, ())


def test_all_exposed_ports_are_published(host, busybox_layer, tmp_path):  # noqa: F811
    """On free ports, beside those that -p names; and what listens there answers."""
    layout = Layout(
        busybox_layer, Cmd=["httpd", "-f", "-p", "80", "-h", "/etc"], ExposedPorts={"80/tcp": {}, "53/udp": {}}
    )
    image = host.run("image", "load", layout.write(tmp_path / "image")).stdout.strip()
    done = host.run("run", "-d", "-P", "-p", "127.0.0.1::81", "--name", "web", image)
    ports = {(p["pod_port"], p["protocol"]): p for p in host.json("port", "web") if "." in p["host_ip"]}
    assert ports.keys() == {(80, "tcp"), (53, "udp"), (81, "tcp")} and all(
        p["host_port"] > 1023 for p in ports.values()
    )
    assert f":{ports[80, 'tcp']['host_port']} → 80/tcp" in done.stderr
    wait_for(lambda: answers(ports[80, "tcp"]["host_port"]))
    host.run("pod", "rm", "-f", "web")
    host.run("run", "-d", "-P", "-p", "127.0.0.1:8080:80", "--name", "web", image)
    assert sorted((p["pod_port"], p["host_port"]) for p in host.json("port", "web") if p["protocol"] == "tcp") == [(80, 8080)]  # fmt: skip
    host.run("pod", "rm", "-f", "web")


def test_more_ports_than_can_be_had(host, busybox_layer, tmp_path):  # noqa: F811
    """The message does not name each of them."""
    layout = Layout(busybox_layer, Cmd=["true"], ExposedPorts={"1-65535/tcp": {}})
    image = host.run("image", "load", layout.write(tmp_path / "image")).stdout.strip()
    done = host.run("run", "-d", "-P", "--name", "web", image, check=False)
    if done.returncode:  # where root may have as many descriptors it works
        assert "any free port" in done.stderr and len(done.stderr) < 2000
    else:
        host.run("pod", "rm", "-f", "web")


def test_all_of_nothing(host, busybox, busybox_layer, tmp_path):  # noqa: F811
    image = host.run("image", "load", Layout(busybox_layer, Cmd=["true"]).write(tmp_path / "image")).stdout.strip()
    assert "exposes no ports" in host.run("run", "-P", image).stderr
    assert "only an image" in host.fails(2, "run", "-P", "--rootfs", busybox, "true")
    assert "nsrun run -P" in host.fails(2, "pod", "create", "-P", "x")
    assert "nsrun run -P" in host.fails(2, "join", "x", "-P", "--image", image)


# ---- explain ------------------------------------------------------------------------------------------------------


def commands(host, *words) -> list[list[str]]:
    return [plan["command"] for plan in json.loads(host.run("explain", "--format", "json", *words).stdout)]


def test_explain_shows_the_pod_and_the_member(host, alice, busybox):
    words = ["run", "--name", "web", "-p", "127.0.0.1:8081:80", "--rootfs", busybox, "-d", "sleep", "1"]
    before = host.snapshot()
    (_, *pod), (_, *member) = commands(host, *words)
    assert pod == ["pod", "create", "--publish=127.0.0.1:8081:80", "web"]
    assert member[:2] + member[-3:] == ["join", "web", "--", "sleep", "1"]
    assert {*member[2:-3]} == {f"--rootfs={busybox}", "--detach", "--name=web"}
    text = host.run("explain", *words).stdout
    assert text.startswith("It is the same as 2 commands, one after the other:\n  nsrun pod create")
    assert "pod create web: " in text and "join web: " in text and text.count("Nothing is done now.") == 1
    assert host.run("explain", "--format", "shell", *words).stdout.count("#!/bin/sh") == 2
    assert host.snapshot() == before
    # what they say can be typed
    host.run(*pod)
    assert host.run(*member).stdout == "web\n"
    assert [plan["title"] for plan in json.loads(host.run("explain", "--format", "json", "run", "--rootfs", busybox, "true").stdout)] == ["pod create busybox-ID", "join busybox-ID"]  # fmt: skip
    steps = json.loads(host.run("explain", "--format", "json", "run", "--rootfs", busybox, "true", env={"SUDO_UID": str(alice.uid)}).stdout)  # fmt: skip
    assert "OpenUserNamespace" in [step["step"] for step in steps[1]["steps"]], "the member of an owner's pod"
    with pytest.raises(UsageError, match="more than one plan"):
        plan_of(words, str(host.root))


def test_explain_up_shows_what_differs(host, busybox, tmp_path):
    file = tmp_path / "web.toml"
    text = f"""
[pod]
name = "web"
network = "none"
[members.one]
rootfs = "{busybox}"
command = ["sleep", "1000"]
[members.two]
rootfs = "{busybox}"
command = ["sleep", "1000"]
"""
    file.write_text(text)
    assert [words[1:3] for words in commands(host, "up", file)] == [["pod", "create"], ["join", "web"], ["join", "web"]]
    assert not host.json("pod", "ls")
    host.run("up", file)
    assert commands(host, "up", file) == []
    assert host.run("explain", "up", file).stdout == "Nothing is to be done.\n"
    host.run("stop", "-t", "0", "two")
    assert commands(host, "up", file) == [["nsrun", "start", "two"]]
    file.write_text(text.replace("[members.two]", "[members.three]").replace('"1000"', '"999"', 1))
    assert [words[1:3] for words in commands(host, "up", file)] == [["stop", "one"], ["rm", "one"], ["join", "web"], ["join", "web"], ["rm", "two"]]  # fmt: skip
    file.write_text(text.replace('"none"', '"none"\nhostname = "h"'))
    assert [words[1:3] for words in commands(host, "up", file)][:2] == [["pod", "stop"], ["pod", "create"]]
    assert host.json("ls")[0]["name"] == "one", "and nothing was done"
    host.run("pod", "rm", "-f", "web")
