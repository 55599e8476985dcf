"""An engine that outlives its process: one that has died or hangs is replaced by a new one.

A death shows in the engine's state. That an engine hangs is found by a canary: when no token has
come for a while, whether it is idle or busy, a tiny generation must yield one in time.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress

import numpy as np

from cloud_vllm.engines.base import Engine, EngineState, GenerationChunk
from cloud_vllm.settings import Settings
from esrt.arrays import Float32Array
from esrt.checkpoint import Checkpoint
from esrt.errors import EngineDied, EngineFailed, EsrtError
from esrt.languages import Language, language

# How soon a death is noticed that no request has met.
_LOOK_S = 1.0
# Between attempts to load an engine that does not load.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0

_log = logging.getLogger(__name__)


class Supervisor:
    """The engine that it builds, and builds again.

    Args:
        build: makes an engine, not yet started.
        checkpoint: for what the canary is fed with.
        settings: how often the canary sings.
    """

    def __init__(
        self, build: Callable[[], Engine], checkpoint: Checkpoint, settings: Settings
    ) -> None:
        config = checkpoint.config
        self._build = build
        self._engine = build()
        self._canary_s, self._timeout_s = settings.canary_s, settings.canary_timeout_s
        self._nothing = np.zeros((1, config.decoder_width), np.float32)
        self._direction = [language(code) for code in config.languages[:2]]
        self._state = EngineState.LOADING
        self._changed = asyncio.Event()
        self._suspected = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None
        self._pieces = 0
        self.rebuilds = 0

    @property
    def state(self) -> EngineState:
        """Where the engine is; one that has died is already counted as rebuilding."""
        if self._state is EngineState.READY and self._engine.state is not EngineState.READY:
            return EngineState.REBUILDING
        return self._state

    async def start(self) -> None:
        """Load the first engine, and watch over it.

        Raises:
            CheckpointError: the decoder does not fit the checkpoint.
            EngineFailed: it could not be loaded; it is not tried again.
        """
        try:
            await self._engine.start()
        except BaseException:
            self._set_state(EngineState.FAILED)
            raise
        self._set_state(EngineState.READY)
        if self._state is not EngineState.CLOSED:
            self._watch = asyncio.create_task(self._supervise())

    async def generate(
        self, embeddings: Float32Array, source: Language, target: Language, *, streamed: bool = True
    ) -> AsyncGenerator[GenerationChunk, None]:
        """Decode, once there is an engine: while one is rebuilt, this waits.

        Raises:
            EngineDied: the engine died or hung after it had taken the request.
            EngineFailed: the engine broke off, or could not be rebuilt.
        """
        while (state := self.state) is EngineState.REBUILDING:
            self._suspected.set()
            await self._changed.wait()
        if state is not EngineState.READY:
            raise EngineFailed("There is no engine at the moment.", "Send the packet again later.")
        generator = self._engine.generate(embeddings, source, target, streamed=streamed)
        try:
            async with aclosing(generator) as pieces:
                async for piece in pieces:
                    self._pieces += 1
                    yield piece
        except EngineDied:
            self._suspected.set()
            raise

    async def close(self, *, hung: bool = False) -> None:
        """End the engine and the watch over it."""
        self._set_state(EngineState.CLOSED)
        # Before the watch ends: an engine that loads must be told to stop, not be left alone.
        await self._engine.close(hung=hung)
        if self._watch is not None:
            self._watch.cancel()
            with suppress(asyncio.CancelledError):
                await self._watch

    def _set_state(self, state: EngineState) -> None:
        if self._state is not EngineState.CLOSED:
            self._state = state
        self._changed.set()
        self._changed = asyncio.Event()

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
        """Return when the engine is no longer of use; whether it hangs."""
        clock = asyncio.get_running_loop().time
        seen, since = self._pieces, clock()
        look_s = min(_LOOK_S, self._canary_s or _LOOK_S)
        while self._engine.state is EngineState.READY:
            with suppress(TimeoutError):
                async with asyncio.timeout(look_s):
                    await self._suspected.wait()
            self._suspected.clear()
            if self._pieces != seen:
                seen, since = self._pieces, clock()
            elif self._canary_s and clock() - since >= self._canary_s:
                # Other answers' tokens are as good a sign of life as the canary's.
                if not await self._probe() and self._pieces == seen:
                    return self._engine.state is EngineState.READY
                since = clock()
        return False

    async def _probe(self) -> bool:
        try:
            async with asyncio.timeout(self._timeout_s):
                generator = self._engine.generate(self._nothing, *self._direction)
                async with aclosing(generator) as pieces:
                    await anext(pieces)
        except (TimeoutError, EsrtError) as error:
            _log.warning("The canary got no token: %s", error or "time is up")
            return False
        return True

    async def _rebuild(self, *, hung: bool) -> None:
        """Replace the engine, however many attempts that takes."""
        pause = _FIRST_PAUSE_S
        while True:
            try:
                await self._engine.close(hung=hung)
            except Exception:
                _log.exception("What was left of the engine could not be ended.")
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
