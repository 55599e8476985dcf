"""Export the device part of a checkpoint to Core ML: ``python export/to_coreml.py``."""

import os
import sys
from pathlib import Path

if __package__ is None:  # run as a file: the packages lie in the repository, not in this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    # coremltools draws a progress bar for each of its passes; tqdm reads this at import.
    os.environ["TQDM_DISABLE"] = "1"

from export import cli

if __name__ == "__main__":
    cli.run("coreml")
