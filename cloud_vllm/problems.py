"""Errors as problem documents (RFC 9457): a stable type, a cause, a remedy and no traceback."""

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from cloud_vllm.schemas import Problem
from esrt.errors import EsrtError, NotReady, RequestError

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:esrt:problem:"

# nginx's number for a client that closed the connection; it only shows in logs.
_CLIENT_CLOSED = 499

_log = logging.getLogger(__name__)


def from_error(error: Exception) -> Problem:
    """The problem document of an error; one that was not raised on purpose tells nothing."""
    if isinstance(error, EsrtError):
        return Problem(
            type=TYPE_PREFIX + error.type,
            title=error.type.replace("-", " ").capitalize(),
            status=error.status,
            detail=error.cause,
            remedy=error.remedy,
        )
    return Problem(
        type=TYPE_PREFIX + EsrtError.type,
        title="Internal",
        status=EsrtError.status,
        detail="The gateway failed at a point where it should not.",
        remedy="Tell the operator the time of the request; the log has the rest.",
    )


def install(app: FastAPI) -> None:
    """Make every error of the app a problem document."""
    app.add_exception_handler(EsrtError, _deliberate)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _unforeseen)


def responses(*errors: type[EsrtError]) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI description of the errors that an operation can end with."""
    grouped: dict[int | str, list[str]] = {}
    for error in errors:
        grouped.setdefault(error.status, []).append(f"`{TYPE_PREFIX}{error.type}`")
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": ", ".join(types), "content": {MEDIA_TYPE: {"schema": schema}}}
        for status, types in sorted(grouped.items())
    }


def _response(problem: Problem, headers: dict[str, str] | None = None) -> Response:
    return Response(
        problem.model_dump_json(), problem.status, media_type=MEDIA_TYPE, headers=headers
    )


async def _deliberate(request: Request, error: Exception) -> Response:
    if error.__cause__ is not None:
        _log.warning("%s", error, exc_info=error.__cause__)
    return _response(
        from_error(error), {"Retry-After": "5"} if isinstance(error, NotReady) else None
    )


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    causes = "; ".join(
        f"{'.'.join(str(part) for part in item['loc'][1:])}: {item['msg']}"
        for item in error.errors()
    )
    remedy = "Name the languages as ?src=eng&tgt=deu; /docs describes every parameter."
    return _response(from_error(RequestError(f"The request is not complete: {causes}.", remedy)))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    title = HTTPStatus(error.status_code).phrase
    problem = Problem(
        type=TYPE_PREFIX + title.lower().replace(" ", "-"),
        title=title.capitalize(),
        status=error.status_code,
        detail=f"{request.method} {request.url.path[:64]}: {error.detail}.",
        remedy="See /docs for the paths and methods that there are.",
    )
    return _response(problem, dict(error.headers or {}))


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=_CLIENT_CLOSED)


async def _unforeseen(request: Request, error: Exception) -> Response:
    return _response(from_error(error))
