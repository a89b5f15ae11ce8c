# SPDX-License-Identifier: Apache-2.0
"""A systemd that is none: org.freedesktop.systemd1 on a bus of its own, which makes scopes as systemd does, and keeps what it was asked."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import threading
from typing import Any

from conftest import need, wait_for

CONFIG = """<busconfig><type>session</type><listen>unix:path={0}</listen>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>
"""
PATH = "/org/freedesktop/systemd1"
MANAGER = "org.freedesktop.systemd1.Manager"


class Systemd:
    """`result`: of every job ("" for a job that never ends).  `hierarchies`: where it makes the cgroup of a scope."""

    def __init__(self, base: pathlib.Path, hierarchies: list[str]) -> None:
        need(shutil.which("dbus-daemon"), "dbus-daemon is missing", ".ci/deps test")
        self.socket = base / "bus"
        self.result = "done"
        self.asked: list[tuple[Any, ...]] = []
        self.units: dict[str, str] = {}  # the cgroup of each, below the root of a hierarchy
        self.hierarchies = hierarchies
        (base / "bus.conf").write_text(CONFIG.format(self.socket))
        self.bus = subprocess.Popen(["dbus-daemon", f"--config-file={base}/bus.conf", "--nofork", "--nopidfile"])
        wait_for(self.socket.exists)
        self.address = f"unix:path={self.socket}"
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        if not self._ready.wait(60):
            self.close()
            raise AssertionError("no answer from dbus-daemon")

    def _serve(self) -> None:
        from jeepney import HeaderFields, MessageType
        from jeepney.bus_messages import message_bus
        from jeepney.io.blocking import Proxy, open_dbus_connection

        self._bus = open_dbus_connection(bus=self.address, auth_timeout=60)
        Proxy(message_bus, self._bus).RequestName("org.freedesktop.systemd1")
        self._ready.set()
        while True:
            try:
                message = self._bus.receive()
            except Exception:
                return  # the bus has ended
            if message.header.message_type == MessageType.method_call:
                self._answer(message, message.header.fields[HeaderFields.member])

    def _answer(self, message: Any, method: str) -> None:
        from jeepney import DBusAddress, new_error, new_method_return, new_signal

        self.asked.append((method, *message.body))
        try:
            job = getattr(self, f"_{method}")(*message.body)
        except LookupError as error:
            self._bus.send(new_error(message, f"org.freedesktop.systemd1.{error.args[0]}", "s", (error.args[1],)))
            return
        if not job:
            self._bus.send(new_method_return(message))
            return
        self._bus.send(new_method_return(message, "o", (f"{PATH}/job/2",)))
        emitter = DBusAddress(PATH, interface=MANAGER)
        for number in (1, 2) if self.result else (1,):  # the first is a job of somebody else's
            said = (number, f"{PATH}/job/{number}", message.body[0], self.result or "done")
            self._bus.send(new_signal(emitter, "JobRemoved", "uoss", said))

    def _Subscribe(self) -> bool:
        return False

    def _StartTransientUnit(self, unit: str, mode: str, properties: list[Any], auxiliary: list[Any]) -> bool:
        assert mode == "fail" and not auxiliary
        if unit in self.units:
            raise LookupError("UnitExists", f"Unit {unit} was already loaded or has a fragment file.")
        known = {name: value for name, (_, value) in properties}
        parts = known["Slice"].removesuffix(".slice").split("-")
        above = "/".join(f"{'-'.join(parts[: n + 1])}.slice" for n in range(len(parts)))
        if self.result == "done":
            self.units[unit] = f"{above}/{unit}"
            for top in self.hierarchies:
                os.makedirs(f"{top}/{self.units[unit]}", exist_ok=True)
                for pid in known["PIDs"]:
                    pathlib.Path(f"{top}/{self.units[unit]}/cgroup.procs").write_text(str(pid))
        return True

    def _StopUnit(self, unit: str, mode: str) -> bool:
        if unit not in self.units:
            raise LookupError("NoSuchUnit", f"Unit {unit} not loaded.")
        for top in self.hierarchies:
            place = f"{top}/{self.units[unit]}"
            if os.path.isdir(place):
                os.rmdir(place)
        del self.units[unit]
        return True

    def _ResetFailedUnit(self, unit: str) -> bool:
        raise LookupError("NoSuchUnit", f"Unit {unit} not loaded.")

    def _SetUnitProperties(self, unit: str, runtime: bool, properties: list[Any]) -> bool:
        assert runtime and unit in self.units
        return False

    def calls(self, method: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self.asked if call[0] == method]

    def close(self) -> None:
        self.bus.terminate()
        self.bus.wait(timeout=10)
        self._thread.join(timeout=10)
