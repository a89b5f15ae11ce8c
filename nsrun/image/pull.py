# SPDX-License-Identifier: Apache-2.0
"""Pull from a registry through skopeo, which is maintained and knows registries, TLS, auth.json, mirrors and proxies.

It writes an OCI layout below the store's tmp; from there on a pulled image is loaded like any other.  Layers that the
store has are not fetched again: skopeo finds files of their names and sizes (sparse ones) in the layout and skips them.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys

from nsrun.errors import BadInput, NsrunError, UsageError
from nsrun.image import documents
from nsrun.image.documents import Config, Manifest, Platform
from nsrun.image.references import Reference, familiar
from nsrun.image.store import Store, Workshop
from nsrun.schema import exists, is_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from nsrun.image.budget import Account

_HINTS = (
    ("manifest unknown", "the registry has no such tag: skopeo list-tags docker://{name} shows those there are"),
    ("name unknown", "the registry has no such repository"),
    ("unauthorized", "log in: skopeo login {host}, or --creds USER"),
    ("authentication required", "log in: skopeo login {host}, or --creds USER"),
    ("invalid username/password", "the registry refuses this user or password"),
    (
        "requested access to the resource is denied",
        "log in: skopeo login {host}, or --creds USER; or the name is wrong",
    ),
    ("http: server gave HTTP response", "the registry speaks plain HTTP: --tls-verify=false"),
    ("x509:", "the registry's certificate is not trusted: /etc/containers/certs.d, or --tls-verify=false"),
    ("no such host", "is the name right, and is there a network?"),
    ("connection refused", "no program listens there"),
    ("unexpected EOF", "the connection broke: try again; what was loaded before is kept"),
    ("connection reset", "the connection broke: try again"),
    ("no space left", "the disk that holds nsrun's images is full: nsrun image prune"),
)


def need_skopeo() -> None:
    if not shutil.which("skopeo"):
        raise NsrunError(
            "image pull needs skopeo, which is not installed",
            hint="apt-get install skopeo (or dnf, apk, pacman); or load an archive: nsrun image load FILE",
        )


@contextlib.contextmanager
def download(
    store: Store,
    reference: Reference,
    platform: Platform,
    creds: str | None,
    authfile: str | None,
    tls: bool,
    account: Account,
) -> Iterator[str]:
    """Yield a layout directory with the image, which is removed when the context ends.

    Raise NsrunError with the registry's message, and BadInput when it sends more than the budget.
    """
    with Workshop(store) as shop:
        layout = f"{shop.path}/layout"
        command = ["skopeo"]
        if platform.variant:
            command += ["--override-variant", platform.variant]
        command += ["--override-os", platform.os, "--override-arch", platform.architecture]
        access = []
        if not tls:
            access.append("--src-tls-verify=false")
        if creds is not None:
            authfile = _write_auth(f"{shop.path}/auth.json", reference.host, creds)
        if authfile:
            if not exists(authfile, "--authfile"):
                raise BadInput(f"--authfile {authfile!r} does not exist")
            access += ["--src-authfile", os.path.abspath(authfile)]
        source = f"docker://{reference if not (reference.tag and reference.digest) else _by_digest(reference)}"
        _reuse(store, layout, command, source, access)
        copy = [*command, "copy", *access, "--", source, f"oci:{layout}:image"]
        _run(copy, reference, bool(creds or authfile), layout, account)
        yield layout


def _by_digest(reference: Reference) -> str:
    """Return the reference with its digest only: skopeo takes a tag or a digest, and the digest is more precise."""
    return f"{reference.host}/{reference.path}@{reference.digest}"


def _write_auth(path: str, host: str, creds: str) -> str:
    """Write --creds as an auth.json that only its owner reads.

    Other users could see a password on skopeo's command line.
    """
    user, colon, password = creds.partition(":")
    if not user:
        raise UsageError(f"--creds {creds!r} is not USER[:PASSWORD]")
    if not colon:
        if not sys.stdin.isatty():
            raise UsageError(
                "--creds USER needs a terminal to ask for the password", hint="--creds USER:PASSWORD, or --authfile"
            )
        import getpass

        password = getpass.getpass(f"password of {user} at {host}: ")
    key = "https://index.docker.io/v1/" if host == "docker.io" else host
    auth = base64.b64encode(f"{user}:{password}".encode()).decode()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        json.dump({"auths": {key: {"auth": auth}}}, file)
    return path


def _reuse(store: Store, layout: str, command: list[str], source: str, access: list[str]) -> None:
    """Put sparse files in the place of layers that the store has.  That only saves time, so it fails silently."""
    options = [option.replace("--src-", "--") for option in access]
    inspect = [*command, "inspect", "--no-tags", *options]
    try:
        raw = subprocess.run([*inspect, "--raw", "--", source], capture_output=True, timeout=120, check=True).stdout
        if "manifests" in documents.parse(raw, "manifest"):
            return  # it is an index, of which skopeo chooses the manifest
        config_raw = subprocess.run(
            [*inspect, "--raw", "--config", "--", source], capture_output=True, timeout=120, check=True
        ).stdout
        manifest, config = Manifest(documents.parse(raw, "manifest"), "manifest"), Config(config_raw, "config")
    except (NsrunError, OSError, subprocess.SubprocessError):
        return
    if config.digest != manifest.config.digest or len(config.diff_ids) != len(manifest.layers):
        return
    blobs = f"{layout}/blobs/sha256"
    os.makedirs(blobs, 0o700)
    for layer, ident in zip(manifest.layers, config.chain, strict=True):
        if not is_directory(f"{store.layer_path(ident[7:])}/tree"):
            return  # the store lacks this layer, and so those above it, too
        with open(f"{blobs}/{layer.digest[7:]}", "wb") as file:
            file.truncate(layer.size)


def _run(command: list[str], reference: Reference, known: bool, layout: str, account: Account) -> None:
    """Run skopeo, whose progress goes to a terminal, and whose message becomes ours when it fails.

    `known` means that we gave a user.  What skopeo writes is measured twice a second, and charged, since a registry can
    send for ever.
    """
    stdout = sys.stderr if os.isatty(2) else subprocess.DEVNULL
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE) as skopeo:
        try:
            spent, error = 0, None
            while error is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    error = skopeo.communicate(timeout=0.5)[1].decode("utf-8", "replace")
                now = _on_disk(layout)
                account.spool(max(0, now - spent))
                spent = max(now, spent)
        except BaseException:
            skopeo.kill()
            raise
    if skopeo.returncode == 0:
        return
    lines = [line for line in error.strip().splitlines() if line]
    said = lines[-1] if lines else f"exit status {skopeo.returncode}"
    if 'msg="' in said:
        said = said.partition('msg="')[2].rstrip('"').replace('\\"', '"')
    hint = next((hint for text, hint in _HINTS if text.lower() in said.lower()), "")
    if known and hint.startswith("log in"):
        hint = "the registry refuses this user or password"
    hint = hint.format(name=f"{reference.host}/{reference.path}", host=reference.host)
    raise NsrunError(f"pulling {familiar(str(reference))} failed: {said}", hint=hint)


def _on_disk(layout: str) -> int:
    """Return the bytes of disk that the layout takes; the sparse files in place of layers that we have take none."""
    from nsrun.host.trees import walk

    total = 0
    with contextlib.suppress(OSError):  # it is being written
        for directory, name, _ in walk(layout):
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(name, dir_fd=directory, follow_symlinks=False).st_blocks * 512
    return total
