# SPDX-License-Identifier: Apache-2.0
"""nsrun cp: what is copied, as whose, and that a member leads nobody elsewhere, whatever it does to its files meanwhile."""

from __future__ import annotations

import io
import os
import pathlib
import socket
import stat
import subprocess
import sys
import tarfile

import pytest
from conftest import NSRUN, USERS, sh, wait_for

from nsrun.errors import UsageError
from nsrun.host import treecopy
from nsrun.lifecycle.copy import parse_end, parse_ends

live = pytest.mark.live


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("m:/etc", ("m", "/etc")),
        ("m:etc/x:y", ("m", "etc/x:y")),
        ("./m:x", ("", "./m:x")),
        ("/m:x", ("", "/m:x")),
        ("a/m:x", ("", "a/m:x")),
        ("-", ("", "-")),
        ("file", ("", "file")),
    ],
)
def test_the_ends_of_a_copy(text, end):
    assert parse_end(text) == end


@pytest.mark.parametrize("ends", [("a", "b"), ("-", "-"), ("", "m:/x"), ("m:", "x"), ("m:/x", ""), ("a b:/x", "y")])
def test_ends_that_are_refused(ends):
    with pytest.raises(UsageError):
        parse_ends(*ends)


@pytest.fixture
def here(tmp_path):
    """A directory of this host with one of everything that can be copied."""
    top = tmp_path / "tree"
    (top / "sub/deep").mkdir(parents=True)
    (top / "sub/file").write_text("hello")
    (top / "sub/deep/run").write_bytes(b"\0x" * 1000)
    (top / "sub/deep/run").chmod(0o4755)
    os.link(top / "sub/file", top / "again")
    os.symlink("sub/file", top / "link")
    os.symlink("/nowhere", top / "dangling")
    os.mkfifo(top / "fifo")
    (top / "sub").chmod(0o1777)
    with open(top / "holes", "wb") as file:
        file.truncate(1 << 30)
        file.seek(1 << 20)
        file.write(b"data")
    os.utime(top / "sub/file", (1_000_000_000, 1_000_000_000))
    return top


def facts(top: pathlib.Path) -> dict[str, tuple]:
    """What a copy keeps, by path."""
    found = {}
    for directory, folders, files in os.walk(top):
        for name in [*folders, *files]:
            path = pathlib.Path(directory, name)
            st = path.lstat()
            content = path.read_bytes()[:4096] if stat.S_ISREG(st.st_mode) else os.readlink(path) if stat.S_ISLNK(st.st_mode) else None  # fmt: skip
            size = st.st_size if stat.S_ISREG(st.st_mode) else 0
            when = int(st.st_mtime) if not stat.S_ISDIR(st.st_mode) else 0
            found[str(path.relative_to(top))] = (oct(st.st_mode), st.st_uid, st.st_gid, size, content, when)
    return found


def root_of(host, name: str) -> pathlib.Path:
    return pathlib.Path(f"/proc/{host.member(name)['pid']}/root")


@live
def test_a_tree_goes_in_and_comes_out(host, pod, busybox, here, tmp_path):
    """Owners, modes, times, links and holes stay; what comes out has no set-user-ID bit."""
    host.start("m", busybox, "sleep", "1000")
    os.chown(here / "sub/file", 12, 13)
    os.chown(here / "link", 14, 15, follow_symlinks=False)
    assert host.run("cp", here, "m:/copy").stdout == ""
    inside = root_of(host, "m") / "copy"
    assert facts(inside) == facts(here)
    assert (inside / "again").stat().st_ino == (inside / "sub/file").stat().st_ino
    assert (inside / "holes").stat().st_blocks < 1000
    host.run("cp", "m:/copy", tmp_path / "out")
    expected = facts(here)
    mode, *rest = expected["sub/deep/run"]
    expected["sub/deep/run"] = (oct(int(mode, 8) & ~stat.S_ISUID), *rest)
    assert facts(tmp_path / "out") == expected
    assert (tmp_path / "out/again").stat().st_ino == (tmp_path / "out/sub/file").stat().st_ino
    assert not list(inside.rglob(".nsrun-*"))


@live
def test_where_a_copy_is_put(host, pod, busybox, here, tmp_path):
    """The rules of docker cp."""
    host.start("m", busybox, "sleep", "1000")
    top = root_of(host, "m")
    host.run("cp", here / "sub/file", "m:/new")
    assert (top / "new").read_text() == "hello"
    host.run("cp", here / "sub/file", "m:/tmp")
    assert (top / "tmp/file").read_text() == "hello"
    (here / "sub/file").write_text("again")
    host.run("cp", here / "sub/file", "m:/new")
    assert (top / "new").read_text() == "again"
    host.run("cp", here / "sub", "m:/tmp")
    assert (top / "tmp/sub/deep/run").exists()
    host.run("cp", f"{here}/sub/.", "m:/tmp/sub/deep")
    assert (top / "tmp/sub/deep/file").exists() and (top / "tmp").stat().st_mode & 0o7777 == 0o1777
    host.run("cp", f"{here}/sub/.", "m:/made")
    assert (top / "made/file").exists()
    host.run("cp", ".", "m:/dot", cwd=here)
    assert (top / "dot/sub/file").exists()
    host.run("cp", "m:/made/file", "one", cwd=tmp_path)
    host.run("cp", "m:made/", ".", cwd=tmp_path)
    assert (tmp_path / "one").read_text() == (tmp_path / "made/file").read_text() == "again"
    host.run("cp", here / "link", "m:/l1")
    host.run("cp", "-L", here / "link", "m:/l2")
    assert os.readlink(top / "l1") == "sub/file" and (top / "l2").read_text() == "again"
    host.start("n", busybox, "sleep", "1000")
    host.run("cp", "m:/made", "n:/from-m")
    assert (root_of(host, "n") / "from-m/deep/run").exists()
    for words, told in (
        (["m:/nix", tmp_path], "No such file"),
        ([here / "nix", "m:/"], "No such file"),
        ([here / "sub/file", "m:/nix/"], "No such file"),
        ([here / "sub/file", "m:/nix/x"], "No such file"),
        ([here / "sub", "m:/new"], "not a directory"),
        ([here / "sub/file", "m:/new/"], "not a directory"),
        ([here / "sub/file", "m:/new/x"], "Not a directory"),
        (["m:/new/.", tmp_path], "ot a directory"),
        (["m:/made", "m:/made/within"], "into itself"),
        (["m:/proc", tmp_path / "proc"], "kernel"),
        (["nix:/x", tmp_path], "no member"),
    ):
        assert told in host.fails(125, "cp", *words), words
    host.fails(2, "cp", here, here)
    host.fails(2, "cp", here)


@live
def test_a_file_that_is_mounted_is_written_in_place(host, pod, busybox, tmp_path):
    """What is mounted in a member is not mounted in our mount namespace: a rename would detach it there."""
    on_host, new = tmp_path / "on-host", tmp_path / "new"
    on_host.write_text("as it was, and longer than what comes\n")
    (tmp_path / "data").mkdir()
    volumes = [f"{on_host}:/etc/vf", f"{on_host}:/etc/ro:ro", f"{tmp_path}/data:/data", f"{on_host}:/data/vf"]
    host.start("m", busybox, "sleep", "1000", options=[word for volume in volumes for word in ("-v", volume)])
    inode, top = on_host.stat().st_ino, root_of(host, "m")
    mounts = pathlib.Path(f"/proc/{host.member('m')['pid']}/mountinfo")
    mounted = mounts.read_text()
    new.write_text("new\n")
    host.run("cp", new, "m:/etc/vf")
    assert on_host.read_text() == "new\n" == (top / "etc/vf").read_text() and on_host.stat().st_ino == inode
    assert "ead-only" in host.fails(125, "cp", new, "m:/etc/hosts")
    assert "ead-only" in host.fails(125, "cp", new, "m:/etc/ro")
    os.symlink("/nowhere", tmp_path / "link")
    assert "mounted" in host.fails(125, "cp", tmp_path / "link", "m:/data/vf")
    new.write_text("newer\n")
    tar = tar_of(("./data/vf", b"0", b"from a tar"), ("./data/other", b"0", b"x"))
    subprocess.run([NSRUN, "cp", "-", "m:/"], env=host.env, input=tar, timeout=60, check=True)
    assert on_host.read_text() == "from a tar" and (tmp_path / "data/other").read_text() == "x"
    for kind, told in ((b"2", b"mounted"), (b"1", b"mounted"), (b"5", b"not a directory")):
        done = subprocess.run([NSRUN, "cp", "-", "m:/"], env=host.env, input=tar_of(("data/vf", kind, "data/other")), capture_output=True, timeout=60)  # fmt: skip
        assert done.returncode == 125 and told in done.stderr, done.stderr
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/a").write_text("linked")
    os.link(tmp_path / "tree/a", tmp_path / "tree/vf")
    host.run("cp", f"{tmp_path}/tree/.", "m:/data")
    assert on_host.read_text() == "linked" and (tmp_path / "data/a").read_text() == "linked"
    assert "same file" in host.fails(125, "cp", on_host, "m:/etc/vf")
    assert on_host.read_text() == "linked"
    assert mounts.read_text() == mounted
    assert not [path for path in tmp_path.rglob(".nsrun-*")]


@live
def test_a_file_that_is_mounted_is_whole_or_as_it_was(host, pod, busybox, tmp_path):
    """When its content ends too early, when there is no space for it, and when nsrun is killed."""
    small = tmp_path / "small"
    small.mkdir()
    sh("mount", "-t", "tmpfs", "-o", "size=128k", "small", small)
    try:
        (small / "file").write_text("as it was")
        (tmp_path / "file").write_text("as it was")
        host.start("m", busybox, "sleep", "1000", options=["-v", f"{small}/file:/etc/small", "-v", f"{tmp_path}/file:/etc/file"])  # fmt: skip
        (tmp_path / "large").write_bytes(b"x" * (1 << 20))
        assert "space" in host.fails(125, "cp", tmp_path / "large", "m:/etc/small")
        assert (small / "file").read_text() == "as it was"
        short = tar_of(("etc/file", b"0", b"y" * 100_000))[:60_000]
        done = subprocess.run([NSRUN, "cp", "-", "m:/"], env=host.env, input=short, capture_output=True, timeout=60)
        assert done.returncode == 125 and (tmp_path / "file").read_text() == "as it was"
        host.run("cp", tmp_path / "large", "m:/etc/file")
        (tmp_path / "none").write_text("")
        host.run("cp", tmp_path / "none", "m:/etc/file")
        assert (tmp_path / "file").read_text() == ""
    finally:
        host.run("rm", "-f", "m")
        sh("umount", small)


def test_what_is_written_over_a_file_is_whole_when_nsrun_is_killed(tmp_path):
    size = 96 << 20
    for name, letter in (("old", b"o"), ("new", b"n")):
        (tmp_path / name).write_bytes(letter * size)
    os.truncate(tmp_path / "new", size - 1)
    code = "import os, sys; from nsrun import kernel; kernel.write_apart(os.open(sys.argv[1], os.O_RDONLY), os.open(sys.argv[2], os.O_RDWR), int(sys.argv[3]))"
    with subprocess.Popen(
        [sys.executable, "-I", "-c", code, tmp_path / "new", tmp_path / "old", str(size - 1)]
    ) as writer:
        with open(tmp_path / "old", "rb") as file:
            wait_for(lambda: os.pread(file.fileno(), 1, 0) == b"n")
        writer.kill()
    wait_for(lambda: (tmp_path / "old").stat().st_size == size - 1)
    assert (tmp_path / "old").read_bytes() == (tmp_path / "new").read_bytes()


@live
def test_nothing_is_copied_into_the_hosts_own_files(host, pod, tmp_path):
    """Of a member that runs, as of one that has ended."""
    host.run("join", pod, "-d", "--name", "h", "--", "/bin/sleep", "1000")
    (tmp_path / "new").write_text("new")
    (tmp_path / "there").write_text("old")
    assert "own files" in host.fails(125, "cp", tmp_path / "new", f"h:{tmp_path}/there")
    done = subprocess.run([NSRUN, "cp", "-", f"h:{tmp_path}"], env=host.env, input=tar_of(("there", b"0", b"x")), capture_output=True, timeout=60)  # fmt: skip
    assert done.returncode == 125 and b"own files" in done.stderr
    assert (tmp_path / "there").read_text() == "old"
    host.run("cp", f"h:{tmp_path}/there", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "old"


@live
def test_what_is_no_file_is_not_replaced(host, pod, busybox, tmp_path):
    """A device, a FIFO or a socket is more than its name; a link at the end of the target is followed, as by cp(1)."""
    host.start("m", busybox, "sleep", "1000")
    os.mknod(tmp_path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mkfifo(tmp_path / "fifo")
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "sock"))
    os.symlink("null", tmp_path / "to-null")
    os.symlink("nowhere", tmp_path / "dangling")
    (tmp_path / "d").mkdir()
    os.mknod(tmp_path / "d/passwd", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    about = lambda path: (path.lstat().st_mode, path.lstat().st_ino, path.lstat().st_ctime_ns)  # noqa: E731
    before = {path: about(path) for path in tmp_path.iterdir() if path.name != "d"}
    for name in ("null", "fifo", "sock", "to-null"):
        assert "not a regular file" in host.fails(125, "cp", "m:/etc/passwd", tmp_path / name), name
    assert "leads nowhere" in host.fails(125, "cp", "m:/etc/passwd", tmp_path / "dangling")
    assert "not a regular file" in host.fails(125, "cp", "m:/etc/passwd", tmp_path / "d")
    assert {path: about(path) for path in before} == before
    assert stat.S_ISCHR((tmp_path / "d/passwd").lstat().st_mode)

    passwd = (root_of(host, "m") / "etc/passwd").read_text()
    (tmp_path / "d/real").write_text("old")
    os.symlink("d/real", tmp_path / "to-real")
    os.symlink(tmp_path / "to-real", tmp_path / "d/again")
    for name in ("to-real", "d/again", f"{tmp_path}/to-real"):
        (tmp_path / "d/real").write_text("old")
        host.run("cp", "m:/etc/passwd", name, cwd=tmp_path)
        assert (tmp_path / "d/real").read_text() == passwd and (tmp_path / "to-real").is_symlink()

    host.run("exec", "m", "sh", "-c", "mkdir -p /a/b; mkfifo /a/fifo; echo old >/a/b/real; ln -s ../../../a/b/real /a/b/one; ln -s /a/b/one /two; ln -s /a/fifo /three")  # fmt: skip
    top = root_of(host, "m")
    (tmp_path / "payload").write_text("evil")
    host.run("cp", tmp_path / "payload", "m:/two")
    assert (top / "a/b/real").read_text() == "evil" and (top / "two").is_symlink() and (top / "a/b/one").is_symlink()
    for path in ("/a/fifo", "/three", "/dev/null"):
        assert "not a regular file" in host.fails(125, "cp", tmp_path / "payload", f"m:{path}"), path
    host.run("cp", tmp_path / "to-real", "m:/two")  # a link replaces a link
    assert os.readlink(top / "two") == "d/real"
    done = subprocess.run([NSRUN, "cp", "-", "m:/a"], env=host.env, input=tar_of(("fifo", b"0", b"x")), capture_output=True, timeout=60)  # fmt: skip
    assert (
        done.returncode == 125
        and b"not a regular file" in done.stderr
        and stat.S_ISFIFO((top / "a/fifo").stat().st_mode)
    )


@live
def test_a_tar_in_and_out(host, pod, busybox, here, tmp_path):
    host.start("m", busybox, "sleep", "1000")
    host.run("cp", here, "m:/t")
    (here / "holes").unlink()
    packed = subprocess.run([NSRUN, "cp", "m:/t/sub", "-"], env=host.env, capture_output=True, timeout=60, check=True).stdout  # fmt: skip
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        assert tar.getnames()[0] == "sub" and {"sub/file", "sub/deep", "sub/deep/run"} <= set(tar.getnames())
        assert tar.getmember("sub/deep/run").mode == 0o4755 and tar.extractfile("sub/file").read() == b"hello"
    packed = subprocess.run(["tar", "-C", here, "-c", "."], capture_output=True, timeout=60, check=True).stdout
    host.run("exec", "m", "sh", "-c", "mkdir /u /real; ln -s /real /u/sub; echo old >/real/file")
    done = subprocess.run([NSRUN, "cp", "-", "m:/u"], env=host.env, input=packed, capture_output=True, timeout=60)
    assert b"'sub'" in done.stderr and done.returncode == 125  # a directory in the place of a link
    host.run("exec", "m", "sh", "-c", "rm /u/sub; rm -r /real")
    subprocess.run([NSRUN, "cp", "-", "m:/u"], env=host.env, input=packed, timeout=60, check=True)
    assert facts(root_of(host, "m") / "u") == facts(here)
    assert (root_of(host, "m") / "u/again").stat().st_nlink == 2
    for bad in (b"no tar at all", b"x" * 10000, packed[:700], packed[: len(packed) // 2]):
        done = subprocess.run([NSRUN, "cp", "-", "m:/u"], env=host.env, input=bad, capture_output=True, timeout=60)
        assert done.returncode == 125 and b"Traceback" not in done.stderr, bad[:20]
    assert "No such file" in host.fails(125, "cp", "-", "m:/nix", stdin=subprocess.DEVNULL)


@live
def test_a_reader_of_a_tar_that_goes(host, pod, busybox):
    """Nothing is said about that, as with any list; and a closed standard output is no terminal."""
    host.start("m", busybox, "sleep", "1000")
    process = subprocess.Popen([NSRUN, "cp", "m:/bin", "-"], env=host.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    assert len(process.stdout.read(100)) == 100
    process.stdout.close()
    assert (process.stderr.read(), process.wait(timeout=30)) == (b"", 141)
    done = subprocess.run(["sh", "-c", f"{NSRUN} cp m:/etc - >&-"], env=host.env, capture_output=True, timeout=30)
    assert done.returncode == 2 and b"standard output is closed" in done.stderr
    with open("/dev/full", "wb") as full:
        done = subprocess.run([NSRUN, "cp", "m:/bin", "-"], env=host.env, stdout=full, stderr=subprocess.PIPE, timeout=30)  # fmt: skip
    assert done.returncode == 125 and done.stderr.count(b"No space left") == 1


def tar_of(*entries: tuple[str, bytes, str | bytes]) -> bytes:
    """A tar with these names, types, and contents or link targets."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, kind, more in entries:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = kind, 0o755
            if isinstance(more, bytes):
                entry.size = len(more)
            else:
                entry.linkname = more
            tar.addfile(entry, io.BytesIO(more) if isinstance(more, bytes) else None)
    return stream.getvalue()


@live
@pytest.mark.parametrize(
    "entries",
    [
        [("../../out", b"0", b"x")],
        [("a/../../out", b"0", b"x")],
        [("l", b"2", "/"), ("l/out", b"0", b"x")],
        [("l", b"2", "../../.."), ("l/out", b"0", b"x")],
        [("h", b"1", "../../etc/passwd")],
        [("/out", b"0", b"x")],
        [("l", b"2", "/etc/passwd"), ("h", b"1", "l"), ("h", b"0", b"x")],
        [("d", b"3", "")],
    ],
)
def test_a_tar_that_leads_elsewhere(host, pod, busybox, tmp_path, entries):
    """It may change the member, and nothing else."""
    host.start("m", busybox, "sleep", "1000")
    before = {path: os.path.lexists(path) for path in ("/out", "/etc/out", str(tmp_path / "out"))}
    passwd = pathlib.Path("/etc/passwd").read_bytes()
    done = subprocess.run([NSRUN, "cp", "-", "m:/tmp"], env=host.env, input=tar_of(*entries), capture_output=True, timeout=60, cwd=tmp_path)  # fmt: skip
    assert done.returncode in (0, 125) and b"Traceback" not in done.stderr
    assert {path: os.path.lexists(path) for path in before} == before
    assert pathlib.Path("/etc/passwd").read_bytes() == passwd
    assert not (root_of(host, "m") / "tmp/d").exists()


@live
def test_a_link_of_a_tar_that_can_not_be_made(host, pod, busybox):
    """To itself, to what is missing, or across file systems: what has the name stays."""
    host.start("m", busybox, "sleep", "1000", options=["--tmpfs", "/a/small"])
    host.run("exec", "m", "sh", "-c", "echo kept >/a/x; echo kept >/a/small/x; ln /a/x /a/same")
    top = root_of(host, "m") / "a"
    for name, target, told in (
        ("x", "x", b""),
        ("same", "x", b""),
        ("x", "gone", b"'x' of the tar, a link to 'gone': No such file"),
        ("x", "none/gone", b"No such file"),
        ("x", "small/x", b"ross-device"),
    ):
        tar = tar_of((name, b"1", target))
        done = subprocess.run([NSRUN, "cp", "-", "m:/a"], env=host.env, input=tar, capture_output=True, timeout=60)
        assert done.returncode == (125 if told else 0) and told in done.stderr, (name, target, done.stderr)
        assert (top / name).read_text() == "kept\n" and not list(top.glob(".nsrun-*"))
    assert not (top / "none").exists()


def _pax(headers: dict[str, str], size: int = 0) -> bytes:
    entry = tarfile.TarInfo("x")
    entry.pax_headers, entry.size = headers, size
    return entry.tobuf(format=tarfile.PAX_FORMAT) + bytes(10240)


@pytest.mark.parametrize(
    "tar",
    [
        _pax({"mtime": "nan"}),
        _pax({"mtime": "inf"}),
        _pax({"size": "-512"}),
        _pax({"size": "-9223372036854775808"}),
        _pax({"path": "a\0b"}),
        tarfile.TarInfo("x").tobuf().replace(b"%011o" % 0, b"\xff" * 11, 1) + bytes(10240),
    ],
)
def test_a_tar_with_numbers_that_are_none(tmp_path, tar):
    (tmp_path / "tar").write_bytes(tar)
    with open(tmp_path / "tar", "rb") as file, pytest.raises(treecopy.BadInput):
        treecopy.unpack(file.fileno(), treecopy.Place(), str(tmp_path), treecopy.Names(lambda *_: None, False))
    assert [path.name for path in tmp_path.iterdir()] == ["tar"]


def test_a_tar_with_a_header_without_an_end(tmp_path):
    """Python's tarfile would read it whole, into memory."""
    entry = tarfile.TarInfo("x")
    entry.type, entry.size = tarfile.XHDTYPE, 8 << 30
    (tmp_path / "tar").write_bytes(entry.tobuf() + bytes(10 << 20))
    with open(tmp_path / "tar", "rb") as file, pytest.raises(treecopy.BadInput, match="header"):
        treecopy.unpack(file.fileno(), treecopy.Place(), str(tmp_path), treecopy.Names(lambda *_: None, False))


@live
def test_links_of_a_member_lead_nobody_out(host, pod, busybox, tmp_path):
    """In a path that is given, at its end, and in a tree."""
    secret = tmp_path / "secret"
    secret.write_text("the host's")
    host.start("m", busybox, "sleep", "1000")
    host.run("exec", "m", "sh", "-c", f"mkdir -p /t; ln -s / /t/root; ln -s {tmp_path} /t/dir; ln -s {secret} /t/file; ln -s /proc/1/root /t/one; ln -s ../../../../../../{secret} /t/up")  # fmt: skip
    for path in ("/t/dir/secret", "/t/file/", "/t/one/etc/passwd", f"/../../../../..{secret}", f"/t/root{secret}"):
        host.fails(125, "cp", f"m:{path}", tmp_path / "got")
    host.fails(125, "cp", "-L", "m:/t/up", tmp_path / "got")
    host.run("cp", "m:/t", tmp_path / "out")
    assert os.readlink(tmp_path / "out/dir") == str(tmp_path) and (tmp_path / "out/one").is_symlink()
    (tmp_path / "payload").write_text("evil")
    host.fails(125, "cp", tmp_path / "payload", "m:/t/dir/secret")
    assert "leads nowhere" in host.fails(125, "cp", tmp_path / "payload", "m:/t/file")  # as the member has it
    assert os.readlink(root_of(host, "m") / "t/file") == str(secret)
    host.run("cp", tmp_path / "payload", "m:/t/root/etc/payload")  # /, as the member has it
    assert (root_of(host, "m") / "etc/payload").exists() and not os.path.exists("/etc/payload")
    assert secret.read_text() == "the host's"


SWAP = """
while :; do
    mkdir -p /t/d; echo inside >/t/d/passwd; rm -rf /t/d; ln -s /etc /t/d; rm -f /t/d
    mkfifo /t/f; rm -f /t/f; echo x >/t/f; rm -f /t/f; ln -s HOST /t/f; rm -f /t/f
    ln -s / /t/g; mv /t/g /t/h; rm -rf /t/h; mkdir -p /t/h/x; mv /t/h /t/g; rm -rf /t/g
done
"""


@live
def test_a_tree_that_changes_while_it_is_copied(host, pod, busybox, tmp_path):
    """Directories become links, files become FIFOs: each copy ends, and nothing of the host is read or written."""
    secret = tmp_path / "secret"
    secret.write_text("the host's")
    (tmp_path / "in/d").mkdir(parents=True)
    (tmp_path / "in/f").write_text("evil")
    (tmp_path / "in/d/passwd").write_text("evil")
    before = pathlib.Path("/etc/passwd").read_bytes()
    host.start("m", busybox, "sh", "-c", "mkdir /t;" + SWAP.replace("HOST", str(secret)))
    wait_for(lambda: (root_of(host, "m") / "t").exists())
    for number in range(25):
        host.run("cp", "m:/t", tmp_path / f"out{number}", check=False, timeout=30)
        host.run("cp", f"{tmp_path}/in/.", "m:/t", check=False, timeout=30)
    for path in tmp_path.rglob("out*/**/*"):
        if path.is_file() and not path.is_symlink():
            assert path.read_text() in ("inside\n", "x\n", "evil", ""), path
    assert secret.read_text() == "the host's" and pathlib.Path("/etc/passwd").read_bytes() == before


@live
def test_what_would_never_end(host, pod, busybox, tmp_path):
    """A FIFO, a device, a socket, a file of 8 EiB, one that grows, and a directory without a bottom."""
    host.start("m", busybox, "sh", "-c", "mkdir /t; mkfifo /t/fifo; cp -a /dev/zero /dev/null /t 2>/dev/null; while :; do echo x >>/t/grows; done")  # fmt: skip
    top = root_of(host, "m") / "t"
    wait_for(lambda: (top / "grows").exists())
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "sock"))
    host.run("cp", "m:/t", tmp_path / "out", timeout=30)
    assert stat.S_ISFIFO((tmp_path / "out/fifo").stat().st_mode) and (tmp_path / "out/grows").stat().st_size > 0
    assert "a socket is left out" in host.fails(125, "cp", tmp_path / "sock", "m:/t/sock")
    assert not (top / "sock").exists()
    (tmp_path / "with").mkdir()
    os.rename(tmp_path / "sock", tmp_path / "with/sock")
    assert (
        "with/sock" not in (told := host.run("cp", tmp_path / "with", "m:/t/with").stderr) and "sock: a socket" in told
    )
    assert "a device is left out" in host.fails(125, "cp", "m:/dev/zero", tmp_path / "zero")
    assert not (tmp_path / "zero").exists()
    assert "of the kernel's" in host.fails(125, "cp", "m:/proc/uptime", tmp_path / "zero")
    assert not (tmp_path / "zero").exists()
    host.run("exec", "m", "sh", "-c", "mkdir /deep; cd /deep; n=0; while [ $n -lt 220 ]; do mkdir d; cd d; n=$((n+1)); done")  # fmt: skip
    assert "levels deep" in host.fails(125, "cp", "m:/deep", tmp_path / "deep")
    sh("rm", "-rf", tmp_path / "deep")


@live
def test_more_entries_than_there_may_be(tmp_path, monkeypatch):
    monkeypatch.setattr(treecopy, "MAX_ENTRIES", 50)
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    target.mkdir()
    for number in range(60):
        (source / f"f{number}").touch()
    walk = treecopy.Walk(treecopy.Directory(os.open(target, os.O_RDONLY), treecopy.Names(lambda *_: None, False)))
    with pytest.raises(treecopy.NsrunError, match="more than 50"):
        walk.everything(os.open(source, os.O_PATH), "x")


def test_names_are_limited(tmp_path, monkeypatch):
    """Those of files with several links, which are remembered; a tar remembers nothing else."""
    monkeypatch.setattr(treecopy, "MAX_NAMES", 1000)
    source = tmp_path / "in"
    source.mkdir()
    for number in range(60):
        (source / f"{number:020}").touch()
    sinks = [lambda: treecopy.Directory(os.open(tmp_path, os.O_RDONLY), treecopy.Names(lambda *_: None, False)), lambda: treecopy.Tar(io.BytesIO())]  # fmt: skip
    for number, make in enumerate(sinks):
        sink = make()
        treecopy.Walk(sink).everything(os.open(source, os.O_PATH), f"x{number}")
        assert not getattr(sink, "tar", None) or sink.tar.members == []
    for number in range(60):
        os.link(source / f"{number:020}", tmp_path / f"{number}")
    for number, make in enumerate(sinks):
        with pytest.raises(treecopy.NsrunError, match="longer than 1000"):
            treecopy.Walk(make()).everything(os.open(source, os.O_PATH), f"y{number}")


@live
def test_a_full_disk_leaves_no_half_of_a_file(host, pod, busybox, tmp_path):
    host.start("m", busybox, "sleep", "1000", options=["--tmpfs", "/small:size=64k"])
    (tmp_path / "big").write_bytes(os.urandom(1 << 20))
    assert "No space left" in host.fails(125, "cp", tmp_path / "big", "m:/small/big")
    assert host.run("exec", "m", "ls", "-A", "/small").stdout == ""


@live
def test_a_member_that_has_ended(host, pod, busybox, tmp_path):
    """Its data are there until rm, and what is copied in is there when it starts again."""
    host.run(
        "join", pod, "--name", "m", "--rootfs", busybox, "--", "sh", "-c", "cat /more; echo left >/file", check=False
    )
    host.run("cp", "m:/file", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "left\n"
    (tmp_path / "more").write_text("more\n")
    host.run("cp", tmp_path / "more", "m:/more")
    host.run("start", "m")
    host.run("wait", "m")
    assert host.run("logs", "--tail", "1", "m").stdout == "more\n"
    host.run("cp", "m:/bin/busybox", tmp_path / "busybox")
    assert (tmp_path / "busybox").stat().st_size > 100000 and not os.path.exists(f"{busybox}/more")
    host.run("pause", "m", check=False)
    host.run("rm", "m")
    assert "no member" in host.fails(125, "cp", "m:/file", tmp_path)


@live
def test_commands_while_an_ended_member_is_copied(host, pod, busybox):
    """They say so, and none takes it away, or waits for the end of the copy."""
    host.run("join", pod, "--name", "e", "--rootfs", busybox, "--", "true")
    copy = subprocess.Popen([NSRUN, "cp", "e:/bin", "-"], env=host.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert len(copy.stdout.read(100)) == 100  # the pipe is full, so it stays
        for words in (["rm", "e"], ["rm", "-f", "e"], ["start", "e"], ["restart", "e"], ["cp", "e:/etc/passwd", "-"]):
            assert "another nsrun uses member 'e'" in host.fails(125, *words), words
        assert host.run("stop", "e", timeout=20).stdout == "e\n" and host.member("e")["status"] == "stopped"
    finally:
        copy.stdout.close()
        copy.stderr.close()
        copy.wait(timeout=30)
    host.run("start", "e")
    host.run("wait", "e")
    host.run("rm", "e")


@live
def test_a_paused_member(host, pod, busybox, tmp_path):
    host.start("m", busybox, "sleep", "1000")
    host.run("pause", "m")
    host.run("cp", "m:/etc/passwd", tmp_path / "passwd")
    host.run("cp", tmp_path / "passwd", "m:/tmp/x")
    host.run("unpause", "m")
    assert host.run("exec", "m", "cat", "/tmp/x").stdout == (tmp_path / "passwd").read_text()


@live
def test_the_owner_of_a_pod(host, alice, owned, box):
    """Their own files are the pod's root's inside, and what comes out is theirs; with -a ids are kept."""
    alice.run("join", owned, "-d", "--name", "m", "--image", box, "--", "sleep", "1000")
    (alice.home / "file").write_text("hers")
    os.chown(alice.home / "file", alice.uid, alice.uid)
    alice.run("cp", alice.home / "file", "m:/file")
    assert alice.run("exec", "m", "stat", "-c", "%u %g", "/file").stdout == "0 0\n"
    alice.run("exec", "m", "sh", "-c", "mkdir /d; echo x >/d/x; chown 33:34 /d /d/x; chmod 700 /d")
    alice.run("cp", "m:/d", alice.home / "d")
    assert {(p.stat().st_uid, p.stat().st_gid) for p in (alice.home / "d", alice.home / "d/x")} == {(alice.uid, alice.uid)}  # fmt: skip
    alice.run("cp", "-a", "m:/d", alice.home / "kept")
    assert (alice.home / "kept").stat().st_uid not in (0, 33, alice.uid)
    packed = alice.run("cp", "m:/d", "-", encoding="latin-1").stdout
    assert "ustar" in packed
    alice.fails(125, "cp", "/etc/shadow", "m:/shadow")
    host.run("cp", "m:/d/x", "/dev/shm/of-alice")
    assert os.stat("/dev/shm/of-alice").st_uid == alice.uid  # root has acted as her
    os.unlink("/dev/shm/of-alice")
    alice.run("stop", "-t", "0", "m")
    alice.run("cp", "m:/d/x", alice.home / "ended")
    assert (alice.home / "ended").read_text() == "x\n"


@live
def test_roots_member_of_an_owned_pod(host, alice, owned, busybox, tmp_path):
    """Root's files are the pod's root's inside."""
    host.run("join", owned, "-d", "--name", "r", "--rootfs", busybox, "--", "sleep", "1000")
    (tmp_path / "file").write_text("root's")
    os.chown(tmp_path / "file", 4, 5)
    host.run("cp", tmp_path / "file", "r:/file")
    assert host.run("exec", "r", "stat", "-c", "%u %g", "/file").stdout == "0 0\n"
    host.run("stop", "-t", "0", "r")
    host.run("cp", "r:/file", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "root's"


@live
def test_completion_offers_members(host, pod, busybox):
    host.start("mysql", busybox, "sleep", "1000")
    assert host.run("_complete", "cp", "my").stdout.split() == ["mysql:"]
    assert "openat2" in host.run("explain", "cp", "mysql:/etc", "x").stdout
    assert USERS and sys.executable


@live
def test_a_pod_that_a_user_made_without_root(alice, box):
    """Files go in and out, what was written is told, and it starts again; without a cgroup it can't be paused."""
    alice.run("pod", "create", "--network", "none", "mine")
    alice.run("join", "mine", "-d", "--name", "m", "--image", box, "--", "sleep", "1000")
    (alice.home / "in").write_text("hers")
    os.chown(alice.home / "in", alice.uid, alice.uid)
    alice.run("cp", alice.home / "in", "m:/in")
    assert alice.run("exec", "m", "stat", "-c", "%u %g", "/in").stdout == "0 0\n"
    assert alice.run("diff", "m").stdout == "A /in\n"
    pid = alice.member("m")["pid"]
    alice.run("restart", "-t", "0", "m")
    assert alice.member("m")["pid"] not in (0, pid)
    alice.run("rename", "m", "n")
    alice.run("cp", "n:/in", alice.home / "out")
    assert (alice.home / "out").read_text() == "hers" and (alice.home / "out").stat().st_uid == alice.uid
    done = alice.run("pause", "n", check=False)
    assert done.returncode == 0 or "no cgroup" in done.stderr
    alice.run("rm", "-f", "n")
