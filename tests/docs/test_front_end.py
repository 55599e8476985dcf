"""The page on the front end: constants, program and table of intermediate values."""

from typing import Any

import msgspec
import numpy as np
import pytest

from esrt import bundled, features
from esrt.checkpoint import open_checkpoint
from esrt.config import ModelConfig
from esrt.manifest import FrontEnd
from esrt.speech import DEFAULT_SETTINGS
from tests.docs.tables import page, plain, tables
from tests.golden.front_end_vectors import INDEX, RECORDINGS, VECTORS, Recording, Vector
from tests.golden.make_front_end import program

PAGE = page("front-end.md")
SHORT = [vector for vector in VECTORS if vector.log_mel.shape[1] <= 40]


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """Names of the page's program."""
    return program()


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return open_checkpoint(bundled.CHECKPOINT).config


def test_constants_are_those_of_the_code(names: dict[str, Any], config: ModelConfig) -> None:
    (fields, constants) = tables(PAGE, heading="Constants")
    stated = {plain(row["field of `front_end`"]): row["esrt-nano"] for row in fields}
    expected = FrontEnd(
        features.SAMPLE_RATE,
        features.N_FFT,
        features.HOP,
        config.encoder.mel_bins,
        config.frame_multiple,
        config.padded_seconds,
        config.max_seconds,
        DEFAULT_SETTINGS,
    )
    assert list(stated) == list(FrontEnd.__struct_fields__)
    for field, value in stated.items():
        if field == "speech":
            continue  # a table of its own
        actual = getattr(expected, field)
        assert (value == "null") if actual is None else (float(value) == actual), field
    assert {row["constant"] for row in constants} >= {"window", "smallest power", "dynamic range"}
    own = names["RATE"], names["WINDOW"], names["HOP"], tuple(names["FILTERS"])
    assert own == (features.SAMPLE_RATE, features.N_FFT, features.HOP, features.MEL_BINS)


def test_speech_settings_are_those_of_the_code() -> None:
    (fields,) = tables(PAGE, heading="Speech")
    stated = {plain(row["field of `speech`"]): float(row["esrt-nano"]) for row in fields}
    assert stated == msgspec.to_builtins(DEFAULT_SETTINGS)


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording.name)
def test_the_program_finds_the_speech(names: dict[str, Any], recording: Recording) -> None:
    audio = names["scaled_pcm"](recording.pcm.tolist())
    found = names["find_speech"](audio, INDEX["speech_settings"])
    assert found == pytest.approx(msgspec.structs.astuple(recording.bounds), rel=1e-9)
    speech = names["speech"](audio, INDEX["speech_settings"])
    np.testing.assert_allclose(np.array(speech), recording.speech, rtol=0, atol=1e-6)


def test_silence_has_no_speech(names: dict[str, Any]) -> None:
    assert names["find_speech"]([0.25] * 1600, INDEX["speech_settings"]) is None


@pytest.mark.parametrize("bins", features.MEL_BINS)
def test_mel_filters_of_the_program_are_the_codes(names: dict[str, Any], bins: int) -> None:
    expected = features.mel_filters(bins)
    np.testing.assert_allclose(np.array(names["FILTERS"][bins]), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("vector", SHORT, ids=lambda vector: vector.name)
def test_the_program_computes_the_vectors(names: dict[str, Any], vector: Vector) -> None:
    audio = names["scaled_pcm"](vector.pcm.tolist())
    for log_mel in vector.log_mels:
        found = names["log_mel"](audio, len(log_mel), 8, vector.padded_seconds)
        np.testing.assert_allclose(np.array(found), log_mel, rtol=0, atol=1e-6)


def test_silence_and_a_click_are_the_codes(names: dict[str, Any]) -> None:
    click = [0] * 3000
    click[700] = -32768
    for pcm in ([0], click):
        audio = np.array(pcm, np.float32) / 32768
        expected = features.log_mel_features(audio, mel_bins=80, frame_multiple=2)
        found = names["log_mel"](names["scaled_pcm"](pcm), 80, 2)
        np.testing.assert_allclose(np.array(found), expected, rtol=0, atol=2e-5)


def test_intermediate_values_are_the_programs(names: dict[str, Any]) -> None:
    (vector,) = (vector for vector in VECTORS if vector.name == "shortest")
    pcm: list[int] = vector.pcm.tolist()
    audio = names["padded"](names["scaled_pcm"](pcm), 8)
    power = names["power_spectrum"](audio)
    mel = names["mel_spectrum"](power, 128)
    values = {**names, "pcm": pcm, "audio": audio, "power": power, "mel": mel}
    values["result"] = names["scaled"](mel)
    (table,) = tables(PAGE, heading="Intermediate values")
    assert len(table) >= 15
    for row in table:
        actual = eval(plain(row["expression"]), values)
        assert float(row["value"]) == pytest.approx(actual, rel=2e-6), row
