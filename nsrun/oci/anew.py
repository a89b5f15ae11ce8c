# SPDX-License-Identifier: Apache-2.0
"""Leave a compiled plan of `create`, by which csrc/oci.c makes the next container like this one without Python.

An engine writes a config.json for each container, which differs from that of the last one in names that it has made at random: ids,
layers, the namespaces of a sandbox.  So the plan is for every config.json that says the same but for such names, and but for the
arguments and the environment of the process, which are in no plan.

What names those are is not understood, but tried: the plan is built twice, for the container that there is and for one with other
names, by the same code.  If the two differ in these names alone, the next container's can be put in their place; if they differ in
anything else, a name means something, and there is no plan.
"""

from __future__ import annotations

import os
from struct import calcsize, pack, unpack_from

from nsrun import kernel
from nsrun._protocol import (
    CGROUP_CPUSET,
    CGROUP_PLAIN,
    CGROUP_UNIFIED,
    CONTAINER_NUMBERS,
    CREATE_NAMES,
    CREATE_PLANS,
    HOLE,
    HOLE_ARGS,
    HOLE_ENV,
    HOLE_PID,
    HOLE_START,
    OF_CGROUP,
    OF_CONFIG,
    OF_OURS,
    OF_PASSWD,
    OF_PID,
    OF_START,
    OF_STATE,
    OF_THEIRS,
    REPLAY_HEADER,
)
from nsrun.errors import BadInput
from nsrun.oci import cgroups, config, hooks, resources
from nsrun.oci.leave import NAMESPACES, ContainerCompiler, Seen, here, plan_of, whole, write
from nsrun.oci.likeness import Meaning, Text, all_places, another, differing, members_of, order_of
from nsrun.oci.plan import Facts, create_plan
from nsrun.oci.state import Container, home_in_passwd
from nsrun.oci.steps import NAMESPACE_FLAGS, WritePidFile
from nsrun.plan import INIT
from nsrun.plan.process import Release
from nsrun.run.replay import CannotReplay, encoded
from nsrun.state import codec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from nsrun.oci.run import ContainerRun
    from nsrun.plan import Plan, Replayed

    Config = dict[str, Any]

PLANS = ".plans"
#: Plans that are kept in one state directory; the oldest ones go first.
KEPT = 16
#: Options of the command line that change nothing of a plan.
_FREE = {"root", "log", "log-format", "bundle", "pid-file"}
_MOST_PASSWD = 64 << 10  # bytes of an image's /etc/passwd
_SHORTEST = 8  # letters of an id that may be another: no word of ours with which one is compared has so many
_MOST_MOUNTS = 128
_KINDS = {
    "cgroup": "cgroup",
    "ipc": "ipc",
    "mnt": "mount",
    "net": "network",
    "pid": "pid",
    "user": "user",
    "uts": "uts",
}
OTHER_TIME = "1970-01-01T00:00:00.000000000Z"


# ---- one plan -------------------------------------------------------------------------------------------------------


class Numbers(Seen):
    """Stands for what is known of a container when it has been made: for each number one that is drawn, and found again in the plan."""

    def __init__(self, container: Container, drawn: Sequence[int]) -> None:
        self.container, self.drawn = container, drawn
        self.pid, self.start = drawn[OF_PID], drawn[OF_START]
        self.passwd = ""  # what the image's says

    def file(self, name: str) -> list[int]:
        first = OF_STATE if name == "state" else OF_CONFIG
        return list(self.drawn[first : first + 5])

    def cgroup(self, path: str) -> int:
        return self.drawn[OF_CGROUP]

    def namespaces(self) -> list[list[int]]:
        return [list(self.drawn[first : first + 7]) for first in (OF_OURS, OF_THEIRS)]

    def home(self, uid: int) -> tuple[str, list[int]]:
        return home_in_passwd(self.passwd, uid), list(self.drawn[OF_PASSWD : OF_PASSWD + 5])


class CreateCompiler(ContainerCompiler):
    """Compile a plan of `create`."""

    def __init__(self, plan: Plan, run: ContainerRun, seen: Seen, facts: Facts) -> None:
        super().__init__(plan, run, seen)
        self.facts = facts
        self.is_given = True

    def process(self, name: str) -> tuple[int, int]:
        raise CannotReplay("it asks for a process that there is not yet")

    def note_of(self, note: Mapping[str, Any]) -> str:
        """Return a note as csrc/leave.h writes it, without its checksum."""
        text = codec.dumps(note)[1:] + "\n"
        for hole in (HOLE_ARGS, HOLE_ENV, HOLE_PID, HOLE_START):
            text = text.replace(f'"{self._mark}{chr(hole)}"', chr(HOLE) + chr(hole))
        return text

    def hole(self, kind: str) -> str:
        return f"{self._mark}{kind}"

    def config(self, document: Mapping[str, Any]) -> str:
        process = {**document["process"], "args": [self.hole("a")], "env": [self.hole("e")]}
        return self.note_of({**document, "process": process})

    def written(self, with_cgroups: bool, with_process: bool) -> str:
        """Return the state, as it is when the container has so much."""
        note = {**self.facts.note, "cgroups": dict(self.facts.cgroups) if with_cgroups else {}}
        if with_process:
            note |= {"pid": self.hole("i"), "start": self.hole("t")}
        return self.note_of(note)

    def cgroups(self, paths: Mapping[str, str]) -> list[Replayed]:
        """Return the steps that make the container's cgroups."""
        found: list[Replayed] = [("absent", path) for path in paths.values()]
        found.append(("note", f"{self.path}/state", self.written(with_cgroups=True, with_process=False)))
        for key, path in paths.items():
            mount = next(one.mount for one in cgroups.Machine().hierarchies if one.key == key)
            v2 = key == "0"
            kind = CGROUP_UNIFIED if v2 else CGROUP_CPUSET if "cpuset" in key.split(",") else CGROUP_PLAIN
            handle = self.make("cgroup:dir" if v2 else cgroups.handle(key))
            found.append(("make_cgroup", path, len(os.fsencode(mount)), kind, handle))
        return found


#: One of the two containers for which the plan is built: its config.json, and what was asked of the machine.
if TYPE_CHECKING:
    Case = tuple[Config, Facts]


def _other_case(old: Facts, text: str, ident: str, bundle: str) -> Case:
    """Return that of a container with other names, and with this config.json.  Raise Meaning."""
    try:
        document = config.load(codec.loads(text.encode("latin-1").decode()), "config.json")
    except (ValueError, BadInput):
        raise Meaning("a name of it is none that could be another") from None
    machine = cgroups.Machine()
    linux = document.get("linux") or {}
    asked = linux.get("resources") or {}
    rootfs = _rootfs(document, bundle)
    known = {"id": ident, "bundle": bundle, "rootfs": rootfs, "annotations": document.get("annotations") or {}}
    new = Facts(**vars(old))
    new.note = {**old.note, **known, "created": OTHER_TIME}
    new.ident, new.rootfs, new.bundle = ident, rootfs, bundle
    new.cgroups = machine.paths(linux.get("cgroupsPath") or "", ident)
    new.settings = resources.settings(asked, machine.unified)
    new.devices = resources.DeviceRules(asked["devices"]).program() if machine.unified and asked.get("devices") else b""
    return document, new


def _rootfs(document: Config, bundle: str) -> str:
    return os.path.normpath(os.path.join(bundle, document["root"]["path"]))


def _body(run: ContainerRun, case: Case, drawn: Sequence[int], passwd: str, flags: int, witnesses: Sequence[Replayed]) -> list[Replayed]:  # fmt: skip
    """Return the steps of a plan of `create` for one case, after those about config.json.  Raise CannotReplay."""
    document, facts = case
    container = Container(facts.root, facts.ident, -1)
    container.assume({**facts.note, "cgroups": dict(facts.cgroups)})
    seen = Numbers(container, drawn)
    seen.passwd = passwd
    process = document["process"]
    document = {**document, "process": {**process, "args": ["args"], "env": [f"env-{drawn[-1]:x}"]}}
    plan = create_plan(document, facts)
    compiler = CreateCompiler(plan, run, seen, facts)
    uid = (process.get("user") or {}).get("uid") or 0
    found: list[Replayed] = [("new_container", container.path, facts.bundle), *witnesses, ("plain_path", facts.bundle), ("plain_path", facts.rootfs)]  # fmt: skip
    found.append(("plain_targets", facts.rootfs, [mount["destination"] for mount in document.get("mounts") or []]))
    found.append(("home_of_image", home_in_passwd(passwd, uid), facts.rootfs, os.fsencode(passwd)))
    for step in plan.steps:
        if step.phase == INIT or isinstance(step, WritePidFile):
            continue
        form = step.replayed(compiler)
        if form is None:
            raise CannotReplay(f"csrc/oci.c has no {type(step).__name__}")
        if isinstance(step, Release):
            found += [("write_pid",), _left(whole(plan_of(run, seen, document, flags)), drawn, flags)]
        found += form
    return found


def _left(plan: bytes, drawn: Sequence[int], flags: int) -> Replayed:
    """Return the step that leaves the container's plan."""
    word = f"env-{drawn[-1]:x}\0".encode()
    magic, build, _, count = unpack_from(REPLAY_HEADER, plan)
    plan = pack(REPLAY_HEADER, magic, build, 0, count) + plan[calcsize(REPLAY_HEADER) :]  # the checksum is made anew
    first, _, second = plan.partition(pack("=I", len(word)) + word)
    if word in second:
        raise CannotReplay("the environment stands in the plan twice")
    places: list[int] = []
    for half, text in enumerate((first, second)):
        for number, value in enumerate(drawn[:CONTAINER_NUMBERS]):
            for at in all_places(text, pack("=Q", value)):
                places += [half, at, number]
    theirs = sum(1 << number for number, name in enumerate(NAMESPACES) if flags & NAMESPACE_FLAGS[_KINDS[name]])
    return "leave", first, second, places, theirs


# ---- leave it -------------------------------------------------------------------------------------------------------


def leave(run: ContainerRun, data: bytes, document: Config, facts: Facts, options: set[str]) -> None:
    """Leave the plan of a `create` that is about to be done, unless there can be none.

    data: what config.json said; document: as it was understood; options: of the command line.
    """
    try:
        if os.geteuid() or kernel.in_userns():
            raise CannotReplay("it is not of the host's own root")
        if options - _FREE:
            raise CannotReplay("it has options that a plan is not for")
        _check(facts, document)
        text = data.decode("latin-1")
        try:
            plan = _compiled(run, text, document, facts, facts.ident if len(facts.ident) >= _SHORTEST else "")
        except Meaning:
            plan = _compiled(run, text, document, facts, "")  # for this id alone
        _store(f"{facts.root}/{PLANS}", f"{kernel.checksum(members_of(text)):08x}", plan)
    except CannotReplay:
        pass
    except Exception:  # the container is there, and the next one is made by Python
        if os.environ.get("NSRUN_REPLAY") == "must":
            raise


def _check(facts: Facts, document: Config) -> None:
    """Raise CannotReplay for what csrc/oci.c does not do, and what differs from one container to the next."""
    if facts.scope or facts.console or facts.preserve or facts.foreground or facts.rootless:
        raise CannotReplay("it is not made in the usual way")
    linux, called = document.get("linux") or {}, document.get("hooks") or {}
    if any(called.get(kind) for kind in ("prestart", "createRuntime", "createContainer")):
        raise CannotReplay("it has hooks")
    if any(entry["type"] == "user" for entry in linux.get("namespaces") or []):
        raise CannotReplay("it has a user namespace")
    if any("tmpcopyup" in (mount.get("options") or []) for mount in document.get("mounts") or []):
        raise CannotReplay("a tmpfs of it is filled")
    if any(entry["type"] == "time" for entry in linux.get("namespaces") or []):
        raise CannotReplay("what an exec has to join depends on whose clock it has")
    if document["process"].get("terminal") or facts.selinux or os.environ.get("LISTEN_FDS"):
        raise CannotReplay("it has a terminal, a label, or descriptors of others")
    if facts.rootfs != _rootfs(document, facts.bundle):
        raise CannotReplay("its root, or its bundle, is named by a link")


def _witnesses(facts: Facts, document: Config) -> list[Replayed]:
    """Return what was asked of the machine."""
    powers = kernel.capability_sets()
    found = [*here(facts.note["boot"]), ("same_powers", powers["CapEff"], powers["CapBnd"])]
    with open("/proc/self/mountinfo", errors="surrogateescape", newline="\n") as file:
        lines = [line for line in file if " - cgroup" in line]
    found.append(("same_hierarchies", "".join(lines)))
    if not ((document.get("linux") or {}).get("cgroupsPath") or "").startswith("/"):
        with open("/proc/self/cgroup", errors="surrogateescape", newline="\n") as file:
            found.append(("same_text", "/proc/self/cgroup", file.read()))
    seen = {mount for _, mount, _ in facts.hierarchies}
    for one in cgroups.parse_mounts("".join(lines)):
        if one.mount not in seen:
            found.append(("hidden", one.mount, CGROUP_UNIFIED if one.unified else CGROUP_PLAIN))
    return [*found, ("absent", "/sys/fs/selinux/enforce")]


def _compiled(run: ContainerRun, text: str, document: Config, facts: Facts, ident: str) -> bytes:
    """Return the plan of `create`; `ident`: the id, where another may stand in its place.  Raise CannotReplay."""
    made = Text(text, ident)
    mounts, found_mounts = made.mounts(), document.get("mounts") or []
    targets = [mount["destination"] for mount in found_mounts]
    bound = [mount.get("type") == "bind" or bool({"bind", "rbind"} & set(mount.get("options") or [])) for mount in found_mounts]  # fmt: skip
    if len(made.numbers) > CREATE_NAMES or len(targets) > _MOST_MOUNTS or len(mounts) != 2 * len(targets):
        raise CannotReplay("it has too many names or mounts")
    others = {name: another(name) for name in made.numbers}
    bundle = facts.bundle
    for name in sorted(others, key=len, reverse=True):
        bundle = bundle.replace(name, others[name]) if len(name) >= _SHORTEST else bundle
    case: Case = (document, facts)
    other = _other_case(facts, made.other(others), others.get(ident, facts.ident), bundle)
    filters = [codec.dumps((one.get("linux") or {}).get("seccomp")) for one, _ in (case, other)]
    if filters[0] != filters[1]:
        raise Meaning("a name stands in the filter")
    drawn = [1 << 61 | int.from_bytes(os.urandom(7), "little") for _ in range(CONTAINER_NUMBERS + 1)]
    with kernel.Fd(os.open(facts.rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as root:
        passwd = kernel.read_in_root_at(root, "/etc/passwd")
    if len(passwd) > _MOST_PASSWD:
        raise CannotReplay("its /etc/passwd is too large")
    flags, witnesses = hooks.foreign(run.pid), _witnesses(facts, document)
    steps, other_steps = (_body(run, one, drawn, passwd, flags, witnesses) for one in (case, other))
    body, other_body = (b"".join(encoded(*step) for step in some) for some in (steps, other_steps))
    pairs = [(name, others[name], number) for name, number in made.numbers.items()]
    found = differing(body, other_body, [*pairs, (facts.note["created"], OTHER_TIME, -1)])
    parts = [part.encode("latin-1") for part in made.parts]
    head: list[Replayed] = [("verb", "create"), ("own_name", 0, len(ident))] if ident else [("verb", "create")]
    head.append(("config", *parts, made.lists, made.regions(), mounts, order_of(targets, bound)))
    return whole([*head, ("names", found), *steps])


def _store(directory: str, name: str, plan: bytes) -> None:
    """Keep a plan in the place of the oldest one for config.json of these members."""
    os.makedirs(directory, 0o700, exist_ok=True)
    ages: dict[str, int] = {}
    for kept in os.listdir(directory):
        try:
            ages[kept] = os.lstat(f"{directory}/{kept}").st_mtime_ns
        except FileNotFoundError:
            continue
    places = [f"{name}.{number}" for number in range(CREATE_PLANS)]
    taken = min(places, key=lambda place: ages.get(place, 0))
    others = sorted(set(ages) - {taken}, key=lambda kept: ages[kept])
    for old in others[: max(0, len(others) + 1 - KEPT)]:
        try:
            os.unlink(f"{directory}/{old}")
        except FileNotFoundError:
            continue  # another create has removed it
    write(f"{directory}/{taken}", plan, f".{os.getpid()}")
