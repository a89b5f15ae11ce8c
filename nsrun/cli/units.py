# SPDX-License-Identifier: Apache-2.0
"""`nsrun unit`: a systemd unit that has a pod run, from a file of `up` or `kube play`.

systemd watches pause: `up --notify` names it as the main process (sd_notify(3), MAINPID=), and no nsrun stays.  The manager of
an ordinary user accepts only processes of the unit's own cgroup, and pods have their own; there a tail(1) waits for pause.
"""

from __future__ import annotations

import os
import sys

from nsrun.errors import BadInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsrun.cli.commands import Call
    from nsrun.cli.podfile import PodFile
    from nsrun.state import Note, State

#: Seconds beyond what the members may take to stop.
_SPARE = 30
_UNIT = """\
# {name}.service, written by nsrun unit.{how}
[Unit]
Description=nsrun pod {name}
{after}
[Service]
Type=notify
NotifyAccess=exec
ExecStart={nsrun} up --notify {file}
ExecReload={nsrun} up {file}
ExecStop={nsrun} down {file}
# also when pause has died, or what comes before the start of a member has failed
ExecStopPost=-{nsrun} down {file}
# processes of the pod are in cgroups of nsrun's, which limit and kill them; monitors are in this unit's, and end with members
Delegate=yes
KillMode=mixed
TimeoutStartSec=infinity
TimeoutStopSec={seconds}
Restart={restart}
RestartSec=1

[Install]
WantedBy={target}
"""


def unit(call: Call) -> int:
    """Print a unit for a file, or for a pod whose file is to be where the unit says."""
    from nsrun.cli.say import script

    user = bool(call.state.uid) or "user" in call.options
    given = call.operands[0]
    if "/" in given or given.endswith((".toml", ".yaml", ".yml", ".json")):
        pod = _only(given)
        name, path, how = pod.name, os.path.abspath(given), ""
        seconds = sum(int(member.options.get("stop_timeout", "10")) for member in pod.members)
    else:
        note = call.state.pod(given)
        name = note["name"]
        path = f"%h/.config/nsrun/{name}.yaml" if user else f"/etc/nsrun/{name}.yaml"
        there = path.replace("%h", "~")
        how = f"  It needs a file, to be written once:\n# nsrun kube generate {name} >{there}"
        seconds = sum(member.get("stop_timeout", 10) for member in call.state.members_of(note))
    text = _UNIT.format(
        name=name,
        how=how,
        after="" if user else "Wants=network-online.target\nAfter=network-online.target\n",
        nsrun=_nsrun(call),
        file=path if path.startswith("%h/") else _word(path),
        seconds=seconds + _SPARE,
        restart="always" if user else "on-failure",
        target="default.target" if user else "multi-user.target",
    )
    script(text)
    return 0


def _only(path: str) -> PodFile:
    from nsrun.cli import podfile

    pods = podfile.read(path)
    if len(pods) > 1:
        raise BadInput(f"{path}: a unit is for one pod, and there are {len(pods)}", hint="a file for each")
    return pods[0]


def _nsrun(call: Call) -> str:
    """Return the command line of nsrun in a unit: with its path, and with --root as this command has it."""
    import shutil

    beside = os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), "nsrun")
    found = beside if os.path.exists(beside) else shutil.which("nsrun") or "/usr/local/bin/nsrun"
    root = call.general.get("root") or os.environ.get("NSRUN_ROOT", "")
    return " ".join([_word(found), *(["--root", _word(os.path.abspath(root))] if root else [])])


def _word(text: str) -> str:
    """Return an argument as systemd.service(5) reads it in a command line."""
    if "\n" in text or not text.isprintable():
        raise BadInput(f"{text!r} can't stand in a unit", hint="a path without control characters")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    plain = all(c.isalnum() or c in "/._-+:@%" for c in escaped)
    return escaped if plain else f'"{escaped}"'


def notify(state: State, pod: Note) -> None:
    """Tell systemd that the pod runs, and which process is its main one; an ordinary user's is this one, which then only waits.

    Raise BadInput where nobody is to be told.
    """
    import socket

    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        raise BadInput("--notify is for systemd, which sets NOTIFY_SOCKET", hint="nsrun unit prints a unit")
    fd, pause = state.pause(pod)
    if fd < 0:
        raise BadInput(f"pod {pod['name']!r} has just ended", hint="nsrun pod ls -a")
    os.close(fd)
    words = ["READY=1", f"STATUS=pod {pod['name']}, pause {pause}", *([] if state.uid else [f"MAINPID={pause}"])]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as told:
        try:
            told.connect(f"\0{address[1:]}" if address.startswith("@") else address)
            told.send("\n".join(words).encode())
        except OSError as error:
            raise BadInput(f"NOTIFY_SOCKET={address}: {error.strerror or error}", errno=error.errno or 0) from None
    if state.uid:
        import _signal

        # pause is our child, and must not become a zombie, which seems to live
        _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)
        os.execvp("tail", ["tail", "-f", f"--pid={pause}", "/dev/null"])
