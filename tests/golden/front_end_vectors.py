"""Reader of the front end's golden vectors, as docs/front-end.md describes their files."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esrt.arrays import Float32Array
from esrt.speech import SpeechBounds

FOLDER = Path(__file__).parent / "front_end"
INDEX: dict[str, Any] = json.loads((FOLDER / "index.json").read_text("utf-8"))


@dataclass(frozen=True, eq=False)
class Vector:
    """Audio, and the results of each stage."""

    name: str
    padded_seconds: float | None
    duration_ms: int
    pcm: NDArray[np.int16]
    log_mel: Float32Array
    log_mel_80: Float32Array
    features: Float32Array
    packet: bytes

    @property
    def audio(self) -> Float32Array:
        """Samples in [-1, 1]."""
        return self.pcm.astype(np.float32) / 32768

    @property
    def log_mels(self) -> list[Float32Array]:
        """Log-mels of every number of bins."""
        return [self.log_mel_80, self.log_mel]


@dataclass(frozen=True, eq=False)
class Recording:
    """A recording, and the speech in it."""

    name: str
    pcm: NDArray[np.int16]
    speech: Float32Array
    bounds: SpeechBounds

    @property
    def audio(self) -> Float32Array:
        """Samples in [-1, 1]."""
        return self.pcm.astype(np.float32) / 32768


def _array(entry: dict[str, Any], dtype: str) -> Any:
    return np.fromfile(FOLDER / entry["file"], dtype).reshape(entry["shape"])


VECTORS = [
    Vector(
        entry["name"],
        entry["padded_seconds"],
        entry["duration_ms"],
        _array(entry["audio"], "<i2"),
        _array(entry["log_mel"], "<f4"),
        _array(entry["log_mel_80"], "<f4"),
        _array(entry["features"], "<f4"),
        (FOLDER / entry["packet"]["file"]).read_bytes(),
    )
    for entry in INDEX["vectors"]
]
RECORDINGS = [
    Recording(
        entry["name"],
        _array(entry["recording"], "<i2"),
        _array(entry["speech"], "<f4"),
        SpeechBounds(entry["start"], entry["stop"], entry["offset"], entry["gain"]),
    )
    for entry in INDEX["recordings"]
]
