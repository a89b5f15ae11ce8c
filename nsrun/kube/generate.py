# SPDX-License-Identifier: Apache-2.0
"""Write a pod as YAML: what Kubernetes has a field for as that field, and the rest as annotations, which only nsrun reads.

`kube play` makes the same pod of it.  Pure: what has to be asked of the machine is in `Pod` and `Member`.
"""

from __future__ import annotations

import json
import os
import re

from nsrun.errors import BadInput, NsrunError
from nsrun.kube.document import scalar
from nsrun.kube.fields import CREATE_OF, INIT, JOIN_OF, NAME_OF, is_label, is_label_key, is_label_value, is_subdomain
from nsrun.schema import is_number
from nsrun.spec.options import SUBPATH, parse_size, parse_volume, subpath_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: What `join` is told anew each time, or what is said elsewhere.
_NOT_KEPT = (
    "name",
    "command",
    "env",
    "env_file",
    "detach",
    "cwd",
    "interactive",
    "terminal",
    "rm",
    "cidfile",
    "status_fd",
)
_DEFAULT_SHM = 64 << 20
#: What join takes for what it is not told about a health check.
_HEALTH = {"interval": "30s", "timeout": "30s", "retries": "3", "start_period": "0s"}


def _connection(options: dict[str, Any]) -> dict[str, Any]:
    """Return the httpGet or tcpSocket of a health check; {} where it has none."""
    kind = next((key for key in ("health_http", "health_tcp") if key in options), "")
    if not kind:
        return {}
    text = options[kind]
    place, slash, path = text.removeprefix("http://").partition("/") if kind == "health_http" else (text, "", "")
    host, colon, port = place.rpartition(":")
    if kind == "health_http" and (not colon or place.endswith("]")):
        host, port = place, "80"
    found: dict[str, Any] = {"port": int(port)}
    if host:
        found["host"] = host.strip("[]")
    if kind == "health_tcp":
        return {"tcpSocket": found}
    headers = [header.partition(":") for header in options.get("health_header", [])]
    if headers:
        found["httpHeaders"] = [{"name": name, "value": value.strip()} for name, _, value in headers]
    return {"httpGet": {"path": f"/{path}", **found}}


class Pod:
    """A pod to write: its note, and what only the machine tells.

    `aliases`: lines of /etc/hosts that were asked for.  `owner`: of a user's pod, if root writes it.
    `contents`: name of a volume → its files with their modes, and the group that they were given to (-1: none).
    """

    def __init__(self, note: dict[str, Any], lib: str) -> None:
        self.note, self.lib = note, lib
        self.ports: list[Any] = []
        self.aliases: list[tuple[str, str]] = []
        self.dns: list[str] = []
        self.shm_size = _DEFAULT_SHM
        self.owner = ""
        self.contents: dict[str, tuple[dict[str, tuple[bytes, int]], int]] = {}


class Member:
    """A member to write: its note, the options that it was joined with, and the variables that they gave it."""

    def __init__(self, note: dict[str, Any], options: dict[str, Any], env: dict[str, str]) -> None:
        self.note, self.options, self.env = note, dict(options), env


def own_volume(pod: str, name: str) -> tuple[str, str]:
    """Return the name that YAML has for a volume of the pod's own, and its mark; ("", "") for any other volume."""
    found = re.fullmatch(re.escape(pod) + r"_([a-z0-9][a-z0-9-]*)-([0-9a-f]{12})", name)
    return (found[1], found[2]) if found else ("", "")


def write(pod: Pod, members: list[Member], label: str) -> str:
    """Return a pod as YAML.  Raise BadInput for what no YAML can say.  `label`: the one that `up` marks with, which is left out."""
    writer = _Writer(pod, members, label)
    documents = writer.documents()
    head = [f"# Pod {pod.note['name']}, written by nsrun kube generate.", *(f"# {line}" for line in writer.notes)]
    return "\n".join(head) + "\n" + "---\n".join(map(_dump, documents))


def _dump(document: dict[str, Any]) -> str:
    import yaml

    class Dumper(yaml.SafeDumper):  # type: ignore[misc]
        """Puts in quotes what kubectl would not read as a string."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: Any, value: str) -> Any:
        try:
            plain = scalar(value) == value
        except ValueError:
            plain = False
        style = '"' if not plain else "|" if "\n" in value else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    return str(yaml.dump(document, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=1 << 20))


class _Writer:
    def __init__(self, pod: Pod, members: list[Member], label: str) -> None:
        self.pod, self.members, self.label = pod, members, label
        self.name = pod.note["name"]
        self.notes: list[str] = []
        self.annotations: dict[str, str] = {}
        self.volumes: dict[str, dict[str, Any]] = {}
        self.sources: dict[str, str] = {}  # what a volume of the YAML stands for → its name
        self.others: list[dict[str, Any]] = []
        self.group = -1

    def documents(self) -> list[dict[str, Any]]:
        if not is_subdomain(self.name):
            raise BadInput(
                f"pod {self.name!r} has a name that Kubernetes does not allow", hint="lower-case letters, digits and -"
            )
        if not self.members:
            raise BadInput(f"pod {self.name!r} has no members", hint="Kubernetes knows no pod without containers")
        for member in self.members:
            if not member.note.get("image"):
                raise BadInput(
                    f"member {member.note['name']!r} has no image, but {_source(member)}",
                    hint="nsrun image load makes one of an archive; then join --image",
                )
        spec: dict[str, Any] = {}
        self.of_pod(spec)
        create = self.create()
        containers = self.containers(spec)
        if create:
            self.annotations[CREATE_OF] = json.dumps(create, sort_keys=True)
            self.notes.append(f"Only nsrun reads {CREATE_OF}: {', '.join(sorted(create))}")
        labels = {key: value for key, value in self.labels().items() if _is_label(key, value)}
        metadata: dict[str, Any] = {"name": self.name}
        metadata |= {"labels": dict(sorted(labels.items()))} if labels else {}
        metadata |= {"annotations": dict(sorted(self.annotations.items()))} if self.annotations else {}
        if self.group >= 0:
            groups = [one for one in spec["securityContext"].pop("supplementalGroups", []) if one != self.group]
            spec["securityContext"] |= {"supplementalGroups": groups} if groups else {}
            spec["securityContext"]["fsGroup"] = self.group
        spec |= containers
        if self.volumes:
            spec["volumes"] = [{"name": name, **source} for name, source in self.volumes.items()]
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        return [*self.others, pod]

    # ---- the pod -------------------------------------------------------------------------------------------------

    def labels(self) -> dict[str, str]:
        return {key: value for key, value in (self.pod.note.get("labels") or {}).items() if key != self.label}

    def of_pod(self, spec: dict[str, Any]) -> None:
        note, networks = self.pod.note, self.pod.note["network"]
        if networks["mode"] == "host":
            spec["hostNetwork"] = True
        if note["hostname"] != self.name and is_label(note["hostname"]):
            spec["hostname"] = note["hostname"]
        hosts: dict[str, list[str]] = {}
        for address, name in self.pod.aliases:
            hosts.setdefault(address, []).append(name)
        if hosts:
            spec["hostAliases"] = [{"ip": address, "hostnames": names} for address, names in hosts.items()]
        if self.pod.dns:
            spec["dnsPolicy"], spec["dnsConfig"] = "None", {"nameservers": self.pod.dns}
        spec["securityContext"] = {"seccompProfile": {"type": "RuntimeDefault"}}
        if note.get("sysctls"):
            pairs = [{"name": name, "value": value} for name, value in sorted(note["sysctls"].items())]
            spec["securityContext"]["sysctls"] = pairs

    def create(self) -> dict[str, Any]:
        """Return the options of `pod create` that Kubernetes has no field for."""
        note = self.pod.note
        found: dict[str, Any] = {}
        network = note["network"]
        if network["mode"] == "none":
            found["network"] = "none"
        elif network["mode"] == "bridge":
            words = [network.get("name", "bridge")]
            words += ["ipv6=off"] if network.get("ipv6", "").startswith("off: --network") else []
            words += ["isolated"] if network.get("isolated") else []
            if words != ["bridge"]:
                found["network"] = ",".join(words)
        if network.get("wanted_ip"):
            found["ip"] = network["wanted_ip"]
        if note["hostname"] != self.name and not is_label(note["hostname"]):
            found["hostname"] = note["hostname"]
        limits = note.get("limits") or {}
        if "memory" in limits:
            found["memory"] = limits["memory"]
        if "cpus" in limits:
            found["cpus"] = f"{int(limits['cpus'].split()[0]) / 100000:g}"
        if "pids" in limits:
            found["pids_limit"] = limits["pids"]
        if rest := [f"{key}={value}" for key, value in self.labels().items() if not _is_label(key, value)]:
            found["label"] = sorted(rest)
        if self.pod.owner:
            found["owner"] = self.pod.owner
        return found

    # ---- the members ---------------------------------------------------------------------------------------------

    def containers(self, spec: dict[str, Any]) -> dict[str, Any]:
        of_all = _OfAll(self.members)
        spec["shareProcessNamespace"] = of_all.pid == "pod"
        spec["restartPolicy"] = of_all.restart
        spec["terminationGracePeriodSeconds"] = of_all.grace
        if of_all.groups:
            spec["securityContext"]["supplementalGroups"] = of_all.groups
        found: dict[str, Any] = {}
        taken: set[str] = set()
        for member in self.members:
            init = (member.note.get("labels") or {}).get(INIT) == "true"
            name = _container_name(member.note["name"], self.name, taken)
            taken.add(name)
            if member.note["name"] != f"{self.name}-{name}":
                self.annotations[f"{NAME_OF}{name}"] = member.note["name"]
            written, rest = _Container(self, member, of_all, init).written(name)
            found.setdefault("initContainers" if init else "containers", []).append(written)
            if rest:
                self.annotations[f"{JOIN_OF}{name}"] = json.dumps(rest, sort_keys=True)
                self.notes.append(f"Only nsrun reads {JOIN_OF}{name}: {', '.join(sorted(rest))}")
        if "containers" not in found:
            raise BadInput(f"pod {self.name!r} has only members that were to finish", hint="nsrun ls -a")
        first = found["containers"][0]
        if self.pod.ports:
            first["ports"] = _ports(self.pod.ports)
        if self.pod.shm_size != _DEFAULT_SHM:
            self.volumes["dev-shm"] = {"emptyDir": {"medium": "Memory", "sizeLimit": _size(self.pod.shm_size)}}
            first.setdefault("volumeMounts", []).append({"name": "dev-shm", "mountPath": "/dev/shm"})
        return dict(sorted(found.items(), reverse=True))  # initContainers come first

    def volume(self, key: str, wish: str, source: dict[str, Any]) -> str:
        """Return the name of a volume of the YAML; it is made when `key` is new."""
        if key not in self.sources:
            base = re.sub(r"[^a-z0-9-]+", "-", wish.lower()).strip("-")[:50] or "volume"
            names = (f"{base}-{number}" if number else base for number in range(1 << 20))
            self.sources[key] = next(name for name in names if name not in self.volumes)
            self.volumes[self.sources[key]] = source
        return self.sources[key]


def _source(member: Member) -> str:
    root = member.note.get("rootfs") or "/"
    return "the files of this host" if root == "/" else f"the directory {root}"


def _is_label(key: str, value: str) -> bool:
    return is_label_key(key) and is_label_value(value) and not key.startswith("nsrun.")


def _container_name(member: str, pod: str, taken: set[str]) -> str:
    base = re.sub(r"[^a-z0-9-]+", "-", member.removeprefix(f"{pod}-").lower()).strip("-")[:50] or "container"
    return next(
        name for name in (f"{base}-{number}" if number else base for number in range(1 << 20)) if name not in taken
    )


def _ports(ports: list[Any]) -> list[dict[str, Any]]:
    """Return ports as a container has them.  One that is published on all addresses of both families has no hostIP."""
    found: list[dict[str, Any]] = []
    addresses: dict[tuple[int, int, str], list[str]] = {}
    for port in ports:
        addresses.setdefault((port["pod_port"], port["host_port"], port["protocol"]), []).append(port["host_ip"])
    for (inside, outside, protocol), given in addresses.items():
        every = {"0.0.0.0", "::"} <= set(given)
        for address in [*([""] if every else []), *(one for one in given if not (every and one in ("0.0.0.0", "::")))]:
            one: dict[str, Any] = {"containerPort": inside, "hostPort": outside}
            one |= {"hostIP": address} if address else {}
            found.append(one | ({} if protocol == "tcp" else {"protocol": protocol.upper()}))
    return found


def _size(count: int) -> str:
    for unit, name in ((1 << 30, "Gi"), (1 << 20, "Mi"), (1 << 10, "Ki")):
        if count % unit == 0:
            return f"{count // unit}{name}"
    return str(count)


class _OfAll:
    """What Kubernetes says of a whole pod and nsrun of each member: what most of it is to be is what the first member has."""

    def __init__(self, members: list[Member]) -> None:
        lasting = [m for m in members if (m.note.get("labels") or {}).get(INIT) != "true"] or members
        first = lasting[0].options
        self.pid = "pod" if any((m.options.get("pid") or "pod") == "pod" for m in members) else "nested"
        self.policy = _policy(first.get("restart", "no"))
        self.restart = {"always": "Always", "on-failure": "OnFailure", "no": "Never"}[self.policy]
        self.grace = int(first.get("stop_timeout", "10"))
        groups = [[word for word in m.options.get("group_add") or [] if is_number(word)] for m in members]
        self.groups = [int(word) for word in groups[0]] if all(one == groups[0] for one in groups) else []


def _policy(word: str) -> str:
    return {"unless-stopped": "always"}.get(word, word).partition(":")[0]


class _Container:
    """Writes one member."""

    def __init__(self, writer: _Writer, member: Member, of_all: _OfAll, init: bool) -> None:
        self.writer, self.member, self.of_all, self.init = writer, member, of_all, init
        self.rest: dict[str, Any] = {}
        self.security: dict[str, Any] = {}
        self.mounts: list[dict[str, Any]] = []

    def written(self, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the container, and the options that no field says."""
        options, note = self.member.options, self.member.note
        found: dict[str, Any] = {"name": name, "image": note["image"], "imagePullPolicy": "IfNotPresent"}
        command = list(options.get("command") or [])
        if options.get("entrypoint"):
            found["command"] = [_plain(word) for word in (options["entrypoint"], *command)]
        elif "entrypoint" in options:
            self.rest["entrypoint"] = ""
            found |= {"args": [_plain(word) for word in command]} if command else {}
        elif command:
            found["args"] = [_plain(word) for word in command]
        if "workdir" in options:
            found["workingDir"] = options["workdir"]
        if self.member.env:
            found["env"] = [{"name": key, "value": _plain(value)} for key, value in self.member.env.items()]
        if limits := self.limits(options):
            found["resources"] = {"limits": limits}
        if probe := self.probe(options):
            found["livenessProbe"] = probe
        self.secure(options)
        if self.security:
            found["securityContext"] = self.security
        for word in options.get("volume") or []:
            self.volume(word)
        for word in options.get("tmpfs") or []:
            self.tmpfs(word)
        if self.mounts:
            found["volumeMounts"] = self.mounts
        self.others(options)
        return found, self.rest

    def keep(self, key: str, value: Any) -> None:
        """Leave an option to the annotation; of a list, one more."""
        if isinstance(value, list):
            self.rest.setdefault(key, []).extend(value)
        else:
            self.rest[key] = value

    def limits(self, options: dict[str, Any]) -> dict[str, str]:
        found = {}
        if "memory" in options:
            found["memory"] = _size(parse_size(options["memory"], "--memory"))
        if "cpus" in options:
            millis = round(float(options["cpus"]) * 1000)
            found["cpu"] = f"{millis}m" if millis % 1000 else str(millis // 1000)
        return found

    def probe(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return the probe of a health check; {} for one that Kubernetes can't say, which is kept, and where there is none."""
        given = {key: options[key] for key in options if key.startswith("health_")}
        try:
            command = json.loads(given["health_cmd"])
        except (KeyError, ValueError):
            command = None
        seconds = {key: str(given.get(f"health_{key}", known)) for key, known in _HEALTH.items()}
        whole = all(re.fullmatch(r"[0-9]+s?", text) for text in seconds.values())
        if isinstance(command, list) and command[:1] == ["CMD"]:
            command = command[1:]
        elif isinstance(command, list) and command[:1] in (["CMD-SHELL"], ["NONE"]):
            command = None  # words of Docker's, which YAML takes for a program
        action = {"exec": {"command": command}} if isinstance(command, list) and command else _connection(given)
        if not action or not whole or "health_start_interval" in given:
            for key, value in given.items():
                self.keep(key, value)
            return {}
        numbers = {key: int(text.rstrip("s")) for key, text in seconds.items()}
        probe = {**action, "initialDelaySeconds": numbers["start_period"]}
        rest = {"periodSeconds": "interval", "timeoutSeconds": "timeout", "failureThreshold": "retries"}
        return probe | {field: numbers[key] for field, key in rest.items()}

    def secure(self, options: dict[str, Any]) -> None:
        if "user" in options:
            ids = options["user"].split(":")
            if all(is_number(word) for word in ids):
                self.security |= dict(zip(("runAsUser", "runAsGroup"), map(int, ids), strict=False))
            else:
                self.keep("user", options["user"])
        caps = {
            key: [word.upper().removeprefix("CAP_") for word in options[f"cap_{key}"]]
            for key in ("add", "drop")
            if options.get(f"cap_{key}")
        }
        if caps:
            self.security["capabilities"] = caps
        if options.get("read_only"):
            self.security["readOnlyRootFilesystem"] = True
        for text in options.get("security_opt") or []:
            name, _, value = text.replace(":", "=", 1).partition("=")
            if name == "no-new-privileges":
                self.security["allowPrivilegeEscalation"] = value == "false"
            elif (name, value) == ("seccomp", "unconfined"):
                self.security["seccompProfile"] = {"type": "Unconfined"}
            elif name == "apparmor":
                profile = {"type": "Localhost", "localhostProfile": value}
                self.security["appArmorProfile"] = {"type": "Unconfined"} if value == "unconfined" else profile
            elif (name, value) != ("seccomp", "default"):
                self.keep("security_opt", [f"seccomp={self.here(value)}"])

    def here(self, path: str) -> str:
        """Return a path that may begin where the member was joined as one that begins with /."""
        return os.path.normpath(os.path.join(self.member.options.get("cwd") or "/", path))

    def volume(self, word: str) -> None:
        source = word.partition(":")[0]
        if source.startswith("."):
            word = self.here(source) + word[len(source) :]
        try:
            mount = parse_volume(word)
        except NsrunError:
            self.keep("volume", [word])
            return
        part = subpath_of(mount)
        given = set(mount["options"]) - {"rbind", "rprivate", f"{SUBPATH}{part}"}
        below: dict[str, Any] = {"mountPath": mount["destination"]} | ({"readOnly": True} if "ro" in given else {})
        if part:
            below["subPath"] = part
        where = mount["source"]
        if mount["type"] == "bind" and where.startswith(f"{self.writer.pod.lib}/volumes/"):
            name, _, path = where[len(self.writer.pod.lib) + 9 :].partition("/")
            if self.of_the_pod(name, {**below, "subPath": path}):
                return
        if mount["type"] == "volume" and self.of_the_pod(where, below):
            return
        if given - {"ro"} or not where or (mount["type"] == "volume" and not is_subdomain(where)):
            self.keep("volume", [word])
        elif mount["type"] == "bind":
            name = self.writer.volume(where, os.path.basename(where) or "host", {"hostPath": {"path": where}})
            self.mounts.append({"name": name, **below})
        else:
            claim = {"persistentVolumeClaim": {"claimName": where}}
            self.mounts.append({"name": self.writer.volume(f"claim {where}", where, claim), **below})

    def of_the_pod(self, full: str, below: dict[str, Any]) -> bool:
        """Mount a volume of the pod's own, if it is one: an empty directory, or files that a Secret keeps."""
        name, mark = own_volume(self.writer.name, full)
        if not name:
            return False
        if mark == self.writer.pod.note["id"]:
            source: dict[str, Any] = {"emptyDir": {}}
        elif full in self.writer.pod.contents:
            files, group = self.writer.pod.contents[full]
            source = self.secret(name, files)
            self.writer.group = max(self.writer.group, group)
            below = {key: value for key, value in below.items() if key != "readOnly"}
        else:
            return False
        if full not in self.writer.sources and name in self.writer.volumes:
            return False
        self.mounts.append({"name": self.writer.volume(full, name, source), **below})
        return True

    def secret(self, name: str, files: dict[str, tuple[bytes, int]]) -> dict[str, Any]:
        """Return the source of a volume with these files, which a Secret of its own keeps."""
        import base64

        title = f"{self.writer.name}-{name}"
        keys = {path: re.sub(r"[^-\w.]", "_", path) for path in sorted(files)}
        if all(document["metadata"]["name"] != title for document in self.writer.others):
            data = {keys[path]: base64.b64encode(files[path][0]).decode() for path in keys}
            document = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": title}, "data": data}
            self.writer.others.append(document)
        modes = {mode for _, mode in files.values()} or {0o644}
        # podman 4.3 relies on `optional`
        found: dict[str, Any] = {"secretName": title, "defaultMode": min(modes), "optional": False}
        if any(path != key for path, key in keys.items()) or len(modes) > 1:
            found["items"] = [{"key": key, "path": path, "mode": files[path][1]} for path, key in keys.items()]
        return {"secret": found}

    def tmpfs(self, word: str) -> None:
        target, _, text = word.partition(":")
        given = dict(part.partition("=")[::2] for part in text.split(",") if part)
        if set(given) <= {"mode", "exec", "size"} and given.get("mode") == "1777" and "exec" in given:
            limit = {"sizeLimit": _size(parse_size(given["size"], "--tmpfs"))} if "size" in given else {}
            key = f"tmpfs {self.member.note['name']} {target}"
            name = self.writer.volume(key, os.path.basename(target), {"emptyDir": {"medium": "Memory", **limit}})
            self.mounts.append({"name": name, "mountPath": target})
        else:
            self.keep("tmpfs", [word])

    def others(self, options: dict[str, Any]) -> None:
        """Keep what differs from the pod, and what nothing above knows."""
        known = _names_done()
        for key, value in options.items():
            if (
                key not in known
                and key not in _NOT_KEPT
                and not key.startswith("health_")
                and value not in (None, False, [])
            ):
                self.keep(key, value)
        title = self.member.note["name"]
        for key in ("interactive", "terminal", "rm"):
            if options.get(key):
                self.writer.notes.append(f"Not told: --{key} of {title}")
        labels = [
            word for word in options.get("label") or [] if not word.startswith((f"{self.writer.label}=", f"{INIT}="))
        ]
        if labels:
            self.keep("label", labels)
        if (options.get("pid") or "pod") != self.of_all.pid:
            self.keep("pid", options.get("pid") or "pod")
        if int(options.get("stop_timeout", "10")) != self.of_all.grace:
            self.keep("stop_timeout", str(options.get("stop_timeout", "10")))
        restart = options.get("restart", "no")
        if not self.init and (_policy(restart) != self.of_all.policy or ":" in restart):
            self.keep("restart", restart)
        groups = options.get("group_add") or []
        if rest := [word for word in groups if not is_number(word) or not self.of_all.groups]:
            self.keep("group_add", rest)


def _names_done() -> frozenset[str]:
    return frozenset(
        """image entrypoint workdir memory cpus user cap_add cap_drop read_only security_opt volume tmpfs label pid
        stop_timeout restart group_add""".split()
    )


def _plain(text: str) -> str:
    """Return a value that $(NAME) is not expanded in."""
    return text.replace("$", "$$") if "$(" in text or "$$" in text else text
