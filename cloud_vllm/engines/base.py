"""What the gateway asks of an engine: from embeddings and a direction to text, piece by piece."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from esrt.errors import CheckpointError
from esrt.languages import Language
from esrt.prompt import separator

Embeddings = npt.NDArray[np.float32]
Finish = Literal["stop", "length"]

# The two language tags that follow the features.
PROMPT_TOKENS = 2


class EngineState(StrEnum):
    """An engine's life: loading, then ready, then closed; failed from either of the first two."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    CLOSED = "closed"


@dataclass(frozen=True)
class Piece:
    """The next part of an answer.

    Attributes:
        text: decoded text, special tokens included; may be empty.
        tokens: how many tokens it took, the end of sequence included.
        finish: in the last piece, why decoding ended: the model's own end, or the longest length.
    """

    text: str
    tokens: int
    finish: Finish | None = None


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
        self, embeddings: Embeddings, source: Language, target: Language
    ) -> AsyncGenerator[Piece, None]:
        """Decode greedily; closing the generator aborts.

        Args:
            embeddings: (tokens, decoder width), all finite: engines do not check.
            source: the language spoken.
            target: the language to write.

        Raises:
            EngineFailed: the engine broke off.
        """

    async def close(self) -> None:
        """Release everything; leaves no process or thread, also while still loading."""


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
