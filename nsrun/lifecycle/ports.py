# SPDX-License-Identifier: Apache-2.0
"""`nsrun port add` and `port rm`: published ports of a pod that lives.

Each added set of ports has a process of its own: nsrun-hold, with the bound sockets and an nf_tables table, or nsrun-forward,
which listens.  It ends with pause.  The file that lists the set means something only while that process has a lock on the one beside it.  So if nsrun is killed,
either all of the set is there or nothing is.

To remove a port, we borrow the sockets of the process that has it (pidfd_getfd(2)): by the netlink socket it is taken out of
the table, which only that socket may change, and the socket that holds the port is told to let others have it, since nobody
can make its process close it.  A set of which nothing is left ends with its process.  Sockets of nsrun-forward are shut down,
upon which it closes them; when that was the last one, it ends, at once or with its last connection.
"""

from __future__ import annotations

import _socket
import os
from errno import EBADF, ENOENT, ENOTCONN, ESRCH

from nsrun import kernel
from nsrun.errors import BadInput, KernelError, NsrunError, UnknownError, UsageError
from nsrun.run import Run
from nsrun.spec.options import (
    FORWARD,
    PROTOCOLS,
    PUBLISH_MODES,
    choose_mode,
    is_forwarded,
    parse_count,
    parse_ipv4,
    parse_ipv6,
    parse_ports,
    subnet_of,
)
from nsrun.state import new_id, remove_tree
from nsrun.state.life import HELD, KEEPER, open_pid, wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from nsrun.plan import Plan
    from nsrun.state import Note, State
    from nsrun.types import PodNote, Port

NETFILTER = 12  # NETLINK_NETFILTER, of netlink(7)
PATIENCE = 5.0  # seconds that a forwarder may take to close a socket
IP = (_socket.AF_INET, _socket.AF_INET6)


def plan_add(state: State, name: str, specs: list[str], mode: str = "auto", ident: str = "") -> Plan:
    """Return the plan that adds ports to a pod; nothing is done.  Raise BadInput for a pod that can't have them.

    `mode`: what publishes them, of PUBLISH_MODES.
    """
    from nsrun.plan.pod import holder_cgroup
    from nsrun.plan.ports import add_plan

    pod = _pod(state, name, mode)
    if mode not in PUBLISH_MODES:
        raise UsageError(f"--publish-mode {mode!r}", hint=", ".join(PUBLISH_MODES))
    ports = parse_ports(specs, _without_ipv6(pod))
    network, rootless = pod["network"]["mode"], bool(state.uid)
    no_nat = why_not_nat(state, name) if mode == "auto" else pod["network"].get("closed", "")
    if rootless:
        from nsrun.host.pasta import check_port

        for port in ports:
            check_port(port["host_port"])
    group = pod["cgroup"]
    if rootless:
        group = group and f"{group}/forward"
    elif pod.get("user"):
        group = holder_cgroup(group)
    elif group:
        group = f"{group}/pause"
    return add_plan(pod, ident or new_id(), choose_mode(ports, mode, network, no_nat), group, rootless)


def _without_ipv6(pod: PodNote) -> str:
    """Return why ports of this pod are not published in IPv6; "" when they are.  What pasta gives a pod, no note tells."""
    if pod["network"]["mode"] == "pasta":
        from nsrun.host import pasta

        return pasta.without_ipv6()
    return "" if pod["network"].get("ip6") else f"pod {pod['name']!r} has no IPv6 address"


def why_not_nat(state: State, name: str) -> str:
    """Return why ports of this pod can't be added by nat; "" when they can."""
    from nsrun.lifecycle.create import why_no_nat

    network = state.pod(name)["network"]
    if network["mode"] == "pasta":
        return "pasta can't be given more ports while it runs"
    if why := network.get("closed", ""):
        return why
    return why_no_nat(bool(network.get("ip6"))) if network["mode"] == "bridge" else ""


def add(
    state: State, name: str, specs: list[str], mode: str = "auto", observe: Callable[[Run], None] | None = None
) -> list[Port]:
    """Publish more ports of a pod that lives; return them, with the numbers that were free.  `mode`: of PUBLISH_MODES."""
    with kernel.Fd(state.lock("ports")):
        plan = plan_add(state, name, specs, mode)
        pod = _pod(state, name, mode)
        run = Run(plan, state)
        network: Any = pod["network"]
        if network["mode"] == "bridge":
            subnet = subnet_of(network)
            run.values.update({"pod:ip": network["ip"], "pod:gateway": subnet.gateway, "pod:prefix": subnet.bits})
        try:
            run.execute()
        finally:
            if observe:
                observe(run)
        _show(state, pod)
        return run.ports


def chosen(state: State, name: str, specs: list[str]) -> tuple[PodNote, list[Port]]:
    """Return a living pod, and the published ports that `port rm` is to remove; foretell_ports.py tells how.

    Raise UnknownError when one is not published, and BadInput for a pod whose ports can't be removed.
    """
    pod = _pod(state, name, FORWARD)
    have = state.ports(pod)
    wanted: list[Port] = []
    for spec in specs:
        wanted += [port for port in _match(have, spec) if port not in wanted]
    if pod["network"]["mode"] == "pasta" and any(port in pod.get("ports", []) for port in wanted):
        raise BadInput(
            f"pasta has these ports of pod {name!r}, and can't change them while it runs",
            hint="nsrun pod create, anew; with --publish-mode forward its ports can be removed",
        )
    return pod, wanted


def remove(state: State, name: str, specs: list[str]) -> list[Port]:
    """Stop publishing ports of a pod; return them.  Connections that are there go on.

    Raise UnknownError, with nothing done, when one is not published.
    """
    with kernel.Fd(state.lock("ports")):
        pod, wanted = chosen(state, name, specs)
        for path, note, holder in state.more_ports(pod):
            gone = [port for port in note["ports"] if port in wanted]
            if gone and is_forwarded(gone[0]):
                if _shut_down(_open(holder, f"{path}.{HELD}", KEEPER), holder, gone):
                    _end(path, holder)
                else:
                    state.save("pods", pod["name"], _without(note, gone, released=False), os.path.basename(path))
            elif gone and len(gone) == len(note["ports"]):
                _end(path, holder)
            elif gone:
                _withdraw(_open(holder, f"{path}.{HELD}", KEEPER), holder, gone, f"nsadd-{note['id'][:8]}")
                state.save("pods", pod["name"], _without(note, gone), os.path.basename(path))
        if gone := [port for port in pod.get("ports", []) if port in wanted]:
            from nsrun.host.net import table_name

            pidfd, pid = _first_holder(state, pod)
            network: Any = pod["network"]
            _withdraw(pidfd, pid, gone, table_name(network["ip"]))
            state.save("pods", pod["name"], _without(pod, gone))
        _forget(wanted, pod)
        _show(state, _pod(state, name, FORWARD))
        return wanted


def end(state: State, pod: Note) -> None:
    """End the holders of ports that a pod got later.  They end by themselves; this is for those who do not want to wait."""
    for path, _, holder in state.more_ports(pod):
        _end(path, holder)


def _pod(state: State, name: str, how: str) -> PodNote:
    """Return the note of a living pod whose ports we may change, by `how`.  Raise BadInput for any other."""
    pod = state.pod(name)
    mode = pod["network"]["mode"]
    if state.uid and not state.door(pod).startswith(f"{state.run}/"):
        raise BadInput(
            f"the ports of pod {name!r} are root's to change",
            hint=f"sudo nsrun port {name} shows them; sudo nsrun port add",
        )
    if mode == "host" or (mode == "none" and how != FORWARD):
        raise BadInput(
            f"pod {name!r} has the network {mode!r}: there is nothing to forward",
            hint="nsrun pod create --network bridge" + ("; or --publish-mode forward" if mode == "none" else ""),
        )
    return pod


def _match(have: list[Port], spec: str) -> list[Port]:
    """Return the published ports that a word names: [IP:]HOST[-LAST][/PROTOCOL], or as they were published, with :POD.

    Raise UnknownError when there is none, and UsageError when it is no port.
    """
    body, slash, protocol = spec.partition("/")
    if slash and protocol not in PROTOCOLS:
        raise UsageError(f"{spec!r}: {protocol!r} is no protocol", hint="tcp, which may be left out, or udp")
    parts = body.split(":")
    address = ""
    if body[:1] == "[" and "]:" in body:
        address, _, body = body[1:].partition("]:")
        address, parts = parse_ipv6(address, spec), body.split(":")
    elif "." in parts[0]:
        address = parse_ipv4(parts.pop(0), spec)
    if not 1 <= len(parts) <= 2:
        raise UsageError(
            f"{spec!r} is not a published port", hint="[IP:]HOST[/udp]: 8080, 127.0.0.1:8080, [::]:8080, 8000-8010"
        )
    ranges = [_numbers(part, spec) for part in parts]
    found = [
        port
        for port in have
        if port["protocol"] == (protocol or "tcp")
        and port["host_port"] in ranges[0]
        and (not address or port["host_ip"] == address)
        and (len(ranges) == 1 or port["pod_port"] == ranges[1][0] + port["host_port"] - ranges[0][0])
    ]
    if len({port["host_port"] for port in found}) != len(ranges[0]):
        raise UnknownError(f"port {spec} is not published", hint="nsrun port ls shows what is")
    return found


def _numbers(text: str, spec: str) -> range:
    first, dash, last = text.partition("-")
    low = parse_count(first, f"{spec[:80]}:", "a port", 1, 65535)
    high = parse_count(last, f"{spec[:80]}:", "a port", low, 65535) if dash else low
    return range(low, high + 1)


def _without(note: Note, gone: list[Port], released: bool = True) -> Note:
    left = [port for port in note["ports"] if port not in gone]
    return {**note, "ports": left, **({"released": [*note.get("released", []), *gone]} if released else {})}


def _show(state: State, pod: Note) -> None:
    if pod.get("user") and not state.uid:
        state.show({**pod, "ports": state.ports(pod)})


def _forget(ports: list[Port], pod: PodNote) -> None:
    network: Any = pod["network"]
    if any(port["protocol"] == "udp" and not is_forwarded(port) for port in ports):
        from nsrun.host.conntrack import forget_ports

        forget_ports(ports, subnet_of(network), network.get("ip6", ""))


def _open(holder: int, path: str, byte: int) -> int:
    fd = open_pid(holder, path, byte)
    if fd < 0:
        raise NsrunError("the process that holds the ports has just ended", hint="nsrun pod ls")
    return fd


def _first_holder(state: State, pod: PodNote) -> tuple[int, int]:
    """Return (pidfd, pid) of the process that has the ports that a pod was made with."""
    fd, pid = state.first_holder(pod)
    if fd >= 0:
        return fd, pid
    if pod.get("user") and state.pod_life(pod).alive:
        raise NsrunError(f"nsrun-hold of pod {pod['name']!r} has ended: its ports are gone", hint="nsrun pod rm -f")
    raise UnknownError(f"pod {pod['name']!r} has just ended", hint="nsrun pod ls")


def _end(path: str, holder: int) -> None:
    """End a holder, and with it its ports; then remove the file that lists them."""
    from select import POLLIN, poll

    held = f"{path}.{HELD}"
    fd = open_pid(holder, held, KEEPER)
    if fd >= 0:
        try:
            kernel.pidfd_send_signal(fd, 9)
        except KernelError as error:
            if error.errno != ESRCH:
                raise
        try:
            poller = poll()
            poller.register(fd, POLLIN)
            # its lock is free before its sockets are closed: they are when its pidfd says that it has ended
            if not wait(held, fd, 10, KEEPER) or not poller.poll(10_000):
                raise NsrunError(f"process {holder}, which holds ports, does not end", hint=f"ps -p {holder}")
        finally:
            os.close(fd)
        kernel.reap()
    for file in (path, held):
        remove_tree(file)


def _withdraw(pidfd: int, pid: int, ports: list[Port], table: str) -> None:
    """Take ports out of the table of the process that has them, and let others have the ports of its sockets."""
    from nsrun.host import net, wire

    wanted = {(port["protocol"], port["host_ip"], port["host_port"]) for port in ports}
    try:
        kinds = {_socket.SOCK_STREAM: "tcp", _socket.SOCK_DGRAM: "udp"}
        found: list[_socket.socket] = []
        tables = []
        for number in map(int, os.listdir(f"/proc/{pid}/fd")):
            sock = _borrow(pidfd, number)
            if sock is None:
                continue
            if sock.family == _socket.AF_NETLINK and sock.proto == NETFILTER:
                tables.append(wire.Socket(fileno=sock.detach()))
            elif sock.family in IP and (kinds.get(sock.type, ""), *sock.getsockname()[:2]) in wanted:
                found.append(sock)
            else:
                sock.close()
        try:
            if not tables:
                raise NsrunError(f"process {pid} has no table of ports", hint="nsrun doctor")
            net.withdraw(tables[0], table, ports)
            for sock in found:
                net.release_port(sock)
        finally:
            for one in (*tables, *found):
                one.close()
    finally:
        os.close(pidfd)


def _shut_down(pidfd: int, pid: int, ports: list[Port]) -> bool:
    """Shut sockets of a forwarder down, and wait until it has closed them: then the ports are free.  Return whether it ends with them.

    shutdown(2) also ends a socket that listens, or that is not connected, for whoever waits for it (poll(2), POLLHUP).
    """
    wanted = {(port["protocol"], port["host_ip"], port["host_port"]) for port in ports}
    kinds = {_socket.SOCK_STREAM: "tcp", _socket.SOCK_DGRAM: "udp"}
    ended: set[str] = set()
    try:
        for number in map(int, os.listdir(f"/proc/{pid}/fd")):
            sock = _borrow(pidfd, number)
            if sock is None:
                continue
            try:
                inet = sock.family in (_socket.AF_INET, _socket.AF_INET6)
                if inet and _is_ours(sock) and (kinds.get(sock.type, ""), *sock.getsockname()[:2]) in wanted:
                    ended.add(f"socket:[{os.fstat(sock.fileno()).st_ino}]")
                    try:
                        sock.shutdown(_socket.SHUT_RDWR)
                    except OSError as error:
                        if error.errno != ENOTCONN:  # of UDP: it is shut down nevertheless
                            raise
            finally:
                sock.close()
        from nsrun.host.net import wait

        if not wait(lambda: not ended & _links(pid), PATIENCE):
            raise NsrunError(f"process {pid} keeps ports that it was told to close", hint=f"is it stopped? ps -p {pid}")
        return not _links(pid)
    finally:
        os.close(pidfd)


def _is_ours(sock: _socket.socket) -> bool:
    """Return whether a forwarder's socket is one that clients reach: it listens, or is UDP's and not connected."""
    if sock.type == _socket.SOCK_STREAM:
        return bool(sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ACCEPTCONN))
    try:
        sock.getpeername()
    except OSError:
        return True
    return False


def _links(pid: int) -> set[str]:
    """Return what the descriptors of a process lead to; nothing when it has ended."""
    found = set()
    try:
        for number in os.listdir(f"/proc/{pid}/fd"):
            try:
                found.add(os.readlink(f"/proc/{pid}/fd/{number}"))
            except FileNotFoundError:
                continue  # it was closed just now
    except (FileNotFoundError, ProcessLookupError):
        return set()
    return found


def _borrow(pidfd: int, number: int) -> _socket.socket | None:
    """Return a socket of another process, or None when this descriptor of it is none, or the process has ended."""
    try:
        fd = kernel.pidfd_getfd(pidfd, number)
    except KernelError as error:
        if error.errno in (EBADF, ENOENT, ESRCH):
            return None
        raise
    try:
        return _socket.socket(fileno=fd)
    except OSError:  # it is no socket
        os.close(fd)
        return None
