# SPDX-License-Identifier: Apache-2.0
"""The plans of `create` and `exec`, and of hooks inside: the only place that knows their order.  Pure."""

from __future__ import annotations

from nsrun import kernel
from nsrun.errors import BadInput
from nsrun.linux import DEVICE_NODES
from nsrun.oci.config import (
    MS_REC,
    MS_SLAVE,
    MS_UNBINDABLE,
    PROPAGATION,
    MountOptions,
    capabilities,
    io_priority,
    maps_of,
    scheduler,
    to_host,
)
from nsrun.oci.steps import (
    NAMESPACE_FLAGS,
    BindInside,
    CallHooks,
    ClaimContainer,
    EnterOwnUserNamespace,
    ExecuteContainer,
    GiveStdio,
    JoinCgroups,
    LaunchContainer,
    LoadContainerFilter,
    MakeCgroups,
    MakeFifos,
    MakeLink,
    MakeNode,
    MakeScope,
    MakeTimeNamespace,
    MakeUserNamespace,
    MoveRoot,
    NewMount,
    OpenCgroups,
    OpenCgroupTree,
    OpenContainer,
    OpenContainerTerminal,
    OpenDevice,
    OpenNamespace,
    OpenTerminalInside,
    OpenTree,
    Proceed,
    SeedTmpfs,
    SendListener,
    SendTerminal,
    SetCapabilitySets,
    SetDomainname,
    SetFilterFlags,
    SetFilterWithListener,
    SetIoPriority,
    SetOomScore,
    SetPersonality,
    SetPropagation,
    SetReadonly,
    SetScheduler,
    SetUmask,
    Wait,
    WritePidFile,
    WriteState,
    enter_cgroups,
)
from nsrun.plan import HOST, OPEN, InitStep, Plan, Step
from nsrun.plan.mounts import (
    AttachRoot,
    EnterMountNamespace,
    MakeDirectory,
    MakePrivate,
    Mask,
    MountTree,
    Pivot,
    ReadonlyPath,
    ReadonlyRoot,
    WriteProc,
)
from nsrun.plan.network import LoopbackUp
from nsrun.plan.process import (
    ChangeDirectory,
    LoadProgram,
    NewKeyring,
    NewSession,
    NoNewPrivileges,
    Release,
    SetHostname,
    SetLimit,
    SetProfile,
    SetUser,
    Undumpable,
    Unshare,
)
from nsrun.schema import is_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from nsrun.oci.resources import Setting
    from nsrun.oci.systemd import Scope

    Config = dict[str, Any]

_LINKS = (
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
)
_CLOCKS = "A process enters a time namespace by itself, alone in its memory: what the vDSO shows is mapped anew."
_SYSCTL = "A setting of the kernel that belongs to a namespace of the container (linux.sysctl)."
_LABEL = "SELinux gives the program this label when it is executed (process.selinuxLabel)."
_S_IFCHR, _S_IFBLK, _S_IFIFO = 0o020000, 0o060000, 0o010000


class Facts:
    """What was asked of the machine and of the command line before a plan is built.

    root, ident: of the state.  note: what the state says at first.  rootfs: absolute.  env: of the process, with HOME.
    cgroups: the paths by hierarchy; settings: what is written there; unified: whether all of it is v2; hierarchies: of v1,
    (controllers, mount point, our own cgroup) in order; devices: a program for v2.  scope: what systemd makes of the container, and
    properties: what it is told of its limits.
    rootless: we are an ordinary user.  nodes: whether we may make device nodes.
    """

    def __init__(self, **known: Any) -> None:
        self.root = ""
        self.ident = ""
        self.note: Mapping[str, Any] = {}
        self.rootfs = ""
        self.bundle = ""
        self.cgroups: Mapping[str, str] = {}
        self.settings: Sequence[Setting] = ()
        self.unified = False
        self.hierarchies: Sequence[tuple[str, str, str]] = ()
        self.may_lack = False
        self.devices = b""
        self.scope: Scope | None = None
        self.properties: Mapping[str, Any] = {}
        self.rootless = False
        self.nodes = True
        self.selinux = False
        self.keep_groups = False
        self.console = ""
        self.pid_file = ""
        self.preserve = 0
        self.pivot = True
        self.keep_keys = False
        self.foreground = False
        self.host_maps: Mapping[str, Sequence[Sequence[int]]] = {}
        for name, value in known.items():
            assert hasattr(self, name), name
            setattr(self, name, value)


def create_plan(config: Config, facts: Facts) -> Plan:
    """Return the plan that makes a container and leaves its first process waiting for `start`."""
    process, linux = config["process"], config.get("linux") or {}
    namespaces = {entry["type"]: entry.get("path") or "" for entry in linux.get("namespaces") or []}
    new_user = "user" in namespaces and not namespaces["user"]
    maps = maps_of(linux) if new_user else facts.host_maps if "user" in namespaces else {}
    entered = facts.rootless and new_user  # then we are in it, and have its ids, before anything else is opened
    if facts.rootless and not new_user:
        raise BadInput("linux.namespaces: an ordinary user needs a new user namespace, or is root of one already")
    hooks = config.get("hooks") or {}
    if hooks.get("startContainer") and _asks(linux):
        raise BadInput("hooks.startContainer: a hook of the image has the container's filter, which asks a listener")
    uid_maps, gid_maps = maps.get("uid", ()), maps.get("gid", ())
    user_uid = to_host(uid_maps, (process.get("user") or {}).get("uid") or 0)
    if user_uid < 0:
        raise BadInput("process.user.uid: linux.uidMappings does not map it")
    if to_host(gid_maps, (process.get("user") or {}).get("gid") or 0) < 0:
        raise BadInput("process.user.gid: linux.gidMappings does not map it")
    own_maps, new_user = maps, new_user and not entered
    if entered:
        maps, user_uid = {}, (process.get("user") or {}).get("uid") or 0
    flags = sum(
        NAMESPACE_FLAGS[kind]
        for kind, path in namespaces.items()
        if not path and kind not in ("user", "cgroup", "time")
    )
    own_cgroup = "cgroup" in namespaces and not namespaces["cgroup"]
    entering, in_cgroups = _cgroup_steps(facts.cgroups, bool(facts.scope or namespaces.get("user")), optional=True)
    waits_for_cgroups = own_cgroup and bool(in_cgroups or facts.scope)

    # 1 Open
    steps: list[Step] = [ClaimContainer(facts.root, facts.ident, facts.note, config), MakeFifos()]
    steps.append(LoadProgram("nsrun-init", "init:fd"))
    steps += [EnterOwnUserNamespace(own_maps)] if entered else []
    joins = []
    for kind, path in namespaces.items():
        if path and kind != "mount":
            steps.append(OpenNamespace(kind, path, f"ns:{kind}"))
            joins += [f"ns:{kind}"] if kind not in ("user", "time") else []
    mount_ns = namespaces.get("mount", "")
    if mount_ns:
        raise BadInput("linux.namespaces: mount: nsrun-oci makes a new one always, and joins none by path")
    propagation = PROPAGATION.get(linux.get("rootfsPropagation") or "", kernel.MS_PRIVATE)
    inherited = kernel.MS_PRIVATE if propagation & (kernel.MS_PRIVATE | MS_UNBINDABLE) else MS_SLAVE
    steps.append(OpenTree(facts.rootfs, "rootfs:fd", True, propagation=inherited | MS_REC))
    opened, inner = _mounts(config, facts, maps, own_cgroup)
    steps += [step for step in opened if step.phase == OPEN]
    nodes, node_opened = _devices(config, facts, maps)
    steps += node_opened
    filters = _filter(linux, process, facts)
    steps += filters
    if process.get("terminal"):
        inner.append(BindInside("{tty:name}", "/dev/console"))
    else:
        steps.append(GiveStdio(user_uid))

    # 2 Host
    limited = (facts.cgroups, tuple(facts.settings), facts.unified, facts.may_lack, facts.devices)
    if facts.scope:
        if any(isinstance(step, OpenCgroupTree) for step in opened):
            raise BadInput(
                "linux.namespaces: cgroup is missing: a scope of systemd is made later than its mounts of v1"
            )
        made = MakeScope(*limited, ident=facts.ident, scope=facts.scope, properties=facts.properties)
        in_cgroups = [made, JoinCgroups()]
    else:
        steps.append(MakeCgroups(*limited))
    steps += [step for step in opened if step.phase == HOST]
    if new_user:
        steps.append(MakeUserNamespace(maps, "user:fd"))
        joins.append("user:fd")
    elif namespaces.get("user"):
        joins.append("ns:user")
    user = joins[-1] if "user" in namespaces and not entered else ""

    if "time" in namespaces and not namespaces["time"]:
        steps.append(MakeTimeNamespace(_offsets(linux), user))

    # 3 Join
    steps.append(
        LaunchContainer(
            clone_flags=flags, user=user, joins=tuple(joins), keep_keys=facts.keep_keys, preserve=facts.preserve
        )
    )

    # 4 Init
    steps += [Undumpable(), MakePrivate()]
    steps += [EnterMountNamespace("ns:time", _CLOCKS, kernel.CLONE_NEWTIME)] if "time" in namespaces else []
    if own_cgroup:
        steps += [*([Wait()] if waits_for_cgroups else entering), Unshare(kernel.CLONE_NEWCGROUP)]
    steps.append(AttachRoot("rootfs:fd", "/" if "user" in namespaces else facts.rootfs))
    steps += inner[: len(inner) - bool(process.get("terminal"))] + nodes
    steps += inner[len(inner) - bool(process.get("terminal")) :]
    if config.get("hostname"):
        steps.append(SetHostname(config["hostname"]))
    if config.get("domainname"):
        steps.append(SetDomainname(config["domainname"]))
    if flags & kernel.CLONE_NEWNET:
        steps.append(LoopbackUp())
    early = [(kind, tuple(hooks.get(kind) or ())) for kind in ("prestart", "createRuntime", "createContainer")]
    called = [CallHooks(kind, some) for kind, some in early if some]
    if called:
        steps.append(Wait())
    steps.append(MakeDirectory(process["cwd"]))
    steps += [
        WriteProc(f"/proc/sys/{key if '/' in key else key.replace('.', '/')}", value, _SYSCTL)
        for key, value in (linux.get("sysctl") or {}).items()
    ]
    steps += [ReadonlyPath(path) for path in linux.get("readonlyPaths") or []]
    steps += [Mask(path) for path in linux.get("maskedPaths") or []]
    if config["root"].get("readonly"):
        steps.append(ReadonlyRoot())
    steps.append(Pivot() if facts.pivot else MoveRoot())
    if linux.get("rootfsPropagation"):
        steps.append(SetPropagation(propagation))
    if linux.get("personality"):
        steps.append(SetPersonality(8 if linux["personality"]["domain"] == "LINUX32" else 0))
    steps += [] if own_cgroup else entering
    steps += _ends(process, facts, linux.get("seccomp"), waits=True)

    # 5 Commit
    steps += [*in_cgroups, Proceed()] if waits_for_cgroups else []
    steps += [*called, Proceed()] if called else []
    steps += [] if waits_for_cgroups else in_cgroups
    steps += _commit(process, facts, linux.get("seccomp"), "creating")
    steps += [WriteState(), *([WritePidFile(facts.pid_file)] if facts.pid_file else []), Release()]
    return Plan(f"create {facts.ident}", steps)


def _cgroup_steps(paths: Mapping[str, str], moved: bool, optional: bool = False) -> tuple[list[InitStep], list[Step]]:
    """Return the steps by which a process enters its cgroups of v1, and those by which we move it there."""
    if moved:
        return [], [JoinCgroups()] if set(paths) - {"0"} else []
    return enter_cgroups(paths, optional), []


def _asks(linux: Config) -> bool:
    from nsrun.oci import filters

    return filters.asks(linux.get("seccomp"))


def _offsets(linux: Config) -> str:
    """Return linux.timeOffsets as the kernel reads it."""
    found = linux.get("timeOffsets") or {}
    return "".join(f"{clock} {one.get('secs') or 0} {one.get('nanosecs') or 0}\n" for clock, one in found.items())


def exec_plan(process: Config, seccomp: Config | None, note: Mapping[str, Any], flags: int, facts: Facts) -> Plan:
    """Return the plan of one more process in a container; `flags` are the namespaces that are not ours."""
    steps: list[Step] = [OpenContainer(note["pid"], note["start"]), LoadProgram("nsrun-init", "init:fd")]
    steps += _filter({"seccomp": seccomp}, process, facts)
    user = process.get("user") or {}
    uid = to_host(facts.host_maps.get("uid", ()), user.get("uid") or 0)
    if uid < 0:
        raise BadInput("the user of the exec is not one of the container's user namespace")
    if process.get("terminal"):
        steps.append(OpenTerminalInside(uid, _size(process)))
    else:
        steps.append(GiveStdio(uid))
    clocks: list[Step] = []
    entering, in_cgroups = _cgroup_steps(note["cgroups"], bool(flags & kernel.CLONE_NEWUSER))
    if flags & kernel.CLONE_NEWTIME:
        steps.append(OpenNamespace("time", f"/proc/{note['pid']}/ns/time", "ns:time"))
        clocks.append(EnterMountNamespace("ns:time", _CLOCKS, kernel.CLONE_NEWTIME))
    steps += [
        OpenCgroups(note["cgroups"]),
        LaunchContainer(
            "member:ns",
            flags & ~(kernel.CLONE_NEWNS | kernel.CLONE_NEWTIME),
            preserve=facts.preserve,
            keep_keys=facts.keep_keys,
        ),
        Undumpable(),
        *entering,
        *clocks,
        EnterMountNamespace("member:ns", "The container's own files and mounts, as it sees them."),
        *_ends(process, facts, seccomp, waits=False),
    ]
    steps += [*in_cgroups, *_commit(process, facts, seccomp, "running", note)]
    steps += [*([WritePidFile(facts.pid_file)] if facts.pid_file else []), Release()]
    return Plan(f"exec {facts.ident}", steps)


def hook_plan(
    hook: Config, pid: int, start: int, flags: int, cgroups: Mapping[str, str], config: Config | None, facts: Facts
) -> Plan:
    """Return the plan of a hook in the namespaces of a container.

    Without a config it is a program of the host's, whom it trusts, before the container's root is all there is.  With the
    container's, it is a program of the image, and has no more power than the container's own.
    """
    steps: list[Step] = [OpenContainer(pid, start), LoadProgram("nsrun-init", "init:fd")]
    clocks: list[Step] = []
    entering, in_cgroups = _cgroup_steps(cgroups, bool(flags & kernel.CLONE_NEWUSER))
    if config is None:
        ends: list[Step] = [ExecuteContainer(_hook_arguments(hook), _hook_environment(hook), program=hook["path"])]
        commit: list[Step] = []
    else:
        linux = config.get("linux") or {}
        process = {
            **config["process"],
            "args": _hook_arguments(hook),
            "env": _hook_environment(hook),
            "terminal": False,
        }
        steps += _filter(linux, process, facts)
        if flags & kernel.CLONE_NEWTIME:
            steps.append(OpenNamespace("time", f"/proc/{pid}/ns/time", "ns:time"))
            clocks.append(EnterMountNamespace("ns:time", _CLOCKS, kernel.CLONE_NEWTIME))
        ends = _ends(process, facts, linux.get("seccomp"), waits=False, program=hook["path"])
        commit = _commit(process, facts, None, "created")
    steps += [
        OpenCgroups(cgroups),
        LaunchContainer("member:ns", flags & ~(kernel.CLONE_NEWNS | kernel.CLONE_NEWTIME)),
        Undumpable(),
        *entering,
        *clocks,
        EnterMountNamespace("member:ns", "A hook sees the mounts of the container."),
        *ends,
        *in_cgroups,
        *commit,
        Release(),
    ]
    return Plan("hook", steps)


def _hook_arguments(hook: Config) -> tuple[str, ...]:
    return tuple(hook.get("args") or [hook["path"]])


def _hook_environment(hook: Config) -> tuple[str, ...]:
    return tuple(hook.get("env") or ())


def _commit(
    process: Config, facts: Facts, seccomp: Config | None, status: str, note: Mapping[str, Any] | None = None
) -> list[Step]:
    from nsrun.oci import filters

    steps: list[Step] = []
    if seccomp and filters.asks(seccomp):
        note = note or facts.note
        known = {key: note[key] for key in ("ociVersion", "id", "bundle", "annotations") if note.get(key)}
        state = {**known, "status": status, "pid": note.get("pid") or 0}
        steps += [SendListener(seccomp["listenerPath"], seccomp.get("listenerMetadata") or "", state), Proceed()]
    if process.get("oomScoreAdj") is not None:
        steps.append(SetOomScore(process["oomScoreAdj"]))
    if process.get("terminal") and facts.console:
        steps.append(SendTerminal(facts.console))
    return steps


def _size(process: Config) -> tuple[int, int]:
    size = process.get("consoleSize") or {}
    return size.get("height") or 0, size.get("width") or 0


def _filter(linux: Config, process: Config, facts: Facts) -> list[Step]:
    profile = linux.get("seccomp")
    if not profile:
        return []
    return [LoadContainerFilter(profile, capabilities(process, "bounding"), f"{facts.root}/.seccomp")]


def _ends(process: Config, facts: Facts, seccomp: Config | None, waits: bool, program: str = "") -> list[Step]:
    """What create, exec and a hook of the image have in common: from the session to the program."""
    from nsrun.oci import filters

    user = process.get("user") or {}
    late = bool(process.get("noNewPrivileges"))  # then a filter needs no power, and is set as late as can be
    flags = filters.flags(seccomp) if seccomp else 0
    steps: list[Step] = [NewSession(bool(process.get("terminal")))]
    steps += [] if facts.keep_keys else [NewKeyring()]
    for entry in process.get("rlimits") or []:
        steps.append(SetLimit(entry["type"][7:].lower(), entry["soft"], entry["hard"]))
    if (values := scheduler(process)) is not None:
        steps.append(SetScheduler(values))
    if (value := io_priority(process)) is not None:
        steps.append(SetIoPriority(value))
    if process.get("apparmorProfile"):
        steps.append(SetProfile(process["apparmorProfile"]))
    if process.get("selinuxLabel"):
        if not facts.selinux:
            raise BadInput("process.selinuxLabel: this kernel has no SELinux, or it is disabled")
        steps.append(WriteProc("/proc/self/attr/exec", process["selinuxLabel"], _LABEL))
    steps.append(ChangeDirectory(process["cwd"]))
    asks = filters.asks(seccomp)
    if seccomp and not late:
        kind = SetFilterWithListener if asks else SetFilterFlags
        steps.append(kind(flags, 3 + facts.preserve))
    uid, gid, groups = user.get("uid") or 0, user.get("gid") or 0, tuple(user.get("additionalGids") or ())
    steps.append(SetUser(uid, gid, groups, capabilities(process, "bounding"), facts.keep_groups))
    if user.get("umask") is not None:
        steps.append(SetUmask(user["umask"]))
    names = ("effective", "permitted", "inheritable", "ambient")
    steps.append(SetCapabilitySets(*(capabilities(process, name) for name in names)))
    if late:
        steps.append(NoNewPrivileges())
        if asks:
            steps.append(SetFilterWithListener(flags, 3 + facts.preserve))
    steps.append(
        ExecuteContainer(
            tuple(process["args"]),
            tuple(process.get("env") or ()),
            3 + facts.preserve,
            program,
            waits=waits,
            filtered=bool(seccomp and late and not asks),
            flags=flags,
            closed=bool(seccomp and (asks or not late)),
        )
    )
    return steps


# ---- mounts -------------------------------------------------------------------------------------------------------


def _mounts(config: Config, facts: Facts, maps: Mapping[str, Any], own_cgroup: bool) -> tuple[list[Step], list[Step]]:
    """Return the steps that open on the host, and those that mount inside."""
    opened: list[Step] = []
    inner: list[Step] = []
    linux, process = config.get("linux") or {}, config["process"]
    label = linux.get("mountLabel") or ""
    if label and not facts.selinux:
        raise BadInput("linux.mountLabel: this kernel has no SELinux, or it is disabled")
    has_devpts = False
    for number, mount in enumerate(config.get("mounts") or []):
        target, kind = mount["destination"], mount.get("type") or ""
        options = MountOptions(mount.get("options") or [], target)
        handle = f"mount{number}:fd"
        if target == "/":
            raise BadInput("config.json: mounts: / is the root, which nothing is mounted over")
        if kind == "cgroup":
            inner += _cgroup_mounts(target, options, facts, own_cgroup, opened, handle)
        elif kind == "bind" or options.bind:
            if not mount.get("source"):
                raise BadInput(f"config.json: mounts: {target}: source is missing")
            source = mount["source"] if mount["source"].startswith("/") else f"{facts.bundle}/{mount['source']}"
            opened.append(_bind(source, handle, options, mount, maps, "rbind" in options.own))
            inner.append(_tree(handle, target, source))
            if options.data:
                raise BadInput(f"config.json: mounts: {target}: a bind mount has no option {options.data[0]!r}")
        elif kind == "devpts" and process.get("terminal") and target.rstrip("/") == "/dev/pts":
            has_devpts = True
            opened.append(
                OpenContainerTerminal(_devpts(options, maps), options.set, _first_uid(process, maps), _size(process))
            )
            inner.append(_tree("devpts:fd", target, "devpts"))
        elif "tmpcopyup" in options.own:
            if kind != "tmpfs":
                raise BadInput(f"config.json: mounts: {target}: tmpcopyup is for a tmpfs")
            opened.append(SeedTmpfs(target, tuple(options.data), options.set, handle))
            inner.append(_tree(handle, target, "tmpfs"))
        elif not kind:
            raise BadInput(f"config.json: mounts: {target}: type is missing")
        else:
            if options.own & {"idmap", "ridmap"} or mount.get("uidMappings"):
                raise BadInput(f"config.json: mounts: {target}: only a bind mount can be shown with other ids")
            data = [*options.data, *([f'context="{label}"'] if label and kind in ("tmpfs", "mqueue") else [])]
            if options.below_set:
                options.set |= options.below_set
            inner.append(
                NewMount(
                    kind, mount.get("source") or kind, target, tuple(data), options.set, options.propagation & ~MS_REC
                )
            )
    if process.get("terminal") and not has_devpts:
        raise BadInput("config.json: process.terminal needs a mount of devpts on /dev/pts")
    return opened, inner


def _tree(handle: str, target: str, source: str) -> MountTree:
    """Return the step that mounts a tree; a symlink of the image on the way is followed, inside the root.

    procfs and sysfs where a link leads would be anywhere else than where those who look for them find them (CVE-2019-19921).
    """
    return MountTree(handle, target, source, strict=target.rstrip("/") in ("/proc", "/sys"))


def _first_uid(process: Config, maps: Mapping[str, Any]) -> int:
    return to_host(maps.get("uid", ()), (process.get("user") or {}).get("uid") or 0)


def _devpts(options: MountOptions, maps: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the options of a devpts that we mount outside of the user namespace: its ids are the host's there."""
    found = ["newinstance"]
    for option in options.data:
        key, equals, value = option.partition("=")
        if key in ("uid", "gid") and is_number(value):
            ident = to_host(maps.get(key, ()), int(value))
            if ident < 0:
                continue  # such an id does not exist in the container
            option = f"{key}={ident}"
        if key != "newinstance":
            found.append(option)
    for key in ("uid", "gid"):
        if maps.get(key) and not any(option.startswith(f"{key}=") for option in found):
            found.append(f"{key}={max(0, to_host(maps[key], 0))}")
    return tuple(found)


def _bind(
    source: str, handle: str, options: MountOptions, mount: Config, maps: Mapping[str, Any], deep: bool
) -> OpenTree:
    idmaps: tuple[Any, ...] = ()
    if options.own & {"idmap", "ridmap"} or mount.get("uidMappings"):
        found = maps_of(mount) if mount.get("uidMappings") else maps
        if not found.get("uid"):
            raise BadInput(
                f"config.json: mounts: {mount['destination']}: idmap needs mappings, its own or the container's"
            )
        idmaps = tuple(tuple(tuple(line) for line in found[kind]) for kind in ("uid", "gid"))
    propagation = options.propagation or kernel.MS_PRIVATE | MS_REC
    below = (options.below_set, options.below_clear)
    deep = deep or any(below)
    return OpenTree(
        source, handle, deep, options.set, options.clear, below, propagation, idmaps, "ridmap" in options.own
    )


def _cgroup_mounts(
    target: str, options: MountOptions, facts: Facts, own: bool, opened: list[Step], handle: str
) -> list[Step]:
    """Return the steps that show a container its cgroups."""
    readonly = options.set
    if facts.unified:
        if own:
            return [NewMount("cgroup2", "cgroup", target, (), readonly, options.propagation & ~MS_REC)]
        opened.append(OpenTree("/sys/fs/cgroup", handle, True, options.set, options.clear))
        return [_tree(handle, target, "/sys/fs/cgroup")]
    attrs = options.set & ~kernel.MOUNT_ATTR_RDONLY
    steps: list[Step] = [NewMount("tmpfs", "tmpfs", target, ("mode=755",), attrs)]
    for number, (controllers, mount, ours) in enumerate(facts.hierarchies):
        name = mount.rpartition("/")[2]
        place = f"{target.rstrip('/')}/{name}"
        path = facts.cgroups.get(controllers, "")
        if own:
            kind = "cgroup2" if controllers == "0" else "cgroup"
            named = [
                f"none,{word}".split(",") if word.startswith("name=") else [word] for word in controllers.split(",")
            ]
            data = [] if controllers == "0" else [word for some in named for word in some]
            steps.append(NewMount(kind, "cgroup", place, tuple(data), readonly))
        elif path:
            opened.append(OpenCgroupTree(path, f"{handle}{number}", set=options.set, otherwise=ours))
            steps.append(_tree(f"{handle}{number}", place, path))
        for word in controllers.split(",") if "," in controllers else []:
            steps.append(MakeLink(name, f"{target.rstrip('/')}/{word}"))
    if options.set & kernel.MOUNT_ATTR_RDONLY:
        steps.append(SetReadonly(target))
    return steps


# ---- devices ------------------------------------------------------------------------------------------------------


def _devices(config: Config, facts: Facts, maps: Mapping[str, Any]) -> tuple[list[Step], list[Step]]:
    """Return the steps that make the nodes of /dev inside, and those that open the host's where we may make none."""
    for mount in config.get("mounts") or []:
        if mount["destination"].rstrip("/") == "/dev" and MountOptions(mount.get("options") or [], "/dev").bind:
            return [], []  # the host's own /dev
    wanted = [(f"/dev/{name}", _S_IFCHR | 0o666, major, minor, 0, 0) for name, major, minor in DEVICE_NODES]
    kinds = {"c": _S_IFCHR, "u": _S_IFCHR, "b": _S_IFBLK, "p": _S_IFIFO}
    for device in (config.get("linux") or {}).get("devices") or []:
        mode = device.get("fileMode")
        entry = (
            device["path"],
            kinds[device["type"]] | (0o666 if mode is None else mode & 0o7777),
            device.get("major") or 0,
            device.get("minor") or 0,
            device.get("uid") or 0,
            device.get("gid") or 0,
        )
        wanted = [one for one in wanted if one[0] != entry[0]] + [entry]
    made: list[Step] = []
    opened: list[Step] = []
    for number, (path, mode, major, minor, uid, gid) in enumerate(wanted):
        if facts.nodes and not maps or mode & 0o170000 == _S_IFIFO:
            made.append(MakeNode(path, mode, major, minor, uid, gid))
        else:
            opened.append(OpenDevice(path, f"device{number}:fd", wanted=(mode, major, minor)))
            made.append(_tree(f"device{number}:fd", path, path))
    made += [MakeLink(to, path) for to, path in _LINKS]
    return made, opened
