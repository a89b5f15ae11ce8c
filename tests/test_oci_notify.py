# SPDX-License-Identifier: Apache-2.0
"""A filter that asks a listener (SCMP_ACT_NOTIFY): who listens at listenerPath gets it, with the state, before the program begins."""

import array
import contextlib
import fcntl
import json
import os
import pathlib
import signal
import socket
import struct
import threading
import time

import pytest
from conftest import wait_for
from oci import SLEEP, Runtime, runtime
from test_oci_faults import begun, is_held, nothing_left

from nsrun.errors import BadInput
from nsrun.oci import filters

RECV, SEND = 0xC0502100, 0xC0182101  # seccomp_unotify(2)
ASKED = ["mkdir", "mkdirat"]


class Listener:
    """Takes listeners at a socket, and answers each call with `error`, 0 for a success that does nothing."""

    def __init__(self, path: pathlib.Path) -> None:
        self.error = 0
        self.told: list[dict] = []
        self.pids: list[int] = []
        self.fds: list[int] = []
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.bind(str(path))
        self.socket.listen(4)
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.socket.accept()
                data, control, _, _ = connection.recvmsg(65536, 1024)
                while more := connection.recv(65536):
                    data += more
                connection.close()
                fds = array.array("i")
                fds.frombytes(control[0][2][:4])
                self.told.append(json.loads(data))
                self.fds.append(fds[0])
                threading.Thread(target=self._answer, args=(fds[0],), daemon=True).start()

    def _answer(self, fd: int) -> None:
        with contextlib.suppress(OSError):
            while True:
                asked = bytearray(80)
                fcntl.ioctl(fd, RECV, asked)
                ident, pid = struct.unpack_from("=QI", asked)
                self.pids.append(pid)
                fcntl.ioctl(fd, SEND, struct.pack("=QqiI", ident, 0, -self.error, 0))

    def close(self) -> None:
        self.socket.close()
        for fd in self.fds:
            os.close(fd)


@pytest.fixture
def r(host, busybox):
    with runtime(host, busybox, "nsrun-oci", hybrid=True) as made:
        made.listener = Listener(made.base / "listener")
        try:
            yield made
        finally:
            made.listener.close()


def document(r: Runtime, *args: str, **profile: object) -> dict:
    made = r.config(*args)
    made["annotations"] = {"a": "b"}
    made["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": str(r.base / "listener"), "listenerMetadata": "some {words}",
        "syscalls": [{"names": ASKED, "action": "SCMP_ACT_NOTIFY"}, {"names": ["swapon"], "action": "SCMP_ACT_ERRNO"}], **profile,
    }  # fmt: skip
    return made


PROGRAM = ("sh", "-c", "mkdir /nowhere || exit 9; test -e /nowhere && exit 8; exit 5")


@pytest.mark.live
@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("error, code", [(0, 5), (25, 9)])
def test_a_listener_answers_for_the_kernel(r, late, error, code):
    r.listener.error = error
    made = document(r, *PROGRAM)
    made["process"]["noNewPrivileges"] = late
    pid = r.create("c", made)
    wait_for(lambda: r.listener.told)
    assert r.listener.told == [
        {
            "ociVersion": "1.0.2", "fds": ["seccompFd"], "pid": pid, "metadata": "some {words}",
            "state": {"ociVersion": "1.0.2", "id": "c", "status": "creating", "pid": pid, "bundle": str(r.base / "bundle-c"), "annotations": {"a": "b"}},
        }
    ]  # fmt: skip
    assert not r.listener.pids
    r.ok("start", "c")
    assert r.reap(pid) == code
    assert r.listener.pids


@pytest.mark.live
def test_an_exec_has_a_listener_of_its_own(r):
    pid = r.create("c", document(r, *SLEEP))
    r.ok("start", "c")
    assert r.call("exec", "c", *PROGRAM).returncode == 5
    assert [told["state"]["status"] for told in r.listener.told] == ["creating", "running"]
    second = r.listener.told[1]
    assert second["state"]["pid"] == pid != second["pid"] and len(r.listener.pids) == 1
    nothing_left(r)


@pytest.mark.live
def test_nobody_listens(r):
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    bound.bind(str(r.base / "bound"))
    for path, told in ((r.base / "bound", "nobody listens"), (r.base / "nosuch", "names nothing")):
        done = r.call("create", "--bundle", r.bundle("c", document(r, *SLEEP, listenerPath=str(path))), "c")
        assert done.returncode == 1 and told in done.stderr, done
        assert not (r.state / "c").exists() and not r.cgroups("c")
    bound.close()
    wait_for(r._reap_all)


@pytest.mark.live
def test_a_filter_that_asks_for_what_the_container_also_allows(r):
    """It is two filters, and the one that asks has the listener."""
    made = document(r, *PROGRAM)
    made["linux"]["seccomp"]["syscalls"].append({"names": ASKED, "action": "SCMP_ACT_ALLOW"})
    pid = r.create("c", made)
    r.ok("start", "c")
    assert r.reap(pid) == 5 and r.listener.pids


@pytest.mark.live
@pytest.mark.parametrize("late", [True, False])
def test_a_listener_that_ends(r, late):
    """The kernel answers for it as soon as nobody has it: nsrun-init keeps no copy."""
    taken = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    taken.bind(str(r.base / "taken"))
    taken.listen(4)

    def take() -> None:
        connection, _ = taken.accept()
        _, control, _, _ = connection.recvmsg(65536, 1024)
        os.close(array.array("i", control[0][2][:4])[0])
        while connection.recv(65536):
            pass
        connection.close()

    threading.Thread(target=take, daemon=True).start()
    made = document(r, *SLEEP, listenerPath=str(r.base / "taken"), syscalls=rules("execve"))
    made["process"]["noNewPrivileges"] = late
    pid = r.create("c", made)
    done = r.call("start", "c", timeout=10)
    assert done.returncode == 1 and "not implemented" in done.stderr, done
    r.reap(pid)
    nothing_left(r)
    taken.close()


@pytest.mark.live
@pytest.mark.parametrize("how", ["TERM", "kill", "delete"])
def test_a_listener_that_never_answers(r, how):
    """A call of nsrun-init waits for it; but whoever waits for nsrun-init can be ended, and so can the container."""
    silent = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    silent.bind(str(r.base / "silent"))
    silent.listen(4)  # its queue has the listener as long as the socket lives
    r.create("c", document(r, *SLEEP, listenerPath=str(r.base / "silent"), syscalls=rules("execve")))
    child = begun(r, "start", "c")
    try:
        wait_for(lambda: is_held(r))
        time.sleep(0.5)
        assert child.poll() is None
        if how == "TERM":
            child.send_signal(signal.SIGTERM)
            assert child.wait(timeout=10) != 0
        else:
            r.ok(*(("kill", "c", "KILL") if how == "kill" else ("delete", "--force", "c")), timeout=20)
            _, said = child.communicate(timeout=10)
            assert child.returncode == 1 and "was killed" in said
    finally:
        child.kill()
        child.communicate()
        silent.close()
    nothing_left(r)


@pytest.mark.live
@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("how", ["TERM", "INT", "delete"])
def test_a_create_that_waits_for_a_listener_is_ended(r, how, late):
    silent = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    silent.bind(str(r.base / "silent"))
    silent.listen(4)
    made = document(r, *SLEEP, listenerPath=str(r.base / "silent"), syscalls=rules("statx", "faccessat"))
    made["process"]["noNewPrivileges"] = late
    child = begun(r, "create", "--bundle", r.bundle("c", made), "c")
    try:
        wait_for(lambda: bool(r.cgroups("c")))
        time.sleep(1)
        assert child.poll() is None
        if how == "delete":
            r.ok("delete", "--force", "c", timeout=20)
        else:
            child.send_signal(signal.Signals[f"SIG{how}"])
        _, said = child.communicate(timeout=20)
        assert child.returncode == 1 and (how == "delete" or "interrupted" in said), said
        assert not (r.state / "c").exists() and not r.cgroups("c")
    finally:
        child.kill()
        child.communicate()
        silent.close()


def rules(*names: str) -> list[dict]:
    return [{"names": list(names), "action": "SCMP_ACT_NOTIFY"}]


@pytest.mark.parametrize(
    "profile, field",
    [
        ({"defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/x"}, "defaultAction"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x", "syscalls": rules("read", "write")}, "syscalls"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x", "syscalls": rules("read")}, "syscalls"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x", "syscalls": rules("close")}, "syscalls"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules("mkdir")}, "listenerPath"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "x", "syscalls": rules("mkdir")}, "listenerPath"),
    ],
)  # fmt: skip
def test_filters_that_nobody_could_answer(profile, field):
    with pytest.raises(BadInput, match=rf"linux\.seccomp\.{field}"):
        filters.asks(profile)


def test_which_filters_ask():
    assert not filters.asks(None)
    assert not filters.asks(
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "listenerPath": "/x",
            "syscalls": [{"names": ["write"], "action": "SCMP_ACT_ERRNO"}],
        }
    )
    assert filters.asks({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x", "syscalls": rules("mkdir")})
