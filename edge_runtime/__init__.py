"""The thin runtime that mirrors the phone: audio to packet, packet to gateway, text back."""

from edge_runtime.audio import Audio, read_audio
from edge_runtime.backends import Backend, ExecuTorchBackend, OnnxBackend, open_backend
from edge_runtime.client import Client, ClientTimes, Done
from edge_runtime.encoder import Encoded, EncodeTimes, encode_audio

__all__ = [
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
    "open_backend",
    "read_audio",
]
