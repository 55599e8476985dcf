"""The gateway's settings, read from environment variables with the prefix ``ESRT_``.

``python -m cloud_vllm settings`` prints them, and `cloud_vllm.settings_reference` describes them.
"""

import json
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, AnyHttpUrl, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from esrt import bundled

PREFIX = "ESRT_"


def _split_list(value: object) -> object:
    """Split text at commas; text in brackets is a JSON list."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return tuple(part.strip() for part in value.split(",") if part.strip())


def _check_origin(origin: str) -> str:
    """Check the form of an origin; browsers send it without a slash at its end.

    Raises:
        ValueError: the text is not an origin.
    """
    origin = origin.rstrip("/")
    if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#\s]+", origin):
        raise ValueError(origin)
    return origin


Origin = Annotated[str, AfterValidator(_check_origin)]


class Settings(BaseSettings):
    """The gateway's settings; the defaults serve esrt-nano on a CPU."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid", allow_inf_nan=False
    )

    checkpoint: Path = Field(bundled.CHECKPOINT, description="Checkpoint folder.")
    engine: Literal["vllm", "transformers"] = Field(
        "vllm", description="Library that runs the decoder; transformers is the slow reference."
    )
    host: str = Field("127.0.0.1", pattern=r"^[\w.:%-]*$", description="Address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0 takes a free port.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="The decoder's precision."
    )
    max_new_tokens: int = Field(
        256, ge=1, description="Maximum tokens of an answer, transcript and translation together."
    )
    max_repetitions: int = Field(
        10, ge=0, description="Repetitions of a pattern after which an answer is cut; 0 never cuts."
    )
    max_concurrent: int = Field(
        64, ge=1, description="Requests that vLLM decodes at the same time; others wait."
    )
    kv_cache_bytes: int = Field(
        256 << 20, ge=0, description="Size of vLLM's key-value cache in bytes; 0 lets vLLM choose."
    )
    compile: bool = Field(
        False,
        description="Compile the decoder and capture CUDA graphs: slower start, faster decoding.",
    )
    stream_interval: int = Field(
        4, ge=1, description="Tokens per chunk of a stream, after the first token."
    )
    tensor_parallel: int = Field(
        1, ge=1, description="Number of GPUs that share the decoder (tensor parallelism)."
    )
    quantization: Literal["fp8"] | None = Field(
        None, description="fp8: vLLM converts the weights to 8 bits at load time; needs a GPU."
    )
    probe_interval_s: float = Field(
        10.0,
        ge=0,
        description="Seconds without a token after which the engine is probed; 0 disables probes.",
    )
    probe_timeout_s: float = Field(
        20.0, gt=0, description="Time limit of a probe in seconds; after it the engine is rebuilt."
    )
    deadline_s: float = Field(60.0, gt=0, description="Time limit of one answer in seconds.")
    upload_s: float = Field(15.0, gt=0, description="Time limit of one upload in seconds.")
    shutdown_s: int = Field(
        10, ge=0, description="Seconds that running requests have to finish after SIGTERM."
    )

    key_file: Path | None = Field(
        None, description="File with the hashes of API keys; without it, no key is needed."
    )
    allow_anonymous: bool = Field(
        False, description="Listen beyond this machine without a key file."
    )
    key_rate: float = Field(
        20.0, gt=0, description="Answers per second for one API key, on average."
    )
    key_burst: int = Field(100, ge=1, description="Answers for one API key in a burst.")
    key_max_concurrency: int = Field(
        32, ge=1, description="Answers for one API key at the same time."
    )
    queue_size: int = Field(
        256, ge=0, description="Answers accepted beyond ESRT_MAX_CONCURRENT; more are rejected."
    )
    packet_ttl_s: float = Field(
        300.0, gt=0, description="Seconds for which /v1/features keeps a packet in memory."
    )
    packet_store_bytes: int = Field(
        64 << 20,
        ge=0,
        description="Memory for kept packets in bytes; one API key may fill a quarter.",
    )
    idempotency_s: float = Field(
        300.0,
        ge=0,
        description="Seconds for which the answer to a request with an Idempotency-Key is kept.",
    )
    idempotency_bytes: int = Field(
        16 << 20,
        ge=0,
        description="Memory for these answers in bytes; the oldest are dropped first.",
    )
    stream_segments: int = Field(
        4,
        ge=1,
        description="Segments of one stream in progress; at the limit no more are read.",
    )
    stream_idle_s: float = Field(
        60.0, gt=0, description="Seconds of silence after which a stream is closed."
    )
    tls_certificate: Path | None = Field(None, description="Certificate chain for HTTPS, PEM.")
    tls_key: Path | None = Field(None, description="Private key of the certificate, PEM.")
    cors_origins: Annotated[tuple[Origin, ...], NoDecode, BeforeValidator(_split_list)] = Field(
        (), description="Origins whose web pages may use the gateway; none by default."
    )

    log_format: Literal["json", "text"] = Field(
        "json", description="Format of the log, lines of vLLM and other libraries included."
    )
    otlp_endpoint: AnyHttpUrl | None = Field(
        None, description="Receiver of traces, OTLP over HTTP; none by default."
    )

    @property
    def allows_anonymous_by_default(self) -> bool:
        """Whether no API key is needed, although anonymous use is not allowed explicitly."""
        return self.key_file is None and not self.allow_anonymous

    @model_validator(mode="after")
    def _tls_is_complete(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            given, missing = "tls_certificate", "tls_key"
            if self.tls_certificate is None:
                given, missing = missing, given
            raise PydanticCustomError(
                "incomplete", "{given} needs {missing}", {"given": given, "missing": missing}
            )
        return self
