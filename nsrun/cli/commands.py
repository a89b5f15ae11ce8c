# SPDX-License-Identifier: Apache-2.0
"""The command line as data: parsing, --help, docs/cli.md, the manual pages and completion all read this table.

argparse would cost 7 ms per command and has no place for an example; this has both.

To add a command: a row in COMMANDS, and the function that its `handler` names.  Nothing else knows a command by name.
"""

from __future__ import annotations

from nsrun.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from nsrun.state import State


def closed_set(value: str) -> list[str]:
    """Return the values of a closed set, "pod|own" or "no|on-failure[:N]|seccomp=FILE"; [] for an open one (FILE|DIR)."""
    values = value.split("|") if "|" in value else []
    return values if all(one[:1].islower() for one in values) else []


class Option:
    """One option: flags "-p, --publish"; value "" for a switch.

    `also`: values of a closed set that are accepted and not advertised.  `empty`: an empty value is meaningful, or is
    refused by the code that reads it.
    """

    __slots__ = ("also", "empty", "flags", "help", "key", "many", "value")

    def __init__(
        self, flags: str, value: str, help: str, many: bool = False, also: tuple[str, ...] = (), empty: bool = False
    ) -> None:
        self.flags = tuple(flags.split(", "))
        self.value, self.help, self.many, self.also, self.empty = value, help, many, also, empty
        self.key = self.flags[-1].lstrip("-").replace("-", "_")

    def check(self, value: str) -> None:
        """Raise UsageError for a value that is not in the option's closed set, and for an empty one.

        What follows a value of the set (N, FILE) is checked by the code that reads it: spec/options.py.
        """
        if values := closed_set(self.value):
            given = value.replace("=", ":", 1).partition(":")
            for known in [*values, *self.also]:
                head, tail, _ = known.replace("[", "", 1).replace("=", ":", 1).partition(":")
                if given[0] == head and (tail or value == head):
                    return
            raise UsageError(f"{self.flags[-1]}: unknown value {value!r}", hint=f"one of: {', '.join(values)}")
        if not value and not self.empty:
            raise UsageError(f"{self.flags[-1]} is empty", hint="is a shell variable unset?")
        if self.value.endswith("|NETWORK"):  # one of these words, or a name
            from nsrun.schema import is_name

            if not is_name(value.partition(",")[0]):
                hint = f"one of: {self.value.replace('|', ', ')}; nsrun network ls"
                raise UsageError(f"{self.flags[-1]}: unknown value {value!r}", hint=hint)


class Operand:
    """An argument that is not an option, by its place.

    `kind` says what it names: a "pod" or "member" that exists, an "end" of a copy (MEMBER:PATH or a file), a "process" (a pid, or the name of a member or pod), a "port" that is published, an
    "image" of the store, a "volume", a "network", a "lab", a "line" (a command line of nsrun itself), a "command" (the program that a member
    executes), or "" for anything else.
    """

    __slots__ = ("kind", "many", "name", "optional")

    def __init__(self, name: str, kind: str = "", many: bool = False, optional: bool = False) -> None:
        self.name, self.kind, self.many, self.optional = name, kind, many, optional

    def __str__(self) -> str:
        text = self.name + ("..." if self.many else "")
        return f"[{text}]" if self.optional else text


class Command:
    """One command.

    `handler`: the function below nsrun.cli that gets the Call, "pods.ls"; without a module it is in nsrun/cli/__init__.py.
    `rest`: what follows the operands, from the first argument that is not one of our options; it is not ours to read.
    `userns`: an ordinary user's files of this command have ids of their user namespace, so it runs in there.
    `sweeps`: remove what died since the last command afterwards.
    `plan`: the function that makes the plan which explain shows, if it can: "planning.join".
    `walk`: the class that has its plan walked through step by step, if it can: "walking.Join".
    `usage`: what follows the name, where it is not "[OPTIONS] OPERANDS REST".
    """

    __slots__ = ("about", "example", "handler", "help", "name", "operands", "options", "plan", "rest", "sweeps", "usage", "userns", "walk")  # fmt: skip

    def __init__(
        self,
        name: str,
        operands: tuple[Operand, ...],
        handler: str,
        help: str,
        example: str,
        options: tuple[Option, ...] = (),
        about: str = "",
        *,
        rest: Operand | None = None,
        userns: bool = False,
        sweeps: bool = True,
        usage: str = "",
        plan: str = "",
        walk: str = "",
    ) -> None:
        self.name, self.operands, self.handler, self.help, self.example = name, operands, handler, help, example
        self.options, self.about, self.rest, self.plan, self.walk = options, about, rest, plan, walk
        self.userns, self.sweeps, self.usage = userns, sweeps, usage or self._usage()

    def _usage(self) -> str:
        parts = ["[OPTIONS]"] if self.options else []
        return " ".join([*parts, *map(str, self.operands), *([str(self.rest)] if self.rest else [])])

    @property
    def of_members(self) -> bool:
        """Do its operands name members?  Root then acts as the owner of their pod."""
        return any(operand.kind == "member" for operand in self.operands)

    def count(self, given: list[str]) -> None:
        """Raise UsageError for too few or too many operands, and for one that is not in its closed set."""
        see = f"usage: nsrun {self.name} {self.usage}".rstrip()
        missing = [operand for operand in self.operands if not operand.optional][len(given) :]
        if missing:
            from nsrun.cli.foreign import WITHOUT_OPERANDS

            see = "; ".join(filter(None, (see, "" if given else WITHOUT_OPERANDS.get(self.name, ""))))
            raise UsageError(f"nsrun {self.name}: missing {' '.join(map(str, missing))}", hint=see)
        if len(given) > len(self.operands) and not any(operand.many for operand in self.operands):
            unexpected = " ".join(given[len(self.operands) :])
            raise UsageError(f"nsrun {self.name}: unexpected arguments: {unexpected}", hint=see)
        for operand, value in zip(self.operands, given, strict=False):
            values = closed_set(operand.name)
            if values and value not in values:
                raise UsageError(f"nsrun {self.name}: unknown {value!r}", hint=f"one of: {', '.join(values)}")


def function(name: str) -> Any:
    """Return the function that the table names; each one is given the Call."""
    module, _, attribute = f"nsrun.cli.{name}".rpartition(".")
    return getattr(__import__(module, fromlist=[attribute]), attribute)


class Call:
    """A command line that was read: what a handler gets.  `command` is None when only general options were given."""

    __slots__ = ("command", "general", "operands", "options", "rest", "state", "words")

    command: Command | None
    state: State  # set before the handler runs

    def __init__(self) -> None:
        self.command = None
        self.general: dict[str, Any] = {}
        self.options: dict[str, Any] = {}
        self.operands: list[str] = []
        self.rest: list[str] = []
        self.words: list[str] = []  # all of them, as they were typed


O = Option  # noqa: E741

GLOBAL = (
    O("--root", "DIR", "keep all state below DIR; pods of one root are not visible in another (NSRUN_ROOT; default: /run/nsrun and /var/lib/nsrun)"),
    O("--debug", "", "show a Python traceback with an error"),
    O("--trace", "", "print each step and how long it took, to stderr"),
    O("--no-replay", "", "neither replay a compiled plan nor leave one (NSRUN_REPLAY=0)"),
    O("--version", "", "print the version"),
    O("-h, --help", "", "print this help"),
)  # fmt: skip

JSON = O("--json", "", "print JSON")
SHAPES = (
    O("-q, --quiet", "", "print only the names"),
    O(
        "--format",
        "TEMPLATE",
        "print a line for each: '{{.Name}}\\t{{.Status}}', with a head: 'table {{.Name}}', or json",
    ),
)
LIMITS = (
    O("--memory", "SIZE", "limit memory (cgroup v2): 512m, 1g"),
    O("--cpus", "N", "limit the number of processors (cgroup v2): 1.5"),
    O("--pids-limit", "N", "limit the number of processes (cgroup v2)"),
)
ENV = O("-e, --env", "NAME=VALUE", "set an environment variable; NAME alone takes the caller's value", many=True)
ENV_FILE = O("--env-file", "FILE", "read lines of NAME=VALUE; a later file overrides an earlier one, and -e overrides all", many=True)  # fmt: skip
WORKDIR = O("-w, --workdir", "DIR", "working directory inside the member")
USER = O("-u, --user", "USER[:GROUP]", "run as this user and group: names from the rootfs's passwd and group files, or numbers")  # fmt: skip
INTERACTIVE = O("-i, --interactive", "", "pass standard input on")
TERMINAL = O("-t, --terminal", "", "allocate a terminal (job control, window size, Ctrl-C)")
SECONDS = O("-t, --time", "SECONDS", "how long to wait before SIGKILL (default: 10)")
SIGNAL = O("-s, --signal", "SIGNAL", "the signal to send (default: KILL)")
FORCE = O("-f, --force", "", "kill what is still running first")

LOGS = (
    O("-f, --follow", "", "continue until the members end"),
    O("--tail", "N", "print only the last N lines of each member"),
    O("--since", "TIME", "print only what was written since TIME: 2026-01-31T12:00:00Z, or 10m for ten minutes ago"),
    O("--until", "TIME", "print only what was written until TIME"),
    O("-t, --timestamps", "", "print the time of each line"),
    O("--raw", "", "do not escape control characters, even on a terminal"),
)

PLATFORM = O("--platform", "OS/ARCH[/VARIANT]", "the image to choose from an index (default: this machine's platform)")
BUDGET = (
    O("--max-size", "SIZE", "refuse an image whose files are larger (default: 32g)"),
    O("--max-ratio", "N", "refuse a layer that unpacks to more than N times its size (default: 250)"),
)

POD, PODS = Operand("POD", "pod"), Operand("POD", "pod", many=True)
MEMBER, MEMBERS = Operand("MEMBER", "member"), Operand("MEMBER", "member", many=True)
VOLUMES = Operand("VOLUME", "volume", many=True)
NETWORKS = Operand("NETWORK", "network", many=True)
REF, REFS = Operand("REF", "image"), Operand("REF", "image", many=True)
LAB, LAB_IF_ANY = Operand("LAB", "lab"), Operand("LAB", "lab", optional=True)
COMMAND = "CMD [ARG...]"
#: The commands whose options the file of `up` has.
POD_CREATE, JOIN = "pod create", "join"

PUBLISH_MODE = O(
    "--publish-mode",
    "auto|nat|forward",
    "what leads from the host to the pod; nat: the kernel, and members see who connects; forward: a process, which no firewall's FORWARD chain stops, and members see the pod's own address; auto: nat where it works",
)

#: What `pod create` has, but for limits.
OF_POD = (
    O(
        "-p, --publish",
        "[IP:][HOST]:POD[/tcp|/udp]",
        "forward a port of this host to the pod: 8080:80, 127.0.0.1:8080:80, [::]:8080:80, [::1]:8080:80, 8000-8010:8000-8010, :80 (a free port), 53:53/udp",
        many=True,
    ),
    PUBLISH_MODE,
    O(
        "--network",
        "bridge|pasta|none|host|NETWORK",
        "bridge: an address of its own on nsrun0, of IPv6 too unless this host has none, or with bridge,ipv6=off; with bridge,isolated no other pod reaches it, nor it them, but by published ports; NETWORK: the same on a network of network create, whose pods no other reaches; none: only the loopback interface; host: this host's network; pasta: what pasta(1) copies from this host's network, in place of the bridge, as always without root",
        also=("bridge,ipv6=on", "bridge,isolated", "bridge,isolated,ipv6=on", "NETWORK,isolated"),
    ),
    O("--ip", "ADDR", "the pod's address in the bridge's network"),
    O("--subnet", "ADDR/BITS", "the default bridge's network, if the bridge does not exist yet (NSRUN_SUBNET)"),
    O("--subnet6", "ADDR/64", "the default bridge's IPv6 network, if it does not have one yet (NSRUN_SUBNET6)"),
    O(
        "--mtu",
        "BYTES",
        "the largest packet of the pod's eth0 (default: the network's, or that of the interface of the default route)",
    ),
    O("--hostname", "NAME", "hostname inside the pod (default: the pod's name)"),
    O("--add-host", "HOST:IP", "add a line to /etc/hosts; host-gateway stands for this host", many=True),
    O("--dns", "ADDR", "a name server for /etc/resolv.conf", many=True),
    O("--sysctl", "KEY=VALUE", "set a kernel parameter of the pod's namespaces", many=True),
    O("--shm-size", "SIZE", "size of the pod's /dev/shm (default: 64m)"),
    O("--label", "KEY=VALUE", "attach a label, which inspect shows", many=True),
    O(
        "--owner",
        "USER",
        "the user who owns the pod: they join and stop it without sudo, and are root only inside it (default: the user who called sudo, doas or pkexec); root: no user namespace",
        empty=True,
    ),
)
OF_MEMBER = (
    O("--rootfs", "DIR", "an unpacked root filesystem; writes go to an overlay, so it stays unchanged", empty=True),
    O("--image", "REF", "an image of the store (image load, image pull), which may bring its own command", empty=True),
    O("--bundle", "DIR", "an OCI bundle: config.json and its root", empty=True),
    O("--name", "NAME", "the member's name (default: generated)", empty=True),
    O("-d, --detach", "", "run in the background, and print the name"),
    INTERACTIVE,
    TERMINAL,
    O("--rm", "", "remove the member when it exits"),
    ENV,
    ENV_FILE,
    WORKDIR,
    USER,
    O("--entrypoint", "CMD", "put CMD before the command; replaces the image's entrypoint", empty=True),
    O(
        "-v, --volume",
        "SRC:DST[:OPTIONS]",
        "mount a directory or file of this host, or a named volume, at DST; OPTIONS: ro,nosuid,noexec,subpath=PATH,…",
        many=True,
    ),
    O("--mount", "type=…", "type=bind|tmpfs|volume,source=…,target=…, and readonly, nosuid, subpath=PATH", many=True),
    O("--tmpfs", "DST[:OPTIONS]", "mount an empty tmpfs: /tmp:size=64m,mode=1777", many=True),
    O("--device", "HOST[:MEMBER]", "add a device node of this host, for example /dev/fuse", many=True),
    O("--read-only", "", "make the root filesystem read-only"),
    O("--writable", "", "write to the --rootfs directory itself, without an overlay"),
    O(
        "--net",
        "pod|own|host|none",
        "network namespace (default: pod); own, none: a new one that has only the loopback interface",
    ),
    O("--ipc", "pod|own", "IPC namespace (default: pod); own: a new one, with its own /dev/shm"),
    O(
        "--pid",
        "pod|nested|own",
        "PID namespace (default: pod); nested: a child of the pod's; own: one that outlives pause",
    ),
    O("--uts", "pod|own", "UTS namespace, which has the hostname (default: pod)"),
    O("--cap-add", "CAP", "add a capability to Docker's default fourteen, or ALL", many=True),
    O("--cap-drop", "CAP", "drop one of them, or ALL", many=True),
    O(
        "--security-opt",
        "no-new-privileges[:true]|seccomp=FILE|apparmor=PROFILE",
        "seccomp: a profile in Docker's format, or seccomp=unconfined; apparmor: a profile that is loaded",
        many=True,
    ),
    O(
        "--sysctl",
        "KEY=VALUE",
        "set a kernel parameter of a namespace of the member's own (--net own: net.*; --ipc own)",
        many=True,
    ),
    O("--ulimit", "NAME=SOFT[:HARD]", "set a resource limit: nofile=1024:2048", many=True),
    O("--oom-score-adj", "N", "prefer (to 1000) or spare (to -1000) it when the machine is out of memory"),
    O("--stop-signal", "SIGNAL", "the signal that stop sends (default: TERM)"),
    O("--stop-timeout", "SECONDS", "how long stop waits before SIGKILL, unless it is told (default: 10)"),
    O(
        "--hostname",
        "NAME",
        "hostname of a UTS namespace of the member's own (with --uts own; default: the member's name)",
        empty=True,
    ),
    O("--label", "KEY=VALUE", "attach a label, which inspect shows and ls --filter finds", many=True),
    O("--group-add", "GROUP", "add a supplementary group: a name from the rootfs's group file, or a number", many=True),
    O("--init", "", "have orphans reaped; pause does so in any case, so this needs the pod's PID namespace"),
    O("--tz", "ZONE", "the time zone at /etc/localtime: Europe/Berlin, or local for this host's"),
    O("--cpuset-cpus", "LIST", "run on these processors only (cgroup v2): 0-2,4"),
    O("--cidfile", "FILE", "write the member's id to a new file"),
    O(
        "--restart",
        "no|on-failure[:N]|always",
        "when to restart the member after it ends; delays double from 0.1 s to 1 min",
        also=("unless-stopped",),
    ),
    O(
        "--health-cmd",
        "CMD",
        "check whether the member is healthy by this command: a shell's, or a JSON list; exit status 0 is healthy",
    ),
    O(
        "--health-http",
        "URL",
        "check by a GET of http://[HOST]:PORT/PATH in the pod's network: a status from 200 to 399 is healthy; without HOST: at the pod's address",
    ),
    O("--health-header", "NAME:VALUE", "one more header of --health-http", many=True),
    O("--health-tcp", "[HOST:]PORT", "check by a connection in the pod's network"),
    O("--health-interval", "TIME", "time between two checks: 10s, 1m30s (default: 30s)"),
    O("--health-timeout", "TIME", "kill a check that takes longer, and count it as failed (default: 30s)"),
    O("--health-retries", "N", "so many failures one after the other make the member unhealthy (default: 3)"),
    O("--health-start-period", "TIME", "failures do not count until then, or until the first success (default: 0s)"),
    O("--health-start-interval", "TIME", "time between two checks in the start period (default: 5s)"),
    O("--no-healthcheck", "", "do not check, also if the image says how"),
    *LIMITS,
    O("--status-fd", "N", "write JSON lines about start, error and end to this file descriptor"),
)
#: Of `run`, a pod of one member: the network is the pod's, and limits are the member's.
OF_RUN = (
    *(option for option in OF_POD if option.key != "label"),
    *(
        option
        for option in OF_MEMBER
        if option.key not in ("image", "name", "rm", "net", "ipc", "pid", "uts", "sysctl", "hostname")
    ),
    O(
        "-P, --publish-all",
        "",
        "publish every port that the image exposes, and -p does not name, on a free port of this host",
    ),
    O("--name", "NAME", "the name of the pod and of the member (default: generated from the image's)", empty=True),
    O("--rm", "", "with -d, too, remove both when the member ends"),
)

COMMANDS = (
    Command(
        "pod create", (Operand("NAME", optional=True),), "create_pod",
        "create a pod, with pause holding its namespaces open, and print its name (default: pause)",
        "sudo nsrun pod create -p 8080:80 web",
        (*OF_POD, *LIMITS),
        "A port without an address is published on all addresses of this host, and the INPUT rules of most firewalls do not apply to it; NSRUN_PUBLISH_IP changes the default address.",
        plan="planning.pod_create", walk="walking.PodCreate",
    ),
    Command(
        "pod ls", (), "pods.ls", "list pods", "nsrun pod ls --json",
        (
            O("-a, --all", "", "include pods that have ended and were not removed"),
            O("-f, --filter", "KEY=VALUE", "only pods to which it applies: name, id, status, label, network, ctr-names; several of a key are alternatives", many=True), *SHAPES, JSON,
        ),
    ),
    Command("pod inspect", (PODS,), "pods.inspect", "print everything about pods as JSON", "nsrun pod inspect pause", (JSON,)),
    Command("pod ps", (POD,), "pods.ps", "list the processes of a pod, as the host sees them", "nsrun pod ps pause", (JSON,)),
    Command("pod logs", (POD,), "pods.logs", "print what the members of a pod wrote, ordered by time", "nsrun pod logs -f pause", LOGS),
    Command("pod stats", (PODS,), "pods.stats", "print the processor, memory and process usage of pods, and their limits", "nsrun pod stats pause", (JSON,)),
    Command(
        "pod stop", (PODS,), "pods.stop", "stop the members by their stop signals, then pause", "nsrun pod stop -t 30 pause", (SECONDS,),
        "What members wrote is removed with the pod. If pause ended in any other way it is kept until pod rm, pod prune, or the next pod of the same name.",
        plan="planning.pod_stop",
    ),
    Command(
        "pod restart", (PODS,), "pods.restart", "stop the members of pods and start them again, those that had ended, too; pause stays", "nsrun pod restart pause", (SECONDS,),
        "The pod keeps its address, its ports and its namespaces. A pod whose pause has ended can't be restarted: pod create makes it anew.",
        plan="planning.pod_restart",
    ),
    Command("pod kill", (PODS,), "pods.kill", "send a signal to pause; when pause ends, every member ends at once", "nsrun pod kill pause", (SIGNAL,), plan="planning.pod_kill"),
    Command(
        "pod rm", (PODS,), "pods.rm", "remove pods", "nsrun pod rm -f pause", (FORCE,),
        "A pod lives as long as its pause: when pause has ended, little is left to remove. With -f, a pod that does not exist is not an error.",
        plan="planning.pod_rm",
    ),
    Command(
        "pod prune", (), "pods.prune", "remove pods and members that have ended, damaged notes, and what crashes left behind", "nsrun pod prune",
        (O("-a, --all", "", "also remove data that no note mentions any more, and print whose it was and how much"),), plan="planning.pod_prune",
    ),
    Command(
        "join", (POD,), "join", "start a member in a pod, with a rootfs of its own and the pod's namespaces",
        "sudo nsrun join pause -d --name mysql --rootfs ./mariadb -e MYSQL_DATABASE=exampledb -- docker-entrypoint.sh mysqld",
        OF_MEMBER,
        "Without --rootfs, --image and --bundle the member runs on the host's own filesystem, seen from inside the pod. In the foreground, nsrun passes signals on and exits with the member's status; when the reader of the member's output has gone, its next write gets SIGPIPE, as in any pipeline.",
        rest=Operand(COMMAND, "command", optional=True), usage=f"POD [OPTIONS] [--] [{COMMAND}]", plan="planning.join", walk="walking.Join",
    ),
    Command(
        "run", (), "run.run", "create a pod with one member, and remove both when the member ends", "sudo nsrun run --rm -p 8080:80 wordpress",
        OF_RUN,
        "It is pod create and join in one: what they say applies. In the foreground both are removed when the member ends, unless it has a restart policy; with -d they stay, as with docker run -d, until pod rm, or with --rm until the member ends. A pod that others have joined meanwhile stays. With --rootfs or --bundle there is no IMAGE.",
        rest=Operand(f"IMAGE [{COMMAND}]", "command"), usage=f"[OPTIONS] [--] IMAGE [{COMMAND}]", plan="run.plans",
    ),
    Command(
        "up", (Operand("FILE"),), "up.up", "make a pod and its members as a file says, and change only what differs from it", "sudo nsrun up blog.toml",
        (
            O("-n, --dry-run", "", "print the commands that the file stands for, and do nothing"),
            O("--notify", "", "tell systemd that the pod runs, and that pause is the main process of the unit (nsrun unit)"),
        ),
        "The file is TOML, with the names of the options of pod create and join (docs/up.md), or, with .yaml at the end of its name, what kube play takes (docs/kube.md). Members start in the background, in the order of the file. A second up starts again what has ended, replaces members whose options or image have changed, and removes those that the file does not have any more.",
        plan="up.plans",
    ),
    Command(
        "down", (Operand("FILE"),), "up.down", "stop and remove a pod that up has made, its last member first", "sudo nsrun down blog.toml", (SECONDS,),
        "Volumes with a name stay.",
    ),
    Command(
        "kube play", (Operand("FILE"),), "kube.play", "make the pods of a YAML file of Kubernetes, and change only what differs from it", "sudo nsrun kube play rootfs/demo.yaml",
        (O("--down", "", "stop and remove the pods of the file"), SECONDS, O("-n, --dry-run", "", "print the commands that the file stands for, and do nothing")),
        "It is up with another language: docs/kube.md lists the fields that are done. Any other is refused, with its line and its path, before anything is done. FILE - is standard input. Volumes of claims stay, as other volumes with a name do.",
        plan="kube.plans",
    ),
    Command(
        "kube generate", (POD,), "kube.generate", "print a pod as YAML, for kube play, kubectl and podman kube play", "sudo nsrun kube generate web >web.yaml",
        about="What Kubernetes has no field for stands in annotations, which only nsrun reads, and is named by comments at the top. Members are to have an image. Environments are printed as they are, secrets in them, too.",
    ),
    Command(
        "unit", (Operand("POD|FILE"),), "units.unit", "print a systemd unit that has a pod run from boot on, or from login on", "sudo nsrun unit web.yaml >/etc/systemd/system/web.service",
        (O("--user", "", "a unit of your own, for systemctl --user; as root: of the pod's owner"),),
        "FILE is one of up or kube play. For a POD that up has not made, the unit needs a file: nsrun kube generate POD writes one.",
    ),
    Command(
        "exec", (MEMBER,), "execute", "run another command in a running member", "nsrun exec -it mysql sh",
        (O("-d, --detach", "", "run in the background; what it writes is discarded"), INTERACTIVE, TERMINAL, ENV, ENV_FILE, WORKDIR, USER), rest=Operand(COMMAND, "command"), sweeps=False, plan="planning.execute", walk="walking.Execute",
    ),
    Command(
        "ls", (), "members.ls", "list members", "nsrun ls -a",
        (
            O("-a, --all", "", "include members that have ended"),
            O("-f, --filter", "KEY=VALUE", "only members to which it applies: name, id, status, health, label, pod, ancestor, exited; several of a key are alternatives", many=True), *SHAPES, JSON,
        ),
    ),
    Command(
        "stats", (Operand("MEMBER", "member", many=True, optional=True),), "members.stats",
        "print the processor, memory and process usage of running members, and their limits", "nsrun stats mysql", (JSON,),
    ),
    Command("top", (MEMBER,), "members.top", "list the processes of a member, as the host sees them", "nsrun top mysql", (JSON,)),
    Command(
        "port", (Operand("POD|MEMBER", "process"), Operand("PORT[/PROTO]", optional=True)), "ports.ls",
        "list the published ports of a pod, or of a member's pod; of one port, only where it is published", "nsrun port mysql 80", (JSON,),
        "Members of a pod share its ports. The process that listens is shown by ss -lntp, or nsrun exec.",
    ),
    Command("port ls", (Operand("POD|MEMBER", "process"),), "ports.ls", "list the published ports of a pod", "nsrun port ls web", (JSON,)),
    Command(
        "port add", (POD, Operand("[IP:][HOST]:POD[/tcp|/udp]", many=True)), "ports.add", "publish more ports of a pod that lives", "sudo nsrun port add web 8443:443 53:53/udp",
        (PUBLISH_MODE, JSON),
        "As -p of pod create, and gone with the pod in the same way. A process of their own holds these ports, with 8 to 12 KiB, or passes them on, with 28. The user who made a pod without root adds ports from 1024 on, which are passed on.",
        plan="planning.port_add",
    ),
    Command(
        "port rm", (POD, Operand("[IP:]HOST[/tcp|/udp]", "port", many=True)), "ports.rm", "stop publishing ports of a pod that lives", "sudo nsrun port rm web 8443 53/udp", (JSON,),
        about="HOST may be a range. Connections that are there go on. Other pods can have the port at once; other programs, too, if they set SO_REUSEADDR, as servers do: the pod's own process has ports of pod create, and its socket stays.",
        plan="planning.port_rm",
    ),
    Command("inspect", (MEMBERS,), "members.inspect", "print everything about members as JSON", "nsrun inspect mysql", (JSON,)),
    Command(
        "logs", (MEMBERS,), "members.logs", "print what members wrote; for several, ordered by time and with their names", "nsrun logs -f --tail 20 mysql", LOGS,
        "On a terminal, control characters are escaped; a pipe gets every byte unchanged. Of several members whole lines are printed: with -f, a line is held back until it ends.",
    ),
    Command(
        "cp", (Operand("MEMBER:PATH|PATH|-", "end"), Operand("MEMBER:PATH|PATH|-", "end")), "files.cp",
        "copy files or directories between a member and this host, or as a tar through - (standard input or output)", "nsrun cp mysql:/etc/mysql ./config",
        (
            O("-a, --archive", "", "to this host, as an ordinary user: keep the owners, which are subordinate ids here (root always keeps them)"),
            O("-L, --follow-link", "", "copy what a link at the end of the source leads to, and not the link"),
        ),
        "A path of a member is resolved in its root, and no link leads out of it. A member that has ended is copied from and to as well, without its volumes. PATH/. is what is in a directory. Devices, sockets and extended attributes are left out; a file copied to this host loses its set-user-ID bit. For a member of a user's pod, root acts as that user, for the files of this host, too.",
        sweeps=False, plan="planning.cp",
    ),
    Command(
        "diff", (MEMBER,), "files.diff", "list what a member has added (A), changed (C) and deleted (D) in its root", "nsrun diff mysql", (JSON,),
        "It lists what is in the member's own layer: a file that was opened for writing counts as changed. Volumes are not part of it.", sweeps=False,
    ),
    Command(
        "events", (), "events.show", "print what happens to pods and members, as lines of JSON, until Ctrl-C", "nsrun events -f event=die",
        (
            O("-f, --filter", "KEY=VALUE", "only events to which it applies: type (pod, member), event (create, start, health, pause, unpause, rename, oom, die, remove), pod, member, label; several of a key are alternatives", many=True),
            O("-a, --all", "", "first tell of what there is, as if it had just come"),
        ),
        "The kernel says when to look, and no daemon is needed; so what happened before is not told, but for --all. Root is told of its own members, and an owner of theirs.", sweeps=False,
    ),
    Command(
        "wait", (MEMBERS,), "members.wait", "wait until members end, and print their exit statuses", "nsrun wait mysql",
        (O("--condition", "stopped|healthy|unhealthy", "wait for this instead, and print it (default: stopped)"),),
        "A member that ends, or has no health check, never gets healthy: that is an error.",
    ),
    Command("stop", (MEMBERS,), "members.stop", "stop members, without affecting any other", "nsrun stop -t 30 mysql", (SECONDS,), plan="planning.stop"),
    Command(
        "start", (MEMBERS,), "members.start", "start members that have ended once more, with what they wrote", "nsrun start mysql",
        about="A member starts in the background, with the options, the image and the environment that join gave it.", plan="planning.start",
    ),
    Command(
        "restart", (MEMBERS,), "members.restart", "stop members and start them again, with what they wrote", "nsrun restart -t 30 mysql", (SECONDS,),
        "A member that has ended is only started. One with --rm is refused, because its end removes it.", plan="planning.restart",
    ),
    Command("kill", (MEMBERS,), "members.kill", "send a signal to the first process of members; KILL goes to all of their processes", "nsrun kill -s HUP mysql", (SIGNAL,), plan="planning.kill"),
    Command(
        "rename", (MEMBER, Operand("NAME")), "members.rename", "give a member another name; it may run", "nsrun rename mysql mysql-old",
        about="Its cgroup keeps the former name until it ends, so root sees that in pod ls for a member of a user's pod.", plan="planning.rename",
    ),
    Command(
        "pause", (MEMBERS,), "members.pause", "freeze all processes of members until unpause", "nsrun pause mysql",
        about="The kernel freezes the member's cgroup, so nothing in it can ignore or notice that. stop, kill and rm -f end a member that is paused; exec and attach are refused.",
        plan="planning.pause",
    ),
    Command("unpause", (MEMBERS,), "members.unpause", "let members that were paused go on", "nsrun unpause mysql", plan="planning.unpause"),
    Command("rm", (MEMBERS,), "members.rm", "remove stopped members and their writable layers", "nsrun rm -f mysql", (FORCE,), plan="planning.rm"),
    Command(
        "attach", (MEMBER,), "members.attach", "connect to the input, output and terminal of a detached member; Ctrl-P Ctrl-Q detaches", "nsrun attach mysql",
        (O("--no-stdin", "", "only show output"), O("--detach-keys", "KEYS", "the keys that detach: characters and ctrl-X, with commas between them; empty: none (default: ctrl-p,ctrl-q)", empty=True), O("--close-stdin", "", "close the member's input when ours ends: echo 'SELECT 1' | nsrun attach --close-stdin …")),
        "A member outlives those who are attached to it: the end of a terminal (Ctrl-D, hang-up) only detaches, and after the end of piped input the output is still shown.",
    ),
    Command(
        "image load", (Operand("FILE|DIR|-"),), "images.load", "load images from an OCI layout directory, an archive (OCI or docker save) or stdin, and print their names",
        "sudo nsrun image load --tag mysql:8 mysql.tar", (O("-t, --tag", "NAME", "name the image, instead of using the names in the archive", many=True), PLATFORM, *BUDGET), userns=True,
        plan="planning.image_load",
    ),
    Command(
        "image pull", (Operand("REF"),), "images.pull", "fetch an image from a registry, using skopeo", "sudo nsrun image pull docker.io/library/mysql:8",
        (
            PLATFORM,
            O("--creds", "USER[:PASSWORD]", "credentials for this pull only; use 'skopeo login' to store them"),
            O("--authfile", "FILE", "where 'skopeo login' stored credentials (containers-auth.json(5))"),
            O("--tls-verify", "true|false", "false: accept any certificate, and plain HTTP"),
            *BUDGET,
        ),
        userns=True, plan="planning.image_pull",
    ),
    Command("image ls", (), "images.ls", "list images", "nsrun image ls", (JSON,)),
    Command("image inspect", (REFS,), "images.inspect", "print everything about images as JSON", "nsrun image inspect mysql:8", (JSON,)),
    Command("image history", (REF,), "images.history", "list the layers of an image and how they were made, newest first", "nsrun image history mysql:8", (JSON,)),
    Command("image unpack", (REF, Operand("DIR")), "images.unpack", "unpack an image as an OCI bundle: DIR/rootfs and DIR/config.json; only you can access DIR", "sudo nsrun image unpack mysql:8 ./mysql", userns=True, plan="planning.image_unpack"),
    Command("image tag", (REF, Operand("NAME")), "images.tag", "give an image another name", "sudo nsrun image tag mysql:8 localhost/db:tested", userns=True, plan="planning.image_tag"),
    Command(
        "image rm", (REFS,), "images.rm", "remove a name of an image, and with its last name the image", "sudo nsrun image rm mysql:8", (O("-f, --force", "", "remove all names of the image"),),
        "An image that a running member uses is not removed.", userns=True, plan="planning.image_rm",
    ),
    Command("image prune", (), "images.prune", "remove images without a name, and what crashes left behind, and print how much was freed", "sudo nsrun image prune", (O("-a, --all", "", "remove all images that no running member uses"),), userns=True, plan="planning.image_prune"),
    Command("volume ls", (), "volumes.ls", "list named volumes, and the members that use them", "nsrun volume ls", (O("-q, --quiet", "", "print only the names"), JSON)),
    Command("volume inspect", (VOLUMES,), "volumes.inspect", "print everything about volumes as JSON", "nsrun volume inspect data", (JSON,)),
    Command(
        "volume rm", (VOLUMES,), "volumes.rm", "remove volumes and what is in them", "nsrun volume rm data",
        about="A volume that a member uses is refused, also when the member has ended: nsrun rm removes the member first.", plan="planning.volume_rm",
    ),
    Command(
        "volume prune", (), "volumes.prune", "remove all volumes that no member uses", "nsrun volume prune --all",
        (O("-a, --all", "", "say that you mean volumes with names; there are no others without a member"),), plan="planning.volume_prune",
    ),
    Command(
        "network create", (Operand("NAME"),), "networks.create", "make a network: pods that are on it with --network NAME reach each other, and no pod of another", "sudo nsrun network create backend",
        (
            O("--subnet", "ADDR/BITS", "its addresses, /8 to /30 (default: the first of some /24 that nobody uses)"),
            O("--subnet6", "ADDR/64", "its IPv6 addresses (default: a ULA that follows from the machine and the subnet)"),
            O("--mtu", "BYTES", "the largest packet of its pods (default: that of the interface of the default route when a pod is made)"),
        ),
        "Only root has networks; a pod that root makes for a user can be on one. A network stays until network rm, over a reboot, too. Its bridge is made with its first pod, and goes with the last.", plan="planning.network_create",
    ),
    Command("network ls", (), "networks.ls", "list networks, the default bridge first, and the pods that are on them", "sudo nsrun network ls", (O("-q, --quiet", "", "print only the names"), JSON)),
    Command("network inspect", (NETWORKS,), "networks.inspect", "print everything about networks as JSON", "sudo nsrun network inspect backend", (JSON,)),
    Command(
        "network rm", (NETWORKS,), "networks.rm", "remove networks that no living pod is on", "sudo nsrun network rm backend",
        (O("-f, --force", "", "one that does not exist is no error, and a damaged record is removed, too"),), plan="planning.network_rm",
    ),
    Command(
        "explain", (), "teaching.explain", "print what a command would do, step by step; nothing is done",
        "nsrun explain --format shell pod create -p 8080:80",
        (
            O("--format", "text|shell|json", "text, a script that does by hand what a shell can, or JSON"),
            O("--step", "", "walk through pod create, join or exec: take each step for real, in a throwaway pod, and show what can be seen before and after it"),
            O("--compare", "docker|podman|kubectl", "name the command and the options of another tool for the same plan, and what has none there"),
        ),
        rest=Operand("COMMAND", "line", many=True), sweeps=False,
        about="With --step, Enter takes a step; a number, then Enter, goes on to that step; q, Ctrl-C and the end of the input remove everything. It knows every command that changes pods, members or images. Of run and up it shows the plans of all commands that they stand for; of up, of those that would change something now.",
    ),
    Command(
        "ns ls", (), "ns.ls", "list namespaces: who is in them, who owns them, and what holds those that no process is in", "sudo nsrun ns ls --type net",
        (O("-t, --type", "user|pid|net|ipc|uts|mnt|cgroup|time", "only namespaces of this type"), JSON), sweeps=False,
        about="CREATOR is the account that made the user namespace which owns the namespace (OWNED BY), and so has all power over it. Processes that you may not look into are counted, not hidden.",
    ),
    Command(
        "ns show", (Operand("PID|MEMBER|POD", "process"),), "ns.show", "print every namespace of a process, with the ones above it", "sudo nsrun ns show mysql", (JSON,), sweeps=False,
        about="The name of a pod stands for its pause.",
    ),
    Command(
        "ns diff", (Operand("A", "process"), Operand("B", "process")), "ns.diff", "print what two processes share and what not, what that means, and how to see it", "sudo nsrun ns diff mysql wordpress", (JSON,), sweeps=False,
        about="A and B are pids, names of members, or names of pods, which stand for their pause. Besides namespaces it compares /dev/shm and the root directory, which are not namespaces.",
    ),
    Command(
        "ns pin", (Operand("user|pid|net|ipc|uts|mnt|cgroup|time"), Operand("PID|MEMBER|POD", "process"), Operand("PATH")), "ns.pin",
        "bind-mount a namespace of a process at a new file, so that it stays when its processes have ended", "sudo nsrun ns pin net mysql /run/mysql-net", sweeps=False,
        about="nsrun itself pins nothing: a pod ends with its pause, and leaves nothing. A pinned namespace stays until ns unpin; the veth of a pinned network goes with its pod all the same.",
    ),
    Command("ns unpin", (Operand("PATH", many=True),), "ns.unpin", "remove what ns pin made, and nothing else", "sudo nsrun ns unpin /run/mysql-net", sweeps=False),
    Command(
        "map", (Operand("POD|PID", "pod", many=True, optional=True),), "maps.show", "draw pods as a map: each process is a station, each namespace a line",
        "nsrun map web",
        (
            O("--format", "text|json|dot|svg|html", "text, JSON, a graph for Graphviz, a picture, or one file for a browser (default: text)"),
            O("--watch", "", "draw it again whenever it changes; what has just ended stays for a moment, marked"),
            O("--serve", "ADDR:PORT", "show it live to browsers of this machine: a loopback address, and port 0 for any free one; the URL that is printed contains a token"),
        ),
        "Without arguments it shows all pods, and what has outlived one. A number is the pid of any process: it is shown together with those in the same namespaces, whatever engine started them.",
        sweeps=False,
    ),
    Command("doctor", (), "teaching.doctor", "check what this kernel and machine offer, what is missing, and how to get it", "nsrun doctor", (JSON,), sweeps=False),
    Command("lab ls", (), "labs.ls", "list the labs, what they need that is missing here, and how far you are", "nsrun lab ls", (JSON,), sweeps=False),
    Command(
        "lab start", (LAB,), "labs.start", "make the scene of a lab, and print its text", "nsrun lab start 1 --shell",
        (O("--shell", "", "open a shell that has the lab's variables, and whose prompt names it"),),
        "What you start in the lab's shell, or in a shell that read nsrun lab env, is known as yours: check finds it, and reset ends it.", sweeps=False,
    ),
    Command("lab env", (LAB_IF_ANY,), "labs.env", "print the variables of a lab, for: eval \"$(nsrun lab env)\"", "nsrun lab env", sweeps=False),
    Command(
        "lab check", (LAB_IF_ANY,), "labs.check", "ask the kernel whether the lab is solved (default: the lab that was started last)", "nsrun lab check", (JSON,),
        "Each row says what was wanted and what was seen, and the command that shows the same to you. The exit status is 0 when all rows are fulfilled, otherwise 1.", sweeps=False,
    ),
    Command("lab watch", (LAB_IF_ANY,), "labs.watch", "check again whenever something changes, until all rows are fulfilled", "nsrun lab watch", sweeps=False),
    Command("lab hint", (LAB_IF_ANY,), "labs.hint", "print the next of three hints: where to look, which call, the call", "nsrun lab hint", sweeps=False),
    Command("lab solution", (LAB_IF_ANY,), "labs.solution", "print the solutions of a lab, as scripts that run", "nsrun lab solution", sweeps=False),
    Command(
        "lab reset", (LAB_IF_ANY,), "labs.reset", "end a lab: remove its scene, and what was provably started for it", "nsrun lab reset",
        about="What only shares a namespace with the lab is left as it is, and reported.", sweeps=False,
    ),
    Command(
        "lab class", (Operand("create|report|rm"),), "classroom.run", "as root, prepare a class, see what its students have solved, and remove it again",
        "sudo nsrun lab class create --count 30",
        (
            O("--users", "USER,...", "create: the students are these accounts"),
            O("--count", "N", "create: make accounts student01, student02, …; rm removes them"),
            O("--pids-limit", "N", "create: how many processes each student may have (default: 512)"),
            O("--memory", "SIZE", "create: how much memory the pod of each student may use (cgroup v2)"),
            O("--cpus", "N", "create: how many processors' worth of time the pod of each student gets (cgroup v2)"),
            O("--network", "MODE", "create: the network of the pods, as pod create has it (default: bridge)"),
            O("--watch", "", "report: look again every two seconds, and record what is passed, until Ctrl-C"),
            JSON, O("--csv", "", "report: print comma-separated values"),
        ),
        "A lab is passed when root has seen it solved: report asks the kernel, and believes no file of a student. Each student has a seed that root has drawn, a pod class-USER, and subordinate ids.", sweeps=False,
    ),
    Command("lab report", (), "labs.report", "print which labs you have started and passed, and with how much help", "nsrun lab report --csv", (JSON, O("--csv", "", "print comma-separated values")), sweeps=False),
    Command("completion", (Operand("bash|zsh|fish"),), "completion.script", "print a completion script for a shell", "nsrun completion bash >/etc/bash_completion.d/nsrun", sweeps=False),
    Command("help", (), "help.command", "print help about a command", "nsrun help pod create", rest=Operand("COMMAND", "line", many=True, optional=True), sweeps=False),
)  # fmt: skip

#: Commands that only nsrun itself and shells call: no help, no manual, no completion.
INTERNAL = (
    Command("_complete", (), "completion.complete", "", "", rest=Operand("ARGUMENT", many=True), sweeps=False),
    Command(
        "_ended", (Operand("NAME"), Operand("STATUS")), "internal.ended", "", "",
        (O("--lead", "FD", ""), O("--held", "FD,FD", "")), sweeps=False,
    ),
    Command("_left", (Operand("WHY"), Operand("WHAT")), "internal.left", "", "", sweeps=False),
    Command("_walk", (), "walking.inside", "", "", rest=Operand("ARGUMENT", many=True), sweeps=False),
    Command("_remove", (Operand("PATH", many=True, optional=True),), "internal.remove", "", "", userns=True, sweeps=False),
    Command("_whole", (Operand("LAYER"),), "internal.whole", "", "", userns=True, sweeps=False),
)  # fmt: skip

BY_NAME = {command.name: command for command in COMMANDS}
GROUPS = sorted({command.name.split()[0] for command in COMMANDS if " " in command.name})


# ---- reading a command line: Docker's manners, `-it`, `-p80:80`, `--env=X`, options up to the member's command -----------------


def _take(left: list[str], options: tuple[Option, ...], into: dict[str, Any], name: str) -> bool:
    """Read one option, or a cluster of switches, off the front of `left`; return False when the front is not an option."""
    first = left[0]
    if not first.startswith("-") or first == "-":
        return False
    left.pop(0)
    see = f"see 'nsrun {name} --help'" if name else "see 'nsrun --help'"
    known = {flag: option for option in options for flag in option.flags}
    if first.startswith("--"):
        flag, equals, value = first.partition("=")
        option = known.get(flag)
        if option is None:
            hint = _instead(name, flag) or _meant(flag, known) or see
            raise UsageError(f"unknown option {flag}", hint=hint)
        if not option.value:
            if equals:
                raise UsageError(f"{flag} takes no value", hint=f"{flag} by itself, or nothing; {see}")
            into[option.key] = True
        else:
            _store(option, value if equals else _value(left, flag, see), into)
        return True
    for at in range(1, len(first)):
        flag = f"-{first[at]}"
        option = known.get(flag)
        if option is None and flag == "-=" and at > 1:
            raise UsageError(f"{first[:at]} takes no value", hint=f"{first[:at]} by itself, or nothing; {see}")
        if option is None:
            raise UsageError(f"unknown option {flag}", hint=_instead(name, flag) or see)
        if option.value:
            rest = first[at + 1 :]
            _store(option, rest.removeprefix("=") if rest else _value(left, flag, see), into)
            break
        into[option.key] = True
    return True


def _instead(command: str, flag: str) -> str:
    from nsrun.cli.foreign import instead_of_option

    return instead_of_option(command, flag, BY_NAME)


def _value(left: list[str], flag: str, see: str) -> str:
    if not left:
        raise UsageError(f"{flag} needs a value", hint=see)
    return left.pop(0)


def _store(option: Option, value: str, into: dict[str, Any]) -> None:
    if "\0" in value:
        raise UsageError(f"{option.flags[-1]} contains a NUL byte")
    option.check(value)
    if option.many:
        into.setdefault(option.key, []).append(value)
    else:
        into[option.key] = value


def parse(arguments: list[str]) -> Call:
    """Read a command line.  UsageError: it is not one of ours, and the hint says what was meant, or what there is."""
    left = list(arguments)
    call = Call()
    call.words = arguments
    while left and _take(left, GLOBAL, call.general, ""):
        pass
    if not left:
        return call
    name = left.pop(0)
    if name in GROUPS and not (name in BY_NAME and f"{name} {(left or ['-'])[0]}" not in BY_NAME):
        if not left or left[0].startswith("-"):
            if left[:1] in (["-h"], ["--help"]):
                call.general["help"] = name
                return call
            known = " ".join(command.split()[1] for command in BY_NAME if command.startswith(f"{name} "))
            raise UsageError(f"nsrun {name} needs a subcommand", hint=known)
        name = f"{name} {left.pop(0)}"
    command = BY_NAME.get(name) or next((internal for internal in INTERNAL if internal.name == name), None)
    if command is None:
        raise _unknown(name, left)
    call.command = command
    if command.rest and not command.rest.kind:
        call.rest = left  # whatever they are
        return call
    while left:
        if left[0] == "--":
            left.pop(0)
            missing = len(command.operands) - len(call.operands) if command.rest else len(left)
            call.operands.extend(left[:missing])
            call.rest.extend(left[missing:])
            break
        if left[0] in ("-h", "--help"):
            call.general["help"] = name
            return call
        if _take(left, command.options, call.options, name):
            continue
        if command.rest and len(call.operands) == len(command.operands):
            call.rest.extend(left)
            break
        call.operands.append(left.pop(0))
    command.count(call.operands)
    return call


def _unknown(name: str, left: list[str]) -> UsageError:
    from nsrun.cli.foreign import instead_of_command

    hint = instead_of_command(name, left, BY_NAME) or _meant(name, BY_NAME)
    return UsageError(f"nsrun has no command {name!r}", hint=hint or "see 'nsrun --help'")


def _meant(word: str, among: Iterable[str]) -> str:
    """Return a hint at the words of which this one is the beginning or a part, or else at those that are spelled alike."""
    import difflib

    near = [one for one in among if one.startswith(word) or word in one.split()]
    near = near or difflib.get_close_matches(word, among, n=3, cutoff=0.75)
    return f"did you mean {' or '.join(near)}?" if near else ""


def checked(name: str, options: dict[str, Any], without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the options of a program's call as those of the command `name`, checked by the same table.

    A switch is a bool, a repeatable option a list or tuple, any other value a str, a path or a number; None means not given.

    TypeError: the command has no such option, or its value is of another type.  UsageError: as for the command line.
    """
    known = {option.key: option for option in BY_NAME[name].options if option.key not in without}
    found: dict[str, Any] = {}
    for key, value in options.items():
        option = known.get(key)
        if option is None:
            raise TypeError(f"{name} has no option {key!r}; it has {', '.join(sorted(known))}")
        if value is None:
            continue
        if not option.value:
            if not isinstance(value, bool):
                raise TypeError(f"{key}={value!r}: expected a bool")
            if value:
                found[key] = True
        elif not option.many:
            _store(option, _text(key, value), found)
        elif isinstance(value, (list, tuple)):
            for one in value:
                _store(option, _text(key, one), found)
        else:
            raise TypeError(f"{key}={value!r}: expected a list")
    return found


def arguments(options: dict[str, Any]) -> list[str]:
    """Return options of a program's call as arguments of the command line."""
    found: list[str] = []
    for key, value in options.items():
        flag = f"--{key.replace('_', '-')}"
        if isinstance(value, bool):
            found += [flag] if value else []
        elif value is not None:
            found += [f"{flag}={v}" for v in (value if isinstance(value, (list, tuple)) else [value])]
    return found


def _text(key: str, value: Any) -> str:
    from os import fspath

    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    text = value if isinstance(value, str) else fspath(value) if hasattr(value, "__fspath__") else None
    if not isinstance(text, str):
        raise TypeError(f"{key}={value!r}: expected a string, a path or a number")
    return text
