# SPDX-License-Identifier: Apache-2.0
"""Parse the values of options (sizes, ports, volumes, capabilities, …) strictly; refuse them with a reason.  Pure."""

from __future__ import annotations

import os

from nsrun.errors import BadInput, UsageError
from nsrun.linux import CAPABILITIES, MAX_ID, RESOURCES, UNLIMITED
from nsrun.schema import is_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from nsrun.types import JoinOptions, Mount, PodOptions, Port, RLimit

    Published = tuple[str, int, int, str]  # address and port of the host, port of the pod, protocol

#: Docker's fourteen.
DEFAULT_CAPABILITIES = (
    "chown dac_override fsetid fowner mknod net_raw setgid setuid setfcap setpcap net_bind_service sys_chroot kill audit_write"
).split()


#: What can be forwarded to a pod.
PROTOCOLS = ("tcp", "udp")
#: The address of which the kernel forwards nothing: nsrun-forward does.
LOOPBACK6 = "::1"
#: Why there is nothing of IPv6.
NO_IPV6 = "this host has no IPv6: its kernel has none, or was booted with ipv6.disable=1"
#: How ports are published; and what the note of a port says when nsrun-forward does it.
PUBLISH_MODES, FORWARD = ("auto", "nat", "forward"), "forward"

#: What stands for every address of this host, of either family.
ANY = ("0.0.0.0", "::")


def parse_count(text: str, flag: str, what: str, low: int = 0, high: int = (1 << 63) - 1) -> int:
    """Return a number in ASCII digits from `low` to `high`.  Raise UsageError when it is not `what` ("a number of lines")."""
    if not is_number(text[:18]):
        raise UsageError(f"{flag} {text[:80]!r} is not {what}")
    if not is_number(text) or not low <= int(text) <= high:
        raise UsageError(f"{flag} {text[:80]} is out of range", hint=f"from {low} to {high}")
    return int(text)


def parse_fraction(text: str, flag: str, what: str, low: float, high: float) -> float:
    """Return a number with or without a point, from `low` to `high`.  Raise UsageError when it is not `what` ("a number of seconds")."""
    whole, point, part = text.partition(".")
    if not (is_number(whole + part) and low <= float(text) <= high):
        raise UsageError(f"{flag} {text[:80]!r} is not {what}", hint=f"from {low:g} to {high:g}: 1.5")
    return float(text)


def parse_size(text: str, flag: str) -> int:
    """Return the bytes that 64m, 1g, 512k or 4096 stand for (powers of 1024, as in Docker)."""
    number, unit = (text[:-1], text[-1].lower()) if text[-1:].isalpha() else (text, "b")
    if unit == "b" and text[-2:-1].isalpha():
        return parse_size(text[:-1], flag)
    factor = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}.get(unit)
    if factor is None or not is_number(number[:18]):
        raise UsageError(f"{flag} {text[:80]!r} is not a size", hint="a number with k, m or g: 64m")
    return parse_count(number, flag, "a size", 1, ((1 << 63) - 1) // factor) * factor


def parse_ports(words: Sequence[str], without_ipv6: str = "") -> list[Port]:
    """Return the ports of values of the form [IP:][HOST]:POD[/tcp|/udp], where HOST and POD may be ranges.

    Without an address they are published on every address of both families; `without_ipv6` tells why only on those of IPv4.
    """
    ports: list[Port] = []
    for word in words:
        body, slash, protocol = word.partition("/")
        if slash and protocol == "sctp":
            raise UsageError(
                f"-p {word}: nsrun can't forward SCTP, only TCP and UDP",
                hint="--network host gives the pod this host's own network, where it can be listened to",
            )
        if slash and protocol not in PROTOCOLS:
            raise UsageError(f"-p {word}: {protocol!r} is no protocol", hint="tcp, which may be left out, or udp")
        bracket, rest = body[1:].split("]", 1) if body[:1] == "[" and "]" in body else ("", "")
        parts = [bracket, *rest[1:].split(":")] if bracket and rest[:1] == ":" else body.split(":")
        if len(parts) == 1:
            parts = ["", parts[0]]
        if len(parts) == 2 and "." in parts[0]:
            raise UsageError(
                f"-p {word}: an address, and only one port",
                hint=f"{parts[0]}:HOST:{parts[1]}, or {parts[0]}::{parts[1]} for a free port of this host",
            )
        if len(parts) == 2:
            parts = [os.environ.get("NSRUN_PUBLISH_IP", "").removeprefix("[").removesuffix("]"), *parts]
        if len(parts) != 3 or "[" in "".join(parts):
            raise UsageError(
                f"-p {word}: not [IP:][HOST]:POD", hint="for example 8080:80, 127.0.0.1:8080:80, [::]:8080:80, :80"
            )
        pod = _port_range(parts[2], word)
        host = _port_range(parts[1], word) if parts[1] else [0] * len(pod)
        if len(host) != len(pod):
            raise UsageError(
                f"-p {word}: the two ranges differ in length",
                hint="each port of the host leads to one of the pod: 8000-8003:80-83",
            )
        for host_ip in _addresses(parts[0], word, without_ipv6):
            for a, b in zip(host, pod, strict=True):
                ports.append({"host_ip": host_ip, "host_port": a, "pod_port": b, "protocol": protocol or "tcp"})
    seen: dict[tuple[str, int], set[str]] = {}
    for port in ports:
        ip, number, protocol = port["host_ip"], port["host_port"], port["protocol"]
        others = seen.setdefault((protocol, number), set())
        if number and any(overlap(ip, other) for other in others):
            raise UsageError(
                f"port {at(ip, number)}/{protocol} is published twice",
                hint="0.0.0.0 means every IPv4 address of this host, [::] every IPv6 address, and no address means all",
            )
        others.add(ip)
    return ports


def _addresses(text: str, word: str, without_ipv6: str) -> list[str]:
    """Return the addresses of this host that a value of -p names.  Raise UsageError for what no host has."""
    if not text:
        return ["0.0.0.0"] if without_ipv6 else [*ANY]
    try:
        ip = parse_ipv6(text, f"-p {word}") if ":" in text else parse_ipv4(text, f"-p {word}")
    except BadInput as error:
        raise UsageError(
            error.message, hint="for example 127.0.0.1 or [::1], for this host alone; none means all addresses"
        ) from None
    if ":" not in ip:
        if ip == "255.255.255.255" or 224 <= int(ip.partition(".")[0]) < 240:
            raise UsageError(
                f"-p {word}: no host has the address {ip}", hint="0.0.0.0 means every address of this host"
            )
        return [ip]
    if ip == LOOPBACK6:  # the forwarder leads from there to the pod's IPv4 address
        return [ip]
    if without_ipv6:
        raise UsageError(f"-p {word}: {without_ipv6}", hint="write 127.0.0.1 or leave the address out")
    if ip.startswith(("ff", "fe8", "fe9", "fea", "feb", "::ffff:")):
        raise UsageError(
            f"-p {word}: {ip} is a group's, a link-local or an IPv4 address", hint="[::] means every IPv6 address"
        )
    return [ip]


def at(ip: str, port: object) -> str:
    """Return an address and a port in one, as in a URL."""
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def overlap(one: str, other: str) -> bool:
    """Return whether a port of the two addresses can't be held twice."""
    return one == other or ((":" in one) == (":" in other) and (one in ANY or other in ANY))


def _port_range(text: str, word: str) -> list[int]:
    first, dash, last = text.partition("-")
    numbers = [first, last] if dash else [first, first]
    if not all(is_number(n) and 1 <= int(n) <= 65535 for n in numbers) or int(numbers[0]) > int(numbers[1]):
        raise UsageError(f"-p {word}: {text!r} is not a port or range", hint="ports go from 1 to 65535")
    return list(range(int(numbers[0]), int(numbers[1]) + 1))


def choose_mode(ports: Iterable[Port], mode: str, network: str, no_nat: str = "") -> list[Port]:
    """Return the ports with what publishes each in its "mode": nothing (nat, or pasta), or FORWARD.

    `mode` is one of PUBLISH_MODES, `network` the pod's, and `no_nat` says why nat can't publish here.  Raise UsageError for a
    combination that can't be had.
    """
    found: list[Port] = []
    for port in ports:
        only = port["host_ip"] == LOOPBACK6
        if mode == "nat" and (only or no_nat or network != "bridge"):
            why = no_nat or f"the network {network} has no nat"
            why = "[::1] is passed on by the forwarder only" if only else why
            raise UsageError(f"--publish-mode nat: {why}", hint="--publish-mode auto, or forward")
        if mode == FORWARD or (mode == "auto" and (only or no_nat)):
            port = {**port, "mode": FORWARD}
        found.append(port)
    return found


def is_forwarded(port: Port) -> bool:
    return port.get("mode") == FORWARD


def published(ports: Iterable[Port]) -> tuple[Published, ...]:
    """Return ports as (address, port of the host, port of the pod, protocol)."""
    return tuple((p["host_ip"], p["host_port"], p["pod_port"], p["protocol"]) for p in ports)


def port_ranges(ports: Iterable[Published]) -> list[tuple[str, str, str]]:
    """Return (address, host's ports, pod's ports) for each run of consecutive ports, as "8000-8010"; port 0 of the host is "free".

    The pod's ports end with "/udp" when they are UDP's; an IPv6 address is in brackets.
    """
    found: list[tuple[str, int, int, int, int, str]] = []  # address, first and last of the host, of the pod, protocol
    for ip, host, pod, protocol in ports:
        last = found[-1] if found else ("", 0, 0, 0, 0, "")
        if (last[0], last[5], last[4] + 1) == (ip, protocol, pod) and host == (last[2] + 1 if last[2] else 0):
            found[-1] = (ip, last[1], host, last[3], pod, protocol)
        else:
            found.append((ip, host, host, pod, pod, protocol))

    def text(first: int, last: int) -> str:
        return f"{first}-{last}" if first != last else str(first or "free")

    return [
        (f"[{ip}]" if ":" in ip else ip, text(a, b), text(c, d) + ("" if p == "tcp" else f"/{p}"))
        for ip, a, b, c, d, p in found
    ]


def parse_environment(words: Sequence[str], caller: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of KEY=VALUE, or of KEY alone, which takes the caller's own value if it has one."""
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
    """Return the absolute path of -w, or "" when it was not given."""
    if path is not None and not path.startswith("/"):
        raise UsageError(f"-w {path!r}: the working directory is an absolute path")
    return path or ""


def parse_ulimit(word: str) -> RLimit:
    name, equals, value = word.partition("=")
    soft, colon, hard = value.partition(":")
    hard = hard if colon else soft

    def number(text: str) -> int:
        if text in ("unlimited", "-1"):
            return UNLIMITED
        if not is_number(text):
            raise UsageError(
                f"--ulimit {word}: {text!r} is not a number", hint="for example nofile=1024:2048, core=unlimited"
            )
        return parse_count(text, f"--ulimit {name}", "a number", 0, UNLIMITED)

    if name not in RESOURCES or not equals:
        raise UsageError(f"--ulimit {word}: not NAME=SOFT[:HARD]", hint=f"names: {' '.join(RESOURCES)}")
    if number(soft) > number(hard):
        raise UsageError(f"--ulimit {word}: the soft limit is above the hard one")
    return {"type": f"RLIMIT_{name.upper()}", "soft": number(soft), "hard": number(hard)}


def parse_oom_score(text: str | None, default: int | None) -> int | None:
    """Return the number of --oom-score-adj, or the default when it was not given; proc_pid_oom_score_adj(5)."""
    if text is None:
        return default
    number = parse_count(text.removeprefix("-"), "--oom-score-adj", "a number from -1000 to 1000", 0, 1000)
    return -number if text.startswith("-") else number


def parse_restart(word: str) -> tuple[str, int]:
    """Return the policy (no, on-failure or always) and how many restarts it allows; 0 means no limit."""
    policy, colon, count = word.partition(":")
    if policy == "unless-stopped" and not colon:
        policy = "always"  # the same here: nothing is started at boot
    if policy not in ("no", "on-failure", "always") or (colon and policy != "on-failure"):
        raise UsageError(f"--restart {word!r}", hint="no, on-failure[:N] or always")
    return policy, parse_count(count, "--restart on-failure:", "a number of times") if colon else 0


def capabilities(add: Sequence[str], drop: Sequence[str]) -> list[str]:
    """Return the capabilities that result: ALL in --cap-drop empties the default set, ALL in --cap-add fills it, as in Docker."""

    def names(words: Sequence[str], flag: str) -> list[str]:
        found = []
        for word in words:
            name = word.lower().removeprefix("cap_")
            if name != "all" and name not in CAPABILITIES:
                raise UsageError(f"{flag} {word}: no such capability", hint="capabilities(7) lists them; ALL means all")
            found.append(name)
        return found

    added, dropped = names(add, "--cap-add"), names(drop, "--cap-drop")
    if "all" in added and "all" in dropped:
        raise UsageError("--cap-add ALL and --cap-drop ALL contradict each other")
    result = set() if "all" in dropped else set(DEFAULT_CAPABILITIES)
    if "all" in added:
        result = set(CAPABILITIES)
    result |= set(added) - {"all"}
    result -= set(dropped) - {"all"}
    return [name for name in CAPABILITIES if name in result]


def parse_labels(words: Sequence[str]) -> dict[str, str]:
    """Return the labels of --label KEY=VALUE; KEY alone has the empty value."""
    labels = {}
    for word in words:
        key, _, value = word.partition("=")
        if not key:
            raise UsageError(f"--label {word!r}: not KEY=VALUE")
        labels[key] = value
    return labels


def parse_hostname(text: str) -> str:
    """Return a hostname.  Raise UsageError for what hostname(7) does not allow."""
    if not text or len(text) > 63 or not all(c.isascii() and (c.isalnum() or c in "-._") for c in text):
        raise UsageError(f"--hostname {text!r}", hint="letters, digits, '-' and '.', at most 63; hostname(7)")
    return text


def parse_processors(text: str) -> str:
    """Return a list of processors as cpuset.cpus takes it: "0-2,4"."""
    for part in text.split(","):
        first, dash, last = part.partition("-")
        numbers = [first, last] if dash else [first]
        if not all(is_number(number) and len(number) < 6 for number in numbers) or (dash and int(first) > int(last)):
            raise UsageError(
                f"--cpuset-cpus {text!r}", hint="numbers and ranges: 0-2,4; nproc tells how many there are"
            )
    return text


#: Where the files of time zones are: tzfile(5).
ZONES = "/usr/share/zoneinfo/"


def parse_zone(text: str) -> str:
    """Return the file of a time zone: that of this host for "local", else below /usr/share/zoneinfo."""
    if text == "local":
        return "/etc/localtime"
    parts = text.split("/")
    if not all(part and part.isascii() and part[0].isalnum() and all(c.isalnum() or c in "+-_" for c in part) for part in parts):  # fmt: skip
        raise UsageError(f"--tz {text!r}", hint="for example Europe/Berlin, UTC, or local; ls /usr/share/zoneinfo")
    return f"{ZONES}{text}"


def parse_groups(words: Sequence[str], group: str) -> list[int]:
    """Return the ids of groups, names or numbers, by the text of a group file.  Raise BadInput for an unknown name."""
    found = []
    for word in words:
        number = _number(word) if word else None
        if number is None:
            row = next((r for r in _lines(group, 3) if r[0] == word), None)
            if row is None:
                raise BadInput(f"no group {word!r} in the rootfs's /etc/group", hint="a number works too")
            number = int(row[2])
        found.append(number)
    return found


def parse_limits(options: JoinOptions | PodOptions) -> dict[str, str]:
    """Return --memory, --cpus and --pids-limit as cgroup v2 takes them."""
    limits = {}
    if options.get("memory"):
        limits["memory"] = str(parse_size(options["memory"], "--memory"))
    if options.get("cpus"):
        share = parse_fraction(options["cpus"], "--cpus", "a number of processors", 0.01, 4096)
        limits["cpus"] = f"{int(share * 100000)} 100000"
    if options.get("pids_limit"):
        limits["pids"] = str(parse_count(options["pids_limit"], "--pids-limit", "a number of processes", 1, 1 << 22))
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
    "nocopy",
}


def parse_target(path: str, word: str) -> str:
    """Return the target of a mount, normalized.  Raise UsageError unless it is absolute, and neither / nor below /proc or /sys."""
    if not path.startswith("/") or "\0" in path:
        raise UsageError(f"{word}: the target {path!r} is not an absolute path")
    clean = os.path.normpath("/" + path.lstrip("/"))
    check_place(clean, word)
    return clean


def check_place(clean: str, word: str) -> None:
    """Raise UsageError for a path at which nothing may be mounted."""
    if clean == "/":
        raise UsageError(f"{word}: the target can't be /")
    if (clean == "/proc" or clean.startswith("/proc/")) and clean not in _PROC_FILES:
        raise UsageError(
            f"{word}: nothing may be mounted at {clean}: what is written below /proc must reach the kernel, not a file (CVE-2025-52881)",
            hint=f"only on: {' '.join(sorted(_PROC_FILES))}",
        )
    if clean == "/sys" or clean.startswith("/sys/"):
        raise UsageError(
            f"{word}: nothing may be mounted at {clean}: /sys is the kernel's own, read-only",
            hint="another place; a device is given with --device",
        )


#: What only tells about the machine: lxcfs and the like mount their own there.
_PROC_FILES = {
    f"/proc/{name}" for name in ("cpuinfo", "diskstats", "loadavg", "meminfo", "stat", "swaps", "uptime", "slabinfo")
}


def _check_sense(options: Sequence[str], word: str) -> None:
    """Raise UsageError when two of these options contradict each other, or one with a value is given twice."""
    for one, other in (("ro", "rw"), ("nosuid", "suid"), ("nodev", "dev"), ("noexec", "exec"), ("nocopy", "copy")):
        if one in options and other in options:
            raise UsageError(f"{word}: {one} and {other} contradict each other")
    keys = [option.partition("=")[0] for option in options if "=" in option]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise UsageError(f"{word}: {twice[0]} is there twice")


#: The option of a mount that names what of its source is mounted.
SUBPATH = "subpath="


def subpath_of(mount: Mount) -> str:
    """Return the path below the source of what is mounted; "": the source itself."""
    return next((option[len(SUBPATH) :] for option in mount["options"] if option.startswith(SUBPATH)), "")


def _volume(source: str, target: str, options: list[str], word: str) -> Mount:
    for option in options:
        if option.startswith(SUBPATH):
            path = option[len(SUBPATH) :]
            if not path or path.startswith("/") or ".." in path.split("/") or "\0" in path:
                raise UsageError(f"{word}: {path!r} is not a relative path without '..'")
            if len(os.fsencode(path)) > 4000 or any(len(os.fsencode(part)) > 255 for part in path.split("/")):
                raise UsageError(f"{word[:200]}: the path of {SUBPATH} is too long", hint="pathconf(3)")
            if not source:
                raise UsageError(f"{word}: a volume without a name is new, and has nothing below it")
        elif option not in _FLAGS:
            known = " ".join(sorted({*_FLAGS, f"{SUBPATH}PATH"}))
            raise UsageError(f"{word}: unknown option {option!r}", hint=f"known: {known}")
    if "dev" in options:
        raise UsageError(f"{word}: devices of a volume can't be used", hint="--device HOST:MEMBER gives one")
    _check_sense(options, word)
    kind = "bind" if source.startswith(("/", ".")) else "volume"
    if kind == "volume" and source:
        from nsrun.schema import check_name

        if "/" in source or source.startswith("~"):
            raise UsageError(
                f"{word}: {source!r} is neither a path nor a name of a volume",
                hint="a path of this host begins with / or with ./; only a shell knows ~",
            )
        check_name(source, "volume")
    return {
        "destination": parse_target(target, word),
        "type": kind,
        "source": os.path.abspath(source) if kind == "bind" else source,
        "options": [
            "rbind",
            "rprivate",
            *(o for o in options if o in ("ro", "nosuid", "nodev", "noexec", "nocopy") or o.startswith(SUBPATH)),
        ],
    }


def parse_volume(word: str) -> Mount:
    """Return the mount of -v SRC:DST[:OPTIONS], -v NAME:DST or -v DST."""
    parts = word.split(":")
    if len(parts) == 1:
        return _volume("", parts[0], [], f"-v {word}")
    if len(parts) > 3 or not parts[0]:
        raise UsageError(f"-v {word}: not SRC:DST[:OPTIONS]")
    return _volume(parts[0], parts[1], parts[2].split(",") if len(parts) == 3 else [], f"-v {word}")


def image_volume(path: str) -> Mount:
    """Return the volume that an image declares: new, seeded from the image, and the member's own."""
    mount = _volume("", path, [], f"the image's volume {path!r}")
    top = mount["destination"].split("/")[1]
    if top in ("proc", "sys", "dev"):
        raise BadInput(f"the image asks for a volume at {path!r}, where the kernel's own file systems are")
    return mount


def parse_mount(word: str) -> Mount:
    """Return the mount of --mount type=bind|tmpfs|volume,source=…,target=…,readonly,nosuid,nodev,noexec."""
    values: dict[str, str] = {}
    for part in word.split(","):
        key, equals, value = part.partition("=")
        if not key:
            raise UsageError(f"--mount {word}: there is nothing between two commas, or at an end")
        key = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}.get(key, key)
        if key in values:
            raise UsageError(f"--mount {word}: {key} is there twice")
        values[key] = value if equals else "true"
    kind = values.pop("type", "volume")
    target = values.pop("target", "")
    flags = {key: values.pop(key, "false") for key in ("readonly", "nosuid", "nodev", "noexec")}
    if bad := [key for key, value in flags.items() if value not in ("true", "1", "false", "0")]:
        raise UsageError(f"--mount {word}: {bad[0]} is true or false")
    options = [key.replace("readonly", "ro") for key, value in flags.items() if value in ("true", "1")]
    if not target:
        raise UsageError(f"--mount {word}: no target")
    if kind == "tmpfs":
        options += [f"{k.removeprefix('tmpfs-')}={v}" for k, v in values.items() if k in ("tmpfs-size", "tmpfs-mode")]
        if unknown := set(values) - {"tmpfs-size", "tmpfs-mode"}:
            raise UsageError(f"--mount {word}: unknown key {sorted(unknown)[0]!r}")
        return parse_tmpfs(":".join([target, ",".join(options)]).rstrip(":"))
    source = values.pop("source", "")
    options += [f"{SUBPATH}{values.pop(key)}" for key in ("subpath", "volume-subpath") if key in values]
    if values or kind not in ("bind", "volume") or (kind == "bind" and not source):
        raise UsageError(
            f"--mount {word}: not type=bind|tmpfs|volume,source=…,target=…[,readonly][,nosuid][,subpath=PATH]"
        )
    if kind == "bind" and not source.startswith(("/", ".")):
        source = f"./{source}"
    return _volume(source, target, options, f"--mount {word}")


_IPC_SYSCTLS = (
    "kernel.shmmax", "kernel.shmall", "kernel.shmmni", "kernel.shm_rmid_forced", "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem",
)  # fmt: skip


def parse_sysctls(words: Sequence[str], net: bool, ipc: bool, uts: bool, whose: str) -> dict[str, str]:
    """Return the settings of --sysctl KEY=VALUE.

    Only those that belong to a network, IPC or UTS namespace of `whose` own are accepted (threats R21; CVE-2022-0811).
    """
    found = {}
    for word in words:
        key, _, value = word.partition("=")
        plain = all(c.isascii() and (c.isalnum() or c in "._-") for c in key) and ".." not in key
        if not value or not key or not plain or key[0] == "." or any(c in value for c in "\n+="):
            raise UsageError(f"--sysctl {word!r}: not KEY=VALUE")
        allowed = (
            (net and key.startswith("net."))
            or (ipc and (key.startswith("fs.mqueue.") or key in _IPC_SYSCTLS))
            or (uts and key == "kernel.domainname")
        )
        if not allowed:
            raise UsageError(
                f"--sysctl {key} does not belong to a namespace of {whose} own",
                hint="net.* with a network, kernel.shm*, kernel.msg*, kernel.sem and fs.mqueue.* with an IPC, kernel.domainname with a UTS namespace of its own",
            )
        found[key] = value
    return found


def parse_device(word: str) -> Mount:
    """Return the mount of --device HOST[:MEMBER[:rwm]].  The node's own mode decides who may use it: there is no device cgroup."""
    parts = word.split(":")
    source, target = parts[0], parts[1] if len(parts) > 1 else parts[0]
    if len(parts) > 3 or not source.startswith("/"):
        raise UsageError(f"--device {word}: not HOST[:MEMBER[:rwm]], for example /dev/fuse")
    if len(parts) == 3 and not {"r", "w"} <= set(parts[2]) <= {"r", "w", "m"}:
        raise UsageError(
            f"--device {word}: only rw and rwm", hint="less is the node's own business: chmod it, or run as a user"
        )
    return {"destination": parse_target(target, f"--device {word}"), "type": "device", "source": source, "options": []}


#: The options of a tmpfs that have a value: tmpfs(5).
_OF_TMPFS = {"size": "64m, or 50%", "mode": "1777", "uid": "0", "gid": "0", "nr_inodes": "1000, or 1k"}


def _check_of_tmpfs(key: str, value: str, word: str) -> None:
    """Raise UsageError for a value that the kernel would not understand."""
    units = {"size": "kKmMgGtTpPeE%", "nr_inodes": "kKmMgG"}.get(key, "")
    number = value[:-1] if value[-1:] and value[-1] in units else value
    if not is_number(number) or (key == "mode" and (set(number) & set("89") or len(number.lstrip("0")) > 4)):
        raise UsageError(f"{word}: {key}={value!r} is not understood", hint=f"for example {key}={_OF_TMPFS[key]}")


def parse_tmpfs(word: str) -> Mount:
    """Return the mount of --tmpfs DST[:size=64m,mode=1777,ro,exec]; noexec, nosuid and nodev by default, as in Docker."""
    target, _, text = word.partition(":")
    options = {"nosuid", "nodev", "noexec"}
    data = []
    given = [option for option in text.split(",") if option]
    _check_sense(given, f"--tmpfs {word}")
    for option in given:
        key = option.partition("=")[0]
        if option in ("exec", "suid", "dev"):
            options.discard(f"no{option}")
        elif option in ("ro", "rw", "noexec", "nosuid", "nodev"):
            options.add(option)
        elif key in _OF_TMPFS:
            _check_of_tmpfs(key, option[len(key) + 1 :], f"--tmpfs {word}")
            data.append(option)
        else:
            raise UsageError(f"--tmpfs {word}: unknown option {option!r}")
    return {
        "destination": parse_target(target, f"--tmpfs {word}"),
        "type": "tmpfs",
        "source": "tmpfs",
        "options": sorted(options) + (data if any(d.startswith("mode=") for d in data) else [*data, "mode=1777"]),
    }


def parse_signal(text: str) -> int:
    """Return the number of a signal named TERM, SIGTERM, 15 or RTMIN+3; signal(7)."""
    import _signal

    word = text.upper().removeprefix("SIG")
    if is_number(word) and 1 <= int(word) <= 64:
        return int(word)
    base, _, plus = word.partition("+")
    if base == "RTMIN" and (not plus or is_number(plus)) and int(plus or 0) <= 30:
        return 34 + int(plus or 0)
    number = getattr(_signal, f"SIG{word}", None) if word.isascii() else None
    if isinstance(number, int) and word.isalnum():
        return int(number)
    raise UsageError(f"{text!r} is no signal", hint="a name like TERM, a number, or RTMIN+N; kill -l lists them")


# ---- --user: names and numbers of the rootfs's own passwd(5) and group(5) --------------------------------------


def _number(text: str) -> int | None:
    """Return a uid or gid in decimal, or None for a name.  Raise BadInput for a number out of range (4294967295, -1)."""
    if text and frozenset("0123456789").issuperset(text):
        value = int(text) if len(text) <= 4000 else MAX_ID + 1  # beyond that int() itself refuses
        if value > MAX_ID:
            raise BadInput(f"user or group {text[:40]!r} is out of range", hint=f"ids go from 0 to {MAX_ID}")
        return value
    if text.startswith(("-", "+", *"0123456789")):
        raise BadInput(f"user or group {text!r} is neither a number nor a name")
    return None


def _is_id(text: str) -> bool:
    return is_number(text) and int(text) <= MAX_ID


def _lines(text: str, fields: int) -> list[list[str]]:
    rows = []
    for line in text.split("\n"):
        parts = line.split(":")
        if len(parts) >= fields and _is_id(parts[2]):
            rows.append(parts)
    return rows


def parse_user(user: str, passwd: str, group: str) -> tuple[int, int, list[int], str]:
    """Return (uid, gid, supplementary groups, home) of "USER[:GROUP]", names or numbers; "" is root.

    Supplementary groups come from the group file only when no group is given, as in Docker.
    BadInput: a name that is not in the file, a number out of range, an empty part.
    """
    name, colon, group_name = (user or "0").partition(":")
    if not name or (colon and not group_name) or ":" in group_name:
        raise BadInput(f"user {user!r} is not USER[:GROUP]")
    users, groups = _lines(passwd, 4), _lines(group, 3)
    uid = _number(name)
    row = next((r for r in users if (r[0] == name if uid is None else int(r[2]) == uid)), None)
    if uid is None:
        if row is None:
            known = ", ".join(r[0] for r in users[:40])
            raise BadInput(
                f"no user {name!r} in the rootfs's /etc/passwd", hint=f"it has: {known or 'none'}; a number works too"
            )
        uid = int(row[2])
    gid = 0
    if row is not None and _is_id(row[3]):
        gid = int(row[3])
    extra: list[int] = []
    if colon:
        number = _number(group_name)
        if number is None:
            found = next((r for r in groups if r[0] == group_name), None)
            if found is None:
                raise BadInput(f"no group {group_name!r} in the rootfs's /etc/group", hint="a number works too")
            number = int(found[2])
        gid = number
    elif row is not None:
        extra = sorted({int(r[2]) for r in groups if len(r) > 3 and row[0] in r[3].split(",")} - {gid})
    home = row[5] if row is not None and len(row) > 5 and row[5].startswith("/") else ("/root" if uid == 0 else "/")
    return uid, gid, [gid, *extra], home


def ip_number(ip: str) -> int:
    from _socket import inet_aton

    return int.from_bytes(inet_aton(ip), "big")


def ip_text(number: int) -> str:
    from _socket import inet_ntoa

    return inet_ntoa(number.to_bytes(4, "big"))


class Subnet:
    """A network of IPv4 and this host's address in it, which is the gateway of the pods there.

    `bits` is the length of its prefix.  `first` and `last`, which no pod has, and `mask` are numbers.
    """

    __slots__ = ("bits", "first", "gateway", "last", "mask")

    def __init__(self, gateway: str, bits: int) -> None:
        self.gateway, self.bits = gateway, bits
        self.mask = (1 << 32) - (1 << (32 - bits))
        self.first = ip_number(gateway) & self.mask
        self.last = self.first | ~self.mask & 0xFFFFFFFF

    def __str__(self) -> str:
        return f"{ip_text(self.first)}/{self.bits}"

    def __contains__(self, number: int) -> bool:
        return number & self.mask == self.first

    def overlaps(self, first: int, mask: int) -> bool:
        """Return whether one of the two networks contains the other, or they are the same."""
        return not (self.first ^ first) & self.mask & mask


def parse_ipv4(text: str, what: str) -> str:
    """Return an IPv4 address.  Raise BadInput unless it is four decimal numbers without leading zeros."""
    parts = text.split(".")
    if len(parts) != 4 or not all(is_number(p) and int(p) < 256 and p == str(int(p)) for p in parts):
        raise BadInput(f"{what}: {text!r} is not an IPv4 address")
    return ".".join(str(int(p)) for p in parts)


#: The length of a prefix when none is named, the least (all addresses begin with the same byte) and the most (one is for a pod).
USUAL_BITS, LEAST_BITS, MOST_BITS = 24, 8, 30


def parse_subnet(text: str) -> Subnet:
    """Return a network that is named by any of its addresses; the second one is the gateway.  Raise BadInput."""
    address, slash, prefix = text.partition("/")
    address = parse_ipv4(address, "--subnet")
    if slash and prefix not in map(str, range(LEAST_BITS, MOST_BITS + 1)):
        raise BadInput(
            f"--subnet {text[:80]}: its prefix is not one from /{LEAST_BITS} to /{MOST_BITS}",
            hint="10.99.0.0/16, for example; without a prefix it is a /24",
        )
    if int(address.partition(".")[0]) in (0, 127, *range(224, 256)):  # RFC 6890
        raise BadInput(f"--subnet {text}: no pod can have an address of it", hint="10.99.7.0/24, for example")
    bits = int(prefix) if slash else USUAL_BITS
    return Subnet(ip_text(Subnet(address, bits).first + 1), bits)


def subnet_of(network: Mapping[str, Any]) -> Subnet:
    """Return the network of a pod on a bridge, as its note has it."""
    return Subnet(network["gateway"], network.get("prefix", USUAL_BITS))


def parse_ipv6(text: str, what: str) -> str:
    """Return an IPv6 address in its shortest form.  Raise BadInput for anything else, a scope too (%eth0)."""
    from _socket import AF_INET6, inet_ntop, inet_pton

    try:
        return inet_ntop(AF_INET6, inet_pton(AF_INET6, text))
    except (OSError, ValueError):
        raise BadInput(f"{what}: {text!r} is not an IPv6 address") from None


def parse_subnet6(text: str) -> str:
    """Return the first address of a /64, named by any of its addresses.  Raise BadInput for another prefix."""
    from _socket import AF_INET6, inet_ntop, inet_pton

    address, _, prefix = text.partition("/")
    raw = inet_pton(AF_INET6, parse_ipv6(address, "--subnet6"))
    if prefix not in ("", "64"):
        raise BadInput(f"--subnet6 {text}: the bridge's IPv6 network is a /64")
    if raw[0] in (0, 0xFF) or (raw[0] == 0xFE and raw[1] & 0xC0 == 0x80):
        raise BadInput(f"--subnet6 {text}: no pod can have an address of it", hint="fd00:1:2:3::/64, for example")
    return inet_ntop(AF_INET6, raw[:8] + bytes(8))


#: What --network says besides the name of a network.
MODES = ("bridge", "none", "host", "pasta")


def parse_network(text: str) -> tuple[str, str, bool | None, bool]:
    """Return (mode, network, whether IPv6 was asked for, whether the pod is isolated) of --network MODE|NETWORK[,ipv6=on|off][,isolated].

    A pod of a network has the mode bridge; "" is the default one.  None: nothing was said of IPv6.
    """
    name, *words = text.split(",")
    mode, network = (name, "") if name in MODES else ("bridge", name)
    known = ("ipv6=on", "ipv6=off", "isolated")
    if words and (
        not name or mode != "bridge" or not set(words).issubset(known) or len({w[:4] for w in words}) < len(words)
    ):
        raise UsageError(
            f"--network {text}: not bridge|NETWORK[,ipv6=on|off][,isolated]", hint="pasta, none and host stand alone"
        )
    return mode, network, ("ipv6=on" in words) if set(words) & set(known[:2]) else None, "isolated" in words


#: The MTUs that a pod may have, in bytes: RFC 791 and the kernel's ETH_MAX_MTU; IPv6 needs RFC 8200's.
LEAST_MTU, MOST_MTU, LEAST_MTU6 = 68, 65535, 1280


def parse_mtu(text: str) -> int:
    """Return the bytes of --mtu."""
    return parse_count(text, "--mtu", "a number of bytes", LEAST_MTU, MOST_MTU)
