"""The manifests: Kubernetes' schemas, security contexts, network, TLS, and revoked keys."""

import copy
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cloud_vllm.auth import keys
from tests.deploy.helpers import (
    CONTAINERFILE,
    DEPLOY,
    MANIFESTS,
    container,
    documents,
    image_environment,
    kinds,
    pods,
    values,
)

# The oldest version with the fields used here that the package knows, and the newest.
KUBERNETES = ("1.29", "1.37")
each_manifest = pytest.mark.parametrize("name", MANIFESTS)


def resources(name: str) -> list[dict[str, Any]]:
    """The documents of a manifest, and the pod templates of a RayService as documents."""
    found = [document for document in documents(name) if document["kind"] != "RayService"]
    for cluster in values(name, "rayClusterConfig"):
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            template = {"template": group["template"], "metadata": {"name": "template"}}
            found.append({"apiVersion": "v1", "kind": "PodTemplate", **template})
    return found


@each_manifest
@pytest.mark.parametrize("version", KUBERNETES)
def test_manifests_fit_the_schemas_of_kubernetes(name: str, version: str) -> None:
    schemas = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed"
    )
    for document in resources(name):
        schemas.validate(document, version, strict=True)
        misspelt = copy.deepcopy(document)
        for spec in values_of(misspelt, "securityContext"):
            spec["runAsNonRoots"] = True
        if misspelt != document:
            with pytest.raises(schemas.ValidationError):
                schemas.validate(misspelt, version, strict=True)


def values_of(node: Any, key: str) -> list[dict[str, Any]]:
    """Every mapping under a key, at any depth."""
    found = []
    if isinstance(node, dict):
        found += [node[key]] if key in node else []
        found += [item for value in node.values() for item in values_of(value, key)]
    elif isinstance(node, list):
        found += [item for value in node for item in values_of(value, key)]
    return found


@each_manifest
def test_pods_have_no_privileges(name: str) -> None:
    (user,) = re.findall(r"^USER (\d+)$", CONTAINERFILE, re.M)
    for pod in pods(name):
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] == context["fsGroup"] == int(user)
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        # Kubernetes' variables of Services have the prefix of the settings: ESRT_GATEWAY_PORT.
        assert pod["enableServiceLinks"] is False
        # Only Ray's autoscaler, in the pod of the head, uses the Kubernetes API.
        head = pod["containers"][0]["name"] == "ray-head"
        assert pod["automountServiceAccountToken"] is head
        for item in pod["containers"]:
            assert_no_privileges(item["securityContext"])
    for options in values(name, "autoscalerOptions"):
        assert_no_privileges(options["securityContext"])


def assert_no_privileges(context: dict[str, Any]) -> None:
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert context["capabilities"] == {"drop": ["ALL"]}


def test_the_gateway_can_write_its_caches() -> None:
    (home,) = re.findall(r"^RUN useradd .*--create-home (\w+)$", CONTAINERFILE, re.M)
    for name, which in (
        ("kubernetes.yaml", "gateway"),
        ("rayservice.yaml", "ray-head"),
        ("rayservice.yaml", "ray-worker"),
    ):
        (pod,) = [p for p in pods(name) if which in {c["name"] for c in p["containers"]}]
        empty = {volume["name"] for volume in pod["volumes"] if "emptyDir" in volume}
        mounts = container(name, which)["volumeMounts"]
        writable = {mount["mountPath"] for mount in mounts if mount["name"] in empty}
        assert {f"/home/{home}", "/tmp"} <= writable


def test_services_lead_to_tls_only() -> None:
    services = [service for name in MANIFESTS for service in kinds(name, "Service")]
    assert len(services) == 2
    for service in services:
        assert service["spec"]["ports"] == [{"name": "https", "port": 443, "targetPort": "https"}]
        assert service["spec"]["externalTrafficPolicy"] == "Local"


@pytest.mark.parametrize("name", ["kubernetes.yaml", "rayservice.yaml"])
def test_nginx_finds_its_files_and_its_port(name: str) -> None:
    text = (DEPLOY / "nginx.conf").read_text("utf-8")
    (pod,) = [p for p in pods(name) if "nginx" in {c["name"] for c in p["containers"]}]
    proxy = container(name, "nginx")
    assert f"listen {proxy['ports'][0]['containerPort']} ssl;" in text
    # A port below 1024 for a user that is not root.
    assert pod["securityContext"]["sysctls"] == [
        {"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}
    ]
    mounts = {mount["name"]: mount["mountPath"] for mount in proxy["volumeMounts"]}
    (configuration,) = [v["configMap"]["name"] for v in pod["volumes"] if "configMap" in v]
    assert f"{mounts['proxy']}/nginx.conf" in proxy["command"]
    readme = (DEPLOY / "README.md").read_text("utf-8")
    assert re.search(rf"create configmap {configuration} --from-file=(\S*/)?nginx\.conf", readme)
    (secret,) = [volume["secret"] for volume in pod["volumes"] if volume["name"] == "tls"]
    files = {f"{mounts['tls']}/{item['path']}" for item in secret["items"]}
    assert set(re.findall(r"ssl_certificate(?:_key)? +(\S+);", text)) == files
    # Folders that nginx writes: its pid file, and its temporary files in the official image.
    writable = {v["name"] for v in pod["volumes"] if "emptyDir" in v}
    assert {mounts[volume] for volume in writable & set(mounts)} == {"/run", "/var/cache/nginx"}


def test_nginx_reaches_the_gateway(tmp_path: Path) -> None:
    text = (DEPLOY / "nginx.conf").read_text("utf-8")
    gateway = container("kubernetes.yaml", "gateway")
    upstream = re.compile(r"^ +server (\S+);", re.M)
    assert upstream.findall(text) == [f"127.0.0.1:{gateway['ports'][0]['containerPort']}"]
    # For Ray, the README replaces the address by the operator's Service.
    readme = (DEPLOY / "README.md").read_text("utf-8")
    (command,) = re.findall(r"^    (sed .* deploy/nginx\.conf)", readme, re.M)
    ran = subprocess.run(
        command, shell=True, cwd=DEPLOY.parent, capture_output=True, text=True, check=True
    )
    (service,) = kinds("rayservice.yaml", "RayService")
    ports = {
        p["name"]: p["containerPort"] for p in container("rayservice.yaml", "ray-head")["ports"]
    }
    assert upstream.findall(ran.stdout) == [
        f"{service['metadata']['name']}-serve-svc:{ports['serve']}"
    ]


def test_only_prometheus_reaches_the_gateway_without_tls() -> None:
    (policy,) = kinds("kubernetes.yaml", "NetworkPolicy")
    everyone, prometheus = policy["spec"]["ingress"]
    assert everyone == {"ports": [{"port": "https"}]}
    assert prometheus["from"][0].keys() == {"namespaceSelector"}
    assert prometheus["ports"] == [{"port": "http"}]
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert policy["spec"]["egress"] == []
    assert image_environment()["ESRT_HOST"] == "0.0.0.0", "the probes come from the node"


def test_ray_is_reached_by_its_own_pods_the_proxy_prometheus_and_the_operator() -> None:
    (policy,) = kinds("rayservice.yaml", "NetworkPolicy")
    (proxy,) = kinds("rayservice.yaml", "Deployment")
    selected = policy["spec"]["podSelector"]["matchLabels"]
    (cluster,) = values("rayservice.yaml", "rayClusterConfig")
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert selected.items() <= group["template"]["metadata"]["labels"].items()
    nodes, nginx, prometheus, operator = policy["spec"]["ingress"]
    (plain,) = kinds("kubernetes.yaml", "NetworkPolicy")
    assert prometheus["from"] == plain["spec"]["ingress"][1]["from"]
    assert prometheus["ports"] == [{"port": 8000}]
    assert container("rayservice.yaml", "ray-worker")["ports"] == [
        {"name": "serve", "containerPort": 8000}
    ]
    assert nodes == {"from": [{"podSelector": {"matchLabels": selected}}]}
    labels = proxy["spec"]["template"]["metadata"]["labels"]
    assert nginx["from"] == [{"podSelector": {"matchLabels": labels}}]
    assert nginx["ports"] == [{"port": 8000}]
    assert operator["from"][0].keys() == {"namespaceSelector", "podSelector"}
    assert operator["ports"] == [{"port": 8265}, {"port": 8000}]
    # The dashboard executes code on request.
    assert cluster["authOptions"] == {"mode": "token"}
    assert "dashboard-host" not in cluster["headGroupSpec"]["rayStartParams"]


def test_a_key_is_revoked_by_a_changed_secret(tmp_path: Path) -> None:
    """The kubelet replaces the folder behind a symbolic link; the gateway needs no restart."""
    original, mounted = tmp_path / "keys.json", tmp_path / "mounted"
    key = keys.create(original, "phone", keys.Scope.TRANSLATE)
    other = keys.create(original, "tablet", keys.Scope.TRANSLATE)
    mounted.mkdir()

    def project(number: int) -> None:
        folder = mounted / f"..{number}"
        folder.mkdir()
        (folder / "keys.json").write_bytes(original.read_bytes())
        (mounted / "..next").symlink_to(folder.name)
        (mounted / "..next").rename(mounted / "..data")

    project(1)
    (mounted / "keys.json").symlink_to("..data/keys.json")
    ring = keys.KeyRing(mounted / "keys.json")
    entry = ring.find(key)
    assert entry is not None
    keys.revoke(original, entry.id)
    assert ring.find(key) == entry, "the Secret has not changed yet"
    project(2)
    assert ring.find(key) is None
    assert ring.find(other) is not None
    for name in MANIFESTS:
        for pod in pods(name):
            for item in pod["containers"]:
                assert not [mount for mount in item["volumeMounts"] if "subPath" in mount]
