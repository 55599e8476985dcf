"""Paths of the repository, the bundled model, its clips and the exported artifacts.

An installed wheel has no repository: there, models and artifacts lie below the current folder, and
the clips are part of the package.
"""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_IS_REPOSITORY = (_PACKAGE.parent / "pyproject.toml").is_file()

REPOSITORY = _PACKAGE.parent if _IS_REPOSITORY else Path()
CHECKPOINT = REPOSITORY / "models" / "esrt-nano"
SAMPLES = (CHECKPOINT if _IS_REPOSITORY else _PACKAGE) / "samples"
ARTIFACTS = REPOSITORY / "build" / "artifacts"
# The artifact that `export/to_onnx.py` writes without options.
ARTIFACT = ARTIFACTS / "esrt-nano-onnx-int8"
