"""Robustness benchmark: conditions, files, outcomes, and the page with its figures."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from benchmarks.robustness.conditions import CLEAN, Change, Condition, conditions
from benchmarks.robustness.measures import (
    Phone,
    measure,
    measure_sounds,
    read_clips,
)
from benchmarks.robustness.recording import AMR, FLAC, MP3, TELEPHONE, opus
from benchmarks.robustness.report import bars
from benchmarks.robustness.sounds import SECONDS, sounds
from edge_runtime import Client, open_artifact, read_audio
from edge_runtime.audio import SILENCE_DBFS
from tests.edge_runtime import helpers

RATE = 16_000
CLIPS = read_clips()
CONDITIONS = conditions([clip.samples for clip in CLIPS])


def condition(name: str) -> Condition:
    (found,) = [one for one in CONDITIONS if one.name == name]
    return found


def changed(name: str, samples: np.ndarray = CLIPS[0].samples) -> np.ndarray:
    return condition(name).change(samples, np.random.default_rng(0))


def decibels(signal: np.ndarray, noise: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(signal**2) / np.mean(noise**2)))


def test_forty_conditions_cover_what_recordings_suffer() -> None:
    assert len({one.name for one in CONDITIONS}) == len(CONDITIONS) == 40
    groups = [one.group for one in CONDITIONS]
    assert {group: groups.count(group) for group in groups} == {
        CLEAN: 14, "noise": 9, "room": 4, "band": 2, "codec": 5, "clipping": 2, "speed": 4,
    }  # fmt: skip


@pytest.mark.parametrize("one", CONDITIONS, ids=lambda one: one.name)
def test_every_condition_gives_the_same_sound_within_full_scale_again(one: Condition) -> None:
    first, second = (one.change(CLIPS[0].samples, np.random.default_rng(0)) for _ in range(2))
    assert first.dtype == np.float32
    assert np.array_equal(first, second)
    assert np.abs(first).max() <= 1.1  # the offset after clipping and codecs clip the rest
    assert 0.9 * len(CLIPS[0].samples) <= len(first) <= len(CLIPS[0].samples) + 6 * RATE


def test_silence_surrounds_the_unchanged_speech() -> None:
    clip = CLIPS[0].samples
    assert np.array_equal(changed("silence 1 s before")[RATE:], clip)
    recorded = changed("silence 3 s before and after")
    assert np.array_equal(recorded[3 * RATE : -3 * RATE], clip)
    assert not recorded[: 3 * RATE].any()


def test_room_noise_is_35_db_below_the_speech() -> None:
    clip = CLIPS[0].samples
    recorded = changed("room noise 1 s before and after")
    noise = recorded - np.pad(clip, RATE)
    assert decibels(clip, noise) == pytest.approx(35, abs=0.1)
    assert noise[:RATE].std() > 0


@pytest.mark.parametrize("snr", [20, 10, 5])
@pytest.mark.parametrize("kind", ["white noise", "pink noise", "babble"])
def test_noise_has_its_level(kind: str, snr: int) -> None:
    clip = CLIPS[0].samples
    recorded = changed(f"{kind}, {snr} dB").astype(np.float64)
    # The speech's share of the recording, which is lowered to full scale, by least squares.
    share = recorded @ clip / (clip @ clip)
    assert decibels(share * clip, recorded - share * clip) == pytest.approx(snr, abs=0.5)


def test_babble_is_made_of_other_clips() -> None:
    speech = helpers.speech(1.0)
    constants = [np.full(RATE, 0.1, dtype=np.float32) for _ in range(4)]
    one = {c.name: c for c in conditions([speech, *constants])}["babble, 5 dB"]
    recorded = one.change(speech, np.random.default_rng(0))
    assert np.corrcoef(recorded, speech)[0, 1] > 0.999


@pytest.mark.parametrize("dbfs", [-40, -30, -20, -10])
def test_levels(dbfs: int) -> None:
    peak = np.abs(changed(f"peak {dbfs} dBFS")).max()
    assert 20 * np.log10(peak) == pytest.approx(dbfs, abs=0.01)


def test_clipping_cuts_what_exceeds_full_scale() -> None:
    clip = CLIPS[0].samples
    shares = []
    for over in (6, 12, 20):
        recorded = changed(f"clipped by {over} dB")
        inside = np.abs(recorded) < 1
        gain = 10 ** (over / 20) / np.abs(clip).max()
        assert np.allclose(recorded[inside], gain * clip[inside], rtol=1e-5)
        shares.append(1 - inside.mean())
    assert shares == sorted(shares)
    assert shares[0] > 0.001


def test_reverberation_fades_within_its_time() -> None:
    pulse = np.zeros(RATE, dtype=np.float32)
    pulse[0] = 1
    for seconds in (0.2, 0.8):
        energy = changed(f"reverberation, {seconds} s", pulse) ** 2
        quarter = round(seconds / 4 * RATE)
        first, second = (energy[1 + n * quarter :][:quarter].mean() for n in (0, 1))
        assert 10 * np.log10(first / second) == pytest.approx(15, abs=1.5)


@pytest.mark.parametrize(
    ("name", "outside"), [("telephone band, 8 kHz", (100, 3800)), ("low-pass 4 kHz", (4500,))]
)
def test_bands(name: str, outside: tuple[int, ...]) -> None:
    times = np.arange(RATE) / RATE
    inside = np.sin(2 * np.pi * 1000 * times).astype(np.float32)
    assert decibels(changed(name, inside), inside) == pytest.approx(0, abs=0.3)
    for hertz in outside:
        tone = np.sin(2 * np.pi * hertz * times).astype(np.float32)
        assert decibels(changed(name, tone), tone) < -6


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_speed_changes_length_and_pitch(factor: float) -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE).astype(np.float32)
    recorded = changed(f"speed {factor:g}", tone)
    assert len(recorded) == pytest.approx(RATE / factor, abs=1)
    peak = np.abs(np.fft.rfft(recorded)).argmax() * RATE / len(recorded)
    assert peak == pytest.approx(1000 * factor, abs=2)


@pytest.mark.parametrize(
    ("recorder", "ending", "rate", "kbps"),
    [
        (FLAC, ".flac", 16_000, None),
        (TELEPHONE, ".flac", 8_000, None),
        (opus(8), ".opus", None, 8),
        (opus(24), ".opus", None, 24),
        (MP3, ".mp3", 16_000, 32),
        (AMR, ".amr", 8_000, 12.2),
    ],
)
def test_files_have_their_format_and_rate(
    recorder: Any, ending: str, rate: int | None, kbps: float | None, tmp_path: Path
) -> None:
    talk = np.concatenate([clip.samples for clip in CLIPS[:4]])
    file = recorder(talk, tmp_path / "recording")
    assert file.name == f"recording{ending}"
    if kbps:
        assert 8 * file.stat().st_size / (len(talk) / RATE) / 1000 == pytest.approx(kbps, rel=0.25)
    audio = read_audio(file)
    assert rate is None or audio.rate == rate
    assert len(audio.samples) == pytest.approx(len(talk), abs=0.1 * RATE)


def test_sounds_are_loud_enough_to_be_sent_and_have_no_speech() -> None:
    found = list(sounds(2))
    assert [name for name, _ in found[::2]] == [
        "white noise", "hum", "clicks", "chords", "door slam",
    ]  # fmt: skip
    for _, samples in found:
        assert len(samples) == SECONDS * RATE
        assert 10 ** (SILENCE_DBFS / 20) < np.abs(samples).max() < 1
    assert not np.array_equal(found[0][1], found[1][1])


@pytest.fixture
def phone(tmp_path: Path) -> Iterator[tuple[Phone, helpers.Gateway]]:
    """The edge runtime with the tiny encoder, and a scripted gateway."""
    helpers.tiny_graph(tmp_path / "encoder.onnx")
    helpers.describe(tmp_path)
    gateway = helpers.Gateway()
    with gateway.server() as server:
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        with Client(gateway.url) as client:
            yield Phone(open_artifact(tmp_path), client), gateway
        server.shutdown()


def quieter(gain: float) -> Change:
    return lambda audio, random: (gain * audio).astype(np.float32)


def test_outcomes(phone: tuple[Phone, helpers.Gateway]) -> None:
    clips = [
        replace(CLIPS[0], name="one", reference=helpers.DONE["translation"]),
        replace(CLIPS[1], name="two", reference="another"),
    ]
    answers: dict[int, dict[str, Any]] = {
        3: {"translation": "wrong"},  # a silent failure of the first clip
        5: {"translation": ""},  # the client warns of it
        6: {"finish": "length"},  # kept, and cautioned without need
        8: {"translation": "another"},  # the second clip's right translation
    }

    def answer(exchange: helpers.ServedRequest) -> None:
        number = len(translator.exchanges)
        exchange.send(200, helpers.DONE | answers.get(number, {}))

    edge, translator = phone
    translator.answer = answer
    changes = [
        Condition("half", CLEAN, quieter(0.5)),
        Condition("third", "noise", quieter(0.3)),
        Condition("quarter", "noise", quieter(0.25)),
        Condition("nothing", "noise", quieter(0.0)),
    ]
    clean, half, third, quarter, nothing = measure(edge, clips, changes)
    assert clean["outcomes"] == {"one": "kept", "two": "kept"}
    assert clean["right"] == 1
    assert half["outcomes"] == {"one": "silent failure", "two": "kept"}
    assert half["silent_failures"] == {"one": "wrong"}
    assert third["outcomes"] == {"one": "cautioned", "two": "kept"}
    assert third["needless_cautions"] == 1
    assert quarter["outcomes"] == {"one": "kept", "two": "corrected"}
    assert nothing["outcomes"] == {"one": "refused", "two": "refused"}
    assert len(translator.exchanges) == 8, "a refused file is not sent"
    sounds = [{"sound": "hum", "cautioned": 1, "refused": 2, "silent": 1}]
    values = {bar.name: bar.value for bar in bars([clean, half, third, quarter, nothing], sounds)}
    assert values["clean_kept_pct"] == 50
    assert values["silent_failures_pct"] == pytest.approx(100 / 8)
    assert values["non_speech_silent_pct"] == 25


def test_a_sound_with_a_text_and_no_caution_is_a_silent_failure(
    phone: tuple[Phone, helpers.Gateway],
) -> None:
    edge, _ = phone
    hum = ("hum", CLIPS[0].samples)  # passes for a voice
    rows = measure_sounds(edge, [hum, hum, ("silence", np.zeros(RATE, dtype=np.float32))])
    assert rows == [
        {"sound": "hum", "cautioned": 0, "refused": 0, "silent": 2},
        {"sound": "silence", "cautioned": 0, "refused": 1, "silent": 0},
    ]
