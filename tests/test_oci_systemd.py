# SPDX-License-Identifier: Apache-2.0
"""--systemd-cgroup: containers as scopes, asked of a fake systemd on a bus of its own (tests/systemd.py)."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest
from conftest import need, wait_for
from oci import SLEEP, Runtime, runtime
from systemd import Systemd

from nsrun.errors import BadInput
from nsrun.oci import systemd

TOP = f"nsrunengines{os.getpid()}"


# ---- names and limits: pure ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, unit, path",
    [
        ("kubepods-besteffort-podU.slice:cri-containerd:ID", "cri-containerd-ID.scope", "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podU.slice/cri-containerd-ID.scope"),
        ("system.slice:docker:abc", "docker-abc.scope", "system.slice/docker-abc.scope"),
        ("machine.slice:libpod:abc", "libpod-abc.scope", "machine.slice/libpod-abc.scope"),
        ("-.slice:a:b", "a-b.scope", "a-b.scope"),
        ("::b", "b.scope", "system.slice/b.scope"),
        ("", "nsrun-c.scope", "system.slice/nsrun-c.scope"),
    ],
)  # fmt: skip
def test_names(text, unit, path):
    found = systemd.scope_of(text, "c")
    assert (found.unit, found.path()) == (unit, path)


@pytest.mark.parametrize(
    "text",
    [
        "/a/b", "a.slice:b", "a.slice:b:c:d", "a:b:c", "a/b.slice:c:d", "a--b.slice:c:d", "-a.slice:c:d", "a-.slice:c:d", ".slice:c:d", "a.slice:b:", "a.slice:b:../c",
        f"a.slice:b:{'x' * 250}",
    ],
)  # fmt: skip
def test_names_that_are_refused(text):
    with pytest.raises(BadInput):
        systemd.scope_of(text, "c")


RESOURCES = {
    "memory": {"limit": 1 << 26, "reservation": 1 << 25, "swap": 1 << 27}, "pids": {"limit": 50}, "blockIO": {"weight": 1000},
    "cpu": {"shares": 1024, "quota": 15500, "period": 100000, "cpus": "0-1,9", "mems": "0"},
}  # fmt: skip


def test_limits_as_properties():
    assert dict(systemd.limits(RESOURCES, True)) == {
        "MemoryMax": ("t", 1 << 26), "MemoryLow": ("t", 1 << 25), "MemorySwapMax": ("t", 1 << 26), "CPUWeight": ("t", 39),
        "CPUQuotaPerSecUSec": ("t", 160000), "CPUQuotaPeriodUSec": ("t", 100000), "AllowedCPUs": ("ay", b"\x03\x02"), "AllowedMemoryNodes": ("ay", b"\x01"),
        "TasksMax": ("t", 50), "IOWeight": ("t", 10000),
    }  # fmt: skip
    assert dict(systemd.limits(RESOURCES, False)) == {
        "MemoryLimit": ("t", 1 << 26), "CPUShares": ("t", 1024), "CPUQuotaPerSecUSec": ("t", 160000), "CPUQuotaPeriodUSec": ("t", 100000), "TasksMax": ("t", 50),
        "BlockIOWeight": ("t", 1000),
    }  # fmt: skip
    all_of_it = {"memory": {"limit": -1, "swap": -1}, "pids": {"limit": -1}, "cpu": {"quota": -1}}
    assert {value for _, (_, value) in systemd.limits(all_of_it, True)} == {(1 << 64) - 1}
    assert systemd.limits({}, True) == []
    with pytest.raises(BadInput, match=r"linux\.resources\.cpu\.cpus"):
        systemd.limits({"cpu": {"cpus": "a-b"}}, True)


# ---- scopes -------------------------------------------------------------------------------------------------------


@pytest.fixture
def r(host, busybox):
    need(_has_jeepney(), "jeepney is missing", ".ci/deps test")
    with runtime(host, busybox, "nsrun-oci", hybrid=True) as made:
        made.run("mkdir", "-p", "/run/systemd/system")
        hierarchies = [
            path for path in ("/sys/fs/cgroup/systemd", "/sys/fs/cgroup") if os.path.exists(f"{path}/cgroup.procs")
        ]
        made.systemd = Systemd(made.base, hierarchies[:1])
        made.env["DBUS_SYSTEM_BUS_ADDRESS"] = made.systemd.address
        try:
            yield made
        finally:
            made.call("delete", "--force", "c")
            made.systemd.close()
            for top in pathlib.Path("/sys/fs/cgroup").glob(f"*/{TOP}.slice"):
                for place in [*sorted(top.rglob("*/"), reverse=True), top]:
                    with contextlib.suppress(OSError):
                        place.rmdir()


def _has_jeepney() -> bool:
    try:
        import jeepney  # noqa: F401
    except ImportError:
        return False
    return True


def document(r: Runtime) -> dict:
    made = r.config(*SLEEP)
    made["linux"]["cgroupsPath"] = f"{TOP}-pod1.slice:nsrun:c"
    made["linux"]["resources"] = {"pids": {"limit": 50}}
    return made


def scopes() -> list[pathlib.Path]:
    return sorted(pathlib.Path("/sys/fs/cgroup").glob(f"*/{TOP}.slice/{TOP}-pod1.slice/nsrun-c.scope"))


@pytest.mark.live
@pytest.mark.parametrize("own", [False, True])
def test_a_life_as_a_scope(r, own):
    made = document(r)
    if own:
        made["linux"]["namespaces"].append({"type": "cgroup"})
    r.ok("--systemd-cgroup", "create", "--bundle", r.bundle("c", made), "c")
    pid = r.status("c")["pid"]
    r.pids.append(pid)
    ((unit, mode, properties, _),) = r.systemd.calls("StartTransientUnit")
    known = {name: value for name, (_, value) in properties}
    assert (unit, mode, known["Slice"], known["PIDs"]) == ("nsrun-c.scope", "fail", f"{TOP}-pod1.slice", [pid])
    assert known["Delegate"] is True and known["DefaultDependencies"] is False and known["TasksMax"] == 50
    lines = pathlib.Path(f"/proc/{pid}/cgroup").read_text().split()
    assert lines and all(line.endswith(f"/{TOP}.slice/{TOP}-pod1.slice/nsrun-c.scope") for line in lines), lines
    limit = [place / "pids.max" for place in scopes() if (place / "pids.max").exists()]
    assert [file.read_text() for file in limit] == ["50\n"]
    r.ok("--systemd-cgroup", "start", "c")
    told = r.ok("exec", "c", "cat", "/proc/self/cgroup").split()
    assert all(line.endswith(":/" if own else "/nsrun-c.scope") for line in told) or own
    r.ok("update", "--pids-limit", "60", "c")
    assert r.systemd.calls("SetUnitProperties") == [("nsrun-c.scope", True, [("TasksMax", ("t", 60))])]
    assert [file.read_text() for file in limit] == ["60\n"]
    r.ok("pause", "c"), r.ok("resume", "c")
    r.ok("delete", "--force", "c")
    assert r.systemd.calls("StopUnit") == [("nsrun-c.scope", "replace")]
    assert not r.systemd.units and not scopes() and not (r.state / "c").exists()


@pytest.mark.live
@pytest.mark.parametrize("result, told", [("failed", "StartTransientUnit nsrun-c.scope: failed"), ("exists", "already loaded"), ("away", "no answer from D-Bus")])  # fmt: skip
def test_what_systemd_refuses(r, result, told):
    bundle = r.bundle("c", document(r))
    env = dict(r.env)
    if result == "exists":
        r.systemd.units["nsrun-c.scope"] = "other"
    elif result == "away":
        env["DBUS_SYSTEM_BUS_ADDRESS"] = f"unix:path={r.base}/nosuch"
    else:
        r.systemd.result = result
    done = r.call("--systemd-cgroup", "create", "--bundle", bundle, "c", env=env)
    assert done.returncode == 1 and told in done.stderr and done.stderr.count("\n") == 1, done
    assert not (r.state / "c").exists() and not scopes()
    wait_for(r._reap_all)


@pytest.mark.live
def test_a_create_that_is_killed_while_systemd_works(r):
    """What is to be stopped is written down before it is asked for."""
    r.systemd.result = ""
    words = r.words(
        r.program, f"--root={r.state}", "--systemd-cgroup", "create", "--bundle", r.bundle("c", document(r)), "c"
    )
    child = subprocess.Popen(words, stdin=subprocess.DEVNULL, env=r.env)
    wait_for(lambda: r.systemd.calls("StartTransientUnit"))
    child.send_signal(signal.SIGKILL)
    child.wait()
    r.systemd.units.setdefault("nsrun-c.scope", f"{TOP}.slice/{TOP}-pod1.slice/nsrun-c.scope")
    r.systemd.result = "done"
    r.ok("delete", "--force", "c")
    assert r.systemd.calls("StopUnit") == [("nsrun-c.scope", "replace")]
    assert not scopes() and not (r.state / "c").exists()
    wait_for(r._reap_all)


@pytest.mark.live
def test_delete_when_systemd_has_gone(r):
    """A scope in which nothing runs ends by itself: that is said, and the rest is removed."""
    r.ok("--cgroup-manager=systemd", "create", "--bundle", r.bundle("c", document(r)), "c")
    r.pids.append(r.status("c")["pid"])
    done = r.call("delete", "--force", "c", env={**r.env, "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={r.base}/nosuch"})
    assert done.returncode == 0 and "no answer from D-Bus" in done.stderr
    assert not scopes() and not (r.state / "c").exists()


@pytest.mark.live
def test_without_systemd_and_with_a_path_of_the_other_kind(r):
    bundle = r.bundle("c", document(r))
    r.run("rmdir", "/run/systemd/system")
    done = r.call("--systemd-cgroup", "create", "--bundle", bundle, "c")
    assert done.returncode == 1 and "systemd does not run here" in done.stderr
    r.run("mkdir", "/run/systemd/system")
    done = r.call("create", "--bundle", bundle, "c")
    assert done.returncode == 1 and "is a path for systemd" in done.stderr
    made = json.loads((bundle / "config.json").read_text())
    made["linux"]["cgroupsPath"] = "/a/b"
    (bundle / "config.json").write_text(json.dumps(made))
    done = r.call("--systemd-cgroup", "create", "--bundle", bundle, "c")
    assert done.returncode == 1 and "slice:prefix:name" in done.stderr
    assert not r.systemd.asked and not (r.state / "c").exists()


def test_jeepney_is_imported_only_where_it_is_needed():
    code = "import sys; from nsrun.oci import lifecycle, main, plan, leave; sys.exit('jeepney' in sys.modules or 'nsrun.oci.systemd' in sys.modules)"
    assert subprocess.run([sys.executable, "-I", "-c", code], check=False).returncode == 0
