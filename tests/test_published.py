# SPDX-License-Identifier: Apache-2.0
"""Combinations of -p, drawn at random, against a model: what nsrun says, what the kernel forwards and holds, what answers.

They are published when the pod is made, by nat or by nsrun-forward, or some of them later, of which some are removed again.
"""

import itertools
import json
import os
import random
import socket
import sys
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from conftest import forwarded, sh, wait_for
from test_ipv6 import HERE, outside  # noqa: F401
from test_udp import inside

HOST, POD = range(20300, 20306), range(80, 86)  # few ports, so that many of them meet
ADDRESSES = ("", "", "0.0.0.0", "127.0.0.1", "192.0.2.1", "[::]", "[::1]", f"[{HERE}]")
SEEDS = int(os.environ.get("PUBLISHED_SEEDS", "4"))


class Port(NamedTuple):
    """One published port, as the model has it."""

    address: str
    host: int
    pod: int
    protocol: str
    forwarded: bool  # by nsrun-forward, and not by the kernel

    def overlaps(self, other: "Port") -> bool:
        if (self.host, self.protocol) != (other.host, other.protocol) or (":" in self.address) != (
            ":" in other.address
        ):
            return False
        return self.address == other.address or "0.0.0.0" in (one := (self.address, other.address)) or "::" in one

    def holds(self, address: str) -> bool:
        """Return whether nobody else can have it at this address of the host."""
        return self.address in (address, "::" if ":" in address else "0.0.0.0")

    def answers(self, address: str) -> bool:
        """Return whether a client that asks there reaches the pod: the kernel forwards nothing from ::1."""
        return self.holds(address) and (self.forwarded or address != "::1")


class Value(NamedTuple):
    """A value of -p, how it is published, and what that means."""

    word: str
    mode: str
    ports: list[Port]


def draw(rng: random.Random, modes: tuple[str, ...]) -> list[Value]:
    """Return some values of -p."""
    values = []
    for _ in range(rng.randint(1, 5)):
        address, protocol, length = rng.choice(ADDRESSES), rng.choice(("tcp", "udp")), rng.choice((1, 1, 2, 3))
        host, pod = rng.choice(HOST[: 1 - length or None]), rng.choice(POD[: 1 - length or None])
        dash = f"-{host + length - 1}", f"-{pod + length - 1}"
        word = f"{host}{dash[0] * (length > 1)}:{pod}{dash[1] * (length > 1)}"
        word = f"{address}:{word}" if address else word
        word += "/udp" if protocol == "udp" else rng.choice(("", "/tcp"))
        mode = rng.choice(modes)
        ports = [
            Port(family, host + n, pod + n, protocol, mode == "forward" or family == "::1")
            for family in ([address.strip("[]")] if address else ["0.0.0.0", "::"])
            for n in range(length)
        ]
        values.append(Value(word, mode, ports))
    return values


def ports_of(values: list[Value]) -> list[Port]:
    return [port for value in values for port in value.ports]


SERVER = """
import selectors, socket, sys
loop = selectors.DefaultSelector()
for port in map(int, sys.argv[1:]):
    tcp = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    udp.bind(("::", port))
    loop.register(tcp, selectors.EVENT_READ, port), loop.register(udp, selectors.EVENT_READ, port)
while True:
    for key, _ in loop.select():
        if key.fileobj.type == socket.SOCK_STREAM:
            with key.fileobj.accept()[0] as one:
                one.sendall(f"tcp {key.data}".encode())
        else:
            _, peer = key.fileobj.recvfrom(100)
            key.fileobj.sendto(f"udp {key.data}".encode(), peer)
"""

#: Asks all at once, since what is dropped in silence takes its time.
CLIENT = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor
def ask(what):
    address, port, protocol = what
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET,
                           socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM) as one:
            one.settimeout(3 if protocol == "tcp" else 0.5)
            one.connect((address, port))
            for again in range(4):
                try:
                    if protocol == "udp":
                        one.send(b"?")
                    return one.recv(100).decode()
                except TimeoutError:
                    pass
    except OSError:
        pass
    return ""
with ThreadPoolExecutor(64) as pool:
    print(json.dumps(list(pool.map(ask, json.load(sys.stdin)))))
"""


def answers(places: list[tuple[str, int, str]], prefix=()) -> list[str]:
    return json.loads(sh(*prefix, sys.executable, "-IS", "-c", CLIENT, input=json.dumps(places), cwd="/").stdout)


def in_the_tables() -> Iterator[Port]:
    """What the kernel's tables forward, whichever maps they have for it."""
    for one in forwarded():
        address = one.address or ("0.0.0.0" if one.family == "ip" else "::")
        yield Port(address, one.port, one.pod_port, "udp" if "udp" in one.map else "tcp", False)


def is_held(address: str, port: int, protocol: str) -> bool:
    """Whether no other server can bind it: `ss -l` does not list what is bound and does not listen."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind) as sock:
        # as servers do: then neither connections that have ended count, nor ports that were removed and whose socket stays
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((address, port))
        except OSError:
            return True
    return False


@pytest.mark.live
@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("how", ["auto", "forward", "later"])
def test_any_combination(host, outside, how, seed):  # noqa: F811
    rng = random.Random(f"{how} {seed}")
    modes = ("auto", "forward") if how == "later" else (how,)
    values = draw(rng, modes)
    before, refused = host.snapshot(), 0
    while any(one.overlaps(other) for one, other in itertools.combinations(ports_of(values), 2)):
        assert "is published twice" in host.fails(2, "pod", "create", *(f"-p={value.word}" for value in values), "p")
        refused += 1
        assert refused < 200
        values = draw(rng, modes)
    assert host.snapshot() == before

    first = values if how != "later" else [value for value in values if value.mode == "auto" and rng.random() < 0.5]
    mode = [] if how == "later" else ["--publish-mode", how]
    host.run("pod", "create", *mode, *(f"-p={value.word}" for value in first), "p")
    host.run("join", "p", "-d", "--name", "s", "--", sys.executable, "-IS", "-c", SERVER, *POD)
    address = host.pod("p")["network"]["ip"]
    wait_for(lambda: all(answers([(address, n, what) for n in POD for what in ("tcp", "udp")])))
    for value in values:
        if value not in first:
            host.run("port", "add", "--publish-mode", value.mode, "p", value.word)
    check(host, outside, values, f"{how} {seed}: {values}")
    if how == "later":
        gone = [value for value in values if rng.random() < 0.5]
        if gone:
            host.run("port", "rm", "p", *(value.word for value in gone))
        left = [value for value in values if value not in gone]
        check(host, outside, left, f"{how} {seed}: {values}, of which {gone} are removed")
    host.run("pod", "rm", "-f", "p")
    check(host, outside, [], "the pod is gone", pod=False)


def check(host, outside, values, told, pod=True):  # noqa: F811
    """Compare what is published with the model."""
    ports = ports_of(values)
    prefixes = [(), outside]
    if pod:
        note = host.pod("p")
        prefixes.append(inside(note["pid"]))
        shown = {
            Port(p["host_ip"], p["host_port"], p["pod_port"], p["protocol"], p.get("mode") == "forward")
            for p in note["ports"]
        }
        assert shown == set(ports), told
    assert set(in_the_tables()) == {port for port in ports if not port.forwarded}, told
    places = [(a, n, what) for a in ("127.0.0.1", "::1", "192.0.2.1", HERE) for n in HOST for what in ("tcp", "udp")]
    meant = {place: [p for p in ports if (p.host, p.protocol) == place[1:]] for place in places}
    for place in places:
        assert is_held(*place) == any(p.holds(place[0]) for p in meant[place]), (told, place)
    for prefix in prefixes:
        asked = [place for place in places if not prefix or place[0] not in ("127.0.0.1", "::1")]  # they have their own
        wanted = [next((f"{place[2]} {p.pod}" for p in meant[place] if p.answers(place[0])), "") for place in asked]
        assert answers(asked, prefix) == wanted, (told, prefix)
