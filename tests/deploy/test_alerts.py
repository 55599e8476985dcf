"""deploy/alerts.yml and deploy/prometheus.yml, checked by promtool."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cloud_vllm.api.app import create_app
from cloud_vllm.settings import Settings
from esrt import errors
from esrt.bundled import CHECKPOINT, REPOSITORY
from tests.cloud_vllm.helpers import ScriptedEngine
from tests.deploy.helpers import DEPLOY, alert_rules, values

PROMTOOL = shutil.which("promtool") or shutil.which("promtool", path=REPOSITORY / "build")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None,
    reason="promtool is not installed. On Debian: make promtool",
)


def promtool(*arguments: str | Path) -> None:
    assert PROMTOOL is not None
    ran = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@needs_promtool
def test_alerts_fire_when_they_should() -> None:
    promtool("test", "rules", Path(__file__).with_name("alerts_test.yml"))


@needs_promtool
def test_the_configuration_loads_the_rules(tmp_path: Path) -> None:
    text = (DEPLOY / "prometheus.yml").read_text("utf-8")
    # The key exists on Prometheus' machine only, and Debian's promtool does not know Kubernetes.
    for shipped, replacement in {
        "/etc/prometheus/esrt-metrics-key": "key",
        "kubernetes_sd_configs:\n      - role: pod": "static_configs:\n      - targets: [a]",
    }.items():
        assert shipped in text
        text = text.replace(shipped, replacement)
    (tmp_path / "prometheus.yml").write_text(text)
    (tmp_path / "key").touch()
    shutil.copy(DEPLOY / "alerts.yml", tmp_path)
    promtool("check", "config", "--lint=all", "--lint-fatal", tmp_path / "prometheus.yml")


def test_alerts_name_existing_jobs_routes_and_problems() -> None:
    text = (DEPLOY / "alerts.yml").read_text("utf-8")
    (scrape,) = next(values("prometheus.yml", "scrape_configs"))
    assert set(re.findall(r'job="([^"]+)"', text)) == {scrape["job_name"]}
    paths = set(create_app(Settings(checkpoint=CHECKPOINT), ScriptedEngine()).openapi()["paths"])
    assert set(re.findall(r'route="([^"]+)"', text)) <= paths
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    types = {kind.type for kind in kinds if issubclass(kind, errors.EsrtError)}
    named = {name for names in re.findall(r'problem=~"([^"]+)"', text) for name in names.split("|")}
    assert named
    assert named <= types
    assert len({rule["alert"] for rule in alert_rules()}) == len(alert_rules())
