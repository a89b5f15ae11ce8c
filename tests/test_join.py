# SPDX-License-Identifier: Apache-2.0
"""Members: their roots, namespaces, words; how they end."""

import json
import os
import pathlib
import signal
import subprocess
import time

import pytest
from conftest import kill, open_files, sh, wait_for

from nsrun import kernel
from nsrun.linux import capability_mask


def inside(host, busybox, *words, options=()):
    return host.run("join", "pause", "--rootfs", busybox, *options, "--", *words).stdout


def test_members_share_the_pod(host, pod, busybox):
    host.start("a", busybox, "sleep", "1000")
    host.start("b", busybox, "sleep", "1000")
    a, b, p = host.member("a"), host.member("b"), host.pod()
    for name in ("net", "ipc", "uts", "pid", "user"):
        assert a["namespaces"][name] == b["namespaces"][name] == p["namespaces"][name], name
    assert len({a["namespaces"]["mnt"], b["namespaces"]["mnt"], p["namespaces"]["mnt"]}) == 3
    host.run("exec", "a", "sh", "-c", "echo hello >/dev/shm/test")
    assert host.run("exec", "b", "cat", "/dev/shm/test").stdout == "hello\n"
    ps = host.run("exec", "b", "ps", "-o", "pid,ppid,user,args").stdout
    assert [line.split()[:3] for line in ps.splitlines()[1:2]] == [["1", "0", "65535"]]
    assert ps.count("sleep 1000") == 2
    assert p["members"] == ["a", "b"] or set(p["members"]) == {"a", "b"}
    assert set(a) >= {
        "id",
        "name",
        "pod",
        "status",
        "pid",
        "pid_in_pod",
        "exit_code",
        "created",
        "started",
        "finished",
        "command",
        "rootfs",
        "namespaces",
    }
    # what NSRUN_REPLAY=always begins twice is the third
    assert (
        a["pid_in_pod"] == (3 if os.environ.get("NSRUN_REPLAY") == "always" else 2)
        and a["status"] == "running"
        and a["command"] == ["sleep", "1000"]
    )


@pytest.mark.parametrize("code", [0, 1, 7, 125, 255])
def test_exit_status(host, pod, busybox, code):
    assert host.run("join", "pause", "--rootfs", busybox, "sh", "-c", f"exit {code}", check=False).returncode == code


def test_exit_by_signal(host, pod, busybox):
    assert host.run("join", "pause", "--rootfs", busybox, "sh", "-c", "kill -9 $$", check=False).returncode == 137


def test_output_and_log(host, pod, busybox):
    done = host.run(
        "join", "pause", "--name", "a", "--rootfs", busybox, "sh", "-c", "echo out; echo err >&2; printf tail"
    )
    assert (done.stdout, done.stderr) == ("out\ntail", "err\n")
    log = host.run("logs", "a")
    assert (log.stdout, log.stderr) == ("out\ntail", "err\n")
    host.run("join", "pause", "--name", "b", "--rootfs", busybox, "sh", "-c", "seq 100")
    assert host.run("logs", "--tail", "2", "b").stdout == "99\n100\n"
    stamped = host.run("logs", "-t", "a").stdout.splitlines()[0]
    assert stamped.startswith(time.strftime("%Y-%m-", time.gmtime())) and stamped.endswith("Z out")


def test_input_goes_to_an_interactive_member_only(host, pod, busybox):
    data = "x" * 300_000 + "\n"
    assert host.run("join", "pause", "-i", "--rootfs", busybox, "cat", input=data).stdout == data
    assert host.run("join", "pause", "--rootfs", busybox, "cat", input="unread").stdout == ""


def test_big_output_is_not_lost(host, pod, busybox):
    out = host.run("join", "pause", "--rootfs", busybox, "sh", "-c", "seq 200000").stdout
    assert out.split() == [str(i) for i in range(1, 200001)]


def test_the_rootfs_stays_clean(host, pod, rootfs):
    before = sorted(str(p) for p in rootfs.rglob("*"))
    host.run(
        "join", "pause", "--name", "a", "--rootfs", rootfs, "sh", "-c", "echo x >/new; rm /etc/passwd; mkdir -p /a/b"
    )
    assert sorted(str(p) for p in rootfs.rglob("*")) == before
    host.run("rm", "a")
    host.run("join", "pause", "--writable", "--rootfs", rootfs, "sh", "-c", "echo x >/new")
    assert (rootfs / "new").read_text() == "x\n"


def test_read_only(host, pod, busybox):
    out = inside(
        host,
        busybox,
        "sh",
        "-c",
        "touch /x 2>&1; touch /tmp/y && echo ok; touch /dev/shm/z && echo shm",
        options=["--read-only", "--tmpfs", "/tmp"],
    )
    assert "Read-only file system" in out and "ok" in out and "shm" in out


def test_environment(host, pod, busybox, tmp_path):
    file = tmp_path / "env"
    file.write_text("# comment\nFROM=file\nBOTH=file\n\nMINE\n")
    out = host.run(
        "join pause --rootfs {} --env-file {} -e BOTH=flag -e 'A=b=c d' env", busybox, file, env={"MINE": "m"}
    ).stdout
    lines = set(out.splitlines())
    assert lines == {
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOSTNAME=pause",
        "HOME=/root",
        "FROM=file",
        "BOTH=flag",
        "A=b=c d",
        "MINE=m",
    }


def test_user_directory_and_entrypoint(host, pod, busybox):
    out = inside(
        host, busybox, "-c", "id; pwd; echo $HOME", options=["-u", "www-data", "-w", "/made/here", "--entrypoint", "sh"]
    )
    assert out == "uid=33(www-data) gid=33(www-data) groups=29(audio),33(www-data)\n/made/here\n/var/www\n"


def test_a_user_may_reopen_stdout(host, pod, busybox):
    assert (
        inside(host, busybox, "sh", "-c", "echo hi >/dev/stdout; echo ho >/dev/stderr", options=["-u", "33"]) == "hi\n"
    )


def test_a_user_may_listen_on_port_80(host, pod, busybox):
    out = inside(
        host,
        busybox,
        "sh",
        "-c",
        "httpd -f -p 80 -h / & sleep 0.2; netstat -ltn; grep CapEff /proc/self/status; kill $!",
        options=["-u", "33"],
    )
    assert ":80 " in out and "CapEff:\t0000000000000000" in out


def test_volumes_of_each_kind_and_their_modes(host, pod, rootfs, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_text("inside\n")
    (tmp_path / "single").write_text("file\n")
    out = host.run(
        "join", "pause", "--rootfs", rootfs, "-v", f"{tmp_path}/d:/data", "-v", f"{tmp_path}/d:/ro:ro", "-v", f"{tmp_path}/single:/etc/conf/x",
        "--mount", f"type=bind,source={tmp_path}/d,target=/m,readonly", "--tmpfs", "/t:size=1m", "--mount", "type=volume,source=named,target=/n",
        "sh", "-c", "cat /data/f /etc/conf/x; echo new >/data/g; touch /ro/x 2>&1; touch /m/x 2>&1; touch /t/x /n/kept && echo ok",
    )  # fmt: skip
    assert out.stdout.splitlines() == [
        "inside",
        "file",
        "touch: /ro/x: Read-only file system",
        "touch: /m/x: Read-only file system",
        "ok",
    ]
    assert (tmp_path / "d" / "g").read_text() == "new\n"
    assert not (rootfs / "data").exists()
    assert "kept" in host.run("join", "pause", "--rootfs", rootfs, "-v", "named:/again", "ls", "/again").stdout


def test_the_hosts_own_filesystem(host, pod, tmp_path):
    """Without a rootfs: the host's files, the pod's processes, shared memory, names and network."""
    (tmp_path / "f").write_text("host\n")
    out = host.run(
        "join pause sh -c {}",
        f"cat {tmp_path}/f; hostname; ls /proc | grep -c '^[0-9]'; ls /sys/class/net; echo x >/dev/shm/from-host; cat /etc/hostname",
    ).stdout
    lines = out.splitlines()
    assert (
        lines[0] == "host" and lines[1] == "pause" and int(lines[2]) < 8 and lines[3] == "lo" and lines[-1] == "pause"
    )
    assert not os.path.exists("/dev/shm/from-host")


@pytest.mark.parametrize("flag", ["net", "ipc", "uts", "pid"])
def test_own_namespaces(host, pod, busybox, flag):
    host.start("a", busybox, "sleep", "1000", options=[f"--{flag}", "own"])
    member, p = host.member("a")["namespaces"], host.pod()["namespaces"]
    for name in ("net", "ipc", "uts", "pid"):
        assert (member[name] == p[name]) == (name != flag), name
    if flag == "net":
        assert "LOOPBACK,UP" in host.run("exec", "a", "ip", "link").stdout
    if flag == "ipc":
        host.run("exec", "a", "sh", "-c", "echo x >/dev/shm/mine")
        assert host.run("join", "pause", "--rootfs", busybox, "ls", "/dev/shm").stdout == ""
    if flag == "uts":
        assert host.run("exec", "a", "hostname").stdout == "a\n"
    if flag == "pid":
        assert host.run("exec", "a", "ps", "-o", "pid,args").stdout.splitlines()[1].split() == ["1", "sleep", "1000"]


def test_nested_pid(host, pod, busybox):
    host.start("a", busybox, "sleep", "1000", options=["--pid", "nested"])
    assert host.member("a")["pid_in_pod"] == 1
    levels = (
        pathlib.Path(f"/proc/{host.member('a')['pid']}/status").read_text().split("NSpid:")[1].splitlines()[0].split()
    )
    assert len(levels) == 3
    host.run("pod", "kill", "pause")
    assert host.json("ls", "-a") == []


def test_net_host(host, pod, busybox):
    host.start("a", busybox, "sleep", "1000", options=["--net", "host"])
    assert host.member("a")["namespaces"]["net"] == os.stat("/proc/thread-self/ns/net").st_ino


def test_a_member_with_its_own_pids_outlives_pause(host, pod, busybox):
    host.start("a", busybox, "sleep", "1000", options=["--pid", "own"])
    host.run("pod", "kill", "pause")
    member = host.member("a")
    assert member["status"] == "running" and member["orphaned"] is True
    assert "orphaned" in host.run("ls").stdout
    assert host.run("exec", "a", "echo", "alive").stdout == "alive\n"
    host.run("rm", "-f", "a")
    assert host.json("ls", "-a") == []


def test_stop_touches_nobody_else(host, pod, busybox):
    """moby#50523: a member of many processes is stopped; the others live."""
    script = "for i in 1 2 3; do sleep 1000 & done; trap '' TERM; wait"
    for name in ("a", "b"):
        host.start(name, busybox, "sh", "-c", script)
    wait_for(lambda: host.run("pod", "ps", "pause").stdout.count("sleep 1000") >= 6)
    host.run("stop", "-t", "0.3", "a", timeout=9)  # without -t it would be 10 s
    rows = host.json("pod", "ps", "pause")
    assert sum(r["member"] == "b" for r in rows) == 4 and not any(r["member"] == "a" for r in rows)
    assert host.member("a")["exit_code"] == 137 and host.member("b")["status"] == "running"


def test_children_end_with_the_first_process(host, pod, busybox):
    """kubernetes#92214, runc#4047: what the main process leaves behind is killed with its cgroup."""
    host.run("join", "pause", "--rootfs", busybox, "sh", "-c", "(setsid sleep 1000 &) ; exit 0", timeout=10)
    wait_for(lambda: "sleep 1000" not in host.run("pod", "ps", "pause").stdout)


def test_stop_signal(host, pod, busybox):
    host.start(
        "a",
        busybox,
        "sh",
        "-c",
        "trap 'exit 9' USR1; echo up; while :; do sleep 0.05; done",
        options=["--stop-signal", "USR1"],
    )
    wait_for(lambda: host.run("logs", "a").stdout == "up\n")
    host.run("stop", "a")
    assert host.member("a")["exit_code"] == 9
    assert host.run("wait", "a").stdout == "9\n"


def test_signals_reach_the_member(host, pod, busybox):
    host.start("a", busybox, "sh", "-c", "trap 'echo got; exit 4' HUP; echo up; while :; do sleep 0.05; done")
    wait_for(lambda: host.run("logs", "a").stdout == "up\n")
    host.run("kill", "-s", "HUP", "a")
    assert host.run("wait", "a").stdout == "4\n" and "got" in host.run("logs", "a").stdout


def test_wait_for_a_member_that_is_forgotten_at_its_end(host, pod, busybox):
    host.start("a", busybox, "sh", "-c", "trap 'exit 4' HUP; echo up; while :; do sleep 0.05; done", options=["--rm"])
    wait_for(lambda: host.run("logs", "a").stdout == "up\n")
    waiter = host.background("wait", "a", stdout=-1, text=True)
    wait_for(lambda: "anon_inode:[pidfd]" in open_files(waiter.pid))
    host.run("kill", "-s", "HUP", "a")
    assert waiter.communicate(timeout=30)[0] == "4\n"
    assert host.json("ls", "-a") == []


def test_foreground_passes_signals_on(host, pod, busybox):
    process = host.background(
        "join pause --rootfs {} sh -c {}",
        busybox,
        "trap 'exit 5' INT; echo up; while :; do sleep 0.05; done",
        stdout=-1,
        text=True,
    )
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 5


def test_rm_refuses_what_runs_unless_forced(host, pod, busybox):
    host.start("a", busybox, "sleep", "1000")
    assert "running" in host.fails(125, "rm", "a")
    host.run("rm", "-f", "a")
    assert host.json("ls", "-a") == []
    assert (
        host.run(
            "join", "pause", "--rm", "--name", "b", "--rootfs", busybox, "sh", "-c", "exit 6", check=False
        ).returncode
        == 6
    )
    assert host.json("ls", "-a") == []
    host.start("c", busybox, "true", options=["--rm"])
    wait_for(lambda: host.json("ls", "-a") == [])


def test_restart_on_failure(host, pod, busybox):
    host.start("a", busybox, "sh", "-c", "echo run; echo x >>/count; exit 1", options=["--restart", "on-failure:3"])
    wait_for(lambda: host.member("a")["restarts"] == 3 and host.member("a")["status"] == "stopped", 20)
    assert host.run("logs", "a").stdout == "run\n" * 4
    assert host.member("a")["exit_code"] == 1


def test_restart_always_until_stopped(host, pod, busybox):
    host.start(
        "a", busybox, "sh", "-c", "cat /kept 2>/dev/null; echo kept >/kept; sleep 0.5", options=["--restart", "always"]
    )
    wait_for(lambda: "kept" in host.run("logs", "a").stdout, 20)
    # between two runs there is nothing to execute in: try until one is met
    wait_for(lambda: host.run("exec", "a", "echo", "there", check=False).stdout == "there\n", 20)
    host.run("stop", "-t", "1", "a")
    restarts = host.member("a")["restarts"]
    time.sleep(0.8)
    assert host.member("a")["status"] == "stopped" and host.member("a")["restarts"] == restarts


def test_stop_ends_the_wait_before_a_restart(host, pod, busybox):
    host.start("a", busybox, "false", options=["--restart", "always"])
    wait_for(lambda: host.member("a")["restarts"] >= 4, 20)  # the next waits are of seconds
    started = time.monotonic()
    host.run("stop", "a")
    assert time.monotonic() - started < 3
    assert host.member("a")["status"] == "stopped"


def test_the_monitor_is_killed(host, pod, busybox):
    """podman#439: the exit status is lost, and says so; nothing is stuck."""
    host.start("a", busybox, "sleep", "1000")
    member = host.member("a")
    monitor = next(
        p
        for p in map(int, filter(str.isdigit, os.listdir("/proc")))
        if _comm(p) == "nsrun-monitor" and _ppid(member["pid"]) == p
    )
    kill(monitor)
    wait_for(lambda: not os.path.exists(f"/proc/{monitor}") or _comm(monitor) != "nsrun-monitor")
    assert host.member("a")["status"] == "running"
    assert host.run("exec", "a", "echo", "still").stdout == "still\n"
    host.run("kill", "a")
    assert host.member("a")["status"] == "lost"
    assert "lost" in host.fails(125, "wait", "a")
    host.run("rm", "a")


def _comm(pid: int) -> str:
    try:
        return pathlib.Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return ""


def _ppid(pid: int) -> int:
    return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_log_is_capped(host, pod, busybox):
    """A flood of output fills neither the disk nor the memory."""
    host.start(
        "a", busybox, "sh", "-c", "yes 0123456789012345678901234567890123456789 | head -n 900000; echo end", timeout=60
    )
    host.run("wait", "a", timeout=60)
    size = sum(f.stat().st_size for f in (host.root / "run/members/a").glob("log*"))
    assert size < 34 << 20
    assert host.run("logs", "--tail", "1", "a").stdout == "end\n"


def test_status_fd(host, pod, busybox):
    import json

    def events(*words):
        read, write = os.pipe()
        host.run("join", "pause", "--status-fd", write, "--rootfs", busybox, *words, check=False, pass_fds=[write])
        os.close(write)
        with open(read) as file:
            return [json.loads(line) for line in file]

    started, exited = events("sh", "-c", "exit 3")
    assert started["event"] == "started" and started["pid"] > 1 and exited == {"event": "exited", "exit_code": 3}
    (error,) = events("nope")
    assert error["event"] == "error" and error["errno"] == "ENOENT" and error["exit_code"] == 127 and error["step"] > 0


def test_bundle(host, pod, rootfs, tmp_path):
    import json

    bundle = tmp_path / "b"
    bundle.mkdir()
    sh("cp", "-a", rootfs, bundle / "rootfs")
    config = {
        "ociVersion": "1.1.0",
        "root": {"path": "rootfs"},
        "process": {
            "args": ["sh", "-c", "id -u; echo $X; pwd"],
            "env": ["PATH=/bin", "X=1"],
            "cwd": "/tmp",
            "user": {"uid": 33, "gid": 33},
        },
    }
    (bundle / "config.json").write_text(json.dumps(config))
    assert host.run("join", "pause", "--bundle", bundle).stdout == "33\n1\n/tmp\n"
    assert (
        host.run("join", "pause", "--bundle", bundle, "-e", "X=2", "-u", "0", "--", "sh", "-c", "id -u; echo $X").stdout
        == "0\n2\n"
    )


def test_idle_memory(host, pod, rootfs):
    """A pod with three detached members (nsrun-pause itself is the smallest there is): all processes, in PSS."""
    from nsrun.kernel import LIBEXEC

    sh("cp", f"{LIBEXEC}/nsrun-pause", rootfs / "bin/idle")
    for name in "abc":
        host.start(name, rootfs, "idle")
    pids = [host.pod()["pid"]] + [host.member(n)["pid"] for n in "abc"] + [_ppid(host.member(n)["pid"]) for n in "abc"]
    total = sum(
        int(next(line for line in open(f"/proc/{pid}/smaps_rollup") if line.startswith("Pss:")).split()[1])
        for pid in pids
    )
    assert total <= 300, f"{total} KiB"


def test_interrupt_leaves_nothing(host, pod, busybox):
    """SIGINT and SIGTERM at any moment of a detached join: the member is there, or nothing of it is."""
    host.run("pod", "ls")
    before = host.snapshot()
    for number in (signal.SIGINT, signal.SIGTERM):
        for delay in (0.004, 0.008, 0.012, 0.016, 0.02, 0.03):
            process = host.background(
                "join pause -d --name i --rootfs {} sleep 1000", busybox, stdout=-1, stderr=-1, text=True
            )
            try:
                process.wait(timeout=delay)
            except subprocess.TimeoutExpired:
                process.send_signal(number)
            out, errors = process.communicate(timeout=20)
            assert "site-packages/nsrun" not in errors  # no traceback of ours
            members = host.json("ls", "-a")
            assert [m["status"] for m in members] == (["running"] if process.returncode == 0 else []), (
                number,
                delay,
                process.returncode,
                members,
            )
            assert out == ("i\n" if process.returncode == 0 else "")
            if members:
                host.run("rm", "-f", "i")
            wait_for(lambda: host.snapshot() == before)


def test_anonymous_volumes_go_with_their_member(host, pod, rootfs):
    for options in ([], ["--writable"]):
        host.run(
            "join",
            "pause",
            "--name",
            "a",
            "-v",
            "/data",
            *options,
            "--rootfs",
            rootfs,
            "sh",
            "-c",
            "echo x >/data/f; cat /data/f",
        )
        assert [p.read_text() for p in (host.root / "lib/upper").glob("*/volume-*/f")] == ["x\n"]
        host.run("rm", "a")
        assert list((host.root / "lib/upper").iterdir()) == []


def test_a_restart_keeps_what_was_written_and_its_volumes(host, pod, busybox):
    script = "echo line >>/data/f; echo line >>/own; [ $(wc -l </data/f) -ge 3 ] && [ $(wc -l </own) -ge 3 ] && exit 0; exit 1"
    host.start(
        "a", busybox, "sh", "-c", script, options=["--restart", "on-failure", "-v", "/data", "-e", "A=1", "-u", "0"]
    )
    wait_for(lambda: host.member("a")["exit_code"] == 0, 20)
    member = host.member("a")
    assert member["restarts"] == 2 and member["created"] < member["started"] < member["finished"]


def test_hostile_files_in_the_upper_directory_are_removed(host, pod, busybox, tmp_path):
    """rm removes what a member wrote, following no link and minding no mode."""
    (tmp_path / "kept").write_text("host\n")
    script = f"mkdir -p /a/b; ln -s {tmp_path} /a/link; ln -s / /a/b/root; mkfifo /a/f; mkdir -m 0 /a/none; touch '/a/ new\nline'; mkdir -p $(printf 'd/%.0s' $(seq 200))"
    host.run("join", "pause", "--name", "a", "--rootfs", busybox, "sh", "-c", script)
    host.run("rm", "a")
    assert list((host.root / "lib/upper").iterdir()) == [] and (tmp_path / "kept").read_text() == "host\n"


def test_oom_score_adj(host, pod, busybox, tmp_path):
    """Of the member and of what is executed in it; a bundle's counts, too, and the option over it."""
    score = "cat /proc/self/oom_score_adj"
    assert host.run(f"join pause --rm --oom-score-adj 321 --rootfs {{}} {score}", busybox).stdout == "321\n"
    lower = host.run(f"join pause --rm --oom-score-adj -17 --rootfs {{}} {score}", busybox, check=False)
    if kernel.capability_sets()["CapEff"] & capability_mask(["sys_resource"]):
        assert lower.stdout == "-17\n"
    else:  # as in many containers and virtual machines
        assert lower.returncode == 125 and "CAP_SYS_RESOURCE" in lower.stderr
    host.start("m", busybox, "sleep", "1000", options=["--oom-score-adj", "55"])
    assert host.run(f"exec m {score}").stdout == "55\n"
    (tmp_path / "rootfs").symlink_to(busybox)
    (tmp_path / "config.json").write_text(json.dumps({"root": {"path": "rootfs"}, "process": {"oomScoreAdj": 44}}))
    assert host.run(f"join pause --rm --bundle {{}} {score}", tmp_path).stdout == "44\n"
    assert host.run(f"join pause --rm --oom-score-adj 3 --bundle {{}} {score}", tmp_path).stdout == "3\n"
