# SPDX-License-Identifier: Apache-2.0
"""Options and arguments: parsed strictly, refused with a reason."""

import ast
import pathlib
import signal
import subprocess
import sys

import pytest

from nsrun import cli
from nsrun.cli import help
from nsrun.cli.commands import BY_NAME, INTERNAL, function, parse
from nsrun.errors import BadInput, UsageError
from nsrun.schema import check_name
from nsrun.spec import options as words
from nsrun.spec.options import parse_signal
from nsrun.spec.pod import pod_spec


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("8080:80", [("0.0.0.0", 8080, 80), ("::", 8080, 80)]),
        ("127.0.0.1:8080:80", [("127.0.0.1", 8080, 80)]),
        ("80", [("0.0.0.0", 0, 80), ("::", 0, 80)]),
        (":80", [("0.0.0.0", 0, 80), ("::", 0, 80)]),
        ("127.0.0.1::80/tcp", [("127.0.0.1", 0, 80)]),
        ("8000-8002:9000-9002", [(ip, 8000 + i, 9000 + i) for ip in ("0.0.0.0", "::") for i in range(3)]),
        ("65535:1", [("0.0.0.0", 65535, 1), ("::", 65535, 1)]),
        ("0.0.0.0:80:80", [("0.0.0.0", 80, 80)]),
        ("[::]:80:80", [("::", 80, 80)]),
        ("[::]::80", [("::", 0, 80)]),
        ("[2001:DB8:0::1]:53-54:53-54/udp", [("2001:db8::1", 53, 53), ("2001:db8::1", 54, 54)]),
        ("127.0.0.1:53:53/udp", [("127.0.0.1", 53, 53)]),
    ],
)
def test_ports(word, expected):
    assert [(p["host_ip"], p["host_port"], p["pod_port"]) for p in words.parse_ports([word])] == expected


@pytest.mark.parametrize(
    "word",
    [
        "",
        "0:80",
        "65536:80",
        "80:0",
        "a:b",
        "1-2:3",
        "5-4:5-4",
        "1.2.3:80:80",
        "1.2.3.256:80:80",
        "80:80/UDP",
        "80:80/sctp",
        "-1:80",
        "1:2:3:4",
        "[fe80::1]:80:80",
        "[fe80::1%eth0]:80:80",
        "[ff02::1]:80:80",
        "[::ffff:127.0.0.1]:80:80",
        "[1.2.3.4]:80:80:80",
        "[::]80:80",
        "[::]",
        "[::]:80",
        "[::",
        "[]:80:80",
        "::1:80:80",
        "٣:80",
    ],
)
def test_ports_refused(word):
    with pytest.raises(UsageError) as error:
        words.parse_ports([word])
    assert word in str(error.value)


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("127.0.0.1:80", "127.0.0.1::80"),
        ("localhost:80:80", "127.0.0.1"),
        ("*:80:80", "none means all"),
        ("8000-8003:80", "8000-8003:80-83"),
    ],
)
def test_how_a_port_is_written_is_told(word, hint):
    with pytest.raises(UsageError) as error:
        words.parse_ports([word])
    assert hint in error.value.hint


def test_a_port_twice_is_refused():
    with pytest.raises(UsageError, match="published twice"):
        words.parse_ports(["8080:80", "8080:81"])
    with pytest.raises(UsageError, match="53/udp is published twice"):
        words.parse_ports(["53:53/udp", "53:53/tcp", "127.0.0.1:53:54/udp"])
    with pytest.raises(UsageError, match=r"\[::\]:8080/tcp is published twice"):
        words.parse_ports(["8080:80", "[2001:db8::1]:8081:80", "[::]:8080:81"])
    with pytest.raises(UsageError, match="published twice"):
        words.parse_ports(["[::]:8080:80", "[2001:db8::1]:8080:81"])
    assert len(words.parse_ports(["0.0.0.0:8080:80", "[::]:8080:81", "[2001:db8::1]:8081:80"])) == 3
    ports = words.parse_ports(["0.0.0.0:53-54:53-54/udp", "0.0.0.0:53:53", "127.0.0.1:55:55/udp", "[::]:53-54:53-54"])
    assert [port["protocol"] for port in ports] == ["udp", "udp", "tcp", "udp", "tcp", "tcp"]
    assert words.port_ranges(words.published(ports)) == [
        ("0.0.0.0", "53-54", "53-54/udp"),
        ("0.0.0.0", "53", "53"),
        ("127.0.0.1", "55", "55/udp"),
        ("[::]", "53-54", "53-54"),
    ]


def test_ports_of_a_host_without_ipv6():
    """Without an address they are those of IPv4, and one of IPv6 is refused with the reason."""
    assert [port["host_ip"] for port in words.parse_ports(["8080:80"], "there is none")] == ["0.0.0.0"]
    with pytest.raises(UsageError, match="there is none"):
        words.parse_ports(["[::]:8080:80"], "there is none")


@pytest.mark.parametrize(
    ("options", "facts", "expected"),
    [
        ({}, {}, "on"),
        ({"network": "bridge,ipv6=on"}, {}, "on"),
        ({"network": "bridge,ipv6=off"}, {}, "off: --network bridge,ipv6=off"),
        ({"network": "bridge,isolated"}, {}, "on"),
        ({"network": "bridge,isolated,ipv6=off"}, {}, "off: --network bridge,ipv6=off"),
        ({}, {"without_ipv6": "no IPv6 here"}, "off: no IPv6 here"),
        ({"sysctl": ["net.ipv6.conf.all.disable_ipv6=1"]}, {}, "off: --sysctl net.ipv6.conf.all.disable_ipv6=1"),
    ],
)
def test_whether_a_pod_has_ipv6(options, facts, expected):
    facts = {"id": "a", "created": "", "owner": "root", "cgroup": "", "resolv_conf": "", **facts}
    spec = pod_spec({"name": "p", "publish": ["80:80"], **options}, facts)
    assert spec["network"]["ipv6"] == expected
    assert ("{pod:ip6}\tp" in spec["files"]["/etc/hosts"]) == (len(spec["ports"]) == 2) == (expected == "on")


@pytest.mark.parametrize(
    ("options", "facts", "error"),
    [
        ({"network": "bridge,ipv6=on"}, {"without_ipv6": "no IPv6 here"}, BadInput),
        ({"network": "bridge,ipv6=maybe"}, {}, UsageError),
        ({"network": "bridge,ipv6=on,ipv6=off"}, {}, UsageError),
        ({"network": "none,ipv6=on"}, {}, UsageError),
        ({"network": "none,isolated"}, {}, UsageError),
        ({"network": "bridge,isolated,isolated"}, {}, UsageError),
        ({"network": "bridge,"}, {}, UsageError),
        ({"subnet6": "fd00:1::/64"}, {"without_ipv6": "no IPv6 here"}, BadInput),
        ({"subnet6": "fd00:1::/48"}, {}, BadInput),
        ({"subnet6": "fe80::/64"}, {}, BadInput),
        ({"subnet6": "10.88.0.0/24"}, {}, BadInput),
        ({"subnet6": "fd00:1::/64", "network": "none"}, {}, UsageError),
        ({"publish": ["[::]:80:80"], "network": "bridge,ipv6=off"}, {}, UsageError),
    ],
)
def test_ipv6_that_cannot_be_had(options, facts, error):
    facts = {"id": "a", "created": "", "owner": "root", "cgroup": "", "resolv_conf": "", **facts}
    with pytest.raises(error):
        pod_spec({"name": "p", **options}, facts)


def test_what_is_wrong_with_a_network_is_told():
    for text in ("bridge,foo", "pasta,isolated", "bridge,"):
        with pytest.raises(UsageError, match=r"not bridge\|NETWORK\[,ipv6=on\|off\]\[,isolated\]"):
            words.parse_network(text)
    with pytest.raises(UsageError, match="--network bridge needs root"):
        pod_spec({"name": "p", "network": "bridge"}, {"user": {"uid": 7}, "by_root": False})  # type: ignore[typeddict-item]


PASSWD = "root:x:0:0:root:/root:/bin/sh\nmysql:x:999:998:MySQL:/var/lib/mysql:/bin/false\nbad:x:4294967296:0::/:\nnohome:x:7:7::relative:/bin/sh\n"
GROUP = "root:x:0:\nmysql:x:998:\naudio:x:29:mysql,root\nbig:x:99999999999:mysql\n"


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", (0, 0, [0, 29], "/root")),
        ("mysql", (999, 998, [998, 29], "/var/lib/mysql")),
        ("999", (999, 998, [998, 29], "/var/lib/mysql")),
        ("mysql:audio", (999, 29, [29], "/var/lib/mysql")),
        ("1:2", (1, 2, [2], "/")),
        ("1234", (1234, 0, [0], "/")),
        ("4294967294", (4294967294, 0, [0], "/")),
        ("nohome", (7, 7, [7], "/")),
    ],
)
def test_users(user, expected):
    assert words.parse_user(user, PASSWD, GROUP) == expected


@pytest.mark.parametrize(
    "user",
    [
        ":2",
        "1:",
        "-1",
        "4294967295",
        "4294967296",
        "1x",
        "0x1",
        "+1",
        "nobody",
        "root:nogroup",
        "1:2:3",
        "bad",
        "1:4294967296",
    ],
)
def test_users_refused(user):
    """CVE-2026-30892, CVE-2024-40635: what is no user must never become another one."""
    with pytest.raises(BadInput):
        words.parse_user(user, PASSWD, GROUP)


@pytest.mark.parametrize(
    ("text", "size"), [("64m", 64 << 20), ("1g", 1 << 30), ("4096", 4096), ("2K", 2048), ("1kb", 1024)]
)
def test_sizes(text, size):
    assert words.parse_size(text, "--memory") == size


@pytest.mark.parametrize("text", ["", "m", "-1", "1.5m", "0", "64x", "9e9"])
def test_sizes_refused(text):
    with pytest.raises(UsageError):
        words.parse_size(text, "--memory")


@pytest.mark.parametrize(
    ("text", "number"),
    [("TERM", 15), ("sigkill", 9), ("SIGWINCH", 28), ("9", 9), ("RTMIN", 34), ("RTMIN+3", 37), ("SIGRTMIN+30", 64)],
)
def test_signals(text, number):
    assert parse_signal(text) == number


@pytest.mark.parametrize("text", ["", "0", "65", "NOPE", "RTMIN+31", "_DFL", "SIG_IGN", "15x"])
def test_signals_refused(text):
    with pytest.raises(UsageError):
        parse_signal(text)


def test_volumes_of_each_kind_and_their_modes():
    volume = words.parse_volume("/srv/data:/data//x/../y:ro,nosuid")
    assert (volume["source"], volume["destination"], volume["options"]) == (
        "/srv/data",
        "/data/y",
        ["rbind", "rprivate", "ro", "nosuid"],
    )
    assert words.parse_volume("data:/d")["type"] == "volume"
    assert words.parse_mount("type=tmpfs,target=/t,tmpfs-size=1m")["options"] == [
        "nodev",
        "noexec",
        "nosuid",
        "size=1m",
        "mode=1777",
    ]
    assert words.parse_mount("type=bind,src=/a,dst=/b,readonly")["options"][-1] == "ro"
    flags = words.parse_mount("type=bind,src=/a,dst=/b,nosuid,nodev=true,noexec=0,ro=false")["options"]
    assert flags == ["rbind", "rprivate", "nosuid", "nodev"]
    assert words.parse_mount("type=volume,src=a,dst=/b,nosuid,ro=1")["options"] == ["rbind", "rprivate", "ro", "nosuid"]


@pytest.mark.parametrize(
    "word",
    [
        "/a:b",
        "/a:/",
        "/a:/b:what",
        "/a:/b:ro,rw",
        "/a:/b:rw,nosuid,ro",
        "/a:/b:nosuid,suid",
        ":/b",
        "/a:/b:ro:x",
        "../x y:/..",
        "a/b:/c",
    ],
)
def test_volumes_refused(word):
    with pytest.raises(UsageError):
        words.parse_volume(word)


@pytest.mark.parametrize(
    "word",
    [
        "type=bind,target=/b",
        "type=bind,src=/a,target=/b,readonly=yes",
        "type=bind,src=/a,target=/b,nosuid=2",
        "type=bind,source=/a",
        "type=what,source=/a,target=/b",
        "type=tmpfs,target=/t,source=/x",
        "type=bind,source=/a,target=/b,x=1",
        "type=bind,type=tmpfs,target=/b",
        "type=bind,source=/a,src=/b,target=/c",
        "type=bind,source=/a,target=/b,readonly,readonly=false",
        "type=bind,source=/a,target=/b,ro=0,ro",
        "type=tmpfs,target=/b,tmpfs-size=1m,tmpfs-size=2m",
    ],
)
def test_mounts_refused(word):
    with pytest.raises(UsageError):
        words.parse_mount(word)


def test_capabilities():
    default = words.capabilities([], [])
    assert len(default) == 14
    assert words.capabilities([], ["ALL"]) == []
    assert words.capabilities(["NET_ADMIN"], ["all"]) == ["net_admin"]
    assert "chown" not in words.capabilities(["ALL"], ["CAP_CHOWN"])
    for add, drop in ((["FLY"], []), (["ALL"], ["ALL"])):
        with pytest.raises(UsageError):
            words.capabilities(add, drop)


@pytest.mark.parametrize(
    "word", ["/t:ro,rw", "/t:exec,noexec", "/t:size=1m,size=2m", "/t:mode=700,mode=777", "/t:suid,nosuid"]
)
def test_tmpfs_refused(word):
    with pytest.raises(UsageError):
        words.parse_tmpfs(word)


@pytest.mark.parametrize(
    "word",
    [
        "kernel.core_pattern=x",
        "kernel.shm_rmid_forced=1+kernel.core_pattern=x",
        "vm.swappiness=1",
        "net",
        "net.ipv4/../../kernel.x=1",
        "net..x=1",
        "=1",
    ],
)
def test_sysctls_refused(word):
    """threats R21, CVE-2022-0811: only what belongs to the pod's namespaces, and one at a time."""
    with pytest.raises(UsageError):
        pod_spec({"sysctl": [word]}, {"id": "i", "created": "", "cgroup": "", "resolv_conf": "", "owner": "root"})


def test_environment():
    assert words.parse_environment(["A=1", "B", "C", "A=2=3"], {"B": "b"}) == {"A": "2=3", "B": "b"}
    with pytest.raises(UsageError):
        words.parse_environment(["=x"], {})


@pytest.mark.parametrize(("word", "number"), [("0", 0), ("1000", 1000), ("-1000", -1000), ("-0", 0), (None, None)])
def test_oom_scores(word, number):
    assert words.parse_oom_score(word, None) == number


@pytest.mark.parametrize("word", ["", "-", "1001", "-1001", "--5", "5x", "0x5", "1.5", "²"])
def test_oom_scores_refused(word):
    with pytest.raises(UsageError):
        words.parse_oom_score(word, None)


@pytest.mark.parametrize("word", ["nofile", "nofile=a", "nofile=5:4", "what=1", "nofile=1:2:3", "nofile=-2"])
def test_ulimits_refused(word):
    with pytest.raises(UsageError):
        words.parse_ulimit(word)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "-x", "--root=/x", "a b", "a\n", "ä", "x" * 64])
def test_names_refused(name):
    with pytest.raises(UsageError):
        check_name(name, "pod")


def test_parse_like_docker():
    call = parse(
        ["--root", "/r", "join", "web", "-itd", "--env=A=1", "-eB=2", "-v", "/a:/b", "--", "cmd", "-x", "--name"]
    )
    assert call.general == {"root": "/r"} and call.command.name == "join" and call.operands == ["web"]
    assert call.options == {
        "interactive": True,
        "terminal": True,
        "detach": True,
        "env": ["A=1", "B=2"],
        "volume": ["/a:/b"],
    }
    assert call.rest == ["cmd", "-x", "--name"]
    assert parse(["join", "web", "mysqld", "--verbose"]).rest == ["mysqld", "--verbose"]
    call = parse(["exec", "-it", "mysql", "sh", "-c", "x"])
    assert (call.operands, call.rest) == (["mysql"], ["sh", "-c", "x"])
    assert parse(["pod", "create", "-p80:80", "-p", "81:81"]).options == {"publish": ["80:80", "81:81"]}
    assert parse(["_complete", "--root", "-x", "--", "--help"]).rest == ["--root", "-x", "--", "--help"]
    assert parse(["--root", "/r"]).command is None


@pytest.mark.parametrize(
    "line",
    [
        ["nope"],
        ["pod"],
        ["pod", "nope"],
        ["join"],
        ["join", "-x", "p"],
        ["pod", "create", "a", "b"],
        ["pod", "create", "-p"],
        ["ls", "--json=1"],
        ["wait"],
        ["pod", "create", "--publis", "1"],
        ["_ended", "x"],
        ["image", "unpack", "a"],
        ["image", "unpack", "a", "b", "c"],
        ["completion", "tcsh"],
    ],
)
def test_parse_refused(line):
    with pytest.raises(UsageError):
        parse(line)


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("image unpack a", "nsrun image unpack: missing DIR", "usage: nsrun image unpack REF DIR"),
        ("join", "nsrun join: missing POD", "usage: nsrun join POD [OPTIONS] [--] [CMD [ARG...]]"),
        ("wait", "nsrun wait: missing MEMBER...", "usage: nsrun wait [OPTIONS] MEMBER..."),
        ("pod create a b", "nsrun pod create: unexpected arguments: b", "usage: nsrun pod create [OPTIONS] [NAME]"),
        ("ls a b", "nsrun ls: unexpected arguments: a b", "usage: nsrun ls [OPTIONS]"),
        ("completion csh", "nsrun completion: unknown 'csh'", "one of: bash, zsh, fish"),
        ("join p --net x", "--net: unknown value 'x'", "one of: pod, own, host, none"),
        ("join p --user=", "--user is empty", "is a shell variable unset?"),
    ],
)
def test_what_is_wrong_with_a_line(line, message, hint):
    with pytest.raises(UsageError) as error:
        parse(line.split())
    assert (error.value.message, error.value.hint) == (message, hint)


def test_no_command_is_known_by_name_outside_the_table():
    known = {*BY_NAME, *(command.name for command in INTERNAL)}
    folder = pathlib.Path(cli.__file__).parent
    files = {path for path in folder.glob("*.py") if path.name not in ("commands.py", "foreign.py")}
    assert len(files) > 10
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare) and "command.name" in ast.unparse(node):
                named = {one.value for one in ast.walk(node) if isinstance(one, ast.Constant)} & known
                assert not named, (path.name, node.lineno, named)
            elif isinstance(node, ast.Constant):
                assert node.value not in known or " " not in node.value, (path.name, node.lineno, node.value)


def test_what_the_table_says_of_a_command():
    """Root acts as the owner, a user namespace is entered, the dead are swept."""
    names = {flag: {name for name, command in BY_NAME.items() if getattr(command, flag)} for flag in ("of_members", "userns", "sweeps")}  # fmt: skip
    assert names["of_members"] == {
        *("exec", "stats", "inspect", "logs", "wait", "stop", "kill", "rm", "attach"),
        *("start", "restart", "rename", "pause", "unpause", "top", "diff"),
    }
    assert names["userns"] == {f"image {name}" for name in ("load", "pull", "unpack", "rm", "prune", "tag")}
    assert BY_NAME.keys() - names["sweeps"] == {
        "exec",
        "explain",
        "help",
        "completion",
        "doctor",
        "map",
        "cp",
        "diff",
        "events",
    } | {name for name in BY_NAME if name.startswith(("ns ", "lab "))}
    for command in INTERNAL:
        assert callable(function(command.handler)) and not command.sweeps and not command.of_members
        assert command.name not in help.manual()


IN_A_DESTRUCTOR = """
import os, sys, time
from nsrun import cli
from nsrun.cli import members

class Object:
    def __del__(self):
        os.kill(os.getpid(), int(sys.argv[1]))

def wait(*_):
    Object()
    time.sleep(60)
    return 0

members.wait = wait
sys.exit(cli.main(["--root", sys.argv[2], "wait", "a"]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_a_destructor_is_not_lost(tmp_path, number):
    """Python ignores what is raised there; the import of a module has such a place, and a Ctrl-C fell into it."""
    done = subprocess.run(
        [sys.executable, "-Ic", IN_A_DESTRUCTOR, str(int(number)), tmp_path], capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stderr) == (128 + number, "nsrun: interrupted\n")
