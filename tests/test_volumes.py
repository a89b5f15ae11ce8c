# SPDX-License-Identifier: Apache-2.0
"""nsrun volume: what there is, who uses it, and that nothing that is used is removed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import subprocess
import sys
import threading

import pytest
from conftest import not_editable, wait_for
from test_explain import foretold

from nsrun.errors import UsageError
from nsrun.lifecycle import volumes
from nsrun.spec.options import parse_volume
from nsrun.state import State

pytestmark = pytest.mark.live


def test_volumes_and_who_uses_them(host, pod, busybox):
    assert host.json("volume", "ls") == [] and host.run("volume", "ls", "-q").stdout == ""
    host.start("m", busybox, "sh", "-c", "echo x >/a/x; exec sleep 1000", options=["-v", "one:/a", "-v", "/anonymous"])
    host.start("n", busybox, "sleep", "1000", options=["--mount", "type=volume,source=one,target=/b", "-v", "two:/c"])
    assert host.run("volume", "ls", "-q").stdout.split() == ["one", "two"]
    found = {v["name"]: v for v in host.json("volume", "ls")}
    assert found["one"]["members"] == ["m", "n"] and found["two"]["members"] == ["n"]
    assert found["one"]["path"] == str(host.root / "lib/volumes/one") and found["one"]["created"].endswith("Z")
    assert host.json("volume", "inspect", "two") == [found["two"]]
    assert "one" in host.run("volume", "ls").stdout
    assert host.run("_complete", "volume", "rm", "o").stdout == "one\n"


def test_a_volume_that_is_used_is_refused(host, pod, busybox):
    """By a member that runs, and by one that has ended, because it can start again."""
    host.start("m", busybox, "sh", "-c", "echo x >/a/x; exec sleep 1000", options=["-v", "one:/a"])
    wait_for(lambda: (host.root / "lib/volumes/one/x").exists())
    for _ in range(2):
        for command in (["volume", "rm", "one"], ["explain", "volume", "rm", "one"]):
            assert "used by" in host.fails(125, *command)
        assert host.run("volume", "prune", "--all").stdout == ""
        assert (host.root / "lib/volumes/one/x").read_text() == "x\n"
        host.run("stop", "-t", "0", "m")
    host.run("rm", "m")
    assert "--all" in host.fails(2, "volume", "prune")
    assert host.run("volume", "rm", "one").stdout == "one\n"
    assert list((host.root / "lib/volumes").iterdir()) == []
    for name in ("one", "..", "", "/etc", ".gone-1"):
        assert "no volume" in host.fails(125, "volume", "rm", name)
        assert "no volume" in host.fails(125, "volume", "inspect", name)


def test_prune_removes_those_that_nobody_uses(host, pod, busybox):
    for name in ("a", "b", "c"):
        host.run(
            "join",
            pod,
            "--rm",
            "-v",
            f"{name}:/v",
            "--rootfs",
            busybox,
            "--",
            "sh",
            "-c",
            "mkdir -p /v/d; echo >/v/d/x",
        )
    host.start("m", busybox, "sleep", "1000", options=["-v", "b:/v"])
    (host.root / "lib/volumes/.gone-0123").mkdir()  # of a command that was killed
    assert host.run("volume", "prune", "-a").stdout == "a\nc\n"
    assert [p.name for p in (host.root / "lib/volumes").iterdir()] == ["b"]


@pytest.mark.parametrize("words", [["ls"], ["ls", "-q"], ["inspect", "a"], ["rm", "b"]])
def test_what_a_killed_command_left_goes_with_the_next(host, pod, busybox, words):
    """And what another one is removing is left to that."""
    for name in "ab":
        host.run("join", pod, "--rm", "-v", f"{name}:/v", "--rootfs", busybox, "--", "touch", "/v/x")
    within = host.root / "lib/volumes"
    for name in ("dead", "held"):
        (within / f".gone-{name}/deep").mkdir(parents=True)
    fd = os.open(within / ".gone-held", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    host.run("volume", *words)
    assert sorted(path.name for path in within.glob(".gone-*")) == [".gone-held"]
    os.close(fd)
    assert ".gone-held, of a volume" in host.run("pod", "prune").stdout
    assert not list(within.glob(".gone-*")) and (within / "a").is_dir()


def test_a_note_that_can_not_be_read_may_use_any(host, pod, busybox):
    host.run("join", pod, "--rm", "-v", "one:/v", "--rootfs", busybox, "--", "true")
    host.start("m", busybox, "sleep", "1000")
    note = host.root / "run/members/m/config.json"
    text = note.read_text()
    note.write_text("rubbish")
    assert "may be about" in host.fails(125, "volume", "rm", "one")
    assert "may be about" in host.fails(125, "volume", "prune", "--all")
    assert "may be about" in host.fails(125, "explain", "volume", "rm", "one")
    for words in (("volume", "ls"), ("volume", "inspect", "one")):  # the rest is shown, and what can't be read is named
        done = host.run(*words)
        assert "one" in done.stdout and f"damaged: {note}: " in done.stderr
    assert (host.root / "lib/volumes/one").is_dir()
    note.write_text(text)
    host.run("volume", "rm", "one")


def test_a_member_that_is_made_meanwhile(host, pod, busybox, monkeypatch):
    """It is seen after the rename, and the volume is there again."""
    host.run("join", pod, "--rm", "-v", "one:/v", "--rootfs", busybox, "--", "touch", "/v/x")
    answers = iter([{}, {"one": ["late"]}])
    monkeypatch.setattr(volumes, "users", lambda state: next(answers))
    with pytest.raises(volumes.BadInput, match="late"):
        volumes.remove(State(str(host.root)), "one")
    assert pathlib.Path(host.root, "lib/volumes/one/x").exists()


def test_a_prune_while_one_is_asked_about(host, monkeypatch):
    """Between the rename and the second question its data are not yet what a killed command left."""
    state, path = State(str(host.root)), host.root / "lib/volumes/db"
    path.mkdir(parents=True)
    (path / "data").write_text("precious")
    asked, pruners = iter([{}, {"db": ["m"]}]), []

    def users(_: State) -> dict[str, list[str]]:
        if path.exists():
            return next(asked)
        pruners.append(threading.Thread(target=volumes.finish, args=(state,)))
        pruners[0].start()
        pruners[0].join(0.3)
        assert pruners[0].is_alive() and len(list(path.parent.glob(".gone-*/data"))) == 1
        return next(asked)

    monkeypatch.setattr(volumes, "users", users)
    with pytest.raises(volumes.BadInput, match="used by member m"):
        volumes.remove(state, "db")
    pruners[0].join(10)
    assert (path / "data").read_text() == "precious"


def test_a_new_volume_while_one_is_removed(host, monkeypatch):
    """It stays, and the old one does not stay half removed."""
    state, path = State(str(host.root)), host.root / "lib/volumes/db"
    path.mkdir(parents=True)
    (path / "old").touch()

    def users(_: State) -> dict[str, list[str]]:
        if path.exists():
            return {}
        path.mkdir()
        (path / "new").touch()
        return {"db": ["m"]}

    monkeypatch.setattr(volumes, "users", users)
    assert "made a new one" in volumes.remove(state, "db")
    assert [entry.name for entry in path.parent.iterdir()] == ["db"]
    assert [entry.name for entry in path.iterdir()] == ["new"]


def test_the_owners_volumes_are_theirs(host, alice, owned, box):
    """Their files have subordinate ids, and go with the volume."""
    alice.run("join", owned, "--rm", "-v", "one:/v", "--image", box, "--", "sh", "-c", "mkdir /v/d; touch /v/d/x; chown 5:5 /v/d /v/d/x; chmod 0 /v/d")  # fmt: skip
    assert alice.run("volume", "ls", "-q").stdout == "one\n" and host.run("volume", "ls", "-q").stdout == ""
    assert alice.run("volume", "rm", "one").stdout == "one\n" and alice.json("volume", "ls") == []
    assert not list((host.root / f"users/{alice.uid}/lib/volumes").iterdir())


@not_editable  # coverage makes calls of its own
def test_removing_a_volume_is_what_strace_shows(host, pod, busybox, tmp_path):
    for name in ("one", "two"):
        host.run("join", pod, "--rm", "-v", f"{name}:/v", "--rootfs", busybox, "--", "true")
    foretold(host, tmp_path, "volume", "rm", "one")
    foretold(host, tmp_path, "volume", "prune", "--all")


# ---- a part of a volume ---------------------------------------------------------------------------------------------


@pytest.mark.live
def test_a_part_of_a_volume(host, pod, busybox):
    """It is made where it is missing, and what a member has put there leads nowhere out of the volume."""
    volume = pathlib.Path(host.root, "lib/volumes/v")
    host.run("join", pod, "--rm", "--rootfs", busybox, "-v", "v:/d:subpath=a/b", "--", "touch", "/d/x")
    assert (volume / "a/b/x").exists() and (volume / "a").stat().st_mode & 0o777 == 0o755
    text = host.run("join", pod, "--rm", "--rootfs", busybox, "--mount", "type=volume,source=v,target=/d,volume-subpath=a/b/x,readonly", "--", "sh", "-c", "test -f /d; touch /d 2>&1; true").stdout  # fmt: skip
    assert "Read-only" in text
    secret = host.root / "secret"
    secret.mkdir()
    (secret / "file").write_text("of the host")
    for name, target in (("absolute", secret), ("up", "../../../../../../../../../.." + str(secret)), ("proc", "/proc/1/root"), ("in", "a/b")):  # fmt: skip
        (volume / name).symlink_to(target)
    assert host.run("join", pod, "--rm", "--rootfs", busybox, "-v", "v:/d:subpath=in", "--", "ls", "/d").stdout == "x\n"
    for name in ("absolute", "up", "proc", "absolute/file"):
        done = host.run("join", pod, "--rm", "--rootfs", busybox, "-v", f"v:/d:subpath={name}", "--", "ls", "-R", "/d", check=False)  # fmt: skip
        assert done.returncode and "file" not in done.stdout, (name, done)
    (volume / "nowhere").symlink_to("not/there")
    assert "nowhere" in host.fails(
        125, "join", pod, "--rm", "--rootfs", busybox, "-v", "v:/d:subpath=nowhere", "--", "true"
    )
    (volume / "nowhere").unlink()
    assert not (secret / "x").exists() and sorted(path.name for path in volume.iterdir()) == ["a", "absolute", "in", "proc", "up"]  # fmt: skip
    assert host.run("volume", "rm", "v", check=False).returncode == 0


SWAPPER = """
import ctypes, os, sys
os.chdir(sys.argv[1]), os.setgid(1000), os.setuid(1000)
os.symlink("secret", "link")
while True:
    ctypes.CDLL(None).renameat2(-100, b"link", -100, b"part", 2)  # RENAME_EXCHANGE
"""


@pytest.mark.live
def test_what_is_beside_a_part_is_not_changed(host, pod, busybox, tmp_path):
    """Who may write to a volume puts a link to a private directory where nsrun has just made one."""
    tmp_path.chmod(0o755)
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "secret").mkdir(mode=0o700)
    os.chown(volume, 1000, 1000)
    volume.chmod(0o777)
    with subprocess.Popen([sys.executable, "-I", "-c", SWAPPER, volume]) as swapper:
        try:
            for _ in range(15):
                host.run("join", pod, "--rm", "--rootfs", busybox, "-v", f"{volume}:/d:subpath=part", "--", "true", check=False)  # fmt: skip
                with contextlib.suppress(OSError):
                    (volume / "part").rmdir()
        finally:
            swapper.kill()
    found = (volume / "secret").stat()
    assert (found.st_uid, found.st_mode & 0o777) == (0, 0o700)


@pytest.mark.parametrize("bad", ["v:/d:subpath=", "v:/d:subpath=/a", "v:/d:subpath=a/../..", "v:/d:subpath=a,subpath=b", "v:/d:subpat=a", f"v:/d:subpath={256 * 'a'}", f"v:/d:subpath={2500 * 'a/'}"])  # fmt: skip
def test_parts_that_are_refused(bad):
    with pytest.raises(UsageError):
        parse_volume(bad)
