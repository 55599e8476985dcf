"""The C++ runner: nano's programs on this processor and on an emulated phone, against torch."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from executorch.exir import to_edge_transform_and_lower
from torch import Tensor, nn

from benchmarks.runner import build as building
from benchmarks.runner.build import Target, build, fetch, missing
from esrt.arrays import Float32Array
from esrt.bundled import CHECKPOINT, REPOSITORY
from esrt.checkpoint import open_checkpoint
from esrt.errors import EsrtError
from esrt.manifest import Precision, read_manifest
from esrt.model import EdgeModel
from esrt.wire import Split
from export import parity
from export.backends import get_recipe
from export.recipe import export
from tests.export.helpers import cosines, expected
from tests.golden.front_end_vectors import VECTORS

EMULATOR = "qemu-aarch64-static"
LIBRARIES = "/usr/aarch64-linux-gnu"
PRECISIONS = (Precision.FP32, Precision.INT8)
# The shortest input, and two others whose emulated run takes a second.
LENGTHS = (8, 96, 152)
# Smallest cosine between two processors, whose int8 kernels round differently. The bound is
# tighter than that between int8 and torch (parity.BOUNDS).
MIN_COSINE = {Precision.FP32: 0.99999, Precision.INT8: 0.998}
# ARM's dot product of int8 with int8 (SDOT), by vector and by element: bits, and their mask.
SDOT = ((0x4E809400, 0xFFE0FC00), (0x4F80E000, 0xFFC0F400))


@dataclass(frozen=True)
class Machine:
    """A processor with a runner built for it; ``prefix`` emulates it."""

    runner: Path
    prefix: tuple[str, ...] = ()

    def start(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [*self.prefix, str(self.runner), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)

    def run(
        self, model: Path, mel: Float32Array, *options: str, out: Path
    ) -> tuple[Float32Array, Any]:
        """The features, and the line that the runner printed."""
        done = self.start(*arguments(model, mel, out), *options)
        assert (done.returncode, done.stderr) == (0, "")
        (line,) = done.stdout.splitlines()
        report = json.loads(line)
        return np.fromfile(out, np.float32).reshape(report["shape"]), report


def arguments(model: Path, mel: Float32Array, out: Path) -> list[str | Path]:
    path = out.with_name("mel.f32")
    mel.tofile(path)
    shape = ",".join(map(str, mel.shape))
    return ["--model", model, "--input", path, "--shape", shape, "--output", out]


@pytest.fixture(scope="module")
def x86(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    if reason := missing(Target.X86_64):
        pytest.skip(f"{reason} (make runner)")
    return Machine(build(Target.X86_64, tmp_path_factory.mktemp("x86") / "runner"))


@pytest.fixture(scope="module")
def a76(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    reason = missing(Target.AARCH64)
    if reason is None and not shutil.which(EMULATOR):
        reason = f"not installed: {EMULATOR}"
    if reason:
        pytest.skip(f"{reason} (make runner)")
    runner = build(Target.AARCH64, tmp_path_factory.mktemp("a76") / "runner")
    # A named core: -cpu max of QEMU 7.2 computes wrong numbers.
    return Machine(runner, (EMULATOR, "-L", LIBRARIES, "-cpu", "cortex-a76"))


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[Precision, Path]:
    checkpoint, folder = open_checkpoint(CHECKPOINT), tmp_path_factory.mktemp("nano")
    for precision in PRECISIONS:
        export(
            *(get_recipe("executorch"), checkpoint, folder / precision),
            *(precision, Split.QFORMER),
        )
    return {name: folder / name / read_manifest(folder / name).entry for name in PRECISIONS}


@pytest.fixture(scope="module")
def model() -> EdgeModel:
    return open_checkpoint(CHECKPOINT).edge_model()


def speech(model: EdgeModel, frames: int) -> Float32Array:
    """Log-mel of the bundled clips, joined and cut: (1, mel bins, frames)."""
    clips = np.concatenate(list(parity.sample_mels(model.config)), axis=1)
    assert clips.shape[1] >= frames
    return np.ascontiguousarray(clips[None, :, :frames])


# --- Numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
def test_x86_64_computes_the_features_of_torch(
    x86: Machine,
    programs: dict[Precision, Path],
    model: EdgeModel,
    precision: Precision,
    tmp_path: Path,
) -> None:
    for frames in (*LENGTHS, model.config.max_frames):
        mel = speech(model, frames)
        features, report = x86.run(programs[precision], mel, out=tmp_path / "features")
        assert report["shape"] == [1, model.config.tokens(frames), model.config.q_former.width]
        check_near_torch(features, expected(model, mel), precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_x86_64_computes_the_features_of_the_golden_vectors(
    x86: Machine, programs: dict[Precision, Path], precision: Precision, tmp_path: Path
) -> None:
    for vector in VECTORS:
        mel = vector.log_mel[None]
        features, _ = x86.run(programs[precision], mel, out=tmp_path / "features")
        check_near_torch(features, vector.features[None], precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_cortex_a76_computes_the_features_of_x86_64_and_torch(
    x86: Machine,
    a76: Machine,
    programs: dict[Precision, Path],
    model: EdgeModel,
    precision: Precision,
    tmp_path: Path,
) -> None:
    for frames in LENGTHS:
        mel = speech(model, frames)
        there, _ = x86.run(programs[precision], mel, out=tmp_path / "x86")
        here, _ = a76.run(programs[precision], mel, out=tmp_path / "a76")
        check_near_torch(here, expected(model, mel), precision)
        assert cosines(here, there).min() > MIN_COSINE[precision]


def check_near_torch(features: Float32Array, reference: Float32Array, precision: Precision) -> None:
    bounds = parity.BOUNDS[precision]
    assert cosines(features, reference).min() >= bounds.cosine
    assert np.abs(features - reference).max() <= bounds.error


def test_a_cortex_a76_uses_its_dot_product_instruction_for_int8(
    a76: Machine, programs: dict[Precision, Path], model: EdgeModel, tmp_path: Path
) -> None:
    mel = speech(model, 96)

    def dot_products(precision: Precision) -> int:
        log = tmp_path / precision
        prefix = (*a76.prefix, "-d", "in_asm", "-D", str(log))
        Machine(a76.runner, prefix).run(programs[precision], mel, out=tmp_path / "features")
        words = re.findall(r"^0x[0-9a-f]+: +([0-9a-f]{8}) ", log.read_text(), re.MULTILINE)
        assert len(words) > 10_000
        return sum(int(word, 16) & mask == bits for word in words for bits, mask in SDOT)

    assert dot_products(Precision.INT8) > 100
    assert dot_products(Precision.FP32) == 0


def test_threads_do_not_change_the_features(
    x86: Machine, programs: dict[Precision, Path], model: EdgeModel, tmp_path: Path
) -> None:
    mel = speech(model, 152)
    one, _ = x86.run(programs[Precision.FP32], mel, out=tmp_path / "features")
    two, _ = x86.run(programs[Precision.FP32], mel, "--threads", "2", out=tmp_path / "features")
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-5)


# --- The report ---------------------------------------------------------------------------------


def test_the_report_has_times_memory_and_shape(
    x86: Machine, programs: dict[Precision, Path], model: EdgeModel, tmp_path: Path
) -> None:
    _, report = x86.run(
        *(programs[Precision.INT8], speech(model, 96), "--rounds", "3", "--threads", "2"),
        out=tmp_path / "features",
    )
    assert {key: report.pop(key) for key in ("rounds", "threads", "shape")} == {
        "rounds": 3,
        "threads": 2,
        "shape": [1, 12, 192],
    }
    assert report.keys() == {"load_ms", "run_ms", "peak_memory_bytes"}
    assert report["load_ms"] > 0
    assert report["run_ms"] > 0
    weights = programs[Precision.INT8].stat().st_size
    assert weights < report["peak_memory_bytes"] < 20 * weights
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features", "mel.f32"]


def test_help(x86: Machine) -> None:
    done = x86.start("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: runner --model FILE")


# --- Bad input --------------------------------------------------------------------------------


class Case:
    """Changes to a valid command line, by option, and a part of the error message."""

    def __init__(self, message: str, *more: str, **changed: str | None) -> None:
        self.message, self.more, self.changed = message, more, changed


CASES = {
    "nothing": Case("are needed", model=None, input=None, shape=None, output=None),
    "no shape": Case("are needed", shape=None),
    "an unknown option": Case("'--bogus=1' is not understood", "--bogus=1"),
    "an option without its value": Case("'--rounds' is not understood", "--rounds"),
    "a word too many": Case("see --help", "more"),
    "no rounds": Case("from 1 to 2147483647, not '0'", "--rounds", "0"),
    "too many threads": Case("from 1 to 256, not '257'", "--threads", "257"),
    "a shape of words": Case("not 'x'", shape="1,128,x"),
    "a shape that ends in a comma": Case("not ''", shape="1,128,96,"),
    "a negative size": Case("not '-128'", shape="1,-128,-96"),
    "a size beyond all numbers": Case("not '99999999999'", shape="1,128,99999999999"),
    "a product beyond all numbers": Case("holds 49152 bytes", shape=",".join(["2147483647"] * 9)),
    "a shape of more numbers": Case("holds 49152 bytes", shape="1,128,104"),
    "a rank of its own": Case("takes inputs up to [1, 128, 1200], not [128, 96]", shape="128,96"),
    "another width": Case("up to [1, 128, 1200], not [1, 256, 48]", shape="1,256,48"),
    "no input": Case("nowhere: No such file", input="nowhere"),
    "a folder as input": Case("Is a directory", input="."),
    "no program": Case("nowhere cannot be loaded: AccessFailed", model="nowhere"),
    "a folder as program": Case("cannot be loaded", model="."),
    "an empty program": Case("cannot be loaded", model="empty"),
    "something else": Case("'????' != expected 'ET12'", model="noise"),
    "half a program": Case("File size is too small", model="half"),
    "a program of integers": Case("does not map one float32 tensor", model="integers"),
    "a folder that is not there": Case("cannot be written", output="nowhere/features"),
    "a folder in the way": Case("cannot be written", output="."),
}


class Twice(nn.Module):
    def forward(self, numbers: Tensor) -> Tensor:
        return numbers + numbers


@pytest.fixture(scope="module")
def files(
    programs: dict[Precision, Path],
    model: EdgeModel,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Folder of valid and invalid inputs."""
    folder = tmp_path_factory.mktemp("files")
    speech(model, 96).tofile(folder / "mel.f32")
    content = programs[Precision.INT8].read_bytes()
    (folder / "whole").write_bytes(content)
    (folder / "half").write_bytes(content[: len(content) // 2])
    (folder / "empty").touch()
    (folder / "noise").write_bytes(b"\n\x01\xff\x80" * 1000)
    traced = torch.export.export(Twice(), (torch.zeros(3, dtype=torch.int64),))
    (folder / "integers").write_bytes(to_edge_transform_and_lower(traced).to_executorch().buffer)
    return folder


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bad_input_ends_with_2_and_one_line(
    x86: Machine, files: Path, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    before = sorted(files.iterdir())
    good = {"model": "whole", "input": "mel.f32", "shape": "1,128,96", "output": "features"}
    options = {name: value for name, value in {**good, **case.changed}.items() if value}
    done = x86.start(*flat(options), *case.more)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert case.message in line
    assert sorted(files.iterdir()) == before


def flat(options: dict[str, str]) -> Sequence[str]:
    return [part for name, value in options.items() for part in (f"--{name}", value)]


def test_a_program_that_fails_ends_with_1_and_one_line(
    x86: Machine, programs: dict[Precision, Path], model: EdgeModel, tmp_path: Path
) -> None:
    odd = speech(model, 97)  # not a whole number of blocks
    done = x86.start(*arguments(programs[Precision.INT8], odd, tmp_path / "features"))
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "fails on shape [1, 128, 97]: " in line
    assert not (tmp_path / "features").exists()


# --- The build --------------------------------------------------------------------------------


def test_a_build_that_fails_leaves_the_last_one(
    x86: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(building.SOURCE, source)
    (source / "runner.cpp").write_text("not C++")
    shutil.copytree(x86.runner.parent, out)
    monkeypatch.setattr(building, "SOURCE", source)
    with pytest.raises(EsrtError, match="could not be built") as caught:
        build(Target.X86_64, out)
    assert caught.value.exit_code == 2
    assert "runner.cpp" in capfd.readouterr().err
    assert Machine(out / "runner").start("--help").returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_a_missing_compiler_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.runner.build"],
        cwd=REPOSITORY,
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: The runner for x86-64 cannot be built: not installed: cmake")


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder that takes the place of the package registry."""
    monkeypatch.setattr(building, "FOLDER", tmp_path / "runner")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    return tmp_path


def test_the_sdk_is_fetched_whole(offline: Path) -> None:
    number = version("executorch")
    name = f"executorch-{number}-cp311-cp311-manylinux_2_28_aarch64.whl"
    sdk = ["include/executorch/module.h", "lib/libexecutorch.so", "share/cmake/config.cmake"]
    with ZipFile(offline / name, "w") as wheel:
        for part in (*sdk, "runtime/__init__.py"):
            wheel.writestr(f"executorch/{part}", part)
        info = f"executorch-{number}.dist-info"
        wheel.writestr(f"{info}/METADATA", f"Name: executorch\nVersion: {number}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\n")
    fetch(Target.AARCH64)
    (folder,) = (offline / "runner").iterdir()
    files = [path for path in (folder / "executorch").rglob("*") if path.is_file()]
    assert sorted(str(path.relative_to(folder / "executorch")) for path in files) == sdk
    (offline / name).unlink()
    fetch(Target.AARCH64)  # already fetched


def test_a_failed_download_of_the_sdk_leaves_nothing(offline: Path) -> None:
    with pytest.raises(EsrtError, match="could not fetch executorch"):
        fetch(Target.AARCH64)
    assert list((offline / "runner").iterdir()) == []
