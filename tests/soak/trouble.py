# SPDX-License-Identifier: Apache-2.0
"""The sources of trouble beside the commands: kills, flips, small disks; each a thread.  Namespaces: words before a command."""

from __future__ import annotations

import contextlib
import os
import pathlib
import random
import signal
import sys
import time

from conftest import Host, UserHost
from test_fuzz_notes import CONTENTS, PLACES

from soak import kernel, notes
from soak.world import World

INSIDE = str(pathlib.Path(__file__).parent / "inside.py")
#: Beside what the brief names: a member's own end is trouble, too.
TARGETS = (
    "nsrun", "nsrun", "pause", "nsrun-init", "nsrun-monitor", "nsrun-monitor", "nsrun-door", "nsrun-hold", "nsrun-follow", "nsrun-unpack",
    "pasta", "member",
)  # fmt: skip


def kills(world: World, rng: random.Random) -> None:
    """kill -9 of anything of nsrun's, at random moments; the kind is chosen first, so that rare ones have their turn."""
    while not world.ended.wait(rng.expovariate(5)):
        want = rng.choice(TARGETS)
        pids = sorted(kernel.ours(world.throwaway, world.host) - world.known)
        found = [pid for pid in pids if kernel.kind(pid) == want]
        if found and kernel.kill(rng.choice(found), signal.SIGKILL, want):
            world.ledger.count("kills", want)
            world.note(f"kill -9 of {want}")


def flips(world: World, rng: random.Random) -> None:
    """A file of nsrun's own is not what it was, for good."""
    while not world.ended.wait(rng.expovariate(1.5)):
        found = notes.files(world.root)
        if not found:
            continue
        path = rng.choice(found)
        with contextlib.suppress(OSError):  # it has gone meanwhile, or the disk is full
            st = path.stat()
            if rng.random() < 0.75:
                change = rng.choice(CONTENTS)
                data = change(world, path.read_bytes(), rng)  # type: ignore[arg-type]
                fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_TRUNC)
                try:
                    os.write(fd, data)
                finally:
                    os.close(fd)
                how = change.__name__
            else:
                how = rng.choice(list(PLACES))
                path.unlink()
                PLACES[how](world, path)  # type: ignore[arg-type]
                os.chown(path, st.st_uid, st.st_gid, follow_symlinks=False)
            world.ledger.count("flips", how)
            world.note(f"{how}: {path.relative_to(world.root)}")


def disk(world: World, rng: random.Random) -> None:
    """The disk is full for a while."""
    filler = world.root / "filler"
    while not world.ended.wait(rng.uniform(0.2, 2)):
        with contextlib.suppress(OSError), open(filler, "ab", buffering=0) as file:
            size = rng.choice((1 << 20, 1 << 16, 4096))
            while not world.ended.is_set() and file.write(b"x" * size):
                pass
        world.ledger.count("disks filled", "times")
        time.sleep(rng.uniform(0.05, 1.0))
        with contextlib.suppress(OSError):
            os.truncate(filler, rng.choice((0, 0, 1 << 20, max(0, filler.stat().st_size - rng.randrange(1 << 18)))))
    filler.unlink(missing_ok=True)


def _then(script: str) -> list[str]:
    return ["unshare", "--mount", "sh", "-c", f'{{ {script}; }} || exit 125; exec "$@"', "sh"]  # the disk may be full


def places(world: World) -> dict[str, list[str]]:
    """Where else a command may be run: words before it, as root.  In those that begin with a blank, nothing is made."""
    run, other = world.root / "run", world.root / "boot_id"
    return {
        "pid": ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"],
        "time": ["unshare", "--time", "--boottime", "1000000", "--fork", "--kill-child"],
        "time and proc": ["unshare", "--time", "--boottime", "1000000", "--fork", "--kill-child", "--mount-proc", "--pid"],
        "ipc and uts": ["unshare", "--ipc", "--uts"],
        "mount": ["unshare", "--mount"],
        "cgroup": ["unshare", "--cgroup"],
        "cgroup and mount": ["unshare", "--cgroup", *_then("mount -t cgroup2 none /sys/fs/cgroup")[1:]],
        "net": ["unshare", "--net"],
        "hidepid": _then("mount -t proc -o hidepid=2 proc /proc"),
        "boot id": _then(f"echo 00000000-0000-4000-8000-000000000000 >{other} && mount --bind {other} /proc/sys/kernel/random/boot_id"),
        "chroot": _then("mount --rbind / /mnt && cd /mnt && set -- chroot /mnt \"$@\""),
        " other run": _then(f"mount -t tmpfs -o mode=711 tmpfs {run}"),
        " no proc": _then("mount -t tmpfs tmpfs /proc"),
    }  # fmt: skip


def wrap(world: World, rng: random.Random, who: Host, makes: bool) -> tuple[str, list[str]]:
    """(name, words before a command): some place where it sees other pids, times, mounts or cgroups."""
    choices = places(world)
    if not isinstance(who, UserHost):  # an ordinary user's ids are not mapped there
        choices["user"] = ["unshare", "--user", "--map-root-user"]
        choices["user, pid and mount"] = [
            "unshare",
            "--user",
            "--map-root-user",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ]
    name = rng.choice([*choices, "numbers"])
    if makes and name.startswith(" "):
        name = "pid"
    if name == "numbers":  # the pids of nsrun's processes are bystanders' there
        pids = sorted(kernel.ours(world.throwaway, world.host) - world.known)
        pids = [pid for pid in pids if kernel.kind(pid) in ("pause", "nsrun-monitor", "member")][:20]
        uid = who.uid if isinstance(who, UserHost) else 0
        words = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, INSIDE, str(uid), *map(str, pids), "--"]
        return name, words
    return name.strip(), choices[name]
