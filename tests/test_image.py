# SPDX-License-Identifier: Apache-2.0
"""The store and its commands, and members that start from images."""

from __future__ import annotations

import gzip
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from conftest import NSRUN, kill, sh, wait_for
from images import Layout, archive, digest, directory, docker_archive, entry, hardlink, symlink, tar

from nsrun import kernel
from nsrun.image.store import Store
from nsrun.state import State

pytestmark = pytest.mark.live

SMALL = tar(directory("./", mode=0o755), entry("file", b"content\n"), symlink("link", "file"))


@pytest.fixture(scope="session")
def busybox_layer(busybox: str) -> bytes:
    return subprocess.run(["tar", "-C", busybox, "-c", "."], stdout=subprocess.PIPE, check=True, timeout=30).stdout


def load(host, tmp_path: pathlib.Path, layout: Layout, *options: object) -> dict:
    """Loads a layout and gives what `image inspect` says of it."""
    path = layout.write(tmp_path / f"layout{time.monotonic_ns()}")
    name = host.run("image", "load", *options, path).stdout.split()[0]
    return host.json("image", "inspect", name)[0]


def shell(layer: bytes, **process: Any) -> Layout:
    process.setdefault("Cmd", ["sleep", "60"])
    return Layout(layer, name="docker.io/library/box:1", **process)


def store(host) -> pathlib.Path:
    return host.root / "lib/images"


# ---- sources -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["gzip", "zstd", "plain"])
@pytest.mark.parametrize("source", ["directory", "archive", "archive.gz", "stdin", "pipe"])
def test_every_source(host, tmp_path, how, source):
    layout = Layout(SMALL, tar(entry("second", b"2")), how=how)
    if source == "directory":
        name = host.run("image", "load", layout.write(tmp_path / "layout")).stdout
    else:
        data = archive(layout.files())
        path = tmp_path / "image.tar"
        path.write_bytes(gzip.compress(data) if source.endswith("gz") else data)
        if source == "stdin":
            with open(path) as file:
                name = host.run("image", "load", "-", stdin=file).stdout
        elif source == "pipe":
            name = sh("sh", "-c", f"cat {path} | {NSRUN} image load -", env=host.env).stdout
        else:
            name = host.run("image", "load", path).stdout
    assert name == "t:1\n"
    host.run("image", "unpack", "t:1", tmp_path / "out")
    assert (tmp_path / "out/rootfs/link").read_text() == "content\n"
    assert (tmp_path / "out/rootfs/second").read_text() == "2"


def test_docker_save_archive(host, tmp_path):
    """manifest.json is followed, whatever links it contains; a repeated layer is there twice."""
    (tmp_path / "a.tar").write_bytes(docker_archive(SMALL, tar(entry("b", b"2")), SMALL, name="mine:2", linked=True))
    assert host.run("image", "load", tmp_path / "a.tar").stdout == "mine:2\n"
    image = host.json("image", "inspect", "mine:2")[0]
    assert [layer["diff_id"] for layer in image["layers"]] == [digest(SMALL), digest(tar(entry("b", b"2"))), digest(SMALL)]  # fmt: skip


def test_docker_media_types(host, tmp_path):
    layout = Layout(SMALL)
    kind = "application/vnd.docker."
    layout.layers[0]["mediaType"] = f"{kind}image.rootfs.diff.tar.gzip"

    def edit(manifest):
        manifest["mediaType"] = f"{kind}distribution.manifest.v2+json"
        manifest["config"]["mediaType"] = f"{kind}container.image.v1+json"

    layout.edit_manifest = edit
    layout.edit_index = lambda i: i["manifests"][0].update({"mediaType": f"{kind}distribution.manifest.v2+json"})
    assert load(host, tmp_path, layout)["layers"][0]["diff_id"] == digest(SMALL)


def two_platforms(path: pathlib.Path, nested: bool) -> dict[str, str]:
    """An index of linux/amd64 and linux/arm64/v8; architecture → config digest."""
    base, entries, found = Layout(SMALL), [], {}
    for architecture in ("arm64", "amd64"):
        layout = Layout(tar(entry("which", architecture.encode())))
        layout.config["architecture"] = architecture
        index = json.loads(layout.files()["index.json"])
        base.blobs.update(layout.blobs)
        platform = {
            "os": "linux",
            "architecture": architecture,
            **({"variant": "v8"} if architecture == "arm64" else {}),
        }
        entries.append({**index["manifests"][0], "platform": platform})
        found[architecture] = layout.manifest["config"]["digest"]
    attestation = {**entries[0], "platform": {"os": "unknown", "architecture": "unknown"}}

    def edit(index):
        inner = {"schemaVersion": 2, "manifests": [attestation, *entries]}
        index["manifests"] = [base.document(inner, "index")] if nested else inner["manifests"]
        index["manifests"][0].setdefault("annotations", {})["org.opencontainers.image.ref.name"] = "t:1"

    base.edit_index = edit
    base.write(path)
    return found


@pytest.mark.parametrize("nested", [False, True])
def test_platforms(host, tmp_path, nested):
    found = two_platforms(tmp_path / "l", nested)
    for platform in ("linux/arm64", "linux/arm64/v8", "linux/amd64"):
        host.run("image", "load", "--platform", platform, "-t", "p:1", tmp_path / "l")
        image = host.json("image", "inspect", "p:1")[0]
        assert f"sha256:{image['id']}" == found[platform.split("/")[1]]
        assert image["architecture"] == platform.split("/")[1]
    message = host.fails(125, "image", "load", "--platform", "linux/s390x", tmp_path / "l")
    assert "no image for linux/s390x" in message and "linux/arm64/v8" in message
    assert "OS/ARCHITECTURE" in host.fails(125, "image", "load", "--platform", "linux", tmp_path / "l")


# ---- names -------------------------------------------------------------------------------------------------


def test_names_as_people_know_them(host, tmp_path):
    image = load(host, tmp_path, Layout(SMALL, name="docker.io/library/mysql:8"))
    ident = image["id"]
    manifest = image["digests"][0]
    words = ["mysql:8", "library/mysql:8", "docker.io/library/mysql:8", "docker.io/mysql:8", ident, ident[:4], f"sha256:{ident}", f"mysql@{manifest}", f"mysql:8@{manifest}", manifest]  # fmt: skip
    for word in words:
        assert host.json("image", "inspect", word)[0]["id"] == ident, word
    assert host.run("image", "tag", "mysql:8", "localhost:5000/a/b").stdout == "localhost:5000/a/b:latest\n"
    host.run("image", "tag", ident[:6], "mysql")
    assert host.json("image", "inspect", "mysql")[0]["names"] == ["mysql:8", "mysql:latest", "localhost:5000/a/b:latest"]  # fmt: skip
    for word in ("mysql:9", "nothing", ident[:3], f"mysql@sha256:{'0' * 64}"):
        message = host.fails(125, "image", "inspect", word)
        assert "no image" in message and "mysql:8" in message
    for word in ("UPPER", "a//b", "a:", "../x", "-x", "a@sha256:12", "x" * 300, ""):
        host.fails(2, "image", "tag", "mysql:8", "--", word)
    assert "digest" in host.fails(2, "image", "tag", "mysql:8", f"a@sha256:{'0' * 64}")


def test_a_name_moves_and_the_old_image_stays_without(host, tmp_path):
    old = load(host, tmp_path, Layout(SMALL))
    new = load(host, tmp_path, Layout(tar(entry("other"))))
    assert host.json("image", "inspect", "t:1")[0]["id"] == new["id"] != old["id"]
    rows = host.run("image", "ls").stdout.splitlines()
    assert len(rows) == 3 and rows[2].startswith("- ")
    done = host.run("image", "prune")
    assert done.stdout.split() == [old["id"]] and "freed 8 B" in done.stderr
    assert [i["id"] for i in host.json("image", "ls")] == [new["id"]]


def test_ambiguous_id(host, tmp_path):
    """Two images whose ids begin with the same four digits."""
    found: dict[str, Layout] = {}
    for number in range(5000):  # four digits: two of about 300 are the same
        layout = Layout(SMALL, name="n:1", Labels={"n": str(number)})
        layout.files()
        ident = layout.manifest["config"]["digest"][7:]
        if ident[:4] in found:
            break
        found[ident[:4]] = layout
    one, two = (load(host, tmp_path, each)["id"] for each in (found[ident[:4]], layout))
    message = host.fails(125, "image", "inspect", ident[:4])
    assert "several" in message and one[:12] in message and two[:12] in message
    assert host.json("image", "inspect", one[:12])[0]["id"] == one


def test_history_and_labels_are_only_data(host, tmp_path):
    layout = Layout(SMALL, tar(entry("b")), Labels={"io.containers.volume": "/etc:/etc", "a": "\x1b[2J"})
    layout.config["history"] = [
        {"created_by": "ADD \x1b[31mred", "created": "2024-01-01T00:00:00Z"},
        {"created_by": "CMD", "empty_layer": True},
        {"created_by": "COPY b", "comment": None, "other": 5},
    ]
    load(host, tmp_path, layout)
    out = host.run("image", "history", "t:1").stdout
    assert "\x1b" not in out and "COPY b" in out.splitlines()[1] and out.splitlines()[-1].endswith("ADD  [31mred")
    assert [row["empty_layer"] for row in host.json("image", "history", "t:1")] == [False, True, False]


# ---- the store ---------------------------------------------------------------------------------------------


def test_layers_are_shared(host, tmp_path):
    shared = tar(entry("base", b"x" * 5000))
    one = load(host, tmp_path, Layout(shared, tar(entry("a")), name="a:1"))
    node = (store(host) / "layers" / digest(shared)[7:]).stat().st_ino
    two = load(host, tmp_path, Layout(shared, tar(entry("b", b"yy")), name="b:1"))
    assert one["layers"][0] == two["layers"][0]
    assert len(list((store(host) / "layers").iterdir())) == 3
    assert (store(host) / "layers" / digest(shared)[7:]).stat().st_ino == node
    assert "b:1" in host.run("image", "rm", "b:1").stdout
    assert len(list((store(host) / "layers").iterdir())) == 2
    host.run("image", "rm", "a:1")
    assert list((store(host) / "layers").iterdir()) == list((store(host) / "blobs/sha256").iterdir()) == []


def test_rm_by_name_and_id(host, tmp_path):
    ident = load(host, tmp_path, Layout(SMALL))["id"]
    host.run("image", "tag", "t:1", "u:1")
    assert host.run("image", "rm", "u:1").stdout == "u:1\n"
    host.run("image", "tag", "t:1", "u:1")
    assert "several names: t:1, u:1" in host.fails(125, "image", "rm", ident)
    assert host.run("image", "rm", "-f", ident[:12]).stdout.split() == ["t:1", "u:1", ident]
    assert host.json("image", "ls") == []
    message = host.run("image", "rm", "t:1", "u:1", check=False)
    assert message.returncode == 125 and message.stderr.count("nsrun: no image") == 2


def test_a_running_member_keeps_its_image(host, pod, tmp_path, busybox_layer):
    image = load(host, tmp_path, shell(busybox_layer))
    host.run("join", pod, "-d", "--name", "m", "--image", "box:1")
    assert "m" in host.fails(125, "image", "rm", "box:1") and "nsrun rm -f m" in host.fails(125, "image", "rm", "box:1")
    assert host.run("image", "prune", "-a").stdout == ""
    # another image takes the name: the member's own stays, nameless, even through prune
    load(host, tmp_path, Layout(SMALL, name="docker.io/library/box:1"))
    host.run("image", "prune")
    assert host.run("exec", "m", "cat", "/etc/passwd").stdout.startswith("root:")
    assert host.json("image", "inspect", image["id"])[0]["used_by"] == ["m"]
    host.run("kill", "m")
    host.run("wait", "m")
    assert image["id"] in host.run("image", "prune").stdout


def test_restart_keeps_the_image(host, pod, tmp_path, busybox_layer):
    """Whatever has the name now: a member restarts from the image it began with."""
    image = load(host, tmp_path, shell(busybox_layer, Cmd=["sh", "-c", "sleep 60"], Env=["WHICH=old"]))
    host.run("join", pod, "-d", "--restart", "always", "--name", "m", "--image", "box:1")
    load(host, tmp_path, shell(busybox_layer, Env=["WHICH=new"]))
    kill(host.member("m")["pid"])
    wait_for(lambda: host.member("m")["restarts"] == 1 and host.member("m")["status"] == "running", what="a restart")
    assert host.run("exec", "m", "sh", "-c", "echo $WHICH").stdout == "old\n"
    assert host.member("m")["image_id"] == image["id"]


def test_128_layers(host, pod, tmp_path, busybox_layer):
    layers = [busybox_layer, *(tar(entry(f"l/{n}", b"%d" % n), entry("last", b"%d" % n)) for n in range(127))]
    image = load(host, tmp_path, Layout(*layers, name="many:1"))
    assert len(image["layers"]) == 128
    out = host.run("join", pod, "--rm", "--image", "many:1", "--", "sh", "-c", "ls /l | wc -l; cat /last").stdout
    assert out.split() == ["127", "126"]
    host.run("image", "unpack", "many:1", tmp_path / "out")
    assert len(os.listdir(tmp_path / "out/rootfs/l")) == 127


@pytest.mark.parametrize("count", [2, 128])
def test_layers_in_one_string(host, tmp_path, count):
    """As kernels before 6.5 want them; there, test_128_layers takes this way by itself."""
    for number in range(count):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}/file").write_text(f"{number}")
        (tmp_path / f"{number}/own{number}").touch()
    lowers = [os.open(tmp_path / f"{number}", os.O_PATH) for number in range(count)]
    view = kernel.overlay_at_once(lowers)
    root = os.open(".", os.O_RDONLY, dir_fd=view)
    assert len(os.listdir(root)) == count + 1
    with open(os.open("file", os.O_RDONLY, dir_fd=root)) as file:
        assert file.read() == "0"
    for fd in [root, view, *lowers]:
        os.close(fd)


def test_concurrent_loads_removals_and_joins(host, pod, tmp_path, busybox_layer):
    """Two loaders, a remover and a joiner at once: a command works or says that there is no such image.

    They go on for six seconds, and on a slow machine until each has worked once.
    """
    paths = [shell(busybox_layer, Env=[f"N={n}"]).write(tmp_path / f"l{n}") for n in range(2)]
    end, odd, done_by = time.monotonic() + 6, [], dict.fromkeys(("load", "rm", "prune", "join"), 0)

    def again(*words: object) -> None:
        while time.monotonic() < end + (0 if all(done_by.values()) else 60):
            done = host.run(*words, check=False)
            done_by[words[1] if words[0] == "image" else "join"] += done.returncode == 0
            if done.returncode and "no image" not in done.stderr and "running members" not in done.stderr:
                odd.append((words, done.stdout, done.stderr))

    jobs = [("image", "load", "-t", "box:1", paths[0]), ("image", "load", "-t", "box:1", paths[1]), ("image", "rm", "-f", "box:1"), ("image", "prune", "-a"),
            ("join", pod, "--rm", "--image", "box:1", "--", "true")]  # fmt: skip
    threads = [threading.Thread(target=again, args=words) for words in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert odd == []
    assert all(done_by.values()), done_by
    host.run("image", "prune", "-a")
    assert host.json("image", "ls") == [] and list((store(host) / "layers").iterdir()) == []
    assert list((store(host) / "tmp").iterdir()) == []


def test_kill_during_load_loses_nothing(host, tmp_path, busybox_layer):
    """kill -9 at many moments: the image that was there stays whole, the next load works, prune leaves no litter."""
    load(host, tmp_path, Layout(SMALL, name="kept:1"))
    files = b"".join(entry(f"f/{n}", b"x" * 3000) for n in range(3000))
    path = Layout(busybox_layer, files + tar(), name="big:1").write(tmp_path / "big")
    begun = time.monotonic()
    host.run("image", "load", path)
    whole = time.monotonic() - begun
    host.run("image", "rm", "big:1")
    for number in range(20):
        process = host.background("image", "load", path, start_new_session=True)
        time.sleep(whole * (number + 1) / 20)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
        assert host.json("image", "inspect", "kept:1")[0]["names"] == ["kept:1"]
        if number % 5 == 4:  # it works on top of the remains
            host.run("image", "load", path)
            host.run("image", "unpack", "big:1", tmp_path / f"out{number}")
            assert len(os.listdir(tmp_path / f"out{number}/rootfs/f")) == 3000
            host.run("image", "rm", "big:1")
    host.run("image", "prune")
    assert list((store(host) / "tmp").iterdir()) == []
    assert {p.name for p in (store(host) / "layers").iterdir()} == {digest(SMALL)[7:]}
    assert len(list((store(host) / "blobs/sha256").iterdir())) == 2
    assert not list(store(host).rglob("*.tmp"))


def test_after_a_power_cut_short_files_are_found(host, pod, tmp_path, busybox_layer):
    """A layer that was written in another boot is measured at its first use; what is short is not used."""
    image = load(host, tmp_path, shell(busybox_layer))
    layer = store(host) / "layers" / image["layers"][0]["diff_id"][7:]
    assert (layer / "unsynced").exists()
    (layer / "unsynced").write_text("another boot")
    assert host.run("join", pod, "--rm", "--image", "box:1", "--", "true").returncode == 0
    assert not (layer / "unsynced").exists()

    (layer / "unsynced").write_text("another boot")  # several begin at the same time: one of them is first
    run = ("join", pod, "--rm", "--image", "box:1", "--", "true")
    for member in [host.background(*run, stderr=subprocess.PIPE) for _ in range(6)]:
        assert member.communicate(timeout=60)[1] == b"" and member.returncode == 0

    (layer / "unsynced").write_text("another boot")
    os.truncate(layer / "tree/bin/busybox", 4096)
    message = host.fails(125, "join", pod, "--image", "box:1", "--", "true")
    assert "damaged" in message and "load the image again" in message
    load(host, tmp_path, shell(busybox_layer))
    host.run("join", pod, "--rm", "--image", "box:1", "--", "true")


@pytest.mark.parametrize("how", ["gone", *range(3)])
def test_lost_names(host, tmp_path, how):
    """A flipped bit takes no image's name away unseen, and one file that is gone takes none with it."""
    layout = Layout(SMALL).write(tmp_path / "l")
    host.run("image", "load", layout)
    path = store(host) / "names.json"
    data = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
    else:
        at = data.index((b"t:1", b": ", b'"crc"')[how]) + 2
        data[at] ^= 1 << 1
        path.write_bytes(data)
    assert "names.json" in host.run("image", "ls").stderr
    assert "names.json" in host.fails(125, "image", "inspect", "t:1")
    ident = next((store(host) / "records").iterdir()).stem
    assert (
        host.run("image", "inspect", ident, check=False).returncode == 125
    )  # its names can't be told, but it is found:
    host.run("image", "unpack", ident, tmp_path / "out")
    for _ in range(2):
        assert host.run("image", "prune").stdout == ""
        assert len(host.json("image", "ls")) == 1 and len(list((store(host) / "layers").iterdir())) == 1
    host.run("image", "load", layout)
    assert host.json("image", "inspect", "t:1")[0]["names"] == ["t:1"]
    host.run("image", "prune", "-a")
    assert host.json("image", "ls") == [] and "lost" not in host.run("image", "prune").stderr


def test_a_list_beside_a_lost_file(host, pod, tmp_path, busybox_layer):
    """What stands beside a running member's data was lost: images are listed all the same, and none is removed."""
    load(host, tmp_path, shell(busybox_layer))
    host.run("join", pod, "-d", "--name", "m", "--image", "box:1", "--", "sleep", "1000")
    next(iter(host.root.glob("lib/upper/*/about"))).unlink()
    done = host.run("image", "ls")
    assert "box" in done.stdout and "about is gone" in done.stderr
    assert "about is gone" in host.fails(125, "image", "rm", "-f", "box:1")


def test_every_byte_of_a_record_counts(host, tmp_path):
    """Whichever bit of it is flipped, the image is named as damaged: none is taken for another."""
    host.run("image", "load", Layout(SMALL).write(tmp_path / "l"))
    images = Store(State(str(host.root)))
    (path,) = (store(host) / "records").iterdir()
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        broken: list[str] = []
        assert images.all(broken) == [] and path.name in broken[0], at


@pytest.mark.parametrize("broken", ["{", "[]", "", '{"a": '])
def test_damaged_notes_are_repaired(host, tmp_path, broken):
    """Names and records that can't be read are named, and prune and a load bring the store back."""
    layout = Layout(SMALL).write(tmp_path / "l")
    host.run("image", "load", layout)
    (store(host) / "names.json").write_text(broken)
    assert host.run("image", "prune").stdout == ""  # without names, every image would be one without a name
    assert len(host.json("image", "ls")) == 1
    host.run("image", "load", layout)
    assert host.json("image", "inspect", "t:1")[0]["names"] == ["t:1"]
    record = next((store(host) / "records").iterdir())
    record.write_text(broken)
    host.run("image", "prune")
    host.run("image", "load", layout)
    host.run("image", "unpack", "t:1", tmp_path / "out")


@pytest.mark.parametrize("what", ["data", "inodes"])
def test_a_full_disk(host, tmp_path, what):
    """Said as it is, nothing half is left, and what was there stays."""
    (host.root / "lib").mkdir(mode=0o700)
    sh("mount", "-t", "tmpfs", "-o", "size=6m,nr_inodes=300", "tmpfs", host.root / "lib")
    try:
        load(host, tmp_path, Layout(SMALL, name="kept:1"))
        many = b"".join(entry(f"{n}") for n in range(400))
        layer = (
            tar(entry("a", os.urandom(3 << 20)), entry("b", os.urandom(5 << 20))) if what == "data" else many + tar()
        )
        path = Layout(SMALL, layer, name="big:1").write(tmp_path / "l")
        message = host.fails(125, "image", "load", path)
        assert "layer 2" in message and "No space left" in message
        assert [image["names"] for image in host.json("image", "ls")] == [["kept:1"]]
        assert not list((store(host) / "tmp").iterdir()) and len(list((store(host) / "layers").iterdir())) == 1
        host.run("image", "unpack", "kept:1", tmp_path / "out")
    finally:
        sh("umount", host.root / "lib")


def test_nothing_outside_root_can_read_the_store(host, tmp_path):
    load(host, tmp_path, Layout(tar(entry("suid", b"#!", mode=0o4755))))
    assert (host.root / "lib").stat().st_mode & 0o777 == 0o700
    assert store(host).stat().st_mode & 0o777 == 0o700
    host.root.chmod(0o755)  # even where the directory above lets everybody in
    for words in (["image", "ls"], ["image", "inspect", "t:1"], ["explain", "join", "p", "--image", "t:1"], ["image", "rm", "t:1"]):  # fmt: skip
        done = sh(
            "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", NSRUN, *words, env=host.env, check=False
        )
        # nobody has a store of his own, which is empty, and no subordinate ids
        assert "t:1" not in done.stdout and done.returncode == (0 if words == ["image", "ls"] else 125), done
    assert sh("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", NSRUN, "_complete", "image", "rm", "", env=host.env).stdout == ""  # fmt: skip


def test_memory_stays_small(host, tmp_path):
    """150 MiB, whatever a layer's size: a file of 200 MB that zstd can't make smaller, and 30 000 names."""
    names = b"".join(entry(f"d{n % 100}/{n:0200}") for n in range(30_000))
    path = Layout(tar(entry("large", os.urandom(200_000_000))), tar(names), how="zstd").write(tmp_path / "l")
    # a program of its own waits: what this process has used would count (getrusage(2): ru_maxrss outlives an exec)
    wait = "import os, subprocess, sys; p = subprocess.Popen(sys.argv[1:]); r = os.wait4(p.pid, 0); print(r[1], r[2].ru_maxrss)"
    done = sh(sys.executable, "-c", wait, NSRUN, "image", "load", path, env=host.env)
    status, kib = map(int, done.stdout.splitlines()[-1].split())
    assert status == 0 and kib < 150 << 10, f"status {status}, {kib >> 10} MiB"


# ---- config → process (C1–C6) ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entrypoint", "cmd", "options", "command", "args"),
    [
        (["/bin/echo", "e"], ["c"], [], [], "e c"),
        (["/bin/echo", "e"], ["c"], [], ["mine"], "e mine"),
        (["/bin/echo", "e"], ["c"], ["--entrypoint", "printf"], ["%s", "x"], "x"),
        (None, ["echo", "c"], [], [], "c"),
        (None, ["echo", "c"], [], ["echo", "mine"], "mine"),
        (["echo", "e"], None, [], [], "e"),
        (["false"], ["c"], ["--entrypoint", "echo"], [], ""),
        (["false"], ["c"], ["--entrypoint", ""], ["echo", "x"], "x"),
    ],
)
def test_entrypoint_and_command(host, pod, tmp_path, busybox_layer, entrypoint, cmd, options, command, args):
    load(host, tmp_path, shell(busybox_layer, Entrypoint=entrypoint, Cmd=cmd))
    words = ["--", *command] if command else []
    assert host.run("join", pod, "--rm", *options, "--image", "box:1", *words).stdout.strip() == args


def test_no_command_at_all(host, pod, tmp_path, busybox_layer):
    load(host, tmp_path, shell(busybox_layer, Cmd=None))
    assert "no command of its own" in host.fails(2, "join", pod, "--image", "box:1")


def test_environment_directory_user_and_signal(host, pod, tmp_path, busybox_layer):
    load(
        host,
        tmp_path,
        shell(
            busybox_layer,
            Env=["PATH=/bin", "A=1", "B=x y=z", "EMPTY="],
            WorkingDir="/var/made/by us",
            User="www-data",
            StopSignal="SIGRTMIN+3",
            ExposedPorts={"80/tcp": {}},
        ),
    )
    script = 'echo "$A|$B|${EMPTY-unset}|$PATH|$HOME|$PWD|$(id -u):$(id -g):$(id -G)"'
    run = ("join", pod, "--rm", "--image", "box:1")
    assert host.run(*run, "--", "sh", "-c", script).stdout.strip() == "1|x y=z||/bin|/var/www|/var/made/by us|33:33:33 29"  # fmt: skip
    out = host.run(*run, "-e", "A=2", "-w", "/tmp", "-u", "7:8", "--", "sh", "-c", script).stdout.strip()
    assert out == "2|x y=z||/bin|/|/tmp|7:8:8"
    host.run("join", pod, "-d", "--name", "m", "--image", "box:1", "--", "sh", "-c", "trap 'exit 9' RTMIN+3 37; while :; do sleep 0.05; done")  # fmt: skip
    host.run("stop", "-t", "8", "m")
    assert host.member("m")["exit_code"] == 9


@pytest.mark.parametrize(
    ("user", "ids"),
    [("5", "5:0:0"), ("5:6", "5:6:6"), ("www-data:nogroup", "33:65534:65534"), ("33", "33:33:33 29")],
)
def test_users(host, pod, tmp_path, busybox_layer, user, ids):
    load(host, tmp_path, shell(busybox_layer, User=user))
    out = host.run("join", pod, "--rm", "--image", "box:1", "--", "sh", "-c", "echo $(id -u):$(id -g):$(id -G)").stdout
    assert out.strip() == ids


@pytest.mark.parametrize("user", ["nobody-here", "www-data:nothing", "4294967296", "-1", "5:-1"])
def test_unknown_users(host, pod, tmp_path, busybox_layer, user):
    load(host, tmp_path, shell(busybox_layer, User=user))
    assert repr(user.split(":")[-1])[1:-1] in host.fails(125, "join", pod, "--image", "box:1", "--", "true")


def test_volumes_are_seeded_and_the_members_own(host, pod, tmp_path, busybox_layer):
    data = tar(
        directory("data", mode=0o1750, uid=33, gid=7),
        entry("data/seed", b"from the image", mode=0o640, uid=33),
        symlink("data/link", "seed"),
        hardlink("data/other", "data/seed"),
    )
    layout = Layout(busybox_layer, data, name="box:1", Volumes={"/data": {}, "/fresh": {}}, Cmd=["sleep", "60"])
    load(host, tmp_path, layout)
    for name in ("a", "b"):
        host.run("join", pod, "-d", "--restart", "always", "--name", name, "--image", "box:1")
        out = host.run("exec", name, "sh", "-c", "stat -c '%a %u %g %h' /data /data/seed; cat /data/link; mount | grep -c -e ' /data ' -e ' /fresh '").stdout  # fmt: skip
        assert out.split("\n")[:2] == ["1750 33 7 2", "640 33 0 2"]
        assert out.split("\n")[2] == "from the image2"
    host.run("exec", "a", "sh", "-c", "echo mine >/data/seed; echo x >/fresh/x")
    assert host.run("exec", "b", "cat", "/data/seed").stdout == "from the image"
    kill(host.member("a")["pid"])
    wait_for(lambda: host.member("a")["restarts"] == 1 and host.member("a")["status"] == "running", what="a restart")
    assert host.run("exec", "a", "cat", "/data/seed", "/fresh/x").stdout == "mine\nx\n"
    assert host.run("join", pod, "--rm", "--image", "box:1", "-v", f"{tmp_path}:/data", "--", "ls", "/data").stdout.split() != ["link", "other", "seed"]  # fmt: skip
    host.run("rm", "-f", "a", "b")
    assert not list((host.root / "lib/upper").iterdir())


def test_named_volume_is_seeded_once(host, pod, tmp_path, busybox_layer):
    layout = Layout(busybox_layer, tar(entry("data/seed", b"1")), name="box:1")
    load(host, tmp_path, layout)
    run = ("join", pod, "--rm", "--image", "box:1", "-v", "keep:/data", "--", "sh", "-c")
    assert host.run(*run, "cat /data/seed; echo 2 >/data/seed").stdout == "1"
    assert host.run(*run, "cat /data/seed").stdout == "2\n"
    assert host.run("join", pod, "--rm", "--image", "box:1", "-v", "bare:/data:nocopy", "--", "ls", "/data").stdout == ""  # fmt: skip


def test_layers_are_never_written(host, pod, tmp_path, busybox_layer):
    image = load(host, tmp_path, shell(busybox_layer))
    tree = store(host) / "layers" / image["layers"][0]["diff_id"][7:] / "tree"
    before = {p: (p.lstat().st_mtime_ns, p.lstat().st_size) for p in tree.rglob("*")}
    host.run("join", pod, "--rm", "--image", "box:1", "--", "sh", "-c", "echo evil >/etc/passwd; rm -r /bin/* /var; mkdir /new")  # fmt: skip
    assert {p: (p.lstat().st_mtime_ns, p.lstat().st_size) for p in tree.rglob("*")} == before
    assert "--writable needs --rootfs" in host.fails(125, "join", pod, "--writable", "--image", "box:1")
    done = host.run("join", pod, "--rm", "--read-only", "--image", "box:1", "--", "touch", "/x", check=False)
    assert "Read-only file system" in done.stderr


def test_bundle_of_an_image(host, pod, tmp_path, busybox_layer):
    """DIR/rootfs and DIR/config.json: it runs as the image would."""
    load(host, tmp_path, shell(busybox_layer, Entrypoint=["echo"], Cmd=["from", "config"], User="www-data", Labels={"org.opencontainers.image.title": "b", "run.oci.hooks.stdout": "/etc/x"}))  # fmt: skip
    host.run("image", "unpack", "box:1", tmp_path / "bundle")
    config = json.loads((tmp_path / "bundle/config.json").read_text())
    assert config["process"]["args"] == ["echo", "from", "config"] and config["process"]["user"]["uid"] == 33
    assert config["annotations"]["org.opencontainers.image.title"] == "b"
    assert not [key for key in config["annotations"] if not key.startswith("org.opencontainers.image.")]
    assert host.run("join", pod, "--rm", "--bundle", tmp_path / "bundle").stdout == "from config\n"
    message = host.fails(125, "image", "unpack", "box:1", tmp_path / "bundle")
    assert "not an empty directory" in message


def test_an_unpacked_image_is_for_its_owner_alone(host, tmp_path):
    """Set-user-ID programs of root's: whatever the umask, and whatever directory was given."""
    load(host, tmp_path, Layout(tar(directory("./", mode=0o755), entry("su", b"#!", mode=0o4755))))
    (tmp_path / "in").mkdir(mode=0o755)
    for number, umask in enumerate((0, 0o022, 0o077)):
        target = tmp_path / f"in/{number}/new"
        host.run("image", "unpack", "t:1", target, umask=umask)
        assert target.stat().st_mode & 0o7777 == 0o700
        assert (target / "rootfs/su").stat().st_mode & 0o7777 == 0o4755
        assert (target / "rootfs").stat().st_mode & 0o7777 == 0o755
    for mode, owner in ((0o755, 0), (0o711, 0), (0o710, 0), (0o777, 0), (0o700, 12001)):
        (tmp_path / "given").mkdir(exist_ok=True)
        (tmp_path / "given").chmod(mode)
        os.chown(tmp_path / "given", owner, 0)
        message = host.fails(125, "image", "unpack", "t:1", tmp_path / "given")
        assert "chmod 700" in message and list((tmp_path / "given").iterdir()) == []
        assert (tmp_path / "given").stat().st_mode & 0o7777 == mode
    os.chown(tmp_path / "given", 0, 0)
    host.run("image", "unpack", "t:1", tmp_path / "given")
    assert (tmp_path / "given").stat().st_mode & 0o7777 == 0o700


def test_explain_image_without_touching(host, tmp_path, busybox_layer):
    load(host, tmp_path, shell(busybox_layer))
    host.run("pod", "create", "--network", "none", "p")
    out = host.run("explain", "join", "p", "--image", "box:1").stdout
    assert "overlay" in out and host.json("ls", "-a") == []


def test_directories_and_volumes_stay_inside(host, pod, tmp_path, busybox_layer):
    """WorkingDir below a link to the host (podman GHSA-q6r4-3wmg-fwcq); a volume with dots (CVE-2022-23648) or below a link."""
    victim = tmp_path / "victim"
    victim.mkdir()
    layer = tar(symlink("out", victim.as_posix()), directory("etc/x"))
    for process in ({"WorkingDir": "/out/made"}, {"Volumes": {"/../../../etc/x": {}}}, {"Volumes": {"/out/v": {}}}, {"WorkingDir": "/proc/self/fd/3"}):  # fmt: skip
        load(host, tmp_path, Layout(busybox_layer, layer, name="box:1", **process))
        done = host.run("join", pod, "--rm", "--image", "box:1", "--", "pwd", check=False)
        assert done.returncode in (0, 125), done
        assert list(victim.iterdir()) == []
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("kind", ["fifo", "link to the kernel", "link to the host", "directory", "3 MiB"])
def test_accounts_that_can_not_be_read(host, pod, tmp_path, busybox_layer, kind):
    """/etc/passwd of an image may be anything (CVE-2024-9676): it is read inside the root, if it is a small file."""
    # a link that leads nowhere inside the root is no file: then the user is unknown
    made, said = {
        "fifo": (entry("etc/passwd", type="6"), "accounts can't be read"),
        "link to the kernel": (symlink("etc/passwd", "/proc/kmsg"), "'daemon'"),
        "link to the host": (symlink("etc/passwd", "../../../../../../etc/hostname"), "'daemon'"),
        "directory": (directory("etc/passwd"), "accounts can't be read"),
        "3 MiB": (entry("etc/passwd", b"x" * (3 << 20)), "accounts can't be read"),
    }[kind]
    load(host, tmp_path, Layout(busybox_layer, tar(entry("etc/.wh.passwd")), tar(made), name="box:1", User="daemon"))
    message = host.fails(125, "join", pod, "--image", "box:1", "--", "id")
    assert said in message


def test_completion_knows_images(host, tmp_path):
    load(host, tmp_path, Layout(SMALL, name="docker.io/library/mysql:8"))
    for words in (["join", "--image", "my"], ["image", "rm", ""], ["image", "inspect", "mysql:"]):
        assert host.run("_complete", *words).stdout.split() == ["mysql:8"], words


# ---- bad words ---------------------------------------------------------------------------------------------


def test_bad_words(host, tmp_path):
    assert "does not exist" in host.fails(125, "image", "load", tmp_path / "nothing")
    assert "neither" in host.fails(125, "image", "load", tmp_path)
    assert "so it is not an image" in host.fails(125, "image", "load", tmp_path)
    host.fails(2, "image", "load", "--max-size", "much", tmp_path)
    host.fails(2, "image", "load", "--max-ratio", "0", tmp_path)
    host.fails(2, "image", "load", "-t", "UPPER", tmp_path)
    host.fails(2, "image", "nonsense")
    assert "no image" in host.fails(125, "image", "unpack", "x:1", tmp_path / "o")
    assert not (tmp_path / "o").exists()
    path = Layout(SMALL).write(tmp_path / "l")
    assert "budget" in host.fails(125, "image", "load", "--max-size", "4", path)
    assert host.json("image", "ls") == []


def test_a_long_name_list_tells_what_there_is(host, tmp_path, pod):
    load(host, tmp_path, Layout(SMALL))
    message = host.fails(125, "join", pod, "--image", "msql:8", "--", "true")
    assert "no image 'msql:8'" in message and "t:1" in message and "image pull" in message


# ---- the confined writer -----------------------------------------------------------------------------------


def test_who_reads_tars_is_confined(host, tmp_path):
    """Looked at while it works: five capabilities, a seccomp filter, no new privileges, a root of its own, few descriptors."""
    one = b"".join(entry(f"d{n % 50}/{n}", b"x" * 100) for n in range(500))
    path = Layout(*(one * 60 + entry(f"z{n}") + tar() for n in range(2)), how="plain").write(tmp_path / "l")
    process = host.background("image", "load", path, stdout=subprocess.DEVNULL)
    seen = []
    while process.poll() is None and len(seen) < 3:
        for pid in pathlib.Path(f"/proc/{process.pid}/task").glob("*/children"):
            for child in pid.read_text().split():
                try:
                    proc = pathlib.Path(f"/proc/{child}")
                    status = dict(
                        line.split(":\t", 1) for line in (proc / "status").read_text(errors="replace").splitlines()
                    )
                    if status["Seccomp"] != "2":  # not yet, or not our program
                        continue
                    seen.append((status["CapEff"], status["CapBnd"], status["NoNewPrivs"], len(os.listdir(proc / "fd")), os.listdir(proc / "root")))  # fmt: skip
                    assert (proc / "ns/mnt").readlink() != pathlib.Path("/proc/self/ns/mnt").readlink()
                except (OSError, KeyError):
                    continue
    assert process.wait(timeout=30) == 0
    assert seen
    chown, dac_override, fowner, fsetid, setfcap = 0, 1, 3, 4, 31
    five = sum(1 << bit for bit in (chown, dac_override, fowner, fsetid, setfcap))
    for effective, _bounding, no_new_privs, descriptors, root in seen:
        assert int(effective, 16) & ~five == 0
        assert no_new_privs == "1"
        assert descriptors <= 8
        assert set(root) <= {f"d{n}" for n in range(50)} | {"z0", "z1"}
