"""Exported artifacts for benchmarks."""

import subprocess
import sys
from pathlib import Path

from edge_runtime.artifact import Artifact, open_artifact
from esrt.bundled import REPOSITORY
from esrt.errors import CheckFailed


def export_onnx(checkpoint: Path, folder: Path) -> Artifact:
    """Export a checkpoint's encoder as int8 ONNX to ``folder/onnx-int8``, and open it.

    Raises:
        CheckFailed: the export failed; its own message says why.
    """
    out = folder / "onnx-int8"
    command = [sys.executable, "export/to_onnx.py", "--checkpoint", str(checkpoint.resolve())]
    command += ["--out", str(out.resolve())]
    if subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL).returncode:
        raise CheckFailed("The encoder could not be exported.", "See the message above.")
    return open_artifact(out)
