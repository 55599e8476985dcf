"""Errors as problem documents (RFC 9457): a stable type, a cause and a remedy."""

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection

from cloud_vllm.request_context import RequestContext, request_context_of
from cloud_vllm.schemas import Problem
from esrt.errors import (
    EngineFailed,
    EsrtError,
    MalformedRequest,
    NotReady,
    RequestError,
    Unauthorized,
)

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:esrt:problem:"

# nginx's status for a client that closed the connection; only logs and metrics show it.
_CLIENT_CLOSED = 499
CLIENT_DISCONNECTED = "client-gone"
# Retry-After while the engine loads or is rebuilt.
_LOADING_S = 5

_log = logging.getLogger(__name__)


def from_error(error: Exception) -> Problem:
    """The problem document of an error; an unexpected error reveals no details."""
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
        detail="The gateway failed unexpectedly.",
        remedy="Send the X-Request-Id of this answer to the operator, who finds it in the log.",
    )


def incomplete(causes: str) -> RequestError:
    """The error for a request whose parameters are missing or have a wrong form."""
    remedy = "Name the languages as ?src=eng&tgt=deu; see /openapi.json for every parameter."
    return RequestError(f"The request is not complete: {causes}.", remedy)


def check_single(query: QueryParams, *names: str) -> None:
    """Check that a query has some parameters at most once.

    Raises:
        RequestError: the query repeats one of them.
    """
    repeated = [name for name in names if len(query.getlist(name)) > 1]
    if repeated:
        raise incomplete("; ".join(f"{name}: given more than once" for name in repeated))


def malformed() -> MalformedRequest:
    """The error for bytes that are no HTTP request."""
    return MalformedRequest("The request is not HTTP/1.1.", "Send it by an HTTP library.")


def install_handlers(app: FastAPI) -> None:
    """Install handlers that turn every error of the app into a problem document."""
    app.add_exception_handler(EsrtError, _esrt_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _disconnected)


def error_response(request: HTTPConnection, error: EsrtError) -> Response:
    """The response to an `EsrtError`; the exception behind the error is only logged."""
    if error.__cause__ is not None:
        _log.warning("%s", error, exc_info=error.__cause__)
    headers = {}
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    loading = isinstance(error, NotReady | EngineFailed)
    retry_after = _LOADING_S if loading else getattr(error, "retry_after", 0)
    if retry_after:
        headers["Retry-After"] = str(retry_after)
    return problem_response(request, from_error(error), headers)


def from_stream_error(error: Exception, context: RequestContext) -> Problem:
    """The problem document of an exception that ends a stream; an unexpected one is logged."""
    if not isinstance(error, EsrtError) or error.__cause__ is not None:
        _log.error("A stream ended with an error.", exc_info=error)
    problem = from_error(error)
    context.problem = short_type(problem)
    return problem


def responses(*errors: type[EsrtError]) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI description of an operation's errors."""
    grouped: dict[int | str, list[str]] = {}
    for error in errors:
        grouped.setdefault(error.status, []).append(f"`{TYPE_PREFIX}{error.type}`")
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": ", ".join(types), "content": {MEDIA_TYPE: {"schema": schema}}}
        for status, types in sorted(grouped.items())
    }


def short_type(problem: Problem) -> str:
    """The type of a problem without its prefix."""
    return problem.type.removeprefix(TYPE_PREFIX)


def problem_response(
    request: HTTPConnection, problem: Problem, headers: dict[str, str] | None = None
) -> Response:
    """The response with a problem document."""
    request_context_of(request).problem = short_type(problem)
    return Response(
        problem.model_dump_json(), problem.status, media_type=MEDIA_TYPE, headers=headers
    )


async def _esrt_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, EsrtError)
    return error_response(request, error)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    causes = "; ".join(
        f"{'.'.join(str(part) for part in item['loc'][1:])}: {item['msg']}"
        for item in error.errors()
    )
    return error_response(request, incomplete(causes))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    title = HTTPStatus(error.status_code).phrase
    problem = Problem(
        type=TYPE_PREFIX + title.lower().replace(" ", "-"),
        title=title.capitalize(),
        status=error.status_code,
        detail=f"{request.method} {request.url.path[:64]}: {error.detail}.",
        remedy="See /openapi.json for the existing paths and methods.",
    )
    return problem_response(request, problem, dict(error.headers or {}))


async def _disconnected(request: Request, error: Exception) -> Response:
    request_context_of(request).problem = CLIENT_DISCONNECTED
    return Response(status_code=_CLIENT_CLOSED)
