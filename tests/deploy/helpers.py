"""Readers for the files of deploy/, and free ports."""

import json
import re
import socket
from typing import Any

import yaml

from esrt.bundled import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
# The name of a metric in PromQL; the following character distinguishes it from other words.
_METRIC = re.compile(r"(?<![\w:$\"])((?:vllm:|esrt_|process_)\w+)(?=\{|\[|\s|\)|,|$)")


def free_port() -> int:
    """A port of loopback that no process listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def documents(name: str) -> list[dict[str, Any]]:
    """The YAML documents of a file."""
    return list(yaml.safe_load_all((DEPLOY / name).read_text("utf-8")))


def dashboard() -> dict[str, Any]:
    board: dict[str, Any] = json.loads((DEPLOY / "grafana.json").read_text("utf-8"))
    return board


def expressions() -> list[str]:
    return [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]


def dashboard_metrics() -> set[str]:
    """The metrics that the panels and variables of the dashboard use."""
    queries = [item["query"] for item in dashboard()["templating"]["list"]]
    texts = expressions() + [query["query"] for query in queries if isinstance(query, dict)]
    return {name for text in texts for name in _METRIC.findall(text)}
