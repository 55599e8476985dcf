"""The load benchmark: client on a scripted server, statistics, and one quick run of the whole."""

import asyncio
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from benchmarks.cloud import load
from benchmarks.cloud.cases import Case, draw_cases
from benchmarks.cloud.client import Client, Reply
from benchmarks.cloud.faults import classify_reply
from benchmarks.cloud.runs import Measurements, closed_rounds, median_interval
from benchmarks.cloud.soak import Soak
from benchmarks.cloud.systems import (
    Run,
    completion_answer,
    cpu_s,
    gateway_answer,
    read_all,
)
from benchmarks.cloud.vllm_serve import command_line
from esrt.bundled import REPOSITORY
from esrt.errors import CheckFailed

CASES = [Case(f"clip-{number}", b"packet", "eng", "deu") for number in range(5)]
ANSWER = {"transcript": "hello", "translation": "hallo", "tokens": {"generated": 3}}
EXPECTED = {CASES[0].name: {("hello", "hallo")}}


def plain(body: bytes, status: int = 200, kind: str = "application/json") -> list[bytes]:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return [head.encode() + body]


def events(*items: tuple[str, object]) -> list[bytes]:
    head = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    chunks = [f"event: {name}\ndata: {json.dumps(data)}\n\n".encode() for name, data in items]
    return [head, *(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks), b"0\r\n\r\n"]


def served(
    parts: list[bytes], use: Callable[[int], Awaitable[object]], pause: float = 0.0
) -> object:
    """Run something against a server that answers every request with the same parts."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                assert b"Content-Length: 6" in head
                await reader.readexactly(6)
                for part in parts:
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(pause)
                if parts == [b""] or not parts[-1].endswith((b"}", b"0\r\n\r\n")):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def run() -> object:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        async with server:
            return await use(server.sockets[0].getsockname()[1])

    return asyncio.run(run())


def run(tokens: int, cpu_s: float, *texts: tuple[str, str]) -> Run:
    """A run of two requests in one second."""
    return Run(cpu_s, tokens, [(5.0, 5.2, 5.4), (5.4, 5.5, 6.0)], texts)


class ScriptedSystem:
    """A system that notes its runs."""

    def __init__(self, name: str, runs: list[tuple[str, int, list[str]]]) -> None:
        self.name, self.runs = name, runs

    def run(self, cases: Sequence[Case], at_once: int) -> Run:
        self.runs.append((self.name, at_once, [case.name for case in cases]))
        return run(90 if self.name == "gateway" else 100, 0.1)


SYSTEMS = ("gateway", "gateway events", "engine", "vllm serve", "vllm serve events")


def test_systems_are_compared_round_by_round() -> None:
    measured = Measurements()
    # The machine becomes three times as fast after the first round.
    for speed in (1, 3):
        for system in SYSTEMS:
            for at_once in (1, 16, 64):
                gateway = system.startswith("gateway")
                tokens, cpu_s = (90, 0.1) if gateway else (100, 0.2)
                measured.runs[system, at_once].append(run(tokens * speed, cpu_s / speed))
    rows = {row["name"]: row for row in measured.comparisons()}
    assert rows["throughput_over_engine_16"]["rounds"] == [0.9, 0.9]
    assert rows["cpu_ms_over_vllm_serve_64"]["median"] == 0.5
    # Half of 0.1 s for two requests, first at full and then at a third of the time.
    assert rows["gateway_minus_engine_cpu_ms_1"]["rounds"] == [-50.0, -16.6667]
    (row,) = (
        row for row in measured.rows() if (row["system"], row["concurrency"]) == ("gateway", 16)
    )
    assert (row["tokens_per_s"], row["answers_per_s"], row["cpu_ms"]) == (180.0, 2.0, 33.333)
    assert row["latency_ms_p50"] == 500.0


def test_each_round_puts_the_same_cases_to_all_systems_in_a_new_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("benchmarks.cloud.runs._IDLE_S", 0.0)
    runs: list[tuple[str, int, list[str]]] = []
    names = [*SYSTEMS, "transformers"]
    systems = {name: ScriptedSystem(name, runs) for name in names}
    lines: list[str] = []
    measured = closed_rounds(systems, CASES, 4, 2, lines.append)
    assert len(lines) == 5
    assert [len(measured.runs[name, 64]) for name in SYSTEMS] == [4] * 5
    assert ("transformers", 16) not in measured.runs
    rounds = [runs[start : start + 16] for start in range(0, len(runs), 16)]
    assert len({tuple(name for name, at_once, _ in one if at_once == 1) for one in rounds}) > 1
    for one in rounds:
        for at_once, count in ((1, 4), (16, 32), (64, 128)):
            chosen = [cases for _, at, cases in one if at == at_once]
            assert len(chosen) == (6 if at_once == 1 else 5)
            assert all(cases == chosen[0] for cases in chosen)
            assert len(chosen[0]) == count


@pytest.mark.parametrize(
    ("count", "expected"), [(1, (1, 1)), (5, (1, 5)), (8, (1, 8)), (9, (2, 8)), (24, (7, 18))]
)
def test_interval_of_the_median_is_that_of_order_statistics(
    count: int, expected: tuple[int, int]
) -> None:
    # Tables of the sign test have these ranks.
    assert median_interval([float(value) for value in range(count, 0, -1)]) == expected


def test_differing_texts_are_counted() -> None:
    measured = Measurements()
    for at_once in (1, 16, 64):
        measured.runs["gateway", at_once].append(run(1, 1.0, ("a", "b"), ("c", "d")))
        measured.runs["vllm serve", at_once].append(run(1, 1.0, ("a", "b"), ("c", "e")))
    assert measured.differing_texts("gateway", "vllm serve") == (3, 6)


def send(parts: list[bytes], pause: float = 0.0) -> Reply:
    async def use(port: int) -> Reply:
        async with Client(port) as client:
            return await client.send(CASES[0].http())

    reply = served(parts, use, pause)
    assert isinstance(reply, Reply)
    return reply


def test_client_reads_a_plain_answer() -> None:
    reply = send(plain(json.dumps(ANSWER).encode()))
    assert reply.answer() == ANSWER
    assert classify_reply(reply, EXPECTED, CASES[0]) == "right"


def test_client_reads_events_and_the_time_of_the_first() -> None:
    reply = send(events(("transcript", {"text": "hello"}), ("done", ANSWER)), pause=0.05)
    assert reply.answer() == ANSWER
    assert reply.done - reply.first > 0.04
    assert reply.first - reply.sent > 0.04


def test_one_connection_serves_one_request_after_another() -> None:
    async def use(port: int) -> load.LoadResult:
        return await load.closed_loop(port, [case.http() for case in CASES] * 20, 3)

    got = served(plain(json.dumps(ANSWER).encode()), use)
    assert isinstance(got, load.LoadResult)
    assert len(got.replies) == 100
    answers = read_all(got.replies, CASES * 20, gateway_answer)
    assert sum(answer.tokens for answer in answers) == 300


def test_open_load_counts_from_when_a_request_was_due() -> None:
    async def use(port: int) -> load.LoadResult:
        return await load.open_loop(port, [CASES[0].http()] * 40, 400.0, seed=1)

    got = served(plain(json.dumps(ANSWER).encode()), use, pause=0.02)
    assert isinstance(got, load.LoadResult)
    spread = got.replies[-1].sent - got.replies[0].sent
    assert 0.03 < spread < 0.4
    assert min(done - sent for sent, _, done in got.times) > 0


def problem(status: int) -> dict[str, object]:
    return {"type": "urn:esrt:problem:x", "status": status}


@pytest.mark.parametrize(
    ("parts", "outcome_kind"),
    [
        (plain(json.dumps(ANSWER | {"translation": "x"}).encode()), "wrong"),
        (plain(json.dumps(problem(503)).encode(), 503, "application/problem+json"), "retriable"),
        (plain(json.dumps(problem(500)).encode(), 500, "application/problem+json"), "lost"),
        (events(("transcript", {"text": "hel"}), ("error", problem(503))), "retriable"),
        (events(("transcript", {"text": "hel"})), "lost"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"], "lost"),
        ([b""], "lost"),
    ],
)
def test_every_end_of_a_request_is_judged(parts: list[bytes], outcome_kind: str) -> None:
    assert classify_reply(send(parts), EXPECTED, CASES[0]) == outcome_kind


def test_a_refused_connection_is_a_lost_request() -> None:
    async def use() -> Reply:
        async with Client(9) as client:
            return await client.send(b"")

    assert classify_reply(asyncio.run(use()), EXPECTED, CASES[0]) == "lost"


TEXT = "hello<|eng|><|deu|>hallo"
USAGE = {"completion_tokens": 9}


def completion(text: str, finish: str | None = "stop") -> dict[str, object]:
    return {"choices": [{"text": text, "finish_reason": finish}]}


def completion_events(*items: object) -> list[bytes]:
    head, *_ = events()
    chunks = [f"data: {json.dumps(item)}\n\n".encode() for item in items]
    chunks.append(b"data: [DONE]\n\n")
    return [head, *(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks), b"0\r\n\r\n"]


@pytest.mark.parametrize(
    "parts",
    [
        plain(json.dumps(completion(TEXT) | {"usage": USAGE}).encode()),
        completion_events(
            completion(TEXT[:7], None), completion(TEXT[7:]), {"choices": [], "usage": USAGE}
        ),
    ],
)
def test_answers_of_the_vllm_server_are_read(parts: list[bytes]) -> None:
    answer = completion_answer(send(parts), CASES[0])
    assert answer
    assert (answer.tokens, answer.text) == (9, ("hello", "hallo"))


@pytest.mark.parametrize(
    "parts",
    [plain(b'{"error": {}}', 400), completion_events(completion(TEXT, None))],
)
def test_an_incomplete_answer_of_the_vllm_server_ends_the_benchmark(parts: list[bytes]) -> None:
    with pytest.raises(CheckFailed, match="ended with status"):
        read_all([send(parts)], CASES[:1], completion_answer)


def test_command_line_of_the_vllm_server() -> None:
    options = command_line({"dtype": "float32", "enforce_eager": True, "prefix_caching": False})
    assert options == ["--dtype", "float32", "--enforce-eager", "--no-prefix-caching"]


def test_cases_come_in_turn() -> None:
    order = draw_cases(CASES, 12, seed=3)
    assert sorted(case.name for case in order[:5]) == [case.name for case in CASES]
    assert order == draw_cases(CASES, 12, seed=3)
    assert order != draw_cases(CASES, 12, seed=4)


def test_growth_is_from_after_the_warm_up() -> None:
    sizes = [10] * 20 + [100] * 60 + [103] * 20
    samples = [
        {"s": 1.0 * place, "gateway": size, "engine": 7.0} for place, size in enumerate(sizes)
    ]
    soak = Soak(samples, {}, {})
    assert soak.growth_pct("gateway") == pytest.approx(3)
    assert soak.growth_pct("engine") == 0


def test_cpu_time_is_a_processes_own() -> None:
    command = [sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass\ninput()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        time.sleep(0.01)
        mine, end = time.process_time(), time.monotonic() + 30
        while cpu_s(process.pid) < 0.3 and time.monotonic() < end:
            time.sleep(0.05)
        assert 0.3 <= cpu_s(process.pid) < 0.5
        assert time.process_time() - mine < 0.1
        process.communicate(b"\n")
    assert cpu_s(os.getpid()) == pytest.approx(time.process_time(), abs=0.05)


@pytest.mark.vllm
def test_quick_run_writes_the_report(tmp_path: Path) -> None:
    out = tmp_path / "cloud.json"
    command = [sys.executable, "-m", "benchmarks.cloud", "--quick", "--json", str(out)]
    command += ["--report", str(tmp_path)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    record = json.loads(out.read_text("utf-8"))
    assert {"machine", "versions", "commit", "settings", "rows", "bars"} <= set(record)
    bars = {bar["name"]: bar for bar in record["bars"]}
    assert list(bars) == [
        "throughput_over_engine_16",
        "throughput_over_engine_64",
        "throughput_over_vllm_serve_64",
        "cpu_ms_over_vllm_serve",
        "throughput_over_transformers",
    ]
    assert all(math.isfinite(bar["value"]) and bar["value"] > 0 for bar in bars.values())
    loads = [row for row in record["rows"] if row["load"] != "comparison"]
    closed = [(row["system"], row["concurrency"]) for row in loads if row["load"] == "closed"]
    assert sorted(closed) == sorted(
        [(system, at_once) for system in SYSTEMS for at_once in (1, 16, 64)] + [("transformers", 1)]
    )
    rates = [row["rate"] for row in loads if row["load"] == "open"]
    assert len(rates) == 4
    assert rates == sorted(rates)
    for row in loads:
        assert row["latency_ms_p50"] <= row["latency_ms_p95"] <= row["latency_ms_p99"]
        assert row["tokens_per_s"] > 0
        if "events" in row["system"]:
            assert 0 < row["first_token_ms_p50"] < row["latency_ms_p50"]
    answers = record["vllm_serve_answers"]
    assert answers["compared"] == 2 + 16 + 64
    assert answers["different"] == 0
    for row in record["rows"]:
        if row["load"] == "comparison":
            assert len(row["rounds"]) == 1
            assert row["low"] <= row["median"] <= row["high"]
    assert (tmp_path / "cloud.png").read_bytes().startswith(b"\x89PNG")
