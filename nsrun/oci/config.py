# SPDX-License-Identifier: Apache-2.0
"""config.json: its shape, what it may not say, and what its words mean in numbers.  Pure.

Nothing that the specification names is passed over: what nsrun-oci does not do is refused by the path of the field.  Fields
that the specification does not know are ignored, as it asks.
"""

from __future__ import annotations

from nsrun.errors import BadInput
from nsrun.linux import CAPABILITIES, MAX_ID, RESOURCES, UNLIMITED
from nsrun.schema import FLAG, STRING, WORD, Number, OneOf, Text, check, is_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    Config = dict[str, Any]

SPEC_VERSION = "1.2.0"

_ID, _COUNT, _ANY = Number(0, MAX_ID), Number(), Number(-(1 << 63), (1 << 64) - 1)
_PATH = Text("a path", 4095, raw=True)
_WORDS = [WORD]
_MAP = [{"containerID": _ID, "hostID": _ID, "size": Number(1, 1 << 32)}]
_HOOK = [{"path": _PATH, "args?": _WORDS, "env?": _WORDS, "timeout?": Number(1, 1 << 31)}]
_LIMIT = Number(0, UNLIMITED)

NAMESPACES = ("mount", "pid", "network", "ipc", "uts", "user", "cgroup", "time")
HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
CAPABILITY_SETS = ("bounding", "effective", "inheritable", "permitted", "ambient")

PROCESS: dict[str, Any] = {
    "terminal?": FLAG,
    "consoleSize?": {"height": Number(0, 65535), "width": Number(0, 65535)},
    "cwd": _PATH,
    "env?": _WORDS,
    "args?": _WORDS,
    "rlimits?": [{"type": STRING, "soft": _LIMIT, "hard": _LIMIT}],
    "apparmorProfile?": STRING,
    "selinuxLabel?": STRING,
    "capabilities?": {f"{name}?": [STRING] for name in CAPABILITY_SETS},
    "noNewPrivileges?": FLAG,
    "oomScoreAdj?": Number(-1000, 1000),
    "scheduler?": {
        "policy": STRING, "nice?": Number(-20, 19), "priority?": Number(-(1 << 31), (1 << 31) - 1), "flags?": [STRING],
        "runtime?": _LIMIT, "deadline?": _LIMIT, "period?": _LIMIT,
    },
    "ioPriority?": {"class": STRING, "priority?": Number(0, 7)},
    "user?": {"uid?": _ID, "gid?": _ID, "umask?": Number(0, 0o7777), "additionalGids?": [_ID]},
}  # fmt: skip

_DEVICE = {
    "type": OneOf("c", "b", "u", "p"), "path": _PATH, "major?": Number(-1, 0xFFF), "minor?": Number(-1, 0xFFFFF),
    "fileMode?": Number(0, 0o7777), "uid?": _ID, "gid?": _ID,
}  # fmt: skip

_THROTTLE = [{"major": _COUNT, "minor": _COUNT, "rate": _LIMIT}]
RESOURCE_SHAPE: dict[str, Any] = {
    "unified?": {str: STRING},
    "devices?": [{"allow?": FLAG, "type?": OneOf("a", "b", "c", "u", ""), "major?": Number(-1, 0xFFF), "minor?": Number(-1, 0xFFFFF), "access?": Text("of r, w and m", 3)}],
    "pids?": {"limit?": _ANY},
    "blockIO?": {
        "weight?": Number(0, 65535), "leafWeight?": Number(0, 65535),
        "weightDevice?": [{"major": _COUNT, "minor": _COUNT, "weight?": Number(0, 65535), "leafWeight?": Number(0, 65535)}],
        "throttleReadBpsDevice?": _THROTTLE, "throttleWriteBpsDevice?": _THROTTLE, "throttleReadIOPSDevice?": _THROTTLE, "throttleWriteIOPSDevice?": _THROTTLE,
    },
    "cpu?": {
        "shares?": _LIMIT, "quota?": _ANY, "burst?": _LIMIT, "period?": _LIMIT, "realtimeRuntime?": _ANY, "realtimePeriod?": _LIMIT,
        "cpus?": STRING, "mems?": STRING, "idle?": Number(-(1 << 31), 1 << 31),
    },
    "memory?": {
        "kernel?": _ANY, "kernelTCP?": _ANY, "limit?": _ANY, "reservation?": _ANY, "swap?": _ANY, "swappiness?": _LIMIT,
        "disableOOMKiller?": FLAG, "useHierarchy?": FLAG, "checkBeforeUpdate?": FLAG,
    },
    "hugepageLimits?": [{"pageSize": STRING, "limit": _LIMIT}],
    "network?": {"classID?": Number(0, (1 << 32) - 1), "priorities?": [{"name": STRING, "priority": _COUNT}]},
    "rdma?": {str: {"hcaHandles?": _COUNT, "hcaObjects?": _COUNT}},
}  # fmt: skip

_SECCOMP = {
    "defaultAction": STRING, "defaultErrnoRet?": Number(0, 4095), "flags?": [STRING], "listenerPath?": STRING, "listenerMetadata?": STRING,
    "architectures?": [STRING],
    "syscalls?": [{"names": [STRING], "action": STRING, "errnoRet?": Number(0, 4095), "args?": [{"index": Number(0, 5), "value": _LIMIT, "valueTwo?": _LIMIT, "op": STRING}]}],
}  # fmt: skip

SHAPE: dict[str, Any] = {
    "ociVersion": STRING,
    "root": {"path": _PATH, "readonly?": FLAG},
    "mounts?": [{
        "destination": _PATH, "source?": _PATH, "options?": _WORDS, "type?": STRING, "uidMappings?": _MAP, "gidMappings?": _MAP,
    }],
    "process": PROCESS,
    "hostname?": STRING,
    "domainname?": STRING,
    "hooks?": {f"{name}?": _HOOK for name in HOOKS},
    "annotations?": {str: STRING},
    "linux?": {
        "devices?": [_DEVICE],
        "uidMappings?": _MAP,
        "gidMappings?": _MAP,
        "sysctl?": {str: STRING},
        "cgroupsPath?": _PATH,
        "resources?": RESOURCE_SHAPE,
        "rootfsPropagation?": STRING,
        "seccomp?": _SECCOMP,
        "namespaces?": [{"type": OneOf(*NAMESPACES), "path?": _PATH}],
        "maskedPaths?": [_PATH],
        "readonlyPaths?": [_PATH],
        "mountLabel?": STRING,
        "timeOffsets?": {str: {"secs?": Number(-(1 << 40), 1 << 40), "nanosecs?": Number(0, 999_999_999)}},
        "personality?": {"domain": OneOf("LINUX", "LINUX32"), "flags?": [STRING]},
    },
}  # fmt: skip

#: What the specification has and nsrun-oci does not do; `features` does not list it, either.
REFUSED = {
    "linux.intelRdt": "the kernel's resctrl is not driven by nsrun-oci",
    "linux.memoryPolicy": "set_mempolicy(2) is not called by nsrun-oci",
    "linux.netDevices": "devices of the network are not moved by nsrun-oci",
    "process.execCPUAffinity": "the affinity of an exec is not set by nsrun-oci",
}


def load(document: Config, what: str) -> Config:
    """Return the document of a config.json.  Raise BadInput when it has another shape, or names what is not done."""
    check(document, SHAPE, what)
    version = document["ociVersion"]
    major, dot, rest = version.partition(".")
    if major != "1" or not dot or not is_number(rest[:1]):
        raise BadInput(f"{what}: ociVersion {version!r} is not supported: this is {SPEC_VERSION}")
    for path, why in REFUSED.items():
        if _at(document, path):
            raise BadInput(f"{what}: {path}: {why}")
    _check_process(document["process"], what)
    _check_linux(document, what)
    return document


def load_process(document: Config, what: str) -> Config:
    """Return the document of an `exec --process` file.  Raise BadInput."""
    check(document, PROCESS, what)
    if document.get("execCPUAffinity"):
        raise BadInput(f"{what}: execCPUAffinity: {REFUSED['process.execCPUAffinity']}")
    _check_process(document, what)
    return document


def _at(document: Any, path: str) -> Any:
    for part in path.split("."):
        document = document.get(part) if isinstance(document, dict) else None
    return document


def _check_process(process: Config, what: str) -> None:
    if not process.get("args"):
        raise BadInput(f"{what}: process.args is empty")
    if not process["cwd"].startswith("/"):
        raise BadInput(f"{what}: process.cwd {process['cwd']!r} is not an absolute path")
    seen = set()
    for entry in process.get("rlimits") or []:
        name = entry["type"]
        if name.removeprefix("RLIMIT_").lower() not in RESOURCES or not name.startswith("RLIMIT_"):
            raise BadInput(f"{what}: process.rlimits: unknown type {name!r}")
        if name in seen:
            raise BadInput(f"{what}: process.rlimits: {name} is set twice")
        if entry["soft"] > entry["hard"]:
            raise BadInput(f"{what}: process.rlimits: {name}: soft is above hard")
        seen.add(name)
    for name in (process.get("capabilities") or {}) and CAPABILITY_SETS:
        capabilities(process, name, what)
    scheduler(process, what)
    io_priority(process, what)


def _check_linux(document: Config, what: str) -> None:
    linux = document.get("linux") or {}
    kinds = [entry["type"] for entry in linux.get("namespaces") or []]
    for kind in kinds:
        if kinds.count(kind) > 1:
            raise BadInput(f"{what}: linux.namespaces: {kind} is named twice")
    for entry in linux.get("namespaces") or []:
        if entry.get("path") and not entry["path"].startswith("/"):
            raise BadInput(f"{what}: linux.namespaces: the path of {entry['type']} is not absolute")
    new_time = any(entry["type"] == "time" and not entry.get("path") for entry in linux.get("namespaces") or [])
    for clock in linux.get("timeOffsets") or {}:
        if not new_time:
            raise BadInput(f"{what}: linux.timeOffsets needs a new time namespace")
        if clock not in ("monotonic", "boottime"):
            raise BadInput(f"{what}: linux.timeOffsets: {clock!r} is no clock that can be set")
    if "mount" not in kinds:
        raise BadInput(f"{what}: linux.namespaces: without a mount namespace the host's own mounts would be changed")
    for name in ("hostname", "domainname"):
        if document.get(name) and "uts" not in kinds:
            raise BadInput(f"{what}: {name} needs a uts namespace")
    user = next((entry for entry in linux.get("namespaces") or [] if entry["type"] == "user"), None)
    mapped = linux.get("uidMappings") and linux.get("gidMappings")
    if user and not user.get("path") and not mapped:
        raise BadInput(f"{what}: linux.uidMappings and linux.gidMappings are needed for a new user namespace")
    if not user and (linux.get("uidMappings") or linux.get("gidMappings")):
        raise BadInput(f"{what}: linux.uidMappings needs a user namespace")
    for mount in document.get("mounts") or []:
        if not mount["destination"].startswith("/"):  # runc takes it, as relative to /
            mount["destination"] = f"/{mount['destination']}"
        if bool(mount.get("uidMappings")) != bool(mount.get("gidMappings")):
            raise BadInput(f"{what}: mounts: {mount['destination']}: uidMappings and gidMappings go together")
    for name in ("maskedPaths", "readonlyPaths"):
        for path in linux.get(name) or []:
            if not path.startswith("/"):
                raise BadInput(f"{what}: linux.{name}: {path!r} is not an absolute path")
    for device in linux.get("devices") or []:
        if not device["path"].startswith("/"):
            raise BadInput(f"{what}: linux.devices: {device['path']!r} is not an absolute path")
        if device["type"] != "p" and (device.get("major") is None or device.get("minor") is None):
            raise BadInput(f"{what}: linux.devices: {device['path']}: major and minor are missing")
    for name in (f"hooks.{name}" for name in HOOKS):
        for hook in _at(document, name) or []:
            if not hook["path"].startswith("/"):
                raise BadInput(f"{what}: {name}: {hook['path']!r} is not an absolute path")
    if linux.get("rootfsPropagation") and linux["rootfsPropagation"] not in PROPAGATION:
        raise BadInput(f"{what}: linux.rootfsPropagation: {linux['rootfsPropagation']!r} is unknown")
    for key in linux.get("sysctl") or {}:
        check_sysctl(key, kinds, what)
    if flags := [f for f in _at(linux, "personality.flags") or []]:
        raise BadInput(f"{what}: linux.personality.flags: {flags[0]!r}: there are none yet")


#: The sysctls that belong to a namespace, by what they begin with: namespaces(7).
_SYSCTLS = (
    ("ipc", ("fs.mqueue.", "kernel.sem", "kernel.msg", "kernel.shm")),
    ("network", ("net.",)),
    ("uts", ("kernel.domainname",)),
    ("user", ("user.",)),
)


def check_sysctl(key: str, kinds: Sequence[str], what: str) -> None:
    """Raise BadInput for a sysctl that would change the host's, because its namespace is not the container's."""
    name = key.replace("/", ".")
    if ".." in name or not name:
        raise BadInput(f"{what}: linux.sysctl: {key!r} is no name")
    if name == "kernel.hostname":
        raise BadInput(f"{what}: linux.sysctl: kernel.hostname is set by hostname")
    for kind, heads in _SYSCTLS:
        if name.startswith(heads):
            if kind in kinds:
                return
            raise BadInput(f"{what}: linux.sysctl: {key} needs a {kind} namespace of the container's")
    raise BadInput(f"{what}: linux.sysctl: {key} belongs to no namespace, so it would change the host's")


# ---- words → numbers --------------------------------------------------------------------------------------------


def capabilities(process: Config, name: str, what: str = "config.json") -> int:
    """Return one of the sets of a process as a bit mask.  Raise BadInput for an unknown name."""
    mask = 0
    for word in (process.get("capabilities") or {}).get(name) or []:
        short = word.upper().removeprefix("CAP_").lower()
        if short not in CAPABILITIES:
            raise BadInput(f"{what}: process.capabilities.{name}: unknown capability {word!r}")
        mask |= 1 << CAPABILITIES.index(short)
    return mask


_POLICIES = {"SCHED_OTHER": 0, "SCHED_FIFO": 1, "SCHED_RR": 2, "SCHED_BATCH": 3, "SCHED_ISO": 4, "SCHED_IDLE": 5, "SCHED_DEADLINE": 6}  # fmt: skip
_SCHED_FLAGS = {
    "SCHED_FLAG_RESET_ON_FORK": 1, "SCHED_FLAG_RECLAIM": 2, "SCHED_FLAG_DL_OVERRUN": 4, "SCHED_FLAG_KEEP_POLICY": 8,
    "SCHED_FLAG_KEEP_PARAMS": 16, "SCHED_FLAG_UTIL_CLAMP_MIN": 32, "SCHED_FLAG_UTIL_CLAMP_MAX": 64,
}  # fmt: skip


def scheduler(process: Config, what: str = "config.json") -> tuple[int, int, int, int, int, int, int] | None:
    """Return the arguments of sched_setattr(2); None when there is nothing to set."""
    found = process.get("scheduler")
    if not found:
        return None
    if found["policy"] not in _POLICIES:
        raise BadInput(f"{what}: process.scheduler.policy: {found['policy']!r} is unknown")
    flags = 0
    for word in found.get("flags") or []:
        if word not in _SCHED_FLAGS:
            raise BadInput(f"{what}: process.scheduler.flags: {word!r} is unknown")
        flags |= _SCHED_FLAGS[word]
    numbers = [int(found.get(name) or 0) for name in ("nice", "priority", "runtime", "deadline", "period")]
    return (_POLICIES[found["policy"]], flags, *numbers)  # type: ignore[return-value]


_IO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}


def io_priority(process: Config, what: str = "config.json") -> int | None:
    """Return the argument of ioprio_set(2); None when there is nothing to set."""
    found = process.get("ioPriority")
    if not found:
        return None
    if found["class"] not in _IO_CLASSES:
        raise BadInput(f"{what}: process.ioPriority.class: {found['class']!r} is unknown")
    return _IO_CLASSES[found["class"]] << 13 | int(found.get("priority") or 0)


# nsrun.kernel has some of these, but what is pure imports no extension.
MS_REC, MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED = 0x4000, 1 << 17, 1 << 18, 1 << 19, 1 << 20
_KINDS = {"unbindable": MS_UNBINDABLE, "private": MS_PRIVATE, "slave": MS_SLAVE, "shared": MS_SHARED}
PROPAGATION = {**_KINDS, **{f"r{name}": bit | MS_REC for name, bit in _KINDS.items()}}

_RDONLY, _NOSUID, _NODEV, _NOEXEC, _NOATIME, _STRICT, _ATIME, _NODIRATIME, _NOSYMFOLLOW = (
    1,
    2,
    4,
    8,
    0x10,
    0x20,
    0x70,
    0x80,
    0x200000,
)
#: Options of a mount itself: what mount_setattr(2) sets, and what it clears.
ATTRS = {
    "ro": (_RDONLY, 0), "rw": (0, _RDONLY), "nosuid": (_NOSUID, 0), "suid": (0, _NOSUID), "nodev": (_NODEV, 0), "dev": (0, _NODEV),
    "noexec": (_NOEXEC, 0), "exec": (0, _NOEXEC), "noatime": (_NOATIME, _ATIME), "atime": (0, _ATIME), "strictatime": (_STRICT, _ATIME),
    "nostrictatime": (0, _ATIME), "relatime": (0, _ATIME), "norelatime": (_STRICT, _ATIME), "nodiratime": (_NODIRATIME, 0),
    "diratime": (0, _NODIRATIME), "nosymfollow": (_NOSYMFOLLOW, 0), "symfollow": (0, _NOSYMFOLLOW),
}  # fmt: skip
_IGNORED = {"defaults", "loud", "async", "nomand", "noiversion", "silent", "nolazytime", "acl"}
#: What is of this system and no option of a file system, and what we do with it.
_OWN = {"bind", "rbind", "idmap", "ridmap", "remount", "tmpcopyup"}


class MountOptions:
    """The options of one mount, sorted: attributes of this mount, of all below it, propagation, and the file system's own."""

    def __init__(self, options: Sequence[str], where: str) -> None:
        self.set = self.clear = self.below_set = self.below_clear = self.propagation = 0
        self.data: list[str] = []
        self.own: set[str] = set()
        for option in options:
            if option in ATTRS:
                on, off = ATTRS[option]
                self.set, self.clear = self.set & ~(off | on) | on, self.clear & ~on | off
            elif option[:1] == "r" and option[1:] in ATTRS:
                on, off = ATTRS[option[1:]]
                self.below_set, self.below_clear = self.below_set & ~(off | on) | on, self.below_clear & ~on | off
            elif option in PROPAGATION:
                self.propagation = PROPAGATION[option]
            elif option in _OWN:
                self.own.add(option)
            elif option not in _IGNORED and option:
                self.data.append(option)
        if "remount" in self.own:
            raise BadInput(f"config.json: mounts: {where}: the option 'remount' is not done by nsrun-oci")

    @property
    def bind(self) -> bool:
        return bool(self.own & {"bind", "rbind"})


def maps_of(linux: Config) -> dict[str, list[list[int]]]:
    """Return the maps of a user namespace."""
    return {
        kind: [[entry["containerID"], entry["hostID"], entry["size"]] for entry in linux.get(f"{kind}Mappings") or []]
        for kind in ("uid", "gid")
    }


def to_host(ranges: Sequence[Sequence[int]], ident: int) -> int:
    """Return the id of the host that an id of a user namespace is; -1 when it has none.  Without ranges it is the same."""
    if not ranges:
        return ident
    for inside, outside, size in ranges:
        if inside <= ident < inside + size:
            return outside + ident - inside
    return -1
