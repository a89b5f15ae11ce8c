# SPDX-License-Identifier: Apache-2.0
"""Pods: made, listed, ended; what the kernel says about them."""

import os
import pathlib
import re
import signal
import subprocess
import threading
import time

import pytest
from conftest import NSRUN, kill, need, open_files, settled, sh, tables, wait_for

from nsrun import kernel


def status(pid: int) -> dict[str, str]:
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(re.split(r":\s*", line, maxsplit=1) for line in lines if ":" in line)


def test_pause_is_harmless(host, pod):
    """65535, no capabilities, non-dumpable, an empty read-only root, and no descriptor that it does not need."""
    info = host.pod()
    pid = info["pid"]
    now = status(pid)
    assert now["Uid"].split() == ["65535"] * 4 and now["Gid"].split() == ["65535"] * 4 and now["Groups"] == ""
    assert all(int(now[f"Cap{kind}"], 16) == 0 for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb"))
    assert now["NSpid"].split()[-1] == "1" and now["Name"] == "pause"
    assert os.stat(f"/proc/{pid}/mem").st_uid == 0, "non-dumpable: /proc files belong to root"
    mounts = pathlib.Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    assert [line.split()[4] for line in mounts] == ["/", "/proc", "/dev/shm", "/dev/mqueue"]
    assert mounts[0].split()[5].startswith("ro")
    held = os.listdir(
        f"/proc/{pid}/fd"
    )  # by whose lock others know that it lives: an empty file, which it can only read
    assert [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in held] == [str(host.root / "run/pods/pause/held")]
    info = dict(line.split(":\t") for line in pathlib.Path(f"/proc/{pid}/fdinfo/{held[0]}").read_text().splitlines())
    assert (
        int(info["flags"], 8) & os.O_ACCMODE == os.O_RDONLY and (host.root / "run/pods/pause/held").stat().st_size == 0
    )
    assert sorted(os.listdir(f"/proc/{pid}/root")) == ["dev", "etc", "member", "proc"]
    assert pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"/pause\0")
    assert "memfd" in os.readlink(f"/proc/{pid}/exe")


def test_json_has_the_contracts_keys(host, pod):
    info = host.json("pod", "ls")[0]
    assert set(info) >= {
        "id",
        "name",
        "status",
        "pid",
        "created",
        "owner",
        "hostname",
        "namespaces",
        "network",
        "ports",
        "members",
        "labels",
    }
    assert set(info["network"]) == {
        "mode",
        "name",
        "ip",
        "ipv6",
        "ip6",
        "gateway",
        "bridge",
        "veth",
        "closed",
        "isolated",
        "mtu",
    }
    assert info["status"] == "running" and info["name"] == "pause" and info["network"]["mode"] == "none"
    for name in ("net", "ipc", "pid", "uts", "mnt", "user"):
        assert info["namespaces"][name] == os.stat(f"/proc/{info['pid']}/ns/{name}").st_ino
    mine = {name: os.stat(f"/proc/thread-self/ns/{name}").st_ino for name in ("net", "ipc", "pid", "uts", "mnt")}
    assert not set(mine.values()) & set(info["namespaces"].values())


def test_pause_is_small(host, pod):
    rollup = pathlib.Path(f"/proc/{host.pod()['pid']}/smaps_rollup").read_text()
    rss = int(re.search(r"Rss:\s+(\d+)", rollup).group(1))
    assert rss <= 16, f"{rss} KiB resident"


def test_two_pods_do_not_meet(host, pod):
    host.run("pod", "create", "--network", "none", "other")
    first, second = host.pod("pause"), host.pod("other")
    assert not set(first["namespaces"][n] for n in ("net", "ipc", "pid", "uts", "mnt")) & set(
        second["namespaces"].values()
    )


def test_name_taken(host, pod):
    before = host.snapshot()
    message = host.fails(125, "pod", "create", "--network", "none", "pause")
    assert "taken" in message and "hint:" in message
    assert host.snapshot() == before


def test_unknown_pod_lists_the_known(host, pod):
    for words in (
        ["pod", "inspect", "nope"],
        ["pod", "stop", "nope"],
        ["pod", "kill", "nope"],
        ["pod", "rm", "nope"],
        ["pod", "ps", "nope"],
        ["join", "nope", "true"],
    ):
        message = host.fails(125, *words)
        assert "no pod 'nope'" in message and "pause" in message
    assert host.run("pod", "rm", "-f", "nope").returncode == 0


def test_kill_ends_everything(host, pod, busybox):
    host.start("a", busybox, "sleep", "1000")
    pids = [host.pod()["pid"], host.member("a")["pid"]]
    began = [kernel.process_start(pid) for pid in pids]
    host.run("pod", "kill", "pause")
    # a zombie has none; and on a busy machine another process may have the pid by now
    assert not any(start == kernel.process_start(pid) for pid, start in zip(pids, began, strict=True))
    assert host.json("pod", "ls") == [] and host.json("ls") == []


def test_stop_stops_members_first(host, pod, busybox):
    script = 'trap "echo bye >/dev/shm/bye; exit 3" TERM; while :; do sleep 0.1; done'
    host.start("a", busybox, "sh", "-c", script)
    log = host.background("logs", "-f", "a")
    waiter = host.background("wait", "a", stdout=-1, text=True)
    wait_for(lambda: len(host.run("pod", "ps", "pause").stdout.splitlines()) > 2)
    # `wait` must have begun, or the member is gone before it looks
    wait_for(lambda: "anon_inode:[pidfd]" in open_files(waiter.pid))
    waiter.send_signal(signal.SIGSTOP)  # it looks when all is gone
    host.run("pod", "stop", "-t", "5", "pause")
    waiter.send_signal(signal.SIGCONT)
    assert waiter.communicate(timeout=30)[0].strip() == "3"
    log.wait(timeout=30)
    assert host.json("pod", "ls") == []


@pytest.mark.parametrize(
    ("words", "reads"),
    [(["pod", "create", "--network", "none", "x"], 1), (["pod", "ls"], 2), (["ls", "-a"], 2)],
)
def test_what_has_ended_costs_little(host, pod, busybox, tmp_path, words, reads):
    """However many members have ended, their notes are read once by the command and once by the sweep, and say little."""
    need(os.path.exists("/usr/bin/strace"), "strace is missing", "apt-get install strace")
    for number in range(3):
        host.run("join", "pause", "--name", f"m{number}", "--rootfs", busybox, "true")
    file = tmp_path / "trace"
    sh("strace", "-o", file, "-e", "trace=openat", NSRUN, *words, env={**host.env, "NSRUN_REPLAY": "0"})
    for number in range(3):
        assert 0 < file.read_text().count(f"/members/m{number}/note") <= reads
    assert (host.root / "run/members/m0/note").stat().st_size < 1500


def test_kill_dash_nine_from_outside(host, pod, busybox):
    """The kernel ends all members; the next command frees what is left of them, and their story stays."""
    host.start("a", busybox, "sleep", "1000")
    member = host.member("a")["pid"]
    kill(host.pod()["pid"])
    wait_for(lambda: not os.path.exists(f"/proc/{member}"))
    message = host.fails(125, "join", "pause", "true")
    assert "dead" in message or "no pod" in message
    assert host.json("pod", "ls") == [] and host.json("ls") == []
    assert [m["status"] for m in host.json("ls", "-a")] == ["stopped"]  # its story stays until somebody says so
    host.run("pod", "rm", "pause")
    assert host.json("ls", "-a") == [] and host.json("pod", "ls", "-a") == []


def test_signals_that_do_not_end_it(host, pod):
    pid = host.pod()["pid"]
    for name in ("HUP", "USR1", "CHLD"):
        host.run("pod", "kill", "-s", name, "pause")
    assert host.pod()["pid"] == pid
    host.run("pod", "kill", "-s", "TERM", "pause")
    assert host.json("pod", "ls") == []


def test_a_stopped_pause(host, pod, busybox):
    """SIGSTOP from outside: members live and are made as before, and the pod can be stopped."""
    kill(host.pod()["pid"], signal.SIGSTOP)
    host.start("m", busybox, "sleep", "1000")
    host.run("exec", "m", "true")
    began = time.monotonic()
    host.run("pod", "stop", "-t", "20", "pause")
    assert time.monotonic() - began < 15 and host.json("pod", "ls") == []


def test_rm_needs_force_for_what_runs(host, pod):
    assert "running" in host.fails(125, "pod", "rm", "pause")
    host.run("pod", "rm", "-f", "pause")
    assert host.json("pod", "ls") == []


def test_orphans_are_reaped_by_pause(host, pod, busybox):
    host.run("join", "pause", "--rootfs", busybox, "sh", "-c", "(sh -c 'sleep 0.2' &) ; exit 0")
    pid = host.pod()["pid"]
    wait_for(lambda: not pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split(), what="no child of pause")


def test_hostname_hosts_and_limits_of_shm(host, busybox):
    host.run(
        "pod create --network none --hostname hosty --add-host db:192.0.2.7 --dns 192.0.2.53 --dns 2001:db8::53 --shm-size 1m --label a=b"
    )
    out = host.run(
        "join pause --rootfs {} sh -c 'hostname; cat /etc/hosts /etc/hostname /etc/resolv.conf; df -k /dev/shm | tail -1; id -u'",
        busybox,
    ).stdout
    assert out.splitlines()[0] == "hosty"
    assert (
        "192.0.2.7\tdb" in out
        and "nameserver 192.0.2.53\nnameserver 2001:db8::53\n" in out
        and re.search(r"\s1024\s", out)
    )
    assert host.pod()["labels"] == {"a": "b"}


def test_sysctls_of_the_pod(host):
    host.run("pod", "create", "--network", "none", "--sysctl", "net.core.somaxconn=321")
    pid = host.pod()["pid"]
    assert sh("nsenter", "-t", pid, "-n", "sysctl", "-n", "net.core.somaxconn").stdout.strip() == "321"
    assert sh("nsenter", "-t", pid, "-n", "sysctl", "-n", "net.ipv4.ip_unprivileged_port_start").stdout.strip() == "0"
    message = host.fails(125, "pod", "create", "--network", "none", "--sysctl", "net.nope=1", "other")
    assert "step " in message and "net/nope" in message
    assert [p["name"] for p in host.json("pod", "ls")] == ["pause"]


def test_network_host(host, busybox):
    host.run("pod", "create", "--network", "host", "h")
    assert host.pod("h")["namespaces"]["net"] == os.stat("/proc/thread-self/ns/net").st_ino


def test_many_at_once(host):
    """Fifty pods at the same time: fifty pods, no address twice."""
    results: list[int] = []

    def one(number: int) -> None:
        results.append(
            host.run(
                "pod", "create", "-p", f"127.0.0.1:{20000 + number}:80", f"p{number}", check=False, timeout=100
            ).returncode
        )

    threads = [threading.Thread(target=one, args=(i,)) for i in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [0] * 50
    pods = host.json("pod", "ls")
    assert len(pods) == 50
    assert len({p["network"]["ip"] for p in pods}) == 50
    assert len({p["ports"][0]["host_port"] for p in pods}) == 50


def test_the_same_name_at_once(host):
    codes: list[int] = []
    threads = [
        threading.Thread(
            target=lambda: codes.append(host.run("pod", "create", "--network", "none", "x", check=False).returncode)
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [0] + [125] * 7


def test_interrupt_leaves_nothing(host):
    """SIGINT and SIGTERM at any moment: undone, or done."""
    for number in (signal.SIGINT, signal.SIGTERM):
        for delay in (0.005, 0.01, 0.015, 0.02, 0.03, 0.04):
            process = host.background("pod", "create", "-p", "127.0.0.1:20100:80", "i", stdout=-1, stderr=-1, text=True)
            try:
                process.wait(timeout=delay)
            except subprocess.TimeoutExpired:
                process.send_signal(number)
            assert "site-packages/nsrun" not in process.communicate(timeout=20)[1]  # no traceback of ours
            pods = host.json("pod", "ls")
            assert len(pods) == (process.returncode == 0), (number, delay, process.returncode)
            host.run("pod", "rm", "-f", "i")
            settled()
            assert tables() == []
