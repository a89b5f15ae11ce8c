# SPDX-License-Identifier: Apache-2.0
"""Lab 15: from layers to a process."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile

from nsrun.errors import NsrunError
from nsrun.teach import facts, scene
from nsrun.teach.facts import Process
from nsrun.teach.lab import USER_NAMESPACES, UTIL_LINUX, Lab, Row, Work, best, draw, environment, tool

_WWW = 33


def _secret(work: Work) -> str:
    """Return a word that only the image has."""
    return f"{draw(work.seed, work.lab.number, 'secret') % 10**8:08}"


def make_scene(work: Work) -> dict[str, str]:
    """Make an image of three layers, as a layout of the OCI image specification."""
    rootfs, image = scene.rootfs(work), f"{work.directory}/image"
    secret = _secret(work)
    base = io.BytesIO()
    with tarfile.open(fileobj=base, mode="w") as tar:
        for directory in ("", "srv", "data"):
            if directory:
                tar.addfile(_entry(directory, tarfile.DIRTYPE))
        for name in sorted(os.listdir(rootfs)):
            tar.add(f"{rootfs}/{name}", name, filter=_of_root)
        _write(tar, {"etc/release": "one", "srv/old": "old", "data/a": "a"})
    middle = _layer({"etc/release": "two", "srv/.wh.old": "", "data/.wh..wh..opq": "", "data/b": "b"})
    top = _layer({"etc/release": secret})
    config = {
        "architecture": "amd64" if os.uname().machine == "x86_64" else "arm64",
        "os": "linux",
        "config": {
            "User": str(_WWW),
            "WorkingDir": "/srv",
            "Env": ["PATH=/bin", f"SECRET={secret}"],
            "Cmd": ["sleep", "1000"],
        },
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer) for layer in (base.getvalue(), middle, top)]},
    }
    os.makedirs(f"{image}/blobs/sha256")
    kind = "application/vnd.oci.image"
    described = [_blob(image, f"{kind}.layer.v1.tar", layer) for layer in (base.getvalue(), middle, top)]
    described_config = _blob(image, f"{kind}.config.v1+json", json.dumps(config).encode())
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{kind}.manifest.v1+json",
        "config": described_config,
        "layers": described,
    }
    listed = _blob(image, f"{kind}.manifest.v1+json", json.dumps(manifest).encode())
    index = {"schemaVersion": 2, "manifests": [listed]}
    for name, document in (("oci-layout", {"imageLayoutVersion": "1.0.0"}), ("index.json", index)):
        with open(f"{image}/{name}", "w") as file:
            json.dump(document, file)
    paths = [f"{image}/blobs/{str(blob['digest']).replace(':', '/')}" for blob in (listed, described_config)]
    return {"IMAGE": image, "UNSHARE": scene.unshare(ids=True), "MANIFEST": paths[0], "CONFIG": paths[1]}


def _entry(name: str, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.mode = kind, 0o755 if kind == tarfile.DIRTYPE else 0o644
    return found


def _of_root(found: tarfile.TarInfo) -> tarfile.TarInfo:
    found.uid = found.gid = 0
    found.uname = found.gname = ""
    return found


def _write(tar: tarfile.TarFile, files: dict[str, str]) -> None:
    for name, text in files.items():
        entry = _entry(name)
        entry.size = len(text)
        tar.addfile(entry, io.BytesIO(text.encode()))


def _layer(files: dict[str, str]) -> bytes:
    page = io.BytesIO()
    with tarfile.open(fileobj=page, mode="w") as tar:
        for directory in sorted({os.path.dirname(name) for name in files}):
            tar.addfile(_entry(directory, tarfile.DIRTYPE))
        _write(tar, files)
    return page.getvalue()


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _blob(image: str, kind: str, data: bytes) -> dict[str, object]:
    """Write a blob, and return its descriptor."""
    digest = _digest(data)
    with open(f"{image}/blobs/{digest.replace(':', '/')}", "wb") as file:
        file.write(data)
    return {"mediaType": kind, "digest": digest, "size": len(data)}


def check(work: Work) -> list[Row]:
    ours = facts.root_of(os.getpid())
    moved = [
        process for process in work.mine if process.state != "Z" and facts.root_of(process.pid) not in (None, ours)
    ]
    return best(moved, lambda process: _rows(work, process))


def _rows(work: Work, process: Process | None) -> list[Row]:
    pid: int | str = process.pid if process else "PID"
    top = f"/proc/{pid}/root"
    secret = _secret(work)
    variables = environment(process.pid) if process else []
    names = [name.decode("utf-8", "replace") for name in variables if name.startswith((b"SECRET=", b"LAB_DIR="))]
    srv, data = (facts.names_in_root(process.pid, name) if process else [] for name in ("srv", "data"))

    def row(name: str, ok: bool, wanted: str, seen: str, see: str) -> Row:
        nobody = "" if process else "no process of yours has another root than the machine's"
        return Row(name, process is not None and ok, wanted, nobody or seen, see)

    release = facts.text_in_root(process.pid, "etc/release")[:80].strip() if process else ""
    here = facts.root_of_directory(f"/proc/{pid}/cwd/")
    uid = facts.uid_inside(process) if process else -1
    return [
        row(
            "order",
            release == secret,
            "its root has /etc/release of the topmost layer",
            f"/etc/release says {release or 'nothing'}",
            f"cat {top}/etc/release",
        ),
        row(
            "whiteout",
            "old" not in srv and ".wh.old" not in srv,
            "/srv/old, which a layer removes, is not there, and neither is the mark",
            f"/srv has {' '.join(srv) or 'nothing'}",
            f"ls -a {top}/srv",
        ),
        row(
            "opaque",
            data == ["b"],
            "/data has only what came after the layer that made it opaque: b",
            f"/data has {' '.join(data) or 'nothing'}",
            f"ls -a {top}/data",
        ),
        row(
            "directory",
            process is not None and here is not None and here == facts.inode_in_root(process.pid, "srv"),
            "its working directory is the WorkingDir of the config, /srv",
            f"it is {_link(f'/proc/{pid}/cwd')}",
            f"ls -l /proc/{pid}/cwd",
        ),
        row(
            "environment",
            names == [f"SECRET={secret}"],
            "its environment is the Env of the config: SECRET, and nothing of yours, such as LAB_DIR",
            " ".join(names) or "neither SECRET nor LAB_DIR",
            f"tr '\\0' '\\n' </proc/{pid}/environ",
        ),
        row("user", uid == _WWW, f"it is the User of the config, {_WWW}", f"uid {uid}", f"grep Uid /proc/{pid}/status"),
    ]


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError as error:
        return error.strerror or str(error)


def reset(work: Work) -> None:
    """Remove the pod that uses the image, and the image of the lab's name."""
    name = work.variables["POD"]
    if name in work.state.names("pods"):
        work.nsrun("pod", "rm", "--force", name)
    try:
        work.nsrun("image", "rm", "--force", f"localhost/{name}:latest")
    except NsrunError as error:
        if "no image" not in error.message:
            work.troubles.append(error.message)


LAB = Lab(
    15,
    "layers",
    "From layers to a process",
    40,
    ("POD",),
    check,
    needs=(
        UTIL_LINUX, USER_NAMESPACES, scene.SUBORDINATE, scene.BUSYBOX, tool("newuidmap", "uidmap"), tool("jq", "jq"),
        tool("tar", "tar"),
    ),
    scene=make_scene,
    reset=reset,
)  # fmt: skip
