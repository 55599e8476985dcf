"""The reference engine: transformers' greedy decoding in one worker thread, one at a time."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, Gemma3ForCausalLM, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from cloud_vllm.engines.base import Embeddings, EngineState, Piece, check_width, prompt_ids
from cloud_vllm.engines.text import Detokenizer
from cloud_vllm.settings import Settings
from esrt.checkpoint import Checkpoint
from esrt.errors import EngineFailed
from esrt.languages import Language


class TransformersEngine:
    """Decodes as `esrt.model.generate_greedy` does, but piece by piece."""

    def __init__(self, checkpoint: Checkpoint, settings: Settings) -> None:
        self._checkpoint = checkpoint
        self._settings = settings
        self._state = EngineState.LOADING
        self._worker = ThreadPoolExecutor(1, "decoder")
        # Set while nothing may be decoded any more; a running answer looks at it after each token.
        self._closed = threading.Event()

    @property
    def state(self) -> EngineState:
        """Where the engine is in its life."""
        return self._state

    async def start(self) -> None:
        """Load the decoder.

        Raises:
            CheckpointError: the decoder does not fit the checkpoint.
            EngineFailed: it could not be loaded.
        """
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._worker, self._load)
        except (OSError, ValueError, RuntimeError) as error:
            self._state = EngineState.FAILED
            raise EngineFailed(
                f"The decoder could not be loaded: {error}.", "Check the checkpoint's decoder/."
            ) from error
        except BaseException:
            self._state = EngineState.FAILED
            raise
        if not self._closed.is_set():
            self._state = EngineState.READY

    async def generate(
        self, embeddings: Embeddings, source: Language, target: Language
    ) -> AsyncGenerator[Piece, None]:
        """Decode greedily; closing the generator aborts.

        Raises:
            EngineFailed: transformers raised an error, or the engine was closed.
        """
        ids = prompt_ids(self._tokenizer, source, target)
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[int | None] = asyncio.Queue()
        cancelled = threading.Event()

        def emit(token: int | None) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, token)

        work = loop.run_in_executor(self._worker, self._decode, embeddings, ids, emit, cancelled)
        text, last = Detokenizer(self._tokenizer), -1
        try:
            while (token := await queue.get()) is not None:
                last = token
                yield Piece("" if token == self._eos else text.feed([token]), 1)
            try:
                await work
            except Exception as error:
                raise _broken_off() from error
            if self._closed.is_set():
                raise _broken_off()
            yield Piece(text.finish(), 0, "stop" if last == self._eos else "length")
        finally:
            cancelled.set()
            work.cancel()

    async def close(self) -> None:
        """Wait for the worker thread to end, after the token that it is at."""
        self._state = EngineState.CLOSED
        self._closed.set()
        await asyncio.to_thread(self._worker.shutdown, cancel_futures=True)

    def _load(self) -> None:
        folder, dtype = self._checkpoint.decoder, getattr(torch, self._settings.dtype)
        self._decoder = Gemma3ForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._eos: int = self._tokenizer.eos_token_id
        check_width(self._decoder.config.hidden_size, self._checkpoint.config.decoder_width)

    @torch.inference_mode()
    def _decode(
        self,
        embeddings: Embeddings,
        ids: list[int],
        emit: Callable[[int | None], None],
        cancelled: threading.Event,
    ) -> None:
        try:
            # The embedding layer scales by sqrt(width); features are used as they are.
            text = self._decoder.get_input_embeddings()(torch.tensor([ids]))
            sequence = torch.cat([torch.from_numpy(embeddings)[None].to(text), text], dim=1)
            self._decoder.generate(
                inputs_embeds=sequence,
                attention_mask=torch.ones(sequence.shape[:2], dtype=torch.long),
                max_new_tokens=self._settings.max_new_tokens,
                do_sample=False,
                eos_token_id=self._eos,
                pad_token_id=self._eos,
                streamer=_Streamer(emit),
                stopping_criteria=[_Stop(cancelled, self._closed)],
            )
        finally:
            emit(None)


class _Streamer(BaseStreamer):  # type: ignore[misc]
    """Hands on each token; transformers puts the prompt first."""

    def __init__(self, emit: Callable[[int], None]) -> None:
        self._emit = emit
        self._prompt_seen = False

    def put(self, value: Tensor) -> None:
        if self._prompt_seen:
            for token in value.flatten().tolist():
                self._emit(token)
        self._prompt_seen = True

    def end(self) -> None:
        pass


class _Stop(StoppingCriteria):  # type: ignore[misc]
    """Ends decoding when one of the events is set."""

    def __init__(self, *events: threading.Event) -> None:
        self._events = events

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        stop = any(event.is_set() for event in self._events)
        return torch.full((input_ids.shape[0],), stop, device=input_ids.device)


def _broken_off() -> EngineFailed:
    return EngineFailed("The engine broke off while it decoded.", "Send the packet again.")
