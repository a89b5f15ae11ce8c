# SPDX-License-Identifier: Apache-2.0
"""Where the attacks take place: in a pod of root's, and in one of a user's that she enters without privilege."""

from __future__ import annotations

import os
import pathlib
import subprocess
from typing import Any

import pytest
from conftest import Host, sh


class Arena:
    """A pod "pause", whoever's, and a rootfs that the test may spoil."""

    def __init__(self, host: Host, rootfs: pathlib.Path, who: str) -> None:
        self.host: Any = host  # for a user, a UserHost
        self.rootfs, self.who = rootfs, who

    def join(
        self, *command: object, options: tuple[object, ...] = (), rootfs: object = None, **kwargs
    ) -> subprocess.CompletedProcess[str]:
        root = self.rootfs if rootfs is None else rootfs
        return self.host.run(
            "join", "pause", *options, "--rootfs", root, "--", *command, check=kwargs.pop("check", False), **kwargs
        )

    def own(self) -> None:
        """What the test has put into the rootfs gets the owner of the rest."""
        if self.who == "owned":
            sh("chown", "-hR", f"{self.host.uid}:{self.host.uid}", self.rootfs)

    def directory(self, name: str) -> pathlib.Path:
        """A directory on the host that the one who joins may write to."""
        path = (self.host.home if self.who == "owned" else self.host.root) / name
        path.mkdir()
        if self.who == "owned":
            os.chown(path, self.host.uid, self.host.uid)
        return path


@pytest.fixture(params=["root", "owned"])
def arena(request, host, busybox, alice):
    if request.param == "root":
        host.run("pod", "create", "--network", "none", "pause")
        home, user = host.root, host
    else:
        host.run("pod", "create", "--network", "none", "pause", env={"SUDO_UID": str(alice.uid)})
        home, user = alice.home, alice
    sh("cp", "-a", busybox, home / "rootfs")
    found = Arena(user, home / "rootfs", request.param)
    found.own()
    return found


C_PROGRAM = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>
#define TRY(name, call) do { errno = 0; long r_ = (call); printf("%s %d\n", name, r_ < 0 ? errno : 0); } while (0)
int main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "pause")) {
		char byte, *names[] = {"/proc/1/mem", "/proc/1/environ", "/proc/1/maps", "/proc/1/root/etc", "/proc/1/cwd/etc", "/proc/1/fd/3", "/proc/1/exe", "/proc/1/ns/mnt"};
		struct iovec here = {&byte, 1}, there = {(void *)0x400000, 1};
		long fd = syscall(SYS_pidfd_open, 1, 0);
		TRY("pidfd_open", fd);
		for (int i = 3; i < 12; i++)
			TRY("pidfd_getfd", syscall(438, fd, i, 0));
		for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
			TRY(names[i], open(names[i], O_RDONLY));
		TRY("process_vm_readv", syscall(SYS_process_vm_readv, 1, &here, 1, &there, 1, 0));
		TRY("ptrace", syscall(SYS_ptrace, 0x4206, 1, 0, 0));
		TRY("setns", syscall(SYS_setns, fd, 0x00020000));
		TRY("kill", syscall(SYS_kill, 1, 9));
	}
	if (argc > 2 && !strcmp(argv[1], "addkey")) { /* a key of the caller's session, then nsrun */
		syscall(SYS_keyctl, 1, 0, 0, 0, 0);
		if (syscall(SYS_add_key, "user", "nsrun-secret", "s", 1, -3) < 0)
			perror("add_key");
		execvp(argv[2], argv + 2);
	}
	if (argc > 1 && !strcmp(argv[1], "findkey"))
		TRY("findkey", syscall(SYS_keyctl, 10, -3, "user", "nsrun-secret", 0));
	if (argc > 1 && !strcmp(argv[1], "status")) {
		char text[4096];
		int fd = open("/proc/self/status", O_RDONLY);
		fwrite(text, 1, read(fd, text, sizeof text), stdout);
	}
	return 0;
}
"""


@pytest.fixture(scope="session")
def program(tmp_path_factory) -> pathlib.Path:
    """A small static attacker."""
    path = tmp_path_factory.mktemp("attack")
    for directory in [path, *path.parents][:4]:
        if directory.stat().st_uid == os.geteuid() and str(directory) != "/tmp":
            directory.chmod(0o755)
    (path / "a.c").write_text(C_PROGRAM)
    sh("cc", "-static", "-O1", "-o", path / "attack", path / "a.c", timeout=60)
    return path / "attack"
