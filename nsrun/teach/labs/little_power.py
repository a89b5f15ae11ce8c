# SPDX-License-Identifier: Apache-2.0
"""Lab 11: little power."""

from __future__ import annotations

import os
import shutil
import sys

from nsrun.teach import facts, scene
from nsrun.teach.facts import Process
from nsrun.teach.lab import USER_NAMESPACES, UTIL_LINUX, Lab, Row, Work, best, tool

_WWW = 33  # www-data of Debian
_FILTER = '''\
"""Install a seccomp filter in which ptrace(2) fails with EPERM, then execute the command of our arguments: seccomp(2)."""

import ctypes
import os
import struct
import sys

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
PTRACE = {"x86_64": 101, "aarch64": 117}[os.uname().machine]
PROGRAM = [  # classic BPF: operation, how far to jump if true and if false, operand
    (0x20, 0, 0, 0),  # load the number of the call
    (0x15, 0, 1, PTRACE),  # is it ptrace?
    (0x06, 0, 0, 0x00050001),  # then return SECCOMP_RET_ERRNO | EPERM
    (0x06, 0, 0, 0x7FFF0000),  # otherwise return SECCOMP_RET_ALLOW
]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in PROGRAM))
fprog = ctypes.create_string_buffer(struct.pack("HP", len(PROGRAM), ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, fprog, 0, 0):
    sys.exit(f"prctl(PR_SET_SECCOMP): {os.strerror(ctypes.get_errno())}")
os.execvp(sys.argv[1], sys.argv[1:])
'''


def make_scene(work: Work) -> dict[str, str]:
    """Make a directory that uid 33 can read, although it can't pass through those above it."""
    site, rootfs = f"{work.directory}/site", scene.rootfs(work)
    os.mkdir(site)
    shutil.copy(f"{rootfs}/bin/busybox", f"{site}/busybox")
    with open(f"{site}/filter.py", "w") as file:
        file.write(_FILTER)
    for path, mode in ((site, 0o755), (f"{site}/busybox", 0o755), (f"{site}/filter.py", 0o644)):
        os.chmod(path, mode)
    python = sys.executable
    return {"SITE": site, "ROOTFS": rootfs, "FILTER": f"{python} {site}/filter.py", "UNSHARE": scene.unshare(ids=True)}


def check(work: Work) -> list[Row]:
    servers = {}
    for process in work.away("net"):
        for sock in facts.tcp(process.pid):
            if sock.state == "LISTEN" and process.pid in facts.holders(sock.inode, [process.pid]):
                servers[process.pid, sock.port] = process
    ports = {process.pid: port for (_, port), process in servers.items()}
    return best({p.pid: p for p in servers.values()}.values(), lambda process: _rows(work, process, ports))


def _rows(work: Work, process: Process | None, ports: dict[int, int]) -> list[Row]:
    pid: int | str = process.pid if process else "PID"
    nobody = "" if process else "no process of yours listens in another network namespace"
    status = process.status if process else {}
    see = f"grep -E 'Uid|Cap|NoNewPrivs|Seccomp' /proc/{pid}/status"

    def row(name: str, ok: bool, wanted: str, seen: str, command: str = see) -> Row:
        return Row(name, process is not None and ok, wanted, nobody or seen, command)

    port, uid = (ports[process.pid], facts.uid_inside(process)) if process else (0, -1)
    uids = set(status.get("Uid", "").split())
    sets = {key: status.get(key, "") for key in ("CapInh", "CapPrm", "CapEff", "CapAmb")}
    held = [f"{key} {value}" for key, value in sets.items() if value.strip("0")]
    said = scene.ask(process.pid, "127.0.0.1", port) if process else ""
    return [
        row(
            "port",
            port == 80,
            "a process of yours listens on port 80 in a network namespace of its own",
            f"process {pid} listens on port {port}",
            f"nsenter --target {pid} --net ss -ltn",
        ),
        row(
            "user",
            uid == _WWW and len(uids) == 1,
            f"it is uid {_WWW}, in all four of its uids",
            f"uid {uid} inside; outside {status.get('Uid', '')}".replace("\t", " "),
            f"grep Uid /proc/{pid}/status; cat /proc/{pid}/uid_map",
        ),
        row(
            "capabilities", not held, "it has no capability, and none to pass on", ", ".join(held) or "all four sets are empty"
        ),
        row(
            "bounding",
            not status.get("CapBnd", "1").strip("0"),
            "nothing that it executes could get one, either: the bounding set is empty",
            f"CapBnd {status.get('CapBnd', '')}",
        ),
        row(
            "privileges",
            status.get("NoNewPrivs") == "1",
            "a set-user-ID program gives it nothing: no_new_privs is set",
            f"NoNewPrivs {status.get('NoNewPrivs', '')}",
        ),
        row(
            "filter",
            status.get("Seccomp") == "2",
            "a seccomp filter watches its system calls (mode 2)",
            f"Seccomp {status.get('Seccomp', '')}",
        ),
        row(
            "answer",
            said == work.variables["WORD"],
            f"it answers {work.variables['WORD']} on 127.0.0.1",
            said,
            f"nsenter --target {pid} --net busybox wget -qO- http://127.0.0.1:{port}/",
        ),
    ]  # fmt: skip


LAB = Lab(
    11,
    "little-power",
    "Little power",
    30,
    ("POD", "WORD"),
    check,
    needs=(UTIL_LINUX, USER_NAMESPACES, scene.SUBORDINATE, scene.BUSYBOX, tool("setpriv", "util-linux"), tool("ip", "iproute2")),
    scene=make_scene,
)  # fmt: skip
