"""One request as the gateway sees it: who asks, what it took, and what is held meanwhile."""

import re
import uuid
from contextlib import ExitStack

from starlette.requests import HTTPConnection
from starlette.types import Scope

from cloud_vllm.auth.keys import KeyEntry

_STATE = "exchange"
# What a client's own request id may look like: nothing that could forge a line of a log.
_WELL_FORMED = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestContext:
    """A request from its arrival until its answer has been sent.

    Attributes:
        id: the client's X-Request-Id if it is well-formed, else a new one.
        key: whose request it is; ``None`` where no keys are in use, or before it is known.
        held: what is given back when the answer has been sent, or the client has gone.
        problem: the type of the problem that it ended with, without its prefix.
        bytes_in: of the packet.
        feature_tokens: in the packet.
        generated_tokens: that the engine wrote, in all answers.
        stages_ms: stages and the milliseconds that each took.
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
        """The id of the key."""
        return self.key.id if self.key else None


def attach(scope: Scope, context: RequestContext) -> None:
    """Make the exchange known to what handles the request."""
    scope.setdefault("state", {})[_STATE] = context


def request_context_of(request: HTTPConnection) -> RequestContext:
    """The exchange that a request belongs to."""
    context: RequestContext = request.scope["state"][_STATE]
    return context
