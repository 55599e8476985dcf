"""What a command tells its reader: text as it arrives, a table of figures, or one JSON object."""

import dataclasses
import sys
from typing import Any

from edge_runtime.audio import Audio
from edge_runtime.client import Done
from edge_runtime.encoder import Encoded
from edge_runtime.problems import printable
from esrt.prompt import TextDelta


def figures(audio: Audio, encoded: Encoded, done: Done | None = None) -> dict[str, Any]:
    """Everything measured, as JSON: bytes, shapes, and milliseconds of each stage in order."""
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
        "ms": times,
    }
    if done is not None:
        answer = dataclasses.asdict(done)
        times.update(answer.pop("client_ms"))
        result = {**answer, **result}
    return result


def print_figures(figures: dict[str, Any]) -> None:
    """The figures as a compact table; with colours only where a person looks at a terminal."""
    audio, packet = figures["audio"], figures["packet"]
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
        (stage.replace("log_mel", "log-mel").replace("_", " "), _milliseconds(value), "")
        for stage, value in figures["ms"].items()
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
