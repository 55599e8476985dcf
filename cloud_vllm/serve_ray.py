"""Gateway under Ray Serve: each replica has one gateway and one engine.

``serve run deploy/serve.yaml`` deploys `build`. That file sets the number of replicas and their
resources. Ray's HTTP proxy listens in place of uvicorn.
"""

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve import Application

from cloud_vllm import env_defaults
from cloud_vllm.settings import Settings
from cloud_vllm.settings_reader import read_settings, warn_of_unknown_variables
from cloud_vllm.telemetry import logs
from esrt.errors import NotReady, RequestError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from cloud_vllm.engines import Engine
    from esrt.checkpoint import Checkpoint

_POLL_S = 0.2

_log = logging.getLogger(__name__)


@serve.deployment
@serve.ingress()
class Gateway:
    """One replica.

    Args:
        settings: fields of `Settings`; the replica's environment sets the others.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        env_defaults.prepare()
        self._settings = replica_settings(settings)
        logs.configure(self._settings.log_format)
        warn_of_unknown_variables()
        if self._settings.engine == "vllm":
            env_defaults.check()

    def __serve_build_asgi_app__(self) -> "FastAPI":
        """Return the gateway's app; Ray runs its lifespan, which starts to load the engine."""
        # Imported after `env_defaults.prepare`, because these modules import torch.
        from cloud_vllm.api.app import create_app

        app = create_app(self._settings, on_ready=_announce)
        self._engine: Engine = app.state.engine
        return app

    async def check_health(self) -> None:
        """Pass if the engine is ready; wait while it loads for the first time.

        Ray sends a replica requests only after its first check has passed, and replaces a replica
        after three failed checks.

        Raises:
            NotReady: the engine is dead or is being rebuilt.
        """
        from cloud_vllm.engines import EngineState

        while (state := self._engine.state) is EngineState.LOADING:
            await asyncio.sleep(_POLL_S)
        if state is not EngineState.READY:
            raise NotReady(f"The engine is {state}.", "Ray replaces the replica if it stays so.")


def replica_settings(args: dict[str, Any]) -> Settings:
    """Return the settings of a replica.

    A replica does not know the address that Ray's proxy listens on, so even on loopback it needs
    API keys or an explicit ``allow_anonymous``.

    Raises:
        RequestError: a setting has a wrong form, or there is neither a key file nor
            ``allow_anonymous``.
    """
    settings = read_settings(args, _argument)
    if settings.allows_anonymous_by_default:
        raise RequestError(
            "Without API keys, everyone who reaches Ray's proxy could use this gateway.",
            "Set ESRT_KEY_FILE for the replicas to a file made by: python -m cloud_vllm keys create"
            " --key-file FILE --name NAME; or set args.allow_anonymous.",
        )
    return settings


def build(args: dict[str, Any]) -> Application:
    """Build the application of a Serve config file.

    Args:
        args: fields of `Settings`, the same for each replica.

    Raises:
        RequestError: a setting has a wrong form.
    """
    read_settings(args, _argument)  # before any replica starts
    # The decorator turns the class into a deployment, which its type annotation does not say.
    application: Application = Gateway.bind(args)  # type: ignore[attr-defined]
    return application


def _announce(checkpoint: "Checkpoint") -> None:
    config = checkpoint.config
    _log.info("Ready: %s, %d languages.", config.name, len(config.languages))


def _argument(field: str) -> str:
    """The name of a setting in the Serve config file."""
    return f"args.{field}"
