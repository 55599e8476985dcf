"""What an operator can set, by environment variables that begin with ``ESRT_``."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """The gateway's settings; the defaults serve esrt-nano on a CPU."""

    model_config = SettingsConfigDict(env_prefix="ESRT_", frozen=True, extra="forbid")

    checkpoint: Path = Field(Path("models/esrt-nano"), description="Checkpoint folder.")
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
    max_running: int = Field(
        64, ge=1, description="Requests that vLLM decodes at once; others wait."
    )
    kv_cache_bytes: int = Field(
        256 << 20, ge=0, description="Size of vLLM's key-value cache; 0 leaves it to vLLM."
    )
    compile: bool = Field(
        False, description="Let vLLM compile and capture graphs: a slower start, faster decoding."
    )
    deadline_s: float = Field(60.0, gt=0, description="Longest time that one answer may take.")
    upload_s: float = Field(15.0, gt=0, description="Longest time that one packet may arrive in.")
    shutdown_s: int = Field(
        10, ge=0, description="How long running requests may go on after SIGTERM."
    )
