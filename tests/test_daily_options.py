# SPDX-License-Identifier: Apache-2.0
"""Options of join, exec and attach that people type every day, and what the kernel then shows."""

from __future__ import annotations

import json
import os
import pathlib

import pytest
from conftest import need, wait_for
from test_limits import PURE

from nsrun.cli.attach import parse_keys
from nsrun.errors import BadInput, UsageError
from nsrun.spec import options as words

live = pytest.mark.live


# ---- parsers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "keys"),
    [("ctrl-p,ctrl-q", b"\x10\x11"), ("a", b"a"), ("ctrl-],q", b"\x1dq"), ("ctrl-@", b"\0"), ("CTRL-C", b"\x03"), ("", b"")],
)  # fmt: skip
def test_keys(text, keys):
    assert parse_keys(text) == keys


@pytest.mark.parametrize("text", ["ctrl", "ctrl-", "ctrl-pp", "ctrl-1", "ab", "a,,b", "ä", "alt-x"])
def test_keys_refused(text):
    with pytest.raises(UsageError):
        parse_keys(text)


@pytest.mark.parametrize("text", ["0", "0-2,4", "7,1-1"])
def test_processors(text):
    assert words.parse_processors(text) == text


@pytest.mark.parametrize("text", ["", "a", "2-1", "1-", "-1", "0,,1", "0 1", "123456", "٣"])
def test_processors_refused(text):
    with pytest.raises(UsageError):
        words.parse_processors(text)


@pytest.mark.parametrize(
    ("text", "path"), [("local", "/etc/localtime"), ("Europe/Berlin", "/usr/share/zoneinfo/Europe/Berlin"), ("Etc/GMT+1", "/usr/share/zoneinfo/Etc/GMT+1")]
)  # fmt: skip
def test_zones(text, path):
    assert words.parse_zone(text) == path


@pytest.mark.parametrize("value", ["size=64m", "size=50%", "size=1", "mode=0700", "mode=1777", "uid=5", "nr_inodes=1k"])
def test_values_of_a_tmpfs(value):
    assert value in words.parse_tmpfs(f"/t:{value}")["options"]
    key = value.partition("=")[0]
    if key in ("size", "mode"):
        assert value in words.parse_mount(f"type=tmpfs,dst=/t,tmpfs-{value}")["options"]


@pytest.mark.parametrize("value", ["size=x", "size=", "size=64mb", "size=-1", "mode=999", "mode=17777", "mode=rwx", "uid=root", "size=m"])  # fmt: skip
def test_values_of_a_tmpfs_refused(value):
    with pytest.raises(UsageError):
        words.parse_tmpfs(f"/t:{value}")


@pytest.mark.parametrize("word", ["rel/x:/x", "~:/x", "~/x:/x"])
def test_a_path_that_is_none_is_no_name_either(word):
    with pytest.raises(UsageError) as caught:
        words.parse_volume(word)
    assert "./" in caught.value.hint


@pytest.mark.parametrize("text", ["", "/etc/passwd", "../x", "a/../b", "a//b", "a b", "a:b", "Europe/", ".x"])
def test_zones_refused(text):
    with pytest.raises(UsageError):
        words.parse_zone(text)


def test_groups():
    assert words.parse_groups(["audio", "7"], "root:x:0:\naudio:x:29:\n") == [29, 7]
    for bad in ("nix", "", "-1", "4294967295"):
        with pytest.raises(BadInput):
            words.parse_groups([bad], "audio:x:29:\n")


def test_labels():
    assert words.parse_labels(["a=1", "b", "c=x=y"]) == {"a": "1", "b": "", "c": "x=y"}
    with pytest.raises(UsageError):
        words.parse_labels(["=1"])


# ---- join -------------------------------------------------------------------------------------------------------


@live
def test_groups_that_are_added(host, pod, busybox):
    shown = host.run("join", pod, "--rm", "-u", "5:6", "--group-add", "29", "--group-add", "root", "--rootfs", busybox, "id", "-G").stdout  # fmt: skip
    assert sorted(shown.split()) == ["0", "29", "6"]
    assert "no group" in host.fails(125, "join", pod, "--group-add", "nix", "--rootfs", busybox, "true")


@live
def test_a_hostname_of_its_own(host, pod, busybox):
    words = ["join", pod, "--rm", "--rootfs", busybox]
    assert host.run(*words, "--uts", "own", "--hostname", "box.example", "--", "hostname").stdout == "box.example\n"
    assert "--uts own" in host.fails(2, *words, "--hostname", "x", "hostname")
    assert host.run(*words, "--uts", "own", "--hostname", "", "hostname", check=False).returncode == 2


@live
def test_labels_are_shown_and_found(host, alice, busybox, box):
    host.run("pod", "create", "--network", "none", "p")
    host.run(
        "join", "p", "-d", "--name", "m", "--label", "tier=front", "--label", "x", "--rootfs", busybox, "sleep", "9"
    )
    assert host.member("m")["labels"] == {"tier": "front", "x": ""}
    assert host.run("ls", "-q", "-f", "label=tier=front").stdout == "m\n"
    assert host.run("ls", "-q", "-f", "label=tier=back").stdout == ""
    host.run("pod", "create", "--network", "none", "q", env={"SUDO_UID": str(alice.uid)})
    alice.run("join", "q", "-d", "--name", "n", "--label", "tier=back", "--image", box, "--", "sleep", "9")
    assert host.run("ls", "-q", "-f", "label=tier=back").stdout == "n\n"


@live
def test_a_stop_timeout_is_that_of_the_member(host, pod, busybox):
    """-t wins over it."""
    stubborn = "trap '' TERM; echo ready; while :; do sleep 0.05; done"
    for name in ("a", "b"):
        host.start(name, busybox, "sh", "-c", stubborn, options=["--stop-timeout", "0" if name == "a" else "1000"])
        wait_for(lambda name=name: host.run("logs", name).stdout)
    assert "poll(pidfd, 1000 s)" in host.run("explain", "stop", "b").stdout
    assert "was killed" in host.run("stop", "a").stderr
    assert "0 s after" in host.run("stop", "-t", "0", "b").stderr
    assert host.run("join", pod, "--stop-timeout", "x", "--rootfs", busybox, "true", check=False).returncode == 2


@live
def test_an_init(host, pod, busybox):
    """pause reaps; where it can't, the option is refused."""
    orphan = "(sleep 0.1 &) ; exec sleep 1000"
    host.start("m", busybox, "sh", "-c", orphan, options=["--init"])
    wait_for(lambda: [row["command"] for row in host.json("top", "m")] == ["sleep 1000"])
    assert all(row["command"] != "[sleep]" for row in host.json("pod", "ps", pod))
    for kind in ("own", "nested"):
        assert "process 1" in host.fails(2, "join", pod, "--init", "--pid", kind, "--rootfs", busybox, "true")


@live
def test_a_time_zone(host, pod, busybox):
    need(os.path.exists("/usr/share/zoneinfo/Asia/Tokyo"), "tzdata is missing", "apt-get install tzdata")
    shown = host.run(
        "join", pod, "--rm", "--tz", "Asia/Tokyo", "--rootfs", busybox, "cat", "/etc/localtime", errors="replace"
    )
    assert shown.stdout.strip().endswith("JST-9")
    assert "no time zone" in host.fails(125, "join", pod, "--tz", "Nowhere/Town", "--rootfs", busybox, "true")


@live
def test_processors_of_a_member(host, pod, busybox):
    if not PURE or "cpuset" not in pathlib.Path("/sys/fs/cgroup/cgroup.controllers").read_text():
        assert "'cpuset'" in host.fails(125, "join", pod, "--cpuset-cpus", "0", "--rootfs", busybox, "true")
        return
    shown = host.run("join", pod, "--rm", "--cpuset-cpus", "0", "--rootfs", busybox, "grep", "Cpus_allowed_list", "/proc/self/status")  # fmt: skip
    assert shown.stdout.split() == ["Cpus_allowed_list:", "0"]


@live
def test_a_file_with_the_id(host, pod, busybox, tmp_path):
    """A new one, and none when nothing has begun."""
    file = tmp_path / "id"
    host.run("join", pod, "-d", "--name", "m", "--cidfile", file, "--rootfs", busybox, "sleep", "1000")
    assert file.read_text() == host.member("m")["id"]
    assert "File exists" in host.fails(125, "join", pod, "--cidfile", file, "--rootfs", busybox, "true")
    assert file.read_text() == host.member("m")["id"]
    assert host.run("join", pod, "--name", "n", "--cidfile", tmp_path / "n", "--rootfs", busybox, "sh", "-c", "exit 3", check=False).returncode == 3  # fmt: skip
    assert (tmp_path / "n").read_text() == host.member("n")["id"]
    host.fails(127, "join", pod, "--rm", "--cidfile", tmp_path / "o", "--rootfs", busybox, "nope")
    assert not (tmp_path / "o").exists()


@live
def test_options_outlive_a_restart(host, pod, busybox, tmp_path):
    options = ["--label", "a=1", "--stop-timeout", "0", "--group-add", "29", "--cidfile", tmp_path / "id"]
    host.start("m", busybox, "sleep", "1000", options=options)
    host.run("restart", "m")
    assert host.member("m")["labels"] == {"a": "1"}
    assert "29" in host.run("exec", "m", "id", "-G").stdout.split()
    assert "poll(pidfd, 0 s)" in host.run("explain", "stop", "m").stdout


# ---- exec -d, attach --detach-keys ------------------------------------------------------------------------------


@live
def test_exec_in_the_background(host, pod, busybox):
    """It returns at once, its process is the member's, has no reader, and ends with the member."""
    host.start("m", busybox, "sleep", "1000")
    assert (
        host.run("exec", "-d", "m", "sh", "-c", "echo out; echo err >&2; echo x >/tmp/done; exec sleep 2000").stdout
        == ""
    )
    wait_for(lambda: host.run("exec", "m", "cat", "/tmp/done", check=False).stdout == "x\n")
    wait_for(lambda: "sleep 2000" in [row["command"] for row in host.json("top", "m")])
    assert host.run("logs", "m").stdout == ""
    host.run("exec", "-d", "m", "true")
    host.fails(127, "exec", "-d", "m", "nope")
    wait_for(lambda: len(host.json("top", "m")) == 2)
    pid = next(row["pid"] for row in host.json("top", "m") if row["command"] == "sleep 2000")
    host.run("stop", "-t", "0", "m")
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"))
    words = json.loads(host.run("explain", "--format", "json", "exec", "-d", "m", "true", check=False).stdout or "{}")
    assert not words  # it has ended


@live
def test_an_owners_exec_in_the_background(alice, owned, box):
    alice.run("join", owned, "-d", "--name", "m", "--image", box, "--", "sleep", "1000")
    alice.run("exec", "-d", "m", "sh", "-c", "echo x >/tmp/done; exec sleep 2000")
    wait_for(lambda: "sleep 2000" in [row["command"] for row in alice.json("top", "m")])
    assert alice.run("exec", "m", "cat", "/tmp/done").stdout == "x\n"


@live
def test_other_keys_detach(host, pod, busybox, terminal):
    """Also a sequence of which the beginning comes twice; an incomplete one is passed on."""
    host.start("m", busybox, "sh", "-c", "while sleep 0.1; do echo tick; done", options=["-i", "-t"])
    at = terminal("attach", "--detach-keys", "ctrl-a,ctrl-a,x", "m")
    at.expect("tick")  # it is connected, and the terminal is raw
    at.type("x\x01y")
    at.expect("tick")
    at.type("\x01\x01")
    at.expect("tick")
    at.type("x")
    assert at.process.wait(timeout=30) == 0
    assert host.member("m")["status"] == "running"
    assert "not a key" in host.fails(2, "attach", "--detach-keys", "nope", "m")
