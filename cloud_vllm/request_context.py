"""The state of one request: its API key, its figures, and the resources to release at its end."""

import re
import time
import uuid
from contextlib import ExitStack

from starlette.requests import HTTPConnection
from starlette.types import Scope

from cloud_vllm.auth.keys import KeyEntry

_STATE = "request_context"
# Accepted form of a client's request id; no character can forge a log line.
_WELL_FORMED = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestContext:
    """A request from its arrival until its answer has been sent.

    Attributes:
        id: the client's X-Request-Id if it is well-formed, else a new one.
        key: the API key; ``None`` without authentication, or before it.
        cleanup: callbacks that release resources after the answer, or after a disconnect.
        problem: type of the problem that the request ended with, without its prefix; empty
            without a problem.
        bytes_in: size of the packet.
        feature_tokens: feature tokens in the packet.
        generated_tokens: tokens that the engine wrote, in all answers.
        stages_ms: stages of the request, with the milliseconds of each.
    """

    def __init__(self, request_id: str = "") -> None:
        self.id = request_id if _WELL_FORMED.fullmatch(request_id) else uuid.uuid4().hex
        self.key: KeyEntry | None = None
        self.cleanup = ExitStack()
        self.problem = ""
        self.bytes_in = self.feature_tokens = self.generated_tokens = 0
        self.stages_ms: list[tuple[str, float]] = []

    @property
    def owner(self) -> str | None:
        """The id of the API key."""
        return self.key.id if self.key else None


def elapsed_ms(since: float) -> float:
    """The milliseconds since a time of `time.perf_counter`."""
    return (time.perf_counter() - since) * 1e3


def attach(scope: Scope, context: RequestContext) -> None:
    """Store the context in the scope of its request."""
    scope.setdefault("state", {})[_STATE] = context


def request_context_of(request: HTTPConnection) -> RequestContext:
    """The context of a request."""
    context: RequestContext = request.scope["state"][_STATE]
    return context
