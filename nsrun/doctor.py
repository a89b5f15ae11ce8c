"""`nsrun doctor`: what the kernel and the machine offer and lack, found by trying, and how to get it.

Nothing is changed: what is tried is tried in a child process's own namespaces, or on a descriptor that is closed again.
"""

from __future__ import annotations

import os
import subprocess
from errno import EEXIST, ENOSYS

from nsrun import kernel
from nsrun.errors import KernelError, NsrunError, errno_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nsrun.state import State

    Finding = dict[str, str]


def _finding(what: str, status: str, detail: str = "", fix: str = "") -> Finding:
    """status: ok, limited (nsrun works, something does not), missing (nsrun can't work)."""
    return {"what": what, "status": status, "detail": detail, "fix": fix}


def _try(what: str, action: Callable[[], object], fix: str, needed: bool = True) -> Finding:
    try:
        result = action()
        return _finding(what, "ok", result if isinstance(result, str) else "")
    except (OSError, NsrunError) as error:
        text = str(error) if isinstance(error, (KernelError, NsrunError)) else errno_text(error.errno or 0)
        return _finding(what, "missing" if needed else "limited", text, fix)


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""


def _privileges() -> Finding:
    import prctl

    wanted = (
        "sys_admin",
        "net_admin",
        "setuid",
        "setgid",
        "setpcap",
        "mknod",
        "chown",
        "dac_override",
        "kill",
        "sys_chroot",
    )
    lacking = [name for name in wanted if not getattr(prctl.cap_effective, name)]
    if lacking:
        return _finding(
            "privileges",
            "missing",
            "without " + ", ".join(f"CAP_{n.upper()}" for n in lacking),
            "run as root: sudo nsrun …",
        )
    if not prctl.cap_effective.sys_resource:
        return _finding(
            "privileges",
            "ok",
            "root without CAP_SYS_RESOURCE: hard limits can't be raised, oom_score_adj can't be lowered",
        )
    return _finding("privileges", "ok", "root")


def _namespaces() -> Finding:
    lacking = [name for name in kernel.NAMESPACES if not os.path.exists(f"/proc/self/ns/{name}")]
    if lacking:
        needed = set(lacking) - {"user", "cgroup"}
        return _finding(
            "namespaces",
            "missing" if needed else "limited",
            f"the kernel has no {', '.join(lacking)}",
            "a kernel with CONFIG_NAMESPACES",
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
            done.stderr.decode("utf-8", "replace").strip(),
            "root, and no seccomp profile that forbids unshare",
        )
    return _finding("namespaces", "ok", ", ".join(kernel.NAMESPACES))


def _overlay(state: State) -> str:
    import tempfile

    os.makedirs(state.lib, 0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=state.lib) as work:
        for part in ("lower", "upper", "work"):
            os.mkdir(f"{work}/{part}")
        options = [(f"{part}dir", f"{work}/{part}") for part in ("lower", "upper", "work")]
        os.close(kernel.mount_new("overlay", options, kernel.MOUNT_ATTR_NODEV))
    return f"on {state.lib}"


def _idmap(state: State) -> str:
    """mount_setattr with MOUNT_ATTR_IDMAP needs a user namespace; EINVAL without one shows that the call knows the flag."""
    fd = kernel.open_tree("/proc", recursive=False)
    try:
        kernel.mount_setattr(fd, set=0x100000)
    except KernelError as error:
        if error.errno == ENOSYS:
            raise
    finally:
        os.close(fd)
    return "mount_setattr knows MOUNT_ATTR_IDMAP (used by owned pods)"


def _pidfd() -> str:
    fd = kernel.pidfd_open(os.getpid())
    try:
        kernel.pidfd_send_signal(fd, 0)
    finally:
        os.close(fd)
    return "pidfd_open, pidfd_send_signal"


def _openat2() -> str:
    root = os.open("/", os.O_PATH | os.O_DIRECTORY)
    try:
        os.close(kernel.open_in_root(root, "/proc", os.O_PATH))
    finally:
        os.close(root)
    return "RESOLVE_IN_ROOT"


def _owner_table() -> str:
    """A table with an owner, in a network namespace of its own, on a socket that is closed at once."""
    from nsrun.host import net, wire

    netns = kernel.new_netns()
    try:
        with kernel.inside_netns(netns):
            with wire.open_socket(wire.NETLINK_ROUTE) as sock:
                wire.talk(sock, [("bridge", wire.encode("new_bridge", bridge=net.BRIDGE))])
            ports = [{"host_ip": "0.0.0.0", "host_port": 1, "pod_port": 1}]
            net.publish("nsrun-doctordoctor", "10.88.0.2", "10.88.0.1", ports).close()
    finally:
        os.close(netns)
    return "nf_tables nat, fib, masquerade, tables with an owner; bridge"


def _cgroups() -> list[Finding]:
    from nsrun.host import cgroup

    mount = cgroup.mount_point()
    if not mount:
        return [
            _finding(
                "cgroups",
                "limited",
                "cgroup v2 is not mounted: members are not grouped, limits do not work",
                "mount -t cgroup2 none /sys/fs/cgroup",
            )
        ]
    controllers = set(_read(f"{mount}/cgroup.controllers").split())
    lacking = [name for name in ("cpu", "memory", "pids") if name not in controllers]
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
    try:
        path = f"{mount}/{cgroup.base()}-doctor"
        os.mkdir(path)
        has_kill = os.path.exists(f"{path}/cgroup.kill")
        os.rmdir(path)
        if not has_kill:
            found.append(
                _finding(
                    "cgroup.kill",
                    "limited",
                    "came with Linux 5.14: a member's stray children are not killed with it",
                    "a newer kernel",
                )
            )
    except OSError as error:
        if error.errno != EEXIST:
            found.append(
                _finding("cgroup tree", "limited", f"{mount}: {errno_text(error.errno or 0)}", "a writable cgroup tree")
            )
    return found


def _user_namespaces(state: State) -> list[Finding]:
    """What owned pods need, and what pods without root need beside it."""
    import shutil

    from nsrun import userns

    refusal = userns.forbidden()
    found = [
        _finding(
            "user namespaces", "limited", "a user can't make them: root's and owned pods are not affected", refusal
        )
        if refusal
        else _finding("user namespaces", "ok", "users may make them")
    ]
    try:
        user = userns.User(str(state.uid)) if state.uid else userns.owner_of(None, dict(os.environ))
        if user:
            maps = userns.maps_of(user)
            found.append(_finding("subordinate ids", "ok", f"{user.name}: {userns.size(maps['uid'])} ids in a pod"))
    except NsrunError as error:
        found.append(_finding("subordinate ids", "limited", error.message, error.hint))
    lacking = [(program, package) for program, package in (("newuidmap", "uidmap"), ("pasta", "passt")) if not shutil.which(program)]  # fmt: skip
    if lacking:
        what = (
            "pods without root, and images of a user's own store,"
            if lacking[0][0] == "newuidmap"
            else "the network of pods without root"
        )
        found.append(_finding("without root", "limited", f"{what} need {', '.join(p for p, _ in lacking)}", f"apt-get install {' '.join(p for _, p in lacking)}"))  # fmt: skip
    elif state.uid and not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        found.append(_finding("without root", "limited", "pasta may not open /dev/net/tun", "sudo modprobe tun; sudo chmod 0666 /dev/net/tun"))  # fmt: skip
    else:
        found.append(_finding("without root", "ok", "newuidmap, pasta"))
    return found


def _apparmor() -> Finding:
    if _read("/sys/module/apparmor/parameters/enabled") == "Y":
        return _finding("AppArmor", "ok", "profiles by name: --security-opt apparmor=PROFILE")
    return _finding("AppArmor", "ok", "not in this kernel; --security-opt apparmor=… is refused")


def _firewall() -> Finding:
    from nsrun.host import net

    chain = net.foreign_drop()
    if chain:
        return _finding(
            "forwarding", "limited", f"the chain {chain!r} drops what is forwarded; an accept elsewhere can't undo that",
            net.firewall_fix(chain),
        )  # fmt: skip
    on = _read("/proc/sys/net/ipv4/ip_forward") == "1"
    return _finding(
        "forwarding", "ok", "no foreign table drops it" + ("" if on else "; ip_forward is off, pod create turns it on")
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
    from nsrun.plan.outside import LIBEXEC

    names = ("pause", "init", "monitor", "unpack")
    lacking = [name for name in names if not os.access(f"{LIBEXEC}/nsrun-{name}", os.R_OK)]
    if lacking:
        return _finding("programs", "missing", f"{LIBEXEC} lacks nsrun-{', nsrun-'.join(lacking)}", "make build")
    size = sum(os.path.getsize(f"{LIBEXEC}/nsrun-{name}") for name in names)
    return _finding("programs", "ok", f"{', '.join(names)}: {size} bytes in all")


def examine(state: State) -> list[Finding]:
    """Everything, in the order in which a pod needs it; for a user, in a user namespace of hers, if she can have one."""
    found = [
        _finding("kernel", "ok", f"{os.uname().sysname} {os.uname().release} {os.uname().machine}"),
        _programs(),
    ]
    users = _user_namespaces(state)
    if state.uid:
        found.append(
            _finding("privileges", "ok", "an ordinary user: pods without root, and pods that root made for you")
        )
        try:
            from nsrun import userns

            userns.enter(state)
        except (OSError, NsrunError) as error:
            found.append(
                _finding("a namespace of yours", "missing", str(error).partition("\n")[0], getattr(error, "hint", ""))
            )
            return found + users
    else:
        found.append(_privileges())
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
    if not state.uid:
        found.append(
            _try(
                "published ports",
                _owner_table,
                "modprobe nf_tables nft_chain_nat nft_fib_ipv4 nft_masq veth bridge; Linux 5.12 or newer",
                needed=False,
            )
        )
    found.append(_filters())
    found.append(_images())
    found += _cgroups() if not state.uid else []
    found += users
    found.append(_apparmor())
    found += [_firewall()] if not state.uid else []
    return found


def report(findings: list[Finding]) -> str:
    mark = {"ok": "ok     ", "limited": "limited", "missing": "MISSING"}
    lines = []
    for finding in findings:
        lines.append(f"{mark[finding['status']]}  {finding['what']:<17} {finding['detail']}".rstrip())
        if finding["fix"] and finding["status"] != "ok":
            lines.append(f"{'':27}to get it: {finding['fix']}")
    return "\n".join(lines) + "\n"
