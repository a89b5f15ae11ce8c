# SPDX-License-Identifier: Apache-2.0
"""System call filters: ours, a profile in Docker's format, none."""

from __future__ import annotations

import json
import os
import pathlib
import threading

import pytest
from conftest import sh

from nsrun import seccomp
from nsrun.errors import BadInput
from nsrun.linux import CAPABILITIES, capability_mask
from nsrun.seccomp import widths
from nsrun.spec.options import DEFAULT_CAPABILITIES
from nsrun.state import State

DEFAULT = capability_mask(DEFAULT_CAPABILITIES)
OURS = json.loads(pathlib.Path(seccomp.DEFAULT).read_text())

TRIES = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#define TRY(name, ...) do { errno = 0; long r = syscall(__VA_ARGS__); printf("%s %d\n", name, r < 0 ? errno : 0); fflush(stdout); } while (0)
int main(void)
{
	TRY("getpid", SYS_getpid);
	TRY("keyctl", SYS_keyctl, 0, -3, 0);
	TRY("add_key", SYS_add_key, "user", "x", "y", 1, -3);
	TRY("bpf", SYS_bpf, 0, 0, 0);
	TRY("userfaultfd", SYS_userfaultfd, 0);
	TRY("perf_event_open", SYS_perf_event_open, 0, 0, 0, 0, 0);
	TRY("io_uring_setup", SYS_io_uring_setup, 1, 0);
	TRY("open_by_handle_at", SYS_open_by_handle_at, 0, 0, 0);
	TRY("mount", SYS_mount, 0, 0, 0, 0, 0);
	TRY("fsopen", SYS_fsopen, "tmpfs", 0);
	TRY("open_tree", SYS_open_tree, -100, "/", 0);
	TRY("setns", SYS_setns, -1, 0);
	TRY("unshare user", SYS_unshare, CLONE_NEWUSER);
	TRY("get_mempolicy", SYS_get_mempolicy, 0, 0, 0, 0, 0);
	TRY("unshare files", SYS_unshare, CLONE_FILES);
	TRY("clone user", SYS_clone, CLONE_NEWUSER | 17, 0, 0, 0, 0);
	TRY("clone net", SYS_clone, CLONE_NEWNET | 17, 0, 0, 0, 0);
	TRY("clone3", SYS_clone3, 0, 0);
	TRY("vsock", SYS_socket, 40, SOCK_STREAM, 0);
	TRY("tiocsti", SYS_ioctl, 0, 0x5412, "x");
	TRY("tiocsti, high bits", SYS_ioctl, 0, 0x100005412UL, "x");
	TRY("tioclinux", SYS_ioctl, 0, 0x541c, "x");
	TRY("kexec", SYS_kexec_load, 0, 0, 0, 0);
	TRY("reboot", SYS_reboot, 0, 0, 0, 0);
	TRY("swapon", SYS_swapon, "/x", 0);
	TRY("process_vm_readv", SYS_process_vm_readv, 1, 0, 0, 0, 0, 0);
	TRY("nonsense", 4000);
	return 0;
}
"""
EPERM, ENOSYS = 1, 38


@pytest.fixture(scope="session")
def tries(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("tries")
    path.chmod(0o755)
    (path / "t.c").write_text(TRIES)
    sh("cc", "-static", "-O1", "-o", path / "tries", path / "t.c", timeout=60)
    return path


def results(host, pod: str, busybox: str, tries: pathlib.Path, *options: object) -> dict[str, int]:
    done = host.run("join", pod, "--rm", *options, "-v", f"{tries}:/t:ro", "--rootfs", busybox, "--", "/t/tries")
    return {line.rpartition(" ")[0]: int(line.rpartition(" ")[2]) for line in done.stdout.splitlines()}


@pytest.mark.live
@pytest.mark.parametrize("options", [[], ["-u", "33"], ["--security-opt", "no-new-privileges"]])
def test_what_no_service_needs_is_refused(host, pod, busybox, tries, options):
    found = results(host, pod, busybox, tries, *options)
    assert (found.pop("getpid"), found.pop("unshare files")) == (0, 0)
    assert found.pop("get_mempolicy") == 0  # of its own memory: MySQL asks for it, and complains where it is refused
    assert (found.pop("clone3"), found.pop("nonsense")) == (ENOSYS, ENOSYS)
    assert set(found.values()) == {EPERM}, found


@pytest.mark.live
def test_a_capability_brings_its_calls(host, pod, busybox, tries):
    found = results(host, pod, busybox, tries, "--cap-add", "SYS_ADMIN", "--cap-add", "SYS_PTRACE")
    assert found["setns"] != EPERM and found["clone3"] != ENOSYS and found["process_vm_readv"] != EPERM
    assert found["keyctl"] == found["userfaultfd"] == found["tiocsti"] == EPERM


@pytest.mark.live
def test_unconfined(host, pod, busybox, tries):
    found = results(host, pod, busybox, tries, "--security-opt", "seccomp=unconfined")
    assert found["tiocsti"] != EPERM and found["keyctl"] != EPERM
    status = host.run("join", pod, "--rm", "--security-opt", "seccomp=unconfined", "--rootfs", busybox, "cat", "/proc/self/status").stdout  # fmt: skip
    assert "Seccomp:\t0" in status


@pytest.mark.live
def test_exec_and_restart_have_the_same_filter(host, pod, busybox):
    host.start("m", busybox, "sleep", "100")
    for words in (["exec", "m"], ["exec", "-u", "33", "m"]):
        assert "Seccomp:\t2" in host.run(*words, "cat", "/proc/self/status").stdout
    assert "Operation not permitted" in host.run("exec", "m", "unshare", "-U", "true", check=False).stderr


@pytest.mark.live
def test_a_damaged_filter_is_made_anew(host, pod, busybox):
    """Half of what is kept would filter half: it has a checksum, and ours is compiled again."""
    count = ("join", pod, "--rm", "--rootfs", busybox, "--", "grep", "Seccomp_filters", "/proc/self/status")
    whole = host.run(*count).stdout  # and leaves a compiled plan, with a filter of its own
    (kept,) = (host.root / "lib/seccomp").iterdir()
    data = kept.read_bytes()
    for broken in (b"", data[:4], data[: len(data) // 2], data[:-8], data[:40] + bytes([data[40] ^ 1]) + data[41:]):
        kept.write_bytes(broken)
        assert host.run(*count).stdout == whole == host.run(*count, env={"NSRUN_REPLAY": "0"}).stdout
        assert kept.read_bytes() == data


@pytest.mark.live
def test_a_profile_of_ones_own(host, pod, busybox, tmp_path):
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}  # fmt: skip
    (tmp_path / "p.json").write_text(json.dumps(profile))
    run = ("join", pod, "--rm", "--security-opt", f"seccomp={tmp_path}/p.json", "--rootfs", busybox, "--")
    assert "No space left" in host.run(*run, "mkdir", "/x", check=False).stderr
    host.run(*run, "touch", "/x")
    host.run("join", pod, "-d", "--name", "m", *run[3:-1], "--", "sleep", "100")
    profile["syscalls"] = []
    (tmp_path / "p.json").write_text(json.dumps(profile))  # a member keeps the one it began with
    assert "No space left" in host.run("exec", "m", "mkdir", "/x", check=False).stderr
    host.run(*run, "mkdir", "/x")


@pytest.mark.live
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[]", "not an object"),
        ('{"syscalls": [{"names": ["read"]}]}', "rule 1"),
        ('{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_EXPLODE"}]}', "SCMP_ACT_EXPLODE"),
        ('{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 7, "value": 1, "op": "SCMP_CMP_EQ"}]}]}', "rule 1"),
        ('{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 1, "value": 1, "op": "SCMP_CMP_SO"}]}]}', "SCMP_CMP_SO"),
        (" " * (1 << 21), "larger than 1 MiB"),
        ('{"syscalls": [{"names": "read", "action": "SCMP_ACT_ERRNO"}]}', "rule 1"),
        ('{"syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": "many"}]}', "rule 1"),
        ('{"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": "x", "syscalls": []}', "defaultErrnoRet"),
        ('{"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 5000, "syscalls": []}', "defaultErrnoRet"),
        ('{"defaultAction": "SCMP_ACT_ALLOW", "architectures": 5}', "architectures"),
        ('{"defaultAction": "SCMP_ACT_ALLOW", "archMap": 5}', "archMap"),
    ],
)  # fmt: skip
def test_broken_profiles(host, pod, busybox, tmp_path, text, said):
    (tmp_path / "p.json").write_text(text)
    before = host.snapshot()
    message = host.fails(125, "join", pod, "--security-opt", f"seccomp={tmp_path}/p.json", "--rootfs", busybox, "true")
    assert said in message
    assert host.snapshot() == before


@pytest.mark.live
def test_a_profile_that_is_not_there(host, pod, busybox):
    assert "/nothing.json" in host.fails(125, "join", pod, "--security-opt", "seccomp=/nothing.json", "--rootfs", busybox, "true")  # fmt: skip
    assert "profile 'bundle'" in host.fails(125, "join", pod, "--security-opt", "seccomp=bundle", "--rootfs", busybox, "true")  # fmt: skip
    assert "unknown" in host.fails(2, "join", pod, "--security-opt", "seccomp=", "--rootfs", busybox, "true")


@pytest.mark.live
def test_the_strictest_rule_wins(host, pod, busybox, tmp_path):
    """A call that one rule allows and another refuses is refused, in any order."""
    allow, refuse = ({"names": ["mkdir", "mkdirat"], "action": f"SCMP_ACT_{word}"} for word in ("ALLOW", "ERRNO"))
    every = {"names": OURS["syscalls"][0]["names"], "action": "SCMP_ACT_ALLOW"}
    for rules in ([every, allow, refuse], [refuse, every, allow]):
        (tmp_path / "p.json").write_text(json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules}))
        run = ("join", pod, "--rm", "--security-opt", f"seccomp={tmp_path}/p.json", "--rootfs", busybox, "--")
        assert "Operation not permitted" in host.run(*run, "mkdir", "/x", check=False).stderr
        host.run(*run, "touch", "/x")


@pytest.mark.live
def test_a_bundle_brings_its_own(host, pod, busybox, tmp_path):
    config = {"ociVersion": "1.0.2", "process": {"args": ["mkdir", "/x"], "cwd": "/", "user": {"uid": 0, "gid": 0}}, "root": {"path": busybox},
              "linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}}}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "No space left" in host.run("join", pod, "--rm", "--bundle", tmp_path, check=False).stderr


def test_rules_by_capability():
    without = {
        name for rule in seccomp.rules(OURS, DEFAULT, "it") if rule.action == "SCMP_ACT_ALLOW" for name in rule.names
    }
    everything = {name for rule in seccomp.rules(OURS, (1 << len(CAPABILITIES)) - 1, "it") if rule.action == "SCMP_ACT_ALLOW" for name in rule.names}  # fmt: skip
    assert {
        "mount",
        "setns",
        "reboot",
        "bpf",
        "perf_event_open",
        "open_by_handle_at",
        "init_module",
    } <= everything - without
    assert {"keyctl", "userfaultfd", "io_uring_setup", "swapon"} & everything == set()
    assert "chroot" in without  # one of the fourteen capabilities


def test_every_capability_set_compiles():
    """Within what the kernel takes, twice over."""
    for caps in (0, DEFAULT, (1 << len(CAPABILITIES)) - 1):
        data = seccomp.programs(OURS, caps, "it")
        assert 1000 < len(data) < 2 * 4096 * 8


def test_rules_of_a_broken_profile():
    for document in ([], {"syscalls": {}}, {"syscalls": [5]}, {"syscalls": [{"names": [1], "action": "x"}]}):
        with pytest.raises(BadInput):
            seccomp.rules(document, 0, "it")


def test_the_key_follows_the_profile(tmp_path):
    (tmp_path / "p").write_text("a")
    one = seccomp.key(str(tmp_path / "p"), 1)
    (tmp_path / "p").write_text("b")
    assert len({one, seccomp.key(str(tmp_path / "p"), 1), seccomp.key(str(tmp_path / "p"), 2), seccomp.key("", 1)}) == 4


def test_many_compile_at_once(tmp_path):
    """Threads of one process, in a new state directory."""
    state, found = State(str(tmp_path)), []
    name = seccomp.key("", DEFAULT)
    threads = [
        threading.Thread(target=lambda: found.append(seccomp.compiled(state, name, "", DEFAULT))) for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 12 and len(set(found)) == 1
    assert os.listdir(f"{state.lib}/seccomp") == [name]
    assert [os.stat(f"{state.lib}{part}").st_mode & 0o777 for part in ("", "/seccomp")] == [0o700, 0o700]


# ---- what the kernel reads of an argument ------------------------------------------------------------------

CALLS = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
/* Lines of "NUMBER A0 … A5" on stdin; what each call's errno is, made by a process of its own. */
int main(void)
{
	unsigned long n, a[6];
	while (scanf("%lu %lx %lx %lx %lx %lx %lx", &n, a, a + 1, a + 2, a + 3, a + 4, a + 5) == 7) {
		int status;
		pid_t pid = fork();
		if (!pid) {
			pid_t me = getpid();
			char line[20];
			errno = 0;
			long r = syscall(n, a[0], a[1], a[2], a[3], a[4], a[5]);
			if (getpid() != me)
				_exit(0); /* the child of a clone */
			int length = sprintf(line, "%d\n", r < 0 ? errno : 0);
			_exit(write(1, line, length) != length);
		}
		if (waitpid(pid, &status, 0) != pid || status)
			return 1;
	}
	return 0;
}
"""
#: The kernel's prototypes, for the calls below: (call, index) → bits.
PROTOTYPES = {
    ("personality", 0): 32,  # unsigned int
    ("clone", 0): 32,  # unsigned long, of which kernel_clone() takes lower_32_bits()
    ("unshare", 0): 64,  # unsigned long
    ("socket", 0): 32,  # int
    ("socket", 1): 32,
    ("ioctl", 1): 32,  # unsigned int
    ("chmod", 1): 16,  # umode_t
    ("lseek", 1): 64,  # off_t
}
REFUSED, DEFAULTED = 3999, 3998  # no error of the kernel's
HIGH = (0, 1 << 32, 1 << 63, (1 << 64) - (1 << 32), 1 << 16, 1 << 31)


@pytest.fixture(scope="session")
def calls(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("calls")
    path.chmod(0o755)
    (path / "c.c").write_text(CALLS)
    sh("cc", "-static", "-O1", "-o", path / "calls", path / "c.c", timeout=60)
    return path


def is_true(op: str, argument: int, value: int, two: int) -> bool:
    return {
        "NE": argument != value, "EQ": argument == value, "LT": argument < value, "LE": argument <= value,
        "GT": argument > value, "GE": argument >= value, "MASKED_EQ": argument & value == two,
    }[op]  # fmt: skip


def expected(profile: dict, call: str, args: list[int]) -> bool:
    """Whether the filter lets it through: what the kernel reads is what is compared, and the strictest rule wins."""
    allowed, refused = profile["defaultAction"] == "SCMP_ACT_ALLOW", False
    for rule in seccomp.rules(profile, DEFAULT, "it"):
        read = [args[i] & (1 << PROTOTYPES.get((call, i), 64)) - 1 for i in range(6)]
        if call in rule.names and all(
            is_true(op.removeprefix("SCMP_CMP_"), read[i], value, two) for i, op, value, two in rule.args
        ):
            refused, allowed = refused or rule.action != "SCMP_ACT_ALLOW", allowed or rule.action == "SCMP_ACT_ALLOW"
    return allowed and not refused


def telling(profile: dict) -> dict:
    """The profile with errors that are no errors of the kernel's."""
    rules = [{**r, "errnoRet": REFUSED} if r["action"] == "SCMP_ACT_ERRNO" else r for r in profile["syscalls"]]
    return {**profile, "defaultErrnoRet": DEFAULTED, "syscalls": rules}


def around(profile: dict) -> list[tuple[str, list[int]]]:
    """For every comparison of a profile: its operands, their neighbours, and each with bits that are too high."""
    found = []
    for rule in profile["syscalls"]:
        for arg in rule.get("args") or []:
            edges = {arg["value"], arg.get("valueTwo") or 0}
            edges |= {edge + step for edge in edges for step in (-1, 1) if edge + step >= 0}
            for call in rule["names"]:
                for edge in sorted(edges):
                    for high in HIGH:
                        args = [0] * 6
                        args[arg["index"]] = (edge | high) & (1 << 64) - 1
                        found.append((call, args))
    return found


def outcomes(host, pod, busybox, calls, tmp_path, profile, wanted) -> None:
    import pyseccomp

    (tmp_path / "p.json").write_text(json.dumps(telling(profile)))
    lines = "".join(
        f"{pyseccomp.resolve_syscall(pyseccomp.system_arch(), call)} {' '.join(f'{a:x}' for a in args)}\n"
        for call, args in wanted
    )
    done = host.run(
        "join", pod, "--rm", "-i", "--security-opt", f"seccomp={tmp_path}/p.json", "-v", f"{calls}:/t:ro",
        "--rootfs", busybox, "--", "/t/calls", input=lines,
    )  # fmt: skip
    errors = [int(line) for line in done.stdout.split()]
    assert len(errors) == len(wanted) > 10
    verdicts = [expected(profile, *one) for one in wanted]
    assert True in verdicts and False in verdicts
    for (call, args), error, verdict in zip(wanted, errors, verdicts, strict=True):
        assert (error not in (REFUSED, DEFAULTED)) == verdict, (call, [hex(a) for a in args], error)


@pytest.mark.live
def test_every_comparison_of_ours_sees_what_the_kernel_reads(host, pod, busybox, calls, tmp_path):
    """AF_VSOCK with bit 32 set was AF_VSOCK to the kernel and another number to the filter."""
    wanted = around(OURS)
    compared = {(n, a["index"]) for r in OURS["syscalls"] for a in r.get("args") or [] for n in r["names"]}
    assert compared <= set(PROTOTYPES), "say how wide the arguments of a new rule are"
    outcomes(host, pod, busybox, calls, tmp_path, OURS, wanted)


@pytest.mark.live
@pytest.mark.parametrize("action", ["ALLOW", "ERRNO"])
@pytest.mark.parametrize("op", ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"])
def test_every_comparison_of_a_users_profile(host, pod, busybox, calls, tmp_path, op, action):
    """Of an int, an unsigned int, a umode_t and an off_t; whether the rule allows or refuses."""
    every = [n for n in OURS["syscalls"][0]["names"] if n not in ("socket", "ioctl", "chmod", "lseek")]
    base = [] if action == "ERRNO" else [{"names": every, "action": "SCMP_ACT_ALLOW"}]
    args = [("socket", 0, 40, 8), ("ioctl", 1, 0x5412, 0x5410), ("chmod", 1, 0o4755, 0o4000), ("lseek", 1, 1 << 33, 1 << 33)]  # fmt: skip
    rules = [
        {"names": [name], "action": f"SCMP_ACT_{action}", "args": [{"index": index, "op": f"SCMP_CMP_{op}", "value": value, "valueTwo": two}]}
        for name, index, value, two in args
    ]  # fmt: skip
    profile = {"defaultAction": "SCMP_ACT_ALLOW" if action == "ERRNO" else "SCMP_ACT_ERRNO", "syscalls": base + rules}
    outcomes(host, pod, busybox, calls, tmp_path, profile, around(profile))


@pytest.mark.live
def test_a_refusal_by_one_argument_and_a_leave_by_another(host, pod, busybox, calls, tmp_path):
    """The strictest wins between conditional rules of one call, too; of two comparisons in a rule both must be true."""
    every = {"names": [n for n in OURS["syscalls"][0]["names"] if n != "socket"], "action": "SCMP_ACT_ALLOW"}

    def rule(action: str, *args: tuple[int, str, int]) -> dict:
        comparisons = [{"index": i, "op": f"SCMP_CMP_{op}", "value": value} for i, op, value in args]
        return {"names": ["socket"], "action": f"SCMP_ACT_{action}", "args": comparisons}

    allow, refuse = rule("ALLOW", (0, "NE", 40)), rule("ERRNO", (1, "EQ", 3))
    wanted = [
        ("socket", [domain | high, kind | high, 0, 0, 0, 0]) for domain in (1, 2, 40) for kind in (1, 3) for high in HIGH
    ]  # fmt: skip
    for rules in ([allow, refuse], [refuse, allow], [rule("ALLOW", (0, "NE", 40), (1, "LT", 3))]):
        profile = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [every, *rules]}
        outcomes(host, pod, busybox, calls, tmp_path, profile, wanted)


@pytest.mark.parametrize("bits", [4, 5])
@pytest.mark.parametrize("op", ["NE", "LT", "LE", "EQ", "GE", "GT"])
def test_masked_comparisons_are_the_comparison(op, bits):
    for value in range(1 << bits):
        pairs = widths.masked(op, value, 0, bits)
        for argument in range(1 << bits + 2):
            found = any(argument & mask == wanted for mask, wanted in pairs)
            assert found == is_true(op, argument & (1 << bits) - 1, value, 0)


def test_an_operand_that_the_argument_can_not_have():
    assert widths.masked("EQ", (1 << 64) - 1, 0, 32) == [((1 << 32) - 1, (1 << 32) - 1)]  # -1
    for value in (1 << 32, (1 << 64) - (1 << 32), 1 << 63):
        with pytest.raises(BadInput, match="32 bits"):
            widths.masked("EQ", value, 0, 32)
    wrong = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["socket"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 1 << 40, "op": "SCMP_CMP_EQ"}]}]}  # fmt: skip
    with pytest.raises(BadInput, match="socket, argument 0"):
        seccomp.programs(wrong, 0, "it")
    many = [{"index": i, "value": 1, "op": "SCMP_CMP_NE"} for i in range(3)]
    with pytest.raises(BadInput, match="too much"):
        seccomp.programs(
            {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": ["socket"], "action": "SCMP_ACT_ERRNO", "args": many}],
            },
            0,
            "it",
        )


def test_a_profile_that_was_compiled_otherwise_is_compiled_anew(tmp_path, monkeypatch):
    (tmp_path / "p").write_text("a")
    names = [seccomp.key("", 1), seccomp.key(str(tmp_path / "p"), 1)]
    monkeypatch.setattr(seccomp, "COMPILER", seccomp.COMPILER + 1)
    assert not {seccomp.key("", 1), seccomp.key(str(tmp_path / "p"), 1)} & set(names)
