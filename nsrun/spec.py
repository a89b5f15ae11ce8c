"""From the words of a command to an OCI runtime-spec document: what a member is, before anything is done.

Pure: facts about the machine (the pod's note, the text of passwd) come in as arguments.  Options come as a
dictionary with the names of the command line (`read_only`, `cap_add`, …), so that the command line and the
library meet here.  OCI runtime-spec 1.1, config.md and config-linux.md; what is nsrun's own stands in
`annotations` under "nsrun.".
"""

from __future__ import annotations

import os

from nsrun import users
from nsrun.errors import BadInput, UsageError
from nsrun.plan.inside import CAPABILITIES, RESOURCES, UNLIMITED
from nsrun.signals import parse_signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Docker's fourteen.
DEFAULT_CAPABILITIES = (
    "chown dac_override fsetid fowner mknod net_raw setgid setuid setfcap setpcap net_bind_service sys_chroot kill audit_write"
).split()
MASKED = [
    "/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
    "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
]  # fmt: skip
READONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
OCI_NAMES = {"net": "network", "ipc": "ipc", "pid": "pid", "uts": "uts", "mnt": "mount"}


# ---- small words -------------------------------------------------------------------------------------------


def parse_size(text: str, flag: str) -> int:
    """Bytes from 64m, 1g, 512k, 4096 (powers of 1024, as Docker has it)."""
    number, unit = (text[:-1], text[-1].lower()) if text[-1:].isalpha() else (text, "b")
    if unit == "b" and text[-2:-1].isalpha():
        return parse_size(text[:-1], flag)
    factors = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
    if not (number.isascii() and number.isdigit()) or unit not in factors or int(number) == 0:
        raise UsageError(f"{flag} {text!r} is not a size", hint="a number with k, m or g: 64m")
    return int(number) * factors[unit]


def parse_ports(words: Sequence[str]) -> list[dict[str, Any]]:
    """[IP:][HOST]:POD[/tcp], ranges included → {"host_ip", "host_port" (0: any), "pod_port", "protocol"}."""
    ports: list[dict[str, Any]] = []
    for word in words:
        body, slash, protocol = word.partition("/")
        if slash and protocol != "tcp":
            raise UsageError(f"-p {word}: only tcp can be published", hint="leave /tcp out, or write it")
        if "[" in body:
            raise UsageError(
                f"-p {word}: only IPv4 addresses can be published on", hint="write 127.0.0.1 or leave the address out"
            )
        parts = body.split(":")
        if len(parts) == 1:
            parts = ["", parts[0]]
        if len(parts) == 2:
            parts = [os.environ.get("NSRUN_PUBLISH_IP", "0.0.0.0"), *parts]
        if len(parts) != 3:
            raise UsageError(f"-p {word}: not [IP:][HOST]:POD", hint="for example 8080:80, 127.0.0.1:8080:80, :80")
        from nsrun.host.net import parse_ipv4

        try:
            host_ip = parse_ipv4(parts[0] or "0.0.0.0", f"-p {word}")
        except BadInput as error:
            raise UsageError(error.message) from None
        pod = _port_range(parts[2], word)
        host = _port_range(parts[1], word) if parts[1] else [0] * len(pod)
        if len(host) != len(pod):
            raise UsageError(f"-p {word}: the two ranges differ in length")
        for a, b in zip(host, pod, strict=True):
            ports.append({"host_ip": host_ip, "host_port": a, "pod_port": b, "protocol": "tcp"})
    seen: set[tuple[str, int]] = set()
    for port in ports:
        key = (port["host_ip"], port["host_port"])
        if port["host_port"] and key in seen:
            raise UsageError(f"port {key[0]}:{key[1]} is published twice")
        seen.add(key)
    return ports


def _port_range(text: str, word: str) -> list[int]:
    first, dash, last = text.partition("-")
    numbers = [first, last] if dash else [first, first]
    if not all(n.isascii() and n.isdigit() and len(n) <= 5 and 1 <= int(n) <= 65535 for n in numbers) or int(
        numbers[0]
    ) > int(numbers[1]):
        raise UsageError(f"-p {word}: {text!r} is not a port or range", hint="ports go from 1 to 65535")
    return list(range(int(numbers[0]), int(numbers[1]) + 1))


def parse_environment(words: Sequence[str], caller: dict[str, str]) -> dict[str, str]:
    """K=V, or K alone: the caller's own value, nothing when it has none."""
    env: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or "\0" in word:
            raise UsageError(f"-e {word!r} is not NAME=VALUE")
        if equals:
            env[key] = value
        elif key in caller:
            env[key] = caller[key]
    return env


def parse_directory(path: str | None) -> str:
    """-w: an absolute path, "" when it was not given."""
    if path is not None and not path.startswith("/"):
        raise UsageError(f"-w {path!r}: the working directory is an absolute path")
    return path or ""


def parse_ulimit(word: str) -> dict[str, Any]:
    name, equals, value = word.partition("=")
    soft, colon, hard = value.partition(":")
    hard = hard if colon else soft

    def number(text: str) -> int:
        if text in ("unlimited", "-1"):
            return UNLIMITED
        if not (text.isascii() and text.isdigit()):
            raise UsageError(
                f"--ulimit {word}: {text!r} is not a number", hint="for example nofile=1024:2048, core=unlimited"
            )
        return int(text)

    if name not in RESOURCES or not equals:
        raise UsageError(f"--ulimit {word}: not NAME=SOFT[:HARD]", hint=f"names: {' '.join(RESOURCES)}")
    if number(soft) > number(hard):
        raise UsageError(f"--ulimit {word}: the soft limit is above the hard one")
    return {"type": f"RLIMIT_{name.upper()}", "soft": number(soft), "hard": number(hard)}


def parse_restart(word: str) -> tuple[str, int]:
    """(no|on-failure|always, at most so many times; 0: no bound)."""
    policy, colon, count = word.partition(":")
    if policy == "unless-stopped" and not colon:
        policy = "always"  # the same here: nothing is started at boot
    if policy not in ("no", "on-failure", "always") or (colon and (policy != "on-failure" or not count.isdigit())):
        raise UsageError(f"--restart {word!r}", hint="no, on-failure[:N] or always")
    return policy, int(count or 0)


def capabilities(add: Sequence[str], drop: Sequence[str]) -> list[str]:
    """Docker's arithmetic: ALL in --cap-drop empties the default set, ALL in --cap-add fills it."""

    def names(words: Sequence[str], flag: str) -> list[str]:
        found = []
        for word in words:
            name = word.lower().removeprefix("cap_")
            if name != "all" and name not in CAPABILITIES:
                raise UsageError(f"{flag} {word}: no such capability", hint="capabilities(7) lists them; ALL means all")
            found.append(name)
        return found

    added, dropped = names(add, "--cap-add"), names(drop, "--cap-drop")
    result = set() if "all" in dropped else set(DEFAULT_CAPABILITIES)
    if "all" in added:
        result = set(CAPABILITIES)
    result |= set(added) - {"all"}
    result -= set(dropped) - {"all"}
    return [name for name in CAPABILITIES if name in result]


def parse_limits(options: dict[str, Any]) -> dict[str, str]:
    """cgroup v2 values of --memory, --cpus, --pids-limit."""
    limits = {}
    if options.get("memory"):
        limits["memory"] = str(parse_size(options["memory"], "--memory"))
    if options.get("cpus"):
        try:
            share = float(options["cpus"])
        except ValueError:
            share = 0.0
        if not 0.01 <= share <= 4096:
            raise UsageError(f"--cpus {options['cpus']!r}", hint="a number of processors: 1.5")
        limits["cpus"] = f"{int(share * 100000)} 100000"
    if options.get("pids_limit"):
        text = str(options["pids_limit"])
        if not text.isdigit() or int(text) == 0:
            raise UsageError(f"--pids-limit {text!r} is not a number of processes")
        limits["pids"] = text
    return limits


# ---- volumes -----------------------------------------------------------------------------------------------

_FLAGS = {
    "ro",
    "rw",
    "nosuid",
    "nodev",
    "noexec",
    "suid",
    "dev",
    "exec",
    "z",
    "Z",
    "private",
    "rprivate",
    "rbind",
    "bind",
}


def _target(path: str, word: str) -> str:
    if not path.startswith("/") or "\0" in path:
        raise UsageError(f"{word}: the target {path!r} is not an absolute path")
    clean = os.path.normpath("/" + path.lstrip("/"))
    if clean == "/":
        raise UsageError(f"{word}: the target can't be /")
    return clean


def _volume(source: str, target: str, options: list[str], word: str) -> dict[str, Any]:
    for option in options:
        if option not in _FLAGS:
            raise UsageError(f"{word}: unknown option {option!r}", hint=f"known: {' '.join(sorted(_FLAGS))}")
    kind = "bind" if source.startswith(("/", ".")) else "volume"
    if kind == "volume" and source:
        from nsrun.state import check_name

        check_name(source, "volume")
    return {
        "destination": _target(target, word),
        "type": kind,
        "source": os.path.abspath(source) if kind == "bind" else source,
        "options": ["rbind", "rprivate", *(o for o in options if o in ("ro", "nosuid", "nodev", "noexec"))],
    }


def parse_volume(word: str) -> dict[str, Any]:
    """-v SRC:DST[:OPTIONS], -v NAME:DST, -v DST."""
    parts = word.split(":")
    if len(parts) == 1:
        return _volume("", parts[0], [], f"-v {word}")
    if len(parts) > 3 or not parts[0]:
        raise UsageError(f"-v {word}: not SRC:DST[:OPTIONS]")
    return _volume(parts[0], parts[1], parts[2].split(",") if len(parts) == 3 else [], f"-v {word}")


def parse_mount(word: str) -> dict[str, Any]:
    """--mount type=bind|tmpfs|volume,source=…,target=…,readonly"""
    values: dict[str, str] = {}
    for part in word.split(","):
        key, equals, value = part.partition("=")
        key = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}.get(key, key)
        values[key] = value if equals else "true"
    kind = values.pop("type", "volume")
    target = values.pop("target", "")
    readonly = values.pop("readonly", "false") in ("true", "1")
    if not target:
        raise UsageError(f"--mount {word}: no target")
    if kind == "tmpfs":
        options = [f"{k.removeprefix('tmpfs-')}={v}" for k, v in values.items() if k in ("tmpfs-size", "tmpfs-mode")]
        if unknown := set(values) - {"tmpfs-size", "tmpfs-mode"}:
            raise UsageError(f"--mount {word}: unknown key {sorted(unknown)[0]!r}")
        return parse_tmpfs(":".join([target, ",".join(options + (["ro"] if readonly else []))]).rstrip(":"))
    source = values.pop("source", "")
    if values or kind not in ("bind", "volume") or (kind == "bind" and not source):
        raise UsageError(f"--mount {word}: not type=bind|tmpfs|volume,source=…,target=…[,readonly]")
    if kind == "bind" and not source.startswith(("/", ".")):
        source = f"./{source}"
    return _volume(source, target, ["ro"] if readonly else [], f"--mount {word}")


def parse_tmpfs(word: str) -> dict[str, Any]:
    """--tmpfs DST[:size=64m,mode=1777,ro,exec]; noexec, nosuid and nodev unless said otherwise, as in Docker."""
    target, _, text = word.partition(":")
    options = {"nosuid", "nodev", "noexec"}
    data = []
    for option in filter(None, text.split(",")):
        key = option.partition("=")[0]
        if option in ("exec", "suid", "dev"):
            options.discard(f"no{option}")
        elif option in ("ro", "rw", "noexec", "nosuid", "nodev"):
            options.add(option)
        elif key in ("size", "mode", "uid", "gid", "nr_inodes"):
            data.append(option)
        else:
            raise UsageError(f"--tmpfs {word}: unknown option {option!r}")
    return {
        "destination": _target(target, f"--tmpfs {word}"),
        "type": "tmpfs",
        "source": "tmpfs",
        "options": sorted(options) + (data if any(d.startswith("mode=") for d in data) else [*data, "mode=1777"]),
    }


# ---- documents ---------------------------------------------------------------------------------------------


def default_mounts(host_root: bool, terminal: bool) -> list[dict[str, Any]]:
    """In order.  Type "pod" is nsrun's: a part of pause's own root (the pod's shared memory, hosts, …)."""
    safe = ["nosuid", "noexec", "nodev"]
    pod = [
        {"destination": path, "type": "pod", "source": path, "options": ["ro"]}
        for path in ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf")
    ]
    shared = [
        {"destination": "/dev/shm", "type": "pod", "source": "/dev/shm", "options": []},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": safe},
    ]
    proc = {"destination": "/proc", "type": "proc", "source": "proc", "options": safe}
    sysfs = {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*safe, "ro"]}
    cgroup = {"destination": "/sys/fs/cgroup", "type": "cgroup2", "source": "cgroup", "options": [*safe, "ro"]}
    pts = {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}  # fmt: skip
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
    caller's), "bundle" (a bundle's config.json, or {}), "root" (the rootfs directory; "/" means the host's),
    "cgroup" (its path), "cgroup_v2" (is it mounted).
    """
    bundle: dict[str, Any] = facts.get("bundle") or {}
    process: dict[str, Any] = bundle.get("process") or {}
    terminal = bool(options.get("terminal"))
    host_root = facts["root"] == "/"

    command = list(options.get("command") or [])
    if options.get("entrypoint"):
        command = [options["entrypoint"], *command]
    args = command or list(process.get("args") or [])
    if not args:
        raise UsageError("no command", hint="nsrun join POD [OPTIONS] -- COMMAND [ARG...]")
    if any("\0" in a for a in args):
        raise UsageError("the command holds a NUL byte")

    user_spec = options.get("user") or ""
    if not user_spec and process.get("user"):
        u = process["user"]
        user_spec = f"{u.get('uid', 0)}:{u.get('gid', 0)}"
    uid, gid, groups, home = users.resolve(user_spec, facts.get("passwd", ""), facts.get("group", ""))
    if not options.get("user") and (process.get("user") or {}).get("additionalGids"):
        groups = sorted({gid, *process["user"]["additionalGids"]})

    uts_own = options.get("uts") == "own"
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
    for word in options.get("security_opt") or []:
        if word in ("no-new-privileges", "no-new-privileges:true", "no-new-privileges=true"):
            no_new_privs = True
        elif word not in ("no-new-privileges:false", "no-new-privileges=false", "seccomp=unconfined"):
            raise UsageError(f"--security-opt {word}: unknown", hint="known: no-new-privileges, seccomp=unconfined")

    mounts = default_mounts(host_root, terminal)
    if not facts.get("cgroup_v2", True):
        mounts = [m for m in mounts if m["type"] != "cgroup2"]
    own = {m["destination"] for m in mounts}
    mounts += [m for m in bundle.get("mounts") or [] if m["destination"] not in own and m["type"] in ("bind", "tmpfs")]
    mounts += [parse_volume(w) for w in options.get("volume") or []]
    mounts += [parse_mount(w) for w in options.get("mount") or []]
    mounts += [parse_tmpfs(w) for w in options.get("tmpfs") or []]

    namespaces: list[dict[str, str]] = []
    pid = (facts["pod"].get("pause") or [0])[0]
    for short, kind in OCI_NAMES.items():
        mode = "own" if short == "mnt" else options.get(short) or "pod"
        if mode == "pod":
            namespaces.append({"type": kind, "path": f"/proc/{pid}/ns/{short}"})
        elif mode in ("own", "nested"):
            namespaces.append({"type": kind})

    rlimits = [parse_ulimit(w) for w in options.get("ulimit") or []] or list(process.get("rlimits") or [])
    limits = parse_limits(options)
    policy, retries = parse_restart(options.get("restart") or "no")
    if policy != "no" and options.get("rm"):
        raise UsageError("--restart and --rm exclude each other")
    stop_signal = (
        options.get("stop_signal")
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
            "cwd": parse_directory(options.get("workdir")) or process.get("cwd") or "/",
            "capabilities": {"bounding": caps_upper, "permitted": caps_upper, "effective": caps_upper, "inheritable": [], "ambient": []},
            "rlimits": rlimits,
            "noNewPrivileges": no_new_privs,
        },
        "root": {"path": facts["root"], "readonly": bool(options.get("read_only") or (bundle.get("root") or {}).get("readonly"))},
        "hostname": hostname,
        "mounts": mounts,
        "linux": {
            "namespaces": namespaces,
            "cgroupsPath": facts.get("cgroup", ""),
            "resources": limits,
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
        },
    }  # fmt: skip


def pod_spec(options: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """What a pod is.  facts: "id", "created", "cgroup", "resolv_conf" (the host's), "owner"."""
    name = options.get("name") or "pause"
    mode = options.get("network") or "bridge"
    if mode not in ("bridge", "none", "host"):
        raise UsageError(f"--network {mode}", hint="bridge, none or host")
    ports = parse_ports(options.get("publish") or [])
    if ports and mode != "bridge":
        raise UsageError(f"-p needs --network bridge; with {mode} there is nothing to forward")
    for flag in ("ip", "subnet"):
        if options.get(flag) and mode != "bridge":
            raise UsageError(f"--{flag} needs --network bridge")
    hostname = options.get("hostname") or name
    if not hostname or len(hostname) > 63 or not all(c.isalnum() or c in "-._" for c in hostname):
        raise UsageError(f"--hostname {hostname!r}", hint="letters, digits, '-' and '.', at most 63; hostname(7)")
    from nsrun.host.net import parse_ipv4

    hosts = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
    hosts.append(f"{{pod:ip}}\t{hostname}" if mode == "bridge" else f"127.0.1.1\t{hostname}")
    for word in options.get("add_host") or []:
        host, _, address = word.partition(":")
        if not host or not address or any(c.isspace() for c in word):
            raise UsageError(f"--add-host {word!r}: not HOST:IP")
        hosts.append(f"{'{pod:gateway}' if address == 'host-gateway' else address}\t{host}")
    resolv = facts["resolv_conf"]
    if options.get("dns"):
        resolv = "".join(f"nameserver {parse_ipv4(a, '--dns')}\n" for a in options["dns"])
    sysctls = {}
    for word in options.get("sysctl") or []:
        key, equals, value = word.partition("=")
        if (
            not equals
            or not key
            or not all(c.isalnum() or c in "._-" for c in key)
            or ".." in key
            or any(c in value for c in "\n+=")
        ):
            raise UsageError(f"--sysctl {word!r}: not KEY=VALUE")
        namespaced = (key.startswith("net.") and mode != "host") or key.startswith("fs.mqueue.") or key in (
            "kernel.shmmax", "kernel.shmall", "kernel.shmmni", "kernel.shm_rmid_forced", "kernel.msgmax", "kernel.msgmnb",
            "kernel.msgmni", "kernel.sem", "kernel.domainname",
        )  # fmt: skip
        if not namespaced:
            raise UsageError(
                f"--sysctl {key} belongs to the whole machine, not to a pod",
                hint="net.*, kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.*",
            )
        sysctls[key] = value
    labels = {}
    for word in options.get("label") or []:
        key, _, value = word.partition("=")
        labels[key] = value
    network: dict[str, Any] = {"mode": mode}
    if mode == "bridge":
        network["bridge"] = "nsrun0"
        if options.get("ip"):
            network["wanted_ip"] = parse_ipv4(options["ip"], "--ip")
        network["subnet"] = options.get("subnet") or facts.get("subnet", "")
    return {
        "name": name,
        "id": facts["id"],
        "created": facts["created"],
        "owner": facts["owner"],
        "hostname": hostname,
        "network": network,
        "ports": ports,
        "labels": labels,
        "sysctls": sysctls,
        "limits": parse_limits(options),
        "cgroup": facts["cgroup"],
        "shm_size": parse_size(options.get("shm_size") or "64m", "--shm-size"),
        "files": {"/etc/hostname": f"{hostname}\n", "/etc/hosts": "\n".join(hosts) + "\n", "/etc/resolv.conf": resolv},
    }  # fmt: skip
