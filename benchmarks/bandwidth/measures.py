"""Bytes of requests, and times of codecs."""

import lzma
import socket
import statistics
import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import numpy as np
import zstandard
from rich.progress import track
from threadpoolctl import threadpool_limits

from benchmarks.bandwidth.sender import Sender
from benchmarks.options import DEFAULT_CODEC
from benchmarks.speech import join_clips
from edge_runtime.client import Client
from esrt import wire
from esrt.arrays import Float32Array
from esrt.errors import EsrtError
from esrt.features import SAMPLE_RATE
from esrt.languages import LANGUAGES
from esrt.wire import Codec
from esrt.wire.transform_codec import FREQUENCY_BITS

SECONDS = (1, 2, 5, 10, 30)
# Longer speech is sent in parts of this length, a request each: nano takes 12 s at most.
PART_SECONDS = 10
# Samples of speech of each length; each begins with another clip.
SAMPLES = 12


def request_overhead() -> int:
    """Count the bytes around a packet in a request: request line and headers of HTTP/1.1."""
    body = bytes(1000)
    with socket.create_server(("127.0.0.1", 0)) as server:
        received: list[int] = []

        def receive() -> None:
            connection, _ = server.accept()
            with connection:
                data = b""
                while not data.endswith(body):
                    data += connection.recv(65536)
                received.append(len(data))

        thread = threading.Thread(target=receive)
        thread.start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        with Client(address) as client, suppress(EsrtError):  # there is no answer
            client.translate(body, LANGUAGES["eng"], LANGUAGES["deu"])
        thread.join()
    return received[0] - len(body)


def sizes(
    sender: Sender, clips: list[Float32Array], samples: int, overhead: int
) -> list[dict[str, Any]]:
    """Median bytes of whole requests over samples of speech, by codec and length."""
    rows = []
    for seconds in track(SECONDS, description="encoding", transient=True):
        totals: dict[str, list[int]] = defaultdict(list)
        for number in range(samples):
            speech = join_clips(clips, seconds, number * len(clips) // SAMPLES)
            parts = [sender.body_bytes(part) for part in _parts(speech)]
            for name in parts[0]:
                totals[name].append(sum(overhead + part[name] for part in parts))
        for name, counts in totals.items():
            size = statistics.median(counts)
            row = {"sent": name, "seconds": seconds, "bytes": round(size)}
            rows.append(row | {"kbps": round(8 * size / seconds / 1000, 3)})
    return rows


def _parts(audio: Float32Array) -> Iterable[Float32Array]:
    length = PART_SECONDS * SAMPLE_RATE
    return (audio[start : start + length] for start in range(0, len(audio), length))


def coders(sender: Sender, clips: list[Float32Array], samples: int) -> dict[str, float]:
    """Mean bytes of the default codec's integers for 5 s: its own coder, and general ones.

    ``entropy`` is the lower bound for the codec's tables. The general coders get a byte for each
    integer, in the order of the packet.
    """
    if sender.codec_tables is None:
        return {}
    codec, rows = sender.codec_tables.by_codec[DEFAULT_CODEC], list[dict[str, float]]()
    for number in range(samples):
        features = sender.features(join_clips(clips, 5, number * len(clips) // SAMPLES))
        integers = codec.quantize(features)
        symbols = codec.ordered(integers)
        written = b"".join(part.astype(np.int8).tobytes() for part in symbols)
        bits = 0.0
        for part, table in zip(symbols, codec.frequencies, strict=True):
            bits -= float(np.log2(table[part + len(table) // 2] / 2**FREQUENCY_BITS).sum())
        rows.append(
            {
                "entropy": bits / 8,
                "ans": len(codec.write(integers)),
                "zstandard": len(zstandard.compress(written, 22)),
                "deflate": len(zlib.compress(written, 9, wbits=-15)),
                "lzma": len(lzma.compress(written, lzma.FORMAT_ALONE)),
            }
        )
    return {name: round(statistics.mean(row[name] for row in rows), 1) for name in rows[0]}


def codec_times(
    sender: Sender, clips: list[Float32Array], rounds: int
) -> dict[str, dict[str, float]]:
    """Median milliseconds to encode and to decode a packet of `PART_SECONDS`, on one core."""
    features = sender.features(join_clips(clips, PART_SECONDS))
    times: dict[Codec, dict[str, list[float]]] = {
        codec: {"encode": [], "decode": []} for codec in Codec
    }
    with threadpool_limits(1):
        for _ in range(rounds):
            for codec, spent in times.items():
                start = time.perf_counter()
                packet = sender.packet(features, codec)
                packed = time.perf_counter()
                wire.decode(packet, sender.codec_tables)
                spent["encode"].append(1000 * (packed - start))
                spent["decode"].append(1000 * (time.perf_counter() - packed))
    return {
        str(codec): {name: round(statistics.median(values), 4) for name, values in spent.items()}
        for codec, spent in times.items()
    }
