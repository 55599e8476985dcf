"""The interface of an engine: embeddings and a direction in, chunks of text out."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from cloud_vllm.schemas import Finish
from esrt.arrays import Float32Array
from esrt.errors import CheckpointError
from esrt.languages import Language
from esrt.prompt import separator

# The two language tags that follow the features.
PROMPT_TOKENS = 2


class EngineState(StrEnum):
    """The state of an engine: loading, then ready, then closed; failed from the first two.

    A supervised engine whose process died or hung is rebuilding, then ready again.
    """

    LOADING = "loading"
    READY = "ready"
    REBUILDING = "rebuilding"
    FAILED = "failed"
    CLOSED = "closed"


@dataclass(frozen=True)
class Confidence:
    """Mean natural log-probabilities of the tokens of an answer's two parts.

    Each mean includes the token that ends the part. Tokens excluded by the grammar
    (`engines.output_grammar`) have no share of the probability.

    Attributes:
        transcript: mean of the transcript; ``None`` without any token of the transcript.
        translation: mean of the translation; ``None`` without any token of the translation.
    """

    transcript: float | None = None
    translation: float | None = None


@dataclass(frozen=True)
class GenerationChunk:
    """The next part of an answer.

    Attributes:
        text: decoded text, special tokens included; may be empty.
        tokens: number of tokens in the chunk, the end of sequence included.
        finish: reason why decoding ended, in the last chunk only: the end of sequence, the
            maximum length, or a repetition.
        confidence: confidence of the whole answer, in the last chunk only.
    """

    text: str
    tokens: int
    finish: Finish | None = None
    confidence: Confidence = Confidence()


class Engine(Protocol):
    """A decoder behind one interface, the same for all libraries."""

    @property
    def state(self) -> EngineState:
        """The current state; a dead engine is reported even without a request."""

    async def start(self) -> None:
        """Load the decoder; returns once the engine is ready, which may take a minute.

        Raises:
            CheckpointError: the decoder does not fit the checkpoint.
            EngineFailed: the decoder could not be loaded.
        """

    def generate(
        self, embeddings: Float32Array, source: Language, target: Language, *, streamed: bool = True
    ) -> AsyncGenerator[GenerationChunk, None]:
        """Decode greedily within the output grammar; closing the generator aborts the request.

        Args:
            embeddings: (tokens, decoder width), all finite; engines do not check the values.
            source: the language spoken.
            target: the language to write.
            streamed: yield text as soon as it is decoded. Otherwise the engine may yield the
                first token without its text, and all text in the last chunk, which costs less.

        Raises:
            EngineDied: the engine died; the same request to another engine may succeed.
            EngineFailed: the engine aborted the request.
        """

    async def close(self, *, hung: bool = False) -> None:
        """Release all resources, also while loading; leaves no process or thread behind.

        Args:
            hung: the engine does not react, so close must not wait for a clean end.
        """


def prompt_ids(tokenizer: object, source: Language, target: Language) -> list[int]:
    """The token ids of the prompt that follows the features.

    Raises:
        CheckpointError: the tokenizer lacks a tag and splits it into several tokens.
    """
    prompt = separator(source, target)
    ids: list[int] = tokenizer(prompt, add_special_tokens=False).input_ids  # type: ignore[operator]
    if len(ids) != PROMPT_TOKENS:
        raise CheckpointError(
            f"The decoder's tokenizer makes {len(ids)} tokens of {prompt}, expected 2.",
            "Serve a decoder whose tokenizer has every language's tag.",
        )
    return ids


def check_width(width: int, expected: int) -> None:
    """Compare the decoder's width with the edge model's.

    Raises:
        CheckpointError: the widths differ, which would crash vLLM's process at the first request.
    """
    if width != expected:
        raise CheckpointError(
            f"The decoder's width is {width}, expected {expected} as in config.json.",
            "Use a decoder and a config.json of one checkpoint.",
        )
