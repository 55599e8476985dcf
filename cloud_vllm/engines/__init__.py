"""Engines: from embeddings to text."""

from cloud_vllm.engines.base import Confidence, Engine, EngineState, GenerationChunk
from cloud_vllm.engines.supervisor import Supervisor
from cloud_vllm.settings import Settings
from esrt.arrays import Float32Array
from esrt.checkpoint import Checkpoint

__all__ = [
    "Confidence",
    "Engine",
    "EngineState",
    "Float32Array",
    "GenerationChunk",
    "Supervisor",
    "create_engine",
]


def create_engine(checkpoint: Checkpoint, settings: Settings) -> Engine:
    """The engine that the settings name, not yet started."""
    # Imported here so that a machine needs the libraries of the engine that it runs, no others.
    if settings.engine == "vllm":
        from cloud_vllm.engines.vllm import VllmEngine

        return VllmEngine(checkpoint, settings)
    from cloud_vllm.engines.transformers import TransformersEngine

    return TransformersEngine(checkpoint, settings)
