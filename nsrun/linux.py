# SPDX-License-Identifier: Apache-2.0
"""Tables of the kernel's own names and numbers; nothing is imported, so that parsers need neither a build nor a machine.

capabilities(7), getrlimit(2), null(4), random(4), tty(4).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

#: In the order of their bits: linux/capability.h.
CAPABILITIES = (
    "chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable net_bind_service "
    "net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct sys_admin "
    "sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write audit_control setfcap mac_override "
    "mac_admin syslog wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore"
).split()

#: Resource limits by the names of ulimit and prlimit(1): asm-generic/resource.h.
RESOURCES = {
    "cpu": 0, "fsize": 1, "data": 2, "stack": 3, "core": 4, "rss": 5, "nproc": 6, "nofile": 7, "memlock": 8,
    "as": 9, "locks": 10, "sigpending": 11, "msgqueue": 12, "nice": 13, "rtprio": 14, "rttime": 15,
}  # fmt: skip
UNLIMITED = (1 << 64) - 1

#: The highest user or group id: 4294967295 stands for "leave it as it is", chown(2).
MAX_ID = (1 << 32) - 2

#: The devices that every root has: name, major, minor.
DEVICE_NODES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0))


def capability_names(mask: int) -> list[str]:
    """Return the names of the capabilities in a bit mask, in the order of their bits."""
    return [name for bit, name in enumerate(CAPABILITIES) if mask >> bit & 1]


def capability_mask(names: Iterable[str]) -> int:
    """Return the bit mask of capabilities, named in lower case without "cap_".  Raise ValueError for an unknown name."""
    return sum(1 << CAPABILITIES.index(name) for name in set(names))
