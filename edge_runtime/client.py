"""HTTP client of the gateway: sends a packet, receives the text whole or as it is decoded."""

import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import msgspec
from httpx_sse import EventSource, ServerSentEvent

from edge_runtime.address import API_KEY_VARIABLE, find_proxy, parse_address
from edge_runtime.answer import AnswerData, DeltaData, Done, timed
from edge_runtime.problems import START_SERVER, invalid_answer, problem_error
from esrt.errors import RequestError, ServerError
from esrt.languages import Language
from esrt.network import is_loopback
from esrt.prompt import TextDelta
from esrt.wire import MEDIA_TYPE

EVENT_STREAM = "text/event-stream"
CONNECT_SECONDS = 5.0
# A large model behind a queue sends nothing until its first token.
READ_SECONDS = 60.0
# Bytes of a whole answer or stream; the gateway stops decoding after some hundred tokens.
MAX_BODY_BYTES = 1 << 20
_CHECK_ROUTE = "Check its address, and the proxy if HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names one."
_RETRY = "Try again. If that fails, read the server's log."
_TRUST = "Set SSL_CERT_FILE to a PEM file with the certificate of the server or of its authority."

_T = TypeVar("_T")


class Client:
    """Connection to one gateway, and a context manager. Loopback is reached without a proxy.

    Args:
        server: the gateway's address, ``http://host:port``, or ``host:port`` for http.
        api_key: API key to send; ``None`` or an empty string sends none.
        read_seconds: longest time without a byte from the server.

    Raises:
        RequestError: as for `parse_address`; the API key has invalid characters; or the proxy or
            certificate settings of the environment are invalid.
    """

    def __init__(
        self, server: str, *, api_key: str | None = None, read_seconds: float = READ_SECONDS
    ) -> None:
        address = parse_address(server)
        self._server = str(address).rstrip("/")
        self._host = address.netloc.decode()
        self._loopback = is_loopback(address.host)
        # A proxy would connect to its own loopback, and would read the API key.
        proxy = None if self._loopback else find_proxy(address)
        try:
            self._http = httpx.Client(
                timeout=httpx.Timeout(read_seconds, connect=min(CONNECT_SECONDS, read_seconds)),
                headers={"Accept-Encoding": "identity", **authorization(api_key)},
                proxy=proxy,
                trust_env=False,
                # The environment's certificates (SSL_CERT_FILE) apply to loopback as well.
                verify=httpx.create_ssl_context(),
            )
        except OSError as error:
            raise RequestError(
                f"The certificates of the environment cannot be read: {_reason(error)}.",
                "Correct or unset SSL_CERT_FILE and SSL_CERT_DIR.",
            ) from error
        except ImportError as error:
            raise RequestError(
                f"The proxy {proxy and proxy.url.host} cannot be used: {_reason(error)}.",
                "Install the package, or correct HTTP_PROXY, HTTPS_PROXY and ALL_PROXY.",
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
            EsrtError: with exit code 2, the server rejected the request.
            ServerError: the server cannot be reached, is not ready, closed the connection, or is
                not a gateway.
        """
        start = perf_counter()
        with self._post(packet, source, target, accept="application/json") as response:
            body = b"".join(self._chunks(response))
            end = perf_counter()
            return timed(self._decode(body, AnswerData), start, None, end)

    def stream(
        self, packet: bytes, source: Language, target: Language
    ) -> Iterator[TextDelta | Done]:
        """Send a packet and yield the text as it is decoded; the last event is a `Done`.

        Raises:
            EsrtError: as for :meth:`translate`, possibly after some deltas.
        """
        start = perf_counter()
        first_event = None
        with self._post(packet, source, target, accept=EVENT_STREAM) as response:
            if not response.headers.get("content-type", "").startswith(EVENT_STREAM):
                raise invalid_answer(self._server, "is not an event stream")
            for event in self._events(response):
                if event.event == "waiting":  # the engine is busy or being rebuilt
                    continue
                now = perf_counter()
                first_event = first_event or now
                match event.event:
                    case "transcript" | "translation" as part:
                        yield TextDelta(part, self._decode(event.data, DeltaData).text)
                    case "done":
                        yield timed(self._decode(event.data, AnswerData), start, first_event, now)
                        return
                    case "error":
                        problem = self._decode(event.data, dict[str, Any])
                        raise problem_error(response.status_code, problem, self._server)
        raise ServerError(
            f"The server {self._server} ended the stream before the translation was complete.",
            _RETRY,
        )

    @contextmanager
    def _post(
        self, packet: bytes, source: Language, target: Language, *, accept: str
    ) -> Iterator[httpx.Response]:
        """Yield a response with status 200 and an unread body."""
        request = self._http.build_request(
            "POST",
            f"{self._server}/v1/translate",
            params={"src": source.code, "tgt": target.code},
            content=packet,
            headers={"Content-Type": MEDIA_TYPE, "Accept": accept},
        )
        with self._transport_errors(answered=False):
            response = self._http.send(request, stream=True)
        try:
            # A few compressed bytes could expand beyond the memory.
            if response.headers.get("content-encoding", "identity") != "identity":
                raise invalid_answer(self._server, "is compressed")
            if response.status_code != httpx.codes.OK:
                problem = _json_or_none(b"".join(self._chunks(response)))
                raise problem_error(response.status_code, problem, self._server)
            yield response
        finally:
            response.close()

    def _chunks(self, response: httpx.Response) -> Iterator[bytes]:
        """Yield the body as it arrives, up to `MAX_BODY_BYTES`."""
        size = 0
        with self._transport_errors(answered=True):
            for chunk in response.iter_bytes():
                size += len(chunk)
                if size > MAX_BODY_BYTES:
                    raise invalid_answer(self._server, f"has more than {MAX_BODY_BYTES} bytes")
                yield chunk

    def _events(self, response: httpx.Response) -> Iterator[ServerSentEvent]:
        """Yield server-sent events from a body of limited size."""
        # EventSource buffers a line of any length, so it gets a response over limited chunks.
        limited = httpx.Response(
            response.status_code,
            headers={"Content-Type": f"{EVENT_STREAM}; charset=utf-8"},
            content=self._chunks(response),
        )
        return EventSource(limited).iter_sse()

    @contextmanager
    def _transport_errors(self, *, answered: bool) -> Iterator[None]:
        """Turn httpx's transport errors into a `ServerError`.

        Args:
            answered: whether the server has begun to answer.
        """
        try:
            yield
        except httpx.TimeoutException as error:
            raise ServerError(
                f"The server {self._server} did not answer in time.",
                f"Check that it runs and is not overloaded. {START_SERVER}",
            ) from error
        except (httpx.ConnectError, httpx.ProxyError) as error:
            if tls_error := _tls_error(error):
                raise self._tls_failure(tls_error) from error
            raise ServerError(
                f"The server {self._server} cannot be reached: {_reason(error)}.",
                START_SERVER if self._loopback else _CHECK_ROUTE,
            ) from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            # A TLS port closes a connection without TLS instead of answering.
            is_tls_port_possible = not answered and self._server.startswith("http://")
            https = f" If the server uses TLS, give its address as https://{self._host}."
            raise ServerError(
                f"The connection to the server {self._server} was interrupted: {_reason(error)}.",
                _RETRY + (https if is_tls_port_possible else ""),
            ) from error

    def _tls_failure(self, error: ssl.SSLError) -> ServerError:
        """The error for a TLS connection that could not be made."""
        if not isinstance(error, ssl.SSLCertVerificationError):
            return ServerError(
                f"The server {self._server} does not answer with TLS: {_reason(error)}.",
                f"If the server has no TLS, give its address as http://{self._host}.",
            )
        # OpenSSL's codes of a certificate for another name, or for another IP address.
        of_another_host = error.verify_code in (62, 64)
        return ServerError(
            f"The certificate of the server {self._server} is not trusted:"
            f" {error.verify_message.rstrip('.')}.",
            "Use the host name that its certificate is for." if of_another_host else _TRUST,
        )

    def _decode(self, text: str | bytes, kind: type[_T]) -> _T:
        """Decode JSON of a known schema."""
        try:
            return msgspec.json.decode(text, type=kind)
        except (ValueError, RecursionError) as error:
            raise invalid_answer(self._server, f"does not fit the schema: {error}") from error


def authorization(api_key: str | None) -> dict[str, str]:
    """The HTTP header for an API key; no header without a key.

    Raises:
        RequestError: the key has characters other than printable ASCII.
    """
    if not api_key:
        return {}
    if not re.fullmatch(r"[!-~]+", api_key):  # a line break would begin another header
        raise RequestError(
            "The API key has invalid characters.",
            f"Set {API_KEY_VARIABLE} to the key as it was shown, without spaces or line breaks.",
        )
    return {"Authorization": f"Bearer {api_key}"}


def _tls_error(error: BaseException | None) -> ssl.SSLError | None:
    """The TLS error that caused a connection error, if there is one."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error


def _reason(error: Exception) -> str:
    """The text of an error, without the full stop at its end."""
    return str(error).rstrip(".")


def _json_or_none(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return None
