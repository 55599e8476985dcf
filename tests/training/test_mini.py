"""The way to esrt-mini in small: plan, clips, cached states, training, checkpoint, scores."""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from accelerate.state import AcceleratorState

from esrt.bundled import REPOSITORY
from esrt.checkpoint import open_checkpoint
from training import state_writer, translation
from training.corpus import splits
from training.corpus.build import NON_SPEECH, OPEN, Example
from training.corpus.clips import (
    ClipsError,
    load_sentences,
    load_shard,
    shards_of,
    write_clips,
    write_samples,
)
from training.corpus.corpus_settings import (
    PAIRS,
    CacheSettings,
    SpeechSettings,
    read_corpus_settings,
)
from training.corpus.domain import MINI
from training.corpus.engines import EngineError
from training.corpus.plan import Plan, open_sentences
from training.engine_evaluation import evaluate_states, whisper_rates
from training.recipe import RecipeError, read_recipe
from training.state_corpus import STATISTICS_FILE, CacheError, load_states, load_statistics
from training.state_edge import split_edge
from training.state_writer import write_states
from training.training_model import TrainingModel
from training.training_run import TrainingRun

pytestmark = pytest.mark.skipif(
    shutil.which("espeak-ng") is None, reason="espeak-ng is not installed"
)

CLIP = REPOSITORY / "tests/esrt/kathleen-arctic_a0172.opus"
SPEECH = SpeechSettings(
    sentences={"train": 30, "validation": 2, "test": 2},
    utterances={
        "train": {"espeak": 12, "non-speech": 3},
        "validation": {"espeak": 1},
        "test": {"espeak": 1, "non-speech": 1},
    },
    pairs={"espeak": 2},
    open_sentences=1,
)
CACHE = CacheSettings(copies={"non-speech": 2}, bound_gb=1)


@pytest.fixture(scope="module", autouse=True)
def _few_draws() -> Iterator[None]:
    """Hold out sentences without looking for rare words, and encode in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "_EXTRA_DRAWS", 0)
        patch.setattr(splits, "_MIN_OCCURRENCES", 0)
        # Loading torch in new processes takes longer than these few states.
        patch.setattr(state_writer, "worker_pool", lambda: ThreadPoolExecutor(1))
        yield


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mini") / "clips"
    write_clips(SPEECH, folder)
    return folder


@pytest.fixture(scope="module")
def states(clips: Path) -> Path:
    folder = clips.with_name("states")
    write_states(CACHE, clips, folder)
    return folder


@pytest.fixture
def _own_precision() -> Iterator[None]:
    """Let a run have another precision than the other runs of this process."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def test_a_plan_is_repeatable_and_its_splits_are_apart() -> None:
    planned = {split: Plan(SPEECH).clips(split) for split in ("train", "validation", "test")}
    assert planned["train"] == Plan(SPEECH).clips("train")
    voices = {split: {c.voice for c in by["espeak"]} for split, by in planned.items()}
    assert not voices["train"] & voices["test"]
    assert not voices["validation"] & (voices["train"] | voices["test"])
    texts = {split: {c.text for c in by["espeak"]} for split, by in planned.items()}
    assert not texts["test"] & (texts["train"] | texts["validation"])
    assert [clip.language for clip in planned["test"]["espeak"]] == list(MINI.languages)


def test_every_language_has_open_sentences_for_recognition() -> None:
    clips = [one for one in Plan(SPEECH).clips("train")["espeak"] if one.kind == OPEN]
    assert [clip.language for clip in clips] == list(MINI.languages)
    assert all(clip.texts == {clip.language: clip.text} for clip in clips)
    for code in MINI.languages:
        assert len(open_sentences(code)) > 500


def test_clips_hold_the_planned_utterances(clips: Path) -> None:
    (shard,) = (path for path in shards_of(clips / "train") if "espeak" in path.name)
    corpus, planned = load_shard(shard), Plan(SPEECH).clips("train")["espeak"]
    assert [one.variant for one in corpus.examples] == [clip.voice for clip in planned]
    assert [one.texts for one in corpus.examples] == [clip.texts for clip in planned]
    for example in corpus.examples:
        assert np.abs(corpus.recording(example)).max() > 0.05


def test_finished_shards_stay(clips: Path, states: Path) -> None:
    def times(folder: Path) -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in folder.glob("*/*/*.npy")}

    before = times(clips) | times(states)
    assert len(before) == 5 + 2 + 6 + 2
    removed = next(states.glob("test/non-speech-*"))
    shutil.rmtree(removed)
    write_clips(SPEECH, clips)
    write_states(CACHE, clips, states)
    after = times(clips) | times(states)
    assert before.keys() == after.keys()
    changed = {path.parent for path in after if after[path] != before[path]}
    assert changed == {removed}


def test_samples_are_test_clips_of_each_language(clips: Path, tmp_path: Path) -> None:
    write_samples(clips, tmp_path, 1)
    index = json.loads((tmp_path / "index.json").read_text("utf-8"))
    assert [row["language"] for row in index] == sorted(MINI.languages)
    test = [load_shard(shard) for shard in shards_of(clips / "test") if "espeak" in shard.name]
    recordings = [corpus.recording(one) for corpus in test for one in corpus.examples]
    for row in index:
        assert set(row["texts"]) == set(MINI.languages)
        audio, rate = soundfile.read(tmp_path / row["file"], dtype="float32")
        assert rate == 16_000
        assert any(np.array_equal(audio, one) for one in recordings)


def test_sentences_of_all_shards_are_one_corpus(clips: Path) -> None:
    corpus = load_sentences(clips / "test")
    (shard,) = (load_shard(path) for path in shards_of(clips / "test") if "espeak" in path.name)
    assert [one.language for one in corpus.examples] == list(MINI.languages)
    for one, alone in zip(corpus.examples, shard.examples, strict=True):
        assert np.array_equal(corpus.recording(one), shard.recording(alone))


def test_pairs_are_of_one_length_and_have_states_of_one_length(clips: Path, states: Path) -> None:
    (shard,) = shards_of(clips / PAIRS)
    corpus = load_shard(shard)
    assert {one.variant for one in corpus.examples}.isdisjoint(
        clip.voice for clip in Plan(SPEECH).clips("test")["espeak"]
    )
    pairs = load_states(states / PAIRS)
    joined = load_states(states / "train", states / PAIRS)
    assert len(joined.examples) == len(load_states(states / "train").examples) + 2
    assert all(joined.parallel_speech(one) is None for one in joined.examples[:-2])
    for example, of_states in zip(corpus.examples, pairs.examples, strict=True):
        own, reference = corpus.recording(example), corpus.parallel_recording(example)
        assert own.shape == reference.shape
        assert np.abs(own - reference).max() > 0.05
        parallel = pairs.parallel_speech(of_states)
        assert parallel is not None
        assert parallel.shape == pairs.speech(of_states).shape
        assert np.abs(parallel - pairs.speech(of_states)).max() > 0.1


def test_an_engine_without_a_reference_voice_has_no_pairs() -> None:
    settings = SPEECH.model_copy(update={"pairs": {"non-speech": 2}})
    with pytest.raises(EngineError, match="The engine non-speech has no reference voice"):
        Plan(settings).pairs()


def test_clips_of_other_settings_are_refused(clips: Path) -> None:
    with pytest.raises(ClipsError, match="Other settings made"):
        write_clips(SPEECH.model_copy(update={"seed": 18}), clips)


def test_states_beyond_the_bound_are_refused(clips: Path, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"may take 0\.\d\d GB, the bound is 0\.001 GB\. Raise"):
        write_states(CACHE.model_copy(update={"bound_gb": 0.001}), clips, tmp_path)
    assert not any(tmp_path.iterdir())


def test_states_are_those_of_the_whole_model(states: Path, clips: Path) -> None:
    """Held-out speech is not augmented: the front end and the encoder alone make its states."""
    test = load_states(states / "test")
    kinds = {example.kind for example in test.examples}
    assert NON_SPEECH in kinds
    lengths = [len(test.speech(example)) for example in test.examples]
    assert [one.samples for one in test.examples] == lengths
    assert all(length % 4 == 0 for length in lengths)
    statistics = load_statistics(states / STATISTICS_FILE)
    rows = np.concatenate(
        [
            load_states(states / "train", statistics=statistics).speech(example)
            for example in load_states(states / "train").examples
        ]
    )
    assert np.abs(rows.mean(0)).max() < 0.05
    assert 0.9 < rows.std(0).min() < rows.std(0).max() < 1.1


@pytest.mark.usefixtures("_own_precision")
def test_a_run_writes_a_checkpoint_that_another_run_continues(
    states: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(translation, "MAX_NEW_TOKENS", 4)
    settings = yaml.safe_load(Path("training/recipes/mini.yaml").read_text("utf-8"))
    del settings["minutes"]
    settings |= {"states": str(states), "steps": 20, "batch": 2, "vocabulary": 600}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings), "utf-8")
    recipe = read_recipe(path)
    statistics = load_statistics(states / STATISTICS_FILE)
    training = load_states(states / "train", statistics=statistics)
    (tmp_path / "run").mkdir()
    run = TrainingRun(recipe, training, tmp_path / "run")
    run.run(load_states(states / "validation", statistics=statistics))
    assert run.step == 20
    folder = tmp_path / "run" / "checkpoint"
    checkpoint = open_checkpoint(folder)
    assert checkpoint.config.languages == MINI.languages
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert size < 40e6

    # The checkpoint reads states as they are, the run standardized ones; weights are float16.
    raw = load_states(states / "test")
    example = raw.examples[0]
    states_of = torch.from_numpy(raw.speech(example))[None]
    standardized = torch.from_numpy(
        load_states(states / "test", statistics=statistics).speech(example)
    )[None]
    frames = torch.tensor([2 * example.samples])
    with torch.inference_mode():
        expected = run.model.edge.eval()(standardized, frames)
        actual = split_edge(checkpoint.edge_model()).eval()(states_of, frames)
        torch.testing.assert_close(actual, expected, rtol=0, atol=0.02)
        continued = TrainingModel(
            recipe.model_copy(update={"initial": folder, "decoder": str(folder / "decoder")}),
            training,
        )
        torch.testing.assert_close(
            continued.edge.eval()(standardized, frames), actual, rtol=0, atol=2e-3
        )
    for head, saved in ((continued.letters, run.model.letters),
                        (continued.pieces, run.model.pieces)):  # fmt: skip
        assert head is not None
        assert saved is not None
        torch.testing.assert_close(head.weight, saved.weight.half().float(), rtol=0, atol=0)
    for name, tensor in continued.decoder.state_dict().items():
        torch.testing.assert_close(
            tensor, run.model.decoder.state_dict()[name].half().float(), rtol=0, atol=0
        )

    json_file, answers_file = tmp_path / "evaluation.json", tmp_path / "answers.jsonl"
    evaluate_states(checkpoint, states, json_file, answers_file)
    report = json.loads(json_file.read_text("utf-8"))
    names = [bar["name"] for bar in report["bars"]]
    assert names[:2] == ["exact_espeak", "exact_worst_direction"]
    assert names[-1] == "mini_mb"
    assert len(report["rows"]) == 13 * 12
    answers = [json.loads(line) for line in answers_file.read_text("utf-8").splitlines()]
    test = [row for row in answers if row["split"] == "test"]
    assert len(test) == 13 * 12 + 13 + 13
    assert all(row["scores"]["minimum"] <= row["scores"]["mean"] <= 0 for row in test)
    assert len({row["scores"]["agreement"] for row in test}) > 13


def test_whisper_s_own_decoder_is_scored_on_the_recordings(tmp_path: Path) -> None:
    audio, rate = soundfile.read(CLIP, dtype="int16")
    texts = {"eng": "Gregson had left the outer door slightly open."}
    shard = tmp_path / "human-0000"
    shard.mkdir()
    row = Example(0, len(audio), "eng", "kathleen", OPEN, texts, "human")
    (shard / "index.jsonl").write_text(json.dumps(asdict(row)) + "\n", "utf-8")
    np.save(shard / "audio.npy", audio)
    assert rate == 16_000
    assert whisper_rates(tmp_path) == {"eng": {"whisper_wer": 12.5}}


def test_the_settings_of_esrt_mini_are_valid(tmp_path: Path) -> None:
    settings = read_corpus_settings(Path("training/corpus/mini.yaml"))
    assert settings.speech.utterances["train"].keys().isdisjoint({"piper"})
    assert settings.cache.model == read_recipe(Path("training/recipes/mini.yaml")).model
    path = tmp_path / "wrong.yaml"
    path.write_text("speech: {seeds: 1}\n", "utf-8")
    with pytest.raises(RecipeError, match=r"speech\.\w+: "):
        read_corpus_settings(path)
    with pytest.raises(RecipeError, match="cannot be read"):
        read_corpus_settings(tmp_path / "none.yaml")
