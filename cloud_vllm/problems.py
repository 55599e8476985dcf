"""Errors as problem documents (RFC 9457): a stable type, a cause, a remedy and no traceback."""

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection

from cloud_vllm.request_context import request_context_of
from cloud_vllm.schemas import Problem
from esrt.errors import EngineFailed, EsrtError, NotReady, RequestError, Unauthorized

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:esrt:problem:"

# nginx's number for a client that closed the connection; it only shows in logs.
_CLIENT_CLOSED = 499
CLIENT_GONE = "client-gone"
# When to ask again whether an engine that loads, or is rebuilt, is ready.
_LOADING_S = 5

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
        remedy="Tell the operator the answer's X-Request-Id; the log has the rest.",
    )


def install(app: FastAPI) -> None:
    """Make every error of the app a problem document."""
    app.add_exception_handler(EsrtError, _deliberate)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, _gone)


def answer(request: HTTPConnection, error: EsrtError) -> Response:
    """The response to a deliberate error; what was behind it is logged, not told."""
    if error.__cause__ is not None:
        _log.warning("%s", error, exc_info=error.__cause__)
    headers = {}
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    loading = isinstance(error, NotReady | EngineFailed)
    retry_after = _LOADING_S if loading else getattr(error, "retry_after", 0)
    if retry_after:
        headers["Retry-After"] = str(retry_after)
    return respond(request, from_error(error), headers)


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


def name(problem: Problem) -> str:
    """The problem's type without its prefix."""
    return problem.type.removeprefix(TYPE_PREFIX)


def respond(
    request: HTTPConnection, problem: Problem, headers: dict[str, str] | None = None
) -> Response:
    """The response that carries a problem document."""
    request_context_of(request).problem = name(problem)
    return Response(
        problem.model_dump_json(), problem.status, media_type=MEDIA_TYPE, headers=headers
    )


async def _deliberate(request: Request, error: Exception) -> Response:
    assert isinstance(error, EsrtError)
    return answer(request, error)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    causes = "; ".join(
        f"{'.'.join(str(part) for part in item['loc'][1:])}: {item['msg']}"
        for item in error.errors()
    )
    remedy = "Name the languages as ?src=eng&tgt=deu; /openapi.json describes every parameter."
    return answer(request, RequestError(f"The request is not complete: {causes}.", remedy))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    title = HTTPStatus(error.status_code).phrase
    problem = Problem(
        type=TYPE_PREFIX + title.lower().replace(" ", "-"),
        title=title.capitalize(),
        status=error.status_code,
        detail=f"{request.method} {request.url.path[:64]}: {error.detail}.",
        remedy="See /openapi.json for the paths and methods that there are.",
    )
    return respond(request, problem, dict(error.headers or {}))


async def _gone(request: Request, error: Exception) -> Response:
    request_context_of(request).problem = CLIENT_GONE
    return Response(status_code=_CLIENT_CLOSED)
