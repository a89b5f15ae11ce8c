# SPDX-License-Identifier: Apache-2.0
"""Both ends of nsrun-door's socket, hostile.  Started by test_door.py as the owner of a pod, with her power and no more.

doorpeer.py ask SOCKET CASE PAUSE     the one who asks; prints what door answered, a word per connection
doorpeer.py hold SOCKET N             N connections that say nothing; prints a line, and holds them until end of file
doorpeer.py answer SOCKET CASE        a door: binds the socket, prints a line, answers every connection like CASE
"""

from __future__ import annotations

import array
import fcntl
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time

NEWUSER, NEWUTS, VM, VFORK = 0x10000000, 0x4000000, 0x100, 0x4000
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
Fds = list[int]


def memory(data: bytes, seals: int = SEALS, size: int = 0) -> int:
    fd = os.memfd_create("request", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.write(fd, data)
    if size:
        os.truncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def request(
    numbers: Fds,
    *,
    join: int = 300,
    flags: tuple[int, int] = (NEWUSER | NEWUTS, 0),
    programs: tuple[int, int] = (301, 302),
    slot: int = 303,
    stdio: int = 304,
    keep: Fds = [],  # noqa: B006
    argv: list[bytes] = [b"true"],  # noqa: B006
) -> bytes:
    """What run.py, `_through`, would write."""
    data = struct.pack("=4s7i6i", b"NSD2", join, *flags, -1, *programs, slot, *[stdio] * 3, -1, -1, -1)
    for some in (numbers, keep, [], []):  # the last: what is locked
        data += struct.pack(f"=I{len(some)}i", len(some), *some)
    for words in (argv, [b"monitor"], []):
        text = b"".join(word + b"\0" for word in words)
        data += struct.pack("=I", len(text)) + text
    return data


def connect(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(path)  # which waits while 64 others do
    sock.settimeout(15)
    return sock


def rights(fds: Fds) -> list[tuple[int, int, bytes]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())] if fds else []


def hear(sock: socket.socket) -> str:
    """The errno of a refusal, "started PID", "closed", or "silent"."""
    try:
        pid, _, _, error = struct.unpack("=4i", sock.recv(100))
    except (struct.error, ConnectionResetError):
        return "closed"
    except TimeoutError:
        return "silent"
    return str(-error) if error else f"started {pid}"


def ask(path: str, fds: Fds, data: bytes = b"L") -> str:
    with connect(path) as sock:
        sock.sendmsg([data], rights(fds))
        return hear(sock)


# ---- who asks ----------------------------------------------------------------------------------------------------


def wrong_descriptors(path: str, pause: int) -> list[str]:
    """A request that would be right, in everything that is no sealed memfd of a fair size."""
    good = request([])
    fifo = f"{os.environ['HOME']}/fifo"
    os.mkfifo(fifo)
    file = os.open(f"{os.environ['HOME']}/file", os.O_RDWR | os.O_CREAT)
    os.write(file, good)
    read, write = os.pipe()
    os.write(write, good)
    few = [0, fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW, SEALS & ~fcntl.F_SEAL_GROW]
    descriptors = [
        os.open(fifo, os.O_RDWR),
        file,
        read,
        write,
        os.open("/", os.O_RDONLY | os.O_DIRECTORY),
        os.open("/", os.O_PATH),
        os.open("/dev/zero", os.O_RDWR),
        os.open("/proc/self/mem", os.O_RDWR),
        os.pidfd_open(os.getpid()),
        connect(path).detach(),
        *(memory(good, seals) for seals in few),
        memory(b""),
        memory(good, size=9 << 20),
        memory(good, size=1 << 45),
    ]
    return [ask(path, [fd]) for fd in descriptors]


def changing(path: str, pause: int) -> list[str]:
    """The memfd loses its pages and gets other content while door reads it."""
    fd = memory(request([]), 0)
    ended = threading.Event()

    def change() -> None:
        while not ended.is_set():
            os.truncate(fd, 0)
            os.pwrite(fd, request(list(range(200)), argv=[b"x" * 5000]), 0)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        return [ask(path, [fd]) for _ in range(100)]
    finally:
        ended.set()
        thread.join()


def early(path: str, pause: int) -> list[str]:
    """Closed at every point, with more said than is heard, and by kill -9."""
    connect(path).close()
    for how in (socket.SHUT_WR, socket.SHUT_RD, socket.SHUT_RDWR):
        with connect(path) as sock:
            sock.shutdown(how)
    for data, fds in ((b"L", []), (b"", []), (b"L", [memory(request([]))]), (b"x" * 60_000, [0])):
        with connect(path) as sock:
            sock.sendmsg([data], rights(fds))
    with connect(path) as sock:  # many packets: the first one counts
        sock.setblocking(False)
        try:
            for _ in range(1000):
                sock.sendmsg([b"L"], rights([memory(b"")] * 3))
        except (BlockingIOError, BrokenPipeError, ConnectionResetError, OSError):
            pass
    for delay in (0, 0.001, 0.01):
        words = [sys.executable, __file__, "ask", path, "strange_numbers", str(pause)]
        child = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        time.sleep(0.1 + delay)
        child.kill()
        child.wait()
    return [ask(path, [memory(b"")])]


def strange_numbers(path: str, pause: int) -> list[str]:
    """More descriptors than there may be, numbers of door's own, flags that no launch has, pids of others."""
    null = os.open("/dev/null", os.O_RDWR)
    found = []
    for count in (251, 252):
        found.append(ask(path, [memory(request(list(range(count)))), *[null] * count]))
    for numbers in ([511, 512], [-1, 3], [3]):
        found.append(ask(path, [memory(request(numbers)), null, null]))
    for flags in ((NEWUTS, VM | VFORK), (NEWUTS, 0x8000), (0x800, 0), (-1, 0)):
        found.append(ask(path, [memory(request([300], flags=flags)), os.pidfd_open(pause)]))
    for slot in (2, -1, 512):
        found.append(ask(path, [memory(request([300], slot=slot)), os.pidfd_open(pause)]))
    for pid in (1, os.getppid(), os.getpid()):
        found.append(ask(path, [memory(request([300], flags=(NEWUTS, 0))), os.pidfd_open(pid)]))
    for numbers in (list(range(250)), [0, 1, 2], [3] * 250):
        found.append(ask(path, [memory(request(numbers)), *[null] * len(numbers)]))
    credentials = struct.pack("=iii", os.getpid(), os.getuid(), os.getgid())
    with connect(path) as sock:
        sock.sendmsg([b"L"], [(socket.SOL_SOCKET, 2, credentials)])  # SCM_CREDENTIALS
        found.append(hear(sock))
    return found


def lingering(path: str, pause: int) -> list[str]:
    """A connection with data that nobody takes, and SO_LINGER: whoever closes it last waits for 1000 s (socket(7)).

    That is to be the door; when it was faster than we, once more.
    """
    for _ in range(200):
        began, answer = time.monotonic(), linger_once(path)
        if time.monotonic() - began > 5:
            break
    return [answer]


def linger_once(path: str) -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        sock = socket.create_connection(server.getsockname())
        with server.accept()[0]:
            sock.setblocking(False)
            try:
                while sock.send(b"x" * 65536):
                    pass
            except BlockingIOError:
                pass
            sock.setblocking(True)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 1000))
            with connect(path) as door:
                null = os.open("/dev/null", os.O_RDWR)
                data = request([300, 300])  # the second one takes the place of the first, which is closed
                held = [memory(data), sock.detach(), null]
                door.sendmsg([b"L"], rights(held))
                threading.Thread(target=os.close, args=(held[1],), daemon=True).start()
                return hear(door)


def mutated(path: str, pause: int) -> list[str]:
    """Requests that were right before some of their bytes, numbers or descriptors changed; for DOORPEER_SECONDS."""
    seed = int(os.environ.get("NSRUN_FUZZ_SEED") or random.randrange(1 << 30))
    print(f"seed {seed}", file=sys.stderr)
    rng, end = random.Random(seed), time.monotonic() + float(os.environ["DOORPEER_SECONDS"])
    null, true = os.open("/dev/null", os.O_RDWR), os.open("/bin/true", os.O_PATH)
    numbers = [300, 301, 302, 303, 304]
    found: list[str] = []
    while time.monotonic() < end or len(found) < 50:
        time.sleep(0.01)  # what was launched is init's to reap, and until then counts as a process of hers
        sent = [os.pidfd_open(pause), true, true, null, null]
        data = bytearray(request(numbers, keep=[303], argv=[b"true"] * rng.randint(1, 5)))
        for _ in range(rng.randint(0, 4)):
            kind, at = rng.randrange(4), rng.randrange(len(data))
            if kind == 0:
                data[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                at = at // 4 * 4
                data[at : at + 4] = struct.pack(
                    "=I", rng.choice((0, 1, 3, 250, 251, 511, 512, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1))
                )
            elif kind == 2:
                del data[at : at + rng.randint(1, 8)]
                data += b"\0" * rng.randrange(8)
            else:
                sent[rng.randrange(len(sent))] = rng.choice((null, true, 0))
        memfd = memory(bytes(data))
        found.append(ask(path, [memfd, *sent]))
        os.close(memfd)
        for fd in set(sent) - {null, true, 0}:
            os.close(fd)
    return found


def borrow(path: str, pause: int) -> list[str]:
    """A launch that is right, whose program is told to keep every number that door's own descriptors may have."""
    read, write = os.pipe()
    programs = [os.open(path, os.O_PATH) for path in ("/bin/sh", "/bin/true")]
    sent = [os.pidfd_open(pause), *programs, os.open("/dev/null", os.O_RDWR), write]
    script = b"for f in /proc/self/fd/*; do readlink $f; done"
    data = request([300, 301, 302, 303, 304], keep=list(range(3, 250)), argv=[b"sh", b"-c", script])
    said = ask(path, [memory(data), *sent])
    os.close(write)
    with os.fdopen(read) as file:
        return [said.partition(" ")[0], *sorted({line.partition(":")[0].strip() for line in file})]


# ---- who answers ---------------------------------------------------------------------------------------------------


def ended() -> int:
    child = subprocess.Popen(["true"])
    fd = os.pidfd_open(child.pid)
    child.wait()
    return fd


def answer(sock: socket.socket, case: str) -> None:
    if case == "closes at once":
        return
    _, given, _, _ = socket.recv_fds(sock, 100, 300)
    for fd in given:
        os.close(fd)
    if case == "never answers":
        time.sleep(60)
    me = os.getpid()
    other = os.pidfd_open(me)  # hers, outside of the pod
    null = os.open("/dev/null", os.O_RDWR)
    good = struct.pack("=4i", me, me, 0, 0)
    answers: dict[str, tuple[bytes, Fds]] = {
        "closes": (b"", []),
        "too short": (good[:15], [other, other]),
        "too long": (good + b"x", [other, other]),
        "no descriptors": (good, []),
        "one descriptor": (good, [other]),
        "three descriptors": (good, [other] * 3),
        "many descriptors": (good, [other] * 253),
        "no pidfds": (good, [null, null]),
        "an errno of 31 bits": (struct.pack("=4i", 0, 0, 1, -(1 << 31)), []),
        "an errno beyond all": (struct.pack("=4i", 0, 0, -7, -5000), [other, other]),
        "an errno that is none": (struct.pack("=4i", 0, 0, 1, 7), [other, other]),
        "an errno and descriptors": (struct.pack("=4i", 0, 0, 2, -1), [other, other]),
        "a process of hers": (good, [other, other]),
        "pid 1": (struct.pack("=4i", 1, 1, 0, 0), [os.pidfd_open(1)] * 2),
        "what has ended": (struct.pack("=4i", 1, 1, 0, 0), [ended(), ended()]),
    }
    data, fds = answers[case]
    if data:
        sock.sendmsg([data], rights(fds))


def main() -> None:
    what, path, case, *rest = sys.argv[1:]
    if what == "ask":
        print("\n".join(globals()[case](path, int(rest[0]))))
    elif what == "hold":
        held = [connect(path) for _ in range(int(case))]
        print(len(held), flush=True)
        sys.stdin.read()
    else:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(path)
        listener.listen(8)
        print("listening", flush=True)
        while True:
            with listener.accept()[0] as sock:
                answer(sock, case)


if __name__ == "__main__":
    main()
