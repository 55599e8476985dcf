"""What the runtime may lean on: a phone has no torch, and the cloud is another program."""

import ast
from pathlib import Path

from tests.edge_runtime.kit import REPOSITORY, python

SHARED = {"languages", "errors", "prompt", "frontend", "wire", "manifest"}
# onnxruntime is loaded by the backend that needs it, rich where there is a terminal.
LATE = {"torch", "transformers", "onnxruntime"}


def imported(path: Path) -> set[str]:
    """Full names of all modules that a file imports, late imports included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert node.module
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_only_the_shared_core() -> None:
    files = sorted((REPOSITORY / "edge_runtime").rglob("*.py"))
    assert files
    for path in files:
        for name in imported(path):
            parts = name.split(".")
            assert parts[0] not in {"torch", "cloud_vllm", "export", "training", "benchmarks"}
            assert parts[0] != "esrt" or parts[1] in SHARED, (path, name)


def test_nothing_heavy_is_loaded() -> None:
    result = python("-c", "import sys, edge_runtime.cli; print(*sys.modules)")
    assert result.returncode == 0, result.stderr
    assert not LATE & set(result.stdout.split())
