"""GPU memory and capacity of a decoder: ``python -m cloud_vllm.capacity DECODER --gpu-gib 80``.

The memory follows from the decoder's shapes. The speed has to be measured, with `benchmarks.cloud`
or ``vllm bench throughput``, and is given as ``--tokens-per-s``.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from cloud_vllm.engines.base import PROMPT_TOKENS
from esrt.cli import VersionOption, run
from esrt.errors import CheckpointError, RequestError

_GIB = 2**30
# vLLM's own default for `gpu_memory_utilization`.
_SHARE = 0.9
# Greatest value of an option.
_LARGEST = 10**9


@dataclass(frozen=True)
class Shape:
    """Shape of a Gemma 3 decoder, with the field names of its ``config.json``."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int

    @property
    def parameters(self) -> int:
        """Number of weights: tied embedding, attention and feed-forward, without norms."""
        attention = 2 * self.head_dim * (self.num_attention_heads + self.num_key_value_heads)
        layer = self.hidden_size * (attention + 3 * self.intermediate_size)
        return self.vocab_size * self.hidden_size + self.num_hidden_layers * layer

    def cache_bytes(self, width: int = 2) -> int:
        """Size of one token in the key-value cache, at ``width`` bytes per number.

        Layers with a sliding window count in full: an answer is shorter than the window.
        """
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * width


# Published configurations of Gemma 3, the base of the paper's decoders.
GEMMA = {
    "gemma-3-4b": Shape(2560, 34, 8, 4, 256, 10240, 262208),
    "gemma-3-12b": Shape(3840, 48, 16, 8, 256, 15360, 262208),
}


def read_shape(decoder: str) -> Shape:
    """Read the shape of a decoder.

    Args:
        decoder: a name in `GEMMA`, or the folder of a checkpoint or a decoder.

    Raises:
        CheckpointError: ``decoder`` is neither.
    """
    if decoder in GEMMA:
        return GEMMA[decoder]
    folder = Path(decoder)
    file = next(
        (f for f in (folder / "decoder" / "config.json", folder / "config.json") if f.is_file()),
        None,
    )
    try:
        document: dict[str, Any] = json.loads(file.read_text("utf-8")) if file else {}
        document = document.get("text_config", document)
        return Shape(**{name: document[name] for name in Shape.__dataclass_fields__})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{decoder} has no Gemma 3 decoder.",
            f"Give the folder of a checkpoint, or one of: {', '.join(GEMMA)}.",
        ) from error


@dataclass(frozen=True)
class Capacity:
    """Memory and capacity of one replica.

    Attributes:
        weights_gib: weights of the decoder, over all its GPUs.
        cache_gib: memory for the key-value cache.
        cache_kib_per_token: size of one token in the key-value cache.
        max_concurrent: number of answers of the greatest length that fit into the cache.
    """

    weights_gib: float
    cache_gib: float
    cache_kib_per_token: float
    max_concurrent: int


def compute_capacity(
    shape: Shape, *, gpu_gib: float, gpus: int, fp8: bool, reserve_gib: float, max_tokens: int
) -> Capacity:
    """Compute memory and capacity of one replica.

    Args:
        shape: shape of the decoder.
        gpu_gib: memory of one GPU.
        gpus: number of GPUs that share the decoder (tensor parallel).
        fp8: one byte per weight instead of two; the embedding and the cache stay at two.
        reserve_gib: memory on each GPU for activations, CUDA graphs and CUDA itself.
        max_tokens: tokens of the longest answer, with its features and prompt.
    """
    embedding = shape.vocab_size * shape.hidden_size
    weights = 2 * embedding + (shape.parameters - embedding) * (1 if fp8 else 2)
    cache = max(0.0, gpus * (_SHARE * gpu_gib - reserve_gib) * _GIB - weights)
    answers = int(cache // (max_tokens * shape.cache_bytes()))
    return Capacity(weights / _GIB, cache / _GIB, shape.cache_bytes() / 1024, answers)


def main(
    decoder: Annotated[
        str,
        typer.Argument(metavar="DECODER", help=f"Checkpoint folder, or {' or '.join(GEMMA)}."),
    ],
    gpu_gib: Annotated[
        float, typer.Option(metavar="GIB", min=1, max=_LARGEST, help="Memory of one GPU.")
    ] = 80.0,
    gpus: Annotated[
        int,
        typer.Option(
            metavar="COUNT", min=1, max=_LARGEST, help="GPUs of a replica: tensor parallel."
        ),
    ] = 1,
    fp8: Annotated[bool, typer.Option("--fp8", help="Store weights as fp8.")] = False,
    reserve_gib: Annotated[
        float, typer.Option(metavar="GIB", min=0, help="GPU memory for other uses.")
    ] = 4.0,
    features: Annotated[
        int, typer.Option(metavar="COUNT", min=1, max=_LARGEST, help="Feature tokens of a packet.")
    ] = 80,
    max_new_tokens: Annotated[
        int, typer.Option(metavar="COUNT", min=1, max=_LARGEST, help="ESRT_MAX_NEW_TOKENS.")
    ] = 256,
    generated: Annotated[
        float, typer.Option(metavar="COUNT", min=1, help="Tokens of an average answer.")
    ] = 60.0,
    tokens_per_s: Annotated[
        float | None,
        typer.Option(metavar="RATE", min=0, help="Measured tokens per second of one replica."),
    ] = None,
    version: VersionOption = False,
) -> None:
    """Print GPU memory, concurrent answers and answers per second of one replica."""
    if not all(map(math.isfinite, (gpu_gib, reserve_gib, generated, tokens_per_s or 0.0))):
        raise RequestError("A number is not finite.", "Give memory and tokens as finite numbers.")
    max_tokens = features + PROMPT_TOKENS + max_new_tokens
    shape = read_shape(decoder)
    capacity = compute_capacity(
        shape, gpu_gib=gpu_gib, gpus=gpus, fp8=fp8, reserve_gib=reserve_gib, max_tokens=max_tokens
    )
    typer.echo(f"weights                {capacity.weights_gib:9.2f} GiB")
    typer.echo(f"key-value cache        {capacity.cache_gib:9.2f} GiB")
    typer.echo(f"cache of a token       {capacity.cache_kib_per_token:9.1f} KiB")
    typer.echo(f"longest answers at once{capacity.max_concurrent:9d}  ({max_tokens} tokens each)")
    if tokens_per_s is not None:
        typer.echo(f"answers per second     {tokens_per_s / generated:9.1f}  (of {generated:g})")


if __name__ == "__main__":
    run(main)
