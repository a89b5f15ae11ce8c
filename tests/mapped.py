# SPDX-License-Identifier: Apache-2.0
"""Maps made by hand, for the tests of what draws them, and for the pictures in docs/."""

from __future__ import annotations

from nsrun.teach.map.model import IdMap, Map, Pod, Station, Stop

MACHINE = {
    "user": "4026531837", "net": "4026531840", "ipc": "4026531839", "shm": "0:24", "uts": "4026531838", "pid": "4026531836",
    "mnt": "4026531841", "cgroup": "4026531835", "time": "4026531834",
}  # fmt: skip
#: What a pod has of its own; mount and cgroup namespaces are each member's.
SHARED = {"user": "4026533136", "net": "4026533137", "ipc": "4026535303", "shm": "0:66", "uts": "4026535302", "pid": "4026535304"}  # fmt: skip


def station(pid: int, role: str, name: str, command: str, inside: list[int], /, **places: str) -> Station:
    words = command.split()
    own = {"mnt": f"40265360{pid % 100:02}", "cgroup": f"40265370{pid % 100:02}"}
    found = {**MACHINE, **SHARED, **own, **places}
    return Station(pid, pid * 10, role, name, words, 5007, 0, [pid, *inside], found)


def shop() -> Map:
    """The pod of docs/map.md: members, one with its own network, two with their own PID namespaces, an exec and a stranger."""
    pause = station(4711, "pause", "pause", "/pause", [1], cgroup=MACHINE["cgroup"])
    web = station(4720, "member", "web", "httpd -f -p 80 -h /var/www", [2])
    php = station(4725, "member", "php", "php-fpm --nodaemonize", [3])
    php = Station(**{**vars(php), "children": 4, "uid": 3600032, "uid_inside": 33})
    run = station(4790, "exec", "php", "sh", [9], mnt=php.places["mnt"], cgroup=php.places["cgroup"])
    island = station(4731, "member", "island", "sleep 60000", [4], net="4026535462")
    clock = station(4736, "member", "clock", "sleep 60000", [1], pid="4026533067")
    worker = station(4741, "member", "worker", "sleep 70000", [6, 1], pid="4026533068")
    odd = {kind: MACHINE[kind] for kind in ("user", "ipc", "shm", "uts", "pid", "mnt", "cgroup")}
    stranger = station(4801, "foreign", "bash", "bash", [], **odd)
    stranger = Station(**{**vars(stranger), "uid": 0})
    way = [
        Stop("ports", ["127.0.0.1:8087 → 80", "0.0.0.0:8443 → 443"]),
        Stop("nsrun0", ["10.88.0.1"]),
        Stop("nsr0a580002", ["port of nsrun0"]),
        Stop("eth0", ["10.88.0.2/24"]),
        Stop("lo", ["127.0.0.1/8"]),
        Stop("listening", ["80", "9000"]),
    ]
    ranges = [(0, 5007, 1), (1, 3600000, 65535)]
    pod = Pod(
        "shop",
        "pod",
        ["owner student7"],
        [pause, web, php, run, island, clock, worker, stranger],
        {"4026533067": MACHINE["pid"], "4026533068": SHARED["pid"]},
        way,
        [IdMap(SHARED["user"], 5007, ranges, ranges)],
        ["memory 18.2 MiB of 64 MiB", "processes 12 of 100", "/dev/shm 64 MiB"],
    )
    return Map(MACHINE, [pod])


def crowd(pods: int, members: int, name: str = "member-with-a-name", command: str = "command --with=arguments") -> Map:
    """Many pods with many members, whose names and commands are longer than their boxes."""
    found = []
    for number in range(pods):
        space = {kind: str(int(place) + 100 * number) if place.isdigit() else f"0:{number}" for kind, place in SHARED.items()}  # fmt: skip
        first = 10_000 * (number + 1)
        stations = [station(first, "pause", "pause", "/pause", [1], **space)]
        for at in range(1, members + 1):
            odd = {"net": f"40266{number:02}{at:03}"} if at % 5 == 4 else {"pid": f"40267{number:02}{at:03}"} if at % 7 == 3 else {}  # fmt: skip
            role = ("member", "member", "exec", "foreign", "child")[at % 5]
            stations.append(station(first + at, role, f"{name}-{at}", command, [at + 1], **{**space, **odd}))
        nested = {s.places["pid"]: space["pid"] for s in stations if s.places["pid"] != space["pid"]}
        ranges = [(0, 5007, 1), (1, 3600000, 65535)]
        way = [Stop(f"interface-{n}-of-a-long-name", [f"192.0.2.{n}/24", "2001:db8::1/64"]) for n in range(1, 3 + number % 8)]  # fmt: skip
        found.append(Pod(f"pod-{number}" * 4, "pod", ["owner somebody", "removing"], stations, nested, way, [IdMap(space["user"], 5007, ranges, ranges[:1])], ["processes 12 of 100"] * 12, ["nsrun-follow 12"], number))  # fmt: skip
    return Map(MACHINE, found)
