"""Generator of the front end's golden vectors: 16-bit audio, log-mel, features, packet.

The log-mel is computed by the program in docs/front-end.md, which shares no code with
`esrt.features`; the features by the bundled esrt-nano in torch. Both calculate in float64 and are
rounded to float32. `python -m tests.golden.make_front_end` writes tests/golden/front_end/ again;
the output is always the same.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from esrt import bundled, wire
from esrt.arrays import Float32Array
from esrt.checkpoint import Checkpoint, open_checkpoint
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


@torch.inference_mode()
def files() -> Mapping[str, bytes]:
    """Content of every file in the folder, by name."""
    checkpoint = open_checkpoint(bundled.CHECKPOINT)
    log_mel = program()["log_mel"]
    encoder = checkpoint.edge_model().double().eval()
    # torch's fused attention takes no float32 mask beside float64 states.
    encoder.encoder.set_attn_implementation("eager")
    encoder.q_former.qformer.set_attn_implementation("eager")
    contents: dict[str, bytes] = {}
    vectors = []
    for name, (pcm, padded_seconds) in recordings().items():
        mel = np.array(log_mel(pcm.tolist(), checkpoint.config.frame_multiple, padded_seconds))
        features = encoder.features(torch.from_numpy(mel[None])).numpy()[0]
        vector, stored = _vector(
            *(name, pcm, padded_seconds, mel.astype(np.float32), features.astype(np.float32)),
            checkpoint,
        )
        vectors.append(vector)
        contents |= stored
    index = {
        "model": checkpoint.config.name,
        "fingerprint": checkpoint.fingerprint,
        "split": Split.QFORMER,
        "sample_rate": RATE,
        "frame_multiple": checkpoint.config.frame_multiple,
        "vectors": vectors,
    }
    return {**contents, "index.json": (json.dumps(index, indent=1) + "\n").encode()}


def _vector(
    name: str,
    pcm: Pcm,
    padded_seconds: float | None,
    mel: Float32Array,
    features: Float32Array,
    checkpoint: Checkpoint,
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Entry of the index, and the vector's files."""
    duration_ms = round(1000 * len(pcm) / RATE)
    stored = {
        f"{name}.audio.s16le": pcm.astype("<i2").tobytes(),
        f"{name}.log-mel.f32le": mel.astype("<f4").tobytes(),
        f"{name}.features.f32le": features.astype("<f4").tobytes(),
        f"{name}.fp16.bin": wire.encode(
            features,
            fingerprint=checkpoint.fingerprint,
            split=Split.QFORMER,
            codec=Codec.FP16,
            duration_ms=duration_ms,
        ),
    }
    audio_file, mel_file, features_file, packet_file = stored
    entry = {
        "name": name,
        "padded_seconds": padded_seconds,
        "duration_ms": duration_ms,
        "audio": {"file": audio_file, "shape": [len(pcm)]},
        "log_mel": {"file": mel_file, "shape": list(mel.shape)},
        "features": {"file": features_file, "shape": list(features.shape)},
        "packet": {"file": packet_file, "codec": Codec.FP16},
    }
    return entry, stored


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file_name, content in files().items():
        (FOLDER / file_name).write_bytes(content)
