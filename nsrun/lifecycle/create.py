# SPDX-License-Identifier: Apache-2.0
"""`nsrun pod create`: ask the machine, decide what the pod is, build the plan, run it."""

from __future__ import annotations

import os

from nsrun.errors import BadInput, StepError, UnknownError
from nsrun.lifecycle import NO_ID, OF_CREATE, need_powers
from nsrun.run import Run
from nsrun.schema import check_name, is_name
from nsrun.spec.options import is_forwarded, parse_network, parse_ports
from nsrun.spec.pod import pod_spec
from nsrun.state import State, new_id, timestamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from nsrun.plan import Plan
    from nsrun.types import PodFacts, PodNote, PodOptions, PodSpec

    Options = Mapping[str, Any]


def host_resolv_conf(seen: dict[str, str | None]) -> str:
    """Return the host's resolv.conf.  A server on loopback can't be reached from a pod: then systemd-resolved's upstream ones are used."""
    text = ""
    for path in ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"):
        seen[path] = None
        try:
            with open(path, errors="surrogateescape", newline="\n") as file:
                text = seen[path] = file.read(65536)
        except OSError:
            continue
        if not any(
            line.split()[1:2] and line.startswith("nameserver") and line.split()[1].startswith("127.")
            for line in text.split("\n")
        ):
            break
    return text.replace("\0", "")


def gather(state: State, name: str, options: PodOptions, ident: str, thoroughly: bool = False) -> PodFacts:
    """Return the facts that the spec of a pod is made from: its owner, cgroup and ids, and the host's name servers.

    `thoroughly`: find out whether this kernel has every rule that a pod on the bridge needs.
    """
    from nsrun.host import cgroup, userns

    owner = userns.owner_of(options.get("owner"), dict(os.environ)) if not state.uid else userns.User(str(state.uid))
    words = [options.get("owner")] if options.get("owner") is not None else map(os.environ.get, userns.CALLERS)
    if not {None, "0", "root"}.issuperset(words):
        state.unseen = "the account of the owner"
    facts: PodFacts = {
        "id": ident,
        "created": timestamp() if ident != NO_ID else "",
        "cgroup": cgroup.pod_path(name, ident, state.uid),
        "resolv_conf": host_resolv_conf(state.seen_text),
        "owner": owner.name if owner else "root",
        "subnet": os.environ.get("NSRUN_SUBNET", ""),
        "subnet6": os.environ.get("NSRUN_SUBNET6", ""),
    }
    mode, network, *_ = parse_network(options.get("network") or "bridge")
    if not state.uid and network:
        from nsrun.state import networks

        facts["named"] = networks.read(state, network) if is_name(network) else None
        facts["networks"] = "" if facts["named"] else networks.known(state)
    if not state.uid and mode == "bridge":
        from nsrun.host import uplink
        from nsrun.host.bridges import without_ipv6, without_tables

        facts["mtu"] = uplink.mtu()
        closed = facts["no_tables"] = facts["no_nat"] = without_tables(thoroughly or ident == NO_ID)
        facts["without_ipv6"] = without_ipv6((facts.get("named") or {}).get("bridge", "nsrun0")) or closed
        if not closed and options.get("publish") and (options.get("publish_mode") or "auto") == "auto":
            facts["no_nat"] = why_no_nat(not facts["without_ipv6"])
    if (options.get("network") or ("pasta" if state.uid else "")) == "pasta":
        from nsrun.host import pasta

        facts["without_ipv6"] = pasta.without_ipv6()
    if owner:
        facts["user"] = {"uid": owner.uid, "gid": owner.gid, "maps": userns.maps_of(owner)}
        facts["by_root"], facts["groups"] = not state.uid, owner.groups
    if not state.uid and (around := userns.around()):
        if owner:
            userns.check_within(owner, facts["user"]["maps"], around)
        facts["nested"], facts["devices"] = around, "host"
    return facts


def why_no_nat(ipv6: bool) -> str:
    """Return why nat can't lead to a pod on this host; "" when it can, or that can't be told.  `ipv6`: does the pod have that?"""
    from nsrun.host.net import foreign_drops

    try:
        chains = foreign_drops(ipv6)
    except OSError:
        return ""
    return f"the firewall chain {chains[0]!r} drops what nat would forward" if chains else ""


def plan_pod(state: State, options: Options, ident: str = "", thoroughly: bool = False) -> Plan:
    """Return the plan of `pod create`; nothing is done.  `thoroughly`: as for gather()."""
    from nsrun.plan.pod import pod_plan

    name, ident = _name_of(options), ident or new_id()
    asked: Any = {**options, "name": name}
    spec = pod_spec(asked, gather(state, name, asked, ident, thoroughly))
    if not state.uid and ident != NO_ID:
        _check_powers(spec)
    if spec["network"]["mode"] == "pasta" and spec.get("by_root"):  # a process of the owner's has the sockets
        from nsrun.host.pasta import check_port

        for port in spec["ports"]:
            if not is_forwarded(port):
                check_port(port["host_port"])
    return pod_plan(spec)


def _name_of(options: Options) -> str:
    return check_name("pause" if options.get("name") is None else options["name"], "pod")


def _check_powers(pod: PodSpec) -> None:
    """Raise BadInput when root lacks what this pod needs.  Without CAP_MKNOD, the pod gets the host's own device nodes."""
    from nsrun.host import userns
    from nsrun.linux import capability_mask

    mode = pod["network"]["mode"]
    if mode == "bridge" and pod.get("nested") and not userns.owns_network():
        raise BadInput(
            "--network bridge: root of this user namespace has no power over the network namespace that it is in",
            hint="--network none, or host; or one of its own: unshare --user --map-root-user --net nsrun …",
        )
    if mode == "pasta" and pod.get("nested"):
        raise BadInput(
            "--network pasta: root of a user namespace can't give pasta another one", hint="--network bridge, or none"
        )
    granted = need_powers(OF_CREATE + (("net_admin",) if mode != "host" else ()), "a pod")
    if not granted & capability_mask(["mknod"]) and not pod.get("user"):
        pod["devices"] = "host"


def _check_rootless(state: State, options: Options) -> None:
    """Raise BadInput for what an ordinary user can't have, and for a name that root's pod of theirs has."""
    from nsrun.host import pasta

    if options.get("owner") is not None:
        raise BadInput("--owner: only root makes a pod for somebody", hint="sudo nsrun pod create; yours it is anyway")
    for port in parse_ports(options.get("publish") or [], pasta.without_ipv6()):
        pasta.check_port(port["host_port"])
    name = _name_of(options)
    if state.has_pod(name) and not state.door({"name": name}).startswith(f"{state.run}/"):
        raise BadInput(f"pod name {name!r} is taken: by one that root made for you", hint="choose another name")


def create_pod(
    state: State,
    options: Options,
    observe: Callable[[Run], None] | None = None,
    leave: Callable[[Run], None] | None = None,
    last: bool = False,
    make: Callable[[Plan, State], Run] = Run,
    ident: str = "",
) -> Mapping[str, Any]:
    """Create a pod and return its note.  `ident`: its id, unless it is to be a new one.

    `make`: what runs the plan.  `leave` is called before pause starts.  `last`: the process ends after it.  SIGINT and SIGTERM then stay blocked once the pod is there, so that an
    interrupt never looks like a failure of what has succeeded.
    """
    if state.uid:
        _check_rootless(state, options)
    if options.get("ip"):
        state.catch_up()  # a pod that had the address, and has just ended

    def carry_out(plan: Plan) -> Mapping[str, Any]:
        run = make(plan, state)
        if leave:
            run.before_release = lambda: leave(run)
        try:
            run.execute()
        finally:
            if observe:
                observe(run)
            if not (last and run.note):
                run.restore_signals()
        return run.note

    try:
        return carry_out(plan_pod(state, options, ident))
    except StepError as error:
        if not _lacks_rules(error):
            raise
    return carry_out(plan_pod(state, options, ident, thoroughly=True))


def _lacks_rules(error: StepError) -> bool:
    """Return whether a step failed because this kernel has nf_tables, but not all of it: only an attempt shows that."""
    from nsrun.host.bridges import without_tables

    try:
        return error.step.startswith("nft ") and bool(without_tables(thoroughly=True))
    except OSError:
        return False  # the first error says more


def pod_for(state: State, name: str) -> PodNote:
    """Return the pod's note; for a pod that does not exist yet, what it would be, so that one can read before one does."""
    from nsrun.host import cgroup

    try:
        return state.pod(name)
    except UnknownError:
        check_name(name, "pod")
        return {
            "name": name,
            "id": "ID",
            "hostname": name,
            "pause": ["PAUSE", 0, ""],
            "cgroup": cgroup.pod_path(name, "ID"),
        }
