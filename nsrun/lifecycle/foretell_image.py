# SPDX-License-Identifier: Apache-2.0
"""What the commands of `nsrun image` that change something are about to do, as plans: foretell.py tells what that means."""

from __future__ import annotations

from nsrun.lifecycle.foretell import Deed, Sweep
from nsrun.plan import Part, Plan, Step
from nsrun.plan.process import sealed
from nsrun.schema import is_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsrun.state import State

_NAMES: list[str | Part] = ['flock("names.lock", LOCK_EX)', 'rename("names.json.TMP", "names.json")']
_SWEEP = Part(["flock(LEFT, LOCK_EX|LOCK_NB)", "# rm -r LEFT"], each="directory LEFT of a crash below tmp")
_ACCOUNT = 'memfd_create("account")   /* what has been read and written, against the budget */'
_SHOP = ['mkdir("tmp/SHOP", 0700)', 'flock("tmp/SHOP", LOCK_EX)']


class PrepareStore(Deed):
    native = "image/store.py prepare"
    man = "mkdir(2), flock(2)"
    why = "The store is where image load, join and image rm meet; it is made once."

    def made(self) -> list[str | Part]:
        make = ["mkdir(DIRECTORY, 0700)", 'flock("names", LOCK_EX)', 'rename("names.json.TMP", "names.json")']
        return [Part(make, when="it is missing", each="DIRECTORY of the store")]

    def brief(self) -> str:
        return "prepare the store of images"


class ReadImage(Deed):
    native = "image/source.py find_images"
    man = "https://github.com/opencontainers/image-spec"
    why = "The index, the manifests and the configurations are read, within bounds, and their digests are checked."
    path: str
    counted: bool = False  # the account is open already

    def made(self) -> list[str | Part]:
        source = "read(0)" if self.path == "-" else f'open("{self.path}")'
        return [source] if self.counted else [_ACCOUNT, source]

    def brief(self) -> str:
        return f"read the image {self.path}"


class UnpackLayers(Deed):
    native = "image/store.py _unpack"
    man = "pivot_root(2), seccomp(2), https://docs.kernel.org/filesystems/overlayfs.html"
    why = (
        "A confined process, nsrun-unpack, writes each layer into a directory of its own, which is all that it can reach; several"
        " run at the same time. Once all are whole they get their names, so that the store has a layer altogether or not at all."
    )

    def made(self) -> list[str | Part]:
        shop: list[str | Part] = ['mkdir("tmp/SHOP", 0700)', 'flock("tmp/SHOP/lock", LOCK_EX)']
        unpack = [
            'mkdir("tmp/SHOP/NUMBER", 0700)',
            *sealed("program", "nsrun-unpack", "MFD_EXEC"),
            'tree = open_tree(AT_FDCWD, "tmp/SHOP/NUMBER/tree", OPEN_TREE_CLONE)',
            'mount_setattr(tree, "", AT_EMPTY_PATH, MOUNT_ATTR_NOSUID|MOUNT_ATTR_NODEV|MOUNT_ATTR_NOEXEC)',
            "pipe2(stream, O_CLOEXEC)",
            'memfd_create("records")',
            "clone3(CLONE_VM|CLONE_VFORK)   /* nsrun-unpack */",
            "fchown(tree, UID, GID)",
            'rename("layer.json.TMP", "layer.json")',
            'rename("tmp/SHOP/NUMBER", "layers/ID")',
        ]
        return [
            'flock("lock", LOCK_SH)',
            _SWEEP,
            Part([*shop, Part(unpack, each="layer that is not there")], when="one is missing"),
        ]

    def brief(self) -> str:
        return "unpack the layers that are missing"

    def check(self) -> str:
        return "nsrun image ls"


class NameImage(Deed):
    native = "image/store.py load"
    man = "rename(2), fsync(2)"
    why = "The record and the names are written last; until then nothing speaks of the image, and a crash leaves none."

    def made(self) -> list[str | Part]:
        read = [
            "fs = fsopen(OVERLAY, FSOPEN_CLOEXEC)",
            "fsconfig(fs, …)",
            "fsmount(fs, FSMOUNT_CLOEXEC, MOUNT_ATTR_RDONLY)",
        ]
        write = ["open_tree(TREE)", "mount_setattr(TREE)", 'rename("blobs/DIGEST.TMP", "blobs/DIGEST")']
        write.append('rename("records/ID.TMP", "records/ID")')
        return [
            Part([*read, *write], when="there is no such record", each="layer and document, for its accounts"),
            'flock("names", LOCK_EX)',
            Part(['rename("names.json.TMP", "names.json")'], when="the name is new"),
        ]

    def brief(self) -> str:
        return "write the record and the names of the image"

    def check(self) -> str:
        return "nsrun image ls"


class Download(Deed):
    native = "image/pull.py download"
    man = "skopeo-copy(1), containers-auth.json(5)"
    why = (
        "skopeo knows registries, their logins and their certificates. It writes into a directory that nobody else uses, and is"
        " stopped when it writes more than the budget. For layers that the store has, it finds files of their size, and asks for none."
    )
    source: str

    def made(self) -> list[str | Part]:
        pipes = ["pipe2(out, O_CLOEXEC)", "pipe2(err, O_CLOEXEC)", "pipe2(failed, O_CLOEXEC)"]
        return [
            _ACCOUNT,
            *_SHOP,
            Part(
                [*pipes, "vfork()   /* skopeo inspect --raw SOURCE */"],
                each="document: the manifest, its configuration",
            ),
            Part(["mkdir(DIRECTORY, 0700)"], each="DIRECTORY of tmp/SHOP/layout/blobs/sha256"),
            *pipes[1:],
            "vfork()   /* skopeo copy SOURCE oci:tmp/SHOP/layout:image */",
        ]

    def brief(self) -> str:
        return f"download {self.source}"

    def shell(self) -> str:
        return f"skopeo copy -- {self.source} oci:layout:image"


class AddName(Deed):
    native = "image/store.py tag"
    man = "flock(2), rename(2)"
    why = "Names are a file beside the images, which is replaced as a whole; the layers stay where they are."
    name: str
    known: bool

    def made(self) -> list[str | Part]:
        return ['flock("lock", LOCK_SH)', _NAMES[0], *([] if self.known else _NAMES[1:])]

    def brief(self) -> str:
        return f"add the name {self.name}"

    def check(self) -> str:
        return "nsrun image ls"


class RemoveName(Deed):
    native = "image/store.py remove"
    man = "flock(2), rename(2)"
    why = "The image has other names, and stays."
    name: str

    def made(self) -> list[str | Part]:
        return ['flock("lock", LOCK_EX)', *_NAMES]

    def brief(self) -> str:
        return f"remove the name {self.name}"

    def check(self) -> str:
        return "nsrun image ls"


class RemoveImage(Deed):
    native = "image/store.py _remove_image"
    man = "rename(2), unlinkat(2)"
    why = "Names, record and documents go in the reverse of the order in which they came, so that no name is left without an image."
    ident: str
    named: bool
    locked: bool  # by the step before

    def made(self) -> list[str | Part]:
        remove = [f'unlinkat("records/{self.ident}.json")', 'unlinkat("blobs/DIGEST")   /* of no other image */']
        lock = [] if self.locked else ['flock("lock", LOCK_EX)']
        return [*lock, *(_NAMES if self.named else _NAMES[:1]), *remove]

    def brief(self) -> str:
        return f"remove the image {self.ident[:12]}"

    def check(self) -> str:
        return "nsrun image ls"


class FreeLayers(Deed):
    native = "image/store.py _free_layers"
    man = "rename(2), unlinkat(2)"
    why = (
        "A layer goes when no image has it and no data of a running member lie above it. It is moved aside whole first: the store has a"
        " layer altogether or not at all."
    )

    def made(self) -> list[str | Part]:
        return [*_SHOP, Part(['rename("layers/ID", "tmp/SHOP/ID")'], each="layer ID of nobody"), "# rm -r tmp/SHOP"]

    def brief(self) -> str:
        return "remove the layers that nobody needs"

    def check(self) -> str:
        return "nsrun image ls"


class Repair(Deed):
    native = "image/store.py prune"
    man = "flock(2), unlinkat(2)"
    why = "What a crash left half-written is recognised by a lock that nobody holds, or by documents that are missing."

    def made(self) -> list[str | Part]:
        return [
            'flock("lock", LOCK_EX)',
            _SWEEP,
            Part(
                ['rename("names.json", "names.json.broken")', 'rename("names.json.TMP", "names.json")'],
                when="the names can't be read",
            ),
            Part(['unlinkat("records/ID.json")'], each="record ID that is damaged, or lacks a layer"),
            Part(_NAMES, when="a name has no image any more"),
            Part(['unlinkat("blobs/DIGEST")'], each="document of no image, and file that was half-written"),
        ]

    def brief(self) -> str:
        return "remove what crashes left behind"

    def check(self) -> str:
        return "nsrun doctor"


class WriteBundle(Deed):
    native = "image/bundle.py unpack"
    man = "mkdir(2), cp(1), https://github.com/opencontainers/runtime-spec/blob/main/bundle.md"
    why = (
        "The layers are mounted together, read-only and at no place, and copied from there. The directory is closed to others, since an image"
        " has set-user-ID programs of root."
    )
    target: str
    there: bool
    layers: int

    def made(self) -> list[str | Part]:
        found: list[str | Part] = ['flock("lock", LOCK_SH)']
        if not self.there:
            found += [Part(["mkdir(PARENT)"], each="PARENT that is missing"), f'mkdir("{self.target}", 0700)']
        found.append(f'mkdir("{self.target}/rootfs", 0755)')
        if self.layers == 1:
            found += ["view = open_tree(TREE, OPEN_TREE_CLONE)", "mount_setattr(view, MOUNT_ATTR_RDONLY)"]
        elif self.layers:
            found += [
                'fs = fsopen("overlay")',
                Part(["fsconfig(fs, …)"], each="layer and option"),
                "view = fsmount(fs)",
            ]
        if self.layers:
            found += ['memfd_create("errors")', "clone3(CLONE_VM|CLONE_VFORK)   /* cp -a VIEW/. DIR/rootfs */"]
        return found

    def brief(self) -> str:
        return f"write the bundle {self.target}"

    def check(self) -> str:
        return f"ls -l {self.target}"


# ---- the plans ---------------------------------------------------------------------------------------------------


def plan_load(path: str) -> Plan:
    """`nsrun image load`."""
    return Plan(f"image load {path}", [PrepareStore(), ReadImage(path), UnpackLayers(), NameImage(), Sweep()])


def plan_pull(word: str) -> Plan:
    """`nsrun image pull`."""
    from nsrun.image import references

    source = f"docker://{references.parse(word.removeprefix('docker://'))}"
    steps = [PrepareStore(), Download(source), ReadImage("tmp/SHOP/layout", True), UnpackLayers(), NameImage(), Sweep()]
    return Plan(f"image pull {word}", steps)


def plan_tag(state: State, word: str, new: str) -> Plan:
    """`nsrun image tag`."""
    from nsrun.image import lookup, references
    from nsrun.image.store import Store

    name, record = Store(state).new_name(new), lookup.find(state, word)
    known = lookup.names(state).get(name) == record["id"]
    return Plan(f"image tag {word} {new}", [AddName(references.familiar(name), known), Sweep()])


def plan_rm(state: State, words: list[str], force: bool) -> Plan:
    """`nsrun image rm`."""
    from nsrun.image.store import Store

    store, steps = Store(state), list[Step]()
    gone: list[str] = []
    for word in words:
        ident, names, name = store.to_remove(word, force, gone)
        gone.append(name)
        steps.append(PrepareStore())
        steps += [RemoveName(word)] if name else [RemoveImage(ident, bool(names), False), FreeLayers()]
    return Plan(f"image rm {' '.join(words)}", [*steps, Sweep()])


def plan_prune(state: State, everything: bool) -> Plan:
    """`nsrun image prune`."""
    from nsrun.image import lookup
    from nsrun.image.store import Store

    store, steps = Store(state), list[Step]([PrepareStore(), Repair()])
    try:
        named, lost = lookup.names(state), store.names_were_lost()
    except lookup.Damaged:
        named, lost = {}, True
    for record in lookup.records(state, []):
        names = record["id"] in named.values()
        whole = all(is_directory(f"{lookup.base(state)}/layers/{layer}/tree") for layer in record["layers"])
        if whole and (everything or not (lost or names)) and not store.users_of(record["id"]):
            steps.append(RemoveImage(record["id"], names, True))
    return Plan("image prune", [*steps, FreeLayers(), Sweep()])


def plan_unpack(state: State, word: str, target: str) -> Plan:
    """`nsrun image unpack`."""
    from nsrun.image import lookup
    from nsrun.image.bundle import check_target

    there, layers = check_target(target), lookup.trees(state, lookup.find(state, word))
    return Plan(f"image unpack {word} {target}", [WriteBundle(target, there, len(layers)), Sweep()])
