# SPDX-License-Identifier: Apache-2.0
"""`nsrun-oci install`: what engines read to know of the runtime, and what others have written there."""

import json
import os
import pathlib
import shutil
import subprocess
import tomllib

import pytest
from conftest import need, sh
from engines import PATH
from oci import OCI

FILES = {
    "podman": ["containers/containers.conf.d/nsrun-oci.conf"],
    "containerd": ["containerd/conf.d/nsrun-oci.toml", "containerd/config.toml"],
    "docker": ["docker/daemon.json"],
}


def install(etc: pathlib.Path, engine: str, *options: str) -> subprocess.CompletedProcess[str]:
    return sh(OCI, "install", engine, "--etc", etc, *options, check=False)


def files(etc: pathlib.Path) -> dict[str, str]:
    return {str(path.relative_to(etc)): path.read_text() for path in sorted(etc.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("engine", FILES)
def test_it_is_written_and_taken_away(engine, tmp_path):
    done = install(tmp_path, engine)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout
    written = files(tmp_path)
    assert sorted(written) == sorted(FILES[engine]) and any(OCI in text for text in written.values())
    assert install(tmp_path, engine).returncode == 0 and files(tmp_path) == written
    assert install(tmp_path, engine, "--remove").returncode == 0 and files(tmp_path) == {}
    assert install(tmp_path, engine, "--remove").returncode == 0


@pytest.mark.parametrize("words", [(), ("nix",), ("podman", "docker"), ("podman", "--nix")])
def test_what_is_no_engine(words, tmp_path):
    done = sh(OCI, "install", "--etc", tmp_path, *words, check=False)
    assert done.returncode == 1 and done.stderr.startswith("nsrun-oci: ") and files(tmp_path) == {}


def test_daemon_json_of_others(tmp_path):
    """All else stays, in its order, with the mode of the file; a link is followed."""
    file = tmp_path / "docker/daemon.json"
    real = tmp_path / "real.json"
    file.parent.mkdir()
    file.symlink_to(real)
    before = {"log-level": "warn", "runtimes": {"kata": {"path": "/usr/bin/kata"}}, "bip": "10.9.0.1/24"}
    real.write_text(json.dumps(before))
    real.chmod(0o640)
    assert install(tmp_path, "docker").returncode == 0
    now = json.loads(real.read_text())
    assert now["runtimes"] == {"kata": {"path": "/usr/bin/kata"}, "nsrun": {"path": OCI}}
    assert {**now, "runtimes": None} == {**before, "runtimes": None} and real.stat().st_mode & 0o777 == 0o640
    assert file.is_symlink() and install(tmp_path, "docker", "--remove").returncode == 0
    assert json.loads(real.read_text()) == before
    for text in (
        "",
        "{",
        "[]",
        '{"runtimes": []}',
        '{"runtimes": {"nsrun": {"path": "/usr/bin/runc"}}}',
        '{"runtimes": {"nsrun": 1}}',
    ):
        real.write_text(text)
        for options in ((), ("--remove",)):
            done = install(tmp_path, "docker", *options)
            assert done.returncode == 1 and str(real) in done.stderr and real.read_text() == text, (text, done)


def test_config_toml_of_others(tmp_path):
    """containerd has to read our file, and may not lose a section of its own by it."""
    file = tmp_path / "containerd/config.toml"
    file.parent.mkdir()
    imports = f'imports = ["{tmp_path}/containerd/conf.d/*.toml"]\n'
    for text, expected in (
        ("version = 2\n", "does not import"),
        ('version = 2\nimports = ["/other/*.toml"]\n', "does not import"),
        (f'version = 2\n{imports}[plugins."io.containerd.grpc.v1.cri"]\nsandbox_image = "x"\n', "a section of its own"),
        ("version = ", "is not TOML"),
    ):
        file.write_text(text)
        done = install(tmp_path, "containerd")
        assert done.returncode == 1 and expected in done.stderr and files(tmp_path) == {"containerd/config.toml": text}
    file.write_text(f"version = 2\n{imports}")
    assert install(tmp_path, "containerd").returncode == 0 and file.read_text() == f"version = 2\n{imports}"
    assert install(tmp_path, "containerd", "--remove").returncode == 0
    assert files(tmp_path) == {"containerd/config.toml": f"version = 2\n{imports}"}


@pytest.mark.parametrize("engine", ["podman", "containerd"])
def test_a_file_of_somebody_else(engine, tmp_path):
    file = tmp_path / FILES[engine][0]
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    assert "has not written it" in install(tmp_path, engine).stderr and file.read_text() == "mine"
    assert install(tmp_path, engine, "--remove").returncode == 0 and file.read_text() == "mine"


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for engine in FILES:
        done = install(tmp_path / "file", engine)
        assert done.returncode == 1 and "file" in done.stderr, done


def test_containerd_reads_it(tmp_path):
    program = shutil.which("containerd", path=PATH)
    need(program, "containerd is missing", ".ci/deps test")
    install(tmp_path, "containerd")
    text = sh(program, "--config", tmp_path / "containerd/config.toml", "config", "dump").stdout
    runtimes = tomllib.loads(text)["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["runtimes"]
    assert runtimes["nsrun"]["options"]["BinaryName"] == OCI


def test_podman_reads_it(tmp_path):
    program = shutil.which("podman", path=PATH)
    need(program and os.geteuid() == 0, "podman is missing", ".ci/deps test")
    install(tmp_path, "podman")
    text = (tmp_path / FILES["podman"][0]).read_text()
    assert tomllib.loads(text) == {"engine": {"runtimes": {"nsrun": [OCI]}}}
