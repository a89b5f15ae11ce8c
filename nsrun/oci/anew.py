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
from errno import ELOOP
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
from nsrun.errors import BadInput, KernelError
from nsrun.oci import cgroups, config, hooks, resources
from nsrun.oci.leave import ContainerCompiler, Seen, here, plan_of, whole, write
from nsrun.oci.plan import Facts, create_plan
from nsrun.oci.state import Container, home_in_passwd
from nsrun.oci.steps import WritePidFile
from nsrun.plan import INIT
from nsrun.plan.process import Release
from nsrun.run.replay import CannotReplay, encoded
from nsrun.state import codec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
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
OTHER_TIME = "1970-01-01T00:00:00.000000000Z"


# ---- config.json as a text ------------------------------------------------------------------------------------------


def members_of(text: str) -> bytes:
    """Return the names of all members of a JSON document, in their order and as they are written, each with a NUL.

    csrc/create.h, members_of().
    """
    found: list[str] = []

    def walk(at: int) -> None:
        if text[at] == "{":
            for key, begin, _ in _members(text, at):
                found.append(f"{key}\0")
                walk(begin)
        elif text[at] == "[":
            for begin, _ in _elements(text, at):
                walk(begin)

    walk(_after_blanks(text, 0))
    return "".join(found).encode("latin-1")


def _members(text: str, at: int) -> Iterator[tuple[str, int, int]]:
    """Yield the members of the JSON object that begins there: the name as it is written, and where its value begins and ends."""
    while True:
        at = _after_blanks(text, at + 1)
        if text[at] == "}":
            return
        _, after = codec.scan(text, at)
        begin = _after_blanks(text, _after_blanks(text, after) + 1)
        _, end = codec.scan(text, begin)
        yield text[at + 1 : after - 1], begin, end
        at = _after_blanks(text, end)
        if text[at] == "}":
            return


def _elements(text: str, at: int) -> Iterator[tuple[int, int]]:
    """Yield where each element of the JSON array that begins there begins and ends."""
    at = _after_blanks(text, at + 1)
    while text[at] != "]":
        _, end = codec.scan(text, at)
        yield at, end
        at = _after_blanks(text, end)
        at = _after_blanks(text, at + 1) if text[at] == "," else at


def _after_blanks(text: str, at: int) -> int:
    while text[at] in " \n\t\r":
        at += 1
    return at


def _lists(text: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return where the lists of the arguments and of the environment stand.  Raise CannotReplay."""
    try:
        found = [(begin, end) for key, begin, end in _members(text, _after_blanks(text, 0)) if key == "process"]
        inner = [(key, begin, end) for key, begin, end in _members(text, found[0][0])]
        places = {key: (begin, end) for key, begin, end in inner}
        if len(found) != 1 or len(places) != len(inner) or text[places["env"][0]] != "[":
            raise CannotReplay("config.json has a member twice, or no environment")
        return places["args"], places["env"]
    except (KeyError, IndexError, ValueError, StopIteration):
        raise CannotReplay("config.json has another form") from None


def _mounts(text: str) -> list[tuple[int, int]]:
    """Return where each mount stands."""
    places = [begin for key, begin, _ in _members(text, _after_blanks(text, 0)) if key == "mounts"]
    return list(_elements(text, places[0])) if len(places) == 1 and text[places[0]] == "[" else []


def _order(targets: Sequence[str], rootfs: str) -> list[int]:
    """Return which mount comes before which others: those that it may lie in, and all of them where a link is on the way."""
    pairs: list[int] = []
    paths = [os.path.normpath(f"/{target}") for target in targets]
    with kernel.Fd(os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as root:
        links = any(_has_link(root, path) for path in paths)
    for number, path in enumerate(paths):
        for other in range(number):
            one, two = f"{paths[other]}/", f"{path}/"
            if links or one.startswith(two) or two.startswith(one):
                pairs += [other, number]
    return pairs


def _has_link(root: int, path: str) -> bool:
    """Return whether a link is on the way to a path inside a root directory."""
    try:
        os.close(kernel.open_in_root(root, path, os.O_PATH, kernel.RESOLVE_NO_SYMLINKS))
    except KernelError as error:
        return error.errno == ELOOP
    return False


_HEX = frozenset("0123456789abcdef")
_LETTERS = frozenset("abcdef")
#: What parts of a text are: digits, other letters, a dash, anything else.
_KINDS = {
    byte: letter if letter in _HEX or letter == "-" else "Z" if letter.isascii() and letter.isalnum() else " "
    for byte, letter in enumerate(map(chr, range(256)))
}
_UUID = [8, 4, 4, 4, 12]


def names_in(text: str, ident: str) -> list[tuple[int, str]]:
    """Return the names that a text has and that were made at random, with their places.  Pure.

    They are the container's id, hexadecimal numbers of eight digits and more, with a letter among them, UUIDs, the pids in paths of
    namespaces, and the time, as engines have it in annotations.
    """
    found: list[tuple[int, str]] = []
    at = 0
    for word in text.split('"'):
        if word[4:5] == "-" and word[10:11] == "T" and _is_time(word):
            found.append((at, word))
        at += len(word) + 1
    if ident:
        at = text.find(ident)
        while at >= 0:
            found.append((at, ident))
            at = text.find(ident, at + len(ident))
        text = text.replace(ident, "~" * len(ident))
    at = text.find('"/proc/')
    while at >= 0:
        begin = at + len('"/proc/')
        pid, _, rest = text[begin : begin + 32].partition("/")
        if pid.isdecimal() and rest.startswith("ns/"):
            found.append((begin, pid))
        at = text.find('"/proc/', begin)
    kinds, at = text.translate(_KINDS), 0
    for word in kinds.split():
        if len(word) < 8:
            continue
        at = kinds.index(word, at)
        parts, where = word.split("-"), at
        while parts:
            taken = 0
            if [len(part) for part in parts[:5]] == _UUID and _HEX.issuperset("".join(parts[:5])):
                taken = 5
            elif len(parts[0]) >= 8 and _HEX.issuperset(parts[0]) and _LETTERS & set(parts[0]):
                taken = 1
            size = len("-".join(parts[: taken or 1]))
            if taken:
                found.append((where, text[where : where + size]))
            where += size + 1
            del parts[: taken or 1]
        at += len(word)
    return sorted(found)


_DIGITS = {ord(digit): "9" for digit in "012345678"}


def _is_time(word: str) -> bool:
    """Return whether a word is a time of RFC 3339, with a fraction or without."""
    whole, _, fraction = word.translate(_DIGITS).partition(".")
    return whole.rstrip("Z") == "9999-99-99T99:99:99" and not fraction.rstrip("Z").strip("9")


def _another(name: str) -> str:
    """Return another name of the same length and form."""
    while True:
        drawn = zip(name, os.urandom(len(name)), strict=True)
        if name.isdecimal() or _is_time(name):
            found = "".join("123456789"[byte % 9] if old.isdecimal() else old for old, byte in drawn)
        else:
            found = "".join("0123456789abcdef"[byte % 16] if old != "-" else "-" for old, byte in drawn)
        if found != name:
            return found


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

    def written(self, with_process: bool) -> str:
        """Return the state, before there is a process and after."""
        note = {**self.facts.note, "cgroups": dict(self.facts.cgroups)}
        if with_process:
            note |= {"pid": self.hole("i"), "start": self.hole("t")}
        return self.note_of(note)

    def cgroups(self, paths: Mapping[str, str]) -> list[Replayed]:
        """Return the steps that make the container's cgroups."""
        found: list[Replayed] = [("absent", path) for path in paths.values()]
        found.append(("note", f"{self.path}/state", self.written(with_process=False)))
        for key, path in paths.items():
            mount = next(one.mount for one in cgroups.Machine().hierarchies if one.key == key)
            v2 = key == "0"
            kind = CGROUP_UNIFIED if v2 else CGROUP_CPUSET if "cpuset" in key.split(",") else CGROUP_PLAIN
            handle = self.make("cgroup:dir" if v2 else cgroups.handle(key))
            found.append(("make_cgroup", path, len(os.fsencode(mount)), kind, handle))
        return found


class Case:
    """One of the two containers for which the plan is built: its config.json, and what was asked of the machine."""

    def __init__(self, document: Config, facts: Facts) -> None:
        self.document, self.facts = document, facts


def _other_case(case: Case, text: str, ident: str, swap: Callable[[str], str]) -> Case:
    """Return that of a container with other names, and with this config.json.  Raise CannotReplay when a name means something."""
    try:
        document = config.load(codec.loads(text.encode("latin-1").decode()), "config.json")
    except (ValueError, BadInput):
        raise CannotReplay("a name of it is none that could be another") from None
    old = case.facts
    machine = cgroups.Machine()
    linux = document.get("linux") or {}
    asked = linux.get("resources") or {}
    bundle = swap(old.bundle)
    rootfs = _rootfs(document, bundle)
    known = {"id": ident, "bundle": bundle, "rootfs": rootfs, "annotations": document.get("annotations") or {}}
    new = Facts(**vars(old))
    new.note = {**old.note, **known, "created": OTHER_TIME}
    new.ident, new.rootfs, new.bundle, new.properties = ident, rootfs, bundle, asked
    new.cgroups = machine.paths(linux.get("cgroupsPath") or "", ident)
    new.settings = resources.settings(asked, machine.unified)
    new.devices = resources.DeviceRules(asked["devices"]).program() if machine.unified and asked.get("devices") else b""
    return Case(document, new)


def _rootfs(document: Config, bundle: str) -> str:
    return os.path.normpath(os.path.join(bundle, document["root"]["path"]))


def _body(run: ContainerRun, case: Case, drawn: Sequence[int], passwd: str, flags: int, witnesses: Sequence[Replayed]) -> list[Replayed]:  # fmt: skip
    """Return the steps of a plan of `create` for one case, after those about config.json.  Raise CannotReplay."""
    facts, document = case.facts, case.document
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
    found.append(("home_of_image", home_in_passwd(passwd, uid), facts.rootfs, os.fsencode(passwd)))
    for step in plan.steps:
        if step.phase == INIT or isinstance(step, WritePidFile):
            continue
        form = step.replayed(compiler)
        if form is None:
            raise CannotReplay(f"csrc/oci.c has no {type(step).__name__}")
        if isinstance(step, Release):
            found += [("write_pid",), _left(whole(plan_of(run, seen, document, flags)), drawn)]
        found += form
    return found


def _left(plan: bytes, drawn: Sequence[int]) -> Replayed:
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
            for at in _all(text, pack("=Q", value)):
                places += [half, at, number]
    return "leave", first, second, places


def _all(text: Any, part: Any) -> list[int]:
    """Return where a part stands in a text."""
    found, at = [], text.find(part)
    while at >= 0:
        found.append(at)
        at = text.find(part, at + 1)
    return found


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
        names = [facts.ident, ""] if len(facts.ident) >= _SHORTEST else [""]
        for number, ident in enumerate(names):
            try:
                plan = _compiled(run, text, document, facts, ident)
                break
            except CannotReplay:
                if number == len(names) - 1:
                    raise
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
    return [*found, ("absent", "/sys/fs/selinux/enforce")]


def _compiled(run: ContainerRun, text: str, document: Config, facts: Facts, ident: str) -> bytes:
    """Return the plan of `create`; `ident`: the id, where another may stand in its place.  Raise CannotReplay."""
    args, env = _lists(text)
    turned = env < args
    (begin, end), (begin2, end2) = sorted((args, env))
    parts = [text[:begin], text[end:begin2], text[end2:]]
    places = names_in("".join(parts), ident)
    edges = [0, len(parts[0]), len(parts[0]) + len(parts[1]), sum(map(len, parts))]
    if any(at < edge < at + len(name) for at, name in places for edge in edges):
        raise CannotReplay("a name stands where a list does")
    own = [ident] if ident else []
    numbers = {name: number for number, name in enumerate(dict.fromkeys([*own, *(name for _, name in places)]))}
    if len(numbers) > CREATE_NAMES:
        raise CannotReplay(f"it has more than {CREATE_NAMES} names")
    others = {name: _another(name) for name in numbers}

    def swap(path: str) -> str:
        for name in sorted(others, key=len, reverse=True):
            path = path.replace(name, others[name]) if len(name) >= _SHORTEST else path
        return path

    pieces = list("".join(parts))
    for at, name in places:
        pieces[at : at + len(name)] = others[name]
    joined = "".join(pieces)
    first, second, third = (joined[edges[n] : edges[n + 1]] for n in range(3))
    case = Case(document, facts)
    other = _other_case(case, f'{first}["list"]{second}["list"]{third}', others.get(ident, facts.ident), swap)
    if codec.dumps((document.get("linux") or {}).get("seccomp")) != codec.dumps((other.document.get("linux") or {}).get("seccomp")):  # fmt: skip
        raise CannotReplay("a name stands in the filter")
    drawn = [1 << 61 | int.from_bytes(os.urandom(7), "little") for _ in range(CONTAINER_NUMBERS + 1)]
    with kernel.Fd(os.open(facts.rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as root:
        passwd = kernel.read_in_root_at(root, "/etc/passwd")
    if len(passwd) > _MOST_PASSWD:
        raise CannotReplay("its /etc/passwd is too large")
    flags = hooks.foreign(run.pid)
    witnesses = _witnesses(facts, document)
    steps, other_steps = (_body(run, one, drawn, passwd, flags, witnesses) for one in (case, other))
    body, other_body = (b"".join(encoded(*step) for step in some) for some in (steps, other_steps))
    pairs = [(name, others[name], number) for name, number in numbers.items()]
    found = _differing(body, other_body, [*pairs, (facts.note["created"], OTHER_TIME, -1)])
    regions = [number for at, name in places for number in (at, len(name), numbers[name])]
    raw = [part.encode("latin-1") for part in parts]
    targets = [mount["destination"] for mount in document.get("mounts") or []]
    taken = [(begin, end - begin), (begin2, end2 - begin2)]  # which is in none of the parts
    mounts = [at - sum(size for where, size in taken if where < at) for place in _mounts(text) for at in place]
    if len(mounts) != 2 * len(targets) or len(targets) > _MOST_MOUNTS:
        raise CannotReplay("it has too many mounts")
    order = _order(targets, facts.rootfs)
    head = [
        ("verb", "create"),
        *(("own_name", 0, len(name)) for name in own),
        ("config", *raw, int(turned), regions, mounts, order),
        ("names", found),
    ]
    return whole([*head, *steps])


def _differing(body: bytes, other: bytes, names: Sequence[tuple[str, str, int]]) -> list[int]:
    """Return the places at which one plan has a name where the other has another: its number, and the distance from the end.

    Raise CannotReplay when the plans differ in anything else.
    """
    found: list[int] = []
    made, taken = bytearray(body), bytearray(len(body))
    if len(body) == len(other):
        for name, its_other, number in sorted(names, key=lambda one: len(one[0]), reverse=True):
            old, new, size = name.encode(), its_other.encode(), len(name)
            for at in _all(body, old):
                if other[at : at + size] == new and not any(taken[at : at + size]):
                    made[at : at + size], taken[at : at + size] = new, b"\1" * size
                    found += [number, len(body) - at]
    if made != other:
        raise CannotReplay("a name means something")
    return found


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
    for old in sorted(set(ages) - {taken}, key=lambda kept: ages[kept])[: max(0, len(ages) - KEPT + 1)]:
        os.unlink(f"{directory}/{old}")
    write(f"{directory}/{taken}", plan)
