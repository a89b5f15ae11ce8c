# SPDX-License-Identifier: Apache-2.0
"""The plan of `pod create`: the only place that knows its order."""

from __future__ import annotations

from nsrun import kernel
from nsrun.kernel import MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY
from nsrun.linux import DEVICE_NODES
from nsrun.plan import Plan, Step
from nsrun.plan.claims import ClaimName, LimitPod, MakeCgroup, WriteNote
from nsrun.plan.mounts import (
    MakeDirectory,
    MakePrivate,
    Mount,
    MountFromPod,
    MountTree,
    Pivot,
    ReadonlyRoot,
    TmpfsRoot,
    WriteFile,
    WriteProc,
)
from nsrun.plan.network import ConfigurePod, ConnectPod, HoldPorts, LoopbackUp, NewNetns, PublishTable
from nsrun.plan.process import (
    ExecutePause,
    Launch,
    LoadProgram,
    Release,
    SetCapabilities,
    SetHostname,
    SetUser,
    Undumpable,
)
from nsrun.spec.options import is_forwarded, published

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsrun.types import PodSpec

SAFE = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
PAUSE_UID = 65535


def pod_plan(spec: PodSpec) -> Plan:
    """Return the plan that makes a pod of its spec (spec.pod.pod_spec)."""
    user = spec.get("user")
    name, network, ident = spec["name"], spec["network"], spec["id"]
    pasta = network["mode"] == "pasta"
    if user or pasta:  # an ordinary pod of root's does not pay for importing them
        from nsrun.plan.owner import (
            DelegateCgroup,
            EndWithPause,
            ForwardPorts,
            HoldForPod,
            NewUserNamespace,
            OpenDoor,
            OwnNetwork,
            ShowOwner,
        )
    bridge, own_net = network["mode"] == "bridge", network["mode"] != "host"
    ipv6, isolated = network.get("ipv6") == "on", network.get("isolated", False)
    closed = bool(network.get("closed"))
    by_root = not user or spec["by_root"]
    owned = "user:fd" if user else ""
    nested = spec.get("nested")
    outside = bridge or (by_root and not nested)  # who configures the network: we, or nsrun-init inside
    note = {
        k: v
        for k, v in spec.items()
        if k not in ("files", "ports", "shm_size", "by_root", "groups") and (k != "sysctls" or v)
    }

    steps: list[Step] = [
        ClaimName("pods", name, note),
        LoadProgram("nsrun-init", "init:fd"),
        LoadProgram("nsrun-pause", "pause:fd"),
    ]
    if user or pasta:
        steps.append(LoadProgram("nsrun-door", "door:program"))
    listen = None
    if passed_on := published(filter(is_forwarded, spec["ports"])):  # only these pods pay for importing it
        from nsrun.plan.forward import ListenPorts, StartForwarder, address_of

        listen = ListenPorts(passed_on)
        steps.append(LoadProgram("nsrun-forward", "forwarder:program"))

    if spec["limits"]:
        steps.append(LimitPod(spec["cgroup"], spec["limits"]))
    steps.append(MakeCgroup(f"{spec['cgroup']}/pause" if spec["cgroup"] else "", {}, spec["cgroup"]))
    if user and by_root:
        steps.append(DelegateCgroup(spec["cgroup"], user["uid"], user["gid"]))
    held: list[str] = []
    forwarded = published(port for port in spec["ports"] if not is_forwarded(port))
    if user:
        steps.append(NewUserNamespace(spec["owner"], user["uid"], user["gid"], user["maps"], spec["by_root"]))
    owns = owned
    if pasta and not user:
        just = {kind: [[0, PAUSE_UID, 1]] for kind in ("uid", "gid")}
        steps.append(OwnNetwork("root", PAUSE_UID, PAUSE_UID, just, True))
        owns = OwnNetwork.handle
    if own_net:
        steps.append(NewNetns(owns))
    if bridge:
        wanted, subnet6 = network.get("wanted_ip", ""), network.get("subnet6", "")
        where = (network["bridge"], network.get("name", ""), network.get("network_id", ""))
        steps.append(
            ConnectPod(
                ident, wanted, network.get("subnet", ""), ipv6, subnet6, isolated, closed, network["mtu"], *where
            )
        )
    if own_net and outside:
        steps.append(ConfigurePod(network.get("bridge", ""), ipv6, isolated))
    if closed:
        held = [ConnectPod.handle]
    elif bridge:
        ports_step, table_step = (
            HoldPorts(forwarded),
            PublishTable(ident, forwarded, ipv6=ipv6, bridge=network["bridge"]),
        )
        held = [*ports_step.handles, table_step.handle]
        steps += [*([ports_step] if forwarded else []), table_step]
    names = None
    files = spec["files"]
    if network.get("name"):  # only these pods pay for importing it
        from nsrun.plan.names import DIRECTORY, HANDLE, TREE, MakeNames, TellNames

        make = MakeNames(name)
        steps.append(make)
        names = MountTree(TREE, DIRECTORY, make.path)
        files = {path: text for path, text in files.items() if path != "/etc/hosts"}
        held.append(HANDLE)
    if listen:
        steps.append(listen)

    uid = PAUSE_UID
    if within := user or nested:
        from nsrun.spec.idmaps import nobody, size

        uid = nobody(within["maps"], PAUSE_UID)
    flags = kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS | kernel.CLONE_NEWPID
    lock = "lock:held"
    if user and by_root:
        lock = "lock:shown"
        steps.append(ShowOwner(user["uid"], name))
    join, net = ("net:fd", kernel.CLONE_NEWNET) if own_net else ("", 0)
    steps.append(Launch(join, net, flags, user=owned, locks=(lock,), nested=bool(nested)))

    steps += [
        Undumpable(),
        MakePrivate(),
        TmpfsRoot("mode=755,size=256k"),
        Mount("proc", "/proc", "", SAFE, "PID 1's own view; members mount another, for themselves."),
        Mount("tmpfs", "/dev/shm", f"mode=1777,size={spec['shm_size']}", SAFE, "The pod's shared memory: /dev/shm is no part of the IPC namespace, so it must be one tmpfs for all."),
        Mount("mqueue", "/dev/mqueue", "", SAFE, "POSIX message queues of the pod's IPC namespace."),
        *_for_members(bool(user) or spec.get("devices") == "host", bool(within) and own_net),
        MakeDirectory("/etc"),
        MakeDirectory("/member"),
        *(WriteFile(path, text) for path, text in files.items()),
        *([names] if names else []),
        SetHostname(spec["hostname"]),
    ]  # fmt: skip
    if own_net and not outside:
        steps.append(LoopbackUp())
    if spec["network"]["mode"] == "pasta":
        steps.append(
            WriteProc(
                "/proc/sys/net/ipv6/conf/default/accept_dad",
                "0",
                "An address of the tap device is of use at once: nobody else is on that link who could have it.",
                optional=True,
            )
        )
    if own_net:
        steps.append(
            WriteProc(
                "/proc/sys/net/ipv4/ip_unprivileged_port_start",
                "0",
                "A member that is not root may listen on :80, with no capability.",
            )
        )
        last = size(within["maps"]["gid"]) - 1 if within else (1 << 31) - 1
        steps.append(
            WriteProc(
                "/proc/sys/net/ipv4/ping_group_range",
                f"0 {last}",
                "Every user of a member may use ping, with no capability (icmp(7)).",
                optional=True,
            )
        )
    steps += [
        WriteProc(f"/proc/sys/{key.replace('.', '/')}", value, "--sysctl") for key, value in spec["sysctls"].items()
    ]
    steps += [
        WriteProc(
            "/proc/self/oom_score_adj", "-998", "If the OOM killer took PID 1, the whole pod would go.", optional=True
        ),
        Pivot(),
        ReadonlyRoot(),
        SetUser(uid, uid, (), 0, bool(nested and not nested["setgroups"])),
        SetCapabilities(0),
        ExecutePause("pause:fd", (lock, "alive:write") if user and by_root else (lock, *held)),
    ]
    if pasta:
        run_as = (user["uid"], user["gid"]) if user else (PAUSE_UID, PAUSE_UID)
        steps.append(ForwardPorts(forwarded, run_as if by_root else None, owns))
        if not user:
            steps.append(EndWithPause(f"{spec['cgroup']}/pause" if spec["cgroup"] else "", PAUSE_UID))
    if user and by_root:
        steps.append(HoldForPod(holder_cgroup(spec["cgroup"]), tuple(held)))
    if listen:
        place = (
            holder_cgroup(spec["cgroup"]) if user and by_root else f"{spec['cgroup']}/pause" if spec["cgroup"] else ""
        )
        joins = bool(user) and not by_root
        ids = () if joins or nested else (PAUSE_UID,)
        steps.append(
            StartForwarder(
                name,
                ident,
                place,
                listen.ports,
                address_of(network["mode"]),
                joins,
                ids,
                "member:pidfd",
                bool(user) and by_root,
            )
        )
    if user:
        steps.append(OpenDoor(name, {**user, "groups": spec["groups"]}, spec["cgroup"]))
    steps += [
        WriteNote("pods", name, note),
        *([TellNames(network["name"], ident, name, spec["files"]["/etc/hosts"])] if names else []),
        Release(),
    ]
    return Plan(f"pod create {name}", steps, {"ready": True, "spec": spec})


def holder_cgroup(path: str) -> str:
    """The cgroup of what holds an owned pod's ports: beside the pod's own, so not delegated with it."""
    return f"{path}.hold" if path else ""


def _for_members(devices: bool, sysfs: bool) -> list[Step]:
    """What members can't make themselves, in a user namespace or without CAP_MKNOD: kept in pause's root while the host is in view."""
    steps: list[Step] = []
    if devices:
        steps += [
            MountFromPod(
                f"/dev/{name}",
                f"/dev/{name}",
                reason="No device can be made in a user namespace, or without CAP_MKNOD: the host's own node, for members.",
            )
            for name, _, _ in DEVICE_NODES
        ]
    if sysfs:
        steps.append(
            Mount(
                "sysfs",
                "/sys",
                "",
                SAFE | MOUNT_ATTR_RDONLY,
                "A user namespace may mount sysfs only where one is in view (and proc, likewise).",
            )
        )
    return steps
