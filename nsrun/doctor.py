# SPDX-License-Identifier: Apache-2.0
"""`nsrun doctor`: find out by trying what the kernel and the machine offer and lack, and say how to get it.

Nothing is changed: we try in a child process's own namespaces, or on a descriptor that is closed again.
"""

from __future__ import annotations

import os
import subprocess
from errno import ENOSYS

from nsrun import kernel
from nsrun.errors import KernelError, NsrunError, errno_text, printable
from nsrun.schema import read_setting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from nsrun.state import State, orphans
    from nsrun.types import Port

    Finding = dict[str, str]


def _finding(what: str, status: str, detail: str = "", fix: str = "") -> Finding:
    """Return a finding; status is ok, limited (nsrun works, but something does not) or missing (nsrun can't work)."""
    return {"what": what, "status": status, "detail": detail, "fix": fix}


def _try(what: str, action: Callable[[], object], fix: str, needed: bool = True) -> Finding:
    try:
        result = action()
        return _finding(what, "ok", result if isinstance(result, str) else "")
    except (OSError, NsrunError) as error:
        text = str(error) if isinstance(error, (KernelError, NsrunError)) else errno_text(error.errno or 0)
        return _finding(what, "missing" if needed else "limited", text, fix)


def _privileges() -> Finding:
    """Check the capabilities that what nsrun starts will have: CapEff and CapBnd, capabilities(7)."""
    from nsrun.lifecycle import OF_CREATE, OF_JOIN
    from nsrun.linux import capability_mask, capability_names
    from nsrun.spec.options import DEFAULT_CAPABILITIES

    def names(mask: int) -> str:
        return ", ".join(f"CAP_{name.upper()}" for name in capability_names(mask))

    sets = kernel.capability_sets()
    has = sets["CapEff"] & sets["CapBnd"]
    if lacking := capability_mask((*OF_CREATE, *OF_JOIN)) & ~has:
        return _finding("privileges", "missing", f"missing {names(lacking)}", "run as root: sudo nsrun …; a container gets them with --cap-add")  # fmt: skip
    lost = []
    if not has & capability_mask(["net_admin"]):
        lost.append("no CAP_NET_ADMIN: pods only with --network host")
    if not has & capability_mask(["mknod"]):
        lost.append("no CAP_MKNOD: members get the host's own device nodes")
    if not has & capability_mask(["dac_override"]):
        lost.append("no CAP_DAC_OVERRIDE: no overlay, only join --writable")
    if less := capability_mask(DEFAULT_CAPABILITIES) & ~has:
        lost.append(f"members do not get {names(less)}")
    if lost:
        return _finding("privileges", "limited", "; ".join(lost), "add them to the bounding set (capsh --print)")
    if not has & capability_mask(["sys_resource"]):
        return _finding(
            "privileges",
            "ok",
            "root without CAP_SYS_RESOURCE: hard limits can't be raised, oom_score_adj can't be lowered",
        )
    return _finding("privileges", "ok", "root")


def _nested() -> list[Finding]:
    """For root of a user namespace, report how that differs from root of the machine."""
    from nsrun.host import userns
    from nsrun.spec import idmaps

    here = userns.around()
    if not here:
        return []
    lost = ["devices are the host's own nodes"]
    if not here["setgroups"]:
        lost.append("setgroups is denied: members keep the caller's groups")
    if not userns.owns_network():
        lost.append("the network namespace belongs to an outer user namespace: only --network none or host")
    if idmaps.nobody(here["maps"]) != 65535:
        lost.append("few ids: only those of /proc/self/uid_map, also for pause")
    fix = "unshare --map-auto --map-root-user --net gives ids, groups and a network; or run as root of the machine"
    return [_finding("user namespace", "limited", f"root of one: {'; '.join(lost)}", fix)]


def _memfd(state: State) -> Finding:
    """Check that sealed memfds can be executed, which vm.memfd_noexec (Linux 6.3, per PID namespace) may forbid."""
    setting = read_setting("/proc/sys/vm/memfd_noexec")
    if setting != "2":
        return _finding("sealed programs", "ok", "in memory")
    try:
        os.close(kernel.sealed_program("doctor", b"#!"))
    except KernelError as error:
        return _finding("sealed programs", "limited" if state.uid else "missing", f"vm.memfd_noexec is 2: {error}", "sudo sysctl vm.memfd_noexec=1; pods that root makes for you are not affected")  # fmt: skip
    return _finding(
        "sealed programs", "ok", "vm.memfd_noexec is 2: they are in a read-only tmpfs that is attached nowhere"
    )


def _proc() -> Finding:
    """Check whose processes are visible: hidepid of proc(5)."""
    mounts = [line for line in read_setting("/proc/self/mountinfo").split("\n") if line.split()[4:5] == ["/proc"]]
    hidden = [
        option
        for option in "".join(mounts[-1:]).rpartition(" - ")[2].replace(" ", ",").split(",")
        if option.startswith("hidepid=")
    ]
    if hidden and hidden[-1] not in ("hidepid=0", "hidepid=off"):
        return _finding("/proc", "ok", f"{hidden[-1]}: other users' processes are not visible, those of your pods are")
    return _finding("/proc", "ok", "all processes are visible")


def _namespaces() -> Finding:
    lacking = [name for name in kernel.NAMESPACES if not os.path.exists(f"/proc/self/ns/{name}")]
    if lacking:
        needed = set(lacking) - {"user", "cgroup"}
        return _finding(
            "namespaces",
            "missing" if needed else "limited",
            f"the kernel has no {', '.join(lacking)}",
            "use a kernel with CONFIG_NAMESPACES",
        )
    done = subprocess.run(
        ["unshare", "--net", "--ipc", "--uts", "--pid", "--mount", "--fork", "true"],
        capture_output=True,
        timeout=20,
        check=False,
    )
    if done.returncode:
        return _finding(
            "namespaces",
            "missing",
            os.fsdecode(done.stderr).strip(),
            "run as root, without a seccomp profile that forbids unshare",
        )
    return _finding("namespaces", "ok", ", ".join(kernel.NAMESPACES))


def _overlay(state: State) -> str:
    import tempfile

    from nsrun.state import make_directory

    make_directory(state.lib)
    os.chmod(state.lib, 0o700)
    with tempfile.TemporaryDirectory(dir=state.lib) as work:
        for part in ("lower", "upper", "work"):
            os.mkdir(f"{work}/{part}")
        options = [(f"{part}dir", f"{work}/{part}") for part in ("lower", "upper", "work")]
        os.close(kernel.mount_new("overlay", options, kernel.MOUNT_ATTR_NODEV))
    return f"on {state.lib}"


def _idmap(state: State) -> str:
    """Check MOUNT_ATTR_IDMAP, which needs a user namespace: EINVAL without one shows that the kernel knows the flag."""
    fd = kernel.open_tree("/proc", recursive=False)
    try:
        kernel.mount_setattr(fd, set=kernel.MOUNT_ATTR_IDMAP)
    except KernelError as error:
        if error.errno == ENOSYS:
            raise
    finally:
        os.close(fd)
    return "mount_setattr knows MOUNT_ATTR_IDMAP (used by owned pods)"


def _pidfd() -> str:
    with kernel.Fd(kernel.pidfd_open(os.getpid())) as fd:
        kernel.pidfd_send_signal(fd, 0)
    return "pidfd_open, pidfd_send_signal"


def _openat2() -> str:
    with kernel.Fd(os.open("/", os.O_PATH | os.O_DIRECTORY)) as root:
        os.close(kernel.open_in_root(root, "/proc", os.O_PATH))
    return "RESOLVE_IN_ROOT"


def _owner_table() -> str:
    """Make all of a pod's network except the pod, in a network namespace that ends at once."""
    from nsrun.host import net, wire
    from nsrun.host.bridges import BRIDGE, without_ipv6, without_tables
    from nsrun.spec.options import ANY, Subnet

    if why := without_tables(thoroughly=True):
        raise NsrunError(f"by nsrun-forward only, and pods on the bridge are closed in: {why}")
    with kernel.Fd(kernel.new_netns()) as netns:
        with kernel.inside_netns(netns), wire.open_socket(wire.NETLINK_ROUTE) as sock:
            subnet = Subnet("10.88.0.1", 24)
            requests = [("bridge", wire.encode("new_bridge", bridge=BRIDGE, mac=net.mac_of(subnet.gateway)))]
            wire.talk(sock, requests)
            index = net.interfaces()[BRIDGE]
            gateway6 = "" if without_ipv6() else "fd00::1"
            ip, _, table = net.connect(sock, netns, BRIDGE, subnet, index, "", "d0c70e000000", 1500, gateway6)
            ip6 = net.address6(gateway6, ip) if gateway6 else ""
            with kernel.Fd(table.detach()) as fd:
                ports: list[Port] = [
                    {"host_ip": every, "host_port": 1, "pod_port": 1, "protocol": "tcp"}
                    for every in (ANY if ip6 else ANY[:1])
                ]
                net.publish(fd, "d0c70e000000", BRIDGE, ip, subnet, ports, pod_ip6=ip6)
    return "nf_tables nat, fib, masquerade, tables with an owner; bridge, veth, ingress filters"


def _ipv6() -> Finding:
    """Tell whether pods on the bridge have IPv6, and whether this host still learns from routers while it forwards."""
    from nsrun.host import bridges

    if why := bridges.without_ipv6():
        return _finding(
            "IPv6",
            "limited",
            f"pods on the bridge have none: {why}",
            "sysctl net.ipv6.conf.all.disable_ipv6=0; without ipv6.disable=1",
        )
    if why := bridges.without_tables(thoroughly=True):
        return _finding("IPv6", "limited", f"pods on the bridge have none: {why}", "modprobe nf_tables")
    text = "pods on the bridge have an address"
    if read_setting("/proc/sys/net/ipv6/conf/all/forwarding") != "1":
        text += "; forwarding is off, pod create enables it, with accept_ra=2 where it is 1"
    kept = [name for name, accept in bridges.listens_to_routers() if accept == "2"]
    return _finding("IPv6", "ok", text + (f"; accept_ra is 2 for {', '.join(kept)}, which so learn from routers" if kept else ""))  # fmt: skip


def _cgroups(state: State) -> list[Finding]:
    from nsrun.host import cgroup

    reason, fix = cgroup.why_none(state.uid)
    if reason:
        lost = "members are ended by their first process and their mount namespace, limits are refused"
        return [_finding("cgroups", "ok" if cgroup.chosen_none() else "limited", f"none: {reason}: {lost}", fix)]
    mount, lacking = cgroup.mount_point(), cgroup.missing()
    layout = "pure v2" if mount == "/sys/fs/cgroup" else "hybrid: v1 controllers, v2 for grouping"
    found = [_finding("cgroups", "ok", f"{layout} at {mount}")]
    if lacking:
        found.append(
            _finding(
                "limits",
                "limited",
                f"no v2 controller for {', '.join(lacking)}: --memory, --cpus, --pids-limit are refused",
                "boot with systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all",
            )
        )
    else:
        found.append(_finding("limits", "ok", "cpu, memory, pids"))
    path = cgroup.pod_path("doctor", str(os.getpid()), state.uid)
    try:
        fd = cgroup.make(path, {})
    except (OSError, NsrunError) as error:
        found.append(_finding("cgroup tree", "limited", str(error).partition("\n")[0], "make the cgroup tree writable; or NSRUN_CGROUP=none, to do without cgroups"))  # fmt: skip
        return found
    try:
        if "cgroup.kill" not in os.listdir(fd):
            found.append(_finding("cgroup.kill", "limited", "it came with Linux 5.14: a member's stray children are not killed with it", "use a newer kernel"))  # fmt: skip
    finally:
        ident = os.fstat(fd).st_ino
        os.close(fd)
        cgroup.remove(path, ident)
        cgroup.remove_empty(state.uid)
    return found


def _user_namespaces(state: State) -> list[Finding]:
    """Check what owned pods need, and what pods without root need besides."""
    import shutil

    from nsrun.host import userns

    refusal = userns.forbidden()
    found = [
        _finding("user namespaces", "limited", "users can't make them; pods that root makes are not affected", refusal)
        if refusal
        else _finding("user namespaces", "ok", "users may make them")
    ]
    try:
        user = userns.User(str(state.uid)) if state.uid else userns.owner_of(None, dict(os.environ))
        if user:
            maps = userns.maps_of(user)
            found.append(_subordinate(user, maps))
    except NsrunError as error:
        found.append(_finding("subordinate ids", "limited", error.message, error.hint))
    lacking = [(program, package) for program, package in (("newuidmap", "uidmap"), ("pasta", "passt")) if not shutil.which(program)]  # fmt: skip
    if lacking:
        what = (
            "pods without root, and images in a user's own store,"
            if lacking[0][0] == "newuidmap"
            else "the network of pods without root"
        )
        found.append(_finding("without root", "limited", f"{what} need {', '.join(p for p, _ in lacking)}", f"apt-get install {' '.join(p for _, p in lacking)}"))  # fmt: skip
    elif state.uid and not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        found.append(_finding("without root", "limited", "pasta may not open /dev/net/tun", "sudo modprobe tun; sudo chmod 0666 /dev/net/tun"))  # fmt: skip
    else:
        found.append(_finding("without root", "ok", "newuidmap, pasta"))
    return found


def _subordinate(user: Any, maps: Any) -> Finding:
    """Report how many ids this user's pods have; images and members' users may need more than there are."""
    from nsrun.host import userns
    from nsrun.spec import idmaps

    count = min(idmaps.size(ranges) for ranges in maps.values())
    text = f"{user.name}: {count} ids in a pod"
    if count > userns.WANTED:
        return _finding("subordinate ids", "ok", text)
    if idmaps.to_host(maps["gid"], 5) < 0:
        text += ", without group 5, so terminals belong to their user alone"
    return _finding(
        "subordinate ids", "limited", f"{text}: larger ids of files and users are impossible", userns.usermod(user)
    )


def _apparmor() -> Finding:
    if read_setting("/sys/module/apparmor/parameters/enabled") == "Y":
        return _finding("AppArmor", "ok", "profiles by name: --security-opt apparmor=PROFILE")
    return _finding("AppArmor", "ok", "not in this kernel; --security-opt apparmor=… is refused")


def _firewall() -> Finding:
    from nsrun.host import net
    from nsrun.host.bridges import BRIDGE, without_tables

    try:
        if why := without_tables(thoroughly=True):
            return _finding("forwarding", "limited", f"nothing is, to and from pods: {why}", "modprobe nf_tables")
        chains = net.foreign_drops(True)
    except OSError as error:
        return _finding(
            "forwarding",
            "limited",
            f"can't find out whether another table drops packets: {error}",
            "run as root, with CAP_NET_ADMIN",
        )
    if chains:
        which = (
            f"the chain {chains[0]!r} drops" if len(chains) == 1 else f"the chains {', '.join(map(repr, chains))} drop"
        )
        return _finding(
            "forwarding", "limited", f"{which} forwarded packets; an accept elsewhere can't undo that",
            net.firewall_fix(chains, BRIDGE),
        )  # fmt: skip
    on = read_setting("/proc/sys/net/ipv4/ip_forward") == "1"
    return _finding(
        "forwarding",
        "ok",
        "no other table drops packets" + ("" if on else "; ip_forward is off, pod create enables it"),
    )


def _bridges() -> list[Finding]:
    """Tell of pods that this host's packets do not reach: a VPN may have come, or a bridge have gone, since they were made."""
    from nsrun.host import bridges, net

    found = []
    for link in sorted(filter(bridges.is_bridge, net.interfaces())):
        if fate := bridges.astray(link):
            what, how = fate
            anew = (
                "its next first pod gets another subnet"
                if link == bridges.BRIDGE
                else "nsrun network rm, and create it with another subnet"
            )
            fix = f"{how} show why; if that is to stay, remove the pods on {link}: {anew}"
            text = f"packets for pods on {link} ({bridges.current_subnet(link)}) {what}"
            found.append(_finding("bridges", "limited", text, fix))
    if lost := bridges.on_no_bridge():
        text = f"pods are on none: {', '.join(lost)}; it was removed, or they were taken from it"
        found.append(_finding("bridges", "limited", text, "nsrun pod ls shows which they are; remove them, and create them anew"))  # fmt: skip
    return found or [_finding("bridges", "ok", "each pod is on one, and no route leads around it")]


def _connections() -> Finding:
    """Tell whether this host can track more connections, by nat and by the forwarder; nf_conntrack-sysctl.rst."""
    from nsrun.host.conntrack import room

    count, most = room()
    if not most:
        return _finding("connections", "ok", "there is no limit of those that are tracked")
    text = f"{count} of {most} connections are tracked"
    if count < most * 19 // 20:
        return _finding("connections", "ok", text)
    return _finding(
        "connections",
        "limited",
        f"{text}: when all are, new ones are dropped, those to and from pods too",
        f"sysctl net.netfilter.nf_conntrack_max={2 * most}",
    )


def _images() -> Finding:
    import shutil

    if not shutil.which("skopeo"):
        return _finding("images", "limited", "image load works; image pull needs skopeo", "apt-get install skopeo")
    return _finding("images", "ok", "image load; image pull through skopeo")


def _filters() -> Finding:
    try:
        import pyseccomp  # type: ignore[import-untyped]  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:
        return _finding("seccomp", "missing", f"members need --security-opt seccomp=unconfined: {error}", "apt-get install libseccomp2")  # fmt: skip
    return _finding("seccomp", "ok", "filters are compiled by libseccomp, once")


def _programs() -> Finding:
    from nsrun.kernel import LIBEXEC, PROGRAMS

    lacking = [name for name in PROGRAMS if not os.access(f"{LIBEXEC}/nsrun-{name}", os.R_OK)]
    if lacking:
        return _finding("programs", "missing", f"{LIBEXEC} lacks nsrun-{', nsrun-'.join(lacking)}", "make build")
    size = sum(os.path.getsize(f"{LIBEXEC}/nsrun-{name}") for name in PROGRAMS)
    return _finding("programs", "ok", f"{', '.join(PROGRAMS)}: {size} bytes in all")


def _replay(state: State) -> Finding:
    """Tell how many compiled plans there are, by which a command needs no Python (docs/replay.md)."""
    if os.environ.get("NSRUN_REPLAY") == "0":
        return _finding("replay", "limited", "NSRUN_REPLAY=0: every command needs Python", "unset NSRUN_REPLAY")
    try:
        names = os.listdir(f"{state.run}/plans")
    except FileNotFoundError:
        names = []
    except OSError as error:
        return _finding("replay", "limited", f"{state.run}/plans: {error.strerror}", f"rm -r {state.run}/plans")
    count = sum(len(name) == 16 for name in names)
    return _finding("replay", "ok", f"{count} compiled plans in {state.run}/plans")


def _left(state: State, lost: list[orphans.Process]) -> list[Finding]:
    """Report what no note speaks of, the processes that were `lost` among it, and notes that can't be trusted."""
    from nsrun.state import orphans

    found, fix = [], "nsrun pod prune"
    state.all("pods"), state.all("members")
    for path, why in state.broken.items():
        found.append(
            _finding("damaged note", "limited", f"{path}: {why}", f"{fix} sets it aside once nothing of it lives")
        )
    for process in lost:
        found.append(_finding("orphan", "limited", str(process), f"{fix} ends it"))
    for path, count in orphans.cgroups(state):
        found.append(
            _finding("cgroup", "ok", f"{path}: {count} processes, of no pod in {state.run}; perhaps of another --root")
        )
    for data in orphans.data(state):
        found.append(
            _finding("data", "limited", f"no note speaks of {data}", f"{fix} --all removes what is not in use")
        )
    return found


def examine(state: State) -> list[Finding]:
    """Check everything, in the order in which a pod needs it.

    For an ordinary user it is checked in a user namespace of their own, if they can have one.
    """
    from nsrun.state import orphans

    found = [
        _finding("kernel", "ok", f"{os.uname().sysname} {os.uname().release} {os.uname().machine}"),
        _programs(),
        _memfd(state),
    ]
    groups = _cgroups(state)
    users = _user_namespaces(state)
    lost = orphans.processes(state)  # from a user namespace of our own we could not look into those of another
    if state.uid:
        found.append(
            _finding("privileges", "ok", "an ordinary user: pods without root, and pods that root made for you")
        )
        try:
            from nsrun.host import userns

            userns.enter(state.uid)
        except (OSError, NsrunError) as error:
            found.append(
                _finding("a namespace of yours", "missing", str(error).partition("\n")[0], getattr(error, "hint", ""))
            )
            return found + groups + users + _left(state, lost)
    else:
        found.append(_privileges())
        found += _nested()
        if kernel.in_userns():
            kernel.own_mounts()
    found.append(_proc())
    found.append(_namespaces())
    found.append(_try("pidfd", _pidfd, "Linux 5.3 or newer"))
    found.append(_try("openat2", _openat2, "Linux 5.6 or newer"))
    found.append(
        _try(
            "detached mounts",
            lambda: os.close(kernel.mount_new("tmpfs", [], 0)),
            "Linux 5.2 or newer, and CAP_SYS_ADMIN",
        )
    )
    found.append(
        _try(
            "overlay",
            lambda: _overlay(state),
            "modprobe overlay; or --root DIR on a file system that can carry one; or join --writable",
        )
    )
    found.append(_try("id-mapped mounts", lambda: _idmap(state), "Linux 5.12 or newer", needed=False))
    from nsrun.host import bridges

    if not state.uid and bridges.in_our_power():
        found.append(
            _try(
                "published ports",
                _owner_table,
                "modprobe nf_tables nft_chain_nat nft_fib_ipv4 nft_fib_ipv6 nft_masq veth bridge sch_ingress cls_bpf; Linux 5.14 or newer",
                needed=False,
            )
        )
    found.append(_filters())
    found.append(_images())
    found += groups
    found += users
    found.append(_apparmor())
    found += [_replay(state)] if not state.uid else []
    found += _left(state, lost)
    found += [_ipv6(), _firewall(), *_bridges(), _connections()] if not state.uid else []
    return found


def report(findings: list[Finding]) -> str:
    mark = {"ok": "ok     ", "limited": "limited", "missing": "MISSING"}
    lines = []
    for finding in ({key: printable(text) for key, text in finding.items()} for finding in findings):
        lines.append(f"{mark[finding['status']]}  {finding['what']:<17} {finding['detail']}".rstrip())
        if finding["fix"] and finding["status"] != "ok":
            lines.append(f"{'':27}to get it: {finding['fix']}")
    return "\n".join(lines) + "\n"
