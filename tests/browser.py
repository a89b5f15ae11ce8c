# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium, spoken to over a pipe by the DevTools protocol: no driver and no library."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from typing import Any

import pytest

#: It asks nobody outside, and keeps nothing.
_OPTIONS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync --no-proxy-server --remote-debugging-pipe"  # fmt: skip


class Browser:
    """One page of 1280 × 720 pixels; `scheme` is what the reader prefers, light or dark."""

    def __init__(self, directory: os.PathLike[str], scheme: str = "light") -> None:
        program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        if not program:  # in CI, too: it is half a gigabyte, which nothing else here needs
            pytest.skip("no Chromium is installed; to enable: apt-get install chromium")
        theirs, self.out = os.pipe()
        self.into, ours = os.pipe()
        # bash, because dash redirects no descriptor above 9; the browser wants 3 and 4
        line = f'exec "$@" 3<&{theirs} 4>&{ours}'
        words = ["bash", "-c", line, "bash", str(program), *_OPTIONS.split(), f"--user-data-dir={directory}/profile"]
        self.process = subprocess.Popen(
            words, pass_fds=(theirs, ours), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        os.close(theirs)
        os.close(ours)
        self.number, self.session, self.data = 0, "", b""
        #: What the browser told without being asked: "Network.enable" and the like let it.
        self.events: list[dict[str, Any]] = []
        try:
            self._open(scheme)
        except BaseException:
            self.close()
            raise

    def _open(self, scheme: str) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Emulation.setDeviceMetricsOverride", width=1280, height=720, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to one command; what happened meanwhile is in `events`."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + 60
        while True:
            while b"\0" not in self.data:
                assert select.select([self.into], [], [], max(0, end - time.monotonic()))[0], f"no answer to {method}"
                piece = os.read(self.into, 1 << 20)
                assert piece, f"the browser has ended before {method} was answered"
                self.data += piece
            one, _, self.data = self.data.partition(b"\0")
            answer = json.loads(one)
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def go(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        end = time.monotonic() + 30
        while self.evaluate("document.readyState") != "complete" or self.evaluate("location.href") == "about:blank":
            assert time.monotonic() < end, f"{url} was not loaded"
            time.sleep(0.02)

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self) -> bytes:
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def close(self) -> None:
        for fd in (self.out, self.into):
            os.close(fd)
        try:
            self.process.wait(timeout=10)  # it ends with its pipe
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, 9)
            self.process.wait(timeout=20)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
