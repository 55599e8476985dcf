"""The model of the shared artifacts, and copies of the artifacts."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from esrt.checkpoint import Checkpoint
from esrt.model import EdgeModel
from tests.export.helpers import Exporter


@pytest.fixture(scope="session")
def model(lively: Checkpoint) -> EdgeModel:
    return lively.edge_model()


@pytest.fixture
def copied(artifacts: Exporter, tmp_path: Path) -> Callable[[str, str], Path]:
    """A copy of the artifact of a kind and a form, to be changed."""
    return lambda kind, form: Path(shutil.copytree(artifacts(kind, form).folder, tmp_path / "copy"))
