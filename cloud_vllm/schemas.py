"""Parameters of `/v1/translate`, and the bodies of the gateway's answers."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Finish = Literal["stop", "length", "repetition"]


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True)


class TranslateParams(_Body):
    """Query parameters of `/v1/translate`."""

    src: str = Field(
        description="Language spoken: an ISO 639 code, a language tag, or its English or native"
        " name. The answer has ISO 639-3 codes.",
        examples=["eng", "en-GB", "English"],
    )
    tgt: list[str] = Field(
        description="Languages to write, as for `src`; several by commas or by repeating the"
        " parameter.",
        examples=[["deu"], ["de,fr"]],
    )
    features: str | None = Field(
        None, description="A handle from /v1/features, in place of the body."
    )


class TokenCounts(_Body):
    """Tokens that the decoder read and wrote."""

    features: int = Field(description="Feature tokens in the packet.")
    generated: int = Field(description="Tokens written, the end of sequence included.")


class Timings(_Body):
    """Milliseconds in the gateway, from the arrival of the packet."""

    decode: float = Field(description="Packet to features.")
    project: float = Field(description="Features to embeddings; 0 for adapter packets.")
    first_token: float = Field(description="Arrival of the packet to the engine's first token.")
    total: float = Field(description="Arrival of the packet to the end of the answer.")


class ConfidenceInfo(_Body):
    """The model's confidence: the mean natural log-probability of a part's tokens.

    At most 0; -0.1 is a probability of about 0.9 for each token. Null for an empty part.
    """

    transcript: float | None
    translation: float | None
    threshold: float | None = Field(
        description="An answer is uncertain if the lower of the two is below this, by the model's"
        " evaluation; null if the model has none."
    )


class Translation(_Body):
    """The answer to a packet: the JSON body, and the data of the ``done`` event."""

    src: str
    tgt: str
    transcript: str
    translation: str
    model: str
    fingerprint: str
    finish: Finish = Field(
        description="stop: the model ended the answer; length: the answer was cut at its maximum"
        " length; repetition: the answer was cut in a repetition."
    )
    confidence: ConfidenceInfo
    tokens: TokenCounts
    timings_ms: Timings


class Translations(_Body):
    """The JSON body of a request for several languages."""

    answers: list[Translation] = Field(description="In the order of the languages in `tgt`.")


class KeptFeatures(_Body):
    """A packet kept in memory for a few minutes."""

    features: str = Field(
        description="The handle, for `?features=`; valid for the same API key only."
    )
    expires_in_s: float
    tokens: int = Field(description="Feature tokens in the packet.")


class Delta(_Body):
    """The data of a ``transcript`` or ``translation`` event."""

    text: str


class LanguageDelta(Delta):
    """The data of a text event in a request for several languages."""

    tgt: str


class LanguageInfo(_Body):
    """A language that can be the source or the target."""

    code: str
    name: str
    endonym: str


class ModelInfo(_Body):
    """The model's identity, and the limits of a packet."""

    id: str
    fingerprint: str
    splits: dict[str, int] = Field(description="Split points, with the width of their features.")
    max_tokens: int = Field(description="Maximum number of feature tokens in a packet.")
    max_seconds: float = Field(description="Maximum length of the speech in a packet, in seconds.")
    max_packet_bytes: int
    codecs: list[str]
    languages: list[LanguageInfo]


class Models(_Body):
    """The models served; currently one."""

    models: list[ModelInfo]


class Status(_Body):
    """The state of the process or of its engine."""

    status: str


class Problem(_Body):
    """An error (RFC 9457) with its remedy."""

    type: str = Field(examples=["urn:esrt:problem:fingerprint-mismatch"])
    title: str
    status: int
    detail: str
    remedy: str
