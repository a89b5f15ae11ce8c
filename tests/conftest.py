# SPDX-License-Identifier: Apache-2.0
"""A throwaway host for the live tests.

Every test process (each xdist worker) moves itself into network, mount, IPC and UTS namespaces of its own and into
a pids cgroup before the first live test: nothing is ever done to the machine's own network or mounts, and a fork
bug ends at the limit.  Every test has its own state directory.  After each test the kernel is asked what is left.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple

import pytest
from throwaway import make_accounts

pytest_plugins = ["arena"]
HERE = pathlib.Path(__file__).parent
NSRUN = os.path.join(os.path.dirname(sys.executable), "nsrun")
#: Whether nsrun is imported from the checkout (make dev, make coverage): then Python imports site, and nothing is replayed.
EDITABLE = not (pathlib.Path(sysconfig.get_path("platlib")) / "nsrun").is_dir()
not_editable = pytest.mark.skipif(EDITABLE, reason="an editable install differs here; to enable: make test")
CACHE = pathlib.Path(os.environ.get("NSRUN_CACHE", "/var/cache/nsrun")) / "roots"
#: Accounts of the throwaway host only: two with subordinate ids, one without.
USERS = {"alice": 12001, "bob": 12002, "carol": 12003}
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWNET = 0x20000, 0x4000000, 0x8000000, 0x40000000
IN_CI = os.environ.get("CI") in ("true", "1")
ROOT = os.geteuid() == 0
#: Signals that tests send, and that a caller might ignore.
OURS = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2)
# `sudo make test`: what root makes is root's, unless a test says otherwise
for _name in ("NSRUN_ROOT", "SUDO_UID", "DOAS_USER", "PKEXEC_UID"):
    os.environ.pop(_name, None)


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to test anything but this checkout: what is built is compared with the sources, by their contents."""
    # what a shell's job in the background or nohup(1) ignores would be passed on to nsrun, which leaves it so
    for number in OURS:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    if not hasattr(config, "workerinput") and (trouble := not_this_checkout()):
        raise pytest.UsageError(trouble)
    # the temporary files of a run are in a directory of its own, which others may pass through: two runs do not meet there
    if not hasattr(config, "workerinput") and not config.option.basetemp:
        config.option.basetemp = tempfile.mkdtemp(prefix="nsrun-tests-")

        def clean() -> None:
            subprocess.run(["rm", "-rf", config.option.basetemp], check=False)  # however deep

        config.add_cleanup(clean)


def not_this_checkout() -> str:
    """Return why `import nsrun` and .venv/bin/nsrun are not what is in this checkout, and what cures it; or ""."""
    top = HERE.parent
    sys.path.insert(0, str(top / "csrc"))
    import built

    spec = importlib.util.find_spec("nsrun")
    if spec is None or spec.origin is None:
        return f"nsrun is not installed for {sys.executable}; run: make dev, then .venv/bin/pytest"
    package, sources = pathlib.Path(spec.origin).parent, top / "nsrun"
    installed = pathlib.Path(sysconfig.get_path("purelib")) / "nsrun"
    cure = "make dev" if package == sources else "make build"
    if package == sources and installed.exists():
        return f"the checkout would be tested with the programs of {installed}; run: .venv/bin/pytest, or make dev"
    try:
        digest = (package / "libexec" / built.NAME).read_text().strip()
    except FileNotFoundError:
        return f"nothing is built in {package}; run: {cure}"
    if digest != built.digest(top):
        return f"what is built in {package} is not from the sources of this checkout (csrc/, setup.py, …); run: {cure}"
    if package != sources:
        kinds, generated = ("*.py", "*.pyi", "*.json"), ("_templates.py", "_protocol.py")
        here, there = (
            {p.relative_to(d): p for kind in kinds for p in d.rglob(kind) if p.name not in generated}
            for d in (sources, package)
        )
        for name in sorted(here.keys() | there.keys()):
            if not (name in here and name in there and here[name].read_bytes() == there[name].read_bytes()):
                return f"nsrun/{name} is not as installed in {package.parent}; run: {cure} (or make dev, once)"
        pages = {path.name: path.read_bytes() for path in (top / "docs/labs").glob("[0-9]*.md")}
        if pages != {path.name: path.read_bytes() for path in (package / "teach/labs/pages").glob("*.md")}:
            return f"docs/labs is not as installed in {package.parent}; run: {cure} (or make dev, once)"
    return ""


def need(condition: object, why: str, enable: str) -> None:
    """Skips, saying how to enable the test; in CI a test that can't run fails."""
    if not condition:
        (pytest.fail if IN_CI else pytest.skip)(f"{why}; to enable: {enable}")


def _libc(call: str, *args: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, call)(*args) != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{call}{args}: {os.strerror(errno)}")


def sh(*command: object, timeout: float = 60, check: bool = True, **kwargs) -> subprocess.CompletedProcess[str]:
    """Every command of a test is timed out; its words and output stand in the failure."""
    words = [str(word) for word in arguments(*command)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False, **kwargs)
    if check:
        assert done.returncode == 0, f"{' '.join(words)} → {done.returncode}\n{done.stdout}{done.stderr}"
    return done


def tables() -> list[tuple[str, str]]:
    """(family, name) of every table of nf_tables, from nft's text: as JSON, 1.0.6 crashes over one that has an owner."""
    lines = sh("nft", "list", "tables").stdout.splitlines()
    return sorted((family, name) for _, family, name in map(str.split, lines))


def open_files(pid: int) -> list[str]:
    """What the descriptors of a process are (proc_pid_fd(5)), which tells what it waits for."""
    found = []
    for file in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
            found.append(os.readlink(file))
    return found


class Forwarded(NamedTuple):
    """An element of a map of nf_tables: whatever comes in at the address and port goes to the pod's port."""

    family: str
    map: str
    address: str  # "": any
    port: int
    pod_port: int


def forwarded() -> list[Forwarded]:
    """What the kernel's maps forward, from nft's text: as JSON, 1.0.6 prints half of it where a table has an owner."""
    found, family, name = [], "", ""
    for line in sh("nft", "list", "maps").stdout.splitlines():
        if line.startswith("table "):
            family = line.split()[1]
        elif line.startswith("\tmap "):
            name = line.split()[1]
        else:
            for key, value in re.findall(r"([^\s,{][^,{]*) : (\S+ \. \d+)", line):
                address, _, port = key.rpartition(" . ")
                found.append(Forwarded(family, name, address, int(port), int(value.rpartition(" . ")[2])))
    return found


class ThrowawayHost:
    """Made once per test process."""

    def __init__(self) -> None:
        initial = os.stat("/proc/thread-self/ns/net").st_ino
        self.cgroups: list[str] = []
        self._limit_processes()
        _libc("unshare", CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS)
        assert os.stat("/proc/thread-self/ns/net").st_ino != initial, (
            "live tests refuse to run in the initial network namespace"
        )
        _libc("mount", b"none", b"/", None, 0x4000 | (1 << 18), None)  # MS_REC|MS_PRIVATE
        _libc("mount", b"tmpfs", b"/run", b"tmpfs", 0, b"mode=755")
        if os.path.isdir("/etc/security/limits.d"):  # a class writes there
            _libc("mount", b"tmpfs", b"/etc/security/limits.d", b"tmpfs", 0, b"mode=755")
        os.makedirs("/dev/net", exist_ok=True)
        _libc("mount", b"tmpfs", b"/dev/net", b"tmpfs", 0, b"mode=755")
        os.mknod("/dev/net/tun", 0o20666, os.makedev(10, 200))
        os.chmod("/dev/net/tun", 0o666)
        make_accounts(USERS, ["carol"], [NSRUN, HERE.parent / "nsrun/__init__.py"])
        sh("ip", "link", "set", "lo", "up")
        # an uplink with a neighbour behind it: "another host"
        self.neighbour = subprocess.Popen(["unshare", "--net", "sleep", "3600"], start_new_session=True)
        while os.stat(f"/proc/{self.neighbour.pid}/ns/net").st_ino == os.stat("/proc/thread-self/ns/net").st_ino:
            time.sleep(0.01)
        sh("ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1", "netns", self.neighbour.pid)
        sh("ip", "address", "add", "192.0.2.1/24", "dev", "up0")
        sh("ip", "link", "set", "up0", "up")
        for words in ("address add 192.0.2.9/24 dev up1", "link set up1 up", "link set lo up"):
            sh("nsenter", "-t", self.neighbour.pid, "-n", "ip", *words.split())
        sh("ip", "route", "add", "default", "via", "192.0.2.9")

    def _limit_processes(self) -> None:
        name = f"nsrun-test-{os.getpid()}"
        os.environ["NSRUN_CGROUP"] = name
        for base, v2 in (("/sys/fs/cgroup/pids", False), ("/sys/fs/cgroup", True)):
            if not os.path.exists(f"{base}/cgroup.procs") or (
                v2 and "pids" not in pathlib.Path(f"{base}/cgroup.subtree_control").read_text()
            ):
                continue
            path = f"{base}/{name}-limit"
            os.makedirs(path, exist_ok=True)
            pathlib.Path(f"{path}/pids.max").write_text("700")
            pathlib.Path(f"{path}/cgroup.procs").write_text(str(os.getpid()))
            self.cgroups.append(path)
            return

    def close(self) -> None:
        self.neighbour.kill()
        self.neighbour.wait()
        for path in self.cgroups:
            pathlib.Path(os.path.dirname(path), "cgroup.procs").write_text(str(os.getpid()))
            for _ in range(50):
                try:
                    os.rmdir(path)
                    break
                except OSError:
                    time.sleep(0.1)


@pytest.fixture(scope="session")
def throwaway_host():
    need(ROOT, "live tests need root", "sudo make test")
    need(os.path.exists(NSRUN), f"{NSRUN} is not installed", "make build")
    host = ThrowawayHost()
    yield host
    host.close()


def arguments(*words: object) -> list[object]:
    """The arguments of a command, of which the first may be a whole line: "join p --rootfs {} true", with a value for each {}."""
    if not words or not isinstance(words[0], str) or " " not in words[0]:
        return list(words)
    rest = list(words[1:])
    line = [rest.pop(0) if word == "{}" else word for word in shlex.split(words[0])]
    return [*line, *rest]


#: Where the notes and the data of pods and members are, in a state directory.
KINDS = ("run/pods", "run/members", "run/tmp", "lib/upper")


class Host:
    """One test's view: `nsrun` with a state directory of its own."""

    def __init__(self, throwaway: ThrowawayHost, root: pathlib.Path) -> None:
        self.throwaway, self.root = throwaway, root
        self.env = {**os.environ, "NSRUN_ROOT": str(root), "NSRUN_SUBNET": "", "NSRUN_SUBNET6": ""}

    def words(self, *words: object) -> list[str]:
        """A command line, as whom it is to run."""
        return [str(word) for word in words]

    def run(
        self, *words: object, check: bool = True, timeout: float = 60, **kwargs
    ) -> subprocess.CompletedProcess[str]:
        env = {**self.env, **kwargs.pop("env", {})}
        return sh(NSRUN, *arguments(*words), check=check, timeout=timeout, env=env, **kwargs)

    def fails(self, code: int, *words: object, **kwargs) -> str:
        """Must exit with `code`; gives stderr, which must hold a message and never a traceback."""
        done = self.run(*words, check=False, **kwargs)
        assert done.returncode == code, f"{words} → {done.returncode}\n{done.stdout}{done.stderr}"
        assert done.stderr.startswith("nsrun: "), done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
        return done.stderr

    def start(self, name: str, rootfs: object, *command: str, options: Sequence[object] = (), **kwargs):
        """A detached member of the pod "pause"."""
        return self.run("join", "pause", "-d", "--name", name, *options, "--rootfs", rootfs, "--", *command, **kwargs)

    def json(self, *words: object) -> list[dict]:
        return json.loads(self.run(*words, "--json").stdout)

    def member(self, name: str) -> dict:
        return self.json("inspect", name)[0]

    def pod(self, name: str = "pause") -> dict:
        return self.json("pod", "inspect", name)[0]

    def background(self, *words: object, **kwargs) -> subprocess.Popen:
        return subprocess.Popen([NSRUN, *map(str, arguments(*words))], env=self.env, **kwargs)

    def snapshot(self) -> dict[str, object]:
        """What the kernel knows and a leak would change, when nothing of a command goes on."""
        settled()
        links = sorted(name for _, name in socket.if_nameindex())
        mounts = pathlib.Path("/proc/thread-self/mountinfo").read_text()
        kinds = (*KINDS, "owned/*", *(f"users/*/{kind}" for kind in KINDS))
        notes = sorted(str(p.relative_to(self.root)) for kind in kinds for p in self.root.glob(f"{kind}/*"))
        return {
            "links": links,
            "tables": tables(),
            "mounts": mounts,
            "notes": notes,
            "cgroups": self.cgroups(),
            "processes": processes(),
        }

    def cgroups(self) -> list[str]:
        name, found = os.environ["NSRUN_CGROUP"], []
        for base in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup") if name else ():
            for directory, _, _ in os.walk(f"{base}/{name}"):  # which passes over what goes meanwhile
                found.append(directory)
        return found


class UserHost(Host):
    """The same as an ordinary user, with a home and directories of her own."""

    def __init__(self, host: Host, name: str) -> None:
        super().__init__(host.throwaway, host.root)
        self.name, self.uid = name, USERS[name]
        self.home = host.root / "home" / name
        host.root.chmod(0o711)
        for path in (host.root / "home", self.home, host.root / "users", host.root / "users" / str(self.uid)):
            path.mkdir(exist_ok=True)
            path.chmod(0o711)
        for path in (self.home, host.root / "users" / str(self.uid)):
            path.chmod(0o700)
            os.chown(path, self.uid, self.uid)
        self.env = {**self.env, "HOME": str(self.home), "USER": name}

    def words(self, *words: object) -> list[str]:
        return ["setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--init-groups", *map(str, words)]

    def run(
        self, *words: object, check: bool = True, timeout: float = 60, **kwargs
    ) -> subprocess.CompletedProcess[str]:
        env = {**self.env, **kwargs.pop("env", {})}
        return sh(*self.words(NSRUN, *arguments(*words)), check=check, timeout=timeout, env=env, cwd="/", **kwargs)

    def sh(self, *words: object, **kwargs) -> subprocess.CompletedProcess[str]:
        return sh(*self.words(*arguments(*words)), env=self.env, cwd="/", **kwargs)

    def background(self, *words: object, **kwargs) -> subprocess.Popen:
        return subprocess.Popen(self.words(NSRUN, *arguments(*words)), env=self.env, cwd="/", **kwargs)

    def close(self) -> None:
        """Remove what she has; what is only root's, root removes."""
        if not there(self.root / f"users/{self.uid}"):
            return
        names = [pod["name"] for pod in self.json("pod", "ls")]
        if names:
            self.run("pod", "rm", "-f", *names)
        for member in self.json("ls", "-a"):
            self.run("rm", "-f", member["name"])
        self.run("pod", "prune", "--all")


def there(base: pathlib.Path, *kinds: str) -> bool:
    """Whether there is anything of these kinds, or of any, in a state directory."""
    return any(any(base.glob(f"{kind}/*")) for kind in kinds or KINDS)


def _lives(pid: str) -> bool:
    return pathlib.Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")


def in_background() -> list[int]:
    """The processes of this throwaway host to which commands have left something (nsrun/cli/later.py)."""

    def is_later(pid: str) -> bool:
        try:
            if pathlib.Path(f"/proc/{pid}/comm").read_text(errors="replace") != "nsrun-later\n":
                return False
            return _lives(pid) and os.stat(f"/proc/{pid}/ns/net").st_ino == mine
        except OSError:
            return False

    mine = os.stat("/proc/thread-self/ns/net").st_ino
    return [int(pid) for pid in filter(str.isdigit, os.listdir("/proc")) if is_later(pid)]


def settled() -> None:
    """Wait until there are none of them."""
    wait_for(lambda: not in_background(), what="nothing goes on in the background")


def processes() -> list[str]:
    """nsrun's own processes in this throwaway host (by network namespace or parentage they are ours: by cgroup)."""
    found = []
    mine = os.stat("/proc/thread-self/ns/net").st_ino
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            comm = pathlib.Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()  # any name, of anybody
            if comm == "nsrun-forward" and _lives(pid):  # it is in the network namespace of its pod
                if f"/nsrun-test-{os.getpid()}" in pathlib.Path(f"/proc/{pid}/cgroup").read_text():
                    found.append(f"{pid} {comm}")
                continue
            if (
                (
                    comm in ("nsrun-monitor", "nsrun-init", "nsrun-door", "nsrun-hold")
                    or comm.startswith(("passt", "pasta"))
                )
                and _lives(pid)
                and os.stat(f"/proc/{pid}/ns/net").st_ino == mine
            ):
                found.append(f"{pid} {comm}")
        except OSError:
            continue
    return sorted(found)


@pytest.fixture
def host(throwaway_host: ThrowawayHost, request: pytest.FixtureRequest):
    root = pathlib.Path(f"/run/t{time.monotonic_ns()}")
    root.mkdir(mode=0o700)
    host = Host(throwaway_host, root)
    before = host.snapshot()
    yield host
    if there(root, "run/pods"):
        names = [pod["name"] for pod in json.loads(host.run("pod", "ls", "--json").stdout)]
        if names:
            host.run("pod", "rm", "-f", *names)
    if there(root, "run/members"):
        for member in json.loads(host.run("ls", "-a", "--json").stdout):
            host.run("rm", "-f", member["name"])
    after = host.snapshot()
    # A veth takes a moment to die, seconds under load; the next command removes the bridge that it was on.  A member whose
    # monitor was killed is this machine's PID 1 to reap, and until then pause is not dead, and its nsrun-door waits for it.
    for attempt in range(21):
        if after == before:
            break
        time.sleep(min(attempt, 1))
        host.run("pod", "prune", "--all")
        after = host.snapshot()
    for key, value in before.items():
        assert after[key] == value, f"{key} left behind by {request.node.name}"
    shutil.rmtree(root)


@pytest.fixture
def alice(host: Host):
    user = UserHost(host, "alice")
    yield user
    user.close()


@pytest.fixture
def bob(host: Host):
    user = UserHost(host, "bob")
    yield user
    user.close()


@pytest.fixture
def owned(host: Host, alice: UserHost) -> str:
    """A pod of alice's that root made, without network."""
    return host.run("pod", "create", "--network", "none", "pause", env={"SUDO_UID": str(alice.uid)}).stdout.strip()


@pytest.fixture
def box(busybox: str, alice: UserHost) -> str:
    """The busybox image in alice's own store."""
    need(
        (CACHE.parent / "images" / "busybox").is_dir(),
        "the busybox image is not built",
        "sudo rootfs/build --image busybox",
    )
    return alice.run("image", "load", CACHE.parent / "images" / "busybox").stdout.strip()


@pytest.fixture(scope="session")
def busybox() -> str:
    path = CACHE / "busybox"
    need(path.is_dir(), "the busybox root is not built", "sudo rootfs/build busybox")
    return str(path)


@pytest.fixture
def rootfs(busybox: str, host: Host) -> pathlib.Path:
    """A copy of the busybox root that the test may spoil."""
    path = host.root / "rootfs"
    sh("cp", "-a", busybox, path)
    return path


@pytest.fixture
def pod(host: Host) -> str:
    """A pod without network, the cheapest one."""
    return host.run("pod", "create", "--network", "none", "pause").stdout.strip()


@pytest.fixture
def terminal(host):
    """Starts nsrun at a terminal of its own."""
    from person import Terminal

    made = []

    def make(*words, **kwargs):
        made.append(Terminal(host, *words, **kwargs))
        return made[-1]

    yield make
    for item in made:
        item.close()


#: Ids of accounts that no other test process has at the same time: what is on the machine is told by its uid, by nsrun
#: and by userdel(8), which also counts processes with a subordinate one.
OWN_IDS = 40
FIRST_UID = 1_000_000 + os.getpid() % 65536 * OWN_IDS
FIRST_SUBORDINATE = (1 << 30) + os.getpid() % 1024 * OWN_IDS * 65536


@contextlib.contextmanager
def private(host: Host, path: str):
    """What is written below this directory of the machine's goes to the throwaway host; what is there stays in view."""
    name = path.strip("/").replace("/", "-")
    upper, work = host.root / f"{name}-upper", host.root / f"{name}-work"
    for directory in (upper, work):
        directory.mkdir()
    upper.chmod(0o1777)
    sh("mount", "-t", "overlay", "-o", f"lowerdir={path},upperdir={upper},workdir={work}", "overlay", path)
    if path == "/etc":  # useradd gives its accounts ids of ours
        defs = pathlib.Path("/etc/login.defs")
        new: dict[str, int] = {}
        for kind in ("UID", "GID"):
            new |= {f"{kind}_MIN": FIRST_UID, f"{kind}_MAX": FIRST_UID + OWN_IDS - 1}
            new |= {f"SUB_{kind}_MIN": FIRST_SUBORDINATE, f"SUB_{kind}_MAX": FIRST_SUBORDINATE + OWN_IDS * 65536 - 1}
        lines = [line for line in defs.read_text().splitlines() if line.split()[:1] and line.split()[0] not in new]
        defs.write_text("\n".join([*lines, *(f"{key} {value}" for key, value in new.items())]) + "\n")
    try:
        yield
    finally:
        sh("umount", "--lazy", path)


def sparse_file(path: pathlib.Path, size: int) -> None:
    """A file that claims to be large, and takes no space."""
    path.touch()
    os.truncate(path, size)


def wait_for(condition, seconds: float = 30, what: str = "condition"):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come true in {seconds} s")


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    os.kill(pid, number)


def pytest_collection_modifyitems(items) -> None:
    for item in items:
        if "throwaway_host" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.live)
