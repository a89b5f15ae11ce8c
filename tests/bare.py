# SPDX-License-Identifier: Apache-2.0
"""bare.py ERRNO COMMAND…: execute a command to which, and to whatever it starts, socket(AF_NETLINK, _, NETLINK_NETFILTER) fails.

With EPROTONOSUPPORT that is what a kernel without nfnetlink answers.  seccomp(2); x86_64 and aarch64.
"""

import ctypes
import os
import platform
import struct
import sys

#: What the architecture calls itself in a filter, and socket(2): linux/audit.h, asm/unistd.h.
MACHINES = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
AF_NETLINK, NETLINK_NETFILTER = 16, 12


def refuse(errno: int) -> None:
    arch, call = MACHINES[platform.machine()]
    lines = [
        (LOAD, 0, 0, 4), (EQUAL, 0, 7, arch),
        (LOAD, 0, 0, 0), (EQUAL, 0, 5, call),
        (LOAD, 0, 0, 16), (EQUAL, 0, 3, AF_NETLINK),
        (LOAD, 0, 0, 32), (EQUAL, 0, 1, NETLINK_NETFILTER),
        (RETURN, 0, 0, 0x50000 | errno), (RETURN, 0, 0, 0x7FFF0000),
    ]  # fmt: skip
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
    program = struct.pack("HxxxxxxQ", len(lines), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(22, 2, program, 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER; root needs no PR_SET_NO_NEW_PRIVS
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_SECCOMP)")


if __name__ == "__main__":
    refuse(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
