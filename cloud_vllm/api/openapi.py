"""Writes the OpenAPI document to docs/: ``python -m cloud_vllm.api.openapi``."""

import json
from pathlib import Path

from cloud_vllm.api.app import create_app
from cloud_vllm.settings import Settings

FILE = Path("docs/openapi.json")


def document(settings: Settings) -> str:
    """The OpenAPI document as JSON."""
    return json.dumps(create_app(settings).openapi(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(document(Settings()), "utf-8")
