"""Export the device part of a checkpoint to ExecuTorch: ``python export/to_executorch.py``."""

import sys
from pathlib import Path

if __package__ is None:  # run as a file: the packages lie in the repository, not in this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from export import cli

if __name__ == "__main__":
    cli.run("executorch")
