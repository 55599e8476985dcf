"""Imports of the edge runtime: no torch, which a phone lacks, and nothing of the cloud."""

import ast
from pathlib import Path

from esrt.bundled import REPOSITORY
from tests.edge_runtime.helpers import python

SHARED = {
    *("arrays", "bundled", "cli", "cores", "errors", "features", "files", "languages"),
    *("manifest", "native_log", "network", "prompt", "scripts", "speech", "wire"),
}
# Backends import these when they are created.
LATE = {"torch", "transformers", "onnxruntime", "executorch"}


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
            assert parts[0] not in {"cloud_vllm", "export", "training", "benchmarks"}
            # ExecuTorch's Python runtime takes torch tensors; the next tests check when it loads.
            assert parts[0] != "torch" or path.name == "backends.py", (path, name)
            assert parts[0] != "esrt" or parts[1] in SHARED, (path, name)


def test_nothing_heavy_is_loaded() -> None:
    result = python("-c", "import sys, edge_runtime.cli; print(*sys.modules)")
    assert result.returncode == 0, result.stderr
    assert not LATE & set(result.stdout.split())


def test_the_onnx_backend_loads_nothing_of_torch(artifact: Path) -> None:
    code = (
        "import sys, numpy, pathlib, edge_runtime\n"
        f"artifact = edge_runtime.open_artifact(pathlib.Path({str(artifact)!r}))\n"
        "artifact.backend(threads=1).encode(numpy.zeros((128, 80), numpy.float32))\n"
        "print(*sys.modules)"
    )
    result = python("-c", code)
    assert result.returncode == 0, result.stderr
    loaded = set(result.stdout.split())
    assert "onnxruntime" in loaded
    assert not {"torch", "transformers", "executorch"} & loaded
