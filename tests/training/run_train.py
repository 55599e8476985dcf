"""Runs ``training.train`` for the tests: small model, quick validation, a save after every step.

The environment variable ``KILL_AT=n`` kills the process with SIGKILL before step n.
"""

import os
import signal

import torch

from esrt.cli import run
from esrt.config import CONFIGS
from tests.training.helpers import SMALL
from training import train, training_run, translation
from training.data import Batch

CONFIGS[SMALL.name] = SMALL
training_run.SAVE_EVERY_SECONDS = 0
translation.MAX_NEW_TOKENS = 4


class KilledRun(training_run.TrainingRun):
    """Training run that kills its process."""

    def train_step(self, batch: Batch) -> dict[str, float]:
        if self.step + 1 == int(os.environ["KILL_AT"]):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().train_step(batch)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "KILL_AT" in os.environ:
        training_run.TrainingRun = KilledRun  # type: ignore[misc]
    run(train.main)
