# SPDX-License-Identifier: Apache-2.0
"""nsrun-oci for ordinary users: with one id, with those of /etc/subuid, and below rootless podman."""

import json
import os
import pathlib
import shutil
import subprocess

import engines
import pytest
from conftest import Host, need, sh
from engines import PATH, UserPodman, engine
from oci import OCI

pytestmark = pytest.mark.live


@pytest.fixture
def bundle(alice, busybox, host):
    """A bundle of alice's."""
    path = alice.home / "bundle"
    path.mkdir()
    sh("cp", "-a", busybox, path / "rootfs")
    sh("chown", "-R", f"{alice.uid}:{alice.uid}", path)
    alice.sh(OCI, "spec", "--rootless", "--bundle", path)
    return path


def change(bundle: pathlib.Path, *command: str, **linux) -> dict:
    document = json.loads((bundle / "config.json").read_text())
    document["process"].update(terminal=False, args=list(command))
    document["root"]["readonly"] = False
    document["linux"].update(linux)
    (bundle / "config.json").write_text(json.dumps(document))
    return document


def call(alice, *words: object, **kwargs):
    return alice.sh(OCI, f"--root={alice.home}/state", *words, **kwargs)


def test_one_id(alice, bundle):
    change(bundle, "sh", "-c", "id -u; cat /proc/self/uid_map; touch /made; cat /proc/self/setgroups; ls /dev/null")
    text = call(alice, "run", "--bundle", bundle, "c").stdout
    assert text.split() == ["0", "0", str(alice.uid), "1", "deny", "/dev/null"]
    assert (bundle / "rootfs/made").stat().st_uid == alice.uid
    assert call(alice, "list", "-q").stdout == ""


def test_create_exec_and_delete(alice, bundle):
    change(bundle, "sleep", "1000")
    null = open(os.devnull, "r+")
    create = alice.words(OCI, f"--root={alice.home}/state", "create", "--bundle", bundle, "--pid-file", alice.home / "pid", "c")  # fmt: skip
    subprocess.run(create, stdin=null, stdout=null, stderr=null, check=True, env=alice.env, cwd="/", timeout=30)
    null.close()
    call(alice, "start", "c")
    assert json.loads(call(alice, "state", "c").stdout)["status"] == "running"
    assert call(alice, "exec", "c", "id", "-u").stdout == "0\n"
    assert call(alice, "exec", "c", "nosuch", check=False).returncode == 255
    call(alice, "delete", "--force", "c")
    assert not pathlib.Path(f"/proc/{(alice.home / 'pid').read_text()}/root/home").exists()
    assert call(alice, "state", "c", check=False).returncode == 1


def test_the_ids_of_etc_subuid(alice, bundle):
    need(shutil.which("newuidmap"), "newuidmap is missing", "apt-get install uidmap")
    first = next(int(line.split(":")[1]) for line in open("/etc/subuid") if line.startswith("alice:"))
    maps = [{"containerID": 0, "hostID": alice.uid, "size": 1}, {"containerID": 1, "hostID": first, "size": 100}]
    document = change(bundle, "sh", "-c", "id -u; id -G; touch /tmp/made", uidMappings=maps, gidMappings=maps)
    document["process"]["user"] = {"uid": 7, "gid": 8, "additionalGids": [9]}
    (bundle / "config.json").write_text(json.dumps(document))
    os.chmod(bundle / "rootfs/tmp", 0o777)
    for above in (alice.home, bundle):
        os.chmod(above, 0o711)
    assert call(alice, "run", "--bundle", bundle, "c").stdout.split() == ["7", "8", "9"]
    assert (bundle / "rootfs/tmp/made").stat().st_uid == first + 6


def test_limits_need_a_cgroup(alice, bundle):
    change(bundle, "true", resources={"pids": {"limit": 5}})
    done = call(alice, "create", "--bundle", bundle, "c", check=False)
    assert done.returncode == 1 and ("cgroup" in done.stderr or "linux.resources" in done.stderr), done
    assert call(alice, "list", "-q").stdout == ""


def test_the_place_of_the_state(alice, host):
    """Without --root it is below XDG_RUNTIME_DIR, and never in a directory that everybody can write to."""
    done = alice.sh("env", "--unset=XDG_RUNTIME_DIR", OCI, "state", "c", check=False)
    assert done.returncode == 1 and "XDG_RUNTIME_DIR" in done.stderr
    done = alice.sh("env", f"XDG_RUNTIME_DIR={alice.home}", OCI, "list", "-q")
    assert done.stdout == ""


def test_what_others_own_is_not_reached(alice, bundle):
    change(bundle, "true", uidMappings=[{"containerID": 0, "hostID": 0, "size": 1}])
    done = call(alice, "create", "--bundle", bundle, "c", check=False)
    assert done.returncode == 1 and "bug" not in done.stderr, done


@pytest.mark.slow
def test_rootless_podman(host: Host, alice, busybox, monkeypatch):
    need(shutil.which("podman", path=PATH), "podman is missing", "apt-get install podman")
    supports = '[engine]\nruntime_supports_nocgroup=["nsrun-oci"]'
    conf = engines.CONF.replace("[engine]", supports, 1) + f'[engine.runtimes]\nnsrun-oci=["{OCI}"]\n'
    monkeypatch.setattr(engines, "CONF", conf)
    real = engines.sh
    monkeypatch.setattr(engines, "sh", lambda *words, **kwargs: real(*("--runtime=nsrun-oci" if word == "--runtime=crun" else word for word in words), **kwargs))  # fmt: skip
    with engine(UserPodman, host, pathlib.Path(busybox), alice) as podman:
        options = ("--cgroups=disabled", "--network=none")
        done = podman.call("run", "--rm", *options, "busybox", "sh", "-c", "id -u; cat /proc/self/uid_map | head -1; exit 7", check=False)  # fmt: skip
        assert done.returncode == 7 and done.stdout.split()[:2] == ["0", "0"], done.stderr
        podman.call("run", "--detach", "--name=one", *options, "busybox", "sleep", "1000")
        assert podman.call("exec", "one", "cat", "/proc/1/comm").stdout == "sleep\n"
        podman.call("rm", "--force", "--time=0", "one")
