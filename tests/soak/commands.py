# SPDX-License-Identifier: Apache-2.0
"""Random commands.  Names come from small sets, so that makers and removers of the same thing meet."""

from __future__ import annotations

import dataclasses
import random

from conftest import CACHE, Host, UserHost

from soak.world import IMAGE, SCRIPT, World

PORTS = range(20500, 20508)


@dataclasses.dataclass
class Command:
    words: list[str]
    kind: str
    foreground: bool = False
    env: dict[str, str] = dataclasses.field(default_factory=dict)
    may_wait: bool = False  # for a member's end, for instance
    makes: bool = False  # something that outlives it


class Maker:
    """One worker's commands, from its own seed."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world, self.rng, self.number = world, rng, 0
        self.id = rng.randrange(1 << 32)

    def next(self) -> tuple[Host, Command]:
        who = self.rng.choice(self.world.people)
        choices = {
            self.create: 12, self.join_detached: 26, self.join_foreground: 8, self.execute: 8, self.end_member: 8, self.end_pod: 4,
            self.look: 16, self.wait: 3, self.image: 8, self.prune: 3, self.explain: 2,
        }  # fmt: skip
        (choice,) = self.rng.choices(list(choices), list(choices.values()))
        self.number += 1
        return who, choice(who)

    def first(self) -> list[tuple[Host, Command]]:
        """What a round begins with: pods, so that the first joins find some."""
        return [(who, self.create(who)) for who in self.world.people for _ in range(3)]

    def pod(self, who: Host) -> str:
        """A pod that this person may have: one's own, or one that root made for them."""
        own = ["p0", "p1", "p2"] if not isinstance(who, UserHost) else ["r0", f"o-{who.name}-0", f"o-{who.name}-1"]
        return self.rng.choice(own)

    def member(self) -> str:
        return f"m{self.rng.randrange(5)}"

    def token(self) -> str:
        return f"{self.world.prefix}{self.id:08x}-{self.number}"

    # ---- makers ------------------------------------------------------------------------------------------------

    def create(self, who: Host) -> Command:
        rng, env, words = self.rng, {}, ["pod", "create"]
        name, kind = "r0", "pod create (rootless)"
        if not isinstance(who, UserHost):
            if rng.random() < 0.5:
                owner = rng.choice([p for p in self.world.people if isinstance(p, UserHost)])
                env = {"SUDO_UID": str(owner.uid)}
                name, kind = f"o-{owner.name}-{rng.randrange(2)}", "pod create (owned)"
            else:
                name, kind = f"p{rng.randrange(3)}", "pod create"
        if rng.random() < 0.5:
            words += ["--network", "none"]
        elif rng.random() < 0.6:
            words += ["-p", f"127.0.0.1:{rng.choice(PORTS)}:80"]
        return Command([*words, name], kind, env=env, makes=True)

    def _source(self, who: Host) -> list[str]:
        return ["--image", IMAGE] if self.rng.random() < 0.5 else ["--rootfs", self.world.roots[who]]

    def join_detached(self, who: Host) -> Command:
        rng, words, volume = self.rng, ["-d", "--name", self.member()], "-"
        kind = "join -d"
        if rng.random() < 0.3:
            volume = f"vol{rng.randrange(2)}"
            words += ["-v", f"{volume}:/data"]
            kind += " -v"
        if rng.random() < 0.2:
            words += ["--rm"]
            kind += " --rm"
        elif rng.random() < 0.2:
            words += ["--restart", "on-failure:2"]
            kind += " --restart"
        if rng.random() < 0.2:
            words += ["--pid", rng.choice(["nested", "own"])]
        script = SCRIPT if rng.random() < 0.85 else "sleep 0.3; exit 3"
        words += [*self._source(who), "--", "sh", "-c", script, self.token(), volume]
        return Command(["join", self.pod(who), *words], kind, makes=True)

    def join_foreground(self, who: Host) -> Command:
        rm = ["--rm"] if self.rng.random() < 0.7 else ["--name", self.member()]
        script = self.rng.choice(["true", "exit 3", "sleep 0.2", "kill -9 $$", "seq 20000"])
        return Command(["join", self.pod(who), *rm, *self._source(who), "--", "sh", "-c", script], "join", True)

    def execute(self, who: Host) -> Command:
        script = self.rng.choice(["true", "exit 3", "cat /token || :", "sleep 0.1", "no-such-program"])
        return Command(["exec", self.member(), "sh", "-c", script], "exec", True)

    # ---- removers ----------------------------------------------------------------------------------------------

    def end_member(self, who: Host) -> Command:
        name = self.member()
        words = self.rng.choice(
            [["stop", "-t", "1", name], ["kill", name], ["kill", "-s", "TERM", name], ["rm", name], ["rm", "-f", name]]
        )
        return Command(words, " ".join(words[:2] if words[1].startswith("-") else words[:1]))

    def end_pod(self, who: Host) -> Command:
        name = self.pod(who)
        if not isinstance(who, UserHost) and self.rng.random() < 0.4:
            name = f"o-{self.rng.choice(('alice', 'bob'))}-{self.rng.randrange(2)}"
        words = self.rng.choice([["stop", "-t", "1", name], ["kill", name], ["rm", name], ["rm", "-f", name]])
        return Command(["pod", *words], f"pod {words[0]}")

    def prune(self, who: Host) -> Command:
        return Command(["pod", "prune"], "pod prune")

    # ---- the rest ----------------------------------------------------------------------------------------------

    def look(self, who: Host) -> Command:
        pod, member = self.pod(who), self.member()
        words = self.rng.choice(
            [
                ["pod", "ls"], ["pod", "ls", "--json"], ["ls"], ["ls", "-a", "--json"], ["inspect", member], ["pod", "inspect", pod],
                ["pod", "ps", pod], ["logs", member], ["logs", "--tail", "3", member], ["stats"], ["pod", "stats", pod], ["doctor"],
            ]
        )  # fmt: skip
        return Command(words, " ".join(w for w in words[:2] if w not in (pod, member) and not w.startswith("-")))

    def wait(self, who: Host) -> Command:
        return Command(["wait", self.member()], "wait", may_wait=True)

    def explain(self, who: Host) -> Command:
        made = (self.create if self.rng.random() < 0.5 else self.join_foreground)(who)
        return Command(["explain", *made.words], "explain")

    def image(self, who: Host) -> Command:
        tag = f"t{self.rng.randrange(3)}:1"
        layout = str(CACHE.parent / "images/busybox")
        words = self.rng.choice(
            [
                ["image", "load", layout], ["image", "load", "-t", tag, layout], ["image", "tag", IMAGE, tag], ["image", "rm", tag],
                ["image", "rm", "-f", tag], ["image", "prune"], ["image", "prune", "-a"], ["image", "ls"], ["image", "inspect", IMAGE], ["image", "history", tag],
            ]
        )  # fmt: skip
        return Command(words, " ".join(words[:2]))
