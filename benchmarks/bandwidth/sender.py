"""Speech to request bodies and back, in torch."""

import numpy as np
import torch
from torch import Tensor

from benchmarks.bandwidth.audio_codecs import flac, opus, opus_packets
from benchmarks.options import DEFAULT_CODEC
from esrt import wire
from esrt.arrays import Float32Array
from esrt.checkpoint import Checkpoint
from esrt.errors import CheckpointError
from esrt.model import EdgeModel
from esrt.wire import Codec
from training.data import mel_batch

OPUS_KBPS = (6, 12, 16, 24)


class Sender:
    """The edge side in torch: audio to the body of a request, for each codec."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.fingerprint = checkpoint.fingerprint
        self.codec_tables = checkpoint.codec_tables()
        self.edge = checkpoint.edge_model()

    @property
    def mean(self) -> Float32Array:
        """Average token: (width,)."""
        if self.codec_tables is None:
            raise CheckpointError(
                "The checkpoint has no codec tables.", "Make them: python -m training.codec."
            )
        return self.codec_tables.by_codec[DEFAULT_CODEC].mean

    def packet(self, features: Float32Array, codec: Codec) -> bytes:
        """Encode features (tokens, width) as a packet."""
        return wire.encode(
            features,
            fingerprint=self.fingerprint,
            split=wire.Split.QFORMER,
            codec=codec,
            duration_ms=0,
            codec_tables=self.codec_tables,
        )

    @torch.inference_mode()
    def features(self, audio: Float32Array) -> Float32Array:
        """Compute the Q-Former's output for one utterance: (tokens, width)."""
        mel, _ = mel_batch(self.edge.config, [audio])
        return np.asarray(self.edge.features(mel)[0].numpy())

    @torch.inference_mode()
    def states(self, audio: Float32Array) -> bytes:
        """Compute the encoder's states in binary16: the payload of a split before the Q-Former."""
        mel, _ = mel_batch(self.edge.config, [audio])
        return bytes(self.edge.encoder(mel)[0].half().numpy().tobytes())

    def body_bytes(self, audio: Float32Array) -> dict[str, int]:
        """Count the bytes of a request's body, by codec; PCM has 16 bits."""
        features = self.features(audio)
        return {
            "pcm": 2 * len(audio),
            "flac": len(flac(audio)),
            "encoder states": len(self.states(audio)),
            **{f"opus {kbps}": opus_packets(opus(kbps, audio)) for kbps in OPUS_KBPS},
            **{str(codec): len(self.packet(features, codec)) for codec in Codec},
        }


class EdgeThroughPackets:
    """Edge model whose features pass through packets.

    The last ``unsent`` tokens of each utterance are not sent, and the average token replaces them.
    """

    def __init__(self, sender: Sender, codec: Codec, unsent: int = 0) -> None:
        self.config = sender.edge.config
        self._sender, self._codec, self._unsent = sender, codec, unsent

    @torch.inference_mode()
    def __call__(self, mel: Tensor, frames: Tensor) -> Tensor:
        """Compute embeddings as `esrt.model.EdgeModel.forward` does."""
        edge: EdgeModel = self._sender.edge
        features = edge.features(mel, frames)
        for row, count in enumerate(frames.tolist()):
            tokens = self.config.tokens(count)
            sent = max(1, tokens - self._unsent)
            packet = self._sender.packet(features[row, :sent].numpy(), self._codec)
            decoded = wire.decode(packet, self._sender.codec_tables).features
            features[row, :sent] = torch.from_numpy(decoded)
            if self._unsent:
                features[row, sent:tokens] = torch.from_numpy(self._sender.mean)
        embeddings: Tensor = edge.mlp(features)
        return embeddings
