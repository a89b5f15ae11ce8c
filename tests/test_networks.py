# SPDX-License-Identifier: Apache-2.0
"""nsrun network: more than one bridge.  Who reaches whom is asked by sockets, and what is there by the kernel."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest
from conftest import HERE, NSRUN, not_editable, settled, sh, tables, wait_for
from test_explain import Expected, foretold, handles_are_declared, traced

from nsrun.errors import BadInput, BrokenNote
from nsrun.host.net import address6, table_name, veth_name
from nsrun.lifecycle import networks as made
from nsrun.lifecycle.create import plan_pod
from nsrun.run import Run
from nsrun.state import State, networks

pytestmark = pytest.mark.live

SERVE = "mkdir -p /w; echo {} >/w/index.html; exec httpd -f -p 80 -h /w"


class Web:
    """A pod that answers on port 80 with its name."""

    def __init__(self, host, busybox: str, name: str, *options: object, **kwargs) -> None:
        host.run("pod", "create", *options, name, **kwargs)
        host.run("join", name, "-d", "--name", f"{name}-web", "--rootfs", busybox, "--", "sh", "-c", SERVE.format(name))
        info = host.pod(name)
        self.name, self.pid, self.network = name, info["pid"], info["network"]
        wait_for(lambda: self.sees(self.network["ip"]) == name, what=f"{name} answers")

    def sees(self, address: str, port: int = 80, seconds: int = 2) -> str:
        """What a client in this pod gets from an address; "" when it gets nothing."""
        address = f"[{address}]" if ":" in address else address
        words = ("curl", "-sS", "-m", seconds, f"http://{address}:{port}/")
        return sh("nsenter", "-t", self.pid, "-n", *words, check=False).stdout.strip()


def links() -> set[str]:
    return {link["ifname"] for link in json.loads(sh("ip", "-j", "link").stdout)}


def test_what_there_is(host):
    assert [n["name"] for n in host.json("network", "ls")] == ["bridge"]
    assert host.run("network", "create", "back").stdout == "back\n"
    host.run("network", "create", "front", "--subnet", "10.99.5.9/24", "--mtu", "1400", "--subnet6", "fd00:5::/64")
    assert host.run("network", "ls", "-q").stdout.split() == ["bridge", "back", "front"]
    found = {n["name"]: n for n in host.json("network", "ls")}
    assert host.json("network", "inspect", "front", "bridge") == [found["front"], found["bridge"]]
    front = found["front"]
    assert (front["subnet"], front["gateway"], front["subnet6"]) == ("10.99.5.0/24", "10.99.5.1", "fd00:5::/64")
    assert (front["mtu"], front["up"], front["pods"]) == (1400, False, [])
    assert found["bridge"]["bridge"] == "nsrun0" and found["back"]["bridge"] != front["bridge"]
    assert not {n["bridge"] for n in found.values()} & links()  # nobody needs one
    assert "10.99.5.0/24" in host.run("network", "ls").stdout
    assert host.run("_complete", "network", "rm", "f").stdout == "front\n"
    assert host.run("_complete", "pod", "create", "--network", "").stdout.split() == [
        *("bridge", "pasta", "none", "host", "back", "front")
    ]
    assert host.run("network", "rm", "back", "front").stdout == "back\nfront\n"
    assert host.run("network", "ls", "-q").stdout == "bridge\n"
    assert list((host.root / "lib/networks").iterdir()) == []


def test_what_is_refused(host):
    host.run("network", "create", "back", "--subnet", "10.99.5.0/24")
    before = host.snapshot(), host.json("network", "ls")
    for word in ("bridge", "none", "host", "pasta"):
        assert "something else" in host.fails(2, "network", "create", word)
    for word in ("..", "", "a/b", "-x", "a" * 64, "a,isolated"):
        host.fails(2, "network", "create", "--", word)
    assert "taken" in host.fails(125, "network", "create", "back")
    assert "another network" in host.fails(125, "network", "create", "x", "--subnet", "10.99.5.128/24")
    assert "in use on this machine" in host.fails(125, "network", "create", "x", "--subnet", "192.0.2.0/24")
    for subnet in ("10.98.0.0/31", "10.0.0.0/7", "10.98.0.0/", "10.98.0.0/x"):
        assert "from /8 to /30" in host.fails(125, "network", "create", "x", "--subnet", subnet)
    for subnet in ("0.0.0.0/24", "127.0.0.0/24", "127.5.5.0", "224.0.0.0/24", "240.0.0.0/24", "255.255.255.0/24"):
        assert "no pod can have" in host.fails(125, "network", "create", "x", "--subnet", subnet)
        assert "no pod can have" in host.fails(125, "pod", "create", "--subnet", subnet, "x")
    many = [f"--add-host=h{n}.{60 * 'x'}:10.1.2.3" for n in range(2000)]
    assert "more than 128 KiB" in host.fails(125, "pod", "create", "--network", "back", *many, "x")
    for mtu in ("0", "67", "65536", "big", "-1"):
        host.fails(2, "network", "create", "x", f"--mtu={mtu}")
        host.fails(2, "pod", "create", f"--mtu={mtu}", "x")
    assert "another network" in host.fails(125, "pod", "create", "--subnet", "10.99.5.0/24", "x")
    for option in ("--subnet=10.97.0.0/24", "--subnet6=fd00:9::/64"):
        assert "inspect back" in host.fails(2, "pod", "create", "--network", "back", option, "x")
    for word in (
        "nowhere",
        "back,",
        "back,often",
        "back,isolated,isolated",
        "../back",
        "BACK",
        "bridge|none",
        "hosts",
        ",isolated",
        ",ipv6=off",
    ):
        message = host.fails(2, "pod", "create", "--network", word, "x")
        assert "back" in message if word.isalpha() else True
        assert "bridge" in message and "none" in message
    assert "no network 'zz'" in host.fails(125, "network", "inspect", "zz")
    assert "no network 'zz'" in host.fails(125, "network", "rm", "zz")
    assert host.run("network", "rm", "-f", "zz").stdout == ""
    assert "default" in host.fails(125, "network", "rm", "bridge")
    assert before == (host.snapshot(), host.json("network", "ls"))


def test_a_hosts_file_that_a_member_has_made_long(host, busybox):
    """With CAP_SYS_PTRACE a member of root's comes to the file; then its own pod has what it wants, and nobody else waits for it."""
    host.run("network", "create", "back")
    host.run("pod", "create", "--network", "back", "one")
    for size in ("3000000000000000000", "100M"):
        host.run("join", "one", "--rm", "--cap-add", "sys_ptrace", "--rootfs", busybox, "--", "truncate", "-s", size, "/proc/1/root/names/hosts")  # fmt: skip
        host.run("pod", "create", "--network", "back", "two")
        host.run("join", "one", "-d", "--name", "m", "--rootfs", busybox, "--", "sleep", "1000")
        hosts = host.run("exec", "m", "cat", "/etc/hosts").stdout
        assert hosts.endswith("\ttwo\n") and len(hosts) < 2000
        host.run("rm", "-f", "m")
        host.run("pod", "rm", "-f", "two")


def test_the_bridge_of_another_state_directory(host):
    other = host.root / "other"
    host.run("network", "create", "back")
    host.run("--root", other, "network", "create", "theirs")
    host.run("--root", other, "pod", "create", "--network", "theirs", "z")
    try:
        assert "network rm back" in host.fails(125, "pod", "create", "--network", "back", "x")
        assert host.run("network", "rm", "back").stdout == "back\n"
        host.run("network", "create", "back")
        host.run("pod", "create", "--network", "back", "x")
    finally:
        host.run("--root", other, "pod", "rm", "-f", "z")


def test_networks_are_roots(host, alice):
    host.run("network", "create", "back")
    for words in (("ls",), ("create", "x"), ("rm", "back"), ("inspect", "back")):
        assert "sudo" in alice.fails(125, "network", *words)
    assert "root's" in alice.fails(2, "pod", "create", "--network", "back")


def test_who_reaches_whom(host, busybox):
    """As with docker: pods of one network reach each other, by the addresses of no bridge those of another."""
    host.run("network", "create", "back")
    host.run("network", "create", "front")
    back = Web(host, busybox, "back", "--network", "back")
    more = Web(host, busybox, "more", "--network", "back,isolated")
    front = Web(host, busybox, "front", "--network", "front", "-p", "20801:80")
    other = Web(host, busybox, "other", "-p", "20802:80")
    mate = Web(host, busybox, "mate", "--network", "front")
    assert len({pod.network["bridge"] for pod in (back, front, other)}) == 3
    assert (mate.network["name"], mate.network["bridge"]) == ("front", front.network["bridge"])
    pods = (back, more, front, other, mate)
    for one in pods:
        for two in pods:
            together = one is two or {one, two} == {front, mate}
            for address in (two.network["ip"], two.network["ip6"]):
                assert one.sees(address, seconds=3 if together else 1) == (two.name if together else ""), (
                    one.name,
                    two.name,
                )
    # what is published is published for all, on every bridge's own address, too; a connection has many packets
    for one in pods:
        for port, name in ((20801, "front"), (20802, "other")):
            assert one.sees("192.0.2.1", port) == name
            assert one.sees(one.network["gateway"], port) == name
            assert one.sees(host.json("network", "inspect", "bridge")[0]["subnet6"].replace("::/64", "::a58:1"), port) in (name, "")  # fmt: skip
    for port, name in ((20801, "front"), (20802, "other")):
        assert sh("curl", "-sS", "-m", "3", f"http://127.0.0.1:{port}/").stdout == f"{name}\n"
        neighbour = ("nsenter", "-t", host.throwaway.neighbour.pid, "-n")
        assert sh(*neighbour, "curl", "-sS", "-m", "3", f"http://192.0.2.1:{port}/").stdout == f"{name}\n"
    assert "1 packets received" in host.run("exec", "back-web", "ping", "-c", "1", "-W", "2", "192.0.2.9").stdout
    assert [n["pods"] for n in host.json("network", "ls")] == [["other"], ["back", "more"], ["front", "mate"]]
    assert host.run("pod", "ls", "-q", "--filter", "network=front").stdout.split() == ["front", "mate"]


def test_a_long_connection_between_networks(host, busybox):
    """Each of its packets has the labels of both pods: the one that began it, and the one whose port it is."""
    host.run("network", "create", "back")
    front = Web(host, busybox, "front", "-p", "20803:80")
    host.run("exec", "front-web", "sh", "-c", "dd if=/dev/zero of=/w/big bs=1M count=8")
    back = Web(host, busybox, "back", "--network", "back")
    for address in ("192.0.2.1", f"[{front.network['ip6'].rpartition(':')[0]}:1]"):
        got = sh(*("nsenter", "-t", back.pid, "-n"), "curl", "-sS", "-m", "9", "-o", "/dev/null", "-w", "%{size_download}", f"http://{address}:20803/big")  # fmt: skip
        assert got.stdout == str(8 << 20)


def test_a_network_in_use_stays(host, busybox):
    host.run("network", "create", "back")
    host.run("pod", "create", "--network", "back", "one")
    before = host.snapshot()
    for command in (["network", "rm", "back"], ["explain", "network", "rm", "back"], ["network", "rm", "-f", "back"]):
        assert "used by pod one" in host.fails(125, *command)
    assert host.snapshot() == before
    bridge = host.json("network", "inspect", "back")[0]["bridge"]
    host.run("pod", "kill", "one")
    wait_for(lambda: bridge not in links(), what="the bridge goes with the last pod")
    host.run("pod", "create", "--network", "back", "two")
    os.kill(host.pod("two")["pid"], signal.SIGKILL)
    assert host.run("network", "rm", "back").stdout == "back\n"  # the kernel has let go, or is about to
    assert bridge not in links() and not [name for _, name in tables() if bridge in name]


def test_an_owned_pod_on_a_network(host, alice, busybox):
    host.run("network", "create", "back")
    one = Web(host, busybox, "one", "--network", "back", "-p", "20804:80")
    host.run("pod", "create", "--network", "back", "-p", "20805:80", "hers", env={"SUDO_UID": str(alice.uid)})
    hers = alice.pod("hers")
    assert hers["network"]["name"] == "back" and hers["network"]["bridge"] == one.network["bridge"]
    words = ("nsenter", "-t", hers["pid"], "-n", "curl", "-sS", "-m", "3", f"http://{one.network['ip']}/")
    assert sh(*words).stdout == "one\n"
    host.run("pod", "rm", "-f", "hers")


def test_a_lie_does_not_pass(host, busybox):
    """The filter is on the veth of every network (decisions 25, 26, 44): of three frames one has the pod's own address."""
    host.run("network", "create", "back")
    one = Web(host, busybox, "one", "--network", "back")
    host.run("pod", "create", "--network", "back", "evil")
    evil = host.pod("evil")
    listener = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 7)); print('ready', flush=True)\nwhile True: print(*s.recvfrom(99), flush=True)"  # fmt: skip
    hears = subprocess.Popen(["nsenter", "-t", str(one.pid), "-n", sys.executable, "-c", listener], stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert hears.stdout is not None
    assert hears.stdout.readline() == "ready\n"
    sender = """
import socket, struct, sys
mac, own, target, gateway = sys.argv[1:]
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); raw.bind(("eth0", 0))
def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data)); total = (total & 0xffff) + (total >> 16)
    return ~(total + (total >> 16)) & 0xffff
def frame(source, data):
    udp = struct.pack("!HHHH", 9, 7, 8 + len(data), 0) + data
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, socket.inet_aton(source), socket.inet_aton(target))
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    return bytes.fromhex(mac.replace(":", "")) + raw.getsockname()[4] + b"\\x08\\x00" + head + udp
for source, data in ((gateway, b"as the bridge"), ("10.88.0.2", b"from elsewhere"), (own, b"honest")):
    raw.send(frame(source, data))
"""
    mac = json.loads(sh("nsenter", "-t", one.pid, "-n", "ip", "-j", "link", "show", "eth0").stdout)[0]["address"]
    addresses = (evil["network"]["ip"], one.network["ip"], evil["network"]["gateway"])
    sh("nsenter", "-t", evil["pid"], "-n", sys.executable, "-c", sender, mac, *addresses)
    try:
        assert "honest" in hears.stdout.readline()  # the first that arrives is the last that was sent
    finally:
        hears.kill()
        hears.wait()
        hears.stdout.close()


def test_two_at_once(host):
    """Networks get other bridges and addresses, pods of one network other addresses on one bridge."""
    words = [["network", "create", f"n{n}"] for n in range(4)]
    assert [one.wait(60) for one in [host.background(*w, stdout=subprocess.DEVNULL) for w in words]] == [0] * 4
    found = host.json("network", "ls")[1:]
    assert len({n["bridge"] for n in found}) == len({n["subnet"] for n in found}) == 4
    same = [host.background("network", "create", "same", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(3)]  # fmt: skip
    assert sorted(one.wait(60) for one in same) == [0, 125, 125]
    words = [["pod", "create", "--network", f"n{n % 2}", f"p{n}"] for n in range(4)]
    assert [one.wait(60) for one in [host.background(*w, stdout=subprocess.DEVNULL) for w in words]] == [0] * 4
    assert len({host.pod(f"p{n}")["network"]["ip"] for n in range(4)}) == 4
    assert [n["pods"] for n in host.json("network", "ls")][1:3] == [["p0", "p2"], ["p1", "p3"]]


@pytest.mark.parametrize("damage", ["torn", "empty", "lie", "name", "directory"])
def test_a_damaged_record_is_not_an_absent_one(host, damage):
    host.run("network", "create", "back")
    host.run("pod", "create", "--network", "back", "one")
    path = host.root / "lib/networks/back.json"
    text = path.read_bytes()
    if damage == "directory":
        path.unlink()
        path.mkdir()
    elif damage == "name":
        path.rename(path.with_name("other.json"))
        path = path.with_name("other.json")
    else:
        path.write_bytes({"torn": text[:-9], "empty": b"", "lie": text.replace(b"nsrb", b"eth0")}[damage])
    name = path.name[:-5]
    for words in (["pod", "create", "--network", name, "two"], ["network", "create", "x"], ["network", "create", name], ["network", "inspect", name], ["network", "rm", name]):  # fmt: skip
        host.fails(125, *words)
    host.run("network", "ls")
    if damage != "name":
        assert "used by pod one" in host.fails(125, "network", "rm", "-f", name)
    host.run("pod", "rm", "-f", "one")
    host.run("network", "rm", "-f", name)
    assert not path.exists()
    host.run("network", "create", "back")
    assert not [link for link in links() if link.startswith("nsrb")]


def test_a_network_that_goes_while_a_pod_comes(host, monkeypatch):
    """Between the plan and the lease it was removed, and made anew with the same name: its addresses may be others."""
    monkeypatch.setenv("NSRUN_ROOT", str(host.root))
    state = State()
    host.run("network", "create", "back")
    before = host.snapshot()
    for again in (False, True):
        plan = plan_pod(state, {"name": "one", "network": "back"})
        host.run("network", "rm", "back")
        if again:
            host.run("network", "create", "back")
        with pytest.raises(BadInput, match="has just been removed"):
            Run(plan, state).execute()
        assert host.snapshot() == before
        if not again:
            host.run("network", "create", "back")


def test_a_link_of_that_name_is_not_ours(host):
    host.run("network", "create", "back")
    bridge = host.json("network", "inspect", "back")[0]["bridge"]
    sh("ip", "link", "add", bridge, "type", "bridge")
    try:
        assert "another's" in host.fails(125, "pod", "create", "--network", "back", "one")
        host.run("network", "create", "next")
        assert host.json("network", "inspect", "next")[0]["bridge"] not in (bridge, "nsrun0")
        host.run("network", "rm", "back")
        assert bridge in links()
    finally:
        sh("ip", "link", "del", bridge)


@pytest.mark.parametrize("step", range(1, 14))
def test_killed_while_a_pod_of_a_network_is_made(host, step):
    host.run("network", "create", "back")
    before = host.snapshot()
    done = subprocess.run([sys.executable, str(HERE / "killer.py"), "pod", str(step)], env={**host.env, "NETWORK": "back"}, capture_output=True, timeout=30, check=False)  # fmt: skip
    assert done.returncode == -signal.SIGKILL

    def clean() -> bool:
        host.run("pod", "ls")
        return host.snapshot() == before

    wait_for(clean, what="one later command, and nothing is left")
    assert host.run("network", "rm", "back").stdout == "back\n"


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_while_a_record_is_written(host, monkeypatch, when):
    """What is there is a whole record or none."""
    monkeypatch.setenv("NSRUN_ROOT", str(host.root))
    program = f"""
import os, signal
from nsrun.lifecycle import networks
from nsrun.state import State, _put
import nsrun.state
def die(new, path):
    if {when == "after"}: _put(new, path)
    os.kill(os.getpid(), signal.SIGKILL)
nsrun.state._put = die
networks.create(State(), "back", {{}})
"""
    done = subprocess.run([sys.executable, "-I", "-c", program], env=host.env, check=False, timeout=30)
    assert done.returncode == -signal.SIGKILL
    assert networks.names(State()) == (["back"] if when == "after" else [])
    if when == "before":
        host.run("network", "create", "back")
    host.run("pod", "create", "--network", "back", "one")


def test_the_shell_form(host, tmp_path, monkeypatch):
    """What explain prints makes a record that nsrun takes, and removes it."""
    monkeypatch.setenv("NSRUN_ROOT", str(host.root))
    script = tmp_path / "create.sh"
    words = ("network", "create", "back", "--subnet", "10.99.7.0/24", "--mtu", "1300")
    assert json.loads(host.run("explain", "--format", "json", *words).stdout)
    assert "back.json" in host.run("explain", *words).stdout
    script.write_text(host.run("explain", "--format", "shell", *words).stdout)
    assert networks.names(State()) == []
    sh("sh", "-e", script)
    found = made.describe(State(), ["back"])[0]
    assert (found["subnet"], found["mtu"]) == ("10.99.7.0/24", 1300) and len(found["id"]) == 12
    host.run("pod", "create", "--network", "back", "one")
    host.run("pod", "rm", "-f", "one")
    settled()
    script.write_text(host.run("explain", "--format", "shell", "network", "rm", "back").stdout)
    sh("sh", "-e", script)
    assert networks.names(State()) == []


def test_a_record_of_another_shape(host, monkeypatch):
    monkeypatch.setenv("NSRUN_ROOT", str(host.root))
    host.run("network", "create", "back")
    state = State()
    good = dict(networks.get(state, "back"))
    for key, value in (("bridge", "nsrun0"), ("bridge", "eth0"), ("subnet", "10.1.2.3"), ("subnet6", "x"), ("mtu", 5), ("id", "1")):  # fmt: skip
        state.write_document(networks.path_of(state, "back"), {**good, key: value})
        with pytest.raises(BrokenNote):
            networks.read(state, "back")
    state.write_document(networks.path_of(state, "back"), good)
    assert networks.read(state, "back") == good


# ---- names ------------------------------------------------------------------------------------------------------------


def hosts(host, member: str) -> list[tuple[str, str]]:
    """(name, address) as a member's /etc/hosts has them, without those of itself."""
    text = host.run("exec", member, "cat", "/etc/hosts").stdout
    rows = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    return [
        (name, row[0]) for row in rows for name in row[1:] if name not in ("localhost", "ip6-localhost", "ip6-loopback")
    ]


def of(info: dict) -> list[tuple[str, str]]:
    return [(info["name"], info["network"][key]) for key in ("ip", "ip6")]


def test_pods_of_a_network_find_each_other_by_name(host, busybox):
    """A pod that starts later appears in those that live, and one that ends goes, however it ends."""
    host.run("network", "create", "back")
    one = Web(host, busybox, "one", "--network", "back", "--add-host", "db:192.0.2.77")
    assert hosts(host, "one-web") == [*of(host.pod("one")), ("db", "192.0.2.77")]
    Web(host, busybox, "two", "--network", "back", "--hostname", "second")
    infos = {name: host.pod(name) for name in ("one", "two")}
    assert hosts(host, "one-web") == [*of(infos["one"]), ("db", "192.0.2.77"), *of(infos["two"])]
    assert set(hosts(host, "two-web")) == {*of(infos["one"]), *of(infos["two"]), *(("second", a) for _, a in of(infos["two"]))}  # fmt: skip
    assert host.run("exec", "one-web", "wget", "-q", "-O", "-", "http://two/").stdout == "two\n"
    assert host.run("exec", "two-web", "wget", "-q", "-O", "-", "http://one/").stdout == "one\n"
    inode = host.run("exec", "one-web", "stat", "-c", "%d:%i", "/etc/hosts").stdout
    Web(host, busybox, "db", "--network", "back")  # what the user said of a name stays
    assert [row for row in hosts(host, "one-web") if row[0] == "db"] == [("db", "192.0.2.77")]
    assert [row for row in hosts(host, "two-web") if row[0] == "db"] == of(host.pod("db"))
    host.run("pod", "create", "elsewhere")
    host.run("join", "elsewhere", "-d", "--name", "e", "--rootfs", busybox, "sleep", "1000")
    assert hosts(host, "e") == of(host.pod("elsewhere"))
    assert "elsewhere" not in dict(hosts(host, "one-web"))
    host.run("pod", "stop", "-t", "0", "db")
    assert "db" not in dict(hosts(host, "two-web"))
    os.kill(infos["two"]["pid"], signal.SIGKILL)

    def swept() -> bool:
        host.run("pod", "ls")
        return hosts(host, "one-web") == [*of(infos["one"]), ("db", "192.0.2.77")]

    wait_for(swept, what="the sweep takes the name of a dead pod away")
    assert host.run("exec", "one-web", "stat", "-c", "%d:%i", "/etc/hosts").stdout == inode
    assert "ead-only" in host.run("exec", "one-web", "sh", "-c", "echo x >>/etc/hosts", check=False).stderr
    assert one.network["ip"] == infos["one"]["network"]["ip"]


def test_a_name_that_means_something_else_is_nobodys(host, busybox):
    host.run("network", "create", "back")
    Web(host, busybox, "one", "--network", "back")
    before = hosts(host, "one-web")
    host.run("pod", "create", "--network", "back", "localhost")
    host.run("pod", "create", "--network", "back", "ONE")
    assert hosts(host, "one-web") == before


def test_names_of_an_owned_pod(host, alice, busybox, box):
    """nsrun-hold has the file of a user's pod; the owner reads it, and can't have root write anywhere else."""
    host.run("network", "create", "back")
    host.run("pod", "create", "--network", "back", "hers", env={"SUDO_UID": str(alice.uid)})
    alice.run("join", "hers", "-d", "--name", "m", "--image", box, "--", "sleep", "1000")
    Web(host, busybox, "one", "--network", "back")
    assert set(hosts(alice, "m")) == {*of(host.pod("hers")), *of(host.pod("one"))}
    assert set(hosts(host, "one-web")) == {*of(host.pod("hers")), *of(host.pod("one"))}
    assert alice.run("exec", "m", "wget", "-q", "-O", "-", "http://one/").stdout == "one\n"
    # whatever she puts in its place: what is written to is the file that root made
    secret = host.root / "secret"
    secret.write_text("mine\n")
    pid = host.pod("hers")["pid"]
    program = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
for fd in [os.open(f"/proc/{sys.argv[1]}/ns/{kind}", os.O_RDONLY) for kind in ("user", "mnt")]:
    assert libc.setns(fd, 0) == 0, os.strerror(ctypes.get_errno())
assert libc.mount(b"tmpfs", b"/names", b"tmpfs", 0, None) == 0, os.strerror(ctypes.get_errno())
os.symlink(sys.argv[2], "/names/hosts")
print("in its place")
"""
    assert alice.sh(sys.executable, "-c", program, pid, secret).stdout == "in its place\n"
    denied = alice.sh("nsenter", "-t", pid, "-U", "sh", "-c", f"echo x >>/proc/{pid}/root/names/hosts", check=False)
    assert denied.returncode != 0
    host.run("pod", "create", "--network", "back", "third")
    assert "third" in dict(hosts(alice, "m")) and secret.read_text() == "mine\n"
    host.run("pod", "rm", "-f", "hers")
    assert "hers" not in dict(hosts(host, "one-web"))


def test_a_file_that_is_not_the_one_is_not_written(host, busybox, tmp_path, monkeypatch):
    """A descriptor that the note does not speak of is nobody's file of names; whoever makes a pod is told."""
    monkeypatch.setenv("NSRUN_ROOT", str(host.root))
    host.run("network", "create", "back")
    host.run("pod", "create", "--network", "back", "one")
    state = State()
    note = dict(state.pod("one"))
    text = pathlib.Path(f"/proc/{note['pause'][0]}/root/names/hosts").read_text()
    state.save("pods", "one", {**note, "network": {**note["network"], "hosts_file": [1, 2]}})
    done = host.run("pod", "create", "--network", "back", "two")
    assert "'one'" in done.stderr and "warning" in done.stderr
    assert pathlib.Path(f"/proc/{note['pause'][0]}/root/names/hosts").read_text() == text
    host.run("pod", "rm", "-f", "two")


def test_many_pods_at_once_know_each_other(host, busybox):
    host.run("network", "create", "back")
    words = [["pod", "create", "--network", "back", f"p{n}"] for n in range(5)]
    assert [one.wait(90) for one in [host.background(*w, stdout=subprocess.DEVNULL) for w in words]] == [0] * 5
    for n in range(5):
        text = pathlib.Path(f"/proc/{host.pod(f'p{n}')['pid']}/root/names/hosts").read_text()
        assert {line.split()[1] for line in text.splitlines() if line[:1].isdigit()} == {"localhost", *(f"p{i}" for i in range(5))}  # fmt: skip


@pytest.mark.parametrize("step", [12, 13])
def test_killed_while_names_are_told(host, busybox, step):
    """The last steps before the pod runs: its name is nowhere after one later command."""
    host.run("network", "create", "back")
    Web(host, busybox, "one", "--network", "back")
    before = hosts(host, "one-web")
    done = subprocess.run([sys.executable, str(HERE / "killer.py"), "pod", str(step)], env={**host.env, "NETWORK": "back"}, capture_output=True, timeout=30, check=False)  # fmt: skip
    assert done.returncode == -signal.SIGKILL

    def clean() -> bool:
        names = host.run("pod", "ls", "-a", "-q").stdout.split()
        return names == ["one"] and hosts(host, "one-web") == before

    wait_for(clean, what="one later command, and the name is gone")


# ---- explain ----------------------------------------------------------------------------------------------------------


@not_editable  # coverage makes calls of its own
def test_what_explain_says_is_what_strace_shows(host, alice, tmp_path):
    host.run("pod", "create", "--network", "none", "first")  # which makes the directories
    foretold(host, tmp_path, "network", "create", "back")
    for env in ({}, {"SUDO_UID": str(alice.uid)}):
        for name in ("one", "two"):  # the second one tells the first
            words = ["pod", "create", "--network", "back", f"{name}{len(env)}"]
            Expected(host, words, env).check(*traced(host, words, tmp_path, env=env))
    foretold(host, tmp_path, "pod", "kill", "one0")
    foretold(host, tmp_path, "pod", "rm", "-f", "two0", "one1", "two1")
    foretold(host, tmp_path, "network", "rm", "back")


def test_the_handles_of_a_pod_with_names(host, alice):
    host.run("network", "create", "back")
    steps = handles_are_declared(host, "pod", "create", "--network", "back", "one")
    assert {"MakeNames", "TellNames"} <= {*steps}
    host.env["SUDO_UID"] = str(alice.uid)
    handles_are_declared(host, "pod", "create", "--network", "back", "two")


@pytest.mark.parametrize("isolated", [False, True])
def test_a_pod_of_a_network_by_hand(host, busybox, tmp_path, isolated):
    """The shell form, run as root: it gets the next address of the network, and is told the names that there are."""
    host.run("network", "create", "back", "--subnet", "10.0.0.0/8" if isolated else "10.88.1.0/24")
    one = Web(host, busybox, "one", "--network", "back", "-p", "20818:80")
    script, address = tmp_path / "pod.sh", "10.99.7.200" if isolated else "10.88.1.3"
    words = ("--network", "back,isolated", "--ip", address) if isolated else ("--network", "back")
    script.write_text(host.run("explain", "--format", "shell", "pod", "create", *words, "hand").stdout)
    with open(tmp_path / "errors", "w") as errors:
        done = subprocess.run(["sh", script], env={**host.env, "PATH": f"{os.path.dirname(NSRUN)}:{os.environ['PATH']}"}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True, timeout=100, check=False)  # fmt: skip
    assert done.returncode == 0, (tmp_path / "errors").read_text()
    pid = int(done.stdout.split()[-1])
    try:
        gateway6 = address6(one.network["ip6"], one.network["gateway"])
        for url, expected in ((f"{one.network['ip']}:80", "" if isolated else "one\n"), ("192.0.2.1:20818", "one\n"), (f"[{gateway6}]:20818", "one\n")):  # fmt: skip
            assert (
                sh("nsenter", "-t", pid, "-n", "curl", "-sS", "-m", "3", f"http://{url}/", check=False).stdout
                == expected
            )
        assert address in sh("nsenter", "-t", pid, "-n", "ip", "-4", "address", "show", "eth0").stdout
        text = pathlib.Path(f"/proc/{pid}/root/run/nsrun-shell/root-hand/names/hosts").read_text()
        assert f"{one.network['ip']}\tone\n" in text and f"{address}\thand\n" in text
        assert ("hand", address) in hosts(host, "one-web")
    finally:
        sh("kill", "-9", pid)
        wait_for(lambda: not os.path.exists(f"/proc/{pid}"))
        sh("umount", "-l", "/run/nsrun-shell/names-hand", check=False)
        veth = veth_name(address)
        wait_for(lambda: veth not in links() or not sh("ip", "link", "del", veth, check=False))
        for family, table in tables():
            if table == table_name(address):
                sh("nft", "delete", "table", family, table)
        for path in sorted(host.cgroups(), key=len, reverse=True):
            if "hand" in path:
                wait_for(lambda path=path: not pathlib.Path(path, "cgroup.procs").read_text())
                os.rmdir(path)
        sh("rm", "-r", "/run/nsrun-shell")
