"""Generator of the front end's golden vectors: recording, speech, log-mel, features, packet.

Speech and log-mel are computed by the program in docs/front-end.md, which shares no code with
`esrt.speech` and `esrt.features`; the features by the bundled esrt-nano in torch, from the log-mel
of 128 bins. Both calculate in float64 and are rounded to float32.
`python -m tests.golden.make_front_end` writes tests/golden/front_end/ again; the output is always
the same.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from esrt import bundled, wire
from esrt.arrays import Float32Array
from esrt.checkpoint import Checkpoint, open_checkpoint
from esrt.speech import DEFAULT_SETTINGS
from esrt.wire import Codec, Split

FOLDER = Path(__file__).parent / "front_end"
PAGE = bundled.REPOSITORY / "docs/front-end.md"
FULL_SCALE = 32768
RATE = 16_000

Pcm = NDArray[np.int16]


def program() -> dict[str, Any]:
    """Names that the page's program defines."""
    code = re.search(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert code
    names: dict[str, Any] = {}
    exec(compile(code[1], PAGE, "exec"), names)
    return names


def recordings() -> dict[str, tuple[Pcm, float | None]]:
    """Audio of each vector, and the length that it is padded to."""
    speech, _ = soundfile.read(bundled.SAMPLES / "fra-1.flac", dtype="int16")
    loud = speech[7_000:]
    quiet = np.rint(loud[:4_000] * (40 / np.abs(loud[:4_000]).max())).astype(np.int16)
    return {
        "speech": (speech, None),
        "odd-length": (loud[:8_777], None),  # ends in the middle of a word and of a block
        "shortest": (loud[:1_280], None),
        "quiet": (quiet, None),  # peak of -58 dBFS: the smallest power, 1e-10, takes effect
        "padded": (loud[:5_000], 0.4),
    }


def recordings_with_silence() -> dict[str, Pcm]:
    """Recordings whose speech has to be found."""
    speech, _ = soundfile.read(bundled.SAMPLES / "fra-1.flac", dtype="int16")
    words = speech[7_000:13_000] / FULL_SCALE
    random = np.random.default_rng(0)
    room = 0.001 * random.standard_normal(16_000)
    room[5_000:11_000] += words
    knock = np.zeros(12_345)
    knock[1_000:1_200] = 0.5 * random.standard_normal(200)  # too short to count
    knock[4_000:10_000] += words / 5
    return {
        "room": _pcm(room / 5 + 0.1),  # quiet, with noise and an offset
        "knock": _pcm(knock),
        "clipped": _pcm(np.clip(8 * words, -1, 1)),  # speech from the first sample to the last
    }


def _pcm(audio: NDArray[np.float64]) -> Pcm:
    return np.rint(np.clip(FULL_SCALE * audio, -FULL_SCALE, FULL_SCALE - 1)).astype(np.int16)


@torch.inference_mode()
def files() -> Mapping[str, bytes]:
    """Content of every file in the folder, by name."""
    checkpoint = open_checkpoint(bundled.CHECKPOINT)
    names = program()
    scaled_pcm = names["scaled_pcm"]
    encoder = checkpoint.edge_model().double().eval()
    # torch's fused attention takes no float32 mask beside float64 states.
    encoder.encoder.set_attn_implementation("eager")
    encoder.q_former.qformer.set_attn_implementation("eager")
    contents: dict[str, bytes] = {}
    vectors = []
    for name, (pcm, padded_seconds) in recordings().items():
        audio = scaled_pcm(pcm.tolist())
        multiple = checkpoint.config.frame_multiple
        power = names["power_spectrum"](names["padded"](audio, multiple, padded_seconds))
        mel_80, mel = (
            np.array(names["scaled"](names["mel_spectrum"](power, bins))) for bins in (80, 128)
        )
        features = encoder.features(torch.from_numpy(mel[None])).numpy()[0]
        vector, stored = _vector(
            *(name, pcm, padded_seconds, mel, mel_80, features.astype(np.float32)), checkpoint
        )
        vectors.append(vector)
        contents |= stored
    settings = msgspec.to_builtins(DEFAULT_SETTINGS)
    found = []
    for name, pcm in recordings_with_silence().items():
        audio = scaled_pcm(pcm.tolist())
        start, stop, offset, gain = names["find_speech"](audio, settings)
        speech = np.array(names["speech"](audio, settings), "<f4")
        recording_file, speech_file = f"{name}.recording.s16le", f"{name}.speech.f32le"
        contents |= {recording_file: pcm.astype("<i2").tobytes(), speech_file: speech.tobytes()}
        found.append(
            {
                "name": name,
                "recording": {"file": recording_file, "shape": [len(pcm)]},
                "speech": {"file": speech_file, "shape": [len(speech)]},
                "start": start,
                "stop": stop,
                "offset": offset,
                "gain": gain,
            }
        )
    index = {
        "model": checkpoint.config.name,
        "fingerprint": checkpoint.fingerprint,
        "split": Split.QFORMER,
        "sample_rate": RATE,
        "frame_multiple": checkpoint.config.frame_multiple,
        "vectors": vectors,
        "speech_settings": settings,
        "recordings": found,
    }
    return {**contents, "index.json": (json.dumps(index, indent=1) + "\n").encode()}


def _vector(
    name: str,
    pcm: Pcm,
    padded_seconds: float | None,
    mel: NDArray[np.float64],
    mel_80: NDArray[np.float64],
    features: Float32Array,
    checkpoint: Checkpoint,
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Entry of the index, and the vector's files."""
    duration_ms = round(1000 * len(pcm) / RATE)
    stored = {
        f"{name}.audio.s16le": pcm.astype("<i2").tobytes(),
        f"{name}.log-mel.f32le": mel.astype("<f4").tobytes(),
        f"{name}.log-mel-80.f32le": mel_80.astype("<f4").tobytes(),
        f"{name}.features.f32le": features.astype("<f4").tobytes(),
        f"{name}.fp16.bin": wire.encode(
            features,
            fingerprint=checkpoint.fingerprint,
            split=Split.QFORMER,
            codec=Codec.FP16,
            duration_ms=duration_ms,
        ),
    }
    audio_file, mel_file, mel_80_file, features_file, packet_file = stored
    entry = {
        "name": name,
        "padded_seconds": padded_seconds,
        "duration_ms": duration_ms,
        "audio": {"file": audio_file, "shape": [len(pcm)]},
        "log_mel": {"file": mel_file, "shape": list(mel.shape)},
        "log_mel_80": {"file": mel_80_file, "shape": list(mel_80.shape)},
        "features": {"file": features_file, "shape": list(features.shape)},
        "packet": {"file": packet_file, "codec": Codec.FP16},
    }
    return entry, stored


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file_name, content in files().items():
        (FOLDER / file_name).write_bytes(content)
