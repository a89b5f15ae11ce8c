# SPDX-License-Identifier: Apache-2.0
"""Where nsrun can't have what it wants: user namespaces, bounding sets, cgroups, /proc, memfds, few ids.

Each is made in throwaway namespaces.  Either all works, or a message says which thing is missing and what to do.
"""

import json
import os
import pathlib
import subprocess
import textwrap
import time

import pytest
from conftest import NSRUN, USERS, need, sh, wait_for
from images import Layout, entry, tar

from nsrun import kernel
from nsrun.host import cgroup, userns
from nsrun.spec import idmaps

ALICE = USERS["alice"]


def script(host, text: str, *wrapper: object, check: bool = True, pass_fds=(), **env: str):
    """A shell script in which `nsrun` is ours; `wrapper`: the words before `sh`, for example unshare."""
    lines = f'set -eu; nsrun() {{ {NSRUN} "$@"; }}\n{textwrap.dedent(text)}'
    words = host.words(*wrapper, "sh", "-c", lines)
    return sh(*words, env={**host.env, **env}, cwd="/", check=check, pass_fds=pass_fds)


def refused(done, *words: str) -> str:
    """Exit 125, a message with these words, never a traceback."""
    assert done.returncode == 125, f"{done.returncode}\n{done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr and "\nhint: " in done.stderr, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    return done.stderr


# ---- root of a user namespace ----------------------------------------------------------------------------------

USERNS = ("unshare", "--user", "--map-root-user")


@pytest.mark.parametrize("network", ["none", "host"])
def test_root_of_a_user_namespace(host, busybox, network):
    """No device can be made there, the network namespace is the host's, setgroups may be denied, there is one id."""
    out = script(
        host,
        f"""
        nsrun pod create --network {network}
        nsrun join pause -d --name m --rootfs {busybox} -- sleep 1000
        nsrun exec m sh -c 'echo x >/dev/null; head -c 3 /dev/zero | wc -c; id -u; id -G; ls /dev'
        nsrun join pause --rm --name f --rootfs {busybox} -- sh -c 'ps -o pid,args | grep -c "sleep 100[0]"; echo y >/new; cat /new'
        nsrun exec m cat /proc/self/uid_map
        nsrun stop -t 0 m
        nsrun pod rm -f pause
        """,
        *USERNS,
    )
    lines = out.stdout.splitlines()
    assert lines[:5] == ["pause", "m", "3", "0", "0"]
    assert {"null", "zero", "full", "random", "urandom", "tty"} <= set(lines)
    assert "y" in lines and "         0          0          1" in lines


def test_every_kind_of_member_in_a_user_namespace(host, busybox, rootfs):
    """Volumes, the host's own files, own and nested namespaces, a writable root, an image, a terminal, a restart."""
    image = pathlib.Path(busybox).parent.parent / "images" / "busybox"
    need(image.is_dir(), "the busybox image is not built", "sudo rootfs/build --image busybox")
    join = "nsrun join pause --rm"
    out = script(
        host,
        f"""
        nsrun pod create --network none --shm-size 1m --sysctl net.ipv4.ip_default_ttl=77
        {join} -- sh -c 'echo 1; test -e {busybox}/bin'
        {join} --rootfs {busybox} -v named:/data -v {host.root}:/host:ro --tmpfs /t -- sh -c 'echo 2 >/data/x; cat /data/x; touch /host/x 2>/dev/null || echo ro'
        {join} --rootfs {busybox} --pid nested -- sh -c 'echo 3 $$'
        {join} --rootfs {busybox} --pid own --net own --ipc own --uts own -- sh -c 'echo 4 $$; ip link | grep -c lo:'
        {join} --rootfs {rootfs} --writable -- sh -c 'echo 5 >/five; cat /sys/class/net/lo/operstate'
        {join} --rootfs {busybox} --read-only -- sh -c 'touch /x 2>/dev/null || echo 6'
        {join} --rootfs {busybox} --device /dev/null:/dev/nil -- sh -c 'echo x >/dev/nil && echo 7; cat /proc/sys/net/ipv4/ip_default_ttl'
        nsrun image load {image} >/dev/null 2>&1
        {join} --image busybox -- echo 8
        {join} --net host --rootfs {busybox} -- echo 9
        nsrun join pause -d --name r --restart always --rootfs {busybox} -- sh -c 'sleep 0.2'
        sleep 1; nsrun inspect r | grep restarts
        nsrun stop -t 0 r
        nsrun doctor || :
        nsrun pod rm -f pause
        """,
        *USERNS,
    )
    lines = out.stdout.splitlines()
    for line in ("1", "2", "ro", "3 1", "4 1", "6", "7", "77", "8", "9"):
        assert line in lines, (line, out.stdout, out.stderr)
    assert (rootfs / "five").read_text() == "5\n" and '"restarts": 0' not in out.stdout and '"restarts"' in out.stdout
    assert "root of one: devices are the host's own nodes" in out.stdout


def test_a_bridge_of_root_of_a_user_namespace(host, busybox):
    """Only with a network namespace of its own; else it is refused with the reason."""
    text = f"""
        ip link set lo up || :
        nsrun pod create -p 127.0.0.1:20850:80
        nsrun join pause -d --name m --rootfs {busybox} -- httpd -f -p 80 -h /var/www
        nsrun exec m ip -4 -o address show eth0
        nsrun pod rm -f pause
        """
    refused(script(host, text, *USERNS, check=False), "no power over the network namespace", "--network none", "--net")
    done = script(host, text, *USERNS, "--net", check=False)
    assert done.returncode == 0 and "10.88.0.2" in done.stdout, done.stderr


def test_a_member_that_outlives_its_pod_in_a_user_namespace(alice, busybox):
    """With setgroups denied, exec keeps the groups there are, though nothing tells any more how the pod was made."""
    own = alice.home / "root"
    sh("cp", "-a", busybox, own)
    sh("chown", "-R", f"{ALICE}:{ALICE}", own)
    out = script(
        alice,
        f"""
        nsrun pod create --network none
        nsrun join pause -d --name m --pid own --rootfs {own} -- sleep 1000
        nsrun pod kill pause
        nsrun exec m echo in
        nsrun rm -f m
        """,
        *USERNS,
        NSRUN_ROOT=str(alice.home / "state"),
    )
    assert out.stdout.split() == ["pause", "m", "pause", "in", "m"], out.stdout


@pytest.mark.parametrize("wrapper", [USERNS, ("setpriv", "--bounding-set", "-net_admin")], ids=["userns", "net_admin"])
def test_a_bridge_that_is_not_ours_to_remove(host, busybox, wrapper):
    """Without power over the network namespace an idle bridge stays, and no command fails for it."""
    sh("ip", "link", "add", "nsrun0", "type", "bridge")
    try:
        out = script(
            host,
            f"""
            nsrun pod create --network host
            nsrun join pause --rm --rootfs {busybox} -- echo in
            nsrun doctor || :
            nsrun pod rm -f pause
            nsrun pod prune
            ip link show nsrun0
            """,
            *wrapper,
        )
        assert "in\n" in out.stdout and "nsrun0" in out.stdout
    finally:
        sh("ip", "link", "delete", "nsrun0", check=False)


def test_a_state_directory_that_is_not_ours(alice):
    env = {key: value for key, value in alice.env.items() if key != "NSRUN_ROOT"}
    done = sh(*alice.words(*USERNS, NSRUN, "pod", "create", "--network", "none"), check=False, env=env)
    refused(done, "/run/nsrun", "--root DIR")


def test_an_ordinary_user_as_root_of_a_user_namespace(host, alice, rootfs):
    """`unshare -Ur`: setgroups is denied for good, 5 is no group, pause has no id but 0."""
    root = alice.home / "state"
    own = alice.home / "root"
    sh("cp", "-a", rootfs, own)
    sh("chown", "-R", f"{ALICE}:{ALICE}", own)
    out = script(
        alice,
        f"""
        nsrun pod create --network none
        nsrun join pause --name t -t --rootfs {own} -- sh -c 'tty; ls -ln /dev/pts/0' </dev/null
        nsrun join pause -d --name m --rootfs {own} -- sleep 1000
        nsrun exec -t m sh -c 'stat -c "%a %u %g" $(tty)'
        cat /proc/$(nsrun pod inspect pause | grep -m1 '"pid"' | tr -dc 0-9)/status | grep -E '^(Uid|CapPrm)'
        nsrun rm -f m
        ! nsrun join pause --rootfs {own} -u 33 -- true
        ! nsrun join pause --rootfs {own} -u 0:5 -- true
        ! nsrun join pause --rootfs {rootfs} -- true
        nsrun pod rm -f pause
        """,
        *USERNS,
        NSRUN_ROOT=str(root),
        check=False,
    )
    assert out.returncode == 0, out.stdout + out.stderr
    assert "/dev/pts/0" in out.stdout and "crw-------" in out.stdout and "600 0 0" in out.stdout
    assert "Uid:\t0\t0\t0\t0" in out.stdout and "CapPrm:\t0000000000000000" in out.stdout
    assert "has no uid 33" in out.stderr and "has no gid 5" in out.stderr and "nobody's" in out.stderr


def test_as_in_an_unprivileged_container(host, busybox):
    """65536 ids that are nobody's outside, namespaces of its own for everything, files that are its own."""
    maps = {kind: [[0, 7_000_000, 65536]] for kind in ("uid", "gid")}
    fd = kernel.new_userns(None, lambda pid: userns._write(pid, maps))
    host.root.chmod(0o711)
    enter = ["nsenter", f"--user=/proc/self/fd/{fd}", "--setuid", "0", "--setgid", "0"]
    enter += ["unshare", "--mount", "--net", "--uts", "--ipc", "--cgroup", "--pid", "--fork", "--mount-proc"]
    try:
        out = script(
            host,
            f"""
            mount -t tmpfs none {host.root}; mkdir {host.root}/r; cp -r {busybox}/. {host.root}/r
            ip link set lo up
            nsrun pod create -p 20870:80
            nsrun join pause -d --name m --rootfs {host.root}/r -- httpd -f -p 80 -h /var/www
            nsrun exec -t -u 33:5 m sh -c 'id -u; id -G; stat -c "%a %u %g" $(tty)'
            nsrun pod ps pause
            ! nsrun pod create --network none --memory 10m limited
            curl -s -m 5 http://127.0.0.1:20870/ | grep -o -m1 nsrun
            nsrun pod rm -f pause
            """,
            *enter,
            pass_fds=[fd],
        )
    finally:
        os.close(fd)
    lines = out.stdout.splitlines()
    assert lines[:5] == ["pause", "m", "33", "5", "620 33 5"] and any(
        "65535" in line and "/pause" in line for line in lines
    )
    assert "nsrun" in lines
    assert "warning: the pod has no cgroup" in out.stderr and "limits need a cgroup" in out.stderr


def test_an_owned_pod_of_a_nested_root(host, alice, busybox):
    """sudo in a user namespace that has all ids: only that it is not the first tells it from the machine's root."""
    fd = kernel.new_userns(None, lambda pid: userns._write(pid, {k: [[0, 0, 4294967295]] for k in ("uid", "gid")}))
    uid = f"setpriv --reuid={ALICE} --regid={ALICE} --init-groups"
    own = alice.home / "root"
    sh("cp", "-a", busybox, own)
    sh("chown", "-R", f"{ALICE}:{ALICE}", own)
    try:
        out = script(
            host,
            f"""
            SUDO_UID={ALICE} nsrun pod create --network none
            ! nsrun join pause --rm --rootfs {busybox} -- true
            export HOME={alice.home}
            {uid} {NSRUN} join pause -d --name m --rootfs {own} -- sleep 1000
            {uid} {NSRUN} exec -u 33 -t m id -u
            {uid} {NSRUN} rm -f m
            nsrun pod rm -f pause
            nsrun pod create --network none --owner root mine
            nsrun join mine --rm --rootfs {busybox} -- sh -c 'echo x >/dev/null && id -u'
            nsrun pod rm -f mine
            """,
            "nsenter",
            f"--user=/proc/self/fd/{fd}",
            pass_fds=[fd],
        )
    finally:
        os.close(fd)
    assert out.stdout.split() == ["pause", "m", "33", "m", "pause", "mine", "0", "mine"], out.stdout
    assert "can't be shown with other ids" in out.stderr and "let the owner join" in out.stderr


def test_more_ids_in_a_user_namespace(host, alice, busybox):
    """With ids of her range, members have users and groups, and pause an id of its own."""
    out = script(
        alice,
        f"""
        mkdir -p {alice.home}/r && cp -r {busybox}/. {alice.home}/r/
        nsrun pod create --network none
        nsrun join pause --rm --rootfs {alice.home}/r -u 33:5 -- sh -c 'id -u; id -g; id -G'
        grep ^Uid /proc/$(nsrun pod inspect pause | grep -m1 '"pid"' | tr -dc 0-9)/status
        nsrun pod rm -f pause
        """,
        *USERNS,
        "--map-auto",
        NSRUN_ROOT=str(alice.home / "state"),
    )
    assert out.stdout.split() == ["pause", "33", "5", "5", "Uid:", *["65535"] * 4, "pause"] or "65535" in out.stdout


def test_pods_of_another_user_namespace(host, pod, busybox):
    """Neither way: who is root of more would be so among those who are root of less."""
    host.start("m", busybox, "sleep", "1000")
    for words in (f"join {pod} --rootfs {busybox} -- true", "exec m true"):
        refused(script(host, f"nsrun {words}", *USERNS, check=False), "another user namespace", "nsenter")
    script(host, "nsrun pod create --network none inner", *USERNS)
    words = ["join", "inner", "--rm", "--rootfs", busybox, "--", "echo", "in"]
    said = refused(host.run(*words, check=False), "another user namespace", "nsenter")
    way = said.partition("from there: ")[2].partition(" nsrun …")[0].split()
    assert sh(*way, NSRUN, *words, env=host.env).stdout == "in\n"
    host.run("pod", "rm", "-f", "inner")


def test_a_proc_that_is_masked(host):
    """As in an engine's container: a user namespace mounts proc only where a whole one is in view."""
    mask = ["unshare", "--mount", "sh", "-c", 'mount --bind /dev/null /proc/interrupts && exec "$@"', "sh"]
    done = script(host, "nsrun pod create --network none", *mask, *USERNS, "--mount", check=False)
    refused(done, "mount proc on /proc", "systempaths=unconfined")
    assert host.json("pod", "ls") == []


def test_an_owner_whose_ids_are_not_here(host, alice):
    """`sudo unshare -Ur`: the ids of who called sudo are not in this user namespace."""
    done = script(host, "nsrun pod create --network none", *USERNS, SUDO_UID=str(ALICE), check=False)
    refused(done, f"{ALICE}", "this user namespace does not have", "--owner root")


def test_ids_of_user_namespaces():
    """Pure arithmetic: the largest number that is both a uid and a gid."""
    one = [[0, 1000, 1]]
    assert idmaps.nobody({"uid": one, "gid": one}) == 0
    assert (
        idmaps.nobody({"uid": [[0, 1000, 1], [1, 100000, 65536]], "gid": [[0, 1000, 1], [1, 100000, 65536]]}) == 65535
    )
    assert idmaps.nobody({"uid": [[0, 1000, 1], [1, 100000, 10]], "gid": [[0, 1000, 1], [1, 100000, 7]]}) == 7
    assert (
        idmaps.nobody({"uid": [[0, 0, 1], [50, 9, 10], [99000, 9, 5]], "gid": [[0, 0, 1], [55, 0, 2], [99000, 9, 5]]})
        == 56
    )


# ---- capabilities ----------------------------------------------------------------------------------------------

FOURTEEN = (
    "chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service net_raw sys_chroot mknod audit_write setfcap"
).split()
#: Without these nsrun itself can't; a pod can't be made, or only not be joined.
NEEDED = {"kill": "create", "setgid": "create", "setuid": "create", "setpcap": "create", "sys_chroot": "join"}


def without(*names: str) -> list[str]:
    return ["setpriv", "--bounding-set", ",".join(f"-{name}" for name in names)]


def mask_of(text: str) -> int:
    return int(next(line for line in text.splitlines() if line.startswith("CapBnd")).split()[1], 16)


@pytest.mark.parametrize("name", FOURTEEN)
def test_a_bounding_set_without_one(host, busybox, name):
    """A member gets what there is, without a word; what nsrun itself can't do without is named."""
    from nsrun.linux import capability_mask

    create = host.run("pod", "create", "--network", "none") if NEEDED.get(name) == "join" else None
    text = "nsrun pod create --network none" if not create else ":"
    done = script(
        host,
        f"""
        {text}
        nsrun join pause -d --name m --rootfs {busybox} -- sleep 1000
        nsrun exec m sh -c 'cat /proc/self/status; echo x >/dev/null'
        nsrun rm -f m
        nsrun pod rm -f pause
        """,
        *without(name),
        check=False,
    )
    if name in NEEDED:
        refused(done, f"CAP_{name.upper()}", "--cap-add")
        return
    if name == "dac_override":  # overlayfs needs it
        refused(done, "CAP_DAC_OVERRIDE", "--writable")
        sh("cp", "-a", busybox, host.root / "own")
        words = f"nsrun join pause --writable --rootfs {host.root}/own -- cat /proc/self/status"
        done = script(host, words, *without(name))
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert mask_of(done.stdout) == capability_mask([n for n in FOURTEEN if n != name])


def test_capabilities_that_were_asked_for(host, pod, busybox):
    """What can't be granted is a warning; with ALL, too; and nothing is said of what nobody asked for."""

    def join(*words):
        return script(host, f"nsrun join {pod} --rm {' '.join(words)} --rootfs {busybox} -- cat /proc/self/status", *without("net_admin", "net_raw"))  # fmt: skip

    assert join().stderr == ""
    one = join("--cap-add", "NET_ADMIN", "--cap-add", "sys_nice")
    assert "warning: --cap-add: root does not have CAP_NET_ADMIN here" in one.stderr
    assert mask_of(one.stdout) >> 23 & 1 and not mask_of(one.stdout) >> 12 & 3  # sys_nice; net_admin, net_raw
    every = join("--cap-add", "ALL")
    assert "CAP_NET_ADMIN, CAP_NET_RAW" in every.stderr and mask_of(every.stdout) >> 21 & 1


def test_an_exec_with_less(host, pod, busybox):
    """A member with all of its capabilities, and an exec from where one is missing."""
    host.start("m", busybox, "sleep", "1000")
    out = script(host, "nsrun exec m cat /proc/self/status", *without("net_raw"))
    assert not mask_of(out.stdout) >> 13 & 1 and mask_of(out.stdout) >> 10 & 1


def test_devices_without_mknod(host, pod, busybox):
    """A pod that was made with it has no nodes to give; it says so."""
    done = script(host, f"nsrun join {pod} --rootfs {busybox} -- true", *without("mknod"), check=False)
    refused(done, "CAP_MKNOD", "made without it")


# ---- cgroups ---------------------------------------------------------------------------------------------------


def v2() -> str:
    mount = cgroup.mount_point()
    need(mount, "cgroup v2 is not mounted", "mount -t cgroup2 none /sys/fs/cgroup")
    return mount


def hidden(host, how: str) -> list[str]:
    """A mount namespace in which the v2 tree is read-only, covered by a tmpfs, or not there at all."""
    mount = v2()
    commands = {
        "read-only": f"mount -o remount,bind,ro {mount}",
        "tmpfs": f"mount -t tmpfs none {mount}; mkdir -p {mount}/nsrun {mount}/x; : >{mount}/cgroup.procs; : >{mount}/cgroup.controllers",
        "missing": f"umount -l {mount}",
    }
    return ["unshare", "--mount", "sh", "-c", f'set -e; {commands[how]}; exec "$@"', "sh"]


@pytest.mark.parametrize("how", ["read-only", "tmpfs", "missing"])
def test_without_cgroups(host, busybox, how):
    """Members without one: said once, with what is lost; and no directory is made in what is not cgroup2."""
    mount = v2()
    before = host.cgroups()
    out = script(
        host,
        f"""
        nsrun pod create --network none
        nsrun join pause -d --name m --rootfs {busybox} -- sleep 1000
        nsrun exec m echo in
        nsrun stats m
        nsrun stop -t 0 m
        ! nsrun join pause --memory 64m --rootfs {busybox} -- true
        ! nsrun pod create --network none --pids-limit 5 limited
        nsrun doctor || :
        find {mount} -path "*/$NSRUN_CGROUP/*pause*" || : # others' come and go
        nsrun pod rm -f pause
        """,
        *hidden(host, how),
    )
    why = "is mounted read-only" if how == "read-only" else "cgroup v2 is not mounted"
    assert out.stderr.count("warning: the pod has no cgroup") == 1 and out.stderr.count("NSRUN_CGROUP=none") == 1
    assert why in out.stderr and out.stderr.count("limits need a cgroup") == 2, out.stderr
    assert "in\n" in out.stdout and "/pause-" not in out.stdout and why in out.stdout  # doctor
    assert host.cgroups() == before


def test_no_cgroups_by_choice(host, busybox):
    before = host.cgroups()
    for word in ("none", ""):
        env = {"NSRUN_CGROUP": word}
        assert host.run("pod", "create", "--network", "none", env=env).stderr == ""
        host.run("join", "pause", "-d", "--name", "m", "--rootfs", busybox, "--", "sleep", "1000", env=env)
        assert host.cgroups() == before
        refused(
            host.run("join", "pause", "--memory", "64m", "--rootfs", busybox, "--", "true", env=env, check=False),
            "NSRUN_CGROUP says so",
        )
        refused(
            host.run("join", "pause", "--memory", "64m", "--rootfs", busybox, "--", "true", check=False),
            "the pod was made without",
        )
        host.run("pod", "rm", "-f", "pause", env=env)
    refused(host.run("pod", "create", env={"NSRUN_CGROUP": "../x"}, check=False), "NSRUN_CGROUP='../x'")


def test_what_is_not_cgroup2_is_left_alone(tmp_path, monkeypatch):
    """A directory of another file system with the right files in it: nothing is made, killed or removed there."""
    monkeypatch.setattr(cgroup, "MOUNTS", (str(tmp_path),))
    for name in ("cgroup.procs", "cgroup.controllers", "cgroup.kill"):
        (tmp_path / name).touch()
    (tmp_path / "nsrun/p-1/m-a").mkdir(parents=True)
    (tmp_path / "nsrun/p-1/cgroup.kill").touch()
    path = f"{tmp_path}/nsrun/p-1"
    assert cgroup.mount_point() == "" and cgroup.pod_path("p", "1") == ""
    with pytest.raises(OSError, match="cgroup2"):
        cgroup.make(f"{path}/m-b", {})
    with pytest.raises(cgroup.BadInput, match="not visible"):
        cgroup.make(f"{path}/m-b", {}, 5)
    assert not cgroup.kill(path) and cgroup.pids(path) == [] and cgroup.members(path) == []
    cgroup.remove(path, kill=True), cgroup.remove_member(f"{path}/m-a")
    assert sorted(os.listdir(path)) == ["cgroup.kill", "m-a"] and (tmp_path / "nsrun/p-1/cgroup.kill").read_text() == ""
    for odd in (f"{tmp_path}/../etc", f"{tmp_path}//x", "/etc/x", f"{tmp_path}/a/./b", ""):
        cgroup.remove(odd, kill=True)
        assert not cgroup.kill(odd)


def test_a_link_or_a_mount_on_the_way(host):
    """Not even inside the tree: a directory that something else is mounted on is not gone through."""
    group = f"{v2()}/{os.environ['NSRUN_CGROUP']}"
    fd = cgroup.make(f"{group}/p-1/m-a", {})
    os.close(fd)
    try:
        sh("mount", "-t", "tmpfs", "none", f"{group}/p-1")
        try:
            os.mkdir(f"{group}/p-1/m-a")
            with pytest.raises(OSError, match="cgroup2"):
                cgroup.make(f"{group}/p-1/m-b", {})
            cgroup.remove(f"{group}/p-1", kill=True)
            assert os.listdir(f"{group}/p-1") == ["m-a"]
        finally:
            sh("umount", f"{group}/p-1")
    finally:
        cgroup.remove(f"{group}/p-1")
        os.rmdir(group)


def test_another_cgroup_of_the_same_name(host):
    """By its id: neither killed nor removed nor entered."""
    path = f"{v2()}/{os.environ['NSRUN_CGROUP']}/p-1"
    first = cgroup.make(path, {})
    ident = os.fstat(first).st_ino
    os.close(first)
    cgroup.remove(path, ident)
    assert not os.path.exists(path)
    os.close(second := cgroup.make(path, {}))
    process = subprocess.Popen(["sh", "-c", f"echo $$ >{path}/cgroup.procs; exec sleep 1000"])
    try:
        wait_for(lambda: cgroup.pids(path) == [process.pid], what="it is in")
        assert cgroup.pids(path, ident) == [] and not cgroup.kill(path, ident)
        assert cgroup.usage(path, ident)["pids"] is None and cgroup.usage(path)["pids"] == 1
        cgroup.remove(path, ident, kill=True)
        with pytest.raises(cgroup.BadInput, match="not visible"):
            cgroup.open_pod(path, ident)
        with pytest.raises(cgroup.BadInput, match="not visible"):
            cgroup.make(f"{path}/m-a", {}, ident)
        assert process.poll() is None and os.listdir(path)
    finally:
        cgroup.remove(path, os.stat(path).st_ino, kill=True)
        process.wait()
        os.rmdir(os.path.dirname(path))
    assert second


def test_a_cgroup_that_somebody_else_made(host, alice, owned, busybox):
    """An owner who knows the name of root's next member makes its cgroup, to own its limits: root does not take it.

    An empty one is removed and made anew, as root's; one that is in use is refused.
    """
    v2()
    path = json.loads((host.root / f"run/pods/{owned}/note").read_text())["cgroup"] + "/root-m"
    words = ["join", owned, "--name", "m", "--rm", "--rootfs", busybox, "--"]
    alice.sh("mkdir", "-p", f"{path}/below")
    refused(host.run(*words, "true", check=False), f"belongs to uid {ALICE}", path)
    assert os.path.isdir(path)
    alice.sh("rmdir", f"{path}/below")
    host.run("join", owned, "--name", "m", "-d", "--rootfs", busybox, "--", "sleep", "1000")
    assert os.stat(path).st_uid == os.stat(f"{path}/cgroup.procs").st_uid == 0
    host.run("rm", "-f", "m")


@pytest.mark.parametrize("command", ["join pause --rootfs {box} -- true", "exec m true"])
def test_a_cgroup_namespace_of_ones_own(host, pod, busybox, command):
    """With a mount of its own the pod's directory is not in view: a member would be born outside of its limits."""
    mount = v2()
    host.start("m", busybox, "sleep", "1000")
    before = host.cgroups()
    elsewhere = f"{mount}/{os.environ['NSRUN_CGROUP']}/elsewhere"
    os.mkdir(elsewhere)
    wrapper = ["sh", "-c", f'set -e; echo $$ >{elsewhere}/cgroup.procs; exec unshare --cgroup --mount "$@"', "sh", "sh", "-c",
               f'set -e; umount -l {mount}; mount -t cgroup2 none {mount}; exec "$@"', "sh"]  # fmt: skip
    try:
        done = script(host, f"nsrun {command.format(box=busybox)}", *wrapper, check=False)
        refused(done, "is not visible here", "another cgroup namespace")
        assert [p for p in pathlib.Path(elsewhere).iterdir() if p.is_dir()] == []
        # without a mount of its own the directory is the same, and all is well
        script(host, f"nsrun {command.format(box=busybox)}", "unshare", "--cgroup")
    finally:
        wait_for(lambda: not pathlib.Path(elsewhere, "cgroup.procs").read_text(), what="it is empty")
        os.rmdir(elsewhere)
    assert host.cgroups() == before and host.member("m")["status"] == "running"


def test_the_notes_know_their_cgroups(host, pod, busybox):
    v2()
    host.start("m", busybox, "sleep", "1000")
    for kind, name in (("pods", pod), ("members", "m")):
        note = json.loads((host.root / f"run/{kind}/{name}/note").read_text())
        assert note["cgroup_id"] == os.stat(note["cgroup"]).st_ino > 0


def test_cgroups_however_deep(host):
    """The walk holds one descriptor, however deep."""
    path = f"{v2()}/{os.environ['NSRUN_CGROUP']}/p-1"
    here = cgroup.make(path, {})
    for _ in range(300):
        os.mkdir("d", dir_fd=here)
        there = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = there
    os.mkdir("side", dir_fd=here)
    os.close(here)
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 8, limits[1]))
    try:
        assert cgroup.pids(path) == []
        cgroup.remove(path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert not os.path.exists(path)
    os.rmdir(os.path.dirname(path))


def test_what_lives_keeps_its_own_cgroup_only(host):
    """Whatever the order in which the kernel lists them: the empty ones go, those with a process and those above stay."""
    path = f"{v2()}/{os.environ['NSRUN_CGROUP']}/p-1"
    for name in "abcdefgh":
        os.close(cgroup.make(f"{path}/{name}", {}))
    process = subprocess.Popen(["sh", "-c", f"echo $$ >{path}/d/cgroup.procs; exec sleep 1000"])
    try:
        wait_for(lambda: cgroup.pids(path) == [process.pid], what="it is in")
        began = time.monotonic()
        cgroup.remove(path)
        assert [p.name for p in pathlib.Path(path).iterdir() if p.is_dir()] == ["d"] and time.monotonic() - began < 2
    finally:
        cgroup.remove(path, kill=True)
        process.wait()
        os.rmdir(os.path.dirname(path))


def test_a_pods_cgroup_has_a_depth(host, alice, owned):
    v2()
    path = json.loads((host.root / f"run/pods/{owned}/note").read_text())["cgroup"]
    assert pathlib.Path(path, "cgroup.max.depth").read_text() == f"{cgroup.MAX_DEPTH}\n"
    assert pathlib.Path(path, "cgroup.max.descendants").read_text() == f"{cgroup.MAX_BELOW}\n"
    assert alice.sh("sh", "-c", f"echo max >{path}/cgroup.max.depth", check=False).returncode != 0


def test_cgroups_whatever_the_umask(host, busybox):
    mount = v2()
    script(
        host,
        f"umask 0777; nsrun pod create --network none; nsrun join pause -d --name m --rootfs {busybox} -- sleep 1000",
    )
    groups = host.cgroups()
    assert len(groups) >= 3 and all(os.stat(group).st_mode & 0o777 == 0o755 for group in groups if mount in group)


# ---- memfds ----------------------------------------------------------------------------------------------------

NOEXEC = [
    "unshare",
    "--pid",
    "--fork",
    "--mount-proc",
    "sh",
    "-c",
    'echo 2 >/proc/sys/vm/memfd_noexec; exec "$@"',
    "sh",
]


def need_noexec() -> None:
    need(os.path.exists("/proc/sys/vm/memfd_noexec"), "the kernel has no vm.memfd_noexec", "Linux 6.3 or newer")


def test_no_memfd_is_executed(host, busybox):
    """vm.memfd_noexec=2, of a PID namespace: programs come from a tmpfs that nobody can write to."""
    need_noexec()
    out = script(
        host,
        f"""
        ! python3 -c 'import os; os.memfd_create("x", 0x10)' 2>/dev/null
        nsrun pod create --network none
        nsrun join pause -d --name m --rootfs {busybox} -- sleep 1000
        nsrun exec m echo in
        pause=$(nsrun pod inspect pause | grep -m1 '"pid"' | tr -dc 0-9)
        monitor=$(pgrep -o nsrun-monitor)
        for pid in $pause $monitor; do
            readlink /proc/$pid/exe
            ! sh -c 'echo >>/proc/'$pid'/exe' 2>/dev/null
        done
        nsrun join pause --rm --name f --rootfs {busybox} -- echo out
        nsrun pod rm -f pause
        """,
        *NOEXEC,
    )
    assert "in\n" in out.stdout and "out\n" in out.stdout
    assert "/nsrun-pause\n" in out.stdout and "/nsrun-monitor\n" in out.stdout


def test_the_program_in_a_tmpfs_can_not_be_changed(throwaway_host):
    """Neither through the descriptor nor by mounting it writable again: the superblock is read-only, too."""
    fd = kernel._program_in_tmpfs("true", pathlib.Path("/bin/true").read_bytes())
    try:
        with pytest.raises(OSError, match="Read-only"):
            os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
        with pytest.raises(OSError):
            os.fchmod(fd, 0o777)
        assert os.statvfs(f"/proc/self/fd/{fd}").f_flag & os.ST_RDONLY
        assert subprocess.run([f"/proc/self/fd/{fd}"], pass_fds=[fd], check=False, timeout=10).returncode == 0
    finally:
        os.close(fd)


def test_a_user_without_memfds_that_execute(host, alice, box, busybox):
    """Her own pod is refused with the setting's name; of one that root made she is root, and joins."""
    need_noexec()
    image = pathlib.Path(busybox).parent.parent / "images" / "busybox"
    uid = f"setpriv --reuid={ALICE} --regid={ALICE} --init-groups"
    out = script(
        host,
        f"""
        export HOME={alice.home}
        {uid} {NSRUN} pod create --network none own && exit 1
        SUDO_UID={ALICE} nsrun pod create --network none
        {uid} {NSRUN} join pause -d --name m --image {box} -- sleep 1000
        {uid} {NSRUN} exec m echo in
        {uid} {NSRUN} image load {image} 2>&1
        {uid} {NSRUN} doctor || echo missing
        {uid} {NSRUN} rm -f m
        nsrun pod rm -f pause
        """,
        *NOEXEC,
    )
    assert "vm.memfd_noexec is 2" in out.stderr and "vm.memfd_noexec=1" in out.stderr
    assert "in\n" in out.stdout and box in out.stdout and "missing" not in out.stdout
    assert "limited  sealed programs   vm.memfd_noexec is 2" in out.stdout


# ---- hidepid ---------------------------------------------------------------------------------------------------

HIDDEN = ["unshare", "--mount", "sh", "-c", 'mount -t proc -o hidepid=2 proc /proc; exec "$@"', "sh"]


@pytest.mark.parametrize("whose", ["root made it", "she made it"])
def test_hidepid(host, alice, box, whose):
    """What a user sees and does of her own is what it is without."""
    if whose == "root made it":
        host.run("pod", "create", "--network", "none", env={"SUDO_UID": str(ALICE)})
    uid = f"setpriv --reuid={ALICE} --regid={ALICE} --init-groups"
    out = script(
        host,
        f"""
        export HOME={alice.home}
        ! {uid} ls -d /proc/1 2>/dev/null
        {uid} {NSRUN} pod ls | grep -q pause || {uid} {NSRUN} pod create --network none
        {uid} {NSRUN} join pause -d --name m --image {box} -- sleep 1000
        {uid} {NSRUN} exec m echo in
        {uid} {NSRUN} exec -u 33 -t m id -u
        echo --; {uid} {NSRUN} pod ps --json pause
        echo --; {uid} {NSRUN} pod inspect pause
        echo --; {uid} {NSRUN} inspect m
        echo --; {uid} {NSRUN} doctor || :
        {uid} {NSRUN} rm -f m
        """,
        *HIDDEN,
    )
    lines, processes, pods, members, doctor = out.stdout.split("--\n")
    assert lines.split()[-3:] == ["m", "in", "33"]
    assert [row["member"] for row in json.loads(processes)] == ["pause", "m"]
    assert len(json.loads(pods)[0]["namespaces"]) == len(kernel.NAMESPACES) == len(json.loads(members)[0]["namespaces"])
    assert json.loads(members)[0]["pid_in_pod"] > 1 and "hidepid=" in doctor


# ---- few ids ---------------------------------------------------------------------------------------------------


@pytest.fixture
def few(host, alice):
    """alice has three subordinate ids, and so no group 5."""
    texts = {path: path.read_text() for path in (pathlib.Path("/etc/subuid"), pathlib.Path("/etc/subgid"))}
    for path, text in texts.items():
        lines = text.splitlines(True)
        path.write_text("".join(line.replace(":65536", ":3") if line.startswith("alice:") else line for line in lines))
    yield alice
    for path, text in texts.items():
        path.write_text(text)


@pytest.mark.parametrize("by_root", [True, False])
def test_three_subordinate_ids(host, few, rootfs, by_root):
    """A group of terminals is not among them, nor is pause's customary id: both do without."""
    if by_root:
        host.run("pod", "create", "--network", "none", env={"SUDO_UID": str(ALICE)})
    else:
        few.run("pod", "create", "--network", "none")
    own = few.home / "root"
    sh("cp", "-a", rootfs, own)
    sh("chown", "-R", f"{ALICE}:{ALICE}", own)
    few.run("join", "pause", "-d", "--name", "m", "--rootfs", own, "--", "sleep", "1000")
    for words in (["join", "pause", "--rm", "-t", "--rootfs", own, "--"], ["exec", "-t", "m"]):
        assert few.run(*words, "sh", "-c", 'stat -c "%a %u %g" $(tty)').stdout.strip() == "600 0 0"
    status = pathlib.Path(f"/proc/{few.pod()['pid']}/status").read_text()
    assert f"Uid:\t{3_000_000 + 2}\t" in status
    for word, kind in (("4", "uid"), ("2:5", "gid")):
        assert f"no {kind} {word[-1]}" in few.fails(125, "join", "pause", "--rootfs", own, "-u", word, "--", "true")
    if by_root:
        host.run("join", "pause", "--rm", "-t", "--rootfs", rootfs, "--", "true")
    findings = few.json("doctor")
    assert any("5" in f["detail"] and f["what"] == "subordinate ids" and f["status"] == "limited" for f in findings)
    few.run("pod", "rm", "-f", "pause", check=False)
    host.run("pod", "rm", "-f", "pause", check=False)


def test_an_image_with_more_ids_than_there_are(few, busybox):
    """The message says that an id is missing, and where it would come from."""
    base = subprocess.run(["tar", "-C", busybox, "-c", "."], stdout=subprocess.PIPE, check=True, timeout=30).stdout
    layout = few.home / "layout"
    Layout(base, tar(entry("x", uid=33)), name="box:1").write(layout)
    sh("chown", "-R", f"{ALICE}:{ALICE}", layout)
    assert "this user namespace lacks the id" in few.fails(125, "image", "load", layout)


# ---- the umask -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_the_root_of_an_image_without_layers(tmp_path, umask):
    """Members that are not root enter it, whatever the umask of who came first."""
    from nsrun.image import lookup
    from nsrun.state import State

    need(os.geteuid() == 0, "directories of mode 0 are entered", "sudo make test")
    before = os.umask(umask)
    try:
        path = lookup.empty_root(State(str(tmp_path / "state")))
    finally:
        os.umask(before)
    assert os.stat(path).st_mode & 0o7777 == 0o755
