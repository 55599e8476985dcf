"""A small checkpoint and its artifacts, exported once a session for the tests of all folders."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    # Not imported at run time: torch takes seconds, which most tests need not wait for.
    from esrt.checkpoint import Checkpoint
    from tests.export.helpers import Exporter


@pytest.fixture(scope="session")
def lively(tmp_path_factory: pytest.TempPathFactory) -> "Checkpoint":
    from tests.export.artifacts import lively_checkpoint

    return lively_checkpoint(tmp_path_factory.mktemp("checkpoints") / "lively")


@pytest.fixture(scope="session")
def artifacts(lively: "Checkpoint", tmp_path_factory: pytest.TempPathFactory) -> "Exporter":
    from tests.export.artifacts import exporter

    return exporter(lively, tmp_path_factory.mktemp("artifacts"))
