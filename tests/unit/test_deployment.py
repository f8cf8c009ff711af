"""deploy/: units, image and manifests name what exists, agree with each other, and set options that there are."""

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.routing import Route

from edl_collective.coord.auth import ClusterKey
from edl_collective.coord.key_file import KeyFileError, load_key
from edl_collective.coord.records import JobSpec
from jobclient.config import parse as parse_client
from jobclient.node_api import make_app
from jobserver.config import parse as parse_server

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
PYTHON = "/usr/lib/edl/.venv/bin/python"
#: between the end of a drain and the kill: the ladder of a worker, and the last records
LADDER_S = JobSpec(job="j", command=("x",), max_np=1).stop_timeout_s + 5.0
Document = dict[str, Any]


class _Repeated(dict[str, Any]):
    """Options of a unit file that are given several times become one with several lines."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name in self and isinstance(value, list) and isinstance(self[name], list):
            self[name].extend(value)
        else:
            super().__setitem__(name, value)


def unit(path: Path) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(dict_type=_Repeated, strict=False, comment_prefixes="#")
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(path.read_text())
    return parser


def environment(path: Path) -> dict[str, str]:
    pairs = [line.partition("=") for line in unit(path)["Service"]["Environment"].splitlines()]
    return {name: value for name, _, value in pairs}


def test_there_is_a_unit_for_each_program() -> None:
    assert [path.stem for path in UNITS] == ["edl-jobclient", "edl-jobserver"]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_unit(path: Path, tmp_path: Path) -> None:
    service = unit(path)["Service"]
    module = path.stem.removeprefix("edl-")
    assert service["ExecStart"] == f"{PYTHON} -m {module} --config /etc/edl/{module}.toml"
    config = tmp_path / "c.toml"
    config.write_text('zookeeper = "zk:2181"\n')
    environ = environment(path) | {"EDL_CONFIG": str(config)}
    (parse_client if module == "jobclient" else parse_server)([], environ)  # raises for what is no option
    if shutil.which("systemd-analyze"):
        runnable = tmp_path / path.name  # whose program exists
        runnable.write_text(path.read_text().replace(PYTHON, sys.executable))
        done = subprocess.run(["systemd-analyze", "verify", "--man=no", runnable], capture_output=True, text=True)
        assert (done.returncode, [line for line in done.stderr.splitlines() if path.name in line]) == (0, [])


def test_systemd_lets_a_drain_end() -> None:
    path = DEPLOY / "systemd" / "edl-jobclient.service"
    service = unit(path)["Service"]
    config = parse_client([], environment(path))
    assert service["KillMode"] == "mixed"  # else the workers, too, get SIGTERM
    assert config.drain_timeout_s is not None
    assert float(service["TimeoutStopSec"]) >= config.drain_timeout_s + LADDER_S


def manifests() -> list[Document]:
    files = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
    return [document for file in files for document in yaml.safe_load_all(file.read_text())]


def one(kind: str, name: str) -> Document:
    (found,) = [d for d in manifests() if d["kind"] == kind and d["metadata"]["name"] == name]
    return found


def pod(document: Document) -> Document:
    spec: Document = document["spec"]["template"]["spec"]
    return spec


def environ_of(document: Document) -> dict[str, str]:
    """What the container gets, an example for each value that Kubernetes fills in."""
    (container,) = pod(document)["containers"]
    fields = {"status.podIP": "10.1.2.3", "spec.nodeName": "ip-10-0-0-7.internal", "metadata.name": "edl-jobserver-0"}
    environ: dict[str, str] = {}
    for source in container["envFrom"]:
        environ |= one("ConfigMap", source["configMapRef"]["name"])["data"]
    for entry in container["env"]:
        environ[entry["name"]] = entry.get("value") or fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
    return environ


WORKLOADS = [("StatefulSet", "edl-jobserver"), ("DaemonSet", "edl-jobclient")]


def test_manifests_are_whole() -> None:
    kinds = sorted(document["kind"] for document in manifests())
    assert kinds == [
        *("ConfigMap", "DaemonSet", "Namespace", "PodDisruptionBudget", "Secret", "Service", "Service", "StatefulSet")
    ]
    for document in manifests():
        assert document["apiVersion"] in ("v1", "apps/v1", "policy/v1")
        namespace = document["metadata"].get("namespace")
        assert namespace == (None if document["kind"] == "Namespace" else "edl")


@pytest.mark.parametrize(("kind", "name"), WORKLOADS)
def test_what_a_pod_refers_to_is_there(kind: str, name: str) -> None:
    document = one(kind, name)
    labels = document["spec"]["template"]["metadata"]["labels"]
    assert document["spec"]["selector"]["matchLabels"].items() <= labels.items()
    spec = pod(document)
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    mounted = [m["name"] for c in (*spec["containers"], *spec["initContainers"]) for m in c["volumeMounts"]]
    assert set(mounted) == volumes.keys()
    assert "key" in one("Secret", volumes["secret"]["secret"]["secretName"])["stringData"]
    assert {c["image"] for c in (*spec["containers"], *spec["initContainers"])} == {"edl:latest"}
    assert spec["securityContext"]["runAsUser"] == int(re.findall(r"--uid (\d+)", dockerfile())[0])


def test_the_jobserver_starts_with_its_environment_and_is_found_where_it_listens() -> None:
    document = one("StatefulSet", "edl-jobserver")
    config = parse_server([], environ_of(document))
    assert (config.server_name, config.host, config.zookeeper) == (
        *("edl-jobserver-0", "10.1.2.3", "zookeeper.zookeeper.svc:2181"),
    )
    (port,) = pod(document)["containers"][0]["ports"]
    assert config.server_port == port["containerPort"]
    labels = document["spec"]["template"]["metadata"]["labels"]
    for name in ("edl-jobserver", document["spec"]["serviceName"]):
        service = one("Service", name)["spec"]
        assert service["selector"].items() <= labels.items()
        assert [(p["port"], p["targetPort"]) for p in service["ports"]] == [(config.server_port, port["name"])]
    (rule,) = pod(document)["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert rule["labelSelector"]["matchLabels"].items() <= labels.items()
    assert one("PodDisruptionBudget", "edl-jobserver")["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_the_jobclient_starts_with_its_environment_and_may_end_its_drain(tmp_path: Path) -> None:
    document = one("DaemonSet", "edl-jobclient")
    config = parse_client([], environ_of(document))
    assert (config.node, config.address, config.slots) == ("ip-10-0-0-7.internal", "10.1.2.3", 2)
    assert config.port == pod(document)["containers"][0]["ports"][0]["containerPort"]
    assert config.drain_timeout_s is not None
    assert pod(document)["terminationGracePeriodSeconds"] >= config.drain_timeout_s + LADDER_S
    probe = pod(document)["containers"][0]["readinessProbe"]["httpGet"]
    assert probe["scheme"] == ("HTTPS" if config.tls else "HTTP"), "a pod that is never ready stops the roll-out"
    app = make_app(tmp_path, ClusterKey(b"k" * 32), config.node)
    assert probe["path"] in [route.path for route in app.routes if isinstance(route, Route)]


@pytest.mark.parametrize(("kind", "name"), WORKLOADS)
def test_pods_may_do_no_more_than_the_restricted_standard_of_kubernetes_allows(kind: str, name: str) -> None:
    spec = pod(one(kind, name))
    assert (spec["securityContext"]["runAsNonRoot"], spec["automountServiceAccountToken"]) == (True, False)
    assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    for container in (*spec["containers"], *spec["initContainers"]):
        allowed = container["securityContext"]
        assert (allowed["allowPrivilegeEscalation"], allowed["capabilities"]) == (False, {"drop": ["ALL"]})
    assert [volume for volume in spec["volumes"] if "hostPath" in volume] == []


def test_the_placeholder_of_the_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(one("Secret", "edl-key")["stringData"]["key"])
    (tmp_path / "key").chmod(0o600)
    with pytest.raises(KeyFileError, match="a key has at least"):
        load_key(tmp_path / "key")


def dockerfile() -> str:
    return (DEPLOY / "docker" / "Dockerfile").read_text()


def test_what_the_image_copies_exists_is_sent_and_is_all_that_is_installed() -> None:
    copied = [line.split()[1:-1] for line in dockerfile().splitlines() if re.match(r"COPY (?!--from)", line)]
    sources = {source for line in copied for source in line}
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert (ROOT / "scripts" / "setup.sh").stat().st_mode & 0o100
    ignore = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    sent = {line[1:] for line in ignore if line.startswith("!")}
    assert sources == sent
    hidden = [line for line in ignore[1:] if not line.startswith("!")]
    assert (ignore[0], hidden) == ("*", ["**/__pycache__"])
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "scripts"}
    assert packages <= sources


def test_the_image_is_built_with_options_that_the_set_up_has() -> None:
    text = dockerfile()
    setup = (ROOT / "scripts" / "setup.sh").read_text()
    names = re.findall(r"\b(EDL_\w+)=\$\{(\w+)\}", text)
    assert {name for name, _ in names} == {"EDL_TORCH_VERSION", "EDL_WITH_NCCL"}
    assert [name for name, argument in names if name not in setup or f"ARG {argument}=" not in text] == []
    (version,) = re.findall(r"ARG TORCH_VERSION=(\S+)", text)
    assert f"EDL_TORCH_VERSION:-{version}}}" in setup
    extras = re.findall(r"ARG EXTRAS=(\S+)", text)[0].split(",")
    listed = (ROOT / "setup.py").read_text()
    assert [extra for extra in extras if f'"{extra}": ' not in listed] == []
    stages = re.findall(r"^FROM (\S+)(?: AS (\w+))?$", text, re.MULTILINE)
    assert stages == [("${BUILD_BASE}", "build"), ("${BASE}", "")]
    assert re.findall(r"COPY --from=(\w+) (\S+) (\S+)", text) == [("build", "/usr/lib/edl", "/usr/lib/edl")]
    assert f"{Path(PYTHON).parent}:" in text  # the same place as in the units
