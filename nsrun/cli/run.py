# SPDX-License-Identifier: Apache-2.0
"""`nsrun run`: a pod of one member, in one command."""

from __future__ import annotations

import os

from nsrun.cli import check_terminal, create, new_file, start, tell_of_pod
from nsrun.cli.commands import OF_POD
from nsrun.errors import UsageError
from nsrun.schema import check_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nsrun.cli.commands import Call
    from nsrun.plan import Plan


def run(call: Call) -> int:
    """Create a pod, start its member, and see to it that both go with the member's end; or remove the pod if there is no member."""
    import _signal

    from nsrun.lifecycle import runs
    from nsrun.state import new_id

    pod, member = options_of(call, new_id()[:6])
    ident = new_id()
    name = check_name(pod["name"], "pod")
    _check(call, name, member)
    call.state.prepare()
    runs.begin(call.state, ident, name)  # should we be killed, the next command ends the pod
    mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, ())
    try:
        note = create(call, pod, ident=ident)  # signals wait until we can remove it
    except BaseException:
        runs.done(call.state, ident)
        raise
    try:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)
        tell_of_pod(call, pod, note)
        return start(call, note["name"], member, begun=lambda: runs.done(call.state, ident))
    except BaseException:
        _signal.pthread_sigmask(_signal.SIG_BLOCK, {_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP})  # once is enough
        _remove(call, note["name"], note["id"])
        raise


def _check(call: Call, pod: str, member: dict[str, Any]) -> None:
    """Raise NsrunError for a member that can't be made, before there is a pod for it, whose ports others reach."""
    from nsrun.lifecycle import NO_ID
    from nsrun.lifecycle.create import pod_for
    from nsrun.lifecycle.join import plan_join
    from nsrun.plan.member import Request

    detach = bool(member.get("detach"))
    check_terminal(call, detach)
    if path := member.get("cidfile"):
        os.close(new_file(path))
        os.unlink(path)
    request = Request(detach=detach, interactive=bool(member.get("interactive")))
    plan_join(call.state, pod_for(call.state, pod), member, request, ident=NO_ID)


def options_of(call: Call, ending: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of the pod and those of the member.  Raise UsageError when it is not said what to run.

    `ending`: of a name that is made up.
    """
    of_pod = {option.key for option in OF_POD} - {"label"}
    pod = {key: value for key, value in call.options.items() if key in of_pod}
    member = {key: value for key, value in call.options.items() if key not in of_pod}
    command = list(call.rest)
    source = next((str(member[key]) for key in ("rootfs", "bundle") if key in member), "")
    if not source and not ("rootfs" in member or "bundle" in member):
        if not command:
            raise UsageError(
                "nsrun run: missing IMAGE", hint=f"usage: nsrun run {call.command.usage if call.command else ''}"
            )
        source = member["image"] = command.pop(0)
    name = call.options["name"] if "name" in call.options else _name(source, ending)
    stays = "detach" in member or member.get("restart", "no") != "no"
    if not stays or "rm" in member:
        member.update({"rm": True, "ends_pod": True})
    if member.pop("publish_all", False):
        pod["publish"] = [*pod.get("publish", []), *_exposed(call, member, pod.get("publish") or [])]
    pod["name"] = name
    member.update({"name": name, "command": command})
    return pod, member


def plans(call: Call) -> list[tuple[list[str], Plan]]:
    """Return the plans of the pod and of its member, for explain."""
    from nsrun.cli.halves import member_plan, pod_plan

    pod, member = options_of(call, "ID")
    words, plan, note = pod_plan(call.state, pod)
    return [(words, plan), member_plan(call.state, note, member)]


def _exposed(call: Call, member: dict[str, Any], asked: list[str]) -> list[str]:
    """Return the values of -p for -P: one for each port that the image exposes and no other value names."""
    from nsrun.cli.say import err
    from nsrun.image import lookup
    from nsrun.spec.exposed import exposed_ports
    from nsrun.spec.options import parse_ports

    if "image" not in member:
        raise UsageError("-P: only an image says which ports it exposes", hint="-p :80 publishes a port on a free one")
    named = {(port["pod_port"], port["protocol"]) for port in parse_ports(asked)}
    found, left = exposed_ports(lookup.find(call.state, member["image"])["process"], named)
    if left:
        err(f"nsrun: not published: {', '.join(left)}; only TCP and UDP can be")
    elif not found and not named:
        err(f"nsrun: -P: image {member['image']!r} exposes no ports")
    return found


def _name(source: str, ending: str) -> str:
    """Return a name that nobody has: of the last part of an image's name or a directory's, and this ending."""
    from nsrun.schema import is_name

    base = source.rstrip("/").rpartition("/")[2].partition("@")[0].partition(":")[0][:40]
    return f"{base if is_name(base) else 'run'}-{ending}"


def _remove(call: Call, name: str, ident: str) -> None:
    """Remove the pod of a member that could not be started; tell when that can't be done."""
    from nsrun.errors import NsrunError
    from nsrun.lifecycle import runs
    from nsrun.lifecycle.stop import SIGKILL, end_pod

    try:
        note = call.state.read("pods", name)
        if note and note["id"] == ident:
            end_pod(call.state, note, SIGKILL)
        runs.done(call.state, ident)
    except (OSError, NsrunError) as error:
        from nsrun.cli.say import err

        err(f"nsrun: pod {name!r} is left: {error}; nsrun pod rm -f {name}")
