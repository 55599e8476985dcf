"""Representations, thresholds, table and plot of the privacy audit."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks.options import DEFAULT_CODEC
from benchmarks.privacy.audit import (
    Budget,
    EvaluationSplit,
    Sizes,
)
from benchmarks.privacy.engine import Engine
from benchmarks.privacy.representations import (
    LOG_MEL,
    Q_FORMER,
    Sequences,
    decode_all,
    model_states,
    packet_codecs,
)
from benchmarks.privacy.speakers import SpeakerSet
from esrt.benchmark_report import BenchmarkReport, Threshold
from esrt.checkpoint import Checkpoint
from esrt.cores import usable_cores
from esrt.wire import Codec
from training.plots import save

FOLDER = Path("build/privacy")
FULL = {
    Engine.ESPEAK: SpeakerSet(known=200, unseen=60, training=24, test=12),
    # Two utterances a second on two cores.
    Engine.KOKORO: SpeakerSet(known=120, unseen=40, training=12, test=10, engine=Engine.KOKORO),
}
QUICK = {
    Engine.ESPEAK: SpeakerSet(known=16, unseen=8, training=6, test=7),
    Engine.KOKORO: SpeakerSet(known=6, unseen=4, training=3, test=7, engine=Engine.KOKORO),
}
FULL_BUDGET, QUICK_BUDGET = Budget(500, 600, 1, usable_cores()), Budget(20, 20, 1, usable_cores())
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


def print_report(record: BenchmarkReport) -> None:
    """Print the error rates and the thresholds."""
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
