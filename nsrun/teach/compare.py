# SPDX-License-Identifier: Apache-2.0
"""`nsrun explain --compare`: how docker, podman and kubectl say what an nsrun command line says, and what they can't say.

Data, and the few lines that read it.  An entry of OPTIONS is, for each tool in the order of TOOLS, the arguments with {} for the
value; "field …" where a pod's manifest says it and no argument does; "default" where it need not be said; "argument" where it is one, after the options;
or "none: …", with the reason or with what comes closest.  A dictionary has an entry for each value.
"""

from __future__ import annotations

from dataclasses import dataclass

from nsrun.plan import sh_quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

TOOLS = ("docker", "podman", "kubectl")
_OF_THE_NODE = "Images belong to the runtime of each node."

#: By command: what stands before the options, what after them, and what is to be known.  {0} is the first operand, {all} are
#: all of them, {image} and {command} are those of a join.
COMMANDS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "pod create": (
        (
            "docker run --detach --name {0} --ipc shareable",
            "IMAGE",
            "docker has no pods: a container whose namespaces others join stands for one, and IMAGE has to have a program that waits.",
        ),
        ("podman pod create --name {0} --share ipc,net,uts,pid", "", "A container with pause, the infra container, holds the namespaces here, too."),
        (
            "kubectl apply --filename {0}.yaml",
            "",
            "A manifest describes the pod with all of its containers; the kubelet asks the runtime for pause (the sandbox) and then for them.",
        ),
    ),
    "join": (
        (
            "docker run",
            "{image} {command}",
            "What is joined is a container. It has to have been started with --ipc shareable; the hostname comes with the network.",
        ),
        ("podman run --pod {0}", "{image} {command}", ""),
        (
            "kubectl debug {0}",
            "{command}",
            "The containers of a pod are in its manifest. Later, only an ephemeral container can be added, which is never removed or restarted.",
        ),
    ),
    "run": (
        ("docker run", "{command}", ""),
        ("podman run", "{command}", "It makes no pod of its own; --pod new:NAME does."),
        ("", "", "kubectl run NAME --image IMAGE -- COMMAND makes a pod of one container."),
    ),
    "up": (
        ("", "", "docker compose up is the closest; its file has another format."),
        ("", "", "podman kube play is the closest; its file is a manifest of Kubernetes, and all of it is made anew."),
        ("", "", "kubectl apply is the closest; its file is a manifest."),
    ),
    "kube play": (
        ("", "", "docker compose up is the closest; its file has another format."),
        ("podman kube play", "{all}", "It makes all of it anew, with --replace, and leaves fields out that it does not know."),
        ("kubectl apply --filename", "{all}", ""),
    ),
    "port add": (
        ("", "", "Ports are published when a container is made: docker run --publish. The closest is another container, which forwards."),
        ("", "", "Ports are published when a pod is made: podman pod create --publish."),
        ("", "", "kubectl port-forward forwards while it runs; a Service can be changed at any time: kubectl expose."),
    ),
    "port rm": (
        ("", "", "Ports go with their container: docker rm."),
        ("", "", "Ports go with their pod: podman pod rm."),
        ("", "", "kubectl port-forward ends with Ctrl-C; a Service can be changed at any time: kubectl edit service."),
    ),
    "exec": (
        ("docker exec", "{0} {command}", ""),
        ("podman exec", "{0} {command}", ""),
        ("kubectl exec POD --container {0}", "{command}", "A container's name is one within its pod."),
    ),
    "stop": (
        ("docker stop", "{all}", ""),
        ("podman stop", "{all}", ""),
        ("", "", "The containers of a pod are not stopped one by one."),
    ),
    "start": (
        ("docker start", "{all}", ""),
        ("podman start", "{all}", ""),
        ("", "", "The kubelet starts the containers of a pod, as the field restartPolicy says."),
    ),
    "restart": (
        ("docker restart", "{all}", ""),
        ("podman restart", "{all}", ""),
        ("", "", "A container of a pod that has ended is started as the field restartPolicy says; kubectl rollout restart makes new pods."),
    ),
    "rename": (
        ("docker rename", "{all}", ""),
        ("podman rename", "{all}", ""),
        ("", "", "A container keeps the name that it has in the manifest."),
    ),
    "pause": (
        ("docker pause", "{all}", ""),
        ("podman pause", "{all}", ""),
        ("", "", "Containers of a pod are not frozen."),
    ),
    "unpause": (
        ("docker unpause", "{all}", ""),
        ("podman unpause", "{all}", ""),
        ("", "", "Containers of a pod are not frozen."),
    ),
    "cp": (
        ("docker cp", "{all}", "It keeps owners only with --archive."),
        ("podman cp", "{all}", ""),
        ("kubectl cp", "{all}", "It runs the tar of the image."),
    ),
    "volume rm": (
        ("docker volume rm", "{all}", ""),
        ("podman volume rm", "{all}", ""),
        ("kubectl delete persistentvolumeclaim", "{all}", ""),
    ),
    "volume prune": (
        ("docker volume prune", "", ""),
        ("podman volume prune", "", "It has no --all, and takes all that no container uses."),
        ("", "", "A volume claim stays until it is deleted by its name."),
    ),
    "network create": (
        ("docker network create", "{all}", "The bridge is made at once."),
        ("podman network create", "{all}", ""),
        ("", "", "A cluster has one network, and its policies."),
    ),
    "network rm": (
        ("docker network rm", "{all}", ""),
        ("podman network rm", "{all}", "With --force it removes the pods that are on it."),
        ("", "", "A cluster has one network."),
    ),
    "pod restart": (
        ("", "", "docker has no pods: docker restart, for each container."),
        ("podman pod restart", "{all}", "It restarts the infra container, too, and so makes new namespaces."),
        ("", "", "The containers of a pod are not restarted together; kubectl rollout restart makes new pods."),
    ),
    "kill": (
        ("docker kill", "{all}", ""),
        ("podman kill", "{all}", ""),
        ("", "", "The closest is kubectl exec POD --container MEMBER -- kill -s SIGNAL 1, with a program of the image."),
    ),
    "rm": (
        ("docker rm", "{all}", ""),
        ("podman rm", "{all}", ""),
        ("", "", "The containers of a pod are removed with it."),
    ),
    "pod stop": (
        ("", "", "docker has no pods: docker stop, for each container, and last the one whose namespaces they joined."),
        ("podman pod stop", "{all}", ""),
        ("kubectl delete pod", "{all}", "A pod that was stopped is also removed."),
    ),
    "pod kill": (
        (
            "docker kill",
            "{all}",
            "This kills the container whose namespaces others joined. Those that share its PID namespace end with it, the others go on.",
        ),
        ("podman pod kill", "{all}", "The signal goes to every container of the pod, not to its process 1 alone."),
        ("kubectl delete pod --grace-period=0 --force", "{all}", ""),
    ),
    "pod rm": (
        ("", "", "docker has no pods: docker rm, for each container."),
        ("podman pod rm", "{all}", ""),
        ("kubectl delete pod", "{all}", ""),
    ),
    "pod prune": (
        ("docker container prune", "", "It removes all stopped containers."),
        ("podman pod prune", "", ""),
        ("kubectl delete pod --field-selector=status.phase==Succeeded", "", "Pods that failed have the phase Failed."),
    ),
    "image pull": (
        ("docker pull", "{0}", "The daemon fetches it, and so its configuration decides about registries."),
        ("podman pull", "{0}", ""),
        ("", "", "The kubelet pulls the images of a pod's containers before it starts them: the field imagePullPolicy."),
    ),
    "image unpack": (
        ("", "", "The closest is docker create, then docker export, which writes a container's files as a tar, without config.json."),
        ("", "", "The closest is podman create, then podman export, which writes a container's files as a tar, without config.json."),
        ("", "", _OF_THE_NODE),
    ),
    "image tag": (("docker tag", "{all}", ""), ("podman tag", "{all}", ""), ("", "", _OF_THE_NODE)),
    "image rm": (
        ("docker image rm", "{all}", ""),
        ("podman image rm", "{all}", ""),
        ("", "", "The kubelet removes images that no container uses when the disk of the node fills."),
    ),
    "image prune": (
        ("docker image prune", "", ""),
        ("podman image prune", "", ""),
        ("", "", "The kubelet removes images that no container uses when the disk of the node fills."),
    ),
    "image load": (
        ("docker load --input {0}", "", ""),
        ("podman load --input {0}", "", ""),
        ("", "", f"{_OF_THE_NODE} The closest is ctr --namespace k8s.io images import FILE, there."),
    ),
}  # fmt: skip

_LIMITS = {
    "memory": ("--memory {}", "--memory {}", "field resources.limits.memory"),
    "cpus": ("--cpus {}", "--cpus {}", "field resources.limits.cpu"),
    "pids_limit": ("--pids-limit {}", "--pids-limit {}", "none: the kubelet has one limit for all pods, podPidsLimit"),
}
_INTERACTIVE = ("--interactive", "--interactive", "--stdin")
_TERMINAL = ("--tty", "--tty", "--tty")
_FILES_OF_VARIABLES = ("--env-file {}", "--env-file {}", "none: envFrom, a ConfigMap, in the manifest")
_NONE_IN_KUBECTL = "none: kubectl exec chooses the command only"
_NO_LIMIT_OF_IMAGES = "none: what an image unpacks to is not limited"

_PUBLISH_MODE = (
    "none: the daemon's option --userland-proxy is the closest",
    "none: rootless networks have forwarders of their own",
    "none: kube-proxy leads to a pod, by nat",
)
_NO_CHANGE_OF_PORTS = (
    "none: the ports of a container are decided when it is made",
    "none: the ports of a pod are decided when it is made",
    "none: a Service is a document, and its ports are what that says",
)

#: By command and option.
OPTIONS: dict[str, dict[str, tuple[Any, Any, Any]]] = {
    "port add": {"publish_mode": _PUBLISH_MODE, "json": _NO_CHANGE_OF_PORTS},
    "port rm": {"json": _NO_CHANGE_OF_PORTS},
    "pod create": {
        "publish_mode": _PUBLISH_MODE,
        "publish": ("--publish {}", "--publish {}", "none: a Service, or the field hostPort; kubectl port-forward while it runs"),
        "network": (
            {"bridge": "--network bridge", "none": "--network none", "host": "--network host", "pasta": "none: its rootless networks are slirp4netns and the like", "bridge,ipv6=on": "none: docker network create --ipv6 says it, before", "bridge,isolated": "none: docker network create, a network for each of them", "bridge,isolated,ipv6=on": "none: docker network create, a network for each of them", "NETWORK": "--network {}", "NETWORK,isolated": "none: docker network create says it, before"},
            {"bridge": "--network bridge", "none": "--network none", "host": "--network host", "pasta": "--network pasta", "bridge,ipv6=on": "none: podman network create --ipv6 says it, before", "bridge,isolated": "none: podman network create --opt isolate=true, before", "bridge,isolated,ipv6=on": "none: podman network create --opt isolate=true, before", "NETWORK": "--network {}", "NETWORK,isolated": "none: podman network create says it, before"},
            {"bridge": "default", "none": "none: the network plugin of the cluster gives every pod an address", "host": "field spec.hostNetwork: true", "pasta": "none: the cluster has one network", "bridge,ipv6=on": "none: the cluster has IPv6, or not", "bridge,isolated": "none: a NetworkPolicy of the cluster", "bridge,isolated,ipv6=on": "none: a NetworkPolicy of the cluster", "NETWORK": "none: the cluster has one network", "NETWORK,isolated": "none: the cluster has one network"},
        ),
        "ip": ("--ip {}", "--ip {}", "none: the network plugin of the cluster chooses it"),
        "mtu": ("none: docker network create --opt com.docker.network.driver.mtu=BYTES, before", "none: podman network create --opt mtu=BYTES, before", "none: the network plugin of the cluster sets it"),
        "subnet": ("none: docker network create --subnet, before", "none: podman network create --subnet, before", "none: it is the cluster's"),
        "subnet6": ("none: docker network create --ipv6 --subnet, before", "none: podman network create --ipv6 --subnet, before", "none: it is the cluster's"),
        "hostname": ("--hostname {}", "--hostname {}", "field spec.hostname"),
        "add_host": ("--add-host {}", "--add-host {}", "field spec.hostAliases"),
        "dns": ("--dns {}", "--dns {}", "field spec.dnsConfig.nameservers"),
        "sysctl": ("--sysctl {}", "--sysctl {}", "field spec.securityContext.sysctls"),
        "shm_size": ("--shm-size {}", "--shm-size {}", "none: an emptyDir of medium Memory, mounted at /dev/shm in each container"),
        "label": ("--label {}", "--label {}", "field metadata.labels"),
        "owner": (
            "none: the daemon is root's; userns-remap in its configuration is for all containers",
            "none: run podman as that user",
            "field spec.hostUsers: false (a user namespace; an owner there is not)",
        ),
        **_LIMITS,
        "pids_limit": ("--pids-limit {}", "none: for each container, podman run --pids-limit", _LIMITS["pids_limit"][2]),
    },
    "join": {
        "rootfs": ("none: docker import makes an image of a tar of it", "--rootfs {}:O", "none: only images"),
        "image": ("argument", "argument", "--image {}"),
        "bundle": ("none: the runtime below takes bundles: runc run --bundle", "none: crun run --bundle", "none: only images"),
        "name": ("--name {}", "--name {}", "--container {}"),
        "detach": ("--detach", "--detach", "default"),
        "interactive": _INTERACTIVE,
        "terminal": _TERMINAL,
        "rm": ("--rm", "--rm", "none: it stays in the status of the pod"),
        "env": ("--env {}", "--env {}", "--env {}"),
        "env_file": _FILES_OF_VARIABLES,
        "workdir": ("--workdir {}", "--workdir {}", "field workingDir"),
        "user": ("--user {}", "--user {}", "field securityContext.runAsUser, runAsGroup"),
        "entrypoint": ("--entrypoint {}", "--entrypoint {}", "field command"),
        "volume": ("--volume {}", "--volume {}", "field volumes, volumeMounts"),
        "mount": ("--mount {}", "--mount {}", "field volumes, volumeMounts"),
        "tmpfs": ("--tmpfs {}", "--tmpfs {}", "field volumes: an emptyDir of medium Memory"),
        "device": ("--device {}", "--device {}", "none: a device plugin on the node"),
        "read_only": ("--read-only", "--read-only", "field securityContext.readOnlyRootFilesystem: true"),
        "writable": ("none: every container writes to a layer of its own", "default, without :O after --rootfs DIR", "none: every container writes to a layer of its own"),
        "net": (
            {"pod": "--network container:{0}", "own": "--network none", "none": "--network none", "host": "--network host"},
            {"pod": "default", **dict.fromkeys(("own", "none", "host"), "none: a pod's containers have the pod's network (podman pod create --share)")},
            {"pod": "default", **dict.fromkeys(("own", "none", "host"), "none: a pod's containers have the pod's network")},
        ),
        "ipc": (
            {"pod": "--ipc container:{0}", "own": "--ipc private"},
            {"pod": "default", "own": "--ipc private"},
            {"pod": "default", "own": "none: a pod's containers have one IPC namespace"},
        ),
        "pid": (
            {"pod": "--pid container:{0}", "nested": "none: only its own, another container's, or the host's", "own": "default"},
            {"pod": "default, when the pod was made with --share pid", "nested": "none: only its own, the pod's, another container's, or the host's", "own": "default"},
            {"pod": "field spec.shareProcessNamespace: true (kubectl debug --target joins one container's)", "nested": "none: only its own, or one for all of the pod", "own": "default"},
        ),
        "uts": (
            {"pod": "default", "own": "none: with another container's network comes its hostname"},
            {"pod": "default", "own": "--uts private"},
            {"pod": "default", "own": "none: the hostname is the pod's"},
        ),
        "cap_add": ("--cap-add {}", "--cap-add {}", "field securityContext.capabilities.add"),
        "cap_drop": ("--cap-drop {}", "--cap-drop {}", "field securityContext.capabilities.drop"),
        "security_opt": ("--security-opt {}", "--security-opt {}", "field securityContext: allowPrivilegeEscalation, seccompProfile, appArmorProfile"),
        "sysctl": ("--sysctl {}", "--sysctl {}", "none: the pod's only, spec.securityContext.sysctls"),
        "ulimit": ("--ulimit {}", "--ulimit {}", "none: those of the runtime"),
        "oom_score_adj": ("--oom-score-adj {}", "--oom-score-adj {}", "none: the kubelet computes it from the requests"),
        "stop_signal": ("--stop-signal {}", "--stop-signal {}", "none: that of the image"),
        "restart": ("--restart {}", "--restart {}", "field spec.restartPolicy, for all of the pod"),
        "stop_timeout": ("--stop-timeout {}", "--stop-timeout {}", "field spec.terminationGracePeriodSeconds, for all of the pod"),
        "hostname": ("--hostname {}", "--hostname {}", "none: the hostname is the pod's"),
        "label": ("--label {}", "--label {}", "none: labels are the pod's"),
        "group_add": ("--group-add {}", "--group-add {}", "field spec.securityContext.supplementalGroups, for all of the pod"),
        "init": ("--init", "--init", "none: with shareProcessNamespace, the pause container reaps"),
        "tz": ("none: --volume, or --env TZ=…", "--tz {}", "none: a hostPath, or the variable TZ"),
        "cpuset_cpus": ("--cpuset-cpus {}", "--cpuset-cpus {}", "none: the CPU manager of the kubelet chooses them"),
        "cidfile": ("--cidfile {}", "--cidfile {}", "none"),
        "health_cmd": ("--health-cmd {}", "--health-cmd {}", "field livenessProbe.exec.command, which restarts the container"),
        "health_http": ("none: --health-cmd, with a client of the image", "none: --health-cmd, with a client of the image", "field livenessProbe.httpGet"),
        "health_header": ("none: --health-cmd, with a client of the image", "none: --health-cmd, with a client of the image", "field livenessProbe.httpGet.httpHeaders"),
        "health_tcp": ("none: --health-cmd, with a client of the image", "none: --health-cmd, with a client of the image", "field livenessProbe.tcpSocket"),
        "health_interval": ("--health-interval {}", "--health-interval {}", "field livenessProbe.periodSeconds"),
        "health_timeout": ("--health-timeout {}", "--health-timeout {}", "field livenessProbe.timeoutSeconds"),
        "health_retries": ("--health-retries {}", "--health-retries {}", "field livenessProbe.failureThreshold"),
        "health_start_period": ("--health-start-period {}", "--health-start-period {}", "field startupProbe: failureThreshold times periodSeconds"),
        "health_start_interval": ("--health-start-interval {}", "none: --health-interval", "field startupProbe.periodSeconds"),
        "no_healthcheck": ("--no-healthcheck", "--no-healthcheck", "default: the image's is not used"),
        **_LIMITS,
        "status_fd": ("none: docker events", "none: podman events", "none: kubectl get pod --watch"),
    },
    "exec": {
        "interactive": _INTERACTIVE,
        "terminal": _TERMINAL,
        "env": ("--env {}", "--env {}", _NONE_IN_KUBECTL),
        "env_file": ("--env-file {}", "--env-file {}", _NONE_IN_KUBECTL),
        "workdir": ("--workdir {}", "--workdir {}", _NONE_IN_KUBECTL),
        "user": ("--user {}", "--user {}", _NONE_IN_KUBECTL),
        "detach": ("--detach", "--detach", "none: kubectl exec waits"),
    },
    "up": {
        "dry_run": ("none", "none", "none: kubectl diff"),
        "notify": ("none", "none: podman generate systemd prints units that are told", "none"),
    },
    "kube play": {
        "down": ("none: docker compose down", "none: podman kube down", "none: kubectl delete --filename"),
        "time": ("none", "none", "none: kubectl delete --grace-period"),
        "dry_run": ("none", "none", "none: kubectl diff"),
    },
    "stop": {"time": ("-t {}", "-t {}", "none")},
    "restart": {"time": ("-t {}", "-t {}", "none")},
    "pod restart": {"time": ("none: docker restart -t, for each", "none: podman restart -t, for each", "none")},
    "cp": {
        "archive": ("--archive", "--archive", "none"),
        "follow_link": ("--follow-link", "none: it follows links of the source", "none"),
    },
    "volume prune": {"all": ("--all", "default", "none")},
    "network create": {
        "subnet": ("--subnet {}", "--subnet {}", "none"),
        "subnet6": ("--ipv6 --subnet {}", "--ipv6 --subnet {}", "none"),
        "mtu": ("--opt com.docker.network.driver.mtu={}", "--opt mtu={}", "none"),
    },
    "network rm": {"force": ("--force", "none: --force removes the pods that are on it", "none")},
    "kill": {"signal": ("--signal {}", "--signal {}", "none")},
    "rm": {"force": ("--force", "--force", "none")},
    "pod stop": {"time": ("none: docker stop -t, for each", "-t {}", "--grace-period={}")},
    "pod kill": {"signal": ("--signal {}", "--signal {}", "none: TERM, and KILL when the time is over")},
    "pod rm": {"force": ("none: docker rm --force, for each", "--force", "default")},
    "pod prune": {"all": ("none: docker volume prune", "none: podman volume prune", "none: a volume claim is an object of its own")},
    "image pull": {
        "platform": ("--platform {}", "--platform {}", "none: that of the node"),
        "creds": ("none: docker login, before", "--creds {}", "field spec.imagePullSecrets"),
        "authfile": ("none: docker --config DIR", "--authfile {}", "field spec.imagePullSecrets"),
        "tls_verify": ("none: insecure-registries, in the configuration of the daemon", "--tls-verify={}", "none: the configuration of the node's runtime"),
        "max_size": (_NO_LIMIT_OF_IMAGES,) * 3,
        "max_ratio": (_NO_LIMIT_OF_IMAGES,) * 3,
    },
    "image rm": {"force": ("--force", "--force", "none")},
    "image prune": {"all": ("--all", "--all", "none")},
    "image load": {
        "tag": ("none: docker tag, afterwards", "none: podman tag, afterwards", "none"),
        "platform": ("--platform {}", "none", "none"),
        "max_size": (_NO_LIMIT_OF_IMAGES,) * 3,
        "max_ratio": (_NO_LIMIT_OF_IMAGES,) * 3,
    },
}  # fmt: skip
#: What `run` has of both: the network, the hostname and the kernel parameters are the pod's, and limits are the member's.
OPTIONS["run"] = {
    **{key: answers for key, answers in OPTIONS["pod create"].items() if key != "label"},
    **{
        key: answers
        for key, answers in OPTIONS["join"].items()
        if key not in ("image", "net", "ipc", "pid", "uts", "sysctl", "hostname")
    },
    "publish_all": ("--publish-all", "--publish-all", "none: the ports of a manifest are information"),
}

#: What is said by default, though no option was given: the namespaces that a member shares.
IMPLIED = {"join": {"net": "pod", "ipc": "pod", "pid": "pod", "uts": "pod"}}

#: What only nsrun's plan has, whatever the options are.
ONLY_HERE = {
    "pod create": "no daemon takes the steps, and none is needed afterwards: pause holds the namespaces, the ports and the firewall's table, and the kernel removes them with it",
    "join": "the root's mounts are made detached and are attached inside, so no mount of a member is ever in view on the host",
}


@dataclass(frozen=True)
class Row:
    ours: str
    theirs: str  # "" when there are no words
    note: str


@dataclass(frozen=True)
class Comparison:
    line: str  # the other tool's command line; "" when it has none
    rows: list[Row]  # each option that was given, or is meant
    notes: list[str]


def compare(
    tool: str,
    name: str,
    options: Mapping[str, Any],
    flags: Mapping[str, str],
    operands: Sequence[str],
    rest: Sequence[str],
) -> Comparison:
    """Return how `tool` says a command line: the command `name`, its options by key, their flags, its operands and its command."""
    which = TOOLS.index(tool)
    head, tail, about = COMMANDS[name][which]
    first = sh_quote(operands[0]) if operands else ("pause" if name == "pod create" else "")
    rows, words = [], []
    for key, value in {**IMPLIED.get(name, {}), **options}.items():
        for one in value if isinstance(value, list) else [value]:
            ours = flags[key] if one is True else f"{flags[key]} {sh_quote(str(one))}"
            theirs, note = _said(OPTIONS[name][key][which], one, first)
            if "writable" in options and key == "rootfs":
                theirs = theirs.removesuffix(":O")
            if key in options or theirs or note.startswith(("none", "field")):
                rows.append(Row(ours if key in options else f"{ours} (default)", theirs, note))
            if theirs and head:
                words.append(theirs)
    with_rootfs = any(word.startswith("--rootfs ") for word in words)
    image = sh_quote(str(options["image"])) if "image" in options else ("" if with_rootfs else "IMAGE")
    if name == "join" and tool == "kubectl" and "image" not in options:
        words.append("--image IMAGE")
    if first == "-":  # the standard input
        head = head.removesuffix(" --input {0}")
    command = " ".join(map(sh_quote, rest))
    values = {
        "0": first, "all": " ".join(map(sh_quote, operands)), "image": image,
        "command": f"-- {command}" if command and tool == "kubectl" else command,
    }  # fmt: skip
    line = " ".join(filter(None, (_filled(head, values), *words, _filled(tail, values)))) if head else ""
    notes = [about] if about else []
    if only := ONLY_HERE.get(name):
        notes.append(f"In nsrun only: {only}.")
    return Comparison(line, rows, notes)


def _said(entry: Any, value: Any, first: str) -> tuple[str, str]:
    """Return the arguments, or what is to be said in their place."""
    template: str = entry
    if isinstance(entry, dict):  # what follows an "=" makes no difference
        known = [text for key, text in entry.items() if key.partition("=")[0] == value.partition("=")[0]]
        template = known[0] if known else entry["NETWORK" if "," not in value else "NETWORK,isolated"]
    if template.startswith(("none", "field ", "default", "argument")):
        return "", template
    return template.replace("{0}", first).replace("{}", sh_quote(str(value))), ""


def _filled(template: str, values: Mapping[str, str]) -> str:
    """Put in the values, into one word of the template after the other: a value may have braces, too."""
    names = {f"{{{key}}}": value for key, value in values.items()}
    found = (names.get(word, word.replace("{0}", values["0"])) for word in template.split(" "))
    return " ".join(filter(None, found))
