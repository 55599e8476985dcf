"""The tiny checkpoint, written once per session; a test that changes files uses a copy."""

import shutil
from pathlib import Path

import pytest

from esrt.checkpoint import Checkpoint, open_checkpoint
from tests.tiny_checkpoint import tiny_checkpoint


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture
def copied(tiny: Checkpoint, tmp_path: Path) -> Checkpoint:
    """A copy of the tiny checkpoint that a test may change."""
    return open_checkpoint(Path(shutil.copytree(tiny.folder, tmp_path / "copy")))
