# SPDX-License-Identifier: Apache-2.0
"""The soak: random commands by root and two users while things are killed, broken, filled up, and looked at from elsewhere.

    make soak MINUTES=30 [SEED=n] [KINDS=commands,kills,flips,disk,namespaces] [ROUNDS=n] [WORKERS=n]

A round is some seconds of that in a state directory of its own.  While it lasts, running members must keep their data and
innocent processes their lives, and every command must answer as documented; afterwards nsrun's own commands remove
everything, and the kernel is asked what is left.  Round n has the seed SEED+n; SEED=that, ROUNDS=1 does it again, as far
as threads allow.  The exit status is 1 when anything was found.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time

from conftest import CACHE, NSRUN, ThrowawayHost

from soak import commands, trouble
from soak.ledger import Ledger
from soak.world import BOUND, Hung, World

KINDS = ("commands", "kills", "flips", "disk", "namespaces")
SECONDS = 12.0


def work(world: World, seed: str, until: float) -> None:
    """One worker: command after command."""
    rng = random.Random(seed)
    maker = commands.Maker(world, random.Random(f"{seed} commands"))
    while time.monotonic() < until:
        who, command = maker.next()
        place, words = "", list[str]()
        if "namespaces" in world.kinds and rng.random() < 0.4:
            place, words = trouble.wrap(world, rng, who, command.makes)
            world.ledger.count("places", place)
        world.run(
            who, command.words, kind=f"{command.kind} ({place})" if place else command.kind, foreground=command.foreground,
            wrap=words, env=command.env, may_wait=command.may_wait, bound=5 if command.may_wait else BOUND,
        )  # fmt: skip


def guarded(world: World, target, *arguments: object) -> threading.Thread:
    """A thread whose own failure is a finding, not silence."""

    def run() -> None:
        try:
            target(world, *arguments)
        except Exception as error:
            import traceback

            world.ledger.find("soak", traceback.format_exc(), f"{target.__name__}: {error!r}")

    return threading.Thread(target=run, name=target.__name__, daemon=True)


def play(throwaway: ThrowawayHost, ledger: Ledger, seed: int, kinds: set[str], workers: int) -> None:
    """One round.  Each source of trouble has its turn in some rounds only, so that the plain mix is met, too."""
    rng = random.Random(seed)
    kinds = {kind for kind in sorted(kinds) if kind == "commands" or len(kinds) == 2 or rng.random() < 0.6}
    ledger.where = f"SEED={seed} KINDS={','.join(sorted(kinds))}"
    ledger.count("rounds", ",".join(sorted(kinds)))
    world = World(throwaway, ledger, kinds, seed)
    try:
        for who, command in commands.Maker(world, random.Random(f"{seed} first")).first():
            world.run(who, command.words, kind=command.kind, env=command.env)
        until = time.monotonic() + SECONDS
        watcher = guarded(world, World.watch)
        makers = [guarded(world, work, f"{seed} {number}", until) for number in range(workers)]
        makers += [
            guarded(world, getattr(trouble, kind), random.Random(f"{seed} {kind}"))
            for kind in ("kills", "flips", "disk")
            if kind in kinds
        ]
        for thread in (watcher, *makers):
            thread.start()
        for thread in makers[:workers]:
            thread.join(SECONDS + 2 * BOUND)
        world.ended.set()
        for thread in (watcher, *makers):
            thread.join(30)
        world.look()
        world.explained()
        world.look()
        world.tidy()
        world.nothing_is_left()
    except (AssertionError, OSError, ValueError, subprocess.SubprocessError) as error:
        ledger.find("soak", f"{type(error).__name__}: {error}")
    except Hung:
        ledger.count("rounds", "ended by force, because a command hung")
    finally:
        world.close()


def _keep_output() -> None:
    """Only this process writes to where we were told to: what is left running keeps no pipe of the caller's open."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        kept = os.dup(number)  # closed on exec
        setattr(sys, name, os.fdopen(kept, "w", buffering=1))
    null = os.open("/dev/null", os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)


def main() -> int:
    minutes, seed = float(os.environ.get("MINUTES") or 30), os.environ.get("SEED")
    first = int(seed) if seed else random.randrange(1 << 30)
    kinds = set((os.environ.get("KINDS") or ",".join(KINDS)).split(",")) | {"commands"}
    rounds, workers = int(os.environ.get("ROUNDS") or 1 << 30), int(os.environ.get("WORKERS") or 4)
    if not kinds <= set(KINDS):
        sys.exit(f"KINDS are {','.join(KINDS)}")
    if os.geteuid() or not os.path.exists(NSRUN) or not (CACHE / "busybox").is_dir():
        sys.exit("the soak needs root, `make build`, `rootfs/build busybox` and `rootfs/build --image busybox`")
    _keep_output()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ledger, until = Ledger(), time.monotonic() + 60 * minutes
    print(f"soak: SEED={first}, {minutes:g} minutes, {', '.join(sorted(kinds))}", flush=True)
    throwaway = ThrowawayHost()
    try:
        for number in range(rounds):
            if time.monotonic() > until:
                break
            began = time.monotonic()
            play(throwaway, ledger, first + number, kinds, workers)
            total = sum(map(len, ledger.findings.values()))
            print(
                f"round {number}: {ledger.where}, {time.monotonic() - began:.0f} s, {total} findings so far", flush=True
            )
    except KeyboardInterrupt:
        print("interrupted")
    finally:
        throwaway.close()
        print(ledger.report(), flush=True)
    return 1 if ledger.findings else 0


if __name__ == "__main__":
    sys.exit(main())
