"""Computation of the tables of the transform codecs.

The transform is the Karhunen-Loeve transform of the Q-Former's features in the decoder's metric.
F is the Fisher information of the decoder's text about one token's features: the mean of g g^T,
where g is the gradient of the log-likelihood of text that is sampled from the decoder. C is the
covariance of the features. The coefficients are y = U^T F^(1/2) (x - mean), where U diagonalizes
F^(1/2) C F^(1/2). In these coordinates a squared error of e costs the text about e / 2 nats in
every direction, so equal steps for all coefficients are the best allocation of bits: reverse
water-filling (Cover and Thomas, Elements of Information Theory, 10.3.3).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from random import Random

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track
from safetensors.numpy import save_file
from torch import nn
from transformers import AutoTokenizer, Gemma3ForCausalLM

from esrt.arrays import Float32Array
from esrt.checkpoint import Checkpoint
from esrt.features import FRAMES_PER_SECOND, SAMPLE_RATE
from esrt.files import replace_file
from esrt.model import join_features_and_text
from esrt.wire import CODEC_TABLES_FILE, Codec, Split, TransformTables
from esrt.wire.transform_codec import FREQUENCY_BITS, cosine
from training.corpus.build import NON_SPEECH, OPEN, Corpus, Example
from training.data import IGNORE, Collator, alphabet_of
from training.recipe import Task
from training.sampling import Item
from training.state_corpus import StateCorpus
from training.state_edge import split_edge


@dataclass(frozen=True)
class RateTarget:
    """Operating point of a transform codec.

    Attributes:
        step: quantizer step, in the square root of nats.
        ridge: added to the Fisher information, as a share of its mean eigenvalue. Directions that
            the decoder seldom reads then keep some weight, which pays at high rates.
    """

    step: float
    ridge: float


RATE_TARGETS = {Codec.KLT: RateTarget(0.0076, 0.1), Codec.KLT_LOW: RateTarget(0.0135, 0.001)}
# Tokens of a block of the cosine transform, for models whose tokens follow time.
BLOCK = 8
# Coefficients that round to nonzero less often than this are not written.
_MIN_NONZERO_SHARE = 0.005
# Coefficients whose standard deviations differ by less than this factor share a frequency table.
_TABLE_RATIO = 1.25
# Range of a frequency table, as a multiple of the largest integer seen.
_RANGE_MARGIN = 1.5
# Additive smoothing of the counts.
_COUNT_SMOOTHING = 0.5
_BATCH = 24


@dataclass(frozen=True)
class FeatureSample:
    """Features of utterances, with gradients.

    Attributes:
        features: (tokens, W) of each utterance.
        gradients: (all tokens, W), gradients of the text's negative log-likelihood.
        seconds: length of the speech.
    """

    features: list[Float32Array]
    gradients: npt.NDArray[np.float64]
    seconds: float


def collect_statistics(
    checkpoint: Checkpoint, corpus: Corpus | StateCorpus, utterances: int
) -> FeatureSample:
    """Compute Q-Former features, and the gradients of the decoder's text with respect to them.

    Each token of the text is sampled from the decoder's prediction under teacher forcing.

    Args:
        checkpoint: edge model and decoder.
        corpus: a training split, as audio or as states of the checkpoint's encoder. Only its
            sentences with translations are used.
        utterances: number of utterances, drawn at random, each with one target language.
    """
    random, generator = Random(0), torch.Generator().manual_seed(0)
    on_states = isinstance(corpus, StateCorpus)
    whole = checkpoint.edge_model()
    edge = (split_edge(whole).eval() if on_states else whole).requires_grad_(False)
    decoder = Gemma3ForCausalLM.from_pretrained(
        checkpoint.decoder, dtype=torch.float32, attn_implementation="eager"
    ).requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.decoder)
    collator = Collator(edge.config, tokenizer, alphabet_of(corpus.examples), on_states)
    translated = [one for one in corpus.examples if one.kind not in (OPEN, NON_SPEECH)]
    examples = random.sample(translated, min(utterances, len(translated)))
    examples.sort(key=lambda example: example.samples)
    starts = range(0, len(examples), _BATCH)
    all_features, all_gradients = [], []
    for start in track(starts, description="collecting statistics", transient=True):
        part = examples[start : start + _BATCH]
        batch = collator(
            [_item(example, random) for example in part],
            [corpus.speech(example) for example in part],
        )
        tokens = torch.tensor([edge.config.tokens(count) for count in batch.frames.tolist()])
        features = edge.features(batch.speech, batch.frames).requires_grad_()
        text = decoder.get_input_embeddings()(batch.text)
        sequence, mask = join_features_and_text(edge.mlp(features), tokens, text)
        states = decoder.model(inputs_embeds=sequence, attention_mask=mask.long())
        logits = decoder.lm_head(states.last_hidden_state[:, features.shape[1] : -1])
        logits = logits[batch.labels[:, 1:] != IGNORE]
        drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
        nn.functional.cross_entropy(logits, drawn, reduction="sum").backward()  # type: ignore[no-untyped-call]
        assert features.grad is not None
        for row, count in enumerate(tokens.tolist()):
            all_features.append(features[row, :count].detach().numpy())
            all_gradients.append(features.grad[row, :count].double().numpy())
    rate = FRAMES_PER_SECOND // 2 if on_states else SAMPLE_RATE
    seconds = sum(example.samples for example in examples) / rate
    return FeatureSample(all_features, np.concatenate(all_gradients), seconds)


def _item(example: Example, random: Random) -> Item:
    target = random.choice([code for code in example.texts if code != example.language])
    return Item(example, target, Task.SRT)


def fit_tables(sample: FeatureSample, target: RateTarget, block: int) -> TransformTables:
    """Compute the tables of a transform codec; see the module's docstring.

    Args:
        sample: features and gradients.
        target: the operating point.
        block: tokens of a block of the cosine transform; 1 for none.
    """
    features = np.concatenate(sample.features).astype(np.float64)
    mean, covariance = features.mean(axis=0), np.cov(features.T)
    fisher = sample.gradients.T @ sample.gradients / len(features)
    ridge = target.ridge * np.trace(fisher) / len(fisher)
    values, vectors = np.linalg.eigh(fisher + ridge * np.eye(len(fisher)))
    root = vectors * np.sqrt(values) @ vectors.T
    inverse = vectors / np.sqrt(values) @ vectors.T
    _, directions = np.linalg.eigh(root @ covariance @ root)
    directions = directions[:, ::-1]
    return _transform_tables(
        sample.features,
        mean.astype(np.float32),
        np.asarray(directions.T @ root / target.step, np.float32),
        np.asarray(directions.T @ inverse * target.step, np.float32),
        block,
    )


def _transform_tables(
    features: list[Float32Array],
    mean: Float32Array,
    analysis: Float32Array,
    synthesis: Float32Array,
    block: int,
) -> TransformTables:
    blocks = [
        cosine(np.matmul(rows[: len(rows) // block * block] - mean, analysis.T), block)
        for rows in features
        if len(rows) >= block
    ]
    coefficients = np.concatenate(blocks).reshape(-1, block, len(analysis))
    integers = np.rint(coefficients).astype(np.int64)
    written = (integers != 0).mean(axis=0) >= _MIN_NONZERO_SHARE
    kept = written.any(axis=0)
    deviations, written = coefficients.std(axis=0)[:, kept], written[:, kept]
    levels = np.rint(np.log(deviations) / np.log(_TABLE_RATIO)).astype(int)
    distinct, numbers = np.unique(levels[written], return_inverse=True)
    classes = np.zeros(written.shape, np.uint8)
    classes[written] = 1 + numbers
    integers = integers[:, :, kept]
    tables = [
        _frequency_table(integers[:, classes == 1 + number]) for number in range(len(distinct))
    ]
    longest = max(map(len, tables)) // 2
    return TransformTables(
        mean,
        analysis[kept],
        synthesis[kept],
        classes,
        np.stack([np.pad(table, longest - len(table) // 2) for table in tables]),
    )


def _frequency_table(integers: npt.NDArray[np.int64]) -> npt.NDArray[np.uint16]:
    """Count the integers -M to M, symmetrically, scaled to a sum of 65,536."""
    limit = int(np.ceil(_RANGE_MARGIN * np.abs(integers).max()))
    counts = np.bincount(integers.ravel() + limit, minlength=2 * limit + 1) + _COUNT_SMOOTHING
    shares = (counts + counts[::-1]) / counts.sum() / 2
    table = np.maximum(1, np.floor(shares * 2**FREQUENCY_BITS)).astype(np.int64)
    table[limit] += 2**FREQUENCY_BITS - table.sum()
    return np.asarray(table, np.uint16)


def write(checkpoint: Checkpoint, split: Split, by_codec: Mapping[Codec, TransformTables]) -> None:
    """Write the codec tables into a checkpoint, whole or not at all."""
    tensors = {
        f"{codec}.{field.name}": getattr(tables, field.name)
        for codec, tables in by_codec.items()
        for field in fields(tables)
    }
    metadata = {"split": split, "fingerprint": checkpoint.fingerprint}
    with replace_file(checkpoint.folder / CODEC_TABLES_FILE) as partial:
        save_file(tensors, partial, metadata=metadata)
