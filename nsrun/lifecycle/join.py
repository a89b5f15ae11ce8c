"""What the commands do, for Python: make a pod, join a member, execute in it.

Every function takes the `State` it works on, builds a plan and runs it; nothing is printed; what goes wrong
is an `NsrunError` that carries step, errno and hint.  The rest of a life (list, stop, remove) is in
manage.py, the friendly face in library.py.
"""

from __future__ import annotations

import os
import sys
from errno import ENOENT

from nsrun.errors import BadInput, CommandError, NsrunError, StepError, UnknownError, UsageError
from nsrun.plan.mounts import Execute
from nsrun.run import Run
from nsrun.spec.member import accounts
from nsrun.spec.member import member as specs
from nsrun.spec.member import options as words
from nsrun.state import NAME_CHARS, State, check_name, new_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from nsrun.plan import Plan

    Options = dict[str, Any]

MAX_ENVIRONMENT = 4 << 20  # bytes of an --env-file: execve(2) takes less
NO_ID = "ID"  # what explain prints where a real run has a random id


def timestamp() -> str:
    """Now, as the logs write it: UTC, RFC 3339."""
    import time

    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1e9):09d}Z"


def need_root() -> None:
    if os.geteuid():
        raise BadInput(
            "needs root (CAP_SYS_ADMIN, CAP_NET_ADMIN) to make and join namespaces, mounts and images",
            hint="sudo nsrun …",
        )


#: The capabilities without which root can't make a pod, or join one (of its own: a user namespace has them all).
OF_CREATE = ("sys_admin", "setpcap", "setuid", "setgid", "kill", "sys_ptrace")
OF_JOIN = ("sys_admin", "setpcap", "setuid", "setgid", "sys_chroot", "sys_ptrace")


def _need(names: tuple[str, ...], what: str) -> int:
    """The capabilities that what we start may have (capabilities(7), CapBnd); BadInput when we lack one that nsrun needs."""
    from nsrun import kernel
    from nsrun.plan.mounts import capability_mask, capability_names

    sets = kernel.capability_sets()
    lacking = capability_mask(names) & ~(sets["CapEff"] & sets["CapBnd"])
    if lacking:
        words = ", ".join(f"CAP_{name.upper()}" for name in capability_names(lacking))
        raise BadInput(
            f"{what} needs {words}, which root does not have here",
            hint="capsh --print, or grep Cap /proc/self/status, shows what there is; an engine's container gets it with --cap-add",
        )
    return sets["CapBnd"]


def _grant(document: dict[str, Any], granted: int) -> list[str]:
    """Takes out of a member's capabilities those that can't be granted here (a bit mask); gives their names."""
    from nsrun.plan.mounts import capability_mask

    sets = document["process"]["capabilities"]
    lacking = [name for name in sets["bounding"] if not granted & capability_mask([name[4:].lower()])]
    if lacking:
        rest = [name for name in sets["bounding"] if name not in lacking]
        document["process"]["capabilities"] = {**sets, "bounding": rest, "permitted": rest, "effective": rest}
    return lacking


def _same_userns(pod: dict[str, Any]) -> None:
    """BadInput: a pod without a user namespace of its own was made in another one than ours.

    Whoever joined it all the same would be root of a larger world than those who are in it.  Of a member that outlived its pod
    nothing is noted: there the kernel decides, at setns(2).
    """
    theirs = pod.get("namespaces", {}).get("user")
    if theirs and theirs != os.stat("/proc/thread-self/ns/user").st_ino:
        raise BadInput(
            f"pod {pod['name']!r} was made in another user namespace",
            hint=f"join it from there: nsenter --user --target {pod['pause'][0]} --preserve-credentials nsrun …",
        )


def _may(state: State, pod: dict[str, Any]) -> dict[str, Any]:
    """The pod; BadInput unless we are root or its owner."""
    if state.uid and not pod.get("user"):
        need_root()
    return pod


def _not_as_parent(state: State, pod: dict[str, Any], how: dict[str, Any]) -> None:
    if how.get("fds") and pod.get("user") and state.uid:
        raise BadInput(
            "in a pod with a user namespace this process can't be the parent of members",
            hint="detach=True; or the command line: nsrun join, nsrun exec",
        )


# ---- pod create --------------------------------------------------------------------------------------------


def _host_resolv_conf() -> str:
    """The host's name servers; one on loopback can't be reached from a pod, so systemd-resolved's real ones are taken."""
    text = ""
    for path in ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"):
        try:
            with open(path, errors="surrogateescape", newline="\n") as file:
                text = file.read(65536)
        except OSError:
            continue
        if not any(
            line.split()[1:2] and line.startswith("nameserver") and line.split()[1].startswith("127.")
            for line in text.split("\n")
        ):
            break
    return text.replace("\0", "")


def plan_pod(state: State, options: Options, ident: str = "") -> Plan:
    """The plan of `pod create`, nothing done."""
    from nsrun.host import cgroup, userns
    from nsrun.plan.pod import pod_plan

    name = check_name("pause" if options.get("name") is None else options["name"], "pod")
    ident = ident or new_id()
    owner = userns.owner_of(options.get("owner"), dict(os.environ)) if not state.uid else userns.User(str(state.uid))
    facts: dict[str, Any] = {
        "id": ident,
        "created": timestamp() if ident != NO_ID else "",
        "cgroup": cgroup.pod_path(name, ident, state.uid),
        "resolv_conf": _host_resolv_conf(),
        "owner": owner.name if owner else "root",
        "subnet": os.environ.get("NSRUN_SUBNET", ""),
    }
    if owner:
        facts["user"] = {"uid": owner.uid, "gid": owner.gid, "maps": userns.maps_of(owner)}
        facts.update({"by_root": not state.uid, "groups": owner.groups})
    if not state.uid and (around := userns.around()):
        if owner:
            userns.check_within(owner, facts["user"]["maps"], around)
        facts.update({"nested": around, "devices": "host"})
    document = specs.pod_spec({**options, "name": name}, facts)
    if not state.uid and ident != NO_ID:
        _check_powers(document)
    return pod_plan(document)


def _check_powers(pod: dict[str, Any]) -> None:
    """BadInput: what root can't do here for such a pod.  Without CAP_MKNOD its devices are the host's own nodes."""
    from nsrun.host import userns
    from nsrun.plan.mounts import capability_mask

    mode = pod["network"]["mode"]
    if mode == "bridge" and pod.get("nested") and not userns.owns_network():
        raise BadInput(
            "--network bridge: root of this user namespace has no power over the network namespace that it is in",
            hint="--network none, or host; or one of its own: unshare --user --map-root-user --net nsrun …",
        )
    granted = _need(OF_CREATE + (("net_admin",) if mode != "host" else ()), "a pod")
    if not granted & capability_mask(["mknod"]) and not pod.get("user"):
        pod["devices"] = "host"


def _check_rootless(state: State, options: Options) -> None:
    """What an ordinary user can't have, and what is hers already."""
    from nsrun.host import pasta

    if options.get("owner") is not None:
        raise BadInput("--owner: only root makes a pod for somebody", hint="sudo nsrun pod create; yours it is anyway")
    for port in words.parse_ports(options.get("publish") or []):
        pasta.check_port(port["host_port"])
    name = "pause" if options.get("name") is None else options["name"]
    if name in state.names("pods") and not state.door({"name": name}).startswith(f"{state.run}/"):
        raise BadInput(f"pod name {name!r} is taken: by one that root made for you", hint="choose another name")


def create_pod(
    state: State, options: Options, observe: Callable[[Run], None] | None = None, last: bool = False
) -> dict[str, Any]:
    """Makes a pod and gives its note.

    `last`: the process ends after it.  SIGINT and SIGTERM then stay blocked once the pod is there, so that an
    interrupt never looks like a failure of what has succeeded.
    """
    if state.uid:
        _check_rootless(state, options)
    plan = plan_pod(state, options)
    run = Run(plan, state)
    try:
        run.execute()
    finally:
        if observe:
            observe(run)
        if not (last and run.note):
            run.restore_signals()
    return run.note


# ---- join --------------------------------------------------------------------------------------------------


def check_rootfs(path: str) -> str:
    """The absolute path of a directory with something in it."""
    if not path:
        raise BadInput("the rootfs is an empty word", hint="an unset variable?")
    real = os.path.realpath(path)
    if not os.path.lexists(path):
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
    from nsrun.host.userns import inside

    st = os.stat(root)
    if inside(pod["user"]["maps"]["uid"], st.st_uid) < 0:
        raise BadInput(
            f"rootfs {root!r} belongs to uid {st.st_uid} of this machine: in a pod of {pod['owner']}'s its files would be nobody's",
            hint="sudo nsrun join maps its ids; or take an image of your own: nsrun image load FILE, then --image",
        )


def read_small(root: str, path: str) -> str:
    """A regular file of at most 1 MiB, resolved inside `root`; "" when it is missing.

    BadInput for anything else there: a FIFO would hang us, a huge file fill the memory (threats R19).
    """
    try:
        directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    try:
        return read_small_at(directory, path)
    finally:
        os.close(directory)


def read_small_at(directory: int, path: str) -> str:
    """The same below a descriptor."""
    import stat

    from nsrun import kernel
    from nsrun.errors import KernelError

    try:
        fd = kernel.open_in_root(directory, path, os.O_RDONLY | os.O_NONBLOCK)
    except KernelError as error:
        if error.errno == ENOENT:
            return ""
        raise BadInput(f"{path} of the rootfs can't be read: {error}", errno=error.errno or 0) from None
    try:
        st = os.fstat(fd)
        if not stat.S_ISREG(st.st_mode) or st.st_size > accounts.MAX_BYTES:
            raise BadInput(f"{path} of the rootfs is not a regular file of at most 1 MiB")
        return os.fsdecode(os.read(fd, accounts.MAX_BYTES))
    finally:
        os.close(fd)


def read_environment_file(path: str) -> list[str]:
    """Return its NAME=VALUE lines; # comments; NAME alone takes the caller's value.

    A line ends at \\n, or at \\r\\n, as in Docker: every other character belongs to the value.  A byte order mark is
    dropped.  BadInput: it can't be read, is larger than MAX_ENVIRONMENT, or a name is empty or has blanks in it.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC), "rb") as file:
            data = file.read(MAX_ENVIRONMENT + 1)
    except OSError as error:
        raise BadInput(f"--env-file {path!r}: {error.strerror}") from None
    if len(data) > MAX_ENVIRONMENT:
        raise BadInput(f"--env-file {path!r} is larger than {MAX_ENVIRONMENT >> 20} MiB")
    found = []
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        line = os.fsdecode(raw.removesuffix(b"\r").lstrip(b" \t"))
        name = line.partition("=")[0]
        if not line or line.startswith("#"):
            continue
        if not name or "\0" in line or any(c.isspace() for c in name):
            raise BadInput(
                f"--env-file {path!r}, line {number}: {name!r} is not a name", hint="NAME=VALUE; no `export`"
            )
        found.append(line)
    return found


def _environment(options: Options) -> list[str]:
    """What --env-file and -e give: a later file wins over an earlier one, and -e over all."""
    files = [line for path in options.get("env_file") or [] for line in read_environment_file(path)]
    return [*files, *(options.get("env") or [])]


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
    check(document, specs.bundle_shape(), f"bundle {path!r}: config.json")
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
        root = check_rootfs(bundle["root"]["path"])
    elif options.get("rootfs") is not None:
        root = check_rootfs(options["rootfs"])
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
    document = specs.member_spec({**options, "env": _environment(options)}, facts)
    if root == "/":  # nothing is made in the host's own tree: what is missing there is not covered, either
        document["mounts"] = [m for m in document["mounts"] if os.path.exists(m["destination"])]
    refused: list[str] = []
    if not pod.get("user"):  # else its user namespace has them all
        granted = _need(OF_JOIN if ident != NO_ID else (), "a member")
        if ident != NO_ID:
            _same_userns(pod)
        refused = _grant(document, granted)
    if pod.get("user") and state.uid and not image and root != "/":
        _check_owner(root, pod)
    for number, mount in enumerate(document["mounts"]):
        if mount["type"] == "volume":
            mount["source"] = (
                f"{state.lib}/volumes/{mount['source']}" if mount["source"] else f"{state.upper(ident)}/volume-{number}"
            )
        elif mount["type"] == "bind" and not os.path.exists(mount["source"]):
            raise BadInput(
                f"volume source {mount['source']!r} does not exist",
                hint="create it first; nsrun does not guess whether you mean a file or a directory",
            )
        elif mount["type"] == "device" and not os.path.exists(mount["source"]):
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
        if not os.path.exists(mount["destination"]):
            raise BadInput(
                f"the target {mount['destination']!r} does not exist on this host, whose own files the member has",
                hint="make it first; or a root of the member's own: --rootfs, --image",
            )
    return found


def _set_filter(document: dict[str, Any], bundle: dict[str, Any], options: Options) -> str:
    """Puts the name of the compiled filter into the spec ("": unconfined), where exec finds it; gives the profile's path."""
    from nsrun import seccomp
    from nsrun.plan.mounts import capability_mask

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
        return {"passwd": read_small(root, "/etc/passwd"), "group": read_small(root, "/etc/group")}
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
    note = _may(state, state.pod(pod))
    _not_as_parent(state, note, how)
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
    run.monitor_options = {"cap": 16 << 20, "status": status_fd}
    if not detach and not background:
        run.monitor_options.update({"foreground": 1, "stdin": int(bool(options.get("interactive")))})
    if policy != "no" or options.get("rm"):
        restarts = again["restarts"] + 1 if again else 0
        run.monitor_options["delay"] = min(100 << min(restarts, 10), 60000) if policy != "no" else 0
        run.after = [sys.executable, "-I", os.path.join(os.path.dirname(os.path.abspath(__file__)), "__main__.py")]
        run.after += (["--root", state.root] if state.root else []) + ["_ended", name]

    def committed() -> None:
        if observe:
            observe(run)
        tell(status_fd, {"event": "started", "pid": run.pid, "name": name})

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


def tell(fd: int, event: dict[str, Any]) -> None:
    """One JSON line for --status-fd."""
    if fd >= 0:
        from select import POLLOUT, poll

        from nsrun.state import codec

        poller = poll()
        poller.register(fd, POLLOUT)
        try:
            if poller.poll(1000):
                os.write(fd, codec.dumps(event).encode() + b"\n")
        except OSError:
            pass  # a reader that went away, or reads nothing, must not stop a member


def explain_exec(error: StepError, root: str) -> NsrunError:
    """The error of an exec in people's words: what is missing, and in which file."""
    step, detail = getattr(error, "init_step", None), getattr(error, "detail", "")
    if not isinstance(step, Execute):
        return error
    from nsrun.lifecycle.diagnose import why_not

    message, hint = why_not(root, step, error.errno, detail)
    code = 127 if error.errno == ENOENT else 126
    failure = CommandError(message, exit_code=code, hint=hint, errno=error.errno, step=error.step)
    failure.number = error.number
    return failure


# ---- exec --------------------------------------------------------------------------------------------------


def pod_of(state: State, member: str) -> dict[str, Any]:
    """The note of a member's pod, which may be dead when the member has a PID namespace of its own."""
    note = state.member(member)
    pod = state.try_read("pods", note["pod"])
    return pod if pod and pod["id"] == note["pod_id"] else {"name": note["pod"]}


def plan_exec(state: State, member: str, options: Options, how: dict[str, Any]) -> Plan:
    from nsrun import kernel
    from nsrun.plan.member import exec_plan

    note, pod = state.member(member), pod_of(state, member)
    how = {**how, "pod": pod, "door": state.door(pod) if pod.get("user") and state.uid else ""}
    status, _ = state.member_status(note)
    if status not in ("running", "stopping"):
        raise UnknownError(
            f"member {note['name']!r} is {status}", hint="nsrun ls -a; only a running member can execute something"
        )
    document = state.read("members", note["name"], "config.json")
    if document is None:
        raise BadInput(f"member {note['name']!r} has no config.json")
    process = document["process"]
    command = list(options.get("command") or [])
    if not command:
        raise UsageError("no command", hint="nsrun exec MEMBER COMMAND [ARG...]")
    terminal = bool(options.get("terminal"))
    env = words.parse_environment(process["env"], {})
    if terminal:
        env["TERM"] = os.environ.get("TERM", "xterm")
    user = process["user"]
    if options.get("user"):
        fd, pid = state.process(note)
        if fd < 0:
            raise UnknownError(f"member {note['name']!r} has just ended", hint="nsrun ls -a")
        os.close(fd)
        root = f"/proc/{pid}/root"
        uid, gid, groups, home = accounts.resolve(
            options["user"], read_small(root, "/etc/passwd"), read_small(root, "/etc/group")
        )
        user = {"uid": uid, "gid": gid, "additionalGids": groups}
        env["HOME"] = home
    env.update(words.parse_environment(_environment(options), dict(os.environ)))
    new = {
        **process,
        "terminal": terminal,
        "args": command,
        "env": [f"{k}={v}" for k, v in env.items()],
        "cwd": words.parse_directory(options.get("workdir")) or process["cwd"],
        "user": user,
    }
    document = {**document, "process": new}
    if not pod.get("user"):
        granted = _need(OF_JOIN, "exec")
        _same_userns(pod)
        _grant(document, granted)
        if kernel.in_userns() and "nested" not in pod:  # a member that outlived its pod
            from nsrun.host.userns import around

            how["pod"] = {**pod, "nested": around()}
    return exec_plan(document, note, how)


def execute(
    state: State,
    member: str,
    options: Options,
    *,
    fds: tuple[int, int, int] | None = None,
    observe: Callable[[Run], None] | None = None,
) -> Run:
    """Executes a command in a running member.  With `fds` the caller is the parent, else this process becomes the monitor."""
    pod = _may(state, pod_of(state, member))
    how = {"interactive": options.get("interactive"), "fds": fds}
    _not_as_parent(state, pod, how)
    plan = plan_exec(state, member, options, how)
    run = Run(plan, state)
    run.monitor_options = {"foreground": 1, "stdin": int(bool(options.get("interactive"))), "own_cgroup": False}
    if observe:
        run.before_handover = lambda: observe(run)
    try:
        run.execute()
    except StepError as error:
        raise explain_exec(error, f"/proc/{run.values.get('member:ns:pid', 'self')}/root") from None
    finally:
        run.restore_signals()
    return run


__all__ = ["NAME_CHARS", "create_pod", "execute", "join", "plan_exec", "plan_join", "plan_pod"]
