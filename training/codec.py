"""Gathers what the learned codecs know of a checkpoint: ``python -m training.codec``.

The transform is the Karhunen-Loeve transform of the Q-Former's features in the decoder's metric:
with F the Fisher information of the decoder's text about one token's features (the mean of g g^T,
g being the gradient of the log-likelihood of text drawn from the decoder itself) and C the
covariance of the features, coefficients are y = U^T F^(1/2) (x - mean), where U diagonalizes
F^(1/2) C F^(1/2). There a squared error of e costs the text about e / 2 nats, whatever its
direction, so one step for all coefficients is the best allocation of bits: reverse water-filling
(Cover and Thomas, Elements of Information Theory, 10.3.3).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from random import Random
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
import typer
from rich.progress import track
from safetensors.numpy import save_file
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, Gemma3ForCausalLM

from esrt import bundled
from esrt.arrays import Float32Array
from esrt.checkpoint import Checkpoint, open_checkpoint
from esrt.cli import exit_on_error
from esrt.features import SAMPLE_RATE
from esrt.model import join
from esrt.wire import CODEC_TABLES_FILE, Codec, Split, TransformTables
from esrt.wire.transform_codec import FREQUENCY_BITS, cosine
from training.corpus.build import CORPUS, Corpus, Example, load
from training.data import IGNORE, mel_batch, written
from training.recipe import Task
from training.sampling import Item

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RateTarget:
    """What a learned codec is made for.

    Attributes:
        step: what coefficients are rounded to, in the square root of nats.
        ridge: added to the Fisher information, as a part of its mean: what the decoder seldom
            reads still counts, which pays where there are bits to spare.
    """

    step: float
    ridge: float


RATE_TARGETS = {Codec.KLT: RateTarget(0.0076, 0.1), Codec.KLT_LOW: RateTarget(0.0135, 0.001)}
# Tokens that follow time are transformed in blocks of so many.
_BLOCK = 8
# A coefficient that so seldom rounds to anything but 0 is not written.
_SELDOM = 0.005
# Coefficients whose standard deviations differ by less than this factor share a table.
_RATIO = 1.25
# Tables reach this much beyond the largest integer seen, and count all half a time more than seen.
_MARGIN, _UNSEEN = 1.5, 0.5


@dataclass(frozen=True)
class Sample:
    """Features of utterances, each (tokens, W), the gradients of all, and the seconds of speech."""

    features: list[Float32Array]
    gradients: Array
    seconds: float


def collect_statistics(
    checkpoint: Checkpoint, corpus: Corpus, utterances: int, seed: int = 0
) -> Sample:
    """Features at the Q-Former, and the gradient of the decoder's text by each.

    The text is the decoder's own: each token drawn from what it expects after the right ones.

    Args:
        checkpoint: edge and decoder.
        corpus: its training split.
        utterances: how many of it, drawn at random, each into one language.
        seed: of all that is drawn.
    """
    random, generator = Random(seed), torch.Generator().manual_seed(seed)
    edge = checkpoint.edge_model().requires_grad_(False)
    decoder = Gemma3ForCausalLM.from_pretrained(
        checkpoint.decoder, dtype=torch.float32, attn_implementation="eager"
    ).requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.decoder)
    examples = random.sample(corpus.examples, min(utterances, len(corpus.examples)))
    batches = list(_batches(sorted(examples, key=lambda example: example.samples)))
    features, gradients = [], []
    for batch in track(batches, description="gathering", transient=True):
        mel, frames = mel_batch(edge.config, [corpus.speech(example) for example in batch])
        tokens = torch.tensor([edge.config.tokens(count) for count in frames.tolist()])
        found = edge.features(mel, frames).requires_grad_()
        texts = [written(tokenizer, _item(example, random)) for example in batch]
        given = pad_sequence([text for text, _ in texts], batch_first=True)
        asked = pad_sequence([own for _, own in texts], batch_first=True, padding_value=IGNORE)
        words = decoder.get_input_embeddings()(given)
        sequence, mask = join(edge.mlp(found), tokens, words)
        states = decoder.model(inputs_embeds=sequence, attention_mask=mask.long())
        expected = decoder.lm_head(states.last_hidden_state[:, found.shape[1] : -1])
        expected = expected[asked[:, 1:] != IGNORE]
        drawn = torch.multinomial(expected.detach().softmax(-1), 1, generator=generator)[:, 0]
        nn.functional.cross_entropy(expected, drawn, reduction="sum").backward()  # type: ignore[no-untyped-call]
        assert found.grad is not None
        for row, count in enumerate(tokens.tolist()):
            features.append(found[row, :count].detach().numpy())
            gradients.append(found.grad[row, :count].double().numpy())
    seconds = sum(example.samples for example in examples) / SAMPLE_RATE
    return Sample(features, np.concatenate(gradients), seconds)


def _batches(examples: list[Example], size: int = 24) -> Iterator[list[Example]]:
    for start in range(0, len(examples), size):
        yield examples[start : start + size]


def _item(example: Example, random: Random) -> Item:
    target = random.choice([code for code in example.texts if code != example.language])
    return Item(example, target, Task.SRT)


def fit(sample: Sample, target: RateTarget, block: int) -> TransformTables:
    """The statistics of a learned codec; see the module's text."""
    every = np.concatenate(sample.features).astype(np.float64)
    mean, covariance = every.mean(axis=0), np.cov(every.T)
    fisher = sample.gradients.T @ sample.gradients / len(every)
    ridge = target.ridge * np.trace(fisher) / len(fisher)
    values, vectors = np.linalg.eigh(fisher + ridge * np.eye(len(fisher)))
    root = vectors * np.sqrt(values) @ vectors.T
    inverse = vectors / np.sqrt(values) @ vectors.T
    _, directions = np.linalg.eigh(root @ covariance @ root)
    directions = directions[:, ::-1]
    return _tables_of(
        sample.features,
        mean.astype(np.float32),
        np.asarray(directions.T @ root / target.step, np.float32),
        np.asarray(directions.T @ inverse * target.step, np.float32),
        block,
    )


def _tables_of(
    features: list[Float32Array],
    mean: Float32Array,
    analysis: Float32Array,
    synthesis: Float32Array,
    block: int,
) -> TransformTables:
    blocks = [
        cosine(np.matmul(one[: len(one) // block * block] - mean, analysis.T), block)
        for one in features
        if len(one) >= block
    ]
    coefficients = np.concatenate(blocks).reshape(-1, block, len(analysis))
    integers = np.rint(coefficients).astype(np.int64)
    written = (integers != 0).mean(axis=0) >= _SELDOM
    kept = written.any(axis=0)
    spread, written = coefficients.std(axis=0)[:, kept], written[:, kept]
    degrees = np.rint(np.log(spread) / np.log(_RATIO)).astype(int)
    used, places = np.unique(degrees[written], return_inverse=True)
    classes = np.zeros(written.shape, np.uint8)
    classes[written] = 1 + places
    integers = integers[:, :, kept]
    tables = [_table(integers[:, classes == 1 + number]) for number in range(len(used))]
    longest = max(map(len, tables)) // 2
    return TransformTables(
        mean,
        analysis[kept],
        synthesis[kept],
        classes,
        np.stack([np.pad(table, longest - len(table) // 2) for table in tables]),
    )


def _table(integers: npt.NDArray[np.int64]) -> npt.NDArray[np.uint16]:
    """How often each integer occurs, made symmetric, in 65,536."""
    limit = int(np.ceil(_MARGIN * np.abs(integers).max()))
    counts = np.bincount(integers.ravel() + limit, minlength=2 * limit + 1) + _UNSEEN
    shares = (counts + counts[::-1]) / counts.sum() / 2
    table = np.maximum(1, np.floor(shares * 2**FREQUENCY_BITS)).astype(np.int64)
    table[limit] += 2**FREQUENCY_BITS - table.sum()
    return np.asarray(table, np.uint16)


def write(checkpoint: Checkpoint, split: Split, by_codec: Mapping[Codec, TransformTables]) -> None:
    """Write the statistics into a checkpoint, whole or not at all."""
    path = checkpoint.folder / CODEC_TABLES_FILE
    tensors = {
        f"{codec}.{field.name}": getattr(tables, field.name)
        for codec, tables in by_codec.items()
        for field in fields(tables)
    }
    partial = path.with_name(f".{path.name}.partial")
    save_file(tensors, partial, metadata={"split": split, "fingerprint": checkpoint.fingerprint})
    partial.replace(path)


def main(
    checkpoint: Annotated[
        Path, typer.Option(help="Checkpoint folder.", show_default="the bundled esrt-nano")
    ] = bundled.CHECKPOINT,
    corpus: Annotated[Path, typer.Option(help="Folder of the corpus.")] = CORPUS,
    utterances: Annotated[int, typer.Option(min=100, help="How many to gather from.")] = 2400,
) -> None:
    """Write codec.safetensors into a checkpoint; its features do not change."""
    opened = open_checkpoint(checkpoint)
    trained = load(corpus, "train").only(opened.config.languages)
    block = _BLOCK if opened.config.q_former.stride else 1
    sample = collect_statistics(opened, trained, utterances)
    by_codec = {codec: fit(sample, target, block) for codec, target in RATE_TARGETS.items()}
    write(opened, Split.QFORMER, by_codec)
    for codec, tables in by_codec.items():
        written = sum(len(tables.write(tables.quantize(one))) for one in sample.features)
        rate = 8 * written / sample.seconds
        print(f"{codec}: {len(tables.analysis)} coefficients, {rate:.0f} bit/s and the header")


if __name__ == "__main__":
    with exit_on_error():
        typer.run(main)
