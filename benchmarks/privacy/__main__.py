"""The privacy audit: ``python -m benchmarks.privacy --json FILE``.

Attackers are trained to recognize speakers at each stage from log-mel to packet. The audit is void
unless they succeed on log-mel.
"""

import dataclasses
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks.options import DEFAULT_CODEC, CheckpointOption, JsonOption, ReportOption
from benchmarks.privacy.audit import (
    Budget,
    EvaluationSplit,
    Sizes,
    attack_all,
    invert_packets,
    size_attack,
    strongest,
)
from benchmarks.privacy.representations import (
    LOG_MEL,
    Q_FORMER,
    Sequences,
    decode_all,
    model_states,
    packet_codecs,
)
from benchmarks.privacy.speakers import SpeakerSet, speech
from esrt import bundled
from esrt.benchmark_report import BenchmarkReport, Threshold
from esrt.checkpoint import Checkpoint, open_checkpoint
from esrt.cli import exit_on_error
from esrt.wire import Codec
from training.corpus.speech import espeak_version
from training.plots import save

FOLDER = Path("build/privacy")
FULL = (
    SpeakerSet(known=200, unseen=60, training=24, test=12),
    Budget(500, 600, 1, os.cpu_count() or 1),
)
QUICK = SpeakerSet(known=16, unseen=8, training=6, test=7), Budget(20, 20, 1, os.cpu_count() or 1)
EER_MEL, EER_PACKET = 5.0, 35.0
CHANCE = 50.0
INVERTED = f"log-mel guessed from packet, {DEFAULT_CODEC}"


def write_representations(
    checkpoint: Checkpoint, evaluation: EvaluationSplit, folder: Path
) -> tuple[dict[str, Path], dict[str, Sizes]]:
    """Compute all representations of all utterances, and write a file for each representation.

    Returns:
        The files by representation, and the packet sizes of all utterances by codec.
    """
    states = model_states(checkpoint, evaluation.speech)
    features = states[Q_FORMER]
    files = {
        name: sequences.save(folder / f"{number}")
        for number, (name, sequences) in enumerate(states.items())
    }
    sizes = {}
    for name, codec in packet_codecs(checkpoint).items():
        packets = decode_all(codec, features, evaluation.speech)
        sizes[name] = np.array([[one.duration_ms, one.tokens, one.bytes] for one in packets])
        sequences = Sequences.of((one.features for one in packets), features.stride)
        files[packet_name(name)] = sequences.save(folder / f"{len(files)}")
    return files, sizes


def packet_name(codec: str) -> str:
    """Name of the representation that consists of a codec's packets."""
    return f"packet, {codec}"


def is_for_lda_alone(representation: str) -> bool:
    """Whether networks, which take minutes each, are trained with ``--thorough`` only.

    LDA already succeeds on the encoder's states, and int8 represents fp16 and int4.
    """
    lda_alone = packet_name(Codec.FP16), packet_name(Codec.INT4)
    return representation.startswith("encoder") or representation in lda_alone


def bars(rows: list[dict[str, Any]]) -> list[Threshold]:
    """Equal error rates: low on log-mel, so that the audit is valid, and high on packets."""
    eer = {row["representation"]: row["eer"]["value"] for row in rows}
    return [
        Threshold("eer_mel", eer[LOG_MEL], EER_MEL),
        Threshold("eer_default_packet", eer[packet_name(DEFAULT_CODEC)], EER_PACKET, at_least=True),
    ]


def labels(record: BenchmarkReport) -> list[str]:
    """Names of the representations, marked if no network was trained on them."""
    networks = {
        result["representation"]
        for result in record.more["attackers"]
        if result["attacker"].startswith("TDNN")
    }
    names = [row["representation"] for row in record.rows]
    return [name if name in networks else f"{name} (LDA alone)" for name in names]


def plot(record: BenchmarkReport, path: Path) -> None:
    """Draw the error rates of each representation with their intervals, as a PNG."""
    rows, names = record.rows, labels(record)
    figure = Figure(figsize=(8, 1.2 + 0.3 * len(rows)))
    axes = figure.subplots()
    for shift, key, label in ((-0.18, "eer", "one against one"),
                              (0.18, "eer_enrolled", "five enrolled against one")):  # fmt: skip
        values = [row[key]["value"] for row in rows]
        spread = [
            [row[key]["value"] - row[key]["low"] for row in rows],
            [row[key]["high"] - row[key]["value"] for row in rows],
        ]
        places = [place + shift for place in range(len(rows))]
        axes.barh(places, values, 0.34, xerr=spread, label=label, error_kw={"linewidth": 0.8})
    axes.axvline(CHANCE, color="gray", linestyle=":")
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.set_xlabel("equal error rate of the strongest attacker, %; 50 is guessing")
    axes.legend()
    save(figure, path)


def main(
    json_file: JsonOption,
    report: ReportOption = None,
    checkpoint: CheckpointOption = bundled.CHECKPOINT,
    seeds: Annotated[int, typer.Option(min=1, help="TDNNs to train on each representation.")] = 1,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps of each TDNN.")] = None,
    bars_only: Annotated[
        bool, typer.Option("--bars-only", help="Attack only log-mel and the default packet.")
    ] = False,
    thorough: Annotated[
        bool,
        typer.Option("--thorough", help="Train TDNNs on the encoder's states and all codecs too."),
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Few speakers and steps.")] = False,
) -> None:
    """Train attackers on every stage from log-mel to packet, and measure their success."""
    opened = open_checkpoint(checkpoint)
    speakers, budget = QUICK if quick else FULL
    budget = dataclasses.replace(budget, seeds=seeds, steps=steps or budget.steps)
    torch.set_num_threads(1)
    evaluation = EvaluationSplit(speakers, speech(speakers, FOLDER))
    with tempfile.TemporaryDirectory(dir=FOLDER) as temporary:
        folder = Path(temporary)
        files, sizes = write_representations(opened, evaluation, folder)
        inverted = folder / "inverted"
        inversion = invert_packets(
            files[packet_name(DEFAULT_CODEC)], files[LOG_MEL], inverted, evaluation, budget
        )
        files[INVERTED] = inverted
        if bars_only:
            files = {name: files[name] for name in (LOG_MEL, packet_name(DEFAULT_CODEC))}
        networks = [name for name in files if thorough or not is_for_lda_alone(name)]
        attacks = attack_all(files, networks, evaluation, budget)
    rows = [{"representation": name} | strongest(results) for name, results in attacks.items()]
    thresholds = bars(rows)
    record = BenchmarkReport(
        settings={
            "checkpoint": opened.config.name,
            "fingerprint": opened.fingerprint,
            "default_codec": DEFAULT_CODEC,
            "cast": dataclasses.asdict(speakers),
            "budget": dataclasses.asdict(budget),
            "seconds_mean": round(evaluation.seconds, 2),
            "espeak-ng": espeak_version(),
        },
        rows=rows,
        bars=thresholds,
        tools=("torch", "numpy"),
        more={
            "void": not thresholds[0].passed,
            "sizes": [
                {"rung": name, "text_known": known}
                | strongest({"sizes": size_attack(sizes[name], evaluation, text_known=known)})
                for name in sizes
                for known in (False, True)
            ],
            "inversion": {"rung": DEFAULT_CODEC}
            | {key: round(value, 2) for key, value in vars(inversion).items()},
            "attackers": [
                {"representation": name, "attacker": attacker} | strength.json()
                for name, results in attacks.items()
                for attacker, strength in results.items()
            ],
        },
    )
    record.write(json_file)
    if report:
        plot(record, report / "privacy.png")
    _print(record)


def _print(record: BenchmarkReport) -> None:
    table = Table("representation", "EER %", "5 enrolled: EER %", "top-1 %")
    for row, name in zip(record.rows, labels(record), strict=True):
        figures = (row[key] for key in ("eer", "eer_enrolled", "top1"))
        cells = (
            f"{rate['value']:.1f} ({rate['low']:.1f} to {rate['high']:.1f})" for rate in figures
        )
        table.add_row(name, *cells)
    Console().print(table)
    for bar in record.bars:
        print(bar)
    if record.more["void"]:
        print("The audit is void: the attackers do not recognize speakers from log-mel.")


if __name__ == "__main__":
    with exit_on_error():
        typer.run(main)
