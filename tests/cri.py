# SPDX-License-Identifier: Apache-2.0
"""Speak the Container Runtime Interface of Kubernetes (CRI, runtime.v1) as a kubelet does: gRPC, and WebSocket for streams.

`cri.py SOCKET` is a process of its own, on the machine of the engine: it reads a JSON document a line, `[method, request,
seconds]` or `["stream", url, input]`, and answers each with one.  The threads of gRPC are not those of the tests, this way.
The numbers of the fields are those of runtime.v1; a field that is not in the table is passed over in an answer.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

#: message: field=number[:type] …, where a type is string unless it is said, * is before a list, and map has strings.
TABLE = """
VersionRequest: version=1
VersionResponse: version=1 runtime_name=2 runtime_version=3 runtime_api_version=4
StatusRequest: verbose=1:bool
StatusResponse: status=1:RuntimeStatus info=2:map
RuntimeStatus: *conditions=1:RuntimeCondition
RuntimeCondition: type=1 status=2:bool reason=3 message=4
Int64Value: value=1:int
UInt64Value: value=1:int
NamespaceOption: network=1:int pid=2:int ipc=3:int target_id=4
SecurityProfile: profile_type=1:int localhost_ref=2
Metadata: name=1 uid=2 namespace=3 attempt=4:int
LinuxSandboxSecurityContext: namespace_options=1:NamespaceOption run_as_user=3:Int64Value seccomp=9:SecurityProfile
LinuxPodSandboxConfig: cgroup_parent=1 security_context=2:LinuxSandboxSecurityContext sysctls=3:map
PodSandboxConfig: metadata=1:Metadata hostname=2 log_directory=3 labels=6:map annotations=7:map linux=8:LinuxPodSandboxConfig
RunPodSandboxRequest: config=1:PodSandboxConfig runtime_handler=2
RunPodSandboxResponse: pod_sandbox_id=1
StopPodSandboxRequest: pod_sandbox_id=1
StopPodSandboxResponse:
RemovePodSandboxRequest: pod_sandbox_id=1
RemovePodSandboxResponse:
PodSandboxStatusRequest: pod_sandbox_id=1 verbose=2:bool
PodSandboxNetworkStatus: ip=1
PodSandboxStatus: id=1 metadata=2:Metadata state=3:int created_at=4:int network=5:PodSandboxNetworkStatus runtime_handler=9
PodSandboxStatusResponse: status=1:PodSandboxStatus info=2:map
ListPodSandboxRequest:
ListPodSandboxResponse: *items=1:PodSandboxStatus
ImageSpec: image=1
ListImagesRequest:
Image: id=1 *repo_tags=2
ListImagesResponse: *images=1:Image
KeyValue: key=1 value=2
Mount: container_path=1 host_path=2 readonly=3:bool selinux_relabel=4:bool propagation=5:int
Capability: *add_capabilities=1 *drop_capabilities=2
LinuxContainerResources: cpu_period=1:int cpu_quota=2:int cpu_shares=3:int memory_limit_in_bytes=4:int oom_score_adj=5:int
LinuxContainerSecurityContext: capabilities=1:Capability namespace_options=3:NamespaceOption run_as_user=5:Int64Value
 readonly_rootfs=7:bool no_new_privs=11:bool *masked_paths=13 *readonly_paths=14 seccomp=15:SecurityProfile
LinuxContainerConfig: resources=1:LinuxContainerResources security_context=2:LinuxContainerSecurityContext
ContainerMetadata: name=1 attempt=2:int
ContainerConfig: metadata=1:ContainerMetadata image=2:ImageSpec *command=3 *args=4 working_dir=5 *envs=6:KeyValue
 *mounts=7:Mount labels=9:map annotations=10:map log_path=11 stdin=12:bool stdin_once=13:bool tty=14:bool
 linux=15:LinuxContainerConfig
CreateContainerRequest: pod_sandbox_id=1 config=2:ContainerConfig sandbox_config=3:PodSandboxConfig
CreateContainerResponse: container_id=1
StartContainerRequest: container_id=1
StartContainerResponse:
StopContainerRequest: container_id=1 timeout=2:int
StopContainerResponse:
RemoveContainerRequest: container_id=1
RemoveContainerResponse:
ContainerStatusRequest: container_id=1 verbose=2:bool
ContainerStatus: id=1 metadata=2:ContainerMetadata state=3:int created_at=4:int started_at=5:int finished_at=6:int
 exit_code=7:int reason=10 message=11 log_path=15
ContainerStatusResponse: status=1:ContainerStatus info=2:map
ListContainersRequest:
Container: id=1 pod_sandbox_id=2 metadata=3:ContainerMetadata state=6:int
ListContainersResponse: *containers=1:Container
UpdateContainerResourcesRequest: container_id=1 linux=2:LinuxContainerResources
UpdateContainerResourcesResponse:
ContainerStatsRequest: container_id=1
ContainerStatsResponse: stats=1:ContainerStats
ContainerStats: cpu=2:CpuUsage memory=3:MemoryUsage
CpuUsage: timestamp=1:int usage_core_nano_seconds=2:UInt64Value
MemoryUsage: timestamp=1:int working_set_bytes=2:UInt64Value
ExecSyncRequest: container_id=1 *cmd=2 timeout=3:int
ExecSyncResponse: stdout=1 stderr=2 exit_code=3:int
ExecRequest: container_id=1 *cmd=2 tty=3:bool stdin=4:bool stdout=5:bool stderr=6:bool
ExecResponse: url=1
AttachRequest: container_id=1 stdin=2:bool tty=3:bool stdout=4:bool stderr=5:bool
AttachResponse: url=1
"""


class Column(NamedTuple):
    number: int
    type: str
    many: bool


def _messages() -> dict[str, dict[str, Column]]:
    found: dict[str, dict[str, Column]] = {}
    for line in TABLE.replace("\n ", " ").strip().splitlines():
        name, _, rest = line.partition(":")
        columns = found[name] = {}
        for word in rest.split():
            field, _, place = word.partition("=")
            number, _, kind = place.partition(":")
            columns[field.lstrip("*")] = Column(int(number), kind or "string", field[0] == "*")
    return found


MESSAGES = _messages()
#: Of a map, each entry is a message.
MESSAGES["map"] = MESSAGES["KeyValue"]
Message = dict[str, Any]


def _varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def encode(kind: str, message: Message) -> bytes:
    """Return a message as protobuf writes it.  Raise KeyError for a field that is not in the table."""
    out = b""
    for name, value in message.items():
        number, type_, many = MESSAGES[kind][name]
        if type_ == "map":
            value, many = [{"key": key, "value": text} for key, text in value.items()], True
        for one in value if many else [value]:
            if type_ in ("int", "bool"):
                out += _varint(number << 3) + _varint(int(one))
            else:
                data = one.encode() if type_ == "string" else encode(type_, one)
                out += _varint(number << 3 | 2) + _varint(len(data)) + data
    return out


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    at = 0

    def varint() -> int:
        nonlocal at
        number = shift = 0
        while True:
            number |= (data[at] & 127) << shift
            at, shift = at + 1, shift + 7
            if data[at - 1] < 128:
                return number

    while at < len(data):
        tag = varint()
        if tag & 7 == 0:
            yield tag >> 3, varint()
        else:
            size = {1: 8, 5: 4}.get(tag & 7) or varint()
            yield tag >> 3, data[at : at + size]
            at += size


def decode(kind: str, data: bytes) -> Message:
    """Return a message with all fields of the table; one that the data has not is 0, "", empty, or {}."""
    columns = MESSAGES[kind]
    empty = {"string": "", "int": 0, "bool": False}
    out: Message = {
        name: [] if column.many else empty.get(column.type, {}).__class__() for name, column in columns.items()
    }
    names = {column.number: name for name, column in columns.items()}
    for number, value in _fields(data):
        if number not in names:
            continue
        name = names[number]
        _, type_, many = columns[name]
        if type_ == "int":
            value -= (value >> 63) << 64
        elif type_ == "bool":
            value = bool(value)
        elif type_ == "string":
            value = value.decode(errors="replace")
        else:
            value = decode(type_, value)
        if type_ == "map":
            out[name][value["key"]] = value["value"]
        elif many:
            out[name].append(value)
        else:
            out[name] = value
    return out


# ---- streams: WebSocket, with the number of a channel at the beginning of each frame ---------------------------------

STDIN, STDOUT, STDERR, ERROR = range(4)


def _frame(channel: int, data: bytes) -> bytes:
    """Return a binary frame of a client, whose mask is 0."""
    payload = bytes([channel]) + data
    size = len(payload)
    head = struct.pack("!BB", 0x82, 0x80 | size) if size < 126 else struct.pack("!BBH", 0x82, 0xFE, size)
    return head + bytes(4) + payload


def stream(url: str, given: str) -> Message:
    """Give `given` to what an Exec or an Attach has an address for; return what comes on each channel until it ends."""
    place = urlsplit(url)
    with socket.create_connection((place.hostname, place.port), timeout=20) as connection:
        key = base64.b64encode(os.urandom(16)).decode()
        head = {
            "Host": place.netloc, "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": key, "Sec-WebSocket-Protocol": "v4.channel.k8s.io",
        }  # fmt: skip
        lines = [f"GET {place.path}?{place.query} HTTP/1.1", *(f"{name}: {text}" for name, text in head.items())]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        reader = connection.makefile("rb")
        status = reader.readline()
        if b" 101 " not in status:
            raise OSError(f"{url}: {status!r}")
        while reader.readline().strip():
            pass
        if given:
            connection.sendall(_frame(STDIN, given.encode()))
        found = {STDOUT: b"", STDERR: b"", ERROR: b""}
        while head_of_frame := reader.read(2):
            size = head_of_frame[1] & 127
            if size > 125:
                size = int.from_bytes(reader.read(2 if size == 126 else 8), "big")
            payload = reader.read(size)
            if head_of_frame[0] & 15 == 8:
                break
            if payload[0] not in found:
                raise OSError(f"{url}: a frame of channel {payload[0]}")
            found[payload[0]] += payload[1:]
    out = {"stdout": found[STDOUT].decode(), "stderr": found[STDERR].decode()}
    return {**out, "end": json.loads(found[ERROR]) if found[ERROR] else {}}


def main() -> None:
    import grpc

    with grpc.insecure_channel(f"unix://{sys.argv[1]}") as channel:
        for line in sys.stdin:
            method, request, limit = json.loads(line)
            try:
                if method == "stream":
                    answer = stream(request, limit)
                else:
                    service = "ImageService" if "Image" in method else "RuntimeService"
                    call = channel.unary_unary(
                        f"/runtime.v1.{service}/{method}",
                        request_serializer=lambda message, kind=method: encode(f"{kind}Request", message),
                        response_deserializer=lambda data, kind=method: decode(f"{kind}Response", data),
                    )
                    answer = call(request, timeout=limit)
                print(json.dumps(["", answer]), flush=True)
            except grpc.RpcError as error:
                print(json.dumps([error.code().name, error.details()]), flush=True)
            except OSError as error:
                print(json.dumps(["OSError", str(error)]), flush=True)


if __name__ == "__main__":
    main()
