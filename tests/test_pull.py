# SPDX-License-Identifier: Apache-2.0
"""image pull, from a real registry on loopback: login, refusals, a missing tag, a connection cut in the middle."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest
from conftest import NSRUN, need, sh, wait_for
from images import Layout, digest, entry, tar
from test_explain import foretold
from test_image import SMALL, store, two_platforms

pytestmark = pytest.mark.live

PATH = f"{os.environ['PATH']}:{os.path.dirname(NSRUN)}"
CONFIG = """
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {root}/data}}}}
http: {{addr: "127.0.0.1:{port}"}}
{auth}
"""


class Registry:
    def __init__(self, path: pathlib.Path, login: str = "") -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.host, self.path, self.login = f"127.0.0.1:{self.port}", path, login
        auth = ""
        if login:
            user, _, password = login.partition(":")
            (path / "users").write_text(sh("htpasswd", "-Bbn", user, password).stdout)
            auth = f"auth: {{htpasswd: {{realm: test, path: {path}/users}}}}"
        (path / "config.yml").write_text(CONFIG.format(root=path, port=self.port, auth=auth))
        self.process = subprocess.Popen(
            [shutil.which("docker-registry", path=PATH) or "docker-registry", "serve", path / "config.yml"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"]},
        )
        wait_for(self.answers, what="the registry answers")

    def answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def push(self, layout: pathlib.Path, name: str, *options: str) -> None:
        creds = ["--dest-creds", self.login] if self.login else []
        sh("skopeo", "--insecure-policy", "copy", "-q", *options, "--dest-tls-verify=false", *creds, f"oci:{layout}", f"docker://{self.host}/{name}")  # fmt: skip


@pytest.fixture
def registry(host, tmp_path, request):
    for program in ("docker-registry", "skopeo", "htpasswd"):
        need(shutil.which(program, path=PATH), f"{program} is not installed", ".ci/deps test")
    (tmp_path / "registry").mkdir()
    registry = Registry(tmp_path / "registry", getattr(request, "param", ""))
    host.env.pop("REGISTRY_AUTH_FILE", None)
    host.env.update({"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)})
    yield registry
    registry.process.kill()
    registry.process.wait()


def test_pull(host, registry, tmp_path):
    layout = Layout(SMALL, tar(entry("b", b"2"))).write(tmp_path / "l")
    registry.push(layout, "mine/app:1")
    name = f"{registry.host}/mine/app:1"
    assert host.run("image", "pull", "--tls-verify=false", f"docker://{name}").stdout == f"{name}\n"
    image = host.json("image", "inspect", name)[0]
    assert [layer["diff_id"] for layer in image["layers"]] == [digest(SMALL), digest(tar(entry("b", b"2")))]
    by_digest = f"{registry.host}/mine/app@{image['digests'][0]}"
    assert host.json("image", "inspect", by_digest)[0]["id"] == image["id"]
    host.run("image", "rm", name)
    assert host.run("image", "pull", "--tls-verify=false", by_digest).stdout == f"{image['id']}\n"
    assert host.json("image", "inspect", by_digest)[0]["id"] == image["id"]
    assert list((store(host) / "tmp").iterdir()) == []


def test_a_pull_is_what_strace_shows(host, registry, tmp_path):
    registry.push(Layout(SMALL).write(tmp_path / "l"), "mine/app:1")
    name = f"{registry.host}/mine/app:1"
    for _ in range(2):  # the second time the layer is there
        foretold(host, tmp_path, "image", "pull", "--tls-verify=false", name, threads=False)
    assert f"skopeo copy -- docker://{name} oci:" in host.run("explain --format shell image pull {}", name).stdout


def test_present_layers_are_not_fetched_again(host, registry, tmp_path):
    """The second image shares a layer: the registry is not asked for its blob (its files are gone there)."""
    shared = tar(entry("base", os.urandom(100_000)))
    registry.push(Layout(shared, tar(entry("a"))).write(tmp_path / "a"), "mine/a:1")
    registry.push(Layout(shared, tar(entry("b", b"2"))).write(tmp_path / "b"), "mine/b:1")
    host.run("image", "pull", "--tls-verify=false", f"{registry.host}/mine/a:1")
    blobs = sorted((registry.path / "data").rglob("data"), key=lambda p: p.stat().st_size)
    blobs[-1].unlink()
    host.run("image", "pull", "--tls-verify=false", f"{registry.host}/mine/b:1")
    host.run("image", "unpack", f"{registry.host}/mine/b:1", tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out/rootfs")) == ["b", "base"]


def test_platform_of_an_index(host, registry, tmp_path):
    found = two_platforms(tmp_path / "l", False)
    layout = json.loads((tmp_path / "l/index.json").read_text())
    inner = json.dumps({**layout, "manifests": layout["manifests"][1:], "mediaType": "application/vnd.oci.image.index.v1+json"}).encode()  # fmt: skip
    (tmp_path / "l/blobs/sha256" / digest(inner)[7:]).write_bytes(inner)
    descriptor = {"mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest(inner), "size": len(inner)}
    (tmp_path / "l/index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [descriptor]}))
    registry.push(tmp_path / "l", "mine/multi:1", "--all")
    name = f"{registry.host}/mine/multi:1"
    for architecture in ("arm64", "amd64"):
        host.run("image", "pull", "--tls-verify=false", "--platform", f"linux/{architecture}", name)
        assert f"sha256:{host.json('image', 'inspect', name)[0]['id']}" == found[architecture]
    assert "s390x" in host.fails(125, "image", "pull", "--tls-verify=false", "--platform", "linux/s390x", name)


@pytest.mark.parametrize("registry", ["anna:se:cret"], indirect=True)
def test_login(host, registry, tmp_path):
    registry.push(Layout(SMALL).write(tmp_path / "l"), "mine/app:1")
    name, pull = f"{registry.host}/mine/app:1", ("image", "pull", "--tls-verify=false")
    assert "skopeo login" in host.fails(125, *pull, name)
    message = host.fails(125, *pull, "--creds", "anna:Xy9876", name)
    assert "Xy9876" not in message and "refuses this user or password" in message
    assert host.json("image", "ls") == []
    assert host.run(*pull, "--creds", "anna:se:cret", name).stdout == f"{name}\n"
    # an auth.json, as skopeo login and docker login write it
    auth = base64.b64encode(b"anna:se:cret").decode()
    (tmp_path / "auth.json").write_text(json.dumps({"auths": {registry.host: {"auth": auth}}}))
    host.run("image", "rm", name)
    host.run(*pull, "--authfile", tmp_path / "auth.json", name)
    assert "does not exist" in host.fails(125, *pull, "--authfile", tmp_path / "nothing", name)
    assert "needs a terminal" in host.fails(2, *pull, "--creds", "anna", name, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("registry", ["anna:secret"], indirect=True)
def test_the_password_is_on_no_command_line(host, registry, tmp_path):
    registry.push(Layout(tar(entry("x", os.urandom(20_000_000)))).write(tmp_path / "l"), "mine/app:1")
    seen: list[bytes] = []
    process = host.background("image", "pull", "--tls-verify=false", "--creds", "anna:secret", f"{registry.host}/mine/app:1", stdout=subprocess.DEVNULL)  # fmt: skip
    while process.poll() is None:
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                text = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if text.startswith(b"skopeo") and registry.host.encode() in text:  # not another test's
                seen.append(text)
    assert process.returncode == 0
    assert seen and not any(b"secret" in text for text in seen)


def test_what_is_missing(host, registry, tmp_path):
    registry.push(Layout(SMALL).write(tmp_path / "l"), "mine/app:1")
    pull = ("image", "pull", "--tls-verify=false")
    message = host.fails(125, *pull, f"{registry.host}/mine/app:2")
    assert "manifest unknown" in message and "skopeo list-tags" in message
    assert "unknown" in host.fails(125, *pull, f"{registry.host}/mine/nothing:1")
    assert "plain HTTP" in host.fails(125, "image", "pull", f"{registry.host}/mine/app:1")
    assert "no program listens" in host.fails(125, *pull, "127.0.0.1:1/mine/app:1")
    assert "unknown" in host.fails(125, *pull, f"{registry.host}/mine/app@sha256:{'0' * 64}")
    host.fails(2, *pull, "UPPER")
    host.fails(2, "image", "pull", "--tls-verify=maybe", "a")
    assert host.json("image", "ls") == []
    assert list((store(host) / "tmp").iterdir()) == []


def test_without_skopeo(host, tmp_path):
    (tmp_path / "bin").mkdir()
    message = host.fails(125, "image", "pull", "mysql:8", env={"PATH": str(tmp_path / "bin")})
    assert "skopeo" in message and "apt-get install skopeo" in message


class Cutter(threading.Thread):
    """Forwards to the registry, and breaks every connection after so many bytes."""

    def __init__(self, port: int, limit: int) -> None:
        super().__init__(daemon=True)
        self.limit, self.target = limit, port
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port, self.cut = self.socket.getsockname()[1], 0

    def run(self) -> None:
        while True:
            try:
                client, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", self.target))
        threading.Thread(target=self.copy, args=(client, server, 1 << 40), daemon=True).start()
        self.copy(server, client, self.limit)

    def copy(self, source: socket.socket, to: socket.socket, limit: int) -> None:
        try:
            while data := source.recv(65536):
                to.sendall(data[:limit])
                limit -= len(data)
                if limit <= 0:
                    self.cut += 1
                    break
        except OSError:
            pass
        for end in (source, to):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


def test_connection_cut_in_the_middle(host, registry, tmp_path):
    """Refused with a message, nothing is kept of it but what was whole; the next pull works."""
    registry.push(Layout(SMALL, tar(entry("x", os.urandom(5_000_000)))).write(tmp_path / "l"), "mine/app:1")
    cutter = Cutter(registry.port, 1_000_000)
    cutter.start()
    begun = time.monotonic()
    message = host.fails(125, "image", "pull", "--tls-verify=false", f"127.0.0.1:{cutter.port}/mine/app:1", timeout=60)
    assert cutter.cut and "connection broke" in message
    assert time.monotonic() - begun < 50
    assert host.json("image", "ls") == [] and list((store(host) / "tmp").iterdir()) == []
    cutter.limit = 1 << 40
    host.run("image", "pull", "--tls-verify=false", f"127.0.0.1:{cutter.port}/mine/app:1")
    cutter.socket.close()


def test_killed_pull_leaves_nothing(host, registry, tmp_path):
    registry.push(Layout(tar(entry("x", os.urandom(5_000_000)))).write(tmp_path / "l"), "mine/app:1")
    for wait in (0.1, 0.2, 0.3):
        process = host.background("image", "pull", "--tls-verify=false", f"{registry.host}/mine/app:1", start_new_session=True)  # fmt: skip
        time.sleep(wait)
        os.killpg(process.pid, 9)
        process.wait(timeout=30)
    host.run("image", "prune", "-a")
    assert list((store(host) / "tmp").iterdir()) == []


def pull_with(host, name: str, size: int, timeout: float = 60) -> str:
    """The error of a pull with such a budget, in a process of its own."""
    code = (
        "import sys\nfrom nsrun.errors import NsrunError\nfrom nsrun.image import intake\nfrom nsrun.image.budget import Budget\n"
        "from nsrun.state import State\n"
        "try: intake.pull(State(sys.argv[1]), sys.argv[2], tls=False, budget=Budget(size=int(sys.argv[3]), entries=1000))\n"
        "except NsrunError as error: print(error)"
    )
    return sh(sys.executable, "-I", "-c", code, host.root, name, size, timeout=timeout).stdout


def test_a_pull_has_a_budget(host, registry, tmp_path):
    registry.push(Layout(tar(entry("base", os.urandom(8 << 20)))).write(tmp_path / "a"), "mine/a:1")
    assert "larger than its budget" in pull_with(host, f"{registry.host}/mine/a:1", 4 << 20)
    assert list((store(host) / "tmp").iterdir()) == list((store(host) / "layers").iterdir()) == []
    assert pull_with(host, f"{registry.host}/mine/a:1", 9 << 20) == ""


class Endless(http.server.BaseHTTPRequestHandler):
    """A registry whose only layer does not end."""

    layout = Layout(tar(entry("f")))

    def do_GET(self) -> None:
        files = self.layout.files()
        manifest = json.dumps(self.layout.manifest).encode()
        kind, what = "application/octet-stream", b"{}"
        if "/manifests/" in self.path:
            kind, what = "application/vnd.oci.image.manifest.v1+json", manifest
        elif self.path.endswith(self.layout.manifest["config"]["digest"]):
            what = files[f"blobs/sha256/{self.layout.manifest['config']['digest'][7:]}"]
        elif "/blobs/" in self.path:
            self.send_response(200)
            self.end_headers()
            noise = os.urandom(1 << 20)  # skopeo would compress zeros
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(noise)
            return
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(what)))
        self.end_headers()
        self.wfile.write(what)

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


def test_a_registry_that_sends_for_ever(host):
    need(shutil.which("skopeo"), "skopeo is missing", "apt-get install skopeo")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endless)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        error = pull_with(host, f"127.0.0.1:{server.server_port}/mine/a:1", 64 << 20)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert "larger than its budget" in error, error
    assert list((store(host) / "tmp").iterdir()) == []
