# SPDX-License-Identifier: Apache-2.0
"""Steps that take what others can see, and give it back: a name, a note, a cgroup."""

from __future__ import annotations

import os
from errno import (
    EACCES,
    EBUSY,
    ENODEV,
    ENOSPC,
    EROFS,
)

from nsrun import kernel
from nsrun.errors import BadInput
from nsrun.plan import COMMIT, HOST, Part, Step, sh_quote
from nsrun.state import LISTED, SPACE, life

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from nsrun.plan import Compiling, Context, Replayed


class ClaimName(Step):
    why = "One rename(2) takes the name, so only one of two that try at the same time gets it. A record lock beside the note proves that the maker lives."
    man = "rename(2), fcntl(2) F_SETLK"
    kind: str
    name: str
    note: Mapping[str, Any]
    hints = {
        ENOSPC: "the disk that holds nsrun's state is full",
        EACCES: "needs root; root of a user namespace needs a state directory of its own, too: --root DIR",
    }

    def made(self) -> list[str | Part]:
        beside = ("config.json", "options.json") if self.kind == "members" else ()
        return [
            Part(["mkdir(DIRECTORY, 0700)"], each="DIRECTORY of nsrun's state that is missing"),
            'mkdir("tmp/CLAIM", 0700)',
            "fcntl(lock:held, F_SETLK, F_RDLCK)",
            'rename("tmp/CLAIM/note.tmp", "tmp/CLAIM/note")',
            *(f'rename("tmp/CLAIM/{name}.tmp", "tmp/CLAIM/{name}")' for name in beside),
            f'rename("tmp/CLAIM", "{self.kind}/{self.name}")',
        ]

    def brief(self) -> str:
        return f'rename("tmp/CLAIM", "{self.kind}/{self.name}")'

    def makes(self) -> tuple[str, ...]:
        return ("lock:held",)

    def shell(self) -> str:
        return f"mkdir -p {sh_quote('/run/nsrun-shell/' + self.kind)} && mkdir {sh_quote(f'/run/nsrun-shell/{self.kind}/{self.name}')}"

    approx = "a directory of its own, so that nsrun does not take it for a note"

    def check(self) -> str:
        return "nsrun ls -a; nsrun pod ls"

    def replayed(self, compiler: Compiling) -> list[Replayed] | None:
        new, target = f"{compiler.state.run}/tmp/{self.note['id']}", compiler.state.path(self.kind, self.name)
        notes = {"note": self.note, **compiler.files}
        found: list[Replayed] = [
            ("absent", target),
            ("claim", new, compiler.make("lock:held"), 1),
            *(("note", f"{new}/{file}", compiler.template(note)) for file, note in notes.items()),
        ]
        if self.kind == "pods":
            return [*found, ("file", f"{new}/{LISTED}", b""), ("rename", new, target)]
        listed = compiler.state.path("pods", self.note["pod"], f"m-{self.name}")
        return [*found, ("file", f"{new}/exit.tmp", SPACE), ("rename", new, target), ("file", listed, b"")]

    def do(self, run: Context) -> None:
        def give_way(kind: str, name: str) -> None:
            from nsrun.state.sweep import Sweeper

            Sweeper(run.state).give_way(kind, name)

        run.directory, held = run.state.claim(self.kind, self.name, self.note, run.files, give_way)
        run.hold("lock:held", held)

    def undo(self, run: Context) -> None:
        if run.directory:  # else somebody else has the name
            from nsrun.state.sweep import give_back

            give_back(run.state, self.kind, self.name, self.note["id"])


_READ_ONLY = "the cgroup tree is read-only here; NSRUN_CGROUP=none makes pods that go without cgroups"


_NONE = "# there are no cgroups here"


def _make(path: str, limits: dict[str, str]) -> list[str | Part]:
    """What nsrun.host.cgroup.make() does."""
    from nsrun.host.cgroup import LIMITS

    if not path:
        return [_NONE]
    controllers = " ".join(f"+{LIMITS[key][0]}" for key in limits)
    offer = [f'write("cgroup.subtree_control", "{controllers}")'] if limits else []
    return [
        Part([*offer, "mkdirat(parent, PART, 0755)"], when="it is missing", each=f"PART of {path}"),
        *(f'write("{LIMITS[key][1]}", "{value}")' for key, value in limits.items()),
    ]


def _way(compiler: Compiling, path: str, wanted: Sequence[str]) -> list[Replayed] | None:
    """What the front does to make the cgroup of a pod, or one in it, and what is missing above it.  None: it can't.

    Each of those above offers the `wanted` controllers to what is below.  The handle of each is its path.
    """
    from nsrun.host import cgroup

    where = cgroup.below_mount(path)
    if where is None:
        return None
    here, names, others = where
    found: list[Replayed] = []
    shared = cgroup.base().count("/") + 1  # of the names, those that all pods have in common
    if compiler.fd(here) < 0:
        found += [("absent", other) for other in others]
        found.append(("cgroup", here, os.stat(here).st_ino, compiler.make(here)))
    for number, name in enumerate(names):
        above, here = compiler.fd(here), f"{here}/{name}"
        if wanted:
            found.append(("offer", above, [f"+{controller}" for controller in wanted]))
        if compiler.fd(here) < 0:
            found.append(("new_cgroup", above, name, compiler.make(here), int(number < shared)))
    return found


class MakeCgroup(Step):
    phase = HOST
    why = "In a cgroup of its own it is killed as a whole, and stopping it touches nobody else (moby#50523)."
    man = "cgroups(7)"
    path: str
    limits: dict[str, str]
    whole: str = ""  # of a pod: the directory above, which goes with it
    pod: int | None = None  # of a member: the inode number of the pod's, from its note (0: unknown)
    hints = {
        EBUSY: "processes lie in a parent cgroup: controllers can't be enabled there",
        EACCES: _READ_ONLY,
        EROFS: _READ_ONLY,
        ENODEV: "another file system lies where cgroup v2 has to be mounted: nsrun doctor",
    }

    def made(self) -> list[str | Part]:
        return _make(self.path, self.limits)

    def brief(self) -> str:
        return f"make the cgroup {self.path}" if self.path else "no cgroup"

    def makes(self) -> tuple[str, ...]:
        return ("cgroup:dir", "cgroup:parent") if self.path else ()

    def shell(self) -> str:
        if not self.path:
            return "CGROUP=   # there are none here"
        lines = [f'CGROUP={sh_quote(self.path + ".shell")}; mkdir -p "$CGROUP"']
        lines += [
            f'echo {sh_quote(v)} >"$CGROUP/{ {"memory": "memory.max", "cpus": "cpu.max", "pids": "pids.max", "cpuset": "cpuset.cpus"}[k] }"'
            for k, v in self.limits.items()
        ]
        return "\n".join(lines)

    def check(self) -> str:
        return f"cat {self.path}/cgroup.procs"

    def replayed(self, compiler: Compiling) -> list[Replayed] | None:
        if self.whole and not self.limits:
            return self._of_pod(compiler)
        if not self.path or self.limits or self.pod is None:
            return None
        above, _, name = self.path.rpartition("/")
        inode, parent = compiler.inode("cgroup:parent"), compiler.make("cgroup:parent")
        return [("cgroup", above, inode, parent), ("new_cgroup", parent, name, compiler.make("cgroup:dir"), 0)]

    def _of_pod(self, compiler: Compiling) -> list[Replayed] | None:
        """The cgroup of the pod, that of pause in it, and what is offered to those of its members."""
        found = _way(compiler, self.path, ())
        if found is None:
            return None
        compiler.name("cgroup:dir", self.path)
        offered = str(compiler.values["cgroup:offered"]).split()
        return found + (_way(compiler, self.path, offered) or []) if offered else found

    def do(self, run: Context) -> None:
        from nsrun.host import cgroup

        directory = cgroup.make(self.path, self.limits, self.pod)
        if self.whole:
            run.values["cgroup:offered"] = " ".join(cgroup.offer(self.whole, run.state.seen_text))
        if directory >= 0:
            run.hold("cgroup:dir", directory)
            above = os.open("..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
            run.hold("cgroup:parent", above)
            run.values["cgroup:name"] = os.path.basename(self.path)
            run.values["cgroup:id"] = os.fstat(directory).st_ino
            run.values["cgroup:pod_id"] = os.fstat(above).st_ino

    def undo(self, run: Context) -> None:
        from nsrun.host import cgroup

        if self.whole:  # its name holds the pod's id: nobody else's
            cgroup.remove(self.whole, int(run.values.get("cgroup:pod_id", 0)), kill=True)
        elif "cgroup:id" in run.values:
            # and the pod's, if what removed the pod met it in there
            cgroup.remove_member(self.path, int(run.values["cgroup:id"]))
        cgroup.remove_empty(run.state.uid)


class OpenCgroup(Step):
    phase = HOST
    why = "A process that is started in a member belongs to the cgroup of the member, and ends with it."
    man = "cgroups(7)"
    path: str
    ident: int = 0  # its inode number, from the note (0: unknown)

    def made(self) -> list[str | Part]:
        return [f'cgroup:dir = open("{self.path}", O_DIRECTORY)'] if self.path else [_NONE]

    def makes(self) -> tuple[str, ...]:
        return ("cgroup:dir",) if self.path else ()

    def shell(self) -> str:
        return f"CGROUP={sh_quote(self.path)}"

    def check(self) -> str:
        return f"cat {self.path}/cgroup.procs"

    def replayed(self, compiler: Compiling) -> list[Replayed]:
        if not self.path:
            return []
        return [("cgroup", self.path, compiler.inode("cgroup:dir"), compiler.make("cgroup:dir"))]

    def do(self, run: Context) -> None:
        if self.path:
            from nsrun.host import cgroup

            run.hold("cgroup:dir", cgroup.open_pod(self.path, self.ident))


class LimitPod(Step):
    """Limits of the whole pod: on the directory above pause's and the members'."""

    phase = HOST
    why = "The limits of the pod hold for all its members together."
    man = "cgroups(7)"
    path: str
    limits: dict[str, str]
    hints = MakeCgroup.hints

    def made(self) -> list[str | Part]:
        return _make(self.path, self.limits)

    def brief(self) -> str:
        return f"limit the cgroup {self.path}"

    def check(self) -> str:
        return f"cat {self.path}/*.max"

    def replayed(self, compiler: Compiling) -> list[Replayed] | None:
        from nsrun.host.cgroup import LIMITS

        found = _way(compiler, self.path, sorted({LIMITS[key][0] for key in self.limits}))
        if found is None:
            return None
        files = [(LIMITS[key][1], value) for key, value in self.limits.items()]
        if "memory" in self.limits and os.path.exists(f"{self.path}/memory.swap.max"):
            files.append(("memory.swap.max", "0"))
        return [*found, *(("file", f"{self.path}/{name}", value.encode()) for name, value in files)]

    def do(self, run: Context) -> None:
        from nsrun.host import cgroup

        fd = cgroup.make(self.path, self.limits)
        if fd >= 0:
            os.close(fd)

    def undo(self, run: Context) -> None:
        from nsrun.host import cgroup

        cgroup.remove(self.path)


class WriteNote(Step):
    phase = COMMIT
    why = "From here on nsrun ls knows it. The note names a process for people; whether it lives is proved by a lock on the file `held`."
    man = "rename(2)"
    kind: str
    name: str
    note: Mapping[str, Any]
    hints = {ENOSPC: "the disk that holds nsrun's state is full"}

    def made(self) -> list[str | Part]:
        found: list[str | Part] = []
        if self.kind == "members":
            found.append(
                Part(
                    ['rename("upper/ID/committed.tmp", "upper/ID/committed")'],
                    when="it writes to a directory of its own",
                )
            )
        found.append(f'rename("{self.kind}/{self.name}/note.tmp", "{self.kind}/{self.name}/note")')
        if self.kind == "pods" and self.note.get("user"):
            shown = f'rename("{self.name}.json.tmp", "{self.name}.json")'
            found.append(Part([shown], when="root makes it for its owner, who reads the note there"))
        return found

    def brief(self) -> str:
        return f'rename("{self.kind}/{self.name}/note.tmp", "{self.kind}/{self.name}/note")'

    def needs(self) -> tuple[str, ...]:
        return ("lock:held?", "lock:data?", "pidfd:slot?", "member:pidfd?", "pod:ip?", "pod:ip6?", "names:fd?")

    def check(self) -> str:
        return f"nsrun {'pod ' if self.kind == 'pods' else ''}inspect {self.name}"

    def replayed(self, compiler: Compiling) -> list[Replayed] | None:
        note, state, pods = compiler.note, compiler.state, self.kind == "pods"
        which, number = ("pause", "pause_fd") if pods else ("process", "pidfd")
        process = [compiler.hole("process"), *note[which][2:]]
        note = {**note, which: process, number: max(map(compiler.fd, ("member:pidfd", "pidfd:slot")))}
        note |= {
            "held": compiler.hole("held"),
            "held_since": compiler.hole("since"),
            "cgroup_id": compiler.hole("cgroup"),
        }
        if pods:
            note["namespaces"] = compiler.hole("namespaces")
            return [("note", state.path(self.kind, self.name, "note"), compiler.template(note))]
        found: list[Replayed] = []
        if compiler.fd("lock:data") >= 0:
            found.append(
                ("note", f"{state.upper(note['id'])}/committed", compiler.template(state.committed_note(note)))
            )
        found.append(("note", state.path(self.kind, self.name, "note"), compiler.template(note)))
        return [*found, ("absent", state.path("pods", note["pod"], "removing"))]

    def do(self, run: Context) -> None:
        state = run.state
        process = state.identify(run.pid)
        if self.kind == "pods":
            # those of nsrun-forward are in a file of their own, which counts as long as that lives
            own = [port for port in run.ports if "mode" not in port]
            note = {**self.note, "pause": process, "pause_fd": run.pidfd, "ports": own}
            note["namespaces"] = kernel.namespace_ids(run.pid)
            if "pod:ip" in run.values:
                from nsrun.host.net import veth_name

                ip = str(run.values["pod:ip"])
                note["network"] = {
                    **note["network"],
                    "ip": ip,
                    "gateway": run.values["pod:gateway"],
                    "prefix": run.values["pod:prefix"],
                    "veth": veth_name(ip),
                    "veth_index": run.values["veth:index"],
                    "netns": run.values["host:netns"],
                }
                if "pod:ip6" in run.values:
                    note["network"]["ip6"] = str(run.values["pod:ip6"])
                if "names:fd" in run.handles:
                    note["network"]["hosts"] = run.text(note["network"]["hosts"])
                    st = os.fstat(run.fd("names:fd"))
                    note["network"]["hosts_file"] = [st.st_dev, st.st_ino]
        else:
            note = {**self.note, "process": process, "pidfd": run.monitors_pidfd()}
        if "lock:held" in run.handles:
            note |= life.describe(run.fd("lock:held"))  # by which another file in its place is told from it
        note["cgroup_id"] = run.values.get("cgroup:pod_id" if self.kind == "pods" else "cgroup:id", 0)
        if self.kind == "members" and "lock:data" in run.handles:
            state.commit_data(note)
        run.note = note
        state.save(self.kind, self.name, note)
        if self.kind == "pods":
            run.note = {**note, "ports": run.ports}
        if self.kind == "pods" and note.get("user") and not state.uid:
            state.show(run.note)
        if self.kind == "members" and state.is_being_removed(self.note["pod"]):
            raise BadInput(f"pod {self.note['pod']!r} is being removed", hint="nsrun pod ls")
