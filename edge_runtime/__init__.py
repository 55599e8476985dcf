"""The edge runtime, which mirrors the phone: audio to packet, packet to gateway, text back."""

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
