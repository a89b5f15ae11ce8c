# SPDX-License-Identifier: Apache-2.0
"""Combinations of -p, drawn at random, against a model: what nsrun says, what the kernel forwards and holds, what answers."""

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
ADDRESSES = ("", "", "0.0.0.0", "127.0.0.1", "192.0.2.1", "[::]", f"[{HERE}]")
SEEDS = int(os.environ.get("PUBLISHED_SEEDS", "6"))


class Port(NamedTuple):
    """One published port, as the model has it."""

    address: str
    host: int
    pod: int
    protocol: str

    def overlaps(self, other: "Port") -> bool:
        if (self.host, self.protocol) != (other.host, other.protocol) or (":" in self.address) != (
            ":" in other.address
        ):
            return False
        return self.address == other.address or "0.0.0.0" in (one := (self.address, other.address)) or "::" in one

    def takes(self, address: str) -> bool:
        """Return whether it is about this address of the host."""
        return self.address in (address, "::" if ":" in address else "0.0.0.0")


def draw(rng: random.Random) -> tuple[list[str], list[Port]]:
    """Return some values of -p, and what they mean."""
    words, ports = [], []
    for _ in range(rng.randint(1, 5)):
        address, protocol, length = rng.choice(ADDRESSES), rng.choice(("tcp", "udp")), rng.choice((1, 1, 2, 3))
        host, pod = rng.choice(HOST[: 1 - length or None]), rng.choice(POD[: 1 - length or None])
        dash = f"-{host + length - 1}", f"-{pod + length - 1}"
        word = f"{host}{dash[0] * (length > 1)}:{pod}{dash[1] * (length > 1)}"
        words.append(f"{address}:{word}" if address else word)
        words[-1] += "/udp" if protocol == "udp" else rng.choice(("", "/tcp"))
        for family in [address.strip("[]")] if address else ["0.0.0.0", "::"]:
            ports += [Port(family, host + n, pod + n, protocol) for n in range(length)]
    return words, ports


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
        yield Port(address, one.port, one.pod_port, "udp" if "udp" in one.map else "tcp")


def is_held(address: str, port: int, protocol: str) -> bool:
    """Whether nobody else can bind it: `ss -l` does not list what is bound and does not listen."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind) as sock:
        try:
            sock.bind((address, port))
        except OSError:
            return True
    return False


@pytest.mark.live
@pytest.mark.parametrize("seed", range(SEEDS))
def test_any_combination(host, outside, seed):  # noqa: F811
    rng = random.Random(seed)
    words, ports = draw(rng)
    before, refused = host.snapshot(), 0
    while any(one.overlaps(other) for n, one in enumerate(ports) for other in ports[:n]):
        assert "is published twice" in host.fails(2, "pod", "create", *(x for word in words for x in ("-p", word)), "p")
        refused += 1
        assert refused < 200
        words, ports = draw(rng)
    assert host.snapshot() == before
    told = f"seed {seed}: {' '.join(words)}"

    host.run("pod", "create", *(x for word in words for x in ("-p", word)), "p")
    host.run("join", "p", "-d", "--name", "s", "--", sys.executable, "-IS", "-c", SERVER, *POD)
    pod = host.pod("p")
    wait_for(lambda: all(answers([(pod["network"]["ip"], n, what) for n in POD for what in ("tcp", "udp")])))

    shown = {Port(p["host_ip"], p["host_port"], p["pod_port"], p["protocol"]) for p in pod["ports"]}
    assert shown == set(ports), told
    assert set(in_the_tables()) == set(ports), told
    places = [(a, n, what) for a in ("127.0.0.1", "192.0.2.1", HERE) for n in HOST for what in ("tcp", "udp")]
    meant = {place: [p for p in ports if p.takes(place[0]) and (p.host, p.protocol) == place[1:]] for place in places}
    for place in places:
        assert is_held(*place) == bool(meant[place]), (told, place)
    wanted = [f"{place[2]} {meant[place][0].pod}" if meant[place] else "" for place in places]
    callers = [(), inside(pod["pid"])]
    for prefix in callers:
        asked = [place for place in places if not prefix or place[0] != "127.0.0.1"]  # a pod has a 127.0.0.1 of its own
        found = answers(asked, prefix)
        assert found == [want for place, want in zip(places, wanted, strict=True) if place in asked], (told, prefix)
    asked = [place for place in places if place[0] != "127.0.0.1"]
    assert answers(asked, outside) == wanted[len(places) - len(asked) :], told
    host.run("pod", "rm", "-f", "p")
    assert set(in_the_tables()) == set() and not any(is_held(*place) for place in places)
