"""Logs: a JSON object on each line, with the id of the request that it belongs to.

What is said, features and keys are never logged; `request` is the only line that every request
gets, and holds counts and times.
"""

import json
import logging
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")

_encode = json.JSONEncoder(ensure_ascii=False, default=str).encode
_requests = logging.getLogger("cloud_vllm.requests")


def configure(style: Literal["json", "text"]) -> None:
    """Send everything that is logged in this process to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonFormatter()
        if style == "json"
        else logging.Formatter("%(levelname)s %(name)s: %(message)s")
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # It tells each websocket's address and query, whatever is said of an access log.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


def request(fields: dict[str, Any], *, routine: bool) -> None:
    """Log that a request has ended; routine ones, such as probes, at the level of debugging."""
    level = logging.DEBUG if routine else logging.INFO
    _requests.log(level, "request %s", _Words(fields), extra={"fields": fields})


class _Words(dict[str, Any]):
    """Fields as text, which is made only where a line is to be text."""

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.items())


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """The line: when, how grave, by whom, and what."""
        fields: dict[str, Any] | None = getattr(record, "fields", None)
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage() if fields is None else "request",
        }
        if identity := REQUEST_ID.get():
            line["request_id"] = identity
        line |= fields or {}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return _encode(line)
