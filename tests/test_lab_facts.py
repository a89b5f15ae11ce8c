# SPDX-License-Identifier: Apache-2.0
"""What the labs ask the kernel: nsrun/teach/facts.py about sockets, rules, ids, cgroups and files."""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import subprocess
import sys
import time

import pytest
from conftest import sh, wait_for

from nsrun.teach import facts, scene
from nsrun.teach.facts import entered


@contextlib.contextmanager
def running(*command: str, **kwargs):
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, **kwargs)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def listening(family: int, address: str) -> socket.socket:
    server = socket.socket(family)
    server.bind((address, 0))
    server.listen(8)
    return server


def test_both_ends_of_a_connection(host):
    """A server on :: shows its clients over IPv4 as such."""
    with listening(socket.AF_INET6, "::") as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            own = client.getsockname()[1]
            found = facts.tcp(os.getpid())
            assert [sock.address for sock in found if sock.port == port and sock.state == "LISTEN"] == ["::"]
            (end,) = [sock for sock in found if sock.port == port and sock.state == "ESTABLISHED"]
            assert (end.address, end.peer, end.peer_port) == ("127.0.0.1", "127.0.0.1", own)
            (other,) = [sock for sock in found if sock.port == own and sock.state == "ESTABLISHED"]
            assert facts.holders(other.inode) == [os.getpid()]
            assert facts.holders(other.inode, [1]) == []
    assert facts.tcp(0) == []


def test_a_web_server_is_asked_from_another_namespace(host, busybox, tmp_path):
    (tmp_path / "index.html").write_text("hello\n")
    command = [
        "unshare",
        "--net",
        "sh",
        "-c",
        f"ip link set lo up; exec {busybox}/bin/busybox httpd -f -p 80 -h {tmp_path}",
    ]
    seen: list[str] = []
    with running(*command) as pid:
        wait_for(lambda: any(port == 80 for _, _, port in facts.sockets(pid)), what="it listens")

        def look(own: int) -> None:
            seen.extend(sock.peer for sock in facts.tcp(pid) if sock.peer_port == own and sock.port == 80)

        assert facts.http(pid, "127.0.0.1", 80, look) == "hello\n"
        assert seen == ["127.0.0.1"]
        assert scene.ask(pid, "127.0.0.1", 81) == "Connection refused"
        assert [link["ifname"] for link in facts.ip_addresses(pid)] == ["lo"]
        assert facts.routes(pid) == []
    with pytest.raises(OSError, match="No such file|has ended"):
        facts.http(pid, "127.0.0.1", 80)
    assert facts.ip_addresses(pid) == []


def test_a_table_with_an_owner(host):
    pod = host.run("pod", "create", "--owner", "root", "-p", "127.0.0.1::80", "pause")
    assert pod.returncode == 0
    sh("nft", "add", "table", "ip", "ours")
    try:
        tables = facts.tables(os.getpid())
        owned = {name: facts.has_owner(text) for name, text in tables.items() if name[1].startswith("nsrun-0")}
        assert len({name for _, name in owned}) == 1
        assert [(family, has) for (family, _), has in owned.items()] == [("ip", True), ("ip6", True)]
        assert not facts.has_owner(tables["ip", "ours"])
    finally:
        sh("nft", "delete", "table", "ip", "ours")


def test_ids_inside(host, alice):
    script = "import os, time; print(os.getpid(), flush=True); time.sleep(100)"
    command = ["unshare", "--user", "--map-root-user", "--map-auto", "setpriv", "--reuid", "33", "--clear-groups"]
    words = alice.words(*command, sys.executable, "-c", script)
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**alice.env, "SAID": "yes"}, cwd="/")
    try:
        pid = int(process.stdout.readline())
        found = facts.process(pid)
        assert facts.id_map(pid)[0] == (0, alice.uid, 1) and found.uid not in (0, alice.uid)
        assert facts.uid_inside(found) == 33
        with running("sleep", "100") as outside:
            assert facts.uid_inside(facts.process(outside)) == 0
            assert facts.file_from_inside(outside, f"/proc/{outside}/environ") == b""
        # as its owner, who may not open these files, and may become root of its user namespace
        ask = f"from nsrun.teach import lab; print(b'SAID=yes' in lab.environment({pid}))"
        assert alice.sh(sys.executable, "-c", ask).stdout == "True\n"
    finally:
        process.kill()
        process.wait()


def test_no_link_and_no_fifo_misleads(rootfs):
    os.symlink("/etc/passwd", rootfs / "link")
    os.symlink("/", rootfs / "top")
    os.mkfifo(rootfs / "fifo")
    (rootfs / "word").write_text("inside\n")
    with running("chroot", str(rootfs), "sleep", "100") as pid:
        wait_for(lambda: facts.root_of(pid) == facts.root_of_directory(str(rootfs)), what="it has its root")
        assert facts.text_in_root(pid, "word") == "inside\n"
        assert facts.text_in_root(pid, "link") == (rootfs / "etc/passwd").read_text()
        assert facts.text_in_root(pid, "fifo") == facts.text_in_root(pid, "none") == ""
        assert facts.names_in_root(pid, "top") == sorted(os.listdir(rootfs))
        assert facts.names_in_root(pid, "fifo") == facts.names_in_root(pid, "none") == []
        assert facts.inode_in_root(pid, "top") == facts.root_of(pid)
        assert facts.inode_in_root(pid, "none") is None
        # chroot(2) alone moves nobody who joins the mount namespace
        assert facts.root_of_namespace(pid) != facts.root_of(pid)
    assert facts.text_in_root(pid, "word") == "" and facts.names_in_root(pid, "top") == []


def test_who_counts_memory(host):
    version, point = facts.controller("memory")
    assert facts.controller("no-such") == (0, "")
    if not version:
        assert facts.cgroup(os.getpid(), "memory") == ""
        return
    own = facts.cgroup(os.getpid(), "memory")
    assert own.startswith(point) and str(os.getpid()) in open(f"{own}/cgroup.procs").read().split()
    assert facts.memory_limit("/proc") == "" and facts.out_of_memory("/proc") == -1


def test_nice(host):
    with running("nice", "-n", "7", "sleep", "100") as pid:
        wait_for(lambda: facts.process(pid).name == "sleep", what="it is executed")
        assert facts.nice(pid) == min(19, os.nice(0) + 7)


def test_root_executes_nothing_in_namespaces_of_others(host, alice, tmp_path):
    """Alice is root of her user namespace: she chooses what stands at any path in there, and may trace whatever comes in."""
    program, proof = alice.home / "evil", alice.home / "proof"
    program.write_text(f"#!/bin/sh\nid -u >>{proof}\necho 1 2\n")
    program.chmod(0o755)
    mounts = "".join(
        f"mount --bind {program} $(command -v {tool}); " for tool in ("stat", "cat", "find", "uname", "ip")
    )
    inside = ["unshare", "-Urmnui", "--propagation", "private", "sh", "-c", f"{mounts} exec sleep 1000"]
    with running(*alice.words(*inside), env=alice.env) as pid:
        wait_for(lambda: facts.process(pid).name == "sleep", what="her process")
        assert "--user" not in facts.enter(pid, "net", "uts", "mnt")
        assert facts.root_of_namespace(pid) == facts.root_of(pid)
        facts.hostname_of(pid), facts.segments(pid), facts.ip_addresses(pid), facts.tables(pid)
        assert facts.file_from_inside(pid, "/etc/passwd") == b""
        with pytest.raises(OSError, match="refused|unreachable"):
            facts.http(pid, "127.0.0.1", 80)
    assert not proof.exists()


def clients_of_root(pid: int) -> list[int]:
    """The clients that root has in the network namespace of a process, and not those of another test's."""
    inside = facts.namespaces_of(pid)["net"]
    return [
        p.pid
        for p in facts.processes()
        if "nsrun.teach.client" in p.command and p.namespaces.get("net") == inside and p.state not in "ZX"
    ]


def test_who_asks_for_root_stays_out_of_the_user_namespace(host, alice, busybox):
    """While a server of hers lets a client of root's wait, that client can't be traced by who is root in there."""
    script = f"ip link set lo up; while :; do {busybox}/bin/busybox nc -l -p 80; done </dev/zero >/dev/null"
    with running(
        *alice.words("unshare", "-Urn", "--pid", "--fork", "--kill-child", "sh", "-c", script), env=alice.env
    ) as pid:
        wait_for(lambda: 80 in facts.listening(pid), what="her server")
        found: list[str] = []

        def meanwhile(port: int) -> None:
            found.extend(os.readlink(f"/proc/{child}/ns/user") for child in clients_of_root(pid))

        with contextlib.suppress(OSError):
            facts.http(pid, "127.0.0.1", 80, meanwhile)
        assert found == [os.readlink("/proc/self/ns/user")] * len(found) and found


def test_a_helper_may_take_and_print_only_so_much():
    begin = time.monotonic()
    assert entered.printed_by(["echo", "hello"]) == b"hello\n"
    assert entered.printed_by(["cat", "/dev/zero"], most=1 << 20) is None
    for script in ("sleep 1000", "exec >&-; sleep 1000", "while :; do echo x; sleep 0.1; done"):
        assert entered.printed_by(["sh", "-c", script], seconds=0.3) is None
    assert entered.printed_by(["false"]) is entered.printed_by(["/no/such/program"]) is None
    os.environ["SAID"] = "yes"
    assert b"SAID" not in (entered.printed_by(["env"]) or b"SAID")
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize("script", ["import itertools\nfor _ in itertools.repeat(0): sock.sendall(b'x' * 65536)", "while 1: sock.sendall(b'x'); time.sleep(0.2)", "time.sleep(100)"])  # fmt: skip
def test_a_server_that_does_not_end(script):
    """What it sends without end is cut, and who sends nothing, or little by little, is left after a second."""
    server = "import socket, time\nserver = socket.create_server(('127.0.0.1', 0)); print(server.getsockname()[1], flush=True)\nsock, _ = server.accept()\n"
    with subprocess.Popen([sys.executable, "-c", server + script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:  # fmt: skip
        port = int(process.stdout.readline())
        begin = time.monotonic()
        assert len(scene.ask(os.getpid(), "127.0.0.1", port)) <= 80
        assert time.monotonic() - begin < 8
        process.kill()


def test_a_file_of_a_process_that_is_too_long(monkeypatch):
    """What is asked of it is then not known; a process with a long command line is there nevertheless."""
    module = importlib.import_module("nsrun.teach.facts.processes")
    with running(sys.executable, "-c", "import time; time.sleep(100)", "x" * 120_000, "y" * 120_000) as pid:
        wait_for(lambda: len(facts.process(pid).command) == 5, what="it is executed")
        assert facts.mounts(pid)
        monkeypatch.setattr(module, "MOST", 70_000)
        assert 1000 < len(facts.process(pid).command[-1]) < 120_000
        with pytest.raises(OSError, match="too large"):
            module.read(pid, "cmdline")
        monkeypatch.setattr(module, "MOST", 100)
        assert facts.mounts(pid) == []
