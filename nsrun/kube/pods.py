# SPDX-License-Identifier: Apache-2.0
"""Compile the pods of a YAML file to what a file of `nsrun up` says (cli/podfile.py): options of `pod create` and `join`.

There is one schema behind both kinds of file.  Each option remembers the field that it comes from, so that whatever is found
to be wrong with it is told with the line and the path of that field.  A field that nothing is done for is refused.
"""

from __future__ import annotations

import hashlib
import os
import re

from nsrun.errors import UsageError
from nsrun.kube.document import Field, load, no_text
from nsrun.kube.fields import (
    CREATE_OF,
    INIT,
    JOIN_OF,
    LIB,
    NAME_OF,
    POD_ID,
    POD_IP,
    expand,
    is_label,
    is_label_key,
    is_label_value,
    is_subdomain,
    quantity,
)
from nsrun.spec.health import check_connect
from nsrun.spec.options import SUBPATH, parse_target
from nsrun.spec.pod import is_address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Keys = tuple[str, ...]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TOP = _names("apiVersion kind metadata spec status")
_METADATA = _names("name namespace labels annotations")
#: What an API server writes and does not read.
_WRITTEN = _names("creationTimestamp uid resourceVersion generation selfLink managedFields")
_METADATA_OTHERS = _names("generateName ownerReferences finalizers deletionGracePeriodSeconds deletionTimestamp")
_SPEC = _names(
    """containers initContainers volumes restartPolicy terminationGracePeriodSeconds hostname hostAliases dnsConfig dnsPolicy
    hostNetwork shareProcessNamespace securityContext"""
)
_SPEC_OTHERS = _names(
    """activeDeadlineSeconds affinity automountServiceAccountToken enableServiceLinks ephemeralContainers hostIPC hostPID
    hostUsers imagePullSecrets nodeName nodeSelector os overhead preemptionPolicy priority priorityClassName readinessGates
    resourceClaims resources runtimeClassName schedulerName schedulingGates serviceAccount serviceAccountName
    setHostnameAsFQDN subdomain tolerations topologySpreadConstraints"""
)
#: Values that say what nsrun does anyway.
_SPEC_DEFAULTS = {
    "hostUsers": True,
    "enableServiceLinks": True,
    "priority": 0,
    "preemptionPolicy": "PreemptLowerPriority",
    "runtimeClassName": "nsrun",
    "schedulerName": "default-scheduler",
    "serviceAccount": "default",
    "serviceAccountName": "default",
}
_CONTAINER = _names(
    """name image imagePullPolicy command args workingDir ports env envFrom volumeMounts resources securityContext
    restartPolicy livenessProbe"""
)
_PROBE = _names(
    "exec httpGet tcpSocket initialDelaySeconds periodSeconds timeoutSeconds failureThreshold successThreshold"
)
_PROBE_OTHERS = _names("grpc terminationGracePeriodSeconds")
_CONTAINER_OTHERS = _names(
    """lifecycle readinessProbe startupProbe resizePolicy restartPolicyRules stdin stdinOnce tty
    terminationMessagePath terminationMessagePolicy volumeDevices"""
)
_CONTAINER_DEFAULTS = {"terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}
_SECURITY = _names(
    """allowPrivilegeEscalation capabilities readOnlyRootFilesystem runAsUser runAsGroup runAsNonRoot seccompProfile
    appArmorProfile privileged"""
)
_POD_SECURITY = _names(
    """runAsUser runAsGroup runAsNonRoot fsGroup fsGroupChangePolicy supplementalGroups supplementalGroupsPolicy
    seccompProfile appArmorProfile sysctls"""
)
_SECURITY_OTHERS = _names("procMount seLinuxOptions seLinuxChangePolicy windowsOptions")
_VOLUMES = _names("name emptyDir hostPath configMap secret persistentVolumeClaim")
_VOLUMES_OTHERS = _names(
    """awsElasticBlockStore azureDisk azureFile cephfs cinder csi downwardAPI ephemeral fc flexVolume flocker
    gcePersistentDisk gitRepo glusterfs image iscsi nfs photonPersistentDisk portworxVolume projected quobyte rbd scaleIO
    storageos vsphereVolume"""
)
_MAX_ID = (1 << 32) - 2
#: Options of one value that an annotation may replace, and that an error is traced to by their value.
_TRACED = ("image", "workdir", "entrypoint")
#: Characters of a path of an item, and bytes of a name in a path.
_MAX_PATH, _MAX_NAME = 1024, 255
#: Where a pod has directories of devices and files of its own.
_DEVICES, _FILES_OF_POD = "/dev", ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf")
#: What Kubernetes waits for a container to stop, unless the file says.
GRACE = 30


class OwnVolume:
    """A volume of the pod's own: `files` with their content and mode, or None for an empty directory that lives with the pod."""

    __slots__ = ("field", "files", "group", "name")

    def __init__(self, name: str, files: dict[str, tuple[bytes, int]] | None, group: int, field: Field) -> None:
        self.name, self.files, self.group, self.field = name, files, group, field


class Compiled:
    """One pod: a `document` as TOML would have it, and where each part of it comes from.

    `fields`: path of keys in the document → the field.  `items`: the same for values of lists: (keys, value, field).
    `hosts`: member → (path of this host, type of hostPath, field).  `finish`: the members that are init containers.
    `own`: volumes that live with the pod.  `wants_address`: member → the field that asks for the pod's address.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.document: dict[str, Any] = {"pod": {"name": name}, "members": {}}
        self.fields: dict[Keys, Field] = {}
        self.items: list[tuple[Keys, str, Field]] = []
        self.hosts: dict[str, list[tuple[str, str, Field]]] = {}
        self.own: dict[str, OwnVolume] = {}
        self.wants_address: dict[str, Field] = {}

    def put(self, table: Keys, key: str, value: Any, field: Field) -> None:
        """Set an option of a table; a list gets one more."""
        place = self.table(table)
        if isinstance(value, list):
            place.setdefault(key, []).extend(value)
            self.items += [((*table, key), str(one), field) for one in value]
        elif key in _TRACED and isinstance(value, str):
            self.items.append(((*table, key), value, field))
            place[key] = value
        else:
            place[key] = value
        self.fields.setdefault((*table, key), field)

    def table(self, keys: Keys) -> dict[str, Any]:
        place: dict[str, Any] = self.document
        for key in keys:
            place = place.setdefault(key, {})
        return place


def compile_file(data: bytes, file: str) -> list[Compiled]:
    """Return the pods that a file describes.  Raise UsageError, with the line and the path of the field."""
    compiler = _File()
    pods = [found for document in load(data, file) if (found := compiler.take(document))]
    if not pods:
        raise Field(file, 1, "", None).wrong("there is no pod in this file", hint="kind: Pod; docs/kube.md shows one")
    compiled = [compiler.pod(*pod) for pod in pods]
    names: set[str] = set()
    for one in compiled:
        for name in (f"pod {one.name}", *one.document["members"]):
            if name in names:
                raise one.fields[("pod",)].wrong(f"{name!r} is there twice in this file")
            names.add(name)
    return compiled


class _File:
    """What the documents of one file say: maps and secrets, that pods refer to."""

    def __init__(self) -> None:
        #: (kind, name) → key → content
        self.data: dict[tuple[str, str], dict[str, bytes]] = {}

    def take(self, document: Field) -> tuple[Field, dict[str, Field], Field] | None:
        """Read one document; return of a pod the field of its name, its metadata and its spec."""
        kind = document.object().get("kind")
        what = kind.text() if kind else ""
        versions = {
            "Pod": "v1",
            "ConfigMap": "v1",
            "Secret": "v1",
            "PersistentVolumeClaim": "v1",
            "Deployment": "apps/v1",
        }
        if what not in versions:
            found = f"kind {what!r} is not done" if kind else "it has no kind"
            raise (kind or document).wrong(found, hint=f"done: {', '.join(versions)}; ports of a pod: hostPort")
        version = document.object().get("apiVersion")
        if not version or version.text() != versions[what]:
            raise (version or document).wrong(f"the apiVersion of a {what} is {versions[what]}")
        if what in ("ConfigMap", "Secret"):
            self.content(document, what)
            return None
        top = document.fields(_TOP)
        name, metadata = _metadata(top.get("metadata"), document)
        spec = top.get("spec") or Field(document.file, document.line, "spec", {})
        if what == "PersistentVolumeClaim":
            _claim(spec)
            return None
        if what == "Deployment":
            return name, *_template(spec)
        return name, metadata, spec

    def content(self, document: Field, kind: str) -> None:
        """Keep the content of a ConfigMap or a Secret."""
        keys = "data binaryData" if kind == "ConfigMap" else "data stringData"
        others = _names("type") if kind == "Secret" else _names("")
        top = document.fields(_names(f"apiVersion kind metadata immutable {keys}") | others)
        name, _ = _metadata(top.get("metadata"), document)
        if (kind, name.text()) in self.data:
            raise name.wrong(f"{kind} {name.text()!r} is there twice")
        found: dict[str, bytes] = {}
        for part in keys.split():
            for key, field in top[part].object().items() if part in top else ():
                if key in (".", "..") or not re.fullmatch(r"[-\w.]{1,253}", key, re.A):
                    raise field.wrong(f"{key[:60]!r} is not a key", hint="at most 253 letters, digits, -, _ and .")
                if part == "binaryData" and key in found:
                    raise field.wrong("it is in data, too")
                encoded = part == "binaryData" or (kind == "Secret" and part == "data")
                found[key] = _decoded(field) if encoded else field.text(nul=True).encode()
        self.data[kind, name.text()] = found

    def pod(self, name: Field, metadata: dict[str, Field], spec: Field) -> Compiled:
        return _Pod(self, name, metadata, spec).compiled()

    def of(self, kind: str, name: Field, optional: Field | None) -> dict[str, bytes]:
        """Return the content of a map or secret that a field names; nothing when it is optional and not there."""
        found = self.data.get((kind, name.text()))
        if found is None and not (optional and optional.flag()):
            known = ", ".join(sorted(other for of, other in self.data if of == kind))
            raise name.wrong(
                f"there is no {kind} {name.text()!r} in this file", hint=f"there is {known}" if known else ""
            )
        return found or {}


def _decoded(field: Field) -> bytes:
    import base64
    import binascii

    try:
        return base64.b64decode("".join(field.text().split()), validate=True)
    except (binascii.Error, ValueError):
        raise field.wrong("it is not base64", hint="stringData takes text as it is") from None


def _metadata(field: Field | None, document: Field) -> tuple[Field, dict[str, Field]]:
    """Return the name of an object, and its metadata.  Raise UsageError for a name that kubectl would refuse."""
    if field is None:
        raise document.wrong("it has no metadata", hint="metadata with a name")
    found = {key: value for key, value in field.object().items() if key not in _WRITTEN}
    found = Field(field.file, field.line, field.path, found).fields(_METADATA, _METADATA_OTHERS)
    name = found.get("name")
    if name is None:
        raise field.wrong("it has no name")
    if not is_subdomain(name.text()) or len(name.text()) > 63:
        raise name.wrong(
            f"{name.text()!r} is not a name", hint="lower-case letters, digits, - and ., at most 63 of them"
        )
    return name, found


def _claim(spec: Field) -> None:
    """Check a claim: the volume of its name is made by the member that uses it, and is as large as its file system."""
    found = spec.fields(
        _names("accessModes resources storageClassName volumeMode"),
        _names("dataSource dataSourceRef selector volumeName volumeAttributesClassName"),
    )
    if "volumeMode" in found:
        found["volumeMode"].one_of("Filesystem")


def _template(spec: Field) -> tuple[dict[str, Field], Field]:
    """Return the metadata and the spec of a Deployment's one pod."""
    found = spec.fields(
        _names("replicas selector template strategy revisionHistoryLimit"),
        _names("minReadySeconds paused progressDeadlineSeconds"),
    )
    if "replicas" in found and found["replicas"].number(0, 1 << 31) != 1:
        raise found["replicas"].wrong("only one replica is done", hint="replicas: 1; for more, Pods of other names")
    if "strategy" in found:
        strategy = found["strategy"].fields(_names("type"), _names("rollingUpdate"))
        if "type" in strategy:
            strategy["type"].one_of("Recreate")
    if "template" not in found:
        raise spec.wrong("it has no template")
    template = found["template"].fields(_names("metadata spec"))
    metadata = template["metadata"].fields(_METADATA | _WRITTEN) if "metadata" in template else {}
    labels = {key: field.text() for key, field in metadata["labels"].object().items()} if "labels" in metadata else {}
    selector = found.get("selector")
    if selector is None:
        raise spec.wrong("it has no selector", hint="selector: matchLabels, with labels of the template")
    wanted = selector.fields(_names("matchLabels"), _names("matchExpressions"))
    for key, field in wanted["matchLabels"].object().items() if "matchLabels" in wanted else ():
        if labels.get(key) != field.text():
            raise field.wrong(f"the template has no label {key}={field.text()}")
    return metadata, template.get("spec") or found["template"]


class _Pod:
    """Compiles one pod."""

    def __init__(self, file: _File, name: Field, metadata: dict[str, Field], spec: Field) -> None:
        self.file, self.named, self.spec = file, name, spec
        self.name = name.text()
        self.found = Compiled(self.name)
        self.found.fields[("pod",)] = self.found.fields[("pod", "name")] = name
        self.namespace = metadata["namespace"].text() if "namespace" in metadata else "default"
        self.labels = self.texts(metadata.get("labels"))
        self.annotations = self.texts(metadata.get("annotations"))
        self.volumes: dict[str, tuple[Field, str, Field | None]] = {}
        self.outside: dict[tuple[int, str], set[str]] = {}  # port and protocol → addresses that it is published on
        self.of_spec = _checked(spec, _SPEC, _SPEC_OTHERS, _SPEC_DEFAULTS)
        self.security = self.of("securityContext", _POD_SECURITY, _SECURITY_OTHERS)
        self.group = self.security["fsGroup"].number(0, _MAX_ID) if "fsGroup" in self.security else -1

    def texts(self, field: Field | None) -> dict[str, Field]:
        """Return labels or annotations."""
        found = field.object() if field else {}
        for key, value in found.items():
            value.text()
            if not is_label_key(key):
                raise value.wrong(f"{key!r} is not a key of a label or an annotation")
        return found

    def of(self, name: str, known: frozenset[str], others: frozenset[str] = frozenset()) -> dict[str, Field]:
        field = self.of_spec.get(name)
        return field.fields(known, others) if field else {}

    def compiled(self) -> Compiled:
        for key, field in self.labels.items():
            if not is_label_value(field.text()):
                raise field.wrong(f"{field.text()!r} is not a value of a label")
            if key.startswith("nsrun."):
                raise field.wrong("labels that begin with nsrun. are nsrun's own")
            self.found.put(("pod",), "label", [f"{key}={field.text()}"], field)
        self.network()
        self.list_volumes()
        containers = self.of_spec["containers"].items() if "containers" in self.of_spec else []
        if not containers:
            raise self.of_spec.get("containers", self.spec).wrong("a pod has at least one container")
        first = self.of_spec["initContainers"].items() if "initContainers" in self.of_spec else []
        seen: set[str] = set()
        for init, fields in ((True, first), (False, containers)):
            for field in fields:
                name = _Container(self, field, init).compiled()
                if name in seen:
                    raise field.wrong(f"there are two containers {name!r}")
                seen.add(name)
        self.nsruns_own(seen)
        return self.found

    def nsruns_own(self, containers: set[str]) -> None:
        """Take up the annotations that say what Kubernetes has no field for."""
        for key, field in self.annotations.items():
            name = key.partition("/")[2]
            if key == CREATE_OF:
                self.take_options(("pod",), field)
            elif key.startswith(JOIN_OF) and name in containers:
                self.take_options(("members", self.member(name)), field)
            elif key.startswith("nsrun.") and not (key.startswith(NAME_OF) and name in containers):
                raise field.wrong(
                    "nsrun knows no such annotation", hint=f"{JOIN_OF}CONTAINER, {NAME_OF}CONTAINER, {CREATE_OF}"
                )

    def take_options(self, table: Keys, field: Field) -> None:
        import json

        try:
            options = json.loads(field.text())
        except (ValueError, RecursionError):
            raise field.wrong("it is not JSON") from None
        if not isinstance(options, dict):
            raise field.wrong("it is not an object of options")
        if why := no_text(json.dumps(options, ensure_ascii=False)):
            raise field.wrong(why)
        place = self.found.table(table)
        for key, value in options.items():
            if table == ("pod",) and key == "name":
                raise field.wrong("pod create has no option 'name' here", hint="metadata.name")
            if isinstance(value, list) and not all(isinstance(one, str) for one in value):
                raise field.wrong(f"{key} is not a list of strings")
            single = key in _TRACED or not isinstance(place.get(key, []), list)
            wanted = (str, type(None)) if key in _TRACED else (str, bool, int, float, type(None))
            if single and not isinstance(value, wanted):
                raise field.wrong(f"{key} is not a string")
            self.found.put(table, key, value, field)

    def member(self, container: str) -> str:
        """Return the name of a container's member."""
        field = self.annotations.get(f"{NAME_OF}{container}")
        return field.text() if field else f"{self.name}-{container}"

    def network(self) -> None:
        spec, put = self.of_spec, self.found.put
        if "hostNetwork" in spec and spec["hostNetwork"].flag():
            put(("pod",), "network", "host", spec["hostNetwork"])
        if "hostname" in spec:
            put(("pod",), "hostname", spec["hostname"].text(), spec["hostname"])
        for field in spec["hostAliases"].items() if "hostAliases" in spec else []:
            alias = field.fields(_names("ip hostnames"))
            if "ip" not in alias:
                raise field.wrong("it has no ip")
            for name in alias["hostnames"].items() if "hostnames" in alias else []:
                if not re.fullmatch(r"[^\s:]+", name.text()):
                    raise name.wrong(f"{name.said()} is not a name of a host")
                put(("pod",), "add_host", [f"{name.text()}:{alias['ip'].text()}"], name)
        servers = []
        if "dnsConfig" in spec:
            config = spec["dnsConfig"].fields(_names("nameservers"), _names("searches options"))
            servers = config["nameservers"].items() if "nameservers" in config else []
            for server in servers:
                put(("pod",), "dns", [server.text()], server)
        if "dnsPolicy" in spec:
            policy = spec["dnsPolicy"].one_of("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None")
            if policy == "None" and not servers:
                raise spec["dnsPolicy"].wrong("it needs dnsConfig.nameservers")
        for field in self.security["sysctls"].items() if "sysctls" in self.security else []:
            pair = field.fields(_names("name value"))
            if "name" not in pair or "value" not in pair:
                raise field.wrong("it has no name, or no value")
            if "=" in pair["name"].text():
                raise pair["name"].wrong(f"{pair['name'].said()} is not a name of a sysctl")
            put(("pod",), "sysctl", [f"{pair['name'].text()}={pair['value'].text()}"], field)
        for key, values in (
            ("fsGroupChangePolicy", ("Always", "OnRootMismatch")),
            ("supplementalGroupsPolicy", ("Merge",)),
        ):
            if key in self.security:
                self.security[key].one_of(*values)

    # ---- volumes -------------------------------------------------------------------------------------------------

    def list_volumes(self) -> None:
        for field in self.of_spec["volumes"].items() if "volumes" in self.of_spec else []:
            found = field.fields(_VOLUMES, _VOLUMES_OTHERS)
            name = found.pop("name", None)
            if name is None or not is_label(name.text()):
                raise (name or field).wrong("it has no name of a volume", hint="lower-case letters, digits and -")
            if name.text() in self.volumes:
                raise name.wrong(f"there are two volumes {name.text()!r}")
            if len(found) > 1:
                raise field.wrong(f"it has two sources: {' and '.join(sorted(found))}")
            kind, source = next(iter(found.items()), ("emptyDir", None))
            self.volumes[name.text()] = (name, kind, source)
        self.empties: dict[str, int] = {}
        for key in ("initContainers", "containers"):
            for container in self.of_spec[key].items() if key in self.of_spec else []:
                mounts = container.object().get("volumeMounts")
                names = {
                    field.object()["name"].text()
                    for field in (mounts.items() if mounts else [])
                    if "name" in field.object()
                }
                for one in names:
                    self.empties[one] = self.empties.get(one, 0) + 1

    def own_volume(self, name: Field, files: dict[str, tuple[bytes, int]] | None) -> str:
        """Return the name that nsrun gives to a volume of the pod's own: made anew with the pod, or for another content."""
        if files is None:
            mark, length = POD_ID, 12
        else:
            whole = hashlib.sha256(repr((sorted(files.items()), self.group)).encode()).hexdigest()
            mark, length = whole[:12], 12
        full = f"{self.name}_{name.text()}-{mark}"
        if len(full) - len(mark) + length > 63:
            raise name.wrong(
                f"the name of the pod and of the volume together are longer than {62 - length - 1} characters"
            )
        self.found.own.setdefault(full, OwnVolume(full, files, self.group, self.security.get("fsGroup", name)))
        return full

    def content(self, kind: str, source: Field) -> dict[str, tuple[bytes, int]]:
        """Return the files of a configMap or a secret volume."""
        named = "name" if kind == "configMap" else "secretName"
        fields = source.fields(_names(f"{named} items defaultMode optional"))
        if named not in fields:
            raise source.wrong(f"it has no {named}")
        mode = fields["defaultMode"].number(0, 0o777) if "defaultMode" in fields else 0o644
        what = "ConfigMap" if kind == "configMap" else "Secret"
        data = self.file.of(what, fields[named], fields.get("optional"))
        if "items" not in fields:
            return {key: (content, mode) for key, content in data.items()}
        found: dict[str, tuple[bytes, int]] = {}
        for item in fields["items"].items():
            one = item.fields(_names("key path mode"))
            if "key" not in one or "path" not in one:
                raise item.wrong("it has no key, or no path")
            key, path = one["key"].text(), one["path"].text()
            if key not in data:
                if data or not ("optional" in fields and fields["optional"].flag()):
                    raise one["key"].wrong(f"{what} {fields[named].text()!r} has no key {key!r}")
                continue
            if path.startswith("/") or not all(part and part not in (".", "..") for part in path.split("/")):
                raise one["path"].wrong("it is not a relative path")
            _check_place(path, one["path"], found)
            found[path] = (data[key], one["mode"].number(0, 0o777) if "mode" in one else mode)
        return found


def _check_place(path: str, field: Field, others: dict[str, tuple[bytes, int]]) -> None:
    """Raise UsageError for a path of a file that can't be made beside the others of a volume."""
    if len(os.fsencode(path)) > _MAX_PATH or any(len(os.fsencode(part)) > _MAX_NAME for part in path.split("/")):
        raise field.wrong(
            "the path is too long", hint=f"at most {_MAX_PATH} bytes, and {_MAX_NAME} between two slashes"
        )
    if path in others:
        raise field.wrong(f"there are two items {path!r}")
    for other in others:
        if path.startswith(f"{other}/"):
            raise field.wrong(f"{other!r} is a file, of another item")
        if other.startswith(f"{path}/"):
            raise field.wrong(f"{path!r} is a directory, for another item")


def _checked(field: Field, known: frozenset[str], others: frozenset[str], defaults: dict[str, Any]) -> dict[str, Field]:
    """Return the fields of an object; of the `others` those are left out that say what nsrun does anyway."""
    kept = {
        key: value
        for key, value in field.object().items()
        if not (key in defaults and type(value.value) is type(defaults[key]) and value.value == defaults[key])
    }
    return Field(field.file, field.line, field.path, kept).fields(known, others)


def _names_profile(option: str, name: str) -> bool:
    """Return whether this is the file of a filter, or the name of an AppArmor profile: and no word that means something else."""
    if option == "seccomp":
        return name not in ("", "unconfined", "default")
    plain = name.isprintable() and not any(c.isspace() for c in name) and 0 < len(name) <= _MAX_NAME
    return plain and re.split("[:/&]", name)[-1] != "unconfined"


class _Container:
    """Compiles one container of a pod."""

    def __init__(self, pod: _Pod, field: Field, init: bool) -> None:
        self.pod, self.field, self.init = pod, field, init
        self.fields = _checked(field, _CONTAINER, _CONTAINER_OTHERS, _CONTAINER_DEFAULTS)
        name = self.fields.get("name")
        if name is None or not is_label(name.text()):
            raise (name or field).wrong("it has no name of a container", hint="lower-case letters, digits and -")
        self.name = name.text()
        self.member = pod.member(self.name)
        if len(self.member) > 63:
            raise name.wrong(f"the name of the member, {self.member!r}, is longer than 63 characters")
        self.table: Keys = ("members", self.member)
        pod.found.fields[self.table] = field
        pod.found.table(self.table)

    def put(self, key: str, value: Any, field: Field) -> None:
        self.pod.found.put(self.table, key, value, field)

    def compiled(self) -> str:
        """Put the container's options into the document; return its name."""
        fields, spec = self.fields, self.pod.of_spec
        if self.member in self.pod.found.document["members"] and len(self.pod.found.table(self.table)):
            raise self.field.wrong(f"there are two members {self.member!r}")
        if "image" not in fields:
            raise self.field.wrong("it has no image")
        self.put("image", fields["image"].text(), fields["image"])
        if (
            "imagePullPolicy" in fields
            and fields["imagePullPolicy"].one_of("IfNotPresent", "Never", "Always") == "Always"
        ):
            raise fields["imagePullPolicy"].wrong(
                "no image is pulled by this command", hint="nsrun image pull, before; and IfNotPresent"
            )
        self.restart(spec.get("restartPolicy"))
        share = spec.get("shareProcessNamespace")
        if not (share and share.flag()):
            self.put("pid", "nested", share or self.field)
        grace = spec.get("terminationGracePeriodSeconds")
        self.put("stop_timeout", str(grace.number(0, 86400) if grace else GRACE), grace or self.field)
        env = self.environment()
        self.command(env)
        if "workingDir" in fields:
            if not fields["workingDir"].text().startswith("/"):
                raise fields["workingDir"].wrong("it is not an absolute path")
            self.put("workdir", fields["workingDir"].text(), fields["workingDir"])
        for port in fields["ports"].items() if "ports" in fields else []:
            self.port(port)
        self.limits()
        self.security()
        if "livenessProbe" in fields:
            self.probe(fields["livenessProbe"])
        for mount in fields["volumeMounts"].items() if "volumeMounts" in fields else []:
            self.mount(mount)
        return self.name

    def restart(self, policy: Field | None) -> None:
        own = self.fields.get("restartPolicy")
        if own and not (self.init and own.text() == "Always"):
            raise own.wrong("only an init container has one, Always", hint="restartPolicy of the pod")
        how = policy.one_of("Always", "OnFailure", "Never") if policy else "Always"
        if self.init and not own:
            self.put("finish", True, self.field)
            self.put("label", [f"{INIT}=true"], self.field)
        elif own or how == "Always":
            self.put("restart", "always", own or policy or self.field)
        elif how == "OnFailure" and policy:
            self.put("restart", "on-failure", policy)

    def port(self, field: Field) -> None:
        port = field.fields(_names("containerPort hostPort hostIP protocol name"))
        if "containerPort" not in port:
            raise field.wrong("it has no containerPort")
        number = port["containerPort"].number(1, 65535)
        protocol = port["protocol"].one_of("TCP", "UDP") if "protocol" in port else "TCP"
        if "hostPort" not in port:
            return
        outside = port["hostPort"].number(1, 65535)
        if "network" in self.pod.found.document["pod"]:
            if outside != number:
                raise port["hostPort"].wrong("with hostNetwork it is the same as containerPort")
            return
        address = port["hostIP"].text() if "hostIP" in port else ""
        if address and not is_address(address):
            raise port["hostIP"].wrong(f"{address!r} is not an address")
        address = f"[{address}]:" if ":" in address else f"{address}:" if address else ""
        suffix = "" if protocol == "TCP" else "/udp"
        others = self.pod.outside.setdefault((outside, protocol), set())
        if others and ("" in {address, *others} or address in others):
            raise port["hostPort"].wrong(f"port {outside} is published twice")
        others.add(address)
        self.pod.found.put(("pod",), "publish", [f"{address}{outside}:{number}{suffix}"], field)

    # ---- environment and command ---------------------------------------------------------------------------------

    def environment(self) -> dict[str, str]:
        """Set the variables, and return them: for $(NAME) in the command."""
        env: dict[str, str] = {}
        came: dict[str, Field] = {}
        for field in self.fields["envFrom"].items() if "envFrom" in self.fields else []:
            source = field.fields(_names("prefix configMapRef secretRef"))
            prefix = source["prefix"].text() if "prefix" in source else ""
            if "=" in prefix:
                raise source["prefix"].wrong("it does not begin a name of a variable")
            source.pop("prefix", None)
            if len(source) != 1:
                raise field.wrong("it has one source: configMapRef or secretRef")
            kind, reference = next(iter(source.items()))
            named = reference.fields(_names("name optional"))
            if "name" not in named:
                raise reference.wrong("it has no name")
            data = self.pod.file.of(
                "ConfigMap" if kind == "configMapRef" else "Secret", named["name"], named.get("optional")
            )
            for key, content in data.items():
                env[prefix + key], came[prefix + key] = self.plain(content, reference), field
        for field in self.fields["env"].items() if "env" in self.fields else []:
            variable = field.fields(_names("name value valueFrom"))
            name = variable["name"].text() if "name" in variable else ""
            if not name or "=" in name:
                raise variable.get("name", field).wrong("it has no name of a variable")
            if "valueFrom" in variable:
                if "value" in variable:
                    raise field.wrong("it has both a value and valueFrom")
                value = self.value_from(variable["valueFrom"])
                if value is None:
                    continue
            else:
                value = expand(variable["value"].text(), env) if "value" in variable else ""
            env.pop(name, None)
            env[name], came[name] = value, field
        for name, value in env.items():
            self.put("env", [f"{name}={value}"], came[name])
        return env

    def plain(self, content: bytes, field: Field) -> str:
        try:
            text = content.decode()
        except UnicodeDecodeError:
            raise field.wrong("its content is not text", hint="a volume takes any bytes") from None
        if "\0" in text:
            raise field.wrong("its content has a NUL byte")
        if why := no_text(text):
            raise field.wrong(f"its content is not text: {why}")
        return text

    def value_from(self, field: Field) -> str | None:
        source = field.fields(_names("configMapKeyRef secretKeyRef fieldRef"), _names("resourceFieldRef fileKeyRef"))
        if len(source) != 1:
            raise field.wrong("it has one source: configMapKeyRef, secretKeyRef or fieldRef")
        kind, reference = next(iter(source.items()))
        if kind == "fieldRef":
            return self.field_of_pod(reference)
        named = reference.fields(_names("name key optional"))
        if "name" not in named or "key" not in named:
            raise reference.wrong("it has no name, or no key")
        what = "ConfigMap" if kind == "configMapKeyRef" else "Secret"
        data = self.pod.file.of(what, named["name"], named.get("optional"))
        key = named["key"].text()
        if key not in data:
            if "optional" in named and named["optional"].flag():
                return None
            raise named["key"].wrong(f"{what} {named['name'].text()!r} has no key {key!r}")
        return self.plain(data[key], named["key"])

    def field_of_pod(self, reference: Field) -> str:
        found = reference.fields(_names("fieldPath apiVersion"))
        if "fieldPath" not in found:
            raise reference.wrong("it has no fieldPath")
        path = found["fieldPath"].text()
        if path == "metadata.name":
            return self.pod.name
        if path == "metadata.namespace":
            return self.pod.namespace
        if path == "status.podIP":
            self.pod.found.wants_address.setdefault(self.member, found["fieldPath"])
            return POD_IP
        for start, texts in (("metadata.labels['", self.pod.labels), ("metadata.annotations['", self.pod.annotations)):
            if path.startswith(start) and path.endswith("']"):
                field = texts.get(path[len(start) : -2])
                return field.text() if field else ""
        raise found["fieldPath"].wrong(
            f"{path!r} is not done", hint="metadata.name, metadata.namespace, metadata.labels['KEY'], status.podIP"
        )

    def command(self, env: dict[str, str]) -> None:
        """Set entrypoint and command: Kubernetes' command replaces an image's entrypoint and its command, args the latter."""
        words = {
            key: [expand(word.text(), env) for word in self.fields[key].items()]
            for key in ("command", "args")
            if key in self.fields
        }
        command = words.get("command") or []
        if command and not command[0]:
            raise self.fields["command"].items()[0].wrong("it is empty, and names no program")
        if command:
            self.put("entrypoint", command[0], self.fields["command"])
        if rest := [*command[1:], *(words.get("args") or [])]:
            table = self.pod.found.table(self.table)
            table["command"] = rest
            self.pod.found.fields[(*self.table, "command")] = self.fields["args" if "args" in words else "command"]

    # ---- limits and security -------------------------------------------------------------------------------------

    def limits(self) -> None:
        resources = (
            self.fields["resources"].fields(_names("limits requests"), _names("claims"))
            if "resources" in self.fields
            else {}
        )
        for kind, field in resources.items():
            for name, amount in field.object().items():
                if name not in ("memory", "cpu"):
                    raise amount.wrong("nsrun has no limit for this", hint="memory and cpu")
                found = quantity(amount, 0 if name == "memory" else 3)
                if kind == "requests" or not found:
                    continue  # a request is for a scheduler, and 0 means no limit
                if name == "memory":
                    self.put("memory", str(found), amount)
                else:
                    self.put("cpus", f"{found // 1000}.{found % 1000:03}".rstrip("0").rstrip("."), amount)

    def security(self) -> None:
        of_pod = self.pod.security
        field = self.fields.get("securityContext")
        own = _checked(field, _SECURITY, _SECURITY_OTHERS, {"procMount": "Default"}) if field else {}
        both = {**{key: value for key, value in of_pod.items() if key in _SECURITY}, **own}
        if "privileged" in own and own["privileged"].flag():
            raise own["privileged"].wrong(
                "a privileged container is not done", hint="capabilities.add names what is needed"
            )
        user = both.get("runAsUser")
        if user:
            group = f":{both['runAsGroup'].number(0, _MAX_ID)}" if "runAsGroup" in both else ""
            self.put("user", f"{user.number(0, _MAX_ID)}{group}", user)
        elif "runAsGroup" in both:
            raise both["runAsGroup"].wrong("it needs runAsUser")
        if "runAsNonRoot" in both and both["runAsNonRoot"].flag() and not (user and user.value):
            raise both["runAsNonRoot"].wrong("it needs a runAsUser that is not 0")
        groups = of_pod["supplementalGroups"].items() if "supplementalGroups" in of_pod else []
        for one in [*groups, *([of_pod["fsGroup"]] if "fsGroup" in of_pod else [])]:
            self.put("group_add", [str(one.number(0, _MAX_ID))], one)
        if "capabilities" in own:
            caps = own["capabilities"].fields(_names("add drop"))
            for key, one in caps.items():
                for cap in one.items():
                    self.put(f"cap_{key}", [cap.text()], cap)
        if "readOnlyRootFilesystem" in own and own["readOnlyRootFilesystem"].flag():
            self.put("read_only", True, own["readOnlyRootFilesystem"])
        if "allowPrivilegeEscalation" in own and not own["allowPrivilegeEscalation"].flag():
            self.put("security_opt", ["no-new-privileges"], own["allowPrivilegeEscalation"])
        self.profiles(both)

    def profiles(self, both: dict[str, Field]) -> None:
        for key, option, defaults in (
            ("seccompProfile", "seccomp", ("RuntimeDefault",)),
            ("appArmorProfile", "apparmor", ()),
        ):
            if key not in both:
                continue
            found = both[key].fields(_names("type localhostProfile"))
            kind = found["type"].one_of(*defaults, "Unconfined", "Localhost") if "type" in found else ""
            if not kind or (kind == "Localhost") != ("localhostProfile" in found):
                raise both[key].wrong("it has a type, and a localhostProfile if that is Localhost")
            if kind == "Localhost":
                name = found["localhostProfile"].text()
                if not _names_profile(option, name):
                    raise found["localhostProfile"].wrong(
                        f"{name!r} names no profile", hint="type: Unconfined does without one"
                    )
                self.put("security_opt", [f"{option}={name}"], found["localhostProfile"])
            elif kind == "Unconfined":
                self.put("security_opt", [f"{option}=unconfined"], both[key])

    def probe(self, field: Field) -> None:
        """Have the member's health checked.  What is unhealthy is shown, and not restarted."""
        probe = field.fields(_PROBE, _PROBE_OTHERS)
        kinds = [kind for kind in ("exec", "httpGet", "tcpSocket") if kind in probe]
        if len(kinds) != 1:
            raise field.wrong("it has one of exec, httpGet and tcpSocket")
        if "successThreshold" in probe and probe["successThreshold"].number(1, 1 << 20) != 1:
            raise probe["successThreshold"].wrong("one success makes it healthy")
        {"exec": self.probe_command, "httpGet": self.probe_http, "tcpSocket": self.probe_tcp}[kinds[0]](probe[kinds[0]])
        for key, option, default, unit in (
            ("periodSeconds", "interval", 10, "s"),
            ("timeoutSeconds", "timeout", 1, "s"),
            ("failureThreshold", "retries", 3, ""),
            ("initialDelaySeconds", "start_period", 0, "s"),
        ):
            low = 0 if key == "initialDelaySeconds" else 1
            number = probe[key].number(low, 86400) if key in probe else default
            self.put(f"health_{option}", f"{number}{unit}", probe.get(key, field))

    def probe_command(self, field: Field) -> None:
        import json

        command = field.fields(_names("command")).get("command")
        if command is None or not command.items():
            raise field.wrong("it has no command")
        words = [word.text() for word in command.items()]
        if not words[0]:
            raise command.items()[0].wrong("it is empty, and names no program")
        self.put("health_cmd", json.dumps(["CMD", *words]), command)

    def probe_http(self, field: Field) -> None:
        found = field.fields(_names("host port path scheme httpHeaders"))
        if "scheme" in found:
            found["scheme"].one_of("HTTP")
        path = found["path"].text() if "path" in found else "/"
        url = f"http://{self.probe_place(field, found)}/{path.removeprefix('/')}"
        headers = []
        for header in found["httpHeaders"].items() if "httpHeaders" in found else []:
            pair = header.fields(_names("name value"))
            if "name" not in pair or "value" not in pair:
                raise header.wrong("it has no name, or no value")
            if ":" in pair["name"].text():
                raise pair["name"].wrong(f"{pair['name'].said()} is not a name of a header")
            headers.append(f"{pair['name'].text()}: {pair['value'].text()}")
        try:
            check_connect({"health_http": url, "health_header": headers})
        except UsageError as error:
            raise field.wrong(error.message, hint=error.hint) from None
        self.put("health_http", url, field)
        if headers:
            self.put("health_header", headers, found["httpHeaders"])

    def probe_tcp(self, field: Field) -> None:
        self.put("health_tcp", self.probe_place(field, field.fields(_names("host port"))).removeprefix(":"), field)

    def probe_place(self, field: Field, found: dict[str, Field]) -> str:
        """Return HOST:PORT of a probe, without HOST for the pod's own address; a port may have the name of one of the container's."""
        if "port" not in found:
            raise field.wrong("it has no port")
        port = found["port"]
        if isinstance(port.value, str):
            ports = [one.object() for one in (self.fields["ports"].items() if "ports" in self.fields else [])]
            named = [one["containerPort"] for one in ports if "name" in one and one["name"].value == port.value]
            if not named:
                raise port.wrong(f"the container has no port {port.said()}")
            port = named[0]
        number = port.number(1, 65535)
        host = found["host"].text() if "host" in found else ""
        if host and host != "localhost" and not is_address(host):
            raise found["host"].wrong(
                f"{found['host'].said()} is not an address", hint="leave it out for the pod's own"
            )
        return f"[{host}]:{number}" if ":" in host else f"{host}:{number}"

    # ---- mounts --------------------------------------------------------------------------------------------------

    def mount(self, field: Field) -> None:
        found = _checked(
            field,
            _names("name mountPath readOnly subPath"),
            _names("mountPropagation subPathExpr recursiveReadOnly"),
            {"mountPropagation": "None", "recursiveReadOnly": "Disabled"},
        )
        if "name" not in found or "mountPath" not in found:
            raise field.wrong("it has no name, or no mountPath")
        target = found["mountPath"].text()
        if not target.startswith("/") or ":" in target or "," in target:
            raise found["mountPath"].wrong("it is not an absolute path without : and ,")
        if found["name"].text() not in self.pod.volumes:
            raise found["name"].wrong(f"the pod has no volume {found['name'].text()!r}")
        name, kind, source = self.pod.volumes[found["name"].text()]
        self.check_target(found["mountPath"], kind, source, "subPath" in found)
        read_only = "readOnly" in found and found["readOnly"].flag()
        below = found.get("subPath")
        part = self.subpath(below) if below and kind not in ("configMap", "secret") else ""
        if kind == "emptyDir":
            self.empty(name, source, target, read_only, field, part)
        elif kind == "hostPath" and source:
            self.of_host(source, target, read_only, field, part)
        elif kind == "persistentVolumeClaim" and source:
            claim = source.fields(_names("claimName readOnly"))
            if "claimName" not in claim:
                raise source.wrong("it has no claimName")
            if self.pod.group >= 0:
                raise self.pod.security["fsGroup"].wrong(
                    "what is in a volume of a claim keeps its groups",
                    hint="supplementalGroups, and a chgrp in an init container",
                )
            if not is_subdomain(claim["claimName"].text()) or len(claim["claimName"].text()) > 63:
                raise claim["claimName"].wrong(
                    f"{claim['claimName'].said()} is not a name of a claim",
                    hint="lower-case letters, digits, - and ., at most 63 of them; hostPath takes a path",
                )
            read_only = read_only or ("readOnly" in claim and claim["readOnly"].flag())
            self.bind(claim["claimName"].text(), target, read_only, field, part)
        elif source:
            files = self.pod.content(kind, source)
            volume = self.pod.own_volume(name, files)
            if below is None:
                self.bind(volume, target, True, field)
            elif ":" in below.text():
                raise below.wrong("it has a :", hint="a path of items without one")
            elif below.text() in files:
                self.bind(f"{LIB}/volumes/{volume}/{below.text()}", target, True, field)
            else:
                raise below.wrong(f"the volume has no file {below.text()!r}")

    def subpath(self, field: Field) -> str:
        """Return the option of a volume that mounts a part of it; "" for an empty path, which is the whole."""
        path = field.text()
        if path.startswith("/") or ".." in path.split("/") or ":" in path or "," in path:
            raise field.wrong("it is not a relative path without .., : and ,")
        return f"{SUBPATH}{path}" if path else ""

    def check_target(self, field: Field, kind: str, source: Field | None, single: bool) -> None:
        """Raise UsageError for a path at which nothing can be mounted, or only something else than this volume.

        `single`: it is a file of the volume that is mounted.
        """
        try:
            target = parse_target(field.text(), "-v")
        except UsageError as error:
            raise field.wrong(error.message.removeprefix("-v: "), hint=error.hint) from None
        if any(len(os.fsencode(part)) > _MAX_NAME for part in target.split("/")):
            raise field.wrong(f"a name in it is longer than {_MAX_NAME} bytes")
        if target.startswith(tuple(f"{file}/" for file in _FILES_OF_POD)):
            raise field.wrong(f"{os.path.dirname(target)} is a file")
        if kind == "hostPath":
            wanted = (source.object().get("type") if source else None) or field
            directory = wanted.value in ("Directory", "DirectoryOrCreate")
        else:
            directory = not single
        if (directory and target in _FILES_OF_POD) or (kind != "hostPath" and target == _DEVICES):
            raise field.wrong(
                f"a directory can't be mounted at {target}" if directory else f"no file can be mounted at {target}"
            )

    def bind(self, source: str, target: str, read_only: bool, field: Field, options: str = "") -> None:
        words = [
            source,
            target,
            *([",".join(filter(None, ("ro" if read_only else "", options)))] if read_only or options else []),
        ]
        self.put("volume", [":".join(words)], field)

    def empty(self, name: Field, source: Field | None, target: str, read_only: bool, field: Field, part: str) -> None:
        fields = source.fields(_names("medium sizeLimit")) if source else {}
        medium = fields["medium"].one_of("", "Memory") if "medium" in fields else ""
        size = quantity(fields["sizeLimit"], 0) if "sizeLimit" in fields else 0
        if not medium:
            if size:
                raise fields["sizeLimit"].wrong("only a volume in memory has a limit", hint="medium: Memory")
            self.bind(self.pod.own_volume(name, None), target, read_only, field, part or "nocopy")
        elif part:
            raise fields["medium"].wrong("of memory only the whole is mounted", hint="leave medium out")
        elif target == "/dev/shm":  # the pod's own, which all of its members share
            self.pod.found.table(("pod",))["shm_size"] = str(size) if size else "64m"
            self.pod.found.fields[("pod", "shm_size")] = field
        elif self.pod.empties.get(name.text(), 0) > 1:
            raise fields["medium"].wrong(
                "memory that several containers share is not done, but at /dev/shm",
                hint="leave medium out, or mount it at /dev/shm",
            )
        else:
            mode = ["mode=1777", "exec", *([f"size={size}"] if size else []), *(["ro"] if read_only else [])]
            self.put("tmpfs", [f"{target}:{','.join(mode)}"], field)

    def of_host(self, source: Field, target: str, read_only: bool, field: Field, part: str) -> None:
        fields = source.fields(_names("path type"))
        if "path" not in fields:
            raise source.wrong("it has no path")
        path = fields["path"].text()
        if not path.startswith("/") or ".." in path.split("/") or ":" in path:
            raise fields["path"].wrong("it is not an absolute path without .. and :")
        kinds = ("", "DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice")
        kind = fields["type"].one_of(*kinds) if "type" in fields else ""
        needed = kind or ("File" if parse_target(target, "-v") in _FILES_OF_POD else "")
        self.pod.found.hosts.setdefault(self.member, []).append((path, needed, fields["path"]))
        if part and kind not in ("", "Directory", "DirectoryOrCreate"):
            raise fields["type"].wrong("only a directory has a subPath")
        if kind in ("CharDevice", "BlockDevice"):
            self.put("device", [f"{path}:{target}"], field)
        else:
            self.bind(path, target, read_only, field, part)
