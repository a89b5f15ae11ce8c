# SPDX-License-Identifier: Apache-2.0
"""Lab 16: what a kubelet does."""

from __future__ import annotations

import json
import os

from nsrun.errors import NsrunError
from nsrun.teach import facts, scene
from nsrun.teach.facts import Process
from nsrun.teach.lab import UTIL_LINUX, Lab, Row, Work, best, draw, environment, tool

_SHARED = ("net", "ipc", "uts", "pid")


def _secret(work: Work) -> str:
    """Return a word that only the bundle has."""
    return f"{draw(work.seed, work.lab.number, 'secret') % 10**8:08}"


def make_scene(work: Work) -> dict[str, str]:
    """Make a pod without members, and a bundle that knows nothing of it."""
    pod, bundle = work.variables["POD"], f"{work.directory}/bundle"
    os.mkdir(bundle)
    os.rename(scene.rootfs(work), f"{bundle}/rootfs")
    scene.run(work, "runc", "spec", "--bundle", bundle)
    with open(f"{bundle}/config.json", "r+", encoding="utf-8", errors="surrogateescape") as file:
        config = json.load(file)
        config["process"].update(terminal=False, args=["sleep", "1000"], env=["PATH=/bin", f"SECRET={_secret(work)}"])
        config["root"].update(path="rootfs", readonly=False)
        file.seek(0)
        file.truncate()
        json.dump(config, file, indent=1)
    work.nsrun("pod", "create", "--owner", "root", "--network", "none", pod)
    pause = work.pause(pod)
    assert pause
    return {"BUNDLE": bundle, "PAUSE": str(pause.pid), "RUNC": " ".join(_runc(work))}


def _runc(work: Work) -> list[str]:
    return ["runc", "--root", f"{work.directory}/runc"]


def check(work: Work) -> list[Row]:
    pause = work.pause(work.variables["POD"])
    bundle = facts.root_of_directory(f"{work.variables['BUNDLE']}/rootfs")
    # what has the bundle as its root is the student's, too, though its runtime has cleared the environment
    found = [p for p in work.processes if bundle and p.state != "Z" and facts.root_of(p.pid) == bundle]
    inside = [
        p for p in work.mine if pause and p.namespaces.get("pid") == pause.namespaces["pid"] and p.pid != pause.pid
    ]
    return best({p.pid: p for p in [*found, *inside]}.values(), lambda process: _rows(work, pause, process))


def _rows(work: Work, pause: Process | None, process: Process | None) -> list[Row]:
    pid: int | str = process.pid if process else "PID"
    apart = [k for k in _SHARED if process and (not pause or process.namespaces.get(k) != pause.namespaces.get(k))]
    known = process is not None and process.pid in work.of_pods()
    secret = [name.decode() for name in environment(process.pid) if name.startswith(b"SECRET=")] if process else []
    below = facts.root_of_directory(f"{work.variables['BUNDLE']}/rootfs/bin/busybox")
    above = facts.inode_in_root(process.pid, "bin/busybox") if process else None
    numbers = [found[1] if found else 0 for found in (below, above)]
    space = process.namespaces.get("mnt", 0) if process else 0

    def row(name: str, ok: bool, wanted: str, seen: str, see: str) -> Row:
        nobody = "" if process else "no process of yours is in the pod or has a root of its own"
        return Row(name, process is not None and ok, wanted, nobody or seen, see)

    return [
        row(
            "sandbox",
            not apart,
            f"the container is in the pod's namespaces: {', '.join(_SHARED)}",
            f"not the pod's: {', '.join(apart)}" if apart else "it is",
            f"ls -l /proc/{pid}/ns /proc/{work.variables['PAUSE']}/ns",
        ),
        row(
            "mounts",
            space != work.home["mnt"] and pause is not None and space != pause.namespaces["mnt"],
            "it has a mount namespace of its own",
            f"it is in mnt:[{space}]",
            f"readlink /proc/{pid}/ns/mnt",
        ),
        row(
            "root",
            numbers[0] > 0 and numbers[0] == numbers[1],
            f"its root is that of the bundle, where /bin/busybox has inode {numbers[0]}",
            f"/bin/busybox has inode {numbers[1] or 'none'}",
            f"stat -c %i $BUNDLE/rootfs/bin/busybox /proc/{pid}/root/bin/busybox",
        ),
        row(
            "environment",
            secret == [f"SECRET={_secret(work)}"],
            "it has the environment of config.json",
            ", ".join(secret) or "it has no SECRET",
            f"tr '\\0' '\\n' </proc/{pid}/environ",
        ),
        row(
            "foreign",
            not known,
            "nsrun did not start it, and knows no member of this pod",
            "it is a member of nsrun's" if known else "nsrun does not know it",
            f"nsrun ls; nsrun pod ps {work.variables['POD']}",
        ),
    ]


def reset(work: Work) -> None:
    """Let the runtime remove its containers, since only it knows their cgroups."""
    runc = _runc(work)
    if not os.path.isdir(runc[-1]):
        return
    try:
        listed = scene.run(work, *runc, "list", "--quiet").split()
        for name in listed:
            scene.run(work, *runc, "delete", "--force", name)
    except NsrunError as error:
        work.troubles.append(error.message)


LAB = Lab(
    16,
    "kubelet",
    "What a kubelet does",
    40,
    ("POD",),
    check,
    needs=(UTIL_LINUX, scene.BUSYBOX, tool("runc", "runc"), tool("jq", "jq")),
    root="runc makes cgroups for its containers",
    scene=make_scene,
    reset=reset,
)
