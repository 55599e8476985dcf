"""Engines: embeddings in, text out."""

from typing import TYPE_CHECKING

from cloud_vllm.engines.base import Confidence, Engine, EngineState, GenerationChunk
from cloud_vllm.engines.supervisor import Supervisor
from cloud_vllm.settings import Settings

if TYPE_CHECKING:
    # Not imported at run time: it imports torch, which takes seconds.
    from esrt.checkpoint import Checkpoint

__all__ = [
    "Confidence",
    "Engine",
    "EngineState",
    "GenerationChunk",
    "Supervisor",
    "create_engine",
]


def create_engine(checkpoint: "Checkpoint", settings: Settings) -> Engine:
    """Create the engine that the settings name, without starting it."""
    # Imported here, so that only the selected engine's libraries must be installed.
    if settings.engine == "vllm":
        from cloud_vllm.engines.vllm import VllmEngine

        return VllmEngine(checkpoint, settings)
    from cloud_vllm.engines.transformers import TransformersEngine

    return TransformersEngine(checkpoint, settings)
