# SPDX-License-Identifier: Apache-2.0
"""The shapes that travel through nsrun, for mypy: imported under TYPE_CHECKING only, so they cost nothing at run time.

Options come from the command line or from the library, and are checked against the table of commands; a spec says what a pod or
a member is; facts are what was asked of the machine before; a note is what stays written down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, Required, TypedDict

Ranges = list[list[int]]  # [first id of the pod, first id of the host, how many]
Maps = dict[str, Ranges]  # "uid", "gid"


class Nested(TypedDict):
    """The user namespace in which nsrun itself is root: host.userns.around."""

    maps: Maps
    setgroups: bool


class Owner(TypedDict):
    """Whose a pod is, and what its user namespace maps."""

    uid: int
    gid: int
    maps: Maps


class Port(TypedDict):
    host_ip: str
    host_port: int  # 0: any free one
    pod_port: int
    protocol: str
    mode: NotRequired[str]  # "forward": by nsrun-forward; else by what the pod's network has (nat, pasta)


# ---- options: the names of the command line, with _ for - ---------------------------------------------------------


class PodOptions(TypedDict, total=False):
    name: str
    owner: str
    network: str
    mtu: str
    publish: list[str]
    publish_mode: str
    ip: str
    subnet: str
    subnet6: str
    hostname: str
    add_host: list[str]
    dns: list[str]
    sysctl: list[str]
    label: list[str]
    shm_size: str
    memory: str
    cpus: str
    pids_limit: str


class ExecOptions(TypedDict, total=False):
    command: Sequence[str]
    detach: bool
    interactive: bool
    terminal: bool
    env: list[str]
    env_file: list[str]
    user: str
    workdir: str


class JoinOptions(ExecOptions, total=False):
    name: str
    rootfs: str
    image: str
    bundle: str
    entrypoint: str
    rm: bool
    restart: str
    writable: bool
    read_only: bool
    volume: list[str]
    mount: list[str]
    tmpfs: list[str]
    device: list[str]
    net: str
    ipc: str
    pid: str
    uts: str
    cap_add: list[str]
    cap_drop: list[str]
    security_opt: list[str]
    ulimit: list[str]
    oom_score_adj: str
    sysctl: list[str]
    memory: str
    cpus: str
    pids_limit: str
    stop_signal: str
    stop_timeout: str
    hostname: str
    label: list[str]
    group_add: list[str]
    init: bool
    tz: str
    cpuset_cpus: str
    cidfile: str
    health_cmd: str
    health_http: str
    health_header: list[str]
    health_tcp: str
    health_interval: str
    health_timeout: str
    health_retries: str
    health_start_period: str
    health_start_interval: str
    no_healthcheck: bool
    ends_pod: bool  # of `run`: the pod ends with this member


# ---- a pod ------------------------------------------------------------------------------------------------------------


class Network(TypedDict):
    mode: str  # bridge, pasta, none, host
    bridge: NotRequired[str]
    name: NotRequired[str]  # of a network that is not the default one
    network_id: NotRequired[str]
    mtu: NotRequired[int]
    hosts: NotRequired[str]  # what its file of names begins with
    hosts_file: NotRequired[list[int]]  # the device and the inode of that
    wanted_ip: NotRequired[str]
    subnet: NotRequired[str]
    ipv6: NotRequired[str]  # of a bridge: on, or off and why
    subnet6: NotRequired[str]
    isolated: NotRequired[bool]
    closed: NotRequired[str]  # why nothing is forwarded to and from it: there is no nf_tables
    ip: NotRequired[str]
    ip6: NotRequired[str]
    gateway: NotRequired[str]
    prefix: NotRequired[int]  # the length of its network's; none: 24
    veth: NotRequired[str]
    veth_index: NotRequired[int]
    netns: NotRequired[int]


class PodFacts(TypedDict):
    id: str
    created: str
    cgroup: str  # path; "": the pod goes without
    resolv_conf: str  # the host's, as text
    owner: str
    named: NotRequired[
        Mapping[str, Any] | None
    ]  # the record of the network that was named; None: there is none of the name
    networks: NotRequired[str]  # what to say then
    mtu: NotRequired[int]  # the uplink's
    subnet: NotRequired[str]
    no_tables: NotRequired[str]  # why a pod on the bridge is closed in; "": there is nf_tables
    no_nat: NotRequired[str]  # why nat can't publish here; "": it can
    subnet6: NotRequired[str]
    without_ipv6: NotRequired[str]  # why this host gives pods none
    user: NotRequired[Owner]  # of a pod with a user namespace of its own; then:
    groups: NotRequired[list[int]]  # the owner's
    by_root: NotRequired[bool]  # root makes it, not the owner
    nested: NotRequired[Nested | None]
    devices: NotRequired[str]  # "host": none can be made here


class Ownership(TypedDict, total=False):
    user: Owner
    by_root: bool
    groups: list[int]
    nested: Nested
    devices: str


class PodSpec(Ownership):
    name: str
    id: str
    created: str
    owner: str
    hostname: str
    network: Network
    ports: list[Port]
    labels: dict[str, str]
    sysctls: dict[str, str]
    limits: dict[str, str]
    cgroup: str
    shm_size: int  # bytes
    files: dict[str, str]  # of pause's own root


class PodNote(TypedDict, total=False):
    """Of a pod that is gone, only its name may be known."""

    name: Required[str]
    id: str
    created: str
    owner: str
    user: Owner
    nested: Nested | None
    devices: str
    hostname: str
    network: Network
    ports: list[Port]
    labels: dict[str, str]
    sysctls: dict[str, str]  # only where some were asked for
    limits: dict[str, str]
    cgroup: str
    cgroup_id: int
    pause: list[Any]  # State.identify
    pause_fd: int
    namespaces: dict[str, int]
    held: int  # life.describe
    held_since: int


# ---- a member ---------------------------------------------------------------------------------------------------------


class UserIds(TypedDict):
    uid: int
    gid: int
    additionalGids: list[int]


class RLimit(TypedDict):
    type: str
    soft: int
    hard: int


class Process(TypedDict):
    terminal: bool
    user: UserIds
    args: list[str]
    env: list[str]
    cwd: str
    capabilities: dict[str, list[str]]
    rlimits: list[RLimit]
    noNewPrivileges: bool
    oomScoreAdj: NotRequired[int]
    apparmorProfile: NotRequired[str]


class Mount(TypedDict):
    """`type` is an OCI one, or nsrun's own: pod (a part of pause's root), volume, device."""

    destination: str
    type: str
    source: str
    options: list[str]


class Root(TypedDict):
    path: str
    readonly: bool


class Namespace(TypedDict):
    type: str
    path: NotRequired[str]


class Linux(TypedDict):
    namespaces: list[Namespace]
    cgroupsPath: str
    resources: dict[str, str]
    sysctl: dict[str, str]
    maskedPaths: list[str]
    readonlyPaths: list[str]


class MemberSpec(TypedDict):
    """An OCI runtime-spec document; config.md and config-linux.md.  What is nsrun's own stands in `annotations`."""

    ociVersion: str
    process: Process
    root: Root
    hostname: str
    mounts: list[Mount]
    linux: Linux
    annotations: dict[str, str]


class ImageConfig(TypedDict, total=False):
    """The `config` of an image's config: OCI image-spec, config.md."""

    Entrypoint: list[str]
    Cmd: list[str]
    Env: list[str]
    User: str
    WorkingDir: str
    Volumes: dict[str, Any]
    StopSignal: str
    ExposedPorts: dict[str, Any]
    Healthcheck: dict[str, Any]  # of Docker: Test, and times in nanoseconds
    Shell: list[str]


class BundleUser(TypedDict, total=False):
    uid: int
    gid: int
    additionalGids: list[int]


class BundleProcess(TypedDict, total=False):
    args: list[str] | None
    env: list[str] | None
    cwd: str | None
    user: BundleUser | None
    capabilities: dict[str, list[str]] | None
    rlimits: list[RLimit] | None
    noNewPrivileges: bool | None
    oomScoreAdj: int | None
    apparmorProfile: str | None


class BundleRoot(TypedDict, total=False):
    path: str
    readonly: bool


class BundleMount(TypedDict):
    destination: str
    type: NotRequired[str]
    source: NotRequired[str]
    options: NotRequired[list[str]]


class Bundle(TypedDict, total=False):
    """What nsrun reads of a bundle's config.json: spec.member.bundle_shape checks it."""

    process: BundleProcess | None
    root: BundleRoot
    mounts: list[BundleMount] | None
    annotations: dict[str, str] | None
    hooks: dict[str, Any] | None
    linux: dict[str, Any] | None


class MemberFacts(TypedDict):
    """What the spec of a member rests on and does not decide; lifecycle.join gathers it."""

    name: str
    id: str
    pod: PodNote
    root: str  # directory; "/": the host's own files
    passwd: NotRequired[str]  # the texts of the root's files
    group: NotRequired[str]
    environ: NotRequired[Mapping[str, str]]  # the caller's
    bundle: NotRequired[Bundle]
    image: NotRequired[ImageConfig]
    cgroup: NotRequired[str]  # path
    cgroup_v2: NotRequired[bool]  # is it mounted?
    granted: NotRequired[int]  # the capabilities that can be had here, a bit mask
    absent: NotRequired[Sequence[str]]  # targets of mounts that the host's own files lack
    asked: NotRequired[list[Mount]]  # spec.member.asked_mounts, at their real places and in order
    filter: NotRequired[str]  # the name of the compiled seccomp filter; "": none


class Health(TypedDict):
    """How a member's health is checked; times in seconds."""

    command: list[str]  # [] for a check that connects
    connect: NotRequired[str]  # tcp://HOST:PORT, http://HOST:PORT/PATH; without HOST: the pod's own address
    headers: NotRequired[list[str]]  # of an HTTP request
    interval: float
    timeout: float
    start_period: float
    start_interval: float  # the interval until the start period is over, or a check has succeeded
    retries: int


class MemberNote(TypedDict):
    id: str
    name: str
    pod: str
    pod_id: str
    created: str
    started: str
    command: list[str]
    rootfs: str
    cgroup: str
    shares_pid: bool
    terminal: bool
    stop_signal: int
    restart: str  # POLICY:RETRIES
    rm: bool
    detached: bool
    restarts: int
    image: NotRequired[str]
    image_id: NotRequired[str]
    layers: NotRequired[list[str]]
    labels: NotRequired[dict[str, str]]
    stop_timeout: NotRequired[int]
    ends_pod: NotRequired[bool]
    health: NotRequired[Health]
    process: NotRequired[list[Any]]  # State.identify
    pidfd: NotRequired[int]
    held: NotRequired[int]  # life.describe
    held_since: NotRequired[int]
    cgroup_id: NotRequired[int]
