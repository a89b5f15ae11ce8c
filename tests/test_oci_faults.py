# SPDX-License-Identifier: Apache-2.0
"""nsrun-oci when things go wrong: killed at any moment, a state that is damaged, links, other boots, bundles of anybody's."""

import json
import os
import pathlib
import re
import resource
import shutil
import signal
import socket
import subprocess
import time

import pytest
from conftest import sh, wait_for
from oci import GROUP, SLEEP, Runtime, runtime

pytestmark = pytest.mark.live


@pytest.fixture
def r(host, busybox):
    with runtime(host, busybox, "nsrun-oci", hybrid=True) as made:
        yield made


def descendants_in(r: Runtime) -> list[int]:
    """The processes in any cgroup of the test's."""
    found: set[int] = set()
    for top in pathlib.Path("/sys/fs/cgroup").glob(f"*/{GROUP}"):
        for file in top.rglob("cgroup.procs"):
            found.update(map(int, file.read_text().split()))
    return sorted(found)


def gone(r: Runtime) -> bool:
    r._reap_all()
    return not descendants_in(r)


def nothing_left(r: Runtime, name: str = "c") -> None:
    """After delete --force: no process, no cgroup, no directory."""
    r.ok("delete", "--force", name)
    wait_for(lambda: gone(r))
    assert not r.cgroups(name) and not (r.state / name).exists()
    assert r.call("state", name).returncode == 1


def inits() -> list[int]:
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            if pathlib.Path(f"/proc/{entry}/comm").read_text() == "nsrun-init\n" and os.path.dirname(os.readlink(f"/proc/{entry}/ns/net")):  # fmt: skip
                found.append(int(entry))
        except OSError:
            continue
    return found


#: Runs nsrun-oci and dies by SIGKILL before the step, or after it: `python -c KILL PLACE ARGUMENTS…`
KILL = """
import os, sys
place, sys.argv = int(sys.argv[1]), sys.argv[1:]
from nsrun import run
from nsrun.oci import run as own
from nsrun.plan import INIT
from nsrun.oci.main import main
execute, count = run.Run.execute, [0]
def watched(self):
    for step in self.plan.steps:
        if step.phase != INIT:
            def do(run, step=step):
                for half in (0, 1):
                    if count[0] == place:
                        os.kill(os.getpid(), 9)
                    count[0] += 1
                    if not half:
                        type(step).do(step, run)
            object.__setattr__(step, "do", do)
    execute(self)
run.Run.execute = watched
code = main(sys.argv[1:])
os._exit(code)
"""


def killed_at(r: Runtime, place: int, *words: object) -> int:
    import sys

    command = r.words(sys.executable, "-I", "-c", KILL, place, f"--root={r.state}", *words)
    null = subprocess.DEVNULL
    done = subprocess.run(command, stdin=null, stdout=null, stderr=null, timeout=60, check=False, env=r.env)
    return done.returncode


def test_create_killed_at_every_step(r):
    document = r.config(*SLEEP)
    document["linux"]["namespaces"].append({"type": "cgroup"})
    document["linux"]["resources"] = {"pids": {"limit": 50}}
    document["hooks"] = {"createRuntime": [{"path": "/bin/true"}]}
    bundle = r.bundle("c", document)
    for place in range(100):
        code = killed_at(r, place, "create", "--bundle", bundle, "c")
        if code == 0:
            break
        assert code == -9
        nothing_left(r)
        assert r.call("list").returncode == 0
    assert place > 20, "the plan has more steps than that"
    r.pids.append(r.status("c")["pid"])
    nothing_left(r)


def test_exec_killed_at_every_step(r):
    r.running("c")
    for place in range(60):
        code = killed_at(r, place, "exec", "c", "true")
        if code == 0:
            break
        assert code == -9
        wait_for(lambda: "nsrun-init" not in r.ok("ps", "c"))
        assert r.ok("exec", "c", "echo", "lives") == "lives\n"
    assert place > 5
    nothing_left(r)


@pytest.mark.parametrize("verb", ["start", "delete", "run"])
def test_killed_at_any_moment(r, verb):
    bundle = r.bundle("c", None, *SLEEP)
    words = {"start": ["start", "c"], "delete": ["delete", "--force", "c"], "run": ["run", "--bundle", bundle, "c"]}[
        verb
    ]
    null = subprocess.DEVNULL
    for number in range(12):
        if verb != "run":
            r.create("c", None, *SLEEP)
        child = subprocess.Popen(r.words(r.program, f"--root={r.state}", *words), stdin=null, stdout=null, stderr=null, env=r.env)  # fmt: skip
        time.sleep(0.01 + 0.006 * number)
        child.kill()
        child.wait()
        nothing_left(r)


def test_a_create_whose_caller_dies(r):
    """Its orphan is ours, and is deleted as any other."""
    pid = r.create("c", None, *SLEEP)
    assert r.status("c")["status"] == "created"
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: r.status("c")["status"] == "stopped")
    assert r.call("start", "c").returncode == 1
    nothing_left(r)


def test_a_created_container_that_is_paused(r):
    """`start` would wait for ever, with the container's lock."""
    pid = r.create("c", None, *SLEEP)
    r.ok("pause", "c")
    assert r.status("c")["status"] == "paused"
    assert "paused" in r.call("start", "c", timeout=10).stderr
    assert "paused" in r.call("exec", "c", "true", timeout=10).stderr
    r.ok("resume", "c")
    assert r.status("c")["status"] == "created"
    r.ok("start", "c")
    assert r.status("c") == {**r.status("c"), "status": "running", "pid": pid}


#: `start` of a container that is frozen between the look at it and GO.
LATE = """
import sys
from nsrun.oci import state
from nsrun.oci.main import main
state.Container.status = lambda self: ("created", self.pid())
sys.exit(main(sys.argv[1:]))
"""


def test_a_container_that_is_frozen_while_it_starts(r):
    import sys

    r.create("c", None, *SLEEP)
    r.ok("pause", "c")
    command = r.words(sys.executable, "-I", "-c", LATE, f"--root={r.state}", "start", "c")
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False, env=r.env)  # fmt: skip
    assert done.returncode == 1 and "was frozen" in done.stderr, done
    r.ok("resume", "c")
    wait_for(lambda: r.status("c")["status"] == "running")
    nothing_left(r)


# ---- the state ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\x00" * 100, b'{"crc": "00000000", "id": 1}\n', b"x" * 100000])
def test_a_damaged_state(r, content):
    pid = r.running("c")
    (r.state / "c/state").write_bytes(content)
    for words in (
        ("state", "c"),
        ("kill", "c"),
        ("delete", "c"),
        ("pause", "c"),
        ("exec", "c", "true"),
        ("start", "c"),
    ):
        done = r.call(*words)
        assert done.returncode in (1, 255) and "damaged" in done.stderr and "bug" not in done.stderr, done
    assert "c" not in r.ok("list").split("\n", 1)[1]
    assert os.path.exists(f"/proc/{pid}")
    nothing_left(r)


def test_a_flipped_bit_is_noticed(r):
    r.running("c")
    path = r.state / "c/state"
    data = bytearray(path.read_bytes())
    data[data.index(b'"pid"') + 8] ^= 1
    path.write_bytes(data)
    assert "damaged" in r.call("state", "c").stderr
    nothing_left(r)


@pytest.mark.parametrize("name", ["state", "config", "start", "told"])
def test_links_in_the_state_are_not_followed(r, name):
    r.create("c", None, *SLEEP)
    victim = r.base / "victim"
    victim.write_text("mine")
    (r.state / "c" / name).unlink()
    (r.state / "c" / name).symlink_to(victim)
    assert r.call("start", "c").returncode == 1
    r.call("delete", "--force", "c")
    assert victim.read_text() == "mine" and not (r.state / "c").exists()
    wait_for(lambda: gone(r))


def test_a_link_or_a_file_in_place_of_a_container(r):
    r.state.mkdir(mode=0o711)
    target = r.base / "target"
    target.mkdir()
    (r.state / "link").symlink_to(target)
    (r.state / "file").write_text("mine")
    for name in ("link", "file"):
        for words in (("state",), ("start",), ("kill",), ("delete",), ("delete", "--force")):
            done = r.call(*words, name)
            assert done.returncode == 1 and "bug" not in done.stderr, done
        assert r.call("create", "--bundle", r.bundle(name), name).returncode == 1
    assert r.ok("list", "-q") == "" and list(target.iterdir()) == [] and (r.state / "file").read_text() == "mine"
    (r.state / "link").unlink(), (r.state / "file").unlink()


def rewrite(r: Runtime, **changes) -> None:
    """What another boot, or another process with the same pid, has left."""
    from nsrun.state import codec

    path = r.state / "c/state"
    note = json.loads(path.read_bytes())
    del note["crc"]
    path.write_bytes(codec.encode({**note, **changes}))


def test_a_state_of_another_boot(r):
    pid = r.running("c")
    rewrite(r, boot="another")
    assert (r.status("c")["status"], r.status("c")["pid"]) == ("stopped", 0)
    assert r.call("kill", "c").returncode == 1 and r.call("exec", "c", "true").returncode == 255
    r.ok("delete", "c")
    assert os.path.exists(f"/proc/{pid}"), "what runs now is no container of that boot"
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: gone(r))


def test_a_state_of_another_namespace(r):
    """A record of what may live is not removed, unless the kernel ends it by its cgroups."""
    pid = r.running("c")
    rewrite(r, view=[1, 2])
    for words in (("state", "c"), ("kill", "c"), ("delete", "c"), ("exec", "c", "true"), ("pause", "c")):
        assert "can't be seen from here" in r.call(*words).stderr, words
    assert os.path.exists(f"/proc/{pid}") and (r.state / "c/state").exists()
    assert r.call("list").returncode == 0
    nothing_left(r)


def test_a_pid_that_was_reused(r):
    r.running("c")
    start = json.loads((r.state / "c/state").read_bytes())["start"]
    rewrite(r, start=start - 1)
    assert r.status("c")["status"] == "stopped"
    assert r.call("kill", "c", "KILL").returncode == 1
    rewrite(r, start=start)
    nothing_left(r)


def test_modes_of_the_state(r):
    r.create("c", None, *SLEEP)
    assert (r.state / "c").stat().st_mode & 0o777 == 0o700
    r.ok("start", "c")
    assert sorted(os.listdir(r.state / "c")) == ["config", "plan", "started", "state"]


# ---- bundles ------------------------------------------------------------------------------------------------------


def test_a_large_and_a_deep_config(r):
    bundle = r.bundle("c")
    document = r.config("true")
    document["annotations"] = {f"key{n}": "x" * 1000 for n in range(11000)}
    r.bundle("c", document)
    assert (bundle / "config.json").stat().st_size > 10 << 20
    r.ok("run", "--bundle", bundle, "c")
    (bundle / "config.json").write_text("[" * 200000)
    done = r.call("create", "--bundle", bundle, "c")
    assert done.returncode == 1 and "is not JSON" in done.stderr
    (bundle / "config.json").write_text('{"a":' * 100000 + "1" + "}" * 100000)
    assert r.call("create", "--bundle", bundle, "c").returncode == 1
    (bundle / "config.json").unlink()
    os.mkfifo(bundle / "config.json")
    assert r.call("create", "--bundle", bundle, "c").returncode == 1
    (bundle / "config.json").unlink()
    (bundle / "config.json").write_bytes(b'{"ociVersion": "\xff"}')
    assert "not UTF-8" in r.call("create", "--bundle", bundle, "c").stderr
    assert not (r.state / "c").exists()


@pytest.mark.parametrize("path, told", [("/nosuch", "no such directory"), ("config.json", "not a directory"), ("/", "host's own root")])  # fmt: skip
def test_a_root_that_is_none(r, path, told):
    document = r.config("true")
    document["root"]["path"] = path
    done = r.call("create", "--bundle", r.bundle("c", document), "c")
    assert done.returncode == 1 and "root.path" in done.stderr and told in done.stderr


def test_a_relative_root_and_another_directory(r):
    document = r.config("cat", "/etc/passwd")
    document["root"]["path"] = "rootfs"
    bundle = r.bundle("c", document)
    (bundle / "rootfs").symlink_to(r.rootfs)
    assert "root" in r.ok("run", "--bundle", bundle, "c")
    words = r.words
    r.words = lambda *some: words("env", f"--chdir={bundle}", *some)  # type: ignore[method-assign]
    assert "root" in r.ok("run", "c")


# ---- circumstances ------------------------------------------------------------------------------------------------


def test_a_console_socket_that_nobody_reads(r):
    document = r.config(*SLEEP, terminal=True)
    bundle, path = r.bundle("c", document), r.base / "console"
    done = r.call("create", "--console-socket", path, "--bundle", bundle, "c")
    assert done.returncode == 1 and "console" in done.stderr
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        done = r.call("create", "--console-socket", path, "--bundle", bundle, "c")
        assert done.returncode == 1 and "nobody listens" in done.stderr
        server.listen()
        r.create("c", document, options=("--console-socket", path))  # it is in the queue
    assert r.call("start", "c").returncode == 0
    nothing_left(r)


def test_a_console_socket_with_a_long_path(r):
    directory = r.base / ("x" * 100) / ("y" * 100)
    directory.mkdir(parents=True)
    here = os.open(directory, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{here}/console")
        server.listen()
        r.create("c", r.config(*SLEEP, terminal=True), options=("--console-socket", directory / "console"))
    os.close(here)


def test_a_full_disk(r):
    small = r.base / "small"
    small.mkdir()
    r.run("mount", "-t", "tmpfs", "-o", "size=8k,nr_inodes=40", "small", small)
    r.state = small / "state"
    r.run("sh", "-c", f"head -c 20000 /dev/zero >{small}/full || true")
    done = r.call("create", "--bundle", r.bundle("c", None, *SLEEP), "c")
    assert done.returncode == 1 and "No space left" in done.stderr, done
    assert r.run("ls", small).stdout.split() == ["full", "state"] and r.run("ls", "-A", r.state).stdout == ""
    assert not r.cgroups("c")


def test_few_descriptors(r):
    bundle = r.bundle("c", None, *SLEEP)
    for most in (5, 7, 9, 11):
        command = ["prlimit", f"--nofile={most}", r.program, f"--root={r.state}", "create", "--bundle", bundle, "c"]
        null = subprocess.DEVNULL
        done = subprocess.run(r.words(*command), stdin=null, stdout=null, stderr=subprocess.PIPE, text=True, timeout=30, check=False, env=r.env)  # fmt: skip
        assert done.returncode == 1 and "Traceback" not in done.stderr, done
        nothing_left(r)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 16


def test_the_log_is_appended_and_each_error_is_one_line(r):
    log = r.base / "log"
    for _ in range(2):
        r.call("--log", log, "--log-format", "json", "state", "nobody")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["level"] for line in lines] == ["error", "error"] and "does not exist" in lines[0]["msg"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", lines[0]["time"])
    r.call("--log", r.base / "text", "state", "no\nbody")
    assert (r.base / "text").read_text().count("\n") == 1 and "level=error" in (r.base / "text").read_text()
    assert r.call("--log", "/nosuch/log", "state", "nobody").returncode == 1


def test_nobody_reads_the_errors(r):
    """An engine that does not empty the pipe is not kept waiting; the log has what it did not take."""
    log = r.base / "log"
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    try:
        while True:
            os.write(theirs, bytes(4096))
    except BlockingIOError:
        os.set_blocking(theirs, True)
    words = r.words(r.program, f"--root={r.state}", "--log", log, "state", "nosuch")
    assert subprocess.run(words, stderr=theirs, env=r.env, timeout=20, check=False).returncode == 1
    assert "nosuch" in log.read_text()
    os.close(ours), os.close(theirs)


def test_a_program_that_can_not_be_executed_is_told_by_start(r):
    root = r.base / "root"
    sh("cp", "-a", r.rootfs, root)
    (root / "script").write_text("#!/nosuch/interpreter\n")
    (root / "script").chmod(0o755)
    (root / "rubbish").write_text("rubbish")
    (root / "rubbish").chmod(0o755)
    for name, told in (("/script", "executable file not found"), ("/rubbish", "exec format error")):
        document = r.config(name)
        document["root"] = {"path": str(root)}
        r.create("c", document)
        done = r.call("start", "c")
        assert done.returncode == 1 and told in done.stderr, done
        wait_for(lambda: r.status("c")["status"] == "stopped")
        nothing_left(r)


def test_delete_ends_what_the_container_left(r):
    """A process that outlives the first one, in a PID namespace that is not the container's own."""
    document = r.config("sh", "-c", "sleep 1000 & sleep 1001 & echo")
    document["linux"]["namespaces"] = [entry for entry in document["linux"]["namespaces"] if entry["type"] != "pid"]
    pid = r.create("c", document)
    r.ok("start", "c")
    r.reap(pid)
    assert r.status("c")["status"] == "stopped" and len(descendants_in(r)) == 2
    r.ok("kill", "--all", "c", "KILL")
    wait_for(lambda: gone(r))
    r.ok("delete", "c")
    assert not r.cgroups("c")


def test_a_fork_bomb_without_a_pid_namespace(r):
    # a shell that can't fork ends, so these stay below the limit, and never stop forking
    document = r.config("sh", "-c", f"bomb() {{ while :; do (:); done; }}; {'sleep 1000 & bomb & ' * 5} bomb")
    document["linux"]["namespaces"] = [entry for entry in document["linux"]["namespaces"] if entry["type"] != "pid"]
    document["linux"]["resources"] = {"pids": {"limit": 100}}
    r.create("c", document)
    r.ok("start", "c")
    wait_for(lambda: len(descendants_in(r)) > 5)
    nothing_left(r)


def test_a_root_for_the_state_that_belongs_to_somebody(r):
    (r.base / "theirs").mkdir()
    os.chown(r.base / "theirs", 12345, 12345)
    r.state = r.base / "theirs"
    done = r.call("create", "--bundle", r.bundle("c"), "c")
    assert done.returncode == 1 and "belongs to uid 12345" in done.stderr


def test_a_root_for_the_state_that_others_may_write_to(r):
    """Whoever may make a name there, or move one away, says whom we signal: nothing is done, by Python or by the front."""
    pid = r.running("c")
    mode = r.state.stat().st_mode
    verbs = (("state", "c"), ("kill", "c", "KILL"), ("delete", "--force", "c"), ("exec", "c", "true"), ("start", "c"))
    verbs += (
        ("list",),
        ("list", "-q"),
        ("ps", "c"),
        ("pause", "c"),
        ("update", "--memory", "1g", "c"),
        ("events", "--stats", "c"),
    )
    verbs += (("create", "--bundle", str(r.bundle("d")), "d"), ("delete", "--force", "nobody"))
    for bits in (0o1777, 0o720, 0o702):
        r.state.chmod(bits)
        for words in verbs:
            done = r.call(*words)
            assert done.returncode in (1, 255) and "may be written to" in done.stderr, (bits, words, done)
    r.state.chmod(mode)
    for owner in (12345, 0):
        os.chown(r.state, owner, -1)
        for words in verbs[:-2] if owner else ():
            assert "belongs to uid 12345" in r.call(*words).stderr, words
    assert r.status("c")["pid"] == pid and r.status("c")["status"] == "running"
    assert not (r.state / "d").exists()


def test_a_state_that_others_may_write_to(r):
    pid = r.running("c")
    mode, owner = (r.state / "c").stat().st_mode, (r.state / "c").stat().st_uid
    verbs = (("state", "c"), ("kill", "c", "KILL"), ("delete", "--force", "c"), ("exec", "c", "true"), ("start", "c"))
    os.chown(r.state / "c", 12345, -1)
    for words in verbs:
        assert "belongs to uid 12345" in r.call(*words).stderr, words
    os.chown(r.state / "c", owner, -1)
    (r.state / "c").chmod(0o720)
    for words in verbs:
        assert "may be written to" in r.call(*words).stderr, words
    (r.state / "c").chmod(mode)
    assert r.status("c")["pid"] == pid


def test_an_exec_is_in_every_cgroup_or_is_an_error(r):
    """One that is not in view here would leave it outside of the container's limits."""
    hidden = "/sys/fs/cgroup/pids"
    if not os.path.isdir(hidden):
        pytest.skip("no cgroup v1 here; to enable: a machine with it")
    r.running("c")
    r.run("mount", "-t", "tmpfs", "none", hidden)
    done = r.call("exec", "c", "true")
    assert done.returncode == 255 and "cgroup" in done.stderr, done
    r.run("umount", hidden)
    assert r.ok("exec", "c", "echo", "lives") == "lives\n"
    assert "nsrun-init" not in r.ok("ps", "c")


def test_the_pid_file_is_new_and_whole(r):
    """No name that somebody can have put there before us is written to; and nothing else is left."""
    place = r.base / "pids"
    place.mkdir()
    (place / "pid").symlink_to(r.base / "victim")
    seen = r.base / "seen"
    document = r.config(*SLEEP)
    bundle = r.bundle("c", document)
    trace = shutil.which("strace")
    command = r.words(*([trace, "-e", "openat", "-o", seen] if trace else []), r.program, f"--root={r.state}", "create", "--bundle", bundle, "--pid-file", place / "pid", "c")  # fmt: skip
    null = subprocess.DEVNULL
    subprocess.run(command, stdin=null, stdout=null, stderr=null, timeout=60, check=True, env=r.env)
    r.pids.append(int((place / "pid").read_text()))
    assert os.listdir(place) == ["pid"] and not (place / "pid").is_symlink() and not (r.base / "victim").exists()
    if trace:
        (line,) = [line for line in seen.read_text().split("\n") if f"{place}/.pid." in line]
        assert "O_EXCL" in line and re.search(r"/\.pid\.[0-9a-f]{16}\"", line)


def test_events_end_when_it_is_deleted(r):
    r.running("c")
    command = r.words(r.program, f"--root={r.state}", "events", "--interval", "0.2s", "c")
    with open(r.base / "events", "w") as file, open(r.base / "errors", "w") as errors:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=errors, env=r.env)
    wait_for(lambda: "stats" in (r.base / "events").read_text())
    r.ok("delete", "--force", "c")
    assert child.wait(timeout=20) == 0 and (r.base / "errors").read_text() == ""
    assert r.call("events", "c").returncode == 1


def test_run_passes_a_signal_on_whenever_it_comes(r):
    """Between create and the foreground, too: otherwise it would end us and leave the container."""
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f"touch {r.base}/begun; sleep 1"]}
    document = {
        **r.config("sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.05; done"),
        "hooks": {"poststart": [hook]},
    }
    command = r.words(r.program, f"--root={r.state}", "run", "--bundle", r.bundle("c", document), "c")
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=r.env)
    wait_for((r.base / "begun").exists)
    time.sleep(0.3)
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=20) == 3
    assert r.call("state", "c").returncode == 1 and not r.cgroups("c")


def test_run_ends_of_a_fault_of_its_own(r):
    """A handler in Python would return to the instruction that is at fault, again and again."""
    command = r.words(r.program, f"--root={r.state}", "run", "--bundle", r.bundle("c", None, *SLEEP), "c")
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=r.env)
    wait_for(lambda: '"running"' in r.call("state", "c").stdout)
    wait_for(lambda: int(caught_now(child.pid), 16) & 1 << 14)  # SIGTERM: the foreground has begun
    assert not int(caught_now(child.pid), 16) & (1 << 10 | 1 << 6 | 1 << 7 | 1 << 3)
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=20) == 3


def caught_now(pid: int) -> str:
    return re.findall(r"^SigCgt:\s+(\w+)", pathlib.Path(f"/proc/{pid}/status").read_text(), re.M)[0]


def test_a_cgroup_that_the_container_made_is_removed_with_it(r):
    r.running("c")
    inner = pathlib.Path(f"/sys/fs/cgroup/pids/{GROUP}/c/inner/most")
    inner.mkdir(parents=True)
    nothing_left(r)


@pytest.mark.parametrize("name, depth", [("x" * 200, 30), ("x", 1100)])
def test_cgroups_that_the_container_made_one_in_the_other(r, name, depth):
    """Deeper than a path, than recursion and than there are descriptors; a process is in the last."""
    r.running("c")
    here = os.open(f"/sys/fs/cgroup/freezer/{GROUP}/c", os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=here)
        inner = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    child = subprocess.Popen(["sleep", "1000"])
    file = os.open("cgroup.procs", os.O_WRONLY, dir_fd=here)
    os.write(file, str(child.pid).encode())
    os.close(file)
    os.close(here)
    try:
        r.ok("delete", "--force", "c")
        assert child.wait(timeout=1) == -9
    finally:
        child.kill()
    wait_for(lambda: gone(r))
    assert not r.cgroups("c") and not (r.state / "c").exists()


def test_a_container_may_make_so_many_cgroups_of_v2(r):
    r.running("c")
    (found,) = [path for path in r.cgroups("c") if os.path.exists(f"{path}/cgroup.events")] or [""]
    if not found:
        pytest.skip("no cgroup v2 in view; to enable: mount it at /sys/fs/cgroup/unified")
    assert pathlib.Path(found, "cgroup.max.depth").read_text() == "100\n"
    assert pathlib.Path(found, "cgroup.max.descendants").read_text() == "10000\n"


def test_delete_of_a_paused_one_does_not_wait(r):
    r.running("c")
    r.ok("pause", "c")
    before = time.monotonic()
    r.ok("delete", "--force", "c")
    assert time.monotonic() - before < 4


#: A command for which no cgroup can be removed.
STUCK = """
import sys
from nsrun.oci import cgroups
from nsrun.oci.main import main
cgroups.remove = lambda paths: list(paths.values())
sys.exit(main(sys.argv[1:]))
"""


def test_a_cgroup_that_can_not_be_removed(r):
    """What is written of it stays, so that it can be tried again."""
    import sys

    def stuck(*words: object) -> subprocess.CompletedProcess[str]:
        command = r.words(sys.executable, "-I", "-c", STUCK, f"--root={r.state}", *words)
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False, env=r.env)  # fmt: skip

    r.running("c")
    done = stuck("delete", "--force", "c")
    assert done.returncode == 1 and "can't be removed" in done.stderr and (r.state / "c/state").exists()
    nothing_left(r)
    done = stuck("create", "--bundle", r.bundle("d", None, "nosuch"), "d")
    assert done.returncode == 1 and r.cgroups("d") and (r.state / "d/state").exists()
    nothing_left(r, "d")


def test_a_create_killed_early_takes_no_cgroup_of_others(r):
    document = r.config(*SLEEP)
    document["linux"]["cgroupsPath"] = f"/{GROUP}/other"
    pid = r.create("other", document)
    bundle = r.bundle("c", document)
    for place in range(40):
        code = killed_at(r, place, "create", "--bundle", bundle, "c")
        r.ok("delete", "--force", "c")
        assert r.status("other")["pid"] == pid
        if code != -9:
            break
    assert code == 1 and place > 4


@pytest.mark.parametrize("by_plan", [True, False])
def test_a_damaged_state_with_a_relative_cgroup(r, by_plan):
    """It was below the cgroup of whoever made it: one of that name below ours is another.  The plan has it, or the FIFOs."""
    document = r.config(*SLEEP)
    document["linux"]["cgroupsPath"] = f"nsrun-relative-{os.getpid()}"
    pid = r.create("c", document)
    kept = (r.state / "c/state").read_bytes()
    (r.state / "c/state").write_bytes(b"{")
    config = (r.state / "c/config").read_bytes()
    if not by_plan:
        (r.state / "c/plan").write_bytes(b"x" + (r.state / "c/plan").read_bytes()[1:])
    done = r.call("delete", "--force", "c")
    assert done.returncode == 0 and ("not known" in done.stderr) == (not by_plan), done
    wait_for(lambda: not os.path.exists(f"/proc/{pid}/exe"))
    assert not (r.state / "c").exists()
    if not by_plan:  # its cgroup stays: remove it by what is known again
        (r.state / "c").mkdir(mode=0o700)
        (r.state / "c/state").write_bytes(kept)
        (r.state / "c/config").write_bytes(config)
        r.ok("delete", "--force", "c")


def test_a_damaged_state_without_anything_that_tells_of_the_process(r):
    document = r.config(*SLEEP)
    document["linux"]["cgroupsPath"] = f"nsrun-relative-{os.getpid()}"
    pid = r.create("c", document)
    r.ok("start", "c")
    kept = (r.state / "c/state").read_bytes()
    os.unlink(r.state / "c/plan")
    for damaged in (b"{", b""):
        (r.state / "c/state").write_bytes(damaged)
        done = r.call("delete", "--force", "c")
        assert done.returncode == 1 and "end them, and remove" in done.stderr and os.path.exists(f"/proc/{pid}/exe")
        assert (r.state / "c/config").exists()
    (r.state / "c/state").write_bytes(kept)
    nothing_left(r)


# ---- a command that waits for the container -----------------------------------------------------------------------


def begun(r: Runtime, *words: object) -> subprocess.Popen[str]:
    command = r.words(r.program, f"--root={r.state}", *words)
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=r.env)  # fmt: skip


def is_held(r: Runtime) -> bool:
    import fcntl

    fd = os.open(r.state / "c", os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def held(r: Runtime, how: str) -> subprocess.Popen[str]:
    """A `start` that waits: for a hook, or for nsrun-init, which a container that shares its PID namespace has stopped."""
    document = r.config(*SLEEP)
    if how == "hook":
        document["hooks"] = {"startContainer": [{"path": "/bin/sleep", "args": ["sleep", "1000"]}]}
    else:
        other = r.running("other")
        document["linux"]["namespaces"][0]["path"] = f"/proc/{other}/ns/pid"
    pid = r.create("c", document)
    if how != "hook":
        os.kill(pid, signal.SIGSTOP)
    child = begun(r, "start", "c")
    wait_for(lambda: is_held(r))
    time.sleep(0.5)  # it may have been another moment of it
    assert is_held(r) and child.poll() is None
    return child


@pytest.mark.parametrize("how", ["hook", "stopped"])
@pytest.mark.parametrize("words", [("kill", "c", "KILL"), ("kill", "--all", "c", "KILL"), ("delete", "--force", "c")])
def test_a_start_that_waits_holds_no_container(r, how, words):
    child = held(r, how)
    try:
        assert r.status("c")["status"] == "created"
        r.ok(*words, timeout=20)
        _, said = child.communicate(timeout=20)
        assert child.returncode == 1 and "was killed" in said, said
    finally:
        child.kill()
    if words[0] == "kill":
        wait_for(lambda: r.status("c")["status"] == "stopped")
        r.ok("delete", "c")
    assert not (r.state / "c").exists() and not r.cgroups("c")


def test_who_holds_a_container_is_told(r):
    child = held(r, "stopped")
    try:
        for words in (("exec", "c", "true"), ("ps", "c"), ("delete", "c")):
            done = r.call(*words, timeout=25)
            assert done.returncode in (1, 255) and f"busy: nsrun-oci start, pid {child.pid}," in done.stderr, done
    finally:
        child.kill()
        child.communicate()
    r.ok("delete", "--force", "c")
    assert not r.cgroups("c")


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_start_that_waits_for_a_hook_is_interrupted(r, sent):
    child = held(r, "hook")
    child.send_signal(sent)
    _, said = child.communicate(timeout=20)
    assert child.returncode == 1 and "interrupted" in said
    wait_for(lambda: r.status("c")["status"] == "stopped")
    nothing_left(r)


def test_a_create_that_waits_for_a_hook_is_ended(r):
    document = r.config(*SLEEP)
    document["hooks"] = {"createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "1000"]}]}
    bundle = r.bundle("c", document)
    for interrupt in (True, False):
        child = begun(r, "create", "--bundle", bundle, "c")
        wait_for(lambda: bool(r.cgroups("c")))
        time.sleep(1)
        assert child.poll() is None
        if interrupt:
            child.send_signal(signal.SIGTERM)
        else:
            r.ok("delete", "--force", "c")
        _, said = child.communicate(timeout=20)
        assert child.returncode == 1 and ("interrupted" if interrupt else "was killed") in said
        assert not (r.state / "c").exists() and not r.cgroups("c")


def test_a_poststart_hook_that_does_not_end_holds_nothing(r):
    document = r.config(*SLEEP)
    document["hooks"] = {"poststart": [{"path": "/bin/sleep", "args": ["sleep", "1000"]}]}
    r.create("c", document)
    child = begun(r, "start", "c")
    try:
        wait_for(lambda: r.status("c")["status"] == "running")
        assert r.ok("exec", "c", "echo", "x") == "x\n"
        nothing_left(r)
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=20) == 1
    finally:
        child.kill()
        child.communicate()


def test_run_does_not_remove_another_of_its_name(r):
    command = r.words(r.program, f"--root={r.state}", "run", "--bundle", r.bundle("c", None, *SLEEP), "c")
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=r.env)
    try:
        wait_for(lambda: '"running"' in r.call("state", "c").stdout)
        child.send_signal(signal.SIGSTOP)
        r.ok("delete", "--force", "c")
        pid = r.create("c", None, *SLEEP)
        child.send_signal(signal.SIGCONT)
        assert child.wait(timeout=20) == 137
    finally:
        child.kill()
    assert r.status("c") == {**r.status("c"), "status": "created", "pid": pid}
