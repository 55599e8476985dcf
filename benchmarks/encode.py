"""How fast each backend encodes, and what int8 costs: ``python -m benchmarks.encode --json FILE``.

Times are medians of rounds in which the backends take turns on the same input, with the same
number of threads. Quality is that of nano's test split, translated from each backend's features.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, Gemma3ForCausalLM

from benchmarks.record import Bar, Record
from edge_runtime.backends import open_backend
from esrt.checkpoint import Checkpoint, open_checkpoint
from esrt.command import reported
from esrt.config import ModelConfig
from esrt.manifest import SplitPoint
from esrt.model import Projector
from export.parity import sample_mels
from export.target import Precision, Target, export
from export.to_executorch import TARGET as EXECUTORCH
from export.to_onnx import TARGET as ONNX
from training.corpus.build import CORPUS, Corpus, load
from training.evaluate import score, translate

Array = NDArray[np.float32]
Encode = Callable[[Array], Array]

EAGER = "torch fp32"
SPLIT: SplitPoint = "qformer"
TARGETS = {"executorch": EXECUTORCH, "onnxruntime": ONNX}
FRAMES_PER_SECOND = 100
# The threads of one backend wait for more work by spinning, which would slow the next one down.
_IDLE_SECONDS = 0.05
TOOLS = ("torch", "executorch", "onnxruntime")


def backends(checkpoint: Checkpoint, folder: Path, threads: int) -> dict[str, Encode]:
    """Torch, and every target in every precision, exported anew: log-mel to features, batch 1."""
    model = checkpoint.edge_model()
    torch.set_num_threads(threads)

    @torch.inference_mode()
    def eager(mel: Array) -> Array:
        return np.asarray(model.features(torch.from_numpy(mel[None])).numpy()[0])

    runs: dict[str, Encode] = {EAGER: eager}
    for name, target in TARGETS.items():
        for precision in Precision:
            out = folder / f"{target.kind}-{precision}"
            _export(target, checkpoint, out, precision)
            runs[f"{name} {precision}"] = open_backend(out, threads=threads).encode
    return runs


def _export(target: Target, checkpoint: Checkpoint, out: Path, precision: Precision) -> None:
    with Console(stderr=True).status(f"exporting to {target.title}, {precision}"):
        export(target, checkpoint, out, precision, SPLIT)


def speech(config: ModelConfig, seconds: float) -> Array:
    """That much of the bundled clips, one after the other: (128, frames)."""
    clips = np.concatenate(list(sample_mels(config)), axis=1)
    frames = int(seconds * FRAMES_PER_SECOND) // config.frame_multiple * config.frame_multiple
    return np.ascontiguousarray(clips[:, :frames])


def medians(runs: dict[str, Encode], mel: Array, rounds: int) -> dict[str, float]:
    """Milliseconds of each backend, which take turns; each runs once before it is timed."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, encode in runs.items():
            time.sleep(_IDLE_SECONDS)
            encode(mel)
            start = time.perf_counter()
            encode(mel)
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


class _Edge:
    """A backend in the place of the edge model, for `training.evaluate.translate`."""

    def __init__(self, encode: Encode, projector: Projector, config: ModelConfig) -> None:
        self._encode, self._projector, self.config = encode, projector, config

    def __call__(self, mel: Tensor, frames: Tensor) -> Tensor:
        rows = [
            torch.from_numpy(self._encode(np.ascontiguousarray(row[:, :count].numpy())))
            for row, count in zip(mel, frames, strict=True)
        ]
        projected: Tensor = self._projector(pad_sequence(rows, batch_first=True))
        return projected


def quality(
    runs: dict[str, Encode], checkpoint: Checkpoint, corpus: Corpus
) -> dict[str, dict[str, Any]]:
    """Scores of a split, translated from each backend's features."""
    decoder = Gemma3ForCausalLM.from_pretrained(checkpoint.decoder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.decoder)
    projector = checkpoint.projector()
    return {
        name: score(translate(_Edge(run, projector, checkpoint.config), decoder, tokenizer, corpus))
        for name, run in track(runs.items(), description="translating", total=len(runs))
    }


def bars(times: dict[str, dict[str, float]], scores: dict[str, dict[str, Any]]) -> list[Bar]:
    """The ratios that are asked for, by case, and what int8 costs on the worst backend."""
    found = []
    for case, ms in times.items():
        int8 = ms["executorch int8"]
        found.append(Bar(f"et_int8_over_ort_int8_{case}", int8 / ms["onnxruntime int8"], 1.0))
        found.append(Bar(f"et_int8_over_eager_fp32_{case}", int8 / ms[EAGER], 0.5))
    for key, bound in (("chrf", 0.5), ("exact", 1.0)) if scores else ():
        losses = [scores[f"{name} fp32"][key] - scores[f"{name} int8"][key] for name in TARGETS]
        found.append(Bar(f"int8_{key}_loss", round(max(losses), 3), bound))
    return found


def main(
    json_file: Annotated[Path, typer.Option("--json", help="Write the figures here.")],
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint folder.")] = Path("models/esrt-nano"),
    threads: Annotated[int, typer.Option(min=1)] = 2,
    rounds: Annotated[int, typer.Option(min=1)] = 41,
    quick: Annotated[bool, typer.Option("--quick", help="Few rounds, no quality.")] = False,
) -> None:
    """Measure encoding time of every backend at 3 and 10 s, and translation quality."""
    opened = open_checkpoint(checkpoint)
    rounds = 3 if quick else rounds
    runs = backends(opened, Path("build/benchmarks/encode"), threads)
    cases = {f"nano_{seconds}s": seconds for seconds in (3, 10)}
    times = {
        case: medians(runs, speech(opened.config, seconds), rounds)
        for case, seconds in cases.items()
    }
    scores = {} if quick else quality(runs, opened, load(CORPUS, "test"))
    rows = [
        {
            "backend": name,
            **{f"{case}_ms": round(ms[name], 3) for case, ms in times.items()},
            **{key: scores[name][key] for key in ("exact", "chrf") if scores},
        }
        for name in runs
    ]
    settings = {"threads": threads, "rounds": rounds, "fingerprint": opened.fingerprint}
    record = Record(settings, rows, bars(times, scores), TOOLS)
    record.write(json_file)
    _print(record)


def _print(record: Record) -> None:
    table = Table(*record.rows[0])
    for row in record.rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)
    for bar in record.bars:
        verdict = "holds" if bar.holds else "misses"
        print(f"{bar.name} {bar.value:.3f}, bound {bar.bound:g}: {verdict}")


if __name__ == "__main__":
    with reported():
        typer.run(main)
