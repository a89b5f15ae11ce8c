# SPDX-License-Identifier: Apache-2.0
"""The map of pods that podman, crun, runc and containerd made, compared with what the kernel says about each process."""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ElementTree

import pytest
from conftest import NSRUN, need, sh, wait_for
from engines import HOLD, Containerd, Machine, Podman, Runtime, UserPodman, engine
from test_map import Picture, clashes, one, roles

KINDS = ("user", "net", "ipc", "uts", "pid", "mnt", "cgroup")


def told(pid: int) -> dict[str, str]:
    """What /proc says about a process, without the code that is tested: its namespaces, and what is mounted at /dev/shm."""
    found = {kind: sh("stat", "-L", "-c", "%i", f"/proc/{pid}/ns/{kind}").stdout.strip() for kind in KINDS}
    with open(f"/proc/{pid}/mountinfo") as file:
        shm = [line.split()[2] for line in file if line.split()[4] == "/dev/shm"]
    return found | ({"shm": shm[-1]} if shm else {})


def are_as_told(pod: dict) -> None:
    """Each station is where the kernel says, and each line has exactly the stations that are in its namespace."""
    places = [told(station["pid"]) for station in pod["stations"]]
    for station, place in zip(pod["stations"], places, strict=True):
        assert {kind: inode for kind, inode in station["places"].items() if kind != "time"} == place
        with open(f"/proc/{station['pid']}/status") as file:
            status = dict(line.split(":\t", 1) for line in file if ":\t" in line)
        assert station["pids"] == [int(number) for number in status["NSpid"].split()]
        assert station["uid"] == int(status["Uid"].split()[0])
    for line in pod["lines"]:
        if not line["own"] and line["kind"] != "time":
            (place,) = line["places"]
            assert line["stops"] == [at for at, found in enumerate(places) if found.get(line["kind"]) == place], line


def row(text: str, kind: str) -> str:
    """The first line of a kind in the text, without blanks at its end."""
    return next(line for line in text.split("\n") if line.startswith(f"  {kind} "))


def drawn(machine: Machine, pid: int) -> str:
    """The map as text, when the picture has been compared with it."""
    pod, text = machine.mapped(pid), machine.map(pid)
    picture = machine.map(pid, "--format", "svg")
    root, found = ElementTree.fromstring(picture), Picture(picture)
    assert clashes([place for place, _ in found.texts] + found.dots) == []
    assert len(found.dots) == sum(len(line["stops"]) for line in pod["lines"]) > 0
    words = [words for _, words in found.texts]
    for station in pod["stations"]:
        assert station["name"] in words and any(word.startswith(station["role"]) for word in words), station
        assert f" {station['pid']} " in text
    classes = [one_.get("class") or "" for one_ in root.iter()]
    assert classes.count("station foreign") == len(roles(pod).get("foreign", []))
    return text


def running_in(machine: Machine, pid: int, *options: str):
    """A stranger: a process of the machine's that enters some namespaces of a container by hand."""
    stranger = machine.start("nsenter", f"--target={pid}", *options, "sleep", "1000")
    wait_for(lambda: told(stranger.pid)["net"] == told(pid)["net"], what="the stranger is inside")
    wait_for(lambda: open(f"/proc/{stranger.pid}/comm").read() == "sleep\n")
    return stranger


def whole(pod: dict, stations: int) -> dict:
    """The pod, once it has so many stations and somebody listens; {}: not yet."""
    return pod if len(pod["stations"]) == stations and pod["way"][-1]["title"] == "listening" else {}


def limits_work() -> bool:
    return os.path.exists("/sys/fs/cgroup/memory") or "memory" in open("/sys/fs/cgroup/cgroup.controllers").read()


def test_podman(host, rootfs):
    """A pod with a user namespace, on podman's bridge: its containers, who came later, a stranger, ids, /dev/shm, limits."""
    ids = ("--uidmap=0:200000:65536", "--gidmap=0:300000:65536")
    limits = ("--memory=64m", "--pids-limit=50") if limits_work() else ("--pids-limit=0",)
    with engine(Podman, host, rootfs) as machine:
        machine.pod("--network=podman", "--publish=127.0.0.1:18080:80", "--shm-size=32m", *ids)
        machine.container("web", "sh", "-c", "sleep 1001 & httpd -f -p 80", options=limits)
        machine.container("clock", "sleep", "1002", options=("--user=33", "--pids-limit=0"))
        machine.podman("exec", "--detach", "clock", "sleep", "1003")
        (sandbox, first), (web, second), (clock, third) = map(machine.ask, ("sandbox", "web", "clock"))
        stranger = running_in(machine, web, "--net")
        try:
            pod = wait_for(lambda: whole(machine.mapped(web), 5), what="all processes")
            are_as_told(pod)
            text = drawn(machine, web)
            assert [s["pid"] for s in pod["stations"]] == [s["pid"] for s in machine.mapped(stranger.pid)["stations"]]
        finally:
            stranger.kill()
            stranger.wait()
        assert roles(pod) == {"container": [first, second, third], "exec": [third], "foreign": ["sleep"]}
        assert [s["pid"] for s in pod["stations"][:3]] == [sandbox, web, clock]
        assert pod["stations"][4]["pid"] == stranger.pid and one(pod, "container", second)["children"] == 1
        assert one(pod, "container", third)["uid_inside"] == 33 and one(pod, "container", third)["uid"] == 200033
        (mapped,) = pod["maps"]
        assert (mapped["uids"], mapped["gids"]) == ([[0, 200000, 65536]], [[0, 300000, 65536]])
        stops = {stop["title"]: stop["details"] for stop in pod["way"]}
        assert stops["podman0"] == ["bridge"] and stops["listening"] == ["80"] and "port of podman0" in str(stops)
        assert pod["limits"][-1] == "/dev/shm 32 MiB"
        if limits_work():
            memory, processes = (limit for limit in pod["limits"] if limit.startswith(f"{second}: "))
            assert memory.endswith("of 64 MiB") and processes == f"{second}: processes 2 of 50"
        assert "●─────●─────●─────●─────●" in row(text, "net") and row(text, "/dev/shm").endswith("●─────●─────●─────●")
        assert f"exec in {third}" in text and "sleep (foreign)" in text and "0 → 200000 (+65535); groups 0 → 300000 (+65535)" in text  # fmt: skip
        assert "foreign" not in roles(machine.mapped(web))


def test_one_pid_namespace_of_podmans(host, rootfs):
    """What loses its parent is adopted by the first process of the pod, and is its container's all the same."""
    with engine(Podman, host, rootfs) as machine:
        machine.pod("--network=none", "--share=pid,net,ipc")
        machine.container("web", "sh", "-c", "(sleep 1001 &); sleep 1002; true")
        (sandbox, first), (web, second) = map(machine.ask, ("sandbox", "web"))
        wait_for(lambda: sh("ps", "--ppid", sandbox, check=False).returncode == 0, what="the orphan")
        pod = machine.mapped(web)
        are_as_told(pod)
        drawn(machine, web)
    assert roles(pod) == {"container": [first, second]}
    assert one(pod, "container", second)["children"] == 2 and one(pod, "container", first)["children"] == 0
    assert [line["stops"] for line in pod["lines"] if line["kind"] == "pid"] == [[0, 1]]


def test_podman_without_root(host, rootfs, alice):
    """There is no cgroup to tell who is in which container, so all are processes; the rest is as true as ever."""
    with engine(UserPodman, host, rootfs, alice) as machine:
        ids = machine.podman("unshare", "cat", "/proc/self/uid_map")
        need(
            len(ids.splitlines()) > 1, "podman gives alice one id only", "newuidmap that works: apt-get install uidmap"
        )
        machine.pod("--network=none")
        machine.container("web", "sleep", "1001")
        machine.container("clock", "sleep", "1002", options=("--user=33",))
        machine.podman("run", "--detach", "--cgroups=disabled", "--network=none", "busybox", "sleep", "1003")
        pids = [machine.ask(name)[0] for name in ("sandbox", "web", "clock")]
        for who in (machine.map, lambda *words: machine.run(*alice.words(NSRUN, "map", *words)).stdout):
            (pod,) = json.loads(who(pids[1], "--format", "json"))["pods"]
            assert [s["pid"] for s in pod["stations"]] == pids, (
                "without the one that is in the same user namespace only"
            )
            are_as_told(pod)
            assert roles(pod) == {"process": ["sleep"] * 3}
            assert [line["stops"] for line in pod["lines"] if line["kind"] in ("user", "net", "ipc", "uts", "shm")] == [[0, 1, 2]] * 5  # fmt: skip
        drawn(machine, pids[1])
        (ids,) = pod["maps"]
        assert ids["owner"] == alice.uid and ids["uids"][0] == [0, alice.uid, 1] and len(ids["uids"]) == 2
        assert pod["stations"][2]["uid_inside"] == 33


@pytest.mark.parametrize("program", ["crun", "runc"])
def test_bundles(host, rootfs, program):
    """Two bundles share namespaces by path, as below a kubelet; /dev/shm is shared by a mount, which the third one has not."""
    resources = {"memory": {"limit": 64 << 20}, "pids": {"limit": 50}, "cpu": {"quota": 50000, "period": 100000}}
    with engine(Runtime, host, rootfs, program) as machine:
        (machine.base / "shm").mkdir()
        machine.run("mount", "-t", "tmpfs", "-o", "size=8m", "shm", machine.base / "shm")
        sandbox = machine.container("sandbox", shm=machine.base / "shm")
        web = machine.container("web", sandbox, machine.base / "shm", resources=resources if limits_work() else {})
        island = machine.container("island", sandbox)
        if limits_work():  # what is above the containers limits each of them
            machine.limit("pids.max", 40)
        later = machine.start(*machine.call, "exec", "web", "/bin/sleep", "1003")
        wait_for(lambda: len(machine.mapped(web)["stations"]) == 4, what="exec")
        pod = machine.mapped(web)
        are_as_told(pod)
        text = drawn(machine, island)
        assert later.poll() is None
        later.kill()
        later.wait()
    assert roles(pod) == {"container": ["sandbox", "web", "island"], "exec": ["web"]}
    assert [s["role"] for s in pod["stations"]] == ["container", "container", "exec", "container"]
    assert [one(pod, "container", name)["pid"] for name in ("sandbox", "web", "island")] == [sandbox, web, island]
    assert [(line["stops"], line["own"]) for line in pod["lines"] if line["kind"] == "shm"] == [([0, 1, 2], False), ([3], True)]  # fmt: skip
    assert "/dev/shm 8 MiB, 64 MiB" in pod["limits"] and pod["maps"] == []
    if limits_work():
        found = [limit for limit in pod["limits"] if limit.startswith("web: ")]
        assert "web: processors 0.5" in found and any(limit.endswith("of 64 MiB") for limit in found)
        for name in ("sandbox", "web", "island"):
            assert f"{name}: processes 4 of 40" in pod["limits"]
    assert "●─────●─────●─────●" in row(text, "net") and row(text, "/dev/shm").endswith("●─────●─────●")


@pytest.mark.parametrize("program", ["crun", "runc"])
def test_a_bundle_with_ids(host, rootfs, program):
    """A user namespace of two ranges; a second container of the same map is in another one."""
    maps = [{"containerID": 0, "hostID": 200000, "size": 10}, {"containerID": 100, "hostID": 300000, "size": 5}]
    sh("chmod", "755", host.root, rootfs)
    with engine(Runtime, host, rootfs, program) as machine:
        sh("chmod", "755", machine.base)
        first = machine.container("first", uidMappings=maps, gidMappings=maps)
        second = machine.container("second", uidMappings=maps, gidMappings=maps)
        pod = machine.mapped(first, second)
        are_as_told(pod)
        text = machine.map(first, second)
    assert roles(pod) == {"container": ["first", "second"]}
    assert [one_["uids"] for one_ in pod["maps"]] == [[[0, 200000, 10], [100, 300000, 5]]] * 2
    assert text.count("0 → 200000 (+9), 100 → 300000 (+4); made by uid 0") == 2
    assert [line["own"] for line in pod["lines"] if line["kind"] == "user"] == [False, True]


def test_containerd(host, rootfs):
    """A sandbox and a container that is in its namespaces by path: what containerd makes for a kubelet."""
    with engine(Containerd, host, rootfs) as machine:
        sandbox = machine.container("sandbox")
        joined = [f"--with-ns={kind}:/proc/{sandbox}/ns/{name}" for kind, name in (("network", "net"), ("ipc", "ipc"), ("uts", "uts"))]  # fmt: skip
        web = machine.container("web", *joined, *(["--memory-limit", 64 << 20] if limits_work() else []))
        machine.ctr("tasks", "exec", "--detach", "--exec-id=later", "web", *HOLD)
        stranger = running_in(machine, web, "--net", "--ipc", "--mount")
        pod = wait_for(lambda: len((pod := machine.mapped(sandbox))["stations"]) == 4 and pod, what="all processes")
        are_as_told(pod)
        text = drawn(machine, sandbox)
        stranger.kill()
        stranger.wait()
    assert roles(pod) == {"container": ["sandbox", "web"], "exec": ["web"], "foreign": ["sleep"]}
    assert [s["pid"] for s in pod["stations"][:2]] == [sandbox, web] and pod["stations"][3]["pid"] == stranger.pid
    assert "●─────●─────●─────●" in row(text, "ipc") and one(pod, "foreign")["places"]["mnt"] == one(pod, "exec")["places"]["mnt"]  # fmt: skip
    # ctr mounts a /dev/shm for each container, whatever IPC namespace it has
    assert one(pod, "container", "sandbox")["places"]["shm"] != one(pod, "container", "web")["places"]["shm"]
    if limits_work():
        assert [limit.rpartition(" of ")[2] for limit in pod["limits"] if limit.startswith("web: memory")] == ["64 MiB"]


def test_an_engine_in_a_pod_of_nsruns(host, rootfs, pod):
    """A container that podman or crun puts into a pod of nsrun's is foreign there."""
    with engine(Runtime, host, rootfs, "crun") as machine:
        guest = machine.container("guest", host.pod()["pid"])
        found = json.loads(machine.map("--format", "json"))["pods"][0]
        assert machine.mapped(guest) == found
    assert roles(found) == {"pause": ["pause"], "foreign": ["sleep"]} and one(found, "foreign")["pid"] == guest
