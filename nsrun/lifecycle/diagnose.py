# SPDX-License-Identifier: Apache-2.0
"""Explain why a command could not be executed.

The kernel returns ENOENT for a missing program, a missing interpreter, a missing loader and a script with CRLF alike
(moby#40859), so we look into the file, inside the root.  execve(2), elf(5).
"""

from __future__ import annotations

import os
import struct
from errno import E2BIG, EACCES, ELOOP, ENOENT, ENOEXEC, ENOTDIR

from nsrun import kernel
from nsrun.errors import KernelError, errno_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsrun.plan.process import Execute

MACHINES = {
    3: "i386",
    8: "MIPS",
    20: "PowerPC",
    21: "ppc64",
    22: "s390x",
    40: "ARM",
    62: "x86-64",
    183: "aarch64",
    243: "RISC-V",
}


def _read(root: int, path: str, size: int = 65536) -> bytes | None:
    try:
        fd = kernel.open_in_root(root, path, os.O_RDONLY | os.O_NONBLOCK)
    except KernelError:
        return None
    try:
        return os.read(fd, size)
    except OSError:
        return None
    finally:
        os.close(fd)


def _exists(root: int, path: str) -> bool:
    try:
        os.close(kernel.open_in_root(root, path, os.O_PATH))
        return True
    except KernelError:
        return False


def _loader(data: bytes) -> str:
    """Return PT_INTERP of a 64-bit little-endian ELF file, "" when it has none."""
    if len(data) < 64 or data[4:6] != b"\2\1":
        return ""
    (offset,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    for i in range(count):
        at = offset + i * size
        if at + 56 > len(data):
            break
        kind, _, start, _, _, length = struct.unpack_from("<IIQQQQ", data, at)
        if kind == 3:
            return os.fsdecode(data[start : start + length].rstrip(b"\0"))
    return ""


def why_not(root_path: str, step: Execute, errno: int, detail: str) -> tuple[str, str]:
    """Return (message, hint) for an exec that failed with `errno` at `detail`."""
    command = step.argv[0]
    path = detail or command
    if errno == ENOENT and "/" not in path:
        search = next((e[5:] for e in step.env if e.startswith("PATH=")), "")
        return (
            f"command {command!r} not found in the member's PATH ({search})",
            "give its path, or set PATH with -e",
        )
    if errno == E2BIG:
        return (
            f"{path}: its arguments and its environment are larger than execve(2) allows: {errno_text(errno)}",
            "at most 128 KiB each, and a quarter of the stack limit in all: use a file, or raise ulimit -s",
        )
    try:
        root = os.open(root_path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return f"{path}: {errno_text(errno)}", ""
    try:
        inside = path if path.startswith("/") else os.path.join(step.cwd, path)
        data = _read(root, inside)
        if errno == EACCES:
            return (
                f"{path} is not executable: {errno_text(errno)}",
                f"chmod +x {path} in the rootfs; is it a directory, or may the user not execute it?",
            )
        if errno in (ENOENT, ENOTDIR, ELOOP) and data is None:
            return f"{path} does not exist in the rootfs", "look into the rootfs: a symlink there may be dangling"
        data = data or b""
        if data[:2] == b"#!":
            line = data[2:].split(b"\n", 1)[0]
            fields = line.split()
            interpreter = os.fsdecode(fields[0]) if fields else ""
            if line.endswith(b"\r"):
                return (
                    f"{path} is a script with CRLF line ends: its interpreter would be {interpreter!r} with a carriage return",
                    f"sed -i 's/\\r$//' {path}",
                )
            if not _exists(root, interpreter):
                return (
                    f"{path} is a script whose interpreter {interpreter} does not exist in the rootfs",
                    "install the interpreter, or correct the first line",
                )
        elif data[:4] == b"\x7fELF" and len(data) < 20:
            return f"{path} is not a complete program: {errno_text(errno)}", "it was cut off; copy it again"
        elif data[:4] == b"\x7fELF":
            if len(data) < 20:
                return f"{path} is cut off: it begins as an ELF file and is {len(data)} bytes long", "copy it again"
            (machine,) = struct.unpack_from(">H" if data[5:6] == b"\2" else "<H", data, 18)
            ours = {"x86_64": 62, "aarch64": 183}.get(os.uname().machine, 0)
            if errno == ENOEXEC or (ours and machine != ours and not (ours == 62 and machine == 3)):
                return (
                    f"{path} is for {MACHINES.get(machine, f'machine {machine}')}, this machine is {os.uname().machine}",
                    "use a rootfs of this architecture, or qemu-user with binfmt_misc",
                )
            loader = _loader(data)
            if loader and not _exists(root, loader):
                return (
                    f"{path} needs the loader {loader}, which does not exist in the rootfs",
                    "the C library is missing or is another one (glibc, musl); a static program needs none",
                )
        elif errno == ENOEXEC:
            return (
                f"{path} is neither a program nor a script with #!: {errno_text(errno)}",
                "add a first line such as #!/bin/sh",
            )
        return f"{path}: {errno_text(errno)}", ""
    finally:
        os.close(root)
