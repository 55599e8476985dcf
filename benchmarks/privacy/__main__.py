"""The privacy audit: ``python -m benchmarks.privacy --json FILE``.

Attackers are trained to recognize speakers at each stage from log-mel to packet. The audit is void
unless they succeed on log-mel.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.options import DEFAULT_CODEC, CheckpointOption, JsonOption, ReportOption
from benchmarks.privacy.engine import Engine
from esrt import bundled
from esrt.benchmark_report import BenchmarkReport
from esrt.cli import VersionOption, run


def main(
    json_file: JsonOption,
    report: ReportOption = None,
    checkpoint: CheckpointOption = bundled.CHECKPOINT,
    voices: Annotated[
        Engine,
        typer.Option(
            help="Synthesizer of the speakers. kokoro needs make voices, and a pretrained speaker"
            " encoder attacks as well."
        ),
    ] = Engine.ESPEAK,
    seeds: Annotated[
        int, typer.Option(min=1, metavar="COUNT", help="TDNNs to train on each representation.")
    ] = 1,
    steps: Annotated[
        int | None, typer.Option(min=1, metavar="COUNT", help="Training steps of each TDNN.")
    ] = None,
    bars_only: Annotated[
        bool, typer.Option("--bars-only", help="Attack only log-mel and the default packet.")
    ] = False,
    thorough: Annotated[
        bool,
        typer.Option("--thorough", help="Train TDNNs on the encoder's states and all codecs too."),
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Few speakers and steps.")] = False,
    version: VersionOption = False,
) -> None:
    """Train attackers on every stage from log-mel to packet, and measure their success."""
    # Imported here: torch takes seconds, which --help need not.
    import torch

    from benchmarks.privacy.audit import (
        EvaluationSplit,
        attack_all,
        invert_packets,
        size_attack,
        strongest,
    )
    from benchmarks.privacy.report import (
        FOLDER,
        FULL,
        FULL_BUDGET,
        INVERTED,
        QUICK,
        QUICK_BUDGET,
        bars,
        is_for_lda_alone,
        packet_name,
        plot,
        print_report,
        write_representations,
    )
    from benchmarks.privacy.representations import (
        LOG_MEL,
    )
    from benchmarks.privacy.speakers import speech
    from esrt.checkpoint import open_checkpoint
    from training.corpus.speech import espeak_version

    opened = open_checkpoint(checkpoint)
    speakers = (QUICK if quick else FULL)[voices]
    budget = QUICK_BUDGET if quick else FULL_BUDGET
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
        # The encoder was trained on people; espeak-ng's voices are unlike them.
        human_like = (LOG_MEL, INVERTED) if voices is Engine.KOKORO else ()
        log_mels = [name for name in human_like if name in files]
        attacks = attack_all(files, networks, log_mels, evaluation, budget)
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
    print_report(record)


if __name__ == "__main__":
    run(main)
