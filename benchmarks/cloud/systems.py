"""Systems under closed load behind one interface."""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from benchmarks.cloud import load
from benchmarks.cloud.cases import Case
from benchmarks.cloud.client import Reply
from esrt.errors import CheckFailed
from esrt.languages import direction
from esrt.prompt import split_target

# A server still has work to do when the last answer has arrived, such as writing its log.
_SETTLE_S = 0.05


@dataclass(frozen=True)
class Answer:
    """A complete answer.

    Attributes:
        tokens: tokens generated.
        text: transcript and translation.
    """

    tokens: int
    text: tuple[str, str]


@dataclass(frozen=True)
class Run:
    """Result of one run; lists have an item for each case, in the order of the cases.

    Attributes:
        cpu_s: CPU seconds of the system's process; the engine's process is not counted.
        tokens: tokens generated in all answers.
        times: sent, first token and complete, on `time.perf_counter`.
        texts: transcript and translation; empty for a system that returns no text.
    """

    cpu_s: float
    tokens: int
    times: list[tuple[float, float, float]]
    texts: Sequence[tuple[str, str]] = ()

    @property
    def seconds(self) -> float:
        """Seconds from the first request to the last answer."""
        return max(done for _, _, done in self.times) - min(sent for sent, _, _ in self.times)


class System(Protocol):
    """A system that answers cases."""

    def run(self, cases: Sequence[Case], at_once: int) -> Run:
        """Answer all cases, with ``at_once`` of them under way."""


@dataclass(frozen=True)
class HttpSystem:
    """A server on loopback.

    Attributes:
        process: pid of the process that serves HTTP.
        port: port of the server.
        request: the bytes of a case's request.
        read: the answer in a reply, or ``None`` for a reply without one.
    """

    process: int
    port: int
    request: Callable[[Case], bytes]
    read: Callable[[Reply, Case], Answer | None]

    def run(self, cases: Sequence[Case], at_once: int) -> Run:
        """Send a request for each case, with ``at_once`` of them under way.

        Raises:
            CheckFailed: a request was not answered.
        """
        requests = [self.request(case) for case in cases]
        before = cpu_s(self.process)
        result = asyncio.run(load.closed_loop(self.port, requests, at_once))
        time.sleep(_SETTLE_S)
        used = cpu_s(self.process) - before
        answers = read_all(result.replies, cases, self.read)
        tokens = sum(answer.tokens for answer in answers)
        return Run(used, tokens, result.times, [answer.text for answer in answers])


def read_all(
    replies: Sequence[Reply],
    cases: Sequence[Case],
    read: Callable[[Reply, Case], Answer | None],
) -> list[Answer]:
    """Answers in replies.

    Raises:
        CheckFailed: a request was not answered.
    """
    answers = []
    for reply, case in zip(replies, cases, strict=True):
        answer = read(reply, case)
        if answer is None:
            raise CheckFailed(
                f"A request ended with status {reply.status}: {reply.body[:200]!r}.",
                "See the server's log in build/benchmarks/cloud.",
            )
        answers.append(answer)
    return answers


def gateway_answer(reply: Reply, case: Case) -> Answer | None:
    """Answer of the gateway, from JSON or from the event ``done``."""
    fields = reply.answer()
    if fields is None:
        return None
    return Answer(fields["tokens"]["generated"], (fields["transcript"], fields["translation"]))


def completion_answer(reply: Reply, case: Case) -> Answer | None:
    """Answer of vLLM's own server, from JSON or from the events of a stream."""
    if reply.status != 200:
        return None
    parts = [reply.body]
    if reply.is_stream:
        lines = reply.body.split(b"\n")
        parts = [line[6:] for line in lines if line.startswith(b"data: {")]
    text, tokens, finished = "", 0, False
    for part in map(json.loads, parts):
        for choice in part.get("choices", ()):
            text += choice["text"]
            finished = finished or choice["finish_reason"] is not None
        tokens = (part.get("usage") or {}).get("completion_tokens", tokens)
    if not finished:
        return None
    return Answer(tokens, split_target(text, *direction(case.source, case.target)))


def cpu_s(pid: int) -> float:
    """CPU seconds of a process and its threads, ended threads included, with nanosecond resolution.

    The clock's id is computed as in glibc's clock_getcpuclockid. /proc counts in hundredths of a
    second.
    """
    return time.clock_gettime((~pid << 3) | 2)
