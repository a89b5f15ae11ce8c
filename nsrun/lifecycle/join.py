# SPDX-License-Identifier: Apache-2.0
"""`nsrun join`: ask the machine, decide what the member is, build the plan, run it."""

from __future__ import annotations

import os

from nsrun import kernel
from nsrun._protocol import LOG_CAP
from nsrun.errors import BadInput, NsrunError, StepError, UsageError
from nsrun.kernel import nsrun_command
from nsrun.lifecycle import (
    NO_ID,
    OF_JOIN,
    check_allowed,
    check_parent,
    check_userns,
    environment_options,
    explain_exec,
    grant,
    need_powers,
    tell_event,
)
from nsrun.run import Run
from nsrun.schema import check_name, exists
from nsrun.spec.member import bundle_shape, member_spec
from nsrun.state import State, new_id, timestamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from nsrun.plan import Plan

    Options = dict[str, Any]


def _check_rootfs(path: str) -> str:
    """The absolute path of a directory with something in it."""
    if not path:
        raise BadInput("the rootfs is an empty word", hint="an unset variable?")
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
    if real == "/":
        raise BadInput("rootfs / is the host itself", hint="leave --rootfs out to run on the host's own filesystem")
    return real


def _check_owner(root: str, pod: dict[str, Any]) -> None:
    """A rootfs whose ids mean nothing in the pod would be nobody's there; an ordinary user can't map it."""
    from nsrun.spec.idmaps import to_pod

    st = os.stat(root)
    if to_pod(pod["user"]["maps"]["uid"], st.st_uid) < 0:
        raise BadInput(
            f"rootfs {root!r} belongs to uid {st.st_uid} of this machine: in a pod of {pod['owner']}'s its files would be nobody's",
            hint="sudo nsrun join maps its ids; or take an image of your own: nsrun image load FILE, then --image",
        )


def _bundle(path: str) -> dict[str, Any]:
    from nsrun.schema import check, read_document
    from nsrun.state import codec

    if not path:
        raise BadInput("the bundle is an empty word", hint="an unset variable?")
    try:
        document: dict[str, Any] = codec.loads(read_document(f"{path}/config.json", 4 << 20).decode())
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


def plan_join(
    state: State, pod_name: str, options: Options, how: dict[str, Any], pod: dict[str, Any] | None = None
) -> Plan:
    """The plan of `join`, nothing done.  `how`: see plan.member.join_plan."""
    from nsrun.host import cgroup
    from nsrun.plan.member import join_plan

    pod = pod or state.pod(pod_name)
    again = how.get("again")
    ident = again["id"] if again else how.get("id") or new_id()
    name = again["name"] if again else options.get("name")
    name = check_name(f"m-{ident}" if name is None else name, "member")
    # An empty word is no rootfs left out: --rootfs "$UNSET" must not end up on the host's own filesystem.
    sources = [k for k in ("rootfs", "image", "bundle") if options.get(k) is not None]
    if len(sources) > 1:
        raise BadInput(f"--{sources[0]} and --{sources[1]} exclude each other")
    bundle: dict[str, Any] = {}
    image: dict[str, Any] = {}
    layers: list[str] = []
    root = "/"
    if options.get("bundle") is not None:
        bundle = _bundle(options["bundle"])
        root = _check_rootfs(bundle["root"]["path"])
    elif options.get("rootfs") is not None:
        root = _check_rootfs(options["rootfs"])
    elif options.get("image") is not None:
        from nsrun.image import lookup

        # a restart keeps the image it began with, whatever has the name now
        image = lookup.find(state, again["image_id"] if again else options["image"])
        layers = lookup.trees(state, image)
        root = layers[0] if layers else lookup.nothing(state)
        if options.get("writable"):
            raise BadInput(
                "--writable needs --rootfs: an image is shared", hint="nsrun image unpack REF DIR, then --rootfs"
            )
    if options.get("writable") and options.get("read_only"):
        raise UsageError("--writable and --read-only contradict each other")
    if root == "/" and options.get("writable"):
        raise BadInput(
            "--writable needs --rootfs", hint="without one, the member writes to the host's filesystem anyway"
        )
    if root == "/" and options.get("read_only"):
        raise BadInput("--read-only needs --rootfs, --image or --bundle")
    if root == "/":
        _check_meant(state, options)
    group = pod.get("cgroup") or ""
    moved: dict[str, str] = {}  # targets of mounts, where symlinks lead them
    facts = {
        "name": name,
        "id": ident,
        "pod": pod,
        "root": root,
        "bundle": bundle,
        "image": image and {"Entrypoint": [], **image["process"]},
        **_accounts(root, image),
        "environ": os.environ,
        "cgroup": f"{group}/{'root' if pod.get('user') and not state.uid else 'm'}-{name}" if group else "",
        "cgroup_v2": bool(group) or bool(cgroup.mount_point()),
        "arrange": lambda mounts: _arrange(mounts, layers or [root], moved),
    }
    document = member_spec({**options, "env": environment_options(options)}, facts)
    if root == "/":  # nothing is made in the host's own tree: what is missing there is not covered, either
        document["mounts"] = [m for m in document["mounts"] if os.path.exists(m["destination"])]
    refused: list[str] = []
    if not pod.get("user"):  # else its user namespace has them all
        granted = need_powers(OF_JOIN if ident != NO_ID else (), "a member")
        if ident != NO_ID:
            check_userns(pod)
        refused = grant(document, granted)
    if pod.get("user") and state.uid and not image and root != "/":
        _check_owner(root, pod)
    for number, mount in enumerate(document["mounts"]):
        if mount["type"] == "volume":
            mount["source"] = (
                f"{state.lib}/volumes/{mount['source']}" if mount["source"] else f"{state.upper(ident)}/volume-{number}"
            )
        elif mount["type"] == "bind" and not exists(mount["source"], "volume source"):
            raise BadInput(
                f"volume source {mount['source']!r} does not exist",
                hint="create it first; nsrun does not guess whether you mean a file or a directory",
            )
        elif mount["type"] == "device" and not exists(mount["source"], "device"):
            raise BadInput(f"device {mount['source']!r} does not exist", hint="is its module loaded?")
    note = {
        "id": ident,
        "name": name,
        "pod": pod["name"],
        "pod_id": pod["id"],
        "created": timestamp() if ident != NO_ID else "",
        "started": timestamp() if ident != NO_ID else "",
        "command": document["process"]["args"],
        "rootfs": "" if image else root,
        "cgroup": document["linux"]["cgroupsPath"],
        "shares_pid": (options.get("pid") or "pod") != "own",
        "terminal": document["process"]["terminal"],
        "stop_signal": int(document["annotations"]["nsrun.stop-signal"]),
        "restart": document["annotations"]["nsrun.restart"],
        "rm": bool(options.get("rm")),
        "detached": bool(how.get("detach") or how.get("background")),
        "restarts": again["restarts"] + 1 if again else 0,
    }
    if image:
        note.update({"image": options["image"], "image_id": image["id"], "layers": image["layers"]})
    if again:
        note["created"] = again["created"]
    profile = _set_filter(document, bundle, options)
    door = state.door(pod) if pod.get("user") and state.uid else ""
    how = {
        **how,
        "again": bool(again),
        "layers": layers,
        "staging": state.upper(ident),
        "profile": profile,
        "door": door,
    }
    plan = join_plan(document, pod, note, how)
    added = {word.lower().removeprefix("cap_") for word in options.get("cap_add") or []}
    plan.facts["moved"] = moved
    plan.facts["refused"] = [name for name in refused if "all" in added or name[4:].lower() in added]
    return plan


def _check_meant(state: State, options: Options) -> None:
    """UsageError: the first word of a command for the host's own files is the name of an image, or a root's directory."""
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


def _arrange(mounts: list[dict[str, Any]], roots: list[str], moved: dict[str, str]) -> list[dict[str, Any]]:
    """places.arrange; on the host's own files BadInput for a target that would have to be made there."""
    if not mounts:
        return mounts
    from nsrun.host.places import arrange

    found = arrange(mounts, roots, moved)
    for mount in found if roots == ["/"] else []:
        if not exists(mount["destination"], "the target"):
            raise BadInput(
                f"the target {mount['destination']!r} does not exist on this host, whose own files the member has",
                hint="make it first; or a root of the member's own: --rootfs, --image",
            )
    return found


def _set_filter(document: dict[str, Any], bundle: dict[str, Any], options: Options) -> str:
    """Puts the name of the compiled filter into the spec ("": unconfined), where exec finds it; gives the profile's path."""
    from nsrun import seccomp
    from nsrun.linux import capability_mask

    word = document["annotations"]["nsrun.seccomp"]
    if word == "unconfined":
        document["annotations"]["nsrun.seccomp"] = ""
        return ""
    profile = "" if word == "default" else word
    asked = any(option.startswith("seccomp") for option in options.get("security_opt") or [])
    if not asked and (bundle.get("linux") or {}).get("seccomp"):
        profile = f"{options['bundle']}/config.json"
    caps = capability_mask([name[4:].lower() for name in document["process"]["capabilities"]["bounding"]])
    document["annotations"]["nsrun.seccomp"] = seccomp.key(profile, caps)
    return profile


def _accounts(root: str, image: dict[str, Any]) -> dict[str, str]:
    """passwd and group: of an image they were read when it was loaded."""
    if not image:
        return {"passwd": kernel.read_in_root(root, "/etc/passwd"), "group": kernel.read_in_root(root, "/etc/group")}
    users = image["users"]
    if "error" in users:
        raise BadInput(f"the image's accounts can't be read: {users['error']}")
    return {"passwd": users["passwd"], "group": users["group"]}


def join(
    state: State,
    pod: str,
    options: Options,
    *,
    detach: bool = False,
    fds: tuple[int, int, int] | None = None,
    status_fd: int = -1,
    again: dict[str, Any] | None = None,
    observe: Callable[[Run], None] | None = None,
    last: bool = False,
) -> dict[str, Any]:
    """Starts a member and gives its note.  `last`: see create_pod.

    With `detach` a monitor keeps it; with `fds` the caller is its parent; with neither this process *becomes*
    the monitor and the call does not return.  CommandError when the command can't be executed.
    """
    background = bool(again and again["detached"])
    how = {
        "detach": detach,
        "interactive": options.get("interactive"),
        "fds": fds,
        "again": again,
        "background": background,
    }
    held = -1
    if options.get("image") is not None:
        from nsrun.image import lookup

        held = lookup.hold(state)  # until the member's note says that it uses the image
    try:
        return _join(state, pod, options, how, status_fd, again, observe, last)
    finally:
        if held >= 0:
            os.close(held)


def _join(
    state: State,
    pod: str,
    options: Options,
    how: dict[str, Any],
    status_fd: int,
    again: dict[str, Any] | None,
    observe: Callable[[Run], None] | None,
    last: bool,
) -> dict[str, Any]:
    detach, background = how["detach"], how["background"]
    note = check_allowed(state, state.pod(pod))
    check_parent(state, note, how)
    plan = plan_join(state, pod, options, how, note)
    run = Run(plan, state)
    run.lead = (again or {}).get("lead", -1)
    run.parent = bool(how.get("fds"))
    if again:
        run.values["again"] = 1
    for handle, fd in zip(("lock:held", "lock:data"), (again or {}).get("locks", ()), strict=False):
        if fd >= 0:
            run.hold(handle, fd)
    document = plan.facts["spec"]
    note = plan.steps[0].note if not again else {}  # type: ignore[attr-defined]
    if again:
        run.directory = state.path("members", again["name"])
    policy = document["annotations"]["nsrun.restart"].partition(":")[0]
    name = document["annotations"]["nsrun.name"]
    run.monitor_options = {"cap": LOG_CAP, "status": status_fd}
    if not detach and not background:
        run.monitor_options.update({"foreground": 1, "stdin": int(bool(options.get("interactive")))})
    if policy != "no" or options.get("rm"):
        restarts = again["restarts"] + 1 if again else 0
        run.monitor_options["delay"] = min(100 << min(restarts, 10), 60000) if policy != "no" else 0
        run.after = nsrun_command(state.root, "_ended", name)

    def committed() -> None:
        if observe:
            observe(run)
        tell_event(status_fd, {"event": "started", "pid": run.pid, "name": name})

    run.before_handover = committed
    try:
        # what `exec` and a restart need to know again
        known = {k: v for k, v in options.items() if v is not None and k != "status_fd"}
        run.files = {"config.json": document, "options.json": known}
        run.about = {key: note.get(key, "") for key in ("name", "pod", "image_id")}
        run.about["layers"] = note.get("layers") or []
        run.execute()
    except StepError as error:
        if observe:
            observe(run)
        run.restore_signals()
        raise _explain(error, document, plan.facts.get("layers") or []) from None
    except BaseException:
        run.restore_signals()
        raise
    if not last:
        run.restore_signals()
    committed()
    return run.note or note


def _explain(error: StepError, document: dict[str, Any], layers: list[str]) -> NsrunError:
    if len(layers) < 2:
        return explain_exec(error, document["root"]["path"])
    from nsrun.image.unpack import View

    with View(layers) as view:
        return explain_exec(error, f"/proc/self/fd/{view.fd}")
