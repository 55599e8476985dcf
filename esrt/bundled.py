"""Paths of the repository and of the model that comes with it."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
CHECKPOINT = REPOSITORY / "models" / "esrt-nano"
SAMPLES = CHECKPOINT / "samples"
