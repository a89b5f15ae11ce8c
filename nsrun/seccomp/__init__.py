# SPDX-License-Identifier: Apache-2.0
"""System call filters: compile a profile in Docker's format to BPF programs, once, and keep them in LIB/seccomp.

A profile is an allow-list with a default action, and rules that depend on capabilities (`includes`, `excludes`) or on
arguments.  A rule that refuses a call, or some arguments of it, that another rule allows becomes part of a second
filter, since the kernel takes the strictest result of all filters (seccomp(2)).  An argument is compared in as many
bits as the kernel reads of it (widths.py).  Compiling takes 28 ms and needs libseccomp, so the result is kept, and a
join only reads a file.  Our own profile is default.json.
"""

from __future__ import annotations

import os

from nsrun._protocol import MAX_FILTER
from nsrun.errors import BadInput, NsrunError
from nsrun.schema import read_document

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nsrun.state import State

    Profile = dict[str, Any]

DEFAULT = os.path.join(os.path.dirname(__file__), "default.json")
MAX_PROFILE = 1 << 20
MAX_COMPILED = 4 + 2 * (4 + 8 * MAX_FILTER)  # bytes: a checksum, and two programs
MAX_ALTERNATIVES = 256  # rules to which one rule that compares several arguments may expand
COMPILER = 3  # increase it when programs() compiles a profile differently, so that kept filters are compiled again
_HINT = "use Docker's format: https://docs.docker.com/engine/security/seccomp/"


def key(profile: str, caps: int) -> str:
    """Return the name of the compiled profile ("" for ours, else a file).

    It changes with everything from which the programs are made.  Raise BadInput when the file can't be read.
    """
    if not profile:
        st = os.stat(DEFAULT)
        return f"default-{COMPILER}-{st.st_mtime_ns:x}-{st.st_size:x}-{caps:x}"
    import hashlib

    return f"{hashlib.sha256(_read(profile)).hexdigest()}-{COMPILER}-{caps:x}"


def compiled(state: State, name: str, profile: str, caps: int) -> bytes:
    """Return the programs, each as u32 length (instructions) and struct sock_filter[].

    Raise BadInput for an invalid profile, and NsrunError without libseccomp, or when a member's kept filter is gone.
    """
    path = f"{state.lib}/seccomp/{name}"
    try:
        found = read_document(path, MAX_COMPILED)
        if found[:4] == _checksum(found[4:]):
            return found[4:]
    except (FileNotFoundError, BadInput):
        pass  # BadInput: something else is in its place, or it is larger than any filter
    if not profile and not name.startswith("default-"):
        raise NsrunError(f"the member's system call filter is gone from {path}, or damaged", hint="start a new member")
    import json

    text = _read(profile or DEFAULT)
    what = f"seccomp profile {profile!r}" if profile else "nsrun's own seccomp profile"
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{what} is not JSON: {error}", hint=_HINT) from None
    if isinstance(document, dict) and isinstance(document.get("linux"), dict):  # it is a bundle's config.json
        document = document["linux"].get("seccomp")
    from nsrun.state import make_directory, new_id

    data = programs(document, caps, what)
    make_directory(f"{state.lib}/seccomp")
    temporary = f"{path}.{new_id()}.tmp"  # several processes or threads may compile at the same time
    with open(temporary, "xb") as file:
        file.write(_checksum(data) + data)
    os.rename(temporary, path)
    return data


def _checksum(data: bytes) -> bytes:
    """Return the first bytes of a kept filter: without them, half a file would pass for a whole filter."""
    from nsrun import kernel

    return kernel.checksum(data).to_bytes(4, "little")


def _read(path: str) -> bytes:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            data = file.read(MAX_PROFILE + 1)
    except OSError as error:
        raise BadInput(
            f"seccomp profile {path!r}: {error.strerror}", hint="name a file, or: seccomp=unconfined"
        ) from None
    if len(data) > MAX_PROFILE:
        raise BadInput(f"seccomp profile {path!r} is larger than 1 MiB")
    return data


# ---- profile → filters -------------------------------------------------------------------------------------


class Rule:
    """One rule that applies here: its calls, its action, and its arguments."""

    def __init__(self, names: list[str], action: str, errno: int, args: list[tuple[int, str, int, int]]) -> None:
        self.names, self.action, self.errno, self.args = names, action, errno, args


def rules(document: Any, caps: int, what: str) -> list[Rule]:
    """Return the rules that apply to this machine and these capabilities (a bit mask).  Pure except for uname(2)."""
    from nsrun.linux import capability_names

    if not isinstance(document, dict) or not isinstance(document.get("syscalls", []), list):
        raise BadInput(f"{what} is not an object with a list `syscalls`", hint=_HINT)
    has = {f"CAP_{name.upper()}" for name in capability_names(caps)}
    found = []
    for number, entry in enumerate(document.get("syscalls", []), 1):
        try:
            if _applies(entry.get("includes") or {}, entry.get("excludes") or {}, has):
                names = entry.get("names") or [entry["name"]]
                if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                    raise TypeError
                args = [(int(a["index"]), str(a["op"]), int(a["value"]), int(a.get("valueTwo") or 0)) for a in entry.get("args") or []]  # fmt: skip
                if any(not 0 <= index <= 5 or min(v, w) < 0 or max(v, w) >= 1 << 64 for index, _, v, w in args):
                    raise ValueError
                found.append(Rule(names, str(entry["action"]), _errno(entry.get("errnoRet")), args))
        except (AttributeError, KeyError, TypeError, ValueError):
            raise BadInput(f"{what}: rule {number} is invalid", hint=_HINT) from None
    return found


def _applies(includes: Profile, excludes: Profile, has: set[str]) -> bool:
    arch = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    if includes.get("arches") and arch not in includes["arches"] or arch in (excludes.get("arches") or ()):
        return False
    if not has.issuperset(includes.get("caps") or ()) or has.intersection(excludes.get("caps") or ()):
        return False
    if includes.get("minKernel"):  # the format has it
        release = [int(n) for n in os.uname().release.split("-")[0].split(".")[:2]]
        return release >= [int(n) for n in str(includes["minKernel"]).split(".")[:2]]
    return True


#: The keys of a profile: config-linux.md, "Seccomp", and those that engines add.
_KEYS = frozenset(
    (
        "architectures",
        "archMap",
        "defaultAction",
        "defaultErrnoRet",
        "defaultErrno",
        "flags",
        "listenerMetadata",
        "listenerPath",
        "syscalls",
    )
)


def programs(document: Any, caps: int, what: str, notify: bool = False) -> bytes:
    """Return the filters of a profile; `notify`: a listener may be asked.  Raise NsrunError without libseccomp."""
    import struct

    try:
        import pyseccomp as library  # type: ignore[import-untyped]
    except (ImportError, RuntimeError, OSError) as error:
        raise NsrunError(
            f"system call filters need libseccomp: {error}",
            hint="apt-get install libseccomp2; or --security-opt seccomp=unconfined",
        ) from None

    found = rules(document, caps, what)
    if "defaultAction" not in document or (unknown := sorted(set(map(str, document)) - _KEYS)):
        wrong = (
            f"{unknown[0]!r} is not a key of a profile" if "defaultAction" in document else "it has no defaultAction"
        )
        raise BadInput(f"{what}: {wrong}", hint=_HINT)
    try:
        errno, architectures = _errno(document.get("defaultErrnoRet")), _architectures(document, library)
    except (TypeError, ValueError):
        raise BadInput(f"{what}: defaultErrnoRet, architectures or archMap are invalid", hint=_HINT) from None
    default = _action(library, str(document["defaultAction"]), errno, what)
    allowed = {name for rule in found if rule.action == "SCMP_ACT_ALLOW" for name in rule.names}
    first, second = library.SyscallFilter(default), library.SyscallFilter(library.ALLOW)
    refusals = 0
    for target in (first, second):
        for arch in architectures:
            if not target.exist_arch(arch):
                target.add_arch(arch)
        target.set_attr(library.Attr.ACT_BADARCH, library.ERRNO(38))
        target.set_attr(library.Attr.CTL_NNP, 0)
        target.set_attr(library.Attr.CTL_OPTIMIZE, 2)  # a binary tree, since libseccomp 2.5
    for rule in found:
        action = _action(library, rule.action, rule.errno, what, notify)
        for name in rule.names:
            strict = rule.action != "SCMP_ACT_ALLOW" and name in allowed
            target = second if strict else first
            if action == default and not strict:
                continue  # it changes nothing
            if not _known(library, name):
                continue  # this libseccomp or this machine does not have the call
            for comparisons in _alternatives(library, name, rule.args, what):
                try:
                    target.add_rule(action, name, *comparisons)
                    refusals += strict
                except OSError as error:
                    raise BadInput(f"{what}: rule for {name}: {error.strerror}", hint=_HINT) from None
    data = b""
    for target in (first, second) if refusals else (first,):
        memory = os.memfd_create("bpf", os.MFD_CLOEXEC)
        with os.fdopen(memory, "r+b") as file:
            target.export_bpf(file)
            file.seek(0)
            code = file.read()
        if not code or len(code) // 8 > MAX_FILTER:
            raise BadInput(f"{what} is too large: {len(code) // 8} instructions, the kernel accepts {MAX_FILTER}")
        data += struct.pack("=I", len(code) // 8) + code
    return data


def _errno(value: Any) -> int:
    """Return the error of a refused call, EPERM by default.  Raise TypeError or ValueError for an invalid one."""
    number = 1 if value is None else int(value)
    if not 0 <= number <= 4095:
        raise ValueError
    return number


def _known(library: Any, name: str) -> bool:
    try:
        return bool(library.resolve_syscall(library.system_arch(), name) != -1)
    except (OSError, ValueError, RuntimeError):
        return False


def _architectures(document: Profile, library: Any) -> list[int]:
    native = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}.get(os.uname().machine, "")
    names = list(document.get("architectures") or [])
    for entry in document.get("archMap") or []:
        if isinstance(entry, dict) and entry.get("architecture") == native:
            names += entry.get("subArchitectures") or []
    found = [getattr(library.Arch, str(name).removeprefix("SCMP_ARCH_"), None) for name in names]
    return [arch for arch in found if arch is not None]


def _action(library: Any, word: str, errno: int, what: str, notify: bool = False) -> int:
    name = word.removeprefix("SCMP_ACT_")
    if name == "NOTIFY" and notify:
        return int(library.NOTIFY)
    if name in ("ERRNO", "TRACE"):
        return int(getattr(library, name)(errno))
    if name in ("ALLOW", "KILL", "KILL_PROCESS", "KILL_THREAD", "TRAP", "LOG"):
        return int(getattr(library, name))
    raise BadInput(
        f"{what}: action {word!r} is not known", hint="use SCMP_ACT_ALLOW, ERRNO, KILL, KILL_PROCESS, TRAP or LOG"
    )


def _alternatives(library: Any, call: str, args: list[tuple[int, str, int, int]], what: str) -> list[list[Any]]:
    """Return lists of libseccomp's comparisons; the rule applies when all of one list are true."""
    from nsrun.seccomp.widths import masked, width

    found: list[list[Any]] = [[]]
    for index, word, value, two in args:
        name = word.removeprefix("SCMP_CMP_")
        if name not in ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"):
            raise BadInput(f"{what}: comparison {word!r} is not known", hint=_HINT)
        bits = width(call, index)
        if bits == 64:
            operands = (value, two) if name == "MASKED_EQ" else (value,)
            ways = [[library.Arg(index, getattr(library, name), *operands)]]
        else:
            try:
                pairs = masked(name, value, two, bits)
            except BadInput as error:
                raise BadInput(f"{what}: rule for {call}, argument {index}: {error.message}", hint=_HINT) from None
            ways = [[library.Arg(index, library.MASKED_EQ, *pair)] if pair[0] else [] for pair in pairs]
        if len(found) * len(ways) > MAX_ALTERNATIVES:
            raise BadInput(f"{what}: rule for {call}: it compares too much at once", hint="split it into two rules")
        found = [[*those, *these] for those in found for these in ways]
    return found
