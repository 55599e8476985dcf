"""Speaks a planned corpus: one folder for each split and for the pairs, in it shards of clips.

A shard is written as a whole or not at all, so that a killed run goes on where it was.
"""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from random import Random

import numpy as np
import soundfile
from rich.progress import track

from esrt.arrays import Float32Array
from esrt.cores import usable_cores
from esrt.errors import EsrtError
from esrt.features import SAMPLE_RATE
from esrt.files import replace_folder
from training.corpus.build import NON_SPEECH, OPEN, PARALLEL_AUDIO, Corpus, Example
from training.corpus.corpus_settings import PAIRS, SpeechSettings, Split
from training.corpus.engines import Engine, PairedEngine, open_engine
from training.corpus.plan import Clip, Plan
from training.corpus.speech import Samples

SPLITS: tuple[Split, ...] = ("test", "validation", "train")
CLIPS = Path("build/mini/clips")
INDEX, AUDIO, SETTINGS = "index.jsonl", "audio.npy", "settings.json"
# Clips of a shard: few where an engine is slow.
_SHARD = 200
_SLOW_SHARD = {"kokoro": 20}
# Engines of the samples.
_MOST_HUMAN = ("piper", "kokoro", "espeak")


class ClipsError(EsrtError):
    """Clips that are missing, or that other settings made."""


def write_clips(settings: SpeechSettings, folder: Path) -> None:
    """Speak all splits into a folder, on all processors; finished shards stay.

    Raises:
        ClipsError: the folder has clips of other settings.
        EngineError: an engine is not installed, or recordings are missing.
    """
    claim_folder(folder, settings.model_dump_json())
    plan = Plan(settings)
    parts = {split: plan.clips(split) for split in SPLITS} | {PAIRS: plan.pairs()}
    jobs = [
        (folder / part / f"{engine}-{number:04}", list(clips))
        for part, by_engine in parts.items()
        for engine, planned in by_engine.items()
        for number, clips in enumerate(_shards(engine, planned))
    ]
    jobs = [(place, clips) for place, clips in jobs if not place.exists()]
    # Slow engines first, so that no process works alone at the end.
    jobs.sort(key=lambda job: job[1][0].engine not in _SLOW_SHARD)
    with worker_pool() as pool:
        running = [pool.submit(_speak_shard, *job, settings) for job in jobs]
        for one in track(running, description="speaking"):
            one.result()


def claim_folder(folder: Path, settings: str) -> None:
    """Write the settings into a folder, or compare them with those that made it.

    Raises:
        ClipsError: other settings made the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SETTINGS
    if path.exists() and path.read_text("utf-8") != settings:
        raise ClipsError(f"Other settings made {folder}.", "Remove it, or name another folder.")
    path.write_text(settings, "utf-8")


def worker_pool() -> ProcessPoolExecutor:
    """One process for each core, with one thread each: more threads would hinder each other."""
    os.environ["OMP_NUM_THREADS"] = "1"
    return ProcessPoolExecutor(usable_cores(), mp_context=get_context("spawn"))


def load_shard(folder: Path) -> Corpus:
    """Load a shard."""
    lines = (folder / INDEX).read_text("utf-8").splitlines()
    examples = [Example(**json.loads(line)) for line in lines]
    parallel = folder / PARALLEL_AUDIO
    return Corpus(
        np.load(folder / AUDIO, mmap_mode="r"),
        examples,
        np.load(parallel, mmap_mode="r") if parallel.exists() else None,
    )


def load_sentences(folder: Path) -> Corpus:
    """Load the utterances with translations of a split as one corpus.

    Raises:
        ClipsError: the split has no clips.
    """
    parts: list[Samples] = []
    examples: list[Example] = []
    start = 0
    for shard in map(load_shard, shards_of(folder)):
        examples += [
            replace(one, start=start + one.start)
            for one in shard.examples
            if one.kind not in (OPEN, NON_SPEECH)
        ]
        parts.append(shard.audio)
        start += len(shard.audio)
    return Corpus(np.concatenate(parts), examples)


def shards_of(folder: Path) -> list[Path]:
    """Shards of a split.

    Raises:
        ClipsError: the split has none.
    """
    found = sorted(path.parent for path in folder.glob(f"*/{INDEX}"))
    if not found:
        raise ClipsError(f"{folder} has no clips.", "Run: python -m training.corpus clips.")
    return found


def write_samples(clips: Path, out: Path, count: int) -> None:
    """Write test clips of each language as FLAC, by its most human engine, with an index.

    Args:
        clips: the corpus.
        out: folder of the samples.
        count: clips in each language.

    Raises:
        ClipsError: there are no clips.
    """
    shards = [(path.name.rpartition("-")[0], path) for path in shards_of(clips / "test")]
    ranked = sorted(shard for shard in shards if shard[0] in _MOST_HUMAN)
    ranked.sort(key=lambda shard: _MOST_HUMAN.index(shard[0]))
    chosen: dict[str, list[tuple[Corpus, Example]]] = {}
    for engine, path in ranked:
        corpus = load_shard(path)
        for example in corpus.examples:
            group = chosen.setdefault(example.language, [])
            if not group or group[0][1].engine == engine:
                group.append((corpus, example))
    out.mkdir(parents=True, exist_ok=True)
    index = []
    for code, group in sorted(chosen.items()):
        phrases = [one for one in group if one[1].kind == "phrase"] or group
        for number, (corpus, example) in enumerate(Random(code).sample(phrases, count), 1):
            name = f"{code}-{number}.flac"
            audio = corpus.audio[example.start : example.start + example.samples]
            soundfile.write(out / name, audio, SAMPLE_RATE, subtype="PCM_16")
            speaker = {"engine": example.engine, "voice": example.variant}
            index.append({"file": name, "language": code, **speaker, "texts": example.texts})
    (out / "index.json").write_text(json.dumps(index, ensure_ascii=False, indent=2) + "\n", "utf-8")


def _shards(engine: str, clips: list[Clip]) -> Iterator[list[Clip]]:
    size = _SLOW_SHARD.get(engine, _SHARD)
    for start in range(0, len(clips), size):
        yield clips[start : start + size]


@cache
def _engine(name: str, recordings: Path) -> Engine:
    """Open an engine once in a process."""
    return open_engine(name, recordings)


def _speak_shard(folder: Path, clips: list[Clip], settings: SpeechSettings) -> None:
    empty = np.zeros(0, np.int16)
    audio: dict[str, list[Samples]] = {AUDIO: [empty]}
    if folder.parent.name == PAIRS:
        audio[PARALLEL_AUDIO] = [empty]
    start = 0
    with replace_folder(folder) as partial:
        with (partial / INDEX).open("w", encoding="utf-8") as index:
            for clip in clips:
                spoken = _speak(clip, settings, paired=PARALLEL_AUDIO in audio)
                samples = len(spoken[0])
                if samples > settings.longest_seconds * SAMPLE_RATE:
                    continue
                row = Example(
                    start,
                    samples,
                    clip.language,
                    clip.voice,
                    clip.kind,
                    clip.texts,
                    clip.engine,
                )
                index.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")
                for parts, one in zip(audio.values(), spoken, strict=True):
                    parts.append(np.round(np.clip(one, -1, 1) * 32767).astype(np.int16))
                start += samples
        for name, parts in audio.items():
            np.save(partial / name, np.concatenate(parts))


def _speak(clip: Clip, settings: SpeechSettings, *, paired: bool) -> tuple[Float32Array, ...]:
    """Audio of a clip; if it is paired, also by the reference voice."""
    engine = _engine(clip.engine, settings.recordings)
    words = clip.text, clip.language, clip.voice
    if not paired:
        return (engine.speak(*words),)
    assert isinstance(engine, PairedEngine)
    return engine.speak_pair(*words)
