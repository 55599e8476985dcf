"""Plan of a corpus of many voices: who speaks which sentence in which split."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

from training.corpus.build import NON_SPEECH, OPEN
from training.corpus.corpus_settings import PAIRS, SpeechSettings, Split
from training.corpus.domain import DOMAINS, Domain
from training.corpus.engines import Engine, EngineError, PairedEngine, open_engine
from training.corpus.engines.human import Human
from training.corpus.splits import draw_splits
from training.corpus.text import Sentence, Texts

_OPEN_TEXT = Path(__file__).parent / "open_text"


@dataclass(frozen=True)
class Clip:
    """An utterance to speak.

    Attributes:
        engine: name of the engine (`training.corpus.engines`).
        language: ISO 639-3 code.
        voice: name of the engine's voice.
        text: what is spoken.
        kind: kind of the sentence, `OPEN` or `NON_SPEECH`.
        texts: transcript and translations, by language.
    """

    engine: str
    language: str
    voice: str
    text: str
    kind: str
    texts: Texts


class Plan:
    """Plan by settings; the same settings give the same plan."""

    def __init__(self, settings: SpeechSettings) -> None:
        self._settings = settings
        self._domain: Domain = DOMAINS[settings.domain]
        self._engine = cache(lambda name: open_engine(name, settings.recordings))

    def clips(self, split: Split) -> dict[str, list[Clip]]:
        """Utterances of ``train``, ``validation`` or ``test``, by engine.

        Raises:
            EngineError: an engine is not installed, or recordings are missing.
        """
        planned = {
            name: self._by_engine(name, count, split)
            for name, count in self._settings.utterances[split].items()
        }
        if split == "train" and self._settings.open_sentences:
            planned.setdefault("espeak", []).extend(self._open(self._settings.open_sentences))
        return planned

    def pairs(self) -> dict[str, list[Clip]]:
        """Utterances of parallel speech, by engine: training sentences by voices of the training.

        Raises:
            EngineError: an engine is not installed, or has no reference voice.
        """
        for name in self._settings.pairs:
            if not isinstance(self._engine(name), PairedEngine):
                raise EngineError(
                    f"The engine {name} has no reference voice.",
                    "Leave it out of the setting pairs.",
                )
        return {
            name: self._by_engine(name, count, "train", PAIRS)
            for name, count in self._settings.pairs.items()
        }

    def _by_engine(
        self, name: str, count: int, split: Split, draw: str | None = None
    ) -> list[Clip]:
        """Utterances of an engine; ``draw`` names a draw of its own."""
        random = Random(f"{self._settings.seed} {draw or split} {name}")
        engine = self._engine(name)
        if isinstance(engine, Human):
            return self._recordings(engine, count, split, random)
        voices = {code: engine.voices(code, split) for code in self._domain.languages}
        spoken = [code for code in self._domain.languages if voices[code]]
        if not spoken:
            return []
        pairs = [(one, code) for one in self._sentences(split) for code in spoken]
        # A held-out split takes its first sentences in every language, training a random choice.
        if split == "train":
            random.shuffle(pairs)
        clips = []
        for number in range(count if split == "train" else count * len(spoken)):
            sentence, code = pairs[number % len(pairs)]
            clips.append(self._clip(name, engine, sentence, code, random.choice(voices[code])))
        return clips

    @staticmethod
    def _clip(name: str, engine: Engine, sentence: Sentence, code: str, voice: str) -> Clip:
        if name == NON_SPEECH:
            return Clip(name, code, voice, sentence.texts[code], NON_SPEECH, {code: ""})
        return Clip(name, code, voice, sentence.texts[code], sentence.kind, sentence.texts)

    def _recordings(self, human: Human, count: int, split: Split, random: Random) -> list[Clip]:
        """At most ``count`` recordings in each language."""
        clips = []
        for code in human.languages():
            texts = human.transcripts(code)
            names = human.voices(code, split)
            for name in random.sample(names, min(count, len(names))):
                text = texts[name]
                clips.append(Clip("human", code, name, text, OPEN, {code: text}))
        return clips

    def _open(self, count: int) -> list[Clip]:
        """Open sentences of each language by espeak-ng, without those of the held-out splits."""
        random = Random(f"{self._settings.seed} open")
        engine = self._engine("espeak")
        held_out = [*self._sentences("test"), *self._sentences("validation")]
        known = {text for sentence in held_out for text in sentence.texts.values()}
        clips = []
        for code in self._domain.languages:
            voices = engine.voices(code, "train")
            texts = [text for text in open_sentences(code) if text not in known]
            for text in random.sample(texts, min(count, len(texts))):
                clips.append(Clip("espeak", code, random.choice(voices), text, OPEN, {code: text}))
        return clips

    def _sentences(self, split: Split) -> list[Sentence]:
        counts = self._settings.sentences
        held_out = ("test", counts["test"]), ("validation", counts["validation"])
        return _splits(self._domain, self._settings.seed, held_out, counts["train"])[split]


@cache
def _splits(
    domain: Domain, seed: int, held_out: Sequence[tuple[str, int]], train: int
) -> dict[str, list[Sentence]]:
    return draw_splits(domain, seed, dict(held_out), train)


def open_sentences(language: str) -> list[str]:
    """Sentences of Tatoeba in a language; the English ones are those of the German file."""
    other = "deu" if language == "eng" else language
    lines = (_OPEN_TEXT / f"tatoeba.{other}-eng.tsv").read_text("utf-8").splitlines()
    column = 1 if language == "eng" else 0
    return sorted({line.split("\t")[column].strip() for line in lines})
