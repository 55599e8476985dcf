"""Output of the commands: text as it arrives, a table of figures, or one JSON object."""

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_runtime.answer import Done
from edge_runtime.audio import MIN_CLEAR_RATE, Audio
from edge_runtime.encoder import Encoded
from edge_runtime.speech import Speech
from esrt.errors import printable
from esrt.prompt import TextDelta

# Times since the start of sending, and times of one stage whose name says little.
_NOTES = {
    "pack": "features to packet",
    "network": "upload, queue and download",
    "first_token": "since sending",
    "done": "since sending",
}


def warnings_for(file: Path, audio: Audio, done: Done | None = None) -> list[str]:
    """Warnings about an answer, one sentence each.

    Args:
        file: the audio file, for the message.
        audio: the audio in the file.
        done: the answer, if there is one.
    """
    name = os.fsencode(file).decode(errors="replace")  # JSON cannot hold undecodable bytes
    warnings = [f"{name}: {warning}" for warning in audio.warnings]
    if audio.rate < MIN_CLEAR_RATE:
        warnings.append(
            f"{name} is sampled at {audio.rate} Hz; below {MIN_CLEAR_RATE} Hz most translations"
            " are wrong. Record at a higher rate."
        )
    if done is not None and done.finish == "length":
        warnings.append("the answer was cut at the maximum length; send shorter speech.")
    if done is not None and done.finish == "repetition":
        warnings.append("the answer was cut because the text repeated itself.")
    if done is not None and is_uncertain(done.confidence):
        warnings.append(
            "the model is uncertain of this answer: its confidence is"
            f" {lowest_confidence(done.confidence):.3f}, below {done.confidence['threshold']:g}."
            " Listen to the recording, or record again in a quieter place."
        )
    if done is not None and not done.translation.strip():
        warnings.append(
            "the decoder wrote no translation; the speech may be outside the model's domain."
        )
    return warnings


def lowest_confidence(confidence: Mapping[str, float | None]) -> float | None:
    """The lower confidence of transcript and translation; ``None`` without any."""
    parts = [confidence.get("transcript"), confidence.get("translation")]
    return min((part for part in parts if part is not None), default=None)


def is_uncertain(confidence: Mapping[str, float | None]) -> bool:
    """Whether an answer's confidence is below the threshold of the model's evaluation."""
    lowest, threshold = lowest_confidence(confidence), confidence.get("threshold")
    return lowest is not None and threshold is not None and lowest < threshold


def measurements(
    speech: Speech, encoded: Encoded, done: Done | None = None, *, warnings: Sequence[str] = ()
) -> dict[str, Any]:
    """An answer and its measurements as a JSON object.

    The answer has the names of the HTTP interface. Beside it stand the client's own measurements:
    ``audio`` and ``packet`` with their sizes (``pcm_bytes`` is that of the speech), and
    ``client_ms``, the milliseconds of each stage on the device and of the network, in order.

    Args:
        speech: the speech.
        encoded: the packet.
        done: the answer; its fields become part of the object.
        warnings: sentences for the object's ``warnings``.
    """
    times = {"find_speech": speech.search_ms, **dataclasses.asdict(encoded.times)}
    result: dict[str, Any] = {
        "audio": {
            "recording_seconds": speech.recording.seconds,
            "speech_seconds": speech.seconds,
            "pcm_bytes": speech.pcm_bytes,
        },
        "packet": {
            "bytes": len(encoded.packet),
            "codec": str(encoded.codec),
            "tokens": encoded.tokens,
            "width": encoded.width,
            "times_smaller": speech.pcm_bytes / len(encoded.packet),
        },
        "client_ms": times,
        "warnings": list(warnings),
    }
    if done is not None:
        answer = dataclasses.asdict(done)
        times.update(answer.pop("client_ms"))
        result = {**answer, **result}
    return result


def print_measurements(measurements: dict[str, Any]) -> None:
    """Print the measurements as a compact table, with colours only on a terminal."""
    audio, packet = measurements["audio"], measurements["packet"]
    rows = [
        (
            "speech",
            f"{audio['pcm_bytes']:,} bytes",
            f"{audio['speech_seconds']:.2f} s of {audio['recording_seconds']:.2f} s, 16-bit 16 kHz",
        ),
        (
            "packet",
            f"{packet['bytes']:,} bytes",
            f"{packet['times_smaller']:.1f} times smaller,"
            f" {packet['tokens']} x {packet['width']} {packet['codec']}",
        ),
    ]
    rows += [
        (
            stage.replace("log_mel", "log-mel").replace("_", " "),
            _milliseconds(value),
            _NOTES.get(stage, ""),
        )
        for stage, value in measurements["client_ms"].items()
    ]
    if "confidence" in measurements:
        rows.append(_confidence_row(measurements["confidence"]))
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold")
        table.add_column(justify="right")
        table.add_column(style="dim")
        for row in rows:
            table.add_row(*row)
        Console(highlight=False).print(table)
    else:
        for name, value, note in rows:
            print(f"{name:<12}{value:>16}  {note}".rstrip())


class LivePrinter:
    """Prints transcript and translation piece by piece, each part on a line of its own."""

    def __init__(self) -> None:
        self._part: str | None = None

    def show(self, delta: TextDelta) -> None:
        """Print one more piece of text."""
        if delta.part != self._part:
            self.end()
            self._part = delta.part
            print(f"{delta.part + ':':<14}", end="")
        print(printable(delta.text), end="", flush=True)

    def end(self) -> None:
        """End the line that is being written, if there is one."""
        if self._part is not None:
            print(flush=True)
        self._part = None


def _confidence_row(confidence: dict[str, float | None]) -> tuple[str, str, str]:
    lowest = lowest_confidence(confidence)
    threshold = confidence.get("threshold")
    note = "" if threshold is None else f"caution below {threshold:g}"
    return "confidence", "-" if lowest is None else f"{lowest:.3f}", note


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f} ms"
