# SPDX-License-Identifier: Apache-2.0
"""What the kernel knows of this throwaway host: processes, links, tables, mounts, cgroups, sockets, locks.  No note is read here."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
from collections.abc import Iterator

from conftest import Host, ThrowawayHost, settled, sh

#: What nsrun starts, by the name of the process.
PROGRAMS = (
    "nsrun", "pause", "nsrun-init", "nsrun-monitor", "nsrun-follow", "nsrun-door", "nsrun-hold", "nsrun-forward", "nsrun-unpack", "pasta",
)  # fmt: skip


def name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return pathlib.Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    return ""


def words(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    return []


def start_time(pid: int) -> int:
    """In clock ticks since boot; 0: it has ended or is ending."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in b"ZX" else int(fields[19])


def ours(throwaway: ThrowawayHost, host: Host) -> set[int]:
    """Every living process that was started from here, wherever its namespaces are: by cgroup."""
    found: set[int] = set()
    for top in (*throwaway.cgroups, *host.cgroups()):
        for directory, _, _ in os.walk(top):
            with contextlib.suppress(OSError):
                found.update(map(int, pathlib.Path(directory, "cgroup.procs").read_text().split()))
    return {pid for pid in found if start_time(pid)}


def kind(pid: int) -> str:
    """Which program of nsrun's it is, "member" for what runs inside a pod, "" for what is none of these."""
    if words(pid)[:1] == ["bystander"]:  # inside.py
        return ""
    comm = name(pid).replace(".avx2", "").replace("passt", "pasta")
    if comm in PROGRAMS:
        return comm
    if any("bin/nsrun" in word or word.endswith("nsrun/__main__.py") for word in words(pid)[:4]):
        return "nsrun"
    with contextlib.suppress(OSError):
        if os.stat(f"/proc/{pid}/ns/pid").st_ino != os.stat("/proc/self/ns/pid").st_ino:
            return "member"
    return ""


def kill(pid: int, sig: int, still: str) -> bool:
    """Signals it if it is still of that kind: by pidfd, so never another process."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if kind(pid) != still:
            return False
        signal.pidfd_send_signal(fd, sig)
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


def tokens(prefix: str, pids: set[int]) -> Iterator[tuple[int, str, str]]:
    """(pid, token, volume's name) of each member's first process: they are its last words."""
    for pid in pids:
        command = words(pid)
        if len(command) > 2 and command[0].endswith("sh") and command[-2].startswith(prefix):
            yield pid, command[-2], command[-1]


def left(host: Host) -> dict[str, list[str]]:
    """What a pod or a command leaves in the kernel unless it is taken away again, when nothing of a command goes on."""
    settled()
    tables = sh("nft", "list", "tables").stdout.splitlines()  # nft -j says half of it while a table goes
    links = json.loads(sh("ip", "-j", "link").stdout)
    sockets = pathlib.Path("/proc/thread-self/net/unix").read_text(errors="replace").splitlines()[1:]
    listening = [line.split()[1] for line in pathlib.Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:] if line.split()[3] == "0A"]  # fmt: skip
    return {
        "links": [link["ifname"] for link in links],
        "tables": [line.split()[2] for line in tables if line.startswith("table ")],
        "mounts": [
            line.split(" ", 2)[2] for line in pathlib.Path("/proc/thread-self/mountinfo").read_text().splitlines()
        ],
        "cgroups": host.cgroups(),
        "unix sockets": [line.split()[-1] for line in sockets if str(host.root) in line],
        "listening ports": listening,
        "locks": locks(host.root),
    }


def locks(root: pathlib.Path) -> list[str]:
    """The locked files below a directory, /proc/locks: proc_locks(5)."""
    inodes = {}
    for directory, _, files in os.walk(root):
        if "/lib/images" in directory or "/upper" in directory:
            continue
        for file in files:
            with contextlib.suppress(OSError):
                st = os.lstat(f"{directory}/{file}")
                inodes[f"{os.major(st.st_dev):02x}:{os.minor(st.st_dev):02x}:{st.st_ino}"] = f"{directory}/{file}"
    found = (line.split() for line in pathlib.Path("/proc/locks").read_text().splitlines())
    return sorted({inodes[fields[5]] for fields in found if len(fields) > 5 and fields[5] in inodes})


def dump(throwaway: ThrowawayHost, host: Host) -> str:
    """Every living process of nsrun's, its parent, state and cgroup, and the `held` files that it has open; and the cgroups."""
    text = ""
    for pid in sorted(ours(throwaway, host)):
        if not kind(pid):
            continue
        with contextlib.suppress(OSError):
            state, parent = pathlib.Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
            cgroup = pathlib.Path(f"/proc/{pid}/cgroup").read_text().strip().replace("\n", " ")
            links = (os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd"))
            held = [link for link in links if "held" in link]
            text += f"{pid} {kind(pid)} {state} of {parent}: {cgroup[-80:]}: {held}: {' '.join(words(pid))[:200]}\n"
    return text + "\n".join(host.cgroups()) + "\n"
