"""Errors of examples/translate_talk.py: one line with a remedy, and an exit code."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

import numpy as np
import pytest
import soundfile
from websockets.datastructures import Headers
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

from esrt.bundled import SAMPLES
from examples import translate_talk
from tests.deploy.helpers import free_port
from tests.edge_runtime import helpers


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact")
    helpers.tiny_graph(folder / "encoder.onnx")
    helpers.describe(folder)
    return folder


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    """Two segments, with a pause between."""
    one, _ = soundfile.read(SAMPLES / "eng-2.flac", dtype="float32")
    samples = np.concatenate([one, np.zeros(helpers.RATE, dtype=np.float32), one])
    return helpers.write_wav(tmp_path / "talk.wav", samples)


@pytest.fixture
def run(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> "Run":
    monkeypatch.delenv("ESRT_API_KEY", raising=False)
    return Run(artifact, monkeypatch, capsys)


class Run:
    """The example in this process."""

    def __init__(
        self,
        artifact: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        self._artifact, self._monkeypatch, self._capsys = artifact, monkeypatch, capsys

    def fails(self, code: int, *arguments: object) -> str:
        """The single line of an error, after a check of the exit code."""
        command = ["translate_talk", "--artifact", str(self._artifact), *map(str, arguments)]
        self._monkeypatch.setattr("sys.argv", command)
        with pytest.raises(SystemExit) as ended:
            translate_talk.main()
        assert ended.value.code == code
        (line,) = self._capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        return line

    def output(self, *arguments: object) -> str:
        """The output of a run without an error."""
        command = ["translate_talk", "--artifact", str(self._artifact), *map(str, arguments)]
        self._monkeypatch.setattr("sys.argv", command)
        translate_talk.main()
        return self._capsys.readouterr().out


def translate_well(stream: ServerConnection) -> None:
    """Answer each segment with its number and the request's path."""
    assert stream.request is not None
    for number, message in enumerate(stream):
        if message == "end":
            return
        answer = f'{{"transcript": "{stream.request.path}", "translation": "{number}"}}'
        stream.send(f'{{"segment": {number}, "event": "done", "data": {answer}}}')


def break_off(stream: ServerConnection) -> None:
    stream.recv()
    stream.close(1011, "the engine failed")


def refuse_key(stream: ServerConnection, request: Request) -> Response:
    body = b'{"type": "urn:esrt:problem:unauthorized", "detail": "No key.", "remedy": "Send one."}'
    return Response(HTTPStatus.UNAUTHORIZED, "Unauthorized", Headers(), body)


def not_found(stream: ServerConnection, request: Request) -> Response:
    return Response(HTTPStatus.NOT_FOUND, "Not Found", Headers(), b"<html>")


@contextmanager
def gateway(**behaviour: object) -> Iterator[str]:
    """A websocket server; its address without a scheme."""
    handler = behaviour.pop("handler", translate_well)
    with serve(handler, "127.0.0.1", 0, **behaviour) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_a_server_without_a_scheme_is_reached(run: Run, talk: Path) -> None:
    with gateway() as address:
        path = "/v1/stream?src=eng&tgt=deu"
        assert run.output(talk, "--server", address) == f"0: {path}\n   0\n1: {path}\n   1\n"
        assert "0: /esrt/v1/" in run.output(talk, "--server", f"http://{address}/esrt/")


def test_a_missing_file(run: Run, tmp_path: Path) -> None:
    assert "nope.wav cannot be read" in run.fails(2, tmp_path / "nope.wav")


@pytest.mark.parametrize("seconds", [0.01, 1.0])
def test_silence(run: Run, tmp_path: Path, seconds: float) -> None:
    silence = np.zeros(round(seconds * helpers.RATE), dtype=np.float32)
    helpers.write_wav(tmp_path / "silence.wav", silence)
    assert "is silent" in run.fails(2, tmp_path / "silence.wav")


@pytest.mark.parametrize("seconds", [0.01, 2.0])
def test_a_talk_without_a_voice(run: Run, tmp_path: Path, seconds: float) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, round(seconds * helpers.RATE))
    helpers.write_wav(tmp_path / "noise.wav", noise.astype(np.float32))
    with gateway() as address:
        assert "No voice was found" in run.fails(2, tmp_path / "noise.wav", "--server", address)


def test_an_unknown_language(run: Run, talk: Path) -> None:
    assert "Unknown language 'xyz'" in run.fails(2, talk, "--to", "xyz")


def test_an_artifact_that_is_missing(run: Run, talk: Path, tmp_path: Path) -> None:
    assert "export" in run.fails(2, talk, "--artifact", tmp_path / "none")


@pytest.mark.parametrize("server", ["ftp://127.0.0.1", "http://"])
def test_a_server_that_is_no_address(run: Run, talk: Path, server: str) -> None:
    assert "is not the address of a server" in run.fails(2, talk, "--server", server)


def test_no_server(run: Run, talk: Path) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    line = run.fails(3, talk, "--server", address)
    assert address in line
    assert "Check that the gateway runs" in line


def test_a_rejected_handshake_is_reported_in_the_gateway_s_words(run: Run, talk: Path) -> None:
    with gateway(process_request=refuse_key) as address:
        assert run.fails(2, talk, "--server", address) == "error: No key. Send one."
    with gateway(process_request=not_found) as address:
        assert "404 Not Found" in run.fails(2, talk, "--server", address)


def test_a_stream_that_breaks_off(run: Run, talk: Path) -> None:
    with gateway(handler=break_off) as address:
        assert "the engine failed" in run.fails(3, talk, "--server", address)
