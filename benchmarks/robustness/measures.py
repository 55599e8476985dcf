"""Translation of recordings as a user makes them: file, edge runtime, gateway."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zlib import crc32

import numpy as np
import soundfile

from benchmarks.robustness.conditions import Condition
from benchmarks.robustness.recording import FLAC
from edge_runtime import Artifact, Client, encode_speech, read_speech
from edge_runtime.report import warnings_for
from esrt.arrays import Float32Array
from esrt.bundled import SAMPLES
from esrt.errors import AudioError
from esrt.languages import direction

# Languages that the sounds without speech are said to be in.
_SPOKEN = ("eng", "deu", "fin", "kor")


class Outcome(StrEnum):
    """Outcome of one recording, compared with the clip as it is."""

    KEPT = "kept"
    CORRECTED = "corrected"
    CAUTIONED = "cautioned"
    REFUSED = "refused"
    SILENT = "silent failure"


@dataclass(frozen=True)
class Clip:
    """A bundled clip, and the direction that it is translated in: into English, English to German.

    Attributes:
        name: file name without its ending.
        samples: mono, 16 kHz, (samples,).
        source: code of the language spoken.
        target: code of the language to translate into.
        reference: right translation.
    """

    name: str
    samples: Float32Array
    source: str
    target: str
    reference: str


@dataclass(frozen=True)
class Answer:
    """Text and warnings that a user gets for a file.

    Attributes:
        translation: text; ``None`` if the file was refused before anything was sent.
        warnings: warnings beside the text.
    """

    translation: str | None
    warnings: tuple[str, ...] = ()

    def outcome(self, kept: str | None = None, right: str | None = None) -> Outcome:
        """Outcome, given the translation of the clip as it is, and the right one, of speech."""
        if self.translation is None:
            return Outcome.REFUSED
        if self.translation == kept:
            return Outcome.KEPT
        if self.translation == right:
            return Outcome.CORRECTED
        return Outcome.CAUTIONED if self.warnings else Outcome.SILENT


class Phone:
    """The edge runtime with one artifact and one gateway."""

    def __init__(self, artifact: Artifact, client: Client) -> None:
        self._front_end = artifact.manifest.front_end
        self._backend, self._tables = artifact.backend(), artifact.codec_tables()
        self._client = client

    def translate(self, file: Path, source: str, target: str) -> Answer:
        """Translate a file as ``edge_runtime translate`` does."""
        try:
            speech = read_speech(file, self._front_end)
            packet = encode_speech(speech, self._backend, codec_tables=self._tables).packet
        except AudioError as error:
            return Answer(None, (str(error),))
        done = self._client.translate(packet, *direction(source, target))
        return Answer(done.translation, tuple(warnings_for(file, speech.recording, done)))


def read_clips(folder: Path = SAMPLES) -> list[Clip]:
    """Read the bundled clips and their translations."""
    clips = []
    for entry in json.loads((folder / "index.json").read_text("utf-8")):
        samples, _ = soundfile.read(folder / entry["file"], dtype="float32")
        source = entry["language"]
        target = "deu" if source == "eng" else "eng"
        name = Path(entry["file"]).stem
        clips.append(Clip(name, samples, source, target, entry["texts"][target]))
    return clips


def measure(
    phone: Phone, clips: Sequence[Clip], conditions: Iterable[Condition]
) -> list[dict[str, Any]]:
    """Rows of the report: the clips as they are, then each condition."""
    with TemporaryDirectory() as folder:
        name = Path(folder) / "recording"
        clean = {
            clip.name: phone.translate(FLAC(clip.samples, name), clip.source, clip.target)
            for clip in clips
        }
        rows = [_row(Condition("as they are", "", lambda audio, _: audio), clips, clean, clean)]
        for condition in conditions:
            answers = {}
            for clip in clips:
                random = np.random.default_rng(crc32(f"{condition.name} {clip.name}".encode()))
                file = condition.recorder(condition.change(clip.samples, random), name)
                answers[clip.name] = phone.translate(file, clip.source, clip.target)
            rows.append(_row(condition, clips, answers, clean))
    return rows


def measure_sounds(
    phone: Phone, sounds: Iterable[tuple[str, Float32Array]]
) -> list[dict[str, Any]]:
    """Rows of the sounds without speech: a text without a caution is a silent failure."""
    counts: dict[str, dict[Outcome, int]] = {}
    with TemporaryDirectory() as folder:
        for number, (kind, samples) in enumerate(sounds):
            file = FLAC(samples, Path(folder) / "recording")
            source = _SPOKEN[number % len(_SPOKEN)]
            answer = phone.translate(file, source, "deu" if source == "eng" else "eng")
            found = counts.setdefault(kind, dict.fromkeys(Outcome, 0))
            found[answer.outcome()] += 1
    possible = (Outcome.CAUTIONED, Outcome.REFUSED, Outcome.SILENT)
    return [
        {"sound": kind, **{_key(one): found[one] for one in possible}}
        for kind, found in counts.items()
    ]


def _row(
    condition: Condition,
    clips: Sequence[Clip],
    answers: dict[str, Answer],
    clean: dict[str, Answer],
) -> dict[str, Any]:
    outcomes = {
        clip.name: answers[clip.name].outcome(clean[clip.name].translation, clip.reference)
        for clip in clips
    }
    found = list(outcomes.values())
    return {
        "condition": condition.name,
        "group": condition.group,
        **{_key(one): found.count(one) for one in Outcome},
        "right": sum(answers[clip.name].translation == clip.reference for clip in clips),
        "needless_cautions": sum(
            outcomes[name] == Outcome.KEPT and bool(answer.warnings)
            for name, answer in answers.items()
        ),
        "outcomes": outcomes,
        "silent_failures": {
            name: answers[name].translation
            for name, outcome in outcomes.items()
            if outcome == Outcome.SILENT
        },
    }


def _key(outcome: Outcome) -> str:
    return outcome.value.split()[0]
