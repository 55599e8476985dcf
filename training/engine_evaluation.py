"""Evaluation of a checkpoint on cached states of a corpus of many voices."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoTokenizer, Gemma3ForCausalLM

from esrt.benchmark_report import BenchmarkReport
from esrt.checkpoint import Checkpoint
from esrt.languages import LANGUAGES
from training.corpus.build import Example
from training.corpus.clips import load_shard, shards_of
from training.ctc_heads import TranscriptCtc
from training.engine_scoring import WRONG_LANGUAGE, answer_row, engine_report, plain_error_rate
from training.scoring import Prediction, grouped
from training.state_corpus import StateCorpus, load_states
from training.state_edge import split_edge
from training.translation import translate
from training.whisper_reference import WhisperReference


def evaluate_states(
    checkpoint: Checkpoint,
    states: Path,
    json_file: Path | None,
    answers_file: Path | None,
    clips: Path | None = None,
) -> None:
    """Answer the test and validation splits; print and write the scores.

    Args:
        checkpoint: the checkpoint.
        states: folder of the cache (`training.cache`).
        json_file: file of the scores.
        answers_file: file of all answers with their scores, one JSON object a line.
        clips: folder of the clips; Whisper's own decoder transcribes the open recordings as well.
    """
    corpora = {split: load_states(states / split) for split in ("validation", "test")}
    answers = _answers(checkpoint, corpora)
    size = sum(path.stat().st_size for path in checkpoint.folder.rglob("*") if path.is_file())
    result, bars = engine_report(answers["test"], answers["validation"], size)
    if clips:
        rates = whisper_rates(clips / "test")
        result["open_speech"] = [row | rates[row["src"]] for row in result["open_speech"]]
    _print(result)
    for bar in bars:
        print(bar)
    if answers_file:
        answers_file.parent.mkdir(parents=True, exist_ok=True)
        with answers_file.open("w", encoding="utf-8") as file:
            for split, predictions in answers.items():
                for one in predictions:
                    row = {"split": split} | answer_row(one)
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
    if json_file:
        BenchmarkReport(
            settings={
                "model": checkpoint.config.name,
                "fingerprint": checkpoint.fingerprint,
                "utterances": len(corpora["test"].examples),
            },
            rows=result["directions"],
            bars=bars,
            tools=("torch", "transformers", "sacrebleu", "jiwer"),
            more={name: rows for name, rows in result.items() if name != "directions"},
        ).write(json_file)


def _answers(
    checkpoint: Checkpoint, corpora: dict[str, StateCorpus]
) -> dict[str, list[Prediction]]:
    """Answers to each split in all directions, and to prompts that name a wrong language."""
    edge = split_edge(checkpoint.edge_model()).eval()
    decoder = Gemma3ForCausalLM.from_pretrained(checkpoint.decoder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.decoder)
    scorer = TranscriptCtc(checkpoint.folder)
    answers = {}
    for split, corpus in corpora.items():
        others = _with_wrong_language(corpus, checkpoint.config.languages)
        answers[split] = [
            prediction
            for part in (corpus, replace(corpus, examples=others))
            for prediction in translate(edge, decoder, tokenizer, part, transcript_ctc=scorer)
        ]
    return answers


def whisper_rates(clips: Path) -> dict[str, dict[str, float]]:
    """WER or CER of Whisper's own decoder on the recordings of a split, by language."""
    whisper = WhisperReference()
    shards = [load_shard(shard) for shard in shards_of(clips) if shard.name.startswith("human")]
    examples = [(shard, example) for shard in shards for example in shard.examples]
    predictions = [
        Prediction(
            source=example.language,
            target="",
            variant=example.variant,
            transcript=whisper.transcribe(shard.recording(example), LANGUAGES[example.language]),
            reference_transcript=example.texts[example.language],
            translation="",
            reference_translation="",
        )
        for shard, example in track(examples, description="Whisper")
    ]
    return {
        source: {f"whisper_{name}": rate for name, rate in plain_error_rate(group).items()}
        for source, group in grouped(predictions, lambda one: one.source).items()
    }


def _with_wrong_language(corpus: StateCorpus, languages: Sequence[str]) -> list[Example]:
    """Utterances of espeak-ng under the next language's name; nothing is the right answer."""
    following = dict(zip(languages, [*languages[1:], languages[0]], strict=True))
    return [
        replace(
            one,
            language=following[one.language],
            kind=WRONG_LANGUAGE,
            texts={following[one.language]: ""},
        )
        for one in corpus.examples
        if one.engine == "espeak" and len(one.texts) > 1
    ]


def _print(result: dict[str, Any]) -> None:
    columns = ("exact %", "chrF", "transcript exact %", "WER or CER %", "of Whisper's decoder")
    table = Table("voices", "from", "n", *columns)
    for row in [*result["engines"], *result["sources"], *result["open_speech"]]:
        rates = [row.get(f"{name}wer", row.get(f"{name}cer", "")) for name in ("", "whisper_")]
        keys = ("src", "n", "exact", "chrf", "transcript_exact")
        values = [*(row.get(key, "") for key in keys), *rates]
        table.add_row(row.get("engine", "human, open"), *map(str, values))
    Console().print(table)
    table = Table("score", "threshold", *(key for key in result["confidence"][0] if "pct" in key))
    for row in result["confidence"]:
        mark = "*" if row["chosen"] else ""
        shares = [str(value) for key, value in row.items() if "pct" in key]
        table.add_row(row["score"] + mark, f"{row['threshold']:.3f}", *shares)
    Console().print(table)
