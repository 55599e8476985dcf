"""The load benchmark: its client on a scripted server, its verdicts, and the whole of it once."""

import asyncio
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from benchmarks.cloud import load, slices
from benchmarks.cloud.cases import Case, drawn
from benchmarks.cloud.client import Client, Reply
from benchmarks.cloud.faults import judge
from benchmarks.cloud.runs import Measured
from benchmarks.cloud.service import cpu_s
from benchmarks.cloud.slices import Clock, Competitor
from benchmarks.cloud.soak import Soak
from esrt.bundled import REPOSITORY
from esrt.errors import CheckFailed

CASES = [Case(f"clip-{number}", b"packet", "eng", "deu") for number in range(5)]
ANSWER = {"transcript": "hello", "translation": "hallo", "tokens": {"generated": 3}}
RIGHT = {CASES[0].name: {("hello", "hallo")}}


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


def test_throughputs_are_compared_round_by_round() -> None:
    measured = Measured()
    # A machine that becomes three times as fast after the first round.
    for speed in (1, 3):
        measured.add(("gateway", 16), 1.0, 90 * speed, 0.1, [1.0])
        measured.add(("engine", 16), 1.0, 100 * speed, 0.1, [1.0])
    assert measured.ratios("gateway", "engine", 16) == [0.9, 0.9]


def ask(parts: list[bytes], pause: float = 0.0) -> Reply:
    async def use(port: int) -> Reply:
        async with Client(port) as client:
            return await client.ask(CASES[0].http())

    reply = served(parts, use, pause)
    assert isinstance(reply, Reply)
    return reply


def test_it_reads_a_plain_answer() -> None:
    reply = ask(plain(json.dumps(ANSWER).encode()))
    assert reply.answer() == ANSWER
    assert judge(reply, RIGHT, CASES[0]) == "right"


def test_it_reads_events_and_when_the_first_came() -> None:
    reply = ask(events(("transcript", {"text": "hello"}), ("done", ANSWER)), pause=0.05)
    assert reply.answer() == ANSWER
    assert reply.done - reply.first > 0.04
    assert reply.first - reply.sent > 0.04


def test_one_connection_serves_one_request_after_another() -> None:
    async def use(port: int) -> load.Load:
        return await load.closed(port, [case.http() for case in CASES] * 20, 3)

    got = served(plain(json.dumps(ANSWER).encode()), use)
    assert isinstance(got, load.Load)
    assert len(got.replies) == 100
    assert got.tokens == 300
    got.check()


def test_open_load_counts_from_when_a_request_was_due() -> None:
    async def use(port: int) -> load.Load:
        return await load.open_(port, [CASES[0].http()] * 40, 400.0, seed=1)

    got = served(plain(json.dumps(ANSWER).encode()), use, pause=0.02)
    assert isinstance(got, load.Load)
    spread = got.replies[-1].sent - got.replies[0].sent
    assert 0.03 < spread < 0.4
    assert min(got.latencies_ms) > 0


def problem(status: int) -> dict[str, object]:
    return {"type": "urn:esrt:problem:x", "status": status}


@pytest.mark.parametrize(
    ("parts", "verdict"),
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
def test_every_end_of_a_request_is_judged(parts: list[bytes], verdict: str) -> None:
    assert judge(ask(parts), RIGHT, CASES[0]) == verdict


def test_nobody_listening_is_a_lost_request() -> None:
    async def use() -> Reply:
        async with Client(9) as client:
            return await client.ask(b"")

    assert judge(asyncio.run(use()), RIGHT, CASES[0]) == "lost"


def test_cases_come_in_turn() -> None:
    order = drawn(CASES, 12, seed=3)
    assert sorted(case.name for case in order[:5]) == [case.name for case in CASES]
    assert order == drawn(CASES, 12, seed=3)
    assert order != drawn(CASES, 12, seed=4)


def test_growth_is_from_after_the_warm_up() -> None:
    sizes = [10] * 20 + [100] * 60 + [103] * 20
    samples = [
        {"s": 1.0 * place, "gateway": size, "engine": 7.0} for place, size in enumerate(sizes)
    ]
    soak = Soak(samples, {}, {})
    assert soak.growth_pct("gateway") == pytest.approx(3)
    assert soak.growth_pct("engine") == 0


def test_a_clock_counts_what_lies_in_its_slices() -> None:
    clock = Clock([10.0, 20.0, 30.0], [11.0, 22.0])
    moments = [9.0, 10.5, 11.0, 15.0, 21.0, 22.0, 29.0, 33.0]
    assert [clock.at(moment) for moment in moments] == [0, 0.5, 1, 1, 2, 3, 3, 6]


def test_competitors_run_in_turn_and_each_has_its_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "SLICE_S", 0.1)
    # Each notes when it ran, for as long as it was to be at work.
    code = """if True:
        import sys, time
        input()
        worked, last, seen = 0.0, time.perf_counter(), []
        while worked < float(sys.argv[1]):
            now = time.perf_counter()
            if now - last < 0.05:
                worked += now - last
                seen.append(now)
            last = now
        print(*seen[::100], flush=True)
        input()
    """

    def work(process: subprocess.Popen[str]) -> list[float]:
        assert process.stdin
        assert process.stdout
        print(file=process.stdin, flush=True)
        return [float(moment) for moment in process.stdout.readline().split()]

    with ExitStack() as stack:
        processes = {
            seconds: stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", code, seconds],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for seconds in ("0.3", "0.6")
        }
        try:
            found = slices.compete(
                {
                    seconds: Competitor(process.pid, partial(work, process))
                    for seconds, process in processes.items()
                }
            )
        finally:
            for process in processes.values():
                process.kill()
    for seconds, (moments, clock) in found.items():
        assert clock.at(moments[-1]) == pytest.approx(float(seconds), abs=0.1)
        for name, (_, other) in found.items():
            # Signals are swift, but not instant.
            inside = sum(other.at(moment) > other.at(moment - 1e-4) for moment in moments)
            share = inside / len(moments)
            assert share > 0.95 if name == seconds else share < 0.05


def test_what_goes_wrong_in_a_competitor_is_raised_and_all_go_on() -> None:
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:

        def fail() -> None:
            raise CheckFailed("It", "failed.")

        with pytest.raises(CheckFailed):
            slices.compete({"one": Competitor(process.pid, fail)})
        process.communicate(b"\n", timeout=30)
        assert process.returncode == 0


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
def test_it_writes_the_record(tmp_path: Path) -> None:
    out = tmp_path / "cloud.json"
    command = [sys.executable, "-m", "benchmarks.cloud", "--quick", "--json", str(out)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    record = json.loads(out.read_text("utf-8"))
    assert {"machine", "versions", "commit", "settings", "rows", "bars"} <= set(record)
    bars = {bar["name"]: bar for bar in record["bars"]}
    assert list(bars) == [
        "throughput_over_engine_16",
        "throughput_over_engine_64",
        "throughput_over_transformers",
        "gateway_cpu_ms_p50",
    ]
    assert all(math.isfinite(bar["value"]) and bar["value"] > 0 for bar in bars.values())
    rows = {(row["load"], row["side"], row["at"]): row for row in record["rows"]}
    closed = [(side, at) for kind, side, at in rows if kind == "closed"]
    sides = ("engine", "engine gathering", "gateway", "gateway events")
    assert sorted(closed) == sorted(
        [(s, at) for s in sides for at in (16, 64)] + [("transformers", 1)]
    )
    assert len([1 for kind, _, _ in rows if kind == "open"]) == 4
    for row in rows.values():
        assert row["latency_ms_p50"] <= row["latency_ms_p95"] <= row["latency_ms_p99"]
        if "events" in row["side"]:
            assert 0 < row["first_token_ms_p50"] < row["latency_ms_p50"]
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
