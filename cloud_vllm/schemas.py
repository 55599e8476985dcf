"""The bodies of the gateway's answers."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True)


class TokenCounts(_Body):
    """How much the decoder read and wrote."""

    features: int = Field(description="Feature tokens in the packet.")
    generated: int = Field(description="Tokens written, the end of sequence included.")


class Timings(_Body):
    """Milliseconds in the gateway, after the packet has arrived."""

    decode: float = Field(description="Packet to features.")
    project: float = Field(description="Features to embeddings; 0 for adapter packets.")
    first_token: float = Field(description="Arrival of the packet to the engine's first token.")
    total: float = Field(description="Arrival of the packet to the end of the answer.")


class ConfidenceInfo(_Body):
    """How sure the model was: the mean natural log-probability of a part's tokens.

    At most 0; about -0.1 means nine tenths at each token. Null where nothing was written.
    """

    transcript: float | None
    translation: float | None


class Translation(_Body):
    """The answer to a packet: the JSON body, and the data of the ``done`` event."""

    src: str
    tgt: str
    transcript: str
    translation: str
    model: str
    fingerprint: str
    finish: Literal["stop", "length", "repetition"] = Field(
        description="stop: the model ended by itself; length: it was cut at the longest answer;"
        " repetition: it was cut because it only repeated itself."
    )
    confidence: ConfidenceInfo
    tokens: TokenCounts
    timings_ms: Timings


class Translations(_Body):
    """The JSON body where several languages were asked for."""

    answers: list[Translation] = Field(description="In the order in which `tgt` names them.")


class KeptFeatures(_Body):
    """A packet that is kept for a while."""

    features: str = Field(description="The handle, for `?features=`; only the same key can use it.")
    expires_in_s: float
    tokens: int = Field(description="Feature tokens in the packet.")


class Delta(_Body):
    """The data of a ``transcript`` or ``translation`` event."""

    text: str


class LanguageDelta(Delta):
    """The same, where several languages were asked for."""

    tgt: str


class LanguageInfo(_Body):
    """A language that may be the source or the target."""

    code: str
    name: str
    endonym: str


class ModelInfo(_Body):
    """What an edge device must agree with, and what it may send."""

    id: str
    fingerprint: str
    splits: dict[str, int] = Field(description="Split points and the width of their features.")
    max_tokens: int = Field(description="The most feature tokens that a packet may hold.")
    max_seconds: float = Field(description="The longest speech that a packet may hold.")
    max_packet_bytes: int
    codecs: list[str]
    languages: list[LanguageInfo]


class Models(_Body):
    """The models served; one, today."""

    models: list[ModelInfo]


class Status(_Body):
    """The state of the process or of its engine."""

    status: str


class Problem(_Body):
    """An error (RFC 9457), with what the reader can do about it."""

    type: str = Field(examples=["urn:esrt:problem:fingerprint-mismatch"])
    title: str
    status: int
    detail: str
    remedy: str
