# SPDX-License-Identifier: Apache-2.0
"""A value that is not understood never widens: closed sets are checked by the table of commands, for everybody."""

import os

import pytest

import nsrun
from nsrun.cli.commands import COMMANDS, checked, closed_set, parse
from nsrun.errors import UsageError
from nsrun.spec import member as spec
from nsrun.spec import options as words

CLOSED = [(command, option) for command in COMMANDS for option in command.options if closed_set(option.value)]
WRONG = ("garbage", "", "container:x", "Pod", " pod", "hosts", "\udcff", "pod,own", "OWN")


def line(command, *more: str) -> list[str]:
    return [*command.name.split(), *more, *("a" for operand in command.operands if not operand.optional)]


def test_the_table_knows_them_all():
    flags = {option.flags[-1] for _, option in CLOSED}
    assert flags == {"--net", "--ipc", "--pid", "--uts", "--restart", "--format", "--tls-verify", "--security-opt", "--type", "--compare", "--condition", "--publish-mode"}  # fmt: skip
    for short, known in spec.NAMESPACES.items():
        option = next(o for c, o in CLOSED if o.flags == (f"--{short}",))
        assert closed_set(option.value) == list(known)


@pytest.mark.parametrize(("command", "option"), CLOSED, ids=lambda x: getattr(x, "name", None) or x.key)
def test_every_other_word_is_refused(command, option):
    known = closed_set(option.value)
    for word in known:
        value = word.replace("[", "").replace("]", "").replace("N", "3")
        assert parse(line(command, f"{option.flags[-1]}={value}")).options[option.key] in (value, [value])
    for word in (*WRONG, *(f"{w}x" for w in known if "=" not in w), *(f"x{w}" for w in known)):
        for given in ([f"{option.flags[-1]}={word}"], [option.flags[-1], word]):
            with pytest.raises(UsageError) as error:
                parse(line(command, *given))
            assert error.value.exit_code == 2 and all(w in error.value.hint for w in known)
        with pytest.raises(UsageError):
            checked(command.name, {option.key: [word] if option.many else word})


@pytest.mark.parametrize("word", ["garbage", "", "bash,zsh", "FISH"])
def test_a_shell_that_has_no_completion(word):
    with pytest.raises(UsageError) as error:
        parse(["completion", word])
    assert "bash, zsh, fish" in error.value.hint


def test_an_empty_word_is_no_word_left_out():
    for command in COMMANDS:
        for option in command.options:
            if option.value and not option.empty:
                with pytest.raises(UsageError):
                    parse(line(command, f"{option.flags[-1]}="))
    with pytest.raises(UsageError, match="--root"):
        parse(["--root", "", "pod", "prune"])


def test_the_spec_has_no_else():
    for short in spec.NAMESPACES:
        for word in ("garbage", "", "container:x", "nested" if short != "pid" else "host"):
            with pytest.raises(UsageError):
                spec.namespace(short, word)
    with pytest.raises(UsageError):
        words.parse_mount("type=bind,source=/a,target=/b,readonly=garbage")
    assert "ro" not in words.parse_mount("type=bind,source=/a,target=/b,readonly=false")["options"]


@pytest.mark.parametrize("flag", ["net", "ipc", "pid", "uts"])
@pytest.mark.parametrize("word", ["garbage", "", "container:x", "none", "host"])
def test_nothing_is_begun(host, pod, busybox, flag, word):
    if (flag, word) in (("net", "none"), ("net", "host")):
        return
    before = host.snapshot()
    message = host.fails(2, "join", pod, f"--{flag}={word}", "--rootfs", busybox, "--", "true")
    assert "pod, " in message and f"--{flag}" in message
    assert host.snapshot() == before


def test_no_network_is_only_lo(host, pod, busybox):
    out = host.run("join", pod, "--net", "none", "--sysctl", "net.ipv4.ip_default_ttl=11", "--rootfs", busybox, "--", "sh", "-c",
                   "readlink /proc/self/ns/net; ls /sys/class/net; ip addr show lo; cat /proc/sys/net/ipv4/ip_default_ttl").stdout  # fmt: skip
    lines = out.split("\n")
    assert lines[1] == "lo" and "UP" in out and "127.0.0.1" in out and lines[-2] == "11"
    namespaces = {host.pod()["namespaces"]["net"], os.stat("/proc/thread-self/ns/net").st_ino}
    assert int(lines[0].strip("net:[]")) not in namespaces


def test_programs_are_refused_alike(host, pod, busybox, monkeypatch):
    monkeypatch.setenv("NSRUN_ROOT", str(host.root))
    before = host.snapshot()
    one = nsrun.Pod(pod)
    for options in ({"read_onyl": True}, {"cap_dorp": ["ALL"]}, {"detached": True}, {"status_fd": 1}, {"log_cap": 5}, {"read_only": "yes"}, {"cap_drop": "ALL"}, {"net": True}, {"name": b"x"}, {"env": {"A": "1"}}):  # fmt: skip
        for call in (one.run, one.join):
            with pytest.raises(TypeError):
                call(["true"], rootfs=busybox, **options)
    for options in ({"net": "garbage"}, {"net": ""}, {"pid": "host"}, {"ipc": "none"}, {"uts": "host"}, {"restart": "often"}, {"security_opt": ["seccomp"]}, {"user": ""}):  # fmt: skip
        for call in (one.run, one.join):
            with pytest.raises(nsrun.UsageError):
                call(["true"], rootfs=busybox, **options)
    for options in ({"publsh": ["80:80"]}, {"publish": "80:80"}, {"names": "x"}):
        with pytest.raises(TypeError):
            nsrun.Pod.create("other", **options)
    for options in ({"network": "bridged"}, {"network": ""}):
        with pytest.raises(nsrun.UsageError):
            nsrun.Pod.create("other", **options)
    with pytest.raises(TypeError, match="list of strings"):
        one.run("true", rootfs=busybox)
    assert host.snapshot() == before
    member = one.join(["sleep", "100"], rootfs=busybox, name="m", cap_drop=("ALL",), net=None, read_only=False)
    for options in ({"usr": "1"}, {"env": "A=1"}, {"terminal": 1}):
        with pytest.raises(TypeError):
            member.exec(["true"], **options)
    assert member.exec(["true"], env=["A=1"]).exit_code == 0


def test_an_owners_program_is_refused_alike(host, alice, owned, box):
    """In a pod with a user namespace another process starts the member: what is wrong is said by this one all the same."""
    import sys

    script = """
import sys, nsrun
pod = nsrun.Pod("pause")
def refused(kind, call, *words, **options):
    try:
        call(*words, **options)
    except kind:
        return
    raise SystemExit(f"{options} was taken")
member = pod.join(["sleep", "100"], image=sys.argv[1], name="m")
for call in (pod.join, pod.run):
    refused(TypeError, call, ["true"], image=sys.argv[1], read_onyl=True)
    refused(TypeError, call, ["true"], image=sys.argv[1], cap_drop="ALL")
    refused(nsrun.UsageError, call, ["true"], image=sys.argv[1], net="garbage")
    refused(nsrun.UsageError, call, ["true"], image=sys.argv[1], ulimit=["nofile"])
refused(TypeError, member.exec, ["true"], usr="1")
refused(TypeError, nsrun.Pod.create, "mine", nework="none")
refused(nsrun.UsageError, nsrun.Pod.create, "mine", network="garbage")
assert [m.name for m in pod.members()] == ["m"]
member.stop(0); member.remove()
print("ok")
"""
    assert alice.sh(sys.executable, "-c", script, box).stdout == "ok\n"
