"""Translations of worse recordings: ``python -m benchmarks.robustness --json FILE``.

The bundled clips are recorded under 40 conditions (silence, level, noise, reverberation, bands,
codecs, clipping, speed), written as files, and translated by the edge runtime and a gateway. A
translation is kept if it equals that of the clip as it is. Otherwise the user is cautioned, the
file is refused before anything is sent, or the failure is silent. Sounds without speech should be
refused or cautioned.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.options import JsonOption, ReportOption
from esrt.benchmark_report import BenchmarkReport
from esrt.bundled import ARTIFACT
from esrt.cli import VersionOption, run

LOG = Path("build/benchmarks/robustness/gateway.log")


def main(
    json_file: JsonOption,
    report: ReportOption = None,
    artifact: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            help="Folder that an export wrote.",
            show_default="the bundled model's, build/artifacts/esrt-nano-onnx-int8",
        ),
    ] = ARTIFACT,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Address of a gateway.", show_default="one is started with vLLM"
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Two clips, four conditions, a sound of each kind.")
    ] = False,
    version: VersionOption = False,
) -> None:
    """Count kept translations, cautions, refusals and silent failures."""
    # Imported here: scipy and ONNX Runtime take seconds, which --help need not.
    from rich.progress import track

    from benchmarks.robustness.conditions import conditions
    from benchmarks.robustness.measures import Phone, measure, measure_sounds, read_clips
    from benchmarks.robustness.report import TOOLS, bars, plot, print_report
    from benchmarks.robustness.sounds import sounds
    from cloud_vllm.process import start_gateway
    from edge_runtime import Client, open_artifact

    opened, clips = open_artifact(artifact), read_clips()
    chosen, variants = conditions([clip.samples for clip in clips]), 4
    if quick:
        clips, chosen, variants = clips[:2], chosen[5::10], 1
    with ExitStack() as stack:
        if server is None:
            gateway = stack.enter_context(start_gateway("--engine", "vllm", log=LOG))
            gateway.wait_until_ready()
            server = gateway.address
        phone = Phone(opened, stack.enter_context(Client(server)))
        rows = measure(phone, clips, track(chosen, "translating"))
        without_speech = measure_sounds(phone, sounds(variants))
    record = BenchmarkReport(
        settings={"fingerprint": opened.manifest.fingerprint, "clips": len(clips)},
        rows=rows,
        bars=bars(rows, without_speech),
        tools=TOOLS,
        more={"sounds": without_speech},
    )
    record.write(json_file)
    if report:
        plot(record, report / "robustness.png")
    print_report(record)


if __name__ == "__main__":
    run(main)
