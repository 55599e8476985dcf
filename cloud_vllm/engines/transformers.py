"""The reference engine: transformers' greedy decoding in one thread, one request at a time."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, Gemma3ForCausalLM, LogitsProcessor, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from cloud_vllm.engines.base import EngineState, GenerationChunk, check_width
from cloud_vllm.engines.detokenizer import Detokenizer
from cloud_vllm.engines.output_grammar import (
    ConfidenceTracker,
    GrammarCache,
    OutputGrammar,
    ends_in_repetition,
)
from cloud_vllm.schemas import Finish
from cloud_vllm.settings import Settings
from esrt.arrays import Float32Array
from esrt.checkpoint import Checkpoint
from esrt.errors import EngineDied, EngineFailed
from esrt.languages import Language


class TransformersEngine:
    """Decodes as `esrt.model.generate_greedy`, but in chunks and within the output grammar."""

    def __init__(self, checkpoint: Checkpoint, settings: Settings) -> None:
        self._checkpoint = checkpoint
        self._settings = settings
        self._state = EngineState.LOADING
        self._worker = ThreadPoolExecutor(1, "decoder")
        # Set when the engine is closed; checked after each token.
        self._closed = threading.Event()

    @property
    def state(self) -> EngineState:
        """The current state."""
        return self._state

    async def start(self) -> None:
        """Load the decoder.

        Raises:
            CheckpointError: the decoder does not fit the checkpoint.
            EngineFailed: the decoder could not be loaded.
        """
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._worker, self._load)
        except (OSError, ValueError, RuntimeError) as error:
            self._state = EngineState.FAILED
            raise EngineFailed(
                f"The decoder could not be loaded: {str(error).rstrip('.')}.",
                "Check the checkpoint's decoder/.",
            ) from error
        except BaseException:
            self._state = EngineState.FAILED
            raise
        if not self._closed.is_set():
            self._state = EngineState.READY

    async def generate(
        self, embeddings: Float32Array, source: Language, target: Language, *, streamed: bool = True
    ) -> AsyncGenerator[GenerationChunk, None]:
        """Decode greedily within the output grammar; closing the generator aborts the request.

        Raises:
            EngineDied: the engine was closed.
            EngineFailed: transformers raised an error.
        """
        grammar = self._grammars.get(source, target)
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[int, float] | None] = asyncio.Queue()
        cancelled = threading.Event()

        def emit(item: tuple[int, float]) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, item)

        work = loop.run_in_executor(
            self._worker, self._decode, embeddings, grammar, emit, cancelled
        )
        # Called as well when the engine is closed before the worker begins this request.
        work.add_done_callback(lambda _: queue.put_nowait(None))
        text, tracker = Detokenizer(self._tokenizer), ConfidenceTracker(grammar)
        ids = list[int]()
        try:
            while (item := await queue.get()) is not None:
                token, logprob = item
                ids.append(token)
                tracker.add(token, logprob)
                text.feed([token] if token != grammar.end else [])
                yield GenerationChunk(text.flush_stable(), 1)
            if self._closed.is_set():
                raise EngineDied("The engine was closed.", "Send the packet again.")
            try:
                await work
            except Exception as error:
                raise EngineFailed(
                    "transformers failed while decoding.", "Send the packet again."
                ) from error
            finish = self._finish(ids, grammar)
            yield GenerationChunk(text.finish(), 0, finish, tracker.confidence())
        finally:
            cancelled.set()
            work.cancel()

    async def close(self, *, hung: bool = False) -> None:
        """Stop the worker thread after its current token; wait for its end unless it hangs."""
        self._state = EngineState.CLOSED
        self._closed.set()
        await asyncio.to_thread(self._worker.shutdown, wait=not hung, cancel_futures=True)

    def _finish(self, ids: list[int], grammar: OutputGrammar) -> Finish:
        if ids[-1] == grammar.end:
            return "stop"
        return "length" if len(ids) >= self._settings.max_new_tokens else "repetition"

    def _load(self) -> None:
        folder, dtype = self._checkpoint.decoder, getattr(torch, self._settings.dtype)
        self._decoder = Gemma3ForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._grammars = GrammarCache(self._tokenizer)
        check_width(self._decoder.config.hidden_size, self._checkpoint.config.decoder_width)

    @torch.inference_mode()
    def _decode(
        self,
        embeddings: Float32Array,
        grammar: OutputGrammar,
        emit: Callable[[tuple[int, float]], None],
        cancelled: threading.Event,
    ) -> None:
        # The embedding layer scales by sqrt(width); features are used as they are.
        text = self._decoder.get_input_embeddings()(torch.tensor([grammar.prompt]))
        sequence = torch.cat([torch.from_numpy(embeddings)[None].to(text), text], dim=1)
        mask = _GrammarMask(grammar, self._decoder.config.vocab_size)
        self._decoder.generate(
            inputs_embeds=sequence,
            attention_mask=torch.ones(sequence.shape[:2], dtype=torch.long),
            max_new_tokens=self._settings.max_new_tokens,
            do_sample=False,
            eos_token_id=grammar.end,
            pad_token_id=grammar.end,
            streamer=_Streamer(emit, mask),
            logits_processor=[mask],
            stopping_criteria=[
                _Stop(cancelled, self._closed),
                _Repetition(self._settings.max_repetitions),
            ],
        )


class _GrammarMask(LogitsProcessor):  # type: ignore[misc]
    """Masks tokens that the grammar excludes, and keeps the best token's log-probability."""

    def __init__(self, grammar: OutputGrammar, vocabulary: int) -> None:
        self._grammar = grammar
        special = torch.zeros(vocabulary, dtype=torch.bool)
        special[list(grammar.special)] = True
        source, target = grammar.prompt
        self._transcript, self._translation = special.clone(), special
        self._transcript[source] = False
        self._transcript[grammar.end] = True
        self._separator = torch.ones_like(special)
        self._separator[target] = False
        self.logprob = 0.0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        # `input_ids` lacks the prompt, which was passed as embeddings.
        ids = input_ids[0].tolist()
        source, _ = self._grammar.prompt
        mask = self._translation if source in ids else self._transcript
        if ids and ids[-1] == source:
            mask = self._separator
        scores = scores.masked_fill(mask, -torch.inf)
        self.logprob = float(scores.float().log_softmax(-1).max())
        return scores


class _Streamer(BaseStreamer):  # type: ignore[misc]
    """Emits each token with its log-probability; transformers puts the prompt first."""

    def __init__(self, emit: Callable[[tuple[int, float]], None], mask: _GrammarMask) -> None:
        self._emit = emit
        self._mask = mask
        self._prompt_seen = False

    def put(self, value: Tensor) -> None:
        if self._prompt_seen:
            for token in value.flatten().tolist():
                self._emit((token, self._mask.logprob))
        self._prompt_seen = True

    def end(self) -> None:
        pass


class _Stop(StoppingCriteria):  # type: ignore[misc]
    """Stops decoding when one of the events is set."""

    def __init__(self, *events: threading.Event) -> None:
        self._events = events

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        stop = any(event.is_set() for event in self._events)
        return torch.full((input_ids.shape[0],), stop, device=input_ids.device)


class _Repetition(StoppingCriteria):  # type: ignore[misc]
    """Stops decoding in a repetition."""

    def __init__(self, times: int) -> None:
        self._times = times

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        stop = ends_in_repetition(input_ids[0].tolist(), self._times)
        return torch.full((input_ids.shape[0],), stop, device=input_ids.device)
