"""What a decoder needs of a GPU: ``python -m cloud_vllm.capacity DECODER --gpu-gib 80``.

Arithmetic on the decoder's shapes; how fast it decodes has to be measured (`benchmarks.cloud`, or
``vllm bench throughput``) and is put in with ``--tokens-per-s``.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from cloud_vllm.engines.base import PROMPT_TOKENS
from esrt.cli import exit_on_error
from esrt.errors import CheckpointError

_GIB = 2**30
# vLLM's own default for `gpu_memory_utilization`.
_SHARE = 0.9


@dataclass(frozen=True)
class Shape:
    """A Gemma 3 decoder's numbers; the names are those of its ``config.json``."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int

    @property
    def parameters(self) -> int:
        """Weights of embedding (tied), attention and feed-forward; norms are left out."""
        attention = 2 * self.head_dim * (self.num_attention_heads + self.num_key_value_heads)
        layer = self.hidden_size * (attention + 3 * self.intermediate_size)
        return self.vocab_size * self.hidden_size + self.num_hidden_layers * layer

    def cache_bytes(self, width: int = 2) -> int:
        """Key-value cache of one token: key and value, in each layer, ``width`` bytes a number.

        Layers with a sliding window are counted in full: an answer is shorter than the window.
        """
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * width


# The published configurations of Gemma 3, on which the paper's decoders are built.
GEMMA = {
    "gemma-3-4b": Shape(2560, 34, 8, 4, 256, 10240, 262208),
    "gemma-3-12b": Shape(3840, 48, 16, 8, 256, 15360, 262208),
}


def read_shape(decoder: str) -> Shape:
    """The shape of a named decoder, or of a checkpoint's or decoder's folder.

    Raises:
        CheckpointError: it is neither.
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
            f"There is no Gemma 3 decoder in {decoder}.",
            f"Name a checkpoint's folder, or one of: {', '.join(GEMMA)}.",
        ) from error


@dataclass(frozen=True)
class Size:
    """A deployment of one replica.

    Attributes:
        weights_gib: of the decoder, over all its GPUs.
        cache_gib: what is left for the key-value cache.
        cache_kib_per_token: of the key-value cache.
        answers_at_once: how many of the longest answers the cache holds.
    """

    weights_gib: float
    cache_gib: float
    cache_kib_per_token: float
    answers_at_once: int


def size(
    shape: Shape, *, gpu_gib: float, gpus: int, fp8: bool, reserve_gib: float, longest: int
) -> Size:
    """What fits.

    Args:
        shape: the decoder's.
        gpu_gib: memory of one GPU.
        gpus: over which the decoder is spread (tensor parallel).
        fp8: one byte for a weight instead of two; the embedding and the cache stay as they are.
        reserve_gib: of each GPU, for activations, graphs and CUDA itself.
        longest: tokens of the longest answer, with its features and prompt.
    """
    embedding = shape.vocab_size * shape.hidden_size
    weights = 2 * embedding + (shape.parameters - embedding) * (1 if fp8 else 2)
    left = gpus * (_SHARE * gpu_gib - reserve_gib) * _GIB - weights
    at_once = max(0, int(left // (longest * shape.cache_bytes())))
    return Size(weights / _GIB, max(0.0, left / _GIB), shape.cache_bytes() / 1024, at_once)


def main(
    decoder: Annotated[str, typer.Argument(help=f"Checkpoint folder, or {' or '.join(GEMMA)}.")],
    gpu_gib: Annotated[float, typer.Option(min=1, help="Memory of one GPU.")] = 80.0,
    gpus: Annotated[int, typer.Option(min=1, help="Tensor parallel.")] = 1,
    fp8: Annotated[bool, typer.Option("--fp8", help="Weights in fp8.")] = False,
    reserve_gib: Annotated[float, typer.Option(min=0, help="Of each GPU, not for cache.")] = 4.0,
    features: Annotated[int, typer.Option(min=1, help="Feature tokens of a packet.")] = 80,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="ESRT_MAX_NEW_TOKENS.")] = 256,
    generated: Annotated[float, typer.Option(min=1, help="Tokens of a usual answer.")] = 60.0,
    tokens_per_s: Annotated[
        float | None, typer.Option(min=0, help="Measured: tokens per second of one replica.")
    ] = None,
) -> None:
    """Say what a replica holds, and how many requests per second it answers."""
    with exit_on_error():
        longest = features + PROMPT_TOKENS + max_new_tokens
        shape = read_shape(decoder)
        found = size(
            *(shape,), gpu_gib=gpu_gib, gpus=gpus, fp8=fp8, reserve_gib=reserve_gib, longest=longest
        )
    typer.echo(f"weights                {found.weights_gib:9.2f} GiB")
    typer.echo(f"key-value cache        {found.cache_gib:9.2f} GiB")
    typer.echo(f"cache of a token       {found.cache_kib_per_token:9.1f} KiB")
    typer.echo(f"longest answers at once{found.answers_at_once:9d}  ({longest} tokens each)")
    if tokens_per_s is not None:
        typer.echo(f"answers per second     {tokens_per_s / generated:9.1f}  (of {generated:g})")


if __name__ == "__main__":
    typer.run(main)
