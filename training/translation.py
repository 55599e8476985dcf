"""Translation of a corpus with a checkpoint, and its scores."""

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from transformers import AutoTokenizer, Gemma3ForCausalLM, PreTrainedTokenizerFast

from esrt.arrays import Float32Array
from esrt.checkpoint import Checkpoint
from esrt.config import ModelConfig
from esrt.errors import CheckFailed
from esrt.languages import LANGUAGES
from esrt.model import EdgeModel
from esrt.prompt import separator, split_target
from training.augment import add_noise, limit_bandwidth, reverberate
from training.corpus.build import Corpus
from training.ctc_heads import TranscriptCtc
from training.data import mel_batch, state_batch
from training.scored_generation import generate_scored
from training.scoring import Prediction, report, score
from training.state_corpus import StateCorpus
from training.state_edge import StateEdge

MAX_NEW_TOKENS = 128

Sound = Callable[[Float32Array], Float32Array]

CONDITIONS: dict[str, Sound] = {
    "noise_20db": lambda audio: add_noise(audio, 20, 1, np.random.default_rng(0)),
    "noise_10db": lambda audio: add_noise(audio, 10, 1, np.random.default_rng(0)),
    "reverberation_0.4s": lambda audio: reverberate(audio, 0.4, np.random.default_rng(0)),
    "narrow_band_8khz": lambda audio: limit_bandwidth(audio, 8000),
}


class Edge(Protocol):
    """Interface of the edge model, for implementations such as an exported artifact."""

    config: ModelConfig

    def __call__(self, mel: Tensor, frames: Tensor, /) -> Tensor:
        """Encode, as `esrt.model.EdgeModel.forward` does."""


def unchanged(audio: Float32Array) -> Float32Array:
    """Audio as it is: the clean condition."""
    return audio


@torch.inference_mode()
def translate(
    edge: Edge,
    decoder: Gemma3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    corpus: Corpus | StateCorpus,
    directions: int | None = None,
    sound: Sound = unchanged,
    batch: int = 96,
    transcript_ctc: TranscriptCtc | None = None,
) -> list[Prediction]:
    """Translate a split by greedy decoding. Each utterance is encoded once.

    An utterance without a translation has English as its target, or German if it is English.

    Args:
        edge: encoder, Q-Former and projector; without encoder for a corpus of states.
        decoder: the language model.
        tokenizer: the decoder's tokenizer.
        corpus: the split.
        directions: number of target languages of each utterance, in rotation; ``None`` for all.
        sound: change to the audio.
        batch: approximate number of translations in a batch.
        transcript_ctc: scores the transcripts; ``edge`` then is the torch model.
    """
    device = next(decoder.parameters()).device
    tasks = []
    for number, example in enumerate(corpus.examples):
        others = [code for code in example.texts if code != example.language]
        others = others or ["deu" if example.language == "eng" else "eng"]
        turn = number % len(others)
        tasks.append((example, (others[turn:] + others[:turn])[:directions]))
    tasks.sort(key=lambda task: task[0].samples)
    size = max(1, batch // max(len(targets) for _, targets in tasks)) if tasks else 1
    predictions = []
    for start in track(range(0, len(tasks), size), description="translating", transient=True):
        part = tasks[start : start + size]
        arrays = [sound(corpus.speech(example)) for example, _ in part]
        batch_of = state_batch if isinstance(corpus, StateCorpus) else mel_batch
        speech, frames = batch_of(edge.config, arrays)
        inputs = speech.to(device), frames.to(device)
        log_probabilities: list[Tensor] = []
        if transcript_ctc is None:
            embeddings = edge(*inputs)
        else:
            assert isinstance(edge, EdgeModel | StateEdge)
            features = edge.features(*inputs)
            embeddings = edge.mlp(features)
            log_probabilities = [
                transcript_ctc.frames(row[: edge.config.tokens(count)].cpu())
                for row, count in zip(features, frames.tolist(), strict=True)
            ]
        tokens = torch.tensor([edge.config.tokens(count) for count in frames.tolist()])
        outputs = [
            (row, example, target)
            for row, (example, targets) in enumerate(part)
            for target in targets
        ]
        rows = torch.tensor([row for row, _, _ in outputs], device=device)
        pairs = [(LANGUAGES[example.language], LANGUAGES[target]) for _, example, target in outputs]
        answers = generate_scored(
            decoder,
            tokenizer,
            embeddings[rows],
            tokens.to(device)[rows],
            [separator(*pair) for pair in pairs],
            MAX_NEW_TOKENS,
        )
        for (row, example, target), pair, answer in zip(outputs, pairs, answers, strict=True):
            transcript, translation = split_target(answer.text, *pair)
            scores = answer.scores
            if transcript_ctc is not None:
                agreement = transcript_ctc.agreement(log_probabilities[row], transcript)
                scores = replace(scores, agreement=agreement)
            predictions.append(
                Prediction(
                    source=example.language,
                    target=target,
                    variant=example.variant,
                    transcript=transcript,
                    reference_transcript=example.texts[example.language],
                    translation=translation,
                    reference_translation=example.texts.get(target, ""),
                    kind=example.kind,
                    engine=example.engine,
                    scores=scores,
                )
            )
    return predictions


def evaluate(
    checkpoint: Checkpoint,
    held_out: Corpus,
    trained: set[str],
    contaminated: Collection[str] = frozenset(),
) -> dict[str, Any]:
    """Score a checkpoint on a split: `training.scoring.report`, and scores under ``conditions``.

    The conditions are noise, reverberation and a narrow band, each utterance into one language.
    """
    edge = checkpoint.edge_model()
    decoder = Gemma3ForCausalLM.from_pretrained(checkpoint.decoder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.decoder)
    result = report(translate(edge, decoder, tokenizer, held_out), trained, contaminated)
    conditions = {
        name: score(translate(edge, decoder, tokenizer, held_out, directions=1, sound=sound))
        for name, sound in CONDITIONS.items()
    }
    return result | {"conditions": conditions}


def read_contaminated(file: Path, split: Corpus) -> set[str]:
    """Read a file of English sentences; return their texts in every language of the split."""
    names = set(file.read_text("utf-8").splitlines())
    texts = [example.texts for example in split.examples if example.texts["eng"] in names]
    if unknown := names - {by_language["eng"] for by_language in texts}:
        raise CheckFailed(
            f"{file} names {min(unknown)!r}, which is not in the split.",
            "Create the list again as docs/training.md describes.",
        )
    return {text for by_language in texts for text in by_language.values()}


def print_report(result: dict[str, Any]) -> None:
    """Print the scores as a table."""
    table = Table("from", "n", "exact %", "chrF", "transcript exact %", "WER or CER %")
    groups = ("overall", "uncontaminated", "beyond_numbers", "known_voices", "unseen_voices")
    rows = [{"src": row["src"], **row} for row in result["sources"]]
    rows += [{"src": name, **result[name]} for name in groups]
    rows += [{"src": name, **row} for name, row in result["conditions"].items()]
    for row in rows:
        keys = ("src", "n", "exact", "chrf", "transcript_exact")
        rate = row.get("wer", row.get("cer", ""))
        table.add_row(*(str(row.get(key, "")) for key in keys), str(rate))
    Console().print(table)
