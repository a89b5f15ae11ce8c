# SPDX-License-Identifier: Apache-2.0
"""From the options of `pod create` to what the pod is, before anything is done.  Pure."""

from __future__ import annotations

from nsrun.errors import BadInput, UsageError
from nsrun.spec.options import (
    FORWARD,
    LEAST_MTU6,
    PUBLISH_MODES,
    choose_mode,
    parse_hostname,
    parse_ipv4,
    parse_labels,
    parse_limits,
    parse_mtu,
    parse_network,
    parse_ports,
    parse_size,
    parse_subnet,
    parse_subnet6,
    parse_sysctls,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from nsrun.types import Network, Ownership, PodFacts, PodOptions, PodSpec


#: Bytes that the hosts file of a pod of a network may begin with: there is room for as many names of others.
MOST_HOSTS = 128 << 10


def is_address(text: str) -> bool:
    """Return whether a text is an IPv4 or IPv6 address as inet_pton(3) reads them."""
    from _socket import AF_INET, AF_INET6, inet_pton

    for family in (AF_INET, AF_INET6):
        try:
            inet_pton(family, text)
        except (OSError, ValueError):
            continue
        return True
    return False


def _name_server(text: str) -> str:
    """Return an address for /etc/resolv.conf, of IPv4 or IPv6: resolv.conf(5).  Raise BadInput."""
    if ":" not in text:
        return parse_ipv4(text, "--dns")
    if not is_address(text):
        raise BadInput(f"--dns: {text!r} is not an IPv6 address")
    return text


def pod_spec(options: PodOptions, facts: PodFacts) -> PodSpec:
    """Return what a pod is.  Raise UsageError or BadInput for options that can't be had, or contradict each other."""
    name = options.get("name") or "pause"
    rootless = bool(facts.get("user")) and not facts.get("by_root")
    asked = options.get("network") or ("pasta" if rootless else "bridge")
    mode, network_name, ipv6, isolated = parse_network(asked)
    known = ("pasta", "none", "host") if rootless else ("bridge", "pasta", "none", "host")
    if mode not in known:
        whose = "networks are root's" if network_name else "the bridge is root's"
        raise UsageError(
            f"--network {network_name or mode} needs root",
            hint=f"{whose}: sudo nsrun pod create, or {', '.join(known)}",
        )
    named = facts.get("named") if network_name else None
    if network_name and not named:
        told = facts.get("networks", "")
        raise UsageError(
            f"--network {network_name!r} is no network", hint=f"{', '.join(known)}; {told}".removesuffix("; ")
        )
    mtu = 0
    if mode == "bridge":
        mtu = parse_mtu(options["mtu"]) if options.get("mtu") else (named or {}).get("mtu") or facts.get("mtu", 1500)
    sysctls = parse_sysctls(options.get("sysctl") or [], mode != "host", True, True, "the pod's")
    without = _without_ipv6(ipv6, facts, sysctls, mtu) if mode == "bridge" else NO_BRIDGE
    if mode == "pasta":
        without = facts.get("without_ipv6", "")
    ports = parse_ports(options.get("publish") or [], without)
    publish_mode = options.get("publish_mode") or "auto"
    if publish_mode not in PUBLISH_MODES:
        raise UsageError(f"--publish-mode {publish_mode!r}", hint=", ".join(PUBLISH_MODES))
    if ports and (mode == "host" or (mode == "none" and publish_mode != FORWARD)):
        instead = "" if mode == "host" else "--publish-mode forward publishes ports of a pod that has no network"
        raise UsageError(f"-p needs --network {known[0]}; with {mode} there is nothing to forward", hint=instead)
    ports = choose_mode(ports, publish_mode, mode, facts.get("no_nat", ""))
    for flag, value in (
        ("ip", options.get("ip")),
        ("subnet", options.get("subnet")),
        ("subnet6", options.get("subnet6")),
        ("mtu", options.get("mtu")),
    ):
        if value and mode != "bridge":
            raise UsageError(f"--{flag} needs --network bridge")
        if value and named and flag.startswith("subnet"):
            raise UsageError(
                f"--{flag} is for the default bridge; network {network_name!r} has its own",
                hint=f"nsrun network inspect {network_name}",
            )
    if options.get("subnet6") and without:
        raise BadInput(f"--subnet6: {without}")
    hostname = parse_hostname(options.get("hostname") or name)
    hosts = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
    hosts.append(f"{{pod:ip}}\t{hostname}" if mode == "bridge" else f"127.0.1.1\t{hostname}")
    if mode == "bridge" and not without:
        hosts.append(f"{{pod:ip6}}\t{hostname}")
    for word in options.get("add_host") or []:
        host, _, address = word.partition(":")
        if address[:1] + address[-1:] == "[]":
            address = address[1:-1]
        if not host or any(c.isspace() for c in word) or not (address == "host-gateway" or is_address(address)):
            raise UsageError(f"--add-host {word!r}: not HOST:IP, or HOST:host-gateway")
        hosts.append(f"{'{pod:gateway}' if address == 'host-gateway' else address}\t{host}")
    resolv = facts["resolv_conf"]
    if options.get("dns"):
        resolv = "".join(f"nameserver {_name_server(a)}\n" for a in options["dns"])
    labels = parse_labels(options.get("label") or [])
    network: Network = {"mode": mode}
    if mode == "bridge":
        network["bridge"], network["mtu"] = named["bridge"] if named else "nsrun0", mtu
        if named:
            network["name"], network["network_id"] = named["name"], named["id"]
            network["hosts"] = "\n".join(hosts) + "\n"
            if len(network["hosts"].encode()) > MOST_HOSTS:
                raise BadInput(
                    f"--add-host: they have more than {MOST_HOSTS >> 10} KiB",
                    hint=f"the file of a pod of network {named['name']} has the names of its other pods, too",
                )
        if options.get("ip"):
            network["wanted_ip"] = parse_ipv4(options["ip"], "--ip")
        network["subnet"] = named["subnet"] if named else options.get("subnet") or facts.get("subnet", "")
        if network["subnet"]:
            parse_subnet(network["subnet"])
        if isolated:
            network["isolated"] = True
        if facts.get("no_tables"):
            network["closed"] = facts["no_tables"]
        network["ipv6"] = f"off: {without}" if without else "on"
        subnet6 = named["subnet6"] if named else options.get("subnet6") or facts.get("subnet6", "")
        if subnet6 and not without:
            network["subnet6"] = parse_subnet6(subnet6)
    spec: PodSpec = {
        "name": name,
        "id": facts["id"],
        "created": facts["created"],
        "owner": facts["owner"],
        **_ownership(facts),
        "hostname": hostname,
        "network": network,
        "ports": ports,
        "labels": labels,
        "sysctls": sysctls,
        "limits": parse_limits(options),
        "cgroup": facts["cgroup"],
        "shm_size": parse_size(options.get("shm_size") or "64m", "--shm-size"),
        "files": {"/etc/hostname": f"{hostname}\n", "/etc/hosts": "\n".join(hosts) + "\n", "/etc/resolv.conf": resolv},
    }
    return spec


#: Why -p has no IPv6 address where there is no bridge.
NO_BRIDGE = "only IPv4 addresses can be published on without a bridge"


def _without_ipv6(asked: bool | None, facts: PodFacts, sysctls: Mapping[str, str], mtu: int) -> str:
    """Return why a pod on the bridge has no IPv6; "" when it has.  Raise BadInput when it was asked for and can't be had."""
    why = facts.get("without_ipv6", "")
    for where in ("all", "default", "eth0"):
        if sysctls.get(key := f"net.ipv6.conf.{where}.disable_ipv6", "0") != "0":
            why = why or f"--sysctl {key}={sysctls[key]}"
    if mtu < LEAST_MTU6:
        why = why or f"its MTU is {mtu}, and IPv6 needs {LEAST_MTU6}"
    if asked and why:
        raise BadInput(f"--network bridge,ipv6=on: {why}", hint="leave ipv6=on out; nsrun doctor tells of IPv6")
    return "--network bridge,ipv6=off" if asked is False else why


def _ownership(facts: PodFacts) -> Ownership:
    """Return the part of a spec that only a pod in a user namespace has."""
    found: Ownership = {}
    if user := facts.get("user"):
        found = {"user": user, "by_root": facts["by_root"], "groups": facts["groups"]}
    if nested := facts.get("nested"):
        found["nested"] = nested
    if devices := facts.get("devices"):
        found["devices"] = devices
    return found
