"""The gateway under Ray Serve: each replica owns one gateway and one engine.

``serve run deploy/serve.yaml`` deploys `build`; what a replica is and how many there are is said in
that file. Ray's proxy takes the place of `cloud_vllm.listener`.
"""

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
from ray import serve
from ray.serve import Application

from cloud_vllm import env_defaults
from cloud_vllm.settings import Settings
from cloud_vllm.telemetry import logs
from esrt.errors import NotReady, RequestError

if TYPE_CHECKING:
    from fastapi import FastAPI

_POLL_S = 0.2


@serve.deployment
@serve.ingress()
class Gateway:
    """A replica.

    Args:
        settings: fields of `Settings`; what is not given comes from the replica's environment.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        env_defaults.prepare()
        self._settings = replica_settings(settings)
        logs.configure(self._settings.log_format)

    def __serve_build_asgi_app__(self) -> "FastAPI":
        """The gateway, which Ray starts: its lifespan begins to load the engine."""
        # Imported after the environment is set.
        from cloud_vllm.api.app import create_app
        from cloud_vllm.engines import Supervisor, create_engine
        from esrt.checkpoint import open_checkpoint

        settings, checkpoint = self._settings, open_checkpoint(self._settings.checkpoint)
        self._engine = Supervisor(lambda: create_engine(checkpoint, settings), checkpoint, settings)
        app = create_app(settings, self._engine)
        transport = httpx.ASGITransport(app)
        self._self = httpx.AsyncClient(transport=transport, base_url="http://replica")
        return app

    async def check_health(self) -> None:
        """Says what ``/readyz`` says; while the engine loads for the first time, waits.

        Ray sends a replica no requests before the first check has passed, and replaces it after
        three that have not.

        Raises:
            NotReady: the engine cannot be used.
        """
        from cloud_vllm.engines import EngineState

        while (answer := await self._self.get("/readyz")).status_code != 200:
            if self._engine.state is not EngineState.LOADING:
                problem = answer.json()
                raise NotReady(problem["detail"], problem["remedy"])
            await asyncio.sleep(_POLL_S)


def replica_settings(args: dict[str, Any]) -> Settings:
    """The settings of a replica, which does not know on which address Ray's proxy listens.

    Raises:
        RequestError: everyone who reaches the proxy would be let in, and nobody has said so.
    """
    settings = Settings(**args)
    if settings.allows_anonymous_by_default:
        raise RequestError(
            "Without API keys, everyone who reaches Ray's proxy could use this gateway.",
            "Set ESRT_KEY_FILE for the replicas (see: keys create), or args.allow_anonymous.",
        )
    return settings


def build(args: dict[str, Any]) -> Application:
    """The application of a Serve config file.

    Args:
        args: fields of `Settings`, the same for each replica.
    """
    Settings(**args)  # refused here, before a replica is started
    # The decorator makes a deployment of the class, which mypy is not told.
    application: Application = Gateway.bind(args)  # type: ignore[attr-defined]
    return application
