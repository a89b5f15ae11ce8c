# SPDX-License-Identifier: Apache-2.0
"""Containers as scopes of systemd (--systemd-cgroup): systemd makes the cgroup in its tree, and is told what it limits.

What systemd is asked for goes over D-Bus, by jeepney, which is imported only here.  A scope is made of a process that there is
already: so nsrun-init is launched first, and waits.  https://www.freedesktop.org/software/systemd/man/org.freedesktop.systemd1.html
"""

from __future__ import annotations

import os

from nsrun.errors import BadInput, NsrunError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    Properties = list[tuple[str, tuple[str, Any]]]

_BUS = "org.freedesktop.systemd1"
_PATH = "/org/freedesktop/systemd1"
_MANAGER = f"{_BUS}.Manager"
_GONE = f"{_BUS}.NoSuchUnit"
_SECONDS = 30.0
_UNLIMITED = (1 << 64) - 1


# ---- names: pure --------------------------------------------------------------------------------------------------


class Scope:
    """What linux.cgroupsPath means for systemd: the unit, its slice, and where its cgroup is below each hierarchy's root."""

    __slots__ = ("slice", "unit")

    def __init__(self, slice: str, unit: str) -> None:
        self.slice, self.unit = slice, unit

    def path(self) -> str:
        return "/".join([*slice_path(self.slice), self.unit])


def scope_of(text: str, ident: str, rootless: bool = False) -> Scope:
    """Return the scope of `slice:prefix:name`; what is left out is the default.  Raise BadInput."""
    if text.startswith("/") or (text and text.count(":") != 2):
        raise BadInput(f"linux.cgroupsPath: {text!r} is not slice:prefix:name, which --systemd-cgroup needs")
    slice, prefix, name = text.split(":") if text else ("", "nsrun", ident)
    slice = slice or ("user.slice" if rootless else "system.slice")
    slice_path(slice)
    if not name or "/" in prefix + name:
        raise BadInput(f"linux.cgroupsPath: {text!r} has no name, or a slash in it")
    unit = f"{prefix}-{name}.scope" if prefix else f"{name}.scope"
    if len(unit) > 255:
        raise BadInput(f"linux.cgroupsPath: {unit[:40]}… is too long for the name of a unit")
    return Scope(slice, unit)


def slice_path(name: str) -> list[str]:
    """Return the slices that a slice is in, and itself: a-b.slice is in a.slice.  Raise BadInput.  systemd.slice(5)."""
    bare = name.removesuffix(".slice")
    if bare == "-":
        return []  # the root of all
    parts = bare.split("-")
    if bare == name or "/" in name or not all(parts):
        raise BadInput(f"linux.cgroupsPath: {name!r} is not the name of a slice")
    return [f"{'-'.join(parts[: count + 1])}.slice" for count in range(len(parts))]


# ---- limits: pure -------------------------------------------------------------------------------------------------


def _processors(text: str) -> bytes:
    """Return a list as `0-2,7` as systemd has it: a bit for each number."""
    found = 0
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        for number in range(int(first), int(last if dash else first) + 1):
            found |= 1 << number
    return found.to_bytes((found.bit_length() + 7) // 8 or 1, "little")


def _amount(number: int) -> tuple[str, int]:
    return "t", _UNLIMITED if number < 0 else number


def limits(resources: Mapping[str, Any], unified: bool) -> Properties:
    """Return linux.resources as properties of a unit, as far as systemd has them; the rest is written to the cgroup alone.

    systemd writes its own values when it is reloaded, so it has to know those that are not its defaults.
    """
    memory, cpu = resources.get("memory") or {}, resources.get("cpu") or {}
    found: Properties = []
    if limit := memory.get("limit"):
        found.append(("MemoryMax" if unified else "MemoryLimit", _amount(limit)))
    if unified:
        if reservation := memory.get("reservation"):
            found.append(("MemoryLow", _amount(reservation)))
        if (swap := memory.get("swap")) and (swap < 0 or (limit and limit > 0)):
            found.append(("MemorySwapMax", _amount(swap if swap < 0 else swap - limit)))
    if shares := cpu.get("shares"):
        found.append(
            ("CPUWeight", ("t", 1 + (max(2, min(shares, 262144)) - 2) * 9999 // 262142))
            if unified
            else ("CPUShares", ("t", shares))
        )
    if quota := cpu.get("quota"):
        period = cpu.get("period") or 100000
        # systemd rounds to 10 ms: up, so that it never allows less than was asked for
        usec = _UNLIMITED if quota < 0 else -(-(quota * 1000000) // period // 10000) * 10000
        found.append(("CPUQuotaPerSecUSec", ("t", usec)))
        if cpu.get("period"):
            found.append(("CPUQuotaPeriodUSec", ("t", period)))
    for key, name in (("cpus", "AllowedCPUs"), ("mems", "AllowedMemoryNodes")):
        if unified and cpu.get(key):
            try:
                found.append((name, ("ay", _processors(cpu[key]))))
            except ValueError:
                raise BadInput(f"linux.resources.cpu.{key}: {cpu[key]!r} is no list of numbers") from None
    if (pids := (resources.get("pids") or {}).get("limit")) is not None and pids:
        found.append(("TasksMax", _amount(pids)))
    if weight := (resources.get("blockIO") or {}).get("weight"):
        found.append(
            ("IOWeight", ("t", 1 + (weight - 10) * 9999 // 990)) if unified else ("BlockIOWeight", ("t", weight))
        )
    return found


def properties(ident: str, scope: Scope, pid: int, resources: Mapping[str, Any], unified: bool) -> Properties:
    """Return what a scope is made with."""
    accounted = ("MemoryAccounting", "CPUAccounting", "TasksAccounting", "IOAccounting" if unified else "BlockIOAccounting")  # fmt: skip
    return [
        ("Description", ("s", f"container {ident}")),
        ("Slice", ("s", scope.slice)),
        ("Delegate", ("b", True)),
        ("DefaultDependencies", ("b", False)),
        ("PIDs", ("au", [pid])),
        *((name, ("b", True)) for name in accounted),
        *limits(resources, unified),
    ]


# ---- D-Bus --------------------------------------------------------------------------------------------------------


def check_here() -> None:
    """Raise UsageError when systemd does not run here, as sd_booted(3) tells, or there is nothing to speak to it with."""
    if not os.path.isdir("/run/systemd/system"):
        raise UsageError("--systemd-cgroup: systemd does not run here (there is no /run/systemd/system)")
    try:
        import jeepney  # noqa: F401
    except ImportError:
        raise UsageError(
            "--systemd-cgroup needs jeepney, a library for D-Bus: pip install jeepney, or apt-get install python3-jeepney"
        ) from None


class Manager:
    """A connection to the systemd of the machine, or of the user."""

    def __init__(self) -> None:
        from jeepney.io.blocking import open_dbus_connection

        user = bool(os.geteuid())
        default = f"unix:path={os.environ.get('XDG_RUNTIME_DIR') or '/nonexistent'}/bus"
        bus = os.environ.get("DBUS_SESSION_BUS_ADDRESS", default) if user else "SYSTEM"
        try:
            self._bus = open_dbus_connection(bus=bus, auth_timeout=_SECONDS)
        except (OSError, ValueError, RuntimeError, EOFError) as error:
            raise NsrunError(f"--systemd-cgroup: no answer from D-Bus: {error}") from None

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *_: object) -> None:
        self._bus.close()

    def _call(self, method: str, signature: str, body: Sequence[Any], to: str = "") -> Any:
        from jeepney import DBusAddress, MessageType, new_method_call

        address = DBusAddress(_PATH, bus_name=_BUS, interface=_MANAGER)
        if to:
            address = DBusAddress("/org/freedesktop/DBus", bus_name=to, interface=to)
        try:
            reply = self._bus.send_and_get_reply(new_method_call(address, method, signature, tuple(body)), timeout=_SECONDS)  # fmt: skip
        except (OSError, EOFError) as error:  # TimeoutError is one
            raise NsrunError(f"systemd: {method}: {error or 'no answer'}") from None
        if reply.header.message_type == MessageType.error:
            name = reply.header.fields.get(4, "")
            raise Refused(method, name, str(reply.body[0]) if reply.body else name)
        return reply.body

    def _job(self, method: str, signature: str, body: Sequence[Any]) -> None:
        """Ask for a job, and wait for its end.  Raise NsrunError when it is not done."""
        from collections import deque
        from time import monotonic

        from jeepney import MatchRule

        rule = MatchRule(type="signal", interface=_MANAGER, member="JobRemoved", path=_PATH)
        self._call("AddMatch", "s", [rule.serialise()], to="org.freedesktop.DBus")
        self._call("Subscribe", "", [])
        ended: deque[Any] = deque()
        deadline = monotonic() + _SECONDS
        with self._bus.filter(rule, queue=ended):
            (job,) = self._call(method, signature, body)
            while True:
                try:
                    message = self._bus.recv_until_filtered(ended, timeout=max(0.0, deadline - monotonic()))
                except (OSError, EOFError) as error:
                    raise NsrunError(f"systemd: {method} {body[0]}: {error or 'not done in time'}") from None
                _, path, _, result = message.body
                if path == job:
                    break
        if result != "done":
            raise NsrunError(f"systemd: {method} {body[0]}: {result}")

    def start(self, unit: str, properties: Properties) -> None:
        """Make a transient unit, and wait until it is there."""
        self._job("StartTransientUnit", "ssa(sv)a(sa(sv))", [unit, "fail", properties, []])

    def stop(self, unit: str) -> None:
        """Stop a unit, and wait until it has gone; one that is not there is stopped.  A failed one is removed."""
        try:
            self._job("StopUnit", "ss", [unit, "replace"])
        except Refused as error:
            if error.name != _GONE:
                raise
        try:
            self._call("ResetFailedUnit", "s", [unit])
        except Refused:
            pass  # it did not fail

    def change(self, unit: str, properties: Properties) -> None:
        self._call("SetUnitProperties", "sba(sv)", [unit, True, properties])


class Refused(NsrunError):
    """systemd has answered with an error, whose name on D-Bus is `name`."""

    def __init__(self, method: str, name: str, text: str) -> None:
        super().__init__(f"systemd: {method}: {text}")
        self.name = name
