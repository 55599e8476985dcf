"""Evaluates a checkpoint on a held-out split: ``python -m training.evaluate --json FILE``."""

import re
import statistics
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Protocol

import jiwer
import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sacrebleu.metrics import CHRF
from torch import Tensor
from transformers import AutoTokenizer, Gemma3ForCausalLM, PreTrainedTokenizerFast

from esrt import bundled
from esrt.arrays import Float32Array
from esrt.benchmark_report import BenchmarkReport, Threshold
from esrt.checkpoint import Checkpoint, open_checkpoint
from esrt.cli import exit_on_error
from esrt.config import ModelConfig
from esrt.errors import CheckFailed
from esrt.languages import LANGUAGES
from esrt.model import generate_greedy
from esrt.prompt import separator, split_target
from training.augment import add_noise, narrow, reverberate
from training.corpus.build import CORPUS, Corpus, load, sentences
from training.corpus.speech import UNSEEN_VARIANTS
from training.data import mel_batch
from training.plots import heat_map

MAX_NEW_TOKENS = 128
# Written without spaces between words: their transcripts are scored by characters.
BY_CHARACTER = frozenset({"cmn", "jpn", "khm", "lao", "mya", "tha", "yue"})

Sound = Callable[[Float32Array], Float32Array]


def _clean(audio: Float32Array) -> Float32Array:
    return audio


CONDITIONS: dict[str, Sound] = {
    "noise_20db": lambda audio: add_noise(audio, 20, 1, np.random.default_rng(0)),
    "noise_10db": lambda audio: add_noise(audio, 10, 1, np.random.default_rng(0)),
    "reverberation_0.4s": lambda audio: reverberate(audio, 0.4, np.random.default_rng(0)),
    "narrow_band_8khz": lambda audio: narrow(audio, 8000),
}


class Split(StrEnum):
    """The held-out splits."""

    TEST = "test"
    VALIDATION = "validation"


@dataclass(frozen=True)
class Row:
    """One translation and what it should have been."""

    source: str
    target: str
    variant: str
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
    sound: Sound = _clean,
    batch: int = 96,
) -> list[Row]:
    """Translate a split greedily, unsplit, in float32; each utterance is encoded once.

    Args:
        edge: encoder, Q-Former and projector.
        decoder: the language model.
        tokenizer: the decoder's.
        corpus: what to translate.
        directions: into how many languages each utterance goes, in turn; ``None`` for all others.
        sound: what happens to the audio before.
        batch: about so many translations at once.
    """
    device = next(decoder.parameters()).device
    tasks = []
    for number, example in enumerate(corpus.examples):
        others = [code for code in example.texts if code != example.language]
        turn = number % len(others)
        tasks.append((example, (others[turn:] + others[:turn])[:directions]))
    tasks.sort(key=lambda task: task[0].samples)
    size = max(1, batch // max(len(targets) for _, targets in tasks)) if tasks else 1
    rows = []
    for start in track(range(0, len(tasks), size), description="translating", transient=True):
        part = tasks[start : start + size]
        audio = [sound(corpus.speech(example)) for example, _ in part]
        mel, frames = mel_batch(edge.config, audio)
        embeddings = edge(mel.to(device), frames.to(device))
        tokens = torch.tensor([edge.config.tokens(count) for count in frames.tolist()])
        wanted = [(row, target) for row, (_, targets) in enumerate(part) for target in targets]
        places = torch.tensor([row for row, _ in wanted], device=device)
        pairs = [(LANGUAGES[part[row][0].language], LANGUAGES[target]) for row, target in wanted]
        written = generate_greedy(
            decoder,
            tokenizer,
            embeddings[places],
            tokens.to(device)[places],
            [separator(*pair) for pair in pairs],
            MAX_NEW_TOKENS,
        )
        for (row, target), pair, text in zip(wanted, pairs, written, strict=True):
            example = part[row][0]
            transcript, translation = split_target(text, *pair)
            rows.append(
                Row(
                    example.language,
                    target,
                    example.variant,
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
        "exact": _percent(row.translation == row.reference for row in rows),
        "chrf": round(chrf.score, 2),
        "transcript_exact": _percent(row.transcript == row.spoken for row in rows),
    }


def error_rate(rows: list[Row]) -> dict[str, float]:
    """Errors in the transcripts of one source language, in percent of its words or characters."""
    spoken, transcripts = [row.spoken for row in rows], [row.transcript for row in rows]
    if rows[0].source in BY_CHARACTER:
        return {"cer": round(100 * jiwer.cer(spoken, transcripts), 2)}
    return {"wer": round(100 * jiwer.wer(spoken, transcripts), 2)}


def report(
    rows: list[Row], trained: set[str], contaminated: Collection[str] = frozenset()
) -> dict[str, Any]:
    """Scores over everything, over groups, and for each source language and direction.

    ``uncontaminated`` leaves out what the weights that training began from had been trained with;
    ``beyond_numbers`` is what is new by more than its numbers; ``unseen_voices`` what voices said
    that training never heard. ``consistency`` compares means of exact match: the best and the
    worst source language, and directions with English against those without.

    Args:
        rows: the translations.
        trained: every text of the training split.
        contaminated: every text of the sentences that the weights before knew.
    """
    patterns = {_without_numbers(text) for text in trained}
    directions = [
        {"src": source, "tgt": target} | score(group)
        for (source, target), group in _grouped(rows, lambda row: (row.source, row.target)).items()
    ]
    sources = [
        {"src": source} | score(group) | error_rate(group)
        for source, group in _grouped(rows, lambda row: row.source).items()
    ]
    return {
        "overall": score(rows),
        "uncontaminated": score([row for row in rows if row.spoken not in contaminated]),
        "beyond_numbers": score(
            [row for row in rows if _without_numbers(row.spoken) not in patterns]
        ),
        "known_voices": score([row for row in rows if row.variant not in UNSEEN_VARIANTS]),
        "unseen_voices": score([row for row in rows if row.variant in UNSEEN_VARIANTS]),
        "consistency": _consistency(directions, sources),
        "sources": sources,
        "directions": directions,
    }


def _consistency(
    directions: list[dict[str, Any]], sources: list[dict[str, Any]]
) -> dict[str, float | None]:
    exact = [row["exact"] for row in sources]
    english = [row["exact"] for row in directions if "eng" in (row["src"], row["tgt"])]
    other = [row["exact"] for row in directions if "eng" not in (row["src"], row["tgt"])]
    means = [round(statistics.mean(some), 2) if some else None for some in (english, other)]
    return {
        "source_spread": round(max(exact) - min(exact), 2),
        "with_english": means[0],
        "without_english": means[1],
    }


def bars(result: dict[str, Any], checkpoint_bytes: int) -> list[Threshold]:
    """The figures that a bundled model is held to."""
    found = [
        Threshold("exact_all", result["overall"]["exact"], 90, at_least=True),
        Threshold("chrf_all", result["overall"]["chrf"], 95, at_least=True),
        Threshold(
            "exact_worst_direction",
            min(row["exact"] for row in result["directions"]),
            80,
            at_least=True,
        ),
        Threshold("checkpoint_mb", round(checkpoint_bytes / 1e6, 2), 40),
    ]
    consistency = result["consistency"]
    if None not in consistency.values():
        gap = consistency["with_english"] - consistency["without_english"]
        found.append(Threshold("english_gap", round(gap, 2), 3))
    if result["unseen_voices"]["n"]:
        exact = result["unseen_voices"]["exact"]
        found.append(Threshold("exact_unseen_voices", exact, 75, at_least=True))
    return found


def _grouped(rows: list[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return dict(sorted(groups.items()))


def _percent(truths: Iterable[bool]) -> float:
    return round(100 * statistics.mean(truths), 2)


def _without_numbers(text: str) -> str:
    return re.sub(r"\d+", "0", text)


def _read_contaminated(file: Path, split: Corpus) -> set[str]:
    """In every language the sentences of a split that a file names in English."""
    named = set(file.read_text("utf-8").splitlines())
    found = [one.texts for one in split.examples if one.texts["eng"] in named]
    if unknown := named - {texts["eng"] for texts in found}:
        raise CheckFailed(
            f"{file} names {min(unknown)!r}, which is not in the split.",
            "Make the list anew: docs/training.md tells how.",
        )
    return {text for texts in found for text in texts.values()}


def _print(result: dict[str, Any]) -> None:
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


def evaluate(
    checkpoint: Checkpoint,
    held_out: Corpus,
    trained: set[str],
    contaminated: Collection[str] = frozenset(),
) -> dict[str, Any]:
    """Everything there is to say about a checkpoint on a split: see `report`.

    ``conditions`` are scores under noise, reverberation and a narrow band, each utterance into
    one language.
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


def main(
    checkpoint: Annotated[
        Path, typer.Option(help="Checkpoint folder.", show_default="the bundled esrt-nano")
    ] = bundled.CHECKPOINT,
    corpus: Annotated[Path, typer.Option(help="Folder of the corpus.")] = CORPUS,
    split: Annotated[Split, typer.Option(help="Which held-out split.")] = Split.TEST,
    contaminated: Annotated[
        Path | None,
        typer.Option(help="Held-out sentences in English, one a line, that weights before knew."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw exact match, source by target, as PNG here.")
    ] = None,
) -> None:
    """Translate a held-out split in every direction; print, write and draw the scores."""
    opened = open_checkpoint(checkpoint)
    whole = load(corpus, split)
    known = _read_contaminated(contaminated, whole) if contaminated else set()
    trained = {text for one in sentences("train") for text in one.texts.values()}
    held_out = whole.only(opened.config.languages)
    result = evaluate(opened, held_out, trained, known)
    _print(result)
    if plot:
        heat_map(result["directions"], plot)
    if json_file:
        weights = sum(file.stat().st_size for file in checkpoint.rglob("*.safetensors"))
        BenchmarkReport(
            settings={
                "model": opened.config.name,
                "fingerprint": opened.fingerprint,
                "split": split,
                "utterances": len(held_out.examples),
            },
            rows=result["directions"],
            bars=bars(result, weights),
            tools=("torch", "transformers", "sacrebleu", "jiwer"),
            more={"languages": list(opened.config.languages)}
            | {name: value for name, value in result.items() if name != "directions"},
        ).write(json_file)


if __name__ == "__main__":
    with exit_on_error():
        typer.run(main)
