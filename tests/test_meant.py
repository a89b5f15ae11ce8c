# SPDX-License-Identifier: Apache-2.0
"""What is named is what is meant: an empty variable names nothing, two things of one name are neither, an error is no absence."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import subprocess
import time

import pytest
from conftest import CACHE, NSRUN, need, not_editable, sh, wait_for
from images import docker_archive, entry, tar
from test_lost import lives

from nsrun.errors import UsageError
from nsrun.image import references
from nsrun.spec.options import parse_ports, parse_sysctls

NO_NAMES = ["", ".", "..", "p/", "./p", "../pods/p", "a/../p", "-p", "p" * 64, "p\n", "é"]


@pytest.mark.live
@pytest.mark.parametrize("words", [["pod", "rm", "-f"], ["pod", "rm"], ["rm", "-f"], ["rm"], ["pod", "stop"], ["pod", "kill"], ["stop"], ["kill"], ["pod", "inspect"], ["wait"], ["logs"]], ids=" ".join)  # fmt: skip
def test_a_word_that_can_be_no_name_ends_nothing(host, busybox, words):
    """`nsrun pod rm -f "$UNSET"` set the directory of all pods aside, with exit 0; `.` was kept from it by rename(2) alone."""
    host.run("pod", "create", "--network", "none", "p")
    host.run("join", "p", "-d", "--name", "m", "--rootfs", busybox, "--", "sleep", "1000")
    pause, member = host.pod("p")["pid"], host.member("m")["pid"]
    for word in NO_NAMES:
        done = host.run(*words, "--", word, check=False)
        assert done.returncode in (1, 2, 125) and done.stderr and "Traceback" not in done.stderr, (word, done)
        assert lives(pause) and lives(member), word
    assert [p["name"] for p in host.json("pod", "ls")] == ["p"]
    assert [m["name"] for m in host.json("ls")] == ["m"]
    assert not (host.root / "run/aside").exists()


@pytest.mark.live
def test_an_ambiguous_id(host, pod, busybox):
    """Two members' ids with one beginning: neither is meant."""
    ids: dict[str, str] = {}
    for number in range(3):
        host.start(f"m{number}", busybox, "true", options=[])
        host.run("wait", f"m{number}")
        ids[f"m{number}"] = host.member(f"m{number}")["id"]
    from nsrun.state import State

    state = State(str(host.root))
    first = ids["m0"]
    for number, name in enumerate(("m0", "m1")):  # as chance would have it
        note = state.read("members", name)
        state.save("members", name, {**note, "id": f"{first[:8]}{number:04x}"})
    for words in (["rm", first[:6]], ["rm", "-f", first[:6]], ["logs", first[:6]], ["inspect", first[:8]]):
        assert "several" in host.fails(125, *words)
    assert len(host.json("ls", "-a")) == 3
    assert json.loads(host.run("inspect", f"{first[:8]}0001").stdout)[0]["name"] == "m1"
    for name in ("m0", "m1"):
        note = state.read("members", name)
        state.save("members", name, {**note, "id": ids[name]})


@pytest.mark.live
def test_a_name_that_two_owners_have(host, alice, bob, busybox):
    """Root names a member that several owners have, by its name or by what they say is its id: none of them gets root's command."""
    alice.run("image", "load", CACHE.parent / "images/busybox")
    bob.run("image", "load", CACHE.parent / "images/busybox")
    host.run("pod", "create", "--network", "none", "shop", env={"SUDO_UID": str(bob.uid)})
    host.run("pod", "create", "--network", "none", "aaa", env={"SUDO_UID": str(alice.uid)})
    bob.run(
        "join", "shop", "-d", "--name", "mysql", "--image", "busybox", "--", "sh", "-c", "echo bob; exec sleep 1000"
    )
    ident = bob.member("mysql")["id"]
    assert host.run("logs", ident).stdout == host.run("logs", "mysql").stdout == "bob\n"
    for name in ("mysql", ident):
        alice.run(
            "join", "aaa", "-d", "--name", name, "--image", "busybox", "--", "sh", "-c", "echo alice; exec sleep 1000"
        )
    for word in ("mysql", ident):
        for words in (["logs", word], ["exec", word, "true"], ["stop", word], ["kill", word], ["rm", "-f", word]):
            message = host.fails(125, *words)
            assert "alice" in message and "bob" in message, message
    for user in (alice, bob):
        assert all(member["status"] == "running" for member in user.json("ls", "-a"))


@pytest.mark.live
def test_an_archive_takes_no_id(host, tmp_path):
    """An archive that calls its image sha256:HEX, or by the digits alone, does not get what is asked for by that id."""
    host.run("image", "load", CACHE.parent / "images/busybox")
    (good,) = host.json("image", "ls")
    evil = tmp_path / "evil.tar"
    for name in (f"sha256:{good['id']}", good["id"], f"docker.io/library/sha256:{good['id']}"):
        evil.write_bytes(docker_archive(tar(entry("evil", b"EVIL")), name=name))
        host.run("image", "load", evil, check=False)
        for word in (good["id"], f"sha256:{good['id']}"):
            (found,) = json.loads(host.run("image", "inspect", word).stdout)
            assert found["id"] == good["id"]
    host.run("image", "rm", "-f", f"sha256:{good['id']}")
    assert good["id"] not in [image["id"] for image in host.json("image", "ls")]


@pytest.mark.parametrize("name", ["sha256:" + "a" * 64, "sha256", "docker.io/library/sha256:x", "localhost/sha256:1"])
def test_names_that_begin_an_id(name):
    with pytest.raises(UsageError):
        references.parse(name)
    assert references.parse("example.com/sha256:1").path == "sha256"


@pytest.mark.live
@pytest.mark.parametrize("variable", ["XDG_DATA_HOME", "HOME"])
@pytest.mark.parametrize("value", ["rel", "./rel", "../rel", "", "~"])
def test_a_relative_home(host, alice, tmp_path, variable, value):
    """A relative XDG_DATA_HOME is ignored, as its specification says; a relative HOME is no place for pods that outlive a shell."""
    env = {"NSRUN_ROOT": "", "HOME": str(alice.home), "XDG_DATA_HOME": "", variable: value}
    (alice.home / "rel").mkdir()
    os.chown(alice.home / "rel", alice.uid, alice.uid)
    done = sh(*alice.words(NSRUN, "pod", "ls", "--json"), env={**alice.env, **env}, cwd=alice.home, check=False)
    assert "Traceback" not in done.stderr and "unexpected" not in done.stderr
    if variable == "XDG_DATA_HOME":
        words = alice.words(NSRUN, "pod", "create", "--network", "none", "x")
        sh(*words, env={**alice.env, **env}, cwd=alice.home)
        pods = json.loads(sh(*alice.words(NSRUN, "pod", "ls", "--json"), env={**alice.env, **env}, cwd="/").stdout)
        assert [pod["name"] for pod in pods] == ["x"]
        sh(*alice.words(NSRUN, "pod", "rm", "-f", "x"), env={**alice.env, **env}, cwd="/")
    elif value:
        assert done.returncode == 125 and "HOME" in done.stderr


def injected(
    host, path: pathlib.Path, call: str, error: str, *words: object, when: str = "1+"
) -> subprocess.CompletedProcess[str]:
    """A command one of whose system calls on a path fails."""
    need(shutil.which("strace"), "strace is missing", "apt-get install strace")
    inject = f"inject={call}:error={error}:when={when}"
    return sh("strace", "-f", "-qq", "-o", "/dev/null", "-P", path, "-e", f"trace={call}", "-e", inject, NSRUN, *words, env=host.env, check=False)  # fmt: skip


@pytest.mark.live
@pytest.mark.parametrize("error", ["EIO", "ENOMEM", "EACCES"])
def test_what_can_not_be_looked_at_is_there(host, pod, busybox, error):
    """An error of stat(2) costs no image its name, and no member its data."""
    host.run("image", "load", CACHE.parent / "images/busybox")
    (image,) = host.json("image", "ls")
    record = host.root / f"lib/images/records/{image['id']}.json"
    for words in (["image", "prune"], ["image", "prune", "-a"], ["image", "ls"]):
        injected(host, record, "newfstatat", error, *words)
        assert [i["names"] for i in host.json("image", "ls")] == [image["names"]], words
    host.start("d", busybox, "sh", "-c", "echo precious >/precious", options=[])
    host.run("wait", "d")
    data = host.root / "lib/upper" / host.member("d")["id"]
    done = injected(host, data, "newfstatat", error, "rm", "d")
    assert done.returncode and [m["name"] for m in host.json("ls", "-a")] == ["d"]
    host.run("rm", "d")
    assert not data.exists()


@pytest.mark.live
def test_a_list_leaves_nothing_out(host, pod, busybox):
    """A note that can't be read for a moment: what it is about is shown as damaged, not left out."""
    host.start("m", busybox, "sleep", "1000", options=[])
    for note, words, name in (
        ("pods/pause/note", ["pod", "ls", "--json"], "pause"),
        ("members/m/note", ["ls", "--json"], "m"),
    ):
        done = injected(host, host.root / "run" / note, "openat", "ENFILE", *words, when="1")
        assert name in [thing["name"] for thing in json.loads(done.stdout)], done


@pytest.mark.live
@pytest.mark.parametrize("number", range(4, 9))
def test_no_descriptors(host, pod, number):
    for words in (["pod", "ls"], ["ls"], ["image", "ls"]):
        done = sh("prlimit", f"--nofile={number}", NSRUN, *words, env=host.env, check=False)
        assert "Traceback" not in done.stderr and done.returncode in (0, 125), (number, words, done)


@not_editable
@pytest.mark.live
def test_ctrl_c_again_and_again(host):
    """Twenty-five SIGINTs within 5 ms: one line, and never a traceback."""
    for _ in range(12):
        process = subprocess.Popen([NSRUN, "image", "load", "-"], env=host.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
        time.sleep(0.25)
        for _ in range(25):
            process.send_signal(signal.SIGINT)
            time.sleep(0.0002)
        _, errors = process.communicate(timeout=20)
        assert b"Traceback" not in errors and b"sys.std" not in errors, errors
        assert process.returncode in (130, -2)


@pytest.mark.parametrize("word", ["255.255.255.255:80:80", "224.0.0.1:80:80", "239.1.2.3:80:80", "010.0.0.1:80:80", "1.2.3.04:8:8"])  # fmt: skip
def test_addresses_that_no_host_has(word):
    with pytest.raises(UsageError):
        parse_ports([word])


@pytest.mark.parametrize("word", ["net.core.somaxconn=", "net.core.somaxconn", "=1"])
def test_a_setting_without_a_value(word):
    with pytest.raises(UsageError):
        parse_sysctls([word], True, True, True, "the pod's")


@pytest.mark.live
def test_a_base_of_several_cgroups(host, busybox):
    """What nsrun made of NSRUN_CGROUP=a/b/c goes with its last pod; a path from / is none."""
    from nsrun.host import cgroup

    mount = cgroup.mount_point()
    need(mount, "cgroup v2 is not mounted", "mount -t cgroup2 none /sys/fs/cgroup")
    top = os.path.join(mount, f"{host.env['NSRUN_CGROUP']}-deep")
    env = {"NSRUN_CGROUP": f"{os.path.basename(top)}/b/c"}
    host.run("pod", "create", "--network", "none", "p", env=env)
    assert os.path.isdir(f"{top}/b/c")
    host.run("pod", "rm", "-f", "p", env=env)
    wait_for(lambda: not os.path.exists(top), 5, "it goes")
    assert "NSRUN_CGROUP" in host.fails(
        125, "pod", "create", "--network", "none", "p", env={"NSRUN_CGROUP": "/sys/fs/cgroup/x"}
    )


@pytest.mark.parametrize("text", ["{}", '{"syscalls": []}', '{"defaultAction": "SCMP_ACT_ERRNO", "sysclls": []}', '{"defaultAction": "SCMP_ACT_ALLOW", "Syscalls": []}'])  # fmt: skip
def test_a_profile_that_is_not_understood(text):
    """A misspelt key would leave its rules out, and no default action would be the widest."""
    from nsrun import seccomp
    from nsrun.errors import BadInput

    with pytest.raises(BadInput):
        seccomp.programs(json.loads(text), 0, "profile")
