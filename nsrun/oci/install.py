# SPDX-License-Identifier: Apache-2.0
"""`nsrun-oci install ENGINE`: tell an engine of this machine that there is a runtime "nsrun", and take that away again.

Each engine has its own way: podman reads files beside containers.conf, containerd files that its config.toml imports, and docker one
daemon.json, in which all else stays as it is.  What others have written is neither replaced nor removed.
"""

from __future__ import annotations

import os

from nsrun.errors import BadInput, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NAME = "nsrun"
_MARK = "# written by nsrun-oci install, and removed by nsrun-oci install --remove\n"

_PODMAN = """{mark}[engine.runtimes]
nsrun = [{program}]
"""
_CONTAINERD = """{mark}version = 2
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nsrun]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nsrun.options]
BinaryName = {program}
"""
_IMPORTS = """{mark}version = 2
imports = [{imports}]
"""
_CRI = "io.containerd.grpc.v1.cri"


def program() -> str:
    """Return the path of nsrun-oci as engines are to call it.  Raise BadInput when it is not installed."""
    import sys

    for path in (os.path.join(os.path.dirname(sys.executable), "nsrun-oci"), "/usr/bin/nsrun-oci"):
        if os.access(path, os.X_OK):
            return path
    raise BadInput("nsrun-oci is not where it was installed: make install")


def install(engine: str, etc: str, path: str, remove: bool) -> list[str]:
    """Write, or remove, what an engine has to read; return what to do next, a line each.  Raise UsageError, BadInput or OSError."""
    if engine not in ENGINES:
        raise UsageError(f"install: {engine!r} is none of {', '.join(ENGINES)}")
    return ENGINES[engine](etc, path, remove)


def _podman(etc: str, path: str, remove: bool) -> list[str]:
    file = f"{etc}/containers/containers.conf.d/nsrun-oci.conf"
    _own(file, "" if remove else _PODMAN.format(mark=_MARK, program=_quoted(path)))
    return [] if remove else ["podman --runtime nsrun run …"]


def _containerd(etc: str, path: str, remove: bool) -> list[str]:
    main, file = f"{etc}/containerd/config.toml", f"{etc}/containerd/conf.d/nsrun-oci.toml"
    imports = f"{etc}/containerd/conf.d/*.toml"
    text = _CONTAINERD.format(mark=_MARK, program=_quoted(path))
    if not remove:
        _check_main(main, imports, text)
    _own(file, "" if remove else text)
    if not os.path.exists(main) or _is_ours(main):
        _own(main, "" if remove else _IMPORTS.format(mark=_MARK, imports=_quoted(imports)))
    return ["systemctl restart containerd"] if remove else ["systemctl restart containerd", "ctr run --runc-binary, or a RuntimeClass with handler: nsrun (docs/engines.md)"]  # fmt: skip


def _check_main(path: str, imports: str, text: str) -> None:
    """Raise BadInput when containerd would not read our file, or would lose something of its own by it."""
    import tomllib

    try:
        with open(path, "rb") as file:
            document = tomllib.load(file)
    except FileNotFoundError:
        return
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not TOML: {error}") from None
    lines = text.removeprefix(_MARK).partition("\n")[2].rstrip()
    if _CRI in (document.get("plugins") or {}):
        # containerd takes the section of a plugin whole from the last file that has it
        raise BadInput(f"{path} has a section of its own for {_CRI}, which another file would replace", hint=f"add to it:\n{lines}")  # fmt: skip
    if imports not in (document.get("imports") or []):
        raise BadInput(
            f"{path} does not import {imports}", hint=f'add to it, above all tables: imports = ["{imports}"]'
        )


def _docker(etc: str, path: str, remove: bool) -> list[str]:
    import json

    file = os.path.realpath(f"{etc}/docker/daemon.json")
    try:
        with open(file, "rb") as stream:
            document: Any = json.load(stream)
    except FileNotFoundError:
        document = {}
    except ValueError as error:
        raise BadInput(f"{file} is not JSON: {error}") from None
    runtimes = document.get("runtimes", {}) if isinstance(document, dict) else None
    if not isinstance(runtimes, dict):
        raise BadInput(f"{file} is not what docker reads: an object, with an object of runtimes")
    known = runtimes.get(NAME)
    if known is not None and (not isinstance(known, dict) or os.path.basename(str(known.get("path"))) != "nsrun-oci"):
        raise BadInput(f"{file} has a runtime {NAME!r} that is not nsrun-oci")
    if remove:
        runtimes = {name: one for name, one in runtimes.items() if name != NAME}
    else:
        runtimes = {**runtimes, NAME: {**(known or {}), "path": path}}
    rest = {key: value for key, value in document.items() if key != "runtimes" or runtimes}
    document = {**rest, **({"runtimes": runtimes} if runtimes else {})}
    if document:
        _write(file, json.dumps(document, indent=4) + "\n")
    elif os.path.exists(file):
        os.unlink(file)
    return ["systemctl reload docker", *([] if remove else ["docker run --runtime nsrun …"])]


ENGINES = {"podman": _podman, "containerd": _containerd, "docker": _docker}


def _quoted(text: str) -> str:
    """Return a path as TOML has it.  Raise BadInput for one that can't be written so."""
    if not text.isprintable():
        raise BadInput(f"{text!r} can't be named in a file of configuration")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _is_ours(path: str) -> bool:
    try:
        with open(path, errors="surrogateescape") as file:
            return file.read(len(_MARK)) == _MARK
    except FileNotFoundError:
        return False


def _own(path: str, text: str) -> None:
    """Write a file that is ours alone, or with no text remove it.  Raise BadInput when somebody else has written it."""
    there = os.path.lexists(path)
    if there and not _is_ours(path):
        if text:
            raise BadInput(f"{path} is there, and nsrun-oci has not written it")
        return
    if text:
        _write(path, text)
    elif there:
        os.unlink(path)


def _write(path: str, text: str) -> None:
    """Write a file whole, or not at all, with the mode that it has."""
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    temporary = f"{path}.nsrun-{os.getpid()}"
    try:
        mode = os.stat(path).st_mode & 0o7777
    except FileNotFoundError:
        mode = 0o644
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
