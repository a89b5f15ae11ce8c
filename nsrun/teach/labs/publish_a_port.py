# SPDX-License-Identifier: Apache-2.0
"""Lab 07: publish a port with a bridge, a veth pair and DNAT."""

from __future__ import annotations

import os
from functools import partial

from nsrun.teach import facts, scene
from nsrun.teach.lab import USER_NAMESPACES, UTIL_LINUX, Lab, Row, Work, tool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

#: The inode of a network namespace, a process in it, and the address of a socket's peer.
End = tuple[int, int, str]
_MACHINE, _CLIENT = "203.0.113.1", "203.0.113.9"


def make_scene(work: Work) -> dict[str, str]:
    """Make three network namespaces: a machine, a client beside it, and a web server that nobody reaches yet."""
    user = ["--user", "--map-root-user"] if os.geteuid() else []
    machine = scene.holder(work, "unshare", *user, "--net")
    on_machine = facts.enter(machine, "net")
    client = scene.holder(work, *on_machine, "unshare", "--net")
    rootfs = scene.rootfs(work)
    os.mkdir(f"{work.directory}/site")
    with open(f"{work.directory}/site/index.html", "w") as file:
        file.write(work.variables["WORD"] + "\n")
    server = [f"{rootfs}/bin/busybox", "httpd", "-f", "-p", "80", "-h", f"{work.directory}/site"]
    web = scene.start(work, *on_machine, "unshare", "--net", *server)
    scene.until(lambda: any(port == 80 for _, _, port in facts.sockets(web)), "the web server listens")
    for pid, words in (
        (machine, f"link add up0 type veth peer name eth0 netns {client}"),
        (machine, f"address add {_MACHINE}/24 dev up0"),
        (machine, "link set up0 up"),
        (client, f"address add {_CLIENT}/24 dev eth0"),
        (client, "link set eth0 up"),
        *((pid, "link set lo up") for pid in (machine, client, web)),
    ):
        scene.run(work, *facts.enter(pid, "net"), "ip", *words.split())
    return {
        "MACHINE": " ".join(on_machine),
        "CLIENT": " ".join(facts.enter(client, "net")),
        "WEB": " ".join(facts.enter(web, "net")),
        "MACHINE_PID": str(machine),
        "CLIENT_PID": str(client),
        "WEB_PID": str(web),
        "ROOTFS": rootfs,
    }


def check(work: Work) -> list[Row]:
    machine, client = int(work.variables["MACHINE_PID"]), int(work.variables["CLIENT_PID"])
    ends: list[End] = []
    asked = [("client", client, _MACHINE), ("machine", machine, _MACHINE), ("loopback", machine, "127.0.0.1")]
    reached, own, loopback = _at_once([partial(_answer, work, *one, ends) for one in asked])
    return [_bridge(work, machine, ends), reached, _source(machine, ends), own, loopback]


def _at_once(asking: list[Callable[[], Row]]) -> list[Row]:
    """Ask all at the same time, as those that get no answer wait for it; one after the other where no thread can be had."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor() as pool:
        try:
            return [each.result() for each in [pool.submit(one) for one in asking]]
        except RuntimeError:  # at the limit of processes
            pass
    return [one() for one in asking]


def _answer(work: Work, name: str, pid: int, address: str, ends: list[End]) -> Row:
    word, port = work.variables["WORD"], int(work.variables["PORT"])

    def look(own: int) -> None:
        if name == "client":
            ends.extend(_other_ends(work, pid, own))

    said = scene.ask(pid, address, port, look)
    who = "$CLIENT" if name == "client" else "$MACHINE"
    wanted = f"{who} gets {word} from http://{address}:{port}/"
    return Row(name, said == word, wanted, said, f"{who} busybox wget -T 2 -qO- http://{address}:{port}/")


def _other_ends(work: Work, asker: int, port: int) -> list[End]:
    """Return the sockets in other namespaces of the lab that are connected to a port of the asker's."""
    spaces = {process.namespaces.get("net"): process.pid for process in work.mine}
    own = facts.namespaces_of(asker).get("net")
    return [
        (inode, pid, sock.peer)
        for inode, pid in spaces.items()
        if inode and inode != own
        for sock in facts.tcp(pid)
        if sock.peer_port == port and sock.state == "ESTABLISHED"
    ]


def _source(machine: int, ends: list[End]) -> Row:
    home = facts.namespaces_of(machine).get("net")
    seen = sorted({peer for inode, _, peer in ends if inode != home})
    proxy = "the connection ends in the machine itself, at a proxy" if ends else "no connection came about"
    return Row(
        "source",
        _CLIENT in seen,
        f"the web server sees the client's own address {_CLIENT}",
        ", ".join(seen) or proxy,
        "$WEB ss -tn state established   # while somebody is connected",
    )


def _bridge(work: Work, machine: int, ends: list[End]) -> Row:
    here = facts.ip_addresses(machine)
    bridges = {link["ifname"] for link in here if _kind(link) == "bridge"}
    ports = {link["ifindex"]: link for link in here if _kind(link) == "veth"}
    seen = []
    for pid in dict.fromkeys([*(pid for _, pid, _ in ends), int(work.variables["WEB_PID"])]):
        for link in facts.ip_addresses(pid):
            other = ports.get(link.get("link_index", 0))
            if _kind(link) == "veth" and other and other.get("link_index") == link["ifindex"]:
                seen.append((link["ifname"], other["ifname"], other.get("master", "")))
    said = ", ".join(
        f"{name} ↔ {other}, {f'a port of {master}' if master else 'no port of a bridge'}"
        for name, other, master in seen
    )
    return Row(
        "bridge",
        any(master in bridges for _, _, master in seen),
        "a veth pair joins the web server's namespace to a bridge of the machine",
        said or "no veth pair",
        "$MACHINE ip -br link show type veth; $MACHINE bridge link",
    )


def _kind(link: dict[str, Any]) -> str:
    return str(link.get("linkinfo", {}).get("info_kind", ""))


def reset(work: Work) -> None:
    """End the pods that were made in the machine of the scene; their notes are in the student's directory."""
    scene.remove_pods(work, f"{work.directory}/state", int(work.variables.get("MACHINE_PID", 0)))


LAB = Lab(
    7,
    "publish-a-port",
    "Publish a port",
    40,
    ("PORT", "WORD"),
    check,
    needs=(UTIL_LINUX, USER_NAMESPACES, scene.BUSYBOX, tool("ip", "iproute2"), scene.nf_tables("nat", "output")),
    scene=make_scene,
    reset=reset,
)
