# SPDX-License-Identifier: Apache-2.0
"""`nsrun kube`: what YAML means, which fields are done and how, what is refused and where, and the way back."""

import json
import re
import shutil
import subprocess

import pytest
from conftest import CACHE, HERE, need, wait_for

from nsrun.cli import podfile
from nsrun.errors import BadInput, UsageError
from nsrun.kube.document import Field, load, scalar
from nsrun.kube.fields import POD_ID, POD_IP, expand, is_label, is_label_key, quantity

yaml = pytest.importorskip("yaml", reason="PyYAML is missing; to enable: make build")
DEMO = HERE.parent / "rootfs/demo.yaml"


def plain(field: Field):
    value = field.value
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list) else value


def read(text: str):
    return [plain(field) for field in load(text.encode(), "pod.yaml")]


# ---- YAML --------------------------------------------------------------------------------------------------------

WORDS = {
    **dict.fromkeys(("y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"), True),
    **dict.fromkeys(("n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"), False),
    **dict.fromkeys(("yEs", "oN", "tRUE", "yess"), None),
    "~": ...,
    "null": ...,
    "Null": ...,
    "nULL": None,
    "010": 8,
    "0o10": 8,
    "08": 8,
    "0x1F": 31,
    "0b11": 3,
    "-0b11": -3,
    "0b12": None,
    "1_000": 1000,
    "1__0": 10,
    "_1": None,
    "0x_1": 1,
    "+5": 5,
    "-0": 0,
    "12:30": None,
    "1:2:3": None,
    "2001-01-01": None,
    "1e3": 1000,
    "1.": 1,
    ".5": 0.5,
    "+.5": 0.5,
    ".5e": None,
    ".": None,
    "-": None,
    "1.5e-3": 0.0015,
    "1e400": None,
    "1.2.3": None,
    "1Gi": None,
    "9223372036854775807": (1 << 63) - 1,
    "18446744073709551615": (1 << 64) - 1,
    "99999999999999999999999": 1e23,
    "²": None,
    "٣": None,
}


@pytest.mark.parametrize("word", WORDS)
def test_what_a_plain_word_is(word):
    wanted = (
        {None: word, ...: None}.get(WORDS[word], WORDS[word]) if not isinstance(WORDS[word], float) else WORDS[word]
    )
    found = scalar(word)
    assert found == wanted and isinstance(found, bool) == isinstance(wanted, bool), (word, found)


def test_numbers_that_json_does_not_have():
    for word in (".inf", "-.Inf", "+.INF", ".nan", ".NaN"):
        with pytest.raises(UsageError, match=r"pod.yaml:2: .* no number of JSON"):
            read(f"# x\na: {word}")


def test_kubectl_reads_the_same(tmp_path):
    """The table above is what kubectl's own reader says."""
    need(shutil.which("kubectl"), "kubectl is missing", "apt-get install kubernetes-client")
    words = [word for word in WORDS if word != "-" and len(word) < 19]
    items = [f"'{word}'" for word in ("on", "010")] + words + ["{yes: a, 010: b, 1.5: c, x: {<<: {p: 1, q: 2}, q: 3}}"]
    text = "apiVersion: example.com/v1\nkind: Foo\nmetadata: {name: x}\nspec:\n" + "".join(
        f"- {item}\n" for item in items
    )
    (tmp_path / "x.yaml").write_text(text)
    command = ["kubectl", "label", "--local", "-f", tmp_path / "x.yaml", "-o", "json", "a=b"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin:/usr/local/bin"})  # fmt: skip
    assert json.loads(done.stdout)["spec"] == read(text)[0]["spec"]


def test_quotes_tags_anchors_and_documents():
    assert read("a: 'yes'\nb: \"010\"\nc: |\n  x\n  y\nd: >-\n  x\n  y\n") == [
        {"a": "yes", "b": "010", "c": "x\ny\n", "d": "x y"}
    ]
    assert read("a: &x [1, on]\nb: *x\n") == [{"a": [1, True], "b": [1, True]}]
    assert read("a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}\nc: {<<: [{p: 5}, *x]}\n")[0] == {
        "a": {"p": 1, "q": 2},
        "b": {"p": 1, "q": 3},
        "c": {"p": 5, "q": 2},
    }
    assert read("---\n# nothing\n---\na: 1\n---\nb: 2\n...\n") == [{"a": 1}, {"b": 2}]
    assert read('{"a": [1, "x", null], "on": {"b": true}}') == [{"a": [1, "x", None], "on": {"b": True}}]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: [\n", r"pod.yaml:3: "),
        ("a: 1\n\tb: 2\n", r"pod.yaml:2: "),
        ("a: 1\na: 2\n", r"pod.yaml:2: a: it is there twice"),
        ("x:\n  - a: 1\n    'a': 2\n", r"pod.yaml:3: x\[0\].a: it is there twice"),
        ("a: *b\n", r"pod.yaml:1: .*undefined alias"),
        ("a: &x [*x]\n", r"pod.yaml:1: .*part of"),
        ("a: !!binary aGk=\n", r"pod.yaml:1: the tag"),
        ("a: !!python/object:os.system {}\n", r"pod.yaml:1: the tag"),
        ("? [a]\n: 1\n", r"pod.yaml:1: a key is a string"),
        ("~: 1\n", r"pod.yaml:1: a key is a string"),
        ("[" * 3000, r"pod.yaml: it is nested too deeply"),
        ("a: \ufdd0id\ufdd1\n", r"pod.yaml:1: a: U\+FDD0"),
        ("&a [&b [&c [1,1,1,1,1,1,1,1,1,1],*c,*c,*c,*c,*c,*c,*c,*c,*c],"
         "*b,*b,*b,*b,*b,*b,*b,*b,*b,[*b,*b,*b,*b,*b,*b,*b,*b,*b],[*b,*b,*b,*b,*b,*b,*b]]".replace("1,1,1", "1," * 2000 + "1"), "more than"),
    ],
)  # fmt: skip
def test_what_is_no_yaml_for_us(text, said):
    with pytest.raises(UsageError, match=said):
        read(text)


def test_bytes():
    with pytest.raises(UsageError, match=r"pod.yaml:2: it is not UTF-8"):
        load(b"a: b\n\xff", "pod.yaml")


def test_without_pyyaml(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(BadInput, match="PyYAML"):
        load(b"a: 1", "pod.yaml")


# ---- single fields -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "unit", "wanted"),
    [
        ("512Mi", 0, 512 << 20), ("1G", 0, 10**9), ("1Gi", 0, 1 << 30), (128, 0, 128), ("1.5Ki", 0, 1536), ("1e3", 0, 1000),
        ("0.1", 0, 1), ("100m", 0, 1), ("500m", 3, 500), ("0.5", 3, 500), (2, 3, 2000), (0.25, 3, 250), ("1", 3, 1000),
        ("100u", 3, 1), ("1k", 0, 1000), ("2E2", 0, 200), ("1E", 0, 10**18), ("+5", 0, 5), (".5", 3, 500), ("5.", 0, 5),
    ],
)  # fmt: skip
def test_quantities(text, unit, wanted):
    assert quantity(Field("f", 1, "p", text), unit) == wanted


@pytest.mark.parametrize("text", ["", "x", "5 Mi", "5mi", "-1", "1e", "1KiB", "0x5", "1e100", True, [], "٣"])
def test_what_is_no_quantity(text):
    with pytest.raises(UsageError, match="f:1: p: "):
        quantity(Field("f", 1, "p", text), 0)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("$(A)", "1"), ("x$(A)$(B)y", "x12y"), ("$(C)", "$(C)"), ("$$(A)", "$(A)"), ("$$$(A)", "$1"), ("$A", "$A"), ("$(A", "$(A"), ("$$", "$"), ("$", "$"), ("$($(A))", "$($(A))")],
)  # fmt: skip
def test_references_to_variables(text, wanted):
    assert expand(text, {"A": "1", "B": "2"}) == wanted


def test_names():
    assert all(map(is_label, ("a", "a-1", "0")))
    assert not any(map(is_label, ("", "-a", "a-", "A", "a.b", "a_b", "a" * 64, "a\n")))
    assert all(map(is_label_key, ("a", "a.b/c", "A_b"))) and not any(map(is_label_key, ("", "/a", "a/", "A_/b", "a b")))


# ---- pods ------------------------------------------------------------------------------------------------------------

HEAD = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\nspec:\n"


def compiled(spec: str, more: str = "") -> podfile.PodFile:
    (pod,) = podfile.parse_yaml(f"{HEAD}{indent(spec, 2)}{more}".encode(), "pod.yaml")
    return pod


def indent(text: str, by: int) -> str:
    return "".join(f"{' ' * by}{line}\n" for line in text.strip("\n").split("\n"))


def container(text: str = "", spec: str = "", more: str = "") -> tuple[dict, list[str], podfile.PodFile]:
    """The options and the command of one container, but for those of every one."""
    pod = compiled(f"{spec}\ncontainers:\n- name: c\n  image: box\n{indent(text, 2)}", more)
    (member,) = pod.members
    assert member.name == "p-c"
    common = {"image": "box", "restart": "always", "pid": "nested", "stop_timeout": "30"}
    return {key: value for key, value in member.options.items() if common.get(key) != value}, member.command, pod


MAPS = """---
apiVersion: v1
kind: ConfigMap
metadata: {name: m}
data: {A: x, B: "2"}
binaryData: {C: eHl6}
---
apiVersion: v1
kind: Secret
metadata: {name: s}
type: Opaque
data: {K: dg==}
stringData: {L: w}
"""


@pytest.mark.parametrize(
    ("text", "options", "command"),
    [
        ("command: [a, b]\nargs: [c]", {"entrypoint": "a"}, ["b", "c"]),
        ("command: [a]", {"entrypoint": "a"}, []),
        ("args: [a, b]", {}, ["a", "b"]),
        ("command: []", {}, []),
        ("env: [{name: A, value: x}, {name: B, value: $(A)-$(C)}]\nargs: [$(B), $$(A)]", {"env": ["A=x", "B=x-$(C)"]}, ["x-$(C)", "$(A)"]),
        ("env: [{name: A}]", {"env": ["A="]}, []),
        ("env: [{name: A, value: x}, {name: B, value: b}, {name: A, value: $(A)z}]", {"env": ["B=b", "A=xz"]}, []),
        ("env: [{name: A, valueFrom: {configMapKeyRef: {name: m, key: B}}}]", {"env": ["A=2"]}, []),
        ("env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: K}}}]", {"env": ["A=v"]}, []),
        ("env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: zip, optional: true}}}]", {}, []),
        ("env: [{name: A, valueFrom: {configMapKeyRef: {name: zip, key: B, optional: true}}}]", {}, []),
        ("envFrom: [{configMapRef: {name: m}}, {prefix: S_, secretRef: {name: s}}]\nenv: [{name: A, value: a}]", {"env": ["B=2", "C=xyz", "S_K=v", "S_L=w", "A=a"]}, []),
        ("envFrom: [{secretRef: {name: zip, optional: true}}]", {}, []),
        ("env: [{name: A, valueFrom: {fieldRef: {fieldPath: metadata.name}}}, {name: B, valueFrom: {fieldRef: {apiVersion: v1, fieldPath: metadata.namespace}}}]", {"env": ["A=p", "B=default"]}, []),
        ("env: [{name: A, valueFrom: {fieldRef: {fieldPath: status.podIP}}}, {name: B, value: http://$(A)/}]", {"env": [f"A={POD_IP}", f"B=http://{POD_IP}/"]}, []),
        ("workingDir: /srv", {"workdir": "/srv"}, []),
        ("livenessProbe: {exec: {command: [a, 'b c']}, periodSeconds: 5}", {"health_cmd": '["CMD", "a", "b c"]', "health_interval": "5s", "health_timeout": "1s", "health_retries": "3", "health_start_period": "0s"}, []),
        ("livenessProbe: {tcpSocket: {port: 80}}", {"health_tcp": "80", "health_interval": "10s", "health_timeout": "1s", "health_retries": "3", "health_start_period": "0s"}, []),
        ("ports: [{name: web, containerPort: 8080}]\nlivenessProbe: {tcpSocket: {port: web, host: '::1'}}", {"health_tcp": "[::1]:8080", "health_interval": "10s", "health_timeout": "1s", "health_retries": "3", "health_start_period": "0s"}, []),
        ("livenessProbe: {httpGet: {port: 80, scheme: HTTP}}", {"health_http": "http://:80/", "health_interval": "10s", "health_timeout": "1s", "health_retries": "3", "health_start_period": "0s"}, []),
        ("livenessProbe: {httpGet: {port: 80, host: 127.0.0.1, path: 'x?y', httpHeaders: [{name: A, value: b}]}}", {"health_http": "http://127.0.0.1:80/x?y", "health_header": ["A: b"], "health_interval": "10s", "health_timeout": "1s", "health_retries": "3", "health_start_period": "0s"}, []),
        *((f"livenessProbe: {{exec: {{command: {words}}}}}", {"health_cmd": f'["CMD", {", ".join(map(json.dumps, words))}]', "health_interval": "10s", "health_timeout": "1s", "health_retries": "3", "health_start_period": "0s"}, [])
          for words in (["NONE"], ["CMD", "true"], ["CMD-SHELL", "a", "b"])),
        ("imagePullPolicy: Never", {}, []),
        ("terminationMessagePath: /dev/termination-log\nterminationMessagePolicy: File\nstdin: false\ntty: false\nlifecycle: {}\nreadinessProbe: null", {}, []),
        ("resources: {limits: {memory: 64Mi, cpu: 250m}, requests: {memory: 1Mi, cpu: 0.1}}", {"memory": str(64 << 20), "cpus": "0.25"}, []),
        ("resources: {limits: {cpu: 2}}", {"cpus": "2"}, []),
        ("resources: {limits: {cpu: 0, memory: 0}}", {}, []),
        ("securityContext: {runAsUser: 5}", {"user": "5"}, []),
        ("securityContext: {runAsUser: 5, runAsGroup: 6, runAsNonRoot: true}", {"user": "5:6"}, []),
        ("securityContext: {capabilities: {add: [NET_ADMIN], drop: [ALL]}}", {"cap_add": ["NET_ADMIN"], "cap_drop": ["ALL"]}, []),
        ("securityContext: {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, privileged: false, procMount: Default}", {"read_only": True, "security_opt": ["no-new-privileges"]}, []),
        ("securityContext: {readOnlyRootFilesystem: no, allowPrivilegeEscalation: yes}", {}, []),
        ("securityContext: {seccompProfile: {type: Unconfined}}", {"security_opt": ["seccomp=unconfined"]}, []),
        ("securityContext: {seccompProfile: {type: RuntimeDefault}}", {}, []),
        ("securityContext: {seccompProfile: {type: Localhost, localhostProfile: f.json}, appArmorProfile: {type: Localhost, localhostProfile: me}}", {"security_opt": ["seccomp=f.json", "apparmor=me"]}, []),
    ],
)  # fmt: skip
def test_what_a_container_says(text, options, command):
    found = container(text, more=MAPS)
    assert found[:2] == (options, command)


@pytest.mark.parametrize(
    ("spec", "pod", "member"),
    [
        ("shareProcessNamespace: true", {}, {"pid": None}),
        ("shareProcessNamespace: false", {}, {}),
        ("restartPolicy: Always", {}, {}),
        ("restartPolicy: OnFailure", {}, {"restart": "on-failure"}),
        ("restartPolicy: Never", {}, {"restart": None}),
        ("terminationGracePeriodSeconds: 5", {}, {"stop_timeout": "5"}),
        ("hostname: h", {"hostname": "h"}, {}),
        ("hostNetwork: true", {"network": "host"}, {}),
        ("hostAliases: [{ip: 1.2.3.4, hostnames: [a, b]}]", {"add_host": ["a:1.2.3.4", "b:1.2.3.4"]}, {}),
        ("dnsPolicy: None\ndnsConfig: {nameservers: [9.9.9.9]}", {"dns": ["9.9.9.9"]}, {}),
        ("dnsPolicy: ClusterFirst\nschedulerName: default-scheduler\nserviceAccountName: default\nenableServiceLinks: true\npriority: 0\ntolerations: []\nnodeSelector: {}\nhostPID: false\nruntimeClassName: nsrun", {}, {}),
        ("securityContext: {sysctls: [{name: net.ipv4.ip_forward, value: '1'}]}", {"sysctl": ["net.ipv4.ip_forward=1"]}, {}),
        ("securityContext: {runAsUser: 7, runAsGroup: 8, supplementalGroups: [9, 010], fsGroup: 11}", {}, {"user": "7:8", "group_add": ["9", "8", "11"]}),
        ("securityContext: {seccompProfile: {type: Unconfined}}", {}, {"security_opt": ["seccomp=unconfined"]}),
    ],
)  # fmt: skip
def test_what_a_pod_says(spec, pod, member):
    found = compiled(f"{spec}\ncontainers:\n- {{name: c, image: box}}")
    assert found.options == pod
    common = {"image": "box", "restart": "always", "pid": "nested", "stop_timeout": "30"}
    assert found.members[0].options == {key: value for key, value in {**common, **member}.items() if value is not None}


@pytest.mark.parametrize(
    ("port", "wanted"),
    [
        ("{containerPort: 80}", None), ("{containerPort: 80, hostPort: 8080}", "8080:80"), ("{containerPort: 53, hostPort: 53, protocol: UDP, name: dns}", "53:53/udp"),
        ("{containerPort: 80, hostPort: 80, hostIP: 127.0.0.1}", "127.0.0.1:80:80"), ("{containerPort: 80, hostPort: 80, hostIP: '::1'}", "[::1]:80:80"),
    ],
)  # fmt: skip
def test_ports(port, wanted):
    assert container(f"ports: [{port}]")[2].options == ({"publish": [wanted]} if wanted else {})


CACHE_VOLUME = f"p_v-{POD_ID}"


@pytest.mark.parametrize(
    ("volume", "mount", "option", "value"),
    [
        ("emptyDir: {}", "mountPath: /d", "volume", f"{CACHE_VOLUME}:/d:nocopy"),
        ("emptyDir: {}", "mountPath: /d\n  subPath: a/b", "volume", f"{CACHE_VOLUME}:/d:subpath=a/b"),
        ("hostPath: {path: /usr}", "mountPath: /d\n  subPath: bin\n  readOnly: true", "volume", "/usr:/d:ro,subpath=bin"),
        ("persistentVolumeClaim: {claimName: kept}", "mountPath: /d\n  subPath: a", "volume", "kept:/d:subpath=a"),
        ("emptyDir: null", "mountPath: /d\n  readOnly: true", "volume", f"{CACHE_VOLUME}:/d:ro,nocopy"),
        ("emptyDir: {medium: Memory, sizeLimit: 1Mi}", "mountPath: /d", "tmpfs", "/d:mode=1777,exec,size=1048576"),
        ("emptyDir: {medium: Memory}", "mountPath: /d", "tmpfs", "/d:mode=1777,exec"),
        ("hostPath: {path: /srv}", "mountPath: /d", "volume", "/srv:/d"),
        ("hostPath: {path: /srv, type: Directory}", "mountPath: /d\n  readOnly: true", "volume", "/srv:/d:ro"),
        ("hostPath: {path: /dev/fuse, type: CharDevice}", "mountPath: /dev/fuse", "device", "/dev/fuse:/dev/fuse"),
        ("persistentVolumeClaim: {claimName: data}", "mountPath: /d", "volume", "data:/d"),
        ("persistentVolumeClaim: {claimName: data, readOnly: true}", "mountPath: /d", "volume", "data:/d:ro"),
    ],
)  # fmt: skip
def test_volumes(volume, mount, option, value):
    options, _, _ = container(f"volumeMounts:\n- name: v\n  {mount}", f"volumes:\n- name: v\n  {volume}")
    assert options == {option: [value]}


def own(text: str, more: str = MAPS) -> dict[str, tuple[bytes, int]]:
    options, _, pod = container("volumeMounts: [{name: v, mountPath: /d}]", f"volumes:\n- name: v\n  {text}", more)
    (volume,) = pod.own.values()
    assert options == {"volume": [f"{volume.name}:/d:ro"]} and re.fullmatch(r"p_v-[0-9a-f]{12}", volume.name)
    return volume.files or {}


def test_volumes_of_maps_and_secrets():
    assert own("configMap: {name: m}") == {"A": (b"x", 0o644), "B": (b"2", 0o644), "C": (b"xyz", 0o644)}
    assert own("secret: {secretName: s, defaultMode: 0400}") == {"K": (b"v", 0o400), "L": (b"w", 0o400)}
    assert own("configMap: {name: m, items: [{key: A, path: x/y, mode: 0600}]}") == {"x/y": (b"x", 0o600)}
    assert own("configMap: {name: m, items: [{key: A, path: x, mode: 256}]}") == {"x": (b"x", 0o400)}
    assert own("configMap: {name: zip, optional: true}") == {}


def test_another_content_is_another_volume():
    """So a member that mounts it is made anew, and no other."""
    text = "volumeMounts: [{name: v, mountPath: /d}]", "volumes:\n- name: v\n  configMap: {name: m}"
    one, same, other = (
        next(iter(container(*text, more)[2].own)) for more in (MAPS, MAPS, MAPS.replace("A: x", "A: z"))
    )
    assert one == same != other


def test_memory_at_dev_shm_is_the_pods():
    options, _, pod = container("volumeMounts: [{name: v, mountPath: /dev/shm}]", "volumes: [{name: v, emptyDir: {medium: Memory, sizeLimit: 128Mi}}]")  # fmt: skip
    assert options == {} and pod.options == {"shm_size": str(128 << 20)}


def test_init_containers_come_first_and_finish():
    pod = compiled("""
containers:
- {name: c, image: box}
initContainers:
- {name: a, image: box}
- {name: side, image: box, restartPolicy: Always}
- {name: b, image: box}
""")
    assert [(member.name, member.finish) for member in pod.members] == [("p-a", True), ("p-side", False), ("p-b", True), ("p-c", False)]  # fmt: skip
    assert "restart" not in pod.members[0].options and pod.members[1].options["restart"] == "always"


def test_a_deployment_is_its_pod():
    text = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: d}
spec:
  replicas: 1
  strategy: {type: Recreate}
  selector: {matchLabels: {app: x}}
  template:
    metadata: {labels: {app: x}, creationTimestamp: null}
    spec: {containers: [{name: c, image: box}]}
status: {}
"""
    (pod,) = podfile.parse_yaml(text.encode(), "d.yaml")
    assert pod.name == "d" and pod.options == {"label": ["app=x"]} and pod.members[0].name == "d-c"
    for old, new, said in (
        ("replicas: 1", "replicas: 2", "d.yaml:6: spec.replicas: only one replica"),
        ("{app: x}}\n", "{app: z}}\n", "d.yaml:8: spec.selector.matchLabels.app: the template has no label"),
        ("Recreate", "RollingUpdate", "d.yaml:7: spec.strategy.type: 'RollingUpdate' is not done"),
        ("[{name: c", "[{naem: c", r"d.yaml:11: spec.template.spec.containers[0].naem: there is no such field"),
    ):
        with pytest.raises(UsageError) as caught:
            podfile.parse_yaml(text.replace(old, new, 1).encode(), "d.yaml")
        assert caught.value.message.startswith(said), caught.value.message


def test_annotations_of_nsruns_own():
    text = """
apiVersion: v1
kind: Pod
metadata:
  name: p
  annotations:
    nsrun.name/c: Web_1
    nsrun.join/c: '{"ulimit": ["nofile=10"], "restart": "no"}'
    nsrun.create/pod: '{"network": "none"}'
    other.org/x: z
spec: {containers: [{name: c, image: box}]}
"""
    (pod,) = podfile.parse_yaml(text.encode(), "p.yaml")
    assert pod.options == {"network": "none"} and pod.members[0].name == "Web_1"
    assert pod.members[0].options["ulimit"] == ["nofile=10"] and pod.members[0].options["restart"] == "no"
    for old, new, said in (
        ('"restart"', '"rm"', "p.yaml:8: metadata.annotations['nsrun.join/c']: join has no option 'rm'"),
        ("join/c", "join/d", "p.yaml:8: metadata.annotations['nsrun.join/d']: nsrun knows no such"),
        ("'{\"net", "'{net", "p.yaml:9: metadata.annotations['nsrun.create/pod']: it is not JSON"),
        ("Web_1", "../x", "p.yaml:11: spec.containers[0]: '../x' is not a name"),
        ('"network": "none"', '"name": "zz"', "p.yaml:9: metadata.annotations['nsrun.create/pod']: pod create has no"),
        ('"restart"', '"name"', "p.yaml:8: metadata.annotations['nsrun.join/c']: join has no option 'name'"),
        (
            '"restart": "no"',
            '"restart": ["x"]',
            "p.yaml:8: metadata.annotations['nsrun.join/c']: restart is not a string",
        ),
        ('"restart": "no"', '"image": ["x"]', "p.yaml:8: metadata.annotations['nsrun.join/c']: image is not a string"),
        ('"restart": "no"', '"image": 5', "p.yaml:8: metadata.annotations['nsrun.join/c']: image is not a string"),
        ('"restart": "no"', '"env": ["A=\\ud800"]', "p.yaml:8: metadata.annotations['nsrun.join/c']: U+D800"),
        ('"restart": "no"', '"env": {"\\ud800": "a"}', "p.yaml:8: metadata.annotations['nsrun.join/c']: U+D800"),
        ('"none"', '"\\ufdd0id"', "p.yaml:9: metadata.annotations['nsrun.create/pod']: U+FDD0"),
    ):
        with pytest.raises(UsageError) as caught:
            podfile.parse_yaml(text.replace(old, new, 1).encode(), "p.yaml")
        assert caught.value.message.startswith(said), caught.value.message


C = "containers:\n- name: c\n  image: box\n"


@pytest.mark.parametrize(
    ("spec", "line", "path", "said"),
    [
        (f"{C}nodeNam: x", 9, "spec.nodeNam", "no such field"),
        (f"{C}nodeName: x", 9, "spec.nodeName", "nothing for this field"),
        (f"{C}affinity: {{nodeAffinity: {{}}}}", 9, "spec.affinity", "nothing for this field"),
        (f"{C}hostPID: true", 9, "spec.hostPID", "nothing for this field"),
        (f"{C}serviceAccountName: me", 9, "spec.serviceAccountName", "nothing for this field"),
        (f"{C}restartPolicy: always", 9, "spec.restartPolicy", "'always' is not done"),
        (f"{C}terminationGracePeriodSeconds: '5'", 9, "spec.terminationGracePeriodSeconds", "'5' is not a whole number"),
        (f"{C}terminationGracePeriodSeconds: -1", 9, "spec.terminationGracePeriodSeconds", "out of range"),
        (f"{C}shareProcessNamespace: 1", 9, "spec.shareProcessNamespace", "1 is neither true nor false"),
        (f"{C}hostname: on", 9, "spec.hostname", "true is not a string"),
        (f"{C}dnsPolicy: None", 9, "spec.dnsPolicy", "needs dnsConfig"),
        (f"{C}dnsConfig: {{searches: [x]}}", 9, "spec.dnsConfig.searches", "nothing for this field"),
        (f"{C}initContainers: {{}}", 9, "spec.initContainers", "not a list"),
        (f"{C}volumes: [{{name: v, nfs: {{server: x}}}}]", 9, "spec.volumes[0].nfs", "nothing for this field"),
        (f"{C}volumes: [{{name: v, emptyDir: {{}}, hostPath: {{path: /x}}}}]", 9, "spec.volumes[0]", "two sources"),
        (f"{C}volumes: [{{name: v}}, {{name: v}}]", 9, "spec.volumes[1].name", "two volumes"),
        (f"{C}securityContext: {{runAsUser: root}}", 9, "spec.securityContext.runAsUser", "not a whole number"),
        (f"{C}securityContext: {{seLinuxOptions: {{level: x}}}}", 9, "spec.securityContext.seLinuxOptions", "nothing for"),
        (f"{C}securityContext: {{fsGroup: 4294967295}}", 9, "spec.securityContext.fsGroup", "out of range"),
        ("containers: []", 6, "spec.containers", "at least one container"),
        ("restartPolicy: Never", 5, "spec", "at least one container"),
        (f"{C}- name: c\n  image: x", 9, "spec.containers[1]", "two"),
        ("containers:\n- image: x", 7, "spec.containers[0]", "no name"),
        ("containers:\n- name: C\n  image: x", 7, "spec.containers[0].name", "no name"),
        ("containers:\n- name: c", 7, "spec.containers[0]", "no image"),
        (f"{C}  imagePullPolicy: Always", 9, "spec.containers[0].imagePullPolicy", "no image is pulled"),
        (f"{C}  livenessProbe: {{grpc: {{port: 80}}}}", 9, "spec.containers[0].livenessProbe.grpc", "nothing for this field"),
        (f"{C}  livenessProbe: {{exec: {{}}}}", 9, "spec.containers[0].livenessProbe.exec", "no command"),
        (f"{C}  livenessProbe: {{periodSeconds: 1}}", 9, "spec.containers[0].livenessProbe", "one of exec, httpGet and tcpSocket"),
        (f"{C}  livenessProbe: {{tcpSocket: {{port: 1}}, httpGet: {{port: 1}}}}", 9, "spec.containers[0].livenessProbe", "one of exec, httpGet and tcpSocket"),
        (f"{C}  livenessProbe: {{tcpSocket: {{}}}}", 9, "spec.containers[0].livenessProbe.tcpSocket", "no port"),
        (f"{C}  livenessProbe: {{tcpSocket: {{port: web}}}}", 9, "spec.containers[0].livenessProbe.tcpSocket.port", "no port 'web'"),
        (f"{C}  livenessProbe: {{tcpSocket: {{port: 0}}}}", 9, "spec.containers[0].livenessProbe.tcpSocket.port", "out of range"),
        (f"{C}  livenessProbe: {{httpGet: {{port: 1, host: a.example}}}}", 9, "spec.containers[0].livenessProbe.httpGet.host", "not an address"),
        (f"{C}  livenessProbe: {{httpGet: {{port: 1, scheme: HTTPS}}}}", 9, "spec.containers[0].livenessProbe.httpGet.scheme", "HTTP"),
        (f"{C}  livenessProbe: {{httpGet: {{port: 1, path: '/a b'}}}}", 9, "spec.containers[0].livenessProbe.httpGet", "not a URL"),
        (f"{C}  livenessProbe: {{httpGet: {{port: 1, httpHeaders: [{{name: a}}]}}}}", 9, "spec.containers[0].livenessProbe.httpGet.httpHeaders[0]", "no value"),
        (f"{C}  livenessProbe: {{exec: {{command: [x]}}, successThreshold: 2}}", 9, "spec.containers[0].livenessProbe.successThreshold", "one success"),
        (f"{C}  readinessProbe: {{exec: {{command: [x]}}}}", 9, "spec.containers[0].readinessProbe", "nothing for this field"),
        (f"{C}  lifecycle: {{preStop: {{}}}}", 9, "spec.containers[0].lifecycle", "nothing for this field"),
        (f"{C}  tty: true", 9, "spec.containers[0].tty", "nothing for this field"),
        (f"{C}  restartPolicy: Always", 9, "spec.containers[0].restartPolicy", "only an init container"),
        (f"{C}  command: sleep 5", 9, "spec.containers[0].command", "not a list"),
        (f"{C}  command: [sleep, 5]", 9, "spec.containers[0].command[1]", "5 is not a string"),
        (f"{C}  args:\n  - x\n  - off", 11, "spec.containers[0].args[1]", "false is not a string"),
        (f"{C}  env: [{{name: A, value: yes}}]", 9, "spec.containers[0].env[0].value", "true is not a string"),
        (f"{C}  env:\n  - name: A\n    value: 010", 11, "spec.containers[0].env[0].value", "8 is not a string"),
        (f"{C}  env: [{{value: x}}]", 9, "spec.containers[0].env[0]", "no name"),
        (f"{C}  env: [{{name: A=B}}]", 9, "spec.containers[0].env[0].name", "no name"),
        (f"{C}  env: [{{name: A, value: x, valueFrom: {{}}}}]", 9, "spec.containers[0].env[0]", "both"),
        (f"{C}  env: [{{name: A, valueFrom: {{resourceFieldRef: {{resource: x}}}}}}]", 9, "spec.containers[0].env[0].valueFrom.resourceFieldRef", "nothing for"),
        (f"{C}  env: [{{name: A, valueFrom: {{fieldRef: {{fieldPath: spec.nodeName}}}}}}]", 9, "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath", "not done"),
        (f"{C}  env: [{{name: A, valueFrom: {{secretKeyRef: {{name: zip, key: x}}}}}}]", 9, "spec.containers[0].env[0].valueFrom.secretKeyRef.name", "no Secret 'zip'"),
        (f"{C}  envFrom: [{{configMapRef: {{name: zip}}}}]", 9, "spec.containers[0].envFrom[0].configMapRef.name", "no ConfigMap"),
        (f"{C}  workingDir: x", 9, "spec.containers[0].workingDir", "absolute"),
        (f"{C}  ports: [{{hostPort: 80}}]", 9, "spec.containers[0].ports[0]", "no containerPort"),
        (f"{C}  ports: [{{containerPort: 0}}]", 9, "spec.containers[0].ports[0].containerPort", "out of range"),
        (f"{C}  ports: [{{containerPort: '80'}}]", 9, "spec.containers[0].ports[0].containerPort", "not a whole number"),
        (f"{C}  ports: [{{containerPort: 80, hostPort: 80, protocol: SCTP}}]", 9, "spec.containers[0].ports[0].protocol", "not done"),
        (f"hostNetwork: true\n{C}  ports: [{{containerPort: 80, hostPort: 81}}]", 10, "spec.containers[0].ports[0].hostPort", "the same"),
        (f"{C}  resources: {{limits: {{memory: 5mi}}}}", 9, "spec.containers[0].resources.limits.memory", "not a quantity"),
        (f"{C}  resources: {{limits: {{ephemeral-storage: 1G}}}}", 9, "spec.containers[0].resources.limits.ephemeral-storage", "no limit"),
        (f"{C}  securityContext: {{privileged: true}}", 9, "spec.containers[0].securityContext.privileged", "not done"),
        (f"{C}  securityContext: {{procMount: Unmasked}}", 9, "spec.containers[0].securityContext.procMount", "nothing for"),
        (f"{C}  securityContext: {{x: 1}}", 9, "spec.containers[0].securityContext.x", "no such field"),
        (f"{C}  securityContext: {{runAsGroup: 1}}", 9, "spec.containers[0].securityContext.runAsGroup", "runAsUser"),
        (f"{C}  securityContext: {{runAsNonRoot: true}}", 9, "spec.containers[0].securityContext.runAsNonRoot", "runAsUser"),
        (f"{C}  securityContext: {{seccompProfile: {{type: Localhost}}}}", 9, "spec.containers[0].securityContext.seccompProfile", "localhostProfile"),
        (f"{C}  volumeMounts: [{{name: v, mountPath: /d}}]", 9, "spec.containers[0].volumeMounts[0].name", "no volume 'v'"),
        (f"{C}  volumeMounts: [{{name: v}}]", 9, "spec.containers[0].volumeMounts[0]", "no mountPath"),
        (f"{C}  volumeMounts: [{{name: v, mountPath: d}}]\nvolumes: [{{name: v}}]", 9, "spec.containers[0].volumeMounts[0].mountPath", "absolute"),
        (f"{C}  volumeMounts: [{{name: v, mountPath: /d, subPath: ../x}}]\nvolumes: [{{name: v}}]", 9, "spec.containers[0].volumeMounts[0].subPath", "relative path"),
        (f"{C}  volumeMounts: [{{name: v, mountPath: /d, subPath: /x}}]\nvolumes: [{{name: v, hostPath: {{path: /x}}}}]", 9, "spec.containers[0].volumeMounts[0].subPath", "relative path"),
        (f"{C}  volumeMounts: [{{name: v, mountPath: /d, subPath: x}}]\nvolumes: [{{name: v, emptyDir: {{medium: Memory}}}}]", 10, "spec.volumes[0].emptyDir.medium", "the whole"),
        (f"{C}  volumeMounts: [{{name: v, mountPath: /d, mountPropagation: Bidirectional}}]\nvolumes: [{{name: v}}]", 9, "spec.containers[0].volumeMounts[0].mountPropagation", "nothing for"),
        (f"{C}  volumeMounts: [{{name: v, mountPath: /d}}]\nvolumes: [{{name: v, hostPath: {{path: a/b}}}}]", 10, "spec.volumes[0].hostPath.path", "absolute"),
        (f"{C}  volumeMounts: [{{name: v, mountPath: /d}}]\nvolumes: [{{name: v, emptyDir: {{sizeLimit: 1Mi}}}}]", 10, "spec.volumes[0].emptyDir.sizeLimit", "in memory"),
        (f"{C}  volumeMounts: [{{name: v, mountPath: /d}}]\nvolumes: [{{name: v, configMap: {{name: zip}}}}]", 10, "spec.volumes[0].configMap.name", "no ConfigMap"),
        (f"{C}  volumeMounts: [{{name: v, mountPath: /d}}]\n- name: d\n  image: x\n  volumeMounts: [{{name: v, mountPath: /d}}]\nvolumes: [{{name: v, emptyDir: {{medium: Memory}}}}]", 13, "spec.volumes[0].emptyDir.medium", "several"),
        (f"{C}  volumeMounts: [{{name: v, mountPath: /d}}]\nsecurityContext: {{fsGroup: 5}}\nvolumes: [{{name: v, persistentVolumeClaim: {{claimName: x}}}}]", 10, "spec.securityContext.fsGroup", "claim"),
        (f"{C}  volumeMounts: [{{name: v, mountPath: /d}}]\nvolumes: [{{name: v, persistentVolumeClaim: {{claimName: '/run/hostdir'}}}}]", 10, "spec.volumes[0].persistentVolumeClaim.claimName", "not a name of a claim"),
        (f"{C}  volumeMounts: [{{name: v, mountPath: /d}}]\nvolumes: [{{name: v, persistentVolumeClaim: {{claimName: '../x'}}}}]", 10, "spec.volumes[0].persistentVolumeClaim.claimName", "not a name of a claim"),
        (f"{C}  volumeMounts: [{{name: v, mountPath: /d}}]\nvolumes: [{{name: v, persistentVolumeClaim: {{claimName: 'p_v-0123456789ab'}}}}]", 10, "spec.volumes[0].persistentVolumeClaim.claimName", "not a name of a claim"),
        (f"{C}  volumeMounts: [{{name: v, mountPath: /d}}]\nvolumes: [{{name: v, persistentVolumeClaim: {{claimName: 'a:b'}}}}]", 10, "spec.volumes[0].persistentVolumeClaim.claimName", "not a name of a claim"),
        (f"{C}  volumeMounts: [{{name: v, mountPath: /d}}]\nvolumes: [{{name: v, persistentVolumeClaim: {{claimName: 'a,b'}}}}]", 10, "spec.volumes[0].persistentVolumeClaim.claimName", "not a name of a claim"),
        (f"{C}  volumeMounts: [{{name: v, mountPath: /d}}]\nvolumes: [{{name: v, persistentVolumeClaim: {{claimName: ''}}}}]", 10, "spec.volumes[0].persistentVolumeClaim.claimName", "not a name of a claim"),
        (f"{C}  volumeMounts: [{{name: v, mountPath: /d}}]\nvolumes: [{{name: v, persistentVolumeClaim: {{claimName: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa}}}}]", 10, "spec.volumes[0].persistentVolumeClaim.claimName", "not a name of a claim"),
        (f"{C}  securityContext: {{seccompProfile: {{type: Localhost, localhostProfile: unconfined}}}}", 9, "spec.containers[0].securityContext.seccompProfile.localhostProfile", "names no profile"),
        (f"{C}  securityContext: {{seccompProfile: {{type: Localhost, localhostProfile: default}}}}", 9, "spec.containers[0].securityContext.seccompProfile.localhostProfile", "names no profile"),
        (f"{C}  securityContext: {{seccompProfile: {{type: Localhost, localhostProfile: ''}}}}", 9, "spec.containers[0].securityContext.seccompProfile.localhostProfile", "names no profile"),
        (f"{C}  securityContext: {{appArmorProfile: {{type: Localhost, localhostProfile: 'unconfined'}}}}", 9, "spec.containers[0].securityContext.appArmorProfile.localhostProfile", "names no profile"),
        (f"{C}  securityContext: {{appArmorProfile: {{type: Localhost, localhostProfile: ':root://unconfined'}}}}", 9, "spec.containers[0].securityContext.appArmorProfile.localhostProfile", "names no profile"),
        (f"{C}  securityContext: {{appArmorProfile: {{type: Localhost, localhostProfile: 'a b'}}}}", 9, "spec.containers[0].securityContext.appArmorProfile.localhostProfile", "names no profile"),
        (f"{C}  command: ['', x]", 9, "spec.containers[0].command[0]", "empty"),
        (f"{C}  env: [{{name: A}}]\n  command: [$(A), x]", 10, "spec.containers[0].command[0]", "empty"),
        (f"{C}  args:\n  - x\n  - \"\\ud800\"", 11, "spec.containers[0].args[1]", "not a character of text"),
        (f"{C}  args:\n  - x\n  - \"\\ufdd0id\\ufdd1\"", 11, "spec.containers[0].args[1]", "not a character of text"),
        (f"{C}  args: [\"a\\0b\"]", 9, "spec.containers[0].args[0]", "NUL"),
        (f"{C}  env: [{{name: A, value: \"\\udcff\"}}]", 9, "spec.containers[0].env[0].value", "not a character of text"),
        (f"{C}  env: [{{name: \"A\\0\"}}]", 9, "spec.containers[0].env[0].name", "NUL"),
        (f"{C}  envFrom: [{{prefix: 'A=', configMapRef: {{name: zip, optional: true}}}}]", 9, "spec.containers[0].envFrom[0].prefix", "variable"),
        (f"{C}  ports: [{{containerPort: 80, hostPort: 80, hostIP: '1.2.3.4:5'}}]", 9, "spec.containers[0].ports[0].hostIP", "not an address"),
        (f"{C}hostAliases: [{{ip: 1.2.3.4, hostnames: ['a:b']}}]", 9, "spec.hostAliases[0].hostnames[0]", "not a name of a host"),
        (f"{C}securityContext: {{sysctls: [{{name: 'a=b', value: c}}]}}", 9, "spec.securityContext.sysctls[0].name", "not a name of a sysctl"),
        (f"{C}  volumeMounts: [{{name: [v], mountPath: /d}}]", 9, "spec.containers[0].volumeMounts[0].name", "a list is not a string"),
        (f"{C}  volumeMounts: [{{name: {{a: b}}, mountPath: /d}}]", 9, "spec.containers[0].volumeMounts[0].name", "an object is not a string"),
        (f"{C}  volumeMounts: [{{name: v, mountPath: /dev}}]\nvolumes: [{{name: v, emptyDir: {{}}}}]", 9, "spec.containers[0].volumeMounts[0].mountPath", "a directory can't be mounted"),
        (f"{C}  volumeMounts: [{{name: v, mountPath: //etc/../dev/}}]\nvolumes: [{{name: v, emptyDir: {{}}}}]", 9, "spec.containers[0].volumeMounts[0].mountPath", "a directory can't be mounted"),
        (f"{C}  volumeMounts: [{{name: v, mountPath: /dev}}]\nvolumes: [{{name: v, emptyDir: {{medium: Memory}}}}]", 9, "spec.containers[0].volumeMounts[0].mountPath", "a directory can't be mounted"),
        (f"{C}  volumeMounts: [{{name: v, mountPath: /dev}}]\nvolumes: [{{name: v, persistentVolumeClaim: {{claimName: x}}}}]", 9, "spec.containers[0].volumeMounts[0].mountPath", "a directory can't be mounted"),
        (f"{C}  volumeMounts: [{{name: v, mountPath: /etc/hosts}}]\nvolumes: [{{name: v, emptyDir: {{}}}}]", 9, "spec.containers[0].volumeMounts[0].mountPath", "a directory can't be mounted"),
        (f"{C}  volumeMounts: [{{name: v, mountPath: /etc/resolv.conf}}]\nvolumes: [{{name: v, emptyDir: {{medium: Memory}}}}]", 9, "spec.containers[0].volumeMounts[0].mountPath", "a directory can't be mounted"),
        (f"{C}  volumeMounts: [{{name: v, mountPath: /etc/hostname}}]\nvolumes: [{{name: v, persistentVolumeClaim: {{claimName: x}}}}]", 9, "spec.containers[0].volumeMounts[0].mountPath", "a directory can't be mounted"),
        (f"{C}  volumeMounts: [{{name: v, mountPath: /etc/hosts}}]\nvolumes: [{{name: v, hostPath: {{path: /x, type: Directory}}}}]", 9, "spec.containers[0].volumeMounts[0].mountPath", "a directory can't be mounted"),
        (f"{C}  volumeMounts: [{{name: v, mountPath: /etc/hosts/x}}]\nvolumes: [{{name: v, hostPath: {{path: /x}}}}]", 9, "spec.containers[0].volumeMounts[0].mountPath", "/etc/hosts is a file"),
        (f"{C}  volumeMounts: [{{name: v, mountPath: /}}]\nvolumes: [{{name: v}}]", 9, "spec.containers[0].volumeMounts[0].mountPath", "the target can't be /"),
        (f"{C}  volumeMounts: [{{name: v, mountPath: /xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx}}]\nvolumes: [{{name: v}}]", 9, "spec.containers[0].volumeMounts[0].mountPath", "255"),
    ],
)  # fmt: skip
def test_what_is_refused(spec, line, path, said):
    """With its line, and the path of the field."""
    with pytest.raises(UsageError) as caught:
        compiled(spec)
    assert caught.value.message.startswith(f"pod.yaml:{line}: {path}: ") and said in caught.value.message, (
        caught.value.message
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "pod.yaml:1: there is no pod"),
        ("a: 1", "pod.yaml:1: it has no kind"),
        ("kind: Service\napiVersion: v1", "pod.yaml:1: kind: kind 'Service' is not done"),
        ("kind: Pod\napiVersion: v2", "pod.yaml:2: apiVersion: the apiVersion of a Pod is v1"),
        ("kind: Pod", "pod.yaml:1: the apiVersion"),
        ("- 1", "pod.yaml:1: a list is not an object"),
        ("kind: Pod\napiVersion: v1\nspec: {}", "pod.yaml:1: it has no metadata"),
        ("kind: Pod\napiVersion: v1\nmetadata: {name: A}", "pod.yaml:3: metadata.name: 'A' is not a name"),
        ("kind: Pod\napiVersion: v1\nmetadata: {name: a, labels: {x: 'a b'}}\nspec: {}", "pod.yaml:3: metadata.labels.x: "),
        ("kind: Pod\napiVersion: v1\nmetadata: {name: a, labels: {nsrun.up: x}}\nspec: {}", "pod.yaml:3: metadata.labels['nsrun.up']: "),
        ("kind: Pod\napiVersion: v1\nmetadata: {name: a, generateName: x}", "pod.yaml:3: metadata.generateName: nsrun has"),
        ("kind: Pod\napiVersion: v1\nmetadata: {name: a}\nspek: {}", "pod.yaml:4: spek: there is no such field"),
        ("kind: Secret\napiVersion: v1\nmetadata: {name: a}\ndata: {k: '%'}", "pod.yaml:4: data.k: it is not base64"),
        ("kind: ConfigMap\napiVersion: v1\nmetadata: {name: a}\ndata: {k: on}", "pod.yaml:4: data.k: true is not a string"),
        ("kind: ConfigMap\napiVersion: v1\nmetadata: {name: a}\ndata: {../k: a}", "pod.yaml:4: data['../k']: "),
        (f"kind: ConfigMap\napiVersion: v1\nmetadata: {{name: a}}\ndata: {{{'k' * 254}: a}}", f"pod.yaml:4: data.{'k' * 254}: "),
        ("kind: ConfigMap\napiVersion: v1\nmetadata: {name: a}\ndata: {k: a}\nbinaryData: {k: ''}", "pod.yaml:5: binaryData.k: it is in data, too"),
        ('"\\ud800": a', "pod.yaml:1: U+D800 is not a character of text"),
        (f"{HEAD}  {C.replace(chr(10), chr(10) + '  ')}\n---\n{HEAD}  {C.replace(chr(10), chr(10) + '  ')}", "pod.yaml:14: metadata.name: 'pod p' is there twice"),
    ],
)  # fmt: skip
def test_documents_that_are_refused(text, said):
    with pytest.raises(UsageError) as caught:
        podfile.parse_yaml(text.encode(), "pod.yaml")
    assert caught.value.message.startswith(said), caught.value.message


@pytest.mark.parametrize(
    ("items", "number", "said"),
    [
        ('{key: A, path: "p\\0q"}', 0, "it has a NUL byte"),
        (f"{{key: A, path: {'/'.join('x' * 3000)}}}", 0, "the path is too long"),
        (f"{{key: A, path: {'x' * 256}}}", 0, "the path is too long"),
        ("{key: A, path: p/q}, {key: B, path: p/q}", 1, "there are two items 'p/q'"),
        ("{key: A, path: p}, {key: B, path: p/q}", 1, "'p' is a file"),
        ("{key: A, path: p/q/r}, {key: B, path: p/q}", 1, "'p/q' is a directory"),
    ],
)
def test_paths_of_items_that_are_refused(items, number, said):
    with pytest.raises(UsageError) as caught:
        own(f"configMap: {{name: m, items: [{items}]}}")
    where = f"spec.volumes[0].configMap.items[{number}].path: {said}"
    assert where in caught.value.message, caught.value.message


def test_a_file_of_a_map_in_the_place_of_one_of_the_pods():
    """A file can be mounted there, and a sub path with a colon can't be told from two paths."""
    spec = "volumes: [{name: v, configMap: {name: m, items: [{key: A, path: 'a:b'}, {key: B, path: b}]}}]"
    options, _, _ = container("volumeMounts: [{name: v, mountPath: /etc/hosts, subPath: b}]", spec, MAPS)
    assert options["volume"][0].endswith("/b:/etc/hosts:ro")
    with pytest.raises(UsageError, match=r"volumeMounts\[0\].subPath: it has a :"):
        container("volumeMounts: [{name: v, mountPath: /x, subPath: 'a:b'}]", spec, MAPS)


def test_the_demos_are_the_same():
    """rootfs/demo.yaml and demo.toml, but for what Kubernetes does by default."""
    (one,), (other,) = podfile.read(str(DEMO)), podfile.read(str(DEMO.with_suffix(".toml")))
    assert one.name == other.name and one.options == {**other.options, "label": ["app=demo"]}
    for mine, theirs in zip(one.members, other.members, strict=True):
        ours = {key: value for key, value in mine.options.items() if key not in ("restart", "stop_timeout")}
        assert mine.name == theirs.name and ours["image"] == f"{theirs.options['image']}:latest"
        assert all(ours[key] == value for key, value in theirs.options.items() if key not in ("image", "stop_timeout"))


def test_finish_in_toml():
    text = '[pod]\nname = "p"\n[members.m]\nimage = "box"\nfinish = {}\n'
    assert podfile.parse(text.format("true").encode(), "pod.toml").members[0].finish
    for value, said in (("1", "neither true nor false"), ('true\nrestart = "always"', "no restart policy")):
        with pytest.raises(UsageError, match=f"pod.toml:5: .*{said}"):
            podfile.parse(text.format(value).encode(), "pod.toml")


# ---- live ------------------------------------------------------------------------------------------------------------

BOX = """
apiVersion: v1
kind: ConfigMap
metadata: {name: conf}
data: {word: one}
---
apiVersion: v1
kind: Pod
metadata: {name: p, labels: {app: x}}
spec:
  shareProcessNamespace: true
  terminationGracePeriodSeconds: 1
  initContainers:
  - name: first
    image: box
    command: [sh, -c, "echo made >/shared/made; echo again >>/shared/count"]
    volumeMounts: [{name: shared, mountPath: /shared}]
  containers:
  - name: a
    image: box
    command: [sleep, "1000"]
    env: [{name: WHO, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
    securityContext: {runAsUser: 1000, capabilities: {drop: [ALL]}}
    volumeMounts:
    - {name: shared, mountPath: /shared}
    - {name: conf, mountPath: /conf}
    - {name: conf, mountPath: /etc/word, subPath: word}
    - {name: memory, mountPath: /memory}
  - name: b
    image: box
    args: [sleep, "1000"]
    volumeMounts: [{name: shared, mountPath: /s}, {name: kept, mountPath: /kept}]
  volumes:
  - {name: shared, emptyDir: {}}
  - {name: conf, configMap: {name: conf}}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: kept, persistentVolumeClaim: {claimName: kept}}
"""

GROUPED = BOX.replace("  initContainers", "  securityContext: {fsGroup: 2000}\n  initContainers").replace(
    "persistentVolumeClaim: {claimName: kept}", "emptyDir: {}"
)


@pytest.fixture
def play(host, busybox, tmp_path):
    """Have an image `box`, and play a text."""
    host.run("image", "load", "-t", "box", CACHE.parent / "images/busybox")

    def play(text, *words, check=True):
        (tmp_path / "pod.yaml").write_text(text)
        return host.run("kube", "play", *words, tmp_path / "pod.yaml", check=check)

    return play


def ids(host) -> dict[str, str]:
    return {member["name"]: member["id"] for member in host.json("ls", "-a")}


def inside(host, member: str, script: str) -> str:
    return host.run("exec", member, "sh", "-c", script).stdout


@pytest.mark.live
def test_play_twice_and_down(host, play):
    before = host.snapshot()
    done = play(BOX)
    assert done.stdout == "pod p: created\nmember p-first: finished\nmember p-a: started\nmember p-b: started\n"
    assert (
        inside(host, "p-a", "cat /shared/made /conf/word /etc/word; id -u; id -G; echo $WHO")
        == "made\noneone1000\n0\np\n"
    )
    assert inside(host, "p-a", "touch /shared/mine /memory/mine; stat -c %a:%g /shared; touch /conf/x 2>&1 || true").endswith("Read-only file system\n")  # fmt: skip
    assert inside(host, "p-b", "ls /s; touch /kept/x") == "count\nmade\nmine\n"
    assert host.pod("p")["labels"]["app"] == "x"
    known = ids(host)
    assert play(BOX).stdout.count("unchanged") == 4 and ids(host) == known

    done = play(BOX.replace("word: one", "word: two"))
    assert "member p-a: started anew" in done.stdout and "member p-b: unchanged" in done.stdout
    assert inside(host, "p-a", "cat /conf/word /etc/word /shared/count") == "twotwoagain\n"
    assert len([name for name in host.run("volume", "ls", "-q").stdout.split() if "_conf-" in name]) == 1

    done = play(BOX.replace("app: x", "app: z"))
    assert done.stdout.startswith("pod p: created anew") and "member p-first: finished" in done.stdout
    assert inside(host, "p-b", "ls /s /kept; cat /s/count") == "/kept:\nx\n\n/s:\ncount\nmade\nagain\n", (
        "a new pod's are empty"
    )
    assert play(BOX, "--down", "-t", "0").stdout == "pod p: removed\n"
    assert host.run("volume", "ls", "-q").stdout == "kept\n"
    assert play(BOX, "--down").stdout == "pod p: is not there\n"
    host.run("volume", "rm", "kept")
    host.run("image", "rm", "box")
    assert host.snapshot() == before


@pytest.mark.live
def test_a_group_for_volumes(host, play):
    play(GROUPED)
    said = inside(
        host, "p-a", "id -G; stat -c %a:%u:%g /shared /conf /conf/word; touch /shared/x; stat -c %g /shared/x"
    )
    assert said == "0 2000\n2777:0:2000\n2755:0:2000\n644:0:2000\n2000\n"


@pytest.mark.live
def test_an_init_container_that_fails(host, play):
    """What comes after it does not start; the next time it begins again."""
    text = BOX.replace("echo again", "test -e /shared/ok && echo again")
    done = play(text, check=False)
    assert (
        done.returncode == 125
        and "'p-first' has ended with status 1" in done.stderr
        and "goes on from here" in done.stderr
    )
    assert done.stdout == "pod p: created\n" and set(ids(host)) == {"p-first"}
    (volume,) = (one["path"] for one in host.json("volume", "ls") if "_shared-" in one["name"])
    (CACHE / volume / "ok").touch()
    assert play(text).stdout == "pod p: unchanged\nmember p-first: finished\nmember p-a: started\nmember p-b: started\n"


@pytest.mark.live
@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ("args: [sleep, ", "hostNam: x\n    args: [sleep, ", "spec.containers[1].hostNam: there is no such field"),
        ("image: box\n    args", "image: nobox\n    args", "spec.containers[1].image: no image"),
        ("drop: [ALL]", "drop: [NONESUCH]", "spec.containers[0].securityContext.capabilities.drop[0]: "),
        ("args: [sleep", "ports: [{containerPort: 1, hostPort: 80}, {containerPort: 2, hostPort: 80}]\n    args: [sleep", "spec.containers[1].ports["),
        ("persistentVolumeClaim: {claimName: kept}", "hostPath: {path: /no/such}", "spec.volumes[3].hostPath.path: '/no/such' does not exist"),
        ("persistentVolumeClaim: {claimName: kept}", "hostPath: {path: /etc, type: File}", "spec.volumes[3].hostPath.path: '/etc' is no File"),
        ("/kept}]\n  volumes:", "/kept}, {name: h, mountPath: /etc/hosts}]\n  volumes:\n  - {name: h, hostPath: {path: /}}", "spec.volumes[0].hostPath.path: '/' is no File"),
        ("mountPath: /kept", "mountPath: /proc/x", "spec.containers[1].volumeMounts[1].mountPath: nothing may be mounted at /proc/x"),
        ("fieldPath: metadata.name", "fieldPath: spec.x", "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: "),
    ],
)  # fmt: skip
def test_what_can_not_be_made_changes_nothing(host, play, old, new, where):
    play(BOX)
    before = ids(host), host.pod("p"), host.run("volume", "ls", "-q").stdout
    assert old in BOX
    done = play(BOX.replace(old, new, 1).replace("app: x", "app: z"), check=False)
    found = re.search(r"pod\.yaml:(\d+): (.*)", done.stderr)
    assert done.returncode in (2, 125) and done.stdout == "" and found and found[2].startswith(where), done.stderr
    assert (ids(host), host.pod("p"), host.run("volume", "ls", "-q").stdout) == before


@pytest.mark.live
def test_paths_of_this_host(host, play, tmp_path):
    text = BOX.replace(
        "persistentVolumeClaim: {claimName: kept}", f"hostPath: {{path: {tmp_path}/a/b, type: DirectoryOrCreate}}"
    )
    play(text)
    inside(host, "p-b", "touch /kept/x")
    assert (tmp_path / "a/b/x").exists()
    play(
        BOX.replace(
            "persistentVolumeClaim: {claimName: kept}", f"hostPath: {{path: {tmp_path}/file, type: FileOrCreate}}"
        )
    )
    inside(host, "p-b", "echo x >/kept")
    assert (tmp_path / "file").read_text() == "x\n"


@pytest.mark.live
def test_the_pods_address(host, play):
    """It is known when a member starts, and is refused, where there is none, before."""
    text = BOX.replace("metadata.name", "status.podIP")
    play(text)
    address = host.pod("p")["network"]["ip"]
    assert address and inside(host, "p-a", "echo $WHO") == f"{address}\n"
    assert play(text).stdout.count("unchanged") == 4
    done = play(text.replace("shareProcess", "hostNetwork: true\n  shareProcess"), check=False)
    assert "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: the pod has no address" in done.stderr


@pytest.mark.live
def test_containers_do_not_share_processes_unless_told(host, play):
    play(BOX.replace("shareProcessNamespace: true", "shareProcessNamespace: false"))
    assert "sleep 1000" in inside(host, "p-a", "tr '\\0' ' ' </proc/1/cmdline")
    assert len(inside(host, "p-b", "ls -d /proc/[0-9]*").split()) == 2, "sleep, and the command"


@pytest.mark.live
def test_several_pods_and_dry_run(host, play):
    text = BOX + "---\n" + BOX.partition("---\n")[2].replace("name: p,", "name: q,")
    before = host.snapshot()
    said = play(text, "--dry-run").stdout
    assert said.count("nsrun pod create") == 2 and said.count("nsrun join") == 6 and host.snapshot() == before
    assert play(text).stdout.count("created") == 2 and len(ids(host)) == 6
    assert host.run("volume", "ls", "-q").stdout.count("_shared-") == 2
    assert play(text, "--down", "-t", "0").stdout == "pod q: removed\npod p: removed\n"


@pytest.mark.live
def test_up_takes_yaml_and_play_takes_standard_input(host, play, tmp_path):
    play(BOX)
    assert host.run("up", tmp_path / "pod.yaml").stdout.count("unchanged") == 4
    assert host.run("kube", "play", "-", input=BOX).stdout.count("unchanged") == 4
    assert "standard input:1: " in host.run("kube", "play", "-", input="a: b", check=False).stderr
    assert host.run("down", "-t", "0", tmp_path / "pod.yaml").stdout == "pod p: removed\n"


@pytest.mark.live
def test_a_user_plays(host, alice, box, tmp_path):
    """Without root: volumes belong to root of the pod, who is the user; groups can't be given."""
    path = alice.home / "pod.yaml"
    text = BOX.replace("image: box", f"image: {box}").replace("metadata: {name: p,", "metadata: {name: hers,")
    grouped = text.replace("persistentVolumeClaim: {claimName: kept}", "emptyDir: {}")
    grouped = grouped.replace("  initContainers", "  securityContext: {fsGroup: 2000}\n  initContainers")
    path.write_text(grouped)
    path.chmod(0o644)
    done = alice.run("kube", "play", path, check=False)
    assert (
        done.returncode == 125
        and "spec.securityContext.fsGroup: only root" in done.stderr
        and not alice.json("pod", "ls")
    )
    path.write_text(text.replace("labels:", "annotations: {nsrun.create/pod: '{\"network\": \"none\"}'}, labels:"))  # fmt: skip
    assert alice.run("kube", "play", path).stdout.endswith("member hers-first: finished\nmember hers-a: started\nmember hers-b: started\n")  # fmt: skip
    assert (
        alice.run("exec", "hers-a", "sh", "-c", "touch /shared/x; cat /conf/word; stat -c %u /conf/word").stdout
        == "one0\n"
    )
    assert alice.run("kube", "play", path).stdout.count("unchanged") == 4
    text = alice.run("kube", "generate", "hers").stdout
    assert "nsrun.create/pod" in text
    alice.run("kube", "play", "--down", "-t", "0", path)
    assert alice.run("volume", "ls", "-q").stdout == "kept\n"


# ---- the way back ----------------------------------------------------------------------------------------------------


def described(host, pod: str) -> list[dict]:
    """What inspect and the notes of nsrun say of a pod and its members, but for ids, times, pids and namespaces."""
    own = dict.fromkeys(("id", "pid", "created", "started", "finished", "pid_in_pod", "namespaces"))
    (found,) = json.loads(host.run("pod", "inspect", pod).stdout)
    found["network"] = {**found["network"], "veth": "", "ip": "", "ip6": ""}
    names = sorted(found["members"])
    members = json.loads(host.run("inspect", *names).stdout)
    specs = []
    for name in names:
        spec = json.loads((host.root / f"run/members/{name}/config.json").read_text())
        spec.pop("crc", None)
        spec["linux"].pop("cgroupsPath")
        spec["linux"].pop("namespaces")
        spec["annotations"].pop("nsrun.id")
        specs.append(spec)
    text = json.dumps([{**one, **own, "labels": {key: value for key, value in one["labels"].items() if key != "nsrun.up"}} for one in (found, *members)] + specs)  # fmt: skip
    text = re.sub(r"(_[a-z]+-|/upper/)[0-9a-f]{12}", r"\1ID", text)
    return json.loads(text)


@pytest.mark.live
def test_what_is_generated_makes_the_same_pod(host, play, tmp_path):
    """A pod made by hand, with what Kubernetes has fields for and what it has not."""
    (tmp_path / "env").write_text("FROM_FILE=yes\n")
    host.run(
        *("pod", "create", "-p", "127.0.0.1:8031:80", "-p", "8032:53/udp", "--hostname", "h", "--add-host", "db:10.1.2.3"),
        *("--dns", "9.9.9.9", "--shm-size", "96m", "--sysctl", "net.ipv4.ip_forward=1", "--label", "app=x", "--label", "a b=c", "web"),
    )  # fmt: skip
    host.run(
        *("join", "web", "-d", "--name", "web-one", "--image", "box", "-e", "A=$(B) $$ x", "-e", "B=010", "--env-file", tmp_path / "env"),
        *("-u", "5:6", "--group-add", "7", "--read-only", "--cap-drop", "ALL", "--cap-add", "CHOWN", "--security-opt", "no-new-privileges"),
        *("-v", "data:/data", "-v", f"{tmp_path}:/host:ro", "--tmpfs", "/t:mode=1777,exec,size=1048576", "-w", "/tmp", "--restart", "always"),
        *("--health-cmd", '["true"]', "--health-interval", "20s"),
        *("--stop-timeout", "3", "--", "sleep", "1000"),
    )  # fmt: skip
    host.run(
        *("join", "web", "-d", "--name", "Other", "--image", "box", "--entrypoint", "sh", "--ulimit", "nofile=64", "--oom-score-adj", "5"),
        *("--label", "x=y", "--pid", "nested", "--tmpfs", "/u:ro", "--stop-signal", "KILL", "-v", "/volume", "--", "-c", "exec sleep 1000"),
    )  # fmt: skip
    text = host.run("kube", "generate", "web").stdout
    assert text == host.run("kube", "generate", "web").stdout, "it is deterministic"
    before = described(host, "web")
    host.run("pod", "rm", "-f", "web")
    play(text)
    after = described(host, "web")
    for ours, theirs in zip(after, before, strict=True):
        assert ours == theirs
    assert host.run("kube", "generate", "web").stdout == text
    head = text.partition("apiVersion")[0]
    assert (
        head.count("# Only nsrun reads nsrun.join/") == 2
        and "ulimit" in head
        and "# Only nsrun reads nsrun.create/pod: label" in head
    )


@pytest.mark.live
def test_what_was_played_is_generated(host, play):
    """Empty directories, files, an init container and a group come back as such."""
    play(GROUPED)
    text = host.run("kube", "generate", "p").stdout
    before = described(host, "p")
    play(GROUPED, "--down", "-t", "0")
    play(text)
    assert described(host, "p") == before and host.run("kube", "generate", "p").stdout == text
    assert inside(host, "p-a", "cat /conf/word /etc/word /shared/made") == "oneonemade\n"
    spec = yaml.safe_load_all(text)
    secret, pod = spec
    assert secret["kind"] == "Secret" and [one["name"] for one in pod["spec"]["initContainers"]] == ["first"]
    assert {"name": "shared", "emptyDir": {}} in pod["spec"]["volumes"] and pod["spec"]["securityContext"][
        "fsGroup"
    ] == 2000


@pytest.mark.live
def test_probes_that_connect_there_and_back(host, play):
    """What is played is healthy, and what is written is what was played."""
    http = "livenessProbe: {periodSeconds: 1, httpGet: {port: web, path: /page, httpHeaders: [{name: X-A, value: b}]}}"
    text = BOX.replace('command: [sleep, "1000"]', f'command: [sh, -c, "echo hi >/tmp/page; exec httpd -f -p 8080 -h /tmp"]\n    ports: [{{name: web, containerPort: 8080}}]\n    {http}', 1)  # fmt: skip
    play(text.replace("args: [sleep,", "livenessProbe: {periodSeconds: 1, tcpSocket: {port: 8080}}\n    args: [sleep,"))
    for member in ("p-a", "p-b"):
        host.run("wait", "--condition", "healthy", member)
    generated = host.run("kube", "generate", "p").stdout
    (pod,) = (one for one in yaml.safe_load_all(generated) if one["kind"] == "Pod")
    probes = {one["name"]: one["livenessProbe"] for one in pod["spec"]["containers"]}
    assert probes["a"]["httpGet"] == {"path": "/page", "port": 8080, "httpHeaders": [{"name": "X-A", "value": "b"}]}  # fmt: skip
    assert probes["b"]["tcpSocket"] == {"port": 8080} and probes["b"]["periodSeconds"] == 1
    assert all("unchanged" in line for line in play(generated).stdout.splitlines())


@pytest.mark.live
def test_parts_of_volumes_there_and_back(host, play, tmp_path):
    """subPath of each kind of volume: made when it is missing, and inside of the volume whatever symlinks are there."""
    (tmp_path / "outside").write_text("outside")
    text = BOX.replace(
        "    - {name: memory, mountPath: /memory}",
        "    - {name: memory, mountPath: /memory}\n    - {name: shared, mountPath: /new, subPath: deep/new}\n    - {name: host, mountPath: /host, subPath: d}",
    )
    text = text.replace("mountPath: /kept}", "mountPath: /kept, subPath: part}").replace("  volumes:", f"  volumes:\n  - {{name: host, hostPath: {{path: {tmp_path}/host}}}}")  # fmt: skip
    (tmp_path / "host/d").mkdir(parents=True)
    (tmp_path / "host/d/file").write_text("of the host")
    play(text)
    assert inside(host, "p-a", "cat /host/file; touch /new/x; ls /shared/deep/new /memory") == "of the host/memory:\n\n/shared/deep/new:\nx\n"  # fmt: skip
    assert inside(host, "p-b", "touch /kept/y; ls /s/deep/new") == "x\n"
    generated = host.run("kube", "generate", "p").stdout
    (pod,) = (one for one in yaml.safe_load_all(generated) if one["kind"] == "Pod")
    parts = {mount["mountPath"]: mount.get("subPath") for one in pod["spec"]["containers"] for mount in one["volumeMounts"]}  # fmt: skip
    assert (parts["/new"], parts["/host"], parts["/kept"]) == ("deep/new", "d", "part")
    assert all("unchanged" in line for line in play(generated).stdout.splitlines())


@pytest.mark.live
def test_a_probe_whose_program_has_the_name_of_a_keyword(host, play):
    """What Docker's keywords say can't be a probe, and is kept as an option."""
    play(BOX.replace("args: [sleep,", 'livenessProbe: {exec: {command: [CMD, "true"]}}\n    args: [sleep,'))
    found = list(yaml.safe_load_all(host.run("kube", "generate", "p").stdout))[-1]
    probes = [one.get("livenessProbe", {}).get("exec") for one in found["spec"]["containers"]]
    assert {"command": ["CMD", "true"]} in probes
    host.run(
        "join", "p", "-d", "--name", "shell", "--image", "box", "--health-cmd", '["CMD-SHELL", "true"]', "sleep", "9"
    )
    found = list(yaml.safe_load_all(host.run("kube", "generate", "p").stdout))[-1]
    assert "CMD-SHELL" in found["metadata"]["annotations"]["nsrun.join/shell"]


@pytest.mark.live
def test_kubectl_takes_what_is_generated(host, play, tmp_path):
    """It is decoded to the types of its API, which have no field that is not in the schema, and nothing of it is lost."""
    need(shutil.which("kubectl"), "kubectl is missing", "apt-get install kubernetes-client")
    play(GROUPED)
    text = host.run("kube", "generate", "p").stdout.partition("---\n")[2]
    (tmp_path / "out.yaml").write_text(text)
    env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin:/usr/local/bin"}
    command = ["kubectl", "set", "env", "--local", "-f", tmp_path / "out.yaml", "-o", "json", "ADDED=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=env)
    ours, theirs = yaml.safe_load(text), json.loads(done.stdout)
    for container in theirs["spec"]["containers"]:
        container["env"] = [one for one in container["env"] if one["name"] != "ADDED"]
    lost = missing(ours, theirs)
    assert not lost, lost


def missing(ours, theirs, path="") -> list[str]:
    """The paths of what is in one document and not, or otherwise, in the other."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [one for key, value in ours.items() for one in missing(value, theirs.get(key), f"{path}.{key}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [
            one for at, pair in enumerate(zip(ours, theirs, strict=True)) for one in missing(*pair, f"{path}[{at}]")
        ]
    return [] if ours == theirs else [path]


@pytest.mark.live
def test_what_can_not_be_told_is_refused(host, play, busybox):
    host.run("pod", "create", "--network", "none", "P")
    host.run("pod", "create", "--network", "none", "q")
    assert "'P' has a name that Kubernetes does not allow" in host.fails(125, "kube", "generate", "P")
    assert "no members" in host.fails(125, "kube", "generate", "q")
    host.run("join", "q", "-d", "--rootfs", busybox, "--name", "m", "sleep", "100")
    assert f"'m' has no image, but the directory {busybox}" in host.fails(125, "kube", "generate", "q")
    assert "no pod 'r'" in host.fails(125, "kube", "generate", "r")


@pytest.mark.live
def test_a_member_that_ended_is_generated_as_well(host, play):
    host.run("pod", "create", "--network", "none", "q")
    host.run("join", "q", "-d", "--image", "box", "--name", "m", "true")
    wait_for(lambda: host.member("m")["status"] == "stopped")
    pod = yaml.safe_load(host.run("kube", "generate", "q").stdout)
    assert pod["spec"]["containers"][0]["args"] == ["true"] and pod["spec"]["restartPolicy"] == "Never"
    assert pod["metadata"]["annotations"]["nsrun.name/m"] == "m"
