# SPDX-License-Identifier: Apache-2.0
"""`nsrun up` and `down`: one file for a pod, what it may say, and what a second time changes."""

import os
import pathlib
import re
import signal
import subprocess
import time

import pytest
from conftest import CACHE, HERE, NSRUN, kill, wait_for

from nsrun.cli import podfile
from nsrun.errors import UsageError

DEMO = HERE.parent / "rootfs/demo.toml"


def parsed(text: str) -> podfile.PodFile:
    return podfile.parse(text.encode(), "pod.toml")


def test_what_a_file_says():
    found = parsed(
        """
[pod]
name = "p"
publish = ["8080:80", "53:53/udp"]
pids_limit = 50

[members.b]
image = "box"
after = ["a"]
env = { A = "b", N = 5 }
read_only = true

[members.a]
command = ["sh", "-c", "exit 3"]
label = ["x=y"]
"""
    )
    assert found.name == "p" and found.options == {"publish": ["8080:80", "53:53/udp"], "pids_limit": "50"}
    assert [member.name for member in found.members] == ["a", "b"], "after decides, then the order of the file"
    a, b = found.members
    assert b.options == {"image": "box", "env": ["A=b", "N=5"], "read_only": True} and not b.command
    assert a.command == ["sh", "-c", "exit 3"] and a.options == {"label": ["x=y"]}


MEMBER = '[pod]\nname = "p"\n[members.m]\nimage = "box"\n'


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("", 0, "no name"),
        ("[pod]\nnam = 'p'\n", 1, "no name"),
        ("[pod]\nname = 'p'\nnam = 'p'\n", 3, "no option 'nam'"),
        ("[pod]\nname = 5\n", 2, "not a name"),
        ("[pod]\nname = '../x'\n", 2, "not a name"),
        ("pod = 5\n", 1, "not a table"),
        ("[[pod]]\nname = 'p'\n", 1, "not a table"),
        ("[pods]\nname = 'p'\n", 1, "unknown table 'pods'"),
        ("[pod]\nname = 'p'\nname = 'q'\n", 3, "overwrite"),
        ("[pod]\nname = p\n", 2, "invalid"),
        ("[pod]\nname = [", 0, "invalid value at the end of the file"),
        ("[pod]\nname = 'p'\npublish = '80:80'\n", 3, "expected a list"),
        ("[pod]\nname = 'p'\npublish = [80]\nnetwork = 'a/b'\n", 4, "unknown value"),
        (f"{MEMBER}volumes = ['a:/b']\n", 5, "no option 'volumes'"),
        (f"{MEMBER}read_only = 'yes'\n", 5, "expected a bool"),
        (f"{MEMBER}detach = true\n", 5, "no option 'detach'"),
        (f"{MEMBER}command = 'sleep 5'\n", 5, "not a list of strings"),
        (f"{MEMBER}command = ['sleep', 5]\n", 5, "not a list of strings"),
        (f"{MEMBER}after = ['x']\n", 5, "no member 'x'"),
        (f"{MEMBER}after = ['m']\n", 5, "circle"),
        (f"{MEMBER}env = {{ A = ['b'] }}\n", 5, "not a string"),
        (f"{MEMBER}[members.m.env]\nB = 'c'\nA = true\n", 7, "not a string"),
        (f"{MEMBER}[members.'x/y']\nimage = 'z'\n", 5, "not a name"),
        (f"{MEMBER}[members.n]\nuser = '1'\n", 5, "neither an image nor a command"),
        (f"{MEMBER}members = 5\n", 5, "no option 'members'"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(text, line, said):
    with pytest.raises(UsageError) as caught:
        parsed(text)
    where = f"pod.toml:{line}: " if line else "pod.toml: "
    assert caught.value.message.startswith(where) and said in caught.value.message.lower(), caught.value.message


def test_bytes_and_depth():
    with pytest.raises(UsageError, match=r"pod.toml:2: it is not UTF-8"):
        podfile.parse(b"[pod]\n\xff", "pod.toml")
    with pytest.raises(UsageError):
        parsed("a = " + "[" * 100000)


def test_the_lines_of_a_page():
    """docs/up.md and the demo's file are what they say."""
    page = (HERE.parent / "docs/up.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", page, re.S)
    assert [member.name for member in parsed(example).members] == ["blog-db", "blog-web"]
    (demo,) = podfile.read(str(DEMO))
    assert [member.name for member in demo.members] == ["demo-mysql", "demo-wordpress"]


# ---- live -------------------------------------------------------------------------------------------------------


FILE = """
[pod]
name = "p"
network = "none"
{pod}

[members.first]
rootfs = "{box}"
command = ["sleep", "1000"]
{first}

[members.second]
rootfs = "{box}"
command = ["sleep", "1000"]
{second}
"""


@pytest.fixture
def up(host, busybox, tmp_path):
    """Write a file and bring it up; return what was said and how the command ended."""

    def up(pod="", first="", second="", more="", check=True, words=()):
        text = FILE.format(box=busybox, pod=pod, first=first, second=second) + more
        (tmp_path / "pod.toml").write_text(text)
        return host.run("up", *words, tmp_path / "pod.toml", check=check)

    return up


def ids(host) -> dict[str, tuple[str, int]]:
    return {member["name"]: (member["id"], member["pid"]) for member in host.json("ls", "-a")}


@pytest.mark.live
def test_a_second_time_changes_only_what_differs(host, up, busybox):
    assert up().stdout == "pod p: created\nmember first: started\nmember second: started\n"
    pod, before = host.pod("p"), ids(host)
    assert up().stdout == "pod p: unchanged\nmember first: unchanged\nmember second: unchanged\n"
    assert ids(host) == before and host.pod("p") == pod

    done = up(second='env = { A = "b" }')
    assert (
        done.stdout == "pod p: unchanged\nmember first: unchanged\nmember second: started anew, since it has changed\n"
    )
    assert ids(host)["first"] == before["first"] and ids(host)["second"] != before["second"]
    assert "A=b" in host.run("exec", "second", "env").stdout.split()

    host.run("exec", "first", "touch", "/written")
    host.run("kill", "first")
    wait_for(lambda: host.member("first")["status"] == "stopped")
    assert "member first: started again\n" in up(second='env = { A = "b" }').stdout
    host.run("exec", "first", "ls", "/written")

    more = f'[members.third]\nrootfs = "{busybox}"\ncommand = ["sleep", "1000"]\nafter = ["first"]\n'
    assert "member third: started\n" in up(more=more).stdout
    host.run("join", "p", "-d", "--name", "by-hand", "--rootfs", busybox, "sleep", "1000")
    assert up().stdout.endswith("member third: removed\n")
    assert set(ids(host)) == {"first", "second", "by-hand"}

    done = up(pod='hostname = "h"')
    assert done.stdout.startswith("pod p: created anew") and host.pod("p")["id"] != pod["id"]
    assert set(ids(host)) == {"first", "second"}


@pytest.mark.live
def test_down(host, up, tmp_path):
    before = host.snapshot()
    up(second='volume = ["kept:/data"]\nstop_timeout = 1')
    host.run("exec", "second", "touch", "/data/x")
    assert host.run("down", "-t", "0", tmp_path / "pod.toml").stdout == "pod p: removed\n"
    assert host.run("volume", "ls", "-q").stdout == "kept\n"
    host.run("volume", "rm", "kept")
    assert host.run("down", tmp_path / "pod.toml").stdout == "pod p: is not there\n"
    assert host.snapshot() == before


@pytest.mark.live
def test_what_others_have_made_stays(host, up, busybox, tmp_path):
    host.run("pod", "create", "--network", "none", "p")
    for words in (["up"], ["down"]):
        (tmp_path / "pod.toml").write_text(FILE.format(box=busybox, pod="", first="", second=""))
        assert "not made by nsrun up" in host.fails(125, *words, tmp_path / "pod.toml")
    host.run("pod", "rm", "-f", "p")
    up()
    host.run("rm", "-f", "second")
    host.run("join", "p", "-d", "--name", "second", "--rootfs", busybox, "sleep", "1000")
    for words in ([], ["-n"]):
        done = up(check=False, words=words)
        assert done.returncode == 125 and "not made by nsrun up" in done.stderr and done.stdout == "", done


@pytest.mark.live
@pytest.mark.parametrize("ended", [False, True])
def test_a_name_that_a_member_of_another_pod_has(host, up, pod, busybox, ended):
    """It is found before a pod is made, and before one is made anew; a dry run finds it, too."""
    host.start("second", busybox, "sleep", "1000")
    if ended:
        host.run("stop", "-t", "0", "second")
    for words in ([], ["-n"]):
        done = up(check=False, words=words)
        assert done.returncode == 125 and "'second' is taken, in pod 'pause'" in done.stderr, done
        assert re.search(r"pod\.toml:1[0-9]: ", done.stderr) and done.stdout == "", done
        assert [p["name"] for p in host.json("pod", "ls")] == ["pause"]
    host.run("rm", "-f", "second")
    up()
    host.run("rename", "second", "third")
    host.start("second", busybox, "sleep", "1000")
    before = host.pod("p")
    assert "is taken" in up(pod='hostname = "h"', check=False).stderr and host.pod("p") == before


@pytest.mark.live
def test_a_member_that_can_not_start(host, up):
    """What comes before stays; the next up goes on."""
    done = up(first='entrypoint = "no-such-program"', check=False)
    assert done.returncode == 127 and "no-such-program" in done.stderr and "goes on from here" in done.stderr
    assert done.stdout == "pod p: created\n" and ids(host) == {}
    assert up().stdout == "pod p: unchanged\nmember first: started\nmember second: started\n"


@pytest.mark.live
@pytest.mark.parametrize(
    ("where", "text", "line"),
    [
        ("pod", 'publish = ["banana"]', 5),
        ("pod", 'shm_size = "banana"', 5),
        ("pod", 'hostname = "a b"', 5),
        ("pod", 'dns = ["x"]', 5),
        ("pod", 'owner = "no-such-user"', 5),
        ("second", 'user = "nosuch"', 15),
        ("second", 'memory = "banana"', 15),
        ("second", 'volume = ["/no/such:/x"]', 15),
        ("second", 'env = ["=x"]', 15),
        ("second", 'cap_add = ["NONE_SUCH"]', 15),
        ("second", 'stop_signal = "BOGUS"', 15),
        ("second", 'workdir = "relative"', 15),
        ("second", 'env_file = ["not-there"]', 15),
        ("first", 'label = ["=x"]', 10),
        ("first", f"env = {{ A = {'9' * 5000} }}", 0),
        ("first", f"pids_limit = 0x{'f' * 5000}", 10),
    ],
)
def test_what_can_not_be_made_removes_nothing(host, up, where, text, line):
    """It is refused, with the line of its table at least, before anything is stopped; --dry-run says the same."""
    up()
    host.run("exec", "second", "touch", "/precious")
    before, pod = ids(host), host.pod("p")
    for words in ([], ["--dry-run"]):
        done = up(**{where: text}, check=False, words=words)
        assert done.returncode in (2, 125) and "Traceback" not in done.stderr and done.stdout == "", done
        found = re.search(r"pod\.toml:(\d+): ", done.stderr)
        assert not line or (found and line - 5 <= int(found[1]) <= line), done.stderr
    assert ids(host) == before and host.pod("p") == pod
    host.run("exec", "second", "ls", "/precious")


@pytest.mark.live
def test_two_at_once(host, up, tmp_path):
    """One waits for the other, and finds nothing to do."""
    up()
    host.run("down", "-t", "0", tmp_path / "pod.toml")
    both = [host.background("up", tmp_path / "pod.toml", stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(text.count("unchanged") for text in said) == [0, 3], said


@pytest.mark.live
def test_down_of_a_pod_that_has_died(host, up, tmp_path):
    before = host.snapshot()
    up()
    kill(host.pod("p")["pid"])
    wait_for(lambda: host.json("pod", "ls") == [])
    assert host.run("down", tmp_path / "pod.toml").stdout == "pod p: removed\n"
    assert host.snapshot() == before


@pytest.mark.live
def test_down_ends_no_other_pod_of_the_name(host, up, busybox, tmp_path):
    """While it waits for a member, somebody removes the pod and makes another."""
    up(second='stop_signal = "CONT"\nstop_timeout = 600')
    process = host.background("down", tmp_path / "pod.toml", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_for(lambda: host.member("second")["status"] == "stopping")
    process.send_signal(signal.SIGSTOP)
    host.run("pod", "rm", "-f", "p")
    host.run("pod", "create", "--network", "none", "p")
    host.run("join", "p", "-d", "--name", "mine", "--rootfs", busybox, "sleep", "1000")
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 125 and b"another one by now" in errors
    assert host.member("mine")["status"] == "running"


@pytest.mark.live
def test_a_variable_of_the_callers(host, up):
    """Its value counts."""
    text = 'env = ["FROM_OUTSIDE"]'
    host.env["FROM_OUTSIDE"] = "1"
    try:
        up(second=text)
        assert "member second: unchanged" in up(second=text).stdout
        host.env["FROM_OUTSIDE"] = "2"
        assert "member second: started anew" in up(second=text).stdout
        assert "FROM_OUTSIDE=2" in host.run("exec", "second", "env").stdout.split()
    finally:
        del host.env["FROM_OUTSIDE"]


@pytest.mark.live
def test_a_dry_run_prints_commands_that_do_the_same(host, up, busybox):
    before = host.snapshot()
    done = up(words=["--dry-run"], second='env = { A = "b c" }')
    assert host.snapshot() == before
    env = {**host.env, "PATH": f"{os.path.dirname(NSRUN)}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-e"], input=done.stdout, text=True, check=True, env=env, capture_output=True, cwd="/")
    assert set(ids(host)) == {"first", "second"} and "A=b c" in host.run("exec", "second", "env").stdout.split("\n")


@pytest.mark.live
def test_paths_begin_where_the_file_is(host, busybox, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/env").write_text("FROM_FILE=1\n")
    (tmp_path / "sub/data").mkdir()
    (tmp_path / "sub/box").symlink_to(busybox)
    text = '[pod]\nname = "p"\nnetwork = "none"\n[members.m]\nrootfs = "box"\ncommand = ["sleep", "1000"]\nenv_file = ["env"]\nvolume = ["./data:/data"]\n'
    (tmp_path / "sub/pod.toml").write_text(text)
    host.run("up", tmp_path / "sub/pod.toml")
    assert "FROM_FILE=1" in host.run("exec", "m", "env").stdout.split()
    host.run("exec", "m", "touch", "/data/x")
    assert (tmp_path / "sub/data/x").exists()
    (tmp_path / "sub/env").write_text("FROM_FILE=2\n")
    assert "started anew" in host.run("up", tmp_path / "sub/pod.toml").stdout, "the content counts"
    assert "No such file" in host.fails(125, "up", tmp_path / "not-there.toml")


@pytest.mark.live
def test_an_image_that_has_changed(host, busybox, tmp_path):
    host.run("image", "load", "-t", "box:1", CACHE.parent / "images/busybox")
    text = '[pod]\nname = "p"\nnetwork = "none"\n[members.m]\nimage = "box:1"\ncommand = ["sleep", "1000"]\n'
    (tmp_path / "pod.toml").write_text(text)
    host.run("up", tmp_path / "pod.toml")
    assert host.run("up", tmp_path / "pod.toml").stdout.endswith("member m: unchanged\n")
    host.run("down", "-t", "0", tmp_path / "pod.toml")
    host.run("image", "rm", "box:1")
    assert "no image" in host.run("up", tmp_path / "pod.toml", check=False).stderr
    host.run("down", "-t", "0", tmp_path / "pod.toml")


@pytest.mark.live
def test_killed_before_a_member_began(host, up, busybox, tmp_path):
    """What was being made when nsrun was killed has a note, perhaps, but nothing that could be started again."""

    def killed(count, *words) -> int:
        inject = f"inject=mkdir:signal=KILL:when={count}"
        killer = ["strace", "-qq", "-o", "/dev/null", "-e", "trace=mkdir", "-e", inject]
        env = {**host.env, "NSRUN_REPLAY": "0"}
        return subprocess.run([*killer, NSRUN, *words], env=env, stdout=subprocess.DEVNULL, timeout=60).returncode

    up()
    host.run("down", "-t", "0", tmp_path / "pod.toml")
    for count in range(1, 40):
        status = killed(count, "up", tmp_path / "pod.toml")
        assert host.run("up", tmp_path / "pod.toml").returncode == 0
        assert {name: pid > 0 for name, (_, pid) in ids(host).items()} == {"first": True, "second": True}
        host.run("down", "-t", "0", tmp_path / "pod.toml")
        if not status:
            break
    assert count > 5
    said = ""
    host.run("pod", "create", "--network", "none")
    for count in range(2, 80):
        if not killed(count // 2, "join", "pause", "-d", "--name", "m", "--rootfs", busybox, "sleep", "1000"):
            break
        said += host.fails(125, ("start", "restart")[count % 2], "m")
    assert "was never started" in said


@pytest.mark.live
def test_a_member_whose_maker_was_killed_does_not_run(host, up, tmp_path):
    """What that has begun ends a moment later, and until then it is not taken for what the file wants."""
    up()
    host.run("down", "-t", "0", tmp_path / "pod.toml")
    renames = "rename,renameat,renameat2"  # a note is there, and what it is about is not let go yet
    slow = ["strace", "-qq", "-o", "/dev/null", "-e", f"trace={renames}", "-e", f"inject={renames}:delay_exit=1000000"]
    env = {**host.env, "NSRUN_REPLAY": "0"}
    with subprocess.Popen([*slow, NSRUN, "up", tmp_path / "pod.toml"], env=env, stdout=subprocess.DEVNULL) as tracer:
        wait_for(lambda: [member["status"] for member in host.json("ls", "-a")] == ["running"])
        waits = host.member("first")["pid"]
        kill(waits, signal.SIGSTOP)
        (maker,) = pathlib.Path(f"/proc/{tracer.pid}/task/{tracer.pid}/children").read_text().split()
        kill(int(maker))
    again = host.background("up", tmp_path / "pod.toml", stdout=subprocess.PIPE, text=True)
    time.sleep(0.5)
    kill(waits, signal.SIGCONT)
    assert "member first: started\n" in again.communicate(timeout=60)[0]
    assert {name: pid > 0 for name, (_, pid) in ids(host).items()} == {"first": True, "second": True}


@pytest.mark.live
def test_killed_at_any_time(host, up, tmp_path):
    """The next one does the rest, and what there is then is what the file wants."""
    up()
    host.run("down", "-t", "0", tmp_path / "pod.toml")
    for delay in range(20, 220, 20):
        process = subprocess.Popen([NSRUN, "up", tmp_path / "pod.toml"], env=host.env, stdout=subprocess.DEVNULL)
        time.sleep(delay / 1000)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        assert host.run("up", tmp_path / "pod.toml").returncode == 0
        assert {name: pid > 0 for name, (_, pid) in ids(host).items()} == {"first": True, "second": True}
        host.run("down", "-t", "0", tmp_path / "pod.toml")
    assert host.json("pod", "ls", "-a") == []


@pytest.mark.live
@pytest.mark.parametrize("made", ["without root", "by root"])
def test_a_users_file(host, alice, box, tmp_path, made):
    """With several members: each joins from a process of its own, since the way into a user namespace is one-way."""
    os.chmod(tmp_path, 0o755)
    path = alice.home / "pod.toml"
    member = '[members.{}]\nimage = "{}"\ncommand = ["sleep", "1000"]\n'
    text = '[pod]\nname = "hers"\nnetwork = "none"\n' + "".join(member.format(name, box) for name in "abc")
    path.write_text(text)
    path.chmod(0o644)
    if made == "by root":
        host.run("image", "load", "-t", box, CACHE.parent / "images/busybox")
        who, env = host, {"SUDO_UID": str(alice.uid)}
    else:
        who, env = alice, {}
    begun = "".join(f"member {name}: started\n" for name in "abc")
    assert who.run("up", path, env=env).stdout == f"pod hers: created\n{begun}"
    assert who.run("up", path, env=env).stdout.count("unchanged") == 4
    for name in "ab":
        who.run("kill", name)
    wait_for(lambda: [who.member(name)["status"] for name in "ab"] == ["stopped", "stopped"])
    assert who.run("up", path, env=env).stdout.count("started again") == 2
    path.write_text(text + '[members.c.env]\nA = "b"\n')
    assert "member c: started anew" in who.run("up", path, env=env).stdout
    assert who.run("down", "-t", "0", path, env=env).stdout == "pod hers: removed\n"
