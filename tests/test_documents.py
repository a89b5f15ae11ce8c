# SPDX-License-Identifier: Apache-2.0
"""What strangers write as JSON is refused with the key's name, or taken; never a traceback, at load or later."""

from __future__ import annotations

import copy
import json
import os
import pathlib
import random
import re
import struct

import pytest
from conftest import sh
from images import Layout, archive, directory, docker_archive, entry, tar

from nsrun.errors import BadInput, NsrunError, UsageError
from nsrun.image import documents, lookup
from nsrun.lifecycle import diagnose
from nsrun.lifecycle.join import _bundle, plan_join
from nsrun.plan.member import Request
from nsrun.plan.process import Execute
from nsrun.spec import options as words
from nsrun.state import State, codec

WRONG: list[object] = [None, True, 5, -1, 1.5, 1 << 70, "", "x", "²", "٣", "/", "\ud800", "a\0b", "a\nb", [], [None], [[]], ["\ud800"], ["a\0b"], {}, {"a": 1}, {"\ud800": {}}, {"a": "\ud800"}]  # fmt: skip

CONFIG = {
    "architecture": "amd64",
    "os": "linux",
    "variant": "v1",
    "created": "2024-01-01T00:00:00Z",
    "author": "me",
    "config": {
        "Entrypoint": ["/bin/sh"],
        "Cmd": ["-c", "true"],
        "Env": ["PATH=/bin"],
        "User": "root",
        "WorkingDir": "/",
        "StopSignal": "TERM",
        "Volumes": {"/data": {}},
        "ExposedPorts": {"80/tcp": {}},
        "Labels": {"org.opencontainers.image.title": "t"},
    },
    "rootfs": {"type": "layers", "diff_ids": [f"sha256:{'0' * 64}"]},
    "history": [{"created": "x", "created_by": "y", "comment": "z", "empty_layer": False}],
}

BUNDLE = {
    "ociVersion": "1.0.2",
    "root": {"path": "rootfs", "readonly": True},
    "process": {
        "args": ["sh"],
        "env": ["A=b"],
        "cwd": "/",
        "user": {"uid": 0, "gid": 0, "additionalGids": [1]},
        "capabilities": {"bounding": ["CAP_CHOWN"]},
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}],
        "noNewPrivileges": True,
        "apparmorProfile": "",
    },
    "mounts": [
        {"destination": "/data", "type": "bind", "source": "/tmp", "options": ["ro"]},
        {"destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": []},
    ],
    "annotations": {"org.opencontainers.image.stopSignal": "TERM"},
    "hooks": {},
    "linux": {"seccomp": None},
}


def places(value: object, at: tuple = ()) -> list[tuple]:
    """The path of everything in a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for key, item in inner for path in places(item, (*at, key)))]


def changed(document: dict, path: tuple, value: object) -> object:
    new = copy.deepcopy(document)
    if not path:
        return value
    inner = new
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return new


def test_every_key_of_a_config_with_every_wrong_value():
    """Refused with the key, or used by all that reads it later."""
    from nsrun.image.bundle import runtime_config

    documents.Config(json.dumps(CONFIG).encode(), "config")
    refused = 0
    for path in places(CONFIG):
        for value in WRONG:
            data = json.dumps(changed(CONFIG, path, value)).encode()
            try:
                config = documents.Config(data, "image")
            except BadInput as error:
                refused += 1
                assert error.message.startswith("image"), error.message
                str(error).encode()
                continue
            document = config.document
            with_accounts = {"passwd": "root:x:0:0::/root:/bin/sh\n", "group": ""}
            try:
                made = runtime_config(document, with_accounts)
            except NsrunError as error:
                str(error).encode()
                continue
            json.dumps(made, ensure_ascii=False).encode()
            told = [
                [row.get(key) for key in ("created", "created_by", "comment")] for row in document.get("history") or []
            ]
            shown = [config.platform, config.chain, document.get("created"), told]
            json.dumps(shown, ensure_ascii=False).encode()
    assert refused > 300


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("config", "Env"), ["A=\ud800"], "config.Env[0] is not text"),
        (("config", "Cmd"), ["a", "\udcff"], "config.Cmd[1] is not text"),
        (("config", "Labels"), {"a": "\ud800"}, "config.Labels.a is not text"),
        (("created",), "\ud800", "created is not a line of text"),
        (("history", 0, "created_by"), "\ud800", "history[0].created_by is not text"),
        (("architecture",), "\ud800", "architecture is not a line of text"),
        (("config", "StopSignal"), "RTMIN+²", "config.StopSignal 'RTMIN+²' is not a signal"),
        (("config", "StopSignal"), "٣", "config.StopSignal '٣' is not a signal"),
        (("rootfs", "diff_ids"), {"0": 1}, "rootfs.diff_ids is not a list"),
    ],
)
def test_what_is_said(path, value, said):
    with pytest.raises(BadInput) as caught:
        documents.Config(json.dumps(changed(CONFIG, path, value)).encode(), "image")
    assert said in caught.value.message


def test_every_key_of_an_index_and_a_manifest_with_every_wrong_value():
    digest = f"sha256:{'1' * 64}"
    descriptor = {"mediaType": f"{documents.OCI}manifest.v1+json", "digest": digest, "size": 3, "platform": {"os": "linux", "architecture": "amd64"}, "annotations": {"a": "b"}}  # fmt: skip
    index = {"schemaVersion": 2, "mediaType": f"{documents.OCI}index.v1+json", "manifests": [descriptor]}
    layer = {"mediaType": f"{documents.OCI}layer.v1.tar", "digest": digest, "size": 3}
    manifest = {
        "schemaVersion": 2,
        "config": {**layer, "mediaType": f"{documents.OCI}config.v1+json"},
        "layers": [layer],
    }
    refused = 0
    for document, use in ((index, documents.descriptors), (manifest, documents.Manifest)):
        for path in places(document):
            for value in WRONG:
                data = json.dumps(changed(document, path, value)).encode()
                try:
                    parsed = documents.parse(data, "it")
                    documents.check_kind(parsed, "", "it")
                    use(parsed, "it")
                except BadInput as error:
                    refused += 1
                    str(error).encode()
    assert refused > 200


def test_every_key_of_a_bundle_with_every_wrong_value(tmp_path):
    """Refused, or planned to the last step; explained, too."""
    (tmp_path / "rootfs/bin").mkdir(parents=True)
    state = State(str(tmp_path / "state"))
    pod = {"name": "p", "id": "i", "hostname": "h", "pause": [1, 2, "boot"], "network": {"mode": "none"}, "cgroup": "", "owner": "root", "labels": {}, "holder": [1, 2, "b"], "created": ""}  # fmt: skip

    def use(document: object) -> None:
        (tmp_path / "config.json").write_text(json.dumps(document))
        joining = plan_join(state, pod, {"bundle": str(tmp_path), "name": "m"}, Request(detach=True))
        for step in joining.plan.steps:
            str(step)
        json.dumps(joining.spec)

    use(BUNDLE)
    refused = 0
    for path in places(BUNDLE):
        for value in WRONG:
            try:
                use(changed(BUNDLE, path, value))
            except NsrunError as error:
                refused += 1
                str(error).encode("utf-8", "backslashreplace")
    assert refused > 200


def test_a_bundle_that_is_no_file(tmp_path):
    (tmp_path / "rootfs").mkdir()
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(BadInput, match="not a regular file"):
        _bundle(str(tmp_path))
    (tmp_path / "config.json").unlink()
    with open(tmp_path / "config.json", "wb") as file:
        file.truncate(2 << 30)
    with pytest.raises(BadInput, match="larger than 4096 KiB"):
        _bundle(str(tmp_path))
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(BadInput, match="not JSON"):
        _bundle(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(changed(BUNDLE, ("process", "env"), ["a", "b", "c", 5])))
    with pytest.raises(BadInput, match=r"config\.json: process\.env\[3\] is not text"):
        _bundle(str(tmp_path))


ODD = ["²", "٣", "1²", "１", "①", "𝟙", "0x1", "1_0", " 1", "+1", "9" * 5000]


@pytest.mark.parametrize("text", ODD)
def test_odd_digits(text):
    """What str.isdigit takes and int() does not, or the other way round, is a usage error wherever a number is read."""

    calls = [
        (words.parse_signal, text),
        (words.parse_signal, f"RTMIN+{text}"),
        (words.parse_size, f"{text}m", "--memory"),
        (words.parse_ulimit, f"nofile={text}"),
        (words.parse_restart, f"on-failure:{text}"),
        (words.parse_limits, {"pids_limit": text}),
        (words.parse_limits, {"cpus": f"x{text}"}),
        (words.parse_ports, [f"{text}:80"]),
        (words.parse_user, text, "", ""),
        (words.parse_ipv4, f"10.0.0.{text}", "--ip"),
    ]
    for call, *arguments in calls:
        with pytest.raises((UsageError, BadInput)):
            call(*arguments)


def test_digits_are_asked_for_in_one_place():
    """str.isdigit, str.isdecimal and str.isnumeric are no check before int(); schema.is_number is."""
    top = pathlib.Path(__file__).parent.parent / "nsrun"
    found = [p.name for p in top.rglob("*.py") if re.search(r"\.is(digit|decimal|numeric)\b", p.read_text())]
    assert found == ["schema.py"]


@pytest.mark.parametrize("size", [0, 1, 4, 5, 10, 18, 19, 20, 40, 63, 64, 100])
def test_short_programs(size, tmp_path):
    """An ELF file of 10 bytes, and of every other length."""
    head = b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    rng = random.Random(size)
    for data in (
        head,
        b"\x7fELF\1\2" + rng.randbytes(200),
        b"\x7fELF" + rng.randbytes(200),
        b"#!" + rng.randbytes(200),
        rng.randbytes(200),
        b"#!",
        b"#! \r\n",
    ):
        (tmp_path / "x").write_bytes(data[:size])
        step = Execute(("/x",), ("PATH=/",), "/")
        for errno in (2, 8, 13, 20, 40, 5):
            message, hint = diagnose.why_not(str(tmp_path), step, errno, "")
            assert message and isinstance(hint, str)


# ---- live ---------------------------------------------------------------------------------------------------


@pytest.mark.live
def test_load_tells_the_key(host, tmp_path):
    for number, (key, value) in enumerate(
        (("Env", ["A=\ud800"]), ("Cmd", ["\udcff"]), ("StopSignal", "RTMIN+²"), ("Labels", {"a": 5}))
    ):
        layout = Layout(tar(entry("f")), **{key: value})
        assert f"config.{key}" in host.fails(125, "image", "load", layout.write(tmp_path / f"{number}"))
        (tmp_path / f"{number}.tar").write_bytes(docker_archive(tar(entry("f")), **{key: value}))
        assert f"config.{key}" in host.fails(125, "image", "load", tmp_path / f"{number}.tar")


@pytest.mark.live
def test_names_that_are_no_text(host, tmp_path):
    files = {"c.json": json.dumps(Layout(tar(entry("f"))).config).encode(), "l.tar": tar(entry("f"))}
    for tags in (["\ud800"], [5], {"a": 1}, ["a:\ud800"], "x", [["x"]]):
        manifest = json.dumps([{"Config": "c.json", "RepoTags": tags, "Layers": ["l.tar"]}]).encode()
        (tmp_path / "a.tar").write_bytes(archive({**files, "manifest.json": manifest}))
        assert "malformed" in host.fails(125, "image", "load", tmp_path / "a.tar")
    for number, name in enumerate(("\ud800", "a\x1b[2J", "A" * 100_000, 5, None)):
        layout = Layout(tar(entry("f")))
        layout.edit_index = lambda index, name=name: index["manifests"][0].update(
            annotations={"io.containerd.image.name": name}
        )
        done = host.run("image", "load", layout.write(tmp_path / f"{number}"))
        assert "\x1b" not in done.stderr and len(done.stderr) < 1000
    many = json.dumps([{"Config": "c.json", "RepoTags": [f"Bad{n}" for n in range(900)], "Layers": ["l.tar"]}]).encode()
    (tmp_path / "m.tar").write_bytes(archive({**files, "manifest.json": many}))
    done = host.run("image", "load", tmp_path / "m.tar")
    assert done.stderr.count("warning:") == 6 and "895 more names" in done.stderr


@pytest.mark.live
def test_broken_documents_of_the_store(host, tmp_path):
    """One that is broken is named, and costs no other image anything; what can't be read is not taken for absent."""
    for name in ("a", "b"):
        host.run(
            "image", "load", Layout(tar(directory("bin"), entry(name, b"x")), name=f"{name}:1").write(tmp_path / name)
        )
    images = host.root / "lib/images"
    ident = next(i["id"] for i in host.json("image", "ls") if i["names"] == ["a:1"])
    record, names = images / f"records/{ident}.json", images / "names.json"
    good, good_names = record.read_bytes(), names.read_bytes()
    rng = random.Random(5)
    value = json.loads(good)
    del value["crc"]
    spoilt = [b"", b"{", b"[]", b"\xff", b"[" * 50_000, good[: len(good) // 2]]
    spoilt += [codec.seal(changed(value, path, wrong)) for path in places(value) for wrong in rng.sample(WRONG, 2)]
    for data in rng.sample(spoilt, 25) + spoilt[:6]:
        record.write_bytes(data)
        done = host.run("image", "ls")
        assert "b:1" in done.stdout
        if "warning:" in done.stderr:
            assert ident in done.stderr
            assert len(host.json("image", "ls")) == 1
        for command in (("image", "inspect", "b:1"), ("image", "history", "b:1")):
            host.run(*command)
        for command in (
            ("image", "inspect", "a:1"),
            ("image", "history", "a:1"),
            ("image", "unpack", "a:1", tmp_path / "out"),
        ):
            done = host.run(*command, check=False)
            assert done.returncode in (0, 125) and "Traceback" not in done.stderr, done.stderr
        sh("rm", "-rf", tmp_path / "out")
    record.unlink()
    os.mkfifo(record)
    done = host.run("image", "ls", timeout=10)
    assert ident in done.stderr and "b:1" in done.stdout
    layers = sorted(p.name for p in (images / "layers").iterdir())
    assert len(layers) == 2
    record.unlink()
    record.write_bytes(good)
    wrong = [codec.encode(names) for names in ({"docker.io/library/a:1": "../../x"}, {"a": 5})]
    for data in (b"", b"[]", *wrong, good_names.replace(b"a:1", b"c:1"), b"\xff"):
        names.write_bytes(data)
        done = host.run("image", "ls")
        assert "names.json" in done.stderr and done.stdout.count("\n") == 3
        assert "names.json" in host.fails(125, "image", "inspect", "a:1")
    assert sorted(p.name for p in (images / "layers").iterdir()) == layers
    host.run("image", "prune")
    assert names.with_name("names.json.broken").read_bytes() == b"\xff"
    assert sorted(p.name for p in (images / "layers").iterdir()) == layers
    names.write_bytes(good_names)
    layer = next(path for path in (images / "layers").iterdir())
    wrong = [codec.encode(about) for about in ({"size": "x"}, {"diff_id": 5, "size": 1, "entries": 1, "skipped": [5]})]
    for data in (b"", b"[]", *wrong):
        (layer / "layer.json").write_bytes(data)
        assert host.run("image", "ls").stdout.count("\n") == 3


@pytest.mark.live
def test_what_can_not_be_read_is_not_absent(host, tmp_path, monkeypatch):
    """EIO where a record is: prune keeps the layers that it may name."""
    host.run("image", "load", Layout(tar(entry("f", b"x"))).write(tmp_path / "a"))
    images = host.root / "lib/images"
    (record,) = (images / "records").iterdir()
    real = lookup.read_document

    def sick(path: str, most: int) -> bytes:
        if path == str(record):
            raise OSError(5, "Input/output error")
        return real(path, most)

    monkeypatch.setattr(lookup, "read_document", sick)
    from nsrun.image.store import Store

    removed, freed = Store(State(str(host.root))).prune(True)
    assert (removed, freed) == ([], 0)
    assert record.exists() and len(list((images / "layers").iterdir())) == 1
    assert len(list((images / "blobs/sha256").iterdir())) == 2
    monkeypatch.undo()
    assert host.run("image", "inspect", "t:1").returncode == 0
