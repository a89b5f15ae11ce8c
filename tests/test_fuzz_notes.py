# SPDX-License-Identifier: Apache-2.0
"""Fuzzing the state directory: whatever a note says, or is, a command works or says why not.

NSRUN_FUZZ=SECONDS chooses how long (twelve seconds in CI, some elsewhere), NSRUN_FUZZ_SEED repeats a run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import CACHE, Host, UserHost, sparse_file, wait_for
from test_fuzz import JUNK, SECONDS, spoil

from nsrun.state import orphans

pytestmark = pytest.mark.live
#: No command of these needs longer, whatever it finds.
BOUND = 15.0
LARGE = 1 << 31


@dataclasses.dataclass
class Running:
    """A member that has written a token into its root: it reads the same as long as the member lives."""

    who: Host
    name: str
    token: str
    pid: int = 0

    def start(self, pod: str, *source: object) -> None:
        script = f"echo {self.token} >/token; exec sleep 1000"
        self.who.run("join", pod, "-d", "--name", self.name, *source, "--", "sh", "-c", script)
        self.pid = self.who.member(self.name)["pid"]
        wait_for(self.is_whole, 10, f"the token of {self.name}")

    def is_whole(self) -> bool:
        return token_of(self.pid) == self.token


def token_of(pid: int) -> str:
    """What a member has written to /token, as it sees it; "" when it is gone.

    Overlayfs goes on showing a file that was deleted below it as long as it is cached: its directory and its number of
    links tell.
    """
    with contextlib.suppress(OSError):
        root = f"/proc/{pid}/root"
        with open(f"{root}/token") as file:
            text = file.read()
            if os.fstat(file.fileno()).st_nlink and "token" in os.listdir(root):
                return text.strip()
    return ""


class World:
    """Two pods, of root and of alice, with running and ended members, images, and a process that is nobody's business."""

    def __init__(self, host: Host, alice: UserHost, busybox: str) -> None:
        self.host, self.alice, self.busybox = host, alice, busybox
        self.innocent = subprocess.Popen(["sleep", "1000"])
        self.victim = host.root / "victim"
        self.victim.write_text("precious")
        self.make()

    def make(self) -> None:
        host, alice = self.host, self.alice
        for who in (host, alice):  # a prune takes away what was damaged
            who.run("image", "load", CACHE.parent / "images/busybox")
        host.run("pod", "create", "--network", "none", "pause")
        host.run("pod", "create", "--network", "none", "hers", env={"SUDO_UID": str(alice.uid)})
        self.members = [Running(host, name, f"token-{name}") for name in ("a", "i")] + [Running(alice, "h", "token-h")]
        self.members[0].start("pause", "--rootfs", self.busybox)
        self.members[1].start("pause", "--image", "localhost/busybox:latest")
        self.members[2].start("hers", "--image", "localhost/busybox:latest")
        host.run("join", "pause", "--name", "b", "--rootfs", self.busybox, "--", "sh", "-c", "echo kept >/token")
        pids = [host.pod("pause")["pid"], host.pod("hers")["pid"], *(member.pid for member in self.members)]
        self.pidfds = [os.pidfd_open(pid) for pid in pids]
        self.ended = host.root / "lib/upper" / host.member("b")["id"]

    def unmake(self) -> None:
        """From the kernel's side, because the notes may be anything: what runs is killed, the directories are removed."""
        for name in ("pause", "hers"):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.host.run("pod", "rm", "-f", name, check=False, timeout=40)
        while self.pidfds:
            pidfd = self.pidfds.pop()
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
        wait_for(lambda: not any(member.is_whole() for member in self.members), 10, "the end of all members")
        for group in sorted(self.host.cgroups(), reverse=True):
            with contextlib.suppress(OSError):
                os.rmdir(group)
        for path in (self.host.root / "run", self.host.root / "lib/upper", self.host.root / "owned"):
            shutil.rmtree(path, ignore_errors=True)
        for kind in ("run", "lib/upper"):
            shutil.rmtree(self.host.root / f"users/{self.alice.uid}/{kind}", ignore_errors=True)

    def notes(self) -> list[pathlib.Path]:
        """Every file that nsrun itself has written and reads again."""
        root = self.host.root
        bases = [root, root / f"users/{self.alice.uid}"]
        found = [p for base in bases for p in base.glob("run/*/*/*")]
        found += [p for base in bases for p in base.glob("lib/images/**/*") if "tree" not in str(p)]
        found += root.glob("owned/*/*.json")
        small = (p for p in found if p.is_file() and not p.is_symlink() and p.stat().st_size < 1 << 16)
        return sorted(p for p in small if "/layers/" not in str(p) and "/fs/" not in str(p))

    def lost(self, commanded: str) -> list[str]:
        """What should be there and is not; `commanded`: the member that a command was about."""
        names = [f"data of {m.name}" for m in self.members if m.name != commanded and not m.is_whole()]
        names += ["an innocent process"] if self.innocent.poll() is not None else []
        names += ["the victim"] if self.victim.read_text() != "precious" else []
        if commanded not in ("b", "prune") and not (self.ended / "upper/token").exists():
            names.append("data of the ended member")
        return names


# ---- what becomes of a note ----------------------------------------------------------------------------------------


def flipped(world: World, data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def cut(world: World, data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def doubled(world: World, data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return (
        data[:at]
        + rng.choice((data, b"\0" * 4096, b"[" * 100_000, os.urandom(100), b"\xff\xfe", b"9" * 5000))
        + data[at:]
    )


def spoilt(world: World, data: bytes, rng: random.Random) -> bytes:
    """A key removed, moved, or of another type."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return flipped(world, data, rng)
    return json.dumps(spoil(document, rng)).encode()


def retyped(world: World, data: bytes, rng: random.Random) -> bytes:
    """One key of the top is another type; the rest is as it was."""
    try:
        document = json.loads(data)
        document[rng.choice(list(document))] = rng.choice(JUNK)
    except (ValueError, TypeError, IndexError, RecursionError):
        return spoilt(world, data, rng)
    return json.dumps(document).encode()


def stranger(world: World, data: bytes, rng: random.Random) -> bytes:
    """Its processes are somebody else's: pid and start time are right."""
    pid = world.innocent.pid
    start = int(pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    try:
        document = json.loads(data)
        found = [k for k, v in document.items() if isinstance(v, list) and len(v) == 3 and isinstance(v[0], int)]
    except (ValueError, AttributeError, RecursionError):
        found = []
    if not found:
        return flipped(world, data, rng)
    for key in rng.sample(found, rng.randint(1, len(found))):
        document[key][:2] = [pid, start]
    return json.dumps(document).encode()


def elsewhere(world: World, data: bytes, rng: random.Random) -> bytes:
    """Its paths, names and ids are of another place."""
    try:
        document = json.loads(data)
        words = [key for key, value in document.items() if isinstance(value, str)]
    except (ValueError, AttributeError, RecursionError):
        words = []
    if not words:
        return flipped(world, data, rng)
    other = rng.choice(
        (str(world.victim), "../../../victim", "/", "", ".", "..", "a/../../..", "/sys/fs/cgroup", "a", "x" * 5000)
    )
    document[rng.choice(words)] = other
    return json.dumps(document).encode()


CONTENTS: tuple[Callable[[World, bytes, random.Random], bytes], ...] = (flipped, flipped, cut, doubled, spoilt, retyped, retyped, stranger, elsewhere)  # fmt: skip
CHANGES = {change.__name__ for change in CONTENTS}
PLACES: dict[str, Callable[[World, pathlib.Path], object]] = {
    "gone": lambda world, path: None,
    "a FIFO": lambda world, path: os.mkfifo(path),
    "a directory": lambda world, path: (path / "x").mkdir(parents=True),
    "a link": lambda world, path: path.symlink_to(world.victim),
    "a loop": lambda world, path: path.symlink_to(path),
    "an endless file": lambda world, path: path.symlink_to("/dev/zero"),
    "a huge file": lambda world, path: sparse_file(path, LARGE),
    "not readable": lambda world, path: path.symlink_to("/proc/self/mem"),
}


@contextlib.contextmanager
def broken(world: World, path: pathlib.Path, rng: random.Random) -> Iterator[str]:
    """The note is not what it was for a while; gives how."""
    data, st = path.read_bytes(), path.stat()
    aside = path.with_name(f"{path.name}.aside")
    os.rename(path, aside)
    try:
        if rng.random() < 0.75:
            change = rng.choice(CONTENTS)
            path.write_bytes(change(world, data, rng))
            path.chmod(st.st_mode & 0o777)
            os.chown(path, st.st_uid, st.st_gid)
            yield change.__name__
        else:
            how = rng.choice(list(PLACES))
            PLACES[how](world, path)
            if path.exists() and not path.is_symlink():
                os.chown(path, st.st_uid, st.st_gid)
            yield how
    finally:
        there = os.path.lexists(path)
        if there:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if aside.exists():
            os.rename(aside, path)
        elif there:  # what was put aside was no image's, and has been pruned
            path.write_bytes(data)
            path.chmod(st.st_mode & 0o777)
            os.chown(path, st.st_uid, st.st_gid)


# ---- what is asked of it ---------------------------------------------------------------------------------------------

#: Commands, and the one that they are about (whose end is no fault).
ROOTS = (
    ("pod ls", ""), ("pod ls --json", ""), ("ls -a", ""), ("ls -a --json", ""), ("pod inspect pause", ""), ("inspect a", ""), ("inspect b", ""),
    ("pod ps pause", ""), ("pod ps hers", ""), ("pod stats pause", ""), ("stats", ""), ("logs a", ""), ("exec a true", ""), ("wait b", ""),
    ("pod prune", "prune"), ("image ls", ""), ("image prune", ""), ("image inspect localhost/busybox:latest", ""), ("doctor", ""),
    ("explain join pause --rootfs ROOTFS true", ""), ("join pause --rm --rootfs ROOTFS true", ""), ("join pause --rm --image localhost/busybox:latest true", ""),
    ("pod create --network none other", ""), ("pod rm -f other", ""), ("kill -s CONT a", ""), ("stop -t 0 b", "b"), ("rm b", "b"), ("rm -f nobody", ""),
    ("kill a", "a"), ("stop -t 0 a", "a"), ("rm -f a", "a"),
)  # fmt: skip
HERS = (
    ("pod ls", ""), ("ls -a", ""), ("inspect h", ""), ("pod inspect hers", ""), ("logs h", ""), ("exec h true", ""), ("pod prune", "prune"),
    ("join hers --rm --image localhost/busybox:latest true", ""), ("image ls", ""), ("image prune", ""), ("kill h", "h"), ("rm -f h", "h"),
)  # fmt: skip


def answers(world: World, who: Host, command: str) -> str:
    """What is wrong with the answer; "": nothing."""
    words = command.replace("ROOTFS", world.busybox).split()
    try:
        done = who.run(*words, check=False, timeout=BOUND, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return f"no answer in {BOUND:.0f} s"
    except UnicodeDecodeError:
        return "no UTF-8"
    if "Traceback" in done.stderr:
        return done.stderr.strip().splitlines()[-1]
    if done.returncode not in ((0, 1) if command == "doctor" else (0, 125)):
        return f"exit status {done.returncode}: {done.stderr[:300]}"
    if done.returncode == 125 and not done.stderr.startswith("nsrun: "):
        return f"no message: {done.stderr[:300]}"
    return ""


def test_notes(host, alice, busybox, box):
    """Exit status 0 or 125 and a message, in bounded time; nobody else is killed, and no data is gone."""
    seed = int(os.environ.get("NSRUN_FUZZ_SEED") or random.randrange(1 << 30))
    rng, end, count = random.Random(seed), time.monotonic() + SECONDS, 0
    world = World(host, alice, busybox)
    faults: dict[tuple[str, ...], Any] = {}
    try:
        while time.monotonic() < end or count < 10:
            path = rng.choice(world.notes())
            ended = False
            with broken(world, path, rng) as how:
                for _ in range(rng.randint(1, 3)):
                    of_hers = str(alice.uid) in str(path)
                    who, (command, about) = (
                        (alice, rng.choice(HERS)) if of_hers and rng.random() < 0.7 else (host, rng.choice(ROOTS))
                    )
                    count += 1
                    wrong = answers(world, who, command)
                    content = path.read_bytes()[:200] if how in CHANGES and path.is_file() else b""
                    where = path.name if len(path.name) < 20 else f"{path.parent.name}/…"
                    if wrong:
                        faults.setdefault((where, how, wrong[:60]), (count, path, command, content))
                    lost = world.lost(about)
                    if lost:
                        faults.setdefault((where, how, ", ".join(lost)), (count, path, command, content))
                    ended = ended or bool(lost) or bool(about)
                    if ended:
                        break
            if ended:
                world.unmake()
                world.make()
            else:
                host.run("pod", "rm", "-f", "other", check=False)
    finally:
        world.innocent.kill()
        world.innocent.wait()
        world.unmake()
        time.sleep(
            orphans.IDLE + 0.5
        )  # then a prune takes the cgroup of a pod whose note was damaged when it was removed
        host.run("pod", "prune")
    text = "\n".join(f"{' | '.join(key)}\n    {value}" for key, value in faults.items())
    assert not faults, f"NSRUN_FUZZ_SEED={seed}, {count} commands, {len(faults)} faults:\n{text}"
    assert count >= 10
