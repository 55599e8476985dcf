"""Output of the commands: text as it arrives, a table of figures, or one JSON object."""

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_runtime.answer import Done
from edge_runtime.audio import MIN_CLEAR_RATE, Audio
from edge_runtime.encoder import Encoded
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
    if done is not None and not done.translation.strip():
        warnings.append(
            "the decoder wrote no translation; the speech may be outside the model's domain."
        )
    return warnings


def measurements(
    audio: Audio, encoded: Encoded, done: Done | None = None, *, warnings: Sequence[str] = ()
) -> dict[str, Any]:
    """An answer and its measurements as a JSON object.

    The answer has the names of the HTTP interface. Beside it stand the client's own measurements:
    ``audio`` and ``packet`` with their sizes, and ``client_ms``, the milliseconds of each stage on
    the device and of the network, in order.

    Args:
        audio: the speech.
        encoded: the packet.
        done: the answer; its fields become part of the object.
        warnings: sentences for the object's ``warnings``.
    """
    times = dataclasses.asdict(encoded.times)
    result: dict[str, Any] = {
        "audio": {"seconds": audio.seconds, "pcm_bytes": audio.pcm_bytes},
        "packet": {
            "bytes": len(encoded.packet),
            "codec": str(encoded.codec),
            "tokens": encoded.tokens,
            "width": encoded.width,
            "times_smaller": audio.pcm_bytes / len(encoded.packet),
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
        ("audio", f"{audio['pcm_bytes']:,} bytes", f"{audio['seconds']:.2f} s, 16-bit 16 kHz"),
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


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f} ms"
