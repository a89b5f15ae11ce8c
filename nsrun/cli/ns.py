# SPDX-License-Identifier: Apache-2.0
"""The commands of `nsrun ns`: look at namespaces, compare processes, pin a namespace."""

from __future__ import annotations

import os

from nsrun.cli import say, text
from nsrun.plan import sh_quote
from nsrun.teach import facts, names
from nsrun.teach import ns as module
from nsrun.teach.ns import Space, Survey

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nsrun.cli.commands import Call
    from nsrun.teach.facts import Process
    from nsrun.teach.names import Whose

WIDTH = 48  # of the last column


def ls(call: Call) -> int:
    whose, found = names.known(call.state), module.survey()
    kind = call.options.get("type")
    spaces = [space for space in found.spaces if kind in (None, space.kind)]
    if call.options.get("json"):
        return text.json({"namespaces": [_space(space, whose) for space in spaces], "hidden": _hidden(found)})
    head = ["NAMESPACE", "TYPE", "PROCS", "PID", "CREATOR", "OWNED BY", "PARENT", "WHO"]
    text.table(head, [_row(space, whose) for space in spaces])
    _tell_hidden(found)
    return 0


def _row(space: Space, whose: dict[int, Whose]) -> list[str]:
    lowest = str(space.processes[0].pid) if space.processes else "-"
    above = str(space.parent or "-") if space.kind in ("user", "pid") else "-"
    owned = str(space.user or "-")
    return [
        str(space.inode), space.kind, str(len(space.processes)), lowest, module.accounts(space.owner), owned, above,
        _who(space, whose),
    ]  # fmt: skip


def _who(space: Space, whose: dict[int, Whose]) -> str:
    pods = module.of_pods(space, whose)
    parts = ["initial"] if space.initial else []
    parts += [f"pod {pod}: {' '.join(members)}" for pod, members in pods.items()]
    others = len([process for process in space.processes if process.pid not in whose])
    if pods and others and not space.initial:
        parts.append(f"{others} not started by nsrun")
    if space.processes and not parts:
        parts.append(_short(_command(space.processes[0])))
    if not space.processes:
        parts.append(_held(space))
    elif space.mounts:
        parts.append(f"pinned at {_first(sorted({path for _, path in space.mounts}))}")
    return "; ".join(parts)


def _held(space: Space) -> str:
    """Say what holds a namespace that no process is in."""
    how = space.held_by
    if how == "threads":
        return f"only thread {_first([f'{tid} of {pid}' for pid, tid in space.threads])}"
    if how == "awaited":
        return f"only the next children of {_first([str(pid) for pid in space.awaited])}"
    if how == "mounts":
        return f"only a bind mount: {_first(sorted({path for _, path in space.mounts}))}"
    if how == "descriptors":
        return f"only an open descriptor: /proc/{_first([f'{pid}/fd/{number}' for pid, number in space.descriptors])}"
    if how == "children":
        return f"only as parent of {_first([str(inode) for inode in space.children])}"
    if how == "owns":
        return f"only as owner of {_first([str(inode) for inode in space.owns])}"
    return "no process that may be looked into"


def _some(pids: list[int]) -> str:
    listed = " ".join(map(str, pids[:3]))
    return listed if len(pids) <= 3 else f"{listed} and {len(pids) - 3} more"


def _first(items: list[str]) -> str:
    return items[0] + (f" and {len(items) - 1} more" if len(items) > 1 else "")


def _command(process: Process) -> str:
    return " ".join(process.command).strip() or f"[{process.name}]"


def _short(line: str) -> str:
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…"


def _tell_hidden(found: Survey) -> None:
    """Say which processes were not looked into: what they are in may be missing."""
    if found.hidden:
        counts: dict[int, list[int]] = {}
        for process in found.hidden:
            counts.setdefault(process.uid, []).append(process.pid)
        whose = "; ".join(f"of {module.accounts(uid)}: {_some(pids)}" for uid, pids in sorted(counts.items()))
        say.err(f"not looked into, for want of permission (ptrace(2)): {whose}")
        if os.geteuid():
            say.err("hint: namespaces that only these are in are missing here; sudo nsrun ns ls shows them")
    mount = facts.mount_at(os.getpid(), "/proc")
    if mount and any(option.startswith(("hidepid=", "subset=")) and option not in ("hidepid=0", "hidepid=off") for option in mount.superblock):  # fmt: skip
        say.err("note: this /proc does not list all processes: findmnt -no OPTIONS /proc, proc(5)")


# ---- JSON ------------------------------------------------------------------------------------------------------


def _space(space: Space, whose: dict[int, Whose]) -> dict[str, Any]:
    return {
        "namespace": space.inode,
        "type": space.kind,
        "initial": space.initial,
        "parent": space.parent if space.kind in ("user", "pid") else 0,
        "owner_namespace": space.user,
        "owner_uid": space.owner,
        "held_by": space.held_by,
        "processes": [_process(process, whose) for process in space.processes],
        "threads": [{"pid": pid, "tid": tid} for pid, tid in space.threads],
        "next_children_of": space.awaited,
        "mounts": [{"path": path, "seen_by": pid} for pid, path in space.mounts],
        "descriptors": [{"pid": pid, "fd": number} for pid, number in space.descriptors],
        "children": space.children,
        "owns": space.owns,
    }


def _process(process: Process, whose: dict[int, Whose]) -> dict[str, Any]:
    one = whose.get(process.pid)
    return {
        "pid": process.pid,
        "uid": process.uid,
        "command": process.command or [f"[{process.name}]"],
        "pod": one.pod if one else "",
        "member": one.member if one else "",
    }


def _hidden(found: Survey) -> list[dict[str, Any]]:
    return [{"pid": one.pid, "uid": one.uid, "name": one.name} for one in found.hidden]


# ---- show ------------------------------------------------------------------------------------------------------


def show(call: Call) -> int:
    whose = names.known(call.state)
    process = module.looked_into(names.pid_of(call.operands[0], whose))
    found = module.survey()
    spaces = {space.inode: space for space in found.spaces}
    mine = [(kind, spaces[inode]) for kind, inode in process.namespaces.items() if inode in spaces]
    shm, root = (facts.identity_at(process.pid, path) for path in ("/dev/shm", "/"))
    if call.options.get("json"):
        return text.json(
            {
                **_process(process, whose),
                "pids": process.pids,
                "namespaces": [
                    {**_space(space, whose), "parents": module.lineage(spaces, space.inode)} for _, space in mine
                ],
                "shm": module.device(shm),
                "root": module.device(root),
                "hidden": _hidden(found),
            }
        )
    one = whose.get(process.pid)
    say.out(f"process {process.pid}: {_short(_command(process))}; uid {process.uid}{f'; {one}' if one else ''}")
    if len(process.pids) > 1:
        inward = ", then ".join(map(str, process.pids))
        say.out(f"its number in each PID namespace, from here inward: {inward}")
    say.out("")
    rows = []
    for kind, space in mine:
        rows.append([kind, str(space.inode), module.accounts(space.owner), str(space.user or "-"), _who(space, whose)])
        for depth, inode in enumerate(module.lineage(spaces, space.inode), 1):
            above = spaces.get(inode) or Space(kind, inode)
            rows.append([f"{'  ' * depth}in", str(inode), module.accounts(above.owner), str(above.user or "-"), _who(above, whose)])  # fmt: skip
    for what, where in (("/dev/shm", shm), ("/", root)):
        rows.append([what, module.device(where), "", "", "no namespace: device and inode"])
    text.table(["TYPE", "NAMESPACE", "CREATOR", "OWNED BY", "WHO"], rows)
    _tell_hidden(found)
    return 0


# ---- diff ------------------------------------------------------------------------------------------------------


def diff(call: Call) -> int:
    import textwrap

    whose = names.known(call.state)
    a, b = (module.looked_into(names.pid_of(word, whose)) for word in call.operands)
    spaces = {space.inode: space for space in module.survey().spaces}
    found = module.differences(a, b, (call.operands[0], call.operands[1]), spaces)
    if call.options.get("json"):
        rows = [{"what": d.what, "shared": d.shared, "a": d.a, "b": d.b, "means": d.means, "see": d.see} for d in found]
        return text.json({"a": _process(a, whose), "b": _process(b, whose), "differences": rows})
    for process, word in ((a, call.operands[0]), (b, call.operands[1])):
        one = whose.get(process.pid)
        say.out(f"{word}: process {process.pid}, {_short(_command(process))}{f'; {one}' if one else ''}")
    say.out("")
    for d in found:
        what = {"shm": "/dev/shm", "root": "/"}.get(d.what, d.what)
        numbers = d.a if d.shared else f"{d.a} | {d.b}"
        say.out(f"{'shared    ' if d.shared else 'not shared'}  {what:<8}  {numbers}")
        for line in textwrap.wrap(d.means, 84):
            say.out(f"{'':12}{line}")
        say.out(f"{'':12}see: {d.see}")
    say.out("")
    say.out(f"The numbers of namespaces: readlink /proc/{a.pid}/ns/* /proc/{b.pid}/ns/*")
    return 0


# ---- pin, unpin ------------------------------------------------------------------------------------------------


def pin(call: Call) -> int:
    kind, word, path = call.operands
    pid = names.pid_of(word, names.known(call.state))
    made = module.pin(kind, pid, path)
    if made.shared:
        say.err(f"note: {path} is in a shared mount ({made.shared}): the pin appears in every mount namespace of that peer group")  # fmt: skip
    if kind == "pid":
        say.err("note: once its process 1 has ended, a PID namespace takes no new process: fork(2) fails with ENOMEM")
    say.out(f"{made.kind}:[{made.inode}] stays until {path} is unmounted, also when no process is in it any more")
    say.out(f"enter it:  {made.enter}")
    say.out(f"remove it: nsrun ns unpin {sh_quote(path)}")
    return 0


def unpin(call: Call) -> int:
    def one(path: str) -> None:
        say.out(f"{path} held {module.unpin(path)}")

    return say.each(call.operands, one, print_names=False)
