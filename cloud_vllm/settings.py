"""What an operator can set, by environment variables that begin with ``ESRT_``."""

from pathlib import Path
from typing import Literal, Self

from pydantic import AnyHttpUrl, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from esrt import bundled


class Settings(BaseSettings):
    """The gateway's settings; the defaults serve esrt-nano on a CPU."""

    model_config = SettingsConfigDict(env_prefix="ESRT_", frozen=True, extra="forbid")

    checkpoint: Path = Field(bundled.CHECKPOINT, description="Checkpoint folder.")
    engine: Literal["vllm", "transformers"] = Field(
        "vllm", description="What runs the decoder; transformers is the slow reference."
    )
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="The decoder's precision."
    )
    max_new_tokens: int = Field(
        256, ge=1, description="Where an answer is cut, transcript and translation together."
    )
    max_repetitions: int = Field(
        10, ge=0, description="Where a text that only repeats itself is cut; 0 lets it go on."
    )
    max_concurrent: int = Field(
        64, ge=1, description="Requests that vLLM decodes at once; others wait."
    )
    kv_cache_bytes: int = Field(
        256 << 20, ge=0, description="Size of vLLM's key-value cache; 0 leaves it to vLLM."
    )
    compile: bool = Field(
        False, description="Let vLLM compile and capture graphs: a slower start, faster decoding."
    )
    stream_interval: int = Field(
        4, ge=1, description="Tokens between two pieces of a stream, after the first token."
    )
    tensor_parallel: int = Field(1, ge=1, description="GPUs over which vLLM spreads the decoder.")
    quantization: Literal["fp8"] | None = Field(
        None, description="fp8: vLLM halves the weights as it loads them; needs a GPU."
    )
    canary_s: float = Field(
        10.0, ge=0, description="After how long without a token the engine is probed; 0: never."
    )
    canary_timeout_s: float = Field(
        20.0, gt=0, description="How long a probe may take before the engine is rebuilt."
    )
    deadline_s: float = Field(60.0, gt=0, description="Longest time that one answer may take.")
    upload_s: float = Field(15.0, gt=0, description="Longest time that one packet may arrive in.")
    shutdown_s: int = Field(
        10, ge=0, description="How long running requests may go on after SIGTERM."
    )

    key_file: Path | None = Field(
        None, description="File with the hashes of API keys; without it, everyone is let in."
    )
    allow_anonymous: bool = Field(
        False, description="Listen beyond this machine although there is no key file."
    )
    key_rate: float = Field(
        20.0, gt=0, description="Answers per second that one key may ask for in the long run."
    )
    key_burst: int = Field(100, ge=1, description="Answers that one key may ask for at a stroke.")
    key_max_concurrency: int = Field(
        32, ge=1, description="Answers that one key may have under way."
    )
    queue_size: int = Field(
        256, ge=0, description="Answers taken on beyond max_concurrent; more are refused."
    )
    packet_ttl_s: float = Field(
        300.0, gt=0, description="How long /v1/features keeps a packet, in memory."
    )
    packet_store_bytes: int = Field(
        64 << 20, ge=0, description="Memory for kept packets; a key may fill a quarter of it."
    )
    idempotency_s: float = Field(
        300.0, ge=0, description="How long the answer to a request with an Idempotency-Key is kept."
    )
    idempotency_bytes: int = Field(
        16 << 20, ge=0, description="Memory for these answers; the oldest go first."
    )
    stream_segments: int = Field(
        4,
        ge=1,
        description="Segments of one stream under way; while there are as many, no more are read.",
    )
    stream_idle_s: float = Field(
        60.0, gt=0, description="How long a stream may be silent before it is closed."
    )
    tls_certificate: Path | None = Field(None, description="Certificate chain, PEM.")
    tls_key: Path | None = Field(None, description="The certificate's key, PEM.")
    cors_origins: tuple[str, ...] = Field(
        (), description="Origins whose web pages may call; none by default."
    )

    log_format: Literal["json", "text"] = Field("json", description="How lines of logs look.")
    otlp_endpoint: AnyHttpUrl | None = Field(
        None, description="Where traces go, http://HOST:4318/v1/traces; nowhere by default."
    )

    @property
    def allows_anonymous_by_default(self) -> bool:
        """Whether everyone would be let in, though nobody has said so."""
        return self.key_file is None and not self.allow_anonymous

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key belong together")
        return self
