# SPDX-License-Identifier: Apache-2.0
"""rootfs/pause: nsrun-pause as an image, which other engines take for the sandbox of a pod."""

import json
import shutil
import sys

import pytest
from conftest import HERE, need, sh, wait_for

SCRIPT = HERE.parent / "rootfs/pause"


@pytest.fixture(params=["layout", "pause.tar"])
def image(request, tmp_path):
    path = tmp_path / request.param
    sh(sys.executable, SCRIPT, path, "localhost/pause:1")
    return path


def size(path) -> int:
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


def test_it_is_small_and_the_same_each_time(image, tmp_path):
    assert size(image) <= 20 << 10
    again = tmp_path / f"again-{image.name}"
    sh(sys.executable, SCRIPT, again, "localhost/pause:1")
    if image.is_file():
        assert image.read_bytes() == again.read_bytes()
    else:
        assert [f.name for f in sorted(image.rglob("*"))] == [f.name for f in sorted(again.rglob("*"))]
    assert sh(sys.executable, SCRIPT, again, check=False).returncode != 0, "what is there is not overwritten"
    assert sh(sys.executable, SCRIPT, check=False).returncode != 0


def test_other_tools_read_it(image):
    need(shutil.which("skopeo"), "skopeo is missing", "apt-get install skopeo")
    source = f"docker-archive:{image}" if image.is_file() else f"oci:{image}:localhost/pause:1"
    found = json.loads(sh("skopeo", "inspect", "--config", source).stdout)
    assert found["config"] == {"Entrypoint": ["/pause"], "User": "65535:65535", "WorkingDir": "/"}


@pytest.mark.live
def test_it_waits_and_ends(host, image):
    """As PID 1 of a PID namespace of its own, as an engine runs it: it ends by SIGTERM, with 0."""
    assert "localhost/pause:1" in host.run("image", "load", image).stdout
    host.run("pod", "create", "--network", "none", "p")
    host.run("join", "p", "-d", "--name", "sandbox", "--pid", "own", "--read-only", "--image", "localhost/pause:1")
    assert host.member("sandbox")["status"] == "running"
    wait_for(lambda: sh("cat", f"/proc/{host.member('sandbox')['pid']}/comm").stdout == "pause\n")
    host.run("stop", "-t", "5", "sandbox")
    assert host.member("sandbox")["exit_code"] == 0
    host.run("image", "rm", "localhost/pause:1", check=False)
