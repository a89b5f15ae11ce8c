# SPDX-License-Identifier: Apache-2.0
"""From the words of a command to an OCI runtime-spec document: what a member is, before anything is done.

Pure: facts about the machine (the pod's note, the text of passwd) come in as arguments.  Options come as a
dictionary with the names of the command line (`read_only`, `cap_add`, …), so that the command line and the
library meet here.  OCI runtime-spec 1.1, config.md and config-linux.md; what is nsrun's own stands in
`annotations` under "nsrun.".
"""

from __future__ import annotations

from nsrun.errors import UsageError
from nsrun.linux import CAPABILITIES, MAX_ID, RESOURCES, UNLIMITED
from nsrun.spec.options import (
    capabilities,
    image_volume,
    parse_device,
    parse_directory,
    parse_environment,
    parse_limits,
    parse_mount,
    parse_restart,
    parse_signal,
    parse_sysctls,
    parse_target,
    parse_tmpfs,
    parse_ulimit,
    parse_user,
    parse_volume,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

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
    """What member_spec, and who calls it, takes for granted of a bundle's config.json; see schema.py."""
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
            "apparmorProfile?": LINE,
        },
        "mounts?": [{"destination": WORD, "type?": LINE, "source?": WORD, "options?": [WORD]}],
        "annotations?": {str: WORD},
        "hooks?": dict,
        "linux?": {"seccomp?": dict},
    }


def default_mounts(
    host_root: bool, terminal: bool, own_ipc: bool = False, tty_group: bool = True
) -> list[dict[str, Any]]:
    """In order.  Type "pod" is nsrun's: a part of pause's own root (the pod's shared memory, hosts, …).

    `tty_group`: has the pod a gid 5, which terminals belong to by custom?  Without, they are their user's alone.
    """
    safe = ["nosuid", "noexec", "nodev"]
    pod = [
        {"destination": path, "type": "pod", "source": path, "options": ["ro"]}
        for path in ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf")
    ]
    shared = [
        {"destination": "/dev/shm", "type": "pod", "source": "/dev/shm", "options": []},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": safe},
    ]
    if own_ipc:  # /dev/shm is no part of the IPC namespace; who asks for one of his own means both
        shared[0] = {**shared[0], "type": "tmpfs", "source": "tmpfs", "options": [*safe, "mode=1777", "size=64m"]}
    proc = {"destination": "/proc", "type": "proc", "source": "proc", "options": safe}
    sysfs = {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*safe, "ro"]}
    cgroup = {"destination": "/sys/fs/cgroup", "type": "cgroup2", "source": "cgroup", "options": [*safe, "ro"]}
    group = ["mode=0620", "gid=5"] if tty_group else ["mode=0600"]
    pts = {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", *group]}  # fmt: skip
    if host_root:
        return [proc, sysfs, cgroup, *([pts] if terminal else []), *shared, *pod]
    dev = {
        "destination": "/dev",
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", "noexec", "nodev", "mode=755"],
    }
    return [proc, dev, pts, *shared, sysfs, cgroup, *pod]


def member_spec(options: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """The document of one member.

    facts: "name", "id", "pod" (the pod's note), "passwd", "group" (texts of the rootfs), "environ" (the
    caller's), "bundle" (a bundle's config.json, or {}), "image" (the `config` of an image's config, or {}), "root" (the
    rootfs directory; "/" means the host's), "cgroup" (its path), "cgroup_v2" (is it mounted), "arrange" (places.arrange for
    this root: what puts the mounts that were asked for into their order).
    """
    bundle: dict[str, Any] = facts.get("bundle") or {}
    process: dict[str, Any] = bundle.get("process") or {}
    terminal = bool(options.get("terminal"))
    host_root = facts["root"] == "/"

    image: dict[str, Any] = facts.get("image") or {}
    command = list(options.get("command") or [])
    entrypoint = options.get("entrypoint")
    if image:
        process = {"env": image.get("Env"), "cwd": image.get("WorkingDir")}
        if entrypoint is None:  # a command replaces Cmd, an entrypoint both
            command = [*(image.get("Entrypoint") or []), *(command or image.get("Cmd") or [])]
    if entrypoint:
        command = [entrypoint, *command]
    args = command or list(process.get("args") or [])
    if not args:
        if image:
            raise UsageError(
                "the image has no command of its own", hint="nsrun join POD --image REF -- COMMAND [ARG...]"
            )
        raise UsageError("no command", hint="nsrun join POD [OPTIONS] -- COMMAND [ARG...]")
    if any("\0" in a for a in args):
        raise UsageError("the command holds a NUL byte")

    user_spec = options.get("user") or image.get("User") or ""
    if not user_spec and process.get("user"):
        u = process["user"]
        user_spec = f"{u.get('uid', 0)}:{u.get('gid', 0)}"
    uid, gid, groups, home = parse_user(user_spec, facts.get("passwd", ""), facts.get("group", ""))
    if not options.get("user") and (process.get("user") or {}).get("additionalGids"):
        groups = sorted({gid, *process["user"]["additionalGids"]})

    ways = {short: namespace(short, options.get(short)) for short in NAMESPACES}
    uts_own = ways["uts"] == "make"
    hostname = facts["name"] if uts_own else facts["pod"]["hostname"]
    env = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname}
    if terminal:
        env["TERM"] = facts.get("environ", {}).get("TERM", "xterm")
    env.update(parse_environment(process.get("env") or [], {}))
    env.update(parse_environment(options.get("env") or [], facts.get("environ", {})))
    env.setdefault("HOME", home)

    caps = capabilities(options.get("cap_add") or [], options.get("cap_drop") or [])
    if (
        (process.get("capabilities") or {}).get("bounding")
        and not options.get("cap_add")
        and not options.get("cap_drop")
    ):
        wanted = {c.lower().removeprefix("cap_") for c in process["capabilities"]["bounding"]}
        caps = [c for c in CAPABILITIES if c in wanted]
    caps_upper = [f"CAP_{c.upper()}" for c in caps]
    no_new_privs = bool(process.get("noNewPrivileges"))
    seccomp, apparmor = "default", process.get("apparmorProfile") or ""
    for word in options.get("security_opt") or []:
        if word in ("no-new-privileges", "no-new-privileges:true", "no-new-privileges=true"):
            no_new_privs = True
        elif word.startswith(("seccomp=", "seccomp:")) and word[8:]:
            seccomp = word[8:]
        elif word.startswith(("apparmor=", "apparmor:")) and word[9:]:
            apparmor = "" if word[9:] == "unconfined" else _profile_name(word[9:])
        elif word not in ("no-new-privileges:false", "no-new-privileges=false"):
            raise UsageError(
                f"--security-opt {word}: unknown",
                hint="known: no-new-privileges, seccomp=FILE, seccomp=unconfined, seccomp=default, apparmor=PROFILE",
            )

    within = facts["pod"].get("user") or facts["pod"].get("nested")  # a user namespace
    tty_group = True
    if within:
        from nsrun.spec.idmaps import to_host

        tty_group = to_host(within["maps"]["gid"], 5) >= 0
    mounts = default_mounts(host_root, terminal, ways["ipc"] == "make", tty_group)
    if within and (ways["net"] == "stay" or (ways["net"] == "join" and facts["pod"]["network"]["mode"] == "host")):
        # sysfs shows a network namespace, and only who owns that may mount it
        mounts = [m for m in mounts if not m["destination"].startswith("/sys")]
    if not facts.get("cgroup_v2", True):
        mounts = [m for m in mounts if m["type"] != "cgroup2"]
    own = {m["destination"] for m in mounts}
    for mount in bundle.get("mounts") or []:
        if mount["destination"] not in own and mount.get("type") in ("bind", "tmpfs"):
            target = parse_target(mount["destination"], "the bundle's mount")
            source, words = mount.get("source") or "", mount.get("options") or []
            if mount["type"] == "bind" and not source:
                raise UsageError(f"the bundle's mount at {target!r} has no source")
            mounts.append({"destination": target, "type": mount["type"], "source": source or "tmpfs", "options": words})
    asked = [parse_volume(w) for w in options.get("volume") or []]
    asked += [parse_mount(w) for w in options.get("mount") or []]
    asked += [parse_tmpfs(w) for w in options.get("tmpfs") or []]
    asked += [parse_device(w) for w in options.get("device") or []]
    taken = {m["destination"] for m in [*mounts, *asked]}
    for path in image.get("Volumes") or {}:
        volume = image_volume(path)
        if volume["destination"] not in taken:
            taken.add(volume["destination"])
            asked.append(volume)
    mounts += facts["arrange"](asked) if "arrange" in facts else asked

    namespaces: list[dict[str, str]] = []
    pid = (facts["pod"].get("pause") or [0])[0]
    for short, way in [*ways.items(), ("mnt", "make")]:
        if way != "stay":
            path = {"path": f"/proc/{pid}/ns/{short}"} if way == "join" else {}
            namespaces.append({"type": OCI_NAMES[short], **path})

    rlimits = [parse_ulimit(w) for w in options.get("ulimit") or []] or list(process.get("rlimits") or [])
    limits = parse_limits(options)
    policy, retries = parse_restart(options.get("restart") or "no")
    if policy != "no" and options.get("rm"):
        raise UsageError("--restart and --rm exclude each other")
    stop_signal = (
        options.get("stop_signal")
        or image.get("StopSignal")
        or (bundle.get("annotations") or {}).get("org.opencontainers.image.stopSignal")
        or "TERM"
    )
    return {
        "ociVersion": "1.1.0",
        "process": {
            "terminal": terminal,
            "user": {"uid": uid, "gid": gid, "additionalGids": groups},
            "args": args,
            "env": [f"{k}={v}" for k, v in env.items()],
            "cwd": parse_directory(options.get("workdir")) or parse_directory(process.get("cwd") or None) or "/",
            "capabilities": {"bounding": caps_upper, "permitted": caps_upper, "effective": caps_upper, "inheritable": [], "ambient": []},
            "rlimits": rlimits,
            "noNewPrivileges": no_new_privs,
            **({"apparmorProfile": apparmor} if apparmor else {}),
        },
        "root": {"path": facts["root"], "readonly": bool(options.get("read_only") or (bundle.get("root") or {}).get("readonly"))},
        "hostname": hostname,
        "mounts": mounts,
        "linux": {
            "namespaces": namespaces,
            "cgroupsPath": facts.get("cgroup", ""),
            "resources": limits,
            "sysctl": parse_sysctls(
                options.get("sysctl") or [], ways["net"] == "make", ways["ipc"] == "make", uts_own, "the member's"
            ),
            "maskedPaths": MASKED,
            "readonlyPaths": READONLY,
        },
        "annotations": {
            "nsrun.name": facts["name"],
            "nsrun.id": facts["id"],
            "nsrun.pod": facts["pod"]["name"],
            "nsrun.writable": "true" if options.get("writable") else "false",
            "nsrun.pid": options.get("pid") or "pod",
            "nsrun.stop-signal": str(parse_signal(stop_signal)),
            "nsrun.restart": f"{policy}:{retries}",
            "nsrun.seccomp": seccomp,
        },
    }  # fmt: skip


def namespace(short: str, word: str | None) -> str:
    """Return what a word of --net, --ipc, --pid or --uts means: "join", "make" or "stay".  UsageError: it means nothing."""
    known = NAMESPACES[short]
    if (word := "pod" if word is None else word) not in known:
        raise UsageError(f"--{short} {word!r} is not known", hint=f"one of: {', '.join(known)}")
    return known[word]


def _profile_name(word: str) -> str:
    """AppArmor's: one line, printable, and no control of what follows it."""
    if len(word) > 255 or not word.isprintable() or any(c.isspace() for c in word):
        raise UsageError(f"--security-opt apparmor={word!r}: no name of a profile")
    return word
