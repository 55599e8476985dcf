"""The gateway under load: ``python -m benchmarks.cloud --json FILE``.

Systems on the same cases, in interleaved rounds: the gateway; vLLM's engine alone, with the
gateway's prompts and parameters (`benchmarks.cloud.baseline`); vLLM's own OpenAI-compatible server,
with the same prompts (`benchmarks.cloud.prompts`); and transformers. Throughput is tokens per
second. A comparison is the median of the rounds' ratios, with a 95 % confidence interval. All
systems and the load generator share the machine.
"""

import asyncio
import dataclasses
import os
import statistics
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.options import CheckpointOption, JsonOption, ReportOption
from cloud_vllm import env_defaults
from esrt import bundled
from esrt.benchmark_report import BenchmarkReport, Threshold
from esrt.cli import VersionOption, run


def main(
    json_file: JsonOption,
    report: ReportOption = None,
    checkpoint: CheckpointOption = bundled.CHECKPOINT,
    rounds: Annotated[
        int, typer.Option(min=1, metavar="COUNT", help="Rounds of closed load.")
    ] = 16,
    turns: Annotated[
        int,
        typer.Option(min=1, metavar="COUNT", help="Requests in a run for each request at once."),
    ] = 6,
    compile_: Annotated[
        bool, typer.Option("--compile/--eager", help="Let vLLM compile the decoder.")
    ] = True,
    quick: Annotated[
        bool, typer.Option("--quick", help="One round of few requests, without compilation.")
    ] = False,
    faults: Annotated[bool, typer.Option("--faults", help="Kill the engine under load.")] = False,
    soak: Annotated[
        float, typer.Option(min=0, metavar="MINUTES", help="Minutes of mixed load.")
    ] = 0.0,
    version: VersionOption = False,
) -> None:
    """Measure throughput, latency and CPU time; on request, faults and endurance."""
    # Imported here: torch takes seconds, which --help need not.
    from benchmarks.cloud import faults as faults_
    from benchmarks.cloud import soak as soak_
    from benchmarks.cloud.cases import encode_clips
    from benchmarks.cloud.plot import draw
    from benchmarks.cloud.report import (
        FOLDER,
        KILLS,
        TOOLS,
        bars,
        expected_answers,
        measure_systems,
        print_report,
    )
    from benchmarks.cloud.runs import (
        CONCURRENCIES,
        open_rows,
    )
    from benchmarks.cloud.service import start_service

    rounds, turns, seconds, kills = (1, 1, 1.0, 1) if quick else (rounds, turns, 8.0, KILLS)
    FOLDER.mkdir(parents=True, exist_ok=True)
    # The queue holds all requests of the open load, so that none is refused.
    env = {"ESRT_MAX_CONCURRENT": str(max(CONCURRENCIES)), "ESRT_QUEUE_SIZE": "4096"}
    if compile_ and not quick:
        env["ESRT_COMPILE"] = "true"
    more: dict[str, Any] = {}
    progress = Console(stderr=True, log_path=False).log
    # All processes inherit the same settings.
    os.environ.update(env)
    env_defaults.prepare()
    with start_service(checkpoint, FOLDER / "gateway.log") as service:
        progress("starting the gateway and the systems beside it")
        # The report compares recovery with a start, which no other start may slow down.
        start_s = service.wait_until_ready() if faults else 0.0
        cases = encode_clips(FOLDER, checkpoint)
        measured = measure_systems(service, checkpoint, cases, rounds, turns, progress)
        comparisons = measured.comparisons()
        different, compared = measured.differing_texts("gateway", "vllm serve")
        more["vllm_serve_answers"] = {"compared": compared, "different": different}
        progress("open load")
        capacity = statistics.median(measured.answer_rates("gateway events", max(CONCURRENCIES)))
        rows = measured.rows() + open_rows(service, cases, capacity, seconds) + comparisons
        thresholds = bars(measured, comparisons)
        if soak:
            progress(f"mixed load for {soak:g} minutes")
            soaked = asyncio.run(soak_.soak(service, cases, soak))
            growth = {name: soaked.growth_pct(name) for name in ("gateway", "engine")}
            more["soak"] = {**dataclasses.asdict(soaked), "growth_pct": growth}
            thresholds.append(Threshold("soak_growth_pct", max(growth.values()), 2.0))
        if faults:
            progress("killing the engine")
            expected = expected_answers(service, cases)
            outcome = asyncio.run(faults_.kill_repeatedly(service, cases, expected, kills))
            more["faults"] = faults_.summary(outcome, start_s)
            thresholds.append(Threshold("kills_lost", outcome.failures, 0))
    record = BenchmarkReport(
        settings={"rounds": rounds, "turns": turns, "open_s": seconds, "engine": env},
        rows=rows,
        bars=thresholds,
        tools=TOOLS,
        more=more,
    )
    record.write(json_file)
    if report:
        draw(record, report / "cloud.png")
    print_report(record)


if __name__ == "__main__":
    run(main)
