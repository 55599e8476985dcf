"""The wheel of this project, built once, and whether packages can be had."""

import importlib.util
from pathlib import Path

import pytest

from esrt.bundled import REPOSITORY
from tests.packaging.helpers import pip


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without network by the build backend of lock.txt."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling, the build backend, is not installed")
    out = tmp_path_factory.mktemp("wheel")
    done = pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", out, REPOSITORY)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = out.glob("*.whl")
    return file


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip the test where no package registry can be reached."""
    out = tmp_path_factory.mktemp("probe")
    if pip("download", "--no-deps", "--retries", "0", "--dest", out, "idna").returncode:
        pytest.skip("the package registry cannot be reached")
