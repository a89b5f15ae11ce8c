# SPDX-License-Identifier: Apache-2.0
"""Published ports that come and go while a pod lives: port ls, add, rm."""

import json
import re
import socket
import subprocess
import sys

import pytest
from conftest import NSRUN, forwarded, kill, sh, wait_for
from test_explain import Expected, foretold, not_editable, traced


@pytest.fixture
def web(host, busybox):
    """A pod that answers with its name on ports 80 and 81."""

    def make(name="web", *options, **kwargs):
        host.run("pod", "create", *options, name, **kwargs)
        script = f"mkdir /w; echo {name} >/w/index.html; httpd -p 81 -h /w; exec httpd -f -p 80 -h /w"
        host.run("join", name, "-d", "--name", f"{name}-httpd", "--rootfs", busybox, "sh", "-c", script)
        pod = host.pod(name)
        wait_for(lambda: get(pod["network"]["ip"], 80) == name and get(pod["network"]["ip"], 81) == name)
        return pod

    return make


def of_both(pod_port: int, port: int) -> set[str]:
    """What is shown of a port that is published in both families."""
    return {f"{pod_port}/tcp -> {ip}:{port}" for ip in ("0.0.0.0", "[::]")}


def get(address: str, port: int, prefix=()) -> str:
    done = sh(*prefix, "curl", "-sS", "-m", "3", f"http://{address}:{port}/", check=False)
    return done.stdout.strip() if done.returncode == 0 else f"curl {done.returncode}"


def shown(host, name="web") -> set[str]:
    return set(host.run("port", "ls", name).stdout.splitlines())


def test_they_come_and_go(host, web):
    before = host.snapshot()
    pod = web("web", "-p", "8080:80")
    neighbour = ["nsenter", "-t", host.throwaway.neighbour.pid, "-n"]
    assert shown(host) == of_both(80, 8080) == set(host.run("port", "web").stdout.splitlines())

    assert "nsrun port ls web" in host.fails(125, "port", "web", "81")
    done = host.run("port", "add", "web", "8081:81", "127.0.0.1:8082:80", "8090-8091:80-81", "5353:53/udp", ":80")
    free = int(done.stdout.rpartition(":")[2])
    assert set(done.stdout.splitlines()) | of_both(80, 8080) == shown(host)
    for port in (8080, 8081, 8082, 8090, 8091, free):
        assert get("127.0.0.1", port) == "web", port
    assert get("192.0.2.1", 8081, neighbour) == "web" and get("192.0.2.1", 8082, neighbour).startswith("curl")
    assert get("192.0.2.1", 8081, ["nsenter", "-t", pod["pid"], "-n"]) == "web"
    assert len(host.pod("web")["ports"]) == 13 and "8090-8091->80-81" in host.run("pod", "ls").stdout
    assert host.pod("web")["pid"] == pod["pid"]
    assert "0.0.0.0:8081 → 81" in host.run("map", "web").stdout.replace("\n", " ")
    host.run("pod", "prune")
    assert get("127.0.0.1", 8081) == "web", "what holds the ports is nobody's rubbish"

    assert host.run("port", "rm", "web", "8081", "8090-8091").stdout.count("->") == 6
    assert get("127.0.0.1", 8081).startswith("curl") and get("127.0.0.1", 8091).startswith("curl")
    assert get("127.0.0.1", 8082) == "web" and get("127.0.0.1", free) == "web" and get("127.0.0.1", 8080) == "web"
    host.run("port", "rm", "web", "8080:80")
    assert get("127.0.0.1", 8080).startswith("curl") and get("127.0.0.1", 8082) == "web"
    host.run("port", "rm", "web", "127.0.0.1:8082", f"{free}", "5353/udp")
    assert shown(host) == set() and forwarded() == []
    assert not [line for line in host.snapshot()["processes"] if "hold" in line or "door" in line], "no holder is left"
    host.run("pod", "rm", "-f", "web")
    assert host.snapshot() == before


def test_as_json(host, alice):
    """All three say the same of a port; also for the owner of a pod."""
    host.run("pod", "create", "--network", "none", "--publish-mode", "forward", "p", env={"SUDO_UID": str(alice.uid)})
    add = ["127.0.0.1:8081:81", "--publish-mode", "forward"]
    for who, verb, specs in ((host, "add", add), (alice, "ls", []), (host, "rm", ["8081"])):
        found = json.loads(who.run("port", verb, "p", *specs, "--json").stdout)
        wanted = {"host_ip": "127.0.0.1", "host_port": 8081, "pod_port": 81, "protocol": "tcp", "mode": "forward"}
        assert found == [wanted], verb
    assert json.loads(host.run("port", "ls", "p", "--json").stdout) == []


def test_completion_offers_what_is_published(host):
    host.run("pod", "create", "-p", "8080:80", "-p", "8080:53/udp", "web")
    host.run("port", "add", "web", "127.0.0.1:8081-8082:81-82")
    assert host.run("_complete", "port", "rm", "w").stdout.split() == ["web"]
    assert set(host.run("_complete", "port", "rm", "web", "").stdout.split()) == {"8080", "8080/udp", "8081", "8082"}
    assert host.run("_complete", "port", "rm", "web", "8081", "808").stdout.split() == ["8080", "8080/udp", "8082"]
    assert host.run("_complete", "port", "rm", "no-such", "").stdout == ""


def test_connections_go_on(host, web):
    """Those of other ports are not touched, nor are those that are there."""
    pod = web("web", "-p", "8080:7")
    host.run("port", "add", "web", "8081:7", "8082:7")
    server = "import socket\ns = socket.create_server(('', 7))\nkept = []\nwhile True:\n    c = s.accept()[0]; kept.append(c); c.sendall(b'hello')"
    host.run("join", "web", "-d", "--name", "s", "--", sys.executable, "-IS", "-c", server)
    socks = {}
    for port in (8080, 8081, 8082):
        wait_for(lambda port=port: _connects(port, socks), what=f"port {port} answers")
    host.run("port", "rm", "web", "8081", "8080")
    for sock in socks.values():
        sock.sendall(b"x")
        sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            sock.recv(1)
    assert host.pod("web")["pid"] == pod["pid"]
    for sock in socks.values():
        sock.close()


def _connects(port: int, socks: dict[int, socket.socket]) -> bool:
    try:
        sock = socket.create_connection(("127.0.0.1", port), 3)
        if sock.recv(5) != b"hello":
            return False
    except OSError:
        return False
    socks[port] = sock
    return True


def test_what_was_removed_is_free(host, web):
    """For other pods, and for servers of this host, at once; the pod's own process has a socket there for good."""
    web("web", "-p", "8080:80", "-p", "5353:53/udp")
    web("two")
    host.run("port", "rm", "web", "8080", "5353/udp")
    with socket.create_server(("0.0.0.0", 8080)):
        message = host.fails(125, "port", "add", "two", "8080:80")
        assert "8080/tcp is taken" in message
    host.run("port", "add", "two", "8080:80", "5353:53/udp")
    assert get("127.0.0.1", 8080) == "two"
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with pytest.raises(OSError):
                sock.bind(("127.0.0.1", 8080 if kind == socket.SOCK_STREAM else 5353))
    assert "by pod 'two'" in host.fails(125, "port", "add", "web", "8080:80")
    host.run("pod", "rm", "-f", "two")
    host.run("port", "add", "web", "8080:80")
    assert get("127.0.0.1", 8080) == "web", "and for the pod itself"


@pytest.mark.parametrize("how", ["killed", "removed"])
def test_they_go_with_the_pod(host, web, how):
    before = host.snapshot()
    pod = web("web")
    host.run("port", "add", "web", "8081:80")
    if how == "killed":
        kill(pod["pid"])
    else:
        host.run("pod", "rm", "-f", "web")
    wait_for(lambda: forwarded() == [] and _is_free(8081))
    host.run("pod", "prune")
    wait_for(lambda: host.snapshot() == before)


def _is_free(port: int) -> bool:
    try:
        with socket.create_server(("127.0.0.1", port)):
            return True
    except OSError:
        return False


def test_a_holder_that_was_killed(host, web):
    """Its ports are gone, and nothing says that they are there; they can be added again."""
    web("web")
    host.run("port", "add", "web", "8081:80")
    (holder,) = [int(line.split()[0]) for line in host.snapshot()["processes"] if "door" in line or "hold" in line]
    kill(holder)
    wait_for(lambda: shown(host) == set())
    assert get("127.0.0.1", 8081).startswith("curl")
    host.run("port", "add", "web", "8081:80")
    assert get("127.0.0.1", 8081) == "web"


def test_a_pod_of_a_users(host, alice, web):
    """Root changes its ports, the owner sees them."""
    env = {"SUDO_UID": str(alice.uid)}
    host.run("pod", "create", "-p", "127.0.0.1:8080:80", "theirs", env=env)
    host.run("port", "add", "theirs", "8081:80")
    assert shown(alice, "theirs") == {"80/tcp -> 127.0.0.1:8080", *of_both(80, 8081)} == shown(host, "theirs")
    assert "sudo" in alice.fails(125, "port", "add", "theirs", "8082:80")
    assert "sudo" in alice.fails(125, "port", "rm", "theirs", "8081")
    host.run("port", "rm", "theirs", "8080")
    assert shown(alice, "theirs") == of_both(80, 8081)
    assert len(forwarded()) == 2
    alice.run("pod", "stop", "theirs")
    wait_for(lambda: forwarded() == [])


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["add", "web", "8080:80"], 125, "by pod 'web'"),
        (["add", "web", "9000:80", "9000:81"], 2, "published twice"),
        (["add", "web", "9000:80/sctp"], 2, "SCTP"),
        (["add", "web"], 2, "missing"),
        (["add", "none", "9000:80"], 125, "nothing to forward"),
        (["add", "no-such", "9000:80"], 125, "no pod"),
        (["rm", "web", "9000"], 125, "not published"),
        (["rm", "web", "8080", "9000"], 125, "not published"),
        (["rm", "web", "8080/udp"], 125, "not published"),
        (["rm", "web", "8080:81"], 125, "not published"),
        (["rm", "web", "127.0.0.1:8080"], 125, "not published"),
        (["rm", "web", "8080-8081"], 125, "not published"),
        (["rm", "web", "x"], 2, "nsrun: x: 'x' is not a port"),
        (["rm", "web", "8080/"], 2, "no protocol"),
        (["rm", "web", "1:2:3"], 2, "not a published port"),
        (["rm", "web", "0"], 2, "range"),
        (["ls", "no-such"], 125, "no"),
    ],
)
def test_what_is_refused_changes_nothing(host, words, code, said):
    host.run("pod", "create", "-p", "8080:80", "web")
    host.run("pod", "create", "--network", "none", "none")
    before = host.snapshot()
    assert said in host.fails(code, "port", *words)
    assert host.snapshot() == before and shown(host) == of_both(80, 8080)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["add", "rm"])
def test_killed_at_any_call(host, what):
    """What is listed is what the kernel forwards: all of it or nothing."""
    host.run("pod", "create", "-p", "8080:80", "web")
    count, done = 300, None
    while done is None or done.returncode:
        if what == "rm":
            host.run("port", "add", "web", "8081-8083:81-83", check=False)
        before = shown(host)
        killer = [
            "strace",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            "trace=all",
            "-e",
            f"inject=all:signal=KILL:when={count}",
        ]
        spec = "8081-8083:81-83" if what == "add" else "8081-8083"
        done = subprocess.run(
            [*killer, NSRUN, "port", what, "web", spec], env=host.env, capture_output=True, timeout=60, check=False
        )
        assert done.returncode in (0, -9, 137), done
        after = wait_for(lambda: (now := shown(host)) and len(now) == len(forwarded()) and now, 10, "both say the same")
        assert after in (
            before,
            before.union(*(of_both(n - 8000, n) for n in (8081, 8082, 8083))),
            of_both(80, 8080),
        )
        if len(after) > 2 and what == "add":
            host.run("port", "rm", "web", "8081-8083")
        count += 97
        assert count < 20000
    host.run("pod", "rm", "-f", "web")
    assert forwarded() == []


@not_editable
def test_port_add_is_what_strace_shows(host, tmp_path):
    host.run("pod", "create", "x")
    words = ["port", "add", "x", "20900:80", "127.0.0.1:20901:53/udp"]
    expected = Expected(host, words)
    outside, others, _ = traced(host, words, tmp_path)
    expected.check(outside, others)


@not_editable
def test_port_rm_is_what_strace_shows(host, alice, tmp_path):
    for owner in ("root", "alice"):
        host.run("pod", "create", "--owner", owner, "-p", "20900-20901:80-81", "-p", "20902:53/udp", owner)
        host.run("port", "add", owner, "20910-20911:80-81")
        host.run("port", "add", "--publish-mode", "forward", owner, "20920-20921:80-81", "20922:53/udp")
        for words in (["20900", "20902/udp"], ["20910"], ["20911", "20901"], ["20920", "20922/udp"], ["20921"]):
            foretold(host, tmp_path, "port", "rm", owner, *words)
        assert shown(host, owner) == set()
        host.run("pod", "rm", "-f", owner)


def test_the_shell_form_of_port_rm(host, web, tmp_path):
    """Of a set of its own, which is what a shell can end; explain says of the others that none can."""
    web("web", "-p", "8080:80")
    host.run("port", "add", "web", "8085:80", "8085:53/udp")
    asked = ("port", "rm", "web", "8085", "8085/udp")
    (tmp_path / "rm.sh").write_text(host.run("explain", "--format", "shell", *asked).stdout)
    sh("sh", "-e", tmp_path / "rm.sh")
    assert get("127.0.0.1", 8085).startswith("curl") and get("127.0.0.1", 8080) == "web"
    assert shown(host) == of_both(80, 8080) and not list(host.root.glob("run/pods/web/port-*"))
    assert "not published" in host.fails(125, "explain", "port", "rm", "web", "8085")
    text = host.run("explain", "--format", "shell", "port", "rm", "web", "8080").stdout
    assert [line for line in text.splitlines() if line and not line.startswith("#")] == ["set -eu"]


def test_the_shell_form(host, web, tmp_path):
    """What explain prints as a script forwards a port as well; only nobody holds it."""
    web("web")
    script = host.run("explain", "--format", "shell", "port", "add", "web", "8085:80").stdout
    (tmp_path / "add.sh").write_text(script)
    sh("sh", tmp_path / "add.sh")
    assert get("127.0.0.1", 8085) == "web"
    (table,) = re.findall(r"nft create table ip (\S+)", script)
    for family in ("ip", "ip6"):
        sh("nft", "delete", "table", family, table)
    assert get("127.0.0.1", 8085).startswith("curl")
