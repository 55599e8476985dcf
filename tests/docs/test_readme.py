"""The README's Python example, run as typed against a scripted gateway."""

import re
import threading
from pathlib import Path

import pytest

from esrt.bundled import REPOSITORY
from tests.edge_runtime import helpers


def test_the_python_example_translates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = re.search(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    assert example
    artifact = tmp_path / "build/artifacts/esrt-nano-onnx-int8"
    artifact.mkdir(parents=True)
    helpers.tiny_graph(artifact / "encoder.onnx")
    helpers.describe(artifact)
    (tmp_path / "models").symlink_to(REPOSITORY / "models")
    monkeypatch.chdir(tmp_path)
    gateway = helpers.Gateway()
    with gateway.server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            exec(example[1].replace("http://127.0.0.1:8080", gateway.url), {})
        finally:
            server.shutdown()
            thread.join()
    assert capsys.readouterr().out == helpers.DONE["translation"] + "\n"
    assert gateway.exchanges[0].query == {"src": "eng", "tgt": "deu"}
