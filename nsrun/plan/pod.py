"""The plan of `pod create`: the only place that knows its order."""

from __future__ import annotations

from nsrun import kernel
from nsrun.kernel import MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID
from nsrun.plan import Plan, Step
from nsrun.plan.inside import (
    ExecutePause,
    MakeDirectory,
    MakePrivate,
    Mount,
    Pivot,
    ReadonlyRoot,
    SetCapabilities,
    SetHostname,
    SetUser,
    TmpfsRoot,
    Undumpable,
    WriteFile,
    WriteProc,
)
from nsrun.plan.network import ConfigurePod, ConnectPod, HoldPort, NewNetns, PublishTable
from nsrun.plan.outside import (
    ClaimName,
    Launch,
    LimitPod,
    LoadProgram,
    MakeCgroup,
    Release,
    WriteNote,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SAFE = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
PAUSE_UID = 65535


def pod_plan(spec: dict[str, Any]) -> Plan:
    """`spec` is what spec.pod_spec made of the words of the command."""
    name, network, ident = spec["name"], spec["network"], spec["id"]
    table = f"nsrun-{ident}"
    bridge, own_net = network["mode"] == "bridge", network["mode"] != "host"
    ports = spec["ports"]
    note = {k: v for k, v in spec.items() if k not in ("files", "ports", "sysctls", "shm_size")}

    steps: list[Step] = [
        ClaimName("pods", name, note),
        LoadProgram("nsrun-init", "init:fd"),
        LoadProgram("nsrun-pause", "pause:fd"),
    ]

    if spec["limits"]:
        steps.append(LimitPod(spec["cgroup"], spec["limits"]))
    steps.append(MakeCgroup(f"{spec['cgroup']}/pause" if spec["cgroup"] else "", {}, spec["cgroup"]))
    held: list[str] = []
    if own_net:
        steps.append(NewNetns())
    if bridge:
        steps.append(ConnectPod(network.get("wanted_ip", ""), network.get("subnet", "")))
    if own_net:
        steps.append(ConfigurePod(bridge))
    if bridge:
        holders = [HoldPort(p["host_ip"], p["host_port"], p["pod_port"]) for p in ports]
        table_step = PublishTable(table, tuple((p["host_ip"], p["host_port"], p["pod_port"]) for p in ports))
        held = [h.handle for h in holders] + [table_step.handle]
        steps += [*holders, table_step]

    flags = kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS | kernel.CLONE_NEWPID
    steps.append(Launch("net:fd" if own_net else "", kernel.CLONE_NEWNET if own_net else 0, flags))

    steps += [
        Undumpable(),
        MakePrivate(),
        TmpfsRoot("mode=755,size=256k"),
        Mount("proc", "/proc", "", SAFE, "PID 1's own view; members mount another, for themselves."),
        Mount("tmpfs", "/dev/shm", f"mode=1777,size={spec['shm_size']}", SAFE, "The pod's shared memory: /dev/shm is no part of the IPC namespace, so it must be one tmpfs for all."),
        Mount("mqueue", "/dev/mqueue", "", SAFE, "POSIX message queues of the pod's IPC namespace."),
        MakeDirectory("/etc"),
        MakeDirectory("/member"),
        *(WriteFile(path, text) for path, text in spec["files"].items()),
        SetHostname(spec["hostname"]),
    ]  # fmt: skip
    if own_net:
        steps.append(
            WriteProc(
                "/proc/sys/net/ipv4/ip_unprivileged_port_start",
                "0",
                "A member that is not root may listen on :80, with no capability.",
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
        SetUser(PAUSE_UID, PAUSE_UID, (), 0),
        SetCapabilities(0),
        ExecutePause("pause:fd", tuple(held)),
        WriteNote("pods", name, note),
        Release(),
    ]
    return Plan(f"pod create {name}", steps, {"ready": True, "spec": spec})
