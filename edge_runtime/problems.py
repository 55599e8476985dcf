"""A server's problem document (RFC 9457) as the error that this project raises for it."""

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from esrt.errors import (
    EsrtError,
    FingerprintMismatch,
    LanguageError,
    MediaTypeError,
    PacketContentError,
    PacketError,
    PacketTooLarge,
    RequestError,
    ServerError,
    printable,
)

START_SERVER = "Start it with: python -m cloud_vllm."
_CHECK_SERVER = "Check that --server names an ESRT gateway of this version."
_MAX_TEXT = 1000

_REJECTIONS: dict[str, type[EsrtError]] = {
    error.type: error
    for error in (
        FingerprintMismatch,
        LanguageError,
        MediaTypeError,
        PacketContentError,
        PacketError,
        PacketTooLarge,
        RequestError,
    )
}
# Client errors by number, but of the moment and not of the request: the same one may pass later.
_PASSING = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}


def problem_error(status: int, problem: Any, server: str) -> EsrtError:
    """The error for an unsuccessful answer, with the server's own detail and remedy.

    Args:
        status: of the HTTP response; that inside the problem counts where this one is 2xx, as for
            a problem that a stream carries.
        problem: the answer's JSON, or ``None`` where it was none.
        server: the gateway's address, for the message.

    Returns:
        For 4xx one with exit code 2, of the problem's ``type`` where that is known; for anything
        else a `ServerError`.
    """
    fields = problem if isinstance(problem, Mapping) else {}
    if status < HTTPStatus.BAD_REQUEST and type(fields.get("status")) is int:
        status = fields["status"]
    rejected = 400 <= status < 500 and status not in _PASSING
    cause = _text(fields, "detail") or _text(fields, "title")
    remedy = _text(fields, "remedy")
    if not cause:
        cause = f"The server {server} answered {_phrase(status)}."
        remedy = remedy or _CHECK_SERVER
    if rejected:
        name = re.split("[:/]", _text(fields, "type"))[-1]  # of urn:esrt:problem:NAME
        return _REJECTIONS.get(name, RequestError)(cause, remedy or "Correct the request.")
    return ServerError(cause, remedy or "Try again, and look into the server's log.")


def not_understood(server: str, what: str) -> ServerError:
    """The error for an answer that is no answer of this API."""
    return ServerError(f"The server {server} sent an answer with {what}.", _CHECK_SERVER)


def _text(fields: Mapping[str, Any], key: str) -> str:
    value = fields.get(key)
    return " ".join(printable(value).split())[:_MAX_TEXT] if isinstance(value, str) else ""


def _phrase(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)
