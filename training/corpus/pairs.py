"""The training sentences by many voices, and each time by one voice at the same pace.

What the encoder makes of the one voice is what it is to make of all: the disentanglement in
teachers of ContentVec (Qian et al., arXiv 2204.09224), with speech that is exactly parallel.
"""

from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import soxr

from training.corpus.build import SEED, Corpus, load, sentences, write
from training.corpus.speech import VARIANTS, Samples, Utterance, make_utterance
from training.corpus.voices import draw_voice, own_voice, speak_all, with_rhythm_of

PAIRS = "pairs"
VOICES, SENTENCES = 800, 1200
# The voice that all others are to be like: of espeak-ng's, the plainest among those of training.
_ONE = "m3"
# How much of the speech is by espeak-ng's own voices, as in the rest of the corpus.
_OWN_SHARE = 0.25


def build_pairs(folder: Path, voices: int = VOICES, count: int = SENTENCES) -> None:
    """Write the pairs to ``folder/pairs``, whole or not at all.

    Raises:
        SpeechError: espeak-ng is not installed.
        CheckFailed: espeak-ng did not take a voice file.
    """
    random = Random(f"{SEED} {PAIRS}")
    drawn = {f"voice{number}": draw_voice(random) for number in range(voices)}
    own = {variant: own_voice(variant) for variant in VARIANTS}
    chosen = sentences("train")
    said = [
        (
            sentence,
            [_cast(code, text, list(drawn), random) for code, text in sentence.texts.items()],
        )
        for sentence in random.sample(chosen, min(count, len(chosen)))
    ]
    everything = [utterance for _, group in said for utterance in group]
    parallel_audio = [replace(one, variant=_twin(one.variant), pitch=50) for one in everything]
    files = drawn | own
    files |= {_twin(name): with_rhythm_of(text, _ONE) for name, text in files.items()}
    audio = speak_all([*everything, *parallel_audio], files)
    first, second = audio[: len(everything)], audio[len(everything) :]
    write(
        folder / PAIRS, said, first, [_as_long(*pair) for pair in zip(second, first, strict=True)]
    )


def load_pairs(folder: Path) -> Corpus:
    """The pairs, as a split with twins; builds them first where that has not been done."""
    if not (folder / PAIRS).exists():
        build_pairs(folder)
    return load(folder, PAIRS)


def _cast(language: str, text: str, voices: list[str], random: Random) -> Utterance:
    utterance = make_utterance(language, text, random)
    if random.random() < _OWN_SHARE:
        return utterance
    return replace(utterance, variant=random.choice(voices))


def _twin(variant: str) -> str:
    return f"{variant}-twin"


def _as_long(audio: Samples, model: Samples) -> Samples:
    """Stretch by the percent or less by which voices differ in pace; pitch goes with it."""
    stretched = soxr.resample(audio, len(audio), len(model))[: len(model)]
    return np.pad(stretched, (0, len(model) - len(stretched)))
