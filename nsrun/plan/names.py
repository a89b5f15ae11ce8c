# SPDX-License-Identifier: Apache-2.0
"""Steps of a pod on a network with names: the file in which it and its members find the other pods (docs/decisions/0048)."""

from __future__ import annotations

import os

from nsrun import kernel
from nsrun.plan import COMMIT, HOST, Part, Step, sh_quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsrun.plan import Context

#: Where the file is in pause's root, and what it is called there: members have it as /etc/hosts.
DIRECTORY, FILE = "/names", "hosts"
TREE, HANDLE = "names:tree", "names:fd"
#: Room for the names of 1023 pods, as many as a bridge has ports, in both families.
SIZE = "512k"


class MakeNames(Step):
    phase = HOST
    why = (
        "The other pods of the network come and go, so this file changes while members have it. It is made here, and pause, or "
        "nsrun-hold, keeps it open: root writes to this descriptor and never to a path that a pod could lead elsewhere."
    )
    man = "fsmount(2), tmpfs(5), pidfd_getfd(2)"
    name: str

    def made(self) -> list[str | Part]:
        flags = "MOUNT_ATTR_NOSUID|MOUNT_ATTR_NODEV|MOUNT_ATTR_NOEXEC"
        return [
            'fs = fsopen("tmpfs", FSOPEN_CLOEXEC)',
            'fsconfig(fs, FSCONFIG_SET_STRING, "mode", "755")',
            f'fsconfig(fs, FSCONFIG_SET_STRING, "size", "{SIZE}")',
            "fsconfig(fs, FSCONFIG_CMD_CREATE)",
            f"{TREE} = fsmount(fs, FSMOUNT_CLOEXEC, {flags})",
            f'{HANDLE} = openat({TREE}, "{FILE}", O_RDWR|O_CREAT|O_EXCL, 0644)   /* whatever the umask */',
        ]

    def brief(self) -> str:
        return f"make the file of the names of {self.name}"

    def makes(self) -> tuple[str, ...]:
        return (TREE, HANDLE)

    def shell(self) -> str:
        path = sh_quote(self.path)
        return f"mkdir -p {path}; mount -t tmpfs -o nosuid,nodev,noexec,mode=755,size={SIZE} tmpfs {path}; : >{path}/{FILE}"

    approx = "a mount with a path, and a path is what is written to"

    @property
    def path(self) -> str:
        """The mount by hand, which has a path."""
        return f"/run/nsrun-shell/names-{self.name}"

    def check(self) -> str:
        return f"cat /proc/PID/root{DIRECTORY}/{FILE}"

    def do(self, run: Context) -> None:
        from nsrun.kernel import MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID

        options = [("mode", "755"), ("size", SIZE)]
        flags = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
        tree = run.hold(TREE, kernel.mount_new("tmpfs", options, flags))
        fd = run.hold(HANDLE, os.open(FILE, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=tree))
        os.fchmod(fd, 0o644)  # whatever the umask


class TellNames(Step):
    phase = COMMIT
    why = "Each pod of the network gets the names of all that live, this one too; what --add-host says of a name goes first."
    man = "pidfd_getfd(2), pwrite(2), hosts(5)"
    network: str
    ident: str
    name: str
    hosts: str  # what the pod's own file begins with

    def made(self) -> list[str | Part]:
        write = ["pwrite64(FD, names, 0)", "ftruncate(FD)"]
        borrow = ["holder = pidfd_open(HOLDER, 0)", "FD = pidfd_getfd(holder, …)"]
        other = Part([*borrow, *write], each=f"other living pod of network {self.network}")
        return ['flock("hosts.lock", LOCK_EX)', *(call.replace("FD", HANDLE) for call in write), other]

    def brief(self) -> str:
        return f"write the names of network {self.network}"

    def needs(self) -> tuple[str, ...]:
        return (HANDLE,)

    def shell(self) -> str:
        own = sh_quote(f"{MakeNames(self.name).path}/{FILE}")
        text = self.hosts.replace("{pod:ip6}", "$IP6").replace("{pod:ip}", "$IP").replace("{pod:gateway}", "$GATEWAY")
        line = "printf '%s\\t%s\\n'"
        rows = "--format '{{.Name}} {{.Address}} {{.Pid}}'"
        return "\n".join(
            [
                f"cat >{own} <<EOF\n{text}# pods of network {self.network}\nEOF",
                f"nsrun pod ls --filter network={self.network} {rows} | while read name ip pid; do",
                f' {line} "$ip" "$name" >>{own}; {line} "$IP" {self.name} >>/proc/$pid/root{DIRECTORY}/{FILE}',
                "done",
            ]
        )

    approx = "only of IPv4, and by a path; the next pod that nsrun makes there does not know of this one"

    def check(self) -> str:
        return "nsrun exec MEMBER cat /etc/hosts"

    def do(self, run: Context) -> None:
        from nsrun.state import names

        if untold := names.tell(run.state, self.network, {self.ident: run.fd(HANDLE)}):
            run.note = {**run.note, "untold": untold}

    def undo(self, run: Context) -> None:
        from nsrun.state import names

        names.tell(run.state, self.network, without=self.ident)
