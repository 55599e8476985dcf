"""Supervision of an engine: replaces an engine whose process died or hangs.

A dead engine is visible in its state. A liveness probe detects a hang: when no token has arrived
for a while, a tiny generation must yield one in time.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING

import numpy as np

from cloud_vllm.engines.base import Engine, EngineState, GenerationChunk
from cloud_vllm.settings import Settings
from esrt.arrays import Float32Array
from esrt.errors import EngineDied, EngineFailed, EsrtError
from esrt.languages import Language, language

if TYPE_CHECKING:
    # Not imported at run time: it imports torch, which takes seconds.
    from esrt.checkpoint import Checkpoint

# Interval at which the engine's state is checked when no request has failed.
_POLL_S = 1.0
# Pauses between attempts to rebuild an engine.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0

_log = logging.getLogger(__name__)


class Supervisor:
    """An engine that is rebuilt after its death.

    Args:
        build: creates an engine, not yet started.
        checkpoint: the decoder's width and languages, for the liveness probe.
        settings: interval and timeout of the liveness probe.
    """

    def __init__(
        self, build: Callable[[], Engine], checkpoint: "Checkpoint", settings: Settings
    ) -> None:
        config = checkpoint.config
        self._build = build
        self._engine = build()
        self._probe_interval_s = settings.probe_interval_s
        self._probe_timeout_s = settings.probe_timeout_s
        self._probe_embeddings = np.zeros((1, config.decoder_width), np.float32)
        self._probe_direction = [language(code) for code in config.languages[:2]]
        self._state = EngineState.LOADING
        self._state_changed = asyncio.Event()
        self._suspected = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None
        self._chunks = 0
        self.rebuilds = 0

    @property
    def state(self) -> EngineState:
        """The current state; `REBUILDING` as soon as the engine is dead."""
        if self._state is EngineState.READY and self._engine.state is not EngineState.READY:
            return EngineState.REBUILDING
        return self._state

    async def start(self) -> None:
        """Load the first engine and begin to supervise it.

        Raises:
            CheckpointError: the decoder does not fit the checkpoint.
            EngineFailed: the decoder could not be loaded; there is no second attempt.
        """
        try:
            await self._engine.start()
        except BaseException:
            self._set_state(EngineState.FAILED)
            raise
        self._set_state(EngineState.READY)
        if self._state is not EngineState.CLOSED:
            self._watcher = asyncio.create_task(self._supervise())

    async def generate(
        self, embeddings: Float32Array, source: Language, target: Language, *, streamed: bool = True
    ) -> AsyncGenerator[GenerationChunk, None]:
        """Decode as `Engine.generate`; while the engine is rebuilt, wait for the new one.

        Raises:
            EngineDied: the engine died or hung after it had accepted the request.
            EngineFailed: the engine aborted the request, or could not be rebuilt.
        """
        while (state := self.state) is EngineState.REBUILDING:
            self._suspected.set()
            await self._state_changed.wait()
        if state is not EngineState.READY:
            raise EngineFailed("The engine is not available.", "Send the packet again later.")
        generator = self._engine.generate(embeddings, source, target, streamed=streamed)
        try:
            async with aclosing(generator) as chunks:
                async for chunk in chunks:
                    self._chunks += 1
                    yield chunk
        except EngineDied:
            self._suspected.set()
            raise

    async def close(self, *, hung: bool = False) -> None:
        """Close the engine and end its supervision."""
        self._set_state(EngineState.CLOSED)
        # Before the watcher ends: it may be waiting for an engine that loads.
        await self._engine.close(hung=hung)
        if self._watcher is not None:
            self._watcher.cancel()
            with suppress(asyncio.CancelledError):
                await self._watcher

    def _set_state(self, state: EngineState) -> None:
        if self._state is not EngineState.CLOSED:
            self._state = state
        self._state_changed.set()
        self._state_changed = asyncio.Event()

    def _is_closed(self) -> bool:
        return self._state is EngineState.CLOSED

    async def _supervise(self) -> None:
        while True:
            hung = await self._wait_for_failure()
            if self._is_closed():
                return
            _log.error("The engine %s; it is rebuilt.", "hangs" if hung else "has died")
            self._set_state(EngineState.REBUILDING)
            await self._rebuild(hung=hung)
            if self._is_closed():
                return
            self.rebuilds += 1
            self._set_state(EngineState.READY)
            _log.warning("The engine has been rebuilt.")

    async def _wait_for_failure(self) -> bool:
        """Return once the engine is unusable: true if it hangs, false if it has died."""
        clock = asyncio.get_running_loop().time
        chunks, since = self._chunks, clock()
        poll_s = min(_POLL_S, self._probe_interval_s or _POLL_S)
        while self._engine.state is EngineState.READY:
            with suppress(TimeoutError):
                async with asyncio.timeout(poll_s):
                    await self._suspected.wait()
            self._suspected.clear()
            if self._chunks != chunks:
                chunks, since = self._chunks, clock()
            elif self._probe_interval_s and clock() - since >= self._probe_interval_s:
                # A chunk of any request proves that the engine works, as the probe does.
                if not await self._probe() and self._chunks == chunks:
                    return self._engine.state is EngineState.READY
                since = clock()
        return False

    async def _probe(self) -> bool:
        """Whether the engine yields a token within the probe's timeout."""
        try:
            async with asyncio.timeout(self._probe_timeout_s):
                generator = self._engine.generate(self._probe_embeddings, *self._probe_direction)
                async with aclosing(generator) as chunks:
                    await anext(chunks)
        except (TimeoutError, EsrtError) as error:
            _log.warning("The liveness probe got no token: %s", error or "timed out")
            return False
        return True

    async def _rebuild(self, *, hung: bool) -> None:
        """Replace the engine; failed attempts are repeated without limit."""
        pause = _FIRST_PAUSE_S
        while True:
            try:
                await self._engine.close(hung=hung)
            except Exception:
                _log.exception("The dead engine could not be closed.")
            if self._is_closed():
                return
            self._engine = self._build()
            try:
                await self._engine.start()
                return
            except Exception:
                _log.exception("The engine could not be rebuilt; next attempt in %g s.", pause)
            self._set_state(EngineState.FAILED)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
