# SPDX-License-Identifier: Apache-2.0
"""`nsrun join`: ask the machine, decide what the member is, build the plan, run it."""

from __future__ import annotations

import os
from time import time_ns

from nsrun._protocol import LOG_CAP
from nsrun.errors import BadInput, NsrunError, StepError, UsageError
from nsrun.kernel import nsrun_command
from nsrun.lifecycle import (
    NO_ID,
    OF_JOIN,
    check_allowed,
    check_parent,
    check_userns,
    door_of,
    environment_options,
    explain_exec,
    need_powers,
    tell_event,
)
from nsrun.linux import capability_mask
from nsrun.plan.member import Request, join_plan
from nsrun.run import Run
from nsrun.schema import check_name, exists
from nsrun.spec.member import (
    EVERY_CAPABILITY,
    asked_mounts,
    bundle_shape,
    given_mounts,
    member_capabilities,
    member_spec,
    refused_capabilities,
    security_options,
)
from nsrun.spec.options import ZONES, parse_count, parse_labels
from nsrun.state import State, new_id, timestamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from nsrun.plan import Plan
    from nsrun.types import Bundle, ImageConfig, JoinOptions, MemberFacts, MemberNote, MemberSpec, Mount, PodNote

    Options = Mapping[str, Any]
    Record = dict[str, Any]  # of an image: nsrun.image.shapes


def _check_rootfs(state: State, path: str) -> str:
    """Return the absolute path of a root directory.  Raise BadInput unless it is one, and not empty."""
    if not path:
        raise BadInput("--rootfs is empty", hint="is a shell variable unset?")
    real = os.path.realpath(path)
    if not exists(path, "rootfs"):
        raise BadInput(
            f"rootfs {path!r} does not exist", hint="rootfs/ has recipes that build one: make -C rootfs busybox"
        )
    if not os.path.isdir(real):
        raise BadInput(
            f"rootfs {path!r} is not a directory", hint="unpack an archive first: mkdir DIR; tar -C DIR -xf FILE"
        )
    if not os.listdir(real):
        raise BadInput(f"rootfs {path!r} is empty")
    state.seen_inside.append((real, "/", os.stat(real), time_ns()))
    if real == "/":
        raise BadInput("rootfs / is the host itself", hint="leave --rootfs out to run on the host's own filesystem")
    return real


def _check_owner(root: str, pod: PodNote) -> None:
    """Raise BadInput when the pod has no id for the owner of a rootfs; an ordinary user can't map it."""
    from nsrun.spec.idmaps import to_pod

    st = os.stat(root)
    if to_pod(pod["user"]["maps"]["uid"], st.st_uid) < 0:
        raise BadInput(
            f"rootfs {root!r} belongs to uid {st.st_uid} of this machine: in a pod of {pod['owner']}'s its files would be nobody's",
            hint="sudo nsrun join maps its ids; or take an image of your own: nsrun image load FILE, then --image",
        )


def _bundle(path: str) -> Bundle:
    """Return what nsrun reads of a bundle's config.json, its root's path made one of the host.  Raise BadInput."""
    from nsrun.schema import check, read_document
    from nsrun.state import codec

    if not path:
        raise BadInput("--bundle is empty", hint="is a shell variable unset?")
    try:
        document: Bundle = codec.loads(read_document(f"{path}/config.json", 4 << 20).decode())
    except OSError as error:
        raise BadInput(
            f"bundle {path!r}: {error.strerror}: config.json", hint="a bundle holds config.json and the root it names"
        ) from None
    except (ValueError, RecursionError):
        raise BadInput(f"bundle {path!r}: config.json is not JSON") from None
    check(document, bundle_shape(), f"bundle {path!r}: config.json")
    if any((document.get("hooks") or {}).values()):
        raise BadInput(
            f"bundle {path!r}: config.json has hooks, and nsrun runs none", hint="take `hooks` out, or run it with crun"
        )
    document["root"]["path"] = os.path.join(path, document["root"].get("path") or "rootfs")
    return document


class Source:
    """Where a member's files come from: `root` is a directory, "/" the host's own; of an image `layers` are its directories."""

    __slots__ = ("bundle", "image", "layers", "root")

    def __init__(
        self, root: str, *, bundle: Bundle | None = None, image: Record | None = None, layers: Sequence[str] = ()
    ) -> None:
        self.root, self.layers = root, tuple(layers)
        self.bundle: Bundle = bundle or {}
        self.image: Record = image or {}

    @property
    def config(self) -> ImageConfig:
        config: Any = {"Entrypoint": [], **self.image["process"]} if self.image else {}
        known: ImageConfig = config
        return known


class Former:
    """The life before this one, of a member that is restarted: its note, and what its monitor hands on.

    lead: the nsrun in the foreground that waits for us, when a door forked us.  locks: descriptors of the files by whose locks
    others know that we keep the member, and what it wrote; -1: none.
    """

    __slots__ = ("lead", "locks", "note")

    def __init__(self, note: MemberNote, lead: int = -1, locks: tuple[int, int] = (-1, -1)) -> None:
        self.note, self.lead, self.locks = note, lead, locks


class Joining:
    """A member that is about to be made: its plan, and what the plan was built from."""

    __slots__ = ("layers", "note", "plan", "spec")

    def __init__(self, plan: Plan, spec: MemberSpec, note: MemberNote, layers: Sequence[str]) -> None:
        self.plan, self.spec, self.note, self.layers = plan, spec, note, layers


def _source(state: State, options: JoinOptions, former: Former | None) -> Source:
    """Return where the member's files come from.  Raise BadInput or UsageError for options that contradict each other.

    An empty value is no option left out: --rootfs "$UNSET" must not end up on the host's own filesystem.
    """
    rootfs, image, bundle = options.get("rootfs"), options.get("image"), options.get("bundle")
    named = [name for name, value in (("rootfs", rootfs), ("image", image), ("bundle", bundle)) if value is not None]
    if len(named) > 1:
        raise BadInput(f"--{named[0]} and --{named[1]} exclude each other")
    if bundle is not None:
        document = _bundle(bundle)
        source = Source(_check_rootfs(state, document["root"]["path"]), bundle=document)
    elif rootfs is not None:
        source = Source(_check_rootfs(state, rootfs))
    elif image is not None:
        from nsrun.image import lookup

        # a restart keeps the image that it began with, whatever has the name now
        record = lookup.find(state, former.note["image_id"] if former else image)
        layers = lookup.trees(state, record)
        source = Source(layers[0] if layers else lookup.empty_root(state), image=record, layers=layers)
        if options.get("writable"):
            raise BadInput(
                "--writable needs --rootfs: an image is shared", hint="nsrun image unpack REF DIR, then --rootfs"
            )
    else:
        source = Source("/")
    if options.get("writable") and options.get("read_only"):
        raise UsageError("--writable and --read-only contradict each other")
    if source.root == "/":
        if options.get("writable"):
            raise BadInput(
                "--writable needs --rootfs", hint="without one, the member writes to the host's filesystem anyway"
            )
        if options.get("read_only"):
            raise BadInput("--read-only needs --rootfs, --image or --bundle")
        _check_meant(state, options)
    return source


def gather(
    state: State, pod: PodNote, options: JoinOptions, name: str, ident: str, source: Source, moved: dict[str, str]
) -> MemberFacts:
    """Return the facts that a member's spec is made from: everything that is asked of the machine.

    `moved` gets the targets of mounts that symlinks lead elsewhere.  `ident` NO_ID: for explain, which needs no powers.
    """
    from nsrun.host import cgroup

    group = pod.get("cgroup") or ""
    passwd, accounts = _accounts(state, source)
    facts: MemberFacts = {
        "name": name,
        "id": ident,
        "pod": pod,
        "root": source.root,
        "bundle": source.bundle,
        "image": source.config,
        "passwd": passwd,
        "group": accounts,
        "environ": os.environ,
        "cgroup": _cgroup(state, pod, group, name, ident),
        "cgroup_v2": bool(group) or bool(cgroup.mount_point()),
    }
    if source.root == "/":  # nothing is made in the host's own tree: what is missing there is not covered, either
        facts["absent"] = [
            m["destination"] for m in given_mounts(options, facts) if not os.path.exists(m["destination"])
        ]
    facts["asked"] = _arrange(asked_mounts(options, facts), source.layers or [source.root], moved)
    if not pod.get("user"):  # else its user namespace has every capability
        facts["granted"] = need_powers(OF_JOIN if ident != NO_ID else (), "a member")
        if ident != NO_ID:
            check_userns(pod)
    elif state.uid and not source.image and source.root != "/":
        _check_owner(source.root, pod)
    return facts


def _cgroup(state: State, pod: PodNote, group: str, name: str, ident: str) -> str:
    """Return the path of a member's cgroup; "" where the pod has none.

    A cgroup keeps its name while its member is renamed, so another member of that name gets one with its id.
    """
    if not group:
        return ""
    path = f"{group}/{'root' if pod.get('user') and not state.uid else 'm'}-{name}"
    if not os.path.isdir(path):
        return path
    others = (note for note in state.all("members") if note["cgroup"] == path)
    return f"{path}.{ident}" if any(note["id"] != ident and note["name"] != name for note in others) else path


def _filter(options: JoinOptions, facts: MemberFacts) -> tuple[str, str]:
    """Return the name of the compiled seccomp filter ("": unconfined) and the file of its profile ("": nsrun's own)."""
    from nsrun import seccomp

    bundle: Bundle = facts.get("bundle") or {}
    security = security_options(options, bundle)
    if security.seccomp == "unconfined":
        return "", ""
    profile = "" if security.seccomp == "default" else security.seccomp
    if not security.asked and (bundle.get("linux") or {}).get("seccomp"):
        profile = f"{options['bundle']}/config.json"
    caps = capability_mask(member_capabilities(options, bundle, facts.get("granted", EVERY_CAPABILITY)))
    return seccomp.key(profile, caps), profile


def _place_volumes(state: State, spec: MemberSpec) -> None:
    """Set the directory of each volume: a named one is shared, any other belongs to this member alone."""
    upper = state.upper(spec["annotations"]["nsrun.id"])
    for number, mount in enumerate(spec["mounts"]):
        if mount["type"] == "volume":
            name = mount["source"]
            mount["source"] = f"{state.lib}/volumes/{name}" if name else f"{upper}/volume-{number}"


def plan_join(
    state: State,
    pod: PodNote,
    options: Options,
    request: Request,
    former: Former | None = None,
    ident: str = "",
) -> Joining:
    """Return the plan of `join`, and what it was built from; nothing is done.  `ident`: the member's id, NO_ID for explain."""
    ident = former.note["id"] if former else ident or new_id()
    wanted = former.note["name"] if former else options.get("name")
    name = check_name(f"m-{ident}" if wanted is None else wanted, "member")
    moved: dict[str, str] = {}
    asked: Any = options
    known: Any = {**options, "env": environment_options(asked)}
    source = _source(state, asked, former)
    facts = gather(state, pod, known, name, ident, source, moved)
    facts["filter"], request.profile = _filter(known, facts)
    spec = member_spec(known, facts)
    _place_volumes(state, spec)
    note = _note(spec, pod, known, request, source, former)
    request.again, request.layers, request.staging = former is not None, source.layers, state.upper(ident)
    request.door = door_of(state, pod)
    plan = join_plan(spec, pod, note, request)
    plan.facts["moved"] = moved
    plan.facts["refused"] = refused_capabilities(known, facts.get("granted", EVERY_CAPABILITY))
    return Joining(plan, spec, note, source.layers)


def _note(
    spec: MemberSpec, pod: PodNote, options: JoinOptions, request: Request, source: Source, former: Former | None
) -> MemberNote:
    """Return the note of a member."""
    names = spec["annotations"]
    now = timestamp() if names["nsrun.id"] != NO_ID else ""
    note: MemberNote = {
        "id": names["nsrun.id"],
        "name": names["nsrun.name"],
        "pod": pod["name"],
        "pod_id": pod["id"],
        "created": former.note["created"] if former else now,
        "started": now,
        "command": spec["process"]["args"],
        "rootfs": "" if source.image else source.root,
        "cgroup": spec["linux"]["cgroupsPath"],
        "shares_pid": (options.get("pid") or "pod") != "own",
        "terminal": spec["process"]["terminal"],
        "stop_signal": int(names["nsrun.stop-signal"]),
        "restart": names["nsrun.restart"],
        "rm": bool(options.get("rm")),
        "detached": request.detach or request.background,
        "restarts": former.note["restarts"] + 1 if former else 0,
    }
    if options.get("label"):
        note["labels"] = parse_labels(options["label"])
    if options.get("ends_pod"):
        note["ends_pod"] = True
    if source.image or any("health" in key for key in options):
        from nsrun.spec.health import parse_health

        if (health := parse_health(options, source.config)) and request.monitored:
            note["health"] = health
        elif health and (asked := [key for key in ("cmd", "http", "tcp") if options.get(f"health_{key}") is not None]):
            raise UsageError(f"--health-{asked[0]}: without a monitor nothing checks the member", hint="detach=True")
    if "stop_timeout" in options:
        note["stop_timeout"] = parse_count(options["stop_timeout"], "--stop-timeout", "a number of seconds", 0, 86400)
    if source.image:
        note["image"], note["image_id"], note["layers"] = options["image"], source.image["id"], source.image["layers"]
    return note


def _check_meant(state: State, options: JoinOptions) -> None:
    """Raise UsageError when a command for the host's own files begins with the name of an image or a directory: it was meant as one."""
    word = next(iter(options.get("command") or []), "")
    if not word or options.get("entrypoint"):
        return
    flag = "--rootfs" if os.path.isdir(word) else ""
    if not flag and not word.startswith("/"):
        from nsrun.image import lookup

        try:
            flag = "--image" if lookup.full_name(state, word) else ""
        except NsrunError:
            return  # the store is not what this is about
    if flag:
        raise UsageError(
            f"{word!r} is {'a directory' if flag == '--rootfs' else 'an image'}; without --rootfs and --image a command is executed on the host's own files",
            hint=f"{flag} {word} -- COMMAND; the host's own program of that name: by its path, from /",
        )


def _arrange(mounts: list[Mount], roots: Sequence[str], moved: dict[str, str]) -> list[Mount]:
    """Return the mounts at their real places, in order, with sources that exist.  Raise BadInput.

    On the host's own files nothing is made: there a target has to exist, too.
    """
    for mount in mounts:
        if mount["type"] == "bind" and not exists(mount["source"], "volume source"):
            if mount["source"].startswith(ZONES):
                zone = mount["source"].removeprefix(ZONES)
                raise BadInput(
                    f"this host has no time zone {zone!r}: {mount['source']} does not exist", hint=f"ls {ZONES}"
                )
            raise BadInput(
                f"volume source {mount['source']!r} does not exist",
                hint="create it first; nsrun does not guess whether you mean a file or a directory",
            )
        if mount["type"] == "device" and not exists(mount["source"], "device"):
            raise BadInput(f"device {mount['source']!r} does not exist", hint="is its module loaded?")
    if not mounts:
        return mounts
    from nsrun.host.places import arrange

    found = arrange(mounts, roots, moved)
    for mount in found if list(roots) == ["/"] else []:
        if not exists(mount["destination"], "the target"):
            raise BadInput(
                f"the target {mount['destination']!r} does not exist on this host, whose own files the member has",
                hint="make it first; or a root of the member's own: --rootfs, --image",
            )
    return found


def _accounts(state: State, source: Source) -> tuple[str, str]:
    """Return the texts of the root's passwd and group files; those of an image were read when it was loaded."""
    if not source.image:
        return state.read_inside(source.root, "/etc/passwd"), state.read_inside(source.root, "/etc/group")
    users = source.image["users"]
    if "error" in users:
        raise BadInput(f"the image's accounts can't be read: {users['error']}")
    return users["passwd"], users["group"]


def _is_from_here(options: Options) -> bool:
    """Return whether a path among the options may be relative to the working directory, which a later start then needs."""
    named = [options[key] for key in ("rootfs", "bundle") if key in options] + list(options.get("volume") or [])
    return not all(str(one).startswith("/") for one in named) or bool({"mount", "security_opt"} & set(options))


def join(
    state: State,
    pod: str,
    options: Options,
    *,
    detach: bool = False,
    fds: tuple[int, int, int] | None = None,
    status_fd: int = -1,
    former: Former | None = None,
    observe: Callable[[Run], None] | None = None,
    leave: Callable[[Run], None] | None = None,
    last: bool = False,
    make: Callable[[Plan, State], Run] = Run,
) -> Mapping[str, Any]:
    """Start a member and return its note.  `last` and `make`: see create_pod; `leave` is called before the program starts.

    With `detach` a monitor keeps it; with `fds` the caller is its parent; with neither this process *becomes*
    the monitor and the call does not return.  Raise CommandError when the command can't be executed.
    """
    held = -1
    if options.get("image") is not None:
        from nsrun.image import lookup

        held = lookup.share_store(state)  # until the member's note says that it uses the image
    try:
        return _join(state, pod, options, detach, fds, status_fd, former, observe, leave, last, make)
    finally:
        if held >= 0:
            os.close(held)


def _join(
    state: State,
    pod_name: str,
    options: Options,
    detach: bool,
    fds: tuple[int, int, int] | None,
    status_fd: int,
    former: Former | None,
    observe: Callable[[Run], None] | None,
    leave: Callable[[Run], None] | None,
    last: bool,
    make: Callable[[Plan, State], Run],
) -> Mapping[str, Any]:
    pod = state.pod(pod_name)
    check_allowed(state, pod)
    check_parent(state, pod, fds)
    background = former is not None and former.note["detached"]
    request = Request(detach=detach, interactive=bool(options.get("interactive")), fds=fds, background=background)
    joining = plan_join(state, pod, options, request, former)
    spec, note = joining.spec, joining.note
    run = make(joining.plan, state)
    run.parent = fds is not None
    if former:
        run.again, run.lead, run.directory = True, former.lead, state.path("members", note["name"])
        for handle, fd in zip(("lock:held", "lock:data"), former.locks, strict=True):
            if fd >= 0:
                run.hold(handle, fd)
    run.monitor_options = {"cap": LOG_CAP, "status": status_fd}
    if not detach and not background:
        run.monitor_options.update({"foreground": 1, "stdin": int(request.interactive)})
    restarts = note["restart"].partition(":")[0] != "no"
    if restarts or note["rm"]:
        run.monitor_options["delay"] = min(100 << min(note["restarts"], 10), 60000) if restarts else 0
        run.after = nsrun_command(state.root, "_ended", note["name"])
    # what `exec` and a restart need to know again
    known = {key: value for key, value in options.items() if value is not None and key not in ("status_fd", "cidfile")}
    if "cwd" not in known and _is_from_here(known):
        known["cwd"] = os.getcwd()
    run.files = {"config.json": spec, "options.json": known}
    run.about = {
        "name": note["name"],
        "pod": note["pod"],
        "image_id": note.get("image_id", ""),
        "layers": note.get("layers", []),
    }

    def committed() -> None:
        if observe:
            observe(run)
        tell_event(status_fd, {"event": "started", "pid": run.pid, "name": note["name"]})

    run.before_handover = committed
    if leave:
        run.before_release = lambda: leave(run)
    try:
        run.execute()
    except StepError as error:
        if observe:
            observe(run)
        run.restore_signals()
        raise _explain(error, spec, joining.layers) from None
    except BaseException:
        run.restore_signals()
        raise
    if not last:
        run.restore_signals()
    committed()
    return run.note or note


def _explain(error: StepError, spec: MemberSpec, layers: Sequence[str]) -> NsrunError:
    if len(layers) < 2:
        return explain_exec(error, spec["root"]["path"])
    from nsrun.image.unpack import View

    with View(layers) as view:
        return explain_exec(error, f"/proc/self/fd/{view.fd}")
