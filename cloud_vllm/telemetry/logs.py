"""Logs: one JSON object per line, with the id of its request.

Transcripts, translations, features and keys are never logged. `request` writes one line for each
request, with counts and times.
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
    """Write all log records of this process to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonFormatter()
        if style == "json"
        else logging.Formatter("%(levelname)s %(name)s: %(message)s")
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # At the level "info", uvicorn logs the address and the query of each websocket, even where its
    # access log is off.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


def request(fields: dict[str, Any], *, routine: bool) -> None:
    """Log a finished request; routine requests, such as probes, at the level "debug"."""
    level = logging.DEBUG if routine else logging.INFO
    _requests.log(level, "request %s", _LazyText(fields), extra={"fields": fields})


class _LazyText(dict[str, Any]):
    """Fields that are formatted only if a handler writes the record as text."""

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.items())


class JsonFormatter(logging.Formatter):
    """Formatter that writes a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return time, level, logger, message and fields as JSON."""
        fields: dict[str, Any] | None = getattr(record, "fields", None)
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage() if fields is None else "request",
        }
        if request_id := REQUEST_ID.get():
            line["request_id"] = request_id
        line |= fields or {}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return _encode(line)
