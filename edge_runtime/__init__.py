"""The edge runtime, which mirrors the phone: audio to packet, packet to gateway, text back."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_runtime.answer import ClientTimes, Done
    from edge_runtime.artifact import Artifact, open_artifact
    from edge_runtime.audio import Audio, read_audio
    from edge_runtime.backends import Backend, ExecuTorchBackend, OnnxBackend
    from edge_runtime.client import Client
    from edge_runtime.encoder import Encoded, EncodeTimes, encode_speech
    from edge_runtime.speech import Speech, prepare_speech, read_speech

__all__ = [
    "Artifact",
    "Audio",
    "Backend",
    "Client",
    "ClientTimes",
    "Done",
    "EncodeTimes",
    "Encoded",
    "ExecuTorchBackend",
    "OnnxBackend",
    "Speech",
    "encode_speech",
    "open_artifact",
    "prepare_speech",
    "read_audio",
    "read_speech",
]

_MODULES = {
    "answer": ("ClientTimes", "Done"),
    "artifact": ("Artifact", "open_artifact"),
    "audio": ("Audio", "read_audio"),
    "backends": ("Backend", "ExecuTorchBackend", "OnnxBackend"),
    "client": ("Client",),
    "encoder": ("EncodeTimes", "Encoded", "encode_speech"),
    "speech": ("Speech", "prepare_speech", "read_speech"),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is used, so that a missing package is an error of a command."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"edge_runtime.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
