# SPDX-License-Identifier: Apache-2.0
"""`import nsrun`: what the commands do, for programs; nothing printed, typed errors."""

import os
import subprocess
import sys
import threading

import pytest
from images import Layout

import nsrun


@pytest.fixture
def root(host, monkeypatch):
    monkeypatch.setenv("NSRUN_ROOT", str(host.root))
    return host


def test_a_pod_and_a_member_from_create_to_remove(root, busybox, capfd):
    pod = nsrun.Pod.create("web", network="none", hostname="h")
    assert repr(pod) == "Pod('web')" and [p.name for p in nsrun.pods()] == ["web"]
    result = pod.run(["sh", "-c", "cat; hostname; echo e >&2; exit 3"], rootfs=busybox, input=b"in\n")
    assert (result.exit_code, result.stdout, result.stderr) == (3, b"in\nh\n", b"e\n")
    with pytest.raises(nsrun.NsrunError, match="exit status 3"):
        result.check()
    member = pod.join(["sh", "-c", "echo up; exec sleep 1000"], rootfs=busybox, name="m", env=["A=1"])
    assert member.status == "running" and member.pid > 1 and [m.name for m in pod.members()] == ["m"]
    assert member.exec(["sh", "-c", "echo $A; cat"], input=b"x").stdout == b"1\nx"
    assert any(row["command"] == "sleep 1000" for row in pod.processes())
    member.stop(2)
    assert member.status == "stopped" and member.wait() == 143 and nsrun.member("m").inspect()["exit_code"] == 143
    assert [text for _, _, text in member.logs()] == ["up\n"]
    member.remove()
    pod.stop()
    assert nsrun.pods() == [] and capfd.readouterr() == ("", "")


def test_errors_carry_their_parts(root, busybox):
    pod = nsrun.Pod.create("web", network="none")
    with pytest.raises(nsrun.UnknownError) as unknown:
        nsrun.Pod("nope")
    assert unknown.value.exit_code == 125 and "web" in unknown.value.hint
    with pytest.raises(nsrun.CommandError) as command:
        pod.run(["nope"], rootfs=busybox)
    assert (
        command.value.exit_code == 127
        and command.value.errno == 2
        and command.value.step.startswith("execve(")
        and command.value.hint
    )
    with pytest.raises(nsrun.StepError) as step:
        nsrun.Pod.create("other", network="none", sysctl=["net.nope=1"])
    assert step.value.errno == 2 and step.value.number > 10 and "net/nope" in step.value.step and step.value.hint
    with pytest.raises(nsrun.UsageError):
        nsrun.Pod.create("other", publish=["x"])
    pod.kill()


def test_plans_can_be_read(root):
    plan = nsrun.plan_of(["pod", "create", "-p", "8080:80", "web"])
    assert "setns" in " ".join(step.call() for step in plan) and all(step.why for step in plan)


def test_threads(root, busybox):
    """setns acts on the calling thread: others go on undisturbed, and all come back to the host's namespaces."""
    pod = nsrun.Pod.create("web", network="none")
    before = {
        name: os.readlink(f"/proc/self/ns/{name}") for name in ("net", "ipc", "uts", "pid", "pid_for_children", "mnt")
    }
    results: list[bytes] = []
    threads = [
        threading.Thread(target=lambda i=i: results.append(pod.run(["echo", str(i)], rootfs=busybox).stdout))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    while any(t.is_alive() for t in threads):
        assert os.readlink("/proc/thread-self/ns/net") == before["net"]
    for thread in threads:
        thread.join()
    assert sorted(results) == [f"{i}\n".encode() for i in range(8)]
    assert {name: os.readlink(f"/proc/thread-self/ns/{name}") for name in before} == before
    pod.kill()


def test_the_callers_process_stays_as_it_was(root, busybox):
    """Dumpable, with its own signal mask, in its own namespaces."""
    import signal

    import prctl

    pod = nsrun.Pod.create("web", network="none")
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        assert pod.run(["true"], rootfs=busybox).exit_code == 0
        pod.join(["sleep", "100"], rootfs=busybox, name="m")
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask | {signal.SIGHUP}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    assert prctl.get_dumpable() == 1
    pod.kill()


def test_importing_is_cheap():
    """The command line imports nothing heavy: pyroute2, argparse, json, re, typing, dataclasses, subprocess, asyncio stay out."""
    script = "import sys; import nsrun.cli, nsrun.lifecycle.join, nsrun.run, nsrun.seccomp, nsrun.image.lookup, nsrun.plan.member, nsrun.plan.pod, nsrun.host.net, nsrun.host.cgroup; print(*sys.modules)"
    words = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        f"import sys; sys.path[:0] = {[os.path.dirname(os.path.dirname(nsrun.__file__)), *(p for p in sys.path if 'site-packages' in p)]!r}; {script}",
    ]
    loaded = set(subprocess.run(words, capture_output=True, text=True, timeout=20, check=True).stdout.split())
    heavy = {
        "pyroute2",
        "argparse",
        "json",
        "re",
        "typing",
        "dataclasses",
        "subprocess",
        "asyncio",
        "socket",
        "enum",
        "pathlib",
        "inspect",
        "ctypes",
        "threading",
        "shutil",
    }
    assert not heavy & loaded, heavy & loaded


def test_images(root, host, tmp_path, busybox):
    """Loaded, looked at, run, unpacked and removed from Python; nothing is printed."""
    layer = subprocess.run(["tar", "-C", busybox, "-c", "."], stdout=subprocess.PIPE, check=True, timeout=30).stdout
    Layout(layer, name="box:1", Entrypoint=["echo"], Cmd=["hello"]).write(tmp_path / "l")
    (image,) = nsrun.Image.load(str(tmp_path / "l"))
    assert image.name == "docker.io/library/box:1" and image.inspect()["names"] == ["box:1"]
    assert [i.id for i in nsrun.images()] == [image.id]
    pod = nsrun.Pod.create("lib", network="none")
    assert pod.run(image="box:1").stdout == b"hello\n"
    assert pod.run(["there"], image=image.id[:12]).stdout == b"there\n"
    image.unpack(str(tmp_path / "out"))
    assert (tmp_path / "out/config.json").exists()
    image.tag("again:2")
    assert nsrun.Image("again:2").id == image.id
    assert image.remove() > 1_000_000
    with pytest.raises(nsrun.UnknownError):
        nsrun.Image("box:1")
    pod.kill()


def test_an_owners_program(host, alice, owned, box):
    """Her process stays where it is, with its threads; another one enters the pod's user namespace for it."""
    script = """
import os, sys, threading, nsrun
threading.Thread(target=threading.Event().wait, daemon=True).start()
before = os.readlink("/proc/self/ns/user")
pod = nsrun.Pod("pause")
member = pod.join(["sh", "-c", "echo out; sleep 1000"], image=sys.argv[1], name="m", env=["A=b c"], tmpfs=["/t", "/u"])
assert member.status == "running" and member.exec(["sh", "-c", 'cat; echo "$A"; exit 3'], input=b"in ").stdout == b"in b c\\n"
result = pod.run(["cat"], image=sys.argv[1], input=b"x" * 100000)
assert result.exit_code == 0 and result.stdout == b"x" * 100000 and [m.name for m in pod.members()] == ["m"]
try:
    pod.run(["nothing-here"], image=sys.argv[1])
except nsrun.CommandError as error:
    assert error.exit_code == 127 and "nothing-here" in error.message
try:
    member.exec(["nothing-here"])
except nsrun.CommandError as error:
    assert error.exit_code == 127
try:
    pod.join(["true"], image="no-such-image")
except nsrun.NsrunError as error:
    assert "no image" in error.message
own = nsrun.Pod.create("mine", network="none")
assert own.run(["id", "-u"], image=sys.argv[1]).stdout == b"0\\n"
own.kill(); member.stop(0); member.remove()
assert os.readlink("/proc/self/ns/user") == before and os.geteuid() == int(sys.argv[2])
print("ok")
"""
    assert alice.sh(sys.executable, "-c", script, box, alice.uid).stdout == "ok\n"
