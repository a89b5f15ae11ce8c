# SPDX-License-Identifier: Apache-2.0
"""What nsrun-oci tells of itself: version, usage, features, and a config.json to begin with."""

from __future__ import annotations

import os

from nsrun.errors import BadInput
from nsrun.linux import CAPABILITIES
from nsrun.oci import config
from nsrun.oci.commands import COMMANDS, FLAG, GLOBAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


def number() -> str:
    """Return the version of nsrun."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("nsrun")
    except PackageNotFoundError:
        return "0"


def version() -> str:
    return f"nsrun-oci version {number()}\nspec: {config.SPEC_VERSION}\n"


#: What each command does.
ABOUT = {
    "create": "make a container, whose first process waits for start",
    "run": "create and start a container, stay with it, and remove it",
    "start": "let the first process of a created container become its program",
    "state": "print what a container is, as JSON",
    "kill": "send a signal (by default TERM) to the first process of a container, or to all",
    "delete": "remove a stopped or created container, or any with --force",
    "exec": "execute a command in a container",
    "list": "list containers",
    "ps": "list the processes of a container",
    "pause": "freeze the processes of a container",
    "resume": "let them go on",
    "update": "change the limits of a container",
    "events": "print what a container uses",
    "features": "print what config.json may ask for, as JSON",
    "spec": "write a config.json to begin with",
    "install": "tell podman, containerd or docker of the runtime nsrun (--etc DIRECTORY in place of /etc), or take that away (--remove)",
}


def option_words(options: Mapping[str, str]) -> list[str]:
    """Return options as they are typed."""
    return [f"--{name}{'' if kind == FLAG else ' VALUE'}" for name, kind in sorted(options.items())]


def usage(command: str = "") -> str:
    """Return the commands, or the options of one."""
    if command:
        what = "ENGINE" if command == "install" else "ID"
        lines = [f"Usage: nsrun-oci [OPTION...] {command} [OPTION...] {what}", "", f"{ABOUT[command].capitalize()}."]
    else:
        lines = ["Usage: nsrun-oci [OPTION...] COMMAND [OPTION...] ID", "", "Commands:"]
        lines += [f"  {name:<9} {about}" for name, about in ABOUT.items()]
    table = COMMANDS[command] if command else GLOBAL
    return "\n".join([*lines, "", "Options:", *(f"  {word}" for word in option_words(table)), ""])


def features() -> dict[str, Any]:
    """Return what can be in a config.json here: features.md of the specification."""
    from nsrun.oci.filters import FLAGS

    own = sorted(
        {*config.ATTRS, *config.PROPAGATION, *(f"r{name}" for name in config.ATTRS), "bind", "rbind", "idmap", "ridmap"}
    )
    machine = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}.get(os.uname().machine, "")
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": config.SPEC_VERSION,
        "hooks": list(config.HOOKS),
        "mountOptions": own,
        "linux": {
            "namespaces": sorted(config.NAMESPACES),
            "capabilities": [f"CAP_{name.upper()}" for name in CAPABILITIES],
            "cgroup": {"v1": True, "v2": True, "systemd": True, "systemdUser": False, "rdma": True},
            "seccomp": {
                "enabled": True,
                "actions": ["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP"],
                "operators": [f"SCMP_CMP_{name}" for name in ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")],
                "archs": [machine] if machine else [],
                "knownFlags": sorted(FLAGS),
                "supportedFlags": sorted(FLAGS),
            },
            "apparmor": {"enabled": True},
            "selinux": {"enabled": os.path.exists("/sys/fs/selinux/enforce")},
            "intelRdt": {"enabled": False},
            "mountExtensions": {"idmap": {"enabled": True}},
        },
        "annotations": {"org.nsrun.version": number()},
        "potentiallyUnsafeConfigAnnotations": [],
    }  # fmt: skip


def default_spec(rootless: bool) -> dict[str, Any]:
    """Return a config.json with which a shell runs."""
    caps = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
    safe = ["nosuid", "noexec", "nodev"]
    mounts: list[dict[str, Any]] = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", *([] if rootless else ["gid=5"])]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": [*safe, "mode=1777", "size=65536k"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": safe},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*safe, "ro"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": [*safe, "relatime", "ro"]},
    ]  # fmt: skip
    linux: dict[str, Any] = {
        "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")],
        "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"],
        "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
    }  # fmt: skip
    if rootless:
        del linux["resources"]
        mounts = [mount for mount in mounts if mount["type"] not in ("cgroup",)]
        linux["namespaces"] = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "user")]
        mounts = [mount for mount in mounts if mount["type"] != "sysfs"]
        mounts.append({"destination": "/sys", "type": "none", "source": "/sys", "options": ["rbind", *safe, "ro"]})
        linux["uidMappings"] = [{"containerID": 0, "hostID": os.geteuid(), "size": 1}]
        linux["gidMappings"] = [{"containerID": 0, "hostID": os.getegid(), "size": 1}]
    return {
        "ociVersion": config.SPEC_VERSION,
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {name: caps for name in ("bounding", "effective", "permitted")},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "nsrun",
        "mounts": mounts,
        "linux": linux,
    }


def write_spec(bundle: str, rootless: bool) -> None:
    """Write a config.json into a bundle.  Raise BadInput when there is one."""
    import json

    path = os.path.join(bundle, "config.json")
    try:
        with open(path, "xb") as file:
            file.write(json.dumps(default_spec(rootless), indent="\t").encode() + b"\n")
    except FileExistsError:
        raise BadInput(f"{path} exists already") from None
