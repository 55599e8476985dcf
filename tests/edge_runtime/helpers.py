"""Shared helpers: a tiny encoder, synthetic speech, a scripted gateway, the command line."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import onnx
import soundfile
from onnx import TensorProto, helper, numpy_helper

from esrt.arrays import Float32Array
from esrt.bundled import REPOSITORY, SAMPLES
from esrt.manifest import FORMAT, FrontEnd, Manifest, TensorSpec, sha256
from esrt.speech import DEFAULT_SETTINGS

FINGERPRINT = "0123456789abcdef"
STRIDE = 8
WIDTH = 6
MAX_SECONDS = 4.0
RATE = 16_000

DONE: dict[str, Any] = {
    "src": "eng",
    "tgt": "deu",
    "transcript": "Good morning",
    "translation": "Guten Morgen, schöne Grüße",
    "model": "tiny",
    "fingerprint": FINGERPRINT,
    "finish": "stop",
    "confidence": {"transcript": -0.01, "translation": None, "threshold": -0.04},
    "tokens": {"features": 12, "generated": 9},
    "timings_ms": {"decode": 0.1, "project": 0.2, "first_token": 0.5, "total": 1.0},
}
EVENTS = [
    ("transcript", {"text": "Good "}),
    ("transcript", {"text": "morning"}),
    ("translation", {"text": "Guten Morgen, "}),
    ("translation", {"text": "schöne Grüße"}),
    ("done", DONE),
]
MISMATCH = {
    "type": "urn:esrt:problem:fingerprint-mismatch",
    "title": "Fingerprint mismatch",
    "status": 409,
    "detail": f"The packet is of {FINGERPRINT}, the server serves fedcba9876543210.",
    "remedy": "Install the encoder of the model that the server serves.",
}
NOT_READY = {
    "type": "urn:esrt:problem:not-ready",
    "title": "Not ready",
    "status": 503,
    "detail": "The engine is still loading.",
    "remedy": "Ask again when /readyz says so.",
}
PROBLEM = "application/problem+json"


def speech(seconds: float, rate: int = RATE, channels: int = 1) -> Float32Array:
    """A sound below 4 kHz with the loudness of syllables, the same at every rate; not a voice."""
    t = np.arange(round(seconds * rate)) / rate
    voice = sum(np.sin(2 * np.pi * hertz * t) / k for k, hertz in enumerate((140, 700, 1900), 1))
    mono = 0.2 * voice * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * t))
    return np.repeat(mono[:, None], channels, axis=1).astype(np.float32).squeeze()


def voice(seconds: float) -> Float32Array:
    """Speech of a bundled clip without a pause at its ends, repeated to the length, 16 kHz."""
    words, _ = soundfile.read(SAMPLES / "hin-1.flac", dtype="float32", start=3_200, stop=30_000)
    return np.resize(words, round(seconds * RATE))


def write_wav(path: Path, samples: Float32Array, rate: int = RATE, subtype: str = "PCM_16") -> Path:
    """Write samples to an audio file; the name's ending sets the format."""
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def tiny_graph(path: Path, *, output: str = "features") -> Float32Array:
    """Write an encoder: the mean of every 8 frames, times a matrix. Return the matrix."""
    weights = np.random.default_rng(0).normal(size=(128, WIDTH)).astype(np.float32)
    grouped = np.array([1, 128, -1, STRIDE], dtype=np.int64)
    graph = helper.make_graph(
        [
            helper.make_node("Reshape", ["mel", "grouped"], ["groups"]),
            helper.make_node("ReduceMean", ["groups", "axis"], ["pooled"], keepdims=0),
            helper.make_node("Transpose", ["pooled"], ["states"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["states", "weights"], [output]),
        ],
        "tiny",
        [helper.make_tensor_value_info("mel", TensorProto.FLOAT, [1, 128, "frames"])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, "tokens", WIDTH])],
        [
            numpy_helper.from_array(grouped, "grouped"),
            numpy_helper.from_array(np.array([3], dtype=np.int64), "axis"),
            numpy_helper.from_array(weights, "weights"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return weights


def front_end(**changes: Any) -> FrontEnd:
    """The tiny encoder's front end."""
    defaults: dict[str, Any] = {
        "sample_rate": RATE,
        "n_fft": 400,
        "hop": 160,
        "mel_bins": 128,
        "frame_multiple": STRIDE,
        "padded_seconds": None,
        "max_seconds": MAX_SECONDS,
        "speech": DEFAULT_SETTINGS,
    }
    return FrontEnd(**{**defaults, **changes})


def describe(folder: Path, **changes: Any) -> Manifest:
    """Write the manifest of the graph in a folder, with some fields changed."""
    defaults: dict[str, Any] = {
        "model": "tiny",
        "fingerprint": FINGERPRINT,
        "kind": "onnx",
        "precision": "fp32",
        "split": "qformer",
        "feature_width": WIDTH,
        "max_tokens": 50,
        "inputs": (TensorSpec("mel", "float32", (1, 128, None)),),
        "outputs": (TensorSpec("features", "float32", (1, None, WIDTH)),),
        "front_end": front_end(),
        "languages": ("eng", "deu", "spa"),
        "entry": "encoder.onnx",
        "files": {"encoder.onnx": sha256(folder / "encoder.onnx")},
        "tools": {},
        "parity": {},
        "created_from": "test",
        "format": FORMAT,
    }
    manifest = Manifest(**{**defaults, **changes})
    manifest.write(folder)
    return manifest


@dataclass
class ServedRequest:
    """One request, with methods to answer it."""

    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    handler: BaseHTTPRequestHandler

    def send(self, status: int, content: Any, media_type: str = "application/json") -> None:
        """Answer with JSON, or with raw bytes."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.handler.send_response(status)
        self.handler.send_header("Content-Type", media_type)
        self.handler.send_header("Content-Length", str(len(body)))
        self.handler.end_headers()
        self.handler.wfile.write(body)

    def stream(self, events: Iterable[tuple[str, Any]], *, ended: bool = True) -> None:
        """Answer with server-sent events; without `ended` the connection then breaks off."""
        self._begin()
        for name, data in events:
            text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
            self._chunk(f"event: {name}\r\ndata: {text}\r\n\r\n".encode())
        self._end(ended)

    def raw_stream(self, chunks: Iterable[bytes]) -> None:
        """Answer with an event stream of raw bytes, until the client closes the connection."""
        self._begin()
        with suppress(ConnectionError):
            for chunk in chunks:
                self._chunk(chunk)
            self._end(True)

    def _begin(self) -> None:
        self.handler.send_response(200)
        self.handler.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.handler.send_header("Transfer-Encoding", "chunked")
        self.handler.end_headers()

    def _chunk(self, chunk: bytes) -> None:
        self.handler.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))

    def _end(self, ended: bool) -> None:
        if ended:
            self.handler.wfile.write(b"0\r\n\r\n")
        self.handler.close_connection = True


def translate_well(exchange: ServedRequest) -> None:
    """Answer as a working gateway does."""
    if "text/event-stream" in exchange.headers["accept"]:
        exchange.stream(EVENTS)
    else:
        exchange.send(200, DONE)


@dataclass
class Gateway:
    """A real HTTP server on loopback that answers by a script and records the requests."""

    answer: Callable[[ServedRequest], None] = translate_well
    exchanges: list[ServedRequest] = field(default_factory=list)
    url: str = ""

    def server(self) -> ThreadingHTTPServer:
        """The server, bound to a free port but not yet running."""
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                url = urlsplit(self.path)
                exchange = ServedRequest(
                    url.path,
                    dict(parse_qsl(url.query)),
                    {name.lower(): value for name, value in self.headers.items()},
                    self.rfile.read(int(self.headers["Content-Length"])),
                    self,
                )
                gateway.exchanges.append(exchange)
                gateway.answer(exchange)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_port}"
        return server


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in its own process."""
    return python("-m", "edge_runtime", *map(str, arguments))


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a new interpreter in the repository, without proxy settings."""
    kept = {name: v for name, v in os.environ.items() if not name.lower().endswith("_proxy")}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env={**kept, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
