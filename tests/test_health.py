# SPDX-License-Identifier: Apache-2.0
"""Health checks: what the options and an image say, and what the monitor does (csrc/health.h)."""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import CACHE, sh, wait_for
from images import Layout
from test_image import busybox_layer  # noqa: F401  # a fixture

import nsrun
from nsrun.errors import BadInput, UsageError
from nsrun.plan import name_of
from nsrun.spec.health import parse_connect, parse_duration, parse_health

live = pytest.mark.live
#: A check is due every 0.1 s.
OFTEN = ["--health-interval", "100ms"]
SECOND = 10**9


# ---- what is asked for --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("1m30s", 90), ("500ms", 0.5), ("0", 0), ("0s", 0), ("5", 5), ("1.5s", 1.5), ("2h", 7200), ("1ms", 0.001)],
)  # fmt: skip
def test_durations(text, seconds):
    assert parse_duration(text, "-x") == seconds


@pytest.mark.parametrize("text", ["", "s", "1x", "1m30", "-1s", "1s ", "1..5s", "0.1ms", "9999999h", "1 s", "٣s", "1d", "1ss", "."])  # fmt: skip
def test_durations_refused(text):
    with pytest.raises(UsageError, match="-x"):
        parse_duration(text, "-x")


@pytest.mark.parametrize(
    ("asked", "command"),
    [
        ("exit 0", ["/bin/sh", "-c", "exit 0"]),
        ("[ -e /x ]", ["/bin/sh", "-c", "[ -e /x ]"]),
        ('["true", "a b"]', ["true", "a b"]),
        ('["CMD", "true"]', ["true"]),
        ('["CMD-SHELL", "exit 1"]', ["/bin/sh", "-c", "exit 1"]),
        ("[1]", ["/bin/sh", "-c", "[1]"]),
    ],
)
def test_commands(asked, command):
    found = parse_health({"health_cmd": asked}, {})
    assert found == {
        "command": command,
        "interval": 30,
        "timeout": 30,
        "start_period": 0,
        "start_interval": 5,
        "retries": 3,
    }


def test_an_images_check_and_what_options_change_of_it():
    image = {"Healthcheck": {"Test": ["CMD", "probe"], "Interval": 5 * SECOND, "Timeout": SECOND // 2, "StartPeriod": SECOND, "Retries": 7}}  # fmt: skip
    found = {"command": ["probe"], "interval": 5, "timeout": 0.5, "start_period": 1, "start_interval": 5, "retries": 7}
    assert parse_health({}, image) == found
    assert parse_health({"health_retries": "1", "health_timeout": "0"}, image) == {**found, "retries": 1, "timeout": 30}
    assert parse_health({"health_cmd": "x"}, image) == {**found, "command": ["/bin/sh", "-c", "x"]}
    assert parse_health({"no_healthcheck": True}, image) is None
    assert parse_health({"health_cmd": "none"}, image) is None
    shell = {"Healthcheck": {"Test": ["CMD-SHELL", "x"]}, "Shell": ["/bin/ash", "-ec"]}
    assert (parse_health({}, shell) or {})["command"] == ["/bin/ash", "-ec", "x"]
    for nothing in ({}, {"Healthcheck": {}}, {"Healthcheck": {"Test": ["NONE"]}}, {"Healthcheck": {"Test": []}}):
        assert parse_health({}, nothing) is None


def test_contradictions():
    with pytest.raises(UsageError, match="contradict"):
        parse_health({"no_healthcheck": True, "health_cmd": "x"}, {})
    with pytest.raises(UsageError, match="--health-retries: there is no health check"):
        parse_health({"health_retries": "1"}, {})
    for bad in (["CMD"], ["CMD-SHELL"], ["CMD-SHELL", "a", "b"], ["x", "y"], ["CMD", ""], ["CMD", "a\0b"]):
        with pytest.raises(BadInput):
            parse_health({}, {"Healthcheck": {"Test": bad}})


def connects(**options) -> tuple[str, int, bytes]:
    found = parse_health({f"health_{key}": value for key, value in options.items()}, {})  # type: ignore[arg-type]
    assert found and found["command"] == []
    return parse_connect(found["connect"], found.get("headers", []), "10.0.0.9")


@pytest.mark.parametrize(
    "options, address, port, line, host",
    [
        ({"tcp": "80"}, "10.0.0.9", 80, "", ""),
        ({"tcp": ":80"}, "10.0.0.9", 80, "", ""),
        ({"tcp": "localhost:65535"}, "127.0.0.1", 65535, "", ""),
        ({"tcp": "[::1]:1"}, "::1", 1, "", ""),
        ({"http": "http://:8080"}, "10.0.0.9", 8080, "GET / HTTP/1.1", "10.0.0.9:8080"),
        ({"http": "http://:8080/a/b?c=d%20e"}, "10.0.0.9", 8080, "GET /a/b?c=d%20e HTTP/1.1", "10.0.0.9:8080"),
        ({"http": "http://127.0.0.1/x"}, "127.0.0.1", 80, "GET /x HTTP/1.1", "127.0.0.1:80"),
        ({"http": "http://[::1]/x"}, "::1", 80, "GET /x HTTP/1.1", "[::1]:80"),
        ({"http": "http://[::1]:81/x", "header": ["host: me"]}, "::1", 81, "GET /x HTTP/1.1", "me"),
    ],
)
def test_where_a_check_connects(options, address, port, line, host):
    *place, request = connects(**options)
    assert place == [address, port]
    lines = request.decode().split("\r\n")
    assert lines[0] == line
    if line:
        headers = {name.lower(): value for name, _, value in (text.partition(": ") for text in lines[1:-2])}
        assert headers == {"host": host, "user-agent": "nsrun", "accept": "*/*", "connection": "close"}
        assert lines[-2:] == ["", ""]
    else:
        assert request == b""


@pytest.mark.parametrize(
    "options, message",
    [
        *(({"tcp": bad}, "is not a port") for bad in ("", "x", "0", "65536", "1:", "http://x", "-1")),
        *(({"tcp": f"{bad}:1"}, "is not an address") for bad in ("name", "::1", "[127.0.0.1]", "[::1", "1.2.3")),
        *(({"http": bad}, "does not begin with http://") for bad in ("", "https://x", ":80/", "ftp://1.2.3.4/")),
        *(({"http": f"http://{bad}"}, "is not a") for bad in ("", "name/", ":80/ b", ":80/\nX", ":80/ü", ":80/#x", "a@1.2.3.4/", "1.2.3.4:80?x", ":/")),
        *(({"http": "http://:80", "header": [bad]}, "is not a header") for bad in ("x", ": y", "a b: c", "a: b\r\nc: d", "ü: x")),
        ({"http": "http://:80", "header": ["Connection: keep-alive"]}, "is nsrun's own"),
        ({"http": f"http://:80/{'x' * 4096}"}, "has more than"),
        ({"tcp": "1", "header": ["a: b"]}, "needs --health-http"),
        ({"http": "tcp://:80"}, "does not begin with http://"),
        ({"tcp": "1", "http": "http://:1"}, "contradict"),
        ({"tcp": "1", "cmd": "true"}, "contradict"),
    ],
)  # fmt: skip
def test_where_none_connects(options, message):
    with pytest.raises(UsageError, match=message):
        connects(**options)


# ---- what is done -------------------------------------------------------------------------------------------------


def start(host, busybox, check: str, *options: str, name: str = "m", command: tuple[str, ...] = ("sleep", "1000")):
    host.start(name, busybox, *command, options=["--health-cmd", check, *OFTEN, *options])


def log(host, name: str = "m") -> list[dict]:
    return host.member(name)["healthcheck"]["log"]


@live
def test_starting_healthy_unhealthy_and_back(host, pod, busybox):
    start(host, busybox, "echo seen; test -e /ok", "--health-retries", "3", "--health-interval", "300ms")
    host.run("exec", "m", "touch", "/ok")
    assert host.run("wait", "--condition", "healthy", "m").stdout == "healthy\n"
    assert "running (healthy)" in host.run("ls").stdout and host.member("m")["status"] == "running"
    host.run("exec", "m", "rm", "/ok")
    assert host.run("wait", "--condition", "unhealthy", "m").stdout == "unhealthy\n"
    found = host.member("m")["healthcheck"]
    assert found["failing_streak"] >= 3 and [one["exit_code"] for one in found["log"]][-3:] == [1, 1, 1]
    wait_for(lambda: len(log(host)) == 5)
    last = log(host)
    assert all(one["output"] == "seen\n" and one["start"] < one["end"] for one in last)
    assert last == sorted(last, key=lambda one: one["start"])
    assert host.run("ls", "-q", "-f", "health=unhealthy").stdout == "m\n"
    assert host.run("ls", "-q", "-f", "health=healthy").stdout == ""
    assert host.run("ls", "--format", "{{.Status}}|{{.State}}|{{.Health}}").stdout == "running (unhealthy)|running|unhealthy\n"  # fmt: skip
    assert host.json("ls")[0]["health"] == "unhealthy"
    host.run("exec", "m", "touch", "/ok")
    wait_for(lambda: host.member("m")["health"] == "healthy")
    assert host.member("m")["healthcheck"]["failing_streak"] == 0


@live
def test_the_start_period(host, pod, busybox):
    """Failures in it do not count, and checks come at their own interval; after a success it is over."""
    start(host, busybox, "test -e /ok", "--health-retries", "1", "--health-start-period", "1000s", "--health-start-interval", "50ms", "--health-interval", "200ms")  # fmt: skip
    wait_for(lambda: len(log(host)) == 5)
    found = host.member("m")
    assert found["health"] == "starting" and found["healthcheck"]["failing_streak"] == 0
    assert "running (starting)" in host.run("ls").stdout
    host.run("exec", "m", "touch", "/ok")
    host.run("wait", "--condition", "healthy", "m")
    host.run("exec", "m", "rm", "/ok")
    host.run("wait", "--condition", "unhealthy", "m")


@live
def test_it_is_what_exec_would_start(host, pod, busybox):
    """The same namespaces, root, user, groups, capabilities, filter, limits and environment, in the member's cgroup."""
    show = "for n in mnt net ipc uts pid cgroup user; do readlink /proc/self/ns/$n; done; id; pwd -P >&2; readlink /proc/self/root; env | sort; grep -E '^(Cap|NoNewPrivs|Seccomp|Groups)' /proc/self/status; ulimit -n; cat /etc/hostname"  # fmt: skip
    options = [
        "-u",
        "7:8",
        "--group-add",
        "9",
        "-w",
        "/etc",
        "-e",
        "A=b c",
        "--ulimit",
        "nofile=77:78",
        "--cap-drop",
        "CHOWN",
    ]
    start(host, busybox, show, *options)
    host.run("wait", "--condition", "healthy", "m")
    mine = host.run("exec", "m", "/bin/sh", "-c", f"exec 2>&1; {show}").stdout
    assert "uid=7" in mine and "Seccomp:\t2" in mine
    assert sorted(log(host)[0]["output"].splitlines()) == sorted(mine.splitlines())


@live
def test_explain_says_what_is_called(host, pod, busybox, tmp_path):
    """The calls that make a check, in their order, as strace shows them."""
    words = ["join", pod, "-d", "--name", "m", "--health-cmd", '["true"]', "--health-interval", "300ms", "--rootfs", busybox, "sleep", "1000"]  # fmt: skip
    steps = json.loads(host.run("explain", "--format", "json", *words).stdout)["steps"]
    (told,) = (step for step in steps if step["step"] == "PrepareChecks")
    (due,) = (part for part in told["parts"] if isinstance(part, dict))
    *launch, inside = due["parts"][0]["parts"]
    assert due["when"] == "a check is due, every 0.3 s" and inside["by"] == "nsrun-init"
    host.run(*words)
    monitor = pathlib.Path(f"/proc/{host.member('m')['pid']}/stat").read_text().rpartition(")")[2].split()[1]
    trace = tmp_path / "trace"
    names = "mkdirat,setns,clone3,execveat,setsid,keyctl,seccomp,setgroups,setresgid,setresuid,capset,chdir,execve"
    with subprocess.Popen(["strace", "-f", "-o", str(trace), "-e", f"trace={names}", "-p", monitor], stderr=subprocess.DEVNULL) as strace:  # fmt: skip
        try:
            wait_for(lambda: trace.exists() and trace.read_text().count('"true"') > 1)
        finally:
            strace.kill()
    calls = re.findall(r"^(\d+) +(\w+)\((.*)", trace.read_text(), re.M)
    first = next(at for at, (_, name, _) in enumerate(calls) if name == "execveat")
    init = [name for pid, name, _ in calls[first + 1 :] if pid == calls[first][0]]
    wanted = [name_of(call) for call in inside["parts"] if isinstance(call, str)]
    wanted = [name for name in wanted if name in names.split(",")]
    once = init[: init.index("execve") + 1]
    assert [name for name in once if name != "seccomp"] == wanted
    before = [name for _, name, _ in calls[: first + 1] if name in ("mkdirat", "setns", "clone3", "execveat")]
    assert before == [name_of(call) for call in launch]


@live
def test_a_check_that_hangs_is_killed_with_all_it_started(host, pod, busybox):
    """Its output until then is kept; and neither the log, nor exec, nor signals wait for it."""
    check = f"echo begun; (setsid {nap(0)} &) ; setsid {nap(0)} & trap '' TERM; while :; do {nap(0)}; done"
    start(host, busybox, check, "--health-timeout", "1s", "--health-retries", "1", command=("sh", "-c", "trap 'echo hup' HUP; while :; do sleep 0.1; done"))  # fmt: skip
    wait_for(lambda: any(nap(0) in row["command"] for row in host.json("top", "m")))
    began = time.monotonic()
    host.run("kill", "-s", "HUP", "m")
    wait_for(lambda: host.run("logs", "m").stdout == "hup\n")
    assert time.monotonic() - began < 20
    host.run("wait", "--condition", "unhealthy", "m")
    first = log(host)[0]
    assert first["exit_code"] == -1 and first["output"].endswith("begun\n") and "longer than 1 s" in first["output"]
    host.run("pause", "m")  # so that no other check begins
    # of one check at most
    wait_for(lambda: len([row for row in host.json("top", "m") if row["command"] == nap(0)]) <= 3)
    host.run("unpause", "m")
    host.run("stop", "-t", "0", "m")
    assert host.member("m")["health"] == "none" and host.member("m")["status"] == "stopped"
    assert not _napping(0)


def nap(number: int) -> str:
    """A command that ends when it is killed, and that no other test run on this machine has."""
    return f"sleep {100 * os.getpid() + number}"


def _napping(number: int) -> list[str]:
    words = nap(number).replace(" ", "\0").encode() + b"\0"
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if pathlib.Path(f"/proc/{pid}/cmdline").read_bytes() == words:
                found.append(pid)
        except OSError:
            continue
    return found


@live
def test_its_process_is_killed(host, pod, busybox):
    """Then the check ends with it, and the next one comes in its time."""
    start(host, busybox, f"test -e /ok || {{ {nap(1)}; exit 1; }}", "--health-retries", "1")
    monitor = pathlib.Path(f"/proc/{host.member('m')['pid']}/stat").read_text().rpartition(")")[2].split()[1]
    (old,) = wait_for(lambda: _napping(1))
    children = pathlib.Path(f"/proc/{monitor}/task/{monitor}/children").read_text().split()
    (process,) = (pid for pid in children if pathlib.Path(f"/proc/{pid}/comm").read_text() == "nsrun-health\n")
    os.kill(int(process), signal.SIGKILL)
    wait_for(lambda: log(host))
    (new,) = wait_for(lambda: (now := _napping(1)) and old not in now and now, what="the next check")
    assert [one["exit_code"] for one in log(host)] == [137]
    host.run("exec", "m", "touch", "/ok")
    os.kill(int(new), signal.SIGKILL)
    host.run("wait", "--condition", "healthy", "m")


@live
def test_no_check_outlives_the_member(host, pod, busybox):
    """Whoever ends it: itself, stop, kill, or its pod."""
    for number, end in enumerate(("itself", "stop -t 0 m", "kill m", "pod kill pause")):
        start(host, busybox, nap(10 + number), command=("sh", "-c", "until test -e /end; do sleep 0.02; done"))
        wait_for(lambda number=number: _napping(10 + number))
        host.run(*(["exec", "m", "touch", "/end"] if end == "itself" else end.split()))
        if not end.startswith("pod"):
            wait_for(lambda: host.member("m")["status"] == "stopped")
            host.run("rm", "m")
        wait_for(lambda number=number: not _napping(10 + number))


@live
def test_output_is_bounded(host, pod, busybox):
    """The last 4 KiB count, of whatever bytes; and a check that writes more than a pipe holds goes on."""
    start(host, busybox, "head -c 300000 /dev/zero | tr '\\0' x; printf '\\377last'")
    host.run("wait", "--condition", "healthy", "m")
    output = log(host)[0]["output"]
    assert output == "x" * (4096 - 5) + "\ufffdlast"


@live
def test_a_check_that_can_not_be_executed(host, pod, busybox):
    start(host, busybox, '["/nix"]', "--health-retries", "2")
    host.run("wait", "--condition", "unhealthy", "m")
    assert [one["exit_code"] for one in log(host)][:2] == [127, 127] and "/nix" in log(host)[0]["output"]
    start(host, busybox, '["/etc/hostname"]', "--health-retries", "1", name="n")
    host.run("wait", "--condition", "unhealthy", "n")
    assert log(host, "n")[0]["exit_code"] == 126


@live
def test_a_restart_begins_anew(host, pod, busybox):
    check = "test -e /ok"
    start(host, busybox, check, "--health-retries", "1", "--restart", "always", command=("sh", "-c", "until test -e /end; do sleep 0.02; done; rm /end; sleep 0.3"))  # fmt: skip
    host.run("wait", "--condition", "unhealthy", "m")
    before = log(host)[-1]["start"]
    host.run("exec", "m", "touch", "/ok", "/end")
    wait_for(lambda: host.member("m")["restarts"] == 1 and host.member("m")["status"] == "running")
    host.run("wait", "--condition", "healthy", "m")
    assert all(one["start"] > before and one["exit_code"] == 0 for one in log(host))
    host.run("stop", "-t", "0", "m")
    host.run("exec", "m", "true", check=False)
    host.run("start", "m")
    assert host.run("wait", "--condition", "healthy", "m").stdout == "healthy\n"


@live
def test_what_is_paused_is_not_checked(host, pod, busybox):
    start(host, busybox, "sleep 0.3", "--health-timeout", "3s", "--health-retries", "1")
    host.run("wait", "--condition", "healthy", "m")
    host.run("pause", "m")
    seen = host.member("m")
    assert seen["health"] == "healthy" and "paused (healthy)" in host.run("ls").stdout
    time.sleep(4)  # more than the time of a check that was under way
    now = host.member("m")["healthcheck"]
    assert len(now["log"]) <= len(seen["healthcheck"]["log"]) + 1 and now["failing_streak"] == 0
    assert host.member("m")["health"] == "healthy"
    assert "is paused" in host.fails(125, "exec", "m", "true")
    host.run("unpause", "m")
    count = len(host.member("m")["healthcheck"]["log"])
    last = log(host)[-1]["start"] if count else ""
    wait_for(lambda: log(host)[-1]["start"] > last)
    assert host.member("m")["health"] == "healthy"


@live
def test_in_the_foreground(host, pod, busybox):
    """Its output stays the member's alone, and its end does not wait for a check."""
    words = ["join", pod, "--name", "f", "--rm", "--rootfs", busybox, *OFTEN, "--health-cmd", f"echo check; {nap(2)}"]
    began = time.monotonic()
    done = host.run(*words, "--", "sh", "-c", "sleep 1; echo out; exit 3", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "") and time.monotonic() - began < 30
    assert not _napping(2)


@live
def test_a_killed_monitor_checks_nothing(host, pod, busybox):
    start(host, busybox, "true")
    host.run("wait", "--condition", "healthy", "m")
    parent = int(pathlib.Path(f"/proc/{host.member('m')['pid']}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(parent, signal.SIGKILL)
    wait_for(lambda: host.member("m")["health"] == "none")
    assert host.member("m")["status"] == "running"


@live
def test_waiting_for_what_never_comes(host, pod, busybox):
    host.start("plain", busybox, "sleep", "1000")
    assert host.member("plain")["health"] == "none" and "healthcheck" not in host.member("plain")
    assert "no health check" in host.fails(125, "wait", "--condition", "healthy", "plain")
    start(host, busybox, "false", command=("sleep", "1"))
    assert "has ended before it was healthy" in host.fails(125, "wait", "--condition", "healthy", "m")
    assert "unknown value" in host.fails(2, "wait", "--condition", "x", "m")
    assert host.run("wait", "--condition", "stopped", "m").stdout == "0\n"


@live
def test_events_tell(host, pod, busybox):
    with host.background("events", "--all", "-f", "event=health", stdout=subprocess.PIPE) as listener:
        try:
            start(host, busybox, "test -e /ok", "--health-retries", "1", "--health-start-period", "1000s", "--health-start-interval", "100ms")  # fmt: skip
            told = [json.loads(listener.stdout.readline())]
            for change in ("touch", "rm"):  # each is told before there is a reason for the next one
                host.run("exec", "m", change, "/ok")
                told.append(json.loads(listener.stdout.readline()))
        finally:
            listener.kill()
    assert [one["health"] for one in told] == ["starting", "healthy", "unhealthy"]
    assert all(one["event"] == "health" and one["name"] == "m" for one in told)


@live
@pytest.mark.parametrize("cgroup", [None, "none"])
def test_an_owners_pod(host, alice, box, cgroup):
    """By the owner through the door, and by root, who enters the pod; with cgroups and without."""
    env = {} if cgroup is None else {"NSRUN_CGROUP": cgroup}
    host.run("pod", "create", "--network", "none", "q", env={"SUDO_UID": str(alice.uid), **env})
    words = ["-d", "--health-cmd", f"id -u; {nap(3)} & test -e /ok", *OFTEN, "--health-retries", "1"]
    alice.run("join", "q", "--name", "a", *words, "--image", box, "--", "sleep", "1000", env=env)
    alice.run("wait", "--condition", "unhealthy", "a")
    assert alice.json("inspect", "a")[0]["healthcheck"]["log"][0]["output"] == "0\n"
    assert [m["health"] for m in host.json("ls") if m["name"] == "a"] == ["unhealthy"]  # root asks the owner
    alice.run("exec", "a", "touch", "/ok", env=env)
    alice.run("wait", "--condition", "healthy", "a")
    alice.run("stop", "-t", "0", "a", env=env)
    host.run(
        "join", "q", "--name", "r", *words, "--rootfs", CACHE / "busybox", "-u", "5", "--", "sleep", "1000", env=env
    )
    host.run("wait", "--condition", "unhealthy", "r")
    assert log(host, "r")[0]["output"] == "5\n"
    host.run("exec", "-u", "0", "r", "touch", "/ok", env=env)
    host.run("wait", "--condition", "healthy", "r")
    host.run("stop", "-t", "0", "r", env=env)
    wait_for(lambda: not _napping(3))


@live
def test_a_pod_that_its_owner_made(host, alice, box):
    alice.run("pod", "create", "--network", "none", "q")
    alice.run("join", "q", "-d", "--name", "a", "--health-cmd", "true", *OFTEN, "--image", box, "--", "sleep", "1000")
    alice.run("wait", "--condition", "healthy", "a")


@live
def test_without_a_cgroup(host, busybox):
    """What a check leaves is found by its mount namespace; nothing else is ended."""
    env = {"NSRUN_CGROUP": "none"}
    host.run("pod", "create", "--network", "none", "pause", env=env)
    start(host, busybox, f"(setsid {nap(4)} &); sleep 0.01", command=("sh", "-c", f"{nap(5)} & exec {nap(6)}"))
    host.run("wait", "--condition", "healthy", "m")
    wait_for(lambda: len(log(host)) == 5)
    wait_for(lambda: len(_napping(4)) <= 1)  # of the one that is under way
    assert len(_napping(5)) == len(_napping(6)) == 1
    host.start("n", busybox, "sleep", "1000", options=["--health-cmd", f"setsid {nap(7)} & {nap(7)}", *OFTEN, "--health-timeout", "300ms", "--health-retries", "1"])  # fmt: skip
    host.run("wait", "--condition", "unhealthy", "n")
    host.run("stop", "-t", "0", "n")
    wait_for(lambda: not _napping(7))
    assert host.member("m")["status"] == "running"


@live
def test_an_images_own_check(host, pod, tmp_path, busybox_layer):  # noqa: F811
    """HEALTHCHECK of a Dockerfile is kept by the store, and --no-healthcheck wins over it."""
    check = {"Test": ["CMD-SHELL", "test -e /ok"], "Interval": SECOND // 10, "Timeout": SECOND, "Retries": 1}
    Layout(busybox_layer, Cmd=["sleep", "1000"], Healthcheck=check).write(tmp_path / "image")
    image = host.run("image", "load", tmp_path / "image").stdout.strip()
    host.run("join", pod, "-d", "--name", "m", "--image", image)
    host.run("wait", "--condition", "unhealthy", "m")
    assert host.member("m")["healthcheck"]["retries"] == 1 and host.member("m")["healthcheck"]["interval"] == 0.1
    host.run("join", pod, "-d", "--name", "n", "--no-healthcheck", "--image", image)
    host.run("join", pod, "-d", "--name", "o", "--health-cmd", "true", "--image", image)
    host.run("wait", "--condition", "healthy", "o")
    assert host.member("n")["health"] == "none"


#: Servers that nsrun's own httpd is not: of each port, what is done with a connection.
SERVERS = """
import socket, sys, threading, time
def serve(port, act):
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("127.0.0.1", port))
    server.listen(100)
    while act:
        one = server.accept()[0]
        threading.Thread(target=act, args=(one,), daemon=True).start()
    time.sleep(1000)
def drip(one):
    while True:
        one.send(b"H")
        time.sleep(0.05)
def says(text):
    def act(one):
        one.recv(4096)
        one.send(text)
        one.close()
    return act
acts = {91: None, 92: drip, 93: says(b"garbage\\n"), 94: says(b"HTTP/1.1 399 Odd\\r\\n\\r\\n"), 95: says(b"HTTP/1.0 400\\r\\n"),
        96: says(b""), 97: says(b"HTTP/1.1 200"), 98: says(b"HTTP/1.1 2000 x\\n"), 99: says(b"H" * 5000)}
for port, act in acts.items():
    threading.Thread(target=serve, args=(port, act), daemon=True).start()
time.sleep(1000)
"""


def connection(host, busybox, name: str, *options: str) -> dict:
    host.start(name, busybox, "sleep", "1000", options=[*options, *OFTEN, "--health-retries", "1"])
    wait_for(lambda: log(host, name))
    return log(host, name)[0]


@live
def test_a_check_that_connects(host, busybox):
    """What answers is in the pod's network; nothing of the check is seen in the pod, and it has no power."""
    host.run("pod", "create", "pause")
    host.start("web", busybox, "sh", "-c", "echo hi >/page; exec httpd -f -h /", options=["--health-tcp", "80", *OFTEN])
    host.run("wait", "--condition", "healthy", "web")
    assert log(host, "web")[-1]["output"] == "connected\n" and log(host, "web")[-1]["exit_code"] == 0
    good = connection(host, busybox, "good", "--health-http", "http://:80/page", "--health-header", "X-Own: 1")
    assert (good["exit_code"], good["output"]) == (0, "HTTP/1.1 200 OK\n")
    bad = connection(host, busybox, "bad", "--health-http", "http://localhost/nosuch")
    assert (bad["exit_code"], bad["output"]) == (1, "HTTP/1.1 404 Not Found\n")
    none = connection(host, busybox, "none", "--health-tcp", "81")
    assert (none["exit_code"], none["output"]) == (1, "nsrun: the health check can't connect [errno 111]\n")
    assert {one["name"]: one["health"] for one in host.json("ls")} == {"web": "healthy", "good": "healthy", "bad": "unhealthy", "none": "unhealthy"}  # fmt: skip
    own = ["--net", "own", "--health-tcp", "80", *OFTEN]  # its own network, where the pod's address is not
    host.start("own", busybox, "httpd", "-f", options=own)
    host.run("wait", "--condition", "healthy", "own")
    assert "nsrun-health" not in host.run("exec", "web", "ps", "-ef").stdout
    host.run("stop", "-t", "0", "web")
    host.run("wait", "--condition", "unhealthy", "good")
    # the first of these may have been connected when it ended
    wait_for(lambda: log(host, "good")[-1]["output"].startswith("nsrun: the health check can't connect"))


@live
def test_servers_that_are_slow_or_odd(host, pod, busybox):
    """A server that does not answer holds up nothing: the member's end is seen at once, and its output taken."""
    pause = host.pod()["pid"]
    servers = subprocess.Popen(["nsenter", "-t", str(pause), "-n", sys.executable, "-c", SERVERS])
    try:
        wait_for(lambda: sh("nsenter", "-t", pause, "-n", "ss", "-ltnH").stdout.count("127.0.0.1:9") == 9)
        for port, code, output in (
            (91, -1, "it took longer than 0.3 s"), (92, -1, "it took longer"), (93, 1, "nsrun: the answer is not HTTP\n"),
            (94, 0, "HTTP/1.1 399 Odd\n"), (95, 1, "HTTP/1.0 400\n"), (96, 1, "nsrun: the connection ended without an answer\n"),
            (97, 0, "HTTP/1.1 200\n"), (98, 1, "nsrun: the answer is not HTTP\n"), (99, 1, "nsrun: the answer is not HTTP\n"),
        ):  # fmt: skip
            limit = "300ms" if code < 0 else "20s"
            found = connection(
                host, busybox, f"m{port}", "--health-http", f"http://:{port}/", "--health-timeout", limit
            )
            assert found["exit_code"] == code and found["output"].startswith(output), (port, found)
        assert connection(host, busybox, "tcp", "--health-tcp", "91")["exit_code"] == 0
        # one is under way for long
        host.start("slow", busybox, "sh", "-c", "while :; do echo on; sleep 0.1; done", options=["--health-http", "http://:91/", "--health-interval", "10ms", "--health-timeout", "1000s"])  # fmt: skip
        wait_for(lambda: _children(host, "slow"))
        (checker,) = _children(host, "slow")
        status = dict(line.split(":\t", 1) for line in pathlib.Path(f"/proc/{checker}/status").read_text().splitlines() if ":\t" in line)  # fmt: skip
        wait_for(lambda: host.run("logs", "slow").stdout.count("on") > 3)
        assert os.readlink(f"/proc/{checker}/ns/net") == os.readlink(f"/proc/{pause}/ns/net")
        assert os.readlink(f"/proc/{checker}/ns/pid") == os.readlink("/proc/self/ns/pid")
        assert status["Uid"].split() == ["65534"] * 4 and status["CapPrm"] == status["CapEff"] == "0" * 16
        host.run("stop", "-t", "0", "slow")
        wait_for(lambda: not os.path.exists(f"/proc/{checker}"))
    finally:
        servers.kill()
        servers.wait()


def _children(host, name: str) -> list[int]:
    """The processes of the monitor's that check a member and have entered the pod."""
    monitor = int(pathlib.Path(f"/proc/{host.member(name)['pid']}/stat").read_text().rpartition(")")[2].split()[1])
    found = map(int, pathlib.Path(f"/proc/{monitor}/task/{monitor}/children").read_text().split())
    return [pid for pid in found if pid != host.member(name)["pid"] and "Uid:\t65534" in pathlib.Path(f"/proc/{pid}/status").read_text()]  # fmt: skip


@live
def test_an_owners_check_that_connects(host, alice, box):
    """In a pod with a user namespace, that root or the owner made, by the owner and by root."""
    host.run("pod", "create", "--network", "none", "q", env={"SUDO_UID": str(alice.uid)})
    alice.run("pod", "create", "--network", "none", "own")
    page = ["--health-http", "http://:8080/page", *OFTEN, "--image", box, "--", "sh", "-c", "echo hi >/page; exec httpd -f -p 8080 -h /"]  # fmt: skip
    for user, pod, name in ((alice, "q", "a"), (alice, "own", "b")):
        user.run("join", pod, "-d", "--name", name, *page)
        user.run("wait", "--condition", "healthy", name)
    host.run("join", "q", "-d", "--name", "r", "--health-tcp", "8080", *OFTEN, "--rootfs", CACHE / "busybox", "--", "sleep", "1000")  # fmt: skip
    host.run("wait", "--condition", "healthy", "r")


@live
def test_the_library(host, busybox, monkeypatch):
    monkeypatch.setenv("NSRUN_ROOT", str(host.root))
    pod = nsrun.Pod.create("web", network="none")
    member = pod.join(["sleep", "1000"], rootfs=busybox, name="m", health_cmd="echo hi", health_interval="100ms")
    member.wait_health()
    assert member.health == "healthy" and member.inspect()["healthcheck"]["log"][0]["output"] == "hi\n"
    with pytest.raises(nsrun.UsageError, match="monitor"):
        pod.run(["true"], rootfs=busybox, health_cmd="true")
    with pytest.raises(nsrun.UsageError):
        member.wait_health("x")


@live
def test_it_costs_no_python_and_little_memory(host, pod, busybox):
    """What runs between two checks is the monitor and the member."""
    start(host, busybox, "true", "--health-interval", "50ms")
    wait_for(lambda: len(log(host)) == 5)
    monitor = int(pathlib.Path(f"/proc/{host.member('m')['pid']}/stat").read_text().rpartition(")")[2].split()[1])
    status = pathlib.Path(f"/proc/{monitor}/status").read_text()
    assert int(status.partition("VmRSS:")[2].split()[0]) <= 64, status
    opened = len(os.listdir(f"/proc/{monitor}/fd"))
    wait_for(lambda: len(os.listdir(f"/proc/{monitor}/fd")) <= opened and opened < 40)
