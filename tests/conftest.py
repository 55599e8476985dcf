"""A small checkpoint, its artifacts and a TLS certificate, made once for all folders."""

import subprocess
from pathlib import Path
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


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    chain, key = folder / "chain.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-addext",
         "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", chain],
        check=True, capture_output=True,
    )  # fmt: skip
    return chain, key
