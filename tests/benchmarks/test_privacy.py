"""The privacy audit: figures of merit, attackers on synthetic features, and a quick run."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from random import Random

import numpy as np
import pytest
import soundfile
import torch

from benchmarks.privacy.attackers import (
    Attack,
    AttackSplit,
    attack_statistics,
    lda,
    nearest_centroid,
    train_tdnn,
)
from benchmarks.privacy.engine import Engine
from benchmarks.privacy.inversion import invert
from benchmarks.privacy.pretrained import SpeakerEncoder
from benchmarks.privacy.representations import Sequences, packet_codecs
from benchmarks.privacy.speakers import (
    SpeakerSet,
    draw_kokoro_speakers,
    draw_sentences,
    draw_speaker,
)
from benchmarks.privacy.trials import Trials, accuracy, enrolled, pairs
from esrt import wire
from esrt.bundled import CHECKPOINT, REPOSITORY, SAMPLES
from esrt.checkpoint import open_checkpoint
from esrt.features import log_mel
from training.data import mel_batch

KNOWN, UNSEEN, SENTENCES = 12, 8, 10


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small networks train faster in one thread, as in the audit itself."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _trials(shift: float) -> Trials:
    """40 speakers, 20 comparisons each with itself and with each other; normal scores."""
    random = np.random.default_rng(0)
    left, right = (side.ravel() for side in np.divmod(np.arange(40 * 40 * 20) // 20, 40))
    score = random.standard_normal(len(left)) + shift * (left == right)
    return Trials(score, left, right)


@pytest.mark.parametrize(("shift", "expected"), [(0.0, 50.0), (2.0, 15.87), (4.0, 2.28)])
def test_equal_error_rate_is_that_of_normal_scores(shift: float, expected: float) -> None:
    # Two normal distributions a distance d apart cross over at the tail beyond d / 2.
    rate = _trials(shift).equal_error_rate()
    assert rate.value == pytest.approx(expected, abs=1.5)
    assert rate.low < expected < rate.high
    assert rate.high - rate.low < 10


def test_scores_that_separate_have_no_errors() -> None:
    assert _trials(20.0).equal_error_rate().value < 0.1
    assert _trials(-20.0).equal_error_rate().value > 99.9


def test_pairs_have_different_sentences() -> None:
    random = np.random.default_rng(0)
    speaker, sentence = np.divmod(np.arange(12), 4)
    # The embedding holds only the sentence, so pairs of one sentence would have high scores.
    trials = pairs(np.eye(4)[sentence] + 1e-3 * random.standard_normal((12, 4)), speaker, sentence)
    assert len(trials.score) == 12 * 11 // 2 - 4 * 3
    assert np.abs(trials.score).max() < 0.1


def test_enrolled_sentences_are_not_in_the_trials() -> None:
    speaker, sentence = np.divmod(np.arange(15), 5)
    trials = enrolled(np.eye(3)[speaker], speaker, sentence, 2)
    assert len(trials.score) == 3 * 3 * 3
    assert np.array_equal(trials.score > 0.5, trials.left == trials.right)


def test_accuracy_weighs_speakers_alike() -> None:
    estimate = accuracy(np.array([True, True, True, False]), np.array([0, 0, 0, 1]))
    assert estimate.value == 50.0
    assert (estimate.low, estimate.high) == (0.0, 100.0)


def _voices(strength: float) -> tuple[Sequences, AttackSplit, np.ndarray]:
    """Random features with an offset for each speaker; their split; the speakers."""
    random = np.random.default_rng(1)
    speaker, sentence = np.divmod(np.arange((KNOWN + UNSEEN) * SENTENCES), SENTENCES)
    offset = strength * random.standard_normal((KNOWN + UNSEEN, 6))
    rows = [
        (offset[name] + random.standard_normal((random.integers(12, 20), 6))).astype(np.float32)
        for name in speaker
    ]
    training = np.flatnonzero((speaker < KNOWN) & (sentence < 6))
    split = AttackSplit(training, speaker[training], np.flatnonzero(sentence >= 6))
    return Sequences.of(rows, 1), split, speaker


def _unseen_eer(
    attacks: dict[str, Attack], split: AttackSplit, speaker: np.ndarray
) -> dict[str, float]:
    rows = speaker[split.attacked] >= KNOWN
    attacked = speaker[split.attacked][rows]
    sentence = np.arange(len(speaker))[split.attacked][rows] % SENTENCES
    return {
        name: pairs(attack.embedding[rows], attacked, sentence).equal_error_rate().value
        for name, attack in attacks.items()
    }


@pytest.mark.parametrize(("strength", "low", "high"), [(1.5, 0, 15), (0.0, 38, 62)])
def test_attackers_succeed_if_and_only_if_features_depend_on_the_speaker(
    strength: float, low: float, high: float
) -> None:
    sequences, split, speaker = _voices(strength)
    attacks = attack_statistics(sequences, split) | train_tdnn(sequences, split, 40, 0)
    eer = _unseen_eer(attacks, split, speaker)
    assert set(eer) == {"statistics + LDA", "TDNN 0", "TDNN 0 + LDA"}
    assert all(low <= value <= high for value in eer.values()), eer


def test_identification_names_the_speaker() -> None:
    sequences, split, speaker = _voices(2.0)
    rows = speaker[split.attacked] < KNOWN
    right = (
        attack_statistics(sequences, split)["statistics + LDA"].predicted_speaker
        == speaker[split.attacked]
    )
    assert right[rows].mean() > 0.9


def test_sizes_are_compared_by_distance_not_by_direction() -> None:
    random = np.random.default_rng(0)
    speaker = np.repeat(np.arange(10), 20)
    values = 1 + speaker[:, None] + 0.05 * random.standard_normal((200, 1))
    attack = nearest_centroid(values[::2], speaker[::2], values[1::2])
    assert (attack.predicted_speaker == speaker[1::2]).mean() > 0.95
    trials = pairs(attack.embedding, speaker[1::2], np.arange(100))
    assert trials.equal_error_rate().value < 5


def test_an_inverter_reconstructs_features_that_hold_the_log_mel() -> None:
    random = np.random.default_rng(0)
    mels = [random.standard_normal((8 * 15, 4)).astype(np.float32) for _ in range(60)]
    packets = [mel.reshape(15, 32) for mel in mels]
    rows = np.arange(60)
    mel, inversion = invert(
        Sequences.of(packets, 1), Sequences.of(mels, 4), rows[:50], rows[50:], 100, seed=0
    )
    assert mel[3].shape == mels[3].shape
    assert inversion.error_db < 0.5 * inversion.baseline_db
    assert inversion.baseline_db == pytest.approx(40, rel=0.05)


def test_every_codec_is_attacked() -> None:
    checkpoint = open_checkpoint(CHECKPOINT)
    audio, _ = soundfile.read(SAMPLES / "eng-1.flac", dtype="float32")
    mel, _ = mel_batch(checkpoint.config, [audio])
    with torch.inference_mode():
        features = checkpoint.edge_model().features(mel)[0].numpy()
    sizes = []
    for name, codec in packet_codecs(checkpoint).items():
        seen = codec(features, 560)
        assert (seen.tokens, seen.duration_ms) == (len(features), 560)
        # The transform codecs leave out what the decoder does not read.
        lowest = 0.7 if name.startswith("klt") else 0.99
        assert np.corrcoef(seen.features.ravel(), features.ravel())[0, 1] > lowest, name
        sizes.append(seen.bytes)
    assert len(sizes) == len(wire.Codec)
    assert sizes == sorted(sizes, reverse=True)


def test_training_and_attacked_sentences_are_disjoint() -> None:
    speakers = SpeakerSet(known=3, unseen=2, training=4, test=2)
    utterances = speakers.utterances()
    assert len(utterances) == len(set(utterances)) == 3 * 6 + 2 * 2
    assert {sentence for speaker, sentence in utterances if speaker >= 3} == {4, 5}


def test_speakers_and_sentences_follow_the_seed() -> None:
    voices = {draw_speaker(Random(seed)).voice for seed in range(50)}
    assert len(voices) == 50
    assert draw_speaker(Random(7)) == draw_speaker(Random(7))
    assert len(set(draw_sentences(30, Random(1)))) == 30


def test_lda_finds_the_direction_that_depends_on_the_speaker() -> None:
    random = np.random.default_rng(0)
    speaker = np.repeat(np.arange(20), 30)
    values = 5 * random.standard_normal((600, 8))
    values[:, 3] = speaker + 0.1 * random.standard_normal(600)
    attack = lda(values[::2], speaker[::2], values[1::2])
    first = np.abs(np.corrcoef(attack.embedding[:, 0], values[1::2, 3])[0, 1])
    assert first > 0.95


def test_kokoro_speakers_are_different_and_the_unseen_have_unseen_voices() -> None:
    voices = ["af_bella", "af_heart", "af_sky", "am_adam", "am_michael", "bf_emma"]
    speakers = SpeakerSet(known=20, unseen=10, training=2, test=2, engine=Engine.KOKORO)
    drawn = draw_kokoro_speakers(speakers, voices)
    assert len(drawn) == len(set(drawn)) == 30
    assert drawn == draw_kokoro_speakers(speakers, voices)
    unseen = {"af_heart", "am_michael", "bf_emma"}
    for number, speaker in enumerate(drawn):
        parts = {part.partition("*")[0] for part in speaker.voice.split("+")}
        assert parts <= unseen if number >= 20 else not parts & unseen


needs_encoder = pytest.mark.skipif(
    find_spec("resemblyzer") is None, reason="resemblyzer is not installed"
)


@needs_encoder
def test_the_pretrained_encoder_tells_people_apart() -> None:
    """Two halves of a human clip are more alike than a half and a synthetic clip."""
    human, _ = soundfile.read(REPOSITORY / "tests/esrt/kathleen-arctic_a0172.opus", dtype="float32")
    synthetic, _ = soundfile.read(SAMPLES / "eng-1.flac", dtype="float32")
    encoder = SpeakerEncoder()
    half = len(human) // 2
    one, other, robot = (
        encoder.embed(log_mel(audio, 128).T) for audio in (human[:half], human[half:], synthetic)
    )
    assert one @ one == pytest.approx(1)
    assert one @ other > one @ robot + 0.1


@needs_encoder
def test_the_encoder_s_mel_bins_are_found_in_whisper_s() -> None:
    audio, _ = soundfile.read(SAMPLES / "eng-1.flac", dtype="float32")
    encoder = SpeakerEncoder()
    few, many = (encoder.embed(log_mel(audio, bins).T) for bins in (80, 128))
    assert few @ many > 0.95


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_quick_run_writes_the_report(tmp_path: Path) -> None:
    out = tmp_path / "privacy.json"
    command = [sys.executable, "-m", "benchmarks.privacy", "--quick", "--json", str(out)]
    command += ["--report", str(tmp_path / "plots")]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    record = json.loads(out.read_text("utf-8"))
    assert {"machine", "versions", "commit", "settings", "rows", "bars"} <= set(record)
    names = [row["representation"] for row in record["rows"]]
    assert names[0] == "log-mel"
    assert {f"packet, {codec}" for codec in wire.Codec} <= set(names)
    assert {"Q-Former output", "encoder, layer 4"} <= set(names)
    for row in record["rows"]:
        for key in ("eer", "eer_enrolled", "top1"):
            assert 0 <= row[key]["low"] <= row[key]["high"] <= 100
    bars = {bar["name"]: bar for bar in record["bars"]}
    assert set(bars) == {"eer_mel", "eer_default_packet"}
    assert record["void"] is not bars["eer_mel"]["holds"]
    # Even the smallest attack recognizes speakers from log-mel.
    assert bars["eer_mel"]["value"] < 35
    assert record["inversion"]["error_db"] < record["inversion"]["baseline_db"]
    assert (tmp_path / "plots" / "privacy.png").read_bytes().startswith(b"\x89PNG")
