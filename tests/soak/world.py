# SPDX-License-Identifier: Apache-2.0
"""One round's world: a state directory, root and two users, images, processes that are nobody's business; and how a command is run in it."""

from __future__ import annotations

import collections
import contextlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence

from conftest import CACHE, NSRUN, Host, ThrowawayHost, UserHost, sh
from test_fuzz_notes import token_of

from soak import kernel, notes
from soak.ledger import Ledger

#: No command needs longer, on a busy machine with two processors; seconds.
BOUND = 30.0
IMAGE = "localhost/busybox:latest"
#: A member's first process: it writes its token where only its own root and volume are, and lives.
SCRIPT = 'echo "$0" >/token; [ "$1" = - ] || echo "$0" >"/data/$0"; while :; do sleep 5; done'


class Hung(Exception):
    """A command did not end: nothing more is asked of nsrun in this round."""


class World:
    def __init__(self, throwaway: ThrowawayHost, ledger: Ledger, kinds: set[str], seed: int) -> None:
        self.throwaway, self.ledger, self.kinds, self.seed = throwaway, ledger, kinds, seed
        self.rng = random.Random(f"{seed} world")
        self.prefix = f"token-{seed}-"
        self.root = pathlib.Path(f"/run/soak-{seed}")
        self.root.mkdir(mode=0o711)
        self.mounted = "disk" in kinds
        before = kernel.ours(throwaway, Host(throwaway, self.root))
        if self.mounted:
            sh("mount", "-t", "tmpfs", "-o", f"size={self.rng.randint(16, 40)}m,mode=711", "tmpfs", self.root)
        self.host = Host(throwaway, self.root)
        self.people: list[Host] = [self.host, UserHost(self.host, "alice"), UserHost(self.host, "bob")]
        self.victim = self.root / "victim"
        self.victim.write_text("precious")
        self.innocents = [
            subprocess.Popen(who.words("sleep", "3600"), cwd="/", start_new_session=True) for who in self.people
        ]
        self.innocent = self.innocents[0]
        self.roots = {who: self._prepare(who) for who in self.people}
        self.before = kernel.left(self.host)
        self.known = before | {process.pid for process in self.innocents}
        self._whole: dict[tuple[int, int], tuple[str, str]] = {}
        self.ended = threading.Event()
        self._lately: collections.deque[str] = collections.deque(maxlen=12)

    def _prepare(self, who: Host) -> str:
        """The image in everybody's store, and a root filesystem that is theirs; gives its path."""
        who.run("image", "load", CACHE.parent / "images/busybox")
        if not isinstance(who, UserHost):
            return str(CACHE / "busybox")
        sh("cp", "-a", CACHE / "busybox", who.home / "rootfs")
        sh("chown", "-hR", f"{who.uid}:{who.uid}", who.home / "rootfs")
        return str(who.home / "rootfs")

    # ---- commands ----------------------------------------------------------------------------------------------

    def run(
        self,
        who: Host,
        words: Sequence[str],
        *,
        kind: str = "",
        foreground: bool = False,
        wrap: Sequence[str] = (),
        env: dict[str, str] | None = None,
        bound: float = BOUND,
        may_wait: bool = False,
    ) -> tuple[int, str]:
        """Runs one command and judges its answer: gives (exit status, output); -1000 when it did not end."""
        kind = kind or " ".join(words[:2])
        line = [*wrap, *who.words(NSRUN, *words)]
        self.ledger.count("commands", kind)
        self.note(f"{getattr(who, 'name', 'root')}: {kind}: {' '.join(words[:4])}")
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd="/", start_new_session=True,
                env={**who.env, **(env or {})},
            )  # fmt: skip
            try:
                code = process.wait(bound)
            except subprocess.TimeoutExpired:
                code = -1000
                if not may_wait:
                    self.ledger.find("hang", f"{self._say(who, line)}: {_stuck(process.pid)}", kind)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait(20)
            out.seek(0), err.seek(0)
            output = out.read(1 << 20).decode(errors="replace")
            error = err.read(1 << 16).decode(errors="replace")
        self.ledger.count("exit statuses", str(code))
        self._judge(who, kind, line, code, output, error, foreground)
        return code, output

    def _say(self, who: Host, line: Sequence[str]) -> str:
        return " ".join(word if len(word) < 80 else f"{word[:60]}…" for word in line)

    def _judge(self, who: Host, kind: str, line: Sequence[str], code: int, output: str, error: str, foreground: bool) -> None:  # fmt: skip
        text = f"{kind} → {code}: {error.strip()[-1200:]}   [{self._say(who, line)}]"
        for sign in ("Traceback (most recent", "Exception ignored", "Fatal Python error", "BYSTANDER"):
            if sign in error or sign in output:
                last = next((x for x in reversed(error.splitlines()) if x.strip()), "")
                self.ledger.find("bystander" if sign == "BYSTANDER" else "traceback", text, last)
                return
        if any(line.startswith(("unshare:", "mount:", "chroot:", "setpriv:", "sh: ")) for line in error.splitlines()):
            return  # nsrun was not reached, or unshare(1) did not tell what nsrun said
        allowed = {0, 125}
        if foreground:
            allowed |= {2, 3, 126, 127, *range(129, 160)}
        if line[-1] == "doctor":
            allowed.add(1)
        if "kills" in self.kinds or code == -1000:
            allowed |= {-9, 137, -1000}
        if code not in allowed and not (kind == "prune" and code == 2):
            self.ledger.find("exit status", text, f"{kind} → {code}")
        elif code == 125 and "nsrun: " not in error:
            self.ledger.find("no message", text, kind)

    def note(self, what: str) -> None:
        """Something began: what is found soon after may be its doing."""
        self._lately.append(what)

    def lately(self) -> str:
        return "; ".join(self._lately)

    # ---- what must be true all the time -------------------------------------------------------------------------

    def watch(self) -> None:
        """Until the round has ended: running members have their data, and the innocent live."""
        while not self.ended.wait(0.3):
            self.look()

    def look(self) -> None:
        for pid, token, volume in kernel.tokens(self.prefix, kernel.ours(self.throwaway, self.host)):
            key = (pid, kernel.start_time(pid))
            if not self.is_whole(pid, token, volume):
                if key in self._whole and not self._recovers(key, token, volume):
                    del self._whole[key]
                    text = f"{token} (its volume: {volume}), process {pid}; before: {self.lately()}"
                    self.ledger.find("data of a running member is gone", text, "it")
            elif key not in self._whole:
                self._whole[key] = (token, volume)
                self.ledger.count("members watched", "with a volume" if volume != "-" else "without")
        for process in self.innocents:
            if process.poll() is not None and process.returncode is not None and process.pid in self.known:
                self.known.discard(process.pid)
                text = f"an innocent process has ended: {process.returncode}; before: {self.lately()}"
                self.ledger.find("bystander", text, "killed")
        with contextlib.suppress(OSError):
            if self.victim.read_text() != "precious":
                self.ledger.find("victim", "a file that is none of nsrun's was changed")
                self.victim.write_text("precious")

    def is_whole(self, pid: int, token: str, volume: str) -> bool:
        if token_of(pid) != token:
            return False
        return volume == "-" or os.path.exists(f"/proc/{pid}/root/data/{token}")

    def _recovers(self, key: tuple[int, int], token: str, volume: str) -> bool:
        """Or has it ended meanwhile?  A process that dies loses its root before it is dead."""
        for _ in range(4):
            time.sleep(0.1)
            if kernel.start_time(key[0]) != key[1] or self.is_whole(key[0], token, volume):
                return True
        return False

    # ---- the end of a round --------------------------------------------------------------------------------------

    def _must_end(self, who: Host, words: Sequence[str], kind: str = "") -> tuple[int, str]:
        code, output = self.run(who, words, kind=kind)
        if code == -1000:
            raise Hung
        return code, output

    def _first(self, who: Host, choices: Sequence[Sequence[str]], kind: str) -> str:
        for words in choices:
            code, output = self._must_end(who, words, kind if words is not choices[-1] else "")
            if code != 2:
                return output
        return ""

    def explained(self) -> None:
        """Every pause that lives is listed by somebody, and what is listed as running lives."""
        listed: set[int] = set()
        for who in self.people:
            for name, status, pid in notes.listed(self._first(who, notes.LIST_PODS, "prune")):
                listed.add(pid)  # also one that is being removed, or whose note is damaged
                if status == "running":
                    if not kernel.start_time(pid):
                        time.sleep(0.1)  # it may have just ended; then the next list knows
                        again = notes.listed(self._first(who, notes.LIST_PODS, "prune"))
                        if (name, status, pid) in again:
                            text = f"a pod is listed as running whose pause is dead: {name}, {pid}"
                            self.ledger.find("listed", text, "dead", self.evidence)
        living = {pid for pid in kernel.ours(self.throwaway, self.host) if kernel.kind(pid) == "pause"}
        time.sleep(0.5)
        for pid in living - listed:
            if kernel.kind(pid) == "pause" and kernel.start_time(pid):
                self.ledger.find("unlisted", f"a pause lives that no `pod ls` shows: {pid}", "pause", self.evidence)

    def tidy(self) -> None:
        """As a person would: everything is removed by nsrun's own commands."""
        for who in (*self.people[1:], self.host):
            names = [name for name, _, _ in notes.listed(self._first(who, notes.LIST_PODS, "prune"))]
            if names:
                self._must_end(who, ["pod", "rm", "-f", *names])
            names = [name for name, _, _ in notes.listed(self._first(who, notes.LIST_MEMBERS, "prune"))]
            for name in names:
                self._must_end(who, ["rm", "-f", name])
        for who in (self.host, *self.people[1:], self.host):
            self._first(who, notes.PRUNE, "prune")
            self._first(who, (("image", "prune"),), "prune")

    def nothing_is_left(self) -> None:
        """Of what the kernel knows and of what nsrun wrote; dying takes a moment."""
        left: dict[str, list[str]] = {}
        for turn in range(60):
            if turn == 30:  # a prune takes no cgroup that is younger than some seconds
                self._first(self.host, notes.PRUNE, "prune")
            left = {}
            for pid in kernel.ours(self.throwaway, self.host) - self.known - {os.getpid()}:
                left.setdefault("processes", []).append(f"{kernel.kind(pid) or kernel.name(pid)} {pid}")
            for kind, items in kernel.left(self.host).items():
                if more := [item for item in items if item not in self.before[kind]]:
                    left[kind] = more
            if found := notes.left(self.root):
                left["notes"] = found
            if not left:
                return
            time.sleep(0.2)
        for kind, items in left.items():
            kinds = sorted({item.partition(" ")[0] if kind == "processes" else item for item in items})
            key = ", ".join(kinds) if kind == "processes" else "some"
            self.ledger.find(f"left: {kind}", ", ".join(kinds), key, self.evidence)

    def evidence(self) -> str:
        """What is there: nsrun's lists, its notes, its processes with their states, cgroups and `held` files."""
        text = f"lately: {self.lately()}\n"
        for who in self.people:
            for words in (["pod", "ls", "-a"], ["ls", "-a"], ["doctor"]):
                done = who.run(*words, check=False)
                text += f"---- {getattr(who, 'name', 'root')}: {' '.join(words)} → {done.returncode}\n"
                lines = (done.stdout + done.stderr).splitlines()
                text += "".join(f"{line}\n" for line in lines if words != ["doctor"] or not line.startswith("ok"))
        return text + notes.dump(self.root) + kernel.dump(self.throwaway, self.host)

    def close(self) -> None:
        """By force: the next round begins with nothing."""
        self.ended.set()
        for _ in range(20):
            rest = kernel.ours(self.throwaway, self.host) - self.known - {os.getpid()}
            for pid in rest:
                kernel.kill(pid, signal.SIGKILL, kernel.kind(pid))
            if not rest:
                break
            time.sleep(0.1)
        for process in self.innocents:
            process.kill()
            process.wait()
        time.sleep(0.2)
        now = kernel.left(self.host)
        for link in now["links"]:
            if link not in self.before["links"]:
                sh("ip", "link", "del", link, check=False)
        for path in sorted(now["cgroups"], reverse=True):
            with contextlib.suppress(OSError):
                os.rmdir(path)
        if self.mounted:
            sh("umount", "--lazy", self.root, check=False)
        shutil.rmtree(self.root, ignore_errors=True)


def _stuck(pid: int) -> str:
    """Where the processes of a session wait, as far as the kernel tells, and whether they have been busy."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.getsid(int(entry)) == pid:
                wait = pathlib.Path(f"/proc/{entry}/wchan").read_text()
                fields = pathlib.Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                stack = pathlib.Path(f"/proc/{entry}/stack").read_text().replace("\n", " ")
                used = f"user {fields[11]} system {fields[12]} ticks"
                found.append(f"{kernel.name(int(entry))} {fields[0]} {wait}, {used}: {stack}")
    return ", ".join(found)
