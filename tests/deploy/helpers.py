"""Readers for the files of deploy/, and free ports."""

import json
import re
import socket
from collections.abc import Iterator
from typing import Any

import yaml

from esrt.bundled import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
MANIFESTS = ("kubernetes.yaml", "models.yaml", "rayservice.yaml")
CONTAINERFILE = (DEPLOY / "Containerfile").read_text("utf-8")
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


def pods(name: str) -> list[dict[str, Any]]:
    """The specifications of a manifest's pods."""
    return [spec for spec in values(name, "spec") if "containers" in spec]


def container(name: str, which: str) -> dict[str, Any]:
    """A container of a manifest, by its name."""
    (found,) = [c for pod in pods(name) for c in pod["containers"] if c["name"] == which]
    return found


def kinds(name: str, kind: str) -> list[dict[str, Any]]:
    """The documents of one kind."""
    return [document for document in documents(name) if document["kind"] == kind]


def image_environment() -> dict[str, str]:
    """The variables that the image sets."""
    (block,) = re.findall(r"^ENV ((?:.*\\\n)*.*)$", CONTAINERFILE, re.M)
    return dict(item.split("=", 1) for item in block.replace("\\\n", " ").split())


def dashboard() -> dict[str, Any]:
    board: dict[str, Any] = json.loads((DEPLOY / "grafana.json").read_text("utf-8"))
    return board


def expressions() -> list[str]:
    return [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]


def alert_rules() -> list[dict[str, Any]]:
    return [rule for rules in values("alerts.yml", "rules") for rule in rules]


def used_metrics() -> set[str]:
    """The metrics of the gateway that the dashboard and the alert rules use."""
    queries = [item["query"] for item in dashboard()["templating"]["list"]]
    texts = expressions() + [query["query"] for query in queries if isinstance(query, dict)]
    texts += [rule["expr"] for rule in alert_rules()]
    return {name for text in texts for name in _METRIC.findall(text)}
