"""The client against a real server on loopback."""

import gzip
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.address import find_proxy, parse_address
from edge_runtime.answer import Done
from edge_runtime.client import MAX_BODY_BYTES, Client
from esrt.errors import (
    EsrtError,
    FingerprintMismatch,
    LanguageError,
    PacketTooLarge,
    RequestError,
    ServerError,
)
from esrt.languages import language
from esrt.prompt import TextDelta
from esrt.wire import MEDIA_TYPE
from tests.edge_runtime.helpers import (
    DONE,
    EVENTS,
    FINGERPRINT,
    MISMATCH,
    NOT_READY,
    PROBLEM,
    Gateway,
    ServedRequest,
)

PACKET = b"ESRT, as far as the client cares"
Call = Callable[[Client], Done]


def translate(client: Client) -> Done:
    return client.translate(PACKET, language("eng"), language("deu"))


def stream(client: Client) -> Done:
    *_, done = client.stream(PACKET, language("eng"), language("deu"))
    assert isinstance(done, Done)
    return done


both = pytest.mark.parametrize("call", [translate, stream])


def failure(url: str, call: Call, **options: Any) -> EsrtError:
    with Client(url, **options) as client, pytest.raises(EsrtError) as caught:
        call(client)
    assert caught.value.cause
    assert caught.value.remedy
    return caught.value


def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@both
def test_the_request(gateway: Gateway, call: Call) -> None:
    with Client(gateway.url + "/") as client:
        call(client)
    (exchange,) = gateway.exchanges
    assert exchange.path == "/v1/translate"
    assert exchange.query == {"src": "eng", "tgt": "deu"}
    assert exchange.headers["content-type"] == MEDIA_TYPE
    wanted = "text/event-stream" if call is stream else "application/json"
    assert exchange.headers["accept"] == wanted
    assert exchange.body == PACKET


@both
def test_the_api_key(gateway: Gateway, call: Call) -> None:
    for key in ("esrt_0123abcd_secret", None, ""):
        with Client(gateway.url, api_key=key) as client:
            call(client)
    sent = [exchange.headers.get("authorization") for exchange in gateway.exchanges]
    assert sent == ["Bearer esrt_0123abcd_secret", None, None]


@pytest.mark.parametrize("key", ["a b", "a\n", "a\r\nX: y", "schlüssel", "\x00"])
def test_invalid_api_keys(key: str) -> None:
    with pytest.raises(RequestError, match="ESRT_API_KEY") as caught:
        Client("http://127.0.0.1:9", api_key=key)
    assert key not in str(caught.value)


@both
def test_a_key_that_is_refused(gateway: Gateway, call: Call) -> None:
    problem = {
        "type": "urn:esrt:problem:unauthorized",
        "title": "Unauthorized",
        "status": 401,
        "detail": "The API key is missing or not valid.",
        "remedy": "Send one.",
    }
    gateway.answer = lambda exchange: exchange.send(401, problem, PROBLEM)
    error = failure(gateway.url, call)
    assert (error.exit_code, error.cause) == (2, problem["detail"])


@both
def test_the_answer(gateway: Gateway, call: Call) -> None:
    with Client(gateway.url) as client:
        done = call(client)
    assert (done.src, done.tgt) == ("eng", "deu")
    assert (done.transcript, done.translation) == (DONE["transcript"], DONE["translation"])
    assert (done.model, done.fingerprint, done.finish) == ("tiny", FINGERPRINT, "stop")
    assert done.confidence == DONE["confidence"]
    assert done.tokens == DONE["tokens"]
    assert done.timings_ms == DONE["timings_ms"]


def test_events_are_typed(gateway: Gateway) -> None:
    with Client(gateway.url) as client:
        *deltas, done = client.stream(PACKET, language("eng"), language("deu"))
    assert isinstance(done, Done)
    assert deltas == [TextDelta(part, data["text"]) for part, data in EVENTS[:-1]]  # type: ignore[arg-type]


def test_unknown_events_and_fields_are_passed_over(gateway: Gateway) -> None:
    added = ("done", DONE | {"quality": 0.9, "timings_ms": DONE["timings_ms"] | {"queue": None}})
    gateway.answer = lambda exchange: exchange.stream(
        [("progress", {"of": 9}), *EVENTS[:-1], added]
    )
    with Client(gateway.url) as client:
        assert stream(client).translation == DONE["translation"]


def test_times(gateway: Gateway) -> None:
    def slowly(exchange: ServedRequest) -> None:
        def events() -> Any:
            time.sleep(0.1)
            yield EVENTS[0]
            time.sleep(0.1)
            yield "done", DONE | {"timings_ms": {"first_token": 40, "total": 150}}

        exchange.stream(events())

    gateway.answer = slowly
    with Client(gateway.url) as client:
        times = stream(client).client_ms
    assert times.first_token is not None
    assert times.network is not None
    assert 90 < times.first_token < times.done - 90
    assert times.network == pytest.approx(times.first_token - 40)


def test_times_without_streaming(gateway: Gateway) -> None:
    with Client(gateway.url) as client:
        times = translate(client).client_ms
    assert times.first_token is None
    assert times.network == pytest.approx(times.done - DONE["timings_ms"]["total"])


def test_missing_server_times(gateway: Gateway) -> None:
    gateway.answer = lambda exchange: exchange.stream([("done", DONE | {"timings_ms": {}})])
    with Client(gateway.url) as client:
        assert stream(client).client_ms.network is None


@both
def test_another_model_s_packet(gateway: Gateway, call: Call) -> None:
    gateway.answer = lambda exchange: exchange.send(409, MISMATCH, PROBLEM)
    error = failure(gateway.url, call)
    assert isinstance(error, FingerprintMismatch)
    assert error.exit_code == 2
    assert FINGERPRINT in error.cause
    assert "fedcba9876543210" in error.cause
    assert error.remedy == MISMATCH["remedy"]


@both
@pytest.mark.parametrize(
    ("status", "name", "kind"),
    [
        (422, "urn:esrt:problem:language", LanguageError),
        (413, "https://example.org/problems/packet-too-large", PacketTooLarge),
        (422, "about:blank", RequestError),
        (400, None, RequestError),
        (429, "rate-limit", ServerError),
        (500, "internal", ServerError),
        (503, "urn:esrt:problem:engine-failed", ServerError),
    ],
)
def test_problems(
    gateway: Gateway, call: Call, status: int, name: str, kind: type[EsrtError]
) -> None:
    problem = {"type": name, "status": status, "detail": "This is wrong.", "remedy": "Do that."}
    gateway.answer = lambda exchange: exchange.send(status, problem, PROBLEM)
    error = failure(gateway.url, call)
    assert type(error) is kind
    assert (error.cause, error.remedy) == ("This is wrong.", "Do that.")


@both
def test_a_server_that_is_not_ready(gateway: Gateway, call: Call) -> None:
    gateway.answer = lambda exchange: exchange.send(503, NOT_READY, PROBLEM)
    error = failure(gateway.url, call)
    assert error.exit_code == 3
    assert (error.cause, error.remedy) == (NOT_READY["detail"], NOT_READY["remedy"])


@both
@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (404, b"<h1>Not found</h1>", 2),
        (404, b'["not", "a", "problem"]', 2),
        (400, b'{"detail": 5, "remedy": ""}', 2),
        (302, b"", 3),
        (502, b"Bad gateway", 3),
        (599, b"\xff\xfe", 3),
        (200, b"<h1>Welcome</h1>", 3),
        (200, b"{}", 3),
    ],
)
def test_another_server(gateway: Gateway, call: Call, status: int, body: bytes, code: int) -> None:
    gateway.answer = lambda exchange: exchange.send(status, body, "text/html")
    error = failure(gateway.url, call)
    assert error.exit_code == code
    assert gateway.url in error.cause
    assert "--server" in error.remedy


@both
def test_a_server_that_is_not_there(call: Call) -> None:
    url = closed_port()
    error = failure(url, call)
    assert isinstance(error, ServerError)
    assert url in error.cause
    assert "python -m cloud_vllm" in error.remedy


@both
def test_an_address_without_a_scheme_is_one_of_http(gateway: Gateway, call: Call) -> None:
    for server in (
        gateway.url.removeprefix("http://"),
        gateway.url.replace("http://127.0.0.1", "localhost"),
    ):
        with Client(server) as client:
            assert call(client).translation == DONE["translation"]


@pytest.fixture
def tls_server(gateway: Gateway, certificate: tuple[Path, Path]) -> Iterator[str]:
    """The gateway behind TLS, with a certificate that no authority signed: its host and port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server = gateway.server()
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@both
def test_a_certificate_that_is_not_trusted(
    tls_server: str, certificate: tuple[Path, Path], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = failure(f"https://{tls_server}", call)
    assert error.exit_code == 3
    assert "is not trusted: self-signed certificate." in error.cause
    assert "SSL_CERT_FILE" in error.remedy
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    with Client(f"https://{tls_server}") as client:
        assert call(client).translation == DONE["translation"]
    error = failure(f"https://{tls_server.replace('127.0.0.1', 'localhost')}", call)
    assert "Hostname mismatch" in error.cause
    assert "host name" in error.remedy


@both
def test_http_and_https_are_confused(gateway: Gateway, tls_server: str, call: Call) -> None:
    error = failure(f"http://{tls_server}", call)
    assert f"https://{tls_server}" in error.remedy
    assert ".." not in str(error)
    plain = closed_port()
    with socket.create_server(("127.0.0.1", int(plain.rpartition(":")[2]))) as server:
        thread = threading.Thread(target=answer_in_plain_http, args=[server], daemon=True)
        thread.start()
        error = failure(plain.replace("http", "https"), call)
        thread.join()
    assert plain in error.remedy
    assert "does not answer with TLS" in error.cause


def answer_in_plain_http(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


@both
def test_a_server_that_does_not_answer(gateway: Gateway, call: Call) -> None:
    gateway.answer = lambda exchange: time.sleep(0.5)
    error = failure(gateway.url, call, read_seconds=0.1)
    assert isinstance(error, ServerError)
    assert "in time" in error.cause


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("count", [0, 1, 4])
def test_a_stream_that_breaks_off(gateway: Gateway, count: int, ended: bool) -> None:
    gateway.answer = lambda exchange: exchange.stream(EVENTS[:count], ended=ended)
    with Client(gateway.url) as client, pytest.raises(ServerError) as caught:
        list(client.stream(PACKET, language("eng"), language("deu")))
    assert gateway.url in caught.value.cause


def test_deltas_come_before_the_stream_breaks_off(gateway: Gateway) -> None:
    gateway.answer = lambda exchange: exchange.stream(EVENTS[:2], ended=False)
    with Client(gateway.url) as client:
        events = client.stream(PACKET, language("eng"), language("deu"))
        assert next(events) == TextDelta("transcript", "Good ")
        assert next(events) == TextDelta("transcript", "morning")
        with pytest.raises(ServerError):
            next(events)


@pytest.mark.parametrize(
    ("problem", "code"),
    [
        (NOT_READY | {"type": "urn:esrt:problem:engine-failed", "detail": "The engine died."}, 3),
        (MISMATCH, 2),
    ],
)
def test_an_error_event(gateway: Gateway, problem: dict[str, Any], code: int) -> None:
    gateway.answer = lambda exchange: exchange.stream([EVENTS[0], ("error", problem)])
    error = failure(gateway.url, stream)
    assert error.exit_code == code
    assert (error.cause, error.remedy) == (problem["detail"], problem["remedy"])


@pytest.mark.parametrize(
    "event",
    [
        ("transcript", "no json"),
        ("transcript", "[]"),
        ("translation", {"text": 5}),
        ("done", {**DONE, "translation": None}),
        ("done", {**DONE, "tokens": []}),
        ("error", "no json"),
        ("done", "[" * 100_000),
    ],
)
def test_events_of_another_form(gateway: Gateway, event: tuple[str, Any]) -> None:
    gateway.answer = lambda exchange: exchange.stream([event])
    assert isinstance(failure(gateway.url, stream), ServerError)


def test_control_characters_of_a_server_are_dropped(gateway: Gateway) -> None:
    problem = MISMATCH | {"detail": "Wrong\x1b[2J\nmodel."}
    gateway.answer = lambda exchange: exchange.send(409, problem, PROBLEM)
    assert failure(gateway.url, stream).cause == "Wrong[2J model."


@both
@pytest.mark.parametrize("status", [200, 503])
def test_answers_that_could_exhaust_the_memory(gateway: Gateway, call: Call, status: int) -> None:
    def packed(exchange: ServedRequest) -> None:
        body = gzip.compress(bytes(1 << 24))
        exchange.handler.send_response(status)
        exchange.handler.send_header("Content-Type", exchange.headers["accept"])
        exchange.handler.send_header("Content-Encoding", "gzip")
        exchange.handler.send_header("Content-Length", str(len(body)))
        exchange.handler.end_headers()
        exchange.handler.wfile.write(body)

    gateway.answer = packed
    assert "compressed" in failure(gateway.url, call).cause
    assert gateway.exchanges[0].headers["accept-encoding"] == "identity"
    gateway.answer = lambda exchange: exchange.send(status, bytes(1 << 21), "text/event-stream")
    error = failure(gateway.url, call)
    assert error.exit_code == 3
    assert "more than" in error.cause


@pytest.mark.parametrize(
    "chunk",
    [b"data: " + 1000 * b"x", 1000 * b"x" + b"\r", b"data: x\n", b": comment\n\n", b"data: {}\n\n"],
    ids=["a line", "unknown fields", "an event", "comments", "events"],
)
def test_a_stream_without_end_is_rejected(gateway: Gateway, chunk: bytes) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        block = chunk * (10_000 // len(chunk) + 1)
        while sent < 16 * MAX_BODY_BYTES:
            sent += len(block)
            yield block

    gateway.answer = lambda exchange: exchange.raw_stream(endless())
    error = failure(gateway.url, stream)
    assert error.exit_code == 3
    assert "more than" in error.cause
    assert sent < 16 * MAX_BODY_BYTES  # the client closed the connection


def test_a_stream_in_single_bytes(gateway: Gateway) -> None:
    events = "".join(
        f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n" for name, data in EVENTS
    )
    content = f": a comment\n\nid: 7\nretry: 9\n{events}".encode()
    gateway.answer = lambda exchange: exchange.raw_stream(
        content[i : i + 1] for i in range(len(content))
    )
    with Client(gateway.url) as client:
        assert stream(client).translation == DONE["translation"]


@both
@pytest.mark.parametrize("text", ["\ud800", float("nan"), float("inf")], ids=ascii)
def test_invalid_json_values(gateway: Gateway, call: Call, text: object) -> None:
    done = DONE | {"transcript": text}

    def answer(exchange: ServedRequest) -> None:
        if call is stream:
            exchange.stream([("done", json.dumps(done))])
        else:
            exchange.send(200, done)

    gateway.answer = answer
    assert failure(gateway.url, call).exit_code == 3


def test_times_that_no_float_holds(gateway: Gateway) -> None:
    done = DONE | {"timings_ms": {"total": 10**400, "decode": 1}}
    gateway.answer = lambda exchange: exchange.send(200, done)
    with Client(gateway.url) as client:
        assert translate(client).timings_ms == {"decode": 1.0}


@pytest.mark.parametrize(
    "url",
    ["", "ftp://host", "8080:localhost", "http://", "http://[::1", "http://a..b", "::1"],
)
def test_invalid_addresses(url: str) -> None:
    with pytest.raises(RequestError) as caught:
        Client(url)
    assert caught.value.exit_code == 2
    assert repr(url) in caught.value.cause


def test_events_of_waiting_are_no_text(gateway: Gateway) -> None:
    def answer(exchange: ServedRequest) -> None:
        waiting = [("waiting", {"status": "rebuilding"})] * 3
        exchange.stream([*waiting, *EVENTS[:2], waiting[0], *EVENTS[2:]])

    gateway.answer = answer
    with Client(gateway.url) as client:
        *deltas, done = client.stream(PACKET, language("eng"), language("deu"))
    assert [delta.text for delta in deltas if isinstance(delta, TextDelta)] == [
        data["text"] for name, data in EVENTS if name != "done"
    ]
    assert isinstance(done, Done)


@pytest.mark.parametrize(
    "url",
    [
        "http://anna:hunter2@gateway.example:8080",
        "anna:hunter2@gateway.example",
        "https://:hunter2@gateway.example",
        "http://anna:hunter2@",
        "ftp://anna:hunter2@gateway.example",
        "http://anna:hunter2@[::1",
    ],
)
def test_a_password_in_an_address_is_refused_and_not_printed(url: str) -> None:
    with pytest.raises(RequestError, match="ESRT_API_KEY") as caught:
        Client(url)
    assert "hunter2" not in str(caught.value)
    assert "anna" not in str(caught.value)


@pytest.mark.parametrize("port", ["65536", "70000", "99999999999", "0", "-1"])
@pytest.mark.parametrize("host", ["127.0.0.1", "http://gateway.example", "https://[::1]"])
def test_a_port_out_of_range(host: str, port: str) -> None:
    with pytest.raises(RequestError, match="Give a port from 1 to 65535") as caught:
        Client(f"{host}:{port}")
    assert port in caught.value.cause


@pytest.mark.parametrize("url", ["http://host/a?b=1", "http://host#a"])
def test_an_address_with_more_than_a_path(url: str) -> None:
    with pytest.raises(RequestError, match="query or a fragment"):
        Client(url)


@pytest.mark.parametrize(
    "value",
    ["nonsense://proxy:1", "http://anna:hunter2@proxy:99999", "http://anna:hunt#er2@proxy:1",
     "http://[::1", "http://", "http://anna:hunter2@:1"],
)  # fmt: skip
@pytest.mark.parametrize("variable", ["ALL_PROXY", "HTTP_PROXY"])
@pytest.mark.usefixtures("proxy")
def test_a_proxy_setting_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    for name in ("HTTP_PROXY", "ALL_PROXY"):
        for spelling in (name, name.lower()):
            monkeypatch.setenv(spelling, value if name == variable else "")
    with pytest.raises(RequestError) as caught:
        Client("http://gateway.example:8080")
    assert caught.value.cause.startswith(f"{variable} is not the address of a proxy")
    assert "hunt" not in str(caught.value)


@pytest.mark.parametrize(
    ("excepted", "host", "direct"),
    [
        ("::1/128,fd00::/8", "[fd00::7]", True),
        ("::1/128,fd00::/8", "[fe00::7]", False),
        ("[fd00::7]", "[fd00::7]", True),
        ("fd00::7", "[fd00:0::7]", True),
        ("[fd00::]/8", "[fd12::1]", True),
        ("10.0.0.0/8, 192.168.1.0/24", "192.168.1.200", True),
        ("10.0.0.0/8,192.168.1.0/24", "192.168.2.200", False),
        ("10.0.0.0/8,fd00::/8", "gateway.example", False),
        ("gateway.example", "gateway.example", True),
        (".example", "gateway.example", True),
        ("*.example", "gateway.EXAMPLE", True),
        ("example", "gateway.example", True),
        ("ample", "gateway.example", False),
        ("gateway.example:1", "gateway.example", True),
        ("gateway.example:2", "gateway.example", False),
        ("a,*", "gateway.example", True),
        ("//,/8,::/,[", "gateway.example", False),
        ("", "gateway.example", False),
    ],
)
def test_no_proxy(
    proxy: str, monkeypatch: pytest.MonkeyPatch, excepted: str, host: str, direct: bool
) -> None:
    monkeypatch.setenv("NO_PROXY", excepted)
    found = find_proxy(parse_address(f"http://{host}:1"))
    assert (found is None) == direct
    assert direct or (found is not None and str(found.url) == proxy)
    Client(f"http://{host}:1").close()


@given(st.text(), st.sampled_from(["gateway.example", "[fd00::7]", "10.1.2.3"]))
def test_any_text_of_no_proxy(text: str, host: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("urllib.request.getproxies", lambda: {"http": "proxy:1", "no": text})
        find_proxy(parse_address(f"http://{host}:1"))


@given(st.text() | st.from_regex(r"(https?://)?[a-z.\[\]:]{1,20}(:[0-9]{1,9})?(/[a-z]*)?"))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        url = parse_address(text)
    except RequestError as error:
        assert str(error)
    else:
        assert url.host
        assert url.port is None or 0 < url.port < 65536


@pytest.fixture
def proxy(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> str:
    """A closed port that the environment names as the proxy for every address."""
    url = closed_port()
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, url)
        monkeypatch.setenv(name.lower(), url)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    return url


@both
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LocalHost"])
@pytest.mark.usefixtures("proxy")
def test_this_machine_is_reached_without_a_proxy(gateway: Gateway, call: Call, host: str) -> None:
    with Client(gateway.url.replace("127.0.0.1", host)) as client:
        assert call(client).translation == DONE["translation"]


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("[::1]", True),
        ("127.255.255.254", True),
        ("128.0.0.1", False),
        ("[::2]", False),
        ("localhost.example", False),
        ("127.0.0.1.example", False),
    ],
)
def test_only_other_machines_are_reached_by_a_proxy(proxy: str, host: str, loopback: bool) -> None:
    server = f"http://{host}:1"
    error = failure(server, translate)
    assert error.exit_code == 3
    assert server in error.cause
    assert ("python -m cloud_vllm" in error.remedy) == loopback
    assert ("HTTP_PROXY" in error.remedy) != loopback


def test_a_proxy_that_refuses(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, gateway.url)
    error = failure("https://gateway.example", translate)  # the server does not support CONNECT
    assert "HTTPS_PROXY" in error.remedy


@pytest.mark.parametrize("host", ["localhost", "gateway.example"])
def test_certificates_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "gone.pem"))
    with pytest.raises(RequestError, match="SSL_CERT_FILE"):
        Client(f"https://{host}")
