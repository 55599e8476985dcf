"""Writes encoder states of spoken clips, augmented before they are encoded.

A shard is written as a whole or not at all, so that a killed run goes on where it was.
"""

import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.random import Generator
from rich.progress import track

from esrt.arrays import Float32Array
from esrt.config import named_config
from esrt.features import FRAMES_PER_SECOND, SAMPLE_RATE
from esrt.files import replace_file, replace_folder
from esrt.model import SpeechEncoder
from esrt.speech import DEFAULT_SETTINGS, trim_and_level
from training.augment import augment
from training.corpus.build import trim_pair
from training.corpus.clips import SPLITS, claim_folder, load_shard, shards_of, worker_pool
from training.corpus.corpus_settings import PAIRS, CacheSettings
from training.data import mel_batch
from training.state_corpus import (
    INDEX_FILE,
    PARALLEL_STATES_FILE,
    STATES_FILE,
    STATISTICS_FILE,
    CacheError,
    States,
    load_states,
    measure,
    save_statistics,
)
from training.state_edge import published_encoder

# Silence that a recording has before and after the speech, in seconds.
_LEAD, _TAIL = 0.1, 0.3


def write_states(settings: CacheSettings, clips: Path, folder: Path) -> None:
    """Encode all splits on all processors; finished shards stay.

    Raises:
        CacheError: the states would take more space than the settings allow.
        ClipsError: there are no clips, or other settings made the folder.
        CheckpointError: the encoder's packages are missing or damaged.
    """
    paired = [PAIRS] if (clips / PAIRS).exists() else []
    jobs = [
        (shard, folder / part / f"{shard.name}-{copy}", copy if augmented else None)
        for part in (*SPLITS, *paired)
        for augmented in [part in ("train", PAIRS)]
        for shard in shards_of(clips / part)
        for copy in range(_copies(settings, shard) if augmented else 1)
    ]
    _check_size(settings, [shard for shard, _, _ in jobs])
    published_encoder(named_config(settings.model))  # fails before the work begins
    claim_folder(folder, settings.model_dump_json(exclude={"bound_gb"}))
    pending = [job for job in jobs if not job[1].exists()]
    with worker_pool() as pool:
        running = [pool.submit(_write_shard, *job, settings) for job in pending]
        for one in track(running, description="encoding"):
            one.result()
    with replace_file(folder / STATISTICS_FILE) as partial, partial.open("wb") as file:
        save_statistics(measure(load_states(folder / "train")), file)


def _copies(settings: CacheSettings, shard: Path) -> int:
    return settings.copies.get(shard.name.rpartition("-")[0], 1)


def _check_size(settings: CacheSettings, shards: list[Path]) -> None:
    """Compare the largest size of the states with the bound."""
    config = named_config(settings.model)
    slowest = 1 / (1 - settings.augmentation.speed)
    tail = _LEAD + _TAIL + max(settings.longest_extra_tail, settings.held_out_extra_tail)
    seconds = sum(
        (one.samples / SAMPLE_RATE * slowest + tail) * (1 if corpus.parallel_audio is None else 2)
        for corpus in map(load_shard, shards)
        for one in corpus.examples
    )
    gigabytes = seconds * FRAMES_PER_SECOND / 2 * config.encoder.width * 2 / 1e9
    if gigabytes > settings.bound_gb:
        raise CacheError(
            f"The states may take {gigabytes:.2f} GB, the bound is {settings.bound_gb} GB.",
            "Raise bound_gb in the settings, or lower copies or utterances.",
        )


@cache
def _encoder(model: str) -> SpeechEncoder:
    """Load the encoder once in a process."""
    torch.set_num_threads(1)
    config = named_config(model)
    encoder = SpeechEncoder(config.encoder)
    encoder.load_state_dict(published_encoder(config))
    encoder.eval()
    return encoder


def _write_shard(shard: Path, folder: Path, copy: int | None, settings: CacheSettings) -> None:
    """Encode a shard.

    Args:
        shard: the clips.
        folder: the states.
        copy: number of the augmented copy; ``None`` for a held-out split, which is not augmented.
        settings: settings of the cache.
    """
    corpus = load_shard(shard)
    random = np.random.default_rng([zlib.crc32(shard.name.encode()), copy or 0])
    empty = np.zeros((0, named_config(settings.model).encoder.width), np.float16)
    rows: dict[str, list[States]] = {STATES_FILE: [empty]}
    if corpus.parallel_audio is not None:
        rows[PARALLEL_STATES_FILE] = [empty]
    start = 0
    with replace_folder(folder) as partial:
        with (partial / INDEX_FILE).open("w", encoding="utf-8") as index:
            for example in corpus.examples:
                recordings = [corpus.recording(example)]
                if corpus.parallel_audio is not None:
                    recordings.append(corpus.parallel_recording(example))
                speech = _prepare(recordings, settings, None if copy is None else random)
                states = [_encode(one, settings.model) for one in speech]
                positions = len(states[0])
                row = replace(example, start=start, samples=positions)
                index.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")
                for parts, one in zip(rows.values(), states, strict=True):
                    parts.append(one)
                start += positions
        for name, parts in rows.items():
            np.save(partial / name, np.concatenate(parts))


def _prepare(
    recordings: list[Float32Array], settings: CacheSettings, random: Generator | None
) -> Sequence[Float32Array]:
    """Augment if there is a generator, pass through the front end, and add a tail of zeros.

    Args:
        recordings: an utterance, and perhaps the same by the reference voice, which is not
            augmented and is cut where the utterance is.
        settings: kinds and strengths.
        random: generator of the draws, if any.
    """
    padding = round(_LEAD * SAMPLE_RATE), round(_TAIL * SAMPLE_RATE)
    audio, *parallel = (np.pad(one, padding) for one in recordings)
    tail = settings.held_out_extra_tail
    if random is not None:
        augmentation = settings.augmentation
        if parallel:  # another speed would end the parallel timing
            augmentation = augmentation.model_copy(update={"speed": 0.0})
        audio = augment(audio, augmentation, random)
        tail = random.uniform(0, settings.longest_extra_tail)
    speech = trim_pair(audio, *parallel) if parallel else [trim_and_level(audio, DEFAULT_SETTINGS)]
    return [np.pad(one, (0, round(tail * SAMPLE_RATE))) for one in speech]


@torch.inference_mode()
def _encode(speech: Float32Array, model: str) -> States:
    encoder = _encoder(model)
    mel, _ = mel_batch(named_config(model), [speech])
    states: States = encoder(mel)[0].numpy().astype(np.float16)
    return states
