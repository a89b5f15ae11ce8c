# SPDX-License-Identifier: Apache-2.0
"""Bad input: a clear message, the right exit status, nothing made, nothing lost."""

import os
import pathlib
import struct
import subprocess
import sys

import pytest
from conftest import sh


@pytest.fixture
def refused(host, pod):
    """Runs a join that must fail with `code`, and checks that the world is as before."""

    def check(code, *words, options=(), **kwargs):
        before = host.snapshot()
        message = host.fails(code, "join", "pause", *options, "--", *words, **kwargs)
        assert host.snapshot() == before
        return message

    return check


def test_rootfs_missing_a_file_empty(refused, tmp_path):
    assert "does not exist" in refused(125, "true", options=["--rootfs", tmp_path / "nope"])
    (tmp_path / "f").write_text("x")
    assert "not a directory" in refused(125, "true", options=["--rootfs", tmp_path / "f"])
    (tmp_path / "d").mkdir()
    assert "is empty" in refused(125, "true", options=["--rootfs", tmp_path / "d"])
    assert "host itself" in refused(125, "true", options=["--rootfs", "/"])
    assert "--rootfs is empty" in refused(125, "true", options=["--rootfs", ""])
    assert "--bundle is empty" in refused(125, "true", options=["--bundle", ""])


def test_command_not_found(refused, busybox):
    message = refused(127, "nope", options=["--rootfs", busybox])
    assert "'nope' not found" in message and "PATH" in message
    assert "does not exist" in refused(127, "/bin/nope", options=["--rootfs", busybox])
    assert "not found" in refused(127, "", options=["--rootfs", busybox])


def test_command_not_executable(refused, rootfs):
    (rootfs / "bin/data").write_text("#!/bin/sh\n")
    assert "not executable" in refused(126, "/bin/data", options=["--rootfs", rootfs])
    assert "not executable" in refused(126, "data", options=["--rootfs", rootfs])
    assert "executable" in refused(126, "/bin", options=["--rootfs", rootfs])


def test_more_than_execve_takes(host, pod, busybox, tmp_path):
    """Only the kernel's limits: 128 KiB for one string; nsrun itself takes any number of them."""
    (tmp_path / "env").write_text("V=" + "x" * 200_000 + "\n")
    message = host.fails(126, "join", "pause", "--env-file", tmp_path / "env", "--rootfs", busybox, "--", "true")
    assert "execve(2)" in message and "128 KiB" in message


def test_many_variables_in_an_owned_pod(host, alice, owned, box):
    """Through nsrun-door: those that are asked for, and those that their nsrun has itself."""
    file = alice.home / "env"
    file.write_text("".join(f"V{n}=1\n" for n in range(20000)))
    words = ["join", owned, "--rm", "--env-file", file, "--image", box, "--", "sh", "-c", "env | grep -c ^V"]
    done = alice.run(*words, env={f"Q{n}": "1" for n in range(12000)})
    assert done.stdout == "20000\n"


def test_missing_interpreter_crlf_and_no_format(refused, rootfs):
    """moby#40859: the kernel says ENOENT for all of them; we look and say which."""
    for name, content, code, words in (
        ("script", "#!/usr/bin/python9\n", 127, "interpreter /usr/bin/python9"),
        ("crlf", "#!/bin/sh\r\necho hi\r\n", 127, "CRLF"),
        ("empty", "", 126, "neither a program nor a script"),
        ("text", "echo hi\n", 126, "neither a program nor a script"),
    ):
        (rootfs / "bin" / name).write_text(content)
        (rootfs / "bin" / name).chmod(0o755)
        assert words in refused(code, name, options=["--rootfs", rootfs])


def test_missing_loader_and_wrong_architecture(refused, rootfs):
    data = bytearray(pathlib.Path("/bin/ls").read_bytes())
    (rootfs / "bin/dynamic").write_bytes(data)
    (rootfs / "bin/dynamic").chmod(0o755)
    assert "needs the loader" in refused(127, "dynamic", options=["--rootfs", rootfs])
    struct.pack_into("<H", data, 18, 22)  # s390x
    (rootfs / "bin/foreign").write_bytes(data)
    (rootfs / "bin/foreign").chmod(0o755)
    assert "s390x" in refused(126, "foreign", options=["--rootfs", rootfs])


@pytest.mark.parametrize("name", ["proc", "sys", "dev"])
@pytest.mark.parametrize("to", ["{host}", "../../../../../..{host}", "tmp"])
def test_symlinked_mount_points_are_never_followed(refused, rootfs, tmp_path, name, to):
    """CVE-2019-19921, CVE-2026-41579: a rootfs whose /proc, /sys or /dev is a symlink."""
    target = tmp_path / "victim"
    target.mkdir()
    (rootfs / name).rmdir()
    (rootfs / name).symlink_to(to.format(host=target))
    message = refused(125, "true", options=["--rootfs", rootfs])
    assert "symlink" in message and f"/{name}" in message
    assert list(target.iterdir()) == []


def test_a_symlinked_etc_stays_inside(host, pod, rootfs, tmp_path):
    """hosts, hostname and resolv.conf land inside the root, wherever its links lead."""
    victim = tmp_path / "etc"
    victim.mkdir()
    (victim / "passwd").write_text("host\n")
    sh("rm", "-r", rootfs / "etc")
    (rootfs / "etc").symlink_to(victim)
    host.run("join", "pause", "--rootfs", rootfs, "sh", "-c", f"cat {victim}/hostname")
    assert sorted(p.name for p in victim.iterdir()) == ["passwd"]


def test_resolv_conf_as_a_link_to_the_host(host, pod, rootfs, tmp_path):
    """CVE-2025-24965's kin: what we put at /etc/resolv.conf must not be written through a link."""
    victim = tmp_path / "victim"
    victim.write_text("host\n")
    (rootfs / "etc/resolv.conf").symlink_to(victim)
    (rootfs / "etc/hosts").symlink_to("../run/dangling/hosts")
    out = host.run("join", "pause", "--rootfs", rootfs, "cat", "/etc/hosts").stdout
    assert "localhost" in out and victim.read_text() == "host\n"


def test_renames_elsewhere_do_no_harm(host, pod, rootfs, tmp_path):
    """While anything on the machine is renamed, openat2(2) may answer EAGAIN to a path with `..`: it is asked again."""
    for name in ("hosts", "hostname", "resolv.conf"):
        (rootfs / "etc" / name).unlink(missing_ok=True)
        (rootfs / "etc" / name).symlink_to(f"../usr/../etc/../etc/{name}.real")
    (tmp_path / "a").write_text("")
    script = f"import os,time\ne=time.time()+20\nwhile time.time()<e: os.rename('{tmp_path}/a','{tmp_path}/b'); os.rename('{tmp_path}/b','{tmp_path}/a')"
    racers = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(2)]
    try:
        for _ in range(15):
            host.run("join", "pause", "--rm", "--rootfs", rootfs, "true")
    finally:
        for racer in racers:
            racer.kill()
            racer.wait()


def test_volume_source_missing(refused, busybox, tmp_path):
    assert "does not exist" in refused(125, "true", options=["--rootfs", busybox, "-v", f"{tmp_path}/nope:/x"])


def test_volume_target_through_a_symlink(host, pod, rootfs, tmp_path):
    """It lands where the link leads within the root, as the kernel says, and not where it would lead on the host."""
    (rootfs / "link").symlink_to("/tmp")
    (tmp_path / "f").write_text("in")
    before = sorted(os.listdir("/tmp"))
    done = host.run("join", "pause", "--rootfs", rootfs, "-v", f"{tmp_path}:/link/x", "--", "cat", "/tmp/x/f")
    assert done.stdout == "in" and "it is mounted at /tmp/x" in done.stderr
    assert "x" not in set(os.listdir("/tmp")) - set(before)
    (rootfs / "out").symlink_to(tmp_path)
    host.run("join", "pause", "--rootfs", rootfs, "-v", f"{tmp_path}:/out/made", "--", "true")
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_volume_directory_on_a_file(refused, rootfs, tmp_path):
    (tmp_path / "v").mkdir()
    message = refused(125, "true", options=["--rootfs", rootfs, "-v", f"{tmp_path}/v:/etc/passwd"])
    assert "directory" in message and "hint:" in message


def test_users(refused, rootfs):
    message = refused(125, "true", options=["--rootfs", rootfs, "-u", "nosuch"])
    assert "no user 'nosuch'" in message and "www-data" in message
    os.unlink(rootfs / "etc/passwd")
    os.mkfifo(rootfs / "etc/passwd")
    assert "regular file" in refused(125, "true", options=["--rootfs", rootfs, "-u", "root"], timeout=5)
    os.unlink(rootfs / "etc/passwd")
    with open(rootfs / "etc/passwd", "w") as file:
        file.truncate(2 << 30)
    assert "1 MiB" in refused(125, "true", options=["--rootfs", rootfs], timeout=5)


def test_names(refused, host, busybox):
    for name in ("", "../x", "-x", "a/b", "x" * 64):
        refused(
            2,
            "true",
            options=["--rootfs", busybox, f"--name={name}"] if name else ["--rootfs", busybox, "--name", ".."],
        )
    host.start("a", busybox, "sleep", "100")
    assert "taken" in refused(125, "true", options=["--rootfs", busybox, "--name", "a"])
    assert host.member("a")["status"] == "running"


def test_unknown_member_lists_the_known(host, pod, busybox):
    host.start("known", busybox, "sleep", "100")
    for words in (
        ["exec", "nope", "true"],
        ["inspect", "nope"],
        ["logs", "nope"],
        ["wait", "nope"],
        ["stop", "nope"],
        ["kill", "nope"],
        ["rm", "nope"],
        ["attach", "nope"],
    ):
        message = host.fails(125, *words)
        assert "no member 'nope'" in message and "known" in message


def test_exec_in_what_has_ended(host, pod, busybox):
    host.run("join", "pause", "--name", "a", "--rootfs", busybox, "true")
    assert "stopped" in host.fails(125, "exec", "a", "true")
    assert "not running" in host.fails(125, "kill", "-s", "TERM", "a")
    assert "not running" in host.fails(125, "attach", "a")


def test_working_directory(refused, rootfs):
    (rootfs / "secret").mkdir(mode=0o700)
    assert "chdir" in refused(125, "true", options=["--rootfs", rootfs, "-w", "/secret", "-u", "33"])
    assert "absolute" in refused(2, "true", options=["--rootfs", rootfs, "-w", "relative"])
    (rootfs / "file").write_text("")
    refused(125, "true", options=["--rootfs", rootfs, "-w", "/file"])


def test_limits_are_applied_or_refused(host, pod, busybox, refused):
    """crun#223, podman#8330: never ignored silently.  With the controllers on cgroup v2 the limits hold; without, an error names one."""
    controllers = pathlib.Path("/sys/fs/cgroup/cgroup.controllers")
    if not controllers.exists() or not {"memory", "pids", "cpu"} <= set(controllers.read_text().split()):
        message = refused(125, "true", options=["--rootfs", busybox, "--memory", "64m"])
        assert "'memory'" in message and "hint:" in message
        assert "'pids'" in host.fails(125, "pod", "create", "--network", "none", "--pids-limit", "9", "other")
        return
    host.start("a", busybox, "sleep", "1000", options=["--memory", "64m", "--cpus", "0.5", "--pids-limit", "20"])
    group = next(pathlib.Path(g) for g in host.cgroups() if g.endswith("m-a"))
    assert [(group / f).read_text().strip() for f in ("memory.max", "cpu.max", "pids.max")] == [
        str(64 << 20),
        "50000 100000",
        "20",
    ]
    done = host.run(
        "join pause --memory 16m --rootfs {} sh -c {}",
        busybox,
        "x=$(head -c 60000000 /dev/zero | tr '\\0' a); echo survived",
        check=False,
    )
    assert "survived" not in done.stdout and done.returncode != 0
    done = host.run(
        "join pause --pids-limit 5 --rootfs {} sh -c 'for i in 1 2 3 4 5 6 7 8 9; do sleep 1 & done; wait'",
        busybox,
        check=False,
    )
    assert "fork" in done.stderr
    host.run("pod", "create", "--network", "none", "--memory", "128m", "limited")
    group = next(pathlib.Path(g) for g in host.cgroups() if "/limited-" in g and not g.endswith("pause"))
    assert (group / "memory.max").read_text().strip() == str(128 << 20)


def test_ulimit_is_set_or_refused(host, pod, refused, busybox):
    import resource

    out = host.run(
        "join", "pause", "--ulimit", "nofile=99:100", "--rootfs", busybox, "sh", "-c", "ulimit -n; ulimit -Hn"
    ).stdout
    assert out.split() == ["99", "100"]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    capable = (
        int(next(line for line in open("/proc/self/status") if line.startswith("CapEff")).split()[1], 16) >> 24 & 1
    )
    if capable:
        out = host.run(
            "join", "pause", "--ulimit", f"nofile={hard + 1}", "--rootfs", busybox, "sh", "-c", "ulimit -Hn"
        ).stdout
        assert int(out) == hard + 1
    else:
        message = refused(125, "true", options=["--rootfs", busybox, "--ulimit", f"nofile={hard + 1}"])
        assert "prlimit" in message and "CAP_SYS_RESOURCE" in message


def test_two_sources_and_other_contradictions(refused, rootfs, tmp_path):
    refused(125, "true", options=["--rootfs", rootfs, "--bundle", tmp_path])
    refused(125, "true", options=["--bundle", tmp_path])
    refused(125, "true", options=["--writable"])
    refused(2, options=["--rootfs", rootfs])
    refused(2, "true", options=["--rootfs", rootfs, "--rm", "--restart", "always"])
    refused(2, "true", options=["--rootfs", rootfs, "--status-fd", "77"])
    refused(2, "true", options=["--rootfs", rootfs, "--security-opt", "nope"])
    refused(125, "true", options=["--rootfs", rootfs, "--env-file", tmp_path / "nope"])
    (tmp_path / "config.json").write_text("{")
    assert "JSON" in refused(125, "true", options=["--bundle", tmp_path])


def test_a_full_disk(host, pod, rootfs):
    """State that can't be written: an error, nothing made."""
    full = host.root / "full"
    full.mkdir()
    sh("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", full)
    try:
        (full / "run").mkdir()
        with open(full / "filler", "wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 1024)
            except OSError:
                pass
        done = host.run("--root", full, "pod", "create", "--network", "none", check=False)
        assert done.returncode == 125 and "No space left" in done.stderr, done.stderr
    finally:
        sh("umount", full)


def test_without_privilege(host, pod, busybox):
    done = sh(
        "setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=+dac_read_search --ambient-caps=+dac_read_search {} -m nsrun pod create --network none",
        sys.executable,
        check=False,
        env={**host.env, "HOME": "/tmp", "NSRUN_ROOT": "/tmp/nobody"},
        cwd="/",
    )
    assert done.returncode == 125 and "/etc/subuid" in done.stderr and "sudo nsrun" in done.stderr, done.stderr


def test_words_exit_2(host):
    for words in (
        ["nope"],
        ["pod", "create", "-p", "x"],
        ["pod", "create", "--nope"],
        ["join"],
        ["logs", "--tail", "x", "a"],
        ["stop", "-t", "x", "a"],
        ["kill", "-s", "NOPE", "a"],
    ):
        host.fails(2, *words)


@pytest.mark.parametrize("word", ["x:y", "evil:1.2.3", "a:999.1.1.1", "a:", ":1.2.3.4", "a:1.2.3.4 b", "a:0x7f.1"])
def test_an_address_that_is_none(host, word):
    host.fails(2, "pod", "create", "--network", "none", "--add-host", word, "pause")


@pytest.mark.parametrize("words", [["--label", "="], ["--label", "=x"]])
def test_a_label_without_a_key(host, words):
    host.fails(2, "pod", "create", "--network", "none", *words, "pause")


def test_writable_and_read_only(host, pod, busybox):
    host.fails(2, "join", pod, "--rm", "--writable", "--read-only", "--rootfs", busybox, "--", "true")


def test_an_address_in_brackets(host, busybox):
    host.run("pod", "create", "--network", "none", "--add-host", "six:[fd00::7]", "pause")
    assert "fd00::7\tsix\n" in host.run("join", "pause", "--rm", "--rootfs", busybox, "--", "cat", "/etc/hosts").stdout
    for word in ("six:[fd00::7", "six:fd00::7]", "six:[1.2.3.4"):
        host.fails(2, "pod", "create", "--network", "none", "--add-host", word, "other")


def test_every_operand_that_fails_is_reported(host, pod):
    """The others are done; the exit status is that of the first error."""
    for words in (("stop",), ("kill",), ("rm",), ("wait",), ("pod", "stop"), ("pod", "kill"), ("image", "rm")):
        message = host.fails(125, *words, "gone", "lost")
        assert "'gone'" in message and "'lost'" in message and message.count("nsrun: ") == 2, words
    done = host.run("pod", "kill", "gone", pod, "lost", check=False)
    assert (done.returncode, done.stdout) == (125, f"{pod}\n") and done.stderr.count("nsrun: ") == 2
