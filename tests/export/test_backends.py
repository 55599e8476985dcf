"""Contract of every backend: its artifacts, over all registered recipes and forms."""

import dataclasses
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from esrt import wire
from esrt.checkpoint import Checkpoint, open_checkpoint
from esrt.errors import ArtifactError, CheckFailed
from esrt.manifest import Activations, Precision, read_manifest, sha256
from esrt.model import EdgeModel
from esrt.speech import DEFAULT_SETTINGS
from esrt.wire import Split
from export import backends, parity, peak_memory, quantization_error
from export.artifact import artifact_folder
from export.backends import get_recipe, get_runner_loader
from export.diagnosis import inspect_artifact
from export.recipe import ExportRecipe, export
from tests.export.helpers import (
    FORMS,
    KINDS,
    LENGTHS,
    MANIFEST,
    Artifact,
    Exporter,
    cosines,
    expected,
    mel,
    relabel,
)
from training import codec_tables as codec
from training.codec_tables import FeatureSample, RateTarget

INT8 = ("int8", "static", "kept")
# q, k, v, out and two of the feed-forward in the encoder's layer; the same and a second attention
# in the Q-Former's.
LINEAR_LAYERS = 6 + 10


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def artifact(kind: str, form: str, artifacts: Exporter) -> Artifact:
    return artifacts(kind, form)


# --- Registry ---------------------------------------------------------------------------------


def test_every_folder_is_a_backend() -> None:
    assert sorted(KINDS) == ["coreml", "executorch", "onnx"]
    for kind in KINDS:
        recipe = get_recipe(kind)
        assert recipe.kind == kind
        assert get_runner_loader(kind) is recipe.load_runner


def test_an_unknown_kind_lists_the_known_ones() -> None:
    with pytest.raises(ArtifactError, match=r"'tflite'.*coreml, onnx, executorch"):
        get_recipe("tflite")


def test_two_backends_of_a_kind_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    backends._packages.cache_clear()
    monkeypatch.setattr(backends.importlib, "import_module", lambda _: SimpleNamespace(KIND="onnx"))
    with pytest.raises(ValueError, match="are both of kind 'onnx'"):
        backends.kinds()
    monkeypatch.undo()
    assert backends.kinds() == KINDS


# --- The artifact -----------------------------------------------------------------------------


def test_folder_and_manifest(artifact: Artifact, kind: str, lively: Checkpoint) -> None:
    folder, form, manifest = artifact.folder, artifact.form, read_manifest(artifact.folder)
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    del files["manifest.json"]
    assert manifest.files == {name: sha256(path) for name, path in files.items()}
    assert all(name.split("/")[0] == manifest.entry for name in files)  # nothing else is left
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in files.values())
    assert (manifest.kind, manifest.precision, manifest.split) == (kind, form.precision, form.split)
    assert manifest.fingerprint == lively.fingerprint
    assert (manifest.model, manifest.created_from) == ("esrt-tiny", "lively")
    assert manifest.languages == ("eng", "deu")
    assert manifest.tools == {name: version(name) for name in artifact.recipe.tools}
    assert manifest.parity["clips"] == 24
    parity.check(manifest.parity, parity.BOUNDS[manifest.precision])
    front_end = {
        "sample_rate": 16_000,
        "n_fft": 400,
        "hop": 160,
        "mel_bins": 128,
        "frame_multiple": 8,
        "padded_seconds": None,
        "max_seconds": 4.0,
        "speech": msgspec.to_builtins(DEFAULT_SETTINGS),
    }
    shapes: tuple[Any, Any] = (1, 128, None), (1, None, 24)
    lengths: tuple[float, ...] = ()
    if form is FORMS["fixed"]:
        front_end |= {"padded_seconds": 1.52, "max_seconds": 1.52}
        shapes, lengths = ((1, 128, 152), (1, 19, 64)), (1.52,)
    if form is FORMS["several"]:
        front_end |= {"max_seconds": 3.04}
        lengths = (1.04, 3.04)
    assert msgspec.to_builtins(manifest.front_end) == front_end
    assert (manifest.inputs[0].shape, manifest.outputs[0].shape) == shapes
    assert (manifest.inputs[0].name, manifest.outputs[0].name) == ("mel", "features")
    assert {spec.dtype for spec in (*manifest.inputs, *manifest.outputs)} == {"float32"}
    assert manifest.feature_width == shapes[1][2]
    assert manifest.max_tokens == manifest.front_end.max_frames // 8
    assert manifest.lengths == lengths


def test_the_manifest_names_the_quantization(artifact: Artifact) -> None:
    quantization, form = artifact.manifest.quantization, artifact.form
    if form.precision is not Precision.INT8:
        assert quantization is None
        return
    assert quantization is not None
    assert quantization.activations == (form.activations or artifact.recipe.activations[0])
    assert [name.endswith(form.kept or "") for name in quantization.kept] == [True] * (
        form.kept is not None
    )
    assert set(quantization.kept) < quantization.errors.keys()
    assert len(quantization.errors) == LINEAR_LAYERS
    assert all(
        (0.001 < error < quantization_error.MAX_RELATIVE_ERROR) != (name in quantization.kept)
        for name, error in quantization.errors.items()
    )


def test_features_are_torchs(artifact: Artifact, model: EdgeModel) -> None:
    form = artifact.form
    for frames in form.frames:
        features, reference = artifact.run(mel(frames)), expected(model, mel(frames), form.split)
        assert features.shape == (1, frames // 8, 64 if form.split is Split.ADAPTER else 24)
        assert features.dtype == np.float32
        assert cosines(features, reference).min() > form.cosine
        assert form.least_error <= np.abs(features - reference).max() < form.error


@pytest.mark.parametrize(
    "form", [name for name, form in FORMS.items() if form.frames == LENGTHS], indirect=True
)
def test_features_follow_the_speech(artifact: Artifact) -> None:
    assert (artifact.run(mel(152)) - artifact.run(mel(152, seed=1))).std() > 0.05


@pytest.mark.parametrize("form", ["fp32", "int8"], indirect=True)
def test_features_of_real_speech_are_torchs(artifact: Artifact, model: EdgeModel) -> None:
    least = [
        cosines(artifact.run(clip[None]), expected(model, clip[None])).min()
        for clip in parity.sample_mels(model.config)
    ]
    assert len(least) == 24
    assert min(least) > parity.BOUNDS[artifact.form.precision].cosine


@pytest.mark.parametrize("form", ["fixed"], indirect=True)
def test_a_fixed_length_takes_no_other(artifact: Artifact) -> None:
    with pytest.raises(CheckFailed, match="128, 160"):
        artifact.run(mel(160))


@pytest.mark.parametrize("form", ["fp32", *INT8], indirect=True)
def test_linear_layers_are_as_precise_as_declared(artifact: Artifact, model: EdgeModel) -> None:
    inspection, manifest = artifact.inspect(), artifact.manifest
    linear = [operation for operation in inspection.operations if operation.linear]
    assert len(linear) == LINEAR_LAYERS
    weights = dict(inspection.weights())
    if manifest.quantization is None:
        assert not any(operation.integer for operation in linear)
        assert weights == {}
        return
    kept = len(manifest.quantization.kept)
    integer = 0 if manifest.quantization.activations is Activations.FLOAT else LINEAR_LAYERS - kept
    assert sum(operation.integer for operation in linear) == integer
    assert len(weights) == LINEAR_LAYERS - kept
    for weight in weights.values():
        assert all(np.unique(row).size <= 255 for row in weight)
    shapes = {(64, 32), (48, 24), (24, 48)} | (set() if kept else {(32, 64)})
    assert {weight.shape for weight in weights.values()} >= shapes


# --- Refusals and failures --------------------------------------------------------------------


@pytest.fixture
def copying(kind: str, artifacts: Exporter) -> ExportRecipe:
    """The recipe, with an existing fp32 file in the place of a new one, to save time."""
    artifact = artifacts(kind, "fp32")

    def lower(*arguments: Any) -> tuple[tuple[str, str], ...]:
        copy = shutil.copytree if artifact.path.is_dir() else shutil.copyfile
        copy(artifact.path, arguments[-1])
        return ()

    return dataclasses.replace(artifact.recipe, lower=lower)


def test_activations_that_are_not_offered(kind: str, lively: Checkpoint, tmp_path: Path) -> None:
    recipe = get_recipe(kind)
    (missing,) = set(Activations) - set(recipe.activations)
    with pytest.raises(ArtifactError, match=", ".join(recipe.activations)):
        export(
            *(recipe, lively, tmp_path / "x", Precision.INT8, Split.QFORMER), activations=missing
        )
    assert list(tmp_path.iterdir()) == []


def test_a_length_that_the_model_does_not_take(
    kind: str, lively: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match="up to 4 s"):
        export(
            *(get_recipe(kind), lively, tmp_path / "x", Precision.FP32, Split.QFORMER), seconds=[5]
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("existing", [True, False])
def test_a_failed_check_leaves_all_as_it_was(
    copying: ExportRecipe,
    lively: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    existing: bool,
) -> None:
    out = tmp_path / "artifact"
    if existing:
        out.mkdir()
        (out / "manifest.json").write_bytes(MANIFEST)
    monkeypatch.setitem(parity.BOUNDS, Precision.FP32, parity.Bounds(cosine=1.1, error=0.0))
    with pytest.raises(CheckFailed, match="cosine") as caught:
        export(copying, lively, out, Precision.FP32, Split.QFORMER)
    assert caught.value.exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"] * existing
    if existing:
        contents = {path.name: path.read_bytes() for path in out.iterdir()}
        assert contents == {"manifest.json": MANIFEST}


@pytest.mark.parametrize("content", ["other things", "a file", "a web page"])
def test_nothing_but_an_artifact_is_replaced(
    content: str, copying: ExportRecipe, lively: Checkpoint, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    thesis = out if content == "a file" else out / "thesis.txt"
    thesis.parent.mkdir(exist_ok=True)
    thesis.write_text("years of work")
    if content == "a web page":
        (out / "manifest.json").write_text('{"name": "page", "start_url": "."}')
    with pytest.raises(ArtifactError, match="is not an artifact") as caught:
        export(copying, lively, out, Precision.FP32, Split.QFORMER)
    assert caught.value.exit_code == 2
    assert thesis.read_text() == "years of work"


@pytest.mark.parametrize("out", [".", "link"])
def test_an_artifact_is_replaced_by_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "manifest.json").write_bytes(MANIFEST)
    (tmp_path / "artifact" / "link").symlink_to(tmp_path / "artifact")
    monkeypatch.chdir(tmp_path / "artifact")
    with artifact_folder(Path(out)) as folder:
        (folder / "new").write_text("")
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
    assert [path.name for path in (tmp_path / "artifact").iterdir()] == ["new"]


@pytest.mark.parametrize("split", Split)
def test_codec_tables_go_with_the_features_they_describe(
    copying: ExportRecipe,
    lively: Checkpoint,
    tmp_path: Path,
    split: Split,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(lively.folder, tmp_path / "checkpoint")
    checkpoint = open_checkpoint(tmp_path / "checkpoint")
    random = np.random.default_rng(0)
    sample = FeatureSample(
        [random.normal(size=(20, 24)).astype(np.float32)] * 5, random.normal(size=(100, 24)), 1.0
    )
    tables = codec.fit_tables(sample, RateTarget(0.2, 0.1), 8)
    codec.write(checkpoint, wire.Split.QFORMER, {wire.Codec.KLT: tables})
    monkeypatch.setattr(parity, "measure", lambda *_: {"cosine_min": 1.0, "error_max": 0.0})
    out = tmp_path / split
    manifest = export(copying, checkpoint, out, Precision.FP32, split).manifest
    assert (wire.CODEC_TABLES_FILE in manifest.files) == (split is Split.QFORMER)
    assert {path.name for path in out.iterdir()} == {"manifest.json"} | {
        name.split("/")[0] for name in manifest.files
    }
    if split is Split.QFORMER:
        copied = wire.read_codec_tables(out / wire.CODEC_TABLES_FILE, manifest.fingerprint)
        original = checkpoint.codec_tables()
        assert original is not None and copied.identity == original.identity


# --- The command and the doctor ---------------------------------------------------------------


def test_the_report(kind: str, artifacts: Exporter, lively: Checkpoint) -> None:
    report = artifacts(kind, "int8").report
    assert lively.fingerprint in report
    for line in (
        *("model ", "precision      int8; inputs of layers: ", "lengths        any, up to 4 s\n"),
        *("split          qformer: the last part on the device is the Q-Former\n", "size "),
        "int8 error     change of a linear layer's output (RMS); largest in these layers:\n",
        "float layers   none: every linear layer is int8\n",
        "parity         cosine of a token's features with torch's: least 0.99",
    ):
        assert f"\n  {line}" in report


@pytest.mark.parametrize("form", ["fp32", "int8", "static"], indirect=True)
def test_the_doctor_accepts_it(
    artifact: Artifact, form: str, lively: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    if form != "int8":  # each measurement is a process
        monkeypatch.setattr(peak_memory, "peak_bytes", lambda _: 100_000)
    diagnosis = inspect_artifact(artifact.folder, read_manifest(artifact.folder), lively)
    assert diagnosis.problems == ()
    assert (diagnosis.kind, diagnosis.precision) == (
        *(artifact.recipe.kind, artifact.form.precision),
    )
    assert diagnosis.size == sum(
        path.stat().st_size
        for path in artifact.folder.rglob("*")
        if path.is_file() and path != artifact.folder / "manifest.json"
    )
    if artifact.recipe.native:
        assert diagnosis.peak_memory is not None and diagnosis.peak_memory > 50_000
        assert diagnosis.delegated == 1
    else:
        assert (diagnosis.peak_memory, diagnosis.delegated) == (None, None)
    quantization = artifact.manifest.quantization
    if quantization is None or quantization.activations is Activations.FLOAT:
        assert diagnosis.integer == 0
    else:  # convolutions and attention are in floating point
        assert 0.2 < diagnosis.integer < 0.9
    assert diagnosis.parity["cosine_min"] > parity.BOUNDS[artifact.form.precision].cosine
    assert len(diagnosis.layer_errors) == (0 if quantization is None else LINEAR_LAYERS)
    assert all(1e-4 < error < 0.05 for error in diagnosis.layer_errors.values())
    assert diagnosis.texts["compared"] == 4  # the clips in English and German
    assert diagnosis.texts["equal"] + len(diagnosis.texts["differing"]) == 4
    assert form != "fp32" or diagnosis.texts["equal"] == 4
    assert len(diagnosis.needs) >= 1


def test_the_doctor_refuses_int8_in_name_only(
    kind: str, copied: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peak_memory, "peak_bytes", lambda _: None)
    folder = copied(kind, "fp32")
    relabel(folder, precision="int8")
    (problem,) = inspect_artifact(folder, read_manifest(folder), None).problems
    assert f"{LINEAR_LAYERS} of {LINEAR_LAYERS} linear layers multiply in floating" in problem
