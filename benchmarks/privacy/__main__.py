"""The privacy audit: ``python -m benchmarks.privacy --json FILE``.

Attackers are trained to tell speakers by what leaks at each stage from log-mel to packet. The
audit is void unless they succeed on log-mel.
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
    model_states,
    received,
    rungs,
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
# What the edge runtime sends of a model with statistics.
DEFAULT = Codec.KLT
EER_MEL, EER_PACKET = 5.0, 35.0
CHANCE = 50.0
GUESSED = f"log-mel guessed from packet, {DEFAULT}"


def write_down(
    checkpoint: Checkpoint, evaluation: EvaluationSplit, folder: Path
) -> tuple[dict[str, Path], dict[str, Sizes]]:
    """Encode and pack everything.

    Returns:
        A file for each representation, and the sizes of every utterance's packet for each rung.
    """
    states = model_states(checkpoint, evaluation.speech)
    features = states[Q_FORMER]
    files = {
        name: one.save(folder / f"{number}") for number, (name, one) in enumerate(states.items())
    }
    sizes = {}
    for name, rung in rungs(checkpoint).items():
        seen = received(rung, features, evaluation.speech)
        sizes[name] = np.array([[one.duration_ms, one.tokens, one.bytes] for one in seen])
        sequences = Sequences.of((one.features for one in seen), features.stride)
        files[packet(name)] = sequences.save(folder / f"{len(files)}")
    return files, sizes


def packet(rung: str) -> str:
    """A rung's name among the representations."""
    return f"packet, {rung}"


def is_for_lda_alone(representation: str) -> bool:
    """Where networks are trained on request only: they take minutes each.

    The encoder's states leak enough to LDA, and fp16 and int4 lie on both sides of int8.
    """
    lda_alone = packet(Codec.FP16), packet(Codec.INT4)
    return representation.startswith("encoder") or representation in lda_alone


def bars(rows: list[dict[str, Any]]) -> list[Threshold]:
    """The attack must succeed on log-mel, and should fail on the packets that are sent."""
    eer = {row["representation"]: row["eer"]["value"] for row in rows}
    return [
        Threshold("eer_mel", eer[LOG_MEL], EER_MEL),
        Threshold("eer_default_packet", eer[packet(DEFAULT)], EER_PACKET, at_least=True),
    ]


def named(record: BenchmarkReport) -> list[str]:
    """The representations, and of which of them no network was trained."""
    networks = {
        one["representation"]
        for one in record.more["attackers"]
        if one["attacker"].startswith("TDNN")
    }
    names = [row["representation"] for row in record.rows]
    return [name if name in networks else f"{name} (LDA alone)" for name in names]


def plot(record: BenchmarkReport, path: Path) -> None:
    """Draw the error rates with their intervals, one line for each representation, as a PNG."""
    rows, names = record.rows, named(record)
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
    json_file: Annotated[Path, typer.Option("--json", help="Write the figures here.")],
    report: Annotated[
        Path | None, typer.Option(help="Draw the error rates as privacy.png in this folder.")
    ] = None,
    checkpoint: Annotated[
        Path, typer.Option(help="Checkpoint folder.", show_default="the bundled esrt-nano")
    ] = bundled.CHECKPOINT,
    seeds: Annotated[int, typer.Option(min=1, help="TDNNs to train on each.")] = 1,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps of each.")] = None,
    bars_only: Annotated[
        bool, typer.Option("--bars-only", help="Attack log-mel and the default packet alone.")
    ] = False,
    thorough: Annotated[
        bool,
        typer.Option("--thorough", help="Train TDNNs on the encoder's states and all rungs, too."),
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few speakers and steps: shows that it runs.")
    ] = False,
) -> None:
    """Train attackers on every stage from log-mel to packet; say how well they tell speakers."""
    opened = open_checkpoint(checkpoint)
    speakers, budget = QUICK if quick else FULL
    budget = dataclasses.replace(budget, seeds=seeds, steps=steps or budget.steps)
    torch.set_num_threads(1)
    evaluation = EvaluationSplit(speakers, speech(speakers, FOLDER))
    with tempfile.TemporaryDirectory(dir=FOLDER) as temporary:
        folder = Path(temporary)
        files, sizes = write_down(opened, evaluation, folder)
        guess = folder / "guess"
        inversion = invert_packets(
            files[packet(DEFAULT)], files[LOG_MEL], guess, evaluation, budget
        )
        files[GUESSED] = guess
        if bars_only:
            files = {name: files[name] for name in (LOG_MEL, packet(DEFAULT))}
        networks = [name for name in files if thorough or not is_for_lda_alone(name)]
        attacks = attack_all(files, networks, evaluation, budget)
    rows = [{"representation": name} | strongest(found) for name, found in attacks.items()]
    found_bars = bars(rows)
    record = BenchmarkReport(
        settings={
            "checkpoint": opened.config.name,
            "fingerprint": opened.fingerprint,
            "default_codec": DEFAULT,
            "cast": dataclasses.asdict(speakers),
            "budget": dataclasses.asdict(budget),
            "seconds_mean": round(evaluation.seconds, 2),
            "espeak-ng": espeak_version(),
        },
        rows=rows,
        bars=found_bars,
        tools=("torch", "numpy"),
        more={
            "void": not found_bars[0].passed,
            "sizes": [
                {"rung": name, "text_known": known}
                | strongest({"sizes": size_attack(sizes[name], evaluation, text_known=known)})
                for name in sizes
                for known in (False, True)
            ],
            "inversion": {"rung": DEFAULT}
            | {key: round(value, 2) for key, value in vars(inversion).items()},
            "attackers": [
                {"representation": name, "attacker": attacker} | strength.json()
                for name, found in attacks.items()
                for attacker, strength in found.items()
            ],
        },
    )
    record.write(json_file)
    if report:
        plot(record, report / "privacy.png")
    _print(record)


def _print(record: BenchmarkReport) -> None:
    table = Table("representation", "EER %", "5 enrolled: EER %", "top-1 %")
    for row, name in zip(record.rows, named(record), strict=True):
        figures = (row[key] for key in ("eer", "eer_enrolled", "top1"))
        cells = (f"{one['value']:.1f} ({one['low']:.1f} to {one['high']:.1f})" for one in figures)
        table.add_row(name, *cells)
    Console().print(table)
    for bar in record.bars:
        print(bar)
    if record.more["void"]:
        print("The audit is void: the attackers do not even tell speakers by log-mel.")


if __name__ == "__main__":
    with exit_on_error():
        typer.run(main)
