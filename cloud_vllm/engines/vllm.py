"""The serving engine: vLLM in its own process, spoken to through `AsyncLLM`.

Nothing but this module, `asking` and `gathering` imports vllm; written against 0.32.0.
"""

import asyncio
import gc
import multiprocessing
import re
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cloud_vllm import env_defaults
from cloud_vllm.engines.base import PROMPT_TOKENS, EngineState, GenerationChunk, check_width
from cloud_vllm.engines.detokenizer import Detokenizer
from cloud_vllm.engines.output_grammar import GrammarCache, OutputGrammar, Score
from cloud_vllm.settings import Settings
from esrt.arrays import Float32Array
from esrt.checkpoint import Checkpoint
from esrt.errors import EngineDied, EngineFailed, EsrtError
from esrt.languages import Language, language

# vLLM's processes take about four seconds to end in good order. Its default of five is so close
# that it often kills them instead, which leaves shared memory behind.
_SHUTDOWN_S = 20.0
_WARM_UP_TOKENS = 16
# It takes seconds, and what hangs from the start is found by nothing else.
_WARM_UP_S = 120.0


class VllmEngine:
    """Decodes many requests at once."""

    def __init__(self, checkpoint: Checkpoint, settings: Settings) -> None:
        self._checkpoint = checkpoint
        self._settings = settings
        self._state = EngineState.LOADING
        self._llm: Any = None
        self._loading: asyncio.Future[None] | None = None
        self._earlier_children = set(multiprocessing.active_children())
        self._samplings: dict[tuple[OutputGrammar, bool], Any] = {}
        self._shared: set[str] = set()
        self._aborts: set[asyncio.Task[None]] = set()

    @property
    def state(self) -> EngineState:
        """Where the engine is in its life; `FAILED` once its process has died."""
        if self._state is EngineState.READY and self._llm.errored:
            return EngineState.FAILED
        return self._state

    async def start(self) -> None:
        """Start the engine's process and wait until it has loaded the decoder.

        Raises:
            CheckpointError: the decoder does not fit the checkpoint.
            EngineFailed: it could not be loaded.
        """
        self._loading = asyncio.get_running_loop().run_in_executor(None, self._load)
        try:
            await self._loading
            await self._warm_up()
            # What has been loaded, a million objects, need not be searched for garbage again.
            gc.collect()
            gc.freeze()
        except Exception as error:
            if self._state is not EngineState.CLOSED:
                self._state = EngineState.FAILED
            if isinstance(error, EsrtError):
                raise
            raise EngineFailed(
                f"vLLM could not load the decoder: {error}.",
                "Read vLLM's own messages above; check decoder/ and the memory settings.",
            ) from error
        if self._state is EngineState.LOADING:
            self._state = EngineState.READY

    async def generate(
        self, embeddings: Float32Array, source: Language, target: Language, *, streamed: bool = True
    ) -> AsyncGenerator[GenerationChunk, None]:
        """Decode greedily within the form; closing the generator aborts.

        Raises:
            EngineDied: the engine's process has ended.
            EngineFailed: it gave the request up.
        """
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        request, llm = uuid.uuid4().hex, self._llm
        if llm is None:
            raise _died()
        grammar = self._grammars.of(source, target)
        text, score, finish = Detokenizer(self._tokenizer), Score(grammar), None
        try:
            prompt, sampling = self._asking(embeddings, grammar, streamed=streamed)
            async with aclosing(llm.generate(prompt, sampling, request)) as outputs:
                async for output in outputs:
                    completion = output.outputs[0]
                    ids, finish = list(completion.token_ids), completion.finish_reason
                    for token, chances in zip(ids, completion.logprobs, strict=True):
                        score.add(token, chances[token].logprob)
                    text.feed(token for token in ids if token != grammar.end)
                    if finish is None:
                        yield GenerationChunk(text.flush_stable() if streamed else "", len(ids))
                    elif finish in ("stop", "length", "repetition"):
                        yield GenerationChunk(text.finish(), len(ids), finish, score.confidence())
                    else:
                        raise _broken_off()
        except EngineDeadError as error:
            if self._state is EngineState.READY:
                self._state = EngineState.FAILED
            raise _died() from error
        except EngineGenerateError as error:
            raise _broken_off() from error
        finally:
            if finish is None and self.state is EngineState.READY:
                self._abort(request)

    async def close(self, *, hung: bool = False) -> None:
        """End the engine's process; one that is still loading is not waited for."""
        self._state = EngineState.CLOSED
        patience = time.monotonic() + _SHUTDOWN_S
        while self._loading is not None and not self._loading.done():
            # The loading thread cannot be cancelled, but it gives up when its child ends.
            for child in set(multiprocessing.active_children()) - self._earlier_children:
                if time.monotonic() < patience:
                    child.terminate()
                else:
                    child.kill()
            await asyncio.wait([self._loading], timeout=0.2)
        llm, self._llm = self._llm, None
        if llm is not None:
            from vllm.v1.engine.exceptions import EngineDeadError

            # Whoever waits for an answer would not learn that none will come.
            llm.output_processor.propagate_error(EngineDeadError())
            # Left alone until vLLM cancels it, it would report the process's end as a crash.
            if llm.output_handler is not None:
                llm.output_handler.cancel()
            await asyncio.to_thread(llm.shutdown, timeout=0.0 if hung else _SHUTDOWN_S)
            del llm
            # It lies in reference cycles; finalized at interpreter exit it would print a traceback.
            gc.unfreeze()
            gc.collect()
            _remove_shared_memory(self._shared)

    def _load(self) -> None:
        env_defaults.prepare()
        from vllm.config import StructuredOutputsConfig
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.executor.uniproc_executor import UniProcExecutor

        settings, config = self._settings, self._checkpoint.config
        arguments = AsyncEngineArgs(
            model=str(self._checkpoint.decoder),
            dtype=settings.dtype,
            enable_prompt_embeds=True,
            max_model_len=config.max_tokens + PROMPT_TOKENS + settings.max_new_tokens,
            max_num_seqs=settings.max_concurrent,
            kv_cache_memory_bytes=settings.kv_cache_bytes or None,
            enforce_eager=not settings.compile,
            tensor_parallel_size=settings.tensor_parallel,
            # On a CPU vLLM would put its one worker into a process of its own, to bind its threads
            # to cores, and wait for it by spinning: of two cores that takes one.
            distributed_executor_backend=(
                UniProcExecutor if settings.tensor_parallel == 1 else None
            ),
            quantization=settings.quantization,
            # No two utterances share features, and nothing of one should outlive its request.
            enable_prefix_caching=False,
            # The decoder's own generation settings could sample or stop at other tokens.
            generation_config="vllm",
            structured_outputs_config=StructuredOutputsConfig(backend="xgrammar"),
            # Its figures are part of /metrics.
            disable_log_stats=False,
            stream_interval=settings.stream_interval,
        )
        engine_config = arguments.create_engine_config(UsageContext.ENGINE_CONTEXT)
        scheduling = engine_config.scheduler_config
        scheduling.scheduler_cls = self._scheduler(ahead=bool(scheduling.async_scheduling))
        if self._state is EngineState.CLOSED:
            return
        # No local variable: an import above keeps this frame alive for good, and `close` could not
        # finalize the engine.
        self._llm = AsyncLLM.from_vllm_config(engine_config)
        check_width(self._llm.model_config.get_hidden_size(), config.decoder_width)
        self._tokenizer: Any = self._llm.get_tokenizer()
        self._grammars = GrammarCache(self._tokenizer)
        for child in set(multiprocessing.active_children()) - self._earlier_children:
            self._shared |= _shared_memory(child.pid)
        self._dtype = getattr(torch, settings.dtype)

    def _scheduler(self, *, ahead: bool) -> str | None:
        """The name of vLLM's scheduler in the engine's process; ``None`` for its own."""
        kind = "AsyncGatheringScheduler" if ahead else "GatheringScheduler"
        return f"cloud_vllm.engines.gathering.{kind}"

    def _asking(
        self, embeddings: Float32Array, grammar: OutputGrammar, *, streamed: bool
    ) -> tuple[Any, Any]:
        """The prompt and the sampling parameters."""
        from cloud_vllm.engines import vllm_params

        key = grammar, streamed
        if key not in self._samplings:
            self._samplings[key] = vllm_params.sampling(grammar, self._settings, streamed=streamed)
        return vllm_params.prompt(embeddings, grammar, self._dtype), self._samplings[key]

    async def _warm_up(self) -> None:
        """Decode a little of nothing, for what vLLM sets up lazily takes seconds.

        Raises:
            EngineFailed: it hangs.
        """
        if self._state is EngineState.CLOSED:
            return
        config = self._checkpoint.config
        source, target = (language(code) for code in config.languages[:2])
        nothing = np.zeros((1, config.decoder_width), np.float32)
        prompt, sampling = self._asking(nothing, self._grammars.of(source, target), streamed=True)
        sampling = sampling.clone()
        sampling.max_tokens = _WARM_UP_TOKENS
        sampling.ignore_eos = True
        try:
            async with asyncio.timeout(_WARM_UP_S):
                async for _ in self._llm.generate(prompt, sampling, "warm-up"):
                    pass
        except TimeoutError as error:
            raise EngineFailed(
                f"vLLM has loaded the decoder, but wrote no {_WARM_UP_TOKENS} tokens within"
                f" {_WARM_UP_S:g} s.",
                "Read vLLM's own messages above; look after the GPU.",
            ) from error

    def _abort(self, request: str) -> None:
        # A client that hangs up cancels the task that is here again at each await (anyio's level
        # cancellation), which can cut off the abort inside vLLM's generator; so it gets a task.
        task = asyncio.get_running_loop().create_task(self._llm.abort(request))
        self._aborts.add(task)
        task.add_done_callback(self._aborts.discard)


def _shared_memory(process: int | None) -> set[str]:
    """The names of the shared memory of Python's that a process has mapped; Linux only."""
    try:
        maps = Path(f"/proc/{process}/maps").read_text("utf-8")
    except OSError:
        return set()
    return set(re.findall(r"/dev/shm/(psm_\w+)", maps))


def _remove_shared_memory(names: set[str]) -> None:
    """Remove what a process that was killed could not: hundreds of megabytes each time."""
    for name in names:
        with suppress(FileNotFoundError):
            memory = SharedMemory(name)
            memory.close()
            memory.unlink()


def _died() -> EngineDied:
    return EngineDied("The engine's process has died.", "Send the packet again.")


def _broken_off() -> EngineFailed:
    return EngineFailed("The engine gave the request up.", "Send the packet again.")
