# SPDX-License-Identifier: Apache-2.0
"""The plans of `join` and `exec`: the only place that knows their order."""

from __future__ import annotations

from nsrun import kernel
from nsrun.errors import BadInput
from nsrun.kernel import MOUNT_ATTRS, NAMESPACES
from nsrun.linux import DEVICE_NODES, capability_mask
from nsrun.plan import Plan, Step
from nsrun.plan.claims import ClaimName, MakeCgroup, OpenCgroup, WriteNote
from nsrun.plan.mounts import (
    AttachRoot,
    EnterMountNamespace,
    MakeDev,
    MakeDirectory,
    MakeSymlink,
    Mask,
    Mount,
    MountFromPod,
    MountTree,
    OpenDevice,
    OpenVolume,
    OverlayRoot,
    Pivot,
    PlainRoot,
    ReadonlyPath,
    ReadonlyRoot,
    WriteProc,
)
from nsrun.plan.process import (
    ChangeDirectory,
    Execute,
    HandOver,
    InheritStdio,
    Launch,
    ListenForAttach,
    LoadFilter,
    LoadProgram,
    NewKeyring,
    NewSession,
    NoNewPrivileges,
    OpenProcess,
    OpenStdio,
    OpenTerminal,
    Release,
    SetCapabilities,
    SetFilter,
    SetHostname,
    SetLimit,
    SetProfile,
    SetUser,
    Undumpable,
    Unshare,
)
from nsrun.spec.options import subpath_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from nsrun.types import Health, MemberNote, MemberSpec, Nested, PodNote, Process

DEVICES = tuple(name for name, _, _ in DEVICE_NODES)
_OCI = {"network": "net", "ipc": "ipc", "uts": "uts", "pid": "pid", "mount": "mnt"}
_LINKS = (
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
)
_OOM = "The OOM killer adds this to the score by which it chooses a process to kill (--oom-score-adj)."
_ATTR_WORDS = {"ro": "RDONLY", "nosuid": "NOSUID", "nodev": "NODEV", "noexec": "NOEXEC", "noatime": "NOATIME"}
_IGNORED = {"nocopy", "rw", "rbind", "bind", "rprivate", "private", "suid", "dev", "exec", "strictatime", "relatime"}


class Request:
    """How a member, or one more process in one, is to be started: what its spec does not say.

    detach: a monitor keeps it, and the command ends.  interactive: its standard input stays open.
    fds: a caller of the library is its parent, with these as its 0, 1 and 2; then it has no monitor.
    again: it is a restart, so its name, and what it wrote, are there.  background: and it had been detached.
    layers: of an image, directories from the top down; else the root is the spec's.
    staging: the directory in which new volumes are made.
    profile: the file of the seccomp profile, "": nsrun's own.
    door: the socket that leads into the cgroup of our own pod; "": we are root, or the pod has no user namespace.
    """

    __slots__ = ("again", "background", "detach", "door", "fds", "interactive", "layers", "profile", "staging")

    def __init__(
        self,
        *,
        detach: bool = False,
        interactive: bool = False,
        fds: tuple[int, int, int] | None = None,
        again: bool = False,
        background: bool = False,
        layers: Sequence[str] = (),
        staging: str = "",
        profile: str = "",
        door: str = "",
    ) -> None:
        self.detach, self.interactive, self.fds = detach, interactive, fds
        self.again, self.background = again, background
        self.layers, self.staging, self.profile, self.door = tuple(layers), staging, profile, door

    @property
    def monitored(self) -> bool:
        return self.fds is None


def _attrs(options: list[str]) -> tuple[int, str]:
    """Mount options → (MOUNT_ATTR bits, what the file system itself gets)."""
    bits = sum(MOUNT_ATTRS[f"MOUNT_ATTR_{_ATTR_WORDS[o]}"] for o in set(options) if o in _ATTR_WORDS)
    return bits, ",".join(o for o in options if o not in _ATTR_WORDS and o not in _IGNORED)


def _filter(spec: MemberSpec, request: Request) -> list[Step]:
    name = spec["annotations"].get("nsrun.seccomp")
    caps = capability_mask([c[4:].lower() for c in spec["process"]["capabilities"]["bounding"]])
    return [LoadFilter(name, request.profile, caps)] if name else []


def _foreign(pod: PodNote) -> int:
    """The namespaces of a pod that its user namespace may not own: the host's network, where we are already."""
    network = pod.get("network")  # of a pod that is gone nothing is known
    return kernel.CLONE_NEWNET if network and network["mode"] == "host" else 0


def _ends(process: Process, filtered: bool, nested: Nested | None) -> list[Step]:
    """What join and exec have in common: from the session to the program.  `nested`: userns.around, of who made the pod."""
    user, caps = process["user"], capability_mask([c[4:].lower() for c in process["capabilities"]["bounding"]])
    uid, gid, groups = user["uid"], user["gid"], tuple(user["additionalGids"])
    steps: list[Step] = [NewSession(process["terminal"]), NewKeyring()]
    steps += [SetLimit(r["type"][7:].lower(), r["soft"], r["hard"]) for r in process["rlimits"]]
    if "oomScoreAdj" in process:
        steps.append(WriteProc("/proc/self/oom_score_adj", str(process["oomScoreAdj"]), _OOM))
    if process.get("apparmorProfile"):
        steps.append(SetProfile(process["apparmorProfile"]))
    last = process["noNewPrivileges"]  # else a filter needs the power that SetUser takes away
    if filtered and not last:
        steps.append(SetFilter())
    keep = bool(nested and not nested["setgroups"])
    if keep and not set(groups) <= {gid}:
        raise BadInput(
            f"the groups {', '.join(str(g) for g in groups if g != gid)} can't be had: this user namespace denies setgroups(2)",
            hint="-u UID:GID, without other groups; or maps that newuidmap writes: unshare --map-auto --map-root-user",
        )
    steps += [SetUser(uid, gid, groups, caps, keep), SetCapabilities(caps if uid == 0 else 0)]
    if last:
        steps += [NoNewPrivileges(), *([SetFilter()] if filtered else [])]
    steps.append(ChangeDirectory(process["cwd"]))
    argv, env = tuple(process["args"]), tuple(process["env"])
    steps.append(Execute(argv, env, (uid, gid, groups), caps, process["noNewPrivileges"], process["cwd"]))
    return steps


def _owner_of_streams(process: Process, request: Request, pod: PodNote) -> int:
    """Return the id of a process's user on the side of the pipes that it gets.  Raise BadInput for an id that the pod does not have."""
    uid, user = process["user"]["uid"], pod.get("user") or pod.get("nested")
    if user:
        from nsrun.plan.owner import mapped

        uid = mapped(user, "uid", uid, bool(request.door or not pod.get("user")))
        for gid in [process["user"]["gid"], *process["user"]["additionalGids"]]:
            mapped(user, "gid", gid, True)
    return uid


def _stdio(process: Process, request: Request, pod: PodNote, member: str = "", tty: bool = True) -> Step:
    """`tty`: has the pod a group of terminals?"""
    uid = _owner_of_streams(process, request, pod)
    if process["terminal"]:
        return OpenTerminal(uid, member, tty)
    if request.fds:
        return InheritStdio(request.fds)
    return OpenStdio(request.interactive, uid)


def join_plan(spec: MemberSpec, pod: PodNote, note: MemberNote, request: Request) -> Plan:
    """Return the plan that makes a member of `pod` of its spec, and leaves `note`."""
    process, linux, names = spec["process"], spec["linux"], spec["annotations"]
    name, ident, monitored = names["nsrun.name"], names["nsrun.id"], request.monitored
    door, detach = request.door, request.detach
    root = spec["root"]["path"]
    host_root, overlay = root == "/", root != "/" and names["nsrun.writable"] != "true"
    user, nested = pod.get("user"), pod.get("nested")
    if user:
        from nsrun.plan.owner import EnterUserNamespace, OpenUserNamespace, ReachDoor, mapped

    shared = clones = 0
    for entry in linux["namespaces"]:
        flag = NAMESPACES[_OCI[entry["type"]]]
        if entry.get("path"):
            shared |= flag
        elif entry["type"] != "mount":
            clones |= flag
    if names["nsrun.pid"] == "nested":
        shared |= kernel.CLONE_NEWPID  # a child namespace of the pod's: join it, then make one
    if user:
        shared |= kernel.CLONE_NEWUSER
    if user or nested:
        shared &= ~_foreign(pod)

    # 1 Open
    steps: list[Step] = [] if request.again else [ClaimName("members", name, note)]
    steps.append(OpenProcess(f"the pause of {pod['name']}", pod, False, "pod:pidfd"))
    if door:
        steps += [EnterUserNamespace("pod:pidfd"), ReachDoor(door)]
    elif user:
        steps.append(OpenUserNamespace("pod:pidfd"))
    if nested and not door:
        from nsrun.plan.owner import OwnMounts

        steps.append(OwnMounts())
    steps.append(LoadProgram("nsrun-init", "init:fd"))
    if monitored:
        steps.append(LoadProgram("nsrun-monitor", "monitor:fd"))
    if overlay:
        idmap = "pod:user" if user and not door else ""  # the owner is id 0 of the pod herself
        steps.append(OverlayRoot(request.layers or (root,), ident, request.again, idmap))
    else:
        steps.append(PlainRoot(root, host_root))
    volumes: list[Step] = []
    inner: list[Step] = []
    for number, mount in enumerate(spec["mounts"]):
        kind, target = mount["type"], mount["destination"]
        attrs, data = _attrs(mount["options"])
        if kind in ("bind", "volume"):
            handle, readonly = f"volume{number}:fd", "ro" in mount["options"]
            below = subpath_of(mount)
            seed = "" if kind == "bind" or host_root or below or "nocopy" in mount["options"] else target
            staging = f"{request.staging}/seed{number}" if seed else ""
            ids = (mapped(user, "uid", 0, bool(door)), mapped(user, "gid", 0, bool(door))) if user else (0, 0)
            made = kind == "volume"
            own = ident if seed or (made and mount["source"].startswith(f"{request.staging}/")) else ""
            volumes.append(OpenVolume(mount["source"], handle, readonly, attrs, made, seed, staging, ids, own, below))
            inner.append(
                MountTree(handle, target, f"{mount['source']}/{below}" if below else mount["source"], readonly)
            )
        elif kind == "device":
            volumes.append(OpenDevice(mount["source"], f"device{number}:fd"))
            inner.append(MountTree(f"device{number}:fd", target, mount["source"]))
        elif kind == "pod":
            inner.append(MountFromPod(mount["source"], target, "ro" in mount["options"]))
        elif kind == "devpts" and process["terminal"]:
            inner.append(MountTree("devpts:fd", target, "devpts"))
        elif kind == "tmpfs" and target == "/dev":
            given = bool(user) or pod.get("devices") == "host"
            inner.append(MakeDev(empty=given))
            if given:
                inner += [MountFromPod(f"/dev/{name}", f"/dev/{name}") for name in DEVICES]
            inner += [MakeSymlink(to, path) for to, path in _LINKS]
            if process["terminal"]:
                inner.append(MakeSymlink("pts/0", "/dev/console"))
        else:
            inner.append(Mount(kind, target, data, attrs))
    steps += volumes
    steps += (filters := _filter(spec, request))
    tty = all("gid=5" in mount["options"] for mount in spec["mounts"] if mount["type"] == "devpts")
    steps.append(_stdio(process, request, pod, tty=tty))
    if (detach or request.background) and monitored:
        steps.append(ListenForAttach())
    if (health := note.get("health")) and monitored:
        steps.append(_checks(spec, health, pod, request, bool(filters)))

    # 2 Host, 3 Join
    steps.append(MakeCgroup(linux["cgroupsPath"], linux["resources"], pod=pod.get("cgroup_id", 0)))
    reach = "door:fd" if door else ""
    locks: tuple[str, ...] = ()  # of a member in the foreground: we become its monitor, or are its parent
    if monitored and (detach or door):
        locks = ("lock:held", "lock:data")
    join = "pod:pidfd" if shared else ""
    steps.append(Launch(join, shared, clones, detach and monitored, door=reach, locks=locks, nested=bool(nested)))

    # 4 Init
    steps += [Undumpable(), EnterMountNamespace("pod:pidfd")]
    steps.append(Unshare(kernel.CLONE_NEWNS | kernel.CLONE_NEWCGROUP))
    steps.append(AttachRoot())
    steps += inner
    if clones & kernel.CLONE_NEWNET:
        from nsrun.plan.network import LoopbackUp

        steps.append(LoopbackUp())
    if clones & kernel.CLONE_NEWUTS:
        steps.append(SetHostname(spec["hostname"]))
    if process["cwd"] != "/" and not host_root:
        steps.append(MakeDirectory(process["cwd"]))
    steps += [WriteProc(f"/proc/sys/{k.replace('.', '/')}", v, "--sysctl") for k, v in linux["sysctl"].items()]
    steps += [Mask(p) for p in linux["maskedPaths"]]
    steps += [ReadonlyPath(p) for p in linux["readonlyPaths"]]
    if spec["root"]["readonly"]:
        steps.append(ReadonlyRoot())
    steps.append(Pivot())
    steps += _ends(process, bool(filters), nested)

    # 5 Commit
    steps += [WriteNote("members", name, note), Release()]
    if monitored:
        steps.append(HandOver(detach))
    return Plan(f"join {pod['name']}", steps, {"spec": spec, "layers": list(request.layers)})


_TIMES = {"interval": "interval", "timeout": "timeout", "start_period": "period", "start_interval": "often"}


def _checks(spec: MemberSpec, health: Health, pod: PodNote, request: Request, filtered: bool) -> Step:
    """Return the step that leaves the plan of a member's health checks: what exec would do, without a terminal; or a place."""
    from nsrun.plan.health import PrepareChecks

    times = {short: round(1000 * float(health[key])) for key, short in _TIMES.items()}  # type: ignore[literal-required]
    times["retries"] = health["retries"]
    process: Process = {**spec["process"], "terminal": False, "args": health["command"]}
    uid = _owner_of_streams(process, request, pod)
    if "connect" in health:
        from nsrun.plan.health import PrepareConnects
        from nsrun.spec.health import parse_connect

        own = any(entry == {"type": "network"} for entry in spec["linux"]["namespaces"])  # not the pod's
        address = (
            pod["network"].get("ip", "") if "network" in pod and not own else ""
        )  # one that is planned has none yet
        place = parse_connect(health["connect"], health.get("headers", []), address)
        return PrepareConnects(*place, _spaces(spec, pod), uid, times)
    own = bool(spec["linux"]["cgroupsPath"])
    steps = [Undumpable(), EnterMountNamespace("member:pidfd", "The member's own files and mounts, as it sees them.")]
    if not own:  # by which the monitor finds what a check leaves behind
        steps.append(Unshare(kernel.CLONE_NEWNS))
    ends: Any = _ends(process, filtered, pod.get("nested"))
    return PrepareChecks((*steps, *ends), _spaces(spec, pod), uid, times, own)


def _spaces(spec: MemberSpec, pod: PodNote) -> int:
    """Return the namespaces of a member that one more process in it joins, but for the mount namespace: CLONE_NEW…."""
    everything = (
        kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS | kernel.CLONE_NEWPID | kernel.CLONE_NEWCGROUP
    )
    if pod.get("user"):
        everything |= kernel.CLONE_NEWUSER
    if pod.get("user") or pod.get("nested"):
        networked = any(entry["type"] == "network" for entry in spec["linux"]["namespaces"])
        everything &= ~(_foreign(pod) if networked else kernel.CLONE_NEWNET)
    return everything


def exec_plan(spec: MemberSpec, note: MemberNote, pod: PodNote, request: Request) -> Plan:
    """Return the plan of one more process in a member: its namespaces, its cgroup, its capabilities and never more."""
    door, nested = request.door, pod.get("nested")
    process = spec["process"]
    monitored = request.monitored
    steps: list[Step] = [OpenProcess(f"member {note['name']}", note, True, "member:ns")]
    if door:
        from nsrun.plan.owner import EnterUserNamespace, ReachDoor

        steps += [EnterUserNamespace("member:ns"), ReachDoor(door)]
    steps.append(LoadProgram("nsrun-init", "init:fd"))
    if monitored:
        steps.append(LoadProgram("nsrun-monitor", "monitor:fd"))
    filters = _filter(spec, request)
    steps += [
        *filters,
        _stdio(process, request, pod, "member:ns"),
        OpenCgroup(
            note.get("cgroup", spec["linux"]["cgroupsPath"]), note.get("cgroup_id", 0)
        ),  # a member that was renamed may begin in another
        Launch(
            "member:ns", _spaces(spec, pod), detach=request.detach, door="door:fd" if door else "", nested=bool(nested)
        ),
        Undumpable(),
        EnterMountNamespace("member:ns", "The member's own files and mounts, as it sees them."),
        *_ends(process, bool(filters), nested),
        Release(),
    ]
    if monitored:
        steps.append(HandOver(request.detach))
    return Plan(f"exec {note['name']}", steps, {"spec": spec})
