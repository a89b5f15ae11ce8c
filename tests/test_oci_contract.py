# SPDX-License-Identifier: Apache-2.0
"""What engines count on, line by line, of nsrun-oci, runc and crun: the table in docs/oci.md.

Each row of the table is a case here, and each of its cells is what that runtime was seen to do.  The columns of runc and
crun are compared where the version of the table's head is installed.
"""

import array
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable

import pytest
from conftest import wait_for
from oci import RUNTIMES, SLEEP, Runtime, runtime

pytestmark = pytest.mark.live
DOC = pathlib.Path(__file__).parent.parent / "docs/oci.md"
CASES: dict[str, Callable[[Runtime], object]] = {}


def case(name: str) -> Callable[[Callable[[Runtime], object]], Callable[[Runtime], object]]:
    def add(function: Callable[[Runtime], object]) -> Callable[[Runtime], object]:
        CASES[name] = function
        return function

    return add


def code(r: Runtime, *words: object, **kwargs) -> int:
    return r.call(*words, **kwargs).returncode


# ---- ids ----------------------------------------------------------------------------------------------------------


def _of_nobody(verb: str) -> Callable[[Runtime], object]:
    return lambda r: code(r, verb, "nobody")


for _verb in ("state", "start", "delete", "kill"):
    CASES[f"{_verb} of an unknown id"] = _of_nobody(_verb)
CASES["exec in an unknown id"] = lambda r: code(r, "exec", "nobody", "true")
CASES["delete --force of an unknown id"] = lambda r: code(r, "delete", "--force", "nobody")


@case("delete --force twice")
def _(r: Runtime) -> object:
    r.running("c")
    return code(r, "delete", "--force", "c"), code(r, "delete", "--force", "c")


CASES["create with an unknown flag"] = lambda r: code(r, "create", "--nope", "c")
CASES["create without an id"] = lambda r: code(r, "create", "--bundle", r.bundle("c"))
CASES["create with a slash in the id"] = lambda r: code(r, "create", "--bundle", r.bundle("c"), "a/b")
CASES["create of a bundle without config.json"] = lambda r: code(r, "create", "--bundle", r.base, "c")


@case("create of a bundle whose config.json is no JSON")
def _(r: Runtime) -> object:
    bundle = r.bundle("c")
    (bundle / "config.json").write_text('{"ociVersion": ')
    return code(r, "create", "--bundle", bundle, "c")


@case("create of ociVersion 2.0.0")
def _(r: Runtime) -> object:
    document = {**r.config(*SLEEP), "ociVersion": "2.0.0"}
    return code(r, "create", "--bundle", r.bundle("c", document), "c")


# ---- create -------------------------------------------------------------------------------------------------------


def _refused(r: Runtime, program: str, pattern: str) -> object:
    done = r.call("create", "--bundle", r.bundle("c", None, program), "c")
    found = "told" if re.search(pattern, done.stderr, re.I) else done.stderr
    return done.returncode, found, "nothing left" if code(r, "state", "c") == 1 and not r.cgroups("c") else "left"


CASES["create of a command that is not there"] = lambda r: _refused(
    r, "nosuch", r"executable file .*not found in \$PATH"
)
CASES["create of a path that is not there"] = lambda r: _refused(
    r, "/nosuch", "executable file not found in|no such file or directory"
)
CASES["create of a file that may not be executed"] = lambda r: _refused(r, "/etc/passwd", "permission denied")


@case("after create: whose child the process is")
def _(r: Runtime) -> object:
    pid = r.create("c", None, *SLEEP)
    text = pathlib.Path(f"/proc/{pid}/stat").read_text()
    return "the caller's" if int(text.rpartition(")")[2].split()[1]) == os.getpid() else "another's"


@case("after create: state, and its pid")
def _(r: Runtime) -> object:
    pid = r.create("c", None, *SLEEP)
    state = r.status("c")
    return state["status"], "that of the pid-file" if state["pid"] == pid else state["pid"]


@case("exec in a created container")
def _(r: Runtime) -> object:
    r.create("c", None, *SLEEP)
    return code(r, "exec", "c", "sh", "-c", "exit 7")


@case("pause and resume of a created container")
def _(r: Runtime) -> object:
    r.create("c", None, *SLEEP)
    return code(r, "pause", "c"), code(r, "resume", "c")


@case("create twice")
def _(r: Runtime) -> object:
    r.create("c", None, *SLEEP)
    return code(r, "create", "--bundle", r.bundle("c"), "c"), r.status("c")["status"]


@case("who has the container's stdout after create")
def _(r: Runtime) -> object:
    read, write = os.pipe()
    command = r.words(r.program, f"--root={r.state}", "create", "--bundle", r.bundle("c", None, *SLEEP), "--pid-file", r.base / "pid", "c")  # fmt: skip
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=write, stderr=write, check=True, env=r.env, timeout=30)
    pid = int((r.base / "pid").read_text())
    r.pids.append(pid)
    inode, holders = os.fstat(write).st_ino, []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            links = [os.readlink(f"/proc/{entry}/fd/{fd}") for fd in os.listdir(f"/proc/{entry}/fd")]
        except OSError:
            continue
        if f"pipe:[{inode}]" in links and int(entry) != os.getpid():
            holders.append(int(entry))
    os.close(read)
    os.close(write)
    return "its process alone" if holders == [pid] else holders


@case("start twice")
def _(r: Runtime) -> object:
    r.running("c")
    return code(r, "start", "c")


@case("start of a stopped one")
def _(r: Runtime) -> object:
    r.stopped("c")
    return code(r, "start", "c")


@case("the state of a stopped one")
def _(r: Runtime) -> object:
    r.stopped("c")
    state = r.status("c")
    return state["status"], state["pid"]


# ---- exec ---------------------------------------------------------------------------------------------------------


@case("exec: an exit status")
def _(r: Runtime) -> object:
    r.running("c")
    return code(r, "exec", "c", "sh", "-c", "exit 7")


@case("exec of /nosuch")
def _(r: Runtime) -> object:
    r.running("c")
    return code(r, "exec", "c", "/nosuch")


@case("exec of what kills itself")
def _(r: Runtime) -> object:
    r.running("c")
    return code(r, "exec", "c", "sh", "-c", "kill -9 $$")


@case("exec --process FILE --detach --pid-file")
def _(r: Runtime) -> object:
    r.running("c")
    process = {**r.config("sh", "-c", "exit 9")["process"], "cwd": "/"}
    (r.base / "process.json").write_text(json.dumps(process))
    status = code(r, "exec", "--process", r.base / "process.json", "--detach", "--pid-file", r.base / "exec-pid", "c")
    return status, r.reap(int((r.base / "exec-pid").read_text()))


# ---- kill and delete ----------------------------------------------------------------------------------------------


@case("kill TERM, and the exit status that its parent gets")
def _(r: Runtime) -> object:
    pid = r.running("c")
    wait_for(lambda: "sleep" in r.call("exec", "c", "ps").stdout)
    return code(r, "kill", "c", "TERM"), r.reap(pid)


CASES["kill of an unknown signal"] = lambda r: (r.running("c"), code(r, "kill", "c", "NOPE"))[1]


@case("kill of a stopped one")
def _(r: Runtime) -> object:
    r.stopped("c")
    return code(r, "kill", "c")


@case("kill --all of a stopped one")
def _(r: Runtime) -> object:
    r.stopped("c")
    return code(r, "kill", "--all", "c")


@case("delete of a running one")
def _(r: Runtime) -> object:
    r.running("c")
    return code(r, "delete", "c"), r.status("c")["status"]


@case("delete of a paused one")
def _(r: Runtime) -> object:
    r.running("c")
    r.ok("pause", "c")
    found = code(r, "delete", "c")
    r.call("resume", "c")
    return found


@case("delete of a created one")
def _(r: Runtime) -> object:
    r.create("c", None, *SLEEP)
    return code(r, "delete", "c"), code(r, "state", "c")


@case("delete --force of a paused one")
def _(r: Runtime) -> object:
    pid = r.running("c")
    r.ok("pause", "c")
    found = code(r, "delete", "--force", "c")
    return found, r.reap(pid), "nothing left" if not r.cgroups("c") else "left"


@case("killed, and not yet reaped: state")
def _(r: Runtime) -> object:
    pid = r.running("c")
    r.ok("kill", "c", "KILL")
    wait_for(lambda: pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
    return r.status("c")["status"]


@case("pause of a paused one")
def _(r: Runtime) -> object:
    r.running("c")
    r.ok("pause", "c")
    found = code(r, "pause", "c"), r.status("c")["status"]
    r.call("resume", "c")
    return found


CASES["resume of a running one"] = lambda r: (r.running("c"), code(r, "resume", "c"))[1]


@case("exec in a paused one")
def _(r: Runtime) -> object:
    r.running("c")
    r.ok("pause", "c")
    done = subprocess.Popen(r.words(r.program, f"--root={r.state}", "exec", "c", "true"), stderr=subprocess.DEVNULL)
    try:
        found: object = done.wait(timeout=2)
    except subprocess.TimeoutExpired:
        found = "waits"
    r.ok("resume", "c")
    done.wait(timeout=20)
    return found


# ---- run ----------------------------------------------------------------------------------------------------------

CASES["run: an exit status"] = lambda r: code(r, "run", "--bundle", r.bundle("c", None, "sh", "-c", "exit 7"), "c")
CASES["run with flags after the id"] = lambda r: code(
    r, "run", "c", "--bundle", r.bundle("c", None, "sh", "-c", "exit 7")
)


@case("run: what is left")
def _(r: Runtime) -> object:
    r.ok("run", "--bundle", r.bundle("c", None, "true"), "c")
    return code(r, "state", "c"), "nothing left" if not r.cgroups("c") else "left"


@case("run of what is killed")
def _(r: Runtime) -> object:
    command = r.words(r.program, f"--root={r.state}", "run", "--bundle", r.bundle("c", None, *SLEEP), "c")
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=r.env)
    wait_for(lambda: '"running"' in r.call("state", "c").stdout)
    r.ok("kill", "c", "KILL")
    return child.wait(timeout=20)


@case("run passes SIGTERM on")
def _(r: Runtime) -> object:
    command = r.words(r.program, f"--root={r.state}", "run", "--bundle", r.bundle("c", None, *SLEEP), "c")
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=r.env)
    wait_for(lambda: "sleep 0.05" in r.call("exec", "c", "ps").stdout)
    child.send_signal(signal.SIGTERM)
    return child.wait(timeout=20)


# ---- terminals and descriptors ------------------------------------------------------------------------------------


@case("create with a terminal and without --console-socket")
def _(r: Runtime) -> object:
    return code(r, "create", "--bundle", r.bundle("c", r.config(*SLEEP, terminal=True)), "c")


@case("create with --console-socket and without a terminal")
def _(r: Runtime) -> object:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(r.base / "console"))
        server.listen()
        return code(r, "create", "--console-socket", r.base / "console", "--bundle", r.bundle("c", None, *SLEEP), "c")


@case("create with a terminal: what comes to --console-socket")
def _(r: Runtime) -> object:
    document = r.config(
        "sh", "-c", "tty; stty size; read line; echo got $line", terminal=True, consoleSize={"height": 33, "width": 77}
    )
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(r.base / "console"))
        server.listen()
        r.create("c", document, options=("--console-socket", r.base / "console"))
        server.settimeout(10)
        connection, _ = server.accept()
        _, control, _, _ = connection.recvmsg(4096, 64)
    (master,) = array.array("i", control[0][2][:4])
    r.ok("start", "c")
    os.write(master, b"hello\n")
    text = b""
    while b"got hello" not in text:
        text += os.read(master, 4096)
    os.close(master)
    connection.close()
    return (
        "its terminal" if b"/dev/pts/0" in text or b"/dev/console" in text else text,
        "33 77" if b"33 77" in text else "another size",
    )


def with_descriptor(r: Runtime, number: int, *words: object) -> tuple[subprocess.CompletedProcess[str], str]:
    """Call it with a pipe at that number; what came through it."""
    read, write = os.pipe()
    inner = r.words
    r.words = lambda *some: ["bash", "-c", f'exec "$@" {number}>&{write} {write}>&-', "bash", *inner(*some)]  # type: ignore[method-assign]
    try:
        done = r.call(*words, pass_fds=[write])
    finally:
        r.words = inner  # type: ignore[method-assign]
        os.close(write)
    os.set_blocking(read, False)
    try:
        return done, os.read(read, 100).decode().strip()
    finally:
        os.close(read)


@case("--preserve-fds 1")
def _(r: Runtime) -> object:
    document = r.config("sh", "-c", "echo through >&3")
    done, text = with_descriptor(r, 3, "run", "--preserve-fds", "1", "--bundle", r.bundle("c", document), "c")
    return done.returncode, text


@case("a descriptor that the caller left open")
def _(r: Runtime) -> object:
    done, _ = with_descriptor(r, 9, "run", "--bundle", r.bundle("c", None, "ls", "/proc/1/fd"), "c")
    return "inherited" if "9" in done.stdout.split() else "closed"


# ---- lists --------------------------------------------------------------------------------------------------------

CASES["list -q"] = lambda r: (r.running("c"), r.ok("list", "-q"))[1].split()
CASES["list -f json: keys"] = lambda r: (r.running("c"), sorted(json.loads(r.ok("list", "-f", "json"))[0]))[1]


@case("ps -f json")
def _(r: Runtime) -> object:
    pid = r.running("c")
    found = json.loads(r.ok("ps", "-f", "json", "c"))
    return "host pids" if pid in found else found


# ---- circumstances ------------------------------------------------------------------------------------------------


@case("without PATH and HOME, on the whole way")
def _(r: Runtime) -> object:
    program = RUNTIMES[r.name] if "/" in RUNTIMES[r.name] else ""
    r.program = program or next(
        p for d in os.environ["PATH"].split(":") + ["/usr/sbin"] if os.access(p := f"{d}/{r.name}", os.X_OK)
    )
    env = {"LANG": "C"}
    words = r.words
    r.words = lambda *some: words("/usr/bin/env", "-i", *some)  # type: ignore[method-assign]
    found = [
        code(
            r,
            "create",
            "--bundle",
            r.bundle("c", None, *SLEEP),
            "--pid-file",
            r.base / "pid",
            "c",
            env={**r.env, **env},
        )
    ]
    r.pids.append(int((r.base / "pid").read_text()))
    return [
        *found,
        *(
            code(r, *verb)
            for verb in (("start", "c"), ("state", "c"), ("exec", "c", "true"), ("delete", "--force", "c"))
        ),
    ]


@case("--log FILE --log-format json: the last line of an error")
def _(r: Runtime) -> object:
    r.call("--log", r.base / "log", "--log-format", "json", "create", "--bundle", r.bundle("c", None, "nosuch"), "c")
    last = json.loads((r.base / "log").read_text().strip().split("\n")[-1])
    return sorted(last), last["level"]


@case("the first process's exit status reaches its parent")
def _(r: Runtime) -> object:
    pid = r.create("c", None, "sh", "-c", "exit 6")
    r.ok("start", "c")
    return r.reap(pid)


@case("two creates at once")
def _(r: Runtime) -> object:
    bundle = r.bundle("c", None, *SLEEP)
    command = r.words(r.program, f"--root={r.state}", "create", "--bundle", bundle, "c")
    null = subprocess.DEVNULL
    both = [subprocess.Popen(command, stdin=null, stdout=null, stderr=null, env=r.env) for _ in range(2)]
    found = sorted(child.wait(timeout=30) for child in both)
    r.pids.append(r.status("c")["pid"])
    return found


@case("two starts at once")
def _(r: Runtime) -> object:
    r.create("c", None, *SLEEP)
    null = subprocess.DEVNULL
    command = r.words(r.program, f"--root={r.state}", "start", "c")
    both = [subprocess.Popen(command, stdin=null, stdout=null, stderr=null, env=r.env) for _ in range(2)]
    return sorted(child.wait(timeout=30) for child in both)


@case("two deletes --force at once")
def _(r: Runtime) -> object:
    r.running("c")
    null = subprocess.DEVNULL
    command = r.words(r.program, f"--root={r.state}", "delete", "--force", "c")
    both = [subprocess.Popen(command, stdin=null, stdout=null, stderr=null, env=r.env) for _ in range(2)]
    found = [child.wait(timeout=30) for child in both]
    time.sleep(0.1)
    return found, code(r, "state", "c")


#: Those that runc and crun answer differently from run to run, or never.
RACES = ("two creates at once", "two starts at once", "two deletes --force at once")


# ---- the table ----------------------------------------------------------------------------------------------------


def told(value: object) -> str:
    """A cell of the table."""
    if isinstance(value, (tuple, list)):
        return ", ".join(map(str, value))
    return str(value)


def table() -> tuple[list[str], dict[str, list[str]]]:
    """The head and the rows of the table in docs/oci.md."""
    rows = [
        [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in DOC.read_text().splitlines()
        if line.startswith("|")
    ]
    (head,) = (row for row in rows if row[0] == "case")
    return head, {row[0]: row[1:] for row in rows if len(row) == 4 and row[0] != "case" and set(row[0]) - {"-"}}


def installed(name: str) -> str:
    try:
        done = subprocess.run([RUNTIMES[name], "--version"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.split("\n")[0].split()[-1]


@pytest.mark.parametrize("column", RUNTIMES)
@pytest.mark.parametrize("name", CASES)
def test_contract(host, busybox, name, column):
    if name in RACES and column != "nsrun-oci":
        pytest.skip("the runtime answers differently from run to run; to enable: ask it to be fixed")
    if os.environ.get("NSRUN_TABLE"):  # NSRUN_TABLE=FILE: write down what is seen, to renew the table
        with runtime(host, busybox, column) as r, open(os.environ["NSRUN_TABLE"], "a") as file:
            file.write(json.dumps([name, column, told(CASES[name](r))]) + "\n")
        return
    head, rows = table()
    position = [title.split()[0] for title in head].index(column)
    if column != "nsrun-oci" and installed(column) != head[position].split()[-1]:
        pytest.skip(f"{head[position]} is not installed; to enable: apt-get install {column}")
    with runtime(host, busybox, column) as r:
        assert told(CASES[name](r)) == rows[name][position - 1], r.call("list").stderr


def test_the_table_has_every_case():
    assert list(table()[1]) == list(CASES)
