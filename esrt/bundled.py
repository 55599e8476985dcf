"""Paths of the repository and of the bundled model."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
CHECKPOINT = REPOSITORY / "models" / "esrt-nano"
SAMPLES = CHECKPOINT / "samples"
