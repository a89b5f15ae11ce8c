# SPDX-License-Identifier: Apache-2.0
"""What the two benchmarks share: a throwaway host, workers that time commands, ratios."""

import ctypes
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
NSRUN = HERE.parent / ".venv/bin/nsrun"
PYTHON = HERE.parent / ".venv/bin/python"
CACHE = pathlib.Path(os.environ.get("NSRUN_CACHE", "/var/cache/nsrun"))
WORKER = """
import json, signal, subprocess, sys, tempfile, time
for line in sys.stdin:
    words = json.loads(line)
    with tempfile.TemporaryFile() as errors:  # not a pipe: what stays in the background would hold it open
        signal.alarm(60)  # not wait(timeout): that polls, at steps of up to 50 ms
        start = time.perf_counter()
        done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors)
        took = time.perf_counter() - start
        errors.seek(0)
        print(json.dumps([took, done.returncode, errors.read().decode("utf-8", "replace")[-300:]]), flush=True)
"""


class Worker:
    """Runs and times commands; in a mount namespace without the v2 cgroup tree, or as an ordinary user."""

    def __init__(self, without_v2: bool = False, uid: int = 0) -> None:
        words = [sys.executable, "-c", WORKER]
        if uid:
            words = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--init-groups", *words]
        if without_v2:
            words = [
                "unshare",
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                'umount /sys/fs/cgroup/unified 2>/dev/null; exec "$@"',
                "sh",
                *words,
            ]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, *words: object, check: bool = True) -> float:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps([str(w) for w in words]) + "\n")
        self.process.stdin.flush()
        seconds, code, errors = json.loads(self.process.stdout.readline())
        if check and code:
            raise RuntimeError(f"{' '.join(map(str, words))} → {code}: {errors}")
        return seconds * 1000


def enter_throwaway_host(most: int = 2000) -> None:
    for _name in ("SUDO_UID", "DOAS_USER", "PKEXEC_UID"):
        os.environ.pop(_name, None)  # root's pods are root's here, under sudo too
    libc = ctypes.CDLL(None, use_errno=True)
    pids = pathlib.Path("/sys/fs/cgroup/pids")
    if (pids / "cgroup.procs").exists():
        (pids / "nsrun-bench").mkdir(exist_ok=True)
        (pids / "nsrun-bench/pids.max").write_text(str(most))
        (pids / "nsrun-bench/cgroup.procs").write_text(str(os.getpid()))
    assert libc.unshare(0x20000 | 0x40000000 | 0x8000000) == 0, "needs root"
    assert libc.mount(b"none", b"/", None, 0x4000 | (1 << 18), None) == 0
    assert libc.mount(b"tmpfs", b"/run", b"tmpfs", 0, b"mode=755") == 0
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


USER = 12345


def make_user() -> None:
    """An ordinary user with subordinate ids."""
    sys.path.append(str(HERE.parent / "tests"))
    from throwaway import make_accounts

    make_accounts({"bench": USER}, [], [NSRUN])


def leave_cgroup() -> None:
    group = pathlib.Path("/sys/fs/cgroup/pids/nsrun-bench")
    if group.exists():
        (group.parent / "cgroup.procs").write_text(str(os.getpid()))
        for _ in range(100):  # the workers end with our end of their pipes; what they started is on its way
            try:
                group.rmdir()
                return
            except OSError:
                time.sleep(0.05)


def install_peers(*programs: str) -> None:
    """podman needs iptables for its ports, netavark for its networks and catatonit: they count as parts of it."""
    missing = [p for p in programs if not shutil.which(p)]
    if "podman" in programs and not (shutil.which("iptables") and os.path.exists("/usr/lib/podman/netavark")):
        missing += ["podman", "conmon", "netavark", "catatonit", "iptables"]
    if missing and shutil.which("apt-get"):
        print(f"installing {' '.join(missing)} …", file=sys.stderr)
        subprocess.run(
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing],
            stdout=subprocess.DEVNULL,
            timeout=600,
            check=False,
        )


class Times:
    """row → who → milliseconds; the table gives medians, and of the ratios within a round the median and the quartiles.

    What slows the machine for some seconds slows both sides of a round: their ratio stays.
    """

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, list[float]]] = {}

    def add(self, row: str, who: str, value: float) -> None:
        self.rows.setdefault(row, {}).setdefault(who, []).append(value)

    def median(self, row: str, who: str) -> float:
        return statistics.median(self.rows[row][who])

    def ratio(self, row: str, who: str) -> tuple[float, float, float]:
        """(lower quartile, median, upper quartile) of nsrun's time over `who`'s, round by round."""
        pairs = zip(self.rows[row]["nsrun"], self.rows[row][who], strict=True)
        low, middle, high = statistics.quantiles((mine / theirs for mine, theirs in pairs), n=4, method="inclusive")
        return low, middle, high

    def table(self, goals: dict[tuple[str, str], float]) -> str:
        lines = ["| what | nsrun ms | peer | peer ms | ratio | quartiles | goal |", "|---|---|---|---|---|---|---|"]
        for row, by in self.rows.items():
            if "nsrun" not in by:
                continue
            mine = self.median(row, "nsrun")
            for who in by:
                if who != "nsrun":
                    low, ratio, high = self.ratio(row, who)
                    goal = goals.get((row, who))
                    verdict = f"≤ {goal} {'met' if ratio <= goal else 'missed'}" if goal else ""
                    lines.append(
                        f"| {row} | {mine:.1f} | {who} | {self.median(row, who):.1f} | {ratio:.2f} | {low:.2f}–{high:.2f} | {verdict} |"
                    )
            if len(by) == 1:
                lines.append(f"| {row} | {mine:.1f} | – | | | | |")
        return "\n".join(lines)
