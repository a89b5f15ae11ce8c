# SPDX-License-Identifier: Apache-2.0
"""The command line as data: parsing, --help, docs/cli.md and completion all read this table.

argparse would cost 7 ms per command and has no place for an example; this has both.
"""

from __future__ import annotations

from nsrun.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def words_of(value: str) -> list[str]:
    """Return the words of a closed set, "pod|own" or "no|on-failure[:N]|seccomp=FILE"; [] where anything may stand (FILE|DIR)."""
    words = value.split("|") if "|" in value else []
    return words if all(word[:1].islower() for word in words) else []


class Option:
    """One option: flags "-p, --publish"; value "" for a switch.

    `also`: words of a closed set that are understood and not advertised.  `empty`: an empty value means something, or
    is refused by who reads it.
    """

    __slots__ = ("also", "empty", "flags", "help", "key", "many", "value")

    def __init__(
        self, flags: str, value: str, help: str, many: bool = False, also: tuple[str, ...] = (), empty: bool = False
    ) -> None:
        self.flags = tuple(flags.split(", "))
        self.value, self.help, self.many, self.also, self.empty = value, help, many, also, empty
        self.key = self.flags[-1].lstrip("-").replace("-", "_")

    def check(self, value: str) -> None:
        """Raise UsageError for a word that is not of the option's closed set, and for an empty one.

        What follows a word (N, FILE) is looked at by who reads it: spec/options.py.
        """
        if words := words_of(self.value):
            word = value.replace("=", ":", 1).partition(":")
            for known in [*words, *self.also]:
                head, tail, _ = known.replace("[", "", 1).replace("=", ":", 1).partition(":")
                if word[0] == head and (tail or value == head):
                    return
            raise UsageError(f"{self.flags[-1]} {value!r} is not known", hint=f"one of: {', '.join(words)}")
        if not value and not self.empty:
            raise UsageError(f"{self.flags[-1]} is an empty word", hint="an unset variable?")


class Command:
    """`rest`: what comes after the operands is the member's command, not ours to read."""

    __slots__ = ("about", "example", "help", "name", "operands", "options", "rest")

    def __init__(
        self,
        name: str,
        operands: str,
        help: str,
        example: str,
        options: tuple[Option, ...] = (),
        about: str = "",
        rest: bool = False,
    ) -> None:
        self.name, self.operands, self.help, self.example = name, operands, help, example
        self.options, self.about, self.rest = options, about, rest


O = Option  # noqa: E741

GLOBAL = (
    O(
        "--root",
        "DIR",
        "keep all state below DIR; two roots never see each other's pods (NSRUN_ROOT; default /run/nsrun and /var/lib/nsrun)",
    ),
    O("--debug", "", "show Python's traceback with an error"),
    O("--trace", "", "print every step with the time it took, to stderr"),
    O("--version", "", "print the version"),
    O("-h, --help", "", "print this help"),
)

JSON = O("--json", "", "print JSON")
LIMITS = (
    O("--memory", "SIZE", "memory limit, cgroup v2: 512m, 1g"),
    O("--cpus", "N", "processors, cgroup v2: 1.5"),
    O("--pids-limit", "N", "how many processes, cgroup v2"),
)
ENV = O("-e, --env", "NAME=VALUE", "an environment variable; NAME alone takes the caller's value", many=True)
ENV_FILE = O("--env-file", "FILE", "lines of NAME=VALUE; a later file wins, and -e over all", many=True)
WORKDIR = O("-w, --workdir", "DIR", "working directory inside")
USER = O("-u, --user", "USER[:GROUP]", "names of the rootfs's own passwd and group, or numbers")
INTERACTIVE = O("-i, --interactive", "", "pass standard input on")
TERMINAL = O("-t, --terminal", "", "a terminal of its own (job control, size, Ctrl-C)")
SECONDS = O("-t, --time", "SECONDS", "how long to wait before SIGKILL (10)")
SIGNAL = O("-s, --signal", "SIGNAL", "the signal (KILL)")
FORCE = O("-f, --force", "", "end what runs")

LOGS = (
    O("-f, --follow", "", "go on until the end of the members"),
    O("--tail", "N", "only the last N lines of each"),
    O("--since", "TIME", "only what was written since then: 2026-01-31T12:00:00Z, 10m (ago)"),
    O("--until", "TIME", "only what was written until then"),
    O("-t, --timestamps", "", "with the time of each line"),
    O("--raw", "", "as it was written, to a terminal, too"),
)

PLATFORM = O("--platform", "OS/ARCH[/VARIANT]", "which image of an index (this machine's)")
BUDGET = (
    O("--max-size", "SIZE", "refuse an image whose files are larger (32g)"),
    O("--max-ratio", "N", "refuse a layer that unpacks to more than N times its size (250)"),
)

COMMANDS = (
    Command(
        "pod create", "[NAME]", "make a pod: namespaces held open by pause (default name: pause); prints the name",
        "sudo nsrun pod create -p 8080:80 web",
        (
            O("-p, --publish", "[IP:][HOST]:POD[/tcp]", "forward a port of this host to the pod: 8080:80, 127.0.0.1:8080:80, 8000-8010:8000-8010, :80 (a free port)", many=True),
            O("--network", "bridge|none|host", "bridge: an address of its own on nsrun0; none: only lo; host: this host's network; without root pasta takes the bridge's place", also=("pasta",)),
            O("--ip", "ADDR", "this address of the bridge's network"),
            O("--subnet", "ADDR/24", "the bridge's network, when the bridge does not exist yet (NSRUN_SUBNET)"),
            O("--hostname", "NAME", "hostname inside (default: the pod's name)"),
            O("--add-host", "HOST:IP", "a line of /etc/hosts; host-gateway means this host", many=True),
            O("--dns", "ADDR", "a name server for /etc/resolv.conf", many=True),
            O("--sysctl", "KEY=VALUE", "a kernel setting of the pod's namespaces", many=True),
            O("--shm-size", "SIZE", "size of the pod's /dev/shm (64m)"),
            O("--label", "KEY=VALUE", "a label, shown by inspect", many=True),
            O("--owner", "USER", "whose it is: that user joins and ends it without sudo, and is root in it only (who called sudo, doas or pkexec); root: no user namespace", empty=True),
            *LIMITS,
        ),
        "Without an address a port is published on all addresses of this host, past most firewalls' INPUT rules; NSRUN_PUBLISH_IP changes the default.",
    ),
    Command("pod ls", "", "list pods", "nsrun pod ls --json", (O("-a, --all", "", "also those that have ended and were not removed"), JSON)),
    Command("pod inspect", "POD...", "everything about pods, as JSON", "nsrun pod inspect pause", (JSON,)),
    Command("pod ps", "POD", "the processes of a pod, seen from the host", "nsrun pod ps pause", (JSON,)),
    Command("pod logs", "POD", "what the members of a pod wrote, by its time", "nsrun pod logs -f pause", LOGS),
    Command("pod stats", "POD...", "what pods use: processor, memory, processes, and their limits", "nsrun pod stats pause", (JSON,)),
    Command("pod stop", "POD...", "stop members by their stop signals, then pause", "nsrun pod stop -t 30 pause", (SECONDS,), "What members wrote goes with the pod; a pod whose pause ended otherwise keeps that until pod rm, pod prune, or the next pod of its name."),
    Command("pod kill", "POD...", "signal pause itself; when it ends, every member ends at once", "nsrun pod kill pause", (SIGNAL,)),
    Command("pod rm", "POD...", "remove pods", "nsrun pod rm -f pause", (FORCE,), "A pod is its pause: when pause has ended, little is left to remove. With -f, a pod that is not there is no error."),
    Command(
        "pod prune", "", "remove pods and members that have ended, damaged notes, and what crashes left", "nsrun pod prune",
        (O("-a, --all", "", "also data that no note speaks of any more: says whose and how much, and removes them"),),
    ),
    Command(
        "join", "POD", "start a member in a pod: its own rootfs, the pod's namespaces",
        "sudo nsrun join pause -d --name mysql --rootfs ./mariadb -e MYSQL_DATABASE=exampledb -- docker-entrypoint.sh mysqld",
        (
            O("--rootfs", "DIR", "an unpacked root filesystem; written to through an overlay, so it stays clean", empty=True),
            O("--image", "REF", "an image of the store (image load, image pull); without a command, its own", empty=True),
            O("--bundle", "DIR", "an OCI bundle: config.json and its root", empty=True),
            O("--name", "NAME", "the member's name (default: made up)", empty=True),
            O("-d, --detach", "", "in the background; prints the name"),
            INTERACTIVE,
            TERMINAL,
            O("--rm", "", "forget it when it has ended"),
            ENV,
            ENV_FILE,
            WORKDIR,
            USER,
            O("--entrypoint", "CMD", "put before the command; replaces the image's", empty=True),
            O("-v, --volume", "SRC:DST[:OPTIONS]", "a directory or file of this host, or a named volume, at DST; OPTIONS: ro,nosuid,noexec,…", many=True),
            O("--mount", "type=…", "type=bind|tmpfs|volume,source=…,target=…[,readonly][,nosuid]", many=True),
            O("--tmpfs", "DST[:OPTIONS]", "an empty tmpfs: /tmp:size=64m,mode=1777", many=True),
            O("--device", "HOST[:MEMBER]", "a device node of this host, for example /dev/fuse", many=True),
            O("--read-only", "", "the root can't be written to"),
            O("--writable", "", "no overlay: write to the --rootfs directory itself"),
            O("--net", "pod|own|host|none", "which network namespace (pod); own, none: one of its own, with only lo"),
            O("--ipc", "pod|own", "which IPC namespace (pod); own: with a /dev/shm of its own"),
            O("--pid", "pod|nested|own", "which PID namespace (pod); nested: a child of the pod's; own: it outlives pause"),
            O("--uts", "pod|own", "which hostname (pod)"),
            O("--cap-add", "CAP", "a capability beside Docker's fourteen, or ALL", many=True),
            O("--cap-drop", "CAP", "one of them less, or ALL", many=True),
            O("--security-opt", "no-new-privileges[:true]|seccomp=FILE|apparmor=PROFILE", "seccomp: a profile in Docker's format, or seccomp=unconfined; apparmor: one that is loaded", many=True),
            O("--sysctl", "KEY=VALUE", "a kernel setting of a namespace of the member's own (--net own: net.*; --ipc own)", many=True),
            O("--ulimit", "NAME=SOFT[:HARD]", "a resource limit: nofile=1024:2048", many=True),
            O("--stop-signal", "SIGNAL", "what stop sends (TERM)"),
            O("--restart", "no|on-failure[:N]|always", "what follows its end; delays double from 0.1 s to 1 min", also=("unless-stopped",)),
            *LIMITS,
            O("--status-fd", "N", "write JSON lines about start, error and end to this descriptor"),
        ),
        "With none of --rootfs, --image and --bundle the member runs on the host's own filesystem, seen from inside the pod. Foreground: exits with the member's status; signals reach it, and when the reader of its output goes, its next write gets SIGPIPE, as in any pipeline.",
        rest=True,
    ),
    Command("exec", "MEMBER", "execute one more command in a running member", "nsrun exec -it mysql sh", (INTERACTIVE, TERMINAL, ENV, ENV_FILE, WORKDIR, USER), rest=True),
    Command("ls", "", "list members", "nsrun ls -a", (O("-a, --all", "", "also those that have ended"), JSON)),
    Command("stats", "[MEMBER...]", "what running members use: processor, memory, processes, and their limits", "nsrun stats mysql", (JSON,)),
    Command("inspect", "MEMBER...", "everything about members, as JSON", "nsrun inspect mysql", (JSON,)),
    Command(
        "logs", "MEMBER...", "what members wrote; of several, by its time and with their names", "nsrun logs -f --tail 20 mysql", LOGS,
        "A terminal gets escapes for what would control it; a pipe gets every byte.",
    ),
    Command("wait", "MEMBER...", "wait for the end of members; prints their exit statuses", "nsrun wait mysql"),
    Command("stop", "MEMBER...", "stop members, touching no other", "nsrun stop -t 30 mysql", (SECONDS,)),
    Command("kill", "MEMBER...", "signal the first process of members; KILL goes to all of their processes", "nsrun kill -s HUP mysql", (SIGNAL,)),
    Command("rm", "MEMBER...", "forget members, and what they wrote over their rootfs", "nsrun rm -f mysql", (FORCE,)),
    Command(
        "attach", "MEMBER", "connect to a detached member's output, input and terminal; Ctrl-P Ctrl-Q leaves it", "nsrun attach mysql",
        (O("--no-stdin", "", "only watch"), O("--close-stdin", "", "when our input ends, the member's ends, too: echo 'SELECT 1' | nsrun attach --close-stdin …")),
        "A member outlives who attaches: the end of a terminal (Ctrl-D, hang-up) leaves it, and the end of piped input only ends what is passed on.",
    ),
    Command(
        "image load", "FILE|DIR|-", "take images in from an OCI layout directory, an archive (OCI, or of docker save), or stdin; prints their names",
        "sudo nsrun image load --tag mysql:8 mysql.tar", (O("-t, --tag", "NAME", "the image's name, in place of those that the archive gives", many=True), PLATFORM, *BUDGET),
    ),
    Command(
        "image pull", "REF", "fetch an image from a registry, through skopeo", "sudo nsrun image pull docker.io/library/mysql:8",
        (
            PLATFORM,
            O("--creds", "USER[:PASSWORD]", "log in for this once; skopeo login keeps it"),
            O("--authfile", "FILE", "where skopeo login kept it (containers-auth.json(5))"),
            O("--tls-verify", "true|false", "false: trust any certificate, and plain HTTP"),
            *BUDGET,
        ),
    ),
    Command("image ls", "", "list images", "nsrun image ls", (JSON,)),
    Command("image inspect", "REF...", "everything about images, as JSON", "nsrun image inspect mysql:8", (JSON,)),
    Command("image history", "REF", "how an image was made, newest first", "nsrun image history mysql:8", (JSON,)),
    Command("image unpack", "REF DIR", "an image as an OCI bundle: DIR/rootfs and DIR/config.json; DIR is for you alone", "sudo nsrun image unpack mysql:8 ./mysql"),
    Command("image tag", "REF NAME", "give an image one more name", "sudo nsrun image tag mysql:8 localhost/db:tested"),
    Command("image rm", "REF...", "take a name away, and with the last one the image", "sudo nsrun image rm mysql:8", (O("-f, --force", "", "with all of its names"),), "An image that a running member uses stays."),
    Command("image prune", "", "remove images without a name, and what crashes left; says how much was freed", "sudo nsrun image prune", (O("-a, --all", "", "all images that no running member uses"),)),
    Command(
        "explain", "COMMAND...", "the plan of pod create, join or exec, step by step; nothing is done",
        "nsrun explain --format shell pod create -p 8080:80",
        (O("--format", "text|shell|json", "text; a shell script that builds the same by hand; or JSON"),), rest=True,
    ),
    Command("doctor", "", "what this kernel and machine offer, what is missing, how to get it", "nsrun doctor", (JSON,)),
    Command("completion", "bash|zsh|fish", "a completion script for a shell", "nsrun completion bash >/etc/bash_completion.d/nsrun"),
    Command("help", "[COMMAND...]", "help about a command", "nsrun help pod create", rest=True),
)  # fmt: skip

BY_NAME = {command.name: command for command in COMMANDS}
GROUPS = sorted({command.name.split()[0] for command in COMMANDS if " " in command.name})


# ---- reading a command line: Docker's manners, `-it`, `-p80:80`, `--env=X`, options up to the member's command -----------------


def _take(words: list[str], options: tuple[Option, ...], into: dict[str, Any], name: str) -> bool:
    """Reads one option (or cluster) off the front of `words`; False when the front is no option."""
    word = words[0]
    if not word.startswith("-") or word == "-":
        return False
    words.pop(0)
    see = f"see 'nsrun {name} --help'" if name else "see 'nsrun --help'"
    known = {flag: option for option in options for flag in option.flags}
    if word.startswith("--"):
        flag, equals, value = word.partition("=")
        option = known.get(flag)
        if option is None:
            near = [f for f in known if f.startswith(flag)]
            hint = _instead(name, flag) or (f"did you mean {' or '.join(near)}?" if near else see)
            raise UsageError(f"unknown option {flag}", hint=hint)
        if not option.value:
            if equals:
                raise UsageError(f"{flag} takes no value", hint=see)
            into[option.key] = True
        else:
            _store(option, value if equals else _value(words, flag, see), into)
        return True
    for at in range(1, len(word)):
        flag = f"-{word[at]}"
        option = known.get(flag)
        if option is None:
            raise UsageError(f"unknown option {flag}", hint=_instead(name, flag) or see)
        if option.value:
            rest = word[at + 1 :]
            _store(option, rest.removeprefix("=") if rest else _value(words, flag, see), into)
            break
        into[option.key] = True
    return True


def _instead(command: str, flag: str) -> str:
    from nsrun.cli.foreign import instead_of_option

    return instead_of_option(command, flag)


def _value(words: list[str], flag: str, see: str) -> str:
    if not words:
        raise UsageError(f"{flag} needs a value", hint=see)
    return words.pop(0)


def _store(option: Option, value: str, into: dict[str, Any]) -> None:
    if "\0" in value:
        raise UsageError(f"{option.flags[-1]}: a NUL byte")
    option.check(value)
    if option.many:
        into.setdefault(option.key, []).append(value)
    else:
        into[option.key] = value


def parse(words: list[str]) -> tuple[dict[str, Any], Command | None, dict[str, Any], list[str], list[str]]:
    """(global options, command, its options, operands, the member's command)."""
    words = list(words)
    general: dict[str, Any] = {}
    while words and _take(words, GLOBAL, general, ""):
        pass
    if not words:
        return general, None, {}, [], []
    name = words.pop(0)
    if name in GROUPS and words and not words[0].startswith("-"):
        name = f"{name} {words.pop(0)}"
    elif name in GROUPS:
        if words and words[0] in ("-h", "--help"):
            general["help"] = name
            return general, None, {}, [], []
        raise UsageError(
            f"nsrun {name} needs a subcommand", hint=" ".join(c.split()[1] for c in BY_NAME if c.startswith(f"{name} "))
        )
    elif name == "container" and words and not words[0].startswith("-"):
        name = f"container {words.pop(0)}"
    command = BY_NAME.get(name)
    if command is None:
        from nsrun.cli.foreign import instead_of_command

        near = [c for c in BY_NAME if c.startswith(name) or name in c.split()]
        hint = instead_of_command(name) or (f"did you mean {' or '.join(near)}?" if near else "see 'nsrun --help'")
        raise UsageError(f"nsrun has no command {name!r}", hint=hint)
    wanted = len(command.operands.replace("[", "").split()) if command.rest else 0
    if name in ("explain", "help"):
        wanted = 0  # their operand is a whole command line
    options: dict[str, Any] = {}
    operands: list[str] = []
    rest: list[str] = []
    while words:
        if words[0] == "--":
            words.pop(0)
            (rest if command.rest else operands).extend(words)
            break
        if words[0] in ("-h", "--help"):
            general["help"] = name
            return general, command, options, operands, rest
        if _take(words, command.options, options, name):
            continue
        if command.rest and len(operands) == wanted:
            rest.extend(words)
            break
        operands.append(words.pop(0))
    _count(command, operands, wanted, options)
    return general, command, options, operands, rest


def _count(command: Command, operands: list[str], wanted: int, options: dict[str, Any]) -> None:
    see = f"usage: nsrun {command.name} {command.operands}"
    spec = command.operands
    if command.rest:
        low = high = wanted
    elif "..." in spec:
        low, high = (0 if spec.startswith("[") else 1), 1 << 30
    elif spec.startswith("["):
        low, high = 0, 1
    else:
        low = high = len(spec.split())
    if not low <= len(operands) <= high:
        raise UsageError(
            f"nsrun {command.name}: {'missing ' + spec if len(operands) < low else 'too many words: ' + ' '.join(operands[high:])}",
            hint=see,
        )
    known = words_of(spec)
    for word in operands if known else []:
        if word not in known:
            raise UsageError(f"nsrun {command.name}: {word!r} is not known", hint=f"one of: {', '.join(known)}")


def checked(name: str, options: dict[str, Any], without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the options of a program's call as those of the command `name`, checked by the same table.

    A switch is a bool, what may be repeated a list or tuple, any other value a str, a path or a number; None is not given.

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
                raise TypeError(f"{key}={value!r}: a bool is wanted")
            if value:
                found[key] = True
        elif not option.many:
            _store(option, _word(key, value), found)
        elif isinstance(value, (list, tuple)):
            for one in value:
                _store(option, _word(key, one), found)
        else:
            raise TypeError(f"{key}={value!r}: a list is wanted")
    return found


def _word(key: str, value: Any) -> str:
    from os import fspath

    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    word = value if isinstance(value, str) else fspath(value) if hasattr(value, "__fspath__") else None
    if not isinstance(word, str):
        raise TypeError(f"{key}: {value!r} is no word")
    return word
