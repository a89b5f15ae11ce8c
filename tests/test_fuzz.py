# SPDX-License-Identifier: Apache-2.0
"""Fuzzing: twelve seconds in CI, some elsewhere (NSRUN_FUZZ=SECONDS chooses; a minute for who looks for faults)."""

from __future__ import annotations

import copy
import gzip
import json
import os
import pathlib
import random
import shutil
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import IN_CI, arguments, need, sh
from corpus import CASES
from images import END, Layout, directory, entry, hardlink, symlink, tar
from test_corpus import fingerprint

from nsrun.errors import NsrunError
from nsrun.image import bundle, documents, references
from nsrun.image.documents import Config, Manifest, Platform

HERE = pathlib.Path(__file__).parent
SECONDS = float(os.environ.get("NSRUN_FUZZ") or (12 if IN_CI else 5))


#: A program between: ru_maxrss, which the fuzzer's limit is about, is inherited from who forks, and we may be large.
SMALL = ("sh", "-c", '"$@"; exit $?', "sh")


def fuzz(program: pathlib.Path, corpus: pathlib.Path, length: int, least: int, seconds: float = SECONDS) -> None:
    """Run a fuzzer for some seconds, and on a busy machine until it has tried `least` inputs."""
    limits = [f"-max_total_time={int(seconds)}", f"-max_len={length}", "-timeout=10", "-rss_limit_mb=1000"]
    runs = 0
    for _ in range(10):
        words = [*SMALL, program, *limits, f"-artifact_prefix={corpus.parent}/", corpus]
        done = sh(*words, timeout=seconds + 60, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        runs += int(done.stderr.rpartition("Done ")[2].split()[0])
        if runs > least:
            return
    raise AssertionError(f"{runs} runs")


def seeds(path: pathlib.Path) -> list[bytes]:
    """The plain layers of the corpus that are small."""
    found = set()
    for case in CASES:
        if case.name.startswith("bomb"):
            continue
        case.build(path / case.name, "/victim")
        blobs = (path / case.name / "blobs/sha256").glob("*") if (path / case.name).is_dir() else [path / case.name]
        for blob in blobs:
            data = blob.read_bytes()[: 1 << 20]
            try:
                data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
            except (OSError, EOFError, zlib.error):
                continue
            if b"ustar" in data[:2048] and len(data) <= 20_000:
                found.add(data)
    shutil.rmtree(path)
    return sorted(found)


def test_tar_reader(tmp_path):
    """libFuzzer over csrc/tar.h, with ASan and UBSan."""
    need(shutil.which("clang"), "clang is not installed", ".ci/deps test")
    program = tmp_path / "tar-fuzzer"
    flags = ["-g", "-O1", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=undefined"]
    sh("clang", *flags, f"-I{HERE.parent}/csrc", HERE / "fuzz/tar.c", "-o", program, timeout=120)
    (tmp_path / "seeds").mkdir()
    found = seeds(tmp_path / "corpus")
    assert len(found) > 60
    for number, data in enumerate(found):
        (tmp_path / f"seeds/{number}").write_bytes(data)
    fuzz(program, tmp_path / "seeds", 20000, 1000)


def test_what_init_and_door_read(tmp_path):
    """libFuzzer over csrc/decode.h, with ASan and UBSan, from real plans and a request."""
    from test_plan import PLANS

    from nsrun import run

    need(shutil.which("clang"), "clang is not installed", ".ci/deps test")
    program = tmp_path / "decode-fuzzer"
    flags = ["-g", "-O1", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=undefined"]
    sh("clang", *flags, f"-I{HERE.parent}/csrc", HERE / "fuzz/decode.c", "-o", program, timeout=120)
    (tmp_path / "seeds").mkdir()
    nothing = type("F", (), {"fd": lambda s, n: 99, "text": lambda s, t: t})()
    for name, make in PLANS.items():
        (tmp_path / "seeds" / name).write_bytes(b"\1" + run.encode(make().init_steps(), nothing)[8:])
    numbers = b"".join(struct.pack("=I3i", 3, 1, 2, 3) for _ in range(3))
    strings = b"".join(struct.pack("=I", 8) + b"one\0two\0" for _ in range(3))
    (tmp_path / "seeds/request").write_bytes(b"\0" + numbers + strings)
    fuzz(program, tmp_path / "seeds", 8000, 10_000)


@pytest.mark.parametrize("which", [[], ["-DOCI"]], ids=["nsrun", "nsrun-oci"])
def test_what_the_front_does(which, tmp_path):
    """libFuzzer over the steps of compiled plans, with ASan and UBSan, from one step of each kind and from all of them."""
    from nsrun.run import replay

    need(shutil.which("clang"), "clang is not installed", ".ci/deps test")
    program = tmp_path / "front-fuzzer"
    flags = ["-g", "-O1", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=undefined"]
    sh("clang", *flags, *which, f"-I{HERE.parent}/csrc", HERE / "fuzz/front.c", "-o", program, timeout=120)
    (tmp_path / "seeds").mkdir()
    plain: dict[str, Any] = {"i": 20, "s": "/a/b", "l": ["one", "two"], "b": [40, 41, 42]}
    large: dict[str, Any] = {"i": 20, "s": "/" + "x" * 4200, "l": ["x"] * 200, "b": [20] * 200}
    steps = {
        f"large {name}": replay.encoded(name, *map(large.__getitem__, kinds))
        for name, (_, kinds) in replay.REPLAY.items()
        if kinds.count("s") < 2
    }
    steps |= {name: replay.encoded(name, *map(plain.__getitem__, kinds)) for name, (_, kinds) in replay.REPLAY.items()}
    if which:
        first, second, third = b'{"a":"c1","process":{"args":', b',"env":', b'},"mounts":[{"a":1}, {"b":2}]}'
        at = len(first + second) + third.index(b"[") + 1
        regions, mounts = [6, 2, 0], [at, at + 7, at + 9, at + 16]
        steps["config"] = replay.encoded("own_name", 0, 2) + replay.encoded("config", first, second, third, 0, regions, mounts, [0, 1])  # fmt: skip
        steps["names"] = replay.encoded("names", [0, 60, -1, 100]) + replay.encoded("file", "/a", bytes(100))
        steps["make_cgroup"] = replay.encoded("make_cgroup", "/sys/fs/cgroup/a/b/c", 14, 1, 20) + replay.encoded("make_cgroup", "/c/d", 2, 2, 21)  # fmt: skip
        steps["leave"] = replay.encoded("leave", bytes(100), bytes(20), [0, 80, 0, 1, 8, 5, 0, 92, 31], 0)
        steps["made"] = steps["config"] + replay.encoded("home_of_image", "HOME=/", "/r", b"") + replay.encoded("make_container") + replay.encoded("note", "/a/config", '"a": [\1a], "b": [\1e], "p": \1i, "s": \1t}') + steps["leave"]  # fmt: skip
    steps["note"] = replay.encoded("note", "/a/note", '"a": [\1c], "b": \1p, "c": [\1h, \1s, \1g]}')
    steps["fresh"] += replay.encoded("memory", "name", bytes(200), 20)
    steps["all"] = b"".join(data for name, data in steps.items() if not name.startswith("large"))
    for name, data in steps.items():
        (tmp_path / f"seeds/{name}").write_bytes(b"\x10" + data + bytes(64))
    fuzz(program, tmp_path / "seeds", 8000, 10_000, SECONDS / 3)


#: Texts of which a file of `exec --process` may be made; frame of tests/fuzz/process.c.
_PROCESS = ['"user":{"uid":0}', '"cwd":"/"', '"args":["sh","-c","a\\u003cb\\n\\"\\\\\\/\x7f"]', '"env":["A=b",""]', '"args":[]', '"env":[]', '"env":null', '"args":["\\u0000"]', '"args":["é"]',
            '"args":["\\ud83d\\ude00","\\u00e9","\\u007F"]', '"user":{"uid":01}', '"cwd":"/x"', '"ar\\u0067s":["z"]', '"x":1', ",", "{", "}", "[", "]", '"', "\\", " ", "\n", ":", "\t", "1"]  # fmt: skip


def _process_files(rng: random.Random) -> Iterator[bytes]:
    frame, args, env = _PROCESS[:2], _PROCESS[2], _PROCESS[3]
    while True:
        parts = (
            frame
            + [rng.choice([args, args, *_PROCESS[4:10]])]
            + ([rng.choice([env, *_PROCESS[5:7]])] if rng.random() < 0.7 else [])
        )
        if rng.random() < 0.3:
            rng.shuffle(parts)
        if rng.random() < 0.2:
            parts.insert(rng.randrange(len(parts)), rng.choice(_PROCESS))
        text = "{" + ",".join(parts) + "}" + "\n" * rng.randrange(3)
        if rng.random() < 0.5:
            at = rng.randrange(len(text))
            text = text[:at] + rng.choice([*_PROCESS, "", ""]) + text[at + rng.randrange(3) :]
        data = text.encode()
        yield data if rng.random() < 0.9 else data[: rng.randrange(len(data) + 1)]


def test_what_a_file_of_exec_says(tmp_path):
    """csrc/process.h: libFuzzer, with ASan and UBSan; and what it takes, Python takes, and reads the same."""
    from nsrun.errors import BadInput
    from nsrun.oci import config
    from nsrun.oci.leave import members
    from nsrun.state import codec

    need(shutil.which("clang"), "clang is not installed", ".ci/deps test")
    flags = ["-g", "-O1", "-fno-sanitize-recover=undefined", f"-I{HERE.parent}/csrc", HERE / "fuzz/process.c", "-o"]
    sh("clang", "-fsanitize=fuzzer,address,undefined", *flags, tmp_path / "process-fuzzer", timeout=120)
    sh("clang", "-DPRINT", "-fsanitize=address,undefined", *flags, tmp_path / "print", timeout=120)
    seed = random.randrange(1 << 30)
    made = _process_files(random.Random(seed))
    files = [next(made) for _ in range(4000)]
    files += [("{" + ",".join(_PROCESS[:3]) + "}").encode() + end for end in (b" ", b"\t\n", b"\r\n", b"\n\n ")]
    (tmp_path / "seeds").mkdir()
    for number, data in enumerate(files[:200]):
        (tmp_path / f"seeds/{number}").write_bytes(data)
    fuzz(tmp_path / "process-fuzzer", tmp_path / "seeds", 2000, 10_000, SECONDS / 3)
    given = b"".join(struct.pack("=I", len(data)) + data for data in files)
    out = subprocess.run([tmp_path / "print"], input=given, stdout=subprocess.PIPE, check=True, timeout=60).stdout
    at, taken = 0, 0

    def strings() -> list[str]:
        nonlocal at
        (size,) = struct.unpack_from("=I", out, at)
        at += 4 + size
        return out[at - size : at].decode().split("\0")[:-1]

    for data in files:
        (is_taken,) = struct.unpack_from("=I", out, at)
        at += 4
        try:
            found = config.load_process(codec.loads(data.decode()), "it")
        except (BadInput, ValueError):
            found = {}
        what = f"seed {seed}: {data!r}"
        if is_taken:
            taken += 1
            assert found and members(found) == _PROCESS[:2], what
            assert (strings(), strings()) == (found["args"], found.get("env") or []), what
        elif (
            found
            and members(found) == _PROCESS[:2]
            and data.isascii()
            and data.startswith(b"{" + ",".join(_PROCESS[:3]).encode() + b"}")
        ):
            raise AssertionError(f"not taken: {what}")
    assert at == len(out) and 200 < taken < len(files)


def test_programs_that_stop_at_undefined_behaviour(host, alice, busybox, box):
    """All of them, built with UBSan (they have no libc for its messages: it traps), do what the others do."""
    flags = (
        "-std=gnu11 -O1 -g -ffreestanding -fno-builtin -fno-stack-protector -fno-pie -static -nostdlib -nostartfiles"
    )
    flags += " -fsanitize=undefined,bounds -fsanitize-undefined-trap-on-error"
    programs = host.root / "programs"
    programs.mkdir(mode=0o755)
    for name in ("pause", "init", "monitor", "unpack", "door", "forward"):
        sh("cc", *flags.split(), "-o", programs / f"nsrun-{name}", HERE.parent / f"csrc/{name}.c", timeout=60)
    start = f"import sys; from nsrun import kernel; kernel.LIBEXEC = {str(programs)!r}; from nsrun.cli import main; sys.exit(main())"

    def run(*words: object, check: bool = True, who: Any = host, **kwargs: Any) -> Any:
        env = {**who.env, **kwargs.pop("env", {})}
        return sh(*who.words(sys.executable, "-c", start, *arguments(*words)), env=env, cwd="/", check=check, **kwargs)

    run("pod", "create", "--network", "none", "--sysctl", "net.core.somaxconn=321", "pause")
    run(
        "join pause -d --name m --tmpfs /t:size=1m -u 33 --ulimit nofile=64:64 --rootfs {} sh -c 'echo out; sleep 1000'",
        busybox,
    )
    assert run("exec", "-u", "0", "m", "id", "-u").stdout == "0\n"
    assert (
        run(
            "join", "pause", "-i", "--pid", "nested", "--read-only", "--rootfs", busybox, "cat", input="x" * 200_000
        ).stdout
        == "x" * 200_000
    )
    assert run("join", "pause", "--rootfs", busybox, "nothing", check=False).returncode == 127
    layout = Layout(tar(directory("d"), entry("d/f", b"x"), symlink("l", "d"), hardlink("h", "d/f")), name="u:1").write(
        host.root / "l"
    )
    assert run("image", "load", layout).stdout == "u:1\n"
    run("stop", "-t", "0", "m")
    run("pod", "stop", "pause")
    run("pod", "create", "--network", "none", "hers", env={"SUDO_UID": str(alice.uid)})
    words = ("join", "hers", "--rm", "-i", "--image", box, "--", "sh", "-c", "cat; exit 5")
    done = run(*words, who=alice, input="x" * 200_000, check=False)
    assert (done.returncode, done.stdout) == (5, "x" * 200_000)
    run("join", "hers", "-d", "--name", "n", "--pid", "nested", "--image", box, "--", "sleep", "1000", who=alice)
    assert run("exec", "n", "id", "-u", who=alice).stdout == "0\n"
    run("pod", "rm", "-f", "hers")


JUNK: list[Any] = [None, True, 0, -1, 1 << 63, 1e308, "", "x", "\0", "../../etc", "/", "a\nb", "sha256:" + "0" * 64, [], {}, [[]], [None], {"": None}, "4294967296", "é" * 5000,
                   [1], ["a\0"], {"/etc": {}}, ["A=b", "=", "B"]]  # fmt: skip


def spoil(value: Any, rng: random.Random) -> Any:
    """The same document with some parts replaced, removed, doubled or moved."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        places: list[tuple] = []

        def walk(node: Any, places: list = places) -> None:
            for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
                places.append((node, key))
                walk(node[key])

        walk(value)
        if not places:
            return copy.deepcopy(rng.choice(JUNK))
        node, key = rng.choice(places)
        kind = rng.randrange(5)
        if kind == 0:
            del node[key]
        elif kind == 1:
            other, at = rng.choice(places)
            try:
                node[key] = copy.deepcopy(other[at])
            except (KeyError, IndexError):
                continue
        elif kind == 2 and isinstance(node, dict):
            node[rng.choice(["manifests", "layers", "config", "schemaVersion", "mediaType", "User", "é"])] = (
                copy.deepcopy(rng.choice(JUNK))
            )
        else:
            node[key] = copy.deepcopy(rng.choice(JUNK))
    return value


def test_documents():
    """Whatever an index, manifest or config says: it is understood, or refused with a message."""
    process: dict[str, Any] = {"Entrypoint": ["a"], "Cmd": ["b"], "Env": ["A=b"], "User": "root:root", "WorkingDir": "/w", "Volumes": {"/v": {}}, "StopSignal": "SIGRTMIN+3",
               "ExposedPorts": {"80/tcp": {}}, "Labels": {"a": "b"}}  # fmt: skip
    layout = Layout(tar(entry("x")), **process)
    platform = {"os": "linux", "architecture": "arm64", "variant": "v8"}
    layout.edit_index = lambda i: i["manifests"][0].update(platform=platform)
    files = layout.files()
    index, manifest, config = json.loads(files["index.json"]), layout.manifest, layout.config
    accounts = {"passwd": "root:x:0:0::/root:/bin/sh\n", "group": "root:x:0:\n"}
    seed = random.randrange(1 << 30)
    rng, count, good, end = random.Random(seed), 0, 0, time.monotonic() + SECONDS
    while time.monotonic() < end:
        count += 1
        try:
            document = spoil(rng.choice([index, manifest, config]), rng)
            text = json.dumps(document).encode()
            if rng.random() < 0.1:
                cut = rng.randrange(len(text))
                text = text[:cut] + bytes([rng.randrange(256)]) + text[cut + rng.randrange(2) :]
            parsed = documents.parse(text, "it")
            if "rootfs" in parsed or "architecture" in parsed:
                found = Config(text, "it")
                Platform("linux/amd64").fits(found.platform)
                assert len(found.chain) == len(found.diff_ids)
                made = bundle.runtime_config(found.document, accounts)
                assert all("\0" not in word for word in [*made["process"]["args"], *made["process"]["env"]])
                assert made["process"]["user"]["uid"] in range(1 << 32)
                assert all(m["destination"].startswith("/") for m in made["mounts"])
                json.dumps(made)
            elif documents.check_kind(parsed, rng.choice(["", *documents.INDEX, *documents.MANIFEST]), "it") == "index":
                for descriptor in documents.descriptors(parsed, "it"):
                    Platform("linux/arm64/v8").fits(descriptor.platform)
            else:
                found = Manifest(parsed, "it")
                assert all(references.is_digest(layer.digest) for layer in found.layers)
            good += 1
        except NsrunError as error:
            assert error.message and len(error.message) < 6000
        except Exception as error:
            raise AssertionError(f"seed {seed}, document {count}: {text[:2000]!r}") from error
    assert count > 500 and 0.02 < good / count < 0.98


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Some bytes of some headers changed, checksums mended; entries doubled, dropped and swapped."""
    blocks = [bytearray(data[at : at + 512].ljust(512, b"\0")) for at in range(0, len(data), 512)]
    for _ in range(rng.randint(1, 4)):
        kind, at = rng.randrange(4), rng.randrange(len(blocks))
        if kind == 0:
            blocks[at][rng.randrange(512)] = rng.randrange(256)
        elif kind == 1:
            blocks.insert(rng.randrange(len(blocks)), bytearray(blocks[at]))
        elif kind == 2 and len(blocks) > 2:
            del blocks[at]
        else:
            blocks[at][156] = ord(rng.choice("0123456xgLKS7"))
    for block in blocks:
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
    return b"".join(blocks) + END


@pytest.mark.live
def test_unpacking(host, tmp_path):
    """The whole of image load, with layers that nobody thought of: loaded or refused, nothing outside is touched."""
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o711)
    (victim / "file").write_text("safe")
    before = fingerprint(victim)
    v = str(victim)
    bases = [
        tar(directory("a"), entry("a/b", b"1" * 700), symlink("s", v), hardlink("h", "a/b"), entry(".wh.gone")),
        tar(symlink("a", v), entry("a/x", b"2"), entry("../" * 9 + v[1:] + "/y", b"3"), entry("d/.wh..wh..opq")),
        tar(
            entry("l" * 200, b"4", records=[("SCHILY.xattr.user.a", b"b")]),
            symlink("t", "../" * 20 + v),
            directory("t/z"),
        ),
    ]
    seed = random.randrange(1 << 30)
    rng, end, codes = random.Random(seed), time.monotonic() + SECONDS / 2, []
    while time.monotonic() < end or len(codes) < 12:
        layers = [mutate(rng.choice(bases), rng) for _ in range(rng.randint(1, 3))]
        if len(codes) < 2:  # as they are: the first is loaded, the second refused, however few mutants the time allows
            layers = [bases[len(codes)] + END]
        Layout(*layers, how="plain").write(tmp_path / "l")
        done = host.run("image", "load", "-t", "t:1", tmp_path / "l", check=False)
        what = f"seed {seed}, image {len(codes)}: {done.stderr}"
        assert done.returncode in (0, 125) and "Traceback" not in done.stderr and "signal" not in done.stderr, what
        assert fingerprint(victim) == before, what
        codes.append(done.returncode)
        assert codes[:2] == [0, 125][: len(codes)], what
        if len(codes) % 20 == 0:
            host.run("image", "prune", "-a")
        shutil.rmtree(tmp_path / "l")
    assert (victim / "file").read_text() == "safe"
    assert set(codes) == {0, 125} and len(codes) > 10
    assert not list((host.root / "lib/images/tmp").iterdir())
