# SPDX-License-Identifier: Apache-2.0
"""linux.resources as files of cgroups: which text goes into which file of which controller, for v1 and for v2.  Pure.

https://docs.kernel.org/admin-guide/cgroup-v1/ and https://docs.kernel.org/admin-guide/cgroup-v2.html.
"""

from __future__ import annotations

from nsrun.errors import BadInput
from nsrun.schema import is_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    Resources = dict[str, Any]

#: What every container may use whatever its rules say: to make any node, and to open those of a new /dev.
ALWAYS = (
    "c *:* m", "b *:* m", "c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm", "c 1:9 rwm", "c 5:0 rwm", "c 5:2 rwm", "c 136:* rwm",
)  # fmt: skip


class Setting:
    """One write: the controller that has to be there, the file, the text, and the field that asks for it."""

    __slots__ = ("controller", "field", "file", "text")

    def __init__(self, controller: str, file: str, text: str, field: str) -> None:
        self.controller, self.file, self.text, self.field = controller, file, text, field

    def __repr__(self) -> str:
        return f"{self.controller}/{self.file} = {self.text!r}"


def settings(resources: Resources, unified: bool) -> list[Setting]:
    """Return what is to be written, in an order that the kernel takes.  Raise BadInput for what this layout can't do."""
    if ((resources.get("memory") or {}).get("kernel") or 0) > 0:
        raise BadInput("linux.resources.memory.kernel: no kernel limits it any more; memory.limit counts it, too")
    found = _v2(resources) if unified else _v1(resources)
    if resources.get("unified"):
        if not unified:
            raise BadInput("linux.resources.unified: this machine has cgroup v1 controllers")
        for file, text in resources["unified"].items():
            if "/" in file or "." not in file:
                raise BadInput(f"linux.resources.unified: {file!r} is no file of a controller")
            found.append(Setting(file.partition(".")[0], file, text, f"unified.{file}"))
    return found


def rule(entry: dict[str, Any]) -> str:
    """Return a rule of the device cgroup: "c 1:3 rwm"."""
    kind = entry.get("type") or "a"
    numbers = ["*" if entry.get(name) in (None, -1) else str(entry[name]) for name in ("major", "minor")]
    access = entry.get("access") or "rwm"
    if set(access) - set("rwm"):
        raise BadInput(f"linux.resources.devices: access {access!r} is not of r, w and m")
    if kind == "a" and entry.get("allow") and (numbers != ["*", "*"] or set(access) != set("rwm")):
        raise BadInput("linux.resources.devices: a rule without a type (c or b) allows all of every device, not some")
    return "a *:* rwm" if kind == "a" else f"{'c' if kind == 'u' else kind} {':'.join(numbers)} {access}"


class DeviceRules:
    """The rules of a device cgroup as the kernel of v1 keeps them: what is allowed by default, and exceptions from it."""

    def __init__(self, rules: Sequence[dict[str, Any]]) -> None:
        self.allowed = True
        self.exceptions: dict[tuple[str, int | None, int | None], set[str]] = {}
        for entry in rules:
            self._add(bool(entry.get("allow")), *rule(entry).split(" "))
        for text in ALWAYS:
            self._add(True, *text.split(" "))

    def _add(self, allow: bool, kind: str, numbers: str, access: str) -> None:
        if kind == "a":
            self.allowed, self.exceptions = allow, {}
            return
        major, minor = (None if word == "*" else int(word) for word in numbers.split(":"))
        there = self.exceptions.setdefault((kind, major, minor), set())
        if allow == self.allowed:
            there.difference_update(access)
        else:
            there.update(access)

    def permits(self, kind: str, major: int, minor: int, access: str) -> bool:
        """Return what the program decides."""
        for (k, one, two), rwm in self.exceptions.items():
            if k == kind and one in (None, major) and two in (None, minor):
                if (set(access) <= rwm) if not self.allowed else (set(access) & rwm):
                    return not self.allowed
        return self.allowed

    def program(self) -> bytes:
        """Return the same as eBPF, for cgroup v2: bpf-helpers(7); struct bpf_cgroup_dev_ctx of linux/bpf.h."""
        from struct import pack

        def op(code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
            return pack("=BBhi", code, dst | src << 4, off, imm)

        load, move, exit = 0x61, 0xBF, op(0x95)
        code = op(load, 2, 1, 0) + op(move, 3, 2) + op(0x54, 2, imm=0xFFFF) + op(0x74, 3, imm=16)
        code += op(load, 4, 1, 4) + op(load, 5, 1, 8)
        bits = {"m": 1, "r": 2, "w": 4}
        for (kind, major, minor), access in self.exceptions.items():
            if not access:
                continue
            mask = sum(bits[letter] for letter in access)
            tests = [(0x55, 2, 2 if kind == "c" else 1)]  # type
            tests += [(0x55, 4, major)] if major is not None else []
            tests += [(0x55, 5, minor)] if minor is not None else []
            result = op(0xB7, 0, imm=int(not self.allowed)) + exit
            if self.allowed:  # any of it is refused
                last = op(move, 6, 3) + op(0x54, 6, imm=mask) + op(0x15, 6, off=2, imm=0)
            else:  # all of it has to be allowed
                last = op(move, 6, 3) + op(0x54, 6, imm=~mask & 7) + op(0x55, 6, off=2, imm=0)
            rest = last + result
            for number, (jump, register, value) in enumerate(tests):
                left = len(tests) - number - 1
                code += op(jump, register, off=left + len(rest) // 8, imm=value)
            code += rest
        return code + op(0xB7, 0, imm=int(self.allowed)) + exit


def _v1(resources: Resources) -> list[Setting]:
    found: list[Setting] = []

    def add(controller: str, file: str, value: Any, field: str) -> None:
        if value is not None:
            found.append(Setting(controller, file, str(int(value) if isinstance(value, bool) else value), field))

    if rules := resources.get("devices"):
        for entry in rules:
            found.append(
                Setting("devices", "devices.allow" if entry.get("allow") else "devices.deny", rule(entry), "devices")
            )
        found += [Setting("devices", "devices.allow", text, "devices") for text in ALWAYS]
    memory = resources.get("memory") or {}
    limit, swap = memory.get("limit") or None, memory.get("swap") or None  # 0 is none
    if limit == -1 and swap is None:
        swap = -1
    # The limit of memory alone may never be above that of both: the order depends on which of them grows (cgroups.apply).
    first = [("memory.limit_in_bytes", limit, "memory.limit"), ("memory.memsw.limit_in_bytes", swap, "memory.swap")]
    for file, value, field in first[::-1] if swap == -1 else first:
        add("memory", file, value, field)
    add("memory", "memory.soft_limit_in_bytes", memory.get("reservation") or None, "memory.reservation")
    add("memory", "memory.kmem.tcp.limit_in_bytes", memory.get("kernelTCP"), "memory.kernelTCP")
    add("memory", "memory.swappiness", memory.get("swappiness"), "memory.swappiness")
    if memory.get("disableOOMKiller"):
        add("memory", "memory.oom_control", 1, "memory.disableOOMKiller")
    cpu = resources.get("cpu") or {}
    add("cpu", "cpu.shares", cpu.get("shares") or None, "cpu.shares")
    add("cpu", "cpu.cfs_period_us", cpu.get("period") or None, "cpu.period")
    add("cpu", "cpu.cfs_quota_us", cpu.get("quota") or None, "cpu.quota")
    add("cpu", "cpu.cfs_burst_us", cpu.get("burst"), "cpu.burst")
    add("cpu", "cpu.rt_period_us", cpu.get("realtimePeriod") or None, "cpu.realtimePeriod")
    add("cpu", "cpu.rt_runtime_us", cpu.get("realtimeRuntime") or None, "cpu.realtimeRuntime")
    add("cpu", "cpu.idle", cpu.get("idle"), "cpu.idle")
    add("cpuset", "cpuset.cpus", cpu.get("cpus") or None, "cpu.cpus")
    add("cpuset", "cpuset.mems", cpu.get("mems") or None, "cpu.mems")
    if (pids := resources.get("pids")) and pids.get("limit") is not None:
        add("pids", "pids.max", "max" if pids["limit"] <= 0 else pids["limit"], "pids.limit")
    block = resources.get("blockIO") or {}
    add("blkio", "blkio.weight", block.get("weight") or None, "blockIO.weight")
    add("blkio", "blkio.leaf_weight", block.get("leafWeight") or None, "blockIO.leafWeight")
    for entry in block.get("weightDevice") or []:
        for key, file in (("weight", "blkio.weight_device"), ("leafWeight", "blkio.leaf_weight_device")):
            if entry.get(key):
                add("blkio", file, f"{entry['major']}:{entry['minor']} {entry[key]}", "blockIO.weightDevice")
    for key, file in (("ReadBps", "read_bps"), ("WriteBps", "write_bps"), ("ReadIOPS", "read_iops"), ("WriteIOPS", "write_iops")):  # fmt: skip
        for entry in block.get(f"throttle{key}Device") or []:
            text = f"{entry['major']}:{entry['minor']} {entry['rate']}"
            add("blkio", f"blkio.throttle.{file}_device", text, f"blockIO.throttle{key}Device")
    for entry in resources.get("hugepageLimits") or []:
        add("hugetlb", f"hugetlb.{_size(entry)}.limit_in_bytes", entry["limit"], "hugepageLimits")
    network = resources.get("network") or {}
    add("net_cls", "net_cls.classid", network.get("classID") or None, "network.classID")
    for entry in network.get("priorities") or []:
        add("net_prio", "net_prio.ifpriomap", f"{entry['name']} {entry['priority']}", "network.priorities")
    found += _rdma(resources)
    return found


def _v2(resources: Resources) -> list[Setting]:
    found: list[Setting] = []

    def add(controller: str, file: str, value: Any, field: str) -> None:
        if value is not None:
            found.append(Setting(controller, file, str(value), field))

    def most(value: Any) -> Any:
        return "max" if value == -1 else value

    memory = resources.get("memory") or {}
    limit, swap = memory.get("limit"), memory.get("swap")
    if limit == -1 and swap is None:
        swap = -1
    if swap is not None and swap not in (-1, 0):
        if limit in (None, 0, -1):
            raise BadInput("linux.resources.memory.swap: on cgroup v2 it counts from memory.limit, which is not set")
        if swap < limit:
            raise BadInput("linux.resources.memory.swap is below memory.limit")
        swap -= limit
    if swap is not None and not (swap == 0 and not limit):
        add("memory", "memory.swap.max", most(swap), "memory.swap")
    if limit:
        add("memory", "memory.max", most(limit), "memory.limit")
    if memory.get("reservation"):
        add("memory", "memory.low", most(memory["reservation"]), "memory.reservation")
    for name in ("kernelTCP", "swappiness"):
        if memory.get(name):
            raise BadInput(f"linux.resources.memory.{name}: cgroup v2 has nothing like it")
    if memory.get("disableOOMKiller"):
        raise BadInput("linux.resources.memory.disableOOMKiller: cgroup v2 has nothing like it")
    cpu = resources.get("cpu") or {}
    if cpu.get("shares"):
        weight = 1 + ((max(2, min(cpu["shares"], 262144)) - 2) * 9999) // 262142
        add("cpu", "cpu.weight", weight, "cpu.shares")
    if cpu.get("quota") or cpu.get("period"):
        quota = cpu.get("quota") or -1
        add("cpu", "cpu.max", f"{quota if quota > 0 else 'max'} {cpu.get('period') or 100000}", "cpu.quota")
    add("cpu", "cpu.max.burst", cpu.get("burst"), "cpu.burst")
    add("cpu", "cpu.idle", cpu.get("idle"), "cpu.idle")
    for name in ("realtimeRuntime", "realtimePeriod"):
        if cpu.get(name):
            raise BadInput(f"linux.resources.cpu.{name}: cgroup v2 has nothing like it")
    add("cpuset", "cpuset.cpus", cpu.get("cpus") or None, "cpu.cpus")
    add("cpuset", "cpuset.mems", cpu.get("mems") or None, "cpu.mems")
    if (pids := resources.get("pids")) and pids.get("limit") is not None:
        add("pids", "pids.max", "max" if pids["limit"] <= 0 else pids["limit"], "pids.limit")
    block = resources.get("blockIO") or {}
    if block.get("weight"):
        add("io", "io.weight", f"default {1 + (max(10, block['weight']) - 10) * 9999 // 990}", "blockIO.weight")
    for name in ("leafWeight", "weightDevice"):
        if block.get(name):
            raise BadInput(f"linux.resources.blockIO.{name}: not done by nsrun-oci on cgroup v2")
    for key, word in (("ReadBps", "rbps"), ("WriteBps", "wbps"), ("ReadIOPS", "riops"), ("WriteIOPS", "wiops")):
        for entry in block.get(f"throttle{key}Device") or []:
            text = f"{entry['major']}:{entry['minor']} {word}={entry['rate'] or 'max'}"
            add("io", "io.max", text, f"blockIO.throttle{key}Device")
    for entry in resources.get("hugepageLimits") or []:
        add("hugetlb", f"hugetlb.{_size(entry)}.max", entry["limit"], "hugepageLimits")
    network = resources.get("network") or {}
    for name in ("classID", "priorities"):
        if network.get(name):
            raise BadInput(f"linux.resources.network.{name}: cgroup v2 has nothing like it")
    found += _rdma(resources)
    return found


def _size(entry: dict[str, Any]) -> str:
    size = str(entry["pageSize"])
    if not is_number(size[:-2]) or size[-2:] not in ("KB", "MB", "GB"):
        raise BadInput(f"linux.resources.hugepageLimits: {size!r} is no size such as 2MB")
    return size


def _rdma(resources: Resources) -> list[Setting]:
    found = []
    for name, entry in (resources.get("rdma") or {}).items():
        parts = [
            f"{word}={entry[key]}"
            for word, key in (("hca_handle", "hcaHandles"), ("hca_object", "hcaObjects"))
            if entry.get(key) is not None
        ]
        found.append(Setting("rdma", "rdma.max", " ".join([name, *parts]), "rdma"))
    return found
