# SPDX-License-Identifier: Apache-2.0
"""What stop, kill, rm and prune are about to do, as plans that can be read: nothing is done here.

Those commands have no plan that they run: what they do depends on what they meet.  So each step here stands for a function,
which `where` names, and lists the system calls that it makes, with their cases; tests/test_explain.py compares them with
strace.  A function of stop.py, remove.py or sweep.py that does something else has to say so here.
"""

from __future__ import annotations

import os

from nsrun.errors import BadInput
from nsrun.lifecycle.query import pod_status
from nsrun.lifecycle.stop import SIGKILL, SIGTERM, patience
from nsrun.plan import HOST, INIT, Part, Plan, Step, sh_quote
from nsrun.plan.network import netlink
from nsrun.schema import is_there
from nsrun.state import ALIVE, BEGUN, PAUSED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsrun.state import Note, State


def signal_name(number: int) -> str:
    import signal

    if not number:
        return "0"

    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)  # a real-time signal


class Deed(Step):
    """What one function does.  `native` names it, as it does the C of other steps."""

    phase = HOST


class StopMember(Deed):
    man = "pidfd_send_signal(2), cgroups(7)"
    native = "lifecycle/stop.py stop_member"
    name: str
    pid: int  # 0: it has no process now
    cgroup: str
    signal: int
    seconds: float
    thread: bool = False  # several are stopped at once
    paused: bool = False

    @property
    def why(self) -> str:  # type: ignore[override]
        first = "The signal goes to a pidfd, so that it never hits a process that got the same number."
        if self.signal == SIGKILL:
            return f"{first} The whole cgroup is killed, and nobody else is touched."
        return f"{first} What has not ended in time is killed with its whole cgroup, and nobody else is touched."

    def made(self) -> list[str | Part]:
        kill = [f'write("{self.cgroup}/cgroup.kill", "1")'] if self.cgroup else []
        kill += ["pidfd_send_signal(pidfd, SIGKILL)", "poll(pidfd, 10 s)"]
        mark = f'open("members/{self.name}/stop", O_CREAT)   /* it is not to be restarted */'
        monitor: list[str | Part] = [
            Part(["monitor = pidfd_open(MONITOR, 0)", "poll(monitor, 2 s)"], when="its monitor has not ended yet"),
            Part(
                ["monitor = pidfd_open(MONITOR, 0)", "pidfd_send_signal(monitor, SIGNAL)", "poll(monitor, 5 s)"],
                when="even then it has not",
                each="SIGNAL of SIGCONT SIGTERM SIGKILL",
            ),
        ]
        if not self.pid:
            wait = ["monitor = pidfd_open(MONITOR, 0)", "pidfd_send_signal(monitor, SIGTERM)"]
            return self._by([mark, Part(wait, when="its monitor is about to restart it"), *monitor])
        found: list[str | Part] = [
            f"pidfd = pidfd_open({self.pid}, 0)",
            "pidfd_send_signal(pidfd, 0)   /* may we? */",
            mark,
        ]
        if self.signal == SIGKILL:
            found += kill
        else:
            thaw = [f'write("{self.cgroup}/cgroup.freeze", "0")'] if self.paused else []
            found += [f"pidfd_send_signal(pidfd, {signal_name(self.signal)})", *thaw]
            found.append(f"poll(pidfd, {self.seconds:g} s)")
            found.append(Part(kill, when="it has not ended"))
        return self._by([*found, *monitor])

    def _by(self, calls: Sequence[str | Part]) -> list[str | Part]:
        return [Part(calls, by="a thread")] if self.thread else list(calls)

    def brief(self) -> str:
        return f"{'kill' if self.signal == SIGKILL else 'stop'} the member {self.name}"

    def shell(self) -> str:
        if not self.pid:
            return ""
        kill = f"echo 1 >{sh_quote(self.cgroup)}/cgroup.kill" if self.cgroup else f"kill -KILL {self.pid}"
        if self.signal == SIGKILL:
            return kill
        wait = f"timeout {self.seconds:g} tail --pid={self.pid} -f /dev/null"
        return f"kill -{signal_name(self.signal).removeprefix('SIG')} {self.pid}; {wait} || {kill}"

    approx = "a number instead of a pidfd"

    def check(self) -> str:
        return "nsrun ls -a"


class FreezeMember(Deed):
    man = "cgroups(7)"
    why = "The kernel stops every process of the member where it is, whatever signals it ignores, and lets it go on later."
    name: str
    cgroup: str
    frozen: bool

    @property
    def native(self) -> str:  # type: ignore[override]
        return f"lifecycle/pause.py {'pause' if self.frozen else 'unpause'}_member"

    def made(self) -> list[str | Part]:
        write = f'write("{self.cgroup}/cgroup.freeze", "{int(self.frozen)}")'
        wait = Part([f'poll("{self.cgroup}/cgroup.events", POLLPRI)'], when=f"frozen is not {int(self.frozen)} yet")
        mark = [f'open("members/{self.name}/paused", O_CREAT)'] if self.frozen else []
        return [*mark, write, wait]

    def brief(self) -> str:
        return f"{'pause' if self.frozen else 'unpause'} the member {self.name}"

    def shell(self) -> str:
        return f"echo {int(self.frozen)} >{sh_quote(self.cgroup)}/cgroup.freeze"

    def check(self) -> str:
        return f"cat {self.cgroup}/cgroup.events"


class StartMember(Deed):
    man = "fcntl(2) F_SETLK"
    native = "lifecycle/again.py start_member"
    why = "Its name, its log and what it wrote are there: a lock keeps them from being removed, and a plan like that of join does the rest."
    name: str
    upper: str  # what it wrote; "": nothing
    join: Plan  # as `join` would make it

    def made(self) -> list[str | Part]:
        found: list[str | Part] = [
            'flock("names.lock", LOCK_EX)',
            f'flock("members/{self.name}", LOCK_EX)   /* not renamed meanwhile */',
            f'fcntl("members/{self.name}/held", F_SETLK, F_RDLCK)',
        ]
        found += [f'fcntl("{self.upper}/held", F_SETLK, F_RDLCK)'] if self.upper else []
        exits = f'rename("members/{self.name}/exit", "members/{self.name}/exit.tmp")'
        found.append(Part([exits], when="its end was seen"))
        found.append("# the same as nsrun explain join shows, with these calls of nsrun:")
        for step in self.join:
            found += step.made() if step.phase != INIT else []
        return found

    def brief(self) -> str:
        return f"start the member {self.name} once more"

    def check(self) -> str:
        return f"nsrun inspect {self.name}"


class RenameMember(Deed):
    man = "rename(2)"
    native = "lifecycle/rename.py rename_member"
    why = "One rename(2) takes the name. Until then the note says which name it is about to have, so that it is right in between."
    name: str
    new: str
    data: tuple[str, ...]  # the records beside what it wrote

    def made(self) -> list[str | Part]:
        old, new = f"members/{self.name}", f"members/{self.new}"
        found: list[str | Part] = [
            'flock("names.lock", LOCK_EX)',
            f'flock("{old}", LOCK_EX)   /* not started meanwhile */',
        ]
        found.append(f'rename("{old}/note.tmp", "{old}/note")')
        found += [f'rename("{old}", "{new}")', f'rename("{new}/note.tmp", "{new}/note")']
        return [*found, *(f'rename("{path}.tmp", "{path}")' for path in self.data)]

    def brief(self) -> str:
        return f"give the member {self.name} the name {self.new}"

    def check(self) -> str:
        return "nsrun ls -a"


class CopyFiles(Deed):
    man = "openat2(2) RESOLVE_IN_ROOT"
    native = "lifecycle/copy.py copy"
    why = "The kernel resolves the paths in the member's root, so no link leads out of it; from there on each call takes one name."
    source: tuple[str, str]  # the member ("": this host), and the path
    target: tuple[str, str]
    pids: tuple[int, ...]  # of the members; 0: it has ended

    def made(self) -> list[str | Part]:
        found: list[str | Part] = []
        for pid in self.pids:
            found.append(f'root = open("/proc/{pid}/root", O_PATH|O_DIRECTORY)' if pid else "root = fsmount(overlay)")
        calls = ["there = openat(directory, NAME, O_PATH|O_NOFOLLOW)"]
        if self.target[1] == "-" and not self.target[0]:
            calls.append("write(1, a tar)")
        else:
            calls.append('openat(target, ".nsrun-RANDOM", O_CREAT|O_EXCL|O_NOFOLLOW, 0600)')
            calls += ["fchown(file, UID, GID)", 'renameat(target, ".nsrun-RANDOM", target, NAME)']
        found += [f'openat2(root, "{path}", RESOLVE_IN_ROOT)' for name, path in (self.source, self.target) if name]
        return [*found, Part(calls, each="NAME that is copied")]

    def brief(self) -> str:
        return f"copy {':'.join(filter(None, self.source))} to {':'.join(filter(None, self.target))}"

    def shell(self) -> str:
        (source, target), pids = (self.source, self.target), list(self.pids)
        words = [f"/proc/{pids.pop(0)}/root{'/' if path[:1] != '/' else ''}{path}" if name else path for name, path in (source, target)]  # fmt: skip
        return "" if 0 in self.pids or "-" in words else f"cp -a {sh_quote(words[0])} {sh_quote(words[1])}"

    approx = "links of the member would lead out of it"

    def check(self) -> str:
        return "ls -l"


class RemoveVolume(Deed):
    man = "rename(2), unlinkat(2)"
    native = "lifecycle/volumes.py remove"
    why = "One rename(2) frees the name; a member that is made meanwhile is seen, or gets a new volume."
    path: str

    def made(self) -> list[str | Part]:
        return [
            'flock("volumes.lock", LOCK_EX)',
            f'rename("{self.path}", "volumes/.gone-ID")',
            "# rm -r volumes/.gone-ID",
        ]

    def brief(self) -> str:
        return f"remove the volume {self.path}"

    def shell(self) -> str:
        return f"rm -r {sh_quote(self.path)}"

    def check(self) -> str:
        return "nsrun volume ls"


class SendSignal(Deed):
    man = "pidfd_send_signal(2)"
    what: str
    pid: int
    signal: int
    native: str

    @property
    def why(self) -> str:  # type: ignore[override]
        if not self.signal:
            return "Signal 0 asks whether we may end it, before anything is done."
        return "The signal goes to a pidfd, so that it never hits a process that got the same number."

    def made(self) -> list[str | Part]:
        return [f"pidfd = pidfd_open({self.pid}, 0)", f"pidfd_send_signal(pidfd, {signal_name(self.signal)})"]

    def shell(self) -> str:
        return f"kill -{signal_name(self.signal).removeprefix('SIG')} {self.pid}"

    def brief(self) -> str:
        return f"send signal {signal_name(self.signal)} to {self.what}"

    approx = "a number instead of a pidfd"

    def check(self) -> str:
        return f"ps -p {self.pid}"


def _removed(kind: str, name: str) -> list[str | Part]:
    """What nsrun.state.State.remove_directory() does with a note: its name is free at once."""
    return [
        f'fcntl("{kind}/{name}/held", F_SETLK, F_WRLCK)   /* nobody holds it, and nobody can */',
        f'rename("{kind}/{name}", "tmp/GONE")',
        "# rm -r tmp/GONE",
    ]


class RemoveMember(Deed):
    many = "{} members are removed"
    man = "rename(2), fcntl(2) F_SETLK"
    native = "state/sweep.py _remove_member"
    why = "The record, the logs and what the member wrote go, but only when nobody holds the lock that proves its life."
    name: str
    cgroup: str
    upper: str  # what it wrote; "": nothing

    def made(self) -> list[str | Part]:
        found: list[str | Part] = ['flock("names.lock", LOCK_EX)']
        if self.cgroup:
            found.append(Part([f'unlinkat("{self.cgroup}", AT_REMOVEDIR)'], when="the cgroup is still there"))
        if self.upper:
            found += [f'fcntl("{self.upper}/held", F_SETLK, F_WRLCK)', f"# rm -r {self.upper}"]
        return [*found, *_removed("members", self.name)]

    def brief(self) -> str:
        return f"remove the member {self.name}"

    def thing(self) -> str:
        return self.name

    def check(self) -> str:
        return "nsrun ls -a"


class EndPod(Deed):
    man = "pidfd_send_signal(2), pid_namespaces(7)"
    native = "lifecycle/stop.py end_pod"
    why = "When pause ends, which is PID 1 of the pod, the kernel kills every process in its PID namespace."
    name: str
    pid: int
    signal: int
    cgroup: str
    monitors: tuple[str, ...]  # the members whose monitors end with it
    holder: bool  # root ends a pod that it made for its owner

    def made(self) -> list[str | Part]:
        name = signal_name(self.signal)
        found: list[str | Part] = [
            f"pidfd = pidfd_open({self.pid}, 0)",
            "pidfd_send_signal(pidfd, 0)   /* may we? */",
            Part(
                [f'rename("pods/{self.name}/removing.tmp", "pods/{self.name}/removing")'],
                when="we may write its record",
            ),
            f"pidfd_send_signal(pidfd, {name})",
            "pidfd_send_signal(pidfd, SIGCONT)   /* one that is stopped would not hear the other */",
            "poll(pidfd, 10 s)",
        ]
        if self.signal != SIGKILL and not self.holder:
            found.append(Part(["pidfd_send_signal(pidfd, SIGKILL)", "poll(pidfd, 10 s)"], when="it has not ended"))
        if self.holder:
            hold = ["hold = pidfd_open(nsrun-hold, 0)", "pidfd_send_signal(hold, SIGKILL)", "poll(hold, 10 s)"]
            found.append(Part(hold, when="nsrun-hold has not ended yet"))
            found.append(Part([f'write("{self.cgroup}/cgroup.kill", "1")'], when="the cgroup is still there"))
        for member in self.monitors:
            calls = ["monitor = pidfd_open(MONITOR, 0)", "poll(monitor, 2 s)"]
            found.append(Part(calls, when=f"the monitor of {member} has not ended yet"))
        return found

    def brief(self) -> str:
        return f"end the pod {self.name} by {signal_name(self.signal)} to pause"

    def shell(self) -> str:
        return f"kill -{signal_name(self.signal).removeprefix('SIG')} {self.pid}; tail --pid={self.pid} -f /dev/null"

    approx = "a number instead of a pidfd"

    def check(self) -> str:
        return "nsrun pod ls -a"


def _bridge(name: str) -> list[str]:
    """Return the calls that remove a bridge."""
    from nsrun.host.bridges import common_table

    table = common_table(name)
    return [
        'flock("net.lock", LOCK_EX)',
        netlink(f"nft delete table ip {table}"),
        netlink(f"nft delete table ip6 {table}"),
        netlink(f"ip link del {name}"),
    ]


class RemovePod(Deed):
    many = "{} pods are removed"
    man = "rename(2), fcntl(2) F_SETLK, cgroups(7)"
    native = "state/sweep.py _remove_pod"
    why = (
        "The kernel has let go of ports, table and namespaces; what has a name is left, and goes here with the members."
    )
    name: str
    cgroup: str
    veth: str  # of root's; what becomes of it, LeaveLinks says
    members: tuple[tuple[str, str], ...]  # name, and what it wrote
    network: str = ""
    bridge: str = "nsrun0"

    def made(self) -> list[str | Part]:
        found: list[str | Part] = ['flock("names.lock", LOCK_EX)']
        if self.network:
            write = ["holder = pidfd_open(HOLDER, 0)", "FD = pidfd_getfd(holder, …)"]
            write += ["pwrite64(FD, names, 0)", "ftruncate(FD)"]
            found += ['flock("hosts.lock", LOCK_EX)', Part(write, each=f"living pod of network {self.network}")]
        if self.cgroup:
            found.append(Part(["unlinkat(CGROUP, AT_REMOVEDIR)"], each=f"CGROUP in {self.cgroup}, and that itself"))
        for member, upper in self.members:
            found += [f'fcntl("{upper}/held", F_SETLK, F_WRLCK)', f"# rm -r {upper}"] if upper else []
            found += _removed("members", member)
        return found + _removed("pods", self.name)

    def brief(self) -> str:
        return f"remove the pod {self.name}"

    def thing(self) -> str:
        return self.name

    def check(self) -> str:
        return "nsrun pod ls -a"


class Sweep(Deed):
    """What follows every command."""

    native = "state/sweep.py all"
    man = "fcntl(2) F_SETLK"
    why = "What a crash or a kill -9 left behind is found by locks that nobody holds, and is removed."

    def made(self) -> list[str | Part]:
        calls = [
            'flock("names.lock", LOCK_EX)',
            "fcntl(held, F_SETLK, F_WRLCK)",
            'rename(IT, "tmp/GONE")',
            "# rm -r tmp/GONE",
        ]
        return [
            Part(calls, each="pod, member, data and claim that was never finished, and that nobody holds"),
            Part(
                ["unlinkat(CGROUP, AT_REMOVEDIR)", netlink("ip link del …")], each="CGROUP and link that is left of it"
            ),
            Part(
                ['flock("hosts.lock", LOCK_EX)', "pwrite64(FD, names, 0)", "ftruncate(FD)"],
                each="FD of the pods that shared a network with what died",
            ),
            Part(_bridge("BRIDGE"), when="no pod is left on a bridge", each="try, for half a second"),
        ]

    def brief(self) -> str:
        return "sweep"

    def check(self) -> str:
        return "nsrun doctor"


class LeaveLinks(Deed):
    man = "fork(2), setsid(2), veth(4)"
    native = "cli/later.py leave"
    why = (
        "The kernel waits for grace periods before it lets go of a link. So a process that nobody waits for removes what is left,"
        " and sweeps; a pod that is made meanwhile takes another address, or waits for its own."
    )
    veths: tuple[str, ...]
    bridges: tuple[str, ...]

    def made(self) -> list[str | Part]:
        child: list[str | Part] = ["setsid()", 'chdir("/")']
        for veth in self.veths:
            child.append(Part([netlink(f"ip link del {veth}")], when="the kernel has not removed it yet"))
        child += [Part(_bridge(bridge), when=f"no pod is left on {bridge}") for bridge in self.bridges]
        return ["fork()", Part([*child, *Sweep().made()], by="a copy of it")]

    def brief(self) -> str:
        return f"leave {', '.join(self.veths)}, and the sweep, to a process in the background"

    def check(self) -> str:
        return "ip -br link"


class EndOrphans(Deed):
    native = "state/orphans.py end"
    man = "pidfd_send_signal(2), cgroups(7)"
    why = (
        "Of a pod whose record was lost processes and cgroups may be left; what is surely nsrun's, and nobody's, ends."
    )

    def made(self) -> list[str | Part]:
        calls = [
            "pidfd = pidfd_open(ORPHAN, 0)",
            "pidfd_send_signal(pidfd, SIGKILL)",
            "rename(IT, aside)",
            "unlinkat(CGROUP, AT_REMOVEDIR)",
        ]
        return [Part(calls, each="ORPHAN, broken record and CGROUP of no pod")]

    def brief(self) -> str:
        return "end what no record speaks of"

    def check(self) -> str:
        return "nsrun doctor"


class RemoveData(Deed):
    native = "state/__init__.py remove_directory"
    man = "unlinkat(2)"
    why = "No record speaks of these data, and nothing that could use them runs: pod prune --all removes them."
    path: str

    def made(self) -> list[str | Part]:
        return [Part(["unlinkat(FILE, 0)", "unlinkat(DIRECTORY, AT_REMOVEDIR)"], each="FILE and DIRECTORY below it")]

    def brief(self) -> str:
        return f"remove {self.path}"

    def check(self) -> str:
        return f"ls {self.path}"


# ---- the plans ---------------------------------------------------------------------------------------------------


def plan_stop(state: State, names: list[str], seconds: float | None) -> Plan:
    """`nsrun stop`."""
    notes = [state.member(name) for name in names]
    steps = [_stop(state, note, 0, seconds, thread=True) for note in notes]
    return Plan(f"stop {' '.join(names)}", [*steps, Sweep()])


def plan_kill(state: State, names: list[str], signal: int) -> Plan:
    """`nsrun kill`."""
    steps: list[Step] = []
    for note in map(state.member, names):
        if signal == SIGKILL and state.member_status(note)[0] in (*BEGUN, "restarting"):
            steps.append(_stop(state, note, SIGKILL, 0))
        else:
            pid = _pid_of(state, note)
            if not pid:
                raise BadInput(f"member {note['name']!r} is not running", hint="nsrun ls -a")
            steps.append(SendSignal(f"member {note['name']}", pid, signal, "lifecycle/stop.py signal_member"))
    return Plan(f"kill {' '.join(names)}", [*steps, Sweep()])


def plan_cp(state: State, source: str, target: str) -> Plan:
    """`nsrun cp`."""
    from nsrun.lifecycle.copy import parse_end, parse_ends

    parse_ends(source, target)
    ends = parse_end(source), parse_end(target)
    pids = tuple(_pid_of(state, state.member(name)) for name, _ in ends if name)
    return Plan(f"cp {source} {target}", [CopyFiles(*ends, pids)])


def plan_volume_rm(state: State, names: list[str] | None) -> Plan:
    """`nsrun volume rm`; None: `nsrun volume prune --all`."""
    from nsrun.lifecycle import volumes

    volumes.users(state)  # a note that can't be read may be about any
    found = volumes.describe(state, volumes.unused(state) if names is None else names)
    if used := [volume for volume in found if volume["members"]]:
        raise BadInput(f"volume {used[0]['name']!r} is used by {', '.join(used[0]['members'])}", hint="nsrun volume ls")
    title = "volume prune" if names is None else f"volume rm {' '.join(names)}"
    return Plan(title, [*(RemoveVolume(volume["path"]) for volume in found), Sweep()])


def plan_rename(state: State, name: str, new: str) -> Plan:
    """`nsrun rename`."""
    from nsrun.lifecycle.rename import check

    note = state.member(name)
    check(state, note, new)
    paths = (f"{state.upper(note['id'])}/{file}" for file in ("committed", "about"))
    return Plan(f"rename {name} {new}", [RenameMember(note["name"], new, tuple(filter(is_there, paths))), Sweep()])


def plan_start(state: State, names: list[str], stop: bool = False, seconds: float | None = None) -> Plan:
    """`nsrun start`; with `stop`, `nsrun restart`, which stops what runs."""
    steps: list[Step] = []
    for note in map(state.member, names):
        steps += _again(state, note, stop, seconds, False)
    return Plan(f"{'restart' if stop else 'start'} {' '.join(names)}", [*steps, Sweep()])


def plan_pod_restart(state: State, names: list[str], seconds: float | None) -> Plan:
    """`nsrun pod restart`."""
    from nsrun.lifecycle.again import members_to_restart

    steps: list[Step] = []
    for notes in [members_to_restart(state, name) for name in names]:
        several = [_again(state, note, True, seconds, True) for note in notes]
        steps += [step for some in several for step in some[:-1]] + [some[-1] for some in several]
    return Plan(f"pod restart {' '.join(names)}", [*steps, Sweep()])


def _again(state: State, note: Note, may_stop: bool, seconds: float | None, thread: bool) -> list[Step]:
    """The stop of a member, if it runs, and its start."""
    from nsrun.lifecycle.again import check, plan_again

    check(state, note, may_stop)
    stop = [_stop(state, note, 0, seconds, thread)] if state.member_status(note)[0] in ALIVE else []
    return [*stop, StartMember(note["name"], _upper(state, note), plan_again(state, note))]


def plan_pause(state: State, names: list[str], frozen: bool) -> Plan:
    """`nsrun pause` and `nsrun unpause`."""
    from nsrun.lifecycle.pause import check

    notes = [state.member(name) for name in names]
    for note in notes:
        check(state, note, frozen)
    steps: list[Step] = [FreezeMember(note["name"], note["cgroup"], frozen) for note in notes]
    return Plan(f"{'pause' if frozen else 'unpause'} {' '.join(names)}", [*steps, Sweep()])


def plan_rm(state: State, names: list[str], force: bool, stopped: bool = False) -> Plan:
    """`nsrun rm`; `stopped`: of members that a command before has stopped."""
    steps: list[Step] = []
    for note in [state.member(name) for name in names if not force or state.has_member(name)]:
        status, name = state.member_status(note)[0], note["name"]
        if status in ALIVE and not stopped:
            if not force:
                raise BadInput(f"member {name!r} is {status}", hint=f"nsrun stop {name}, or: nsrun rm -f {name}")
            steps.append(_stop(state, note, SIGKILL, 0))
        steps.append(_remove(state, note))
    return Plan(f"rm {' '.join(names)}", [*steps, Sweep()])


def plan_end(state: State, name: str) -> Plan:
    """`nsrun stop`, and then `nsrun rm`, of a member that `up` does not want, or not as it is."""
    note = state.member(name)
    stop = [_stop(state, note, 0, None)] if state.member_status(note)[0] in ALIVE else []
    return Plan(f"stop and rm {name}", [*stop, _remove(state, note), Sweep()])


def plan_pod_stop(state: State, names: list[str], seconds: float | None) -> Plan:
    """`nsrun pod stop`."""
    steps: list[Step] = []
    for note in map(state.pod, names):
        if pid := _pause_of(state, note):
            steps.append(SendSignal(f"pod {note['name']}", pid, 0, "lifecycle/stop.py _may_end"))
        steps += [_stop(state, member, 0, seconds, thread=True) for member in state.members_of(note)]
        steps += _end(state, note, SIGTERM)
    return Plan(f"pod stop {' '.join(names)}", _with_rest(steps))


def plan_pod_kill(state: State, names: list[str], signal: int) -> Plan:
    """`nsrun pod kill`."""
    steps: list[Step] = []
    for note in map(state.pod, names):
        if signal in (SIGKILL, SIGTERM, 2):
            steps += _end(state, note, signal)
        else:
            pid = _pause_of(state, note)
            steps.append(SendSignal(f"pod {note['name']}", pid, signal, "lifecycle/stop.py kill_pod"))
    return Plan(f"pod kill {' '.join(names)}", _with_rest(steps))


def plan_pod_rm(state: State, names: list[str], force: bool) -> Plan:
    """`nsrun pod rm`."""
    steps: list[Step] = []
    for name in names:
        note = state.read("pods", name)
        if note is None and force:
            continue  # with --force, one that does not exist is no error
        note = note or state.pod(name)
        if pod_status(state, note) in ("running", "created", "removing") and not force:
            raise BadInput(f"pod {name!r} is running", hint=f"nsrun pod stop {name}, or: nsrun pod rm -f {name}")
        steps += _end(state, note, SIGKILL) if state.pod_life(note).kept else [_remove_pod(state, note)]
    return Plan(f"pod rm {' '.join(names)}", _with_rest(steps))


def plan_prune(state: State, everything: bool = False) -> Plan:
    """`nsrun pod prune`; with `everything`, also what `--all` removes."""
    from nsrun.state import orphans

    dead = [note for note in state.all("pods") if not state.pod_life(note).alive]
    gone = {note["id"] for note in dead}
    members = [
        note
        for note in state.all("members")
        if note["pod_id"] not in gone
        and not state.life("members", note["name"]).alive
        and state.member_status(note)[0] in ("stopped", "lost")
        and state.surely_ended(note)
    ]
    steps: list[Step] = [_remove_pod(state, note) for note in dead]
    steps += [_remove(state, note) for note in members]
    steps.append(EndOrphans())
    if everything:
        steps += [RemoveData(data.path) for data in orphans.data(state) if data.free]
    return Plan("pod prune", _with_rest(steps))


def _pid_of(state: State, note: Note) -> int:
    """The pid of a member's first process, 0 when it has none."""
    fd, pid = state.process(note)
    if fd >= 0:
        os.close(fd)
    return pid if fd >= 0 else 0


def _pause_of(state: State, note: Note) -> int:
    fd, pid = state.pause(note)
    if fd >= 0:
        os.close(fd)
    return pid if fd >= 0 else 0


def _stop(state: State, note: Note, signal: int, seconds: float | None, thread: bool = False) -> Step:
    pid, paused = _pid_of(state, note), state.marked("members", note["name"], PAUSED)
    return StopMember(
        note["name"],
        pid,
        note.get("cgroup") or "",
        signal or note["stop_signal"],
        patience(note, seconds),
        thread,
        paused,
    )


def _upper(state: State, note: Note) -> str:
    path = state.upper(note["id"])
    return path if is_there(path) else ""


def _remove(state: State, note: Note) -> Step:
    return RemoveMember(note["name"], note.get("cgroup") or "", _upper(state, note))


def _end(state: State, note: Note, signal: int) -> list[Step]:
    pid, holder = _pause_of(state, note), bool(note.get("user")) and not state.uid
    sharing = tuple(member["name"] for member in state.members_of(note) if member["shares_pid"])
    end = EndPod(note["name"], pid, signal, note["cgroup"], sharing, holder)
    return [*([end] if pid else []), _remove_pod(state, note)]


def _remove_pod(state: State, note: Note) -> Step:
    members = tuple((member["name"], _upper(state, member)) for member in state.members_of(note))
    network = note["network"]
    veth = network.get("veth", "") if not state.uid else ""
    where = (network.get("name", ""), network.get("bridge", "")) if veth else ()
    return RemovePod(note["name"], note["cgroup"], veth, members, *where)


def _with_rest(steps: list[Step]) -> list[Step]:
    """Return the steps, and what follows when they are done: what is left of the pods that they remove, and the sweep."""
    pods = [step for step in steps if isinstance(step, RemovePod) and step.veth]
    veths, bridges = tuple(pod.veth for pod in pods), tuple({pod.bridge: None for pod in pods})
    return [*steps, LeaveLinks(veths, bridges) if pods else Sweep()]
