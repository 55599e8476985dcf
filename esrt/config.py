"""Configurations of the model: shapes of its parts, and the named configurations. No torch."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from esrt.errors import CheckpointError
from esrt.features import FRAMES_PER_SECOND
from esrt.languages import LANGUAGES
from esrt.wire.codec import Split


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of a Whisper encoder.

    Attributes:
        width: width of the states.
        layers: number of layers.
        heads: attention heads of a layer.
        inner_width: inner width of the feed-forward layers.
        mel_bins: mel bins of the input.
        max_positions: longest output, in states of 20 ms.
    """

    width: int
    layers: int
    heads: int
    inner_width: int
    mel_bins: int = 128
    max_positions: int = 1500


@dataclass(frozen=True)
class QFormerConfig:
    """Shape of a Q-Former over the encoder's states.

    Without ``stride``, each of the ``queries`` learned queries attends to all encoder states, and
    the number of tokens is fixed. The released models have this form. With ``stride``, there is
    one token for every ``stride`` encoder states (20 ms each). The token attends to these states
    and to ``overlap`` more on either side, so the number of tokens follows the length of the
    speech (window-level Q-Former, SALMONN, arXiv 2310.13289). A query then is one learned vector
    (``queries`` is 1) plus the sinusoid of its position.

    With ``offset_bias``, a learned number of each head and each offset within the window is added
    to the scores (relative position bias, T5, arXiv 1910.10683, shared by the layers). Heads can
    then read single states from the start of the training.

    Raises:
        ValueError: ``offset_bias`` without ``stride``.
    """

    width: int
    layers: int
    heads: int
    inner_width: int
    queries: int
    stride: int | None = None
    overlap: int = 0
    offset_bias: bool = False

    def __post_init__(self) -> None:
        """Check rules that concern several fields."""
        if self.offset_bias and self.stride is None:
            raise ValueError("offset_bias needs stride")


@dataclass(frozen=True)
class EncoderWeights:
    """Published weights of an encoder, which a checkpoint names and does not contain.

    Attributes:
        name: Hugging Face id of the model that the encoder belongs to.
        sha256: SHA-256 of the encoder's tensors in float16 (`esrt.fingerprint.tensors_sha256`).
    """

    name: str
    sha256: str


@dataclass(frozen=True)
class ModelConfig:
    """Configuration of the whole model.

    Attributes:
        name: name of the model.
        encoder: shape of the encoder.
        q_former: shape of the Q-Former.
        decoder_width: width of the decoder's embeddings.
        projector_width: inner width of the projector.
        padded: whether audio is padded or trimmed to ``max_seconds``, as in training. Other models
            encode only what was spoken.
        max_seconds: longest speech of one packet.
        languages: ISO 639-3 codes of the languages that the model was trained for, in every
            direction.
        encoder_weights: published weights of the encoder; ``None`` for an encoder whose weights are
            in the checkpoint.
    """

    name: str
    encoder: EncoderConfig
    q_former: QFormerConfig
    decoder_width: int
    projector_width: int
    padded: bool
    max_seconds: float
    languages: tuple[str, ...]
    encoder_weights: EncoderWeights | None = None

    @property
    def frame_multiple(self) -> int:
        """The number of mel frames (10 ms each) is a multiple of this; the encoder halves it."""
        return 2 * (self.q_former.stride or 1)

    @property
    def padded_seconds(self) -> float | None:
        """Length that audio is padded or trimmed to; ``None`` encodes only what was spoken."""
        return self.max_seconds if self.padded else None

    @property
    def max_frames(self) -> int:
        """Mel frames of the longest input."""
        frames = round(self.max_seconds * FRAMES_PER_SECOND)
        return frames // self.frame_multiple * self.frame_multiple

    @property
    def max_tokens(self) -> int:
        """Feature tokens of the longest input."""
        return self.tokens(self.max_frames)

    def tokens(self, frames: int) -> int:
        """Feature tokens for a number of mel frames."""
        stride = self.q_former.stride
        return self.q_former.queries if stride is None else frames // (2 * stride)

    def feature_width(self, split: Split) -> int:
        """Width of the features at a split point."""
        return self.q_former.width if split == Split.QFORMER else self.decoder_width

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; without ``encoder_weights`` and ``offset_bias`` if they are not set."""
        data = dataclasses.asdict(self)
        if self.encoder_weights is None:
            del data["encoder_weights"]
        # Fingerprints of models from before the option stay as they are.
        if not self.q_former.offset_bias:
            del data["q_former"]["offset_bias"]
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "ModelConfig":
        """Read the JSON form.

        Raises:
            CheckpointError: a key is missing or unknown, or a value does not fit.
        """
        try:
            parts: dict[str, Any] = {
                "encoder": EncoderConfig(**data["encoder"]),
                "q_former": QFormerConfig(**data["q_former"]),
                "languages": tuple(data["languages"]),
            }
            if "encoder_weights" in data:
                parts["encoder_weights"] = EncoderWeights(**data["encoder_weights"])
            return cls(**{**data, **parts})
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"The model configuration is not valid: {error}.",
                f"Compare its keys with those of {cls.__name__} in esrt/config.py.",
            ) from error


WHISPER_BASE = EncoderWeights(
    "openai/whisper-base", "001855bc72a646493f4c30e934de186940edd625b4749178588a0e8b9674de9f"
)

# The encoder of whisper-large-v3; the projector's inner width follows the published sibling code:
# 1536 up to a decoder of 3072, else 2560.
_LARGE_V3 = EncoderConfig(width=1280, layers=32, heads=20, inner_width=5120)
_BASE = EncoderConfig(width=512, layers=6, heads=8, inner_width=2048, mel_bins=80)
_SMALL = EncoderConfig(width=768, layers=12, heads=12, inner_width=3072)
_ALL = tuple(LANGUAGES)
_LARGE_Q_FORMER = QFormerConfig(width=768, layers=8, heads=12, inner_width=3072, queries=80)

CONFIGS: dict[str, ModelConfig] = {
    config.name: config
    for config in (
        ModelConfig(
            name="esrt-nano",
            encoder=EncoderConfig(width=192, layers=4, heads=4, inner_width=768, max_positions=600),
            q_former=QFormerConfig(
                width=192, layers=2, heads=4, inner_width=768, queries=1, stride=4, overlap=4
            ),
            decoder_width=192,
            projector_width=384,
            padded=False,
            max_seconds=12.0,
            languages=tuple("eng deu spa fra rus hin ara tur fin kor ind cmn".split()),
        ),
        ModelConfig(
            name="esrt-mini",
            encoder=_BASE,
            q_former=QFormerConfig(
                width=256,
                layers=2,
                heads=4,
                inner_width=1024,
                queries=1,
                stride=4,
                overlap=4,
                offset_bias=True,
            ),
            decoder_width=256,
            projector_width=512,
            padded=False,
            max_seconds=30.0,
            languages=tuple("eng deu spa fra rus hin ara tur fin kor ind cmn nld".split()),
            encoder_weights=WHISPER_BASE,
        ),
        # Not a released model: an encoder of whisper-small's size, for benchmarks.
        ModelConfig("whisper-small", _SMALL, _LARGE_Q_FORMER, 1152, 1536, True, 30.0, _ALL),
        ModelConfig("esrt-4b", _LARGE_V3, _LARGE_Q_FORMER, 2560, 1536, True, 30.0, _ALL),
        ModelConfig("esrt-12b", _LARGE_V3, _LARGE_Q_FORMER, 3840, 2560, True, 30.0, _ALL),
    )
}


def named_config(name: str) -> ModelConfig:
    """A configuration by name.

    Raises:
        CheckpointError: no configuration has the name.
    """
    try:
        return CONFIGS[name]
    except KeyError:
        raise CheckpointError(
            f"No configuration is named {name!r}.", f"Use one of: {', '.join(CONFIGS)}."
        ) from None
