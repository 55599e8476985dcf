"""Conversion of a server's problem document (RFC 9457) into an exception of this project."""

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
# Client errors by number, but temporary: the same request may succeed later.
_TEMPORARY = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}


def problem_error(status: int, problem: Any, server: str) -> EsrtError:
    """The error for an unsuccessful answer, with the server's own detail and remedy.

    Args:
        status: status of the HTTP response. If it is 2xx, as for a problem inside a stream, the
            status inside the problem applies.
        problem: the answer's JSON; ``None`` if the answer was not JSON.
        server: the gateway's address, for the message.

    Returns:
        For 4xx an error with exit code 2, chosen by the problem's ``type``; otherwise a
        `ServerError`.
    """
    fields = problem if isinstance(problem, Mapping) else {}
    if status < HTTPStatus.BAD_REQUEST and type(fields.get("status")) is int:
        status = fields["status"]
    rejected = 400 <= status < 500 and status not in _TEMPORARY
    cause = _text(fields, "detail") or _text(fields, "title")
    remedy = _text(fields, "remedy")
    if not cause:
        cause = f"The server {server} answered {_phrase(status)}."
        remedy = remedy or _CHECK_SERVER
    if rejected:
        name = re.split("[:/]", _text(fields, "type"))[-1]  # of urn:esrt:problem:NAME
        return _REJECTIONS.get(name, RequestError)(cause, remedy or "Correct the request.")
    return ServerError(cause, remedy or "Try again. If that fails, read the server's log.")


def invalid_answer(server: str, reason: str) -> ServerError:
    """The error for an answer that does not follow the gateway's interface.

    Args:
        server: the gateway's address.
        reason: continues "The answer of the server ...", for example "is compressed".
    """
    return ServerError(f"The answer of the server {server} {reason}.", _CHECK_SERVER)


def _text(fields: Mapping[str, Any], key: str) -> str:
    value = fields.get(key)
    return " ".join(printable(value).split())[:_MAX_TEXT] if isinstance(value, str) else ""


def _phrase(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)
