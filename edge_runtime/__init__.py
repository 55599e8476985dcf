"""The edge runtime, which mirrors the phone: audio to packet, packet to gateway, text back."""

from edge_runtime.answer import ClientTimes, Done
from edge_runtime.artifact import Artifact, open_artifact
from edge_runtime.audio import Audio, read_audio
from edge_runtime.backends import Backend, ExecuTorchBackend, OnnxBackend
from edge_runtime.client import Client
from edge_runtime.encoder import Encoded, EncodeTimes, encode_audio

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
    "encode_audio",
    "open_artifact",
    "read_audio",
]
