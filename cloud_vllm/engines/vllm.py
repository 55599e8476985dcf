"""The serving engine: vLLM's `AsyncLLMEngine`, whose engine core runs in its own process.

Only this module and `vllm_params` import vllm. Written against vLLM 0.32.0.
"""

import asyncio
import gc
import multiprocessing
import os
import re
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from multiprocessing.process import BaseProcess
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cloud_vllm import env_defaults
from cloud_vllm.engines.base import EngineState, GenerationChunk, check_width
from cloud_vllm.engines.detokenizer import Detokenizer
from cloud_vllm.engines.output_grammar import ConfidenceTracker, GrammarCache
from cloud_vllm.settings import Settings
from cloud_vllm.telemetry import logs
from esrt.arrays import Float32Array
from esrt.checkpoint import Checkpoint
from esrt.errors import EngineDied, EngineFailed, EsrtError
from esrt.languages import Language, language

# vLLM's processes take about four seconds for a clean shutdown. vLLM's default timeout of five
# seconds often expires, and a killed process leaves its shared memory behind.
_SHUTDOWN_S = 20.0
# An idle engine releases its resources within this time. The rest of a clean shutdown is the end of
# the process's interpreter, which takes seconds and may be skipped.
_GRACE_S = 1.0
_WARM_UP_TOKENS = 16
# The warm-up takes seconds. The timeout detects an engine that hangs from the start.
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
        self._requests: set[str] = set()
        self._shared: set[str] = set()
        self._aborts: set[asyncio.Task[None]] = set()

    @property
    def state(self) -> EngineState:
        """The current state; `FAILED` once the engine's process has died."""
        if self._state is EngineState.READY and self._llm.errored:
            return EngineState.FAILED
        return self._state

    async def start(self) -> None:
        """Start the engine's process and wait until it has loaded the decoder.

        Raises:
            CheckpointError: the decoder does not fit the checkpoint.
            EngineFailed: the decoder could not be loaded.
        """
        self._loading = asyncio.get_running_loop().run_in_executor(None, self._load)
        try:
            await self._loading
            await self._warm_up()
            # Exclude the million objects of the loaded libraries from later garbage collections.
            gc.collect()
            gc.freeze()
        except Exception as error:
            if self._state is not EngineState.CLOSED:
                self._state = EngineState.FAILED
            if isinstance(error, EsrtError):
                raise
            raise EngineFailed(
                f"vLLM could not load the decoder: {str(error).rstrip('.')}.",
                "Read the log's lines before this one; check decoder/ and the memory settings.",
            ) from error
        if self._state is EngineState.LOADING:
            self._state = EngineState.READY

    async def generate(
        self, embeddings: Float32Array, source: Language, target: Language, *, streamed: bool = True
    ) -> AsyncGenerator[GenerationChunk, None]:
        """Decode greedily within the output grammar; closing the generator aborts the request.

        Raises:
            EngineDied: the engine's process has ended, or the engine was closed.
            EngineFailed: vLLM aborted the request.
        """
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        from cloud_vllm.engines import vllm_params

        request, llm = uuid.uuid4().hex, self._llm
        if llm is None:
            raise _died()
        grammar = self._grammars.get(source, target)
        prompt = vllm_params.prompt(embeddings, grammar, self._dtype)
        params = vllm_params.sampling(grammar, self._settings, streamed=streamed)
        text, tracker = Detokenizer(self._tokenizer), ConfidenceTracker(grammar)
        finish = None
        self._requests.add(request)
        try:
            async with aclosing(llm.generate(prompt, params, request)) as outputs:
                async for output in outputs:
                    completion = output.outputs[0]
                    ids, finish = list(completion.token_ids), completion.finish_reason
                    if finish not in (None, "stop", "length", "repetition"):
                        raise self._aborted()
                    for token, logprobs in zip(ids, completion.logprobs, strict=True):
                        tracker.add(token, logprobs[token].logprob)
                    text.feed(token for token in ids if token != grammar.end)
                    if finish is None:
                        yield GenerationChunk(text.flush_stable() if streamed else "", len(ids))
                    else:
                        yield GenerationChunk(text.finish(), len(ids), finish, tracker.confidence())
        except EngineDeadError as error:
            if self._state is EngineState.READY:
                self._state = EngineState.FAILED
            raise _died() from error
        except EngineGenerateError as error:
            raise self._aborted() from error
        finally:
            self._requests.discard(request)
            if finish is None and self.state is EngineState.READY:
                self._abort(request)

    async def close(self, *, hung: bool = False) -> None:
        """End the engine's process, also while it loads."""
        self._state = EngineState.CLOSED
        kill_at = time.monotonic() + _SHUTDOWN_S
        while self._loading is not None and not self._loading.done():
            # The loading thread cannot be cancelled, but returns when its child process ends.
            for child in self._children():
                if time.monotonic() < kill_at:
                    child.terminate()
                else:
                    child.kill()
            await asyncio.wait([self._loading], timeout=0.2)
        llm, self._llm = self._llm, None
        if llm is not None:
            from vllm.v1.engine.exceptions import EngineDeadError

            # Wakes the generators that wait for output, which a closed engine never sends.
            with suppress(EngineDeadError):
                await llm.abort(list(self._requests))
            await self._shut_down(llm, hung=hung)
            del llm
            # The engine is part of reference cycles. Its finalizer prints a traceback at exit.
            gc.unfreeze()
            gc.collect()
            _remove_shared_memory(self._shared)

    async def _shut_down(self, llm: Any, *, hung: bool) -> None:
        """End the engine's process; at the latest after a grace period it is killed."""
        ending = asyncio.create_task(
            asyncio.to_thread(llm.shutdown, timeout=0.0 if hung else _SHUTDOWN_S)
        )
        # Several processes of one model need longer: each ends its own workers.
        one_process = self._settings.tensor_parallel == 1
        if not (await asyncio.wait([ending], timeout=_GRACE_S if one_process else None))[0]:
            for child in self._children():
                child.kill()
        await ending

    def _children(self) -> set[BaseProcess]:
        return set(multiprocessing.active_children()) - self._earlier_children

    def _load(self) -> None:
        env_defaults.prepare()
        _check_variables()
        from vllm import AsyncLLMEngine

        from cloud_vllm.engines import vllm_params

        if self._state is EngineState.CLOSED:
            return
        arguments = vllm_params.engine_arguments(self._checkpoint, self._settings)
        # Not a local variable: an import above keeps this frame alive, and so the engine after
        # `close`.
        with logs.logged_processes():
            self._llm = AsyncLLMEngine.from_engine_args(arguments)
        width = self._llm.model_config.get_hidden_size()
        check_width(width, self._checkpoint.config.decoder_width)
        self._tokenizer: Any = self._llm.get_tokenizer()
        self._grammars = GrammarCache(self._tokenizer)
        for child in self._children():
            self._shared |= _shared_memory(child.pid)
        self._dtype = getattr(torch, self._settings.dtype)

    async def _warm_up(self) -> None:
        """Decode a few tokens, because vLLM's lazy initialization takes seconds.

        Raises:
            EngineFailed: the engine hangs.
        """
        if self._state is EngineState.CLOSED:
            return
        config, tokens = self._checkpoint.config, 0
        source, target = (language(code) for code in config.languages[:2])
        silence = np.zeros((1, config.decoder_width), np.float32)
        try:
            async with (
                asyncio.timeout(_WARM_UP_S),
                aclosing(self.generate(silence, source, target)) as chunks,
            ):
                async for chunk in chunks:
                    tokens += chunk.tokens
                    if tokens >= _WARM_UP_TOKENS:
                        break
        except TimeoutError as error:
            raise EngineFailed(
                f"vLLM loaded the decoder, but wrote no {_WARM_UP_TOKENS} tokens within"
                f" {_WARM_UP_S:g} s.",
                "Read the log's lines before this one; check the GPU.",
            ) from error

    def _aborted(self) -> EngineFailed:
        if self._state is EngineState.CLOSED:
            return _died()
        return EngineFailed("vLLM aborted the request.", "Send the packet again.")

    def _abort(self, request: str) -> None:
        # After a disconnect, anyio cancels the request's task at every await, which can interrupt
        # the abort inside vLLM's generator. A separate task is not cancelled.
        task = asyncio.get_running_loop().create_task(self._llm.abort(request))
        self._aborts.add(task)
        task.add_done_callback(self._aborts.discard)


def _check_variables() -> None:
    """Check that vLLM can read its variables; its own error does not always name the variable.

    Raises:
        EngineFailed: the value of a variable has a wrong form.
    """
    from vllm import envs

    for name in sorted(envs.environment_variables.keys() & os.environ.keys()):
        try:
            envs.environment_variables[name]()
        except Exception as error:
            raise EngineFailed(
                f"vLLM cannot read {name}={os.environ[name][:64]!r}: {error}.",
                "Correct or unset it.",
            ) from error


def _shared_memory(process: int | None) -> set[str]:
    """Names of the `SharedMemory` blocks mapped by a process; Linux only."""
    try:
        maps = Path(f"/proc/{process}/maps").read_text("utf-8")
    except OSError:
        return set()
    return set(re.findall(r"/dev/shm/(psm_\w+)", maps))


def _remove_shared_memory(names: set[str]) -> None:
    """Remove the blocks that a killed process left behind, hundreds of megabytes each time."""
    for name in names:
        with suppress(FileNotFoundError):
            memory = SharedMemory(name)
            memory.close()
            memory.unlink()


def _died() -> EngineDied:
    return EngineDied("The engine's process has died.", "Send the packet again.")
