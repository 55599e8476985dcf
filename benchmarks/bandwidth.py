"""What speech costs on the wire, and what is lost by it: ``python -m benchmarks.bandwidth``.

Bytes are of whole HTTP requests, as the client sends them, for speech of several lengths out of the
bundled clips. Quality is the test split's translation: from the features as each codec brings them
over, and, for the audio codecs, of the audio that comes out of them, by the unsplit model.
"""

import io
import json
import lzma
import socket
import statistics
import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import soundfile
import torch
import typer
import zstandard
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table
from threadpoolctl import threadpool_limits
from torch import Tensor
from transformers import AutoTokenizer, Gemma3ForCausalLM

from edge_runtime.audio import read_audio
from edge_runtime.client import Client
from esrt import bundled, wire
from esrt.arrays import Float32Array
from esrt.benchmark_report import BenchmarkReport, Threshold
from esrt.checkpoint import Checkpoint, open_checkpoint
from esrt.cli import exit_on_error
from esrt.errors import CheckpointError, EsrtError
from esrt.features import SAMPLE_RATE
from esrt.languages import LANGUAGES
from esrt.model import EdgeModel
from esrt.wire import Codec
from esrt.wire.transform_codec import FREQUENCY_BITS
from training.corpus.build import CORPUS, Corpus, load
from training.data import mel_batch
from training.evaluate import translate
from training.plots import save
from training.scoring import score

SECONDS = (1, 2, 5, 10, 30)
# Longer speech goes in parts of so many seconds, each a request: nano takes 12 at most.
PART_SECONDS = 10
DEFAULT, STRETCH = Codec.KLT, Codec.KLT_LOW
DEFAULT_KBPS, STRETCH_KBPS, LOSS, CODEC_MS = 4.0, 1.5, 0.5, 2.0
# Tokens at the end that are left out, to see whether they carry anything.
UNSENT = (1, 2)
OPUS_KBPS = (6, 12, 16, 24)
TOOLS = ("torch", "soundfile", "constriction", "sacrebleu")
# libsndfile's compression level 0 to 1 is Opus' bit rate from 256 down to 6 kbit/s.
_OPUS_RANGE = 6_000, 256_000
# So many times clips are joined to speech of each length, beginning with another one each time.
_SAMPLES = 12


def flac(audio: Float32Array) -> bytes:
    """A FLAC file of 16-bit samples."""
    file = io.BytesIO()
    soundfile.write(file, audio, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def opus(kbps: int, audio: Float32Array) -> bytes:
    """An Ogg file with Opus at about that rate, as libopus makes it by default: variable."""
    low, high = _OPUS_RANGE
    file = io.BytesIO()
    level = (high - 1000 * kbps) / (high - low)
    soundfile.write(file, audio, SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=level)
    return file.getvalue()


def through_opus(kbps: int, audio: Float32Array) -> Float32Array:
    """What the other side hears."""
    heard, _ = soundfile.read(io.BytesIO(opus(kbps, audio)), dtype="float32")
    return np.asarray(heard, np.float32)


def opus_packets(ogg: bytes) -> int:
    """Bytes of the audio packets alone, without Ogg's pages and the two header packets (RFC 7845).

    This is the best case for Opus: what a protocol that frames them for nothing would send.
    """
    sizes, size, place = [], 0, 0
    while place < len(ogg):
        count = ogg[place + 26]
        lacing = ogg[place + 27 : place + 27 + count]
        for length in lacing:
            size += length
            if length < 255:
                sizes.append(size)
                size = 0
        place += 27 + count + sum(lacing)
    return sum(sizes[2:])


def request_overhead() -> int:
    """Bytes that the client puts around a packet: the request line and the headers of HTTP/1.1."""
    body = bytes(1000)
    with socket.create_server(("127.0.0.1", 0)) as server:
        received: list[int] = []

        def take() -> None:
            connection, _ = server.accept()
            with connection:
                data = b""
                while not data.endswith(body):
                    data += connection.recv(65536)
                received.append(len(data))

        thread = threading.Thread(target=take)
        thread.start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        with Client(address) as client, suppress(EsrtError):  # which gets no answer
            client.translate(body, LANGUAGES["eng"], LANGUAGES["deu"])
        thread.join()
    return received[0] - len(body)


class Sender:
    """The edge side in torch: audio to what goes out, for every way of sending it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.fingerprint = checkpoint.fingerprint
        self.codec_tables = checkpoint.codec_tables()
        self.edge = checkpoint.edge_model()

    @property
    def mean(self) -> Float32Array:
        """The average token: (width,)."""
        if self.codec_tables is None:
            raise CheckpointError(
                "The checkpoint has no statistics.", "Gather them: python -m training.codec."
            )
        return self.codec_tables.by_codec[DEFAULT].mean

    def packet(self, features: Float32Array, codec: Codec) -> bytes:
        """A packet of features (tokens, width)."""
        return wire.encode(
            features,
            fingerprint=self.fingerprint,
            split=wire.Split.QFORMER,
            codec=codec,
            duration_ms=0,
            codec_tables=self.codec_tables,
        )

    @torch.inference_mode()
    def features(self, audio: Float32Array) -> Float32Array:
        """The Q-Former's output for one utterance: (tokens, width)."""
        mel, _ = mel_batch(self.edge.config, [audio])
        return np.asarray(self.edge.features(mel)[0].numpy())

    @torch.inference_mode()
    def states(self, audio: Float32Array) -> bytes:
        """The encoder's states in binary16: what a split before the Q-Former would send."""
        mel, _ = mel_batch(self.edge.config, [audio])
        return bytes(self.edge.encoder(mel)[0].half().numpy().tobytes())

    def body_bytes(self, audio: Float32Array) -> dict[str, int]:
        """The body's bytes of one request, by what is sent; PCM has 16 bits."""
        features = self.features(audio)
        return {
            "pcm": 2 * len(audio),
            "flac": len(flac(audio)),
            "encoder states": len(self.states(audio)),
            **{f"opus {kbps}": opus_packets(opus(kbps, audio)) for kbps in OPUS_KBPS},
            **{str(codec): len(self.packet(features, codec)) for codec in Codec},
        }


class Received:
    """The edge model, with features as the cloud gets them from packets.

    Of each utterance the last ``unsent`` tokens are not sent, and taken for the average one.
    """

    def __init__(self, sender: Sender, codec: Codec, unsent: int = 0) -> None:
        self.config = sender.edge.config
        self._sender, self._codec, self._unsent = sender, codec, unsent

    @torch.inference_mode()
    def __call__(self, mel: Tensor, frames: Tensor) -> Tensor:
        """As `esrt.model.EdgeModel.forward`."""
        edge: EdgeModel = self._sender.edge
        features = edge.features(mel, frames)
        for row, count in enumerate(frames.tolist()):
            tokens = self.config.tokens(count)
            sent = max(1, tokens - self._unsent)
            packet = self._sender.packet(features[row, :sent].numpy(), self._codec)
            decoded = wire.decode(packet, self._sender.codec_tables).features
            features[row, :sent] = torch.from_numpy(decoded)
            if self._unsent:
                features[row, sent:tokens] = torch.from_numpy(self._sender.mean)
        embeddings: Tensor = edge.mlp(features)
        return embeddings


def speech(clips: list[Float32Array], seconds: float, number: int) -> Float32Array:
    """Clips one after the other, cut to a length; by number they begin with another one."""
    place, parts, missing = number * len(clips) // _SAMPLES, [], round(seconds * SAMPLE_RATE)
    while missing > 0:
        parts.append(clips[place % len(clips)][:missing])
        missing -= len(parts[-1])
        place += 1
    return np.concatenate(parts)


def sizes(
    sender: Sender, clips: list[Float32Array], samples: int, overhead: int
) -> list[dict[str, Any]]:
    """Bytes of whole requests, medians over samples of speech, by way of sending and length."""
    rows = []
    for seconds in track(SECONDS, description="encoding", transient=True):
        totals: dict[str, list[int]] = defaultdict(list)
        for number in range(samples):
            parts = [sender.body_bytes(part) for part in _parts(speech(clips, seconds, number))]
            for name in parts[0]:
                totals[name].append(sum(overhead + part[name] for part in parts))
        for name, found in totals.items():
            size = statistics.median(found)
            row = {"sent": name, "seconds": seconds, "bytes": round(size)}
            rows.append(row | {"kbps": round(8 * size / seconds / 1000, 3)})
    return rows


def _parts(audio: Float32Array) -> Iterable[Float32Array]:
    length = PART_SECONDS * SAMPLE_RATE
    return (audio[start : start + length] for start in range(0, len(audio), length))


def coders(sender: Sender, clips: list[Float32Array], samples: int) -> dict[str, float]:
    """Bytes of the default codec's integers for 5 s, means: its own coder beside general ones.

    ``entropy`` is what its tables promise. The others get a byte for each integer that is written,
    in the order of the packet.
    """
    if sender.codec_tables is None:
        return {}
    rung, found = sender.codec_tables.by_codec[DEFAULT], []
    for number in range(samples):
        features = sender.features(speech(clips, 5, number))
        integers = rung.quantize(features)
        symbols = rung.ordered(integers)
        written = b"".join(part.astype(np.int8).tobytes() for part in symbols)
        bits = 0.0
        for part, table in zip(symbols, rung.frequencies, strict=True):
            bits -= float(np.log2(table[part + len(table) // 2] / 2**FREQUENCY_BITS).sum())
        found.append(
            {
                "entropy": bits / 8,
                "ans": len(rung.write(integers)),
                "zstandard": len(zstandard.compress(written, 22)),
                "deflate": len(zlib.compress(written, 9, wbits=-15)),
                "lzma": len(lzma.compress(written, lzma.FORMAT_ALONE)),
            }
        )
    return {name: round(statistics.mean(one[name] for one in found), 1) for name in found[0]}


def codec_times(
    sender: Sender, clips: list[Float32Array], rounds: int
) -> dict[str, dict[str, float]]:
    """Milliseconds on one core to encode and to decode a packet of `PART_SECONDS`, medians."""
    features = sender.features(speech(clips, PART_SECONDS, 0))
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


def quality(
    checkpoint: Checkpoint, sender: Sender, corpus: Corpus, directions: int | None
) -> dict[str, dict[str, Any]]:
    """Scores of the split by what is sent; ``pcm`` is the unsplit model on the audio itself."""
    decoder = Gemma3ForCausalLM.from_pretrained(checkpoint.decoder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.decoder)
    run = partial(translate, decoder=decoder, tokenizer=tokenizer, corpus=corpus)
    runs: dict[str, Callable[[], Any]] = {"pcm": partial(run, sender.edge, directions=directions)}
    for codec in Codec:
        runs[str(codec)] = partial(run, Received(sender, codec), directions=directions)
    for unsent in UNSENT:
        edge = Received(sender, DEFAULT, unsent)
        runs[f"{DEFAULT}, {unsent} unsent"] = partial(run, edge, directions=directions)
    for kbps in OPUS_KBPS:
        heard = partial(through_opus, kbps)
        runs[f"opus {kbps}"] = partial(run, sender.edge, directions=directions, sound=heard)
    return {name: score(one()) for name, one in track(runs.items(), "translating", total=len(runs))}


def bars(
    rows: list[dict[str, Any]],
    scores: dict[str, dict[str, Any]],
    times: dict[str, dict[str, float]],
) -> list[Threshold]:
    """The rates at 5 s and longer, what they lose, and what the default codec costs."""
    found = []
    for name, codec, kbps in (
        ("default", DEFAULT, DEFAULT_KBPS),
        ("stretch", STRETCH, STRETCH_KBPS),
    ):
        rates = [row["kbps"] for row in rows if row["sent"] == codec and row["seconds"] >= 5]
        found.append(Threshold(f"{name}_kbps_5s", max(rates), kbps))
        if scores:
            loss = round(scores["pcm"]["chrf"] - scores[codec]["chrf"], 2)
            found.append(Threshold(f"{name}_chrf_loss", loss, LOSS))
    found.append(Threshold("encode_ms", times[DEFAULT]["encode"], CODEC_MS))
    found.append(Threshold("decode_ms", times[DEFAULT]["decode"], CODEC_MS))
    return found


def plot(record: BenchmarkReport, path: Path, beside: Path | None = None) -> None:
    """Draw quality over rate at 5 s, as a PNG; the codecs also of another record's file."""
    codecs = [str(codec) for codec in Codec]
    own = record.rows, record.more["quality"]
    lines = [
        (*own, "features", codecs, 8),
        (*own, "Opus, then the unsplit model", [f"opus {kbps}" for kbps in OPUS_KBPS], -14),
        (*own, "16-bit PCM", ["pcm"], 8),
    ]
    if beside:
        other = json.loads(beside.read_text("utf-8"))
        lines.append((other["rows"], other["quality"], f"features, {beside.stem}", codecs, 8))
    figure = Figure(figsize=(7, 4.5))
    axes = figure.subplots()
    for rows, scores, label, names, above in lines:
        rates = {row["sent"]: row["kbps"] for row in rows if row["seconds"] == 5}
        points = sorted((rates[name], scores[name]["chrf"], name) for name in names)
        axes.plot([one[0] for one in points], [one[1] for one in points], "o-", label=label)
        for rate, chrf, text in points:
            axes.annotate(
                text, (rate, chrf), textcoords="offset points", xytext=(-6, above), fontsize=8
            )
    axes.set_xscale("log")
    axes.set_xlabel("kbit/s of whole requests, 5 s of speech")
    axes.set_ylabel("chrF of the translation")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    save(figure, path)


def main(
    json_file: Annotated[Path, typer.Option("--json", help="Write the figures here.")],
    report: Annotated[
        Path | None, typer.Option(help="Draw quality over rate as bandwidth.png in this folder.")
    ] = None,
    beside: Annotated[
        Path | None, typer.Option(help="Draw the codecs of this record, of another model, too.")
    ] = None,
    checkpoint: Annotated[
        Path, typer.Option(help="Checkpoint folder.", show_default="the bundled esrt-nano")
    ] = bundled.CHECKPOINT,
    corpus: Annotated[Path, typer.Option(help="Folder of the corpus.")] = CORPUS,
    directions: Annotated[
        int, typer.Option(min=1, help="Languages that each utterance is translated into.")
    ] = 3,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few samples of speech, and no quality.")
    ] = False,
) -> None:
    """Measure bytes, time and quality of every codec, beside PCM, FLAC and Opus."""
    opened = open_checkpoint(checkpoint)
    held_out = None if quick else load(corpus, "test").only(opened.config.languages)
    sender, samples, overhead = Sender(opened), 2 if quick else _SAMPLES, request_overhead()
    clips = [read_audio(file).samples for file in sorted(bundled.SAMPLES.glob("*.flac"))]
    rows = sizes(sender, clips, samples, overhead)
    times = codec_times(sender, clips, 20 if quick else 200)
    scores = {} if held_out is None else quality(opened, sender, held_out, directions)
    record = BenchmarkReport(
        settings={
            "fingerprint": opened.fingerprint,
            "directions": directions,
            "samples": samples,
            "part_seconds": PART_SECONDS,
            "request_overhead_bytes": overhead,
        },
        rows=rows,
        bars=bars(rows, scores, times),
        tools=TOOLS,
        more={
            "ms": times,
            "coders_bytes_5s": coders(sender, clips, len(clips)),
            "quality": scores,
        },
    )
    record.write(json_file)
    if report and scores:
        plot(record, report / "bandwidth.png", beside)
    _print(record)


def _print(record: BenchmarkReport) -> None:
    table = Table("sent", *(f"{seconds} s" for seconds in SECONDS), "chrF", "exact %")
    for name in dict.fromkeys(row["sent"] for row in record.rows):
        rates = [f"{row['kbps']:.2f}" for row in record.rows if row["sent"] == name]
        found = record.more["quality"].get(name, {})
        table.add_row(name, *rates, str(found.get("chrf", "")), str(found.get("exact", "")))
    Console().print("kbit/s of whole HTTP requests, by the speech's length", table)
    for bar in record.bars:
        print(bar)


if __name__ == "__main__":
    with exit_on_error():
        typer.run(main)
