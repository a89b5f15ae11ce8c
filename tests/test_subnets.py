# SPDX-License-Identifier: Apache-2.0
"""Networks that are larger or smaller than a /24: which addresses they have, whom they overlap with, and who reaches whom."""

from __future__ import annotations

import ipaddress
import itertools
import json
import random
import subprocess

import pytest
from conftest import settled, sh, wait_for
from test_closed import ask as asks
from test_closed import bare, inside, make  # noqa: F401
from test_networks import Web, hosts, links
from test_udp import Client, names, script  # noqa: F401

from nsrun.errors import BadInput
from nsrun.host import bridges, net
from nsrun.lifecycle import networks as made
from nsrun.spec.options import Subnet, ip_number, ip_text, parse_subnet
from nsrun.state import State, networks

# ---- against the library of Python, which is too slow to be loaded for a pod --------------------------------------


def some_network(seed: random.Random) -> ipaddress.IPv4Network:
    return ipaddress.IPv4Network((seed.choice((10, 11)) << 24 | seed.getrandbits(24), seed.randrange(8, 31)), False)


def test_a_subnet_is_what_ipaddress_says():
    seed, kinds = random.Random(1), set()
    for _ in range(3000):
        one, two = some_network(seed), some_network(seed)
        subnet, other = (
            parse_subnet(f"{one[seed.randrange(one.num_addresses)]}/{one.prefixlen}"),
            parse_subnet(str(two)),
        )
        assert str(subnet) == str(one) and subnet.gateway == str(one[1])
        assert (ip_text(subnet.mask), ip_text(subnet.last)) == (str(one.netmask), str(one.broadcast_address))
        assert (
            subnet.overlaps(other.first, other.mask) == one.overlaps(two) == other.overlaps(subnet.first, subnet.mask)
        )
        for address in (one[0], one[-1], one[0] - 1, one[-1] + 1, two[seed.randrange(two.num_addresses)]):
            assert (int(address) in subnet) == (address in one)
        kinds.add((one.overlaps(two), one.prefixlen < two.prefixlen))
    assert len(kinds) == 4


def test_free_addresses_are_the_hosts_of_ipaddress_in_order():
    seed = random.Random(2)
    for _ in range(400):
        network = some_network(seed)
        gateway = network[1] if seed.random() < 0.7 else network[seed.randrange(1, network.num_addresses - 1)]
        near = [network[n] for n in range(min(40, network.num_addresses))]
        taken = {int(address) for address in near if seed.random() < 0.8} | {1, int(network[-1]) + 9}
        hosts = (address for address in network.hosts() if address not in (network[1], gateway))
        expected = [int(a) for a in itertools.islice((a for a in hosts if int(a) not in taken), 5)]
        found = net.free_addresses(Subnet(str(gateway), network.prefixlen), taken)
        assert list(itertools.islice(found, 5)) == expected


def test_addresses_in_names():
    every = ["nsr0a630002", "nsrun0", "nsrb01", "nsrun-0a630002", "nsr0A630002", "nsr0a63000", "nsr0a6300020", "xsr0a630002", "nsr-a630002"]  # fmt: skip
    assert list(net.addresses(every, net.VETH)) == [ip_number("10.99.0.2")]
    assert list(net.addresses(["nsrun-0a6307c8", "nsrun-b-nsrb01", "nsrun-all-pods"], net.LEASE)) == [0x0A6307C8]


@pytest.mark.parametrize("bits", ["7", "31", "32", "33", "0", "", "-1", "+16", "016", " 16", "16 ", "1e1", "²", "255.255.0.0", "16/16", "9" * 9999])  # fmt: skip
def test_what_is_no_prefix(bits):
    with pytest.raises(BadInput, match="from /8 to /30"):
        parse_subnet(f"10.99.0.0/{bits}")


# ---- a large one ---------------------------------------------------------------------------------------------------


def eth0(pid: int) -> list[tuple[str, int]]:
    (link,) = json.loads(sh(*inside({"pid": pid}), "ip", "-4", "-j", "address", "show", "eth0").stdout)
    return [(address["local"], address["prefixlen"]) for address in link["addr_info"]]


@pytest.fixture
def wide(host):
    host.run("network", "create", "wide", "--subnet", "10.99.44.55/16")


def test_pods_beyond_the_first_256_addresses(host, busybox, wide):
    near = Web(host, busybox, "near", "--network", "wide", "-p", "20810:80")
    far = Web(host, busybox, "far", "--network", "wide", "--ip", "10.99.7.200", "-p", "20811:80")
    away = Web(host, busybox, "away")
    (found,) = host.json("network", "inspect", "wide")
    assert (found["subnet"], found["gateway"], found["pods"]) == ("10.99.0.0/16", "10.99.0.1", ["far", "near"])
    assert eth0(near.pid) == [("10.99.0.2", 16)] and eth0(far.pid) == [("10.99.7.200", 16)]
    for one, two, address in itertools.product((near, far), (near, far), ("ip", "ip6")):
        assert one.sees(two.network[address]) == two.name
    for one, two in ((away, far), (away, near), (far, away), (near, away)):
        assert one.sees(two.network["ip"], seconds=1) == one.sees(two.network["ip6"], seconds=1) == ""
    host.run("port", "add", "far", "20812:80")
    outside = inside({"pid": host.throwaway.neighbour.pid})
    for port, name in ((20810, "near"), (20811, "far"), (20812, "far")):
        for pod in (near, far, away):
            assert pod.sees("192.0.2.1", port) == pod.sees(pod.network["gateway"], port) == name
        for where, address in (((), "127.0.0.1"), ((), "192.0.2.1"), (outside, "192.0.2.1")):
            assert sh(*where, "curl", "-sS", "-m", "3", f"http://{address}:{port}/").stdout == f"{name}\n"
    assert far.network["ip6"].endswith("::a63:7c8") and hosts(host, "near-web")[-2:] == [
        ("far", far.network[key]) for key in ("ip", "ip6")
    ]
    # what tells that a pod is on the bridge is its address
    host.run("pod", "rm", "-f", "near")
    state = State(str(host.root))
    assert not bridges.remove_idle_bridge(lambda: state.lock("net"), networks.bridge_of(networks.get(state, "wide")))
    assert far.sees("192.0.2.1", 20811) == "far" and far.network["bridge"] in links()
    host.run("pod", "rm", "-f", "far")
    host.run("network", "rm", "wide")
    assert far.network["bridge"] not in links()


def test_addresses_that_are_asked_for(host, wide):
    before = host.snapshot()
    for address in ("10.99.0.0", "10.99.0.1", "10.99.255.255", "10.98.255.255", "10.100.0.0", "10.88.0.2"):
        assert "not a free address of 10.99.0.0/16" in host.fails(125, "pod", "create", "--network", "wide", "--ip", address, "x")  # fmt: skip
    assert host.snapshot() == before
    for address in ("10.99.0.255", "10.99.1.0", "10.99.255.254"):
        host.run("pod", "create", "--network", "wide", "--ip", address, f"p{address[6:]}")
    assert "taken" in host.fails(125, "pod", "create", "--network", "wide", "--ip", "10.99.1.0", "x")
    host.run("pod", "create", "--network", "wide", "y")
    assert host.pod("y")["network"]["ip"] == "10.99.0.2"


def test_isolated_in_a_large_network(host, busybox, wide):
    alone = Web(host, busybox, "alone", "--network", "wide,isolated", "--ip", "10.99.7.200", "-p", "20813:80")
    other = Web(host, busybox, "other", "--network", "wide", "--ip", "10.99.9.9", "-p", "20814:80")
    for one, two in ((alone, other), (other, alone)):
        assert one.sees(two.network["ip"], seconds=1) == one.sees(two.network["ip6"], seconds=1) == ""
    for pod in (alone, other):
        assert (pod.sees("192.0.2.1", 20813), pod.sees("192.0.2.1", 20814)) == ("alone", "other")


def test_closed_in_in_a_large_network(host, bare, wide):  # noqa: F811
    far = make(bare, "far", "--network", "wide", "--ip", "10.99.7.200")
    near, alone = make(bare, "near", "--network", "wide"), make(bare, "alone", "--network", "wide,isolated")
    assert asks(far["network"]["ip"], 80) == "far"
    for one, two, expected in ((near, far, "far"), (far, near, "near"), (far, alone, ""), (alone, far, "")):
        assert asks(two["network"]["ip"], 80, inside(one)) == expected


def test_datagrams_that_led_to_a_pod_that_has_ended(host, names, wide):  # noqa: F811
    """What is tracked of them is forgotten, whichever address of the network it leads to."""
    host.run(
        "pod", "create", "--network", "wide", "stays"
    )  # with the bridge, the kernel forgets what is masqueraded there
    names("far", "192.0.2.3", "--network", "wide", "--ip", "10.99.7.200", "-p", "5353:53/udp")
    with Client("127.0.0.1", 5353) as client:
        assert client.learns("192.0.2.3")
        host.run("pod", "rm", "-f", "far")
        names("near", "192.0.2.4", "--network", "wide", "-p", "5353:53/udp")
        assert client.learns("192.0.2.4")


def test_a_bridge_has_a_limit_of_its_own(host, wide):
    """It is the kernel's: there are more addresses in the network."""
    host.run("pod", "create", "--network", "wide", "one")
    bridge = host.pod("one")["network"]["bridge"]
    lines = [
        f"link add d{n} master {bridge} type veth peer name e{n}\nlink set e{n} master {bridge}" for n in range(511)
    ]
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True, timeout=60)
    before = host.snapshot()
    message = host.fails(125, "pod", "create", "--network", "wide", "two")
    assert f"the bridge {bridge}" in message and "1023 ports" in message and "Traceback" not in message
    assert host.snapshot() == before
    sh("ip", "link", "del", "d7")
    host.run("pod", "create", "--network", "wide", "two")
    lines = [f"link del d{n}" for n in range(511) if n != 7]
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True, timeout=60)


# ---- small ones ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [28, 30])
def test_a_network_that_becomes_full(host, bits):
    host.run("network", "create", "small", "--subnet", f"10.99.0.16/{bits}")
    room = 2 ** (32 - bits) - 3
    for n in range(room):
        host.run("pod", "create", "--network", "small", f"p{n}")
    assert [host.pod(f"p{n}")["network"]["ip"] for n in range(room)] == [f"10.99.0.{18 + n}" for n in range(room)]
    before = host.snapshot()
    message = host.fails(125, "pod", "create", "--network", "small", "more")
    assert f"all addresses of 10.99.0.16/{bits} are in use" in message and "pod ls" in message
    assert host.snapshot() == before
    host.run("pod", "rm", "-f", f"p{room - 1}")
    host.run("pod", "create", "--network", "small", "more")
    assert host.pod("more")["network"]["ip"] == f"10.99.0.{17 + room}"


def test_two_small_networks_side_by_side(host, busybox):
    """Their IPv4 addresses have three bytes in common, but not their IPv6 networks, whichever comes first."""
    for name, first in (("low", 0), ("high", 16)):
        host.run("network", "create", name, "--subnet", f"10.99.0.{first}/28")
    seen = []
    for order in (("low", "high"), ("high", "low")):
        low, high = sorted((Web(host, busybox, f"p-{name}", "--network", name, "-p", f"{20815 + n}:80") for n, name in enumerate(order)), key=lambda web: web.network["name"], reverse=True)  # fmt: skip
        assert (low.network["ip"], high.network["ip"]) == ("10.99.0.2", "10.99.0.18")
        assert low.network["ip6"].rpartition("::")[0] != high.network["ip6"].rpartition("::")[0]
        for one, two in ((low, high), (high, low)):
            assert one.sees(two.network["ip"], seconds=1) == one.sees(two.network["ip6"], seconds=1) == ""
            assert {one.sees("192.0.2.1", port) for port in (20815, 20816)} == {"p-low", "p-high"}
        seen.append((low.network["ip6"], high.network["ip6"]))
        # the pods of the one are not taken for pods of the other
        host.run("pod", "rm", "-f", "p-low")
        assert low.network["bridge"] not in wait_for_link_to_go(low.network["bridge"])
        assert high.sees("192.0.2.1", 20816 - order.index("low")) == "p-high"
        host.run("pod", "rm", "-f", "p-high")
        wait_for_link_to_go(high.network["bridge"])
    assert seen[0] == seen[1]


def wait_for_link_to_go(name: str) -> set[str]:
    wait_for(lambda: name not in links(), what=f"{name} has gone")
    return links()


# ---- what overlaps -------------------------------------------------------------------------------------------------


def test_what_overlaps_is_refused(host):
    host.run("network", "create", "wide", "--subnet", "10.99.0.0/16")
    host.run("network", "create", "small", "--subnet", "10.101.5.0/28")
    before = host.snapshot(), host.json("network", "ls")
    for subnet in ("10.99.5.0/24", "10.99.5.0", "10.99.255.252/30", "10.98.0.0/15", "10.96.0.0/14", "10.99.0.0/16"):
        message = host.fails(125, "network", "create", "x", "--subnet", subnet)
        assert "overlaps with 10.99.0.0/16, which belongs to another network" in message
        assert "another network" in host.fails(125, "pod", "create", "--subnet", subnet, "x")
    for subnet in ("10.101.0.0/16", "10.101.5.0/24", "10.101.5.8/29", "10.101.5.4/28"):
        assert "overlaps with 10.101.5.0/28" in host.fails(125, "network", "create", "x", "--subnet", subnet)
    assert (host.snapshot(), host.json("network", "ls")) == before
    for name, subnet in (("a", "10.100.0.0/16"), ("b", "10.101.5.16/28"), ("c", "10.101.4.0/24")):
        host.run("network", "create", name, "--subnet", subnet)


def test_what_the_host_has_is_refused(host):
    sh("ip", "route", "add", "blackhole", "10.120.5.0/24")
    sh("ip", "address", "add", "10.121.7.7/32", "dev", "lo")  # no route that /proc/net/route shows
    sh(*"ip route add 198.51.100.0/24 via 10.122.0.1 dev up0 onlink".split())  # nor is there one to this gateway
    try:
        for subnet in ("10.120.0.0/16", "10.120.5.16/28", "10.121.0.0/16", "10.121.7.0/29", "10.122.0.0/24", "192.0.0.0/16", "192.0.2.64/26"):  # fmt: skip
            assert "in use on this machine" in host.fails(125, "network", "create", "x", "--subnet", subnet)
            assert "in use on this machine" in host.fails(125, "pod", "create", "--subnet", subnet, "x")
        for name, subnet in (
            ("a", "10.120.4.0/24"),
            ("b", "10.121.7.8/29"),
            ("c", "10.120.6.0/23"),
            ("d", "10.122.0.4/30"),
        ):
            host.run("network", "create", name, "--subnet", subnet)
    finally:
        sh("ip", "route", "del", "198.51.100.0/24")
        sh("ip", "route", "del", "blackhole", "10.120.5.0/24")
        sh("ip", "address", "del", "10.121.7.7/32", "dev", "lo")


def test_routes_of_a_vpn_that_takes_everything(host):
    """Two halves of a default route are nobody's network, and the bridge's own route is longer than they are."""
    halves = ("0.0.0.0/1", "128.0.0.0/1")
    for half in halves:
        sh("ip", "route", "add", half, "via", "192.0.2.2")
    try:
        host.run("network", "create", "x", "--subnet", "10.99.0.0/16")
        host.run("pod", "create", "--network", "x", "a")
        host.run("pod", "create", "b")
        assert host.pod("b")["network"]["ip"] == "10.88.0.2"
        assert reached(host) == REACHED
    finally:
        for half in halves:
            sh("ip", "route", "del", half)


def test_all_private_addresses_lead_elsewhere(host):
    private = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")
    for subnet in private:
        sh("ip", "route", "add", subnet, "via", "192.0.2.2")
    try:
        assert "in use on this machine" in host.fails(125, "pod", "create", "--subnet", "10.88.0.0/24", "a")
        host.run("pod", "create", "a")
        host.run("network", "create", "x")
        assert host.pod("a")["network"]["ip"] == "198.19.0.2"
        assert host.json("network", "inspect", "x")[0]["subnet"] == "198.19.1.0/24"
    finally:
        for subnet in private:
            sh("ip", "route", "del", subnet)


@pytest.mark.parametrize("table", ["52", "5200"])
def test_a_table_that_is_asked_before_main(host, table):
    """As VPNs with rules of their own have them: the route to the bridge, in main, would never be found."""
    sh("ip", "route", "add", "10.0.0.0/8", "via", "192.0.2.2", "table", table)
    sh("ip", "rule", "add", "priority", "5270", "lookup", table)
    try:
        for command in (("network", "create", "x"), ("pod", "create", "x")):
            message = host.fails(125, *command, "--subnet", "10.99.0.0/16")
            assert "10.99.0.0/16 is in use on this machine: the route to 10.0.0.0/8 to up0 is of another" in message
            assert f"ip route show table {table}" in message
        host.run("pod", "create", "a")
        assert host.pod("a")["network"]["ip"] == "172.28.0.2"
    finally:
        sh("ip", "rule", "del", "priority", "5270")
        sh("ip", "route", "del", "10.0.0.0/8", "table", table)


REACHED = [("ok", "each pod is on one, and no route leads around it")]


def reached(host) -> list[tuple[str, str]]:
    """What doctor says of the bridges."""
    found = json.loads(host.run("doctor", "--json", check=False).stdout)
    return [(one["status"], one["detail"]) for one in found if one["what"] == "bridges"]


@pytest.mark.parametrize(
    ("route", "rule"),
    [
        ("10.88.0.128/25", ""),
        ("10.88.0.64/30", ""),
        ("10.88.0.0/16", "52"),
        ("10.88.0.254/32", "52"),
        ("10.88.0.2/32", "5200"),
    ],
)
def test_a_route_that_comes_later(host, route, rule):
    """Whatever it takes of the pods' addresses, the first or the last or some in between, doctor tells of it."""
    host.run("pod", "create", "a")
    assert reached(host) == REACHED
    where = ("table", rule) if rule else ()
    sh("ip", "route", "add", route, "via", "192.0.2.2", *where)
    try:
        assert not rule or reached(host) == REACHED
        if rule:
            sh("ip", "rule", "add", "priority", "5270", "lookup", rule)
        assert (f"ip route show table {rule} show why" if rule else "ip route show why") in host.run(
            "doctor", check=False
        ).stdout
        ((status, text),) = reached(host)
        assert (status, text) == (
            "limited",
            f"packets for pods on nsrun0 (10.88.0.0/24) take the route to {route} to up0",
        )
        host.run("network", "create", "x", "--subnet", "10.99.0.0/16")
        host.run("pod", "create", "--network", "x", "b")
        assert len(reached(host)) == 1
    finally:
        if rule:
            sh("ip", "rule", "del", "priority", "5270", check=False)
        sh("ip", "route", "del", route, *where)


@pytest.mark.parametrize("kind", ["unreachable", "prohibit", "blackhole"])
def test_a_table_that_refuses(host, kind):
    host.run("pod", "create", "a")
    sh("ip", "route", "add", kind, "default", "table", "52")
    sh("ip", "rule", "add", "priority", "5270", "lookup", "52")
    try:
        ((status, text),) = reached(host)
        assert status == "limited" and text.startswith("packets for pods on nsrun0 (10.88.0.0/24) are refused (")
        host.run("network", "create", "x", "--subnet", "10.99.0.0/16")
    finally:
        sh("ip", "rule", "del", "priority", "5270")
        sh("ip", "route", "del", kind, "default", "table", "52")
    assert reached(host) == REACHED


def test_a_bridge_whose_route_was_deleted(host):
    default = sh("ip", "route", "show", "default").stdout.split()
    host.run("pod", "create", "a")
    sh(*"ip route del 10.88.0.0/24 dev nsrun0".split())
    assert "take the route to 0.0.0.0/0 to up0" in reached(host)[0][1]
    sh("ip", "route", "del", *default)
    try:
        assert "(10.88.0.0/24) have no route" in reached(host)[0][1]
    finally:
        sh("ip", "route", "add", *default)


def test_a_pod_that_is_on_no_bridge_any_more(host):
    for name in ("a", "b", "c"):
        host.run("pod", "create", name)
    assert reached(host) == REACHED
    sh("ip", "link", "set", "nsr0a580003", "nomaster")
    assert [text.partition(";")[0] for _, text in reached(host)] == ["pods are on none: 10.88.0.3"]
    sh("ip", "link", "del", "nsrun0")
    host.run("pod", "create", "d")
    assert [text.partition(";")[0] for _, text in reached(host)] == [
        "pods are on none: 10.88.0.2, 10.88.0.3, 10.88.0.4"
    ]
    host.run("pod", "rm", "-f", "a", "b", "c")
    wait_for(lambda: reached(host) == REACHED)


def test_what_the_host_has_since_a_network_was_made(host, wide):
    sh("ip", "route", "add", "blackhole", "10.99.4.0/24")
    try:
        before = host.snapshot()
        message = host.fails(125, "pod", "create", "--network", "wide", "x")
        assert "network 'wide': 10.99.0.0/16 is in use on this machine" in message and "network rm wide" in message
        assert host.snapshot() == before
    finally:
        sh("ip", "route", "del", "blackhole", "10.99.4.0/24")
    host.run("pod", "create", "--network", "wide", "x")


def test_the_choice_goes_around_networks_of_other_sizes(host):
    host.run("network", "create", "wide", "--subnet", "10.88.0.0/21")
    host.run("network", "create", "small", "--subnet", "10.88.8.192/26")
    host.run("network", "create", "back")
    assert host.json("network", "inspect", "back")[0]["subnet"] == "10.88.9.0/24"
    host.run("pod", "create", "a")
    assert host.pod("a")["network"]["ip"] == "10.88.10.2"
    assert "in use on this machine" in host.fails(125, "network", "create", "x", "--subnet", "10.88.10.128/25")


# ---- what is there already ------------------------------------------------------------------------------------------


def test_the_default_bridge_of_another_size(host):
    host.run("pod", "create", "--ip", "10.97.3.7", "a", env={"NSRUN_SUBNET": "10.97.0.0/16"})
    assert eth0(host.pod("a")["pid"]) == [("10.97.3.7", 16)]
    for subnet in ("10.97.0.0/24", "10.97.3.0/24", "10.96.0.0/15", "10.98.0.0/16"):
        assert "is 10.97.0.1/16: pods are on it" in host.fails(125, "pod", "create", "--subnet", subnet, "b")
    host.run("pod", "create", "--subnet", "10.97.200.0/16", "b")
    assert (host.pod("b")["network"]["ip"], host.json("network", "ls")[0]["subnet"]) == ("10.97.0.2", "10.97.0.0/16")


def test_an_administrators_bridge(host, busybox):
    """It has its network; nobody gets the bridge's own address, wherever that is."""
    for words in ("link add nsrun0 type bridge", "address add 10.97.0.6/29 dev nsrun0", "link set nsrun0 up"):
        sh("ip", *words.split())
    try:
        for n, ip in enumerate(("10.97.0.2", "10.97.0.3", "10.97.0.4", "10.97.0.5")):
            host.run("pod", "create", f"p{n}")
            assert eth0(host.pod(f"p{n}")["pid"]) == [(ip, 29)]
        assert "all addresses of 10.97.0.0/29" in host.fails(125, "pod", "create", "more")
        for pod in host.json("pod", "ls"):
            host.run("pod", "rm", "-f", pod["name"])
        settled()
    finally:
        sh("ip", "link", "del", "nsrun0")


@pytest.mark.parametrize("left", ["10.99.0.1/24", ""])
def test_a_bridge_whose_address_an_administrator_changes(host, wide, left):
    """Pods are on it also where their addresses are not of its network any more; it goes with the last of them."""
    host.run("pod", "create", "--network", "wide", "near")
    host.run("pod", "create", "--network", "wide", "--ip", "10.99.7.200", "far")
    bridge, near = host.pod("near")["network"]["bridge"], host.pod("near")["network"]["veth"]
    if left:
        sh("ip", "address", "add", left, "dev", bridge)
    sh("ip", "address", "del", "10.99.0.1/16", "dev", bridge)
    if left:
        message = host.fails(125, "pod", "create", "--network", "wide", "more")
        assert f"the bridge {bridge} of network 'wide' is {left}, not of 10.99.0.0/16" in message
    host.run("pod", "rm", "-f", "near")
    wait_for_link_to_go(near)
    host.run("pod", "prune")
    settled()
    assert bridge in links()
    assert f"nsrun-b-{bridge}" in sh("nft", "list", "tables", "ip").stdout
    host.run("pod", "rm", "-f", "far")
    wait_for_link_to_go(bridge)


def test_a_record_and_a_pod_of_before(host, busybox, monkeypatch):
    """They do not name a prefix, and mean a /24."""
    monkeypatch.setenv("NSRUN_ROOT", str(host.root))
    host.run("network", "create", "back", "--subnet", "10.99.5.0/24")
    state = State()
    record = dict(networks.get(state, "back"))
    assert record["subnet"] == "10.99.5.0/24"
    state.write_document(networks.path_of(state, "back"), {**record, "subnet": "10.99.5.0"})
    assert made.describe(state, ["back"])[0]["subnet"] == "10.99.5.0/24"
    assert "another network" in host.fails(125, "network", "create", "x", "--subnet", "10.99.0.0/16")
    one = Web(host, busybox, "one", "--network", "back")
    assert eth0(one.pid) == [("10.99.5.2", 24)]
    note = state.read("pods", "one")
    network = {key: value for key, value in note["network"].items() if key != "prefix"}
    assert len(network) < len(note["network"])
    state.save("pods", "one", {**note, "network": network})
    host.run("port", "add", "one", "20817:80", "20817:80/udp")
    assert one.sees("192.0.2.1", 20817) == "one"
    host.run("port", "rm", "one", "20817/udp")
    for bad in ("10.99.5.0/16", "10.99.0.0/31", "10.99.5.1", "10.99.5.1/24", "10.99.5.0/"):
        state.write_document(networks.path_of(state, "back"), {**record, "subnet": bad})
        assert "not what nsrun wrote" in host.fails(125, "network", "inspect", "back")
    state.write_document(networks.path_of(state, "back"), record)
