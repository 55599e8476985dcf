"""Fixtures of the edge runtime's tests."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.edge_runtime import helpers


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny encoder; tests must not change it."""
    folder = tmp_path_factory.mktemp("artifact")
    helpers.tiny_graph(folder / "encoder.onnx")
    helpers.describe(folder)
    return folder


@pytest.fixture(scope="session")
def utterance(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audio file with one second of speech."""
    return helpers.write_wav(tmp_path_factory.mktemp("audio") / "speech.wav", helpers.voice(1.0))


@pytest.fixture
def gateway() -> Iterator[helpers.Gateway]:
    """A running gateway that translates unless a test sets its `answer`."""
    gateway = helpers.Gateway()
    with gateway.server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield gateway
        server.shutdown()
        thread.join()
