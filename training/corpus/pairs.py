"""Parallel speech for speaker invariance.

Each utterance is spoken by one of many voices and by the reference voice.

The trained encoder learns to give every voice the features of the reference voice. This is the
teacher disentanglement of ContentVec (Qian et al., arXiv 2204.09224) with exactly parallel speech.
"""

from dataclasses import replace
from pathlib import Path
from random import Random

from training.corpus.build import PARALLEL_AUDIO, SEED, Corpus, load, sentences, write_split
from training.corpus.speech import VARIANTS, Utterance, make_utterance, stretch
from training.corpus.voices import builtin_voice, draw_voice, reference_voice, speak_all

PAIRS = "pairs"
VOICES, SENTENCES = 800, 1200
# Share of the speech by espeak-ng's own voices, the voices of the training split.
_BUILTIN_SHARE = 0.25


def build_pairs(folder: Path, voices: int = VOICES, count: int = SENTENCES) -> None:
    """Write the pairs to ``folder/pairs``, whole or not at all.

    Raises:
        SpeechError: espeak-ng is not installed, or failed.
        CheckFailed: espeak-ng ignored a voice file.
    """
    random = Random(f"{SEED} {PAIRS}")
    drawn = {f"voice{number}": draw_voice(random) for number in range(voices)}
    builtin = {variant: builtin_voice(variant) for variant in VARIANTS}
    names, training = list(drawn), sentences("train")
    spoken = [
        (
            sentence,
            [_draw_utterance(code, text, names, random) for code, text in sentence.texts.items()],
        )
        for sentence in random.sample(training, min(count, len(training)))
    ]
    utterances = [utterance for _, group in spoken for utterance in group]
    parallel = [
        replace(utterance, variant=_reference_name(utterance.variant), pitch=50)
        for utterance in utterances
    ]
    files = drawn | builtin
    files |= {_reference_name(name): reference_voice(text) for name, text in files.items()}
    audio = speak_all([*utterances, *parallel], files)
    original, reference = audio[: len(utterances)], audio[len(utterances) :]
    # Voices differ in pace by a percent or less.
    parallel_audio = [
        stretch(audio, len(own)) for audio, own in zip(reference, original, strict=True)
    ]
    write_split(folder / PAIRS, spoken, original, parallel_audio)


def load_pairs(folder: Path) -> Corpus:
    """Load the pairs as a split with parallel audio; build them if they are missing."""
    if not (folder / PAIRS / PARALLEL_AUDIO).exists():
        build_pairs(folder)
    return load(folder, PAIRS)


def _draw_utterance(language: str, text: str, voices: list[str], random: Random) -> Utterance:
    utterance = make_utterance(language, text, random)
    if random.random() < _BUILTIN_SHARE:
        return utterance
    return replace(utterance, variant=random.choice(voices))


def _reference_name(variant: str) -> str:
    """Make the name of the reference voice with the rhythm of a variant."""
    return f"{variant}-reference"
