# SPDX-License-Identifier: Apache-2.0
"""ls and pod ls: --quiet, --filter and --format, in docker's words; what is not known is refused."""

from __future__ import annotations

import json

import pytest
from conftest import wait_for

from nsrun.cli import lists
from nsrun.cli.commands import parse
from nsrun.errors import UsageError

MEMBER = {
    "id": "0123456789ab", "name": "web", "pod": "p", "status": "stopped", "exit_code": 3, "image": "docker.io/library/nginx:1",
    "labels": {"a": "1", "b": ""}, "command": ["x", "y"], "pid": 0, "created": "T", "started": None, "restarts": 0,
}  # fmt: skip
POD = {
    "id": "ab", "name": "p", "status": "running", "labels": {"tier": "front"}, "network": {"mode": "bridge", "ip": "10.0.0.2"},
    "members": ["web", "db"], "ports": [{"host_ip": "0.0.0.0", "host_port": 8080, "pod_port": 80, "protocol": "tcp"}],
    "pid": 5, "created": "T", "owner": "root",
}  # fmt: skip


def shape(line: str, pods: bool = False) -> lists.Shape:
    call = parse([*(["pod"] if pods else []), "ls", *line.split()])
    kinds = (lists.POD_FILTERS, lists.POD_FIELDS) if pods else (lists.MEMBER_FILTERS, lists.MEMBER_FIELDS)
    return lists.Shape(call, *kinds)


@pytest.mark.parametrize(
    ("line", "fits"),
    [
        ("-f name=we", True),
        ("-f name=^we", True),
        ("-f name=^web$", True),
        ("-f name=^/web$", True),
        ("-f name=eb$", True),
        ("-f name=^eb", False),
        ("-f name=we$", False),
        ("-f name=/eb", False),
        ("-f name=x", False),
        ("-f name=x -f name=web", True),
        ("-f name=web -f status=running", False),
        ("-f name=web -f status=stopped", True),
        ("-f id=0123", True),
        ("-f label=a", True),
        ("-f label=a=1", True),
        ("-f label=a=2", False),
        ("-f label=b=", True),
        ("-f label=c", False),
        ("-f pod=p", True),
        ("-f exited=3", True),
        ("-f exited=0", False),
        ("-f exited=003", True),
        ("-f status=exited", True),
        ("-f status=paused", False),
        ("-f ancestor=nginx:1", True),
        ("-f ancestor=docker.io/library/nginx", True),
        ("-f ancestor=ginx:1", False),
    ],
)
def test_filters_of_members(line, fits):
    assert shape(line).takes(MEMBER) is fits


@pytest.mark.parametrize(("line", "fits"), [("-f network=bridge", True), ("-f network=none", False), ("-f ctr-names=db", True), ("-f label=tier=front", True), ("-f name=p -f status=stopped", False)])  # fmt: skip
def test_filters_of_pods(line, fits):
    assert shape(line, pods=True).takes(POD) is fits


@pytest.mark.parametrize("line", ["-f network=no/pe", "-f network=", "-f status=up", "-f exited=0"])
def test_filters_of_pods_that_are_refused(line):
    with pytest.raises(UsageError):
        shape(line, pods=True)


@pytest.mark.parametrize(
    "line",
    [
        "-f x=1",
        "-f name",
        "-f name=",
        "-f name=^$",
        "-f name=we|x",
        "-f name=we.*",
        "-f id=",
        "-f pod=",
        "-f label=",
        "-f ancestor=",
        "-f status=bogus",
        "-f status=",
        "-f exited=abc",
        "-f exited=256",
        "-f exited=",
        "-f =x",
        "--format {{.Nope}}",
        "--format {{.Name",
        "--format {{Name}}",
        "--format {{range",
        "-q --json",
        "-q --format json",
        "--json --format json",
    ],
)
def test_what_is_not_known_is_refused(line):
    with pytest.raises(UsageError):
        shape(line)


@pytest.mark.parametrize(
    ("template", "line"),
    [("{{.Name}}", "web\n"), ("{{ .Names }}\\t{{.ExitCode}}", "web\t3\n"), ("x{{.Image}}y", "xdocker.io/library/nginx:1y\n"), ("{{.Labels}}|{{.Command}}", "a=1,b=|x y\n"), ("table {{.ID}}\\t{{.CreatedAt}}", "ID            CREATED AT\n0123456789ab  T\n")],
)  # fmt: skip
def test_templates(template, line, capsys):
    call = parse(["ls", "--format", template])
    assert lists.Shape(call, lists.MEMBER_FILTERS, lists.MEMBER_FIELDS).show([MEMBER])
    assert capsys.readouterr().out == line


def test_every_field_of_a_pod(capsys):
    for field in lists.POD_FIELDS:
        shape(f"--format {{{{.{field}}}}}", pods=True).show([POD])
    assert "0.0.0.0:8080->80/tcp" in capsys.readouterr().out


@pytest.mark.live
def test_lists_of_what_there_is(host, pod, busybox, alice, box):
    owned = "owned"
    host.run("pod", "create", "--network", "none", owned, env={"SUDO_UID": str(alice.uid)})
    host.start("web", busybox, "sleep", "1000")
    host.run("join", pod, "--name", "done", "--rootfs", busybox, "--", "sh", "-c", "exit 3", check=False)
    alice.run("join", owned, "-d", "--name", "hers", "--image", box, "--", "sleep", "1000")
    wait_for(lambda: host.member("done")["status"] == "stopped")
    assert sorted(host.run("ls", "-q").stdout.split()) == ["hers", "web"]
    assert sorted(host.run("ls", "-aq").stdout.split()) == ["done", "hers", "web"]
    assert host.run("ls", "-q", "-f", "exited=3").stdout == "done\n"
    assert host.run("ls", "-q", "--filter", "status=stopped").stdout == "done\n"
    assert host.run("ls", "--format", "{{.Name}} {{.ExitCode}}", "-a", "-f", "name=done").stdout == "done 3\n"
    assert [m["name"] for m in json.loads(host.run("ls", "--format", "json", "-f", "name=web").stdout)] == ["web"]
    assert [m["name"] for m in host.json("ls", "-f", "name=web")] == ["web"]
    assert host.run("pod", "ls", "-q").stdout.split() == [owned, pod]
    assert host.run("pod", "ls", "--format", "table {{.Name}}\\t{{.Network}}").stdout.split() == [
        "NAME",
        "NETWORK",
        owned,
        "none",
        pod,
        "none",
    ]
    assert "KEY is one of" in host.fails(2, "ls", "-f", "x=1")
    host.run("stop", "-t", "0", *host.run("ls", "-q", "-f", "pod=" + pod).stdout.split())
