# SPDX-License-Identifier: Apache-2.0
"""Commands and options of docker and podman that nsrun lacks, and what to use instead.  Read only when one was given."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from typing import Any

_RUN = "nsrun pod create NAME makes a pod, nsrun join NAME --image REF -- COMMAND starts a member in it"
_LIMITS = "use --memory, --cpus and --pids-limit of pod create and join; nsrun stats shows them"
_POD = "an option of the pod: nsrun pod create {}"
_MEMBER = "an option of each member: nsrun join {}"
_BLOCK = "limits of block devices are not set; io.max and io.weight of the member's cgroup are yours to write"
_SWARM = "it is for a swarm, and nsrun is about one machine"
_NO_V1 = "cgroup v2 does not have it"
_WINDOWS = "it is for Windows"
_NAMES = "not needed: the names are printed where there are several members"
_COLOUR = "not needed: on a terminal names have colours, unless NO_COLOR is set"
_PODS = "give their names: nsrun pod ls"
_HEALTH = "nsrun join --health-cmd; nsrun inspect shows the last checks, and nsrun wait --condition healthy waits"
_NO_IMAGE = "an unpacked root filesystem needs no image: nsrun join POD --rootfs DIR"
_BUILD = "build images with another tool (buildah, docker build), then nsrun image load"
_ROOT = "a member's files are below /proc/PID/root, with PID from nsrun ls"
_TAGS = "skopeo list-tags, or the registry's own page"
_CHOICE = "each member chooses: nsrun join --net, --ipc, --pid, --uts"
_LIST = "nsrun {} --json | jq -r '.[].{}'"
_ENDED = "nsrun pod prune removes everything that has ended"
_NO_QUESTION = "not needed: it does not ask"
_JQ = "--json, and filter with jq"

#: By the command's name, without "container".
COMMANDS = {
    "create": _RUN,
    "prune": _ENDED,
    "ps": "nsrun ls lists members (-a: including those that have ended), nsrun pod ps POD lists their processes",
    "container": "for members: nsrun ls, inspect, logs, stop, rm …",
    "pod top": "nsrun pod ps POD",
    "commit": _BUILD,
    "export": "nsrun cp MEMBER:/ - >FILE",
    "images": "nsrun image ls",
    "rmi": "nsrun image rm",
    "pull": "nsrun image pull",
    "load": "nsrun image load",
    "tag": "nsrun image tag",
    "history": "nsrun image history",
    "build": _BUILD,
    "builder": _BUILD,
    "buildx": _BUILD,
    "checkpoint": "criu(8) does not know members of a pod",
    "context": "there is no daemon to choose",
    "manifest": "skopeo inspect --raw; nsrun image pull --platform chooses from an index",
    "plugin": "there are no plugins",
    "trust": "images are known by their digests",
    "config": _SWARM,
    "node": _SWARM,
    "service": _SWARM,
    "stack": _SWARM,
    "swarm": _SWARM,
    "push": "skopeo copy",
    "save": "skopeo copy",
    "image save": "skopeo copy",
    "image push": "skopeo copy",
    "image build": _BUILD,
    "image import": _NO_IMAGE,
    "import": _NO_IMAGE,
    "login": "skopeo login; or --creds of nsrun image pull",
    "logout": "skopeo logout",
    "search": _TAGS,
    "pod pause": "nsrun pause MEMBER...",
    "pod unpause": "nsrun unpause MEMBER...",
    "pod start": "a pod that has ended is created again: nsrun pod create, then nsrun join for its members; nsrun start MEMBER in one that lives",
    "pod clone": "nsrun pod inspect POD shows what to give to nsrun pod create",
    "pod exists": "nsrun pod inspect POD",
    "pod list": "nsrun pod ls",
    "pod exec": "nsrun exec MEMBER",
    "pod attach": "nsrun attach MEMBER",
    "pod wait": "nsrun wait MEMBER",
    "image list": "nsrun image ls",
    "image remove": "nsrun image rm",
    "image search": _TAGS,
    "image exists": "nsrun image inspect REF",
    "exists": "nsrun inspect MEMBER",
    "secret": "nsrun join -v, with a file that only its user may read",
    "auto-update": "nsrun image pull, then nsrun up FILE, which replaces the members of an image that has changed",
    "update": "limits are set by pod create and join",
    "network connect": "a pod has one network, which nsrun pod create --network NETWORK chooses",
    "network disconnect": "a pod has one network, which nsrun pod create --network NETWORK chooses",
    "network exists": "nsrun network inspect NETWORK",
    "network prune": "nsrun network rm NETWORK removes one that no pod is on; an idle one costs nothing but its addresses",
    "network reload": "not needed: the kernel has a pod's rules as long as the pod lives",
    "network update": "a pod's name servers: nsrun pod create --dns",
    "volume create": "-v NAME:DIR of nsrun join creates a named volume, or uses the one that exists",
    "volume exists": "nsrun volume inspect NAME",
    "system": "nsrun doctor, nsrun pod prune, nsrun image prune",
    "version": "nsrun --version",
    "info": "nsrun doctor",
    "compose": "nsrun up FILE: a pod and its members from one file, which docs/up.md shows",
    "play": "nsrun kube play FILE",
    "kube down": "nsrun kube play --down FILE",
    "kube apply": "nsrun kube play FILE",
    "generate": "nsrun kube generate POD, or nsrun unit POD",
    "init": "nsrun join starts a member at once",
    "mount": _ROOT,
    "unshare": "unshare --map-auto --map-root-user",
    "list": "nsrun ls",
    "delete": "nsrun rm",
    "state": "nsrun inspect",
    "health": _HEALTH,
    "healthcheck": _HEALTH,
}

#: Of a pod and of a member.
_BOTH = {
    "--memory-swap, --memory-reservation, --cpu-shares, -c, --oom-kill-disable": _LIMITS,
    "--blkio-weight, --blkio-weight-device": _BLOCK,
    "--device-read-bps, --device-read-iops, --device-write-bps, --device-write-iops": _BLOCK,
    "--cpuset-mems": "numactl(8) before the command chooses memory nodes",
    "--cgroup-parent": "NSRUN_CGROUP names the cgroup of pods",
    "--ip6": "it follows from nsrun pod create --ip, and --subnet6 of the network",
    "--mac-address": "the pod's address and MAC are chosen by nsrun pod create --ip",
    "--network-alias": "pods of a network of nsrun network create reach each other by their names; nsrun pod create --add-host",
    "--label-file": "--label, once for each line",
}

#: By the command, and by the flags that have this hint.  What join and pod create have of each other needs no line.
OPTIONS = {
    "join": {
        **_BOTH,
        "-P, --publish-all": "nsrun run -P, which makes a pod for the image; " + _POD.format("-p, with each port"),
        "--expose": "not needed: members of a pod reach all of its ports; -p of nsrun pod create publishes one",
        "--network": "--net pod|own|host|none; the pod's own network is chosen by nsrun pod create --network",
        "--dns-search": "names are resolved as the pod's /etc/resolv.conf says",
        "-l": "--label",
        "-h": "--hostname, with --uts own",
        "--annotation": "--label",
        "--pod": "the pod is the first argument: nsrun join POD …",
        "--link": "not needed: members of a pod reach each other on localhost",
        "--privileged": "--cap-add ALL --security-opt seccomp=unconfined, and what else is needed: --device, --net host",
        "--userns, --user-ns": "a pod created with --owner USER (or by sudo) has a user namespace of its own",
        "--cgroupns": "a member always has a cgroup namespace of its own",
        "--gpus": "--device /dev/…, and -v for the driver's libraries",
        "--volumes-from": "-v with the same directory, or the same NAME, for both",
        "--log-driver, --log-opt": "output is logged, and nsrun logs shows it; in the foreground, redirect it",
        "--pidfile": "nsrun inspect shows the pid",
        "-m": "--memory",
        "--cpu-rt-period, --cpu-rt-runtime, --memory-swappiness": _NO_V1,
        "--kernel-memory": "the kernel has no such limit any more",
        "--cpu-count, --cpu-percent, --io-maxbandwidth, --io-maxiops": _WINDOWS,
        "--device-cgroup-rule": "the mode of a device node decides; there is no device cgroup",
        "--disable-content-trust": "images are known by their digests, and are not signed here",
        "--link-local-ip": "the pod has one address, which nsrun pod create --ip chooses",
        "--use-api-socket": "there is no daemon, and so no socket of one",
        "--volume-driver": "a volume is a directory: mount what you like there, and name it with -v",
        "--cpu-quota, --cpu-period": "--cpus",
        "--sig-proxy": "signals are always passed on in the foreground",
        "--detach-keys": "Ctrl-P Ctrl-Q detaches from nsrun attach",
        "-a, --attach": "in the foreground all output is shown, and -i passes input on",
        "--pull": "nsrun image pull, before",
        "--platform, --arch": "nsrun image pull --platform",
        "-q, --quiet": "not needed: nothing is printed but the name of a detached member",
        "--domainname": _POD.format("--sysctl kernel.domainname=NAME"),
        "--storage-opt": "a layer has the limits of the file system that it is on",
        "--dns-option, --dns-opt": "names are resolved as the pod's /etc/resolv.conf says",
        "--replace": "nsrun rm -f NAME, before",
        "--runtime": "nsrun is the runtime",
        "--isolation": "--net, --ipc, --pid, --uts choose namespaces",
        "--read-only-tmpfs": "--tmpfs /tmp --tmpfs /run",
        "--systemd": "not supported: an init from the image needs a writable cgroup",
        "--timeout": "timeout(1) before the command",
        "--tty": "-t, --terminal",
    },
    "run": {  # what it has not is hinted at as for join, but for
        "--net": "--network",
        "--pid, --ipc, --uts": "a pod has them of its own; nsrun pod create, then nsrun join --pid, --ipc, --uts",
        "--image": "the image is the first argument: nsrun run IMAGE",
        "--pod": "nsrun join POD starts a member in a pod that exists",
        "-h": "--hostname",
        "--pull": "nsrun image pull, before",
    },
    "pod create": {
        **_BOTH,
        "--gpus": _MEMBER.format("--device /dev/…, and -v for the driver's libraries"),
        "--volumes-from": _MEMBER.format("-v with the same directory, or the same NAME, for all"),
        "--uidmap, --gidmap, --subuidname, --subgidname": "--owner USER: the maps are those of /etc/subuid and /etc/subgid",
        "--hosts-file, --no-hosts": "a file of your own over /etc/hosts: nsrun join -v",
        "--no-hostname": "a file of your own over /etc/hostname: nsrun join -v",
        "--pod-id-file": "nsrun pod inspect POD shows the id",
        "--share-parent": "members are always in the cgroup of their pod",
        "--shm-size-systemd": "nsrun join --tmpfs /run:size=…",
        "-n, --name": "the name is an argument: nsrun pod create NAME",
        "--net": "--network",
        "--infra, --infra-command, --infra-name, --infra-conmon-pidfile": "pause is in every pod, and has the pod's name",
        "--infra-image": "pause needs no image",
        "--share, --pid, --ipc, --uts": _CHOICE,
        "--userns": "--owner USER gives the pod a user namespace",
        "--exit-policy": "a pod lives until it is stopped or killed",
        "--replace": "nsrun pod rm -f NAME, before",
        "-m": "--memory",
        "-P, --publish-all": "a pod has no image whose ports these could be: nsrun run -P IMAGE, or -p :80 with each port",
        "-l": "--label",
        "--dns-search, --dns-option, --dns-opt": "names are resolved as the host's /etc/resolv.conf says; mount another file over it with nsrun join -v",
    },
    "explain": {"--shell": "--format shell", "--json": "--format json"},
    "up": {
        "-d, --detach": "not needed: members start in the background",
        "-f, --file": "the file is the argument: nsrun up FILE",
        "--build": _BUILD,
        "--force-recreate": "nsrun down FILE, then nsrun up FILE",
        "--remove-orphans": "not needed: what the file does not have any more is removed",
    },
    "down": {
        "-f, --file": "the file is the argument: nsrun down FILE",
        "-v, --volumes": "nsrun volume rm NAME removes a volume",
        "--timeout": "-t, --time",
        "--remove-orphans": "not needed: all members of the pod end with it",
    },
    "pod ls": {"--no-trunc": "not needed: nothing is cut", "--ctr-names": "not needed: members are listed"},
    "pod inspect": {"-f, --format": "nsrun pod inspect POD | jq"},
    "pod ps": {
        "-f, --filter, --format, -q, --quiet, --sort, --noheading, --no-trunc, --ns, --ctr-ids, --ctr-names, --ctr-status": "nsrun pod ls lists pods; nsrun pod ps POD lists the processes of one",
    },
    "pod logs": {"--names": _NAMES, "--color": _COLOUR, "-c, --container": "nsrun logs MEMBER..."},
    "pod stats": {
        "-a, --all": _PODS,
        "--format": "--json",
        "--no-stream, --no-reset": "nsrun pod stats prints once; watch(1) repeats it",
    },
    "pod stop": {
        "-a, --all": _PODS,
        "-i, --ignore": "a pod that does not exist is an error; nsrun pod rm -f minds none",
    },
    "pod restart": {"-a, --all": _PODS},
    "pod kill": {"-a, --all": _PODS},
    "pod rm": {
        "-a, --all": f"{_ENDED}; give the names of others",
        "-t, --time": "nsrun pod stop -t SECONDS POD, before",
        "-i, --ignore": "-f, --force",
    },
    "pod prune": {"-f, --force": _NO_QUESTION},
    "exec": {
        "--privileged": "a command has no more capabilities than its member",
        "--tty": "-t, --terminal",
        "--detach-keys": "nsrun attach has them; a command of nsrun exec ends with its terminal",
    },
    "cp": {"-q, --quiet": "not needed: no progress is shown"},
    "top": {
        "-e, -a, -f, -o, -x, -u, -A, -l": "the columns are always the same; nsrun exec MEMBER ps has what the member's own ps prints"
    },
    "diff": {"--format": "--json"},
    "events": {
        "--since, --until": "what happened before is not kept; --all tells of what there is, and nsrun inspect of its times",
        "--format": "not needed: each line is JSON, for jq",
        "--stream, --no-trunc": "not needed: events are told as they come, and nothing is cut",
    },
    "start": {
        "-a, --attach, -i, --interactive": "nsrun start MEMBER, then nsrun attach MEMBER",
    },
    "restart": {
        "-s, --signal": "--stop-signal of nsrun join; nsrun kill -s SIGNAL MEMBER, then nsrun start MEMBER",
        "--timeout": "-t, --time",
        "-a, --all": "nsrun restart $(nsrun ls -q)",
    },
    "volume ls": {"-f, --filter": _JQ, "--format": "--json"},
    "volume inspect": {"-f, --format": "nsrun volume inspect VOLUME | jq"},
    "volume rm": {"-f, --force": "a volume that a member uses is not removed: nsrun rm MEMBER, before"},
    "volume prune": {"-f, --force": _NO_QUESTION},
    "network ls": {"-f, --filter": _JQ, "--format": "--json", "--no-trunc": "not needed: nothing is cut"},
    "network inspect": {"-f, --format": "nsrun network inspect NETWORK | jq"},
    "network create": {
        "-d, --driver": "not needed: a network is a bridge",
        "--internal": "--network none for each pod, if its members are enough for it; a network leads outside",
        "--gateway, --ip-range": "the first address of --subnet is the gateway, and pods have the others",
        "--ipv6": "not needed: networks have IPv6, too; --subnet6 chooses",
        "--label, -o, --opt": "a network has a name, its addresses and --mtu",
    },
    "port": {"--format": "--json"},
    "ls": {
        "--no-trunc": "not needed: nothing is cut",
        "-n, --last, -l, --latest": "--json has the times, and jq sorts by them",
        "-s, --size": "nsrun stats MEMBER shows memory; nsrun diff MEMBER what was written",
    },
    "logs": {
        "-n": "--tail",
        "--details": "nsrun inspect MEMBER",
        "--names": _NAMES,
        "--color": _COLOUR,
    },
    "inspect": {
        "-f, --format": "nsrun inspect MEMBER | jq",
        "--type": "nsrun image inspect, volume inspect, network inspect, pod inspect",
    },
    "stats": {
        "--no-stream": "nsrun stats prints once; watch nsrun stats repeats it",
        "-a, --all": "only running members use anything",
        "--format": "--json",
    },
    "stop": {
        "-a, --all": "nsrun stop $(nsrun ls -q)",
        "--timeout": "-t, --time",
        "-s, --signal": "nsrun kill -s SIGNAL MEMBER; or --stop-signal of nsrun join",
    },
    "kill": {
        "-9": "-s 9",
        "-HUP, -H": "-s HUP",
        "-K": "-s KILL",
        "-T": "-s TERM",
        "-I": "-s INT",
        "-Q": "-s QUIT",
        "-U": "-s USR1",
        "-a, --all": "give their names: nsrun ls",
    },
    "rm": {
        "-v, --volumes": "not needed: volumes without a name are removed with their member",
        "-a, --all": f"{_ENDED}; nsrun rm -f $(nsrun ls -a -q) removes all",
        "-t, --time": "nsrun stop -t SECONDS, then nsrun rm",
    },
    "attach": {
        "--sig-proxy": "nsrun kill sends signals; Ctrl-P Ctrl-Q detaches",
    },
    "image ls": {
        "-q, --quiet": _LIST.format("image ls", "id"),
        "-a, --all": "not needed: all images are listed",
        "--format": "--json",
        "-f, --filter": _JQ,
    },
    "image inspect": {"-f, --format": "nsrun image inspect REF | jq"},
    "image load": {"-i, --input": "the file is an argument: nsrun image load FILE"},
    "image pull": {"-q, --quiet": "not needed: progress is shown on a terminal only"},
    "image prune": {"-f, --force": _NO_QUESTION},
}


#: By the command: what is meant, perhaps, when it is given no operands.
WITHOUT_OPERANDS = {"pod ps": "nsrun pod ls lists pods"}


def instead_of_command(name: str, more: list[str], ours: Collection[str]) -> str:
    """Return what to use instead of a command, whose name may go on in `more`; "" if it is not one of theirs.

    `ours`: the names of our commands.
    """
    if name == "container" and more:
        if more[0] in ours:
            return f"nsrun {more[0]}"
        name = more[0] if more[0] in COMMANDS else name
    return COMMANDS.get(name, "")


def instead_of_option(command: str, flag: str, ours: Mapping[str, Any]) -> str:
    """Return what to use instead of an option; "" if it is not one of theirs.

    `ours`: our commands, by their names.
    """
    known = {**OPTIONS["join"], **OPTIONS["run"]} if command == "run" else OPTIONS.get(command, {})
    for flags, hint in known.items():
        if flag in flags.split(", "):
            return hint
    for one, other, where in (("join", "pod create", _POD), ("pod create", "join", _MEMBER)):
        if command == one and any(flag in option.flags for option in ours[other].options):
            return where.format(flag)
    of_pods, of_members = command.startswith("pod "), command in ours and ours[command].of_members
    if flag in ("-l", "--latest", "--pod-id-file") and (of_pods or of_members):
        return f"names are given: nsrun {'pod ls' if of_pods else 'ls'}"
    return ""
