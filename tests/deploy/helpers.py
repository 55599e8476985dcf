"""The files of deploy/, read for the tests."""

import json
import re
from typing import Any

import yaml

from esrt.bundled import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
# A metric's name; functions and keywords of PromQL are told apart by what follows them.
_METRIC = re.compile(r"(?<![\w:$\"])((?:vllm:|esrt_|process_)\w+)(?=\{|\[|\s|\)|,|$)")


def documents(name: str) -> list[dict[str, Any]]:
    """The YAML documents of a file."""
    return list(yaml.safe_load_all((DEPLOY / name).read_text("utf-8")))


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DEPLOY / "grafana.json").read_text("utf-8"))
    return found


def expressions() -> list[str]:
    return [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]


def dashboard_metrics() -> set[str]:
    """Every metric that a panel or a variable of the dashboard names."""
    queries = [item["query"] for item in dashboard()["templating"]["list"]]
    texts = expressions() + [query["query"] for query in queries if isinstance(query, dict)]
    return {name for text in texts for name in _METRIC.findall(text)}
