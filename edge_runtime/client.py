"""The client of the gateway: a packet there, text back, whole or as it is decoded."""

import ipaddress
import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import perf_counter
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from edge_runtime.problems import START_SERVER, not_understood, problem_error
from edge_runtime.sse import ServerSentEvent, parse_events
from esrt.errors import RequestError, ServerError
from esrt.languages import Language
from esrt.prompt import TextDelta
from esrt.wire import MEDIA_TYPE

EVENT_STREAM = "text/event-stream"
# The environment and not an option, which everyone on the machine could read in the process list.
API_KEY_VARIABLE = "ESRT_API_KEY"
CONNECT_SECONDS = 5.0
# The server decodes silently until its first token, for a large model behind a queue.
READ_SECONDS = 60.0
# No answer is as long: the gateway cuts it after some hundred tokens.
_MAX_BODY = 1 << 20
_CHECK_WAY = "Check its address, and the proxy if HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names one."

_T = TypeVar("_T")


@dataclass(frozen=True)
class ClientTimes:
    """Milliseconds as the client saw them, each from the moment that it began to send.

    ``network``: until the first event, less the server's own time to its first token (without
    streaming: until the answer, less the server's total), so sending, queues and the way back;
    ``None`` where the server did not tell. ``first_token``: until the first event; ``None``
    without streaming. ``done``: until the answer was complete.
    """

    network: float | None
    first_token: float | None
    done: float


@dataclass(frozen=True)
class Done:
    """The complete answer. ``tokens`` and ``server_ms`` are the server's counts and timings."""

    source: str
    target: str
    transcript: str
    translation: str
    model: str
    fingerprint: str
    finish: str
    tokens: dict[str, int]
    server_ms: dict[str, float]
    client_ms: ClientTimes


class Client:
    """A connection to one gateway, never by a proxy to this machine; a context manager.

    Args:
        server: its address, ``http://host:port``.
        api_key: what a guarded gateway lets in with; ``None`` or empty sends none.
        read_seconds: the longest silence to wait through.

    Raises:
        RequestError: the address is no http(s) URL, the key cannot be one, or the environment's
            proxy or certificate settings fail.
    """

    def __init__(
        self, server: str, *, api_key: str | None = None, read_seconds: float = READ_SECONDS
    ) -> None:
        self._server = server.rstrip("/")
        self._loopback = _is_loopback(_url(server).host)
        timeout = httpx.Timeout(read_seconds, connect=min(CONNECT_SECONDS, read_seconds))
        try:
            self._http = httpx.Client(
                timeout=timeout,
                headers={"Accept-Encoding": "identity", **_authorization(api_key)},
                # A proxy would look for the server on its own loopback, and be shown the key.
                trust_env=not self._loopback,
                # The environment's certificates (SSL_CERT_FILE) count everywhere.
                verify=httpx.create_ssl_context(),
            )
        except (ImportError, OSError, ValueError, httpx.InvalidURL) as error:
            raise RequestError(
                f"The proxy or certificate settings of the environment cannot be used: {error}.",
                "Correct or unset HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and SSL_CERT_FILE.",
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def translate(self, packet: bytes, source: Language, target: Language) -> Done:
        """Send a packet and wait for the whole answer.

        Raises:
            EsrtError: with exit code 2, the server refuses the request.
            ServerError: it cannot be reached, is not ready, broke off, or is no gateway.
        """
        start = perf_counter()
        with self._post(packet, source, target, accept="application/json") as response:
            body = self._body(response)
            done = perf_counter()
            return self._done(body, start, None, done)

    def stream(
        self, packet: bytes, source: Language, target: Language
    ) -> Iterator[TextDelta | Done]:
        """Send a packet and yield the text as it is decoded; the last event is a `Done`.

        Raises:
            EsrtError: as :meth:`translate`; after some deltas, too.
        """
        start = perf_counter()
        first = None
        with self._post(packet, source, target, accept=EVENT_STREAM) as response:
            if not response.headers.get("content-type", "").startswith(EVENT_STREAM):
                raise not_understood(self._server, "no event stream")
            for event in self._events(response):
                now = perf_counter()
                first = first or now
                match event.event:
                    case "transcript" | "translation" as part:
                        yield TextDelta(part, self._delta(event.data))
                    case "done":
                        yield self._done(event.data, start, first, now)
                        return
                    case "error":
                        raise problem_error(
                            response.status_code, self._json(event.data), self._server
                        )
        raise ServerError(
            f"The server {self._server} ended its stream before the translation was done.",
            "Try again, and look into the server's log.",
        )

    @contextmanager
    def _post(
        self, packet: bytes, source: Language, target: Language, *, accept: str
    ) -> Iterator[httpx.Response]:
        """A response whose status is 200; its body is unread."""
        request = self._http.build_request(
            "POST",
            f"{self._server}/v1/translate",
            params={"src": source.code, "tgt": target.code},
            content=packet,
            headers={"Content-Type": MEDIA_TYPE, "Accept": accept},
        )
        with self._reading():
            response = self._http.send(request, stream=True)
        try:
            # Unpacked, a few bytes could be more than there is memory.
            if response.headers.get("content-encoding", "identity") != "identity":
                raise not_understood(self._server, "a compressed body")
            if response.status_code != httpx.codes.OK:
                problem = _loads(self._body(response))
                raise problem_error(response.status_code, problem, self._server)
            yield response
        finally:
            response.close()

    def _body(self, response: httpx.Response) -> bytes:
        body = bytearray()
        with self._reading():
            for part in response.iter_bytes():
                body += part
                if len(body) > _MAX_BODY:
                    raise not_understood(self._server, f"more than {_MAX_BODY} bytes")
        return bytes(body)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn what httpx raises on the way into a `ServerError`."""
        try:
            yield
        except httpx.TimeoutException as error:
            raise ServerError(
                f"The server {self._server} did not answer in time.",
                f"Check that it is up and not overloaded. {START_SERVER}",
            ) from error
        except (httpx.ConnectError, httpx.ProxyError) as error:
            raise ServerError(
                f"The server {self._server} cannot be reached: {error}.",
                START_SERVER if self._loopback else _CHECK_WAY,
            ) from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise ServerError(
                f"The connection to the server {self._server} broke off: {error}.",
                "Try again, and look into the server's log.",
            ) from error

    def _events(self, response: httpx.Response) -> Iterator[ServerSentEvent]:
        with self._reading():
            try:
                yield from parse_events(response.iter_bytes())
            except ValueError as error:
                raise not_understood(self._server, str(error)) from error

    def _json(self, text: str | bytes) -> Mapping[str, Any]:
        value = _loads(text)
        if not isinstance(value, dict):
            raise not_understood(self._server, "what is not a JSON object")
        return value

    def _delta(self, text: str) -> str:
        return self._field(self._json(text), "text", str)

    def _field(self, fields: Mapping[str, Any], key: str, kind: type[_T]) -> _T:
        value = fields.get(key)
        if not isinstance(value, kind):
            raise not_understood(self._server, f"no {key!r} of type {kind.__name__}")
        return value

    def _done(self, text: str | bytes, start: float, first: float | None, done: float) -> Done:
        fields = self._json(text)

        def word(key: str) -> str:
            return self._field(fields, key, str)

        tokens = self._field(fields, "tokens", dict)
        server_ms = _numbers(self._field(fields, "timings_ms", dict))
        within = server_ms.get("total" if first is None else "first_token")
        outside = done if first is None else first
        return Done(
            source=word("src"),
            target=word("tgt"),
            transcript=word("transcript"),
            translation=word("translation"),
            model=word("model"),
            fingerprint=word("fingerprint"),
            finish=word("finish"),
            tokens={str(key): n for key, n in tokens.items() if type(n) is int},
            server_ms=server_ms,
            client_ms=ClientTimes(
                network=None if within is None else 1000 * (outside - start) - within,
                first_token=None if first is None else 1000 * (first - start),
                done=1000 * (done - start),
            ),
        )


def _authorization(api_key: str | None) -> dict[str, str]:
    if not api_key:
        return {}
    # Also what an HTTP header can hold: a line break in it would begin another header.
    if not re.fullmatch(r"[!-~]+", api_key):
        raise RequestError(
            "The API key holds characters that no key has.",
            f"Set {API_KEY_VARIABLE} to the key as it was shown, without spaces or line breaks.",
        )
    return {"Authorization": f"Bearer {api_key}"}


def _url(server: str) -> httpx.URL:
    with suppress(httpx.InvalidURL, UnicodeError):
        url = httpx.URL(server)
        url.host.encode("idna")  # as the system will, to look it up
        if url.scheme in ("http", "https") and url.host:
            return url
    raise RequestError(
        f"{server!r} is not the address of a server.", "Give one like http://127.0.0.1:8080."
    )


def _is_loopback(host: str) -> bool:
    """Whether it names this machine: 127.0.0.0/8, ::1 or localhost."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _loads(text: str | bytes) -> Any:
    """Parsed JSON; ``None`` for what is none, NaN or half a character included."""
    try:
        value = json.loads(text)
        # Neither of these could be written out again.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return None
    return value


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Those that are numbers, and no larger than a float can be."""
    return {
        str(key): float(n)
        for key, n in values.items()
        if type(n) in (int, float) and abs(n) <= sys.float_info.max
    }
