# SPDX-License-Identifier: Apache-2.0
"""The owner of a pod, the maps of its user namespace, and how a process gets into it.

An owned pod's namespaces belong to a user namespace whose id 0 is the owner and whose ids from 1 on are the owner's
subordinate ids: root in the pod has no power outside it.  Root makes it (bridge, ports, maps, cgroup).  The owner then
needs no privilege and no setuid program to join, because the kernel gives the owner of a user namespace every
capability in it.  user_namespaces(7), subuid(5), subgid(5), newuidmap(1).
"""

from __future__ import annotations

import os
from errno import EPERM

from nsrun import kernel
from nsrun._protocol import DEFAULT_PATH
from nsrun.errors import BadInput, KernelError, NsrunError, told
from nsrun.kernel import nsrun_command
from nsrun.schema import is_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsrun.types import Maps, Nested, Ranges

MAX_RANGES = 300  # of the 340 that the kernel accepts since 4.15
WANTED = 65536


class User:
    """An account of this machine: name, uid, gid, home, groups."""

    def __init__(self, word: str) -> None:
        """Look the account up by name or uid.  Raise BadInput when there is none."""
        import pwd

        try:
            entry = pwd.getpwuid(int(word)) if is_number(word) else pwd.getpwnam(word)
        except (KeyError, OverflowError, ValueError):
            raise BadInput(f"this machine has no user {word!r}", hint="getent passwd lists them") from None
        self.name, self.uid, self.gid, self.home = entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir

    @property
    def groups(self) -> list[int]:
        return os.getgrouplist(self.name, self.gid)


def name_of(uid: int) -> str:
    """Return the name of the account with this uid, or the number when it has been removed."""
    try:
        return User(str(uid)).name
    except BadInput:
        return str(uid)


#: What sudo(8), doas(1) and pkexec(1) call the user who called them.
CALLERS = ("SUDO_UID", "DOAS_USER", "PKEXEC_UID")


def caller_of(environ: dict[str, str]) -> str:
    """Return the caller of sudo(8), doas(1) or pkexec(1), a uid or a name; "0" when there is none.

    Root's environment names them.  Raise BadInput when two of its variables name different users, or one names no user.
    """
    found: dict[str, str] = {}
    for variable in CALLERS:
        word = environ.get(variable)
        if word is None:
            continue
        if not word or (variable != "DOAS_USER" and not is_number(word)):
            raise BadInput(f"{variable}={word!r} does not name a user", hint="--owner USER says whose the pod is")
        found[variable] = "0" if word == "root" else word
    if len(set(found.values())) > 1 and len({User(word).uid for word in found.values()}) > 1:
        told = ", ".join(f"{variable}={environ[variable]}" for variable in found)
        raise BadInput(f"{told} name different users", hint="--owner USER says whose the pod is")
    return next(iter(found.values()), "0")


def owner_of(word: str | None, environ: dict[str, str]) -> User | None:
    """Return for whom root makes a pod: --owner, or the caller of sudo, doas or pkexec.

    Return None for root itself, whose pod has no user namespace.  Raise BadInput when there is no such account, or when
    it is not clear who the caller is.
    """
    if word is None:
        word = caller_of(environ)
    if not word:
        raise BadInput("--owner is empty", hint="is a shell variable unset?")
    if word in ("0", "root"):  # looking up the account would cost a millisecond
        return None
    user = User(word)
    return user if user.uid else None


def has_ids(user: User) -> bool:
    """Return whether a user has any subordinate ids."""
    return any(_subordinate(path, user) for path in ("/etc/subuid", "/etc/subgid"))


def _subordinate(path: str, user: User) -> Ranges:
    """Return a user's [first, count] … in /etc/subuid or /etc/subgid, by name or by uid, as shadow's tools read it."""
    found: Ranges = []
    try:
        with open(path, errors="surrogateescape", newline="\n") as file:
            lines = file.read(1 << 20).split("\n")
    except OSError:
        return []
    for line in lines:
        who, _, rest = line.partition(":")
        first, _, count = rest.partition(":")
        if who in (user.name, str(user.uid)) and is_number(first) and is_number(count):
            if int(count) and int(first) and int(first) + int(count) <= 1 << 32:
                found.append([int(first), int(count)])
    return found


def maps_of(user: User) -> Maps:
    """Return the maps in which 0 is the user and 1… are the user's subordinate ids.

    Raise BadInput when the user has none; the hint is the command that adds some.
    """
    maps: Maps = {}
    for kind, path, own in (("uid", "/etc/subuid", user.uid), ("gid", "/etc/subgid", user.gid)):
        ranges = _subordinate(path, user)
        if not ranges:
            raise BadInput(
                f"user {user.name!r} has no range in {path}: their pods need subordinate ids",
                hint=f"{usermod(user)}   (subuid(5)); or make a pod for root, without a user namespace: sudo nsrun pod create --owner root",
            )
        inside, found = 1, [[0, own, 1]]
        for first, count in ranges[: MAX_RANGES - 1]:
            found.append([inside, first, count])
            inside += count
        maps[kind] = found
    return maps


def usermod(user: User) -> str:
    """Return the command that gives a user subordinate ids which no other user has."""
    first = free_ids()
    last = first + WANTED - 1
    return f"sudo usermod --add-subuids {first}-{last} --add-subgids {first}-{last} {user.name}"


def free_ids() -> int:
    """Return the first of as many ids as a user needs that are nobody's in /etc/subuid and /etc/subgid.

    They are above all that are taken; where some reach too far up, in the first gap.
    """
    taken: list[tuple[int, int]] = []
    for path in ("/etc/subuid", "/etc/subgid"):
        try:
            with open(path, errors="surrogateescape", newline="\n") as file:
                for line in file:
                    first, count = [*line.rstrip("\n").split(":"), "", ""][1:3]
                    if is_number(first) and is_number(count):
                        taken.append((int(first), int(first) + int(count)))
        except OSError:
            continue
    top = max([100000, *(end for _, end in taken)])
    if top + WANTED < 1 << 32:
        return top
    gap = 100000
    for begin, end in sorted(taken):
        if begin >= gap + WANTED:
            break
        gap = max(gap, end)
    return gap


def around() -> Nested | None:
    """Return {"maps", "setgroups"} of the user namespace that we are in; None when it is the initial one.

    user_namespaces(7): its ids are those of uid_map and gid_map, and setgroups(2) is denied for good where an ordinary
    user wrote the maps alone (`unshare -Ur`).
    """
    if not kernel.in_userns():
        return None
    maps: Maps = {}
    for kind in ("uid", "gid"):
        with open(f"/proc/thread-self/{kind}_map", errors="surrogateescape") as file:
            maps[kind] = [[int(number) for number in line.split()] for line in file]
    with open("/proc/thread-self/setgroups", errors="surrogateescape") as file:
        return {"maps": maps, "setgroups": file.read().strip() == "allow"}


def check_within(user: User, maps: Maps, here: Nested) -> None:
    """Raise BadInput when ids of a pod for this user are not in the user namespace that we are in (see around)."""
    for kind, ranges in maps.items():
        for _, first, count in ranges:
            if not any(i <= first and first + count <= i + n for i, _, n in here["maps"][kind]):
                raise BadInput(
                    f"a pod of {user.name} needs the {kind}s {first} to {first + count - 1}, which this user namespace does not have",
                    hint="cat /proc/self/uid_map; or make the pod for the root of this user namespace: --owner root",
                )


def owns_network() -> bool:
    """Return whether the network namespace that we are in belongs to our user namespace.

    ioctl_ns(2), NS_GET_USERNS.
    """
    from fcntl import ioctl

    net = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        owner = ioctl(net, 0xB701)
    except PermissionError:
        return False  # it belongs to an outer one
    finally:
        os.close(net)
    try:
        return os.fstat(owner).st_ino == os.stat("/proc/thread-self/ns/user").st_ino
    finally:
        os.close(owner)


def make(user: tuple[int, int], maps: Maps) -> int:
    """Return a descriptor of a new user namespace that belongs to `user` (uid, gid).

    Root writes the maps itself; for a user, newuidmap(1) and newgidmap(1) do it, which read /etc/subuid and
    /etc/subgid.  Raise KernelError or BadInput with the setting that forbids it and the remedy.
    """
    root = os.geteuid() == 0
    try:
        return kernel.new_userns(user if root else None, lambda pid: (_write if root else _ask)(pid, maps))
    except KernelError as error:
        if error.errno == EPERM:
            raise BadInput(f"this machine forbids user namespaces: {error}", hint=forbidden(), errno=EPERM) from None
        raise


def _write(pid: int, maps: Maps) -> None:
    for kind in ("gid", "uid"):
        with kernel.Fd(os.open(f"/proc/{pid}/{kind}_map", os.O_WRONLY | os.O_CLOEXEC)) as fd:
            os.write(fd, "".join(f"{i} {o} {n}\n" for i, o, n in maps[kind]).encode())  # one write(2), or EPERM


def _ask(pid: int, maps: Maps) -> None:
    for kind in ("gid", "uid"):
        command = [f"new{kind}map", str(pid), *(str(n) for line in maps[kind] for n in line)]
        with kernel.Fd(os.memfd_create("errors", os.MFD_CLOEXEC)) as errors:
            try:
                child = os.posix_spawnp(
                    command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, errors, 2)], setsigmask=[]
                )
            except FileNotFoundError:
                raise NsrunError(
                    f"{command[0]} is missing: it writes the maps of a user namespace that is made without root",
                    hint="apt-get install uidmap",
                ) from None
            if os.waitpid(child, 0)[1]:
                said = "; ".join(filter(None, os.fsdecode(os.pread(errors, 1000, 0)).split("\n")))
                raise NsrunError(
                    f"{command[0]} failed: {said}", hint="it must be set-user-ID root, and /etc/subuid must be right"
                )


def forbidden() -> str:
    """Return which setting of this machine forbids ordinary users their own user namespaces; "" when none does."""
    for path, bad, fix in (
        ("kernel/unprivileged_userns_clone", "0", "sudo sysctl kernel.unprivileged_userns_clone=1"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0"),
        ("user/max_user_namespaces", "0", "sudo sysctl user.max_user_namespaces=10000"),
    ):  # fmt: skip
        try:
            with open(f"/proc/sys/{path}", errors="surrogateescape") as file:
                if file.read().strip() == bad:
                    return f"{path.replace('/', '.')} is {bad}: {fix}; or let root make the pod: sudo nsrun pod create"
        except OSError:
            continue
    return ""


def enter(uid: int) -> None:
    """Make a user namespace of the caller's own and enter it for good: what their images and members write has its ids.

    Root stays where it is; root of a user namespace gets a mount namespace over which it has power.  Raise BadInput or
    NsrunError with what forbids it.
    """
    if os.geteuid():
        user = User(str(uid))
        fd = make((user.uid, user.gid), maps_of(user))
        kernel.enter_userns(fd)
        os.close(fd)
    elif kernel.in_userns() and not uid:  # otherwise we have just entered it
        kernel.own_mounts()


def call(root: str, *arguments: str) -> bytes:
    """Run one of nsrun's hidden commands (see cli) in such a user namespace, in a child process; return its output.

    Raise NsrunError with its message.
    """
    import subprocess

    # root that has become a pod's owner still has root's terminal, which processes that the owner can trace must not
    # get
    done = subprocess.run(
        nsrun_command(root, *arguments),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        start_new_session=True,
        check=False,
    )
    if done.returncode:
        message, hint = told(done.stderr)
        raise NsrunError(message, hint=hint)
    return done.stdout


#: The variables of root's environment that are kept: the terminal, the language, and the place of nsrun's cgroups.
_KEPT = (
    "TERM", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "LC_COLLATE", "LC_MESSAGES", "LC_MONETARY", "LC_NUMERIC", "LC_TIME",
    "NSRUN_CGROUP",
)  # fmt: skip


def environment_of(user: User, caller: dict[str, str]) -> dict[str, str]:
    """Return the environment of what root starts as this user: only the variables listed here.  Pure."""
    own = {"HOME": user.home, "USER": user.name, "LOGNAME": user.name, "PATH": DEFAULT_PATH}
    return {**{name: caller[name] for name in _KEPT if name in caller}, **own}


def become(user: User) -> None:
    """As root, become an ordinary user for good: keep nothing of root's session, and no more power than the user has.

    Standard input, output and error stay.  On KernelError the process must end.
    """
    environment = environment_of(user, dict(os.environ))
    kernel.become(user.uid, user.gid, user.groups)
    _take_limits()
    os.environ.clear()
    os.environ.update(environment)


#: The limits of a user who has no process with which we could compare.
_MODEST = {
    "RLIMIT_NPROC": 64,
    "RLIMIT_NOFILE": 1024,
    "RLIMIT_CORE": 0,
    "RLIMIT_MEMLOCK": 8 << 20,
    "RLIMIT_SIGPENDING": 64,
}


def _take_limits() -> None:
    """Lower each limit to the highest that a process of the user has, since root's own may be higher.

    We ask as the user, so the kernel tells of no other user's process (prlimit(2)), nor of a nsrun-door, which has
    limits of root (csrc/door.c, guarded_gid).  A pause may not fork and says nothing (csrc/session.h, least_limits): with
    its limits we could start no member apart.
    """
    import resource

    numbers = range(16)  # RLIM_NLIMITS
    endless = resource.RLIM_INFINITY

    def size(value: int) -> float:
        return float("inf") if value == endless else value

    found: dict[int, tuple[int, int]] = {}
    for pid in map(int, filter(is_number, os.listdir("/proc"))):
        try:
            theirs = [resource.prlimit(pid, number) for number in numbers] if pid != os.getpid() else []
        except (PermissionError, ProcessLookupError):
            continue
        if theirs and theirs[resource.RLIMIT_NPROC][1] == 1:
            continue
        for number, (soft, hard) in enumerate(theirs):
            other = found.get(number, (0, 0))
            found[number] = max(soft, other[0], key=size), max(hard, other[1], key=size)
    if not found:
        found = {getattr(resource, name): (most, most) for name, most in _MODEST.items()}
    for number, (soft, hard) in found.items():
        hard = min(hard, resource.getrlimit(number)[1], key=size)
        resource.setrlimit(number, (min(soft, hard, key=size), hard))
