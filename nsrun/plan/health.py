# SPDX-License-Identifier: Apache-2.0
"""The step that leaves nsrun-monitor what it needs to check a member's health (csrc/health.h)."""

from __future__ import annotations

import sys

from nsrun import kernel
from nsrun._protocol import CHECKS, PROBE_FILTER_FD, PROBE_MEMBER_FD
from nsrun.plan import InitStep, Part, Step
from nsrun.plan.process import sealed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from nsrun.plan import Context

#: The handles of a check's plan, and the descriptors that nsrun-health has for them.
NUMBERS = {"member:pidfd": PROBE_MEMBER_FD, "seccomp:fd": PROBE_FILTER_FD}


class PrepareConnects(Step):
    why = (
        "The monitor's child connects by itself, from the pod's network namespace: no program of the member is needed, and "
        "no member sees the process. A server that is slow holds up this process alone."
    )
    man = "memfd_create(2), setns(2), connect(2)"
    approx = "a shell has no monitor: nsenter --net=/proc/PID/ns/net wget -qO- URL, from a loop"
    address: str
    port: int
    request: bytes  # b"": it is enough to connect
    flags: int  # CLONE_NEW… of the namespaces of the member; of these, the check joins that of the network and of its users
    uid: int
    times: Mapping[str, int]  # in ms, and the number of retries

    def made(self) -> list[str | Part]:
        flags = kernel.flag_names(self.flags & (kernel.CLONE_NEWNET | kernel.CLONE_NEWUSER), kernel.CLONE_FLAGS)
        check: list[str | Part] = [
            *([f"setns(member:pidfd, {flags})"] if flags != "0" else []),
            f"socket({'AF_INET6' if ':' in self.address else 'AF_INET'}, SOCK_STREAM|SOCK_NONBLOCK|SOCK_CLOEXEC, 0)",
            f'connect(fd, "{self.address}", {self.port})',
        ]
        if self.request:
            check += [f"write(fd, {len(self.request)} bytes)", "read(fd, a line)"]
        due = f"a check is due, every {self.times['interval'] / 1000:g} s"
        return [*sealed("probe:fd", "probe"), Part([Part(check, by="nsrun-health")], when=due)]

    def brief(self) -> str:
        return 'memfd_create("probe", MFD_ALLOW_SEALING|MFD_NOEXEC_SEAL)   # where a health check connects to'

    def makes(self) -> tuple[str, ...]:
        return ("probe:fd",)

    def check(self) -> str:
        return "nsrun inspect MEMBER   # healthcheck"

    def do(self, run: Context) -> None:
        from _socket import AF_INET, AF_INET6, inet_pton

        family = AF_INET6 if ":" in self.address else AF_INET
        address = inet_pton(family, self.address)
        # struct sockaddr_in6, or sockaddr_in with zeros up to its size
        head = family.to_bytes(2, sys.byteorder) + self.port.to_bytes(2, "big")
        place = head + (bytes(4) if family == AF_INET6 else b"") + address
        run.hold("probe:fd", kernel.sealed_memfd("probe", place.ljust(28, b"\0") + self.request))
        run.monitor_options["checks"] = {"connect": 1, "join": self.flags, "owner": self.uid, **self.times}


class PrepareChecks(Step):
    why = (
        "The monitor starts each health check by itself, from this plan, as exec starts a command; so no Python stays. "
        "It kills a check that takes too long, with all that it has started."
    )
    man = "memfd_create(2), clone3(2), setns(2), cgroups(7)"
    approx = "a shell has no monitor: nsrun exec MEMBER COMMAND, from a loop"
    steps: tuple[InitStep, ...]
    flags: int  # CLONE_NEW… of the namespaces of the member that a check joins
    uid: int  # whom the pipe of its output belongs to
    times: Mapping[str, int]  # in ms, and the number of retries
    own_cgroup: bool = True

    def made(self) -> list[str | Part]:
        flags = kernel.flag_names(self.flags, kernel.CLONE_FLAGS)
        into = "|CLONE_INTO_CGROUP" if self.own_cgroup else ""
        inside = Part([call for step in self.steps for call in step.made()], by="nsrun-init")
        check: list[str | Part] = [
            *([f'mkdirat(cgroup:dir, "{CHECKS}", 0755)'] if self.own_cgroup else []),
            "clone3(CLONE_FILES|CLONE_VM|CLONE_VFORK)",
            f"setns(member:pidfd, {flags})",
            f"clone3(CLONE_VM|CLONE_VFORK|CLONE_PIDFD|CLONE_PARENT{into})",
            'execveat(init:fd, "", ["nsrun-init"], [], AT_EMPTY_PATH)',
            inside,
        ]
        due = f"a check is due, every {self.times['interval'] / 1000:g} s"
        return [*sealed("probe:fd", "probe"), Part([Part(check, by="nsrun-health")], when=due)]

    def brief(self) -> str:
        return 'memfd_create("probe", MFD_ALLOW_SEALING|MFD_NOEXEC_SEAL)   # the plan of a health check'

    def makes(self) -> tuple[str, ...]:
        return ("probe:fd",)

    def check(self) -> str:
        return "nsrun inspect MEMBER   # healthcheck"

    def do(self, run: Context) -> None:
        run.write_plan("probe:fd", "probe", self.steps, NUMBERS)
        run.monitor_options["checks"] = {"join": self.flags, "owner": self.uid, **self.times}
