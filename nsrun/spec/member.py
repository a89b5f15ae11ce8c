# SPDX-License-Identifier: Apache-2.0
"""From the options of `join` to an OCI runtime-spec document: what a member is, before anything is done.

Pure: facts about the machine (the pod's note, the text of passwd) are arguments, which nsrun.lifecycle.join gathers.  Options
have the names of the command line (`read_only`, `cap_add`, …), so that the command line and the library meet here.  OCI
runtime-spec 1.1, config.md and config-linux.md; what is nsrun's own stands in `annotations` under "nsrun.".
"""

from __future__ import annotations

from nsrun.errors import UsageError
from nsrun.linux import CAPABILITIES, MAX_ID, RESOURCES, UNLIMITED, capability_mask
from nsrun.spec.options import (
    capabilities,
    image_volume,
    parse_device,
    parse_directory,
    parse_environment,
    parse_groups,
    parse_hostname,
    parse_limits,
    parse_mount,
    parse_oom_score,
    parse_processors,
    parse_restart,
    parse_signal,
    parse_sysctls,
    parse_target,
    parse_tmpfs,
    parse_ulimit,
    parse_user,
    parse_volume,
    parse_zone,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nsrun.types import (
        Bundle,
        BundleProcess,
        ImageConfig,
        JoinOptions,
        MemberFacts,
        MemberSpec,
        Mount,
        Namespace,
        Process,
    )

EVERY_CAPABILITY = (1 << len(CAPABILITIES)) - 1
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MASKED = [
    "/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
    "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
]  # fmt: skip
READONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
OCI_NAMES = {"net": "network", "ipc": "ipc", "pid": "pid", "uts": "uts", "mnt": "mount"}
#: What a word of --net, --ipc, --pid, --uts means: to join the pod's, to make one, to stay in the host's.
NAMESPACES = {
    "net": {"pod": "join", "own": "make", "host": "stay", "none": "make"},
    "ipc": {"pod": "join", "own": "make"},
    "pid": {"pod": "join", "nested": "make", "own": "make"},
    "uts": {"pod": "join", "own": "make"},
}


# ---- documents ---------------------------------------------------------------------------------------------


def bundle_shape() -> dict[str, Any]:
    """Return the schema (schema.py) of what member_spec and its callers rely on in a bundle's config.json."""
    from nsrun.schema import FLAG, LINE, WORD, Number, OneOf

    ident = Number(0, MAX_ID)
    limit = Number(0, UNLIMITED)
    kinds = OneOf(*(f"RLIMIT_{name.upper()}" for name in RESOURCES))
    return {
        "root": {"path?": WORD, "readonly?": FLAG},
        "process?": {
            "args?": [WORD],
            "env?": [WORD],
            "cwd?": WORD,
            "user?": {"uid?": ident, "gid?": ident, "additionalGids?": [ident]},
            "capabilities?": {"bounding?": [LINE]},
            "rlimits?": [{"type": kinds, "soft": limit, "hard": limit}],
            "noNewPrivileges?": FLAG,
            "oomScoreAdj?": Number(-1000, 1000),
            "apparmorProfile?": LINE,
        },
        "mounts?": [{"destination": WORD, "type?": LINE, "source?": WORD, "options?": [WORD]}],
        "annotations?": {str: WORD},
        "hooks?": dict,
        "linux?": {"seccomp?": dict},
    }


def default_mounts(host_root: bool, terminal: bool, own_ipc: bool = False, tty_group: bool = True) -> list[Mount]:
    """Return the default mounts, in order.  Type "pod" is nsrun's own: a part of pause's root (shared memory, hosts, …).

    `tty_group`: has the pod a gid 5, which terminals belong to by custom?  Without, they are their user's alone.
    """
    safe = ["nosuid", "noexec", "nodev"]
    pod: list[Mount] = [
        {"destination": path, "type": "pod", "source": path, "options": ["ro"]}
        for path in ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf")
    ]
    shared: list[Mount] = [
        {"destination": "/dev/shm", "type": "pod", "source": "/dev/shm", "options": []},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": safe},
    ]
    if own_ipc:  # /dev/shm is no part of the IPC namespace; who asks for one of his own means both
        shared[0].update({"type": "tmpfs", "source": "tmpfs", "options": [*safe, "mode=1777", "size=64m"]})
    proc: Mount = {"destination": "/proc", "type": "proc", "source": "proc", "options": safe}
    sysfs: Mount = {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*safe, "ro"]}
    cgroup: Mount = {"destination": "/sys/fs/cgroup", "type": "cgroup2", "source": "cgroup", "options": [*safe, "ro"]}
    group = ["mode=0620", "gid=5"] if tty_group else ["mode=0600"]
    pts: Mount = {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", *group]}  # fmt: skip
    if host_root:
        return [proc, sysfs, cgroup, *([pts] if terminal else []), *shared, *pod]
    dev: Mount = {
        "destination": "/dev",
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", "noexec", "nodev", "mode=755"],
    }
    return [proc, dev, pts, *shared, sysfs, cgroup, *pod]


def member_spec(options: JoinOptions, facts: MemberFacts) -> MemberSpec:
    """Return the document of one member.  Raise UsageError or BadInput for options that can't be had, or contradict each other."""
    bundle: Bundle = facts.get("bundle") or {}
    image: ImageConfig = facts.get("image") or {}
    process: BundleProcess = bundle.get("process") or {}
    pod, ways, terminal = facts["pod"], _ways(options), bool(options.get("terminal"))
    args = _command(options, image, process)

    user = options.get("user") or image.get("User") or ""
    given = process.get("user") or {}
    if not user and given:
        user = f"{given.get('uid', 0)}:{given.get('gid', 0)}"
    uid, gid, groups, home = parse_user(user, facts.get("passwd", ""), facts.get("group", ""))
    if not options.get("user") and given.get("additionalGids"):
        groups = sorted({gid, *given["additionalGids"]})

    if options.get("group_add"):
        groups = sorted({*groups, *parse_groups(options["group_add"], facts.get("group", ""))})
    _check_init(options)

    hostname = facts["name"] if ways["uts"] == "make" else pod["hostname"]
    if "hostname" in options:
        hostname = _own_hostname(options["hostname"], ways["uts"])
    environ = facts.get("environ", {})
    env = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname}
    if terminal:
        env["TERM"] = environ.get("TERM", "xterm")
    env.update(parse_environment((image.get("Env") if image else process.get("env")) or [], {}))
    env.update(parse_environment(options.get("env") or [], environ))
    env.setdefault("HOME", home)

    caps = [f"CAP_{c.upper()}" for c in member_capabilities(options, bundle, facts.get("granted", EVERY_CAPABILITY))]
    security = security_options(options, bundle)
    mounts = given_mounts(options, facts)
    mounts += facts["asked"] if "asked" in facts else asked_mounts(options, facts)
    directory = image.get("WorkingDir") if image else process.get("cwd")

    policy, retries = parse_restart(options.get("restart") or "no")
    if policy != "no" and options.get("rm"):
        raise UsageError("--restart and --rm exclude each other")
    stop_signal = (
        options.get("stop_signal")
        or image.get("StopSignal")
        or (bundle.get("annotations") or {}).get("org.opencontainers.image.stopSignal")
        or "TERM"
    )
    own = {short: way == "make" for short, way in ways.items()}
    ran: Process = {
        "terminal": terminal,
        "user": {"uid": uid, "gid": gid, "additionalGids": groups},
        "args": args,
        "env": [f"{k}={v}" for k, v in env.items()],
        "cwd": parse_directory(options.get("workdir")) or parse_directory(directory or None) or "/",
        "capabilities": {"bounding": caps, "permitted": caps, "effective": caps, "inheritable": [], "ambient": []},
        "rlimits": [parse_ulimit(text) for text in options.get("ulimit") or []] or list(process.get("rlimits") or []),
        "noNewPrivileges": security.no_new_privileges,
    }
    score = parse_oom_score(options.get("oom_score_adj"), process.get("oomScoreAdj"))
    if score is not None:
        ran["oomScoreAdj"] = score
    if security.apparmor:
        ran["apparmorProfile"] = security.apparmor
    return {
        "ociVersion": "1.1.0",
        "process": ran,
        "root": {"path": facts["root"], "readonly": bool(options.get("read_only") or (bundle.get("root") or {}).get("readonly"))},
        "hostname": hostname,
        "mounts": mounts,
        "linux": {
            "namespaces": _namespaces(ways, (pod.get("pause") or [0])[0]),
            "cgroupsPath": facts.get("cgroup", ""),
            "resources": {**parse_limits(options), **_processors(options)},
            "sysctl": parse_sysctls(options.get("sysctl") or [], own["net"], own["ipc"], own["uts"], "the member's"),
            "maskedPaths": MASKED,
            "readonlyPaths": READONLY,
        },
        "annotations": {
            "nsrun.name": facts["name"],
            "nsrun.id": facts["id"],
            "nsrun.pod": pod["name"],
            "nsrun.writable": "true" if options.get("writable") else "false",
            "nsrun.pid": options.get("pid") or "pod",
            "nsrun.stop-signal": str(parse_signal(stop_signal)),
            "nsrun.restart": f"{policy}:{retries}",
            "nsrun.seccomp": facts.get("filter", security.seccomp),
        },
    }  # fmt: skip


def _own_hostname(text: str, way: str) -> str:
    """Return --hostname.  Raise UsageError where the member has the hostname of its pod."""
    if way != "make":
        raise UsageError(
            "--hostname: the members of a pod share its hostname",
            hint="--uts own, for one of the member's own; or nsrun pod create --hostname, for all",
        )
    return parse_hostname(text)


def _processors(options: JoinOptions) -> dict[str, str]:
    return {"cpuset": parse_processors(options["cpuset_cpus"])} if "cpuset_cpus" in options else {}


def _check_init(options: JoinOptions) -> None:
    """Raise UsageError where --init asks for what pause does not do: the member is process 1 of its own PID namespace."""
    if options.get("init") and (options.get("pid") or "pod") != "pod":
        raise UsageError(
            f"--init: with --pid {options['pid']} the member is process 1, and pause reaps nothing in there",
            hint="an init from the image: --entrypoint /sbin/tini",
        )


def _command(options: JoinOptions, image: ImageConfig, process: BundleProcess) -> list[str]:
    """Return what is executed: a command of one's own replaces an image's Cmd, an entrypoint both Entrypoint and Cmd, as in Docker."""
    command, entrypoint = list(options.get("command") or []), options.get("entrypoint")
    if image and entrypoint is None:
        command = [*(image.get("Entrypoint") or []), *(command or image.get("Cmd") or [])]
    if entrypoint:
        command = [entrypoint, *command]
    args = command or ([] if image else list(process.get("args") or []))
    if not args and image:
        raise UsageError("the image has no command of its own", hint="nsrun join POD --image REF -- COMMAND [ARG...]")
    if not args:
        raise UsageError("no command", hint="nsrun join POD [OPTIONS] -- COMMAND [ARG...]")
    if any("\0" in arg for arg in args):
        raise UsageError("the command holds a NUL byte")
    return args


def member_capabilities(options: JoinOptions, bundle: Bundle, granted: int) -> list[str]:
    """Return the capabilities of a member, in lower case: what is asked for of those that can be `granted` here (a bit mask)."""
    added, dropped = options.get("cap_add") or [], options.get("cap_drop") or []
    caps = capabilities(added, dropped)
    bounding = ((bundle.get("process") or {}).get("capabilities") or {}).get("bounding")
    if bounding and not added and not dropped:
        wanted = {cap.lower().removeprefix("cap_") for cap in bounding}
        caps = [cap for cap in CAPABILITIES if cap in wanted]
    return [cap for cap in caps if granted & capability_mask([cap])]


def refused_capabilities(options: JoinOptions, granted: int) -> list[str]:
    """Return the capabilities that --cap-add named and that can't be `granted` here, as CAP_NAME."""
    added = {text.lower().removeprefix("cap_") for text in options.get("cap_add") or []}
    caps = capabilities(options.get("cap_add") or [], options.get("cap_drop") or [])
    lacking = [cap for cap in caps if not granted & capability_mask([cap])]
    return [f"CAP_{cap.upper()}" for cap in lacking if "all" in added or cap in added]


class Security:
    """The result of --security-opt: no_new_privileges, `seccomp` ("default", "unconfined" or a file), `apparmor` (a profile, or "")."""

    __slots__ = ("apparmor", "asked", "no_new_privileges", "seccomp")

    def __init__(self, no_new_privileges: bool, apparmor: str) -> None:
        self.no_new_privileges, self.apparmor = no_new_privileges, apparmor
        self.seccomp, self.asked = "default", False  # asked: was a profile named?


def security_options(options: JoinOptions, bundle: Bundle) -> Security:
    """Return the result of --security-opt, with the bundle's values as defaults.  Raise UsageError for an unknown value."""
    process: BundleProcess = bundle.get("process") or {}
    found = Security(bool(process.get("noNewPrivileges")), process.get("apparmorProfile") or "")
    for text in options.get("security_opt") or []:
        if text in ("no-new-privileges", "no-new-privileges:true", "no-new-privileges=true"):
            found.no_new_privileges = True
        elif text.startswith(("seccomp=", "seccomp:")) and text[8:]:
            found.seccomp, found.asked = text[8:], True
        elif text.startswith(("apparmor=", "apparmor:")) and text[9:]:
            found.apparmor = "" if text[9:] == "unconfined" else _profile_name(text[9:])
        elif text not in ("no-new-privileges:false", "no-new-privileges=false"):
            raise UsageError(
                f"--security-opt {text}: unknown",
                hint="known: no-new-privileges, seccomp=FILE, seccomp=unconfined, seccomp=default, apparmor=PROFILE",
            )
    return found


def given_mounts(options: JoinOptions, facts: MemberFacts) -> list[Mount]:
    """Return the default mounts and those of a bundle, in order."""
    pod, ways = facts["pod"], _ways(options)
    within = pod.get("user") or pod.get("nested")  # a user namespace
    tty_group = True
    if within:
        from nsrun.spec.idmaps import to_host

        tty_group = to_host(within["maps"]["gid"], 5) >= 0
    mounts = default_mounts(facts["root"] == "/", bool(options.get("terminal")), ways["ipc"] == "make", tty_group)
    if "hosts_file" in (pod.get("network") or {}):  # a file of its own, since it changes (plan/names.py)
        for default in mounts:
            if default["source"] == "/etc/hosts":
                default["source"] = "/names/hosts"
    if within and (ways["net"] == "stay" or (ways["net"] == "join" and pod["network"]["mode"] == "host")):
        # sysfs shows a network namespace, and only who owns that may mount it
        mounts = [m for m in mounts if not m["destination"].startswith("/sys")]
    if not facts.get("cgroup_v2", True):
        mounts = [m for m in mounts if m["type"] != "cgroup2"]
    own = {m["destination"] for m in mounts}
    bundle: Bundle = facts.get("bundle") or {}
    for mount in bundle.get("mounts") or []:
        kind = mount.get("type")
        if mount["destination"] in own or kind not in ("bind", "tmpfs"):
            continue
        target = parse_target(mount["destination"], "the bundle's mount")
        source = mount.get("source") or ""
        if kind == "bind" and not source:
            raise UsageError(f"the bundle's mount at {target!r} has no source")
        mounts.append(
            {"destination": target, "type": kind, "source": source or "tmpfs", "options": mount.get("options") or []}
        )
    absent = facts.get("absent", ())
    return [m for m in mounts if m["destination"] not in absent]


def asked_mounts(options: JoinOptions, facts: MemberFacts) -> list[Mount]:
    """Return the mounts of -v, --mount, --tmpfs and --device, and an image's volumes that none of them replaces."""
    asked = [parse_volume(text) for text in options.get("volume") or []]
    asked += [parse_mount(text) for text in options.get("mount") or []]
    asked += [parse_tmpfs(text) for text in options.get("tmpfs") or []]
    asked += [parse_device(text) for text in options.get("device") or []]
    if "tz" in options:
        asked.append(parse_volume(f"{parse_zone(options['tz'])}:/etc/localtime:ro"))
    image: ImageConfig = facts.get("image") or {}
    if image.get("Volumes"):
        taken = {m["destination"] for m in [*given_mounts(options, facts), *asked]}
        for path in image["Volumes"]:
            volume = image_volume(path)
            if volume["destination"] not in taken:
                taken.add(volume["destination"])
                asked.append(volume)
    return asked


def _ways(options: JoinOptions) -> dict[str, str]:
    """Return for net, ipc, pid and uts what their options mean: join, make or stay."""
    asked = {"net": options.get("net"), "ipc": options.get("ipc"), "pid": options.get("pid"), "uts": options.get("uts")}
    return {short: namespace(short, text) for short, text in asked.items()}


def _namespaces(ways: dict[str, str], pause: int) -> list[Namespace]:
    found: list[Namespace] = []
    for short, way in [*ways.items(), ("mnt", "make")]:
        if way == "join":
            found.append({"type": OCI_NAMES[short], "path": f"/proc/{pause}/ns/{short}"})
        elif way == "make":
            found.append({"type": OCI_NAMES[short]})
    return found


def namespace(short: str, word: str | None) -> str:
    """Return what a value of --net, --ipc, --pid or --uts means: "join", "make" or "stay".  Raise UsageError for an unknown one."""
    known = NAMESPACES[short]
    if (word := "pod" if word is None else word) not in known:
        raise UsageError(f"--{short}: unknown value {word!r}", hint=f"one of: {', '.join(known)}")
    return known[word]


def _profile_name(word: str) -> str:
    """Return the name of an AppArmor profile.  Raise UsageError unless it is one printable word."""
    if len(word) > 255 or not word.isprintable() or any(c.isspace() for c in word):
        raise UsageError(f"--security-opt apparmor={word!r}: no name of a profile")
    return word
