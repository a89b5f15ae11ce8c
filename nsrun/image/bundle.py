# SPDX-License-Identifier: Apache-2.0
"""Write an image as a directory, DIR/rootfs and DIR/config.json: an OCI bundle that nsrun, crun and runc can run.

OCI image-spec conversion.md says how an image's config becomes a runtime config.
"""

from __future__ import annotations

import json
import os

from nsrun.errors import BadInput
from nsrun.image import lookup
from nsrun.image.store import Store
from nsrun.image.unpack import View
from nsrun.schema import is_directory, is_there
from nsrun.spec.member import member_spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nsrun.state import State


def runtime_config(document: dict[str, Any], accounts: dict[str, str]) -> dict[str, Any]:
    """Return the runtime config of an image's config.

    Raise BadInput for a user that the image does not have.  Pure.
    """
    image = document.get("config") or {}
    pod = {"name": "image", "hostname": "image", "pause": [0]}
    facts: Any = {
        "name": "image",
        "id": "image",
        "pod": pod,
        "root": "rootfs",
        "image": {"Entrypoint": [], **image},
        **accounts,
    }
    options: Any = {"net": "own", "ipc": "own", "pid": "own", "uts": "own", "command": [] if image.get("Entrypoint") or image.get("Cmd") else ["sh"]}  # fmt: skip
    config: Any = member_spec(options, facts)
    config["process"]["env"] = [entry for entry in config["process"]["env"] if not entry.startswith("HOSTNAME=")]
    config["mounts"] = [m for m in config["mounts"] if m["type"] not in ("pod", "volume")]
    config["mounts"] = [{**m, "type": "cgroup"} if m["type"] == "cgroup2" else m for m in config["mounts"]]
    del config["linux"]["cgroupsPath"], config["linux"]["resources"]
    # copy only org.opencontainers.image.* labels: runtimes act on other annotations (run.oci.hooks.stdout=FILE)
    known = "org.opencontainers.image."
    annotations = {k: v for k, v in (image.get("Labels") or {}).items() if k.startswith(known)}
    for key in ("os", "architecture", "variant", "author", "created"):
        if document.get(key):
            annotations[f"org.opencontainers.image.{key}"] = document[key]
    if image.get("StopSignal"):
        annotations["org.opencontainers.image.stopSignal"] = image["StopSignal"]
    if image.get("ExposedPorts"):
        annotations["org.opencontainers.image.exposedPorts"] = ",".join(sorted(image["ExposedPorts"]))
    config["annotations"] = annotations
    found: dict[str, Any] = config
    return found


def _is_there(target: str) -> bool:
    """Return whether the directory exists.  Raise BadInput when it can't be used.

    Its mode is the choice of whoever made it, so we refuse it rather than change it.
    """
    if not is_there(target):
        return False
    if not is_directory(target) or os.listdir(target):
        raise BadInput(f"{target!r} exists already, and is not an empty directory", hint="choose a new one")
    st = os.stat(target)
    if st.st_uid != os.geteuid() or st.st_mode & 0o077:
        raise BadInput(
            f"{target!r} is open to other users, who could run the image's set-user-ID programs",
            hint=f"chmod 700 {target}, or name a directory that does not exist: it is made with that mode",
        )
    return True


def check_target(target: str) -> bool:
    """Return whether the directory is there already.  Raise BadInput when no bundle can be written to it."""
    if not target:
        raise BadInput("the name of the directory is empty", hint="is a shell variable unset?")
    return _is_there(target)


def unpack(state: State, word: str, target: str) -> None:
    """Write DIR/rootfs and DIR/config.json of an image.

    DIR gets mode 0700, since an image has set-user-ID programs of root, and its own root directory is open to
    everybody.  Raise BadInput when DIR exists and is not empty, or when others than the caller own it or may enter it.
    """
    from nsrun.host.copy import copy_tree
    from nsrun.state import remove_tree

    check_target(target)
    held = lookup.share_store(state)
    try:
        record = lookup.find(state, word)
        if "error" in record["users"]:
            accounts = {"passwd": "", "group": ""}
        else:
            accounts = {key: record["users"][key] for key in ("passwd", "group")}
        config = runtime_config(Store(state).config(record["id"]).document, accounts)
        was_there = _is_there(target)
        try:
            if not was_there:
                os.makedirs(os.path.dirname(os.path.abspath(target)), exist_ok=True)
                os.mkdir(target, 0o700)
            os.mkdir(f"{target}/rootfs", 0o755)
            with View(lookup.trees(state, record)) as view:
                if view.fd >= 0:
                    copy_tree(view.fd, f"{target}/rootfs")
            with open(f"{target}/config.json", "x", encoding="utf-8") as file:
                json.dump(config, file, indent=2)
        except BaseException:
            remove_tree(f"{target}/rootfs")
            if not was_there:
                remove_tree(target)
            raise
    finally:
        if held >= 0:
            os.close(held)
