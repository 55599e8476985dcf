"""Answers of ``/v1/translate``: the gateway's JSON, and the result that a caller gets."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec


class DeltaData(msgspec.Struct, frozen=True):
    """Data of a ``transcript`` or ``translation`` event."""

    text: str


class AnswerData(msgspec.Struct, frozen=True):
    """The JSON answer, which is also the data of a ``done`` event. Unknown fields are ignored."""

    src: str
    tgt: str
    transcript: str
    translation: str
    model: str
    fingerprint: str
    finish: str
    tokens: dict[str, Any]
    timings_ms: dict[str, Any]
    confidence: dict[str, Any] = {}


@dataclass(frozen=True)
class ClientTimes:
    """Times measured by the client, in milliseconds since it began to send.

    Attributes:
        network: time to the first event, without the server's own time to its first token: upload,
            queue and download. Without streaming, time to the answer without the server's total.
            ``None`` if the server reported no such time.
        first_token: time to the first event; ``None`` without streaming.
        done: time to the complete answer.
    """

    network: float | None
    first_token: float | None
    done: float


@dataclass(frozen=True)
class Done:
    """The complete answer, with the names of the HTTP interface.

    Attributes:
        src: ISO 639-3 code of the spoken language.
        tgt: ISO 639-3 code of the written language.
        transcript: text in the spoken language.
        translation: text in the written language.
        model: name of the serving model.
        fingerprint: fingerprint of the serving model.
        finish: ``stop``; ``length`` if the answer was cut at the maximum length; ``repetition`` if
            it was cut because the text repeated itself.
        confidence: mean natural log-probability of the tokens of ``transcript`` and of
            ``translation``, ``None`` for a part without tokens; and ``threshold``, below which
            the model's evaluation calls an answer uncertain, ``None`` without an evaluation.
        tokens: token counts reported by the server.
        timings_ms: times reported by the server, in milliseconds.
        client_ms: times measured by the client.
    """

    src: str
    tgt: str
    transcript: str
    translation: str
    model: str
    fingerprint: str
    finish: str
    confidence: dict[str, float | None]
    tokens: dict[str, int]
    timings_ms: dict[str, float]
    client_ms: ClientTimes


def timed(answer: AnswerData, start: float, first_event: float | None, end: float) -> Done:
    """Add the client's own times to an answer.

    Args:
        answer: the server's JSON.
        start: clock when sending began, in seconds.
        first_event: clock at the first event; ``None`` without streaming.
        end: clock when the answer was complete.
    """
    timings_ms = _numbers(answer.timings_ms)
    server_time = timings_ms.get("total" if first_event is None else "first_token")
    first_answer = end if first_event is None else first_event
    return Done(
        src=answer.src,
        tgt=answer.tgt,
        transcript=answer.transcript,
        translation=answer.translation,
        model=answer.model,
        fingerprint=answer.fingerprint,
        finish=answer.finish,
        confidence=_numbers(answer.confidence)
        | {name: None for name, value in answer.confidence.items() if value is None},
        tokens={name: count for name, count in answer.tokens.items() if type(count) is int},
        timings_ms=timings_ms,
        client_ms=ClientTimes(
            network=None if server_time is None else 1000 * (first_answer - start) - server_time,
            first_token=None if first_event is None else 1000 * (first_event - start),
            done=1000 * (end - start),
        ),
    )


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The entries that are numbers within the range of a float."""
    return {
        name: float(value)
        for name, value in values.items()
        if type(value) in (int, float) and abs(value) <= sys.float_info.max
    }
