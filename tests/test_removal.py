# SPDX-License-Identifier: Apache-2.0
"""Trees that others made go, or stay where they are; nothing outside of them is touched (nsrun/host/trees.py)."""

from __future__ import annotations

import contextlib
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import pytest
from conftest import ROOT, need, open_files

from nsrun.host import cgroup, trees
from nsrun.state import remove_tree


def chain(top: pathlib.Path, depth: int, leaf: str = "") -> None:
    """Directories in directories, deeper than any path can say."""
    fd = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=fd)
        down = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = down
    if leaf:
        os.close(os.open(leaf, os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)


@contextlib.contextmanager
def few_descriptors(count: int):
    old = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + count, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, old)


@pytest.fixture
def top():
    """A directory in memory: on a disk, most of a test of 100,000 directories would be the disk's."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as path:
        made = pathlib.Path(path) / "top"
        made.mkdir()
        yield made
        remove_tree(f"{path}/top")


def peak() -> int:
    """The most memory this process ever had, in KiB (proc_pid_status(5), VmHWM)."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


@pytest.mark.timeout(400)
def test_a_tree_100_000_deep(top):
    chain(top, 100_000, "leaf")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before = peak()
    with few_descriptors(64):
        assert trees.remove(str(top)) == [], open_files(os.getpid())
    assert not top.exists()
    assert peak() - before < 4096
    assert list(top.parent.iterdir()) == []


@pytest.mark.timeout(400)
def test_a_tree_100_000_deep_is_measured(top):
    chain(top, 100_000, "leaf")
    (top / "a").write_bytes(b"12345")
    os.link(top / "a", top / "z")
    (top / "link").symlink_to("/etc/passwd")
    before = peak()
    with few_descriptors(2 * trees.HELD + 32):
        assert trees.measure(str(top)) == (3, 10), open_files(os.getpid())
    assert peak() - before < 8192
    names = [name for _, name, is_directory in trees.walk(str(top)) if is_directory]
    assert names == ["d"] * 100_000
    remove_tree(str(top))
    assert not top.exists()


def test_wide_and_deep(tmp_path):
    """Directories with many directories that are deeper than what is held open, several times over."""
    top = tmp_path / "top"
    top.mkdir()
    for one in range(30):
        (top / f"{one}").mkdir()
        chain(top / f"{one}", trees.HELD + 10, "leaf")
        (top / f"{one}" / "beside").write_text("x")
        chain(top / f"{one}" / "d/d/d", 0, "more")
    assert trees.measure(str(top)) == (90, 30)
    visited = sum(is_directory for _, _, is_directory in trees.walk(str(top)))
    assert visited == 30 * (trees.HELD + 11)
    assert trees.remove(str(top)) == []
    assert not top.exists()


def test_many_entries(tmp_path):
    """A tenth of a million; the time is linear (a million takes ten times as long, and as much memory)."""
    top = tmp_path / "top"
    (top / "sub").mkdir(parents=True)
    fd = os.open(top / "sub", os.O_RDONLY)
    for number in range(100_000):
        os.close(os.open(f"{number}", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    assert trees.remove(str(top)) == []
    assert not top.exists()
    assert peak() - before < 2048


def test_links_are_not_followed(tmp_path):
    (tmp_path / "safe/sub").mkdir(parents=True)
    (tmp_path / "safe/file").write_text("x")
    top = tmp_path / "top"
    (top / "a").mkdir(parents=True)
    (top / "a/dir").symlink_to(tmp_path / "safe")
    (top / "a/file").symlink_to(tmp_path / "safe/file")
    os.mkfifo(top / "fifo")
    assert trees.remove(f"{top}/") == []
    (tmp_path / "link").symlink_to(tmp_path / "safe")
    assert trees.remove(str(tmp_path / "link")) == []
    assert trees.remove(str(tmp_path / "nothing")) == []
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "safe", "sub"]
    for word in ("/", ".", "..", f"{tmp_path}/safe/.."):
        assert trees.remove(word), word
    assert (tmp_path / "safe/file").exists()


def test_what_can_not_be_removed_is_told(tmp_path):
    need(ROOT, "an immutable file needs root", "sudo make test")
    top = tmp_path / "top"
    (top / "a/b").mkdir(parents=True)
    for name in ("stays\x1b[2J", "goes"):
        (top / "a/b" / name).write_text("x")
    done = subprocess.run(["chattr", "+i", top / "a/b/stays\x1b[2J"], capture_output=True, check=False)
    need(done.returncode == 0, "this file system has no immutable files", "TMPDIR on ext4")
    try:
        told = trees.remove(str(top))
        assert told == [f"{top}: 'a/b/stays\\x1b[2J': Operation not permitted"]
        assert [p.name for p in (top / "a/b").iterdir()] == ["stays\x1b[2J"]
    finally:
        subprocess.run(["chattr", "-i", top / "a/b/stays\x1b[2J"], check=True)
    assert trees.remove(str(top)) == []


BARRED = """
import os, pathlib, sys
from nsrun.host import cgroup, trees
top, deep = pathlib.Path(sys.argv[1]), int(sys.argv[2])
if not os.geteuid():
    os.setgroups([])
    os.setresgid(12001, 12001, 12001)
    os.setresuid(12001, 12001, 12001)
bottom = top / "/".join(["d"] * deep)
(bottom / "a/b/c").mkdir(parents=True)
for path in (bottom / "a/b/c", bottom / "a/b", bottom / "a"):
    (path / "file").write_text("x")
    path.chmod(0)
(bottom / "r").mkdir()
(bottom / "r/file").write_text("x")
(bottom / "r").chmod(0o500)
top.chmod(0)
if len(sys.argv) < 4:
    print(trees.remove(str(top)))
"""


@pytest.mark.parametrize("deep", [0, trees.LEVELS])
def test_directories_without_permission(deep, tmp_path):
    """An ordinary user gives herself the permission that lacks; root needs none."""
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == os.geteuid() and path != pathlib.Path("/"):
            path.chmod(path.stat().st_mode | 0o711)
    home = tmp_path / "home"
    home.mkdir()
    if ROOT:
        os.chown(home, 12001, 12001)
    words = [sys.executable, "-I", "-c", BARRED, home / "top", str(deep)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert not (home / "top").exists()
    subprocess.run([*words, "keep"], check=True)
    assert trees.remove(str(home / "top")) == []
    assert not (home / "top").exists()


def test_another_file_system_is_not_entered(throwaway_host, tmp_path):
    top = tmp_path / "top"
    for name in ("tmpfs", "bind", "d" * 3):
        (top / name).mkdir(parents=True)
    safe = tmp_path / "safe"
    safe.mkdir()
    (safe / "file").write_text("x")
    subprocess.run(["mount", "-t", "tmpfs", "none", top / "tmpfs"], check=True)
    subprocess.run(["mount", "--bind", safe, top / "bind"], check=True)  # the same st_dev
    (top / "tmpfs/file").write_text("x")
    try:
        assert trees.measure(str(top)) == (0, 0)
        told = trees.remove(str(top))
        assert len(told) == 2
        assert all("bind" in line or "tmpfs" in line for line in told)
        assert (safe / "file").exists() and (top / "tmpfs/file").exists()
        assert trees.remove(str(top / "bind")) == [f"{top}/bind: another file system is mounted there"]
        assert (safe / "file").exists()
    finally:
        subprocess.run(["umount", top / "tmpfs", top / "bind"], check=True)
    assert trees.remove(str(top)) == []


RENAMER = """
import os, sys, itertools
home = sys.argv[1]
for n in itertools.count():
    for base in ("a", "a/b", "a/b/c", "a/b/c/d"):
        try:
            os.rename(f"{home}/top/{base}", f"{home}/out/x{n % 7}")
        except OSError:
            pass
        try:
            os.rename(f"{home}/out/x{(n + 3) % 7}", f"{home}/top/a")
        except OSError:
            pass
        for name in ("l", "a/l"):
            try:
                os.symlink(f"{home}/safe", f"{home}/top/{name}")
                os.rename(f"{home}/top/{name}", f"{home}/top/a/b")
            except OSError:
                pass
"""


def test_a_hostile_renamer(tmp_path):
    """Who moves directories out and links in while the tree goes leads the removal nowhere."""
    (tmp_path / "safe").mkdir()
    for number in range(20):
        (tmp_path / f"safe/{number}").mkdir()
        (tmp_path / f"safe/{number}/file").write_text("x")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious").mkdir()
    (tmp_path / "out/precious/file").write_text("x")
    (tmp_path / "precious").write_text("x")
    evil = subprocess.Popen([sys.executable, "-I", "-c", RENAMER, tmp_path])
    try:
        until = time.monotonic() + 4
        rounds = 0
        while time.monotonic() < until:
            bottom = tmp_path / "top" / "/".join("abcdefghijklmnopqrs")
            with contextlib.suppress(OSError):
                bottom.mkdir(parents=True)
                for path in [bottom, *list(bottom.parents)[:18]]:
                    (path / "file").write_text("x")
            trees.remove(str(tmp_path / "top"))
            rounds += 1
        assert evil.poll() is None
        assert rounds > 20
    finally:
        evil.kill()
        evil.wait()
    assert all((tmp_path / f"safe/{number}/file").exists() for number in range(20))
    assert (tmp_path / "out/precious/file").exists() and (tmp_path / "precious").exists()
    assert trees.remove(str(tmp_path / "top")) == []


def test_a_directory_that_was_moved_is_not_climbed_out_of(tmp_path):
    (tmp_path / "top").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("x")
    chain(tmp_path / "top", trees.HELD + 5, "leaf")
    seen = []
    with pytest.raises(OSError, match="moved"):
        for _, name, _ in trees.walk(str(tmp_path / "top")):
            seen.append(name)
            if name == "leaf":
                (tmp_path / "top/d/d/d").rename(tmp_path / "outside/d")
    assert "secret" not in seen


@pytest.mark.parametrize("nested", (False, True), ids=("beside", "within"))
def test_who_makes_more_is_not_followed_for_ever(tmp_path, monkeypatch, nested):
    """For every entry that is removed, two are made: nobody who makes entries could be faster in proportion."""
    monkeypatch.setattr(trees, "LATE", 500)
    top = tmp_path / "top"
    top.mkdir()
    for number in range(20):
        (top / f"m{number}").mkdir()
    real, calls = trees._gone, 0

    def gone(directory: int, name: str, is_directory: bool) -> OSError | None:
        nonlocal calls
        calls += 1
        assert calls < 5000, "it is followed for ever"
        why = real(directory, name, is_directory)
        if not why and name != "top":
            for number in range(2):
                made = f"{calls}-{number}"
                os.mkdir(made, dir_fd=directory)
                if nested:
                    os.mkdir(f"{made}/{made}", dir_fd=directory)
        return why

    time.sleep(0.02)  # the kernel's clock of inodes ticks
    monkeypatch.setattr(trees, "_gone", gone)
    grows, not_empty = (f"{top}: {why}" for why in ("more is made in it while it is removed", "Directory not empty"))
    told = trees.remove(str(top))
    assert told == [grows] or (told == [not_empty] and not nested)  # few passes are made over one directory
    monkeypatch.setattr(trees, "_gone", real)
    assert trees.remove(str(top)) == []


def test_a_chain_that_grows_while_it_goes_is_left(tmp_path, monkeypatch):
    """Each directory is made only when the removal has come there: without a bound it would never end."""
    monkeypatch.setattr(trees, "LATE", 500)
    top = tmp_path / "top"
    top.mkdir()
    chain(top, 3)
    real = trees._open_ours

    def grown(directory: int, name: str) -> int:
        fd = real(directory, name)
        with contextlib.suppress(FileExistsError):
            os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        with contextlib.suppress(FileExistsError):
            os.mkdir("d", dir_fd=inner)
        os.close(inner)
        return fd

    time.sleep(0.02)  # the kernel's clock of inodes ticks
    monkeypatch.setattr(trees, "_open_ours", grown)
    told = trees.remove(str(top))
    assert told == [f"{top}: more is made in it while it is removed"]
    monkeypatch.setattr(trees, "_open_ours", real)
    assert trees.remove(str(top)) == []


def test_it_is_cheap_to_import():
    code = "import sys, nsrun.kernel, nsrun.errors; had = set(sys.modules); import nsrun.host.trees; print(set(sys.modules) - had)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    assert eval(done.stdout) <= {"nsrun.host", "nsrun.host.trees"}, done.stdout


def test_no_descriptor_is_left(tmp_path):
    before = os.listdir("/proc/self/fd")
    for deep in (3, 50, 200):
        (tmp_path / "top").mkdir()
        chain(tmp_path / "top", deep, "leaf")
        for _ in trees.walk(str(tmp_path / "top")):
            break
        trees.measure(str(tmp_path / "top"))
        assert trees.remove(str(tmp_path / "top")) == []
    assert os.listdir("/proc/self/fd") == before


def test_cgroups_in_cgroups(throwaway_host):
    """Deeper than any path, as somebody with a cgroup of her own can nest them."""
    mount = cgroup.mount_point()
    need(mount, "cgroup v2 is not mounted", "mount -t cgroup2 none /sys/fs/cgroup")
    base = pathlib.Path(mount) / f"{os.environ['NSRUN_CGROUP']}-nested"
    base.mkdir()
    fd, name = os.open(base, os.O_RDONLY), "c" * 200
    for number in range(100):
        os.mkdir(name, dir_fd=fd)
        down = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.mkdir("beside", dir_fd=down)
        os.close(fd)
        fd = down
        if number in (0, 50, 99):
            sleeper = subprocess.Popen(["sleep", "60"])
            procs = os.open("cgroup.procs", os.O_WRONLY, dir_fd=fd)
            os.write(procs, str(sleeper.pid).encode())
            os.close(procs)
    os.close(fd)
    found = cgroup.pids(str(base))
    assert len(found) == 3
    cgroup.remove(str(base))
    assert base.exists(), "somebody lives in it"
    cgroup.kill(str(base))
    for pid in found:
        os.waitpid(pid, 0)
    cgroup.remove(str(base))
    assert not base.exists()
