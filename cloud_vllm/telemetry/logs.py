"""Logs: one JSON object per line, with the id of its request, or one line of text.

Transcripts, translations, features and keys are never logged. `request` writes one line for each
request, with counts and times.
"""

import io
import json
import logging
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal, TextIO, cast

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")

# A record of vLLM: process, level, time, file and message.
_VLLM_RECORD = re.compile(
    r"\((?P<process>\S+) pid=\d+\) (?P<level>[A-Z]+) [\d-]+ [\d:]+ \[(?P<file>\w+\.py):\d+\] "
    r"(?P<message>.*)"
)
# Files of vLLM whose warnings only describe the machine, and settings that the gateway chooses.
_SETUP_FILES = frozenset({"cpu.py", "cpu_worker.py", "importing.py", "vllm.py"})
# Lines of every start that ask for nothing: parts that a machine without a GPU lacks, notices to
# the developers of PyTorch.
_HARMLESS = re.compile(
    r"Triton is installed, but doesn't include|NUMA binding: Using|torch/utils/_pytree\.py:"
)

_encode = json.JSONEncoder(ensure_ascii=False, default=str).encode
_requests = logging.getLogger("cloud_vllm.requests")
_engine = logging.getLogger("engine")
_output = logging.getLogger("output")


def configure(style: Literal["json", "text"]) -> None:
    """Write all log records and Python's warnings of this process to stderr."""
    # Another descriptor, because `logged_processes` redirects that of stderr.
    stream = open(os.dup(2), "w", encoding="utf-8", errors="backslashreplace")  # noqa: PTH123, SIM115
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        JsonFormatter()
        if style == "json"
        else logging.Formatter("%(levelname)s %(name)s: %(message)s")
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)
    # At the level "info", uvicorn logs the address and the query of each websocket, even where its
    # access log is off.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    # uvicorn logs an error for each websocket that is answered with a problem document.
    logging.getLogger("uvicorn.error").addFilter(
        lambda record: record.msg != "ASGI callable returned without completing handshake."
    )
    # Until these libraries configure their own levels.
    for library in ("torch", "vllm"):
        logging.getLogger(library).setLevel(logging.WARNING)
    logging.getLogger("vllm.triton_utils").setLevel(logging.ERROR)


@contextmanager
def logged_output() -> Iterator[None]:
    """Turn the lines that Python code writes to stdout and stderr into log records."""
    # A handler would report its own error to the redirected stream, which logs.
    logging.raiseExceptions = False
    stream = cast(TextIO, _LogStream())
    with redirect_stdout(stream), redirect_stderr(stream):
        yield


@contextmanager
def logged_processes() -> Iterator[None]:
    """Turn all output of processes that start inside the block into log records, until they end.

    The processes do not receive SIGINT, which a terminal sends to all processes of a command: the
    gateway ends them in order. The descriptors of this process are redirected during the block,
    so at most one block may be open.
    """
    read, write = os.pipe()
    own = [(os.dup(descriptor), descriptor) for descriptor in (1, 2)]
    for _, descriptor in own:
        os.dup2(write, descriptor)
    os.close(write)
    # Starts multiprocessing's resource tracker, which would unblock SIGINT at the first process.
    multiprocessing.get_context("spawn").Lock()
    signals = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    threading.Thread(target=_log_lines, args=[read], name="engine-output", daemon=True).start()
    try:
        yield
    finally:
        for saved, descriptor in own:
            os.dup2(saved, descriptor)
            os.close(saved)
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)


def request(fields: dict[str, Any], *, routine: bool) -> None:
    """Log a finished request; routine requests, such as probes, at the level "debug"."""
    level = logging.DEBUG if routine else logging.INFO
    _requests.log(level, "request %s", _LazyText(fields), extra={"fields": fields})


def _log_lines(descriptor: int) -> None:
    with open(descriptor, encoding="utf-8", errors="backslashreplace") as lines:
        for line in lines:
            _log_line(line)


def _log_line(line: str) -> None:
    """Log a line of output, at its own level if it is a record of vLLM."""
    line = line.rstrip()
    if record := _VLLM_RECORD.match(line):
        level = logging.getLevelNamesMapping().get(record["level"], logging.WARNING)
        if level == logging.WARNING and record["file"] in _SETUP_FILES:
            level = logging.DEBUG
        _engine.log(level, "%s: %s", record["process"], record["message"])
    elif line:
        _output.log(logging.DEBUG if _HARMLESS.search(line) else logging.INFO, "%s", line)


class _LogStream(io.TextIOBase):
    """A text stream whose lines become log records."""

    def __init__(self) -> None:
        self._rest = ""
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        """Log the lines that are complete."""
        with self._lock:
            *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            _log_line(line)
        return len(text)

    def writable(self) -> bool:
        """Return true."""
        return True

    def fileno(self) -> int:
        """Return the descriptor of stderr."""
        return 2


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
