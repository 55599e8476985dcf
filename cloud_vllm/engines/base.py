"""What the gateway asks of an engine: from embeddings and a direction to text, piece by piece."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, Protocol

from esrt.arrays import Float32Array
from esrt.errors import CheckpointError
from esrt.languages import Language
from esrt.prompt import separator

Finish = Literal["stop", "length", "repetition"]

# The two language tags that follow the features.
PROMPT_TOKENS = 2


class EngineState(StrEnum):
    """An engine's life: loading, then ready, then closed; failed from either of the first two.

    A supervised engine that has died or hung is rebuilding, and then ready again.
    """

    LOADING = "loading"
    READY = "ready"
    REBUILDING = "rebuilding"
    FAILED = "failed"
    CLOSED = "closed"


@dataclass(frozen=True)
class Confidence:
    """Mean natural log-probabilities of the tokens of an answer's two parts.

    Each includes the token that ends the part. The grammar
    (`engines.output_grammar`) rules tokens out, which then have no share of the probability.

    Attributes:
        transcript: of the transcript; ``None`` where nothing was written of it.
        translation: of the translation, likewise.
    """

    transcript: float | None = None
    translation: float | None = None


@dataclass(frozen=True)
class GenerationChunk:
    """The next part of an answer.

    Attributes:
        text: decoded text, special tokens included; may be empty.
        tokens: how many tokens it took, the end of sequence included.
        finish: in the last piece, why decoding ended: the model's own end, the longest length, or
            that the text only repeated itself.
        confidence: in the last piece, how sure the model was.
    """

    text: str
    tokens: int
    finish: Finish | None = None
    confidence: Confidence = Confidence()


class Engine(Protocol):
    """A decoder behind one interface, so that the gateway knows none of them."""

    @property
    def state(self) -> EngineState:
        """Where the engine is in its life; notices by itself when the engine has died."""

    async def start(self) -> None:
        """Load the decoder; returns when it is ready, which may take a minute.

        Raises:
            CheckpointError: the decoder does not fit the checkpoint.
            EngineFailed: it could not be loaded.
        """

    def generate(
        self, embeddings: Float32Array, source: Language, target: Language, *, streamed: bool = True
    ) -> AsyncGenerator[GenerationChunk, None]:
        """Decode greedily within the form; closing the generator aborts.

        Args:
            embeddings: (tokens, decoder width), all finite: engines do not check.
            source: the language spoken.
            target: the language to write.
            streamed: pieces are wanted as soon as they are there; otherwise the first, which may
                then lack its text, and the rest at once will do, which is less work.

        Raises:
            EngineDied: the engine is gone; the same request to another one may succeed.
            EngineFailed: the engine broke off.
        """

    async def close(self, *, hung: bool = False) -> None:
        """Release everything; leaves no process or thread, also while still loading.

        Args:
            hung: the engine does not react, so that there is no point in waiting for it.
        """


def prompt_ids(tokenizer: object, source: Language, target: Language) -> list[int]:
    """The token ids of the prompt that follows the features.

    Raises:
        CheckpointError: the tokenizer lacks a tag, which it then splits into letters.
    """
    prompt = separator(source, target)
    ids: list[int] = tokenizer(prompt, add_special_tokens=False).input_ids  # type: ignore[operator]
    if len(ids) != PROMPT_TOKENS:
        raise CheckpointError(
            f"The decoder's tokenizer makes {len(ids)} tokens of {prompt}, expected 2.",
            "Serve a decoder whose tokenizer has every language's tag.",
        )
    return ids


def check_width(found: int, expected: int) -> None:
    """Compare the decoder's width with the edge model's.

    Raises:
        CheckpointError: they differ; vLLM's process would die of the first request.
    """
    if found != expected:
        raise CheckpointError(
            f"The decoder's width is {found}, expected {expected} as in config.json.",
            "Use a decoder and a config.json of one checkpoint.",
        )
