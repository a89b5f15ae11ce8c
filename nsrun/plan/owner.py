# SPDX-License-Identifier: Apache-2.0
"""Steps that only a pod with a user namespace of its own has: it belongs to somebody who is not root."""

from __future__ import annotations

import os
from errno import EACCES, EAGAIN, ECONNREFUSED, EINVAL, ENOENT, ENOSPC, EOPNOTSUPP, EPERM, ESRCH

from nsrun import kernel
from nsrun.errors import BadInput
from nsrun.plan import COMMIT, HOST, OPEN, OWN_KEYRING, Part, Step
from nsrun.plan.network import binding
from nsrun.spec.options import ANY
from nsrun.state.life import HOLDER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from nsrun.plan import Context
    from nsrun.spec.options import Published

_GONE = "the pod's nsrun-door has ended (killed?): its members live on; to start more, make the pod anew"


def _map_text(ranges: list[list[int]]) -> str:
    return ", ".join(f"{i} {o} {n}" for i, o, n in ranges)


class NewUserNamespace(Step):
    phase = HOST
    man = "user_namespaces(7), subuid(5), newuidmap(1)"
    native = "kernel.c nsrun_spawn_userns"
    owner: str
    uid: int
    gid: int
    maps: dict[str, list[list[int]]]
    by_root: bool
    handle: str = "user:fd"
    hints = {
        ENOSPC: "the limit on user namespaces is reached: /proc/sys/user/max_user_namespaces",
        EINVAL: "the maps overlap: look at /etc/subuid and /etc/subgid",
    }

    @property
    def why(self) -> str:  # type: ignore[override]
        return (
            f"Id 0 of the pod is {self.owner} on the host, and its other ids are subordinate ids of {self.owner}, so root in the pod has no power"
            f" outside. The user namespace belongs to {self.owner}, who therefore joins the pod without any privilege."
        )

    def made(self) -> list[str | Part]:
        become: list[str | Part] = []
        if self.by_root:  # session.h become_user()
            become += [OWN_KEYRING, "setgroups(0, [])", f"setresgid({self.gid}, {self.gid}, {self.gid})"]
            become += [f"setresuid({self.uid}, {self.uid}, {self.uid})", "capset(none)"]
        maps: list[str | Part] = []
        for kind in ("gid", "uid"):
            text = _map_text(self.maps[kind])
            if self.by_root:
                maps.append(f'write("/proc/PID/{kind}_map", "{text}")')
            else:
                maps += ['memfd_create("errors")', f"# new{kind}map PID {text}"]
        child = Part([*become, "unshare(CLONE_NEWUSER)"], by="a child")
        wait: list[str | Part] = ["pipe2(ready, O_CLOEXEC)", "pipe2(wait, O_CLOEXEC)", "fork()"]
        return [*wait, child, *maps, f'{self.handle} = open("/proc/PID/ns/user")']

    def brief(self) -> str:
        return "unshare(CLONE_NEWUSER) and its maps"

    def makes(self) -> tuple[str, ...]:
        return (self.handle,)

    approx = "a process holds the namespace instead of a descriptor"

    def shell(self) -> str:
        become = f"setpriv --reuid {self.uid} --regid {self.gid} --clear-groups " if self.by_root else ""
        lines = [f"{become}unshare --user sleep infinity >/dev/null & USERNS=$!"]
        lines.append(
            'until [ "$(readlink /proc/$USERNS/ns/user)" != "$(readlink /proc/self/ns/user)" ]; do sleep 0.01; done'
        )
        for kind in ("gid", "uid"):
            text = "\\n".join(f"{i} {o} {n}" for i, o, n in self.maps[kind])
            words = " ".join(str(n) for line in self.maps[kind] for n in line)
            lines.append(
                f"printf '{text}\\n' >/proc/$USERNS/{kind}_map" if self.by_root else f"new{kind}map $USERNS {words}"
            )
        return "\n".join(lines)

    def check(self) -> str:
        return "cat /proc/PID/uid_map; lsns -t user"

    def do(self, run: Context) -> None:
        from nsrun.host import userns

        run.hold(self.handle, userns.make((self.uid, self.gid), self.maps))


class DelegateCgroup(Step):
    phase = HOST
    why = "The owner may make cgroups for members below it, and move processes between them; the limits of the pod stay with root."
    man = "cgroups(7) “Cgroups delegation: delegating a hierarchy to a less privileged user”"
    path: str
    uid: int
    gid: int
    hints = {EACCES: "the cgroup tree is read-only here"}

    def made(self) -> list[str | Part]:
        files = "cgroup.max.descendants", "cgroup.max.depth"
        chown = f'fchownat("{self.path}", FILE, {self.uid}, {self.gid})'
        each = "FILE of . cgroup.procs cgroup.threads cgroup.subtree_control"
        return (
            [*(f'write("{file}", …)' for file in files), Part([chown], each=each, times=4)]
            if self.path
            else ["# there are no cgroups here"]
        )

    def brief(self) -> str:
        return f'chown("{self.path}", {self.uid}, {self.gid})'

    def shell(self) -> str:
        return f'chown {self.uid}:{self.gid} "$CGROUP" "$CGROUP"/cgroup.procs "$CGROUP"/cgroup.threads "$CGROUP"/cgroup.subtree_control'

    def check(self) -> str:
        return f"ls -l {self.path}"

    def do(self, run: Context) -> None:
        from nsrun.host import cgroup

        cgroup.delegate(self.path, self.uid, self.gid)


class EnterUserNamespace(Step):
    phase = OPEN
    why = "The owner of a user namespace has every capability in it: from here on nsrun is root there, and has no more power than before elsewhere."
    man = "user_namespaces(7), setns(2), unshare(2)"
    native = "kernel.c nsrun_enter_userns"
    handle: str
    hints = {
        EPERM: "the pod belongs to somebody else",
        EINVAL: "only a process with a single thread can",
        ESRCH: "the pod has just ended",
    }

    def made(self) -> list[str | Part]:
        return [f"setns({self.handle}, CLONE_NEWUSER)", "unshare(CLONE_NEWNS)"]

    def needs(self) -> tuple[str, ...]:
        return (self.handle,)

    def shell(self) -> str:
        return "# nsenter --user --target $POD … unshare --mount: each command below, in it"

    def check(self) -> str:
        return "readlink /proc/PID/ns/user; grep Cap /proc/PID/status"

    def do(self, run: Context) -> None:
        kernel.enter_userns(run.fd(self.handle))


class OwnMounts(Step):
    """Root of a user namespace, whose mount namespace may be an outer one's (`unshare -Ur`)."""

    phase = OPEN
    why = "A process that mounts needs a mount namespace that belongs to its own user namespace."
    man = "unshare(2), mount_namespaces(7)"

    def made(self) -> list[str | Part]:
        return ["unshare(CLONE_NEWNS)"]

    def check(self) -> str:
        return "readlink /proc/PID/ns/mnt /proc/PID/ns/user"

    def do(self, run: Context) -> None:
        kernel.own_mounts()


class OpenUserNamespace(Step):
    phase = OPEN
    why = "The layers belong to ids of the host and are shown with those of the pod, which takes an id-mapped mount of this user namespace."
    man = "mount_setattr(2) MOUNT_ATTR_IDMAP"
    process: str  # the handle of its pidfd
    handle: str = "pod:user"

    def made(self) -> list[str | Part]:
        return [f'{self.handle} = open("/proc/PID/ns/user")   /* of pause */', f"pidfd_send_signal({self.process}, 0)"]

    def needs(self) -> tuple[str, ...]:
        return (self.process,)

    def makes(self) -> tuple[str, ...]:
        return (self.handle,)

    def check(self) -> str:
        return "readlink /proc/PID/ns/user"

    def do(self, run: Context) -> None:
        pid = run.values[f"{self.process}:pid"]
        run.hold(self.handle, os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC))
        kernel.pidfd_send_signal(run.fd(self.process), 0)  # ESRCH: it has ended, and the number might be another's

    hints = {ESRCH: "the pod has just ended", ENOENT: "the pod has just ended"}


class ShowOwner(Step):
    """What pause holds in a pod of root's own, which its owner may see."""

    phase = HOST
    why = "The owner knows by a lock on this file that the pod lives; root believes only the lock that nsrun-hold has on root's own."
    man = "fcntl(2) F_SETLK, acl(5)"
    uid: int
    name: str
    hints = {EOPNOTSUPP: "the file system of nsrun's state has no ACLs: --root DIR on another"}

    def made(self) -> list[str | Part]:
        return [
            Part(["mkdir(DIRECTORY, 0700)"], each="DIRECTORY for its owner that is missing"),
            f'lock:shown = open("{self.name}.held", O_CREAT|O_EXCL)',
            "fcntl(lock:shown, F_SETLK, F_RDLCK)",
            "pipe2(alive, O_CLOEXEC)",
        ]

    def brief(self) -> str:
        return f'fcntl(open("{self.name}.held", O_CREAT|O_EXCL), F_SETLK, F_RDLCK)'

    def makes(self) -> tuple[str, ...]:
        return ("lock:shown", "alive:read", "alive:write")

    def check(self) -> str:
        return "lslocks"

    def do(self, run: Context) -> None:
        run.hold("lock:shown", run.state.make_shown(self.uid, self.name))
        read, write = os.pipe2(os.O_CLOEXEC)  # pause has the end that nobody writes to: nsrun-hold sees it let go
        run.hold("alive:read", read), run.hold("alive:write", write)

    def undo(self, run: Context) -> None:
        run.state.disown({"user": {"uid": self.uid}, "name": self.name})


class ReachDoor(Step):
    phase = OPEN
    why = "Without power over the cgroups of the machine no process can move into that of the pod; but what nsrun-door forks is born there."
    man = "unix(7), cgroups(7)"
    path: str
    handle: str = "door:fd"
    hints = {
        ENOENT: _GONE,
        ECONNREFUSED: _GONE,
        EACCES: "the pod belongs to somebody else",
        EAGAIN: "the pod's nsrun-door does not answer: is it stopped? pgrep -a nsrun-door",
    }

    def made(self) -> list[str | Part]:
        return [f"{self.handle} = socket(AF_UNIX, SOCK_SEQPACKET)", f'connect({self.handle}, "{self.path}")']

    def makes(self) -> tuple[str, ...]:
        return (self.handle,)

    def check(self) -> str:
        return "pgrep -a nsrun-door"

    def do(self, run: Context) -> None:
        import _socket
        from struct import pack

        directory, name = os.path.split(self.path)
        at = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
        try:
            # a stopped door takes nobody in, and its queue may be full: SO_SNDTIMEO bounds the wait, socket(7)
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, pack("=qq", kernel.DOOR_PATIENCE, 0))
            sock.connect(f"/proc/self/fd/{at}/{name}")  # a path of any length: sun_path holds 108 bytes
        except BaseException:
            sock.close()
            raise
        finally:
            os.close(at)
        run.hold(self.handle, sock.detach())


def _begin(cgroup: str) -> list[str | Part]:
    """What nsrun.run.Run.start_door() does before the program is executed."""
    if not cgroup:
        return ["clone3(CLONE_VM|CLONE_VFORK|CLONE_PIDFD)"]
    return [
        Part(["mkdirat(parent, PART, 0755)"], when="it is missing", each=f"PART of {cgroup}"),
        "clone3(CLONE_VM|CLONE_VFORK|CLONE_PIDFD|CLONE_INTO_CGROUP)",
    ]


class HoldForPod(Step):
    """What pause is for root in a pod of root's; the owner of this one has every power over pause."""

    phase = COMMIT
    why = (
        "The owner controls pause, and could keep a port or the table beyond the pod, or hide that it lives, so a separate "
        "process of root's, out of the owner's reach, holds them until pause lets go."
    )
    man = "fcntl(2) F_SETLK, pidfd_getfd(2), bind(2), nft(8)"
    cgroup: str  # beside the pod's: what is in that the owner could freeze
    held: tuple[str, ...]

    def made(self) -> list[str | Part]:
        keeps = f"   /* it keeps {', '.join(self.held)} */" if self.held else ""
        child = ["fcntl(lock:held, F_SETLK, F_RDLCK)", "setsid()", OWN_KEYRING]
        child.append(f'execveat(door:program, "", ["nsrun-door", "pause=…"], [], AT_EMPTY_PATH){keeps}')
        return [*_begin(self.cgroup), Part(child, by="the child, which becomes nsrun-hold")]

    def brief(self) -> str:
        return "start nsrun-hold"

    def needs(self) -> tuple[str, ...]:
        return ("door:program", "member:pidfd", "lock:held", "alive:read", *self.held)

    def makes(self) -> tuple[str, ...]:
        return ("hold:pidfd", "hold:null", "hold:cgroup?")

    def check(self) -> str:
        return "pgrep -a nsrun-hold"

    def do(self, run: Context) -> None:
        keep = [run.pidfd, *(run.fd(name) for name in ("lock:held", "alive:read", *self.held))]
        words = [f"pause={run.pidfd}", f"alive={run.fd('alive:read')}", "uid=65535", "gid=65535"]
        run.start_door("hold", words, keep, self.cgroup, (run.fd("lock:held"), HOLDER))

    def undo(self, run: Context) -> None:
        from nsrun.host import cgroup

        cgroup.remove(self.cgroup, kill=True)


class OpenDoor(Step):
    """Starts nsrun-door, for the owner, in the pod's cgroup; its socket is where only the owner reaches it."""

    phase = COMMIT
    why = "The owner joins without privilege through nsrun-door: what it forks, as the owner, is in the cgroup of the pod. It ends with pause."
    man = "unix(7), clone(2) CLONE_INTO_CGROUP"
    name: str
    user: dict[str, Any]
    cgroup: str

    def made(self) -> list[str | Part]:
        child = ["setsid()", OWN_KEYRING, 'execveat(door:program, "", ["nsrun-door", "listen=…"], [], AT_EMPTY_PATH)']
        return [
            "door:socket = socket(AF_UNIX, SOCK_SEQPACKET)",
            f'bind(door:socket, "{self.name}.door")',
            Part([f'fchownat("{self.name}.door", {self.user["uid"]}, -1)'], when="root makes it for its owner"),
            "listen(door:socket, 64)",
            *_begin(f"{self.cgroup}/door" if self.cgroup else ""),
            Part(child, by="the child, which becomes nsrun-door, and the owner"),
        ]

    def brief(self) -> str:
        return f"start nsrun-door, which listens at {self.name}.door"

    def needs(self) -> tuple[str, ...]:
        return ("door:program", "member:pidfd", "forward:pidfd?")

    def makes(self) -> tuple[str, ...]:
        return ("door:dir", "door:socket", "door:pidfd", "door:null", "door:cgroup?")

    def check(self) -> str:
        return "pgrep -a nsrun-door"

    def do(self, run: Context) -> None:
        import _socket

        from nsrun.state import remove_tree

        state, uid = run.state, self.user["uid"]
        path = state.path("pods", self.name, "door") if state.uid else f"{state.owned}/{uid}/{self.name}.door"
        directory, name = os.path.split(path)
        at = run.hold("door:dir", os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
        run.hold("door:socket", sock.fileno())
        remove_tree(path)  # of a pod of this name that has ended
        sock.bind(f"/proc/self/fd/{at}/{name}")
        os.chmod(name, 0o600, dir_fd=at)
        words = []
        if not state.uid:
            os.chown(name, uid, -1, dir_fd=at, follow_symlinks=False)
            groups = ",".join(map(str, self.user["groups"]))
            words = [f"uid={uid}", f"gid={self.user['gid']}", f"groups={groups}"]
        sock.listen(64)
        listener = sock.detach()
        words += [f"listen={listener}", f"pause={run.pidfd}"]
        forward = run.fd("forward:pidfd")
        words += [f"forward={forward}"] if forward >= 0 else []
        place = f"{self.cgroup}/door" if self.cgroup else ""
        run.start_door("door", words, [fd for fd in (listener, run.pidfd, forward) if fd >= 0], place)


class OwnNetwork(NewUserNamespace):
    """The user namespace that owns the network of a root's pod, for pasta."""

    handle: str = "network:user"

    @property
    def why(self) -> str:  # type: ignore[override]
        return f"It owns the pod's network and nothing else, and nobody is in it but pasta, which runs as {self.uid}: so pasta has power over that network alone."


class ForwardPorts(Step):
    """pasta: the network of a pod without a bridge."""

    phase = COMMIT
    man = "pasta(1)"
    ports: tuple[Published, ...]
    run_as: tuple[int, int] | None = None  # whom root's pasta becomes; then, of what it is root:
    user: str = ""

    @property
    def why(self) -> str:  # type: ignore[override]
        if not self.run_as:
            return "Without root there is no bridge and no veth, so pasta copies between the network of the pod and sockets of the owner."
        return f"Instead of a bridge there is pasta, which copies between the network of the pod and sockets of this host. It binds the ports as root, and goes on as {self.run_as[0]}, with power over that network alone."

    def words(self, pause: object, ports: Sequence[Published]) -> list[str]:
        """pasta's command line; the pod's network namespace by pause."""
        words = ["pasta", "--foreground", "--quiet", "--config-net", "--ns-ifname", "eth0", "--no-map-gw"]
        if self.run_as:
            words += ["--runas", f"{self.run_as[0]}:{self.run_as[1]}"]
        user, net = ("self/fd/1", "self/fd/0") if self.run_as else (f"{pause}/ns/user", f"{pause}/ns/net")
        words += ["--userns", f"/proc/{user}", "--netns", f"/proc/{net}"]
        for outwards, inwards, protocol in (("-T", "-u", "udp"), ("-U", "-t", "tcp")):
            words += [outwards, "none"]
            some = [port for port in ports if port[3] == protocol]
            for ip, host, pod, _ in some:
                both = all(
                    (every, host, pod, protocol) in some for every in ANY
                )  # then it is one socket of both families
                if not both or ip == ANY[0]:
                    words += [inwards, f"{'' if both and ip in ANY else ip + '/'}{host}:{pod}"]
            words += [] if some else [inwards, "none"]
        return words

    def made(self) -> list[str | Part]:
        words = " ".join(self.words("PAUSE", self.ports))
        return [
            *binding(self.ports, "PORT, which says whether it is free; then it is closed"),
            'flock("forward.log", LOCK_EX)',
            "clone3(CLONE_VM|CLONE_VFORK)",
            Part(["setsid()", f"execve(pasta: {words})"], by="the child, which becomes pasta"),
            "forward:pidfd = pidfd_open(pasta, 0)",
        ]

    def brief(self) -> str:
        return " ".join(self.words("PAUSE", self.ports))

    def needs(self) -> tuple[str, ...]:
        return ("net:fd", self.user) if self.run_as else ()

    def makes(self) -> tuple[str, ...]:
        return ("forward:pidfd",)

    def shell(self) -> str:
        namespaces = " </proc/$POD/ns/net >/proc/$USERNS/ns/user" if self.run_as else ""
        return " ".join(self.words("$POD", self.ports)) + namespaces.replace(">", "1<") + " &"

    def check(self) -> str:
        return "pgrep -a pasta; cat /proc/PID/net/dev"

    def do(self, run: Context) -> None:
        from nsrun.host import net, pasta

        ports: list[Published] = []
        twins: dict[tuple[int, str], list[int]] = {}  # free ports of IPv4, which are to be those of IPv6, too
        for ip, host, pod, protocol in self.ports:  # is it free?  pasta binds it itself
            if (ip, host) == ("::", 0) and twins.get((pod, protocol)):
                host = twins[pod, protocol].pop(0)
            sock, port = net.hold_port(
                ip, host, protocol, run.state.pod_with_port, run.state.was_released, to_listen=True
            )
            if (ip, host) == ("0.0.0.0", 0):
                twins.setdefault((pod, protocol), []).append(port)
            sock.close()
            ports.append((ip, port, pod, protocol))
            run.ports.append({"host_ip": ip, "host_port": port, "pod_port": pod, "protocol": protocol})
        namespaces = (run.fd("net:fd"), run.fd(self.user)) if self.run_as else None
        pid, fd = pasta.start(self.words(run.pid, ports), run.directory, namespaces)
        run.hold("forward:pidfd", fd)
        run.values["forward:pid"] = pid

    def undo(self, run: Context) -> None:
        if "forward:pid" in run.values:
            from nsrun.host import pasta

            pasta.stop(int(run.values["forward:pid"]))


class EndWithPause(Step):
    """Starts nsrun-hold, which ends root's pasta when pause ends."""

    phase = COMMIT
    why = "A process of its own ends pasta, which may not notice that the pod has ended."
    man = "pidfd_send_signal(2), poll(2)"
    cgroup: str
    uid: int

    def made(self) -> list[str | Part]:
        child = ["setsid()", OWN_KEYRING]
        child.append('execveat(door:program, "", ["nsrun-door", "pause=…", "forward=…"], [], AT_EMPTY_PATH)')
        return [*_begin(self.cgroup), Part(child, by="the child, which becomes nsrun-hold")]

    def brief(self) -> str:
        return "start nsrun-hold"

    def needs(self) -> tuple[str, ...]:
        return ("door:program", "member:pidfd", "forward:pidfd")

    def makes(self) -> tuple[str, ...]:
        return ("hold:pidfd", "hold:null", "hold:cgroup?")

    def check(self) -> str:
        return "pgrep -a nsrun-hold"

    def do(self, run: Context) -> None:
        forward = run.fd("forward:pidfd")
        words = [f"pause={run.pidfd}", f"forward={forward}", f"uid={self.uid}", f"gid={self.uid}"]
        run.start_door("hold", words, [run.pidfd, forward], self.cgroup)


def mapped(user: Mapping[str, Any], kind: str, ident: int, inside: bool) -> int:
    """What an id of the pod is for us: itself when we are `inside` its user namespace.  BadInput: the pod has no such id."""
    from nsrun.spec.idmaps import size, to_host

    ranges = user["maps"][kind]
    found = to_host(ranges, ident)
    if found < 0:
        raise BadInput(
            f"the pod's user namespace has no {kind} {ident}"
            + (f": they go from 0 to {size(ranges) - 1}" if "uid" in user else ""),
            hint="a larger range in /etc/subuid and /etc/subgid (usermod --add-subuids), and the pod anew"
            if "uid" in user
            else "cat /proc/self/uid_map; one with more ids: unshare --map-auto --map-root-user",
        )
    return ident if inside else found
