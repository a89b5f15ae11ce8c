# SPDX-License-Identifier: Apache-2.0
"""Steps for ports that nsrun-forward passes on (csrc/forward.c): where nat can't, or is not wanted."""

from __future__ import annotations

import os
from errno import EMFILE, EPERM, ESRCH

from nsrun.plan import COMMIT, HOST, OWN_KEYRING, Part, Step
from nsrun.spec.options import FORWARD, PROTOCOLS, is_forwarded, port_ranges
from nsrun.state.life import HELD, KEEPER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsrun.plan import Context
    from nsrun.spec.options import Published

#: Seconds that a forwarder may take until it says that it is at work.
PATIENCE = 10
#: In place of an address: the one that the pod leased; and what the forwarder finds out itself, inside.
LEASED, FOUND = "pod:ip", ""


def address_of(network: str, ip: str = LEASED) -> str:
    """Return the address of a pod to which the forwarder connects, by the mode of its network.

    It is the pod's own, as with nat, so that the same servers are reached; a pod without a network has only 127.0.0.1.
    """
    return {"bridge": ip, "none": "127.0.0.1"}.get(network, FOUND)


class ListenPorts(Step):
    phase = HOST
    why = "A socket stays in the network namespace in which it was made: these are the host's, also in the hands of a process that is in the pod's."
    man = "socket(7), listen(2)"
    ports: tuple[Published, ...]
    hints = {EMFILE: "more ports than descriptors: ulimit -n"}

    @property
    def handles(self) -> list[str]:
        return [f"listen:{number}" for number, _ in enumerate(self.ports)]

    def made(self) -> list[str | Part]:
        found: list[str | Part] = []
        for protocol in PROTOCOLS:
            for family in ("AF_INET", "AF_INET6"):
                some = [p for p in self.ports if p[3] == protocol and (":" in p[0]) == (family == "AF_INET6")]
                each = "PORT of " + ", ".join(
                    f"{ip}:{'any free port' if host == 'free' else host}" for ip, host, _ in port_ranges(some)
                )
                kind = "SOCK_DGRAM" if protocol == "udp" else "SOCK_STREAM"
                only = ["setsockopt(fd, SOL_IPV6, IPV6_V6ONLY, 1)"] if family == "AF_INET6" else []
                calls = [f"fd = socket({family}, {kind})", *only, "bind(fd, PORT)"]
                if protocol == "tcp":
                    reuse = "setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, 1)"
                    calls = [*calls[:-1], reuse, calls[-1], "listen(fd, 4096)"]
                if some:
                    found.append(Part(calls, each=each, times=len(some)))
        return found

    def makes(self) -> tuple[str, ...]:
        return tuple(self.handles)

    approx = "socat makes its own sockets: the next step but some"

    def check(self) -> str:
        return "ss -lntup"

    def do(self, run: Context) -> None:
        from nsrun.host import net

        if len(self.ports) > 1:
            net.raise_open_files(len(self.ports))
        for handle, (ip, host, pod, protocol) in zip(self.handles, self.ports, strict=True):
            sock, port = net.hold_port(
                ip, host, protocol, run.state.pod_with_port, run.state.was_released, to_listen=True
            )
            run.hold(handle, sock.fileno())
            if protocol == "tcp":
                sock.listen(4096)
            sock.detach()
            run.ports.append({"host_ip": ip, "host_port": port, "pod_port": pod, "protocol": protocol, "mode": FORWARD})


class StartForwarder(Step):
    """Starts nsrun-forward, which keeps these ports by existing."""

    phase = COMMIT
    why = "Each connection is accepted on the host and made anew in the pod, where no firewall of the host sees it: the member sees the pod's own address as the client's. The process ends with pause."
    man = "setns(2), splice(2), recvmmsg(2), seccomp(2)"
    pod: str
    ident: str
    cgroup: str
    ports: tuple[Published, ...]
    to: str  # LEASED, an address, or FOUND
    joins: bool  # the user namespace of the pod, too: the caller has no power outside of it
    ids: tuple[int, ...]  # the uid and gid that it gets; (): it keeps the caller's
    process: str  # the handle of pause's pidfd
    alive: bool = False  # there is a pipe that pause has the other end of: ShowOwner
    hints = {
        ESRCH: "the pod has just ended",
        EPERM: "the pod belongs to somebody else",
    }

    @property
    def file(self) -> str:
        from nsrun.state import PORTS

        return f"{PORTS}{self.ident}"

    @property
    def handles(self) -> list[str]:
        return ListenPorts(self.ports).handles

    def words(self, pause: object, to: str, fds: list[object]) -> list[str]:
        """Return the arguments of nsrun-forward."""
        found = [f"pause={pause}", *(["user=1"] if self.joins else []), *([f"to={to}"] if to else [])]
        for number in self.ids:
            found += [f"uid={number}", f"gid={number}"]
        return found + [f"{p[3]}={fd}:{p[2]}" for fd, p in zip(fds, self.ports, strict=True)]

    def made(self) -> list[str | Part]:
        both = "CLONE_NEWNET|CLONE_NEWUSER" if self.joins else "CLONE_NEWNET"
        words = self.words("…", "…" if self.to == LEASED else self.to, ["…"] * len(self.ports))
        ids = f"setresuid({self.ids[0]}, …), " if self.ids else ""
        then = f"setns({self.process}, {both}), {ids}capset(none), seccomp(SECCOMP_SET_MODE_FILTER, …)"
        child = ["fcntl(ports:passed, F_SETLK, F_RDLCK)", "setsid()", OWN_KEYRING]
        command = " ".join(["nsrun-forward", *words[:8], *(["…"] if len(words) > 8 else [])])
        child.append(f'execveat(forwarder:program, "", ["{command}"], [], AT_EMPTY_PATH)   /* then: {then} */')
        way = [Part(["mkdirat(parent, PART, 0755)"], when="it is missing", each=f"PART of {self.cgroup}")]
        return [
            f'openat("pods/{self.pod}/{self.file}.held", O_CREAT)',
            f'rename("pods/{self.pod}/{self.file}.tmp", "pods/{self.pod}/{self.file}")',
            "pipe2(ready, O_CLOEXEC)",
            *(way if self.cgroup else []),
            f"clone3(CLONE_VM|CLONE_VFORK|CLONE_PIDFD{'|CLONE_INTO_CGROUP' if self.cgroup else ''})",
            Part(child, by="the child, which becomes nsrun-forward"),
            "read(ready)",
        ]

    def brief(self) -> str:
        return "start nsrun-forward"

    def needs(self) -> tuple[str, ...]:
        alive = ("alive:read",) if self.alive else ()
        return ("forwarder:program", self.process, *self.handles, *alive, *(["pod:ip"] if self.to == LEASED else []))

    def makes(self) -> tuple[str, ...]:
        return ("ports:passed", "forwarder:pidfd", "forwarder:null", "forwarder:cgroup?")

    approx = "socat starts a process for each connection, and nothing ends it with the pod"

    def shell(self) -> str:
        enter = f"nsenter --target $POD {'--user --preserve-credentials ' if self.joins else ''}--net"
        to = {LEASED: "$IP", FOUND: "127.0.0.1"}.get(self.to, self.to)
        lines = []
        for ip, host, pod, protocol in self.ports:
            kind = "UDP" if protocol == "udp" else "TCP"
            version = "6" if ":" in ip else "4"
            bind = f"[{ip}],ipv6-v6only" if ":" in ip else ip
            listen = f"{kind}{version}-LISTEN:{host or 'PORT'},fork,reuseaddr,bind={bind}"
            lines.append(f'socat {listen} EXEC:"{enter} socat STDIO {kind}4\\:{to}\\:{pod}" &')
        return "\n".join(lines)

    def check(self) -> str:
        return "nsrun port ls POD; pgrep -a nsrun-forward; grep -e Cap -e Seccomp /proc/PID/status; ss -lntup"

    def do(self, run: Context) -> None:
        state, path = run.state, run.state.path("pods", self.pod, f"{self.file}.{HELD}")
        flags = os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        lock = run.hold("ports:passed", os.open(path, flags, 0o600))
        state.save("pods", self.pod, {"id": self.ident, "ports": list(filter(is_forwarded, run.ports))}, self.file)
        pause, fds = run.fd(self.process), [run.fd(handle) for handle in self.handles]
        to = str(run.values["pod:ip"]) if self.to == LEASED else self.to
        read, write = os.pipe2(os.O_CLOEXEC)
        try:
            words = [*self.words(pause, to, list(fds)), f"ready={write}"]
            keep = [pause, lock, write, *fds]
            if self.alive:
                words.append(f"alive={run.fd('alive:read')}")
                keep.append(run.fd("alive:read"))
            run.start_door("forwarder", words, keep, self.cgroup, (lock, KEEPER), FORWARD)
            os.close(write)
            write = -1
            self._await(run, read)
        finally:
            for fd in (read, write):
                if fd >= 0:
                    os.close(fd)

    def _await(self, run: Context, read: int) -> None:
        """Wait until the forwarder is at work.  Raise KernelError, when it has ended, if it is not."""
        from select import poll

        from nsrun import kernel
        from nsrun.errors import KernelError

        poller = poll()
        poller.register(read, 1)
        answer = os.read(read, 4) if poller.poll(PATIENCE * 1000) else b""
        error = -int.from_bytes(answer, "little", signed=True) if len(answer) == 4 else ESRCH
        if error:
            try:
                kernel.pidfd_send_signal(run.fd("forwarder:pidfd"), 9)
            except KernelError:
                pass  # it has ended
            raise KernelError(error, "setns(pod, CLONE_NEWNET)")

    def undo(self, run: Context) -> None:
        from nsrun.state import remove_tree

        for file in (f"{self.file}.{HELD}", self.file):
            remove_tree(run.state.path("pods", self.pod, file))
