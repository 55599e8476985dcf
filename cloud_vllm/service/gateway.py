"""The gateway without HTTP: the engine, its limits, and the processing of a packet."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from cloud_vllm.engines import Engine, EngineState, Supervisor
from cloud_vllm.request_context import RequestContext
from cloud_vllm.service.limits import Limits
from cloud_vllm.service.packet_store import PacketStore
from cloud_vllm.service.preprocessing import PacketPreprocessor, ProjectedPacket
from cloud_vllm.service.translation import Event, TranslationJob, merge_streams, translate
from cloud_vllm.settings import Settings
from cloud_vllm.telemetry.metrics import Metrics
from esrt.checkpoint import Checkpoint
from esrt.errors import EsrtError, LanguageError, NotReady
from esrt.languages import Language, check_trained, direction

_log = logging.getLogger(__name__)


class GatewayService:
    """One checkpoint, its engine, and the state that all requests share."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: Settings,
        engine: Engine,
        clock: Callable[[], float] = time.monotonic,
        on_ready: Callable[[Checkpoint], None] = lambda _: None,
    ) -> None:
        self.checkpoint = checkpoint
        self.preprocessor = PacketPreprocessor(checkpoint, settings)
        self.limits = Limits(settings, clock)
        self.packets = PacketStore(settings, clock)
        self.metrics = Metrics(lambda: self.limits.admitted)
        self._deadline_s = settings.deadline_s
        self._engine = engine
        self._on_ready = on_ready
        self._failed = False
        stored = self.metrics.gauge("esrt_features_bytes", "Bytes of packets kept in memory.")
        stored.set_function(lambda: self.packets.size)
        if isinstance(engine, Supervisor):
            rebuilds = self.metrics.gauge("esrt_engine_rebuilds", "Engines that were replaced.")
            rebuilds.set_function(lambda: engine.rebuilds)

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Load the engine in the background; close it at the end."""
        loading = asyncio.create_task(self._load())
        try:
            yield
        finally:
            self.packets.clear()
            await self._engine.close()
            loading.cancel()
            with suppress(asyncio.CancelledError):
                await loading

    def directions(self, src: str, tgt: list[str]) -> list[tuple[Language, Language]]:
        """The directions of a request.

        Args:
            src: the source language, a code or name as for `esrt.languages.language`.
            tgt: the target languages; each string may hold several, separated by commas.

        Raises:
            LanguageError: an unknown or untrained direction, or a target language named twice.
        """
        names, config = ",".join(tgt).split(","), self.checkpoint.config
        directions = [direction(src, name, config.languages) for name in names]
        for source, target in directions:
            check_trained(config.name, config.languages, (source, target))
        if len(set(directions)) < len(directions):
            raise LanguageError(
                "The parameter 'tgt' names a language twice.", "Name each language once."
            )
        return directions

    def check_accepting(self) -> None:
        """Check that requests are accepted: the engine is ready or being rebuilt.

        Raises:
            NotReady: requests are not accepted.
        """
        if self._failed:
            # The log has the reason, which may contain paths and is not for every client.
            raise NotReady("The engine failed to start.", "Read the gateway's log.")
        state = self._engine.state
        if state is EngineState.LOADING:
            raise NotReady("The engine is still loading.", "Try again in a few seconds.")
        if state is EngineState.CLOSED:
            raise NotReady("The service is shutting down.", "Use another replica, or try later.")
        if state is EngineState.FAILED:
            raise NotReady("The engine has died.", "Use another replica, or try later.")

    def check_ready(self) -> None:
        """Check that the engine is loaded and alive.

        Raises:
            NotReady: the engine cannot decode at the moment.
        """
        self.check_accepting()
        if self._engine.state is EngineState.REBUILDING:
            raise NotReady("The engine is being rebuilt.", "Use another replica, or try later.")

    async def preprocess(self, body: bytes, context: RequestContext) -> ProjectedPacket:
        """Decode, check and project a packet, and add its size and timings to the context."""
        packet = await self.preprocessor.preprocess(body)
        context.feature_tokens = len(packet.embeddings)
        context.stages_ms += [("decode", packet.decode_ms), ("project", packet.project_ms)]
        return packet

    def translate(
        self,
        packet: ProjectedPacket,
        directions: list[tuple[Language, Language]],
        arrived: float,
        context: RequestContext,
        *,
        streamed: bool,
    ) -> AsyncGenerator[Event, None]:
        """The events of one answer, or of several answers at the same time."""
        multi_target = len(directions) > 1
        streams = [
            translate(
                self._engine,
                self.checkpoint,
                TranslationJob(
                    packet, *languages, arrived, self._deadline_s, context, streamed, multi_target
                ),
                self.metrics,
            )
            for languages in directions
        ]
        return merge_streams(streams, self._engine) if multi_target or streamed else streams[0]

    async def translate_segment(
        self, body: bytes, direction: tuple[Language, Language], context: RequestContext
    ) -> AsyncGenerator[Event, None]:
        """The events of one packet's answer in a stream of several packets.

        Raises:
            EsrtError: the packet is rejected, or a limit is reached.
        """
        self.check_accepting()
        context.cleanup.enter_context(self.limits.admit(context.owner))
        context.bytes_in = len(body)
        arrived = time.perf_counter()
        packet = await self.preprocess(body, context)
        return self.translate(packet, [direction], arrived, context, streamed=True)

    async def _load(self) -> None:
        try:
            await self._engine.start()
        except EsrtError as error:
            if self._engine.state is not EngineState.CLOSED:
                self._failed = True
                _log.error("%s", error, exc_info=error.__cause__)
        except Exception as error:
            self._failed = True
            _log.error("The engine failed to start.", exc_info=error)
        else:
            if self._engine.state is EngineState.READY:
                self._on_ready(self.checkpoint)
