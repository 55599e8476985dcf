"""Evaluates a checkpoint on a held-out split: ``python -m training.evaluate --json FILE``."""

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Protocol

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sacrebleu.metrics import CHRF
from torch import Tensor
from transformers import AutoTokenizer, Gemma3ForCausalLM, PreTrainedTokenizerFast

from esrt.checkpoint import open_checkpoint
from esrt.command import reported
from esrt.config import ModelConfig
from esrt.languages import LANGUAGES
from esrt.model import generate_greedy
from esrt.prompt import separator, split_target
from training.corpus.build import CORPUS, Corpus, load, sentences
from training.data import mel_batch

MAX_NEW_TOKENS = 96


class Split(StrEnum):
    """The held-out splits."""

    TEST = "test"
    VALIDATION = "validation"


@dataclass(frozen=True)
class Row:
    """One translation and what it should have been."""

    source: str
    target: str
    transcript: str
    spoken: str
    translation: str
    reference: str


class Edge(Protocol):
    """The edge model, or what stands in its place."""

    config: ModelConfig

    def __call__(self, mel: Tensor, frames: Tensor) -> Tensor:
        """As `esrt.model.EdgeModel.forward`."""


@torch.inference_mode()
def translate(
    edge: Edge,
    decoder: Gemma3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    corpus: Corpus,
    directions: int | None = None,
    batch: int = 48,
) -> list[Row]:
    """Translate a split greedily, unsplit, in float32.

    Args:
        edge: encoder, Q-Former and projector.
        decoder: the language model.
        tokenizer: the decoder's.
        corpus: what to translate.
        directions: into how many languages each utterance goes, in turn; ``None`` for all others.
        batch: translations at once.
    """
    tasks = []
    for number, example in enumerate(corpus.examples):
        others = [code for code in example.texts if code != example.language]
        turn = number % len(others)
        tasks += [(example, target) for target in (others[turn:] + others[:turn])[:directions]]
    tasks.sort(key=lambda task: task[0].frames)
    rows = []
    starts = range(0, len(tasks), batch)
    for start in track(starts, description="translating", transient=True):
        part = tasks[start : start + batch]
        mel, frames = mel_batch(corpus, [example for example, _ in part])
        pairs = [(LANGUAGES[example.language], LANGUAGES[target]) for example, target in part]
        written = generate_greedy(
            decoder,
            tokenizer,
            edge(mel, frames),
            frames // edge.config.frame_multiple,
            [separator(*pair) for pair in pairs],
            MAX_NEW_TOKENS,
        )
        for (example, target), pair, text in zip(part, pairs, written, strict=True):
            transcript, translation = split_target(text, *pair)
            rows.append(
                Row(
                    example.language,
                    target,
                    transcript,
                    example.texts[example.language],
                    translation,
                    example.texts[target],
                )
            )
    return rows


def score(rows: list[Row]) -> dict[str, Any]:
    """Exact match and chrF of translations, exact match of transcripts: all from 0 to 100."""
    count = len(rows)
    if not count:
        return {"n": 0}
    chrf = CHRF().corpus_score([row.translation for row in rows], [[row.reference for row in rows]])
    return {
        "n": count,
        "exact": round(100 * sum(row.translation == row.reference for row in rows) / count, 2),
        "chrf": round(chrf.score, 2),
        "transcript_exact": round(
            100 * sum(row.transcript == row.spoken for row in rows) / count, 2
        ),
    }


def report(rows: list[Row], trained: set[str]) -> dict[str, Any]:
    """Scores over everything, over what is new by more than its numbers, and for each direction.

    Args:
        rows: the translations.
        trained: every text of the training split.
    """
    pairs = sorted({(row.source, row.target) for row in rows})
    patterns = {_without_numbers(text) for text in trained}
    novel = [row for row in rows if _without_numbers(row.spoken) not in patterns]
    return {
        "overall": score(rows),
        "beyond_numbers": score(novel),
        "directions": [
            {"src": source, "tgt": target}
            | score([row for row in rows if (row.source, row.target) == (source, target)])
            for source, target in pairs
        ],
    }


def _without_numbers(text: str) -> str:
    return re.sub(r"\d+", "0", text)


def _print(result: dict[str, Any]) -> None:
    table = Table("direction", "n", "exact %", "chrF", "transcript exact %")
    rows = [(f"{row['src']} to {row['tgt']}", row) for row in result["directions"]]
    rows += [("all", result["overall"]), ("new by more than numbers", result["beyond_numbers"])]
    for name, row in rows:
        figures = (row.get(key, "") for key in ("n", "exact", "chrf", "transcript_exact"))
        table.add_row(name, *map(str, figures))
    Console().print(table)


def main(
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint folder.")] = Path("models/esrt-nano"),
    corpus: Annotated[Path, typer.Option(help="Folder of the corpus.")] = CORPUS,
    split: Annotated[Split, typer.Option(help="Which held-out split.")] = Split.TEST,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here.")
    ] = None,
) -> None:
    """Translate a held-out split in every direction; print and write the scores."""
    opened = open_checkpoint(checkpoint)
    edge, held_out = opened.edge_model(), load(corpus, split)
    decoder = Gemma3ForCausalLM.from_pretrained(opened.decoder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(opened.decoder)
    rows = translate(edge, decoder, tokenizer, held_out)
    result = {
        "model": opened.config.name,
        "fingerprint": opened.fingerprint,
        "split": split,
        "utterances": len(held_out.examples),
        "languages": list(opened.config.languages),
        **report(rows, {text for one in sentences("train") for text in one.texts.values()}),
    }
    _print(result)
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    with reported():
        typer.run(main)
