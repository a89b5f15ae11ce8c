# SPDX-License-Identifier: Apache-2.0
"""nsrun-oci where there is cgroup v2 alone, on Debian's kernel: on this machine if it has that, else in another (tests/machine)."""

import json
import os
import pathlib
import shutil
import sys

import pytest
from conftest import HERE, need, not_editable, sh, wait_for
from oci import GROUP, SLEEP, runtime

PURE = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
V2 = pathlib.Path("/sys/fs/cgroup", GROUP)
pure = pytest.mark.skipif(not PURE, reason="this machine has cgroup v1, too; to enable: test_in_a_machine_of_its_own runs this there")  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(PURE, reason="the tests below run here; to enable: a machine with cgroup v1")
@pytest.mark.timeout(500)
def test_in_a_machine_of_its_own():
    need(os.geteuid() == 0, "the machine's root is a view of ours", "sudo make test")
    need(shutil.which("linux.uml") and shutil.which("insmod"), "user-mode Linux is missing", "apt-get install user-mode-linux kmod")  # fmt: skip
    files = f"{HERE}/test_oci_v2.py {HERE}/test_oci_config.py {HERE}/test_oci_anew.py"
    anew = "same_container and (limits or devices or its)"
    chosen = f"v2 or seccomp or hooks_of or exec_in_a_user or masked or ({anew})"
    command = f"cd {HERE.parent} && exec {os.path.dirname(sys.executable)}/pytest -p no:cacheprovider -rs --timeout 200 {files} -k '{chosen}'"
    done = sh(HERE / "machine", command, timeout=480, check=False, env={**os.environ, "SECONDS_": "460"})
    need(done.returncode != 125, "user-mode Linux does not come up here", "tests/machine id says no more; another machine")  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]


@pytest.fixture
def r(host, busybox):
    with runtime(host, busybox, "nsrun-oci") as made:
        yield made


@pure
@pytest.mark.live
def test_resources_of_v2(r):
    document = r.config(*SLEEP)
    document["linux"]["resources"] = {
        "pids": {"limit": 33},
        "memory": {"limit": 50 << 20, "swap": 60 << 20, "reservation": 10 << 20},
        "cpu": {"shares": 512, "quota": 50000, "period": 100000},
        "unified": {"memory.high": str(40 << 20)},
    }
    pid = r.create("c", document)
    found = {name: (V2 / "c" / name).read_text().strip() for name in ("pids.max", "memory.max", "memory.low", "cpu.max", "memory.high", "cpu.weight")}  # fmt: skip
    assert found == {"pids.max": "33", "memory.max": str(50 << 20), "memory.low": str(10 << 20), "cpu.max": "50000 100000", "memory.high": str(40 << 20), "cpu.weight": "20"}  # fmt: skip
    assert pathlib.Path(f"/proc/{pid}/cgroup").read_text() == f"0::/{GROUP}/c\n"
    r.ok("start", "c")
    assert r.ok("exec", "c", "cat", "/proc/self/cgroup") == f"0::/{GROUP}/c\n"
    r.ok("update", "--pids-limit", "44", "--memory", "60m", "--memory-swap", "70m", "c")
    assert ((V2 / "c/pids.max").read_text(), (V2 / "c/memory.max").read_text()) == ("44\n", f"{60 << 20}\n")
    data = json.loads(r.ok("events", "--stats", "c"))["data"]
    assert data["pids"] == {"current": data["pids"]["current"], "limit": 44} and data["memory"]["usage"]["limit"] == 60 << 20  # fmt: skip
    r.ok("pause", "c")
    assert r.status("c")["status"] == "paused" and "frozen 1" in (V2 / "c/cgroup.events").read_text()
    r.ok("resume", "c")
    assert r.status("c")["status"] == "running"
    r.ok("pause", "c")
    r.ok("delete", "--force", "c")
    assert not (V2 / "c").exists()


@pure
@pytest.mark.live
def test_device_rules_of_v2(r):
    caps = {name: ["CAP_MKNOD", "CAP_SYS_RAWIO"] for name in ("bounding", "effective", "permitted")}
    document = r.config("sh", "-c", "mknod /dev/mem c 1 1; head -c 1 /dev/mem 2>&1 | wc -c; head -c 2 /dev/zero | wc -c", capabilities=caps)  # fmt: skip
    document["linux"]["resources"] = {"devices": [{"allow": False, "access": "rwm"}]}
    text = r.ok("run", "--bundle", r.bundle("c", document), "c")
    assert int(text.split()[0]) > 1 and text.split()[1] == "2"  # a message
    document["linux"]["resources"]["devices"].append(
        {"allow": True, "type": "c", "major": 1, "minor": 1, "access": "r"}
    )
    text = r.ok("run", "--bundle", r.bundle("c", document), "c")
    assert text.split() == ["1", "2"]
    r.create("d", {**document, "process": {**document["process"], "args": SLEEP}})
    (r.base / "rules").write_text(json.dumps({"devices": [{"allow": True}]}))
    done = r.call("update", "--resources", r.base / "rules", "d")
    assert done.returncode == 1 and "linux.resources.devices" in done.stderr


@pure
@pytest.mark.live
@not_editable
def test_a_container_like_the_last_of_v2(r):
    """It is made without Python, with its limits and with a filter of its own for devices."""
    caps = {name: ["CAP_MKNOD", "CAP_SYS_RAWIO"] for name in ("bounding", "effective", "permitted")}
    document = r.config(*SLEEP, capabilities=caps)
    document["linux"] |= {"cgroupsPath": f"/{GROUP}/like/NAME", "resources": {"devices": [{"allow": False, "access": "rwm"}], "pids": {"limit": 33}}}  # fmt: skip
    for name, replay in (("container-1", "1"), ("container-2", "must"), ("container-3", "must")):
        text = json.dumps(document).replace("NAME", name)
        r.create(name, json.loads(text), env={**r.env, "NSRUN_REPLAY": replay})
        r.ok("start", name, env={**r.env, "NSRUN_REPLAY": "must"})
        place = V2 / "like" / name
        assert [(place / file).read_text().strip() for file in ("pids.max", "cgroup.max.depth")] == ["33", "100"]
        command = "mknod /dev/mem c 1 1; head -c 1 /dev/mem 2>/dev/null | wc -c; head -c 2 /dev/zero | wc -c"
        assert r.ok("exec", name, "sh", "-c", command, env={**r.env, "NSRUN_REPLAY": "must"}).split() == ["0", "2"]
    for name in ("container-1", "container-2", "container-3"):
        r.ok("delete", "--force", name)
        assert not (V2 / "like" / name).exists()


@pure
@pytest.mark.live
def test_a_cgroup_namespace_of_v2(r):
    document = r.config("sh", "-c", "cat /proc/self/cgroup; cat /sys/fs/cgroup/pids.max; mkdir /sys/fs/cgroup/x && echo made")  # fmt: skip
    document["linux"]["namespaces"].append({"type": "cgroup"})
    document["linux"]["resources"] = {"pids": {"limit": 21}}
    document["mounts"] += [
        {"destination": "/sys", "type": "sysfs", "source": "sysfs"},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid"]},
    ]
    assert r.ok("run", "--bundle", r.bundle("c", document), "c").split() == ["0::/", "21", "made"]
    assert not (V2 / "c").exists()


@pure
@pytest.mark.live
def test_out_of_memory_at_the_start_of_v2(r):
    document = r.config("true")
    document["linux"]["resources"] = {"memory": {"limit": 4096}}
    done = r.call("create", "--bundle", r.bundle("c", document), "c")
    assert done.returncode == 1 and "memory" in done.stderr
    assert r.call("state", "c").returncode == 1
    wait_for(lambda: not (V2 / "c").exists())
